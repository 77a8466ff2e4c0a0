"""Object Lock: which objects of a bucket the server protects, and how long.

A lock is a version's. What is told and set here is that of the version which is current; HEAD tells it, which not
every server does by the calls that S3 has for it (moto), as far as the key may know. Concurrency: trio thread only.
"""

from __future__ import annotations

import time

from sosfs.errors import Cause, StoreError
from sosfs.s3.bucket import S3Store
from sosfs.s3.http_headers import iso_time
from sosfs.s3.protocol import Lock, Object


class ObjectLocks:
    """The locks of one bucket."""

    def __init__(self, store: S3Store) -> None:
        self._store = store
        self._send = store.dispatcher.send

    @property
    def are_possible(self) -> bool:
        """Whether the bucket has Object Lock, as far as is known."""
        return self._store.locks

    async def look(self) -> bool:
        """Whether the bucket has Object Lock, asked anew: it may have got it since the mount began."""
        await self._store.look_for_versions()
        await self._store.look_for_locks()
        return self.are_possible

    def appeared(self) -> None:
        """The bucket has just got Object Lock."""
        self._store.locks = True

    async def of(self, key: str) -> Object | None:
        """What is current there, with its lock; None where nothing is, or this key may not look. Raises StoreError."""
        try:
            return await self._store.head(key)
        except StoreError as error:
            if error.cause not in (Cause.ABSENT, Cause.DENIED):
                raise
            return None

    async def set_retention(self, key: str, version_id: str, lock: Lock) -> None:
        """Protects a version until the lock's end. Raises StoreError."""
        await self._send("PutObjectRetention", lambda calls: calls.put_retention(key, version_id, lock))
        self._store.locks = True

    async def set_legal_hold(self, key: str, version_id: str, lock: Lock) -> None:
        """Puts a version under legal hold, or ends that, as the lock says. Raises StoreError."""
        await self._send("PutObjectLegalHold", lambda calls: calls.put_legal_hold(key, version_id, lock))
        self._store.locks = True


def now_of(found: Object) -> float:
    """The moment of an answer by the server's clock; by ours where it does not say."""
    return found.answered or time.time()


def reason(lock: Lock, now: float) -> str:
    """Why something is locked, in words."""
    rest = lock.rest(now)
    told = [f"locked until {iso_time(rest.until)} ({rest.mode})"] if rest.mode else []
    return " and ".join(told + ["under legal hold"] * rest.is_held)
