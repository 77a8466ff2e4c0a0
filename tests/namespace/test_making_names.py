"""What is made is in the bucket, or nothing of it is left: directories, links and special files, each step held back.

In one process; another client's eyes are the store itself.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from sosfs.concurrency.interrupt import CURRENT, Interrupt
from sosfs.config.parameters import TTL, Durability, Exclusive
from sosfs.journal.journal import Journal
from sosfs.s3 import scratch_key
from sosfs.s3.protocol import KEY_MAX, Properties, Right
from sosfs.tree.inodes import SYMLINK_MAX, Inode
from sosfs.tree.keys import HIDDEN, name_of
from tests.support.composed import LONG, Composed, composed
from tests.support.drive import fails
from tests.support.fake_store import FakeStore
from tests.support.held import Held, begun, bodies, denied, put_all, settled, silence, told

Made = Callable[[Composed, str], Awaitable[Inode]]


async def mkdir(mount: Composed, path: str) -> Inode:
    return await mount.parts.creations.make_directory(*await mount._parent(path), 0o750, 7, 8)


async def mkfifo(mount: Composed, path: str) -> Inode:
    return await mount.parts.creations.make_object(*await mount._parent(path), stat.S_IFIFO | 0o640, 7, 8)


async def symlink(mount: Composed, path: str, target: bytes = b"target") -> Inode:
    make = mount.parts.creations.make_object
    return await make(*await mount._parent(path), stat.S_IFLNK | 0o777, 7, 8, body=target)


MAKERS: dict[str, tuple[Made, str]] = {"directory": (mkdir, "new/"), "fifo": (mkfifo, "new")}
each_kind = pytest.mark.parametrize(("make", "key"), MAKERS.values(), ids=MAKERS)


@each_kind
def test_it_is_in_the_bucket_and_has_what_it_was_made_with(mount: Composed, store: Held, make: Made, key: str) -> None:
    async def main() -> None:
        root = mount.parts.inodes.root
        root.mtime_ns, before = 1, time.time_ns()
        made = await make(mount, "new")
        assert (made.uid, made.gid, stat.S_IMODE(made.mode)) == (7, 8, 0o750 if made.is_directory else 0o640)
        assert before <= made.mtime_ns == made.ctime_ns == made.atime_ns <= time.time_ns()
        assert root.mtime_ns >= before, "its directory has changed"
        asked = store.calls.copy()
        assert await mount._walk("new") is made
        assert store.calls == asked, "what was just made is known"
        told = store._stored[key].object.properties.metadata
        assert (told["mode"], told["uid"], told["gid"]) == (str(made.mode), "7", "8")

    mount.loop.run(main)
    assert bodies(store) == {key: b""}


def test_a_link_is_an_object_of_its_target(mount: Composed, store: Held) -> None:
    async def main() -> None:
        link = await symlink(mount, "link")
        assert link.size == len(b"target")
        assert await mount.parts.file_io.target(link) == b"target"
        with fails(errno.ENAMETOOLONG):
            await symlink(mount, "long", b"t" * (SYMLINK_MAX + 1))
        assert (await symlink(mount, "longest", b"t" * SYMLINK_MAX)).size == SYMLINK_MAX

    mount.loop.run(main)
    assert set(bodies(store)) == {"link", "longest"}


@pytest.mark.parametrize("is_made", [True, False], ids=["", "though it cannot be made"])
def test_who_finds_it_while_it_is_being_made_may_change_it(mount: Composed, store: Held, is_made: bool) -> None:
    made, outcomes = trio.Event(), dict[str, Any]()

    async def find() -> None:
        store.before["put"] = made
        await begun(mount, partial(told, outcomes, "made", partial(mkfifo, mount, "new")))
        assert store.reached == {("put", "new")}
        inode = await mount._walk("new")
        inode.mode = stat.S_IFIFO | 0o600
        mount.parts.attributes.changed(inode, posix={"mode"})

    mount.loop.run(find)
    mount.loop.passes(3)
    store.errors["put", "new"] = [] if is_made else [denied()]
    mount.loop.run(partial(settled, made))
    mount.loop.passes(3)
    if not is_made:
        assert (bodies(store), mount.parts.pending) == ({}, 0)
        return
    assert store._stored["new"].object.properties.metadata["mode"] == str(stat.S_IFIFO | 0o600)
    assert mount.parts.pending == 0


def test_what_is_made_in_a_directory_while_that_is_being_made_is_listed(mount: Composed, store: Held) -> None:
    """By one that has found it where the kernel's lock on its name has gone with the caller."""
    made, outcomes = trio.Event(), dict[str, Any]()

    async def main() -> None:
        store.before["put", "d/"] = made
        await begun(mount, partial(told, outcomes, "made", partial(mount.mkdir, "d")))
        await symlink(mount, "d/link")
        await settled(made)
        assert outcomes == {"made": None}
        assert set(await mount.tree()) == {"d", "d/link"}

    mount.loop.run(main)


@pytest.mark.promise(2)
@pytest.mark.parametrize("theirs", [False, True], ids=["refused", "another client's"])
def test_what_is_made_in_a_directory_that_cannot_be_made_is_there_and_stored(
    tmp_path: Path, store: Held, theirs: bool
) -> None:
    """It is by that. Its file was acknowledged, and had no key any more."""
    made, outcomes = trio.Event(), dict[str, Any]()

    async def main(mount: Composed) -> None:
        store.before["put", "d/"] = made
        await begun(mount, partial(told, outcomes, "made", partial(mount.mkdir, "d")))
        await mount.write("d/file", b"bytes", flags=os.O_CREAT)
        if theirs:
            await FakeStore.put(store, "d/", b"", Properties())
            await FakeStore.put(store, "d/theirs", b"", Properties())
        else:
            store.errors["put", "d/"] = [denied()]
        await settled(made)
        assert set(outcomes) == {"made"} and outcomes["made"] is not None
        assert set(await mount.tree()) == {"d", "d/file"} | ({"d/theirs"} if theirs else set())

    with composed(store, tmp_path, durability=Durability.JOURNAL, exclusive=Exclusive.ALWAYS) as mount:
        mount.loop.run(partial(main, mount))
        mount.loop.passes(LONG)
        assert bodies(store) == {"d/file": b"bytes"} | ({"d/": b"", "d/theirs": b""} if theirs else {})
        assert mount.parts.pending == 0
        assert "d/file" in mount.loop.run(mount.tree)
        mount.loop.run(store.release)


def test_what_was_made_keeps_its_type_when_its_mode_changes(mount: Composed, store: Held) -> None:
    """Its headers are known, so that the copy has them again."""

    async def main() -> None:
        page = await mount.parts.creations.make_object(mount.parts.inodes.root, b"page.html", 0o100644, 0, 0)
        sent = store._stored["page.html"].object.properties.headers
        asked = store.calls.copy()
        page.mode = stat.S_IFREG | 0o600
        mount.parts.attributes.changed(page, posix={"mode"})
        await mount.parts.attributes.write_now(page)
        assert store.calls - asked == {"copy": 1}, "what we have just made ourselves is not asked for"
        assert store._stored["page.html"].object.properties.headers == sent
        assert sent.content_type == "text/html"

    mount.loop.run(main)


@pytest.mark.parametrize("mode", [0o2755, 0o755], ids=["set-group-ID", "without"])
def test_a_set_group_id_directory_gives_its_group(mount: Composed, mode: int) -> None:
    async def main() -> None:
        root = mount.parts.inodes.root
        root.mode, root.gid = stat.S_IFDIR | mode, 100
        fifo, folder = await mkfifo(mount, "fifo"), await mkdir(mount, "folder")
        is_given = bool(mode & stat.S_ISGID)
        assert fifo.gid == folder.gid == (100 if is_given else 8)
        assert bool(folder.mode & stat.S_ISGID) == is_given, "it goes on below"
        assert not fifo.mode & stat.S_ISGID

    mount.loop.run(main)


@pytest.mark.parametrize("durability", Durability)
def test_a_new_directory_is_not_asked_for_what_is_in_it(tmp_path: Path, durability: Durability) -> None:
    store = Held()

    async def main(mount: Composed) -> None:
        await mkdir(mount, "new")
        asked = store.calls["list"]
        await mkdir(mount, "new/below")
        await mount.rmdir("new/below")
        assert store.calls["list"] == asked

    with composed(store, tmp_path, durability=durability) as mount:
        mount.loop.run(partial(main, mount))


# What others see and do while it is being made


@each_kind
def test_a_listing_that_comes_before_it_does_not_hide_it(mount: Composed, store: Held, make: Made, key: str) -> None:
    """`ls`, as the object is made; then as the answer comes."""
    late = trio.Event()

    async def begin() -> None:
        await put_all(store, {"other": b"o"})
        store.before["put", key] = late
        await begun(mount, partial(make, mount, "new"))
        mount.loop._clock.jump(2 * TTL)
        await mount.parts.listings.complete(mount.parts.inodes.root)
        assert set(mount.parts.inodes.root.directory.entries) == {b"new", b"other"}  # type: ignore[union-attr]

    async def go_on() -> None:
        mount.loop._clock.jump(2 * TTL)
        store.after["list", ""] = trio.Event()
        await begun(mount, partial(mount.parts.listings.complete, mount.parts.inodes.root))
        mount.loop._clock.jump(1)
        await settled(late)
        await settled(store.after.pop(("list", "")))
        asked = store.calls.copy()
        await mount.parts.namespace.lookup(mount.parts.inodes.root, b"new")
        assert store.calls == asked

    mount.loop.run(begin)
    mount.loop.run(go_on)


@each_kind
def test_another_client_may_remove_it_afterwards(mount: Composed, store: Held, make: Made, key: str) -> None:
    """Nothing holds it here any more than what a listing shows."""

    async def main() -> None:
        await make(mount, "new")
        await store.delete(key)
        mount.loop._clock.jump(2 * TTL)
        assert await mount.tree() == {}

    mount.loop.run(main)


@pytest.mark.parametrize("durability", Durability)
@pytest.mark.parametrize("make", [mkdir, mkfifo])
def test_it_is_made_in_the_directory_that_is_being_renamed(tmp_path: Path, durability: Durability, make: Made) -> None:
    store = Held()

    async def begin(mount: Composed) -> None:
        await put_all(store, {"d/": b"", "d/x": b"x"})
        directory = await mount._walk("d")
        await mount.parts.listings.complete(directory)
        copying = store.before["copy", "d/x"] = trio.Event()
        await begun(mount, partial(mount.rename, "d", "e"))
        assert store.reached
        creations = mount.parts.creations
        if make is mkdir:
            await begun(mount, lambda: creations.make_directory(directory, b"new", 0o755, 0, 0))
        else:
            await begun(mount, lambda: creations.make_object(directory, b"new", stat.S_IFIFO | 0o644, 0, 0))
        await settled(copying)

    with composed(store, tmp_path, durability=durability) as mount:
        mount.loop.run(partial(begin, mount))
        mount.crash()
        mount.start()
        mount.loop.passes(5)
        assert set(bodies(store)) == {"e/", "e/x", "e/new/" if make is mkdir else "e/new"}


def test_a_directory_that_is_only_recorded_is_not_made_where_its_parent_has_just_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old keys go, and the process ends: what would be recorded under one of them would bring it back."""
    store = Held()

    async def hangs(*_: object, **__: object) -> None:
        await trio.sleep_forever()

    async def begin(mount: Composed) -> None:
        await put_all(store, {"d/": b"", "d/x": b"x"})
        directory = await mount._walk("d")
        await mount.parts.listings.complete(directory)
        await begun(mount, partial(mount.rename, "d", "e"))
        await begun(mount, lambda: mount.parts.creations.make_directory(directory, b"new", 0o755, 0, 0))

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        with monkeypatch.context() as patch:
            patch.setattr(store, "delete_many", hangs)
            mount.loop.run(partial(begin, mount))
            mount.crash()
        mount.start()
        mount.loop.passes(5)
        assert set(bodies(store)) == {"e/", "e/x"}


def test_a_listing_that_comes_late_does_not_put_another_file_in_its_place(mount: Composed, store: Held) -> None:
    """Another client's file had the name, and was removed before ours was made."""

    async def main() -> None:
        making, listing = trio.Event(), trio.Event()
        store.before["put", "new"] = making
        await begun(mount, partial(mkfifo, mount, "new"))
        made = await mount._walk("new")
        made.lookups = 1  # the kernel has it
        await FakeStore.put(store, "new", b"theirs", Properties())
        mount.loop._clock.jump(2 * TTL)
        store.after["list", ""] = listing
        await begun(mount, partial(mount.parts.listings.complete, mount.parts.inodes.root))
        await FakeStore.delete(store, "new")
        mount.loop._clock.jump(1)
        await settled(making)
        await settled(listing)
        assert await mount._walk("new") is made

    mount.loop.run(main)


# What fails


@each_kind
def test_without_an_answer_nothing_of_it_is_left(mount: Composed, store: Held, make: Made, key: str) -> None:
    async def main() -> None:
        await mount.tree()
        known = len(mount.parts.inodes)
        store.errors["put", key] = [silence("put")]
        with fails(errno.EIO):
            await make(mount, "new")
        assert await mount.tree() == {}
        assert len(mount.parts.inodes) == known
        await make(mount, "new")

    mount.loop.run(main)
    assert set(bodies(store)) == {key}


@each_kind
def test_what_was_made_without_an_answer_is_found(mount: Composed, store: Held, make: Made, key: str) -> None:
    async def main() -> None:
        mount.loop._clock.jump(1)
        await mount.tree()
        store.lost.add(key)
        with fails(errno.EIO):
            await make(mount, "new")
        with fails(errno.EEXIST):
            await make(mount, "new")
        assert set(await mount.tree()) == {"new"}

    mount.loop.run(main)


@each_kind
def test_of_two_hosts_the_second_is_told_and_sees_what_the_first_has_made(
    mount: Composed, store: Held, make: Made, key: str
) -> None:
    async def main() -> None:
        mount.loop._clock.jump(1)
        await mount.tree()
        await store.put(key, b"", Properties(metadata={"uid": "99"}))
        with fails(errno.EEXIST):
            await make(mount, "new")
        assert (await mount._walk("new")).uid == 99

    mount.loop.run(main)
    assert store._stored[key].object.properties.metadata == {"uid": "99"}


def test_a_directory_that_could_not_be_made_is_not_made_by_who_has_seen_it_meanwhile(
    mount: Composed, store: Held
) -> None:
    """Somebody has looked it up while it was being made, and changes its mode afterwards."""
    outcomes: dict[str, object] = {}

    async def main() -> None:
        refusing = store.before["put", "new/"] = trio.Event()
        store.errors["put", "new/"] = [silence("put")]
        await begun(mount, partial(told, outcomes, "mkdir", lambda: mkdir(mount, "new")))
        seen = await mount._walk("new")
        await settled(refusing)
        assert "no answer" in str(outcomes["mkdir"])
        seen.mode = stat.S_IFDIR | 0o700
        mount.parts.attributes.changed(seen, posix={"mode"})

    mount.loop.run(main)
    mount.loop.passes(5)
    assert bodies(store) == {}
    assert mount.parts.pending == 0


def test_a_directory_that_the_journal_has_no_room_for_is_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Held()

    def full(*_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, "the disk is full")

    async def main(mount: Composed) -> None:
        await mount.tree()
        root, known = mount.parts.inodes.root, len(mount.parts.inodes)
        root.mtime_ns = 1
        with monkeypatch.context() as patch:
            patch.setattr(Journal, "save_attributes", full)
            with fails(errno.ENOSPC):
                await mkdir(mount, "new")
        assert await mount.tree() == {}
        assert (root.mtime_ns, len(mount.parts.inodes)) == (1, known)
        await mkdir(mount, "new")
        assert root.mtime_ns > 1

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(main, mount))
        mount.loop.passes(5)
        assert bodies(store) == {"new/": b""}


@each_kind
def test_a_name_is_free_only_where_the_bucket_says_so(mount: Composed, store: Held, make: Made, key: str) -> None:
    async def main() -> None:
        await put_all(store, {key: b""})
        store.errors["list", ""] = [silence("list")]
        with fails(errno.EIO):
            await make(mount, "new")

    mount.loop.run(main)
    assert store.calls["put"] == 1


def test_who_waits_no_more_for_a_rename_has_made_nothing(mount: Composed, store: Held) -> None:
    interrupt, outcomes = Interrupt(), dict[str, object]()

    async def make(directory: Inode) -> None:
        CURRENT.set(interrupt)
        with fails(errno.EINTR):
            await mount.parts.creations.make_directory(directory, b"new", 0o755, 0, 0)
        outcomes["mkdir"] = "interrupted"

    async def main() -> None:
        await put_all(store, {"d/": b"", "d/x": b"x"})
        directory = await mount._walk("d")
        await mount.parts.listings.complete(directory)
        copying = store.before["copy", "d/x"] = trio.Event()
        await begun(mount, partial(mount.rename, "d", "e"))
        await begun(mount, partial(make, directory))
        interrupt.set()
        await settled(copying)

    mount.loop.run(main)
    mount.loop.passes(2)
    assert outcomes == {"mkdir": "interrupted"}
    assert set(bodies(store)) == {"e/", "e/x"}


def test_where_the_key_may_not_write_a_name_is_refused_before_anything_is_made(mount: Composed, store: Held) -> None:
    """What open(2) asks: a file is stored when it is closed."""

    def refusing(operation: str, key: str) -> None:
        if operation == "upload_part":
            raise denied(key)

    async def main() -> None:
        mount.parts.attributes.permissions.add([Right.WRITE])
        store.fault = refusing
        with fails(errno.EACCES):
            await mount.write("file", b"", flags=os.O_CREAT)
        assert await mount.tree() == {}
        store.fault = None

    mount.loop.run(main)


@pytest.mark.parametrize("name", [HIDDEN, scratch_key.of_zeros("")], ids=["attributes", "zeros"])
def test_a_name_that_no_listing_shows_is_refused(mount: Composed, store: Held, name: str) -> None:
    async def main() -> None:
        with fails(errno.EINVAL):
            await mkfifo(mount, name)

    mount.loop.run(main)
    assert bodies(store) == {}


def test_a_name_that_no_key_can_have_is_refused(mount: Composed, store: Held) -> None:
    async def main() -> None:
        folder = "/".join(["f" * 200] * 5)
        await put_all(store, {f"{folder}/x": b""})
        longest = "n" * (KEY_MAX - len(folder) - 1)
        with fails(errno.ENAMETOOLONG):
            await mkfifo(mount, f"{folder}/{longest}n")
        with fails(errno.ENAMETOOLONG):
            await mkdir(mount, f"{folder}/{longest}")
        await mkfifo(mount, f"{folder}/{longest}")
        with fails(errno.EINVAL):
            await mkfifo(mount, name_of("n" * 300).decode())

    mount.loop.run(main)
    assert store.calls["put"] == 2
