"""Listings and looks that were sent before something was done here, and are answered after it or beside it.

In one process and without a kernel, for only so can each order be had.
"""

from __future__ import annotations

import os
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from sosfs.config.parameters import TTL
from sosfs.files.open_file import Handle
from sosfs.s3.protocol import Properties
from sosfs.tree.inodes import Reading
from tests.support.composed import Composed, composed
from tests.support.held import Held, begun, bodies, closed, opened, put_all, settled, told

BIG = bytes(range(256)) * 4096  # 1 MiB


@pytest.mark.parametrize("what", ["file", "directory"])
def test_ls_of_the_parent_while_a_rename_ends(mount: Composed, store: Held, what: str) -> None:
    """`mv a b` and `ls` at once: the server has removed the old key, its answer is on the way."""
    objects = {"a": b"a" * 5000} if what == "file" else {"a/x": b"x", "a/y": b"y"}
    mount.loop.run(lambda: put_all(store, {**objects, "z": b"z"}))
    outcomes: dict[str, Any] = {}

    async def begin() -> None:
        root = mount.parts.inodes.root
        inode = await mount._walk("a")
        inode.lookups += 1
        if what == "directory":
            await mount._walk("a/x")
        held = ("delete", "a") if what == "file" else ("delete_many", "a/x")
        store.after[held] = trio.Event()
        mount.nursery.start_soon(told, outcomes, "rename", lambda: mount.rename("a", "b"))
        await trio.testing.wait_all_tasks_blocked()
        assert held in store.reached
        mount.loop._clock.jump(2 * TTL)

        async def ls() -> None:
            await mount.parts.listings.complete(root)

        mount.nursery.start_soon(told, outcomes, "ls", ls)
        await trio.testing.wait_all_tasks_blocked()
        store.after[held].set()
        await trio.testing.wait_all_tasks_blocked()

    mount.loop.run(begin)
    assert outcomes == {"rename": None, "ls": None}


def test_a_scan_of_the_tree_while_a_directory_is_renamed(mount: Composed, store: Held) -> None:
    """`mv old new` and `find` at once."""
    mount.loop.run(lambda: put_all(store, {"old/a": b"a", "old/b": b"b", "z/z": b"z"}))
    outcomes: dict[str, Any] = {}

    async def begin() -> None:
        root = mount.parts.inodes.root
        await mount._walk("old/a")
        mount.loop._clock.jump(1)
        store.before["copy", "old/b"] = trio.Event()
        mount.nursery.start_soon(told, outcomes, "rename", lambda: mount.rename("old", "new"))
        await trio.testing.wait_all_tasks_blocked()
        assert ("copy", "old/b") in store.reached and "new/a" in bodies(store)
        mount.loop._clock.jump(1)
        store.after["list", ""] = trio.Event()
        scan = mount.parts.listings.begin_scan(root)
        assert scan is not None
        mount.nursery.start_soon(told, outcomes, "scan", scan)
        await trio.testing.wait_all_tasks_blocked()
        assert ("list", "") in store.reached
        store.before["copy", "old/b"].set()
        await trio.testing.wait_all_tasks_blocked()
        assert outcomes["rename"] is None
        held = store.after.pop(("list", ""))
        held.set()
        await trio.testing.wait_all_tasks_blocked()

    mount.loop.run(begin)
    assert outcomes == {"rename": None, "scan": None}
    assert sorted(bodies(store)) == ["new/a", "new/b", "z/z"]

    async def look() -> None:
        assert sorted(await mount.tree()) == ["new", "new/a", "new/b", "z", "z/z"]

    mount.loop.run(look)


def test_a_directory_that_is_listed_while_it_is_renamed_and_renamed_back_has_all_its_names(
    mount: Composed, store: Held
) -> None:
    """The bucket answers when the first of these has removed its keys; it has the same key when that is heard."""
    mount.loop.run(lambda: put_all(store, {"a/x": b"x", "a/y": b"y", "a/deep/z": b"z"}))
    outcomes: dict[str, Any] = {}

    async def begin() -> None:
        before = await mount.tree()
        inode = await mount._walk("a")
        mount.loop._clock.jump(2 * TTL)
        asking, answer, gone = trio.Event(), trio.Event(), trio.Event()
        store.before["list", "a/"], store.after["list", "a/"] = asking, answer
        await begun(mount, partial(told, outcomes, "ls", partial(mount.parts.listings.complete, inode)))
        assert ("list", "a/") in store.reached
        del store.before["list", "a/"]
        held = store.after.pop(("list", "a/"))
        store.after["delete_many"] = gone
        await begun(mount, partial(mount.rename, "a", "b"))
        store.after["list", "a/"] = held
        await settled(asking)
        store.after.clear()
        await settled(gone)
        await mount.rename("b", "a")
        await settled(answer)
        assert outcomes["ls"].done
        assert await mount.tree() == before

    mount.loop.run(begin)


def test_a_tree_that_is_scanned_while_it_is_renamed_and_renamed_back_has_all_its_names(tmp_path: Path) -> None:
    """Its first page came before that, and the second one when the keys were gone."""
    store, outcomes = Held(page=1), dict[str, Any]()

    async def begin() -> None:
        await put_all(store, {"a/deep/z": b"z", "a/x": b"x", "a/y": b"y"})
        before = await mount.tree()
        mount.loop._clock.jump(2 * TTL)
        first, second, gone = trio.Event(), trio.Event(), trio.Event()
        store.after["list", "a/"] = first
        scan = mount.parts.listings.begin_scan(await mount._walk("a"))
        assert scan is not None
        await begun(mount, partial(told, outcomes, "scan", scan))
        del store.after["list", "a/"]
        store.after["delete_many"] = gone
        await begun(mount, partial(mount.rename, "a", "b"))
        store.after["list", "a/"] = second
        await settled(first)
        store.after.clear()
        await settled(gone)
        await mount.rename("b", "a")
        await settled(second)
        assert outcomes == {"scan": None}
        assert await mount.tree() == before

    with composed(store, tmp_path) as mount:
        mount.loop.run(begin)


def test_who_lists_an_empty_directory_while_another_takes_its_place_finds_nothing(mount: Composed, store: Held) -> None:
    outcomes: dict[str, Any] = {}

    async def begin() -> None:
        await put_all(store, {"a/x": b"x", "b/": b""})
        empty = await mount._walk("b")
        await mount.tree()
        copying = store.before["copy", "a/x"] = trio.Event()
        await begun(mount, partial(mount.rename, "a", "b"))
        mount.loop._clock.jump(2 * TTL)
        await begun(mount, partial(told, outcomes, "ls", partial(mount.parts.listings.complete, empty)))
        await settled(copying)
        assert outcomes["ls"].names[:] == []

    mount.loop.run(begin)
    assert bodies(store) == {"b/": b"", "b/x": b"x"}


def test_a_listing_on_its_way_when_the_first_file_of_a_directory_lands(mount: Composed, store: Held) -> None:
    """This mount alone: `d` has no marker; `d/new` is open, `rm d/old`; `ls /` is sent, `close`, `ls` is answered."""
    handles: list[Handle] = []
    mount.loop.run(lambda: put_all(store, {"d/old": b"old", "top": b"t"}))
    outcomes: dict[str, Any] = {}

    async def begin() -> None:
        directory = await mount._walk("d")
        handles.append(await mount._opened(directory, b"new", os.O_CREAT | os.O_WRONLY))
        handles[0].inode.lookups += 1
        directory.lookups += 1
        await mount.parts.file_io.write(handles[0], 0, b"of d")
        await mount.unlink("d/old")

    async def end() -> None:
        store.after["list", ""] = trio.Event()
        root = mount.parts.inodes.root

        async def ls() -> None:
            await mount.parts.listings.complete(root)

        mount.nursery.start_soon(told, outcomes, "ls", ls)
        await trio.testing.wait_all_tasks_blocked()
        assert ("list", "") in store.reached
        await mount.parts.file_io.flush(handles[0])
        await mount.parts.file_io.release(handles[0])
        store.after["list", ""].set()
        await trio.testing.wait_all_tasks_blocked()

    mount.loop.run(begin)
    mount.loop.passes(2 * TTL)
    mount.loop.run(end)
    found = bodies(store)
    assert found["d/new"] == b"of d"

    async def look() -> None:
        assert "d/new" in await mount.tree()

    mount.loop.run(look)


def test_chmod_of_a_large_file_and_ls_at_once(mount: Composed, store: Held) -> None:
    """The copy has another ETag than the upload in parts had; a listing sent before it is answered after it."""
    outcomes: dict[str, Any] = {}
    mount.loop.run(lambda: put_all(store, {"top": b"t"}))

    async def make() -> None:
        upload = await store.create_multipart("file", Properties())
        part = await store.upload_part("file", upload, 1, b"x" * 6000)
        await store.complete_multipart("file", upload, [part])

    mount.loop.run(make)

    async def go() -> None:
        handle = await opened(mount, os.O_RDWR, "file")
        inode = handle.inode
        inode.lookups += 1
        assert inode.version is not None
        before = inode.version.etag
        mount.loop._clock.jump(2 * TTL)
        await mount.parts.attributes.revalidate(inode)
        store.after["list", ""] = trio.Event()
        root = mount.parts.inodes.root

        async def ls() -> None:
            await mount.parts.listings.complete(root)

        mount.nursery.start_soon(told, outcomes, "ls", ls)
        await trio.testing.wait_all_tasks_blocked()
        assert ("list", "") in store.reached
        inode.mode = 0o100600
        mount.parts.attributes.changed(inode)
        await mount.parts.attributes.write_now(inode)
        assert inode.version.etag != before, "the same etag"
        store.after["list", ""].set()
        await trio.testing.wait_all_tasks_blocked()
        await told(outcomes, "write", lambda: mount.parts.file_io.write(handle, 0, b"more"))
        await told(outcomes, "close", lambda: closed(mount, handle))

    mount.loop.run(go)
    mount.loop.passes(10)
    assert outcomes == {"ls": None, "write": 4, "close": None}, outcomes


def test_stat_of_the_old_name_in_a_large_directory_while_it_is_renamed(mount: Composed, store: Held) -> None:
    mount.loop.run(lambda: put_all(store, {f"{at:03}": b"x" for at in range(300)} | {"a": b"a" * 5000}))
    outcomes: dict[str, Any] = {}

    async def go() -> None:
        root = mount.parts.inodes.root
        inode = await mount._walk("a")
        inode.lookups += 1
        store.after["delete", "a"] = trio.Event()
        mount.nursery.start_soon(told, outcomes, "rename", lambda: mount.rename("a", "b"))
        await trio.testing.wait_all_tasks_blocked()
        assert ("delete", "a") in store.reached
        mount.loop._clock.jump(2 * TTL)
        mount.nursery.start_soon(told, outcomes, "stat", lambda: mount.parts.namespace.lookup(root, b"a"))
        await trio.testing.wait_all_tasks_blocked()
        store.after["delete", "a"].set()
        await trio.testing.wait_all_tasks_blocked()

    mount.loop.run(go)
    assert outcomes["rename"] is None, outcomes


@pytest.mark.parametrize("what", ["file", "directory"])
def test_read_of_a_file_that_is_changed_while_it_is_renamed(mount: Composed, store: Held, what: str) -> None:
    """Open for reading and writing, one byte written; the old key is gone and the answer on its way."""
    mount.loop.run(lambda: put_all(store, {"d/f": BIG, "z": b"z"}))
    outcomes: dict[str, Any] = {}

    async def go() -> None:
        handle = await opened(mount, os.O_RDWR, "d/f")
        await mount.parts.file_io.write(handle, 0, b"!")
        held = ("delete", "d/f") if what == "file" else ("delete_many", "d/f")
        store.after[held] = trio.Event()
        pair = ("d/f", "d/g") if what == "file" else ("d", "e")
        mount.nursery.start_soon(told, outcomes, "rename", lambda: mount.rename(*pair))
        await trio.testing.wait_all_tasks_blocked()
        assert held in store.reached

        async def read() -> int:
            return len(bytes(await mount.parts.file_io.read(handle, 900000, 4096)))

        mount.nursery.start_soon(told, outcomes, "read", read)
        await trio.testing.wait_all_tasks_blocked()
        store.after[held].set()
        await trio.testing.wait_all_tasks_blocked()
        await told(outcomes, "close", lambda: closed(mount, handle))

    mount.loop.run(go)
    mount.loop.passes(10)
    assert outcomes == {"rename": None, "read": 4096, "close": None}, outcomes
    name = "d/g" if what == "file" else "e/f"
    assert bodies(store)[name] == b"!" + BIG[1:]


def test_a_file_that_a_reader_finds_replaced_stays_listed_though_its_directory_is_renamed_just_then(
    mount: Composed, store: Held
) -> None:
    """Whoever reads the version before asks for it under its old key, which goes before the answer."""
    mount.loop.run(lambda: put_all(store, {"d/f": BIG, "z": b"z"}))
    outcomes: dict[str, Any] = {}

    async def go() -> None:
        handle = await opened(mount, os.O_RDONLY, "d/f")
        await put_all(store, {"d/f": BIG[::-1]})
        asking, gone = trio.Event(), trio.Event()
        store.before["head", "d/f"], store.after["delete_many", "d/f"] = asking, gone
        await begun(mount, partial(told, outcomes, "read", partial(mount.parts.file_io.read, handle, 900000, 4096)))
        assert ("head", "d/f") in store.reached
        del store.before["head", "d/f"]
        await begun(mount, partial(told, outcomes, "rename", partial(mount.rename, "d", "e")))
        await settled(asking)
        await settled(gone)
        assert bytes(outcomes["read"]) == BIG[::-1][900000:904096], "it had read nothing yet"
        await closed(mount, handle)
        assert outcomes["rename"] is None
        assert set(await mount.tree()) == {"e", "e/f", "z"}

    mount.loop.run(go)


@pytest.mark.parametrize("theirs", [None, b"theirs" * 1000])
@pytest.mark.parametrize("how", ["rm", "mv"])
def test_rm_of_what_the_listing_for_the_marker_shows_gone(
    mount: Composed, store: Held, theirs: bytes | None, how: str
) -> None:
    """`rm d/f`, looked up a moment ago, the only one of a directory without marker; another client was there first."""
    mount.loop.run(lambda: put_all(store, {"d/f": b"ours", "top": b"t"}))
    outcomes: dict[str, Any] = {}

    async def go() -> None:
        directory = await mount._walk("d")
        inode = await mount._walk("d/f")
        inode.lookups += 1
        mount.loop._clock.jump(TTL * 0.6)
        inode.checked = trio.current_time()  # a stat
        if theirs is None:
            await store.delete("d/f")
        else:
            await put_all(store, {"d/f": theirs})
        mount.loop._clock.jump(TTL * 0.6)
        if how == "rm":
            await told(outcomes, "rm", lambda: mount.parts.namespace.unlink(directory, b"f"))
        else:
            root = mount.parts.inodes.root
            await told(outcomes, "rm", lambda: mount.parts.renames.rename(directory, b"f", root, b"g", replace=True))

    mount.loop.run(go)
    assert outcomes["rm"] is None or "AssertionError" not in outcomes["rm"], outcomes


def test_a_file_in_the_place_of_a_directory_is_listed_under_its_own_name(mount: Composed, store: Held) -> None:
    async def begin() -> None:
        await put_all(store, {"d/a/x": b"x", "d/b": b"b"})
        await mount.tree()
        await store.delete("d/a/x")
        await put_all(store, {"d/a": b"a file now"})

    async def look() -> None:
        found = await mount.tree()
        assert sorted(found) == ["d", "d/a", "d/b"]
        assert found["d/a"] is not None and found["d/a"][0] == b"a file now"
        assert (await mount._walk("d/a")).size == len(b"a file now")

    mount.loop.run(begin)
    mount.loop.passes(2 * TTL)
    mount.loop.run(look)


def test_who_reads_on_when_names_were_forgotten_is_told_of_a_file_beside_a_directory(tmp_path: Path) -> None:
    """A page shows `a`, the next one `a/`."""
    store = Held(page=2)

    async def read() -> None:
        await put_all(store, {"a": b"a", "a!": b"b", "a/x": b"x", "b": b"b"})
        listings = mount.parts.listings
        with closing(Reading(*listings.walk(mount.parts.inodes.root))) as reading:
            await listings.advance(reading.directory, reading.walk, have=0)
            assert reading.walk.names[:] == [b"a", b"a!"]
            reading.comes_to(2)
            reading.directory.doubt()  # as when names are forgotten
            while not reading.walk.done:
                await listings.advance(reading.directory, reading.walk, have=len(reading.walk.names))
            assert reading.walk.names[:] == [b"a", b"a!", b"%~fa", b"b"]
        assert reading.directory.entries[b"%~fa"].size == 1

    with composed(store, tmp_path) as mount:
        mount.loop.run(read)
