"""The directory that is mounted on: its state, its use, how it is detached.

It says which state of a mount point is which clear line for the user, and that a mount
left by a daemon that died is cleared away. Nothing here asks the mount itself but `_is_dead`, in a thread that
nobody waits for, so none of it can hang on a daemon that hangs.

Blocking; no state, safe from any thread.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import threading
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from sosfs.config.parameters import Settings

FUSE_DEVICE = Path("/dev/fuse")
FUSE_SETTINGS = Path("/etc/fuse.conf")
MOUNT_TABLE = Path("/proc/self/mountinfo")
TYPE = "fuse.sosfs"  # what the mount table calls our mounts
LINKS = 40  # on the way to a path, as for the kernel
DETACH_SECONDS = 30.0
DEAD_SECONDS = 1.0  # for what the kernel answers by itself, at once, where no daemon is left


class StartError(Exception):
    """A mount that cannot begin, in one line for the user."""


class LastingError(StartError):
    """One that every further try meets as well, until somebody changes what the mount was asked for."""


class MountState(Enum):
    """What is at a mount point."""

    FREE = "free"
    LIVE = "live"
    DEAD = "dead"  # its daemon is gone: every call answers ENOTCONN


class Detach(Enum):
    """How a mount is taken off."""

    WHEN_FREE = "when free"  # EBUSY while anything is open in it
    LAZY = "lazy"  # at once from the tree; what is open stays usable until it is closed


@dataclass(frozen=True, slots=True)
class Mount:
    """A line of the mount table."""

    mountpoint: Path
    type: str
    source: str
    owner: int  # the uid that mounted it, for FUSE; else 0
    device: str  # MAJOR:MINOR, the name of its read-ahead settings under /sys/class/bdi
    options: tuple[str, ...] = ()  # of this mount: ro or rw, nosuid...


def table() -> list[Mount]:
    """All mounts this process sees, in the order they were made."""
    lines = MOUNT_TABLE.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    return [_parsed(line) for line in lines]


def _parsed(line: str) -> Mount:
    # "36 35 98:0 /root /mount/point rw,relatime optional... - type source options", proc_pid_mountinfo(5)
    fields, _, rest = line.partition(" - ")
    kind, source, options = rest.split(" ")
    owner = re.search(r"\buser_id=(\d+)", options)
    _, _, device, _, mountpoint, own, *_ = fields.split(" ")
    uid = int(owner[1]) if owner else 0
    return Mount(Path(_unescaped(mountpoint)), kind, _unescaped(source), uid, device, tuple(own.split(",")))


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def at(mountpoint: Path) -> Mount | None:
    """The topmost mount on exactly this directory (absolute, links resolved), None where there is none."""
    return next((mount for mount in reversed(table()) if mount.mountpoint == mountpoint), None)


def canonical(path: str | Path) -> Path:
    """The path as the mount table writes it, without asking a mount of ours.

    Links are followed on the way to such a mount, and not in it. Raises OSError for a chain of links without end.
    """
    return outside({mount.mountpoint for mount in table() if mount.type == TYPE}, path)


def outside(ours: Collection[Path], path: str | Path) -> Path:
    """The absolute path, with the links on the way resolved up to the first of these directories."""
    todo, current, links = deque(_parts(path)), Path("/"), 0
    while todo and current not in ours:
        current /= todo.popleft()
        if current in ours:
            break
        try:
            target = current.readlink()
        except OSError:  # it is no link, or not there
            continue
        links += 1
        if links > LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
        todo.extendleft(reversed(_parts(current.parent / target)))
        current = Path("/")
    return current.joinpath(*todo)


def _parts(path: str | Path) -> tuple[str, ...]:
    return Path(os.path.abspath(path)).parts[1:]  # noqa: PTH100 - pathlib keeps "..", and resolve() would ask


def prepare(settings: Settings) -> None:
    """Raises `StartError` where the mount cannot be made. A dead one stays for now (`clear`)."""
    _check_fuse(settings)
    found = state(settings.mountpoint)
    if found is MountState.LIVE:
        raise _busy(settings.mountpoint)
    if found is MountState.FREE:
        check_directory(settings.mountpoint)


def _busy(path: Path) -> StartError:
    return StartError(f"mount point is busy: {path} has a mount already")


def clear(path: Path) -> None:
    """Takes off a dead mount. Raises `StartError` where nothing can be mounted then, and OSError.

    To be called right before the new mount is made: meanwhile programs see the directory below, which is empty, and
    may write into it.
    """
    found = state(path)
    if found is MountState.LIVE:
        raise _busy(path)
    if found is MountState.DEAD:
        detach(path, Detach.LAZY)
        if state(path) is not MountState.FREE:
            raise StartError(f"mount point is busy: {path} has another mount below the dead one")
        check_directory(path)


def check_directory(path: Path) -> None:
    """Raises `StartError` for what FUSE or a user would not have a bucket mounted on."""
    try:
        entry = next(path.iterdir(), None)
    except FileNotFoundError as error:
        raise LastingError(f"no such mount point: {path}") from error
    except NotADirectoryError as error:
        raise LastingError(f"mount point is not a directory: {path}") from error
    except OSError as error:
        raise StartError(f"mount point {path}: {error.strerror}") from error
    if entry is not None:
        raise LastingError(f"mount point is not empty: {path} (it has {entry.name!r}, which the mount would hide)")
    if not os.access(path, os.W_OK):
        raise LastingError(f"mount point {path}: you may not write to it, so FUSE does not let you mount there")


def state(path: Path) -> MountState:
    """What is mounted on this directory, as far as it matters to another mount.

    A mount of another kind than FUSE (an empty disk, a bind mount) is FREE: mounting over it is usual.
    """
    mount = at(path)
    if mount is None or not mount.type.startswith("fuse"):
        return MountState.FREE
    return MountState.DEAD if _is_dead(path) else MountState.LIVE


def _is_dead(path: Path) -> bool:
    """Whether the kernel says that the daemon is gone; of one that hangs, nobody says anything."""
    told: list[int | None] = []

    def ask() -> None:
        try:
            os.statvfs(path)
        except OSError as error:
            told.append(error.errno)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(DEAD_SECONDS)
    return not {errno.ENOTCONN, errno.ECONNABORTED}.isdisjoint(told)


def _check_fuse(settings: Settings) -> None:
    if not FUSE_DEVICE.exists():
        raise StartError(
            f"{FUSE_DEVICE} is missing: load it with 'modprobe fuse', or start the container with "
            f"'--device {FUSE_DEVICE} --cap-add SYS_ADMIN'"
        )
    if not os.access(FUSE_DEVICE, os.R_OK | os.W_OK):
        raise StartError(f"{FUSE_DEVICE}: you may not open it; it should have mode 666")
    if shutil.which("fusermount3") is None:
        raise StartError("fusermount3 is missing: install the package fuse3")
    if settings.allow_other and os.geteuid() != 0 and not others_allowed():
        raise LastingError(f"--allow-other needs the line 'user_allow_other' in {FUSE_SETTINGS}, or root")


def others_allowed() -> bool:
    """Whether a user who is not root may mount for others."""
    try:
        text = FUSE_SETTINGS.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return False
    return re.search(r"^\s*user_allow_other\s*$", text, re.MULTILINE) is not None


def detach(path: Path, how: Detach) -> None:
    """Takes a mount off. Raises OSError: EBUSY while it is in use, else EIO with what the tool said."""
    command = _detach_command(how)
    try:
        done = subprocess.run(
            [*command, str(path)],
            env={**os.environ, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=DETACH_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise OSError(errno.ETIMEDOUT, f"{command[0]} did not answer", str(path)) from error
    if done.returncode != 0:
        text = done.stderr.strip().splitlines()[-1:] or [f"{command[0]} failed"]
        is_busy = "busy" in text[0].replace(str(path), "")
        raise OSError(errno.EBUSY if is_busy else errno.EIO, text[0].removeprefix("umount: "), str(path))


def _detach_command(how: Detach) -> list[str]:
    """fusermount3 for a user's mounts. For root umount, which takes off anyone's.

    -i, so that no helper calls us; -c, so that it looks into the mount table and does not ask a daemon that may hang.
    """
    if os.geteuid() == 0:
        return ["umount", "-ic", *(["-l"] if how is Detach.LAZY else [])]
    return ["fusermount3", "-u", *(["-z"] if how is Detach.LAZY else [])]
