"""A disk without room: ENOSPC and never another error, nothing half, and all goes on once there is room."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from sosfs.concurrency.budgets import Allowance
from sosfs.files.spool import SPILL, SpoolArea
from sosfs.journal.journal import Journal
from sosfs.journal.rows import SavedAttributes
from sosfs.metadata.user_metadata import Posix
from sosfs.s3.protocol import Properties, Version
from tests.journal.test_journal import SMALL
from tests.support.disks import fill, free, small_disk, take_inodes
from tests.support.drive import fails

MIB = 1 << 20
OWNER = "http://server bucket prefix/"
VERSION = Version("etag", 1, 2)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MiB."""
    with small_disk(tmp_path / "disk", 4 * MIB) as path:
        yield path


def saved(key: str) -> SavedAttributes:
    return SavedAttributes(key, VERSION, Posix(0o100644, 0, 0, 1, None), Properties())


def test_a_disk_without_inodes_is_a_full_one(tmp_path: Path) -> None:
    async def main(area: SpoolArea) -> None:
        spool = area.new()
        await spool.write(0, bytes(4 * SPILL))
        assert not spool.on_disk
        assert area.is_short
        spool.close()

    with small_disk(tmp_path / "disk", 8 * MIB, inodes=20) as path:
        area = SpoolArea(path / "spool", Allowance(MIB))
        take_inodes(path)
        trio.run(main, area)


# The journal by itself


def fill_journal(journal: Journal) -> int:
    """Notes changes until there is no room; returns how many there are."""
    with fails(errno.ENOSPC):
        for number in range(100_000):
            journal.save_attributes(0, saved(f"key {number}"))
    return number


def test_rows_go_on_a_full_disk_and_new_ones_are_refused(disk: Path) -> None:
    journal = Journal(disk, OWNER)
    rows = [journal.save_attributes(0, saved(f"early {number}")) for number in range(200)]
    ballast = fill(disk)
    noted = fill_journal(journal)
    assert len(journal.attributes()) == 200 + noted
    with fails(errno.ENOSPC):
        journal.add_rename("a", "b")
    for row in rows[:100]:
        journal.drop_attributes(row)
    journal.add_delete("removed", VERSION)
    with journal.together():
        for row in rows[100:]:
            journal.drop_attributes(row)
    assert len(journal.attributes()) == noted
    assert journal.deletes() == [("removed", VERSION)]
    ballast.unlink()
    assert journal.add_rename("a", "b")
    journal.close()
    assert not (disk / "reserve").exists()
    journal = Journal(disk, OWNER)
    assert (len(journal.attributes()), journal.deletes(), len(journal.renames())) == (noted, [("removed", VERSION)], 1)
    journal.close()


def test_a_removal_has_the_room_that_is_held_back(disk: Path) -> None:
    journal = Journal(disk, OWNER)
    ballast = fill(disk)
    noted = fill_journal(journal)
    assert (disk / "reserve").exists()
    journal.add_delete("removed", VERSION)
    assert not (disk / "reserve").exists()
    assert journal.deletes() == [("removed", VERSION)]
    assert len(journal.attributes()) == noted
    ballast.unlink()
    journal.drop_delete("removed")
    assert (disk / "reserve").exists(), "there is room again"
    journal.close()
    journal = Journal(disk, OWNER)
    assert (disk / "reserve").exists(), "before anything is written"
    journal.close()


@pytest.mark.parametrize("together", [False, True])
def test_rows_that_cannot_go_are_owed(disk: Path, monkeypatch: pytest.MonkeyPatch, together: bool) -> None:
    """As after long use of a full disk, when what was held back is used up: no error, and they go before all else."""
    journal = Journal(disk, OWNER)
    journal.add_delete("key", VERSION)
    row = journal.save_attributes(0, saved("changed"))
    (disk / "reserve").unlink()
    monkeypatch.setattr("sosfs.disk.reserve.Reserve.give_up", lambda self: False)
    ballast = fill(disk)
    fill_journal(journal)
    before = len(journal.attributes())
    if together:
        with journal.together():
            journal.drop_delete("key")
            journal.drop_attributes(row)
    else:
        journal.drop_delete("key")
        journal.drop_attributes(row)
    with fails(errno.ENOSPC):
        journal.add_delete("key", Version("newer", 1, 2))
    ballast.unlink()
    journal.add_delete("key", Version("newer", 1, 2))
    assert journal.deletes() == [("key", Version("newer", 1, 2))]
    assert len(journal.attributes()) == before - 1
    with journal.together():
        journal.drop_delete("key")
    journal.close()
    journal = Journal(disk, OWNER)
    assert (journal.deletes(), len(journal.attributes())) == ([], before - 1)
    journal.close()


def test_a_row_that_is_owed_is_read_as_it_was_changed_last(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the next change of it would take back the one before."""
    journal = Journal(disk, OWNER)
    row = journal.save_draft(0, SMALL)
    (disk / "reserve").unlink()
    monkeypatch.setattr("sosfs.disk.reserve.Reserve.give_up", lambda self: False)
    ballast = fill(disk)
    fill_journal(journal)

    def change() -> None:
        with journal.together():
            journal.alter_draft(row, lambda one: replace(one, size=one.size + 1))
            journal.alter_draft(row, lambda one: replace(one, base_stop=one.base_stop + 1))

    for _ in range(2):
        change()
    found = journal.draft(row)
    assert (found.size, found.base_stop) == (SMALL.size + 2, 2)
    ballast.unlink()
    change()
    journal.close()
    journal = Journal(disk, OWNER)
    ((_, found),) = journal.drafts()
    assert (found.size, found.base_stop) == (SMALL.size + 3, 3)
    journal.close()


def test_a_row_is_read_as_it_was_before_what_was_taken_back(disk: Path) -> None:
    journal = Journal(disk, OWNER)
    row = journal.save_draft(0, SMALL)
    with pytest.raises(ZeroDivisionError), journal.together():
        journal.alter_draft(row, lambda one: replace(one, size=7))
        raise ZeroDivisionError
    assert journal.draft(row).size == SMALL.size
    journal.close()


def test_a_journal_that_finds_no_room_to_open_is_not_taken_for_a_damaged_one(disk: Path) -> None:
    journal = Journal(disk, OWNER)
    journal.add_delete("key", VERSION)
    journal.close()
    ballast = fill(disk)
    with fails(errno.ENOSPC):
        Journal(disk, OWNER)
    assert not list(disk.glob("*damaged*"))
    ballast.unlink()
    journal = Journal(disk, OWNER)
    assert journal.deletes() == [("key", VERSION)]
    journal.close()


def test_what_was_held_back_lets_a_journal_open_that_a_crash_left(disk: Path) -> None:
    journal = Journal(disk, OWNER)
    journal.add_delete("key", VERSION)
    journal._db._reserve._path = disk / "of a process that is no more"
    journal.close()
    assert (disk / "reserve").exists()
    fill(disk)
    assert free(disk) == 0
    journal = Journal(disk, OWNER)
    assert journal.deletes() == [("key", VERSION)]
    journal.drop_delete("key")
    journal.close()


def test_a_new_journal_that_finds_no_room_leaves_nothing(disk: Path) -> None:
    ballast = fill(disk)
    with fails(errno.ENOSPC):
        Journal(disk, OWNER)
    assert not list(disk.glob("journal*"))
    ballast.unlink()
    journal = Journal(disk, OWNER)
    assert journal._is_new
    journal.close()


def test_the_log_of_a_small_disk_stays_small(disk: Path) -> None:
    journal = Journal(disk, OWNER)
    for number in range(3000):
        journal.add_delete(f"key {number % 10}", VERSION)
    assert (disk / "journal.sqlite-wal").stat().st_size < 2 * MIB
    journal.close()


def test_a_transaction_that_failed_does_not_stay_open(disk: Path) -> None:
    """What is written afterwards would be in it, and lost."""
    journal = Journal(disk, OWNER)
    with pytest.raises(ZeroDivisionError), journal.together():
        journal.add_rename("a", "b")
        raise ZeroDivisionError
    assert not journal._db._db.in_transaction
    assert journal.renames() == []
    journal.close()
