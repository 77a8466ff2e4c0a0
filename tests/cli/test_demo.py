"""`sosfs demo`: what it shows, and that nothing of it stays, however it ends."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from sosfs.ipc import status
from tests.support.mounting import ROOT
from tests.support.waiting import SECONDS, alive, until
from tests.support.watchdog import Watchdog, mounted


class Demo:
    """A running demo."""

    def __init__(self, base: Path, watchdog: Watchdog) -> None:
        self.base = base
        self.path = base / "new" / "mnt"
        self.temporary = base / "tmp"
        self.temporary.mkdir()
        self.environ = {"PATH": os.environ["PATH"], "HOME": str(base), "PYTHONPATH": str(ROOT), "LANG": "C.UTF-8"}
        with (base / "out").open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "sosfs", "demo", str(self.path)],
                env={**self.environ, "TMPDIR": str(self.temporary)},
                stdout=out,
                stderr=out,
                cwd="/",
                start_new_session=True,
            )
        watchdog.watch(self.process.pid, self.path)

    @property
    def out(self) -> str:
        return (self.base / "out").read_text()

    def children(self) -> list[int]:
        """The server and the daemon."""
        now = status.fetch(self.path)
        direct = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [*map(int, direct), *([now.pid] if now else [])]

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(SECONDS)


@pytest.fixture
def demo(tmp_path: Path, watchdog: Watchdog) -> Iterator[Demo]:
    demo = Demo(tmp_path, watchdog)
    try:
        until(lambda: "Ctrl-C" in demo.out or demo.process.poll() is not None, "the demo begins")
        assert demo.process.poll() is None, demo.out
        yield demo
    finally:
        if demo.process.poll() is None:
            demo.end(signal.SIGTERM)
        watchdog.forget(demo.process.pid)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_it_shows_files_and_leaves_nothing(demo: Demo, number: signal.Signals) -> None:
    assert mounted(demo.path)
    assert {str(path.relative_to(demo.path)) for path in demo.path.rglob("*") if path.is_file()} == {
        "welcome.txt",
        "notes/monday.txt",
        "notes/2026/november/plan.txt",
        "pictures/sunrise.png",
        "large.bin",
    }
    assert (demo.path / "large.bin").read_bytes() == bytes(range(256)) * (80 << 10)
    children = demo.children()
    assert len(children) == 2
    assert demo.end(number) == 0, demo.out
    assert demo.out.endswith("Everything is removed.\n")
    assert not mounted(demo.path)
    assert not demo.path.exists()
    assert list(demo.temporary.iterdir()) == []
    assert [pid for pid in children if alive(pid)] == []


def test_it_ends_with_its_terminal(tmp_path: Path, watchdog: Watchdog) -> None:
    """As when a window is closed while it runs."""
    path, temporary = tmp_path / "mnt", tmp_path / "tmp"
    temporary.mkdir()
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "TMPDIR": str(temporary)}
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(sys.executable, [sys.executable, "-m", "sosfs", "demo", str(path)], environ)
    watchdog.watch(pid, path)
    try:
        said = b""
        while b"Ctrl-C" not in said:
            said += os.read(terminal, 4096)
        now = status.fetch(path)
        assert now is not None
        os.close(terminal)
        _, code = os.waitpid(pid, 0)
    finally:
        watchdog.forget(pid)
    assert os.waitstatus_to_exitcode(code) == 0
    assert not mounted(path)
    assert not path.exists()
    assert list(temporary.iterdir()) == []
    assert not alive(now.pid)


def test_what_it_says_to_try_works(demo: Demo) -> None:
    lines = re.findall(r"^  (\S.*)$", demo.out, re.MULTILINE)
    assert len(lines) == 5
    for line in lines:
        words = re.sub(r"\S*sosfs status", f"{sys.executable} -m sosfs status", line)
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", words],
            env=demo.environ,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"{line}\n{done.stderr}"
    url = re.search(r"^http://\S+\.png", demo.out, re.MULTILINE)
    assert url
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url[0], timeout=SECONDS) as answer:
        assert answer.read() == (demo.path / "pictures/sunrise.png").read_bytes()


def test_someone_who_works_in_it_does_not_keep_it(demo: Demo) -> None:
    children = demo.children()
    with subprocess.Popen(["sleep", "100"], cwd=demo.path) as worker:
        try:
            assert demo.end(signal.SIGINT) == 0, demo.out
            assert f"sleep (pid {worker.pid}) works in it" in demo.out
            assert not mounted(demo.path)
            until(lambda: not any(alive(pid) for pid in children), "the daemon ends")
        finally:
            worker.kill()
    assert list(demo.temporary.iterdir()) == []


def test_a_directory_with_something_in_it_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()
    (tmp_path / "mnt/precious").touch()
    done = subprocess.run(
        [sys.executable, "-m", "sosfs", "demo", str(tmp_path / "mnt")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("sosfs: mount point is not empty")
    assert (tmp_path / "mnt/precious").exists()
