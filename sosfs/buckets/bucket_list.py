"""The names of an account's buckets, as far as this mount knows them.

A listing is trusted for the mount's `ttl`, as that of a directory is. What this mount itself has made or removed
counts for longer than a server may take until it lists it. Concurrency: trio thread only.
"""

from __future__ import annotations

import errno
import logging
import math
import os
from collections.abc import Mapping

import trio

from sosfs.concurrency.locks import FairLock
from sosfs.control import nodes
from sosfs.s3.account import Account
from sosfs.s3.protocol import Bucket

log = logging.getLogger(__name__)

SETTLED = 30.0  # seconds


class BucketList:
    """The buckets of an account by name."""

    def __init__(self, account: Account, *, ttl: float) -> None:
        self.listed: Mapping[str, Bucket] = {}
        self._account = account
        self._ttl = ttl
        self._at = -math.inf  # trio time at which the listing was asked for
        self._asking = FairLock()
        self._own: dict[str, tuple[Bucket | None, float]] = {}  # made or (None) removed here; until when that counts

    @property
    def fresh_for(self) -> float:
        """Seconds for which the listing is still trusted."""
        return max(0.0, self._at + self._ttl - trio.current_time())

    async def refresh(self, *, patience: float = math.inf) -> str:
        """Lists anew and returns the owner's id. Raises StoreError."""
        asked = trio.current_time()
        owned = await self._account.owned(patience=patience)
        self._own = {name: own for name, own in self._own.items() if own[1] > asked}
        buckets = {name: bucket for name, bucket in owned.buckets.items() if _has_place(name)}
        for name, (own, _) in self._own.items():
            buckets.pop(name, None)
            if own is not None:
                buckets[name] = own
        self.listed, self._at = buckets, asked
        return owned.owner

    async def look(self) -> Mapping[str, Bucket]:
        """All buckets by name, as of no longer ago than `ttl`. Raises StoreError."""
        async with self._asking:
            if not self.fresh_for:
                await self.refresh()
        return self.listed

    async def find(self, name: str) -> Bucket:
        """The bucket of this name. Raises ENOENT only where a listing does not show it.

        One that was listed stays where a new listing cannot be had, for its own server may well answer.
        """
        try:
            await self.look()
        except OSError as error:
            if name not in self.listed:
                raise
            log.info("the last listing of the buckets holds on: %s", error)
        found = self.listed.get(name)
        if found is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        return found

    def made(self, bucket: Bucket) -> None:
        """This mount has made a bucket."""
        self._own[bucket.name] = bucket, trio.current_time() + SETTLED
        self.listed = {**self.listed, bucket.name: bucket}

    def removed(self, name: str) -> None:
        """This mount has removed a bucket."""
        self._own[name] = None, trio.current_time() + SETTLED
        self.listed = {other: bucket for other, bucket in self.listed.items() if other != name}


def _has_place(name: str) -> bool:
    """Whether a bucket's name can be that of a directory."""
    return "/" not in name and "\0" not in name and name not in {"", ".", "..", nodes.NAME.decode()}
