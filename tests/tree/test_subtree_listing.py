"""A scan of a whole tree: what it may say of a directory, and what was done meanwhile is not undone by it."""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from sosfs.config.parameters import TTL
from sosfs.errors import StoreError
from sosfs.s3.protocol import Page, Properties
from sosfs.tree import subtree_listing
from sosfs.tree.listing import PATIENCE
from sosfs.tree.subtree_listing import PAGES
from tests.support.composed import Composed, composed
from tests.support.drive import fails
from tests.support.held import Held, bodies, put_all, settled

OBJECTS = {f"{folder}/f{at}": b"x" for folder in ("a", "a/b", "c/d") for at in range(3)} | {"e/": b"", "top": b"t"}
TREE = {"a", "a/b", "c", "c/d", "e", *(key for key in OBJECTS if not key.endswith("/"))}


async def scanned(mount: Composed) -> None:
    scan = mount.parts.listings.begin_scan(mount.parts.inodes.root)
    assert scan is not None
    await scan()


async def known(mount: Composed, store: Held) -> set[str]:
    """What is there, as it is known without another listing."""
    before = store.calls["list"]
    found = set(await mount.tree())
    assert store.calls["list"] == before, "it was asked again"
    return found


async def meanwhile(mount: Composed, store: Held, work: Callable[[], Awaitable[object]]) -> None:
    """A scan, and while its answer is on the way some work."""
    held = store.after["list", ""] = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scanned, mount)
        await trio.testing.wait_all_tasks_blocked()
        assert ("list", "") in store.reached
        del store.after["list", ""]
        nursery.start_soon(work)
        await trio.testing.wait_all_tasks_blocked()
        mount.loop._clock.jump(PATIENCE + 0.1)  # who looks a name up waits no longer for the scan
        await trio.testing.wait_all_tasks_blocked()
        mount.loop._clock.jump(0.1)
        held.set()


@pytest.mark.parametrize("page", [1000, 1, 4])
def test_one_scan_tells_all_names(tmp_path: Path, page: int) -> None:
    store = Held(page=page)

    async def main(mount: Composed) -> None:
        await put_all(store, OBJECTS)
        await scanned(mount)
        assert store.calls["list"] == -(-len(OBJECTS) // page)
        assert await known(mount, store) == TREE

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))


def test_a_scan_tells_what_came_since_all_was_listed(mount: Composed, store: Held) -> None:
    async def main() -> None:
        await put_all(store, OBJECTS)
        await mount.tree()
        await put_all(store, {"a/new": b"x", "c/d/e/new": b"x"})
        mount.loop._clock.jump(2 * TTL)
        await scanned(mount)
        assert await known(mount, store) == TREE | {"a/new", "c/d/e", "c/d/e/new"}

    mount.loop.run(main)


def test_a_file_that_became_a_directory_is_one_though_names_were_forgotten_during_the_scan(
    mount: Composed, store: Held
) -> None:
    """So that the scan says nothing of the directory that it is in."""

    async def forgotten() -> None:
        mount.parts.listings.directory(mount.parts.inodes.root).doubt()

    async def main() -> None:
        await put_all(store, OBJECTS)
        await mount.tree()
        mount.loop._clock.jump(2 * TTL)
        await store.delete("top")
        await put_all(store, {"top/sub/x": b"x"})
        await meanwhile(mount, store, forgotten)
        assert set(await mount.tree()) == TREE | {"top/sub", "top/sub/x"}

    mount.loop.run(main)


def test_a_directory_of_which_the_scan_did_not_reach_the_end_is_listed_by_itself(tmp_path: Path) -> None:
    store, asked = Held(page=1), list[tuple[str, str]]()

    async def main(mount: Composed) -> None:
        store.fault = lambda operation, key: asked.append((operation, key)) if operation == "list" else None
        await put_all(store, {f"a/{at:02}": b"x" for at in range(3)} | {f"b/{at:02}": b"x" for at in range(PAGES)})
        await put_all(store, {"c": b"x"})
        await scanned(mount)
        assert store.calls["list"] == PAGES
        assert len(await mount.tree()) == 3 + PAGES + 3, "two directories and all that is there"
        assert {key for _, key in asked[PAGES:]} == {"", "b/"}, "a was shown whole"

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))


@pytest.mark.parametrize("order", [(2, 1), (2, 0, 3)], ids=["the last one is lower", "one before is"])
def test_where_keys_come_in_no_order_no_part_of_them_is_whole(
    mount: Composed, store: Held, monkeypatch: pytest.MonkeyPatch, order: tuple[int, ...]
) -> None:
    monkeypatch.setattr(subtree_listing, "PAGES", 1)
    ordered = store.list

    async def disordered(prefix: str, **options: Any) -> Page:
        page = await ordered(prefix, **options)
        return Page(tuple(page.objects[at] for at in order), (), "more") if not options["delimiter"] else page

    async def main() -> None:
        await put_all(store, {"a/0": b"x", "a/1": b"x", "c/0": b"x", "c/1": b"x"})
        with monkeypatch.context() as patch:
            patch.setattr(store, "list", disordered)
            await scanned(mount)
        assert set(await mount.tree()) == {"a", "a/0", "a/1", "c", "c/0", "c/1"}

    mount.loop.run(main)


def test_all_keys_in_no_order_tell_all_names(mount: Composed, store: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    ordered = store.list

    async def disordered(prefix: str, **options: Any) -> Page:
        page = await ordered(prefix, **options)
        return Page(page.objects[::-1], page.prefixes, page.token)

    async def main() -> None:
        await put_all(store, OBJECTS)
        monkeypatch.setattr(store, "list", disordered)
        await scanned(mount)
        assert await known(mount, store) == TREE

    mount.loop.run(main)


@pytest.mark.parametrize("what", ["removed", "made", "a directory removed", "a directory renamed"])
@pytest.mark.parametrize("is_known", [False, True], ids=["not listed before", "listed before"])
def test_what_was_done_meanwhile_stays_done(mount: Composed, store: Held, what: str, is_known: bool) -> None:
    works = {
        "removed": lambda: mount.unlink("a/f0"),
        "made": lambda: mount.write("a/new", b"new", flags=64),
        "a directory removed": lambda: mount.rmdir("e"),
        "a directory renamed": lambda: mount.rename("a", "z"),
    }
    due = {
        "removed": TREE - {"a/f0"},
        "made": TREE | {"a/new"},
        "a directory removed": TREE - {"e"},
        "a directory renamed": {path if path[0] != "a" else f"z{path[1:]}" for path in TREE},
    }

    async def main() -> None:
        await put_all(store, OBJECTS)
        await mount._walk("a")
        if is_known:
            await mount.tree()
            mount.loop._clock.jump(0.1)
        await meanwhile(mount, store, works[what])
        assert set(await mount.tree()) == due[what]

    mount.loop.run(main)


def test_what_was_removed_meanwhile_stays_gone_though_the_kernel_has_forgotten_its_directory(
    mount: Composed, store: Held
) -> None:
    async def main() -> None:
        await put_all(store, OBJECTS)
        folder = await mount._walk("a")
        folder.lookups += 1

        async def remove_and_forget() -> None:
            await mount.unlink("a/f0")
            mount.parts.namespace.forget(folder, 1)

        await meanwhile(mount, store, remove_and_forget)
        assert await known(mount, store) >= TREE - {"a/f0"} and "a/f0" not in await mount.tree()

    mount.loop.run(main)


def test_what_was_listed_by_itself_meanwhile_is_newer(mount: Composed, store: Held) -> None:
    async def main() -> None:
        await put_all(store, OBJECTS)
        folder = await mount._walk("a")

        async def list_it() -> None:
            await store.delete("a/f0")
            await store.put("a/other", b"x", Properties())
            await mount.parts.listings.complete(folder)

        await meanwhile(mount, store, list_it)
        assert await known(mount, store) == TREE - {"a/f0"} | {"a/other"}

    mount.loop.run(main)


def test_a_scan_of_what_is_renamed_meanwhile_says_nothing(mount: Composed, store: Held) -> None:
    async def main() -> None:
        await put_all(store, OBJECTS)
        top = await mount._walk("a")
        held = store.after["list", "a/"] = trio.Event()
        scan = mount.parts.listings.begin_scan(top)
        assert scan is not None
        assert mount.parts.listings.begin_scan(top) is None, "one at a time"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scan)
            await trio.testing.wait_all_tasks_blocked()
            del store.after["list", "a/"]
            await mount.rename("a", "z")
            held.set()
        assert set(await mount.tree()) == {path if path[0] != "a" else f"z{path[1:]}" for path in TREE}

    mount.loop.run(main)


def test_a_scan_that_fails_shows_no_empty_directory(mount: Composed, store: Held) -> None:
    async def main() -> None:
        await put_all(store, OBJECTS)
        store.errors["list", ""] = [StoreError(5, "list", status=500)]
        with pytest.raises(StoreError):
            await scanned(mount)
        assert set(await mount.tree()) == TREE
        assert mount.parts.listings.begin_scan(mount.parts.inodes.root) is not None

    mount.loop.run(main)


@pytest.mark.parametrize("how", ["removed here", "renamed here", "removed by another client"])
def test_a_directory_that_went_meanwhile_is_not_there_again_though_its_parent_was_listed(
    mount: Composed, store: Held, how: str
) -> None:
    """What was done here before a listing began is noted no more, and the scan was sent before it."""

    async def go() -> None:
        root = mount.parts.inodes.root
        mount.loop._clock.jump(1)
        if how == "removed by another client":
            await store.delete("e/")
        elif how == "removed here":
            await mount.rmdir("e")
            await mount.settle()
        else:
            await mount.rename("e", "z")
        mount.loop._clock.jump(2 * TTL)
        await mount.parts.listings.complete(root)

    async def main() -> None:
        await put_all(store, OBJECTS)
        await mount._walk("e")
        mount.loop._clock.jump(1)
        await meanwhile(mount, store, go)
        with fails(errno.ENOENT):
            await mount._walk("e")
        assert set(await mount.tree()) == TREE - {"e"} | ({"z"} if how == "renamed here" else set())

    mount.loop.run(main)


@pytest.mark.parametrize("is_listed", [False, True], ids=["alone", "and its parent was listed"])
def test_what_was_renamed_to_a_name_meanwhile_is_whole(mount: Composed, store: Held, *, is_listed: bool) -> None:
    """The scan saw the first of its keys under the new name, and not the others."""

    async def main() -> None:
        await put_all(store, {"old/0": b"x", "old/1": b"x", "top": b"t"})
        await mount._walk("old/0")
        mount.loop._clock.jump(1)
        store.before["copy", "old/1"] = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mount.rename, "old", "new")
            await trio.testing.wait_all_tasks_blocked()
            assert "new/0" in bodies(store) and "new/1" not in bodies(store)

            async def go() -> None:
                await settled(store.before["copy", "old/1"])
                mount.loop._clock.jump(1)
                if is_listed:
                    mount.parts.listings.directory(mount.parts.inodes.root).doubt()
                    await mount.parts.listings.complete(mount.parts.inodes.root)

            await meanwhile(mount, store, go)
        assert set(await mount.tree()) == {"new", "new/0", "new/1", "top"}

    mount.loop.run(main)


def test_a_scan_of_what_is_being_renamed_says_nothing(mount: Composed, store: Held) -> None:
    """Its old keys go one after the other."""

    async def main() -> None:
        await put_all(store, {"d/a/0": b"x", "d/a/1": b"x"})
        top = await mount._walk("d/a")
        await mount.parts.listings.complete(top)
        mount.loop._clock.jump(1)
        held = store.before["delete_many", "d/a/0"] = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mount.rename, "d", "z")
            await trio.testing.wait_all_tasks_blocked()
            assert set(bodies(store)) == {"d/a/0", "d/a/1", "z/a/0", "z/a/1"}
            await store.delete("d/a/0")  # the server is half through
            scan = mount.parts.listings.begin_scan(top)
            assert scan is not None
            await scan()
            held.set()
        assert set(await mount.tree()) == {"z", "z/a", "z/a/0", "z/a/1"}

    mount.loop.run(main)


def test_a_file_that_was_made_during_a_scan_is_there_where_keys_come_in_no_order(
    mount: Composed, store: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its place among the keys was passed before the scan showed anything of its directory."""

    async def main() -> None:
        await put_all(store, {"a/0": b"x", "b/0": b"x"})
        await mount._walk("a/0")
        mount.loop._clock.jump(1)

        async def disordered(prefix: str, *, token: str = "", **options: Any) -> Page:
            whole = await Held.list(store, prefix, **options)
            if options["delimiter"]:
                return whole
            if token:
                return Page(whole.objects[:1], ())
            mount.loop._clock.jump(1)
            await mount.write("a/new", b"new", flags=os.O_CREAT)
            mount.loop._clock.jump(1)
            return Page(whole.objects[1:], (), "more")

        with monkeypatch.context() as patch:
            patch.setattr(store, "list", disordered)
            await scanned(mount)
        assert (await mount._walk("a/new")).size == len(b"new")
        assert set(await mount.tree()) == {"a", "a/0", "a/new", "b", "b/0"}

    mount.loop.run(main)
