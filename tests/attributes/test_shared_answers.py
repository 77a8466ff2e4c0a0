"""What another machine has told is used where a recent listing shows just that version, and nowhere else.

Two mounts of one store; of a file of the root nothing is brought from the index before somebody asks for it.
"""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio

from sosfs.config.parameters import TTL
from sosfs.s3.protocol import Detail, Headers, Object, Properties, Slice
from sosfs.tree.inodes import Inode, Known
from tests.support.composed import LONG, TASK, Composed, composed
from tests.support.held import Held, begun, chmod, closed, settled

BODY, OTHER = b"x" * 5000, b"y" * 6000
INDEX = ".sosfs-attributes/v1"


def of_mode(mode: int) -> Properties:
    return Properties(Headers("x/y"), {"mode": str(stat.S_IFREG | mode)}, "")


class Telling(Held):
    """Its answers tell all, and what the server's clock says; each write has a time of its own, long ago."""

    def __init__(self) -> None:
        self.moments = itertools.count(1_700_000_000)
        super().__init__(clock=lambda: next(self.moments))

    async def head(self, key: str, *, detail: Detail = Detail.USUAL) -> Object:
        return replace(await super().head(key, detail=Detail.WHOLE), answered=1_800_000_000)

    async def get(self, key: str, start: int, stop: int, *, etag: str = "") -> Slice:
        found = await super().get(key, start, stop, etag=etag)
        return Slice(replace(found.object, answered=1_800_000_000), found.body)


@contextmanager
def sharing(store: Telling, base: Path, name: str) -> Iterator[Composed]:
    (base / name).mkdir()
    with composed(store, base / name, shared_attributes=True) as mount:
        mount.loop._clock.jump(1)  # time 0 is "never" to a directory
        yield mount
        mount.loop.run(store.release)
        mount.loop.passes(LONG)  # all is told: the end waits for nothing


@pytest.fixture
def told(tmp_path: Path) -> Telling:
    """A store where another machine has told of three files."""
    store = Telling()

    async def fill() -> None:
        for name in ("a", "b", "c"):
            await store.put(name, BODY, of_mode(0o600))

    with sharing(store, tmp_path, "one") as mount:
        mount.loop.run(fill)
        mount.loop.run(mount.tree)
        mount.loop.passes(LONG)
    assert INDEX in store._stored
    store.calls.clear()
    return store


@pytest.fixture
def mount(tmp_path: Path, told: Telling) -> Iterator[Composed]:
    """A mount of another machine."""
    with sharing(told, tmp_path, "other") as mount:
        yield mount


async def listed(mount: Composed, *names: str) -> list[Inode]:
    """Files of the root of which a listing has just told."""
    root = mount.parts.inodes.root
    await mount.parts.listings.complete(root)
    return [await mount.parts.namespace.lookup(root, name.encode()) for name in names]


async def ask(mount: Composed, inodes: Sequence[Inode], how: str) -> None:
    """As who asks for each, or as a walk that asks for several ahead."""
    if how == "each":
        for inode in inodes:
            await mount.parts.attributes.revalidate(inode)
    else:
        await mount.parts.attributes.ask_files(inodes)


each_or_several = pytest.mark.parametrize("how", ["each", "several"])


def files_asked_for(store: Telling) -> list[str]:
    """From now on: the keys beside the index of which more than a listing is asked."""
    keys: list[str] = []

    def note(operation: str, key: str) -> None:
        if operation in ("head", "get") and key != INDEX:
            keys.append(key)

    store.fault = note
    return keys


def test_what_a_mount_stores_is_told_as_well(tmp_path: Path, told: Telling) -> None:
    """New, renamed, rewritten, and with another mode."""

    async def work(first: Composed) -> None:
        await first.write("new", BODY, flags=os.O_CREAT)
        await first._walk("a")
        await first.rename("a", "moved")
        await first.write("b", OTHER)
        await chmod(first, "c", 0o640)

    with sharing(told, tmp_path, "first") as first:
        first.loop.run(partial(work, first))
        first.loop.passes(LONG)
    with sharing(told, tmp_path, "second") as second:
        keys = files_asked_for(told)
        inodes = second.loop.run(partial(listed, second, "new", "moved", "b", "c"))
        second.loop.run(partial(ask, second, inodes, "each"))
        assert (keys, [stat.S_IMODE(inode.mode) for inode in inodes]) == ([], [0o644, 0o600, 0o600, 0o640])
        told.fault = None


def test_a_marker_that_was_told_of_is_asked_for_by_nobody(tmp_path: Path, told: Telling) -> None:
    async def work(first: Composed) -> None:
        await told.put("d/", b"", Properties(metadata={"mode": str(stat.S_IFDIR | 0o700)}))
        await told.put("d/x", BODY, of_mode(0o600))
        await first._walk("d/x")

    with sharing(told, tmp_path, "first") as first:
        first.loop.run(partial(work, first))
        first.loop.passes(LONG)
    with sharing(told, tmp_path, "second") as second:
        keys = files_asked_for(told)
        inode = second.loop.run(partial(second._walk, "d"))
        assert (keys, stat.S_IMODE(inode.mode)) == ([], 0o700)
        told.fault = None


@each_or_several
def test_what_was_told_is_asked_for_by_nobody(mount: Composed, told: Telling, how: str) -> None:
    async def main() -> None:
        inodes = await listed(mount, "a", "b", "c")
        keys = files_asked_for(told)
        await ask(mount, inodes, how)
        assert [stat.S_IMODE(inode.mode) for inode in inodes] == [0o600] * 3
        assert all(inode.known is Known.ALL and inode.whole for inode in inodes)
        assert keys == []

    mount.loop.run(main)
    assert mount.parts.shared is not None
    assert mount.parts.shared.words.startswith("3 files known from others")


@each_or_several
@pytest.mark.parametrize("body", [BODY, OTHER], ids=["metadata", "bytes"])
def test_what_was_told_of_another_version_is_not_used(mount: Composed, told: Telling, how: str, body: bytes) -> None:
    async def main() -> None:
        await told.put("b", body, of_mode(0o640))
        inodes = await listed(mount, "a", "b", "c")
        keys = files_asked_for(told)
        await ask(mount, inodes, how)
        assert [stat.S_IMODE(inode.mode) for inode in inodes] == [0o600, 0o640, 0o600]
        assert keys == ["b"]

    mount.loop.run(main)


@each_or_several
def test_what_was_told_of_a_version_that_was_listed_long_ago_is_not_used(
    mount: Composed, told: Telling, how: str
) -> None:
    """Another client may have changed it since: the bucket is asked, as without the index."""

    async def main() -> None:
        inodes = await listed(mount, "a", "b", "c")
        mount.loop._clock.jump(TTL)
        await told.put("b", BODY, of_mode(0o640))
        keys = files_asked_for(told)
        await ask(mount, inodes, how)
        assert [stat.S_IMODE(inode.mode) for inode in inodes] == [0o600, 0o640, 0o600]
        assert keys == ["a", "b", "c"]

    mount.loop.run(main)


@each_or_several
@pytest.mark.parametrize("change", ["written", "removed", "listed anew"])
def test_what_is_changed_while_the_index_is_fetched_is_not_as_it_was_told(
    mount: Composed, told: Telling, how: str, change: str
) -> None:
    async def main() -> None:
        (inode,) = await listed(mount, "b")
        told.before["get", INDEX] = held = trio.Event()
        asking = partial(ask, mount, [inode], how)
        await begun(mount, partial(_though_gone, asking) if change == "removed" else asking)
        assert ("get", INDEX) in told.reached
        handle = None
        if change == "written":
            handle = await mount.parts.file_io.open(inode, os.O_WRONLY | os.O_TRUNC, TASK)
            await mount.parts.file_io.write(handle, 0, OTHER)
            inode.mode = stat.S_IFREG | 0o640
            mount.parts.attributes.changed(inode, posix={"mode"})
        elif change == "removed":
            await mount.parts.namespace.unlink(mount.parts.inodes.root, b"b")
        else:
            await told.put("b", OTHER, of_mode(0o640))
            mount.loop._clock.jump(2 * TTL)
            await mount.parts.listings.complete(mount.parts.inodes.root)
        await settled(held)
        if handle is not None:
            await closed(mount, handle)
        assert (await mount.tree()).get("b") == (None if change == "removed" else (OTHER, 0o640))

    mount.loop.run(main)


async def _though_gone(asking: Callable[[], Awaitable[None]]) -> None:
    """Nobody minds that what is asked for is gone."""
    with suppress(OSError):
        await asking()


def test_what_was_learned_while_the_index_was_fetched_is_not_asked_for(mount: Composed, told: Telling) -> None:
    """A listing agrees with what came for another file meanwhile."""

    async def main() -> None:
        (inode,) = await listed(mount, "b")
        told.before["get", INDEX] = held = trio.Event()
        await begun(mount, partial(mount.parts.attributes.revalidate, inode))
        found = await told.head("b")
        inode.learn(found.properties, whole=True)
        keys = files_asked_for(told)
        await settled(held)
        assert (keys, stat.S_IMODE(inode.mode)) == ([], 0o600)

    mount.loop.run(main)
