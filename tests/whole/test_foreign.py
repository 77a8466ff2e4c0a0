"""What other S3 tools put into the bucket, seen through the mount: changes, odd keys, their metadata, prefixes."""

from __future__ import annotations

import errno
import os
import random
import stat
import time
from dataclasses import replace
from pathlib import Path

import pytest

from sosfs.config.parameters import TTL
from sosfs.s3.protocol import Headers, Properties
from tests.conftest import Mounter
from tests.support.composed import Composed, composed
from tests.support.drive import Drive, eventually, fails, names, tree
from tests.support.fake_store import FakeStore
from tests.support.foreign import Foreign

MIB = 1 << 20
HOUR = 3600.0


@pytest.fixture
def alert(mounter: Mounter) -> Drive:
    """A mount that looks into the bucket again after a second."""
    return mounter("", "--ttl", "1")


def test_what_another_client_puts_changes_and_deletes_appears(alert: Drive, foreign: Foreign) -> None:
    assert names(alert.here) == []
    foreign.put("new", b"one")
    foreign.put("dir/inner", b"two")
    eventually(lambda: names(alert.here) == ["dir", "new"])
    assert (alert.here / "new").read_bytes() == b"one"
    assert (alert.here / "dir" / "inner").read_bytes() == b"two"
    foreign.put("new", b"one, changed")
    eventually(lambda: (alert.here / "new").stat().st_size == 12)
    assert (alert.here / "new").read_bytes() == b"one, changed"
    foreign.put("new", b"ONE, CHANGED")  # the same size
    eventually(lambda: (alert.here / "new").read_bytes() == b"ONE, CHANGED")
    foreign.delete("new", "dir/inner")
    eventually(lambda: not (alert.here / "new").exists())
    eventually(lambda: not (alert.here / "dir" / "inner").exists())


def test_a_name_that_was_not_there_is_found_when_it_comes(alert: Drive, foreign: Foreign) -> None:
    assert not (alert.here / "later").exists()
    foreign.put("later", b"now")
    eventually((alert.here / "later").exists)
    assert (alert.here / "later").read_bytes() == b"now"


def test_a_file_that_becomes_a_directory_and_back(alert: Drive, foreign: Foreign) -> None:
    foreign.put("x", b"file")
    eventually(lambda: (alert.here / "x").is_file())
    foreign.delete("x")
    foreign.put("x/y", b"inner")
    eventually(lambda: (alert.here / "x").is_dir())
    assert tree(alert.here) == {"x/y": b"inner"}
    foreign.delete("x/y")
    foreign.put("x", b"file again")
    eventually(lambda: (alert.here / "x").is_file())
    assert (alert.here / "x").read_bytes() == b"file again"


@pytest.mark.promise(5)
@pytest.mark.parametrize("opened", ["before", "between"])
def test_an_open_file_never_mixes_two_versions(mounter: Mounter, foreign: Foreign, opened: str) -> None:
    size = 24 * MIB
    foreign.put("file", b"A" * size)
    drive = mounter("", "--ttl", "1")
    with (drive.here / "file").open("rb", buffering=0) as file:
        seen = file.read(MIB) if opened == "between" else b""
        foreign.put("file", b"B" * size)
        try:
            while data := file.read(MIB):
                seen += data
        except OSError as error:
            assert error.errno == errno.ESTALE
    assert len(set(seen)) <= 1
    if opened == "between":
        assert set(seen) == set(b"A")
    eventually(lambda: _is_all(drive.here / "file", b"B"), seconds=30)


@pytest.mark.promise(5)
@pytest.mark.parametrize("size", [22, 32])
def test_who_was_told_that_a_version_is_gone_opens_the_next_one(mounter: Mounter, foreign: Foreign, size: int) -> None:
    """At once, and all of it, though what the mount was told of the file should hold for ten minutes more."""
    foreign.put("file", b"A" * 24 * MIB)
    drive = mounter("", "--ttl", "600")
    with (drive.here / "file").open("rb", buffering=0) as file:
        assert set(file.read(MIB)) == set(b"A")
        foreign.put("file", b"B" * size * MIB)
        with fails(errno.ESTALE):
            os.pread(file.fileno(), MIB, 20 * MIB)
    assert (drive.here / "file").read_bytes() == b"B" * size * MIB
    assert (drive.here / "file").stat().st_size == size * MIB


def _is_all(path: Path, byte: bytes) -> bool:
    """Whether a file has no other byte; one that is opened before its listing is out of date may yet be stale."""
    try:
        return set(path.read_bytes()) == set(byte)
    except OSError as error:
        assert error.errno == errno.ESTALE
        return False


def test_a_change_under_a_writer_is_not_lost(mounter: Mounter, foreign: Foreign) -> None:
    foreign.put("file", b"original")
    drive = mounter()
    drive.mount.allow_log("(?i)conflict|changed")
    file = (drive.here / "file").open("r+b", buffering=0)
    file.write(b"mine....")
    foreign.put("file", b"theirs, and longer")
    with fails(errno.ESTALE):
        file.close()
    assert foreign.get("file") == b"theirs, and longer"
    kept = foreign.keys("file.conflict-")
    assert [foreign.get(key) for key in kept] == [b"mine...."]


def test_two_mounts_see_each_other(mounter: Mounter, foreign: Foreign) -> None:
    left, right = mounter("", "--ttl", "1"), mounter("", "--ttl", "1")
    (left.here / "d").mkdir()
    (left.here / "d" / "f").write_bytes(b"from the left")
    eventually((right.here / "d" / "f").exists)
    assert (right.here / "d" / "f").read_bytes() == b"from the left"
    (right.here / "d" / "f").write_bytes(b"from the right, longer")
    eventually(lambda: (left.here / "d" / "f").read_bytes() == b"from the right, longer")
    (right.here / "d" / "f").rename(right.here / "g")
    eventually((left.here / "g").exists)
    eventually(lambda: not (left.here / "d" / "f").exists())


ODD = {
    "beside": b"the object",
    "beside/inner": b"inside the directory",
    "double//slash": b"empty segment",
    "/lead": b"leading slash",
    "dots/../up": b"up",
    "dots/./here": b"here",
    "marker with data/": b"data in a marker",
    "%~looks/escaped": b"escaped",
    "long/" + "n" * 300 + "/file": b"long segment",
    "long/" + "n" * 299 + "m": b"long object",
    "ordinary": b"ordinary",
}
SHOWN = {
    "beside/inner": "beside/inner",
    "%~fbeside": "beside",
    "double/%~-/slash": "double//slash",
    "%~-/lead": "/lead",
    "dots/%~../up": "dots/../up",
    "dots/%~./here": "dots/./here",
    "marker with data/%~-": "marker with data/",
    "%~=%~looks/escaped": "%~looks/escaped",
    "ordinary": "ordinary",
}


def folded(drive: Drive) -> dict[str, bytes]:
    """The files whose key has a segment too long for a name."""
    return {name: body for name, body in tree(drive.here).items() if name.startswith("long/%~#")}


@pytest.mark.promise(9)
def test_odd_keys_are_files_with_escaped_names(foreign: Foreign, mounter: Mounter) -> None:
    foreign.put_all(ODD)
    drive = mounter()
    found = tree(drive.here)
    for name, key in SHOWN.items():
        assert found.get(name) == ODD[key], (name, found.keys())
    assert sorted(folded(drive).values()) == [b"long object", b"long segment"]
    assert len(found) == len(ODD)


@pytest.mark.promise(9)
@pytest.mark.parametrize("name", sorted(SHOWN))
def test_odd_keys_are_found_changed_and_removed_by_name(foreign: Foreign, mounter: Mounter, name: str) -> None:
    foreign.put_all({key: body for key, body in ODD.items() if not key.startswith("long/")})
    drive = mounter()
    path, key = drive.here / name, SHOWN[name]
    assert path.read_bytes() == ODD[key]  # no directory was listed by the test
    path.write_bytes(b"changed")
    assert foreign.get(key) == b"changed"
    with path.open("ab") as file:
        file.write(b" again")
    assert foreign.get(key) == b"changed again"
    path.unlink()
    eventually(lambda: not foreign.exists(key))
    others = [other for other in ODD if not other.startswith("long/") and other != key]
    assert {other: foreign.get(other) for other in others} == {other: ODD[other] for other in others}


def test_long_segments_are_changed_and_removed_by_name(foreign: Foreign, mounter: Mounter) -> None:
    foreign.put_all(ODD)
    drive = mounter()
    for name in folded(drive):
        (drive.here / name).write_bytes(b"changed")
    drive.mount.remount()
    assert set(folded(drive).values()) == {b"changed"}
    assert {foreign.get(key) for key in ODD if key.startswith("long/")} == {b"changed"}
    for name in folded(drive):
        (drive.here / name).unlink()
    eventually(lambda: foreign.files("long/") == [])


def test_a_tree_with_odd_keys_is_renamed_and_removed_whole(foreign: Foreign, mounter: Mounter) -> None:
    odd = {f"top/{key}": body for key, body in ODD.items()}
    foreign.put_all(odd)
    drive = mounter()
    (drive.here / "top").rename(drive.here / "moved")
    assert sorted(foreign.get(key) for key in foreign.files("moved/")) == sorted(
        body for key, body in odd.items() if not key.endswith("/")
    )
    assert foreign.get("moved/marker with data/") == b"data in a marker"
    assert foreign.keys("top/") == []
    drive.run("rm", "-rf", "moved")
    eventually(lambda: foreign.keys("moved") == [])


def test_markers_of_other_tools_are_directories(foreign: Foreign, mounter: Mounter) -> None:
    foreign.put("console/")
    foreign.put("nested/deep/")
    foreign.put("implicit/only/file", b"f")
    drive = mounter()
    assert names(drive.here) == ["console", "implicit", "nested"]
    assert names(drive.here / "console") == []
    assert names(drive.here / "nested" / "deep") == []
    (drive.here / "console").rmdir()
    eventually(lambda: not foreign.exists("console/"))


METADATA = {
    "s3fs": (
        {"mode": "33188", "uid": "1000", "gid": "100", "mtime": "1234567890.123456789"},
        0o644,
        "1234567890123456789",
    ),
    "s3fs, old": ({"mode": "33152", "mtime": "1234567890"}, 0o600, "1234567890000000000"),
    "rclone": ({"mtime": "1234567890.123456789"}, None, "1234567890123456789"),
    "rclone with metadata": (
        {"mode": "100640", "uid": "1000", "gid": "100", "mtime": "1234567890.5"},
        0o640,
        "1234567890500000000",
    ),
    "s3cmd": (
        {"s3cmd-attrs": "atime:1/ctime:2/gid:100/gname:users/md5:0/mode:33188/mtime:1234567890/uid:1000/uname:a"},
        0o644,
        "1234567890000000000",
    ),
    "s3cmd, then s3fs": (
        {"s3cmd-attrs": "mode:33188/mtime:1/uid:7", "mode": "33152", "mtime": "1234567890"},
        0o600,
        "1234567890000000000",
    ),
    "nonsense": ({"mode": "rw-r--r--", "mtime": "yesterday", "uid": "-1"}, None, ""),
    "nonsense of s3cmd": ({"s3cmd-attrs": "/mode/mtime:then/uid:root:x//"}, None, ""),
}


@pytest.mark.promise(8)
@pytest.mark.parametrize("tool", METADATA)
def test_metadata_of_other_tools(foreign: Foreign, mounter: Mounter, tool: str) -> None:
    metadata, mode, mtime = METADATA[tool]
    foreign.put("file", b"content", metadata)
    drive = mounter()
    found = (drive.here / "file").stat()
    assert stat.S_ISREG(found.st_mode)
    assert (drive.here / "file").read_bytes() == b"content"
    if mode is not None:
        assert stat.S_IMODE(found.st_mode) == mode
    if mtime:
        assert found.st_mtime_ns == int(mtime)
    else:
        assert found.st_mtime_ns == int(foreign.head("file")["LastModified"].timestamp()) * 1_000_000_000
    if metadata.get("uid") == "1000" or "uid:1000" in metadata.get("s3cmd-attrs", ""):
        assert (found.st_uid, found.st_gid) == (1000, 100)


def test_symlink_and_directory_as_s3fs_stores_them(foreign: Foreign, mounter: Mounter) -> None:
    foreign.put("link", b"target/of it", {"mode": str(stat.S_IFLNK | 0o777), "mtime": "1234567890"})
    foreign.put("dir/", b"", {"mode": str(stat.S_IFDIR | 0o750), "uid": "1000", "gid": "100"})
    drive = mounter()
    assert (drive.here / "link").readlink() == Path("target/of it")
    assert stat.S_IMODE((drive.here / "dir").stat().st_mode) == 0o750
    assert (drive.here / "dir").stat().st_uid == 1000


def test_a_mounted_prefix_is_a_world_of_its_own(foreign: Foreign, mounter: Mounter) -> None:
    foreign.put_all({"p/q/inside": b"in", "p/outside": b"out", "p/qq": b"beside", "root": b"root"})
    drive = mounter(source=f"{foreign.bucket}/p/q")
    assert tree(drive.here) == {"inside": b"in"}
    (drive.here / "new").write_bytes(b"new")
    (drive.here / "d").mkdir()
    (drive.here / "inside").rename(drive.here / "d" / "moved")
    assert foreign.get("p/q/new") == b"new"
    assert foreign.get("p/q/d/moved") == b"in"
    drive.run("rm", "-rf", "d", "new")
    assert names(drive.here) == []
    eventually(lambda: foreign.files() == ["p/outside", "p/qq", "root"])


@pytest.mark.parametrize("server", ["ceph"], indirect=True)  # its pages are short
def test_a_large_listing_is_whole(foreign: Foreign, mounter: Mounter) -> None:
    dice = random.Random(14)
    bodies = {f"d/{dice.randrange(10**9):09d}": b"" for _ in range(2300)}
    bodies |= {f"d/sub{number:03d}/x": b"" for number in range(300)}
    foreign.put_all(bodies)
    drive = mounter()
    expected = sorted({key.split("/")[1] for key in bodies})
    assert names(drive.here / "d") == expected


async def mode_of(mount: Composed, path: str) -> int:
    """As `ls -l` shows it: the directory above is listed, and the file asked for."""
    folder, _, _ = path.rpartition("/")
    await mount.parts.listings.complete(await mount._walk(folder))
    return stat.S_IMODE((await mount._walk(path)).mode)


def test_a_chmod_of_another_host_is_seen_on_a_file_that_was_written_here(tmp_path: Path) -> None:
    now = [time.time()]
    store = FakeStore(clock=lambda: now[0])

    async def chmod_elsewhere() -> None:
        found = await store.head("file")
        metadata = {**found.properties.metadata, "mode": str(0o100600)}
        await store.copy("file", "file", version=found.version, properties=replace(found.properties, metadata=metadata))

    with composed(store, tmp_path) as mount:
        mount.loop.run(lambda: mount.write("file", b"bytes", flags=os.O_CREAT))
        assert mount.loop.run(lambda: mode_of(mount, "file")) == 0o644
        now[0] += HOUR
        mount.loop.run(chmod_elsewhere)
        mount.loop.passes(TTL + 1)
        assert mount.loop.run(lambda: mode_of(mount, "file")) == 0o600


def test_a_chmod_of_another_host_is_seen_on_a_directory(tmp_path: Path) -> None:
    now = [time.time()]
    store = FakeStore(clock=lambda: now[0])

    async def mode_elsewhere(mode: int) -> None:
        await store.put("d/", b"", Properties(Headers(), {"mode": str(stat.S_IFDIR | mode)}))

    with composed(store, tmp_path) as mount:
        mount.loop.run(lambda: mode_elsewhere(0o755))
        mount.loop.run(lambda: store.put("d/file", b"x", Properties()))
        assert mount.loop.run(lambda: mode_of(mount, "d")) == 0o755
        now[0] += HOUR
        mount.loop.run(lambda: mode_elsewhere(0o700))
        mount.loop.passes(TTL + 1)
        mount.loop.run(lambda: mode_of(mount, "d/file"))  # the marker is in the directory's own listing
        assert mount.loop.run(lambda: mode_of(mount, "d")) == 0o700


def test_another_client_removes_files_between_the_pages_of_one_readdir(foreign: Foreign, mounter: Mounter) -> None:
    """Each file that stays is met once, and nothing is an error: of those that go none is met twice."""
    long = "x" * 200  # getdents(2) brings 140 such names at a time
    wanted = [f"{number:04d}{long}" for number in range(2500)]
    foreign.put_all({f"d/{name}": b"" for name in wanted})
    drive = mounter("", *("--ttl", "600"))
    with os.scandir(drive.here / "d") as entries:
        found = [next(entries).name for _ in range(10)]
        gone = [
            *wanted[5:15],
            *wanted[990:1010],
            *wanted[1995:2005],
            wanted[-1],
        ]  # read; on the borders of pages; to come
        foreign.delete(*(f"d/{name}" for name in gone))
        found += [entry.name for entry in entries]
    assert len(found) == len(set(found)), "none twice"
    assert set(wanted) - set(gone) <= set(found) <= set(wanted)
    assert wanted[-1] not in found, "a page that was listed after a file went does not show it"
    with fails(errno.ENOENT):
        (drive.here / "d" / gone[0]).read_bytes()
