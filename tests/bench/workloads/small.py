"""Workloads on many small files in one directory: create, then cold read, serially and by 16 processes."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from tests.bench.client import each
from tests.bench.material import SMALL
from tests.bench.scale import Scale
from tests.bench.stage import Stage
from tests.bench.workloads.workload import Unit, Workload

PROCESSES = 16
# One of the processes: does its share of the files as soon as a line tells it to, so that its start costs no time.
CREATE = "for n in names: open(n, 'wb', 0).write(data)"
READ = "for n in names: assert open(n, 'rb', 0).read() == data, n"
WORKER = """import sys
names, data = sys.argv[2:], bytes.fromhex(sys.argv[1])
print(flush=True); sys.stdin.readline()
{}"""


def create(path: Path) -> None:
    with path.open("wb", buffering=0) as out:
        out.write(SMALL)


def read(path: Path) -> None:
    with path.open("rb", buffering=0) as file:
        if file.read() != SMALL:
            raise OSError(f"{path.name} is not what was put")


class Workers:
    """Processes that wait for the word `go` and then do their share; the end of the `with` block ends them all."""

    def __init__(self, body: str, shares: Iterable[tuple[Path, list[str]]]) -> None:
        """`shares`: of each process, where it stands and the names of its files from there."""
        program = [sys.executable, "-S", "-c", WORKER.format(body), SMALL.hex()]
        self._processes: list[subprocess.Popen[bytes]] = []
        try:
            for directory, names in shares:
                command = [*program, *names]
                begun = subprocess.Popen(command, cwd=directory, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
                self._processes.append(begun)
        except OSError:
            self.end()
            raise
        for process in self._processes:
            assert process.stdout
            process.stdout.readline()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Ends those that still work or wait."""
        for process in self._processes:
            process.kill()
            process.communicate()

    def go(self) -> None:
        """Lets them work, and waits for the last; one that fails is an OSError."""
        for process in self._processes:
            assert process.stdin
            process.stdin.close()
            process.stdin = None
        failed = [process.wait() for process in self._processes]
        if any(failed):
            raise OSError(f"{sum(map(bool, failed))} of {len(failed)} processes failed")


def shares(directory: Path, names: list[str], count: int = PROCESSES) -> list[tuple[Path, list[str]]]:
    """The names dealt out to so many processes that stand in one directory."""
    return [(directory, names[i::count]) for i in range(count)]


def _names(scale: Scale) -> list[str]:
    return [f"{i:06}" for i in range(scale.small_files)]


def create_serial(stage: Stage) -> None:
    home = stage.home
    with stage.clock():
        for name in _names(stage.scale):
            create(home / name)
    stage.expect(stage.scale.small_files, stage.scale.small_files * len(SMALL))


def create_parallel(stage: Stage) -> None:
    with Workers(CREATE, shares(stage.home, _names(stage.scale))) as workers, stage.clock():
        workers.go()
    stage.expect(stage.scale.small_files, stage.scale.small_files * len(SMALL))


def create_bare(stage: Stage, *, threads: int) -> None:
    keys = [f"{stage.prefix}/{name}" for name in _names(stage.scale)]
    with stage.clock():
        each(lambda key: stage.bare.put(key, SMALL), keys, threads=threads)


def read_serial(stage: Stage) -> None:
    below = stage.dataset.small()
    directory = stage.top / below
    with stage.clock():
        for name in _names(stage.scale):
            read(directory / name)


def read_parallel(stage: Stage) -> None:
    """The processes stand at the mount's top, so that nothing below is looked up before time runs."""
    below = stage.dataset.small()
    names = [f"{below}/{name}" for name in _names(stage.scale)]
    with Workers(READ, shares(stage.top, names)) as workers, stage.clock():
        workers.go()


def read_bare(stage: Stage, *, threads: int) -> None:
    below = stage.dataset.small()
    keys = [f"{below}/{name}" for name in _names(stage.scale)]
    with stage.clock():
        each(lambda key: stage.bare.get(key, 0, len(SMALL)), keys, threads=threads)


def _count(scale: Scale) -> float:
    return scale.small_files


_put, _get = functools.partial(create_bare, threads=1), functools.partial(read_bare, threads=1)
_put16, _get16 = functools.partial(create_bare, threads=16), functools.partial(read_bare, threads=16)

SMALL_FILES = [
    Workload("small_create", "create 4 KiB files, serially", Unit.FILES, _count, create_serial, _put, stores=True),
    Workload(
        "small_create16", "create 4 KiB files, 16 processes", Unit.FILES, _count, create_parallel, _put16, stores=True
    ),
    Workload("small_read", "cold read of 4 KiB files, serially", Unit.FILES, _count, read_serial, _get),
    Workload("small_read16", "cold read of 4 KiB files, 16 processes", Unit.FILES, _count, read_parallel, _get16),
]
