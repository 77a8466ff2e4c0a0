"""What `sosfs pending` and `sosfs retry` tell and do of changes that a bad server keeps from the bucket."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sosfs.cli import pending as pending_command
from sosfs.cli import status as status_command
from sosfs.cli.pending import Target
from sosfs.cli.status import Output, Seen
from sosfs.daemon import mountpoint
from sosfs.ipc import commands
from sosfs.ipc import status as ipc_status
from sosfs.ipc.commands import Tell, Told
from tests.conftest import HURRY, Mounter, access_to, new_bucket
from tests.daemon.test_other_users import as_user, enter
from tests.support.drive import Drive, eventually, status
from tests.support.faults import Answer, Hang, Reset, Throttle
from tests.support.foreign import Foreign
from tests.support.mounting import SOSFS, Mount, run_sosfs
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.traffic import Op, on
from tests.support.watchdog import Watchdog

MIB = 1 << 20
JOURNAL = ("--durability", "journal")
REFUSED = Answer(403, "AccessDenied")


@pytest.fixture
def server(moto: Server) -> Server:
    """One is enough: the proxy makes the trouble."""
    return moto


@pytest.fixture
def kept(mounter: Mounter, proxy: Proxy) -> Iterator[Drive]:
    """A mount in journal mode that gives up soon; its log may tell of trouble, and at the end nothing is broken."""
    drive = mounter(proxy.endpoint, *HURRY, *JOURNAL, "--ttl", "600")
    drive.mount.allow_log(r"WARNING|ERROR")
    list(drive.here.iterdir())  # then a name that is new needs no request
    yield drive
    proxy.heal()


@pytest.fixture
def patient(mounter: Mounter, proxy: Proxy) -> Iterator[Drive]:
    """A mount in journal mode that waits for a slow server."""
    drive = mounter(proxy.endpoint, *JOURNAL, "--part-size", "5M")
    drive.mount.allow_log(r"WARNING|ERROR")
    yield drive
    proxy.heal()


def command(drive: Drive, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return run_sosfs(arguments, drive.mount.environment)


def pending(drive: Drive, *paths: Path) -> list[dict[str, Any]]:
    """What waits, as programs read it."""
    done = command(drive, "pending", *(paths or [drive.here]), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    return list(json.loads(done.stdout))


def eventually_pending(drive: Drive, holds: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
    """What waits, as soon as it is as it should be."""
    seen: list[dict[str, Any]] = []

    def look() -> bool:
        seen[:] = pending(drive)
        return holds(seen)

    eventually(look)
    return seen


def failed(changes: list[dict[str, Any]], count: int) -> bool:
    """Whether so many changes were tried in vain, and wait for another try."""
    return len(changes) == count and all(one["error"] and one["retry_at"] for one in changes)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> dict[Path, Told]:
    """What the daemon of each mount tells; one that is not in it does not answer."""
    told: dict[Path, Told] = {}

    def ask(target: Target, errand: str, news: Tell) -> Told:
        if target.mountpoint not in told:
            raise OSError(errno.ETIMEDOUT, "does not answer", str(target.mountpoint))
        return told[target.mountpoint]

    monkeypatch.setattr(Target, "ask", ask)
    monkeypatch.setattr(pending_command, "_target", lambda given: Target(Path(given), 0, ()))
    return told


def change(path: str) -> Told:
    return {"path": path, "kind": "content", "since": time.time(), "size": 5, "uploaded": 0, "error": "", "retry_at": 0}


@pytest.mark.parametrize(
    ("tried", "left", "code", "line"),
    [
        (0, 0, 0, "nothing waits there"),
        (2, 0, 0, "2 changes tried, none still wait"),
        (2, 1, 1, "2 changes tried, 1 still waits"),
        (2, 3, 1, "2 changes tried, 3 still wait"),
    ],
)
def test_a_retry_has_failed_as_long_as_something_waits(
    told: dict[Path, Told], capsys: pytest.CaptureFixture[str], tried: int, left: int, code: int, line: str
) -> None:
    told[Path("/m")] = {"tried": tried, "total": left, "changes": [change("f")][:left]}
    assert pending_command.retry("/m") == code
    out, err = capsys.readouterr()
    assert out == f"{line}\n"
    assert [one.partition(": ")[0] for one in err.splitlines()] == ["/m/f", "and 2 more"][:left]


def test_of_mounts_that_do_not_answer_it_is_not_told_that_nothing_waits(
    told: dict[Path, Told], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = ipc_status.Status(7, "b", "", "/m", "http://localhost", ipc_status.MountPhase.MOUNTED)
    seen = [Seen("/silent", now), Seen("/dead", None, "its daemon is gone"), Seen("/m", now)]
    monkeypatch.setattr(mountpoint, "table", list)
    monkeypatch.setattr(status_command, "everywhere", lambda: seen)
    told[Path("/m")] = {"total": 1, "changes": [change("f")]}
    assert pending_command.show(None, Output.TEXT) == 1
    out, err = capsys.readouterr()
    assert [line.partition(": ")[0] for line in out.splitlines()] == ["/m/f", "1 change waits, 5 bytes"]
    assert [line.split(": ")[1:] for line in err.splitlines()] == [
        ["/silent", "does not answer"],
        ["/dead", "its daemon is gone"],
    ]
    del seen[:2]
    assert pending_command.show(None, Output.JSON) == 0
    assert [one["mountpoint"] for one in json.loads(capsys.readouterr().out)] == ["/m"]


def test_each_mount_is_asked_where_its_owner_has_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Root asks for everybody's; one that was unmounted is in no table, and its owner's own to ask for."""
    now = ipc_status.Status(7, "b", "", "", "http://localhost", ipc_status.MountPhase.MOUNTED)
    asked = list[tuple[str, int]]()

    def ask(target: Target, errand: str, news: Tell) -> Told:
        asked.append((str(target.mountpoint), target.owner))
        return {"total": 0, "changes": []}

    monkeypatch.setattr(Target, "ask", ask)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(
        mountpoint, "table", lambda: [mountpoint.Mount(Path("/his"), mountpoint.TYPE, "b", 1234, "0:1")]
    )
    monkeypatch.setattr(status_command, "everywhere", lambda: [Seen("/his", now), Seen("/drains", now)])
    assert pending_command.show(None, Output.TEXT) == 0
    assert asked == [("/his", 1234), ("/drains", 0)]
    assert capsys.readouterr().out == "nothing waits\n"


def test_what_waits_why_and_when_it_is_tried_again(kept: Drive, proxy: Proxy) -> None:
    began = time.time()
    proxy.inject(REFUSED, on(Op.PUT))
    (kept.here / "d").mkdir()
    (kept.here / "d/one").write_bytes(b"x" * 1000)
    (kept.here / "two").write_bytes(b"yy")
    changes = eventually_pending(kept, lambda changes: failed(changes, 3))
    assert {(one["path"], one["kind"], one["size"]) for one in changes} == {
        ("d", "attributes", 0),
        ("d/one", "content", 1000),
        ("two", "content", 2),
    }
    for one in changes:
        assert began - 1 <= one["since"] <= time.time()
        assert "AccessDenied" in one["error"]
        assert one["retry_at"] > one["since"]
        assert one["mountpoint"] == str(kept.mount.path)
    told = command(kept, "pending", kept.here / "d/one").stdout.splitlines()
    place = re.escape(str(kept.here / "d/one"))
    assert re.fullmatch(rf"{place}: 1.0 kB, 0 % up, for \d+ s: .*AccessDenied.*; tried again in \d+ (s|min)", told[0])
    assert told[1:] == ["1 change waits, 1.0 kB"]
    assert command(kept, "pending", kept.here).stdout.splitlines()[-1] == "3 changes wait, 1.0 kB"


def test_retry_tries_what_is_meant_and_tells_what_still_waits(kept: Drive, proxy: Proxy) -> None:
    a, _ = proxy.inject(REFUSED, on(Op.PUT, key="a")), proxy.inject(REFUSED, on(Op.PUT, key="b"))
    for name in ("a", "b"):
        (kept.here / name).write_bytes(name.encode())
    eventually_pending(kept, lambda changes: failed(changes, 2))
    done = command(kept, "retry", kept.here / "a")
    assert (done.returncode, done.stdout) == (1, "1 change tried, 1 still waits\n")
    assert re.match(rf"{re.escape(str(kept.here / 'a'))}: 1 byte, .*AccessDenied", done.stderr)
    a.times = 0
    done = command(kept, "retry", kept.here)
    assert done.returncode == 1, "b is still refused"
    assert str(kept.here / "b") in done.stderr
    assert str(kept.here / "a") not in done.stderr
    assert kept.stored(kept.here / "a") == b"a"
    assert [one["path"] for one in pending(kept)] == ["b"]
    proxy.heal()
    assert command(kept, "retry", kept.mount.path).returncode == 0
    assert kept.stored(kept.here / "b") == b"b"
    assert command(kept, "pending", kept.here).stdout == "nothing waits\n"
    assert command(kept, "retry", kept.here).stdout == "nothing waits there\n"


def test_removals_and_attributes(kept: Drive, proxy: Proxy, foreign: Foreign) -> None:
    for name in ("gone", "mode"):
        (kept.here / name).write_bytes(b"x")
    eventually(lambda: not pending(kept))
    proxy.inject(REFUSED, on(Op.COPY))
    (kept.here / "prover").write_bytes(b"")
    eventually(lambda: foreign.exists("prover"))
    (kept.here / "prover").unlink()  # what follows is answered before it is sent
    proxy.inject(REFUSED, on(Op.DELETE, Op.DELETE_MANY))
    (kept.here / "gone").unlink()
    (kept.here / "mode").chmod(0o600)
    changes = eventually_pending(kept, lambda changes: failed(changes, 2))
    assert {(one["path"], one["kind"]) for one in changes} == {("gone", "removal"), ("mode", "attributes")}
    assert command(kept, "retry", kept.here).returncode == 1
    proxy.heal()
    assert command(kept, "retry", kept.here).returncode == 0
    assert not foreign.exists("gone")
    assert foreign.metadata("mode")["mode"] == str(0o100600)


def test_a_server_that_is_away_keeps_nobody_waiting(kept: Drive, proxy: Proxy) -> None:
    """All is answered from what the mount knows, and told with its place: the journal."""
    proxy.inject(Reset())
    for name in ("a", "b"):
        (kept.here / name).write_bytes(name.encode())
    eventually(lambda: status(kept).silent_since > 0 and status(kept).pending_files == 2)
    told = command(kept, "status", kept.here).stdout
    assert re.search(
        r"^server     does not answer since \d\d:\d\d:\d\d \(.+\); 2 changes wait in the journal$", told, re.MULTILINE
    )
    assert re.search(r"^pending    2 changes not in the bucket yet \(2 bytes\), the oldest for", told, re.MULTILINE)
    with proxy.broken(Hang()):
        assert len(pending(kept)) == 2
    proxy.heal()
    assert command(kept, "retry", kept.here).returncode == 0
    assert status(kept).silent_since == 0
    assert re.search(r"^server     answers$", command(kept, "status", kept.here).stdout, re.MULTILINE)
    assert status(kept).retries > 0


def test_bytes_inside_one_request_are_told(patient: Drive, proxy: Proxy) -> None:
    size = 8 * MIB
    proxy.inject(Throttle(MIB // 4), on(Op.PUT))
    (patient.here / "f").write_bytes(random.Random(1).randbytes(size))
    seen = set[int]()

    def moves() -> bool:
        now = ipc_status.fetch(patient.mount.path)
        assert now is not None
        assert 0 <= now.uploaded_bytes <= now.pending_bytes == size
        seen.add(now.uploaded_bytes)
        return len(seen - {0, size}) >= 2

    eventually(moves, seconds=40)
    (one,) = pending(patient)
    assert one["size"] == size
    assert one["uploaded"] >= max(seen)
    assert re.search(r": 8.4 MB, \d+ % up, for \d+ s$", command(patient, "pending").stdout, re.MULTILINE)
    proxy.heal()
    proxy.drop_connections()
    eventually(lambda: not pending(patient), seconds=60)
    assert status(patient).uploaded_bytes == 0


def test_parts_that_are_up_are_told(patient: Drive, proxy: Proxy) -> None:
    held = proxy.inject(Hang(), lambda request: request.query.get("partNumber") == "2")
    (patient.here / "f").write_bytes(random.Random(1).randbytes(20 * MIB))
    eventually(lambda: held.hits > 0)
    eventually(lambda: 15 * MIB <= status(patient).uploaded_bytes <= 20 * MIB)
    assert status(patient).pending_bytes == 20 * MIB, "none of it is in the bucket"
    proxy.heal()
    proxy.drop_connections()
    eventually(lambda: not pending(patient), seconds=60)


def test_others_are_told_no_names(
    mounter: Mounter, proxy: Proxy, foreign: Foreign, monkeypatch: pytest.MonkeyPatch
) -> None:
    drive = mounter(proxy.endpoint, *HURRY, *JOURNAL, "--allow-other")
    drive.mount.allow_log(r"WARNING|ERROR")
    enter(drive)
    proxy.inject(REFUSED, on(Op.PUT))
    (drive.here / "confidential").write_bytes(b"x")
    eventually_pending(drive, lambda changes: failed(changes, 1))
    told = as_user(4321, ["cat", drive.mount.path / ".sosfs/status"]).stdout
    assert json.loads(told)["pending_files"] == 1
    assert b"confidential" not in told
    for suffix in (".sock", commands.SUFFIX):
        path = ipc_status.socket_path(drive.mount.path, suffix=suffix)
        assert path.is_socket()
        assert as_user(4321, ["ls", path]).returncode != 0
    mounts = mountpoint.table()
    assert drive.mount.path in {mount.mountpoint for mount in status_command.askable(mounts)}
    monkeypatch.setattr(os, "geteuid", lambda: 4321)
    assert status_command.askable(mounts) == []
    monkeypatch.undo()
    proxy.heal()


def test_a_daemon_that_hangs_costs_a_line(kept: Drive) -> None:
    (kept.here / "d").mkdir()
    eventually(lambda: not pending(kept))
    os.kill(kept.mount.pid, signal.SIGSTOP)
    try:
        for name, path in (("pending", "d"), ("retry", "d"), ("status", "d/x")):
            done = command(kept, name, kept.here / path)
            assert done.returncode == 1
            assert done.stderr == f"sosfs: {kept.mount.path}: the daemon of this mount does not answer\n"
        done = command(kept, "status")
        assert done.returncode == 1
        assert re.search(
            rf"^{re.escape(str(kept.mount.path))} +the daemon of this mount does not answer$", done.stdout, re.MULTILINE
        )
    finally:
        os.kill(kept.mount.pid, signal.SIGCONT)


def test_all_buckets(moto: Server, proxy: Proxy, watchdog: Watchdog, tmp_path: Path) -> None:
    """The first name of a path is its bucket."""
    one, two = new_bucket(moto), new_bucket(moto)
    with Mount(access_to(moto, proxy.endpoint), "", tmp_path, watchdog, (*HURRY, *JOURNAL)) as mount:
        mount.allow_log("WARNING|ERROR")
        drive = Drive(mount, one, mount.path)
        rule = proxy.inject(REFUSED, on(Op.PUT))
        for bucket in (one, two):
            (mount.path / bucket.bucket / "f").write_bytes(b"f")
        paths = {f"{bucket.bucket}/f" for bucket in (one, two)}
        changes = eventually_pending(drive, lambda changes: failed(changes, 2))
        assert {change["path"] for change in changes} == paths
        assert len(pending(drive, mount.path / one.bucket)) == 1
        rule.times = 0
        assert command(drive, "retry", mount.path / one.bucket / "f").returncode == 0
        assert one.keys() == ["f"]
        assert command(drive, "retry", mount.path).returncode == 0
        assert two.keys() == ["f"]


def test_a_draining_mount_is_listed_and_asked_by_its_place(patient: Drive, proxy: Proxy) -> None:
    proxy.inject(Hang(), on(Op.PUT))
    (patient.here / "f").write_bytes(b"f")
    assert command(patient, "umount", patient.mount.path, "--timeout", "0.1").returncode == 3
    listed = json.loads(command(patient, "status", "--json").stdout)
    assert [one["state"] for one in listed if one["mountpoint"] == str(patient.mount.path)] == ["draining"]
    assert "unmounted, sending what waits" in command(patient, "status", patient.mount.path).stdout
    assert [one["path"] for one in pending(patient, patient.mount.path)] == ["f"]
    proxy.heal()
    proxy.drop_connections()
    eventually(lambda: patient.foreign.keys() == ["f"] and ipc_status.fetch(patient.mount.path) is None, seconds=30)


def test_a_retry_that_is_called_off_loses_nothing(kept: Drive, proxy: Proxy) -> None:
    proxy.inject(REFUSED, on(Op.PUT))
    (kept.here / "f").write_bytes(b"f")
    eventually_pending(kept, lambda changes: failed(changes, 1))
    proxy.heal()
    held = proxy.inject(Hang(), on(Op.PUT), times=1)
    environment = kept.mount.environment
    with subprocess.Popen([*SOSFS, "retry", str(kept.here)], env=environment, stderr=subprocess.PIPE) as process:
        eventually(lambda: held.hits == 1)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    assert [one["path"] for one in pending(kept)] in (["f"], [])
    eventually(lambda: kept.foreign.keys() == ["f"], seconds=30)


def test_outside_of_a_mount_is_an_error(kept: Drive, tmp_path: Path) -> None:
    for name in ("pending", "retry"):
        done = command(kept, name, tmp_path)
        assert done.returncode == 1
        assert os.strerror(errno.ENOTCONN) not in done.stderr
        assert done.stderr == f"sosfs: {tmp_path}: nothing of sosfs is mounted there\n"
