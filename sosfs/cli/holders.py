"""Find the processes that keep a mount busy.

Read from /proc alone, so it asks no filesystem. Another user's processes are seen by root only. Blocking, no
state.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sosfs.daemon import mountpoint
from sosfs.log.escaping import printable

PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Holder:
    """A process and how it holds the mount: "works in it", "has FILE open"."""

    pid: int
    command: str
    how: str

    def __str__(self) -> str:
        return printable(f"{self.command} (pid {self.pid}) {self.how}")


def of(path: Path) -> list[Holder]:
    """The processes that keep the mount at this path (absolute, links resolved) busy, one line each."""
    holders = []
    for directory in PROC.iterdir():
        if directory.name.isdigit() and (how := next(_holds(directory, path), "")):
            holders.append(Holder(int(directory.name), _command(directory), how))
    return sorted(holders, key=lambda holder: holder.pid)


def elsewhere(device: str) -> str:
    """Where `device` (major:minor) is still mounted, in words: here, as by a bind mount, or in which process's mount
    namespace; "" for nowhere that this user sees.
    """
    here = next((mount for mount in mountpoint.table() if mount.device == device), None)
    if here is not None:
        return f"at {here.mountpoint}"
    seen = {_namespace(PROC / "self"), None}
    for process in PROC.iterdir():
        if not process.name.isdigit() or (namespace := _namespace(process)) in seen:
            continue
        seen.add(namespace)
        with contextlib.suppress(OSError):
            mounts = (process / "mountinfo").read_text(errors="replace").splitlines()
            if any(line.split()[2] == device for line in mounts):
                return f"in the mount namespace of {_command(process)} (pid {process.name})"
    return ""


def _namespace(process: Path) -> str | None:
    try:
        return str((process / "ns" / "mnt").readlink())
    except OSError:  # another user's, or it has ended
        return None


def mounts_below(path: Path) -> list[Path]:
    """Other mounts inside of it, which keep it busy as well."""
    return [mount.mountpoint for mount in mountpoint.table() if path in mount.mountpoint.parents]


def _holds(process: Path, path: Path) -> Iterator[str]:
    """The ways in which a process holds the path. One that ends or is another user's while we look holds nothing."""
    for name, how in (("cwd", "works in it"), ("root", "has its root in it"), ("exe", "runs a program from it")):
        if _inside(_target(process / name), path):
            yield how
    for name in _entries(process / "fd"):
        target = _target(process / "fd" / name)
        if _inside(target, path):
            yield f"has {target} open"
    for line in _lines(process / "maps"):
        mapped = line.split(maxsplit=5)[5:]
        if mapped and _inside(mapped[0], path):
            yield f"has {mapped[0]} mapped"


def _inside(target: str, path: Path) -> bool:
    return target == str(path) or target.startswith(f"{path}/")


def _target(link: Path) -> str:
    try:
        return os.readlink(link)  # noqa: PTH115  Path would fold what the kernel wrote
    except OSError:  # ended, or not ours to see
        return ""


def _entries(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)  # noqa: PTH208  names are enough
    except OSError:  # ended, or not ours to see
        return []


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:  # ended, or not ours to see
        return []


def _command(process: Path) -> str:
    return next(iter(_lines(process / "comm")), "?")
