"""Turns: one at a time, in the order in which they came, and a cancelled one does not hold up the others."""

from __future__ import annotations

import errno

import trio
import trio.testing

from sosfs.concurrency.interrupt import CURRENT, Interrupt
from sosfs.concurrency.locks import FairLock
from tests.support.drive import fails


def test_one_at_a_time_in_order() -> None:
    order: list[str] = []

    async def main() -> None:
        turns, may = FairLock(), trio.Event()

        async def one(name: str) -> None:
            async with turns:
                order.append(f"{name} begins")
                await may.wait()
                order.append(f"{name} ends")

        async with trio.open_nursery() as nursery:
            for name in "abc":
                nursery.start_soon(one, name)
                await trio.testing.wait_all_tasks_blocked()
            assert order == ["a begins"]
            may.set()
        assert not turns.taken

    trio.run(main)
    assert order == [f"{name} {what}" for name in "abc" for what in ("begins", "ends")]


def test_who_comes_as_a_turn_ends_waits_behind_who_waits() -> None:
    """The turn is handed on before the one that gets it runs again."""
    order: list[str] = []

    async def main() -> None:
        turns = FairLock()

        async def one(name: str) -> None:
            async with turns:
                order.append(f"{name} begins")
                await trio.testing.wait_all_tasks_blocked()
                order.append(f"{name} ends")

        async with trio.open_nursery() as nursery:
            async with turns:
                nursery.start_soon(one, "waiting")
                await trio.testing.wait_all_tasks_blocked()
            await one("late")

    trio.run(main)
    assert order == [f"{name} {what}" for name in ("waiting", "late") for what in ("begins", "ends")]


def test_who_no_longer_waits_is_passed_over() -> None:
    done: list[str] = []

    async def main() -> None:
        turns, may = FairLock(), trio.Event()

        async def one(name: str) -> None:
            async with turns:
                await may.wait()
                done.append(name)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one, "a")
            await trio.testing.wait_all_tasks_blocked()
            with trio.move_on_after(0.01):
                await one("b")
            nursery.start_soon(one, "c")
            may.set()
        assert not turns.taken

    trio.run(main)
    assert done == ["a", "c"]


def test_who_nobody_waits_for_any_more_waits_for_no_turn() -> None:
    async def main() -> None:
        turns, gone, ended = FairLock(), Interrupt(), trio.Event()

        async def one() -> None:
            CURRENT.set(gone)
            with fails(errno.EINTR):
                await turns.__aenter__()
            ended.set()

        async with trio.open_nursery() as nursery, turns:
            nursery.start_soon(one)
            await trio.testing.wait_all_tasks_blocked()
            gone.set()
            await trio.testing.wait_all_tasks_blocked()
            assert ended.is_set()
        assert not turns.taken

    trio.run(main)


def test_an_error_ends_the_turn() -> None:
    async def main() -> None:
        turns = FairLock()
        try:
            async with turns:
                raise OSError
        except OSError:
            pass
        assert not turns.taken

    trio.run(main)
