"""A kernel request and an S3 request, and which of the latter is made for which of the former.

The kernel request goes with the task that serves it, and with all that this starts, in a context variable, also into
the threads and into tasks that outlive it: the upload after a close and what is read ahead are charged to whoever
closed and read. What serves several at once (a batch of deletes) is charged to the one that began it.
"""

from __future__ import annotations

import itertools
import threading
from contextvars import ContextVar
from typing import NamedTuple, Protocol


class Caller(NamedTuple):
    """A process; pid 0 where the kernel does not say which."""

    pid: int
    name: str


NOBODY = Caller(0, "")


class Sum(NamedTuple):
    """S3 requests of one kind."""

    requests: int
    seconds: float


_numbers = itertools.count(1)
_charging = threading.Lock()


class KernelRequest:
    """One request of the kernel. `path`, `target` (of a rename) and `caller` are known only while somebody watches.

    There is one for each, on the hottest path: what most of them do not have is left to the class.
    """

    path = ""
    target = ""
    caller = NOBODY
    bytes = 0  # that were read or written
    errno = 0
    seconds = 0.0
    ended = 0.0  # Unix time; only while somebody watches
    is_answered = False
    _s3: dict[str, Sum] | None = None

    def __init__(self, operation: str) -> None:
        self.number = next(_numbers)  # never again in this process
        self.operation = operation

    def charge(self, operation: str, seconds: float) -> None:
        """Notes an S3 request; one that ends after the kernel was answered is in no sum."""
        with _charging:
            if not self.is_answered:
                self._s3 = self._s3 or {}
                before = self._s3.get(operation, Sum(0, 0.0))
                self._s3[operation] = Sum(before.requests + 1, before.seconds + seconds)

    @property
    def s3(self) -> dict[str, Sum]:
        """The S3 requests that ended before it did, by operation; they may have run side by side."""
        return self._s3 or {}


class S3Request(NamedTuple):
    """One S3 request with all its tries. `status` is that of the last answer, 0 for none; sizes are of bodies."""

    operation: str
    key: str
    ended: float  # Unix time
    seconds: float
    tries: int
    sent: int
    received: int
    errno: int
    status: int
    cause: KernelRequest | None  # None: the mount's own doing


CURRENT: ContextVar[KernelRequest | None] = ContextVar("kernel_request", default=None)


class Watcher(Protocol):
    """Who is told of each request that has ended."""

    def kernel_request(self, request: KernelRequest) -> None:
        """In the trio thread."""

    def s3_request(self, request: S3Request) -> None:
        """In any thread."""


def current_number() -> int:
    """The number of the kernel request that this is done for; 0 for what the mount does by itself."""
    request = CURRENT.get()
    return request.number if request is not None else 0
