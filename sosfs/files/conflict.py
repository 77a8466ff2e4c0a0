"""Keep the loser of two writers beside the winner, as `NAME.conflict-HOST-TIME`.

Concurrency: trio thread only.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable

from sosfs.errors import Cause, StoreError
from sosfs.files.draft import Draft
from sosfs.files.upload import Upload, Uploader
from sosfs.s3.protocol import KEY_MAX, Guard, Properties, Version
from sosfs.tree.inodes import Inode, Inodes
from sosfs.tree.keys import NAME_MAX, Form

log = logging.getLogger(__name__)


class Conflicts:
    """Keeps what another writer's version would otherwise have displaced."""

    def __init__(self, inodes: Inodes, uploader: Uploader, properties: Callable[[Inode], Properties]) -> None:
        self._inodes = inodes
        self._uploader = uploader
        self._properties = properties
        self.kept: list[str] = []  # keys, newest last

    async def keep(self, inode: Inode, draft: Draft, error: StoreError) -> None:
        """Stores the draft's bytes under the conflict name. Raises what prevents it; the draft stays then."""
        assert inode.parent is not None
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()) + f"-{time.time_ns() % 1_000_000_000:09d}"
        parent, segment = self._beside(inode.parent, inode.segment, f".conflict-{socket.gethostname()}-{stamp}")
        key = self._inodes.child_key(parent, segment)
        properties = self._properties(inode)
        try:
            version = await self._store(draft, key, properties)
        except StoreError as failure:
            if draft.base is None or failure.cause not in (Cause.CONFLICT, Cause.ABSENT):
                raise
            with draft.without_base() as gone:
                log.error("%s has zeros for %d bytes that are lost with their version: %s", key, gone, failure)
                version = await self._store(draft, key, properties)
        self.kept.append(key)
        log.error("%s was changed by another client; this mount's version is kept as %s", error.request, key)
        kept = self._inodes.make(parent, segment, Form.PLAIN, mode=inode.mode)
        kept.version, kept.size, kept.mtime_ns = version, version.size, inode.mtime_ns
        kept.learn(self._properties(inode), whole=True)
        if parent.directory is not None:
            parent.directory.put(kept)

    def _beside(self, parent: Inode, segment: str, end: str) -> tuple[Inode, str]:
        """A segment with this end, of a name and a key that are not too long for anybody to have it, and where.

        In a directory whose key leaves no bytes for the end there is no such name: then it is in one above.
        """
        while (room := self._room(parent) - len(end.encode())) < 0 and parent.parent is not None:
            parent = parent.parent
        return parent, segment.encode()[: max(0, room)].decode(errors="ignore") + end

    def _room(self, parent: Inode) -> int:
        """How many bytes a name in a directory may have."""
        return min(NAME_MAX, KEY_MAX - len(self._inodes.child_key(parent, "").encode()))

    async def _store(self, draft: Draft, key: str, properties: Properties) -> Version:
        if draft.size <= self._uploader.plan.single:
            body = await draft.read(0, draft.size)
            return await self._uploader.store.put(key, body, properties, condition=Guard.ABSENT)
        upload = Upload(self._uploader, draft, key, properties, None)
        try:
            return await upload.finish(draft.size, Guard.ABSENT)
        except OSError:
            await upload.abort()  # the next try has another name
            raise
