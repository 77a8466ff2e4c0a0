"""A mounted system: its life from mount to unmount, what it costs meanwhile, and its end when it hangs.

Each measurement gets a mount point and a cache of its own and begins with the kernel's page cache dropped.
The watchdog, a process of its own, kills the system when the measurement's time is up: every call that waits
in it then fails, so none can hold up the benchmark.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests.bench.systems import Place, System
from tests.support.watchdog import Watchdog, clear, mounted

READY = 30.0  # seconds to mount
STOP = 60.0  # seconds to unmount
TICKS = os.sysconf("SC_CLK_TCK")
PEAK_RESET = "5"  # what /proc/PID/clear_refs wants for VmHWM


class MountFailed(OSError):
    """The system did not come up; the message has the end of what it said."""


@dataclass(frozen=True)
class Usage:
    """What a system's processes used: CPU seconds, and the most bytes of memory resident."""

    cpu: float
    peak: int


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

    def stop(self) -> None:
        """Unmounts as its users do, and waits for its end."""
        if self._process is None:
            return
        environment = {**os.environ, **self.system.environment(self.place)}
        command = [*self.system.unmount, str(self.place.mountpoint)]
        done = subprocess.run(command, env=environment, capture_output=True, timeout=STOP, check=False, cwd="/")
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip()
            raise OSError(f"unmounting gave {done.returncode}: {said[-300:]}; the log ends: {self.said()}")
        self._process.wait(STOP)
        self._watchdog.forget(self.pid)
        self._process = None

    def remount(self) -> None:
        """Unmounts and mounts again with the same cache directory; the kernel forgets all."""
        self.settle()
        self.stop()
        self.start()

    def settle(self) -> None:
        """Returns when all that was written is in the bucket, as far as the system lets one know."""
        self.system.settle(self.place)

    def clear(self) -> None:
        """Ends it by force; harmless when it is gone."""
        if self._process is None:
            return
        clear(self.pid, str(self.place.mountpoint))
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
        for pid in self._family():
            Path(f"/proc/{pid}/clear_refs").write_text(PEAK_RESET)

    def usage(self) -> Usage:
        """What its processes have used so far: CPU since their start, memory since `reset_peak`."""
        ticks = peak = 0
        for pid in self._family():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
            found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
            peak += int(found[1]) << 10 if found else 0
        return Usage(ticks / TICKS, peak)

    def _family(self) -> list[int]:
        """The system's processes: its own and those it started."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return [self.pid, *map(int, children)]
