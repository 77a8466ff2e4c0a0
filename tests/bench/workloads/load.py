"""How long single calls take while others work on the mount: what somebody in front of it feels."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.bench.material import SMALL
from tests.bench.scale import Scale
from tests.bench.stage import Stage
from tests.bench.workloads.workload import Unit, Workload

KINDS = ("stat", "open", "read", "create")
# Reads a big file over and over.
READER = """import sys
while True:
    with open(sys.argv[1], "rb", 0) as file:
        while file.read(1 << 20): pass
"""
# Writes files of 1 MiB, one after the other, over the same few names.
WRITER = """import os, sys
data = os.urandom(1 << 20)
while True:
    for number in range(8):
        with open(f"{sys.argv[1]}-{number}", "wb", 0) as file: file.write(data)
"""
# Times calls one by one, a kind after the other so that each has the load alone: stat of files that were not looked at,
# open and read of others, create with its close.
PROBE = """import json, os, sys, time
looked, opened, home, data = json.load(sys.stdin)
times, data = {"stat": [], "open": [], "read": [], "create": []}, bytes.fromhex(data)
clock = time.perf_counter
for name in looked:
    start = clock(); os.stat(name); times["stat"].append(clock() - start)
for name in opened:
    start = clock(); file = os.open(name, os.O_RDONLY); times["open"].append(clock() - start)
    start = clock(); found = os.read(file, len(data)); times["read"].append(clock() - start)
    os.close(file)
    assert found == data, name
for number in range(len(looked)):
    start = clock()
    with open(f"{home}/{number:06}", "wb", 0) as file: file.write(data)
    times["create"].append(clock() - start)
print(json.dumps(times))
"""


def calls_under_load(stage: Stage) -> None:
    """Two readers of big files and two writers of new ones; beside them one process whose calls are timed."""
    size, count = stage.scale.big // 4, _timed(stage.scale)
    big = [stage.dataset.big(size, number) for number in range(2)]
    small, home = stage.dataset.small(), stage.home
    names = [str(stage.top / small / f"{number:06}") for number in range(2 * count)]
    (home / "probe").mkdir()
    given = json.dumps([names[:count], names[count:], str(home / "probe"), SMALL.hex()])
    programs = [(READER, stage.top / key) for key in big] + [(WRITER, home / f"writer{i}") for i in range(2)]
    with stage.clock(), _working(programs):
        done = subprocess.run([*PYTHON, PROBE], input=given, capture_output=True, text=True, check=False)
        if done.returncode:
            raise OSError(f"the timed process: {done.stderr.strip()[-300:]}")
        stage.calls = json.loads(done.stdout)
    stage.expect(count, count * len(SMALL), below="probe/")


PYTHON = (sys.executable, "-S", "-c")


@contextmanager
def _working(programs: list[tuple[str, Path]]) -> Iterator[None]:
    """Runs them beside the block. One that has ended by then failed, for none ends by itself."""
    with ExitStack() as stack:
        running = [subprocess.Popen([*PYTHON, body, str(path)], stderr=subprocess.PIPE) for body, path in programs]
        for process in running:
            stack.callback(process.communicate)
            stack.callback(process.kill)
        yield
        if any(process.poll() is not None for process in running):
            raise OSError("a reader or writer beside the timed process failed")


def _timed(scale: Scale) -> int:
    """How many calls of each kind: there are as many small files to look at, and as many to open."""
    return min(scale.timed, scale.small_files // 2)


def _calls(scale: Scale) -> float:
    return _timed(scale) * len(KINDS)


LOAD = [Workload("under_load", "single calls beside 2 readers and 2 writers", Unit.CALLS, _calls, calls_under_load)]
