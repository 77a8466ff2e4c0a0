"""Forget what is cached of files and trees.

Forgotten are blocks in memory and on disk, remembered attributes, listings (that of the directory above too, which
shows the name), and in the kernel attributes, pages and absent names: whoever looks next, asks the bucket.
What the bucket lacks stays, and so does a file that is open for writing. An open file keeps its version: where
another writer has replaced it, reading on is ESTALE.

No request is made. A path need not be known, for it may be new in the bucket. Of files that were not looked at
since the mount began, those are forgotten whose attributes are remembered.

Concurrency: trio thread only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import trio

from sosfs.cache.attributes import AttributeCache, place_of
from sosfs.cache.blocks import Blocks
from sosfs.files.commits import Commits
from sosfs.files.open_file import opened
from sosfs.files.page_cache import PageCache, PageNotifier
from sosfs.fuse.negative_entries import NegativeEntries
from sosfs.ipc.commands import NO_OPTIONS, Names, Options, Tell, Told
from sosfs.tree import keys
from sosfs.tree.inodes import NO_VERSION, Inode, Inodes, Known

ROWS = 2000  # remembered objects that are forgotten without a pause
Named = tuple[str, str, int]  # key, ETag, size: a version as the disk cache names it


@dataclass(slots=True)
class _Found:
    """What was found to be forgotten."""

    folders: set[str] = field(default_factory=set)  # prefixes: "" or ending in "/"
    keys: set[str] = field(default_factory=set)
    versions: set[Named] = field(default_factory=set)
    kept: set[str] = field(default_factory=set)  # keys
    kept_versions: set[Named] = field(default_factory=set)
    inodes: list[Inode] = field(default_factory=list)  # that the kernel knows
    lent: list[int] = field(default_factory=list)  # numbers of files that it alone knows any more
    directories: set[int] = field(default_factory=set)

    def applies_to(self, key: str) -> bool:
        """Whether a key's blocks go."""
        return key not in self.kept and (key in self.keys or any(key.startswith(folder) for folder in self.folders))


class DropCommand:
    """Forgets what a mount has cached."""

    def __init__(
        self,
        inodes: Inodes,
        cache: AttributeCache,
        blocks: Blocks,
        commits: Commits,
        pages: PageCache,
        negative_entries: NegativeEntries,
        kernel: PageNotifier,
    ) -> None:
        self._inodes = inodes
        self._cache = cache
        self._blocks = blocks
        self._commits = commits
        self._pages = pages
        self._negative_entries = negative_entries
        self._kernel = kernel

    async def run(self, paths: Sequence[Names], tell: Tell, options: Options = NO_OPTIONS) -> Told:
        """Forgets the files and trees at these paths; tells how many files, and how many bytes of them."""
        await self._let_go()
        found = _Found()
        for path in paths:
            self._find(path, found)
        memory = self._blocks.forget(found.applies_to)
        await self._rows(found)
        disk = await self._disk(found)
        for inode in found.inodes:
            await self._pages.wait_for(inode)
        await self._kernel.forget(
            [*(inode.number for inode in found.inodes), *found.lent], self._negative_entries.take(found.directories)
        )
        return {
            "files": len(found.keys),
            "memory_bytes": memory,
            "disk_bytes": disk,
            "kept_files": len(found.kept),
            "kept": sorted(found.kept)[:ROWS],
        }

    async def _let_go(self) -> None:
        """Drafts that are in the bucket already, and wait for no more than the task that sent them."""
        for inode in list(self._commits.drafts):
            open_file = opened(inode)
            if open_file is not None and not open_file.writers and not open_file.lock.taken:
                await self._commits.let_go(inode, open_file)

    # What is known of a path, without asking

    def _find(self, path: Sequence[bytes], found: _Found) -> None:
        at, prefix = self._inodes.root, self._inodes.prefix
        path = keys.meant_path(path)
        for depth, name in enumerate(path):
            below = at.directory.entries.get(name) if at.directory is not None else None
            if depth == len(path) - 1 or below is None:
                self._doubt_listing(at, found)
            if below is None:
                segments = [keys.parse(each).segment for each in path[depth:]]
                self._unknown(self._inodes.key(at) + "/".join(segments), found)
                found.lent += self._inodes.lent(at)
                return
            at, prefix = below, self._inodes.key(below)
        for inode in _tree(at):
            self._inode(inode, found)
        if at.is_directory:
            found.folders.add(prefix)

    def _unknown(self, key: str, found: _Found) -> None:
        remembered = self._cache.find(*place_of(key))
        if remembered is not None:
            found.keys.add(key)
            found.versions.add((key, remembered.version.etag, remembered.version.size))
            self._cache.drop(key)
        found.folders.add(f"{key}/")

    def _doubt_listing(self, inode: Inode, found: _Found) -> None:
        if inode.directory is not None:
            inode.directory.forgotten = trio.current_time()
        found.directories.add(inode.number)

    def _inode(self, inode: Inode, found: _Found) -> None:
        key, open_file = self._inodes.key(inode), opened(inode)
        version = inode.version
        named = {(key, version.etag, version.size)} if version is not None else set()
        if inode.is_directory:
            self._doubt_listing(inode, found)
            found.lent += self._inodes.lent(inode)
        elif inode.pins or (open_file is not None and open_file.writers):  # a draft is a pin
            found.kept.add(key)
            found.kept_versions |= named
            return
        else:
            found.keys.add(key)
            found.versions |= named
        if inode.lookups:
            found.inodes.append(inode)
        if inode.pins or inode.parent is None:
            return
        if open_file is not None:
            open_file.source = None
        inode.pages = NO_VERSION
        inode.known = min(inode.known, Known.SIZE)
        inode.checked = inode.acl_private_until = 0.0
        self._cache.drop(key)

    # What is kept elsewhere

    async def _rows(self, found: _Found) -> None:
        for folder in found.folders:
            while rows := self._cache.take_under(folder, limit=ROWS):
                for key, version in rows:
                    if key not in found.kept and not key.endswith("/"):
                        found.keys.add(key)
                        found.versions.add((key, version.etag, version.size))
                await trio.lowlevel.checkpoint()

    async def _disk(self, found: _Found) -> int:
        disk = self._blocks.disk
        if disk is None:
            return 0
        if self._inodes.prefix in found.folders:
            return await disk.forget_all(but=found.kept_versions)
        return await disk.forget(found.versions - found.kept_versions)


def _tree(top: Inode) -> Iterator[Inode]:
    todo = [top]
    while todo:
        inode = todo.pop()
        yield inode
        if inode.directory is not None:
            todo.extend(inode.directory.entries.values())
