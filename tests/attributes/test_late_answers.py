"""Answers that come late: what was changed here since they were asked for is newer, and is neither undone nor hidden.

In one process, with requests held back; another client's eyes are the store itself.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any
from unittest.mock import Mock

import pytest
import trio

from sosfs.config.choices import Canned
from sosfs.config.parameters import TTL
from sosfs.control.object_acl import ObjectAcls
from sosfs.control.object_retention import ObjectRetentions
from sosfs.errors import from_s3
from sosfs.fuse.xattrs import Xattrs
from sosfs.s3.protocol import Properties
from sosfs.tree.inodes import Inode, Known
from tests.support.composed import TASK, Composed
from tests.support.fake_store import ANYONE
from tests.support.held import Held, begun, bodies, closed, put_all, readers, settled, told

pytestmark = pytest.mark.usefixtures("without_bugs")

OLD, NEW = b"old" * 2000, b"newer" * 2000
OPEN = Properties(metadata={"mode": str(stat.S_IFREG | 0o644), "uid": "1"})
PRIVATE = Properties(metadata={"mode": str(stat.S_IFDIR | 0o700)})


def mode_of(store: Held, key: str) -> int:
    return stat.S_IMODE(int(store._stored[key].object.properties.metadata["mode"]))


async def late(mount: Composed, store: Held, question: Callable[[], Awaitable[object]]) -> trio.Event:
    """Begins a question whose answer is what is true now, and comes when the event is set."""
    store.after["head"] = held = trio.Event()
    await begun(mount, question)
    assert {operation for operation, _ in store.reached} == {"head"}
    del store.after["head"]
    return held


async def chown(mount: Composed, inode: Inode) -> None:
    """chown and fsync."""
    inode.uid = 7
    mount.parts.attributes.changed(inode, posix={"uid"})
    await mount.parts.file_io.fsync(inode)


def test_a_chmod_is_not_undone_by_who_has_asked_for_all_metadata_before(mount: Composed, store: Held) -> None:
    """As of `cp -a` or `getfattr`: the copy that stored the mode has the same ETag, and a time that nobody knows."""

    async def main() -> None:
        await store.put("file", OLD, OPEN)
        inode = await mount.parts.namespace.lookup(mount.parts.inodes.root, b"file")
        await mount.parts.attributes.ask_files([inode])  # as `ls -l`: HEAD, which does not tell everything
        held = await late(mount, store, partial(mount.parts.attributes.fetch_whole, inode))
        await mount.chmod("file", 0o600)
        await settled(held)
        assert stat.S_IMODE((await mount._walk("file")).mode) == 0o600
        await chown(mount, inode)
        assert (mode_of(store, "file"), store._stored["file"].object.properties.metadata["uid"]) == (0o600, "7")

    mount.loop.run(main)


def test_what_was_written_since_a_file_was_asked_for_is_what_is_there(mount: Composed, store: Held) -> None:
    async def main() -> None:
        await put_all(store, {"file": OLD})
        inode = await mount._walk("file")
        store.reached.clear()
        held = await late(mount, store, partial(mount.parts.attributes.refresh, inode))
        await mount.write("file", NEW, flags=os.O_TRUNC)
        await settled(held)
        assert inode.size == len(NEW)
        await mount.write("file", b"!", flags=os.O_APPEND)
        assert bodies(store) == {"file": NEW + b"!"}

    mount.loop.run(main)


def test_an_answer_that_a_listing_has_overtaken_is_asked_for_again(mount: Composed, store: Held) -> None:
    """Another client stores other bytes meanwhile, and a listing shows them before the answer tells of the old ones."""

    async def main() -> None:
        await store.put("file", OLD, OPEN)
        inode = await mount.parts.namespace.lookup(mount.parts.inodes.root, b"file")
        held = await late(mount, store, partial(mount.parts.attributes.ask_ahead, inode))
        await store.put("file", NEW, Properties(metadata={"mode": str(stat.S_IFREG | 0o600)}))
        mount.loop._clock.jump(2 * TTL)
        await mount.parts.listings.complete(mount.parts.inodes.root)
        await settled(held)
        assert (inode.size, stat.S_IMODE(inode.mode)) == (len(NEW), 0o600)
        assert store.calls["head"] == 2

    mount.loop.run(main)


def test_an_answer_that_a_listing_confirms_is_taken(mount: Composed, store: Held) -> None:
    async def main() -> None:
        await store.put("file", OLD, OPEN)
        inode = await mount.parts.namespace.lookup(mount.parts.inodes.root, b"file")
        held = await late(mount, store, partial(mount.parts.attributes.ask_ahead, inode))
        mount.loop._clock.jump(2 * TTL)
        await mount.parts.listings.complete(mount.parts.inodes.root)
        await settled(held)
        assert (inode.known, inode.uid, store.calls["head"]) == (Known.ALL, 1, 1)

    mount.loop.run(main)


def test_a_file_that_is_being_written_is_there_whatever_was_asked_before(mount: Composed, store: Held) -> None:
    """Nothing but its size was known, and another client has removed it: it is asked for once, and no more."""
    outcomes: dict[str, Any] = {}

    async def main() -> None:
        await put_all(store, {"file": OLD})
        inode = await mount.parts.namespace.lookup(mount.parts.inodes.root, b"file")
        store.before["get"] = store.before["head"] = held = trio.Event()
        await begun(mount, partial(told, outcomes, "asked", partial(mount.parts.attributes.revalidate, inode)))
        handle = await mount.parts.file_io.open(inode, os.O_WRONLY | os.O_TRUNC, TASK)
        await mount.parts.file_io.write(handle, 0, NEW)
        await store.delete("file")
        await settled(held)
        assert outcomes["asked"] is inode
        assert store.calls["get"] + store.calls["head"] == 1
        await put_all(store, {"file": OLD})
        await closed(mount, handle)
        assert await mount.tree() == {"file": (NEW, 0o644)}

    mount.loop.run(main)


@pytest.mark.parametrize("is_stored", [True, False], ids=["stored", "not stored yet"])
@pytest.mark.parametrize("question", ["revalidate", "refresh"])
def test_an_absence_that_is_over_takes_nothing_out_of_view(
    mount: Composed, store: Held, question: str, is_stored: bool
) -> None:
    """Another client removes the file and stores it again, and it is written to here before the answer comes."""
    outcomes: dict[str, Any] = {}

    async def main() -> None:
        await put_all(store, {"file": OLD})
        inode = await mount._walk("file")
        mount.loop._clock.jump(2 * TTL)
        store.before["head"] = held = trio.Event()
        asking = partial(getattr(mount.parts.attributes, question), inode)
        await begun(mount, partial(told, outcomes, "asked", asking))
        assert store.reached == {("head", "file")}
        del store.before["head"]
        handle = await mount.parts.file_io.open(inode, os.O_WRONLY | os.O_TRUNC, TASK)
        await mount.parts.file_io.write(handle, 0, NEW)
        if is_stored:
            await closed(mount, handle)
        store.errors["head", "file"] = [from_s3("HeadObject", code="", status=404)]
        await settled(held)
        assert not store.errors["head", "file"]
        assert outcomes["asked"] in (inode, None)
        if not is_stored:
            await closed(mount, handle)
        assert await mount.tree() == {"file": (NEW, 0o644)}
        assert inode.parent is not None

    mount.loop.run(main)


@pytest.mark.parametrize("is_there", [True, False], ids=["there", "gone by then"])
def test_a_directory_that_is_renamed_while_it_is_asked_for_has_what_its_marker_says(
    mount: Composed, store: Held, is_there: bool
) -> None:
    async def main() -> None:
        await store.put("d/", b"", PRIVATE)
        await put_all(store, {"d/x": b"x"})
        inode = await mount.parts.namespace.lookup(mount.parts.inodes.root, b"d")
        (store.after if is_there else store.before)["head", "d/"] = held = trio.Event()
        await begun(mount, partial(mount.parts.attributes.ask_ahead, inode))
        assert store.reached == {("head", "d/")}
        await mount.rename("d", "e")
        await settled(held)
        assert mount.parts.cache.find("d/", "") is None, "of a key that is gone nothing is kept"
        assert stat.S_IMODE((await mount._walk("e")).mode) == 0o700
        await chown(mount, inode)
        assert mode_of(store, "e/") == 0o700

    mount.loop.run(main)


@pytest.mark.parametrize("ahead", [False, True], ids=["", "asked for ahead"])
def test_a_file_whose_answer_comes_while_it_is_copied_for_a_rename_is_asked_for_under_its_new_name(
    mount: Composed, store: Held, ahead: bool
) -> None:
    """As a stat(2) that was under way when another program renamed the file: it never returned."""
    outcomes = dict[str, Any]()

    async def main() -> None:
        await store.put("file", OLD, OPEN)
        inode = await mount.parts.namespace.lookup(mount.parts.inodes.root, b"file")
        asking = partial(mount.parts.attributes.revalidate, inode)
        store.after["head"] = store.after["get"] = answered = trio.Event()
        if ahead:
            await begun(mount, partial(mount.parts.attributes.ask_files, [inode]))
        await begun(mount, partial(told, outcomes, "asked", asking))
        assert store.reached
        store.after.clear()
        store.before["copy"] = copied = trio.Event()
        await begun(mount, partial(mount.rename, "file", "moved"))
        assert ("copy", "file") in store.reached
        await settled(answered)
        await settled(copied)
        assert outcomes == {"asked": inode}
        assert inode.posix.uid == 1
        assert await mount.tree() == {"moved": (OLD, 0o644)}

    mount.loop.run(main)


@pytest.mark.parametrize("what", ["attributes", "version", "ACL", "retention"])
def test_what_is_asked_of_a_file_whose_old_name_is_gone_is_answered_under_its_new_one(
    mount: Composed, store: Held, what: str
) -> None:
    """As of `getfattr` while another program renames the file: the tree has the old name yet."""
    parts, outcomes = mount.parts, dict[str, Any]()
    acls = ObjectAcls(parts.inodes, store, parts.attributes, parts.commits, parts.subtree_lock)
    locks = ObjectRetentions(parts.inodes, store, Mock(), parts.attributes, parts.commits, parts.subtree_lock)
    xattrs = Xattrs(parts.inodes, parts.attributes, acls, locks, Mock(), Mock(), kept=[])
    name = {"version": "version-id", "ACL": "acl"}.get(what, what)

    async def main() -> None:
        await store.put("file", OLD, OPEN)
        inode = await mount.parts.namespace.lookup(mount.parts.inodes.root, b"file")
        await mount.parts.attributes.ask_files([inode])  # as `ls -l`: HEAD, which does not tell everything
        ask: Callable[[], Awaitable[object]] = partial(xattrs.get, inode, f"user.sos.{name}".encode(), uid=0)
        if what == "attributes":
            ask = partial(xattrs.names, inode)
        store.after["delete"] = removed = trio.Event()
        await begun(mount, partial(mount.rename, "file", "moved"))
        assert list(bodies(store)) == ["moved"]
        await begun(mount, partial(told, outcomes, "asked", ask))
        await settled(removed)
        assert inode.name == b"moved"
        assert "NoSuchKey" not in str(outcomes["asked"])

    mount.loop.run(main)


def test_attributes_that_are_known_are_told_while_a_directory_is_renamed(mount: Composed, store: Held) -> None:
    """That may take long: nobody waits for it whom the bucket need not tell anything."""
    outcomes: dict[str, Any] = {}
    xattrs = Xattrs(mount.parts.inodes, mount.parts.attributes, Mock(), Mock(), Mock(), Mock(), kept=[])

    async def main() -> None:
        await store.put("d/file", OLD, OPEN)
        inode = await mount._walk("d/file")
        assert await xattrs.names(inode) == []
        store.before["copy"] = copying = trio.Event()
        await begun(mount, partial(mount.rename, "d", "moved"))
        await begun(mount, partial(told, outcomes, "asked", partial(xattrs.names, inode)))
        assert outcomes == {"asked": []}
        await settled(copying)

    mount.loop.run(main)


def test_a_directory_whose_marker_goes_while_it_is_renamed_is_asked_for_under_its_new_name(
    mount: Composed, store: Held
) -> None:
    """The old key is gone by the time that the answer comes, and the tree has the old name yet."""

    async def main() -> None:
        await store.put("d/", b"", PRIVATE)
        await put_all(store, {"d/x": b"x"})
        inode = await mount.parts.namespace.lookup(mount.parts.inodes.root, b"d")
        store.before["head", "d/"] = asked = trio.Event()
        await begun(mount, partial(mount.parts.attributes.ask_ahead, inode))
        store.after["delete_many"] = removed = trio.Event()
        await begun(mount, partial(mount.rename, "d", "e"))
        assert "d/" not in bodies(store)
        await settled(asked)
        assert inode.known is not Known.ALL
        await settled(removed)
        assert stat.S_IMODE((await mount._walk("e")).mode) == 0o700

    mount.loop.run(main)


def test_a_marker_that_is_being_written_is_not_what_was_asked_for_before(mount: Composed, store: Held) -> None:
    """The last entry goes, and the directory gets a marker, while it is asked for."""

    async def main() -> None:
        await put_all(store, {"d/x": b"x"})
        inode = await mount.parts.namespace.lookup(mount.parts.inodes.root, b"d")
        store.before["head", "d/"] = asked = trio.Event()
        await begun(mount, partial(mount.parts.attributes.ask_ahead, inode))
        await mount.parts.namespace.unlink(inode, b"x")
        assert inode.pins
        await settled(asked)
        assert inode.attributes_dirty
        await mount.parts.attributes.write_now(inode)
        assert inode.version is not None
        assert bodies(store) == {"d/": b""}

    mount.loop.run(main)


@pytest.mark.parametrize("is_written", [True, False], ids=["written", "to be written"])
def test_what_is_set_of_a_directory_is_not_undone_by_what_was_asked_before(
    mount: Composed, store: Held, is_written: bool
) -> None:
    """It lost its last entry, and so gets a marker; another client gives it one, or an ACL to ours."""

    async def main() -> None:
        await put_all(store, {"d/x": b"x"})
        inode = await mount.parts.namespace.lookup(mount.parts.inodes.root, b"d")
        store.before["head", "d/"] = asked = trio.Event()
        await begun(mount, partial(mount.parts.attributes.ask_ahead, inode))
        del store.before["head", "d/"]
        await mount.parts.namespace.unlink(inode, b"x")
        inode.mode = stat.S_IFDIR | 0o700
        mount.parts.attributes.changed(inode, posix={"mode"})
        if is_written:
            await mount.parts.attributes.write_now(inode)
            await store.put_acl("d/", Canned.PUBLIC_READ)
            store.errors["head", "d/"] = [from_s3("HeadObject", code="", status=404)]
        else:
            await store.put("d/", b"", Properties(metadata={"mode": str(stat.S_IFDIR | 0o711)}))
        await settled(asked)
        assert not store.errors.get(("head", "d/"))
        mount.loop._clock.jump(2 * TTL)
        inode.uid = 7
        mount.parts.attributes.changed(inode, posix={"uid"})
        await mount.parts.attributes.write_now(inode)
        assert mode_of(store, "d/") == 0o700
        assert (ANYONE in readers(store, "d/")) is is_written

    mount.loop.run(main)
