"""How the status of a mount is shown to a person. Blocking, no state."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

from rich import filesize

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
        dead = mount is not None and mountpoint.state(path) is mountpoint.MountState.DEAD
        reason = "its daemon is gone; 'sosfs umount' clears it" if dead else "nothing of sosfs is mounted there"
        raise OSError(errno.ENOTCONN if dead else errno.EINVAL, reason, str(path))
    print(now.to_json() if json else "\n".join(f"{name:<10} {printable(value)}" for name, value in lines(now)))
    return Exit.OK


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
    for name, pending in sorted(now.buckets.items()):
        yield "in use", f"{name}, {pending} pending"
    yield "conditions", now.conditions
    if now.keeps_versions:
        yield "versions", "kept of all that is overwritten or removed, on SOS 1,000 a file: see 'sosfs versions'"
    yield "requests", ", ".join(f"{count} {name}" for name, count in sorted(now.requests.items())) or "none"
    for what in now.waiting:
        yield "waiting", what
    for one in now.damaged:
        yield "damaged", one
    for error in now.errors:
        yield "error", error
