"""What is always counted, of the whole process: latencies, bytes, errors, tries, hits. It serves one mount.

Kernel figures and those of the cache belong to the trio thread, those of S3 have a lock. Names of operations are this
program's own, errnos and statuses are few, so that the counters stay few whatever programs and servers do.
"""

from __future__ import annotations

import errno
import threading
import time
from collections import Counter, defaultdict
from enum import Enum

from sosfs.tracing.histogram import Histogram
from sosfs.tracing.requests import KernelRequest, S3Request, Watcher

# Told one by one; others as 4xx, 5xx and so on, for a server may answer any number.
STATUSES = frozenset({400, 401, 403, 404, 405, 409, 411, 412, 413, 416, 429, 500, 501, 502, 503, 504})


class Hit(Enum):
    """Where a read found its blocks."""

    MEMORY = "memory"
    AWAITED = "awaited"  # another read, or read-ahead, was fetching them
    MISS = "miss"  # it had them fetched itself, from the disk cache or the bucket


class Meters:
    """Counters, and those who are told of each request."""

    def __init__(self) -> None:
        self.watchers: tuple[Watcher, ...] = ()
        self.kernel: defaultdict[str, Histogram] = defaultdict(Histogram)
        self.kernel_errors: Counter[tuple[str, str]] = Counter()  # by operation and name of the errno
        self.kernel_bytes: Counter[str] = Counter()  # by operation
        self.kernel_under_way = 0
        self.reads: Counter[Hit] = Counter()
        self.disk_reads: Counter[bool] = Counter()  # fetches that found the disk cache to have it all, or not
        self.s3: defaultdict[str, Histogram] = defaultdict(Histogram)
        self.s3_errors: Counter[tuple[str, str]] = Counter()  # by operation and status
        self.s3_retries: Counter[str] = Counter()
        self.s3_bytes: Counter[str] = Counter()  # "sent", "received"
        self.s3_under_way = 0
        self.lock = threading.Lock()  # for what is of S3
        self._arriving: dict[int, int] = {}  # bytes of the body that each thread has made room for

    def arrives(self, size: int) -> None:
        """This thread has made room for so many bytes of an answer; 0 once it has handed them on."""
        if size:
            self._arriving[threading.get_ident()] = size
        else:
            self._arriving.pop(threading.get_ident(), None)

    @property
    def arriving(self) -> int:
        """Bytes of bodies of answers that are on their way."""
        return sum(list(self._arriving.values()))

    def watch(self, watcher: Watcher) -> None:
        """From now on it is told of each request that ends."""
        self.watchers += (watcher,)

    def unwatch(self, watcher: Watcher) -> None:
        """It is told no more."""
        self.watchers = tuple(one for one in self.watchers if one is not watcher)

    def answered(self, request: KernelRequest, seconds: float) -> None:
        """A kernel request has its answer. Trio thread only."""
        operation = request.operation
        self.kernel[operation].add(seconds)
        if request.errno:
            self.kernel_errors[operation, errno.errorcode.get(request.errno, "other")] += 1
        if request.bytes:
            self.kernel_bytes[operation] += request.bytes
        request.is_answered = True
        if self.watchers:
            request.seconds, request.ended = seconds, time.time()
            for watcher in self.watchers:
                watcher.kernel_request(request)

    def exchanged(self, request: S3Request) -> None:
        """An S3 request has ended, well or not."""
        if request.cause is not None:
            request.cause.charge(request.operation, request.seconds)
        with self.lock:
            self.s3[request.operation].add(request.seconds)
            self.s3_retries[request.operation] += request.tries - 1
            self.s3_bytes["sent"] += request.sent
            self.s3_bytes["received"] += request.received
            if request.errno:
                self.s3_errors[request.operation, _status(request.status)] += 1
        for watcher in self.watchers:
            watcher.s3_request(request)


METERS = Meters()


def _status(status: int) -> str:
    if status in STATUSES:
        return str(status)
    return f"{status // 100}xx" if 100 <= status < 600 else "none"
