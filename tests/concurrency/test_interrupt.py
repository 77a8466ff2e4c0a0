"""The sign that nobody waits any more: what it ends, what it leaves, and that nothing of it is left over."""

from __future__ import annotations

import errno
import threading
import time

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from sosfs.concurrency.interrupt import CURRENT, Interrupt, stoppable, waited
from sosfs.errors import StoreError
from tests.support.drive import fails

LONG = 60.0


def test_who_sleeps_is_woken_and_who_comes_later_does_not_sleep() -> None:
    interrupt, begun = Interrupt(), time.monotonic()
    sleepers = [threading.Thread(target=interrupt.sleep, args=(LONG,)) for _ in range(3)]
    for sleeper in sleepers:
        sleeper.start()
    while len(interrupt._sleepers) < len(sleepers):
        time.sleep(0.001)
    interrupt.set()
    for sleeper in sleepers:
        sleeper.join()
    interrupt.sleep(LONG)
    assert time.monotonic() - begun < LONG / 2
    assert interrupt._sleepers == []


def test_who_is_not_disturbed_sleeps_to_the_end() -> None:
    interrupt, begun = Interrupt(), time.monotonic()
    interrupt.sleep(0.02)
    assert time.monotonic() - begun >= 0.02
    assert interrupt._sleepers == []


def test_a_request_is_refused_once_it_is_set() -> None:
    interrupt = Interrupt()
    interrupt.check("HEAD")
    interrupt.set()
    with pytest.raises(StoreError) as caught:
        interrupt.check("HEAD")
    assert (caught.value.errno, caught.value.request) == (errno.EINTR, "HEAD")


def test_it_ends_all_waits_and_those_that_begin_later() -> None:
    async def main() -> None:
        interrupt, begun = Interrupt(), list[int]()

        async def wait() -> None:
            begun.append(1)
            with fails(errno.EINTR):
                await interrupt.ends(trio.sleep_forever)

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(wait)
            await wait_all_tasks_blocked()
            interrupt.set()
        await wait()
        assert len(begun) == 4
        assert interrupt._scopes == []

    trio.run(main)


def test_what_is_waited_for_comes_back_and_so_does_what_it_raises() -> None:
    async def answer() -> int:
        await trio.lowlevel.checkpoint()
        return 7

    async def failing() -> int:
        raise OSError(errno.EIO, "it fails")

    async def main() -> None:
        interrupt = Interrupt()
        for current in (None, interrupt):
            CURRENT.set(current)
            assert await waited(answer) == 7
            with fails(errno.EIO):
                await waited(failing)
        assert interrupt._scopes == []
        interrupt.set()
        with fails(errno.EINTR):
            await waited(answer)

    trio.run(main)


def test_who_is_cancelled_for_another_reason_is_not_told_that_it_was_interrupted() -> None:
    async def main() -> None:
        with trio.move_on_after(0) as scope:
            await Interrupt().ends(trio.sleep_forever)
        assert scope.cancelled_caught

    trio.run(main)


def test_what_can_be_stopped_by_itself_stops_with_all_the_rest_as_well() -> None:
    outer = Interrupt()
    CURRENT.set(outer)
    try:
        with stoppable() as inner:
            assert CURRENT.get() is inner
            inner.set()
            assert not outer.is_set
        with stoppable() as inner:
            outer.set()
            assert inner.is_set
        with stoppable() as inner:
            assert inner.is_set, "it was set before"
        with pytest.raises(OSError), stoppable():
            raise OSError
        assert CURRENT.get() is outer
        assert outer._followers == []
    finally:
        CURRENT.set(None)


@pytest.mark.parametrize("is_background", [True, False])
def test_what_can_be_stopped_is_waited_for_by_whom_the_rest_is(*, is_background: bool) -> None:
    with stoppable() as inner:
        assert inner.is_background, "nobody has asked for it"
    token = CURRENT.set(Interrupt(is_background=is_background))
    with stoppable() as inner:
        assert inner.is_background is is_background
    CURRENT.reset(token)
