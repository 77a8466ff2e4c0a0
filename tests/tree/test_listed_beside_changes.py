"""A listing beside what is changed here: what is newer stays, and what another client has made of it since counts.

In one process and without a kernel, for only so can each order be had.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from sosfs.config.parameters import TTL
from sosfs.s3.protocol import Acl, Grant, Page, Properties
from sosfs.tree import keys
from sosfs.tree.inodes import SYMLINK_MAX, Directory
from tests.support.composed import LONG, TASK, Composed, composed
from tests.support.drive import fails
from tests.support.fake_store import ANYONE, PRIVATE
from tests.support.held import Held, begun, bodies, closed, opened, put_all, readers, settled

BIG = bytes(SYMLINK_MAX + 1)
FILE = stat.S_IFREG | 0o644
PUBLIC = Acl("owner", (*PRIVATE.grants, Grant(ANYONE, "READ")))


def of_mode(mode: int, **more: str) -> Properties:
    return Properties(metadata={"mode": str(stat.S_IFREG | mode), **more})


async def listed_anew(mount: Composed, path: str = "d") -> Directory:
    """A directory that is listed at once, whatever is known of it."""
    directory = mount.parts.listings.directory(await mount._walk(path))
    mount.loop._clock.jump(0.1)
    directory.doubt()
    await mount.parts.listings.complete(directory.inode)
    return directory


@pytest.mark.parametrize("change", ["written", "its mode changed"])
@pytest.mark.parametrize("theirs", [None, BIG, b"theirs"], ids=["nothing", "attributes", "bytes"])
def test_what_waits_to_be_stored_stays_as_it_is_here_whatever_is_listed(
    mount: Composed, store: Held, change: str, theirs: bytes | None
) -> None:
    async def look() -> None:
        await store.put("d/a", BIG, of_mode(0o604))
        handle = await opened(mount, os.O_RDWR, "d/a")
        inode = handle.inode
        inode.lookups += 1
        if change == "written":
            await mount.parts.file_io.write(handle, len(BIG), b"ours")
        else:
            inode.mode = stat.S_IFREG | 0o640
            mount.parts.attributes.changed(inode)
        due = (inode.size, inode.mode, inode.mtime_ns)
        if theirs is not None:
            store._clock = lambda: time.time() + LONG
            await store.put("d/a", theirs, of_mode(0o600, colour="blue"))
        await listed_anew(mount)
        found = await mount._walk("d/a")
        assert found is inode
        assert (found.size, found.mode, found.mtime_ns) == due
        if change == "written":
            assert bytes(await mount.parts.file_io.read(handle, len(BIG), 100)) == b"ours"
        if change == "written" and theirs == b"theirs":
            with fails(errno.ESTALE):  # a conflict: it is kept beside theirs
                await closed(mount, handle)
        else:
            await closed(mount, handle)
        if theirs == BIG:  # what is set there of the same bytes stays
            await mount.settle()
            kept = store._stored["d/a"].object.properties.metadata
            assert (kept["mode"], kept["colour"]) == (str(0o100600 if change == "written" else 0o100640), "blue")

    mount.loop.run(look)


@pytest.mark.parametrize("ago", [0.0, 2 * TTL], ids=["just now", "long ago"])
@pytest.mark.parametrize("change", ["written", "its mode changed"])
def test_what_a_listing_tells_to_be_set_by_another_client_stays_when_what_waits_is_stored(
    mount: Composed, store: Held, change: str, ago: float
) -> None:
    """All of the file was known, for it was written here, and since then it was only listed."""

    async def look() -> None:
        await put_all(store, {"d/": b""})
        await mount.write("d/a", BIG, flags=os.O_CREAT)
        await mount.settle()
        handle = await opened(mount, os.O_RDWR, "d/a")
        if change == "written":
            await mount.parts.file_io.write(handle, len(BIG), b"ours")
        else:
            handle.inode.mode = stat.S_IFREG | 0o640
            mount.parts.attributes.changed(handle.inode, posix=["mode"])
        store._clock = lambda: time.time() + LONG
        await store.put("d/a", BIG, of_mode(0o600, colour="blue", mtime="1"), acl=PUBLIC)
        mount.loop._clock.jump(ago)
        await listed_anew(mount)
        await closed(mount, handle)
        await mount.settle()
        assert ANYONE in readers(store, "d/a")
        kept = store._stored["d/a"].object.properties.metadata
        assert (float(kept["mtime"]) == 1) is (change != "written"), "other bytes have another time"
        assert (kept["mode"], kept["colour"]) == (str(0o100600 if change == "written" else 0o100640), "blue")

    mount.loop.run(look)


@pytest.mark.parametrize("theirs", [BIG, BIG + b"theirs"], ids=["attributes", "bytes"])
def test_who_else_may_read_what_was_written_here_since_still_may_after_a_chmod(
    mount: Composed, store: Held, theirs: bytes
) -> None:
    """What this mount has just written is private, until a listing shows another version."""

    async def look() -> None:
        await put_all(store, {"d/": b""})
        await mount.write("d/a", BIG, flags=os.O_CREAT)
        await mount.settle()
        store._clock = lambda: time.time() + LONG
        await store.put("d/a", theirs, of_mode(0o604), acl=PUBLIC)
        await listed_anew(mount)
        await mount.chmod("d/a", 0o640)
        assert bodies(store)["d/a"] == theirs
        assert store._stored["d/a"].object.properties.metadata["mode"] == str(stat.S_IFREG | 0o640)
        assert ANYONE in readers(store, "d/a")

    mount.loop.run(look)


@pytest.mark.parametrize("what", ["a directory", "a file in place of a directory", "a directory in place of a file"])
def test_what_went_while_a_page_with_it_was_on_its_way_stays_gone(mount: Composed, store: Held, what: str) -> None:
    async def look() -> None:
        parts = mount.parts
        await put_all(store, {"d/f" if what.endswith("file") else "d/f/": b"", "d/z": b"z"})
        await mount._walk("d/f")
        directory = parts.listings.directory(await mount._walk("d"))
        mount.loop._clock.jump(0.1)
        directory.doubt()
        page = store.after["list", "d/"] = trio.Event()
        await begun(mount, partial(parts.listings.complete, directory.inode))
        del store.after["list", "d/"]
        mount.loop._clock.jump(0.1)
        known = directory.entries[b"f"]
        if what.endswith("file"):
            gone = store.before["delete", "d/f"] = trio.Event()
            await begun(mount, partial(parts.namespace.unlink, directory.inode, b"f", known))
            await begun(mount, partial(parts.creations.make_directory, directory.inode, b"f", 0o755, 0, 0))
            assert directory.entries[b"f"].is_directory
        else:
            await begun(mount, partial(parts.namespace.rmdir, directory.inode, b"f"))
        if what.startswith("a file"):
            inode = parts.creations.new_file(directory, keys.parse(b"f"), FILE, 0, 0)
            handle = await parts.file_io.create(inode, os.O_WRONLY, TASK)
            await parts.file_io.write(handle, 0, b"a file now")
            await closed(mount, handle)
        await settled(page)
        if what.endswith("file"):
            assert list(directory.entries) == [b"z", b"f"]
            await settled(gone)
        found = {"a directory": {}, "a file in place of a directory": {"d/f": (b"a file now", 0o644)}}
        assert await mount.tree() == {"d": None, "d/z": (b"z", 0o644), **found.get(what, {"d/f": None})}

    mount.loop.run(look)


def test_a_directory_stays_while_something_in_it_is_not_stored_yet(mount: Composed, store: Held) -> None:
    """Another client has removed all that the bucket had of it."""

    async def look() -> None:
        await put_all(store, {"d/e/old": b"old", "d/z": b"z"})
        handle = await mount._opened(await mount._walk("d/e"), b"new", os.O_CREAT | os.O_WRONLY)
        await mount.parts.file_io.write(handle, 0, b"new")
        await store.delete("d/e/old")
        await listed_anew(mount)
        assert await mount._walk("d/e/new") is handle.inode
        await closed(mount, handle)
        assert bodies(store)["d/e/new"] == b"new"

    mount.loop.run(look)


def test_what_later_pages_show_stays_what_it_is_while_a_directory_is_listed_anew(tmp_path: Path) -> None:
    store = Held(page=2)

    async def look(mount: Composed) -> None:
        await put_all(store, {f"d/{name}": b"x" for name in "abcdef"})
        directory = await listed_anew(mount)
        before = await mount._walk("d/f")
        directory.doubt()
        walk = await mount.parts.listings.first_page(directory)
        assert not walk.done
        assert await mount._walk("d/f") is before
        await mount.parts.listings.complete(directory.inode)
        assert await mount._walk("d/f") is before

    with composed(store, tmp_path) as mount:
        mount.loop.run(lambda: look(mount))


def test_what_a_newer_listing_has_shown_stays_when_an_older_one_ends(tmp_path: Path) -> None:
    """Another client made it after the older one had passed its place."""
    store = Held(page=2)

    async def look(mount: Composed) -> None:
        await put_all(store, {f"d/{name}": b"x" for name in "acdefg"})
        listings, top = mount.parts.listings, await mount._walk("d")
        directory = listings.directory(top)
        directory.doubt()
        older = await listings.first_page(directory)
        assert older.names[:] == [b"a", b"c"]
        await put_all(store, {"d/b": b"theirs"})
        mount.loop._clock.jump(0.1)
        directory.doubt()
        newer = await listings.first_page(directory)
        assert newer is not older and newer.names[:] == [b"a", b"b"]
        while not older.done:
            await listings.advance(directory, older, have=len(older.names))
        assert sorted(await mount.tree()) == ["d", *(f"d/{name}" for name in "abcdefg")]

    with composed(store, tmp_path) as mount:
        mount.loop.run(lambda: look(mount))


class Disordered(Held):
    """Lists the keys of `d` in two pages, of which the first one has the last key, and does not end with it."""

    async def list(self, prefix: str, **options: Any) -> Page:
        page = await super().list(prefix, **{**options, "token": ""})
        if prefix != "d/" or not options.get("delimiter", "/"):
            return page
        last, *others = page.objects[::-1]
        if options.get("token"):
            return Page(tuple(others[2:]), ())
        return Page((last, *others[:2][::-1]), (), "more")


def test_where_keys_come_in_no_order_a_name_that_was_not_shown_yet_is_there(tmp_path: Path) -> None:
    store = Disordered()

    async def look(mount: Composed) -> None:
        await put_all(store, {f"d/{name}": name.encode() for name in "abcdefg"})
        top = await mount._walk("d")
        directory = mount.parts.listings.directory(top)
        directory.doubt()
        walk = await mount.parts.listings.first_page(directory)
        assert not walk.done and b"b" not in walk.names
        assert (await mount.parts.namespace.lookup(top, b"b")).name == b"b"
        with fails(errno.ENOENT):
            await mount.parts.namespace.lookup(top, b"bb")

    with composed(store, tmp_path) as mount:
        mount.loop.run(lambda: look(mount))
