"""A journal that is not what was written: nothing false is used, nothing lost without a word, and no alarm is false."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import sqlite3
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from sosfs.concurrency.threads import Threads
from sosfs.disk import damage, watermark
from sosfs.journal import journal
from sosfs.journal.journal import SCHEMA, Journal, left_over
from sosfs.journal.rows import SavedAttributes, draft_record
from sosfs.journal.salvage import Finding
from sosfs.s3.protocol import Version
from tests.journal.test_journal import DRAFT, OWNER, POSIX, PROPERTIES, SMALL
from tests.support.drive import fails

SPOOLED = replace(DRAFT, spool="1a-1.spool", key="large")
FILES = (journal.FILE, f"{journal.FILE}-wal")


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """In memory where that is to be had: hundreds of journals are opened, each with its fsyncs."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as directory:
        yield Path(directory)


class Left:
    """A state directory as a process left it that was killed, and what it held."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.journal = Journal(directory, OWNER)
        (directory / "spool").mkdir()
        (directory / "spool" / SPOOLED.spool).write_bytes(b"s" * 11)

    def write(self) -> None:
        """A row of each table at least, in transactions of their own."""
        one = self.journal
        one.draft_goes(one.save_draft(0, SPOOLED), "token")
        one.save_draft(0, SMALL)
        one.add_delete("gone", Version("e", 1, 2))
        one.save_attributes(0, SavedAttributes("c", Version("e", 4), POSIX, PROPERTIES))
        one.set_rename(one.add_rename("old/", "new/"), "copied")
        one.add_upload("id", "part", PROPERTIES)
        one.add_intent("begun", 7)

    def copy(self, to: Path) -> Path:
        """What is there if the process dies now."""
        return shutil.copytree(self.directory, to, ignore=shutil.ignore_patterns("*-shm", "lock"))


def contents(one: Journal) -> dict[str, list[object]]:
    """All that a journal gives back."""
    return {
        "drafts": [saved for _, saved in one.drafts()],
        "deletes": list(one.deletes()),
        "attributes": [saved for _, saved in one.attributes()],
        "renames": [row[1:] for row in one.renames()],
        "rename_states": list(one.rename_states().values()),
        "uploads": list(one.uploads()),
        "intents": list(one.intents()),
    }


@pytest.fixture
def left(tmp_path: Path) -> Iterator[Left]:
    """A journal with rows in all tables, open; copies of it are those of a crash."""
    one = Left(tmp_path / "whole")
    one.write()
    yield one
    one.journal.close()


@contextlib.contextmanager
def opened(directory: Path) -> Iterator[Journal]:
    """As the next mount finds it."""
    one = Journal(directory, OWNER)
    try:
        yield one
    finally:
        one.close()


def sql(directory: Path, statement: str) -> None:
    """Changes the database behind its owner's back."""
    with contextlib.closing(sqlite3.connect(directory / "journal.sqlite")) as database, database:
        assert database.execute(statement).rowcount == 1, statement


def set_aside(directory: Path) -> dict[str, list[str]]:
    """The entries: what is said of each, and the names of its files."""
    found = {}
    for entry in sorted((directory / "damaged").glob("*")):
        line = (entry / "what").read_text().splitlines()[0]
        found[line] = sorted(path.name for path in entry.iterdir() if path.name != "what")
    return found


def test_what_a_crash_leaves_is_no_damage(left: Left, tmp_path: Path) -> None:
    with opened(left.copy(tmp_path / "after")) as one:
        assert contents(one) == contents(left.journal)
        assert (one.finding, one.damage.lines) == (Finding.SOUND, ())
    with opened(tmp_path / "after") as one:
        assert (one.finding, one.damage.lines) == (Finding.SOUND, ())


def columns() -> list[tuple[str, str]]:
    return [(table, column.split()[0]) for table, parts in SCHEMA.items() for column in [*parts, "sum"]]


@pytest.mark.parametrize(("table", "column"), columns())
def test_a_row_that_was_changed_is_set_aside_and_named(left: Left, tmp_path: Path, table: str, column: str) -> None:
    there = left.copy(tmp_path / "after")
    where = {"drafts": " where body is not null", "facts": " where name = 'owner'"}.get(table, "")
    with contextlib.closing(sqlite3.connect(there / "journal.sqlite")) as database:
        (value,) = database.execute(f"select {column} from {table}{where}").fetchone()
    changed = f"x'{(value[:-1] + bytes([value[-1] ^ 1])).hex()}'" if isinstance(value, bytes) else None
    changed = changed or (f"{value + 1}" if isinstance(value, int) else "'" + value.replace("'", "''") + " '")
    sql(there, f"update {table} set {column} = {changed}{where}")
    expected = contents(left.journal)
    names = {"drafts": "b", "attributes": "c", "deletes": "gone", "renames": "old", "uploads": "part", "intents": "beg"}
    if table == "goings":
        expected["drafts"] = [SPOOLED, SMALL]
    elif table == "drafts":
        expected["drafts"] = expected["drafts"][:1]
    elif table != "facts":
        expected[table] = []
    with opened(there) as one:
        assert contents(one) == expected
        assert one.finding is (Finding.INCOMPLETE if column == "sum" else Finding.ROWS)
        lines = [line for line in one.damage.lines if "the row in the journal is damaged" in line]
        assert len(lines) == 1
        assert names.get(table, "") in lines[0]
        told = one.damage.lines
    with opened(there) as one:
        assert one.damage.lines == told, "until somebody has dealt with it"
        assert one.finding is not Finding.SOUND, "until somebody has heeded it"
        one.recovered()
        shutil.rmtree(there / "damaged")
        assert one.damage.lines == ()
    with opened(there) as one:
        assert (one.finding, one.damage.lines) == (Finding.SOUND, ())


def test_the_spool_that_a_damaged_row_names_is_set_aside_with_it(left: Left, tmp_path: Path) -> None:
    there = left.copy(tmp_path / "after")
    sql(there, "update drafts set record = replace(record, '20', '21') where body is null")
    Journal(there, OWNER).close()
    assert set_aside(there) == {"the bytes of large: the row in the journal is damaged": [SPOOLED.spool]}
    (entry,) = (there / "damaged").iterdir()
    assert (entry / SPOOLED.spool).read_bytes() == b"s" * 11
    assert list((there / "spool").iterdir()) == []


def test_the_bytes_of_a_damaged_row_are_kept(left: Left, tmp_path: Path) -> None:
    there = left.copy(tmp_path / "after")
    sql(there, "update drafts set body = x'616264' where body is not null")
    Journal(there, OWNER).close()
    (entry,) = (there / "damaged").iterdir()
    assert (entry / "value2").read_bytes() == b"abd"


@pytest.mark.parametrize("table", [*SCHEMA, "chain"])
def test_a_row_that_vanished_is_noticed(left: Left, tmp_path: Path, table: str) -> None:
    there = left.copy(tmp_path / "after")
    with contextlib.closing(sqlite3.connect(there / "journal.sqlite")) as database, database:
        database.execute(f"delete from {table}")
    with opened(there) as one:
        assert one.finding is Finding.INCOMPLETE
        expected = contents(left.journal)
        assert {name: rows for name, rows in contents(one).items() if name not in (table, "drafts")} == {
            name: rows for name, rows in expected.items() if name not in (table, "drafts")
        }
        (line,) = one.damage.lines
        assert "the journal is not complete" in line
    assert set(FILES[:1]) <= set(next(iter(set_aside(there).values()))), "the database is kept as it was"


def test_an_old_row_in_place_of_a_new_one_is_noticed(left: Left, tmp_path: Path) -> None:
    """As when a disk did not write a page it had acknowledged: the row itself is whole."""
    with contextlib.closing(sqlite3.connect(left.directory / "journal.sqlite")) as database:
        before = database.execute("select * from intents").fetchone()
    left.journal.drop_intent("begun")
    left.journal.add_intent("begun", 9)
    there = left.copy(tmp_path / "after")
    with contextlib.closing(sqlite3.connect(there / "journal.sqlite")) as database, database:
        database.execute("insert or replace into intents values (?, ?, ?)", before)
    with opened(there) as one:
        assert one.finding is Finding.INCOMPLETE


# The log


def states(left: Left, tmp_path: Path) -> list[dict[str, list[object]]]:
    """What the journal held after each transaction, from cuts of its log that is whole in itself."""
    log = (left.directory / FILES[1]).read_bytes()
    found: list[dict[str, list[object]]] = []
    for number, end in enumerate(range(32, len(log) + 1, 4096 + 24)):
        there = left.copy(tmp_path / f"state{number}")
        (there / FILES[1]).write_bytes(log[:end])
        (there / "journal.mark").unlink()  # nothing says that there was more
        with opened(there) as one:
            found.append(contents(one))
        shutil.rmtree(there)
    return found


def harms(log: bytes) -> Iterator[tuple[str, bytes]]:
    """A log cut at and within each of its frames, and with a bit flipped in each."""
    size = 4096 + 24
    for start in range(32, len(log), size):
        yield f"cut{start}", log[:start]
        yield f"torn{start}", log[: start + 1000]
        yield f"zeros{start}", log[: start + 1000] + bytes(len(log) - start - 1000)
        for at in (start + 9, start + 24 + 4000):
            yield f"flip{at}", log[:at] + bytes([log[at] ^ 4]) + log[at + 1 :]
    for at in (1, 17, 25):
        yield f"head{at}", log[:at] + bytes([log[at] ^ 4]) + log[at + 1 :]
    yield "half", log[: len(log) // 2]
    yield "empty", b""


def test_a_log_that_ends_early_is_noticed_wherever_it_ends(left: Left, tmp_path: Path) -> None:
    """Every transaction survives a kill, so each one that is missing is damage; what is left is a state that was."""
    log, allowed = (left.directory / FILES[1]).read_bytes(), states(left, tmp_path)
    whole = contents(left.journal)
    assert allowed[-1] == whole
    told, seen = 0, set()
    for name, body in harms(log):
        there = left.copy(tmp_path / name)
        (there / FILES[1]).write_bytes(body)
        with opened(there) as one:
            found = contents(one)
            assert found in allowed, name
            assert found != whole, name
            assert one.finding is Finding.INCOMPLETE, name
            (line,) = one.damage.lines
            assert "the journal is not complete: " in line
            seen.add(len(found["renames"]) + len(found["drafts"]))
        assert FILES[1] in next(iter(set_aside(there).values())) or not body, "the log is kept for who can read it"
        shutil.rmtree(there)
        told += 1
    assert told > 60
    assert len(seen) > 2, "the cuts must fall between transactions"


def test_a_log_that_is_gone_is_noticed(left: Left, tmp_path: Path) -> None:
    there = left.copy(tmp_path / "after")
    (there / FILES[1]).unlink()
    with opened(there) as one:
        assert one.finding is Finding.INCOMPLETE
        assert len(one.damage.lines) == 1


def test_after_a_power_loss_only_what_was_synced_must_be_there(
    left: Left, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trio.run(left.journal.sync)
    log = (left.directory / FILES[1]).read_bytes()
    synced = contents(left.journal)
    for number in range(5):
        left.journal.add_rename(f"{number}/", "new/")
    left.journal.drop_intent("begun")
    there, later, torn = (left.copy(tmp_path / name) for name in ("there", "later", "torn"))
    (tmp_path / "boot").write_text("another-boot")
    monkeypatch.setattr(watermark, "BOOT_ID", tmp_path / "boot")
    (there / FILES[1]).write_bytes(log)  # the mark was written out, the log was not
    with opened(there) as one:
        assert (contents(one), one.finding, one.damage.lines) == (synced, Finding.SOUND, ())
    with opened(later) as one:  # the kernel had written all of it out
        assert (len(one.renames()), one.finding, one.damage.lines) == (6, Finding.SOUND, ())
    (torn / FILES[1]).write_bytes(log[: len(log) - 5000])
    with opened(torn) as one:
        assert one.finding is Finding.INCOMPLETE, "what was acknowledged is missing"


def test_that_the_power_was_lost_is_known_as_long_as_nobody_could_note_it(
    left: Left, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, note = left.copy(tmp_path / "after"), Journal.note
    (tmp_path / "boot").write_text("another-boot")
    monkeypatch.setattr(watermark, "BOOT_ID", tmp_path / "boot")

    def refused(one: Journal, name: str, value: str) -> None:
        if name == journal.LOST_POWER:
            raise OSError(errno.ENOSPC, "no space left on device")
        note(one, name, value)

    with monkeypatch.context() as patch, fails(errno.ENOSPC):
        patch.setattr(Journal, "note", refused)
        Journal(there, OWNER)
    with opened(there) as one:
        assert one.has_lost_power
    with opened(there) as one:
        assert one.has_lost_power, "until all is taken up"
        one.recovered()
    with opened(there) as one:
        assert not one.has_lost_power


def test_a_kill_between_a_transaction_and_its_mark_is_no_damage(left: Left, tmp_path: Path) -> None:
    mark = (left.directory / "journal.mark").read_bytes()
    left.journal.drop_intent("begun")
    there = left.copy(tmp_path / "after")
    (there / "journal.mark").write_bytes(mark)
    with opened(there) as one:
        assert (one.intents(), one.finding, one.damage.lines) == ([], Finding.SOUND, ())


@pytest.mark.parametrize("body", [None, b"", b"x" * 700, bytes(700)])
def test_without_a_mark_the_rest_is_compared(left: Left, tmp_path: Path, body: bytes | None) -> None:
    there = left.copy(tmp_path / "after")
    (there / "journal.mark").unlink()
    if body is not None:
        (there / "journal.mark").write_bytes(body)
    with opened(there) as one:
        assert (contents(one), one.finding) == (contents(left.journal), Finding.SOUND)
    with opened(there) as one:
        assert (contents(one), one.finding) == (contents(left.journal), Finding.SOUND)


# The database


def checkpointed(left: Left, to: Path) -> Path:
    """A copy whose rows are all in the database, in no log."""
    there = left.copy(to)
    with contextlib.closing(sqlite3.connect(there / FILES[0])) as database:
        database.execute("pragma wal_checkpoint(truncate)")
    assert not (there / FILES[1]).exists()
    return there


def test_a_flip_anywhere_in_the_database_brings_nothing_false(left: Left, tmp_path: Path) -> None:
    """Each page at its head, in its middle, and where its rows are; what is missing then is told."""
    for number in range(30):
        left.journal.save_draft(0, replace(SMALL, key=f"small{number}", body=b"b" * 3))
    source = checkpointed(left, tmp_path / "source")
    whole, body = contents(left.journal), (source / FILES[0]).read_bytes()
    intact = 0
    for page in range(0, len(body), 4096):
        for at in (0, 3, 8, 9, 18, 101, 105, 3000, 4000, 4095):
            there = tmp_path / f"flip{page + at}"
            shutil.copytree(source, there)
            (there / FILES[0]).write_bytes(body[: page + at] + bytes([body[page + at] ^ 4]) + body[page + at + 1 :])
            with opened(there) as one:
                found = contents(one)
                for table, rows in found.items():
                    for row in rows:
                        known = replace(row, going=None) if table == "drafts" else row  # type: ignore[type-var]
                        assert any(
                            known == (replace(was, going=None) if table == "drafts" else was)  # type: ignore[type-var]
                            for was in whole[table]
                        ), (page, at)
                intact += found == whole
                assert found == whole or one.damage.lines, (page, at)
            shutil.rmtree(there)
    assert intact, "some of it is free space"


@pytest.mark.parametrize("kind", ["garbage", "zeros", "empty", "cut", "head", "gone", "all gone"])
def test_a_database_that_cannot_be_read_is_set_aside(left: Left, tmp_path: Path, kind: str) -> None:
    there = checkpointed(left, tmp_path / "after")
    database = there / FILES[0]
    body = database.read_bytes()
    harmed = {
        "garbage": b"not a database at all " * 400,
        "zeros": bytes(len(body)),
        "empty": b"",
        "cut": body[: len(body) // 2 + 100],
        "head": bytes(100) + body[100:],
    }
    database.unlink()
    if kind in harmed:
        database.write_bytes(harmed[kind])
    if kind == "all gone":
        (there / "journal.mark").unlink()
    with opened(there) as one:
        assert one.finding is Finding.INCOMPLETE, "so that the spool, which nobody names now, is kept"
        assert one.rows == 0 or kind == "cut"
        one.save_draft(0, SMALL)
        if kind == "all gone":
            return  # there is nothing to tell of but the spools
        assert any("the journal is not complete" in line for line in one.damage.lines)
    if kind in harmed:
        assert any(FILES[0] in names for names in set_aside(there).values())
        (kept,) = (there / "damaged").glob(f"*/{FILES[0]}")
        assert kept.read_bytes() == harmed[kind]


def test_beside_a_database_that_was_just_begun_a_spool_is_not_nobodys(left: Left, tmp_path: Path) -> None:
    """The one before it is gone, and a crash came before the next one had any table."""
    there = left.copy(tmp_path / "after")
    for path in there.glob("journal.*"):
        path.unlink()
    with contextlib.closing(sqlite3.connect(there / FILES[0])) as database:
        database.execute("create table one (number)")
        database.execute("drop table one")
    with opened(there) as one:
        assert one.finding is Finding.INCOMPLETE


def test_a_log_without_a_database_is_set_aside(left: Left, tmp_path: Path) -> None:
    there = left.copy(tmp_path / "after")
    log = (there / FILES[1]).read_bytes()
    (there / FILES[0]).unlink()
    with opened(there) as one:
        assert one.finding is Finding.INCOMPLETE
    (kept,) = (there / "damaged").glob(f"*/{FILES[1]}")
    assert kept.read_bytes() == log


def test_the_journal_of_another_bucket_is_refused_and_left_as_it_is(left: Left, tmp_path: Path) -> None:
    there = left.copy(tmp_path / "after")
    (there / FILES[1]).write_bytes(b"")
    before = {path.name: path.read_bytes() for path in there.iterdir() if path.is_file()}
    with fails(errno.EINVAL):
        Journal(there, "http://server other ")
    assert {name: (there / name).read_bytes() for name in before} == before


def test_nor_is_it_taken_for_this_buckets_where_no_mark_says_whose_it_is(left: Left, tmp_path: Path) -> None:
    there = left.copy(tmp_path / "after")
    (there / "journal.mark").unlink()
    with fails(errno.EINVAL):
        Journal(there, "http://server other ")
    with opened(there) as one:
        assert (contents(one), one.finding) == (contents(left.journal), Finding.SOUND)


def test_a_journal_that_is_closed_or_refused_has_no_file_open(left: Left, tmp_path: Path) -> None:
    there = left.copy(tmp_path / "after")
    before = len(os.listdir("/proc/self/fd"))
    for owner in (OWNER, "http://server other "):
        with contextlib.suppress(OSError), contextlib.closing(Journal(there, owner)) as one:
            trio.run(one.sync)
        assert len(os.listdir("/proc/self/fd")) <= before


@pytest.mark.parametrize("number", [sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_CANTOPEN])
def test_trouble_of_the_disk_is_no_damage(
    left: Left, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    there = left.copy(tmp_path / "after")

    def failing(path: Path) -> sqlite3.Connection:
        error = sqlite3.OperationalError("made by the test")
        error.sqlite_errorcode = number
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("sosfs.journal.salvage.connect", failing)
        with fails(errno.ENOSPC, errno.EIO):
            Journal(there, OWNER)
    assert not (there / "damaged").exists()
    with opened(there) as one:
        assert contents(one) == contents(left.journal)


# Crashes and full disks in the middle of it


def test_a_crash_at_any_step_of_the_repair_loses_nothing(
    left: Left, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = (left.directory / FILES[1]).read_bytes()
    rename = Path.rename
    for step in range(10):
        there = left.copy(tmp_path / f"step{step}")
        (there / FILES[1]).write_bytes(log[: len(log) - 5000])
        expected = states(left, tmp_path)[-3:]
        steps = iter(range(step))

        def dying(path: Path, target: Path, steps: Iterator[int] = steps) -> Path:
            if next(steps, None) is None:
                raise KeyboardInterrupt
            return rename(path, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", dying)
            try:
                Journal(there, OWNER).close()
            except KeyboardInterrupt:
                pass
            else:
                assert step >= 3
                return
        with opened(there) as one:
            assert contents(one) in expected
            assert one.finding is Finding.INCOMPLETE
            assert one.damage.lines
    raise AssertionError("it never got through")


def test_a_mount_that_does_not_begin_after_a_crash_of_the_repair_leaves_what_was_saved(
    left: Left, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old database is set aside, the new one has not its name yet; then the bucket cannot be reached."""
    there = left.copy(tmp_path / "after")
    log = (left.directory / FILES[1]).read_bytes()
    (there / FILES[1]).write_bytes(log[: len(log) - 5000])
    rename = Path.rename

    def dying(path: Path, target: Path) -> Path:
        if target == there / FILES[0]:
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", dying)
        with pytest.raises(KeyboardInterrupt):
            Journal(there, OWNER)
    assert not (there / FILES[0]).exists()
    Journal(there, OWNER).withdraw()
    with opened(there) as one:
        assert len(contents(one)["drafts"]) == 2
        assert one.finding is Finding.INCOMPLETE


@pytest.mark.parametrize("is_short", [False, True], ids=["all tables", "a table less"])
def test_a_crash_after_the_repair_finds_no_other_damage(
    left: Left, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_short: bool
) -> None:
    """What was missing is told once, though no mark says yet from where it goes on."""
    there, log = left.copy(tmp_path / "after"), (left.directory / FILES[1]).read_bytes()
    (there / FILES[1]).write_bytes(log[: len(log) - 5000])
    if is_short:
        sql(there, "delete from rename_states")
        with contextlib.closing(sqlite3.connect(there / FILES[0])) as database, database:
            database.execute("drop table rename_states")

    def dies(_: watermark.Watermark, owner: str, number: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(watermark.Watermark, "begin", dies)
        Journal(there, OWNER)
    (told,) = damage.entries(there / "damaged")
    with opened(there) as one:
        assert (one.damage.lines, one.finding) == ((told,), Finding.INCOMPLETE)


@pytest.mark.parametrize("harm", ["row", "log"])
def test_what_cannot_be_set_aside_stays_and_the_mount_is_refused(
    left: Left, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    there = left.copy(tmp_path / "after")
    if harm == "row":
        sql(there, "update deletes set version = '[]'")
    else:
        (there / FILES[1]).unlink()

    def full(path: Path, body: bytes) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(damage, "_write", full)
        with pytest.raises(OSError, match="no space left on device") as caught:
            Journal(there, OWNER)
        assert "\n" not in str(caught.value)
    with opened(there) as one:
        assert one.damage.lines
        assert one.finding is not Finding.SOUND


# An older version's


OLD = """
create table facts (name text primary key, value text not null);
create table drafts (id integer primary key, record text not null, body blob, sum integer not null,
  open integer not null default 0);
create table goings (id integer primary key, token text not null);
create trigger draft_renewed after update of record on drafts begin delete from goings where id = new.id; end;
create trigger draft_dropped after delete on drafts begin delete from goings where id = old.id; end;
create table deletes (key text primary key, version text not null);
create table attributes (id integer primary key, record text not null);
create table renames (id integer primary key, old text not null, new text not null);
create table uploads (upload text primary key, key text not null, properties text not null);
create table intents (key text primary key, since integer not null);
"""


def written_before(left: Left, directory: Path, change: Callable[[sqlite3.Connection], None] = lambda db: None) -> None:
    """The same rows as the version before wrote them."""
    directory.mkdir()
    rows = {
        table: [row[:-1] for row in left.journal._db._db.execute(f"select * from {table}")]
        for table in SCHEMA
        if table not in ("facts", "drafts", "rename_states")
    }
    with contextlib.closing(sqlite3.connect(directory / "journal.sqlite")) as database, database:
        database.execute("pragma journal_mode = wal")
        database.executescript(OLD)
        database.executemany("insert into facts values (?, ?)", [("owner", OWNER), ("format", "1")])
        for number, saved in left.journal.drafts():
            record = json.dumps(draft_record(replace(saved, going=DRAFT.going if saved.spool else None)))
            total = zlib.crc32(saved.body, zlib.crc32(record.encode()))
            body = None if saved.spool else saved.body
            database.execute("insert into drafts values (?, ?, ?, ?, 0)", (number, record, body, total))
        for table, found in rows.items():
            for row in found:
                database.execute(f"insert into {table} values ({', '.join('?' * len(row))})", row)
        change(database)


def test_the_journal_of_the_version_before_is_taken_up(left: Left, tmp_path: Path) -> None:
    written_before(left, tmp_path / "old")
    for _ in range(2):
        with opened(tmp_path / "old") as one:
            assert contents(one) == contents(left.journal) | {"rename_states": []}
            assert (one.finding, one.damage.lines, one.spool_names) == (Finding.SOUND, (), None)
    with opened(tmp_path / "old") as one:
        row = one.save_draft(0, SMALL)
        assert row not in {number for number, saved in one.drafts() if saved.key != SMALL.key}
        assert len(list(one.drafts())) == 3


def test_a_journal_with_fewer_tables_is_taken_up(left: Left, tmp_path: Path) -> None:
    left.journal.drop_rename(left.journal.renames()[0][0])
    there = left.copy(tmp_path / "old")
    with contextlib.closing(sqlite3.connect(there / "journal.sqlite")) as database, database:
        database.execute("drop table rename_states")
    for states in ([], ["copied"]):
        with opened(there) as one:
            assert contents(one) == contents(left.journal) | {"renames": list[object](), "rename_states": states} | (
                {"renames": [("a", "b")]} if states else {}
            )
            assert (one.finding, one.damage.lines) == (Finding.SOUND, ())
            if not states:
                one.set_rename(one.add_rename("a", "b"), "copied")


def test_a_state_without_its_rename_goes(left: Left, tmp_path: Path) -> None:
    there = left.copy(tmp_path / "after")
    sql(there, "update renames set old = 'other'")
    with opened(there) as one:
        assert (one.renames(), list(one.rename_states().values())) == ([], ["copied"])
        one.recovered()
        assert one.rename_states() == {}


def test_a_damaged_row_of_the_version_before_is_set_aside(left: Left, tmp_path: Path) -> None:
    def harm(database: sqlite3.Connection) -> None:
        database.execute("update drafts set sum = sum + 1 where body is not null")

    written_before(left, tmp_path / "old", harm)
    with opened(tmp_path / "old") as one:
        assert [saved.key for _, saved in one.drafts()] == ["large"]
        assert one.finding is Finding.ROWS
        assert one.renames()
    assert set_aside(tmp_path / "old") == {"the bytes of b: the row in the journal is damaged": ["value2"]}


# A journal nobody has open


def test_what_is_left_over_is_told_of_a_damaged_one_too(left: Left, tmp_path: Path) -> None:
    told = left_over(left.copy(tmp_path / "sound"))
    assert told is not None
    assert (told.owner, told.changes, told.uploads, told.is_whole) == (OWNER, 5, 1, True)
    cut, garbage = left.copy(tmp_path / "cut"), left.copy(tmp_path / "garbage")
    (cut / FILES[1]).unlink()
    (garbage / FILES[0]).write_bytes(b"garbage" * 1000)
    for there in (cut, garbage):
        told = left_over(there)
        assert told is not None
        assert (told.owner, told.is_whole) == (OWNER, False)
    for path in FILES:
        (cut / path).unlink(missing_ok=True)
    told = left_over(cut)
    assert told is not None, "it is gone, and had something in it"
    assert (told.owner, told.is_whole) == (OWNER, False)
    (garbage / "journal.mark").unlink()
    with fails(errno.EIO):
        left_over(garbage)


def test_who_looks_at_what_is_left_over_changes_nothing_of_it(left: Left, tmp_path: Path) -> None:
    """A damaged log least of all: SQLite would remove it, and with it what somebody can still read there."""
    log = (left.directory / FILES[1]).read_bytes()
    for name, body in (("sound", log), ("torn", log[: len(log) - 5000])):
        there = left.copy(tmp_path / name)
        (there / FILES[1]).write_bytes(body)
        before = {path: (there / path).read_bytes() for path in FILES}
        told = left_over(there)
        assert told is not None
        assert (told.changes, told.is_whole) == (5, name == "sound")
        assert {path: (there / path).read_bytes() for path in FILES} == before
    with opened(tmp_path / "sound"):
        pass
    told = left_over(tmp_path / "sound")
    assert told is not None
    assert (told.changes, told.is_whole) == (5, True), "of one that was closed, too"


def test_a_journal_that_was_closed_with_nothing_in_it_may_be_removed(tmp_path: Path) -> None:
    with opened(tmp_path) as one:
        row = one.save_draft(0, SMALL)
        one.drop_draft(row)
    (tmp_path / FILES[0]).unlink()
    with opened(tmp_path) as one:
        assert (one.finding, one.damage.lines) == (Finding.SOUND, ())


@pytest.mark.parametrize("what", ["a row", "an upload", "a finding"])
def test_that_one_with_something_in_it_was_removed_is_told(tmp_path: Path, what: str) -> None:
    with opened(tmp_path) as one:
        if what == "a row":
            one.add_delete("gone", Version("e", 1, 2))
        elif what == "an upload":
            one.add_upload("id", "part", PROPERTIES)
        else:
            one.doubt(Finding.INCOMPLETE)
            one.doubt(Finding.ROWS)
            assert one.finding is Finding.INCOMPLETE, "what is worse stays"
    (tmp_path / FILES[0]).unlink()
    with opened(tmp_path) as one:
        assert one.finding is Finding.INCOMPLETE
        assert any("it is gone" in line for line in one.damage.lines)


# While it is in use


def test_a_transaction_that_fails_leaves_the_count_as_it_was(left: Left, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), left.journal.together():
        left.journal.drop_delete("gone")
        left.journal.add_delete("gone", Version("anew", 1, 2))
        left.journal.add_intent("other", 1)
        raise ZeroDivisionError
    left.journal.add_intent("third", 1)
    with opened(left.copy(tmp_path / "after")) as one:
        assert contents(one) == contents(left.journal)
        assert (one.finding, one.damage.lines) == (Finding.SOUND, ())


def test_a_sync_into_a_journal_that_was_removed_fails(left: Left) -> None:
    trio.run(left.journal.sync)
    left.journal.add_intent("a", 1)
    for path in left.directory.glob("journal*"):
        path.unlink()
    with fails(errno.EIO):
        trio.run(left.journal.sync)
    assert "was removed while it was in use" in left.journal.damage.lines[0]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("is_first", [False, True], ids=["synced before", "the first sync"])
def test_so_it_does_where_one_of_its_files_was_removed(left: Left, name: str, is_first: bool) -> None:
    if not is_first:
        trio.run(left.journal.sync)
    left.journal.add_intent("a", 1)
    (left.directory / name).unlink()
    for _ in range(2):
        with fails(errno.EIO):
            trio.run(left.journal.sync)
    assert left.journal.unsynced
    mark = watermark.read(left.directory / "journal.mark")
    assert mark is not None
    assert mark.synced < mark.written


def test_a_sync_vouches_for_nothing_that_was_written_meanwhile(left: Left, monkeypatch: pytest.MonkeyPatch) -> None:
    one, synced, run = left.journal, list[int](), Threads.run
    fdatasync = os.fdatasync

    def watched(file: int) -> None:
        synced.append(file)
        fdatasync(file)

    async def overtaken(threads: Threads, function: Callable[..., Any], *arguments: Any) -> Any:
        found = await run(threads, function, *arguments)
        if len(synced) == 1:
            one.add_intent("late", 1)
        return found

    monkeypatch.setattr(os, "fdatasync", watched)
    monkeypatch.setattr(Threads, "run", overtaken)
    before = one._db.number
    trio.run(one.sync)
    mark = watermark.read(left.directory / "journal.mark")
    assert mark is not None
    assert (one.unsynced, mark.synced, mark.written) == (1, before, before + 1)
    trio.run(one.sync)
    assert (one.unsynced, len(synced)) == (0, 2)


def test_a_transaction_costs_one_more_write_and_no_sync(left: Left, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of our own; SQLite's are one frame more, of the page that counts."""
    calls: list[str] = []

    def counted(name: str) -> Callable[..., int]:
        return lambda *_: calls.append(name) or 0  # type: ignore[func-returns-value]

    for name in ("pwrite", "fsync", "fdatasync", "open"):
        monkeypatch.setattr(os, name, counted(name))
    before = (left.directory / FILES[1]).stat().st_size
    row = left.journal.save_draft(0, SMALL)
    assert calls == ["pwrite"]
    assert (left.directory / FILES[1]).stat().st_size - before <= 2 * (4096 + 24)
    calls.clear()
    left.journal.drop_draft(row)
    assert calls == ["pwrite"]
