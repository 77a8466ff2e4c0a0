"""Writers that find no room: who goes on, who waits and for what, what is freed for them, and when it is ENOSPC.

In one process, on a disk that has as much room as the test says, while the clock stands still.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from sosfs.concurrency.interrupt import CURRENT, Interrupt
from sosfs.config.parameters import Durability
from sosfs.disk.database import Database, Value
from sosfs.disk.reserve import Reserve
from sosfs.files.open_file import Handle, draft_of
from sosfs.files.spool import Spool, SpoolArea
from sosfs.files.write_behind import IDLE
from sosfs.journal.journal import Journal
from sosfs.s3.protocol import Acl
from tests.support.composed import Composed, composed
from tests.support.drive import fails
from tests.support.held import Held, begun, bodies, closed, opened, put_all, settled, silence, stored, told
from tests.support.power import Machine, syncs_late

PART = 4096
LIMIT = 4 * PART  # that one file may hold here
PATIENCE = 20.0
NO_ROOM = errno.ENOSPC


class Disk:
    """A disk of which `others` is taken by other programs."""

    size = 1000 * PART

    def __init__(self) -> None:
        self.others = 0
        self.mount: Composed | None = None

    @property
    def free(self) -> int:
        """What is left."""
        drafts = map(draft_of, self.mount.parts.commits.drafts if self.mount is not None else ())
        return self.size - self.others - sum(one.local.total for one in drafts if one and one.spool.on_disk)

    def leaves(self, size: int) -> None:
        """Others take all but `size` bytes."""
        self.others += self.free - size


@pytest.fixture(autouse=True)
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    """The disk; files of some hundred bytes are on it."""
    found = Disk()
    monkeypatch.setattr("sosfs.files.spool.SPILL", 200)
    monkeypatch.setattr("sosfs.files.write_behind.SPILL", 200)
    monkeypatch.setattr("sosfs.files.write_behind.RELIEF", PART // 2)
    monkeypatch.setattr("tests.support.fake_store.PART_MIN", 1)
    monkeypatch.setattr(SpoolArea, "is_short", property(lambda self: found.free < 4 * PART))
    monkeypatch.setattr(SpoolArea, "is_tight", lambda self, more, alone=False: found.free < more + (not alone) * PART)
    return found


@pytest.fixture
def store() -> Held:
    """The bucket."""
    return Held()


@pytest.fixture(params=[Durability.BUCKET])
def mount(request: pytest.FixtureRequest, tmp_path: Path, store: Held, disk: Disk) -> Iterator[Composed]:
    """A mount on that disk."""
    options = {"durability": request.param, "part_size": PART, "dirty_limit": LIMIT, "patience": PATIENCE}
    with composed(store, tmp_path, **options) as mount:
        disk.mount = mount
        yield mount
        disk.others = 0
        mount.loop.run(store.release)
        mount.loop.passes(30)


journal = pytest.mark.parametrize("mount", [Durability.JOURNAL], indirect=True)


def does(mount: Composed, work: Callable[[], Awaitable[Any]]) -> dict[str, Any]:
    """What becomes of work, nothing while it waits."""
    ends: dict[str, Any] = {}
    mount.loop.run(partial(begun, mount, partial(told, ends, "end", work)))
    return ends


def new(mount: Composed, path: str, size: int = 300) -> Handle:
    """A new file with so many bytes."""

    async def make() -> Handle:
        parent, name = await mount._parent(path)
        handle = await mount._opened(parent, name, os.O_CREAT | os.O_RDWR)
        await mount.parts.file_io.write(handle, 0, path.encode() * size)
        return handle

    return mount.loop.run(make)


def writes(mount: Composed, handle: Handle, at: int, body: bytes) -> dict[str, Any]:
    return does(mount, partial(mount.parts.file_io.write, handle, at, body))


def local(handle: Handle) -> int:
    """How many bytes of a file are here."""
    draft = handle.open_file.draft
    assert draft is not None
    return draft.local.total


def close(mount: Composed, *handles: Handle) -> None:
    for handle in handles:
        mount.loop.run(partial(closed, mount, handle))


def is_full(ends: dict[str, Any]) -> bool:
    """Whether a write was told that there is no room."""
    return "end" in ends and f"OSError({NO_ROOM}" in str(ends["end"])


# Who goes on


def test_one_writer_goes_on_and_others_wait_until_it_rests(mount: Composed, disk: Disk) -> None:
    first, second, third = (new(mount, path) for path in "abc")
    disk.leaves(PART + 50)
    assert writes(mount, first, 300, b"a" * 100) == {"end": 100}
    waits = writes(mount, second, 300, b"b" * 100)
    for number in range(4):
        mount.loop.passes(IDLE - 1)
        assert waits == {}, "the first has just written"
        assert mount.parts.file_io.writeback.waiting == 1
        assert writes(mount, first, 400 + number * 100, b"a" * 100) == {"end": 100}
    for _ in range(3):
        mount.loop.passes(IDLE / 2)
        assert writes(mount, third, 0, b"!") == {"end": 1}, "it needs no room"
    assert waits == {"end": 100}
    assert mount.parts.file_io.writeback.waiting == 0
    waits = writes(mount, first, 800, b"a" * 100)
    mount.loop.passes(1)
    assert waits == {}, "now the second goes on"
    mount.loop.passes(IDLE)
    assert waits == {"end": 100}
    disk.leaves(5 * PART)
    assert writes(mount, second, 400, b"b" * 100) == {"end": 100}, "room for both"
    close(mount, first, second, third)


@journal
def test_who_has_closed_its_file_is_not_waited_for(mount: Composed, store: Held, disk: Disk) -> None:
    first, second = (new(mount, path) for path in "ab")
    store.fault = _down
    disk.leaves(PART + 50)
    assert writes(mount, first, 300, b"a" * 100) == {"end": 100}
    waits = writes(mount, second, 300, b"b" * 100)
    assert waits == {}
    close(mount, first)
    mount.loop.passes(1)
    assert waits == {"end": 100}
    store.fault = None
    close(mount, second)


def test_who_has_closed_and_stored_its_file_is_not_waited_for(mount: Composed, disk: Disk) -> None:
    first, second = (new(mount, path) for path in "ab")
    disk.leaves(PART + 50)
    assert writes(mount, first, 300, b"a" * 100) == {"end": 100}
    waits = writes(mount, second, 300, b"b" * 100)
    disk.others += 400  # of what becomes free
    close(mount, first)
    mount.loop.passes(1)
    assert waits == {"end": 100}
    close(mount, second)


def test_a_file_in_memory_needs_no_disk(mount: Composed, store: Held, disk: Disk) -> None:
    disk.leaves(0)
    close(mount, new(mount, "a", 150))
    assert bodies(store) == {"a": b"a" * 150}


# How long is waited


def test_who_is_alone_on_a_full_disk_is_told_at_once(mount: Composed, disk: Disk) -> None:
    handle = new(mount, "a")
    disk.leaves(10)
    assert is_full(writes(mount, handle, 300, b"a" * 100))
    disk.leaves(PART)
    assert writes(mount, handle, 300, b"a" * 100) == {"end": 100}
    close(mount, handle)


def test_who_makes_good_half_of_what_was_refused_is_told_at_the_close(mount: Composed, store: Held, disk: Disk) -> None:
    handle = new(mount, "a")
    disk.leaves(10)
    assert is_full(writes(mount, handle, 300, b"a" * 100))
    disk.leaves(PART)
    assert writes(mount, handle, 300, b"a" * 50) == {"end": 50}
    with fails(errno.ENOSPC):
        close(mount, handle)
    assert bodies(store) == {}


def test_files_that_hold_no_room_are_not_waited_for(mount: Composed, disk: Disk) -> None:
    """Another program has created one, and written nothing yet."""
    handle, empty = new(mount, "a"), new(mount, "b", 0)
    disk.leaves(10)
    assert is_full(writes(mount, handle, 300, b"a" * 100))
    disk.leaves(PART)
    assert writes(mount, handle, 300, b"a" * 100) == {"end": 100}
    close(mount, handle, empty)


def test_room_that_others_hold_is_waited_for_as_long_as_patience_says(mount: Composed, disk: Disk) -> None:
    first, second = (new(mount, path) for path in "ab")
    disk.leaves(10)
    waits = writes(mount, second, 300, b"b" * 100)
    mount.loop.passes(PATIENCE - 2)
    assert waits == {}
    disk.leaves(PART)
    mount.loop.passes(1)
    assert waits == {"end": 100}
    disk.leaves(10)
    waits = writes(mount, second, 400, b"b" * 100)
    mount.loop.passes(PATIENCE + 2)
    assert is_full(waits)
    assert mount.parts.file_io.writeback.waiting == 0
    disk.leaves(PART)
    assert writes(mount, second, 400, b"b" * 100) == {"end": 100}
    close(mount, first, second)


@pytest.mark.promise(11)
def test_who_waits_for_room_can_be_stopped(mount: Composed, disk: Disk) -> None:
    first, second = (new(mount, path) for path in "ab")
    interrupt = Interrupt()

    async def write() -> None:
        CURRENT.set(interrupt)
        await mount.parts.file_io.write(second, 300, b"b" * 100)

    async def stop() -> None:
        interrupt.set()

    disk.leaves(10)
    waits = does(mount, write)
    mount.loop.passes(1)
    assert (waits, mount.parts.file_io.writeback.waiting) == ({}, 1)
    mount.loop.run(stop)
    mount.loop.passes(1)
    assert f"({errno.EINTR}" in waits["end"]
    assert mount.parts.file_io.writeback.waiting == 0
    disk.others = 0
    assert writes(mount, second, 300, b"b" * 100) == {"end": 100}
    close(mount, first, second)


def test_what_is_on_its_way_is_waited_for_longer(mount: Composed, store: Held, disk: Disk) -> None:
    first, second = (new(mount, path) for path in "ab")
    store.before["put"] = trio.Event()
    is_closed = does(mount, partial(mount.parts.file_io.flush, first))
    disk.leaves(10)
    waits = writes(mount, second, 300, b"b" * 100)
    mount.loop.passes(3 * PATIENCE)
    assert (waits, is_closed) == ({}, {})
    mount.loop.run(partial(settled, store.before.pop("put")))
    mount.loop.passes(1)
    assert is_closed == {"end": None}
    assert waits == {"end": 100}, "what is in the bucket is not needed here"
    assert bytes(mount.loop.run(partial(mount.parts.file_io.read, first, 0, 10))) == b"a" * 10
    close(mount, first, second)


def test_patience_begins_anew_when_something_was_on_its_way(mount: Composed, store: Held, disk: Disk) -> None:
    first, second = (new(mount, path) for path in "ab")
    store.before["put"] = trio.Event()
    store.errors["put", "a"] = [silence("put")]
    is_closed = does(mount, partial(mount.parts.file_io.flush, first))
    disk.leaves(10)
    waits = writes(mount, second, 300, b"b" * 100)
    mount.loop.passes(2 * PATIENCE)
    mount.loop.run(partial(settled, store.before.pop("put")))
    mount.loop.passes(2)
    assert "no answer" in is_closed["end"]
    assert waits == {}
    disk.leaves(PART)
    mount.loop.passes(1)
    assert waits == {"end": 100}
    close(mount, first, second)


def test_patience_begins_anew_when_something_was_freed(mount: Composed, disk: Disk) -> None:
    """Here another program takes the room."""
    first, second, third = (new(mount, path) for path in "abc")
    mount.loop.run(partial(mount.parts.file_io.flush, first))
    draft = first.open_file.draft
    assert draft is not None
    disk.leaves(10)
    with draft.spool.held():
        waits = writes(mount, second, 300, b"b" * 100)
        mount.loop.passes(PATIENCE - 5)
    disk.others += 300
    mount.loop.passes(PATIENCE - 5)
    assert (local(first), waits) == (0, {})
    disk.leaves(PART)
    mount.loop.passes(1)
    assert waits == {"end": 100}
    close(mount, first, second, third)


@journal
def test_spools_that_go_with_the_next_sync_are_waited_for(mount: Composed, disk: Disk) -> None:
    handle, hurried = new(mount, "a"), [True]
    disk.leaves(10)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mount.parts.commits, "makes_room", lambda: bool(hurried))
        waits = writes(mount, handle, 300, b"a" * 100)
        mount.loop.passes(3 * PATIENCE)
        assert waits == {}
        hurried.clear()
        mount.loop.passes(1)
        assert is_full(waits)
    disk.leaves(PART)
    assert writes(mount, handle, 300, b"a" * 100) == {"end": 100}
    close(mount, handle)


@pytest.mark.parametrize("mount", [Durability.WRITEBACK], indirect=True)
def test_spools_that_the_disk_does_not_let_go_are_not_waited_for(mount: Composed, store: Held, disk: Disk) -> None:
    """Their rows cannot be synced away, and may name them after a power loss."""

    async def refused(_: Journal) -> None:
        raise OSError(errno.EIO, "the disk")

    first, second = new(mount, "a"), new(mount, "b")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "sync", refused)
        close(mount, first)
        mount.loop.passes(1)
        assert bodies(store) == {"a": b"a" * 300}
        disk.leaves(10)
        waits = writes(mount, second, 300, b"b" * 100)
        mount.loop.passes(3 * PATIENCE)
        assert is_full(waits)
    disk.leaves(PART)
    assert writes(mount, second, 300, b"b" * 100) == {"end": 100}
    close(mount, second)


@pytest.mark.parametrize("mount", [Durability.WRITEBACK], indirect=True)
def test_spools_whose_sync_is_under_way_are_waited_for(
    mount: Composed, store: Held, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They go in a moment: who asked for room just then was told that there is none."""
    first, second = new(mount, "a"), new(mount, "b")
    close(mount, first)
    mount.loop.passes(1)
    assert bodies(store) == {"a": b"a" * 300}
    late = syncs_late(monkeypatch)
    mount.loop.passes(1)
    disk.leaves(10)
    waits = writes(mount, second, 300, b"b" * 100)
    was_told = dict(waits)
    disk.leaves(PART)
    mount.loop.run(partial(settled, late))
    mount.loop.passes(1)
    assert (was_told, waits) == ({}, {"end": 100})
    close(mount, second)


def test_who_waits_for_one_that_goes_on_waits_as_long_as_that_writes(mount: Composed, disk: Disk) -> None:
    first, second = (new(mount, path) for path in "ab")
    disk.leaves(PART + 50)
    assert writes(mount, first, 300, b"a" * 100) == {"end": 100}
    waits = writes(mount, second, 300, b"b" * 100)
    for number in range(1, 10):
        mount.loop.passes(IDLE - 1)
        assert waits == {}
        assert writes(mount, first, 300 + number * 100, b"a" * 100) == {"end": 100}
    mount.loop.passes(IDLE + 1)
    assert waits == {"end": 100}
    close(mount, first, second)


def test_one_whose_bytes_are_on_their_way_to_the_disk_goes_on(mount: Composed, disk: Disk) -> None:
    """However slow the disk is, no other takes what room there is."""
    first, second = (new(mount, path) for path in "ab")
    mount.loop.passes(2 * IDLE)  # since anybody has gone on
    done, write, slow = trio.Event(), Spool.write, first.open_file.draft

    async def slowly(spool: Spool, offset: int, data: bytes | memoryview) -> None:
        if slow is not None and spool is slow.spool:
            await done.wait()
        await write(spool, offset, data)

    disk.leaves(PART + 50)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Spool, "write", slowly)
        goes_on = writes(mount, first, 300, b"a" * 100)
        waits = writes(mount, second, 300, b"b" * 100)
        mount.loop.passes(IDLE - 1)
        assert (goes_on, waits) == ({}, {})
        mount.loop.run(partial(settled, done))
    assert goes_on == {"end": 100}
    disk.leaves(5 * PART)
    mount.loop.passes(1)
    assert waits == {"end": 100}
    close(mount, first, second)


def test_one_that_rests_is_nothing_to_wait_for_where_nobody_can_go_on(mount: Composed, disk: Disk) -> None:
    first, second = (new(mount, path) for path in "ab")
    disk.leaves(PART + 50)
    assert writes(mount, first, 300, b"a" * 100) == {"end": 100}
    disk.leaves(10)
    waits = writes(mount, second, 300, b"b" * 100)
    mount.loop.passes(PATIENCE)
    assert waits == {}, "it was waited for, and then patience began"
    mount.loop.passes(IDLE + 2)
    assert is_full(waits)
    disk.leaves(PART)
    assert writes(mount, second, 300, b"b" * 100) == {"end": 100}
    close(mount, first, second)


def test_who_has_just_gone_on_alone_does_not_wait_for_itself(mount: Composed, disk: Disk) -> None:
    handle = new(mount, "a")
    disk.leaves(PART)
    assert writes(mount, handle, 300, b"a" * 100) == {"end": 100}
    disk.leaves(10)
    assert is_full(writes(mount, handle, 400, b"a" * 100))
    disk.leaves(PART)
    assert writes(mount, handle, 400, b"a" * 100) == {"end": 100}
    close(mount, handle)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_room_that_the_disk_itself_denies_is_waited_for(mount: Composed, number: int) -> None:
    """It is a quota, or others were faster."""
    first, second = (new(mount, path) for path in "ab")
    with _failing_spools(number):
        waits = writes(mount, second, 300, b"b" * 100)
        mount.loop.passes(PATIENCE - 2)
        assert waits == {}
    mount.loop.passes(1)
    assert waits == {"end": 100}
    close(mount, first, second)


def test_a_disk_that_is_broken_is_told_at_once(mount: Composed, store: Held) -> None:
    first, second = (new(mount, path) for path in "ab")
    with _failing_spools(errno.EIO):
        assert f"OSError({errno.EIO}" in str(writes(mount, second, 300, b"b" * 100)["end"])
    with fails(errno.ENOSPC):
        close(mount, second)
    close(mount, first)
    assert bodies(store) == {"a": b"a" * 300}


@contextmanager
def _failing_spools(number: int) -> Iterator[None]:
    """No spool can be written to."""

    async def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sosfs.files.spool.Spool.write", fail)
        yield


# What is freed


def test_what_is_being_read_is_not_freed(mount: Composed, disk: Disk) -> None:
    first, second = (new(mount, path) for path in "ab")
    mount.loop.run(partial(mount.parts.file_io.flush, first))
    draft = first.open_file.draft
    assert draft is not None
    disk.leaves(10)
    with draft.spool.held():
        waits = writes(mount, second, 300, b"b" * 100)
        mount.loop.passes(1)
        assert (local(first), waits) == (300, {})
    mount.loop.passes(1)
    assert (local(first), waits) == (0, {"end": 100})
    close(mount, first, second)


@journal
def test_what_was_recorded_and_stored_is_freed_once_no_power_loss_brings_its_record_back(
    mount: Composed, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the bytes that are freed would pass for damaged then."""
    machine = Machine(mount, monkeypatch, 1)
    first, second = (new(mount, path) for path in "ab")
    mount.loop.run(partial(mount.parts.file_io.flush, first))
    mount.loop.passes(2)
    assert local(first) == 300
    disk.leaves(10)
    writes(mount, second, 300, b"b" * 100)
    mount.loop.passes(1)
    assert local(first) == 0
    machine.loses_power(newest_log=False, spools="written")
    disk.others = 0
    mount.take_up()
    assert mount._journal.damage.lines == ()


async def _refuses(_: Journal) -> None:
    raise OSError(errno.EIO, "the disk")


@journal
@pytest.mark.parametrize("size", [300, 3 * PART], ids=["whole", "in parts"])
def test_what_a_power_loss_may_bring_back_is_not_freed(
    mount: Composed, disk: Disk, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """The journal cannot be synced: the record may still be on the disk, and would be of what is not here."""
    first, second = (new(mount, path) for path in "ab")
    mount.loop.run(partial(mount.parts.file_io.flush, first))
    mount.loop.passes(2)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "sync", _refuses)
        if size > 300:
            writes(mount, first, 300, b"a" * (size - 300))
        disk.leaves(10)
        waits = writes(mount, second, 300, b"b" * 100)
        mount.loop.passes(1)
        assert (local(first), waits) == (size, {})
    mount.loop.passes(1)
    assert local(first) < size
    assert waits == {"end": 100}
    close(mount, first, second)


@journal
def test_what_is_recorded_again_while_its_file_makes_room_is_not_freed(
    mount: Composed, store: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(mount, monkeypatch, 1)
    handle = _of_another(mount, store)
    assert writes(mount, handle, 1, b"!" * (PART // 2)) == {"end": PART // 2}
    draft, done = handle.open_file.draft, trio.Event()
    assert draft is not None

    async def read() -> None:
        with draft.spool.held():
            await done.wait()

    does(mount, read)
    relieves = does(mount, partial(mount.parts.file_io.writeback._relieve, handle.inode, draft, OSError()))
    assert relieves == {}
    assert writes(mount, handle, 1, b"?" * 100) == {"end": 100}
    mount.loop.run(partial(mount.parts.file_io.fsync, handle.inode))
    mount.loop.run(partial(mount.parts.commits.commit, handle.inode))
    mount.loop.run(partial(settled, done))
    assert relieves == {"end": None}
    machine.loses_power(newest_log=False, spools="written")
    mount.take_up()
    assert stored(store)[:101] == b"o" + b"?" * 100


@journal
def test_what_is_recorded_while_the_record_before_goes_is_not_freed(
    mount: Composed, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(mount, monkeypatch, 1)
    first, second = (new(mount, path) for path in "ab")
    mount.loop.run(partial(mount.parts.file_io.flush, first))
    mount.loop.passes(2)
    late = syncs_late(monkeypatch)
    disk.leaves(10)
    waits = writes(mount, second, 300, b"b" * 100)
    assert writes(mount, first, 0, b"c" * 100) == {"end": 100}
    mount.loop.run(partial(mount.parts.file_io.flush, first))
    mount.loop.run(partial(settled, late))
    mount.loop.run(partial(mount.parts.commits.commit, first.inode))
    mount.loop.passes(1)
    assert (local(first), waits) == (0, {"end": 100})
    machine.loses_power(newest_log=False, spools="written")
    disk.others = 0
    mount.take_up()


@journal
@pytest.mark.parametrize("size", [300, 3 * PART], ids=["whole", "in parts"])
def test_a_file_that_is_closed_while_its_record_goes_is_nobodys_to_free(
    mount: Composed, disk: Disk, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    first, second = new(mount, "a"), new(mount, "b")
    mount.loop.run(partial(mount.parts.file_io.flush, first))
    mount.loop.passes(2)
    if size > 300:
        mount.loop.run(partial(mount.parts.file_io.write, first, 300, b"a" * size))
    late = syncs_late(monkeypatch)
    disk.leaves(10)
    waits = writes(mount, second, 300, b"b" * 100)
    assert waits == {}
    closes = does(mount, partial(closed, mount, first))
    mount.loop.run(partial(settled, late))
    disk.others = 0
    mount.loop.passes(5)
    assert (waits, closes) == ({"end": 100}, {"end": None})
    close(mount, second)


@journal
def test_a_file_that_is_stored_while_its_record_goes_has_no_parts_to_free(
    mount: Composed, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = new(mount, "a")
    mount.loop.run(partial(mount.parts.file_io.flush, first))
    mount.loop.passes(2)
    disk.leaves(3 * PART)
    late = syncs_late(monkeypatch)
    waits = writes(mount, first, 300, b"a" * 2 * PART)
    assert waits == {} and first.open_file.upload is not None
    mount.loop.run(partial(mount.parts.commits.commit, first.inode))
    mount.loop.run(partial(settled, late))
    assert waits == {"end": 2 * PART}
    close(mount, first)


def test_what_a_commit_is_about_to_send_is_not_freed(mount: Composed, disk: Disk) -> None:
    first, second = (new(mount, path) for path in "ab")
    mount.loop.run(partial(mount.parts.file_io.flush, first))
    disk.leaves(10)
    done = trio.Event()

    async def hold() -> None:
        async with first.open_file.lock:
            await done.wait()

    does(mount, hold)
    waits = writes(mount, second, 300, b"b" * 100)
    mount.loop.passes(1)
    assert (local(first), waits) == (300, {})
    mount.loop.run(partial(settled, done))
    mount.loop.passes(1)
    assert (local(first), waits) == (0, {"end": 100})
    close(mount, first, second)


def test_no_part_goes_up_of_a_file_that_was_closed_while_its_acl_was_asked_for(
    mount: Composed, store: Held, disk: Disk
) -> None:
    """Nobody would end its upload, which would be paid for."""
    first, second = _of_another(mount, store), new(mount, "b")
    assert writes(mount, first, 0, b"n" * PART) == {"end": PART}
    held, ask = trio.Event(), store.get_acl

    async def late(key: str) -> Acl:
        store.get_acl = ask  # type: ignore[method-assign]
        await held.wait()
        return await ask(key)

    store.get_acl = late  # type: ignore[method-assign]
    disk.leaves(10)
    waits = writes(mount, second, 300, b"b" * 100)
    close(mount, first)
    assert stored(store) == b"n" * PART + b"o" * 31 * PART
    mount.loop.run(partial(settled, held))
    mount.loop.passes(1)
    assert waits == {"end": 100}
    close(mount, second)
    assert store._uploads == {}


@pytest.mark.parametrize("what", ["new", "new over another", "of the bucket", "below a directory"])
def test_what_went_up_under_another_name_is_not_freed(mount: Composed, store: Held, disk: Disk, what: str) -> None:
    """Since a rename it is in an upload that nobody completes, and in no other place than here."""
    there = {"new over another": {"d/moved": b"theirs"}, "of the bucket": {"d/file": b"o" * 3 * PART}}
    mount.loop.run(partial(put_all, store, {"d/": b""} | there.get(what, {})))
    first, second = new(mount, "d/file", 0), new(mount, "b")
    for number in range(3):
        assert writes(mount, first, number * PART, b"n" * PART) == {"end": PART}
    assert store.calls["upload_part"] == 2
    is_above = what == "below a directory"
    mount.loop.run(partial(mount.rename, *(("d", "e") if is_above else ("d/file", "d/moved"))))
    disk.leaves(10)
    waits = writes(mount, second, 300, b"b" * 100)
    mount.loop.passes(1)
    assert waits == {"end": 100}, "what goes up again is freed"
    close(mount, first, second)
    assert stored(store, "e/file" if is_above else "d/moved") == b"n" * 3 * PART
    mount.loop.passes(1)
    assert store._uploads == {}


@pytest.mark.parametrize("size", [PART, PART + 100, 3 * PART])
def test_parts_of_other_files_go_up_for_who_finds_no_room(mount: Composed, store: Held, disk: Disk, size: int) -> None:
    """Also those of a file that nobody writes to now, and its first, where headers may be written last, if need be."""
    first = new(mount, "a", size)
    second = new(mount, "b")
    assert store._uploads == {}
    disk.leaves(10)
    waits = writes(mount, second, 300, b"b" * 100)
    mount.loop.passes(1)
    assert waits == {"end": 100}
    assert local(first) <= PART
    close(mount, first, second)
    assert bodies(store) == {"a": b"a" * size, "b": b"b" * 400}


def test_parts_go_up_before_their_writer_has_to_wait(mount: Composed) -> None:
    """The disk has room, the file may not hold much of it."""
    handle = new(mount, "a")
    for at in range(300, 12 * PART, PART // 2):
        assert writes(mount, handle, at, b"a" * (PART // 2)) == {"end": PART // 2}
    assert local(handle) <= LIMIT
    close(mount, handle)


@pytest.mark.parametrize("is_short", [False, True])
def test_parts_of_a_small_file_go_up_while_it_is_written_where_the_disk_is_short(
    mount: Composed, store: Held, disk: Disk, is_short: bool
) -> None:
    handle = new(mount, "a")
    disk.leaves(3 * PART if is_short else 9 * PART)
    writes(mount, handle, 300, b"a" * PART)
    writes(mount, handle, 300 + PART, b"a" * 100)
    assert store.calls["upload_part"] == is_short
    disk.leaves(9 * PART)
    close(mount, handle)
    assert stored(store, "a") == b"a" * (PART + 400)


@pytest.mark.parametrize("goes", ["removed", "cut"])
def test_a_file_of_which_parts_are_up_makes_room_also_where_the_journal_has_none(
    mount: Composed, store: Held, disk: Disk, monkeypatch: pytest.MonkeyPatch, goes: str
) -> None:
    """That its upload is given up need not be written down before that."""
    handle = new(mount, "a", 3 * PART)
    disk.leaves(3 * PART)
    assert writes(mount, handle, 3 * PART, b"a") == {"end": 1}
    assert store.calls["upload_part"]
    with monkeypatch.context() as patch:
        execute = Database._execute

        def full(database: Database, statement: str, values: Sequence[Value] = ()) -> sqlite3.Cursor:
            if statement == "commit":
                raise OSError(NO_ROOM, os.strerror(NO_ROOM))
            return execute(database, statement, values)

        patch.setattr(Database, "_execute", full)
        patch.setattr(Reserve, "give_up", lambda _: False)
        if goes == "removed":
            mount.loop.run(partial(mount.unlink, "a"))
        else:
            mount.loop.run(partial(mount.parts.file_io.truncate, handle.inode, 5))
            mount.loop.run(partial(mount.parts.commits.commit, handle.inode))
        assert bodies(store) == ({} if goes == "removed" else {"a": b"a" * 5})
        assert store._uploads == {}
    close(mount, handle)


def test_a_limit_below_a_few_parts_stops_nobody(tmp_path: Path, store: Held, disk: Disk) -> None:
    """Else no part could get full."""
    with composed(store, tmp_path, part_size=PART, dirty_limit=PART) as mount:
        disk.mount = mount
        handle = new(mount, "a")
        for at in range(300, 6 * PART, PART // 2):
            assert writes(mount, handle, at, b"a" * (PART // 2)) == {"end": PART // 2}
        close(mount, handle)


def test_for_a_few_changes_nothing_is_asked_before_the_close(mount: Composed, store: Held, disk: Disk) -> None:
    handle = _of_another(mount, store)
    disk.leaves(3 * PART)
    for at in (5, 9 * PART):
        assert writes(mount, handle, at, b"!" * 50) == {"end": 50}
    assert store.calls["get_acl"] == 0
    close(mount, handle)


def test_parts_with_holes_go_up_where_none_is_full(mount: Composed, store: Held) -> None:
    """The file may not hold more here, and half of each part is all that it ever has."""
    handle = new(mount, "a", PART // 2)
    for number in range(1, 12):
        assert_done(mount, writes(mount, handle, number * PART, b"a" * (PART // 2)))
        assert local(handle) <= LIMIT
    assert store.calls["complete_multipart"] == 0
    close(mount, handle)
    assert stored(store, "a") == (b"a" * (PART // 2) + bytes(PART // 2)) * 11 + b"a" * (PART // 2)


def test_the_part_that_is_being_written_stays_here(mount: Composed, store: Held) -> None:
    """Else the file would be completed for each half of a part."""
    half = b"a" * (PART // 2)
    handle = new(mount, "a", PART // 2)
    for number in range(1, 8):
        assert_done(mount, writes(mount, handle, number * PART, half))
    assert_done(mount, writes(mount, handle, 2 * PART + len(half), half))
    assert local(handle) < LIMIT
    assert store.calls["complete_multipart"] == 0
    close(mount, handle)
    body = (half + bytes(len(half))) * 7 + half
    assert stored(store, "a") == body[: 2 * PART] + half + half + body[3 * PART :]


def test_parts_with_holes_wait_for_full_ones(mount: Composed, store: Held, disk: Disk) -> None:
    """What is written into them meanwhile would be sent twice."""
    first, second = new(mount, "a", 3 * PART), new(mount, "b")
    assert writes(mount, second, 2 * PART, b"b") == {"end": 1}
    store.before["upload_part"] = trio.Event()
    disk.leaves(10)
    waits = writes(mount, second, 2 * PART + 1, b"b" * 100)
    mount.loop.passes(1)
    assert (waits, store.reached) == ({}, {("upload_part", "a")})
    mount.loop.run(partial(settled, store.before.pop("upload_part")))
    mount.loop.passes(1)
    assert waits == {"end": 100}
    close(mount, first, second)
    assert stored(store, "b") == (b"b" * 300).ljust(2 * PART, b"\0") + b"b" * 101


def assert_done(mount: Composed, ends: dict[str, Any]) -> None:
    """Whatever is to be waited for, comes soon."""
    mount.loop.passes(1)
    assert isinstance(ends.get("end"), int), ends


def test_changes_here_and_there_go_into_the_bucket_while_they_are_made(mount: Composed, store: Held) -> None:
    handle = _of_another(mount, store)
    for number in range(16):
        assert_done(mount, writes(mount, handle, 2 * number * PART, b"!" * (PART // 2)))
        assert local(handle) <= LIMIT
    assert stored(store).count(b"!") == LIMIT
    close(mount, handle)
    assert stored(store) == (b"!" * (PART // 2) + b"o" * (PART + PART // 2)) * 16


@pytest.mark.parametrize("mount", [Durability.BUCKET, Durability.JOURNAL], indirect=True)
@pytest.mark.parametrize("is_new", [False, True])
def test_a_part_of_a_file_makes_room_where_no_part_of_it_could_be_freed(
    mount: Composed, store: Held, disk: Disk, is_new: bool
) -> None:
    """It was changed here and there, or synced: a record tells of what is here."""
    handle = new(mount, "file", 1) if is_new else _of_another(mount, store)
    assert writes(mount, handle, 1, b"!" * (PART // 2)) == {"end": PART // 2}
    mount.loop.run(partial(mount.parts.file_io.fsync, handle.inode))
    assert writes(mount, handle, 1, b"?" * 100) == {"end": 100}
    disk.leaves(10)
    assert_done(mount, writes(mount, handle, PART, b"!" * 100))
    close(mount, handle)
    mount.loop.passes(5)
    assert stored(store)[1:101] == b"?" * 100
    assert stored(store)[PART : PART + 100] == b"!" * 100


def _of_another(mount: Composed, store: Held) -> Handle:
    """A handle of a file that is in the bucket."""
    mount.loop.run(partial(put_all, store, {"file": b"o" * 32 * PART}))
    return mount.loop.run(partial(opened, mount))


@pytest.mark.parametrize("mount", [Durability.BUCKET, Durability.JOURNAL], indirect=True)
def test_who_makes_room_in_vain_is_told(mount: Composed, store: Held) -> None:
    """The bucket takes nothing now, and never a file without what was refused."""
    handle = _of_another(mount, store)
    store.fault = _down
    for number in range(8):
        assert writes(mount, handle, 2 * number * PART, b"!" * (PART // 2)) == {"end": PART // 2}
    waits = writes(mount, handle, 16 * PART, b"!" * (PART // 2))
    mount.loop.passes(1)
    assert is_full(waits)
    assert bytes(mount.loop.run(partial(mount.parts.file_io.read, handle, 0, 10))) == b"!" * 10
    store.fault = None
    with fails(errno.ENOSPC):
        close(mount, handle)
    mount.loop.passes(5)
    assert bodies(store) == {"file": b"o" * 32 * PART}


@journal
def test_who_could_make_room_if_the_journal_were_written_is_told(
    mount: Composed, store: Held, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = _of_another(mount, store)
    for letter in (b"1", b"2"):
        assert writes(mount, handle, 0, letter * PART) == {"end": PART}
        mount.loop.run(partial(mount.parts.file_io.fsync, handle.inode))
    mount.loop.run(partial(mount.parts.commits.commit, handle.inode))
    disk.leaves(10)
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "sync", _refuses)
        assert is_full(writes(mount, handle, PART, b"3" * 100))
    assert_done(mount, writes(mount, handle, PART, b"3" * 100))
    close(mount, handle)
    mount.loop.passes(5)
    assert stored(store) == b"2" * PART + b"3" * 100 + b"o" * (31 * PART - 100)


def test_who_writes_to_a_removed_file_is_told_that_there_is_no_room(mount: Composed, store: Held, disk: Disk) -> None:
    """Nothing of it goes into the bucket, which would make some."""
    handle = _of_another(mount, store)
    assert writes(mount, handle, 0, b"!" * PART) == {"end": PART}
    mount.loop.run(partial(mount.unlink, "file"))
    disk.leaves(10)
    assert is_full(writes(mount, handle, 32 * PART, b"!" * 100))
    close(mount, handle)


def test_who_sends_parts_in_vain_is_told(mount: Composed, store: Held) -> None:
    handle = new(mount, "a", PART // 2)
    store.fault = _down
    for number in range(1, 8):
        assert writes(mount, handle, number * PART, b"a" * (PART // 2)) == {"end": PART // 2}
    waits = writes(mount, handle, 8 * PART, b"a" * (PART // 2))
    mount.loop.passes(1)
    assert is_full(waits)
    store.fault = None
    assert_done(mount, writes(mount, handle, 8 * PART, b"a" * (PART // 2)))
    close(mount, handle)
    assert stored(store, "a") == (b"a" * (PART // 2) + bytes(PART // 2)) * 8 + b"a" * (PART // 2)


def test_who_waits_for_parts_that_fail_is_told(mount: Composed, store: Held, disk: Disk) -> None:
    """Nothing comes of them soon, which have been tried for minutes by then."""
    first, second = new(mount, "a", 3 * PART), new(mount, "b")
    store.fault = _down
    disk.leaves(10)
    waits = writes(mount, second, 300, b"b" * 100)
    mount.loop.passes(1)
    assert is_full(waits)
    store.fault = None
    disk.leaves(PART)
    assert writes(mount, second, 300, b"b" * 100) == {"end": 100}
    close(mount, first, second)


def test_of_a_new_file_no_half_is_stored_for_less_than_a_part(mount: Composed, store: Held, disk: Disk) -> None:
    first, second = new(mount, "a", 3 * PART // 4), new(mount, "b")
    disk.leaves(10)
    waits = writes(mount, first, 3 * PART // 4, b"a" * 100)
    mount.loop.passes(1)
    assert (waits, bodies(store)) == ({}, {})
    disk.leaves(PART)
    mount.loop.passes(1)
    assert waits == {"end": 100}
    close(mount, first, second)


def test_no_part_goes_up_before_it_is_known_what_became_of_the_whole(mount: Composed, store: Held) -> None:
    """The answer to its completion was lost. What was sent now would be in an upload that is no more."""
    half = b"a" * (PART // 2)
    handle = new(mount, "a", PART // 2)
    for number in range(1, 9):
        assert_done(mount, writes(mount, handle, number * PART, half))
    assert local(handle) < 9 * len(half), "some of it is in parts alone"
    store.lost.add("a")
    with fails(errno.EIO):
        mount.loop.run(partial(mount.parts.file_io.flush, handle))
    for number in range(9, 18):
        assert_done(mount, writes(mount, handle, number * PART, half))
    close(mount, handle)
    assert stored(store, "a") == (half + bytes(PART // 2)) * 17 + half
    assert store._uploads == {}


def test_a_closed_file_that_cannot_be_sent_is_not_tried_for_who_waits(mount: Composed, store: Held, disk: Disk) -> None:
    """Its failures are none of the writer that waits: others may give it room."""
    first, second = new(mount, "a", 3 * PART), new(mount, "b")
    store.fault = _down_for_a
    with fails(errno.EIO):
        close(mount, first)
    mount.loop.passes(1)
    sent = store.calls["upload_part"]
    disk.leaves(10)
    waits = writes(mount, second, 300, b"b" * 100)
    mount.loop.passes(1)
    assert (waits, store.calls["upload_part"]) == ({}, sent)
    disk.leaves(PART)
    mount.loop.passes(1)
    assert waits == {"end": 100}
    store.fault = None
    close(mount, second)


def _down_for_a(operation: str, key: str) -> None:
    if key == "a":
        _down(operation, key)


def _down(operation: str, key: str) -> None:
    if operation in ("put", "upload_part", "complete_multipart"):
        raise silence(operation)
