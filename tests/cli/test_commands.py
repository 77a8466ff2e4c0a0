"""The commands as a user types them: exit codes, the one line that says what failed, and how a mount begins and ends.

The mounts are real; what is mounted is `tests.support.standin`.
"""

from __future__ import annotations

import contextlib
import email.utils
import errno
import http.server
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import sosfs
from sosfs.config.parameters import Settings
from sosfs.daemon import mountpoint
from sosfs.daemon.launch import Exit
from sosfs.daemon.mountpoint import StartError
from sosfs.ipc import status
from sosfs.ipc.status import MountPhase
from tests.support.mounting import ROOT
from tests.support.waiting import SECONDS, alive, until
from tests.support.watchdog import clear, mounted

SECRET = "hush-hush-hush"
Done = subprocess.CompletedProcess[str]


class Desk:
    """A user with a home, a key and an empty mount point, who types commands."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.path = base / "mnt"
        self.log = base / "log"
        (base / "home").mkdir()
        self.path.mkdir()
        self.environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(base / "home"),
            "LANG": "C.UTF-8",
            "PYTHONPATH": str(ROOT),
            "EXOSCALE_API_KEY": "EXOtest",
            "EXOSCALE_API_SECRET": SECRET,
        }
        self._begun: list[subprocess.Popen[str]] = []

    def begin(self, *arguments: str | Path, orders: Mapping[str, Any] | None = None, **more: Any) -> Any:
        """Begins a command and returns its process."""
        command = [sys.executable, "-m", "tests.support.standin", *map(str, arguments)]
        environ = self.environ | {"STANDIN": json.dumps(orders or {})}
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen(command, **{"env": environ, "cwd": self.base, **streams, **more})
        self._begun.append(process)
        return process

    def run(self, *arguments: str | Path, orders: Mapping[str, Any] | None = None) -> Done:
        """Runs a command to its end, which is when all it has given its output streams to has let go of them."""
        process = self.begin(*arguments, orders=orders)
        out, err = process.communicate(timeout=SECONDS)
        return Done(process.args, process.returncode, out, err)

    def mount(self, *options: str, orders: Mapping[str, Any] | None = None) -> Done:
        """Mounts in the background, logging into a file."""
        where = ("--endpoint", "http://127.0.0.1:1", "--log-file", str(self.log))
        return self.run("mount", "bucket", self.path, *where, *options, orders=orders)

    @property
    def pid(self) -> int:
        """The daemon's."""
        now = status.fetch(self.path)
        assert now is not None
        return now.pid

    @contextmanager
    def draining(self) -> Iterator[Path]:
        """Orders that hold the drain up until the file that is given is removed."""
        subtree_lock = self.base / "gate"
        subtree_lock.touch()
        try:
            yield subtree_lock
        finally:
            subtree_lock.unlink(missing_ok=True)

    def clear(self) -> None:
        """Ends all that a failed test may have left."""
        for process in self._begun:
            process.kill()
            process.communicate()
        (self.base / "gate").unlink(missing_ok=True)
        now = status.fetch(self.path)
        if now is not None:
            clear(now.pid, str(self.path))
        elif mounted(self.path):
            mountpoint.detach(self.path, mountpoint.Detach.LAZY)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    desk.clear()


@contextmanager
def stopped(pid: int) -> Iterator[int]:
    """A daemon that answers nothing meanwhile."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGCONT)


def watches(pid: int) -> bool:
    """Whether a process waits for the end of another."""
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed since it was listed
            if str(entry.readlink()) == "anon_inode:[pidfd]":
                return True
    return False


class TestUsage:
    def test_version(self, desk: Desk) -> None:
        assert desk.run("--version").stdout == f"sosfs {sosfs.__version__}\n"

    @pytest.mark.parametrize(
        "arguments",
        [
            (),
            ("fly",),
            ("mount",),
            ("mount", "bucket", "/mnt", "third"),
            ("mount", "", "/mnt"),
            ("mount", "bucket", "/mnt", "--ttl", "soon"),
            ("mount", "bucket", "/mnt", "-o", "ttl"),
            ("mount", "/prefix", "/mnt"),
            ("mount", "bucket", "/mnt", "--endpoint", "localhost"),
        ],
    )
    def test_wrong_usage_is_2(self, desk: Desk, arguments: Sequence[str]) -> None:
        done = desk.run(*arguments)
        assert done.returncode == 2
        assert "sosfs" in done.stderr

    def test_bad_settings_file_is_2_and_named(self, desk: Desk) -> None:
        file = desk.base / "home/.config/sosfs/sosfs.toml"
        file.parent.mkdir(parents=True)
        file.write_text("cache = 3\n")
        done = desk.mount()
        assert done.returncode == 2
        assert done.stderr == f"sosfs: {file}: unknown option 'cache'; did you mean 'cache_dir'?\n"

    def test_nothing_heavy_is_loaded_before_the_fork(self) -> None:
        code = "import sys, threading, sosfs.cli.main; print(threading.active_count(), *sys.modules)"
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
        threads, *modules = out.split()
        assert threads == "1"
        assert not {"boto3", "botocore", "pycurl", "pyfuse3", "rich", "sosfs.daemon.mount", "sosfs.s3.bucket"} & set(
            modules
        )


class TestMount:
    def test_returns_when_ready_and_lets_go_of_its_streams(self, desk: Desk) -> None:
        done = desk.mount()
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert mounted(desk.path)
        assert list(desk.path.iterdir()) == []
        daemon = Path(f"/proc/{desk.pid}")
        assert os.getsid(desk.pid) == desk.pid
        assert (daemon / "cwd").readlink() == Path("/")
        assert {(daemon / f"fd/{number}").readlink() for number in range(3)} == {Path("/dev/null")}

    @pytest.mark.parametrize(
        ("orders", "line"),
        [
            ({"refuse": "no such bucket: bucket"}, "sosfs: no such bucket: bucket\n"),
            ({"error": errno.ECONNREFUSED}, "sosfs: the endpoint: Connection refused\n"),
        ],
    )
    @pytest.mark.parametrize("options", [(), ("-f",)])
    def test_failure_is_one_line(
        self, desk: Desk, orders: Mapping[str, Any], line: str, options: Sequence[str]
    ) -> None:
        done = desk.mount(*options, orders=orders)
        assert (done.returncode, done.stdout, done.stderr) == (1, "", line)
        assert not mounted(desk.path)

    def test_death_before_ready_is_told_with_the_place_of_the_log(self, desk: Desk) -> None:
        done = desk.mount(orders={"die": signal.SIGKILL})
        assert done.returncode == 1
        assert done.stderr == (f"sosfs: the mount process ended before it was ready (SIGKILL); see {desk.log}\n")

    def test_a_bug_before_ready_is_in_the_log(self, desk: Desk) -> None:
        done = desk.mount(orders={"bug": "by nought"})
        assert done.returncode == 1
        assert f"(exit code 1); see {desk.log}" in done.stderr
        assert "ZeroDivisionError: by nought" in desk.log.read_text()

    def test_interrupt_while_it_starts_leaves_nothing(self, desk: Desk) -> None:
        pids = desk.base / "pid"
        process = desk.begin("mount", "bucket", desk.path, orders={"hang": str(pids)})
        until(lambda: pids.exists() and pids.read_text(), "the daemon starts")
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) == 130
        assert not alive(int(pids.read_text()))

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
    def test_who_is_killed_while_it_starts_gets_no_mount_later(self, desk: Desk, number: signal.Signals) -> None:
        pids = desk.base / "pid"
        process = desk.begin("mount", "bucket", desk.path, orders={"hang": str(pids)})
        until(lambda: pids.exists() and pids.read_text(), "the daemon starts")
        process.send_signal(number)
        assert process.wait(SECONDS) == -number
        until(lambda: not alive(int(pids.read_text())), "the daemon ends")

    @pytest.mark.parametrize("options", [(), ("-f",)])
    def test_who_waits_is_told_for_what(self, desk: Desk, options: Sequence[str]) -> None:
        orders = {"hang": str(desk.base / "pid"), "slow": 0.1}
        process = desk.begin("mount", "bucket", desk.path, "--endpoint", "http://127.0.0.1:1", *options, orders=orders)
        assert process.stderr.readline() == "sosfs: connecting to 127.0.0.1:1 ...\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) in (130, -signal.SIGINT)

    def test_interrupt_while_it_forks_is_heeded(self, desk: Desk) -> None:
        pids = desk.base / "pid"
        process = desk.begin("mount", "bucket", desk.path, orders={"hang": str(pids), "interrupt": True})
        assert process.wait(SECONDS) == 130
        assert not pids.exists() or not alive(int(pids.read_text()))

    def test_no_key_is_one_line(self, desk: Desk) -> None:
        del desk.environ["EXOSCALE_API_KEY"]
        done = desk.mount()
        assert done.returncode == 1
        assert re.fullmatch(r"sosfs: no credentials: .*\n", done.stderr)

    @pytest.mark.parametrize("name", ["ch-dk2", "moon"])
    def test_odd_zone_is_a_warning(self, desk: Desk, name: str) -> None:
        done = desk.run("mount", "bucket", desk.path, "--zone", name, "--log-file", desk.log)
        assert done.returncode == 0
        assert "does not look like a zone" in done.stderr
        now = status.fetch(desk.path)
        assert now is not None
        assert now.endpoint == f"https://sos-{name}.exo.io"

    def test_fallback_log_is_beside_the_socket(self, desk: Desk) -> None:
        """Where there is no system log, as in a container."""
        code = (
            "import sys; from pathlib import Path; from sosfs.daemon import launch as daemon;"
            "daemon.SYSTEM_LOG = Path('/nonexistent');"
            f"from sosfs.config.parameters import Settings; s = Settings('b', '', Path({str(desk.path)!r}));"
            "print(daemon.log_place(s)); daemon._log_to(*daemon._daemon_handler(s), s);"
            "daemon.log.warning('it is written')"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], env=desk.environ, cwd=ROOT, capture_output=True, text=True, check=True
        )
        path = status.log_path(desk.path)
        assert done.stdout == f"{path}\n"
        assert "WARNING [-] sosfs.daemon.launch: it is written" in path.read_text()
        path.unlink()


class TestMountPoint:
    def test_missing(self, desk: Desk) -> None:
        desk.path.rmdir()
        assert desk.mount().stderr == f"sosfs: no such mount point: {desk.path}\n"

    def test_not_a_directory(self, desk: Desk) -> None:
        desk.path.rmdir()
        desk.path.touch()
        assert desk.mount().stderr == f"sosfs: mount point is not a directory: {desk.path}\n"

    def test_not_empty(self, desk: Desk) -> None:
        (desk.path / "precious").touch()
        done = desk.mount()
        assert done.returncode == Exit.LASTING
        assert done.stderr.startswith(f"sosfs: mount point is not empty: {desk.path} (it has 'precious'")

    def test_busy(self, desk: Desk) -> None:
        assert desk.mount().returncode == 0
        first = desk.pid
        done = desk.mount()
        assert (done.returncode, done.stderr) == (1, f"sosfs: mount point is busy: {desk.path} has a mount already\n")
        assert desk.pid == first

    def test_busy_with_a_daemon_that_hangs(self, desk: Desk) -> None:
        desk.mount()
        with stopped(desk.pid):
            done = desk.mount()
        assert done.returncode == 1
        assert "has a mount already" in done.stderr
        assert desk.run("umount", desk.path).returncode == 0

    def test_nothing_mounted_cannot_be_remounted(self, desk: Desk) -> None:
        done = desk.run("mount", "-o", "remount,ro", desk.path)
        assert (done.returncode, done.stderr) == (1, f"sosfs: {desk.path}: nothing of sosfs is mounted there\n")

    def test_one_that_hangs_and_is_ended_by_its_manager_says_where(self, desk: Desk) -> None:
        hanging = desk.base / "hanging"
        where = ("mount", "-f", "bucket", desk.path, "--endpoint", "http://127.0.0.1:1")
        process = desk.begin(*where, orders={"hang": str(hanging)})
        until(hanging.exists, "it hangs")
        process.send_signal(signal.SIGABRT)
        _, said = process.communicate(timeout=SECONDS)
        assert process.returncode == -signal.SIGABRT
        assert "Fatal Python error: Aborted" in said and "standin.py" in said

    @pytest.mark.promise(12)
    def test_a_dead_mount_stays_where_the_next_cannot_begin(self, desk: Desk) -> None:
        """An empty directory in its place would look like an empty bucket."""
        assert desk.mount().returncode == 0
        os.kill(desk.pid, signal.SIGKILL)
        until(lambda: mountpoint.state(desk.path) is mountpoint.MountState.DEAD, "the daemon dies")
        assert desk.mount(orders={"refuse": "no"}).returncode == 1
        with pytest.raises(OSError, match="not connected"):
            next(desk.path.iterdir())

    @pytest.mark.promise(12)
    def test_a_dead_mount_is_cleared_first(self, desk: Desk) -> None:
        assert desk.mount().returncode == 0
        dead = desk.pid
        os.kill(dead, signal.SIGKILL)
        until(lambda: not alive(dead), "the daemon dies")
        with pytest.raises(OSError, match="not connected"):
            next(desk.path.iterdir())
        assert desk.mount().returncode == 0
        assert desk.pid != dead
        assert [mount.mountpoint for mount in mountpoint.table()].count(desk.path) == 1

    def test_links_and_relative_paths_are_one_mount(self, desk: Desk) -> None:
        (desk.base / "link").symlink_to("mnt")
        assert desk.run("mount", "bucket", "./link", "--log-file", desk.log).returncode == 0
        assert mounted(desk.path)
        assert desk.run("status", desk.base / "link").returncode == 0
        assert desk.run("umount", "link/").returncode == 0

    def test_spaces_and_other_letters(self, desk: Desk) -> None:
        path = desk.base / "größe und\tmaß \\ x"
        path.mkdir()
        assert desk.run("mount", "bucket", path, "--log-file", desk.log).returncode == 0
        assert mountpoint.state(path) is mountpoint.MountState.LIVE
        assert desk.run("umount", path).returncode == 0
        assert mountpoint.state(path) is mountpoint.MountState.FREE

    def test_fuse_missing(self, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(mountpoint, "FUSE_DEVICE", Path("/nonexistent/fuse"))
        with pytest.raises(StartError, match="modprobe fuse"):
            mountpoint.prepare(Settings("b", "", desk.path))

    def test_fusermount_missing(self, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", str(desk.base))
        with pytest.raises(StartError, match="install the package fuse3"):
            mountpoint.prepare(Settings("b", "", desk.path))

    @pytest.mark.parametrize(
        ("text", "allowed"),
        [("user_allow_other\n", True), ("#user_allow_other\n", False), ("mount_max = 3\n user_allow_other", True)],
    )
    def test_allow_other_of_a_user(self, desk: Desk, monkeypatch: pytest.MonkeyPatch, text: str, allowed: bool) -> None:
        settings = desk.base / "fuse.conf"
        settings.write_text(text)
        monkeypatch.setattr(mountpoint, "FUSE_SETTINGS", settings)
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        if allowed:
            mountpoint.prepare(Settings("b", "", desk.path, allow_other=True))
        else:
            with pytest.raises(StartError, match="user_allow_other"):
                mountpoint.prepare(Settings("b", "", desk.path, allow_other=True))


class TestWords:
    """The bucket may be left out, and options may stand between the words."""

    @pytest.mark.parametrize(
        ("words", "bucket"),
        [
            (("bucket", "--ttl", "3", "DIR", "--umask", "077"), "bucket"),
            (("--ttl", "3", "bucket", "DIR"), "bucket"),
            (("bucket", "DIR", "--ttl", "3"), "bucket"),
            (("DIR", "--ttl", "3"), ""),
            (("--ttl", "3", "DIR"), ""),
            (("sos://", "DIR", "--ttl", "3"), ""),
        ],
    )
    def test_in_any_order(self, desk: Desk, words: tuple[str, ...], bucket: str) -> None:
        placed = [desk.path if word == "DIR" else word for word in words]
        done = desk.run("mount", *placed, "--endpoint", "http://127.0.0.1:1", "--log-file", str(desk.log))
        assert (done.returncode, done.stderr) == (0, "")
        now = status.fetch(desk.path)
        assert now is not None
        assert now.bucket == bucket


class TestForeground:
    def test_tells_the_service_manager_and_logs_to_the_terminal(self, desk: Desk) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(str(desk.base / "notify"))
            manager.settimeout(SECONDS)
            desk.environ["NOTIFY_SOCKET"] = str(desk.base / "notify")
            process = desk.begin("mount", "-f", "bucket/photos", desk.path)
            told = manager.recv(4096).decode()
        assert told == f"READY=1\nSTATUS=bucket/photos/ at {desk.path}"
        assert desk.pid == process.pid
        assert mounted(desk.path)
        assert desk.run("umount", desk.path).returncode == 0
        assert process.wait(SECONDS) == 0


class TestUmount:
    def test_clean(self, desk: Desk) -> None:
        desk.mount()
        pid = desk.pid
        done = desk.run("umount", desk.path)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert not mounted(desk.path)
        assert not alive(pid)
        assert status.fetch(desk.path) is None
        assert status.read_last(desk.path) is None

    def test_waits_for_the_drain(self, desk: Desk) -> None:
        with desk.draining() as subtree_lock:
            desk.mount(orders={"gate": str(subtree_lock)})
            process = desk.begin("umount", desk.path)
            until(lambda: (now := status.fetch(desk.path)) and now.state is MountPhase.DRAINING, "the drain begins")
            assert not mounted(desk.path)
            assert process.poll() is None
            subtree_lock.unlink()
            out, err = process.communicate(timeout=SECONDS)
        assert (process.returncode, out, err) == (0, "", "")

    def test_time_runs_out_and_a_second_umount_waits_on(self, desk: Desk) -> None:
        with desk.draining() as subtree_lock:
            desk.mount(orders={"gate": str(subtree_lock)})
            pid = desk.pid
            done = desk.run("umount", desk.path, "--timeout", "0.5")
            assert done.returncode == 3
            assert (
                done.stderr
                == "sosfs: time ran out: 1 file (1.0 MB) not in the bucket yet; the daemon goes on sending\n"
            )
            assert alive(pid)
            process = desk.begin("umount", desk.path)
            until(lambda: watches(process.pid), "the second umount waits")
            subtree_lock.unlink()
            assert process.wait(SECONDS) == 0
        assert not alive(pid)

    def test_a_bar_on_a_terminal(self, desk: Desk) -> None:
        ours, theirs = pty.openpty()
        with desk.draining() as subtree_lock:
            desk.mount(orders={"gate": str(subtree_lock)})
            process = desk.begin("umount", desk.path, stderr=theirs)
            os.close(theirs)
            seen = ""
            while not re.search("sending, 1 file left .*/1.0 MB", seen):
                seen += os.read(ours, 4096).decode()
            subtree_lock.unlink()
            assert process.wait(SECONDS) == 0
        os.close(ours)

    def test_left_over_is_3_with_the_reason(self, desk: Desk) -> None:
        desk.mount(orders={"left": 2})
        done = desk.run("umount", desk.path)
        assert done.returncode == 3
        assert done.stderr == "sosfs: 2 files (2.1 MB) not in the bucket\n  a.txt: AccessDenied\n"

    def test_an_end_without_a_word_is_3(self, desk: Desk) -> None:
        desk.mount(orders={"left": 1})
        assert desk.run("umount", desk.path).returncode == 3  # leaves a last word, which is not the next daemon's
        desk.mount(orders={"silent": True})
        done = desk.run("umount", desk.path)
        assert done.returncode == 3
        assert "unknown" in done.stderr

    def test_a_daemon_killed_while_it_drains_is_3(self, desk: Desk) -> None:
        with desk.draining() as subtree_lock:
            desk.mount(orders={"gate": str(subtree_lock)})
            process = desk.begin("umount", desk.path)
            until(lambda: not mounted(desk.path), "the unmount")
            os.kill(desk.pid, signal.SIGKILL)
            assert process.wait(SECONDS) == 3

    def test_a_dead_mount_is_cleared_with_3(self, desk: Desk) -> None:
        desk.mount()
        pid = desk.pid
        os.kill(pid, signal.SIGKILL)
        until(lambda: not alive(pid), "the daemon dies")
        done = desk.run("umount", desk.path)
        assert done.returncode == 3
        assert "unknown" in done.stderr
        assert not mounted(desk.path)

    def test_a_dead_mount_that_is_in_use_is_cleared_too(self, desk: Desk) -> None:
        desk.mount()
        pid = desk.pid
        with subprocess.Popen(["sleep", "100"], cwd=desk.path) as worker:
            os.kill(pid, signal.SIGKILL)
            until(lambda: not alive(pid), "the daemon dies")
            done = desk.run("umount", desk.path)
            worker.kill()
        assert done.returncode == 3
        assert not mounted(desk.path)

    def test_a_mount_whose_daemon_hangs_is_taken_off_with_3(self, desk: Desk) -> None:
        desk.mount()
        with stopped(desk.pid) as pid:
            done = desk.run("umount", desk.path)
        assert done.returncode == 3
        assert "unknown" in done.stderr
        assert not mounted(desk.path)
        until(lambda: not alive(pid), "the daemon goes on, and ends")

    def test_busy_names_who_holds_it(self, desk: Desk) -> None:
        desk.mount()
        pid = desk.pid
        with subprocess.Popen(["sleep", "100"], cwd=desk.path) as worker:
            opened = os.open(desk.path, os.O_RDONLY)
            try:
                done = desk.run("umount", desk.path)
            finally:
                os.close(opened)
                worker.kill()
        assert done.returncode == 1
        assert f"sosfs: {desk.path}: busy: " in done.stderr
        assert f"sleep (pid {worker.pid}) works in it" in done.stderr
        assert f"(pid {os.getpid()}) has {desk.path} open" in done.stderr
        assert mounted(desk.path)
        assert desk.pid == pid
        assert desk.run("umount", desk.path).returncode == 0

    def test_nothing_mounted(self, desk: Desk) -> None:
        done = desk.run("umount", desk.path)
        assert (done.returncode, done.stderr) == (1, f"sosfs: {desk.path}: nothing of sosfs is mounted there\n")

    def test_another_file_system_is_left_alone(self, desk: Desk) -> None:
        done = desk.run("umount", "/proc")
        assert (done.returncode, done.stderr) == (1, "sosfs: /proc: not a mount of sosfs\n")
        assert Path("/proc/self").exists()


class TestStatus:
    def test_for_people_and_for_programs(self, desk: Desk) -> None:
        desk.mount()
        lines = desk.run("status", desk.path).stdout.splitlines()
        assert f"mounted    {desk.path}" in lines
        assert f"state      mounted, pid {desk.pid}" in lines
        document = json.loads(desk.run("status", desk.path, "--json").stdout)
        assert (document["bucket"], document["state"], document["pid"]) == ("bucket", "mounted", desk.pid)

    def test_nothing_mounted(self, desk: Desk) -> None:
        assert desk.run("status", desk.path).returncode == 1

    def test_a_dead_daemon(self, desk: Desk) -> None:
        desk.mount()
        pid = desk.pid
        os.kill(pid, signal.SIGKILL)
        until(lambda: not alive(pid), "the daemon dies")
        done = desk.run("status", desk.path)
        assert done.returncode == 1
        assert "'sosfs umount' clears it" in done.stderr


class TestDoctor:
    """What it says of the machine and of an endpoint; `test_doctor` has what it says of a bucket."""

    def test_what_is_wrong_and_what_was_found_without_a_secret(self, desk: Desk) -> None:
        desk.mount()
        done = desk.run("doctor", "--all", "--endpoint", "http://127.0.0.1:1")
        assert done.returncode == 1
        assert re.search(r"^ok +key +environment, EXOSCALE_API_KEY: EXOtest$", done.stdout, re.MULTILINE)
        assert re.findall(r"^FAIL.*", done.stdout, re.MULTILINE) == [
            "FAIL    endpoint               http://127.0.0.1:1 does not answer: connection refused"
            " -> check the network, --endpoint and --zone"
        ]
        assert re.search(rf"^ok +mount +{re.escape(str(desk.path))}: bucket, mounted", done.stdout, re.MULTILINE)
        assert done.stdout.splitlines()[-1] == (
            "1 problem, first: endpoint: http://127.0.0.1:1 does not answer: connection refused"
        )
        silent = desk.run("doctor", "bucket", desk.base, "--endpoint", "http://127.0.0.1:1")
        assert not re.search(r"^\w+ +mount  ", silent.stdout, re.MULTILINE), "of other mounts it tells with --all"
        assert SECRET not in done.stdout + done.stderr

    @pytest.mark.parametrize(
        ("skew", "verdict"), [(0, "ok"), (-300, "warning"), (30, "warning"), (3600, "FAIL"), (-3600, "FAIL")]
    )
    def test_clock(self, desk: Desk, skew: int, verdict: str) -> None:
        with served(403, skew) as endpoint:
            done = desk.run("doctor", "bucket", "--endpoint", endpoint)
        (line,) = re.findall(r"^.* clock .*", done.stdout, re.MULTILINE)
        assert line.startswith(f"{verdict} "), done.stdout
        if skew:
            assert re.search("ahead of the server's" if skew < 0 else "behind the server's", line)
        if verdict == "FAIL":
            assert done.returncode == 1
            assert done.stdout.count("\nFAIL ") == 1, "one clear line"

    def test_no_key(self, desk: Desk) -> None:
        desk.environ["EXOSCALE_API_KEY"] = ""
        done = desk.run("doctor")
        assert done.returncode == 1
        assert "the key is not set" in done.stdout
        assert done.stdout.count("\nFAIL ") == 1
        assert SECRET not in done.stdout

    def test_a_command_that_gives_the_secret_runs_once(self, desk: Desk) -> None:
        del desk.environ["EXOSCALE_API_KEY"]
        ran, file = desk.base / "ran", desk.base / "home/.config/exoscale/exoscale.toml"
        file.parent.mkdir(parents=True)
        command = ["sh", "-c", f"echo >> {ran}; echo {SECRET}"]
        file.write_text(f'[[accounts]]\nname = "work"\nkey = "EXOwork"\nsecretCommand = {json.dumps(command)}\n')
        done = desk.run("doctor", "--endpoint", "http://127.0.0.1:1")
        assert "account work: EXOwork" in done.stdout
        assert SECRET not in done.stdout + done.stderr
        assert ran.read_text() == "\n"

    def test_the_mount_point(self, desk: Desk) -> None:
        nowhere = ("--endpoint", "http://127.0.0.1:1")
        assert f"{desk.path} can be used" in desk.run("doctor", "bucket", desk.path, *nowhere).stdout
        (desk.path / "precious").touch()
        assert "FAIL    mount point            mount point is not empty" in (
            desk.run("doctor", "bucket", desk.path, *nowhere).stdout
        )
        (desk.path / "precious").unlink()
        desk.mount()
        assert "has a mount already" in desk.run("doctor", "bucket", desk.path, *nowhere).stdout
        pid = desk.pid
        os.kill(pid, signal.SIGKILL)
        until(lambda: not alive(pid), "the daemon dies")
        assert "a dead mount" in desk.run("doctor", "bucket", desk.path, *nowhere).stdout
        assert mountpoint.state(desk.path) is mountpoint.MountState.DEAD, "it only looks"

    def test_the_machine(self, desk: Desk) -> None:
        desk.environ["PATH"] = str(desk.base)
        in_the_way = desk.base / "file"
        in_the_way.touch()
        done = desk.run("doctor", "bucket", "--endpoint", "http://127.0.0.1:1", "--cache-dir", in_the_way)
        assert re.search(r"^FAIL +FUSE helper .*install the package fuse3$", done.stdout, re.MULTILINE)
        assert re.search(r"^FAIL +state directory .*name another one with --cache-dir$", done.stdout, re.MULTILINE)

    def test_a_table_on_a_terminal(self, desk: Desk) -> None:
        ours, theirs = pty.openpty()
        process = desk.begin("doctor", "--endpoint", "http://127.0.0.1:1", stdout=theirs)
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # EIO: the other end is closed
            while part := os.read(ours, 4096):
                shown += part
        os.close(ours)
        assert process.wait(SECONDS) == 1
        assert b"\x1b[1;31mFAIL" in shown
        assert b"does not answer" in shown


@contextmanager
def served(code: int, skew: int) -> Iterator[str]:
    """A server that answers all with one status, by a clock that is wrong."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(code)
            self.end_headers()

        def date_time_string(self, timestamp: float | None = None) -> str:
            return email.utils.formatdate(time.time() + skew, usegmt=True)

        def log_message(self, *_: object) -> None:
            return

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


class TestFstab:
    def test_as_mount_calls_it(self, desk: Desk) -> None:
        options = f"rw,_netdev,nofail,x-systemd.automount,noatime,user,log_file={desk.log},zone=ch-gva-2"
        done = desk.run("mount.sosfs", "bucket/p", desk.path, "-n", "-v", "-o", options)
        assert (done.returncode, done.stderr) == (0, "")
        now = status.fetch(desk.path)
        assert now is not None
        assert (now.prefix, now.endpoint) == ("p/", "https://sos-ch-gva-2.exo.io")

    def test_all_buckets(self, desk: Desk) -> None:
        done = desk.run("mount.sosfs", "sos://", desk.path, "-o", f"log_file={desk.log},endpoint=http://127.0.0.1:1")
        assert (done.returncode, done.stderr) == (0, "")
        now = status.fetch(desk.path)
        assert now is not None
        assert (now.bucket, now.prefix) == ("", "")

    def test_fake(self, desk: Desk) -> None:
        assert desk.run("mount.sosfs", "bucket", desk.path, "-f", "-o", "defaults").returncode == 0
        assert not mounted(desk.path)

    def test_unknown_option(self, desk: Desk) -> None:
        done = desk.run("mount.sosfs", "bucket", desk.path, "-o", "rw,allow_othr")
        assert (done.returncode, done.stderr) == (
            1,
            "sosfs: -o: unknown option 'allow_othr'; did you mean 'allow_other'?\n",
        )

    def test_failure_is_32(self, desk: Desk) -> None:
        done = desk.run("mount.sosfs", "bucket", desk.path, orders={"refuse": "no such bucket: bucket"})
        assert (done.returncode, done.stderr) == (32, "sosfs: no such bucket: bucket\n")
