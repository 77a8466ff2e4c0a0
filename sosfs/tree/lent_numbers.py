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
_NEAR = 10  # bits: so many numbers beside each other are looked for in the same packs


@dataclass(frozen=True, slots=True)
class Lent:
    """A file that the kernel has, and of which nothing else is known."""

    name: bytes
    number: int
    lookups: int


class _Pack(Generic[Place]):
    """Some names of one place, sorted; those with no lookups are no more."""

    __slots__ = ("body", "highest", "left", "lookups", "lowest", "numbers", "place")

    def __init__(self, place: Place, lent: Sequence[Lent]) -> None:
        self.place = place
        self.lowest, self.highest = lent[0].name, lent[-1].name
        self.body = zlib.compress(b"/".join(one.name for one in lent), _LEVEL)
        self.numbers = array("Q", (one.number for one in lent))
        self.lookups = array("I", (one.lookups for one in lent))
        self.left = len(lent)

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.body) + len(self.numbers) * (self.numbers.itemsize + self.lookups.itemsize)

    def near(self) -> set[int]:
        """Where its numbers are looked for."""
        return {number >> _NEAR for number in self.numbers}

    def find(self, number: int) -> int:
        """Where a number is, -1 for nowhere."""
        try:
            at = self.numbers.index(number)
        except ValueError:
            return -1
        return at if self.lookups[at] else -1


class LentNumbers(Generic[Place]):
    """Those of one mount, by place (a directory) and name, and by number."""

    def __init__(self) -> None:
        self._places: dict[Place, list[_Pack[Place]]] = {}
        self._near: dict[int, list[_Pack[Place]]] = {}
        self._unpacked: tuple[_Pack[Place] | None, list[bytes]] = None, []  # the pack that was looked into last
        self.size = 0  # bytes, about

    def has(self, place: Place) -> bool:
        """Whether the kernel has numbers of a place."""
        return place in self._places

    def lend(self, place: Place, lent: Sequence[Lent]) -> None:
        """Notes what is forgotten of a place. What it had of the same names is void: another file has them by now."""
        if not lent:
            return
        fresh = {one.name: one for one in lent}
        packs = self._places.setdefault(place, [])
        first = bisect_left(packs, min(fresh), key=attrgetter("highest"))
        last = bisect_right(packs, max(fresh), key=attrgetter("lowest"))
        for pack in packs[first:last]:
            fresh = {one.name: one for one in self._all_of(pack)} | fresh
            self._leave(pack)
        merged = sorted(fresh.values(), key=attrgetter("name"))
        packs[first:last] = [_Pack(place, merged[at : at + PACK]) for at in range(0, len(merged), PACK)]
        for pack in packs[first : first + -(-len(merged) // PACK)]:
            self.size += pack.size
            for near in pack.near():
                self._near.setdefault(near, []).append(pack)

    def take(self, number: int) -> tuple[Place, Lent] | None:
        """What has this number, which is noted no more."""
        for pack in self._near.get(number >> _NEAR, ()):
            if (at := pack.find(number)) >= 0:
                return pack.place, self._taken(pack, at)
        return None

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
        for pack in self._near.get(number >> _NEAR, ()):
            if (at := pack.find(number)) >= 0:
                pack.lookups[at] -= min(lookups, pack.lookups[at])
                if not pack.lookups[at]:
                    self._gone(pack)
                return

    def _taken(self, pack: _Pack[Place], at: int) -> Lent:
        lent = Lent(self._names(pack)[at], pack.numbers[at], pack.lookups[at])
        pack.lookups[at] = 0
        self._gone(pack)
        return lent

    def _gone(self, pack: _Pack[Place]) -> None:
        """One of a pack is noted no more."""
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
        for near in pack.near():
            self._near[near].remove(pack)
            if not self._near[near]:
                del self._near[near]
        if self._unpacked[0] is pack:
            self._unpacked = None, []

    def _names(self, pack: _Pack[Place]) -> list[bytes]:
        if self._unpacked[0] is not pack:
            self._unpacked = pack, zlib.decompress(pack.body).split(b"/")
        return self._unpacked[1]

    def _all_of(self, pack: _Pack[Place]) -> Iterator[Lent]:
        every = zip(self._names(pack), pack.numbers, pack.lookups, strict=True)
        return (Lent(name, number, lookups) for name, number, lookups in every if lookups)
