"""Widen the kernel's read-ahead for the mount."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import trio

from sosfs.config.parameters import READ_AHEAD

log = logging.getLogger(__name__)

PAUSES = (0.05, 0.5, 5.0)  # seconds


def read_ahead_file(mountpoint: Path) -> Path | None:
    """Where the kernel keeps the read-ahead of a mount; None when it is not in the mount table.

    The device number comes from the mount table: a stat of the mount would wait for the daemon itself.
    """
    found: Path | None = None
    wanted = os.fspath(mountpoint)
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        fields = line.split(" ")
        if _unescaped(fields[4]) == wanted:
            found = Path("/sys/class/bdi") / fields[2] / "read_ahead_kb"  # the last one lies on top
    return found


def _unescaped(field: str) -> str:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        field = field.replace(code, character)
    return field


async def raise_read_ahead(mountpoint: Path) -> None:
    """Widens the read-ahead where this process may; without the right to, reading is only slower.

    The kernel sets its own value when FUSE's first request is answered, of which nothing tells us.
    """
    for pause in PAUSES:
        await trio.sleep(pause)
        file = read_ahead_file(mountpoint)
        try:
            if file is not None:
                file.write_text(str(READ_AHEAD))
        except OSError as error:
            log.info("the kernel's read-ahead stays as it is: %s", error)
            return
