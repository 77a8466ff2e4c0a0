"""A machine whose power goes: what its disk holds then is drawn by lot, within what the kernel promises.

Of a spool it holds what was synced, or that with some of what was written since, page by page; one that was never
synced may be missing. The journal's log ends at some transaction that is not before the last sync, and what was removed
since the last sync may still be there.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from sosfs.disk import watermark
from sosfs.disk.damage import sync_directory
from sosfs.disk.watermark import Watermark
from sosfs.files.spool import Spool
from sosfs.journal.journal import FILE, Journal
from tests.support.composed import Composed

PAGE = 4096
BOOTS = itertools.count()
LOG = (FILE, f"{FILE}-wal")


def syncs_late(patch: pytest.MonkeyPatch, of: type[Journal] | type[Spool] = Journal) -> trio.Event:
    """Who brings the journal, or a spool, to the disk next is told so when the event is set; others are not held."""
    sync: Callable[[Any], Awaitable[None]] = of.sync
    late = trio.Event()

    async def slowly(this: Any) -> None:
        patch.setattr(of, "sync", sync)
        await sync(this)
        await late.wait()

    patch.setattr(of, "sync", slowly)
    return late


class Machine:
    """The machine that a mount runs on. It counts how often anybody has waited for the disk."""

    def __init__(self, mount: Composed, patch: pytest.MonkeyPatch, seed: int) -> None:
        self._mount = mount
        self._patch = patch
        self._dice = random.Random(seed)
        self.syncs = 0
        self._synced: dict[str, bytes] = {}  # spools, by name
        self._logs: list[dict[str, bytes]] = [self._log()]  # of the journal, since its last sync
        self._watch_spools()
        self._watch_journal()

    def _watch_spools(self) -> None:
        sync, sync_file_system = Spool.sync, Spool.sync_file_system

        async def noted(spool: Spool) -> None:
            await sync(spool)
            if spool.on_disk:
                self.syncs += 1
                self._synced[spool.path.name] = spool.path.read_bytes()

        async def all_noted(spool: Spool) -> None:
            await sync_file_system(spool)
            self.syncs += 1
            self._synced = {path.name: path.read_bytes() for path in self._spools()}

        def gone(directory: Path) -> None:
            sync_directory(directory)
            self._synced = {name: body for name, body in self._synced.items() if (directory / name).exists()}

        self._patch.setattr("sosfs.recovery.spool.sync_directory", gone)
        self._patch.setattr(Spool, "sync", noted)
        self._patch.setattr(Spool, "sync_file_system", all_noted)

    def _watch_journal(self) -> None:
        sync, wrote = Journal.sync, Watermark.wrote

        async def synced(journal: Journal) -> None:
            behind = journal.unsynced
            await sync(journal)
            self.syncs += behind > 0
            self._logs = [self._log()]

        def written(mark: Watermark, number: int) -> None:
            wrote(mark, number)
            self._logs.append(self._log())

        self._patch.setattr(Journal, "sync", synced)
        self._patch.setattr(Watermark, "wrote", written)

    def _spools(self) -> list[Path]:
        return sorted((self._mount._settings.state_dir / "spool").glob("*.spool"))

    def _log(self) -> dict[str, bytes]:
        state = self._mount._settings.state_dir
        return {name: (state / name).read_bytes() for name in LOG if (state / name).exists()}

    def loses_power(self, *, newest_log: bool | None = None, spools: str = "") -> None:
        """The disk keeps what lot decides, but for what is given: `spools` are "synced" or "written", as far as that.

        The next mount is on a machine that has been started again.
        """
        synced, logs = dict(self._synced), list(self._logs)
        self._mount.crash()
        log = self._dice.choice(logs) if newest_log is None else logs[-1 if newest_log else 0]
        state = self._mount._settings.state_dir
        for name in LOG:
            (state / name).unlink(missing_ok=True)
            if name in log:
                (state / name).write_bytes(log[name])
        there = {path.name: path.read_bytes() for path in self._spools()}
        for name in there.keys() | synced.keys():
            self._keep(state / "spool" / name, synced.get(name), there.get(name), spools)
        boot = state.parent / f"boot{(number := next(BOOTS))}"
        boot.write_text(f"of boot {number}")
        self._patch.setattr(watermark, "BOOT_ID", boot)
        self._synced = {path.name: path.read_bytes() for path in self._spools()}
        self._logs = [self._log()]

    def _keep(self, path: Path, synced: bytes | None, written: bytes | None, how: str) -> None:
        how = how or self._dice.choice(("synced", "written", "mixed"))
        path.unlink(missing_ok=True)
        if how == "written":
            left = written
        elif how == "synced" or written is None:
            left = synced
        else:
            left = self._mixed(synced or b"", written)
        if left is not None:
            path.write_bytes(left)

    def _mixed(self, synced: bytes, written: bytes) -> bytes:
        """Some pages are new, the others old or, where there were none, zeros."""
        size = len(written)
        old = synced[:size].ljust(size, b"\0")
        pages = range(0, size, PAGE)
        return b"".join(self._dice.choice((old, written))[at : at + PAGE] for at in pages)
