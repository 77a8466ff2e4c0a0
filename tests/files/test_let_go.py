"""A draft that the bucket has is freed once nobody needs it, and not a step sooner: who may still be at it, one by one.

In one process, with threads and requests held back.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from sosfs.concurrency.threads import Threads
from sosfs.config.parameters import Durability
from sosfs.files.open_file import Handle
from sosfs.files.spool import Spool
from sosfs.journal.journal import Journal
from sosfs.s3.protocol import Properties
from tests.support.composed import Composed, composed
from tests.support.dropping import dropped
from tests.support.held import Held, begun, bodies, closed, opened, put_all, settled, stored
from tests.support.power import syncs_late

JOURNAL, BUCKET = Durability.JOURNAL, Durability.BUCKET
SIZE = 300_000  # bytes: in a spool on the disk, and written in a thread
sizes = pytest.mark.parametrize("size", [100, SIZE], ids=["in its row", "in the spool"])


def hold_writes(patch: pytest.MonkeyPatch, done: trio.Event) -> None:
    """What a thread writes into a spool is not told before `done`."""
    run = Threads.run

    async def slowly(threads: Threads, work: Any, *arguments: Any) -> Any:
        if work.__name__ == "_write_all":
            await done.wait()
        return await run(threads, work, *arguments)

    patch.setattr(Threads, "run", slowly)


def it_is_sent(mount: Composed) -> None:
    """By the task of a close."""
    mount.loop.passes(3)


def another_closes(mount: Composed) -> None:
    """A second descriptor, which has written nothing."""

    async def main() -> None:
        await closed(mount, await opened(mount, os.O_WRONLY))

    mount.loop.run(main)


def the_cache_is_dropped(mount: Composed) -> None:
    """By a user."""
    mount.loop.run(partial(dropped, mount, ""))


@pytest.mark.parametrize(
    ("durability", "meanwhile"), [(JOURNAL, it_is_sent), (BUCKET, another_closes), (BUCKET, the_cache_is_dropped)]
)
def test_what_is_being_written_is_not_freed_with_what_is_stored(
    tmp_path: Path, durability: Durability, meanwhile: Callable[[Composed], None]
) -> None:
    store, done = Held(), trio.Event()

    async def begin(mount: Composed, patch: pytest.MonkeyPatch) -> Handle:
        handle = await mount._opened(mount.parts.inodes.root, b"file", os.O_CREAT | os.O_RDWR)
        await mount.parts.file_io.write(handle, 0, b"o" * SIZE)
        await mount.parts.file_io.flush(handle)
        hold_writes(patch, done)
        await begun(mount, partial(mount.parts.file_io.write, handle, 0, b"n" * 100_000))
        return handle

    async def end(mount: Composed, handle: Handle) -> None:
        assert stored(store) == b"o" * SIZE
        done.set()
        await trio.testing.wait_all_tasks_blocked()
        await closed(mount, handle)

    with composed(store, tmp_path, durability=durability) as mount:
        with pytest.MonkeyPatch.context() as patch:
            handle = mount.loop.run(partial(begin, mount, patch))
            meanwhile(mount)
            mount.loop.run(partial(end, mount, handle))
        mount.loop.passes(3)
        assert bodies(store) == {"file": b"n" * 100_000 + b"o" * (SIZE - 100_000)}


def test_what_is_being_written_while_another_closes_is_no_damage_after_a_crash(tmp_path: Path) -> None:
    """The record that the close makes must not have checksums of bytes that a thread is about to change."""
    store, done = Held(), trio.Event()

    async def main(mount: Composed, patch: pytest.MonkeyPatch) -> None:
        handle = await mount._opened(mount.parts.inodes.root, b"file", os.O_CREAT | os.O_RDWR)
        await mount.parts.file_io.write(handle, 0, b"o" * SIZE)
        hold_writes(patch, done)
        await begun(mount, partial(mount.parts.file_io.write, handle, 0, b"n" * 100_000))
        await closed(mount, await opened(mount, os.O_WRONLY))
        done.set()
        await trio.testing.wait_all_tasks_blocked()

    with composed(store, tmp_path, durability=JOURNAL) as mount:
        with pytest.MonkeyPatch.context() as patch:
            mount.loop.run(partial(main, mount, patch))
        mount.crash()
        mount.start()
        assert mount._journal.damage.lines == ()
        mount.loop.passes(5)
        assert stored(store)[100_000:] == b"o" * (SIZE - 100_000)


def test_what_a_removal_keeps_for_a_reader_outlives_a_drop_of_the_cache(tmp_path: Path) -> None:
    store, held = Held(), trio.Event()
    body = os.urandom(SIZE)

    async def main(mount: Composed) -> None:
        await put_all(store, {"file": body})
        reader = await opened(mount, os.O_RDONLY)
        store.before["delete"] = held
        await begun(mount, partial(mount.unlink, "file"))
        assert ("delete", "file") in store.reached
        await dropped(mount, "")
        held.set()
        await trio.testing.wait_all_tasks_blocked()
        assert bodies(store) == {}
        assert bytes(await mount.parts.file_io.read(reader, 0, SIZE)) == body
        await mount.parts.file_io.release(reader)

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))


@sizes
def test_what_was_sent_is_not_sent_again_after_a_crash_though_it_is_still_open(tmp_path: Path, size: int) -> None:
    """Else what another client has stored since would look like a conflict with it."""
    store = Held()

    async def main(mount: Composed) -> None:
        handle = await mount._opened(mount.parts.inodes.root, b"file", os.O_CREAT | os.O_RDWR)
        await mount.parts.file_io.write(handle, 0, b"n" * size)
        await mount.parts.file_io.flush(handle)
        await mount.parts.commits.commit(handle.inode)
        assert stored(store) == b"n" * size
        await store.put("file", b"theirs", Properties())

    with composed(store, tmp_path, durability=JOURNAL) as mount:
        mount.loop.run(partial(main, mount))
        mount.crash()
        mount.start()
        mount.loop.passes(5)
        assert bodies(store) == {"file": b"theirs"}


def test_nothing_stays_here_of_a_file_that_was_closed_and_sent(tmp_path: Path) -> None:
    store = Held()
    with composed(store, tmp_path, durability=JOURNAL) as mount:
        spools = mount._settings.state_dir / "spool"
        mount.loop.run(partial(mount.write, "file", b"n" * SIZE, flags=os.O_CREAT))
        assert len(list(spools.iterdir())) == 1
        mount.loop.passes(3)
        assert list(spools.iterdir()) == []
        assert mount.parts.commits.drafts == set()
        assert mount.loop.run(partial(mount._walk, "file")).pins == 0


def test_nothing_stays_here_of_a_file_that_the_unmount_has_sent(tmp_path: Path) -> None:
    """The disk is that of other programs until the next mount, if one comes."""
    store = Held()
    with composed(store, tmp_path, durability=JOURNAL) as mount:
        mount.loop.run(partial(mount.write, "file", b"n" * SIZE, flags=os.O_CREAT))
        spools = mount._settings.state_dir / "spool"
        assert len(list(spools.iterdir())) == 1
        mount.loop.run(mount.parts.drain)
        assert bodies(store) == {"file": b"n" * SIZE}
        assert list(spools.iterdir()) == []


# What the task that has sent a file leaves


def test_who_opens_a_file_later_gets_what_another_client_has_stored_since(tmp_path: Path) -> None:
    store = Held()

    async def look(mount: Composed) -> bytes:
        inode = await mount._walk("file")
        await mount.parts.attributes.refresh(inode)  # as after the ttl
        return (await mount._bytes(inode))[0]

    with composed(store, tmp_path, durability=JOURNAL) as mount:
        mount.loop.run(partial(mount.write, "file", b"ours, and longer", flags=os.O_CREAT))
        mount.loop.passes(3)
        assert bodies(store) == {"file": b"ours, and longer"}
        mount.loop.run(partial(store.put, "file", b"theirs", Properties()))
        assert mount.loop.run(partial(look, mount)) == b"theirs"


def test_who_has_a_file_open_while_it_is_sent_sees_what_is_written_next(tmp_path: Path) -> None:
    store = Held()

    async def write_on(mount: Composed, reader: Handle) -> None:
        assert bytes(await mount.parts.file_io.read(reader, 0, 3)) == b"old"
        await mount.write("file", b"new")
        assert bytes(await mount.parts.file_io.read(reader, 0, 3)) == b"new"
        await mount.parts.file_io.release(reader)

    with composed(store, tmp_path, durability=JOURNAL) as mount:
        mount.loop.run(partial(mount.write, "file", b"old", flags=os.O_CREAT))
        reader = mount.loop.run(partial(opened, mount, os.O_RDONLY))
        mount.loop.passes(3)
        assert bodies(store) == {"file": b"old"}
        mount.loop.run(partial(write_on, mount, reader))


@pytest.mark.parametrize("is_looked_at", [False, True], ids=["written", "read and written"])
def test_what_is_written_while_a_spool_is_freed_is_not_freed_with_it(tmp_path: Path, is_looked_at: bool) -> None:
    """The task waits for the disk before it removes the spool; meanwhile another program opens the file."""
    store = Held()

    async def meanwhile(mount: Composed) -> None:
        assert bodies(store) == {"file": b"o" * SIZE}
        if is_looked_at:
            assert (await mount._bytes(await mount._walk("file")))[0] == b"o" * SIZE
        await mount.write("file", b"n" * SIZE)

    with composed(store, tmp_path, durability=JOURNAL) as mount:
        mount.loop.run(partial(mount.write, "file", b"o" * SIZE, flags=os.O_CREAT))
        with pytest.MonkeyPatch.context() as patch:
            late = syncs_late(patch)
            mount.loop.passes(3)
            assert late.statistics().tasks_waiting == 1
            mount.loop.run(partial(meanwhile, mount))
            mount.loop.run(partial(settled, late))
        mount.loop.passes(5)
        assert bodies(store) == {"file": b"n" * SIZE}


def test_a_task_that_comes_after_the_file_is_gone_has_nothing_to_do(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Held()
    with composed(store, tmp_path, durability=JOURNAL) as mount:
        for path in ("removed", "other"):
            mount.loop.run(partial(mount.write, path, b"n" * SIZE, flags=os.O_CREAT))
        mount.loop.run(partial(mount.unlink, "removed"))
        mount.loop.passes(3)
        assert bodies(store) == {"other": b"n" * SIZE}
        assert mount.parts.commits._backlog.waiting == 0
        assert [one for one in caplog.records if one.levelname in ("WARNING", "ERROR")] == []


def test_room_is_made_at_once_of_what_waits_for_the_next_sync(tmp_path: Path) -> None:
    """Of spools that a power loss may still need, where nobody waits for the disk: a writer that wants room does."""
    store = Held()
    with composed(store, tmp_path, durability=Durability.WRITEBACK) as mount:
        spools = mount._settings.state_dir / "spool"
        mount.loop.run(partial(mount.write, "file", b"n" * SIZE, flags=os.O_CREAT))
        mount.loop.passes(0.7)
        assert bodies(store) == {"file": b"n" * SIZE}
        assert len(list(spools.iterdir())) == 1

        async def hurry() -> bool:
            is_on_its_way = mount.parts.commits.makes_room()
            await trio.testing.wait_all_tasks_blocked()
            return is_on_its_way

        assert mount.loop.run(hurry)
        assert list(spools.iterdir()) == []
        assert not mount.loop.run(hurry)


def test_spools_that_the_disk_did_not_let_go_go_with_a_later_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Held()

    async def refuses(_: Journal) -> None:
        raise OSError(errno.EIO, "the disk")

    with composed(store, tmp_path, durability=Durability.WRITEBACK) as mount:
        spools = mount._settings.state_dir / "spool"
        mount.loop.run(partial(mount.write, "file", b"n" * SIZE, flags=os.O_CREAT))
        with monkeypatch.context() as patch:
            patch.setattr(Journal, "sync", refuses)
            mount.loop.passes(15)
            assert bodies(store) == {"file": b"n" * SIZE}
            assert len(list(spools.iterdir())) == 1
        mount.loop.passes(30)
        assert list(spools.iterdir()) == []


def test_a_file_that_the_disk_has_refused_is_synced_with_a_later_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for it: else a power loss would take it however long ago it was closed."""
    store, tries, sync = Held(), list[Spool](), Spool.sync

    async def refuses_once(spool: Spool) -> None:
        tries.append(spool)
        if len(tries) == 1:
            raise OSError(errno.EIO, "the disk")
        await sync(spool)

    with composed(store, tmp_path, durability=Durability.WRITEBACK) as mount:
        mount.parts.commits.debounce.delay = 1000.0
        monkeypatch.setattr(Spool, "sync", refuses_once)
        mount.loop.run(partial(mount.write, "file", b"n" * SIZE, flags=os.O_CREAT))
        mount.loop.passes(30)
        assert len(tries) == 2
