"""What can go wrong between a client and an S3 server, as values that `proxy.Proxy` acts out.

A `Rule` says to which requests, how often and how likely something happens, an action says what. The dice
have a seed: a run can be repeated. Rules are judged under the proxy's lock.
"""

from __future__ import annotations

import errno
import random
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from tests.support.traffic import Predicate, Request


class Moment(Enum):
    """Whether the server has done what it was asked when the fault strikes."""

    BEFORE = "before"  # the server never hears of it
    AFTER = "after"  # the server did it, its answer is lost


@dataclass(frozen=True, slots=True)
class Answer:
    """Another answer than the server's: `status` with the XML error `code`, or with no body for "".

    Answer(200, "InternalError") is the error inside a good answer that CopyObject, UploadPartCopy and
    CompleteMultipartUpload can give.
    """

    status: int
    code: str = ""
    moment: Moment = Moment.BEFORE
    headers: tuple[str, ...] = ()  # beside those every answer has: "Name: value"

    def encode(self, request: Request) -> bytes:
        """The answer as bytes on the wire."""
        body = b""
        if self.code:
            body = (
                '<?xml version="1.0" encoding="UTF-8"?>\n'
                f"<Error><Code>{self.code}</Code><Message>made by the test</Message><RequestId>0</RequestId></Error>"
            ).encode()
        lines = ("Content-Type: application/xml", f"Content-Length: {len(body)}", *self.headers)
        head = "\r\n".join((f"HTTP/1.1 {self.status} Injected", *lines, "", ""))
        return head.encode() + (b"" if request.method == "HEAD" else body)


@dataclass(frozen=True, slots=True)
class Page(Answer):
    """What somebody between the client and the server answers: `body`, of a media type, with any status.

    Or what a server answers that is no S3 error: `Page(200, body=..., media="application/xml")`.
    """

    body: bytes = b""
    media: str = "text/html"

    def encode(self, request: Request) -> bytes:
        """The answer as bytes on the wire."""
        kind = (f"Content-Type: {self.media}",) if self.media else ()
        lines = (*kind, f"Content-Length: {len(self.body)}", *self.headers)
        head = "\r\n".join((f"HTTP/1.1 {self.status} Injected", *lines, "", ""))
        return head.encode() + (b"" if request.method == "HEAD" or self.status in (204, 304) else self.body)


INGRESS = b"<html><head><title>default backend</title></head><body><h1>404 Not Found</h1></body></html>"
LOGIN = b"<!DOCTYPE html><html><head><title>Sign in</title></head><body><form>password</form></body></html>"


@dataclass(frozen=True, slots=True)
class Reset:
    """The connection is reset (RST)."""

    moment: Moment = Moment.BEFORE


@dataclass(frozen=True, slots=True)
class Hang:
    """No answer ever, on a connection that stays open until the client gives up."""

    moment: Moment = Moment.BEFORE


@dataclass(frozen=True, slots=True)
class Delay:
    """Nothing happens for `seconds`, then all is well."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Meet:
    """Nothing happens until as many requests as the barrier has parties are under way, then all is well.

    Where they do not come within the barrier's time-out it is broken, and all is well too.
    """

    barrier: threading.Barrier


@dataclass(frozen=True, slots=True)
class Throttle:
    """Both bodies move at `rate` bytes a second."""

    rate: int


@dataclass(frozen=True, slots=True)
class CutResponse:
    """The server's headers, `keep` bytes of its body, then the end of the connection."""

    keep: int


@dataclass(frozen=True, slots=True)
class CutRequest:
    """`keep` bytes of the upload reach the server, then both connections are reset."""

    keep: int


class Body(Enum):
    """Whose body."""

    REQUEST = "request"
    RESPONSE = "response"


@dataclass(frozen=True, slots=True)
class Flip:
    """One bit of a body changes on the way: the lowest of the byte at `at`, of a shorter body of its last byte."""

    body: Body
    at: int = 0


Action = Answer | Reset | Hang | Delay | Meet | Throttle | CutResponse | CutRequest | Flip


@dataclass(slots=True)
class Rule:
    """An action for the requests that `when` picks: `times` times at most, each with probability `chance`."""

    action: Action
    when: Predicate
    times: int | None = None
    chance: float = 1.0
    dice: random.Random = field(default_factory=lambda: random.Random(0))
    hits: int = 0

    def strikes(self, request: Request) -> bool:
        """Whether the action is taken on this request; a hit is counted."""
        spent = self.times is not None and self.hits >= self.times
        if spent or not self.when(request):
            return False
        if self.chance < 1.0 and self.dice.random() >= self.chance:
            return False
        self.hits += 1
        return True


FAILED = (errno.EIO, errno.ETIMEDOUT)  # what a bad server may look like to a program
REFUSED = (errno.EACCES, errno.EPERM)

# Servers that do not serve, and the errnos that tell so.
BROKEN: Mapping[str, tuple[Action, tuple[int, ...]]] = {
    "500": (Answer(500, "InternalError"), FAILED),
    "503": (Answer(503, "SlowDown"), FAILED),
    "503 without a body": (Answer(503), FAILED),
    "403": (Answer(403, "AccessDenied"), REFUSED),
    "no bucket": (Answer(404, "NoSuchBucket"), (*FAILED, errno.ENXIO)),
    "reset": (Reset(), FAILED),
    "hang": (Hang(), FAILED),
}
# The server did what it was asked, and the client is told otherwise or nothing.
LOST: Mapping[str, Action] = {
    "500": Answer(500, "InternalError", Moment.AFTER),
    "503": Answer(503, "SlowDown", Moment.AFTER),
    "reset": Reset(Moment.AFTER),
}
# What is well when it is tried again.
PASSING: Mapping[str, Action] = {
    "500": Answer(500, "InternalError"),
    "503": Answer(503, "SlowDown"),
    "429": Answer(429, "TooManyRequests"),
    "reset": Reset(),
    "cut answer": CutResponse(100),
    "cut upload": CutRequest(10),
}
