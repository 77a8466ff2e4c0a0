"""The copies that a rename makes, and when the old keys may go.

    COPYING --all copies are there--> COPIED --the old keys are removed--> done
       `--an error, an unmount, a crash--> BACK: the copies go, the old keys are as they were (`rename_rollback`)

As long as a copy is missing nothing is removed. What the store has confirmed is looked for before the first delete:
SeaweedFS copies no directory markers, and a copy that is none would cost the object.

Concurrency: trio thread only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from sosfs.concurrency.tasks import each
from sosfs.disk.reserve import Need
from sosfs.errors import FULL, Cause, StoreError, unanswered
from sosfs.journal.journal import Journal
from sosfs.journal.multipart_uploads import MultipartUploads
from sosfs.s3.copying import copy_object, store_anew
from sosfs.s3.paging import check_progress
from sosfs.s3.preconditions import look
from sosfs.s3.protocol import Acl, Listed, ObjectStore, Properties, Version

LOOKS_AT_ONCE = 16


class RenameState(StrEnum):
    """How far a rename is, in the journal."""

    COPYING = "copying"
    OVER = "over"  # the same, where there was something at the very key `new`
    COPIED = "copied"
    BACK = "back"  # of a file, whose copy may still come; what is done to the old name since is the user's doing


@dataclass(frozen=True, slots=True)
class _Request:
    """What was asked for of one copy."""

    version: Version  # of the source
    properties: Properties | None
    acl: Acl | None


@dataclass(eq=False)
class Move:
    """One rename, from key to key or from prefix to prefix. `over`: see `RenameState.OVER`."""

    row: int  # in the journal
    old: str
    new: str
    over: bool
    is_unsent: bool = False  # what is over there is not in the bucket yet
    since: float = field(default_factory=time.time)  # seconds since the epoch
    asked: dict[str, _Request] = field(default_factory=dict)  # by new keys, as all below
    made: dict[str, Version] = field(default_factory=dict)  # what the store has confirmed
    doubtful: set[str] = field(default_factory=set)  # what it may have made, or may make yet, all the same
    going: int = 0  # copies that are being removed
    is_copied: bool = False  # all copies are there, and the old keys may be gone
    is_unknown: bool = False  # it is of an earlier process, so any of its copies may be there
    is_pending: bool = False  # what is left of it was not found out yet
    until: float = 0.0  # trio time of the last look
    failed: OSError | None = None  # what the last look ended with
    gone: Callable[[], None] = lambda: None  # is called when nothing is left of it

    @property
    def is_directory(self) -> bool:
        """Whether both are prefixes."""
        return self.new.endswith("/")

    @property
    def replaces(self) -> bool:
        """Whether a copy at the very key `new` cannot be taken back: a delete would not bring back what was there."""
        return self.over and not self.is_unsent

    def source(self, key: str) -> str:
        """The old key of a new one."""
        return self.old + key[len(self.new) :]

    def target(self, key: str) -> str:
        """The new key of an old one."""
        return self.new + key[len(self.old) :]

    def meets(self, key: str) -> bool:
        """Whether something at `key` would be what it moves to, above it or below."""
        return _meets(self.new, key)

    def leaves(self, key: str) -> bool:
        """The same of what it moves from."""
        return _meets(self.old, key)


def _meets(one: str, key: str) -> bool:
    below = key.startswith(one) if one.endswith("/") else key == one
    return below or one.startswith(key.removesuffix("/") + "/")


class RenameCopies:
    """The renames of a mount that are under way."""

    def __init__(self, store: ObjectStore, multiparts: MultipartUploads, journal: Journal) -> None:
        self._store = store
        self._multiparts = multiparts
        self._journal = journal

    def begin(self, old: str, new: str, *, over: bool, is_unsent: bool = False) -> Move:
        """A rename begins: recorded before the first copy is asked for. Raises OSError of the journal."""
        with self._journal.together(Need.PROMISE):
            move = Move(self._journal.add_rename(old, new), old, new, over, is_unsent)
            self._journal.set_rename(move.row, RenameState.OVER if over else RenameState.COPYING, Need.PROMISE)
        return move

    async def copy(
        self,
        move: Move,
        source: str,
        version: Version,
        *,
        properties: Properties | None = None,
        storage_class: str | None = None,
        acl: Acl | None = None,
    ) -> Version:
        """As `copy_object`, of a source of the rename; ENOENT only where the source is gone."""
        key = move.target(source)
        move.asked[key] = _Request(version, properties, acl)
        move.doubtful.add(key)
        try:
            made = await copy_object(
                self._store,
                source,
                key,
                version,
                properties=properties,
                storage_class=storage_class,
                acl=acl,
                multiparts=self._multiparts,
            )
        except StoreError as error:
            if 400 <= error.status < 500 and not error.repeated:
                move.doubtful.discard(key)
            if error.cause is Cause.ABSENT:
                await look(self._store, source)
                raise unanswered(error.request, "the server does not find it, and says that it is there") from error
            raise
        move.doubtful.discard(key)
        move.made[key] = made
        return made

    async def copied(self, move: Move) -> None:
        """All copies were made: makes sure that they are there, for from now on the old keys go.

        A directory costs one listing for each 1,000 keys, a file a HEAD where it has no bytes: SeaweedFS copies no
        markers, and who knows what others do not copy. Raises OSError of the journal, and what the bucket answers.
        """
        for key in await self._missing(move):
            asked = move.asked[key]
            if asked.version.size:
                raise unanswered(f"CopyObject to {key!r}", "it was confirmed, and is not there")
            move.made[key] = await store_anew(
                self._store, move.source(key), key, asked.version, properties=asked.properties, acl=asked.acl
            )
        try:
            self._journal.set_rename(move.row, RenameState.COPIED)
        except OSError as error:
            if error.errno not in FULL or not move.over:
                raise  # what was copied over another file the next mount finishes anyway
        if move.is_directory:
            await self._journal.sync()  # the next mount would take one for failed of which keys are gone
        move.is_copied = True  # not before: what the disk refuses is taken back, for all old keys are there

    async def _missing(self, move: Move) -> list[str]:
        """The copies that the store has confirmed and does not have."""
        if move.is_directory:
            there = {listed.key for listed in await listed_under(self._store, move.new)}
            doubted = [key for key in move.made if key not in there]
        else:
            doubted = [key for key, version in move.made.items() if not version.size]
        lost: list[str] = []

        async def ask(key: str) -> None:
            try:
                await look(self._store, key)  # a listing may be behind
            except StoreError as error:
                if error.cause is not Cause.ABSENT:
                    raise
                lost.append(key)

        await each(ask, doubted, at_once=LOOKS_AT_ONCE)
        return lost

    def refused(self, move: Move) -> None:
        """The store removes none of the old keys: they all are as they were."""
        move.is_copied = False

    def ended(self, move: Move) -> None:
        """It is done, and the tree says so."""
        self._journal.drop_rename(move.row)


async def listed_under(store: ObjectStore, prefix: str) -> list[Listed]:
    """All keys that begin with `prefix`."""
    found: list[Listed] = []
    token, more, tokens = "", True, {""}
    while more:
        page = await store.list(prefix, delimiter="", token=token)
        found.extend(page.objects)
        token, more = page.token, bool(page.token)
        if more:
            check_progress(f"ListObjectsV2 {prefix!r}", token, tokens)
    return found


def below_first(keys: Iterable[str]) -> list[str]:
    """The order in which keys are removed: SeaweedFS keeps a directory whose marker goes before what is in it."""
    files, markers = list[str](), list[str]()
    for key in keys:
        (markers if key.endswith("/") else files).append(key)
    return sorted(files) + sorted(markers, reverse=True)
