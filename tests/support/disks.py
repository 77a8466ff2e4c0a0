"""Small disks for the tests: file systems in memory that can be filled, cleared away whatever happens."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.support.watchdog import detach

DISK = 48 << 20  # bytes
BALLAST = "filled-by-another-program"


@contextmanager
def small_disk(path: Path, size: int, *, inodes: int = 0) -> Iterator[Path]:
    """A file system of `size` bytes (and so many inodes) at `path`, a directory that is made if need be."""
    path.mkdir(parents=True, exist_ok=True)
    options = f"size={size},mode=700" + (f",nr_inodes={inodes}" if inodes else "")
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], check=True)
    try:
        yield path
    finally:
        detach(str(path))


def having(free: int, total: int) -> Callable[[Any], Any]:
    """An `os.statvfs` that tells of a disk of `total` bytes with so many of them free."""
    return lambda path: SimpleNamespace(
        f_bavail=free, f_frsize=1, f_bsize=1, f_blocks=total, f_bfree=free, f_files=0, f_favail=0
    )


def free(path: Path) -> int:
    """Bytes that are free."""
    state = os.statvfs(path)
    return state.f_bavail * state.f_frsize


def fill(path: Path, *, leave: int = 0) -> Path:
    """Another program takes what is free but for `leave` bytes; the file it takes it with, to be removed again."""
    ballast = path / BALLAST
    with ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while (room := free(path) - leave) > 0:
            file.write(bytes(min(room, 1 << 20)))
    return ballast


def take_inodes(path: Path) -> Path:
    """Another program takes all inodes; the directory of its files."""
    folder = path / BALLAST
    folder.mkdir()
    with contextlib.suppress(OSError):
        for number in range(1 << 20):
            (folder / str(number)).touch()
    return folder
