"""Forget inodes when there are too many.

What was listed stays known for as long as the kernel knows it, and that is for as long as the machine has memory.
With more than `most` names known, files of the directories that were listed longest ago go: at once where the
kernel does not know them, else when it has forgotten them, which it is asked to. Whoever wants such a name again
makes the directory be listed again.

What stays: directories (one may be somebody's working directory, which would be told that it was removed), files that
are open, what the bucket lacks, directories that somebody is reading, and what was asked for a moment ago: a
handler may be about to tell the kernel of it.

Concurrency: trio thread only, one task at a time.
"""

from __future__ import annotations

import logging
import math

import trio

from sosfs.attributes.writeback import AttributeWriteback
from sosfs.cache.blocks import Spawn
from sosfs.concurrency.backoff import Doubling
from sosfs.files.page_cache import PageNotifier
from sosfs.tree.inodes import Directory, Inode, Inodes
from sosfs.tree.listing import Listings

log = logging.getLogger(__name__)

REST = 2.0  # seconds that a name is left alone after the bucket told of it
PAUSE_MAX = 60.0  # seconds between tries while all is in use
LEFT = 0.75  # of `most`, when there were more
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
        listings.watchers.append(lambda directory: self.look())

    def look(self) -> None:
        """Has names forgotten if they are too many."""
        if len(self._inodes) > self._most and not self._is_running:
            self._is_running = True
            self._spawn(self._run)

    async def _run(self) -> None:
        pauses = Doubling(REST, PAUSE_MAX)
        try:
            while (before := len(self._inodes)) > self._most:
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
            if not directory.readers:
                self._drop(directory)
                await self._ask_kernel(directory)
                self._drop(directory)

    async def _ask_kernel(self, directory: Directory) -> None:
        if self._kernel is None:
            return
        number = directory.inode.number
        known = [name for name, inode in directory.entries.items() if inode.lookups and self._is_idle(inode)]
        for start in range(0, len(known), TOGETHER):
            await self._kernel.forget([], [(number, name) for name in known[start : start + TOGETHER]])
            await trio.sleep(ANSWER)

    def _drop(self, directory: Directory) -> None:
        """Forgets the files that nobody holds; what the directory has is not known as a whole then."""
        if directory.readers:
            return
        gone = [
            (name, inode) for name, inode in directory.entries.items() if not inode.lookups and self._is_idle(inode)
        ]
        for name, inode in gone:
            del directory.entries[name]
            self._inodes.drop(inode)
        if gone:
            directory.now = None

    def _is_idle(self, inode: Inode) -> bool:
        if inode.is_directory or inode.opens or inode.pins or inode.open_file is not None:
            return False
        return inode.checked < trio.current_time() - REST and not self._attributes.is_asked(inode)


def _age(directory: Directory) -> float:
    return directory.now.started if directory.now is not None else -math.inf
