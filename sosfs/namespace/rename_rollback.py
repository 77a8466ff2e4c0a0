"""Undo a rename that did not get through: now, later, or at the next mount.

Where a rename ends is one rule for a running mount and for the next one after a crash: as long as a copy is missing
all copies go; once all are there nothing is taken back, for the first delete may have been sent. But where the key
may remove nothing, nothing was, and the copies go too.

Only our own copies are removed: those that the store has confirmed, as long as they are that version; and where an
answer was lost, or the process died, what has bytes and metadata of a source that is still there. A copy that got no
answer may be made after it was looked for, so for `LATE` seconds it is looked for again and again, by the next mount
too. What this mount is about to make under the new name ends that (`wait_for`).

The copies leave through the delete queue (`deletions`): recorded, counted as pending, tried for ever.

Concurrency: trio thread only; looks run in the background, one at a time.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial

import trio

from sosfs.cache.blocks import Spawn
from sosfs.concurrency.backoff import Backoff, Doubling
from sosfs.concurrency.locks import FairLock
from sosfs.concurrency.tasks import each
from sosfs.errors import Cause, StoreError, reason
from sosfs.ipc.pending import Change, Kind, Pending
from sosfs.journal.journal import Journal
from sosfs.journal.rows import SavedAttributes, SavedDraft
from sosfs.metadata import user_metadata
from sosfs.namespace.deletions import Deletions, is_denied
from sosfs.namespace.rename_copies import Move, RenameState, below_first, listed_under
from sosfs.s3.preconditions import find
from sosfs.s3.protocol import Object, ObjectStore, Version
from sosfs.tree.keys import names_of

log = logging.getLogger(__name__)

LATE = 60.0  # seconds after which a request that got no answer is taken to have no effect any more
LOOK_FIRST, LOOK_MAX = 1.0, 30.0  # seconds between looks
LOOKS_AT_ONCE = 16

Metadata = Mapping[str, str]


async def _nothing() -> None:
    """For what is being done, or only the next mount can do."""


class RenameRollback:
    """The renames of a mount that failed, and of which copies may be left."""

    def __init__(
        self, store: ObjectStore, deletions: Deletions, journal: Journal, spawn: Spawn, retries: Backoff
    ) -> None:
        self._store = store
        self._deletions = deletions
        self._journal = journal
        self._spawn = spawn
        self._retries = retries
        self._under_way: list[Move] = []
        self._back: list[Move] = []  # to be looked at
        self._looking = FairLock()
        self._unfinished: list[Move] = []  # of which old keys may be gone, and others not

    @property
    def pending(self) -> int:
        """Renames that are under way, or wait for the next mount, or to be looked at.

        Copies that are known are pending deletes.
        """
        return len(self._under_way) + len(self._unfinished) + sum(move.is_pending for move in self._back)

    @property
    def waiting(self) -> list[str]:
        """What is not at its end since the last try, and why."""
        looked = [(move, move.failed) for move in self._back if move.failed is not None]
        return [
            *(f"rename of {move.old} to {move.new}: the next mount finishes it" for move in self._unfinished),
            *(f"copies of {move.old} at {move.new}: {error.strerror or error}" for move, error in looked),
        ]

    @property
    def oldest(self) -> float:
        """Since when the first one waits, in seconds since the epoch; 0.0 where none does."""
        waiting = (*self._under_way, *self._unfinished, *(move for move in self._back if move.is_pending))
        return min((move.since for move in waiting), default=0.0)

    def changes(self, prefix: str) -> Iterator[Change]:
        """The renames that are not at their end; the paths are below `prefix`."""
        ends = self._retries.ends
        for move in self._under_way:
            yield Change(Pending(names_of(move.old.removeprefix(prefix)), Kind.RENAME, move.since), _nothing)
        for move in self._unfinished:
            why = f"rename to {move.new.removeprefix(prefix)}: the next mount finishes it"
            yield Change(Pending(names_of(move.old.removeprefix(prefix)), Kind.RENAME, move.since, error=why), _nothing)
        for move in (one for one in self._back if one.is_pending):
            error = f"copies may be left at {move.new.removeprefix(prefix)}"
            error += f": {reason(move.failed)}" if move.failed else ""
            yield Change(
                Pending(
                    names_of(move.old.removeprefix(prefix)),
                    Kind.RENAME,
                    move.since,
                    error=error,
                    retry_at=ends.get(move, 0.0),
                ),
                partial(self._look, move),
            )

    @asynccontextmanager
    async def taking_back(self, move: Move) -> AsyncIterator[None]:
        """For what a rename does to objects: where that fails, the copies are gone afterwards, or on their way out."""
        self._under_way.append(move)
        try:
            try:
                yield
            finally:
                self._under_way.remove(move)
        except BaseException as error:
            if move.is_copied:
                self._unfinished.append(move)  # it was cut short: the next mount finishes it
                raise
            self._turn_back(move)
            if isinstance(error, Exception):
                await self._go_back(move)
            raise

    def _turn_back(self, move: Move) -> None:
        move.until = trio.current_time() + LATE
        stays = {move.new} if move.replaces else set()
        move.doubtful -= stays
        made = {key: version for key, version in move.made.items() if key not in stays}
        move.going, move.is_pending = len(made), bool(move.doubtful)
        with self._journal.together():
            for key in below_first(made):
                self._deletions.retract(key, made[key], lambda: self._removed(move))
            if move.doubtful:
                self._note(move)
            else:
                self._journal.drop_rename(move.row)
        if move.doubtful:
            self._back.append(move)
            self._spawn(lambda: self._look_on(move))

    def _note(self, move: Move) -> None:
        """Records that a rename is being taken back: a later mount must not take it for one that got through."""
        back = RenameState.OVER if move.over else RenameState.COPYING
        self._journal.set_rename(move.row, back if move.is_directory else RenameState.BACK)

    async def _go_back(self, move: Move) -> None:
        try:
            if move in self._back:
                await self._look(move)
            await self._gone(move)
        except OSError as error:
            log.warning("what was copied of %s to %s is not removed yet: %s", move.old, move.new, error)

    async def _gone(self, move: Move) -> None:
        """Returns when the copies that are known are gone. Raises what keeps them."""
        if move.is_directory:
            await self._deletions.wait_under(move.new)
        else:
            await self._deletions.wait_for(move.new)

    def watch(self, move: Move, gone: Callable[[], None]) -> bool:
        """Whether something may be left of a rename that failed; `gone` is called when nothing is any more."""
        move.gone = gone
        return bool(move.going) or move in self._back

    async def replay(self, row: int, old: str, new: str, state: str) -> bool:
        """Whether a rename that a crash cut short is to be finished; else it has been taken back. Raises OSError.

        A copy that stands over what was there before cannot be taken back, so that one is finished too; and that of
        which nothing says how far it is, as an older version of sosfs has left it.
        """
        if state in ("", RenameState.COPIED):
            return True
        move = Move(row, old, new, state == RenameState.OVER, is_unknown=True, is_pending=True)
        if not move.is_directory and state != RenameState.BACK:
            if await self._has_moved(move):
                return True
            if move.over:  # what it was to replace is there, and a copy that may still come could not be taken back
                self._journal.drop_rename(row)
                return False
            self._note(move)
        log.warning("taking back the rename of %s to %s that a crash cut short", old, new)
        move.until = trio.current_time() + LATE
        self._back.append(move)
        try:
            await self._look(move)
            await self._gone(move)
        except StoreError as error:
            if error.cause is not Cause.DENIED:
                raise
            log.error("copies of %s may be left at %s: %s", old, new, error)  # no reason not to mount
        self._spawn(lambda: self._look_on(move))
        return False

    async def _has_moved(self, move: Move) -> bool:
        """Whether a file is under its new key alone, or over what had it."""
        source, target = await find(self._store, move.old), await find(self._store, move.new)
        if source is None or target is None:
            return target is not None
        if not move.over:
            return False
        is_same = self._are_hashes(source, target) and source.version.same_bytes(target.version)
        return is_same or self._is_copy(move, source, target, self._changed().get(move.old, []))

    async def wait_for(self, key: str) -> None:
        """Something is to be made at `key`: what is removed or a failed rename left there is gone afterwards.

        Nothing that is found there later is taken for a copy of that rename. Raises what keeps it.
        """
        for move in [one for one in self._back if one.meets(key)]:
            if move.is_pending:
                await self._look(move)
            await self._gone(move)
            self._end(move)
        await self._deletions.wait_for(key)

    async def vacate(self, key: str) -> None:
        """A name is to be given to something: as `wait_for`, and for the prefix that it may have been.

        What goes there would be seen again beside what has the name by then.
        """
        await self.wait_for(key)
        await self._deletions.wait_under(key + "/")
        await self._deletions.wait_for(key + "/")

    async def leave(self, key: str) -> None:
        """What is at `key`, or below it, is about to be renamed: copies from there or to there are found before.

        Later they could not be told from it, or be told at all. Raises what keeps them, but for a refusal.
        """
        for move in [one for one in self._back if one.meets(key) or one.leaves(key)]:
            try:
                await self._look(move)
            except OSError as error:
                if not is_denied(error):
                    raise

    async def drain(self) -> None:
        """Looks once more; what may still come is looked for by the next mount."""
        for move in list(self._back):
            try:
                await self._look(move)
            except OSError as error:
                log.error("copies of %s may be left at %s: %s", move.old, move.new, error)

    def _removed(self, move: Move, *, count: int = 1) -> None:
        move.going -= count
        if not move.going and move not in self._back:
            move.gone()

    def _end(self, move: Move) -> None:
        if move in self._back:
            self._back.remove(move)
            self._journal.drop_rename(move.row)
            self._removed(move, count=0)

    async def _look_on(self, move: Move) -> None:
        pauses = Doubling(LOOK_FIRST, LOOK_MAX)
        while move in self._back:
            await self._retries.wait(pauses, move)
            try:
                is_last = trio.current_time() >= move.until
                await self._look(move)
            except OSError as error:
                if error.errno != errno.EINTR:  # else the mount ends, and looks once more
                    log.warning("copies of %s may be left at %s: %s", move.old, move.new, error)
                continue
            if is_last:
                self._end(move)

    async def _look(self, move: Move) -> None:
        """Finds the copies that nobody has confirmed, and has them removed. Raises what the bucket answers."""
        async with self._looking:
            try:
                ours = await self._found(move)
            except OSError as error:
                move.failed = error
                raise
            if move not in self._back:
                return  # something was made there meanwhile
            move.is_pending, move.failed = False, None
            for key in below_first(ours):
                if not self._deletions.is_pending(key):
                    move.going += 1
                    self._deletions.retract(key, ours[key], lambda: self._removed(move))

    async def _found(self, move: Move) -> dict[str, Version]:
        """The copies that nobody has confirmed, by their keys."""
        ours: dict[str, Version] = {}
        found = await self._candidates(move)
        changed = self._changed() if found else {}

        async def ask(key: str) -> None:
            if (version := await self._copy(move, key, changed.get(move.source(key), []))) is not None:
                ours[key] = version

        await each(ask, found, at_once=LOOKS_AT_ONCE)
        return ours

    def _changed(self) -> dict[str, list[Metadata]]:
        """What a copy that was made has of attributes that its source, by key, does not have yet; but for the time."""
        changed: dict[str, list[Metadata]] = {}
        rows: list[tuple[int, SavedAttributes | SavedDraft]] = [*self._journal.attributes(), *self._journal.drafts()]
        for _, saved in rows:
            sent = user_metadata.without_time(user_metadata.write(saved.properties.metadata, saved.posix))
            changed.setdefault(saved.key, []).append(sent)
        return changed

    async def _candidates(self, move: Move) -> list[str]:
        """The new keys where a copy may be that the store has not confirmed."""
        if not move.is_directory:
            return [move.new]  # one that replaces something is not looked for
        found = {listed.key for listed in await listed_under(self._store, move.new)}
        found -= {move.new} if move.replaces else set()
        if not move.is_unknown:
            return list(found & move.doubtful)
        there = {listed.key for listed in await listed_under(self._store, move.old)} if found else set()
        return [key for key in found if move.source(key) in there]

    async def _copy(self, move: Move, key: str, changed: Sequence[Metadata]) -> Version | None:
        """The version at a new key, if it is a copy of what is at the old one."""
        source, target = await find(self._store, move.source(key)), await find(self._store, key)
        if target is None:
            return None
        if source is None or not self._is_copy(move, source, target, changed):
            log.warning("%s stays: it is no copy of %s", key, move.source(key))
            return None
        return target.version

    def _is_copy(self, move: Move, source: Object, target: Object, changed: Sequence[Metadata]) -> bool:
        """Whether both have the same bytes, and the same metadata or those that the source will have.

        The time is left out of these: a file that is being written to has a later one than its record. Where ETags
        tell that the bytes are the same, a copy that this mount has asked for needs no more.
        """
        if source.version.size != target.version.size:
            return False
        is_hash = self._are_hashes(source, target)
        if is_hash and not source.version.same_bytes(target.version):
            return False
        if is_hash and source.version.size and target.key in move.doubtful:
            return True
        found = target.properties.metadata
        return found == source.properties.metadata or user_metadata.without_time(found) in changed

    def _are_hashes(self, source: Object, target: Object) -> bool:
        return self._store.hashes and not any("-" in one.version.etag for one in (source, target))
