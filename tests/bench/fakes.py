"""Results that were never measured, for the tests of what is made of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from tests.bench.goals import ROUND_TRIPS
from tests.bench.process_tree import Usage
from tests.bench.results import Cell, Results, Setting
from tests.bench.scale import MEDIUM, Scale
from tests.bench.session import runs
from tests.bench.stage import Counted, Measure
from tests.bench.systems import COMPARED
from tests.bench.workloads import WORKLOADS

SIZES = replace(MEDIUM, tree_files=300, small_files=200)  # whatever those of the benchmark are some day


def measured(seconds: float, cpu: float = 1.0, *, calls: dict[str, list[float]] | None = None) -> Measure:
    """One run."""
    return Measure(seconds / 2, seconds, Usage(cpu, 20 << 20), calls=calls or {})


def cell(workload: str, system: str, *seconds: float, rtt: int = 0, cpu: float = 1.0, failure: str = "") -> Cell:
    """A run a number."""
    measures = [measured(each, cpu) for each in seconds]
    return Cell(Setting("ceph", rtt), workload, system, measures, failure=failure)


def results(cells: Iterable[Cell] = (), scale: Scale = SIZES) -> Results:
    """Results of these cells."""
    return Results(scale, "abc1234", "2026-01-02 03:04", "server on core 0, mounts and programs on core 1", [*cells])


def complete(workloads: Iterable[str]) -> Results:
    """Each system took the same time in every row, sosfs 1 s, the journal 0.5 s, s3fs 4 s, rclone 2 s and 3 s."""
    taken = dict(zip(COMPARED, (1.0, 0.5, 4.0, 2.0, 3.0), strict=True))
    return results(
        cell(workload, system, seconds, seconds, rtt=rtt, cpu=seconds / 2)
        for rtt in ROUND_TRIPS
        for workload in workloads
        for system, seconds in taken.items()
        if runs(system, WORKLOADS[workload])
    )


COUNTED = Counted({"PUT": 300, "HEAD": 100}, 1000, 2000)
