"""Which byte ranges the parts of a multipart upload hold.

Part sizes grow so that 4 TiB fits 10,000 parts: with 8 MiB, 1,000 parts of 8, 1,000 of 32 and 8,000 of 520 MiB.

Pure.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass

from sosfs.s3.protocol import PARTS_MAX

PART_MIN = 5 << 20  # bytes of any part but the last (S3 API, UploadPart)
SHARE = 8  # parts that a small disk has room for, at least
_TIERS = ((1000, 1), (1000, 4), (PARTS_MAX - 2000, 65))  # how many parts, of how many times the first size


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

    def __init__(self, first: int) -> None:
        self.first = first
        self.single = 2 * first  # bytes; up to here one PUT is cheaper than three requests

    def at(self, offset: int) -> Range:
        """The part that holds the byte at `offset`. Raises OSError EFBIG past the last part."""
        number, start = 1, 0
        for count, times in _TIERS:
            size = self.first * times
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
