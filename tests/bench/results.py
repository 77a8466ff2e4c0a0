"""What was measured and what follows from it: medians, ratios, and the JSON file. All arithmetic is here.

The machine is shared and its speed drifts, so a ratio is the median of the ratios within each round, in which
the systems ran one after the other; it is never a ratio of medians.
"""

from __future__ import annotations

import json
import platform
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.bench.stage import Counted, Measure
from tests.bench.systems import FLOOR


@dataclass(frozen=True, order=True)
class Setting:
    """A server, and the round trip added before it in milliseconds."""

    server: str
    rtt: int

    def __str__(self) -> str:
        return f"{self.server}, {self.rtt} ms"


@dataclass
class Cell:
    """A workload on a system in a setting."""

    setting: Setting
    workload: str
    system: str
    durability: str
    measures: list[Measure] = field(default_factory=list)
    counted: Counted | None = None
    failure: str = ""  # why there are no more measures

    @property
    def seconds(self) -> float:
        return statistics.median(m.seconds for m in self.measures)

    @property
    def returned(self) -> float:
        return statistics.median(m.returned for m in self.measures)

    @property
    def cpu(self) -> float:
        return statistics.median(m.usage.cpu for m in self.measures)

    @property
    def peak(self) -> int:
        return max(m.usage.peak for m in self.measures)

    @property
    def is_peer(self) -> bool:
        return self.system != FLOOR and not self.system.startswith("sosfs")


def ratio(cell: Cell, other: Cell) -> float:
    """How many times as fast as `other`."""
    return statistics.median(b.seconds / a.seconds for a, b in zip(cell.measures, other.measures, strict=False))


@dataclass
class Results:
    """All cells of a run."""

    scale: str
    cells: list[Cell] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def settings(self) -> list[Setting]:
        return list(dict.fromkeys(cell.setting for cell in self.cells))

    def workloads(self, setting: Setting) -> list[str]:
        return list(dict.fromkeys(cell.workload for cell in self.cells if cell.setting == setting))

    def systems(self) -> list[str]:
        return list(dict.fromkeys(cell.system for cell in self.cells))

    def cell(self, setting: Setting, workload: str, system: str) -> Cell | None:
        """The cell, or None where the system was not asked or the bare client has no such work."""
        return next(iter(c for c in self.of(setting, workload) if c.system == system), None)

    def of(self, setting: Setting, workload: str) -> list[Cell]:
        return [c for c in self.cells if c.setting == setting and c.workload == workload]

    def best_peer(self, setting: Setting, workload: str) -> Cell | None:
        """The fastest of the peers that came to an end."""
        peers = [c for c in self.of(setting, workload) if c.is_peer and c.measures and not c.failure]
        return min(peers, key=lambda c: c.seconds, default=None)

    def to_best_peer(self, cell: Cell) -> float | None:
        return _ratio(cell, self.best_peer(cell.setting, cell.workload))

    def to_floor(self, cell: Cell) -> float | None:
        return _ratio(cell, self.cell(cell.setting, cell.workload, FLOOR))

    def write(self, path: Path) -> None:
        """Writes the JSON file: what was measured, and the ratios."""
        cells = [
            {**asdict(cell), "to_best_peer": self.to_best_peer(cell), "to_floor": self.to_floor(cell)}
            for cell in self.cells
        ]
        machine = {"system": platform.platform(), "python": platform.python_version(), "cpus": _cpus()}
        everything = {"scale": self.scale, "machine": machine, "notes": self.notes, "cells": cells}
        path.write_text(json.dumps(everything, indent=1) + "\n")


def _ratio(cell: Cell, other: Cell | None) -> float | None:
    if other is None or not cell.measures or not other.measures:
        return None
    return ratio(cell, other)


def _cpus() -> str:
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return f"{len(models)} x {models[0].partition(':')[2].strip()}" if models else "unknown"
