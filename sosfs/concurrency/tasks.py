"""Run tasks side by side and in the background.

`Background` owns the tasks that outlive a request; `each` runs many of a kind within one, `first` some of which the
first to end ends all. They keep `OSError` the vocabulary: an exception group never leaves this module.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, TypeVar

import outcome
import trio

from sosfs.concurrency.fairness import CALLER
from sosfs.concurrency.interrupt import CURRENT

log = logging.getLogger(__name__)
T = TypeVar("T")


async def each(job: Callable[[T], Awaitable[object]], items: Iterable[T], *, at_once: int) -> None:
    """Runs `job` for every item, at most `at_once` together.

    The first error stops the beginning of new ones, lets those under way end, and is raised: a request
    that was sent is never abandoned with its outcome unknown.
    """
    todo = iter(items)
    first: list[Exception] = []

    async def worker() -> None:
        for item in todo:
            if first:
                return
            try:
                await job(item)
            except Exception as error:  # noqa: BLE001 - it is kept, and raised when all have ended
                first.append(error)

    if at_once == 1:
        await worker()
    else:
        async with trio.open_nursery() as nursery:
            for _ in range(at_once):
                nursery.start_soon(worker)
    if first:
        raise first[0]


async def first(*jobs: Callable[[], Awaitable[T]]) -> T:
    """What the job that ends first returns or raises; the others are cancelled then."""
    ends: list[outcome.Outcome[T]] = []

    async def run(job: Callable[[], Awaitable[T]]) -> None:
        try:
            ends.append(outcome.Value(await job()))
        except Exception as error:  # noqa: BLE001 - it is kept, and raised when all have ended
            ends.append(outcome.Error(error))
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for job in jobs:
            nursery.start_soon(run, job)
    return ends[0].unwrap()


class Background:
    """Tasks of the mount that belong to no single request."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._idle: trio.CancelScope | None = None
        self._ended = trio.Event()

    async def part(self) -> Background:
        """One whose tasks can be ended before the others, with `end`."""
        started: Background = await self._nursery.start(self._own)
        return started

    @classmethod
    async def _own(cls, *, task_status: trio.TaskStatus[Background]) -> None:
        async with trio.open_nursery() as nursery:
            background = cls(nursery)
            task_status.started(background)
            with trio.CancelScope() as idle:
                background._idle = idle
                await trio.sleep_forever()
            nursery.cancel_scope.cancel()
        background._ended.set()

    async def end(self) -> None:
        """Cancels the tasks and returns when they have ended; a request that was sent is waited for."""
        if self._idle is not None:
            self._idle.cancel()
            await self._ended.wait()

    def spawn(self, task: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Starts a task. What it raises is logged and ends that task alone: a bug never ends the mount."""
        caller = CALLER.get()
        self._nursery.start_soon(self._guarded, task, caller() if caller else 0)

    async def _guarded(self, task: Callable[[], Coroutine[Any, Any, None]], process: int) -> None:
        CURRENT.set(None)  # it outlives the request that has started it
        CALLER.set(lambda: process)
        try:
            await task()
        except Exception:
            log.exception("a background task failed")
