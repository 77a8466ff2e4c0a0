"""Absent names that the kernel was told to remember.

The kernel answers for such a name by itself, so whoever wants it asked again (`drop`) has to say which one.
What does not fit in here the kernel is not told to remember.

Concurrency: trio thread only.
"""

from __future__ import annotations

from collections.abc import Set

import trio
from cachetools import TTLCache

MOST = 10_000  # names: a compiler looks for some hundred headers in each directory


class NegativeEntries:
    """Names by the number of their directory, each for `ttl` seconds."""

    def __init__(self, ttl: float) -> None:
        self._names: TTLCache[tuple[int, bytes], None] = TTLCache(MOST, ttl, timer=trio.current_time)

    def add(self, directory: int, name: bytes) -> bool:
        """Notes a name that the kernel is about to be told of; False where there is no room."""
        self._names.expire()
        if len(self._names) >= MOST:
            return False
        self._names[directory, name] = None
        return True

    def take(self, directories: Set[int]) -> list[tuple[int, bytes]]:
        """Forgets the names in these directories and returns them."""
        self._names.expire()
        found = [place for place in self._names if place[0] in directories]
        for place in found:
            del self._names[place]
        return found
