"""Keep the daemon's files and memory to the user who mounted.

The directory for journal, spools and caches may be one that others can enter (`--cache-dir`); the files in it hold
what the modes of the mounted files may keep from them, so each is the owner's alone, whatever umask the caller had.
The daemon's memory holds keys: the kernel writes no dump of it, neither to a file nor to a crash reporter.

Blocking; called once, in the daemon's process, before other threads run.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import stat
from fnmatch import fnmatch
from pathlib import Path

PR_SET_DUMPABLE = 4  # prctl(2)
STATE = (
    "lock",
    "*.sqlite*",
    "reserve",
    "spool",
    "blocks",
    "damaged",
)  # what a mount keeps there; of a directory, none gets inside


def protect_process() -> None:
    """From here on new files are the owner's alone, and nothing dumps this process's memory.

    Not dumpable also means that only root may trace it or read its memory in /proc (PR_SET_DUMPABLE, prctl(2)). The
    limit alone would not do: the kernel does not apply it to a crash reporter that core_pattern names.
    """
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, f"prctl(PR_SET_DUMPABLE): {os.strerror(number)}")


def require_own(directory: Path) -> None:
    """Makes what an earlier mount left in the state directory `directory` the owner's alone; files of others stay.

    Raises EPERM where it is another user's or any user may rename what is in it: who can swap a journal can have the
    daemon write what he likes. A directory that is not there yet is none of these.
    """
    try:
        found = directory.stat()
    except FileNotFoundError:
        return
    others_write = found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX
    if found.st_uid not in (os.geteuid(), 0) or others_write:
        raise OSError(errno.EPERM, "other users may change what is in it; use a directory of your own", str(directory))
    with os.scandir(directory) as entries:
        for entry in entries:
            if any(fnmatch(entry.name, pattern) for pattern in STATE):
                _close(entry)


def _close(entry: os.DirEntry[str]) -> None:
    found = entry.stat(follow_symlinks=False)
    if found.st_uid == os.geteuid() and not stat.S_ISLNK(found.st_mode) and found.st_mode & 0o077:
        Path(entry).chmod(stat.S_IMODE(found.st_mode) & 0o700)
