"""A client that puts files through a mount of its own: for a system whose objects only it can read.

It mounts when first asked for something and unmounts in `rest`, so that the measured mount is alone.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from tests.bench.drive import Drive
from tests.bench.material import MTIME


class Files:
    """`open_drive` gives a new drive of the system, not mounted yet."""

    def __init__(self, open_drive: Callable[[], Drive]) -> None:
        self._open_drive = open_drive
        self._drive: Drive | None = None
        self._lock = threading.Lock()

    @property
    def _top(self) -> Path:
        with self._lock:
            if self._drive is None:
                drive = self._open_drive()
                drive.start()
                self._drive = drive
            return self._drive.place.mountpoint

    def put(self, key: str, data: bytes) -> None:
        self.put_parts(key, [data])

    def put_directory(self, key: str) -> None:
        (self._top / key).mkdir(parents=True, exist_ok=True)

    def put_whole(self, key: str, pieces: Iterable[memoryview | bytes]) -> None:
        self.put_parts(key, pieces)

    def put_parts(self, key: str, pieces: Iterable[memoryview | bytes]) -> None:
        path = self._top / key
        with path.open("wb", buffering=0) as out:
            for piece in pieces:
                out.write(piece)
        os.utime(path, (MTIME, MTIME))

    def delete(self, prefix: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self._top / prefix)

    def rest(self) -> None:
        drive, self._drive = self._drive, None
        if drive is not None:
            with drive:  # whose end unmounts
                drive.settle()

    def end(self) -> None:
        """Ends its mount by force, where there is one."""
        if self._drive is not None:
            self._drive.clear()


def sizes(top: Path, below: str) -> dict[str, int]:
    """Name to size of all files below a directory of a mount, empty ones left out; none where it is not there."""
    found = {str(path): path.stat().st_size for path in (top / below).rglob("*") if path.is_file()}
    return {name: size for name, size in found.items() if size}
