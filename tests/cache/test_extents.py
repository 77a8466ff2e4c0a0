"""A set of byte ranges answers as a set of single bytes would, whatever was put in and taken out."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from sosfs.cache.extents import Extents

END = 30  # bytes that are tried


def drawn(draw: random.Random) -> tuple[int, int]:
    """A range, which may be empty or end before it begins."""
    return draw.randrange(END), draw.randrange(END)


def one_by_one(ranges: list[tuple[int, int]]) -> set[int]:
    return {at for start, stop in ranges for at in range(start, stop)}


def runs(members: set[int]) -> list[tuple[int, int]]:
    """The longest ranges that are wholly in a set of bytes."""
    starts = [at for at in range(END + 1) if at in members and at - 1 not in members]
    return [(start, min(at for at in range(start, END + 2) if at not in members)) for start in starts]


def asks(found: Extents, members: set[int], start: int, stop: int) -> None:
    """All questions about `[start, stop)`."""
    asked = set(range(start, stop))
    assert found.covers(start, stop) == (asked <= members)
    assert found.touches(start, stop) == bool(asked & members)
    assert found.total_within(start, stop) == len(asked & members)
    assert one_by_one(list(found.common(((start, stop), (start + 1, stop))))) == asked & members
    pieces = list(found.within(start, stop))
    assert [at for begin, end, _ in pieces for at in range(begin, end)] == list(range(start, stop))
    assert one_by_one([(begin, end) for begin, end, is_in in pieces if is_in]) == asked & members
    assert all(begin < end for begin, end, _ in pieces)
    assert all(one[2] != other[2] for one, other in pairwise(pieces)), "each is as long as can be"


@pytest.mark.parametrize("seed", range(40))
def test_a_set_of_ranges_is_what_a_set_of_bytes_would_be(seed: int) -> None:
    draw, found, members = random.Random(seed), Extents(), set[int]()
    for _ in range(30):
        start, stop = drawn(draw)
        if draw.random() < 0.6:
            found.add(start, stop)
            members |= set(range(start, stop))
        else:
            found.remove(start, stop)
            members -= set(range(start, stop))
        assert list(found) == runs(members), "sorted, and neighbours joined"
        assert bool(found) == bool(members)
        assert found.total == len(members)
        assert list(Extents(runs(members))) == runs(members)
        for _ in range(20):
            asks(found, members, *drawn(draw))
        for size, most in ((1, END), (3, END), (7, 2), (7, END)):
            assert found.cells(size, most=most) == min(most, len({at // size for at in members}))
