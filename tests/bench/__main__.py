"""The command line of the benchmark: what is run, and where the results go.

A run goes on with the results that are there, as long as the code is the same; it stops when its minutes are over.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Callable, Collection
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from types import FrameType

from tests.bench import published, report
from tests.bench.budget import Budget, OutOfTime
from tests.bench.drive import drop_page_cache
from tests.bench.goals import AT_LEAST
from tests.bench.pinning import Cores
from tests.bench.results import Cell, Results, Setting
from tests.bench.scale import MEDIUM, SCALES, Scale
from tests.bench.servers import SERVERS
from tests.bench.session import Plan, ServerGone, Session
from tests.bench.stage import Measure
from tests.bench.systems import COMPARED, FLOOR, REFERENCES, SYSTEMS, Role
from tests.bench.systems.system import ROOT
from tests.bench.version import version
from tests.bench.workloads import WORKLOADS

MINUTES = 28.0  # of one command
# Of a page: the six of the README at the latencies it shows, or all at all.
TRIPS = {"readme": [0, 20], "all": [0, 20, 2]}
ENDED, MORE = 0, 75  # exit codes: all is measured; the time was up, run it again (EX_TEMPFAIL)


class Count(StrEnum):
    """Whose S3 requests are counted in every row, each in a run more."""

    ALL = "all"
    OWN = "own"
    NONE = "none"

    def takes(self, system: str) -> bool:
        """Whether this system's are."""
        if system == FLOOR or self is Count.NONE:
            return False
        return self is Count.ALL or SYSTEMS[system].role is Role.OWN


def main() -> int:
    """Runs what was asked for and is not there yet; writes the results, also when interrupted."""
    given = _parser().parse_args()
    out = given.out or ROOT / "tests/bench/results" / given.scale
    out.mkdir(parents=True, exist_ok=True)
    if given.report or given.readme:
        return _show(given, out)
    before, cores = _earlier(given), Cores.of_machine()
    results = _begin(out, SCALES[given.scale], cores, again=given.again)
    if given.retry:
        for cell in results.cells:
            cell.failure, cell.measures = "", [] if cell.failure else cell.measures
    cores.pin()
    with tempfile.TemporaryDirectory(prefix="sosfs-bench-", ignore_cleanup_errors=True) as base:
        budget = Budget(given.minutes)
        session = Session(_plan(given, results.scale), results, Path(base), cores, budget, _tell)
        _heed_signals(session)
        budget.enforce()
        if not drop_page_cache():
            results.note("Not run as root: the kernel's page cache was not dropped before each run.")
        try:
            session.run(lambda: results.write(out / "results.json"))
        except OutOfTime as error:
            print(f"The time for this run is over ({error}): run it again, and it goes on.")
            return MORE
        except ServerGone as error:
            print(error)
            return 1
        except KeyboardInterrupt:
            print("interrupted; a later run goes on")
            return 130
        finally:
            _write(results, out, before)
    return ENDED


def _show(given: argparse.Namespace, out: Path) -> int:
    """Writes the report anew of what is there; with --readme the pages too."""
    try:
        results, before = Results.read(out / "results.json"), _earlier(given)
        _write(results, out, before)
        if given.readme:
            published.publish(results, out, ROOT, before=before)
            print("written: README.md, sosfs/docs/speed.md, tests/bench/measured")
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return ENDED


def _begin(out: Path, scale: Scale, cores: Cores, *, again: bool) -> Results:
    """The results to go on with; those of other code or sizes, or where all is to be measured again, are put aside."""
    path, commit = out / "results.json", version()
    if path.exists():
        try:
            found = Results.read(path)
            same = (found.scale, found.commit, found.cores) == (scale, commit, str(cores))
        except ValueError as error:
            print(error)
            same = False
        if same and not again:
            return found
        aside = out / f"results-{datetime.fromtimestamp(path.stat().st_mtime):%Y-%m-%dT%H-%M-%S}.json"
        path.rename(aside)
        print(f"begun anew; what was there is {aside}")
    return Results(scale, commit, f"{datetime.now():%Y-%m-%d %H:%M}", str(cores))


def _plan(given: argparse.Namespace, scale: Scale) -> Plan:
    rows, group = given.rows, given.rows[0]
    if group in TRIPS:
        goals_first = [*AT_LEAST, *(name for name in WORKLOADS if name not in AT_LEAST)]
        rows = goals_first if group == "all" else list(published.SHOWN)
    references = REFERENCES if group == "all" else ()
    systems = given.systems or [*COMPARED, *references]
    count = given.count or Count.NONE
    return Plan(
        settings=[Setting(server, rtt) for server in given.server for rtt in given.rtt or TRIPS.get(group, [0])],
        workloads=[WORKLOADS[name] for name in rows],
        systems=[name for name in (*SYSTEMS, FLOOR) if name in systems],
        rounds=given.rounds or max(1, scale.rounds - (group == "all")),
        counted=[name for name in systems if count.takes(name)],
    )


def _heed_signals(session: Session) -> None:
    """Ctrl-C and SIGTERM end it, with all that it has started; a call that waits in a mount comes back first."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        session.abort()
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):  # a shell lets what it starts in the background ignore the first
        signal.signal(number, stop)


def _earlier(given: argparse.Namespace) -> Results | None:
    return Results.read(given.compare) if given.compare else None


def _write(results: Results, out: Path, before: Results | None) -> None:
    if not any(cell.measures for cell in results.cells):
        return
    results.write(out / "results.json")
    (out / "results.md").write_text(report.markdown(results, before=before))
    print(f"written: {out}/results.json, results.md{_draw(results, out)}")


def _draw(results: Results, out: Path) -> str:
    """Draws the chart where there is what it is drawn with: what was measured does not hang on it."""
    try:
        from tests.bench import chart  # noqa: PLC0415
    except ImportError:
        return "; no chart: matplotlib is not installed"
    chart.draw(results, out / "chart.svg")
    return ", chart.svg"


def _tell(cell: Cell, measure: Measure | None) -> None:
    """One line for each run."""
    said = f"{report.number(measure.seconds)} s" if measure else ""
    now = f"{datetime.now():%H:%M:%S}"
    print(f"{now} {cell.setting!s:12} {cell.workload:16} {cell.system:18} {said:>10}  {cell.failure}", flush=True)


def _names(known: Collection[str], *groups: str) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        if text in groups:
            return [text]
        names = text.split(",")
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name} is none of {', '.join([*groups, *known])}")
        return names

    return parse


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    add = parser.add_argument
    add(
        "--scale", choices=list(SCALES), default=MEDIUM.name, help="sizes and rounds; medium, the default, is published"
    )
    rows, some = _names(WORKLOADS, *TRIPS), "readme (the default), all, or A,B"
    add("--rows", type=rows, default=["readme"], metavar=some, help=", ".join(WORKLOADS))
    add("--systems", type=_names([*SYSTEMS, FLOOR]), metavar="A,B", help=", ".join([*SYSTEMS, FLOOR]))
    add("--server", type=_names(SERVERS), default=["ceph"], metavar="A,B", help=", ".join(SERVERS))
    add("--rtt", type=_numbers, metavar="MS,MS", help="milliseconds of round trip added: 0,20; for all rows 0,20,2")
    add("--rounds", type=int, help="how often each system runs each row; of all rows once less than of the README's")
    add("--count", type=Count, choices=list(Count), help="whose S3 requests are counted in every row, in a run more")
    add("--minutes", type=float, default=MINUTES, help="when to stop; a later run goes on (%(default)g)")
    add("--again", action="store_true", help="measure all again; what is there is put aside")
    add("--retry", action="store_true", help="measure again what failed")
    add("--report", action="store_true", help="measure nothing, write the report of what is there")
    add("--readme", action="store_true", help="as --report, and write the tables of the README and the page on speed")
    add(
        "--compare",
        type=Path,
        metavar="RESULTS.JSON",
        help="tell how far an earlier run agrees, with --readme in its tables too",
    )
    add("--out", type=Path, help="directory of the results (tests/bench/results/SCALE)")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
