"""Keeps commits and renames of one subtree apart: a key must not change while bytes travel to it.

Commits, attribute writes, and what makes or removes a name pass together; a rename waits until none is under
way in its subtree and holds new ones back until it is done. A task that renames may itself commit inside: it
uses `passing` before it closes the gate, never within.

Concurrency: trio thread only. Passing an open gate is no checkpoint: every file that is written passes it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import trio

from sosfs.concurrency.interrupt import waited
from sosfs.concurrency.locks import Between
from sosfs.tree.inodes import Inode, Inodes


class Gate:
    """Who is under way, and which subtrees are closed."""

    def __init__(self, inodes: Inodes) -> None:
        self._inodes = inodes
        self._passing: dict[Inode, int] = {}
        self._closed: list[Inode] = []
        self._changed = trio.lowlevel.ParkingLot()

    def passing(self, inode: Inode) -> Between:
        """For one commit: within it the inode's key stays as it is."""
        return Between(partial(self._enter, inode), partial(self._leave, inode))

    def is_closed(self, inode: Inode) -> bool:
        """Whether an inode is being renamed, or a directory that it is in."""
        return bool(self._closed) and any(self._inodes.is_under(inode, closed) for closed in self._closed)

    async def opened(self, inode: Inode) -> None:
        """No rename of the inode is under way afterwards; unlike `passing` this keeps none from beginning."""
        while self.is_closed(inode):
            await waited(self._changed.park)

    async def _enter(self, inode: Inode) -> None:
        await self.opened(inode)
        self._passing[inode] = self._passing.get(inode, 0) + 1

    def _leave(self, inode: Inode) -> None:
        self._passing[inode] -= 1
        if not self._passing[inode]:
            del self._passing[inode]
        if self._changed:
            self._changed.unpark_all()

    @asynccontextmanager
    async def closed(self, *subtrees: Inode) -> AsyncIterator[None]:
        """For one rename: within it no commit is under way in the subtrees."""
        while self._is_busy(subtrees):
            await waited(self._changed.park)
        self._closed.extend(subtrees)
        try:
            yield
        finally:
            for subtree in subtrees:
                self._closed.remove(subtree)
            self._changed.unpark_all()

    def _is_busy(self, subtrees: tuple[Inode, ...]) -> bool:
        under = self._inodes.is_under
        if any(under(inode, top) for top in subtrees for inode in self._passing):
            return True
        return any(under(top, held) or under(held, top) for top in subtrees for held in self._closed)
