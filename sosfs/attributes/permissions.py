"""What the mount's key may not do, asked before a program is promised anything.

A key may be limited to reading, to a part of the bucket, or to storing without removing, and no server says
which. As long as nothing was refused nothing is asked. After a refusal (of the mount's scratch key, or of a
write) opening for writing, creating and changing attributes ask first, with a request that changes nothing
whatever its answer is, so that EACCES comes from open(2) and not from a close whose bytes then have nowhere to go.
What was allowed in a directory is not asked again there for `PROVED` seconds; a refusal is asked again each time.

Concurrency: trio thread only.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Iterable

import trio

from sosfs.errors import Cause, StoreError
from sosfs.s3 import scratch_key
from sosfs.s3.protocol import NO_UPLOAD, ObjectStore, Right
from sosfs.tree.inodes import Inode, Inodes

PROVED = 60.0


class KeyPermissions:
    """What one mount's key was refused so far."""

    def __init__(self, inodes: Inodes, store: ObjectStore) -> None:
        self._inodes = inodes
        self._store = store
        self._refused: set[Right] = set()
        self._proved_until: dict[tuple[Right, str], float] = {}

    def add(self, rights: Iterable[Right]) -> None:
        """Such a request was refused: from now on it is asked whether the next one may be made."""
        self._refused.update(rights)
        self._proved_until.clear()

    async def require_write(self, inode: Inode) -> None:
        """Raises EACCES where the key may not replace this inode's object."""
        if self._inodes.has_object(inode):
            await self.require_store(self._inodes.key(inode))

    async def require_store(self, key: str) -> None:
        """Raises EACCES where the key may not store an object under that name."""
        # A part of an upload that nobody has begun: refused for want of the right, else for want of the upload.
        await self._require(Right.WRITE, key, lambda: self._store.upload_part(key, NO_UPLOAD, 1, b""))

    async def require_remove(self, key: str) -> None:
        """Raises EACCES where the key may not remove an object beside that one."""
        nobodys = scratch_key.key(_directory(key))
        await self._require(Right.DELETE, key, lambda: self._store.delete(nobodys))

    async def _require(self, right: Right, key: str, ask: Callable[[], Awaitable[object]]) -> None:
        where = right, _directory(key)
        if right not in self._refused or trio.current_time() < self._proved_until.get(where, 0.0):
            return
        try:
            await ask()
        except StoreError as error:
            if error.cause is Cause.DENIED:
                raise OSError(errno.EACCES, f"this key may not {right.value} {key!r}") from error
            if error.errno != errno.ENXIO:
                return  # what the store cannot tell now, the request itself will
        self._proved_until[where] = trio.current_time() + PROVED


def _directory(key: str) -> str:
    return key[: key.rstrip("/").rfind("/") + 1]
