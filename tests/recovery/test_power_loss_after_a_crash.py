"""The process dies, the next mount has just taken up what it left, and the power goes."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest
import trio

from sosfs.config.parameters import Durability
from sosfs.files.zero_objects import ZeroObjects
from sosfs.journal.journal import Journal
from tests.support.composed import LONG, Composed, composed
from tests.support.held import Held, begun, bodies
from tests.support.power import Machine

JOURNAL, WRITEBACK = Durability.JOURNAL, Durability.WRITEBACK
LARGE = 300_000  # bytes: in a spool
pytestmark = pytest.mark.promise(3)


def begins_and_dies(mount: Composed, patch: pytest.MonkeyPatch) -> None:
    """A mount begins, and its process dies when it has taken up all drafts."""

    async def dies(_: ZeroObjects) -> None:
        raise OSError("killed")

    with patch.context() as once:
        once.setattr(ZeroObjects, "clear", dies)
        with pytest.raises(OSError, match="killed"):
            mount.start()


@pytest.mark.parametrize(
    ("durability", "second"),
    [(JOURNAL, b""), (WRITEBACK, b""), (WRITEBACK, b"2" * LARGE)],
    ids=["journal", "writeback", "closed anew"],
)
def test_a_file_that_was_synced_and_begun_anew_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durability: Durability, second: bytes
) -> None:
    """The next mount goes on with what was written last, and needs no more what was synced before."""
    store = Held()

    async def main(mount: Composed) -> None:
        handle = await mount._opened(mount.parts.inodes.root, b"file", os.O_CREAT | os.O_RDWR)
        await mount.parts.file_io.write(handle, 0, b"1" * LARGE)
        await mount.parts.file_io.fsync(handle.inode)
        await mount.parts.file_io.truncate(handle.inode, 0)
        if second:
            await mount.parts.file_io.write(handle, 0, second)
            await mount.parts.file_io.flush(handle)

    with composed(store, tmp_path, durability=durability) as mount:
        mount.parts.commits.debounce.delay = LONG
        machine = Machine(mount, monkeypatch, 1)
        mount.loop.run(partial(main, mount))
        mount.crash()
        begins_and_dies(mount, monkeypatch)
        machine.loses_power(newest_log=False, spools="synced")
        mount.take_up()
        assert bodies(store) == {"file": second}


@pytest.mark.parametrize("newest_log", [False, True], ids=["old log", "new log"])
@pytest.mark.parametrize("is_earlier", [False, True], ids=["", "of an earlier mount"])
@pytest.mark.parametrize("is_removed", [False, True], ids=["", "and removed"])
def test_a_spool_whose_row_was_dropped_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_removed: bool, is_earlier: bool, newest_log: bool
) -> None:
    """The file is in the bucket, and the disk does not know yet; what was removed and not synced is there again."""
    store = Held()

    async def hangs(_: Journal) -> None:
        await trio.sleep_forever()

    with composed(store, tmp_path, durability=JOURNAL) as mount:
        machine = Machine(mount, monkeypatch, 1)
        mount.loop.run(partial(mount.write, "file", b"1" * LARGE, flags=os.O_CREAT))
        if is_earlier:
            mount.crash()
            mount.start()
        with monkeypatch.context() as patch:
            if not is_removed:
                patch.setattr(Journal, "sync", hangs)
            mount.loop.passes(3)
            assert bodies(store) == {"file": b"1" * LARGE}
            mount.crash()
        begins_and_dies(mount, monkeypatch)
        machine.loses_power(newest_log=newest_log, spools="synced")
        mount.take_up()
        assert bodies(store) == {"file": b"1" * LARGE}


@pytest.mark.parametrize("durability", list(Durability))
def test_what_nobody_had_closed_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durability: Durability
) -> None:
    """The kernel wrote the spool out, and no word of the journal."""
    store = Held()

    async def main(mount: Composed) -> None:
        handle = await mount._opened(mount.parts.inodes.root, b"file", os.O_CREAT | os.O_RDWR)
        await begun(mount, partial(mount.parts.file_io.write, handle, 0, b"1" * LARGE))

    with composed(store, tmp_path, durability=durability) as mount:
        machine = Machine(mount, monkeypatch, 1)
        mount.crash()
        mount.start()
        mount.loop.run(partial(main, mount))
        machine.loses_power(newest_log=False, spools="written")
        mount.take_up()
        assert list((mount._settings.state_dir / "spool").iterdir()) == []
        assert bodies(store) == {}


def test_while_the_journal_cannot_be_written_no_spool_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row on the disk may name it. A mount after that one removes it."""

    async def main(mount: Composed) -> None:
        handle = await mount._opened(mount.parts.inodes.root, b"file", os.O_CREAT | os.O_RDWR)
        await mount.parts.file_io.write(handle, 0, b"1" * LARGE)

    async def refused(_: Journal) -> None:
        raise OSError("the disk")

    with composed(Held(), tmp_path, durability=JOURNAL) as mount:
        mount.loop.run(partial(main, mount))
        for is_refused in (True, False):
            mount.crash()
            with monkeypatch.context() as patch:
                if is_refused:
                    patch.setattr(Journal, "sync", refused)
                mount.start()
            assert mount._journal.damage.lines == ()
            assert len([*(mount._settings.state_dir / "spool").iterdir()]) == is_refused
