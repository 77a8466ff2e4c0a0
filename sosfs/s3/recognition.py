"""Recognise the object that a request of ours made when its answer was lost.

Before a request that makes an object is sent, its token is written down. Where ETags are hashes the token is the
ETag that the object will have. With encryption a server may make ETags of its own (AWS does); then the token is
size and time of change: they are stored with the object, the time to the nanosecond. An ETag of that kind is new with
each write, so that an object which still has the one of before is not ours whatever its time says.

The functions are pure, safe from any thread; an `InFlight` belongs to one object and the trio thread.
"""

from __future__ import annotations

from sosfs.s3.protocol import Condition, Object, Properties, Version

EARLIER_MAX = 64  # tokens that are remembered of the requests without an answer


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


class InFlight:
    """Requests that may make an object yet: the newest, sent or answered by nobody knows what, and older ones.

    answered  -> nothing is in flight
    no answer -> `newest` stays, and is among the `earlier` once another is sent
    """

    __slots__ = ("earlier", "newest", "removal", "serial")

    def __init__(self) -> None:
        self.newest: str | None = None  # its token; None where every request was answered
        self.serial = 0  # of the draft whose bytes it has
        self.earlier: tuple[str, ...] = ()
        self.removal = False  # the object was to be removed, and nobody knows whether it is

    @property
    def tokens(self) -> tuple[str, ...]:
        """The tokens of all, the newest first."""
        return () if self.newest is None else (self.newest, *self.earlier)

    def sent(self, token: str, serial: int) -> None:
        """A request is about to be sent; those before it that got no answer may take effect yet."""
        if self.newest is not None:
            self.earlier = tuple(dict.fromkeys((*self.earlier, self.newest)))[-EARLIER_MAX:]
        self.newest, self.serial = token, serial

    def answered(self) -> None:
        """What the bucket has is known: whatever was sent before is of no interest."""
        self.newest, self.serial, self.earlier, self.removal = None, 0, (), False


def _timed(size: int, properties: Properties) -> str:
    """No ETag looks like it; "" where no time is stored that could tell."""
    time = properties.metadata.get("mtime", "")
    return f"{size} bytes of {time}" if time else ""
