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
from pathlib import Path

STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))
UNREAD = 128 + signal.SIGPIPE  # as a shell says of who died of it


def none_closed() -> None:
    """Streams that were closed when the program was started lead nowhere: Python has None in the place of each.

    What is printed to an absent standard error would go to standard output, and a connection could have its number.
    """
    for name, mode in STREAMS:
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115


def until_unread(work: Callable[[], int]) -> int:
    """What `work` returns, or 141 once nobody reads what it writes. Raises any other OSError: the disk may be full."""
    code = 0
    try:
        try:
            code = work()
        finally:
            if sys.stdout is not None:  # else it was closed when the program was started
                sys.stdout.flush()
    except OSError as error:
        is_unread = isinstance(error, BrokenPipeError) and _is_unread()
        _drop_unwritten()
        if is_unread:
            return UNREAD
        if not code:  # else it has told what failed
            raise
    return code


def _drop_unwritten() -> None:
    """What is in the buffer goes nowhere when the interpreter ends."""
    if sys.stdout is not None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.close(nowhere)


def _is_unread() -> bool:
    """Whether whatever standard output leads to has been closed at its other end (poll(2), POLLERR)."""
    if sys.stdout is None:
        return False  # the number leads to something else by now
    looking = select.poll()
    looking.register(1, 0)
    return bool(looking.poll(0))
