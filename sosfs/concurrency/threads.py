"""Threads that work or wait while tasks go on: how a task gets one, and how it is told the end.

A hop there and back costs 40 us of CPU, a third of what `trio.to_thread` takes (24 tasks side by side): the threads
stay, and ends that come together wake the loop once. Work sees the context variables of its task: that is no copy,
but one that is shared until somebody changes it.

Concurrency: `run` is the trio thread's; a thread touches the two queues and what it is given, nothing else.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable
from contextvars import Context, copy_context
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeVar, cast

import outcome
import trio

T = TypeVar("T")


class _Job(NamedTuple):
    """What one task waits for. Whoever takes the `claim` out of its list decides: the thread does it, or nobody."""

    claim: list[None]

    work: Callable[..., Any]
    arguments: tuple[Any, ...]
    task: trio.lowlevel.Task
    loop: trio.lowlevel.TrioToken
    context: Context


class Threads:
    """Up to `most` threads, begun as they are needed; work that finds none free waits its turn."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._begun = 0
        self._under_way = 0
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._ended: deque[tuple[trio.lowlevel.Task, outcome.Outcome[Any]]] = deque()

    async def run(self, work: Callable[..., T], *arguments: Any) -> T:
        """What `work(*arguments)` returns or raises. Once it has begun it is waited for, by a cancelled task too.

        Cancelled before, while all threads are busy, it is never done.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        self._under_way += 1
        if self._begun < min(self._most, self._under_way):
            self._begun += 1
            threading.Thread(target=self._serve, name="waiting", daemon=True).start()
        task, loop = trio.lowlevel.current_task(), trio.lowlevel.current_trio_token()
        claim: list[None] = [None]
        self._jobs.put(_Job(claim, work, arguments, task, loop, copy_context()))

        def withdraw(_: Callable[[], None]) -> trio.lowlevel.Abort:
            return trio.lowlevel.Abort.SUCCEEDED if _claimed(claim) else trio.lowlevel.Abort.FAILED

        try:
            return cast(T, await trio.lowlevel.wait_task_rescheduled(withdraw))
        finally:
            self._under_way -= 1

    def close(self) -> None:
        """Ends the threads as each becomes free; nothing may be run afterwards."""
        for _ in range(self._begun):
            self._jobs.put(None)

    def _serve(self) -> None:
        while job := self._jobs.get():
            if not _claimed(job.claim):
                continue
            self._ended.append((job.task, outcome.capture(job.context.run, job.work, *job.arguments)))
            with contextlib.suppress(trio.RunFinishedError):  # nobody is left to be told
                job.loop.run_sync_soon(self._tell, idempotent=True)
            del job  # what it holds is not kept while this waits for the next

    def _tell(self) -> None:
        while self._ended:
            trio.lowlevel.reschedule(*self._ended.popleft())


LOCAL = Threads(16)  # of the process: for the disk, and for hashes; never closed, they end with it


def _claimed(claim: list[None]) -> bool:
    """Whether the job is this caller's now; atomic, as `list.pop` is."""
    try:
        claim.pop()
    except IndexError:
        return False
    return True
