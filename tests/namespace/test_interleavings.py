"""What several do to names at once, each step held back until another's has fallen between.

In one process and without a kernel, for only so can each order be had.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from sosfs.config.parameters import TTL, Durability
from sosfs.errors import StoreError
from sosfs.files.open_file import Handle
from sosfs.files.spool import Spool
from sosfs.s3.protocol import Headers, Page, Properties, Version
from sosfs.tree.inodes import Reading
from sosfs.tree.keys import name_of
from tests.support.composed import LONG, TASK, Composed, composed
from tests.support.drive import fails
from tests.support.fake_store import FakeStore
from tests.support.held import Held, begun, bodies, closed, denied, opened, put_all, settled, silence, told

OURS, THEIRS = b"ours!", b"theirs, longer"


def test_a_delete_that_is_tried_again_does_not_take_what_was_renamed_there(mount: Composed, store: Held) -> None:
    """`rm b`, of which the answer fails, and `mv a b` meanwhile."""
    mount.loop.run(lambda: put_all(store, {"a": b"precious", "b": b"old", "c": b"c"}))

    async def remove() -> None:
        await mount.unlink("c")  # proves that the key may delete: the next one is queued
        store.before["delete", "b"] = trio.Event()
        store.errors["delete", "b"] = [StoreError(errno.EIO, "delete 'b'", detail="500 of the server")]
        await mount.unlink("b")

    async def rename() -> None:
        await mount.rename("a", "b")

    mount.loop.run(remove)
    mount.loop.passes(1)
    assert ("delete", "b") in store.reached
    mount.loop.run(lambda: begun(mount, rename))

    async def fail() -> None:
        store.before["delete", "b"].set()

    mount.loop.run(fail)
    mount.loop.passes(60)
    assert bodies(store) == {"b": b"precious"}


def test_a_file_of_a_directory_that_is_gone_is_not_one_of_the_root(mount: Composed, store: Held) -> None:
    """Another client removes `d`; who works in it still removes a name that the root has as well."""
    mount.loop.run(lambda: put_all(store, {"d/README": b"of d", "README": b"of the root"}))

    async def go_on() -> None:
        directory = await mount._walk("d")
        directory.lookups += 1  # a shell works in it
        await mount.parts.listings.complete(directory)
        mount.loop._clock.jump(TTL / 2)
        root = mount.parts.inodes.root
        assert root.directory is not None
        root.directory.now = None  # its own listing is older
        await store.delete("d/README")
        await mount.parts.listings.complete(root)
        assert b"d" not in root.directory.entries
        with contextlib.suppress(OSError):
            await mount.parts.namespace.unlink(directory, b"README")

    mount.loop.run(go_on)
    assert bodies(store) == {"README": b"of the root"}


def test_a_new_file_of_a_directory_that_is_gone_is_not_made_in_the_root(mount: Composed, store: Held) -> None:
    mount.loop.run(lambda: put_all(store, {"d/x": b"x", "top": b"of the root"}))

    async def go_on() -> None:
        directory = await mount._walk("d")
        directory.lookups += 1
        await mount.parts.listings.complete(directory)
        await store.delete("d/x")
        mount.loop._clock.jump(2 * TTL)
        await mount.parts.listings.complete(mount.parts.inodes.root)
        try:
            handle = await mount._opened(directory, b"new", os.O_CREAT | os.O_WRONLY)
        except OSError:
            return
        await mount.parts.file_io.write(handle, 0, b"new")
        await mount.parts.file_io.flush(handle)
        await mount.parts.file_io.release(handle)

    mount.loop.run(go_on)
    assert bodies(store) == {"top": b"of the root"}


def test_what_is_being_written_stays_in_a_directory_that_has_no_key_left(mount: Composed, store: Held) -> None:
    """This mount alone: `d` has no marker, `d/new` is being written for long, `rm d/old`, `ls`, and the close."""
    handles: list[Handle] = []
    mount.loop.run(lambda: put_all(store, {"d/old": b"old", "new": b"of the root"}))

    async def begin() -> None:
        directory = await mount._walk("d")
        handles.append(await mount._opened(directory, b"new", os.O_CREAT | os.O_WRONLY))
        await mount.parts.file_io.write(handles[0], 0, b"of d")
        await mount.unlink("d/old")

    async def end() -> None:
        await mount.parts.listings.complete(mount.parts.inodes.root)
        await mount.parts.file_io.flush(handles[0])
        await mount.parts.file_io.release(handles[0])

    mount.loop.run(begin)
    mount.loop.passes(2 * TTL)
    mount.loop.run(end)
    found = {key: body for key, body in bodies(store).items() if not key.endswith("/")}
    assert found == {"d/new": b"of d", "new": b"of the root"}


def test_a_file_renamed_in_a_directory_that_is_being_renamed_stays_in_it(mount: Composed, store: Held) -> None:
    mount.loop.run(lambda: put_all(store, {"p/f": b"f", "p/other": b"other"}))

    async def begin() -> None:
        store.before["copy", "p/other"] = trio.Event()
        old = await mount._walk("p")
        mount.nursery.start_soon(mount.rename, "p", "q")
        await trio.testing.wait_all_tasks_blocked()
        assert store.reached

        async def rename() -> None:
            await mount.parts.renames.rename(old, b"f", old, b"g", replace=True)

        mount.nursery.start_soon(rename)
        await trio.testing.wait_all_tasks_blocked()
        store.before["copy", "p/other"].set()
        await trio.testing.wait_all_tasks_blocked()

    mount.loop.run(begin)
    mount.loop.passes(5)
    assert bodies(store) == {"q/g": b"f", "q/other": b"other"}


def test_a_file_renamed_into_a_directory_that_is_being_renamed_is_in_it(mount: Composed, store: Held) -> None:
    mount.loop.run(lambda: put_all(store, {"s/f": b"f", "p/other": b"other", "s/h": b"h"}))

    async def begin() -> None:
        store.before["copy", "p/other"] = trio.Event()
        old, source = await mount._walk("p"), await mount._walk("s")
        await mount.parts.listings.complete(old)
        mount.nursery.start_soon(mount.rename, "p", "q")
        await trio.testing.wait_all_tasks_blocked()
        assert store.reached

        async def rename() -> None:
            await mount.parts.renames.rename(source, b"f", old, b"g", replace=True)

        mount.nursery.start_soon(rename)
        await trio.testing.wait_all_tasks_blocked()
        store.before["copy", "p/other"].set()
        await trio.testing.wait_all_tasks_blocked()

    mount.loop.run(begin)
    mount.loop.passes(5)
    assert bodies(store) == {"q/g": b"f", "q/other": b"other", "s/h": b"h"}


@pytest.mark.parametrize("theirs", [None, b"theirs" * 1000])
def test_bytes_are_not_lost_in_silence_when_a_listing_showed_another_version_first(
    mount: Composed, store: Held, theirs: bytes | None
) -> None:
    """A log is open for appending; another host rotates or rewrites it; `ls`; the next line is written."""
    handles: list[Handle] = []
    mount.loop.run(lambda: put_all(store, {"log": b"first\n"}))

    async def begin() -> None:
        inode = await mount._walk("log")
        inode.lookups += 1
        handles.append(await mount._opened(mount.parts.inodes.root, b"log", os.O_WRONLY))
        await store.delete("log")
        if theirs is not None:
            await put_all(store, {"log": theirs})

    async def end() -> None:
        handle = handles[0]
        await mount.parts.listings.complete(mount.parts.inodes.root)  # ls
        with pytest.raises(OSError):
            await mount.parts.file_io.write(handle, 6, b"second\n")
            await mount.parts.file_io.flush(handle)
        await mount.parts.file_io.release(handle)

    mount.loop.run(begin)
    mount.loop.passes(2 * TTL)
    mount.loop.run(end)


def test_stat_of_a_file_that_is_being_renamed_does_not_break_the_rename(mount: Composed, store: Held) -> None:
    """The server has removed the old key and its answer is on its way, when somebody asks for the attributes."""
    mount.loop.run(lambda: put_all(store, {"a": b"a" * 5000}))
    outcomes: dict[str, BaseException | None] = {}

    async def told(what: str, work: Callable[[], Awaitable[Any]]) -> None:
        try:
            await work()
            outcomes[what] = None
        except Exception as error:  # noqa: BLE001
            outcomes[what] = error

    async def begin() -> None:
        root = mount.parts.inodes.root
        inode = await mount.parts.namespace.lookup(root, b"a")  # as listed
        inode.lookups += 1
        store.after["delete", "a"] = trio.Event()
        mount.nursery.start_soon(
            told, "rename", lambda: mount.parts.renames.rename(root, b"a", root, b"b", replace=True)
        )
        await trio.testing.wait_all_tasks_blocked()
        assert store.reached
        mount.nursery.start_soon(told, "stat", lambda: mount.parts.attributes.revalidate(inode))
        await trio.testing.wait_all_tasks_blocked()
        store.after["delete", "a"].set()
        await trio.testing.wait_all_tasks_blocked()

    mount.loop.run(begin)
    assert outcomes == {"rename": None, "stat": None}


def test_a_failed_rename_over_an_empty_directory_leaves_that(mount: Composed, store: Held) -> None:
    mount.loop.run(lambda: put_all(store, {"p/": b"", "p/f": b"f", "q/": b"", "z": b"z"}))
    store.errors["copy", "p/f"] = [StoreError(errno.EIO, "copy 'p/f'", detail="500 of the server")]

    async def rename() -> None:
        with fails(errno.EIO):
            await mount.rename("p", "q")

    mount.loop.run(rename)
    mount.loop.passes(2 * TTL)

    async def look() -> None:
        assert sorted(await mount.tree()) == ["p", "p/f", "q", "z"]

    mount.loop.run(look)


def test_a_directory_whose_key_is_too_long_is_refused_when_it_is_made(tmp_path: Path) -> None:
    """Its key ends in a slash: 1,025 bytes. With the journal nothing else refuses it, and umount cannot end."""
    store = Held()
    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        parent = "/".join(["a" * 255, "b" * 255, "c" * 255, "d" * 200])

        async def make() -> int | None:
            names = parent.split("/")
            for depth in range(len(names)):
                await mount.mkdir("/".join(names[: depth + 1]))
            try:
                await mount.mkdir(f"{parent}/{'e' * 55}")
            except OSError as error:
                return error.errno
            return None

        made = mount.loop.run(make)
        mount.loop.passes(300)
        mount.loop.run(mount.parts.drain)
        left = mount.parts.pending
        mount.parts.attributes.dirty.clear()
        assert (made, left) == (errno.ENAMETOOLONG, 0)


class Slow(Held):
    """A page takes 3 seconds."""

    slow = False

    async def list(self, *arguments: Any, **options: Any) -> Page:
        if self.slow:
            await trio.sleep(3.0)
        return await super().list(*arguments, **options)


def test_a_name_that_is_too_long_is_found_in_a_directory_that_takes_long_to_list(tmp_path: Path) -> None:
    store = Slow(page=100)
    with composed(store, tmp_path) as mount:
        long = "long" * 100
        mount.loop.run(lambda: put_all(store, {f"{at:04}": b"x" for at in range(400)} | {long: b"found"}))
        store.slow = True
        told: list[Any] = []

        async def look() -> None:
            try:
                told.append(await mount.parts.namespace.lookup(mount.parts.inodes.root, name_of(long)))
            except OSError as error:
                told.append(error)

        mount.loop.run(lambda: begun(mount, look))
        for _ in range(100):
            mount.loop.passes(1)
        store.slow = False
        assert told and not isinstance(told[0], OSError), told


def test_a_delete_that_is_tried_again_spares_what_another_host_has_written_there(mount: Composed, store: Held) -> None:
    mount.loop.run(lambda: put_all(store, {"b": b"old", "c": b"c"}))
    store.errors["delete", "b"] = [StoreError(errno.EIO, "delete 'b'", detail="the server is out of reach")] * 5

    async def remove() -> None:
        await mount.unlink("c")
        await mount.unlink("b")

    mount.loop.run(remove)
    mount.loop.passes(2)
    mount.loop.run(lambda: put_all(store, {"b": b"of another host, who reaches the server"}))
    mount.loop.passes(100)
    assert "b" in bodies(store)


def test_an_open_file_of_a_directory_that_is_gone_does_not_show_one_of_the_root(mount: Composed, store: Held) -> None:
    mount.loop.run(lambda: put_all(store, {"d/README": b"of d, small", "README": b"of the root"}))
    told: list[Any] = []

    async def go_on() -> None:
        inode = await mount._walk("d/README")
        inode.lookups += 1
        assert inode.parent is not None
        inode.parent.lookups += 1
        handle = await mount.parts.file_io.open(inode, os.O_RDONLY, TASK)
        await store.delete("d/README")
        mount.loop._clock.jump(2 * TTL)
        await mount.parts.listings.complete(mount.parts.inodes.root)
        try:
            told.append(bytes(await mount.parts.file_io.read(handle, 0, 100)))
        except OSError as error:
            told.append(error.errno)
        await mount.parts.file_io.release(handle)

    mount.loop.run(go_on)
    assert told in ([errno.ESTALE], [b"of d, small"])


@pytest.mark.parametrize("how", ["read", "stat"])
def test_a_file_is_there_while_and_after_its_directory_is_renamed(mount: Composed, store: Held, how: str) -> None:
    """The old keys are gone, and the answer that tells so is on its way."""
    mount.loop.run(lambda: put_all(store, {"p/f": b"f" * 5000, "p/g": b"g"}))
    told: list[Any] = []

    async def go_on() -> None:
        directory = await mount._walk("p")
        await mount.parts.listings.complete(directory)
        inode = await mount.parts.namespace.lookup(directory, b"f")
        inode.lookups += 1
        handle = await mount.parts.file_io.open(inode, os.O_RDONLY, TASK)
        store.after["delete_many", "p/f"] = trio.Event()
        mount.nursery.start_soon(mount.rename, "p", "q")
        await trio.testing.wait_all_tasks_blocked()
        assert store.reached

        async def use() -> None:
            try:
                if how == "stat":
                    told.append((await mount.parts.attributes.revalidate(inode)).size)
                else:
                    told.append(len(await mount.parts.file_io.read(handle, 0, 9000)))
            except OSError as error:
                told.append(error)

        mount.nursery.start_soon(use)
        await trio.testing.wait_all_tasks_blocked()
        store.after["delete_many", "p/f"].set()
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(await mount.tree()) == ["q", "q/f", "q/g"]
        await mount.parts.file_io.release(handle)

    mount.loop.run(go_on)
    assert told == [5000]


def test_a_directory_made_before_a_rename_is_there_after_a_crash(tmp_path: Path) -> None:
    store = Held()
    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(lambda: put_all(store, {"p/f": b"f", "p/g": b"g"}))

        async def go_on() -> None:
            directory = await mount._walk("p")
            inode = await mount._walk("p/f")
            store.before["copy", "p/f"] = trio.Event()
            inode.mode = 0o100600
            mount.parts.attributes.changed(inode)
            mount.nursery.start_soon(mount.parts.attributes.write_now, inode)  # under way: the rename waits for it
            await trio.testing.wait_all_tasks_blocked()
            assert store.reached
            mount.nursery.start_soon(mount.rename, "p", "q")
            await trio.testing.wait_all_tasks_blocked()
            await mount.parts.creations.make_directory(directory, b"new", 0o755, 0, 0)
            store.before["copy", "p/f"].set()
            await trio.testing.wait_all_tasks_blocked()
            assert "q" in await mount.tree()

        mount.loop.run(go_on)
        mount.crash()
        mount.start()

        async def look() -> None:
            assert sorted(await mount.tree()) == ["q", "q/f", "q/g", "q/new"]

        mount.loop.run(look)


@pytest.mark.parametrize("before", ["directory", "file"])
def test_a_page_that_comes_late_does_not_rename_what_was_made_since(tmp_path: Path, before: str) -> None:
    """`rm -r d` and a new file `d`, or `rm d` and `mkdir d`, while a page that shows the old one is on its way."""
    store = Held(page=300)
    with composed(store, tmp_path) as mount:
        old = "d/x" if before == "directory" else "d"
        mount.loop.run(lambda: put_all(store, {f"{at:04}": b"x" for at in range(300)} | {old: b"old"}))

        async def go_on() -> None:
            root, listings = mount.parts.inodes.root, mount.parts.listings
            await listings.complete(root)
            mount.loop._clock.jump(2 * TTL)
            walk = await listings.first_page(listings.directory(root))
            assert not walk.done
            store.after["list", ""] = trio.Event()
            mount.nursery.start_soon(lambda: listings.advance(listings.directory(root), walk, have=len(walk.names)))
            await trio.testing.wait_all_tasks_blocked()
            assert store.reached
            mount.loop._clock.jump(0.1)
            if before == "directory":
                await mount.unlink("d/x")
                await mount.rmdir("d")
                await mount.write("d", b"new", flags=os.O_CREAT)
            else:
                await mount.unlink("d")
                await mount.mkdir("d")
            store.after["list", ""].set()
            await trio.testing.wait_all_tasks_blocked()
            names = {name for name in listings.directory(root).entries if not name.isdigit()}
            assert names == {b"d"}, names

        mount.loop.run(go_on)


def test_an_absence_that_is_told_late_does_not_take_what_was_made_since(tmp_path: Path) -> None:
    store = Held()
    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(lambda: put_all(store, {"a": b"a" * 5000}))

        async def begin() -> None:
            inode = await mount.parts.namespace.lookup(mount.parts.inodes.root, b"a")
            store.before["head", "a"] = trio.Event()
            mount.spawn(lambda: mount.parts.attributes.ask_ahead(inode))
            await trio.testing.wait_all_tasks_blocked()
            assert store.reached
            mount.loop._clock.jump(2 * TTL)
            mount.parts.namespace.sweep()  # nobody holds what was listed
            held = store.before.pop(("head", "a"))
            await store.delete("a")  # another client's doing
            store.before["head", "a"] = held
            await mount.write("a", b"new", flags=os.O_CREAT)  # safe in the journal
            held.set()
            await trio.testing.wait_all_tasks_blocked()
            assert list(await mount.tree()) == ["a"]

        mount.loop.run(begin)
        mount.loop.passes(2)
        assert bodies(store) == {"a": b"new"}


def test_a_refused_rename_does_not_remove_what_it_was_to_replace(mount: Composed, store: Held) -> None:
    """The key may not remove `a` alone: a policy, or a lock on the object."""
    mount.loop.run(lambda: put_all(store, {"a": b"a", "b": b"the only copy"}))
    store.errors["delete", "a"] = [StoreError(errno.EACCES, "delete 'a'", code="AccessDenied", status=403)]

    async def rename() -> None:
        with fails(errno.EACCES):
            await mount.rename("a", "b")

    mount.loop.run(rename)
    assert "b" in bodies(store)


def test_a_file_that_another_client_replaced_has_its_size_after_a_rename_of_its_directory(tmp_path: Path) -> None:
    store = FakeStore()

    async def main(mount: Composed) -> None:
        await mount.mkdir("d")
        await mount.write("d/file", OURS, flags=os.O_CREAT)
        await store.put("d/file", THEIRS, Properties(Headers(), {"mode": str(0o100600)}))
        await mount.rename("d", "e")

    with composed(store, tmp_path) as mount:
        mount.loop.run(lambda: main(mount))
        for _ in range(3):
            mount.loop.passes(11)
            tree = mount.loop.run(mount.tree)
        assert tree["e/file"] == (THEIRS, 0o600), tree


def test_what_is_being_written_does_not_go_over_another_clients_version_by_a_rename(tmp_path: Path) -> None:
    store = FakeStore()
    told: list[int | None] = []

    async def main(mount: Composed) -> None:
        await mount.mkdir("d")
        await mount.write("d/file", OURS, flags=os.O_CREAT)
        inode = await mount._walk("d/file")
        writer = await mount.parts.file_io.open(inode, os.O_RDWR, TASK)
        await mount.parts.file_io.write(writer, 0, b"W")
        await store.put("d/file", THEIRS, Properties())
        await mount.rename("d", "e")
        try:
            await mount.parts.file_io.flush(writer)
        except OSError as error:
            told.append(error.errno)
        await mount.parts.file_io.release(writer)

    with composed(store, tmp_path) as mount:
        mount.loop.run(lambda: main(mount))
        stored = bodies(store)
    assert stored["e/file"] == THEIRS
    assert told == [errno.ESTALE]


def test_a_directory_that_is_renamed_while_it_is_read_is_read_to_its_end(tmp_path: Path) -> None:
    store = Held(page=10)
    with composed(store, tmp_path) as mount:
        mount.loop.run(lambda: put_all(store, {f"p/{at:02}": b"x" for at in range(25)}))

        async def go_on() -> None:
            listings, directory = mount.parts.listings, await mount._walk("p")
            here, walk = listings.walk(directory)
            reading = Reading(here, walk)  # what opendir makes
            await listings.advance(here, walk, have=0)
            await mount.rename("p", "q")
            while not walk.done:
                await listings.advance(here, walk, have=len(walk.names))
            reading.close()
            assert len(walk.names) == 25

        mount.loop.run(go_on)


def test_a_directory_that_is_listed_while_its_old_keys_go_shows_all_its_files(mount: Composed, store: Held) -> None:
    mount.loop.run(lambda: put_all(store, {f"p/{at}": b"x" for at in range(5)}))

    async def go_on() -> None:
        listings, directory = mount.parts.listings, await mount._walk("p")
        store.before["list", "p/"] = trio.Event()
        mount.nursery.start_soon(listings.complete, directory)  # its page will be of the keys that are left by then
        await trio.testing.wait_all_tasks_blocked()
        held = store.before.pop(("list", "p/"))
        store.after["delete_many", "p/0"] = trio.Event()
        mount.nursery.start_soon(mount.rename, "p", "q")
        await trio.testing.wait_all_tasks_blocked()
        assert ("delete_many", "p/0") in store.reached
        held.set()
        await trio.testing.wait_all_tasks_blocked()
        store.after["delete_many", "p/0"].set()
        await trio.testing.wait_all_tasks_blocked()
        assert len((await listings.complete(directory)).names) == 5

    mount.loop.run(go_on)


@pytest.mark.parametrize("then", ["rm", "mv", "mv over"])
def test_a_file_whose_upload_got_no_answer_does_not_come_back(mount: Composed, store: Held, then: str) -> None:
    async def go_on() -> None:
        await put_all(store, {"other": b"other"})
        store.lost.add("file")
        with fails(errno.EIO):
            await mount.write("file", b"new", flags=os.O_CREAT)
        if then == "rm":
            await mount.unlink("file")
        elif then == "mv":
            await mount.rename("file", "name")
        else:
            await mount.rename("other", "file")

    mount.loop.run(go_on)
    mount.loop.passes(LONG)
    expected = {"rm": {"other": b"other"}, "mv": {"other": b"other", "name": b"new"}, "mv over": {"file": b"other"}}
    assert bodies(store) == expected[then]


def test_a_listing_that_took_longer_than_it_holds_makes_no_name_absent(mount: Composed, store: Held) -> None:
    """Somebody else has begun another by then, of which nothing is here yet."""
    mount.loop.run(lambda: put_all(store, {"a": b"a", "b": b"b"}))
    found: dict[str, Any] = {}

    async def look(name: str) -> None:
        await told(found, name, lambda: mount._walk(name))

    async def first() -> None:
        store.after["list"] = trio.Event()
        await begun(mount, lambda: look("a"))

    async def second() -> None:
        first, store.before["list"] = store.after.pop("list"), trio.Event()
        await begun(mount, lambda: look("b"))
        await settled(first)
        await settled(store.before.pop("list"))

    mount.loop.run(first)
    mount.loop.passes(2 * TTL)
    mount.loop.run(second)
    assert {name: inode.size for name, inode in found.items()} == {"a": 1, "b": 1}


def test_a_listing_that_took_longer_than_it_holds_does_not_make_absent_what_came_since(
    mount: Composed, store: Held
) -> None:
    found: dict[str, Any] = {}

    async def first() -> None:
        store.after["list"] = trio.Event()
        await begun(mount, lambda: told(found, "a", lambda: mount._walk("a")))
        await put_all(store, {"a": b"a"})

    mount.loop.run(first)
    mount.loop.passes(2 * TTL)
    mount.loop.run(lambda: settled(store.after.pop("list")))
    assert found["a"].size == 1


@pytest.mark.parametrize("renamed", ["d", "file", "unsent"])
@pytest.mark.parametrize("removed", ["b", "b/"])
def test_what_is_renamed_waits_for_the_removal_of_what_had_its_name(
    mount: Composed, store: Held, renamed: str, removed: str
) -> None:
    """Be that a file or a directory, whose key is another: it would be seen again as soon as the name is free."""
    mount.loop.run(lambda: put_all(store, {"c": b"c", removed: b"", "d/": b"", "d/f": b"f", "file": b"file"}))
    answers: dict[str, Any] = {}

    async def rename() -> None:
        await mount.unlink("c")  # proves that the key may delete: the next one is queued
        store.before["delete", removed] = store.before["delete_many", removed] = trio.Event()
        await (mount.rmdir if removed == "b/" else mount.unlink)("b")
        if renamed == "unsent":
            parent, name = await mount._parent(renamed)
            answers["handle"] = await mount._opened(parent, name, os.O_CREAT | os.O_RDWR)
        await begun(mount, lambda: told(answers, "rename", lambda: mount.rename(renamed, "b")))

    mount.loop.run(rename)
    mount.loop.passes(1)
    assert "rename" not in answers
    mount.loop.run(lambda: settled(store.before["delete", removed]))
    mount.loop.passes(5)
    assert answers["rename"] is None
    assert ("b" in bodies(store), "b/" in bodies(store)) == (renamed == "file", renamed == "d")


async def _written_though_removed(mount: Composed, store: Held, size: int, *, at: int) -> Handle:
    """A handle of a file of `old` bytes, whose removal gets no answer between two changes of it."""
    await put_all(store, {"file": b"o" * size})
    handle = await opened(mount)
    await mount.parts.file_io.write(handle, at, b"n")
    store.unanswered["delete", "file"] = [silence("delete")]
    with fails(errno.EIO):
        await mount.unlink("file")
    assert bodies(store) == {}
    await mount.parts.file_io.write(handle, at + 1, b"n")
    return handle


@pytest.mark.parametrize("size", [100, 20_000], ids=["whole", "parts"])
def test_a_file_whose_removal_got_no_answer_is_stored_again_and_no_conflict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """It is there no more, by our own doing, and who has it open goes on writing."""
    monkeypatch.setattr("tests.support.fake_store.PART_MIN", 1)
    store = Held()

    async def main(mount: Composed) -> None:
        handle = await _written_though_removed(mount, store, size, at=size)
        mount.loop._clock.jump(2 * TTL)
        await closed(mount, handle)

    with composed(store, tmp_path, part_size=8192) as mount:
        mount.loop.run(partial(main, mount))
        assert bodies(store) == {"file": b"o" * size + b"nn"}


def test_what_another_client_stores_after_a_removal_without_an_answer_is_not_written_over(
    mount: Composed, store: Held
) -> None:
    async def main() -> None:
        handle = await _written_though_removed(mount, store, 100, at=0)
        await put_all(store, {"file": THEIRS})
        with fails(errno.ESTALE):
            await closed(mount, handle)

    mount.loop.run(main)
    assert sorted(bodies(store).values()) == sorted([THEIRS, b"nn" + b"o" * 98])


def test_nor_what_another_client_stores_once_that_file_was_found_gone(mount: Composed, store: Held) -> None:
    put, puts = store.put, 0

    async def overtaken(key: str, *arguments: Any, **options: Any) -> Version:
        nonlocal puts
        puts += 1
        if puts == 2:
            await FakeStore.put(store, "file", THEIRS, Properties())
        return await put(key, *arguments, **options)

    async def main() -> None:
        handle = await _written_though_removed(mount, store, 100, at=0)
        store.put = overtaken  # type: ignore[method-assign]
        with fails(errno.ESTALE):
            await closed(mount, handle)

    mount.loop.run(main)
    assert sorted(bodies(store).values()) == sorted([THEIRS, b"nn" + b"o" * 98])


def test_a_file_of_which_bytes_went_with_a_removal_without_an_answer_is_not_stored_with_zeros(
    mount: Composed, store: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sosfs.files.file_io.DETACH_MAX", 0)

    async def main() -> None:
        handle = await _written_though_removed(mount, store, 300_000, at=300_000)
        with fails(errno.ESTALE):
            await closed(mount, handle)

    mount.loop.run(main)
    assert "file" not in bodies(store)


def test_another_clients_removal_is_a_conflict_once_the_file_was_stored_after_its_own(
    mount: Composed, store: Held
) -> None:
    async def main() -> None:
        handle = await _written_though_removed(mount, store, 100, at=0)
        await mount.parts.file_io.flush(handle)
        assert bodies(store) == {"file": b"nn" + b"o" * 98}
        await store.delete("file")
        await mount.parts.file_io.write(handle, 0, b"!")
        with fails(errno.ESTALE):
            await closed(mount, handle)

    mount.loop.run(main)
    assert list(bodies(store).values()) == [b"!n" + b"o" * 98]
    assert "file" not in bodies(store)


@pytest.mark.parametrize("code", ["AccessDenied", "ExpiredToken"])
def test_a_file_that_another_client_removed_when_its_own_removal_was_refused_is_a_conflict(
    mount: Composed, store: Held, code: str
) -> None:
    mount.loop.run(lambda: put_all(store, {"file": b"old"}))

    async def main() -> None:
        handle = await opened(mount, os.O_RDWR | os.O_TRUNC)
        store.errors["delete", "file"] = [StoreError(errno.EACCES, "delete", code=code, status=403)]
        with fails(errno.EACCES):
            await mount.unlink("file")
        await store.delete("file")
        await mount.parts.file_io.write(handle, 0, b"new")
        with fails(errno.ESTALE):
            await closed(mount, handle)

    mount.loop.run(main)


@pytest.mark.parametrize("has_room", [True, False])
def test_a_file_that_is_stored_again_after_a_removal_without_an_answer_outlives_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_room: bool
) -> None:
    """What its record lacked was in the object that is gone: it is recorded, or else missed and not made zeros."""
    store, size = Held(), 600_000

    async def no_room(_: Spool) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def main(mount: Composed) -> None:
        await put_all(store, {"file": b"o" * size})
        handle = await opened(mount)
        await mount.parts.file_io.write(handle, 0, b"n")
        await mount.parts.file_io.fsync(handle.inode)
        store.unanswered["delete", "file"] = [silence("delete")]
        with fails(errno.EIO):
            await mount.unlink("file")
        if not has_room:
            monkeypatch.setattr(Spool, "sync", no_room)
        store.before["put", "file"] = trio.Event()
        await begun(mount, partial(mount.parts.commits.commit, handle.inode))
        ((_, saved),) = mount._journal.drafts()
        assert (saved.local, saved.base is None) == ((((0, size),), True) if has_room else (((0, 1),), False))

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(main, mount))
        if has_room:
            mount.crash()
        mount.loop.run(store.release)
        mount.take_up() if has_room else mount.loop.passes(5)
        assert bodies(store) == {"file": b"n" + b"o" * (size - 1)}


def test_a_removal_without_an_answer_is_remembered_though_a_later_one_is_refused(mount: Composed, store: Held) -> None:
    """The key may remove nothing any more; what is gone is still no other client's doing."""

    async def main() -> None:
        handle = await _written_though_removed(mount, store, 100, at=0)
        store.errors["delete", "file"] = [denied("delete")]
        with fails(errno.EACCES):
            await mount.unlink("file")
        await closed(mount, handle)

    mount.loop.run(main)
    assert bodies(store) == {"file": b"nn" + b"o" * 98}


def test_a_hole_of_a_file_whose_removal_got_no_answer_is_nothing_that_went_with_it(
    mount: Composed, store: Held
) -> None:
    async def main() -> None:
        await put_all(store, {"file": b"old"})
        handle = await opened(mount, os.O_RDWR | os.O_TRUNC)
        await mount.parts.file_io.write(handle, 3, b"new")
        store.unanswered["delete", "file"] = [silence("delete")]
        with fails(errno.EIO):
            await mount.unlink("file")
        await closed(mount, handle)

    mount.loop.run(main)
    assert bodies(store) == {"file": b"\0\0\0new"}


def test_what_another_client_removes_after_a_removal_without_an_answer_is_not_brought_back(
    mount: Composed, store: Held
) -> None:
    """That one was found out when the file was stored again."""

    async def main() -> None:
        handle = await _written_though_removed(mount, store, 100, at=0)
        await mount.parts.file_io.fsync(handle.inode)
        await store.delete("file")
        await mount.parts.file_io.write(handle, 0, b"N")
        with fails(errno.ESTALE):
            await closed(mount, handle)

    mount.loop.run(main)
    assert "file" not in bodies(store)
