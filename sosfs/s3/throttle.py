"""How fast requests may go: bytes a second each way (`Rate`), and how many at once (`Congestion`).

One of each belongs to a mount, whatever it serves and however many connections it has. All are called from the threads
that make the requests, under locks of their own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from sosfs.concurrency.interrupt import Interrupt
from sosfs.s3.retries import CLOCK, Clock

SLICE = 0.5  # seconds slept at most before looking whether the caller is still there, or the rate another one
PIECES = 32  # a second: how finely bytes are let through, so that many connections share a low rate evenly
PIECE_MIN, PIECE_MAX = 4 << 10, 512 << 10  # bytes
LEAST = 2  # requests at once, however often the server refuses: one small and one bulk
SLOW_DOWN = frozenset({429, 503})  # statuses by which a server asks for fewer requests
SLOW_DOWN_CODES = frozenset({"SlowDown", "TooManyRequests", "RequestLimitExceeded"})


class Rate:
    """A token bucket: no more than `limit` bytes a second, together, of all who `take`; 0 for as many as come.

    Bytes are counted when they move, and who moved them waits until they were due: so neither many small requests nor
    a few large ones get more. What was not used is forgotten; there is no burst.
    """

    def __init__(self, limit: int = 0, clock: Clock = CLOCK) -> None:
        self._clock = clock
        self._limit = limit
        self._lock = threading.Lock()
        self._due = clock.now()  # when all that was taken by now may have moved
        self._era = 0

    @property
    def limit(self) -> int:
        """Bytes a second, 0 for no limit."""
        return self._limit

    @limit.setter
    def limit(self, limit: int) -> None:
        """Who waits does so no longer; from now on the new one holds."""
        with self._lock:
            self._limit, self._due = limit, self._clock.now()
            self._era += 1

    @property
    def piece(self) -> int:
        """How many bytes should be moved, and taken, together."""
        return min(max(PIECE_MIN, self._limit // PIECES), PIECE_MAX) if self._limit else PIECE_MAX

    def take(self, size: int, interrupt: Interrupt | None = None) -> None:
        """Sleeps until `size` more bytes were due; ends early once `interrupt` is set."""
        if not self._limit:
            return
        with self._lock:
            if not self._limit:
                return
            self._due = due = max(self._due, self._clock.now()) + size / self._limit
            era = self._era
        while era == self._era and not (interrupt and interrupt.is_set):
            left = due - self._clock.now()
            if left <= 0:
                return
            self._clock.sleep(min(left, SLICE))


class Congestion:
    """How many requests the server bears at once: `most`, and fewer while it asks for fewer (503, 429, SlowDown).

    refused  -> half as many; once for all that were sent before the server was heard
    answered -> one more for each full round of good answers, up to `most`
    """

    def __init__(self, most: int, clock: Clock = CLOCK) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._most = most
        self._allowed = most
        self._answers = 0  # good ones since the last change
        self._cut = clock.now()
        self.refusals = 0

    @property
    def most(self) -> int:
        """The most at once."""
        return self._most

    @most.setter
    def most(self, most: int) -> None:
        with self._lock:
            self._most = self._allowed = most
            self._answers = 0

    @property
    def allowed(self) -> int:
        """How many at once now."""
        return self._allowed

    def answered(self) -> None:
        """The server has done what it was asked."""
        if self._allowed >= self._most:
            return
        with self._lock:
            self._answers += 1
            if self._answers >= self._allowed and self._allowed < self._most:
                self._allowed += 1
                self._answers = 0

    def refused(self, since: float) -> None:
        """The server asks for fewer, in answer to what was sent at `since` (this clock's time)."""
        with self._lock:
            self.refusals += 1
            self._answers = 0
            if since >= self._cut:
                self._allowed = max(LEAST, self._allowed // 2)
                self._cut = self._clock.now()

    @property
    def now(self) -> Callable[[], float]:
        """The clock of `refused`."""
        return self._clock.now


class Throttle:
    """What holds for all requests of a mount. `transfers` is how many at once."""

    def __init__(self, *, upload: int = 0, download: int = 0, transfers: int, clock: Clock = CLOCK) -> None:
        self.upload = Rate(upload, clock)
        self.download = Rate(download, clock)
        self.congestion = Congestion(transfers, clock)


def asks_for_fewer(status: int, code: str) -> bool:
    """Whether an answer says that there are too many requests."""
    return status in SLOW_DOWN or code in SLOW_DOWN_CODES
