"""One bucket of an S3 server behind the `ObjectStore` protocol.

What the server does not honour (conditions, pins of copies: `capabilities`) is made up for with a HEAD, which
narrows a race and cannot close it. A lost answer to a conditional write is told from a lost race.

Concurrency: state changes in the trio thread only, between awaits; requests run in threads (`dispatch`).
"""

from __future__ import annotations

import builtins
import errno
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from hashlib import md5
from http import HTTPStatus

from sosfs.config.choices import Canned, Verify
from sosfs.config.zones import of_endpoint
from sosfs.errors import Cause, StoreError, unanswered
from sosfs.s3 import reachability, recognition
from sosfs.s3.batch_delete import remove_all
from sosfs.s3.body_hash import BodyHash, has_sha_instructions
from sosfs.s3.capabilities import Capabilities, Quoting, probe
from sosfs.s3.content_md5 import ContentMd5
from sosfs.s3.dispatch import Dispatcher
from sosfs.s3.endpoint import S3Target
from sosfs.s3.http_headers import check_key, check_properties, joined_etag
from sosfs.s3.limits import Limits
from sosfs.s3.paging import all_pages, check_progress
from sosfs.s3.preconditions import check_still, checked, keeping, landed, look, refused_for_nothing, stale
from sosfs.s3.protocol import (
    NO_VERSIONS,
    NOTHING,
    UNKNOWN,
    UNLOCKED,
    Acl,
    Body,
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
    PartBody,
    Properties,
    Right,
    Slice,
    Upload,
    Version,
)
from sosfs.s3.upload_check import compared, object_arrived, part_arrived

__all__ = ["S3Store", "S3Target"]

log = logging.getLogger(__name__)

VERSIONS_PATIENCE = 2.0  # seconds for an answer that a mount does without


class S3Store:
    """A bucket as `protocol.ObjectStore`. `on_request` is told the name of each S3 operation as it is sent.

    `new_acl` is the default that what is stored without an ACL of its own gets.
    """

    def __init__(
        self,
        target: S3Target,
        *,
        on_request: Callable[[str], None] | None = None,
        new_acl: Canned = Canned.PRIVATE,
        limits: Limits | None = None,
        verify: Verify = Verify.ALL,
    ) -> None:
        self._target = target
        self._verify = verify
        self._new_acl = None if new_acl is Canned.PRIVATE else new_acl
        self.dispatcher = Dispatcher(target, on_request or (lambda operation: None), limits)
        self._send = self.dispatcher.send
        self._look = partial(look, self)
        self.capabilities = Capabilities()  # until `probe_conditions` found out, or somebody who knows the server says
        self._markers: bool | None = None  # whether markers of deletion may be there; None until somebody tells
        self._keeps_versions = False
        self._hides_versions = False  # whether this key may not ask for that
        self.locks = False  # whether objects can be locked, as far as it was told or an object has shown
        self.digests = ContentMd5()
        self._copies = True  # until the server says that it cannot do it with encrypted objects (Ceph 16)

    @property
    def bucket(self) -> str:
        """The bucket's name."""
        return self._target.bucket

    @property
    def hashes(self) -> bool:
        """Whether the ETag that one PUT makes is the MD5 of its bytes."""
        return self.capabilities.hashes and (self.capabilities.known or self._target.customer_key is None)

    @property
    def leaves_no_trace(self) -> bool:
        """Whether what is stored under a key of the mount's own can be removed again: the probe has done it."""
        return self.capabilities.known and not self.capabilities.denied

    @property
    def _compares(self) -> bool:
        return self._verify is Verify.ALL and self.hashes

    @property
    def _part_hash(self) -> BodyHash | None:
        """How the server is to compare a part's bytes; None where their ETag is to be compared here."""
        if self._verify is not Verify.ALL or not self.capabilities.compares:
            return None
        is_cheap = has_sha_instructions() or self._target.is_clear
        return BodyHash.ALWAYS if is_cheap else None

    @property
    def conditions(self) -> Conditions:
        """How the server treats conditional writes; UNKNOWN until `probe_conditions` found out."""
        return self.capabilities.conditions

    @property
    def denied(self) -> frozenset[Right]:
        """What the key may not do with the scratch key of `probe_conditions`."""
        return self.capabilities.denied

    @property
    def keeps_versions(self) -> bool:
        """Whether the bucket keeps what is overwritten or deleted, as far as it was told or a delete has shown."""
        return self._keeps_versions or self._markers is True

    async def look_for_versions(self) -> None:
        """Finds out whether versions are kept; a key that may not ask, or no answer, leaves it open."""
        try:
            self._keeps_versions = await self._send(
                "GetBucketVersioning", lambda calls: calls.within(VERSIONS_PATIENCE).keeps_versions()
            )
        except StoreError as error:
            self._hides_versions = error.cause is Cause.DENIED
            log.info("whether the bucket keeps versions is not known: %s", error)

    async def look_for_locks(self) -> None:
        """Finds out whether objects can be locked, which they can only where versions are kept.

        Where they are, no answer and a key that may not ask count as yes: then each object is asked. Where nothing says
        that they are, they count as no, until an object shows its lock.
        """
        if not (self.keeps_versions or self._hides_versions):
            return
        try:
            self.locks = await self._send(
                "GetObjectLockConfiguration", lambda calls: calls.within(VERSIONS_PATIENCE).locks_objects()
            )
        except StoreError as error:
            log.info("whether the bucket locks objects is not known: %s", error)
            self.locks = self.locks or self.keeps_versions

    def close(self) -> None:
        """Closes idle connections; no call may be under way or follow."""
        self.dispatcher.close()

    async def reach(self, prefix: str = "") -> None:
        """Returns if objects under `prefix` can be listed; else a StoreError that says in words why not, soon.

        One LIST of one key: a limited key may do no more.
        """
        await reachability.reach(self.dispatcher, self._target, prefix)

    async def probe_conditions(self, scratch_key: str, *, storage_class: str = "") -> Conditions:
        """Finds out what the server honours, on a key that must be nobody's and is removed again.

        A key that may not write learns nothing, and then nothing counts as honoured. EPROTO from a server that
        does not encrypt as asked; it may refuse the encryption or the storage class in its own words.
        """
        self.capabilities = await self._send(
            "ProbeConditions", lambda calls: probe(calls, scratch_key, storage_class=storage_class)
        )
        self._markers = self.capabilities.markers
        return self.conditions

    async def head(self, key: str, *, detail: Detail = Detail.USUAL) -> Object:
        """The object's version and properties. ENOENT only after a 404."""
        check_key(key)
        try:
            return self._seen(await self._send("HeadObject", lambda calls: calls.head(key, detail)))
        except StoreError as error:
            if error.elsewhere and error.status == HTTPStatus.NOT_FOUND:
                await self._confirm(key)
            raise

    async def _confirm(self, key: str) -> None:
        """Raises what the server says of an object that a gateway has called absent: a GET's refusal is in XML."""
        try:
            await self._send("GetObject", lambda calls: calls.get(key, 0, 1, ""))
        except StoreError as error:
            if error.code != "InvalidRange":  # it is there, and empty
                raise

    async def heads(self, keys: Sequence[str]) -> builtins.list[Object | StoreError]:
        """What `head` tells of each key, or its error."""
        ends = await self.dispatcher.send_each("HeadObject", lambda calls, key: calls.head(key, Detail.USUAL), keys)
        return [end if isinstance(end, StoreError) else self._seen(end) for end in ends]

    def _seen(self, found: Object) -> Object:
        self.locks = self.locks or found.lock != UNLOCKED
        return found

    async def get(self, key: str, start: int, stop: int, *, etag: str = "") -> Slice:
        """The bytes `[start, stop)`, all of one version: the one with `etag` where it is given, else ESTALE."""
        check_key(key)
        request = f"GetObject {key!r}"
        if start < stop:
            pin = Quoting.QUOTED.of(etag) if etag else ""
            try:
                found = await self._send("GetObject", lambda calls: calls.get(key, start, stop, pin), size=stop - start)
            except StoreError as error:
                if error.code != "InvalidRange":
                    raise
            else:
                return checked(request, found, start, stop, etag)
        here = await self.head(key)  # the range is empty, or begins past the object's end
        return checked(request, Slice(here, memoryview(b"")), start, stop, etag)

    async def list(
        self, prefix: str, *, delimiter: str = "/", after: str = "", token: str = "", limit: int = 1000
    ) -> Page:
        """One page of the keys that begin with `prefix`, those with `delimiter` after it folded."""
        page = await self._send(
            "ListObjectsV2",
            lambda calls: calls.list(prefix, delimiter=delimiter, after=after, token=token, limit=limit),
        )
        if page.token:
            check_progress(f"ListObjectsV2 {prefix!r}", page.token, {token})
        return page

    async def put(
        self, key: str, body: Body, properties: Properties, *, condition: Condition = Guard.NONE,
        acl: Acl | None = None, digest: str = "",
    ) -> Version:  # fmt: skip
        """Stores the object whole or not at all. ESTALE when `condition` does not hold; EIO if other bytes arrived."""
        check_key(key)
        check_properties(properties)
        put = partial(self._put, key, body, properties, acl or self._new_acl, digest)
        return await object_arrived(f"PutObject {key!r}", put, condition, partial(self.head, key, detail=Detail.WHOLE))

    async def _put(
        self, key: str, body: Body, properties: Properties, acl: Acl | Canned | None, digest: str, condition: Condition
    ) -> tuple[Version, bool]:
        """Stores the object once; whether other bytes arrived."""
        request, size, able = f"PutObject {key!r}", len(body), self.capabilities

        async def store(sent: Mapping[str, str]) -> tuple[Version, bool]:
            if able.match and isinstance(condition, Version) and "If-Match" not in sent and not key.endswith("/"):
                # It was refused, and holds; that of a marker says nothing of files, where keys are a tree.
                self.capabilities = replace(self.capabilities, match=None)
            ask = compared(self._compares, lambda calls: calls.put(key, body, properties, acl, sent), body, digest)
            return await self._send("PutObject", ask, size=size)

        async def ours(error: StoreError) -> tuple[Version, bool] | None:
            if not error.repeated or error.cause not in (Cause.CONFLICT, Cause.ABSENT):
                return None
            hashed = digest or md5(body, usedforsecurity=False).hexdigest()
            token = recognition.token(hashed, size, properties, hashes=self.hashes)
            there = await landed(self._look, key, token, properties, instead_of=condition)
            return None if there is None else (there, False)

        kept = partial(keeping, absent=able.absent, match=able.match, markers=self._markers is not False)
        return await kept(self._look, request, key, condition, partial(self.digests.stored, body, store), ours)

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
        if version == UNKNOWN:
            raise unanswered(request, "the listing does not say which version")
        if version and not (self.capabilities.copy_pin or hashed):
            await check_still(self.head, request, source, version)
        if not self._copies:
            raise StoreError(errno.EOPNOTSUPP, request)

        async def ask(digest: Mapping[str, str]) -> str:
            return await self._send(
                "CopyObject",
                lambda calls: calls.copy(
                    source, target, pin=pin, properties=properties, acl=granted, storage_class=storage_class,
                    digest=digest,
                ),
                size=version.size if version else 0,
            )  # fmt: skip

        try:
            etag = await self.digests.stored(b"", ask, {})
        except StoreError as error:
            self._copies = error.code != "NotImplemented" or self._target.customer_key is None
            raise
        if version is None:
            return (await self.head(target)).version
        if hashed and not self.capabilities.copy_pin and etag != version.etag:
            raise stale(request, f"{etag} was copied, not {version.etag}")
        return Version(etag, version.size)

    async def delete(self, key: str, *, version: Version | None = None) -> None:
        """Removes the key; one that is not there is removed already.

        With `version` only that one, ESTALE where another is there; a server that cannot tell removes any.
        """
        check_key(key)
        pin = Quoting.QUOTED.of(version.etag) if version and version.etag and self.capabilities.delete_pin else ""
        try:
            left = await self._send("DeleteObject", lambda calls: calls.delete(key, if_match=pin))
        except StoreError as error:
            if pin and version and error.cause is Cause.CONFLICT:
                await self._delete_same(key, version, error)
            elif error.cause is not Cause.ABSENT:
                raise
        else:
            self._markers = True if left else self._markers

    async def _delete_same(self, key: str, version: Version, refused: StoreError) -> None:
        """After If-Match was refused: a server may compare another ETag than it has told. ESTALE where it did not.

        Also where nobody may see what is there: that is no refusal to remove it. EIO where another client writes it.
        """
        request = f"DeleteObject {key!r}"
        try:
            await check_still(self._look, request, key, version)
        except StoreError as error:
            if error.cause is Cause.ABSENT:
                return
            if error.cause is Cause.DENIED:
                raise stale(request, "it may not be seen which version is there", refused) from error
            raise
        if refused.status != HTTPStatus.PRECONDITION_FAILED:
            raise refused_for_nothing(request, refused)
        await self.delete(key)

    async def purge(self, key: str) -> None:
        """Removes the key, and its versions where the bucket keeps them and the key may remove them."""
        check_key(key)
        try:
            await self._send("DeleteObject", lambda calls: calls.purge(key))
        except StoreError as error:
            if error.cause is not Cause.ABSENT:
                raise

    async def delete_many(
        self, keys: Sequence[str], *, versions: Mapping[str, Version] = NO_VERSIONS
    ) -> builtins.list[Failure]:
        """Removes any number of keys, those with a version as `delete` does, in batches where they can be.

        What could not be removed is returned, key by key.
        """
        for key in keys:
            check_key(key)
        able = self.capabilities
        pins = {key: version for key, version in versions.items() if version.etag} if able.delete_pin else NO_VERSIONS
        if self._markers is False:
            self._markers = None  # versions may be kept by now, and the answer does not tell of markers
        return await remove_all(self.dispatcher, self.delete, keys, pins, in_batches=able.batch_pin)

    async def create_multipart(
        self, key: str, properties: Properties, *, acl: Acl | None = None, on_repeat: OnRepeat | None = None
    ) -> str:
        """Begins a multipart upload and returns its id."""
        check_key(key)
        check_properties(properties)
        return await self._send(
            "CreateMultipartUpload",
            lambda calls: calls.create_multipart(key, properties, acl or self._new_acl, on_repeat),
        )

    async def upload_part(self, key: str, upload_id: str, number: int, body: PartBody) -> Part:
        """Sends part `number` (1 to 10,000); again replaces it. EIO where other bytes arrived."""

        by_server = self._part_hash
        hashed = by_server or BodyHash.IN_CLEAR

        async def store(headers: Mapping[str, str]) -> tuple[Part, bool]:
            ask = compared(
                self._compares and by_server is None,
                lambda calls: calls.upload_part(key, upload_id, number, body, headers, body_hash=hashed),
                body,
            )
            return await self._send("UploadPart", ask, size=len(body))

        return await part_arrived(f"UploadPart {key!r}", partial(self.digests.stored, body, store, {}))

    async def copy_part(
        self, key: str, upload_id: str, number: int, source: str, version: Version, start: int, stop: int, *,
        check: Check = Check.AT_ONCE,
    ) -> Part:  # fmt: skip
        """Makes part `number` of the bytes `[start, stop)` of `source`, still at `version`, on the server."""
        request, pin = f"UploadPartCopy {source!r} to {key!r}", Quoting.QUOTED.of(version.etag)
        try:
            part = await self._send(
                "UploadPartCopy",
                lambda calls: calls.copy_part(key, upload_id, number, source, pin=pin, start=start, stop=stop),
                size=stop - start,
            )
        except StoreError as error:
            if error.code == "InvalidRange":
                await check_still(self.head, request, source, version)
                error.errno = errno.EIO  # nobody has cut it off
            raise
        if not self.capabilities.part_pin and check is Check.AT_ONCE:
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
        able, request, size = self.capabilities, f"CompleteMultipartUpload {key!r}", sum(part.size for part in parts)
        match = Quoting.QUOTED if able.complete else None

        async def join(headers: Mapping[str, str]) -> str:
            return await self._send(
                "CompleteMultipartUpload", lambda calls: calls.complete_multipart(key, upload_id, parts, headers)
            )

        async def ours(error: StoreError) -> str | None:
            """Joined before, the answer lost; Ceph 16 calls that InternalError."""
            unsure = error.errno in (errno.EIO, errno.ETIMEDOUT, errno.ENXIO)
            if not unsure and not (error.repeated and error.cause is Cause.CONFLICT):
                return None
            token = recognition.token(joined_etag(parts), size, begun_with, hashes=self.hashes)
            there = await landed(self._look, key, token, None, instead_of=condition)
            return there.etag if there else None

        kept = partial(keeping, absent=able.complete, match=match, markers=self._markers is not False)
        etag = await kept(self._look, request, key, condition, join, ours)
        if not etag:  # Ceph 16 leaves it out
            etag = (joined_etag(parts) if self.hashes else "") or (await self.head(key)).version.etag
        return Version(etag, size)

    async def abort_multipart(self, key: str, upload_id: str) -> None:
        """Drops an upload and its parts; one that is gone is dropped already."""
        try:
            await self._send("AbortMultipartUpload", lambda calls: calls.abort_multipart(key, upload_id))
        except StoreError as error:
            if error.errno != errno.ENXIO:
                raise

    async def list_parts(self, key: str, upload_id: str) -> builtins.list[Part]:
        """All parts that the server has of an upload, by number. ENXIO when it does not know the upload."""
        return await all_pages(
            self.dispatcher, "ListParts", lambda calls, after: calls.list_parts(key, upload_id, after or "")
        )

    async def list_uploads(self, prefix: str) -> builtins.list[Upload]:
        """All unfinished uploads under a prefix."""
        return await all_pages(
            self.dispatcher, "ListMultipartUploads", lambda calls, after: calls.list_uploads(prefix, after)
        )

    async def has_acls(self) -> bool:
        """Whether ACLs have an effect. Raises StoreError, soon, for an answer that says nothing of it.

        SOS is not asked: it shows fresh buckets as BucketOwnerEnforced, and has ACLs in them.
        """
        if of_endpoint(self._target.endpoint):
            return True
        return await self._send("GetBucketOwnershipControls", lambda calls: calls.within(VERSIONS_PATIENCE).has_acls())

    async def get_acl(self, key: str) -> Acl:
        """The object's ACL."""
        check_key(key)
        return await self._send("GetObjectAcl", lambda calls: calls.get_acl(key))

    async def put_acl(self, key: str, acl: Acl | Canned) -> None:
        """Replaces the object's ACL."""
        check_key(key)
        await self._send("PutObjectAcl", lambda calls: calls.put_acl(key, acl))
