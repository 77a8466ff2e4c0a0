"""What stands between the client and the server is not the server: its pages are failures, whatever their status.

The most harm does a listing that looks empty: a backup removes what it does not see.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pyfuse3
import pytest
import trio

from sosfs.errors import Cause, StoreError
from sosfs.fuse.error_replies import answered, listing
from sosfs.s3.bucket import S3Store
from sosfs.s3.xml import refusal_of
from tests.conftest import HURRY, Mounter
from tests.s3.test_answer_rounds import XML, xml
from tests.support.drive import fails, names, tree
from tests.support.faults import INGRESS, LOGIN, Action, Answer, Page
from tests.support.foreign import Foreign
from tests.support.proxy import Proxy
from tests.support.servers import Bucket, Server
from tests.support.subjects import target_of
from tests.support.traffic import Op, on

MOTO = pytest.mark.parametrize("server", ["moto"], indirect=True)
TTL = 0.1  # seconds
FILES = {"d/one": b"1" * 5000, "d/two": b"2", "d/deep/three": b"3", "top": b"t"}

# Answers to a listing that a program would take for the end of a directory, or for an empty one.
EMPTY: Mapping[str, Action] = {
    "ingress": Page(404, body=INGRESS),
    "NoSuchKey": Page(404, body=xml("NoSuchKey"), media=XML),
    "nothing": Page(404, media=""),
    "with an id": Page(404, media="", headers=("x-amz-request-id: 7",)),
    "login": Page(200, body=LOGIN),
    "empty": Page(200, media=""),
    "bare": Page(200, body=b"<ListBucketResult/>", media=XML),
    "of another prefix": Page(
        200, body=b"<ListBucketResult><Prefix>x/</Prefix><IsTruncated>false</IsTruncated></ListBucketResult>", media=XML
    ),
    "that counts more": Page(
        200,
        body=b"<ListBucketResult><KeyCount>2</KeyCount><IsTruncated>false</IsTruncated></ListBucketResult>",
        media=XML,
    ),
}


@pytest.mark.parametrize("method", ["GET", "PUT", "POST", "DELETE", "HEAD"])
@pytest.mark.parametrize("status", [301, 302, 304, 400, 401, 403, 404, 405, 409, 412, 416, 418, 500, 503])
def test_a_page_is_neither_an_absence_nor_a_conflict_nor_a_lack_of_a_right(method: str, status: int) -> None:
    body = b"" if method == "HEAD" else INGRESS
    error = refusal_of("GetObject 'key'", method, status, {"Content-Type": "text/html"}, body)
    assert error is not None
    assert error.cause is Cause.FAILED
    assert error.errno == {401: errno.EACCES, 403: errno.EACCES, 405: errno.EOPNOTSUPP}.get(status, errno.EIO)
    assert str(status) in error.detail


@pytest.mark.parametrize(
    ("request_", "number"),
    [
        ("GetObject 'key'", errno.ENOENT),
        ("HeadObject 'key'", errno.ENOENT),
        ("CopyObject 'key'", errno.ENOENT),
        ("GetObjectAcl 'key'", errno.ENOENT),
        ("ListObjectsV2", errno.EIO),
        ("ListObjectVersions", errno.EIO),
        ("ListMultipartUploads", errno.EIO),
        ("ListBuckets", errno.EIO),
        ("CreateMultipartUpload 'key'", errno.EIO),
        ("DeleteObjects", errno.EIO),
        ("GetBucketAcl", errno.EIO),
        ("GetBucketCors", errno.EIO),
    ],
)
def test_only_who_asks_for_an_object_is_told_that_there_is_none(request_: str, number: int) -> None:
    error = refusal_of(request_, "GET", 404, {}, xml("NoSuchKey"))
    assert error is not None
    assert error.errno == number


@pytest.mark.parametrize("code", ["NoSuchKey", "PreconditionFailed"])
def test_a_server_that_failed_has_found_nothing_out(code: str) -> None:
    error = refusal_of("GetObject 'key'", "GET", 503, {}, xml(code))
    assert error is not None
    assert error.cause is Cause.FAILED


@pytest.mark.parametrize("name", ["x-amz-request-id", "x-amz-id-2", "x-amzn-requestid"])
def test_a_head_is_believed_that_tells_whose_it_is(name: str) -> None:
    error = refusal_of("HeadObject 'key'", "HEAD", 404, {name: "7", "Content-Type": "text/html"}, b"")
    assert error is not None
    assert error.cause is Cause.ABSENT


@pytest.fixture
def store(server: Server, foreign: Foreign, proxy: Proxy) -> S3Store:
    foreign.put_all(FILES)
    bucket = Bucket(server, foreign.bucket, foreign.client)
    return S3Store(replace(target_of(bucket, endpoint=proxy.endpoint), patience=0.0))


def test_a_head_costs_one_request_where_the_server_says_who_it_is(store: S3Store, proxy: Proxy) -> None:
    async def run() -> None:
        with pytest.raises(StoreError) as caught:
            await store.head("never")
        assert caught.value.errno == errno.ENOENT

    trio.run(run)
    assert [request.op for request in proxy.requests] == [Op.HEAD]


@MOTO
@pytest.mark.parametrize("key", ["never", "top"])
def test_a_head_that_does_not_is_confirmed(store: S3Store, proxy: Proxy, key: str) -> None:
    """Only then: an S3 server that sends no ids is believed when its GET names the error."""
    proxy.inject(Page(404, media=XML), on(Op.HEAD))

    async def run() -> None:
        with pytest.raises(StoreError) as caught:
            await store.head(key)
        assert caught.value.errno == (errno.ENOENT if key == "never" else errno.EIO)

    trio.run(run)
    assert [request.op for request in proxy.requests] == [Op.HEAD, Op.GET]


@pytest.mark.parametrize("guard", [listing, answered])
def test_no_directory_ends_with_an_absence(guard: object) -> None:
    @guard  # type: ignore[operator]
    async def absent() -> None:
        raise StoreError(errno.ENOENT, "a request")

    @guard  # type: ignore[operator]
    async def told() -> None:
        raise pyfuse3.FUSEError(errno.ENOENT)

    for handler in (absent, told):
        with pytest.raises(pyfuse3.FUSEError) as caught:
            trio.run(handler)
        assert caught.value.errno == (errno.EIO if guard is listing else errno.ENOENT)


@MOTO
def test_a_listing_that_is_none_empties_no_backup(
    mounter: Mounter, foreign: Foreign, proxy: Proxy, tmp_path: Path
) -> None:
    foreign.put_all(FILES)
    drive = mounter(proxy.endpoint, *HURRY, "--ttl", str(TTL))
    drive.mount.allow_log(r"WARNING|ERROR")
    backup = tmp_path / "backup"
    command = ["rsync", "-a", "--delete", f"{drive.here}/", f"{backup}/"]
    subprocess.run(command, check=True)
    assert tree(backup) == FILES
    for name, action in EMPTY.items():
        proxy.settle(2 * TTL)  # a listing that was asked for as late as its end may answer until then, and is right
        with proxy.broken(action, on(Op.LIST)) as rule:
            done = subprocess.run(command, capture_output=True, check=False)
            with fails(errno.EIO):
                os.listdir(drive.here / "d")
        assert rule.hits, name
        assert done.returncode != 0, f"{name}: {proxy.requests[-40:]}"
        assert tree(backup) == FILES, name
    assert names(drive.here) == ["d", "top"]
    subprocess.run(command, check=True)
    assert tree(drive.here) == FILES


@MOTO
def test_the_second_page_of_a_listing_may_not_be_missing(mounter: Mounter, foreign: Foreign, proxy: Proxy) -> None:
    foreign.put_all({f"many/{number:04}": b"" for number in range(1200)})
    drive = mounter(proxy.endpoint, "--patience", "1", "--ttl", "0.1")
    drive.mount.allow_log(r"WARNING|ERROR")
    for action in EMPTY.values():
        with (
            proxy.broken(action, lambda request: "continuation-token" in request.query) as rule,
            fails(errno.EIO),
        ):
            os.listdir(drive.here / "many")
        assert rule.hits
    assert len(os.listdir(drive.here / "many")) == 1200


@MOTO
def test_the_control_tree_shows_no_empty_directory_either(mounter: Mounter, foreign: Foreign, proxy: Proxy) -> None:
    foreign.put_all(FILES)
    drive = mounter(proxy.endpoint, *HURRY)
    drive.mount.allow_log(r"WARNING|ERROR")
    control = drive.here / ".sosfs"
    versions = control / "versions"
    assert names(versions) == ["d", "top"]
    settings = ["acl", "cors", "versioning", "policy"]
    for action in (*EMPTY.values(), Page(200, body=xml("AccessDenied"), media=XML)):
        with proxy.broken(action, on(Op.LIST_VERSIONS)), fails(errno.EIO, errno.EACCES):
            os.listdir(versions)
        with proxy.broken(action, on(Op.SETTING, Op.GET_ACL)):
            for name in settings:
                with fails(errno.EIO, errno.EACCES):
                    (control / "bucket" / name).read_text()
    assert (control / "bucket" / "versioning").read_text().strip() == "off"
    assert (control / "bucket" / "cors").read_text() == ""
    login = Page(200, body=LOGIN)
    with proxy.broken(login, on(Op.SETTING)), fails(errno.EIO):
        (control / "bucket" / "versioning").write_text("enabled\n")
    assert (control / "bucket" / "versioning").read_text().strip() == "off"


@MOTO
def test_a_page_for_a_removal_removes_nothing(mounter: Mounter, foreign: Foreign, proxy: Proxy) -> None:
    """A file whose removal was answered by a gateway is there, or its removal is tried again."""
    foreign.put_all(FILES)
    drive = mounter(proxy.endpoint, *HURRY)
    drive.mount.allow_log(r"WARNING|ERROR")
    for status in (404, 200, 302):
        with proxy.broken(Page(status, body=INGRESS), on(Op.DELETE, Op.DELETE_MANY)), fails(errno.EIO):
            (drive.here / "d" / "one").unlink()
        assert (drive.here / "d" / "one").read_bytes() == FILES["d/one"]
        assert foreign.exists("d/one")


@MOTO
@pytest.mark.parametrize("status", [404, 409, 412, 416, 403, 400])
def test_a_page_makes_no_conflict(mounter: Mounter, foreign: Foreign, proxy: Proxy, status: int) -> None:
    foreign.put_all(FILES)
    drive = mounter(proxy.endpoint, *HURRY)
    drive.mount.allow_log(r"WARNING|ERROR")
    page = Page(status, body=INGRESS)
    with proxy.broken(page, on(Op.PUT, Op.HEAD, Op.GET)):
        appended = subprocess.run(["sh", "-c", f"echo more >> {drive.here}/top"], capture_output=True, check=False)
        assert appended.returncode != 0
    with proxy.broken(page, on(Op.PUT)), fails(errno.EIO, errno.EACCES):
        (drive.here / "d" / "two").write_bytes(b"new")
    with proxy.broken(page, on(Op.PUT)), fails(errno.EIO, errno.EACCES):
        (drive.here / "d" / "made").write_bytes(b"new")
    subprocess.run(["sh", "-c", f"echo after >> {drive.here}/top"], check=True)
    drive.run("python3", "-c", f"import os; os.fsync(os.open({str(drive.here / 'd')!r}, os.O_RDONLY))")
    assert not [key for key in foreign.keys("") if "conflict" in key]
    assert foreign.get("d/two") in (b"new", FILES["d/two"])
    assert foreign.get("top") in (b"tmore\nafter\n", b"tafter\n")
    for key in ("top", "d/two"):
        path = drive.here / key
        assert path.stat().st_size == len(path.read_bytes()) == len(foreign.get(key))


@MOTO
def test_an_archived_object_can_be_looked_at_renamed_and_removed(
    mounter: Mounter, foreign: Foreign, proxy: Proxy
) -> None:
    foreign.put_all({"cold": b"c" * 100, "colder": b"c" * 5000, "lost": b"l"})
    drive = mounter(proxy.endpoint)
    proxy.inject(Answer(403, "InvalidObjectState"), on(Op.GET))
    assert (drive.here / "cold").stat().st_size == 100
    assert (drive.here / "colder").stat().st_size == 5000
    for name in ("cold", "colder"):
        with fails(errno.EREMOTEIO):
            (drive.here / name).read_bytes()
    assert "has to be restored before it can be read" in drive.mount.log
    (drive.here / "cold").rename(drive.here / "moved")
    (drive.here / "colder").chmod(0o600)
    (drive.here / "lost").unlink()
    assert names(drive.here) == ["colder", "moved"]
    proxy.heal()
    assert (drive.here / "moved").read_bytes() == b"c" * 100
    shutil.copy(drive.here / "colder", drive.here / "copy")


def _deleted(**told: str) -> Action:
    """An answer to DeleteObjects that names these keys, each with what became of it: "" or an error's code."""
    removed = "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key, code in told.items() if not code)
    kept = "".join(f"<Error><Key>{key}</Key><Code>{code}</Code></Error>" for key, code in told.items() if code)
    return Page(200, body=f"<DeleteResult>{removed}{kept}</DeleteResult>".encode(), media=XML)


# Answers to a removal of a, b and c that removed none, and leave open which are there.
UNCLEAR: Mapping[str, Action] = {
    "another key failed": _deleted(x="AccessDenied"),
    "a key failed and another": _deleted(a="InternalError", x="InternalError"),
    "another key was removed": _deleted(a="", b="", x=""),
    "one was removed, of the others nothing": _deleted(a=""),
    "a key without a name failed": _deleted(**{"": "InternalError"}),
}


@MOTO
@pytest.mark.parametrize("answer", UNCLEAR.values(), ids=UNCLEAR)
def test_what_a_batch_leaves_open_is_removed_one_by_one(
    store: S3Store, foreign: Foreign, proxy: Proxy, answer: Action
) -> None:
    foreign.put_all({"a": b"a", "b": b"b", "c": b"c"})
    proxy.inject(answer, on(Op.DELETE_MANY), times=1)

    async def run() -> None:
        assert await store.delete_many(["a", "b", "c"]) == []

    trio.run(run)
    assert sorted(foreign.keys()) == sorted(FILES)


@MOTO
def test_a_tree_is_removed_though_the_answers_name_other_keys(mounter: Mounter, foreign: Foreign, proxy: Proxy) -> None:
    """As where a key has a carriage return, of which XML makes a line feed, and may not be removed."""
    foreign.put_all({f"d/{number}": b"x" for number in range(20)})
    drive = mounter(proxy.endpoint, *HURRY)
    rule = proxy.inject(_deleted(**{"d/other": "AccessDenied"}), on(Op.DELETE_MANY))
    shutil.rmtree(drive.mount.path / "d")
    drive.mount.end()
    assert rule.hits
    assert foreign.keys() == []
