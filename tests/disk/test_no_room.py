"""Whichever statement of a journal finds no room: what was refused has changed nothing, all else is there then."""

from __future__ import annotations

import errno
import itertools
import os
import sqlite3
import stat
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from sosfs.config.parameters import Durability
from sosfs.disk.database import Database, Value
from sosfs.disk.reserve import Need, Reserve
from sosfs.files.draft import Draft
from sosfs.files.spool import Spool
from sosfs.journal.journal import Journal
from sosfs.journal.rows import SavedAttributes
from sosfs.journal.salvage import Finding
from sosfs.metadata import user_metadata
from sosfs.metadata.user_metadata import Posix
from sosfs.s3.protocol import Properties, Version
from tests.journal.test_journal import SMALL
from tests.recovery.test_power_loss import another_boot
from tests.support.composed import Composed, composed
from tests.support.drive import fails
from tests.support.fake_store import FakeStore
from tests.support.held import Held, begun, bodies, chmod, closed, denied, opened, put_all, settled, silence, stored

OWNER, VERSION = "http://server bucket ", Version("etag", 1, 2)
FOREVER = 1000
OLD, NEW = b"o" * 400_000, b"n" * 400_000


class Full:
    """A disk that is full from one statement on, for so many; SQLite may have rolled back by itself."""

    def __init__(
        self,
        patch: pytest.MonkeyPatch,
        *,
        at: int,
        times: int,
        rolls_back: bool,
        is_held: bool,
        number: int = errno.ENOSPC,
    ) -> None:
        self.left, self.times, self.rolls_back, self.number = at, times, rolls_back, number
        self.found_room = True
        execute = Database._execute

        def step(database: Database, statement: str, values: Sequence[Value] = ()) -> sqlite3.Cursor:
            if statement.startswith(("select", "begin")):  # which need none
                return execute(database, statement, values)
            self.left -= 1
            if self.left < 0 and self.times > 0:
                self.times -= 1
                self.found_room = False
                if self.rolls_back and database._db.in_transaction:
                    database._db.execute("rollback")
                raise OSError(self.number, os.strerror(self.number))
            return execute(database, statement, values)

        patch.setattr(Database, "_execute", step)
        self.held = [is_held]
        patch.setattr(Reserve, "hold", lambda _: None)
        patch.setattr(Reserve, "give_up", lambda _: self.held.pop() if self.held else False)

    def heals(self) -> None:
        """There is room again."""
        self.times = 0


class Rows:
    """A journal, and what it must have."""

    def __init__(self, journal: Journal, number: int = errno.ENOSPC) -> None:
        """`number` is the only error that it may raise; no room is never told of what leads to more."""
        self.journal = journal
        self._number = number
        self.deletes: set[str] = set()
        self.attributes: dict[int, str] = {}
        self.renames: dict[int, str] = {}

    def attempt(self, step: Callable[[Any], None], *, may_fail: bool) -> None:
        """Does something; where it fails nothing of it is expected."""
        before = set(self.deletes), dict(self.attributes), dict(self.renames)
        try:
            step(self)
        except OSError as error:
            assert error.errno == self._number
            assert may_fail or self._number != errno.ENOSPC, "what leads to more room is owed"
            self.deletes, self.attributes, self.renames = before

    def look(self) -> None:
        """It has what was written, and says of itself that it is whole."""
        one = self.journal
        assert {key for key, _ in one.deletes()} == self.deletes
        assert {row: saved.key for row, saved in one.attributes()} == self.attributes
        assert {row: old for row, old, _ in one.renames()} == self.renames
        assert one.rename_states().keys() == self.renames.keys()
        assert one.rows == len(self.deletes) + len(self.attributes) + len(self.renames)
        assert (one.finding, one.damage.lines) == (Finding.SOUND, ())

    # Steps

    def deletes_one(self, key: str) -> None:
        self.journal.add_delete(key, VERSION)
        self.deletes.add(key)

    def changes(self, key: str) -> None:
        saved = SavedAttributes(key, VERSION, Posix(0o100644, 0, 0, 1, None), Properties())
        self.attributes[self.journal.save_attributes(0, saved)] = key

    def begins(self, old: str) -> None:
        with self.journal.together(Need.PROMISE):
            row = self.journal.add_rename(old, "new")
            self.journal.set_rename(row, "copying", Need.PROMISE)
        self.renames[row] = old

    def drops_all(self) -> None:
        with self.journal.together():
            for key in sorted(self.deletes):
                self.journal.drop_delete(key)
            for row in self.attributes:
                self.journal.drop_attributes(row)
        self.deletes.clear()
        self.attributes.clear()

    def ends(self) -> None:
        for row in self.renames:
            self.journal.drop_rename(row)
        self.renames.clear()

    def queues(self, *keys: str) -> None:
        with self.journal.together():
            for key in keys:
                self.journal.add_delete(key, VERSION)
        self.deletes |= set(keys)


def lives(rows: Rows) -> None:
    """All that is done to a journal."""
    rows.attempt(lambda one: one.deletes_one("a"), may_fail=True)
    rows.attempt(lambda one: one.changes("b"), may_fail=True)
    rows.attempt(lambda one: one.begins("c"), may_fail=True)
    rows.attempt(lambda one: one.queues("d", "e"), may_fail=False)
    rows.attempt(lambda one: one.drops_all(), may_fail=False)
    rows.attempt(lambda one: one.changes("f"), may_fail=True)
    rows.attempt(lambda one: one.ends(), may_fail=False)
    rows.attempt(lambda one: one.queues("d", "g"), may_fail=False)
    rows.attempt(lambda one: one.deletes_one("a"), may_fail=True)


@pytest.mark.promise(3)
@pytest.mark.parametrize("times", [1, 2, FOREVER], ids=["once", "twice", "until the end"])
@pytest.mark.parametrize("rolls_back", [False, True])
@pytest.mark.parametrize("is_held", [False, True], ids=["nothing held back", "room held back"])
def test_any_statement_may_find_no_room(tmp_path: Path, times: int, rolls_back: bool, is_held: bool) -> None:
    for at in itertools.count():
        directory = tmp_path / str(at)
        with pytest.MonkeyPatch.context() as patch:
            rows = Rows(Journal(directory, OWNER))
            full = Full(patch, at=at, times=times, rolls_back=rolls_back, is_held=is_held)
            lives(rows)
            rows.look()
            full.heals()
            rows.attempt(lambda one: one.changes("last"), may_fail=False)
            rows.look()
            rows.journal.close()
        rows.journal = Journal(directory, OWNER)
        rows.look()
        rows.journal.close()
        if full.found_room:
            break  # all statements have been tried
    assert at > 20


def test_what_is_new_leaves_the_room_that_is_held_back_to_what_makes_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path, OWNER)
    full = Full(monkeypatch, at=0, times=FOREVER, rolls_back=False, is_held=True)
    attributes = SavedAttributes("b", VERSION, SMALL.posix, Properties())
    steps: list[Callable[[], int]] = [
        partial(journal.save_draft, 0, SMALL),
        partial(journal.save_attributes, 0, attributes),
        partial(journal.add_rename, "c", "d"),
    ]
    for step in steps:
        with fails(errno.ENOSPC):
            step()
        assert full.held == [True]
    full.heals()
    journal.close()


@pytest.mark.promise(3)
def test_of_two_changes_of_a_row_that_are_owed_the_later_one_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it is owed, and once the room that is held back takes both."""
    journal = Journal(tmp_path, OWNER)
    row = journal.save_draft(0, SMALL)
    full = Full(monkeypatch, at=0, times=FOREVER, rolls_back=False, is_held=False)

    def change(name: str) -> None:
        with journal.together():
            journal.add_delete("gone", Version(name, 1))
            journal.alter_draft(row, lambda saved: replace(saved, key=name))
            require(name)

    def require(name: str) -> None:
        assert journal.draft(row).key == name
        assert [saved.key for _, saved in journal.drafts()] == [name]
        assert journal.deletes() == [("gone", Version(name, 1))]

    change("first")
    change("second")
    require("second")
    full.held, full.left, full.times = [True], 4, 1  # what is owed finds room, and then it is full
    change("third")
    require("third")
    assert full.held == []
    journal.close()
    journal = Journal(tmp_path, OWNER)
    require("third")
    assert (journal.finding, journal.damage.lines) == (Finding.SOUND, ())
    journal.close()


@pytest.mark.parametrize("rolls_back", [False, True])
def test_a_fault_of_the_disk_is_told_as_such_and_nothing_is_owed(tmp_path: Path, rolls_back: bool) -> None:
    for at in itertools.count():
        directory = tmp_path / str(at)
        with pytest.MonkeyPatch.context() as patch:
            rows = Rows(Journal(directory, OWNER), errno.EIO)
            full = Full(patch, at=at, times=1, rolls_back=rolls_back, is_held=True, number=errno.EIO)
            lives(rows)
            rows.look()
            rows.journal.close()
        rows.journal = Journal(directory, OWNER)
        rows.look()
        rows.journal.close()
        if full.found_room:
            break
    assert at > 20


def test_a_fault_of_the_disk_while_what_is_owed_is_written_keeps_nothing_from_going_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = Rows(Journal(tmp_path, OWNER))
    rows.queues("a", "b")
    full = Full(monkeypatch, at=0, times=FOREVER, rolls_back=False, is_held=False)
    rows.drops_all()
    full.number = errno.EIO
    with fails(errno.EIO):
        rows.changes("refused")
    full.heals()
    rows.changes("last")
    rows.look()
    rows.journal.close()


@pytest.mark.parametrize("rolls_back", [False, True])
def test_what_is_owed_goes_with_what_takes_the_room_that_is_held_back_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rolls_back: bool
) -> None:
    rows = Rows(Journal(tmp_path, OWNER))
    rows.queues("a", "b")
    full = Full(monkeypatch, at=0, times=FOREVER, rolls_back=rolls_back, is_held=False)
    rows.drops_all()
    full.held, full.left, full.times = [True], 2, 1  # both go, and then it is full
    rows.queues("c")
    rows.look()
    rows.journal.close()
    rows.journal = Journal(tmp_path, OWNER)
    rows.look()
    rows.journal.close()


@pytest.mark.parametrize("is_of_other_boot", [False, True])
@pytest.mark.parametrize("is_held", [False, True])
def test_a_mount_begins_on_a_full_disk_and_makes_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_held: bool, is_of_other_boot: bool
) -> None:
    """It sends what the one before has left there."""
    store = FakeStore()
    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(mount.write, "file", bytes(400_000), flags=os.O_CREAT))
        mount.crash()
        if is_of_other_boot:
            another_boot(mount, monkeypatch)
        full = Full(monkeypatch, at=0, times=FOREVER, rolls_back=False, is_held=is_held)
        mount.take_up()
        full.heals()
        assert (bodies(store), mount.parts.pending) == ({"file": bytes(400_000)}, 0)


@pytest.mark.parametrize("hole", [0, 32 << 20], ids=["in parts", "with holes"])
def test_a_large_file_makes_room_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hole: int) -> None:
    """That an upload begins, or an object of zeros is made for it, is written down once there is room."""
    store = Held()

    async def main(mount: Composed) -> None:
        mount.parts.commits.debounce.delay = FOREVER
        await mount.write("file", NEW, at=hole, flags=os.O_CREAT)

    with composed(store, tmp_path, durability=Durability.JOURNAL, part_size=8 << 20 if hole else 100_000) as mount:
        monkeypatch.setattr("tests.support.fake_store.PART_MIN", 1)
        mount.loop.run(partial(main, mount))
        full = Full(monkeypatch, at=0, times=FOREVER, rolls_back=False, is_held=False)
        mount.loop.run(mount.settle)
        assert (stored(store), store._uploads) == (bytes(hole) + NEW, {})
        full.heals()


@pytest.mark.parametrize("is_closed_again", [False, True])
def test_a_file_whose_answer_was_lost_makes_room_on_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_closed_again: bool
) -> None:
    """That the object is ours need not be written down before the file is sent once more."""
    store = Held()

    async def main(mount: Composed) -> None:
        mount.parts.commits.debounce.delay = FOREVER
        await mount.write("file", OLD, flags=os.O_CREAT)
        store.lost.add("file")
        with fails(errno.EIO):
            await mount.parts.commits.commit(await mount._walk("file"))
        await mount.write("file", NEW)
        if not is_closed_again:
            handle = await opened(mount)
            await mount.parts.file_io.write(handle, 0, NEW)

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(main, mount))
        full = Full(monkeypatch, at=0, times=FOREVER, rolls_back=False, is_held=False)
        mount.loop.run(mount.settle)
        assert bodies(store) == {"file": NEW}
        full.heals()


def test_a_file_is_not_sent_where_a_fault_of_the_disk_keeps_that_from_being_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its answer nobody could tell after a crash that the object is ours. No room is no fault."""
    store = Held()

    async def main(mount: Composed) -> None:
        await mount.write("file", OLD, flags=os.O_CREAT)
        full = Full(monkeypatch, at=0, times=FOREVER, rolls_back=False, is_held=False, number=errno.EIO)
        with fails(errno.EIO):
            await mount.parts.commits.commit(await mount._walk("file"))
        full.heals()
        assert bodies(store) == {}

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(main, mount))
        mount.loop.run(mount.settle)
        assert bodies(store) == {"file": OLD}


@pytest.mark.promise(3)
@pytest.mark.parametrize("durability", [Durability.JOURNAL, Durability.WRITEBACK])
@pytest.mark.parametrize("is_open", [False, True], ids=["closed", "open, and another wants room"])
def test_a_crash_after_a_stored_file_has_made_room_on_a_full_disk_finds_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_open: bool, durability: Durability
) -> None:
    """That its record goes is written down with the room that its bytes leave."""
    store = Held()

    async def main(mount: Composed) -> None:
        mount.parts.commits.debounce.delay = FOREVER
        await mount.write("file", NEW, flags=os.O_CREAT)
        await mount.parts.sync()
        handle = await opened(mount)
        if not is_open:
            await closed(mount, handle)
        full = Full(monkeypatch, at=0, times=FOREVER, rolls_back=False, is_held=False)
        cls, name = (Draft, "shed") if is_open else (Spool, "close")
        frees = getattr(cls, name)

        def freed(one: Any) -> None:
            frees(one)
            full.heals()

        monkeypatch.setattr(cls, name, freed)
        await mount.parts.commits.commit(handle.inode)
        assert mount._journal._db._owed
        if is_open:
            await mount.parts.file_io.writeback._frees()
        else:
            await mount.parts.commits.drain()
            await mount.parts.sync()

    with composed(store, tmp_path, durability=durability) as mount:
        mount.loop.run(partial(main, mount))
        mount.crash()
        monkeypatch.undo()
        mount.take_up()
        assert bodies(store) == {"file": NEW}


@pytest.mark.promise(3)
def test_a_crash_after_what_was_stored_during_an_fsync_was_cut_off_on_a_full_disk_finds_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fsync frees what lies above the length, and with that room it is written down that the record goes."""
    store, late, sync, cut = Held(), trio.Event(), Spool.sync, Spool.truncate

    async def waits(spool: Spool) -> None:
        await late.wait()
        await sync(spool)

    async def main(mount: Composed) -> None:
        mount.parts.commits.debounce.delay = FOREVER
        await mount.write("file", OLD, flags=os.O_CREAT)
        handle = await opened(mount)
        await mount.parts.file_io.write(handle, 0, b"new")
        full = Full(monkeypatch, at=0, times=FOREVER, rolls_back=False, is_held=False)

        def frees(spool: Spool, size: int) -> None:
            cut(spool, size)
            full.heals()

        await mount.parts.file_io.truncate(handle.inode, 300_000)
        monkeypatch.setattr(Spool, "sync", waits)
        await begun(mount, partial(mount.parts.file_io.fsync, handle.inode))
        await mount.parts.commits.commit(handle.inode)
        monkeypatch.setattr(Spool, "truncate", frees)
        await settled(late)
        assert not full.times, "nothing was freed"

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(main, mount))
        mount.crash()
        monkeypatch.undo()
        mount.take_up()
        assert bodies(store) == {"file": (b"new" + OLD[3:])[:300_000]}


@pytest.mark.promise(3)
def test_a_crash_while_room_is_made_of_another_stored_file_finds_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is waited for before the room of the next one is freed."""
    store, shed, sync = Held(), Draft.shed, Journal.sync

    async def main(mount: Composed) -> None:
        mount.parts.commits.debounce.delay = FOREVER
        handles = []
        for name in ("one", "other"):
            await mount.write(name, NEW, flags=os.O_CREAT)
            handles.append(await opened(mount, path=name))
        full = Full(monkeypatch, at=0, times=FOREVER, rolls_back=False, is_held=False)

        def frees(draft: Draft) -> None:
            shed(draft)
            full.heals()

        async def hangs(journal: Journal) -> None:
            if not full.times:
                await trio.sleep_forever()
            await sync(journal)

        for handle in handles:
            await mount.parts.commits.commit(handle.inode)
        monkeypatch.setattr(Draft, "shed", frees)
        monkeypatch.setattr(Journal, "sync", hangs)
        await begun(mount, mount.parts.file_io.writeback._frees)
        assert not full.times, "nothing was freed"

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(main, mount))
        mount.crash()
        monkeypatch.undo()
        mount.take_up()
        assert bodies(store) == {"one": NEW, "other": NEW}


@pytest.mark.parametrize("is_closed", [True, False], ids=["closed", "still open"])
@pytest.mark.parametrize("size", [0, 100, 500_000])
@pytest.mark.parametrize("durability", [Durability.JOURNAL, Durability.WRITEBACK])
def test_a_file_that_is_cut_on_a_full_disk_has_that_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, is_closed: bool, durability: Durability
) -> None:
    """To its program, to others and in the bucket. A crash before its close finds no damage."""
    store = Held()

    async def main(mount: Composed) -> None:
        mount.parts.commits.debounce.delay = FOREVER
        await mount.write("file", OLD, flags=os.O_CREAT)
        handle = await opened(mount)
        await mount.parts.file_io.write(handle, 0, b"new")
        full = Full(monkeypatch, at=0, times=FOREVER, rolls_back=False, is_held=False)
        await mount.parts.file_io.truncate(handle.inode, size)
        wanted = (b"new" + OLD[3:])[:size].ljust(size, b"\0")
        assert handle.inode.size == size
        assert bytes(await mount.parts.file_io.read(handle, 0, 2 * len(OLD))) == wanted
        if is_closed:
            await closed(mount, handle)
            assert bodies(store) == {"file": wanted}, "the journal has no room for it"
        full.heals()

    with composed(store, tmp_path, durability=durability) as mount:
        mount.loop.run(partial(main, mount))
        if not is_closed:
            mount.crash()
            monkeypatch.undo()
            mount.take_up()


@pytest.mark.promise(3)
def test_a_half_file_on_a_full_disk_is_what_it_was_with_the_attributes_that_were_set_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it is left here, and its close does not fail for that."""
    store = Held()

    async def main(mount: Composed) -> None:
        await put_all(store, {"file": OLD})
        handle = await opened(mount)
        await mount.parts.file_io.write(handle, 0, NEW)
        await chmod(mount)
        await mount.parts.commits.record_all()
        assert handle.open_file.draft is not None
        handle.open_file.draft.refuse(len(NEW), len(NEW) + 1)
        full = Full(monkeypatch, at=0, times=FOREVER, rolls_back=False, is_held=False)
        with fails(errno.ENOSPC):
            await closed(mount, handle)
        full.heals()
        assert (await mount.tree()) == {"file": (OLD, 0o600)}
        assert list(mount._settings.state_dir.rglob("*.spool")) == []

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(main, mount))
        mount.loop.passes(5)
        assert posix_of(store, "file").mode == stat.S_IFREG | 0o600
        assert bodies(store) == {"file": OLD}


@pytest.mark.promise(3)
def test_attributes_of_a_file_whose_removal_is_refused_on_a_full_disk_are_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its program has the refusal, not the disk's error."""
    store = Held()

    async def main(mount: Composed) -> None:
        await put_all(store, {"file": OLD})
        await chmod(mount)
        store.errors["delete", "file"] = [denied("delete")]
        full = Full(monkeypatch, at=0, times=FOREVER, rolls_back=False, is_held=False)
        with fails(errno.EACCES):
            await mount.unlink("file")
        full.heals()

    with composed(store, tmp_path, durability=Durability.BUCKET) as mount:
        mount.loop.run(partial(main, mount))
        mount.loop.passes(5)
        assert posix_of(store, "file").mode == stat.S_IFREG | 0o600


def posix_of(store: FakeStore, key: str) -> Posix:
    """What an object says of its attributes."""
    return user_metadata.read(store._stored[key].object.properties.metadata)


Files = dict[str, tuple[bytes, int]]


async def _closed(mount: Composed, store: Held) -> tuple[Files, Files]:
    await mount.write("file", NEW, flags=os.O_CREAT)
    return {"file": (NEW, 0o644)}, {}


async def _synced_and_closed(mount: Composed, store: Held) -> tuple[Files, Files]:
    await mount.write("file", OLD, flags=os.O_CREAT)
    await mount.parts.file_io.fsync(await mount._walk("file"))
    await mount.write("file", NEW, flags=os.O_TRUNC)
    return {"file": (NEW, 0o644)}, {"file": (OLD, 0o644)}


async def _stored(mount: Composed, store: Held) -> tuple[Files, Files]:
    """Attributes were changed while it was sent."""
    await mount.write("file", NEW, flags=os.O_CREAT)
    store.after["put"] = trio.Event()
    await begun(mount, partial(mount.parts.commits.commit, await mount._walk("file")))
    await chmod(mount)
    return {"file": (NEW, 0o600)}, {"file": (NEW, 0o644)}


async def _changed(mount: Composed, store: Held) -> tuple[Files, Files]:
    await put_all(store, {"file": OLD})
    await chmod(mount)
    return {"file": (OLD, 0o600)}, {"file": (OLD, 0o600)}


async def _renamed(mount: Composed, store: Held) -> tuple[Files, Files]:
    """A directory, of which all is copied."""
    await put_all(store, {"d/file": OLD, "d/other": b"other"})
    await mount.write("d/file", NEW)
    await chmod(mount, "d/other")
    store.before["delete_many"] = trio.Event()
    await begun(mount, partial(mount.rename, "d", "e"))
    assert store.reached
    other = b"other", 0o600
    return {"e/file": (NEW, 0o644), "e/other": other}, {"e/file": (OLD, 0o644), "e/other": other}


async def _zeros(mount: Composed, store: Held) -> tuple[Files, Files]:
    """An object of zeros, of which holes were copied."""
    mount._journal.add_scratch("zeros")
    await put_all(store, {"zeros": b""})
    return {}, {}


@pytest.mark.promise(3)
@pytest.mark.parametrize("is_of_other_boot", [False, True])
@pytest.mark.parametrize("is_held", [False, True])
@pytest.mark.parametrize("left", [_closed, _synced_and_closed, _stored, _changed, _renamed, _zeros])
def test_whatever_is_left_keeps_no_mount_from_beginning_on_a_full_disk(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    left: Callable[[Composed, Held], Awaitable[tuple[Files, Files]]],
    is_held: bool,
    is_of_other_boot: bool,
) -> None:
    store = Held(hashes=left is not _changed)
    with composed(store, tmp_path, durability=Durability.WRITEBACK) as mount:
        mount.parts.commits.debounce.delay = FOREVER
        wanted, wanted_of_other_boot = mount.loop.run(partial(left, mount, store))
        mount.crash()
        mount.loop.run(store.release)
        if is_of_other_boot:
            another_boot(mount, monkeypatch)
            wanted = wanted_of_other_boot
        full = Full(monkeypatch, at=0, times=FOREVER, rolls_back=False, is_held=is_held)
        mount.start()
        assert mount._journal.damage.lines == ()
        full.heals()
        mount.loop.passes(FOREVER)
        found = mount.loop.run(mount.tree)
        assert {name: file for name, file in found.items() if file is not None} == wanted
        assert (bodies(store), mount.parts.pending) == ({name: body for name, (body, _) in wanted.items()}, 0)


@pytest.mark.promise(3)
def test_what_a_full_disk_kept_from_being_recorded_is_once_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is older than a second outlives the loss of power."""
    store = Held()
    with composed(store, tmp_path, durability=Durability.WRITEBACK) as mount:
        mount.parts.commits.debounce.delay = FOREVER
        mount.loop.run(partial(mount.write, "file", NEW, flags=os.O_CREAT))
        full = Full(monkeypatch, at=0, times=FOREVER, rolls_back=False, is_held=False)
        mount.loop.passes(5)
        full.heals()
        mount.loop.passes(60)
        mount.crash()
        another_boot(mount, monkeypatch)
        mount.take_up()
        assert bodies(store) == {"file": NEW}


@pytest.mark.promise(3)
def test_no_close_succeeds_of_what_an_fsync_could_not_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Held()

    async def main(mount: Composed) -> None:
        mount.parts.commits.debounce.delay = FOREVER
        await mount.write("file", b"old", flags=os.O_CREAT)
        handle = await opened(mount)
        await mount.parts.file_io.write(handle, 0, b"new")
        store.errors["put", "file"] = [silence("put")] * 9
        full = Full(monkeypatch, at=0, times=FOREVER, rolls_back=False, is_held=False)
        with fails(errno.EIO):
            await mount.parts.file_io.fsync(handle.inode)
        with fails(errno.EIO):
            await closed(mount, handle)
        full.heals()
        handle = await opened(mount)
        await closed(mount, handle)

    with composed(store, tmp_path, durability=Durability.WRITEBACK) as mount:
        mount.loop.run(partial(main, mount))
        mount.crash()
        store.errors.clear()
        mount.take_up()
        assert bodies(store) == {"file": b"new"}
