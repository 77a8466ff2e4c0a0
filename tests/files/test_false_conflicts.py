"""A conflict needs another writer: where versions are kept, after sizes that are wrong, and after lost answers."""

from __future__ import annotations

import contextlib
import errno
from dataclasses import replace
from datetime import UTC
from email.utils import format_datetime
from pathlib import Path

import pytest
import trio
from trio.testing import trio_test

from sosfs.errors import Cause, StoreError
from sosfs.s3.bucket import S3Store
from sosfs.s3.protocol import Guard, Properties
from tests.conftest import HURRY, Mounter
from tests.s3.test_answer_rounds import XML, xml
from tests.support.drive import Drive, fails, names, sync, tree
from tests.support.faults import Answer, Page
from tests.support.foreign import Foreign
from tests.support.proxy import Proxy
from tests.support.servers import Bucket, Server
from tests.support.subjects import target_of
from tests.support.traffic import Op, on

CEPH = pytest.mark.parametrize("server", ["ceph"], indirect=True)
MOTO = pytest.mark.parametrize("server", ["moto"], indirect=True)
NONE = Properties()


def keep_versions(foreign: Foreign, *states: str) -> None:
    """Sets the bucket's versioning, state after state."""
    for state in states:
        setting = {"Status": state}
        foreign.client.put_bucket_versioning(Bucket=foreign.bucket, VersioningConfiguration=setting)  # type: ignore[arg-type]


STATES = {"enabled": ("Enabled",), "suspended": ("Enabled", "Suspended")}


def no_conflicts(drive: Drive, foreign: Foreign) -> None:
    sync(drive.here)
    assert not [name for name in [*tree(drive.here), *foreign.keys("")] if "conflict" in name]


def make_and_remove(here: Path) -> None:
    """Each name is made, removed and made again, in each way that makes one."""
    for text in (b"first", b"second", b"third"):
        (here / "file").write_bytes(text)
        assert (here / "file").read_bytes() == text
        (here / "file").unlink()
        with (here / "exclusive").open("xb") as file:
            file.write(text)
        (here / "exclusive").unlink()
        with (here / "name.lock").open("xb") as file:  # claims its name at once
            file.write(text)
        with pytest.raises(FileExistsError), (here / "name.lock").open("xb"):
            pass
        (here / "name.lock").unlink()
        (here / "dir").mkdir()
        (here / "dir").rmdir()
        (here / "link").symlink_to("file")
        (here / "link").unlink()
        (here / "new").write_bytes(text)
        (here / "over").write_bytes(b"old")
        (here / "new").rename(here / "over")
        assert (here / "over").read_bytes() == text
        (here / "over").write_bytes(text * 2)
        (here / "over").unlink()
        (here / "large").write_bytes(text * (4 << 20))
        (here / "large").unlink()


@CEPH
@pytest.mark.parametrize("state", STATES)
def test_a_marker_of_deletion_is_no_other_writer(mounter: Mounter, foreign: Foreign, state: str) -> None:
    keep_versions(foreign, *STATES[state])
    drive = mounter()
    listed = foreign.client.list_object_versions(Bucket=foreign.bucket)
    assert not listed.get("Versions")
    assert not listed.get("DeleteMarkers")
    make_and_remove(drive.here)
    no_conflicts(drive, foreign)
    assert names(drive.here) == []


@CEPH
@pytest.mark.parametrize("state", STATES)
def test_versions_that_are_kept_from_now_on_are_no_other_writer(mounter: Mounter, foreign: Foreign, state: str) -> None:
    drive = mounter()
    make_and_remove(drive.here)
    keep_versions(foreign, *STATES[state])
    (drive.here / "first").write_bytes(b"to be removed")
    (drive.here / "first").unlink()
    sync(drive.here)
    make_and_remove(drive.here)
    no_conflicts(drive, foreign)


@CEPH
@pytest.mark.parametrize("state", STATES)
@trio_test
async def test_markers_that_many_removals_at_once_leave_are_no_other_writer(
    server: Server, foreign: Foreign, state: str
) -> None:
    """Versions are kept since the mount began, and the answer to DeleteObjects says nothing of the markers."""
    store = S3Store(target_of(Bucket(server, foreign.bucket, foreign.client)))
    await store.probe_conditions(".probe")
    keep_versions(foreign, *STATES[state])
    for key in ("a", "b"):
        await store.put(key, b"1", NONE, condition=Guard.ABSENT)
    assert await store.delete_many(["a", "b"]) == []
    await store.put("a", b"2", NONE, condition=Guard.ABSENT)
    if state == "suspended":  # Ceph 16 heeds no condition where each write makes a version
        with fails(errno.ESTALE):
            await store.put("a", b"3", NONE, condition=Guard.ABSENT)
    store.close()


@CEPH
def test_another_writer_is_one_also_where_versions_are_kept(server: Server, foreign: Foreign, proxy: Proxy) -> None:
    keep_versions(foreign, "Enabled", "Suspended")
    store = S3Store(target_of(Bucket(server, foreign.bucket, foreign.client), endpoint=proxy.endpoint))

    async def run() -> None:
        await store.probe_conditions(".probe")
        await store.put("key", b"1", NONE, condition=Guard.ABSENT)
        await store.delete("key")
        version = await store.put("key", b"2", NONE, condition=Guard.ABSENT)
        foreign.put("key", b"theirs")
        for condition in (Guard.ABSENT, version):
            with pytest.raises(StoreError) as caught:
                await store.put("key", b"3", NONE, condition=condition)
            assert caught.value.cause is Cause.CONFLICT
        assert foreign.get("key") == b"theirs"

    trio.run(run)
    store.close()


@pytest.fixture
def store(server: Server, foreign: Foreign, proxy: Proxy) -> S3Store:
    bucket = Bucket(server, foreign.bucket, foreign.client)
    return S3Store(replace(target_of(bucket, endpoint=proxy.endpoint), patience=0.0))


@MOTO
@pytest.mark.parametrize("code", ["NoSuchKey", "ConditionalRequestConflict", "PreconditionFailed"])
@pytest.mark.parametrize("condition", ["absent", "this version"])
def test_what_holds_and_is_refused_is_no_conflict(
    store: S3Store, foreign: Foreign, proxy: Proxy, code: str, condition: str
) -> None:
    status = {"NoSuchKey": 404, "PreconditionFailed": 412}.get(code, 409)
    if code == "PreconditionFailed" and condition == "absent":
        pytest.skip("without markers of deletion nothing else refuses it")

    async def run() -> None:
        await store.probe_conditions(".probe")
        expected = Guard.ABSENT if condition == "absent" else await store.put("key", b"1", NONE)
        proxy.inject(Answer(status, code), on(Op.PUT), times=1)
        if code == "PreconditionFailed":
            await store.put("key", b"2", NONE, condition=expected)
            assert foreign.get("key") == b"2"
            return
        with pytest.raises(StoreError) as caught:
            await store.put("key", b"2", NONE, condition=expected)
        assert caught.value.errno == errno.EIO

    trio.run(run)


@MOTO
def test_a_size_that_is_wrong_is_no_other_writer(mounter: Mounter, foreign: Foreign, proxy: Proxy) -> None:
    """A file is said to be longer than it is, by HEAD alone; nobody has changed it."""
    foreign.put_all({"small": b"small" * 20, "other": b"other" * 2000})
    drive = mounter(proxy.endpoint, *HURRY, "--ttl", "0.1")
    drive.mount.allow_log(r"WARNING|ERROR")
    for name in ("small", "other"):
        body, told = foreign.get(name), foreign.head(name)
        moment = format_datetime(told["LastModified"].astimezone(UTC), usegmt=True)
        headers = (f"ETag: {told['ETag']}", f"Last-Modified: {moment}", "x-amz-request-id: 7")
        with proxy.broken(Page(200, body=body + bytes(1000), media="text/plain", headers=headers), on(Op.HEAD)):
            for _ in range(3):
                with contextlib.suppress(OSError):
                    append(drive.here / name, b"more")
                with contextlib.suppress(OSError):
                    assert (drive.here / name).read_bytes().startswith(body)
        path = drive.here / name
        with contextlib.suppress(OSError):
            sync(path)
        assert path.stat().st_size == len(path.read_bytes()) == len(foreign.get(name))
        assert path.read_bytes() == foreign.get(name)
        assert foreign.get(name).startswith(body)
    no_conflicts(drive, foreign)


def append(path: Path, data: bytes) -> None:
    with path.open("ab", buffering=0) as file:
        file.write(data)


@MOTO
def test_a_range_that_is_not_there_is_no_other_writer(store: S3Store, foreign: Foreign, proxy: Proxy) -> None:
    async def run() -> None:
        version = await store.put("key", b"0123456789" * 100, NONE)
        upload = await store.create_multipart("joined", NONE)
        proxy.inject(Answer(416, "InvalidRange"), on(Op.GET, Op.COPY_PART))
        for etag in ("", version.etag):
            with pytest.raises(StoreError) as caught:
                await store.get("key", 500, 900, etag=etag)
            assert caught.value.errno == errno.EIO
        with pytest.raises(StoreError) as caught:
            await store.copy_part("joined", upload, 1, "key", version, 500, 900)
        assert caught.value.errno == errno.EIO
        foreign.put("key", b"short")
        with pytest.raises(StoreError) as caught:
            await store.copy_part("joined", upload, 1, "key", version, 500, 900)
        assert caught.value.errno == errno.ESTALE

    trio.run(run)


@MOTO
@pytest.mark.parametrize(
    "answer",
    [
        Page(200, body=b"<html>Sign in</html>"),
        Page(200, media=""),
        Page(
            200,
            body=b"<CopyObjectResult><LastModified>2026-11-28T10:00:00Z</LastModified></CopyObjectResult>",
            media=XML,
        ),
        Page(200, body=b"<CopyObjectResult><ETag/></CopyObjectResult>", media=XML),
        Page(200, body=b"<?xml version='1.0'?>" + b"  \n" * 9000 + xml("AccessDenied").partition(b"?>")[2], media=XML),
        Page(200, body=b"  \n" * 3000 + xml("InternalError"), media=XML),
    ],
    ids=["login", "nothing", "no ETag", "an empty ETag", "an error after blanks", "blanks before an error"],
)
def test_a_success_without_what_it_made_is_none(store: S3Store, proxy: Proxy, answer: Page) -> None:
    """Nor is it a conflict: what happened is not known."""

    async def run() -> None:
        await store.probe_conditions(".probe")
        version = await store.put("key", b"1" * 2000, NONE)
        upload = await store.create_multipart("joined", NONE)
        proxy.inject(answer, on(Op.PUT, Op.COPY, Op.UPLOAD_PART, Op.COPY_PART, Op.COMPLETE, Op.CREATE_MULTIPART))
        for call in (
            store.put("new", b"2", NONE),
            store.put("key", b"2", NONE, condition=version),
            store.copy("key", "copy", version=version),
            store.create_multipart("other", NONE),
            store.upload_part("joined", upload, 1, b"1"),
            store.copy_part("joined", upload, 1, "key", version, 0, 1000),
        ):
            with pytest.raises(StoreError) as caught:
                await call
            assert caught.value.errno in (errno.EIO, errno.EACCES), caught.value

    trio.run(run)
