"""Listings that nobody needs any more are forgotten, and what somebody holds of them is not.

In one process and without a kernel, for only so can each order be had.
"""

from __future__ import annotations

import errno
import os
from contextlib import closing
from typing import Any

import pytest
import trio
import trio.testing

from sosfs.config.parameters import TTL
from sosfs.files.open_file import Handle
from sosfs.namespace.namespace import RELIST_MAX
from sosfs.tree.inodes import Inode, Reading
from tests.support.composed import Composed
from tests.support.drive import fails
from tests.support.held import Held, begun, bodies, chmod, closed, opened, put_all, settled, told


async def listed(mount: Composed, path: str = "d") -> Inode:
    """A directory that the kernel has looked up and read."""
    top = await mount._walk(path)
    top.lookups += 1
    await mount.parts.listings.complete(top)
    return top


def files(inode: Inode) -> list[bytes]:
    """What is known of a directory."""
    return [] if inode.directory is None else sorted(inode.directory.entries)


def test_what_the_kernel_forgets_is_forgotten_and_found_again(mount: Composed, store: Held) -> None:
    async def look() -> None:
        await put_all(store, {f"d/{number}": bytes(5000) for number in range(9)} | {"d/": b""})
        top = await mount._walk("d")
        before = len(mount.parts.inodes)
        await listed(mount)
        top.lookups += 1
        mount.parts.namespace.forget(top, 1)
        assert len(files(top)) == 9, "it has been looked up twice"
        mount.parts.namespace.forget(top, 1)
        assert files(top) == []
        assert len(mount.parts.inodes) == before
        assert (await mount._walk("d/3")).size == 5000

    mount.loop.run(look)


@pytest.mark.parametrize("how", ["known to the kernel", "open", "changed", "of another mode"])
@pytest.mark.parametrize("sweeps", [False, True], ids=["forgotten by the kernel", "out of date"])
def test_a_listing_of_which_somebody_holds_a_file_stays(mount: Composed, store: Held, how: str, sweeps: bool) -> None:
    async def look() -> None:
        await put_all(store, {"d/a": bytes(5000), "d/b": bytes(5000), "d/c/x": b"x"})
        top = await listed(mount)
        inode = await mount._walk("d/a")
        inode.lookups += how == "known to the kernel"
        handle = await opened(mount, os.O_RDWR, "d/a") if how in ("open", "changed") else None
        if how == "changed" and handle is not None:
            await mount.parts.file_io.write(handle, 0, b"new")
        if how == "of another mode":
            await chmod(mount, "d/a")  # which goes up later
        mount.loop._clock.jump(2 * TTL)
        let_go(mount, top, sweeps=sweeps)
        assert mount.parts.inodes[inode.number] is inode
        assert files(top) == [b"a", b"b", b"c"]
        if handle is not None:
            await closed(mount, handle)
        assert (await mount._walk("d/a")).number == inode.number

    mount.loop.run(look)


def let_go(mount: Composed, top: Inode, *, sweeps: bool) -> None:
    """The kernel forgets a directory, or what is out of date is looked for."""
    if sweeps:
        mount.parts.namespace.sweep()
    else:
        mount.parts.namespace.forget(top, top.lookups)


def test_what_was_removed_while_it_was_open_is_there_until_it_is_closed(mount: Composed, store: Held) -> None:
    async def look() -> None:
        await put_all(store, {"a": b"a" * 5000, "b": b"b"})
        handle = await opened(mount, os.O_RDONLY, "a")
        handle.inode.lookups += 2
        await mount.unlink("a")
        for _ in range(2):
            mount.parts.namespace.forget(handle.inode, 1)
            assert mount.parts.inodes[handle.inode.number] is handle.inode
        assert bytes(await mount.parts.file_io.read(handle, 0, 3)) == b"aaa"
        await closed(mount, handle)
        mount.parts.namespace.forget(handle.inode, 0)  # as after each close
        with fails(errno.ESTALE):
            mount.parts.inodes[handle.inode.number]

    mount.loop.run(look)


def test_the_root_is_never_forgotten(mount: Composed, store: Held) -> None:
    async def look() -> None:
        await put_all(store, {"a": b"a"})
        root = mount.parts.inodes.root
        mount.parts.namespace.forget(root, root.lookups)
        assert mount.parts.inodes[root.number] is root
        assert (await mount._walk("a")).size == 1

    mount.loop.run(look)


@pytest.mark.parametrize("is_old", [False, True])
def test_a_listing_is_forgotten_when_it_is_out_of_date(mount: Composed, store: Held, is_old: bool) -> None:
    async def look() -> None:
        await put_all(store, {f"d/{number}": bytes(5000) for number in range(9)})
        top = await listed(mount)
        if is_old:
            mount.loop._clock.jump(2 * TTL)
        mount.parts.namespace.sweep()
        assert len(files(top)) == (0 if is_old else 9)
        assert (await mount._walk("d/3")).size == 5000

    mount.loop.run(look)


def test_what_is_removed_while_its_directory_is_read_for_long_is_not_shown(mount: Composed, store: Held) -> None:
    """Nor is it forgotten meanwhile that the directory is being read."""

    async def look() -> None:
        await put_all(store, {f"d/{number}": bytes(5000) for number in range(9)})
        top = await listed(mount)
        with closing(Reading(*mount.parts.listings.walk(top))) as reading:
            mount.loop._clock.jump(2 * TTL)
            mount.parts.namespace.sweep()
            await mount.unlink("d/7")
            shown = [name for name in reading.walk.names if name in reading.directory.entries]
            assert shown == [b"%d" % number for number in range(9) if number != 7]

    mount.loop.run(look)


def test_what_is_being_removed_stays_gone_when_its_directory_is_forgotten(mount: Composed, store: Held) -> None:
    """The bucket has it yet."""

    async def look() -> None:
        await put_all(store, {"d/": b"", "d/a": b"a", "d/b": b"b", "d/c": b"c"})
        top = await listed(mount)
        await mount.unlink("d/a")  # proves that the key may delete: the next one is queued
        held = store.before["delete", "d/b"] = trio.Event()
        await mount.unlink("d/b")
        let_go(mount, top, sweeps=False)
        with fails(errno.ENOENT):
            await mount._walk("d/b")
        assert [path for path in await mount.tree() if path.startswith("d/")] == ["d/c"]
        held.set()

    mount.loop.run(look)


@pytest.mark.parametrize("key", ["d/x", "d/x/below"], ids=["a file", "a directory"])
def test_who_ask_for_one_name_at_once_are_told_of_one_inode_when_its_listing_is_forgotten_meanwhile(
    mount: Composed, store: Held, key: str
) -> None:
    """Else what is done under the one number would not be known under the other."""
    outcomes: dict[str, Any] = {}

    async def look() -> None:
        await put_all(store, {f"d/{number:03d}": bytes(5000) for number in range(RELIST_MAX + 1)})
        top = await listed(mount)
        await put_all(store, {key: b"x"})
        mount.loop._clock.jump(2 * TTL)
        held = store.after["list", "d/x/"] = trio.Event()
        await begun(mount, lambda: told(outcomes, "first", lambda: mount.parts.namespace.lookup(top, b"x")))
        assert ("list", "d/x/") in store.reached
        del store.after["list", "d/x/"]
        mount.parts.namespace.sweep()
        second = await mount.parts.namespace.lookup(top, b"x")
        second.lookups += 1  # what a lookup of the kernel does
        await settled(held)
        assert top.directory is not None and outcomes["first"] is top.directory.entries[b"x"]
        assert await mount.parts.namespace.lookup(top, b"x") is outcomes["first"]
        assert outcomes["first"] is second

    mount.loop.run(look)


@pytest.mark.parametrize("sweeps", [False, True], ids=["forgotten by the kernel", "out of date"])
def test_a_page_that_comes_for_a_listing_that_nobody_needs_leaves_nothing_behind(
    mount: Composed, store: Held, sweeps: bool
) -> None:
    """Else its names would take memory for as long as the mount lasts."""
    store._page = 4

    async def look() -> None:
        await put_all(store, {f"d/{number}": bytes(5000) for number in range(9)})
        top = await mount._walk("d")
        top.lookups += 1
        before = len(mount.parts.inodes)
        walk = await mount.parts.listings.first_page(mount.parts.listings.directory(top))
        held = store.after["list", "d/"] = trio.Event()
        mount.parts.listings.reached(mount.parts.listings.directory(top), walk, int(walk.edge))
        await trio.testing.wait_all_tasks_blocked()
        assert ("list", "d/") in store.reached
        del store.after["list", "d/"]
        mount.loop._clock.jump(2 * TTL)
        let_go(mount, top, sweeps=sweeps)
        await settled(held)
        mount.parts.namespace.sweep()
        assert files(top) == []
        assert len(mount.parts.inodes) == before

    mount.loop.run(look)


@pytest.mark.parametrize("sweeps", [False, True], ids=["forgotten by the kernel", "out of date"])
def test_a_listing_below_which_another_is_known_stays(mount: Composed, store: Held, sweeps: bool) -> None:
    """Else what is being written below would have no place in the tree."""
    handles: list[Handle] = []

    async def look() -> None:
        await put_all(store, {"d/": b"", "d/e/": b"", "d/e/a": b"a", "d/b": b"b"})
        top = await listed(mount)
        handles.append(await opened(mount, os.O_RDWR, "d/e/a"))
        await mount.parts.file_io.write(handles[0], 0, b"new")
        mount.loop._clock.jump(2 * TTL)
        let_go(mount, top, sweeps=sweeps)
        assert (await mount._walk("d/e/a")) is handles[0].inode
        await closed(mount, handles[0])

    mount.loop.run(look)
    assert bodies(store)["d/e/a"] == b"new"
