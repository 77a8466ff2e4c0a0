"""How requests get their threads: the answer comes back, no more than so many at once, none is left alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import trio

from sosfs.concurrency.threads import Threads
from tests.support.waiting import until


@pytest.fixture
def threads() -> Iterator[Threads]:
    threads = Threads(3)
    yield threads
    threads.close()


def test_what_work_returns_and_raises_comes_back(threads: Threads) -> None:
    async def main() -> None:
        assert await threads.run(divmod, 7, 2) == (3, 1)
        with pytest.raises(ZeroDivisionError):
            await threads.run(divmod, 7, 0)
        assert await threads.run(threading.get_ident) != threading.get_ident()

    trio.run(main)
    trio.run(main)  # a second loop in the same process


def test_no_more_than_so_many_at_once_and_all_of_them(threads: Threads) -> None:
    at_once, most, lock = 0, 0, threading.Lock()
    together = threading.Barrier(3)

    def work(number: int) -> int:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        together.wait(20)  # comes back only where three are under way
        with lock:
            at_once -= 1
        return number

    async def main() -> list[int]:
        found: list[int] = []

        async def one(number: int) -> None:
            found.append(await threads.run(work, number))

        async with trio.open_nursery() as nursery:
            for number in range(12):
                nursery.start_soon(one, number)
        return sorted(found)

    assert trio.run(main) == list(range(12))
    assert most == 3


def test_a_cancelled_task_waits_for_what_has_begun_and_begins_nothing(threads: Threads) -> None:
    begun, may_end, done = threading.Event(), threading.Event(), []

    def work() -> None:
        begun.set()
        may_end.wait(20)
        done.append(1)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(threads.run, work)
            await trio.to_thread.run_sync(begun.wait, 20)
            nursery.cancel_scope.cancel()
            may_end.set()
        assert done == [1]
        with trio.CancelScope() as scope:
            scope.cancel()
            await threads.run(work)
        assert scope.cancelled_caught and done == [1]

    trio.run(main)


def test_closed_threads_end() -> None:
    before = threading.active_count()
    threads = Threads(4)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(threads.run, time.sleep, 0.05)

    trio.run(main)
    threads.close()
    until(lambda: threading.active_count() <= before, "all threads have ended")
