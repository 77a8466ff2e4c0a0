"""Answers to what was asked ahead, which come after the file was changed here: they tell of what is no more."""

from __future__ import annotations

import os
import stat
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest
import trio
import trio.testing

from sosfs.errors import StoreError
from sosfs.s3.protocol import Object, Properties, Slice
from sosfs.tree.inodes import Inode
from tests.support.composed import TASK, Composed, composed
from tests.support.fake_store import FakeStore

OLD, NEW = b"old" * 2000, b"newer" * 2000


class Late(FakeStore):
    """Tells at the end what was true when it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.may = trio.Event()

    async def heads(self, keys: Sequence[str]) -> list[Object | StoreError]:
        ends = await super().heads(keys)
        await self.may.wait()
        return ends

    async def get(self, key: str, start: int, stop: int, *, etag: str = "") -> Slice:
        answer = await super().get(key, start, stop, etag=etag)
        await self.may.wait()
        return answer


async def _overwrite(mount: Composed, name: str) -> None:
    """As a program does whose `open` asks for no attributes."""
    file_io = mount.parts.file_io
    inode = await mount.parts.namespace.lookup(mount.parts.inodes.root, name.encode())
    handle = await file_io.open(inode, os.O_WRONLY | os.O_TRUNC, TASK)
    await file_io.write(handle, 0, NEW)
    await file_io.flush(handle)
    await file_io.release(handle)


Ask = Callable[[Composed, Inode], Awaitable[None]]


async def _attributes(mount: Composed, inode: Inode) -> None:
    await mount.parts.attributes.ask_files([inode])


async def _with_bytes(mount: Composed, inode: Inode) -> None:
    await mount.parts.attributes.ask_ahead(inode, with_bytes=True)


both = pytest.mark.parametrize("ask", [_attributes, _with_bytes])


async def _meanwhile(mount: Composed, store: Late, ask: Ask, change: Callable[[], Awaitable[None]]) -> Inode:
    """Makes a change between the question for `file` and its answer; the inode that was asked for."""
    await store.put("file", OLD, Properties(metadata={"mode": str(stat.S_IFREG | 0o644)}))
    inode = await mount.parts.namespace.lookup(mount.parts.inodes.root, b"file")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, mount, inode)
        await trio.testing.wait_all_tasks_blocked()
        await change()
        store.may.set()
    return inode


@both
def test_what_was_true_before_a_write_is_not_learned_after_it(tmp_path: Path, ask: Ask) -> None:
    store = Late()
    with composed(store, tmp_path) as mount:

        async def race() -> None:
            inode = await _meanwhile(mount, store, ask, lambda: _overwrite(mount, "file"))
            assert inode.size == len(NEW)
            await _overwrite(mount, "file")

        mount.loop.run(race)
        assert mount.loop.run(mount.tree)["file"] == (NEW, 0o644)


@both
def test_what_was_asked_under_another_name_is_not_learned(tmp_path: Path, ask: Ask) -> None:
    store = Late()
    with composed(store, tmp_path) as mount:

        async def change() -> None:
            await mount.rename("file", "other")
            await store.put("file", NEW, Properties())

        async def race() -> None:
            await _meanwhile(mount, store, ask, change)
            assert mount.parts.cache.find("", "file") is None

        mount.loop.run(race)
        assert mount.loop.run(mount.tree)["other"] == (OLD, 0o644)


async def _made_private(mount: Composed, name: str) -> None:
    """As `install -m 600` of what is there already: the same bytes."""
    file_io = mount.parts.file_io
    inode = await mount.parts.namespace.lookup(mount.parts.inodes.root, name.encode())
    handle = await file_io.open(inode, os.O_WRONLY | os.O_TRUNC, TASK)
    inode.mode = stat.S_IFREG | 0o600
    mount.parts.attributes.changed(inode, posix={"mode"})
    await file_io.write(handle, 0, OLD)
    await file_io.flush(handle)
    await file_io.release(handle)


@both
def test_what_was_true_before_the_same_bytes_were_written_is_not_learned_after_it(tmp_path: Path, ask: Ask) -> None:
    """The ETag is the same, and nobody knows the time of what was written here: the answer passes for it."""
    store = Late()
    with composed(store, tmp_path) as mount:

        async def race() -> None:
            inode = await _meanwhile(mount, store, ask, lambda: _made_private(mount, "file"))
            assert stat.S_IMODE(inode.mode) == 0o600
            inode.uid = 7
            mount.parts.attributes.changed(inode, posix={"uid"})
            await mount.parts.file_io.fsync(inode)

        mount.loop.run(race)
        found = store._stored["file"].object.properties.metadata
        assert (found["uid"], int(found["mode"])) == ("7", stat.S_IFREG | 0o600)
