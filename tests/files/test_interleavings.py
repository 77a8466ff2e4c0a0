"""What several do to one file at once, each step held back until another's has fallen between.

In one process and without a kernel, for only so can each order be had.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

import sosfs.concurrency.threads
import sosfs.files.spool
import tests.support.fake_store
from sosfs.config.parameters import Durability
from sosfs.errors import StoreError
from sosfs.files.open_file import Handle
from sosfs.s3.protocol import Properties
from tests.support.composed import TASK, Composed, composed
from tests.support.drive import fails
from tests.support.fake_store import FakeStore
from tests.support.held import Held, begun, bodies, closed, opened, settled, stored, told

MIB = 1 << 20


def test_a_reader_under_way_when_the_writer_closes_gets_no_zeros(tmp_path: Path) -> None:
    store = Held()

    async def main(mount: Composed) -> None:
        await store.put("file", b"o" * 100_000, Properties())
        handle, reader = await opened(mount), await opened(mount, os.O_RDONLY)
        await mount.parts.file_io.write(handle, 0, b"n" * 50_000)
        mount.parts.blocks.forget(lambda key: True)
        store.after["get"] = trio.Event()
        found: list[bytes] = []

        async def read() -> None:
            found.append(bytes(await mount.parts.file_io.read(reader, 0, 100_000)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            await mount.parts.file_io.write(handle, 50_000, b"n" * 50_000)
            await closed(mount, handle)
            assert stored(store) == b"n" * 100_000
            store.after.pop("get").set()
        assert found[0][:50_000].count(0) == 0, "zeros were never in this file"

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))


def test_a_file_that_is_written_to_while_its_old_parts_are_copied_still_goes_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neighbours are copied together, and which they are changes meanwhile: none may be left over."""
    monkeypatch.setattr(tests.support.fake_store, "PART_MIN", 1)
    store, part, count = Held(), 4096, 66
    body = b"".join(bytes([number]) * part for number in range(count))

    async def main(mount: Composed) -> None:
        await store.put("file", body, Properties())
        handle = await opened(mount)
        await mount.parts.file_io.write(handle, (count - 1) * part, b"!")
        store.after["copy_part"] = trio.Event()

        async def commit() -> None:
            await mount.parts.commits.commit(handle.inode)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(commit)
            await trio.testing.wait_all_tasks_blocked()
            for number in (0, 7, 21, 22, 50):
                await mount.parts.file_io.write(handle, number * part, b"?")
            store.after.pop("copy_part").set()
        await closed(mount, handle)

    with composed(store, tmp_path, part_size=part) as mount:
        mount.loop.run(partial(main, mount))
    changed = bytearray(body)
    changed[(count - 1) * part : (count - 1) * part + 1] = b"!"
    for number in (0, 7, 21, 22, 50):
        changed[number * part : number * part + 1] = b"?"
    assert stored(store) == changed


def test_a_read_that_waits_for_a_thread_does_not_read_another_file(tmp_path: Path) -> None:
    """All threads wait for the disk; meanwhile the writer closes, and another file's spool gets the number."""
    store, held = FakeStore(), trio.Event()

    async def main(mount: Composed) -> None:
        inline = sosfs.concurrency.threads.Threads.run

        async def run(threads: Any, work: Callable[..., Any], *arguments: Any) -> Any:
            if work is sosfs.files.spool._read_all and held.statistics().tasks_waiting == 0 and not held.is_set():
                await held.wait()
            return await inline(threads, work, *arguments)

        await mount.write("file", b"a" * MIB, flags=os.O_CREAT)
        handle, reader = await opened(mount), await opened(mount, os.O_RDONLY)
        await mount.parts.file_io.write(handle, 0, b"b" * MIB)
        await mount.parts.file_io.flush(handle)
        found: list[bytes] = []

        async def read() -> None:
            found.append(bytes(await mount.parts.file_io.read(reader, 0, MIB // 2)))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sosfs.concurrency.threads.Threads, "run", run)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                await trio.testing.wait_all_tasks_blocked()
                await closed(mount, handle)
                await mount.write("secret", b"s" * MIB, flags=os.O_CREAT)
                parent, name = await mount._parent("other")
                other = await mount._opened(parent, name, os.O_CREAT | os.O_WRONLY)
                await mount.parts.file_io.write(other, 0, b"s" * MIB)
                held.set()
            await closed(mount, other)
        assert found == [b"b" * (MIB // 2)]

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))


@pytest.mark.parametrize("durability", [Durability.JOURNAL, Durability.BUCKET])
def test_what_is_written_while_the_loser_is_kept_is_kept_too(tmp_path: Path, durability: Durability) -> None:
    store = Held()

    async def main(mount: Composed) -> None:
        await store.put("file", b"as it was", Properties())
        handle = await opened(mount)
        await mount.parts.file_io.write(handle, 0, b"first ")
        if durability is Durability.JOURNAL:
            await mount.parts.file_io.flush(handle)
        await store.put("file", b"foreign", Properties())
        store.before["put"] = trio.Event()

        async def commit() -> None:
            with pytest.raises(OSError):
                await mount.parts.commits.commit(handle.inode)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(commit)
            await trio.testing.wait_all_tasks_blocked()
            store.before.pop("put").set()
            store.after["put"] = trio.Event()  # of the second put, that of the conflict file
            await trio.testing.wait_all_tasks_blocked()
            assert len(store._stored) == 2
            told = None
            try:
                await mount.parts.file_io.write(handle, 6, b"second")
                if durability is Durability.JOURNAL:
                    await mount.parts.file_io.fsync(handle.inode)  # acknowledged
            except OSError as error:
                told = error.errno
            store.after.pop("put").set()
        try:
            await closed(mount, handle)
        except OSError as error:
            told = error.errno
        found = list(bodies(store).values())
        assert told == errno.ESTALE or any(b"second" in body for body in found), found

    with composed(store, tmp_path, durability=durability) as mount:
        mount.loop.run(partial(main, mount))
        mount.loop.passes(5)


def test_a_write_beside_one_that_makes_room_is_not_lost(tmp_path: Path) -> None:
    """The kernel writes pages of a mapping while a program writes: their thread is done, their task not yet told."""
    store, told = FakeStore(), trio.Event()

    async def main(mount: Composed) -> None:
        inline = sosfs.concurrency.threads.Threads.run

        async def run(threads: Any, work: Callable[..., Any], *arguments: Any) -> Any:
            answer = await inline(threads, work, *arguments)
            if work is sosfs.files.spool._write_all and arguments[1] == 0:
                await told.wait()
            return answer

        handle = await mount._opened(mount.parts.inodes.root, b"file", os.O_CREAT | os.O_RDWR)
        await mount.parts.file_io.write(handle, MIB, b"b" * MIB)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sosfs.concurrency.threads.Threads, "run", run)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(mount.parts.file_io.write, handle, 0, b"a" * MIB)
                await trio.testing.wait_all_tasks_blocked()
                draft = handle.open_file.draft
                assert draft is not None
                nursery.start_soon(mount.parts.file_io.writeback._relieve, handle.inode, draft, OSError())
                await trio.testing.wait_all_tasks_blocked()
                told.set()
        assert bytes(await mount.parts.file_io.read(handle, 0, 10)) == b"a" * 10
        await closed(mount, handle)
        assert stored(store) == b"a" * MIB + b"b" * MIB

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))


@pytest.mark.parametrize("durability", [Durability.BUCKET, Durability.JOURNAL])
@pytest.mark.parametrize("is_done", [True, False], ids=["its thread is done", "its thread has not begun"])
def test_what_is_being_written_when_another_process_empties_the_file_goes_with_it(
    tmp_path: Path, durability: Durability, is_done: bool
) -> None:
    """The kernel has no open wait for a write, whatever that is opened with."""
    store, told = FakeStore(), trio.Event()

    async def main(mount: Composed) -> None:
        inline, io = sosfs.concurrency.threads.Threads.run, mount.parts.file_io

        async def run(threads: Any, work: Callable[..., Any], *arguments: Any) -> Any:
            answer = await inline(threads, work, *arguments) if is_done else None
            await told.wait()
            return answer if is_done else await inline(threads, work, *arguments)

        handle = await mount._opened(mount.parts.inodes.root, b"file", os.O_CREAT | os.O_RDWR)
        await io.write(handle, 0, b"a" * MIB)
        if durability is Durability.JOURNAL:
            await io.fsync(handle.inode)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sosfs.concurrency.threads.Threads, "run", run)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(io.write, handle, MIB, b"b" * MIB)
                await trio.testing.wait_all_tasks_blocked()
                other = await io.open(handle.inode, os.O_WRONLY | os.O_TRUNC, TASK)
                told.set()
        assert (handle.inode.size, bytes(await io.read(handle, 0, 2 * MIB))) == (0, b"")
        await io.write(other, MIB + 5, b"c")
        assert bytes(await io.read(handle, 0, 2 * MIB)) == bytes(MIB + 5) + b"c"
        await closed(mount, handle)
        await closed(mount, other)

    with composed(store, tmp_path, durability=durability) as mount:
        mount.loop.run(partial(main, mount))
        mount.loop.passes(5)
    assert stored(store) == bytes(MIB + 5) + b"c"


def test_who_lost_does_not_go_on_writing_into_the_winner(tmp_path: Path) -> None:
    """In journal mode a writer is not told of the conflict: what it writes next must not go into the other's bytes."""
    store = FakeStore()

    async def main(mount: Composed) -> None:
        await store.put("file", b"line 1\n", Properties())
        handle = await opened(mount)
        await mount.parts.file_io.write(handle, 7, b"line 2\n")
        await mount.parts.file_io.fsync(handle.inode)
        await store.put("file", b"the winner's bytes, all of them\n", Properties())
        with pytest.raises(OSError):
            await mount.parts.commits.commit(handle.inode)  # as the sending task does
        try:
            await mount.parts.file_io.write(handle, 14, b"line 3\n")
            await closed(mount, handle)
        except OSError:
            pass

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(main, mount))
        mount.loop.passes(5)
        assert stored(store) == b"the winner's bytes, all of them\n"


def test_a_write_that_waits_for_the_journal_while_the_file_loses_is_not_acknowledged(tmp_path: Path) -> None:
    """What it has begun on is gone then: its bytes would be nowhere."""
    store, held, ends = FakeStore(), trio.Event(), dict[str, Any]()
    waits = [held]  # of which the first sync is the write's

    async def main(mount: Composed) -> None:
        await store.put("file", b"o" * 300_000, Properties())
        handle = await opened(mount)
        await mount.parts.file_io.write(handle, 0, b"n" * 300_000)
        await mount.parts.file_io.fsync(handle.inode)
        await store.put("file", b"theirs", Properties())
        sync = mount._journal.sync

        async def slowly() -> None:
            if waits:
                await waits.pop().wait()
            await sync()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mount._journal, "sync", slowly)
            await begun(mount, partial(told, ends, "write", partial(mount.parts.file_io.write, handle, 0, b"!")))
            with fails(errno.ESTALE):
                await mount.parts.commits.commit(handle.inode)
            assert ends == {}
            await settled(held)
        assert f"({errno.ESTALE}" in ends["write"]
        await closed(mount, handle)
        found = bodies(store)
        assert found.pop("file") == b"theirs"
        assert list(found.values()) == [b"n" * 300_000]

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(main, mount))


def test_a_file_is_replaced_only_if_it_is_what_it_was_when_it_was_opened(tmp_path: Path) -> None:
    """Who has read all of a file and then writes it has not seen what a listing has shown meanwhile."""
    store = FakeStore()

    async def main(mount: Composed) -> None:
        await store.put("file", b"counter 1", Properties())
        handle = await opened(mount)
        assert bytes(await mount.parts.file_io.read(handle, 0, 9)) == b"counter 1"
        await store.put("file", b"counter 2", Properties())
        await mount.parts.attributes.refresh(handle.inode)  # as `ls -l` after the ttl
        try:
            await mount.parts.file_io.write(handle, 0, b"counter 1+")
            await closed(mount, handle)
        except OSError as error:
            assert error.errno == errno.ESTALE
        found = bodies(store)
        assert b"counter 2" in found.values(), found

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))


def test_a_reader_never_goes_on_with_what_a_writer_made_of_a_foreign_version(tmp_path: Path) -> None:
    store = FakeStore()

    async def main(mount: Composed) -> None:
        await store.put("file", b"A" * MIB, Properties())
        reader = await opened(mount, os.O_RDONLY)
        body = bytes(await mount.parts.file_io.read(reader, 0, MIB // 2))
        await store.put("file", b"B" * MIB, Properties())
        await mount.parts.attributes.refresh(reader.inode)  # as `ls -l` after the ttl
        writer = await opened(mount)
        await mount.parts.file_io.write(writer, 0, b"c")
        try:
            body += bytes(await mount.parts.file_io.read(reader, MIB // 2, MIB // 2))
        except OSError as error:
            assert error.errno == errno.ESTALE
        await closed(mount, writer)
        assert not (b"A" in body and b"B" in body), "two versions in one read"

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))


def test_a_task_that_wakes_late_leaves_the_newer_draft_alone(tmp_path: Path) -> None:
    store = FakeStore()

    def down(operation: str, key: str) -> None:
        if operation == "put":
            raise StoreError(errno.EIO, "put", status=503)

    with composed(store, tmp_path) as mount:
        store.fault = down
        with pytest.raises(OSError):
            mount.loop.run(partial(mount.write, "file", b"one", flags=os.O_CREAT))
        mount.loop.passes(1)  # the task has tried, too, and rests
        store.fault = None
        mount.loop.run(partial(mount.write, "file", b"two", flags=os.O_TRUNC))
        assert stored(store) == b"two"
        store.fault = down
        with pytest.raises(OSError):
            mount.loop.run(partial(mount.write, "file", b"three", flags=os.O_TRUNC))
        mount.loop.passes(8)  # it wakes
        store.fault = None
        mount.loop.passes(400)
        assert stored(store) == b"three"


@pytest.mark.parametrize("hashes", [True, False])
def test_a_commit_beside_a_rewrite_of_attributes_is_no_conflict(tmp_path: Path, hashes: bool) -> None:
    store = Held(hashes=hashes)

    async def main(mount: Composed) -> None:
        await store.put("file", b"as it was", Properties())
        inode = await mount._walk("file")
        inode.mode = 0o100600
        mount.parts.attributes.changed(inode)
        store.after["copy"] = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mount.parts.attributes.write_now, inode)
            await trio.testing.wait_all_tasks_blocked()
            handle = await opened(mount)
            await mount.parts.file_io.write(handle, 0, b"new")
            nursery.start_soon(closed, mount, handle)
            await trio.testing.wait_all_tasks_blocked()
            store.after.pop("copy").set()
        assert stored(store) == b"newit was"
        assert len(store._stored) == 1, list(store._stored)
        handle = await opened(mount)
        assert bytes(await mount.parts.file_io.read(handle, 0, 9)) == b"newit was"
        await mount.parts.file_io.write(handle, 0, b"two")
        await closed(mount, handle)
        assert stored(store) == b"twoit was"
        assert len(store._stored) == 1, list(store._stored)

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))


def test_a_slow_copy_onto_itself_does_not_undo_a_commit(tmp_path: Path) -> None:
    """A copy reads its source when it begins and takes effect when it ends, as long as that takes."""

    class Slow(Held):
        async def copy(self, source: str, target: str, **options: Any) -> Any:
            found = self._pinned("copy", source, options.get("version"))
            await self.before["copy"].wait()
            return self._store(target, found.body, found.object.version.etag, options["properties"], None)

    store = Slow()

    async def main(mount: Composed) -> None:
        await store.put("file", b"as it was", Properties())
        inode = await mount._walk("file")
        inode.mode = 0o100600
        mount.parts.attributes.changed(inode)
        store.before["copy"] = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mount.parts.attributes.write_now, inode)
            await trio.testing.wait_all_tasks_blocked()
            handle = await opened(mount)
            await mount.parts.file_io.write(handle, 0, b"new")
            nursery.start_soon(closed, mount, handle)
            await trio.testing.wait_all_tasks_blocked()
            store.before["copy"].set()
        assert stored(store) == b"newit was"

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))


LARGE = 6 * 4096  # of six parts


@pytest.fixture
def parted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Composed]:
    """A mount with small parts."""
    monkeypatch.setattr(sosfs.files.spool, "SPILL", 1000)
    monkeypatch.setattr(tests.support.fake_store, "PART_MIN", 1)
    store = Held()
    with composed(store, tmp_path, part_size=4096) as mount:
        yield mount
        mount.loop.run(store.release)


async def large(mount: Composed, data: bytes) -> Handle:
    """A new file with this, open."""
    parent, name = await mount._parent("file")
    handle = await mount._opened(parent, name, os.O_CREAT | os.O_RDWR)
    await mount.parts.file_io.write(handle, 0, data)
    return handle


def test_a_write_that_is_under_way_when_an_upload_begins_is_not_forgotten(parted: Composed) -> None:
    """The upload sends what was there before, fails at its end, and goes on after the write is done."""
    store = parted.store
    assert isinstance(store, Held)

    async def main() -> None:
        handle = await large(parted, b"o" * LARGE)
        assert handle.open_file.draft is not None
        spool, go = handle.open_file.draft.spool, trio.Event()
        write = spool.write

        async def slow(offset: int, data: bytes | memoryview) -> None:
            await go.wait()
            await write(offset, data)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(spool, "write", slow)
            await begun(parted, partial(parted.parts.file_io.write, handle, 4096, b"n" * 4096))
            store.errors["complete_multipart", "file"] = [StoreError(errno.EIO, "complete", status=500)]
            with fails(errno.EIO):
                await parted.parts.commits.commit(handle.inode)
            go.set()
            await trio.testing.wait_all_tasks_blocked()
        await closed(parted, handle)

    parted.loop.run(main)
    assert stored(store) == b"o" * 4096 + b"n" * 4096 + b"o" * (LARGE - 8192)


def test_a_part_that_comes_late_keeps_no_file_out_of_the_bucket(parted: Composed) -> None:
    """It was given up, and takes the place of the one that was sent after it."""
    store = parted.store
    assert isinstance(store, Held)
    data = os.urandom(LARGE)

    async def main() -> None:
        handle = await large(parted, data)
        store.before["complete_multipart", "file"] = trio.Event()

        async def flush() -> None:
            with fails(errno.EINVAL):
                await parted.parts.file_io.flush(handle)

        await begun(parted, flush)
        (upload_id,) = store._uploads
        await store.upload_part("file", upload_id, 3, b"late")
        await store.release()
        await trio.testing.wait_all_tasks_blocked()
        await closed(parted, handle)
        assert store.calls["list_parts"] == 0, "all its bytes are here"

    parted.loop.run(main)
    assert stored(store) == data
