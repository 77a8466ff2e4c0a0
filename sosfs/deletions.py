"""Deletes that travel together: one by one they are asked for, in batches they are sent.

    delete(key) --first of a burst--> sent and awaited
        `------while that succeeded lately--> QUEUED --batch--> gone
                                                 ^---- the store is out of reach: tried again, for ever
                                                 `---- refused: the name comes back, the error is logged

`rm -rf` asks for one key at a time and waits for each answer, so batches form only where the answer comes
before the request: the first delete of a burst proves that the key may delete here, those that follow
within `PROVEN` seconds are answered from the queue. Whoever is about to use a key awaits `settle`.

Concurrency: trio thread only; up to 4 batches under way.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from .blocks import Spawn
from .errors import Cause, StoreError
from .guards import look
from .journal import Journal
from .store import DELETE_MAX, ObjectStore, Version
from .tasks import each

log = logging.getLogger(__name__)

PROVEN = 5.0  # seconds
GATHER = 0.02  # seconds without company after which a batch sets off: an unlink through FUSE takes 0.1-0.2 ms
LINGER = 0.5  # seconds that a batch gathers company at most
BATCHES = 4
AT_ONCE = 16  # looks at keys that are tried again
CROWD = 250  # keys of a full batch; four of these side by side are faster than one of a thousand
PAUSE_FIRST, PAUSE_MAX = 0.5, 30.0  # seconds between tries while the store is out of reach

Outcome = Callable[[OSError | None], None]


class Deletions:
    """The delete queue of a mount."""

    def __init__(self, store: ObjectStore, spawn: Spawn, journal: Journal) -> None:
        self._store = store
        self._journal = journal
        self._spawn = spawn
        self._queued: dict[str, Outcome] = {}
        self._flying: dict[str, Outcome] = {}
        self._versions: dict[str, Version] = {}  # what is to be removed
        self._unanswered: set[str] = set()  # keys of which a delete was sent, and nobody knows what became of it
        self._proven_until = 0.0
        self._workers = 0
        self._pause = PAUSE_FIRST
        self._settled = trio.Condition()

    @property
    def pending(self) -> int:
        """Keys not yet removed."""
        return len(self._queued) + len(self._flying)

    def is_pending(self, key: str) -> bool:
        """Whether a delete of this key is outstanding."""
        return key in self._queued or key in self._flying

    def under(self, prefix: str) -> set[str]:
        """The keys under a prefix whose delete is outstanding."""
        return {key for keys in (self._queued, self._flying) for key in keys if key.startswith(prefix)}

    async def delete(self, key: str, version: Version, outcome: Outcome) -> None:
        """Removes a key now or soon; `outcome` is called when the store has answered for it.

        It is in the journal meanwhile: after a crash the next mount removes it, if it is still this version.

        Raises StoreError where the answer was awaited and is a refusal; `outcome` is not called then.
        """
        if trio.current_time() < self._proven_until:
            self.later(key, version, outcome)
            return
        await self.settle(key)
        self._journal.add_delete(key, version)
        try:
            await self._store.delete(key)
        except BaseException:
            self._journal.drop_delete(key)
            raise
        self._proven_until = trio.current_time() + PROVEN
        self._journal.drop_delete(key)
        await self._journal.settled()
        outcome(None)

    async def retire(self, key: str, version: Version, outcome: Outcome) -> None:
        """As `delete`, for a key whose bytes are under another one by now: without an answer it is tried for ever.

        Nobody can tell then whether the key is gone, so whoever took the copy back could lose both.
        """
        try:
            await self.delete(key, version, outcome)
        except StoreError as error:
            if is_refusal(error):
                raise
            log.warning("%s was copied, the delete is tried again: %s", key, error)
            self.later(key, version, outcome)

    def later(self, key: str, version: Version, outcome: Outcome) -> None:
        """Removes a key soon, however often it takes."""
        self._journal.add_delete(key, version)
        self._queued[key], self._versions[key] = outcome, version
        if self._workers < min(BATCHES, 1 + len(self._queued) // CROWD):
            self._workers += 1
            self._spawn(self._work)

    def retract(self, key: str, version: Version, outcome: Outcome) -> None:
        """As `later`, for a copy that nobody needs: looked at first, since another client may have replaced it."""
        self._unanswered.add(key)
        self.later(key, version, outcome)

    async def settle(self, key: str) -> None:
        """Returns when no delete of this key is outstanding, nor below a directory's. Raises what keeps it back."""
        if key.endswith("/") and self.is_pending(key):
            await self.settle_under(key)
            return
        while self.is_pending(key):
            outcome = self._queued.pop(key, None)
            if outcome is None:
                await self._answered()  # a batch that gets no answer is queued again, so this looks once more
            else:
                self._flying[key] = outcome
                await self._send([key])

    async def settle_under(self, prefix: str) -> None:
        """Returns when no delete under a prefix is outstanding. Raises what keeps one from being sent."""
        while self.under(prefix):
            if batch := self._batch(DELETE_MAX, prefix):
                await self._send(batch)
            else:
                await self._answered()

    async def drain(self) -> int:
        """Sends all that is queued; returns how many keys are left."""
        try:
            await self.settle_under("")
        except OSError as error:
            log.error("%d deletes could not be sent: %s", self.pending, error)
        return self.pending

    async def _work(self) -> None:
        try:
            while await self._gathered():
                batch = self._batch(CROWD)
                if not batch:
                    await self._answered()
                    continue
                try:
                    await self._send(batch)
                    self._pause = PAUSE_FIRST
                except OSError as error:
                    log.warning("%d deletes wait for the store: %s", self.pending, error)
                    await trio.sleep(self._pause)
                    self._pause = min(2 * self._pause, PAUSE_MAX)
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
            if key.startswith(prefix) and not (key.endswith("/") and self._is_flying_below(key)):
                batch.append(key)
        for key in batch:
            self._flying[key] = self._queued.pop(key)
        return batch

    def _is_flying_below(self, directory: str) -> bool:
        return any(key.startswith(directory) for key in self._flying)

    async def _answered(self) -> None:
        """Waits until the store has answered for one of the batches under way, of which there must be one."""
        async with self._settled:
            await self._settled.wait()

    async def _gathered(self) -> bool:
        """Waits while the queue grows towards a full batch; whether there is anything in it."""
        until, before = trio.current_time() + LINGER, 0
        while before < len(self._queued) < CROWD and trio.current_time() < until:
            before = len(self._queued)
            await trio.sleep(GATHER)
        return bool(self._queued)

    async def _send(self, batch: list[str]) -> None:
        """Sends keys that are in `_flying`; puts back those that got no answer, and raises then."""
        if not batch:
            return
        refused: dict[str, OSError] = {}
        unanswered: OSError | None = None
        try:
            spared = await self._overwritten(batch)
            left = [key for key in batch if key not in spared]
            if len(left) == 1:
                await self._store.delete(left[0])
            elif left:
                refused = {failure.key: failure.error for failure in await self._store.delete_many(left)}
        except OSError as error:
            if isinstance(error, StoreError) and error.cause is Cause.DENIED:
                refused = dict.fromkeys(batch, error)
            else:
                unanswered = error
        for refusal in refused.values():
            unanswered = unanswered if is_refusal(refusal) else refusal
        await self._answer(batch, refused, everything=unanswered is not None and not refused)
        if unanswered is not None:
            raise unanswered

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
                    found.add(key)

        await each(ask, [key for key in batch if key in self._unanswered], at_once=AT_ONCE)
        return found

    async def _answer(self, batch: list[str], refused: dict[str, OSError], *, everything: bool) -> None:
        answered: list[tuple[str, OSError | None]] = []
        for key in batch:
            error = refused.get(key)
            if everything or (error is not None and not is_refusal(error)):
                self._queued[key] = self._flying.pop(key)
                self._unanswered.add(key)
            else:
                answered.append((key, error))
        try:
            with self._journal.together():  # one write to the log, not one for each key
                for key, _ in answered:
                    self._journal.drop_delete(key)
        except OSError as failure:
            log.error("the journal cannot be written: %s", failure)  # who waits for these keys must go on
        if answered:
            await self._journal.settled()
        for key, error in answered:
            outcome = self._flying.pop(key)
            self._versions.pop(key, None)
            self._unanswered.discard(key)
            if error is not None:
                self._proven_until = 0.0
                log.error("%s was not removed, its name comes back: %s", key, error)
            outcome(error)
        async with self._settled:
            self._settled.notify_all()


def is_refusal(error: OSError) -> bool:
    """Whether the store said no, for good: the key is still there."""
    return isinstance(error, StoreError) and error.cause in (Cause.DENIED, Cause.UNSUPPORTED)
