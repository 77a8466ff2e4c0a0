"""Which byte ranges the parts of a multipart upload hold.

Part sizes double by thousands, so that 4 TiB fits 10,000 parts: with 8 MiB, 1,000 parts of 8 MiB, 1,000 of 16, and
so on; a file of 40 GB has parts of 64 MiB at its end. An upload keeps the sizes that it began with, also over a crash.

Pure.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from sosfs.config.choices import PART_MAX
from sosfs.s3.protocol import PARTS_MAX

PART_MIN = 5 << 20  # bytes of any part but the last (S3 API, UploadPart)
SHARE = 8  # parts that a small disk has room for, at least
Tiers = tuple[tuple[int, int], ...]  # how many parts, of how many times the first size
DOUBLING: Tiers = tuple((1000, 1 << step) for step in range(PARTS_MAX // 1000))
EARLIER: Tiers = ((1000, 1), (1000, 4), (PARTS_MAX - 2000, 65))  # what journals of older versions may hold


def fitting(size: int, disk: int) -> int:
    """The size of the first parts: `size` bytes, or less where several of them would not fit on the `disk`."""
    return min(size, max(PART_MIN, disk // SHARE))


@dataclass(frozen=True, slots=True)
class Range:
    """The bytes `[start, stop)` that part `number` holds."""

    number: int
    start: int
    stop: int


class PartPlan:
    """Which bytes each part number holds, whatever the file's size will be."""

    def __init__(self, first: int, tiers: Tiers | None = None) -> None:
        self.first = first
        self._tiers = DOUBLING if tiers is None else tiers
        self.single = 2 * first  # bytes; up to here one PUT is cheaper than three requests

    def at(self, offset: int) -> Range:
        """The part that holds the byte at `offset`. Raises OSError EFBIG past the last part."""
        number, start = 1, 0
        for count, times in self._tiers:
            size = min(PART_MAX, self.first * times)
            if offset < start + count * size:
                steps = (offset - start) // size
                return Range(number + steps, start + steps * size, start + (steps + 1) * size)
            number, start = number + count, start + count * size
        raise OSError(errno.EFBIG, "more than 10,000 parts")

    def ranges(self, size: int, *, begin: int = 0) -> Iterator[Range]:
        """The parts of a file of `size` bytes, from the one that begins at `begin` on."""
        start = begin
        while start < size:
            part = self.at(start)
            yield Range(part.number, part.start, min(size, part.stop))
            start = part.stop

    def has(self, parts: Sequence[Range]) -> bool:
        """Whether all of these are parts of this plan, of which the last part of a file may be shorter."""
        try:
            last = max((part.number for part in parts), default=0)
            return all(_is_of(self.at(part.start), part, is_last=part.number == last) for part in parts)
        except OSError:
            return False


def _is_of(planned: Range, part: Range, *, is_last: bool) -> bool:
    return part == planned or (is_last and replace(planned, stop=part.stop) == part and part.stop < planned.stop)


def plan_of(parts: Sequence[Range], usual: PartPlan) -> PartPlan:
    """The plan that an upload with these parts was begun with: `usual`, unless they are none of its parts.

    ValueError where they are of no plan.
    """
    if usual.has(parts):
        return usual
    for tiers in (DOUBLING, EARLIER):
        number = 0
        for count, times in tiers:
            sizes = {part.stop - part.start for part in parts if number < part.number <= number + count}
            for size in sorted(sizes, reverse=True):  # the last part of a file is shorter
                plan = PartPlan(max(1, size // times), tiers)
                if plan.has(parts):
                    return plan
            number += count
    raise ValueError("parts of no plan")
