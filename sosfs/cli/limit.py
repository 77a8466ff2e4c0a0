"""`sosfs limit`: how fast a mount may be, changed and shown while it goes on. Blocking, one call a process."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from sosfs.cli import status as status_command
from sosfs.daemon import mountpoint
from sosfs.daemon.launch import Exit
from sosfs.ipc import commands, status
from sosfs.ipc.status import MountPhase, Status


def run(path: Path, changes: Mapping[str, int]) -> int:
    """Lets these limits hold in the mount from now on, and prints those that hold then. Raises OSError."""
    mount = mountpoint.at(path)
    asked = [(name.encode(), str(value).encode()) for name, value in changes.items()]
    told = commands.ask(path, "limit", asked, owner=mount.owner if mount else 0, news=lambda _: None)
    now = Status(0, "", "", str(path), "", MountPhase.MOUNTED)
    known = {field.name for field in dataclasses.fields(status.Status)}
    print(status_command.limits(dataclasses.replace(now, **{k: v for k, v in told.items() if k in known})))
    return Exit.OK
