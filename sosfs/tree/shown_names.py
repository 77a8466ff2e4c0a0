"""The names that a pass through a directory has shown, by index and by name; none is ever moved or taken out.

Who reads a huge directory leaves behind names that hardly anybody asks for again, but that a seek back must find where
they were. So they can be packed: `PACK` of them together, compressed, 5 to 30 bytes a name instead of 150. A page's
names come after those of the pages before it, but for what was made or renamed here: whether one is among the packed
is mostly told by the highest of them. Not so where a server lists in no order: then the hashes of a pack's names tell
whether it is worth unpacking, 0.3 ms for one of 200,000 names.

Concurrency: trio thread only, without an await.
"""

from __future__ import annotations

import zlib
from array import array
from bisect import bisect_left
from collections.abc import Sequence
from typing import overload

PACK = 1000  # names: unpacked in 0.1 ms
_LEVEL = 1  # of zlib: 0.3 us a name


def _hash(name: bytes) -> int:
    return hash(name) & 0xFFFFFFFF


class _Packed:
    """So many names that lie between `lowest` and `highest`."""

    __slots__ = ("_hashes", "body", "highest", "lowest")

    def __init__(self, names: Sequence[bytes]) -> None:
        self.lowest, self.highest = min(names), max(names)
        self.body = zlib.compress(b"/".join(names), _LEVEL)
        self._hashes = array("I", sorted(map(_hash, names)))

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.body) + len(self._hashes) * self._hashes.itemsize

    def may_have(self, name: bytes, hashed: int) -> bool:
        """False where it has not; True mostly means that it has."""
        if not self.lowest <= name <= self.highest:
            return False
        at = bisect_left(self._hashes, hashed)
        return at < len(self._hashes) and self._hashes[at] == hashed

    @property
    def names(self) -> list[bytes]:
        return zlib.decompress(self.body).split(b"/")


class ShownNames(Sequence[bytes]):
    """Names in the order in which they were shown, each once."""

    __slots__ = ("_highest", "_loose", "_packed", "_places", "_unpacked", "packed_bytes")

    def __init__(self) -> None:
        self._packed: list[_Packed] = []
        self._highest = b""  # of the packed ones
        self._unpacked: tuple[int, list[bytes]] = (-1, [])  # the pack that was looked into last
        self._loose: list[bytes] = []  # those that follow
        self._places: dict[bytes, int] = {}  # of those
        self.packed_bytes = 0

    def __len__(self) -> int:
        return len(self._packed) * PACK + len(self._loose)

    @overload
    def __getitem__(self, at: int) -> bytes: ...
    @overload
    def __getitem__(self, at: slice) -> list[bytes]: ...
    def __getitem__(self, at: int | slice) -> bytes | list[bytes]:
        if isinstance(at, slice):
            return [self[one] for one in range(*at.indices(len(self)))]
        loose = at - len(self._packed) * PACK
        return self._loose[loose] if loose >= 0 else self._of(at // PACK)[at % PACK]

    def _of(self, pack: int) -> list[bytes]:
        if self._unpacked[0] != pack:
            self._unpacked = pack, self._packed[pack].names
        return self._unpacked[1]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, bytes) and self.place(name) is not None

    def place(self, name: bytes) -> int | None:
        """The index of a name; None for one that was not shown."""
        place = self._places.get(name)
        if place is not None or not self._packed or name > self._highest:
            return place
        hashed = _hash(name)
        for at, packed in enumerate(self._packed):
            if packed.may_have(name, hashed) and name in (names := self._of(at)):
                return at * PACK + names.index(name)
        return None

    def show(self, name: bytes) -> None:
        """Appends a name, unless it is there."""
        if self.place(name) is None:
            self._places[name] = len(self)
            self._loose.append(name)

    def pack(self, stop: int) -> None:
        """Packs the names below an index, `PACK` at a time; it may be beyond the last one."""
        whole = max(0, min(stop, len(self)) - len(self._packed) * PACK) // PACK
        for at in range(0, whole * PACK, PACK):
            packed = _Packed(self._loose[at : at + PACK])
            self._packed.append(packed)
            self._highest = max(self._highest, packed.highest)
            self.packed_bytes += packed.size
        for name in self._loose[: whole * PACK]:
            del self._places[name]
        del self._loose[: whole * PACK]
