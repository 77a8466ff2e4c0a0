"""Commands that look into a mount whose daemon hangs end with one line, and those whose server hangs wait for it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.conftest import Mounter
from tests.support.drive import Drive, eventually
from tests.support.faults import Hang
from tests.support.foreign import Foreign, numbered
from tests.support.mounting import SOSFS
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.traffic import Op, on
from tests.support.waiting import alive

# The program as it is installed, but that it gives up five times as soon.
SOON = (
    sys.executable,
    "-c",
    "import sys; from sosfs.cli import main; from sosfs.ipc import status;"
    "status.ANSWER_SECONDS, status.SILENCE_SECONDS = 1.0, 3.0; sys.exit(main.main())",
)
# The same for who may not ask the daemon.
STRANGER = (
    *SOON[:2],
    "def refused(*arguments, **options): raise PermissionError(13, 'Permission denied')\n"
    "from sosfs.ipc import status; status.fetch = refused;" + SOON[2],
)
END = 40.0  # seconds, on a machine that many tests share


@pytest.fixture
def server(moto: Server) -> Server:
    """One is enough."""
    return moto


@pytest.fixture
def drive(mounter: Mounter, foreign: Foreign, proxy: Proxy) -> Iterator[Drive]:
    """A mount of which the kernel has nothing in its cache, and whose log may tell of trouble."""
    foreign.put_all(numbered("t/f", 40))
    drive = mounter(proxy.endpoint, "--ttl", "0")
    drive.mount.allow_log("WARNING|ERROR")
    yield drive
    proxy.heal()
    proxy.drop_connections()


def begun(drive: Drive, *arguments: str | Path, program: Sequence[str] = SOON) -> subprocess.Popen[str]:
    """A command that is under way."""
    return subprocess.Popen(
        [*program, *map(str, arguments)],
        env=drive.mount.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd="/",
    )


def gave_up(drive: Drive, process: subprocess.Popen[str]) -> None:
    """Fails unless a command has ended with one line that says why."""
    output, told = process.communicate(timeout=END)
    assert (process.returncode, output) == (1, ""), process.args
    *speaking, last = told.splitlines()
    assert last == f"sosfs: {drive.mount.path}: the daemon of this mount does not answer", process.args
    assert set(speaking) <= {"sosfs: looking the paths up"}, "what takes ten seconds says what it is at"


def test_each_command_gives_up_on_a_daemon_that_is_stopped(drive: Drive) -> None:
    tree, file = drive.here / "t", drive.here / "t/f0001"
    commands: list[tuple[str | Path, ...]] = [
        ("warm", tree),
        ("drop", tree),
        ("acl", "get", file),
        ("acl", "set", "-r", "private", tree),
        ("headers", "get", "--all", file),
        ("headers", "set", "-r", "Cache-Control=no-cache", tree),
        ("metadata", "unset", "-r", "colour", tree),
        ("du", tree),
        ("du", drive.here),
        ("link", file),
        ("restore", "-n", tree),
        ("versions", file),
        ("versions", "--prune", "1", "--yes", tree),
        ("bench", "--size", "1M", drive.here),
    ]
    os.kill(drive.mount.pid, signal.SIGSTOP)
    try:
        as_installed = begun(drive, "acl", "get", file, program=SOSFS)
        as_stranger = begun(drive, "headers", "get", "Content-Type", file, program=STRANGER)
        for few in (commands[:7], commands[7:]):
            for process in [begun(drive, *command) for command in few]:
                gave_up(drive, process)
        gave_up(drive, as_installed)
        gave_up(drive, as_stranger)
    finally:
        os.kill(drive.mount.pid, signal.SIGCONT)
    done = begun(drive, "du", tree)
    assert "objects" in done.communicate(timeout=END)[0]
    assert done.returncode == 0


def test_a_command_whose_questions_the_daemon_has_read_already_gives_up_too(drive: Drive, proxy: Proxy) -> None:
    """Its threads cannot be killed: the kernel has them wait for the answers."""
    rule = proxy.inject(Hang(), on(Op.GET_ACL))
    process = begun(drive, "acl", "get", "-r", drive.here / "t")
    eventually(lambda: rule.hits > 3, seconds=END)
    os.kill(drive.mount.pid, signal.SIGSTOP)
    try:
        gave_up(drive, process)
    finally:
        os.kill(drive.mount.pid, signal.SIGCONT)


def test_a_daemon_that_waits_for_its_server_is_waited_for(drive: Drive, proxy: Proxy) -> None:
    """Each word of it begins the wait anew."""
    with proxy.broken(Hang(), on(Op.GET_ACL)) as rule:
        process = begun(drive, "acl", "get", drive.here / "t/f0001")
        eventually(lambda: rule.hits > 0, seconds=END)
        time.sleep(6)  # twice as long as it bears no word
        assert process.poll() is None
    proxy.drop_connections()
    output, told = process.communicate(timeout=END)
    assert (process.returncode, told) == (0, "")
    assert "FULL_CONTROL" in output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_to_the_command_ends_all_of_it(drive: Drive, proxy: Proxy, number: signal.Signals) -> None:
    with proxy.broken(Hang(), on(Op.GET_ACL)) as rule:
        process = begun(drive, "acl", "get", drive.here / "t/f0001")
        eventually(lambda: rule.hits > 0, seconds=END)
        children = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
        assert children
        process.send_signal(number)
        _, told = process.communicate(timeout=END)
        assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[number]
        assert not re.search("Traceback", told)
        eventually(lambda: not any(alive(pid) for pid in children), seconds=END)
