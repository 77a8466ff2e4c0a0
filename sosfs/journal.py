"""What must outlive a crash, and how it is kept: decided here and only here.

One SQLite database in the cache directory holds what was promised and is not in the bucket yet: drafts, deletes,
attribute changes, directory renames, and the multipart uploads under way. A row is written before the promise
and removed after the bucket has it, so a replay may find work that is done already, never miss some.

A change survives the death of this process as soon as its statement returns (write-ahead log in the page
cache), and the death of the machine once `sync` returns (fsync of that log, shared by all who wait).
Every row carries a checksum; small drafts lie in their row, large ones in the spool, with a checksum of each MiB.

Concurrency: trio thread only, but for the fsync, which runs in a thread.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import sqlite3
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .cache_lock import locked
from .metadata import Posix
from .saved import (
    SavedAttributes,
    SavedDraft,
    draft_back,
    draft_record,
    posix_record,
    properties_back,
    properties_record,
    version_back,
    version_record,
)
from .store import Properties, Version
from .threads import LOCAL
from .turns import Turns

log = logging.getLogger(__name__)

FORMAT = "1"
LOG_LONG = 1000  # statements in the write-ahead log before its content is brought into the database
CHANGES = ("drafts", "deletes", "attributes", "renames")  # the tables of what the bucket lacks
_TABLES = """
create table if not exists facts (name text primary key, value text not null);
create table if not exists drafts (id integer primary key, record text not null, body blob, sum integer not null,
  open integer not null default 0);
create table if not exists goings (id integer primary key, token text not null);
create trigger if not exists draft_renewed after update of record on drafts
  begin delete from goings where id = new.id; end;
create trigger if not exists draft_dropped after delete on drafts begin delete from goings where id = old.id; end;
create table if not exists deletes (key text primary key, version text not null);
create table if not exists attributes (id integer primary key, record text not null);
create table if not exists renames (id integer primary key, old text not null, new text not null);
create table if not exists rename_states (id integer primary key, state text not null);
create trigger if not exists rename_dropped after delete on renames
  begin delete from rename_states where id = old.id; end;
create table if not exists uploads (upload text primary key, key text not null, properties text not null);
create table if not exists intents (key text primary key, since integer not null);
"""


class Journal:
    """The journal of one mount, locked against any other."""

    def __init__(self, directory: Path, owner: str) -> None:
        """Opens or begins the journal of `owner` (endpoint, bucket and prefix).

        Raises OSError EBUSY when another mount has it, EINVAL when it is another bucket's.
        """
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path = directory / "journal.sqlite"
        self._lock = locked(directory)
        self._db, self.is_new = _opened(self._path)
        self._require(owner)
        self._syncing = Turns()
        self._written = 0
        self._synced = 0
        self._checkpointed = 0

    def _require(self, owner: str) -> None:
        found = dict(self._db.execute("select name, value from facts").fetchall())
        if found.get("owner", owner) != owner:
            self.close()
            raise OSError(errno.EINVAL, f"{self._path.parent} holds the journal of another bucket: {found['owner']}")
        if found.get("format", FORMAT) != FORMAT:
            self.close()
            raise OSError(errno.EINVAL, f"{self._path} was written by another version of sosfs")
        self._db.executemany("insert or ignore into facts values (?, ?)", [("owner", owner), ("format", FORMAT)])

    def close(self) -> None:
        """Closes the database and lets others have it."""
        self._db.close()
        os.close(self._lock)

    async def sync(self) -> None:
        """All that was written before is on the disk afterwards. Raises OSError when the disk refuses."""
        wanted = self._written
        async with self._syncing:
            if self._synced >= wanted:
                return
            upto = self._written
            is_long = upto - self._checkpointed > LOG_LONG
            await LOCAL.run(_sync, self._path, is_long)
            self._checkpointed = upto if is_long else self._checkpointed
            self._synced = upto

    async def settled(self) -> None:
        """What was dropped is not done again after a power loss, to what has the name then. Never raises."""
        try:
            await self.sync()
        except OSError as error:
            log.error("the journal cannot be written: %s", error)

    def _write(self, statement: str, values: Sequence[object]) -> int:
        self._written += 1
        try:
            return self._db.execute(statement, values).lastrowid or 0
        except sqlite3.Error as error:
            raise OSError(errno.EIO, f"the journal: {error}") from error

    @contextmanager
    def together(self) -> Iterator[None]:
        """What is written within is there as a whole after a crash, or not at all. Nothing may be awaited within."""
        self._write("begin", ())
        try:
            yield
        except BaseException:
            self._write("rollback", ())
            raise
        self._write("commit", ())

    # Drafts

    def save_draft(self, row: int, saved: SavedDraft) -> int:
        """Stores a draft in its row, or in a new one for 0; returns the row."""
        record = json.dumps(draft_record(saved))
        total = zlib.crc32(saved.body, zlib.crc32(record.encode()))
        body = saved.body if not saved.spool else None
        if row:
            change = "update drafts set record = ?, body = ?, sum = ?, open = 0 where id = ?"
            self._write(change, (record, body, total, row))
            return row
        return self._write("insert into drafts (record, body, sum) values (?, ?, ?)", (record, body, total))

    def alter_draft(self, row: int, change: Callable[[SavedDraft], SavedDraft]) -> None:
        """Changes what a row says of a draft; its bytes stay, and whether its spool is being written to."""
        record, body = self._db.execute("select record, body from drafts where id = ?", (row,)).fetchone()
        changed = json.dumps(draft_record(change(draft_back(json.loads(record), body or b""))))
        total = zlib.crc32(body or b"", zlib.crc32(changed.encode()))
        self._write("update drafts set record = ?, sum = ? where id = ?", (changed, total, row))

    def reopen_draft(self, row: int) -> None:
        """Its spool is being written to: from now on the checksums in the row say nothing."""
        self._write("update drafts set open = 1 where id = ?", (row,))

    def draft_goes(self, row: int, token: str) -> None:
        """A request is about to make the object with this token (`landing`), from all that the row has or from more.

        This has a table of its own, since to change a row is to write the draft's bytes again.
        """
        self._write("insert or replace into goings values (?, ?)", (row, token))

    def drop_draft(self, row: int) -> None:
        """The bucket has it, or nobody wants it any more."""
        self._write("delete from drafts where id = ?", (row,))

    def drafts(self) -> Iterator[tuple[int, SavedDraft]]:
        """All drafts, oldest first; a damaged row is logged and left in place."""
        columns = "id, record, body, sum, open, token"
        rows = self._db.execute(f"select {columns} from drafts left join goings using (id) order by id").fetchall()
        for row, record, body, total, is_open, token in rows:
            if zlib.crc32(body or b"", zlib.crc32(record.encode())) != total:
                log.error("row %d of the journal is damaged and left alone", row)
                continue
            known = json.loads(record)
            known["going"] = [token, True] if token else known["going"]
            if is_open and known["going"]:
                known["going"][1] = False
            yield row, draft_back({**known, "sums": [] if is_open else known["sums"]}, body or b"")

    # Deletes

    def add_delete(self, key: str, version: Version) -> None:
        """A key is to be removed, as long as it has this version."""
        self._write("insert or replace into deletes values (?, ?)", (key, json.dumps(version_record(version))))

    def drop_delete(self, key: str) -> None:
        """It is gone."""
        self._write("delete from deletes where key = ?", (key,))

    def deletes(self) -> list[tuple[str, Version]]:
        """What is to be removed."""
        rows = self._db.execute("select key, version from deletes").fetchall()
        return [(key, Version(*json.loads(version))) for key, version in rows]

    # Attributes

    def save_attributes(self, row: int, saved: SavedAttributes) -> int:
        """Stores an attribute change in its row, or in a new one for 0; returns the row."""
        what = [saved.key, version_record(saved.version), posix_record(saved.posix)]
        record = json.dumps([*what, properties_record(saved.properties)])
        if row:
            self._write("update attributes set record = ? where id = ?", (record, row))
            return row
        return self._write("insert into attributes (record) values (?)", (record,))

    def drop_attributes(self, row: int) -> None:
        """They are written."""
        self._write("delete from attributes where id = ?", (row,))

    def attributes(self) -> list[tuple[int, SavedAttributes]]:
        """What is to be written, oldest first."""
        found = []
        for row, record in self._db.execute("select id, record from attributes order by id").fetchall():
            key, version, posix, properties = json.loads(record)
            found.append((row, SavedAttributes(key, version_back(version), Posix(*posix), properties_back(properties))))
        return found

    # Renames and uploads

    def add_rename(self, old: str, new: str) -> int:
        """A rename of what the bucket has begins, from key to key or prefix to prefix; returns its row."""
        return self._write("insert into renames (old, new) values (?, ?)", (old, new))

    def set_rename(self, row: int, state: str) -> None:
        """How far a rename is (`moving`)."""
        self._write("insert or replace into rename_states values (?, ?)", (row, state))

    def rename_states(self) -> dict[int, str]:
        """How far each rename is, by row."""
        return dict(self._db.execute("select id, state from rename_states").fetchall())

    def drop_rename(self, row: int) -> None:
        """It is done, or undone."""
        self._write("delete from renames where id = ?", (row,))

    def renames(self) -> list[tuple[int, str, str]]:
        """Renames under way, oldest first."""
        return self._db.execute("select id, old, new from renames order by id").fetchall()

    def add_intent(self, key: str, since: int) -> None:
        """A multipart upload of this key is about to begin, at `since` (epoch): its id is not known before the answer.

        One that is noted already keeps its time.
        """
        self._write("insert or ignore into intents values (?, ?)", (key, since))

    def drop_intent(self, key: str) -> None:
        """The store has answered, and no such upload is unknown."""
        self._write("delete from intents where key = ?", (key,))

    def intents(self) -> list[tuple[str, int]]:
        """The beginnings that got no answer, as (key, since)."""
        return self._db.execute("select key, since from intents").fetchall()

    def add_upload(self, upload: str, key: str, properties: Properties) -> None:
        """A multipart upload of ours has begun, with the properties that the object will have."""
        record = json.dumps(properties_record(properties))
        self._write("insert or replace into uploads values (?, ?, ?)", (upload, key, record))

    def drop_upload(self, upload: str) -> None:
        """It is completed or aborted."""
        self._write("delete from uploads where upload = ?", (upload,))

    def uploads(self) -> list[tuple[str, str, Properties]]:
        """Uploads that were neither completed nor aborted, as (id, key, properties)."""
        rows = self._db.execute("select upload, key, properties from uploads").fetchall()
        return [(upload, key, properties_back(json.loads(record))) for upload, key, record in rows]

    @property
    def rows(self) -> int:
        """How much is pending."""
        return sum(self._db.execute(f"select count(*) from {table}").fetchone()[0] for table in CHANGES)


@dataclass(frozen=True, slots=True)
class LeftOver:
    """What a journal that nobody has open holds: `changes` that the bucket lacks, and unfinished `uploads`."""

    owner: str  # as for `Journal`
    changes: int
    uploads: int


def left_over(directory: Path) -> LeftOver | None:
    """What the journal in a directory holds, None where there is none. Raises OSError EIO where it cannot be read."""
    path = directory / "journal.sqlite"
    if not path.exists():
        return None
    try:
        with contextlib.closing(sqlite3.connect(path)) as db:
            (owner,) = db.execute("select value from facts where name = 'owner'").fetchone()
            counted = [db.execute(f"select count(*) from {table}").fetchone()[0] for table in (*CHANGES, "uploads")]
    except (sqlite3.Error, TypeError) as error:
        raise OSError(errno.EIO, f"{path}: {error}") from error
    return LeftOver(owner, sum(counted[:-1]), counted[-1])


def _opened(path: Path) -> tuple[sqlite3.Connection, bool]:
    """The database, and whether it had to be begun anew; one that SQLite cannot read is put aside."""
    is_new = not path.exists()
    try:
        return _prepared(path), is_new
    except sqlite3.DatabaseError as error:
        aside = path.with_name(f"{path.name}.damaged-{int(time.time())}")
        log.error("the journal cannot be read and is kept as %s: %s", aside, error)
        for suffix in ("", "-wal", "-shm"):
            source = path.with_name(path.name + suffix)
            if source.exists():
                source.rename(aside.with_name(aside.name + suffix))
        return _prepared(path), True


def _prepared(path: Path) -> sqlite3.Connection:
    # The fsync runs beside, in `sync`; SQLite itself is used from the trio thread alone.
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("pragma journal_mode = wal")
    db.execute("pragma synchronous = normal")
    # Checkpoints sync the disk, so they run in `_sync`'s thread; here only if nobody ever calls it.
    db.execute("pragma wal_autocheckpoint = 20000")
    db.executescript(_TABLES)
    if db.execute("pragma quick_check").fetchone()[0] != "ok":
        db.close()
        raise sqlite3.DatabaseError("quick_check failed")
    return db


def _sync(path: Path, is_long: bool) -> None:
    """Brings the log to the disk and, when it has grown long, its content into the database."""
    try:
        file = os.open(path.with_name(path.name + "-wal"), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return  # nothing was written since the database was opened
    try:
        # Once the log was filled and begins anew, its length stays, and fdatasync has no inode to write.
        os.fdatasync(file)
    finally:
        os.close(file)
    if is_long:
        with contextlib.closing(sqlite3.connect(path, timeout=0)) as db, contextlib.suppress(sqlite3.Error):
            db.execute("pragma wal_checkpoint(passive)")
