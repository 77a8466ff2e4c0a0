"""When a directory is empty, and may go, and what becomes of one that nothing but its entries made.

In one process; another client's eyes are the store itself.
"""

from __future__ import annotations

import errno
import os
import stat
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from sosfs.config.parameters import TTL, Durability
from sosfs.s3.protocol import Properties
from tests.support.composed import LONG, Composed, composed
from tests.support.drive import fails
from tests.support.held import Held, begun, bodies, denied, put_all, settled, silence, told

# What is in it


def test_a_directory_with_entries_stays(mount: Composed, store: Held) -> None:
    async def main() -> None:
        await put_all(store, {"d/": b"", "d/x": b"x", "d/e/": b""})
        await mount.tree()
        with fails(errno.ENOTEMPTY):
            await mount.rmdir("d")
        with fails(errno.ENOTDIR):
            await mount.rmdir("d/x")
        with fails(errno.EISDIR):
            await mount.unlink("d/e")

    mount.loop.run(main)
    assert bodies(store) == {"d/": b"", "d/x": b"x", "d/e/": b""}


def test_a_directory_stays_whose_only_file_is_not_in_the_bucket_yet(tmp_path: Path) -> None:
    store = Held()

    async def main(mount: Composed) -> None:
        await mount.mkdir("d")
        await mount.write("d/new", b"new", flags=os.O_CREAT)
        mount.loop._clock.jump(2 * TTL)
        with fails(errno.ENOTEMPTY):
            await mount.rmdir("d")

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(main, mount))
        mount.loop.passes(5)
        assert bodies(store) == {"d/": b"", "d/new": b"new"}


@pytest.mark.parametrize("is_asked", [True, False], ids=["asked for", "listed alone"])
def test_a_directory_whose_marker_another_client_has_removed_gets_one_when_its_last_file_goes(
    mount: Composed, store: Held, is_asked: bool
) -> None:
    """Else it would vanish with the file."""

    async def main() -> None:
        await put_all(store, {"d/": b"", "d/x": b"x", "d/y": b"y"})
        top = await mount._walk("d")
        if is_asked:
            await mount.parts.attributes.revalidate(top)
        await mount.parts.listings.complete(top)
        await store.delete("d/")
        mount.loop._clock.jump(2 * TTL)
        await mount.parts.listings.complete(top)
        await mount.unlink("d/x")
        await mount.unlink("d/y")

    async def again() -> None:
        await mount.write("d/z", b"z", flags=os.O_CREAT)
        await mount.unlink("d/z")

    mount.loop.run(main)
    mount.loop.passes(5)
    assert bodies(store) == {"d/": b""}
    before = store.calls["put"]
    mount.loop.run(again)
    mount.loop.passes(5)
    assert (bodies(store), store.calls["put"]) == ({"d/": b""}, before + 1), "it has one"


def test_a_directory_that_gets_a_marker_while_it_is_listed_keeps_it(mount: Composed, store: Held) -> None:
    """The page was asked for before that, and shows none."""

    async def main() -> None:
        await put_all(store, {"d/x": b"x", "d/y": b"y"})
        top = await mount._walk("d")
        page = store.after["list", "d/"] = trio.Event()
        await begun(mount, partial(mount.parts.listings.complete, top))
        top.mode = stat.S_IFDIR | 0o700
        mount.parts.attributes.changed(top)
        await mount.parts.attributes.write_now(top)
        await settled(page)
        store.after.clear()
        assert bodies(store).keys() == {"d/", "d/x", "d/y"}
        stored.append(store.calls["put"])
        await mount.unlink("d/x")
        await mount.unlink("d/y")

    stored: list[int] = []
    mount.loop.run(main)
    mount.loop.passes(5)
    assert bodies(store) == {"d/": b""}
    assert stored == [store.calls["put"]], "not again"


def test_a_reader_that_began_before_a_directory_had_a_marker_does_not_hide_it(mount: Composed, store: Held) -> None:
    store._page = 2

    async def main() -> None:
        await put_all(store, {f"d/{number}": b"x" for number in range(5)})
        top = await mount._walk("d")
        directory = mount.parts.listings.directory(top)
        mount.loop._clock.jump(0.1)
        before = await mount.parts.listings.first_page(directory)
        await store.put("d/", b"", Properties(metadata={"mode": str(stat.S_IFDIR | 0o700)}))
        mount.loop._clock.jump(2 * TTL)
        await mount.parts.listings.complete(top)
        while not before.done:
            await mount.parts.listings.advance(directory, before, have=len(before.names))
        assert stat.S_IMODE((await mount.parts.attributes.revalidate(top)).mode) == 0o700

    mount.loop.run(main)


def test_a_directory_goes_that_another_client_has_emptied(mount: Composed, store: Held) -> None:
    async def main() -> None:
        await put_all(store, {"d/": b"", "d/x": b"x"})
        await mount.tree()
        await store.delete("d/x")
        mount.loop._clock.jump(2 * TTL)
        await mount.rmdir("d")

    mount.loop.run(main)
    assert bodies(store) == {}


@pytest.mark.parametrize(
    "theirs", [{"d/x": b""}, {"d/sub/x": b"x"}, {"d/": b"bytes"}], ids=["empty", "below", "of its own name"]
)
def test_what_another_client_puts_into_it_at_the_last_moment_keeps_it_and_is_shown(
    mount: Composed, store: Held, theirs: dict[str, bytes]
) -> None:
    """The directory has been listed, and is about to be asked for once more."""
    outcomes: dict[str, object] = {}

    async def main() -> None:
        await put_all(store, {"d/": b""})
        listing = store.after["list", "d/"] = trio.Event()
        await begun(mount, partial(told, outcomes, "rmdir", lambda: mount.rmdir("d")))
        await put_all(store, theirs)
        await settled(listing)
        assert outcomes["rmdir"] == repr(OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY)))
        assert len(await mount.tree()) >= 2

    mount.loop.run(main)
    assert bodies(store) == {"d/": b""} | theirs


def test_a_marker_that_another_client_makes_at_the_last_moment_goes_too(mount: Composed, store: Held) -> None:
    async def main() -> None:
        await put_all(store, {"d/x": b"x"})
        await mount.tree()
        await store.delete("d/x")
        mount.loop._clock.jump(2 * TTL)
        directory = mount.parts.inodes.root.directory
        assert directory is not None
        directory.begin("").done = True  # its parent was listed before that
        listing = store.after["list", "d/"] = trio.Event()
        await begun(mount, partial(mount.rmdir, "d"))
        await put_all(store, {"d/": b""})
        await settled(listing)

    mount.loop.run(main)
    assert bodies(store) == {}


# What of it is in the bucket


@pytest.mark.parametrize("is_ours", [True, False], ids=["made here", "found"])
def test_its_marker_goes_with_it(mount: Composed, store: Held, is_ours: bool) -> None:
    async def main() -> None:
        if is_ours:
            await mount.mkdir("d")
        else:
            await put_all(store, {"d/": b""})
        root = mount.parts.inodes.root
        root.mtime_ns, known = 1, len(mount.parts.inodes) - is_ours
        await mount.rmdir("d")
        assert root.mtime_ns > 1, "its parent has changed"
        assert len(mount.parts.inodes) == known

    mount.loop.run(main)
    assert bodies(store) == {}


@pytest.mark.parametrize("is_ours", [True, False], ids=["made here", "listed"])
def test_a_directory_that_is_known_goes_without_a_look_at_the_bucket(
    mount: Composed, store: Held, is_ours: bool
) -> None:
    async def main() -> None:
        if is_ours:
            await mount.mkdir("d")
        else:
            await put_all(store, {"d/": b""})
            await mount.tree()
        asked = store.calls.copy()
        await mount.rmdir("d")
        assert store.calls - asked == {"delete": 1}

    mount.loop.run(main)


@pytest.mark.parametrize("is_marked", [True, False], ids=["with marker", "without"])
def test_it_goes_before_the_deletes_below_it_are_answered_and_does_not_come_back(
    tmp_path: Path, is_marked: bool
) -> None:
    store = Held()

    async def remove(mount: Composed) -> None:
        await put_all(store, {"proof": b"", "d/x": b"x", "d/y": b"y"} | ({"d/": b""} if is_marked else {}))
        await mount.tree()
        await mount.unlink("proof")  # an answer: the deletes that follow are queued
        for what in ("delete", "delete_many"):
            store.before[what] = trio.Event()
        await mount.unlink("d/x")
        await mount.unlink("d/y")
        mount.loop._clock.jump(2 * TTL)
        await mount.rmdir("d")  # a listing shows both of them still

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(remove, mount))
        mount.loop.passes(2 * TTL)
        assert mount.loop.run(mount.tree) == {}
        mount.crash()
        mount.loop.run(store.release)
        mount.start()
        assert bodies(store) == {}


@pytest.mark.parametrize("is_later", [False, True], ids=["at once", "by the next mount"])
@pytest.mark.parametrize("is_new", [True, False], ids=["new", "emptied"])
def test_a_marker_that_was_stored_without_an_answer_goes_with_it(tmp_path: Path, is_new: bool, is_later: bool) -> None:
    store = Held()

    async def begin(mount: Composed) -> None:
        store.lost.add("d/")
        if is_new:
            await mount.mkdir("d")
        else:
            await put_all(store, {"d/x": b"x"})
            await mount.unlink("d/x")

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(begin, mount))
        mount.loop.passes(2)
        assert set(bodies(store)) == {"d/"}
        if is_later:
            mount.crash()
            mount.start()
        mount.loop.run(partial(mount.rmdir, "d"))
        mount.loop.passes(LONG)
        assert bodies(store) == {}
        assert mount.loop.run(mount.tree) == {}


def test_a_marker_whose_answer_was_waited_for_in_vain_goes_with_it(tmp_path: Path) -> None:
    """So long that what was listed of the directory has been forgotten."""
    store = Held()

    async def remove(mount: Composed) -> None:
        store.lost.add("d/")
        await begun(mount, partial(mount.rmdir, "d"))
        mount.loop._clock.jump(2 * TTL)
        mount.parts.namespace.sweep()
        await settled(store.before["put", "d/"])

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        store.before["put", "d/"] = trio.Event()
        mount.loop.run(partial(mount.mkdir, "d"))
        mount.loop.passes(2)
        mount.loop.run(partial(remove, mount))
        mount.loop.passes(LONG)
        assert bodies(store) == {}
        assert mount.loop.run(mount.tree) == {}


def test_it_stays_where_nobody_tells_whether_its_marker_is_there(tmp_path: Path) -> None:
    store = Held()

    def down(operation: str, key: str) -> None:
        raise silence(operation)

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(mount.mkdir, "d"))
        store.fault = down
        mount.loop.passes(2)
        with fails(errno.EIO):
            mount.loop.run(partial(mount.rmdir, "d"))
        store.fault = None
        assert mount.loop.run(mount.tree) == {"d": None}
        mount.loop.run(partial(mount.rmdir, "d"))
        mount.loop.passes(LONG)
        assert bodies(store) == {}


def test_it_is_not_removed_under_a_key_that_it_is_leaving(mount: Composed, store: Held) -> None:
    """Its parent is being renamed: it would come with the parent's copy."""

    async def main() -> None:
        await put_all(store, {"p/": b"", "p/d/": b"", "p/x": b"x"})
        await mount.tree()
        parent = await mount._walk("p")
        copying = store.before["copy", "p/x"] = trio.Event()
        await begun(mount, partial(mount.rename, "p", "q"))
        await begun(mount, partial(mount.parts.namespace.rmdir, parent, b"d"))
        await settled(copying)

    mount.loop.run(main)
    mount.loop.passes(5)
    assert bodies(store) == {"q/": b"", "q/x": b"x"}
    assert set(mount.loop.run(mount.tree)) == {"q", "q/x"}


# The directory that it was in


def test_its_parent_stays_though_nothing_else_was_in_it(mount: Composed, store: Held) -> None:
    async def main() -> None:
        await put_all(store, {"p/d/": b""})
        await mount.rmdir("p/d")

    mount.loop.run(main)
    mount.loop.passes(2 * TTL)
    assert bodies(store) == {"p/": b""}
    assert set(mount.loop.run(mount.tree)) == {"p"}


@pytest.mark.parametrize("more", [{"d/": b""}, {"d/theirs": b"theirs"}], ids=["marker", "file"])
def test_a_directory_that_is_there_without_its_last_file_is_not_stored(
    mount: Composed, store: Held, more: dict[str, bytes]
) -> None:
    """What another client put there is seen only now."""

    async def main() -> None:
        await put_all(store, {"d/x": b"x"})
        await mount.tree()
        parent = await mount._walk("d")
        await put_all(store, more)
        mount.loop._clock.jump(2 * TTL)
        inode = mount.parts.namespace.listed(parent, b"x")
        await mount.parts.namespace.unlink(parent, b"x", inode)

    mount.loop.run(main)
    made = store.calls["put"]
    mount.loop.passes(5)
    assert store.calls["put"] == made
    assert bodies(store) == more


@pytest.mark.parametrize("later", [0, 2 * TTL], ids=["at once", "later"])
def test_a_directory_that_was_made_here_is_not_stored_again(mount: Composed, store: Held, later: float) -> None:
    async def main() -> None:
        await mount.mkdir("d")
        await mount.write("d/x", b"x", flags=os.O_CREAT)
        parent = await mount._walk("d")
        mount.loop._clock.jump(later)
        asked = store.calls.copy()
        await mount.parts.namespace.unlink(parent, b"x", mount.parts.namespace.listed(parent, b"x"))
        assert store.calls - asked == {"delete": 1}

    mount.loop.run(main)
    mount.loop.passes(5)
    assert store.calls["put"] == 2
    assert bodies(store) == {"d/": b""}


def test_the_last_file_of_a_directory_with_marker_goes_without_a_listing(mount: Composed, store: Held) -> None:
    async def main() -> None:
        await put_all(store, {"d/": b"", "d/x": b"x"})
        parent = await mount.parts.namespace.lookup(mount.parts.inodes.root, b"d")
        await mount.parts.listings.complete(parent)
        mount.loop._clock.jump(2 * TTL)
        asked = store.calls.copy()
        await mount.parts.namespace.unlink(parent, b"x", mount.parts.namespace.listed(parent, b"x"))
        assert store.calls - asked == {"delete": 1}

    mount.loop.run(main)
    assert bodies(store) == {"d/": b""}


def test_one_of_several_files_goes_without_a_listing(mount: Composed, store: Held) -> None:
    """However long ago they were listed, by who removes one after the other."""

    async def main() -> None:
        await put_all(store, {"d/x": b"x", "d/y": b"y"})
        await mount.tree()
        parent = await mount._walk("d")
        mount.loop._clock.jump(2 * TTL)
        asked = store.calls.copy()
        await mount.parts.namespace.unlink(parent, b"x", mount.parts.namespace.listed(parent, b"x"))
        assert store.calls - asked == {"delete": 1}

    mount.loop.run(main)
    assert bodies(store) == {"d/y": b"y"}


def test_where_its_removal_is_refused_it_is_there_as_before(mount: Composed, store: Held) -> None:
    async def main() -> None:
        await put_all(store, {"d/": b""})
        directory = await mount._walk("d")
        directory.lookups = 1
        store.errors["delete", "d/"] = [denied()]
        with fails(errno.EACCES):
            await mount.rmdir("d")
        assert await mount._walk("d") is directory
        assert await mount.tree() == {"d": None}
        await mount.rmdir("d")

    mount.loop.run(main)
    assert bodies(store) == {}
