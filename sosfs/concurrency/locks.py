"""Locks without a checkpoint where nobody waits.

Unlike with `trio.Lock`, taking a turn that nobody else wants is no checkpoint: that is a round of the loop with a
system call, and a file that is closed would take five.

Concurrency: trio thread only.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import TracebackType

import trio

from sosfs.concurrency.interrupt import waited


class Scope:
    """A block that `enter` waits for and `leave` ends: what `asynccontextmanager` makes, without its generator."""

    __slots__ = ("_enter", "_leave")

    def __init__(self, enter: Callable[[], Awaitable[None]], leave: Callable[[], None]) -> None:
        self._enter = enter
        self._leave = leave

    async def __aenter__(self) -> None:
        await self._enter()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._leave()


class FairLock:
    """First come, first served: who is within `async with turns` is alone there."""

    __slots__ = ("_waiting", "taken")

    def __init__(self) -> None:
        self.taken = False
        self._waiting = trio.lowlevel.ParkingLot()

    async def __aenter__(self) -> None:
        if self.taken:
            await waited(self._waiting.park)  # whoever leaves hands it on
        self.taken = True

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        if self._waiting:
            self._waiting.unpark()
        else:
            self.taken = False
