"""How long to wait between tries: pauses that double, and end early when there is reason to hope.

All that is tried again waits by `Doubling`: a single request (`s3.retries`, whose dice shorten it) as well as a change
that stays pending for days. The latter wait in a `Backoff`, where all of them are woken when the server has taken a
new key, and one when a user asks for a try; who waits and until when is shown to users.

Concurrency: a `Doubling` has one owner; a `Backoff` is the trio thread's.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Mapping

import trio


class Doubling:
    """The pauses of one that tries again, in seconds: `first`, then twice as long each time, up to `most`."""

    __slots__ = ("_first", "_most", "now")

    def __init__(self, first: float, most: float) -> None:
        self._first = first
        self._most = most
        self.now = first

    def take(self) -> float:
        """The next pause."""
        pause = self.now
        self.now = min(2 * pause, self._most)
        return pause

    def reset(self) -> None:
        """The next one is the first again: something has succeeded, or may."""
        self.now = self._first


class _Pause:
    """One that waits until `end`, a trio time."""

    def __init__(self, end: float) -> None:
        self.end = end
        self.hurried = trio.Event()


class Backoff:
    """Where those wait who will try again."""

    def __init__(self) -> None:
        self._pauses: dict[Hashable, list[_Pause]] = {}  # by who waits

    async def wait(self, pauses: Doubling, who: Hashable = None) -> None:
        """Waits for the next of `pauses`, which begin anew where `hurry` ends it. Several may wait as one `who`."""
        seconds = pauses.take()
        pause = _Pause(trio.current_time() + seconds)
        self._pauses.setdefault(who, []).append(pause)
        try:
            with trio.move_on_after(seconds) as waited:
                await pause.hurried.wait()
        finally:
            self._forget(who, pause)
        if not waited.cancelled_caught:
            pauses.reset()

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
