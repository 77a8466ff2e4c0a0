"""Where the bytes of drafts lie, in memory and on disk.

A small draft stays in memory, for a file of its own costs more than its upload's share of CPU; it moves
to a sparse file in the cache directory when it grows or when the area's memory is used up. Where the disk has
no room for that it stays in memory as long as the area has some. A draft's
spool has one writer at a time (the kernel holds the inode's lock); bulk I/O runs in a thread, since a
disk that throttles writers must not stop the mount.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import trio

from sosfs.concurrency.budgets import Allowance
from sosfs.concurrency.threads import LOCAL
from sosfs.config.choices import Share
from sosfs.disk.free_space import NOTHING, Disk, Room
from sosfs.errors import FULL
from sosfs.s3.file_body import FileBody

T = TypeVar("T")

SPILL = 256 << 10  # bytes of one draft kept in memory
FLOOR, FLOOR_SHARE = 512 << 20, 4  # bytes of the disk that are left to others; of a small one this part
TIGHT, TIGHT_SHARE = 8 << 20, 2  # bytes that one writer alone goes on with: a part, or this share of a small disk
JOURNAL, JOURNAL_SHARE = 2 << 20, 16  # bytes that are left to the journal; of a small disk this part
SUMMED = 1 << 20  # bytes under one checksum
LABEL = "user.sosfs.key"
MANY = 8  # spools that are synced with all of their file system at once
INLINE = 64 << 10  # bytes; up to here a write to the page cache is cheaper than the hop to a thread (60 us)


def floor(size: int) -> int:
    """Bytes of a disk of `size` bytes with less of which room is short."""
    return min(FLOOR, size // FLOOR_SHARE)


class DamagedSpool(OSError):
    """Bytes that were written are not in the spool any more."""

    def __init__(self, why: str) -> None:
        super().__init__(errno.EIO, why)


class SpoolArea:
    """The spool directory of a mount and the memory its small spools share."""

    def __init__(
        self,
        directory: Path,
        memory: Allowance,
        *,
        part: int = TIGHT,
        kept: Share = NOTHING,
        give_way: Callable[[int], int] = lambda _: 0,
    ) -> None:
        """`kept` of the disk is left to others. `give_way` frees so many bytes if it can, and tells how many."""
        self.directory = directory
        self._part = part  # bytes of the part of an upload
        self.disk = Disk(directory, kept)
        self._give_way = give_way
        self.memory = memory
        self.beginning = f"{time.time_ns():x}-"  # of names: those of an earlier mount are still in its journal
        self._serial = 0
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    @property
    def is_short(self) -> bool:
        """Whether the disk has less room than is left to others."""
        room = self.disk.room()
        least = floor(room.size)
        return room.free < least and self._made(room, least).free < least

    def is_tight(self, more: int, *, alone: bool = False) -> bool:
        """Whether `more` bytes would leave too little: none for the journal, or for the writer that goes on `alone`."""
        room = self.disk.room()
        left = min(JOURNAL, room.size // JOURNAL_SHARE)
        least = more + (left if alone else left + min(self._part, room.size // TIGHT_SHARE))
        return room.free < least and self._made(room, least).free < least

    def _made(self, room: Room, least: int) -> Room:
        """The room after what need not be on this disk has given way."""
        return self.disk.room() if self._give_way(least - room.free) else room

    def new(self) -> Spool:
        """An empty spool."""
        self._serial += 1
        return Spool(self, self.directory / f"{self.beginning}{self._serial}.spool")

    def reopen(self, name: str) -> Spool:
        """The spool that a journal names. Raises OSError ENOENT and what else keeps it from being opened."""
        spool = Spool(self, self.directory / name)
        spool.adopt(os.open(spool.path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW))
        return spool

    async def sync(self, spools: Sequence[Spool]) -> list[OSError | None]:
        """As `Spool.sync`, of several; what befell each. Many go in one call, which may write more than them."""
        on_disk = [spool for spool in spools if spool.on_disk]
        failed: OSError | None = None
        if len(on_disk) > MANY:
            try:
                await on_disk[0].sync_file_system()
            except OSError as error:
                failed = error
        told: list[OSError | None] = []
        for spool in spools:
            try:
                if failed is not None:
                    raise failed
                if len(on_disk) > MANY:
                    spool.require_name()
                else:
                    await spool.sync()
            except OSError as error:
                told.append(error)
            else:
                told.append(None)
        return told

    def others(self, named: Set[str]) -> list[Path]:
        """The files that have none of these names."""
        return sorted(path for path in self.directory.iterdir() if path.name not in named)


class Spool:
    """The local bytes of one draft; which of them are valid is the draft's to know."""

    def __init__(self, area: SpoolArea, path: Path) -> None:
        self.path = path
        self._area = area
        self._memory: bytearray | None = bytearray()
        self._origin = 0  # offset of the first byte in memory; what lay before was freed
        self._most = SPILL  # bytes in memory; grows where the disk is full, or each write would try all anew
        self._file = -1
        self._is_closed = False
        self._busy = 0  # who holds it
        self._label = ""
        self.is_named = False  # a row of the journal may name the file, here or on the disk alone
        self._rested = trio.lowlevel.ParkingLot()

    @property
    def on_disk(self) -> bool:
        """Whether the bytes are in a file."""
        return self._memory is None

    @property
    def modified(self) -> float:
        """When its file was written to last, in seconds since the epoch; 0.0 where it has none."""
        return os.fstat(self._file).st_mtime if self.on_disk else 0.0

    async def write(self, offset: int, data: bytes | memoryview) -> None:
        """Stores `data` at `offset`. Raises OSError ENOSPC and the like; what was there before may be gone."""
        if self._memory is not None and self._keeps(self._memory, offset, data):
            return
        if len(data) <= INLINE:
            _write_all(self._file, offset, data)
        else:
            await self._away(_write_all, offset, data)

    async def read(self, start: int, stop: int) -> bytes:
        """The bytes `[start, stop)`, fewer where the spool ends; what was never written below reads as zeros."""
        if self._memory is not None:
            first = min(max(start, self._origin), stop)
            body = bytes(first - start) + self._memory[first - self._origin : stop - self._origin]
            return body.ljust(stop - start, b"\0")
        if stop - start <= INLINE:
            return _read_all(self._file, start, stop)
        return await self._away(_read_all, start, stop)

    @contextmanager
    def part(self, start: int, stop: int, holes: Sequence[tuple[int, int]] = ()) -> Iterator[FileBody | None]:
        """The bytes `[start, stop)` to be sent from a file, which is open within; None where they are in memory.

        Of the `holes` it may have anything, and zeros are sent. What is in memory of a part with holes gets a file too,
        since the part may be larger than all memory.
        """
        with self.held():
            if self._memory is None:
                yield FileBody(self._file, start, stop, holes)
                return
            if not holes:
                yield None
                return
            file = os.memfd_create("part", os.MFD_CLOEXEC)
            try:
                _write_all(file, self._origin, self._memory)
                yield FileBody(file, start, stop, holes)
            finally:
                os.close(file)

    async def _away(self, work: Callable[..., T], *arguments: Any) -> T:
        """Does `work` with the file in a thread."""
        with self.held():
            return await LOCAL.run(work, self._file, *arguments)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within, the file stays open when the spool is closed: its number would be another's, for a thread to use."""
        self._busy += 1
        try:
            yield
        finally:
            self._busy -= 1
            if not self._busy:
                self._rested.unpark_all()
                self._free()

    @property
    def is_busy(self) -> bool:
        """Whether somebody holds it."""
        return self._busy > 0

    async def rest(self) -> None:
        """Returns when nobody holds it."""
        while self._busy:
            await self._rested.park()

    def adopt(self, file: int) -> None:
        """Takes over an open file with the bytes of an earlier mount."""
        self._memory, self._file, self.is_named = None, file, True

    @property
    def body(self) -> bytes:
        """The bytes of a spool that is in memory, b"" for one on disk. Raises ENOSPC where some were freed."""
        if self._origin:
            raise OSError(errno.ENOSPC, "the disk has no room for what is in memory")
        return bytes(self._memory) if self._memory is not None else b""

    async def sync(self) -> None:
        """The bytes on disk survive a power loss afterwards. Raises OSError, `DamagedSpool` for a file that is gone."""
        if self._memory is None:
            await self._away(_sync)

    async def sync_file_system(self) -> None:
        """As `sync`, for all that is on the same file system as the file of this one. Raises OSError."""
        await self._away(_sync_file_system)

    def require_name(self) -> None:
        """Raises `DamagedSpool` where nobody would find the file after a crash."""
        if self._memory is None:
            _require_name(self._file)

    def another(self) -> Spool:
        """An empty spool of the same area."""
        return self._area.new()

    @property
    def length(self) -> int:
        """How many bytes the file has, those that were never written among them."""
        return os.fstat(self._file).st_size if self._memory is None else len(self._memory)

    async def sums(self, size: int) -> tuple[int, ...]:
        """The CRC-32 of each MiB of the first `size` bytes on disk."""
        if self._memory is not None:
            return ()
        return await self._away(_sums, size)

    def truncate(self, size: int) -> None:
        """Drops what lies at and after `size`."""
        if self._memory is None:
            if os.fstat(self._file).st_size > size:
                os.ftruncate(self._file, size)
            return
        keep = max(0, size - self._origin)
        self._origin = min(self._origin, size)
        if len(self._memory) > keep:
            self._area.memory.used -= len(self._memory) - keep
            del self._memory[keep:]

    def free(self, start: int, stop: int) -> bool:
        """Gives back the room of `[start, stop)`, which reads as zeros then. Whether it could: in memory from below."""
        if self._memory is None:
            return self._area.disk.punch(self._file, start, stop)
        gone = min(stop - self._origin, len(self._memory))
        if start > self._origin or gone <= 0:
            return False
        self._area.memory.used -= gone
        del self._memory[:gone]
        self._origin += gone
        return True

    def label(self, key: str) -> None:
        """A row is about to name the file, which shows its key from now on, should the journal be lost.

        Where the disk keeps no attributes it cannot.
        """
        if self._memory is not None:
            return
        self.is_named = True
        if self._label != key:
            self._label = key
            with contextlib.suppress(OSError):
                os.setxattr(self._file, LABEL, key.encode())

    def release(self) -> None:
        """Closes the file, and leaves it where it is."""
        self._is_closed = True
        self._free()

    def close(self) -> None:
        """Frees it all."""
        if self._memory is not None:
            self._area.memory.used -= len(self._memory)
            self._memory, self._origin = bytearray(), 0
        elif self._file >= 0:
            self.path.unlink(missing_ok=True)
        self._is_closed = True
        self._free()

    def _free(self) -> None:
        """Closes the file of a closed spool once nobody holds it."""
        if self._is_closed and not self._busy and self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _keeps(self, memory: bytearray, offset: int, data: bytes | memoryview) -> bool:
        """Stores it in memory where it fits; else the bytes are on disk afterwards, or where that is full in memory."""
        stop = offset + len(data)
        more = max(0, stop - self._origin - len(memory)) + max(0, self._origin - offset)
        if more and (stop - self._origin > self._most or not self._area.memory.grant(more)):
            try:
                self._spill(memory, len(data))
            except OSError as error:
                if error.errno not in FULL or not self._area.memory.grant(more):
                    raise
                self._most = 2 * (len(memory) + more)
            else:
                return False
        if offset < self._origin:
            memory[:0] = bytes(self._origin - offset)
            self._origin = offset
        _store(memory, offset - self._origin, data)
        return True

    def _spill(self, memory: bytearray, more: int) -> None:
        if self._area.is_tight(len(memory) + more):
            raise OSError(errno.ENOSPC, "the disk has no room for another file")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            file = os.open(self.path, flags, 0o600)
        except FileNotFoundError:  # somebody has tidied up; what is open goes on without a name
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            file = os.open(self.path, flags, 0o600)
        try:
            _write_all(file, self._origin, memory)
        except OSError:
            os.close(file)
            self.path.unlink()  # the next try, when there may be room, makes it anew
            raise
        self._file = file
        self._area.memory.used -= len(memory)
        self._memory, self._origin = None, 0


def label(path: Path) -> str:
    """The key of a spool file, "" where it does not say."""
    try:
        return os.getxattr(path, LABEL, follow_symlinks=False).decode(errors="replace")
    except OSError:
        return ""


def _sync(file: int) -> None:
    os.fsync(file)
    _require_name(file)


def _sync_file_system(file: int) -> None:
    """syncfs(2), which the standard library lacks; since Linux 5.8 it tells of bytes that could not be written."""
    if ctypes.CDLL(None, use_errno=True).syncfs(file):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _require_name(file: int) -> None:
    if not os.fstat(file).st_nlink:
        raise DamagedSpool("its spool file was removed: nobody would find the bytes after a crash")


def _sums(file: int, size: int) -> tuple[int, ...]:
    sums, data, zeros = [], 0, zlib.crc32(bytes(SUMMED))
    for at in range(0, size, SUMMED):
        stop = min(size, at + SUMMED)
        if data < stop:
            data = max(data, _next_data(file, at))
        is_hole = data >= stop and stop - at == SUMMED
        sums.append(zeros if is_hole else zlib.crc32(_read_all(file, at, stop).ljust(stop - at, b"\0")))
    return tuple(sums)


def _next_data(file: int, at: int) -> int:
    """Where the file has data from `at` on; `at` where the disk does not tell, and no end where it has none."""
    try:
        return os.lseek(file, at, os.SEEK_DATA)  # the file's own position is used by nobody
    except OSError as error:
        return sys.maxsize if error.errno == errno.ENXIO else at


def _store(memory: bytearray, offset: int, data: bytes | memoryview) -> None:
    if offset > len(memory):
        memory.extend(bytes(offset - len(memory)))
    memory[offset : offset + len(data)] = data


def _write_all(file: int, offset: int, data: bytes | bytearray | memoryview) -> None:
    # The traceback of an error keeps this frame: a view left open there would forbid the bytearray to grow.
    with memoryview(data) as view:
        at = 0
        while at < len(view):
            done = os.pwrite(file, view[at:], offset + at)
            if done == 0:
                raise OSError(errno.ENOSPC, "the spool took no bytes")
            at += done


def _read_all(file: int, start: int, stop: int) -> bytes:
    data = os.pread(file, stop - start, start)
    while len(data) < stop - start:
        more = os.pread(file, stop - start - len(data), start + len(data))
        if not more:
            break
        data += more
    return data
