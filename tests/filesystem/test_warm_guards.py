"""What `sosfs warm` fetches, counts and leaves: each guard by itself, in one process; what is here costs no request."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from sosfs.filesystem.warm import WarmCommand
from tests.support.composed import Composed, composed
from tests.support.drive import fails
from tests.support.held import Held, begun, closed, opened, put_all, settled, silence, told

MIB = 1 << 20
ROOM = 8 * MIB


@pytest.fixture
def cached(tmp_path: Path, store: Held) -> Iterator[Composed]:
    """A mount with a disk cache."""
    with composed(store, tmp_path, cache_size=ROOM) as mount:
        yield mount
        mount.loop.run(store.release)


async def warmed(mount: Composed, *paths: str) -> dict[str, Any]:
    """What `sosfs warm` tells of these paths, "" for all."""
    parts = mount.parts
    warming = WarmCommand(parts.inodes, parts.namespace, parts.attributes, parts.blocks)
    names = [tuple(path.encode().split(b"/")) if path else () for path in paths]
    outcome = dict(await warming.run(names, lambda _: None))
    assert warming.budget.used == 0
    return outcome


async def cost(mount: Composed, store: Held, path: str) -> int:
    """How many requests it costs to look at a file and to read it."""
    before = store.calls["get"] + store.calls["head"]
    reader = await opened(mount, os.O_RDONLY, path)
    await mount.parts.file_io.read(reader, 0, reader.inode.size)
    await mount.parts.file_io.release(reader)
    await trio.testing.wait_all_tasks_blocked()
    return store.calls["get"] + store.calls["head"] - before


def test_a_tree_is_here_afterwards_and_what_is_here_costs_nothing(cached: Composed, store: Held) -> None:
    async def main() -> None:
        await put_all(store, {"d/one": b"1" * MIB, "d/e/two": b"2" * MIB, "beside": b"3" * MIB})
        found = await warmed(cached, "d")
        assert (found["files"], found["fetched_bytes"], found["here_bytes"]) == (2, 2 * MIB, 0)
        asked = store.calls["get"]
        found = await warmed(cached, "d")
        assert (found["files"], found["fetched_bytes"], found["here_bytes"]) == (2, 0, 2 * MIB)
        assert store.calls["get"] == asked
        assert [await cost(cached, store, path) for path in ("d/one", "d/e/two")] == [0, 0]
        assert await cost(cached, store, "beside") > 0

    cached.loop.run(main)


def test_no_more_is_fetched_than_the_disk_cache_holds_and_the_rest_is_told(cached: Composed, store: Held) -> None:
    """Else the last would drive out the first."""

    async def main() -> None:
        await put_all(store, {f"file{at}": bytes([at]) * 3 * MIB for at in range(3)} | {"huge": bytes(ROOM + 1)})
        found = await warmed(cached, "")
        assert (found["files"], found["unfit_files"], found["failed_files"]) == (2, 2, 0)
        assert found["unfit_bytes"] == 3 * MIB + ROOM + 1
        assert "huge" in found["unfit"]
        assert sum([await cost(cached, store, f"file{at}") == 0 for at in range(3)]) == 2

    cached.loop.run(main)


def test_room_that_one_did_not_take_is_there_for_the_next(
    cached: Composed, store: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sosfs.filesystem.warm.FILES_AT_ONCE", 1)

    async def main() -> None:
        await put_all(store, {"a": b"a" * 6 * MIB, "b": b"b" * 6 * MIB})
        await cached.tree()
        cached.parts.blocks.forget(lambda key: True)
        await cached.parts.blocks.disk.forget_all(but=())  # type: ignore[union-attr]
        store.errors["get", "a"] = [silence("get")] * 5
        found = await warmed(cached, "a", "b")
        assert (found["files"], found["failed_files"], found["unfit_files"]) == (1, 1, 0)
        assert found["failed"][0][0] == "a"
        store.errors.clear()
        assert await cost(cached, store, "b") == 0

    cached.loop.run(main)


@pytest.mark.parametrize("size", [MIB // 8, 2 * MIB])
def test_what_another_client_replaced_since_it_was_listed_is_fetched_as_it_is_now(
    cached: Composed, store: Held, size: int
) -> None:
    async def main() -> None:
        await put_all(store, {"file": b"old" * size})
        inode = await cached._walk("file")
        await put_all(store, {"file": b"new" * (size // 2)})
        found = await warmed(cached, "file")
        assert (found["files"], found["failed_files"]) == (1, 0)
        assert inode.size == 3 * (size // 2) or (await cached._walk("file")).size == 3 * (size // 2)
        assert await cost(cached, store, "file") == 0

    cached.loop.run(main)


def test_what_another_client_removed_since_it_was_listed_is_no_failure(cached: Composed, store: Held) -> None:
    async def main() -> None:
        await put_all(store, {"d/file": b"x" * MIB, "d/other": b"x" * MIB})
        await cached.parts.listings.complete(await cached._walk("d"))
        await store.delete("d/file")
        found = await warmed(cached, "d")
        assert (found["files"], found["failed_files"], found["unfit_files"]) == (1, 0, 0)

    cached.loop.run(main)


@pytest.mark.promise(1)
def test_a_directory_that_cannot_be_listed_is_told_as_that(cached: Composed, store: Held) -> None:
    async def main() -> None:
        await put_all(store, {"d/file": b"x" * MIB, "e/file": b"x" * MIB})
        await cached._walk("d")
        store.errors["list", "d/"] = [silence("list")] * 9
        found = await warmed(cached, "d", "e")
        assert (found["files"], found["failed_files"]) == (1, 1)
        assert [path for path, _ in found["failed"]] == ["d"]

    cached.loop.run(main)


def test_a_path_that_is_not_there_is_told_before_anything_is_fetched(cached: Composed, store: Held) -> None:
    async def main() -> None:
        await put_all(store, {"file": b"x" * MIB})
        with fails(errno.ENOENT):
            await warmed(cached, "file", "absent")
        assert store.calls["get"] == 0

    cached.loop.run(main)


def test_what_is_being_written_here_is_not_fetched(cached: Composed, store: Held) -> None:
    async def main() -> None:
        await put_all(store, {"file": b"x" * 2 * MIB})
        handle = await opened(cached)
        await cached.parts.file_io.write(handle, 0, b"new")
        asked = store.calls["get"]
        assert (await warmed(cached, "file"))["files"] == 1
        assert store.calls["get"] == asked
        await closed(cached, handle)

    cached.loop.run(main)


def test_without_a_disk_cache_attributes_are_fetched_and_no_bytes(mount: Composed, store: Held) -> None:
    async def main() -> None:
        await put_all(store, {"file": b"x" * 2 * MIB})
        found = await warmed(mount, "")
        assert (found["files"], found["fetched_bytes"], found["cache_bytes"]) == (1, 0, 0)
        assert store.calls["get"] == 0
        before = store.calls["head"]
        await mount._walk("file")
        assert store.calls["head"] == before

    mount.loop.run(main)


@pytest.mark.promise(11)
def test_so_many_bytes_are_on_their_way_at_once(cached: Composed, store: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sosfs.filesystem.warm.IN_FLIGHT", 2 * MIB)
    outcomes: dict[str, Any] = {}

    async def main() -> None:
        await put_all(store, {f"file{at}": bytes([at]) * MIB for at in range(5)})
        await cached.parts.listings.complete(cached.parts.inodes.root)
        may = store.before["get"] = trio.Event()
        await begun(cached, lambda: told(outcomes, "warm", lambda: warmed(cached, "")))
        assert len({key for what, key in store.reached if what == "get"}) == 2
        await settled(may)
        assert outcomes["warm"]["files"] == 5

    cached.loop.run(main)
