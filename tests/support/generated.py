"""A bucket of any number of small files, whose server works out its answers instead of storing them.

`Files` says which keys there are: `number` files, in directories of `each`. What is removed is gone; what is stored
(the probe of a mount, markers of directories) is kept apart and in no listing. Requests are counted by what they do.
"""

from __future__ import annotations

import hashlib
import re
import threading
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, overload
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape, unescape

from tests.support.mounting import Access
from tests.support.scripted import Scripted, Seen, answer

BUCKET = "generated"
SIZE = 5000  # bytes: too large for a symbolic link, so that a listing tells the type
WRITTEN, DATE = "2024-05-01T10:00:00.000Z", "Wed, 01 May 2024 10:00:00 GMT"
PAGE = 1000
PROBE = ".sosfs-probe-"  # in the name of the key on which a mount tries what a server honours
_KEY = re.compile("<Key>(.*?)</Key>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Files(Sequence[str]):
    """The keys in order: `top/f0000000` and on, or with `each` so many in each of `top/d0000` and on."""

    number: int
    each: int = 0
    top: str = "t/"

    def __len__(self) -> int:
        return self.number

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> list[str]: ...
    def __getitem__(self, at: int | slice) -> str | list[str]:
        if isinstance(at, slice):
            return [self[one] for one in range(*at.indices(self.number))]
        if not 0 <= at < self.number:
            raise IndexError(at)
        return f"{self.top}d{at // self.each:04d}/f{at % self.each:07d}" if self.each else f"{self.top}f{at:07d}"

    def has(self, key: str) -> bool:
        """Whether it is one of them."""
        at = bisect_left(self, key)
        return at < self.number and self[at] == key


@dataclass
class Generated:
    """The server, of one bucket. `counts` are requests by name; `removed` what is gone of the files."""

    files: Files
    counts: Counter[str] = field(default_factory=Counter)
    removed: set[str] = field(default_factory=set)
    batches: list[int] = field(default_factory=list)  # keys of each DeleteObjects

    def __post_init__(self) -> None:
        self._stored: dict[str, bytes] = {}
        self._lock = threading.Lock()
        self.server = Scripted(self._answer)

    def __enter__(self) -> Generated:
        return self

    def __exit__(self, *details: object) -> None:
        self.server.__exit__(*details)

    @property
    def access(self) -> Access:
        """How to reach it."""
        return Access(self.server.endpoint, "EXOkey", "secret")

    @property
    def left(self) -> int:
        """How many of the files are there."""
        return self.files.number - len(self.removed)

    def _answer(self, seen: Seen) -> bytes:
        self.server.seen.clear()
        url = urlsplit(seen.target)
        key = unquote(url.path.removeprefix(f"/{BUCKET}").removeprefix("/"))
        query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        with self._lock:
            if not key:
                return self._bucket(seen, query)
            if query.keys() & {"acl", "uploads", "tagging", "retention"}:
                self._count("other")
                return _error(501, "NotImplemented")
            return getattr(self, f"_{seen.method.lower()}", _unknown)(seen, key)

    def _count(self, name: str) -> None:
        self.counts[name] += 1

    # Objects

    def _has(self, key: str) -> bool:
        return key in self._stored or (key not in self.removed and self.files.has(key))

    def _object(self, seen: Seen, key: str, body: bytes) -> bytes:
        if not self._has(key):
            return _error(404, "NoSuchKey", body=bool(body))
        kept = self._stored.get(key)
        size, etag = (SIZE, etag_of(key)) if kept is None else (len(kept), hashlib.md5(kept).hexdigest())
        return answer(
            200, body, f'ETag: "{etag}"', f"Last-Modified: {DATE}", "x-amz-request-id: 1", length=None if body else size
        )

    def _head(self, seen: Seen, key: str) -> bytes:
        self._count("HEAD")
        return self._object(seen, key, b"")

    def _get(self, seen: Seen, key: str) -> bytes:
        self._count("GET")
        return self._object(seen, key, self._stored.get(key, bytes(SIZE)))

    def _put(self, seen: Seen, key: str) -> bytes:
        self._count("PUT")
        if seen.headers.get("if-none-match") == "*" and self._has(key):
            return _error(412, "PreconditionFailed")
        there = seen.headers.get("if-match")
        if there is not None and there.strip('"') != hashlib.md5(self._stored.get(key, b"")).hexdigest():
            return _error(412, "PreconditionFailed")
        self._stored[key] = seen.body
        return answer(200, b"", f'ETag: "{hashlib.md5(seen.body).hexdigest()}"', "x-amz-request-id: 1")

    def _delete(self, seen: Seen, key: str) -> bytes:
        if PROBE in key:
            return self._probed(seen)
        self._count("DELETE")
        self._remove(key)
        return answer(204, b"", "x-amz-request-id: 1", length=-1)

    def _probed(self, seen: Seen) -> bytes:
        """What ends a mount's probe at once: a marker of the deletion is made, which may not be removed."""
        if "versionId" in seen.target:
            return _error(403, "AccessDenied")
        return answer(204, b"", "x-amz-request-id: 1", "x-amz-version-id: 1", "x-amz-delete-marker: true", length=-1)

    def _remove(self, key: str) -> None:
        self._stored.pop(key, None)
        if self.files.has(key):
            self.removed.add(key)

    # The bucket

    def _bucket(self, seen: Seen, query: dict[str, str]) -> bytes:
        if seen.method == "GET" and "list-type" in query:
            self._count("LIST")
            self.counts["LIST after a key"] += "start-after" in query
            return _document(self._page(query))
        if seen.method == "POST" and "delete" in query:
            keys = [unescape(key, {"&quot;": '"'}) for key in _KEY.findall(seen.body.decode())]
            self._count("DeleteObjects")
            self.batches.append(len(keys))
            for key in keys:
                self._remove(key)
            return _document('<DeleteResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"></DeleteResult>')
        self._count("other")
        if seen.method == "HEAD":
            return answer(200, b"", "x-amz-request-id: 1")
        if "versioning" in query:
            return _document('<VersioningConfiguration xmlns="http://s3.amazonaws.com/doc/2006-03-01/"/>')
        if "uploads" in query:
            return _document(
                "<ListMultipartUploadsResult><IsTruncated>false</IsTruncated></ListMultipartUploadsResult>"
            )
        return _error(501, "NotImplemented")

    def _page(self, query: dict[str, str]) -> str:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        most = min(PAGE, int(query.get("max-keys", PAGE)))
        at = bisect_left(self.files, prefix)
        if after := query.get("start-after", ""):
            at = max(at, bisect_right(self.files, after))
        at = int(query.get("continuation-token", at))
        shown: list[str] = []
        for kind, name, following in self._entries(prefix, delimiter, at):
            if len(shown) == most:
                break
            shown.append(_contents(name) if kind == "key" else _prefix(name))
            at = following
        else:
            at = -1
        more = f"<NextContinuationToken>{at}</NextContinuationToken>" if at >= 0 else ""
        return (
            '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>{BUCKET}</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>{len(shown)}</KeyCount>"
            f"<MaxKeys>{most}</MaxKeys><EncodingType>url</EncodingType>"
            f"<IsTruncated>{str(at >= 0).lower()}</IsTruncated>{more}{''.join(shown)}</ListBucketResult>"
        )

    def _entries(self, prefix: str, delimiter: str, at: int) -> Iterator[tuple[str, str, int]]:
        """Keys and prefixes from an index on, each with the index after it."""
        while at < len(self.files) and (key := self.files[at]).startswith(prefix):
            if key in self.removed:
                at += 1
            elif delimiter and (end := key.find(delimiter, len(prefix))) >= 0:
                folder = key[: end + 1]
                stop = bisect_left(self.files, folder[:-1] + "0")  # "0" follows "/"
                if any(self.files[one] not in self.removed for one in range(at, stop)):
                    yield "prefix", folder, stop
                at = stop
            else:
                at += 1
                yield "key", key, at


def etag_of(key: str) -> str:
    """Of a file: no two have the same, as of files with bytes of their own."""
    return hashlib.md5(key.encode()).hexdigest()


def _contents(key: str) -> str:
    return (
        f"<Contents><Key>{quote(key)}</Key><LastModified>{WRITTEN}</LastModified><ETag>&quot;{etag_of(key)}&quot;</ETag>"
        f"<Size>{SIZE}</Size><StorageClass>STANDARD</StorageClass></Contents>"
    )


def _prefix(folder: str) -> str:
    return f"<CommonPrefixes><Prefix>{quote(folder)}</Prefix></CommonPrefixes>"


def _document(text: str) -> bytes:
    return answer(200, text.encode(), "Content-Type: application/xml", "x-amz-request-id: 1")


def _error(status: int, code: str, *, body: bool = True) -> bytes:
    text = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>" if body else ""
    return answer(status, text.encode(), "Content-Type: application/xml", "x-amz-request-id: 1")


def _unknown(*_: Any) -> bytes:
    return _error(405, "MethodNotAllowed")
