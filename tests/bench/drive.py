"""A mounted system: its life from mount to unmount, what it costs meanwhile, and its end when it hangs.

Each measurement gets a mount point and a cache of its own and begins with the kernel's page cache dropped.
The watchdog, a process of its own, kills the system when the measurement's time is up: every call that waits
in it then fails, so none can hold up the benchmark.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Self

from tests.bench import process_tree
from tests.bench.process_tree import Usage
from tests.bench.systems.system import Place, System
from tests.support.processes import free_port
from tests.support.watchdog import Watchdog, clear, mounted

READY = 30.0  # seconds to mount
STOP = 30.0  # seconds to unmount
BUSY = 3.0  # seconds that what has just ended may keep it busy


class MountFailed(OSError):
    """The system did not come up; the message has the end of what it said."""


def drop_page_cache() -> bool:
    """Whether the kernel forgot what it had read; only root may ask for that."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except PermissionError:
        return False
    return True


class Drive:
    """`with Drive(...) as drive: drive.start()` mounts a system at `drive.place.mountpoint`; the end unmounts it."""

    def __init__(self, system: System, place: Place, watchdog: Watchdog, log: Path, *, limit: float) -> None:
        """`limit`: seconds after each mount when the system is killed."""
        self.system, self.place = system, place
        self._watchdog, self._log, self._limit = watchdog, log, limit
        self._process: subprocess.Popen[bytes] | None = None
        self._twins: list[Drive] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.stop()
        finally:
            self.clear()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Mounts and waits until the mount table has it."""
        for path in (self.place.mountpoint, self.place.cache):
            path.mkdir(parents=True, exist_ok=True)
        drop_page_cache()
        self.system.prepare(self.place)
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        environment = {**kept, **self.system.environment(self.place)}
        with self._log.open("ab") as out:
            self._process = subprocess.Popen(
                self.system.command(self.place),
                env=environment,
                stdout=out,
                stderr=out,
                start_new_session=True,
                cwd="/",
            )
        self._watchdog.watch(self.pid, self.place.mountpoint)
        self._watchdog.deadline(self._limit)
        deadline = time.monotonic() + READY
        while not mounted(self.place.mountpoint):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.clear()
                raise MountFailed(f"{self.system.name} did not mount: {self.said()}")
            time.sleep(0.01)

    def twin(self) -> Drive:
        """One more mount of the same bucket, mounted, with a cache of its own; it ends with this one."""
        number = len(self._twins) + 2
        mountpoint, cache = (
            path.with_name(f"{path.name}-{number}") for path in (self.place.mountpoint, self.place.cache)
        )
        place = replace(self.place, mountpoint=mountpoint, cache=cache, control=free_port())
        log = self._log.with_name(f"{self._log.name}-{number}")
        twin = Drive(self.system, place, self._watchdog, log, limit=self._limit)
        self._twins.append(twin)
        twin.start()
        return twin

    def stop(self) -> None:
        """Unmounts as its users do, and waits for its end."""
        while self._twins:
            self._twins[-1].stop()
            self._twins.pop()
        if self._process is None:
            return
        deadline = time.monotonic() + BUSY
        while said := self._unmount():
            if "busy" not in said or time.monotonic() > deadline:
                raise OSError(f"{said[-300:]}; the log ends: {self.said()}")
            time.sleep(0.1)
        self._process.wait(STOP)
        self._watchdog.forget(self.pid)
        self._process = None

    def _unmount(self) -> str:
        """Asks for it once, and tells why it was refused."""
        environment = {**os.environ, **self.system.environment(self.place)}
        command = [*self.system.unmount, str(self.place.mountpoint)]
        done = subprocess.run(command, env=environment, capture_output=True, timeout=STOP, check=False, cwd="/")
        if not done.returncode:
            return ""
        return f"unmounting gave {done.returncode}: {done.stderr.decode(errors='replace').strip()}"

    def remount(self) -> None:
        """Unmounts and mounts again with the same cache directory; the kernel forgets all."""
        self.settle()
        self.stop()
        self.start()

    def settle(self) -> float:
        """Returns when all that was written is in the bucket, as far as the system lets one know.

        Gives the seconds that this took for being sure only.
        """
        return sum(drive.system.settle(drive.place) for drive in (self, *self._twins))

    def clear(self) -> None:
        """Ends it by force; harmless when it is gone."""
        for twin in self._twins:
            twin.clear()
        self._twins.clear()
        if self._process is None:
            return
        clear(self.pid, str(self.place.mountpoint))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # what it started: not waited for yet, its number is still its own
        self._process.wait(20)
        self._watchdog.forget(self.pid)
        self._process = None

    @property
    def started(self) -> bool:
        return self._process is not None

    def said(self) -> str:
        """The last line of its log that has a word."""
        lines = self._log.read_text(errors="replace").splitlines()
        return next((line.strip()[-300:] for line in reversed(lines) if re.search(r"\w", line)), "nothing was said")

    def reset_peak(self) -> None:
        """Lets the peak of memory begin anew."""
        for drive in (self, *self._twins):
            process_tree.reset_peak(drive.pid)

    def usage(self) -> Usage:
        """What its processes, and those of its twins, have used so far."""
        return sum((process_tree.usage(twin.pid) for twin in self._twins), process_tree.usage(self.pid))
