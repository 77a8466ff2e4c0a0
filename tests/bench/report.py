"""The results as Markdown: the goals and whether they are reached, single calls, several mounts, every cell."""

from __future__ import annotations

from collections.abc import Sequence

from tests.bench.goals import BUCKET, CPU_BASE, JOURNAL, ROUND_TRIPS, Goal, bases, goals
from tests.bench.results import Cell, Ratio, Results, Setting, percentile
from tests.bench.scale import MIB, Scale
from tests.bench.session import SLOW
from tests.bench.stage import Counted
from tests.bench.systems import FLOOR, SYSTEMS
from tests.bench.workloads import WORKLOADS
from tests.bench.workloads.load import KINDS, LOAD
from tests.bench.workloads.several_mounts import PROGRAMS, SEVERAL_MOUNTS
from tests.bench.workloads.workload import Unit

INTRODUCTION = """\
# Benchmark: sosfs beside its peers

Written by `python -m tests.bench` ({scale} sizes), of commit `{commit}`, begun {started}; {cores}; {machine}.

Time runs until the bytes are in the bucket, whatever the system promises at close; "returned" is when its last call
came back. Caches are cold unless the row says otherwise. A ratio above 1 means faster, and is the median of those
within each round, in which the systems ran one after the other; the least and the most stand in brackets. sosfs is
compared with the faster of the peers in their best setting, where bytes are stored only with that of the same
durability: s3fs for close in the bucket, rclone with its cache for the journal. References are never what a ratio to a
peer is made with. Who took {slow} times as long as a peer ran once. CPU is of the mount's processes, in the kernel too;
for each operation, or each GiB.
"""
AGREE = 0.1  # a second run on another day is to differ by a tenth at most


def number(value: float | None) -> str:
    """Three digits that count."""
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}" if value >= 0.001 else f"{value:.1g}"


def speed(cell: Cell, scale: Scale) -> str:
    """The cell's figure in its workload's unit."""
    workload = WORKLOADS[cell.workload]
    figure = number(workload.figure(scale, cell.seconds))
    return figure if workload.unit is Unit.SECONDS else f"{figure} {workload.unit}"


def cpu(cell: Cell | None, scale: Scale) -> str:
    """What an operation, a GiB or a run costs the system's processes."""
    if cell is None or not cell.usable or cell.system == FLOOR:
        return ""
    workload = WORKLOADS[cell.workload]
    each = cell.cpu / workload.pieces(scale)
    if workload.unit is Unit.MB:
        return f"{number(each)} s/GiB"
    return f"{number(each)} s" if workload.unit is Unit.SECONDS else f"{number(each * 1000)} ms"


def spread(found: Ratio | None) -> str:
    """A ratio with whom it is made."""
    if found is None:
        return ""
    between = f" ({found.least:.2f}..{found.most:.2f})" if found.least != found.most else ""
    return f"{found.value:.2f}{between} x {found.base}"


def seconds(cell: Cell | None) -> str:
    """The median with the least and the most."""
    if cell is None or not cell.measures:
        return "failed" if cell is not None and cell.failure else ""
    times = cell.times
    if len(times) == 1:
        return f"{number(cell.seconds)} (1 run)"
    return f"{number(cell.seconds)} ({number(min(times))}..{number(max(times))})"


def markdown(results: Results, *, before: Results | None = None) -> str:
    """The whole report; with what an earlier run had, how far they agree."""
    machine = f"{results.machine['cpus']}, {results.machine['system']}, Python {results.machine['python']}"
    head = {"scale": results.scale.name, "commit": results.commit, "started": results.started}
    parts = [INTRODUCTION.format(**head, cores=results.cores, machine=machine, slow=SLOW)]
    for setting in results.settings():
        if not any(cell.measures or cell.failure for cell in results.cells if cell.setting == setting):
            continue
        parts += [f"## {setting}\n", _goals(results, setting)]
        parts += _section("### Single calls under load, ms", _calls(results, setting))
        parts += _section("### Eight mounts of one bucket", _mounts(results, setting))
        parts += ["### Every cell\n", _cells(results, setting)]
    parts += _section("## Beside an earlier run", _agreement(results, before) if before else [])
    failures = [f"- {c.setting}, {c.workload}, {c.system}: {c.failure}" for c in results.cells if c.failure]
    parts += ["## What failed\n", *failures, ""] if failures else []
    parts += ["## The settings\n", *(f"- {_told(name)}" for name in results.systems())]
    parts += ["\n## Notes\n", *(f"- {note}" for note in results.notes)] if results.notes else []
    return "\n".join(parts) + "\n"


def _told(system: str) -> str:
    if system == FLOOR:
        return "floor: the same work by a bare S3 client, obstore and boto3 in threads"
    return f"{system}: closed files are {SYSTEMS[system].closed}; {SYSTEMS[system].setting}"


def _section(title: str, lines: list[str]) -> list[str]:
    return [f"{title}\n", *lines, ""] if lines else []


def _order(results: Results, setting: Setting) -> list[str]:
    found = results.workloads(setting)
    return [name for name in WORKLOADS if name in found]


def _goals(results: Results, setting: Setting) -> str:
    head = ["workload", "system", "s", "ratio", "goal", "reached", f"CPU, that of {CPU_BASE}", "not above"]
    lines = table(head, left=2)
    for name in _order(results, setting):
        for goal in goals(name) or _no_goals(name):
            if results.cell(setting, name, goal.system) is not None:
                lines.append(line([WORKLOADS[name].title, *_goal(results, setting, goal)]))
    return "\n".join(lines) + "\n"


def _no_goals(workload: str) -> list[Goal]:
    return [Goal(workload, system, bases(workload, system), 0) for system in (BUCKET, JOURNAL)]


def _goal(results: Results, setting: Setting, goal: Goal) -> list[str]:
    own = results.cell(setting, goal.workload, goal.system)
    other = results.cell(setting, goal.workload, CPU_BASE)
    found = results.ratio(setting, goal.workload, goal.system, goal.bases)
    holds = bool(goal.at_least) and setting.rtt in ROUND_TRIPS
    reached = ("yes" if found.value >= goal.at_least else "no") if found and holds else ""
    costs = [cpu(own, results.scale), cpu(other, results.scale)]
    within = ""
    if own and other and own.usable and other.usable:
        within = "yes" if own.cpu <= other.cpu else "no"
    return [
        goal.system,
        seconds(own),
        spread(found),
        f"{goal.at_least:g}" if holds else "",
        reached,
        ", ".join(filter(None, costs)),
        within,
    ]


def _calls(results: Results, setting: Setting) -> list[str]:
    """p50 and p99 of each kind of call, over all rounds."""
    lines = []
    for cell in results.of(setting, LOAD[0].name):
        if cell.measures:
            times = [[t for measure in cell.measures for t in measure.calls[kind]] for kind in KINDS]
            told = [number(percentile(each, share) * 1000) for each in times for share in (0.5, 0.99)]
            lines.append(line([cell.system, str(len(times[0])), *told]))
    if not lines:
        return []
    return [*table(["system", "calls of each", *(f"{kind} {p}" for kind in KINDS for p in ("p50", "p99"))]), *lines]


def _mounts(results: Results, setting: Setting) -> list[str]:
    """One mount beside eight: throughput, and requests per operation."""
    lines = []
    for workload in SEVERAL_MOUNTS:
        if not workload.name.startswith("mounts1_"):
            continue
        many = workload.name.replace("mounts1_", f"mounts{PROGRAMS}_")
        for one in results.of(setting, workload.name):
            other = results.cell(setting, many, one.system)
            told = [_throughput(cell, results.scale) for cell in (one, other)]
            if any(map(any, told)):
                title = workload.title.partition(",")[0]
                lines.append(line([title, one.system, *(text for pair in zip(*told, strict=True) for text in pair)]))
    if not lines:
        return []
    return [*table(["8 programs", "system", "one mount", "8 mounts", "requests/op", "with 8 mounts"], left=2), *lines]


def _throughput(cell: Cell | None, scale: Scale) -> tuple[str, str]:
    if cell is None or not cell.measures:
        return "", ""
    requests = sum(cell.counted.requests.values()) if cell.counted else None
    each = number(requests / WORKLOADS[cell.workload].pieces(scale)) if requests is not None else ""
    return speed(cell, scale), each


def _cells(results: Results, setting: Setting) -> str:
    head = ["workload", "system", "speed", "s in bucket", "s returned", "ratio", "/ floor", "CPU", "peak MiB"]
    lines = table([*head, "S3 requests", "MB up", "MB down"], left=2)
    for name in _order(results, setting):
        for system in results.systems():
            cell = results.cell(setting, name, system)
            if cell is not None and (cell.measures or cell.failure):
                lines.append(line([name, system, *_cell(results, cell)]))
    return "\n".join(lines) + "\n"


def _cell(results: Results, cell: Cell) -> list[str]:
    if not cell.measures:
        return ["failed", *[""] * 9]
    star = "*" if cell.failure else ""
    fields = [f"{speed(cell, results.scale)}{star}", seconds(cell), number(cell.returned)]
    peers = bases(cell.workload, cell.system) if cell.system != FLOOR else ()
    floor = results.ratio(cell.setting, cell.workload, cell.system, [FLOOR])
    beside = results.ratio(cell.setting, cell.workload, cell.system, peers)
    fields += [spread(beside) if beside and beside.base != cell.system else ""]
    fields += [number(floor.value) if floor else ""]
    fields += [cpu(cell, results.scale), "" if cell.system == FLOOR else number(cell.peak / MIB)]
    return [*fields, *_traffic(cell.counted)]


def _traffic(counted: Counted | None) -> list[str]:
    if counted is None:
        return ["", "", ""]
    requests = sorted(counted.requests.items(), key=lambda item: -item[1])
    megabytes = [number(count / 1e6) for count in (counted.sent, counted.received)]
    return [", ".join(f"{count} {op}" for op, count in requests), *megabytes]


def _agreement(results: Results, before: Results) -> list[str]:
    """Each ratio beside the earlier one, and whether they differ by a tenth at most."""
    lines = []
    for setting in results.settings():
        for name in _order(results, setting):
            for goal in goals(name):
                pair = [r.ratio(setting, name, goal.system, goal.bases) for r in (results, before)]
                if pair[0] and pair[1]:
                    now, then = pair[0].value, pair[1].value
                    same = "yes" if agree(now, then) else "no"
                    fields = [str(setting), name, goal.system, pair[0].base, f"{now:.2f}", f"{then:.2f}", same]
                    lines.append(line(fields))
    if not lines:
        return []
    head = [f"Of commit `{before.commit}`, begun {before.started}.", ""]
    columns = ["setting", "workload", "system", "x", "ratio", "earlier", "within a tenth"]
    return [*head, *table(columns, left=4), *lines]


def agree(one: float, other: float) -> bool:
    """Whether two figures for the same differ by a tenth at most."""
    return abs(one - other) <= AGREE * max(one, other)


def table(head: Sequence[str], *, left: int = 1) -> list[str]:
    """The first two lines of a table, whose columns but `left` are numbers."""
    return [line(head), line(["---"] * left + ["---:"] * (len(head) - left))]


def line(fields: Sequence[str]) -> str:
    """A line of a table."""
    return f"| {' | '.join(field.replace('|', '/') for field in fields)} |"
