"""`sosfs umount`: what it waits for and what not, and beside a daemon that ends at that very moment."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from sosfs.cli import holders, mount_helper, umount, umount_helper
from sosfs.daemon import mountpoint
from sosfs.daemon.mountpoint import Detach, Mount
from sosfs.ipc import commands, status
from sosfs.ipc.status import MountPhase, Status
from tests.conftest import Mounter, access_to
from tests.support.drive import eventually
from tests.support.faults import Hang
from tests.support.foreign import Foreign, numbered
from tests.support.mounting import ROOT, SOSFS, run_sosfs
from tests.support.mounting import Mount as Mounted
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.traffic import Op
from tests.support.waiting import SECONDS, until
from tests.support.watchdog import Watchdog, mounted

HERE = Path("/nowhere")
MOUNT = Mount(HERE, "fuse.sosfs", "bucket", 0, "0:1")
NOW = Status(7, "bucket", "", str(HERE), "http://localhost", MountPhase.MOUNTED)
PENDING, DAMAGED = replace(NOW, pending_files=1, waiting=("why",)), replace(NOW, damaged=("where",))
wrongs = pytest.mark.parametrize("wrong", [PENDING, DAMAGED, replace(PENDING, damaged=("where",))])
SILENT = OSError(errno.ETIMEDOUT, "does not answer")


class Daemon:
    """A daemon that ends after so many looks, what it says until then, each an answer or an error, and last."""

    pid = NOW.pid

    def __init__(
        self, patch: pytest.MonkeyPatch, *answers: Status | OSError | None, last: Status | None, elsewhere: str = ""
    ) -> None:
        self._answers = list(answers)
        self.store: OSError | None = None
        self.is_forgotten = False
        patch.setattr(holders, "elsewhere", lambda device: elsewhere)
        patch.setattr(status, "fetch", self._fetch)
        patch.setattr(status, "read_last", lambda path, owner: last)
        patch.setattr(status, "forget_last", self._forget)
        patch.setattr(commands, "ask", self._ask)

    def _fetch(self, path: Path, *, owner: int | None) -> Status | None:
        answer = self._answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    def _forget(self, path: Path, *, owner: int | None) -> None:
        self.is_forgotten = True

    def _ask(self, *_: Any, **__: Any) -> None:
        if self.store is not None:
            raise self.store

    def ended_within(self, seconds: float) -> bool:
        return not self._answers

    def drained(self, seconds: float | None = None) -> int:
        """The exit code."""
        return umount._drained(HERE, MOUNT, cast(umount.Daemon, self), NOW, seconds)


def test_a_daemon_that_ends_while_another_namespace_seems_to_keep_it_is_no_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    daemon = Daemon(monkeypatch, NOW, last=NOW, elsewhere="another")
    daemon.store = OSError(errno.ENOTCONN, "the daemon of this mount does not listen")
    assert daemon.drained() == 0


@pytest.mark.promise(3)
@pytest.mark.parametrize("at_last", [False, True], ids=["while it drains", "while all is being stored"])
def test_a_later_mount_of_the_place_does_not_answer_for_the_one_that_drains(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], at_last: bool
) -> None:
    """Its device may have the number of the one that is gone, which then seems to be mounted there."""
    later = replace(NOW, pid=NOW.pid + 1)
    answers = [NOW, later] if at_last else [later, later]
    monkeypatch.setattr(mountpoint, "at", lambda path: MOUNT)
    daemon = Daemon(monkeypatch, *answers, last=PENDING, elsewhere=f"at {HERE}")
    assert daemon.drained() == 3
    assert "1 file (0 bytes) not in the bucket" in capsys.readouterr().err
    assert not daemon.is_forgotten


def test_a_daemon_that_stays_is_not_waited_for_where_a_later_mount_answers_for_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A container has the mount yet, and nothing tells how far its daemon is."""
    later = replace(NOW, pid=NOW.pid + 1)
    monkeypatch.setattr(mountpoint, "at", lambda path: replace(MOUNT, device="0:2"))
    daemon = Daemon(monkeypatch, NOW, later, later, later, last=NOW, elsewhere="in another namespace")
    assert (daemon.drained(), daemon.ended_within(0)) == (3, False)
    assert "the mount stays in another namespace, and a later one" in capsys.readouterr().err
    ending = replace(NOW, state=MountPhase.DRAINING)
    assert Daemon(monkeypatch, ending, later, later, last=NOW, elsewhere="in another namespace").drained() == 0


@wrongs
def test_what_the_bucket_lacks_and_what_is_damaged_is_told_and_not_forgotten(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], wrong: Status
) -> None:
    daemon = Daemon(monkeypatch, last=wrong)
    assert (daemon.drained(), daemon.is_forgotten) == (3, False)
    told = capsys.readouterr().err
    assert [word in told for word in ("why", "where")] == [bool(wrong.waiting), bool(wrong.damaged)]


def test_all_is_well_where_nothing_is_left(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What it said while it was sending does not count then."""
    daemon = Daemon(monkeypatch, PENDING, DAMAGED, None, last=NOW)
    assert (daemon.drained(), daemon.is_forgotten) == (0, True)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("last", [None, replace(NOW, pid=8)], ids=["nothing", "of another daemon"])
def test_a_daemon_that_ends_without_a_word_may_have_left_something(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], last: Status | None
) -> None:
    assert Daemon(monkeypatch, last=last).drained() == 3
    assert "ended without a word" in capsys.readouterr().err


def test_so_may_one_that_does_not_answer_any_more(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon = Daemon(monkeypatch, NOW, NOW, NOW, SILENT, last=NOW)
    answers = len(daemon._answers)
    clock = SimpleNamespace(monotonic=lambda: 0.6 * status.SILENCE_SECONDS * (answers - len(daemon._answers)))
    monkeypatch.setattr(umount, "time", clock)
    assert daemon.drained() == 0, "for a moment"
    monkeypatch.setattr(umount, "SILENCE_SECONDS", 0)
    assert Daemon(monkeypatch, SILENT, last=NOW).drained() == 3
    assert "does not answer: whether every change is in the bucket is unknown" in capsys.readouterr().err


def test_when_time_runs_out_it_is_told_what_is_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert Daemon(monkeypatch, NOW, last=NOW).drained(0) == 3
    assert "time ran out: 0 files" in capsys.readouterr().err


@wrongs
def test_where_another_namespace_keeps_the_mount_what_is_wrong_is_told_all_the_same(
    monkeypatch: pytest.MonkeyPatch, wrong: Status
) -> None:
    assert Daemon(monkeypatch, NOW, wrong, last=None, elsewhere="another").drained() == 3
    assert Daemon(monkeypatch, NOW, NOW, last=None, elsewhere="another").drained() == 0
    assert Daemon(monkeypatch, NOW, None, last=wrong, elsewhere="another").drained() == 3, "it has just ended"


@pytest.mark.parametrize("is_stored", [False, True])
def test_where_it_cannot_be_told_whether_all_is_stored_that_is_no_success(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], is_stored: bool
) -> None:
    daemon = Daemon(monkeypatch, NOW, SILENT, last=NOW, elsewhere="another")
    daemon.store = None if is_stored else OSError(errno.EIO, "not stored")
    assert daemon.drained() == 3
    told = "does not answer: whether every change is" if is_stored else "not everything is in the bucket: not stored"
    assert told in capsys.readouterr().err


def test_so_many_reasons_are_told_and_how_many_more_there_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = tuple(f"file {number}" for number in range(umount.NAMED + 5))
    assert Daemon(monkeypatch, last=replace(NOW, damaged=damaged)).drained() == 3
    assert capsys.readouterr().err.splitlines()[1:] == [
        *(f"  {line}" for line in damaged[: umount.NAMED]),
        "  and 5 more",
    ]


class Detached:
    """What a mount point is, and what is done to it."""

    def __init__(self, patch: pytest.MonkeyPatch, mount: Mount | None, *errors: OSError) -> None:
        self.how: list[Detach] = []
        self._errors = list(errors)
        patch.setattr(mountpoint, "at", lambda path: mount)
        patch.setattr(mountpoint, "detach", self._detach)
        patch.setattr(mountpoint, "state", lambda path: mountpoint.MountState.LIVE)
        patch.setattr(umount, "LOOK_SECONDS", 0)

    def _detach(self, path: Path, how: Detach) -> None:
        self.how.append(how)
        if self._errors:
            raise self._errors.pop(0)


BUSY = OSError(errno.EBUSY, "target is busy")


@pytest.mark.parametrize("mount", [None, replace(MOUNT, type="ext4")], ids=["none", "of another kind"])
@pytest.mark.parametrize("unmount", [umount.run, umount.lazily])
def test_what_is_no_mount_of_ours_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, mount: Mount | None, unmount: Callable[[Path], int]
) -> None:
    Daemon(monkeypatch, None, last=None)
    detached = Detached(monkeypatch, mount)
    with pytest.raises(OSError, match=r"not a mount of sosfs|nothing of sosfs"):
        unmount(HERE)
    assert detached.how == []


def test_lazily_it_goes_while_it_is_in_use(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    Daemon(monkeypatch, PENDING, last=None)
    detached = Detached(monkeypatch, MOUNT)
    assert (umount.lazily(HERE), detached.how) == (0, [Detach.LAZY])
    assert "the daemon (pid 7) goes on sending 1 file" in capsys.readouterr().err


def test_a_hold_that_nobody_is_seen_to_have_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that was just closed."""
    Daemon(monkeypatch, None, last=None)
    monkeypatch.setattr(holders, "of", lambda path: [])
    detached = Detached(monkeypatch, MOUNT, BUSY, BUSY)
    assert umount.run(HERE) == 3
    assert len(detached.how) == 3
    monkeypatch.setattr(umount, "BUSY_SECONDS", 0)
    Daemon(monkeypatch, None, last=None)
    Detached(monkeypatch, MOUNT, BUSY)
    with pytest.raises(OSError, match="by whom is not to be seen"):
        umount.run(HERE)


def test_why_it_cannot_be_taken_off_is_told_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for error, told in ((BUSY, "busy: cat"), (OSError(errno.EIO, "only root may"), "only root may")):
        Daemon(monkeypatch, None, last=None)
        monkeypatch.setattr(holders, "of", lambda path: [holders.Holder(9, "cat", "works in it")])
        detached = Detached(monkeypatch, MOUNT, error)
        with pytest.raises(OSError, match=told):
            umount.run(HERE)
        assert len(detached.how) == 1


def test_who_holds_a_mount_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whoever works in it, has something of it open or mapped, or has mounted something in it; not those beside it."""
    monkeypatch.setattr(holders, "PROC", tmp_path)
    for pid, cwd, opened, mapped in (
        (1, "/m/bucket", "", ""),
        (2, "/m/bucket2", "/m/bucket2/file", "/m/bucket2/file"),
        (3, "/", "/m/bucket/a b", ""),
        (4, "/", "", "/m/bucket/lib so"),
        (5, "/m/bucket/deeper", "", ""),
    ):
        process = tmp_path / str(pid)
        (process / "fd").mkdir(parents=True)
        (process / "comm").write_text("prog\n")
        (process / "cwd").symlink_to(cwd)
        if opened:
            (process / "fd/3").symlink_to(opened)
        (process / "maps").write_text(f"7f00-7f01 r--p 00000000 00:2a 12    {mapped}\n")
    assert [str(holder) for holder in holders.of(Path("/m/bucket"))] == [
        "prog (pid 1) works in it",
        "prog (pid 3) has /m/bucket/a b open",
        "prog (pid 4) has /m/bucket/lib so mapped",
        "prog (pid 5) works in it",
    ]
    table = [replace(MOUNT, mountpoint=Path(path)) for path in ("/m", "/m/bucket", "/m/bucket2", "/m/bucket/x")]
    monkeypatch.setattr(mountpoint, "table", lambda: table)
    assert holders.mounts_below(Path("/m/bucket")) == [Path("/m/bucket/x")]


@pytest.mark.parametrize("answer", [None, SILENT], ids=["gone", "silent"])
def test_a_mount_whose_daemon_says_nothing_is_cleared_and_that_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], answer: OSError | None
) -> None:
    detached = list[Path]()
    Daemon(monkeypatch, answer, last=None)
    monkeypatch.setattr(mountpoint, "at", lambda path: MOUNT)
    monkeypatch.setattr(mountpoint, "detach", lambda path, how: detached.append(path))
    assert umount.run(HERE) == 3
    assert detached == [HERE]
    assert "whether every change is in the bucket is unknown" in capsys.readouterr().err


def test_one_that_is_unmounted_and_hangs_while_it_sends_is_not_taken_for_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Daemon(monkeypatch, SILENT, last=None)
    monkeypatch.setattr(mountpoint, "at", lambda path: None)
    assert umount.run(HERE) == 3
    assert "does not answer: whether every change is in the bucket is unknown" in capsys.readouterr().err


def test_a_mount_point_that_is_called_busy_is_not_busy(tmp_path: Path) -> None:
    with pytest.raises(OSError) as caught:
        mountpoint.detach(tmp_path / "busy", Detach.WHEN_FREE)
    assert caught.value.errno == errno.EIO


def test_a_mount_that_a_bind_mount_keeps_is_not_waited_for(mounter: Mounter, foreign: Foreign, tmp_path: Path) -> None:
    drive = mounter("", "--durability", "journal")
    (drive.here / "below").mkdir()
    (drive.here / "below/file").write_bytes(b"x" * 100_000)
    bound = tmp_path / "bound"
    bound.mkdir()
    subprocess.run(["mount", "--bind", drive.here / "below", bound], check=True)
    try:
        done = run_sosfs(["umount", drive.mount.path], drive.mount.environment)
        assert (done.returncode, foreign.keys()[-1:] == ["below/file"]) == (0, True), done.stderr
        assert f"all is in the bucket; the mount stays at {bound}" in done.stderr
        assert (bound / "file").stat().st_size == 100_000
    finally:
        subprocess.run(["umount", bound], check=True)
    assert drive.mount._process is not None
    assert drive.mount._process.wait(SECONDS) == 0, "it ends when nothing keeps it"


# The program as it is installed, but that an earlier daemon of the same pid has left its last word.
NAMESAKE = """
import os
from pathlib import Path
from sosfs.ipc import status
from sosfs.ipc.status import MountPhase, Status
status.write_last(Status(os.getpid(), "", "", os.environ["NAMESAKE"], "", MountPhase.STOPPED))
"""


@pytest.mark.promise(3)
@pytest.mark.parametrize("server", ["moto"], indirect=True)
def test_the_last_word_of_an_earlier_daemon_of_the_same_pid_is_not_its_own(
    server: Server, proxy: Proxy, foreign: Foreign, watchdog: Watchdog, tmp_path: Path
) -> None:
    """In a container the daemon gets the same pid each time. It is killed before it has sent what it has."""
    (tmp_path / "sitecustomize.py").write_text(NAMESAKE)
    mount = Mounted(access_to(server, proxy.endpoint), foreign.bucket, tmp_path, watchdog, ("--durability", "journal"))
    plain = dict(mount.environment)
    mount.environment |= {"PYTHONPATH": f"{tmp_path}:{ROOT}", "NAMESAKE": str(mount.path)}
    mount.start()
    try:
        with proxy.broken(Hang(), lambda request: request.op is Op.PUT):
            (mount.path / "file").write_bytes(b"x")
            with subprocess.Popen([*SOSFS, "umount", mount.path], env=plain, stderr=subprocess.DEVNULL) as process:
                until(lambda: not mounted(mount.path), "it is unmounted")
                os.kill(mount.pid, signal.SIGKILL)
                assert process.wait(SECONDS) == 3
    finally:
        mount.clear()


@pytest.mark.parametrize("server", ["moto"], indirect=True)
def test_a_last_word_that_cannot_be_left_is_no_failure_of_the_mount(mounter: Mounter) -> None:
    """Then who unmounts is told that nobody knows, and a service manager does not mount it again."""
    drive = mounter()
    drive.mount.allow_log("no last word")
    blocked = status.socket_path(drive.mount.path).with_suffix(".last.new")
    blocked.mkdir()
    try:
        done = run_sosfs(["umount", drive.mount.path], drive.mount.environment)
    finally:
        blocked.rmdir()
    assert (done.returncode, "ended without a word" in done.stderr) == (3, True)
    assert drive.mount._process is not None
    assert drive.mount._process.wait(SECONDS) == 0


@pytest.mark.promise(11)
@pytest.mark.parametrize("server", ["moto"], indirect=True)
def test_what_is_asked_ahead_for_nobody_is_not_waited_for(mounter: Mounter, foreign: Foreign, proxy: Proxy) -> None:
    """The server hangs for longer than the test waits; nothing is pending."""
    foreign.put_all(numbered("t/f", 60))
    drive = mounter(proxy.endpoint, "--timeout", "300", "--ttl", "600")
    drive.mount.allow_log("WARNING")
    names = sorted(path.name for path in (drive.here / "t").iterdir())
    rule = proxy.inject(Hang(), lambda request: request.op in (Op.HEAD, Op.GET) and request.key[2:] in names[10:])
    for name in names[:8]:
        (drive.here / "t" / name).stat()
    eventually(lambda: rule.hits > 0)
    drive.mount.stop()


def test_a_mount_point_that_umount_cannot_find_is_told_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "round").symlink_to("round")
    assert umount_helper.main([str(tmp_path / "round")]) == 32
    assert "symbolic links" in capsys.readouterr().err


def test_mount_and_umount_are_told_that_they_were_interrupted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("sosfs.cli.main.mount", interrupted)
    monkeypatch.setattr(umount, "run", interrupted)
    assert mount_helper.main(["bucket", str(tmp_path)]) == 8
    assert umount_helper.main([str(tmp_path)]) == 8
