"""What the kernel asks of files that were forgotten, or may be at any moment, and of directories that are read.

In one process and without a kernel, for only so can each order be had.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import Mock

import pyfuse3
import pytest
import trio
import trio.testing

from sosfs.config.parameters import TTL, Shown
from sosfs.filesystem.bucket import _operations
from sosfs.fuse.operations import DOTS, Operations
from sosfs.fuse.removal_streak import LONG
from sosfs.fuse.xattrs import Xattrs
from sosfs.namespace.eviction import USED
from sosfs.namespace.namespace import RELIST_MAX
from sosfs.s3.protocol import UNKNOWN, Page, Properties, Right
from sosfs.tree.inodes import Inode
from tests.support.composed import TASK, Composed
from tests.support.held import Held, begun, bodies, forget, put_all, settled, silence, told

FIRST = len(DOTS)
CALLER: Any = SimpleNamespace(pid=TASK, uid=0, gid=0, umask=0o022)


@pytest.fixture
def kernel(mount: Composed, monkeypatch: pytest.MonkeyPatch) -> Operations:
    """What the kernel calls; a reply to readdir is a list of names and the offsets that follow them."""

    def reply(shown: list[tuple[bytes, int]], name: bytes, _: Any, after: int) -> bool:
        shown.append((name, after))
        return True

    monkeypatch.setattr(pyfuse3, "readdir_reply", reply)
    return _operations(mount._settings, mount.parts)


async def read(kernel: Operations, handle: int, start: int = 0) -> list[bytes]:
    """The names that a reader is told from this offset on."""
    shown: Any = []
    await kernel.readdir(handle, start, shown)
    return [name for name, _ in shown if name not in DOTS]


async def refused(number: int, work: Awaitable[Any]) -> None:
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await work
    assert caught.value.errno == number


def test_a_directory_that_is_removed_while_it_is_read_is_empty_for_who_goes_back(
    mount: Composed, store: Held, kernel: Operations
) -> None:
    async def look() -> None:
        await put_all(store, {"d/": b"", "d/a": b"a", "d/b": b"b"})
        top = await mount._walk("d")
        handle = await kernel.opendir(top.number, CALLER)
        assert await read(kernel, handle) == [b"a", b"b"]
        assert await read(kernel, handle, FIRST + 2) == []
        for path in ("d/a", "d/b"):
            await mount.unlink(path)
        await mount.rmdir("d")
        assert await read(kernel, handle, FIRST) == []
        assert await read(kernel, handle) == []
        await kernel.releasedir(handle)

    mount.loop.run(look)


def test_a_file_of_which_no_more_is_known_than_its_name_is_removed_from_the_bucket(
    mount: Composed, store: Held, kernel: Operations
) -> None:
    """By `rm -r`, whose names are not asked for again; nobody has answered when the kernel asked by its number."""

    async def remove() -> None:
        removed = [b"%d" % number for number in range(LONG)]
        await put_all(store, {"file": bytes(5000)} | {name.decode(): b"" for name in removed})
        root = mount.parts.inodes.root.number
        number = (await kernel.lookup(root, b"file", CALLER)).st_ino
        for name in removed:
            await kernel.lookup(root, name, CALLER)
            await kernel.unlink(root, name, CALLER)
        mount.loop._clock.jump(USED + 1)
        forget(mount)
        store.errors["head", "file"] = [silence("head")]
        await refused(errno.EIO, kernel.getattr(number, CALLER))
        assert mount.parts.inodes[number].is_unread
        await kernel.lookup(root, b"file", CALLER)
        await kernel.unlink(root, b"file", CALLER)

    mount.loop.run(remove)
    mount.loop.passes(2 * TTL)
    assert bodies(store) == {}
    assert mount.loop.run(mount.tree) == {}


def test_who_begins_again_is_told_what_was_listed_since(mount: Composed, store: Held, kernel: Operations) -> None:
    async def look() -> None:
        await put_all(store, {"d/a": bytes(5000), "d/b": bytes(5000)})
        top = await mount._walk("d")
        first = await kernel.opendir(top.number, CALLER)
        assert await read(kernel, first) == [b"a", b"b"]
        await put_all(store, {"d/c": bytes(5000)})
        mount.loop._clock.jump(USED + 1)
        assert await read(kernel, first, FIRST + 2) == []
        forget(mount)
        second = await kernel.opendir(top.number, CALLER)
        assert await read(kernel, second) == [b"a", b"b", b"c"]
        assert await read(kernel, first) == [b"a", b"b", b"c"]

    mount.loop.run(look)


def test_what_the_kernel_has_just_looked_up_stays_until_it_asks_for_it(
    mount: Composed, store: Held, kernel: Operations
) -> None:
    async def look() -> None:
        await put_all(store, {"d/a": bytes(5000)})
        top = await mount._walk("d")
        await kernel.lookup(top.number, b"a", CALLER)
        mount.loop._clock.jump(USED / 2)
        entry = await kernel.lookup(top.number, b"a", CALLER)
        forget(mount)
        assert (await kernel.getattr(entry.st_ino, CALLER)).st_size == 5000

    mount.loop.run(look)


@pytest.mark.parametrize("again", [False, True], ids=["by its number", "after it was listed again"])
def test_what_the_kernel_has_keeps_its_number(mount: Composed, store: Held, kernel: Operations, again: bool) -> None:
    """Somebody may have it as O_PATH: fstat, and an open by way of /proc/self/fd, ask by the number alone."""
    held = {"mode": str(stat.S_IFREG | 0o604), "uid": "4321"}

    async def look() -> None:
        await put_all(store, {"d/a": bytes(5000), "d/z": bytes(5000)})
        await store.put("d/b", b"b", Properties(metadata=held))
        top = await mount._walk("d")
        top.lookups += 1
        told = [await kernel.lookup(top.number, name, CALLER) for name in (b"a", b"b")]
        told += [await kernel.lookup(top.number, b"a", CALLER)]
        await mount.parts.listings.complete(top)
        mount.loop._clock.jump(USED + 1)
        forget(mount)
        assert top.directory is not None and not top.directory.entries
        mount.parts.namespace.sweep()
        if again:
            await mount.parts.listings.complete(top)
        found = [await kernel.getattr(entry.st_ino, CALLER) for entry in told]
        assert [(one.st_ino, one.st_size) for one in found] == [(one.st_ino, one.st_size) for one in told]
        assert (stat.S_IMODE(found[1].st_mode), found[1].st_uid) == (0o604, 4321)
        assert (await kernel.lookup(top.number, b"b", CALLER)).st_ino == told[1].st_ino
        handle = (await kernel.open(told[1].st_ino, os.O_RDONLY, CALLER)).fh
        assert bytes(await kernel.read(handle, 0, 10)) == b"b"
        await kernel.release(handle)

    mount.loop.run(look)


def test_what_is_opened_by_a_number_that_was_forgotten_is_what_the_bucket_has(
    mount: Composed, store: Held, kernel: Operations
) -> None:
    held = {"mode": str(stat.S_IFREG | 0o604)}

    async def look() -> None:
        await store.put("d/a", b"a" * 5000, Properties(metadata=held))
        top = await mount._walk("d")
        top.lookups += 1
        number = (await kernel.lookup(top.number, b"a", CALLER)).st_ino
        mount.loop._clock.jump(USED + 1)
        forget(mount)
        opened = await kernel.open(number, os.O_RDWR, CALLER)
        assert not opened.keep_cache, "the pages that the kernel has may be older"
        await kernel.write(opened.fh, 0, b"new")
        await kernel.flush(opened.fh)
        await kernel.release(opened.fh)

    mount.loop.run(look)
    assert bodies(store) == {"d/a": b"new" + b"a" * 4997}
    assert store._stored["d/a"].object.properties.metadata["mode"] == held["mode"]


@pytest.mark.parametrize("shown", [False, True], ids=["never listed since", "listed since"])
def test_what_another_client_has_removed_since_is_gone(
    mount: Composed, store: Held, kernel: Operations, shown: bool
) -> None:
    async def look() -> None:
        await put_all(store, {"d/a": bytes(5000), "d/z": bytes(5000)})
        top = await mount._walk("d")
        top.lookups += 1
        number = (await kernel.lookup(top.number, b"a", CALLER)).st_ino
        mount.loop._clock.jump(USED + 1)
        forget(mount)
        await store.delete("d/a")
        if shown:
            await mount.parts.listings.complete(top)
        await refused(errno.ESTALE if shown else errno.ENOENT, kernel.getattr(number, CALLER))
        with contextlib.suppress(pyfuse3.FUSEError):
            assert (await kernel.lookup(top.number, b"a", CALLER)).st_ino == 0
        assert top.directory is not None and b"a" not in top.directory.entries

    mount.loop.run(look)


def test_what_was_forgotten_is_removed_and_renamed_by_its_name(
    mount: Composed, store: Held, kernel: Operations
) -> None:
    """Also by `rm -r`, which is shown names as they were known last."""

    async def look() -> None:
        await put_all(store, {f"d/{number}": bytes(5000) for number in range(9)})
        top = await mount._walk("d")
        top.lookups += 1
        told = [await kernel.lookup(top.number, b"%d" % number, CALLER) for number in range(9)]
        mount.loop._clock.jump(USED + 1)
        forget(mount)
        for entry in told:
            mount.parts.inodes[entry.st_ino]  # back, and nothing of it is known
        for number in range(8):
            await kernel.lookup(top.number, b"%d" % number, CALLER)
            await kernel.unlink(top.number, b"%d" % number, CALLER)
        await mount.rename("d/8", "d/moved")
        assert (await kernel.getattr(told[8].st_ino, CALLER)).st_size == 5000

    mount.loop.run(look)
    mount.loop.passes(5)
    assert set(bodies(store)) == {"d/", "d/moved"}


def test_what_the_kernel_has_given_back_is_forgotten_for_good(mount: Composed, store: Held, kernel: Operations) -> None:
    async def look() -> None:
        await put_all(store, {"d/a": bytes(5000)})
        top = await mount._walk("d")
        top.lookups += 1
        await kernel.lookup(top.number, b"a", CALLER)
        number = (await kernel.lookup(top.number, b"a", CALLER)).st_ino
        mount.loop._clock.jump(USED + 1)
        forget(mount)
        await kernel.forget([(number, 1)])
        assert mount.parts.inodes.lent_size > 0
        await kernel.forget([(number, 1)])
        assert mount.parts.inodes.lent_size == 0
        await refused(errno.ESTALE, kernel.getattr(number, CALLER))

    mount.loop.run(look)


def test_what_the_kernel_gives_back_while_it_is_in_use_is_given_back(
    mount: Composed, store: Held, kernel: Operations
) -> None:
    async def look() -> None:
        await put_all(store, {"d/a": bytes(5000)})
        top = await mount._walk("d")
        top.lookups += 1
        number = (await kernel.lookup(top.number, b"a", CALLER)).st_ino
        inode = mount.parts.inodes[number]
        mount.loop._clock.jump(USED + 1)
        forget(mount)
        await kernel.forget([(number, 1)])
        mount.parts.inodes.keep(inode)
        assert inode.lookups == 0, "else it is never forgotten again"

    mount.loop.run(look)


def test_what_takes_the_name_of_a_forgotten_file_is_not_shown_under_its_number(
    mount: Composed, store: Held, kernel: Operations
) -> None:
    """Else two numbers would lead to one file: another client has removed the one, a rename makes the other."""
    numbers: list[int] = []
    outcomes: dict[str, Any] = {}

    async def begin() -> None:
        await put_all(store, {"d/a": bytes(5000), "d/b": bytes(6000)})
        top = await mount._walk("d")
        top.lookups += 1
        numbers.append((await kernel.lookup(top.number, b"b", CALLER)).st_ino)

    async def rename() -> None:
        forget(mount)
        await store.delete("d/b")
        store.after["copy", "d/a"] = trio.Event()
        await begun(mount, lambda: told(outcomes, "rename", lambda: mount.rename("d/a", "d/b")))
        assert ("copy", "d/a") in store.reached
        mount.parts.listings.directory(await mount._walk("d")).doubt()  # as where more of its names are forgotten
        await refused(errno.ESTALE, kernel.getattr(numbers[0], CALLER))
        await settled(store.after["copy", "d/a"])
        assert outcomes == {"rename": None}
        moved = await kernel.lookup((await mount._walk("d")).number, b"b", CALLER)
        assert (moved.st_ino != numbers[0], moved.st_size) == (True, 5000)
        await refused(errno.ESTALE, kernel.getattr(numbers[0], CALLER))

    mount.loop.run(begin)
    mount.loop.passes(USED + 1)
    mount.loop.run(rename)


async def _listed_anew(mount: Composed, top: Inode) -> None:
    mount.loop._clock.jump(1)
    mount.parts.listings.directory(top).doubt()
    await mount.parts.listings.complete(top)


def test_who_reads_a_directory_that_another_client_has_removed_is_told_of_nothing_in_it(
    mount: Composed, store: Held, kernel: Operations
) -> None:
    async def look() -> None:
        await put_all(store, {"d/sub/a": bytes(5000), "d/sub/b": bytes(5000), "d/z": b""})
        top, below = await mount._walk("d"), await mount._walk("d/sub")
        below.lookups += 1
        handle = await kernel.opendir(below.number, CALLER)
        assert await read(kernel, handle) == [b"a", b"b"]
        for key in ("d/sub/a", "d/sub/b"):
            await store.delete(key)
        await _listed_anew(mount, top)
        assert await read(kernel, handle) == []

    mount.loop.run(look)


@pytest.mark.parametrize("theirs", [None, bytes(5000)], ids=["removed", "replaced"])
def test_what_is_shown_as_it_was_listed_is_so_only_as_long_as_it_has_its_name(
    mount: Composed, store: Held, theirs: bytes | None
) -> None:
    """What was small enough to be a link may have been shown as one: what replaces it is another inode."""
    kernel = _operations(replace(mount._settings, attributes=Shown.LISTED), mount.parts)

    async def look() -> None:
        await put_all(store, {"d/a": b"small", "d/z": b""})
        top = await mount._walk("d")
        await mount.parts.listings.complete(top)
        shown = await kernel.lookup(top.number, b"a", CALLER)
        assert (await kernel.getattr(shown.st_ino, CALLER)).st_size == len(b"small")
        if theirs is None:
            await store.delete("d/a")
        else:
            await put_all(store, {"d/a": theirs})
        await _listed_anew(mount, top)
        await refused(errno.ESTALE, kernel.getattr(shown.st_ino, CALLER))

    mount.loop.run(look)


def test_what_a_listing_has_nonsense_of_is_not_shown_as_it_was_listed(
    mount: Composed, store: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel, list_page = _operations(replace(mount._settings, attributes=Shown.LISTED), mount.parts), store.list

    async def garbled(*arguments: Any, **options: Any) -> Page:
        page = await list_page(*arguments, **options)
        return replace(page, objects=tuple(replace(one, version=UNKNOWN) for one in page.objects))

    async def look() -> None:
        await put_all(store, {"d/a": b"small"})
        top = await mount._walk("d")
        monkeypatch.setattr(store, "list", garbled)
        await _listed_anew(mount, top)
        shown = await kernel.lookup(top.number, b"a", CALLER)
        assert (await kernel.getattr(shown.st_ino, CALLER)).st_size == len(b"small")

    mount.loop.run(look)


@pytest.mark.parametrize("shown", Shown)
def test_who_goes_back_to_a_name_that_was_forgotten_is_shown_what_the_bucket_has(
    mount: Composed, store: Held, monkeypatch: pytest.MonkeyPatch, shown: Shown
) -> None:
    """Also where the kernel has asked by its number meanwhile, and has had no answer yet."""
    sizes: dict[bytes, int] = {}
    kernel = _operations(replace(mount._settings, attributes=shown), mount.parts)

    def reply(_: Any, name: bytes, entry: pyfuse3.EntryAttributes, after: int) -> bool:
        sizes[name] = entry.st_size
        return True

    monkeypatch.setattr(pyfuse3, "readdir_reply", reply)

    async def look() -> None:
        await put_all(store, {"d/a": bytes(5000), "d/z": bytes(5000)})
        top = await mount._walk("d")
        top.lookups += 1
        handle = await kernel.opendir(top.number, CALLER)
        await kernel.readdir(handle, 0, cast(Any, None))
        await trio.testing.wait_all_tasks_blocked()  # what is asked ahead has it in use
        assert top.directory is not None
        number = top.directory.entries[b"a"].number
        mount.loop._clock.jump(USED + 1)
        await kernel.readdir(handle, FIRST + 2, cast(Any, None))
        forget(mount)
        assert mount.parts.inodes[number].is_unread
        sizes.clear()
        await kernel.readdir(handle, FIRST, cast(Any, None))
        assert sizes == {b"a": 5000, b"z": 5000}
        await kernel.releasedir(handle)

    mount.loop.run(look)


def _opens(kernel: Operations, number: int) -> Awaitable[Any]:
    return kernel.open(number, os.O_RDWR, CALLER)


def _sets(what: str) -> Any:
    return SimpleNamespace(**{f"update_{one}": one == what for one in ("size", "mode", "uid", "gid", "atime", "mtime")})


def _truncates(kernel: Operations, number: int) -> Awaitable[Any]:
    entry = pyfuse3.EntryAttributes()
    entry.st_size = 3
    return kernel.setattr(number, entry, _sets("size"), None, CALLER)


def _chmod(kernel: Operations, number: int) -> Awaitable[Any]:
    entry = pyfuse3.EntryAttributes()
    entry.st_mode = 0o600
    return kernel.setattr(number, entry, _sets("mode"), None, CALLER)


@pytest.mark.parametrize("work", [_opens, _truncates])
def test_what_was_forgotten_while_a_change_waited_is_the_file_of_its_name(
    mount: Composed, store: Held, kernel: Operations, work: Callable[[Operations, int], Awaitable[Any]]
) -> None:
    """Else it would be changed under a number that nobody knows, while its name leads to the old bytes."""
    is_open = work is _opens
    ends: list[BaseException | None] = []
    numbers: list[int] = []

    async def change(inode: Inode) -> None:
        numbers.append(inode.number)
        try:
            await work(kernel, inode.number)
            ends.append(None)
        except pyfuse3.FUSEError as error:
            ends.append(error)

    async def begin() -> trio.Event:
        await put_all(store, {"a": b"0123456789"})
        inode = await mount._walk("a")
        inode.lookups += 1
        event = trio.Event()
        mount.parts.pages._giving[inode.number].add(event)
        await begun(mount, partial(change, inode))
        return event

    async def end(event: trio.Event) -> None:
        forget(mount)
        assert mount.parts.inodes.root.directory is not None and not mount.parts.inodes.root.directory.entries
        mount.parts.pages._giving.clear()
        event.set()
        await trio.testing.wait_all_tasks_blocked()
        if is_open:
            handle = next(iter(kernel._files))
            await kernel.write(handle, 0, b"new")
            await kernel.flush(handle)
            await kernel.release(handle)
        entry = await kernel.lookup(mount.parts.inodes.root.number, b"a", CALLER)
        assert entry.st_ino in numbers

    event = mount.loop.run(begin)
    assert not ends
    mount.loop.passes(USED + 1)
    mount.loop.run(lambda: end(event))
    assert ends == [None]
    assert bodies(store) == {"a": b"new3456789" if is_open else b"012"}


def test_a_removal_by_another_task_does_not_make_a_guess_the_truth(
    mount: Composed, store: Held, kernel: Operations
) -> None:
    """`rm` shows a name as it was known, but is killed; somebody opens it, which is a link by now."""

    async def look() -> None:
        await put_all(store, {f"d/{number}": bytes(5000) for number in range(9)} | {"e/x": b"x", "e/y": b"y"})
        top = await mount._walk("d")
        for number in range(5):
            name = b"%d" % number
            await kernel.lookup(top.number, name, CALLER)
            await kernel.unlink(top.number, name, CALLER)
        mount.loop._clock.jump(1000)
        link = {"mode": str(stat.S_IFLNK | 0o777)}
        await store.put("d/5", b"elsewhere", Properties(metadata=link))
        entry = await kernel.lookup(top.number, b"5", CALLER)
        assert entry.st_size == 5000, "it is about to go"
        other: Any = SimpleNamespace(pid=TASK + 1, uid=0, gid=0, umask=0)
        await kernel.unlink((await mount._walk("e")).number, b"x", other)
        await refused(errno.ESTALE, kernel.open(entry.st_ino, os.O_RDONLY, CALLER))

    mount.loop.run(look)


@pytest.mark.parametrize(("name", "value"), [("colour", "blue"), ("mode", str(stat.S_IFREG | 0o600))])
def test_what_was_forgotten_while_it_was_asked_what_the_key_may_do_gets_its_attribute(
    mount: Composed, store: Held, kernel: Operations, name: str, value: str
) -> None:
    parts, nobody = mount.parts, Mock()
    xattrs = Xattrs(parts.inodes, parts.attributes, nobody, nobody, nobody, nobody, kept=[])
    ends: list[Exception | None] = []
    numbers: list[int] = []

    async def change(inode: Inode) -> None:
        try:
            if name == "colour":
                await xattrs.set(inode, b"user.colour", b"blue", uid=0)
            else:
                await _chmod(kernel, inode.number)
            ends.append(None)
        except (OSError, pyfuse3.FUSEError) as error:
            ends.append(error)

    async def begin() -> None:
        await put_all(store, {"a": bytes(5000)})
        inode = await mount._walk("a")
        inode.lookups += 1
        numbers.append(inode.number)
        parts.attributes.permissions.add([Right.WRITE])
        store.before["upload_part", "a"] = trio.Event()
        await begun(mount, partial(change, inode))
        assert ("upload_part", "a") in store.reached

    async def end() -> None:
        forget(mount)
        store.before["upload_part", "a"].set()
        await trio.testing.wait_all_tasks_blocked()
        assert (await kernel.lookup(parts.inodes.root.number, b"a", CALLER)).st_ino == numbers[0]

    mount.loop.run(begin)
    mount.loop.passes(USED + 1)
    mount.loop.run(end)
    assert ends == [None]
    mount.loop.passes(2)
    assert store._stored["a"].object.properties.metadata[name] == value


@pytest.mark.parametrize("held", ["the question for its name", "the question for its attributes"])
def test_a_name_leads_to_what_the_kernel_was_told_when_its_directory_was_forgotten_meanwhile(
    mount: Composed, store: Held, kernel: Operations, held: str
) -> None:
    """Else a file could be written under one number and removed under another, and would be there again."""
    entries: list[pyfuse3.EntryAttributes] = []

    async def begin() -> None:
        await put_all(store, {f"d/{number:03d}": bytes(5000) for number in range(RELIST_MAX + 1)} | {"d/x": b"x"})
        top = await mount._walk("d")
        top.lookups += 1
        await mount.parts.listings.complete(top)
        operation = "get"
        if held == "the question for its name":
            mount.loop._clock.jump(2 * TTL)
            operation = "head"
        store.before[operation, "d/x"] = trio.Event()

        async def look() -> None:
            entries.append(await kernel.lookup(top.number, b"x", CALLER))

        await begun(mount, look)
        assert (operation, "d/x") in store.reached
        mount.loop._clock.jump(2 * TTL)
        mount.parts.namespace.sweep()
        store.before[operation, "d/x"].set()
        await trio.testing.wait_all_tasks_blocked()
        again = await mount.parts.namespace.lookup(top, b"x")
        assert again.number == entries[0].st_ino

    mount.loop.run(begin)
