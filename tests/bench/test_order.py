"""In which order the systems run, what a later run does not do again, and what ends a run."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.bench import session as sessions
from tests.bench.budget import Budget, OutOfTime
from tests.bench.fakes import COUNTED, cell, measured, results
from tests.bench.pinning import Cores
from tests.bench.results import Results, Setting
from tests.bench.scale import TINY
from tests.bench.servers import SERVERS, Server
from tests.bench.session import Plan, ServerGone, Session, beaten, pending
from tests.bench.stage import Measure
from tests.bench.systems import COMPARED
from tests.bench.workloads import WORKLOADS, Workload

NEAR, FAR = Setting("none", 0), Setting("none", 7)
Run = tuple[str, str]  # workload and system
World = Callable[..., tuple[Session, list[Run]]]


class Bare:
    """A client of no server: what is asked of it does nothing."""

    bucket, gone = "none", False

    def create(self) -> None: ...
    def put_parts(self, key: str, pieces: object) -> None: ...
    def delete(self, prefix: str) -> None: ...

    def sizes(self, prefix: str) -> dict[str, int]:
        if self.gone:
            raise OSError("connection refused")
        return {}

    def rest(self) -> None: ...


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
    """Makes sessions whose runs are only noted. `act` may raise, or tell how long one took."""

    @contextlib.contextmanager
    def nowhere() -> Iterator[Server]:
        yield Server("none", "http://127.0.0.1:1", "Other")

    @contextlib.contextmanager
    def delayed(server: Server, rtt: int, base: Path, cores: Cores) -> Iterator[Server]:
        yield server

    monkeypatch.setitem(SERVERS, "none", nowhere)
    monkeypatch.setattr(sessions, "delayed", delayed)
    monkeypatch.setattr(Session, "_client", staticmethod(lambda server, bucket: Bare()))

    def make(
        found: Results,
        *rows: str,
        act: Callable[[str, str], float] = lambda workload, system: 1.0,
        systems: tuple[str, ...] = COMPARED,
        settings: tuple[Setting, ...] = (NEAR,),
        minutes: float = 1,
    ) -> tuple[Session, list[Run]]:
        runs: list[Run] = []

        def measure(
            _self: Session,
            _turn: object,
            workload: Workload,
            system: str,
            *,
            limit: float,
            proxy: object = None,
        ) -> Measure:
            runs.append((workload.name, system))
            took = measured(act(workload.name, system))
            return Measure(took.returned, took.seconds, took.usage, COUNTED if proxy else None)

        monkeypatch.setattr(Session, "_measure", measure)
        plan = Plan(settings, [WORKLOADS[row] for row in rows], systems, 2, ())
        base = tmp_path / f"{time.monotonic_ns()}"
        base.mkdir()
        made = Session(plan, found, base, Cores(frozenset({0}), frozenset({0})), Budget(minutes), lambda *_: None)
        return made, runs

    return make


def kept() -> None:
    """Nothing is written."""


def test_systems_take_turns_row_by_row_in_another_order_each_round(
    world: World,
) -> None:
    made, runs = world(results(scale=TINY), "tree_list", "untar")
    made.run(kept)
    first, second = ["sosfs", "sosfs-journal", "s3fs", "rclone"], ["sosfs-journal", "s3fs", "rclone", "sosfs"]
    assert runs == [(row, system) for row in ("tree_list", "untar") for system in (*first, *second)]


def test_a_later_run_goes_on_where_the_last_has_ended(world: World) -> None:
    """The round that was broken off is run anew as a whole: its ratios are of one time."""

    def act(workload: str, system: str) -> float:
        if (workload, len(runs)) == ("untar", 14):  # the second system of the second round
            raise OutOfTime("28 minutes")
        return 1.0

    found = results(scale=TINY)
    made, runs = world(found, "tree_list", "untar", act=act)
    rounds = 0

    def keep() -> None:
        nonlocal rounds
        rounds += 1

    with pytest.raises(OutOfTime):
        made.run(keep)
    assert rounds == 3
    assert [len(each.measures) for each in found.cells] == [2, 2, 2, 2, 1, 1, 1, 1]

    made, again = world(found, "tree_list", "untar")
    made.run(kept)
    assert again == [("untar", system) for system in ("sosfs-journal", "s3fs", "rclone", "sosfs")]
    made, nothing = world(found, "tree_list", "untar")
    made.run(kept)
    assert nothing == []


def test_what_is_all_there_starts_no_server(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    found = results(scale=TINY)
    made, _ = world(found, "untar")
    made.run(kept)

    def start() -> None:
        raise AssertionError("a server is started")

    made, _ = world(found, "untar")
    monkeypatch.setitem(SERVERS, "none", start)
    made.run(kept)


def test_more_systems_and_latencies_are_added_to_what_is_there(world: World) -> None:
    found = results(scale=TINY)
    made, _ = world(found, "untar")
    made.run(kept)
    made, runs = world(found, "untar", systems=(*COMPARED, "juicefs"), settings=(NEAR, FAR))
    made.run(kept)
    assert runs[:2] == [("untar", "juicefs")] * 2
    assert len(runs) == 2 + 2 * 5  # all but rclone with a delay, for there are no renames


def test_a_system_that_fails_is_marked_and_the_rest_goes_on(world: World) -> None:
    def act(workload: str, system: str) -> float:
        if (workload, system) == ("tree_list", "s3fs"):
            raise OSError("Transport endpoint is not connected")
        return 1.0

    found = results(scale=TINY)
    made, runs = world(found, "tree_list", "untar", act=act)
    made.run(kept)
    assert runs.count(("tree_list", "s3fs")) == 1 and runs.count(("untar", "s3fs")) == 2
    failed = found.cell(NEAR, "tree_list", "s3fs")
    assert failed and failed.failure == "Transport endpoint is not connected"
    assert [each.failure for each in found.cells].count("") == 7


def test_when_the_server_is_gone_no_system_is_blamed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def act(workload: str, system: str) -> float:
        raise OSError("input/output error")

    monkeypatch.setattr(Bare, "gone", True)
    found = results(scale=TINY)
    made, runs = world(found, "untar", act=act)
    with pytest.raises(ServerGone, match="connection refused"):
        made.run(kept)
    assert len(runs) == 1 and not any(each.failure for each in found.cells)


def test_nothing_begins_when_the_time_is_up(world: World) -> None:
    made, runs = world(results(scale=TINY), "untar", minutes=0)
    with pytest.raises(OutOfTime):
        made.run(kept)
    assert runs == []


def test_a_round_that_would_not_fit_is_left_to_the_next_run(world: World) -> None:
    """Its first round took longer than what is left."""
    made, runs = world(results(scale=TINY), "untar", act=lambda workload, system: 61.0)
    with pytest.raises(OutOfTime):
        made.run(kept)
    assert len(runs) == 4


def test_what_the_budget_breaks_off_is_no_failure(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def act(workload: str, system: str) -> float:
        time.sleep(0.2)
        raise OSError("killed by the watchdog")

    monkeypatch.setattr(Budget, "limit", lambda self, wanted: 0.1)
    found = results(scale=TINY)
    made, _ = world(found, "untar", act=act)
    with pytest.raises(OutOfTime):
        made.run(kept)
    assert not any(each.failure for each in found.cells)


def test_requests_of_rows_that_show_them_are_counted_once(world: World) -> None:
    found = results(scale=TINY)
    made, runs = world(found, "mounts8_read", systems=("sosfs", "s3fs"))
    made.run(kept)
    assert len(runs) == 4 + 2 and all(each.counted == COUNTED for each in found.cells)
    made, again = world(found, "mounts8_read", systems=("sosfs", "s3fs"))
    made.run(kept)
    assert again == []


def test_a_slow_peer_runs_once_and_sosfs_always() -> None:
    cells = [cell("untar", "sosfs", 60), cell("untar", "s3fs", 60), cell("untar", "rclone", 10)]
    assert [beaten(each, cells) for each in cells] == [False, True, False]
    assert [each.system for each in pending(cells, 1)] == ["rclone", "sosfs"]


def test_a_reference_beats_nobody() -> None:
    cells = [cell("untar", "rclone", 60), cell("untar", "juicefs", 1)]
    assert not any(beaten(each, cells) for each in cells)


def test_a_run_that_does_not_end_is_ended() -> None:
    """One that ignores the first signal too."""
    program = """if True:
        import signal, sys, time
        from tests.bench import budget
        budget.GRACE, budget.INTERRUPT, budget.KILL = 0.1, 0.2, 0.3
        signal.signal(signal.SIGTERM, lambda *_: print("asked to end", flush=True))
        budget.Budget(0).enforce()
        time.sleep(60)
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (-9, "asked to end\n")
