"""Names that a pass has shown stay where they are, packed or not."""

from __future__ import annotations

import zlib
from types import SimpleNamespace

import pytest

from sosfs.tree.shown_names import PACK, ShownNames

COUNT = 3 * PACK + 7


def names(*, step: int = 1) -> list[bytes]:
    return [b"name-%06d" % number for number in range(0, COUNT * step, step)]


def shown(of: list[bytes], *, packed: int) -> ShownNames:
    found = ShownNames()
    for name in of:
        found.show(name)
    found.pack(packed)
    return found


@pytest.mark.parametrize("packed", [0, PACK - 1, PACK, 2 * PACK + 500, COUNT])
def test_each_name_has_its_place(packed: int) -> None:
    found = shown(names(), packed=packed)
    assert len(found) == COUNT
    assert found[:] == names()
    assert [found.place(name) for name in names()] == list(range(COUNT))
    assert bool(found.packed_bytes) is (packed >= PACK)


def test_who_reads_on_from_beyond_the_end_has_packed_what_there_is() -> None:
    """seekdir takes any place, also one that an earlier and longer listing had."""
    found = shown(names(), packed=10 * COUNT)
    assert (len(found), found[:]) == (COUNT, names())
    assert [found.place(name) for name in names()] == list(range(COUNT))


@pytest.mark.parametrize("packed", [0, COUNT])
def test_a_name_is_shown_once(packed: int) -> None:
    found = shown(names(step=2), packed=packed)
    for name in names(step=2)[::97]:
        found.show(name)
    assert len(found) == COUNT
    assert b"name-000001" not in found, "it lies between two that are packed"
    found.show(b"name-000001")
    assert found[COUNT] == b"name-000001"
    assert found.place(b"name-000001") == COUNT


def test_what_comes_out_of_order_is_found_in_any_pack() -> None:
    backwards = names()[::-1]
    found = shown(backwards, packed=COUNT)
    assert [found.place(name) for name in backwards[:: PACK // 3]] == list(range(0, COUNT, PACK // 3))


def test_where_names_come_in_no_order_only_what_has_one_is_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some servers list so. Of 200,000 names each that comes would have 200 packs unpacked, 80 ms."""
    mixed = [b"name-%06d" % (number * 7919 % (20 * PACK)) for number in range(20 * PACK)]
    found = shown(mixed, packed=len(mixed))
    unpacked: list[int] = []

    def counted(body: bytes) -> bytes:
        unpacked.append(len(body))
        return zlib.decompress(body)

    monkeypatch.setattr("sosfs.tree.shown_names.zlib", SimpleNamespace(decompress=counted))
    assert all(found.place(b"%s-absent" % name) is None for name in mixed[::1000])
    assert len(unpacked) <= 1, "two hashes may be the same"
    unpacked.clear()
    assert [found.place(mixed[at]) for at in range(0, len(mixed), PACK)] == list(range(0, len(mixed), PACK))
    assert len(unpacked) <= 20 + 1


def test_packed_names_take_little() -> None:
    found = shown(names(), packed=COUNT)
    assert found.packed_bytes < 10 * COUNT
    assert len(found._loose) == len(found._places) == COUNT % PACK


def test_no_name_that_was_not_shown_is_found_whatever_its_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    found = shown(names(), packed=COUNT)
    assert all(found.place(b"%s-%d" % (name, number)) is None for name in names()[:PACK] for number in range(10))
    monkeypatch.setattr("sosfs.tree.shown_names._hash", lambda name: 7)
    found = shown(names(), packed=COUNT)
    assert found.place(b"name-000001-") is None
    assert found.place(b"name-001001") == PACK + 1


@pytest.mark.parametrize("back", [0, PACK - 1, PACK])
def test_who_goes_back_loses_no_name(back: int) -> None:
    found = shown(names(), packed=PACK)
    found.pack(back)
    assert found[:] == names()
    assert found.place(names()[-1]) == COUNT - 1
