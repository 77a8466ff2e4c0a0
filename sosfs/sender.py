"""How a request gets a thread and a valid key: decided here and only here.

Requests block threads, bulk data other ones than all else, so that it never starves `ls`. A request that
began is waited for, also when its caller is cancelled. A key that the server no longer takes is read again
from its source, and the request made once more.

Concurrency: state changes in the trio thread only, between awaits. The lanes are imported with the first
request: they start threads, which must not be before the daemon has forked.
"""

from __future__ import annotations

import errno
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import trio

from sosfs.customer_key import explain
from sosfs.errors import KEY_REFUSED, StoreError
from sosfs.target import S3Target
from sosfs.threads import Threads

if TYPE_CHECKING:
    from sosfs.lanes import Lanes

T = TypeVar("T")

SMALL_REQUESTS = 32  # at once
BULK_REQUESTS = 16
BULK = 256 << 10  # bytes from which a request is bulk
MUTE_REFUSAL = 60.0  # seconds between two looks for a new key after a HEAD's 403, which tells no reason


class Limits:
    """How many requests may be under way at once, of one mount together."""

    def __init__(self) -> None:
        self.small = Threads(SMALL_REQUESTS)
        self.bulk = Threads(BULK_REQUESTS)

    def close(self) -> None:
        """Ends the threads; no request may follow."""
        self.small.close()
        self.bulk.close()


class Sender:
    """Sends to one target. `on_request` is told the name of each S3 operation, in the trio thread."""

    def __init__(self, target: S3Target, on_request: Callable[[str], None], limits: Limits | None = None) -> None:
        self._target = target
        self._on_request = on_request
        self._limits = limits or Limits()
        self._is_alone = limits is None
        self._lanes: Lanes | None = None
        self._renewal = trio.Lock()
        self._muted_until = -math.inf
        self.on_new_key: Callable[[], None] = lambda: None  # is told that the server may let us do more now

    def close(self) -> None:
        """Closes idle connections; no request may be under way or follow."""
        if self._is_alone:
            self._limits.close()
        if self._lanes:
            self._lanes.signed.close()
            self._lanes = None

    async def send(self, operation: str, work: Callable[[Lanes], T], *, size: int = 0) -> T:
        """Does `work` in a thread, once more where the key was refused and its source has another one."""
        used = self._lanes = self._lanes or self._opened(operation)
        threads = self._limits.bulk if size >= BULK else self._limits.small
        self._on_request(operation)
        try:
            return await threads.run(work, used)
        except StoreError as error:
            renewed = await self._renewed(used, error)
            if renewed is None:
                explain(operation, error)
                raise
        self._on_request(operation)
        return await threads.run(work, renewed)

    async def send_each(
        self, operation: str, work: Callable[[Lanes, str], T], keys: Sequence[str]
    ) -> list[T | StoreError]:
        """Does `work` with one key after the other in one thread; the place of one that failed has its error.

        This costs one hop instead of one a key. After the first that got no answer the others have its error,
        unasked. A key that the server no longer takes is not read again: who has to know asks once more, alone.
        """
        used = self._lanes = self._lanes or self._opened(operation)
        ends = await self._limits.small.run(_each, work, used, keys)
        for _ in ends:
            self._on_request(operation)
        return ends + ends[-1:] * (len(keys) - len(ends))

    def _opened(self, operation: str) -> Lanes:
        from sosfs.lanes import Lanes  # noqa: PLC0415  # starts threads: not before the fork

        try:
            key = self._target.credentials.current()
        except OSError as error:
            raise StoreError(errno.EACCES, operation, detail=str(error)) from error
        return Lanes.opened(self._target, key)

    async def _renewed(self, used: Lanes, error: StoreError) -> Lanes | None:
        """Lanes with another key than `used`, if its refusal is the matter and the source has one."""
        mute = error.status == 403 and not error.code  # a HEAD's: it may mean any refusal
        if error.code not in KEY_REFUSED and not mute:
            return None
        async with self._renewal:
            if self._lanes is not used:
                return self._lanes  # renewed by another call, while this one waited
            if mute:
                if trio.current_time() < self._muted_until:
                    return None
                self._muted_until = trio.current_time() + MUTE_REFUSAL
            try:
                key = await self._limits.small.run(self._target.credentials.refresh)
            except OSError as failure:
                raise StoreError(errno.EACCES, error.request, code=error.code, detail=str(failure)) from failure
            if key == used.key:
                return None
            self._lanes = used.opened(self._target, key)
            self.on_new_key()
            return self._lanes


def _each(work: Callable[[Lanes, str], T], lanes: Lanes, keys: Sequence[str]) -> list[T | StoreError]:
    """Ends after the first that got no answer."""
    ends: list[T | StoreError] = []
    for key in keys:
        try:
            ends.append(work(lanes, key))
        except StoreError as error:
            ends.append(error)
            if not error.status:
                break
    return ends
