"""A file is cut while it is brought to the disk: the disk keeps what a row there tells of, however the power goes."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from sosfs.concurrency.threads import Threads
from sosfs.config.parameters import Durability
from sosfs.files.spool import Spool
from tests.recovery.test_late_syncs import write
from tests.support.composed import LONG, Composed, composed
from tests.support.held import Held, begun, bodies, closed, opened, settled
from tests.support.power import Machine, syncs_late

JOURNAL, WRITEBACK = Durability.JOURNAL, Durability.WRITEBACK
LARGE, SHORT = 400_000, 300_000  # bytes: in a spool
pytestmark = pytest.mark.promise(3)


def after_a_power_loss(mount: Composed, machine: Machine, *, newest_log: bool) -> None:
    """The spools are as they are now."""
    machine.loses_power(newest_log=newest_log, spools="written")
    mount.take_up()


async def fsync(mount: Composed) -> None:
    handle = await opened(mount)
    await begun(mount, partial(mount.parts.file_io.fsync, handle.inode))


async def cut(mount: Composed) -> None:
    """open, ftruncate, close."""
    handle = await opened(mount)
    await mount.parts.file_io.truncate(handle.inode, SHORT)
    await closed(mount, handle)


@pytest.mark.parametrize("is_written_between", [False, True])
def test_an_fsync_that_ends_after_the_sync_of_each_second_frees_nothing_that_is_gone_back_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_written_between: bool
) -> None:
    store = Held()
    with composed(store, tmp_path, durability=WRITEBACK) as mount:
        machine = Machine(mount, monkeypatch, 1)
        mount.parts.commits.debounce.delay = LONG
        mount.loop.run(partial(write, mount, b"1" * LARGE))
        late = syncs_late(monkeypatch, Spool)
        mount.loop.run(partial(fsync, mount))
        if is_written_between:
            mount.loop.run(partial(write, mount, b"1"))
        later = syncs_late(monkeypatch, Spool)
        mount.loop.passes(1)
        mount.loop.run(partial(cut, mount))
        mount.loop.run(partial(settled, later))
        mount.loop.run(partial(settled, late))
        after_a_power_loss(mount, machine, newest_log=True)
        assert bodies(store) == {"file": b"1" * LARGE}


@pytest.mark.parametrize("durability", [JOURNAL, WRITEBACK])
def test_a_cut_during_an_fsync_frees_nothing_that_the_log_on_the_disk_tells_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durability: Durability
) -> None:
    store = Held()

    async def main(mount: Composed) -> None:
        handle = await mount._opened(mount.parts.inodes.root, b"file", os.O_CREAT | os.O_RDWR)
        await mount.parts.file_io.write(handle, 0, b"1" * LARGE)
        late = syncs_late(monkeypatch)
        await begun(mount, partial(mount.parts.file_io.fsync, handle.inode))
        await mount.parts.file_io.truncate(handle.inode, SHORT)
        await settled(late)

    with composed(store, tmp_path, durability=durability) as mount:
        machine = Machine(mount, monkeypatch, 1)
        mount.parts.commits.debounce.delay = LONG
        mount.loop.run(partial(main, mount))
        after_a_power_loss(mount, machine, newest_log=False)
        assert bodies(store) == {"file": b"1" * LARGE}


def test_a_cut_frees_nothing_of_what_was_recorded_while_the_record_before_went(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Held()

    async def main(mount: Composed) -> None:
        handle = await mount._opened(mount.parts.inodes.root, b"file", os.O_CREAT | os.O_RDWR)
        await mount.parts.file_io.write(handle, 0, b"1" * LARGE)
        await mount.parts.file_io.fsync(handle.inode)
        await mount.parts.commits.commit(handle.inode)
        assert bodies(store) == {"file": b"1" * LARGE}
        late, draft = syncs_late(monkeypatch), handle.open_file.draft
        assert draft is not None
        await begun(mount, partial(mount.parts.commits.records.unname, handle.open_file, draft))
        await mount.parts.file_io.write(handle, LARGE, b"2")
        await mount.parts.file_io.fsync(handle.inode)
        await settled(late)
        await mount.parts.file_io.truncate(handle.inode, SHORT)

    with composed(store, tmp_path, durability=JOURNAL) as mount:
        machine = Machine(mount, monkeypatch, 1)
        mount.parts.commits.debounce.delay = LONG
        mount.loop.run(partial(main, mount))
        after_a_power_loss(mount, machine, newest_log=False)
        assert bodies(store) == {"file": b"1" * LARGE + b"2"}


def test_what_was_cut_and_written_anew_during_an_fsync_is_not_told_to_be_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk has the cut, and nothing of what was written behind it since."""
    store = Held()

    async def main(mount: Composed) -> None:
        handle = await mount._opened(mount.parts.inodes.root, b"file", os.O_CREAT | os.O_RDWR)
        await mount.parts.file_io.write(handle, 0, b"1" * LARGE)
        late = syncs_late(monkeypatch, Spool)
        await begun(mount, partial(mount.parts.file_io.fsync, handle.inode))
        await mount.parts.file_io.truncate(handle.inode, SHORT)
        await mount.parts.file_io.write(handle, LARGE - 1000, b"2" * 1000)
        await settled(late)

    with composed(store, tmp_path, durability=JOURNAL) as mount:
        machine = Machine(mount, monkeypatch, 1)
        mount.parts.commits.debounce.delay = LONG
        mount.loop.run(partial(main, mount))
        machine.loses_power(newest_log=True, spools="synced")
        (spool,) = (mount._settings.state_dir / "spool").iterdir()
        os.truncate(spool, SHORT)
        mount.take_up()
        assert bodies(store)["file"][:SHORT] == b"1" * SHORT


@pytest.mark.parametrize("durability", [JOURNAL, WRITEBACK])
def test_nothing_stays_here_of_a_file_that_is_emptied_during_an_fsync_and_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durability: Durability
) -> None:
    """What it had before is kept until then, for the disk has a row that tells of it."""
    store = Held()

    async def main(mount: Composed) -> None:
        handle = await mount._opened(mount.parts.inodes.root, b"file", os.O_CREAT | os.O_RDWR)
        await mount.parts.file_io.write(handle, 0, b"1" * LARGE)
        late = syncs_late(monkeypatch)
        await begun(mount, partial(mount.parts.file_io.fsync, handle.inode))
        await mount.parts.file_io.truncate(handle.inode, 0)
        await mount.parts.file_io.write(handle, 0, b"2" * LARGE)
        await settled(late)
        assert len(list((mount._settings.state_dir / "spool").iterdir())) == 2
        await closed(mount, handle)

    with composed(store, tmp_path, durability=durability) as mount:
        mount.loop.run(partial(main, mount))
        mount.loop.passes(5)
        assert bodies(store) == {"file": b"2" * LARGE}
        assert list((mount._settings.state_dir / "spool").iterdir()) == []


def test_an_fsync_takes_nothing_from_what_is_being_written_behind_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thread has written it, and its task is not told yet."""
    store, told = Held(), trio.Event()

    async def main(mount: Composed) -> None:
        run = Threads.run

        async def slowly(threads: Threads, work: Any, *arguments: Any) -> Any:
            answer = await run(threads, work, *arguments)
            await told.wait()
            return answer

        handle = await mount._opened(mount.parts.inodes.root, b"file", os.O_CREAT | os.O_RDWR)
        await mount.parts.file_io.write(handle, 0, b"1" * LARGE)
        with monkeypatch.context() as patch:
            patch.setattr(Threads, "run", slowly)
            await begun(mount, partial(mount.parts.file_io.write, handle, LARGE, b"2" * LARGE))
        await mount.parts.file_io.fsync(handle.inode)
        await settled(told)
        assert bytes(await mount.parts.file_io.read(handle, 0, 2 * LARGE)) == b"1" * LARGE + b"2" * LARGE
        await closed(mount, handle)

    with composed(store, tmp_path, durability=JOURNAL) as mount:
        mount.loop.run(partial(main, mount))
        mount.loop.passes(5)
        assert bodies(store) == {"file": b"1" * LARGE + b"2" * LARGE}
