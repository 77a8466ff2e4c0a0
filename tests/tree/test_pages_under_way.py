"""A page of a listing, or an answer about one name, is on its way, and what it shows is changed here meanwhile.

In one process; another client's eyes are the store itself.
"""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing

from sosfs.config.parameters import TTL
from sosfs.tree import keys
from tests.support.composed import TASK, Composed
from tests.support.fake_store import FakeStore
from tests.support.held import Held, begun, closed, put_all, settled, told


@pytest.mark.parametrize("how", ["removed", "written"])
def test_what_was_done_while_a_page_was_on_its_way_stays_done_though_another_pass_has_begun(
    mount: Composed, store: Held, how: str
) -> None:
    outcomes: dict[str, Any] = {}

    async def main() -> None:
        await put_all(store, {"d/": b"", "d/a": b"a", "d/b": b"b"})
        await mount.tree()
        parts, parent = mount.parts, await mount._walk("d")
        directory = parts.listings.directory(parent)
        mount.loop._clock.jump(2 * TTL)
        page = store.after["list", "d/"] = trio.Event()
        await begun(mount, partial(parts.listings.first_page, directory))
        inode = parts.namespace.listed(parent, b"b")
        assert inode is not None
        if how == "removed":
            await parts.namespace.unlink(parent, b"b", inode)
        else:
            handle = await parts.file_io.open(inode, os.O_RDWR, TASK)
            await parts.file_io.write(handle, 0, b"new bytes")
            await closed(mount, handle)
            await trio.testing.wait_all_tasks_blocked()
            assert not inode.pins, "else nothing is told of it"
        mount.loop._clock.jump(0.1)
        directory.doubt()  # names of it were forgotten for want of memory
        store.before["list", "d/"] = trio.Event()
        await begun(mount, partial(parts.listings.first_page, directory))
        await settled(page)
        assert how == "removed" or directory.entries[b"b"].size == len(b"new bytes")
        await begun(mount, partial(told, outcomes, "b", partial(mount._walk, "d/b")))
        await settled(store.before["list", "d/"])
        if how == "removed":
            assert "No such file" in str(outcomes["b"])
        else:
            assert outcomes["b"].size == len(b"new bytes")

    mount.loop.run(main)


def test_what_was_removed_while_it_was_asked_for_by_name_stays_removed_though_a_pass_has_begun(
    mount: Composed, store: Held
) -> None:
    outcomes: dict[str, Any] = {}

    async def main() -> None:
        await put_all(store, {"d/": b"", "d/a": b"a", "d/b": b"b"})
        await mount.tree()
        namespace, parent = mount.parts.namespace, await mount._walk("d")
        directory = namespace.directory(parent)
        answer = store.after["head", "d/b"] = trio.Event()
        ask = partial(namespace._ask_by_name, directory, b"b", keys.parse(b"b"))
        await begun(mount, partial(told, outcomes, "b", ask))
        await namespace.unlink(parent, b"b", namespace.listed(parent, b"b"))
        mount.loop._clock.jump(0.1)
        directory.begin("d/")
        await settled(answer)
        assert "No such file" in str(outcomes["b"])
        assert b"b" not in directory.entries

    mount.loop.run(main)


@pytest.mark.parametrize("how", ["whole", "a page of it"])
def test_who_lists_a_directory_that_is_gone_meanwhile_comes_to_its_end(mount: Composed, store: Held, how: str) -> None:
    outcomes: dict[str, Any] = {}

    async def main() -> None:
        await put_all(store, {"d/": b"", "d/a": b"a", "other": b"o"})
        await mount.tree()
        listings, top = mount.parts.listings, await mount._walk("d")
        mount.loop._clock.jump(2 * TTL)
        page = store.after["list", "d/"] = trio.Event()
        ask = partial(listings.look_around, listings.directory(top), "", is_needed=lambda: True)
        work = partial(listings.complete, top) if how == "whole" else ask
        await begun(mount, partial(told, outcomes, "listed", work))
        await FakeStore.delete_many(store, ["d/", "d/a"])
        await listings.complete(mount.parts.inodes.root)
        assert not mount.parts.inodes.has_name(top)
        await settled(page)
        assert not isinstance(outcomes["listed"], str), outcomes["listed"]

    mount.loop.run(main)
