"""Fetch the next files when somebody reads one after the other.

tar, cp, grep and backup programs open the files of a tree in the order in which its directories are listed, and wait
for each: at 20 ms a round trip that is 50 files a second. After `RUN` files in that order the next ones are asked
for with their bytes, on through directories as far as these were listed, and within the one that holds all so far.

Several processes that share a directory's files read them a little out of order. They wait for each other, too: a small
file may be a link, so its name is not found before it was asked for, and through libfuse before 3.17 (which does not
pass FUSE_PARALLEL_DIROPS on) the kernel looks up one name of a directory at a time.

A guess costs bytes: no more small files are here that nobody has read yet than were read in a row, but for the first.

Concurrency: trio thread only.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Generator, Iterator
from functools import partial

from sosfs.attributes.writeback import AttributeWriteback
from sosfs.cache.blocks import BLOCK, Blocks, Source, Spawn
from sosfs.tree.inodes import Directory, Inode, Inodes, Known
from sosfs.tree.listing import Listings

log = logging.getLogger(__name__)

RUN = 3  # files in order, after which more are expected
AHEAD, AHEAD_MAX = 16, 64  # files, at first and at most
SMALL = 1 << 20  # bytes of a file that is fetched ahead; larger ones are by whoever reads them (`readahead`)
ROOM = 4  # the part of the memory for blocks that they may take
SPREAD = 32  # places in a directory between files that processes read side by side
STRAYS = 8  # files read out of order, by others or by one who turned elsewhere, that end a run


class FilePrefetch:
    """Follows those who read a mount file after file."""

    def __init__(
        self, inodes: Inodes, listings: Listings, attributes: AttributeWriteback, blocks: Blocks, spawn: Spawn
    ) -> None:
        self._inodes = inodes
        self._listings = listings
        self._attributes = attributes
        self._blocks = blocks
        self._spawn = spawn
        self._last: Inode | None = None
        self._task = 0  # who read last
        self._top: Inode | None = None  # the directory that holds all of the run: what is beside it is not expected
        self._run = 0
        self._strays = 0
        self._coming: deque[Inode] = deque()  # expected, in order

    def read(self, inode: Inode, task: int) -> None:
        """`task` reads a file from its beginning; asks for those that will likely follow. Does not wait."""
        if inode is self._last:
            return
        distance = self._distance(inode)
        beside = task != self._task and distance is not None and abs(distance) <= SPREAD
        self._task = task
        if not self._follows(inode, beside=beside):
            self._strays += 1
            if self._run >= RUN and self._strays < STRAYS:
                return
            self._run, self._top, distance = 0, inode.parent, None
            self._coming.clear()
        if distance is None or distance >= 0:  # else one of several who read side by side is a little behind
            self._last = inode
        self._strays = 0
        if self._run >= RUN:
            self._ask_ahead(self._last or inode)

    def _follows(self, inode: Inode, *, beside: bool) -> bool:
        if inode in self._coming:
            while self._coming.popleft() is not inode:
                pass
        elif not beside and (self._coming or self._last is None or next(_after(self._last), None) is not inode):
            return False
        self._run += 1
        while self._top is not None and not self._inodes.is_under(inode, self._top):
            self._top = self._top.parent
        return True

    def _distance(self, inode: Inode) -> int | None:
        """How many places of their directory a file comes after the last one; None where they have none in common."""
        last, parent = self._last, inode.parent
        if last is None or parent is not last.parent or parent is None or parent.directory is None:
            return None
        walk = parent.directory.now
        if walk is None:
            return None
        here, there = walk.names.place(inode.name), walk.names.place(last.name)
        return here - there if here is not None and there is not None else None

    def _ask_ahead(self, inode: Inode) -> None:
        ahead = min(AHEAD_MAX, max(AHEAD, self._run))
        if len(self._coming) > ahead * 3 // 4:
            return  # several at once: where they begin is looked for once
        here = inode.parent.directory if inode.parent is not None else None
        if here is not None and here.now is not None:
            self._listings.reached(here, here.now, here.now.names.place(inode.name) or 0)
        held = sum(one.size for one in self._coming if one.size <= SMALL)
        for one in _after(self._coming[-1] if self._coming else inode, within=self._top):
            if len(self._coming) >= ahead or held > self._blocks.capacity // ROOM:
                return
            self._coming.append(one)
            if one.size <= SMALL and not one.pins and not one.opens:
                held += one.size
                self._spawn(partial(self._fetch, one))

    async def _fetch(self, inode: Inode) -> None:
        """A failure is left to who really reads."""
        if inode.parent is None:
            return  # gone in this moment
        try:
            if inode.known is not Known.ALL:
                await self._attributes.ask_ahead(inode, with_bytes=True)
                if inode.size <= BLOCK:
                    return  # its bytes came along
            if inode.is_regular and inode.version is not None and inode.parent is not None and not inode.pins:
                source = Source(self._inodes.key(inode), inode.version.etag, inode.version.size)
                self._blocks.want(source, 0, source.size)
        except OSError as error:
            log.debug("%s was not fetched ahead: %s", inode.name.decode(errors="replace"), error)


def _after(inode: Inode, *, within: Inode | None = None) -> Iterator[Inode]:
    """The files with bytes after this one, as a walk through the tree comes to them, up to what is not listed.

    It ends with the directory `within`, None for no such end.
    """
    while (parent := inode.parent) is not None and parent.directory is not None:
        walk = parent.directory.now
        place = walk.names.place(inode.name) if walk is not None else None
        if place is None:
            return
        if not (yield from _from(parent.directory, place + 1)) or parent is within:
            return
        inode = parent


def _from(directory: Directory, at: int) -> Generator[Inode, None, bool]:
    """Those of a directory from an index on and of all below it; tells at the end whether it was listed."""
    walk = directory.now
    if walk is None:
        return False
    while at < len(walk.names):
        child = directory.entries.get(walk.names[at])
        at += 1
        if child is not None and child.is_directory:
            if child.directory is None or not (yield from _from(child.directory, 0)):
                return False
        elif child is not None and child.size:
            yield child
    return walk.done
