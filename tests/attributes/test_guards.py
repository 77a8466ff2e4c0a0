"""What keeps a change of attributes from touching anything else, and from being lost: each guard by itself.

In one process, with requests held back; another client's eyes are the store itself.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from sosfs.cache.blocks import BLOCK
from sosfs.concurrency.interrupt import CURRENT, Interrupt
from sosfs.config.choices import Canned
from sosfs.config.parameters import TTL, Durability
from sosfs.control.object_acl import ObjectAcls
from sosfs.errors import StoreError
from sosfs.files.open_file import Handle
from sosfs.s3 import copying
from sosfs.s3.preconditions import holds, landed, look
from sosfs.s3.protocol import Acl, Grant, Guard, Headers, Properties, Version
from sosfs.s3.recognition import token
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

FRIEND = Acl("owner", (Grant("owner", "FULL_CONTROL"), Grant("friend", "READ")))
CARRIED = Properties(
    Headers("text/plain", cache_control="no-store", expires="Thu, 01 Dec 1994 16:00:00 GMT"), {"colour": "blue"}, "COLD"
)


def _mode(store: Held, key: str = "file") -> int:
    return int(store._stored[key].object.properties.metadata["mode"]) & 0o7777


@pytest.mark.parametrize("key", ["file", "d/"])
def test_a_chmod_resets_nothing(mount: Composed, store: Held, key: str) -> None:
    async def main() -> None:
        await store.put(key, b"bytes" if key == "file" else b"", CARRIED, acl=FRIEND)
        if key == "file":
            inode = await mount.parts.namespace.lookup(mount.parts.inodes.root, b"file")
            await mount.parts.attributes.ask_files([inode])  # as `ls -l`: HEAD, which does not tell everything
        await chmod(mount, key.rstrip("/"), 0o600)

    mount.loop.run(main)
    mount.loop.passes(3)
    found = store._stored[key].object.properties
    assert _mode(store, key) == 0o600
    assert found.headers == CARRIED.headers
    assert found.storage_class == "COLD"
    assert found.metadata["colour"] == "blue"
    assert "friend" in {grant.grantee for grant in store._stored[key].acl.grants}
    assert mount.parts.pending == 0


@pytest.mark.parametrize("theirs", [b"theirs, longer", b"BYTES"])
def test_a_chmod_does_not_touch_what_another_client_stored_meanwhile(
    mount: Composed, store: Held, theirs: bytes
) -> None:
    async def main() -> None:
        await put_all(store, {"file": b"bytes"})
        await chmod(mount, "file", 0o600)
        await store.put("file", theirs, Properties(Headers("image/png"), {"theirs": "yes"}))

    mount.loop.run(main)
    mount.loop.passes(LONG)
    assert stored(store) == theirs
    found = store._stored["file"].object.properties
    assert found.headers.content_type == "image/png"
    assert found.metadata["theirs"] == "yes"


@pytest.mark.parametrize("key", ["file", "d/"])
@pytest.mark.parametrize("what", ["mode", "metadata"])
def test_what_changes_while_attributes_are_written_is_written_too(
    mount: Composed, store: Held, key: str, what: str
) -> None:
    """And nobody asks once more what the answer has told."""
    held, path = trio.Event(), key.rstrip("/")

    async def main() -> None:
        await put_all(store, {key: b"bytes" if key == "file" else b""})
        await chmod(mount, path, 0o640)
        store.before["copy"] = store.before["put"] = held

    async def again() -> None:
        assert store.reached
        inode = await mount._walk(path)
        inode.mode = stat.S_IFMT(inode.mode) | 0o600 if what == "mode" else inode.mode
        inode.edits = inode.edits.with_metadata("colour", "red") if what == "metadata" else inode.edits
        mount.parts.attributes.changed(inode, posix={"mode"} if what == "mode" else ())
        await settled(held)

    mount.loop.run(main)
    mount.loop.passes(2)
    asked = store.calls["head"]
    mount.loop.run(again)
    mount.loop.passes(10)
    found = store._stored[key].object.properties.metadata
    assert (_mode(store, key), found.get("colour")) == ((0o600, None) if what == "mode" else (0o640, "red"))
    assert (mount.parts.pending, store.calls["head"]) == (0, asked)


async def _settled_by(mount: Composed, store: Held, count: int, *, until: trio.Event) -> Inode:
    """A file whose mode has changed, which so many are bringing into the bucket; its copy is held back."""
    await put_all(store, {"file": b"bytes"})
    await chmod(mount, "file", 0o600)
    inode = await mount._walk("file")
    store.before["copy"] = until
    for _ in range(count):
        await begun(mount, partial(mount.parts.attributes.write_now, inode))
    return inode


def test_two_who_settle_at_once_write_once(mount: Composed, store: Held) -> None:
    held = trio.Event()

    async def main() -> None:
        await _settled_by(mount, store, 2, until=held)
        await settled(held)
        assert store.calls["copy"] == 1

    mount.loop.run(main)
    assert _mode(store) == 0o600


def test_who_waits_for_the_copy_of_another_can_be_stopped(mount: Composed, store: Held) -> None:
    interrupt, outcomes = Interrupt(), dict[str, Any]()

    async def main() -> None:
        held = trio.Event()
        inode = await _settled_by(mount, store, 1, until=held)
        CURRENT.set(interrupt)
        await begun(mount, partial(told, outcomes, "fsync", partial(mount.parts.attributes.write_now, inode)))
        CURRENT.set(None)
        interrupt.set()
        await trio.testing.wait_all_tasks_blocked()
        assert "Interrupted" in outcomes["fsync"]
        await settled(held)

    mount.loop.run(main)
    assert (_mode(store), mount.parts.pending) == (0o600, 0)


def test_of_many_who_settle_one_writes_at_a_time(mount: Composed, store: Held) -> None:
    first, second = trio.Event(), trio.Event()

    async def main() -> None:
        await _settled_by(mount, store, 3, until=first)
        await chmod(mount, "file", 0o640)
        store.before["copy"] = second
        await settled(first)
        assert (store.calls["copy"], second.statistics().tasks_waiting) == (1, 1)
        await settled(second)
        assert (store.calls["copy"], _mode(store)) == (2, 0o640)

    mount.loop.run(main)


def test_what_waits_for_a_copy_leaves_it_to_a_commit_that_comes_meanwhile(mount: Composed, store: Held) -> None:
    held = trio.Event()

    async def main() -> None:
        await put_all(store, {"file": b"bytes"})
        handle = await opened(mount)
        await chmod(mount, "file", 0o600)
        store.before["copy"] = held
        for _ in range(2):
            await begun(mount, partial(mount.parts.attributes.write_now, handle.inode))
        await mount.parts.file_io.write(handle, 0, b"B")
        await chmod(mount, "file", 0o640)
        await settled(held)
        assert store.calls["copy"] == 1
        await closed(mount, handle)
        assert (stored(store), _mode(store), store.calls["copy"]) == (b"Bytes", 0o640, 1)

    mount.loop.run(main)


def test_attributes_of_a_file_that_is_being_written_go_with_its_bytes(mount: Composed, store: Held) -> None:
    async def main() -> None:
        await put_all(store, {"file": b"bytes"})
        handle = await opened(mount)
        await mount.parts.file_io.write(handle, 0, b"B")
        await chmod(mount, "file", 0o600)
        await mount.parts.attributes.write_now(handle.inode)
        assert store.calls["copy"] == 0
        await closed(mount, handle)
        assert store.calls["copy"] == 0
        assert (stored(store), _mode(store)) == (b"Bytes", 0o600)

    mount.loop.run(main)


@pytest.mark.parametrize("edited", [False, True], ids=["as it was", "with another owner here"])
def test_what_another_client_set_of_a_file_stays_when_it_is_written_to(tmp_path: Path, edited: bool) -> None:
    """It was made private there, long after it was opened here: the bytes are what they were, and so is the ETag."""
    store, longer = Held(), 3 * TTL
    before = Properties(metadata={"mode": str(0o100644), "uid": "0", "gid": "0", "mtime": "1"})
    theirs = replace(before, metadata={**before.metadata, "mode": str(0o100600), "colour": "blue"})

    async def open_it(mount: Composed) -> Handle:
        await store.put("file", b"bytes", before)
        return await opened(mount)

    async def write(mount: Composed, handle: Handle) -> None:
        await store.put("file", b"bytes", theirs)
        await mount.parts.file_io.write(handle, 0, b"B")
        if edited:
            handle.inode.uid = 7
            mount.parts.attributes.changed(handle.inode, posix=["uid"])
        await closed(mount, handle)

    with composed(store, tmp_path) as mount:
        handle = mount.loop.run(partial(open_it, mount))
        mount.loop.passes(longer)
        mount.loop.run(partial(write, mount, handle))
        mount.loop.passes(LONG)
        assert bodies(store) == {"file": b"Bytes"}
        found = store._stored["file"].object.properties.metadata
        assert _mode(store) == 0o600
        assert found["colour"] == "blue"
        assert found["uid"] == ("7" if edited else "0")
        assert float(found["mtime"]) > 1, "the time is that of the new bytes"


def test_what_another_client_set_of_a_file_stays_when_it_is_written_to_after_a_rename(
    mount: Composed, store: Held
) -> None:
    """Nobody knows when the copy was made, nor all that it has: it may pass for the version that is there now."""
    before = Properties(metadata={"mode": str(0o100644), "uid": "0", "gid": "0", "mtime": "1"})
    theirs = replace(before, metadata={**before.metadata, "mode": str(0o100600), "colour": "blue"})

    async def main() -> None:
        await store.put("file", b"bytes", before)
        inode = await mount.parts.namespace.lookup(mount.parts.inodes.root, b"file")
        await mount.parts.attributes.ask_files([inode])  # as `ls -l`: HEAD, which does not tell everything
        await mount.rename("file", "moved")
        handle = await opened(mount, path="moved")
        await mount.parts.file_io.write(handle, 0, b"B")
        await store.put("moved", b"bytes", theirs)
        await closed(mount, handle)

    mount.loop.run(main)
    mount.loop.passes(LONG)
    assert bodies(store) == {"moved": b"Bytes"}
    found = store._stored["moved"].object.properties.metadata
    assert (_mode(store, "moved"), found["colour"]) == (0o600, "blue")
    assert float(found["mtime"]) > 1, "the time is that of the new bytes"


def test_what_changes_while_a_commit_is_under_way_is_written_after_it(mount: Composed, store: Held) -> None:
    held = trio.Event()

    async def main() -> None:
        await put_all(store, {"file": b"bytes"})
        handle = await opened(mount)
        await mount.parts.file_io.write(handle, 0, b"B")
        store.before["put"] = held
        await begun(mount, partial(mount.parts.file_io.flush, handle))
        assert store.reached
        await chmod(mount, "file", 0o600)
        await settled(held)
        await closed(mount, handle)

    mount.loop.run(main)
    mount.loop.passes(5)
    assert (stored(store), _mode(store)) == (b"Bytes", 0o600)
    assert mount.parts.pending == 0


def test_attributes_that_got_no_answer_are_tried_again_and_outlive_the_process(tmp_path: Path) -> None:
    store = Held()

    def down(operation: str, key: str) -> None:
        if operation == "copy":
            raise silence("copy")

    async def main(mount: Composed) -> None:
        await put_all(store, {"file": b"bytes", "other": b"o"})
        store.fault = down
        await chmod(mount, "file", 0o600)
        with fails(errno.EIO):
            await mount.parts.file_io.fsync(await mount._walk("file"))
        await chmod(mount, "other", 0o640)

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))
        mount.loop.passes(10)
        assert mount.parts.pending == 2
        assert mount.loop.run(mount.tree)["file"] == (b"bytes", 0o600)
        mount.crash()
        store.fault = None
        mount.start()
        mount.loop.passes(120)  # a copy of the dead process may come late, and is waited for
        assert (_mode(store), _mode(store, "other")) == (0o600, 0o640)
        assert mount.parts.pending == 0


def test_attributes_that_got_no_answer_are_written_when_there_is_one(mount: Composed, store: Held) -> None:
    async def main() -> None:
        await put_all(store, {"file": b"bytes"})
        store.errors["copy", "file"] = [silence("copy"), silence("copy")]
        await chmod(mount, "file", 0o600)

    mount.loop.run(main)
    mount.loop.passes(40)
    assert _mode(store) == 0o600
    mount.loop.passes(180)  # the copies without an answer may come late
    assert mount.parts.pending == 0


@pytest.mark.parametrize("durability", list(Durability))
def test_what_was_done_is_not_done_again_by_the_next_mount(tmp_path: Path, durability: Durability) -> None:
    store = Held()

    async def main(mount: Composed) -> None:
        await put_all(store, {"file": b"bytes", "d/": b""})
        await chmod(mount, "file", 0o600)
        await chmod(mount, "d", 0o700)

    with composed(store, tmp_path, durability=durability) as mount:
        mount.loop.run(partial(main, mount))
        mount.loop.passes(5)
        mount.crash()
        calls = store.calls["copy"], store.calls["put"]
        mount.start()
        assert (store.calls["copy"], store.calls["put"]) == calls


@pytest.mark.parametrize("seconds", [0, 5], ids=["at once", "later"])
def test_attributes_of_what_was_removed_bring_nothing_back(tmp_path: Path, seconds: int) -> None:
    store = Held()

    async def main(mount: Composed) -> None:
        await put_all(store, {"file": b"bytes", "d/": b"", "other": b"o"})
        await chmod(mount, "file", 0o600)
        await chmod(mount, "d", 0o700)
        await mount.unlink("file")
        await mount.rmdir("d")
        await mount.parts.deletions.drain()

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))
        mount.loop.passes(seconds)
        assert bodies(store) == {"other": b"o"}
        mount.crash()
        mount.start()
        assert bodies(store) == {"other": b"o"}


def test_a_marker_that_is_being_written_does_not_come_after_its_directory_has_gone(
    mount: Composed, store: Held
) -> None:
    held = trio.Event()

    async def main() -> None:
        await put_all(store, {"d/": b"", "other": b"o"})
        await chmod(mount, "d", 0o700)
        store.before["put"] = held
        await begun(mount, partial(mount.parts.attributes.write_now, await mount._walk("d")))
        assert ("put", "d/") in store.reached
        await begun(mount, partial(mount.rmdir, "d"))
        await settled(held)
        await mount.parts.deletions.drain()

    mount.loop.run(main)
    mount.loop.passes(3)
    assert bodies(store) == {"other": b"o"}


def test_a_chmod_of_what_is_copied_part_by_part_does_not_undo_what_came_meanwhile(
    mount: Composed, store: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over 5 GiB an object is copied onto itself in parts; another client stores its own before they are joined."""
    monkeypatch.setattr(copying, "PUT_MAX", 1000)
    held = trio.Event()

    async def main() -> None:
        await put_all(store, {"file": b"o" * 3000})
        await chmod(mount, "file", 0o600)
        store.before["complete_multipart"] = held

    async def go_on() -> None:
        assert store.reached
        await store.put("file", b"theirs", Properties())
        await settled(held)

    mount.loop.run(main)
    mount.loop.passes(2)
    mount.loop.run(go_on)
    mount.loop.passes(2)
    assert stored(store) == b"theirs"
    assert not store._uploads


def test_a_copy_that_is_refused_twice_for_another_version_is_no_success(mount: Composed, store: Held) -> None:
    async def main() -> None:
        await put_all(store, {"file": b"bytes"})
        await chmod(mount, "file", 0o600)
        refused = StoreError(errno.ESTALE, "CopyObject", code="PreconditionFailed", status=412)
        store.errors["copy", "file"] = [refused, refused]
        with fails(errno.ESTALE):
            await mount.parts.file_io.fsync(await mount._walk("file"))
        assert not store.errors["copy", "file"]
        assert mount.parts.pending == 1

    mount.loop.run(main)
    mount.loop.passes(LONG)
    assert (_mode(store), mount.parts.pending) == (0o600, 0)


def test_a_chmod_of_what_another_client_has_removed_waits_for_nothing(mount: Composed, store: Held) -> None:
    async def main() -> None:
        await put_all(store, {"file": b"bytes"})
        await chmod(mount, "file", 0o600)
        await store.delete("file")

    mount.loop.run(main)
    mount.loop.passes(LONG)
    assert (bodies(store), mount.parts.pending) == ({}, 0)


@pytest.mark.parametrize("is_told", [True, False], ids=["", "without an answer"])
@pytest.mark.parametrize("how", ["read", "not read yet", "written"])
def test_who_has_a_file_open_reads_on_when_a_chmod_has_made_another_version(
    tmp_path: Path, is_told: bool, how: str
) -> None:
    """Where ETags are no hashes the copy of a file onto itself has another one."""
    store, body = Held(hashes=False), os.urandom(4 * BLOCK)

    async def main(mount: Composed) -> None:
        await put_all(store, {"file": body})
        handle = await opened(mount, os.O_RDWR)
        if how == "read":
            assert await mount.parts.file_io.read(handle, 0, 10) == body[:10]
        before = store._stored["file"].object.version.etag
        if is_told:
            await mount.chmod("file", 0o600)
        else:
            store.unanswered["copy", "file"] = [silence("copy")]
            with fails(errno.EIO):
                await mount.chmod("file", 0o600)
        if how == "written":
            await mount.parts.file_io.write(handle, 0, body[:10])
        assert store._stored["file"].object.version.etag != before
        mount.parts.blocks.forget(lambda key: True)
        assert await mount.parts.file_io.read(handle, 3 * BLOCK, 10) == body[3 * BLOCK : 3 * BLOCK + 10]
        await mount.parts.file_io.release(handle)

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))


def test_a_copy_that_was_made_when_the_process_died_is_known_as_ours(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Where ETags are no hashes nothing else tells: what was changed would be said to be lost to another client."""
    store = Held(hashes=False)

    async def main(mount: Composed) -> None:
        await put_all(store, {"file": b"bytes"})
        await chmod(mount, "file", 0o600)
        store.after["copy"] = trio.Event()
        await begun(mount, partial(mount.parts.attributes.write_now, await mount._walk("file")))
        assert store.reached == {("copy", "file")}

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))
        mount.crash()
        store.after.clear()
        mount.start()
        mount.loop.passes(LONG)
        assert (_mode(store), mount.parts.pending) == (0o600, 0)
        assert "is lost" not in caplog.text


# Directories that are only recorded yet


def test_a_directory_that_another_client_made_first_keeps_what_that_gave_it(tmp_path: Path) -> None:
    store = Held()

    async def main(mount: Composed) -> None:
        await mount.mkdir("d")
        await store.put("d/", b"", Properties(metadata={"mode": str(0o040700), "theirs": "yes"}))
        await store.put("d/theirs", b"theirs", Properties())

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(main, mount))
        mount.loop.passes(2)
        assert store._stored["d/"].object.properties.metadata["theirs"] == "yes"
        assert set(mount.loop.run(mount.tree)) == {"d", "d/theirs"}


@pytest.mark.parametrize("durability", list(Durability))
def test_a_directory_is_there_after_a_crash(tmp_path: Path, durability: Durability) -> None:
    store = Held()

    async def main(mount: Composed) -> None:
        await mount.mkdir("d")

    with composed(store, tmp_path, durability=durability) as mount:
        mount.loop.run(partial(main, mount))
        assert list(bodies(store)) == (["d/"] if durability is Durability.BUCKET else [])
        mount.crash()
        mount.start()
        assert mount.loop.run(mount.tree) == {"d": None}
        assert list(bodies(store)) == ["d/"]


def test_mkdir_of_what_another_client_made_is_eexist(mount: Composed, store: Held) -> None:
    async def main() -> None:
        mount.loop._clock.jump(1)  # time 0 is "never" to a directory
        assert await mount.tree() == {}
        await store.put("d/", b"", Properties(metadata={"theirs": "yes"}))
        with fails(errno.EEXIST):
            await mount.mkdir("d")
        assert store._stored["d/"].object.properties.metadata["theirs"] == "yes"
        assert set(await mount.tree()) == {"d"}

    mount.loop.run(main)


# What is known of an object


def test_what_another_client_changed_is_seen_after_the_ttl(mount: Composed, store: Held) -> None:
    async def main() -> None:
        await store.put("file", b"bytes", Properties(metadata={"mode": str(0o100600)}))
        assert await mount.tree() == {"file": (b"bytes", 0o600)}
        await store.put("file", b"newer", Properties(metadata={"mode": str(0o100755)}))
        mount.loop._clock.jump(2 * TTL)
        assert await mount.tree() == {"file": (b"newer", 0o755)}
        await store.delete("file")
        mount.loop._clock.jump(2 * TTL)
        assert await mount.tree() == {}

    mount.loop.run(main)


def test_a_question_without_an_answer_is_an_error_and_no_absence(mount: Composed, store: Held) -> None:
    def down(operation: str, key: str) -> None:
        raise silence(operation)

    async def main() -> None:
        await put_all(store, {"d/file": b"bytes"})
        assert set(await mount.tree()) == {"d", "d/file"}
        mount.loop._clock.jump(LONG)
        store.fault = down
        with fails(errno.EIO):
            await mount.tree()
        with fails(errno.EIO):
            await mount._walk("d/file")
        store.fault = None
        assert await mount.tree() == {"d": None, "d/file": (b"bytes", 0o644)}

    mount.loop.run(main)


# Conditions where the server keeps none


async def _put(store: Held, key: str, body: bytes, **metadata: str) -> Version:
    await store.put(key, body, Properties(metadata=metadata))
    return store._stored[key].object.version


def test_a_condition_is_compared_with_what_is_there() -> None:
    async def main() -> None:
        store = Held()
        assert await holds(store.head, "file", Guard.ABSENT)
        assert await holds(store.head, "file", Guard.NONE)
        here = await _put(store, "file", b"bytes")
        assert not await holds(store.head, "file", Guard.ABSENT)
        assert await holds(store.head, "file", Guard.NONE)
        assert await holds(store.head, "file", here)
        await _put(store, "file", b"other")
        assert not await holds(store.head, "file", here)
        await store.delete("file")
        assert not await holds(store.head, "file", here)
        store.fault = _down
        with fails(errno.EIO):
            await holds(store.head, "file", Guard.ABSENT)

    trio.run(main)


def _down(operation: str, key: str) -> None:
    raise silence(operation)


def test_only_the_object_of_our_own_request_has_landed() -> None:
    async def main() -> None:
        store = Held()
        ours = Properties(metadata={"mtime": "7.000000001"})
        before = await _put(store, "file", b"old")
        version = await store.put("file", b"bytes", ours)
        name = token(version.etag, 5, ours, hashes=True)
        found = await landed(store.head, "file", name, ours, instead_of=before)
        assert found is not None
        assert (found.etag, found.modified) == (version.etag, None)
        other = Properties(metadata={"mtime": "7.000000002"})
        assert await landed(store.head, "file", name, other, instead_of=before) is None, "the same bytes by another"
        assert await landed(store.head, "file", "another token", ours, instead_of=before) is None
        assert await landed(store.head, "absent", name, ours, instead_of=before) is None
        store.fault = _down
        with fails(errno.EIO):
            await landed(store.head, "file", name, ours, instead_of=before)

    trio.run(main)


def test_a_refusal_is_an_absence_only_where_a_listing_shows_it() -> None:
    def refused(operation: str, key: str) -> None:
        if operation == "head":
            raise StoreError(errno.EACCES, "head", status=403)

    def all_refused(operation: str, key: str) -> None:
        raise StoreError(errno.EACCES, operation, code="AccessDenied", status=403)

    async def main() -> None:
        store = Held()
        await put_all(store, {"file": b"bytes", "longer": b"", "prefix/x": b"x"})
        assert (await look(store, "file")).key == "file"
        store.fault = refused
        for key in ("absent", "long", "prefix/"):
            with fails(errno.ENOENT):
                await look(store, key)
        with fails(errno.EACCES):
            await look(store, "file")
        store.fault = all_refused
        with fails(errno.EACCES):
            await look(store, "absent")

    trio.run(main)


def test_a_file_made_and_closed_without_a_byte_is_there(mount: Composed, store: Held) -> None:
    mount.loop.run(partial(mount.write, "file", b"", flags=os.O_CREAT))
    assert bodies(store) == {"file": b""}


def test_the_acl_of_what_another_client_has_stored_over_our_write_is_kept_when_its_mode_is_changed(
    mount: Composed, store: Held
) -> None:
    """Of our own write it was known that it is the default."""

    async def main() -> None:
        await mount.write("file", b"ours", flags=os.O_CREAT)
        inode = await mount._walk("file")
        await store.put("file", b"theirs", Properties(), acl=FRIEND)
        await mount.parts.attributes.refresh(inode)
        inode.mode = stat.S_IFREG | 0o600
        mount.parts.attributes.changed(inode)
        await mount.parts.attributes.write_now(inode)
        assert store._stored["file"].acl == FRIEND

    mount.loop.run(main)


def test_the_acl_that_another_client_set_after_a_copy_without_an_answer_is_kept(mount: Composed, store: Held) -> None:
    """Of the same bytes, a moment after they were stored here with the default one."""

    async def main() -> None:
        await mount.write("file", b"bytes", flags=os.O_CREAT)
        await chmod(mount, "file", 0o600)
        store.errors["copy", "file"] = [silence("copy")]
        inode = await mount._walk("file")
        with fails(errno.EIO):
            await mount.parts.attributes.write_now(inode)
        await store.put("file", b"bytes", CARRIED, acl=FRIEND)
        await mount.parts.attributes.write_now(inode)
        assert _mode(store) == 0o600
        assert store._stored["file"].acl == FRIEND

    mount.loop.run(main)


def test_an_acl_that_was_set_without_an_answer_is_kept(
    mount: Composed, store: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a file that was stored here a moment before, with the default one."""
    parts, put_acl = mount.parts, store.put_acl

    async def lose(key: str, acl: Acl | Canned) -> None:
        await put_acl(key, acl)
        raise silence("put_acl")

    async def main() -> None:
        await mount.write("file", b"bytes", flags=os.O_CREAT)
        inode = await mount._walk("file")
        acls = ObjectAcls(parts.inodes, store, parts.attributes, parts.commits, parts.subtree_lock)
        monkeypatch.setattr(store, "put_acl", lose)
        with fails(errno.EIO):
            await acls.write(inode, "public-read")
        assert ANYONE in readers(store)
        await mount.chmod("file", 0o600)
        assert ANYONE in readers(store)

    mount.loop.run(main)
