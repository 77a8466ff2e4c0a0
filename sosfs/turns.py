"""Taking turns: one at a time, first come first served.

Unlike `trio.Lock`, taking a turn that nobody else wants is no checkpoint: that is a round of the loop with a system
call, and a file that is closed would take five.

Concurrency: trio thread only.
"""

from __future__ import annotations

from types import TracebackType

import trio


class Turns:
    """Who is within `async with turns` is alone there."""

    __slots__ = ("_waiting", "taken")

    def __init__(self) -> None:
        self.taken = False
        self._waiting = trio.lowlevel.ParkingLot()

    async def __aenter__(self) -> None:
        if self.taken:
            await self._waiting.park()  # who leaves hands it on
        self.taken = True

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        if self._waiting:
            self._waiting.unpark()
        else:
            self.taken = False
