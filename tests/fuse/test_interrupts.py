"""Programs that wait for a server which hangs can be stopped, and what they had begun is done or left, never half."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sosfs.fuse.requests import PATIENT
from sosfs.ipc.status import MountPhase
from tests.conftest import LARGE, Mounter
from tests.support.drive import Drive, eventually, status
from tests.support.faults import Hang
from tests.support.foreign import Foreign
from tests.support.mounting import alone, run_sosfs
from tests.support.proxy import Proxy
from tests.support.traffic import on

END = 30.0  # seconds: two are promised, but not on a machine that many tests share; the server hangs for 60


@pytest.fixture
def drive(mounter: Mounter, foreign: Foreign, proxy: Proxy) -> Iterator[Drive]:
    foreign.put_all({"d/file": b"x" * 10_000, "d/old": b"old", "d/large": LARGE, "e/one": b"1", "e/two": b"2"})
    drive = mounter(proxy.endpoint)
    drive.mount.allow_log("WARNING|ERROR")
    yield drive
    proxy.heal()


def stopped(proxy: Proxy, number: signal.Signals, *command: str | Path, wait: int = 1) -> int:
    """Runs a program until `wait` requests of its hang, sends it a signal, and gives its exit code."""
    before = len(proxy.requests)
    with subprocess.Popen(
        [*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        eventually(lambda: len(proxy.requests) >= before + wait)
        time.sleep(PATIENT)
        os.killpg(process.pid, number)
        try:
            process.communicate(timeout=END)
        except subprocess.TimeoutExpired:
            proxy.heal()
            proxy.drop_connections()
            process.kill()
            pytest.fail(f"{command[0]} does not end")
        return process.returncode


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_what_reads_ends(drive: Drive, proxy: Proxy, number: signal.Signals) -> None:
    here = drive.mount.path
    with proxy.broken(Hang(), on("LIST", prefix="")):
        assert stopped(proxy, number, "ls", "-l", here / "d") == -number
    for command in (["cat", here / "d/file"], ["sh", "-c", f"exec 3<{here}/d/large; cat <&3 >/dev/null"]):
        os.listdir(here / "d")
        with proxy.broken(Hang(), on("GET", "HEAD")):
            assert stopped(proxy, number, *command) == -number
    assert (here / "d/file").read_bytes() == b"x" * 10_000
    assert (here / "d/large").read_bytes() == LARGE


@pytest.mark.promise(11)
def test_what_writes_ends_and_the_file_comes_later(
    drive: Drive, proxy: Proxy, foreign: Foreign, tmp_path: Path
) -> None:
    here, source = drive.mount.path, tmp_path / "source"
    source.write_bytes(b"new" * 1000)
    with proxy.broken(Hang(), on("PUT")):
        assert stopped(proxy, signal.SIGINT, "cp", source, here / "d/new") == -signal.SIGINT
    proxy.drop_connections()
    eventually(lambda: foreign.exists("d/new"), seconds=40)
    assert foreign.get("d/new") == b"new" * 1000
    assert (here / "d/new").read_bytes() == b"new" * 1000


@pytest.mark.promise(11)
def test_what_removes_or_renames_ends_and_is_done_to_its_end(drive: Drive, proxy: Proxy, foreign: Foreign) -> None:
    here = drive.mount.path
    with proxy.broken(Hang(), on("DELETE", "DELETE_MANY")):
        assert stopped(proxy, signal.SIGKILL, "rm", here / "d/old") == -signal.SIGKILL
    proxy.drop_connections()
    eventually(lambda: not foreign.exists("d/old"), seconds=40)
    with proxy.broken(Hang(), on("COPY")):
        assert stopped(proxy, signal.SIGINT, "mv", here / "e", here / "f") == -signal.SIGINT
    proxy.drop_connections()
    wholes = (["e/one", "e/two"], ["f/one", "f/two"])
    eventually(lambda: foreign.keys("e/") + foreign.keys("f/") in wholes, seconds=40)
    assert {path.name: path.read_bytes() for path in here.glob("[ef]/*")} == {"one": b"1", "two": b"2"}


@pytest.mark.promise(11)
def test_umount_waits_for_the_end_of_what_goes_on_for_a_program_that_was_stopped(
    drive: Drive, proxy: Proxy, foreign: Foreign
) -> None:
    here = drive.mount.path
    with proxy.broken(Hang(), on("COPY")):
        assert stopped(proxy, signal.SIGINT, "mv", here / "e", here / "f") == -signal.SIGINT
    with subprocess.Popen(["fusermount3", "-u", here]) as detaching:
        assert detaching.wait(END) == 0
    eventually(lambda: status(drive).state is MountPhase.DRAINING)
    assert status(drive).pending_files == 1
    proxy.drop_connections()
    assert drive.mount._process is not None
    assert drive.mount._process.wait(2 * END) == 0
    assert foreign.keys("e/") + foreign.keys("f/") == ["f/one", "f/two"]


def test_a_program_that_heeds_the_signal_is_told_eintr_and_may_go_on(drive: Drive, proxy: Proxy) -> None:
    """And signals by which nobody wants it to end do not disturb it."""
    program = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGTERM, lambda *_: print('heeded', flush=True))\n"
        "signal.signal(signal.SIGALRM, lambda *_: None)\n"
        "signal.setitimer(signal.ITIMER_REAL, 0.2, 0.2)\n"
        "file = os.open(sys.argv[1], os.O_RDONLY)\n"
        "print(len(os.read(file, 100)), flush=True)\n"
    )
    path = drive.mount.path / "d/file"
    os.listdir(path.parent)
    with (
        proxy.broken(Hang(), on("GET", "HEAD")),
        subprocess.Popen(["python3", "-c", program, path], stdout=subprocess.PIPE, text=True) as process,
    ):
        eventually(lambda: proxy.count("GET", "HEAD") > 0)
        time.sleep(2 * PATIENT)
        assert process.poll() is None, "SIGALRM ended it"
        process.terminate()
        assert process.stdout is not None
        assert process.stdout.readline() == "heeded\n", "it would not run while its system call waits"
        proxy.heal()
        proxy.drop_connections()
        assert process.stdout.readline() == "100\n", "Python tries again, PEP 475"


def test_a_second_program_that_waits_for_the_same_goes_on(drive: Drive, proxy: Proxy) -> None:
    path = drive.mount.path / "d/file"
    os.listdir(path.parent)
    with proxy.broken(Hang(), on("GET", "HEAD")), subprocess.Popen(["cat", path], stdout=subprocess.PIPE) as other:
        eventually(lambda: proxy.count("GET", "HEAD") > 0)
        time.sleep(0.2)
        with subprocess.Popen(["cat", path], stdout=subprocess.PIPE) as process:
            time.sleep(2 * PATIENT)
            process.kill()
            assert process.wait(END) == -signal.SIGKILL
        assert other.poll() is None
        proxy.heal()
        proxy.drop_connections()
        assert other.communicate(timeout=60)[0] == b"x" * 10_000


def test_the_status_answers_whatever_hangs(drive: Drive, proxy: Proxy) -> None:
    """The kernel looks up one name of a directory at a time: that of the status must not be one it asks for."""
    eventually(lambda: status(drive).state is MountPhase.MOUNTED)
    with proxy.broken(Hang(), on()):
        stuck = [
            subprocess.Popen(["stat", drive.mount.path / name], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            for name in ("unknown", "d")
        ]
        time.sleep(1)
        shown = subprocess.run(
            ["cat", drive.mount.path / ".sosfs/status"], capture_output=True, timeout=END, check=True
        )
        assert b'"state": "mounted"' in shown.stdout
        assert subprocess.run(["cat", drive.mount.path / ".sosfs/metrics"], capture_output=True, timeout=END).stdout
        assert status(drive).state.value == "mounted"
        for process in stuck:
            process.kill()
        for process in stuck:
            process.wait(END)


def test_who_waits_is_let_go_when_the_daemon_is_killed(drive: Drive, proxy: Proxy) -> None:
    """Nothing of the daemon's may wait for its own mount: the kernel could not tell anybody that it is gone."""
    with proxy.broken(Hang(), on()):
        stuck = [
            subprocess.Popen(["stat", drive.mount.path / name], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            for name in ("unknown", "d")
        ]
        eventually(lambda: proxy.count() > 0)
        os.kill(drive.mount.pid, signal.SIGKILL)
        for process in stuck:
            assert process.wait(END) == 1
        eventually(lambda: not drive.mount.running)


def test_sighup_reads_key_and_log_level_again(mounter: Mounter, foreign: Foreign, proxy: Proxy) -> None:
    drive = mounter(proxy.endpoint)
    settings = drive.mount.home / ".config/sosfs/sosfs.toml"
    settings.parent.mkdir(parents=True)
    settings.write_text('log_level = "debug"\n')
    os.kill(drive.mount.pid, signal.SIGHUP)
    eventually(lambda: "the key was read again, and the log level: debug" in drive.mount.log)
    (drive.here / "file").write_bytes(b"x")
    assert (drive.here / "file").read_bytes() == b"x" and foreign.get("file") == b"x"


def test_sigusr1_writes_what_is_under_way_to_the_log(drive: Drive, proxy: Proxy) -> None:
    os.listdir(drive.mount.path / "d")
    proxy.reset()
    with (
        proxy.broken(Hang(), on("GET", "HEAD")),
        subprocess.Popen(["cat", drive.mount.path / "d/file"], stdout=subprocess.DEVNULL) as process,
    ):
        eventually(lambda: proxy.count("GET", "HEAD") > 0)
        os.kill(drive.mount.pid, signal.SIGUSR1)
        eventually(lambda: "KernelRequests.watch" in drive.mount.log)
        assert f"for cat (pid {process.pid})" in drive.mount.log or "d/file" in drive.mount.log
        assert " s, " in drive.mount.log
        process.kill()
    assert drive.mount.running


def test_a_request_that_waits_too_long_has_the_log_told_all_that_waits(
    mounter: Mounter, foreign: Foreign, proxy: Proxy
) -> None:
    foreign.put_all({"d/file": b"x", "d/other": b"y"})
    drive = mounter(proxy.endpoint, "--slow-request", "1")
    drive.mount.allow_log("WARNING")
    assert (drive.here / "d/other").read_bytes() == b"y"
    assert "is not answered" not in drive.mount.log
    with (
        proxy.broken(Hang(), on("GET", "HEAD")),
        subprocess.Popen(["cat", drive.here / "d/file"], stdout=subprocess.DEVNULL) as process,
    ):
        eventually(lambda: "KernelRequests.watch" in drive.mount.log)
        told = drive.mount.log
        process.kill()
    (first,) = re.findall(r"WARNING .*: (\w+) is not answered for", told)
    assert re.search(rf"WARNING .*: request {first}, \d+\.\d s, (for cat \(pid {process.pid}\)|.*/d/file)", told)
    assert re.search(r"WARNING .*: task .*, \d+\.\d s, .* > ", told), "each task with where it waits"


def test_umount_ends_when_all_is_stored_though_another_namespace_keeps_the_mount(
    mounter: Mounter, foreign: Foreign
) -> None:
    """A container or a unit with PrivateMounts= that was started while it was mounted."""
    drive = mounter("", "--durability", "journal")
    script = f"{alone(drive.mount.base)}; exec sleep 600"
    with subprocess.Popen(["unshare", "-m", "--propagation", "private", "sh", "-c", script]) as keeper:
        try:
            eventually(lambda: Path(f"/proc/{keeper.pid}/comm").read_text() == "sleep\n")
            device = f"{os.major(drive.here.stat().st_dev)}:{os.minor(drive.here.stat().st_dev)}"
            eventually(lambda: f" {device} " in Path(f"/proc/{keeper.pid}/mountinfo").read_text())
            for number in range(20):
                (drive.here / f"file{number}").write_bytes(b"x" * 100_000)
            done = run_sosfs(["umount", drive.mount.path], drive.mount.environment)
            assert done.returncode == 0, done.stderr
            assert f"sleep (pid {keeper.pid})" in done.stderr
            assert len(foreign.keys()) == 20
        finally:
            keeper.kill()
    assert drive.mount._process is not None
    assert drive.mount._process.wait(END) == 0, "it ends when nobody keeps it"
