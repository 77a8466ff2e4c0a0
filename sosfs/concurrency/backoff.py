"""Pauses between tries that all end at once when there is reason to hope.

They grow with each try, and end early when there is reason to hope: the server has taken a new key, or a user asks for
a try. Who waits can be asked for, so that a user is told when it goes on.

Concurrency: trio thread only.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Mapping

import trio


class _Pause:
    """One that waits until `end`, a trio time."""

    def __init__(self, end: float) -> None:
        self.end = end
        self.hurried = trio.Event()


class Backoff:
    """Where those wait who will try again."""

    def __init__(self) -> None:
        self._pauses: dict[Hashable, list[_Pause]] = {}  # by who waits

    async def pause(self, seconds: float, who: Hashable = None) -> bool:
        """Waits; whether `hurry` has ended it early. Several may wait as the same `who`."""
        pause = _Pause(trio.current_time() + seconds)
        self._pauses.setdefault(who, []).append(pause)
        try:
            with trio.move_on_after(seconds) as waited:
                await pause.hurried.wait()
        finally:
            self._forget(who, pause)
        return not waited.cancelled_caught

    def _forget(self, who: Hashable, pause: _Pause) -> None:
        pauses = self._pauses[who]
        pauses.remove(pause)
        if not pauses:
            del self._pauses[who]

    def hurry(self) -> None:
        """Whoever waits tries now."""
        for who in list(self._pauses):
            self.hurry_one(who)

    def hurry_one(self, who: Hashable) -> None:
        """Those that wait as `who` try now."""
        for pause in self._pauses.get(who, ()):
            pause.hurried.set()

    @property
    def ends(self) -> Mapping[Hashable, float]:
        """When each of those who wait tries again, in seconds since the epoch."""
        offset = time.time() - trio.current_time()
        return {who: min(pause.end for pause in pauses) + offset for who, pauses in self._pauses.items()}
