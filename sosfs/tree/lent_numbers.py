"""The numbers that the kernel still has of files which were forgotten here, with their names.

A mount may know fewer names than the kernel, which keeps a file for whoever has it as O_PATH, has it bound to another
place or watches it, and tells of none of these. Whatever it asks by a number has to be answered until it has given that
back. So of a file that is forgotten before that its name, its number and the count of its lookups stay, `PACK` of them
together, in 20 to 50 bytes instead of 1,000: under its number or its name it comes back with all three.

The packs of a directory lie beside each other in the order of names, as a listing shows them. Where new ones would lie
across others, they are merged.

Concurrency: trio thread only, without an await.
"""

from __future__ import annotations

import itertools
import zlib
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Generic, TypeVar

Place = TypeVar("Place")

PACK = 1000  # names: unpacked in 0.1 ms
_LEVEL = 1  # of zlib: 0.3 us a name
_NEAR = 6  # bits: for so many numbers beside each other it is noted together in which packs they are
_FOUND = 8  # bytes that this takes for each, where all of them are there


@dataclass(frozen=True, slots=True)
class Lent:
    """A file that the kernel has, and of which nothing else is known."""

    name: bytes
    number: int
    lookups: int


class _Pack(Generic[Place]):
    """Some names of one place, sorted; those with no lookups are no more."""

    __slots__ = ("body", "highest", "id", "left", "lookups", "lowest", "numbers", "place")

    def __init__(self, place: Place, lent: Sequence[Lent]) -> None:
        self.id = 0  # among the packs of a mount
        self.place = place
        self.lowest, self.highest = lent[0].name, lent[-1].name
        self.body = zlib.compress(b"/".join(one.name for one in lent), _LEVEL)
        self.numbers = array("Q", (one.number for one in lent))
        self.lookups = array("I", (one.lookups for one in lent))
        self.left = len(lent)

    @property
    def size(self) -> int:
        """Bytes, with those by which its numbers are found."""
        return len(self.body) + len(self.numbers) * (self.numbers.itemsize + self.lookups.itemsize + _FOUND)


class _Packs(Generic[Place]):
    """In which pack a number is, whatever the order of the numbers in it; some 8 bytes for each."""

    def __init__(self) -> None:
        self._ids = itertools.count(1)
        self._packs: dict[int, _Pack[Place]] = {}
        self._near: dict[int, array[int]] = {}  # of the numbers beside each other: ids, 0 for none

    def add(self, pack: _Pack[Place]) -> None:
        """Its numbers lead to a pack."""
        pack.id = next(self._ids)
        self._packs[pack.id] = pack
        for number in pack.numbers:
            near = self._near.get(number >> _NEAR)
            if near is None:
                near = self._near[number >> _NEAR] = array("I", bytes(4 << _NEAR))
            near[number & (1 << _NEAR) - 1] = pack.id

    def remove(self, pack: _Pack[Place]) -> None:
        """None of the numbers that are left leads to it."""
        for number, lookups in zip(pack.numbers, pack.lookups, strict=True):
            if lookups:
                self.leave(number)
        del self._packs[pack.id]

    def leave(self, number: int) -> None:
        """This number leads nowhere."""
        near = self._near[number >> _NEAR]
        near[number & (1 << _NEAR) - 1] = 0
        if not any(near):
            del self._near[number >> _NEAR]

    def find(self, number: int) -> tuple[_Pack[Place], int] | None:
        """The pack of a number, and where in it that is."""
        near = self._near.get(number >> _NEAR)
        pack = self._packs.get(near[number & (1 << _NEAR) - 1]) if near is not None else None
        return None if pack is None else (pack, pack.numbers.index(number))


class LentNumbers(Generic[Place]):
    """Those of one mount, by place (a directory) and name, and by number."""

    def __init__(self) -> None:
        self._places: dict[Place, list[_Pack[Place]]] = {}
        self._packs = _Packs[Place]()
        self._unpacked: tuple[_Pack[Place] | None, list[bytes]] = None, []  # the pack that was looked into last
        self.size = 0  # bytes, about

    def has(self, place: Place) -> bool:
        """Whether the kernel has numbers of a place."""
        return place in self._places

    def of(self, place: Place) -> list[int]:
        """The numbers of a place."""
        packs = self._places.get(place, ())
        return [one for pack in packs for one, left in zip(pack.numbers, pack.lookups, strict=True) if left]

    def lend(self, place: Place, lent: Sequence[Lent]) -> None:
        """Notes what is forgotten of a place. What it had of the same names is void: another file has them by now."""
        if not lent:
            return
        fresh = {one.name: one for one in lent}
        packs = self._places.setdefault(place, [])
        first = bisect_left(packs, min(fresh), key=attrgetter("highest"))
        last = bisect_right(packs, max(fresh), key=attrgetter("lowest"))
        every: dict[bytes, Lent] = {}
        for pack in packs[first:last]:
            every.update((one.name, one) for one in self._all_of(pack))
            self._leave(pack)
        every.update(fresh)
        merged = sorted(every.values(), key=attrgetter("name"))
        packs[first:last] = [_Pack(place, merged[at : at + PACK]) for at in range(0, len(merged), PACK)]
        for pack in packs[first : first + -(-len(merged) // PACK)]:
            self.size += pack.size
            self._packs.add(pack)

    def take(self, number: int) -> tuple[Place, Lent] | None:
        """What has this number, which is noted no more."""
        found = self._packs.find(number)
        return None if found is None else (found[0].place, self._taken(*found))

    def take_named(self, place: Place, name: bytes) -> Lent | None:
        """What has this name, which is noted no more."""
        packs = self._places.get(place, ())
        here = bisect_left(packs, name, key=attrgetter("highest"))
        if here == len(packs) or name < packs[here].lowest:
            return None
        names = self._names(packs[here])
        at = bisect_left(names, name)
        if at == len(names) or names[at] != name or not packs[here].lookups[at]:
            return None
        return self._taken(packs[here], at)

    def give_back(self, number: int, lookups: int) -> None:
        """The kernel has so many lookups less of a number."""
        found = self._packs.find(number)
        if found is None:
            return
        pack, at = found
        pack.lookups[at] -= min(lookups, pack.lookups[at])
        if not pack.lookups[at]:
            self._gone(pack, number)

    def _taken(self, pack: _Pack[Place], at: int) -> Lent:
        lent = Lent(self._names(pack)[at], pack.numbers[at], pack.lookups[at])
        pack.lookups[at] = 0
        self._gone(pack, lent.number)
        return lent

    def _gone(self, pack: _Pack[Place], number: int) -> None:
        """One of a pack is noted no more."""
        self._packs.leave(number)
        pack.left -= 1
        if pack.left:
            return
        self._leave(pack)
        packs = self._places[pack.place]
        packs.remove(pack)
        if not packs:
            del self._places[pack.place]

    def _leave(self, pack: _Pack[Place]) -> None:
        """A pack is found by its numbers no more."""
        self.size -= pack.size
        self._packs.remove(pack)
        if self._unpacked[0] is pack:
            self._unpacked = None, []

    def _names(self, pack: _Pack[Place]) -> list[bytes]:
        if self._unpacked[0] is not pack:
            self._unpacked = pack, zlib.decompress(pack.body).split(b"/")
        return self._unpacked[1]

    def _all_of(self, pack: _Pack[Place]) -> Iterator[Lent]:
        every = zip(self._names(pack), pack.numbers, pack.lookups, strict=True)
        return (Lent(name, number, lookups) for name, number, lookups in every if lookups)
