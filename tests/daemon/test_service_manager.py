"""The Debian package on a machine with a real systemd: mounts by fstab and by the units, crashes, removal.

`SOSFS_DEB` names a package that was built already, which spares the minutes that building it takes.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.support import machine as machines
from tests.support.faults import Hang
from tests.support.foreign import Foreign
from tests.support.machine import Machine
from tests.support.mounting import ROOT
from tests.support.proxy import Proxy
from tests.support.servers import Server, client_of
from tests.support.traffic import Op, on
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(900)
BUILD_SECONDS = 800.0
BODY = b"through the whole way\n"
OF_READERS = frozenset({Op.LIST, Op.GET, Op.HEAD})
# What a mount asks before it is there, one after the other, beside a LIST: each costs a round trip after a crash.
START_REQUESTS = 20
# Looks into a directory without pause until it is told to end, and tells each different thing that it has seen.
PROBER = """
import errno, os, sys
directory, end = sys.argv[1:]
seen = set()
while not os.path.exists(end):
    try:
        seen.add(" ".join(sorted(os.listdir(directory))) or "nothing")
    except OSError as error:
        seen.add(errno.errorcode[error.errno])
print(*sorted(seen), sep="\\n")
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make deb` makes."""
    if missing := machines.unavailable():
        pytest.skip(missing)
    if built := os.environ.get("SOSFS_DEB"):
        return Path(built)
    source = tmp_path_factory.mktemp("package") / "source"
    leave_out = shutil.ignore_patterns(
        ".git", ".venv", ".*_cache", "__pycache__", "*.egg-info", "build", "dist", "results"
    )
    shutil.copytree(ROOT, source, ignore=leave_out)
    done = subprocess.run(
        ["make", "-C", source, "deb"], capture_output=True, text=True, timeout=BUILD_SECONDS, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "DEPRECATION" not in done.stdout + done.stderr
    (built_now,) = (source / "dist").glob("sosfs_*.deb")
    return built_now


def install(machine: Machine, package: Path) -> None:
    shutil.copy(package, machine.root / "root/sosfs.deb")
    machine.run("dpkg", "--install", "/root/sosfs.deb")
    machine.run("chmod", "666", "/dev/fuse")


@pytest.fixture(scope="module")
def machine(package: Path) -> Iterator[Machine]:
    with Machine() as machine:
        install(machine, package)
        yield machine


class Service:
    """A unit `sosfs@NAME` with a bucket and a mount point of its own."""

    def __init__(self, machine: Machine, server: Server, endpoint: str) -> None:
        self.machine = machine
        self.name = f"b{uuid.uuid4().hex[:12]}"
        self.unit = f"sosfs@{self.name}.service"
        self.path = f"/mnt/{self.name}"
        self.foreign = Foreign(client_of(server), self.name)
        self.foreign.client.create_bucket(Bucket=self.name)
        self.foreign.put_all({"hello.txt": BODY})
        self.configuration = (
            f"BUCKET={self.name}\nMOUNTPOINT={self.path}\n"
            f"OPTIONS=--endpoint {endpoint} --durability journal --allow-other\n"
            f"EXOSCALE_API_KEY={server.key}\nEXOSCALE_API_SECRET={server.secret}\n"
        )
        self.configure(self.configuration)
        machine.run("mkdir", self.path)

    def configure(self, text: str) -> None:
        file = self.machine.root / "etc/sosfs" / f"{self.name}.conf"
        file.write_text(text)
        file.chmod(0o600)

    def start(self) -> None:
        done = self.machine.run("systemctl", "start", self.unit, fails=True)
        assert done.returncode == 0, done.stderr + self.machine.log(self.unit)

    @property
    def pid(self) -> int:
        """The daemon's, in the machine; 0 where there is none."""
        return int(self.machine.show(self.unit, "MainPID"))

    @property
    def restarts(self) -> int:
        return int(self.machine.show(self.unit, "NRestarts"))

    def read(self, name: str, *, fails: bool = False) -> bytes:
        return self.machine.run("cat", f"{self.path}/{name}", fails=fails).stdout.encode()

    def stop(self) -> None:
        self.machine.run("systemctl", "stop", self.unit, fails=True)
        self.machine.run("umount", "--lazy", "--internal-only", self.path, fails=True)


@pytest.fixture
def proxy(moto: Server) -> Iterator[Proxy]:
    with Proxy(moto.endpoint) as proxy:
        yield proxy


@pytest.fixture
def service(machine: Machine, moto: Server, proxy: Proxy) -> Iterator[Service]:
    service = Service(machine, moto, proxy.endpoint)
    yield service
    service.stop()


def test_systemd_understands_the_units(machine: Machine) -> None:
    for manager, unit in (("--system", "system/sosfs@.service"), ("--user", "user/sosfs@.service")):
        command = ["systemd-analyze", manager, "verify", "--man=no", f"/usr/lib/systemd/{unit}"]
        done = machine.run(*command, environ={"XDG_RUNTIME_DIR": "/run"})
        assert done.stderr == ""


def test_the_doctor_says_what_locate_would_read(machine: Machine) -> None:
    file = machine.root / "etc/updatedb.conf"
    for pruned, verdict in (("nfs", "WARN"), ("nfs fuse.sosfs", "ok")):
        file.write_text(f'PRUNE_BIND_MOUNTS="yes"\nPRUNEFS="{pruned}"\n')
        (line,) = [
            line for line in machine.run("sosfs", "doctor", fails=True).stdout.splitlines() if "updatedb" in line
        ]
        assert line.lower().startswith(verdict.lower())


def test_fstab_mounts_once_and_umount_waits(machine: Machine, moto: Server, service: Service) -> None:
    options = f"_netdev,nofail,noatime,endpoint={moto.endpoint}"
    (machine.root / "etc/fstab").write_text(f"{service.name} {service.path} fuse.sosfs {options} 0 0\n")
    keys = {"EXOSCALE_API_KEY": moto.key, "EXOSCALE_API_SECRET": moto.secret}
    for _ in range(2):
        machine.run("mount", "-a", environ=keys)
    assert machine.run("findmnt", "-rno", "SOURCE,FSTYPE", service.path).stdout == f"{service.name} fuse.sosfs\n"
    assert service.read("hello.txt") == BODY
    machine.run("sh", "-c", f"echo written > {service.path}/by-fstab.txt")
    machine.run("mount", "-o", "remount,ro", service.path)
    assert machine.run("touch", f"{service.path}/new", fails=True).stderr.endswith("Read-only file system\n")
    machine.run("umount", service.path)
    assert service.foreign.get("by-fstab.txt") == b"written\n"
    assert machine.run("pgrep", "-f", service.path, fails=True).stdout == ""


@pytest.mark.promise(12)
def test_a_killed_daemon_is_back_with_its_mount_and_journal(machine: Machine, service: Service, proxy: Proxy) -> None:
    """Whoever looks meanwhile is told that the mount is not connected, and is never shown an empty directory."""
    service.start()
    (machine.root / "root/prober.py").write_text(PROBER)
    prober = f"python3 /root/prober.py {service.path} /root/{service.name}.end > /root/{service.name}.seen"
    machine.run("systemd-run", f"--unit=prober-{service.name}", "sh", "-c", prober)
    with proxy.broken(Hang(), on("PUT", key="kept.txt")):
        machine.run("sh", "-c", f"echo kept > {service.path}/kept.txt")
        killed, before = service.pid, len(proxy.requests)
        machine.run("kill", "-KILL", str(killed))
        until(lambda: service.pid not in (0, killed) and service.read("hello.txt", fails=True) == BODY, "it is back")
        asked = [request for request in proxy.requests[before:] if request.op not in OF_READERS]
        assert sum(request.key != "kept.txt" for request in asked) <= START_REQUESTS
        assert service.read("kept.txt") == b"kept\n"
        assert service.foreign.keys() == ["hello.txt"]
    proxy.drop_connections()
    until(lambda: "kept.txt" in list(service.foreign.keys()), "the journal is taken up")
    assert service.foreign.get("kept.txt") == b"kept\n"
    assert service.restarts == 1
    machine.run("touch", f"/root/{service.name}.end")
    seen = machine.root / "root" / f"{service.name}.seen"
    until(lambda: seen.read_text(), "the prober ends")
    assert set(seen.read_text().splitlines()) <= {"hello.txt", "hello.txt kept.txt", "ENOTCONN", "ECONNABORTED"}
    assert "ENOTCONN" in seen.read_text()


@pytest.mark.parametrize("change", ["BUCKET=no-such-bucket-anywhere", "MOUNTPOINT=/mnt/nowhere", "OPTIONS=--nonsense"])
def test_what_no_restart_mends_is_not_tried_again(machine: Machine, service: Service, change: str) -> None:
    service.configure(service.configuration + change + "\n")
    assert machine.run("systemctl", "start", service.unit, fails=True).returncode == 1
    assert machine.show(service.unit, "ActiveState") == "failed"
    assert machine.show(service.unit, "ExecMainStatus") == ("2" if "nonsense" in change else "78")
    assert service.restarts == 0


def test_a_server_that_comes_late_is_waited_for(machine: Machine, service: Service, proxy: Proxy) -> None:
    """More starts than the limit that ends a daemon which cannot live would allow in a row."""
    service.configure(service.configuration.replace(proxy.endpoint, "http://127.0.0.1:1"))
    machine.run("systemctl", "start", "--no-block", service.unit)
    until(lambda: service.restarts >= 2, "it tries again")
    service.configure(service.configuration)
    until(lambda: machine.show(service.unit, "ActiveState") == "active", "it is mounted")
    assert service.read("hello.txt") == BODY


def test_a_daemon_whose_loop_does_not_turn_is_replaced(machine: Machine, service: Service) -> None:
    directory = machine.root / f"etc/systemd/system/{service.unit}.d"
    directory.mkdir()
    (directory / "impatient.conf").write_text("[Service]\nWatchdogSec=2s\nTimeoutAbortSec=1s\n")
    machine.run("systemctl", "daemon-reload")
    service.start()
    first = service.pid

    def heard() -> str:
        return machine.show(service.unit, "WatchdogTimestampMonotonic")

    def differs(last: str) -> bool:
        return heard() != last

    for _ in range(4):  # twice as long as it would live without a word
        until(partial(differs, heard()), "the loop tells that it turns")
    assert (service.pid, service.restarts) == (first, 0)
    machine.run("kill", f"-{signal.SIGSTOP.name.removeprefix('SIG')}", str(first))
    until(lambda: service.restarts == 1 and service.read("hello.txt", fails=True) == BODY, "another is in its place")
    assert service.pid != first


class Login:
    """A user's systemd, as a login begins it."""

    NAME = "alice"
    UID = 1500

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        machine.run("useradd", "--create-home", f"--uid={self.UID}", self.NAME)
        self.runtime = f"/run/user/{self.UID}"
        machine.run("install", "-d", "-o", self.NAME, "-m", "700", self.runtime)

    def begin(self) -> None:
        self.machine.run(
            *("systemd-run", "--unit=login", f"--uid={self.NAME}", "--property=Delegate=yes", "--property=Type=notify"),
            *(f"--setenv=XDG_RUNTIME_DIR={self.runtime}", f"--setenv=HOME=/home/{self.NAME}"),
            *("/lib/systemd/systemd", "--user"),
        )

    def end(self) -> None:
        self.machine.run("systemctl", "stop", "login.service")

    def run(self, *command: str, fails: bool = False) -> subprocess.CompletedProcess[str]:
        environ = {"HOME": f"/home/{self.NAME}", "XDG_RUNTIME_DIR": self.runtime}
        return self.machine.run(*command, user=self.NAME, fails=fails, environ=environ)


def test_a_users_unit_mounts_at_login_and_comes_back(machine: Machine, service: Service) -> None:
    login = Login(machine)
    home = machine.root / "home/alice"
    configuration = service.configuration.replace(service.path, "/home/alice/bucket").replace(" --allow-other", "")
    login.run("mkdir", "-p", "/home/alice/bucket", "/home/alice/.config/sosfs")
    (home / f".config/sosfs/{service.name}.conf").write_text(configuration)

    def read() -> str:
        return login.run("cat", "/home/alice/bucket/hello.txt", fails=True).stdout

    login.begin()
    login.run("systemctl", "--user", "enable", "--now", service.unit)
    assert read() == BODY.decode()
    login.run("sh", "-c", "echo mine > /home/alice/bucket/mine.txt")
    login.end()
    assert service.foreign.get("mine.txt") == b"mine\n"
    assert read() == "", "it went with the session"
    login.begin()
    until(lambda: read() == BODY.decode(), "it is mounted at login")
    pid = login.run("systemctl", "--user", "show", "--value", "--property=MainPID", service.unit).stdout.strip()
    machine.run("kill", "-KILL", pid)
    until(lambda: read() == BODY.decode(), "it is back after a crash")
    login.end()


def test_removing_the_package_sends_what_waits_and_leaves_no_file(package: Path, moto: Server, proxy: Proxy) -> None:
    with Machine() as machine:
        install(machine, package)
        machine.run("sh", "-c", r"dpkg -L sosfs | xargs -d '\n' ls -dp | grep -v '/$' > /root/files")
        service = Service(machine, moto, proxy.endpoint)
        service.start()
        machine.run("sh", "-c", f"echo late > {service.path}/late.txt")
        keys = {"EXOSCALE_API_KEY": moto.key, "EXOSCALE_API_SECRET": moto.secret}
        machine.run("mkdir", "/mnt/by-hand")
        machine.run(
            "sosfs",
            "mount",
            service.name,
            "/mnt/by-hand",
            "--cache-dir=/root/c",
            f"--endpoint={moto.endpoint}",
            environ=keys,
        )
        refused = machine.run("dpkg", "--remove", "sosfs", fails=True)
        assert "Unmount what is mounted first: /mnt/by-hand" in refused.stderr
        assert service.foreign.get("late.txt") == b"late\n", "the unit was stopped, which waits"
        machine.run("sosfs", "umount", "/mnt/by-hand")
        machine.run("dpkg", "--purge", "sosfs")
        found = machine.run("sh", "-c", r"xargs -d '\n' ls -d < /root/files", fails=True)
        assert found.stdout == ""
        assert machine.run("test", "-e", "/usr/lib/sosfs", fails=True).returncode == 1
        assert machine.run("cat", f"/etc/sosfs/{service.name}.conf").stdout == service.configuration
