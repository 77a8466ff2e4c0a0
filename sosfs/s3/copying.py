"""Copy an object on the server: one CopyObject, or parts side by side over 5 GiB.

Parts are also the way where the server cannot copy an object whole: Ceph before version 20 copies what is encrypted
with a customer's key part by part only.

Concurrency: trio thread only.
"""

from __future__ import annotations

import errno
from typing import Protocol

from sosfs.concurrency.tasks import each
from sosfs.errors import Cause, StoreError
from sosfs.s3.protocol import PUT_MAX, Acl, Detail, Guard, ObjectStore, Part, Properties, Version

PART = 512 << 20  # bytes of one UploadPartCopy: 4 TiB in 8,192 parts
PARTS_AT_ONCE = 8


class UploadsBegun(Protocol):
    """Who sees to it that each multipart upload that is begun also ends."""

    async def begin(self, key: str, properties: Properties, *, acl: Acl | None = None) -> str:
        """As `ObjectStore.create_multipart`."""

    async def abort(self, key: str, upload_id: str) -> object:
        """As `ObjectStore.abort_multipart`, but it does not raise."""

    def ended(self, upload_id: str) -> None:
        """The upload has become an object."""


async def copy_object(
    store: ObjectStore,
    source: str,
    target: str,
    version: Version,
    *,
    properties: Properties | None = None,
    storage_class: str | None = None,
    acl: Acl | None = None,
    multiparts: UploadsBegun | None = None,
) -> Version:
    """Copies `version` of `source`; the target gets `acl` and `properties` (None: the source's, in `storage_class`).

    `multiparts` sees to it that no upload stays, whatever happens. Raises StoreError: ESTALE when the source is no
    longer that version.
    """
    if version.size <= PUT_MAX:
        try:
            return await store.copy(
                source, target, version=version, properties=properties, storage_class=storage_class, acl=acl
            )
        except StoreError as error:
            if error.cause is not Cause.UNSUPPORTED and (version.size or error.cause is not Cause.ABSENT):
                raise
    if not version.size:  # SeaweedFS finds no marker that it is to copy
        return await store_anew(store, source, target, version, properties=properties, acl=acl)
    if properties is None:
        properties = (await store.head(source, detail=Detail.WHOLE)).properties
    return await _copy_parts(store, source, target, version, properties, acl, multiparts)


async def store_anew(
    store: ObjectStore,
    source: str,
    target: str,
    version: Version,
    *,
    properties: Properties | None = None,
    acl: Acl | None = None,
) -> Version:
    """As `copy_object`, for an object without bytes and a server that does not copy it."""
    found = await store.head(source, detail=Detail.WHOLE)
    if not found.version.same_as(version):
        raise StoreError(errno.ESTALE, f"copy {source!r}", detail=f"{found.version} is there, not {version}")
    condition = version if source == target else Guard.NONE
    return await store.put(target, b"", properties or found.properties, condition=condition, acl=acl)


async def _copy_parts(
    store: ObjectStore,
    source: str,
    target: str,
    version: Version,
    properties: Properties,
    acl: Acl | None,
    multiparts: UploadsBegun | None,
) -> Version:
    begin = multiparts.begin if multiparts is not None else store.create_multipart
    abort = multiparts.abort if multiparts is not None else store.abort_multipart
    upload_id = await begin(target, properties, acl=acl)
    parts: list[Part] = []

    async def copy(number: int) -> None:
        start = (number - 1) * PART
        stop = min(version.size, start + PART)
        parts.append(await store.copy_part(target, upload_id, number, source, version, start, stop))

    try:
        await each(copy, range(1, -(-version.size // PART) + 1), at_once=PARTS_AT_ONCE)
        condition = version if source == target else Guard.NONE  # what came meanwhile is not to be undone
        made = await store.complete_multipart(target, upload_id, parts, condition=condition, begun_with=properties)
    except OSError:
        await abort(target, upload_id)
        raise
    if multiparts is not None:
        multiparts.ended(upload_id)
    return made
