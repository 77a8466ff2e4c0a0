"""`sosfs log`: what a running mount logs. Blocking, one call a process."""

from __future__ import annotations

import os
from pathlib import Path

from sosfs.cli.location import mount_at
from sosfs.daemon.launch import Exit
from sosfs.ipc import commands
from sosfs.ipc.commands import Names
from sosfs.log.escaping import printable

OFF = "off"


def run(path: Path, *, access: str | None, level: str | None) -> int:
    """Changes what is not None and tells what holds then. Raises OSError."""
    mount = mount_at(path)
    words: list[Names] = []
    if level is not None:
        words.append((b"level", level.encode()))
    if access is not None:
        # Links are followed here: the mount must not ask itself where they lead.
        words.append((b"access", b"" if access == OFF else os.fsencode(os.path.realpath(access))))
    now = commands.ask(mount.mountpoint, "log", words, owner=mount.owner, news=lambda _: None)
    print(f"level   {now['level']}")
    print(f"access  {printable(now['access'] or OFF)}")
    return Exit.OK
