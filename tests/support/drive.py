"""What a test on a mounted bucket works with: the mount, a directory of its own in it, and a foreign client."""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import pytest

from sosfs.ipc.status import Status
from tests.support.faults import FAILED
from tests.support.foreign import Foreign
from tests.support.mounting import Mount, run_sosfs

NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass
class Drive:
    """A mounted bucket. `here` is an empty directory that no other test knows."""

    mount: Mount
    foreign: Foreign
    here: Path

    def key(self, path: Path) -> str:
        """The key of a file in the mount."""
        return str(path.relative_to(self.mount.path))

    def stored(self, path: Path) -> bytes:
        """What a foreign client reads of a file in the mount."""
        return self.foreign.get(self.key(path))

    def run(self, *command: str | Path, cwd: Path | None = None, environment: Mapping[str, str] = NOTHING) -> str:
        """Runs a program (in `here`) that must succeed and returns its output."""
        done = subprocess.run(
            list(map(str, command)),
            cwd=cwd or self.here,
            env={**os.environ, "HOME": str(self.mount.home), "LC_ALL": "C.UTF-8", **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def shell(self, script: str) -> str:
        """Runs a script with sh."""
        return self.run("sh", "-euc", script)


def status(drive: Drive) -> Status:
    """What the mount says of itself."""
    done = run_sosfs(["status", drive.mount.path, "--json"], drive.mount.environment)
    assert done.returncode == 0, done.stderr
    return Status.from_json(done.stdout)


@contextmanager
def fails(*numbers: int) -> Iterator[None]:
    """The block must raise OSError with one of these errnos."""
    with pytest.raises(OSError) as caught:
        yield
    assert caught.value.errno in numbers, f"{caught.value!r}, expected {[os.strerror(n) for n in numbers]}"


def eventually(holds: Callable[[], bool], *, seconds: float = 15.0) -> None:
    """Waits until `holds()`; for what is promised soon and not at once."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not so after {seconds} s"
        time.sleep(0.1)


def digest(data: bytes | Path) -> str:
    """The MD5 of bytes or of a file."""
    if isinstance(data, bytes):
        return hashlib.md5(data).hexdigest()
    with data.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def names(directory: Path) -> list[str]:
    """What is listed, sorted."""
    return sorted(path.name for path in directory.iterdir())


def tree(directory: Path) -> dict[str, bytes]:
    """All files below a directory with their bytes."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def attempt(action: Callable[[], object]) -> bool:
    """Whether an action succeeded; it may fail with the errnos of a bad server alone."""
    try:
        action()
    except OSError as error:
        assert error.errno in FAILED, error
        return False
    return True


def sync(path: Path) -> None:
    """Opens, syncs and closes a file or directory: whatever of it is unsent goes up."""
    file = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(file)
    finally:
        os.close(file)
