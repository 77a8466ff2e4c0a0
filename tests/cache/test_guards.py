"""What the caches may keep, and what they must not hand out: each guard by itself.

In one process: over a store whose requests are held back, or the disk cache alone in a directory.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from sosfs.cache import disk_blocks
from sosfs.cache.blocks import BLOCK, REQUEST, Blocks, Source, memory_of
from sosfs.cache.disk_blocks import FLOOR_BYTES, DiskCache
from sosfs.concurrency.threads import LOCAL
from sosfs.s3.protocol import Properties
from tests.support.composed import Composed, composed
from tests.support.disks import having
from tests.support.dropping import Kernel, dropped
from tests.support.fake_store import FakeStore
from tests.support.held import Held, begun, opened, put_all, settled, told

MIB, GIB = 1 << 20, 1 << 30
SMALL = 1 << 10
BODY = random.Random(3).randbytes(10 * SMALL + 100)


# `sosfs drop`


@pytest.mark.parametrize("with_disk", [False, True], ids=["memory", "and disk"])
def test_a_fetch_under_way_during_drop_is_for_its_reader_alone(tmp_path: Path, with_disk: bool) -> None:
    """Who reads after `drop` asks the bucket, though another's request was under way meanwhile."""
    store, held = Held(), trio.Event()

    async def main(mount: Composed) -> None:
        await put_all(store, {"file": b"A" * 3 * MIB, "other": b"o"})
        reader = await opened(mount, os.O_RDONLY)
        mount.parts.blocks.forget(lambda key: True)
        found: list[bytes] = []

        async def read() -> None:
            found.append(bytes(await mount.parts.file_io.read(reader, 0, 100)))

        store.after["get"] = held
        await begun(mount, read)
        assert ("get", "file") in store.reached
        await dropped(mount, "file")
        del store.after["get"]
        await settled(held)
        assert found == [b"A" * 100], "who waits for it gets it"
        await trio.testing.wait_all_tasks_blocked()
        assert mount.parts.blocks.used == 0
        asked = store.calls["get"]
        assert bytes(await mount.parts.file_io.read(reader, 0, 100)) == b"A" * 100
        assert store.calls["get"] > asked
        await mount.parts.file_io.release(reader)

    with composed(store, tmp_path, cache_size=64 * MIB if with_disk else 0) as mount:
        mount.loop.run(partial(main, mount))


@pytest.mark.parametrize("path", ["d/file", "d", ""])
def test_what_was_dropped_is_asked_for_and_nothing_else_is(tmp_path: Path, path: str) -> None:
    store = Held()

    async def main(mount: Composed) -> None:
        await put_all(store, {"d/file": b"A" * MIB, "other": b"B" * MIB})
        readers = [await opened(mount, os.O_RDONLY, name) for name in ("d/file", "other")]

        async def asked() -> list[int]:
            """How many requests reading each costs."""
            counts = []
            for reader in readers:
                before = store.calls["get"]
                await mount.parts.file_io.read(reader, 0, MIB)
                counts.append(store.calls["get"] - before)
            return counts

        await asked()
        await trio.testing.wait_all_tasks_blocked()
        assert await asked() == [0, 0]
        told = await dropped(mount, path)
        assert told["memory_bytes"] == (2 * MIB if not path else MIB)
        one, other = await asked()
        assert one
        assert bool(other) == (not path)

    with composed(store, tmp_path, cache_size=64 * MIB) as mount:
        mount.loop.run(partial(main, mount))


def test_drop_leaves_what_is_open_for_writing_or_not_sent(tmp_path: Path) -> None:
    store = Held()

    def down(operation: str, key: str) -> None:
        if operation == "put":
            raise OSError(5, "no answer")

    async def main(mount: Composed) -> None:
        await put_all(store, {"open": b"o" * 1000, "clean": b"c"})
        handle = await opened(mount, path="open")
        await mount.parts.file_io.write(handle, 0, b"n")
        store.fault = down
        with pytest.raises(OSError):
            await mount.write("pending", b"p", flags=os.O_CREAT)
        told = await dropped(mount, "")
        assert sorted(told["kept"]) == ["open", "pending"]
        assert bytes(await mount.parts.file_io.read(handle, 0, 2)) == b"no"
        store.fault = None
        await mount.parts.file_io.flush(handle)
        await mount.parts.file_io.release(handle)

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))
        mount.loop.passes(30)
        assert {key: bytes(kept.body) for key, kept in store._stored.items()} == {
            "open": b"n" + b"o" * 999,
            "clean": b"c",
            "pending": b"p",
        }


def test_after_drop_the_new_version_is_seen_at_once(mount: Composed, store: Held) -> None:
    async def main() -> None:
        await put_all(store, {"d/file": b"old"})
        assert (await mount.tree())["d/file"] == (b"old", 0o644)
        await store.put("d/file", b"newer", Properties(metadata={"mode": str(0o100600)}))
        await store.put("d/more", b"more", Properties())
        assert "d/more" not in await mount.tree()
        await dropped(mount, "d")
        assert await mount.tree() == {"d": None, "d/file": (b"newer", 0o600), "d/more": (b"more", 0o644)}

    mount.loop.run(main)


# Memory


def test_blocks_in_memory_are_bounded(tmp_path: Path) -> None:
    store, limit = FakeStore(), 2 * MIB

    async def main(mount: Composed) -> None:
        await store.put("file", b"A" * 9 * MIB, Properties())
        reader = await opened(mount, os.O_RDONLY)
        for at in range(0, 9 * MIB, BLOCK):
            assert len(await mount.parts.file_io.read(reader, at, BLOCK)) == BLOCK
            assert mount.parts.blocks.used <= 2 * limit
        await trio.testing.wait_all_tasks_blocked()
        assert mount.parts.blocks.used <= limit
        await mount.parts.file_io.release(reader)

    with composed(store, tmp_path, memory=limit) as mount:
        mount.loop.run(partial(main, mount))


def test_two_readers_of_one_block_ask_once(mount: Composed, store: Held) -> None:
    held = trio.Event()

    async def main() -> None:
        await put_all(store, {"file": b"A" * 1000})
        readers = [await opened(mount, os.O_RDONLY) for _ in range(3)]
        mount.parts.blocks.forget(lambda key: True)
        store.before["get"] = held
        before, found = store.calls["get"], list[bytes]()

        async def read(number: int) -> None:
            found.append(bytes(await mount.parts.file_io.read(readers[number], 0, 1000)))

        for number in range(3):
            await begun(mount, partial(read, number))
        await settled(held)
        assert found == [b"A" * 1000] * 3
        assert store.calls["get"] == before + 1

    mount.loop.run(main)


def test_a_request_is_never_larger_than_it_may_be(mount: Composed, store: Held) -> None:
    size, ranges = 3 * REQUEST + 5, list[int]()
    get = store.get

    async def watched(key: str, start: int, stop: int, **options: Any) -> Any:
        ranges.append(stop - start)
        return await get(key, start, stop, **options)

    async def main() -> None:
        await put_all(store, {"file": bytes(range(256)) * (size // 256) + b"tail!"[: size % 256]})
        reader = await opened(mount, os.O_RDONLY)
        store.get = watched  # type: ignore[method-assign]
        body = bytes(await mount.parts.file_io.read(reader, 0, size))
        assert body == bytes(store._stored["file"].body)
        assert max(ranges) <= REQUEST

    mount.loop.run(main)


# The disk cache by itself


def cache(path: Path, *, capacity: int = MIB) -> DiskCache:
    return DiskCache(path, capacity=capacity, block=SMALL)


def keep(disk: DiskCache, first: int, last: int, *, key: str = "k", body: bytes = BODY) -> None:
    trio.run(disk.keep, key, "e", len(body), first, memoryview(body)[first * SMALL : last * SMALL])


def read(disk: DiskCache, first: int, last: int, *, key: str = "k") -> bytes | None:
    found = trio.run(disk.read, key, "e", len(BODY), first, last)
    return None if found is None else bytes(found)


@pytest.mark.promise(11)
@pytest.mark.parametrize(
    ("free", "total", "fits"),
    [
        (FLOOR_BYTES - 1, 10 * GIB, False),
        (FLOOR_BYTES + 3 * SMALL, 10 * GIB, False),
        (FLOOR_BYTES + 4 * SMALL, 10 * GIB, True),
        (4 * GIB, 100 * GIB, False),  # a twentieth of a large disk is more than the floor
        (6 * GIB, 100 * GIB, True),
    ],
)
def test_the_floor_of_free_disk_is_left_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, total: int, fits: bool
) -> None:
    disk = cache(tmp_path)
    monkeypatch.setattr(os, "statvfs", having(free, total))
    keep(disk, 0, 4)
    assert (read(disk, 0, 4) == BODY[: 4 * SMALL]) == fits
    assert bool(list(tmp_path.glob("*.data"))) == fits
    assert disk.used == (4 * SMALL if fits else 0)


def test_reading_goes_on_where_the_disk_is_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FakeStore()
    monkeypatch.setattr(os, "statvfs", having(100, 10 * GIB))

    async def main(mount: Composed) -> None:
        await store.put("file", b"A" * MIB, Properties())
        reader = await opened(mount, os.O_RDONLY)
        assert bytes(await mount.parts.file_io.read(reader, 0, MIB)) == b"A" * MIB
        await trio.testing.wait_all_tasks_blocked()
        disk = mount.parts.blocks.disk
        assert disk is not None
        assert not list((mount._settings.state_dir / "blocks").iterdir())
        await mount.parts.file_io.release(reader)

    with composed(store, tmp_path, cache_size=64 * MIB) as mount:
        mount.loop.run(partial(main, mount))


def test_what_fills_the_cache_exactly_stays_and_one_byte_more_does_not(tmp_path: Path) -> None:
    disk = cache(tmp_path, capacity=8 * SMALL)
    keep(disk, 0, 4, key="a")
    keep(disk, 0, 4, key="b")
    assert (read(disk, 0, 4, key="a"), read(disk, 0, 4, key="b")) == (BODY[: 4 * SMALL],) * 2
    keep(disk, 4, 5, key="b")
    assert read(disk, 0, 4, key="a") is None, "the oldest makes room"
    assert read(disk, 0, 5, key="b") == BODY[: 5 * SMALL]
    keep(disk, 5, 10, key="b")
    assert disk.used <= 8 * SMALL, "a version makes no room for itself"
    assert read(disk, 0, 5, key="b") == BODY[: 5 * SMALL]


def test_the_next_mount_counts_what_is_there_and_keeps_to_its_own_limit(tmp_path: Path) -> None:
    disk = cache(tmp_path, capacity=64 * SMALL)
    for number, key in enumerate("abcd"):
        keep(disk, 0, 8, key=key)
        for path in tmp_path.glob(f"{disk_blocks._name(key, 'e', len(BODY))}.*"):
            os.utime(path, (number, number))
    again = cache(tmp_path, capacity=20 * SMALL)
    assert 0 < again.used <= 20 * SMALL
    assert read(again, 0, 8, key="d") == BODY[: 8 * SMALL], "the newest stay"
    assert read(again, 0, 8, key="a") is None
    assert len(list(tmp_path.glob("*.data"))) == len(list(tmp_path.glob("*.sums"))) <= 2


def test_what_is_forgotten_while_it_is_written_does_not_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A version is dropped between the count of its bytes and their way to the disk."""
    disk, held = cache(tmp_path), trio.Event()

    async def run(work: Any, *arguments: Any) -> Any:
        if work == disk._write:
            await held.wait()
        return work(*arguments)

    async def main() -> None:
        monkeypatch.setattr(LOCAL, "run", run)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(disk.keep, "k", "e", len(BODY), 0, memoryview(BODY)[: 4 * SMALL])
            await trio.testing.wait_all_tasks_blocked()
            assert await disk.forget([("k", "e", len(BODY))]) == 4 * SMALL
            held.set()
        assert await disk.read("k", "e", len(BODY), 0, 4) is None

    trio.run(main)
    assert list(tmp_path.iterdir()) == []
    assert disk.used == 0


@pytest.mark.promise(5)
def test_nor_does_it_where_more_of_the_version_is_kept_before_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What came wrong would be read from the disk else, once it has been fetched again."""
    disk, held = cache(tmp_path), trio.Event()

    async def run(work: Any, *arguments: Any) -> Any:
        if work == disk._write and arguments[1] == 0:
            await held.wait()
        return work(*arguments)

    async def main() -> None:
        monkeypatch.setattr(LOCAL, "run", run)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(disk.keep, "k", "e", len(BODY), 0, memoryview(bytes(4 * SMALL)))
            await trio.testing.wait_all_tasks_blocked()
            await disk.forget([("k", "e", len(BODY))])
            await disk.keep("k", "e", len(BODY), 4, memoryview(BODY)[4 * SMALL : 8 * SMALL])
            held.set()
        assert await disk.read("k", "e", len(BODY), 0, 4) is None

    trio.run(main)
    assert disk.used == sum(path.stat().st_size for path in tmp_path.glob("*.data"))


@pytest.mark.promise(11)
@pytest.mark.parametrize("is_forgotten", [False, True], ids=["kept", "forgotten meanwhile"])
def test_what_the_disk_refuses_of_a_version_is_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_forgotten: bool
) -> None:
    """Nor taken off twice: the cache would hold more than its limit then."""
    disk, version = cache(tmp_path), ("k", "e", len(BODY))
    keep(disk, 0, 4)

    async def run(work: Any, *arguments: Any) -> Any:
        if work != disk._write:
            return work(*arguments)
        if is_forgotten:
            assert await disk.forget([version]) == 6 * SMALL
        raise OSError(errno.ENOSPC, "no room")

    async def main() -> None:
        monkeypatch.setattr(LOCAL, "run", run)
        await disk.keep(*version, 4, memoryview(BODY)[4 * SMALL : 6 * SMALL])
        left = 0 if is_forgotten else 4 * SMALL
        assert disk.used == left
        assert await disk.forget([version]) == left
        assert disk.used == 0

    trio.run(main)


@pytest.mark.promise(11)
def test_who_calls_it_off_leaves_nothing_that_is_counted_wrong(tmp_path: Path) -> None:
    """As by Ctrl-C of a `sosfs warm`, of which nothing is written then, and of a `sosfs drop`, which goes on."""
    disk, version = cache(tmp_path), ("k", "e", len(BODY))
    keep(disk, 0, 4)

    async def called_off(work: Callable[[], Awaitable[object]]) -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            await work()

    async def main() -> None:
        await called_off(partial(disk.store, *version, 4, memoryview(BODY)[4 * SMALL : 6 * SMALL]))
        assert disk.used == 4 * SMALL
        assert bytes(await disk.read(*version, 0, 4) or b"") == BODY[: 4 * SMALL]
        await called_off(partial(disk.forget, [version]))
        assert disk.used == 0

    trio.run(main)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.promise(5)
def test_what_is_forgotten_is_not_read_again_where_more_of_the_version_comes_before_it_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, held = cache(tmp_path), trio.Event()
    keep(disk, 0, 4, body=bytes(len(BODY)))

    async def run(work: Any, *arguments: Any) -> Any:
        if work == disk._unlink:
            await held.wait()
        return work(*arguments)

    async def main() -> None:
        monkeypatch.setattr(LOCAL, "run", run)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(disk.forget, [("k", "e", len(BODY))])
            await trio.testing.wait_all_tasks_blocked()
            await disk.keep("k", "e", len(BODY), 4, memoryview(BODY)[4 * SMALL : 8 * SMALL])
            assert await disk.read("k", "e", len(BODY), 0, 4) is None
            held.set()
        assert disk.used == sum(path.stat().st_size for path in tmp_path.glob("*.data"))
        assert await disk.store("k", "e", len(BODY), 4, memoryview(BODY)[4 * SMALL : 8 * SMALL])

    trio.run(main)


def test_no_more_than_a_few_fetches_wait_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, held, waiting = cache(tmp_path), trio.Event(), list[str]()

    async def run(work: Any, *arguments: Any) -> Any:
        waiting.append(arguments[0])
        await held.wait()
        return work(*arguments)

    async def main() -> None:
        monkeypatch.setattr(LOCAL, "run", run)
        async with trio.open_nursery() as nursery:
            for number in range(3 * disk_blocks.WRITES):
                nursery.start_soon(disk.keep, f"k{number}", "e", len(BODY), 0, memoryview(BODY)[:SMALL])
            await trio.testing.wait_all_tasks_blocked()
            assert len(waiting) == disk_blocks.WRITES
            held.set()
        assert disk.used == disk_blocks.WRITES * SMALL

    trio.run(main)


@pytest.mark.parametrize("hurt", ["bytes", "length", "sum", "short table", "no table", "no bytes"])
def test_what_is_not_whole_is_not_handed_out(tmp_path: Path, hurt: str) -> None:
    disk = cache(tmp_path)
    keep(disk, 0, 4)
    (data,), (sums,) = tmp_path.glob("*.data"), tmp_path.glob("*.sums")
    if hurt == "bytes":
        data.write_bytes(BODY[:SMALL] + bytes(SMALL) + BODY[2 * SMALL : 4 * SMALL])
    elif hurt in ("length", "sum"):
        table = bytearray(sums.read_bytes())
        table[8 if hurt == "length" else 12] ^= 1
        sums.write_bytes(table)
    elif hurt == "short table":
        os.truncate(sums, 3 * 8)
    elif hurt == "no table":
        sums.unlink()
    else:
        data.unlink()
    assert read(disk, 0, 4) is None
    assert read(disk, 1, 4) is None


def test_all_but_what_is_kept_is_forgotten(tmp_path: Path) -> None:
    disk = cache(tmp_path)
    keep(disk, 0, 4, key="a")
    keep(disk, 0, 4, key="b")
    assert trio.run(partial(disk.forget_all, but=[("b", "e", len(BODY))])) == 4 * SMALL
    assert read(disk, 0, 4, key="a") is None
    assert read(disk, 0, 4, key="b") == BODY[: 4 * SMALL]
    assert disk.used == 4 * SMALL


# What a fetch leaves


def test_who_waits_for_a_fetch_that_is_called_off_gets_an_error_and_no_empty_bytes() -> None:
    async def main() -> None:
        store = Held()
        version = await store.put("file", BODY, Properties())
        source = Source("file", version.etag, version.size)
        store.before["get"] = trio.Event()
        outcomes: dict[str, Any] = {}
        async with trio.open_nursery() as readers, trio.open_nursery() as fetches:
            blocks = Blocks(store, fetches.start_soon, memory_of(MIB), capacity=MIB)
            readers.start_soon(told, outcomes, "read", partial(blocks.read, source, 0, 100))
            await trio.testing.wait_all_tasks_blocked()
            fetches.cancel_scope.cancel()
        assert "cancelled" in outcomes["read"]
        assert blocks.used == 0
        await store.release()
        async with trio.open_nursery() as nursery:
            blocks = Blocks(store, nursery.start_soon, memory_of(MIB), capacity=MIB)
            assert bytes(await blocks.read(source, 0, 100)) == BODY[:100]

    trio.run(main)


@pytest.mark.parametrize("with_disk", [False, True])
def test_what_comes_is_written_to_the_disk_once(tmp_path: Path, with_disk: bool) -> None:
    """Where there is a cache there, and not again when it comes from it."""
    store, kept = Held(), list[str]()

    class Counting(DiskCache):
        async def keep(self, key: str, *arguments: Any) -> None:
            kept.append(key)
            await super().keep(key, *arguments)

    async def main() -> None:
        version = await store.put("file", BODY, Properties())
        source = Source("file", version.etag, version.size)
        disk = Counting(tmp_path, capacity=4 * MIB, block=BLOCK) if with_disk else None
        for _ in range(2):
            async with trio.open_nursery() as nursery:  # what fails in the background fails here
                blocks = Blocks(store, nursery.start_soon, memory_of(MIB), capacity=MIB, disk=disk)
                assert bytes(await blocks.read(source, 0, len(BODY))) == BODY
        assert (kept, store.calls["get"]) == ((["file"], 1) if with_disk else ([], 2))

    trio.run(main)


# What gives way, and what `drop` tells the kernel


def test_without_a_floor_of_its_own_a_full_disk_costs_no_block_that_is_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = cache(tmp_path)
    keep(disk, 0, 4, key="a")
    monkeypatch.setattr(os, "statvfs", having(0, 10 * GIB))
    keep(disk, 0, 4, key="b")
    assert read(disk, 0, 4, key="a") == BODY[: 4 * SMALL]
    assert read(disk, 0, 4, key="b") is None


def test_a_fetch_that_was_written_makes_room_for_the_next(tmp_path: Path) -> None:
    disk = cache(tmp_path)
    for at in range(3 * disk_blocks.WRITES):
        keep(disk, 0, 1, key=f"{at}")
        assert read(disk, 0, 1, key=f"{at}") == BODY[:SMALL]


def test_what_was_written_to_last_stays_longest(tmp_path: Path) -> None:
    disk = cache(tmp_path, capacity=6 * SMALL)
    keep(disk, 0, 2, key="a")
    keep(disk, 0, 2, key="b")
    keep(disk, 2, 4, key="a")
    keep(disk, 0, 1, key="c")
    assert read(disk, 0, 4, key="a") == BODY[: 4 * SMALL]
    assert read(disk, 0, 2, key="b") is None


def test_drop_keeps_what_is_open_for_writing_before_anything_was_written(tmp_path: Path) -> None:
    """Its blocks on the disk too: the next write needs what is around it."""
    store = Held()

    async def main(mount: Composed) -> None:
        await put_all(store, {"file": b"A" * MIB, "other": b"B" * MIB})
        handle = await opened(mount)
        other = await opened(mount, os.O_RDONLY, "other")
        for one in (handle, other):
            await mount.parts.file_io.read(one, 0, MIB)
        await trio.testing.wait_all_tasks_blocked()
        for path in ("", "file"):
            assert (await dropped(mount, path))["kept"] == ["file"]
        mount.parts.blocks.forget(lambda key: True)
        asked = store.calls["get"]
        assert bytes(await mount.parts.file_io.read(handle, 0, MIB)) == b"A" * MIB
        assert store.calls["get"] == asked
        await mount.parts.file_io.read(other, 0, MIB)
        assert store.calls["get"] > asked
        for one in (handle, other):
            await mount.parts.file_io.release(one)

    with composed(store, tmp_path, cache_size=64 * MIB) as mount:
        mount.loop.run(partial(main, mount))


def test_drop_has_the_kernel_forget_what_it_knows(
    mount: Composed, store: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    told_of: list[int] = []

    async def forget(_: Kernel, inodes: Any, names: Any) -> None:
        told_of.extend(inodes)

    async def main() -> None:
        await put_all(store, {"d/known": b"k", "d/listed": b"l", "d/written": b"w"})
        known, listed = await mount._walk("d/known"), await mount._walk("d/listed")
        known.lookups += 1
        writer = await opened(mount, path="d/written")
        writer.inode.lookups += 1
        monkeypatch.setattr(Kernel, "forget", forget)
        await dropped(mount, "d")
        assert known.number in told_of
        assert not {listed.number, writer.inode.number} & set(told_of)
        writer.inode.lookups -= 1
        known.lookups -= 1
        await mount.parts.file_io.release(writer)

    mount.loop.run(main)
