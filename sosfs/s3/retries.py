"""Which requests are tried again, when, and for how long.

A try that got no answer, or one that says "not now", is made again after a pause that doubles from try to try, up
to `PAUSE_MAX`; of which a part is slept that dice choose ("full jitter"), so that many clients of a server that
comes back do not knock at once. A `Retry-After` is the least that is slept. No count of tries ends it: only the
patience, which is told in seconds from the request's start, and of which no pause sleeps more than is left.

One `Patience` belongs to one request and to its thread.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from sosfs.concurrency.backoff import Doubling
from sosfs.concurrency.interrupt import Interrupt

PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
UNKNOWN_FAILURES = range(512, 600)  # count as 500 (RFC 9110, 15): those of Cloudflare, and of balancers
PASSING_CODES = frozenset({"InternalError", "SlowDown", "ServiceUnavailable", "RequestTimeout"})
PAUSE_FIRST = 0.1  # seconds
PAUSE_MAX = 5.0


def passes(status: int, code: str) -> bool:
    """Whether an answer speaks of the moment, so that the same request may succeed later."""
    return status in PASSING or status in UNKNOWN_FAILURES or code in PASSING_CODES


def retry_after(headers: Mapping[str, str], *, now: Callable[[], float] = time.time) -> float:
    """The seconds for which the server asks to be left alone (RFC 9110, 10.2.3: a number, or a date); else 0."""
    told = headers.get("Retry-After", "").strip()
    if told.isascii() and told.isdigit():
        return float(told[:9])
    try:
        return max(0.0, parsedate_to_datetime(told).timestamp() - now())
    except (ValueError, OverflowError):
        return 0.0


@dataclass(frozen=True, slots=True)
class Clock:
    """How time passes and dice fall; a test has its own."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    dice: Callable[[], float] = random.random


CLOCK = Clock()


class Patience:
    """How much longer one request is tried."""

    def __init__(self, seconds: float, clock: Clock = CLOCK) -> None:
        self._clock = clock
        self._deadline = clock.now() + seconds
        self._pauses = Doubling(PAUSE_FIRST, PAUSE_MAX)
        self.tries = 1

    def wait(self, least: float = 0.0, interrupt: Interrupt | None = None) -> bool:
        """Sleeps until the next try, at least `least` seconds; False, without sleep, where patience is over."""
        left = self._deadline - self._clock.now()
        if left <= 0:
            return False
        pause = min(max(least, self._pauses.take() * self._clock.dice()), left)
        (interrupt.sleep if interrupt else self._clock.sleep)(pause)
        self.tries += 1
        return True
