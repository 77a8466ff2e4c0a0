"""Blocks in memory and on the disk: what one fetch brings, what of it is kept, and what goes with what.

Over a store in memory that flips bits to order (`test_verification`). Requests are counted, not timed.
"""

from __future__ import annotations

import errno
import random
from pathlib import Path

import pytest
import trio
import trio.testing

from sosfs.cache.blocks import ACTIVE, BLOCK, REQUEST, Blocks, Source
from sosfs.cache.readahead import Stream
from sosfs.cache.verification import MISSES, Verdict
from sosfs.config.choices import Verify
from sosfs.errors import StoreError
from sosfs.s3 import checksums
from sosfs.s3.checksums import Checksum
from sosfs.s3.protocol import Slice
from tests.cache.test_verification import LARGE, MIDDLE, SMALL, Bench, Crooked, run, wrong
from tests.support.drive import fails

MIB = 1 << 20
STEP = REQUEST // BLOCK

pytestmark = pytest.mark.usefixtures("without_bugs")


async def settled() -> None:
    """What goes on in the background has ended."""
    await trio.testing.wait_all_tasks_blocked()


def watched(store: Crooked) -> list[int]:
    """How many bytes each GET from now on is for."""
    sizes, get = list[int](), store.get

    async def noted(key: str, start: int, stop: int, *, etag: str = "") -> Slice:
        sizes.append(stop - start)
        return await get(key, start, stop, etag=etag)

    store.get = noted  # type: ignore[method-assign]
    return sizes


# Laid up for later


async def _lay_up(bench: Bench, source: Source) -> None:
    for first in range(0, -(-source.size // BLOCK), STEP):
        found = await bench.blocks.fetching.lay_up(source, first, min(first + STEP, -(-source.size // BLOCK)))
        assert (found.version.etag, found.version.size) == (source.etag, source.size)


def test_what_is_laid_up_is_on_the_disk_and_not_in_memory(tmp_path: Path) -> None:
    async def check(bench: Bench) -> None:
        assert bench.disk is not None
        source = await bench.put(LARGE)
        await _lay_up(bench, source)
        assert bench.blocks.used == 0
        assert bench.blocks.received_bytes == len(LARGE)
        assert await bench.blocks.fetching.verify_on_disk(source)
        assert await bench.disk.missing(source.key, source.etag, source.size) == []
        before = bench.store.calls["get"]
        assert await bench.read(source) == LARGE
        assert bench.store.calls["get"] == before

    run(check, base=tmp_path)


@pytest.mark.promise(5)
@pytest.mark.parametrize("at", [0, 9 * MIB, len(LARGE) - 1])
def test_what_was_laid_up_wrong_is_found_out_and_not_kept(tmp_path: Path, at: int) -> None:
    async def check(bench: Bench) -> None:
        assert bench.disk is not None
        source = await bench.put(LARGE)
        bench.store.flips, bench.store.at = 1, at
        await _lay_up(bench, source)
        assert not await bench.blocks.fetching.verify_on_disk(source)
        assert await bench.disk.missing(source.key, source.etag, source.size) == [(0, -(-source.size // BLOCK))]
        assert await bench.read(source) == LARGE

    run(check, base=tmp_path)


@pytest.mark.parametrize("why", ["a piece is gone", "no checksum is known", "nobody wants to know"])
def test_what_cannot_be_told_of_what_was_laid_up_speaks_not_against_it(tmp_path: Path, why: str) -> None:
    async def check(bench: Bench) -> None:
        assert bench.disk is not None
        source = await bench.put(LARGE)
        bench.store.flips = 1
        if why == "nobody wants to know":
            bench.blocks.verifier._verify = Verify.NONE
        await _lay_up(bench, source)
        if why == "a piece is gone":
            (table,) = tmp_path.glob("*.sums")
            table.write_bytes(table.read_bytes()[: STEP * 8])
        asked = bench.store.calls["head"]
        assert await bench.blocks.fetching.verify_on_disk(source)
        assert bench.store.calls["head"] - asked == (1 if why == "no checksum is known" else 0)

    run(check, base=tmp_path, hashes=why != "no checksum is known")


def test_without_a_disk_or_room_on_it_nothing_is_laid_up(tmp_path: Path) -> None:
    async def no_disk(bench: Bench) -> None:
        source = await bench.put(SMALL)
        with fails(errno.ENOSPC):
            await bench.blocks.fetching.lay_up(source, 0, 3)
        assert bench.store.calls["get"] == 0
        assert await bench.blocks.fetching.verify_on_disk(source)

    async def no_room(bench: Bench) -> None:
        assert bench.disk is not None
        bench.disk.capacity = BLOCK
        with fails(errno.ENOSPC):
            await bench.blocks.fetching.lay_up(await bench.put(SMALL), 0, 3)

    run(no_disk)
    run(no_room, base=tmp_path)


def test_what_is_wrong_on_the_disk_is_forgotten_there_and_without_a_disk_nothing_is(tmp_path: Path) -> None:
    async def check(bench: Bench) -> None:
        source = await bench.put(SMALL)
        bench.store.flips = 2
        with pytest.raises(StoreError, match="do not have the checksum"):
            await bench.blocks.read(source, 0, 1)
        assert await bench.read(source) == SMALL
        await settled()
        bench.blocks.forget(lambda _: True)
        asked = bench.store.calls["get"]
        if bench.disk is not None:
            await bench.disk.forget([(source.key, source.etag, source.size)])
            damaged = bytes([SMALL[0] ^ 1]) + SMALL[1:]
            await bench.disk.store(source.key, source.etag, source.size, 0, memoryview(damaged))
        assert await bench.read(source) == SMALL
        await settled()
        bench.blocks.forget(lambda _: True)
        assert await bench.read(source) == SMALL
        assert bench.store.calls["get"] - asked == (1 if bench.disk is not None else 2)

    run(check)
    run(check, base=tmp_path)


# What came along


@pytest.mark.parametrize("size", [1, BLOCK, 3 * BLOCK, 2 * MIB])
def test_the_beginning_that_an_answer_brought_along_is_not_asked_for_again(size: int) -> None:
    """Of a small version all of it, of a larger one its first block."""
    body = random.Random(size).randbytes(size)

    async def check(bench: Bench) -> None:
        source = await bench.put(body)
        sizes = watched(bench.store)
        due = min(size, BLOCK)
        await bench.blocks.offer_answer(source, await bench.store.get("file", 0, due))
        assert bench.blocks.received_bytes == due
        is_kept = size <= BLOCK or size > MIB
        assert bench.blocks.used == (BLOCK if is_kept else 0)
        assert bytes(await bench.blocks.read(source, 0, due)) == body[:due]
        assert len(sizes) == (1 if is_kept else 2)

    run(check)


@pytest.mark.parametrize("with_disk", [True, False])
def test_what_came_along_goes_to_the_disk_where_there_is_one(tmp_path: Path, with_disk: bool) -> None:
    async def check(bench: Bench) -> None:
        source = await bench.put(b"bytes")
        await bench.blocks.offer_answer(source, await bench.store.get("file", 0, 5))
        await settled()
        if bench.disk is not None:
            assert await bench.disk.missing(source.key, source.etag, source.size) == []

    run(check, base=tmp_path if with_disk else None)


def test_what_came_along_wrong_is_asked_for_again() -> None:
    async def check(bench: Bench) -> None:
        source = await bench.put(b"bytes")
        bench.store.flips = 1
        await bench.blocks.offer_answer(source, await bench.store.get("file", 0, 5))
        assert bench.blocks.used == 0
        assert bytes(await bench.blocks.read(source, 0, 5)) == b"bytes"

    run(check)


@pytest.mark.parametrize("length", [0, 1, BLOCK - 1, BLOCK + 1])
def test_what_is_no_whole_block_is_not_kept(length: int) -> None:
    async def check(bench: Bench) -> None:
        source = await bench.put(MIDDLE)
        bench.blocks.offer(source, memoryview(MIDDLE)[:length])
        assert bench.blocks.used == 0

    run(check)


@pytest.mark.parametrize(
    ("start", "stop", "is_kept"),
    [
        (5 * MIB, len(MIDDLE), True),
        (4 * MIB, len(MIDDLE), True),
        (0, len(MIDDLE), True),
        (5 * MIB, 5 * MIB, False),
        (4 * MIB, 5 * MIB, False),  # not to the end
        (5 * MIB - 1, len(MIDDLE), False),  # not from the beginning of a block
    ],
)
def test_the_end_that_was_just_stored_is_not_asked_for(start: int, stop: int, is_kept: bool) -> None:
    async def check(bench: Bench) -> None:
        source = await bench.put(MIDDLE)
        bench.blocks.offer_end(source, start, memoryview(MIDDLE)[start:stop])
        blocks = -(-len(MIDDLE) // BLOCK) - start // BLOCK
        assert bench.blocks.used == (blocks * BLOCK if is_kept else 0)
        assert bytes(await bench.blocks.read(source, start, len(MIDDLE))) == MIDDLE[start:]
        assert bench.store.calls["get"] == (0 if is_kept else 1)

    run(check)


# What one request is for


@pytest.mark.parametrize("readers", [1, 2])
def test_a_version_that_can_be_verified_whole_comes_in_one_request(readers: int) -> None:
    async def check(bench: Bench) -> None:
        source, found = await bench.put(MIDDLE), list[bytes]()

        async def read() -> None:
            found.append(await bench.read(source))

        async with trio.open_nursery() as nursery:
            for _ in range(readers):
                nursery.start_soon(read)
        assert found == [MIDDLE] * readers
        assert await bench.read(source) == MIDDLE
        assert bench.store.calls["get"] == 1

    run(check)


def test_what_cannot_be_verified_or_is_there_is_not_fetched_whole() -> None:
    async def check(bench: Bench) -> None:
        source = await bench.put(MIDDLE)
        assert bytes(await bench.blocks.read(source, 2 * BLOCK, 3 * BLOCK)) == MIDDLE[2 * BLOCK : 3 * BLOCK]
        bench.blocks.want_whole(source, 2 * BLOCK)
        await settled()
        assert bench.blocks.used == BLOCK
        bench.blocks.verifier._verify = Verify.NONE
        bench.blocks.want_whole(source, 0)
        await settled()
        assert bench.blocks.used == BLOCK

    run(check)


@pytest.mark.parametrize(("body", "due"), [(MIDDLE, [len(MIDDLE)]), (LARGE, [BLOCK])], ids=["middle", "large"])
def test_what_came_wrong_comes_whole_from_then_on_where_one_request_brings_it(body: bytes, due: list[int]) -> None:
    async def check(bench: Bench) -> None:
        source, stream = await bench.put(body), Stream()
        bench.store.flips, bench.store.at = 1, MIB
        with wrong():
            for at in range(0, len(body), BLOCK // 2):
                await stream.read(bench.blocks, source, at, at + BLOCK // 2)
            await bench.blocks.read(source, len(body) - 1, len(body))
        await settled()
        sizes = watched(bench.store)
        assert bytes(await bench.blocks.read(source, 3 * BLOCK, 3 * BLOCK + 5)) == body[3 * BLOCK : 3 * BLOCK + 5]
        assert sizes == due

    run(check)


def test_who_has_right_bytes_goes_on_when_others_come_wrong() -> None:
    async def check(bench: Bench) -> None:
        source, stream = await bench.put(LARGE), Stream()
        assert await bench.read(source, stream) == LARGE
        bench.blocks.forget(lambda _: True)
        bench.store.flips, bench.store.at = 2, 3 * MIB
        with wrong():
            await bench.blocks.read(source, 3 * MIB, 3 * MIB + 1)
        running = bench.blocks.verifier.of(source)
        assert running is not None
        assert running.verdict is Verdict.RIGHT
        assert bytes(await stream.read(bench.blocks, source, 0, 10)) == LARGE[:10]

    run(check)


# What is driven out


def fetched(blocks: Blocks, source: Source) -> list[int]:
    """Which blocks of a version are in memory."""
    return sorted(at for other, at in blocks._cached if other == source)


def test_the_buffers_are_at_most_twice_as_large_as_the_blocks() -> None:
    """A fetch keeps one buffer: when most of its blocks are gone, the others go too."""

    async def check(bench: Bench) -> None:
        first, other = await bench.put(LARGE, "first"), await bench.put(LARGE, "other")
        await bench.blocks.read(first, 0, 8 * BLOCK)
        await settled()
        assert bench.blocks.held == 8 * BLOCK
        for at in range(8, 8 + 16):
            await bench.blocks.read(first, 0, 1)  # is wanted all the time
            await bench.blocks.read(other, at * BLOCK, (at + 1) * BLOCK)
            assert bench.blocks.used <= 16 * BLOCK
            assert bench.blocks.held <= 2 * 16 * BLOCK
        assert bench.blocks.held <= 16 * BLOCK, "the first block was fetched again, alone"
        assert bytes(await bench.blocks.read(first, 0, 8 * BLOCK)) == LARGE[: 8 * BLOCK]

    run(check, capacity=16 * BLOCK)


def test_a_block_that_was_fetched_again_by_itself_stays_when_its_first_fetch_goes() -> None:
    async def check(bench: Bench) -> None:
        source, other = await bench.put(LARGE, "file"), await bench.put(LARGE, "other")

        async def fill(first: int, last: int) -> None:
            for at in range(first, last):
                await bench.blocks.read(other, at * BLOCK, (at + 1) * BLOCK)

        await bench.blocks.read(source, 8 * BLOCK, 16 * BLOCK)
        await fill(20, 29)
        assert fetched(bench.blocks, source) == list(range(9, 16)), "one went"
        assert bytes(await bench.blocks.read(source, 8 * BLOCK, 9 * BLOCK)) == LARGE[8 * BLOCK : 9 * BLOCK]
        await fill(30, 33)
        assert fetched(bench.blocks, source) == [8], "of the first fetch more than half is gone"
        before = bench.store.calls["get"]
        assert bytes(await bench.blocks.read(source, 8 * BLOCK, 9 * BLOCK)) == LARGE[8 * BLOCK : 9 * BLOCK]
        assert bench.store.calls["get"] == before

    run(check, capacity=16 * BLOCK)


def test_of_a_fetch_that_the_memory_does_not_hold_the_end_stays() -> None:
    async def check(bench: Bench) -> None:
        source = await bench.put(LARGE)
        assert bytes(await bench.blocks.read(source, 0, 16 * BLOCK)) == LARGE[: 16 * BLOCK]
        assert fetched(bench.blocks, source) == list(range(8, 16))

    run(check, capacity=8 * BLOCK)


def test_who_reads_ahead_has_a_share_as_long_as_he_reads() -> None:
    async def check(bench: Bench) -> None:
        one, other = object(), object()
        assert bench.blocks.room_ahead(one) == 16 * MIB // 2
        assert bench.blocks.room_ahead(other) == bench.blocks.room_ahead(one) == 16 * MIB // 6
        await trio.sleep(0)
        bench.blocks._streams[other] -= 2 * ACTIVE
        assert bench.blocks.room_ahead(one) == 16 * MIB // 2

    run(check, capacity=16 * MIB)


def test_it_is_busy_while_half_of_the_memory_is_on_its_way() -> None:
    async def check(bench: Bench) -> None:
        source = await bench.put(LARGE)
        assert not bench.blocks.is_busy
        bench.blocks.want(source, 0, 8 * BLOCK)
        assert not bench.blocks.is_busy
        bench.blocks.want(source, 8 * BLOCK, 9 * BLOCK)
        assert bench.blocks.is_busy
        await settled()
        assert not bench.blocks.is_busy

    run(check, capacity=16 * BLOCK)


# Which checksum


def test_the_checksum_of_another_version_is_none_of_this_one() -> None:
    async def check(bench: Bench) -> None:
        source = await bench.put(SMALL)
        await bench.put(MIDDLE)
        bench.store.checksum = Checksum("crc32c", checksums.of("crc32c", memoryview(MIDDLE)))
        assert await bench.blocks.verifier.accepts(source, 0, memoryview(SMALL))

    run(check, hashes=False)


def test_a_checksum_now_and_then_keeps_the_server_asked() -> None:
    async def check(bench: Bench) -> None:
        for number in range(3 * MISSES):
            body = b"%d" % number
            known = Checksum("crc32c", checksums.of("crc32c", memoryview(body)))
            bench.store.checksum = known if number % MISSES == MISSES - 1 else None
            source = await bench.put(body, key=f"file{number}")
            assert await bench.read(source) == body
        assert bench.store.calls["head"] == 3 * MISSES

    run(check, hashes=False)


def test_an_encrypted_object_with_a_checksum_is_held_to_it() -> None:
    """That its ETag is no hash says nothing where the ETag was not what it was compared with."""

    async def check(bench: Bench) -> None:
        bench.store.opaque, bench.store.tells = True, False
        bench.store.checksum = Checksum("crc32c", checksums.of("crc32c", memoryview(LARGE)))
        source = await bench.put(LARGE)
        bench.store.flips, bench.store.at = 1, MIB
        with wrong():
            await bench.read(source)
        assert await bench.read(source) == LARGE

    run(check, hashes=False)
