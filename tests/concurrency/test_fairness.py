"""Who waits for a thread or for room is served in turn with others: counted in positions, not in seconds."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from sosfs.concurrency import threads as threads_module
from sosfs.concurrency.budgets import Budget
from sosfs.concurrency.fairness import CALLER, Caller, FairQueue, current
from sosfs.concurrency.interrupt import CURRENT, Interrupt
from sosfs.concurrency.tasks import Background
from sosfs.concurrency.threads import Threads, Together
from tests.support.waiting import until

GREP, EDITOR = 1000, 2000
Job = Callable[[], Awaitable[object]]


async def as_caller(process: int, job: Job) -> None:
    """Does a job for a kernel request of a process."""
    CALLER.set(lambda: process)
    CURRENT.set(Interrupt())
    await job()


def test_what_goes_on_in_the_background_is_a_caller_of_its_own() -> None:
    async def main() -> None:
        assert current() == Caller(0, waits=False)
        CALLER.set(lambda: GREP)
        for interrupt, waits in ((Interrupt(), True), (Interrupt(is_background=True), False), (None, False)):
            CURRENT.set(interrupt)
            assert current() == Caller(GREP, waits)

    trio.run(main)


def test_each_caller_gets_every_other_turn() -> None:
    queue = FairQueue[str]()
    one, other, behind = Caller(GREP, True), Caller(EDITOR, True), Caller(GREP, False)
    for number in range(4):
        queue.put(one, f"g{number}")
    queue.put(other, "e0")
    queue.put(behind, "b0")
    queue.put(other, "e1")
    assert len(queue) == 7
    assert queue.withdraw(one, "g2") and not queue.withdraw(one, "g2")
    assert [queue.take() for _ in range(len(queue))] == ["g0", "e0", "b0", "g1", "e1", "g3"]
    assert not queue


@contextmanager
def held(threads: Threads) -> Iterator[threading.Event]:
    """Lets all work wait until the event is set, and ends the threads."""
    gate = threading.Event()
    try:
        yield gate
    finally:
        gate.set()
        threads.close()


async def order(run: Callable[[str], Awaitable[object]], release: Callable[[], None]) -> list[str]:
    """In which order what an editor and the background want is done, when a grep has asked for 50 before."""
    done: list[str] = []

    async def one(name: str) -> None:
        await run(name)
        done.append(name)

    async with trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(as_caller, GREP, partial(one, f"grep {number}"))
            await wait_all_tasks_blocked()
        nursery.start_soon(as_caller, EDITOR, partial(one, "editor"))
        await wait_all_tasks_blocked()
        nursery.start_soon(one, "background")
        await wait_all_tasks_blocked()
        release()
    return done


def test_a_thread_goes_to_each_caller_in_turn() -> None:
    threads = Threads(1)
    with held(threads) as gate:
        done = trio.run(order, lambda name: threads.run(gate.wait, 20), gate.set)
    assert done[0] == "grep 0"  # it had the thread already
    assert set(done[1:4]) == {"grep 1", "editor", "background"}, done
    assert done[4:] == [f"grep {number}" for number in range(2, 50)]


def test_room_goes_to_each_caller_in_turn() -> None:
    async def main() -> list[str]:
        budget, gate = Budget(10), trio.Event()

        async def run(_: str) -> None:
            async with budget.holding(10):
                await gate.wait()

        return await order(run, gate.set)

    done = trio.run(main)
    assert set(done[1:4]) == {"grep 1", "editor", "background"}, done


def test_what_a_process_left_behind_waits_in_its_own_queue_not_in_that_of_others() -> None:
    """Uploads that a copy of many files has left in the background do not come before those of another process."""
    threads, done = Threads(1), list[str]()

    async def upload(name: str, gate: threading.Event) -> None:
        await threads.run(gate.wait, 20)
        done.append(name)

    async def main(gate: threading.Event) -> None:
        async with trio.open_nursery() as nursery:
            background = Background(nursery)

            async def close(name: str) -> None:
                background.spawn(partial(upload, name, gate))

            for number in range(20):
                await as_caller(GREP, partial(close, f"copy {number}"))
                await wait_all_tasks_blocked()
            await as_caller(EDITOR, partial(close, "editor"))
            await wait_all_tasks_blocked()
            gate.set()

    with held(threads) as gate:
        trio.run(main, gate)
    assert "editor" in done[1:3], done


def test_those_named_first_come_before_others_where_all_are_held_back() -> None:
    together = Together(lambda: 1)
    first, second, done = Threads(1, together), Threads(1, together), list[str]()

    async def one(threads: Threads, name: str, gate: threading.Event) -> None:
        await threads.run(gate.wait, 20)
        done.append(name)

    async def main(gate: threading.Event) -> None:
        async with trio.open_nursery() as nursery:
            for name in ("bulk 0", "bulk 1"):
                nursery.start_soon(one, second, name, gate)
                await wait_all_tasks_blocked()
            nursery.start_soon(one, first, "small", gate)
            await wait_all_tasks_blocked()
            assert (together.under_way, first.waiting, second.waiting) == (1, 1, 1)
            gate.set()

    with held(first) as gate, held(second):
        trio.run(main, gate)
    assert done == ["bulk 0", "small", "bulk 1"]


def test_more_may_begin_when_the_bound_grows() -> None:
    most = [1]
    threads = Threads(lambda: most[0])

    async def main(gate: threading.Event) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(threads.run, gate.wait, 20)
            await wait_all_tasks_blocked()
            assert (threads.under_way, threads.waiting) == (1, 3)
            most[0] = 3
            threads.go_on()
            assert (threads.under_way, threads.waiting) == (3, 1)
            gate.set()

    with held(threads) as gate:
        trio.run(main, gate)
    assert threads.under_way == 0


def test_who_waits_can_be_called_off_and_is_never_begun() -> None:
    threads, begun = Threads(1), list[int]()

    async def main(gate: threading.Event) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(threads.run, gate.wait, 20)
            await wait_all_tasks_blocked()
            with trio.CancelScope() as scope:
                nursery.start_soon(wait_all_then, scope)
                await threads.run(begun.append, 1)
            gate.set()
        assert scope.cancelled_caught

    async def wait_all_then(scope: trio.CancelScope) -> None:
        await wait_all_tasks_blocked()
        scope.cancel()

    with held(threads) as gate:
        trio.run(main, gate)
    assert begun == [] and threads.waiting == 0


def test_idle_threads_end_and_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads_module, "IDLE", 0.05)
    threads = Threads(8)
    busy: set[threading.Thread] = set()

    def wait(gate: threading.Event) -> None:
        busy.add(threading.current_thread())
        gate.wait(20)

    async def main() -> None:
        for _ in range(3):
            gate = threading.Event()
            async with trio.open_nursery() as nursery:
                for _ in range(8):
                    nursery.start_soon(threads.run, wait, gate)
                await trio.to_thread.run_sync(until, lambda: len(busy) == 8, "each has a thread")
                gate.set()
            await trio.to_thread.run_sync(
                until, lambda: not any(map(threading.Thread.is_alive, busy)), "they have ended"
            )
            busy.clear()
            assert await threads.run(divmod, 7, 2) == (3, 1)

    trio.run(main)
    threads.close()


def test_no_job_is_left_alone_while_threads_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that gives up waiting and a job that comes at that moment: pauses around `IDLE`."""
    monkeypatch.setattr(threads_module, "IDLE", 0.001)
    threads = Threads(2)

    async def main() -> None:
        for number in range(300):
            with trio.fail_after(20):
                assert await threads.run(divmod, number, 7) == divmod(number, 7)
            await trio.sleep(0.0005 + (number % 10) * 0.0001)

    trio.run(main)
    threads.close()
