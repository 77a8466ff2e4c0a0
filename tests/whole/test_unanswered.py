"""Requests whose answer is lost or late, and what is done to the file meanwhile: it is stored once, and as it was left.

In one process and without a kernel, for only so can each order be had.
"""

from __future__ import annotations

import errno
import os
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from sosfs.config.parameters import Durability
from sosfs.errors import StoreError
from sosfs.journal.journal import Journal
from sosfs.s3.protocol import Properties
from tests.support.composed import LONG, TASK, Composed, composed
from tests.support.drive import fails
from tests.support.fake_store import FakeStore
from tests.support.held import Held, begun, bodies, closed, denied, opened, silence, stored


@pytest.mark.parametrize("size", [100_000, 0, 400_000])
def test_what_was_sent_without_an_answer_is_known_after_a_cut_and_a_crash(tmp_path: Path, size: int) -> None:
    """The answer of an upload is lost, the file is truncated by its writer, and the process dies."""
    store = Held()

    async def main(mount: Composed) -> None:
        await mount.write("file", b"a" * 300_000, flags=os.O_CREAT)
        inode = await mount._walk("file")
        store.lost.add("file")
        with pytest.raises(OSError):
            await mount.parts.commits.commit(inode)
        handle = await opened(mount, os.O_WRONLY)
        await mount.parts.file_io.truncate(handle.inode, size)

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(main, mount))
        mount.crash()
        mount.start()
        mount.loop.passes(20)
        mount.loop.run(mount.settle)
        assert [k for k in store._stored if "conflict" in k] == []
        assert len(stored(store)) in {size, 300_000}


def test_a_journal_that_cannot_be_written_keeps_nobody_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FakeStore()
    drop, fails = Journal.drop_delete, [False]

    def failing(journal: Journal, key: str) -> None:
        if fails[0]:
            fails[0] = False
            raise OSError(errno.EIO, "the journal: database or disk is full")
        drop(journal, key)

    monkeypatch.setattr(Journal, "drop_delete", failing)

    async def main(mount: Composed) -> None:
        for name in ("a", "b"):
            await mount.write(name, b"x", flags=os.O_CREAT)
        await mount.unlink("a")
        await mount.unlink("b")  # queued
        fails[0] = True

    async def again(mount: Composed) -> None:
        with trio.move_on_after(60) as scope:
            await mount.write("b", b"y", flags=os.O_CREAT)
        assert not scope.cancelled_caught, "it hangs"

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))
        mount.loop.passes(3)
        assert not fails[0]
        assert "b" not in store._stored
        assert mount.parts.deletions.pending == 0
        mount.loop.run(partial(again, mount))


def test_open_of_what_was_unlinked_counts_no_handle(tmp_path: Path) -> None:
    store = FakeStore()

    async def main(mount: Composed) -> None:
        await store.put("file", b"x" * 10000, Properties())
        inode = await mount._walk("file")
        inode.lookups += 1
        await mount.unlink("file")
        with pytest.raises(OSError):
            handle = await mount.parts.file_io.open(inode, os.O_RDONLY, TASK)
            try:
                await mount.parts.file_io.read(handle, 0, 10)
            finally:
                await mount.parts.file_io.release(handle)
        mount.parts.namespace.forget(inode, 1)
        assert inode.opens == 0
        assert mount.parts.inodes.find(inode.number) is None

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))


def test_who_is_refused_a_look_after_a_lost_answer_makes_no_conflict_with_itself(tmp_path: Path) -> None:
    """The key may be refused for a while: that says nothing of what is there."""
    store = Held()

    async def main(mount: Composed) -> None:
        await store.put("file", b"old", Properties())
        store.lost.add("file")
        handle = await opened(mount)
        await mount.parts.file_io.write(handle, 0, b"new")
        with fails(errno.EIO):
            await mount.parts.file_io.flush(handle)
        store.errors["head", "file"] = [denied("head")] * 9
        with fails(errno.EACCES):
            await closed(mount, handle)

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))
        store.errors.clear()
        mount.loop.passes(LONG)
        assert (bodies(store), mount.parts.pending) == ({"file": b"new"}, 0)


def test_a_server_that_refuses_what_stands_on_our_own_version_is_not_asked_for_ever(tmp_path: Path) -> None:
    store = Held()
    refusal = StoreError(errno.ESTALE, "put", code="PreconditionFailed", status=412)

    async def main(mount: Composed) -> None:
        await store.put("file", b"old", Properties())
        store.lost.add("file")
        handle = await opened(mount)
        await mount.parts.file_io.write(handle, 0, b"new")
        with fails(errno.EIO):
            await mount.parts.file_io.flush(handle)
        store.errors["put", "file"] = [refusal] * 50
        with fails(errno.ESTALE):
            await closed(mount, handle)
        assert len(store.errors["put", "file"]) == 48

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))
        mount.loop.run(store.release)
        assert list(bodies(store).values()) == [b"new", b"new"]


def test_what_was_sent_with_the_time_of_the_version_before_is_not_taken_for_it(tmp_path: Path) -> None:
    """Nothing but size and time tells an object from another where ETags are no hashes, and it never arrived."""
    store = Held(hashes=False)

    async def main(mount: Composed) -> None:
        await mount.write("file", b"old", flags=os.O_CREAT)
        handle = await opened(mount)
        time = handle.inode.mtime_ns
        await mount.parts.file_io.write(handle, 0, b"new")
        handle.inode.mtime_ns = time
        mount.parts.attributes.changed(handle.inode, posix={"mtime_ns"})
        mount.parts.file_io.time_given(handle.inode)
        store.errors["put", "file"] = [silence("put")] * 9
        with fails(errno.EIO):
            await closed(mount, handle)

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))
        mount.crash()
        store.errors.clear()
        mount.take_up()
        assert bodies(store) == {"file": b"new"}


def test_unlinked_after_lost_answer_stays_unlinked(tmp_path: Path) -> None:
    """A file is rewritten, the answer is lost; it is removed, and the first try of the delete gets no answer."""
    store = Held()

    async def main(mount: Composed) -> None:
        await store.put("file", b"old", Properties())
        await store.put("other", b"old", Properties())
        await mount.unlink("other")  # proves the key
        store.lost.add("file")
        with pytest.raises(OSError):
            await mount.write("file", b"newer")
        assert stored(store) == b"newer"
        error = StoreError(errno.EIO, "delete", detail="no answer")
        store.errors["delete", "file"] = [error]
        store.errors["delete_many", "file"] = [error]
        await mount.unlink("file")

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))
        mount.loop.passes(60)
        assert mount.parts.deletions.pending == 0
        assert not bodies(store)


def test_what_was_acknowledged_while_a_commit_was_under_way_is_there_after_a_crash(tmp_path: Path) -> None:
    """What was acknowledged while a commit of an earlier state read its base is not dropped after a crash."""
    store = Held()

    async def main(mount: Composed) -> None:
        await store.put("file", b"o" * 9000, Properties())
        handle = await opened(mount)
        mount.parts.blocks.forget(lambda key: True)
        store.before["get"] = trio.Event()
        await mount.parts.file_io.write(handle, 0, b"a")
        await mount.parts.file_io.flush(handle)

        async def commit() -> None:
            with pytest.raises(OSError):
                await mount.parts.commits.commit(handle.inode)

        await begun(mount, commit)
        assert ("get", "file") in store.reached
        await mount.parts.file_io.write(handle, 1, b"b")
        await mount.parts.file_io.fsync(handle.inode)  # acknowledged, journal mode
        store.lost.add("file")
        store.before.pop("get").set()
        await trio.testing.wait_all_tasks_blocked()

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(main, mount))
        mount.crash()
        mount.start()
        mount.loop.passes(20)
        mount.loop.run(mount.settle)
        assert stored(store)[:3] == b"abo"


def test_rename_after_lost_answer(tmp_path: Path) -> None:
    store = Held()

    async def main(mount: Composed) -> None:
        await store.put("file", b"old", Properties())
        store.lost.add("file")
        with pytest.raises(OSError):
            await mount.write("file", b"newer")
        await mount.rename("file", "other")

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))
        mount.loop.passes(30)
        assert bodies(store) == {"other": b"newer"}


def test_a_reader_goes_on_while_a_chmod_takes_effect(tmp_path: Path) -> None:
    """A multipart object's ETag changes with the copy that brings its attributes; a reader comes before the answer."""
    store = Held()
    body = b"o" * (17 << 20)

    async def main(mount: Composed) -> None:
        await mount.write("file", body, flags=os.O_CREAT)
        assert "-" in store._stored["file"].object.version.etag
        mount.parts.blocks.forget(lambda key: True)
        reader = await opened(mount, os.O_RDONLY)
        reader.inode.mode = 0o100600
        mount.parts.attributes.changed(reader.inode)
        store.after["copy"] = trio.Event()
        await begun(mount, partial(mount.parts.attributes.write_now, reader.inode))
        assert ("copy", "file") in store.reached
        found: list[bytes | OSError] = []

        async def read() -> None:
            try:
                found.append(bytes(await mount.parts.file_io.read(reader, 0, 100)))
            except OSError as error:
                found.append(error)

        await begun(mount, read)
        store.after.pop("copy").set()
        await trio.testing.wait_all_tasks_blocked()
        await mount.parts.file_io.release(reader)
        assert found == [b"o" * 100]

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))


def test_an_unlink_that_fails_loses_no_chmod(tmp_path: Path) -> None:
    store = Held()

    async def main(mount: Composed) -> None:
        await store.put("file", b"body", Properties())
        inode = await mount._walk("file")
        inode.mode = 0o100600
        mount.parts.attributes.changed(inode)
        store.errors["delete", "file"] = [StoreError(errno.EIO, "delete", detail="no answer")]
        with pytest.raises(OSError):
            await mount.unlink("file")

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))
        mount.loop.passes(20)
        mode = store._stored["file"].object.properties.metadata.get("mode")
        assert mode is not None
