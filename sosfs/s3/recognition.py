"""Recognise the object that a request of ours made when its answer was lost.

Before a request that makes an object is sent, its token is written down. Where ETags are hashes the token is the
ETag that the object will have. With encryption a server may make ETags of its own (AWS does); then the token is
size and time of change: they are stored with the object, the time to the nanosecond. An ETag of that kind is new with
each write, so that an object which still has the one of before is not ours whatever its time says.
Pure functions, safe from any thread.
"""

from __future__ import annotations

from sosfs.s3.protocol import Condition, Object, Properties, Version


def token(etag: str, size: int, properties: Properties, *, hashes: bool) -> str:
    """The token of an object that will have `size` and `properties`, and `etag` if ETags are hashes here."""
    return etag if hashes else _timed(size, properties)


def is_ours(token: str, found: Object, *, instead_of: Condition) -> bool:
    """Whether `found` is what the request with this token made in the place of another version, if any."""
    if token == found.version.etag:
        return True
    if isinstance(instead_of, Version) and instead_of.etag == found.version.etag:
        return False
    return token == _timed(found.version.size, found.properties) != ""


def _timed(size: int, properties: Properties) -> str:
    """No ETag looks like it; "" where no time is stored that could tell."""
    time = properties.metadata.get("mtime", "")
    return f"{size} bytes of {time}" if time else ""
