"""Bounded memory: a file far larger than every cache passes through the daemon, and what is read often holds little."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from pathlib import Path
from typing import cast

import pytest
import trio

from sosfs.cache.blocks import REQUEST, Blocks, Source, memory_of
from sosfs.concurrency.tasks import Background
from sosfs.config.parameters import MEMORY, Settings
from sosfs.filesystem.memory_limits import Quotas
from sosfs.s3.protocol import Object, ObjectStore, Properties, Slice, Version
from tests.conftest import Mounter
from tests.support.foreign import Foreign

MIB = 1 << 20
SIZE = 1024 * MIB
LIMIT = 300 * MIB


def block(number: int) -> bytes:
    """The file's MiB of this number; each differs."""
    return PATTERN[number % 251 :] + PATTERN[: number % 251] + number.to_bytes(8, "big")


PATTERN = random.Random(15).randbytes(MIB - 8)


def write(path: Path) -> str:
    """Writes the whole file in order and returns its digest."""
    digest = hashlib.md5()
    with path.open("wb", buffering=0) as file:
        for number in range(SIZE // MIB):
            data = block(number)
            assert file.write(data) == MIB
            digest.update(data)
    return digest.hexdigest()


def read(path: Path) -> str:
    """Reads the whole file in order and returns its digest."""
    with path.open("rb", buffering=0) as file:
        return hashlib.file_digest(file, "md5").hexdigest()


@pytest.mark.promise(11)
@pytest.mark.timeout(200)
@pytest.mark.parametrize("server", ["ceph"], indirect=True)
def test_a_gibibyte_written_and_read_back_stays_under_300_mib(foreign: Foreign, mounter: Mounter) -> None:
    drive = mounter()
    written = write(drive.here / "large")
    assert drive.mount.peak_memory() < LIMIT
    assert foreign.head("large")["ContentLength"] == SIZE
    assert read(drive.here / "large") == written
    assert drive.mount.peak_memory() < LIMIT
    drive.mount.remount()
    assert read(drive.here / "large") == written
    assert drive.mount.peak_memory() < LIMIT
    (drive.here / "large").unlink()


class Zeros:
    """A store that has zeros for every range, and counts how often each is asked for."""

    def __init__(self) -> None:
        self.asked: Counter[tuple[int, int]] = Counter()

    async def get(self, key: str, start: int, stop: int, *, etag: str = "") -> Slice:
        await trio.lowlevel.checkpoint()
        self.asked[start, stop] += 1
        return Slice(Object(key, Version(etag, stop), Properties()), memoryview(bytes(stop - start)))


@pytest.mark.promise(11)
@pytest.mark.parametrize("is_shared", [False, True])
def test_an_index_that_is_read_beside_a_stream_keeps_no_more_memory_than_twice_the_limit(is_shared: bool) -> None:
    settings = Settings("bucket", "", Path("/"))
    cached = Quotas(settings, Path("/nowhere")).of("bucket").cached if is_shared else memory_of(MEMORY)
    store, requests = Zeros(), 30

    async def read() -> None:
        async with trio.open_nursery() as nursery:
            blocks = Blocks(cast(ObjectStore, store), Background(nursery).spawn, cached, capacity=MEMORY)
            source = Source("file", "etag", requests * REQUEST)
            for number in range(requests):
                await blocks.read(source, number * REQUEST, (number + 1) * REQUEST)
                for before in range(number):  # the index: one block of each
                    await blocks.read(source, before * REQUEST, before * REQUEST + 1)
            nursery.cancel_scope.cancel()

    trio.run(read)
    held = {id(run.body.obj): len(run.body) for run in cached.values()}
    assert MEMORY // 2 <= sum(held.values()) <= 2 * MEMORY
    assert set(store.asked.values()) == {1}, "what is read all the time was driven out twice"
