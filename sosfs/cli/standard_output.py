"""Standard output whose reader goes before all is written, as `head` does: the command ends, without a word.

The interpreter heeds no SIGPIPE, since a daemon that went while it was asked must not kill who asks. So who is gone is
looked up: for any other broken pipe the error stands.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Callable

UNREAD = 128 + signal.SIGPIPE  # as a shell says of who died of it


def until_unread(work: Callable[[], int]) -> int:
    """What `work` returns, or 141 once nobody reads what it writes. Raises any other BrokenPipeError."""
    try:
        try:
            return work()
        finally:
            if sys.stdout is not None:  # else it was closed when the program was started
                sys.stdout.flush()
    except BrokenPipeError:
        if not _is_unread():
            raise
        nowhere = os.open(os.devnull, os.O_WRONLY)  # what is in the buffer goes there when the interpreter ends
        os.dup2(nowhere, 1)
        os.close(nowhere)
        return UNREAD


def _is_unread() -> bool:
    """Whether whatever standard output leads to has been closed at its other end (poll(2), POLLERR)."""
    looking = select.poll()
    looking.register(1, 0)
    return bool(looking.poll(0))
