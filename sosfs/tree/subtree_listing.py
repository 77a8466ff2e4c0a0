"""List a whole subtree at once, thousands of keys a request.

A LIST without delimiter gives every key below a prefix in order, so the directories can be told from it: those
whose keys have all been shown are complete, and become a finished pass each, as if they had been
listed one by one. A scan is bounded; what it did not reach is listed as ever.

Concurrency: trio thread only. A pass counts as begun when the first request that could show its keys was
sent, so whatever this mount changes meanwhile is newer than the scan.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import trio

from sosfs.s3.paging import check_progress
from sosfs.s3.protocol import Listed, ObjectStore, Page
from sosfs.tree.inodes import Directory, Inode, Inodes, Pass
from sosfs.tree.keys import name_of
from sosfs.tree.listing_merge import Merger
from sosfs.tree.subtree_lock import SubtreeLock

PAGES = 20  # of `PAGE` keys: what a walk gets ahead by, and about 10 MB of memory
PAGE = 1000
SHARE = 4  # of the names that may be known, the part that a scan may show at once


@dataclass(slots=True)
class _Folder:
    """What a scan has shown of one directory."""

    begun: float
    objects: list[Listed] = field(default_factory=list)
    prefixes: list[str] = field(default_factory=list)


class Scan:
    """One scan of a subtree."""

    def __init__(
        self,
        inodes: Inodes,
        store: ObjectStore,
        merger: Merger,
        subtree_lock: SubtreeLock,
        top: Inode,
        *,
        names: int,
    ) -> None:
        self.top = top
        self._pages = max(1, min(PAGES, names // (SHARE * PAGE)))
        self.done = trio.Event()
        self._inodes = inodes
        self._store = store
        self._merger = merger
        self._subtree_lock = subtree_lock
        self._prefix = inodes.key(top)
        self._folders: dict[str, _Folder] = {}
        self._last = ""
        self._is_ordered = True

    async def run(self) -> list[Directory]:
        """Scans and returns the directories that are known now, the upper ones first. Raises StoreError."""
        begun = trio.current_time()
        try:
            with self._subtree_lock.watched(self.top) as watch:
                ended = await self._list()
            if not self._inodes.has_key(self.top, self._prefix) or watch.was_renamed:
                return []  # what was shown may be half of it
            return self._merge(begun, ended=ended)
        finally:
            self.done.set()

    async def _list(self) -> bool:
        """Asks for pages; whether that was all."""
        token, pages, ended, tokens = "", 0, False, set[str]()
        while not ended and pages < self._pages:
            when = trio.current_time()
            page = await self._store.list(self._prefix, delimiter="", token=token)
            for listed in page.objects:
                self._show(listed, when)
            token, pages, ended = page.token, pages + 1, not page.token
            if token:
                check_progress(f"ListObjectsV2 {self._prefix!r}", token, tokens)
        return ended

    def _show(self, listed: Listed, when: float) -> None:
        self._is_ordered = self._is_ordered and self._last < listed.key
        self._last = listed.key
        folder = self._prefix
        self._folders.setdefault(folder, _Folder(when))
        at = listed.key.find("/", len(folder))
        while at >= 0:
            below = listed.key[: at + 1]
            if below not in self._folders:
                self._folders[folder].prefixes.append(below)
                self._folders[below] = _Folder(when)
            folder = below
            at = listed.key.find("/", len(folder))
        self._folders[folder].objects.append(listed)

    def _merge(self, begun: float, *, ended: bool) -> list[Directory]:
        """Makes a pass of each directory that was shown whole; one that is the scan's last may have more.

        Only the order of the keys tells that; where they have none, no part of them is whole, and the place of what was
        made since the scan began (`begun`) may have been passed before its directory was shown.
        """
        found: list[Directory] = []
        if not self._is_ordered:
            if not ended:
                return found
            for folder in self._folders.values():
                folder.begun = begun
        for prefix in sorted(self._folders):
            if not ended and self._last.startswith(prefix):
                continue
            directory = self._directory(prefix)
            if directory is not None:
                found.append(directory)
        return found

    def _directory(self, prefix: str) -> Directory | None:
        inode = self._inode(prefix)
        if inode is None:
            return None
        if inode.directory is None:
            inode.directory = Directory(inode)
        directory, shown = inode.directory, self._folders[prefix]
        if directory.now is not None and directory.now.started >= shown.begun:
            return None  # listed by itself meanwhile
        if directory.doubted >= shown.begun:
            return None  # what was made here meanwhile may have been forgotten again
        walk = directory.begin(prefix, started=shown.begun)
        self._merger.page(directory, walk, Page(tuple(shown.objects), tuple(shown.prefixes)))
        return directory

    def _inode(self, prefix: str) -> Inode | None:
        """The inode of a directory that was shown; None where this mount has removed it or made something else."""
        at = self.top
        for segment in prefix[len(self._prefix) :].split("/")[:-1]:
            if at.directory is None:
                at.directory = Directory(at)
            here = at.directory.entries.get(name_of(segment))
            begun = self._folders[self._inodes.key(at) + segment + "/"].begun
            if max(at.directory.touched.get(name_of(segment), -1.0), at.directory.unnoted) >= begun:
                return None  # made or renamed here since: what was shown may be half of it
            if here is None:
                if at.directory.now is not None and at.directory.now.started > begun:
                    return None  # what was asked for later does not show it, or has yet to
                here = self._merger.folder(at.directory, segment, Pass("", started=begun))
            if here is None or not here.is_directory:
                return None
            at = here
        return at
