"""How the statements of the journal get onto a disk that may be full.

A file holds some room back. It is given up for a statement that leads to more room: a row that goes, a delete or an
upload that begins. So files can be removed and sent on a full disk, while what is new there is ENOSPC and changes
nothing. Rows that cannot even go are owed, for the bucket has what they tell of: they go before anything else is
written. Should the process die before, the next mount finds work that is done already.

Concurrency: trio thread only.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path

from .disk import Disk
from .errors import FULL

log = logging.getLogger(__name__)

RESERVE, RESERVE_SHARE = 1 << 20, 64  # bytes held back: some hundred statements; of a small disk this part
LOG_MIN, LOG_MAX, LOG_SHARE = 512 << 10, 80 << 20, 64  # bytes of the write-ahead log; the part of a small disk
PAGE = 4096  # bytes
SCRAPS = 64 << 10  # bytes: with less than that SQLite may fail before it says that the disk is full

_Statement = tuple[str, Sequence[object]]


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
    size = _log_size(path)
    # Checkpoints sync the disk, so they run in `sync_log`'s thread; here only if nobody ever calls it.
    db.execute(f"pragma wal_autocheckpoint = {min(20_000, size // PAGE)}")
    db.execute(f"pragma journal_size_limit = {size}")


def _log_size(path: Path) -> int:
    return max(LOG_MIN, min(LOG_MAX, Disk(path.parent).room().size // LOG_SHARE))


def sync_log(path: Path, is_long: bool) -> None:
    """Brings the log to the disk and, when it has grown long, its content into the database. Blocks; raises OSError."""
    try:
        file = os.open(path.with_name(path.name + "-wal"), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return  # nothing was written since the database was opened
    try:
        # Once the log was filled and begins anew, its length stays, and fdatasync has no inode to write.
        os.fdatasync(file)
        is_long = is_long or os.fstat(file).st_size > 2 * _log_size(path)
    finally:
        os.close(file)
    if is_long:
        with contextlib.closing(sqlite3.connect(path, timeout=0)) as db, contextlib.suppress(sqlite3.Error):
            db.execute("pragma wal_checkpoint(passive)")


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


class Statements:
    """What is written to one database. `reserve` is held from now on, until `close`."""

    def __init__(self, db: sqlite3.Connection, path: Path, reserve: Reserve) -> None:
        self.count = 0
        self._db = db
        self._path = path
        self._reserve = reserve
        self._owed: list[_Statement] = []
        self._block: list[_Statement] | None = None
        reserve.hold()

    def close(self) -> None:
        """Writes what is owed if it can, and gives up the reserve."""
        self._reserve.give_up()
        if self._owed and not self._pays():
            log.warning("%d rows of %s tell of what is done: the next mount finds that", len(self._owed), self._path)

    def write(self, statement: str, values: Sequence[object], need: Need = Need.PROMISE) -> int:
        """Executes it; returns the id of a row that was inserted. Raises OSError ENOSPC, which changed nothing, EIO."""
        self.count += 1
        if self._block is None:
            self._reserve.hold()
            if self._owed and not self._pays():
                raise OSError(errno.ENOSPC, f"{self._path}: the disk is full")
        row = self._execute(statement, values, need)
        if self._block is not None:
            self._block.append((statement, values))
        return row

    def drop(self, statement: str, values: Sequence[object]) -> None:
        """Executes what removes a row that nobody needs any more, now or once there is room. Raises OSError EIO."""
        try:
            self.write(statement, values, Need.RELIEF)
        except OSError as error:
            if error.errno not in FULL:
                raise
            self._owes([(statement, values)], error)

    @contextmanager
    def together(self) -> Iterator[None]:
        """What is written within is there as a whole after a crash, or not at all. Nothing may be awaited within.

        Where it finds no room in the end, it is owed, after what is owed already. The rows that it inserts have their
        ids then, too: nothing else is written before.
        """
        self._reserve.hold()
        self._execute("begin", (), Need.RELIEF)
        block = self._block = []
        try:
            for statement, values in self._owed:
                self._execute(statement, values, Need.RELIEF)
            yield
            self._commit(block)
        except BaseException:
            self._roll_back()
            raise
        finally:
            self._block = None

    def _execute(self, statement: str, values: Sequence[object], need: Need) -> int:
        try:
            return self._db.execute(statement, values).lastrowid or 0
        except sqlite3.Error as error:
            failure = os_error(error, self._path)
            was_in = self._block is None or self._db.in_transaction  # else it was rolled back, with what came before
            if failure.errno not in FULL or need is Need.PROMISE or not was_in or not self._reserve.give_up():
                raise failure from error
        return self._execute(statement, values, Need.PROMISE)

    def _commit(self, block: list[_Statement]) -> None:
        try:
            self._execute("commit", (), Need.RELIEF)
        except OSError as error:
            self._roll_back()
            if error.errno not in FULL:
                raise
            self._owes(block, error)
        else:
            self._owed.clear()

    def _owes(self, statements: list[_Statement], error: OSError) -> None:
        if not self._owed:
            log.warning("what is done stays in the journal until there is room: %s", error)
        self._owed += statements

    def _pays(self) -> bool:
        try:
            self._execute("begin", (), Need.PROMISE)
            for statement, values in self._owed:
                self._execute(statement, values, Need.PROMISE)
            self._execute("commit", (), Need.PROMISE)
        except OSError as error:
            log.debug("%d rows of the journal are still owed: %s", len(self._owed), error)
            self._roll_back()
            return False
        self._owed.clear()
        return True

    def _roll_back(self) -> None:
        if self._db.in_transaction:
            self._db.execute("rollback")
