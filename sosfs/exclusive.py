"""When O_EXCL is decided in the bucket: at open or at close. Decided here and only here. Pure functions.

A file created with O_EXCL is created in the bucket under the condition that its name is absent, so of any
number of hosts one wins. Usually that happens with its bytes, at the first close: cp, tar and rsync open
all their files with O_EXCL, and a request more for each would double their cost. A lock, however, must be
known to be won before close: where the name says that it is one, the empty object is created at open.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from .config import Exclusive

_LOCK = re.compile(rb"lock|\.lck|\.pid$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Claims:
    """The choice of a mount (`--exclusive`)."""

    choice: Exclusive

    def at_open(self, name: bytes, flags: int) -> bool:
        """Whether a create with these flags claims its name before it returns."""
        if not flags & os.O_EXCL or self.choice is Exclusive.CLOSE:
            return False
        return self.choice is Exclusive.ALWAYS or _LOCK.search(name) is not None
