"""What is done with old versions on the server: brought back by a copy, or removed.

A copy of an old version is made by its id, which cannot become another's; it has the version's bytes, metadata,
headers, storage class and ACL. Concurrency: trio thread only.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Mapping

from sosfs.concurrency.tasks import each
from sosfs.errors import Cause, StoreError
from sosfs.s3.bucket import S3Store
from sosfs.s3.copying import PART, PARTS_AT_ONCE
from sosfs.s3.object_lock import now_of, reason
from sosfs.s3.protocol import PUT_MAX, UNKNOWN, Acl, Detail, Object, Part
from sosfs.s3.version_answers import VersionEntry


class VersionChanges:
    """Changes to the versions of one bucket."""

    def __init__(self, store: S3Store, keeps_acls: Callable[[], Awaitable[bool]]) -> None:
        """`keeps_acls` tells whether what is copied keeps its ACL."""
        self._store = store
        self._keeps_acls = keeps_acls
        self._send = store.dispatcher.send

    async def remove(self, entry: VersionEntry) -> None:
        """Removes a version or a delete marker for good. Raises StoreError, with the lock where one forbids it."""
        try:
            await self._send("DeleteObject", lambda calls: calls.delete(entry.key, version_id=entry.version_id))
        except StoreError as error:
            if error.cause is Cause.DENIED and self._store.locks and not entry.is_marker:
                await self._explain(entry, error)
            raise

    async def _explain(self, entry: VersionEntry, refusal: StoreError) -> None:
        """Raises EPERM with the lock of a version that the server does not remove, where it has one."""
        try:
            found = await self.head(entry)
        except StoreError as error:
            raise refusal from error
        if found.lock.holds(now_of(found)):
            raise OSError(errno.EPERM, reason(found.lock, now_of(found))) from refusal

    async def head(self, entry: VersionEntry) -> Object:
        """All that is known of a version. Raises StoreError."""
        return await self._send(
            "HeadObject", lambda calls: calls.head(entry.key, Detail.WHOLE, version_id=entry.version_id)
        )

    async def bring_back(self, entry: VersionEntry) -> None:
        """Makes a copy of this version the current one. Raises StoreError."""
        acl = await self._acl(entry)
        size = entry.version.size if entry.version != UNKNOWN else (await self.head(entry)).version.size
        if size > PUT_MAX:
            await self._by_parts(entry, size, acl)
            return

        async def copy(digest: Mapping[str, str]) -> str:
            return await self._send(
                "CopyObject",
                lambda calls: calls.copy(
                    entry.key,
                    entry.key,
                    pin="",
                    properties=None,
                    acl=acl,
                    storage_class=entry.storage_class,
                    version_id=entry.version_id,
                    digest=digest,
                ),
                size=size,
            )

        await self._store.digests.stored(b"", copy, {})

    async def _acl(self, entry: VersionEntry) -> Acl | None:
        """The version's ACL; None for what any new object gets, and where it may not be read or is not kept."""
        if not await self._keeps_acls():
            return None
        try:
            acl = await self._send("GetObjectAcl", lambda calls: calls.get_acl(entry.key, version_id=entry.version_id))
        except StoreError as error:
            if error.cause not in (Cause.DENIED, Cause.UNSUPPORTED):
                raise
            return None
        return None if acl.is_private else acl

    async def _by_parts(self, entry: VersionEntry, size: int, acl: Acl | None) -> None:
        found = await self.head(entry)
        upload_id = await self._store.create_multipart(entry.key, found.properties, acl=acl)
        parts: list[Part] = []

        async def copy(number: int) -> None:
            start, stop = (number - 1) * PART, min(size, number * PART)
            part = await self._send(
                "UploadPartCopy",
                lambda calls: calls.copy_part(
                    entry.key, upload_id, number, entry.key, pin="", start=start, stop=stop,
                    version_id=entry.version_id,
                ),
                size=stop - start,
            )  # fmt: skip
            parts.append(part)

        try:
            await each(copy, range(1, -(-size // PART) + 1), at_once=PARTS_AT_ONCE)
            await self._store.complete_multipart(entry.key, upload_id, parts, begun_with=found.properties)
        except OSError:
            await self._store.abort_multipart(entry.key, upload_id)
            raise

    async def is_same(self, entry: VersionEntry, current: VersionEntry) -> bool:
        """Whether two versions have the same bytes, headers and metadata."""
        if entry.version_id == current.version_id:
            return True
        if UNKNOWN in (entry.version, current.version) or not entry.version.same_bytes(current.version):
            return False
        return (await self.head(entry)).properties == (await self.head(current)).properties

    async def undelete(self, entry: VersionEntry, markers: list[VersionEntry]) -> None:
        """Makes a version that only delete markers hide the current one: without them, or where they stay by a copy."""
        try:
            for marker in markers:
                await self.remove(marker)
        except StoreError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EOPNOTSUPP):
                raise
            await self.bring_back(entry)
