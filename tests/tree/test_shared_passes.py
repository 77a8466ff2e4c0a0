"""Pages that several want are asked for once, and who reads on finds the next one asked for.

In one process and without a kernel, for only so can each order be had.
"""

from __future__ import annotations

import errno
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from sosfs.errors import StoreError
from sosfs.s3.protocol import Page
from sosfs.tree.inodes import Directory, Pass, Reading
from sosfs.tree.listing import PATIENCE
from tests.support.composed import Composed, composed
from tests.support.drive import fails
from tests.support.held import Held, begun, put_all, settled, told

pytestmark = pytest.mark.usefixtures("without_bugs")

BIG = bytes(5000)
TREE = {f"{folder}/{number}": BIG for folder in ("a", "a/b", "c") for number in range(3)}


def scan_of(mount: Composed, path: str = "") -> Any:
    """A scan that is held back until its answer may come."""

    async def run() -> None:
        scan = mount.parts.listings.begin_scan(await mount._walk(path))
        assert scan is not None
        await scan()

    return run


async def lookup(mount: Composed, path: str) -> int:
    return (await mount._walk(path)).size


def test_only_a_directory_of_the_tree_has_names(mount: Composed, store: Held) -> None:
    async def look() -> None:
        await put_all(store, {"d/": b"", "file": BIG, "x": BIG})
        with fails(errno.ENOTDIR):
            await mount.parts.namespace.lookup(await mount._walk("file"), b"x")
        top = await mount._walk("d")
        await mount.rmdir("d")
        with fails(errno.ESTALE):
            await mount.parts.namespace.lookup(top, b"x")

    mount.loop.run(look)


def test_a_directory_that_is_listed_without_a_marker_is_not_asked_for(mount: Composed, store: Held) -> None:
    async def look() -> None:
        await put_all(store, TREE)
        await mount.parts.listings.complete(await mount.parts.namespace.lookup(mount.parts.inodes.root, b"c"))
        store.calls.clear()
        await mount._walk("c")
        assert store.calls == {}

    mount.loop.run(look)


def test_who_wants_a_directory_of_a_scan_waits_for_that_and_nobody_else_does(mount: Composed, store: Held) -> None:
    outcomes: dict[str, Any] = {}

    async def look() -> None:
        await put_all(store, TREE)
        await mount._walk("a")
        await mount._walk("c")
        held = store.after["list", "a/"] = trio.Event()
        await begun(mount, scan_of(mount, "a"))
        assert ("list", "a/") in store.reached
        del store.after["list", "a/"]
        store.calls.clear()
        assert mount.parts.listings.begin_scan(await mount._walk("a")) is None, "there is one"
        await begun(mount, partial(told, outcomes, "below", lambda: lookup(mount, "a/b/1")))
        await begun(mount, partial(told, outcomes, "beside", lambda: lookup(mount, "c/1")))
        assert outcomes == {"beside": len(BIG)}
        assert store.calls["list"] == 1
        await settled(held)
        assert outcomes["below"] == len(BIG)
        assert store.calls["list"] == 1, "the scan has shown it"
        assert mount.parts.listings.begin_scan(await mount._walk("a")) is not None, "it has ended"

    mount.loop.run(look)


def test_nobody_waits_long_for_a_scan(mount: Composed, store: Held) -> None:
    outcomes: dict[str, Any] = {}

    async def look() -> None:
        await put_all(store, TREE)
        await mount._walk("a")
        held = store.after["list", "a/"] = trio.Event()
        await begun(mount, scan_of(mount, "a"))
        del store.after["list", "a/"]
        await begun(mount, partial(told, outcomes, "below", lambda: lookup(mount, "a/1")))
        assert outcomes == {}
        mount.loop._clock.jump(PATIENCE)
        await trio.testing.wait_all_tasks_blocked()
        assert outcomes == {"below": len(BIG)}
        await settled(held)

    mount.loop.run(look)


@pytest.mark.parametrize("forgets", [False, True], ids=["all are known", "names go meanwhile"])
def test_what_a_scan_shows_is_told_as_what_a_listing_shows(mount: Composed, store: Held, forgets: bool) -> None:
    seen: list[str] = []

    def watch(directory: Directory, walk: Pass, first: int) -> None:
        seen.append(walk.prefix)
        assert first == 0 and directory.now is walk
        for other in mount.parts.inodes.directories() if forgets else ():
            other.doubt()  # as where there is no memory for more

    async def look() -> None:
        await put_all(store, TREE)
        mount.parts.listings.watchers.append(watch)
        await scan_of(mount)()
        assert sorted(seen) == ([""] if forgets else ["", "a/", "a/b/", "c/"])

    mount.loop.run(look)


def test_a_page_that_several_want_is_asked_for_once(mount: Composed, store: Held) -> None:
    outcomes: dict[str, Any] = {}

    async def look() -> None:
        await put_all(store, TREE)
        await mount._walk("c")
        store.calls.clear()
        held = store.before["list", "c/"] = trio.Event()
        for number in range(3):
            await begun(mount, partial(told, outcomes, str(number), partial(lookup, mount, f"c/{number}")))
        await settled(held)
        assert list(outcomes.values()) == [len(BIG)] * 3
        assert store.calls["list"] == 1

    mount.loop.run(look)


@pytest.mark.parametrize("names", [0, 9], ids=["an empty directory", "several pages"])
def test_who_waits_for_a_page_does_not_ask_for_the_next_one(tmp_path: Path, names: int) -> None:
    store = Held(page=5)
    outcomes: dict[str, Any] = {}

    async def look(mount: Composed) -> None:
        await put_all(store, {"d/": b""} | {f"d/{number}": BIG for number in range(names)})
        top = await mount._walk("d")
        listings = mount.parts.listings
        store.calls.clear()
        held = store.before["list", "d/"] = trio.Event()
        for who in "abc":
            await begun(mount, partial(told, outcomes, who, lambda: listings.first_page(listings.directory(top))))
        assert outcomes == {}
        await settled(held)
        assert len(set(outcomes.values())) == 1
        assert store.calls["list"] == 1

    with composed(store, tmp_path) as mount:
        mount.loop.run(lambda: look(mount))


def test_a_name_of_the_first_page_is_told_while_the_next_one_is_on_its_way(tmp_path: Path) -> None:
    store = Held(page=5)
    outcomes: dict[str, Any] = {}

    async def look(mount: Composed) -> None:
        await put_all(store, {f"d/{number}": BIG for number in range(9)})
        directory, walk = mount.parts.listings.walk(await mount._walk("d"))
        await mount.parts.listings.advance(directory, walk, have=0)
        held = store.before["list", "d/"] = trio.Event()
        mount.parts.listings.reached(directory, walk, 4)
        await trio.testing.wait_all_tasks_blocked()
        assert ("list", "d/") in store.reached
        await begun(mount, partial(told, outcomes, "there", lambda: lookup(mount, "d/1")))
        await begun(mount, partial(told, outcomes, "absent", lambda: lookup(mount, "d/10")))
        assert outcomes.pop("there") == len(BIG)
        assert "FileNotFoundError" in outcomes.pop("absent")
        await settled(held)

    with composed(store, tmp_path) as mount:
        mount.loop.run(lambda: look(mount))


async def read_to(mount: Composed, places: list[int], store: Held, errors: list[OSError]) -> list[int]:
    """The pages that were asked for when a reader of `d` had come to each of these names, who then reads on to the end.

    The first ones are answered with `errors`.
    """
    asked: list[int] = []
    await put_all(store, {f"d/{number:02d}": BIG for number in range(45)})
    listings = mount.parts.listings
    directory, walk = listings.walk(await mount._walk("d"))
    with closing(Reading(directory, walk)):
        await listings.advance(directory, walk, have=0)
        store.calls.clear()
        store.errors["list", "d/"] = errors
        for at in places:
            for _ in range(2):
                listings.reached(directory, walk, at)
            await trio.testing.wait_all_tasks_blocked()
            asked.append(store.calls["list"])
        while not walk.done:
            await listings.advance(directory, walk, have=len(walk.names))
        assert walk.names[:] == [b"%02d" % number for number in range(45)]
        listings.reached(directory, walk, 44)
        await trio.testing.wait_all_tasks_blocked()
        assert store.calls["list"] == 4
    return asked


@pytest.mark.parametrize(
    ("places", "errors", "asked"),
    [
        ([0, 4, 5, 9, 10, 19, 20], [], [0, 0, 1, 1, 2, 2, 3]),
        ([5, 9], [StoreError(errno.EIO, "list 'd/'", detail="500 of the server")], [0, 0]),
    ],
    ids=["also who has come to a later page", "and in vain"],
)
def test_who_has_read_half_of_the_first_page_finds_the_next_one_asked_for(
    tmp_path: Path, places: list[int], errors: list[OSError], asked: list[int]
) -> None:
    store = Held(page=10)
    with composed(store, tmp_path) as mount:
        assert mount.loop.run(lambda: read_to(mount, places, store, list(errors))) == asked


class Circular(Held):
    """Answers each page with the first one."""

    async def list(self, prefix: str, *, token: str = "", **options: Any) -> Page:
        return await super().list(prefix, token="" if prefix == "d/" else token, **options)


def test_a_listing_that_goes_round_in_a_circle_is_an_error(tmp_path: Path) -> None:
    store = Circular(page=2)

    async def look(mount: Composed) -> None:
        await put_all(store, {f"d/{number}": BIG for number in range(5)})
        top = await mount._walk("d")
        with fails(errno.EIO):
            await mount.parts.listings.complete(top)

    with composed(store, tmp_path) as mount:
        mount.loop.run(lambda: look(mount))
