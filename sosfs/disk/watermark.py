"""Note beside a database how far it was written: a log that lost its end does not say so.

SQLite reads a log up to the first frame that is damaged, and takes what follows for never written. This file
knows better:

    written   the last transaction: it survives the death of this process, not that of the machine
    synced    the last transaction that an fsync has seen through

What must be there at the next start depends on how this one ends: as long as the machine runs, all that was
`written`, for the kernel has it; after that, what was `synced`. The boot id says which.

The file is written (one pwrite a transaction) and never synced on the way: the kernel brings it to the disk
within half a minute. After a power loss it may thus be behind, and vouches for less; ahead it never is, for `synced`
is noted after the fsync. Its record is smaller than a sector, and has a checksum.

Concurrency: trio thread only.
"""

from __future__ import annotations

import functools
import logging
import os
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

log = logging.getLogger(__name__)

_MAGIC = b"sosfs\0w1"
_RECORD = struct.Struct("<8s36sQQ")
_SUM = struct.Struct("<I")
_OWNER_AT = 512  # the record has a sector of its own
_NOWHERE = bytes(36)
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Mark(NamedTuple):
    """What an earlier process noted."""

    owner: str
    boot: bytes
    written: int
    synced: int

    @property
    def least(self) -> int:
        """The number of the last transaction that must be there."""
        return self.synced if self.is_of_other_boot else self.written

    @property
    def is_of_other_boot(self) -> bool:
        """Whether the kernel that had the page cache is gone, as far as anybody can tell."""
        return self.boot != _boot() or self.boot == _NOWHERE


class Watermark:
    """The watermark of one journal."""

    def __init__(self, path: Path) -> None:
        """Opens it, or makes it. Raises OSError."""
        self.found = read(path)
        self._is_failing = False
        self._boot = _boot()
        self._written = self.found.written if self.found else 0
        self._synced = self.found.synced if self.found else 0
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    @property
    def least(self) -> int:
        """The number of the last transaction that an earlier process must have left; 0 where nothing says so."""
        return self.found.least if self.found else 0

    def begin(self, owner: str, number: int) -> None:
        """This process goes on from transaction `number`; an earlier one has synced no more than it said."""
        body = owner.encode()
        head = struct.pack("<H", len(body))
        self._put(head + body + _SUM.pack(zlib.crc32(head + body)), _OWNER_AT)
        self._written, self._synced = number, min(self._synced, number)
        self._note()

    def wrote(self, number: int) -> None:
        """A transaction was committed."""
        self._written = number
        self._note()

    def synced(self, number: int) -> None:
        """All transactions up to this one have been synced."""
        self._synced = number
        self._note()

    def reset(self) -> None:
        """Nothing is promised any more."""
        self._written = self._synced = 0
        self._note()

    def close(self) -> None:
        """Closes the file."""
        os.close(self._file)

    def _note(self) -> None:
        record = _RECORD.pack(_MAGIC, self._boot, self._written, self._synced)
        self._put(record + _SUM.pack(zlib.crc32(record)), 0)

    def _put(self, body: bytes, at: int) -> None:
        """Overwrites in place, which needs no room; a mark that stays behind vouches for less, and fails nobody."""
        try:
            os.pwrite(self._file, body, at)
        except OSError as error:
            if not self._is_failing:
                log.error("the journal's watermark cannot be written: %s", error)
            self._is_failing = True


def read(path: Path) -> Mark | None:
    """What is noted there; None where nothing is, or nothing that can be read."""
    try:
        body = path.read_bytes()
    except FileNotFoundError:
        return None
    record, rest = body[: _RECORD.size], body[_OWNER_AT:]
    try:
        magic, boot, written, synced = _RECORD.unpack(record)
        (total,) = _SUM.unpack_from(body, _RECORD.size)
        (length,) = struct.unpack_from("<H", rest)
        (owner_total,) = _SUM.unpack_from(rest, 2 + length)
        is_whole = magic == _MAGIC and total == zlib.crc32(record) and owner_total == zlib.crc32(rest[: 2 + length])
        if is_whole:
            return Mark(rest[2 : 2 + length].decode(), boot, written, synced)
    except (struct.error, UnicodeDecodeError):
        pass
    log.warning("%s cannot be read: whether the journal beside it is complete is unknown", path)
    return None


def boot() -> str:
    """What tells this boot of the machine from any other; "" where nothing does."""
    found = _boot()
    return "" if found == _NOWHERE else found.rstrip(b"\0").decode("ascii", "replace")


def _boot() -> bytes:
    try:
        return _read_boot(BOOT_ID)
    except OSError:
        return _NOWHERE


@functools.cache
def _read_boot(path: Path) -> bytes:
    """What is there; once, for it is asked for with each file that is closed."""
    return path.read_bytes()[:36].ljust(36, b"\0")
