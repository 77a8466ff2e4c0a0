"""The sign that nobody waits for a request any more.

Whoever waits for a request sets it, in any thread; the thread that makes the request sees it within a second, in
the middle of a transfer or asleep between two tries, and ends with EINTR. Whether the server had done the request
by then nobody knows.
"""

from __future__ import annotations

import errno
import threading

from sosfs.errors import StoreError


class Interrupt:
    """Set once, for good. One may stand for any number of requests."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        """Ends the requests it was given to, and those that begin with it later."""
        self._event.set()

    @property
    def is_set(self) -> bool:
        """Whether the requests are to end."""
        return self._event.is_set()

    def sleep(self, seconds: float) -> None:
        """Sleeps until the time is over or this is set."""
        self._event.wait(seconds)

    def check(self, request: str) -> None:
        """Raises EINTR for `request` once this is set."""
        if self._event.is_set():
            raise StoreError(errno.EINTR, request)
