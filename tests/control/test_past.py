"""The bucket as it was at a time: ordinary tools find in `.sosfs/at/TIME/` what was there then, and nothing else."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.conftest import Mounter
from tests.support.drive import Drive, fails, names, tree
from tests.support.foreign import Foreign, numbered
from tests.support.proxy import Proxy
from tests.support.traffic import Op

MIB = 1 << 20
MOTO = pytest.mark.parametrize("server", ["moto"], indirect=True)
CEPH = pytest.mark.parametrize("server", ["ceph"], indirect=True)  # moto loses prefixes at the end of a page
Then = Callable[[], str]


@pytest.fixture
def keeping(foreign: Foreign, mounter: Mounter, proxy: Proxy) -> Drive:
    """A mount of a bucket that keeps versions, through the proxy."""
    foreign.keep_versions()
    return mounter(proxy.endpoint)


def moment() -> str:
    """This moment as a name, with two seconds on both sides in which nothing happens: servers tell whole seconds."""
    time.sleep(2.1)
    now = datetime.now(UTC)
    time.sleep(2.1)
    return now.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def at(drive: Drive, when: str) -> Path:
    return drive.mount.path / ".sosfs/at" / when


def errors(drive: Drive) -> str:
    return (drive.mount.path / ".sosfs/errors").read_text()


def filled(drive: Drive) -> Path:
    """A tree with all that has to come back as it was."""
    top = drive.here / "t"
    (top / "d/e").mkdir(parents=True)
    (top / "empty").mkdir()
    (top / "d/e/deep").write_bytes(b"deep")
    (top / "file").write_bytes(b"as it was")
    (top / "large").write_bytes(os.urandom(MIB))
    (top / "run").write_text("#!/bin/sh\n")
    (top / "run").chmod(0o751)
    (top / "gone").write_bytes(b"soon gone")
    (top / "link").symlink_to("file")
    os.utime(top / "file", (1_000_000_000, 1_000_000_000))
    os.setxattr(top / "file", "user.sos.cache-control", b"no-store")
    os.setxattr(top / "file", "user.colour", b"red")
    drive.mount.remount()
    return top


def spoil(top: Path) -> None:
    """Changes, removes and adds."""
    (top / "file").write_bytes(b"overwritten, and longer")
    (top / "file").chmod(0o600)
    os.setxattr(top / "file", "user.sos.cache-control", b"public")
    (top / "gone").unlink()
    (top / "d/e/deep").unlink()
    (top / "d/e").rmdir()
    (top / "link").unlink()
    (top / "link").symlink_to("elsewhere")
    (top / "later").write_bytes(b"later")
    (top / "new/er").mkdir(parents=True)
    (top / "new/er/file").write_bytes(b"later")
    os.sync()


def test_tools_find_the_tree_as_it_was(keeping: Drive, tmp_path: Path) -> None:
    top = filled(keeping)
    keeping.run("cp", "-a", top, tmp_path / "saved")
    when = moment()
    spoil(top)
    old = at(keeping, when) / "t"
    assert names(old) == ["d", "empty", "file", "gone", "large", "link", "run"]
    keeping.run("diff", "-r", "--no-dereference", tmp_path / "saved", old)
    assert (old / "link").readlink() == Path("file")
    assert (old / "run").stat().st_mode & 0o777 == 0o751
    assert (old / "file").stat().st_mtime == 1_000_000_000
    assert os.getxattr(old / "file", "user.sos.cache-control") == b"no-store"
    assert os.getxattr(old / "file", "user.colour") == b"red"
    keeping.run("cp", "-r", old, tmp_path / "copied")
    assert tree(tmp_path / "copied") == tree(tmp_path / "saved")
    assert keeping.run("grep", "-rl", "soon", old).split() == [str(old / "gone")]
    assert "gone" in keeping.run("ls", "-lR", old)
    told = keeping.run("rsync", "-ai", f"{old}/", f"{tmp_path / 'saved'}/")
    assert not [line for line in told.splitlines() if line.startswith(">f")], told
    assert (top / "file").read_bytes() == b"overwritten, and longer"
    assert not (top / "gone").exists()


def test_nothing_in_it_can_be_changed(keeping: Drive) -> None:
    (keeping.here / "d").mkdir()
    (keeping.here / "d/file").write_bytes(b"body")
    old = at(keeping, moment()) / "d"
    for change in (
        lambda: (old / "file").write_bytes(b"x"),
        lambda: (old / "file").unlink(),
        lambda: (old / "file").chmod(0o600),
        lambda: (old / "new").write_bytes(b"x"),
        lambda: (old / "new").mkdir(),
        lambda: (old / "new").symlink_to("x"),
        lambda: old.rmdir(),
        lambda: (old / "file").rename(old / "other"),
        lambda: os.utime(old / "file"),
        lambda: os.truncate(old / "file", 0),
    ):
        with fails(errno.EROFS):
            change()
    with fails(errno.EXDEV, errno.EROFS):
        (old / "file").rename(keeping.here / "out")
    with fails(errno.EOPNOTSUPP):
        os.setxattr(old / "file", "user.colour", b"red")
    assert (old / "file").read_bytes() == b"body"
    assert keeping.foreign.files() == ["d/file"]


def test_a_time_that_is_none_is_told_and_nothing_is_sent(keeping: Drive, proxy: Proxy) -> None:
    ahead = (datetime.now(UTC) + timedelta(days=2)).strftime("%Y-%m-%dT%H:%MZ")
    with proxy.recording() as traffic:
        for name, number in ((ahead, errno.EINVAL), ("2026-13-01", errno.ENOENT), ("soonish", errno.ENOENT)):
            with fails(number):
                os.listdir(at(keeping, name))
            assert f"at/{name}:" in errors(keeping).splitlines()[-1]
    assert traffic.requests == [], str(traffic)
    assert "is in the future" in errors(keeping)
    assert "write it as 2026-11-01" in errors(keeping)


def test_a_bucket_without_versions_says_so(mounter: Mounter) -> None:
    drive = mounter()
    (drive.here / "file").write_bytes(b"body")
    with fails(errno.EOPNOTSUPP):
        os.listdir(at(drive, "yesterday"))
    assert "at/yesterday: the bucket keeps no versions" in errors(drive)


def test_times_are_written_in_many_ways(keeping: Drive) -> None:
    (keeping.here / "file").write_bytes(b"body")
    time.sleep(2.1)
    for name in ("yesterday", "2 hours ago", "2026-01-01", "2026-01-01 12:30", "monday", "3_days_ago", "1w"):
        assert names(at(keeping, name)) == [], name
    assert names(at(keeping, "now")) == ["file"]
    assert names(at(keeping, "1 second ago")) == ["file"]
    assert {"yesterday", "2026-01-01"} <= set(names(keeping.mount.path / ".sosfs/at"))


def test_more_moments_than_are_kept(keeping: Drive) -> None:
    (keeping.here / "file").write_bytes(b"body")
    time.sleep(2.1)
    for back in range(40):
        assert names(at(keeping, f"{back + 1} days ago")) == []
    assert names(at(keeping, "1 second ago")) == ["file"]
    assert len(names(keeping.mount.path / ".sosfs/at")) <= 16
    assert len(list(keeping.mount.cache.glob("**/at/*"))) <= 16
    keeping.mount.remount()
    assert list(keeping.mount.cache.glob("**/at/*")) == []


@CEPH
@pytest.mark.timeout(300)
def test_a_large_directory_answers_before_all_pages_came(keeping: Drive, proxy: Proxy) -> None:
    for body in (b"x", b"y"):
        keeping.foreign.put_all(numbered("many/f", 1100, body))
    when = moment()
    keeping.foreign.client.put_object(Bucket=keeping.foreign.bucket, Key="many/a-later", Body=b"z")
    old = at(keeping, when) / "many"
    with proxy.recording() as traffic, os.scandir(old) as listed:
        first = next(listed).name
        seen = traffic.count(Op.LIST_VERSIONS)
        rest = sorted([first, *(entry.name for entry in listed)])
    assert first == "f0000"
    # Of the root, what tells that there was such a directory, its first page, and perhaps the next one.
    assert seen <= 4, str(traffic)
    assert rest == [f"f{number:04d}" for number in range(1100)]
    assert seen < traffic.count(Op.LIST_VERSIONS) <= 7, str(traffic)
    with proxy.recording() as traffic:
        assert len(os.listdir(old)) == 1100
    assert traffic.requests == [], "what cannot change is not asked for twice"


def test_what_is_the_same_now_is_read_from_the_disk_cache(foreign: Foreign, mounter: Mounter, proxy: Proxy) -> None:
    foreign.keep_versions()
    drive = mounter(proxy.endpoint, "--cache-size", "64M")
    drive.foreign.put("d/large", os.urandom(3 * MIB))
    when = moment()
    body = (drive.here / "d/large").read_bytes()
    with proxy.recording() as traffic:
        assert (at(drive, when) / "d/large").read_bytes() == body
    assert traffic.received(Op.GET) < MIB, str(traffic)


def test_the_prefix_that_is_mounted_is_the_root(foreign: Foreign, mounter: Mounter) -> None:
    foreign.keep_versions()
    foreign.put("out", b"outside")
    foreign.put("a/b/file", b"old")
    when = moment()
    foreign.put("a/b/file", b"new")
    drive = mounter(source=f"{foreign.bucket}/a/b")
    assert names(at(drive, when)) == ["file"]
    assert (at(drive, when) / "file").read_bytes() == b"old"


def test_odd_keys_are_there(keeping: Drive) -> None:
    odd = ("a", "a/b", "x//y", "ümläut", "w/..", "n" * 300, "plus+per%cent")
    for key in odd:
        keeping.foreign.put(key, key.encode())
    when = moment()
    for key in odd:
        keeping.foreign.put(key, b"new")
    assert sorted(tree(at(keeping, when)).values()) == sorted(key.encode() for key in odd)
