"""The power goes: what was acknowledged is there, and what was done is not done again.

What a disk holds then is played: of a spool what was synced, of the journal what was synced or had been written out.
"""

from __future__ import annotations

import os
import shutil
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from sosfs.config.parameters import Durability
from sosfs.disk import watermark
from sosfs.files.spool import Spool
from sosfs.journal.journal import Journal
from sosfs.s3.protocol import Properties
from tests.support.composed import Composed, composed
from tests.support.fake_store import FakeStore
from tests.support.held import Held, bodies, opened, stored


def another_boot(mount: Composed, patch: pytest.MonkeyPatch) -> None:
    """The kernel that had the page cache is gone."""
    path = mount._settings.state_dir.parent / "boot"
    path.write_text("of another boot")
    patch.setattr(watermark, "BOOT_ID", path)


class Disk:
    """What of the spools has been synced: the rest is gone when the power is."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._synced: dict[str, bytes] = {}
        sync = Spool.sync

        async def noted(spool: Spool) -> None:
            await sync(spool)
            if spool.on_disk:
                self._synced[spool.path.name] = spool.path.read_bytes()

        self._patch = patch
        patch.setattr(Spool, "sync", noted)

    def loses_power(self, mount: Composed) -> None:
        """The journal is on the disk (somebody's fsync took care of it); of the spools what was synced."""
        mount.crash()
        another_boot(mount, self._patch)
        for path in (mount._settings.state_dir / "spool").glob("*.spool"):
            path.write_bytes(self._synced.get(path.name, b""))


def test_what_was_synced_is_there_when_the_power_goes_after_a_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log is written, synced, written on, and renamed; then another file is synced, and the power goes."""
    store, disk = FakeStore(), Disk(monkeypatch)
    acknowledged = b"a" * 200_000

    async def main(mount: Composed) -> None:
        await mount.write("log", acknowledged, flags=os.O_CREAT)
        handle = await opened(mount, os.O_WRONLY, "log")
        await mount.parts.file_io.write(handle, 200_000, b"b" * 100_000)
        await mount.rename("log", "log.1")
        await mount.write("other", b"other", flags=os.O_CREAT)

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(main, mount))
        disk.loses_power(mount)
        mount.start()
        assert mount._journal.damage.lines == ()
        mount.loop.passes(5)
        mount.loop.run(mount.settle)
        assert any(body[:200_000] == acknowledged for body in bodies(store).values()), list(bodies(store))


def test_what_is_in_the_bucket_is_not_made_zeros_when_the_power_goes_after_a_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, disk = Held(), Disk(monkeypatch)
    acknowledged = b"a" * 200_000

    async def main(mount: Composed) -> None:
        await mount.write("log", acknowledged, flags=os.O_CREAT)
        handle = await opened(mount, os.O_WRONLY, "log")
        store.before["put"] = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mount.parts.commits.commit, handle.inode)  # as the sending task
            await trio.testing.wait_all_tasks_blocked()
            await mount.parts.file_io.write(handle, 200_000, b"b" * 100_000)
            store.before.pop("put").set()
        assert stored(store, "log") == acknowledged
        await mount.write("other", b"other", flags=os.O_CREAT)

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(main, mount))
        disk.loses_power(mount)
        mount.start()
        assert mount._journal.damage.lines == ()
        mount.loop.passes(5)
        mount.loop.run(mount.settle)
        assert stored(store, "log")[:200_000] == acknowledged


class Log:
    """What of the journal is on the disk: what it was when the kernel last wrote it out, or somebody synced it."""

    def __init__(self, mount: Composed, copy: Path, patch: pytest.MonkeyPatch) -> None:
        self._mount, self._copy, self._patch = mount, copy, patch
        sync = Journal.sync

        async def noted(journal: Journal) -> None:
            await sync(journal)
            self.written_out()

        patch.setattr(Journal, "sync", noted)

    def written_out(self) -> None:
        shutil.rmtree(self._copy, ignore_errors=True)
        shutil.copytree(self._mount._settings.state_dir, self._copy, ignore=shutil.ignore_patterns("*-shm", "lock"))

    def loses_power(self, *, keep: tuple[str, ...] = ("journal.mark",)) -> None:
        """What is in `keep` had been written out to the last: nothing makes the kernel keep to an order."""
        self._mount.crash()
        state = self._mount._settings.state_dir
        for path in [path for path in state.iterdir() if path.name not in keep]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.copytree(self._copy, state, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*keep))
        another_boot(self._mount, self._patch)


@pytest.mark.parametrize(
    ("old", "new", "step"), [("log", "log.1", "copy"), ("d/log", "e/log", "delete_many")], ids=["file", "directory"]
)
def test_a_rename_that_was_done_is_not_done_again_when_the_power_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, step: str
) -> None:
    """The kernel wrote the journal's log out while a rename was under way; the rest of it is lost."""
    store = Held()

    async def rename(mount: Composed, log: Log) -> None:
        await store.put(old, b"old lines", Properties())
        store.before[step] = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mount.rename, old.split("/", maxsplit=1)[0], new.split("/", maxsplit=1)[0])
            await trio.testing.wait_all_tasks_blocked()
            log.written_out()
            store.before.pop(step).set()
        await store.put(old, b"new lines", Properties())
        assert bodies(store) == {old: b"new lines", new: b"old lines"}

    with composed(store, tmp_path) as mount:
        log = Log(mount, tmp_path / "disk", monkeypatch)
        mount.loop.run(partial(rename, mount, log))
        log.loses_power()
        mount.start()
        assert mount._journal.damage.lines == ()
        mount.loop.passes(5)
        assert bodies(store) == {old: b"new lines", new: b"old lines"}


def test_a_removal_that_was_done_is_not_done_again_when_the_power_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is removed and then made again with the same bytes has the same ETag on SOS."""
    store = Held()

    async def remove(mount: Composed, log: Log) -> None:
        await mount.write("file", b"bytes", flags=os.O_CREAT)
        store.before["delete"] = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mount.unlink, "file")
            await trio.testing.wait_all_tasks_blocked()
            log.written_out()
            store.before.pop("delete").set()
        await mount.write("file", b"bytes", flags=os.O_CREAT)
        assert stored(store) == b"bytes"

    with composed(store, tmp_path) as mount:
        log = Log(mount, tmp_path / "disk", monkeypatch)
        mount.loop.run(partial(remove, mount, log))
        log.loses_power()
        mount.start()
        assert mount._journal.damage.lines == ()
        mount.loop.passes(5)
        assert stored(store) == b"bytes"


def test_a_rename_before_the_close_over_a_file_that_waits_leaves_one_of_both(tmp_path: Path) -> None:
    """The record of the one that is replaced goes, so the other one has to have its own by then."""
    store = FakeStore()

    async def main(mount: Composed) -> None:
        await mount.write("file", b"old", flags=os.O_CREAT)
        handle = await mount._opened(mount.parts.inodes.root, b"new", os.O_CREAT | os.O_WRONLY)
        await mount.parts.file_io.write(handle, 0, b"new")
        await mount.rename("new", "file")

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(main, mount))
        mount.crash()
        mount.start()
        mount.loop.passes(5)
        mount.loop.run(mount.settle)
        assert bodies(store) == {"file": b"new"}


@pytest.mark.parametrize("last", ["sent", "cut", "removed"])
def test_a_spool_is_not_gone_before_its_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: str) -> None:
    """A removal or a cut may be on the disk long before the journal's log is: without an order it looks like damage."""
    store, before = FakeStore(), b"a" * 600_000

    async def main(mount: Composed) -> None:
        await mount.write("file", before, flags=os.O_CREAT)
        handle = await opened(mount, os.O_RDWR, "file")
        if last == "sent":
            await mount.parts.commits.commit(handle.inode)
            await mount.parts.file_io.release(handle)
        elif last == "cut":
            mount.parts.file_io._truncate(handle.inode, 300_000)
        else:
            await mount.parts.file_io.release(handle)
            await mount.unlink("file")

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        log = Log(mount, tmp_path / "disk", monkeypatch)
        mount.loop.run(partial(main, mount))
        log.loses_power(keep=("journal.mark", "spool"))
        mount.start()
        assert mount._journal.damage.lines == ()
        mount.loop.passes(5)
        mount.loop.run(mount.settle)
        assert bodies(store) == ({} if last == "removed" else {"file": before})


def test_what_was_cut_is_freed_once_it_is_recorded(tmp_path: Path) -> None:
    with composed(FakeStore(), tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(mount.write, "file", b"a" * 600_000, flags=os.O_CREAT))
        mount.loop.run(partial(mount.truncate, "file", 300_000))
        (spool,) = (mount._settings.state_dir / "spool").iterdir()
        assert spool.stat().st_size == 300_000
