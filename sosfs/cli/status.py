"""`sosfs status`: show a person what a mount is doing.

Blocking, no state.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

from rich import filesize

from sosfs.config.values import shown_size
from sosfs.daemon import mountpoint
from sosfs.daemon.launch import Exit
from sosfs.ipc import status
from sosfs.ipc.status import Status
from sosfs.log.escaping import printable


def run(path: Path, *, json: bool) -> int:
    """Prints what the daemon of this mount point says. Raises OSError where there is none."""
    mount = mountpoint.at(path)
    now = status.fetch(path, owner=mount.owner if mount else None)
    if now is None:
        raise _unanswered(path, mount)
    print(now.to_json() if json else "\n".join(f"{name:<10} {printable(value)}" for name, value in lines(now)))
    return Exit.OK


def _unanswered(path: Path, mount: mountpoint.Mount | None) -> OSError:
    if mount is None or mount.type != mountpoint.TYPE:
        return OSError(errno.EINVAL, "nothing of sosfs is mounted there", str(path))
    if mountpoint.state(path) is mountpoint.MountState.DEAD:
        return OSError(errno.ENOTCONN, "its daemon is gone; 'sosfs umount' clears it", str(path))
    return OSError(errno.ENOTCONN, f"its daemon is not found; ask as who mounted it, user {mount.owner}", str(path))


def lines(now: Status) -> Iterator[tuple[str, str]]:
    """The status, a name and a text at a time."""
    yield "bucket", f"{now.bucket}/{now.prefix}" if now.bucket else "all of the account"
    yield "endpoint", now.endpoint
    yield "mounted", now.mountpoint
    yield "state", f"{now.state.value}, pid {now.pid}"
    yield "pending", f"{now.pending_files} files, {filesize.decimal(now.pending_bytes)}"
    if now.waiting_writers:
        who = "1 writer waits" if now.waiting_writers == 1 else f"{now.waiting_writers} writers wait"
        yield "room", f"{who} for room in {now.state_dir}, {filesize.decimal(now.free_bytes)} free"
    yield "moved", f"{filesize.decimal(now.sent_bytes)} sent, {filesize.decimal(now.received_bytes)} received"
    yield "memory", f"{filesize.decimal(now.memory_bytes)} of {filesize.decimal(now.memory_limit)}"
    yield "limits", limits(now)
    for name, pending in sorted(now.buckets.items()):
        yield "in use", f"{name}, {pending} pending"
    yield "conditions", now.conditions
    yield "requests", ", ".join(f"{count} {name}" for name, count in sorted(now.requests.items())) or "none"
    for what in now.waiting:
        yield "waiting", what
    for one in now.damaged:
        yield "damaged", one
    for error in now.errors:
        yield "error", error


def limits(now: Status) -> str:
    """How many requests there may be, and how fast their bytes may move."""
    many = f"{now.transfers} requests at once"
    if now.allowed < now.transfers:
        many += f", {now.allowed} for now, as the server has asked for fewer {now.refusals} times"
    up, down = _rate(now.upload_rate), _rate(now.download_rate)
    return f"{many}; {up} up, {down} down"


def _rate(rate: int) -> str:
    return f"{shown_size(rate)}/s" if rate else "no limit"
