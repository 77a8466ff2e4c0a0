"""The order of things: servers, settings, workloads, rounds, systems.

In each round every system runs the workload once, the order turned by one from round to round, so that what
the machine does meanwhile strikes them alike. A system that fails or hangs is ended, its cell says why, and
it sits out the workload's other rounds; so does a peer that was far behind another, whom alone the ratios are to.
Requests are counted in a run of its own, behind a proxy.
"""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from botocore.exceptions import BotoCoreError, ClientError
from obstore.exceptions import BaseError

from tests.bench.bare import Bare
from tests.bench.dataset import Dataset
from tests.bench.drive import Drive
from tests.bench.material import Material
from tests.bench.results import Cell, Results, Setting
from tests.bench.scale import Scale
from tests.bench.servers import SERVERS, Server
from tests.bench.stage import Measure, Stage
from tests.bench.systems import FLOOR, ROOT, SYSTEMS, Place
from tests.bench.workloads import Workload
from tests.support.processes import Process, free_port, listening
from tests.support.proxy import Proxy
from tests.support.watchdog import Watchdog

Report = Callable[[Cell], None]
FAILURES = (OSError, subprocess.SubprocessError, BotoCoreError, ClientError, BaseError)
START = 20.0  # seconds for the delaying relay
SLOW = 5  # a peer that takes so many times as long as another once will not overtake it


@dataclass(frozen=True)
class Plan:
    """What is asked for."""

    scale: Scale
    settings: Sequence[Setting]
    workloads: Sequence[Workload]
    systems: Sequence[str]
    rounds: int
    counted: Collection[str]  # the systems whose requests are counted


@contextmanager
def delayed(server: Server, rtt: int, base: Path) -> Iterator[Server]:
    """The server, `rtt` milliseconds further away."""
    if not rtt:
        yield server
        return
    port, target = free_port(), urlsplit(server.endpoint).port
    seconds = rtt / 1000
    command = [sys.executable, str(ROOT / "bench" / "delay.py"), str(port), str(target), str(seconds)]
    relay = Process(command, base / "delay.log")
    try:
        relay.until(lambda: listening(port), START)
        yield replace(server, endpoint=f"http://127.0.0.1:{port}")
    finally:
        relay.end()


def beaten(cell: Cell, cells: Sequence[Cell]) -> bool:
    """Whether a peer of this workload was so far behind another that more rounds of it would tell nothing."""
    peers = [other for other in cells if other.is_peer and other.measures and not other.failure]
    return cell in peers and cell.seconds > SLOW * min(other.seconds for other in peers)


class Session:
    """All runs of one plan."""

    def __init__(self, plan: Plan, base: Path, report: Report) -> None:
        self._plan, self._base, self._report = plan, base, report
        self._material = Material(base, plan.scale)
        self._numbers = itertools.count()
        self.results = Results(plan.scale.name)

    def run(self) -> None:
        """Runs everything; the results grow meanwhile, each finished cell is reported."""
        for name, settings in itertools.groupby(self._plan.settings, key=lambda setting: setting.server):
            with SERVERS[name]() as server, Watchdog() as watchdog:
                bare = self._client(server, f"bench-{uuid.uuid4().hex[:8]}")
                bare.create()
                dataset = Dataset(bare, self._plan.scale)
                for setting in settings:
                    with delayed(server, setting.rtt, self._base) as distant:
                        turn = Turn(setting, distant, dataset, watchdog)
                        for workload in self._plan.workloads:
                            self._compare(turn, workload)

    @staticmethod
    def _client(server: Server, bucket: str) -> Bare:
        return Bare(server.endpoint, bucket, server.key, server.secret)

    def _compare(self, turn: Turn, workload: Workload) -> None:
        cells = []
        for name in self._plan.systems:
            if name == FLOOR and not workload.bare:
                continue
            durability = SYSTEMS[name].durability if name != FLOOR else "answer: in bucket"
            cells.append(Cell(turn.setting, workload.name, name, durability))
        self.results.cells.extend(cells)
        for number in range(self._plan.rounds):
            first = number % len(cells)
            for cell in [*cells[first:], *cells[:first]]:
                if not cell.failure and not beaten(cell, cells):
                    self._attempt(turn, workload, cell)
        for cell in cells:
            if cell.system in self._plan.counted and not cell.failure:
                self._count(turn, workload, cell)
            self._report(cell)

    def _attempt(self, turn: Turn, workload: Workload, cell: Cell) -> None:
        started = time.monotonic()
        try:
            cell.measures.append(self._measure(turn, workload, cell.system, turn.server, None))
        except FAILURES as error:
            late = time.monotonic() - started >= self._plan.scale.limit
            cell.failure = f"no end after {self._plan.scale.limit:g} s" if late else str(error) or repr(error)

    def _count(self, turn: Turn, workload: Workload, cell: Cell) -> None:
        with Proxy(turn.server.endpoint) as proxy:
            server = replace(turn.server, endpoint=proxy.endpoint)
            try:
                cell.counted = self._measure(turn, workload, cell.system, server, proxy).counted
            except FAILURES as error:
                self.results.notes.append(f"{workload.name} on {cell.system}: requests not counted: {error}")

    def _measure(self, turn: Turn, workload: Workload, system: str, server: Server, proxy: Proxy | None) -> Measure:
        """One run. The mount point and the cache are new, what it wrote is deleted afterwards."""
        name = f"run-{next(self._numbers)}-{workload.name}-{system}"
        base, bucket = self._base / name, turn.dataset.bare.bucket
        base.mkdir()
        try:
            if system == FLOOR:
                assert workload.bare
                stage = Stage(name, self._client(server, bucket), turn.dataset, self._material, None, None)
                workload.bare(stage)
            else:
                place = Place(server, bucket, base / "mnt", base / "cache")
                limit = self._plan.scale.limit
                with Drive(SYSTEMS[system], place, turn.watchdog, base / "log", limit=limit) as drive:
                    stage = Stage(name, turn.dataset.bare, turn.dataset, self._material, drive, proxy)
                    workload.run(stage)
            assert stage.measure, f"{workload.name} did not start the clock"
            return stage.measure
        finally:
            turn.watchdog.deadline(0)
            turn.dataset.bare.delete(f"{name}/")
            shutil.rmtree(base / "cache", ignore_errors=True)


@dataclass(frozen=True)
class Turn:
    """What holds while one setting is measured."""

    setting: Setting
    server: Server
    dataset: Dataset
    watchdog: Watchdog
