"""Attributes, links and special files on a real kernel mount: what stays over a remount, and how others find it."""

from __future__ import annotations

import errno
import os
import socket
import stat
import time
from base64 import b64encode
from pathlib import Path

import pytest

from tests.support.drive import Drive, eventually, fails

NS = 1_000_000_000
MOMENT = 1_234_567_890 * NS + 123_456_789


def test_mode_owner_and_times_stay_over_a_remount(drive: Drive) -> None:
    path = drive.here / "file"
    path.write_bytes(b"content")
    path.chmod(0o640)
    os.chown(path, 1234, 5678)
    os.utime(path, ns=(MOMENT + 5, MOMENT))
    drive.mount.remount()
    found = path.stat()
    assert stat.S_IMODE(found.st_mode) == 0o640
    assert (found.st_uid, found.st_gid) == (1234, 5678)
    assert found.st_mtime_ns == MOMENT
    assert path.read_bytes() == b"content"


@pytest.mark.promise(8)
def test_attributes_stand_in_the_metadata_as_s3fs_writes_them(drive: Drive) -> None:
    path = drive.here / "file"
    path.write_bytes(b"content")
    path.chmod(0o640)
    os.chown(path, 1234, 5678)
    os.utime(path, ns=(MOMENT, MOMENT))
    wanted = {"mode": str(stat.S_IFREG | 0o640), "uid": "1234", "gid": "5678", "mtime": "1234567890.123456789"}
    eventually(lambda: wanted.items() <= drive.foreign.metadata(drive.key(path)).items())
    assert drive.stored(path) == b"content"


def test_attributes_set_on_an_open_handle(drive: Drive) -> None:
    path = drive.here / "file"
    with path.open("wb") as file:
        file.write(b"content")
        os.fchmod(file.fileno(), 0o600)
        os.fchown(file.fileno(), 1, 2)
        file.flush()
        os.utime(file.fileno(), ns=(MOMENT, MOMENT))
    drive.mount.remount()
    found = path.stat()
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid, found.st_mtime_ns) == (0o600, 1, 2, MOMENT)


def test_attributes_of_a_directory_stay(drive: Drive) -> None:
    path = drive.here / "d"
    path.mkdir(mode=0o700)
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    path.chmod(0o750)
    os.chown(path, 1234, 5678)
    drive.mount.remount()
    found = path.stat()
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o750, 1234, 5678)


def test_mode_at_creation_obeys_the_umask(drive: Drive) -> None:
    drive.shell("umask 027; touch f; mkdir d")
    assert stat.S_IMODE((drive.here / "f").stat().st_mode) == 0o640
    assert stat.S_IMODE((drive.here / "d").stat().st_mode) == 0o750


def test_a_set_group_id_directory_hands_its_group_down(drive: Drive) -> None:
    top = drive.here / "top"
    top.mkdir()
    os.chown(top, 1234, 5678)
    top.chmod(0o2770)
    (top / "file").write_bytes(b"content")
    os.close(os.open(top / "file.lock", os.O_CREAT | os.O_EXCL))
    (top / "link").symlink_to("file")
    os.mkfifo(top / "fifo")
    (top / "d" / "deep").mkdir(parents=True)
    drive.mount.remount()
    (top / "d" / "later").mkdir()
    below = sorted(top.rglob("*"))
    assert {path.lstat().st_gid for path in below} == {5678}
    assert {path.lstat().st_uid for path in below} == {os.getuid()}
    bits = {path.name: bool(path.lstat().st_mode & stat.S_ISGID) for path in below}
    directories = {"d", "deep", "later"}
    assert bits == {name: name in directories for name in (*directories, "file", "file.lock", "link", "fifo")}


def test_writing_moves_mtime_and_closing_does_not(drive: Drive) -> None:
    path = drive.here / "file"
    path.write_bytes(b"one")
    os.utime(path, ns=(MOMENT, MOMENT))
    before = time.time_ns()
    with path.open("ab") as file:
        file.write(b"two")
        file.flush()
        written = os.fstat(file.fileno()).st_mtime_ns
        assert written >= before - NS
    assert path.stat().st_mtime_ns == written
    drive.mount.remount()
    assert path.stat().st_mtime_ns == written


def test_reading_changes_nothing(drive: Drive) -> None:
    path = drive.here / "file"
    path.write_bytes(b"content")
    os.utime(path, ns=(MOMENT, MOMENT))
    drive.mount.remount()
    path.read_bytes()
    assert path.stat().st_mtime_ns == MOMENT


def test_rewriting_keeps_mode_and_owner(drive: Drive) -> None:
    path = drive.here / "script"
    path.write_bytes(b"#!/bin/sh\n")
    path.chmod(0o755)
    os.chown(path, 1234, 5678)
    drive.mount.remount()
    path.write_bytes(b"#!/bin/sh\necho longer\n")
    drive.mount.remount()
    found = path.stat()
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o755, 1234, 5678)


@pytest.mark.promise(7)
def test_rename_keeps_attributes_and_foreign_metadata(drive: Drive) -> None:
    source, target = drive.here / "source", drive.here / "target"
    mine = {"mode": "33152", "mtime": "1234567890.123456789", "color": "blue"}
    client = drive.foreign.client
    client.put_object(
        Bucket=drive.foreign.bucket,
        Key=drive.key(source),
        Body=b"body",
        Metadata=mine,
        ContentType="text/x-test",
        CacheControl="max-age=7",
    )
    drive.mount.remount()
    source.rename(target)
    found = drive.foreign.head(drive.key(target))
    assert mine.items() <= found["Metadata"].items()
    assert (found["ContentType"], found["CacheControl"]) == ("text/x-test", "max-age=7")
    assert target.stat().st_mtime_ns == MOMENT
    assert stat.S_IMODE(target.stat().st_mode) == 0o600


@pytest.mark.promise(7)
def test_chmod_keeps_foreign_metadata_and_headers(drive: Drive) -> None:
    path = drive.here / "file"
    drive.foreign.client.put_object(
        Bucket=drive.foreign.bucket,
        Key=drive.key(path),
        Body=b"body",
        Metadata={"color": "blue"},
        ContentType="text/x-test",
        ContentLanguage="de",
    )
    drive.mount.remount()
    path.chmod(0o600)

    def applied() -> bool:
        return drive.foreign.metadata(drive.key(path)).get("mode") == str(stat.S_IFREG | 0o600)

    eventually(applied)
    found = drive.foreign.head(drive.key(path))
    assert found["Metadata"]["color"] == "blue"
    assert (found["ContentType"], found["ContentLanguage"]) == ("text/x-test", "de")
    assert drive.stored(path) == b"body"


def test_size_limit_of_metadata_is_an_error_and_loses_nothing(drive: Drive) -> None:
    path = drive.here / "file"
    path.write_bytes(b"body")
    with fails(errno.ENOSPC, errno.E2BIG, errno.EOPNOTSUPP):
        os.setxattr(path, "user.large", b"x" * 3000)
    assert path.read_bytes() == b"body"
    assert drive.stored(path) == b"body"


def test_a_chmod_for_which_the_metadata_have_no_room_fails_at_once(drive: Drive) -> None:
    path = drive.here / "file"
    word = f"=?UTF-8?B?{b64encode(('ä' * 750).encode()).decode()}?="  # 1,500 bytes for us, 2,012 on their way
    drive.foreign.put(drive.key(path), b"body", {"note": word})
    drive.mount.remount()
    for _ in range(2):  # the first has changed nothing
        with fails(errno.ENOSPC):
            path.chmod(0o600)


@pytest.mark.parametrize(
    "target", ["file", "../elsewhere/x", "/absolute/path", "no such thing", "ümläut 日本", "t" * 1000]
)
def test_symlinks_stay_over_a_remount(drive: Drive, target: str) -> None:
    link = drive.here / "link"
    link.symlink_to(target)
    for _ in range(2):
        assert link.is_symlink()
        assert os.readlink(link) == target
        assert link.lstat().st_size == len(os.fsencode(target))
        drive.mount.remount()
    mode = drive.foreign.metadata(drive.key(link))["mode"]
    assert stat.S_ISLNK(int(mode))
    assert drive.stored(link) == target.encode()


def test_symlinks_are_followed_replaced_and_removed(drive: Drive) -> None:
    file, link, other = drive.here / "file", drive.here / "link", drive.here / "other"
    file.write_bytes(b"content")
    link.symlink_to("file")
    assert link.read_bytes() == b"content"
    with link.open("ab") as through:
        through.write(b" and more")
    assert file.read_bytes() == b"content and more"
    with fails(errno.EEXIST):
        link.symlink_to("file")
    other.symlink_to("nowhere")
    other.replace(link)
    assert link.readlink() == Path("nowhere")
    with fails(errno.ENOENT):
        link.read_bytes()
    link.unlink()
    assert [path.name for path in drive.here.iterdir()] == ["file"]


def test_symlink_to_a_directory(drive: Drive) -> None:
    (drive.here / "d").mkdir()
    (drive.here / "link").symlink_to("d")
    (drive.here / "link" / "f").write_bytes(b"f")
    assert (drive.here / "d" / "f").read_bytes() == b"f"


def test_special_files_stay_over_a_remount(drive: Drive) -> None:
    os.mkfifo(drive.here / "fifo", 0o640)
    with socket.socket(socket.AF_UNIX) as server:
        here = os.open(drive.here, os.O_RDONLY | os.O_DIRECTORY)
        server.bind(f"/proc/self/fd/{here}/socket")  # a socket's path has 107 bytes at most
        os.close(here)
    os.mknod(drive.here / "null", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    drive.mount.remount()
    assert stat.S_ISFIFO((drive.here / "fifo").stat().st_mode)
    assert stat.S_IMODE((drive.here / "fifo").stat().st_mode) == 0o640
    assert stat.S_ISSOCK((drive.here / "socket").stat().st_mode)
    assert stat.S_ISCHR((drive.here / "null").stat().st_mode)
    assert (drive.here / "null").stat().st_rdev == os.makedev(1, 3)


def test_fifo_carries_bytes(drive: Drive) -> None:
    assert drive.shell("mkfifo pipe; echo through > pipe & cat pipe; wait") == "through\n"


def test_listing_counts_links_and_blocks_as_find_and_du_expect(drive: Drive) -> None:
    (drive.here / "a" / "b" / "c").mkdir(parents=True)
    (drive.here / "a" / "b" / "c" / "f").write_bytes(b"x" * 10_000)
    assert drive.run("find", ".", "-name", "f").strip() == "./a/b/c/f"
    assert drive.run("find", ".", "-type", "d").split() == [".", "./a", "./a/b", "./a/b/c"]
    assert (drive.here / "a" / "b" / "c" / "f").stat().st_nlink == 1
    assert int(drive.run("du", "-s", "--apparent-size", "-B1", "a/b/c/f").split()[0]) == 10_000
    assert int(drive.run("du", "-s", "-B512", "a/b/c/f").split()[0]) >= 20


def test_inode_numbers_tell_files_apart_and_stay_while_mounted(drive: Drive) -> None:
    for name in "abc":
        (drive.here / name).touch()
    numbers = {name: (drive.here / name).stat().st_ino for name in "abc"}
    assert len(set(numbers.values())) == 3
    (drive.here / "a").rename(drive.here / "d")
    assert (drive.here / "d").stat().st_ino == numbers["a"]
    assert (drive.here / "b").stat().st_ino == numbers["b"]
