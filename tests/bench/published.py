"""The results that the project shows: their files, and the tables of the README and of the page on speed.

No figure there is typed by hand: what stands between the two marks of a page is written here, of one run at one commit,
or of two: machines differ from day to day, so what an earlier run has found otherwise is told beside.
"""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench import report
from tests.bench.goals import AT_LEAST, BUCKET, CPU_BASE, JOURNAL, ROUND_TRIPS, bases, goals
from tests.bench.results import Ratio, Results, Setting
from tests.bench.workloads import WORKLOADS

MARKS = re.compile(r"(<!-- speed -->\n).*?(<!-- end of speed -->)", re.DOTALL)
SCALE = "medium"
SERVER = "ceph"
MEASURED = "tests/bench/measured"


class NotComplete(ValueError):
    """What the tables need is not all measured."""


@dataclass(frozen=True)
class Row:
    """A line of the README's table: one workload, or two that differ little."""

    title: str
    workloads: tuple[str, ...]


ROWS = (
    Row("sequential write / read", ("seq_write", "seq_read")),
    Row("random read of 4 KiB / 256 KiB", ("rand_read_4k", "rand_read_256k")),
    Row("create 4 KiB files, 1 / 16 processes", ("small_create", "small_create16")),
    Row("`cp -r` of a tree", ("tree_copy",)),
    Row("`ls -lR`, cold", ("tree_list",)),
    Row("`rm -rf` of a tree", ("tree_remove",)),
)
SHOWN = tuple(name for row in ROWS for name in row.workloads)

WORDS = """\
How many times as fast as the faster of s3fs and rclone, each in its best setting, on the same machine, server and
data, until the bytes are in the bucket; below 1 it is behind. Where files are stored, close in the bucket is compared
with s3fs, whose close waits for it too, and `--durability journal` with rclone and its cache on the disk. **Bold**
reaches our goal. The last column is the CPU time of the mount's processes beside that of s3fs'.
"""
SOURCE = """\
[Every time, with its spread]({results}): {scale} size, commit `{commit}`, {started}; {cores}.
"""
TWICE = """\
Where it and [an earlier run]({earlier}), of commit `{commit}`, {started}, differ by more than a tenth, both are
told{alone}.
"""
EARLIER = "earlier.json"


def publish(results: Results, out: Path, root: Path, *, before: Results | None = None) -> None:
    """Copies the results from `out` and writes both pages below `root`, also of what was measured `before`.

    `NotComplete` where something is missing.
    """
    runs = [results] if before is None else [results, before]
    for each in runs:
        if each.scale.name != SCALE:
            raise NotComplete(f"the pages show the {SCALE} size, these are the results of {each.scale.name}")
    short, whole = readme(runs), page(runs)
    shown = root / MEASURED / SCALE
    shown.mkdir(parents=True, exist_ok=True)
    for name in ("results.json", "results.md", "chart.svg"):
        shutil.copyfile(out / name, shown / name)
    if before is None:
        (shown / EARLIER).unlink(missing_ok=True)
    else:
        before.write(shown / EARLIER)
    _write(root / "README.md", short)
    _write(root / "sosfs/docs/speed.md", whole)


def _write(path: Path, text: str) -> None:
    found, count = MARKS.subn(lambda marks: f"{marks[1]}{text}{marks[2]}", path.read_text())
    if count != 1:
        raise NotComplete(f"{path} has not the marks that the table goes between")
    path.write_text(found)


def readme(runs: Sequence[Results]) -> str:
    """The README's six rows, of one run or of this one and an earlier one."""
    more = "[All rows, and how they are measured](sosfs/docs/speed.md)."
    return "\n".join([WORDS, *_table(runs, ROWS, required=True), "", more, _source(runs, f"{MEASURED}/{SCALE}")])


def page(runs: Sequence[Results]) -> str:
    """The page's rows: all workloads with a goal, as far as they are measured."""
    source = _source(runs, f"../../{MEASURED}/{SCALE}", alone="; what it did not measure is of one run")
    others = [Row(WORKLOADS[name].title, (name,)) for name in AT_LEAST if name not in SHOWN]
    rows = [*ROWS, *others]
    chart = f"![Speed beside the peers](../../{MEASURED}/{SCALE}/chart.svg)"
    return "\n".join([WORDS, chart, "", *_table(runs, rows, required=False), "", source])


def _source(runs: Sequence[Results], folder: str, *, alone: str = "") -> str:
    now = runs[0]
    told = {"commit": now.commit, "started": now.started, "cores": now.cores, "scale": now.scale.name}
    earlier = [
        TWICE.format(earlier=f"{folder}/{EARLIER}", commit=each.commit, started=each.started, alone=alone)
        for each in runs[1:]
    ]
    return SOURCE.format(results=f"{folder}/results.md", **told) + "".join(earlier)


def _table(runs: Sequence[Results], rows: Sequence[Row], *, required: bool) -> list[str]:
    settings = [Setting(SERVER, trip) for trip in ROUND_TRIPS]
    columns = [(system, setting) for setting in settings for system in (BUCKET, JOURNAL)]
    words = {BUCKET: "close in bucket", JOURNAL: "journal"}
    head = ["", *(f"{words[system]}, {setting.rtt} ms" for system, setting in columns), "goal", "CPU"]
    lines = report.table(head)
    for row in rows:
        having = runs if required else [each for each in runs if _has(each, row, settings)]
        if having[:1] == runs[:1]:
            told = [_ratios(having, row, system, setting) for system, setting in columns]
            lines.append(report.line([row.title, *told, _wanted(row), _costs(having, row, settings[0])]))
    return lines


def _has(results: Results, row: Row, settings: Sequence[Setting]) -> bool:
    return all(_measured(results, name, settings) for name in row.workloads)


def _measured(results: Results, workload: str, settings: Sequence[Setting]) -> bool:
    """Whether all that a line shows was tried."""
    systems = {name for own in (BUCKET, JOURNAL) for name in (own, CPU_BASE, *bases(workload, own))}
    cells = [results.cell(setting, workload, system) for setting in settings for system in systems]
    return all(cell and (cell.measures or cell.failure) for cell in cells)


def _ratios(runs: Sequence[Results], row: Row, system: str, setting: Setting) -> str:
    return " / ".join(_ratio(runs, name, system, setting) for name in row.workloads)


def _ratio(runs: Sequence[Results], workload: str, system: str, setting: Setting) -> str:
    found = [_ratio_of(each, workload, system, setting) for each in runs]
    values = [ratio.value for ratio in found if ratio is not None]
    if len(values) < len(found):
        return "failed"
    return f"**{_span(values)}**" if min(values) >= goals_of(workload)[system] else _span(values)


def _ratio_of(results: Results, workload: str, system: str, setting: Setting) -> Ratio | None:
    if not _measured(results, workload, [setting]):
        raise NotComplete(f"{workload} at {setting} is not measured yet: run 'make bench' again")
    return results.ratio(setting, workload, system, bases(workload, system))


def _span(values: Sequence[float]) -> str:
    """The value of the run that is shown, or the least and the most of runs that do not agree."""
    least, most = _short(min(values)), _short(max(values))
    return _short(values[0]) if report.agree(min(values), max(values)) or least == most else f"{least} to {most}"


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def goals_of(workload: str) -> dict[str, float]:
    """By mode what is wanted beside its peer."""
    return {goal.system: goal.at_least for goal in goals(workload) if goal.bases == bases(workload, goal.system)}


def _wanted(row: Row) -> str:
    """The goals of both modes, where they differ with a semicolon between."""
    each = [" / ".join(f"{goals_of(name)[system]:g}" for name in row.workloads) for system in (BUCKET, JOURNAL)]
    return "; ".join(dict.fromkeys(each))


def _costs(runs: Sequence[Results], row: Row, setting: Setting) -> str:
    """CPU seconds beside those of s3fs, without latency; for close in the bucket."""
    return " / ".join(_cost([_cost_of(each, name, setting) for each in runs]) for name in row.workloads)


def _cost(found: Sequence[float | None]) -> str:
    values = [cost for cost in found if cost is not None]
    if len(values) < len(found):
        return "failed"
    return _span(values) if all(math.isfinite(cost) for cost in values) else "-"


def _cost_of(results: Results, workload: str, setting: Setting) -> float | None:
    """None where one of both has failed; infinity where s3fs took no time that was seen."""
    own, other = results.cell(setting, workload, BUCKET), results.cell(setting, workload, CPU_BASE)
    if not (own and other and own.usable and other.usable):
        return None
    return own.cpu / other.cpu if other.cpu else math.inf
