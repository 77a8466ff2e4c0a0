"""Hold back disk space, so that a database can be written when the disk is full.

A file beside the journal takes room, which is given up for what leads to more: a row that goes, a delete or an upload
that begins. So files can be removed and sent on a full disk, while what is new there is ENOSPC and changes nothing.

Concurrency: trio thread only.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sqlite3
from enum import Enum
from pathlib import Path

from sosfs.disk.free_space import Disk

log = logging.getLogger(__name__)

RESERVE, RESERVE_SHARE = 1 << 20, 64  # bytes held back: some hundred statements; of a small disk this part
LOG_MIN, LOG_MAX, LOG_SHARE = 512 << 10, 80 << 20, 64  # bytes of the write-ahead log; the part of a small disk
PAGE = 4096  # bytes
SCRAPS = 64 << 10  # bytes: with less than that SQLite may fail before it says that the disk is full


class Need(Enum):
    """What a statement is for."""

    PROMISE = "promise"  # something new is kept
    RELIEF = "relief"  # room will be free afterwards, or soon


def os_error(error: sqlite3.Error, path: Path) -> OSError:
    """What SQLite says of a database, as an OSError: ENOSPC, EROFS or EIO."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    text = f"{path}: {error}"
    if code == sqlite3.SQLITE_FULL:
        return OSError(errno.ENOSPC, text)
    if code == sqlite3.SQLITE_READONLY:
        return OSError(errno.EROFS, text)
    with contextlib.suppress(OSError):  # what the database says is told then
        if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN) and Disk(path.parent).room().free < SCRAPS:
            return OSError(errno.ENOSPC, f"{text}: the disk is full")
    return OSError(errno.EIO, text)


def bound_log(db: sqlite3.Connection, path: Path) -> None:
    """Bounds the write-ahead log of a database: else it could fill a small disk by itself."""
    size = log_size(path)
    # Checkpoints sync the disk, so they run in a thread (`Database.sync`); here only if nobody ever calls that.
    db.execute(f"pragma wal_autocheckpoint = {min(20_000, size // PAGE)}")
    db.execute(f"pragma journal_size_limit = {size}")


def log_size(path: Path) -> int:
    """Bytes that the write-ahead log of a database may have on its disk."""
    return max(LOG_MIN, min(LOG_MAX, Disk(path.parent).room().size // LOG_SHARE))


def is_damage(error: sqlite3.Error) -> bool:
    """Whether a database is no more what it was; whatever else SQLite says, it may be whole."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF  # none: quick_check has failed
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class Reserve:
    """A file beside the journal that takes room to give it up."""

    def __init__(self, directory: Path) -> None:
        self._disk = Disk(directory)
        self._path = directory / "reserve"
        self._size = min(RESERVE, self._disk.room().size // RESERVE_SHARE)
        self._is_held = self._path.exists()

    def hold(self) -> None:
        """Takes the room, where there is far more than that."""
        if self._is_held or self._disk.room().free < 4 * self._size:
            return
        try:
            file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(file, 0, self._size)
            finally:
                os.close(file)
        except OSError as error:
            log.info("nothing is held back for the journal: %s", error)
            self._path.unlink(missing_ok=True)
            return
        self._is_held = True

    def give_up(self) -> bool:
        """Frees the room. Whether there was any."""
        was_held, self._is_held = self._is_held, False
        self._path.unlink(missing_ok=True)
        return was_held
