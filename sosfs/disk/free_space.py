"""How much room the file system of a mount's state has, and giving some back.

Safe from any thread.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from sosfs.config.choices import Share

log = logging.getLogger(__name__)

NOTHING = Share()
_PUNCH = 0x02 | 0x01  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE: fallocate(2)


class Room(NamedTuple):
    """Bytes of a file system: all, and those that this user may still take. No inode left is no byte left."""

    size: int
    free: int


class Disk:
    """The file system that a directory is on."""

    def __init__(self, directory: Path, kept: Share = NOTHING) -> None:
        """`kept` of it is left to others: that much room is never there."""
        self._directory = directory
        self._kept = kept
        self._punches = True  # until it says that it does not

    def room(self) -> Room:
        """How much room there is now; for a directory that was removed, where it was. Raises OSError."""
        state = _state_of(self._directory)
        has_inodes = state.f_files == 0 or state.f_favail > 0  # btrfs counts none
        size, free = state.f_blocks * state.f_frsize, state.f_bavail * state.f_frsize if has_inodes else 0
        return Room(size, max(0, free - self._kept.of(size)))

    def punch(self, file: int, start: int, stop: int) -> bool:
        """Frees the blocks of `[start, stop)` of an open file; they read as zeros then. Whether it could."""
        fallocate = _fallocate()
        if not self._punches or fallocate is None:
            return False
        if fallocate(file, _PUNCH, start, stop - start) == 0:
            return True
        number = ctypes.get_errno()
        if number in (errno.EOPNOTSUPP, errno.ENOSYS):
            self._punches = False
        log.info("no room is given back within a file in %s: %s", self._directory, os.strerror(number))
        return False


def _state_of(directory: Path) -> os.statvfs_result:
    """The state of the file system that a path is on, or was."""
    try:
        return os.statvfs(directory)
    except FileNotFoundError:
        if directory == directory.parent:
            raise
        return _state_of(directory.parent)


@functools.cache
def _fallocate() -> Callable[[int, int, int, int], int] | None:
    try:
        library = ctypes.CDLL(None, use_errno=True)
    except OSError as error:
        log.debug("no C library here: %s", error)
        return None
    # musl has one fallocate, whose offsets have 64 bits.
    call: Any = getattr(library, "fallocate64", None) or getattr(library, "fallocate", None)
    if call is None:
        return None
    call.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    call.restype = ctypes.c_int
    return call  # type: ignore[no-any-return]
