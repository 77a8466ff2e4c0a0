"""`mount -o remount,ro` and `remount,rw`: the command's side of the switch of a running mount.

    ro: the kernel's flag (root only; EBUSY while a file is open for writing), then the daemon's switch
    rw: the daemon's switch, then the kernel's flag

Where root asks, both say the same, and the mount table shows it. Another user may change the daemon's switch only:
changes are refused all the same, and the mount table does not tell. All other options stay as they are. Blocking.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Sequence
from enum import Enum
from pathlib import Path

from sosfs.daemon import mountpoint
from sosfs.daemon.mountpoint import Mount

# mount(2)
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_NOATIME, MS_NODIRATIME, MS_RELATIME = 1 << 10, 1 << 11, 1 << 21
KEPT = {
    "nosuid": MS_NOSUID,
    "nodev": MS_NODEV,
    "noexec": MS_NOEXEC,
    "noatime": MS_NOATIME,
    "nodiratime": MS_NODIRATIME,
    "relatime": MS_RELATIME,
}


class Access(Enum):
    """What a mount lets programs do, as mount(8) calls it; the value is the daemon's errand."""

    RO = "read-only"
    RW = "read-write"


def is_asked(options: Sequence[str]) -> bool:
    """Whether these texts after `-o` are about a mount that is there already."""
    return "remount" in ",".join(options).split(",")


def run(directory: str, options: Sequence[str], *, really: bool = True) -> int:
    """Switches the mount on `directory` to what the last `ro` or `rw` says; rw where none does, as mount(8).

    Not `really`: only finds out whether there is one. Raises OSError: EINVAL where nothing of ours is mounted, EBUSY
    while a file is open for writing or something is being changed, EPERM for somebody else's mount, or
    one that only root can make writable.
    """
    path = mountpoint.canonical(directory)
    mount = mountpoint.at(path)
    if mount is None or mount.type != mountpoint.TYPE:
        raise OSError(errno.EINVAL, "nothing of sosfs is mounted there", str(path))
    words = [word for word in ",".join(options).split(",") if word in ("ro", "rw")]
    if really:
        _switch(path, mount, Access.RO if words[-1:] == ["ro"] else Access.RW)
    return 0


def _switch(path: Path, mount: Mount, access: Access) -> None:
    from sosfs.ipc import commands  # noqa: PLC0415 - trio with it

    may_set_flag = os.geteuid() == 0
    if access is Access.RW and not may_set_flag and "ro" in mount.options:
        raise OSError(errno.EPERM, "only root can make this mount writable, for it was made read-only", str(path))
    if access is Access.RO and may_set_flag:
        _set_flag(path, mount, access)
    try:
        commands.ask(path, access.value, (), owner=mount.owner, news=lambda _: None)
    except OSError:
        if access is Access.RO and may_set_flag and "ro" not in mount.options:
            _set_flag(path, mount, Access.RW)
        raise
    if access is Access.RW and may_set_flag:
        _set_flag(path, mount, access)


def _set_flag(path: Path, mount: Mount, access: Access) -> None:
    flags = MS_REMOUNT | sum(KEPT[option] for option in mount.options if option in KEPT)
    if access is Access.RO:
        flags |= MS_RDONLY
    if ctypes.CDLL(None, use_errno=True).mount(None, os.fsencode(path), None, ctypes.c_ulong(flags), None):
        number = ctypes.get_errno()
        busy = number == errno.EBUSY
        raise OSError(number, "a file is open for writing" if busy else os.strerror(number), str(path))
