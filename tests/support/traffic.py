"""What was asked of a server: the record of requests, and which S3 operation each is.

The counting tests read it: how many HEADs, how many bytes, how many at once. Keys are decoded, bytes are
those of bodies alone, times are `time.monotonic()`. Values only; `proxy.Proxy` fills them from its threads
and only ever appends, so a test may read a record while requests are still under way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from urllib.parse import parse_qsl, unquote, urlsplit


class Op(StrEnum):
    """An S3 operation, named after what it does for a filesystem."""

    GET = "GET"
    HEAD = "HEAD"
    PUT = "PUT"
    COPY = "COPY"
    DELETE = "DELETE"
    DELETE_MANY = "DELETE_MANY"
    LIST = "LIST"
    CREATE_MULTIPART = "CREATE_MULTIPART"
    UPLOAD_PART = "UPLOAD_PART"
    COPY_PART = "COPY_PART"
    COMPLETE = "COMPLETE"
    ABORT = "ABORT"
    LIST_PARTS = "LIST_PARTS"
    LIST_UPLOADS = "LIST_UPLOADS"
    LIST_VERSIONS = "LIST_VERSIONS"
    GET_ACL = "GET_ACL"
    PUT_ACL = "PUT_ACL"
    HEAD_BUCKET = "HEAD_BUCKET"
    CREATE_BUCKET = "CREATE_BUCKET"
    DELETE_BUCKET = "DELETE_BUCKET"
    LIST_BUCKETS = "LIST_BUCKETS"
    SETTING = "SETTING"  # any other sub-resource: ?cors, ?location, ?versioning, ?policy
    OTHER = "OTHER"


# Sub-resources of a bucket or key that are settings of their own; one of these in the query decides.
SETTINGS = frozenset(
    {
        "attributes",
        "cors",
        "encryption",
        "lifecycle",
        "location",
        "logging",
        "notification",
        "object-lock",
        "ownershipControls",
        "policy",
        "policyStatus",
        "publicAccessBlock",
        "replication",
        "requestPayment",
        "tagging",
        "torrent",
        "versioning",
        "website",
    }
)

BY_METHOD = {"GET": Op.GET, "HEAD": Op.HEAD, "PUT": Op.PUT, "DELETE": Op.DELETE}
BUCKET_BY_METHOD = {
    "GET": Op.LIST,
    "HEAD": Op.HEAD_BUCKET,
    "PUT": Op.CREATE_BUCKET,
    "DELETE": Op.DELETE_BUCKET,
}


def operation(method: str, bucket: str, key: str, query: Mapping[str, str], headers: Mapping[str, str]) -> Op:
    """Names the S3 operation of a path-style request."""
    if not bucket:
        return Op.LIST_BUCKETS
    if "acl" in query:
        return Op.GET_ACL if method == "GET" else Op.PUT_ACL
    if SETTINGS & query.keys():
        return Op.SETTING
    if "uploads" in query:
        return Op.CREATE_MULTIPART if method == "POST" else Op.LIST_UPLOADS
    if "uploadId" in query:
        part = Op.COPY_PART if "x-amz-copy-source" in headers else Op.UPLOAD_PART
        return {"PUT": part, "POST": Op.COMPLETE, "DELETE": Op.ABORT, "GET": Op.LIST_PARTS}.get(method, Op.OTHER)
    if "delete" in query:
        return Op.DELETE_MANY
    if "versions" in query:
        return Op.LIST_VERSIONS
    if not key:
        return BUCKET_BY_METHOD.get(method, Op.OTHER)
    if method == "PUT" and "x-amz-copy-source" in headers:
        return Op.COPY
    return BY_METHOD.get(method, Op.OTHER)


@dataclass(slots=True)
class Request:
    """One request as the proxy saw it; what comes later is filled in later."""

    method: str
    op: Op
    bucket: str
    key: str
    query: dict[str, str]
    headers: dict[str, str]
    started: float
    sent: int = 0  # body bytes from the client
    received: int = 0  # body bytes to the client
    status: int = 0  # as the client saw it; 0 where it saw none
    ended: float | None = None
    fault: str = ""  # the action that was taken on it
    document: bytes = b""  # the XML of a POST

    @classmethod
    def parse(cls, method: str, target: str, headers: dict[str, str], started: float) -> Request:
        """The request that a request line and its headers ask for."""
        url = urlsplit("//server" + target if target.startswith("/") else target)
        bucket, _, key = url.path.removeprefix("/").partition("/")
        key = unquote(key, errors="surrogateescape")
        query = dict(parse_qsl(url.query, keep_blank_values=True, errors="surrogateescape"))
        return cls(method, operation(method, bucket, key, query, headers), bucket, key, query, headers, started)

    @property
    def range(self) -> str:
        """The Range header, "" where the whole object was asked for."""
        return self.headers.get("range", "")

    def __str__(self) -> str:
        name = self.key or self.query.get("prefix", "")
        return " ".join(filter(None, [self.op, repr(name), self.range, "->", str(self.status), self.fault]))


Predicate = Callable[[Request], bool]


def on(*ops: str, key: str | None = None, prefix: str = "") -> Predicate:
    """Matches requests of any of `ops` (all where none is named) for one key or for keys with a prefix."""

    def matches(request: Request) -> bool:
        return (not ops or request.op in ops) and (key is None or request.key == key) and request.key.startswith(prefix)

    return matches


@dataclass(slots=True)
class Traffic:
    """A stretch of requests, in the order in which they began."""

    requests: list[Request] = field(default_factory=list)

    def of(self, *ops: str) -> list[Request]:
        """The requests of these operations, all where none is named."""
        return [r for r in tuple(self.requests) if not ops or r.op in ops]

    def count(self, *ops: str) -> int:
        """How many requests there were of these operations, all where none is named."""
        return len(self.of(*ops))

    def tally(self) -> dict[str, int]:
        """How many requests of each operation, for comparing with what a test allows."""
        return dict(Counter(r.op.value for r in tuple(self.requests)))

    def sent(self, *ops: str) -> int:
        """Body bytes that went to the server."""
        return sum(r.sent for r in self.of(*ops))

    def received(self, *ops: str) -> int:
        """Body bytes that came from the server."""
        return sum(r.received for r in self.of(*ops))

    def peak(self, *ops: str) -> int:
        """The most requests that were under way at one time."""
        return peak([(r.started, r.ended) for r in self.of(*ops)])

    def __str__(self) -> str:
        return "\n".join(map(str, self.requests))


def peak(spans: Sequence[tuple[float, float | None]]) -> int:
    """The most spans that overlap; one without an end lasts."""
    edges = [(start, 1) for start, _ in spans] + [(end, -1) for _, end in spans if end is not None]
    most = running = 0
    for _, step in sorted(edges):
        running += step
        most = max(most, running)
    return most
