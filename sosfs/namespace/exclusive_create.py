"""When `O_EXCL` and mkdir claim their name in the bucket.

A file created with O_EXCL is created in the bucket under the condition that its name is absent, so of any
number of hosts one wins. Usually that happens with its bytes, at the first close: cp, tar and rsync open
all their files with O_EXCL, and a request more for each would double their cost. A lock, however, must be
known to be won before close: where the name says that it is one, the empty object is created at open.

With the journal the first close only records the file on this machine, so each of several hosts is told that it has
the name. The first upload wins; the bytes of the others are kept beside it, after their programs have gone on. Who
needs one winner for plain names too takes `--exclusive always`, which holds in both modes.

mkdir is as exclusive, and done before it returns; in journal mode only that of a lock is, or with `always` each.

Pure functions.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from sosfs.config.parameters import Durability, Exclusive

_LOCK = re.compile(rb"lock|\.lck|\.pid$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ExclusiveCreate:
    """The choices of a mount (`--exclusive`, `--durability`)."""

    choice: Exclusive
    durability: Durability

    def at_open(self, name: bytes, flags: int) -> bool:
        """Whether a create with these flags claims its name before it returns."""
        return bool(flags & os.O_EXCL) and self._at_once(name)

    def at_mkdir(self, name: bytes) -> bool:
        """Whether a mkdir claims its name before it returns."""
        return self.durability is Durability.BUCKET or self._at_once(name)

    def _at_once(self, name: bytes) -> bool:
        if self.choice is Exclusive.CLOSE:
            return False
        return self.choice is Exclusive.ALWAYS or _LOCK.search(name) is not None
