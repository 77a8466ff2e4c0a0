"""What keeps a commit and an upload true while others write, rename and fail: each guard by itself.

In one process, with requests held back; another client's eyes are the store itself.
"""

from __future__ import annotations

import errno
import os
import socket
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import trio
import trio.testing

import sosfs.files.write_behind
import tests.support.fake_store
from sosfs.concurrency.threads import Threads
from sosfs.config.parameters import Durability
from sosfs.control.object_acl import ObjectAcls
from sosfs.errors import StoreError
from sosfs.files.debounce import DELAY, VERSIONED_DELAY, Rest
from sosfs.files.draft import Draft
from sosfs.files.draft_records import DraftRecords
from sosfs.files.open_file import Handle
from sosfs.files.page_cache import PageCache
from sosfs.files.spool import Spool
from sosfs.journal.journal import Journal
from sosfs.metadata import user_metadata
from sosfs.s3.protocol import Acl, Grant, Guard, Headers, Object, ObjectStore, Properties, Slice, Version
from sosfs.tree.inodes import Inode
from tests.support.composed import LONG, Composed, composed
from tests.support.drive import fails
from tests.support.fake_store import ANYONE
from tests.support.held import (
    Held,
    begun,
    bodies,
    chmod,
    closed,
    opened,
    put_all,
    readers,
    settled,
    silence,
    stored,
    told,
)

JOURNAL, BUCKET = Durability.JOURNAL, Durability.BUCKET
PART = 4096
FRIEND = Acl("owner", (Grant("owner", "FULL_CONTROL"), Grant("friend", "READ")))
CARRIED = Properties(
    Headers("text/plain", cache_control="no-store", expires="Thu, 01 Dec 1994 16:00:00 GMT"), {"colour": "blue"}, "COLD"
)
sizes = pytest.mark.parametrize("size", [100, 70 * PART + 5], ids=["one PUT", "parts"])


async def _commit(mount: Composed, path: str = "file") -> None:
    await mount.parts.commits.commit(await mount._walk(path))


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tests.support.fake_store, "PART_MIN", 1)


# What goes on meanwhile


def test_files_that_nobody_waits_for_go_up_sixteen_at_a_time(tmp_path: Path) -> None:
    """Each takes a connection, and programs that wait for the bucket need some."""
    store = Held()
    with composed(store, tmp_path, durability=JOURNAL) as mount:
        for number in range(20):
            mount.loop.run(partial(mount.write, f"file{number}", b"n", flags=os.O_CREAT))
        held = store.before["put"] = trio.Event()
        mount.loop.passes(5)
        assert len(store.reached) == 16
        mount.loop.run(partial(settled, held))
        mount.loop.passes(5)
        assert len(bodies(store)) == 20


def test_nothing_is_sent_of_a_large_file_whose_removal_began_before_its_first_part(tmp_path: Path) -> None:
    store, size = Held(), 70 * PART

    async def main(mount: Composed) -> None:
        await put_all(store, {"file": b"o" * size})
        handle = await opened(mount)
        await mount.parts.file_io.write(handle, 0, b"n" * size)
        store.before["head"] = trio.Event()
        await begun(mount, partial(mount.parts.file_io.flush, handle))
        assert ("head", "file") in store.reached
        await begun(mount, partial(mount.unlink, "file"))
        await settled(store.before.pop("head"))
        assert bodies(store) == {}
        assert store.calls["create_multipart"] == 0
        await closed(mount, handle)

    with composed(store, tmp_path, part_size=PART) as mount:
        mount.loop.run(partial(main, mount))


@pytest.mark.parametrize("how", ["truncate", "open"])
def test_a_close_ends_however_often_the_file_is_cut(tmp_path: Path, how: str) -> None:
    """Each cut makes void what is being sent. In the end who cuts waits, and loses nothing by that."""
    store, outcomes, cuts = Held(), dict[str, Any](), dict[str, Any]()
    body = bytes(range(1, 256)) * (70 * PART // 255)

    async def cut(mount: Composed, inode: Inode) -> None:
        if how == "truncate":
            await mount.parts.file_io.truncate(inode, PART)
            return
        await mount.parts.file_io.release(await mount.parts.file_io.open(inode, os.O_WRONLY | os.O_TRUNC, 1))

    async def main(mount: Composed) -> None:
        io = mount.parts.file_io
        handle = await mount._opened(mount.parts.inodes.root, b"file", os.O_CREAT | os.O_RDWR)
        await io.write(handle, 0, body)
        held = store.before["upload_part", "file"] = trio.Event()
        await begun(mount, partial(told, outcomes, "close", partial(io.flush, handle)))
        for turn in range(60):
            await begun(mount, partial(told, cuts, str(turn), partial(cut, mount, handle.inode)))
            if len(cuts) == turn + 1 and not outcomes:
                await io.write(handle, 0, body)
            store.before["upload_part", "file"] = later = trio.Event()
            held.set()
            await trio.testing.wait_all_tasks_blocked()
            held = later
        assert outcomes == {"close": None}
        await store.release()
        await trio.testing.wait_all_tasks_blocked()
        assert set(cuts.values()) == {None} and len(cuts) == 60
        await io.write(handle, 0, b"last")
        await closed(mount, handle)

    with composed(store, tmp_path, part_size=PART) as mount:
        mount.loop.run(partial(main, mount))
        assert stored(store) == (b"last" + body[4:PART] if how == "truncate" else b"last")


def test_what_is_cut_off_while_its_bytes_come_together_is_not_stored(mount: Composed, store: Held) -> None:
    """Another client would see a file that nobody has written: its old length, and zeros."""

    async def main() -> None:
        await put_all(store, {"file": b"o" * 9000})
        handle = await opened(mount)
        mount.parts.blocks.forget(lambda key: True)
        await mount.parts.file_io.write(handle, 0, b"n")
        store.before["get"] = trio.Event()
        await begun(mount, partial(mount.parts.file_io.flush, handle))
        assert ("get", "file") in store.reached
        await mount.parts.file_io.truncate(handle.inode, 100)
        puts = store.calls["put"]
        await settled(store.before.pop("get"))
        assert (stored(store), store.calls["put"] - puts) == (b"n" + b"o" * 99, 1)
        await closed(mount, handle)

    mount.loop.run(main)


# What the object has beside its bytes, and the condition under which it is replaced


@sizes
def test_a_rewrite_keeps_the_acl_the_headers_and_the_class(tmp_path: Path, size: int) -> None:
    store = Held()

    async def main(mount: Composed) -> None:
        await store.put("file", b"o" * size, CARRIED, acl=FRIEND)
        inode = await mount.parts.namespace.lookup(mount.parts.inodes.root, b"file")
        await mount.parts.attributes.ask_files([inode])  # as `ls -l`: HEAD, which does not tell everything
        await mount.write("file", b"n", at=1)
        await mount.write("file", b"m", at=2)

    with composed(store, tmp_path, part_size=PART) as mount:
        mount.loop.run(partial(main, mount))
        assert stored(store) == b"onm" + b"o" * (size - 3)
        found = store._stored["file"].object.properties
        assert found.headers == CARRIED.headers
        assert found.storage_class == "COLD"
        assert found.metadata["colour"] == "blue"
        assert "friend" in readers(store)


@sizes
def test_a_new_file_that_was_renamed_over_another_gets_nothing_of_that_one(tmp_path: Path, size: int) -> None:
    """Nor its ACL: what was private under its first name would be there for all to read."""
    store = Held()

    async def main(mount: Composed) -> None:
        await store.put("file", b"o" * 100, CARRIED, acl=FRIEND)
        handle = await mount._opened(mount.parts.inodes.root, b"new", os.O_CREAT | os.O_RDWR)
        await mount.parts.file_io.write(handle, 0, b"n" * size)
        await mount.rename("new", "file")
        await closed(mount, handle)
        await mount.settle()

    with composed(store, tmp_path, part_size=PART) as mount:
        mount.loop.run(partial(main, mount))
        assert stored(store) == b"n" * size
        found = store._stored["file"].object.properties
        assert (found.headers.cache_control, found.storage_class) == ("", "")
        assert "colour" not in found.metadata
        assert readers(store) == {"owner"}


@sizes
def test_so_does_one_that_follows_a_rewrite_without_an_answer(tmp_path: Path, size: int) -> None:
    store = Held()

    async def main(mount: Composed) -> None:
        await store.put("file", b"o" * size, CARRIED, acl=FRIEND)
        handle = await opened(mount)
        await mount.parts.file_io.write(handle, 1, b"n")
        store.lost.add("file")
        with fails(errno.EIO):
            await mount.parts.file_io.flush(handle)
        await closed(mount, handle)
        assert store.calls["put"] + store.calls["complete_multipart"] == 3, "theirs, and ours twice"

    with composed(store, tmp_path, part_size=PART) as mount:
        mount.loop.run(partial(main, mount))
        assert stored(store) == b"on" + b"o" * (size - 2)
        found = store._stored["file"].object.properties
        assert (found.headers, found.storage_class) == (CARRIED.headers, "COLD")
        assert "friend" in readers(store)


@sizes
@pytest.mark.parametrize("theirs", [b"theirs", None], ids=["written", "removed"])
def test_what_another_client_did_meanwhile_is_not_undone(tmp_path: Path, size: int, theirs: bytes | None) -> None:
    store = Held()

    async def main(mount: Composed) -> None:
        await put_all(store, {"file": b"o" * size})
        handle = await opened(mount)
        await mount.parts.file_io.write(handle, 0, b"n" * size)
        if theirs is None:
            await store.delete("file")
        else:
            await store.put("file", theirs, Properties())
        with pytest.raises(OSError) as caught:
            await closed(mount, handle)
        assert caught.value.errno == errno.ESTALE
        assert mount.parts.pending == 0
        assert store._uploads == {}

    with composed(store, tmp_path, part_size=PART) as mount:
        mount.loop.run(partial(main, mount))
        found = bodies(store)
        assert found.pop("file", None) == theirs
        assert list(found.values()) == [b"n" * size]
        tree = mount.loop.run(mount.tree)
        assert {path: file and file[0] for path, file in tree.items()} == bodies(store)


@sizes
def test_a_file_that_another_client_made_first_is_not_written_over(tmp_path: Path, size: int) -> None:
    store = Held()

    async def main(mount: Composed) -> None:
        handle = await mount._opened(mount.parts.inodes.root, b"file", os.O_CREAT | os.O_RDWR)
        await mount.parts.file_io.write(handle, 0, b"n" * size)
        await put_all(store, {"file": b"theirs"})
        with pytest.raises(OSError) as caught:
            await closed(mount, handle)
        assert caught.value.errno == errno.ESTALE

    with composed(store, tmp_path, part_size=PART) as mount:
        mount.loop.run(partial(main, mount))
        found = bodies(store)
        assert found.pop("file") == b"theirs"
        assert list(found.values()) == [b"n" * size]


@sizes
@pytest.mark.parametrize("durability", [JOURNAL, BUCKET])
def test_a_loser_that_cannot_be_kept_beside_is_kept_here(tmp_path: Path, size: int, durability: Durability) -> None:
    store = Held()

    def no_conflict_file(operation: str, key: str) -> None:
        if ".conflict-" in key:
            raise silence(operation)

    async def main(mount: Composed) -> None:
        await put_all(store, {"file": b"o" * size})
        handle = await opened(mount)
        await mount.parts.file_io.write(handle, 0, b"n" * size)
        if durability is JOURNAL:
            await mount.parts.file_io.flush(handle)
        await store.put("file", b"theirs", Properties())
        store.fault = no_conflict_file
        with pytest.raises(OSError):
            await mount.parts.commits.commit(handle.inode)
        assert bytes(await mount.parts.file_io.read(handle, 0, size)) == b"n" * size
        if durability is BUCKET:
            with pytest.raises(OSError):
                await mount.parts.file_io.flush(handle)
        await mount.parts.file_io.release(handle)
        assert mount.parts.pending == 1

    with composed(store, tmp_path, part_size=PART, durability=durability) as mount:
        mount.loop.run(partial(main, mount))
        mount.crash()
        mount.start()
        store.fault = None
        mount.loop.passes(LONG)
        found = bodies(store)
        assert found.pop("file") == b"theirs"
        assert list(found.values()) == [b"n" * size]


@sizes
def test_a_loser_is_kept_beside_once_though_the_process_dies_right_after(tmp_path: Path, size: int) -> None:
    store = Held()

    async def main(mount: Composed) -> None:
        await put_all(store, {"file": b"o" * size})
        await mount.write("file", b"n" * size)
        await store.put("file", b"theirs", Properties())
        with pytest.raises(OSError):
            await _commit(mount)

    with composed(store, tmp_path, part_size=PART, durability=JOURNAL) as mount:
        mount.loop.run(partial(main, mount))
        mount.crash()
        mount.start()
        mount.loop.passes(5)
        found = bodies(store)
        assert found.pop("file") == b"theirs"
        assert list(found.values()) == [b"n" * size]


def test_a_conflict_file_never_takes_the_place_of_another(mount: Composed, store: Held) -> None:
    """It is stored under the condition that its name is absent."""
    conditions: list[Any] = []
    put = store.put

    async def watched(key: str, *arguments: Any, **options: Any) -> Version:
        if ".conflict-" in key:
            conditions.append(options.get("condition"))
        return await put(key, *arguments, **options)

    async def main() -> None:
        await put_all(store, {"file": b"old"})
        handle = await opened(mount)
        await mount.parts.file_io.write(handle, 0, b"our")
        await store.put("file", b"theirs", Properties())
        store.put = watched  # type: ignore[method-assign]
        with pytest.raises(OSError):
            await closed(mount, handle)

    mount.loop.run(main)
    assert conditions == [Guard.ABSENT]


@pytest.mark.promise(4)
@pytest.mark.parametrize(
    "path",
    [
        "é" * 125,
        "e" + "é" * 124,
        "/".join(["d" * 200] * 5),
        "/".join(["d" * 200] * 4 + ["d" * 200, "f"]),
        "/".join(["d" * 200] * 4 + ["d" * 190, "e" * 9, "f"]),
    ],
    ids=["of its name", "or one byte more or less", "of its key", "of its directory's", "of those above it"],
)
def test_a_loser_is_kept_beside_whatever_the_length(mount: Composed, store: Held, path: str) -> None:
    """The end of the name is shown, which tells what it is: the rest gives way, or it is in a directory above."""

    async def main() -> None:
        await put_all(store, {path: b"old"})
        handle = await opened(mount, path=path)
        await mount.parts.file_io.write(handle, 0, b"our")
        await store.put(path, b"theirs", Properties())
        with fails(errno.ESTALE):
            await closed(mount, handle)
        found = bodies(store)
        assert found.pop(path) == b"theirs"
        ((key, body),) = found.items()
        assert body == b"our"
        assert key.startswith(path[:60])
        shown = await mount.tree()
        assert f".conflict-{socket.gethostname()}-" in key
        assert (shown[path], shown[key]) == ((b"theirs", 0o644), (b"our", 0o644))

    mount.loop.run(main)


# One at a time


@sizes
def test_two_closes_at_once_store_the_file_once(tmp_path: Path, size: int) -> None:
    store, held = Held(), trio.Event()

    async def main(mount: Composed) -> None:
        await put_all(store, {"file": b"o" * size})
        handle = await opened(mount)
        await mount.parts.file_io.write(handle, 0, b"n" * size)
        store.before["put"] = store.before["complete_multipart"] = held
        puts = store.calls["put"]
        for _ in range(2):
            await begun(mount, partial(mount.parts.file_io.flush, handle))
        await settled(held)
        assert store.calls["put"] + store.calls["complete_multipart"] == puts + 1
        assert mount.parts.uploader.sent_bytes == size
        assert bodies(store) == {"file": b"n" * size}
        await closed(mount, handle)

    with composed(store, tmp_path, part_size=PART) as mount:
        mount.loop.run(partial(main, mount))


@sizes
@pytest.mark.parametrize("what", ["file", "directory"])
def test_a_rename_waits_for_a_commit_and_takes_its_bytes_along(tmp_path: Path, size: int, what: str) -> None:
    store, held = Held(), trio.Event()
    old, new = ("d/file", "d/moved") if what == "file" else ("d/file", "e/file")

    async def main(mount: Composed) -> None:
        await put_all(store, {"d/": b"", old: b"o" * size})
        handle = await opened(mount, path=old)
        await mount.parts.file_io.write(handle, 0, b"n" * size)
        store.before["put"] = store.before["complete_multipart"] = held
        await begun(mount, partial(mount.parts.file_io.flush, handle))
        assert store.reached
        names = ("d/file", "d/moved") if what == "file" else ("d", "e")
        await begun(mount, partial(mount.rename, *names))
        assert store.calls["copy"] == 0, "it did not wait"
        await settled(held)
        await closed(mount, handle)

    with composed(store, tmp_path, part_size=PART) as mount:
        mount.loop.run(partial(main, mount))
        mount.loop.passes(2)
        found = {key: body for key, body in bodies(store).items() if not key.endswith("/")}
        assert found == {new: b"n" * size}


def test_a_commit_waits_for_a_rename_and_goes_to_the_new_name(mount: Composed, store: Held) -> None:
    held = trio.Event()

    async def main() -> None:
        await put_all(store, {"file": b"old", "other": b"o"})
        handle = await opened(mount)
        await mount.parts.file_io.write(handle, 0, b"new")
        store.before["copy"] = held
        await begun(mount, partial(mount.rename, "file", "moved"))
        puts = store.calls["put"]
        await begun(mount, partial(mount.parts.file_io.flush, handle))
        assert store.calls["put"] == puts, "it did not wait"
        await settled(held)
        await closed(mount, handle)
        assert bodies(store) == {"moved": b"new", "other": b"o"}

    mount.loop.run(main)


@pytest.mark.parametrize("how", ["rename", "directory", "chmod"])
@pytest.mark.parametrize("hashes", [True, False])
def test_what_was_written_before_a_copy_of_ours_stands_on_what_that_has_made(
    tmp_path: Path, how: str, hashes: bool
) -> None:
    """It may have another ETag than its source, and is no other client's for that."""
    store = Held(hashes=hashes)

    async def main(mount: Composed) -> None:
        await put_all(store, {"d/file": b"old, and longer"})
        handle = await opened(mount, path="d/file")
        await mount.parts.file_io.write(handle, 0, b"new")
        if how == "chmod":
            await chmod(mount, "d/file")
            await mount.parts.attributes.write_now(handle.inode)
        else:
            await mount.rename(*(("d/file", "d/moved") if how == "rename" else ("d", "e")))
        await closed(mount, handle)

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))
        mount.loop.passes(2)
        new = {"rename": "d/moved", "directory": "e/file", "chmod": "d/file"}[how]
        found = {key: body for key, body in bodies(store).items() if not key.endswith("/")}
        assert found == {new: b"new, and longer"}


def test_a_commit_that_was_under_way_leaves_what_came_meanwhile_for_the_next(mount: Composed, store: Held) -> None:
    held = trio.Event()

    async def main() -> None:
        await put_all(store, {"file": b"o" * 9000})
        handle = await opened(mount)
        await mount.parts.file_io.write(handle, 0, b"1")
        store.before["put"] = held
        await begun(mount, partial(mount.parts.file_io.flush, handle))
        await mount.parts.file_io.write(handle, 1, b"2")
        await mount.parts.file_io.truncate(handle.inode, 8000)
        del store.before["put"]
        await settled(held)
        assert stored(store) == b"1" + b"o" * 8999
        assert mount.parts.commits.pending[0] == 1
        assert bytes(await mount.parts.file_io.read(handle, 0, 9000)) == b"12" + b"o" * 7998
        await mount.parts.file_io.truncate(handle.inode, 9000)
        await closed(mount, handle)
        assert stored(store) == b"12" + b"o" * 7998 + bytes(1000), "what was cut off does not come back"
        assert mount.parts.commits.pending[0] == 0

    mount.loop.run(main)


def test_what_is_cut_off_while_a_commit_is_under_way_waits_for_nothing(mount: Composed, store: Held) -> None:
    """Neither then nor once that has failed."""
    outcomes: dict[str, Any] = {}

    async def main() -> None:
        handle = await mount._opened(mount.parts.inodes.root, b"file", os.O_CREAT | os.O_RDWR)
        await mount.parts.file_io.write(handle, 0, b"n" * 9000)
        store.before["put"] = trio.Event()
        store.errors["put", "file"] = [silence("put")]
        await begun(mount, partial(told, outcomes, "close", partial(mount.parts.file_io.flush, handle)))
        await mount.parts.file_io.truncate(handle.inode, 100)
        assert (outcomes, mount.parts.commits.pending) == ({}, (1, 100))
        await settled(store.before.pop("put"))
        assert "no answer" in outcomes["close"]
        await mount.parts.file_io.truncate(handle.inode, 9000)
        assert mount.parts.commits.pending == (1, 100)
        await closed(mount, handle)
        assert stored(store) == b"n" * 100 + bytes(8900)

    mount.loop.run(main)


def test_what_is_written_while_a_commit_is_under_way_has_its_own_time(mount: Composed, store: Held) -> None:
    """Else who compares times would not see that the file has changed."""

    async def main() -> None:
        await put_all(store, {"file": b"old"})
        handle = await opened(mount)
        await mount.parts.file_io.write(handle, 0, b"1")
        held = store.before["put"] = trio.Event()
        await begun(mount, partial(mount.parts.file_io.flush, handle))
        await mount.parts.file_io.write(handle, 1, b"2")
        time = handle.inode.mtime_ns
        del store.before["put"]
        await settled(held)
        assert handle.inode.mtime_ns == time
        await closed(mount, handle)
        assert user_metadata.read(store._stored["file"].object.properties.metadata).mtime_ns == time

    mount.loop.run(main)


@pytest.mark.parametrize("size", [100, 300_000], ids=["in its row", "in the spool"])
def test_what_was_acknowledged_during_a_commit_outlives_a_crash_right_after_it(tmp_path: Path, size: int) -> None:
    store, held = Held(), trio.Event()

    async def main(mount: Composed) -> None:
        handle = await mount._opened(mount.parts.inodes.root, b"file", os.O_CREAT | os.O_RDWR)
        await mount.parts.file_io.write(handle, 0, b"1" * size)
        await mount.parts.file_io.flush(handle)
        store.before["put"] = held
        await begun(mount, partial(mount.parts.commits.commit, handle.inode))
        await mount.parts.file_io.write(handle, 0, b"2")
        await mount.parts.file_io.fsync(handle.inode)
        del store.before["put"]
        await settled(held)
        assert stored(store) == b"1" * size

    with composed(store, tmp_path, durability=JOURNAL) as mount:
        mount.loop.run(partial(main, mount))
        mount.crash()
        mount.start()
        mount.loop.passes(5)
        mount.loop.run(mount.settle)
        assert bodies(store) == {"file": b"2" + b"1" * (size - 1)}


def test_what_was_on_its_way_when_more_was_recorded_is_in_that_record(tmp_path: Path) -> None:
    """Else the next mount would take it for the bucket's, and have it copied of what is there."""
    store, size = Held(), 70 * PART

    async def main(mount: Composed) -> None:
        await put_all(store, {"file": b"o" * size})
        handle = await opened(mount)
        await mount.parts.file_io.write(handle, 3 * PART, b"n" * PART)
        await mount.parts.file_io.fsync(handle.inode)
        store.before["complete_multipart"] = trio.Event()
        await begun(mount, partial(mount.parts.commits.commit, handle.inode))
        assert ("complete_multipart", "file") in store.reached
        await mount.parts.file_io.write(handle, 9 * PART, b"m" * PART)
        await mount.parts.file_io.fsync(handle.inode)

    with composed(store, tmp_path, durability=JOURNAL, part_size=PART) as mount:
        mount.loop.run(partial(main, mount))
        mount.crash()
        store.before.clear()
        mount.start()
        assert mount.parts.commits.pending == (1, 2 * PART)
        mount.loop.passes(5)
        mount.loop.run(mount.settle)
        expected = b"o" * 3 * PART + b"n" * PART + b"o" * 5 * PART + b"m" * PART + b"o" * 60 * PART
        assert bodies(store) == {"file": expected}


# What a failure leaves


@sizes
def test_a_404_for_a_new_file_is_no_other_clients_version(tmp_path: Path, size: int) -> None:
    """As of a gateway, or of a bucket that is gone: there is nothing that it could have been written over."""
    store = Held()

    async def main(mount: Composed) -> None:
        store.errors["put", "file"] = store.errors["complete_multipart", "file"] = [
            StoreError(errno.ENOENT, "put", code="NoSuchKey", status=404)
        ]
        with fails(errno.ENOENT):
            await mount.write("file", b"n" * size, flags=os.O_CREAT)
        assert (bodies(store), mount.parts.commits.pending) == ({}, (1, size))

    with composed(store, tmp_path, part_size=PART) as mount:
        mount.loop.run(partial(main, mount))
        mount.loop.passes(LONG)
        assert bodies(store) == {"file": b"n" * size}


def test_a_new_file_goes_up_while_others_are_made_and_a_changed_one_rests(tmp_path: Path) -> None:
    """A rename or a chmod comes right behind the close of a new file, a change of a file is likely followed by more."""
    store = Held()
    with composed(store, tmp_path, durability=JOURNAL) as mount:

        def puts_after(seconds: float) -> int:
            mount.loop.passes(seconds)
            return store.calls["put"]

        mount.loop.run(lambda: mount.write("file", b"new", flags=os.O_CREAT))
        assert (puts_after(Rest.SHORT.value * DELAY / 2), puts_after(Rest.SHORT.value * DELAY)) == (0, 1)
        for body in (b"one", b"two", b"six"):
            mount.loop.run(partial(mount.write, "file", body))
            assert puts_after(DELAY / 4) == 1
        assert (puts_after(DELAY / 2), stored(store)) == (2, b"six")


def test_a_new_file_rests_as_one_that_is_changed_where_each_upload_stays(tmp_path: Path) -> None:
    """Where objects are locked the name that it has for a moment would be, too."""
    store = Held()
    with composed(store, tmp_path, durability=JOURNAL) as mount:
        mount.parts.commits.debounce.delay = VERSIONED_DELAY
        mount.loop.run(lambda: mount.write("file", b"new", flags=os.O_CREAT))
        mount.loop.passes(VERSIONED_DELAY - 1)
        mount.loop.run(partial(mount.rename, "file", "moved"))
        mount.loop.passes(VERSIONED_DELAY)
        assert (bodies(store), store.calls["put"], store.calls["copy"]) == ({"moved": b"new"}, 1, 0)


def test_a_new_file_that_is_synced_rests_as_one_that_is_changed(tmp_path: Path) -> None:
    """The journal of a database is, and is gone a moment later."""
    store = Held()
    with composed(store, tmp_path, durability=JOURNAL) as mount:

        async def work() -> None:
            handle = await mount._opened(*await mount._parent("file"), os.O_CREAT | os.O_WRONLY)
            await mount.parts.file_io.write(handle, 0, b"journal")
            await mount.parts.file_io.fsync(handle.inode)
            await closed(mount, handle)

        mount.loop.run(work)
        mount.loop.passes(DELAY / 2)
        mount.loop.run(partial(mount.unlink, "file"))
        mount.loop.passes(LONG)
        assert store.calls["put"] == 0


@sizes
def test_what_could_not_be_sent_is_told_tried_again_and_outlives_the_process(tmp_path: Path, size: int) -> None:
    store = Held()

    def down(operation: str, key: str) -> None:
        if operation in ("put", "complete_multipart"):
            raise silence(operation)

    async def main(mount: Composed) -> None:
        store.fault = down
        with pytest.raises(OSError):
            await mount.write("file", b"n" * size, flags=os.O_CREAT)
        assert mount.parts.commits.pending == (1, size)
        assert (await mount.tree())["file"] == (b"n" * size, 0o644)

    with composed(store, tmp_path, part_size=PART) as mount:
        mount.loop.run(partial(main, mount))
        mount.loop.passes(30)
        assert mount.parts.commits.pending == (1, size)
        mount.crash()
        mount.start()
        assert mount.parts.commits.pending == (1, size)
        mount.loop.passes(30)
        store.fault = None
        mount.loop.passes(LONG)
        assert bodies(store) == {"file": b"n" * size}
        assert mount.parts.commits.pending == (0, 0)
        assert not store._uploads


@sizes
def test_a_commit_that_the_local_disk_fails_is_done_again_with_all_that_was_changed(tmp_path: Path, size: int) -> None:
    """No request failed: what was on its way is still not in the bucket, and not as it was."""
    store = Held()
    read, failures = Draft.read, [OSError(errno.EIO, "the disk")]

    async def failing(draft: Draft, start: int, stop: int) -> bytes | memoryview:
        if failures:
            raise failures.pop()
        return await read(draft, start, stop)

    async def main(mount: Composed) -> None:
        await put_all(store, {"file": b"o" * size})
        handle = await opened(mount)
        await mount.parts.file_io.write(handle, 0, b"n")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Draft, "read", failing)
            with pytest.raises(OSError, match="the disk"):
                await mount.parts.file_io.flush(handle)
        await closed(mount, handle)

    with composed(store, tmp_path, part_size=PART) as mount:
        mount.loop.run(partial(main, mount))
        assert stored(store) == b"n" + b"o" * (size - 1)


@pytest.mark.parametrize(("durability", "tries"), [(JOURNAL, 1), (BUCKET, 4)])
def test_a_file_that_is_closed_again_and_again_is_tried_by_one_task(
    tmp_path: Path, durability: Durability, tries: int
) -> None:
    """Where the bucket is waited for, each close tries as well."""
    store = Held()

    def down(operation: str, key: str) -> None:
        if operation == "put":
            raise silence(operation)

    with composed(store, tmp_path, durability=durability) as mount:
        store.fault = down
        for number in range(3):
            write = partial(mount.write, "file", b"%d" % number, flags=os.O_CREAT)
            if durability is JOURNAL:
                mount.loop.run(write)
            else:
                with pytest.raises(OSError, match="no answer"):
                    mount.loop.run(write)
        mount.loop.passes(2)
        assert store.calls["put"] == tries
        store.fault = None
        mount.loop.passes(LONG)
        assert bodies(store) == {"file": b"2"}


@pytest.mark.parametrize("durability", list(Durability))
@pytest.mark.parametrize("what", ["written again", "cut off", "made longer", "left"])
def test_a_file_of_which_a_write_failed_is_stored_once_nothing_of_it_is_missing(
    tmp_path: Path, what: str, durability: Durability
) -> None:
    store = Held()

    async def failing(*_: object) -> None:
        raise OSError(errno.EIO, "the disk")

    async def main(mount: Composed) -> None:
        await put_all(store, {"file": b"old"})
        handle = await opened(mount, os.O_RDWR | os.O_TRUNC)
        await mount.parts.file_io.write(handle, 0, b"1" * 100)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Spool, "write", failing)
            with pytest.raises(OSError, match="the disk"):
                await mount.parts.file_io.write(handle, 100, b"2" * 100)
        if what == "written again":
            await mount.parts.file_io.write(handle, 100, b"2" * 100)
        elif what == "cut off":
            await mount.parts.file_io.truncate(handle.inode, 100)
        elif what == "made longer":
            await mount.parts.file_io.truncate(handle.inode, 300)
        if what in ("made longer", "left"):
            fsync, commit = mount.parts.file_io.fsync, mount.parts.commits.commit  # of the file, and of its directory
            for keep in (fsync(handle.inode), commit(handle.inode), mount.parts.file_io.flush(handle)):
                with pytest.raises(OSError) as caught:
                    await keep
                assert caught.value.errno == errno.ENOSPC
            assert stored(store) == b"old"
        else:
            await mount.parts.file_io.flush(handle)
        await mount.parts.file_io.release(handle)
        assert mount.parts.pending == (durability is not BUCKET and what in ("written again", "cut off"))

    with composed(store, tmp_path, durability=durability) as mount:
        mount.loop.run(partial(main, mount))
        mount.crash()
        mount.start()
        mount.loop.passes(5)
        expected = {"written again": b"1" * 100 + b"2" * 100, "cut off": b"1" * 100}.get(what, b"old")
        assert bodies(store) == {"file": expected}


def test_an_unmount_that_cannot_send_says_so_and_the_next_mount_sends(tmp_path: Path) -> None:
    store = Held()

    def down(operation: str, key: str) -> None:
        if operation == "put":
            raise silence(operation)

    async def main(mount: Composed) -> None:
        await mount.write("file", b"bytes", flags=os.O_CREAT)
        store.fault = down
        assert await mount.parts.commits.drain() == 1
        assert mount.parts.pending == 1

    with composed(store, tmp_path, durability=JOURNAL) as mount:
        mount.loop.run(partial(main, mount))
        mount._end()
        store.fault = None
        mount.start()
        mount.loop.passes(5)
        assert bodies(store) == {"file": b"bytes"}


def test_an_unmount_that_cannot_send_does_not_make_each_file_be_tried_without_a_pause(tmp_path: Path) -> None:
    store, tries = Held(), list[str]()

    def down(operation: str, key: str) -> None:
        if operation == "put":
            tries.append(key)
            if len(tries) > 50:
                store.before["put"] = trio.Event()  # else the test would never end
            raise silence(operation)

    with composed(store, tmp_path, durability=JOURNAL) as mount:
        store.fault = down
        mount.loop.run(partial(mount.write, "file", b"bytes", flags=os.O_CREAT))
        mount.loop.passes(1)
        assert mount.loop.run(mount.parts.commits.drain) == 1
        before = len(tries)
        mount.loop.passes(12)
        assert before < len(tries) <= before + 2
        mount.loop.run(store.release)


def test_what_is_not_closed_yet_is_kept_for_the_next_mount_where_an_unmount_is_cut_short(tmp_path: Path) -> None:
    """A second signal: nothing is sent any more. A file of which a write has failed was never there."""
    store = Held()

    async def fails(*_: object) -> None:
        raise OSError(errno.EIO, "the disk")

    async def main(mount: Composed) -> None:
        for path, body in (("small", b"s" * 100), ("large", b"l" * 300_000)):
            handle = await mount._opened(mount.parts.inodes.root, path.encode(), os.O_CREAT | os.O_RDWR)
            await mount.parts.file_io.write(handle, 0, body)
        gone = await mount._opened(mount.parts.inodes.root, b"gone", os.O_CREAT | os.O_RDWR)
        await mount.parts.file_io.write(gone, 0, b"gone")
        await mount.unlink("gone")
        half = await mount._opened(mount.parts.inodes.root, b"half", os.O_CREAT | os.O_RDWR)
        await mount.parts.file_io.write(half, 0, b"1")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Spool, "write", fails)
            with pytest.raises(OSError, match="the disk"):
                await mount.parts.file_io.write(half, 1, b"2")
        await mount.parts.commits.record_all()

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))
        assert bodies(store) == {}
        mount.crash()
        mount.start()
        mount.loop.passes(5)
        assert bodies(store) == {"small": b"s" * 100, "large": b"l" * 300_000}


def test_fsync_of_a_directory_waits_for_all_that_is_below(tmp_path: Path) -> None:
    store = Held()

    async def main(mount: Composed) -> None:
        await put_all(store, {"d/changed": b"old", "d/chmod": b"x", "other": b"x"})
        await mount.write("d/changed", b"new")
        await mount.write("d/made", b"made", flags=os.O_CREAT)
        inode = await mount._walk("d/chmod")
        inode.mode = 0o100600
        mount.parts.attributes.changed(inode)
        await mount.parts.commits.commit_under(await mount._walk("d"))
        assert bodies(store) == {"d/changed": b"new", "d/made": b"made", "d/chmod": b"x", "other": b"x"}
        assert store._stored["d/chmod"].object.properties.metadata["mode"] == str(0o100600)

    with composed(store, tmp_path, durability=JOURNAL) as mount:
        mount.loop.run(partial(main, mount))


def test_an_acl_is_set_on_what_was_changed_last_and_on_what_nobody_has_looked_at(tmp_path: Path) -> None:
    store = Held()

    async def main(mount: Composed) -> None:
        await put_all(store, {"d/": b"", "d/file": b"old"})
        parts = mount.parts
        acls = ObjectAcls(parts.inodes, cast(ObjectStore, store), parts.attributes, parts.commits, parts.subtree_lock)
        directory = await parts.namespace.lookup(parts.inodes.root, b"d")
        await acls.write(directory, "public-read")
        await mount.write("d/file", b"new")
        await mount.write("d/made", b"made", flags=os.O_CREAT)
        for path in ("d/file", "d/made"):
            await acls.write(await mount._walk(path), "public-read")
        assert bodies(store) == {"d/": b"", "d/file": b"new", "d/made": b"made"}
        assert all(ANYONE in readers(store, key) for key in bodies(store))

    with composed(store, tmp_path, durability=JOURNAL) as mount:
        mount.loop.run(partial(main, mount))


# Parts


async def _failed(mount: Composed, store: Held, body: bytes) -> Any:
    """All parts of a file are up, but no object was made of them; an open handle of it."""
    handle = await mount._opened(mount.parts.inodes.root, b"file", os.O_CREAT | os.O_RDWR)
    await mount.parts.file_io.write(handle, 0, body)
    store.errors["complete_multipart", "file"] = [silence("complete_multipart")]
    with pytest.raises(OSError):
        await mount.parts.file_io.flush(handle)
    return handle


@pytest.mark.parametrize("how", ["written over", "cut", "cut and grown", "cut short", "grown", "renamed"])
def test_an_upload_that_failed_goes_on_with_what_is_still_true(tmp_path: Path, how: str) -> None:
    store = Held()
    body = b"".join(bytes([65 + number]) * PART for number in range(70)) + b"tail!"
    expected = {
        "written over": body[: 3 * PART] + b"!" + body[3 * PART + 1 :],
        "cut": body[: 66 * PART + 7],
        "cut and grown": body[: 9 * PART].ljust(len(body), b"\0"),
        "cut short": body[:10],
        "grown": body + b"more" * 100,
        "renamed": body,
    }[how]

    async def main(mount: Composed) -> None:
        handle = await _failed(mount, store, body)
        sent = store.calls["upload_part"]
        if how == "cut and grown":
            await mount.parts.file_io.truncate(handle.inode, 9 * PART)
        if how.startswith("cut"):
            await mount.parts.file_io.truncate(handle.inode, len(expected))
        elif how == "grown":
            await mount.parts.file_io.write(handle, len(body), b"more" * 100)
        elif how == "written over":
            await mount.parts.file_io.write(handle, 3 * PART, b"!")
        else:
            await mount.rename("file", "moved")
        await closed(mount, handle)
        if how in ("written over", "grown"):
            assert store.calls["upload_part"] == sent + 1, "what is still true is not sent again"
            assert store.calls["create_multipart"] == 1

    with composed(store, tmp_path, part_size=PART) as mount:
        mount.loop.run(partial(main, mount))
        assert bodies(store) == {"moved" if how == "renamed" else "file": expected}
        assert not store._uploads
        assert mount.loop.run(partial(_noted, mount)) == ([], [])


@pytest.mark.parametrize("how", ["unlink", "rename"])
def test_the_upload_of_a_file_that_is_closed_while_it_goes_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """By this mount, and soon: its parts are paid for."""
    store, held, flushed = Held(), trio.Event(), Journal.flushed

    async def late(journal: Journal) -> None:
        await flushed(journal)
        await held.wait()

    async def main(mount: Composed) -> None:
        await put_all(store, {"file": b"old", "other": b"other"})
        handle = await _failed(mount, store, b"x" * (70 * PART))
        monkeypatch.setattr(Journal, "flushed", late)
        work = partial(mount.unlink, "file") if how == "unlink" else partial(mount.rename, "other", "file")
        await begun(mount, work)
        assert bodies(store) == {"other" if how == "unlink" else "file": b"other"}
        await begun(mount, partial(closed, mount, handle))
        await settled(held)
        assert not store._uploads

    with composed(store, tmp_path, part_size=PART) as mount:
        mount.loop.run(partial(main, mount))


async def _noted(mount: Composed) -> tuple[list[Any], list[Any]]:
    """The uploads that the journal knows of."""
    return mount._journal.uploads(), mount._journal.intents()


def test_an_upload_that_the_server_forgot_is_begun_anew(tmp_path: Path) -> None:
    store, body = Held(), b"x" * (70 * PART)

    async def main(mount: Composed) -> None:
        handle = await _failed(mount, store, body)
        store._uploads.clear()
        with pytest.raises(OSError):
            await mount.parts.file_io.flush(handle)
        await closed(mount, handle)

    with composed(store, tmp_path, part_size=PART) as mount:
        mount.loop.run(partial(main, mount))
        assert bodies(store) == {"file": body}
        assert mount.loop.run(partial(_noted, mount)) == ([], [])


def test_parts_that_go_up_side_by_side_begin_one_upload(tmp_path: Path) -> None:
    store, held = Held(), trio.Event()

    async def main(mount: Composed) -> None:
        handle = await mount._opened(mount.parts.inodes.root, b"file", os.O_CREAT | os.O_RDWR)
        await mount.parts.file_io.write(handle, 0, b"x" * (70 * PART))
        store.after["create_multipart"] = held
        await begun(mount, partial(mount.parts.file_io.flush, handle))
        await settled(held)
        assert store.calls["create_multipart"] == 1
        await closed(mount, handle)

    with composed(store, tmp_path, part_size=PART) as mount:
        mount.loop.run(partial(main, mount))
        assert not store._uploads


@pytest.mark.parametrize("moment", ["before", "after"])
def test_what_is_written_while_its_part_is_on_the_way_is_not_lost(tmp_path: Path, moment: str) -> None:
    store, held = Held(), trio.Event()
    body = b"x" * (70 * PART)

    async def main(mount: Composed) -> None:
        handle = await mount._opened(mount.parts.inodes.root, b"file", os.O_CREAT | os.O_RDWR)
        await mount.parts.file_io.write(handle, 0, body)
        (store.before if moment == "before" else store.after)["upload_part"] = held
        await begun(mount, partial(mount.parts.file_io.flush, handle))
        await mount.parts.file_io.write(handle, 2 * PART + 5, b"!")
        await settled(held)
        await closed(mount, handle)

    with composed(store, tmp_path, part_size=PART) as mount:
        mount.loop.run(partial(main, mount))
        assert stored(store) == body[: 2 * PART + 5] + b"!" + body[2 * PART + 6 :]
        assert not store._uploads


@pytest.mark.parametrize("request_", ["create_multipart", "upload_part"])
@pytest.mark.parametrize("how", ["close", "over", "cut", "unlink", "rename"])
def test_parts_that_go_up_behind_the_writer_are_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, request_: str
) -> None:
    monkeypatch.setattr(sosfs.files.write_behind, "STREAM_MIN", 40 * PART)
    store, held = Held(), trio.Event()
    body = b"".join(bytes([65 + number]) * PART for number in range(60))

    async def main(mount: Composed) -> None:
        handle = await mount._opened(mount.parts.inodes.root, b"file", os.O_CREAT | os.O_RDWR)
        (store.before if request_ == "upload_part" else store.after)[request_] = held
        for at in range(0, len(body), PART):
            await mount.parts.file_io.write(handle, at, body[at : at + PART])
        await trio.testing.wait_all_tasks_blocked()
        assert store.reached, "parts are on their way"
        assert not bodies(store)
        if how == "over":
            await mount.parts.file_io.write(handle, 5, b"!")
        elif how == "cut":
            await mount.parts.file_io.truncate(handle.inode, 30 * PART + 9)
        elif how == "unlink":
            mount.nursery.start_soon(mount.unlink, "file")
        elif how == "rename":
            await mount.rename("file", "moved")
        mount.nursery.start_soon(closed, mount, handle)
        await trio.testing.wait_all_tasks_blocked()
        assert not bodies(store), "it did not wait"
        await settled(held)

    with composed(store, tmp_path, part_size=PART) as mount:
        mount.loop.run(partial(main, mount))
        mount.loop.passes(3)
        expected = {
            "close": {"file": body},
            "over": {"file": body[:5] + b"!" + body[6:]},
            "cut": {"file": body[: 30 * PART + 9]},
            "unlink": {},
            "rename": {"moved": body},
        }[how]
        assert bodies(store) == expected
        assert not store._uploads
        assert mount.loop.run(partial(_noted, mount)) == ([], [])
        if how == "close":
            assert store.calls["upload_part"] == 60, "none is sent twice"


def test_a_part_behind_the_writer_that_fails_is_sent_at_close(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sosfs.files.write_behind, "STREAM_MIN", 40 * PART)
    store, body = Held(), b"x" * (60 * PART)

    async def main(mount: Composed) -> None:
        store.errors["upload_part", "file"] = [silence("upload_part")]
        handle = await mount._opened(mount.parts.inodes.root, b"file", os.O_CREAT | os.O_RDWR)
        for at in range(0, len(body), PART):
            await mount.parts.file_io.write(handle, at, body[at : at + PART])
            await trio.testing.wait_all_tasks_blocked()
        assert not store.errors["upload_part", "file"]
        await closed(mount, handle)

    with composed(store, tmp_path, part_size=PART) as mount:
        mount.loop.run(partial(main, mount))
        assert bodies(store) == {"file": body}


def test_a_time_that_was_set_before_the_last_write_is_of_no_account(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The object has the time of its first part, as any that goes up while it is written, and needs no copy for it."""
    monkeypatch.setattr(sosfs.files.write_behind, "STREAM_MIN", 40 * PART)
    store, body = Held(), b"x" * (60 * PART)

    async def main(mount: Composed) -> None:
        handle = await mount._opened(mount.parts.inodes.root, b"file", os.O_CREAT | os.O_RDWR)
        mount.parts.file_io.time_given(handle.inode)
        for at in range(0, len(body), PART):
            await mount.parts.file_io.write(handle, at, body[at : at + PART])
            await trio.testing.wait_all_tasks_blocked()
        await closed(mount, handle)

    with composed(store, tmp_path, part_size=PART) as mount:
        mount.loop.run(partial(main, mount))
        mount.loop.passes(5)
        assert (bodies(store), store.calls["copy"]) == ({"file": body}, 0)


def test_parts_behind_the_writer_are_not_tried_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sosfs.files.write_behind, "STREAM_MIN", 40 * PART)
    store, body = Held(), b"x" * (60 * PART)

    def down(operation: str, key: str) -> None:
        if operation == "upload_part":
            raise silence(operation)

    async def main(mount: Composed) -> None:
        store.fault = down
        handle = await mount._opened(mount.parts.inodes.root, b"file", os.O_CREAT | os.O_RDWR)
        for at in range(0, len(body), PART):
            await mount.parts.file_io.write(handle, at, body[at : at + PART])
        with trio.move_on_after(1):
            await trio.testing.wait_all_tasks_blocked()
        assert store.calls["upload_part"] <= 4 * 60, "each write tries once, a resting writer does not"
        store.fault = None
        await closed(mount, handle)

    with composed(store, tmp_path, part_size=PART) as mount:
        mount.loop.run(partial(main, mount))
        assert bodies(store) == {"file": body}


def test_bodies_on_their_way_are_bounded(tmp_path: Path) -> None:
    store, held = Held(), trio.Event()

    async def main(mount: Composed) -> None:
        mount.parts.uploader.budget.limit = 3 * PART
        handle = await mount._opened(mount.parts.inodes.root, b"file", os.O_CREAT | os.O_RDWR)
        await mount.parts.file_io.write(handle, 0, b"x" * (70 * PART))
        under_way = 0
        upload_part = store.upload_part

        async def counted(*arguments: Any) -> Any:
            nonlocal under_way
            under_way += 1
            assert under_way <= 3
            await held.wait()
            under_way -= 1
            return await upload_part(*arguments)

        store.upload_part = counted  # type: ignore[assignment, method-assign]
        await begun(mount, partial(mount.parts.file_io.flush, handle))
        assert under_way == 3
        await settled(held)
        await closed(mount, handle)
        assert mount.parts.uploader.budget.used == 0

    with composed(store, tmp_path, part_size=PART) as mount:
        mount.loop.run(partial(main, mount))


def test_whole_files_on_their_way_are_bounded(tmp_path: Path) -> None:
    store, held = Held(), trio.Event()

    async def main(mount: Composed) -> None:
        mount.parts.uploader.budget.limit = 3 * PART
        store.before["put"] = held
        for number in range(5):
            await begun(mount, partial(mount.write, f"file{number}", b"n" * PART, flags=os.O_CREAT))
        assert len(store.reached) == 3
        await settled(held)
        assert bodies(store) == {f"file{number}": b"n" * PART for number in range(5)}
        assert mount.parts.uploader.budget.used == 0

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))


# Readers beside writers


def test_a_reader_is_not_given_bytes_of_another_version(mount: Composed, store: Held) -> None:
    """Each request is pinned to the version that was opened."""
    size = 3 << 20

    async def main() -> None:
        await put_all(store, {"file": b"A" * size})
        handle = await opened(mount, os.O_RDONLY)
        assert set(bytes(await mount.parts.file_io.read(handle, 0, 1 << 17))) == {ord("A")}
        mount.parts.blocks.forget(lambda key: True)
        await store.put("file", b"B" * size, Properties())
        with pytest.raises(OSError) as caught:
            await mount.parts.file_io.read(handle, 2 << 20, 1 << 17)
        assert caught.value.errno == errno.ESTALE
        await mount.parts.file_io.release(handle)
        handle = await opened(mount, os.O_RDONLY)
        assert set(bytes(await mount.parts.file_io.read(handle, 0, size))) == {ord("B")}

    mount.loop.run(main)


def test_a_fetch_that_fails_is_told_and_tried_by_the_next_reader(mount: Composed, store: Held) -> None:
    async def main() -> None:
        await put_all(store, {"file": b"A" * 5000})
        handle = await opened(mount, os.O_RDONLY)
        mount.parts.blocks.forget(lambda key: True)
        store.errors["get", "file"] = [silence("get")]
        with pytest.raises(OSError) as caught:
            await mount.parts.file_io.read(handle, 0, 5000)
        assert caught.value.errno == errno.EIO
        assert bytes(await mount.parts.file_io.read(handle, 0, 5000)) == b"A" * 5000

    mount.loop.run(main)


def test_what_a_close_left_in_memory_is_what_was_stored(mount: Composed, store: Held) -> None:
    """The body of a PUT is kept for readers: under the version that it made, and as it was sent."""
    held = trio.Event()

    async def main() -> None:
        handle = await mount._opened(mount.parts.inodes.root, b"file", os.O_CREAT | os.O_RDWR)
        await mount.parts.file_io.write(handle, 0, b"first")
        store.before["put"] = held
        await begun(mount, partial(mount.parts.file_io.flush, handle))
        await mount.parts.file_io.write(handle, 0, b"other")
        await settled(held)
        answer: Slice = await store.get("file", 0, 5)
        here: Object = await store.head("file")
        assert bytes(answer.body) == b"first"
        source = handle.open_file.draft.base if handle.open_file.draft is not None else None
        assert source is not None
        assert source.etag == here.version.etag
        gets = store.calls["get"]
        assert bytes(await mount.parts.blocks.read(source, 0, 5)) == b"first"
        assert store.calls["get"] == gets, "it was asked for"
        await closed(mount, handle)
        assert stored(store) == b"other"

    mount.loop.run(main)


# Who loses to another client


async def _foreign(store: Held, key: str, body: bytes) -> None:
    """What another client stores while requests of ours are held."""
    await type(store).put(store, key, body, Properties())


def _beside(store: Held) -> bytes:
    """The bytes of the one conflict file."""
    (key,) = (key for key in store._stored if ".conflict-" in key)
    return stored(store, key)


def test_a_write_in_a_thread_while_the_loser_is_kept_is_waited_for(tmp_path: Path) -> None:
    store, written = Held(), trio.Event()

    async def main(mount: Composed) -> None:
        run = Threads.run

        async def slowly(threads: Threads, work: Any, *arguments: Any) -> Any:
            if work.__name__ == "_write_all":
                await written.wait()
            return await run(threads, work, *arguments)

        await put_all(store, {"file": b"old"})
        handle = await opened(mount)
        await mount.parts.file_io.write(handle, 0, b"n" * 300_000)
        store.before["put"] = trio.Event()
        outcomes: dict[str, Any] = {}
        mount.nursery.start_soon(told, outcomes, "close", partial(mount.parts.file_io.flush, handle))
        await trio.testing.wait_all_tasks_blocked()
        await _foreign(store, "file", b"theirs")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Threads, "run", slowly)
            write = partial(mount.parts.file_io.write, handle, 0, b"m" * 100_000)
            mount.nursery.start_soon(told, outcomes, "write", write)
            await trio.testing.wait_all_tasks_blocked()
            await settled(store.before.pop("put"))
            await settled(written)
        assert outcomes["write"] == 100_000, "it was acknowledged"
        assert str(errno.ESTALE) in outcomes["close"]
        assert _beside(store) == b"m" * 100_000 + b"n" * 200_000
        await mount.parts.file_io.release(handle)

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))


@sizes
def test_a_failure_to_keep_the_loser_gives_up_nothing_of_it(tmp_path: Path, size: int) -> None:
    """Neither what it has of the version that is gone, nor the file itself: it can be written on, and is kept later."""
    store = Held()

    def no_conflict_file(operation: str, key: str) -> None:
        if ".conflict-" in key and operation in ("put", "complete_multipart"):
            raise silence(operation)

    async def main(mount: Composed) -> None:
        await put_all(store, {"file": b"o" * size})
        handle = await opened(mount)
        assert bytes(await mount.parts.file_io.read(handle, 0, size)) == b"o" * size
        if size > 2 * PART:  # parts of what is as it was are copied on the server, which has it no more
            await mount.parts.file_io.write(handle, 0, b"o" * size)
        await mount.parts.file_io.write(handle, 1, b"n")
        await store.put("file", b"theirs", Properties())
        store.fault = no_conflict_file
        with pytest.raises(OSError, match="no answer"):
            await mount.parts.commits.commit(handle.inode)
        assert [upload for upload in store._uploads.values() if ".conflict-" in upload.key] == []
        await mount.parts.file_io.write(handle, 2, b"m")
        store.fault = None
        with pytest.raises(OSError) as caught:
            await closed(mount, handle)
        assert caught.value.errno == errno.ESTALE
        assert _beside(store) == b"onm" + b"o" * (size - 3)
        assert stored(store) == b"theirs"

    with composed(store, tmp_path, part_size=PART) as mount:
        mount.loop.run(partial(main, mount))


def test_what_is_written_while_the_upload_of_the_loser_is_given_up_is_as_long_as_it_is(tmp_path: Path) -> None:
    """Whoever opens the file then changes what the winner has stored."""
    store = Held()

    async def main(mount: Composed) -> None:
        handle = await mount._opened(*await mount._parent("file"), os.O_CREAT | os.O_RDWR)
        await mount.parts.file_io.write(handle, 0, b"n" * 4 * PART)
        await put_all(store, {"file": b"theirs"})
        store.before["abort_multipart"] = trio.Event()
        outcomes: dict[str, Any] = {}
        await begun(mount, partial(told, outcomes, "close", partial(closed, mount, handle)))
        another = await mount._opened(*await mount._parent("file"), os.O_RDWR)
        await mount.parts.file_io.write(another, 6, b" and ours")
        await settled(store.before.pop("abort_multipart"))
        assert str(errno.ESTALE) in outcomes["close"]
        await closed(mount, another)
        assert stored(store) == b"theirs and ours"
        assert (await mount._walk("file")).size == len(b"theirs and ours")

    with composed(store, tmp_path, part_size=PART) as mount:
        mount.loop.run(partial(main, mount))


def test_the_upload_of_the_loser_is_given_up_where_the_journal_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By this mount: the unmount would take it for one that is in use."""
    store = Held()

    def broken(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    async def main(mount: Composed) -> None:
        handle = await mount._opened(*await mount._parent("file"), os.O_CREAT | os.O_RDWR)
        await mount.parts.file_io.write(handle, 0, b"n" * 4 * PART)
        await mount.parts.file_io.fsync(handle.inode)
        await put_all(store, {"file": b"theirs"})
        with monkeypatch.context() as patch, fails(errno.EIO):
            patch.setattr(Journal, "drop_draft", broken)
            await mount.parts.commits.commit(handle.inode)
        assert (stored(store), _beside(store), store._uploads) == (b"theirs", b"n" * 4 * PART, {})
        await closed(mount, handle)

    with composed(store, tmp_path, durability=JOURNAL, part_size=PART) as mount:
        mount.parts.commits.debounce.delay = LONG
        mount.loop.run(partial(main, mount))


def test_a_write_that_comes_too_late_for_the_loser_takes_nothing_of_it(mount: Composed, store: Held) -> None:
    """Nor of what is kept beside later, where that has failed the first time."""
    ends: dict[str, Any] = {}

    def no_conflict_file(operation: str, key: str) -> None:
        if ".conflict-" in key:
            raise silence(operation)

    async def main() -> None:
        await put_all(store, {"file": b"old"})
        handle = await opened(mount)
        await mount.parts.file_io.write(handle, 0, b"our")
        await store.put("file", b"theirs", Properties())
        first, second = trio.Event(), trio.Event()
        store.before["put"] = first
        await begun(mount, partial(told, ends, "close", partial(mount.parts.file_io.flush, handle)))
        store.before["put"] = second
        await settled(first)
        with fails(errno.ESTALE):
            await mount.parts.file_io.write(handle, 0, b"!")
        store.fault = no_conflict_file
        await settled(second)
        assert "no answer" in ends["close"]
        store.fault = None
        with fails(errno.ESTALE):
            await closed(mount, handle)
        assert (stored(store), _beside(store)) == (b"theirs", b"our")

    mount.loop.run(main)


def test_nobody_is_shown_zeros_in_the_place_of_what_the_loser_has_lost(mount: Composed, store: Held) -> None:
    """Neither while it is kept beside, nor where that fails; what was written or cut since is as it should be."""

    async def reads(handle: Handle, start: int, size: int) -> bytes:
        return bytes(await mount.parts.file_io.read(handle, start, size))

    async def main() -> None:
        await put_all(store, {"file": b"o" * 1000})
        handle = await opened(mount)
        mount.parts.blocks.forget(lambda key: True)
        await mount.parts.file_io.write(handle, 500, b"n" * 100)
        await store.delete("file")
        store.before["put"] = trio.Event()
        outcomes: dict[str, Any] = {}
        await begun(mount, partial(told, outcomes, "close", partial(mount.parts.file_io.flush, handle)))
        store.fault = lambda operation, _: refuse(operation == "put")
        for held in (True, False):
            if not held:
                await settled(store.before.pop("put"))
                assert "no answer" in outcomes["close"]
            assert await reads(handle, 500, 100) == b"n" * 100
            for start, size in ((0, 10), (499, 2), (599, 2), (0, 1000)):
                with fails(errno.ESTALE):
                    await reads(handle, start, size)
        await mount.parts.file_io.write(handle, 490, b"m" * 10)
        await mount.parts.file_io.truncate(handle.inode, 600)
        await mount.parts.file_io.truncate(handle.inode, 700)
        assert await reads(handle, 490, 210) == b"m" * 10 + b"n" * 100 + bytes(100)
        store.fault = None
        with fails(errno.ESTALE):
            await closed(mount, handle)
        assert _beside(store) == bytes(490) + b"m" * 10 + b"n" * 100 + bytes(100)

    mount.loop.run(main)


@pytest.mark.promise(4)
@sizes
@pytest.mark.parametrize("durability", [JOURNAL, BUCKET])
def test_a_version_that_comes_back_before_the_loser_is_kept_gets_no_zeros(
    tmp_path: Path, size: int, durability: Durability
) -> None:
    """Another client has put the very bytes back that were gone: they are what the file was opened as."""
    store = Held()

    async def main(mount: Composed) -> None:
        await put_all(store, {"file": b"o" * size})
        handle = await opened(mount)
        await mount.parts.file_io.write(handle, 1, b"n")
        if durability is JOURNAL:
            await mount.parts.file_io.flush(handle)
        await store.delete("file")
        store.fault = lambda operation, key: refuse(operation in ("put", "complete_multipart") and key != "file")
        with fails(errno.EIO):
            await mount.parts.commits.commit(handle.inode)
        await put_all(store, {"file": b"o" * size})
        store.fault = None
        await closed(mount, handle)

    with composed(store, tmp_path, part_size=PART, durability=durability) as mount:
        mount.loop.run(partial(main, mount))
        mount.loop.passes(LONG)
        assert bodies(store) == {"file": b"on" + b"o" * (size - 2)}


@pytest.mark.promise(4)
def test_nor_does_one_that_comes_back_after_a_crash_where_the_file_was_synced_meanwhile(tmp_path: Path) -> None:
    """Its record tells of the version that was opened, not of the zeros in what is kept beside."""
    store, outcomes = Held(), dict[str, Any]()

    async def main(mount: Composed) -> None:
        await put_all(store, {"file": b"o" * 1000})
        handle = await opened(mount)
        mount.parts.blocks.forget(lambda key: True)
        await mount.parts.file_io.write(handle, 1, b"n")
        await store.delete("file")
        store.before["put"] = trio.Event()
        await begun(mount, partial(told, outcomes, "commit", partial(mount.parts.commits.commit, handle.inode)))
        assert any(".conflict-" in key for _, key in store.reached)
        await mount.parts.file_io.fsync(handle.inode)

    with composed(store, tmp_path, durability=JOURNAL) as mount:
        mount.loop.run(partial(main, mount))
        mount.crash()
        store.before.clear()
        mount.loop.run(partial(put_all, store, {"file": b"o" * 1000}))
        mount.take_up()
        assert bodies(store) == {"file": b"on" + b"o" * 998}


def test_who_was_reading_when_the_loser_was_found_to_lack_something_is_not_shown_zeros_either(
    mount: Composed, store: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes: dict[str, Any] = {}
    late, read, reading = trio.Event(), Spool.read, list[Spool]()

    async def waits(spool: Spool, start: int, stop: int) -> bytes:
        reading.append(spool)
        if len(reading) == 1:
            await late.wait()
        return await read(spool, start, stop)

    async def main() -> None:
        await put_all(store, {"file": b"o" * 1000})
        handle = await opened(mount)
        mount.parts.blocks.forget(lambda key: True)
        await mount.parts.file_io.write(handle, 500, b"n" * 100)
        await store.delete("file")
        sent, kept, beside = trio.Event(), trio.Event(), trio.Event()
        store.before |= {"get": sent, "put": beside}
        await begun(mount, partial(told, outcomes, "close", partial(mount.parts.file_io.flush, handle)))
        store.before["get"] = kept
        await settled(sent)
        monkeypatch.setattr(Spool, "read", waits)
        await begun(mount, partial(told, outcomes, "read", partial(mount.parts.file_io.read, handle, 0, 1000)))
        await settled(kept)
        assert any(".conflict-" in key for _, key in store.reached)
        await settled(late)
        assert f"({errno.ESTALE}" in str(outcomes["read"])
        await settled(beside)
        assert f"({errno.ESTALE}" in outcomes["close"]
        await mount.parts.file_io.release(handle)

    mount.loop.run(main)


def refuse(is_refused: bool) -> None:
    """A request that gets no answer."""
    if is_refused:
        raise silence("put")


def test_who_has_the_loser_open_makes_no_new_file_of_one_that_is_gone(mount: Composed, store: Held) -> None:
    """Not even where attributes wait for it: it would have zeros in the place of what was read of it."""

    async def main() -> None:
        await put_all(store, {"file": b"their own"})
        handle, another = await opened(mount), await opened(mount)
        await mount.parts.file_io.write(handle, 0, b"our")
        await store.delete("file")
        await chmod(mount)
        with fails(errno.ESTALE):
            await closed(mount, handle)
        with fails(errno.ESTALE):
            await mount.parts.file_io.write(another, 9, b" and ours")
        await closed(mount, another)

    mount.loop.run(main)
    mount.loop.passes(LONG)
    assert list(bodies(store).values()) == [b"ourir own"]


def test_a_loser_whose_base_is_gone_keeps_what_was_written(tmp_path: Path) -> None:
    store = Held()

    async def main(mount: Composed) -> None:
        await put_all(store, {"file": b"o" * 1000})
        handle = await opened(mount)
        mount.parts.blocks.forget(lambda key: True)
        await mount.parts.file_io.write(handle, 500, b"n" * 100)
        await store.delete("file")
        with pytest.raises(OSError):
            await closed(mount, handle)
        assert _beside(store) == bytes(500) + b"n" * 100 + bytes(400)

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))


@sizes
def test_what_is_kept_beside_is_a_file_as_any_other(tmp_path: Path, size: int) -> None:
    store = Held()

    async def main(mount: Composed) -> None:
        await store.put("file", b"o" * size, CARRIED)
        handle = await opened(mount)
        await mount.parts.file_io.write(handle, 0, b"n" * size)
        await _foreign(store, "file", b"theirs")
        puts, completed = store.calls["put"], store.calls["complete_multipart"]
        with pytest.raises(OSError):
            await closed(mount, handle)
        (key,) = mount.parts.conflicts.kept
        assert stored(store, key) == b"n" * size
        is_small = size <= 2 * PART
        assert (store.calls["put"] > puts) == is_small
        assert (store.calls["complete_multipart"] > completed) == (not is_small), "a PUT has at most 5 GiB"
        await mount.chmod(key, 0o600)
        found = store._stored[key].object.properties
        assert (found.metadata["colour"], found.metadata["mode"]) == ("blue", str(0o100600))
        assert found.headers.cache_control == "no-store"

    with composed(store, tmp_path, part_size=PART) as mount:
        mount.loop.run(partial(main, mount))


@pytest.mark.parametrize("is_reachable", [True, False])
def test_the_kernel_learns_of_the_winner(tmp_path: Path, is_reachable: bool) -> None:
    """Also where a task in the background has lost, and the bucket cannot be asked about the winner."""
    store, said = Held(), list[tuple[Any, ...]]()

    def silent(operation: str, key: str) -> None:
        if operation == "head" and not is_reachable and any(".conflict-" in key for key in store._stored):
            raise silence(operation)

    async def doubt(_: PageCache, inode: Inode) -> None:
        said.append(("size", inode))

    async def forget_name(_: PageCache, parent: Inode, name: bytes) -> None:
        said.append((parent, name))

    async def main(mount: Composed) -> None:
        await put_all(store, {"d/file": b"as it was"})
        reader, writer = await opened(mount, os.O_RDONLY, "d/file"), await opened(mount, path="d/file")
        await mount.parts.file_io.write(writer, 0, b"longer than it was")
        parent = writer.inode.parent
        await _foreign(store, "d/file", b"theirs")
        store.fault = silent
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(PageCache, "doubt", doubt)
            patch.setattr(PageCache, "forget_name", forget_name)
            with pytest.raises(OSError):
                await mount.parts.commits.commit(writer.inode)
            await trio.testing.wait_all_tasks_blocked()
        assert ("size", reader.inode) in said
        assert (parent, b"file") in said
        assert reader.inode.size == len(b"as it was"), "who has it open goes on with that"
        store.fault = None
        for handle in (reader, writer):
            await mount.parts.file_io.release(handle)

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))


# What the sending task leaves


def test_a_reader_goes_on_with_what_this_mount_has_stored(mount: Composed, store: Held) -> None:
    async def main() -> None:
        await put_all(store, {"file": b"old"})
        reader, writer = await opened(mount, os.O_RDONLY), await opened(mount)
        assert bytes(await mount.parts.file_io.read(reader, 0, 3)) == b"old"
        await mount.parts.file_io.write(writer, 0, b"new")
        await closed(mount, writer)
        assert bytes(await mount.parts.file_io.read(reader, 0, 3)) == b"new"
        await mount.parts.file_io.release(reader)

    mount.loop.run(main)


def test_a_handle_that_stays_open_over_a_commit_in_the_background_writes_on(tmp_path: Path) -> None:
    store = Held()
    with composed(store, tmp_path, durability=JOURNAL) as mount:
        handle = mount.loop.run(partial(mount._opened, mount.parts.inodes.root, b"file", os.O_CREAT | os.O_RDWR))
        for body in (b"first", b"other"):
            mount.loop.run(partial(mount.parts.file_io.write, handle, 0, body))
            assert bytes(mount.loop.run(partial(mount.parts.file_io.read, handle, 0, 5))) == body
            mount.loop.run(partial(mount.parts.file_io.flush, handle))
            mount.loop.passes(10)
            assert bodies(store) == {"file": body}
        mount.loop.run(partial(mount.parts.file_io.release, handle))
        assert mount.parts.pending == 0


def test_a_writer_waits_while_too_much_is_on_its_way(tmp_path: Path) -> None:
    """And no longer than that: what has arrived counts no more."""
    store, limit = Held(), 1 << 20

    async def filled(mount: Composed, outcomes: dict[str, Any], path: str) -> None:
        write = partial(mount.write, path, b"n" * (2 * limit), flags=os.O_CREAT)
        await begun(mount, partial(told, outcomes, path, write))

    with composed(store, tmp_path, durability=JOURNAL, dirty_limit=limit, part_size=4 * limit) as mount:
        outcomes: dict[str, Any] = {}
        for at in range(2):
            held = store.before["put"] = trio.Event()
            mount.loop.run(partial(filled, mount, outcomes, f"first {at}"))
            mount.loop.passes(5)
            assert f"first {at}" in outcomes
            mount.loop.run(partial(filled, mount, outcomes, f"second {at}"))
            assert f"second {at}" not in outcomes, "it did not wait"
            del store.before["put"]
            mount.loop.run(partial(settled, held))
            mount.loop.passes(5)
            assert outcomes[f"second {at}"] is None
        assert mount.parts.commits._backlog.waiting == 0
        assert len(bodies(store)) == 4


@pytest.mark.parametrize(("number", "is_stored"), [(errno.ENOSPC, True), (errno.EDQUOT, True), (errno.EIO, False)])
def test_where_the_disk_has_no_room_for_a_record_the_bucket_gets_the_file_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, is_stored: bool
) -> None:
    """Any other failure of the disk is told."""
    store = Held()

    async def failing(*_: Any) -> None:
        raise OSError(number, "the disk")

    async def main(mount: Composed) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(DraftRecords, "save", failing)
            work = partial(mount.write, "file", b"bytes", flags=os.O_CREAT)
            if is_stored:
                await work()
                assert bodies(store) == {"file": b"bytes"}
            else:
                with pytest.raises(OSError, match="the disk"):
                    await work()
                assert bodies(store) == {}

    with composed(store, tmp_path, durability=JOURNAL) as mount:
        mount.loop.run(partial(main, mount))
        mount.loop.passes(5)
        assert bodies(store) == {"file": b"bytes"}


@pytest.mark.parametrize("is_damaged", [True, False])
def test_bytes_that_are_lost_here_are_told_as_damage_and_nothing_else_is(tmp_path: Path, is_damaged: bool) -> None:
    store = Held()

    def down(operation: str, key: str) -> None:
        if operation == "put":
            raise silence(operation)

    with composed(store, tmp_path, durability=JOURNAL) as mount:
        mount.loop.run(partial(mount.write, "file", b"n" * 300_000, flags=os.O_CREAT))
        (spool,) = (mount._settings.state_dir / "spool").glob("*.spool")
        if is_damaged:
            os.truncate(spool, 1000)
        else:
            store.fault = down
        mount.loop.passes(30)
        assert bodies(store) == {}, "no short file"
        assert bool(mount._journal.damage.lines) == is_damaged
        store.fault = None
        if is_damaged:
            mount.loop.run(partial(mount.unlink, "file"))
    assert bodies(store) == ({} if is_damaged else {"file": b"n" * 300_000})
