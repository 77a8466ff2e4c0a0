"""Large parts of an upload are sent from the spool's file, never in memory, and true whatever is done meanwhile."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator
from functools import partial
from hashlib import md5
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from sosfs.errors import StoreError
from sosfs.files.open_file import Handle
from sosfs.s3.file_body import FileBody, hashed
from sosfs.s3.protocol import Part, PartBody
from tests.conftest import Mounter
from tests.support.composed import Composed, composed
from tests.support.drive import fails
from tests.support.held import Held, begun, closed, settled, silence, stored, told

PART = 8192
BODY = random.Random(5).randbytes(8 * PART + 100)
MIB = 1 << 20


class Watching(Held):
    """Notes what parts are sent as, and says for some of them that other bytes arrived."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[type[Any]] = []
        self.damaged: list[int] = []  # numbers of parts

    async def upload_part(self, key: str, upload_id: str, number: int, body: PartBody) -> Part:
        self.sent.append(type(body))
        if number in self.damaged and isinstance(body, FileBody):
            self.damaged.remove(number)
            raise StoreError(errno.EIO, f"UploadPart {key!r}", code="XAmzContentSHA256Mismatch")
        return await super().upload_part(key, upload_id, number, body)


@pytest.fixture(autouse=True)
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts have 8 KiB, and all but the last are sent from the file."""
    monkeypatch.setattr("sosfs.files.upload.END_MAX", PART - 1)
    monkeypatch.setattr("sosfs.files.spool.SPILL", 1000)
    monkeypatch.setattr("tests.support.fake_store.PART_MIN", 1)


@pytest.fixture
def store() -> Watching:
    """The bucket."""
    return Watching()


@pytest.fixture
def mount(store: Watching, tmp_path: Path) -> Iterator[Composed]:
    """A mount with small parts."""
    with composed(store, tmp_path, part_size=PART) as mount:
        yield mount
        mount.loop.run(store.release)


async def written(mount: Composed) -> Handle:
    parent, name = await mount._parent("file")
    handle = await mount._opened(parent, name, os.O_CREAT | os.O_RDWR)
    await mount.parts.file_io.write(handle, 0, BODY)
    return handle


def test_parts_on_disk_are_sent_from_the_file(mount: Composed, store: Watching) -> None:
    async def main() -> None:
        await closed(mount, await written(mount))

    mount.loop.run(main)
    assert stored(store) == BODY
    assert store.sent.count(FileBody) == 8
    assert len(store.sent) == 9, "the rest of a part is small"


def test_a_part_that_is_written_to_while_it_is_sent_is_sent_again(mount: Composed, store: Watching) -> None:
    """The server has hashed other bytes than the mount, and nothing is wrong with either."""
    expected = bytearray(BODY)
    expected[PART + 10 : PART + 14] = b"late"

    async def main() -> None:
        handle = await written(mount)
        store.before["upload_part"] = trio.Event()
        mount.nursery.start_soon(mount.parts.file_io.flush, handle)
        await trio.testing.wait_all_tasks_blocked()
        await mount.parts.file_io.write(handle, PART + 10, b"late")
        store.damaged = [2]
        store.before.pop("upload_part").set()
        await trio.testing.wait_all_tasks_blocked()
        store.damaged = []
        await closed(mount, handle)

    mount.loop.run(main)
    assert stored(store) == expected


def test_what_is_written_while_a_part_waits_for_its_answer_is_not_left_to_a_try_that_has_failed(
    mount: Composed, store: Watching
) -> None:
    """The next one goes on with the parts that are as the file is by now."""
    expected = bytearray(BODY)
    expected[PART + 10 : PART + 14] = b"late"

    async def main() -> None:
        handle = await written(mount)
        held = store.after["upload_part"] = trio.Event()
        outcomes: dict[str, Any] = {}
        await begun(mount, partial(told, outcomes, "flush", partial(mount.parts.file_io.flush, handle)))
        await mount.parts.file_io.write(handle, PART + 10, b"late")
        store.errors["complete_multipart", "file"] = [silence("complete_multipart")]
        del store.after["upload_part"]
        await settled(held)
        assert "no answer" in outcomes["flush"]
        await closed(mount, handle)

    mount.loop.run(main)
    assert stored(store) == expected


def test_a_file_that_is_cut_while_it_is_sent_is_stored_as_it_is_then(mount: Composed, store: Watching) -> None:
    async def main() -> None:
        handle = await written(mount)
        store.before["upload_part"] = trio.Event()
        mount.nursery.start_soon(mount.parts.file_io.flush, handle)
        await trio.testing.wait_all_tasks_blocked()
        await mount.parts.file_io.truncate(handle.inode, PART + 5)
        store.damaged = [2]
        store.before.pop("upload_part").set()
        await trio.testing.wait_all_tasks_blocked()
        await closed(mount, handle)

    mount.loop.run(main)
    assert stored(store) == BODY[: PART + 5]


def test_damage_on_the_way_is_an_error(mount: Composed, store: Watching) -> None:
    async def main() -> None:
        handle = await written(mount)
        store.damaged = [2] * 100
        with fails(errno.EIO):
            await mount.parts.file_io.flush(handle)
        store.damaged = []
        await closed(mount, handle)

    mount.loop.run(main)
    assert stored(store) == BODY


def test_what_is_hashed_is_what_was_sent(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(BODY)
    with path.open("rb") as file:
        body = FileBody(file.fileno(), 100, 100 + 3 * PART)
        assert len(body) == 3 * PART
        assert bytes(body) == BODY[100 : 100 + 3 * PART]
        assert hashed(partial(md5, usedforsecurity=False), body).hexdigest() == md5(bytes(body)).hexdigest()
        body.read(0, 3 * PART)
        assert body.sent_md5 == "", "nobody asked for it"
        body.sum()
        assert body.sent_md5 == "", "nothing was sent since"
        sent = body.read(0, PART)
        path.write_bytes(bytes(len(BODY)))
        sent += body.read(PART, 2 * PART)
        assert body.sent_md5 == md5(sent).hexdigest()
        body.read(0, PART)
        assert body.sent_md5 == "", "it is sent anew"
        sent = b"".join(body.read(at, PART) for at in (0, PART, 2 * PART, 3 * PART))
        assert sent == bytes(3 * PART)
        assert body.sent_md5 == md5(sent).hexdigest()


def test_a_large_part_takes_no_memory(mounter: Mounter) -> None:
    """One part of 160 MiB, while the daemon may have 16 MiB of blocks."""
    drive = mounter("", "--part-size", "160M", "--memory", "16M")
    before = int((Path("/proc") / str(drive.mount.pid) / "status").read_text().split("VmHWM:")[1].split()[0])
    with (drive.here / "file").open("wb") as file:
        for _ in range(340):
            file.write(b"x" * MIB)
    after = int((Path("/proc") / str(drive.mount.pid) / "status").read_text().split("VmHWM:")[1].split()[0])
    assert drive.foreign.head(drive.key(drive.here / "file"))["ContentLength"] == 340 * MIB
    assert after - before < 100 * 1024, "KiB"
