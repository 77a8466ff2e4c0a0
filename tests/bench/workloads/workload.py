"""What a workload is: a name, a unit, what it does on a mount, and the same work by the bare client."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from tests.bench.scale import Scale
from tests.bench.stage import Stage

Act = Callable[[Stage], None]


class Unit(StrEnum):
    """What the figure counts in a second; the plain second where only the time says something."""

    MB = "MB/s"
    CALLS = "op/s"
    FILES = "files/s"
    SECONDS = "s"


@dataclass(frozen=True)
class Workload:
    """`amount` is what one run moves, in bytes or pieces; `bare` is the floor, where there is one.

    `stores` tells that its time depends on when a close returns: it is compared with whose close promises as much.
    `renames` tells that programs in it rename what they have just written, which one peer's setting does not stand.
    `counted` tells that the requests of all systems are part of what it shows.
    """

    name: str
    title: str
    unit: Unit
    amount: Callable[[Scale], float]
    run: Act
    bare: Act | None = None
    stores: bool = False
    renames: bool = False
    counted: bool = False

    def figure(self, scale: Scale, seconds: float) -> float:
        """The run's speed in `unit`."""
        if self.unit is Unit.SECONDS:
            return seconds
        amount = self.amount(scale) / (1e6 if self.unit is Unit.MB else 1)
        return amount / seconds

    def pieces(self, scale: Scale) -> float:
        """How many operations one run is; of big files GiB, and one where only the time says something."""
        return self.amount(scale) / (1 << 30 if self.unit is Unit.MB else 1)


def parallel(do: Callable[[int], object], count: int) -> None:
    """Does it for 0 .. count - 1, each in a thread of its own; the first failure is raised."""
    with ThreadPoolExecutor(count) as pool:
        for _ in pool.map(do, range(count)):
            pass


def tool(*command: str | Path, cwd: Path | None = None, allowed: Sequence[int] = (0,)) -> str:
    """Runs a program as a user would; an exit code that is not allowed is an OSError with what it said."""
    done = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, check=False)
    if done.returncode not in allowed:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise OSError(f"{command[0]} gave {done.returncode}: {said[-1] if said else ''}")
    return done.stdout.decode(errors="replace")
