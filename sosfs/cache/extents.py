"""A set of half-open byte ranges, sorted and disjoint.

Pure, one owner.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator


class Extents:
    """A set of bytes `[start, stop)`; neighbours are joined, so a sequential writer holds one range."""

    __slots__ = ("_starts", "_stops", "total")

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []
        self.total = 0  # bytes in the set; asked for with every write
        for start, stop in ranges:
            self.add(start, stop)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(zip(self._starts, self._stops, strict=True))

    def __bool__(self) -> bool:
        return bool(self._starts)

    def add(self, start: int, stop: int) -> None:
        """Puts `[start, stop)` into the set."""
        if start >= stop:
            return
        first = bisect_left(self._stops, start)
        last = bisect_right(self._starts, stop)
        if first < last:
            start = min(start, self._starts[first])
            stop = max(stop, self._stops[last - 1])
        self._replace(first, last, [start], [stop])

    def remove(self, start: int, stop: int) -> None:
        """Takes `[start, stop)` out of the set."""
        if start >= stop:
            return
        first = bisect_right(self._stops, start)
        last = bisect_left(self._starts, stop)
        if first >= last:
            return
        left, right = self._starts[first], self._stops[last - 1]
        starts = [s for s, keep in ((left, left < start), (stop, stop < right)) if keep]
        stops = [s for s, keep in ((start, left < start), (right, stop < right)) if keep]
        self._replace(first, last, starts, stops)

    def _replace(self, first: int, last: int, starts: list[int], stops: list[int]) -> None:
        before = sum(self._stops[first:last]) - sum(self._starts[first:last])
        self.total += sum(stops) - sum(starts) - before
        self._starts[first:last], self._stops[first:last] = starts, stops

    def covers(self, start: int, stop: int) -> bool:
        """Whether every byte of `[start, stop)` is in the set."""
        if start >= stop:
            return True
        at = bisect_right(self._starts, start) - 1
        return at >= 0 and self._stops[at] >= stop

    def touches(self, start: int, stop: int) -> bool:
        """Whether any byte of `[start, stop)` is in the set."""
        at = bisect_right(self._stops, start)
        return start < stop and at < len(self._starts) and self._starts[at] < stop

    def total_within(self, start: int, stop: int) -> int:
        """How many bytes of `[start, stop)` are in the set."""
        return sum(end - begin for begin, end, is_in in self.within(start, stop) if is_in)

    def cells(self, size: int, *, most: int) -> int:
        """How many of the cells of `size` bytes, counted from 0, the set has a byte of; does not look beyond `most`."""
        found = reached = at = 0  # all cells below `reached` are counted
        while found < most and (at := bisect_right(self._stops, reached * size, at)) < len(self._stops):
            first, reached = max(reached, self._starts[at] // size), -(-self._stops[at] // size)
            found += reached - first
        return min(found, most)

    def within(self, start: int, stop: int) -> Iterator[tuple[int, int, bool]]:
        """`[start, stop)` cut into ranges that are wholly in (True) or wholly out of (False) the set."""
        at = bisect_right(self._stops, start)
        while start < stop:
            if at >= len(self._starts) or self._starts[at] >= stop:
                yield start, stop, False
                return
            if start < self._starts[at]:
                yield start, self._starts[at], False
                start = self._starts[at]
            end = min(stop, self._stops[at])
            yield start, end, True
            start = end
            at += 1

    def common(self, ranges: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
        """What the set has of these ranges."""
        return tuple((a, b) for start, stop in ranges for a, b, is_in in self.within(start, stop) if is_in)
