"""Tasks side by side and in the background: what an error ends, what goes on, and who is told of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from sosfs.concurrency.fairness import CALLER, Caller, current
from sosfs.concurrency.interrupt import CURRENT, Interrupt
from sosfs.concurrency.tasks import Background, each, first


class Jobs:
    """Jobs that wait until they are told to end; some fail at once, and all others then when they end."""

    def __init__(self, *failing: int) -> None:
        self.begun: list[int] = []
        self.ended: list[int] = []
        self.may_end = trio.Event()
        self.failing = failing

    async def do(self, number: int) -> None:
        self.begun.append(number)
        if number in self.failing:
            raise OSError(number, "it fails")
        await self.may_end.wait()
        self.ended.append(number)
        if self.failing:
            raise OSError(number, "it fails after another")


@pytest.mark.parametrize("at_once", [1, 3])
def test_each_item_is_done_and_no_more_of_them_at_once_than_allowed(at_once: int) -> None:
    async def main() -> None:
        jobs = Jobs()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: each(jobs.do, range(7), at_once=at_once))
            await wait_all_tasks_blocked()
            assert jobs.begun == list(range(at_once))
            jobs.may_end.set()
        assert sorted(jobs.ended) == list(range(7))

    trio.run(main)


@pytest.mark.parametrize(("failing", "at_once", "begun"), [((2,), 4, 3), ((0,), 3, 1), ((0,), 1, 1), ((1, 0), 2, 1)])
def test_the_first_error_lets_nothing_begin_and_all_end_that_has_begun(
    failing: tuple[int, ...], at_once: int, begun: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that was sent is not given up: nobody would know whether it was done."""
    monkeypatch.setattr("trio._core._run._r.random", lambda: 1.0)  # tasks run in the order in which they were begun
    outcomes: list[OSError] = []

    async def main() -> None:
        jobs = Jobs(*failing)

        async def run() -> None:
            try:
                await each(jobs.do, range(9), at_once=at_once)
            except OSError as error:
                outcomes.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await wait_all_tasks_blocked()
            assert len(jobs.begun) == begun
            assert bool(outcomes) is (begun == 1), "it waits for those that have begun"
            jobs.may_end.set()
        assert len(jobs.begun) == begun
        assert set(jobs.ended) == set(jobs.begun) - set(failing)
        assert [error.errno for error in outcomes] == [jobs.begun[-1]]

    trio.run(main)


def test_of_several_jobs_the_first_to_end_tells_and_ends_the_others() -> None:
    """Whatever these raise then."""
    ended: list[str] = []

    async def slow() -> str:
        try:
            await trio.sleep_forever()
        finally:
            ended.append("slow")
        return "never"

    async def bad_loser() -> str:
        try:
            await trio.sleep_forever()
        finally:
            raise OSError("it was disturbed")

    async def quick() -> str:
        await wait_all_tasks_blocked()
        return "quick"

    async def failing() -> str:
        await wait_all_tasks_blocked()
        raise OSError("it fails")

    async def main() -> None:
        for loser in (slow, bad_loser):
            assert await first(loser, quick) == "quick"
            with pytest.raises(OSError, match="it fails"):
                await first(loser, failing)
        assert ended == ["slow", "slow"]

    trio.run(main)


def in_background(play: Callable[[Background], Awaitable[None]]) -> None:
    done: list[bool] = []

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await play(Background(nursery))
            done.append(True)
            nursery.cancel_scope.cancel()

    trio.run(main)
    assert done


def test_what_a_background_task_raises_is_told_in_the_log_and_ends_no_other(caplog: pytest.LogCaptureFixture) -> None:
    done: list[str] = []

    async def failing() -> None:
        raise ValueError("a bug")

    async def good() -> None:
        await wait_all_tasks_blocked()
        done.append("good")

    async def play(background: Background) -> None:
        background.spawn(good)
        background.spawn(failing)
        await wait_all_tasks_blocked()
        background.spawn(good)
        await wait_all_tasks_blocked()

    in_background(play)
    assert done == ["good", "good"]
    assert "a bug" in caplog.text


def test_a_background_task_outlives_the_request_that_has_begun_it_and_counts_for_its_process() -> None:
    found: list[Any] = []
    interrupt = Interrupt()

    async def look() -> None:
        gone.append(True)
        found.extend((CURRENT.get(), current()))

    gone: list[bool] = []

    async def play(background: Background) -> None:
        CURRENT.set(interrupt)
        CALLER.set(lambda: 0 if gone else 7)
        interrupt.set()
        background.spawn(look)
        await wait_all_tasks_blocked()

    in_background(play)
    assert found == [None, Caller(7, waits=False)]


def test_a_part_of_the_background_ends_before_the_rest_and_is_waited_for() -> None:
    ends: list[str] = []

    async def task(name: str) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await wait_all_tasks_blocked()
            ends.append(name)

    async def play(background: Background) -> None:
        part = await background.part()
        part.spawn(lambda: task("part"))
        background.spawn(lambda: task("rest"))
        await wait_all_tasks_blocked()
        await background.end()
        assert ends == [], "it ends with the mount"
        await part.end()
        assert ends == ["part"]

    in_background(play)
    assert ends == ["part", "rest"]
