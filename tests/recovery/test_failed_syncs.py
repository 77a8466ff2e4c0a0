"""The disk refuses to write the journal out once: who is told later that it did, can rely on that.

The kernel gives up what it could not write, and finds nothing wrong the next time.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
from functools import partial
from pathlib import Path

import pytest

from sosfs.config.parameters import Durability
from sosfs.files.open_file import content_of
from sosfs.journal.journal import FILE, Journal
from tests.recovery.test_power_loss import another_boot
from tests.support.composed import LONG, Composed, composed
from tests.support.drive import fails
from tests.support.held import Held, bodies
from tests.support.power import Machine

pytestmark = pytest.mark.promise(3)


class FailingDisk:
    """What of the journal's log is on the disk: nothing of what was written when an fsync failed."""

    def __init__(self, mount: Composed, patch: pytest.MonkeyPatch) -> None:
        self._mount, self._patch = mount, patch
        self._fdatasync = os.fdatasync
        self._good = 0
        self._lost = b""
        self.is_failing = False
        patch.setattr(os, "fdatasync", self._sync)

    @property
    def _log(self) -> Path:
        return self._mount._settings.state_dir / f"{FILE}-wal"

    def _sync(self, file: int) -> None:
        if self.is_failing:
            self._lost = self._log.read_bytes()[self._good :]
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self._fdatasync(file)
        if not self._lost:
            self._good = self._log.stat().st_size

    def loses_power(self) -> None:
        """What it had not written is not there."""
        self._mount.crash()
        body, end = self._log.read_bytes(), self._good + len(self._lost)
        if self._lost and body[self._good : end] == self._lost:
            self._log.write_bytes(body[: self._good] + bytes(len(self._lost)) + body[end:])
        another_boot(self._mount, self._patch)


@pytest.mark.parametrize("times", [1, 2])
def test_what_was_synced_after_a_failure_is_there_when_the_power_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    store = Held()

    async def close_again(mount: Composed, disk: FailingDisk) -> None:
        mount.parts.commits.debounce.delay = LONG
        await mount.write("before", b"before", flags=os.O_CREAT)
        disk.is_failing = True
        for _ in range(times):
            with fails(errno.EIO):
                await mount.write("file", b"bytes", flags=os.O_CREAT)
        disk.is_failing = False
        assert mount._journal.damage.lines == (), "it was not removed"
        await mount.write("file", b"bytes")
        await mount.write("after", b"after", flags=os.O_CREAT)

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        disk = FailingDisk(mount, monkeypatch)
        mount.loop.run(partial(close_again, mount, disk))
        disk.loses_power()
        mount.take_up(seconds=20)
        assert bodies(store) == {"before": b"before", "file": b"bytes", "after": b"after"}


@pytest.mark.parametrize("why", ["somebody reads it", "no file can be opened"])
def test_as_long_as_the_log_cannot_begin_anew_nobody_is_told_that_it_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    store = Held()

    def refused(*_: object, **__: object) -> sqlite3.Connection:
        raise sqlite3.OperationalError("unable to open database file")

    async def main(mount: Composed, disk: FailingDisk) -> None:
        mount.parts.commits.debounce.delay = LONG
        await mount.write("file", b"old", flags=os.O_CREAT)
        disk.is_failing = True
        with fails(errno.EIO):
            await mount.write("file", b"new")
        disk.is_failing = False
        connected = sqlite3.connect(mount._settings.state_dir / FILE, isolation_level=None)
        with contextlib.closing(connected) as reader, monkeypatch.context() as patch, fails(errno.EIO):
            if why == "somebody reads it":
                reader.execute("begin")
                reader.execute("select * from facts").fetchall()
            else:
                patch.setattr(sqlite3, "connect", refused)
            await mount.write("file", b"NEW")
        await mount.write("file", b"end")

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        disk = FailingDisk(mount, monkeypatch)
        mount.loop.run(partial(main, mount, disk))
        disk.loses_power()
        mount.take_up(seconds=20)
        assert bodies(store) == {"file": b"end"}


def test_a_journal_that_was_removed_after_a_failure_is_not_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody would find there what is promised."""
    with composed(Held(), tmp_path, durability=Durability.JOURNAL) as mount:
        disk = FailingDisk(mount, monkeypatch)
        disk.is_failing = True
        with fails(errno.EIO):
            mount.loop.run(partial(mount.write, "file", b"bytes", flags=os.O_CREAT))
        disk.is_failing = False
        (state := mount._settings.state_dir / FILE).unlink()
        with fails(errno.EIO):
            mount.loop.run(partial(mount.write, "file", b"bytes"))
        assert not state.exists()


def test_no_spool_goes_of_which_the_disk_may_still_have_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the power goes it would pass for one that is lost, though the bucket has the file."""
    store = Held()

    async def main(mount: Composed) -> None:
        mount.parts.commits.debounce.delay = LONG
        await mount.write("file", bytes(400_000), flags=os.O_CREAT)
        inode = await mount._walk("file")
        with monkeypatch.context() as patch:
            patch.setattr(Journal, "sync", refused)
            await mount.parts.commits.commit(inode)
            await mount.parts.commits.let_go(inode, content_of(inode))

    async def refused(_: Journal) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        machine = Machine(mount, monkeypatch, 1)
        mount.loop.run(partial(main, mount))
        machine.loses_power(newest_log=False, spools="written")
        mount.take_up()
        assert bodies(store) == {"file": bytes(400_000)}
        assert list((mount._settings.state_dir / "spool").iterdir()) == []
