"""The server has its cores, mounts and programs have theirs, and what a mount's processes use is all counted."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bench import process_tree
from tests.bench.pinning import Cores
from tests.bench.servers import Server
from tests.bench.session import delayed
from tests.support.processes import free_port

TWO = len(os.sched_getaffinity(0)) > 1
CHILD = [sys.executable, "-S", "-c", "import sys; sys.stdin.read()"]


@pytest.fixture
def affinity() -> Iterator[set[int]]:
    """What this process may use; given back afterwards."""
    before = os.sched_getaffinity(0)
    yield before
    os.sched_setaffinity(0, before)


def _command(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def _used(pids: list[int]) -> set[int]:
    """All cores that any of their threads may use."""
    return {core for pid in pids for cores in process_tree.cores(pid).values() for core in cores}


@pytest.mark.parametrize(
    ("available", "server", "client"),
    [({0, 1}, {0}, {1}), ({0, 1, 2, 3}, {0, 1}, {2, 3}), ({2, 4, 6}, {2}, {4, 6}), ({3}, {3}, {3})],
)
def test_halves(available: set[int], server: set[int], client: set[int]) -> None:
    found = Cores.halves(available)
    assert (set(found.server), set(found.client)) == (server, client)
    assert found.apart is (len(available) > 1)


def test_one_core_is_said_to_be_shared() -> None:
    assert "nothing is pinned" in str(Cores.halves({3}))
    assert str(Cores.halves({0, 1})) == "server on core 0, mounts and programs on core 1"


@pytest.mark.skipif(not TWO, reason="one core only")
def test_what_serves_runs_on_its_cores_and_the_rest_on_theirs(affinity: set[int], tmp_path: Path) -> None:
    cores = Cores.halves(affinity)
    cores.pin()
    server = Server("none", f"http://127.0.0.1:{free_port()}", "Other")
    with delayed(server, 1, tmp_path, cores), subprocess.Popen(CHILD, stdin=subprocess.PIPE) as program:
        relays = [pid for pid in process_tree.family(os.getpid()) if b"delay.py" in _command(pid)]
        assert relays and _used(relays) == set(cores.server)
        assert _used([program.pid]) == set(cores.client)
        program.communicate()
    assert os.sched_getaffinity(0) == cores.client


def test_cpu_of_all_threads_and_of_ended_children_counts() -> None:
    burn = "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass\n"
    program = f"""if True:
        import subprocess, sys, threading
        subprocess.run([sys.executable, "-S", "-c", {burn!r}], check=True)
        thread = threading.Thread(target=exec, args=({burn!r}, {{}}))
        thread.start(); thread.join()
        print(flush=True); sys.stdin.read()
    """
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        used = process_tree.usage(process.pid)
        process.communicate()
    assert used.cpu >= 0.55 and used.peak > 1 << 20


def test_a_family_has_what_other_threads_started() -> None:
    """The thread goes on: what one that has ended has started is its process's."""
    started, seen = threading.Event(), threading.Event()
    children: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        children.append(subprocess.Popen(CHILD, stdin=subprocess.PIPE))
        started.set()
        seen.wait(30)

    thread = threading.Thread(target=start)
    thread.start()
    assert started.wait(30)
    try:
        assert children[0].pid in process_tree.family(os.getpid())
    finally:
        seen.set()
        thread.join()
        children[0].communicate()
    assert process_tree.usage(children[0].pid).cpu == 0  # has ended
