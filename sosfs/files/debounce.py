"""Start tasks a moment later, when what they would do may have become needless.

Concurrency: trio thread only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from typing import Any

import trio

from sosfs.cache.blocks import Spawn

DELAY = 0.5  # seconds that a recorded draft waits for a rename, a rewrite or an unlink
VERSIONED_DELAY = 5.0  # the same where each upload is a version for ever, and an object may have but 1,000
COMPANY = 0.05  # seconds that those recorded after it may rest less


class Debounce:
    """Tasks that rest; one alarm for many, since one a file takes 5 % of the CPU of a copy of small files.

    `delay` is set before the first task comes.
    """

    def __init__(self, spawn: Spawn) -> None:
        self.delay = DELAY
        self._spawn = spawn
        self._tasks: deque[tuple[float, Context, Callable[[], Coroutine[Any, Any, None]]]] = deque()  # by trio times

    def add(self, task: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Has a task begin after `delay`, in the context of whoever adds it."""
        self._tasks.append((trio.current_time() + self.delay, copy_context(), task))
        if len(self._tasks) == 1:
            self._spawn(self._release)

    async def _release(self) -> None:
        while self._tasks:
            await trio.sleep_until(self._tasks[0][0])
            while self._tasks and self._tasks[0][0] <= trio.current_time() + COMPANY:
                _, context, task = self._tasks.popleft()
                context.run(self._spawn, task)
