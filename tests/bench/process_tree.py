"""A process with all that it has started: who belongs to it, and what they have used."""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
PEAK_RESET = "5"  # what /proc/PID/clear_refs wants for VmHWM
USER = 11  # where utime stands after the name in /proc/PID/stat; stime and what ended children used follow
GONE = (FileNotFoundError, ProcessLookupError)


@dataclass(frozen=True)
class Usage:
    """What processes used: CPU seconds, in the kernel too, and the most bytes of memory resident."""

    cpu: float
    peak: int

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.cpu + other.cpu, self.peak + other.peak)


def family(pid: int) -> list[int]:
    """The process and its descendants, whichever thread started them; none where it has ended."""
    found = [pid]
    for each in found:  # grows meanwhile
        with contextlib.suppress(*GONE):
            for task in Path(f"/proc/{each}/task").iterdir():
                with contextlib.suppress(*GONE):
                    found.extend(map(int, (task / "children").read_text().split()))
    return found


def usage(pid: int) -> Usage:
    """What the family has used: CPU since its start, of all threads and ended children; memory since `reset_peak`."""
    cpu, peak = 0, 0
    for each in family(pid):
        with contextlib.suppress(*GONE):
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
            cpu += sum(map(int, fields[USER : USER + 4]))
            found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{each}/status").read_text())
            peak += int(found[1]) << 10 if found else 0
    return Usage(cpu / TICKS, peak)


def reset_peak(pid: int) -> None:
    """Lets the family's peak of memory begin anew."""
    for each in family(pid):
        with contextlib.suppress(*GONE):
            Path(f"/proc/{each}/clear_refs").write_text(PEAK_RESET)


def cores(pid: int) -> dict[int, set[int]]:
    """The cores that each thread of the family may use, by thread."""
    found = {}
    for each in family(pid):
        with contextlib.suppress(*GONE):
            for task in Path(f"/proc/{each}/task").iterdir():
                found[int(task.name)] = os.sched_getaffinity(int(task.name))
    return found
