"""What is read around a change comes into the spool, where the commit finds it: all of it once, none of it wrong."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from sosfs.cache.extents import Extents
from sosfs.concurrency.threads import Threads
from sosfs.config.parameters import Durability
from sosfs.files.base_fetch import WINDOWS_AT_ONCE
from sosfs.files.open_file import Handle
from sosfs.files.spool import Spool, SpoolArea
from sosfs.s3.protocol import Properties
from tests.recovery.test_late_syncs import begins_late
from tests.support.composed import LONG, Composed, composed
from tests.support.fake_store import FakeStore
from tests.support.held import Held, begun, bodies, closed, opened, settled, stored, told
from tests.support.power import Machine

MIB = 1 << 20
SIZE = 3 * MIB
BODY = random.Random(1).randbytes(SIZE)
NEW = b"n" * 4096


def test_a_mix_of_reads_and_writes_fetches_a_file_once(tmp_path: Path) -> None:
    store = FakeStore()
    expected = bytearray(BODY)

    async def mix(mount: Composed) -> None:
        await store.put("file", BODY, Properties())
        handle, draw = await opened(mount), random.Random(2)
        for _ in range(200):
            at = draw.randrange(SIZE // 4096) * 4096
            if draw.random() < 0.3:
                await mount.parts.file_io.write(handle, at, NEW)
                expected[at : at + 4096] = NEW
            else:
                body = await mount.parts.file_io.read(handle, at, 4096)
                assert bytes(body) == bytes(expected[at : at + 4096])
                await trio.testing.wait_all_tasks_blocked()
        assert handle.open_file.draft is not None
        assert handle.open_file.draft.local.covers(0, SIZE)
        await closed(mount, handle)

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(mix, mount))
        assert stored(store) == expected
        assert store.calls["get"] <= 4


@pytest.mark.parametrize(("touched", "comes"), [(5, False), (6, True)])
def test_all_of_a_file_comes_once_an_eighth_of_it_was_written_and_a_byte_read(
    tmp_path: Path, touched: int, comes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, window = FakeStore(), SIZE // 48
    monkeypatch.setattr("sosfs.files.base_fetch.WINDOW", window)

    async def touch(mount: Composed) -> None:
        await store.put("file", BODY, Properties())
        handle = await opened(mount)
        for number in range(touched):
            await mount.parts.file_io.write(handle, (7 * number % 48) * window, NEW)
        await mount.parts.file_io.read(handle, 47 * window, 4096)
        await trio.testing.wait_all_tasks_blocked()
        assert handle.open_file.draft is not None
        assert handle.open_file.draft.local.covers(0, SIZE) is comes
        await closed(mount, handle)

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(touch, mount))


def test_what_found_the_disk_short_comes_once_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FakeStore()

    async def fill(mount: Composed) -> None:
        await store.put("file", BODY, Properties())
        handle = await opened(mount)
        await mount.parts.file_io.write(handle, MIB, NEW)
        for at, short in ((2 * MIB, True), (0, False)):
            monkeypatch.setattr(SpoolArea, "is_short", short)
            await mount.parts.file_io.read(handle, at, 4096)
            await trio.testing.wait_all_tasks_blocked()
            assert handle.open_file.draft is not None
            assert handle.open_file.draft.local.covers(0, SIZE) is not short
        await closed(mount, handle)

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(fill, mount))


def test_how_many_cells_extents_touch_is_counted_as_far_as_it_matters() -> None:
    held, draw, size = Extents(), random.Random(3), 10
    touched: set[int] = set()
    for _ in range(300):
        start = draw.randrange(5000)
        stop = start + draw.randrange(1, 25)
        held.add(start, stop)
        touched |= set(range(start // size, (stop - 1) // size + 1))
        for most in (1, 7, 1000):
            assert held.cells(size, most=most) == min(most, len(touched))


def test_a_change_without_reads_fetches_nothing_until_it_is_sent(tmp_path: Path) -> None:
    store = FakeStore()

    async def change(mount: Composed) -> None:
        await store.put("file", BODY, Properties())
        handle = await opened(mount)
        before = store.calls["get"]
        await mount.parts.file_io.write(handle, MIB, NEW)
        await trio.testing.wait_all_tasks_blocked()
        assert store.calls["get"] == before
        await closed(mount, handle)

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(change, mount))
        assert stored(store) == BODY[:MIB] + NEW + BODY[MIB + 4096 :]


async def _saved_then_filled(mount: Composed, store: FakeStore) -> None:
    """A record of the draft is in the journal, then bytes of the base come into its spool."""
    await store.put("file", BODY, Properties())
    handle = await opened(mount)
    await mount.parts.file_io.write(handle, MIB, NEW)
    await mount.parts.file_io.flush(handle)
    await mount.parts.file_io.read(handle, 2 * MIB, 4096)
    await trio.testing.wait_all_tasks_blocked()
    assert handle.open_file.draft is not None
    assert handle.open_file.draft.local.covers(0, SIZE)


async def _filled_while_saved(mount: Composed, store: FakeStore) -> None:
    """Bytes of the base come into the spool after its checksums were made, and before they are recorded."""
    await store.put("file", BODY, Properties())
    handle = await opened(mount)
    await mount.parts.file_io.write(handle, MIB, NEW)
    draft = handle.open_file.draft
    assert draft is not None
    summed = Spool.sums

    async def sums(spool: Spool, size: int) -> tuple[int, ...]:
        before = await summed(spool, size)
        await draft.absorb(0, BODY)
        return before

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Spool, "sums", sums)
        await mount.parts.file_io.flush(handle)


async def _saved_then_half_removed(mount: Composed, store: FakeStore) -> None:
    """An open file cannot be removed since a part of its base cannot be read, which its readers would need."""
    await store.put("file", BODY, Properties())
    handle = await opened(mount)
    await mount.parts.file_io.write(handle, MIB, NEW)
    await mount.parts.file_io.flush(handle)

    def broken(operation: str, key: str) -> None:
        if operation == "get" and store.calls["get"] == asked + 3:
            raise OSError(errno.EIO, "broken")

    asked, store.fault = store.calls["get"], broken
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sosfs.files.base_fetch.WINDOW", MIB)
        with pytest.raises(OSError, match="broken"):
            await mount.unlink("file")
    assert handle.open_file.draft is not None
    assert handle.open_file.draft.local.total > MIB
    store.fault = None


async def _saved_while_they_came(mount: Composed, store: FakeStore) -> None:
    """A record is made for the first time after bytes of the base were asked for, and before they are here."""
    assert isinstance(store, Held)
    await store.put("file", BODY, Properties())
    handle = await opened(mount)
    await mount.parts.file_io.write(handle, MIB, NEW)
    store.after["get"] = trio.Event()
    await begun(mount, partial(mount.parts.file_io.read, handle, 2 * MIB, 4096))
    await mount.parts.file_io.fsync(handle.inode)
    await store.release()
    await trio.testing.wait_all_tasks_blocked()
    assert handle.open_file.draft is not None
    assert handle.open_file.draft.local.covers(0, SIZE)


@pytest.mark.promise(3)
@pytest.mark.parametrize(
    "change", [_saved_then_filled, _filled_while_saved, _saved_then_half_removed, _saved_while_they_came]
)
def test_what_came_into_the_spool_is_no_damage_after_a_crash(
    tmp_path: Path, change: Callable[[Composed, FakeStore], Awaitable[None]]
) -> None:
    store = Held()
    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(change, mount, store))
        mount.crash()
        mount.start()
        mount.loop.passes(5)
        assert sorted(store._stored) == ["file"], "nothing was kept beside it"
        assert stored(store) == BODY[:MIB] + NEW + BODY[MIB + 4096 :]


@pytest.mark.promise(3)
@pytest.mark.parametrize("change", [_saved_then_filled, _saved_then_half_removed, _saved_while_they_came])
def test_what_came_into_the_spool_is_no_damage_when_the_power_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Composed, FakeStore], Awaitable[None]]
) -> None:
    """The kernel wrote the spool out, and not the end of the journal's log."""
    store = Held()
    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        machine = Machine(mount, monkeypatch, 1)
        mount.loop.run(partial(change, mount, store))
        machine.loses_power(newest_log=False, spools="written")
        mount.start()
        assert mount._journal.damage.lines == ()
        mount.loop.passes(5)
        assert sorted(store._stored) == ["file"], "nothing was kept beside it"
        assert stored(store) == BODY[:MIB] + NEW + BODY[MIB + 4096 :]


def test_a_late_answer_does_not_bring_back_what_was_cut_and_is_stored(tmp_path: Path) -> None:
    """A window is on its way; the file is emptied, made long again and synced: its zeros must stay zeros."""
    store = Held()

    async def main(mount: Composed) -> None:
        await store.put("file", b"old " * (MIB // 2), Properties())  # 2 MiB
        handle = await opened(mount)
        await mount.parts.file_io.write(handle, 0, b"n" * 4096)
        store.after["get"] = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mount.parts.file_io.read, handle, MIB, 4096)  # begins the filling
            await trio.testing.wait_all_tasks_blocked()
            await mount.parts.file_io.truncate(handle.inode, 0)
            await mount.parts.file_io.write(handle, 2 * MIB - 4, b"tail")
            await mount.parts.file_io.fsync(handle.inode)
            assert stored(store) == bytes(2 * MIB - 4) + b"tail"
            store.after.pop("get").set()
        await trio.testing.wait_all_tasks_blocked()
        assert bytes(await mount.parts.file_io.read(handle, MIB, 4096)) == bytes(4096)
        await mount.parts.file_io.write(handle, 0, b"x")
        await closed(mount, handle)
        assert stored(store) == b"x" + bytes(2 * MIB - 5) + b"tail"

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))


def test_a_late_answer_does_not_bring_back_what_was_shed(tmp_path: Path) -> None:
    """A window is on its way; all of it is written, stored and shed, since the disk is full: that must stay."""
    store = Held()

    async def main(mount: Composed) -> None:
        await store.put("file", b"o" * MIB, Properties())
        handle = await opened(mount)
        await mount.parts.file_io.write(handle, 0, b"n" * 4096)
        store.after["get"] = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mount.parts.file_io.read, handle, 8192, 4096)
            await trio.testing.wait_all_tasks_blocked()
            await mount.parts.file_io.write(handle, 0, b"n" * MIB)
            draft = handle.open_file.draft
            assert draft is not None
            await mount.parts.file_io.writeback._relieve(handle.inode, draft, OSError())  # as upon ENOSPC
            assert await mount.parts.file_io.writeback._frees()
            assert stored(store) == b"n" * MIB
            store.after.pop("get").set()
        await trio.testing.wait_all_tasks_blocked()
        await mount.parts.file_io.write(handle, 0, b"x")
        assert bytes(await mount.parts.file_io.read(handle, 8192, 4096)) == b"n" * 4096
        await closed(mount, handle)
        assert stored(store) == b"x" + b"n" * (MIB - 1)

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))


@pytest.mark.promise(3)
def test_what_came_into_the_spool_between_two_syncs_is_on_the_disk_after_the_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing was written between them, and yet the spool has more than before: the record must not be ahead of it."""
    monkeypatch.setattr("sosfs.files.base_fetch.WINDOW", MIB)
    store = FakeStore()

    async def main(mount: Composed) -> None:
        await store.put("file", BODY, Properties())
        handle = await opened(mount)
        for start in (0, MIB):
            await mount.parts.file_io.write(handle, start, NEW)
        for start in (0, MIB):
            await mount.parts.file_io.fsync(handle.inode)
            await mount.parts.file_io.read(handle, start + MIB // 2, 4096)
            await trio.testing.wait_all_tasks_blocked()
        await mount.parts.file_io.fsync(handle.inode)
        draft = handle.open_file.draft
        assert draft is not None
        assert draft.local.covers(0, 2 * MIB)

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        machine = Machine(mount, monkeypatch, 1)
        mount.loop.run(partial(main, mount))
        machine.loses_power(newest_log=True, spools="synced")
        mount.start()
        mount.loop.passes(5)
        assert stored(store) == NEW + BODY[4096:MIB] + NEW + BODY[MIB + 4096 :]


def test_what_is_near_a_change_comes_as_far_as_the_limit_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, window, touched = FakeStore(), SIZE // 48, range(0, 40, 4)
    monkeypatch.setattr("sosfs.files.base_fetch.WINDOW", window)

    async def main(mount: Composed) -> None:
        await store.put("file", BODY, Properties())
        handle = await opened(mount)
        for number in touched:
            await mount.parts.file_io.write(handle, number * window, NEW)
        draft = handle.open_file.draft
        assert draft is not None
        await mount.parts.file_io.read(handle, 47 * window, 4096)
        await trio.testing.wait_all_tasks_blocked()
        assert draft.local.total == len(touched) * 4096, "nothing has changed there"
        for number in touched:
            await mount.parts.file_io.read(handle, number * window + 4096, 4096)
            await trio.testing.wait_all_tasks_blocked()
        assert 6 * window < draft.local.total <= 9 * window
        await closed(mount, handle)

    with composed(store, tmp_path, dirty_limit=16 * window) as mount:
        mount.loop.run(partial(main, mount))


def test_what_could_not_be_fetched_comes_with_the_next_read(tmp_path: Path) -> None:
    store = Held()

    async def main(mount: Composed) -> None:
        await store.put("file", BODY, Properties())
        handle = await opened(mount)
        await mount.parts.file_io.write(handle, MIB, NEW)
        draft = handle.open_file.draft
        assert draft is not None

        def broken(operation: str, key: str) -> None:
            if operation == "get":
                raise OSError(errno.EIO, "broken")

        store.fault = broken
        with pytest.raises(OSError, match="broken"):
            await mount.parts.file_io.read(handle, 2 * MIB, 4096)
        await trio.testing.wait_all_tasks_blocked()
        store.fault = None
        await mount.parts.file_io.read(handle, 2 * MIB, 4096)
        await trio.testing.wait_all_tasks_blocked()
        assert draft.local.covers(0, SIZE)
        await closed(mount, handle)

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))


async def _dense(mount: Composed, store: Held) -> Handle:
    """A file of which so much was changed that all of it comes, and it has begun to come."""
    await store.put("file", BODY, Properties())
    handle = await opened(mount)
    for number in range(4):
        await mount.parts.file_io.write(handle, number * MIB // 2, NEW)
    store.after["get"] = trio.Event()
    await begun(mount, partial(mount.parts.file_io.read, handle, SIZE - 4096, 4096))
    return handle


def _closes(mount: Composed, handle: Handle, patch: pytest.MonkeyPatch) -> Awaitable[None]:
    return closed(mount, handle)


async def _runs_short(mount: Composed, handle: Handle, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SpoolArea, "is_short", True)


@pytest.mark.parametrize("happens", [_closes, _runs_short])
def test_a_few_windows_come_at_once_and_no_more_once_they_are_not_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, happens: Callable[..., Awaitable[None]]
) -> None:
    """Its writer has closed it, or the disk runs short: what was asked for by then is all that comes."""
    store, window = Held(), SIZE // 12
    monkeypatch.setattr("sosfs.files.base_fetch.WINDOW", window)

    async def main(mount: Composed) -> None:
        handle = await _dense(mount, store)
        draft = handle.open_file.draft
        assert draft is not None
        assert len(draft.brought) == 12
        await happens(mount, handle, monkeypatch)
        await settled(store.after.pop("get"))
        assert 0 < len(draft.brought) <= WINDOWS_AT_ONCE
        assert draft.local.total <= (WINDOWS_AT_ONCE + 4) * window

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(main, mount))
        monkeypatch.undo()


def test_what_is_on_its_way_counts_for_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, window = Held(), SIZE // 48
    monkeypatch.setattr("sosfs.files.base_fetch.WINDOW", window)

    async def main(mount: Composed) -> None:
        await store.put("file", BODY, Properties())
        handle, touched = await opened(mount), range(0, 40, 4)
        for number in touched:
            await mount.parts.file_io.write(handle, number * window, NEW)
        store.after["get"] = trio.Event()
        for number in touched:
            await begun(mount, partial(mount.parts.file_io.read, handle, number * window + 4096, 4096))
        await settled(store.after.pop("get"))
        draft = handle.open_file.draft
        assert draft is not None
        assert draft.local.total <= 9 * window
        await closed(mount, handle)

    with composed(store, tmp_path, dirty_limit=16 * window) as mount:
        mount.loop.run(partial(main, mount))


def test_what_comes_after_the_draft_is_given_up_takes_no_memory(tmp_path: Path) -> None:
    """A write to it has failed."""
    store = Held()

    async def broken(*_: object) -> None:
        raise OSError(errno.EIO, "broken")

    async def main(mount: Composed) -> None:
        await store.put("file", b"o" * 9000, Properties())
        handle = await opened(mount)
        await mount.parts.file_io.write(handle, 0, b"n" * 10)
        mount.parts.blocks.forget(lambda key: True)
        store.after["get"] = trio.Event()
        await begun(mount, partial(mount.parts.file_io.read, handle, 5000, 10))
        with pytest.MonkeyPatch.context() as patch, pytest.raises(OSError, match="broken"):
            patch.setattr(Spool, "write", broken)
            await mount.parts.file_io.write(handle, 0, b"n" * 10)
        with pytest.raises(OSError):
            await closed(mount, handle)
        await settled(store.after.pop("get"))
        assert mount.parts.file_io._spools.memory.used == 0

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))
        assert stored(store) == b"o" * 9000


@contextmanager
def _writes_held(done: trio.Event, *, broken: bool = False) -> Iterator[None]:
    """What threads write into spools is not told before `done`, or fails then."""
    run = Threads.run

    async def slowly(threads: Threads, work: Any, *arguments: Any) -> Any:
        if work.__name__ == "_write_all":
            await done.wait()
            if broken:
                raise OSError(errno.EIO, "broken")
        return await run(threads, work, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Threads, "run", slowly)
        yield


def test_bytes_that_a_failing_write_was_to_replace_are_kept_for_who_has_a_removed_file_open(mount: Composed) -> None:
    """The removal waits for that write: it may yet need what it has not replaced."""

    async def main() -> None:
        await mount.write("file", BODY, flags=os.O_CREAT)
        handle, reader, done = await opened(mount), await opened(mount, os.O_RDONLY), trio.Event()
        await mount.parts.file_io.write(handle, 0, NEW)
        ends: dict[str, Any] = {}
        with _writes_held(done, broken=True):
            writing = partial(mount.parts.file_io.write, handle, MIB, bytes(MIB))
            await begun(mount, partial(told, ends, "write", writing))
            await begun(mount, partial(told, ends, "unlink", partial(mount.unlink, "file")))
            assert ends == {}
            await settled(done)
        assert "broken" in ends["write"]
        assert ends["unlink"] is None
        mount.parts.blocks.forget(lambda key: True)
        assert bytes(await mount.parts.file_io.read(reader, 0, SIZE)) == NEW + BODY[4096:]
        await mount.parts.file_io.release(handle)
        await mount.parts.file_io.release(reader)

    mount.loop.run(main)


def test_a_removal_does_not_wait_for_what_is_appended(mount: Composed) -> None:
    async def main() -> None:
        await mount.write("file", BODY, flags=os.O_CREAT)
        handle, done = await opened(mount), trio.Event()
        ends: dict[str, Any] = {}
        with _writes_held(done):
            await begun(mount, partial(mount.parts.file_io.write, handle, SIZE, bytes(MIB)))
            await begun(mount, partial(told, ends, "unlink", partial(mount.unlink, "file")))
            assert ends == {"unlink": None}
            await settled(done)
        assert bytes(await mount.parts.file_io.read(handle, 0, 2 * SIZE)) == BODY + bytes(MIB)
        await closed(mount, handle)

    mount.loop.run(main)


def test_who_has_a_removed_file_open_has_all_of_it_though_a_chmod_made_it_anew_meanwhile(tmp_path: Path) -> None:
    store = Held()

    async def main(mount: Composed) -> None:
        await mount.write("file", BODY, flags=os.O_CREAT)
        reader, ends = await opened(mount, os.O_RDONLY), dict[str, Any]()
        mount.parts.blocks.forget(lambda key: True)
        held = store.before["get"] = trio.Event()
        await begun(mount, partial(told, ends, "unlink", partial(mount.unlink, "file")))
        assert ("get", "file") in store.reached
        await mount.chmod("file", 0o600)
        assert store.calls["copy"] == 1
        del store.before["get"]
        await settled(held)
        assert ends == {"unlink": None}
        mount.parts.blocks.forget(lambda key: True)
        assert bytes(await mount.parts.file_io.read(reader, 0, SIZE)) == BODY
        await mount.parts.file_io.release(reader)

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))


@pytest.mark.promise(3)
@pytest.mark.parametrize("then", ["fsync", "rename"])
def test_what_came_into_the_spool_during_a_sync_is_not_told_to_be_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    """Nothing was written since, so that the next look at the record would find nothing to be brought there."""
    store = Held()

    async def main(mount: Composed) -> None:
        await store.put("file", BODY, Properties())
        handle = await opened(mount)
        await mount.parts.file_io.write(handle, MIB, NEW)
        late = begins_late(monkeypatch, "sums")
        await begun(mount, partial(mount.parts.file_io.fsync, handle.inode))
        await mount.parts.file_io.read(handle, 2 * MIB, 4096)
        await trio.testing.wait_all_tasks_blocked()
        await settled(late)
        assert handle.open_file.draft is not None
        assert handle.open_file.draft.local.covers(0, SIZE)
        if then == "fsync":
            await mount.parts.file_io.fsync(handle.inode)
        else:
            await mount.rename("file", "moved")

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.parts.commits.debounce.delay = LONG
        machine = Machine(mount, monkeypatch, 1)
        mount.loop.run(partial(main, mount))
        machine.loses_power(newest_log=True, spools="synced")
        mount.take_up()
        assert bodies(store) == {"file" if then == "fsync" else "moved": BODY[:MIB] + NEW + BODY[MIB + 4096 :]}
