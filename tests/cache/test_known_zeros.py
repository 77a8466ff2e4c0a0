"""What is known to be zeros: it is read as zeros without a request, and nothing else is."""

from __future__ import annotations

import os
import random
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sosfs.cache import known_zeros
from sosfs.cache.blocks import BLOCK, Source
from sosfs.cache.extents import Extents
from sosfs.cache.known_zeros import KnownZeros
from tests.support.composed import Composed
from tests.support.held import Held, opened, put_all

SIZE = 100
ranges = st.lists(st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)), max_size=8)


def points(of: Any) -> set[int]:
    return {at for start, stop in of for at in range(start, stop)}


@settings(deadline=None)
@given(ranges, st.integers(0, SIZE), st.integers(0, SIZE))
def test_each_byte_is_told_as_it_was_noted(noted: list[tuple[int, int]], one: int, other: int) -> None:
    start, stop = sorted((one, other))
    zeros = KnownZeros()
    zeros.note("etag", SIZE, noted)
    known = points(noted)
    found = list(zeros.within("etag", SIZE, start, stop))
    assert points(found) == known & set(range(start, stop))
    assert sum(last - first for first, last in found) == len(points(found)), "each once"
    assert zeros.total("etag", SIZE) == len(known)
    for at in range(SIZE):
        end = zeros.end("etag", SIZE, at)
        assert set(range(at, end)) <= known
        assert end not in known
    assert list(zeros.within("other", SIZE, 0, SIZE)) == list(zeros.within("etag", SIZE + 1, 0, SIZE)) == []
    assert (zeros.end("other", SIZE, 3), zeros.total("etag", SIZE + 1)) == (3, 0)


@settings(deadline=None)
@given(ranges)
def test_neighbours_are_one(noted: list[tuple[int, int]]) -> None:
    found = list(Extents(noted))
    assert points(found) == points(noted)
    assert all(start < stop for start, stop in found)
    assert all(before[1] < after[0] for before, after in pairwise(found)), "sorted, with gaps"


def test_a_copy_has_the_zeros_of_what_it_was_made_of() -> None:
    zeros = KnownZeros()
    zeros.note("before", SIZE, [(3, 7)])
    zeros.copied("before", "after", SIZE)
    zeros.copied("before", "larger", SIZE + 1)
    zeros.copied("unknown", "other", SIZE)
    zeros.copied("before", "before", SIZE)
    assert [zeros.total(*one) for one in (("after", SIZE), ("before", SIZE))] == [4, 4]
    assert [zeros.total(*one) for one in (("larger", SIZE + 1), ("other", SIZE))] == [0, 0]


def test_a_version_without_zeros_takes_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_zeros, "VERSIONS", 2)
    zeros = KnownZeros()
    for etag, noted in (("a", [(0, 1)]), ("b", [(0, 2)]), ("none", []), ("empty", [(5, 5)])):
        zeros.note(etag, SIZE, noted)
    assert [zeros.total(etag, SIZE) for etag in ("a", "b")] == [1, 2]
    zeros.copied("b", "b", SIZE)  # is no news
    zeros.note("c", SIZE, [(0, 3)])
    assert [zeros.total(etag, SIZE) for etag in ("a", "b", "c")] == [0, 2, 3], "what was noted first goes"


def test_of_too_many_ranges_the_largest_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_zeros, "RANGES", 2)
    zeros = KnownZeros()
    zeros.note("two", SIZE, [(0, 1), (10, 11)])
    zeros.note("three", SIZE, [(50, 59), (0, 1), (10, 15)])
    assert list(zeros.within("two", SIZE, 0, SIZE)) == [(0, 1), (10, 11)]
    assert list(zeros.within("three", SIZE, 0, SIZE)) == [(10, 15), (50, 59)]


def test_holes_are_read_without_a_request_and_all_else_with(mount: Composed, store: Held) -> None:
    """Only whole blocks: what is beside a hole in the same block comes from the bucket."""
    body = bytearray(random.Random(5).randbytes(6 * BLOCK + 100))
    holes = [(BLOCK, 3 * BLOCK), (4 * BLOCK + 10, 5 * BLOCK), (5 * BLOCK + 7, len(body))]
    for start, stop in holes:
        body[start:stop] = bytes(stop - start)

    async def main() -> None:
        await put_all(store, {"file": bytes(body)})
        version = store._stored["file"].object.version
        mount.parts.blocks.zeros.note(version.etag, version.size, holes)
        handle, source = await opened(mount, os.O_RDONLY), Source("file", version.etag, version.size)
        mount.parts.blocks.forget(lambda key: True)
        before = store.calls["get"]
        assert bytes(await mount.parts.blocks.read(source, BLOCK, 3 * BLOCK)) == bytes(2 * BLOCK)
        assert bytes(await mount.parts.blocks.read(source, 6 * BLOCK, len(body))) == bytes(100)
        assert store.calls["get"] == before
        assert mount.parts.blocks.used == 0
        assert bytes(await mount.parts.file_io.read(handle, 0, len(body))) == bytes(body)
        assert store.calls["get"] > before
        await mount.parts.file_io.release(handle)

    mount.loop.run(main)
