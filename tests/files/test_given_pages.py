"""What the kernel is given of a file and is told to forget, and who waits for that; also where it refuses."""

from __future__ import annotations

import errno
import threading
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest
import trio
import trio.testing

from sosfs.cache.blocks import BLOCK, Blocks, Run, Source
from sosfs.cache.verification import Verification
from sosfs.concurrency.tasks import Background
from sosfs.errors import StoreError
from sosfs.files.draft import fresh
from sosfs.files.open_file import content_of
from sosfs.files.page_cache import COPIES_AT_ONCE, PageCache
from sosfs.files.spool import Spool
from sosfs.s3.protocol import Version
from sosfs.tree.inodes import Defaults, Inode, Inodes
from sosfs.tree.keys import Form
from tests.support.kernel import Kernel

BODY = b"x" * BLOCK


class Slow(Kernel):
    """One that takes pages when it is told to, and counts who waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.may = threading.Semaphore(0)
        self.lock = threading.Lock()
        self.under_way = self.most = 0

    def give(self, number: int, offset: int, body: Any) -> None:
        """As `PageNotifier.give`."""
        with self.lock:
            self.under_way += 1
            self.most = max(self.most, self.under_way)
        assert self.may.acquire(timeout=30)
        with self.lock:
            self.under_way -= 1
        super().give(number, offset, body)


class Files:
    """Some inodes, and the way to their pages."""

    def __init__(self, nursery: trio.Nursery, kernel: Kernel | None) -> None:
        self.inodes = Inodes("", Defaults(0, 0, 0o022, 0))
        self.pages = PageCache(self.inodes, Background(nursery).spawn, kernel)

    def file(self, name: str = "file") -> Inode:
        """One whose pages the kernel may have."""
        inode = self.inodes.make(self.inodes.root, name, Form.PLAIN, mode=0o100644)
        inode.version = Version("a", 8 * BLOCK)
        assert self.pages.hold(inode)
        return inode


def run(work: Callable[[Files], Awaitable[None]], kernel: Kernel | None) -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await work(Files(nursery, kernel))

    trio.run(main)


SOURCE = Source("file", "a", 8 * BLOCK)


def fetched(first: int = 0, *, done: bool = True) -> Run:
    found = Run(first, first + 1)
    found.body = memoryview(BODY)
    if done:
        found.done.set()
    return found


# What is given


def test_what_comes_is_given_where_it_belongs_once_it_is_here() -> None:
    kernel = Kernel()

    async def main(files: Files) -> None:
        inode, late, broken = files.file(), fetched(3, done=False), fetched(5)
        broken.error = StoreError(errno.EIO, "get")
        files.pages.bring(inode, SOURCE, [fetched(1), late, broken])
        while not kernel.given:
            await trio.sleep(0)
        await trio.testing.wait_all_tasks_blocked()
        assert kernel.given == [(inode.number, BLOCK, BODY)]
        late.done.set()

    run(main, kernel)
    assert [offset for _, offset, _ in kernel.given] == [BLOCK, 3 * BLOCK]


def _is_written(inode: Inode) -> None:
    content_of(inode).writers = 1


def _is_changed(inode: Inode) -> None:
    content_of(inode).draft = fresh(cast(Spool, None), cast(Blocks, None))


def _is_gone(inode: Inode) -> None:
    inode.version = None


def _is_another(inode: Inode) -> None:
    inode.version = Version("b", BLOCK)


def _has_pages_of_another(inode: Inode) -> None:
    inode.pages = "b"


@pytest.mark.usefixtures("without_bugs")
@pytest.mark.parametrize("change", [_is_written, _is_changed, _is_gone, _is_another, _has_pages_of_another])
def test_nothing_is_given_of_what_is_no_more_as_it_was_asked_for(change: Callable[[Inode], None]) -> None:
    kernel = Kernel()

    async def main(files: Files) -> None:
        inode, late = files.file(), fetched(done=False)
        files.pages.bring(inode, SOURCE, [late])
        await trio.testing.wait_all_tasks_blocked()
        change(inode)
        late.done.set()

    run(main, kernel)
    assert kernel.given == []


def test_nothing_is_given_of_an_inode_that_was_forgotten() -> None:
    """Its number may be another file's by now."""
    kernel = Kernel()

    async def main(files: Files) -> None:
        inode = files.file()
        files.inodes.drop(inode)
        files.pages.bring(inode, SOURCE, [fetched()])

    run(main, kernel)
    assert kernel.given == []


def test_an_open_file_that_nobody_writes_to_is_given() -> None:
    kernel = Kernel()

    async def main(files: Files) -> None:
        inode = files.file()
        content_of(inode)
        files.pages.bring(inode, SOURCE, [fetched()])

    run(main, kernel)
    assert len(kernel.given) == 1


def test_few_copies_are_under_way_at_once_and_a_writer_waits_for_those_of_its_file() -> None:
    kernel = Slow()

    async def main(files: Files) -> None:
        inode, other = files.file(), files.file("other")
        await files.pages.wait_for(inode)
        files.pages.bring(inode, SOURCE, [fetched(number) for number in range(5)])
        while kernel.under_way < COPIES_AT_ONCE:
            await trio.sleep(0)
        await files.pages.wait_for(other)
        waited = trio.Event()

        async def write() -> None:
            await files.pages.wait_for(inode)
            waited.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            for number in range(1, 5):
                kernel.may.release()
                while len(kernel.given) < number:
                    await trio.sleep(0)
                await trio.testing.wait_all_tasks_blocked()
                assert not waited.is_set()
            kernel.may.release()
            await waited.wait()
        assert len(kernel.given) == 5
        assert files.pages._giving == {}, "nothing is kept of it"

    run(main, kernel)
    assert kernel.most == COPIES_AT_ONCE


def test_a_kernel_that_refuses_pages_keeps_nobody_waiting() -> None:
    kernel = Kernel()
    kernel.refuses = True

    async def main(files: Files) -> None:
        inode = files.file()
        files.pages.bring(inode, SOURCE, [fetched()])
        await trio.testing.wait_all_tasks_blocked()
        await files.pages.wait_for(inode)
        assert files.pages._giving == {}

    run(main, kernel)


def test_the_end_waits_for_what_is_on_its_way_and_nothing_follows() -> None:
    kernel = Slow()

    async def main(files: Files) -> None:
        inode, late = files.file(), fetched(7, done=False)
        files.pages.bring(inode, SOURCE, [fetched(0), fetched(1), late])
        while kernel.under_way < COPIES_AT_ONCE:
            await trio.sleep(0)
        ended = trio.Event()

        async def end() -> None:
            await files.pages.close()
            ended.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(end)
            await trio.testing.wait_all_tasks_blocked()
            kernel.may.release()
            while len(kernel.given) < 1:
                await trio.sleep(0)
            await trio.testing.wait_all_tasks_blocked()
            assert not ended.is_set()
            kernel.may.release()
        late.done.set()
        files.pages.bring(inode, SOURCE, [fetched(2)])
        await files.pages.forget(inode)
        await files.pages.doubt(inode)

    run(main, kernel)
    assert len(kernel.given) == 2
    assert (kernel.numbers, kernel.attributes) == ([], [])


# What the kernel keeps at an open


def test_pages_are_kept_for_the_version_that_they_are_of() -> None:
    async def main(files: Files) -> None:
        inode = files.file()
        assert files.pages.hold(inode)
        inode.version = Version("b", BLOCK)
        assert not files.pages.hold(inode), "they are of another"
        assert files.pages.hold(inode), "now they are of this one"
        inode.version = None
        assert not files.pages.hold(inode)
        assert files.pages.hold(inode)

    run(main, None)


# What it is told to forget


@pytest.mark.parametrize("refuses", [False, True])
def test_the_kernel_is_told_what_is_stale_and_may_refuse(refuses: bool) -> None:
    kernel = Kernel()
    kernel.refuses = refuses

    async def main(files: Files) -> None:
        inode = files.file()
        await files.pages.forget(inode)
        assert (kernel.numbers, kernel.names) == ([inode.number], [])
        await files.pages.forget_name(files.inodes.root, b"name")
        assert (kernel.numbers, kernel.names) == ([inode.number], [(files.inodes.root.number, b"name")])
        await files.pages.doubt(inode)
        assert kernel.attributes == [inode.number]

    run(main, kernel)


@pytest.mark.parametrize("refuses", [False, True])
def test_pages_that_turn_out_wrong_are_dropped_once_they_are_there(
    refuses: bool, caplog: pytest.LogCaptureFixture
) -> None:
    kernel = Slow()
    kernel.refuses = refuses

    async def main(files: Files) -> None:
        inode, other, running = files.file(), files.file("other"), cast(Verification, _Running())
        files.pages.watch(inode, running)
        files.pages.watch(inode, running)
        files.pages.watch(other, None)
        files.pages.bring(inode, SOURCE, [fetched()])
        while not kernel.under_way:
            await trio.sleep(0)
        for told in running.on_wrong.values():
            told()
        assert not files.pages.hold(inode), "whoever opens it reads it anew"
        await trio.testing.wait_all_tasks_blocked()
        assert kernel.numbers == []
        kernel.may.release()
        while not kernel.numbers:
            await trio.sleep(0)
        assert kernel.numbers == [inode.number]

    run(main, kernel)
    assert ("keeps wrong pages" in caplog.text) is refuses


class _Running:
    """A verification that has not ended."""

    def __init__(self) -> None:
        self.on_wrong: dict[Any, Callable[[], None]] = {}


@pytest.mark.usefixtures("without_bugs")
def test_without_a_kernel_nothing_is_told() -> None:
    async def main(files: Files) -> None:
        inode, running = files.file(), cast(Verification, _Running())
        files.pages.watch(inode, running)
        for told in running.on_wrong.values():
            told()
        assert not files.pages.hold(inode)
        files.pages.bring(inode, SOURCE, [fetched()])
        await files.pages.doubt(inode)
        await files.pages.forget(inode)
        await files.pages.close()

    run(main, None)
