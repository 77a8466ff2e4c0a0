"""Which parts go up while a file is written, which do not, and what falls between a writer and a commit beside it."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from sosfs.cache.extents import Extents
from sosfs.concurrency.interrupt import CURRENT, Interrupt
from sosfs.files.open_file import Handle
from sosfs.files.upload import BEHIND
from sosfs.metadata import user_metadata
from sosfs.s3.protocol import OBJECT_MAX, Acl, Part, PartBody
from tests.support.composed import Composed, composed
from tests.support.drive import fails
from tests.support.held import Held, begun, bodies, closed, opened, put_all, settled, silence, stored, told

PART = 4096
FROM = 8  # parts of a file that is sent while it is written


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.support.fake_store.PART_MIN", 1)
    monkeypatch.setattr("sosfs.files.write_behind.STREAM_MIN", FROM * PART)


class Gated(Held):
    """A store that also holds back parts, by number and first byte."""

    def __init__(self) -> None:
        super().__init__()
        self.gates: dict[tuple[int, bytes], trio.Event] = {}

    async def upload_part(self, key: str, upload_id: str, number: int, body: PartBody) -> Part:
        """As `ObjectStore.upload_part`."""
        gate = self.gates.get((number, bytes(body)[:1]))
        if gate is not None:
            await gate.wait()
        return await super().upload_part(key, upload_id, number, body)

    async def release(self) -> None:
        """As `Held.release`."""
        for gate in self.gates.values():
            gate.set()
        await super().release()


@pytest.fixture
def store() -> Gated:
    """The bucket."""
    return Gated()


@pytest.fixture
def mount(tmp_path: Path, store: Gated) -> Iterator[Composed]:
    """A mount with small parts."""
    with composed(store, tmp_path, part_size=PART) as mount:
        yield mount
        mount.loop.run(store.release)


def run(mount: Composed, work: Callable[[Composed], Awaitable[None]]) -> None:
    mount.loop.run(partial(work, mount))


async def new(mount: Composed) -> Handle:
    parent, name = await mount._parent("file")
    return await mount._opened(parent, name, os.O_CREAT | os.O_RDWR)


async def written(mount: Composed, handle: Handle, first: int, last: int, letter: bytes = b"n") -> None:
    """Writes parts `first` to `last`, and lets go up what does."""
    for number in range(first, last + 1):
        await mount.parts.file_io.write(handle, (number - 1) * PART, letter * PART)
        await trio.testing.wait_all_tasks_blocked()


def there(store: Held) -> dict[int, bytes]:
    """The parts of the only upload, each with its first byte."""
    ((_, upload),) = store._uploads.items()
    return {number: body[:1] for number, (_, body) in upload.parts.items()}


# What goes up


def test_a_part_that_was_written_anew_goes_up_again_before_the_close(mount: Composed, store: Held) -> None:
    async def main(mount: Composed) -> None:
        handle = await new(mount)
        await written(mount, handle, 1, 12)
        await written(mount, handle, 2, 2, b"!")
        await written(mount, handle, 13, 14)
        assert there(store) == {number: b"!" if number == 2 else b"n" for number in range(1, 14)}
        assert store.calls["upload_part"] == 14, "that one twice, and no other"
        await closed(mount, handle)
        assert stored(store)[PART : 2 * PART] == b"!" * PART

    run(mount, main)


def test_a_write_over_several_parts_sends_each_of_them_again(mount: Composed, store: Held) -> None:
    async def main(mount: Composed) -> None:
        handle = await new(mount)
        await written(mount, handle, 1, 12)
        await mount.parts.file_io.write(handle, PART + 100, b"!" * 2 * PART)
        await closed(mount, handle)
        assert stored(store) == b"n" * (PART + 100) + b"!" * 2 * PART + b"n" * (9 * PART - 100)
        assert store.calls["upload_part"] == 12 + 3

    run(mount, main)


def test_a_part_that_failed_behind_the_writer_goes_up_before_the_close(mount: Composed, store: Gated) -> None:
    """Though parts after it have been sent by then."""

    async def main(mount: Composed) -> None:
        late = store.gates[1, b"n"] = trio.Event()
        handle = await new(mount)
        await written(mount, handle, 1, 12)
        assert set(there(store)) == set(range(2, 12))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Held, "upload_part", _unanswered)
            await settled(late)
        await written(mount, handle, 13, 13)
        assert set(there(store)) == set(range(1, 13))
        await closed(mount, handle)

    run(mount, main)


async def _unanswered(*_: object) -> Part:
    raise silence("upload_part")


def test_a_file_goes_up_to_the_name_that_it_has_by_now(mount: Composed, store: Held) -> None:
    async def main(mount: Composed) -> None:
        handle = await new(mount)
        await written(mount, handle, 1, 10)
        await mount.rename("file", "moved")
        await written(mount, handle, 11, 14)
        assert [upload.key for upload in store._uploads.values()] == ["moved"]
        assert set(there(store)) == set(range(1, 14))
        await closed(mount, handle)
        assert bodies(store) == {"moved": b"n" * 14 * PART}
        assert store._uploads == {}

    run(mount, main)


def test_what_is_set_while_parts_go_up_is_stored_with_them(mount: Composed, store: Held) -> None:
    """The upload was begun with what the file had before."""

    async def main(mount: Composed) -> None:
        handle = await new(mount)
        await written(mount, handle, 1, 12)
        handle.inode.mode, handle.inode.mtime_ns = stat.S_IFREG | 0o600, 10**18
        mount.parts.attributes.changed(handle.inode, posix={"mode", "mtime_ns"})
        mount.parts.file_io.time_given(handle.inode)
        await closed(mount, handle)
        assert handle.inode.mtime_ns == 10**18

    run(mount, main)
    mount.loop.passes(5)
    said = user_metadata.read(store._stored["file"].object.properties.metadata)
    assert (said.mode, said.mtime_ns) == (stat.S_IFREG | 0o600, 10**18)


def test_few_parts_are_under_way_at_once(mount: Composed, store: Held) -> None:
    async def main(mount: Composed) -> None:
        store.before["upload_part"] = trio.Event()
        handle = await new(mount)
        await written(mount, handle, 1, 14)
        assert store.calls["upload_part"] == 0
        store.calls.clear()
        upload = handle.open_file.upload
        assert upload is not None
        assert len(upload._behind) == BEHIND
        await settled(store.before.pop("upload_part"))
        assert store.calls["upload_part"] == 13, "the others follow, though nobody writes"
        await closed(mount, handle)

    run(mount, main)


def test_what_is_small_or_changed_in_place_is_sent_once(mount: Composed, store: Held) -> None:
    """A database writes the same places over and over, and a small file is soon closed."""

    async def main(mount: Composed) -> None:
        await put_all(store, {"file": b"o" * 30 * PART})
        handle = await opened(mount)
        for letter in (b"1", b"2", b"3"):
            await written(mount, handle, 1, 12, letter)
        assert store._uploads == {}
        await closed(mount, handle)
        assert stored(store) == b"3" * 12 * PART + b"o" * 18 * PART
        await mount.unlink("file")
        handle = await new(mount)
        await written(mount, handle, 1, FROM - 1)
        assert store._uploads == {}
        await closed(mount, handle)

    run(mount, main)


def test_a_part_that_is_not_written_yet_is_not_sent(mount: Composed, store: Held) -> None:
    """Who has left it out may come back to it."""

    async def main(mount: Composed) -> None:
        handle = await new(mount)
        await written(mount, handle, 1, 10)
        await written(mount, handle, 12, 14)
        assert set(there(store)) == set(range(1, 14)) - {11}
        await written(mount, handle, 11, 11, b"!")
        await written(mount, handle, 14, 14)
        assert there(store)[11] == b"!"
        await closed(mount, handle)
        assert store.calls["upload_part"] == 14
        assert stored(store) == b"n" * 10 * PART + b"!" * PART + b"n" * 3 * PART

    run(mount, main)


def test_what_went_up_stays_here_where_there_is_room(
    mount: Composed, store: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who reads it does not have the file completed for that."""
    monkeypatch.setattr("sosfs.files.spool.SPILL", 1000)

    async def main(mount: Composed) -> None:
        handle = await new(mount)
        await written(mount, handle, 1, 14)
        assert len(there(store)) == 13
        assert bytes(await mount.parts.file_io.read(handle, 0, 14 * PART)) == b"n" * 14 * PART
        assert store.calls["complete_multipart"] == 0
        await closed(mount, handle)

    run(mount, main)


def test_nothing_goes_up_of_what_was_removed_while_it_is_written(mount: Composed, store: Held) -> None:
    """Programs write to what has no name any more; they are told nothing of that."""

    async def main(mount: Composed) -> None:
        handle = await new(mount)
        await written(mount, handle, 1, 2)
        await mount.unlink("file")
        await written(mount, handle, 3, 14)
        assert store.calls["create_multipart"] == 0
        assert bytes(await mount.parts.file_io.read(handle, 0, 14 * PART)) == b"n" * 14 * PART
        await closed(mount, handle)

    run(mount, main)
    assert bodies(store) == {}


def test_no_more_parts_follow_once_a_removal_has_begun(mount: Composed, store: Held) -> None:
    async def main(mount: Composed) -> None:
        handle = await _emptied(mount, store)
        store.before["upload_part"] = trio.Event()
        await written(mount, handle, 1, 12)
        gone = store.before["delete"] = trio.Event()
        await begun(mount, partial(mount.unlink, "file"))
        await settled(store.before.pop("upload_part"))
        assert store.calls["upload_part"] == BEHIND
        await settled(gone)
        await closed(mount, handle)

    run(mount, main)
    assert (bodies(store), store._uploads) == ({}, {})


# Beside a commit


async def _flush_begins(mount: Composed, handle: Handle) -> dict[str, Any]:
    """What becomes of a flush that is held back."""
    ends: dict[str, Any] = {}
    await begun(mount, partial(told, ends, "flush", partial(mount.parts.file_io.flush, handle)))
    return ends


def test_who_is_interrupted_does_not_wait_for_parts_on_their_way(mount: Composed, store: Gated) -> None:
    async def main(mount: Composed) -> None:
        late, interrupt = store.gates.setdefault((9, b"n"), trio.Event()), Interrupt()
        handle = await new(mount)
        await written(mount, handle, 1, 12)

        async def flush() -> None:
            CURRENT.set(interrupt)
            await mount.parts.file_io.flush(handle)

        ends: dict[str, Any] = {}
        await begun(mount, partial(told, ends, "flush", flush))
        assert ends == {}
        interrupt.set()
        await trio.testing.wait_all_tasks_blocked()
        assert f"({errno.EINTR}" in ends["flush"]
        await settled(late)
        await closed(mount, handle)
        assert store.calls["upload_part"] == 12, "what was on its way is used"

    run(mount, main)
    assert bodies(store) == {"file": b"n" * 12 * PART}


def test_who_is_interrupted_while_a_file_is_removed_does_not_wait_for_its_parts(mount: Composed, store: Gated) -> None:
    """The upload is given up once they have arrived."""

    async def main(mount: Composed) -> None:
        late, interrupt = store.gates.setdefault((9, b"n"), trio.Event()), Interrupt()
        handle = await new(mount)
        await written(mount, handle, 1, 12)

        async def unlink() -> None:
            CURRENT.set(interrupt)
            await mount.unlink("file")

        ends: dict[str, Any] = {}
        await begun(mount, partial(told, ends, "unlink", unlink))
        assert ends == {}
        interrupt.set()
        await trio.testing.wait_all_tasks_blocked()
        assert ends == {"unlink": None}
        assert store.calls["abort_multipart"] == 0
        await settled(late)
        assert (bodies(store), store._uploads) == ({}, {})
        await closed(mount, handle)

    run(mount, main)


@pytest.mark.parametrize("what", ["closed", "renamed"])
def test_who_waits_for_parts_on_their_way_does_not_wait_for_those_that_would_follow(
    mount: Composed, store: Held, what: str
) -> None:
    """Nor does it wait for ever: they would be others than those that were waited for."""

    async def main(mount: Composed) -> None:
        held = store.before["upload_part", "file"] = trio.Event()
        handle = await new(mount)
        await written(mount, handle, 1, 14)
        ends: dict[str, Any] = {"flush": None}
        if what == "renamed":
            await mount.rename("file", "moved")
        else:
            ends = await _flush_begins(mount, handle)
            await written(mount, handle, 1, 2, b"!")
        del store.before["upload_part", "file"]
        await settled(held)
        assert (ends, store._uploads) == ({"flush": None}, {})
        await closed(mount, handle)

    run(mount, main)
    assert bodies(store) == (
        {"file": b"!" * 2 * PART + b"n" * 12 * PART} if what == "closed" else {"moved": b"n" * 14 * PART}
    )


def test_what_is_written_anew_after_a_close_that_failed_goes_up_while_it_is_written(
    mount: Composed, store: Held
) -> None:
    async def main(mount: Composed) -> None:
        handle = await new(mount)
        await written(mount, handle, 1, 11)
        store.errors["upload_part", "file"] = [silence("upload_part")]
        with fails(errno.EIO):
            await mount.parts.file_io.flush(handle)
        await mount.parts.file_io.truncate(handle.inode, 0)
        await written(mount, handle, 1, 12, b"!")
        assert set(there(store).values()) == {b"!"}
        await closed(mount, handle)
        assert stored(store) == b"!" * 12 * PART

    run(mount, main)


def test_a_part_that_a_commit_has_is_not_replaced_by_an_older_one(mount: Composed, store: Gated) -> None:
    """It would come when all are put together, and what the commit has sent would be there no more."""

    async def main(mount: Composed) -> None:
        handle = await new(mount)
        await written(mount, handle, 1, 11)
        last, older = (store.gates.setdefault(gate, trio.Event()) for gate in ((12, b"n"), (1, b"1")))
        await written(mount, handle, 12, 12)
        held = store.before["complete_multipart"] = trio.Event()
        ends = await _flush_begins(mount, handle)
        for letter in (b"1", b"2"):
            await written(mount, handle, 1, 2, letter)
        await settled(last)
        assert ("complete_multipart", "file") in store.reached
        await settled(older)
        assert there(store)[1] == b"2"
        await settled(held)
        assert ends == {"flush": None}
        assert stored(store) == b"2" * 2 * PART + b"n" * 10 * PART
        await closed(mount, handle)

    run(mount, main)


class Late:
    """Holds back the first question for an ACL, and no other."""

    def __init__(self, store: Held) -> None:
        self.held = trio.Event()
        self._ask = store.get_acl
        self._asked = 0
        store.get_acl = self._get_acl  # type: ignore[method-assign]

    async def _get_acl(self, key: str) -> Acl:
        self._asked += 1
        if self._asked == 1:
            await self.held.wait()
        return await self._ask(key)


async def _emptied(mount: Composed, store: Held) -> Handle:
    """A handle of a file that had an object, and is written anew."""
    await put_all(store, {"file": b"old"})
    return await opened(mount, os.O_RDWR | os.O_TRUNC)


def test_who_has_asked_for_an_acl_too_long_leaves_an_upload_alone_that_is_being_completed(
    mount: Composed, store: Held
) -> None:
    async def main(mount: Composed) -> None:
        late = Late(store)
        handle = await _emptied(mount, store)
        await written(mount, handle, 1, FROM - 1)
        await begun(mount, partial(written, mount, handle, FROM, FROM))
        held = store.before["complete_multipart"] = trio.Event()
        ends = await _flush_begins(mount, handle)
        await written(mount, handle, 1, 1, b"!")
        await settled(late.held)
        assert there(store)[1] == b"n"
        await settled(held)
        assert ends == {"flush": None}
        assert stored(store) == b"n" * FROM * PART
        await closed(mount, handle)
        assert stored(store) == b"!" * PART + b"n" * (FROM - 1) * PART

    run(mount, main)


def test_who_has_asked_for_an_acl_too_long_begins_no_upload_of_what_lost(mount: Composed, store: Held) -> None:
    """Nobody would end it: it would stay in the bucket, and be paid for."""

    async def main(mount: Composed) -> None:
        late = Late(store)
        handle = await _emptied(mount, store)
        await written(mount, handle, 1, FROM - 1)
        await begun(mount, partial(written, mount, handle, FROM, FROM))
        await put_all(store, {"file": b"theirs"})
        with fails(errno.ESTALE):
            await mount.parts.file_io.flush(handle)
        await settled(late.held)
        await mount.parts.file_io.release(handle)
        assert stored(store) == b"theirs"
        assert store._uploads == {}

    run(mount, main)


def test_two_writers_of_a_file_begin_one_upload(mount: Composed, store: Held) -> None:
    async def main(mount: Composed) -> None:
        late = Late(store)
        handle = await _emptied(mount, store)
        await written(mount, handle, 1, FROM - 1)
        await begun(mount, partial(written, mount, handle, FROM, FROM))
        await written(mount, handle, FROM + 1, FROM + 1)
        await settled(late.held)
        await written(mount, handle, FROM + 2, FROM + 2)
        assert store.calls["upload_part"] == FROM + 1
        await closed(mount, handle)
        assert stored(store) == b"n" * (FROM + 2) * PART
        assert store._uploads == {}

    run(mount, main)


@pytest.mark.parametrize("what", ["renamed", "removed"])
def test_who_has_asked_for_an_acl_too_long_sends_nothing_to_a_name_that_is_gone(
    mount: Composed, store: Held, what: str
) -> None:
    """Bytes that are freed then would be in no object, and nowhere here."""

    async def main(mount: Composed) -> None:
        late = Late(store)
        handle = await _emptied(mount, store)
        await written(mount, handle, 1, FROM - 1)
        await begun(mount, partial(written, mount, handle, FROM, FROM))
        if what == "renamed":
            await mount.rename("file", "moved")
        else:
            await mount.unlink("file")
        await settled(late.held)
        assert store.calls["create_multipart"] == 0
        await written(mount, handle, FROM + 1, FROM + 2)
        assert {upload.key for upload in store._uploads.values()} == ({"moved"} if what == "renamed" else set())
        assert bytes(await mount.parts.file_io.read(handle, 0, 20 * PART)) == b"n" * (FROM + 2) * PART
        await closed(mount, handle)

    run(mount, main)
    assert bodies(store) == ({"moved": b"n" * (FROM + 2) * PART} if what == "renamed" else {})
    assert store._uploads == {}


def test_a_removal_does_not_wait_until_a_file_is_sent_whose_close_has_just_begun(mount: Composed, store: Held) -> None:
    async def main(mount: Composed) -> None:
        late = Late(store)
        await put_all(store, {"file": b"old"})
        handle = await opened(mount)
        await mount.parts.file_io.write(handle, 0, b"n" * 12 * PART)
        ends = await _flush_begins(mount, handle)
        await begun(mount, partial(told, ends, "unlink", partial(mount.unlink, "file")))
        assert ends == {}
        await settled(late.held)
        assert ends == {"flush": None, "unlink": None}
        assert store.calls["upload_part"] == 0
        await closed(mount, handle)

    run(mount, main)
    assert (bodies(store), store._uploads) == ({}, {})


def test_who_has_asked_for_an_acl_too_long_adds_nothing_to_an_upload_that_may_be_completed(
    mount: Composed, store: Held
) -> None:
    """The answer to its completion was lost: the next commit finds out whether it is."""

    async def main(mount: Composed) -> None:
        late = Late(store)
        handle = await _emptied(mount, store)
        await written(mount, handle, 1, FROM - 1)
        await begun(mount, partial(written, mount, handle, FROM, FROM))
        store.lost.add("file")
        with fails(errno.EIO):
            await mount.parts.file_io.flush(handle)
        sent = store.calls["upload_part"]
        await written(mount, handle, 1, 1, b"!")
        await settled(late.held)
        await written(mount, handle, FROM + 1, FROM + 2)
        assert (store.calls["upload_part"], store._uploads) == (sent, {})
        await closed(mount, handle)

    run(mount, main)
    assert bodies(store) == {"file": b"!" * PART + b"n" * (FROM + 1) * PART}
    assert store._uploads == {}


# What is refused


def test_a_writer_is_not_told_that_an_acl_could_not_be_read(mount: Composed, store: Held) -> None:
    """What it wrote is here. The close asks again, and says what is wrong."""

    async def main(mount: Composed) -> None:
        def silent(operation: str, key: str) -> None:
            if operation == "get_acl":
                raise silence(operation)

        handle = await _emptied(mount, store)
        store.fault = silent
        await written(mount, handle, 1, FROM + 2)
        assert store._uploads == {}
        with fails(errno.EIO):
            await mount.parts.file_io.flush(handle)
        store.fault = None
        await closed(mount, handle)
        assert stored(store) == b"n" * (FROM + 2) * PART

    run(mount, main)


def test_a_write_past_the_end_of_all_files_takes_nothing_from_the_file(mount: Composed, store: Held) -> None:
    async def main(mount: Composed) -> None:
        handle = await new(mount)
        await mount.parts.file_io.write(handle, 0, b"all of it")
        with fails(errno.EFBIG):
            await mount.parts.file_io.write(handle, OBJECT_MAX, b"!")
        await closed(mount, handle)
        assert bodies(store) == {"file": b"all of it"}

    run(mount, main)


def test_who_leaves_holes_behind_has_no_part_looked_at_with_every_write(mount: Composed) -> None:
    """None of them is full, and each tells when it is written."""
    looks = 0
    covers = Extents.covers

    def counted(extents: Extents, start: int, stop: int) -> bool:
        nonlocal looks
        looks += 1
        return covers(extents, start, stop)

    async def main(mount: Composed) -> None:
        nonlocal looks
        handle = await new(mount)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Extents, "covers", counted)
            for number in range(100):
                await mount.parts.file_io.write(handle, number * PART + 1, b"!")
        assert looks < 400
        await closed(mount, handle)

    run(mount, main)
