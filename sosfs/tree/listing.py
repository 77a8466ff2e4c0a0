"""List a directory's keys, page by page, when what is known is out of date.

Whoever reads a directory and whoever looks a name up share one pass; nobody asks for a page that another task is
already asking for. Who has read half of the first page finds the next one asked for, and who has come to a later page
the one after that. A directory that is renamed while it is read is read on under its new key.

Concurrency: trio thread only.
"""

from __future__ import annotations

import errno
import logging
import math
import os
from collections.abc import Callable, Coroutine
from contextlib import closing
from typing import Any

import trio

from sosfs.cache.blocks import Spawn
from sosfs.s3.paging import check_progress, is_ordered
from sosfs.s3.protocol import ObjectStore, Page
from sosfs.tree.inodes import (
    Directory,
    Inode,
    Inodes,
    Pass,
    Reading,
)
from sosfs.tree.listing_merge import Merger
from sosfs.tree.subtree_listing import Scan
from sosfs.tree.subtree_lock import SubtreeLock

log = logging.getLogger(__name__)

# Is told of each page that came: the directory, the pass, and the index in it from which on its names are new.
Watcher = Callable[[Directory, Pass, int], None]

PATIENCE = 0.5  # seconds; a longer scan does not hold up whoever wants one directory


class Listings:
    """The listings of a mount's directories."""

    def __init__(
        self,
        inodes: Inodes,
        store: ObjectStore,
        merger: Merger,
        subtree_lock: SubtreeLock,
        spawn: Spawn,
        *,
        ttl: float,
        names: int,
    ) -> None:
        """`names` is how many there should be at most: no scan brings a large part of them at once."""
        self._inodes = inodes
        self._subtree_lock = subtree_lock
        self._store = store
        self._merger = merger
        self._spawn = spawn
        self._ttl = ttl
        self._most = names
        self._scan: Scan | None = None
        self.watchers: list[Watcher] = []

    def directory(self, inode: Inode) -> Directory:
        """The entries of a directory. Raises OSError ENOTDIR, ESTALE for one that is not in the tree any more."""
        if not inode.is_directory:
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not self._inodes.has_name(inode):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))  # it has no key; the kernel looks its name up again
        if inode.directory is None:
            inode.directory = Directory(inode)
        return inode.directory

    def walk(self, inode: Inode) -> tuple[Directory, Pass]:
        """A pass for reading a directory from its beginning: the newest if it is recent, else a new one."""
        directory = self.directory(inode)
        if directory.now is None or not directory.is_young(self._ttl):
            return directory, directory.begin(self._inodes.key(inode))
        return directory, directory.now

    def is_known(self, directory: Directory) -> bool:
        """Whether every name of a directory is known, and recently."""
        return directory.is_known(self._ttl)

    def is_under_way(self, directory: Directory) -> bool:
        """Whether a page of a directory is on its way, or a scan for which it has what was done here meanwhile."""
        scan = self._scan
        return directory.lock.taken or (scan is not None and self._inodes.is_under(directory.inode, scan.top))

    def begin_scan(self, top: Inode) -> Callable[[], Coroutine[Any, Any, None]] | None:
        """A task that lists all directories below `top` at once; None while another does. It raises StoreError."""
        if self._scan is not None:
            return None
        scan = self._scan = Scan(self._inodes, self._store, self._merger, self._subtree_lock, top, names=self._most)

        async def run() -> None:
            try:
                for directory in await scan.run():
                    if directory.now is not None:
                        self._tell(directory, directory.now, 0)
            finally:
                self._scan = None

        return run

    async def scanned(self, inode: Inode) -> None:
        """Waits a moment for the scan that is about to show this directory, if there is one."""
        scan = self._scan
        if scan is not None and self._inodes.is_under(inode, scan.top):
            with trio.move_on_after(PATIENCE):
                await scan.done.wait()

    async def first_page(self, directory: Directory) -> Pass:
        """A recent pass of which at least one page is here. Raises what the bucket answers."""
        await self.scanned(directory.inode)
        _, walk = self.walk(directory.inode)
        if not walk.token and not walk.done:
            await self.advance(directory, walk, have=0)
        return walk

    async def advance(self, directory: Directory, walk: Pass, *, have: int) -> None:
        """Asks for the next page, unless somebody did while this waited and there are more than `have` names."""
        async with directory.lock:
            if walk.done or len(walk.names) > have:
                return
            page = await self._page(directory, walk)
            if page is not None:
                known = len(walk.names)
                self._merger.page(directory, walk, page)
                walk.edge = known or len(walk.names) // 2
                self._tell(directory, walk, known)

    async def _page(self, directory: Directory, walk: Pass) -> Page | None:
        """The next page of a pass; None where the directory has left the tree, which ends it.

        While a directory is renamed its keys go one after the other, so that is waited for. Where another pass has
        begun meanwhile, what was done here since this page was asked for is noted no more: it is asked for again.
        """
        inode = directory.inode
        while True:
            await self._subtree_lock.released(inode)
            if not self._inodes.has_name(inode):
                break
            walk.follow(self._inodes.key(inode))
            walk.sent = trio.current_time()
            with self._subtree_lock.watched(inode) as watch:
                page = await self._store.list(walk.prefix, after=walk.after, token=walk.token)
            is_there = self._inodes.has_key(inode, walk.prefix) and not watch.was_renamed
            if is_there and directory.unnoted < walk.sent:
                if page.token:
                    check_progress(f"ListObjectsV2 {walk.prefix!r}", page.token, walk.tokens)
                return page
        walk.done = True
        return None

    async def look_around(self, directory: Directory, after: str, *, is_needed: Callable[[], bool]) -> None:
        """Asks for a page of the keys that follow `after`, a segment: what it shows is recent then, and the window.

        It does not where that is not needed any more, for another task has asked while this one waited.
        """
        async with directory.lock:
            if not is_needed():
                return
            walk = Pass(self._inodes.key(directory.inode))
            walk.begin = walk.after = walk.reach = walk.prefix + after
            page = await self._page(directory, walk)
            if page is not None:
                self._merger.window(directory, walk, page)
                is_whole = directory.doubted < walk.started  # else what was made since may have been forgotten again
                directory.window = walk if is_whole and is_ordered(page) else None

    def reached(self, directory: Directory, walk: Pass, at: int) -> None:
        """A reader of a pass has come to the name at this index. May ask for the page that it will want next."""
        if at >= walk.edge and not walk.done:
            walk.edge = math.inf  # until that page is there: a failure is left to who cannot go on without it
            self._spawn(lambda: self._ahead(directory, walk))

    def _tell(self, directory: Directory, walk: Pass, first: int) -> None:
        for watcher in self.watchers:
            watcher(directory, walk, first)

    async def _ahead(self, directory: Directory, walk: Pass) -> None:
        try:
            await self.advance(directory, walk, have=len(walk.names))
        except OSError as error:
            log.debug("the next page of %s: %s", walk.prefix, error)

    async def complete(self, inode: Inode) -> Pass:
        """A pass that has seen every name. Raises what the bucket answers."""
        directory, walk = self.walk(inode)
        with closing(Reading(directory, walk)):
            while not walk.done:
                await self.advance(directory, walk, have=len(walk.names))
        return walk
