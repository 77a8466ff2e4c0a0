"""`-o remount,ro|rw`, generic words after `-o`, the source in the mount table, `umount --lazy`: as users type them."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sosfs.daemon import mountpoint
from tests.conftest import Mounter
from tests.support.drive import Drive, eventually
from tests.support.faults import Hang
from tests.support.foreign import Foreign
from tests.support.mounting import alone, run_sosfs
from tests.support.proxy import Proxy
from tests.support.traffic import on
from tests.support.waiting import alive

pytestmark = pytest.mark.parametrize("server", ["moto"], indirect=True)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may change the kernel's flag of a mount")


def remount(drive: Drive, words: str, *more: str) -> subprocess.CompletedProcess[str]:
    return run_sosfs(["mount", "-o", f"remount,{words}", *more, drive.mount.path], drive.mount.environment)


def shown(drive: Drive) -> str:
    """How findmnt shows the mount: ro or rw."""
    command = ["findmnt", "-nro", "OPTIONS", "--mountpoint", str(drive.mount.path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split(",")[0]


@contextmanager
def refused(number: int) -> Iterator[None]:
    with pytest.raises(OSError) as caught:
        yield
    assert caught.value.errno == number


def require_unchangeable(here: Path) -> None:
    """Each kind of change is EROFS; what is there can be read."""
    for change in (
        lambda: (here / "new").touch(),
        lambda: (here / "old").open("ab"),
        lambda: (here / "old").unlink(),
        lambda: (here / "old").rename(here / "moved"),
        lambda: (here / "old").chmod(0o600),
        lambda: os.truncate(here / "old", 1),
        lambda: os.setxattr(here / "old", "user.a", b"b"),
        lambda: (here / "directory").mkdir(),
        lambda: (here / "link").symlink_to("old"),
    ):
        with refused(errno.EROFS):
            change()
    assert (here / "old").read_bytes() == b"old"


@needs_root
def test_a_running_mount_is_made_read_only_and_writable_again(mounter: Mounter, foreign: Foreign) -> None:
    drive = mounter()
    (drive.here / "old").write_bytes(b"old")
    done = remount(drive, "ro")
    assert (done.returncode, done.stderr) == (0, "")
    assert shown(drive) == "ro"
    require_unchangeable(drive.here)
    assert remount(drive, "rw").returncode == 0
    assert shown(drive) == "rw"
    (drive.here / "new").write_bytes(b"new")
    assert foreign.get("new") == b"new"


@needs_root
def test_one_that_began_read_only_learns_what_the_server_honours(mounter: Mounter, foreign: Foreign) -> None:
    foreign.put_all({"old": b"old"})
    drive = mounter("", "--read-only")
    require_unchangeable(drive.here)
    assert run_sosfs(["status", "--json", drive.mount.path], drive.mount.environment).stdout.count("unknown") == 1
    assert remount(drive, "rw").returncode == 0
    assert run_sosfs(["status", "--json", drive.mount.path], drive.mount.environment).stdout.count("unknown") == 0
    (drive.here / "new").write_bytes(b"new")
    assert foreign.get("new") == b"new"


@needs_root
def test_a_file_open_for_writing_keeps_it_writable(mounter: Mounter) -> None:
    drive = mounter()
    with (drive.here / "file").open("wb") as file:
        done = remount(drive, "ro")
        assert done.returncode == 1
        assert done.stderr == f"sosfs: {drive.mount.path}: a file is open for writing\n"
        assert file.write(b"x") == 1
    assert shown(drive) == "rw"
    (drive.here / "another").touch()


@needs_root
def test_what_waits_for_its_upload_goes_on(mounter: Mounter, foreign: Foreign, proxy: Proxy) -> None:
    drive = mounter(proxy.endpoint, "--durability", "journal")
    drive.mount.allow_log("WARNING|ERROR")
    with proxy.broken(Hang(), on("PUT")):
        (drive.here / "old").write_bytes(b"old")
        assert remount(drive, "ro").returncode == 0
        require_unchangeable(drive.here)
        assert not foreign.keys()
    proxy.drop_connections()
    eventually(lambda: bool(foreign.keys()))
    assert foreign.get("old") == b"old"


def test_who_is_not_root_has_the_daemon_refuse(mounter: Mounter) -> None:
    """As root without the right to change mounts; the mount table cannot show it."""
    drive = mounter()
    (drive.here / "old").write_bytes(b"old")
    code = "import os, sys; os.geteuid = lambda: 1; from sosfs.cli import main; sys.exit(main.main(sys.argv[1:]))"

    def switch(words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, "mount", "-o", words, str(drive.mount.path)]
        return subprocess.run(command, env=drive.mount.environment, capture_output=True, text=True, check=False)

    with (drive.here / "old").open("r+b"):
        done = switch("remount,ro")
        assert (done.returncode, done.stderr) == (1, "sosfs: 1 file is open for writing\n")
    eventually(lambda: switch("remount,ro").returncode == 0)  # the kernel lets go of a handle after close returned
    require_unchangeable(drive.here)
    assert shown(drive) == "rw"
    assert switch("remount,rw").returncode == 0
    (drive.here / "new").touch()


def test_words_of_fstab_are_taken_on_the_command_line(mounter: Mounter) -> None:
    drive = mounter("", "-o", "rw,noatime,_netdev,nofail,x-systemd.automount,comment=mine", "-o", "noexec")
    assert "noexec" in next(each for each in mountpoint.table() if each.mountpoint == drive.mount.path).options


@pytest.mark.parametrize("source", ["{}", "s3://{}", "sos://{}/prefix", "{}/prefix/", "{}/a,b\\c"])
def test_the_mount_table_shows_the_source_as_it_was_given(mounter: Mounter, foreign: Foreign, source: str) -> None:
    drive = mounter(source=source.format(foreign.bucket))
    assert next(each for each in mountpoint.table() if each.mountpoint == drive.mount.path).source == source.format(
        foreign.bucket
    )


def test_a_lazy_umount_does_not_wait_and_loses_nothing(mounter: Mounter, foreign: Foreign) -> None:
    drive = mounter()
    pid = drive.mount.pid
    with (drive.here / "open").open("wb") as file:
        file.write(b"before")
        done = run_sosfs(["umount", "--lazy", drive.mount.path], drive.mount.environment)
        assert done.returncode == 0
        assert done.stderr.startswith(f"sosfs: detached; the daemon (pid {pid}) goes on sending 1 file")
        assert mountpoint.at(drive.mount.path) is None
        file.write(b" and after")
    assert foreign.get("open") == b"before and after"
    eventually(lambda: not alive(pid) or drive.mount._process is None or drive.mount._process.poll() == 0)


@needs_root
@pytest.mark.skipif(not shutil.which("unshare"), reason="unshare is missing")
def test_mount_8_remounts_by_the_helper_for_both_types(mounter: Mounter, foreign: Foreign, tmp_path: Path) -> None:
    """`-t fuse.sosfs` has a helper of its own; `mount -a` knows what is mounted already."""
    drive = mounter()
    (drive.here / "old").write_bytes(b"old")
    (tmp_path / "other").mkdir()
    (tmp_path / "sbin").mkdir()
    for name, module in (
        ("mount.sosfs", "sosfs.cli.mount_helper"),
        ("mount.fuse.sosfs", "sosfs.cli.mount_helper"),
        ("umount.fuse.sosfs", "sosfs.cli.umount_helper"),
    ):
        (tmp_path / "sbin" / name).write_text(f'#!/bin/sh\nexec {sys.executable} -m {module} "$@"\n')
        (tmp_path / "sbin" / name).chmod(0o755)
    options = f"_netdev,nofail,endpoint={drive.mount.access.endpoint},cache_dir={tmp_path}/cache"
    (tmp_path / "fstab").write_text(
        f"{foreign.bucket} {drive.mount.path} fuse.sosfs {options} 0 0\n"
        f"{foreign.bucket} {tmp_path}/other fuse.sosfs {options} 0 0\n"
    )
    script = f"""
        mount --make-rprivate /
        {alone(tmp_path)}
        mount -t overlay overlay -o lowerdir={tmp_path}/sbin:/usr/sbin /usr/sbin
        mount -T {tmp_path}/fstab -a
        mount -T {tmp_path}/fstab -a
        findmnt -nro TARGET -t fuse.sosfs | grep -c {tmp_path}
        mount -T {tmp_path}/fstab -o remount,ro {drive.mount.path}
        findmnt -nro OPTIONS {drive.mount.path} | cut -c 1-2
        touch {drive.mount.path}/new 2>&1 | grep -o 'Read-only file system'
        mount -o remount,rw {drive.mount.path}
        findmnt -nro OPTIONS {drive.mount.path} | cut -c 1-2
        touch {drive.mount.path}/new
        umount {tmp_path}/other
    """
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-eu", "-c", script],
        env=drive.mount.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd="/",
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split("\n") == ["2", "ro", "Read-only file system", "rw", ""]
    assert foreign.get("new") == b""
