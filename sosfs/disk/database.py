"""A SQLite database that notices when rows are lost or altered.

SQLite has no checksums of what it stores, ends a damaged write-ahead log early without a word, and takes an old page
for a new one. So there are three:

    sum         of each row, in the row: its bytes are what was written
    chain       one row, renewed by each transaction: its number, how many rows there are, the sum of their sums
    watermark   beside the database (`watermark`): the number of the last transaction

`salvage` compares them when the database is opened; here they are kept up. The two cost a transaction 20 us, a page of
the log and a pwrite, and no fsync.

A change survives the death of this process as soon as its statement returns (write-ahead log in the page
cache), and the death of the machine once `sync` returns (fsync of that log, shared by all who wait).

On a full disk what is new is ENOSPC and changes nothing. What leads to more room (`Need.RELIEF`) gets that of the
`reserve`, and where even that is too little it is owed: it counts as written, for the bucket has what such rows show
of, and goes before anything else is written. Should the process die before, the next mount finds work that is done.

    open -> (put, drop) -> written            room for all
                        -> owed -> written    no room, and nothing in it is a promise of its own
                        -> taken back         no room

Concurrency: trio thread only, but for the fsync, which runs in a thread.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sqlite3
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from sosfs.concurrency.locks import FairLock
from sosfs.concurrency.threads import LOCAL
from sosfs.disk.reserve import Need, Reserve, bound_log, log_size, os_error
from sosfs.disk.watermark import Watermark
from sosfs.errors import FULL

log = logging.getLogger(__name__)

LOG_LONG = 1000  # transactions in the write-ahead log before its content is brought into the database

Value = str | bytes | int | None
Row = tuple[Any, ...]  # of values
Schema = Mapping[str, Sequence[str]]  # the columns of each table as SQL defines them, the primary key first

CHAIN = "chain (only integer primary key, number integer, rows integer, total integer, sum integer)"
_MODULUS = 1 << 62  # of the sum of all sums, which SQLite holds as a signed number


def _nothing() -> None:
    """Nobody waits for it."""


class _Change(NamedTuple):
    """A row that is written, or goes (`total` None)."""

    statement: str
    values: Row
    place: tuple[str, Value]  # its table and key
    total: int | None  # its checksum


class Database:
    """An open database whose rows are those that were written."""

    def __init__(self, db: sqlite3.Connection, path: Path, schema: Schema, mark: Watermark) -> None:
        """`db` is what `salvage` has found to be sound, or made so."""
        self._reserve = Reserve(path.parent)
        self._owed: list[_Change] = []
        self._block: list[_Change] = []  # of the transaction that is open
        self._finds_no_room = False  # that transaction
        self._db = db
        self._path = path
        self._mark = mark
        self._schema = schema
        self._insert = {
            table: f"insert or replace into {table} values ({', '.join('?' * (len(columns) + 1))})"
            for table, columns in schema.items()
        }
        self._key = {table: columns[0].partition(" ")[0] for table, columns in schema.items()}
        ((number, self._rows, self._total),) = db.execute("select number, rows, total from chain").fetchall()
        self.number: int = number  # of the last transaction
        self._sums: dict[tuple[str, Value], int] = {
            (table, row[0]): row[-1] for table in schema for row in db.execute(f"select * from {table}")
        }
        ids = [key for _, key in self._sums if isinstance(key, int)]
        self._last_id: int = max([self.number, *ids])
        self._undo: list[tuple[tuple[str, Value], int | None]] | None = None  # of the transaction that is open
        self._syncing = FairLock()
        self._log = -1
        self._is_log_whole = True  # as far as the disk has it
        self._synced: int = self.number
        self._checkpointed: int = self.number
        self.wrote: Callable[[], None] = _nothing  # is called after each transaction
        self._reserve.hold()

    @property
    def synced(self) -> int:
        """The number of the last transaction that is on the disk."""
        return self._synced

    def new_id(self) -> int:
        """A number for a row that no row of any table has, or ever had."""
        self._last_id += 1
        return self._last_id

    # Reading

    def has(self, table: str, key: Value) -> bool:
        """Whether there is such a row."""
        return (table, key) in self._sums

    def count(self, table: str) -> int:
        """How many rows a table has."""
        return sum(one == table for one, _ in self._sums)

    def rows(self, table: str) -> list[Row]:
        """All rows of a table by their keys. Raises OSError EIO where the disk or a row fails."""
        found = {row[0]: row for row in self._read(f"select * from {table}", table)}
        for change in (*self._owed, *self._block):
            if change.place[0] == table and change.total is not None:
                found[change.place[1]] = change.values[:-1]
        return [found[key] for key in sorted(found) if self.has(table, key)]

    def row(self, table: str, key: Value) -> Row:
        """The row with this key, which must be there. Raises OSError EIO."""
        for change in reversed(self._owed + self._block):
            if change.place == (table, key) and change.total is not None:
                return change.values[:-1]
        found = self._read(f"select * from {table} where {self._key[table]} = ?", table, key)
        if not found:
            raise OSError(errno.EIO, f"the journal: its row {key!r} of {table} is gone")
        return found[0]

    def _read(self, statement: str, table: str, *values: Value) -> list[Row]:
        found = self._execute(statement, values).fetchall()
        for row in found:
            if checksum(table, row[:-1]) != row[-1]:
                raise OSError(errno.EIO, f"the journal: its row {row[0]} of {table} is damaged")
        return [row[:-1] for row in found]

    # Writing

    def put(self, table: str, *values: Value, need: Need = Need.PROMISE) -> None:
        """Writes a row, over the one with the same key. Raises OSError, which has changed nothing."""
        total = checksum(table, values)
        self._write(_Change(self._insert[table], (*values, total), (table, values[0]), total), need)

    def drop(self, table: str, key: Value) -> None:
        """Removes a row, if there is one, now or once there is room. Raises OSError EIO."""
        if (table, key) in self._sums:
            statement = f"delete from {table} where {self._key[table]} = ?"
            self._write(_Change(statement, (key,), (table, key), None), Need.RELIEF)

    def _write(self, change: _Change, need: Need) -> None:
        is_new = change.total is not None
        must_be = is_new and self._undo is None  # no block of its caller's, which is owed as a whole
        with self.together():
            self._note(change.place, change.total)
            self._block.append(change)
            if not self._finds_no_room:
                self._try(need, change)
            elif must_be and need is Need.RELIEF and self._reserve.give_up():
                self._again()
            if self._finds_no_room and must_be:
                raise self._full()
            if must_be:
                self._commit(need, may_owe=False)

    def _full(self) -> OSError:
        return OSError(errno.ENOSPC, f"the journal: {os.strerror(errno.ENOSPC)}", str(self._path))

    def _try(self, need: Need, *changes: _Change) -> None:
        """Executes them within the transaction; with the reserve's room if need be, else it finds no room."""
        try:
            for change in changes:
                self._execute(change.statement, change.values)
        except OSError as error:
            if error.errno not in FULL:
                raise
            if need is Need.RELIEF and self._reserve.give_up():
                self._again()
            else:
                self._finds_no_room = True

    def _again(self) -> None:
        """Begins the transaction anew: SQLite may have rolled back what came before."""
        self._roll_back()
        self._finds_no_room = False
        try:
            self._execute("begin")
            for change in (*self._owed, *self._block):
                self._execute(change.statement, change.values)
        except OSError as error:
            if error.errno not in FULL:
                raise
            self._finds_no_room = True

    def _note(self, place: tuple[str, Value], total: int | None) -> None:
        assert self._undo is not None
        self._undo.append((place, self._set(place, total)))

    def _set(self, place: tuple[str, Value], total: int | None) -> int | None:
        before = self._sums.pop(place, None)
        if total is not None:
            self._sums[place] = total
        self._rows = len(self._sums)
        self._total = (self._total + (total or 0) - (before or 0)) % _MODULUS
        return before

    @contextmanager
    def together(self, need: Need = Need.RELIEF) -> Iterator[None]:
        """What is written within is there as a whole after a crash, or not at all. Nothing may be awaited within.

        Where it finds no room in the end, it is owed; where the whole is a promise it is taken back, and ENOSPC.
        """
        if self._undo is not None:
            yield  # part of a larger one
            return
        self._begin()
        try:
            yield
            self._commit(need, may_owe=need is Need.RELIEF)
        except BaseException:
            undo: list[tuple[tuple[str, Value], int | None]] = self._undo or []
            self._undo, self._block = None, []
            for place, before in reversed(undo):
                self._set(place, before)
            self._roll_back()
            raise
        self._undo = None

    def _begin(self) -> None:
        self._reserve.hold()
        self._undo, self._block, self._finds_no_room = [], [], False
        try:
            self._execute("begin")
            if self._owed:
                self._try(Need.PROMISE, *self._owed)
        except BaseException:
            self._undo = None
            self._roll_back()
            raise

    def _commit(self, need: Need, *, may_owe: bool) -> None:
        """Ends the transaction that is open, if it still is. Raises ENOSPC where there is no room, if not owed."""
        if not self._db.in_transaction and not self._finds_no_room:
            return  # ended already
        if not self._block and (self._finds_no_room or not self._owed):
            self._roll_back()
            return
        if not self._finds_no_room:
            self._try_to_end(need)
        if self._finds_no_room:
            if not may_owe:
                raise self._full()
            self._owe()

    def _try_to_end(self, need: Need) -> None:
        end = (rechained(self.number + 1, self._rows, self._total), ("commit", ()))
        try:
            for statement, values in end:
                self._execute(statement, values)
        except OSError as error:
            if error.errno not in FULL:
                raise
            if need is Need.PROMISE or not self._reserve.give_up():
                self._finds_no_room = True
                return
            self._again()
            if not self._finds_no_room:
                self._try_to_end(Need.PROMISE)
            return
        self.number += 1
        self._mark.wrote(self.number)
        self._owed.clear()
        self._block = []
        self.wrote()

    def _owe(self) -> None:
        self._roll_back()
        if not self._owed:
            log.warning("what is done stays in the journal until there is room: %s", self._path)
        self._owed += self._block
        self._block, self._finds_no_room = [], False

    def catch_up(self) -> None:
        """Writes what is owed, if there is room by now. Never raises for the disk."""
        if self._owed and self._undo is None:
            with contextlib.suppress(OSError), self.together():
                pass  # what is owed goes first

    def _roll_back(self) -> None:
        if self._db.in_transaction:  # a full disk has ended it already
            self._db.execute("rollback")

    def _execute(self, statement: str, values: Sequence[Value] = ()) -> sqlite3.Cursor:
        try:
            return self._db.execute(statement, values)
        except sqlite3.Error as error:
            failure = os_error(error, self._path)
            raise OSError(failure.errno, f"the journal: {error}") from error

    # The disk

    async def sync(self) -> None:
        """All that was written before is on the disk afterwards. Raises OSError when the disk refuses."""
        wanted = self.number
        async with self._syncing:
            if self._synced >= wanted:
                return
            upto = self.number
            is_long = upto - self._checkpointed > LOG_LONG
            await LOCAL.run(self._sync, is_long)
            self._checkpointed = upto if is_long else self._checkpointed
            self._synced = upto
            self._mark.synced(upto)

    def _sync(self, is_long: bool) -> None:
        """Brings the log to the disk and, when it has grown long, its content into the database."""
        try:
            if self._log < 0:
                self._log = os.open(self._path.with_name(self._path.name + "-wal"), os.O_RDONLY | os.O_CLOEXEC)
            self._sync_log()
            state = os.fstat(self._log)
            is_there = state.st_nlink > 0 and self._path.exists()
            is_long = is_long or state.st_size > 2 * log_size(self._path)
        except FileNotFoundError:
            is_there = False
        if not is_there:
            # SQLite goes on in files that have no name any more: nobody would find there what is promised now.
            raise OSError(errno.EIO, "the journal was removed", str(self._path))
        if is_long:
            with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(self._path, timeout=0)) as db:
                db.execute("pragma wal_checkpoint(passive)")

    def _sync_log(self) -> None:
        """Brings the log to the disk. Raises OSError.

        What the kernel could not write it gives up, and finds nothing wrong the next time; what comes after such a gap
        no reader of the log finds. So after a failure all goes into the database, and the log begins anew.
        """
        if not self._is_log_whole and self._path.exists():
            try:
                with contextlib.closing(sqlite3.connect(self._path, timeout=0)) as db:
                    (is_busy, *_) = db.execute("pragma wal_checkpoint(truncate)").fetchone()
            except sqlite3.Error as error:
                raise os_error(error, self._path) from error
            if is_busy:
                raise OSError(errno.EIO, "the journal's log is in use, and cannot begin anew", str(self._path))
        self._is_log_whole = False
        # Once the log was filled and begins anew, its length stays, and fdatasync has no inode to write.
        os.fdatasync(self._log)
        self._is_log_whole = True

    def close(self, *, is_idle: bool) -> None:
        """Closes it. `is_idle`: nothing in it matters any more, so that it may as well be removed."""
        self._reserve.give_up()
        self.wrote = _nothing
        self.catch_up()
        if self._owed:
            log.warning("%d rows of %s tell of what is done: the next mount finds that", len(self._owed), self._path)
        if self._log >= 0:
            os.close(self._log)
        if is_idle and self._path.exists():  # what is owed tells of what is done
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("pragma wal_checkpoint(truncate)")
                self._mark.reset()
        self._db.close()


def checksum(table: str, row: Sequence[Value]) -> int:
    """The CRC-32 of a row as a whole: type, length and bytes of each value, and the table."""
    total, shape = 0, table
    for value in row:
        if isinstance(value, str):
            body, kind = value.encode("utf-8", "surrogateescape"), "t"
        elif isinstance(value, bytes):
            body, kind = value, "b"
        else:
            body, kind = b"%d" % value if value is not None else b"", "i" if value is not None else "n"
        total = zlib.crc32(body, total)
        shape += f"{kind}{len(body)}"
    return zlib.crc32(shape.encode(), total)


def summed(sums: Sequence[int]) -> int:
    """What the chain says of rows with these checksums."""
    return sum(sums) % _MODULUS


def chained(number: int, rows: int, total: int) -> tuple[str, Row]:
    """The statement that begins the chain."""
    return "insert into chain values (1, ?, ?, ?, ?)", (number, rows, total, chain_sum(number, rows, total))


def rechained(number: int, rows: int, total: int) -> tuple[str, Row]:
    """The statement that renews the chain."""
    statement = "update chain set number = ?, rows = ?, total = ?, sum = ?"
    return statement, (number, rows, total, chain_sum(number, rows, total))


def chain_sum(number: Value, rows: Value, total: Value) -> int:
    """The checksum of the chain's row."""
    return zlib.crc32(f"chain {number!r} {rows!r} {total!r}".encode("utf-8", "surrogateescape"))


def tables(schema: Schema) -> list[str]:
    """The statements that make the tables. None has an index beside it, for which its checksums would not vouch."""
    made = [
        f"{table} ({', '.join(columns)}, sum integer not null)" + (" without rowid" if " text " in columns[0] else "")
        for table, columns in schema.items()
    ]
    return [f"create table {one}" for one in [*made, CHAIN]]


def connect(path: Path) -> sqlite3.Connection:
    """The database as it is; nothing is written by that. Text that is none comes back with surrogates."""
    db = sqlite3.connect(path, isolation_level=None)
    db.text_factory = lambda body: body.decode("utf-8", "surrogateescape")
    return db


def configure(db: sqlite3.Connection, path: Path) -> None:
    """Makes a sound database ready for use."""
    # The fsync runs beside, in `sync`; SQLite itself is used from the trio thread alone.
    db.execute("pragma journal_mode = wal")
    db.execute("pragma synchronous = normal")
    bound_log(db, path)
