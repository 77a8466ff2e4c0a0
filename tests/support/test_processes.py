"""A server process ends with whoever started it, however that ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.processes import Process, free_port, listening, require

STARTER = """
import sys, time
from pathlib import Path
from tests.support.processes import Process
print(Process(["sleep", "600"], Path(sys.argv[1]))._process.pid, flush=True)
time.sleep(600)
"""


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_server_dies_with_its_starter(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-c", STARTER, str(tmp_path / "log")]
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=root) as starter:
        assert starter.stdout
        server = int(starter.stdout.readline())
        while Path(f"/proc/{server}/comm").read_text() != "sleep\n":  # before, the kernel is not told yet
            time.sleep(0.01)
        os.kill(starter.pid, number)
    deadline = time.monotonic() + 10
    while runs(server):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_server_that_ends_tells_why(tmp_path: Path) -> None:
    process = Process(["sh", "-c", "echo no such luck; exit 3"], tmp_path / "log")
    with pytest.raises(RuntimeError, match="no such luck"):
        process.until(lambda: False, 10)
    process.end()


def test_end_ends_the_whole_group(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    process = Process(["sh", "-c", f"sleep 600 & echo $! > {pid_file}; wait"], tmp_path / "log")
    process.until(lambda: pid_file.exists() and pid_file.read_text().endswith("\n"), 10)
    process.end()
    deadline = time.monotonic() + 10
    while runs(int(pid_file.read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_missing_program_is_a_failure() -> None:
    with pytest.raises(RuntimeError, match=r"no-such-program not found: apt-get install .* some-package"):
        require("sh", "no-such-program", package="some-package")


def test_a_free_port_is_free() -> None:
    assert not listening(free_port())
