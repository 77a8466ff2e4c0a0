"""What the kernel is given unasked: on a real mount by requests and bytes, by itself by what it waits for."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import cast

import pytest
import trio
import trio.testing

from sosfs.cache.blocks import BLOCK, REQUEST, Blocks, Run, Source
from sosfs.cache.readahead import FILLING, REGION_MAX, Stream
from sosfs.cache.verification import Verifier
from sosfs.concurrency.tasks import Background
from sosfs.config.choices import Verify
from sosfs.files.open_file import content_of
from sosfs.files.page_cache import PageCache
from sosfs.s3.protocol import Version
from sosfs.tree.inodes import Defaults, Inode, Inodes
from sosfs.tree.keys import Form
from tests.conftest import Mounter
from tests.support.fake_store import FakeStore
from tests.support.foreign import Foreign
from tests.support.proxy import Proxy

KIB, MIB = 1 << 10, 1 << 20
SIZE = 12 * MIB


def scattered(count: int) -> list[int]:
    """Offsets of 4 KiB each, no two in a row."""
    return random.Random(5).sample(range(0, SIZE, 4 * KIB), count)


def test_dense_random_reads_soon_ask_nothing(foreign: Foreign, mounter: Mounter, proxy: Proxy) -> None:
    body = random.Random(1).randbytes(SIZE)
    foreign.put("base", body)
    drive = mounter(proxy.endpoint, "--ttl", "300")
    with (drive.here / "base").open("rb", buffering=0) as file:
        with proxy.recording() as traffic:
            for offset in scattered(200):
                assert os.pread(file.fileno(), 4 * KIB, offset) == body[offset : offset + 4 * KIB]
        assert traffic.count("GET") < 100, str(traffic)
        assert traffic.received("GET") <= SIZE + SIZE // 4, "regions are fetched twice"
        proxy.settle()
        with proxy.recording() as traffic:
            for offset in random.Random(6).sample(range(0, SIZE, 4 * KIB), 500):
                assert os.pread(file.fileno(), 4 * KIB, offset) == body[offset : offset + 4 * KIB]
    assert traffic.count("GET") <= 5, str(traffic)


def test_sparse_random_reads_move_little(foreign: Foreign, mounter: Mounter, proxy: Proxy) -> None:
    foreign.put("base", bytes(SIZE))
    drive = mounter(proxy.endpoint, "--ttl", "300")
    with (drive.here / "base").open("rb", buffering=0) as file, proxy.recording() as traffic:
        for offset in (9 * MIB, 5 * MIB, 1 * MIB):
            os.pread(file.fileno(), 4 * KIB, offset)
    # 5 where answers come at once, 21 where they take long, as on a busy machine: `cache/test_readahead.py`.
    assert traffic.received("GET") <= 22 * BLOCK, str(traffic)


class Fetches:
    """Blocks that note what is wanted; it arrives at once, or never."""

    capacity = 128 * MIB
    is_busy = False
    verifier = Verifier(FakeStore(), Verify.NONE, block=BLOCK, request=REQUEST)

    def __init__(self, *, at_once: bool) -> None:
        self._at_once = at_once
        self.wanted: list[tuple[int, int]] = []

    def want(self, source: Source, start: int, stop: int) -> list[Run]:
        run = Run(start // BLOCK, -(-stop // BLOCK))
        self.wanted.append((start, stop))
        if self._at_once:
            run.done.set()
        return [run]

    async def read(self, source: Source, start: int, stop: int) -> bytes:
        return bytes(stop - start)


class Gaps(Fetches):
    """Blocks of which some are here: of every second region all, of the others all but two gaps."""

    def __init__(self) -> None:
        super().__init__(at_once=True)
        self.begun: list[Run] = []

    def want(self, source: Source, start: int, stop: int) -> list[Run]:
        (run,) = super().want(source, start, stop)
        gaps = [] if start // REGION_MAX % 2 else [Run(run.first, run.first + 1), Run(run.last - 1, run.last)]
        self.begun += gaps
        return gaps


def read_at_random(fetches: Fetches, size: int, count: int) -> Stream:
    source, stream = Source("file", "etag", size), Stream()

    async def main() -> None:
        for offset in random.Random(8).sample(range(BLOCK, size - BLOCK, 4 * KIB), count):
            await stream.read(cast(Blocks, fetches), source, offset, offset + 4 * KIB)

    trio.run(main)
    return stream


def test_an_eighth_read_at_random_brings_the_whole_file() -> None:
    fetches, size = Fetches(at_once=True), 512 * MIB
    read_at_random(fetches, size, 60)
    whole = [start for start, stop in fetches.wanted if stop - start == REGION_MAX]
    assert sorted(set(whole)) == list(range(0, size, REGION_MAX))


def test_what_nobody_asked_for_never_fills_the_line() -> None:
    fetches = Fetches(at_once=False)
    read_at_random(fetches, 512 * MIB, 300)
    whole = {start for start, stop in fetches.wanted if stop - start == REGION_MAX}
    read = {offset // REGION_MAX * REGION_MAX for offset, stop in fetches.wanted if stop - offset == 4 * KIB}
    assert len(whole - read) <= FILLING


def test_each_fetch_is_given_to_the_kernel_once() -> None:
    fetches = Gaps()
    assert read_at_random(fetches, 512 * MIB, 300).begun == fetches.begun


def test_a_huge_file_is_never_fetched_whole() -> None:
    fetches, reads = Fetches(at_once=True), 2000
    read_at_random(fetches, 64 << 30, reads)
    assert sum(stop - start for start, stop in fetches.wanted) <= reads * 2 * MIB


def test_a_writer_between_random_reads_is_never_overwritten(foreign: Foreign, mounter: Mounter) -> None:
    expected = bytearray(random.Random(2).randbytes(SIZE))
    foreign.put("base", bytes(expected))
    drive = mounter()
    dice = random.Random(3)
    for turn in range(6):
        with (drive.here / "base").open("rb", buffering=0) as reader:
            for offset in dice.sample(range(0, SIZE, 4 * KIB), 30):
                assert os.pread(reader.fileno(), 4 * KIB, offset) == expected[offset : offset + 4 * KIB]
            # Regions are on their way into the kernel now, and the writer overtakes them.
            with (drive.here / "base").open("r+b", buffering=0) as writer:
                for offset in dice.sample(range(0, SIZE, 4 * KIB), 30):
                    new = bytes([turn + 1]) * (4 * KIB)
                    os.pwrite(writer.fileno(), new, offset)
                    expected[offset : offset + 4 * KIB] = new
        assert (drive.here / "base").read_bytes() == expected, f"turn {turn}"
    assert drive.stored(drive.here / "base") == expected


def test_a_version_opened_later_is_not_mixed_with_pages_of_the_one_before(foreign: Foreign, mounter: Mounter) -> None:
    drive = mounter("", "--ttl", "0")
    dice = random.Random(4)
    for turn in range(4):
        body = bytes([turn + 1]) * SIZE
        foreign.put("base", body)
        with (drive.here / "base").open("rb", buffering=0) as file:
            for offset in dice.sample(range(0, SIZE, 4 * KIB), 40):
                assert set(os.pread(file.fileno(), 4 * KIB, offset)) == {turn + 1}


class PageNotifier:
    """A kernel that takes what it is given when it is told to."""

    def __init__(self) -> None:
        self.may = threading.Event()
        self.has: list[tuple[int, int, bytes]] = []

    def give(self, number: int, offset: int, body: memoryview) -> None:
        self.may.wait(30)
        self.has.append((number, offset, bytes(body)))

    async def forget(self, numbers: Sequence[int], names: Sequence[tuple[int, bytes]]) -> None:
        """It has none of it."""

    async def forget_attributes(self, number: int) -> None:
        """It has none of them."""


def opened(etag: str) -> tuple[Inodes, Inode, Source]:
    """An inode whose version the kernel's pages are of."""
    inodes = Inodes("", Defaults(0, 0, 0o022, 0))
    inode = inodes.make(inodes.root, "file", Form.PLAIN, mode=0o100644)
    inode.version, inode.pages = Version(etag, BLOCK), etag
    return inodes, inode, Source("file", etag, BLOCK)


def arrived(body: bytes) -> Run:
    run = Run(0, 1)
    run.body = memoryview(body)
    run.done.set()
    return run


def test_who_is_about_to_write_waits_for_what_is_being_given() -> None:
    kernel = PageNotifier()
    inodes, inode, source = opened("a")

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            pages = PageCache(inodes, Background(nursery).spawn, kernel)
            assert pages.hold(inode)
            pages.bring(inode, source, [arrived(b"x" * BLOCK)])
            await trio.testing.wait_all_tasks_blocked()
            with trio.move_on_after(0.05) as waiting:
                await pages.wait_for(inode)
            assert waiting.cancelled_caught
            kernel.may.set()
            await pages.wait_for(inode)
            assert kernel.has == [(inode.number, 0, b"x" * BLOCK)]

    trio.run(run)


def to_write(inode: Inode) -> None:
    content_of(inode).writers = 1


def other_version(inode: Inode) -> None:
    inode.version = Version("b", BLOCK)


def other_pages(inode: Inode) -> None:
    inode.pages = "b"


def given_to(
    inodes: Inodes, inode: Inode, source: Source, then: Callable[[PageCache], Awaitable[None]]
) -> PageNotifier:
    """The kernel after a block of `source` was brought for `inode`, and `then` was done."""
    kernel = PageNotifier()
    kernel.may.set()

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            pages = PageCache(inodes, Background(nursery).spawn, kernel)
            pages.bring(inode, source, [arrived(b"x" * BLOCK)])
            await then(pages)

    trio.run(run)
    return kernel


async def nothing(pages: PageCache) -> None:
    """Lets everything be."""


@pytest.mark.parametrize("change", [to_write, other_version, other_pages])
def test_nothing_is_given_of_a_file_that_may_be_changed(change: Callable[[Inode], None]) -> None:
    inodes, inode, source = opened("a")
    change(inode)
    assert given_to(inodes, inode, source, nothing).has == []


def test_nothing_is_given_after_the_end() -> None:
    inodes, inode, source = opened("a")
    assert given_to(inodes, inode, source, PageCache.close).has == []
