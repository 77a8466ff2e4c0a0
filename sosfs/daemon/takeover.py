"""How root's new mount takes the place of a dead one, while programs look.

    mounted aside -> a copy of that mount, attached nowhere -> put below the dead one -> the dead one is taken off

So whoever looks sees the dead mount (ENOTCONN) and then the new one, never the directory below, which is empty and
takes writes. A kernel before 6.5 cannot put a mount below another (move_mount(2)): there the dead one is taken off
right before, and the directory shows between two system calls. fusermount3, and so another user than root, can do
neither.

Blocking; nothing here asks the new mount's daemon.
"""

from __future__ import annotations

import ctypes
import errno
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from sosfs.daemon import mountpoint
from sosfs.daemon.mountpoint import MountState

# <linux/mount.h>, <linux/fcntl.h>; the calls have the same numbers on all architectures but Alpha.
OPEN_TREE, MOVE_MOUNT = 428, 429
OPEN_TREE_CLONE = 1
MOVE_MOUNT_F_EMPTY_PATH, MOVE_MOUNT_BENEATH = 0x4, 0x200
AT_FDCWD = -100
MNT_DETACH = 2


def is_possible(path: Path) -> bool:
    """Whether there is a dead mount whose place may be taken over."""
    return os.geteuid() == 0 and mountpoint.state(path) is MountState.DEAD


def mounted(path: Path, mount: Callable[[Path], None]) -> None:
    """Has `mount` mount somewhere else and puts that in the place of the dead mount on `path`.

    Raises OSError, and what `mount` raises. What was mounted so has to be taken off by `detach`.
    """
    aside = Path(tempfile.mkdtemp(prefix="sosfs-"))
    try:
        mount(aside)
        try:
            copy = _call(OPEN_TREE, AT_FDCWD, os.fsencode(aside), OPEN_TREE_CLONE | os.O_CLOEXEC)
        finally:
            detach(aside)
        try:
            _replace(copy, path)
        finally:
            os.close(copy)
    finally:
        aside.rmdir()


def detach(path: Path) -> None:
    """Takes the topmost mount off `path` at once. Raises OSError."""
    if _libc().umount2(os.fsencode(path), MNT_DETACH):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))


def _replace(copy: int, path: Path) -> None:
    place = (copy, b"", AT_FDCWD, os.fsencode(path))
    try:
        _call(MOVE_MOUNT, *place, MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_BENEATH)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        detach(path)
        _call(MOVE_MOUNT, *place, MOVE_MOUNT_F_EMPTY_PATH)
    else:
        detach(path)


def _call(number: int, *arguments: int | bytes) -> int:
    result: int = _libc().syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
