"""The sign that nobody waits for a request any more.

Whoever watches the callers sets it, in the trio thread. A thread that makes an HTTP request for it sees that within
a second, in the middle of a transfer or asleep between two tries, and ends with EINTR: whether the server had done
it by then nobody knows, as after a lost answer. A task that waits for its turn, or for what others fetch, ends with
EINTR at once (`waited`), with nothing begun.

The sign goes with the task that serves a kernel request and those it starts side by side, in a context variable;
tasks of the background have none, or one that is theirs alone.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, TypeVar

from sosfs.errors import StoreError

if TYPE_CHECKING:
    import trio

T = TypeVar("T")


class Interrupt:
    """Set once, for good. One may stand for any number of requests.

    `is_background`: no program waits for those.
    """

    __slots__ = ("_followers", "_scopes", "_sleepers", "is_background", "is_set")

    def __init__(self, *, is_background: bool = False) -> None:
        self.is_background = is_background
        self.is_set = False  # whether what has this is to end
        self._sleepers: list[threading.Event] = []  # made only for who sleeps: there is an interrupt a request
        self._scopes: list[trio.CancelScope] = []
        self._followers: list[Interrupt] = []

    def set(self) -> None:
        """Ends what it was given to, and what begins with it later."""
        self.is_set = True
        for sleeper in tuple(self._sleepers):
            sleeper.set()
        for scope in self._scopes:
            scope.cancel()
        for follower in self._followers:
            follower.set()

    def sleep(self, seconds: float) -> None:
        """Sleeps until the time is over or this is set; for threads."""
        sleeper = threading.Event()
        self._sleepers.append(sleeper)
        try:
            if not self.is_set:  # read after the sleeper is there for `set` to wake: one of the two sees the other
                sleeper.wait(seconds)
        finally:
            self._sleepers.remove(sleeper)

    def check(self, request: str) -> None:
        """Raises EINTR for `request` once this is set."""
        if self.is_set:
            raise StoreError(errno.EINTR, request)

    async def ends(self, wait: Callable[[], Awaitable[T]]) -> T:
        """What `wait` returns; it is cancelled when this is set, and EINTR raised then."""
        from trio import CancelScope  # noqa: PLC0415 - not loaded by commands that answer at once

        with CancelScope() as scope:
            if self.is_set:
                scope.cancel()
            self._scopes.append(scope)
            try:
                return await wait()
            finally:
                self._scopes.remove(scope)
        raise OSError(errno.EINTR, os.strerror(errno.EINTR))


CURRENT: ContextVar[Interrupt | None] = ContextVar("interrupt", default=None)


@contextmanager
def stoppable() -> Iterator[Interrupt]:
    """Within, what is done ends with EINTR also when the sign that this gives is set, not only with that of now."""
    outer = CURRENT.get()
    inner = Interrupt(is_background=outer is None or outer.is_background)
    if outer is not None:
        outer._followers.append(inner)
        if outer.is_set:
            inner.set()
    token = CURRENT.set(inner)
    try:
        yield inner
    finally:
        CURRENT.reset(token)
        if outer is not None:
            outer._followers.remove(inner)


async def waited(wait: Callable[[], Awaitable[T]]) -> T:
    """What `wait` returns. Raises EINTR when nobody waits any more for the request this is done for.

    Only for waits that change nothing when they are cancelled: for a turn, or for what somebody else does.
    """
    interrupt = CURRENT.get()
    return await (wait() if interrupt is None else interrupt.ends(wait))
