"""The command line of the benchmark: what is run, and where the results go."""

from __future__ import annotations

import argparse
import signal
import tempfile
from collections.abc import Callable, Collection
from enum import StrEnum
from pathlib import Path

from tests.bench import chart, report
from tests.bench.drive import drop_page_cache
from tests.bench.results import Cell, Setting
from tests.bench.scale import FULL, SCALES
from tests.bench.servers import SERVERS
from tests.bench.session import Plan, Session
from tests.bench.systems import FLOOR, SYSTEMS
from tests.bench.workloads import WORKLOADS


class Count(StrEnum):
    """Whose S3 requests are counted, each in a run more."""

    ALL = "all"
    OWN = "own"
    NONE = "none"

    def takes(self, system: str) -> bool:
        """Whether this system's are."""
        own = system.startswith("sosfs")
        return system != FLOOR and (self is Count.ALL or (self is Count.OWN and own))


# What runs without being named, where not everything does.
MAIN_SYSTEMS = ("sosfs", "sosfs-journal", "s3fs", "rclone-full")


def main() -> None:
    """Runs what was asked for; writes results.json, results.md and chart.svg, also when interrupted."""
    given = _parser().parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell lets what it starts in the background ignore the first
        signal.signal(number, signal.default_int_handler)
    scale = SCALES[given.scale]
    whole = scale is FULL
    systems = given.systems or [name for name in SYSTEMS if whole or name in MAIN_SYSTEMS]
    servers = given.server or (list(SERVERS) if whole else ["ceph"])
    trips = given.rtt if given.rtt is not None else [0, 20] if whole else [0]
    default_count = Count.ALL if whole else Count.OWN
    plan = Plan(
        scale=scale,
        settings=[Setting(server, rtt) for server in servers for rtt in trips],
        workloads=[WORKLOADS[name] for name in given.workloads or WORKLOADS],
        systems=[name for name in systems if name != FLOOR] + [FLOOR],
        rounds=given.rounds or scale.rounds,
        counted=[name for name in systems if (given.count or default_count).takes(name)],
    )
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="sosfs-bench-", ignore_cleanup_errors=True) as base:
        session = Session(plan, Path(base), _tell)
        if not drop_page_cache():
            session.results.notes.append("Not run as root: the kernel's page cache was not dropped before each run.")
        try:
            session.run()
        finally:
            _write(session, given.out)


def _write(session: Session, out: Path) -> None:
    if not session.results.cells:
        return
    session.results.write(out / "results.json")
    (out / "results.md").write_text(report.markdown(session.results))
    chart.draw(session.results, out / "chart.svg")
    print(f"written: {out}/results.json, results.md, chart.svg")


def _tell(cell: Cell) -> None:
    """One line for each finished cell."""
    said = f"{report.number(cell.seconds)} s" if cell.measures else ""
    print(f"{cell.setting!s:12} {cell.workload:16} {cell.system:20} {said:>10}  {cell.failure}", flush=True)


def _names(known: Collection[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name} is none of {', '.join(known)}")
        return names

    return parse


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "--scale", choices=list(SCALES), default=FULL.name, help="sizes and rounds; full (the default) runs everything"
    )
    parser.add_argument("--systems", type=_names([*SYSTEMS, FLOOR]), metavar="A,B", help=", ".join(SYSTEMS))
    parser.add_argument("--workloads", type=_names(WORKLOADS), metavar="A,B", help=", ".join(WORKLOADS))
    parser.add_argument("--server", type=_names(SERVERS), metavar="A,B", help=", ".join(SERVERS))
    parser.add_argument("--rtt", type=_numbers, metavar="MS,MS", help="milliseconds of round trip added")
    parser.add_argument("--rounds", type=int, help="how often each system runs each workload")
    parser.add_argument("--count", type=Count, choices=list(Count), help="whose S3 requests are counted, in a run more")
    parser.add_argument("--out", type=Path, default=Path("bench/results"), help="directory of the results")
    return parser


if __name__ == "__main__":
    main()
