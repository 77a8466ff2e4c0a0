"""What was measured and what follows from it: medians, ratios, and the JSON file. All arithmetic is here.

The machine's speed drifts, so a ratio is the median of the ratios within each round, in which the systems ran one after
the other; it is never a ratio of medians. The file is written after each round and read by the run that goes on.
"""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.bench.process_tree import Usage
from tests.bench.scale import Scale
from tests.bench.stage import Counted, Measure
from tests.bench.systems import FLOOR, SYSTEMS, Role


@dataclass(frozen=True, order=True)
class Setting:
    """A server, and the round trip added before it in milliseconds."""

    server: str
    rtt: int

    def __str__(self) -> str:
        return f"{self.server}, {self.rtt} ms"


@dataclass
class Cell:
    """A workload on a system in a setting. The measures stand in the order of the rounds."""

    setting: Setting
    workload: str
    system: str
    measures: list[Measure] = field(default_factory=list)
    counted: Counted | None = None
    failure: str = ""  # why there are no more measures

    @property
    def times(self) -> list[float]:
        """Seconds until the bytes were in the bucket, of each round."""
        return [measure.seconds for measure in self.measures]

    @property
    def seconds(self) -> float:
        return statistics.median(self.times)

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
    def role(self) -> Role:
        """The bare client is a reference too."""
        return Role.REFERENCE if self.system == FLOOR else SYSTEMS[self.system].role

    @property
    def usable(self) -> bool:
        """Whether there are measures, none of which is followed by a failure."""
        return bool(self.measures) and not self.failure


@dataclass(frozen=True)
class Ratio:
    """How many times as fast as `base`: the median over the rounds that both ran, the least and the most."""

    base: str
    value: float
    least: float
    most: float


def ratio(cell: Cell, base: Cell) -> Ratio:
    """Compares within rounds."""
    each = [theirs / own for own, theirs in zip(cell.times, base.times, strict=False)]
    return Ratio(base.system, statistics.median(each), min(each), max(each))


def percentile(values: Sequence[float], share: float) -> float:
    """The value that this share of all values does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


@dataclass
class Results:
    """All cells of one version of the code, at one scale."""

    scale: Scale
    commit: str
    started: str  # date and time
    cores: str
    cells: list[Cell] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    machine: dict[str, str] = field(default_factory=lambda: _machine())

    def settings(self) -> list[Setting]:
        return sorted({cell.setting for cell in self.cells})

    def workloads(self, setting: Setting) -> list[str]:
        return list(dict.fromkeys(cell.workload for cell in self.cells if cell.setting == setting))

    def systems(self) -> list[str]:
        """In the order in which they are listed, the bare client last."""
        found = {cell.system for cell in self.cells}
        return [name for name in (*SYSTEMS, FLOOR) if name in found]

    def cell(self, setting: Setting, workload: str, system: str) -> Cell | None:
        """The cell, or None where the system was not asked or the bare client has no such work."""
        return next((c for c in self.of(setting, workload) if c.system == system), None)

    def of(self, setting: Setting, workload: str) -> list[Cell]:
        return [c for c in self.cells if c.setting == setting and c.workload == workload]

    def ratio(self, setting: Setting, workload: str, system: str, bases: Sequence[str]) -> Ratio | None:
        """To the fastest of these; None where it or all of them are missing or failed."""
        own = self.cell(setting, workload, system)
        others = [c for c in self.of(setting, workload) if c.system in bases and c.usable]
        if own is None or not own.usable or not others:
            return None
        return ratio(own, min(others, key=lambda c: c.seconds))

    def note(self, text: str) -> None:
        """Keeps a remark, once."""
        if text not in self.notes:
            self.notes.append(text)

    def write(self, path: Path) -> None:
        """Writes the JSON file, whole or not at all."""
        beside = path.with_suffix(".new")
        beside.write_text(json.dumps(asdict(self), indent=1) + "\n")
        os.replace(beside, path)

    @classmethod
    def read(cls, path: Path) -> Results:
        """What `write` wrote; ValueError where it is something else."""
        try:
            found = json.loads(path.read_bytes())
            return cls(**{**found, "scale": Scale(**found["scale"]), "cells": list(map(_cell, found["cells"]))})
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path} is not of this version of the benchmark: {error!r}") from error


def _cell(found: dict[str, Any]) -> Cell:
    counted = found["counted"] and Counted(**found["counted"])
    measures = list(map(_measure, found["measures"]))
    return Cell(**{**found, "setting": Setting(**found["setting"]), "measures": measures, "counted": counted})


def _measure(found: dict[str, Any]) -> Measure:
    counted = found["counted"] and Counted(**found["counted"])
    return Measure(**{**found, "usage": Usage(**found["usage"]), "counted": counted})


def _machine() -> dict[str, str]:
    return {"system": platform.platform(), "python": platform.python_version(), "cpus": _cpus()}


def _cpus() -> str:
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return f"{len(models)} x {models[0].partition(':')[2].strip()}" if models else "unknown"
