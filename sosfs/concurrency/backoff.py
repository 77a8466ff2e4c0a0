"""Pauses between tries that all end at once when there is reason to hope.

They grow with each try, and all end at once when there is reason to hope: the server has taken a new key.

Concurrency: trio thread only.
"""

from __future__ import annotations

import trio


class Backoff:
    """Where those wait who will try again."""

    def __init__(self) -> None:
        self._waiting = trio.lowlevel.ParkingLot()

    async def pause(self, seconds: float) -> bool:
        """Waits; whether `hurry` has ended it early."""
        with trio.move_on_after(seconds) as waited:
            await self._waiting.park()
        return not waited.cancelled_caught

    def hurry(self) -> None:
        """Whoever waits tries now."""
        self._waiting.unpark_all()
