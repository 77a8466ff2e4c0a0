"""Tasks that rest before they begin: when, in which order, and for whom."""

from __future__ import annotations

from contextvars import ContextVar
from functools import partial

import trio
import trio.testing

from sosfs.concurrency.tasks import Background
from sosfs.files.debounce import COMPANY, DELAY, Debounce, Rest

WHO = ContextVar("WHO", default="nobody")


def begun(times: dict[str, float], *, short: str = "") -> dict[str, tuple[float, str]]:
    """When each of those that were added at these times has begun, rounded, and as whose; `short` are to rest less."""
    found: dict[str, tuple[float, str]] = {}

    async def task(name: str) -> None:
        found[name] = round(trio.current_time(), 3), WHO.get()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            debounce = Debounce(Background(nursery).spawn)
            for name, at in times.items():
                await trio.sleep_until(at)
                WHO.set(name)
                debounce.add(partial(task, name), Rest.SHORT if name in short else Rest.WHOLE)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))  # it begins at 0
    return found


def test_each_begins_after_its_own_rest_as_who_added_it() -> None:
    assert begun({"a": 0.0, "b": DELAY / 2, "c": 9.0}) == {
        "a": (DELAY, "a"),
        "b": (1.5 * DELAY, "b"),
        "c": (9 + DELAY, "c"),
    }


def test_those_that_were_added_close_together_begin_together() -> None:
    assert begun({"a": 0.0, "b": COMPANY / 2, "c": 2 * COMPANY}) == {
        "a": (DELAY, "a"),
        "b": (DELAY, "b"),
        "c": (DELAY + 2 * COMPANY, "c"),
    }


def test_who_rests_less_waits_for_nobody_who_was_there_before() -> None:
    assert begun({"a": 0.0, "b": COMPANY}, short="b") == {
        "a": (DELAY, "a"),
        "b": (round(COMPANY + Rest.SHORT.value * DELAY, 3), "b"),
    }
