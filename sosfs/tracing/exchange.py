"""One S3 request while it is under way, with all its tries. In the thread that makes it."""

from __future__ import annotations

import errno
import time
from types import TracebackType
from typing import Self

from sosfs.errors import StoreError
from sosfs.tracing.meters import METERS
from sosfs.tracing.requests import CURRENT, S3Request


class Exchange:
    """`with Exchange(...) as exchange:` is counted at its end; what it did is set within."""

    __slots__ = ("_began", "_key", "_operation", "_sent", "received", "status", "tries")

    def __init__(self, operation: str, key: str, *, sent: int) -> None:
        self._operation = operation
        self._key = key
        self._sent = sent
        self._began = 0.0
        self.received = 0
        self.status = 0
        self.tries = 1

    def __enter__(self) -> Self:
        with METERS.lock:
            METERS.s3_under_way += 1
        self._began = time.perf_counter()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        seconds = time.perf_counter() - self._began
        with METERS.lock:
            METERS.s3_under_way -= 1
        number, status = (0, self.status) if error is None else (errno.EIO, 0)
        if isinstance(error, StoreError):
            number, status = error.errno or errno.EIO, error.status
        METERS.exchanged(
            S3Request(
                self._operation,
                self._key,
                time.time(),
                seconds,
                self.tries,
                self._sent,
                self.received,
                number,
                status,
                CURRENT.get(),
            )
        )
