"""What the buckets of one mount have together: whose bytes are whose, and how much all of them may take."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from sosfs.cache.blocks import BLOCK, Blocks, Source
from sosfs.cache.disk_blocks import DiskCache
from sosfs.concurrency.tasks import Background
from sosfs.config.choices import Share
from sosfs.config.parameters import Durability, Settings
from sosfs.files import spool
from sosfs.filesystem import memory_limits
from sosfs.filesystem.memory_limits import DRAFTS, UPLOADS, Quota, Quotas, names_of, whole
from sosfs.s3.protocol import Properties
from tests.support.composed import inline_threads
from tests.support.disks import having
from tests.support.fake_store import FakeStore

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
BODIES = {bucket: random.Random(bucket).randbytes(2 * BLOCK + 5) for bucket in ("one", "two")}


def settings(path: Path, **options: Any) -> Settings:
    return Settings("bucket", "", Path("/"), cache_dir=path, **{"cache_size": 64 * MIB, **options})


class Reading:
    """Two buckets with the same key, whose objects differ in their bytes alone: their ETags are no hashes."""

    def __init__(self, path: Path, **options: Any) -> None:
        self._quotas = Quotas(settings(path, **options), path)
        self.stores = {bucket: FakeStore(bucket, hashes=False) for bucket in BODIES}
        self.blocks: dict[str, Blocks] = {}
        self.sources: dict[str, Source] = {}

    def of(self, bucket: str) -> Quota:
        return self._quotas.of(bucket)

    async def begin(self, nursery: trio.Nursery) -> None:
        for bucket, store in self.stores.items():
            quota = self.of(bucket)
            spawn = Background(nursery).spawn
            self.blocks[bucket] = Blocks(store, spawn, quota.cached, capacity=4 * MIB, disk=quota.disk)
            version = await store.put("key", BODIES[bucket], Properties())
            self.sources[bucket] = Source("key", version.etag, version.size)
        assert len(set(self.sources.values())) == 1

    async def read(self, bucket: str) -> bytes:
        body = bytes(await self.blocks[bucket].read(self.sources[bucket], 0, len(BODIES[bucket])))
        await trio.testing.wait_all_tasks_blocked()
        return body

    def asked(self, bucket: str) -> int:
        return self.stores[bucket].calls["get"]


def run(reading: Reading, main: Callable[[], Any]) -> None:
    async def all_of_it() -> None:
        async with trio.open_nursery() as nursery:
            await reading.begin(nursery)
            await main()
            nursery.cancel_scope.cancel()

    with inline_threads():  # so that what goes to the disk is there once all tasks wait
        trio.run(all_of_it)


@pytest.mark.parametrize("cache_size", [0, 64 * MIB], ids=["memory", "and disk"])
def test_each_bucket_reads_its_own(tmp_path: Path, cache_size: int) -> None:
    reading = Reading(tmp_path, cache_size=cache_size)

    async def main() -> None:
        for _ in range(2):
            for bucket, body in BODIES.items():
                assert await reading.read(bucket) == body
        assert [reading.asked(bucket) for bucket in BODIES] == [1, 1]

    run(reading, main)


def test_so_it_does_from_the_disk_after_a_remount(tmp_path: Path) -> None:
    async def main() -> None:
        for bucket, body in BODIES.items():
            assert await reading.read(bucket) == body

    for due in (1, 0):
        reading = Reading(tmp_path)
        run(reading, main)
        await_disk = [reading.asked(bucket) for bucket in BODIES]
        assert await_disk == [due, due]


def test_what_one_bucket_forgets_the_other_keeps(tmp_path: Path) -> None:
    reading = Reading(tmp_path)

    async def main() -> None:
        for bucket in BODIES:
            await reading.read(bucket)
        assert reading.blocks["one"].forget(lambda key: True) == len(BODIES["one"])
        disk, source = reading.blocks["one"].disk, reading.sources["one"]
        assert disk is not None
        assert await disk.forget([(source.key, source.etag, source.size)]) > 0
        assert reading.blocks["one"].used == 0
        assert reading.blocks["two"].used == 3 * BLOCK
        for bucket, body in BODIES.items():
            assert await reading.read(bucket) == body
        assert [reading.asked(bucket) for bucket in BODIES] == [2, 1]

    run(reading, main)


def test_what_is_kept_is_kept_in_its_own_bucket(tmp_path: Path) -> None:
    reading = Reading(tmp_path)

    async def main() -> None:
        for bucket in BODIES:
            await reading.read(bucket)
        disk, source = reading.blocks["one"].disk, reading.sources["one"]
        assert disk is not None
        named = source.key, source.etag, source.size
        await disk.forget_all(but=[named])
        assert await disk.missing(*named) == []
        other = reading.blocks["two"].disk
        assert other is not None
        assert await other.missing(*named) == [(0, 3)]
        assert await other.store(*named, 0, memoryview(BODIES["two"]))
        found = await disk.read(*named, 0, 3)
        assert found is not None
        assert bytes(found) == BODIES["one"]
        assert disk.capacity == 64 * MIB
        assert disk.give_way(1) > 0

    run(reading, main)


def test_the_limits_are_those_of_all_together(tmp_path: Path) -> None:
    reading = Reading(tmp_path, memory=4 * BLOCK)
    one, two = reading.of("one"), reading.of("two")
    assert one.uploads is two.uploads
    assert one.drafts is two.drafts
    assert one.backlog is two.backlog
    assert one.uploads.limit == UPLOADS

    async def main() -> None:
        for bucket, body in BODIES.items():
            assert await reading.read(bucket) == body
        assert len(one.cached) + len(two.cached) <= 4
        assert len(two.cached) == 3, "the longest unused goes, whosever it is"

    run(reading, main)


def test_changes_in_memory_are_small_drafts_and_bodies_on_their_way_up(tmp_path: Path) -> None:
    """Of a mount of one bucket, and of all together."""
    given = settings(tmp_path, cache_size=0)

    async def hold(quota: Quota) -> int:
        async with quota.uploads.holding(5 * MIB):
            return quota.changes

    for quota in (whole(given), Quotas(given, tmp_path).of("bucket")):
        assert quota.changes == 0
        assert quota.drafts.grant(3 * MIB)
        assert trio.run(hold, quota) == 8 * MIB
        assert quota.changes == 3 * MIB
    together = Quotas(given, tmp_path)
    assert together.of("one").drafts.grant(MIB)
    assert together.of("two").drafts.grant(MIB)
    assert together.changes == 2 * MIB


@pytest.mark.parametrize("memory", [64 * MIB, GIB])
def test_names_take_their_share_of_the_memory(tmp_path: Path, memory: int) -> None:
    given = settings(tmp_path, memory=memory)
    assert names_of(given) == 2 * memory // KIB
    assert whole(given).names == Quotas(given, tmp_path).of("bucket").names == names_of(given)


@pytest.mark.parametrize(
    ("durability", "total", "due"),
    [
        (Durability.BUCKET, 80 * MIB, DRAFTS),
        (Durability.JOURNAL, 80 * MIB, 10 * MIB),
        (Durability.JOURNAL, 10 * GIB, DRAFTS),
    ],
)
def test_drafts_in_the_journal_leave_room_on_a_small_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durability: Durability, total: int, due: int
) -> None:
    monkeypatch.setattr(os, "statvfs", having(total, total))
    given = settings(tmp_path, durability=durability, cache_size=0)
    assert whole(given).drafts.limit == due
    assert Quotas(given, tmp_path).of("bucket").drafts.limit == due


# The disk


@pytest.mark.promise(11)
@pytest.mark.parametrize("kept", [Share(size=100 * MIB), Share(percent=25.0)])
@pytest.mark.parametrize("is_shared", [False, True], ids=["one bucket", "all"])
def test_what_is_to_be_left_free_is_left_and_blocks_give_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: Share, is_shared: bool
) -> None:
    """What `--cache-free` keeps, and above that what writers need before their room is short."""
    total = 400 * MIB
    least = kept.of(total) + spool.floor(total)
    given = settings(tmp_path, cache_free=kept)
    disk = Quotas(given, tmp_path)._disk if is_shared else whole(given).disk
    assert isinstance(disk, DiskCache)
    body = memoryview(bytes(BLOCK))

    async def stored(key: str, free: int) -> bool:
        monkeypatch.setattr(os, "statvfs", having(free, total))
        return await disk.store(key, "etag", BLOCK, 0, body)

    assert trio.run(stored, "a", least + BLOCK)
    assert trio.run(stored, "b", least + BLOCK)
    assert disk.used == 2 * BLOCK
    assert not trio.run(stored, "c", least + BLOCK - 1)
    assert disk.used < 2 * BLOCK, "what is here gives way where room is short"
    assert not trio.run(stored, "d", 0)
    assert disk.used == 0


def test_without_a_size_nothing_is_kept_on_the_disk(tmp_path: Path) -> None:
    given = settings(tmp_path, cache_size=0)
    assert whole(given).disk is None
    assert Quotas(given, tmp_path).of("bucket").disk is None
    assert memory_limits._disk(settings(tmp_path), tmp_path) is not None
