"""What the bucket has locked (Object Lock): asked before a program is promised to write or remove it.

The server keeps each version that is locked, and lets anybody put another version or a delete marker over it: the
file would be gone from view, or unprotected. So a locked file is as one with the immutable attribute of chattr(1):
opening it for writing, cutting it, renaming it or something over it and removing it are EPERM, and `.sosfs/errors`
says until when. On a bucket with Object Lock that is a HEAD each; elsewhere nothing is asked.

What was opened before it was locked, by another client or with its first bytes by the bucket's default retention,
goes up as a new version when it is closed: what is acknowledged stays kept, and so does the locked version. Mode,
owner, times, headers and metadata may be changed, for they make a version with the same bytes: it gets the same lock.

Concurrency: trio thread only.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from dataclasses import replace
from enum import Enum
from typing import Protocol

from sosfs.concurrency.tasks import each
from sosfs.s3.object_lock import now_of, reason
from sosfs.s3.protocol import UNLOCKED, Lock, Object, Properties
from sosfs.tree.inodes import Inode, Inodes

LOOKS_AT_ONCE = 16


class Act(Enum):
    """What was to be done to something that is locked, as `.sosfs/errors` tells it."""

    WRITE = "was not changed"
    REMOVE = "was not removed"
    RENAME = "was not renamed"


Refused = Callable[[str, OSError, Act], None]


class Locks(Protocol):
    """The locks of a bucket's objects: `s3.object_lock.ObjectLocks`."""

    @property
    def are_possible(self) -> bool:
        """Whether the bucket has any."""

    async def of(self, key: str) -> Object | None:
        """What is current there, with its lock; None where nothing is. Raises StoreError."""

    async def set_retention(self, key: str, version_id: str, lock: Lock) -> None:
        """Protects a version until the lock's end. Raises StoreError."""

    async def set_legal_hold(self, key: str, version_id: str, lock: Lock) -> None:
        """Puts a version under legal hold. Raises StoreError."""


class Protection:
    """What of a mount is locked; nothing, until it is told of the bucket's locks."""

    def __init__(self, inodes: Inodes) -> None:
        self._inodes = inodes
        self._locks: Locks | None = None
        self._refused: Refused = lambda path, error, act: None
        self._owed: dict[str, Lock] = {}  # what copies that may have been made are to be locked with, by their keys

    def begin(self, locks: Locks, refused: Refused) -> None:
        """From now on these locks hold; `refused` is told what was refused for them: path, error, what was not done."""
        self._locks, self._refused = locks, refused

    @property
    def is_on(self) -> bool:
        """Whether anything may be locked."""
        return self._locks is not None and self._locks.are_possible

    async def require(self, inode: Inode, act: Act) -> None:
        """Raises EPERM where the object of a file, or the marker of a directory, is locked."""
        has_object = inode.version is not None or inode.is_directory
        if self.is_on and has_object and inode.parent is not None:
            await self.require_key(self._inodes.key(inode), act)

    async def require_each(self, keys: Iterable[str], act: Act) -> None:
        """Raises EPERM where one of these keys is locked."""
        if self.is_on:
            await each(lambda key: self.require_key(key, act), keys, at_once=LOOKS_AT_ONCE)

    async def require_key(self, key: str, act: Act) -> None:
        """Raises EPERM where the object of a key is locked, and what the bucket answers.

        A copy that is yet to be locked is not renamed either: under its new name nobody would do that.
        """
        if not self.is_on:
            return
        assert self._locks is not None
        found = await self._locks.of(key)
        if found is None:
            return
        lock, now = found.lock, now_of(found)
        if act is Act.RENAME and not lock.holds(now):
            lock = self._owed.get(key, UNLOCKED)
        if not lock.holds(now):
            return
        error = OSError(errno.EPERM, f"{reason(lock, now)}, and {act.value}")
        self._refused(key.removeprefix(self._inodes.prefix), error, act)
        raise error

    # A version with the same bytes

    async def carried(self, key: str) -> Lock:
        """The lock that a copy of an object onto itself has to have, too; `settle` is to follow it."""
        if not self.is_on:
            return UNLOCKED
        assert self._locks is not None
        found = await self._locks.of(key)
        now = now_of(found) if found is not None else 0.0
        lock = UNLOCKED if found is None else found.lock.rest(now)
        if key in self._owed and not lock.covers(self._owed[key].rest(now)):
            lock = self._owed[key].rest(now)
        if lock == UNLOCKED:
            self._owed.pop(key, None)
        else:
            self._owed[key] = lock
        return lock

    async def settle(self, key: str) -> None:
        """The copy has its lock afterwards, also from a server that did not heed what the copy said of it."""
        lock = self._owed.get(key)
        if lock is None:
            return
        assert self._locks is not None
        made = await self._locks.of(key)
        if made is not None:
            if not made.lock.covers(replace(lock, is_held=False)):
                await self._locks.set_retention(key, made.version_id, lock)
            if lock.is_held and not made.lock.is_held:
                await self._locks.set_legal_hold(key, made.version_id, lock)
        self.changed(key)

    def owe(self, key: str, sent: Iterable[Properties]) -> None:
        """An earlier mount has asked for these copies, and may have died before one was locked."""
        for one in sent:
            if one.lock != UNLOCKED:
                self._owed[key] = one.lock

    def given_up(self, inode: Inode) -> None:
        """Nothing is to be copied of an object any more: what gets its name next owes nothing."""
        if self._owed and self._inodes.has_name(inode):
            self.changed(self._inodes.key(inode))

    def changed(self, key: str) -> None:
        """Somebody has decided anew about the lock of an object."""
        self._owed.pop(key, None)
