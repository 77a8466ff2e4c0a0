"""Collect deletes of keys and send them in batches.

    delete(key) --first of a burst--> sent and awaited
        `------while that succeeded lately--> QUEUED --batch--> gone
                                                 ^ `-- the store is out of reach: QUEUED again
                                                 |  `- refused: HELD
                                                 `---- some time later, or with a new key

`rm -rf` asks for one key at a time and waits for each answer, so batches form only where the answer comes
before the request: the first delete of a burst proves that the key may delete here, those that follow
within `PROVEN` seconds are answered from the queue. What was answered from it stays removed: a refusal that comes
after that is tried again for ever, and keeps nothing else waiting. What a rename leaves behind, or is tried again, is
removed only as the version that was meant, where the server can tell: what another client has stored there since
stays. Whoever is about to use a key awaits `wait_for`.

Concurrency: trio thread only; up to 4 batches under way.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import trio

from sosfs.cache.blocks import Spawn
from sosfs.concurrency.backoff import Backoff, Doubling
from sosfs.concurrency.interrupt import waited
from sosfs.concurrency.tasks import each
from sosfs.errors import FULL, Cause, StoreError, reason
from sosfs.ipc.pending import Change, Kind, Pending
from sosfs.journal.journal import Journal
from sosfs.s3.preconditions import look
from sosfs.s3.protocol import DELETE_MAX, ObjectStore, Version
from sosfs.tree.keys import names_of

log = logging.getLogger(__name__)

PROVEN = 5.0  # seconds
GATHER = 0.02  # seconds without company after which a batch sets off: an unlink through FUSE takes 0.1-0.2 ms
LINGER = 0.5  # seconds that a batch gathers company at most
BATCHES = 4
LOOKS_AT_ONCE = 16  # looks at keys that are tried again
CROWD = 250  # keys of a batch that sets off; four of these side by side are faster than one of a thousand
PAUSE_FIRST, PAUSE_MAX = 0.5, 30.0  # seconds between tries while the store is out of reach
HELD_FIRST, HELD_MAX = 5.0, 120.0  # seconds between tries of what was refused
QUEUE, REFUSED = "queued deletes", "refused deletes"  # who waits for another try

Outcome = Callable[[], None]


def _nothing() -> None:
    pass


class Deletions:
    """The delete queue of a mount."""

    def __init__(self, store: ObjectStore, spawn: Spawn, journal: Journal, retries: Backoff) -> None:
        self._store = store
        self._journal = journal
        self._spawn = spawn
        self._retries = retries
        self._queued: dict[str, Outcome] = {}
        self._flying: dict[str, Outcome] = {}
        self._held: dict[str, Outcome] = {}
        self._versions: dict[str, Version] = {}  # what is to be removed
        self._pinned: set[str] = set()  # keys of which only that version is to go
        self._tried: set[str] = set()  # keys that wait since a try: another client may have stored something there
        self._failed: dict[str, OSError] = {}  # what the last try ended with
        self._since: dict[str, float] = {}  # when each was asked for, in seconds since the epoch
        self._prefixes: Counter[str] = Counter()  # how many of these are under each
        self._is_holding = False  # a task tries again what is held
        self._proven_until = 0.0
        self._workers = 0
        self._pauses = Doubling(PAUSE_FIRST, PAUSE_MAX)
        self._settled = trio.Condition()

    @property
    def pending(self) -> int:
        """Keys not yet removed."""
        return len(self._queued) + len(self._flying) + len(self._held)

    @property
    def waiting(self) -> list[str]:
        """What could not be removed at the last try, and why."""
        return [f"removal of {key}: {error.strerror or error}" for key, error in self._failed.items()]

    @property
    def oldest(self) -> float:
        """Since when the first key waits to be removed, in seconds since the epoch; 0.0 where none does."""
        return next(iter(self._since.values()), 0.0)

    def changes(self, prefix: str) -> Iterator[Change]:
        """What is not removed yet; the paths are below `prefix`."""
        ends = self._retries.ends
        for key in (*self._queued, *self._flying, *self._held):
            error, who = self._failed.get(key), REFUSED if key in self._held else QUEUE
            yield Change(
                Pending(
                    names_of(key.removeprefix(prefix)),
                    Kind.REMOVAL,
                    self._since.get(key, 0.0),
                    error=reason(error) if error else "",
                    retry_at=ends.get(who, 0.0) if error and key not in self._flying else 0.0,
                ),
                partial(self.wait_for, key),
                key,
            )

    def is_pending(self, key: str) -> bool:
        """Whether a delete of this key is outstanding."""
        return key in self._queued or key in self._flying or key in self._held

    def under(self, prefix: str) -> set[str]:
        """The keys under a prefix whose delete is outstanding."""
        if prefix.endswith("/") and not self._prefixes[prefix]:
            return set()  # as for nearly all that is made while a large tree goes
        return {key for keys in (self._queued, self._flying, self._held) for key in keys if key.startswith(prefix)}

    async def delete(
        self, key: str, version: Version, outcome: Outcome, *, forget: Callable[[], None] = _nothing
    ) -> None:
        """Removes a key now or soon; `outcome` is called when the store has answered for it.

        It is in the journal meanwhile: after a crash the next mount removes it, if it is still this version. Where the
        answer is awaited, what else the journal has of it goes in one step with that, by `forget`: alone it would bring
        the name back. Else that is left to the caller, for the record of the removal stays.

        Raises StoreError where the answer was awaited and is a refusal; neither is called then.
        """
        if self.delete_at_once(key, version, outcome):
            return
        if key.endswith("/") and self.under(key) - {key}:
            self.later(key, version, outcome)  # its name is not free before what was below it is gone
            return
        await self.wait_for(key)
        self._recorded(key, version)  # if not, only a crash before the answer would let the name stay
        try:
            await self._store.delete(key, version=version if key in self._pinned else None)
        except BaseException:
            self._journal.drop_delete(key)
            raise
        self._proven_until = trio.current_time() + PROVEN
        with self._journal.together():
            self._journal.drop_delete(key)
            forget()
        await self._journal.flushed()
        outcome()

    def delete_at_once(self, key: str, version: Version, outcome: Outcome) -> bool:
        """Removes a key soon, if one was removed lately and the journal takes it; else False, and nothing is done."""
        if trio.current_time() >= self._proven_until or not self._recorded(key, version):
            return False
        self._queue(key, version, outcome)
        return True

    async def retire(self, key: str, version: Version, outcome: Outcome) -> None:
        """As `delete`, for a key whose bytes are under another one by now: without an answer it is tried for ever.

        Nobody can tell then whether the key is gone, so whoever took the copy back could lose both. What another client
        has stored there since stays.
        """
        self._pinned.add(key)
        try:
            await self.delete(key, version, outcome)
        except StoreError as error:
            if is_denied(error):
                raise
            if is_replaced(error):
                self._spare(key)
                outcome()
            else:
                log.warning("%s was copied, the delete is tried again: %s", key, error)
                self.retract(key, version, outcome)
        finally:
            if not self.is_pending(key):
                self._pinned.discard(key)

    def _spare(self, key: str) -> None:
        log.warning("%s was removed here, and another client has replaced it since: theirs stays", key)

    def later(self, key: str, version: Version, outcome: Outcome) -> None:
        """Removes a key soon, however often it takes; without a record, should the disk be full, up to a crash."""
        self._recorded(key, version)
        self._queue(key, version, outcome)

    def _recorded(self, key: str, version: Version) -> bool:
        """Notes in the journal what is to be removed. Whether there was room for that."""
        try:
            self._journal.add_delete(key, version)
        except OSError as error:
            if error.errno not in FULL:
                raise
            log.info("the delete of %s is not recorded: %s", key, error)
            return False
        return True

    def _queue(self, key: str, version: Version, outcome: Outcome) -> None:
        self._queued[key] = outcome
        self._note(key, version)
        self._begin_work()

    def _note(self, key: str, version: Version) -> None:
        if key not in self._since:
            self._prefixes.update(_prefixes_of(key))
        self._versions[key], self._since[key] = version, time.time()

    def _uncount(self, key: str) -> None:
        self._prefixes.subtract(_prefixes_of(key))
        for prefix in _prefixes_of(key):
            if not self._prefixes[prefix]:
                del self._prefixes[prefix]

    def take_up(self, key: str, version: Version, outcome: Outcome, error: OSError) -> None:
        """Goes on with what an earlier mount was refused, and has in the journal."""
        self._note(key, version)
        self._tried.add(key)
        self._hold(key, outcome, error)

    def _begin_work(self) -> None:
        if self._workers < min(BATCHES, 1 + len(self._queued) // CROWD):
            self._workers += 1
            self._spawn(self._work)

    def retract(self, key: str, version: Version, outcome: Outcome) -> None:
        """As `later`, for one of two copies: looked at first, since another client may have replaced it."""
        self._tried.add(key)
        self.later(key, version, outcome)

    async def wait_for(self, key: str) -> None:
        """Returns when no delete of this key is outstanding, nor below a directory's. Raises what keeps it back.

        Nor will the next mount take anything new there for what went, whatever happens to this machine.
        """
        if key.endswith("/") and self.is_pending(key):
            await self.wait_under(key)
        while self.is_pending(key):
            outcome = self._queued.pop(key, None) or self._held.pop(key, None)
            if outcome is None:
                await self._answered()  # a batch that gets no answer is queued again, so this looks once more
            else:
                self._flying[key] = outcome
                await self._send_now([key])
        await self._journal.settled(key)

    async def wait_under(self, prefix: str) -> None:
        """Returns when no delete under a prefix is outstanding. Raises what keeps one from being sent."""
        while self.under(prefix):
            self._recall(prefix)
            if batch := self._batch(DELETE_MAX, prefix):
                await self._send_now(batch)
            else:
                await self._answered()

    async def _send_now(self, batch: list[str]) -> None:
        """As `_send`, for somebody who waits, and may call it off; what stays is tried on without him."""
        try:
            await self._send(batch)
        except BaseException as error:
            if not isinstance(error, OSError):
                await self._called_off(batch)
            self._begin_work()  # they may all have found the queue empty meanwhile
            raise

    async def _called_off(self, batch: list[str]) -> None:
        """Of what was sent by one who is cancelled nobody knows the answer; others may wait for these keys."""
        left = [key for key in batch if key in self._flying]
        with trio.CancelScope(shield=True):
            await self._answer(left, dict.fromkeys(left, OSError(errno.EINTR, os.strerror(errno.EINTR))))

    async def drain(self) -> int:
        """Sends all that is queued, and what was refused once more; returns how many keys are left."""
        self._recall("")
        while self._queued or self._flying:
            batch = self._batch(DELETE_MAX)
            if not batch:
                await self._answered()
                continue
            try:
                await self._send(batch)
            except OSError as error:
                log.error("%d deletes could not be sent: %s", self.pending, error)
                if not self._queued.keys().isdisjoint(batch):
                    break  # the store is out of reach
        return self.pending

    # What was refused

    def _hold(self, key: str, outcome: Outcome, error: OSError) -> None:
        self._held[key], self._failed[key] = outcome, error
        if not self._is_holding:
            self._is_holding = True
            self._spawn(self._try_held)

    def _recall(self, prefix: str) -> None:
        """What is held under a prefix is queued again, and not tried in vain once more before it is sent."""
        self._queue_again({key: self._held.pop(key) for key in [key for key in self._held if key.startswith(prefix)]})

    def _queue_again(self, outcomes: dict[str, Outcome]) -> None:
        """They go before what was asked for after them: that may be the directory that they are in."""
        self._queued = outcomes | self._queued

    async def _try_held(self) -> None:
        pauses = Doubling(HELD_FIRST, HELD_MAX)
        try:
            while self._held:
                await self._retries.wait(pauses, REFUSED)
                self._recall("")
                try:
                    while batch := self._batch(DELETE_MAX):
                        await self._send(batch)
                except OSError as error:
                    log.warning("%d deletes wait for the store: %s", self.pending, error)
                self._begin_work()  # for what is left
        finally:
            self._is_holding = False

    async def _work(self) -> None:
        try:
            while await self._gathered():
                batch = self._batch(min(DELETE_MAX, max(CROWD, len(self._queued) // BATCHES)))
                if not batch:
                    await self._answered()
                    continue
                try:
                    await self._send(batch)
                    self._pauses.reset()
                except OSError as error:
                    log.warning("%d deletes wait for the store: %s", self.pending, error)
                    if not self._queued.keys().isdisjoint(batch):
                        await self._retries.wait(self._pauses, QUEUE)
        finally:
            self._workers -= 1

    def _batch(self, most: int, prefix: str = "") -> list[str]:
        """Takes up to `most` keys out of the queue, those of directories not before all that is below them.

        Else a directory's name would be free while a listing still shows what other batches remove from it.
        """
        batch: list[str] = []
        for key in self._queued:
            if len(batch) == most:
                break
            if key.startswith(prefix) and not (key.endswith("/") and _is_below(self._flying, key)):
                batch.append(key)
        for key in [key for key in batch if key.endswith("/")]:
            if below := next((held for held in self._held if held.startswith(key)), ""):
                batch.remove(key)
                self._hold(key, self._queued.pop(key), self._failed[below])
        for key in batch:
            self._flying[key] = self._queued.pop(key)
        return batch

    async def _answered(self) -> None:
        """Waits until the store has answered for one of the batches under way, if there is one."""
        if self._flying:
            async with self._settled:
                await waited(self._settled.wait)

    async def _gathered(self) -> bool:
        """Waits while the queue grows towards a full batch; whether there is anything in it."""
        until, before = trio.current_time() + LINGER, 0
        while before < len(self._queued) < CROWD and trio.current_time() < until:
            before = len(self._queued)
            await trio.sleep(GATHER)
        return bool(self._queued)

    async def _send(self, batch: list[str]) -> None:
        """Sends keys that are in `_flying`; puts back those that are not removed, and raises why."""
        failed: dict[str, OSError] = {}
        try:
            spared = await self._overwritten(batch)
            failed = await self._remove([key for key in batch if key not in spared])
        except OSError as error:
            failed = dict.fromkeys(batch, error)
        await self._answer(batch, failed)
        for failure in failed.values():
            raise failure

    async def _remove(self, keys: list[str]) -> dict[str, OSError]:
        """Removes keys; returns those that the store refuses to remove. Raises what a request ends with."""
        versions = {key: self._versions[key] for key in keys if key in self._pinned or key in self._tried}
        if len(keys) == 1:
            try:
                await self._store.delete(keys[0], version=versions.get(keys[0]))
            except StoreError as error:
                if not is_replaced(error):
                    raise
                self._spare(keys[0])
            return {}
        failed = await self._store.delete_many(keys, versions=versions) if keys else []
        for failure in failed:
            if is_replaced(failure.error):
                self._spare(failure.key)
        return {failure.key: failure.error for failure in failed if not is_replaced(failure.error)}

    async def _overwritten(self, batch: list[str]) -> set[str]:
        """Those of a batch that are tried again, and under which another client has stored something meanwhile."""
        found: set[str] = set()

        async def ask(key: str) -> None:
            try:
                here = await look(self._store, key)
            except StoreError as error:
                if error.cause not in (Cause.ABSENT, Cause.DENIED):
                    raise
            else:
                if not here.version.same_as(self._versions[key]):
                    self._spare(key)
                    found.add(key)

        await each(ask, [key for key in batch if key in self._tried], at_once=LOOKS_AT_ONCE)
        return found

    async def _answer(self, batch: list[str], failed: dict[str, OSError]) -> None:
        for key in [key for key in batch if key.endswith("/")]:
            if below := next((other for other in failed if other.startswith(key)), ""):
                failed[key] = failed[below]  # its name is not free before what was below it is gone
        answered = [key for key in batch if key not in failed]
        again: dict[str, Outcome] = {}
        for key, error in failed.items():
            outcome = self._flying.pop(key)
            self._tried.add(key)
            if is_denied(error):
                self._proven_until = 0.0
                self._hold(key, outcome, error)
            else:
                again[key], self._failed[key] = outcome, error
        self._queue_again(again)
        try:
            with self._journal.together():  # one write to the log, not one for each key
                for key in answered:
                    self._journal.drop_delete(key)
        except OSError as failure:
            log.error("the journal cannot be written: %s", failure)  # whoever waits for these keys must go on
        if answered:
            await self._journal.flushed()
        for key in answered:
            outcome = self._flying.pop(key)
            self._versions.pop(key, None)
            self._failed.pop(key, None)
            if self._since.pop(key, None) is not None:
                self._uncount(key)
            self._tried.discard(key)
            self._pinned.discard(key)
            outcome()
        async with self._settled:
            self._settled.notify_all()


def _prefixes_of(key: str) -> Iterator[str]:
    """All that end in a slash, itself among them."""
    return (key[: at + 1] for at, letter in enumerate(key) if letter == "/")


def _is_below(keys: Iterable[str], directory: str) -> bool:
    return any(key.startswith(directory) for key in keys)


def is_denied(error: OSError) -> bool:
    """Whether the store said no: the key is still there."""
    return isinstance(error, StoreError) and error.cause in (Cause.DENIED, Cause.UNSUPPORTED)


def is_replaced(error: OSError) -> bool:
    """Whether the store said that another version is there than the one that was to be removed."""
    return isinstance(error, StoreError) and error.cause is Cause.CONFLICT
