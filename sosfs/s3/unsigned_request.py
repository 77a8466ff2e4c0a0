"""Ask a server what it shows anybody: one HEAD without a signature.

No key is sent and no redirect is followed, so nothing can be led astray by an answer. Safe from any thread;
blocks its thread. Imports libcurl and so must not be imported before the daemon has forked.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

from sosfs.errors import unanswered
from sosfs.s3.certificate_authorities import Bundle
from sosfs.s3.http_messages import Fault, Request, TransferError
from sosfs.s3.transport import Transport

TRIES = 2  # where a connection was lost; the user sits at a terminal
ANSWER_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Told:
    """An answer of any status. `began` is when the request was made, in seconds since the epoch."""

    status: int
    headers: Mapping[str, str]
    began: float
    seconds: float  # until it was there

    @property
    def skew(self) -> float | None:
        """How many seconds the server's clock is ahead, to within a second; None where it tells no time."""
        try:
            there = parsedate_to_datetime(self.headers["Date"]).timestamp()
        except (KeyError, ValueError):
            return None
        return there + 0.5 - (self.began + self.seconds / 2)  # a Date drops the fraction


def head(url: str, bundle: Bundle, *, seconds: float = ANSWER_SECONDS) -> Told:
    """The answer to a HEAD of `url`, whatever its status. Raises `StoreError` where none came in time."""
    parts = urlsplit(url)
    request = Request("HEAD", parts.path or "/", silence=seconds)
    origin = f"{parts.scheme}://{parts.netloc}"
    with closing(Transport(origin, ca_bundle=bundle.path, connect_timeout=seconds)) as transport:
        for left in reversed(range(TRIES)):
            began, clock = time.time(), time.monotonic()
            try:
                answer = transport.exchange(request)
            except TransferError as error:
                if left and error.fault is Fault.LOST:
                    continue
                raise unanswered(url, str(error), timed_out=error.fault is Fault.SILENT) from error
            return Told(answer.status, answer.headers, began, time.monotonic() - clock)
    raise AssertionError("the last try returns or raises")
