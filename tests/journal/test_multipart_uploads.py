"""No multipart upload of ours stays in a bucket, whatever became of the answer that has its id, and no other's goes."""

from __future__ import annotations

import errno
import os
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing

from sosfs.errors import StoreError, from_s3
from sosfs.s3.protocol import Properties
from tests.conftest import HURRY, Mounter
from tests.support.composed import Composed
from tests.support.drive import eventually, fails
from tests.support.fake_store import FakeStore
from tests.support.faults import FAILED, LOST, Answer, Hang, Moment
from tests.support.foreign import Foreign
from tests.support.held import Held, begun, bodies, put_all
from tests.support.proxy import Proxy
from tests.support.traffic import on

BODY = bytes(20 << 20)
NONE = Properties()


class Losing(Held):
    """Begins more uploads than it tells of: `twins` beside the one that is told, and `lost` of which none is."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.twins = 0
        self.lost_begins = 0
        self.error = StoreError(errno.ETIMEDOUT, "create_multipart")
        self.late: list[str] = []  # keys of which an upload will have begun later

    async def create_multipart(self, key: str, properties: Properties, **options: Any) -> str:
        if self.lost_begins:
            self.lost_begins -= 1
            await FakeStore.create_multipart(self, key, properties)
            raise self.error
        upload_id = await FakeStore.create_multipart(self, key, properties)
        for _ in range(self.twins):
            await FakeStore.create_multipart(self, key, properties)
        if self.twins or self.late:
            options["on_repeat"](upload_id)
        return upload_id

    def uploads(self) -> list[str]:
        return sorted(upload.key for upload in self._uploads.values())


@pytest.fixture
def store() -> Losing:
    """The store of `mount`."""
    return Losing()


def write(mount: Composed, path: str = "file") -> None:
    mount.loop.run(lambda: mount.write(path, BODY, flags=os.O_CREAT))


def rows(mount: Composed) -> tuple[int, int]:
    """Intents and uploads in the journal."""

    async def count() -> tuple[int, int]:
        return len(mount._journal.intents()), len(mount._journal.uploads())

    return mount.loop.run(count)


@pytest.mark.parametrize("twins", [1, 3])
def test_what_a_second_try_has_begun_beside_is_aborted(mount: Composed, store: Losing, twins: int) -> None:
    store.twins = twins
    write(mount)
    mount.loop.passes(1)
    assert store.uploads() == []
    assert len(bodies(store)["file"]) == len(BODY)
    assert rows(mount) == (0, 0)
    looks = store.calls["list_uploads"]
    store.twins = 0
    write(mount, "other")
    mount.loop.run(mount.parts.drain)
    assert store.calls["list_uploads"] == looks, "nobody looks where all was answered"


@pytest.mark.parametrize("error", [StoreError(errno.ETIMEDOUT, "lost"), StoreError(errno.EIO, "500", status=500)])
def test_what_was_begun_without_an_answer_is_aborted(mount: Composed, store: Losing, error: StoreError) -> None:
    store.lost_begins, store.error = 2, error

    async def failing() -> None:
        with fails(errno.ETIMEDOUT, errno.EIO):
            await mount.write("file", BODY, flags=os.O_CREAT)

    mount.loop.run(failing)
    assert store.uploads()
    mount.loop.passes(400)
    assert store.uploads() == []
    assert rows(mount) == (0, 0)
    assert len(bodies(store)["file"]) == len(BODY)


def test_a_refusal_after_a_lost_try_leaves_a_doubt(mount: Composed, store: Losing) -> None:
    """403 to a second try says nothing of the first."""
    store.error = from_s3("create_multipart", code="AccessDenied", status=403)
    store.error.repeated = True
    store.lost_begins = 1

    async def failing() -> None:
        with fails(errno.EACCES):
            await mount.write("file", BODY, flags=os.O_CREAT)

    mount.loop.run(failing)
    assert store.uploads() == ["file"]
    mount.loop.passes(400)
    mount.loop.run(mount.parts.drain)
    assert store.uploads() == []


def test_what_takes_effect_late_is_found_by_the_next_mount(mount: Composed, store: Losing) -> None:
    store.late = ["file"]
    write(mount)
    mount.stop()
    assert rows_of_new_mount(mount, store) == []


def rows_of_new_mount(mount: Composed, store: Losing) -> list[str]:
    """What is left when the upload that was asked for first begins between two mounts."""
    store.late = []
    mount.loop.run(lambda: FakeStore.create_multipart(store, "file", NONE))
    mount.start()
    return store.uploads()


def test_uploads_of_others_stay(mount: Composed, store: Losing) -> None:
    """Of the same key with a part; of another key; of an earlier day."""

    async def theirs() -> None:
        upload = await FakeStore.create_multipart(store, "file", NONE)
        await store.upload_part("file", upload, 1, b"part")
        await FakeStore.create_multipart(store, "file2", NONE)
        old = await FakeStore.create_multipart(store, "file", NONE)
        store._uploads[old].started -= 86_400

    mount.loop.run(theirs)
    store.twins = 1
    write(mount)
    mount.loop.passes(1)
    assert store.uploads() == ["file", "file", "file2"]
    mount.stop()
    mount.start()
    assert store.uploads() == ["file", "file", "file2"]


def test_a_copy_by_parts_leaves_none_over_a_crash(
    mount: Composed, store: Losing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sosfs.s3.copying.PUT_MAX", 8 << 20)
    monkeypatch.setattr("sosfs.s3.copying.PART", 6 << 20)
    mount.loop.run(lambda: put_all(store, {"large": BODY}))
    store.before["copy_part"] = trio.Event()
    mount.loop.run(lambda: begun(mount, partial(mount.rename, "large", "moved")))
    assert store.uploads() == ["moved"]
    mount.crash()
    store.before.clear()
    mount.start()
    assert store.uploads() == []
    assert list(bodies(store)) == ["large"]
    store.twins = 1
    mount.loop.run(lambda: mount.rename("large", "moved"))
    mount.loop.passes(1)
    assert store.uploads() == []
    assert rows(mount) == (0, 0)


def test_an_upload_that_could_not_be_aborted_is_aborted_at_the_unmount(mount: Composed, store: Losing) -> None:
    def refuse(operation: str, key: str) -> None:
        if operation in ("complete_multipart", "abort_multipart"):
            raise StoreError(errno.EIO, operation, status=500)

    async def failing() -> None:
        with fails(errno.EIO):
            await mount.write("file", BODY, flags=os.O_CREAT)

    store.fault = refuse
    mount.loop.run(failing)
    mount.loop.run(lambda: mount.unlink("file"))
    assert store.uploads() == ["file"]
    store.fault = None
    mount.stop()
    assert store.uploads() == []
    mount.start()


# On a mount


@pytest.mark.parametrize("server", ["ceph"], indirect=True)  # moto's uploads all began in 2010
def test_no_upload_stays_on_a_server(mounter: Mounter, foreign: Foreign, proxy: Proxy) -> None:
    foreign.begin_and_abort("warm")
    theirs = foreign.client.create_multipart_upload(Bucket=foreign.bucket, Key="lost")["UploadId"]
    foreign.client.upload_part(Bucket=foreign.bucket, Key="lost", UploadId=theirs, PartNumber=1, Body=b"part")
    drive = mounter(proxy.endpoint, *HURRY)
    drive.mount.allow_log("WARNING|ERROR")
    for times in (1, 2):
        for action in LOST.values():
            rule = proxy.inject(action, on("CREATE_MULTIPART"), times=times)
            (drive.here / "lost").write_bytes(BODY)
            assert rule.hits == times
            eventually(lambda: foreign.uploads() == ["lost"])
            proxy.heal()
    with proxy.broken(Hang(Moment.AFTER), on("CREATE_MULTIPART")), fails(*FAILED):
        (drive.here / "hung").write_bytes(BODY)
    with proxy.broken(Answer(500, "InternalError", Moment.AFTER), on("CREATE_MULTIPART")), fails(*FAILED):
        (drive.here / "failed").write_bytes(BODY)
    proxy.drop_connections()
    drive.mount.stop()
    assert foreign.uploads() == ["lost"], "theirs, which has a part"
    assert [part["PartNumber"] for part in parts(foreign, theirs)] == [1]
    assert foreign.keys() == ["failed", "hung", "lost"]


def parts(foreign: Foreign, upload_id: str) -> list[Any]:
    return list(foreign.client.list_parts(Bucket=foreign.bucket, Key="lost", UploadId=upload_id).get("Parts", ()))


@pytest.mark.parametrize("server", ["ceph"], indirect=True)
@pytest.mark.parametrize("fault", LOST)
def test_the_probe_of_a_mount_leaves_none(mounter: Mounter, foreign: Foreign, proxy: Proxy, fault: str) -> None:
    foreign.begin_and_abort("warm")
    rule = proxy.inject(LOST[fault], on("CREATE_MULTIPART"), times=1)
    mounter(proxy.endpoint).mount.stop()
    assert rule.hits == 1
    assert foreign.uploads() == []
