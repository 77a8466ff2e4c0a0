"""`--attributes listed`: what is shown before anybody has asked, what is asked behind it, and what never is a guess."""

from __future__ import annotations

import errno
import os
import stat
import subprocess

import pytest

from tests.conftest import Mounter
from tests.support.drive import eventually, fails
from tests.support.faults import Hang
from tests.support.foreign import Foreign
from tests.support.proxy import Proxy
from tests.support.traffic import on

LISTED = ("--attributes", "listed", "--ttl", "300")
OLD = "1000000000"  # a modification time


def posix(mode: int) -> dict[str, str]:
    """The metadata of an object that another mount wrote."""
    return {"mode": str(mode), "mtime": OLD, "uid": "0", "gid": "0"}


@pytest.mark.parametrize("server", ["ceph"], indirect=True)
def test_a_tree_is_listed_without_waiting_for_a_single_answer(foreign: Foreign, mounter: Mounter, proxy: Proxy) -> None:
    for number in range(40):
        foreign.put(f"t/d{number % 4}/f{number}", b"x" * number, posix(stat.S_IFREG | 0o640))
    drive = mounter(proxy.endpoint, *LISTED)
    with proxy.broken(Hang(), on("HEAD", "GET")):
        shown = drive.run("ls", "-lR", "t")
    proxy.drop_connections()
    assert sum(line.startswith("-rw-r--r--") for line in shown.splitlines()) == 40, shown


def test_the_truth_is_asked_for_behind_the_guess(foreign: Foreign, mounter: Mounter, proxy: Proxy) -> None:
    foreign.put("f", b"x" * 10_000, posix(stat.S_IFREG | 0o640))
    foreign.put("link", b"f", posix(stat.S_IFLNK | 0o777))
    drive = mounter(proxy.endpoint, *LISTED)
    drive.run("ls", "-l")
    eventually(lambda: (drive.here / "f").stat().st_mtime == float(OLD))
    assert stat.S_IMODE((drive.here / "f").stat().st_mode) == 0o640
    eventually(lambda: (drive.here / "link").is_symlink())
    assert (drive.here / "link").read_bytes() == b"x" * 10_000


def test_opening_a_file_is_never_a_guess(foreign: Foreign, mounter: Mounter, proxy: Proxy) -> None:
    foreign.put("secret", b"s" * 10_000, posix(stat.S_IFREG | 0o600))
    foreign.put("link", b"secret", posix(stat.S_IFLNK | 0o777))
    foreign.put("open", b"o" * 10_000, posix(stat.S_IFREG | 0o604))
    drive = mounter(proxy.endpoint, *LISTED, "--allow-other")
    proxy.settle()
    for directory in [drive.here, *drive.here.parents][:-1]:
        if directory.stat().st_uid == os.getuid() and not directory.is_mount():
            directory.chmod(directory.stat().st_mode | 0o011)

    def as_nobody(name: str) -> int:
        return subprocess.run(["cat", drive.here / name], user=65534, group=65534, capture_output=True).returncode

    assert as_nobody("secret") != 0
    assert as_nobody("open") == 0
    assert (drive.here / "link").read_bytes() == b"s" * 10_000
    with fails(errno.EINVAL):
        (drive.here / "open").readlink()


def test_by_default_stat_waits_for_the_truth(foreign: Foreign, mounter: Mounter, proxy: Proxy) -> None:
    foreign.put("f", b"x" * 10_000, posix(stat.S_IFREG | 0o640))
    drive = mounter(proxy.endpoint, "--ttl", "300")
    assert os.listdir(drive.here) == ["f"]
    assert (drive.here / "f").stat().st_mtime == float(OLD)
