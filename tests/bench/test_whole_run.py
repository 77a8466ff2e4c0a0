"""The command itself, on a small server: it is interrupted, leaves nothing behind, goes on, and reports."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.bench import process_tree
from tests.bench.budget import Budget
from tests.bench.pinning import Cores
from tests.bench.results import Results, Setting
from tests.bench.scale import TINY
from tests.bench.session import Plan, Session
from tests.bench.stage import Stage
from tests.bench.systems.system import ROOT
from tests.bench.workloads import Workload
from tests.bench.workloads.workload import Unit
from tests.support.watchdog import Watchdog

ROW = ("--rows", "small_create", "--systems", "sosfs,s3fs", "--scale", "tiny", "--server", "weed")
pytestmark = pytest.mark.timeout(120)


def command(out: Path) -> subprocess.Popen[str]:
    """Begins a run; its temporary files are beside its results."""
    program = [sys.executable, "-m", "tests.bench", *ROW, "--out", str(out)]
    kept = {**os.environ, "TMPDIR": str(out.parent)}
    return subprocess.Popen(program, cwd=ROOT, env=kept, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def mounts_below(path: Path) -> list[str]:
    return [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f" {path}/" in line]


def named(pids: list[int], word: str) -> list[int]:
    """Those whose command line has this word."""
    return [pid for pid in pids if word.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()]


def until_mounted(running: subprocess.Popen[str], below: Path) -> None:
    """Waits for its first mount."""
    deadline = time.monotonic() + 60
    while not mounts_below(below):
        assert running.poll() is None and time.monotonic() < deadline, running.communicate()
        time.sleep(0.05)


def test_it_is_interrupted_goes_on_and_reports(tmp_path: Path, watchdog: Watchdog) -> None:
    out, cores = tmp_path / "results", Cores.of_machine()
    running = command(out)
    until_mounted(running, tmp_path)
    family = process_tree.family(running.pid)
    serving, mounting = named(family, "-s3.config="), named(family, "mnt")
    assert serving and mounting
    for pids, own in ((serving, cores.server), (mounting, cores.client)):
        assert all(each == own for pid in pids for each in process_tree.cores(pid).values())

    running.send_signal(signal.SIGTERM)
    said, _ = running.communicate(timeout=30)
    assert running.returncode == 130, said
    assert "Traceback" not in said
    assert not mounts_below(tmp_path)
    assert not [pid for pid in family if Path(f"/proc/{pid}").exists()], "what it had started is still there"

    done = command(out)
    said, _ = done.communicate(timeout=100)
    assert done.returncode == 0, said
    results = Results.read(out / "results.json")
    assert [(cell.system, len(cell.measures), cell.failure) for cell in results.cells] == [
        ("sosfs", 2, ""),
        ("s3fs", 2, ""),
    ]
    assert all(cell.cpu > 0 and cell.seconds > 0 for cell in results.cells)
    assert f"commit `{results.commit}`" in (out / "results.md").read_text()
    assert not mounts_below(tmp_path)

    again = command(out)
    said, _ = again.communicate(timeout=30)
    assert again.returncode == 0 and "small_create" not in said, said
    assert Results.read(out / "results.json") == results


def test_a_mount_that_hangs_is_ended_when_its_time_is_up(tmp_path: Path, watchdog: Watchdog) -> None:
    """Its cell says so, and the other systems run on."""

    def look(stage: Stage) -> None:
        _ = stage.top
        if stage.drive.system.name == "s3fs":
            os.kill(stage.drive.pid, signal.SIGSTOP)
        with stage.clock():
            assert not (stage.top / "nothing").exists()

    once = Workload("untar", "look for nothing", Unit.CALLS, lambda _: 1, look)
    plan = Plan([Setting("weed", 0)], [once], ["s3fs", "sosfs"], 2, ())
    results = Results(replace(TINY, limit=5), "abc", "now", "all")
    cores = Cores(frozenset(os.sched_getaffinity(0)), frozenset(os.sched_getaffinity(0)))
    Session(plan, results, tmp_path, cores, Budget(5), lambda *_: None).run(lambda: None)
    hung, other = results.cells
    assert (hung.failure, len(hung.measures)) == ("no end after 5 s", 0)
    assert (other.failure, len(other.measures)) == ("", 2)
    assert not mounts_below(tmp_path)
