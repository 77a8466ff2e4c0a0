"""An HTTP request, its answer, and why there is none.

All are immutable and safe from any thread. None shows a secret in its repr.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

from sosfs.s3.protocol import PartBody

DOCUMENT_MAX = 64 << 20  # bytes; a page of 1,000 keys of 1 KiB, each byte escaped, is 3 MB
REFUSAL_MAX = 64 << 10  # bytes of the body of an answer that is an error


class Fields(dict[str, str]):
    """An answer's header fields by name, in any case. What came twice is one value, as RFC 9110 (5.2) has it."""

    def __init__(self, lines: Sequence[bytes]) -> None:
        super().__init__()
        plain = super().__contains__
        for line in b"".join(lines).decode("latin-1").split("\n"):
            name, colon, value = line.partition(":")
            if colon:
                name, value = name.strip().lower(), value.strip()
                self[name] = f"{self[name]}, {value}" if plain(name) else value

    def __getitem__(self, name: str) -> str:
        return dict.__getitem__(self, name.lower())

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and dict.__contains__(self, name.lower())

    def get(self, name: str, default: Any = None) -> Any:
        """The value, else `default`."""
        return dict.get(self, name.lower(), default)


class Room(NamedTuple):
    """How many bytes the body of an answer may have."""

    least: int
    most: int


def document_room(status: int, headers: Fields) -> Room:
    """The room for what is read as text: XML, or an error."""
    del headers
    return Room(0, DOCUMENT_MAX if 200 <= status < 300 else REFUSAL_MAX)


@dataclass(frozen=True, slots=True)
class Signing:
    """What libcurl signs with: AWS Signature Version 4 for the service `s3`."""

    region: str
    access_key: str
    secret_key: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Request:
    """What is sent. `path` begins with a slash, holds the query, and goes out as it is: escaped already.

    `room` may raise `StoreError` for an answer that is not what was asked for. `silence` is seconds.
    `moved` is told how many bytes of the body are off, in the thread that sends.
    """

    method: str
    path: str
    headers: Sequence[bytes] = field(default=(), repr=False)
    body: PartBody = field(default=b"", repr=False)
    silence: float = 60.0
    signing: Signing | None = None
    room: Callable[[int, Fields], Room] = document_room
    moved: Callable[[int], None] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer of any status. `sends` is how often the request went out for it."""

    status: int
    headers: Fields
    body: memoryview
    sends: int = 1


class Fault(Enum):
    """Why there is no whole answer."""

    UNREACHED = "unreached"  # no connection, so the server has not heard of it
    LOST = "lost"  # the connection ended, or what came was no whole HTTP answer
    SILENT = "silent"  # nothing moved for too long
    OVERLONG = "overlong"  # more bytes than are due
    UNTRUSTED = "untrusted"  # the server's certificate, or that of the proxy
    INTERRUPTED = "interrupted"  # by whoever waited
    IMPOSSIBLE = "impossible"  # the request cannot be made at all

    @property
    def passes(self) -> bool:
        """Whether another try may fare better."""
        return self in (Fault.UNREACHED, Fault.LOST, Fault.SILENT)

    @property
    def is_of_server(self) -> bool:
        """Whether it says that there is no S3 server that answers."""
        return self.passes or self is Fault.UNTRUSTED


class TransferError(Exception):
    """No whole answer, in words for the user. `sends` is how often the request had gone out, `status` what began."""

    def __init__(self, fault: Fault, words: str, sends: int, status: int = 0) -> None:
        super().__init__(words)
        self.fault = fault
        self.sends = sends
        self.status = status
