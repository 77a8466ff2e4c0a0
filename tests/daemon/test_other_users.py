"""What users who did not mount may see and do where `--allow-other` lets them in, and what the disk shows them."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from sosfs.config import parameters
from sosfs.config.credentials import Anonymous
from sosfs.daemon import allocator, privacy
from sosfs.daemon.mount import serve
from sosfs.ipc import commands, status
from sosfs.ipc.status import MountPhase, Status
from sosfs.log.escaping import printable, printable_lines
from sosfs.s3 import bucket_zone
from tests.conftest import Mounter
from tests.support.drive import Drive
from tests.support.faults import Answer
from tests.support.foreign import Foreign
from tests.support.mounting import run_sosfs
from tests.support.proxy import Proxy
from tests.support.traffic import on

USER, OTHER = 1234, 4321


def enter(drive: Drive) -> None:
    """Lets other users come as far as the mount point: pytest's directories are root's alone."""
    for directory in [*drive.mount.path.parents][:-1]:
        if directory.stat().st_uid == os.getuid():
            directory.chmod(directory.stat().st_mode | 0o011)


def as_user(uid: int, command: Sequence[object], **given: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*map(str, command)], user=uid, group=uid, extra_groups=[], capture_output=True, env=given)


def setacl(uid: int, path: Path) -> int:
    """The exit code of a user's attempt to open an object to the world."""
    return as_user(
        uid, ["setfattr", "-n", "user.sos.acl", "-v", "public-read", path], PATH=os.environ["PATH"]
    ).returncode


def lose(foreign: Foreign, path: Path, key: str) -> None:
    """Writes to a file that another client changes meanwhile: an error that the log and the status name it in."""
    with pytest.raises(OSError), path.open("r+b", buffering=0) as file:
        file.write(b"mine")
        foreign.put(key, b"another client's")


@pytest.fixture
def drive(mounter: Mounter, foreign: Foreign, tmp_path: Path) -> Drive:
    """Mounted by root in the name of `USER`, with a cache directory that was there before, open to all."""
    given = tmp_path / "given"
    given.mkdir()
    given.chmod(0o755)
    (given / "attributes.sqlite").touch(mode=0o644)
    foreign.put("secret", b"s", {"mode": str(stat.S_IFREG | 0o600), "uid": "0", "gid": "0"})
    foreign.put("shared", b"s", {"mode": str(stat.S_IFREG | 0o666), "uid": str(USER), "gid": str(USER)})
    drive = mounter("", "--uid", str(USER), "--gid", str(USER), "--allow-other", "--cache-dir", str(given))
    enter(drive)
    return drive


@pytest.mark.promise(13)
def test_the_control_tree_is_of_whoever_mounted(drive: Drive) -> None:
    """`--uid` says whose the files are. The key with which settings are changed is root's."""
    tree = drive.mount.path / ".sosfs"
    assert {tree.stat().st_uid, (tree / "acl").stat().st_uid, (tree / "bucket/acl").stat().st_uid} == {os.geteuid()}
    for name in ("bucket/acl", "bucket/versioning", "acl/secret", "errors"):
        assert as_user(USER, ["cat", tree / name]).returncode != 0
    for name in ("bucket", "acl", "versions"):
        assert as_user(USER, ["ls", tree / name]).returncode != 0
    written = as_user(USER, ["sh", "-c", f"echo public-read-write > '{tree}/bucket/acl'"])
    assert b"Permission denied" in written.stderr


@pytest.mark.promise(13)
def test_an_acl_is_changed_as_a_mode_is_by_the_owner_alone(drive: Drive) -> None:
    """The kernel asks for no more than permission to write, which the mode gives to all."""
    shared = drive.mount.path / "shared"
    assert as_user(OTHER, ["sh", "-c", f"echo more >> '{shared}'"]).returncode == 0
    assert setacl(OTHER, shared) != 0
    assert "\nall-users" not in (drive.mount.path / ".sosfs/acl/shared").read_text()
    assert setacl(USER, shared) == 0
    assert setacl(0, shared) == 0
    assert setacl(USER, drive.mount.path / "secret") != 0


def test_a_link_is_given_to_the_owner_alone(drive: Drive) -> None:
    """Whoever has it may hand it on, and take the file's mode from it."""
    link = ["getfattr", "--only-values", "-n", "user.sos.presigned-url", drive.mount.path / "shared"]
    assert b"X-Amz-Signature" in as_user(USER, link).stdout
    refused = as_user(OTHER, link)
    assert refused.returncode != 0 and b"Signature" not in refused.stdout
    assert b"X-Amz-Signature" in as_user(0, link).stdout


def test_status_tells_names_to_whoever_mounted_alone(mounter: Mounter, foreign: Foreign) -> None:
    foreign.put("d/secret-name", b"x")
    drive = mounter("", "--allow-other")
    drive.mount.allow_log("WARNING|ERROR")
    enter(drive)
    lose(foreign, drive.mount.path / "d/secret-name", "d/secret-name")
    tree = drive.mount.path / ".sosfs"
    assert "secret-name" in (tree / "status").read_text(), "so that there is something to hide"
    for name in ("status", "metrics"):
        seen = as_user(OTHER, ["cat", tree / name])
        assert seen.returncode == 0 and b"secret-name" not in seen.stdout
    assert b'"pending_files"' in as_user(OTHER, ["cat", tree / "status"]).stdout


@pytest.mark.promise(13)
def test_files_in_a_cache_directory_that_others_may_enter_are_the_owners_alone(drive: Drive, tmp_path: Path) -> None:
    (drive.mount.path / "file").write_bytes(b"x" * 100_000)
    with (drive.mount.path / "open").open("wb") as file:
        file.write(b"x" * 1_000_000)
        found = list((tmp_path / "given").rglob("*"))
        assert {path.suffix for path in found} >= {".sqlite", ".sqlite-wal", ".spool"}
        assert [path for path in found if path.is_file() and stat.S_IMODE(path.lstat().st_mode) != 0o600] == []
    assert as_user(USER, ["ls", tmp_path / "given/spool"]).returncode != 0


def test_a_cache_directory_that_others_may_change_is_refused(tmp_path: Path) -> None:
    for mode, uid, fine in ((0o777, 0, False), (0o1777, 0, True), (0o755, USER, False), (0o755, 0, True)):
        directory = tmp_path / f"{mode:o}-{uid}"
        directory.mkdir()
        directory.chmod(mode)
        os.chown(directory, uid, -1)
        if fine:
            privacy.require_own(directory)
        else:
            with pytest.raises(PermissionError, match="other users may change"):
                privacy.require_own(directory)
    privacy.require_own(tmp_path / "not there")


def test_a_cache_directory_of_the_zone_that_the_bucket_is_in_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not that of the zone which was assumed before the server was asked."""
    monkeypatch.setattr(parameters, "cache_root", lambda: tmp_path)
    monkeypatch.setattr(privacy, "protect_process", lambda: None)  # of the tests
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # nor does a Ctrl-C end them at once from then on
    for name in ("keep_few_heaps", "collect_seldom"):
        monkeypatch.setattr(allocator, name, lambda: None)
    settings = parameters.resolve("b", "", tmp_path / "mnt", [{"endpoint": "http://assumed"}])
    found = replace(settings, endpoint="http://found")
    monkeypatch.setattr(bucket_zone, "located", lambda settings: found)
    found.state_dir.mkdir()
    found.state_dir.chmod(0o777)
    with pytest.raises(PermissionError, match="other users may change"):
        serve(settings, Anonymous(), ready=lambda: None)


def test_files_that_are_no_mounts_keep_their_modes(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    for name in ("journal.sqlite", "lock", "letter.txt"):
        (tmp_path / name).touch()
        (tmp_path / name).chmod(0o644)
    (tmp_path / "spool").mkdir(mode=0o755)
    (tmp_path / "reserve").touch(mode=0o644)
    os.chown(tmp_path / "reserve", OTHER, -1)
    (tmp_path / "blocks").symlink_to("letter.txt")
    privacy.require_own(tmp_path)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {
        "journal.sqlite": 0o600,
        "lock": 0o600,
        "letter.txt": 0o644,
        "spool": 0o700,
        "reserve": 0o644,
        "blocks": 0o644,  # another user's, and a link
    }


def test_the_kernel_dumps_no_memory_of_a_daemon(drive: Drive) -> None:
    """A process that may be dumped is its user's in /proc; one that may not is root's, whoever runs it."""
    limits = Path(f"/proc/{drive.mount.pid}/limits").read_text()
    assert [line.split()[4:6] for line in limits.splitlines() if line.startswith("Max core")] == [["0", "0"]]
    asked = (
        "import ctypes, sosfs.daemon.privacy as p; p.protect_process(); print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))"
    )
    environment = {**os.environ, "PYTHONPATH": drive.mount.environment["PYTHONPATH"]}
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == "0\n", "PR_GET_DUMPABLE"


def test_a_runtime_directory_that_another_user_made_is_not_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its socket could answer in the name of the mount: that all is stored, say."""
    directory = tmp_path / "sosfs"
    directory.mkdir(mode=0o700)
    monkeypatch.setattr(status, "_runtime_dirs", lambda uid: iter([directory]))
    place = Path("/mnt/bucket")
    assert list(status.candidates(place, 0, ".sock")) == [status.socket_path(place)]
    directory.chmod(0o777)
    assert list(status.candidates(place, 0, ".sock")) == []
    directory.chmod(0o700)
    os.chown(directory, OTHER, -1)
    assert list(status.candidates(place, 0, ".sock")) == []
    with pytest.raises(PermissionError):
        status.runtime_dir()


def test_nor_is_it_looked_into_for_what_drains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "_runtime_dirs", lambda uid: iter([tmp_path / str(uid)]))
    asked = list[Path]()
    now = Status(7, "b", "", "/mnt/b", "", MountPhase.DRAINING)

    def ask(path: Path) -> Status:
        asked.append(path)
        return now

    monkeypatch.setattr(status, "_ask", ask)
    for uid in (0, USER):
        (tmp_path / str(uid)).mkdir(mode=0o700)
        (tmp_path / f"{uid}/one.sock").touch()
    os.chown(tmp_path / str(USER), OTHER, -1)
    assert list(status.unmounted([], [0, USER])) == [now]
    os.chown(tmp_path / str(USER), USER, -1)
    assert list(status.unmounted([], [0, USER])) == [now, now]
    assert asked == [tmp_path / "0/one.sock", tmp_path / "0/one.sock", tmp_path / f"{USER}/one.sock"]
    (tmp_path / "0/one.sock").rename(next(status.candidates(Path("/mnt/b"), 0, ".sock")))
    assert list(status.unmounted([Path("/mnt/b")], [0])) == [], "it is mounted"


ASK = """
import os, socket, sys
os.setgroups([])
os.setuid(int(sys.argv[2]))
client = socket.socket(socket.AF_UNIX)
client.connect(sys.argv[1])
client.sendall(b'{"do": "it", "paths": []}\\n')
print(client.makefile().read())
"""


def test_who_has_not_mounted_it_has_nothing_done_whoever_lets_him_reach_the_socket() -> None:
    done = list[bool]()

    async def it(paths: object, tell: object, options: object) -> commands.Told:
        done.append(True)
        return {}

    async def scene(directory: Path) -> list[bytes]:
        async with trio.open_nursery() as nursery:
            await nursery.start(commands.serve, directory / "do", {"it": it})
            (directory / "do").chmod(0o777)
            answers = [
                (
                    await trio.run_process([sys.executable, "-c", ASK, directory / "do", str(uid)], capture_stdout=True)
                ).stdout
                for uid in (USER, 0)
            ]
            nursery.cancel_scope.cancel()
        return answers

    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        refused, answered = trio.run(scene, Path(name))
    assert b"only who mounted it, or root, may do that" in refused
    assert (b"outcome" in answered, done) == (True, [True])


def test_root_finds_what_another_user_has_mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "_runtime_dirs", lambda uid: iter([tmp_path / str(uid)]))
    found = list(status.candidates(Path("/mnt/bucket"), USER, ".sock"))
    assert [path.parent.name for path in found] == [str(USER), "0"]


HOSTILE = "a\x1b[2Jb\nERROR forged\u202e\x9b"
SHOWN = r"a\x1b[2Jb\nERROR forged\u202e\x9b"


def test_text_from_outside_is_escaped_and_all_else_stays() -> None:
    assert printable(HOSTILE) == SHOWN
    assert printable("Grüße 日本 a\u00a0b \\n") == "Grüße 日本 a\u00a0b \\n"
    assert printable(os.fsdecode(b"\xff")) == r"\udcff"
    assert printable_lines("one\x07\ntwo") == "one\\x07\ntwo"


@pytest.mark.parametrize("server", ["ceph"], indirect=True)  # moto answers 404 to a key with a newline
def test_keys_go_escaped_to_terminals_and_logs(mounter: Mounter, foreign: Foreign) -> None:
    name = HOSTILE.replace("\x9b", "")
    foreign.put(f"{name}/file", b"x")
    drive = mounter("", "--log-level", "debug")
    drive.mount.allow_log("WARNING|ERROR")
    path = drive.mount.path / name / "file"
    assert path.read_bytes() == b"x"
    environment = drive.mount.environment
    commands: tuple[list[str], ...] = (["acl", "get", "-r"], ["acl", "set", "-r", "user x READ"], ["drop"])
    for command in commands:
        done = run_sosfs([*command, str(path.parent)], environment)
        assert "\x1b" not in done.stdout + done.stderr and "\nERROR forged" not in done.stdout + done.stderr
    (drive.mount.path / ".sosfs/errors").read_text().encode("ascii")
    lose(foreign, path, f"{name}/file")
    shown = run_sosfs(["status", drive.mount.path], environment).stdout
    assert r"\x1b[2J" in shown and "\x1b" not in shown
    assert r"\x1b[2J" in drive.mount.log and "\x1b" not in drive.mount.log
    assert "\nERROR forged" not in drive.mount.log


@pytest.mark.promise(13)
def test_a_debug_log_holds_no_secret(mounter: Mounter, proxy: Proxy) -> None:
    drive = mounter(proxy.endpoint, "--log-level", "debug", "--patience", "1", "--timeout", "2")
    drive.mount.allow_log("WARNING|ERROR")
    (drive.mount.path / "file").write_bytes(b"x" * 100)
    link = os.getxattr(drive.mount.path / "file", "user.sos.presigned-url").decode()
    with proxy.broken(Answer(503, "SlowDown"), on("PUT")), pytest.raises(OSError):
        (drive.mount.path / "other").write_bytes(b"x")
    drive.mount.kill()
    for secret in (drive.mount.access.secret, link.rpartition("X-Amz-Signature=")[2], "Signature="):
        assert secret not in drive.mount.log


def test_errno_of_refusals(drive: Drive) -> None:
    """EPERM, as chmod(2) has it, not EACCES."""
    program = (
        "import os, sys\n"
        "for call in (lambda: os.setxattr(sys.argv[1], 'user.sos.acl', b'public-read'),\n"
        "             lambda: os.getxattr(sys.argv[1], 'user.sos.presigned-url')):\n"
        "    try: call()\n"
        "    except OSError as error: print(error.errno)\n"
    )
    python = os.path.realpath("/usr/bin/python3")
    done = as_user(OTHER, [python, "-c", program, drive.mount.path / "shared"])
    assert done.stdout.split() == [str(errno.EPERM).encode()] * 2, done.stderr
