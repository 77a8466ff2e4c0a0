"""What a server tells anybody: one HEAD request without a signature. Decided here and only here.

No key is sent and no redirect is followed, so nothing can be led astray by an answer. Safe from any thread;
blocks its thread. Imports urllib3 and so must not be imported before the daemon has forked.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

import urllib3
from urllib3.exceptions import HTTPError, MaxRetryError

from .errors import unanswered

logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # it warns of each try, without saying of what

TRIES_AGAIN = 1  # for a connection that was lost; who waits sits at a terminal
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


def head(url: str, *, seconds: float = ANSWER_SECONDS) -> Told:
    """The answer to a HEAD of `url`, whatever its status. Raises `StoreError` where none came in time."""
    pool = urllib3.PoolManager(retries=urllib3.Retry(TRIES_AGAIN, redirect=0, status=0, raise_on_redirect=False))
    began, clock = time.time(), time.monotonic()
    try:
        answer = pool.request("HEAD", url, redirect=False, timeout=seconds)
    except HTTPError as error:
        raise unanswered(url, _why(error)) from error
    finally:
        pool.clear()
    return Told(answer.status, answer.headers, began, time.monotonic() - clock)


def _why(error: HTTPError) -> str:
    """The reason at the bottom, without the names of classes and pools."""
    reason: BaseException = (error.reason if isinstance(error, MaxRetryError) else None) or error
    cause = reason.__cause__
    return cause.strerror if isinstance(cause, OSError) and cause.strerror else str(reason)
