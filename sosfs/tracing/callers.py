"""Which process has made a request: the kernel names a thread, /proc its process.

Trio thread only: /proc answers from memory, some 50 us a call, and is asked only while somebody watches.
"""

from __future__ import annotations

import time
from pathlib import Path

from cachetools import LRUCache

from sosfs.tracing.requests import NOBODY, Caller

PROC = Path("/proc")
REMEMBERED = 1024  # threads, for those that have ended before the file they had opened was closed

AGE = 0.25  # seconds for which it is believed of a thread that reads or writes; one that opens may have become another

_seen: LRUCache[int, tuple[float, Caller]] = LRUCache(REMEMBERED)


def caller_of(thread: int) -> Caller:
    """The process of a thread, as it was when it was last seen; no name where it never was. 0 is nobody."""
    if not thread:
        return NOBODY
    try:
        caller = _asked(thread)
    except (OSError, ValueError, KeyError):
        return _seen[thread][1] if thread in _seen else Caller(thread, "")
    _seen[thread] = time.monotonic(), caller
    return caller


def opener_of(thread: int) -> Caller:
    """As `caller_of`, for a thread that has something open and asks often."""
    at, caller = _seen.get(thread, (0.0, NOBODY))
    return caller if time.monotonic() - at < AGE else caller_of(thread)


def _asked(thread: int) -> Caller:
    text = (PROC / str(thread) / "status").read_text(errors="backslashreplace")
    fields = dict(line.split(":\t", 1) for line in text.split("\n", 5)[:5] if ":\t" in line)
    process = int(fields["Tgid"])
    if process == thread:
        return Caller(process, fields["Name"])
    return Caller(process, (PROC / str(process) / "comm").read_text(errors="backslashreplace").rstrip("\n"))
