"""Room in bytes: who gets it, who waits, and what is left by who waits no more."""

from __future__ import annotations

from functools import partial

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from sosfs.concurrency.budgets import Allowance, Backlog, Budget
from sosfs.concurrency.interrupt import CURRENT, Interrupt


class Holders:
    """Tasks that hold room of a budget until they are told to end."""

    def __init__(self, limit: int, nursery: trio.Nursery) -> None:
        self.budget = Budget(limit)
        self.inside: list[str] = []
        self._nursery = nursery
        self._ends: dict[str, trio.Event] = {}
        self._scopes: dict[str, trio.CancelScope] = {}

    async def begin(self, name: str, size: int) -> None:
        """Returns when it has its room or waits for it."""
        self._ends[name], self._scopes[name] = trio.Event(), trio.CancelScope()
        self._nursery.start_soon(self._hold, name, size)
        await wait_all_tasks_blocked()

    async def _hold(self, name: str, size: int) -> None:
        with self._scopes[name]:
            async with self.budget.holding(size):
                self.inside.append(name)
                await self._ends[name].wait()
                self.inside.remove(name)

    async def end(self, name: str) -> None:
        """It gives its room back."""
        self._ends[name].set()
        await wait_all_tasks_blocked()

    async def call_off(self, name: str) -> None:
        """It waits no more."""
        self._scopes[name].cancel()
        await wait_all_tasks_blocked()


def test_who_came_first_is_not_overtaken_by_who_wants_less() -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            holders = Holders(10, nursery)
            for name, size in (("a", 6), ("large", 8), ("small", 2)):
                await holders.begin(name, size)
            assert holders.inside == ["a"]
            await holders.end("a")
            assert set(holders.inside) == {"large", "small"}
            await holders.begin("next", 1)
            assert "next" not in holders.inside
            await holders.end("small")
            assert holders.inside == ["large", "next"]
            for name in ("large", "next"):
                await holders.end(name)
            assert holders.budget.used == 0

    trio.run(main)


def test_who_wants_more_than_there_is_gets_all_of_it_alone() -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            holders = Holders(10, nursery)
            for name, size in (("huge", 99), ("small", 1)):
                await holders.begin(name, size)
            assert holders.inside == ["huge"]
            await holders.end("huge")
            assert holders.inside == ["small"]
            await holders.end("small")
            assert holders.budget.used == 0

    trio.run(main)


def test_who_waits_no_more_keeps_nobody_waiting() -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            holders = Holders(10, nursery)
            for name, size in (("a", 6), ("large", 8), ("small", 2)):
                await holders.begin(name, size)
            await holders.call_off("large")
            assert holders.inside == ["a", "small"]
            for name in ("a", "small"):
                await holders.end(name)
            assert holders.budget.used == 0

    trio.run(main)


def test_room_that_comes_when_nobody_waits_for_it_any_more_is_given_back() -> None:
    async def main() -> None:
        budget = Budget(10)
        scope = trio.CancelScope()

        async def wait() -> None:
            with scope:
                async with budget.holding(10):
                    raise AssertionError("it was called off")

        async with trio.open_nursery() as nursery, budget.holding(10):
            nursery.start_soon(wait)
            await wait_all_tasks_blocked()
            scope.cancel()  # it runs after the room is its own
        assert budget.used == 0

    trio.run(main)


def test_a_request_that_nobody_waits_for_any_more_begins_nothing() -> None:
    async def main() -> None:
        budget, interrupt = Budget(10), Interrupt()

        async def wait() -> None:
            CURRENT.set(interrupt)
            with pytest.raises(InterruptedError):
                async with budget.holding(1):
                    raise AssertionError("it was called off")

        async with budget.holding(10), trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await wait_all_tasks_blocked()
            interrupt.set()
        assert budget.used == 0

    trio.run(main)


def test_an_allowance_ends_at_its_limit() -> None:
    allowance = Allowance(10)
    assert [allowance.grant(more) for more in (6, 5, 4, 1)] == [True, False, True, False]
    assert allowance.used == 10


def test_writers_go_on_when_little_enough_is_left() -> None:
    async def main() -> None:
        backlog, done = Backlog(), list[int]()
        backlog.waiting = 10

        async def write(limit: int) -> None:
            await backlog.is_under(limit)
            done.append(limit)

        async with trio.open_nursery() as nursery:
            for limit in (10, 1, 7, 4):
                nursery.start_soon(partial(write, limit))
            await wait_all_tasks_blocked()
            assert done == [10]
            for _ in range(3):
                backlog.fell(3)
                await wait_all_tasks_blocked()
        assert (done, backlog.waiting) == ([10, 7, 4, 1], 1)

    trio.run(main)


def test_a_writer_that_nobody_waits_for_any_more_waits_for_no_room() -> None:
    async def main() -> None:
        backlog, interrupt, ended = Backlog(), Interrupt(), trio.Event()
        backlog.waiting = 10

        async def write() -> None:
            CURRENT.set(interrupt)
            with pytest.raises(InterruptedError):
                await backlog.is_under(1)
            ended.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            await wait_all_tasks_blocked()
            interrupt.set()
            await wait_all_tasks_blocked()
            assert ended.is_set()
            backlog.fell(10)

    trio.run(main)
