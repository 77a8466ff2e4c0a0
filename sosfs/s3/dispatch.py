"""Run a request in a thread with a valid key.

Requests block threads, bulk data other ones than all else, so that it never starves `ls`. A request that
began is waited for, also when its caller is cancelled. A key that the server no longer takes is read again
from its source, and the request made once more.

Concurrency: state changes in the trio thread only, between awaits. `calls` is imported with the first
request: what it sends with starts threads, which must not be before the daemon has forked.
"""

from __future__ import annotations

import errno
import logging
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import trio

from sosfs.concurrency.interrupt import CURRENT, Interrupt, waited
from sosfs.concurrency.locks import FairLock
from sosfs.config.credentials import Credentials
from sosfs.errors import KEY_REFUSED, StoreError
from sosfs.s3.customer_key import explain
from sosfs.s3.endpoint import S3Target
from sosfs.s3.limits import Limits

if TYPE_CHECKING:
    from sosfs.s3.calls import SignedCalls

log = logging.getLogger(__name__)
T = TypeVar("T")

READS = ("Get", "Head", "List")  # operations that change nothing begin so
BULK = 256 << 10  # bytes from which a request is bulk
ENDING_PAUSE = 10.0  # seconds between two looks for the key that follows one about to end
MUTE_REFUSAL = 60.0  # seconds between two looks for a new key after a HEAD's 403, which tells no reason


class Dispatcher:
    """Sends to one target. `on_request` is told the name of each S3 operation, in the trio thread."""

    def __init__(self, target: S3Target, on_request: Callable[[str], None], limits: Limits | None = None) -> None:
        self._target = target
        self._on_request = on_request
        self._limits = limits or Limits()
        self._is_alone = limits is None
        self._calls: SignedCalls | None = None
        self._renewal = FairLock()
        self._muted_until = -math.inf
        self._ending_until = -math.inf
        self.on_new_key: Callable[[], None] = lambda: None  # is told that the server may let us do more now
        self._all_reads = Interrupt()

    def close(self) -> None:
        """Closes idle connections; no request may be under way or follow."""
        if self._is_alone:
            self._limits.close()
        if self._calls:
            self._calls.close()
            self._calls = None

    def abandon_reads(self) -> None:
        """What is read for nobody who waits in the kernel ends within a second: nothing that is read matters any more.

        Whatever changes something is waited for as ever.
        """
        self._all_reads.set()

    def sweep(self) -> None:
        """Closes connections that nobody has used for a while."""
        if self._calls:
            self._calls.sweep()

    async def send(
        self,
        operation: str,
        work: Callable[[SignedCalls], T],
        *,
        size: int = 0,
        interrupt: Interrupt | None = None,
    ) -> T:
        """Does `work` in a thread, once more where the key was refused and its source has another one.

        EINTR within two seconds after `interrupt` was set, or that of the kernel request this is done for.
        """
        interrupt = interrupt or self._interrupt(operation)
        used = self._calls = self._current(operation)
        if used.key.is_ending:
            used = self._calls = await self._followed(used, operation)
        threads = self._limits.bulk if size >= BULK else self._limits.small
        self._on_request(operation)
        try:
            return await waited(partial(threads.run, work, used.under(interrupt) if interrupt else used))
        except StoreError as error:
            renewed = await self._renewed(used, error)
            if renewed is None:
                explain(operation, error)
                raise
        self._on_request(operation)
        return await waited(partial(threads.run, work, renewed.under(interrupt) if interrupt else renewed))

    async def send_each(
        self,
        operation: str,
        work: Callable[[SignedCalls, str], T],
        keys: Sequence[str],
        *,
        interrupt: Interrupt | None = None,
    ) -> list[T | StoreError]:
        """Does `work` with one key after the other in one thread; the place of one that failed has its error.

        This costs one hop instead of one a key. After the first that got no answer the others have its error,
        unasked. A key that the server no longer takes is not read again: who has to know asks once more, alone.
        """
        interrupt = interrupt or self._interrupt(operation)
        used = self._calls = self._current(operation)
        ends = await self._limits.small.run(_each, work, used.under(interrupt) if interrupt else used, keys)
        for _ in ends:
            self._on_request(operation)
        return ends + ends[-1:] * (len(keys) - len(ends))

    def _interrupt(self, operation: str) -> Interrupt | None:
        """What ends a request before it is answered: its kernel request, or of a read that has none the mount's end."""
        return CURRENT.get() or (self._all_reads if operation.startswith(READS) else None)

    def _current(self, operation: str) -> SignedCalls:
        """Calls with the source's key of now: another part of the mount may have read it again."""
        try:
            key = self._target.credentials.current()
        except OSError as error:
            raise StoreError(errno.EACCES, operation, detail=str(error)) from error
        if self._calls is None:
            return self._lane(key)
        return self._calls if self._calls.key == key else self._lane(key)

    def _lane(self, key: Credentials) -> SignedCalls:
        from sosfs.s3.calls import SignedCalls  # noqa: PLC0415  # starts threads: not before the fork

        return SignedCalls(self._target, key, throttle=self._limits.throttle)

    async def _followed(self, used: SignedCalls, operation: str) -> SignedCalls:
        """Calls with the key that follows one which is about to end; the same one where there is none yet."""
        async with self._renewal:
            if not self._current(operation).key.is_ending:
                return self._current(operation)  # read again by another call, while this one waited
            if trio.current_time() >= self._ending_until:
                self._ending_until = trio.current_time() + ENDING_PAUSE
                try:
                    await self._limits.small.run(self._target.credentials.refresh)
                except OSError as failure:
                    log.warning("the key that is about to end could not be read again: %s", failure)
            return self._current(operation)

    async def _renewed(self, used: SignedCalls, error: StoreError) -> SignedCalls | None:
        """Calls with another key than `used`, if its refusal is the matter and the source has one."""
        if used.key.is_nobody:
            return None
        mute = error.status == 403 and not error.code  # a HEAD's: it may mean any refusal
        if error.code not in KEY_REFUSED and not mute:
            return None
        async with self._renewal:
            if self._calls is not used:
                return self._calls  # renewed by another call, while this one waited
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
            self._calls = self._lane(key)
            self.on_new_key()
            return self._calls


def _each(work: Callable[[SignedCalls, str], T], calls: SignedCalls, keys: Sequence[str]) -> list[T | StoreError]:
    """Ends after the first that got no answer."""
    ends: list[T | StoreError] = []
    for key in keys:
        try:
            ends.append(work(calls, key))
        except StoreError as error:
            ends.append(error)
            if not error.status:
                break
    return ends
