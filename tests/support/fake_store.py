"""A bucket in memory: an `ObjectStore` that does what a good S3 server does, for tests and demonstrations.

ETags, times, ACL resets, conditions, pages and multipart limits are those of S3, and it passes the same
contract suite as the real ones. Each call has a checkpoint before it takes effect and none in the middle, so
it is atomic. `fault` is called with operation and key before each call and may raise what the call shall
raise; `calls` counts the calls by operation. Keys are listed in the order of their UTF-8 bytes.
"""

from __future__ import annotations

import builtins
import errno
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import md5
from types import MappingProxyType

import trio

from sosfs.config.choices import (
    PART_MIN,
    Canned,
)
from sosfs.errors import StoreError
from sosfs.s3.http_headers import check_key, check_properties, joined_etag
from sosfs.s3.protocol import (
    DELETE_MAX,
    NO_VERSIONS,
    NOTHING,
    PARTS_MAX,
    Acl,
    Body,
    Check,
    Condition,
    Detail,
    Failure,
    Grant,
    Guard,
    Listed,
    Object,
    Page,
    Part,
    PartBody,
    Properties,
    Slice,
    Upload,
    Version,
)

OWNER = "owner"
PRIVATE = Acl(OWNER, (Grant(OWNER, "FULL_CONTROL"),))
ANYONE = "http://acs.amazonaws.com/groups/global/AllUsers"
ACCOUNTS = "http://acs.amazonaws.com/groups/global/AuthenticatedUsers"
CANNED = {  # beside the owner's own grant; the two for a bucket's owner add nothing where there is one owner
    Canned.PUBLIC_READ: (Grant(ANYONE, "READ"),),
    Canned.PUBLIC_READ_WRITE: (Grant(ANYONE, "READ"), Grant(ANYONE, "WRITE")),
    Canned.AUTHENTICATED_READ: (Grant(ACCOUNTS, "READ"),),
}
UNTYPED = "binary/octet-stream"  # the Content-Type of what was stored without one


@dataclass
class _Stored:
    object: Object
    body: bytes
    acl: Acl


@dataclass
class _Upload:
    key: str
    properties: Properties
    acl: Acl
    started: int
    parts: dict[int, tuple[Part, bytes]] = field(default_factory=dict)


class FakeStore:
    """One bucket. `page` bounds the entries of a listing's page, to make many of few keys.

    Without `hashes` each write makes an ETag of its own, as AWS does where it encrypts.
    """

    def __init__(
        self,
        bucket: str = "bucket",
        *,
        page: int = 1000,
        fault: Callable[[str, str], None] | None = None,
        clock: Callable[[], float] = time.time,
        hashes: bool = True,
    ) -> None:
        self.hashes = hashes
        self.enforces_owner = False
        self.leaves_no_trace = True
        self.pins_deletes = True  # a delete may be of one version alone
        self._bucket = bucket
        self._page = page
        self._clock = clock
        self._stored: dict[str, _Stored] = {}
        self._uploads: dict[str, _Upload] = {}
        self._issued = 0
        self.fault = fault
        self.calls: Counter[str] = Counter()

    @property
    def bucket(self) -> str:
        """The bucket's name."""
        return self._bucket

    async def _begin(self, operation: str, key: str) -> None:
        self.calls[operation] += 1
        if self.fault:
            self.fault(operation, key)
        await trio.lowlevel.checkpoint()

    def _found(self, request: str, key: str) -> _Stored:
        check_key(key)
        if key not in self._stored:
            raise StoreError(errno.ENOENT, f"{request} {key!r}", code="NoSuchKey", status=404)
        return self._stored[key]

    def _require(self, request: str, key: str, condition: Condition) -> None:
        here = self._stored.get(key)
        if condition is Guard.NONE or (condition is Guard.ABSENT and here is None):
            return
        if isinstance(condition, Version) and here is not None and here.object.version.etag == condition.etag:
            return
        raise StoreError(errno.ESTALE, f"{request} {key!r}", code="PreconditionFailed", status=412)

    def _store(self, key: str, body: bytes, etag: str, properties: Properties, acl: Acl | None) -> Version:
        headers = replace(properties.headers, content_type=properties.headers.content_type or UNTYPED)
        kept = Properties(headers, MappingProxyType(dict(properties.metadata)), properties.storage_class or "")
        if not self.hashes:
            self._issued += 1
            etag = _md5(f"{self._issued}".encode())
        found = Object(key, Version(etag, len(body), int(self._clock())), kept)
        self._stored[key] = _Stored(found, body, acl or PRIVATE)
        return Version(etag, len(body))

    async def head(self, key: str, *, detail: Detail = Detail.USUAL) -> Object:
        """As `ObjectStore.head`."""
        await self._begin("head", key)
        found = self._found("head", key).object
        if detail is Detail.WHOLE:
            return found
        told = replace(found.properties.headers, expires="")
        properties = replace(found.properties, headers=told, storage_class=None)
        return replace(found, properties=properties, detail=detail)

    async def heads(self, keys: Sequence[str]) -> builtins.list[Object | StoreError]:
        """As `ObjectStore.heads`."""
        ends: builtins.list[Object | StoreError] = []
        for key in keys:
            try:
                ends.append(await self.head(key))
            except StoreError as error:
                ends.append(error)
                if not error.status:
                    break
        return ends + ends[-1:] * (len(keys) - len(ends))

    async def get(self, key: str, start: int, stop: int, *, etag: str = "") -> Slice:
        """As `ObjectStore.get`."""
        await self._begin("get", key)
        found = self._found("get", key)
        if etag and found.object.version.etag != etag:
            raise StoreError(errno.ESTALE, f"get {key!r}", code="PreconditionFailed", status=412)
        return Slice(found.object, memoryview(found.body)[start : max(start, stop)])

    async def list(
        self, prefix: str, *, delimiter: str = "/", after: str = "", token: str = "", limit: int = 1000
    ) -> Page:
        """As `ObjectStore.list`. The token is the last key of the page before it."""
        await self._begin("list", prefix)
        begin = (token or after).encode()
        keys = sorted((key for key in self._stored if key.startswith(prefix)), key=str.encode)
        objects: list[Listed] = []
        prefixes: list[str] = []
        last = ""
        for key in keys:
            if key.encode() <= begin:
                continue
            end = key.find(delimiter, len(prefix)) + len(delimiter) if delimiter else 0
            folded = key[:end] if end >= len(prefix) + len(delimiter) > 0 else ""
            if folded and prefixes and prefixes[-1] == folded:
                last = key
                continue
            if len(objects) + len(prefixes) >= min(limit, self._page):
                return Page(tuple(objects), tuple(prefixes), last)
            if folded:
                prefixes.append(folded)
            else:
                found = self._stored[key].object
                objects.append(Listed(key, found.version, found.properties.storage_class))
            last = key
        return Page(tuple(objects), tuple(prefixes))

    async def put(
        self, key: str, body: Body, properties: Properties, *, condition: Condition = Guard.NONE,
        acl: Acl | None = None, digest: str = "",
    ) -> Version:  # fmt: skip
        """As `ObjectStore.put`."""
        check_key(key)
        check_properties(properties)
        await self._begin("put", key)
        self._require("put", key, condition)
        kept = bytes(body)
        return self._store(key, kept, _md5(kept), properties, acl)

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
        """As `ObjectStore.copy`. The copy of a multipart object has a plain ETag, as on S3."""
        check_key(target)
        check_properties(properties)
        await self._begin("copy", source)
        found = self._pinned("copy", source, version)
        kept = properties or replace(found.object.properties, storage_class=storage_class)
        return self._store(target, found.body, _md5(found.body), kept, acl)

    def _pinned(self, request: str, source: str, version: Version | None) -> _Stored:
        found = self._found(request, source)
        if version and not found.object.version.same_as(version):
            raise StoreError(errno.ESTALE, f"{request} {source!r}", code="PreconditionFailed", status=412)
        return found

    async def delete(self, key: str, *, version: Version | None = None) -> None:
        """As `ObjectStore.delete`."""
        check_key(key)
        await self._begin("delete", key)
        self._remove(key, version)

    def _remove(self, key: str, version: Version | None) -> None:
        found = self._stored.get(key)
        if found and version and version.etag and self.pins_deletes and found.object.version.etag != version.etag:
            raise StoreError(errno.ESTALE, f"DeleteObject {key!r}", code="PreconditionFailed", status=412)
        self._stored.pop(key, None)

    async def purge(self, key: str) -> None:
        """As `ObjectStore.purge`."""
        await self.delete(key)

    async def delete_many(
        self, keys: Sequence[str], *, versions: Mapping[str, Version] = NO_VERSIONS
    ) -> builtins.list[Failure]:
        """As `ObjectStore.delete_many`. `fault` is asked for each key as a `delete` and fails it alone."""
        for key in keys:
            check_key(key)
        failures = []
        for at in range(0, len(keys), DELETE_MAX):
            try:
                await self._begin("delete_many", keys[at])
            except StoreError as error:
                failures += [Failure(key, error) for key in keys[at : at + DELETE_MAX]]
                continue
            for key in keys[at : at + DELETE_MAX]:
                try:
                    if self.fault:
                        self.fault("delete", key)
                    self._remove(key, versions.get(key))
                except OSError as error:
                    failures.append(Failure(key, error))
        return failures

    async def create_multipart(self, key: str, properties: Properties, *, acl: Acl | None = None, **_: object) -> str:
        """As `ObjectStore.create_multipart`."""
        check_key(key)
        check_properties(properties)
        await self._begin("create_multipart", key)
        self._issued += 1
        upload_id = f"upload-{self._issued}"
        self._uploads[upload_id] = _Upload(key, properties, acl or PRIVATE, int(self._clock()))
        return upload_id

    def _upload(self, request: str, key: str, upload_id: str) -> _Upload:
        upload = self._uploads.get(upload_id)
        if upload is None or upload.key != key:
            raise StoreError(errno.ENXIO, f"{request} {key!r}", code="NoSuchUpload", status=404)
        return upload

    def _add(self, upload: _Upload, number: int, body: bytes) -> Part:
        if not 1 <= number <= PARTS_MAX:
            raise StoreError(errno.EINVAL, f"part {number}", code="InvalidArgument", status=400)
        part = Part(number, _md5(body), len(body))
        upload.parts[number] = (part, body)
        return part

    async def upload_part(self, key: str, upload_id: str, number: int, body: PartBody) -> Part:
        """As `ObjectStore.upload_part`."""
        await self._begin("upload_part", key)
        return self._add(self._upload("upload_part", key, upload_id), number, bytes(body))

    async def copy_part(
        self, key: str, upload_id: str, number: int, source: str, version: Version, start: int, stop: int,
        *, check: Check = Check.AT_ONCE,
    ) -> Part:  # fmt: skip
        """As `ObjectStore.copy_part`, always with the check at once. ESTALE for a range past the source's end."""
        await self._begin("copy_part", key)
        upload = self._upload("copy_part", key, upload_id)
        found = self._pinned("copy_part", source, version)
        if not 0 <= start < stop <= len(found.body):
            raise StoreError(errno.ESTALE, f"copy_part {source!r}", code="InvalidRange", status=416)
        return self._add(upload, number, found.body[start:stop])

    async def complete_multipart(
        self,
        key: str,
        upload_id: str,
        parts: Sequence[Part],
        *,
        condition: Condition = Guard.NONE,
        begun_with: Properties = NOTHING,
    ) -> Version:
        """As `ObjectStore.complete_multipart`. EINVAL for no parts, wrong or small ones, or not all (as Ceph 16)."""
        await self._begin("complete_multipart", key)
        request = "complete_multipart"
        upload = self._upload(request, key, upload_id)
        self._require(request, key, condition)
        ordered = sorted(parts, key=lambda part: part.number)
        if not ordered or ordered != [upload.parts[number][0] for number in sorted(upload.parts)]:
            raise StoreError(errno.EINVAL, f"{request} {key!r}", code="InvalidPart", status=400)
        if any(part.size < PART_MIN for part in ordered[:-1]):
            raise StoreError(errno.EINVAL, f"{request} {key!r}", code="EntityTooSmall", status=400)
        del self._uploads[upload_id]
        body = b"".join(upload.parts[part.number][1] for part in ordered)
        return self._store(key, body, joined_etag(ordered), upload.properties, upload.acl)

    async def abort_multipart(self, key: str, upload_id: str) -> None:
        """As `ObjectStore.abort_multipart`."""
        await self._begin("abort_multipart", key)
        self._uploads.pop(upload_id, None)

    async def list_parts(self, key: str, upload_id: str) -> builtins.list[Part]:
        """As `ObjectStore.list_parts`."""
        await self._begin("list_parts", key)
        return [part for _, (part, _) in sorted(self._upload("list_parts", key, upload_id).parts.items())]

    async def list_uploads(self, prefix: str) -> builtins.list[Upload]:
        """As `ObjectStore.list_uploads`."""
        await self._begin("list_uploads", prefix)
        found = ((upload.key, upload_id, upload.started) for upload_id, upload in self._uploads.items())
        return [Upload(*upload) for upload in sorted(found) if upload[0].startswith(prefix)]

    async def has_acls(self) -> bool:
        """As `ObjectStore.has_acls`."""
        await self._begin("has_acls", "")
        return not self.enforces_owner

    async def get_acl(self, key: str) -> Acl:
        """As `ObjectStore.get_acl`."""
        await self._begin("get_acl", key)
        return self._found("get_acl", key).acl

    async def put_acl(self, key: str, acl: Acl | Canned) -> None:
        """As `ObjectStore.put_acl`."""
        await self._begin("put_acl", key)
        if isinstance(acl, Canned):
            acl = Acl(OWNER, PRIVATE.grants + CANNED.get(acl, ()))
        self._found("put_acl", key).acl = acl


def _md5(body: bytes) -> str:
    return md5(body, usedforsecurity=False).hexdigest()
