"""What `sosfs status` says in words and live, and that long waits of other commands speak."""

from __future__ import annotations

import errno
import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

from sosfs.cli import location, progress, status, watch
from sosfs.cli.doctor import findings
from sosfs.cli.doctor.findings import Finding, Verdict
from sosfs.cli.progress import Step
from sosfs.cli.status import Output
from sosfs.daemon import mountpoint
from sosfs.daemon.mountpoint import Mount, MountState
from sosfs.ipc import status as ipc_status
from sosfs.ipc.status import MountPhase, Status
from sosfs.log.wording import counted, lasting
from tests.conftest import Mounter
from tests.support.drive import Drive
from tests.support.faults import Hang, Rule
from tests.support.foreign import Foreign, numbered
from tests.support.mounting import SOSFS, run_sosfs
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.traffic import Op, on
from tests.support.waiting import SECONDS, until

NOW = Status(7, "photos", "", "/mnt/photos", "https://sos-ch-dk-2.exo.io", MountPhase.MOUNTED)
# The program as it is installed, but that a line of progress is due at once.
IMPATIENT = "import sys; from sosfs.cli import main, progress; progress.LINE_SECONDS = 0; sys.exit(main.main())"


def moment(**values: object) -> Status:
    return Status.from_json(json.dumps({**json.loads(NOW.to_json()), **values}))


@pytest.fixture
def server(moto: Server) -> Server:
    """One is enough."""
    return moto


class TestWords:
    @pytest.mark.parametrize(
        ("values", "line"),
        [
            ({}, "pending    all is in the bucket"),
            ({"pending_files": 1}, "pending    1 change not in the bucket yet"),
            ({"pending_files": 2, "pending_bytes": 1}, "pending    2 changes not in the bucket yet (1 byte)"),
            (
                {"pending_files": 2, "pending_bytes": 5000, "uploaded_bytes": 1000},
                "pending    2 changes not in the bucket yet (5.0 kB, 1.0 kB of them are up)",
            ),
            ({"memory_bytes": 3000, "memory_limit": 9000}, "memory     3.0 kB in use for data and names, of 9.0 kB"),
            (
                {"resident_bytes": 5000, "memory": {"names": 2000, "program": 3000}},
                "resident   5.0 kB: 2.0 kB of names and attributes, 3.0 kB of the program and all else",
            ),
            ({"conditions": "honoured"}, "conditions honoured: the server refuses to overwrite what another host"),
            ({"conditions": "ignored"}, "conditions ignored: sosfs looks before it writes"),
            ({"caches": {"memory": [3, 4]}}, "cache      data in memory: 75 % of 4 questions answered from here"),
            ({"caches": {"disk": [0, 0]}}, "cache      data on disk: not asked yet"),
            ({"requests": {"GetObject": 1200}, "retries": 1}, "requests   1,200 GetObject; 1 try made again"),
            ({"bucket": "", "buckets": {"a": 1}}, "in use     a, 1 pending"),
            ({"waiting": ["why"]}, "waiting    why"),
            ({"keeps_versions": True}, "versions   kept of all that is overwritten"),
            ({"locks_objects": True}, "locks      what is locked"),
            (
                {"waiting_writers": 2, "state_dir": "/c", "free_bytes": 5},
                "room       2 writers wait for room in /c, 5 bytes free",
            ),
            ({"transfers": 9, "allowed": 9}, "limits     9 requests at once; no limit up, no limit down"),
            (
                {"transfers": 9, "allowed": 3, "refusals": 4, "upload_rate": 1 << 20, "download_rate": 1000},
                "limits     9 requests at once, 3 for now, as the server has asked for fewer 4 times; 1M/s up, 1000/s",
            ),
            ({"retries": 2, "failures": 1}, "requests   none; 2 tries made again; 1 given up"),
            ({"durability": "writeback"}, "durability writeback: fsync waits for this machine's disk; all is there"),
            (
                {"durability": "writeback", "unsynced_changes": 2, "unsynced_bytes": 5000, "unsynced_since": 1.0},
                "durability writeback: fsync waits for this machine's disk; 2 changes not there yet (5.0 kB), the",
            ),
            ({"damaged": ["what: where"]}, "damaged    what: where"),
            ({"errors": ["whatever"]}, "error      whatever"),
        ],
    )
    def test_a_fact_a_line(self, values: dict[str, object], line: str) -> None:
        assert any(shown.startswith(line) for shown in status.text(moment(**values))), status.text(moment(**values))

    @pytest.mark.parametrize(
        ("durability", "files", "told"),
        [
            ("journal", 3, "3 changes wait in the journal"),
            ("journal", 1, "1 change waits in the journal"),
            ("bucket", 2, "2 changes wait on this machine"),
        ],
    )
    def test_a_server_that_is_away(self, durability: str, files: int, told: str) -> None:
        now = moment(silent_since=time.time(), silence="connection refused", durability=durability, pending_files=files)
        assert status.server(now).endswith(f" (connection refused); {told}")
        assert status.server(now).startswith("does not answer since ")

    @pytest.mark.parametrize(("name", "mark"), [("keeps_versions", "versions "), ("locks_objects", "locks ")])
    def test_what_is_not_so_has_no_line(self, name: str, mark: str) -> None:
        assert not any(line.startswith(mark) for line in status.text(moment(**{name: False})))

    def test_a_server_that_is_away_is_what_matters_most(self) -> None:
        now = moment(silent_since=time.time(), silence="connection refused", pending_files=3)
        assert "mounted, the server does not answer since" in status.brief(now)

    def test_who_may_not_ask_is_told_whom_it_answers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        mount = Mount(Path("/mnt/photos"), "fuse.sosfs", "photos", 1234, "0:1")
        monkeypatch.setattr(mountpoint, "table", lambda: [mount])
        monkeypatch.setattr(mountpoint, "at", lambda path: mount)
        monkeypatch.setattr(ipc_status, "fetch", lambda path, owner: None)
        for state, told in ((MountState.LIVE, "ask as who mounted it, user 1234"), (MountState.DEAD, "clears it")):
            monkeypatch.setattr(mountpoint, "state", lambda path, state=state: state)
            with pytest.raises(OSError, match=told):
                status.of_path("/mnt/photos/2026")

    def test_an_overview_has_each_mount_of_this_user_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A bind mount shows the same one again."""
        mounts = [
            Mount(Path(path), kind, "b", owner, device)
            for path, kind, owner, device in (
                ("/", "ext4", 0, "8:1"),
                ("/a", "fuse.sosfs", 5, "0:1"),
                ("/b", "fuse.sosfs", 6, "0:2"),
                ("/c", "fuse.sosfs", 5, "0:1"),
            )
        ]
        for uid, shown in ((0, ["/a", "/b"]), (5, ["/a"]), (6, ["/b"]), (7, [])):
            monkeypatch.setattr(os, "geteuid", lambda uid=uid: uid)
            assert sorted(str(mount.mountpoint) for mount in status.askable(mounts)) == shown

    def test_an_overview_has_a_line_each(self) -> None:
        seen = [
            status.Seen("/mnt/photos", moment(pending_files=2)),
            status.Seen("/a", None, "the daemon of this mount does not answer"),
            status.Seen("/m\x1b[2J", moment(bucket="", state="draining", damaged=["x"])),
        ]
        assert status.overview(seen) == [
            "/mnt/photos  photos       mounted, 2 changes not in the bucket yet",
            "/a           the daemon of this mount does not answer",
            "/m\\x1b[2J    all buckets  unmounted, sending what waits, all is in the bucket, 1 damaged file or change",
        ]

    @pytest.mark.parametrize("output", status.Output)
    def test_a_mount_that_does_not_answer_is_a_failure(
        self, monkeypatch: pytest.MonkeyPatch, output: status.Output
    ) -> None:
        seen = [status.Seen("/a", moment())]
        monkeypatch.setattr(status, "everywhere", lambda: seen)
        assert status.run(None, output) == 0
        seen.append(status.Seen("/b", None, "does not answer"))
        assert status.run(None, output) == 1

    def test_numbers(self) -> None:
        assert [counted(n, "file") for n in (0, 1, 2, 1234)] == ["0 files", "1 file", "2 files", "1,234 files"]
        assert [lasting(s) for s in (-1, 3.4, 99, 100, 3600, 7500, 86400 * 3)] == [
            *("0 s", "3 s", "99 s", "1 min", "60 min", "2 h 5 min", "3 days"),
        ]


class TestRates:
    def test_between_two_looks(self) -> None:
        before = moment(sent_bytes=100, moving_bytes=50, requests={"GetObject": 1}, retries=1)
        requests = {"GetObject": 5, "PutObject": 2}
        now = moment(sent_bytes=300, moving_bytes=250, received_bytes=20, requests=requests, retries=3)
        rates = watch.between(before, now, 2.0)
        assert (rates.up, rates.down, rates.requests, rates.retries) == (200, 10, {"GetObject": 2, "PutObject": 1}, 1)
        assert rates.total == 3
        assert rates.left(moment(pending_bytes=1000, uploaded_bytes=400)) == 3.0
        assert rates.left(moment()) is None

    def test_what_was_given_up_is_no_negative_rate_and_another_daemon_no_rate(self) -> None:
        assert watch.between(moment(moving_bytes=9), moment(), 1.0).up == 0
        assert watch.between(moment(), moment(pid=8, sent_bytes=9), 1.0).up == 0

    def test_a_picture(self) -> None:
        clock = iter([0.0, 10.0])
        history = watch.History(lambda: next(clock))
        history.add(moment())
        now = moment(sent_bytes=20_000, pending_files=1, pending_bytes=8000, requests={"PutObject": 40}, failures=2)
        picture = "\n".join(watch.picture([status.Seen("/mnt/photos", now)], history))
        for line in (
            "up         2.0 kB/s, 20.0 kB in all",
            "queue      1 change not in the bucket yet (8.0 kB); 4 s left at this rate",
            "requests   4.0 a second: PutObject 4.0",
            "retries    0.0 a second, 0 in all; 2 given up",
        ):
            assert line in picture


class TestWatch:
    """What is told of a mount that is watched to its end."""

    @pytest.fixture
    def looks(self, monkeypatch: pytest.MonkeyPatch) -> list[Status | OSError]:
        """What each look finds."""
        looks: list[Status | OSError] = []

        def of_path(given: str) -> Status:
            assert given in ("/mnt/photos/2026", "/mnt/photos")
            found = looks.pop(0)
            if given != "/mnt/photos" and isinstance(found, Status) and found.state is MountPhase.DRAINING:
                raise OSError(errno.EINVAL, "a path in it is nothing once it is unmounted")
            if isinstance(found, OSError):
                raise found
            return found

        monkeypatch.setattr(status, "of_path", of_path)
        monkeypatch.setattr(watch, "LOOK_SECONDS", 0)
        return looks

    ENDED = OSError(errno.EINVAL, "nothing of sosfs is mounted there")

    def test_it_drains_and_ends(self, looks: list[Status | OSError], capsys: pytest.CaptureFixture[str]) -> None:
        looks += [NOW, moment(state="draining", pending_files=1), self.ENDED]
        assert watch.run("/mnt/photos/2026", Output.TEXT) == 0
        told = capsys.readouterr().out
        assert "sending what waits" in told
        assert told.endswith("the mount has ended\n")

    def test_json_is_nothing_else(self, looks: list[Status | OSError], capsys: pytest.CaptureFixture[str]) -> None:
        looks += [NOW, self.ENDED]
        assert watch.run("/mnt/photos", Output.JSON) == 0
        assert [json.loads(line)["pid"] for line in capsys.readouterr().out.splitlines()] == [NOW.pid]

    def test_a_daemon_that_dies_is_no_end(self, looks: list[Status | OSError]) -> None:
        looks += [NOW, OSError(errno.ENOTCONN, "its daemon is gone")]
        with pytest.raises(OSError, match="is gone"):
            watch.run("/mnt/photos", Output.TEXT)

    @pytest.mark.parametrize("error", [TimeoutError(errno.ETIMEDOUT, "says no"), OSError(errno.EIO, "says no")])
    def test_one_that_cannot_tell_is_looked_at_again(
        self, looks: list[Status | OSError], capsys: pytest.CaptureFixture[str], error: OSError
    ) -> None:
        looks += [NOW, error, NOW, self.ENDED]
        assert watch.run("/mnt/photos", Output.JSON) == 0
        assert [json.loads(line).get("error") for line in capsys.readouterr().out.splitlines()] == [
            None,
            "says no",
            None,
        ]


class TestPlace:
    """Which mount a path is in is found without a look into it."""

    def test_by_name_alone(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def of(path: Path, kind: str = "fuse.sosfs") -> Mount:
            return Mount(path, kind, "b", 0, "0:1")

        root, outer, inner = tmp_path / "plain", tmp_path / "outer", tmp_path / "outer/a/inner"
        for path in (root, inner):
            path.mkdir(parents=True)
        (tmp_path / "link").symlink_to("outer/a")
        (tmp_path / "round").symlink_to("round")
        mounts = [of(Path("/"), "ext4"), of(outer), of(inner)]
        asked: list[Path] = []
        real = Path.readlink

        def readlink(path: Path) -> Path:
            asked.append(path)
            return real(path)

        monkeypatch.setattr(Path, "readlink", readlink)

        def found(path: Path | str) -> tuple[Path, tuple[bytes, ...]] | None:
            place = location.holding(str(path), mounts)
            return (place.mount.mountpoint, place.names) if place else None

        assert found(outer) == (outer, ())
        assert found(outer / "x/y") == (outer, (b"x", b"y"))
        assert found(tmp_path / "link/z") == (outer, (b"a", b"z"))
        assert found(inner / "z") == (inner, (b"z",))
        assert found(root / "z") is None
        assert not [path for path in asked if path.is_relative_to(outer)]
        with pytest.raises(OSError, match="symbolic links"):
            found(tmp_path / "round/x")
        monkeypatch.chdir(root)
        assert found("../outer/./x") == (outer, (b"x",))


def test_all_mounts_and_any_path_in_one(mounter: Mounter) -> None:
    drives = [mounter(), mounter()]
    environment = drives[0].mount.environment
    done = run_sosfs(["status"], environment)
    for drive in drives:
        bucket = drive.foreign.bucket
        assert re.search(
            rf"^{re.escape(str(drive.mount.path))} +{bucket} +mounted, all is in the bucket$", done.stdout, re.MULTILINE
        )
    listed = json.loads(run_sosfs(["status", "--json"], environment).stdout)
    assert {str(drive.mount.path) for drive in drives} <= {one["mountpoint"] for one in listed}
    inside = json.loads(run_sosfs(["status", drives[1].here / "not/there", "--json"], environment).stdout)
    assert inside["pid"] == drives[1].mount.pid


def test_live_in_a_pipe_as_lines_of_json_and_on_a_terminal(mounter: Mounter) -> None:
    drive = mounter()
    (drive.here / "f").write_bytes(b"x" * 1000)
    command = [*SOSFS, "status", "--watch", str(drive.here)]
    for options, marks in (((), ["up ", "requests  "]), (("--json",), ['"sent_bytes": 1000', '"rates": {"up": '])):
        with subprocess.Popen(
            [*command, *options], env=drive.mount.environment, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            for mark in marks:
                assert any(mark in line for line in process.stdout)
            process.send_signal(signal.SIGINT)
            assert process.wait(SECONDS) == 0
    ours, theirs = pty.openpty()
    with (
        closing(os.fdopen(ours, "rb", buffering=0)) as screen,
        subprocess.Popen(command, env={**drive.mount.environment, "TERM": "xterm"}, stdout=theirs) as process,
    ):
        os.close(theirs)
        shown = b""
        while shown.count(b"queue") < 2:
            shown += screen.read(4096)
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) == 0
    assert b"\x1b[" in shown, "it is repainted"


def test_what_caches_have_answered(mounter: Mounter, foreign: Foreign) -> None:
    foreign.put("f", b"x" * 300_000)
    drive = mounter("", "--cache-size", "64M")
    for _ in range(3):
        with (drive.here / "f").open("rb", buffering=0) as file:
            assert len(os.pread(file.fileno(), 1000, 0)) == 1000
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    caches = json.loads(run_sosfs(["status", drive.here, "--json"], drive.mount.environment).stdout)["caches"]
    hits, asked = caches["memory"]
    assert 1 <= hits < asked
    assert caches["attributes"][0] < caches["attributes"][1]
    assert caches["disk"][0] <= caches["disk"][1]


class TestProgress:
    def test_lines_off_a_terminal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clock = [0.0]
        monkeypatch.setattr(progress, "monotonic", lambda: clock[0])
        said = io.StringIO()
        monkeypatch.setattr(sys, "stderr", said)
        with progress.of_bytes() as shown:
            shown.tell(Step("sending, 2 files left", 0, 4000))
            assert not shown.was_shown, "what is quick is silent"
            for clock[0], done in ((10.0, 1000), (15.0, 2000), (20.5, 3000)):
                shown.tell(Step("sending\x1b, 1 file left", done, 4000))
        assert said.getvalue() == (
            "sosfs: sending\\x1b, 1 file left: 1.0 kB of 4.0 kB\nsosfs: sending\\x1b, 1 file left: 3.0 kB of 4.0 kB\n"
        )
        assert shown.was_shown

    def test_where_nothing_comes_about_the_newest_is_told_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(progress, "LINE_SECONDS", 0.1)
        said = io.StringIO()
        monkeypatch.setattr(sys, "stderr", said)
        with progress.of_items("looking") as shown:
            until(lambda: "sosfs: looking\n" in said.getvalue(), "it speaks")
            shown.tell(Step("trying", 1, 3))
            until(lambda: said.getvalue().count("sosfs: trying: 1 of 3\n") >= 2, "it speaks again")
        with progress.of_items() as shown:
            until(lambda: not shown._ended.wait(0.3), "it has looked")
            assert not shown.was_shown, "there is nothing to tell yet"

    def test_long_waits_speak(self, mounter: Mounter, foreign: Foreign, proxy: Proxy) -> None:
        """Each command off a terminal, while the server does not answer what it needs; at the end it counts."""
        foreign.keep_versions()
        for body in (b"old", b"new"):
            foreign.put_all({f"t/f{number}": body for number in range(4)})
        drive = mounter(proxy.endpoint, "--ttl", "0")
        drive.mount.allow_log("WARNING|ERROR")
        tree = drive.here / "t"
        for ops, arguments, line, summary in (
            ((Op.LIST,), ("warm", tree), "looking the paths up", "4 files: "),
            ((Op.GET_ACL,), ("acl", "get", "-r", tree), "looking|listing|reading ACLs", "# file: "),
            (
                (Op.PUT_ACL, Op.GET_ACL),
                ("acl", "set", "-r", "private", tree),
                "looking|listing|setting ACLs",
                "4 files changed",
            ),
            (
                (Op.HEAD, Op.GET, Op.COPY),
                ("headers", "set", "-r", "Cache-Control=no-cache", tree),
                "looking|listing|setting headers",
                "4 files changed",
            ),
            ((Op.LIST, Op.LIST_VERSIONS), ("du", tree), "looking|listing", f"{tree}\n"),
            ((Op.LIST_VERSIONS,), ("versions", tree), "listing", f"{tree}/f0\n"),
            ((Op.LIST_VERSIONS,), ("restore", "-n", tree), "looking", "0 files would be restored, 4 as before"),
            ((Op.LIST_VERSIONS,), ("versions", "--prune", "1", "--yes", tree), "removing", "old versions? "),
            ((Op.GET_ACL,), ("link", "--public", tree / "f0"), "asking the mount", "http"),
        ):
            command = [sys.executable, "-c", IMPATIENT, *map(str, arguments)]
            with (
                proxy.broken(Hang(), on(*ops)) as rule,
                subprocess.Popen(
                    command, env=drive.mount.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
                ) as process,
            ):
                assert process.stderr is not None
                assert process.stdout is not None
                told = process.stderr.readline()
                self.until_asked(rule, arguments)
                assert re.match(f"sosfs: (?:{line})", told), (arguments, told)
                proxy.heal()
                proxy.drop_connections()
                output, _ = process.communicate(timeout=60)
            assert process.returncode == 0, arguments
            assert re.search(summary, output), (arguments, output)

    def until_asked(self, rule: Rule, arguments: object) -> None:
        until(lambda: rule.hits, f"the server is asked: {arguments}")

    def run(self, drive: Drive, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", IMPATIENT, *map(str, arguments)],
            env=drive.mount.environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def test_of_warm_acl_and_umount(self, mounter: Mounter, foreign: Foreign, proxy: Proxy) -> None:
        foreign.put_all(numbered("t/f", 40))
        drive = mounter(proxy.endpoint, "--durability", "journal")
        done = self.run(drive, "warm", drive.here / "t")
        assert done.returncode == 0
        assert done.stdout.startswith("40 files: attributes only")
        done = self.run(drive, "acl", "set", "-r", "private", drive.here / "t")
        assert (done.returncode, done.stdout) == (0, "40 files changed\n")
        assert "sosfs: setting ACLs: 40 of 40\n" in done.stderr
        proxy.inject(Hang(), on(Op.PUT))
        (drive.here / "new").write_bytes(b"x" * 1000)
        command = [sys.executable, "-c", IMPATIENT, "umount", str(drive.mount.path)]
        with subprocess.Popen(command, env=drive.mount.environment, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            assert process.stderr.readline().startswith("sosfs: sending, 1 file left")
            proxy.heal()
            proxy.drop_connections()
            *_, last = process.stderr
            assert last == "sosfs: all is in the bucket: 1 file, 1.0 kB\n"
            assert process.wait(SECONDS) == 0
        drive.mount.clear()


@pytest.mark.parametrize(
    ("told", "line"),
    [
        ([], "everything a mount needs is there"),
        ([("bucket", Verdict.UNKNOWN)], "everything a mount needs is there, as far as can be told without a bucket"),
        ([("a", Verdict.WARNING)], "everything a mount needs is there; 1 warning, first: a: it is a"),
        ([("a", Verdict.WARNING), ("b", Verdict.FAIL)], "1 problem, first: b: it is b"),
        ([("b", Verdict.FAIL), ("c", Verdict.FAIL)], "2 problems, first: b: it is b"),
    ],
)
def test_doctor_ends_with_its_verdict(told: Sequence[tuple[str, Verdict]], line: str) -> None:
    assert findings.summary([Finding(what, verdict, f"it is {what}") for what, verdict in told]) == line
