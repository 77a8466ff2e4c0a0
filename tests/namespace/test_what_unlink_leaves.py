"""What is left of a file whose name goes: to who has it open, to who is refused, to the next mount, and of memory.

In one process; another client's eyes are the store itself.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from sosfs.config.parameters import TTL, Durability
from sosfs.journal.journal import Journal
from sosfs.s3.protocol import Properties
from sosfs.tree.inodes import Inode
from tests.support.composed import LONG, Composed, composed
from tests.support.drive import fails
from tests.support.held import Held, begun, bodies, closed, denied, opened, put_all, settled, silence


def chmod(mount: Composed, inode: Inode, mode: int) -> None:
    """chmod, which goes up a second later."""
    inode.mode = stat.S_IFMT(inode.mode) | mode
    mount.parts.attributes.changed(inode, posix={"mode"})


def mode_of(store: Held, key: str = "file") -> int:
    """What the bucket says; 0 for nothing."""
    return stat.S_IMODE(int(store._stored[key].object.properties.metadata.get("mode", "0")))


async def copied_without_an_answer(
    mount: Composed, store: Held, inode: Inode, *, is_late: bool = False
) -> Callable[[], Awaitable[object]]:
    """What was changed of its attributes is stored, and nobody is told so; or it is by what this returns."""
    late: list[Callable[[], Awaitable[object]]] = []

    async def copy(*arguments: Any, **options: Any) -> None:
        late.append(partial(Held.copy, store, *arguments, **options))
        if not is_late:
            await late[0]()
        raise silence("copy")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "copy", copy)
        with fails(errno.EIO):
            await mount.parts.attributes.write_now(inode)
    return late[0]


# To who has it open


def test_what_is_changed_of_it_afterwards_is_not_changed_of_the_next_file_of_its_name(
    mount: Composed, store: Held
) -> None:
    async def main() -> None:
        await put_all(store, {"file": b"bytes"})
        handle = await opened(mount, os.O_RDONLY)
        inode = handle.inode
        inode.lookups = 1
        await mount.unlink("file")
        assert mount.parts.inodes[inode.number] is inode, "the kernel still asks for it"
        await mount.write("file", b"bytes", flags=os.O_CREAT)
        chmod(mount, inode, 0o600)
        await closed(mount, handle)

    mount.loop.run(main)
    mount.loop.passes(5)
    assert (bodies(store), mode_of(store)) == ({"file": b"bytes"}, 0o644)
    assert mount.parts.pending == 0


@pytest.mark.parametrize("is_kept", [True, False], ids=["the kernel has it", "nobody has it"])
def test_it_takes_memory_only_as_long_as_the_kernel_has_it(mount: Composed, store: Held, is_kept: bool) -> None:
    async def main() -> None:
        await put_all(store, {"proof": b"", "first": b"x", "second": b"x"})
        inodes, root = mount.parts.inodes, mount.parts.inodes.root
        await mount.parts.listings.complete(root)
        known = len(inodes)
        names = [await mount._walk(name) for name in ("first", "second")]
        for inode in names:
            inode.lookups = int(is_kept)
        await mount.unlink("first")
        assert mount.parts.namespace.unlink_at_once(root, names[1])
        assert len(inodes) == known - (0 if is_kept else 2)
        for inode in names:
            mount.parts.namespace.forget(inode, 1)
        assert len(inodes) == known - 2

    mount.loop.run(main)


# To who is refused


@pytest.mark.parametrize("lookups", [0, 1])
@pytest.mark.parametrize("is_changed", [True, False], ids=["changed", "unchanged"])
def test_where_it_is_refused_the_file_is_there_as_before(
    mount: Composed, store: Held, lookups: int, is_changed: bool
) -> None:
    async def main() -> None:
        await put_all(store, {"file": b"bytes"})
        inode, root = await mount._walk("file"), mount.parts.inodes.root
        inode.lookups, root.mtime_ns = lookups, 1
        if is_changed:
            chmod(mount, inode, 0o600)
        store.errors["delete", "file"] = [denied()]
        with fails(errno.EACCES):
            await mount.unlink("file")
        assert root.mtime_ns == 1
        assert await mount._walk("file") is inode
        assert await mount.tree() == {"file": (b"bytes", 0o600 if is_changed else 0o644)}

    mount.loop.run(main)
    mount.loop.passes(5)
    assert mode_of(store) == (0o600 if is_changed else 0)
    assert store.calls["copy"] == is_changed


@pytest.mark.parametrize("is_late", [False, True], ids=["made", "late"])
def test_where_it_is_refused_a_copy_without_an_answer_is_ours_still(tmp_path: Path, is_late: bool) -> None:
    """Of two changes of its mode the first is made, though nobody tells so, and the other is to follow."""
    store = Held(hashes=False)

    async def main(mount: Composed) -> None:
        await put_all(store, {"file": b"bytes"})
        inode = await mount._walk("file")
        chmod(mount, inode, 0o600)
        late = await copied_without_an_answer(mount, store, inode, is_late=is_late)
        chmod(mount, inode, 0o640)
        store.errors["delete", "file"] = [denied()]
        with fails(errno.EACCES):
            await mount.unlink("file")
        if is_late:
            await late()

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))
        mount.loop.passes(LONG)
        assert mode_of(store) == 0o640
        assert mount.parts.pending == 0


def test_its_directory_has_changed(mount: Composed, store: Held) -> None:
    async def main() -> None:
        await put_all(store, {"file": b"bytes"})
        mount.parts.inodes.root.mtime_ns = 1
        await mount.unlink("file")
        assert mount.parts.inodes.root.mtime_ns > 1

    mount.loop.run(main)


def test_what_another_client_has_removed_is_looked_up_again(mount: Composed, store: Held) -> None:
    """A listing shows it while the removal waits for that: the kernel asks once more on ESTALE."""

    async def main() -> None:
        await put_all(store, {"d/x": b"x"})
        await mount.tree()
        parent = await mount._walk("d")
        inode = mount.parts.namespace.listed(parent, b"x")
        await store.delete("d/x")
        mount.loop._clock.jump(2 * TTL)
        with fails(errno.ESTALE):
            await mount.parts.namespace.unlink(parent, b"x", inode)

    mount.loop.run(main)
    assert store.calls["delete"] == 1


# To the next mount


def test_unsent_bytes_do_not_come_back_where_the_process_ends_as_the_answer_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Held()

    async def hangs(journal: Journal) -> None:
        await trio.sleep_forever()

    async def main(mount: Composed) -> None:
        await put_all(store, {"file": b"old"})
        await mount.write("file", b"new, and longer")
        await begun(mount, partial(mount.unlink, "file"))

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        with monkeypatch.context() as patch:
            patch.setattr(Journal, "flushed", hangs)
            mount.loop.run(partial(main, mount))
            assert bodies(store) == {}
            mount.crash()
        mount.start()
        mount.loop.passes(5)
        assert bodies(store) == {}


@pytest.mark.parametrize("whose", ["ours", "ours that comes late", "theirs"])
def test_the_next_mount_removes_what_a_copy_without_an_answer_has_made_and_nothing_else(
    tmp_path: Path, whose: str
) -> None:
    """Both have the bytes that were removed, and were stored later."""
    now = [7.0]
    store = Held(clock=lambda: now[0])

    async def main(mount: Composed) -> None:
        await put_all(store, {"file": b"bytes", "proof": b""})
        inode = await mount._walk("file")
        now[0] = 9.0
        if whose != "theirs":
            chmod(mount, inode, 0o600)
            late = await copied_without_an_answer(mount, store, inode, is_late=whose != "ours")
        await mount.unlink("proof")
        store.before["delete", "file"] = trio.Event()
        await mount.unlink("file")
        if whose == "theirs":
            await store.put("file", b"bytes", Properties())
        elif whose != "ours":
            await late()
        assert store._stored["file"].object.version.modified == 9

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))
        mount.crash()
        store.before.clear()
        mount.start()
        assert bodies(store) == ({"file": b"bytes"} if whose == "theirs" else {})


@pytest.mark.parametrize("ends", [True, False], ids=["the next mount", "this mount"])
@pytest.mark.parametrize("hashes", [True, False], ids=["hashes", "no hashes"])
def test_what_a_copy_without_an_answer_has_made_does_not_pass_for_another_clients(
    tmp_path: Path, hashes: bool, ends: bool
) -> None:
    """Nothing but what was stored with it tells whose it is, where each write makes an ETag of its own."""
    store = Held(hashes=hashes)

    async def main(mount: Composed) -> None:
        await put_all(store, {"file": b"bytes", "proof": b""})
        inode = await mount._walk("file")
        chmod(mount, inode, 0o600)
        await copied_without_an_answer(mount, store, inode)
        await mount.unlink("proof")
        store.errors["delete", "file"] = [silence("delete")]
        await mount.unlink("file")

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))
        if ends:
            mount.crash()
            store.errors.clear()
            mount.start()
        mount.loop.passes(LONG)
        assert bodies(store) == {}
        assert mount.loop.run(mount.tree) == {}


# What is removed at once


@pytest.mark.parametrize("is_known", [True, False])
def test_what_is_to_be_written_of_it_goes_with_it(tmp_path: Path, is_known: bool) -> None:
    """One of many, of which the mode was changed a moment ago: nothing of it is told to be lost, now or later."""
    store = Held()

    async def main(mount: Composed) -> None:
        await put_all(store, {"file": b"bytes", "other": b"o", "proof": b""})
        inode, root = await mount._walk("file"), mount.parts.inodes.root
        await mount.unlink("proof")
        chmod(mount, inode, 0o600)
        if not mount.parts.namespace.unlink_at_once(root, inode):
            await mount.parts.namespace.unlink(root, b"file", inode if is_known else None)
        assert list(mount._journal.attributes()) == []
        assert not mount.parts.attributes.dirty

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))
        mount.loop.passes(5)
        assert bodies(store) == {"other": b"o"}
        assert store.calls["copy"] == 0


@pytest.mark.parametrize("is_gone", [True, False], ids=["gone", "no answer"])
def test_what_a_copy_may_have_made_is_looked_for_and_only_its_absence_is_none(
    mount: Composed, store: Held, is_gone: bool
) -> None:
    async def main() -> None:
        await put_all(store, {"file": b"bytes"})
        inode = await mount._walk("file")
        chmod(mount, inode, 0o600)
        await copied_without_an_answer(mount, store, inode)
        if is_gone:
            await store.delete("file")
        else:
            store.errors["head", "file"] = [silence("head")]
            with fails(errno.EIO):
                await mount.unlink("file")
            assert await mount._walk("file") is inode
        await mount.unlink("file")
        await mount.parts.deletions.drain()
        assert (bodies(store), mount.parts.pending) == ({}, 0)

    mount.loop.run(main)


def test_a_copy_that_is_tried_again_while_its_file_is_removed_does_not_bring_it_back(
    mount: Composed, store: Held
) -> None:
    """The first one got no answer, and what it has made is asked for: the pause before the next one ends meanwhile."""
    asked, copied = trio.Event(), trio.Event()

    async def copy(source: str, target: str, **_: Any) -> Any:
        had = store._stored[source]
        await copied.wait()
        store._stored[target] = had
        return had.object.version

    async def begin() -> None:
        await put_all(store, {"file": b"bytes"})
        inode = await mount._walk("file")
        chmod(mount, inode, 0o600)
        await copied_without_an_answer(mount, store, inode, is_late=True)
        store.before["head"] = asked
        await begun(mount, partial(mount.unlink, "file"))
        assert store.reached == {("head", "file")}
        store.before.clear()

    with pytest.MonkeyPatch.context() as patch:
        mount.loop.run(begin)
        patch.setattr(store, "copy", copy)
        mount.loop.passes(3)
        mount.loop.run(partial(settled, asked))
        mount.loop.run(partial(settled, copied))
        mount.loop.passes(3)
        assert bodies(store) == {}
        assert mount.parts.pending == 0
