"""Forget inodes when there are too many.

What was listed stays known for as long as the kernel knows it, and that is for as long as the machine has memory.
With more than `SOFT` of `most` names known, files of the directories that were listed longest ago go: at once where
the kernel does not know them, else when it has forgotten them, which it is asked to. Whoever wants such a name again
makes the directory be listed again.

Who walks fast brings names faster than the kernel forgets them, and while somebody reads a directory the kernel forgets
none of its names. So at `most` they go whatever the kernel knows, those of a directory that is being read once its
readers have been told of them. Of what the kernel knows its number stays answerable (`tree.lent_numbers`): somebody may
have the file as O_PATH, for which nothing is open here.

What stays: directories (one may be somebody's working directory, which would be told that it was removed), files that
are open, what the kernel knows as something else than a file, what the bucket lacks, what is being renamed, names that
a reader has still to be told, and what was asked for a moment ago: a handler may be about to tell the kernel of it.

Concurrency: trio thread only, one task at a time.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import trio

from sosfs.attributes.writeback import AttributeWriteback
from sosfs.cache.blocks import Spawn
from sosfs.concurrency.backoff import Doubling
from sosfs.files.page_cache import PageNotifier
from sosfs.tree.inodes import PENDING, Directory, Inode, Inodes
from sosfs.tree.listing import Listings

log = logging.getLogger(__name__)

REST = 0.5  # seconds that a name is left alone after the bucket told of it, if the kernel does not know it yet
USED = 2.0  # seconds that an inode is left alone after the kernel asked for it by its number
PAUSE_FIRST, PAUSE_MAX = 2.0, 60.0  # seconds between tries while all is in use
SOFT = 0.8  # of `most`, above which the kernel is asked
LEFT = 0.6  # of `most`, when there were more
STEP = 1 / 16  # of `most`, that have to come before it is tried again where all is in use
TOGETHER = 256  # names that the kernel is asked to forget at a time
ANSWER = 0.02  # seconds after which it has told that it did


class Eviction:
    """Keeps the number of inodes near a limit. `kernel` None: there is none, so that nobody else knows them."""

    def __init__(
        self,
        inodes: Inodes,
        attributes: AttributeWriteback,
        listings: Listings,
        spawn: Spawn,
        kernel: PageNotifier | None,
        *,
        most: int,
    ) -> None:
        self._inodes = inodes
        self._attributes = attributes
        self._spawn = spawn
        self._kernel = kernel
        self._most = most
        self._is_running = False
        self._cut_at = float(most)
        listings.watchers.append(lambda directory, walk, first: self.look())

    def look(self) -> None:
        """Has names forgotten if they are too many."""
        if len(self._inodes) > self._cut_at:
            self._cut()
        if len(self._inodes) > SOFT * self._most and not self._is_running:
            self._is_running = True
            self._spawn(self._run)

    def _cut(self) -> None:
        """Forgets what may be forgotten without the kernel's help."""
        for directory in sorted(self._inodes.directories(), key=_age):
            if len(self._inodes) <= LEFT * self._most:
                break
            self._drop(directory, self._may_be_cut)
        self._cut_at = max(self._most, len(self._inodes) + STEP * self._most)

    async def _run(self) -> None:
        pauses = Doubling(PAUSE_FIRST, PAUSE_MAX)
        try:
            while (before := len(self._inodes)) > SOFT * self._most:
                await self._shed()
                if len(self._inodes) < before:
                    pauses.reset()
                await trio.sleep(pauses.take())
        except OSError as error:
            log.debug("the kernel does not forget: %s", error)
        finally:
            self._is_running = False

    async def _shed(self) -> None:
        for directory in sorted(self._inodes.directories(), key=_age):
            if len(self._inodes) <= LEFT * self._most:
                return
            self._drop(directory, self._is_unknown)
            if not directory.readers:
                await self._ask_kernel(directory)
                self._drop(directory, self._is_unknown)

    async def _ask_kernel(self, directory: Directory) -> None:
        if self._kernel is None:
            return
        number = directory.inode.number
        known = [name for name, inode in directory.entries.items() if inode.lookups and self._is_idle(inode)]
        for start in range(0, len(known), TOGETHER):
            await self._kernel.forget([], [(number, name) for name in known[start : start + TOGETHER]])
            await trio.sleep(ANSWER)

    def _drop(self, directory: Directory, may_go: Callable[[Inode], bool]) -> None:
        """Forgets files that nobody holds or is about to be told; what it has is not known as a whole then."""
        readers = list(directory.readers)
        gone = [
            (name, inode)
            for name, inode in directory.entries.items()
            if may_go(inode)
            and directory.touched.get(name) != PENDING
            and all(reader.has_told(name) for reader in readers)
        ]
        for name, _ in gone:
            del directory.entries[name]
        self._inodes.lend(directory.inode, (inode for _, inode in gone))
        if gone:
            directory.doubt()
            for reader in readers:
                reader.walk.names.pack(reader.told)

    def _is_unknown(self, inode: Inode) -> bool:
        return not inode.lookups and self._is_idle(inode)

    def _may_be_cut(self, inode: Inode) -> bool:
        return self._is_idle(inode) and (not inode.lookups or self._inodes.may_lend(inode))

    def _is_idle(self, inode: Inode) -> bool:
        if inode.is_directory or inode.pins or inode.open_file is not None:
            return False
        now = trio.current_time()
        was_told = inode.lookups > 0 or inode.checked < now - REST
        return was_told and inode.used < now - USED and not self._attributes.is_asked(inode)


def _age(directory: Directory) -> float:
    return directory.now.started if directory.now is not None else -math.inf
