"""What a user who is not root types: the same commands, and nothing of it is for anybody else.

The program runs as that user from a place that the user may read, wherever the tests are: the interpreter and the
packages are bound there.
"""

from __future__ import annotations

import errno
import json
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from sosfs.daemon.launch import Exit
from sosfs.fuse.requests import PATIENT
from tests.conftest import access_to
from tests.support.drive import eventually
from tests.support.faults import Hang
from tests.support.foreign import Foreign
from tests.support.mounting import ROOT
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.traffic import on
from tests.support.watchdog import detach, mounted

USER, OTHER = pwd.getpwnam("nobody").pw_uid, 4321
SECONDS = 60.0  # for a command
WHOLE = stat.S_IRWXG | stat.S_IRWXO  # bits that are nobody's but the owner's
Done = subprocess.CompletedProcess[str]

pytestmark = pytest.mark.parametrize("server", ["ceph"], indirect=True)  # it knows users and ACLs


@dataclass(frozen=True, slots=True)
class Login:
    """A user with a home and a key."""

    uid: int
    home: Path
    path: Path  # the mount point
    environment: dict[str, str]
    python: Path

    def run(self, *command: str | Path, uid: int | None = None) -> Done:
        """Runs a program to its end, as this user or another one."""
        who = self.uid if uid is None else uid
        return subprocess.run(
            [*map(str, command)],
            user=who,
            group=who,
            extra_groups=[],
            env=self.environment,
            cwd="/",
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )

    def sosfs(self, *arguments: str | Path, uid: int | None = None) -> Done:
        """As `run`, a command of the program."""
        return self.run(self.python, "-m", "sosfs", *arguments, uid=uid)

    def mount(self, foreign: Foreign, *options: str) -> None:
        """Mounts the bucket in the background."""
        _well(self.sosfs("mount", foreign.bucket, self.path, *options))
        assert mounted(self.path)

    def umount(self) -> None:
        """Unmounts: all is in the bucket."""
        _well(self.sosfs("umount", self.path))
        assert not mounted(self.path)

    def shell(self, script: str, *, uid: int | None = None) -> Done:
        """As `run`, a script in the mount."""
        return self.run("sh", "-euc", f"cd '{self.path}'; {script}", uid=uid)

    def daemon(self) -> int:
        """The process of the mount."""
        told = json.loads(_well(self.sosfs("status", self.path, "--json")))
        return int(told["pid"])


def _well(done: Done) -> str:
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _bind(source: Path, place: Path) -> None:
    place.mkdir()
    subprocess.run(["mount", "--bind", source, place], check=True)


def _unbind(place: Path) -> None:
    subprocess.run(["umount", "--lazy", place], check=True)


def _own(path: Path) -> Path:
    """A directory that is the user's alone."""
    path.mkdir(mode=0o700)
    os.chown(path, USER, USER)
    return path


@pytest.fixture(scope="module")
def reachable() -> Iterator[dict[Path, Path]]:
    """Where the user finds the interpreter, the program and what that needs, by where they are."""
    base = Path(tempfile.mkdtemp(prefix="sosfs-user-"))
    base.chmod(0o755)
    packages = (Path(entry) for entry in sys.path if entry.endswith("-packages"))
    with ExitStack() as ending:
        ending.callback(shutil.rmtree, base)
        found: dict[Path, Path] = {}
        for source in (Path(sys.base_prefix), ROOT, *packages):
            place = found[source] = base / str(len(found))
            _bind(source, place)
            ending.callback(_unbind, place)
        yield found


@pytest.fixture
def login(server: Server, proxy: Proxy, reachable: dict[Path, Path]) -> Iterator[Login]:
    """A user who is not root, who has never mounted anything; the server is behind the proxy."""
    base = Path(tempfile.mkdtemp(prefix="sosfs-home-"))
    base.chmod(0o755)
    home, place, runtime = (_own(base / name) for name in ("home", "mnt", "run"))
    home.chmod(0o755)  # as on many systems: what is private in it has to see to that itself
    prefix, *packages = reachable.values()
    python = prefix / Path(os.path.realpath(sys.executable)).relative_to(sys.base_prefix)
    environment = {
        **access_to(server).environment(home),
        "PYTHONPATH": os.pathsep.join(map(str, packages)),
        "LD_LIBRARY_PATH": str(prefix / "lib"),  # of an interpreter that is a shared library
        "PYTHONDONTWRITEBYTECODE": "1",
        "XDG_RUNTIME_DIR": str(runtime),
        "EXOSCALE_SOS_ENDPOINT": proxy.endpoint,
    }
    node = os.stat("/dev/fuse")
    os.chmod("/dev/fuse", 0o666)  # as udev makes it
    try:
        yield Login(USER, home, place, environment, python)
    finally:
        os.chmod("/dev/fuse", stat.S_IMODE(node.st_mode))
        detach(str(place))
        shutil.rmtree(base, ignore_errors=True)


def test_all_commands_do_what_they_do_for_root(login: Login, foreign: Foreign) -> None:
    foreign.put_all({"d/one": b"1", "d/two": b"2" * 100_000})
    checked = login.sosfs("doctor", foreign.bucket, login.path)
    assert "Traceback" not in checked.stderr
    assert checked.returncode == 0, checked.stdout + checked.stderr
    login.mount(foreign)
    assert f"uid={USER}({pwd.getpwuid(USER).pw_name})" in _well(login.run("id"))
    script = "mkdir new; echo text > new/file; chmod 640 new/file; mv new/file new/moved"
    _well(login.shell(f"{script}; ln -s moved new/link; rm d/one"))
    assert _well(login.shell("stat -c '%u %g %a' new/moved; cat new/link")) == f"{USER} {USER} 640\ntext\n"
    assert foreign.get("new/moved") == b"text\n"
    assert foreign.metadata("new/moved")["uid"] == str(USER)
    assert foreign.bucket in _well(login.sosfs("status", login.path))
    _well(login.sosfs("acl", "set", "public-read", login.path / "new/moved"))
    assert "all-users READ" in _well(login.sosfs("acl", "get", login.path / "new/moved"))
    _well(login.sosfs("warm", login.path / "d"))
    _well(login.sosfs("drop", login.path / "d"))
    assert "X-Amz-Signature" in _well(login.shell("getfattr --only-values -n user.sos.presigned-url new/moved")), (
        "of one's own file"
    )
    login.umount()
    assert sorted(foreign.keys()) == ["d/two", "new/", "new/link", "new/moved"]


def test_nobody_else_sees_anything(login: Login, foreign: Foreign, proxy: Proxy) -> None:
    """Nor does root, through the mount."""
    foreign.put("secret-name", b"secret bytes")
    runtime = _own(Path(login.environment["XDG_RUNTIME_DIR"]) / "sosfs")
    for directory in (runtime, runtime.parent):
        directory.chmod(0o755)  # as a careless mkdir leaves it
    login.mount(foreign, "--cache-size", "8M", "--durability", "journal")
    _well(login.shell("cat secret-name > other; echo more >> secret-name"))
    for command in ("ls", "cat secret-name", "cat .sosfs/status", "cat .sosfs/acl/secret-name", "echo x > new"):
        for uid in (OTHER, 0):
            refused = login.shell(command, uid=uid)
            assert refused.returncode != 0, (command, uid)
            assert "secret" not in refused.stdout
    for arguments in (["status"], ["status", "--json"], ["warm"], ["drop"], ["umount"]):
        refused = login.sosfs(arguments[0], login.path, *arguments[1:], uid=OTHER)
        assert refused.returncode != 0, arguments
        assert "secret" not in refused.stdout + refused.stderr
        assert "Traceback" not in refused.stderr
    assert mounted(login.path)
    asked = login.sosfs("status", login.path, uid=0)  # the runtime directory of these tests is no login's
    assert asked.stderr == f"sosfs: {login.path}: its daemon is not found; ask as who mounted it, user {USER}\n"
    kept = [*(login.home / ".cache/sosfs").rglob("*")]
    assert {path.suffix for path in kept} >= {".sqlite"}
    for path in [login.home / ".cache/sosfs", *kept, runtime]:
        assert path.lstat().st_uid == USER, path
        assert not stat.S_IMODE(path.lstat().st_mode) & WHOLE, path
    for directory in (login.home / ".cache/sosfs", runtime):
        assert login.run("ls", directory, uid=OTHER).returncode != 0
    limits = Path(f"/proc/{login.daemon()}/limits").read_text()
    assert [line.split()[4:6] for line in limits.splitlines() if line.startswith("Max core")] == [["0", "0"]]
    for name in ("mem", "environ", "maps"):  # not even this user's other programs read the key out of it
        assert login.run("cat", f"/proc/{login.daemon()}/{name}").returncode != 0
    login.umount()
    assert foreign.get("secret-name") == b"secret bytesmore\n"


def test_letting_others_in_is_for_the_administrator_to_allow(login: Login, foreign: Foreign) -> None:
    allowed = [line.strip() for line in Path("/etc/fuse.conf").read_text().splitlines()].count("user_allow_other")
    done = login.sosfs("mount", foreign.bucket, login.path, "--allow-other")
    if allowed:
        _well(done)
        login.umount()
        return
    assert done.returncode == Exit.LASTING
    assert done.stderr == "sosfs: --allow-other needs the line 'user_allow_other' in /etc/fuse.conf, or root\n"
    assert not mounted(login.path)


def test_a_mount_point_of_somebody_else_is_refused_in_one_line(login: Login, foreign: Foreign) -> None:
    foreign_place = login.path.parent / "root's"
    foreign_place.mkdir()
    done = login.sosfs("mount", foreign.bucket, foreign_place)
    assert done.returncode == Exit.LASTING
    assert done.stderr.startswith("sosfs: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert not mounted(foreign_place)


@pytest.mark.promise(3)
@pytest.mark.promise(12)
@pytest.mark.parametrize("durability", ["bucket", "journal"])
def test_a_killed_daemon_is_followed_by_one_that_goes_on(
    login: Login, foreign: Foreign, proxy: Proxy, durability: str
) -> None:
    login.mount(foreign, "--durability", durability)
    with proxy.broken(Hang(), on("COPY")):
        _well(login.shell("echo text > file; chmod 600 file; mkdir d; echo other > d/other; rm d/other"))
        os.kill(login.daemon(), signal.SIGKILL)
        eventually(lambda: login.shell("ls").returncode != 0)
    proxy.drop_connections()
    assert os.strerror(errno.ENOTCONN) in login.run("ls", login.path).stderr
    login.mount(foreign, "--durability", durability)
    assert _well(login.shell("cat file; stat -c %a file; ls d")) == "text\n600\n"
    login.umount()
    assert sorted(foreign.keys()) == ["d/", "file"]
    assert int(foreign.metadata("file")["mode"]) & 0o7777 == 0o600


@pytest.mark.promise(11)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_program_that_waits_for_the_server_can_be_stopped(
    login: Login, foreign: Foreign, proxy: Proxy, number: signal.Signals
) -> None:
    """The daemon finds the signal in /proc, which it may read of its own user's programs alone."""
    foreign.put("file", b"x" * 10_000)
    login.mount(foreign)
    _well(login.shell("ls"))
    before = len(proxy.requests)
    with proxy.broken(Hang(), on("GET", "HEAD")):
        with subprocess.Popen(
            ["cat", login.path / "file"], user=USER, group=USER, extra_groups=[], stdout=subprocess.PIPE
        ) as process:
            eventually(lambda: len(proxy.requests) > before)
            time.sleep(PATIENT)
            process.send_signal(number)
            assert process.wait(30) == -number
        assert '"pending_files"' in _well(login.shell("cat .sosfs/status"))
    proxy.drop_connections()
    assert _well(login.shell("cat file")) == "x" * 10_000
    login.umount()


def test_what_the_metadata_calls_another_user_s_is_not_this_user_s_to_open(login: Login, foreign: Foreign) -> None:
    """The kernel goes by modes and owners; the key with which all is done is the mounter's."""
    theirs = {"uid": str(OTHER), "gid": str(OTHER)}
    foreign.put("theirs", b"t", {"mode": str(stat.S_IFREG | 0o600), **theirs})
    foreign.put("shared", b"s", {"mode": str(stat.S_IFREG | 0o644), **theirs})
    login.mount(foreign)
    assert _well(login.shell("stat -c '%u %a' theirs shared")) == f"{OTHER} 600\n{OTHER} 644\n"
    assert login.shell("cat theirs").returncode != 0
    assert login.shell("echo x >> shared").returncode != 0
    assert login.shell("chmod 666 shared").returncode != 0
    assert _well(login.shell("cat shared")) == "s"
    login.umount()
    assert (foreign.get("theirs"), foreign.get("shared")) == (b"t", b"s")
