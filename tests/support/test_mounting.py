"""The harness that the other tests lean on: it sees trouble, and it gets rid of what hangs."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import access_to, new_bucket
from tests.support.drive import eventually, fails
from tests.support.mounting import ROOT, Mount, MountFailed
from tests.support.servers import Server
from tests.support.watchdog import Watchdog, mounted

pytestmark = pytest.mark.parametrize("server", ["moto"], indirect=True)


@pytest.fixture
def plain(server: Server, tmp_path: Path) -> Iterator[Mount]:
    """A mount that is not started yet, with a watchdog of its own."""
    with Watchdog() as dog:
        yield Mount(access_to(server), new_bucket(server).bucket, tmp_path, dog)


def test_a_bucket_that_is_not_there_fails_at_once_and_leaves_nothing(plain: Mount) -> None:
    plain.source = "no-such-bucket-anywhere"
    with pytest.raises(MountFailed, match="exit code 78"):
        plain.start()
    assert not mounted(plain.path)


@pytest.mark.promise(12)
@pytest.mark.parametrize("asked_by", ["umount", "SIGTERM"])
def test_one_in_the_place_of_a_dead_mount_ends_as_any_other(plain: Mount, asked_by: str) -> None:
    plain.start()
    assert plain._process
    plain._process.kill()
    plain._process.wait()
    assert mounted(plain.path), "dead"
    plain._process = None
    plain.start()
    process = plain._process

    def answers() -> bool:
        with contextlib.suppress(OSError):
            return os.listdir(plain.path) == []
        return False

    eventually(answers)
    (plain.path / "file").write_bytes(b"x")
    if asked_by == "umount":
        plain.stop()
        return
    assert process is not None
    process.terminate()
    assert process.wait(30) == 0
    assert not mounted(plain.path)
    plain.check_log()


def test_trouble_in_the_log_must_be_announced(plain: Mount) -> None:
    with plain as mount:
        mount.logfile.write_text("INFO all is well\nWARNING a: disk is slow\nERROR b: broken\n")
        with pytest.raises(AssertionError, match="disk is slow"):
            mount.check_log()
        mount.check_log()  # each line is told once
        mount.allow_log("disk is slow")
        with mount.logfile.open("a") as log:
            log.write("WARNING a: disk is slow\n")
        mount.check_log()


def test_a_daemon_that_dies_fails_the_test(plain: Mount) -> None:
    with pytest.raises(AssertionError), plain as mount:
        os.kill(mount.pid, signal.SIGKILL)
    assert not mounted(plain.path)


def test_the_watchdog_frees_a_call_that_hangs(plain: Mount) -> None:
    plain.start()
    os.kill(plain.pid, signal.SIGSTOP)
    plain.watchdog.deadline(1)
    with fails(errno.ENOTCONN, errno.ECONNABORTED, errno.ENOENT):
        (plain.path / "file").stat()
    eventually(lambda: not mounted(plain.path))
    plain.clear()


def test_mounts_do_not_outlive_a_test_process_that_is_killed(server: Server, plain: Mount) -> None:
    code = (
        "import os, signal\nfrom pathlib import Path\n"
        "from tests.support.mounting import Access, Mount\nfrom tests.support.watchdog import Watchdog\n"
        f"Mount({access_to(server)!r}, {plain.source!r}, Path({str(plain.base)!r}), Watchdog()).start()\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    eventually(lambda: not mounted(plain.path))
