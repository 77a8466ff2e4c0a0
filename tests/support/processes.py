"""Server processes of the tests: how they are started, waited for and ended, whatever happens to the tests.

Each runs in a session of its own, so that Ctrl-C reaches only pytest, whose fixtures then end it; and the
kernel kills it when the process that started it dies without that (`setpriv --pdeathsig`, util-linux).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

POLL = 0.05  # seconds


def free_port() -> int:
    """A TCP port that nobody listens on just now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def listening(port: int) -> bool:
    """Whether somebody accepts connections on a local port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def require(*programs: str, package: str) -> None:
    """Fails when a program is not installed: a missing server must not look like a passed test."""
    missing = [program for program in programs if not shutil.which(program)]
    if missing:
        raise RuntimeError(f"{', '.join(missing)} not found: apt-get install --no-install-recommends {package}")


class Process:
    """A server process with its output in a file."""

    def __init__(self, command: Sequence[str], log: Path, *, cwd: Path | None = None) -> None:
        self.log = log
        self._name = command[0]
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", *command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                cwd=cwd,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def until(self, ready: Callable[[], bool], seconds: float) -> None:
        """Waits for `ready`; fails with the end of the log when it takes longer or the process ends."""
        deadline = time.monotonic() + seconds
        while not ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                state = "ended" if self._process.poll() is not None else f"not ready after {seconds} s"
                tail = self.log.read_text(errors="replace")[-2000:]
                raise RuntimeError(f"{self._name} {state}:\n{tail}")
            time.sleep(POLL)

    def end(self) -> None:
        """Ends the process with all it started."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            try:
                self._process.wait(timeout=3)
            except subprocess.TimeoutExpired:
                continue
            return
