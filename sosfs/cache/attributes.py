"""Object metadata on disk, kept over restarts and valid for one version each.

A listing shows an object's key, ETag, size and time. If all four are as they were when the object's
metadata was last read or written here, the metadata is too: a rewrite of metadata alone changes the time.
So the second `ls -l` costs no HEAD, in this mount or the next. After our own write the time is not known
yet; the listing's is then taken if it is that of the write, give or take `SLACK`. After a crash, or as long as the
disk refuses a change, such rows hold no more, and neither do those of objects that were young when they were read: a
later write of metadata alone, which the table has not heard of, may look the same.

A cache and nothing more: it is never synced, a damaged one is thrown away, and nothing is lost with it.

Concurrency: trio thread only. New rows gather in memory and are written a thousand at a time.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from operator import attrgetter
from pathlib import Path

from sosfs.disk.reserve import is_damage, os_error
from sosfs.s3.protocol import Headers, Properties, Version

log = logging.getLogger(__name__)

Place = tuple[str, str]  # the folder and the name of an object

GATHER = 1000  # rows written in one transaction (3 ms)
ROWS_MAX = 2_000_000  # about 500 MB of disk
UNWRITTEN_MAX = 50_000  # places of which it is remembered that the disk may have something else: about 10 MB
SLACK = 5  # seconds between our clock and the server's, at most, for our own writes to be recognised
_SHARED = 3  # in the column `whole`, for what is also shared
_IF_NEWER = """ on conflict do update set etag = excluded.etag, size = excluded.size, modified = excluded.modified,
  written = excluded.written, whole = excluded.whole, properties = excluded.properties
  where excluded.modified > attributes.modified"""
_IS_UNCERTAIN = f"(modified is null or written <= modified + {SLACK})"  # may look like what was written since
_DELETE = "delete from attributes where folder = ? and name = ?"
_CLOSED = 1  # the table's user_version while no mount has it
_TABLE = """
create table if not exists attributes (
  folder text not null, name text not null, etag text not null, size integer not null,
  modified integer, written integer not null, whole integer not null, properties text not null,
  primary key (folder, name)) without rowid;
"""


@dataclass(frozen=True, slots=True)
class Remembered:
    """One object's properties and the version they belong to; `written` is our clock, in seconds."""

    version: Version
    written: int
    properties: Properties
    whole: bool
    shared: bool = False  # other machines may have it from the index in the bucket

    def holds_for(self, listed: Version) -> bool:
        """Whether the listed version is the one that these properties belong to."""
        if not self.version.same_as(listed):
            return False
        if self.version.modified is not None or listed.modified is None:
            return True
        return abs(listed.modified - self.written) <= SLACK


class AttributeCache:
    """The attribute cache of a mount."""

    def __init__(self, path: Path) -> None:
        """Opens it, or begins it anew. Raises OSError ENOSPC and the like where the disk refuses."""
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._db = _opened(path)
        self._was_refused = False
        self._unwritten: set[Place] | None = set()  # where the disk may have what holds no more; None for too many
        self._fresh: dict[Place, Remembered | None] = {}

    @property
    def _is_behind(self) -> bool:
        """Whether what was dropped, or replaced, may be on the disk yet."""
        return self._unwritten is None or bool(self._unwritten)

    def close(self) -> None:
        """Writes what is in memory. Never raises for a disk that refuses."""
        self.flush()
        try:
            if not self._is_behind:
                self._db.execute(f"pragma user_version = {_CLOSED}")
        except sqlite3.Error as error:
            log.info("the attribute cache is taken for one of a crash next time: %s", error)
        self._db.close()

    def page(self, folder: str, first: str, last: str) -> Mapping[str, Remembered]:
        """What is remembered of the objects of a folder (a prefix) from name to name."""
        self.flush()
        return self._read(folder, first, last)

    def _read(self, folder: str, first: str, last: str) -> Mapping[str, Remembered]:
        left = f" and not {_IS_UNCERTAIN}" if self._is_behind else ""
        try:
            rows = self._db.execute(
                "select name, etag, size, modified, written, whole, properties from attributes"
                " where folder = ? and name between ? and ?" + left,
                (folder, first, last),
            ).fetchall()
        except sqlite3.Error as error:
            log.warning("the attribute cache cannot be read: %s", error)
            return {}
        found = {}
        for name, *row in rows:
            try:
                found[name] = _remembered(*row)
            except (TypeError, ValueError) as error:  # sqlite has no checksums
                log.warning("the attribute cache has a damaged row: %s", error)
        return found

    def find(self, folder: str, name: str) -> Remembered | None:
        """What is remembered of one object."""
        if (folder, name) in self._fresh:
            return self._fresh[folder, name]
        return self._read(folder, name, name).get(name)

    def put(self, key: str, version: Version, properties: Properties, *, whole: bool) -> None:
        """Remembers an object's properties."""
        self._fresh[place_of(key)] = Remembered(version, int(time.time()), properties, whole)
        if len(self._fresh) >= GATHER:
            self.flush()

    def adopt(self, rows: Iterable[tuple[str, Version, Properties]]) -> None:
        """Remembers what other machines have learned, but for objects of which something newer is remembered."""
        self.flush()
        now = int(time.time())
        taken = [
            (*place_of(key), *_row(Remembered(version, now, properties, whole=True, shared=True)))
            for key, version, properties in rows
        ]
        self._change("insert into attributes values (?, ?, ?, ?, ?, ?, ?, ?)" + _IF_NEWER, taken)

    def has_under(self, folder: str) -> bool:
        """Whether something is remembered of an object below a prefix that ends in "/"."""
        if not folder:
            return False
        if any(place[0].startswith(folder) for place in self._fresh):
            self.flush()
        try:
            found = self._db.execute(
                "select 1 from attributes where folder >= ? and folder < ? limit 1", (folder, f"{folder[:-1]}0")
            ).fetchone()
        except sqlite3.Error as error:
            log.warning("the attribute cache cannot be read: %s", error)
            return False
        return found is not None

    def mark_shared(self, rows: Iterable[tuple[str, Version]]) -> None:
        """Other machines may have what is remembered of these versions."""
        self.flush()
        self._change(
            f"update attributes set whole = {_SHARED} where folder = ? and name = ? and etag = ? and modified = ?",
            [(*place_of(key), version.etag, version.modified) for key, version in rows],
        )

    def _change(self, statement: str, rows: Sequence[tuple[object, ...]]) -> None:
        try:
            with self._db:
                self._db.executemany(statement, rows)
        except sqlite3.Error as error:
            self._refused("written", error)

    def drop(self, key: str) -> None:
        """Forgets an object that is gone, or whose metadata are about to change."""
        self._fresh[place_of(key)] = None

    def take_under(self, folder: str, *, limit: int) -> list[tuple[str, Version]]:
        """Forgets up to `limit` objects below a prefix ("" or ending in "/"); returns their keys and versions."""
        self.flush()
        above = f"{folder[:-1]}0" if folder else None  # "0" follows "/"
        try:
            with self._db:
                rows = self._db.execute(
                    "select folder, name, etag, size, modified from attributes"
                    " where folder >= ? and (? is null or folder < ?) limit ?",
                    (folder, above, above, limit),
                ).fetchall()
                self._db.executemany(_DELETE, [row[:2] for row in rows])
        except sqlite3.Error as error:
            self._refused("changed", error)
            return []
        return [(row[0] + row[1], Version(*row[2:])) for row in rows]

    def flush(self) -> None:
        """Writes what is in memory; a disk that refuses costs HEADs later and nothing else."""
        if not self._fresh and not self._unwritten:
            return
        fresh, self._fresh = self._fresh, {}
        try:
            while self._unwritten:  # in small steps: a full disk refuses each page of a listing anew
                self._forget(some := list(islice(self._unwritten, GATHER)))
                self._unwritten.difference_update(some)
            with self._db:
                gone = [place for place, row in fresh.items() if row is None]
                self._db.executemany(_DELETE, gone)
                self._db.executemany(
                    "insert or replace into attributes values (?, ?, ?, ?, ?, ?, ?, ?)",
                    [(*place, *_row(row)) for place, row in fresh.items() if row is not None],
                )
        except sqlite3.Error as error:
            if self._unwritten is not None:
                self._unwritten = {*self._unwritten, *fresh} if len(self._unwritten) < UNWRITTEN_MAX else None
            self._refused("written", error)
        else:
            self._was_refused = False

    def _forget(self, places: Sequence[Place]) -> None:
        with self._db:
            self._db.executemany(_DELETE, places)

    def _refused(self, what: str, error: sqlite3.Error) -> None:
        """A full disk is told of once, not with every thousand rows."""
        level = logging.DEBUG if self._was_refused else logging.WARNING
        log.log(level, "the attribute cache cannot be %s: %s", what, error)
        self._was_refused = True


_encode = json.JSONEncoder(separators=(",", ":")).encode  # json.dumps would make an encoder a row
_headers_of = attrgetter(*Headers.__slots__)


def place_of(key: str) -> Place:
    """A key as folder and name."""
    folder, slash, name = key.rpartition("/")
    return folder + slash, name


def _row(row: Remembered) -> tuple[object, ...]:
    known = row.properties
    properties = _encode([_headers_of(known.headers), dict(known.metadata), known.storage_class])
    version = row.version
    whole = _SHARED if row.shared else int(row.whole)
    return version.etag, version.size, version.modified, row.written, whole, properties


def _remembered(etag: str, size: int, modified: int | None, written: int, whole: int, properties: str) -> Remembered:
    headers, metadata, *rest = json.loads(properties)  # older rows have no storage class: the listing shows it
    known = Properties(Headers(*headers), metadata, *rest)
    return Remembered(Version(etag, size, modified), written, known, bool(whole), whole == _SHARED)


def _opened(path: Path) -> sqlite3.Connection:
    try:
        return _prepared(path)
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            raise os_error(error, path) from error
        log.warning("the attribute cache is begun anew: %s", error)
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                path.with_name(path.name + suffix).unlink()
        return _prepared(path)


def _prepared(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path)
    db.execute("pragma journal_mode = wal")
    db.execute("pragma synchronous = off")
    db.executescript(_TABLE)
    if db.execute("pragma user_version").fetchone()[0] != _CLOSED:
        db.execute(f"delete from attributes where {_IS_UNCERTAIN}")
        db.commit()
    db.execute("pragma user_version = 0")
    if db.execute("select count(*) from attributes").fetchone()[0] > ROWS_MAX:
        db.execute("delete from attributes where written < (select avg(written) from attributes)")
        db.commit()
    return db
