"""Which parts of an upload are sent, which are left, and what becomes of those that are at the server already."""

from __future__ import annotations

import errno
import logging
import os
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from sosfs.errors import StoreError, from_elsewhere
from sosfs.files.open_file import Handle
from sosfs.files.spool import SpoolArea
from sosfs.files.upload import BEHIND, PARTS_AT_ONCE, Upload
from sosfs.files.zero_objects import REFUSED
from sosfs.s3.protocol import Part, Properties, Version
from sosfs.s3.scratch_key import is_of_zeros
from tests.support.composed import Composed, composed
from tests.support.drive import fails
from tests.support.held import Held, begun, bodies, closed, opened, put_all, settled, silence, stored, told

PART = 4096
DATA = random.Random(6).randbytes(40 * PART)


class Noting(Held):
    """Notes which parts of "file" are sent, and as what; `on_part` is told of each before."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.parts: list[int] = []
        self.kinds: set[str] = set()
        self.on_part: Any = None
        self.begun_with: list[Properties] = []

    async def upload_part(self, key: str, upload_id: str, number: int, body: Any) -> Part:
        """As `ObjectStore.upload_part`."""
        if key == "file":
            self.parts.append(number)
            self.kinds.add(type(body).__name__)
            if self.on_part is not None:
                await self.on_part(number)
        return await super().upload_part(key, upload_id, number, body)

    async def complete_multipart(self, key: str, *arguments: Any, **options: Any) -> Version:
        """As `ObjectStore.complete_multipart`."""
        self.begun_with.append(options["begun_with"])
        return await super().complete_multipart(key, *arguments, **options)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of some thousand bytes go the ways of large ones."""
    monkeypatch.setattr("sosfs.files.zero_objects.SEED", 16 * PART)
    monkeypatch.setattr("sosfs.files.upload.HOLES_MIN", 5 * PART)
    monkeypatch.setattr("tests.support.fake_store.PART_MIN", 1)


@pytest.fixture
def store() -> Noting:
    return Noting()


@pytest.fixture
def mount(store: Noting, tmp_path: Path) -> Iterator[Composed]:
    with composed(store, tmp_path, part_size=PART) as mount:
        yield mount
        mount.loop.run(store.release)


async def new(mount: Composed, path: str = "file") -> Handle:
    parent, name = await mount._parent(path)
    return await mount._opened(parent, name, os.O_CREAT | os.O_RDWR)


async def upload_of(mount: Composed, handle: Handle) -> Upload:
    """The upload of a file that is being written, begun with nothing sent."""
    draft = handle.open_file.draft
    assert draft is not None
    await mount.parts.file_io.writeback._follow(handle.inode, handle.open_file, draft, 0)
    assert handle.open_file.upload is not None
    return handle.open_file.upload


# Parts with holes that go up where room is short


def test_parts_with_holes_go_up_once_and_without_the_one_that_is_written(mount: Composed, store: Noting) -> None:
    """Of the full parts, too; what has nothing but a hole may be copied of zeros in the end."""

    async def main() -> None:
        handle, io = await new(mount), mount.parts.file_io
        for number in (1, 2, 4, 5):
            await io.write(handle, (number - 1) * PART, DATA[: PART // 2])
        await io.write(handle, PART // 2, DATA[: PART // 2])
        await io.truncate(handle.inode, 7 * PART)
        upload = await upload_of(mount, handle)
        held = store.before["upload_part"] = trio.Event()
        upload.send_begun(4 * PART)
        await trio.testing.wait_all_tasks_blocked()
        upload.send_begun(4 * PART)
        assert upload.is_behind
        held.set()
        await trio.testing.wait_all_tasks_blocked()
        upload.send_begun(4 * PART)
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(store.parts) == [1, 2, 4]
        assert upload.confirmed([(0, 2 * PART), (3 * PART + 10, 6 * PART)]) == 3 * PART - 10
        await closed(mount, handle)

    mount.loop.run(main)
    half = DATA[: PART // 2].ljust(PART, b"\0")
    first = DATA[: PART // 2] * 2
    assert stored(store) == first + half + bytes(PART) + half + half + bytes(2 * PART)


def test_the_end_of_a_file_is_not_sent_before_what_follows_it(mount: Composed, store: Noting) -> None:
    """A part of which half was freed, and half is here, could be sent by nobody."""

    async def main() -> None:
        handle, io = await new(mount), mount.parts.file_io
        for start in (0, PART):
            await io.write(handle, start, DATA[: PART // 2])
        upload = await upload_of(mount, handle)
        upload.send_begun(0)
        await trio.testing.wait_all_tasks_blocked()
        upload.free()
        await io.write(handle, PART + PART // 2, DATA[:PART])
        await closed(mount, handle)
        assert store.parts == [1, 2, 3]

    mount.loop.run(main)
    assert stored(store) == DATA[: PART // 2].ljust(PART, b"\0") + DATA[: PART // 2] + DATA[:PART]


def test_few_parts_with_holes_are_on_their_way_at_once(mount: Composed, store: Noting) -> None:
    async def main() -> None:
        handle = await new(mount)
        for number in range(12):
            await mount.parts.file_io.write(handle, number * PART + 5, b"x")
        upload = await upload_of(mount, handle)
        store.before["upload_part"] = trio.Event()
        upload.send_begun(11 * PART)
        await trio.testing.wait_all_tasks_blocked()
        assert len(upload._behind) == BEHIND
        await store.release()
        await trio.testing.wait_all_tasks_blocked()
        await closed(mount, handle)

    mount.loop.run(main)
    assert stored(store) == (bytes(5) + b"x" + bytes(PART - 6)) * 11 + bytes(5) + b"x"


def test_a_part_of_which_bytes_are_still_in_the_bucket_alone_is_not_sent_before_the_close(
    mount: Composed, store: Noting
) -> None:
    async def main() -> None:
        await put_all(store, {"file": DATA[: 8 * PART]})
        handle = await opened(mount)
        await mount.parts.file_io.write(handle, 2 * PART + 5, b"x")
        upload = await upload_of(mount, handle)
        gets = store.calls["get"]
        upload.send_begun(7 * PART)
        await trio.testing.wait_all_tasks_blocked()
        assert (store.parts, store.calls["get"]) == ([], gets)
        await closed(mount, handle)

    mount.loop.run(main)
    assert stored(store) == DATA[: 2 * PART + 5] + b"x" + DATA[2 * PART + 6 : 8 * PART]


@pytest.mark.parametrize(("size", "parts"), [(2 * PART, 0), (2 * PART + 1, 3)])
def test_up_to_two_parts_are_sent_with_one_request(mount: Composed, store: Noting, size: int, parts: int) -> None:
    async def main() -> None:
        handle = await new(mount)
        await mount.parts.file_io.write(handle, 0, DATA[:size])
        await closed(mount, handle)

    mount.loop.run(main)
    assert stored(store) == DATA[:size]
    assert (store.calls["put"], store.calls["create_multipart"]) == ((0, 1) if parts else (1, 0))
    assert len(store.parts) == parts


@pytest.mark.parametrize(("most", "copies"), [(2 * PART, 20), (1 << 30, 16)], ids=["as long as it may be", "shared"])
def test_what_is_as_it_was_is_copied_side_by_side(
    mount: Composed, store: Noting, monkeypatch: pytest.MonkeyPatch, most: int, copies: int
) -> None:
    """In pieces of what one request may copy, or of a sixteenth of the file."""
    monkeypatch.setattr("sosfs.files.upload.COPY_MAX", most)

    async def main() -> None:
        await put_all(store, {"file": DATA})
        handle = await opened(mount)
        await mount.parts.file_io.write(handle, 39 * PART, b"!")
        await closed(mount, handle)

    mount.loop.run(main)
    assert stored(store) == DATA[: 39 * PART] + b"!" + DATA[39 * PART + 1 :]
    assert (store.parts, store.calls["copy_part"]) == ([40], copies)


@pytest.mark.parametrize("hashes", [True, False])
def test_a_file_that_grew_while_it_was_completed_without_an_answer_is_no_other_clients(
    tmp_path: Path, hashes: bool
) -> None:
    """Where ETags are no hashes its size tells, and the time that it was begun with."""
    store = Noting(hashes=hashes)

    async def main(mount: Composed) -> None:
        handle, io = await new(mount), mount.parts.file_io
        await io.write(handle, 0, DATA[: 8 * PART])
        held = store.before["upload_part"] = trio.Event()
        store.lost.add("file")
        ends: dict[str, Any] = {}
        await begun(mount, partial(told, ends, "flush", partial(io.flush, handle)))
        await io.write(handle, 8 * PART, DATA[8 * PART : 9 * PART])
        store.before.clear()
        await settled(held)
        assert "no answer" in ends["flush"]
        assert [one.metadata for one in store.begun_with] == [store._stored["file"].object.properties.metadata]
        await closed(mount, handle)

    with composed(store, tmp_path, part_size=PART) as mount:
        mount.loop.run(partial(main, mount))
    assert bodies(store) == {"file": DATA[: 9 * PART]}


@pytest.mark.parametrize("hashes", [True, False])
def test_a_file_that_was_written_on_since_its_upload_began_is_known_by_the_time_of_that(
    tmp_path: Path, hashes: bool
) -> None:
    """Which the object has, though the file has another by then."""
    store = Noting(hashes=hashes)

    async def main(mount: Composed) -> None:
        handle, io = await new(mount), mount.parts.file_io
        await io.write(handle, 0, DATA[: 8 * PART])
        store.errors["complete_multipart", "file"] = [silence("complete_multipart")]
        with fails(errno.EIO):
            await io.flush(handle)
        await io.write(handle, 8 * PART, DATA[8 * PART : 9 * PART])
        store.lost.add("file")
        with fails(errno.EIO):
            await io.flush(handle)
        assert [one.metadata for one in store.begun_with] == [store._stored["file"].object.properties.metadata]
        await closed(mount, handle)

    with composed(store, tmp_path, part_size=PART) as mount:
        mount.loop.run(partial(main, mount))
    assert bodies(store) == {"file": DATA[: 9 * PART]}


def test_some_parts_are_sent_side_by_side_and_not_all(mount: Composed, store: Noting) -> None:
    async def main() -> None:
        handle = await new(mount)
        await mount.parts.file_io.write(handle, 0, DATA)
        held = store.before["upload_part"] = trio.Event()
        await begun(mount, partial(mount.parts.file_io.flush, handle))
        assert held.statistics().tasks_waiting == PARTS_AT_ONCE
        store.before.clear()
        await settled(held)
        await closed(mount, handle)

    mount.loop.run(main)
    assert stored(store) == DATA


# What is at the server already


def test_bytes_that_are_in_parts_alone_are_not_given_up_for_parts_of_no_use(
    mount: Composed, store: Noting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few holes were sent, each part by itself; then there are so many that they would be copied, many at once."""
    monkeypatch.setattr("sosfs.files.spool.SPILL", 1000)
    monkeypatch.setattr("sosfs.files.spool.INLINE", 500)
    monkeypatch.setattr("sosfs.files.write_behind.SPILL", 1000)
    monkeypatch.setattr(SpoolArea, "is_short", property(lambda self: True))
    monkeypatch.setattr(SpoolArea, "is_tight", lambda self, more, alone=False: False)

    async def main() -> None:
        handle, io = await new(mount), mount.parts.file_io
        for start in range(0, 6 * PART, PART // 2):
            await io.write(handle, start, DATA[start : start + PART // 2])
            await trio.testing.wait_all_tasks_blocked()
        draft = handle.open_file.draft
        assert draft is not None and draft.away
        await io.truncate(handle.inode, 10 * PART)
        store.errors["complete_multipart", "file"] = [StoreError(errno.EIO, "complete", status=500)]
        with fails(errno.EIO):
            await io.flush(handle)
        assert draft.away and 9 in store.parts
        await io.truncate(handle.inode, 36 * PART)
        await closed(mount, handle)

    mount.loop.run(main)
    assert stored(store) == DATA[: 6 * PART].ljust(36 * PART, b"\0")


def test_parts_without_an_answer_are_of_no_use_either_once_the_file_is_cut_below_them(
    mount: Composed, store: Noting
) -> None:
    """The server has them, and completes an upload with all its parts or not at all."""

    async def main() -> None:
        handle, io = await new(mount), mount.parts.file_io
        await io.write(handle, 0, DATA[: 10 * PART])
        store.unanswered["upload_part", "file"] = [silence("upload_part")] * 10
        with fails(errno.EIO):
            await io.flush(handle)
        store.unanswered.clear()
        await io.truncate(handle.inode, 4 * PART)
        await closed(mount, handle)

    mount.loop.run(main)
    assert (stored(store), store._uploads) == (DATA[: 4 * PART], {})


def test_an_upload_with_parts_of_no_use_is_left_where_it_cannot_be_aborted(mount: Composed, store: Noting) -> None:
    """It could not be completed either: the file goes up anew, and the unmount tries to abort it once more."""

    async def main() -> None:
        handle, io = await new(mount), mount.parts.file_io
        await io.write(handle, 0, DATA[: 10 * PART])
        (await upload_of(mount, handle)).follow(10 * PART)
        await trio.testing.wait_all_tasks_blocked()
        await io.truncate(handle.inode, 4 * PART)
        store.errors["abort_multipart", "file"] = [StoreError(errno.EIO, "abort", status=500)]
        await closed(mount, handle)
        assert stored(store) == DATA[: 4 * PART]
        assert len(store._uploads) == 1

    mount.loop.run(main)
    mount.loop.run(mount.parts.drain)
    assert store._uploads == {}


def test_a_writer_that_never_rests_does_not_have_its_part_sent_for_ever(mount: Composed, store: Noting) -> None:
    """It is sent four times; what came later is dirty again."""

    async def main() -> None:
        handle, io = await new(mount), mount.parts.file_io
        await io.write(handle, 0, DATA[: 10 * PART])
        written = 0

        async def write(number: int) -> None:
            nonlocal written
            if number == 3:
                written += 1
                await io.write(handle, 2 * PART, b"%d" % written)

        store.on_part = write
        await io.fsync(handle.inode)
        assert (written, store.parts.count(3), len(store.parts)) == (4, 4, 13)
        store.on_part = None
        await closed(mount, handle)

    mount.loop.run(main)
    assert stored(store) == DATA[: 2 * PART] + b"4" + DATA[2 * PART + 1 : 10 * PART]


def test_who_appends_again_and_again_reads_the_end_of_the_file_once(tmp_path: Path) -> None:
    """It is a part of the old version that is sent with what comes next."""
    store, body = Noting(), random.Random(7).randbytes((5 << 19) + 100)

    async def main(mount: Composed) -> None:
        await put_all(store, {"file": body})
        for number in range(3):
            handle = await opened(mount)
            await mount.parts.file_io.write(handle, len(body) + number, b"%d" % number)
            await closed(mount, handle)
            assert (store.calls["get"], store.parts) == (1, [3] * (number + 1))

    with composed(store, tmp_path, part_size=1 << 20) as mount:
        mount.loop.run(partial(main, mount))
    assert stored(store) == body + b"012"


# Parts that are not on disk


@pytest.mark.parametrize("on_disk", [True, False])
def test_large_parts_are_sent_and_counted_wherever_they_are(
    mount: Composed, store: Noting, monkeypatch: pytest.MonkeyPatch, on_disk: bool
) -> None:
    monkeypatch.setattr("sosfs.files.upload.END_MAX", PART - 1)
    if on_disk:
        monkeypatch.setattr("sosfs.files.spool.SPILL", 1000)

    async def main() -> None:
        handle = await new(mount)
        await mount.parts.file_io.write(handle, 0, DATA)
        await closed(mount, handle)

    mount.loop.run(main)
    assert stored(store) == DATA
    assert ("FileBody" in store.kinds) is on_disk
    assert mount.parts.uploader.sent_bytes == len(DATA)


# Copies of zeros


async def with_hole(mount: Composed, path: str = "file") -> Handle:
    handle = await new(mount, path)
    await mount.parts.file_io.write(handle, 0, b"data")
    await mount.parts.file_io.truncate(handle.inode, 20 * PART)
    return handle


def test_a_server_that_fails_is_not_sent_the_zeros(mount: Composed, store: Noting) -> None:
    async def main() -> None:
        handle = await with_hole(mount)
        store.errors["copy_part", "file"] = [StoreError(errno.EIO, "copy_part", status=500)] * 20
        with fails(errno.EIO):
            await mount.parts.file_io.flush(handle)
        assert store.parts == [1]
        store.errors.clear()
        await closed(mount, handle)

    mount.loop.run(main)
    assert store.parts == [1]
    assert stored(store) == b"data".ljust(20 * PART, b"\0")


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EACCES, errno.EINVAL])
def test_a_server_that_copies_none_is_asked_again_after_a_while(
    mount: Composed, store: Noting, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    def fault(operation: str, key: str) -> None:
        if operation == "copy_part":
            raise StoreError(number, f"{operation} {key!r}", status=400)

    async def write(path: str) -> int:
        before = store.calls["copy_part"]
        await closed(mount, await with_hole(mount, path))
        assert stored(store, path) == b"data".ljust(20 * PART, b"\0")
        return store.calls["copy_part"] - before

    store.fault = fault
    assert mount.loop.run(partial(write, "file")) > 0
    assert mount.loop.run(partial(write, "other")) == 0
    assert caplog.text.count("holes of files are sent as zeros for now") == 1
    mount.loop.passes(REFUSED + 1)
    store.fault = None
    assert mount.loop.run(partial(write, "third")) > 0


@pytest.mark.parametrize(("status", "is_refusal"), [(404, True), (400, True), (503, False)])
def test_what_knows_no_copies_of_parts_and_is_no_s3_server_is_sent_the_zeros(
    mount: Composed, store: Noting, status: int, is_refusal: bool
) -> None:
    """A gateway that is out of order is not taken for one."""

    async def main() -> None:
        handle = await with_hole(mount)
        told = from_elsewhere("copy_part", status=status, detail="<html>")
        store.errors["copy_part", "file"] = [told] * (1 if is_refusal else 20)
        if not is_refusal:
            with fails(errno.EIO):
                await mount.parts.file_io.flush(handle)
            store.errors.clear()
        await closed(mount, handle)
        assert (len(store.parts) > 1) is is_refusal

    mount.loop.run(main)
    assert stored(store) == b"data".ljust(20 * PART, b"\0")


def test_what_stands_where_zeros_were_is_removed_at_once(mount: Composed, store: Noting) -> None:
    async def main() -> None:
        await closed(mount, await with_hole(mount))
        (made,) = filter(is_of_zeros, store._stored)
        await put_all(store, {made: b"other"})
        await closed(mount, await with_hole(mount, "other"))
        await trio.testing.wait_all_tasks_blocked()
        assert made not in bodies(store)
        assert made not in mount._journal.scratch()

    mount.loop.run(main)
    assert stored(store, "other") == b"data".ljust(20 * PART, b"\0")
