"""Lock a cache directory for one mount at a time."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path


def locked(directory: Path) -> int:
    """Makes a directory this process's alone until the descriptor is closed. Raises OSError EBUSY."""
    path = directory / "lock"
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.fstat(file).st_nlink:
            raise BlockingIOError  # who had it has just removed the directory: it locks nothing any more
    except BlockingIOError:
        os.close(file)
        raise OSError(errno.EBUSY, f"the cache directory {path.parent} is in use by another mount") from None
    return file
