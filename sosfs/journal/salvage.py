"""Open the journal and set aside what is not as it was written.

    as it was written                             -> it is used                                         SOUND
    rows that are not what was written            -> each is set aside, the others are used             ROWS
    rows vanished, the log ended early,           -> the database and its log are set aside; the rows
    SQLite cannot read it, it is gone                that can be vouched for come into a new one        INCOMPLETE

What an incomplete journal says may be out of date, and a spool file without a row may belong to a row that was lost.
Who takes up the rows has to know that, at the next mount too if it does not get that far in this one: so the finding
is a row of the new database, until the recovery is done.

A new database is complete (`.new`) before the old one goes, so a crash between leaves one of both. Where the disk is
full, or refuses, it is an error in one line, and everything is as it was.

Concurrency: none; before the mount's first task.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import re
import sqlite3
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from sosfs.disk.damage import Damage, sync_directory
from sosfs.disk.database import (
    Database,
    Row,
    Schema,
    chain_sum,
    chained,
    checksum,
    configure,
    connect,
    summed,
    tables,
)
from sosfs.disk.reserve import Reserve, os_error
from sosfs.disk.watermark import Watermark
from sosfs.errors import FULL

FORMAT = "2"
FINDING = "finding"  # the name of a row of `facts`
SPOOL = re.compile(r"[0-9a-f]+-[0-9]+\.spool")
MOST = 10_000_000  # rows that are read of a damaged table, which may lead in circles
DAMAGED = {
    *(sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT),
    *(sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_IOERR_SHORT_READ),
}
WORDS = {
    "drafts": "the bytes of {}",
    "goings": "a request on its way",
    "attributes": "attributes of {}",
    "deletes": "the removal of {}",
    "renames": "the rename of {}",
    "rename_states": "how far a rename is",
    "uploads": "an unfinished upload of {}",
    "intents": "an unfinished upload of {}",
    "facts": "what the journal says of itself",
}


class Finding(Enum):
    """How far a journal can be trusted."""

    SOUND = "sound"
    ROWS = "rows"  # single rows were damaged
    INCOMPLETE = "incomplete"  # changes are missing, that of rows that are there among them


@dataclass(slots=True)
class _Found:
    """What a database holds: `rows` without their checksums, `bad` ones as (table, row)."""

    number: int = 0
    trouble: str = ""  # why it is not complete
    format: str = FORMAT
    is_short: bool = False  # it has fewer tables than there are by now
    rows: dict[str, list[Row]] = field(default_factory=dict)
    bad: list[tuple[str, Row]] = field(default_factory=list)

    def add(self, table: str, row: Row, *, is_whole: bool) -> None:
        """Notes a row."""
        if is_whole:
            self.rows[table].append(row)
        else:
            self.bad.append((table, row))


def opened(path: Path, schema: Schema, mark: Watermark, damage: Damage) -> Database:
    """The database, made if there is none. Raises OSError where the disk refuses, EINVAL for another format."""
    new = _beside(path, ".new")
    if new.exists():  # a crash came while a damaged one was being replaced
        if path.exists():
            _move_away(path, damage, "the journal was damaged, and a crash came while it was replaced")
        _replace(path, new)
    is_gone = not _size(path)
    if is_gone and not mark.least and not _size(_beside(path, "-wal")):
        return _begun(path, schema, mark)
    db = None
    try:
        db = None if is_gone else connect(path)
        found = _Found(trouble="it is gone") if db is None else _examined(db, path, schema)
        if not found.trouble and found.number < mark.least:
            found.trouble = f"its last changes are missing, {mark.least - found.number} of them"
        if found.trouble or found.bad:
            for table, row in found.bad:
                _set_aside(table, row, path.parent, damage)
            _build(new, schema, found, max(found.number, mark.least))
            if found.trouble:
                _move_away(path, damage, f"the journal is not complete: {found.trouble}")
            if db is not None:
                db.close()  # now: it removes what has the name of its log
            _replace(path, new)
            db = connect(path)
        assert db is not None
        if found.format != FORMAT or found.is_short:
            _convert(db, schema, found, number=found.number)
        configure(db, path)
        return Database(db, path, schema, mark)
    except (sqlite3.Error, OSError) as error:
        if db is not None:
            db.close()
        refusal = error if isinstance(error, OSError) else _refusal(path, error)
        if refusal.errno in FULL and Reserve(path.parent).give_up():
            return opened(path, schema, mark, damage)
        raise refusal from error


def _begun(path: Path, schema: Schema, mark: Watermark) -> Database:
    """An empty database."""
    found = _Found(trouble=_loss(path), rows={table: [] for table in schema})
    try:
        db = connect(path)
        _convert(db, schema, found)
        configure(db, path)
        return Database(db, path, schema, mark)
    except sqlite3.Error as error:
        raise _refusal(path, error) from error


def _loss(path: Path) -> str:
    """What spool files beside an empty database tell, "" where there are none."""
    return "it is gone" if any((path.parent / "spool").glob("*.spool")) else ""


# Looking


def _examined(db: sqlite3.Connection, path: Path, schema: Schema) -> _Found:
    """Everything in a database that can be read, and what is wrong with it. EINVAL for another format."""
    found = _Found()
    try:
        verdict = str(db.execute("pragma quick_check(1)").fetchone()[0])
        if verdict != "ok":
            found.trouble = f"its structure is damaged ({verdict.splitlines()[-1]})"
        names = {name for (name,) in db.execute("select name from sqlite_master where type = 'table'")}
    except sqlite3.DatabaseError as error:
        found.trouble = _damage(error)
        return found
    if not names and not found.trouble:
        found.format, found.trouble = "", _loss(path)  # a crash came before it had tables
    elif "facts" in names and "chain" not in names and not found.trouble:
        _read_format_1(db, schema, names, found)
    else:
        _read(db, schema, names, found)
    formats = {str(row[1]) for row in found.rows.get("facts", []) if row[0] == "format"}
    if formats and formats != {found.format}:
        raise OSError(errno.EINVAL, "the journal was written by another version of sosfs")
    return found


def _read(db: sqlite3.Connection, schema: Schema, names: set[str], found: _Found) -> None:
    sums = []
    found.is_short = not names.issuperset(schema)
    for table in schema:
        found.rows[table] = []
        for row in _rows(db, table, found) if table in names else ():
            sums.append(row[-1] if isinstance(row[-1], int) else 0)
            is_whole = len(row) == len(schema[table]) + 1 and checksum(table, row[:-1]) == row[-1]
            found.add(table, row[:-1] if is_whole else row, is_whole=is_whole)
    for row in _rows(db, "chain", found):
        if chain_sum(*row[1:4]) == row[4] and isinstance(row[1], int):
            found.number = row[1]
            if (row[2], row[3]) != (len(sums), summed(sums)) and not found.trouble:
                found.trouble = "rows of it vanished, or are older ones"
            return
    found.trouble = found.trouble or "its count of changes is damaged"


def _rows(db: sqlite3.Connection, table: str, found: _Found) -> list[Row]:
    """What can be read of a table, from its beginning and, where something is in the way, from its end."""
    rows: dict[Row, None] = {}
    for order in ("1", "1 desc"):
        try:
            rows |= dict.fromkeys(itertools.islice(db.execute(f"select * from {table} order by {order}"), MOST))
            return list(rows)
        except sqlite3.DatabaseError as error:
            found.trouble = found.trouble or _damage(error)
    return list(rows)


def _read_format_1(db: sqlite3.Connection, schema: Schema, names: set[str], found: _Found) -> None:
    """As it was before each row had a checksum: only drafts had one, and there was no chain."""
    found.format = "1"
    for table in schema:
        found.rows[table] = []
        if table == "drafts":
            for row, record, body, total, is_open in db.execute("select id, record, body, sum, open from drafts"):
                is_whole = zlib.crc32(body or b"", zlib.crc32(record.encode("utf-8", "surrogateescape"))) == total
                found.add(table, (row, record, body, is_open), is_whole=is_whole)
        elif table in names:
            for one in db.execute(f"select * from {table}"):
                found.add(table, one, is_whole=True)


def _damage(error: sqlite3.DatabaseError) -> str:
    """What an error says of the database. Raises it where it is one of the disk or the machine."""
    code = _code(error)
    if code not in DAMAGED and code & 0xFF not in DAMAGED:
        raise error
    return f"SQLite cannot read it ({error})"


def _code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)


def _refusal(path: Path, error: sqlite3.Error) -> OSError:
    number = os_error(error, path).errno or errno.EIO
    return OSError(number, f"the journal cannot be opened: {error}", str(path))


# Setting aside


def _set_aside(table: str, row: Row, state: Path, damage: Damage) -> None:
    """Makes an entry of a damaged row, with the spool file that it names."""
    texts = [value for value in row if isinstance(value, str)]
    named = _named(table, texts)
    what = WORDS[table].format(named) + ": the row in the journal is damaged"
    spools = [name for text in texts for name in SPOOL.findall(text)]
    bodies = {f"value{number}": value for number, value in enumerate(row) if isinstance(value, bytes)}
    details: Mapping[str, object] = {f"value {number}": value for number, value in enumerate(row)}
    shown = {name: value for name, value in details.items() if not isinstance(value, bytes)}
    files = [state / "spool" / name for name in spools]
    damage.must_set_aside(what, {"table": table, **shown}, files=files, bodies=bodies)


def _named(table: str, texts: list[str]) -> str:
    """The key that a damaged row is about, as far as that can be read."""
    if table in ("drafts", "attributes"):
        for text in texts:
            if found := re.search(r'(?:"key": |^\[)("(?:[^"\\]|\\.)*")', text):
                with contextlib.suppress(ValueError):
                    return str(json.loads(found[1]))
        return "a file"
    if table == "uploads":
        texts = texts[1:]
    return " to ".join(texts[: 2 if table == "renames" else 1]) or "a file"


def _move_away(path: Path, damage: Damage, what: str) -> None:
    """Makes an entry of a damaged database, its log with it."""
    files = [path, _beside(path, "-wal"), _beside(path, "-journal")]
    damage.must_set_aside(what, {"path": path}, files=files)


# Making anew


def _build(new: Path, schema: Schema, found: _Found, number: int) -> None:
    """A database with the rows that were found, on the disk when it has its name."""
    draft = _beside(new, ".tmp")
    draft.unlink(missing_ok=True)
    with contextlib.closing(connect(draft)) as db:
        _convert(db, schema, found, number=number)
    draft.rename(new)
    sync_directory(new.parent)
    found.format, found.is_short = FORMAT, False


def _convert(db: sqlite3.Connection, schema: Schema, found: _Found, *, number: int = 0) -> None:
    """Gives a database the tables of now, with the rows that were found, in one transaction."""
    db.execute("begin immediate")
    for table in (*schema, "chain"):
        db.execute(f"drop table if exists {table}")
    for statement in tables(schema):
        db.execute(statement)
    kept = {str(row[0]): row for row in found.rows.get("facts", []) if row[0] != "format"}
    if found.trouble or found.bad:
        finding = Finding.INCOMPLETE if found.trouble else Finding.ROWS
        if kept.get(FINDING, ("", ""))[1] != Finding.INCOMPLETE.value:
            kept[FINDING] = (FINDING, finding.value)
    rows = {**found.rows, "facts": [*kept.values(), ("format", FORMAT)]}
    sums = []
    for table in schema:
        for row in {row[0]: row for row in rows.get(table, [])}.values():
            sums.append(checksum(table, row))
            places = ", ".join("?" * (len(row) + 1))
            db.execute(f"insert or replace into {table} values ({places})", (*row, sums[-1]))
    db.execute(*chained(number, len(sums), summed(sums)))
    db.execute("commit")


def _replace(path: Path, new: Path) -> None:
    """The new database takes the place of the old one, of which nothing may stay: its log would be read into it."""
    for suffix in ("-wal", "-shm", "-journal"):
        _beside(path, suffix).unlink(missing_ok=True)
    new.rename(path)
    sync_directory(path.parent)


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
