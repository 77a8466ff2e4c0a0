"""A recorded file that is cut, emptied or replaced, and not closed since: what the next mount finds."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest
import trio

from sosfs.config.parameters import Durability
from tests.support.composed import LONG, Composed, composed
from tests.support.held import Held, bodies, closed, opened, put_all
from tests.support.power import Machine

LARGE = 300_000  # bytes: in a spool
durabilities = pytest.mark.parametrize("durability", [Durability.JOURNAL, Durability.WRITEBACK])
pytestmark = pytest.mark.promise(3)


@durabilities
@pytest.mark.parametrize("is_known", [False, True], ids=["new", "in the bucket"])
@pytest.mark.parametrize("size", [0, 1000, LARGE - 1])
def test_a_file_that_was_cut_and_not_closed_is_as_long_as_it_was_cut_when_the_process_dies(
    tmp_path: Path, durability: Durability, is_known: bool, size: int
) -> None:
    store = Held()

    async def main(mount: Composed) -> None:
        if is_known:
            await put_all(store, {"file": b"o" * LARGE})
        handle = await mount._opened(mount.parts.inodes.root, b"file", os.O_CREAT | os.O_RDWR)
        await mount.parts.file_io.write(handle, 0, b"n" * (LARGE - is_known * 100))
        await mount.parts.file_io.fsync(handle.inode)
        await mount.parts.file_io.truncate(handle.inode, size)

    with composed(store, tmp_path, durability=durability) as mount:
        mount.parts.commits.debounce.delay = LONG
        mount.loop.run(partial(main, mount))
        mount.crash()
        mount.start()
        assert mount._journal.damage.lines == ()
        assert mount.parts.commits.pending == (1, min(size, LARGE - is_known * 100))
        mount.loop.passes(5)
        mount.loop.run(mount.settle)
        expected = b"n" * (LARGE - is_known * 100) + b"o" * (is_known * 100)
        assert bodies(store) == {"file": expected[:size]}


@durabilities
@pytest.mark.parametrize("size", [0, 10])
def test_a_small_file_that_was_cut_and_not_closed_is_as_it_was_closed_when_the_process_dies(
    tmp_path: Path, durability: Durability, size: int
) -> None:
    """Its bytes are in its record, and change with that alone."""
    store = Held()

    async def main(mount: Composed) -> None:
        await mount.write("file", b"n" * 100, flags=os.O_CREAT)
        handle = await opened(mount)
        await mount.parts.file_io.truncate(handle.inode, size)
        await mount.parts.file_io.write(handle, size, b"more")

    with composed(store, tmp_path, durability=durability) as mount:
        mount.parts.commits.debounce.delay = LONG
        mount.loop.run(partial(main, mount))
        mount.crash()
        mount.take_up()
        assert bodies(store) == {"file": b"n" * 100}


@durabilities
@pytest.mark.parametrize("size", [0, 1000])
def test_a_file_of_an_earlier_mount_that_is_cut_has_what_was_synced_when_the_power_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durability: Durability, size: int
) -> None:
    """Nobody has synced the cut, and a row that tells of all the bytes is on the disk."""
    store = Held()

    async def cut(mount: Composed) -> None:
        handle = await opened(mount)
        await mount.parts.file_io.truncate(handle.inode, size)

    with composed(store, tmp_path, durability=durability) as mount:
        machine = Machine(mount, monkeypatch, 1)
        mount.parts.commits.debounce.delay = LONG
        mount.loop.run(partial(mount.write, "file", b"1" * LARGE, flags=os.O_CREAT))
        mount.crash()
        mount.start()
        mount.loop.run(partial(cut, mount))
        machine.loses_power(newest_log=False, spools="written")
        mount.take_up()
        assert bodies(store) == {"file": b"1" * LARGE}


@durabilities
def test_a_file_that_was_emptied_and_filled_and_not_closed_has_what_was_synced_when_the_power_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durability: Durability
) -> None:
    """Also where it is emptied twice."""
    store = Held()

    async def main(mount: Composed) -> None:
        handle = await mount._opened(mount.parts.inodes.root, b"file", os.O_CREAT | os.O_RDWR)
        await mount.parts.file_io.write(handle, 0, b"1" * LARGE)
        await mount.parts.file_io.fsync(handle.inode)
        for _ in range(2):
            await mount.parts.file_io.truncate(handle.inode, 0)
            await mount.parts.file_io.write(handle, 0, b"2" * LARGE)

    with composed(store, tmp_path, durability=durability) as mount:
        mount.parts.commits.debounce.delay = LONG
        machine = Machine(mount, monkeypatch, 1)
        mount.loop.run(partial(main, mount))
        machine.loses_power(newest_log=True, spools="synced")
        mount.take_up()
        assert bodies(store) == {"file": b"1" * LARGE}


@durabilities
@pytest.mark.parametrize("is_power", [False, True], ids=["process dies", "power goes"])
@pytest.mark.parametrize("size", [100, LARGE], ids=["in its row", "in the spool"])
def test_a_file_that_is_renamed_over_another_before_its_close_is_there_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durability: Durability, is_power: bool, size: int
) -> None:
    """Neither is in the bucket: with the record of the one that is replaced its bytes go."""
    store = Held()

    async def main(mount: Composed) -> None:
        store.before["put"] = trio.Event()
        handle = await mount._opened(mount.parts.inodes.root, b"file", os.O_CREAT | os.O_RDWR)
        await mount.parts.file_io.write(handle, 0, b"o" * LARGE)
        await mount.parts.file_io.fsync(handle.inode)
        await closed(mount, handle)
        handle = await mount._opened(mount.parts.inodes.root, b"new", os.O_CREAT | os.O_RDWR)
        await mount.parts.file_io.write(handle, 0, b"n" * size)
        await mount.rename("new", "file")

    with composed(store, tmp_path, durability=durability) as mount:
        machine = Machine(mount, monkeypatch, 1)
        mount.loop.run(partial(main, mount))
        if is_power:
            machine.loses_power(newest_log=True, spools="synced")
        else:
            mount.crash()
        mount.loop.run(store.release)
        mount.take_up()
        assert bodies(store) == {"file": b"n" * size}


def test_what_was_synced_is_under_the_new_name_though_more_was_closed_when_the_power_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Held()

    async def main(mount: Composed) -> None:
        handle = await mount._opened(mount.parts.inodes.root, b"file", os.O_CREAT | os.O_RDWR)
        await mount.parts.file_io.write(handle, 0, b"1" * LARGE)
        await mount.parts.file_io.fsync(handle.inode)
        await mount.parts.file_io.write(handle, LARGE, b"2")
        await mount.parts.file_io.flush(handle)
        await mount.rename("file", "moved")
        await mount.parts.file_io.release(handle)

    with composed(store, tmp_path, durability=Durability.WRITEBACK) as mount:
        mount.parts.commits.debounce.delay = LONG
        machine = Machine(mount, monkeypatch, 1)
        mount.loop.run(partial(main, mount))
        machine.loses_power(newest_log=True, spools="synced")
        mount.take_up()
        assert bodies(store) == {"moved": b"1" * LARGE}


@pytest.mark.parametrize("hashes", [True, False], ids=["hashes", "no hashes"])
@pytest.mark.parametrize("is_emptied", [False, True], ids=["closed", "closed and emptied"])
def test_what_was_synced_goes_on_from_the_object_that_a_rename_has_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hashes: bool, is_emptied: bool
) -> None:
    """The bucket has an older version, of which the draft and what was synced of it are a part.

    Of one that was emptied the record has what was closed before that, and that has what was synced.
    """
    store = Held(hashes=hashes)

    async def main(mount: Composed) -> None:
        await put_all(store, {"file": b"o" * 2 * LARGE})
        handle = await opened(mount)
        await mount.parts.file_io.write(handle, 0, b"1" * LARGE)
        await mount.parts.file_io.fsync(handle.inode)
        await mount.parts.file_io.write(handle, LARGE, b"2")
        await mount.parts.file_io.flush(handle)
        if is_emptied:
            await mount.parts.file_io.truncate(handle.inode, 0)
        await mount.rename("file", "moved")
        await mount.parts.deletions.wait_under("")
        assert list(store._stored) == ["moved"]

    with composed(store, tmp_path, durability=Durability.WRITEBACK) as mount:
        mount.parts.commits.debounce.delay = LONG
        machine = Machine(mount, monkeypatch, 1)
        mount.loop.run(partial(main, mount))
        machine.loses_power(newest_log=True, spools="synced")
        mount.start()
        assert mount.loop.run(mount.tree)["moved"] == (b"1" * LARGE + b"o" * LARGE, 0o644)
        mount.loop.passes(5)
        assert bodies(store) == {"moved": b"1" * LARGE + b"o" * LARGE}


def test_a_small_file_that_is_renamed_over_another_waits_for_no_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its bytes are in its row, which comes to the disk with the end of the other's, or not at all."""
    store = Held()

    async def main(mount: Composed) -> None:
        handle = await mount._opened(mount.parts.inodes.root, b"new", os.O_CREAT | os.O_RDWR)
        await mount.parts.file_io.write(handle, 0, b"n" * 100)
        await mount.rename("new", "file")

    with composed(store, tmp_path, durability=Durability.WRITEBACK) as mount:
        mount.parts.commits.debounce.delay = LONG
        mount.loop.run(partial(mount.write, "file", b"o" * LARGE, flags=os.O_CREAT))
        machine = Machine(mount, monkeypatch, 1)
        mount.loop.run(partial(main, mount))
        assert machine.syncs == 0


def test_what_is_gone_back_to_stays_until_the_disk_knows_that_the_file_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was synced, then written anew, closed and stored; the power goes a moment later."""
    store = Held()

    async def main(mount: Composed) -> None:
        handle = await mount._opened(mount.parts.inodes.root, b"file", os.O_CREAT | os.O_RDWR)
        await mount.parts.file_io.write(handle, 0, b"1" * LARGE)
        await mount.parts.file_io.fsync(handle.inode)
        await mount.parts.file_io.truncate(handle.inode, 0)
        await mount.parts.file_io.write(handle, 0, b"2" * LARGE)
        await mount.parts.file_io.flush(handle)
        await mount.parts.commits.commit(handle.inode)
        await mount.parts.file_io.release(handle)
        assert bodies(store) == {"file": b"2" * LARGE}
        assert mount.parts.commits.drafts == set()

    with composed(store, tmp_path, durability=Durability.WRITEBACK) as mount:
        mount.parts.commits.debounce.delay = LONG
        machine = Machine(mount, monkeypatch, 1)
        mount.loop.run(partial(main, mount))
        machine.loses_power(newest_log=False, spools="synced")
        mount.take_up()
        assert bodies(store) == {"file": b"2" * LARGE}


@durabilities
def test_a_small_file_that_was_synced_is_there_though_it_grew_and_was_emptied_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durability: Durability
) -> None:
    """Its bytes are in its row."""
    store = Held()

    async def main(mount: Composed) -> None:
        handle = await mount._opened(mount.parts.inodes.root, b"file", os.O_CREAT | os.O_RDWR)
        await mount.parts.file_io.write(handle, 0, b"1" * 100)
        await mount.parts.file_io.fsync(handle.inode)
        await mount.parts.file_io.write(handle, 100, b"2" * LARGE)
        await mount.parts.file_io.truncate(handle.inode, 0)

    with composed(store, tmp_path, durability=durability) as mount:
        mount.parts.commits.debounce.delay = LONG
        machine = Machine(mount, monkeypatch, 1)
        mount.loop.run(partial(main, mount))
        machine.loses_power(newest_log=True, spools="synced")
        mount.take_up()
        assert bodies(store) == {"file": b"1" * 100}
