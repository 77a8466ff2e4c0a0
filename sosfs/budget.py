"""A bound on bytes in flight: whoever wants to hold a large body waits here until there is room.

Concurrency: trio thread only; first come, first served, so that a large request is never starved.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


class Budget:
    """`limit` bytes shared by all who ask; a single request above the limit gets all of it, alone."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._waiting: deque[tuple[int, trio.Event]] = deque()

    @asynccontextmanager
    async def holding(self, size: int) -> AsyncIterator[None]:
        """Waits for `size` bytes and holds them for the length of the block."""
        size = min(size, self.limit)
        await self._take(size)
        try:
            yield
        finally:
            self.used -= size
            self._wake()

    async def _take(self, size: int) -> None:
        if not self._waiting and self.used + size <= self.limit:
            self.used += size
            return
        entry = (size, trio.Event())
        self._waiting.append(entry)
        try:
            await entry[1].wait()
        except trio.Cancelled:
            if entry in self._waiting:
                self._waiting.remove(entry)
            else:
                self.used -= size
            self._wake()
            raise

    def _wake(self) -> None:
        while self._waiting and self.used + self._waiting[0][0] <= self.limit:
            size, event = self._waiting.popleft()
            self.used += size
            event.set()
