"""Bring to the disk each second what nobody has waited for (`--durability writeback`).

close, rename, unlink, mkdir and chmod return when their rows and bytes are written, as on a local disk: the kernel has
them, so the death of this process takes nothing. For the death of the machine there is this, in the one order in which
nothing is told that is not there: the bytes of the spools first, then the rows that vouch for them (`DraftRecords`),
then the log of the journal, and only then the spools go that no row names any more.

    idle --a row is written--> waiting --a second, or hurried--> syncing --nothing came meanwhile--> idle
                                  ^--------------- more came, or the disk refused ----------------'

SQLite's log is read from its beginning up to what is missing, so that rows which were not synced are there in their
order, or not at all. What fsync(2) waits for it does itself, beside this.

Concurrency: trio thread only; one task while anything is unsynced, none else.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import NamedTuple

import trio

from sosfs.cache.blocks import Spawn
from sosfs.concurrency.locks import FairLock
from sosfs.files.draft_records import DraftRecords
from sosfs.files.spool import Spool, SpoolArea
from sosfs.journal.journal import Journal
from sosfs.tree.inodes import Inode

log = logging.getLogger(__name__)

INTERVAL = 1.0  # seconds between the first change and the sync, which is what a power cut can take
RETRY = 10.0  # the same after the disk has refused


class Unsynced(NamedTuple):
    """What a power cut would take now."""

    changes: int = 0
    size: int = 0  # bytes of files
    since: float = 0.0  # the oldest, in seconds since the epoch; 0.0 where nothing waits


class DelayedSync:
    """Syncs what is noted in one journal."""

    def __init__(self, journal: Journal, records: DraftRecords, spools: SpoolArea, spawn: Spawn) -> None:
        """From now on nobody waits for what may wait a second."""
        self._journal = journal
        self._records = records
        self._spools = spools
        self._spawn = spawn
        self._files: dict[Inode, int] = {}  # that were noted, and how many bytes of them
        self._flying: dict[Inode, int] = {}  # of those, the ones that are just being synced
        self._freed: list[Spool] = []  # to be closed
        self._going: list[Spool] = []  # of those, the ones that go as soon as the sync under way is done
        self._since = 0.0
        self._is_running = False
        self._is_failing = False
        self._is_stuck = False  # the journal could not be synced: nothing is closed before it can
        self._hurried = trio.Event()
        self._turn = FairLock()
        records.later = self
        journal.put_off(self._wake)

    @property
    def unsynced(self) -> Unsynced:
        """What waits now."""
        if not self._is_behind:
            return Unsynced()
        files = self._flying | self._files
        return Unsynced(max(self._journal.unsynced, len(files)), sum(files.values()), self._since)

    # As `draft_records.Later`

    def noted(self, inode: Inode, size: int) -> None:
        """So many bytes of a file were noted."""
        self._files[inode] = size
        self._wake()

    def takes(self, spools: Sequence[Spool]) -> None:
        """Takes spools that no row names any more, to close them with the next sync."""
        self._freed += spools
        self._wake()

    def frees(self, spools: Sequence[Spool]) -> bool:
        """As `takes`; False where room is short, so that they are closed at once by who can wait for the disk."""
        if self._spools.is_short:
            return False
        self.takes(spools)
        return True

    def hurried(self) -> bool:
        """Whether there are spools to close, as far as the disk lets it; the next sync begins at once then."""
        if self._freed and not self._is_stuck:
            self._hurried.set()
        return bool(self._freed or self._going) and not self._is_stuck

    # The task

    def _wake(self) -> None:
        self._since = self._since or time.time()
        if not self._is_running:
            self._is_running = True
            self._spawn(self._run)

    @property
    def _is_behind(self) -> bool:
        return bool(self._journal.unsynced or self._files or self._flying or self._freed)

    async def _run(self) -> None:
        try:
            while self._is_behind:
                with trio.move_on_after(RETRY if self._is_failing else INTERVAL):
                    await self._hurried.wait()
                self._hurried = trio.Event()
                await self.now()
        finally:
            self._is_running = False

    async def now(self) -> None:
        """All that was written before is on the disk afterwards. What the disk refuses is logged, and tried again."""
        async with self._turn:
            self._flying, self._files = self._files, {}
            self._going, self._freed = self._freed, []
            since, begun = self._since, time.time()
            try:
                failed = await self._sync()
            except OSError as error:
                self._freed, self._is_stuck = self._going + self._freed, True
                failed = list(self._flying)
                self._fails("the journal", error)
            else:
                self._is_stuck = False
                for spool in self._going:
                    spool.close()
                self._journal.catch_up()
            self._going = []
            self._files = {inode: self._flying[inode] for inode in failed} | self._files
            self._flying = {}
            self._since = since if self._is_failing else begun if self._is_behind else 0.0

    async def _sync(self) -> list[Inode]:
        """Bytes, rows, log; the files that the disk has refused. Raises OSError of the journal."""
        failed = await self._records.save_all(self._flying, self._spools)
        await self._journal.sync()
        for inode, error in failed:
            self._fails(inode.name.decode(errors="replace"), error)
        self._is_failing = bool(failed)
        return [inode for inode, _ in failed]

    def _fails(self, what: str, error: OSError) -> None:
        if not self._is_failing:
            log.error("%s cannot be synced: %s", what, error)
        self._is_failing = True
