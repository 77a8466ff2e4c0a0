"""Shared and exclusive locks on subtrees: no key changes while bytes travel to it.

Commits, attribute writes, and what makes or removes a name pass together; a rename waits until none is under
way in its subtree and holds new ones back until it is done. A task that renames may itself commit inside: it
uses `shared` before it closes the gate, never within. Who only asks the bucket holds nobody back, and is told whether
a rename has come between (`watched`).

Concurrency: trio thread only. Passing an open gate is no checkpoint: every file that is written passes it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial

import trio

from sosfs.concurrency.interrupt import waited
from sosfs.concurrency.locks import Scope
from sosfs.tree.inodes import Inode, Inodes


class Watch:
    """Whether an inode is renamed, or a directory that it is in, while somebody looks."""

    __slots__ = ("inode", "was_renamed")

    def __init__(self, inode: Inode, *, was_renamed: bool) -> None:
        self.inode = inode
        self.was_renamed = was_renamed


class SubtreeLock:
    """Who is under way, and which subtrees are closed."""

    def __init__(self, inodes: Inodes) -> None:
        self._inodes = inodes
        self._shared: dict[Inode, int] = {}
        self._exclusive: list[Inode] = []
        self._watches: list[Watch] = []
        self._changed = trio.lowlevel.ParkingLot()

    def shared(self, inode: Inode) -> Scope:
        """For one commit: within it the inode's key stays as it is."""
        return Scope(partial(self._enter, inode), partial(self._leave, inode))

    def is_exclusive(self, inode: Inode) -> bool:
        """Whether an inode is being renamed, or a directory that it is in."""
        return any(self._inodes.is_under(inode, top) for top in self._exclusive)

    async def released(self, inode: Inode) -> None:
        """No rename of the inode is under way afterwards; unlike `shared` this keeps none from beginning."""
        while self.is_exclusive(inode):
            await waited(self._changed.park)

    @contextmanager
    def watched(self, inode: Inode) -> Iterator[Watch]:
        """For a question to the bucket: of what is renamed within, be it back or not, half may be answered."""
        watch = Watch(inode, was_renamed=self.is_exclusive(inode))
        self._watches.append(watch)
        try:
            yield watch
        finally:
            self._watches.remove(watch)

    async def _enter(self, inode: Inode) -> None:
        await self.released(inode)
        self._shared[inode] = self._shared.get(inode, 0) + 1

    def _leave(self, inode: Inode) -> None:
        self._shared[inode] -= 1
        if not self._shared[inode]:
            del self._shared[inode]
        self._changed.unpark_all()

    @asynccontextmanager
    async def exclusive(self, *subtrees: Inode) -> AsyncIterator[None]:
        """For one rename: within it no commit is under way in the subtrees."""
        while self._is_busy(subtrees):
            await waited(self._changed.park)
        self._exclusive.extend(subtrees)
        for watch in self._watches:
            watch.was_renamed |= self.is_exclusive(watch.inode)
        try:
            yield
        finally:
            for subtree in subtrees:
                self._exclusive.remove(subtree)
            self._changed.unpark_all()

    def _is_busy(self, subtrees: tuple[Inode, ...]) -> bool:
        under = self._inodes.is_under
        if any(under(inode, top) for top in subtrees for inode in self._shared):
            return True
        return any(under(top, held) or under(held, top) for top in subtrees for held in self._exclusive)
