"""Names that a pass has shown stay where they are, packed or not."""

from __future__ import annotations

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


def test_packed_names_take_little() -> None:
    assert shown(names(), packed=COUNT).packed_bytes < 10 * COUNT
