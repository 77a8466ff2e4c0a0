"""Bounds on bytes: in flight, kept in memory, waiting for their upload.

Concurrency: trio thread only. Who waits is served in turn with other callers (`FairQueue`), a large request too: what
came later does not overtake it because it is smaller.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import trio

from sosfs.concurrency import fairness
from sosfs.concurrency.fairness import FairQueue
from sosfs.concurrency.interrupt import waited
from sosfs.concurrency.locks import Scope


class Budget:
    """`limit` bytes shared by all who ask; a single request above the limit gets all of it, alone."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._waiting: FairQueue[tuple[int, trio.Event]] = FairQueue()

    def holding(self, size: int) -> Scope:
        """Waits for `size` bytes and holds them for the length of the block."""
        size = min(size, self.limit)
        return Scope(partial(self._take, size), partial(self._give_back, size))

    async def _take(self, size: int) -> None:
        if not self._waiting and self.used + size <= self.limit:
            self.used += size
            return
        caller, entry = fairness.current(), (size, trio.Event())
        self._waiting.put(caller, entry)
        try:
            await waited(entry[1].wait)
        except (trio.Cancelled, OSError):
            if not self._waiting.withdraw(caller, entry):
                self.used -= size
            self._wake()
            raise

    def _give_back(self, size: int) -> None:
        self.used -= size
        self._wake()

    def _wake(self) -> None:
        while self._waiting and self.used + self._waiting.first[0] <= self.limit:
            size, event = self._waiting.take()
            self.used += size
            event.set()


@dataclass(slots=True)
class Allowance:
    """`limit` bytes that nobody waits for: who gets none does without."""

    limit: int
    used: int = 0

    def grant(self, more: int) -> bool:
        """Takes `more` bytes if they are free. Whoever took them lowers `used` again."""
        if self.used + more > self.limit:
            return False
        self.used += more
        return True


class Backlog:
    """Bytes of changes on their way into the bucket, which writers wait for when they are too many."""

    def __init__(self) -> None:
        self.waiting = 0
        self._changed = trio.lowlevel.ParkingLot()

    def fell(self, size: int) -> None:
        """`size` bytes wait no more."""
        self.waiting -= size
        self._changed.unpark_all()

    async def is_under(self, limit: int) -> None:
        """Returns when no more than `limit` bytes wait."""
        while self.waiting > limit:
            await waited(self._changed.park)
