"""The object store as the rest of sosfs sees it: protocol and values.

Whoever implements it (`s3.S3Store` over HTTP, the `FakeStore` of the tests in memory) passes one contract suite.
Keys are whole S3 keys as `str` (any legal key: `a//b`, `../x`, control characters), ranges half-open
bytes `[start, stop)`, times seconds since the epoch, ETags without their quotes. Every call raises
`errors.StoreError` and nothing else; what is absent raises ENOENT and is never returned as None or empty.

Concurrency: calls are made from the trio thread, any number at once. Bodies handed out may be shared and
are read-only; bodies handed in must not change until the call returns.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Protocol

from sosfs.config.choices import Canned
from sosfs.errors import StoreError
from sosfs.s3.checksums import Checksum
from sosfs.s3.file_body import FileBody

Body = bytes | bytearray | memoryview
PartBody = Body | FileBody
OnRepeat = Callable[[str], object]

PARTS_MAX = 10_000
PUT_MAX = 5 << 30  # one PUT, and one CopyObject
OBJECT_MAX = 4 << 40  # SOS, "Limits and quotas"
KEY_MAX = 1024  # bytes of UTF-8
NO_UPLOAD = "0" * 32  # the id of a multipart upload that nobody has begun
METADATA_MAX = 2048  # bytes of names and values together
DELETE_MAX = 1000  # keys a DeleteObjects call


@dataclass(frozen=True, slots=True)
class Version:
    """The identity of an object's bytes at one time.

    An ETag on SOS is a pure content hash, so it alone does not say that nobody touched the object.
    `modified` is Last-Modified in seconds since the epoch (HEAD knows no fractions, so a listing's are
    dropped), None right after our own write, whose answer does not carry it.
    """

    etag: str
    size: int
    modified: int | None = None

    def same_bytes(self, other: Version) -> bool:
        """Whether both have the same bytes, whatever was done to the metadata since."""
        return self.etag == other.etag and self.size == other.size

    def same_as(self, other: Version) -> bool:
        """Whether both may be one version: equal ETag and size, and equal times where both are known."""
        if not self.same_bytes(other):
            return False
        return self.modified is None or other.modified is None or self.modified == other.modified


NO_VERSIONS: Mapping[str, Version] = MappingProxyType({})
UNKNOWN = Version("", 0)  # what a listing that has nonsense of an object leaves to be asked


@dataclass(frozen=True, slots=True)
class Headers:
    """The six system headers a user may set (SOS "headers"); "" is not set."""

    content_type: str = ""
    cache_control: str = ""
    content_disposition: str = ""
    content_encoding: str = ""
    content_language: str = ""
    expires: str = ""  # as on the wire, an HTTP date


NO_METADATA: Mapping[str, str] = MappingProxyType({})
LOCK_MODES = ("GOVERNANCE", "COMPLIANCE")  # some keys may end the first before its time, nobody the second


@dataclass(frozen=True, slots=True)
class Lock:
    """What Object Lock protects a version with: a retention, a legal hold, both or neither."""

    mode: str = ""  # of the retention, one of `LOCK_MODES`; "" for none
    until: int = 0  # its end, in seconds since the epoch
    is_held: bool = False  # the legal hold

    def holds(self, now: float) -> bool:
        """Whether the version may be neither replaced nor removed, at a moment of the server's clock."""
        return self.is_held or (self.mode != "" and self.until > now)

    def covers(self, other: Lock) -> bool:
        """Whether it protects at least as long and as firmly."""
        is_as_firm = self.mode in (other.mode, LOCK_MODES[-1])
        return (not other.mode or (is_as_firm and self.until >= other.until)) and (self.is_held or not other.is_held)

    def rest(self, now: float) -> Lock:
        """What of it is in force: a retention that is over says nothing any more."""
        return self if self.until > now else Lock(is_held=self.is_held)


UNLOCKED = Lock()


@dataclass(frozen=True, slots=True)
class Properties:
    """What is stored with an object's bytes: headers, user metadata (lower-case names, decoded text), storage class."""

    headers: Headers = Headers()
    metadata: Mapping[str, str] = field(default_factory=lambda: NO_METADATA)
    # "" is STANDARD, which not all servers name; None is not known. No part of what is compared: few answers have it.
    storage_class: str | None = field(default=None, compare=False)
    # What a write is to lock the new version with. Never read: `Object` tells of the one that is there.
    lock: Lock = field(default=UNLOCKED, compare=False)


NOTHING = Properties()


@dataclass(frozen=True, slots=True)
class Grant:
    """One line of an ACL: `grantee` is a canonical ID, or a group's URI (it then begins with http)."""

    grantee: str
    permission: str  # READ WRITE READ_ACP WRITE_ACP FULL_CONTROL


@dataclass(frozen=True, slots=True)
class Acl:
    """Who may do what with an object or bucket."""

    owner: str
    grants: tuple[Grant, ...]

    @property
    def is_private(self) -> bool:
        """Whether this is what any new object gets: its owner's FULL_CONTROL and no more."""
        return all(g.grantee == self.owner and g.permission == "FULL_CONTROL" for g in self.grants)


NO_GRANTS = Acl("", ())  # of a new object that is to be private, whatever others get


@dataclass(frozen=True, slots=True)
class Bucket:
    """A bucket as a listing of an account's buckets shows it."""

    name: str
    created: float = 0.0  # seconds since the epoch
    region: str = ""  # "" where the listing does not name it


@dataclass(frozen=True, slots=True)
class Listed:
    """An object as a listing shows it: no metadata. Its version may be `UNKNOWN`."""

    key: str
    version: Version
    storage_class: str | None = None  # as in `Properties`


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a listing, both parts in key order. `token` asks for the next page; "" after the last."""

    objects: tuple[Listed, ...]
    prefixes: tuple[str, ...]
    token: str = ""


class Detail(Enum):
    """How much a `head` must know."""

    USUAL = "usual"  # what `stat` needs: a store may leave out `expires` and the storage class
    WHOLE = "whole"  # everything: for rewriting an object's properties
    CHECKSUM = "checksum"  # everything, and the checksum that the server has recorded


@dataclass(frozen=True, slots=True)
class Object:
    """An object without its bytes, as HEAD shows it."""

    key: str
    version: Version
    properties: Properties
    detail: Detail = Detail.WHOLE
    version_id: str = ""
    sha256: str = ""  # of all its bytes, in hex, where it was asked for and is recorded
    checksum: Checksum | None = field(default=None, compare=False)  # likewise: the one that costs least to verify
    answered: int = field(default=0, compare=False)  # the server's clock when it told this, in seconds; 0: not known
    is_opaque: bool = field(default=False, compare=False)  # encrypted so that its ETag is no hash of its bytes (KMS)
    lock: Lock = field(default=UNLOCKED, compare=False)  # as far as the key may know it


@dataclass(frozen=True, slots=True)
class Slice:
    """The answer to a GET: the object, and the bytes of the range that was asked."""

    object: Object
    body: memoryview


class Guard(Enum):
    """What must hold for a write to take place, where no `Version` is named."""

    NONE = "none"
    ABSENT = "absent"  # If-None-Match: *


class Check(Enum):
    """When it is found out that a part was copied of the version that was meant, where the server does not heed it."""

    AT_ONCE = "at once"
    AT_COMPLETION = "at completion"  # the copy is of the upload's own key, completed on condition of that version
    BY_HASH = "by hash"  # who asks knows the hash of the bytes, and compares it with the part's ETag


Condition = Guard | Version  # a Version: the object must still be that one (If-Match)


@dataclass(frozen=True, slots=True)
class Part:
    """An uploaded part of a multipart upload."""

    number: int
    etag: str
    size: int


@dataclass(frozen=True, slots=True)
class Upload:
    """A multipart upload that was neither completed nor aborted."""

    key: str
    upload_id: str
    started: int  # seconds since the epoch


@dataclass(frozen=True, slots=True)
class Failure:
    """A key that a batch could not delete."""

    key: str
    error: OSError


class Conditions(Enum):
    """How the server treats If-Match and If-None-Match on PUT, as probed."""

    UNKNOWN = "unknown"
    HONOURED = "honoured"
    IGNORED = "ignored"  # HEAD compare instead: it narrows the race and cannot close it


class Right(Enum):
    """What a key may be refused."""

    WRITE = "write"
    DELETE = "remove"


class ObjectStore(Protocol):
    """One bucket."""

    @property
    def bucket(self) -> str:
        """The bucket's name."""

    @property
    def hashes(self) -> bool:
        """Whether the ETag that one PUT makes is the MD5 of its bytes; with encryption it need not be."""

    @property
    def leaves_no_trace(self) -> bool:
        """Whether what is stored under a key of the mount's own can be removed again, with all versions of it."""

    async def head(self, key: str, *, detail: Detail = Detail.USUAL) -> Object:
        """The object's version and properties. ENOENT only after a 404."""

    async def heads(self, keys: Sequence[str]) -> builtins.list[Object | StoreError]:
        """What `head` tells of each key, or its error, in their order: for many keys that nobody waits for.

        They are asked one after the other; after the first that got no answer the others have its error, unasked.
        """

    async def get(self, key: str, start: int, stop: int, *, etag: str = "") -> Slice:
        """The bytes `[start, stop)`, fewer only where the object ends earlier.

        With `etag` the bytes are of that version or the call fails with ESTALE. A body shorter than its
        own header says is EIO, never a short answer. `start` at or past the end gives an empty body.
        """

    async def list(
        self, prefix: str, *, delimiter: str = "/", after: str = "", token: str = "", limit: int = 1000
    ) -> Page:
        """One page of the keys that begin with `prefix`, those with `delimiter` after it folded.

        `token` continues an earlier page; `after` starts past a key. A page may be short or empty and
        still have a token. The same folded prefix may come again on a later page.
        """

    async def put(
        self, key: str, body: Body, properties: Properties, *, condition: Condition = Guard.NONE,
        acl: Acl | None = None, digest: str = "",
    ) -> Version:  # fmt: skip
        """Stores the object whole or not at all. ESTALE when `condition` does not hold.

        `digest` is the body's MD5 in hex, where the caller has it. Raises
        `upload_check.DamagedWrite` where other bytes arrived.
        """

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
        """Copies on the server, up to 5 GiB; the target's ACL is `acl`, or the default for None.

        `version` pins the source (ESTALE when it changed); `properties` replace the source's, None keeps
        them, but for the storage class, which S3 resets: the target's is `storage_class` then. An error inside a
        200 answer is an error. EOPNOTSUPP where the server cannot copy such an object whole.
        """

    async def delete(self, key: str, *, version: Version | None = None) -> None:
        """Removes the key; one that is not there is removed already.

        With `version` only that one, ESTALE where another is there; a server that cannot tell removes any.
        """

    async def purge(self, key: str) -> None:
        """Removes the key, and its versions where the bucket keeps them and the key may remove them."""

    async def delete_many(
        self, keys: Sequence[str], *, versions: Mapping[str, Version] = NO_VERSIONS
    ) -> builtins.list[Failure]:
        """Removes any number of keys, those with a version as `delete` does, in batches where they can be.

        What could not be removed is returned, key by key.
        """

    async def create_multipart(
        self, key: str, properties: Properties, *, acl: Acl | None = None, on_repeat: OnRepeat | None = None
    ) -> str:
        """Begins a multipart upload and returns its id; `on_repeat` is told it if a lost try may have begun one too."""

    async def upload_part(self, key: str, upload_id: str, number: int, body: PartBody) -> Part:
        """Sends part `number` (1 to 10,000); again replaces it. EIO where other bytes arrived."""

    async def copy_part(
        self, key: str, upload_id: str, number: int, source: str, version: Version, start: int, stop: int, *,
        check: Check = Check.AT_ONCE,
    ) -> Part:  # fmt: skip
        """Makes part `number` of the bytes `[start, stop)` of `source`, still at `version`, on the server.

        ESTALE where it is at another one; with `AT_COMPLETION` it may also be `complete_multipart` that raises it.
        """

    async def complete_multipart(
        self,
        key: str,
        upload_id: str,
        parts: Sequence[Part],
        *,
        condition: Condition = Guard.NONE,
        begun_with: Properties = NOTHING,
    ) -> Version:
        """Makes the object of its parts, given in any order. ESTALE when `condition` does not hold; the upload stays.

        By the properties that the upload was `begun_with` the object is known after a lost answer.
        """

    async def abort_multipart(self, key: str, upload_id: str) -> None:
        """Drops an upload and its parts; one that is gone is dropped already."""

    async def list_parts(self, key: str, upload_id: str) -> builtins.list[Part]:
        """All parts that the server has of an upload, by number. ENXIO when it does not know the upload."""

    async def list_uploads(self, prefix: str) -> builtins.list[Upload]:
        """All unfinished uploads under a prefix."""

    async def has_acls(self) -> bool:
        """Whether ACLs have an effect: False only where the bucket's ownership rules say that they have none."""

    async def get_acl(self, key: str) -> Acl:
        """The object's ACL."""

    async def put_acl(self, key: str, acl: Acl | Canned) -> None:
        """Replaces the object's ACL."""
