"""A bucket shared with s3fs, rclone and s3cmd: what one wrote, the others show, and no change makes another one err."""

from __future__ import annotations

import json
import os
import random
import socket
import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.conftest import Mounter
from tests.support.drive import Drive, eventually, tree
from tests.support.foreign import Foreign
from tests.support.peers import Peers, Seen, seen_below
from tests.support.servers import Server
from tests.support.watchdog import Watchdog

MOMENT = 981_173_106_123_456_789
SECOND = 10**9
MIB = 1 << 20

pytestmark = pytest.mark.parametrize("server", ["ceph"], indirect=True)  # a server that all of them support


@pytest.fixture
def peers(server: Server, foreign: Foreign, watchdog: Watchdog, tmp_path: Path) -> Peers:
    """The programs on the test's bucket."""
    base = tmp_path / "peers"
    base.mkdir()
    return Peers(server, foreign.bucket, base, watchdog)


def populate(top: Path) -> None:
    """Everything a tree can have, made as programs make it: directories of several modes, links, special files."""
    before = os.umask(0)
    try:
        for mode in (0o700, 0o755, 0o770, 0o777, 0o1777, 0o2775):
            (top / f"dir-{mode:o}").mkdir(mode=mode)
        (top / "nested" / "deep").mkdir(parents=True)
        os.mkfifo(top / "fifo", 0o620)
        os.mknod(top / "char", stat.S_IFCHR | 0o660, os.makedev(1, 3))
        os.mknod(top / "block", stat.S_IFBLK | 0o600, os.makedev(7, 300))
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(os.fspath(top / "socket"))
    finally:
        os.umask(before)
    for mode in (0o400, 0o600, 0o640, 0o644, 0o755, 0o4711):
        path = top / "nested" / f"file-{mode:o}"
        path.write_bytes(b"content" * mode)
        os.chown(path, 1000 + mode, 100 + mode)
        path.chmod(mode)
        os.utime(path, ns=(MOMENT, MOMENT + mode))
    (top / "link").symlink_to("nested/../nested/file-644")
    (top / "dangling").symlink_to("../ümlaut nowhere")
    os.utime(top / "link", ns=(MOMENT, MOMENT), follow_symlinks=False)
    os.chown(top / "nested", 1, 2)
    (top / "nested").chmod(0o750)
    os.utime(top / "nested", ns=(MOMENT, MOMENT))


@pytest.mark.promise(8)
def test_what_s3fs_wrote_is_shown(mounter: Mounter, peers: Peers) -> None:
    with peers.s3fs() as there:
        populate(there)
    with peers.s3fs() as there:
        expected, bodies = seen_below(there), tree(there / "nested")
    drive = mounter()
    assert seen_below(drive.here) == expected
    assert tree(drive.here / "nested") == bodies
    assert {path: seen.mode[0] for path, seen in expected.items()}["link"] == "l"


@pytest.mark.promise(8)
def test_ls_of_what_s3fs_wrote_shows_links_at_once(mounter: Mounter, peers: Peers) -> None:
    """Nothing is known of them when ls asks, and what is asked ahead by then is asked once more by ls."""
    with peers.s3fs() as there:
        for number in range(4):
            (there / f"file{number}").write_bytes(b"content")
            (there / f"link{number}").symlink_to("file0")
    drive = mounter()
    kinds = {line.split()[8]: line[0] for line in drive.run("ls", "-l").splitlines()[1:]}
    assert {name: kind for name, kind in kinds.items() if kind != {"f": "-", "l": "l"}[name[0]]} == {}
    assert len(kinds) == 8


@pytest.mark.promise(8)
def test_what_sosfs_wrote_is_shown_by_s3fs(mounter: Mounter, peers: Peers) -> None:
    drive = mounter()
    populate(drive.here)
    expected, bodies = seen_below(drive.here), tree(drive.here / "nested")
    drive.mount.stop()
    with peers.s3fs() as there:
        assert seen_below(there) == expected
        assert tree(there / "nested") == bodies


def change(top: Path) -> None:
    """Every way to change what `populate` made."""
    (top / "nested" / "file-600").write_bytes(b"rewritten")
    with (top / "nested" / "file-640").open("ab") as file:
        file.write(b" and more")
    (top / "nested" / "file-644").chmod(0o4750)
    os.chown(top / "nested" / "file-755", 7, 8)
    os.utime(top / "nested" / "file-4711", ns=(MOMENT + SECOND, MOMENT + SECOND))
    (top / "nested").rename(top / "renamed")
    (top / "dir-755").chmod(0o500)
    (top / "fifo").rename(top / "fifo moved")
    (top / "link").unlink()


@pytest.mark.promise(8)
def test_what_sosfs_changed_of_s3fs_is_shown_by_s3fs(mounter: Mounter, peers: Peers) -> None:
    with peers.s3fs() as there:
        populate(there)
        begun = (there / "nested" / "file-640").stat().st_ctime_ns
    drive = mounter()
    change(drive.here)
    expected = seen_below(drive.here)
    drive.mount.stop()
    with peers.s3fs() as there:
        assert seen_below(there) == expected
        for name in ("file-600", "file-640"):
            assert (there / "renamed" / name).stat().st_ctime_ns > begun, "a backup would take it for unchanged"


@pytest.mark.promise(8)
def test_what_rclone_copied_with_metadata_is_shown(mounter: Mounter, peers: Peers, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "nested" / "empty").mkdir(parents=True)
    for mode in (0o400, 0o600, 0o644, 0o755, 0o4711):
        path = source / "nested" / f"file-{mode:o}"
        path.write_bytes(b"content" * mode)
        os.chown(path, 1000 + mode, 100 + mode)
        path.chmod(mode)
        os.utime(path, ns=(MOMENT, MOMENT + mode))
    (source / "link").symlink_to("nested/file-644")
    options = ["--metadata", "--links", "--create-empty-src-dirs", "--s3-directory-markers"]
    peers.rclone("copy", *options, source, peers.remote)
    drive = mounter()
    assert seen_below(drive.here / "nested")["empty"].mode[0] == "d"
    for path in (source / "nested").glob("file-*"):
        assert Seen.at(drive.here / "nested" / path.name) == Seen.at(path)
        assert (drive.here / "nested" / path.name).read_bytes() == path.read_bytes()
    # rclone has a name of its own for a link, which stays: it is the object's.
    assert (drive.here / "link.rclonelink").readlink() == Path("nested/file-644")


@pytest.mark.promise(8)
def test_what_an_rclone_mount_wrote_is_shown(mounter: Mounter, peers: Peers, foreign: Foreign) -> None:
    with peers.rclone_mount() as there:
        (there / "dir").mkdir()
        with (there / "dir" / "file").open("wb") as file:  # at one close: a change during an upload has it end, and
            file.write(b"content")  # rclone tries again in 10 s, then in 20
            file.flush()
            os.utime(file.fileno(), ns=(MOMENT, MOMENT))
        (there / "link").symlink_to("dir/file")
        eventually(lambda: foreign.keys() == ["dir/", "dir/file", "link.rclonelink"], seconds=60)
        eventually(lambda: foreign.metadata("dir/file")["mtime"] == "981173106.123456789", seconds=60)
    drive = mounter()
    assert (drive.here / "dir" / "file").stat().st_mtime_ns == MOMENT
    assert tree(drive.here) == {"dir/file": b"content", "link.rclonelink": b"dir/file"}


@pytest.mark.promise(8)
def test_what_sosfs_wrote_is_shown_by_rclone(mounter: Mounter, peers: Peers, tmp_path: Path) -> None:
    drive = mounter("", "--part-size", "5M")
    populate(drive.here)
    (drive.here / "large").write_bytes(random.Random(5).randbytes(11 * MIB))
    (drive.here / "link").unlink()  # to rclone a link is a file: its target's name
    expected, bodies = seen_below(drive.here), tree(drive.here)
    drive.mount.stop()
    listed = {entry["Path"]: entry for entry in json.loads(peers.rclone("lsjson", "-R", "--metadata", peers.remote))}
    assert listed.keys() == expected.keys()
    for path, seen in expected.items():
        entry = listed[path]
        assert entry["IsDir"] == (seen.mode[0] == "d")
        if not entry["IsDir"]:
            assert entry["Size"] == seen.size
            assert entry["ModTime"] == rfc3339(seen.mtime_ns)
            assert (entry["Metadata"]["uid"], entry["Metadata"]["gid"]) == (str(seen.uid), str(seen.gid))
    peers.rclone("copy", peers.remote, tmp_path / "copied")
    copied = tree(tmp_path / "copied")
    assert {path: copied[path] for path in bodies} == bodies
    with peers.rclone_mount() as there:
        for path in bodies:
            assert ((there / path).read_bytes(), (there / path).stat().st_mtime_ns) == (
                bodies[path],
                expected[path].mtime_ns,
            )


def rfc3339(moment: int) -> str:
    """A time as rclone writes it."""
    return f"{datetime.fromtimestamp(moment // SECOND, UTC):%Y-%m-%dT%H:%M:%S}.{moment % SECOND:09d}Z"


@pytest.mark.parametrize("part_size", ["8M", "5M"])
def test_what_sosfs_changed_of_rclone_is_not_damaged_to_it(
    mounter: Mounter, peers: Peers, foreign: Foreign, tmp_path: Path, part_size: str
) -> None:
    """rclone keeps the MD5 of a large file in its metadata, and refuses to copy what has another one."""
    body = random.Random(6).randbytes(11 * MIB)
    (tmp_path / "large").write_bytes(body)
    peers.rclone("copy", "--s3-upload-cutoff", "5M", "--s3-chunk-size", "5M", tmp_path / "large", peers.remote)
    assert "md5chksum" in foreign.metadata("large")
    drive = mounter("", "--part-size", part_size)
    with (drive.here / "large").open("r+b") as file:
        file.write(b"changed")
    (drive.here / "large").rename(drive.here / "moved")
    drive.mount.stop()
    peers.rclone("copy", peers.remote, tmp_path / "copied")
    assert (tmp_path / "copied" / "moved").read_bytes() == b"changed" + body[7:]


def test_what_is_only_renamed_keeps_the_hash_of_rclone(
    mounter: Mounter, peers: Peers, foreign: Foreign, tmp_path: Path
) -> None:
    (tmp_path / "large").write_bytes(bytes(11 * MIB))
    peers.rclone("copy", "--s3-upload-cutoff", "5M", "--s3-chunk-size", "5M", tmp_path / "large", peers.remote)
    noted = foreign.metadata("large")["md5chksum"]
    drive = mounter()
    (drive.here / "large").chmod(0o600)
    (drive.here / "large").rename(drive.here / "moved")
    drive.mount.stop()
    assert foreign.metadata("moved")["md5chksum"] == noted
    peers.rclone("copy", peers.remote, tmp_path / "copied")


def s3cmd_source(top: Path) -> Path:
    """A tree for s3cmd, which knows files alone and whole seconds."""
    (top / "nested").mkdir(parents=True)
    for mode in (0o400, 0o600, 0o644, 0o755):
        path = top / "nested" / f"file-{mode:o}"
        path.write_bytes(b"content" * mode)
        os.chown(path, 1000 + mode, 100 + mode)
        path.chmod(mode)
        os.utime(path, ns=(MOMENT, (MOMENT // SECOND + mode) * SECOND))
    return top


@pytest.fixture
def after_s3cmd(mounter: Mounter, peers: Peers, tmp_path: Path) -> Drive:
    """A mount of what s3cmd has put and synced."""
    source = s3cmd_source(tmp_path / "source")
    peers.s3cmd("sync", f"{source}/", f"{peers.url}/synced/")
    peers.s3cmd("put", "--preserve", source / "nested" / "file-600", f"{peers.url}/put")
    return mounter()


@pytest.mark.promise(8)
def test_what_s3cmd_wrote_is_shown(after_s3cmd: Drive, tmp_path: Path) -> None:
    source, here = tmp_path / "source", after_s3cmd.here
    for path in (source / "nested").iterdir():
        assert Seen.at(here / "synced" / "nested" / path.name) == Seen.at(path)
    assert Seen.at(here / "put") == Seen.at(source / "nested" / "file-600")


@pytest.mark.promise(8)
def test_s3cmd_takes_what_sosfs_changed(after_s3cmd: Drive, peers: Peers, tmp_path: Path) -> None:
    nested = after_s3cmd.here / "synced" / "nested"
    (nested / "file-644").chmod(0o640)
    os.utime(nested / "file-755", ns=(MOMENT, (MOMENT // SECOND + 5) * SECOND))
    os.chown(nested / "file-400", 5, 6)
    (nested / "file-600").write_bytes(b"rewritten here")
    os.utime(nested / "file-600", ns=(MOMENT, (MOMENT // SECOND + 9) * SECOND))
    expected = seen_below(nested)
    after_s3cmd.mount.stop()
    peers.s3cmd("sync", f"{peers.url}/synced/nested/", f"{tmp_path}/back/")
    assert seen_below(tmp_path / "back") == expected
    assert (tmp_path / "back" / "file-600").read_bytes() == b"rewritten here"


def test_what_sosfs_changed_of_s3cmd_is_not_damaged_to_it(
    mounter: Mounter, peers: Peers, foreign: Foreign, tmp_path: Path
) -> None:
    """s3cmd notes the MD5 of a file in its metadata, and warns of what has another one."""
    body = random.Random(7).randbytes(11 * MIB)
    (tmp_path / "large").write_bytes(body)
    peers.s3cmd("put", "--preserve", "--multipart-chunk-size-mb", "5", tmp_path / "large", f"{peers.url}/")
    assert "/md5:" in foreign.metadata("large")["s3cmd-attrs"]
    drive = mounter("", "--part-size", "5M")
    with (drive.here / "large").open("r+b") as file:
        file.write(b"changed")
    drive.mount.stop()
    assert "-" in foreign.head("large")["ETag"], "else s3cmd goes by that"
    assert "WARNING" not in peers.s3cmd("get", f"{peers.url}/large", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == b"changed" + body[7:]


def test_sync_tools_find_nothing_to_do_after_cp(mounter: Mounter, peers: Peers, tmp_path: Path) -> None:
    """What was copied in with `cp -a` is, to them, what they would have uploaded themselves."""
    source = s3cmd_source(tmp_path / "source")
    drive = mounter()
    drive.run("cp", "-a", f"{source}/nested", drive.here)
    drive.mount.stop()
    assert "upload:" not in peers.s3cmd("sync", "--dry-run", f"{source}/", f"{peers.url}/")
    peers.rclone("check", source, peers.remote)
    assert "nothing to transfer" in peers.rclone("copy", "-v", source, peers.remote)
