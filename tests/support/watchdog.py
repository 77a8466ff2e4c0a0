"""A process that outlives a hung or killed test run and clears its mounts away: when and how.

A test that waits in a system call on its own mount cannot be interrupted by a signal, nor by a thread when it
waits in a page fault (which holds the interpreter's lock). So a process of its own watches: when a deadline
passes, or the test process ends in whatever way, it kills the daemons (the hung call then gets ENOTCONN) and
detaches the mounts.

It is told what to do by lines on its standard input, all fields tab-separated: `watch PID MOUNTPOINT`,
`forget PID`, `deadline SECONDS` (0 for none). No third-party imports: it must start in an instant.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self


def clear(pid: int, mountpoint: str) -> None:
    """Kills a daemon that is known to live and detaches its mount; either may end by itself meanwhile."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    detach(mountpoint)


def detach(mountpoint: str) -> None:
    """Takes a mount off the tree where there is one, busy or not."""
    if mounted(mountpoint):
        subprocess.run(["fusermount3", "-u", "-z", mountpoint], stderr=subprocess.DEVNULL, check=False, timeout=20)


def mounted(mountpoint: str | Path) -> bool:
    """Whether the mount table has something at this (absolute, plain) path; asks no filesystem."""
    table = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    escaped = "".join(f"\\{ord(one):03o}" if one in " \t\n\\" else one for one in str(mountpoint))  # as the kernel does
    return any(line.split(" ")[4] == escaped for line in table.split("\n") if line)


def kill(pidfd: int) -> None:
    """Kills a process. A pid would not do: where many come and go it is another's within minutes."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)


def main() -> None:
    """Serves until its standard input ends."""
    watched: dict[int, tuple[int, str]] = {}  # by pid: pidfd and mount point
    deadline = 0.0
    buffer = b""
    while True:
        wait = max(0.0, deadline - time.monotonic()) if deadline else None
        if not select.select([0], [], [], wait)[0]:
            for pidfd, mountpoint in watched.values():
                kill(pidfd)
                detach(mountpoint)
            deadline = 0.0
            continue
        data = os.read(0, 1 << 16)
        if not data:
            break
        *lines, buffer = (buffer + data).split(b"\n")
        for line in lines:
            match os.fsdecode(line).split("\t"):
                case ["watch", pid, path]:
                    with contextlib.suppress(ProcessLookupError):  # it has ended already
                        watched[int(pid)] = os.pidfd_open(int(pid)), path
                case ["forget", pid]:
                    if int(pid) in watched:
                        os.close(watched.pop(int(pid))[0])
                case ["deadline", seconds]:
                    deadline = time.monotonic() + float(seconds) if float(seconds) else 0.0
    for pidfd, mountpoint in watched.values():
        kill(pidfd)
        detach(mountpoint)


class Watchdog:
    """The test process's end of it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-S", __file__], stdin=subprocess.PIPE, start_new_session=True, bufsize=0
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def _tell(self, *fields: object) -> None:
        assert self._process.stdin
        self._process.stdin.write(os.fsencode("\t".join(map(str, fields)) + "\n"))

    def watch(self, pid: int, mountpoint: Path) -> None:
        """From now on the daemon `pid` (a child not waited for yet) and its mount are cleared when time is up."""
        self._tell("watch", pid, mountpoint)

    def forget(self, pid: int) -> None:
        """The daemon has ended by itself."""
        self._tell("forget", pid)

    def deadline(self, seconds: float) -> None:
        """All that is watched is cleared `seconds` from now; 0 takes it back."""
        self._tell("deadline", seconds)


if __name__ == "__main__":
    main()
