"""Fetch bytes of the stored version into the spool of a changed file.

Around a change that is read: the commit sends a changed part whole, so it needs these bytes as well, and a program
that reads and writes a file at random places would ask for a block with nearly every read. Where an eighth of a file
has changed, its rest follows at the server's speed and not at the reader's. And all of it comes before the base is
removed while somebody has the file open.

Concurrency: trio thread only; what was written or cut since the bytes were asked for stays as it is (`Draft.absorb`).
"""

from __future__ import annotations

import logging
from functools import partial

import trio

from sosfs.cache.blocks import Blocks, Spawn
from sosfs.concurrency.tasks import each
from sosfs.files.draft import Draft
from sosfs.files.draft_records import DraftRecords
from sosfs.files.open_file import OpenFile
from sosfs.files.spool import SpoolArea
from sosfs.tree.inodes import Inode

log = logging.getLogger(__name__)

WINDOW = 8 << 20  # bytes that come together; the smallest part of an upload by default
WINDOWS_AT_ONCE = 4  # windows of a mount
DENSE = 8  # of so many windows one has changed: then all are brought
SEVERAL = 4  # windows that a change here and there, as of a database, may touch without that


class BaseFetch:
    """Fills the spools of a mount, each up to `room` bytes."""

    def __init__(self, blocks: Blocks, spools: SpoolArea, records: DraftRecords, spawn: Spawn, *, room: int) -> None:
        self._blocks = blocks
        self._spools = spools
        self._records = records
        self._spawn = spawn
        self._room = room
        self._turns = trio.CapacityLimiter(WINDOWS_AT_ONCE)

    def around(self, at: int, inode: Inode, open_file: OpenFile, draft: Draft) -> None:
        """A byte of a changed file is read: all near it comes if that changed, and all if much did. Does not wait."""
        start, windows = at // WINDOW * WINDOW, -(-draft.base_stop // WINDOW)
        if len(draft.brought) == windows:
            return
        some = max(SEVERAL, windows // DENSE)
        if draft.base_stop <= self._room and draft.dirty.cells(WINDOW, most=some) == some:
            wanted = range(0, draft.base_stop, WINDOW)
        elif draft.is_untouched(start, min(start + WINDOW, draft.base_stop)):
            return
        else:
            wanted = range(start, start + 1)
        missing = [one for one in wanted if one not in draft.brought]
        if missing and not self._spools.is_short:  # a system call
            for one in missing:
                self._begin(one, inode, open_file, draft)

    def _begin(self, start: int, inode: Inode, open_file: OpenFile, draft: Draft) -> None:
        if max(draft.local.total, len(draft.brought) * WINDOW) + WINDOW <= self._room:
            draft.brought.add(start)
            self._spawn(partial(self._fill, start, inode, open_file, draft))

    async def _fill(self, start: int, inode: Inode, open_file: OpenFile, draft: Draft) -> None:
        came = False
        try:
            async with self._turns:
                if open_file.writers and not self._spools.is_short:
                    came = await self._bring(inode, open_file, draft, start, start + WINDOW)
        except OSError as error:
            log.debug("%s: nothing was fetched ahead: %s", inode.name.decode(errors="replace"), error)
        finally:
            if not came:
                draft.brought.discard(start)  # whoever reads there later may have it

    async def whole(self, inode: Inode, open_file: OpenFile, draft: Draft) -> None:
        """All of the base comes, so that the draft needs the bucket no more. Raises what reading it raises."""

        async def bring(start: int) -> None:
            while not await self._bring(inode, open_file, draft, start, start + WINDOW) or self._lacks(draft, start):
                await draft.spool.rest()  # what is just being written there is told, or has failed

        await each(bring, range(0, draft.base_stop, WINDOW), at_once=WINDOWS_AT_ONCE)

    @staticmethod
    def _lacks(draft: Draft, start: int) -> bool:
        return draft.spool.is_busy and draft.lacks(start, start + WINDOW) is not None

    async def _bring(self, inode: Inode, open_file: OpenFile, draft: Draft, start: int, stop: int) -> bool:
        """Whether the spool lacks nothing there any more; not where the base became another one meanwhile.

        What was written since may have been freed with the commit, and what was cut is zeros in the new base.
        """
        base, gap = draft.base, draft.lacks(start, stop)
        if base is None or gap is None or open_file.draft is not draft:
            return True
        body = await self._blocks.read(base, *gap)
        if open_file.draft is draft:
            await self._records.opens(
                inode, gap[0]
            )  # not before: a record may have been made while the bucket answered
        if draft.base is not base:
            return False
        if open_file.draft is draft:
            self._records.touched(inode)
            await draft.absorb(gap[0], body)
        return True
