"""What goes over the wire of one bucket: bodies on their way up, tries made again, whether the server answers.

Threads tell it, the trio thread asks. Safe from any thread.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Silence:
    """The server does not answer: since when (seconds since the epoch), and what the newest try met, in words."""

    since: float
    why: str


class Sending:
    """One body on its way: how many bytes of the try under way the connection has taken."""

    __slots__ = ("key", "moved")

    def __init__(self, key: str) -> None:
        self.key = key
        self.moved = 0

    def at(self, moved: int) -> None:
        """So many bytes are off; fewer than before where it is sent again."""
        self.moved = moved


class Traffic:
    """Of all lanes to one bucket together."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self.retries = 0  # tries beyond the first
        self.failures = 0  # requests that ended without an answer, or with one that the server failed
        self.silence: Silence | None = None
        self.named: set[str] = set()  # operations to which the server has put its request id into an answer
        self._now = now
        self._lock = threading.Lock()
        self._sending: set[Sending] = set()

    @contextmanager
    def sending(self, key: str) -> Iterator[Sending]:
        """For the length of a request that has a body for `key`."""
        one = Sending(key)
        with self._lock:
            self._sending.add(one)
        try:
            yield one
        finally:
            with self._lock:
                self._sending.discard(one)

    def moved(self) -> dict[str, int]:
        """How many bytes of bodies on their way are off, by key."""
        moved: dict[str, int] = {}
        with self._lock:
            for one in self._sending:
                moved[one.key] = moved.get(one.key, 0) + one.moved
        return moved

    def answered(self) -> None:
        """The server has answered, whatever it said."""
        if self.silence is not None:
            self.silence = None

    def unanswered(self, why: str) -> None:
        """A try got no answer of an S3 server."""
        with self._lock:
            self.silence = Silence(self.silence.since if self.silence else self._now(), why)

    def tried_again(self) -> None:
        """One more try of a request begins."""
        with self._lock:
            self.retries += 1

    def failed(self) -> None:
        """A request is given up."""
        with self._lock:
            self.failures += 1
