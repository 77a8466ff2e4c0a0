"""What keeps a rename from losing, mixing or resetting anything: each guard by itself.

In one process, with requests held back; another client's eyes are the store itself.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import stat
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from sosfs.config.parameters import TTL, Durability
from sosfs.disk.reserve import Need, Reserve
from sosfs.files.open_file import Handle
from sosfs.journal.journal import Journal
from sosfs.namespace.namespace import refuse
from sosfs.s3.protocol import KEY_MAX, Acl, Grant, Headers, Page, Properties, Right, Version
from sosfs.tree.inodes import SYMLINK_MAX, Inode
from sosfs.tree.keys import HIDDEN, name_of
from tests.support.composed import LONG, Composed, composed
from tests.support.drive import fails
from tests.support.fake_store import FakeStore
from tests.support.held import (
    Held,
    begun,
    bodies,
    closed,
    denied,
    forget,
    opened,
    put_all,
    readers,
    settled,
    silence,
    stored,
    told,
)
from tests.support.kernel import Kernel

FRIEND = Acl("owner", (Grant("owner", "FULL_CONTROL"), Grant("friend", "READ")))
CARRIED = Properties(
    Headers("text/plain", cache_control="no-store", expires="Thu, 01 Dec 1994 16:00:00 GMT"), {"colour": "blue"}, "COLD"
)
both = pytest.mark.parametrize(("old", "new"), [("file", "moved"), ("d/file", "e/file")], ids=["file", "directory"])


def tops(*paths: str) -> list[str]:
    """What is renamed: a file at the root, or its directory."""
    return [path.split("/")[0] for path in paths]


async def _renames(mount: Composed) -> list[tuple[int, str, str]]:
    return mount._journal.renames()


async def _glanced_at(mount: Composed, path: str) -> Inode:
    """As by `ls -l`: HEAD, which does not tell everything."""
    inode = await mount.parts.namespace.lookup(*await mount._parent(path))
    await mount.parts.attributes.ask_files([inode])
    return inode


# What belongs to an object goes along


@both
@pytest.mark.parametrize("is_dirty", [False, True], ids=["clean", "with attributes that wait"])
def test_a_rename_keeps_all_that_an_object_has(
    mount: Composed, store: Held, old: str, new: str, is_dirty: bool
) -> None:
    async def main() -> None:
        await store.put(old, b"bytes", CARRIED, acl=FRIEND)
        await _glanced_at(mount, old)
        if is_dirty:
            inode = await mount._walk(old)
            inode.mode = stat.S_IFREG | 0o600
            mount.parts.attributes.changed(inode)
        await mount.rename(*tops(old, new))
        assert bodies(store) == {new: b"bytes"}

    mount.loop.run(main)
    mount.loop.passes(5)
    found = store._stored[new].object.properties
    assert found.headers == CARRIED.headers
    assert found.storage_class == "COLD"
    assert found.metadata["colour"] == "blue"
    assert "friend" in readers(store, new)
    if is_dirty:
        assert found.metadata["mode"] == str(0o100600)
    assert mount.loop.run(mount.tree)[new] == (b"bytes", 0o600 if is_dirty else 0o644)


@pytest.mark.parametrize(
    ("old", "new", "is_since"),
    [("file", "moved", False), ("d/file", "e/file", False), ("d/file", "e/file", True)],
    ids=["file", "directory", "directory, since it was written here"],
)
def test_a_chmod_after_a_rename_keeps_what_nobody_has_looked_at(
    mount: Composed, store: Held, old: str, new: str, is_since: bool
) -> None:
    """Another client may have set it just after this mount has written the same bytes."""

    async def main() -> None:
        if is_since:
            await mount.parts.commits.commit(await _written(mount, old))
            store._clock = lambda: time.time() + 100
        await store.put(old, b"bytes", CARRIED, acl=FRIEND)
        if is_since:
            mount.loop._clock.jump(2 * TTL)
        else:
            await _glanced_at(mount, old)
        await mount.rename(*tops(old, new))
        await mount.chmod(new, 0o600)

    mount.loop.run(main)
    mount.loop.passes(TTL)
    found = store._stored[new].object.properties
    assert (found.headers, found.metadata["colour"], found.metadata["mode"]) == (
        CARRIED.headers, "blue", str(0o100600)
    )  # fmt: skip
    assert "friend" in readers(store, new)


@pytest.mark.parametrize("is_dirty", [False, True], ids=["clean", "with attributes that wait"])
@pytest.mark.parametrize(("had", "gets"), [("text/plain", "text/html"), ("image/png", "image/png")])
def test_a_type_that_only_the_name_has_told_becomes_that_of_the_new_name(
    mount: Composed, store: Held, had: str, gets: str, is_dirty: bool
) -> None:
    before = replace(CARRIED, headers=replace(CARRIED.headers, content_type=had))

    async def main() -> None:
        await store.put("a.txt", b"bytes", before)
        inode = await _glanced_at(mount, "a.txt")
        if is_dirty:
            inode.mode = stat.S_IFREG | 0o600
            mount.parts.attributes.changed(inode)
        await mount.rename("a.txt", "a.html")

    mount.loop.run(main)
    found = store._stored["a.html"].object.properties
    assert found.headers == replace(before.headers, content_type=gets)
    assert found.metadata["colour"] == "blue"
    if is_dirty:
        assert found.metadata["mode"] == str(0o100600)
    elif gets == had:
        assert found == before


def test_a_file_that_another_client_removes_while_its_lock_is_asked_for_is_gone(
    mount: Composed, store: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listing has shown that meanwhile, and nothing leads to it any more."""
    held, outcomes = trio.Event(), dict[str, Any]()

    async def slowly(*_: Any) -> None:
        await held.wait()

    async def begin() -> None:
        await put_all(store, {"file": b"bytes", "other": b""})
        monkeypatch.setattr(mount.parts.attributes.protection, "require", slowly)
        await begun(mount, partial(told, outcomes, "rename", partial(mount.rename, "file", "moved")))
        await store.delete("file")

    mount.loop.run(begin)
    mount.loop.passes(2 * TTL)
    assert set(mount.loop.run(mount.tree)) == {"other"}
    mount.loop.run(partial(settled, held))
    assert outcomes["rename"].startswith(("FileNotFoundError", "OSError(116")), outcomes
    assert bodies(store) == {"other": b""}


def test_a_file_that_is_forgotten_while_its_lock_is_asked_for_has_its_number_under_the_new_name(
    mount: Composed, store: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = trio.Event()

    async def slowly(*_: Any) -> None:
        await held.wait()

    async def main() -> None:
        await put_all(store, {"file": bytes(5000)})
        inode = await mount._walk("file")
        inode.lookups = 1
        monkeypatch.setattr(mount.parts.attributes.protection, "require", slowly)
        await begun(mount, partial(mount.rename, "file", "moved"))
        mount.loop._clock.jump(TTL)
        forget(mount)
        assert mount.parts.inodes.find(inode.number) is None
        await settled(held)
        assert mount.parts.inodes[inode.number] is inode is await mount._walk("moved")
        assert (inode.lookups, mount.parts.inodes.key(inode)) == (1, "moved")

    mount.loop.run(main)


def test_a_file_that_another_client_removes_while_its_new_name_is_waited_for_is_gone(
    mount: Composed, store: Held
) -> None:
    """What had that name is being removed, and a listing has shown meanwhile that the file is gone."""
    outcomes = dict[str, Any]()

    async def begin() -> None:
        await put_all(store, {"file": b"bytes", "moved": b"old", "other": b"", "another": b""})
        await mount.unlink("another")
        store.before["delete", "moved"] = store.before["delete_many"] = trio.Event()
        await mount.unlink("moved")
        await begun(mount, partial(told, outcomes, "rename", partial(mount.rename, "file", "moved")))
        assert outcomes == {}
        await store.delete("file")

    mount.loop.run(begin)
    mount.loop.passes(2 * TTL)
    assert set(mount.loop.run(mount.tree)) == {"other"}
    mount.loop.run(partial(settled, store.before["delete_many"]))
    assert outcomes["rename"].startswith(("FileNotFoundError", "OSError(116")), outcomes
    assert bodies(store) == {"other": b""}


@pytest.mark.promise(3)
@both
def test_a_kill_while_the_records_of_a_rename_change_leaves_all_that_was_written(
    tmp_path: Path, old: str, new: str
) -> None:
    """That it is done, and that the bytes which wait belong to the new name, is noted at once."""
    store, killed = FakeStore(), tmp_path / "killed"

    async def main() -> None:
        await put_all(store, {old: b"bytes"})
        await mount.write(old, b", more", flags=os.O_APPEND)
        drop = mount._journal.drop_rename

        def drop_and_keep(row: int) -> None:
            drop(row)
            mount.keep_state(killed)

        mount._journal.drop_rename = drop_and_keep  # type: ignore[method-assign]
        await mount.rename(*tops(old, new))

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(main)
        assert bodies(store) == {new: b"bytes"}
        mount.crash_before(killed)
        mount.start()
        mount.loop.passes(LONG)
        assert bodies(store) == {new: b"bytes, more"}


def test_what_is_made_in_a_directory_while_it_is_renamed_outlives_a_crash(tmp_path: Path) -> None:
    """Its record names the new key as soon as the tree does."""
    store, held = Held(), trio.Event()

    async def main() -> None:
        await put_all(store, {"d/a": b"a"})
        directory = await mount._walk("d")
        await mount.parts.listings.complete(directory)
        store.before["copy", "d/a"] = held
        await begun(mount, partial(mount.rename, "d", "e"))
        handle = await mount._opened(directory, b"new", os.O_CREAT | os.O_WRONLY)
        await mount.parts.file_io.write(handle, 0, b"bytes")
        await begun(mount, partial(mount.parts.file_io.flush, handle))
        del store.before["copy", "d/a"]
        await settled(held)

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(main)
        mount.crash()
        mount.start()
        mount.loop.passes(LONG)
        assert bodies(store) == {"e/a": b"a", "e/new": b"bytes"}


@pytest.mark.promise(5)
def test_who_has_a_file_open_keeps_its_size_where_theirs_is_renamed_with_the_directory(
    mount: Composed, store: Held
) -> None:
    ours, theirs = b"A" * 300_000, b"B" * 400_000

    async def main() -> None:
        await put_all(store, {"d/file": ours})
        handle = await opened(mount, os.O_RDONLY, "d/file")
        assert bytes(await mount.parts.file_io.read(handle, 0, 10)) == ours[:10]
        copying = store.before["copy"] = trio.Event()
        await begun(mount, partial(mount.rename, "d", "e"))
        await put_all(store, {"d/file": theirs})
        await settled(copying)
        assert (handle.inode.size, (await mount._walk("e/file")).size) == (len(ours), len(theirs))
        await closed(mount, handle)

    mount.loop.run(main)


def test_attributes_that_wait_go_with_the_file_that_is_replaced(mount: Composed, store: Held) -> None:
    async def main() -> None:
        await put_all(store, {"file": b"bytes", "moved": b"old"})
        inode = await mount._walk("moved")
        inode.mode = stat.S_IFREG | 0o600
        mount.parts.attributes.changed(inode)
        await mount.rename("file", "moved")
        assert mount.parts.pending == 0

    mount.loop.run(main)
    mount.loop.passes(LONG)
    assert mount.loop.run(mount.tree) == {"moved": (b"bytes", 0o644)}


def test_bytes_that_wait_go_with_the_file_that_is_replaced_whenever_it_is_killed(tmp_path: Path) -> None:
    store, killed = FakeStore(), tmp_path / "killed"

    async def main() -> None:
        await put_all(store, {"file": b"bytes", "moved": b"old"})
        await mount.write("moved", b", more", flags=os.O_APPEND)
        flushed = mount._journal.flushed

        async def keep() -> None:
            if not killed.exists() and not await _renames(mount):
                mount.keep_state(killed)
            await flushed()

        mount._journal.flushed = keep  # type: ignore[method-assign]
        await mount.rename("file", "moved")

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(main)
        mount.crash_before(killed)
        mount.start()
        mount.loop.passes(LONG)
        assert bodies(store) == {"moved": b"bytes"}


def test_an_old_name_whose_removal_waits_in_the_queue_is_not_listed(mount: Composed, store: Held) -> None:
    async def main() -> None:
        await put_all(store, {"file": b"bytes", "other": b""})
        await mount.unlink("other")
        store.before["delete", "file"] = trio.Event()
        await mount.rename("file", "moved")

    mount.loop.run(main)
    mount.loop.passes(2 * TTL)
    assert ("delete", "file") in store.reached
    assert set(mount.loop.run(mount.tree)) == {"moved"}


def test_a_new_file_whose_storing_got_no_answer_leaves_nothing_under_its_old_name(mount: Composed, store: Held) -> None:
    async def main() -> None:
        store.lost.add("file")
        with fails(errno.EIO):
            await mount.write("file", b"bytes", flags=os.O_CREAT)
        assert bodies(store) == {"file": b"bytes"}
        await mount.rename("file", "moved")

    mount.loop.run(main)
    mount.loop.passes(LONG)
    assert bodies(store) == {"moved": b"bytes"}
    assert set(mount.loop.run(mount.tree)) == {"moved"}


@both
def test_another_clients_bytes_keep_the_acl_and_the_class_that_they_have(
    mount: Composed, store: Held, old: str, new: str
) -> None:
    """Known here is that the version before had none; or its ACL was asked for just before it was replaced."""
    held = trio.Event()

    async def main() -> None:
        await mount.parts.commits.commit(await _written(mount, old))
        assert "friend" not in readers(store, old)
        store.before["copy", old] = held
        await begun(mount, partial(mount.rename, *tops(old, new)))
        assert store.reached
        await store.put(old, b"theirs, longer", CARRIED, acl=FRIEND)
        await settled(held)

    mount.loop.run(main)
    mount.loop.passes(5)
    assert bodies(store)[new] == b"theirs, longer"
    assert store._stored[new].object.properties.storage_class == "COLD"
    assert "friend" in readers(store, new)


async def _written(mount: Composed, path: str) -> Inode:
    """A file of this mount."""
    if "/" in path:
        await mount.mkdir(path.partition("/")[0])
    await mount.write(path, b"bytes", flags=os.O_CREAT)
    return await mount._walk(path)


def test_another_clients_bytes_keep_the_type_that_they_have(mount: Composed, store: Held) -> None:
    """Known here is the version before."""
    theirs = Properties(Headers("text/plain"), {"theirs": "yes"})

    async def main() -> None:
        await store.put("a.txt", b"bytes", CARRIED)
        await _glanced_at(mount, "a.txt")
        await store.put("a.txt", b"theirs, longer", theirs)
        await mount.rename("a.txt", "a.html")

    mount.loop.run(main)
    assert bodies(store) == {"a.html": b"theirs, longer"}
    assert store._stored["a.html"].object.properties == theirs


def test_what_nobody_has_looked_at_keeps_all_that_it_has_when_its_directory_is_renamed(
    mount: Composed, store: Held
) -> None:
    async def main() -> None:
        await store.put("d/below/file", b"bytes", CARRIED, acl=FRIEND)
        await mount.rename("d", "e")
        assert bodies(store) == {"e/below/file": b"bytes"}

    mount.loop.run(main)
    found = store._stored["e/below/file"].object.properties
    assert (found.headers, found.storage_class, found.metadata["colour"]) == (CARRIED.headers, "COLD", "blue")
    assert "friend" in readers(store, "e/below/file")


@both
def test_attributes_that_change_while_a_rename_copies_are_not_lost(
    mount: Composed, store: Held, old: str, new: str
) -> None:
    held = trio.Event()

    async def main() -> None:
        await put_all(store, {old: b"bytes"})
        inode = await mount._walk(old)
        inode.mode = stat.S_IFREG | 0o640
        mount.parts.attributes.changed(inode)
        store.before["copy"] = held
        await begun(mount, partial(mount.rename, *tops(old, new)))
        inode.mode = stat.S_IFREG | 0o600
        mount.parts.attributes.changed(inode)
        await settled(held)

    mount.loop.run(main)
    mount.loop.passes(10)
    assert store._stored[new].object.properties.metadata["mode"] == str(0o100600)
    assert bodies(store) == {new: b"bytes"}


@both
def test_attributes_that_changed_while_a_rename_copied_outlive_a_crash(tmp_path: Path, old: str, new: str) -> None:
    """Their record names the new key as soon as the tree does."""
    store, held = Held(), trio.Event()

    async def main(mount: Composed) -> None:
        await put_all(store, {old: b"bytes"})
        inode = await mount._walk(old)
        inode.mode = stat.S_IFREG | 0o640
        mount.parts.attributes.changed(inode)
        store.before["copy"] = held
        await begun(mount, partial(mount.rename, *tops(old, new)))
        inode.mode = stat.S_IFREG | 0o600
        mount.parts.attributes.changed(inode)
        del store.before["copy"]
        await settled(held)
        assert bodies(store) == {new: b"bytes"}

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))
        mount.crash()
        mount.start()
        assert mount.loop.run(mount.tree)[new] == (b"bytes", 0o600)


def test_so_do_those_of_a_directory_that_has_no_marker(tmp_path: Path) -> None:
    """Of which nothing was copied; under its old key they would make the old directory anew."""
    store, held = Held(), trio.Event()

    async def main(mount: Composed) -> None:
        await put_all(store, {"d/below/file": b"bytes"})
        inode = await mount._walk("d/below")
        store.before["copy"] = held
        await begun(mount, partial(mount.rename, "d", "e"))
        inode.mode = stat.S_IFDIR | 0o700
        mount.parts.attributes.changed(inode)
        del store.before["copy"]
        await settled(held)

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))
        mount.crash()
        mount.start()
        assert stat.S_IMODE(mount.loop.run(partial(mount._walk, "e/below")).mode) == 0o700
        mount.loop.passes(LONG)
        assert bodies(store) == {"e/below/": b"", "e/below/file": b"bytes"}


@pytest.mark.parametrize("durability", list(Durability))
def test_attributes_that_a_rename_took_along_are_not_written_again(tmp_path: Path, durability: Durability) -> None:
    store = Held()

    async def main(mount: Composed) -> None:
        await put_all(store, {"file": b"bytes"})
        inode = await mount._walk("file")
        inode.mode = stat.S_IFREG | 0o600
        mount.parts.attributes.changed(inode)
        await mount.rename("file", "moved")
        assert mount.parts.pending == 0

    with composed(store, tmp_path, durability=durability) as mount:
        mount.loop.run(partial(main, mount))
        mount.loop.passes(5)
        assert store.calls["copy"] == 1
        assert store._stored["moved"].object.properties.metadata["mode"] == str(0o100600)


@both
@pytest.mark.parametrize("theirs", [b"theirs, longer", b"BYTES"])
def test_what_another_client_stored_meanwhile_is_what_is_renamed(
    mount: Composed, store: Held, old: str, new: str, theirs: bytes
) -> None:
    held = trio.Event()

    async def main() -> None:
        await put_all(store, {old: b"bytes"})
        await mount._walk(old)
        store.before["copy"] = held
        await begun(mount, partial(mount.rename, *tops(old, new)))
        await store.put(old, theirs, Properties(metadata={"mode": str(0o100755)}))
        await settled(held)

    mount.loop.run(main)
    assert bodies(store) == {new: theirs}
    mount.loop.passes(2 * TTL)
    assert mount.loop.run(mount.tree)[new] == (theirs, 0o755)


def test_what_another_client_stores_after_it_was_copied_does_not_go_with_the_old_name(
    mount: Composed, store: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a directory that takes long, whose last copy is held; of a large file, whose copy takes long itself."""
    monkeypatch.setattr("sosfs.namespace.rename.LOOKED_AT", 5)
    held = trio.Event()

    async def main() -> None:
        await put_all(store, {"d/a": b"bytes", "d/z": b"z", "file": b"bytes"})
        await mount._walk("file")
        store.after["copy", "d/z"] = store.after["copy", "file"] = held
        await begun(mount, partial(mount.rename, "d", "e"))
        await begun(mount, partial(mount.rename, "file", "moved"))
        for key in ("d/a", "file"):
            await type(store).put(store, key, b"theirs", Properties(metadata={"mode": str(0o100755)}))
        await settled(held)

    mount.loop.run(main)
    assert bodies(store) == {"e/a": b"theirs", "e/z": b"z", "moved": b"theirs"}
    mount.loop.passes(2 * TTL)
    assert mount.loop.run(mount.tree) == {
        "e": None, "e/a": (b"theirs", 0o755), "e/z": (b"z", 0o644), "moved": (b"theirs", 0o755)
    }  # fmt: skip


@pytest.mark.parametrize("when", ["before it is listed", "after it was copied"])
@pytest.mark.parametrize("ours", ["an owner", "bytes"])
def test_what_another_client_sets_of_a_file_stays_when_its_directory_is_renamed(
    mount: Composed, store: Held, when: str, ours: str
) -> None:
    """It was asked for here just before, and what was changed here waits: of other attributes, or of bytes."""
    held, kept = trio.Event(), {"mode": str(0o100644), "uid": "0", "gid": "0", "mtime": "1"}
    before, theirs = Properties(metadata=kept), Properties(metadata=kept | {"mode": str(0o100600), "colour": "blue"})

    async def change() -> None:
        store._clock = lambda: time.time() + 100
        await type(store).put(store, "d/a", b"bytes", theirs)

    async def main() -> None:
        await store.put("d/a", b"bytes", before)
        await store.put("d/z", b"z", before)
        handle = await opened(mount, path="d/a")
        if ours == "bytes":
            await mount.parts.file_io.write(handle, 0, b"B")
        else:
            handle.inode.uid = 7
            mount.parts.attributes.changed(handle.inode, posix=["uid"])
        store.after["copy", "d/z"] = held
        if when.startswith("before"):
            await change()
        await begun(mount, partial(mount.rename, "d", "e"))
        if when.startswith("after"):
            await change()
        await settled(held)
        await closed(mount, handle)

    mount.loop.run(main)
    mount.loop.passes(LONG)
    assert bodies(store) == {"e/a": b"Bytes" if ours == "bytes" else b"bytes", "e/z": b"z"}
    found = store._stored["e/a"].object.properties.metadata
    assert (int(found["mode"]) & 0o777, found["colour"]) == (0o600, "blue")
    assert found["uid"] == ("7" if ours == "an owner" else "0")


def test_what_another_client_sets_before_the_listing_stays_beside_what_is_set_here_while_it_is_copied(
    mount: Composed, store: Held
) -> None:
    """When the listing came nothing of ours waited, so that it was not asked for."""
    held, kept = trio.Event(), {"mode": str(0o100644), "uid": "0", "gid": "0", "mtime": "1"}

    async def main() -> None:
        await store.put("d/a", b"bytes", Properties(metadata=kept))
        inode = await mount._walk("d/a")
        store._clock = lambda: time.time() + 100
        await store.put("d/a", b"bytes", Properties(metadata=kept | {"uid": "9", "colour": "blue"}))
        store.before["copy"] = held
        await begun(mount, partial(mount.rename, "d", "e"))
        inode.mode = stat.S_IFREG | 0o600
        mount.parts.attributes.changed(inode, posix=["mode"])
        del store.before["copy"]
        await settled(held)

    mount.loop.run(main)
    mount.loop.passes(LONG)
    found = store._stored["e/a"].object.properties.metadata
    assert (int(found["mode"]) & 0o777, found["uid"], found["colour"]) == (0o600, "9", "blue")


def test_what_another_client_makes_in_a_directory_while_it_is_copied_stays_where_it_is(
    mount: Composed, store: Held
) -> None:
    held = trio.Event()

    async def main() -> None:
        await put_all(store, {"d/a": b"a"})
        store.before["copy"] = held
        await begun(mount, partial(mount.rename, "d", "e"))
        await type(store).put(store, "d/new", b"new", Properties())
        await settled(held)
        assert bodies(store) == {"d/new": b"new", "e/a": b"a"}

    mount.loop.run(main)
    mount.loop.passes(2 * TTL)
    assert set(mount.loop.run(mount.tree)) == {"d", "d/new", "e", "e/a"}


def test_a_directory_to_which_others_never_cease_to_write_is_not_renamed(mount: Composed, store: Held) -> None:
    written = 0

    async def main() -> None:
        await put_all(store, {"d/a": b"bytes"})
        copy = store.copy

        async def overtaken(source: str, *arguments: Any, **options: Any) -> Version:
            nonlocal written
            made = await copy(source, *arguments, **options)
            written += 1
            await type(store).put(store, source, b"%d" % written, Properties())
            return made

        store.copy = overtaken  # type: ignore[method-assign]
        with fails(errno.ESTALE):
            await mount.rename("d", "e")

    mount.loop.run(main)
    mount.loop.passes(LONG)
    assert written > 1
    assert bodies(store) == {"d/a": b"%d" % written}


def test_a_draft_does_not_replace_what_another_client_stored_before_its_directory_was_renamed(
    tmp_path: Path,
) -> None:
    store, held = Held(), trio.Event()

    async def main(mount: Composed) -> None:
        await put_all(store, {"d/file": b"bytes", "d/z": b"z"})
        await mount.write("d/file", b"B")
        store.before["copy"] = held
        await begun(mount, partial(mount.rename, "d", "e"))
        await store.put("d/file", b"theirs", Properties())
        await settled(held)

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(main, mount))
        mount.loop.passes(5)
        found = bodies(store)
        assert found.pop("e/file") == b"theirs"
        assert found.pop("e/z") == b"z"
        ((key, body),) = found.items()
        assert key.startswith("e/file.conflict-")
        assert body[:1] == b"B"


@pytest.mark.parametrize("is_new", [True, False])
def test_so_it_is_after_a_crash(tmp_path: Path, is_new: bool) -> None:
    """The record of the bytes has followed the rename, though another client's version has taken their place."""
    store = Held()

    async def main(mount: Composed) -> None:
        await put_all(store, {"d/z": b"z"} | ({} if is_new else {"d/file": b"bytes"}))
        await mount.write("d/file", b"BYTES", flags=os.O_CREAT)
        await type(store).put(store, "d/file", b"theirs", Properties())
        await mount.rename("d", "e")
        assert set(bodies(store)) == {"e/file", "e/z"}

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(main, mount))
        mount.crash()
        mount.start()
        mount.loop.passes(5)
        found = bodies(store)
        assert found.pop("e/file") == b"theirs"
        assert found.pop("e/z") == b"z"
        ((key, body),) = found.items()
        assert key.startswith("e/file.conflict-")
        assert body == b"BYTES"


@pytest.mark.parametrize("is_dirty", [False, True], ids=["clean", "with attributes that wait"])
def test_bytes_that_another_client_stored_again_are_the_file_with_what_that_one_set(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, is_dirty: bool
) -> None:
    """`cp -p` over itself: what was set here holds for these bytes as well."""
    now = [7.0]
    store = Held(clock=lambda: now[0])

    async def main(mount: Composed) -> None:
        await put_all(store, {"d/file": b"bytes"})
        inode = await mount._walk("d/file")
        inode.lookups += 1
        if is_dirty:
            inode.mode = stat.S_IFREG | 0o600
            mount.parts.attributes.changed(inode)
        now[0] += 100
        theirs = Properties(metadata={"mode": str(0o100640)})
        await type(store).put(store, "d/file", b"bytes", theirs)
        await mount.rename("d", "e")
        assert (await mount.tree())["e/file"] == (b"bytes", 0o600 if is_dirty else 0o640)

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))
        mount.loop.passes(10)
        found = store._stored["e/file"].object.properties.metadata
        assert int(found["mode"]) & 0o7777 == (0o600 if is_dirty else 0o640)
        assert "is lost" not in caplog.text


def test_who_reads_what_another_client_replaced_gets_none_of_the_other_bytes(mount: Composed, store: Held) -> None:
    async def main() -> None:
        await put_all(store, {"d/file": b"A" * 5000, "d/z": b"z"})
        handle = await opened(mount, os.O_RDONLY, "d/file")
        assert bytes(await mount.parts.file_io.read(handle, 0, 10)) == b"A" * 10
        mount.parts.blocks.forget(lambda key: True)
        await type(store).put(store, "d/file", b"B" * 6000, Properties())
        await mount.rename("d", "e")
        try:
            assert bytes(await mount.parts.file_io.read(handle, 10, 4000)) == b"A" * 4000
        except OSError as error:
            assert error.errno == errno.ESTALE
        await mount.parts.file_io.release(handle)

    mount.loop.run(main)


class Otherwise(FakeStore):
    """Its listings tell another ETag than all else, as where they are made of an index."""

    async def list(self, prefix: str, **options: Any) -> Page:
        page = await super().list(prefix, **options)
        told = [replace(one, version=replace(one.version, etag=f"{one.version.etag}-1")) for one in page.objects]
        return replace(page, objects=tuple(told))


def test_a_directory_is_renamed_where_a_listing_tells_another_etag_than_the_object(tmp_path: Path) -> None:
    store = Otherwise()
    with composed(store, tmp_path) as mount:
        mount.loop.run(lambda: put_all(store, {"a/": b"", "a/x": b"x"}))
        mount.loop.run(partial(mount.rename, "a", "b"))
        assert bodies(store) == {"b/": b"", "b/x": b"x"}


def test_a_rename_asks_for_nothing_where_the_new_name_tells_no_other_content_type(mount: Composed, store: Held) -> None:
    """A symbolic link has none that its name has told, whatever that ends in."""

    async def main() -> None:
        await put_all(store, {"a.txt": bytes(2 << 20)})
        await mount._walk("a.txt")
        asked = store.calls["head"]
        await mount.rename("a.txt", "b.txt")
        assert store.calls["head"] == asked
        root = mount.parts.inodes.root
        await mount.parts.creations.make_object(root, b"link.txt", stat.S_IFLNK | 0o777, 0, 0, body=b"b.txt")
        before = store._stored["link.txt"].object.properties
        await mount.rename("link.txt", "link.html")
        assert store._stored["link.html"].object.properties == before

    mount.loop.run(main)


def test_what_another_client_removes_while_its_directory_is_renamed_is_gone(mount: Composed, store: Held) -> None:
    """After the listing, before the copy: that is no reason for the rest to stay."""
    held = trio.Event()

    async def main() -> None:
        await put_all(store, {"d/a": b"a", "d/gone": b"gone"})
        store.before["copy", "d/gone"] = held
        await begun(mount, partial(mount.rename, "d", "e"))
        await type(store).delete(store, "d/gone")
        await settled(held)
        assert bodies(store) == {"e/a": b"a"}
        assert set(await mount.tree()) == {"e", "e/a"}

    mount.loop.run(main)
    assert mount.parts.pending == 0


def test_a_directory_of_several_pages_is_renamed_as_a_whole(tmp_path: Path) -> None:
    store, keys = Held(page=2), [f"d/{number}" for number in range(5)]

    async def main(mount: Composed) -> None:
        await put_all(store, dict.fromkeys(keys, b"x"))
        await mount.rename("d", "e")

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))
        assert sorted(bodies(store)) == [key.replace("d", "e") for key in keys]


def test_a_copy_that_a_listing_does_not_show_yet_is_looked_at(
    mount: Composed, store: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = store.list

    async def behind(prefix: str, **options: Any) -> Page:
        page: Page = await listed(prefix, **options)
        return replace(page, objects=tuple(one for one in page.objects if one.key != "e/b"))

    async def main() -> None:
        await put_all(store, {"d/a": b"a", "d/b": b"b"})
        with monkeypatch.context() as patch:
            patch.setattr(store, "list", behind)
            await mount.rename("d", "e")
        assert bodies(store) == {"e/a": b"a", "e/b": b"b"}

    mount.loop.run(main)
    assert mount.parts.pending == 0


def test_so_is_what_another_client_replaces_and_then_removes(mount: Composed, store: Held) -> None:
    copying, asking = trio.Event(), trio.Event()

    async def main() -> None:
        await put_all(store, {"d/a": b"a", "d/gone": b"gone"})
        store.before |= {("copy", "d/gone"): copying, ("head", "d/gone"): asking}
        await begun(mount, partial(mount.rename, "d", "e"))
        await put_all(store, {"d/gone": b"other"})
        await settled(copying)
        assert ("head", "d/gone") in store.reached
        await type(store).delete(store, "d/gone")
        await settled(asking)
        assert bodies(store) == {"e/a": b"a"}
        assert set(await mount.tree()) == {"e", "e/a"}

    mount.loop.run(main)
    assert mount.parts.pending == 0


def test_a_directory_that_another_client_has_emptied_is_renamed_with_what_is_not_sent(tmp_path: Path) -> None:
    store = Held()

    async def main(mount: Composed) -> None:
        await put_all(store, {"d/x": b"x"})
        await mount.write("d/new", b"new", flags=os.O_CREAT)
        await type(store).delete(store, "d/x")
        await mount.rename("d", "e")

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(main, mount))
        mount.loop.passes(5)
        mount.loop.run(mount.settle)
        assert bodies(store) == {"e/new": b"new"}


def test_what_is_being_removed_does_not_come_back_with_the_directory_that_it_was_in(
    mount: Composed, store: Held
) -> None:
    held = trio.Event()

    async def main() -> None:
        await put_all(store, {"proof": b"", "d/x": b"x", "d/y": b"y"})
        await mount.unlink("proof")
        store.before["delete", "d/x"] = held
        await mount.unlink("d/x")
        await begun(mount, partial(mount.rename, "d", "e"))
        await settled(held)

    mount.loop.run(main)
    mount.loop.passes(5)
    assert bodies(store) == {"e/y": b"y"}


def test_a_directory_without_marker_stays_when_its_last_file_is_renamed(mount: Composed, store: Held) -> None:
    async def main() -> None:
        await put_all(store, {"d/x": b"x", "e/y/z": b"z"})
        await mount.rename("d/x", "x")
        await mount.rename("e/y", "y")

    mount.loop.run(main)
    mount.loop.passes(2 * TTL)
    assert set(mount.loop.run(mount.tree)) == {"d", "e", "x", "y", "y/z"}


def test_both_directories_have_changed_by_a_rename(mount: Composed, store: Held) -> None:
    async def main() -> None:
        await put_all(store, {"d/x": b"x", "d/y": b"y", "e/z": b"z"})
        parents = [await mount._walk(path) for path in "de"]
        for inode in parents:
            inode.lookups, inode.mtime_ns, inode.ctime_ns = 1, 1, 1
        await mount.rename("d/x", "e/x")
        assert all(inode.mtime_ns > 1 and inode.ctime_ns > 1 for inode in parents)

    mount.loop.run(main)


# Order: nothing goes before its copy is there, and what fails leaves the old tree


@both
def test_the_old_key_stays_until_the_copy_is_there(mount: Composed, store: Held, old: str, new: str) -> None:
    held = trio.Event()

    async def main() -> None:
        await put_all(store, {old: b"bytes"})
        store.before["copy"] = held
        await begun(mount, partial(mount.rename, *tops(old, new)))
        assert bodies(store) == {old: b"bytes"}
        assert store.calls["delete"] + store.calls["delete_many"] == 0
        assert len(await _renames(mount)) == 1, "a crash now would leave half of it"
        await settled(held)
        assert bodies(store) == {new: b"bytes"}
        assert await _renames(mount) == []
        assert mount.parts.pending == 0, "nothing goes under the old name any more"

    mount.loop.run(main)


def test_a_copy_that_fails_leaves_the_old_tree_as_it_was(mount: Composed, store: Held) -> None:
    before = {f"d/{number}": b"%d" % number for number in range(5)}

    async def main() -> None:
        await put_all(store, before)
        store.errors["copy", "d/3"] = [silence("copy")]
        with fails(errno.EIO):
            await mount.rename("d", "e")
        assert bodies(store) == before
        assert {path for path in await mount.tree() if "/" in path} == set(before)

    mount.loop.run(main)
    mount.loop.passes(120)  # it had no answer, and might have been made late
    assert mount.loop.run(lambda: _renames(mount)) == []
    assert bodies(store) == before
    mount.loop.passes(LONG)
    assert bodies(store) == before


def test_a_copy_that_fails_leaves_the_empty_directory_that_was_to_be_replaced(mount: Composed, store: Held) -> None:
    before = {"d/": b"", "d/x": b"x", "e/": b""}

    async def main() -> None:
        await put_all(store, before)
        store.errors["copy", "d/x"] = [silence("copy")]
        with fails(errno.EIO):
            await mount.rename("d", "e")
        assert bodies(store) == before

    mount.loop.run(main)


def test_a_file_copy_that_fails_leaves_the_file_and_what_it_was_to_replace(mount: Composed, store: Held) -> None:
    async def main() -> None:
        await put_all(store, {"file": b"bytes", "moved": b"there"})
        store.errors["copy", "file"] = [silence("copy")]
        with fails(errno.EIO):
            await mount.rename("file", "moved")
        assert bodies(store) == {"file": b"bytes", "moved": b"there"}
        assert await _renames(mount) == []
        assert await mount.tree() == {"file": (b"bytes", 0o644), "moved": (b"there", 0o644)}

    mount.loop.run(main)


@pytest.mark.parametrize("by", ["name", "number"])
@pytest.mark.parametrize("what", ["head", "copy"])
def test_what_a_rename_that_failed_has_replaced_all_the_same_is_seen_at_once(
    mount: Composed, store: Held, what: str, by: str
) -> None:
    """The copy got no answer; or that of an empty file was looked at before the old name goes, and nobody answers."""

    async def main() -> None:
        await put_all(store, {"file": b"", "moved": b"there"})
        await mount.tree()
        kernel, known = Kernel(), await mount._walk("moved")
        mount.parts.pages._kernel = kernel
        store.unanswered[what, "file" if what == "copy" else "moved"] = [silence(what)]
        with fails(errno.EIO):
            await mount.rename("file", "moved")
        assert bodies(store) == {"file": b"", "moved": b""}
        assert kernel.attributes == [known.number], "it had the size of what was there before, until that was too old"
        await trio.testing.wait_all_tasks_blocked()
        assert kernel.names == [(mount.parts.inodes.root.number, b"moved")]
        mount.loop._clock.jump(0.001)
        now = await (mount._walk("moved") if by == "name" else mount.parts.attributes.revalidate(known))
        assert now.size == 0
        assert await mount.tree() == {"file": (b"", 0o644), "moved": (b"", 0o644)}

    mount.loop.passes(2 * TTL)
    mount.loop.run(main)


@pytest.mark.parametrize("then", ["unlink", "close"])
def test_a_copy_over_what_is_not_in_the_bucket_yet_is_taken_back(mount: Composed, store: Held, then: str) -> None:
    """The name is the other file's still, which came back with the copy's bytes when it was removed, or conflicted."""

    async def main() -> None:
        await put_all(store, {"file": b""})
        handle = await mount._opened(*await mount._parent("new"), os.O_CREAT | os.O_RDWR)
        await mount.parts.file_io.write(handle, 0, b"ours")
        store.errors["head", "new"] = [silence("head")]
        with fails(errno.EIO):
            await mount.rename("file", "new")
        if then == "unlink":
            await mount.unlink("new")
        await closed(mount, handle)
        await mount.settle()

    mount.loop.run(main)
    assert bodies(store) == {"file": b""} | ({"new": b"ours"} if then == "close" else {})


@pytest.mark.parametrize(
    ("copies", "body"), [("errors", b"bytes"), ("unanswered", b"ours")], ids=["refused", "unanswered"]
)
def test_a_file_that_goes_up_after_a_rename_over_it_failed_is_not_taken_for_the_copy(
    mount: Composed, store: Held, copies: str, body: bytes
) -> None:
    """It may have the same bytes, as after `cp -p`. Where the copy was made without an answer it was a conflict."""

    async def main() -> None:
        await put_all(store, {"file": b"bytes"})
        handle = await mount._opened(*await mount._parent("new"), os.O_CREAT | os.O_RDWR)
        await mount.parts.file_io.write(handle, 0, body)
        getattr(store, copies)["copy", "file"] = [silence("copy")]
        with fails(errno.EIO):
            await mount.rename("file", "new")
        await closed(mount, handle)

    mount.loop.run(main)
    mount.loop.passes(LONG)
    assert bodies(store) == {"file": b"bytes", "new": body}
    assert mount.parts.pending == 0


def test_a_new_directory_keeps_its_mode_where_a_failed_rename_has_copied_a_marker_over_it(tmp_path: Path) -> None:
    store, theirs = Held(), Properties(metadata={"mode": str(stat.S_IFDIR | 0o700)})

    async def main(mount: Composed) -> None:
        await put_all(store, {"d/file": b"bytes"})
        await store.put("d/", b"", theirs)
        await mount.mkdir("new")
        store.unanswered["copy", "d/"] = [silence("copy")]
        with fails(errno.EIO):
            await mount.rename("d", "new")

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(main, mount))
        mount.loop.passes(LONG)
        assert bodies(store) == {"d/": b"", "d/file": b"bytes", "new/": b""}
        assert store._stored["new/"].object.properties.metadata["mode"] == str(stat.S_IFDIR | 0o755)
        assert mount.parts.pending == 0


def test_a_new_directory_stays_where_the_marker_that_a_failed_rename_has_copied_over_it_goes(tmp_path: Path) -> None:
    store = Held()

    async def main(mount: Composed) -> None:
        await put_all(store, {"d/": b"", "d/file": b"bytes"})
        await mount.mkdir("new")
        store.errors["copy", "d/file"] = [denied("copy")]
        store.errors["delete", "new/"] = [silence("delete")]
        with fails(errno.EACCES):
            await mount.rename("d", "new")
        assert set(bodies(store)) == {"d/", "d/file", "new/"}

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(main, mount))
        mount.loop.passes(LONG)
        assert bodies(store) == {"d/": b"", "d/file": b"bytes", "new/": b""}
        assert mount.parts.pending == 0


@pytest.mark.parametrize("durability", [Durability.BUCKET, Durability.JOURNAL])
def test_no_directory_is_replaced_in_which_something_is_made_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durability: Durability
) -> None:
    """As by a mkdir that goes on for a caller that is gone, and with it the kernel's lock on the directory."""
    store, asking, outcomes = Held(), trio.Event(), dict[str, Any]()

    async def slowly(*_: Any) -> None:
        await asking.wait()

    async def main(mount: Composed) -> None:
        await put_all(store, {"d/": b"", "d/file": b"bytes", "e/": b""})
        with monkeypatch.context() as patch:
            patch.setattr(mount.parts.attributes.protection, "require", slowly)
            await begun(mount, partial(told, outcomes, "rename", partial(mount.rename, "d", "e")))
        await mount.mkdir("e/new")
        await settled(asking)
        assert outcomes["rename"] == repr(refuse(errno.ENOTEMPTY))
        assert set(await mount.tree()) == {"d", "d/file", "e", "e/new"}

    with composed(store, tmp_path, durability=durability) as mount:
        mount.loop.run(partial(main, mount))
        mount.loop.passes(LONG)
        assert set(bodies(store)) == {"d/", "d/file", "e/", "e/new/"}


def test_a_directory_is_not_renamed_to_where_the_copy_of_a_file_may_come_yet(mount: Composed, store: Held) -> None:
    async def main() -> None:
        await put_all(store, {"file": b"bytes", "d/": b"", "d/x": b"x"})
        store.errors["copy", "file"] = [silence("copy")]
        store.errors["head", "b"] = [silence("head")] * 3
        with fails(errno.EIO):
            await mount.rename("file", "b")
        with fails(errno.EIO):
            await mount.rename("d", "b")
        del store.errors["head", "b"]
        await mount.rename("d", "b")
        assert await _renames(mount) == []

    mount.loop.run(main)
    assert bodies(store) == {"file": b"bytes", "b/": b"", "b/x": b"x"}


@pytest.mark.parametrize("replaced", [False, True])
def test_a_delete_that_is_refused_takes_the_copy_back_unless_it_has_replaced_a_file(
    mount: Composed, store: Held, replaced: bool
) -> None:
    async def main() -> None:
        await put_all(store, {"file": b"bytes", **({"moved": b"there"} if replaced else {})})
        store.errors["delete", "file"] = [denied("delete")]
        with fails(errno.EACCES):
            await mount.rename("file", "moved")
        assert bodies(store) == {"file": b"bytes", **({"moved": b"bytes"} if replaced else {})}
        assert await _renames(mount) == []

    mount.loop.run(main)


def test_a_directory_of_which_nothing_may_be_removed_is_not_renamed(mount: Composed, store: Held) -> None:
    before = {f"d/{number}": b"%d" % number for number in range(3)}

    def fault(operation: str, key: str) -> None:
        if operation == "delete" and key.startswith("d/"):
            raise denied("delete")

    async def main() -> None:
        await put_all(store, before)
        store.fault = fault
        with fails(errno.EACCES):
            await mount.rename("d", "e")
        assert bodies(store) == before
        assert await _renames(mount) == []
        store.fault = None

    mount.loop.run(main)


def test_a_directory_of_which_one_key_may_not_be_removed_is_renamed_and_that_one_tried_on(
    mount: Composed, store: Held
) -> None:
    def fault(operation: str, key: str) -> None:
        if (operation, key) == ("delete", "d/1"):
            raise denied("delete")

    async def main() -> None:
        await put_all(store, {f"d/{number}": b"%d" % number for number in range(3)})
        store.fault = fault
        await mount.rename("d", "e")
        assert bodies(store) == {"d/1": b"1", **{f"e/{number}": b"%d" % number for number in range(3)}}
        assert mount.parts.deletions.under("d/") == {"d/", "d/1"}
        assert set(await mount.tree()) == {"e", "e/0", "e/1", "e/2"}
        store.fault = None

    mount.loop.run(main)
    mount.loop.passes(60)
    assert bodies(store) == {f"e/{number}": b"%d" % number for number in range(3)}
    assert mount.parts.pending == 0


@both
def test_a_rename_whose_record_finds_no_room_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str
) -> None:
    """Neither now nor by the next mount, for whom half a record would be that of an older sosfs: to be finished."""
    store = Held()

    def full(journal: Journal, row: int, state: str, need: Need = Need.RELIEF) -> None:
        raise OSError(errno.ENOSPC, "the journal: no space left on device")

    async def main(mount: Composed) -> None:
        await put_all(store, {old: b"bytes"})
        with monkeypatch.context() as patch:
            patch.setattr(Journal, "set_rename", full)
            with fails(errno.ENOSPC):
                await mount.rename(*tops(old, new))
        assert bodies(store) == {old: b"bytes"}

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))
        mount.crash()
        mount.start()
        assert bodies(store) == {old: b"bytes"}


class Full:
    """A connection to a database on a disk that has no room for what is committed."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self.db = db

    def __getattr__(self, name: str) -> Any:
        return getattr(self.db, name)

    def execute(self, statement: str, values: Sequence[object] = ()) -> Any:
        """As of the connection."""
        if statement == "commit":
            refused = sqlite3.OperationalError("database or disk is full")
            refused.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise refused
        return self.db.execute(statement, values)


@both
def test_on_a_full_disk_nothing_is_copied_of_which_the_next_mount_would_not_know(
    mount: Composed, store: Held, monkeypatch: pytest.MonkeyPatch, old: str, new: str
) -> None:
    rows = mount._journal._db

    async def main() -> None:
        await put_all(store, {old: b"bytes"})
        await mount.tree()
        monkeypatch.setattr(Reserve, "give_up", lambda self: False)
        rows._db = Full(rows._db)  # type: ignore[assignment]
        try:
            with fails(errno.ENOSPC):
                await mount.rename(*tops(old, new))
        finally:
            rows._db = rows._db.db  # type: ignore[attr-defined]
        assert (bodies(store), store.calls["copy"]) == ({old: b"bytes"}, 0)
        await mount.rename(*tops(old, new))
        assert bodies(store) == {new: b"bytes"}

    mount.loop.run(main)


# A delete without an answer


@pytest.mark.parametrize("effect", ["none", "lost answer"])
@pytest.mark.parametrize("keys", ["one", "all"])
def test_old_keys_whose_delete_got_no_answer_go_all_the_same(
    mount: Composed, store: Held, keys: str, effect: str
) -> None:
    """They may be gone, so their copies stay; and they may be there, so they are tried until it is known."""
    silent = {"d/1"} if keys == "one" else {f"d/{number}" for number in range(3)}

    def fault(operation: str, key: str) -> None:
        if operation == "delete" and key in silent:
            if effect == "lost answer":
                store._stored.pop(key, None)
            raise silence("delete")

    async def main() -> None:
        await put_all(store, {f"d/{number}": b"%d" % number for number in range(3)})
        store.fault = fault
        await mount.rename("d", "e")
        assert {key for key in bodies(store) if key.startswith("e/")} == {"e/0", "e/1", "e/2"}
        waiting = silent | {"d/"}  # which goes last: the name stays hidden until then
        assert mount.parts.deletions.under("d/") == waiting
        assert {key for key, _ in mount._journal.deletes()} == waiting, "the next mount would not know of them"
        assert "d" not in await mount.tree()

    mount.loop.run(main)
    mount.loop.passes(10)
    store.fault = None
    mount.loop.passes(60)
    assert bodies(store) == {f"e/{number}": b"%d" % number for number in range(3)}
    assert mount.parts.deletions.pending == 0
    mount.loop.passes(2 * TTL)
    assert set(mount.loop.run(mount.tree)) == {"e", "e/0", "e/1", "e/2"}


def test_old_keys_whose_delete_got_no_answer_are_removed_by_the_next_mount(tmp_path: Path) -> None:
    store = Held()

    def fault(operation: str, key: str) -> None:
        if operation == "delete" and key == "d/1":
            raise silence("delete")

    async def main(mount: Composed) -> None:
        await put_all(store, {f"d/{number}": b"%d" % number for number in range(3)})
        store.fault = fault
        await mount.rename("d", "e")

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))
        mount.crash()
        store.fault = None
        mount.start()
        assert bodies(store) == {f"e/{number}": b"%d" % number for number in range(3)}


def test_an_old_key_whose_delete_got_no_answer_goes_later_and_its_name_is_gone(tmp_path: Path) -> None:
    store = Held()

    async def main(mount: Composed) -> None:
        await put_all(store, {"file": b"bytes"})
        store.errors["delete", "file"] = [silence("delete")]
        await mount.rename("file", "moved")
        assert bodies(store) == {"file": b"bytes", "moved": b"bytes"}
        assert await mount.tree() == {"moved": (b"bytes", 0o644)}
        assert [key for key, _ in mount._journal.deletes()] == ["file"]

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))
        mount.loop.passes(60)
        assert bodies(store) == {"moved": b"bytes"}
        assert mount.loop.run(mount.tree) == {"moved": (b"bytes", 0o644)}


# What is refused before anything happens


def test_what_may_not_be_renamed_is_refused_without_a_change(mount: Composed, store: Held) -> None:
    before = {"d/": b"", "d/x": b"x", "e/": b"", "e/y": b"y", "file": b"f"}

    async def main() -> None:
        await put_all(store, before)
        with fails(errno.ENOTEMPTY):
            await mount.rename("d", "e")
        with fails(errno.EINVAL):
            await mount.rename("d", "d/below")
        with fails(errno.ENOTDIR):
            await mount.rename("d", "file")
        with fails(errno.EISDIR):
            await mount.rename("file", "d")
        with fails(errno.EEXIST):
            root = mount.parts.inodes.root
            await mount.parts.renames.rename(root, b"file", await mount._walk("d"), b"x", replace=False)
        with fails(errno.ENOENT):
            await mount.rename("absent", "other")
        with fails(errno.EINVAL):
            await mount.rename("file", HIDDEN)
        assert store.calls["copy"] == 0
        assert bodies(store) == before

    mount.loop.run(main)


def test_a_name_that_is_shown_cut_short_is_renamed_and_renamed_over_and_none_is_made(
    mount: Composed, store: Held
) -> None:
    key, (shown, unknown) = "l" * 300, (name_of(letter * 300).decode() for letter in "lm")

    async def main() -> None:
        await put_all(store, {key: b"long", "file": b"f", "other": b"o"})
        await mount.rename("file", shown)
        assert bodies(store) == {key: b"f", "other": b"o"}
        with fails(errno.EINVAL):
            await mount.rename("other", unknown)
        with fails(errno.EINVAL):
            await mount.mkdir(unknown)
        with fails(errno.EINVAL):
            await mount.write(unknown, b"new", flags=os.O_CREAT)
        assert set(await mount.tree()) == {shown, "other"}
        await mount.rename(shown, "short")
        await mount.parts.deletions.drain()
        assert bodies(store) == {"short": b"f", "other": b"o"}

    mount.loop.run(main)


def test_what_stood_beside_a_directory_takes_a_name_that_is_shown_cut_short(mount: Composed, store: Held) -> None:
    key, shown = "l" * 300, name_of("l" * 300).decode()

    async def main() -> None:
        await put_all(store, {"a": b"beside", "a/x": b"x", key: b"long"})
        assert set(await mount.tree()) == {"a", "a/x", "%~fa", shown}
        await mount.rename("%~fa", shown)
        assert bodies(store) == {key: b"beside", "a/x": b"x"}
        assert await mount.tree() == {"a": None, "a/x": (b"x", 0o644), shown: (b"beside", 0o644)}

    mount.loop.run(main)


@both
def test_what_is_renamed_to_the_name_that_it_has_stays_as_it_is(
    mount: Composed, store: Held, old: str, new: str
) -> None:
    async def main() -> None:
        await put_all(store, {old: b"bytes"})
        await mount.rename(*tops(old, old))
        assert (bodies(store), store.calls["copy"]) == ({old: b"bytes"}, 0)

    mount.loop.run(main)


def test_a_directory_that_another_client_has_filled_is_not_replaced(mount: Composed, store: Held) -> None:
    async def main() -> None:
        await put_all(store, {"d/": b"", "d/x": b"x", "e/": b""})
        await mount.tree()
        await store.put("e/theirs", b"theirs", Properties())
        with fails(errno.ENOTEMPTY):
            await mount.rename("d", "e")
        assert set(bodies(store)) == {"d/", "d/x", "e/", "e/theirs"}

    mount.loop.run(main)


def test_a_directory_whose_keys_would_be_too_long_is_not_half_renamed(mount: Composed, store: Held) -> None:
    deep = "d/" + "/".join(["n" * 200] * 4) + "/" + "f" * (KEY_MAX - 2 - 4 * 201)
    before = {"d/short": b"s", deep: b"deep"}
    assert len(deep) == KEY_MAX

    async def main() -> None:
        await put_all(store, before)
        with fails(errno.ENAMETOOLONG):
            await mount.rename("d", "dd")
        assert store.calls["copy"] == 0
        assert bodies(store) == before
        await mount.rename("d", "e")
        assert bodies(store) == {"e" + key[1:]: body for key, body in before.items()}

    mount.loop.run(main)


# What is open, new, or not sent


def test_what_is_open_is_read_and_written_on_under_the_new_name(mount: Composed, store: Held) -> None:
    async def main() -> None:
        await put_all(store, {"d/file": b"o" * 5000})
        reader, writer = await opened(mount, os.O_RDONLY, "d/file"), await opened(mount, path="d/file")
        assert bytes(await mount.parts.file_io.read(reader, 0, 10)) == b"o" * 10
        mount.parts.blocks.forget(lambda key: True)
        await mount.rename("d", "e")
        assert bytes(await mount.parts.file_io.read(reader, 0, 5000)) == b"o" * 5000
        await mount.parts.file_io.write(writer, 0, b"n")
        await closed(mount, writer)
        assert bodies(store) == {"e/file": b"n" + b"o" * 4999}

    mount.loop.run(main)


@pytest.mark.parametrize("durability", list(Durability))
def test_a_file_that_is_not_sent_yet_replaces_the_one_whose_name_it_takes(
    tmp_path: Path, durability: Durability
) -> None:
    store = Held()

    async def main(mount: Composed) -> None:
        await put_all(store, {"file": b"old"})
        handle = await mount._opened(mount.parts.inodes.root, b"new", os.O_CREAT | os.O_RDWR)
        await mount.parts.file_io.write(handle, 0, b"new bytes")
        await mount.rename("new", "file")
        await closed(mount, handle)
        assert await mount.tree() == {"file": (b"new bytes", 0o644)}

    with composed(store, tmp_path, durability=durability) as mount:
        mount.loop.run(partial(main, mount))
        mount.loop.passes(5)
        assert bodies(store) == {"file": b"new bytes"}


def test_a_file_that_is_not_sent_yet_does_not_replace_what_came_after_the_rename(tmp_path: Path) -> None:
    store = Held()

    async def main(mount: Composed) -> None:
        await put_all(store, {"file": b"old"})
        await mount.write("new", b"new bytes", flags=os.O_CREAT)
        await mount.rename("new", "file")
        await store.put("file", b"theirs", Properties())

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(main, mount))
        mount.loop.passes(5)
        found = bodies(store)
        assert found.pop("file") == b"theirs"
        assert list(found.values()) == [b"new bytes"]


def test_what_was_written_to_a_file_that_is_replaced_does_not_come_back(tmp_path: Path) -> None:
    store = Held()

    async def main(mount: Composed) -> None:
        await put_all(store, {"a": b"from a", "b": b"old b"})
        await mount.write("b", b"new")
        await mount.rename("a", "b")
        assert await mount.tree() == {"b": (b"from a", 0o644)}

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(main, mount))
        mount.crash()
        mount.start()
        mount.loop.passes(5)
        assert bodies(store) == {"b": b"from a"}


def test_a_directory_that_another_has_been_renamed_over_is_that_one(mount: Composed, store: Held) -> None:
    async def main() -> None:
        await put_all(store, {"d/": b"", "d/x": b"x", "e/": b""})
        await mount.rename("d", "e")
        assert bodies(store) == {"e/": b"", "e/x": b"x"}

    mount.loop.run(main)
    mount.loop.passes(2 * TTL)
    assert set(mount.loop.run(mount.tree)) == {"e", "e/x"}
    assert stored(store, "e/x") == b"x"


# What is known of the files below a directory that was renamed


@pytest.mark.parametrize("hashes", [True, False])
def test_what_is_known_goes_on_under_the_new_name(tmp_path: Path, hashes: bool) -> None:
    store = Held(hashes=hashes)

    async def main(mount: Composed) -> None:
        await put_all(store, {"d/file": b"bytes", "d/other": b"other"})
        handle = await opened(mount, os.O_RDONLY, "d/file")
        assert bytes(await mount.parts.file_io.read(handle, 0, 2)) == b"by"
        await mount._walk("d/other")
        await mount.rename("d", "e")
        mount.parts.blocks.forget(lambda key: True)
        assert bytes(await mount.parts.file_io.read(handle, 0, 5)) == b"bytes"
        await mount.write("e/other", b"OTHER")
        await mount.chmod("e/file", 0o600)
        await mount.parts.file_io.release(handle)
        assert bodies(store) == {"e/file": b"bytes", "e/other": b"OTHER"}, "and nothing beside it"

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))


@pytest.mark.parametrize("is_dirty", [False, True], ids=["clean", "with attributes that wait"])
@pytest.mark.parametrize("is_open", [False, True])
def test_what_another_client_replaced_before_its_directory_was_renamed_is_shown_as_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, is_dirty: bool, is_open: bool
) -> None:
    store = Held()

    async def main(mount: Composed) -> None:
        await put_all(store, {"d/file": b"as it was", "d/other": b"other"})
        assert (await mount.tree())["d/file"][0] == b"as it was"  # type: ignore[index]
        inode = await mount._walk("d/file")
        inode.lookups += 1
        handle = await opened(mount, os.O_RDONLY, "d/file") if is_open else None
        if is_dirty:
            inode.mode = stat.S_IFREG | 0o600
            mount.parts.attributes.changed(inode)
        await type(store).put(store, "d/file", b"another, and longer", Properties(metadata={"mode": str(0o100640)}))
        await mount.rename("d", "e")
        assert (await mount.tree())["e/file"] == (b"another, and longer", 0o640)
        assert ("is lost" in caplog.text) == is_dirty, "the change was made to the one before"
        if handle is not None:
            await mount.parts.file_io.release(handle)

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))
        mount.loop.passes(LONG)
        assert bodies(store) == {"e/file": b"another, and longer", "e/other": b"other"}
        assert store._stored["e/file"].object.properties.metadata["mode"] == str(0o100640)


def test_what_another_client_replaced_before_a_rename_is_removed_under_its_new_name_though_the_mount_dies(
    tmp_path: Path,
) -> None:
    """The record of the removal has their version, which is the one that is there."""
    store = Held()

    async def main(mount: Composed) -> None:
        await put_all(store, {"d/file": b"as it was", "d/other": b"other"})
        await mount.tree()
        await type(store).put(store, "d/file", b"another, and longer", Properties())
        await mount.rename("d", "e")
        store.before["delete"] = trio.Event()
        await begun(mount, partial(mount.unlink, "e/file"))
        assert ("delete", "e/file") in store.reached

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))
        mount.crash()
        store.before.clear()
        mount.start()
        mount.loop.passes(LONG)
        assert bodies(store) == {"e/other": b"other"}


def test_so_is_what_is_replaced_while_its_directory_is_renamed(mount: Composed, store: Held) -> None:
    """After the listing, before the copy: what the copy then has is theirs, and all that they stored with it."""

    async def main() -> None:
        await put_all(store, {"d/file": b"as it was"})
        inode = await mount._walk("d/file")
        inode.mode = stat.S_IFREG | 0o600
        mount.parts.attributes.changed(inode)
        held = store.before["copy"] = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mount.rename, "d", "e")
            await trio.testing.wait_all_tasks_blocked()
            assert ("copy", "d/file") in store.reached
            await type(store).put(store, "d/file", b"theirs", Properties(metadata={"mode": str(0o100640)}))
            del store.before["copy"]
            held.set()
        assert await mount.tree() == {"e": None, "e/file": (b"theirs", 0o640)}

    mount.loop.run(main)
    assert store._stored["e/file"].object.properties.metadata["mode"] == str(0o100640)


@pytest.mark.parametrize("is_read", [True, False], ids=["read", "unread"])
@pytest.mark.parametrize("directory", ["", "d/"], ids=["file", "directory"])
def test_who_reads_a_file_reads_on_though_another_client_sets_its_mode_and_it_is_renamed_here(
    tmp_path: Path, is_read: bool, directory: str
) -> None:
    now = [7.0]
    store = Held(clock=lambda: now[0])

    async def main(mount: Composed) -> None:
        await put_all(store, {f"{directory}file": b"A" * 300_000})
        handle = await opened(mount, os.O_RDONLY, path=f"{directory}file")
        if is_read:
            assert bytes(await mount.parts.file_io.read(handle, 0, 1)) == b"A"
        now[0] += 100
        mode = Properties(metadata={"mode": str(0o100640)})
        await FakeStore.copy(store, f"{directory}file", f"{directory}file", properties=mode)
        mount.parts.blocks.forget(lambda key: True)
        await mount.rename(f"{directory}file".split("/")[0], "e")
        assert bytes(await mount.parts.file_io.read(handle, 200_000, 100_000)) == b"A" * 100_000
        assert (await mount.tree())["e/file" if directory else "e"] == (b"A" * 300_000, 0o640)
        await closed(mount, handle)

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))


@pytest.mark.parametrize("theirs", [b"other", b"longer" * SYMLINK_MAX], ids=["small", "large"])
def test_another_clients_file_that_is_renamed_with_its_directory_keeps_the_number_that_the_kernel_has(
    mount: Composed, store: Held, theirs: bytes
) -> None:
    async def main() -> None:
        await put_all(store, {"d/file": b"bytes"})
        inode = await mount._walk("d/file")
        inode.lookups = 1
        await put_all(store, {"d/file": theirs})
        await mount.rename("d", "e")
        assert await mount._walk("e/file") is inode
        assert inode.size == len(theirs)
        assert await mount.tree() == {"e": None, "e/file": (theirs, 0o644)}

    mount.loop.run(main)


def test_a_file_of_which_no_more_is_known_than_its_name_moves_with_its_directory(mount: Composed, store: Held) -> None:
    """It was forgotten, and the kernel has asked for its number since."""
    numbers: list[int] = []

    async def begin() -> None:
        await put_all(store, {"d/file": b"bytes", "d/other": b"other"})
        await mount.tree()
        inode = await mount._walk("d/file")
        inode.lookups = 1
        numbers.append(inode.number)

    async def go_on() -> None:
        forget(mount)
        assert mount.parts.inodes.find(numbers[0]) is None
        back = mount.parts.inodes[numbers[0]]
        assert back.is_unread
        await mount.rename("d", "e")
        assert await mount._walk("e/file") is back
        assert await mount.tree() == {"e": None, "e/file": (b"bytes", 0o644), "e/other": (b"other", 0o644)}

    mount.loop.run(begin)
    mount.loop.passes(LONG)
    mount.loop.run(go_on)


def test_where_a_rename_has_failed_its_names_are_looked_up_again(mount: Composed, store: Held) -> None:
    """Another client removes the one and makes the other, and both are seen."""

    async def main() -> None:
        await put_all(store, {"old": b"ours"})
        await mount.tree()
        store.errors["copy", "old"] = [denied()]
        with fails(errno.EACCES):
            await mount.rename("old", "new")
        await store.delete("old")
        await put_all(store, {"new": b"theirs"})

    mount.loop.run(main)
    mount.loop.passes(2 * TTL)
    assert mount.loop.run(mount.tree) == {"new": (b"theirs", 0o644)}


@both
def test_a_key_that_may_not_remove_renames_nothing(tmp_path: Path, old: str, new: str) -> None:
    """Once that was refused it is asked before anything is copied."""
    store = Held()

    def refusing(operation: str, key: str) -> None:
        if operation in ("delete", "delete_many"):
            raise denied(operation)

    async def main(mount: Composed) -> None:
        await put_all(store, {old: b"bytes"})
        mount.parts.attributes.permissions.add([Right.DELETE])
        store.fault = refusing
        with fails(errno.EACCES):
            await mount.rename(*tops(old, new))
        store.fault = None
        assert store.calls["copy"] == 0
        assert bodies(store) == {old: b"bytes"}
        await mount.rename(*tops(old, new))
        assert bodies(store) == {new: b"bytes"}

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))


@pytest.mark.parametrize("hashes", [True, False], ids=["hashes", "no hashes"])
@pytest.mark.parametrize("size", [100, 20_000], ids=["whole", "parts"])
def test_what_went_up_without_an_answer_is_known_again_below_a_directory_that_is_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, hashes: bool, size: int
) -> None:
    """Its copy has another ETag where it went up in parts, or where no ETag is a hash, and is ours all the same."""
    monkeypatch.setattr("tests.support.fake_store.PART_MIN", 1)
    store = Held(hashes=hashes)

    async def main(mount: Composed) -> None:
        await mount.mkdir("d")
        store.lost.add("d/file")
        with fails(errno.EIO):
            await mount.write("d/file", b"x" * size, flags=os.O_CREAT)
        assert stored(store, "d/file")
        await mount.rename("d", "e")
        await mount.settle()

    with composed(store, tmp_path, part_size=8192) as mount:
        mount.loop.run(partial(main, mount))
        assert bodies(store) == {"e/": b"", "e/file": b"x" * size}


@pytest.mark.parametrize("durability", Durability)
def test_a_crash_does_not_undo_the_chmod_of_a_file_that_one_without_a_record_has_replaced(
    tmp_path: Path, durability: Durability
) -> None:
    """Nothing of the new one was promised; but the old one is back then, for all to read."""
    store = Held()

    async def main(mount: Composed) -> None:
        await put_all(store, {"old": b"old"})
        inode = await mount._walk("old")
        inode.mode = stat.S_IFREG | 0o600
        mount.parts.attributes.changed(inode)
        await mount._opened(*await mount._parent("new"), os.O_CREAT | os.O_RDWR)
        await mount.rename("new", "old")

    with composed(store, tmp_path, durability=durability) as mount:
        mount.loop.run(partial(main, mount))
        mount.crash()
        mount.take_up(seconds=20)
        assert mount.loop.run(mount.tree) in ({"old": (b"", 0o644)}, {"old": (b"old", 0o600)})


@pytest.mark.parametrize("below", ["", "/", "/x"], ids=["file", "empty directory", "directory"])
def test_a_directory_that_another_client_takes_away_while_something_is_renamed_into_it_is_there_by_that(
    mount: Composed, store: Held, below: str
) -> None:
    outcomes: dict[str, Any] = {}

    async def main() -> None:
        await put_all(store, {f"b{below}": b"", "d/": b""})
        await mount.tree()
        store.before["copy"] = trio.Event()
        await begun(mount, partial(told, outcomes, "rename", partial(mount.rename, "b", "d/new")))
        await FakeStore.delete(store, "d/")

    mount.loop.run(main)
    mount.loop.passes(3 * TTL)
    mount.loop.run(partial(begun, mount, partial(told, outcomes, "look", mount.tree)))
    mount.loop.run(partial(settled, store.before.pop("copy")))
    mount.loop.passes(LONG)
    assert outcomes["rename"] is None
    assert (bodies(store), mount._journal.rows) == ({f"d/new{below}": b""}, 0)
    assert set(mount.loop.run(mount.tree)) == {"d", "d/new", f"d/new{below}".rstrip("/")}
    mount.loop.run(partial(FakeStore.delete, store, f"d/new{below}"))
    mount.loop.passes(2 * TTL)
    assert mount.loop.run(mount.tree) == {}, "it is gone where that goes, too"


@pytest.mark.parametrize("below", ["", "/", "/x"], ids=["file", "empty directory", "directory"])
@pytest.mark.parametrize("step", ["copy", "delete"])
def test_what_is_renamed_has_its_new_name_where_another_client_takes_away_the_directory_that_it_was_in(
    mount: Composed, store: Held, step: str, below: str
) -> None:
    outcomes: dict[str, Any] = {}

    async def main() -> None:
        await put_all(store, {"old/": b"", f"old/b{below}": b""})
        await mount.tree()
        store.after["delete_many" if step == "delete" and below else step] = trio.Event()
        await begun(mount, partial(told, outcomes, "rename", partial(mount.rename, "old/b", "new")))
        await FakeStore.delete_many(store, list(store._stored.keys() - {"new", "new/", "new/x"}))

    mount.loop.run(main)
    mount.loop.passes(3 * TTL)
    mount.loop.run(partial(begun, mount, partial(told, outcomes, "look", mount.tree)))
    assert "rename" not in outcomes
    mount.loop.run(store.release)
    mount.loop.passes(LONG)
    assert (outcomes["rename"], bodies(store)) == (None, {f"new{below}": b""})
    assert (mount._journal.rows, mount.parts.pending) == (0, 0)
    assert set(mount.loop.run(mount.tree)) == {"new", f"new{below}".rstrip("/")}


@pytest.mark.promise(3)
def test_a_file_that_is_not_sent_keeps_a_name_where_others_take_away_the_directory_that_it_is_renamed_into(
    mount: Composed, store: Held
) -> None:
    """Its bytes are here alone, and without a name they could go nowhere."""
    outcomes: dict[str, Any] = {}

    async def main() -> Handle:
        await put_all(store, {"proof": b"", "d/": b"", "d/new": b"old"})
        await mount.unlink("proof")
        await mount.unlink("d/new")
        handle = await mount._opened(mount.parts.inodes.root, b"b", os.O_CREAT | os.O_RDWR)
        await mount.parts.file_io.write(handle, 0, b"mine")
        store.before["delete"] = trio.Event()
        await begun(mount, partial(told, outcomes, "rename", partial(mount.rename, "b", "d/new")))
        await FakeStore.delete(store, "d/")
        await FakeStore.delete(store, "d/new")
        return handle

    handle = mount.loop.run(main)
    mount.loop.passes(3 * TTL)
    mount.loop.run(partial(begun, mount, partial(told, outcomes, "look", mount.tree)))
    assert outcomes.keys() == {"look"}, "the name is still waited for"
    mount.loop.run(partial(settled, store.before.pop("delete")))
    mount.loop.run(partial(closed, mount, handle))
    assert (outcomes["rename"], bodies(store)) == (None, {"d/new": b"mine"})


@pytest.mark.parametrize("below", ["", "/x"], ids=["file", "directory"])
@pytest.mark.parametrize("step", ["delete", "copy"], ids=["begun", "done"])
def test_a_rename_is_not_finished_by_the_next_mount_where_its_new_directory_could_not_be_made(
    mount: Composed, store: Held, step: str, below: str
) -> None:
    """What that found of it could go over what is new by then."""
    outcomes: dict[str, Any] = {}

    async def main() -> None:
        await put_all(store, {f"b{below}": b"x"})
        store.before["put"], store.before[step] = trio.Event(), trio.Event()
        store.errors["put", "d/"] = [denied()]
        await begun(mount, partial(told, outcomes, "mkdir", partial(mount.mkdir, "d")))
        mount.parts.deletions.later("d/new", Version("", 0), lambda: None)
        await begun(mount, partial(told, outcomes, "rename", partial(mount.rename, "b", "d/new")))
        for event in ("put", step):
            await settled(store.before.pop(event))

    mount.loop.run(main)
    mount.loop.passes(LONG)
    assert str(errno.ESTALE) in outcomes["rename"]
    path = {"delete": "b", "copy": "d/new"}[step]
    assert (bodies(store), mount._journal.rows) == ({f"{path}{below}": b"x"}, 0)
    assert f"{path}{below}" in mount.loop.run(mount.tree)
