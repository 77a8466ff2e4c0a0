"""What single requests of the kernel are answered, do and leave as it is; in one process, by what the bucket gets."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Awaitable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pyfuse3
import pytest
import trio
import trio.testing

from sosfs.config.parameters import TTL, Shown
from sosfs.filesystem.bucket import _operations
from sosfs.fuse.error_replies import guard_of
from sosfs.fuse.operations import DOTS, Operations
from sosfs.fuse.provisional_attributes import ProvisionalAttributes
from sosfs.fuse.removal_streak import RemovalStreak
from sosfs.s3.protocol import Properties, Right
from sosfs.tree.keys import BEHIND_CONTROL, CONTROL, HIDDEN
from tests.support.composed import TASK, Composed
from tests.support.held import Held, begun, bodies, denied, put_all, settled, silence, told

pytestmark = pytest.mark.usefixtures("without_bugs")
CALLER: Any = SimpleNamespace(pid=TASK, uid=0, gid=0, umask=0o022)
NAMES = ("size", "mode", "uid", "gid", "atime", "mtime")


@pytest.fixture
def kernel(mount: Composed, monkeypatch: pytest.MonkeyPatch) -> Operations:
    """What the kernel calls; a reply to readdir is a list of names."""

    def reply(shown: list[bytes], name: bytes, *_: Any) -> bool:
        shown.append(name)
        return True

    monkeypatch.setattr(pyfuse3, "readdir_reply", reply)
    return _operations(mount._settings, mount.parts)


def setting(**values: int) -> tuple[Any, Any]:
    """What chmod, chown, truncate and utimes tell of what is to be set."""
    entry = pyfuse3.EntryAttributes()
    for name, value in values.items():
        setattr(entry, f"st_{name}", value)
    return entry, SimpleNamespace(**{f"update_{name}": name in values or f"{name}_ns" in values for name in NAMES})


async def refused(number: int, work: Awaitable[Any]) -> None:
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await work
    assert caught.value.errno == number


async def known(mount: Composed, kernel: Operations, path: bytes = b"file") -> Any:
    """The entry of a name in the root, as the kernel has it."""
    return await kernel.lookup(mount.parts.inodes.root.number, path, CALLER)


# Attributes


@pytest.mark.promise(3)
def test_a_mode_that_finds_no_room_in_the_journal_is_not_shown(
    mount: Composed, store: Held, kernel: Operations, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "no room")

    async def main() -> None:
        await put_all(store, {"file": b"bytes"})
        entry = await known(mount, kernel)
        await kernel.getattr(entry.st_ino, CALLER)
        with monkeypatch.context() as patch:
            patch.setattr(mount._journal, "save_attributes", full)
            for values in ({"mode": 0o600}, {"uid": 7}, {"gid": 7}, {"mtime_ns": 10**18}):
                await refused(errno.ENOSPC, kernel.setattr(entry.st_ino, *setting(**values), None, CALLER))
        now = await kernel.getattr(entry.st_ino, CALLER)
        for name in ("st_mode", "st_uid", "st_gid", "st_mtime_ns", "st_ctime_ns"):
            assert getattr(now, name) == getattr(entry, name), name

    mount.loop.run(main)


def test_what_the_key_may_not_store_is_refused_before_anything_is_changed(
    mount: Composed, store: Held, kernel: Operations
) -> None:
    """Else a close would be told, whose bytes then have nowhere to go."""

    async def main() -> None:
        await put_all(store, {"file": b"bytes"})
        number = (await known(mount, kernel)).st_ino
        mount.parts.attributes.permissions.add([Right.WRITE])
        store.errors["upload_part", "file"] = [denied()] * 5
        await refused(errno.EACCES, kernel.setattr(number, *setting(mode=0o600), None, CALLER))
        await refused(errno.EACCES, kernel.setattr(number, *setting(size=0), None, CALLER))
        for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC):
            await refused(errno.EACCES, kernel.open(number, flags, CALLER))
        now = await kernel.getattr(number, CALLER)
        assert (stat.S_IMODE(now.st_mode), now.st_size) == (0o644, 5)
        opened = await kernel.open(number, os.O_RDONLY, CALLER)
        assert bytes(await kernel.read(opened.fh, 0, 9)) == b"bytes"
        await kernel.release(opened.fh)

    mount.loop.run(main)
    assert mount.parts.pending == 0


def test_a_change_of_the_mode_is_one_of_the_inode_and_none_of_what_it_was_already(
    mount: Composed, store: Held, kernel: Operations
) -> None:
    async def main() -> None:
        await put_all(store, {"file": b"bytes"})
        entry = await known(mount, kernel)
        before = (await kernel.getattr(entry.st_ino, CALLER)).st_ctime_ns
        same = await kernel.setattr(entry.st_ino, *setting(mode=0o644), None, CALLER)
        assert same.st_ctime_ns == before
        assert mount.parts.pending == 0
        other = await kernel.setattr(entry.st_ino, *setting(mode=0o600), None, CALLER)
        assert other.st_ctime_ns > before
        assert mount.parts.pending == 1

    mount.loop.run(main)


@pytest.mark.promise(3)
def test_who_has_open_what_another_client_replaced_cannot_change_what_it_is(
    mount: Composed, store: Held, kernel: Operations
) -> None:
    """It would be told that it did, and nothing of it would ever be stored."""

    async def main() -> None:
        await put_all(store, {"file": b"bytes"})
        number = (await known(mount, kernel)).st_ino
        opened = await kernel.open(number, os.O_RDONLY, CALLER)
        assert bytes(await kernel.read(opened.fh, 0, 2)) == b"by"
        await put_all(store, {"file": b"theirs, of another length"})
        mount.loop._clock.jump(2 * TTL)
        await kernel.opendir(mount.parts.inodes.root.number, CALLER)
        await mount.tree()
        assert (await known(mount, kernel)).st_ino != number
        for values in ({"mode": 0o600}, {"size": 1}):
            await refused(errno.ESTALE, kernel.setattr(number, *setting(**values), opened.fh, CALLER))
        await kernel.release(opened.fh)

    mount.loop.run(main)
    assert bodies(store) == {"file": b"theirs, of another length"}


def test_who_has_a_file_open_is_told_of_its_size_without_a_question(
    mount: Composed, store: Held, kernel: Operations
) -> None:
    """The kernel asks before each read where nothing is trusted for any time."""

    async def main() -> None:
        await put_all(store, {"file": b"bytes"})
        number = (await known(mount, kernel)).st_ino
        opened = await kernel.open(number, os.O_RDONLY, CALLER)
        await kernel.getattr(number, CALLER)
        mount.loop._clock.jump(2 * TTL)
        before = store.calls.copy()
        assert (await kernel.getattr(number, CALLER)).st_size == 5
        assert store.calls == before
        await kernel.release(opened.fh)
        await kernel.getattr(number, CALLER)
        assert store.calls != before

    mount.loop.run(main)


def test_what_a_file_is_is_told_in_full(mount: Composed, store: Held, kernel: Operations) -> None:
    async def main() -> None:
        await put_all(store, {"file": bytes(5000), "d/x": b"x"})
        root, entry = mount.parts.inodes.root.number, await known(mount, kernel)
        assert (entry.st_size, entry.st_blocks, entry.st_nlink) == (5000, 10, 1)
        top = await kernel.getattr(root, CALLER)
        assert (top.st_ino, top.st_nlink, stat.S_ISDIR(top.st_mode)) == (root, 1, True)
        directory = await known(mount, kernel, b"d")
        for name, number in ((b".", directory.st_ino), (b"..", root)):
            lookups = mount.parts.inodes[number].lookups
            assert (await kernel.lookup(directory.st_ino, name, CALLER)).st_ino == number
            assert mount.parts.inodes[number].lookups == lookups + 1
        assert (await kernel.lookup(root, b"..", CALLER)).st_ino == root

    mount.loop.run(main)


@pytest.mark.promise(1)
@pytest.mark.parametrize("is_known", [False, True], ids=["new", "known"])
def test_a_failure_is_no_absence_of_a_name(mount: Composed, store: Held, kernel: Operations, is_known: bool) -> None:
    async def main() -> None:
        await put_all(store, {"d/file": b"x"})
        directory = await mount._walk("d")
        if is_known:
            await mount.parts.listings.complete(directory)
            mount.loop._clock.jump(2 * TTL)
        for what, key in (("head", "d/file"), ("list", "d/"), ("list", "d/file/"), ("get", "d/file")):
            store.errors[what, key] = [silence(what)] * 9
        await refused(errno.EIO, kernel.lookup(directory.number, b"file", CALLER))

    mount.loop.run(main)


def test_a_time_that_no_metadata_can_say_is_refused_before_the_file_is_cut(
    mount: Composed, store: Held, kernel: Operations
) -> None:
    async def main() -> None:
        await put_all(store, {"file": b"bytes"})
        number = (await known(mount, kernel)).st_ino
        await refused(errno.EOVERFLOW, kernel.setattr(number, *setting(size=0, mtime_ns=10**27), None, CALLER))
        before = await kernel.getattr(number, CALLER)
        assert before.st_size == 5
        now = await kernel.setattr(number, *setting(atime_ns=5 * 10**9), None, CALLER)
        assert (now.st_atime_ns, now.st_mtime_ns) == (5 * 10**9, before.st_mtime_ns)

    mount.loop.run(main)
    assert mount.parts.pending == 0
    assert bodies(store) == {"file": b"bytes"}


def test_what_became_a_link_since_it_was_looked_up_is_not_changed_under_its_old_number(
    mount: Composed, store: Held, kernel: Operations
) -> None:
    async def main() -> None:
        await put_all(store, {"file": bytes(5000)})
        number = (await known(mount, kernel)).st_ino
        await store.put("file", b"elsewhere", Properties(metadata={"mode": str(stat.S_IFLNK | 0o777)}))
        mount.loop._clock.jump(2 * TTL)
        for values in ({"size": 0}, {"mode": 0o600}):
            await refused(errno.ESTALE, kernel.setattr(number, *setting(**values), None, CALLER))

    mount.loop.run(main)
    assert mount.parts.pending == 0
    assert bodies(store) == {"file": b"elsewhere"}


# Names


def test_what_is_made_is_of_who_makes_it(mount: Composed, store: Held, kernel: Operations) -> None:
    maker: Any = SimpleNamespace(pid=TASK, uid=11, gid=22, umask=0)

    async def main() -> None:
        root = mount.parts.inodes.root.number
        pipe = await kernel.mknod(root, b"pipe", stat.S_IFIFO | 0o600, 0, maker)
        device = await kernel.mknod(root, b"null", stat.S_IFCHR | 0o666, os.makedev(1, 3), maker)
        link = await kernel.symlink(root, b"link", b"target", maker)
        directory = await kernel.mkdir(root, b"d", 0o700, maker)
        opened, file = await kernel.create(root, b"file", 0o600, os.O_WRONLY | os.O_CREAT, maker)
        claimed, lock = await kernel.create(root, b"file.lock", 0o600, os.O_WRONLY | os.O_CREAT | os.O_EXCL, maker)
        for entry in (pipe, device, link, directory, file, lock):
            assert (entry.st_uid, entry.st_gid) == (11, 22)
        assert device.st_rdev == os.makedev(1, 3)
        assert bytes(await kernel.readlink(link.st_ino, CALLER)) == b"target"
        await refused(errno.EPERM, kernel.link(file.st_ino, root, b"other", maker))
        for handle in (opened.fh, claimed.fh):
            await kernel.flush(handle)
            await kernel.release(handle)

    mount.loop.run(main)


def test_what_another_client_has_removed_since_it_was_listed_cannot_be_removed(
    mount: Composed, store: Held, kernel: Operations
) -> None:
    async def main() -> None:
        await put_all(store, {"file": b"bytes", "other": b"x"})
        await mount.tree()
        await store.delete("file")
        mount.loop._clock.jump(2 * TTL)
        await refused(errno.ENOENT, kernel.unlink(mount.parts.inodes.root.number, b"file", CALLER))

    mount.loop.run(main)


def test_two_names_are_not_exchanged_and_none_is_replaced_where_that_is_not_wanted(
    mount: Composed, store: Held, kernel: Operations
) -> None:
    async def main() -> None:
        await put_all(store, {"a": b"a", "b": b"b"})
        root = mount.parts.inodes.root.number
        for flags in (pyfuse3.RENAME_EXCHANGE, 4):  # that of overlayfs
            await refused(errno.EINVAL, kernel.rename(root, b"a", root, b"b", flags, CALLER))
        await refused(errno.EEXIST, kernel.rename(root, b"a", root, b"b", pyfuse3.RENAME_NOREPLACE, CALLER))
        await kernel.rename(root, b"a", root, b"c", pyfuse3.RENAME_NOREPLACE, CALLER)

    mount.loop.run(main)
    mount.loop.passes(2)
    assert bodies(store) == {"b": b"b", "c": b"a"}


@pytest.mark.parametrize("flags", [os.O_CREAT, os.O_CREAT | os.O_TRUNC, os.O_CREAT | os.O_EXCL])
def test_what_another_client_made_since_the_name_was_looked_up_is_opened_unless_it_was_to_be_new(
    mount: Composed, store: Held, kernel: Operations, flags: int
) -> None:
    async def main() -> None:
        root = mount.parts.inodes.root.number
        assert await mount.tree() == {}
        await put_all(store, {"file": b"theirs"})
        mount.loop._clock.jump(2 * TTL)
        making = kernel.create(root, b"file", 0o600, os.O_RDWR | flags, CALLER)
        if flags & os.O_EXCL:
            await refused(errno.EEXIST, making)
            return
        opened, entry = await making
        assert stat.S_IMODE(entry.st_mode) == 0o644
        assert entry.st_size == (0 if flags & os.O_TRUNC else 6)
        await kernel.write(opened.fh, 0, b"ours")
        await kernel.flush(opened.fh)
        await kernel.release(opened.fh)

    mount.loop.run(main)
    assert bodies(store) == {"file": {os.O_CREAT: b"oursrs", os.O_CREAT | os.O_TRUNC: b"ours"}.get(flags, b"theirs")}


def test_a_lock_file_is_made_once_though_it_is_emptied_as_it_is_opened(
    mount: Composed, store: Held, kernel: Operations
) -> None:
    """It is in the bucket when open returns, and emptying what is new would store it a second time."""

    async def main() -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_TRUNC
        opened, _ = await kernel.create(mount.parts.inodes.root.number, b"file.lock", 0o600, flags, CALLER)
        assert bodies(store) == {"file.lock": b""}
        await kernel.flush(opened.fh)
        await kernel.release(opened.fh)

    mount.loop.run(main)
    mount.loop.passes(5)
    assert store.calls["put"] == 1


@pytest.mark.parametrize("kind", [stat.S_IFREG, stat.S_IFIFO, 0])
def test_what_is_made_has_the_mode_that_the_umask_leaves(
    mount: Composed, store: Held, kernel: Operations, kind: int
) -> None:
    async def main() -> None:
        root = mount.parts.inodes.root.number
        made = await kernel.mknod(root, b"node", kind | 0o666, 0, CALLER)
        assert made.st_mode == (kind or stat.S_IFREG) | 0o644
        assert (await kernel.mkdir(root, b"d", 0o777, CALLER)).st_mode == stat.S_IFDIR | 0o755
        opened, entry = await kernel.create(root, b"file", 0o666, os.O_WRONLY | os.O_CREAT, CALLER)
        assert entry.st_mode == stat.S_IFREG | 0o644
        await kernel.release(opened.fh)

    mount.loop.run(main)


def test_what_was_removed_while_it_was_open_is_forgotten_when_it_is_closed(
    mount: Composed, store: Held, kernel: Operations
) -> None:
    async def main() -> None:
        await put_all(store, {"file": b"bytes"})
        root = mount.parts.inodes.root.number
        number = (await known(mount, kernel)).st_ino
        opened = await kernel.open(number, os.O_RDWR, CALLER)
        await kernel.unlink(root, b"file", CALLER)
        assert (await kernel.getattr(number, CALLER)).st_nlink == 0
        assert bytes(await kernel.read(opened.fh, 0, 9)) == b"bytes"
        await kernel.forget([(number, 1)])
        assert mount.parts.inodes.find(number) is not None
        await kernel.release(opened.fh)
        assert mount.parts.inodes.find(number) is None

    mount.loop.run(main)


# Directories


async def read(kernel: Operations, handle: int, start: int = 0) -> list[bytes]:
    """The names that a reader is told from this offset on, but for the first two."""
    shown: Any = []
    await kernel.readdir(handle, start, shown)
    return [name for name in shown if name not in (b".", b"..")]


def test_who_began_again_keeps_no_names_in_memory_when_it_has_closed_the_directory(
    mount: Composed, store: Held, kernel: Operations
) -> None:
    async def main() -> None:
        await put_all(store, {"d/one": b"x", "d/two": b"x"})
        directory = await mount._walk("d")
        handle = await kernel.opendir(directory.number, CALLER)
        assert await read(kernel, handle) == [b"one", b"two"]
        mount.loop._clock.jump(2 * TTL)
        assert await read(kernel, handle) == [b"one", b"two"]
        await kernel.releasedir(handle)
        await kernel.forget([(one.number, 2) for one in directory.directory.entries.values()])  # type: ignore[union-attr]
        mount.loop._clock.jump(2 * TTL)
        mount.parts.namespace.sweep()
        assert directory.directory is None

    mount.loop.run(main)


@pytest.mark.parametrize("by", ["here", "elsewhere"])
def test_a_directory_that_is_gone_is_empty_if_it_was_removed_here_and_an_error_else(
    mount: Composed, store: Held, kernel: Operations, by: str
) -> None:
    """Of what another client did nobody knows whether it was removed with all that was in it, or replaced."""

    async def main() -> None:
        await put_all(store, {"d/": b"", "keep": b""} | ({} if by == "here" else {"d/file": b"x"}))
        root, number = mount.parts.inodes.root.number, (await known(mount, kernel, b"d")).st_ino
        if by == "here":
            await kernel.rmdir(root, b"d", CALLER)
            handle = await kernel.opendir(number, CALLER)
            assert await read(kernel, handle) == []
            await kernel.releasedir(handle)
            return
        for key in ("d/", "d/file"):
            await store.delete(key)
        mount.loop._clock.jump(2 * TTL)
        await mount.tree()
        await refused(errno.ESTALE, _all_of(kernel, number))

    mount.loop.run(main)


async def _all_of(kernel: Operations, number: int) -> list[bytes]:
    return await read(kernel, await kernel.opendir(number, CALLER))


@pytest.mark.promise(2)
@pytest.mark.parametrize("what", ["put", "delete"])
def test_an_fsync_of_a_directory_waits_for_what_is_on_its_way(
    mount: Composed, store: Held, kernel: Operations, what: str
) -> None:
    outcomes: dict[str, Any] = {}

    async def main() -> None:
        await put_all(store, {"d/": b"", "d/old": b"old", "d/other": b""})
        directory = await mount._walk("d")
        entry = await kernel.lookup(directory.number, b"old", CALLER)
        going = store.before[what, "d/new" if what == "put" else "d/old"] = trio.Event()
        if what == "put":
            opened, _ = await kernel.create(directory.number, b"new", 0o644, os.O_WRONLY | os.O_CREAT, CALLER)
            await kernel.write(opened.fh, 0, b"new")
        else:
            mount.parts.deletions._proven_until = trio.current_time() + 1
            assert mount.parts.namespace.unlink_at_once(directory, mount.parts.inodes[entry.st_ino])
        handle = await kernel.opendir(directory.number, CALLER)
        await begun(mount, partial(told, outcomes, "fsync", partial(kernel.fsyncdir, handle, False)))
        assert outcomes == {}
        await settled(going)
        assert outcomes == {"fsync": None}
        assert bodies(store).get("d/new" if what == "put" else "d/old") == (b"new" if what == "put" else None)
        await kernel.releasedir(handle)
        if what == "put":
            await kernel.release(opened.fh)

    mount.loop.run(main)


def test_an_fsync_of_a_directory_waits_for_nothing_elsewhere(mount: Composed, store: Held, kernel: Operations) -> None:
    outcomes: dict[str, Any] = {}

    async def main() -> None:
        await put_all(store, {"d/x": b"x", "e/old": b"old", "e/other": b""})
        directory, handle = await mount._walk("e"), await kernel.opendir((await mount._walk("d")).number, CALLER)
        entry = await kernel.lookup(directory.number, b"old", CALLER)
        going = store.before["delete", "e/old"] = trio.Event()
        mount.parts.deletions._proven_until = trio.current_time() + 1
        assert mount.parts.namespace.unlink_at_once(directory, mount.parts.inodes[entry.st_ino])
        await begun(mount, partial(told, outcomes, "fsync", partial(kernel.fsyncdir, handle, False)))
        assert outcomes == {"fsync": None}
        assert "e/old" in bodies(store)
        await settled(going)
        await kernel.releasedir(handle)

    mount.loop.run(main)


def test_where_a_link_leads_that_is_shown_as_it_was_listed_the_bucket_is_asked(
    mount: Composed, store: Held, kernel: Operations
) -> None:
    """`rm -r` shows a name as it was known, and is killed before it removes it."""

    async def main() -> None:
        link = Properties(metadata={"mode": str(stat.S_IFLNK | 0o777)})
        await put_all(store, {f"d/{number}": bytes(5000) for number in range(6)})
        await store.put("d/6", b"here", link)
        top = await mount._walk("d")
        await mount._walk("d/6")
        for number in range(5):
            name = b"%d" % number
            await kernel.lookup(top.number, name, CALLER)
            await kernel.unlink(top.number, name, CALLER)
        mount.loop._clock.jump(1000)
        await store.delete("d/6")
        entry = await kernel.lookup(top.number, b"6", CALLER)
        await refused(errno.ENOENT, kernel.readlink(entry.st_ino, CALLER))

    mount.loop.run(main)


def test_who_reads_on_in_a_directory_is_told_of_each_name_once(
    mount: Composed, store: Held, kernel: Operations
) -> None:
    """However old the listing is by then, and whatever came before what he was told of."""

    async def main() -> None:
        await put_all(store, {"d/b": b"x", "d/c": b"x", "d/d": b"x"})
        directory = await mount._walk("d")
        handle = await kernel.opendir(directory.number, CALLER)
        assert await read(kernel, handle) == [b"b", b"c", b"d"]
        await put_all(store, {"d/a": b"x"})
        mount.loop._clock.jump(2 * TTL)
        assert await read(kernel, handle, len(DOTS) + 1) == [b"c", b"d"]
        await kernel.releasedir(handle)

    mount.loop.run(main)


@pytest.mark.parametrize("room", [1, 2, 3])
def test_who_has_room_for_a_few_names_is_told_of_all_and_holds_what_it_was_told_of(
    mount: Composed, store: Held, kernel: Operations, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    """What the kernel was told of once more than it knows is never forgotten, what once less, too early."""

    def reply(shown: list[tuple[bytes, int]], name: bytes, _: Any, after: int) -> bool:
        if len(shown) == room:
            return False
        shown.append((name, after))
        return True

    monkeypatch.setattr(pyfuse3, "readdir_reply", reply)

    async def main() -> None:
        await put_all(store, {f"d/{name}": b"x" for name in "abcd"})
        directory = await mount._walk("d")
        handle, start, names = await kernel.opendir(directory.number, CALLER), 0, list[bytes]()
        while True:
            shown: Any = []
            await kernel.readdir(handle, start, shown)
            if not shown:
                break
            names += [name for name, _ in shown]
            start = shown[-1][1]
        await kernel.releasedir(handle)
        assert names == [*DOTS, b"a", b"b", b"c", b"d"]
        assert directory.directory is not None
        assert [one.lookups for one in directory.directory.entries.values()] == [1] * 4

    mount.loop.run(main)


@pytest.mark.promise(9)
def test_what_the_bucket_has_of_the_control_trees_name_is_listed_under_another_in_the_root_alone(
    mount: Composed, store: Held, kernel: Operations
) -> None:
    async def main() -> None:
        await put_all(store, {CONTROL: b"x", f"d/{CONTROL}": b"x"})
        root, directory = mount.parts.inodes.root.number, (await mount._walk("d")).number
        assert sorted(await _all_of(kernel, root)) == [BEHIND_CONTROL.encode(), b"d"]
        assert await _all_of(kernel, directory) == [CONTROL.encode()]

    mount.loop.run(main)


def test_what_the_mounts_tell_each_other_is_not_listed(mount: Composed, store: Held, kernel: Operations) -> None:
    async def main() -> None:
        await put_all(store, {f"{HIDDEN}/index": b"x", "file": b"x"})
        handle = await kernel.opendir(mount.parts.inodes.root.number, CALLER)
        assert await read(kernel, handle) == [b"file"]
        await kernel.releasedir(handle)

    mount.loop.run(main)


@pytest.mark.promise(1)
@pytest.mark.parametrize("name", ["opendir", "readdir"])
@pytest.mark.parametrize(
    ("error", "number"),
    [
        (OSError(errno.ENOENT, "absent"), errno.EIO),
        (OSError(errno.EACCES, "denied"), errno.EACCES),
        (OSError("no number"), errno.EIO),
        (ValueError("a bug"), errno.EIO),
    ],
    ids=["absent", "denied", "no number", "a bug"],
)
def test_an_absence_is_no_end_of_a_directory_that_is_read(
    caplog: pytest.LogCaptureFixture, name: str, error: Exception, number: int
) -> None:
    """getdents(2) would take it for one, and a backup for all that there is."""

    async def handler(_: object) -> None:
        raise error

    handler.__name__ = name
    trio.run(lambda: refused(number, guard_of(name)(handler)(object())))
    caplog.clear()


# How long the kernel may keep what it is told


def test_names_and_attributes_are_kept_until_what_told_of_them_is_too_old(
    mount: Composed, store: Held, kernel: Operations
) -> None:
    async def main() -> None:
        await put_all(store, {"file": bytes(5000), "may be a link": b"here"})
        root = mount.parts.inodes.root
        await mount.parts.listings.complete(root)
        assert root.directory is not None
        assert kernel._entry(root.directory.entries[b"may be a link"]).entry_timeout == 0
        entry = await known(mount, kernel)
        assert (entry.attr_timeout, entry.entry_timeout) == (0, TTL), "of a listing nobody knows the attributes"
        await kernel.getattr(entry.st_ino, CALLER)
        mount.loop._clock.jump(4.0)
        entry = await kernel.getattr(entry.st_ino, CALLER)
        assert entry.attr_timeout == entry.entry_timeout == TTL - 4.0
        await kernel.setattr(entry.st_ino, *setting(mode=0o600), None, CALLER)
        entry = await kernel.getattr(entry.st_ino, CALLER)
        assert entry.attr_timeout == entry.entry_timeout == TTL, "what is to be sent is as it is here"

    mount.loop.run(main)


def test_an_absence_is_kept_until_the_listing_that_shows_it_is_too_old(
    mount: Composed, store: Held, kernel: Operations
) -> None:
    async def main() -> None:
        await put_all(store, {"file": b"x"})
        root = mount.parts.inodes.root
        await mount.tree()
        mount.loop._clock.jump(4.0)
        absent = await known(mount, kernel, b"absent")
        assert (absent.st_ino, absent.entry_timeout) == (0, TTL - 4.0)
        assert root.directory is not None
        root.directory.forgotten = trio.current_time()
        await refused(errno.ENOENT, known(mount, kernel, b"absent"))

    mount.loop.run(main)


@pytest.mark.parametrize(("ttl", "seconds"), [(0.0, 0.0), (0.5, 0.5), (TTL, 1.0)])
def test_a_guess_is_kept_no_longer_than_all_else(mount: Composed, ttl: float, seconds: float) -> None:
    for shown, hold in ((Shown.LISTED, seconds), (Shown.EXACT, 0.0)):
        assert ProvisionalAttributes(mount.parts.attributes, shown, ttl=ttl).hold == hold


# Removals


def removes(streak: RemovalStreak, names: str, *, task: int = TASK) -> list[bool]:
    """Which names a task need not be told the truth about, that looks up and removes one after the other."""
    told_so = []
    for name in names:
        told_so.append(streak.may_guess(task, 1, name.encode()))
        streak.removed(task, 1, name.encode())
    return told_so


def test_who_has_removed_some_names_in_a_row_will_remove_the_next() -> None:
    assert removes(RemovalStreak(), "abcde") == [False, False, False, True, True]


def test_another_task_that_looks_a_name_up_is_told_the_truth() -> None:
    streak = RemovalStreak()
    removes(streak, "abcd")
    assert not streak.may_guess(TASK + 1, 1, b"e")
    assert removes(streak, "efgh", task=TASK + 1) == [False, False, False, True]


@pytest.mark.parametrize("then", [(1, b"f"), (2, b"e")])
def test_who_looks_one_up_and_does_not_remove_it_removes_no_more(then: tuple[int, bytes]) -> None:
    streak = RemovalStreak()
    removes(streak, "abcd")
    assert streak.may_guess(TASK, 1, b"e")
    assert streak.may_guess(TASK, 1, b"e"), "it is looked up by rm(1) and by the kernel"
    assert not streak.may_guess(TASK, *then)
    assert removes(streak, "ghij") == [False, False, False, True]
