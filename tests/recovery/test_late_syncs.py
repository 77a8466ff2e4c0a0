"""A disk that takes its time: what has happened to a file by the time that its bytes are told to be there."""

from __future__ import annotations

import errno
import logging
import os
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from sosfs.config.parameters import Durability
from sosfs.files.draft import Draft
from sosfs.files.spool import Spool, SpoolArea
from tests.support.composed import LONG, Composed, composed
from tests.support.held import Held, begun, bodies, closed, opened, put_all, settled
from tests.support.power import Machine, syncs_late

JOURNAL, WRITEBACK = Durability.JOURNAL, Durability.WRITEBACK
LARGE = 300_000  # bytes: in a spool
pytestmark = pytest.mark.promise(3)


def next_mount(mount: Composed) -> None:
    """The process dies, and another takes up what it has left."""
    mount.crash()
    mount.take_up()


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_a_sync_that_ends_after_the_file_has_lost_its_name_brings_nothing_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    store = Held()

    async def main(mount: Composed) -> None:
        handle = await mount._opened(mount.parts.inodes.root, b"file", os.O_CREAT | os.O_RDWR)
        await mount.parts.file_io.write(handle, 0, b"1" * LARGE)
        late = syncs_late(monkeypatch, Spool)
        await begun(mount, partial(mount.parts.file_io.fsync, handle.inode))
        if how == "removed":
            await mount.unlink("file")
        else:
            await mount.write("other", b"other", flags=os.O_CREAT)
            await mount.rename("other", "file")
        await settled(late)

    with composed(store, tmp_path, durability=JOURNAL) as mount:
        mount.loop.run(partial(main, mount))
        next_mount(mount)
        assert bodies(store) == ({} if how == "removed" else {"file": b"other"})


def test_a_sync_that_ends_after_a_failed_write_was_given_up_does_not_record_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the file nobody may have a part of what its program has written."""
    store = Held()

    async def failing(*_: object) -> None:
        raise OSError(errno.EIO, "the disk")

    async def main(mount: Composed) -> None:
        await put_all(store, {"file": b"old"})
        handle = await opened(mount)
        await mount.parts.file_io.write(handle, 0, b"1" * LARGE)
        late = syncs_late(monkeypatch, Spool)
        await begun(mount, partial(mount.parts.file_io.fsync, handle.inode))
        with monkeypatch.context() as patch, pytest.raises(OSError, match="the disk"):
            patch.setattr(Spool, "write", failing)
            await mount.parts.file_io.write(handle, LARGE, b"2" * 100)
        await mount.parts.file_io.failed_writes.discard_all()
        await settled(late)
        await closed(mount, handle)

    with composed(store, tmp_path, durability=JOURNAL) as mount:
        mount.loop.run(partial(main, mount))
        next_mount(mount)
        assert bodies(store) == {"file": b"old"}


# A power loss goes back to the newest that is there


async def write(mount: Composed, body: bytes, *, at: int = 0, flags: int = 0, sync: bool = False) -> None:
    """open, write, fsync if wanted, close."""
    handle = await mount._opened(mount.parts.inodes.root, b"file", os.O_CREAT | os.O_RDWR | flags)
    await mount.parts.file_io.write(handle, at, body)
    if sync:
        await mount.parts.file_io.fsync(handle.inode)
    await closed(mount, handle)


def after_a_power_loss(mount: Composed, machine: Machine) -> None:
    """Just now, after all that was begun has ended."""
    machine.loses_power(newest_log=True, spools="synced")
    mount.take_up()


@pytest.mark.parametrize("flags", [0, os.O_TRUNC], ids=["in place", "anew"])
@pytest.mark.parametrize("is_closed_twice", [False, True])
def test_what_was_closed_before_a_sync_is_safe_after_it_though_it_was_closed_again_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: int, is_closed_twice: bool
) -> None:
    """Else of a file that is written again and again nothing would ever be safe."""
    store, first = Held(), b"1" * LARGE

    with composed(store, tmp_path, durability=WRITEBACK) as mount:
        machine = Machine(mount, monkeypatch, 1)
        mount.parts.commits.debounce.delay = LONG
        mount.loop.run(partial(write, mount, first))
        late = syncs_late(monkeypatch, Spool)
        mount.loop.passes(1)
        if is_closed_twice:
            mount.loop.run(partial(write, mount, b"x", at=LARGE))
        mount.loop.run(partial(write, mount, b"2" * LARGE, at=0 if flags else LARGE + 1, flags=flags))
        mount.loop.run(partial(settled, late))
        after_a_power_loss(mount, machine)
        assert bodies(store) == {"file": first}


def test_what_was_closed_during_a_sync_is_safe_after_the_next_though_the_file_was_emptied_in_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who emptied it has it open, and writes nothing."""
    store = Held()

    async def empty(mount: Composed) -> None:
        await opened(mount, os.O_RDWR | os.O_TRUNC)

    with composed(store, tmp_path, durability=WRITEBACK) as mount:
        machine = Machine(mount, monkeypatch, 1)
        mount.parts.commits.debounce.delay = LONG
        mount.loop.run(partial(write, mount, b"1" * LARGE))
        late = syncs_late(monkeypatch, Spool)
        mount.loop.passes(1)
        mount.loop.run(partial(write, mount, b"2", at=LARGE))
        mount.loop.run(partial(empty, mount))
        mount.loop.run(partial(settled, late))
        mount.loop.passes(2)
        after_a_power_loss(mount, machine)
        assert bodies(store) == {"file": b"1" * LARGE + b"2"}


def test_the_record_of_a_file_that_is_emptied_and_closed_again_and_again_does_not_grow(tmp_path: Path) -> None:
    store, lengths = Held(), list[int]()

    async def look(mount: Composed) -> None:
        handle = await opened(mount)
        lengths.append(len(str(mount._journal.draft(handle.open_file.row))))

    with composed(store, tmp_path, durability=WRITEBACK) as mount:
        mount.parts.commits.debounce.delay = LONG
        for _ in range(10):
            mount.loop.run(partial(write, mount, b"1" * LARGE, flags=os.O_TRUNC))
            mount.loop.run(partial(look, mount))
        assert max(lengths) < 2 * lengths[0], lengths


@pytest.mark.parametrize("is_short", [False, True], ids=["much room", "little room"])
def test_of_a_file_that_is_emptied_during_each_sync_few_spools_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_short: bool
) -> None:
    """Those that its row names, and what goes with the next sync."""
    store, counts = Held(), list[int]()
    monkeypatch.setattr(SpoolArea, "is_short", property(lambda _: is_short))
    with composed(store, tmp_path, durability=WRITEBACK) as mount:
        mount.parts.commits.debounce.delay = LONG
        mount.loop.run(partial(write, mount, b"1" * LARGE))
        for _ in range(6):
            late = syncs_late(monkeypatch, Spool)
            mount.loop.passes(1)
            mount.loop.run(partial(write, mount, b"1" * LARGE, flags=os.O_TRUNC))
            mount.loop.run(partial(settled, late))
            counts.append(len([*(mount._settings.state_dir / "spool").iterdir()]))
        assert max(counts) <= 3, counts
        mount.loop.passes(3)
        assert len([*(mount._settings.state_dir / "spool").iterdir()]) == 1


@pytest.mark.parametrize("durability", [JOURNAL, WRITEBACK])
def test_of_a_file_that_is_emptied_again_and_again_few_spools_stay_while_the_disk_refuses_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durability: Durability
) -> None:
    """And the bucket is away as long."""
    store, counts = Held(), list[int]()

    async def refused(_: Spool) -> None:
        raise OSError(errno.EIO, "the disk")

    with composed(store, tmp_path, durability=durability) as mount:
        mount.parts.commits.debounce.delay = LONG
        mount.loop.run(partial(write, mount, b"1" * LARGE, sync=True))
        with monkeypatch.context() as patch:
            patch.setattr(Spool, "sync", refused)
            for _ in range(6):
                with suppress(OSError):
                    mount.loop.run(partial(write, mount, b"2" * LARGE, flags=os.O_TRUNC))
                mount.loop.passes(12)
                counts.append(len([*(mount._settings.state_dir / "spool").iterdir()]))
        assert max(counts) <= 3, counts


@pytest.mark.parametrize("how", ["each second", "fsync"])
@pytest.mark.parametrize("is_anew", [False, True], ids=["in place", "anew"])
def test_what_an_fsync_has_promised_is_not_taken_back_by_a_sync_that_began_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, is_anew: bool
) -> None:
    """More was closed since, of which a power loss takes no more than that."""
    store, first, second = Held(), b"1" * LARGE, b"2" * LARGE

    async def main(mount: Composed) -> None:
        handle = await opened(mount)
        await begun(mount, partial(mount.parts.file_io.fsync, handle.inode))

    with composed(store, tmp_path, durability=WRITEBACK) as mount:
        machine = Machine(mount, monkeypatch, 1)
        mount.parts.commits.debounce.delay = LONG
        mount.loop.run(partial(write, mount, first))
        late = syncs_late(monkeypatch, Spool)
        if how == "fsync":
            mount.loop.run(partial(main, mount))
        else:
            mount.loop.passes(1)
        safe = second if is_anew else first + second
        if is_anew:
            mount.loop.run(partial(write, mount, second, flags=os.O_TRUNC, sync=True))
        else:
            mount.loop.run(partial(write, mount, second, at=LARGE, sync=True))
        mount.loop.run(partial(write, mount, b"3", at=len(safe)))
        mount.loop.run(partial(settled, late))
        after_a_power_loss(mount, machine)
        is_begun_anew = is_anew and how == "fsync"  # what it began with is no more: it syncs what is there by then
        assert bodies(store) == {"file": safe + b"3" if is_begun_anew else safe}


# What is no longer to be synced


def begins_late(monkeypatch: pytest.MonkeyPatch, what: str) -> trio.Event:
    """The next call of this method of a spool begins when the event is set; those after it are not held."""
    method, late = getattr(Spool, what), trio.Event()

    async def slowly(spool: Spool, *arguments: Any) -> Any:
        monkeypatch.setattr(Spool, what, method)
        await late.wait()
        return await method(spool, *arguments)

    monkeypatch.setattr(Spool, what, slowly)
    return late


@pytest.mark.usefixtures("without_bugs")
@pytest.mark.parametrize("what", ["", "sync", "sums"])
@pytest.mark.parametrize("how", ["stored", "stored and closed", "removed"])
@pytest.mark.parametrize("is_short", [False, True], ids=["much room", "little room"])
def test_what_is_in_the_bucket_or_gone_when_its_turn_comes_is_no_trouble(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    what: str,
    how: str,
    is_short: bool,
) -> None:
    """Where room is short its spool is freed at once."""
    store = Held()

    async def main(mount: Composed) -> None:
        handle = await opened(mount)
        await mount.parts.file_io.write(handle, 0, b"2")
        if how == "removed":
            await mount.unlink("file")
        else:
            await mount.parts.commits.commit(handle.inode)
        if how != "stored":
            await mount.parts.file_io.release(handle)

    with composed(store, tmp_path, durability=WRITEBACK) as mount:
        mount.parts.commits.debounce.delay = LONG
        mount.loop.run(partial(write, mount, b"1" * LARGE))
        late = begins_late(monkeypatch, what) if what else trio.Event()
        mount.loop.passes(1 if what else 0.1)
        monkeypatch.setattr(SpoolArea, "is_short", property(lambda _: is_short))
        mount.loop.run(partial(main, mount))
        mount.loop.run(partial(settled, late))
        mount.loop.passes(3)
        assert mount.parts.unsynced.changes == 0
        assert [one.getMessage() for one in caplog.records if one.levelno >= logging.ERROR] == []
        assert bodies(store) == ({} if how == "removed" else {"file": b"2" + b"1" * (LARGE - 1)})


def test_a_spool_that_a_fsync_has_freed_is_not_told_as_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The file was emptied and synced anew before the turn of what it had been came."""
    store = Held()

    async def fsync(mount: Composed) -> None:
        await mount.parts.file_io.fsync(await mount._walk("file"))

    with composed(store, tmp_path, durability=WRITEBACK) as mount:
        mount.parts.commits.debounce.delay = LONG
        mount.loop.run(partial(write, mount, b"1" * LARGE))
        late = begins_late(monkeypatch, "sync")
        mount.loop.passes(1)
        mount.loop.run(partial(write, mount, b"2" * LARGE, flags=os.O_TRUNC, sync=True))
        mount.loop.run(partial(settled, late))
        mount.loop.run(partial(fsync, mount))
        mount.loop.passes(3)
        assert mount.parts.unsynced.changes == 0
        assert [one.getMessage() for one in caplog.records if one.levelno >= logging.ERROR] == []


@pytest.mark.parametrize("durability", [JOURNAL, WRITEBACK])
def test_of_a_file_that_is_written_anew_and_synced_again_and_again_one_spool_stays(
    tmp_path: Path, durability: Durability
) -> None:
    store = Held()
    with composed(store, tmp_path, durability=durability) as mount:
        mount.parts.commits.debounce.delay = LONG
        for _ in range(4):
            mount.loop.run(partial(write, mount, b"1" * LARGE, flags=os.O_TRUNC, sync=True))
            assert len([*(mount._settings.state_dir / "spool").iterdir()]) == 1


def test_the_record_of_a_file_that_is_emptied_again_and_again_while_it_is_open_does_not_grow(tmp_path: Path) -> None:
    store, lengths = Held(), list[int]()

    async def main(mount: Composed) -> None:
        handle = await mount._opened(mount.parts.inodes.root, b"file", os.O_CREAT | os.O_RDWR)
        await mount.parts.file_io.write(handle, 0, b"1" * LARGE)
        await mount.parts.file_io.fsync(handle.inode)
        for _ in range(10):
            await mount.parts.file_io.truncate(handle.inode, 0)
            await mount.parts.file_io.write(handle, 0, b"2" * LARGE)
            lengths.append(len(str(mount._journal.draft(handle.open_file.row))))
        await closed(mount, handle)

    with composed(store, tmp_path, durability=WRITEBACK) as mount:
        mount.parts.commits.debounce.delay = LONG
        mount.loop.run(partial(main, mount))
        assert max(lengths) == lengths[0], lengths


@pytest.mark.parametrize("durability", [JOURNAL, WRITEBACK])
def test_an_fsync_during_which_a_file_is_emptied_once_more_is_of_what_was_written_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durability: Durability
) -> None:
    """No row has told of what it was just bringing to the disk."""
    store = Held()

    async def main(mount: Composed) -> None:
        handle = await mount._opened(mount.parts.inodes.root, b"file", os.O_CREAT | os.O_RDWR)
        await mount.parts.file_io.write(handle, 0, b"1" * LARGE)
        await mount.parts.file_io.fsync(handle.inode)
        await mount.parts.file_io.truncate(handle.inode, 0)
        await mount.parts.file_io.write(handle, 0, b"2" * LARGE)
        late = syncs_late(monkeypatch, Spool)
        await begun(mount, partial(mount.parts.file_io.fsync, handle.inode))
        await mount.parts.file_io.truncate(handle.inode, 0)
        await mount.parts.file_io.write(handle, 0, b"3" * LARGE)
        await settled(late)

    with composed(store, tmp_path, durability=durability) as mount:
        machine = Machine(mount, monkeypatch, 1)
        mount.parts.commits.debounce.delay = LONG
        mount.loop.run(partial(main, mount))
        after_a_power_loss(mount, machine)
        assert bodies(store) == {"file": b"3" * LARGE}


def test_what_was_closed_before_a_sync_takes_the_place_of_what_was_synced_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it was closed again during that sync."""
    store = Held()
    with composed(store, tmp_path, durability=WRITEBACK) as mount:
        machine = Machine(mount, monkeypatch, 1)
        mount.parts.commits.debounce.delay = LONG
        mount.loop.run(partial(write, mount, b"1" * LARGE, sync=True))
        mount.loop.run(partial(write, mount, b"2", at=LARGE))
        late = syncs_late(monkeypatch, Spool)
        mount.loop.passes(1)
        mount.loop.run(partial(write, mount, b"3", at=LARGE + 1))
        mount.loop.run(partial(settled, late))
        after_a_power_loss(mount, machine)
        assert bodies(store) == {"file": b"1" * LARGE + b"2"}


@pytest.mark.promise(5)
def test_bytes_of_the_version_below_that_turn_out_wrong_during_a_sync_are_not_gone_back_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file was closed again meanwhile, and the power goes before that is on the disk."""
    store = Held()

    async def begin(mount: Composed) -> Draft:
        await put_all(store, {"file": b"r" * LARGE})
        handle = await opened(mount)
        await mount.parts.file_io.write(handle, 0, b"1" * 100_000)
        draft = handle.open_file.draft
        assert draft is not None
        await draft.absorb(0, b"w" * LARGE)
        await closed(mount, handle)
        return draft

    async def then(mount: Composed, draft: Draft) -> None:
        draft._disown()
        await write(mount, b"2", at=LARGE)

    with composed(store, tmp_path, durability=WRITEBACK) as mount:
        machine = Machine(mount, monkeypatch, 1)
        mount.parts.commits.debounce.delay = LONG
        draft = mount.loop.run(partial(begin, mount))
        late = syncs_late(monkeypatch, Spool)
        mount.loop.passes(1)
        mount.loop.run(partial(then, mount, draft))
        mount.loop.run(partial(settled, late))
        after_a_power_loss(mount, machine)
        assert bodies(store) == {"file": b"1" * 100_000 + b"r" * (LARGE - 100_000)}
