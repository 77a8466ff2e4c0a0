"""What a system is: how it is mounted, what its close promises, and how its writes are waited for."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from pathlib import Path

from tests.bench.servers import Server
from tests.support.processes import free_port

ROOT = Path(__file__).resolve().parents[3]
POLL = 0.01  # seconds
DEADLINE = 600.0  # seconds for uploads that go on in the background; the measurement's own limit comes before
# What a file system that has no fsync for directories answers.
NO_FSYNC = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EBADF}


class Role(Enum):
    """What a system is in the comparison."""

    OWN = "sosfs"
    PEER = "a peer in its best setting, whom ratios are made with"
    REFERENCE = "shown beside, never what a ratio to the best peer is made with"


class Closed(StrEnum):
    """Where bytes are when close has returned."""

    BUCKET = "in the bucket"
    MACHINE = "on this machine"


@dataclass(frozen=True)
class Place:
    """What a system is told to mount, where, and what it may use: all paths are its own but `shared`."""

    server: Server  # its endpoint may be that of a relay or proxy
    bucket: str
    mountpoint: Path
    cache: Path
    shared: Path  # the same for all mounts of a bucket: for metadata that are not in the bucket
    direct: Server  # the server itself
    control: int = field(default_factory=free_port)  # a port for its remote control


def nothing(_: Place) -> None:
    """There is nothing to do."""


def at_once(_: Place) -> float:
    """There is nothing to wait for: close waited already."""
    return 0.0


def until_idle(busy: Callable[[], bool], who: str) -> float:
    """Asks again and again until nothing waits, twice in a row; gives the seconds that the second time took."""
    deadline = time.monotonic() + DEADLINE
    while True:
        while busy():
            if time.monotonic() > deadline:
                raise TimeoutError(errno.ETIMEDOUT, f"{who} still uploads")
            time.sleep(POLL)
        idle = time.perf_counter()
        time.sleep(POLL)
        if not busy():
            return time.perf_counter() - idle


def plain(_: Place) -> Mapping[str, str]:
    """No environment of its own."""
    return {}


@dataclass(frozen=True)
class System:
    """A mountable system: `command` stays in the foreground, `settle` waits until all writes are in the bucket.

    It gives the seconds that it took for being sure only, when they were there already.
    """

    name: str
    role: Role
    closed: Closed
    setting: str  # for who reads the results
    command: Callable[[Place], list[str]]
    environment: Callable[[Place], Mapping[str, str]] = plain
    prepare: Callable[[Place], None] = nothing  # before each mount
    settle: Callable[[Place], float] = at_once
    unmount: tuple[str, ...] = ("fusermount3", "-u")
    # Through whose mount the data is put that it reads; without, files are objects, and an S3 client puts them.
    prepared_by: str = ""
    for_renames: bool = False  # it runs only where programs rename what they have just written


def program(name: str) -> str:
    """The path of a program of this Python environment, or else of the machine."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if not found:
        raise FileNotFoundError(errno.ENOENT, f"{name} is not installed: 'make bench' installs it")
    return found


def sync_directory(path: Path) -> None:
    """fsync of a directory, where the system has it."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in NO_FSYNC:
            raise
    finally:
        os.close(handle)
