"""What the kernel has of files that were forgotten: found by number and by name, until it has given it back."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any, cast

import pytest

from sosfs.tree.lent_numbers import PACK, Lent, LentNumbers

COUNT = 3 * PACK + 7


def lent(numbers: range) -> list[Lent]:
    """Files of one directory in the order in which they were listed."""
    return [Lent(b"name-%06d" % number, number, 1 + number % 3) for number in numbers]


def test_each_comes_back_by_its_number_and_by_its_name() -> None:
    numbers = LentNumbers[str]()
    numbers.lend("d", lent(range(COUNT)))
    numbers.lend("e", [Lent(b"name-000001", COUNT, 1)])
    for number in range(0, COUNT, 97):
        name = b"name-%06d" % number
        wanted = Lent(name, number, 1 + number % 3)
        found = numbers.take(number) if number % 2 else numbers.take_named("d", name)
        assert found == (("d", wanted) if number % 2 else wanted)
        assert numbers.take(number) is None and numbers.take_named("d", name) is None, "once"
    assert numbers.take(COUNT) == ("e", Lent(b"name-000001", COUNT, 1))
    assert numbers.take(COUNT + 1) is None
    assert numbers.take_named("d", b"a") is numbers.take_named("d", b"z") is numbers.take_named("x", b"a") is None


def test_what_the_kernel_has_given_back_takes_no_room() -> None:
    numbers = LentNumbers[str]()
    numbers.lend("d", lent(range(COUNT)))
    assert numbers.has("d")
    assert 0 < numbers.size < 30 * COUNT
    for number in range(COUNT):
        numbers.give_back(number, number % 3)
    assert numbers.take(4) == ("d", Lent(b"name-000004", 4, 1)), "one of its two lookups is left"
    for number in range(COUNT):
        numbers.give_back(number, 1)
    assert numbers.size == 0 and not numbers.has("d")
    assert numbers.take(5) is None
    assert not numbers._packs._near and not numbers._packs._packs


def test_what_is_forgotten_in_any_order_is_found() -> None:
    numbers, order = LentNumbers[str](), lent(range(COUNT))
    random.Random(3).shuffle(order)
    for at in range(0, COUNT, 300):
        numbers.lend("d", order[at : at + 300])
    found = [numbers.take(number) for number in range(0, COUNT, 2)]
    assert found == [("d", one) for one in lent(range(0, COUNT, 2))]
    found_named = [numbers.take_named("d", b"name-%06d" % number) for number in range(1, COUNT, 2)]
    assert found_named == lent(range(1, COUNT, 2))
    assert numbers.size == 0 and not numbers._packs._near and not numbers._packs._packs


def test_a_number_is_looked_for_in_one_pack_in_whatever_order_the_names_have_them() -> None:
    """A server that lists in no order gives names that lie beside each other any numbers."""
    numbers, order = LentNumbers[str](), lent(range(COUNT))
    mixed = list(range(COUNT))
    random.Random(3).shuffle(mixed)
    numbers.lend("d", [Lent(one.name, number, 1) for one, number in zip(order, mixed, strict=True)])
    looked = 0

    class Counted:
        def __init__(self, inner: Any) -> None:
            self._inner = inner

        def index(self, number: int) -> int:
            nonlocal looked
            looked += 1
            return int(self._inner.index(number))

        def __getattr__(self, name: str) -> Any:
            return getattr(self._inner, name)

        def __getitem__(self, at: int) -> int:
            return int(self._inner[at])

        def __len__(self) -> int:
            return len(self._inner)

        def __iter__(self) -> Iterator[int]:
            return iter(self._inner)

    for pack in numbers._places["d"]:
        pack.numbers = cast(Any, Counted(pack.numbers))
    for number in range(0, COUNT, 2):
        numbers.give_back(number, 1)
    for number in range(1, COUNT, 2):
        assert numbers.take(number) is not None
    assert looked <= COUNT
    assert numbers.size == 0 and not numbers.has("d")


@pytest.mark.parametrize("name", [b"a", b"b", b"c"])
def test_another_file_of_the_same_name_has_it(name: bytes) -> None:
    numbers = LentNumbers[str]()
    numbers.lend("d", [Lent(b"a", 1, 1), Lent(b"b", 2, 1), Lent(b"c", 3, 1)])
    numbers.lend("d", [Lent(name, 4, 1)])
    before = {b"a": 1, b"b": 2, b"c": 3}
    assert numbers.take(before.pop(name)) is None
    assert numbers.take_named("d", name) == Lent(name, 4, 1)
    assert [numbers.take(number) for number in before.values()] == [("d", Lent(*one, 1)) for one in before.items()]
    assert numbers.size == 0 and not numbers.has("d")
    assert not numbers._packs._near


def test_where_nothing_is_forgotten_nothing_is_noted() -> None:
    numbers = LentNumbers[str]()
    numbers.lend("d", [])
    assert not numbers.has("d")


def test_a_name_between_two_is_nobodys() -> None:
    numbers = LentNumbers[str]()
    numbers.lend("d", [Lent(b"a", 1, 1), Lent(b"c", 2, 1)])
    assert numbers.take_named("d", b"b") is None
    assert [numbers.take(1), numbers.take(2)] == [("d", Lent(b"a", 1, 1)), ("d", Lent(b"c", 2, 1))]


def test_what_has_come_back_stays_so_when_more_are_forgotten_around_it() -> None:
    numbers = LentNumbers[str]()
    numbers.lend("d", [Lent(b"a", 1, 1), Lent(b"b", 2, 1), Lent(b"c", 3, 1)])
    assert numbers.take(2) is not None
    numbers.lend("d", [Lent(b"bb", 4, 1)])
    assert numbers.take(2) is None and numbers.take_named("d", b"b") is None
    for number in (1, 3, 4):
        numbers.give_back(number, 2)  # more than it had
        assert numbers.take(number) is None
    assert numbers.size == 0 and not numbers.has("d")
