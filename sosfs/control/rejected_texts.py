"""Settings texts that were refused, and why, for `.sosfs/errors`.

Whoever writes `.sosfs/...` or an xattr gets no more than an errno; the line and the reason are kept for
`.sosfs/errors`. Concurrency: trio thread only.
"""

from __future__ import annotations

import errno
import logging
import time
from collections import deque

from sosfs.log.escaping import printable

log = logging.getLogger(__name__)

KEPT = 20


class BadText(OSError):
    """EINVAL for a text: `line` (from 1; 0 where it is about the whole) and the reason, for the user."""

    def __init__(self, reason: str, *, line: int = 0) -> None:
        super().__init__(errno.EINVAL, f"line {line}: {reason}" if line else reason)
        self.line = line
        self.reason = reason


class Rejections:
    """The last texts that were refused, by sosfs or by the server."""

    def __init__(self) -> None:
        self._last: deque[str] = deque(maxlen=KEPT)

    def add(self, what: str, error: OSError, *, outcome: str = "was not changed") -> None:
        """Remembers that the text for `what` was refused, and logs it with its outcome."""
        reason = " ".join((error.strerror or str(error)).split())
        log.info("%s %s: %s", what, outcome, reason)
        self._last.append(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {printable(what)}: {printable(reason)}\n")

    def text(self) -> str:
        """One line each, the newest last."""
        return "".join(self._last)
