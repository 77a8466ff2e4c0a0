"""Fetch files and trees ahead: attributes, and bytes as far as the disk cache holds them.

Attributes go into the attribute cache and bytes into the disk cache, past the memory for blocks that are being read;
no byte goes through the kernel. One GET brings a small file's bytes and its attributes; without a disk cache a HEAD
brings the attributes alone. What is here already costs nothing, so one that was called off goes on where it stopped.

The files of one call are never more than the disk cache holds, or the last would push out the first: what does
not fit is left and told. At most `BATCH` files are looked at ahead and `WarmCommand.budget` bytes are in flight.

Concurrency: trio thread only; called off by cancelling it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from sosfs.attributes.writeback import AttributeWriteback
from sosfs.cache.block_fetch import Disk, wrong
from sosfs.cache.blocks import BLOCK, REQUEST, Blocks, Source
from sosfs.concurrency.budgets import Budget
from sosfs.concurrency.tasks import each
from sosfs.errors import Cause, StoreError
from sosfs.ipc.commands import NO_OPTIONS, Names, Options, Tell, Told
from sosfs.namespace.namespace import Namespace
from sosfs.tree.inodes import Inode, Inodes, Known, is_hidden
from sosfs.tree.keys import meant_path

FILES_AT_ONCE = 32  # files side by side: small ones are bound by the round trip
OF_ONE = 4  # requests of one file
IN_FLIGHT = 32 << 20  # bytes
BATCH = 20_000  # files, as many as one scan of a tree shows
NAMED = 20  # files that are named one by one


@dataclass(slots=True)
class Tally:
    """What was done so far."""

    files: int = 0  # that are here now
    total_files: int = 0
    fetched_bytes: int = 0
    here_bytes: int = 0  # that were here already
    total_bytes: int = 0
    unfit_files: int = 0
    unfit_bytes: int = 0
    unfit: list[str] = field(default_factory=list)
    failed_files: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    is_listing: bool = True

    def news(self) -> Told:
        """For the progress bar."""
        done = self.fetched_bytes + self.here_bytes + self.unfit_bytes
        return {
            "files": self.files + self.unfit_files + self.failed_files,
            "total_files": self.total_files,
            "bytes": done,
            "total_bytes": self.total_bytes,
            "listing": self.is_listing,
        }

    def outcome(self, disk: Disk | None) -> Told:
        """For the summary."""
        return {
            "files": self.files,
            "fetched_bytes": self.fetched_bytes,
            "here_bytes": self.here_bytes,
            "unfit_files": self.unfit_files,
            "unfit_bytes": self.unfit_bytes,
            "unfit": self.unfit,
            "failed_files": self.failed_files,
            "failed": self.failed,
            "cache_bytes": disk.capacity if disk is not None else 0,
        }


class WarmCommand:
    """Brings files of a mount near."""

    def __init__(self, inodes: Inodes, namespace: Namespace, attributes: AttributeWriteback, blocks: Blocks) -> None:
        self.budget = Budget(IN_FLIGHT)
        self._inodes = inodes
        self._namespace = namespace
        self._attributes = attributes
        self._blocks = blocks

    async def run(self, paths: Sequence[Names], tell: Tell, options: Options = NO_OPTIONS) -> Told:
        """Warms the files and trees at these paths. Raises OSError for a path that is not there, before it begins."""
        todo = [await self._at(path) for path in paths]
        call = _Call(self, self._inodes, self._namespace, self._attributes, self._blocks, tell)
        await call.run(todo)
        return call.tally.outcome(self._blocks.disk)

    async def _at(self, path: Names) -> Inode:
        at = self._inodes.root
        for name in meant_path(path):
            try:
                at = await self._namespace.lookup(at, name)
            except OSError as error:
                raise OSError(error.errno, error.strerror, os.fsdecode(b"/".join(path))) from error
        return at


class _Call:
    """One call of `WarmCommand.run`."""

    def __init__(
        self,
        warming: WarmCommand,
        inodes: Inodes,
        namespace: Namespace,
        attributes: AttributeWriteback,
        blocks: Blocks,
        tell: Tell,
    ) -> None:
        self.tally = Tally()
        self._budget = warming.budget
        self._inodes = inodes
        self._listings = namespace.listings
        self._attributes = attributes
        self._blocks = blocks
        self._tell = tell
        self._claimed = 0  # bytes of the disk cache that files of this call have or will have

    async def run(self, todo: list[Inode]) -> None:
        """Walks through the trees, and fetches each time that there is enough."""
        todo.reverse()  # the next one is taken from the end
        while todo:
            batch: list[Inode] = []
            while todo and len(batch) < BATCH:
                inode = todo.pop()
                batch.append(inode)
                if inode.is_directory:
                    todo.extend(reversed(await self._entries(inode)))
                else:
                    self.tally.total_files += 1
                    self.tally.total_bytes += inode.size
                self._tell(self.tally.news())
            self.tally.is_listing = bool(todo)
            await each(self._warm, batch, at_once=FILES_AT_ONCE)

    async def _entries(self, inode: Inode) -> list[Inode]:
        try:
            directory = self._listings.directory(inode)
            if not self._listings.is_known(directory):
                scan = self._listings.begin_scan(inode)
                if scan is not None:
                    await scan()
                await self._listings.complete(inode)
            return [one for one in directory.entries.values() if not is_hidden(one)]
        except OSError as error:
            self._failed(inode, error)
            return []

    async def _warm(self, inode: Inode) -> None:
        try:
            if inode.is_directory:
                await self._ask(inode)
                return
            await self._file(inode)
            self.tally.files += 1
        except OSError as error:
            if error.errno == errno.ENOSPC:
                self._unfit(inode)
            elif error.errno == errno.ENOENT:
                self.tally.total_files -= 1  # removed since it was listed
            else:
                self._failed(inode, error)
        self._tell(self.tally.news())

    async def _ask(self, inode: Inode) -> None:
        if inode.known is not Known.ALL and inode.parent is not None:
            await self._attributes.ask_ahead(inode)

    async def _file(self, inode: Inode) -> None:
        key = self._inodes.key(inode)
        try:
            await self._bytes(inode)
        except StoreError as error:
            if error.cause not in (Cause.CONFLICT, Cause.ABSENT):
                raise
            if not await self._attributes.has_moved(inode, key):
                inode = await self._refreshed(inode)
            await self._bytes(inode)
        await self._ask(inode)

    async def _refreshed(self, inode: Inode) -> Inode:
        """What has the name of a file that was replaced since it was listed. Raises ENOENT where nothing has."""
        parent = inode.parent
        await self._attributes.refresh(inode)
        if inode.parent is None and parent is not None:
            found = self._listings.directory(parent).entries.get(inode.name)
            if found is None:
                raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
            return found
        return inode

    async def _bytes(self, inode: Inode) -> None:
        disk, version = self._blocks.disk, inode.version
        is_changing = inode.open_file is not None and inode.open_file.draft is not None
        if disk is None or version is None or not version.size or is_changing:
            return  # what is being changed is on this machine anyway
        source = Source(self._inodes.key(inode), version.etag, version.size)
        if self._claimed + source.size > disk.capacity:
            raise OSError(errno.ENOSPC, "the disk cache is full")
        self._claimed += source.size
        try:
            await self._fetch(inode, source, await disk.missing(source.key, source.etag, source.size))
        except OSError:
            self._claimed -= source.size
            raise

    async def _fetch(self, inode: Inode, source: Source, missing: Sequence[tuple[int, int]]) -> None:
        step = REQUEST // BLOCK
        pieces = [(at, min(at + step, last)) for first, last in missing for at in range(first, last, step)]
        lacking = sum(min(last * BLOCK, source.size) - first * BLOCK for first, last in pieces)
        self.tally.here_bytes += source.size - lacking

        async def fetch(piece: tuple[int, int]) -> None:
            first, last = piece
            size = min(last * BLOCK, source.size) - first * BLOCK
            async with self._budget.holding(size):
                found = await self._blocks.fetching.lay_up(source, first, last)
            self.tally.fetched_bytes += size
            self._tell(self.tally.news())
            if inode.known is not Known.ALL:
                self._attributes.take(inode, found)

        await each(fetch, pieces, at_once=OF_ONE)
        if len(pieces) > 1 and not await self._blocks.fetching.verify_on_disk(source):
            self.tally.fetched_bytes -= lacking
            raise wrong(source)

    # What is told at the end

    def _path(self, inode: Inode) -> str:
        names: list[bytes] = []
        at = inode
        while at.parent is not None:
            names.append(at.name)
            at = at.parent
        return os.fsdecode(b"/".join(reversed(names)))

    def _unfit(self, inode: Inode) -> None:
        self.tally.unfit_files += 1
        self.tally.unfit_bytes += inode.size
        if len(self.tally.unfit) < NAMED:
            self.tally.unfit.append(self._path(inode))

    def _failed(self, inode: Inode, error: OSError) -> None:
        self.tally.failed_files += 1
        if len(self.tally.failed) < NAMED:
            self.tally.failed.append((self._path(inode), error.strerror or str(error)))
