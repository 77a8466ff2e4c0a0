"""Damage on this machine's disk: it is told, it stays told, it makes no name and no object, and what is left is kept.

In-process for each kind of it, and on real mounts for what a user sees.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio

from sosfs.concurrency.budgets import Allowance
from sosfs.config.parameters import Durability
from sosfs.disk import damage
from sosfs.disk.database import chain_sum, checksum
from sosfs.files.spool import DamagedSpool, Spool, SpoolArea
from sosfs.journal.salvage import Finding
from sosfs.recovery.spool import SpoolReplay
from sosfs.s3.protocol import Properties
from tests.conftest import Mounter
from tests.support.composed import LONG, Composed, composed
from tests.support.drive import Drive, eventually, fails, names, status
from tests.support.fake_store import FakeStore
from tests.support.faults import Hang
from tests.support.foreign import Foreign
from tests.support.held import Held, begun, bodies, chmod, opened, put_all
from tests.support.mounting import run_sosfs
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.traffic import on

LARGE = bytes(range(256)) * 2048  # 512 KiB: more than stays in memory
JOURNAL = ("--durability", "journal")


def state(mount: Composed) -> Path:
    return mount._settings.state_dir


def spools(mount: Composed) -> list[Path]:
    return sorted((state(mount) / "spool").iterdir())


def lines(mount: Composed) -> tuple[str, ...]:
    return mount._journal.damage.lines


def kept(mount: Composed) -> dict[str, bytes]:
    """All files of the entries by name but the texts."""
    found = (state(mount) / "damaged").glob("*/*")
    return {path.name: path.read_bytes() for path in found if path.is_file() and path.name != "what"}


async def listed(mount: Composed) -> list[str]:
    return sorted(await mount.tree())


def change_row(mount: Composed, change: Callable[[dict[str, object]], object]) -> None:
    """Alters the record of the only draft with a spool, its checksum with it, and the chain."""
    with contextlib.closing(sqlite3.connect(state(mount) / "journal.sqlite")) as database, database:
        ((number, text, body, is_open, was),) = database.execute("select * from drafts where body is null").fetchall()
        record = json.loads(text)
        change(record)
        row = (number, json.dumps(record), body, is_open)
        database.execute("replace into drafts values (?, ?, ?, ?, ?)", (*row, checksum("drafts", row)))
        ((only, count, rows, total, _),) = database.execute("select * from chain").fetchall()
        chain = (only, count, rows, total - was + checksum("drafts", row))
        database.execute("replace into chain values (?, ?, ?, ?, ?)", (*chain, chain_sum(*chain[1:])))


def flip(path: Path, at: int = 300_000) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))


def harm(kind: str, mount: Composed, spool: Path) -> None:
    """One thing that can befall a spool file, or the row that names it."""
    if kind == "flipped":
        flip(spool)
    elif kind == "cut":
        os.truncate(spool, 400_000)
    elif kind == "emptied":
        os.truncate(spool, 0)
    elif kind == "gone":
        spool.unlink()
    elif kind == "a directory":
        spool.unlink()
        spool.mkdir()
    elif kind == "a link":
        spool.rename(spool.with_name("elsewhere"))
        spool.symlink_to("elsewhere")
    elif kind == "elsewhere":
        change_row(mount, lambda record: record.update(spool=f"../spool/{spool.name}"))
    else:
        change_row(mount, lambda record: record.update(spool="/etc/passwd"))


def full(path: Path, body: bytes) -> None:
    """As where nothing can be set aside."""
    raise OSError(errno.ENOSPC, "no space left on device")


KINDS = ("flipped", "cut", "emptied", "gone", "a directory", "a link", "elsewhere", "far away")


@pytest.mark.promise(3)
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_spool_is_told_and_makes_no_name(tmp_path: Path, kind: str) -> None:
    """What the bucket has of the file is what is shown: nothing of a new one, the old bytes of the other."""
    store = FakeStore()
    trio.run(put_all, store, {"d/old": b"old"})

    async def written(mount: Composed) -> None:
        await mount.write("small", b"small", flags=os.O_CREAT)
        await mount.write("d/new", LARGE, flags=os.O_CREAT)

    async def rewritten(mount: Composed) -> None:
        await mount.write("d/old", LARGE)

    for work, name, before in ((written, "d/new", {"d/old"}), (rewritten, "d/old", {"d/old", "small"})):
        base = tmp_path / work.__name__
        base.mkdir()
        with composed(store, base, durability=Durability.JOURNAL) as mount:
            mount.loop.run(partial(work, mount))
            mount.crash()
            (spool,) = spools(mount)
            harm(kind, mount, spool)
            mount.start()
            (line, *rest) = lines(mount)
            assert line.startswith(f"{name}: ")
            assert "another client" not in line
            assert len(rest) == (kind in ("a link", "elsewhere", "far away")), "that of the file which no row names"
            assert set(mount.loop.run(partial(listed, mount))) == before | {"d", "small"}
            mount.loop.passes(5)
            assert set(bodies(store)) == before | {"small"}
            assert bodies(store)["d/old"] == b"old"
            if kind not in ("gone", "emptied", "a directory"):
                assert any(len(body) >= 400_000 for body in kept(mount).values())
            assert mount.parts.pending == 0
            told = lines(mount)
            mount.stop()
            mount.start()
            assert lines(mount) == told, "until somebody has dealt with it"
            shutil.rmtree(state(mount) / "damaged")
            assert lines(mount) == ()


def test_what_was_written_after_the_last_close_may_be_cut_but_not_what_was_before(tmp_path: Path) -> None:
    """An open spool has no checksums, but the length that was recorded."""
    store = FakeStore()

    async def main(mount: Composed) -> None:
        await mount.write("file", LARGE, flags=os.O_CREAT)
        handle = await opened(mount, os.O_WRONLY, "file")
        await mount.parts.file_io.write(handle, len(LARGE), b"more")

    for length, is_there in ((len(LARGE), True), (len(LARGE) - 1, False)):
        base = tmp_path / str(length)
        base.mkdir()
        with composed(store, base, durability=Durability.JOURNAL) as mount:
            mount.loop.run(partial(main, mount))
            mount.crash()
            os.truncate(spools(mount)[0], length)
            mount.start()
            assert (mount.loop.run(partial(listed, mount)) == ["file"]) is is_there
            assert bool(lines(mount)) is not is_there
            mount.loop.passes(5)
            if is_there:
                assert bodies(store)["file"] == LARGE
                mount.loop.run(partial(mount.unlink, "file"))


def test_what_cannot_be_set_aside_stays_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk it is told, and found again by the next mount."""
    store = FakeStore()
    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(mount.write, "file", LARGE, flags=os.O_CREAT))
        mount.crash()
        flip(spools(mount)[0])
        (state(mount) / "spool" / "unknown").write_bytes(b"unknown")
        with monkeypatch.context() as patch:
            patch.setattr(damage, "_write", full)
            mount.start()
            assert len(lines(mount)) == 2
            assert "no space left on device" in lines(mount)[0]
            assert len(spools(mount)) == 2
            mount.stop()
        mount.start()
        assert sorted(map(len, kept(mount).values())) == [len(b"unknown"), len(LARGE)]
        assert spools(mount) == []


def test_of_two_rows_for_one_file_the_later_one_counts(tmp_path: Path) -> None:
    store = FakeStore()

    async def main(mount: Composed) -> None:
        await mount.write("file", b"second", flags=os.O_CREAT)
        ((row, saved),) = mount._journal.drafts()
        first = replace(saved, body=b"first", size=5, local=((0, 5),), dirty=((0, 5),))
        mount._journal.save_draft(row, first)
        mount._journal.save_draft(0, saved)

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(main, mount))
        mount.crash()
        mount.start()
        assert len(lines(mount)) == 1
        assert "file: the journal has a later row" in lines(mount)[0]
        mount.loop.passes(5)
        assert bodies(store) == {"file": b"second"}
        assert kept(mount) == {"bytes": b"first"}


def test_of_two_rows_for_one_file_the_spool_of_the_earlier_one_is_kept(tmp_path: Path) -> None:
    store = FakeStore()

    async def main(mount: Composed) -> None:
        await mount.write("file", LARGE, flags=os.O_CREAT)
        ((_, saved),) = mount._journal.drafts()
        second = replace(saved, spool="", sums=(), body=b"second", size=6, local=((0, 6),), dirty=((0, 6),))
        mount._journal.save_draft(0, second)

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(main, mount))
        mount.crash()
        mount.start()
        assert ["file: the journal has a later row" in line for line in lines(mount)] == [True]
        assert list(kept(mount).values()) == [LARGE]
        mount.loop.passes(5)
        assert bodies(store) == {"file": b"second"}


@pytest.mark.parametrize("is_full", [False, True])
def test_of_two_rows_for_one_spool_the_later_one_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_full: bool
) -> None:
    """Also where the other one cannot be set aside now."""
    store = FakeStore()

    async def main(mount: Composed) -> None:
        await mount.write("file", LARGE, flags=os.O_CREAT)
        ((_, saved),) = mount._journal.drafts()
        mount._journal.save_draft(0, replace(saved, key="later"))

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(main, mount))
        mount.crash()
        with monkeypatch.context() as patch:
            if is_full:
                patch.setattr(damage, "_write", full)
            mount.start()
        assert ["file: the journal has a later row" in line for line in lines(mount)] == [True]
        mount.loop.passes(5)
        assert bodies(store) == {"later": LARGE}


@pytest.mark.parametrize("is_full", [False, True])
def test_with_what_is_damaged_what_was_synced_before_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_full: bool
) -> None:
    """The file was emptied and closed anew since, and that is not on the disk when the process dies."""
    store, before = FakeStore(), LARGE[::-1]

    async def main(mount: Composed) -> None:
        mount.parts.commits.debounce.delay = LONG
        await mount.write("file", before, flags=os.O_CREAT)
        await mount.parts.file_io.fsync(await mount._walk("file"))
        await mount.write("file", LARGE, flags=os.O_TRUNC)
        assert len(spools(mount)) == 2

    with composed(store, tmp_path, durability=Durability.WRITEBACK) as mount:
        mount.loop.run(partial(main, mount))
        mount.crash()
        os.truncate(next(spool for spool in spools(mount) if spool.read_bytes() == LARGE), 1000)
        with monkeypatch.context() as patch:
            if is_full:
                patch.setattr(damage, "_write", full)
            mount.start()
        if is_full:
            assert len(lines(mount)) == 1
            mount.stop()
            mount.start()
        assert before in kept(mount).values()
        assert len(kept(mount)) == 2
        assert spools(mount) == []


@pytest.mark.promise(3)
@pytest.mark.parametrize("is_closed", [False, True], ids=["before it was written", "after its close"])
def test_what_was_changed_of_the_attributes_of_a_damaged_file_is_kept(tmp_path: Path, is_closed: bool) -> None:
    """The bytes are those that the bucket has, and so is their time."""
    store = Held()

    async def main(mount: Composed) -> None:
        await store.put("file", b"old", Properties(metadata={"mtime": "1.000000001", "colour": "blue"}))
        if not is_closed:
            await chmod(mount)
        await mount.write("file", LARGE)
        if is_closed:
            await chmod(mount)
            inode = await mount._walk("file")
            inode.mtime_ns = 5_000_000_000
            mount.parts.attributes.changed(inode, posix={"mtime_ns"})

    async def time() -> int:
        return (await mount._walk("file")).mtime_ns

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(main, mount))
        mount.crash()
        flip(spools(mount)[0])
        mount.start()
        assert len(lines(mount)) == 1
        assert mount.loop.run(time) == 1_000_000_001
        assert mount.loop.run(mount.tree) == {"file": (b"old", 0o600)}
        mount.loop.passes(LONG)
        assert bodies(store) == {"file": b"old"}
        found = store._stored["file"].object.properties.metadata
        assert (found["mode"], found["mtime"], found["colour"]) == (str(0o100600), "1.000000001", "blue")
        assert mount.parts.pending == 0


def test_nothing_is_stored_of_a_damaged_file_of_which_no_attribute_was_changed_but_the_time(tmp_path: Path) -> None:
    store = Held()

    async def main(mount: Composed) -> None:
        await put_all(store, {"file": b"old"})
        await mount.write("file", LARGE)
        inode = await mount._walk("file")
        inode.mtime_ns = 5_000_000_000
        mount.parts.attributes.changed(inode, posix={"mtime_ns"})

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(main, mount))
        mount.crash()
        flip(spools(mount)[0])
        mount.start()
        mount.loop.passes(LONG)
        assert len(lines(mount)) == 1
        assert (store.calls["copy"], store._stored["file"].object.properties.metadata) == (0, {})


def test_a_damaged_file_that_was_stored_without_an_answer_is_no_other_clients(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What was changed of its attributes meanwhile is changed of that."""
    store = Held()

    async def main(mount: Composed) -> None:
        await put_all(store, {"file": b"old"})
        await mount.write("file", LARGE)
        store.after["put"] = trio.Event()
        await begun(mount, partial(mount.parts.commits.commit, await mount._walk("file")))
        assert bodies(store) == {"file": LARGE}
        await chmod(mount)

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(main, mount))
        mount.crash()
        mount.loop.run(store.release)
        flip(spools(mount)[0])
        mount.start()
        mount.loop.passes(LONG)
        assert "is lost" not in caplog.text
        assert mount.loop.run(mount.tree) == {"file": (LARGE, 0o600)}
        assert int(store._stored["file"].object.properties.metadata["mode"]) & 0o7777 == 0o600


def test_what_was_changed_of_the_attributes_of_a_damaged_file_is_not_for_the_one_that_it_was_renamed_over(
    tmp_path: Path,
) -> None:
    store = Held()

    async def main(mount: Composed) -> None:
        await put_all(store, {"file": b"old"})
        await mount.write("new", LARGE, flags=os.O_CREAT)
        await chmod(mount, "new")
        await mount.rename("new", "file")

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(main, mount))
        mount.crash()
        flip(spools(mount)[0])
        mount.start()
        assert len(lines(mount)) == 1
        mount.loop.passes(LONG)
        assert mount.loop.run(mount.tree) == {"file": (b"old", 0o644)}
        assert store._stored["file"].object.properties.metadata == {}


def test_a_mount_that_fails_while_it_takes_up_drafts_leaves_what_nobody_was_promised_for_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is no damage then either."""
    store = FakeStore()

    async def main(mount: Composed) -> None:
        handle = await mount._opened(mount.parts.inodes.root, b"unclosed", os.O_CREAT | os.O_WRONLY)
        await mount.parts.file_io.write(handle, 0, LARGE)

    async def fails_first(_: SpoolReplay) -> None:
        raise OSError(errno.EIO, "no answer")

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(main, mount))
        mount.crash()
        with monkeypatch.context() as patch, pytest.raises(OSError, match="no answer"):
            patch.setattr(SpoolReplay, "rest", fails_first)
            mount.start()
        mount.crash()
        mount.start()
        assert lines(mount) == ()
        assert spools(mount) == []


@pytest.mark.parametrize("what", ["its row", "its spool"])
def test_damage_to_one_file_casts_no_doubt_on_what_nobody_was_promised(tmp_path: Path, what: str) -> None:
    """All bytes of it are set aside, so that a file without a row is nobody's, as ever."""
    store = FakeStore()

    async def main(mount: Composed) -> None:
        await mount.write("file", b"small" if what == "its row" else LARGE, flags=os.O_CREAT)
        handle = await mount._opened(mount.parts.inodes.root, b"unclosed", os.O_CREAT | os.O_WRONLY)
        await mount.parts.file_io.write(handle, 0, LARGE)
        ((_, saved),) = mount._journal.drafts()
        if what == "its row":
            mount._journal.save_draft(0, replace(saved, version=None))
        else:
            flip(state(mount) / "spool" / saved.spool)

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(main, mount))
        mount.crash()
        mount.start()
        assert [line.partition(": ")[0] for line in lines(mount)] == ["file"]
        assert len(kept(mount)) == 1
        assert spools(mount) == []


def test_a_spool_whose_row_is_lost_is_set_aside_with_its_name(tmp_path: Path) -> None:
    store = FakeStore()
    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(mount.write, "file", LARGE, flags=os.O_CREAT))
        mount.crash()
        (state(mount) / "journal.sqlite-wal").unlink()
        mount.start()
        assert [line.partition(": /")[0] for line in lines(mount)][-1] == "file: its row in the journal is lost"
        assert LARGE in kept(mount).values()
        assert spools(mount) == []
        assert mount.loop.run(partial(listed, mount)) == []


@pytest.mark.parametrize("name", ["1f-1.spool", "whatever", "{}1.spool.old"])
def test_a_file_that_nobody_knows_is_set_aside(tmp_path: Path, name: str) -> None:
    with composed(FakeStore(), tmp_path) as mount:
        name = name.format(*(mount._journal.spool_names or ()))
        mount.crash()
        (state(mount) / "spool" / name).write_bytes(b"unknown")
        mount.start()
        assert len(lines(mount)) == 1
        assert kept(mount) == {name: b"unknown"}


def test_what_may_be_somebodys_is_kept_until_all_of_it_is_set_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal is incomplete, and the disk was full for a moment."""
    write = damage._write

    def full_for_one(path: Path, body: bytes) -> None:
        (full if b"-98.spool" in body else write)(path, body)

    async def doubt(mount: Composed) -> None:
        mount._journal.doubt(Finding.INCOMPLETE)

    with composed(Held(), tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(mount.write, "file", LARGE, flags=os.O_CREAT))
        mount.loop.run(partial(doubt, mount))
        mount.crash()
        (spool,) = spools(mount)
        lost = {f"{spool.name.partition('-')[0]}-{number}.spool": b"%d" % number for number in (98, 99)}
        for name, body in lost.items():
            spool.with_name(name).write_bytes(body)
        with monkeypatch.context() as patch:
            patch.setattr(damage, "_write", full_for_one)
            mount.start()
        assert len(lines(mount)) == 2
        mount.crash()
        mount.start()
        assert kept(mount) == lost
        mount.loop.passes(5)


def test_a_spool_that_the_disk_does_not_read_keeps_no_mount_from_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(file: int, size: int) -> tuple[int, ...]:
        raise OSError(errno.EIO, "a bad sector")

    with composed(FakeStore(), tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(mount.write, "file", LARGE, flags=os.O_CREAT))
        mount.crash()
        with monkeypatch.context() as patch:
            patch.setattr("sosfs.files.spool._sums", unreadable)
            mount.start()
        assert ["file: its spool file: a bad sector" in line for line in lines(mount)] == [True]
        assert list(kept(mount).values()) == [LARGE]


def test_what_cannot_be_opened_for_now_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FakeStore()

    def too_many(_: SpoolArea, name: str) -> Spool:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(mount.write, "file", LARGE, flags=os.O_CREAT))
        mount.crash()
        with monkeypatch.context() as patch, fails(errno.EMFILE):
            patch.setattr(SpoolArea, "reopen", too_many)
            mount.start()
        mount.crash()
        mount.take_up()
        assert bodies(store) == {"file": LARGE}


def test_a_spool_that_a_mount_makes_while_it_begins_is_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small file was in its row, and there is no memory for it now."""
    store = FakeStore()
    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(mount.write, "file", b"small", flags=os.O_CREAT))
        mount.crash()
        monkeypatch.setattr(Allowance, "grant", lambda *_: False)
        mount.start()
        assert (lines(mount), len(spools(mount))) == ((), 1)
        mount.loop.passes(5)
        assert bodies(store) == {"file": b"small"}


def test_what_nobody_was_promised_is_no_damage(tmp_path: Path) -> None:
    """A file that was neither closed nor synced, and one that landed while it is open, leave spools without rows."""
    store = FakeStore()

    async def main(mount: Composed) -> None:
        handle = await mount._opened(mount.parts.inodes.root, b"unclosed", os.O_CREAT | os.O_WRONLY)
        await mount.parts.file_io.write(handle, 0, LARGE)
        await mount.write("landed", LARGE, flags=os.O_CREAT)
        await opened(mount, os.O_WRONLY, "landed")
        await mount.settle()

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(main, mount))
        for _ in range(2):
            mount.crash()
            mount.start()
            assert lines(mount) == ()
        assert spools(mount) == []


@pytest.mark.parametrize("refused", ["", "its removal", "its rename"])
def test_what_an_incomplete_journal_says_of_removals_is_not_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    """They may be done already, and the name another file's by now. Nor are they forgotten on a full disk."""
    store, write = FakeStore(), damage._write

    def full_for(path: Path, body: bytes) -> None:
        (full if refused.encode() in body else write)(path, body)

    trio.run(put_all, store, {"gone": b"1", "old": b"2", "kept": b"3"})
    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:

        async def main() -> None:
            version = (await mount._walk("gone")).version
            assert version is not None
            mount._journal.add_delete("gone", version)
            mount._journal.add_rename("old", "new")
            mount._journal.drop_delete("kept")
            mount._journal.add_intent("last", 1)

        mount.loop.run(main)
        mount.crash()
        log = state(mount) / "journal.sqlite-wal"
        os.truncate(log, log.stat().st_size - 100)
        if refused:
            with monkeypatch.context() as patch, fails(errno.EIO):
                patch.setattr(damage, "_write", full_for)
                mount.start()
            mount.crash()
        mount.start()
        assert len(lines(mount)) == 3
        assert sum("was not finished, for the journal is not complete" in line for line in lines(mount)) == 2
        assert bodies(store) == {"gone": b"1", "old": b"2", "kept": b"3"}
        mount.stop()
        mount.start()
        assert bodies(store) == {"gone": b"1", "old": b"2", "kept": b"3"}


def test_what_a_journal_says_of_removals_is_done_where_another_row_was_damaged(tmp_path: Path) -> None:
    store = FakeStore()
    trio.run(put_all, store, {"gone": b"1", "kept": b"2"})
    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:

        async def main() -> None:
            version = (await mount._walk("gone")).version
            assert version is not None
            mount._journal.add_delete("gone", version)
            mount._journal.doubt(Finding.ROWS)

        mount.loop.run(main)
        mount.crash()
        mount.start()
        assert lines(mount) == ()
        assert bodies(store) == {"kept": b"2"}


def test_a_mount_that_fails_leaves_what_it_found_for_the_next(tmp_path: Path) -> None:
    """The journal is mended when it is opened; which spools are whose comes later, if at all."""
    store = FakeStore()
    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(mount.write, "file", LARGE, flags=os.O_CREAT))
        mount.crash()
        (state(mount) / "journal.sqlite-wal").unlink()

        async def opened_only() -> None:
            from sosfs.journal.journal import Journal  # noqa: PLC0415  as when the bucket cannot be reached

            Journal(state(mount), "the test").close()

        mount.loop.run(opened_only)
        mount.start()
        assert LARGE in kept(mount).values()


# While it is mounted


def test_a_spool_that_is_cut_under_a_mount_is_an_error_and_never_zeros(tmp_path: Path) -> None:
    store = FakeStore()
    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:

        async def main() -> None:
            await mount.write("file", LARGE, flags=os.O_CREAT)
            os.truncate(spools(mount)[0], 1000)
            handle = await opened(mount, os.O_RDONLY, "file")
            with pytest.raises(DamagedSpool):
                await mount.parts.file_io.read(handle, 0, len(LARGE))
            assert await mount.parts.file_io.read(handle, 0, 1000) == LARGE[:1000]

        mount.loop.run(main)
        mount.loop.passes(700)
        assert bodies(store) == {}
        assert len(lines(mount)) == 1, "told once, however often it is tried"
        assert lines(mount)[0].startswith("file: its spool ends at 1000")
        mount.crash()
        mount.start()
        assert len(lines(mount)) == 1
        assert mount.loop.run(partial(listed, mount)) == []


def test_a_cache_directory_that_is_removed_under_a_mount(tmp_path: Path) -> None:
    """close says that the bytes are not safe; they go into the bucket, for the mount still has them."""
    store = FakeStore()
    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(mount.write, "before", LARGE, flags=os.O_CREAT))
        shutil.rmtree(state(mount))
        for name, body in (("small", b"small"), ("large", LARGE)):
            with fails(5):
                mount.loop.run(partial(mount.write, name, body, flags=os.O_CREAT))
        assert any("was removed while it was in use" in line for line in lines(mount))
        mount.loop.passes(5)
        assert bodies(store) == {"before": LARGE, "small": b"small", "large": LARGE}


def test_a_spool_that_is_removed_under_a_mount_is_not_called_safe(tmp_path: Path) -> None:
    store = FakeStore()
    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:

        async def main() -> None:
            handle = await mount._opened(mount.parts.inodes.root, b"file", os.O_CREAT | os.O_WRONLY)
            await mount.parts.file_io.write(handle, 0, LARGE)
            spools(mount)[0].unlink()
            with pytest.raises(DamagedSpool):
                await mount.parts.file_io.flush(handle)
            await mount.parts.file_io.release(handle)
            await mount.write("next", LARGE, flags=os.O_CREAT)

        mount.loop.run(main)
        mount.loop.passes(5)
        assert bodies(store) == {"file": LARGE, "next": LARGE}


# What a user sees


@pytest.fixture
def server(moto: Server) -> Server:
    """One server is enough: what is tested here is on this side of it."""
    return moto


def unmount(drive: Drive) -> tuple[int, str]:
    """The exit code and what is said."""
    done = run_sosfs(["umount", drive.mount.path], drive.mount.environment)
    drive.mount.clear()
    return done.returncode, done.stderr


@pytest.mark.promise(3)
def test_damage_is_told_until_it_is_dealt_with(mounter: Mounter, proxy: Proxy, foreign: Foreign) -> None:
    foreign.put("rewritten", b"as it was")
    drive = mounter(proxy.endpoint, *JOURNAL)
    names(drive.here)
    proxy.inject(Hang(), on("PUT"))
    for name in ("fine", "gone", "rewritten"):
        (drive.here / name).write_bytes(LARGE + name.encode())
    (drive.here / "small").write_bytes(b"small")
    drive.mount.kill()
    proxy.heal()
    proxy.drop_connections()
    for spool in (drive.mount.cache / "spool").iterdir():
        if spool.read_bytes().endswith(b"gone"):
            spool.unlink()
        elif spool.read_bytes().endswith(b"rewritten"):
            flip(spool)
    drive.mount.allow_log("damaged")
    drive.mount.start()
    assert names(drive.here) == ["fine", "rewritten", "small"]
    assert (drive.here / "rewritten").read_bytes() == b"as it was"
    eventually(lambda: foreign.files() == ["fine", "rewritten", "small"] and not status(drive).pending_files)
    told = status(drive).damaged
    assert [line.partition(":")[0] for line in told] == ["gone", "rewritten"]
    assert json.loads((drive.mount.path / ".sosfs" / "status").read_text())["damaged"] == list(told)
    assert "sosfs_damaged 2.0" in (drive.mount.path / ".sosfs" / "metrics").read_text()
    code, said = unmount(drive)
    assert code == 3
    assert "2 files and changes were damaged" in said
    assert all(line in said for line in told)
    drive.mount.start()
    assert status(drive).damaged == told
    shown = run_sosfs(["status", drive.mount.path], drive.mount.environment).stdout
    assert all(f"damaged    {line}" in shown for line in told)
    shutil.rmtree(Path(told[1].rpartition(": ")[2]))
    assert status(drive).damaged == told[:1]
    shutil.rmtree(Path(told[0].rpartition(": ")[2]))
    drive.mount.stop()


@pytest.mark.promise(3)
@pytest.mark.parametrize("kind", ["cut", "garbage"])
def test_a_damaged_journal_is_told_and_the_mount_goes_on(
    mounter: Mounter, proxy: Proxy, foreign: Foreign, kind: str
) -> None:
    drive = mounter(proxy.endpoint, *JOURNAL)
    names(drive.here)
    proxy.inject(Hang(), on("PUT"))
    for number in range(5):
        (drive.here / f"small{number}").write_bytes(b"small")
    (drive.here / "large").write_bytes(LARGE)
    drive.mount.kill()
    proxy.heal()
    proxy.drop_connections()
    log = drive.mount.cache / "journal.sqlite-wal"
    if kind == "cut":
        os.truncate(log, log.stat().st_size // 2)
    else:
        (drive.mount.cache / "journal.sqlite").write_bytes(b"garbage" * 2000)
    drive.mount.allow_log("damaged")
    drive.mount.start()
    listing = names(drive.here)
    assert "large" not in listing
    eventually(lambda: foreign.files() == listing and not status(drive).pending_files)
    assert all((drive.here / name).read_bytes() == b"small" for name in listing)
    assert len(listing) in ({0} if kind == "garbage" else range(5))
    assert any(line.startswith("large: its row in the journal is lost") for line in status(drive).damaged)
    assert any(path.read_bytes() == LARGE for path in (drive.mount.cache / "damaged").glob("*/*.spool"))
    shutil.rmtree(drive.mount.cache / "damaged")
    drive.mount.stop()
