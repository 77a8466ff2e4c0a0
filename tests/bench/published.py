"""The results that the project shows: their files, and the tables of the README and of the page on speed.

No figure there is typed by hand: what stands between the two marks of a page is written here, of one run at one commit.
"""

from __future__ import annotations

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


def publish(results: Results, out: Path, root: Path) -> None:
    """Copies the results from `out` and writes both pages below `root`; `NotComplete` where something is missing."""
    if results.scale.name != SCALE:
        raise NotComplete(f"the pages show the {SCALE} size, these are the results of {results.scale.name}")
    short, whole = readme(results), page(results)
    shown = root / MEASURED / SCALE
    shown.mkdir(parents=True, exist_ok=True)
    for name in ("results.json", "results.md", "chart.svg"):
        shutil.copyfile(out / name, shown / name)
    _write(root / "README.md", short)
    _write(root / "sosfs/docs/speed.md", whole)


def _write(path: Path, text: str) -> None:
    found, count = MARKS.subn(lambda marks: f"{marks[1]}{text}{marks[2]}", path.read_text())
    if count != 1:
        raise NotComplete(f"{path} has not the marks that the table goes between")
    path.write_text(found)


def readme(results: Results) -> str:
    """The README's six rows."""
    more = "[All rows, and how they are measured](sosfs/docs/speed.md)."
    source = _source(results, f"{MEASURED}/{SCALE}/results.md")
    return "\n".join([WORDS, *_table(results, ROWS, required=True), "", more, source])


def page(results: Results) -> str:
    """The page's rows: all workloads with a goal, as far as they are measured."""
    source = _source(results, f"../../{MEASURED}/{SCALE}/results.md")
    others = [Row(WORKLOADS[name].title, (name,)) for name in AT_LEAST if name not in SHOWN]
    rows = [*ROWS, *others]
    chart = f"![Speed beside the peers](../../{MEASURED}/{SCALE}/chart.svg)"
    return "\n".join([WORDS, chart, "", *_table(results, rows, required=False), "", source])


def _source(results: Results, link: str) -> str:
    told = {"commit": results.commit, "started": results.started, "cores": results.cores, "scale": results.scale.name}
    return SOURCE.format(results=link, **told)


def _table(results: Results, rows: Sequence[Row], *, required: bool) -> list[str]:
    settings = [Setting(SERVER, trip) for trip in ROUND_TRIPS]
    columns = [(system, setting) for setting in settings for system in (BUCKET, JOURNAL)]
    words = {BUCKET: "close in bucket", JOURNAL: "journal"}
    head = ["", *(f"{words[system]}, {setting.rtt} ms" for system, setting in columns), "goal", "CPU"]
    lines = report.table(head)
    for row in rows:
        if required or all(_measured(results, name, settings) for name in row.workloads):
            told = [_ratios(results, row, system, setting) for system, setting in columns]
            lines.append(report.line([row.title, *told, _wanted(row), _costs(results, row, settings[0])]))
    return lines


def _measured(results: Results, workload: str, settings: Sequence[Setting]) -> bool:
    """Whether all that a line shows was tried."""
    systems = {name for own in (BUCKET, JOURNAL) for name in (own, CPU_BASE, *bases(workload, own))}
    cells = [results.cell(setting, workload, system) for setting in settings for system in systems]
    return all(cell and (cell.measures or cell.failure) for cell in cells)


def _ratios(results: Results, row: Row, system: str, setting: Setting) -> str:
    return " / ".join(_ratio(results, name, system, setting) for name in row.workloads)


def _ratio(results: Results, workload: str, system: str, setting: Setting) -> str:
    if not _measured(results, workload, [setting]):
        raise NotComplete(f"{workload} at {setting} is not measured yet: run 'make bench' again")
    found = results.ratio(setting, workload, system, bases(workload, system))
    if found is None:
        return "failed"
    return f"**{_short(found)}**" if found.value >= goals_of(workload)[system] else _short(found)


def _short(found: Ratio) -> str:
    return f"{found.value:.0f}" if found.value >= 10 else f"{found.value:.1f}"


def goals_of(workload: str) -> dict[str, float]:
    """By mode what is wanted beside its peer."""
    return {goal.system: goal.at_least for goal in goals(workload) if goal.bases == bases(workload, goal.system)}


def _wanted(row: Row) -> str:
    """The goals of both modes, where they differ with a semicolon between."""
    each = [" / ".join(f"{goals_of(name)[system]:g}" for name in row.workloads) for system in (BUCKET, JOURNAL)]
    return "; ".join(dict.fromkeys(each))


def _costs(results: Results, row: Row, setting: Setting) -> str:
    """CPU seconds beside those of s3fs, without latency; for close in the bucket."""
    told = []
    for name in row.workloads:
        own, other = results.cell(setting, name, BUCKET), results.cell(setting, name, CPU_BASE)
        if own and other and own.usable and other.usable:
            told.append(f"{own.cpu / other.cpu:.1f}" if other.cpu else "-")
        else:
            told.append("failed")
    return " / ".join(told)
