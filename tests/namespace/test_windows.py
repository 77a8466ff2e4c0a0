"""Old names that are asked for one after the other, and what happens to them between the page that shows them and that.

In one process and without a kernel, for only so can each order be had.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from sosfs.config.parameters import TTL
from sosfs.errors import StoreError
from sosfs.namespace.eviction import REST, USED, Eviction
from sosfs.namespace.namespace import WALK
from sosfs.tree.inodes import Directory, Inode
from tests.support.composed import Composed
from tests.support.drive import fails
from tests.support.held import Held, begun, listed_long_ago, put_all, settled, told

FILES, PAGE = 400, 50  # more than are listed again to check one name


@pytest.fixture
def store() -> Held:
    return Held(page=PAGE)


@pytest.fixture
def mount(tmp_path: Path, store: Held) -> Iterator[Composed]:
    """A mount that has listed `d` long ago."""
    with listed_long_ago(store, tmp_path, files=FILES) as mount:
        yield mount


async def walked(mount: Composed) -> Directory:
    """Asks for some names one by one, until there is a page in the middle that serves those that follow."""
    top = await mount._walk("d")
    for number in range(400, 410, 2):
        await mount.parts.namespace.lookup(top, b"%04d" % number)
    directory = mount.parts.listings.directory(top)
    assert directory.window is not None
    assert directory.has_window("0421", TTL)
    return directory


async def found(mount: Composed, name: str) -> Inode:
    return await mount.parts.namespace.lookup(await mount._walk("d"), name.encode())


def forget(mount: Composed, *, most: int = 10) -> None:
    """Forgets all that may be forgotten."""

    async def cut() -> None:
        Eviction(mount.parts.inodes, mount.parts.attributes, mount.parts.listings, mount.spawn, None, most=most).look()
        mount.parts.listings.watchers.pop()  # this once

    mount.loop.run(cut)


def test_a_file_that_was_made_after_the_page_is_found_when_it_was_forgotten(mount: Composed) -> None:
    mount.loop.run(lambda: walked(mount))

    async def make() -> None:
        await mount.parts.creations.make_object(await mount._walk("d"), b"0421", 0o100644, 0, 0)

    mount.loop.run(make)
    mount.loop.passes(USED + REST)
    forget(mount)

    async def look() -> None:
        top = await mount._walk("d")
        assert b"0421" not in mount.parts.listings.directory(top).entries, "else this shows nothing"
        assert (await found(mount, "0421")).name == b"0421"

    mount.loop.run(look)


def test_a_file_that_another_client_made_after_the_page_is_found_by_who_could_not_make_it(
    mount: Composed, store: Held
) -> None:
    async def make() -> None:
        await walked(mount)
        await put_all(store, {"d/0421": b"theirs"})
        with fails(errno.EEXIST):
            await mount.parts.creations.make_object(await mount._walk("d"), b"0421", 0o100644, 0, 0)
        assert (await found(mount, "0421")).size == len(b"theirs")

    mount.loop.run(make)


@pytest.mark.parametrize("theirs", [False, True], ids=["made here and forgotten", "made by another client"])
def test_a_file_that_was_made_while_the_page_was_on_its_way_is_found(
    mount: Composed, store: Held, theirs: bool
) -> None:
    """Who makes it does not wait for the page: its name comes before the one that is looked for."""
    held = trio.Event()
    outcomes: dict[str, Any] = {}

    async def make() -> None:
        top = await mount._walk("d")
        for number in range(400, 400 + 2 * (WALK - 1), 2):
            await mount.parts.namespace.lookup(top, b"%04d" % number)
        store.after["list", "d/"] = held
        await begun(mount, lambda: mount.parts.namespace.lookup(top, b"0410"))
        assert ("list", "d/") in store.reached
        del store.after["list", "d/"]
        if theirs:
            mount.loop._clock.jump(0.1)
            await put_all(store, {"d/0405": b""})
            store.errors["head", "d/0405"] = [StoreError(errno.ENOENT, "head 'd/0405'", status=404)]
            with fails(errno.EEXIST):
                await mount.parts.creations.make_object(top, b"0405", 0o100644, 0, 0)
        else:
            await mount.parts.creations.make_object(top, b"0405", 0o100644, 0, 0)

    async def look() -> None:
        directory = mount.parts.listings.directory(await mount._walk("d"))
        assert b"0405" not in directory.entries, "else this shows nothing"
        await begun(mount, lambda: told(outcomes, "lookup", lambda: found(mount, "0405")))
        await settled(held)
        assert outcomes["lookup"] is directory.entries[b"0405"]

    mount.loop.run(make)
    mount.loop.passes(USED + REST)
    forget(mount)
    mount.loop.run(look)


@pytest.mark.parametrize("is_in_the_middle", [False, True], ids=["by a listing", "by a page in the middle"])
def test_a_file_in_the_place_of_a_directory_is_found_by_its_name(
    mount: Composed, store: Held, is_in_the_middle: bool
) -> None:
    async def replace() -> None:
        await put_all(store, {"d/0421/x": b"x"})
        await mount.parts.listings.complete(await mount._walk("d"))
        assert (await found(mount, "0421")).is_directory

    async def look() -> None:
        await store.delete("d/0421/x")
        await put_all(store, {"d/0421": b"a file now"})
        if is_in_the_middle:
            await walked(mount)
        else:
            directory, walk = mount.parts.listings.walk(await mount._walk("d"))
            while not walk.done:
                await mount.parts.listings.advance(directory, walk, have=len(walk.names))
                if walk.covers("0421"):
                    break
        inode = await found(mount, "0421")
        assert not inode.is_directory
        assert inode.size == len(b"a file now")

    mount.loop.run(replace)
    mount.loop.passes(2 * TTL)
    mount.loop.run(look)


def test_names_far_from_each_other_are_not_each_asked_for_with_a_page(mount: Composed, store: Held) -> None:
    async def look() -> None:
        top = await mount._walk("d")
        store.calls.clear()
        names = [b"%04d" % number for number in range(0, 2 * FILES, 2 * PAGE + 2)]
        for name in names:
            await mount.parts.namespace.lookup(top, name)
        assert store.calls["head"] == len(names)
        assert store.calls["list"] <= len(names) + len(names) // 3, "one for each as a prefix, and the pages"

    mount.loop.run(look)


def test_no_error_makes_a_name_absent(mount: Composed, store: Held) -> None:
    async def look() -> None:
        top = await mount._walk("d")
        for number in (0, 2):
            await mount.parts.namespace.lookup(top, b"%04d" % number)
        store.errors["list", "d/"] = [StoreError(errno.EIO, "list 'd/'", detail="500 of the server")]
        with fails(errno.EIO):
            for number in (6, 8, 10, 12):
                await mount.parts.namespace.lookup(top, b"%04d" % number)
        for number in (6, 8, 10, 12):
            assert (await found(mount, f"{number:04d}")).size == 5000

    mount.loop.run(look)


@pytest.mark.parametrize("folder", ["", "d"], ids=["the root", "a directory with a marker"])
def test_no_file_with_an_empty_name_is_made_up(mount: Composed, store: Held, folder: str) -> None:
    """`%~-` is what two slashes have between them; what the key before the second one has is the directory's own."""

    async def look() -> None:
        await put_all(store, {f"!{number:04d}": b"x" for number in range(FILES)} | {"d/": b""})
        top = await mount._walk(folder)
        await mount.parts.listings.complete(top)
        mount.loop._clock.jump(2 * TTL)
        with fails(errno.ENOENT):
            await mount.parts.namespace.lookup(top, b"%~-")
        await put_all(store, {f"{folder}/".lstrip("/") + "/x": b"x"})
        assert (await mount.parts.namespace.lookup(top, b"%~-")).is_directory

    mount.loop.run(look)
