"""Judge whether the answer to a HEAD or a GET is an object, before its body is read.

A login page, an empty answer, an error that came with 200 are no objects, however well they look. An object has an
ETag, a length, and a time that can be read; a range says which one it is and of how many bytes. What lacks one of
them is EIO, and the error says what came instead. Pure functions, safe from any thread.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from sosfs.errors import StoreError, unanswered
from sosfs.s3.http_headers import bare_etag, is_etag, object_of
from sosfs.s3.http_messages import Fields, Room, document_room
from sosfs.s3.protocol import Object, Slice
from sosfs.s3.signed_request import shown

SIZE_MAX = 1 << 50  # bytes; no S3 server takes an object of a twentieth of that
WHOLE_MAX = 64 << 20  # bytes of an object that a server which knows no ranges sends whole for each of them

_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})", re.ASCII)


def described(request: str, key: str, headers: Mapping[str, str], *, size: int | None = None) -> Object:
    """The object that an answer's headers speak of; `size` where Content-Length counts a range only.

    EIO for headers that are no object's.
    """
    told, etag = headers.get("Content-Length", "") if size is None else str(size), headers.get("ETag", "")
    if not is_etag(bare_etag(etag)):
        raise _no_object(request, headers, f"its ETag is {etag!r}" if etag else "it has no ETag")
    if "Last-Modified" not in headers:  # pages that a program makes have ETags, too
        raise _no_object(request, headers, "it has no Last-Modified")
    if not (told.isascii() and told.isdigit() and int(told[:20]) <= SIZE_MAX):
        raise _no_object(request, headers, f"its length is {told!r}" if told else "it has no Content-Length")
    try:
        return object_of(key, headers, size=int(told))
    except (ValueError, OverflowError) as error:
        raise _no_object(request, headers, f"its Last-Modified is {headers['Last-Modified']!r}") from error


class RangeAnswer:
    """The answer to a GET of `[start, stop)`, judged as its headers come."""

    def __init__(self, request: str, key: str, start: int, stop: int) -> None:
        self._request = request
        self._key = key
        self._start = start
        self._stop = stop
        self._object: Object | None = None
        self._is_whole = False

    def room(self, status: int, headers: Fields) -> Room:
        """The room for the bytes of the range, or for a small object whole. EIO for a 2xx answer that is neither."""
        if not 200 <= status < 300:
            return document_room(status, headers)
        if status == 206:
            size = self._size_told(headers)
            self._object = described(self._request, self._key, headers, size=size)
            due = min(self._stop, size) - self._start
            return Room(due, due)
        self._object = described(self._request, self._key, headers)
        size, self._is_whole = self._object.version.size, True
        if status != 200 or "Transfer-Encoding" in headers:
            raise _no_object(self._request, headers, f"HTTP {status} where a range was asked for")
        if size > WHOLE_MAX:
            raise unanswered(self._request, f"the server knows no ranges, and would send all {size} bytes for each")
        return Room(size, size)

    def _size_told(self, headers: Fields) -> int:
        """The object's size in an answer with the range that was asked for."""
        told = headers.get("Content-Range", "")
        found = _RANGE.fullmatch(told)
        if found is None:
            why = f"its Content-Range is {told!r}" if told else "it has no Content-Range"
            raise _no_object(self._request, headers, why)
        begin, last, size = map(int, found.groups())
        due = min(self._stop, size)
        if begin != self._start or not begin <= last < due:
            words = f"bytes {begin} to {last + 1} of {size} came where {self._start} to {due} were asked for"
            raise unanswered(self._request, words)
        return size

    def slice(self, body: memoryview) -> Slice:
        """What was asked for, of the body for which there was room."""
        assert self._object is not None
        return Slice(self._object, body[self._start : self._stop] if self._is_whole else body)


def _no_object(request: str, headers: Mapping[str, str], why: str) -> StoreError:
    came = shown(Fields([f"Content-Type: {headers.get('Content-Type', '')}".encode("latin-1", "replace")]))
    return unanswered(request, f"the answer is no object: {why}" + (f", it is {came}" if came else ""))
