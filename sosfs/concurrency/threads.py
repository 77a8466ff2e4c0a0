"""Threads that work while tasks wait, in bounded number.

A hop there and back costs 40 us of CPU, a third of what `trio.to_thread` takes (24 tasks side by side): the threads
stay for a while, nothing is copied for them, and ends that come together wake the loop once. What finds no thread free
waits in a `FairQueue`. A thread that had nothing to do for `IDLE` seconds ends, and with it its stack and its heap.
Work sees the context variables of its task: that is no copy, but one that is shared until somebody changes it.

Concurrency: `run` is the trio thread's; a thread touches the two queues, the count of threads under its lock, and what
it is given, nothing else.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable
from contextvars import Context, copy_context
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, TypeVar, cast

import outcome
import trio

from sosfs.concurrency import fairness
from sosfs.concurrency.fairness import FairQueue

T = TypeVar("T")

IDLE = 10.0  # seconds


@dataclass(frozen=True, eq=False, slots=True)
class _Job:
    """What one task waits for."""

    work: Callable[..., Any]
    arguments: tuple[Any, ...]
    task: trio.lowlevel.Task
    loop: trio.lowlevel.TrioToken
    context: Context


class Together:
    """A bound on how much several `Threads` do at once. Where it holds them back, those made first go on first."""

    def __init__(self, most: Callable[[], int]) -> None:
        """`most` is asked each time."""
        self._most = most
        self.members: list[Threads] = []

    @property
    def has_room(self) -> bool:
        """Whether one more may begin."""
        return self.under_way < self._most()

    @property
    def under_way(self) -> int:
        """How much is being done."""
        return sum(member.under_way for member in self.members)

    def go_on(self) -> None:
        """Begins what waits and may begin now; to be called also when `most` has grown."""
        for member in self.members:
            member.go_on()


class Threads:
    """Up to `most` threads, begun as they are needed; work that finds none free waits its turn."""

    def __init__(self, most: int | Callable[[], int], together: Together | None = None) -> None:
        """A `most` that may change is asked each time."""
        self._most = most if callable(most) else lambda: most
        self._together = together
        if together is not None:
            together.members.append(self)
        self.under_way = 0
        self._waiting: FairQueue[_Job] = FairQueue()
        self._begun = 0  # threads; under the lock, as is a job's way to them
        self._lock = threading.Lock()
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._ended: deque[tuple[trio.lowlevel.Task, outcome.Outcome[Any]]] = deque()

    @property
    def waiting(self) -> int:
        """How much waits for a thread."""
        return len(self._waiting)

    async def run(self, work: Callable[..., T], *arguments: Any) -> T:
        """What `work(*arguments)` returns or raises. Once it has begun it is waited for, by a cancelled task too.

        Cancelled before, while all threads are busy, it is never done.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        job = _Job(work, arguments, trio.lowlevel.current_task(), trio.lowlevel.current_trio_token(), copy_context())
        if self._has_room:
            self._begin(job)
            return cast(T, await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED))
        caller = fairness.current()
        self._waiting.put(caller, job)

        def withdraw(_: Callable[[], None]) -> trio.lowlevel.Abort:
            waited = self._waiting.withdraw(caller, job)
            return trio.lowlevel.Abort.SUCCEEDED if waited else trio.lowlevel.Abort.FAILED

        return cast(T, await trio.lowlevel.wait_task_rescheduled(withdraw))

    def close(self) -> None:
        """Ends the threads as each becomes free; nothing may be run afterwards."""
        with self._lock:
            for _ in range(self._begun):
                self._jobs.put(None)

    def go_on(self) -> None:
        """Begins what waits, as far as there is room."""
        while self._waiting and self._has_room:
            self._begin(self._waiting.take())

    @property
    def _has_room(self) -> bool:
        return self.under_way < self._most() and (self._together is None or self._together.has_room)

    def _begin(self, job: _Job) -> None:
        self.under_way += 1
        with self._lock:
            self._jobs.put(job)
            is_short = self._begun < self.under_way
            self._begun += is_short
        if is_short:
            threading.Thread(target=self._serve, name="waiting", daemon=True).start()

    def _serve(self) -> None:
        while (job := self._next()) is not None:
            self._ended.append((job.task, outcome.capture(job.context.run, job.work, *job.arguments)))
            with contextlib.suppress(trio.RunFinishedError):  # nobody is left to be told
                job.loop.run_sync_soon(self._tell, idempotent=True)
            del job  # what it holds is not kept while this waits for the next

    def _next(self) -> _Job | None:
        """What a thread does next, None for nothing any more."""
        while True:
            try:
                return self._jobs.get(timeout=IDLE)
            except Empty:
                with self._lock:
                    if self._jobs.empty():
                        self._begun -= 1
                        return None

    def _tell(self) -> None:
        while self._ended:
            self.under_way -= 1
            trio.lowlevel.reschedule(*self._ended.popleft())
        if self._together is not None:
            self._together.go_on()
        else:
            self.go_on()


LOCAL = Threads(16)  # of the process: for the disk, and for hashes; never closed, they end with it
