"""The results as Markdown: a summary of speeds for each setting, then every row with its costs."""

from __future__ import annotations

from tests.bench.results import Cell, Results, Setting
from tests.bench.scale import MIB, SCALES
from tests.bench.stage import Counted
from tests.bench.systems import FLOOR
from tests.bench.workloads import WORKLOADS
from tests.bench.workloads.workload import Unit

INTRODUCTION = """\
# Benchmark: sosfs beside its peers

Written by `python -m bench` ({scale} sizes). Time runs until the bytes are in the bucket, whatever the system promises
at close; "returned" is when its last call came back. Caches are cold unless the row says otherwise. A ratio above 1
means faster, and is the median over rounds in which the systems ran one after the other. A peer that took five times
as long as another ran once. The floor is a bare S3 client with the same work.
"""


def number(value: float | None) -> str:
    """Three digits that count."""
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}" if value >= 0.001 else f"{value:.1g}"


def speed(cell: Cell | None, scale: str) -> str:
    """The cell's figure in its workload's unit, or why there is none."""
    if cell is None:
        return ""
    if not cell.measures:
        return "failed"
    figure = number(WORKLOADS[cell.workload].figure(SCALES[scale], cell.seconds))
    return f"{figure}*" if cell.failure else figure


def markdown(results: Results) -> str:
    """The whole report."""
    parts = [INTRODUCTION.format(scale=results.scale)]
    for setting in results.settings():
        parts += [f"## {setting}\n", _summary(results, setting), "\n### Every row\n", _rows(results, setting)]
    failures = [f"- {c.setting}, {c.workload}, {c.system}: {c.failure}" for c in results.cells if c.failure]
    if failures:
        parts += ["## What failed\n", *failures]
    if results.notes:
        parts += ["\n## Notes\n", *(f"- {note}" for note in results.notes)]
    return "\n".join(parts) + "\n"


def _summary(results: Results, setting: Setting) -> str:
    systems = results.systems()
    own = [name for name in systems if name.startswith("sosfs")]
    head = [
        "workload",
        "unit",
        *systems,
        *(f"{name} / best peer" for name in own),
        *(f"{name} / floor" for name in own),
    ]
    lines = [_line(head), _line(["---"] * 2 + ["---:"] * (len(head) - 2))]
    for name in results.workloads(setting):
        workload = WORKLOADS[name]
        cells = [results.cell(setting, name, system) for system in systems]
        mine = [results.cell(setting, name, system) for system in own]
        peers = [number(results.to_best_peer(cell)) if cell else "" for cell in mine]
        floors = [number(results.to_floor(cell)) if cell else "" for cell in mine]
        speeds = [speed(cell, results.scale) for cell in cells]
        lines.append(_line([workload.title, workload.unit, *speeds, *peers, *floors]))
    return "\n".join(lines) + "\n"


def _rows(results: Results, setting: Setting) -> str:
    head = ["workload", "system", "speed", "s in bucket", "s returned", "/ best peer", "/ floor"]
    head += ["daemon CPU s", "peak MiB", "S3 requests", "MB up", "MB down", "durability point"]
    lines = [_line(head), _line(["---"] * 2 + ["---:"] * 7 + ["---"] * 4)]
    for name in results.workloads(setting):
        lines += [_row(results, cell) for cell in results.of(setting, name)]
    return "\n".join(lines) + "\n"


def _row(results: Results, cell: Cell) -> str:
    unit = WORKLOADS[cell.workload].unit
    told = speed(cell, results.scale)
    fields = [cell.workload, cell.system, told if unit is Unit.SECONDS or not cell.measures else f"{told} {unit}"]
    if not cell.measures:
        return _line([*fields, *[""] * 9, cell.durability])
    fields += [number(cell.seconds), number(cell.returned)]
    fields += [number(results.to_best_peer(cell)), number(results.to_floor(cell))]
    bare = cell.system == FLOOR
    fields += ["", ""] if bare else [number(cell.cpu), number(cell.peak / MIB)]
    return _line([*fields, *_traffic(cell.counted), cell.durability])


def _traffic(counted: Counted | None) -> list[str]:
    if counted is None:
        return ["", "", ""]
    requests = sorted(counted.requests.items(), key=lambda item: -item[1])
    megabytes = [number(count / 1e6) for count in (counted.sent, counted.received)]
    return [", ".join(f"{count} {op}" for op, count in requests), *megabytes]


def _line(fields: list[str]) -> str:
    return f"| {' | '.join(field.replace('|', '/') for field in fields)} |"
