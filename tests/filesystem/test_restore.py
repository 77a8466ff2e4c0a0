"""`sosfs restore` and `sosfs versions`: what comes back after a loss, how, and what stays as it is."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from sosfs.files.debounce import VERSIONED_DELAY
from tests.conftest import Mounter, access_to
from tests.support.drive import Drive, eventually, names, status, sync, tree
from tests.support.foreign import Foreign, numbered
from tests.support.mounting import Mount, run_sosfs
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.traffic import Op
from tests.support.watchdog import Watchdog

CEPH = pytest.mark.parametrize("server", ["ceph"], indirect=True)  # it enforces ACLs
MOTO = pytest.mark.parametrize("server", ["moto"], indirect=True)  # where the server makes no difference


@pytest.fixture
def keeping(foreign: Foreign, mounter: Mounter, proxy: Proxy) -> Drive:
    """A mount of a bucket that keeps versions, through the proxy."""
    foreign.keep_versions()
    return mounter(proxy.endpoint, "--ttl", "600")


def command(drive: Drive, *arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = run_sosfs(arguments, drive.mount.environment)
    assert done.returncode == code, f"{done.stdout}{done.stderr}"
    return done


def restore(drive: Drive, *arguments: str | Path, code: int = 0) -> str:
    return command(drive, "restore", *arguments, code=code).stdout


def listed(drive: Drive, path: Path) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(command(drive, "versions", "--json", path).stdout)
    return found


def now() -> str:
    """This moment, with nothing happening for two seconds before and after it."""
    time.sleep(2.1)
    moment = datetime.now(UTC).isoformat()
    time.sleep(2.1)
    return moment


def attributes(path: Path) -> tuple[int, int, bytes]:
    found = path.stat()
    return found.st_mode, found.st_mtime_ns, os.getxattr(path, "user.sos.cache-control")


@pytest.mark.timeout(300)
def test_a_removed_tree_comes_back_with_one_command(keeping: Drive, proxy: Proxy) -> None:
    top = keeping.here / "t"
    keeping.foreign.put_all(numbered("t/d/f", 300))
    (top / "special").write_bytes(b"special")
    (top / "special").chmod(0o751)
    os.utime(top / "special", ns=(10**18, 10**18))
    os.setxattr(top / "special", "user.sos.cache-control", b"no-store")
    (top / "link").symlink_to("special")
    sync(top)  # else what was set a moment ago goes with the file, unsent
    before, kept = attributes(top / "special"), tree(top)
    assert len(kept) == 302  # the link's file too
    shutil.rmtree(top)
    assert not top.exists()
    with proxy.recording() as traffic:
        dry = restore(keeping, "-n", top)
    assert dry.splitlines()[-1].startswith("30"), dry
    assert f"{top}/d/f0007: " in dry
    assert "would be restored, 0 as before" in dry
    assert {request.op for request in traffic.requests} <= {Op.LIST_VERSIONS, Op.SETTING, Op.DELETE_MANY, Op.DELETE}
    assert not top.exists()
    assert "restored, 0 as before" in restore(keeping, top)
    assert tree(top) == kept
    assert attributes(top / "special") == before
    assert (top / "link").readlink() == Path("special")
    with proxy.recording() as traffic:
        told = restore(keeping, top)
    assert told.startswith("0 files restored, 30"), told
    assert not traffic.of(Op.COPY, Op.DELETE, Op.PUT), str(traffic)


def test_a_changed_file_that_is_named_gets_its_last_version(keeping: Drive) -> None:
    (keeping.here / "d").mkdir()
    path = keeping.here / "d/file"
    path.write_bytes(b"precious")
    path.chmod(0o640)
    os.sync()
    keeping.run("cp", "/dev/null", path)
    (keeping.here / "d/other").write_bytes(b"other")
    (keeping.here / "d/other").write_bytes(b"changed")
    assert "0 files restored" in restore(keeping, keeping.here / "d"), "only what is deleted, where a tree is named"
    assert "1 file restored" in restore(keeping, path)
    assert path.read_bytes() == b"precious"
    assert keeping.foreign.get("d/file") == b"precious"
    assert (keeping.here / "d/other").read_bytes() == b"changed"


def test_a_tree_as_it_was_at_a_time(keeping: Drive, proxy: Proxy) -> None:
    keeping.foreign.put_all({"t/changed": b"old", "t/gone": b"gone", "t/same": b"same", "out": b"old"})
    when = now()
    keeping.foreign.put_all({"t/changed": b"newer", "t/later": b"later", "out": b"new"})
    keeping.foreign.delete("t/gone")
    top = keeping.here / "t"
    assert names(top) == ["changed", "later", "same"]
    assert (top / "changed").read_bytes() == b"newer"
    assert not (top / "gone").exists()
    with proxy.recording() as traffic:
        told = restore(keeping, "--at", when, top)
    assert told == "2 files restored, 1 as before, 1 came later and stay\n"
    assert "t/same" not in {request.key for request in traffic.requests}, "what is the same costs nothing"
    assert tree(top) == {"changed": b"old", "gone": b"gone", "later": b"later", "same": b"same"}
    assert (keeping.here / "out").read_bytes() == b"new"
    assert "0 files restored" in restore(keeping, "--at", when, top)


@MOTO
@pytest.mark.timeout(300)
def test_a_stopped_restore_goes_on_where_it_stopped(keeping: Drive, proxy: Proxy) -> None:
    keeping.foreign.put_all(numbered("t/f", 200))
    keeping.foreign.delete(*numbered("t/f", 200))
    top = keeping.here / "t"
    assert list(top.glob("*")) == []  # moto shows a directory of which all is deleted
    proxy.latency = 0.3
    process = subprocess.Popen(
        [sys.executable, "-m", "sosfs", "restore", str(top)], env=keeping.mount.environment, stderr=subprocess.PIPE
    )
    eventually(lambda: sum(request.op is Op.DELETE for request in proxy.requests) >= 20, seconds=60)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    proxy.latency = 0.0
    assert (process.returncode, said) == (130, b"")
    eventually(lambda: 20 <= len(keeping.foreign.keys("t/")) < 200)
    told = restore(keeping, top)
    restored = int(told.split()[0])
    assert 0 < restored <= 180
    assert f"{200 - restored} as before" in told
    assert len(names(top)) == 200


def test_where_all_buckets_are_mounted(server: Server, foreign: Foreign, watchdog: Watchdog, tmp_path: Path) -> None:
    foreign.keep_versions()
    foreign.put("d/file", b"body")
    when = now()
    with Mount(access_to(server), "", tmp_path, watchdog) as mount:
        path = mount.path / foreign.bucket / "d/file"
        path.write_bytes(b"spoilt")
        assert (mount.path / foreign.bucket / ".sosfs/at" / when / "d/file").read_bytes() == b"body"
        path.unlink()
        done = run_sosfs(["restore", "--at", when, path], mount.environment)
        assert (done.returncode, done.stdout) == (0, "1 file restored, 0 as before\n"), done.stderr
        assert path.read_bytes() == b"body"
        done = run_sosfs(["versions", path], mount.environment)
        assert done.stdout.startswith(f"{path}\n"), done.stderr


@CEPH
def test_acls_come_back(keeping: Drive) -> None:
    client, bucket = keeping.foreign.client, keeping.foreign.bucket
    client.put_object(Bucket=bucket, Key="t/open", Body=b"old", ACL="public-read")
    client.put_object(Bucket=bucket, Key="t/removed", Body=b"old", ACL="public-read")
    client.put_object(Bucket=bucket, Key="t/open", Body=b"new")
    client.delete_object(Bucket=bucket, Key="t/removed")
    restore(keeping, keeping.here / "t/open", keeping.here / "t")
    for key in ("t/open", "t/removed"):
        assert keeping.foreign.get(key) == b"old"
        grants = client.get_object_acl(Bucket=bucket, Key=key)["Grants"]
        assert any(grant["Grantee"].get("URI", "").endswith("AllUsers") for grant in grants), grants


def test_unsent_changes_are_left_and_told(foreign: Foreign, mounter: Mounter) -> None:
    foreign.keep_versions()
    foreign.put("file", b"old")
    foreign.put("file", b"newer")
    drive = mounter()
    with (drive.here / "file").open("r+b") as file:
        file.write(b"mine!")
        file.flush()
        done = command(drive, "restore", drive.here / "file", code=1)
        assert "1 file left: open for writing" in done.stderr
        assert f"{drive.here}/file" in done.stderr
    assert foreign.get("file") == b"mine!"


@MOTO
def test_what_makes_no_sense_is_one_line_and_nothing_is_sent(keeping: Drive, proxy: Proxy) -> None:
    path = keeping.here / "file"
    path.write_bytes(b"body")
    ahead = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    wrong: Sequence[tuple[Sequence[str | Path], int, str]] = (
        (("restore", "--at", ahead, path), 2, "is in the future"),
        (("restore", "--at", "soonish", path), 2, "is no time"),
        (("restore", "/tmp"), 1, "not in a mount"),
        (("versions", "--older", "long", path), 2, "is no age"),
        (("versions", "--prune", "0", path), 2, "is no number above 0"),
        (("versions", "--prune", "3", path), 1, "--yes removes them unasked"),
    )
    with proxy.recording() as traffic:
        for arguments, code, words in wrong:
            done = subprocess.run(
                [sys.executable, "-m", "sosfs", *map(str, arguments)],
                env=keeping.mount.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert (done.returncode, words in done.stderr.splitlines()[-1]) == (code, True), done.stderr
    assert traffic.requests == [], str(traffic)
    assert "no version of it is kept" in command(keeping, "restore", keeping.here / "never", code=1).stderr


@MOTO
def test_a_bucket_without_versions_says_so(mounter: Mounter) -> None:
    drive = mounter()
    (drive.here / "file").write_bytes(b"body")
    for words in (("restore",), ("versions",), ("versions", "--prune", "1", "--yes")):
        assert "the bucket keeps no versions" in command(drive, *words, drive.here / "file", code=1).stderr


def test_the_history_of_a_file_is_listed(keeping: Drive) -> None:
    for body in (b"1", b"22", b"333"):
        keeping.foreign.put("d/file", body)
        time.sleep(1.1)
    keeping.foreign.delete("d/file")
    found = listed(keeping, keeping.here / "d/file")
    assert [entry["size"] for entry in found if not entry["deleted"]] == [3, 2, 1]
    assert [entry["current"] for entry in found] == [True, False, False, False]
    assert [entry["deleted"] for entry in found] == [True, False, False, False]
    assert listed(keeping, keeping.here / "d") == found
    shown = command(keeping, "versions", keeping.here / "d/file").stdout.splitlines()
    assert shown[0] == f"{keeping.here}/d/file"
    assert "deleted" in shown[1]
    assert shown[1].endswith("current")
    assert "3 bytes" in shown[2]


@pytest.mark.timeout(300)
def test_old_versions_are_pruned_and_what_is_current_stays(keeping: Drive) -> None:
    for body in (b"1", b"22", b"333", b"4444"):
        keeping.foreign.put("d/file", body)
        keeping.foreign.put("d/gone", body)
        time.sleep(1.1)
    keeping.foreign.delete("d/gone")
    assert command(keeping, "versions", "--older", "1h", "--yes", keeping.here / "d").stdout.startswith("0 old")
    told = command(keeping, "versions", "--prune", "2", "--yes", keeping.here / "d").stdout
    assert told == "4 old versions (6 bytes) removed\n"
    assert [entry["size"] for entry in listed(keeping, keeping.here / "d/file")] == [4, 3]
    gone = listed(keeping, keeping.here / "d/gone")
    assert [entry["deleted"] for entry in gone] == [True, False, False]
    assert keeping.foreign.get("d/file") == b"4444"
    assert not keeping.foreign.exists("d/gone")
    time.sleep(2.1)
    assert "2 old" not in command(keeping, "versions", "--older", "1h", "--yes", keeping.here / "d").stdout
    command(keeping, "versions", "--older", "1s", "--yes", keeping.here / "d")
    assert [entry["size"] for entry in listed(keeping, keeping.here / "d/file")] == [4]
    assert keeping.foreign.get("d/file") == b"4444"


@MOTO
def test_rewrites_soon_after_each_other_make_one_version(foreign: Foreign, mounter: Mounter) -> None:
    foreign.keep_versions()
    drive = mounter("", "--durability", "journal")
    path = drive.here / "file"
    begun = time.monotonic()
    for number in range(10):
        path.write_bytes(b"%d" % number)
        time.sleep(0.2)
    taken = time.monotonic() - begun
    eventually(lambda: foreign.exists("file") and foreign.get("file") == b"9", seconds=30)
    assert len(listed(drive, path)) <= 1 + taken // VERSIONED_DELAY
    assert status(drive).keeps_versions
    assert "sosfs versions" in command(drive, "status", drive.mount.path).stdout
