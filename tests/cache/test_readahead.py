"""What is fetched ahead for who reads from a distant server: after how many waits he has all that the line carries.

A round trip is a moment of a clock that stands still otherwise, so that waits are counted and nothing is timed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from sosfs.cache.blocks import BLOCK, Blocks, Source, memory_of
from sosfs.cache.readahead import REGION_MAX, WINDOW_MAX, Stream
from sosfs.s3.protocol import Properties, Slice
from tests.support.fake_store import FakeStore

MIB = 1 << 20
SIZE = 128 * MIB
CAPACITY = 2 * SIZE


class Distant(FakeStore):
    """A store so many seconds away, that counts the bytes it is asked for."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds, self.sent = seconds, 0

    async def get(self, key: str, start: int, stop: int, *, etag: str = "") -> Slice:
        """As `ObjectStore.get`."""
        self.sent += stop - start
        await trio.sleep(self.seconds)
        return await super().get(key, start, stop, etag=etag)


def reading(store: Distant, body: Callable[[Callable[[int], Awaitable[bool]]], Awaitable[None]]) -> None:
    """Runs a body that is given a function to read a block of a file, which tells whether that took a wait."""

    async def main() -> None:
        version = await store.put("file", bytes(SIZE), Properties())
        source, stream = Source("file", version.etag, SIZE), Stream()
        async with trio.open_nursery() as nursery:
            blocks = Blocks(store, nursery.start_soon, memory_of(CAPACITY), capacity=CAPACITY)

            async def read(start: int) -> bool:
                began = trio.current_time()
                assert len(await stream.read(blocks, source, start, start + BLOCK)) == BLOCK
                return trio.current_time() > began

            await body(read)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.mark.parametrize(("seconds", "most"), [(0.005, 8), (0.02, 4)])
def test_the_window_is_full_after_a_few_waits(seconds: float, most: int) -> None:
    store = Distant(seconds)

    async def body(read: Callable[[int], Awaitable[bool]]) -> None:
        waits = [start for start in range(0, SIZE, BLOCK) if await read(start)]
        assert len([start for start in waits if start < WINDOW_MAX]) <= most

    reading(store, body)
    assert store.sent == SIZE, "nothing comes twice"


def test_who_reads_the_beginning_alone_has_little_fetched() -> None:
    store = Distant(0.02)

    async def body(read: Callable[[int], Awaitable[bool]]) -> None:
        for start in range(0, MIB, BLOCK):
            await read(start)

    reading(store, body)
    assert store.sent <= 8 * MIB


@pytest.mark.parametrize(("seconds", "most"), [(0.005, 14), (0.02, 5)])
def test_whole_regions_come_after_a_few_jumps(seconds: float, most: int) -> None:
    store = Distant(seconds)
    places = [at * 7 % 16 * REGION_MAX + 3 * MIB for at in range(16)]

    async def body(read: Callable[[int], Awaitable[bool]]) -> None:
        for jumps, place in enumerate(places, 1):
            before = store.sent
            await read(place)
            if store.sent - before >= REGION_MAX:
                assert jumps <= most
                return
        raise AssertionError("no region came")

    reading(store, body)


@pytest.mark.parametrize(("seconds", "blocks"), [(0.0, 1 + 2 + 2), (0.009, 1 + 2 + 2), (0.02, 1 + 4 + 16)])
def test_a_few_jumps_fetch_little(seconds: float, blocks: int) -> None:
    """From a distant server more, or one that is busy: it takes as long."""
    store = Distant(seconds)

    async def body(read: Callable[[int], Awaitable[bool]]) -> None:
        for place in (9 * MIB, 5 * MIB, MIB):
            await read(place)

    reading(store, body)
    assert store.sent == blocks * BLOCK
