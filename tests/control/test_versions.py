"""Old versions as files: on a bucket that keeps them, what was there, how it reads, and how it comes back."""

from __future__ import annotations

import errno
import os
import re
import time
from pathlib import Path

import pytest

from tests.conftest import Mounter
from tests.support.drive import Drive, fails, names
from tests.support.foreign import Foreign
from tests.support.proxy import Proxy
from tests.support.servers import Server

MIB = 1 << 20
NAME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z_.+")


@pytest.fixture
def keeping(foreign: Foreign, mounter: Mounter) -> Drive:
    """A mount of a bucket that keeps versions."""
    foreign.keep_versions()
    return mounter()


def versions(drive: Drive, path: Path) -> Path:
    return drive.mount.path / ".sosfs/versions" / drive.key(path)


def bodies(directory: Path) -> set[bytes]:
    return {path.read_bytes() for path in directory.iterdir()}


def put(drive: Drive, key: str, *texts: bytes) -> list[str]:
    """Stores versions with another client; their ids, oldest first."""
    made = [drive.foreign.client.put_object(Bucket=drive.foreign.bucket, Key=key, Body=text) for text in texts]
    return [one["VersionId"] for one in made]


def test_each_version_is_a_file(keeping: Drive) -> None:
    ids = put(keeping, "d/file", b"one", b"two", b"three!")
    found = versions(keeping, keeping.here / "d/file")
    listed = names(found)
    assert {name.partition("_")[2] for name in listed} == set(ids)
    assert all(NAME.fullmatch(name) for name in listed)
    of = {name.partition("_")[2]: found / name for name in listed}
    assert [of[each].read_bytes() for each in ids] == [b"one", b"two", b"three!"]
    assert [of[each].stat().st_size for each in ids] == [3, 3, 6]
    assert abs(of[ids[0]].stat().st_mtime - time.time()) < 60
    with fails(errno.EACCES, errno.EPERM):
        of[ids[0]].write_bytes(b"x")
    with fails(errno.EPERM):
        of[ids[0]].unlink()
    assert (keeping.here / "d/file").read_bytes() == b"three!"


def test_names_sort_by_age(keeping: Drive) -> None:
    made = []
    for text in (b"one", b"two", b"three"):
        made += put(keeping, "file", text)
        time.sleep(1.1)
    listed = names(versions(keeping, keeping.here / "file"))
    assert [name.partition("_")[2] for name in listed] == made


def test_a_version_copied_over_the_file_restores_it(keeping: Drive) -> None:
    path = keeping.here / "file"
    path.write_bytes(b"precious")
    path.write_bytes(b"spoilt")
    old = next(one for one in versions(keeping, path).iterdir() if one.read_bytes() == b"precious")
    keeping.run("cp", old, path)
    assert path.read_bytes() == b"precious"
    assert keeping.foreign.get("file") == b"precious"
    assert b"spoilt" in bodies(versions(keeping, path))


def test_a_deleted_file_is_there_and_comes_back(keeping: Drive, server: Server) -> None:
    (keeping.here / "d").mkdir()
    path = keeping.here / "d/file"
    path.write_bytes(b"precious")
    path.unlink()
    (keeping.here / "d").rmdir()
    keeping.mount.remount()
    if server.name == "ceph":  # moto lists prefixes of which all is deleted
        assert names(keeping.here) == []
    assert names(keeping.mount.path / ".sosfs/versions") == ["d"]
    assert names(keeping.mount.path / ".sosfs/versions/d") == ["file"]
    old = next(one for one in versions(keeping, path).iterdir() if one.stat().st_size)
    (keeping.here / "d").mkdir(exist_ok=True)
    keeping.run("cp", old, path)
    assert path.read_bytes() == b"precious"


def test_a_large_version_is_read_whole_and_in_parts(foreign: Foreign, mounter: Mounter, proxy: Proxy) -> None:
    foreign.keep_versions()
    drive = mounter(proxy.endpoint)
    old, new = os.urandom(20 * MIB), b"small now"
    put(drive, "file", old, new)
    file = next(one for one in versions(drive, drive.here / "file").iterdir() if one.stat().st_size > 100)
    with file.open("rb", buffering=0) as opened:
        opened.seek(10 * MIB + 17)
        assert opened.read(1000) == old[10 * MIB + 17 :][:1000]
    with proxy.recording() as traffic:
        assert file.read_bytes() == old
    assert traffic.count("GET") <= 40, str(traffic)  # of 160 that the kernel asks for
    assert drive.run("cmp", file, file) == ""


def test_odd_keys_have_versions(keeping: Drive) -> None:
    for key in ("a", "a/b", "x//y", "ümläut", "w/..", "n" * 300):
        put(keeping, key, key.encode())
    tree = keeping.mount.path / ".sosfs/versions"
    listed = names(tree)
    assert {"a", "%~fa", "x", "ümläut", "w"} <= set(listed)
    assert len(listed) == 6
    assert bodies(tree / "%~fa") == {b"a"}
    assert bodies(tree / "a/b") == {b"a/b"}
    assert bodies(tree / "x/%~-/y") == {b"x//y"}
    assert bodies(tree / "w/%~..") == {b"w/.."}
    assert bodies(next(one for one in tree.iterdir() if one.name.startswith("%~#"))) == {b"n" * 300}
    with fails(errno.ENOENT):
        (tree / "nothing").stat()
    with fails(errno.ENOENT):
        (tree / "a/c").stat()
    with fails(errno.ENOENT):
        (tree / "%~fx").stat()


def test_a_bucket_that_keeps_none_shows_what_is_there(mounter: Mounter) -> None:
    drive = mounter()
    (drive.here / "file").write_bytes(b"body")
    assert bodies(versions(drive, drive.here / "file")) == {b"body"}
    (drive.here / "file").write_bytes(b"next")  # of the same size, and with the same id
    assert bodies(versions(drive, drive.here / "file")) == {b"next"}
    (drive.here / "file").unlink()
    assert names(drive.mount.path / ".sosfs/versions") == []


def test_what_replaced_a_version_is_not_read_for_it(mounter: Mounter, foreign: Foreign) -> None:
    drive = mounter()
    foreign.put("file", b"body")
    (path,) = versions(drive, drive.here / "file").iterdir()
    with path.open("rb") as file:
        foreign.put("file", b"next")
        with fails(errno.ESTALE):
            file.read()


def test_a_prefix_mount_shows_its_own(keeping: Drive, mounter: Mounter) -> None:
    put(keeping, "p/file", b"one", b"two")
    put(keeping, "other", b"x")
    part = mounter(source=f"{keeping.foreign.bucket}/p")
    assert names(part.mount.path / ".sosfs/versions") == ["file"]
    assert bodies(part.mount.path / ".sosfs/versions/file") == {b"one", b"two"}


def test_mounting_leaves_no_versions_behind(keeping: Drive) -> None:
    (keeping.here / "file").write_bytes(b"body")
    keeping.mount.remount()
    found = keeping.foreign.client.list_object_versions(Bucket=keeping.foreign.bucket)
    assert {one["Key"] for one in found.get("Versions", ())} == {"file"}
    assert found.get("DeleteMarkers", []) == []


def test_a_version_that_is_gone_is_absent(keeping: Drive) -> None:
    old, _ = put(keeping, "file", b"one", b"two")
    file = next(one for one in versions(keeping, keeping.here / "file").iterdir() if one.name.endswith(old))
    keeping.foreign.client.delete_object(Bucket=keeping.foreign.bucket, Key="file", VersionId=old)
    with fails(errno.ENOENT):
        file.read_bytes()
