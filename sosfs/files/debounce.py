"""Start tasks a moment later, when what they would do may have become needless.

A file that was changed will likely be changed again; a new one is renamed or given its mode and times right behind its
close, or not at all. So that one rests less, and goes up while the next ones are made.

Concurrency: trio thread only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from enum import Enum
from functools import partial
from typing import Any

import trio

from sosfs.cache.blocks import Spawn

DELAY = 0.5  # seconds that a recorded draft waits for a rename, a rewrite or an unlink
VERSIONED_DELAY = 5.0  # the same of any where each upload is a version for ever, and an object may have but 1,000
COMPANY = 0.05  # seconds that those recorded after it may rest less


Task = Callable[[], Coroutine[Any, Any, None]]


class Rest(Enum):
    """How long a task rests, as a part of `DELAY`."""

    WHOLE = 1.0
    SHORT = 0.2


class Debounce:
    """Tasks that rest; one alarm for many, since one a file takes 5 % of the CPU of a copy of small files.

    `delay` is set before the first task comes, where that of all is another one.
    """

    def __init__(self, spawn: Spawn) -> None:
        self.delay: float | None = None
        self._spawn = spawn
        self._tasks: dict[Rest, deque[tuple[float, Context, Task]]] = {rest: deque() for rest in Rest}  # by trio times

    def add(self, task: Task, rest: Rest = Rest.WHOLE) -> None:
        """Has a task begin after its rest, in the context of whoever adds it."""
        tasks = self._tasks[rest]
        seconds = rest.value * DELAY if self.delay is None else self.delay
        tasks.append((trio.current_time() + seconds, copy_context(), task))
        if len(tasks) == 1:
            self._spawn(partial(self._release, tasks))

    async def _release(self, tasks: deque[tuple[float, Context, Task]]) -> None:
        while tasks:
            await trio.sleep_until(tasks[0][0])
            while tasks and tasks[0][0] <= trio.current_time() + COMPANY:
                _, context, task = tasks.popleft()
                context.run(self._spawn, task)
