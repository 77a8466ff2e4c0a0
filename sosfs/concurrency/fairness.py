"""Whose turn it is among those who wait: each caller's in a circle, so that who asks for much keeps nobody waiting.

A caller is the process that a kernel request comes from. What goes on for it in the background (write-behind, the
upload of a file that it has closed) is a caller of its own, and so is, as one, all that no process has asked for.

Concurrency: trio thread only.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from contextvars import ContextVar
from typing import Generic, NamedTuple, TypeVar

from sosfs.concurrency.interrupt import CURRENT

T = TypeVar("T")

# Tells the id of the process that the running task works for; called only where something has to wait.
CALLER: ContextVar[Callable[[], int] | None] = ContextVar("caller", default=None)


class Caller(NamedTuple):
    """Whom a wait is for. `process` is 0 where nobody has asked."""

    process: int
    waits: bool  # else it is in the background


def current() -> Caller:
    """Whom the running task works for."""
    process = CALLER.get()
    interrupt = CURRENT.get()
    return Caller(process() if process else 0, interrupt is not None and not interrupt.is_background)


class FairQueue(Generic[T]):
    """Items by caller: one of each in turn, those of one caller in the order in which they came."""

    def __init__(self) -> None:
        self._queues: OrderedDict[Caller, deque[T]] = OrderedDict()  # whose turn is next comes first

    def __bool__(self) -> bool:
        return bool(self._queues)

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def put(self, caller: Caller, item: T) -> None:
        """Lets an item wait."""
        self._queues.setdefault(caller, deque()).append(item)

    @property
    def first(self) -> T:
        """What `take` would return. Raises StopIteration where nothing waits."""
        return next(iter(self._queues.values()))[0]

    def take(self) -> T:
        """Whose turn it is; its caller's next one comes after those of all others. Raises KeyError if none waits."""
        caller, queue = self._queues.popitem(last=False)
        item = queue.popleft()
        if queue:
            self._queues[caller] = queue
        return item

    def withdraw(self, caller: Caller, item: T) -> bool:
        """Takes an item out, if it still waits; whether it did."""
        queue = self._queues.get(caller, deque())
        if item not in queue:
            return False
        queue.remove(item)
        if not queue:
            del self._queues[caller]
        return True
