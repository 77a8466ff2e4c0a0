"""When the bucket is asked for attributes, whom its answer is for, and what is not asked again: counted in requests.

In one process, with requests held back; another client, and another machine's mount, have the same store.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from sosfs.attributes.questions import SINGLE_MAX, Questions, Wanted
from sosfs.cache.blocks import BLOCK
from sosfs.config.parameters import TTL
from sosfs.errors import StoreError
from sosfs.s3.protocol import Detail, Headers, Object, Properties, Slice
from sosfs.tree.inodes import Inode, Known
from sosfs.tree.keys import HIDDEN
from tests.support.composed import LONG, Composed, composed
from tests.support.drive import fails
from tests.support.held import Held, begun, closed, opened, put_all, settled, stored, told

PRIVATE = Properties(Headers("x/y", expires="Thu, 01 Dec 1994 16:00:00 GMT"), {"mode": str(stat.S_IFREG | 0o600)})
FAILURE = StoreError(errno.EIO, "HeadObject", detail="no answer")


async def looked_up(mount: Composed, *paths: str) -> list[Inode]:
    """Inodes of which only a listing has told."""
    found = []
    for path in paths:
        parent, name = await mount._parent(path)
        await mount.parts.listings.complete(parent)
        found.append(await mount.parts.namespace.lookup(parent, name))
    return found


def asked(store: Held) -> int:
    return store.calls["head"] + store.calls["get"]


async def asked_by_two(mount: Composed, store: Held, outcomes: dict[str, Any]) -> tuple[Inode, trio.Event]:
    """Two want to know of a file, and get no answer before the event."""
    await store.put("file", b"x" * 5000, PRIVATE)
    (inode,) = await looked_up(mount, "file")
    store.before["head"] = store.before["get"] = held = trio.Event()
    for name in ("one", "other"):
        await begun(mount, partial(told, outcomes, name, partial(mount.parts.attributes.revalidate, inode)))
    return inode, held


# One question


def test_of_two_who_want_to_know_one_asks(mount: Composed, store: Held) -> None:
    outcomes: dict[str, Any] = {}

    async def main() -> None:
        inode, held = await asked_by_two(mount, store, outcomes)
        assert mount.parts.attributes.is_asked(inode)
        held.set()
        await trio.testing.wait_all_tasks_blocked()
        assert outcomes == {"one": inode, "other": inode}
        assert stat.S_IMODE(inode.mode) == 0o600
        assert asked(store) == 1
        assert not mount.parts.attributes.is_asked(inode)
        assert await mount.parts.attributes.revalidate(inode) is inode
        assert asked(store) == 1

    mount.loop.run(main)


def test_who_waits_for_what_turns_out_to_be_a_link_gets_the_link(mount: Composed, store: Held) -> None:
    outcomes: dict[str, Any] = {}

    async def main() -> None:
        await store.put("link", b"target", Properties(metadata={"mode": str(stat.S_IFLNK | 0o777)}))
        (inode,) = await looked_up(mount, "link")
        inode.lookups = 1  # the kernel takes it for a file
        store.before["head"] = store.before["get"] = held = trio.Event()
        for name in ("one", "other"):
            await begun(mount, partial(told, outcomes, name, partial(mount.parts.attributes.revalidate, inode)))
        await settled(held)
        assert outcomes["one"] is outcomes["other"]
        assert outcomes["one"] is not inode
        assert stat.S_ISLNK(outcomes["one"].mode)

    mount.loop.run(main)


@pytest.mark.parametrize("how", ["fails", "is gone"])
def test_who_waits_for_a_question_that_fails_asks_himself_unless_it_is_gone(
    mount: Composed, store: Held, how: str
) -> None:
    outcomes: dict[str, Any] = {}

    async def main() -> None:
        inode, held = await asked_by_two(mount, store, outcomes)
        if how == "fails":
            store.errors["get", "file"] = [FAILURE]
        else:
            del store._stored["file"]
        held.set()
        await trio.testing.wait_all_tasks_blocked()
        if how == "fails":
            assert "no answer" in outcomes["one"]
            assert outcomes["other"] is inode
            return
        assert "FileNotFound" in outcomes["other"] or "it is gone" in outcomes["other"]
        assert "NoSuchKey" in outcomes["one"]
        assert asked(store) == 1

    mount.loop.run(main)


def test_what_is_recent_ours_or_watched_by_its_listing_is_not_asked_for(mount: Composed, store: Held) -> None:
    async def main() -> None:
        await store.put("marked/", b"", Properties(metadata={"mode": str(stat.S_IFDIR | 0o700)}))
        await put_all(store, {"file": b"x" * 5000, "bare/x": b"x"})
        mount.loop._clock.jump(1)  # time 0 is "never" to a directory
        await mount.tree()
        costs = []
        for path in ("file", "marked", "bare") * 2:
            before = asked(store)
            await mount._walk(path)
            costs.append(asked(store) - before)
        assert costs == [0, 1, 0, 0, 0, 0]
        inode = await mount._walk("file")
        mount.loop._clock.jump(2 * TTL)
        inode.mode = stat.S_IFREG | 0o640
        mount.parts.attributes.changed(inode)
        before = asked(store)
        assert await mount.parts.attributes.revalidate(inode) is inode
        assert asked(store) == before, "what is changed here is not asked for"
        marked = mount.parts.listings.directory(mount.parts.inodes.root).entries[b"marked"]
        calls = dict(store.calls)
        assert await mount.parts.attributes.revalidate(marked) is marked
        assert store.calls == calls, "what has its marker is watched by the listing of its parent, however old"
        attributes = mount.parts.attributes
        hits, questions = attributes.hits, attributes.asked
        await attributes.revalidate(marked)
        assert (attributes.hits, attributes.asked) == (hits + 1, questions + 1)

    mount.loop.run(main)


@pytest.mark.parametrize(("size", "costs"), [(0, (1, 0)), (5000, (0, 1)), (BLOCK + 1, (1, 1))])
def test_a_small_file_comes_along_with_its_attributes(
    mount: Composed, store: Held, size: int, costs: tuple[int, int]
) -> None:
    """HEADs and GETs of who looks at one file and reads it, as cat(1). A part of one could not be verified."""

    async def main() -> None:
        await store.put("file", bytes(range(256)) * (size // 256) + bytes(size % 256), PRIVATE)
        assert (await mount.tree())["file"] == (stored(store), 0o600)
        assert (store.calls["head"], store.calls["get"]) == costs

    mount.loop.run(main)


@pytest.mark.parametrize("is_archived", [True, False])
def test_what_can_be_had_of_an_archived_file_is_shown_and_a_failure_is_one(
    mount: Composed, store: Held, is_archived: bool
) -> None:
    async def main() -> None:
        await store.put("file", b"x" * 5000, PRIVATE)
        (inode,) = await looked_up(mount, "file")
        store.errors["get", "file"] = [StoreError(errno.EREMOTEIO if is_archived else errno.EIO, "GetObject")]
        if is_archived:
            assert (await mount.parts.attributes.revalidate(inode)).mode == stat.S_IFREG | 0o600
        else:
            with fails(errno.EIO):
                await mount.parts.attributes.revalidate(inode)
        assert (store.errors["get", "file"], store.calls["head"]) == ([], is_archived)

    mount.loop.run(main)


@pytest.mark.parametrize("metadata", [{}, {"mtime": "5.000000007"}], ids=["", "and says another"])
def test_a_directory_has_the_time_of_its_marker(tmp_path: Path, metadata: dict[str, str]) -> None:
    store = Held(clock=lambda: 1_700_000_000.0)
    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(store.put, "d/", b"", Properties(metadata=metadata)))
        inode = mount.loop.run(partial(mount._walk, "d"))
        modified = 1_700_000_000 * 10**9
        due = 5_000_000_007 if metadata else modified
        assert (inode.mtime_ns, inode.ctime_ns, inode.atime_ns) == (due, due, modified)


def test_a_directory_that_is_changed_and_stored_while_it_is_asked_for_is_as_it_was_changed(
    mount: Composed, store: Held
) -> None:
    """The answer is of before, and nothing waits any more when it comes."""
    outcomes: dict[str, Any] = {}

    async def main() -> None:
        await store.put("d/", b"", Properties(metadata={"mode": str(stat.S_IFDIR | 0o755)}))
        (inode,) = await looked_up(mount, "d")
        store.after["head", "d/"] = held = trio.Event()
        await begun(mount, partial(told, outcomes, "asked", partial(mount.parts.attributes.revalidate, inode)))
        assert store.reached
        del store.after["head", "d/"]
        inode.mode = stat.S_IFDIR | 0o700
        mount.parts.attributes.changed(inode, posix={"mode"})
        await mount.parts.attributes.write_now(inode)
        assert not inode.pins
        await settled(held)
        assert outcomes == {"asked": inode}
        assert stat.S_IMODE(inode.mode) == 0o700

    mount.loop.run(main)


@pytest.mark.parametrize("path", ["d", "d/file"])
def test_a_file_that_is_renamed_while_it_is_asked_for_is_asked_for_under_its_new_name(
    mount: Composed, store: Held, path: str
) -> None:
    """The question is held until the old name is gone from the bucket, where the tree does not tell so yet."""
    outcomes: dict[str, Any] = {}

    async def main() -> None:
        await store.put("d/file", b"x" * 5000, PRIVATE)
        (inode,) = await looked_up(mount, "d/file")
        mount.loop._clock.jump(5)  # no walk any more: it is asked for with its bytes
        store.before["get", "d/file"] = held = trio.Event()
        await begun(mount, partial(told, outcomes, "asked", partial(mount.parts.attributes.revalidate, inode)))
        assert store.reached == {("get", "d/file")}
        store.after["delete"] = store.after["delete_many"] = removed = trio.Event()
        await begun(mount, partial(mount.rename, path, "moved"))
        assert (len(store.reached), "d/file" in store._stored) == (2, False)
        await settled(held)
        await settled(removed)
        assert outcomes == {"asked": inode}
        assert (stat.S_IMODE(inode.mode), inode.known, inode.parent is None) == (0o600, Known.ALL, False)

    mount.loop.run(main)


def test_what_no_name_leads_to_any_more_is_stale_unless_somebody_has_it_open(mount: Composed, store: Held) -> None:
    async def main() -> None:
        await put_all(store, {"file": b"old" * 2000})
        handle = await opened(mount, os.O_RDONLY)
        (inode,) = await looked_up(mount, "file")
        await store.put("file", b"new" * 2000, Properties())
        mount.loop._clock.jump(2 * TTL)
        await mount.tree()
        assert inode.parent is None
        assert await mount.parts.attributes.revalidate(inode) is inode
        await mount.parts.file_io.release(handle)
        with fails(errno.ESTALE):
            await mount.parts.attributes.revalidate(inode)

    mount.loop.run(main)


# Several


def test_of_several_only_those_are_asked_for_that_may_be_learned(mount: Composed, store: Held) -> None:
    names = ("plain", "pinned", "gone", "asked")

    async def main() -> None:
        for name in names:
            await store.put(name, b"x" * 5000, PRIVATE)
        inodes = dict(zip(names, await looked_up(mount, *names), strict=True))
        await mount.write("pinned", b"ours")
        handle = await opened(mount, path="pinned")
        await mount.parts.file_io.write(handle, 0, b"more")
        parent, inodes["gone"].parent = inodes["gone"].parent, None
        store.before["get", "asked"] = store.before["head", "asked"] = held = trio.Event()
        await begun(mount, partial(mount.parts.attributes.revalidate, inodes["asked"]))
        assert store.reached
        before = store.calls["head"]
        await mount.parts.attributes.ask_files(list(inodes.values()))
        assert store.calls["head"] == before + 1, "the plain one"
        assert stat.S_IMODE(inodes["plain"].mode) == 0o600
        await mount.parts.attributes.ask_files([])
        await mount.parts.attributes.ask_files([inodes["pinned"]])
        assert store.calls["head"] == before + 1
        held.set()
        inodes["gone"].parent = parent
        await closed(mount, handle)
        await trio.testing.wait_all_tasks_blocked()
        assert not any(mount.parts.attributes.is_asked(inode) for inode in inodes.values())

    mount.loop.run(main)


def test_an_absence_among_several_is_left_to_who_really_asks(mount: Composed, store: Held) -> None:
    """It may be a rename that is under way."""

    async def main() -> None:
        for name in ("one", "gone"):
            await store.put(name, b"x" * 5000, PRIVATE)
        one, gone = await looked_up(mount, "one", "gone")
        del store._stored["gone"]
        await mount.parts.attributes.ask_files([gone, one])
        assert (one.known, gone.known) == (Known.ALL, Known.SIZE)
        assert gone.parent is not None
        with fails(errno.ENOENT):
            await mount.parts.attributes.revalidate(gone)
        assert gone.parent is None

    mount.loop.run(main)


def test_who_waits_for_what_is_removed_while_several_are_asked_for_is_told_so(mount: Composed, store: Held) -> None:
    outcomes: dict[str, Any] = {}

    async def main() -> None:
        await store.put("file", b"x" * 5000, PRIVATE)
        (inode,) = await looked_up(mount, "file")
        store.after["head"] = held = trio.Event()
        await begun(mount, partial(mount.parts.attributes.ask_files, [inode]))
        await begun(mount, partial(told, outcomes, "asked", partial(mount.parts.attributes.revalidate, inode)))
        await mount.unlink("file")
        await settled(held)
        assert "it is gone" in outcomes["asked"]

    mount.loop.run(main)


# Asked whatever is known


def test_a_refresh_tells_of_what_is_there_and_of_nothing_else(mount: Composed, store: Held) -> None:
    async def main() -> None:
        await store.put("file", b"x" * 5000, PRIVATE)
        inode = await mount._walk("file")
        await store.put("file", b"y" * 6000, Properties(metadata={"mode": str(stat.S_IFREG | 0o640)}))
        await mount.parts.attributes.refresh(inode)
        assert (inode.size, stat.S_IMODE(inode.mode)) == (6000, 0o640)
        store.errors["head", "file"] = [FAILURE]
        with fails(errno.EIO):
            await mount.parts.attributes.refresh(inode)
        assert inode.version is not None
        assert await mount._walk("file") is inode, "a failure is no absence"
        await store.delete("file")
        await mount.parts.attributes.refresh(inode)
        assert inode.version is None
        with fails(errno.ENOENT):
            await mount._walk("file")

    mount.loop.run(main)


@pytest.mark.parametrize("in_place", [True, False])
def test_who_has_it_open_goes_on_unless_it_is_to_be_the_same(mount: Composed, store: Held, in_place: bool) -> None:
    async def main() -> None:
        await put_all(store, {"file": b"old" * 2000})
        handle = await opened(mount, os.O_RDONLY)
        await store.put("file", b"newer" * 2000, Properties())
        await mount.parts.attributes.refresh(handle.inode, in_place=in_place)
        assert handle.inode.size == (10_000 if in_place else 6000)
        assert (handle.inode.parent is not None) == in_place
        assert (await mount._walk("file")).size == 10_000
        await mount.parts.file_io.release(handle)

    mount.loop.run(main)


# What another machine has told


class Telling(Held):
    """Its answers tell all, and what the server's clock says; each write is older than a minute."""

    def __init__(self) -> None:
        self.moment = 1_700_000_000
        super().__init__(clock=lambda: self.moment)

    async def head(self, key: str, *, detail: Detail = Detail.USUAL) -> Object:
        return replace(await super().head(key, detail=Detail.WHOLE), answered=self.moment + 60)

    async def get(self, key: str, start: int, stop: int, *, etag: str = "") -> Slice:
        found = await super().get(key, start, stop, etag=etag)
        return Slice(replace(found.object, answered=self.moment + 60), found.body)


def _sharing(store: Held, base: Path, name: str) -> Any:
    (base / name).mkdir()
    return composed(store, base / name, shared_attributes=True)


async def _filled(store: Held) -> None:
    for number in range(3):
        await store.put(f"d/{number}", b"x" * 5000, PRIVATE)


@pytest.mark.parametrize("what", ["nothing", "metadata", "bytes"])
def test_what_another_machine_has_asked_is_not_asked_again_unless_it_has_changed(tmp_path: Path, what: str) -> None:
    store = Telling()
    with _sharing(store, tmp_path, "one") as mount:
        mount.loop.run(partial(_filled, store))
        mount.loop.run(mount.tree)
        mount.loop.passes(LONG)
    store.moment += 100
    changed = Properties(metadata={"mode": str(stat.S_IFREG | 0o640)})
    if what != "nothing":
        trio.run(partial(store.put, "d/1", (b"x" if what == "metadata" else b"y") * 5000, changed))
    with _sharing(store, tmp_path, "other") as mount:
        heads: list[str] = []

        def noted(operation: str, key: str) -> None:
            if operation in ("head", "get") and not key.startswith(HIDDEN):
                heads.append(key)

        store.fault = noted
        for name in ("0", "1", "2"):
            (inode,) = mount.loop.run(partial(looked_up, mount, f"d/{name}"))
            inode = mount.loop.run(partial(mount.parts.attributes.revalidate, inode))
            due = 0o640 if name == "1" and what != "nothing" else 0o600
            assert stat.S_IMODE(inode.mode) == due
        assert [key for key in heads if key in ("d/0", "d/2")] == []
        assert ("d/1" in heads) == (what != "nothing")
        store.fault = None


# The line of those that are asked for ahead


def taken(line: Questions) -> list[bytes]:
    found = list[bytes]()
    while line.waiting:
        found += [inode.name for inode in line.take(10)]
    return found


def test_the_line_is_of_what_is_there_and_not_known_yet(mount: Composed, store: Held) -> None:
    async def main() -> None:
        keys = ["a", "b", "c", "d/x", "d/e/y", "known", f"{HIDDEN}/index"]
        await put_all(store, dict.fromkeys(keys, b"x" * 5000))
        await mount._walk("known")
        root = mount.parts.inodes.root
        walk = await mount.parts.listings.complete(root)
        directory = mount.parts.listings.directory(root)
        for path in ("d", "d/e"):
            await mount.parts.listings.complete(await mount._walk(path))
        directory.entries[b"d"].known = Known.SIZE
        line = Questions()
        line.add_listed(directory, walk, 0, Wanted.ALL)
        assert line.waiting >= 1
        gone = directory.entries[b"b"]
        mount.parts.namespace._leave(directory, gone, None)
        assert sorted(taken(line)) == [b"a", b"c", b"d"]
        line.add_listed(directory, walk, 1, Wanted.ALL)
        assert walk.names[0] not in taken(line)
        line.add_listed(directory, walk, len(walk.names), Wanted.ALL)
        assert line.waiting == 0
        line.add_listed(directory, walk, 0, Wanted.DIRECTORIES)
        assert taken(line) == [b"d"]
        line.add_below(root, Wanted.ALL)
        assert sorted(taken(line)) == [b"a", b"c", b"d", b"x", b"y"]

    mount.loop.run(main)


def test_nothing_of_what_is_hidden_gone_or_no_directory_is_in_the_line(mount: Composed, store: Held) -> None:
    """Somebody has listed the hidden one, too."""

    async def main() -> None:
        await put_all(store, dict.fromkeys(["a", "b", "c", "gone", f"{HIDDEN}/index"], b"x" * 5000))
        root, line = mount.parts.inodes.root, Questions()
        hidden = await mount._walk(HIDDEN)
        walk, index = await mount.parts.listings.complete(root), await mount.parts.listings.complete(hidden)
        directory, below = mount.parts.listings.directory(root), mount.parts.listings.directory(hidden)
        assert (list(below.entries), hidden in directory.entries.values()) == ([b"index"], True)
        hidden.known = Known.SIZE
        line.add_below(hidden, Wanted.ALL)
        line.add_listed(below, index, 0, Wanted.ALL)
        line.add_below(directory.entries[b"a"], Wanted.ALL)
        assert (line.has_listed, line.waiting) == (False, 0)
        gone = directory.entries[b"gone"]
        mount.parts.namespace._leave(directory, gone, None)
        line.add(gone)
        line.add_below(root, Wanted.ALL)
        assert line.has_listed
        assert len(line.take(2)) == 2
        assert taken(line) == [b"c"]
        directory.now = None  # a listing of long ago
        line.add_below(root, Wanted.ALL)
        assert taken(line) == []
        line.add_listed(directory, walk, 0, Wanted.DIRECTORIES)
        assert taken(line) == []

    mount.loop.run(main)


def test_who_stands_in_the_line_by_himself_stays_when_nobody_walks_on(mount: Composed, store: Held) -> None:
    async def main() -> None:
        await put_all(store, dict.fromkeys(("a", "b", "d/x"), b"x" * 5000))
        root = mount.parts.inodes.root
        walk = await mount.parts.listings.complete(root)
        directory = mount.parts.listings.directory(root)
        line = Questions()
        line.add(directory.entries[b"b"])
        line.add_below(root, Wanted.ALL)
        line.end_walk()
        assert taken(line) == [b"b"]
        line.add(directory.entries[b"b"])
        line.add_listed(directory, walk, 0, Wanted.ALL)
        line.add_below(root, Wanted.ALL)
        line.clear()
        assert (line.waiting, taken(line)) == (0, [])
        await mount.parts.listings.complete(directory.entries[b"d"])
        line.add_below(root, Wanted.ALL)
        assert len(line.take(2)) == 2 and line.waiting, "what is in d is yet to come"
        line.end_walk()
        assert (line.waiting, taken(line)) == (0, [])
        for _ in range(SINGLE_MAX + 5):
            line.add(directory.entries[b"b"])
        assert line.waiting == SINGLE_MAX

    mount.loop.run(main)
