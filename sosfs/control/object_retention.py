"""Read and set the retention and the legal hold of an object, as text.

The version that is current is meant, so a changed file is committed first, and one that is open for writing is not
locked: what comes at its close would be a version without the lock. Whether a time is past is decided by the server's
clock. Without the right to end a retention, which sosfs never asks for, it can only be made longer or firmer; what the
server would refuse is not sent. Concurrency: trio thread only.
"""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Protocol

from sosfs.attributes.writeback import AttributeWriteback
from sosfs.control import object_lock_text
from sosfs.files.commits import Commits
from sosfs.files.open_file import draft_of, opened
from sosfs.s3.object_lock import now_of, reason
from sosfs.s3.protocol import Detail, Lock, Object, ObjectStore
from sosfs.tree.inodes import Inode, Inodes
from sosfs.tree.subtree_lock import SubtreeLock


class SettableLocks(Protocol):
    """How locks are set: `s3.object_lock.ObjectLocks`."""

    @property
    def are_possible(self) -> bool:
        """Whether the bucket has Object Lock, as far as is known."""

    async def look(self) -> bool:
        """Whether the bucket has Object Lock, asked anew."""

    async def set_retention(self, key: str, version_id: str, lock: Lock) -> None:
        """Protects a version until the lock's end. Raises StoreError."""

    async def set_legal_hold(self, key: str, version_id: str, lock: Lock) -> None:
        """Puts a version under legal hold, or ends that, as the lock says. Raises StoreError."""


class ObjectRetentions:
    """The locks of the objects of a mount."""

    def __init__(
        self,
        inodes: Inodes,
        store: ObjectStore,
        locks: SettableLocks,
        attributes: AttributeWriteback,
        commits: Commits,
        subtree_lock: SubtreeLock,
    ) -> None:
        self._inodes = inodes
        self._store = store
        self._locks = locks
        self._attributes = attributes
        self._commits = commits
        self._subtree_lock = subtree_lock

    async def retention(self, inode: Inode) -> str:
        """The retention of what is current. Raises ENODATA where there is none, and what the bucket answers."""
        if not (told := object_lock_text.retention_shown(await self._lock(inode))):
            raise OSError(errno.ENODATA, "it has no retention")
        return told

    async def legal_hold(self, inode: Inode) -> str:
        """ON or OFF. Raises ENODATA in a bucket where nothing is ever locked, and what the bucket answers."""
        is_held = (await self._lock(inode)).is_held
        if not is_held and not self._locks.are_possible:
            raise OSError(errno.ENODATA, "the bucket has no Object Lock")
        return "ON" if is_held else "OFF"

    async def _lock(self, inode: Inode) -> Lock:
        await self._attributes.revalidate(inode)
        async with self._subtree_lock.shared(inode):
            return (await self._look(inode)).lock

    async def _look(self, inode: Inode) -> Object:
        if inode.version is None or inode.parent is None:
            raise OSError(errno.ENODATA, "there is no object that could be locked")
        return await self._store.head(self._inodes.key(inode), detail=Detail.WHOLE)

    async def retain(self, inode: Inode, text: str) -> None:
        """Protects an object as `text` says; nothing is sent where it is protected so already.

        Raises `BadText`, before anything is sent; EPERM for less than what is in force, EBUSY for what is being
        written, EOPNOTSUPP where the bucket has no Object Lock, and what the server answers.
        """
        object_lock_text.retention(text, now=0.0)
        async with self._current(inode) as found:
            now = now_of(found)
            wanted, in_force = object_lock_text.retention(text, now=now), replace(found.lock.rest(now), is_held=False)
            if wanted == in_force:
                return
            if not wanted.covers(in_force):
                raise OSError(errno.EPERM, f"{reason(in_force, now)}: it can only be locked longer, or more firmly")
            await self._require_possible()
            _forget_time(inode)
            await self._locks.set_retention(found.key, found.version_id, wanted)
            self._attributes.protection.changed(found.key)

    async def release(self, inode: Inode) -> None:
        """Says why a retention cannot be taken off. Raises EPERM; ENODATA where there is none."""
        await self.retention(inode)
        found = await self._look(inode)
        why = reason(replace(found.lock, is_held=False), now_of(found)) or "the retention is over"
        raise OSError(errno.EPERM, f"{why}: sosfs takes none off")

    async def hold(self, inode: Inode, text: str) -> None:
        """Puts an object under legal hold, or ends that, as `text` says. Raises as `retain`."""
        is_held = object_lock_text.legal_hold(text)
        async with self._current(inode) as found:
            if found.lock.is_held == is_held:
                return
            await self._require_possible()
            _forget_time(inode)
            await self._locks.set_legal_hold(found.key, found.version_id, Lock(is_held=is_held))
            self._attributes.protection.changed(found.key)

    @asynccontextmanager
    async def _current(self, inode: Inode) -> AsyncIterator[Object]:
        """What is in the bucket, with all that was changed here; within, nothing of ours changes it."""
        while True:
            _require_closed(inode)  # else half of it would be stored
            await self._commits.bring(inode)
            async with self._subtree_lock.exclusive(inode):
                _require_closed(inode)  # it may have been opened while that was waited for
                if not _is_changed(inode):
                    yield await self._look(inode)
                    return

    async def _require_possible(self) -> None:
        if not self._locks.are_possible and not await self._locks.look():
            raise OSError(errno.EOPNOTSUPP, "the bucket has no Object Lock")


def _forget_time(inode: Inode) -> None:
    """Ceph's Last-Modified is that of the lock, and no answer shows it, nor whether the lock was set if none comes."""
    if inode.version is not None:
        inode.version = replace(inode.version, modified=None)


def _require_closed(inode: Inode) -> None:
    """Raises EBUSY for a file that is being written."""
    open_file = opened(inode)
    if open_file is not None and open_file.writers:
        raise OSError(errno.EBUSY, "it is open for writing: what comes at its close would not be locked")


def _is_changed(inode: Inode) -> bool:
    """Whether bytes of a file are on their way: the version that they make would not be locked."""
    draft = draft_of(inode)
    return draft is not None and draft.is_dirty and inode.parent is not None
