"""The order of things: servers, settings, workloads, rounds, systems.

In each round every system runs the workload once, the order turned by one from round to round, so that what the machine
does meanwhile strikes them alike. A round counts when all have run it: one that was broken off is run anew, so that no
ratio is made of two different times. A system that fails or hangs is ended, its cell says why, and it sits out the
workload's other rounds; so does a system that was far behind a peer, but sosfs. Requests are counted in a run of its
own, behind a proxy.

What is in the results already is not measured again; when the budget is spent, `run` raises `OutOfTime`.
"""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from botocore.exceptions import BotoCoreError, ClientError
from obstore.exceptions import BaseError

from tests.bench.bare import Bare
from tests.bench.budget import Budget, OutOfTime
from tests.bench.client import Client
from tests.bench.dataset import Dataset
from tests.bench.drive import Drive
from tests.bench.material import Material, chunks
from tests.bench.pinning import Cores
from tests.bench.results import Cell, Results, Setting
from tests.bench.servers import SERVERS, Server
from tests.bench.stage import Measure, Stage
from tests.bench.systems import FLOOR, SYSTEMS, Place, Role
from tests.bench.systems.system import ROOT
from tests.bench.through_mount import Files
from tests.bench.workloads import Workload
from tests.support.processes import Process, free_port, listening
from tests.support.proxy import Proxy
from tests.support.watchdog import Watchdog

Report = Callable[[Cell, Measure | None], None]
FAILURES = (OSError, RuntimeError, ValueError, subprocess.SubprocessError, BotoCoreError, ClientError, BaseError)
START = 20.0  # seconds for the delaying relay
SLOW = 5  # who takes so many times as long as a peer once will not overtake it
WARM = 4  # big files
COUNTING = 3  # a run behind the proxy takes so many times as long, at most


class ServerGone(Exception):
    """The S3 server answers no more: no system is to blame for what fails now."""


@dataclass(frozen=True)
class Plan:
    """What is asked for. `counted`: the systems whose requests are counted in every workload."""

    settings: Sequence[Setting]
    workloads: Sequence[Workload]
    systems: Sequence[str]
    rounds: int
    counted: Collection[str]


@contextmanager
def delayed(server: Server, rtt: int, base: Path, cores: Cores) -> Iterator[Server]:
    """The server, `rtt` milliseconds further away."""
    if not rtt:
        yield server
        return
    port, target = free_port(), urlsplit(server.endpoint).port
    command = [sys.executable, str(ROOT / "tests/bench/delay.py"), str(port), str(target), str(rtt / 1000)]
    with cores.serving():
        relay = Process(command, base / "delay.log")
    try:
        relay.until(lambda: listening(port), START)
        yield replace(server, endpoint=f"http://127.0.0.1:{port}")
    finally:
        relay.end()


def runs(system: str, workload: Workload) -> bool:
    """Whether a system has anything to do there."""
    if system == FLOOR:
        return workload.bare is not None
    return workload.renames or not SYSTEMS[system].for_renames


def beaten(cell: Cell, cells: Sequence[Cell]) -> bool:
    """Whether it was so far behind a peer that more rounds of it would tell nothing. sosfs runs them all."""
    peers = [other for other in cells if other.role is Role.PEER and other.usable]
    slow = cell.role is not Role.OWN and bool(cell.measures and peers)
    return slow and cell.seconds > SLOW * min(other.seconds for other in peers)


def pending(cells: Sequence[Cell], round_number: int) -> list[Cell]:
    """Whose turn comes in a round, in the order of that round."""
    first = round_number % len(cells)
    turned = [*cells[first:], *cells[:first]]
    return [c for c in turned if len(c.measures) <= round_number and not c.failure and not beaten(c, cells)]


@dataclass(frozen=True)
class Turn:
    """What holds while one server is measured in one setting."""

    setting: Setting
    server: Server  # as far away as the setting has it
    direct: Server
    bare: Bare
    shared: Path
    datasets: dict[str, Dataset]  # by the system that puts them, "" for the S3 client


class Session:
    """All runs of one plan. `results` may have a part of them."""

    def __init__(self, plan: Plan, results: Results, base: Path, cores: Cores, budget: Budget, report: Report) -> None:
        self._plan, self._base, self._cores, self._budget, self._report = plan, base, cores, budget, report
        self._scale = results.scale
        self._material = Material(base, self._scale)
        self._numbers = itertools.count()
        self._watchdog: Watchdog | None = None
        self._ends = ExitStack()  # of what lives as long as the server
        self.results = results

    def run(self, keep: Callable[[], None]) -> None:
        """Runs what is missing, and calls `keep` whenever the results have grown by a round."""
        missing = [setting for setting in self._plan.settings if self._missing(setting)]
        for name, settings in itertools.groupby(missing, key=lambda setting: setting.server):
            with ExitStack() as stack:
                self._budget.check()
                with self._cores.serving():
                    server = stack.enter_context(SERVERS[name]())
                self._watchdog = stack.enter_context(Watchdog())
                self._ends = stack.enter_context(ExitStack())
                bare, shared = self._client(server, f"bench-{uuid.uuid4().hex[:8]}"), self._base / f"shared-{name}"
                shared.mkdir(exist_ok=True)
                bare.create()
                self._warm(bare)
                datasets = {"": Dataset(bare, self._scale)}
                for setting in settings:
                    with delayed(server, setting.rtt, self._base, self._cores) as distant:
                        turn = Turn(setting, distant, server, bare, shared, datasets)
                        for workload in self._missing(setting):
                            self._compare(turn, workload, keep)

    def _warm(self, bare: Bare) -> None:
        """Has the server take its memory: the first touch of it costs seconds a GiB on virtual machines."""
        bare.put_parts("warm", chunks(WARM * self._scale.big))
        bare.delete("warm")

    def abort(self) -> None:
        """Has the mounts killed at once, so that whatever waits in one comes back; from a signal handler."""
        if self._watchdog is not None:
            self._watchdog.deadline(0.05)

    def _cells(self, setting: Setting, workload: Workload) -> list[Cell]:
        """Those of the plan, added to the results where they are not there yet."""
        names = [name for name in self._plan.systems if runs(name, workload)]
        for name in names:
            if self.results.cell(setting, workload.name, name) is None:
                self.results.cells.append(Cell(setting, workload.name, name))
        return [cell for cell in self.results.of(setting, workload.name) if cell.system in names]

    def _missing(self, setting: Setting) -> list[Workload]:
        """The workloads that are not done there."""
        return [workload for workload in self._plan.workloads if self._left(self._cells(setting, workload), workload)]

    def _left(self, cells: list[Cell], workload: Workload) -> bool:
        rounds = range(self._plan.rounds)
        return any(pending(cells, number) for number in rounds) or any(self._uncounted(cells, workload))

    def _uncounted(self, cells: list[Cell], workload: Workload) -> Iterator[Cell]:
        for cell in cells:
            wanted = cell.system in self._plan.counted or (workload.counted and cell.system != FLOOR)
            if wanted and cell.usable and cell.counted is None:
                yield cell

    def _compare(self, turn: Turn, workload: Workload, keep: Callable[[], None]) -> None:
        cells = self._cells(turn.setting, workload)
        for number in range(self._plan.rounds):
            self._round(turn, workload, pending(cells, number), number)
            keep()
        for cell in self._uncounted(cells, workload):
            self._budget.check(COUNTING * cell.seconds)
            self._count(turn, workload, cell)
            keep()

    def _round(self, turn: Turn, workload: Workload, cells: list[Cell], number: int) -> None:
        """What fails in a round is kept as failed only with the whole round, for the budget may end it first."""
        done: dict[str, Measure] = {}
        failed: dict[str, str] = {}
        for cell in cells:
            self._budget.check(cell.seconds if cell.measures else 0)
            limit = self._budget.limit(self._scale.limit)
            started = time.monotonic()
            try:
                done[cell.system] = self._measure(turn, workload, cell.system, limit=limit)
            except FAILURES as error:
                late = time.monotonic() - started >= limit
                if late and limit < self._scale.limit:
                    raise OutOfTime(f"{workload.name} on {cell.system} was broken off") from error
                self._ask_server(turn)
                failed[cell.system] = f"no end after {limit:g} s" if late else str(error) or repr(error)
            self._report(replace(cell, failure=failed.get(cell.system, "")), done.get(cell.system))
        for cell in cells:
            cell.measures += [done[cell.system]] if cell.system in done else []
            cell.failure = failed.get(cell.system, "")

    @staticmethod
    def _ask_server(turn: Turn) -> None:
        try:
            turn.bare.sizes("nothing/")
        except FAILURES as error:
            raise ServerGone(f"{turn.setting}: the server does not answer: {error}") from error

    def _count(self, turn: Turn, workload: Workload, cell: Cell) -> None:
        with Proxy(turn.server.endpoint) as proxy:
            behind = replace(turn, server=replace(turn.server, endpoint=proxy.endpoint))
            limit = self._budget.limit(self._scale.limit)
            try:
                cell.counted = self._measure(behind, workload, cell.system, limit=limit, proxy=proxy).counted
            except FAILURES as error:
                self.results.note(f"{turn.setting}, {workload.name} on {cell.system}: requests not counted: {error}")

    def _measure(
        self, turn: Turn, workload: Workload, system: str, *, limit: float, proxy: Proxy | None = None
    ) -> Measure:
        """One run. The mount point and the cache are new, what it wrote is deleted afterwards."""
        assert self._watchdog
        name = f"run-{next(self._numbers)}-{workload.name}-{system}"
        base = self._base / name
        base.mkdir()
        dataset = self._dataset(turn, system)
        try:
            if system == FLOOR:
                assert workload.bare
                client = self._client(turn.server, turn.bare.bucket)
                stage = Stage(name, client, dataset, self._material, None, None)
                workload.bare(stage)
            else:
                with self._drive(turn, system, base, limit=limit) as drive:
                    stage = Stage(name, turn.bare, dataset, self._material, drive, proxy)
                    workload.run(stage)
        except FAILURES:
            self._tidy(dataset.client, name, base)
            raise
        self._tidy(dataset.client, name, base)
        assert stage.measure, f"{workload.name} did not start the clock"
        return stage.measure

    def _tidy(self, client: Client, name: str, base: Path) -> None:
        """Deletes what a run wrote; one that was interrupted leaves it to the end of all."""
        assert self._watchdog
        try:
            client.delete(f"{name}/")
            client.rest()
        finally:
            self._watchdog.deadline(0)
            shutil.rmtree(base, ignore_errors=True)

    def _dataset(self, turn: Turn, system: str) -> Dataset:
        """What was put for systems of its kind; for one with a format of its own through a mount of it."""
        by = SYSTEMS[system].prepared_by if system != FLOOR else ""
        if by not in turn.datasets:
            near = replace(turn, server=turn.direct)
            base = self._base / f"prepared-by-{by}"
            base.mkdir()
            files = Files(lambda: self._drive(near, by, base, limit=self._scale.limit))
            self._ends.callback(files.end)
            turn.datasets[by] = Dataset(files, self._scale)
        return turn.datasets[by]

    def _drive(self, turn: Turn, system: str, base: Path, *, limit: float) -> Drive:
        assert self._watchdog
        place = Place(turn.server, turn.bare.bucket, base / "mnt", base / "cache", turn.shared, turn.direct)
        return Drive(SYSTEMS[system], place, self._watchdog, base / "log", limit=limit)

    @staticmethod
    def _client(server: Server, bucket: str) -> Bare:
        return Bare(server.endpoint, bucket, server.key, server.secret)
