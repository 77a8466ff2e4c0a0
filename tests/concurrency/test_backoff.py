"""The pauses between tries: they double, begin anew when they are cut short, and somebody can be woken by itself."""

from __future__ import annotations

import time

import trio
import trio.testing

from sosfs.concurrency.backoff import Backoff, Doubling


def test_pauses_double_up_to_the_longest() -> None:
    pauses = Doubling(0.5, 3.0)
    assert [pauses.take() for _ in range(5)] == [0.5, 1.0, 2.0, 3.0, 3.0]
    pauses.reset()
    assert pauses.take() == 0.5


def test_a_pause_that_was_cut_short_begins_the_row_anew() -> None:
    async def scene() -> None:
        backoff, pauses = Backoff(), Doubling(1.0, 100.0)
        await backoff.wait(pauses)
        await backoff.wait(pauses)
        assert (trio.current_time(), pauses.now) == (3.0, 4.0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(backoff.wait, pauses)
            await trio.testing.wait_all_tasks_blocked()
            backoff.hurry()
        assert (trio.current_time(), pauses.now) == (3.0, 1.0)

    trio.run(scene, clock=trio.testing.MockClock(autojump_threshold=0.01))  # it begins at 0


def test_one_of_those_who_wait_is_woken() -> None:
    ended: list[tuple[str, float]] = []

    async def scene() -> None:
        backoff = Backoff()

        async def wait(who: str, seconds: float) -> None:
            pauses = Doubling(seconds, 1000.0)
            await backoff.wait(pauses, who)
            ended.append((who, pauses.now))

        async with trio.open_nursery() as nursery:
            for who, seconds in (("a", 100.0), ("b", 50.0), ("a", 10.0)):
                nursery.start_soon(wait, who, seconds)
            await trio.testing.wait_all_tasks_blocked()
            assert backoff.ends["a"] < backoff.ends["b"] < time.time() + 60
            backoff.hurry_one("a")
            await trio.testing.wait_all_tasks_blocked()
            assert set(backoff.ends) == {"b"}
            backoff.hurry()
        assert not backoff.ends

    trio.run(scene)
    assert sorted(ended) == [("a", 10.0), ("a", 100.0), ("b", 50.0)], "each was cut short"
