"""Blocks of objects on disk, kept over restarts.

One version of an object (key, ETag, size) is two files: its bytes, sparse, and a table with length and
CRC-32 of each block, written after the block. A block whose checksum does not fit was never there: that is how
a crash in the middle, a torn write and a foreign hand are dealt with. Room is counted in bytes before
a block is written, the least recently used versions go first, and the disk keeps a floor of free space
whatever the limit says. A cache and nothing more: what it cannot do it leaves, and reading goes on.

Concurrency: the index is the trio thread's alone; files are read and written in threads, at most
`WRITES` fetches wait to be written, and what comes beyond that is not kept.
"""

from __future__ import annotations

import hashlib
import logging
import os
import struct
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import trio

from sosfs.concurrency.threads import LOCAL

log = logging.getLogger(__name__)

FLOOR_BYTES, FLOOR_SHARE = 1 << 30, 0.05  # free space that is left alone: the larger of the two
FLOOR_MOST = 0.5  # but of a small disk this part at most
WRITES = 8
_ENTRY = struct.Struct("<II")  # length, CRC-32


@dataclass(eq=False, slots=True)
class _Version:
    """One version, as long as it is kept: what is kept of it anew after it was forgotten is another one of these."""

    size: int  # bytes that are counted


class DiskCache:
    """The block cache of a mount on disk, of at most `capacity` bytes."""

    def __init__(
        self, directory: Path, *, capacity: int, block: int, floor: Callable[[int], int] | None = None
    ) -> None:
        """Takes over what an earlier mount left. Raises OSError when the directory cannot be used.

        `floor` tells how many bytes of a disk of some size are left free, also by giving up blocks that are here;
        without it only new ones are not taken on a disk that is nearly full.
        """
        self._floor = floor
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.capacity = capacity
        self.used = 0
        self._directory = directory
        self._block = block
        self._index: OrderedDict[str, _Version] = OrderedDict()  # by name, least recently used first
        self._going: set[str] = set()  # what is forgotten, and not removed yet: nothing is kept of it meanwhile
        self._writing = 0
        self._was_refused = False
        self._adopt()

    def _adopt(self) -> None:
        found = []
        for path in self._directory.glob("*.data"):
            state = path.stat()
            found.append((state.st_mtime_ns, path.stem, state.st_blocks * 512))
        for _, name, size in sorted(found):
            self._index[name] = _Version(size)
            self.used += size
        self.give_way(self.used - self.capacity)

    async def read(self, key: str, etag: str, size: int, first: int, last: int) -> memoryview | None:
        """The blocks `[first, last)` of a version, or None unless all are here and whole."""
        name = _name(key, etag, size)
        if name not in self._index:
            return None
        self._index.move_to_end(name)
        return await LOCAL.run(self._read, name, size, first, last)

    def _read(self, name: str, size: int, first: int, last: int) -> memoryview | None:
        start, stop = first * self._block, min(last * self._block, size)
        try:
            with self._path(name, "sums").open("rb") as table, self._path(name, "data").open("rb") as data:
                sums = os.pread(table.fileno(), (last - first) * _ENTRY.size, first * _ENTRY.size)
                body = memoryview(os.pread(data.fileno(), stop - start, start))
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("the disk cache cannot be read: %s", error)
            return None
        if len(body) != stop - start or len(sums) != (last - first) * _ENTRY.size:
            return None
        for at, (length, crc) in enumerate(_ENTRY.iter_unpack(sums)):
            piece = body[at * self._block : (at + 1) * self._block]
            if length != len(piece) or crc != zlib.crc32(piece):
                return None
        return body

    async def missing(self, key: str, etag: str, size: int) -> list[tuple[int, int]]:
        """The runs of blocks `[first, last)` of a version that are not here. Its checksums are not looked at."""
        name = _name(key, etag, size)
        if name not in self._index:
            return [(0, -(-size // self._block))]
        self._index.move_to_end(name)
        return await LOCAL.run(self._gaps, name, size)

    def _gaps(self, name: str, size: int) -> list[tuple[int, int]]:
        count = -(-size // self._block)
        try:
            table = self._path(name, "sums").read_bytes()[: count * _ENTRY.size]
        except OSError:
            table = b""
        table = table.ljust(count * _ENTRY.size, b"\0")
        runs: list[tuple[int, int]] = []
        for at, (length, _) in enumerate(_ENTRY.iter_unpack(table)):
            if length == 0 and runs and runs[-1][1] == at:
                runs[-1] = (runs[-1][0], at + 1)
            elif length == 0:
                runs.append((at, at + 1))
        return runs

    async def keep(self, key: str, etag: str, size: int, first: int, body: memoryview) -> None:
        """Stores a fetch that begins with block `first`, where there is room for it. Never raises OSError."""
        if self._writing < WRITES:
            await self.store(key, etag, size, first, body)

    async def store(self, key: str, etag: str, size: int, first: int, body: memoryview) -> bool:
        """As `keep`, however many are being written; whether it is here now."""
        try:
            is_here = await self._store(_name(key, etag, size), first, body)
        except OSError as error:
            log.log(
                logging.DEBUG if self._was_refused else logging.WARNING, "the disk cache cannot be written: %s", error
            )
            self._was_refused = True  # a full disk is told of once, not with every fetch
            return False
        self._was_refused = self._was_refused and not is_here
        return is_here

    async def _store(self, name: str, first: int, body: memoryview) -> bool:
        version = self._make_room(name, len(body))
        if version is None:
            return False
        self._writing += 1
        try:
            had = await LOCAL.run(self._write, name, first, body)
        except (OSError, trio.Cancelled):  # who is cancelled here has written nothing
            if self._index.get(name) is version:
                self._uncount(name, version, len(body))
            raise
        finally:
            self._writing -= 1
            if self._index.get(name) is not version:  # evicted or forgotten meanwhile: nothing of before is kept
                self._drop(name)
        if had and self._index.get(name) is version:
            version.size -= had  # of this they have taken the place
            self.used -= had
        return True

    async def forget(self, versions: Iterable[tuple[str, str, int]]) -> int:
        """Forgets versions (key, ETag, size); returns how many bytes of them were here."""
        names = {_name(*version) for version in versions} & self._index.keys()
        return await self._forget(names)

    async def forget_all(self, *, but: Iterable[tuple[str, str, int]]) -> int:
        """Forgets all but these versions, older ones of the same keys too; returns how many bytes were here."""
        return await self._forget(self._index.keys() - {_name(*version) for version in but})

    async def _forget(self, names: set[str]) -> int:
        freed = sum(self._index.pop(name).size for name in names)
        self.used -= freed
        self._going |= names
        try:
            with trio.CancelScope(shield=True):  # else it would lie here uncounted, and be back with the next mount
                await LOCAL.run(self._unlink, *names)
        finally:
            self._going -= names
        return freed

    def _unlink(self, *names: str) -> None:
        for name in names:
            for kind in ("sums", "data"):
                self._path(name, kind).unlink(missing_ok=True)

    def give_way(self, size: int, *, keep: str = "") -> int:
        """Forgets what was not used for longest, `size` bytes of it; how many that were."""
        going, freed = list[str](), 0
        for name, version in self._index.items():
            if freed >= size:
                break
            if name != keep:
                going.append(name)
                freed += version.size
        for name in going:
            self._drop(name)
        return freed

    def _make_room(self, name: str, more: int) -> _Version | None:
        """Counts `more` bytes for a version, after evicting others. None where they do not fit."""
        version = self._index.get(name) or _Version(0)
        if name in self._going or version.size + more > self.capacity:
            return None  # nor would they fit without all others
        self.give_way(self.used + more - self.capacity, keep=name)
        lacking = self._lacking(more)
        if lacking > 0 and self._floor and self.give_way(lacking, keep=name):
            lacking = self._lacking(more)
        if lacking > 0:
            return None
        version.size += more
        self._index[name] = version
        self._index.move_to_end(name)
        self.used += more
        return version

    def _uncount(self, name: str, version: _Version, size: int) -> None:
        """So many bytes that were counted for a version are not here."""
        if version.size > size:
            version.size -= size
            self.used -= size
        else:
            self._drop(name)

    def _lacking(self, more: int) -> int:
        """How much less would be free than is left alone, with `more` bytes here."""
        state = os.statvfs(self._directory)
        size = state.f_blocks * state.f_frsize
        usual = max(min(FLOOR_BYTES, size * FLOOR_MOST), size * FLOOR_SHARE)
        return int(self._floor(size) if self._floor else usual) + more - state.f_bavail * state.f_frsize

    def _drop(self, name: str) -> None:
        version = self._index.pop(name, None)
        self.used -= version.size if version is not None else 0
        self._unlink(name)

    def _write(self, name: str, first: int, body: memoryview) -> int:
        """How many of these bytes were here before."""
        pieces = [body[at : at + self._block] for at in range(0, len(body), self._block)]
        sums = b"".join(_ENTRY.pack(len(piece), zlib.crc32(piece)) for piece in pieces)
        flags, had = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, b""
        for kind, text, offset in (
            ("data", body, first * self._block),
            ("sums", memoryview(sums), first * _ENTRY.size),
        ):
            file = os.open(self._path(name, kind), flags, 0o600)
            try:
                had = os.pread(file, len(sums), offset) if kind == "sums" else had
                os.pwrite(file, text, offset)
            finally:
                os.close(file)
        known: Iterable[tuple[int, int]] = _ENTRY.iter_unpack(had[: len(had) // _ENTRY.size * _ENTRY.size])
        return min(len(body), sum(length for length, _ in known))  # no more, whatever a damaged table says

    def _path(self, name: str, kind: str) -> Path:
        return self._directory / f"{name}.{kind}"


def _name(key: str, etag: str, size: int) -> str:
    return hashlib.sha256(f"{key}\0{etag}\0{size}".encode(errors="surrogatepass")).hexdigest()[:40]
