"""Put pages into the kernel's page cache, and take out those that are stale.

A file that is read at random places is fetched in regions (see `readahead`); what came is put into the kernel's
cache, so that the next read there costs no request at all, to the bucket or to this process, and the
memory it takes is the kernel's to give back.

The kernel takes what it is given, over what a program has just written, too. So nothing is given of a file
that is open for writing, or whose pages are of another version; and who is about to write, or opens a new version,
first waits until what is being given has arrived.

Concurrency: trio thread only; the giving itself blocks (on a page that a read under way has locked) and so
runs in a thread. It can't be cut short, so `wait_for` waits for as long as a copy takes.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Protocol

import trio

from sosfs.cache.blocks import BLOCK, Run, Source, Spawn
from sosfs.cache.verification import Verification
from sosfs.concurrency.interrupt import waited
from sosfs.files.open_file import opened
from sosfs.tree.inodes import Inode, Inodes

log = logging.getLogger(__name__)

WRONG = "?"  # the version of pages that turned out wrong: no ETag
COPIES_AT_ONCE = 2  # copies into the kernel; one does 2 GB/s and more


class PageNotifier(Protocol):
    """What can be said to the kernel unasked. Each raises what it refuses."""

    def give(self, number: int, offset: int, body: Any) -> None:
        """Puts a buffer of bytes into the pages of an inode. Blocks."""

    async def forget(self, numbers: Sequence[int], names: Sequence[tuple[int, bytes]]) -> None:
        """Forgets attributes and pages of inodes, and what it knows of names in directories."""

    async def forget_attributes(self, number: int) -> None:
        """Forgets the attributes of an inode, the size among them."""


class PageCache:
    """The way into the kernel's page cache. `kernel` None: there is none."""

    def __init__(self, inodes: Inodes, spawn: Spawn, kernel: PageNotifier | None) -> None:
        self._inodes = inodes
        self._spawn = spawn
        self._kernel = kernel
        self._limiter = trio.CapacityLimiter(COPIES_AT_ONCE)
        self._giving: defaultdict[int, set[trio.Event]] = defaultdict(set)  # what each inode is being given

    def hold(self, inode: Inode) -> bool:
        """Whether the kernel's pages of a file are of the version that an open gets; from now on they are."""
        version = inode.version.etag if inode.version is not None else ""
        before, inode.pages = inode.pages, version
        return before in ("", version)

    def bring(self, inode: Inode, source: Source, runs: Iterable[Run]) -> None:
        """Gives the kernel what `runs` fetch, once they are here; does not wait. What cannot be given is left."""
        if self._kernel is not None:
            for run in runs:
                self._spawn(partial(self._bring, self._kernel.give, inode, source, run))

    async def wait_for(self, inode: Inode) -> None:
        """Waits until nothing is being given to this inode: from then to the next wait it may be changed."""
        while events := self._giving.get(inode.number):
            await waited(next(iter(events)).wait)

    def watch(self, inode: Inode, running: Verification | None) -> None:
        """The kernel was given bytes of an inode that are still being verified: it forgets them if they are wrong."""
        if running is not None and inode not in running.on_wrong:
            running.on_wrong[inode] = partial(self._distrust, inode)

    def _distrust(self, inode: Inode) -> None:
        """From the next open on nobody sees these pages; who has the file open may, until the kernel has dropped them.

        That waits for pages which a read under way has locked, so it is not waited for.
        """
        inode.pages = WRONG
        if self._kernel is not None:
            self._spawn(partial(self._drop_wrong, self._kernel, inode))

    async def _drop_wrong(self, kernel: PageNotifier, inode: Inode) -> None:
        await self.wait_for(inode)
        try:
            await kernel.forget([inode.number], [])
        except OSError as error:
            log.warning("the kernel keeps wrong pages of inode %d: %s", inode.number, error)

    async def doubt(self, inode: Inode) -> None:
        """Another version of a file is there than the kernel was told of: it asks for the size before it trusts it."""
        if self._kernel is not None:
            try:
                await self._kernel.forget_attributes(inode.number)
            except OSError as error:
                log.debug("the kernel keeps the attributes of inode %d: %s", inode.number, error)

    async def forget(self, inode: Inode) -> None:
        """The kernel's pages of a file are not what the bucket has: they go, with its attributes."""
        await self._forget([inode.number], [])

    async def forget_name(self, parent: Inode, name: bytes) -> None:
        """The kernel asks again what a name leads to."""
        await self._forget([], [(parent.number, name)])

    async def _forget(self, numbers: Sequence[int], names: Sequence[tuple[int, bytes]]) -> None:
        if self._kernel is not None:
            try:
                await self._kernel.forget(numbers, names)
            except OSError as error:
                log.debug("the kernel does not forget: %s", error)

    async def close(self) -> None:
        """Gives nothing from now on and waits for what is on its way: the kernel's connection may then go."""
        self._kernel = None
        for events in tuple(self._giving.values()):
            for event in tuple(events):
                await event.wait()

    async def _bring(self, give: Callable[[int, int, Any], None], inode: Inode, source: Source, run: Run) -> None:
        await run.done.wait()
        if run.error is not None:
            return  # whoever reads there asks again, and is told
        async with self._limiter:
            if self._kernel is None or not self._may_give(inode, source):
                return
            given = trio.Event()
            self._giving[inode.number].add(given)
            try:
                await trio.to_thread.run_sync(give, inode.number, run.first * BLOCK, run.body)
            except OSError as error:
                log.debug("the kernel does not take pages of inode %d: %s", inode.number, error)
            finally:
                self._given(inode, given)

    def _given(self, inode: Inode, given: trio.Event) -> None:
        given.set()
        self._giving[inode.number].discard(given)
        if not self._giving[inode.number]:
            del self._giving[inode.number]

    def _may_give(self, inode: Inode, source: Source) -> bool:
        """Whether the kernel's pages of the inode are of this version, and nobody can be writing to them."""
        open_file = opened(inode)
        return (
            self._inodes.find(inode.number) is inode
            and inode.pages == source.etag
            and inode.version is not None
            and inode.version.etag == source.etag
            and (open_file is None or (open_file.draft is None and open_file.writers == 0))
        )
