"""One of many names that a program removes goes without a request of its own, unless something has to be waited for.

In one process; a request that is held back shows what would be lost, or come back, if it were not waited for.
"""

from __future__ import annotations

import os
import stat
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from sosfs.config.parameters import TTL, Durability
from tests.support.composed import Composed, composed
from tests.support.held import Held, begun, bodies, closed, opened, put_all


async def rm(mount: Composed, path: str) -> bool:
    """As `rm -r` removes one file of many; whether that was at once."""
    parent, name = await mount._parent(path)
    await mount.parts.listings.complete(parent)
    inode = mount.parts.namespace.listed(parent, name)
    if inode is not None and mount.parts.namespace.unlink_at_once(parent, inode):
        return True
    await mount.parts.namespace.unlink(parent, name)
    return False


async def proved(mount: Composed) -> None:
    """A delete was answered a moment ago."""
    await put_all(mount.store, {"proof": b""})
    await mount.unlink("proof")


async def _set(event: trio.Event) -> None:
    event.set()
    await trio.testing.wait_all_tasks_blocked()


def test_it_is_removed_and_hidden_before_a_request_is_made(mount: Composed, store: Held) -> None:
    async def main() -> None:
        await put_all(store, {"d/x": b"x", "d/y": b"y"})
        await proved(mount)
        directory = await mount._walk("d")
        directory.lookups, directory.mtime_ns = 1, 1
        sent = store.calls.copy()
        store.before["delete", "d/x"] = trio.Event()
        assert await rm(mount, "d/x")
        assert store.calls["delete"] == sent["delete"]
        assert directory.mtime_ns > 1, "its directory has changed"
        assert set(await mount.tree()) == {"d", "d/y"}

    mount.loop.run(main)
    mount.loop.passes(2 * TTL)
    assert ("delete", "d/x") in store.reached
    assert set(mount.loop.run(mount.tree)) == {"d", "d/y"}, "a listing shows it, and it is on its way"
    assert mount.parts.pending == 1
    mount.loop.run(store.release)
    mount.loop.passes(1)
    assert bodies(store) == {"d/y": b"y"}
    assert mount.parts.pending == 0


def test_a_crash_before_the_request_does_not_bring_it_back(tmp_path: Path) -> None:
    store = Held()

    async def main(mount: Composed) -> None:
        await put_all(store, {"x": b"x", "y": b"y"})
        await proved(mount)
        assert await rm(mount, "x")
        assert "x" in store._stored

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))
        mount.crash()
        mount.start()
        assert bodies(store) == {"y": b"y"}


def test_the_first_of_a_burst_is_asked_for(mount: Composed, store: Held) -> None:
    async def main() -> None:
        await put_all(store, {"x": b"x", "y": b"y"})
        assert not await rm(mount, "x")
        assert bodies(store) == {"y": b"y"}
        assert await rm(mount, "y")

    mount.loop.run(main)


def test_the_last_file_of_a_directory_without_marker_leaves_the_directory(mount: Composed, store: Held) -> None:
    async def main() -> None:
        await put_all(store, {"d/x": b"x", "d/y": b"y", "e/": b"", "e/x": b"x"})
        await proved(mount)
        assert await rm(mount, "d/x")
        assert not await rm(mount, "d/y")
        assert await rm(mount, "e/x")

    mount.loop.run(main)
    mount.loop.passes(2 * TTL)
    assert bodies(store) == {"d/": b"", "e/": b""}
    assert set(mount.loop.run(mount.tree)) == {"d", "e"}


def test_who_has_it_open_keeps_its_bytes(mount: Composed, store: Held) -> None:
    async def main() -> None:
        await put_all(store, {"file": b"A" * 300_000})
        await proved(mount)
        handle = await opened(mount, os.O_RDONLY)
        assert not await rm(mount, "file")
        mount.parts.blocks.forget(lambda key: True)
        assert bytes(await mount.parts.file_io.read(handle, 0, 300_000)) == b"A" * 300_000
        await closed(mount, handle)

    mount.loop.run(main)
    mount.loop.passes(1)
    assert bodies(store) == {}


@pytest.mark.parametrize("is_new", [True, False])
def test_unsent_bytes_go_with_it(tmp_path: Path, is_new: bool) -> None:
    store = Held()

    async def main(mount: Composed) -> None:
        await put_all(store, {"other": b"other"} | ({} if is_new else {"file": b"old"}))
        await proved(mount)
        await mount.write("file", b"new bytes", flags=os.O_CREAT)
        assert not await rm(mount, "file")

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(main, mount))
        mount.loop.passes(5)
        assert bodies(store) == {"other": b"other"}
        mount.crash()
        mount.start()
        mount.loop.passes(5)
        assert bodies(store) == {"other": b"other"}


def test_attributes_on_their_way_do_not_bring_it_back(mount: Composed, store: Held) -> None:
    """The copy that writes them is made late."""
    held = trio.Event()

    async def begin() -> None:
        await put_all(store, {"file": b"bytes", "other": b"other"})
        await proved(mount)
        inode = await mount._walk("file")
        inode.mode = stat.S_IFREG | 0o600
        mount.parts.attributes.changed(inode)
        store.before["copy", "file"] = held
        await begun(mount, partial(mount.parts.attributes.write_now, inode))
        assert store.reached
        await begun(mount, partial(rm, mount, "file"))

    mount.loop.run(begin)
    mount.loop.passes(1)
    mount.loop.run(partial(_set, held))
    mount.loop.passes(60)
    assert bodies(store) == {"other": b"other"}
    assert mount.parts.pending == 0


def test_what_is_removed_of_a_directory_that_is_being_renamed_is_not_in_it_afterwards(
    mount: Composed, store: Held
) -> None:
    held = trio.Event()

    async def begin() -> None:
        await put_all(store, {"d/": b"", "d/x": b"x", "d/y": b"y"})
        await proved(mount)
        directory = await mount._walk("d")
        await mount.parts.listings.complete(directory)
        inode = mount.parts.namespace.listed(directory, b"x")
        assert inode is not None
        store.before["copy", "d/y"] = held
        await begun(mount, partial(mount.rename, "d", "e"))
        assert "e/x" in store._stored

        async def remove() -> None:
            if not mount.parts.namespace.unlink_at_once(directory, inode):
                await mount.parts.namespace.unlink(directory, b"x")

        await begun(mount, remove)
        await _set(held)

    mount.loop.run(begin)
    mount.loop.passes(5)
    assert bodies(store) == {"e/": b"", "e/y": b"y"}
    assert set(mount.loop.run(mount.tree)) == {"e", "e/y"}
