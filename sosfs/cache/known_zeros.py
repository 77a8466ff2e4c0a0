"""Which ranges of stored versions are zeros, so that nobody has to ask for them.

A mount knows that of what it has stored itself: of holes it made the parts. A version is named by ETag and size, which
for the bytes is as good as its key. It is forgotten with the mount, the versions stored first when there are many.

Concurrency: trio thread only.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from sosfs.cache.extents import Extents

VERSIONS = 1000  # that are remembered
RANGES = 10_000  # of one version

Ranges = Sequence[tuple[int, int]]
NONE: tuple[Ranges, int] = (), 0


class KnownZeros:
    """The zeros of one bucket."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, int], tuple[Ranges, int]] = OrderedDict()  # the ranges, and their sum

    def note(self, etag: str, size: int, ranges: Iterable[tuple[int, int]]) -> None:
        """A version has zeros there; of more than `RANGES` the largest are kept."""
        found = list(Extents(ranges))
        if len(found) > RANGES:
            found = sorted(sorted(found, key=lambda one: one[0] - one[1])[:RANGES])
        if found:
            self._known[etag, size] = found, sum(stop - start for start, stop in found)
            while len(self._known) > VERSIONS:
                self._known.popitem(last=False)

    def copied(self, before: str, after: str, size: int) -> None:
        """The version `after` has the bytes of `before`."""
        if before != after and (found := self._known.get((before, size))):
            self.note(after, size, found[0])

    def within(self, etag: str, size: int, start: int, stop: int) -> Iterable[tuple[int, int]]:
        """What of `[start, stop)` is known to be zeros."""
        ranges, _ = self._known.get((etag, size), NONE)
        for at in range(_first(ranges, start), len(ranges)):
            if ranges[at][0] >= stop:
                return
            yield max(start, ranges[at][0]), min(stop, ranges[at][1])

    def end(self, etag: str, size: int, at: int) -> int:
        """Where the zeros end that the byte `at` is among; `at` where it is none."""
        ranges, _ = self._known.get((etag, size), NONE)
        here = _first(ranges, at)
        return ranges[here][1] if here < len(ranges) and ranges[here][0] <= at else at

    def total(self, etag: str, size: int) -> int:
        """How many bytes of a version are known to be zeros."""
        return self._known.get((etag, size), NONE)[1]


def _first(ranges: Ranges, at: int) -> int:
    """The first range that ends behind `at`."""
    return bisect_right(ranges, at, key=lambda one: one[1])
