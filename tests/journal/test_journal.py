"""The journal by itself: what it gives back, and that it gives nothing back that it cannot vouch for."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from sosfs.disk.database import Database, Value, checksum
from sosfs.disk.lock import locked
from sosfs.disk.watermark import Watermark
from sosfs.journal.journal import Journal
from sosfs.journal.rows import SavedAttributes, SavedDraft
from sosfs.journal.salvage import Finding
from sosfs.metadata.edits import Edits
from sosfs.metadata.user_metadata import Posix
from sosfs.s3.protocol import Guard, Headers, Properties, Version
from tests.support.drive import fails
from tests.support.mounting import ROOT

OWNER = "http://server bucket prefix/"
PROPERTIES = Properties(Headers(content_type="text/plain"), {"a": "b", "ü": "ö"})
POSIX = Posix(0o100640, 1, 2, 3_000_000_004, None)
DRAFT = SavedDraft(
    key="a/ü\x01",
    size=11,
    base=("a/ü\x01", "etag", 20),
    base_stop=7,
    expected=Version("etag", 20, 5),
    version=Version("etag", 20, None),
    local=((0, 3), (5, 11)),
    dirty=((5, 11),),
    posix=POSIX,
    properties=PROPERTIES,
    spool="1-2.spool",
    sums=(1, 2),
    going=("etag-2", True),
    edits=Edits({"cache_control": "", "expires": "never"}, {"a": "b", "gone": None}),
)
SMALL = SavedDraft(
    key="b",
    size=3,
    base=None,
    base_stop=0,
    expected=Guard.ABSENT,
    version=None,
    local=((0, 3),),
    dirty=((0, 3),),
    posix=POSIX,
    properties=PROPERTIES,
    spool="",
    sums=(),
    body=b"abc",
)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    """A new journal in the test's directory."""
    journal = Journal(tmp_path, OWNER)
    yield journal
    journal.close()


def reopened(journal: Journal, directory: Path) -> Journal:
    """The journal as the next mount finds it."""
    journal.close()
    return Journal(directory, OWNER)


def test_all_that_was_written_is_read_back(tmp_path: Path) -> None:
    journal = Journal(tmp_path, OWNER)
    rows = [journal.save_draft(0, DRAFT), journal.save_draft(0, SMALL)]
    journal.add_delete("gone\n", Version("e", 1, 2))
    attributes = SavedAttributes("c", Version("e", 4), POSIX, PROPERTIES)
    marker = SavedAttributes("d/", None, POSIX, PROPERTIES)
    attribute_rows = [journal.save_attributes(0, attributes), journal.save_attributes(0, marker)]
    rename = journal.add_rename("old/", "new/")
    journal.add_upload("id", "key", PROPERTIES)
    journal.add_intent("key", 7)
    journal.add_intent("key", 9)  # the earlier one may have begun something already
    journal = reopened(journal, tmp_path)
    assert (journal.finding, journal.damage.lines) == (Finding.SOUND, ())
    assert list(journal.drafts()) == [(rows[0], DRAFT), (rows[1], SMALL)]
    assert journal.deletes() == [("gone\n", Version("e", 1, 2))]
    assert journal.attributes() == [(attribute_rows[0], attributes), (attribute_rows[1], marker)]
    assert journal.renames() == [(rename, "old/", "new/")]
    assert journal.uploads() == [("id", "key", PROPERTIES)]
    assert journal.intents() == [("key", 7)]
    assert journal.rows == 6
    journal.close()


def test_what_was_dropped_is_gone(journal: Journal) -> None:
    row, other = journal.save_draft(0, DRAFT), journal.save_draft(0, SMALL)
    journal.add_delete("a", Version("e", 1))
    attributes = journal.save_attributes(0, SavedAttributes("c", None, POSIX, PROPERTIES))
    rename = journal.add_rename("old/", "new/")
    journal.add_upload("id", "key", PROPERTIES)
    journal.drop_draft(row)
    journal.drop_delete("a")
    journal.drop_attributes(attributes)
    journal.drop_rename(rename)
    journal.drop_upload("id")
    journal.add_intent("key", 7)
    journal.drop_intent("key")
    assert journal.intents() == []
    assert [found for found, _ in journal.drafts()] == [other]
    assert journal.rows == 1
    assert journal.uploads() == []


def test_the_number_of_a_row_that_is_gone_is_no_other_ones_by_the_next_mount(tmp_path: Path) -> None:
    """A disk that did not write a page may bring it back."""
    journal = Journal(tmp_path, OWNER)
    row = journal.save_draft(0, SMALL)
    journal.drop_draft(row)
    journal = reopened(journal, tmp_path)
    assert journal.save_draft(0, SMALL) != row
    journal.close()


def test_sqlite_syncs_what_it_brings_into_the_database_before_its_log_begins_anew(journal: Journal) -> None:
    asked = [journal._db._db.execute(f"pragma {name}").fetchone()[0] for name in ("journal_mode", "synchronous")]
    assert asked == ["wal", 1]


def test_a_row_is_replaced_in_place(journal: Journal) -> None:
    row = journal.save_draft(0, DRAFT)
    assert journal.save_draft(row, SMALL) == row
    assert list(journal.drafts()) == [(row, SMALL)]


def test_a_spool_that_is_written_to_is_vouched_for_no_more(journal: Journal) -> None:
    row = journal.save_draft(0, DRAFT)
    journal.reopen_draft(row)
    ((_, saved),) = journal.drafts()
    assert saved.sums == ()
    assert saved.going == ("etag-2", False), "what is on its way is not all of it"
    journal.save_draft(row, DRAFT)
    assert list(journal.drafts()) == [(row, DRAFT)]


@pytest.mark.parametrize("draft", [DRAFT, SMALL])
def test_a_row_that_is_altered_keeps_its_bytes_and_that_they_change(journal: Journal, draft: SavedDraft) -> None:
    row = journal.save_draft(0, draft)
    journal.alter_draft(row, lambda saved: replace(saved, key="new"))
    assert list(journal.drafts()) == [(row, replace(draft, key="new"))]
    journal.reopen_draft(row)
    journal.alter_draft(row, lambda saved: replace(saved, key="newer"))
    ((_, saved),) = journal.drafts()
    assert (saved.key, saved.sums, saved.body) == ("newer", (), draft.body)


def test_a_request_is_remembered_until_the_row_is_another(journal: Journal) -> None:
    def going() -> list[tuple[str, bool] | None]:
        return [draft.going for _, draft in journal.drafts()]

    row = journal.save_draft(0, replace(SMALL, going=("before", False)))
    assert going() == [("before", False)]
    journal.draft_goes(row, "token")
    assert going() == [("token", True)]
    journal.draft_goes(row, "later")
    assert going() == [("later", True)]
    journal.reopen_draft(row)
    assert going() == [("later", False)]
    journal.save_draft(row, SMALL)
    assert going() == [None]
    journal.draft_goes(row, "token")
    journal.drop_draft(row)
    journal.save_draft(0, SMALL)  # under the same number
    assert going() == [None]


def test_a_group_of_changes_is_there_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    journal = Journal(tmp_path, OWNER)
    with pytest.raises(ZeroDivisionError), journal.together():
        journal.save_draft(0, SMALL)
        raise ZeroDivisionError
    assert journal.rows == 0
    with journal.together():
        journal.save_draft(0, SMALL)
        journal.add_rename("a", "b")
    journal = reopened(journal, tmp_path)
    assert journal.rows == 2
    journal.close()


def test_the_journal_of_another_bucket_is_refused(tmp_path: Path) -> None:
    Journal(tmp_path, OWNER).close()
    with pytest.raises(OSError, match="another bucket") as caught:
        Journal(tmp_path, "http://server other ")
    assert caught.value.errno == errno.EINVAL
    assert OWNER in str(caught.value)
    Journal(tmp_path, OWNER).close()  # and the refusal let go of it


def test_the_journal_of_another_version_is_refused(tmp_path: Path) -> None:
    Journal(tmp_path, OWNER).close()
    with contextlib.closing(sqlite3.connect(tmp_path / "journal.sqlite")) as database, database:
        total = checksum("facts", ("format", "3"))
        database.execute("update facts set value = '3', sum = ? where name = 'format'", (total,))
    with fails(errno.EINVAL):
        Journal(tmp_path, OWNER)


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, pathlib, time\n"
            "from sosfs.journal.journal import Journal\n"
            "journal = Journal(pathlib.Path(sys.argv[1]), sys.argv[2])\n"
            "print('ready', flush=True)\n"
            "time.sleep(60)",
            tmp_path,
            OWNER,
        ],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"ready\n"
        with pytest.raises(OSError, match="in use by another mount") as caught:
            Journal(tmp_path, OWNER)
        assert caught.value.errno == errno.EBUSY
    finally:
        holder.kill()
        holder.communicate()
    Journal(tmp_path, OWNER).close()  # a kill leaves no lock behind


@pytest.mark.parametrize("begins", [True, False])
def test_who_comes_while_a_journal_is_withdrawn_does_not_lose_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begins: bool
) -> None:
    """The files go before the lock does, also where the journal could not begin."""
    unlink, gone = Path.unlink, list[str]()

    def watched(path: Path, *, missing_ok: bool = False) -> None:
        if path.name.startswith("journal"):
            gone.append(path.name)
            with fails(errno.EBUSY):
                locked(tmp_path)
        unlink(path, missing_ok=missing_ok)

    def refused(_: Watermark, owner: str, number: int) -> None:
        raise OSError(errno.EIO, "refused")

    if begins:
        one = Journal(tmp_path, OWNER)
        monkeypatch.setattr(Path, "unlink", watched)
        one.withdraw()
    else:
        monkeypatch.setattr(Path, "unlink", watched)
        monkeypatch.setattr(Watermark, "begin", refused)
        with fails(errno.EIO):
            Journal(tmp_path, OWNER)
    assert "journal.sqlite" in gone
    assert not list(tmp_path.glob("journal*"))
    os.close(locked(tmp_path))


def test_a_journal_that_another_mount_leaves_just_then_is_not_taken_for_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is of another bucket, so this mount does not begin, and removes what it has made itself."""

    def late(directory: Path) -> int:
        monkeypatch.undo()
        other = Journal(directory, "http://server other ")
        other.save_draft(0, SMALL)
        other.close()
        return locked(directory)

    monkeypatch.setattr("sosfs.journal.journal.locked", late)
    with fails(errno.EINVAL):
        Journal(tmp_path, OWNER)
    other = Journal(tmp_path, "http://server other ")
    assert [saved for _, saved in other.drafts()] == [SMALL]
    other.close()


@pytest.mark.promise(3)
@pytest.mark.parametrize("key", [SMALL.key, "old/x", "new/x"])
def test_what_goes_at_the_second_try_is_waited_for_as_at_the_first(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    """Where the disk is put off, before something new gets its name: a power loss could bring the row back."""

    def drop_both() -> None:
        with fails(errno.EIO) if is_broken else contextlib.nullcontext():
            journal.drop_draft(row)
        with fails(errno.EIO) if is_broken else contextlib.nullcontext():
            journal.drop_rename(rename)

    def broken(_: Database, table: str, key: Value) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    journal.put_off(lambda: None)
    row, rename = journal.save_draft(0, SMALL), journal.add_rename("old/", "new/")
    is_broken = True
    with monkeypatch.context() as patch:
        patch.setattr(Database, "drop", broken)
        drop_both()
    journal.add_intent("other", 7)
    trio.run(journal.sync)
    is_broken = False
    drop_both()
    assert journal.unsynced
    trio.run(journal.settled, key)
    assert not journal.unsynced


@pytest.mark.parametrize("harm", ["update drafts set record = record || ' '", "delete from drafts"])
def test_a_row_that_is_lost_or_altered_while_it_is_in_use_is_an_error(journal: Journal, harm: str) -> None:
    row = journal.save_draft(0, SMALL)
    with contextlib.closing(sqlite3.connect(journal._path)) as database, database:
        database.execute(harm)
    with fails(errno.EIO):
        journal.draft(row)
    if harm.startswith("update"):
        with fails(errno.EIO):
            list(journal.drafts())


def test_a_long_log_that_cannot_be_brought_into_the_database_is_synced_all_the_same(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where no file can be opened any more."""

    def refused(*_: object, **__: object) -> sqlite3.Connection:
        raise sqlite3.OperationalError("unable to open database file")

    journal.save_draft(0, SMALL)
    monkeypatch.setattr("sosfs.disk.database.LOG_LONG", 0)
    monkeypatch.setattr(sqlite3, "connect", refused)
    trio.run(journal.sync)
    assert journal.unsynced == 0


def test_what_the_disk_says_to_a_sync_is_told_as_it_is(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full one lets the bucket keep what it has no room for."""

    def full(file: int) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    journal.save_draft(0, SMALL)
    monkeypatch.setattr(os, "fdatasync", full)
    with fails(errno.EDQUOT):
        trio.run(journal.sync)


def test_a_checksum_tells_apart_what_has_the_same_bytes() -> None:
    """In other columns, of another type, or in another table."""
    rows = [("ab", "c"), ("a", "bc"), ("abc",), (b"ab", "c"), ("ab", b"c"), ("ab", "c", None), ("ab", "c", "")]
    sums = [checksum(table, row) for table in ("drafts", "deletes") for row in rows]
    assert len(set(sums)) == len(sums)
    assert checksum("drafts", (7,)) != checksum("drafts", ("7",))


def test_a_journal_is_closed_before_another_may_have_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, close, closed = Journal(tmp_path, OWNER), Watermark.close, list[Watermark]()

    def watched(mark: Watermark) -> None:
        with fails(errno.EBUSY):
            locked(tmp_path)
        close(mark)
        closed.append(mark)

    monkeypatch.setattr(Watermark, "close", watched)
    one.close()
    assert len(closed) == 1
    os.close(locked(tmp_path))


def test_those_who_sync_together_share_one_fsync(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    fdatasync = os.fdatasync

    def watched(file: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{file}"))
        fdatasync(file)

    monkeypatch.setattr(os, "fdatasync", watched)

    async def writers() -> None:
        async def write(number: int) -> None:
            journal.add_rename(f"{number}/", "new/")
            await journal.sync()

        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(write, number)

    trio.run(writers)
    assert 1 <= len(synced) <= 3
    assert all(path.endswith("journal.sqlite-wal") for path in synced)
    trio.run(journal.sync)
    assert len(synced) <= 3, "nothing was written since"
