"""One bucket of an S3 server: what a call promises beyond what the server does, decided here and only here.

What the server does not honour (conditions, pins of copies: `abilities`) is made up for with a HEAD, which
narrows a race and cannot close it. A lost answer to a conditional write is told from a lost race.

Concurrency: state changes in the trio thread only, between awaits; requests run in threads (`sender`).
"""

from __future__ import annotations

import builtins
import errno
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from hashlib import md5
from typing import TYPE_CHECKING, TypeVar

from sosfs import landing, reasons
from sosfs.abilities import Abilities, Quoting, probe
from sosfs.errors import Cause, StoreError, unanswered
from sosfs.guards import check_etag, check_still, header_for, holds, landed, look, stale
from sosfs.removal import remove_all
from sosfs.sender import Limits, Sender
from sosfs.store import (
    NOTHING,
    Acl,
    Body,
    Canned,
    Check,
    Condition,
    Conditions,
    Detail,
    Failure,
    Guard,
    Object,
    OnRepeat,
    Page,
    Part,
    Properties,
    Right,
    Slice,
    Upload,
    Version,
)
from sosfs.target import S3Target
from sosfs.wire import check_key, check_properties, joined_etag

if TYPE_CHECKING:
    from sosfs.lanes import Lanes

T = TypeVar("T")
M = TypeVar("M")

__all__ = ["S3Store", "S3Target"]

REACH_PATIENCE = 3.0  # seconds: who mounts waits at a terminal


class S3Store:
    """A bucket as `store.ObjectStore`. `on_request` is told the name of each S3 operation as it is sent.

    `new_acl` is the default that what is stored without an ACL of its own gets.
    """

    def __init__(
        self,
        target: S3Target,
        *,
        on_request: Callable[[str], None] | None = None,
        new_acl: Canned = Canned.PRIVATE,
        limits: Limits | None = None,
    ) -> None:
        self._target = target
        self._new_acl = None if new_acl is Canned.PRIVATE else new_acl
        self.sender = Sender(target, on_request or (lambda operation: None), limits)
        self._send = self.sender.send
        self._look = partial(look, self)
        self.abilities = Abilities()  # until `probe_conditions` found out, or somebody who knows the server tells
        self._copies = True  # until the server says that it cannot do it with encrypted objects (Ceph 16)

    @property
    def bucket(self) -> str:
        """The bucket's name."""
        return self._target.bucket

    @property
    def hashes(self) -> bool:
        """Whether the ETag that one PUT makes is the MD5 of its bytes."""
        return self.abilities.hashes and (self.abilities.known or self._target.customer_key is None)

    @property
    def conditions(self) -> Conditions:
        """How the server treats conditional writes; UNKNOWN until `probe_conditions` found out."""
        return self.abilities.conditions

    @property
    def denied(self) -> frozenset[Right]:
        """What the key may not do with the scratch key of `probe_conditions`."""
        return self.abilities.denied

    def close(self) -> None:
        """Closes idle connections; no call may be under way or follow."""
        self.sender.close()

    async def reach(self, prefix: str = "") -> None:
        """Returns if objects under `prefix` can be listed; else a StoreError that says in words why not, soon.

        One LIST of one key: a limited key may do no more (neither ListBuckets nor HeadBucket).
        """
        quick = replace(self._target, patience=min(REACH_PATIENCE, self._target.patience))

        def ask(lanes: Lanes) -> None:
            type(lanes).opened(quick, lanes.key).signed.list(prefix, delimiter="", after="", token="", limit=1)

        try:
            await self._send("ListObjectsV2", ask)
        except StoreError as error:
            raise reasons.unreachable(error, f"bucket {self.bucket!r} at {self._target.endpoint}") from error

    async def probe_conditions(self, scratch_key: str, *, storage_class: str = "") -> Conditions:
        """Finds out what the server honours, on a key that must be nobody's and is removed again.

        A key that may not write learns nothing, and then nothing counts as honoured. EPROTO from a server that
        does not encrypt as asked; it may refuse the encryption or the storage class in its own words.
        """
        self.abilities = await self._send(
            "ProbeConditions", lambda lanes: probe(lanes.signed, scratch_key, storage_class=storage_class)
        )
        return self.conditions

    async def head(self, key: str, *, detail: Detail = Detail.USUAL) -> Object:
        """The object's version and properties. ENOENT only after a 404."""
        check_key(key)
        return await self._send("HeadObject", lambda lanes: lanes.head(key, detail))

    async def heads(self, keys: Sequence[str]) -> builtins.list[Object | StoreError]:
        """What `head` tells of each key, or its error."""
        return await self.sender.send_each("HeadObject", lambda lanes, key: lanes.head(key, Detail.USUAL), keys)

    async def get(self, key: str, start: int, stop: int, *, etag: str = "") -> Slice:
        """The bytes `[start, stop)`, all of one version: the one with `etag` where it is given, else ESTALE."""
        check_key(key)
        request = f"GetObject {key!r}"
        if start < stop:
            pin = Quoting.QUOTED.of(etag) if etag else ""
            try:
                found = await self._send("GetObject", lambda lanes: lanes.get(key, start, stop, pin), size=stop - start)
            except StoreError as error:
                if error.status != 416:
                    raise
            else:
                check_etag(request, found.object.version, etag)
                due = max(0, min(stop, found.object.version.size) - start)
                if len(found.body) != due:
                    raise unanswered(request, f"{len(found.body)} bytes where {due} were due")
                return found
        here = await self.head(key)  # the range is empty, or begins past the object's end
        check_etag(request, here.version, etag)
        if start < min(stop, here.version.size):
            raise stale(request, "it grew meanwhile")
        return Slice(here, memoryview(b""))

    async def list(
        self, prefix: str, *, delimiter: str = "/", after: str = "", token: str = "", limit: int = 1000
    ) -> Page:
        """One page of the keys that begin with `prefix`, those with `delimiter` after it folded."""
        return await self._send(
            "ListObjectsV2",
            lambda lanes: lanes.signed.list(prefix, delimiter=delimiter, after=after, token=token, limit=limit),
        )

    async def put(
        self, key: str, body: Body, properties: Properties, *, condition: Condition = Guard.NONE, acl: Acl | None = None
    ) -> Version:
        """Stores the object whole or not at all. ESTALE when `condition` does not hold."""
        check_key(key)
        check_properties(properties)
        request, size, granted = f"PutObject {key!r}", len(body), acl or self._new_acl
        able = self.abilities
        guard = await header_for(self._look, request, key, condition, absent=able.absent, match=able.match)
        try:
            return await self._send(
                "PutObject", lambda lanes: lanes.put(key, body, properties, granted, guard), size=size
            )
        except StoreError as error:
            if condition is Guard.NONE or error.cause not in (Cause.CONFLICT, Cause.ABSENT):
                raise
            ours = landing.token(md5(body, usedforsecurity=False).hexdigest(), size, properties, hashes=self.hashes)
            there = await landed(self._look, key, ours, properties, instead_of=condition) if error.repeated else None
            if there is not None:
                return there
            if "If-Match" not in guard or error.status != 412 or not await holds(self._look, key, condition):
                raise stale(request, "the condition does not hold", error) from error
        self.abilities = replace(self.abilities, match=None)
        return await self.put(key, body, properties, condition=condition, acl=acl)

    async def copy(
        self,
        source: str,
        target: str,
        *,
        version: Version | None = None,
        properties: Properties | None = None,
        storage_class: str | None = None,
        acl: Acl | None = None,
    ) -> Version:
        """Copies on the server, up to 5 GiB. ESTALE where the source is not `version` (any more)."""
        check_key(source)
        check_key(target)
        check_properties(properties)
        request, granted = f"CopyObject {source!r} to {target!r}", acl or self._new_acl
        pin = Quoting.QUOTED.of(version.etag) if version else ""
        # The copy of a multipart object has another ETag, and so has that of an encrypted one on some servers.
        hashed = version is not None and "-" not in version.etag and self.hashes
        if version and not (self.abilities.copy_pin or hashed):
            await check_still(self.head, request, source, version)
        if not self._copies:
            raise StoreError(errno.EOPNOTSUPP, request)

        def ask(lanes: Lanes) -> str:
            kept = storage_class
            return lanes.signed.copy(source, target, pin=pin, properties=properties, acl=granted, storage_class=kept)

        try:
            etag = await self._send("CopyObject", ask, size=version.size if version else 0)
        except StoreError as error:
            self._copies = error.code != "NotImplemented" or self._target.customer_key is None
            raise
        if version is None:
            return (await self.head(target)).version
        if hashed and not self.abilities.copy_pin and etag != version.etag:
            raise stale(request, f"{etag} was copied, not {version.etag}")
        return Version(etag, version.size)

    async def delete(self, key: str) -> None:
        """Removes the key; one that is not there is removed already."""
        check_key(key)
        try:
            await self._send("DeleteObject", lambda lanes: lanes.signed.delete(key))
        except StoreError as error:
            if error.cause is not Cause.ABSENT:
                raise

    async def delete_many(self, keys: Sequence[str]) -> builtins.list[Failure]:
        """Removes any number of keys, 1,000 a request; what could not be removed is returned, key by key."""
        for key in keys:
            check_key(key)
        return await remove_all(self.sender, self.delete, keys)

    async def create_multipart(
        self, key: str, properties: Properties, *, acl: Acl | None = None, on_repeat: OnRepeat | None = None
    ) -> str:
        """Begins a multipart upload and returns its id."""
        check_key(key)
        check_properties(properties)
        return await self._send(
            "CreateMultipartUpload",
            lambda lanes: lanes.signed.create_multipart(key, properties, acl or self._new_acl, on_repeat),
        )

    async def upload_part(self, key: str, upload_id: str, number: int, body: Body) -> Part:
        """Sends part `number` (1 to 10,000); again replaces it."""
        return await self._send(
            "UploadPart", lambda lanes: lanes.signed.upload_part(key, upload_id, number, body), size=len(body)
        )

    async def copy_part(
        self, key: str, upload_id: str, number: int, source: str, version: Version, start: int, stop: int, *,
        check: Check = Check.AT_ONCE,
    ) -> Part:  # fmt: skip
        """Makes part `number` of the bytes `[start, stop)` of `source`, still at `version`, on the server."""
        request, pin = f"UploadPartCopy {source!r} to {key!r}", Quoting.QUOTED.of(version.etag)
        part = await self._send(
            "UploadPartCopy",
            lambda lanes: lanes.signed.copy_part(key, upload_id, number, source, pin=pin, start=start, stop=stop),
            size=stop - start,
        )
        if not self.abilities.part_pin and check is Check.AT_ONCE:
            await check_still(self.head, request, source, version)  # after the copy: so it was this one all along
        return part

    async def complete_multipart(
        self,
        key: str,
        upload_id: str,
        parts: Sequence[Part],
        *,
        condition: Condition = Guard.NONE,
        begun_with: Properties = NOTHING,
    ) -> Version:
        """Makes the object of its parts. ESTALE when `condition` does not hold, and the upload stays."""
        able, request, size = self.abilities, f"CompleteMultipartUpload {key!r}", sum(part.size for part in parts)
        match = Quoting.QUOTED if able.complete else None
        guard = await header_for(self._look, request, key, condition, absent=able.complete, match=match)
        try:
            etag = await self._send(
                "CompleteMultipartUpload", lambda lanes: lanes.signed.complete_multipart(key, upload_id, parts, guard)
            )
        except StoreError as error:
            unsure = error.errno in (errno.EIO, errno.ETIMEDOUT, errno.ENXIO)
            if unsure or (error.repeated and error.cause is Cause.CONFLICT):
                ours = landing.token(joined_etag(parts), size, begun_with, hashes=self.hashes)
                there = await landed(self._look, key, ours, None, instead_of=condition)
                if there is not None:
                    return there  # joined before, the answer lost; Ceph 16 calls that InternalError
            if guard and error.code == "NoSuchKey":  # If-Match where nothing is
                raise stale(request, "the condition does not hold", error) from error
            raise
        if not etag:  # Ceph 16 leaves it out
            etag = (joined_etag(parts) if self.hashes else "") or (await self.head(key)).version.etag
        return Version(etag, size)

    async def abort_multipart(self, key: str, upload_id: str) -> None:
        """Drops an upload and its parts; one that is gone is dropped already."""
        try:
            await self._send("AbortMultipartUpload", lambda lanes: lanes.signed.abort_multipart(key, upload_id))
        except StoreError as error:
            if error.errno != errno.ENXIO:
                raise

    async def list_parts(self, key: str, upload_id: str) -> builtins.list[Part]:
        """All parts that the server has of an upload, by number. ENXIO when it does not know the upload."""
        return await self._pages("ListParts", lambda after, lanes: lanes.signed.list_parts(key, upload_id, after or ""))

    async def list_uploads(self, prefix: str) -> builtins.list[Upload]:
        """All unfinished uploads under a prefix."""
        return await self._pages("ListMultipartUploads", lambda after, lanes: lanes.signed.list_uploads(prefix, after))

    async def _pages(
        self, operation: str, ask: Callable[[M | None, Lanes], tuple[builtins.list[T], M | None]]
    ) -> builtins.list[T]:
        """All that a listing has, page by page; each page tells after what the next one begins."""
        found: builtins.list[T] = []
        marker: M | None = None
        while True:
            page, marker = await self._send(operation, partial(ask, marker))
            found += page
            if not marker:
                return found

    async def get_acl(self, key: str) -> Acl:
        """The object's ACL."""
        check_key(key)
        return await self._send("GetObjectAcl", lambda lanes: lanes.signed.get_acl(key))

    async def put_acl(self, key: str, acl: Acl | Canned) -> None:
        """Replaces the object's ACL."""
        check_key(key)
        await self._send("PutObjectAcl", lambda lanes: lanes.signed.put_acl(key, acl))
