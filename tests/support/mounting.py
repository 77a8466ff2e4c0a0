"""A bucket mounted for a test: how the real program is started, watched, checked and always cleared away.

The daemon is the program as a user starts it (`python -m sosfs mount -f`), in a process of its own, so a test
uses plain file calls. Two rules make failures honest: a WARNING, ERROR or traceback in its log that the test
did not announce with `allow_log` fails the test, and so does an exit code other than 0.

A test must not touch a mapped page of a file (mmap) on a mount whose requests pass a `proxy.Proxy` of its own
process: the page fault holds the interpreter's lock that the proxy's threads need.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.watchdog import Watchdog, detach, mounted

ROOT = Path(__file__).resolve().parents[2]
SOSFS = (sys.executable, "-m", "sosfs")
INHERITED = frozenset({"PYTHONPYCACHEPREFIX"})  # where bytecode is not to lie in the clone (conftest)
READY = 30.0  # seconds to mount; two seconds on an idle machine
DRAIN = 60.0  # seconds to unmount
FREE = 5.0  # seconds until nobody has a file open that a test has closed
# A release that is answered after the kernel has let go of the mount.
UNHEARD = re.compile(r"fuse_release\(\): fuse_reply_\* failed with No such file")
TROUBLE = re.compile(r"\b(WARNING|ERROR|CRITICAL)\b|^Traceback|Exception ignored|was never awaited", re.MULTILINE)


def alone(base: Path) -> str:
    """A line of shell for a mount namespace of a test's own: it lets go of mounts that are not below `base`.

    Else it would keep those of tests that run at the same time, whose daemons wait for it at their end.
    """
    others = f"findmnt -nro TARGET -t fuse.sosfs | grep -vF {base}/"
    return f'{others} | while read -r at; do umount -il "$(printf %b "$at")" 2>/dev/null || true; done'


class MountFailed(AssertionError):
    """The program did not come up; the message has its exit code and what it said."""


@dataclass(frozen=True)
class Access:
    """Where the S3 server is for the program and who it is there: environment and options alike."""

    endpoint: str
    key: str
    secret: str

    def environment(self, home: Path) -> dict[str, str]:
        """A clean environment: nothing of the machine's own accounts gets in."""
        return {
            **{name: os.environ[name] for name in INHERITED & os.environ.keys()},
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "LANG": "C.UTF-8",
            "PYTHONPATH": str(ROOT),
            "EXOSCALE_API_KEY": self.key,
            "EXOSCALE_API_SECRET": self.secret,
        }


def run_sosfs(
    arguments: Sequence[str | Path], environment: Mapping[str, str], *, timeout: float = DRAIN
) -> subprocess.CompletedProcess[str]:
    """Runs a command of the program to its end, output captured."""
    command = [*SOSFS, *map(str, arguments)]
    return subprocess.run(
        command,
        env=dict(environment),
        capture_output=True,
        text=True,
        timeout=timeout,
        close_fds=False,  # before exec a close flushes a mount's file, and the forking thread waits with the GIL
        check=False,
        cwd="/",
    )


def complaints(stderr: str) -> list[str]:
    """What a command says, but for the line that a slow machine brings: that it waits for the server."""
    return [line for line in stderr.splitlines() if not line.startswith("sosfs: connecting to ")]


@dataclass
class Mount:
    """`with Mount(...) as mount:` a bucket (or `bucket/prefix`) at `mount.path`."""

    access: Access
    source: str  # "": all buckets of the account
    base: Path  # mount point, cache, home and log live below it; a second Mount needs another, or the first one stopped
    watchdog: Watchdog
    options: Sequence[str] = ()
    path: Path = field(init=False)
    _process: subprocess.Popen[bytes] | None = field(init=False, default=None)
    _allowed: list[re.Pattern[str]] = field(init=False, default_factory=lambda: [UNHEARD])
    _checked: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.path = self.base / "mnt"
        self.cache = self.base / "cache"
        self.home = self.base / "home"
        self.logfile = self.base / "log"
        for directory in (self.path, self.cache, self.home):
            directory.mkdir(parents=True, exist_ok=True)
        self.environment = self.access.environment(self.home)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            self.end()
        else:
            self.clear()
            if error is not None:
                error.add_note(f"log of {self.source}:\n{self.log[-6000:]}")

    def start(self) -> None:
        """Mounts and waits until the mount table has it."""
        assert not self.running, "already mounted"
        arguments = ["mount", "-f", *filter(None, [self.source]), self.path, "--endpoint", self.access.endpoint]
        command = [*SOSFS, *map(str, arguments), "--cache-dir", str(self.cache), *self.options]
        with self.logfile.open("ab") as log:
            self._process = subprocess.Popen(
                command, env=self.environment, stdout=log, stderr=log, start_new_session=True, cwd="/"
            )
        self.watchdog.watch(self.pid, self.path)
        deadline = time.monotonic() + READY
        while not mounted(self.path):
            if self._process.poll() is not None or time.monotonic() > deadline:
                code = self._process.returncode
                self.clear()
                raise MountFailed(f"exit code {code}\n{self.log}")
            time.sleep(0.02)

    def stop(self) -> None:
        """Unmounts as a user does and checks that all went well: exit codes and the log."""
        assert self._process is not None
        try:
            done = run_sosfs(["umount", self.path], self.environment)
            assert done.returncode == 0, f"umount: exit code {done.returncode}\n{done.stderr}\n{self.log}"
            assert self._process.wait(DRAIN) == 0, f"daemon: exit code {self._process.returncode}\n{self.log}"
            assert not mounted(self.path), "still mounted"
        finally:
            self.clear()
        self.check_log()

    def end(self) -> None:
        """As `stop`, but that the kernel is asked directly: the program takes 0.3 s of CPU for that, a thousand times.

        The daemon drains all the same, and its exit code says whether anything is left.
        """
        assert self._process is not None
        command = ["fusermount3", "-u", str(self.path)]
        deadline = time.monotonic() + FREE
        try:
            while (done := subprocess.run(command, capture_output=True, text=True, check=False)).returncode:
                assert time.monotonic() < deadline, f"{done.stderr}\n{self.log}"  # else a file was just closed
                time.sleep(0.05)
            assert self._process.wait(DRAIN) == 0, f"daemon: exit code {self._process.returncode}\n{self.log}"
            assert not mounted(self.path), "still mounted"
        finally:
            self.clear()
        self.check_log()

    def remount(self) -> None:
        """Unmounts and mounts again with an empty memory and the same cache directory."""
        self.end()
        self.start()

    def kill(self) -> None:
        """The daemon dies at once, as by power loss; the mount point is cleared away."""
        self.clear()

    def clear(self) -> None:
        """Ends the daemon and the mount by force; harmless when both are gone."""
        if self._process is None:
            return
        self._process.kill()  # does nothing to a process that was waited for
        detach(str(self.path))
        self._process.wait(20)
        self.watchdog.forget(self._process.pid)
        self._process = None

    @property
    def running(self) -> bool:
        """Whether the daemon lives and its mount is in the table."""
        return self._process is not None and self._process.poll() is None and mounted(self.path)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        """All that the daemons of this mount have said."""
        return self.logfile.read_text(errors="replace") if self.logfile.exists() else ""

    def allow_log(self, pattern: str) -> None:
        """Announces a log line that would fail the test otherwise."""
        self._allowed.append(re.compile(pattern))

    def check_log(self) -> None:
        """Fails when there is trouble in the log since the last check that was not announced."""
        news, self._checked = self.log[self._checked :], len(self.log)
        bad = [
            line
            for line in news.splitlines()
            if TROUBLE.search(line) and not any(pattern.search(line) for pattern in self._allowed)
        ]
        assert not bad, "trouble in the log:\n" + "\n".join(bad) + f"\n\nthe whole:\n{news[-6000:]}"

    def peak_memory(self) -> int:
        """The most memory the daemon ever had resident, in bytes (VmHWM)."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) << 10  # type: ignore[index]

    def terminate(self) -> int:
        """Sends SIGTERM, as systemd does, and returns the exit code."""
        assert self._process is not None
        self._process.terminate()
        code = self._process.wait(DRAIN)
        self.clear()
        return code
