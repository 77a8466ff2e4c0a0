"""What a program expects of files and an object store has nothing like: types by name, times, links, truncation."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

import tests.support.fake_store
from sosfs.metadata import system_headers, user_metadata
from sosfs.tree.keys import Form, name_of, parse
from tests.conftest import Mounter
from tests.support.composed import Composed, composed
from tests.support.drive import Drive, eventually, fails, names
from tests.support.faults import Answer
from tests.support.foreign import Foreign
from tests.support.held import Held, closed, opened, stored
from tests.support.mounting import run_sosfs
from tests.support.proxy import Proxy
from tests.support.traffic import on

JOURNAL = ("--durability", "journal")


def kind(drive: Drive, path: Path) -> str:
    return str(drive.foreign.head(drive.key(path))["ContentType"])


# Content-Type


@pytest.mark.parametrize("options", [(), JOURNAL])
def test_a_type_that_a_temporary_name_told_becomes_the_final_names(
    mounter: Mounter, tmp_path: Path, options: tuple[str, ...]
) -> None:
    """rsync, sed -i, editors and browsers write under another name first."""
    site, drive = tmp_path / "site", mounter("", *options)
    site.mkdir()
    files = {
        "page.html": "text/html",
        "style.css": "text/css",
        "photo.jpg": "image/jpeg",
        "plain": system_headers.UNKNOWN,
    }
    for name in files:
        (site / name).write_bytes(name.encode() * 100)
    drive.run("rsync", "-a", f"{site}/", f"{drive.here}/rsynced/")
    drive.run("cp", "-r", site, drive.here / "copied")
    drive.run("sed", "-i", "s/a/b/", "copied/page.html")
    (drive.here / "download.pdf.part").write_bytes(b"%PDF")
    (drive.here / "download.pdf.part").rename(drive.here / "download.pdf")
    os.sync()
    drive.mount.remount()
    for folder in ("rsynced", "copied"):
        assert {name: kind(drive, drive.here / folder / name) for name in files} == files
    assert kind(drive, drive.here / "download.pdf") == "application/pdf"


def test_a_type_that_somebody_gave_outlasts_a_rename(mounter: Mounter, foreign: Foreign) -> None:
    foreign.client.put_object(Bucket=foreign.bucket, Key="other.html", Body=b"x", ContentType="binary/octet-stream")
    drive = mounter()
    given = drive.here / "data.part"
    given.write_bytes(b"x")
    os.setxattr(given, "user.mime_type", b"model/gltf+json")
    given.rename(drive.here / "data.json")
    (drive.here / "other.html").rename(drive.here / "more.html")
    (drive.here / "page.html").write_bytes(b"x")
    (drive.here / "page.html").rename(drive.here / "page.html~")
    assert kind(drive, drive.here / "data.json") == "model/gltf+json"
    assert kind(drive, drive.here / "more.html") == "binary/octet-stream", "the old name did not tell that"
    assert kind(drive, drive.here / "page.html~") == "text/html", "the new name tells nothing"


@pytest.mark.promise(7)
def test_a_rename_to_another_type_keeps_all_else(drive: Drive) -> None:
    path = drive.here / "page.part"
    path.write_bytes(b"x")
    os.setxattr(path, "user.author", b"me")
    os.setxattr(path, "user.sos.cache-control", b"max-age=60")
    os.utime(path, ns=(1, 1_600_000_000_123_456_789))
    path.chmod(0o640)
    path.rename(drive.here / "page.html")
    found = drive.foreign.head(drive.key(drive.here / "page.html"))
    assert (found["ContentType"], found["CacheControl"]) == ("text/html", "max-age=60")
    assert found["Metadata"]["author"] == "me" and found["Metadata"]["mtime"] == "1600000000.123456789"
    assert stat.S_IMODE(int(found["Metadata"]["mode"])) == 0o640


# Opening, links, times


def test_a_reader_may_truncate(drive: Drive) -> None:
    """open(2): the effect of O_RDONLY|O_TRUNC varies among implementations; on Linux's it truncates."""
    path = drive.here / "file"
    path.write_bytes(b"x" * 10_000)
    descriptor = os.open(path, os.O_RDONLY | os.O_TRUNC)
    assert os.fstat(descriptor).st_size == 0 and os.read(descriptor, 10) == b""
    os.close(descriptor)
    assert drive.stored(path) == b""


def test_an_open_file_without_a_name_has_no_links(drive: Drive) -> None:
    path, folder = drive.here / "file", drive.here / "folder"
    folder.mkdir()
    with path.open("wb") as file:
        assert os.fstat(file.fileno()).st_nlink == 1
        path.unlink()
        assert os.fstat(file.fileno()).st_nlink == 0
    (drive.here / "b").write_bytes(b"new")
    path.write_bytes(b"old")
    with path.open("rb") as file:
        (drive.here / "b").rename(path)
        assert os.fstat(file.fileno()).st_nlink == 0
    opened = os.open(folder, os.O_RDONLY)
    assert os.fstat(opened).st_nlink == 1
    folder.rmdir()
    assert os.fstat(opened).st_nlink == 0
    os.close(opened)
    assert drive.here.stat().st_nlink == 1, "which tells find(1) and others not to count"


SECOND = 1_000_000_000
TIMES = (
    *(-SECOND // 2, -3 * SECOND // 2, -SECOND, 0, 1, -86_400 * SECOND - 1),
    *(9_300_000_000 * SECOND + 1, 253_402_300_800 * SECOND, -62_135_596_801 * SECOND + 5),
)


def test_times_of_any_age_read_back_as_they_were_set(drive: Drive) -> None:
    for at, wanted in enumerate(TIMES):
        path = drive.here / f"f{at}"
        path.touch()
        os.utime(path, ns=(wanted, wanted))
        assert path.stat().st_mtime_ns == wanted
    drive.mount.remount()
    assert [(drive.here / f"f{at}").stat().st_mtime_ns for at in range(len(TIMES))] == list(TIMES)


def test_a_time_beyond_what_metadata_can_say_is_refused() -> None:
    for wanted in (*TIMES, 10**27 - 1, -(10**27) + 1):
        written = user_metadata.write({}, user_metadata.Posix(mtime_ns=user_metadata.storable(wanted)))
        assert user_metadata.read(written).mtime_ns == wanted
    for wanted in (10**27, -(10**27)):
        with fails(errno.EOVERFLOW):
            user_metadata.storable(wanted)


# Names


def test_the_control_trees_name_is_a_name_as_any_other_below_the_root(drive: Drive) -> None:
    control = drive.here / ".sosfs"
    control.mkdir()
    (control / "file").write_bytes(b"x")
    assert drive.stored(control / "file") == b"x"
    (control / "file").rename(drive.here / "moved")
    control.rmdir()
    (drive.here / "moved").rename(control)
    assert names(drive.here) == [".sosfs"] and control.read_bytes() == b"x"
    drive.mount.remount()
    assert names(drive.here) == [".sosfs"] and control.read_bytes() == b"x"
    with fails(errno.EINVAL, errno.ENOENT):
        (drive.here / "%~=.sosfs").read_bytes()
    control.unlink()


def test_what_the_bucket_has_of_that_name_at_the_root_can_be_reached(mounter: Mounter, foreign: Foreign) -> None:
    foreign.put_all({".sosfs/a": b"a", ".sosfs/d/b": b"b", ".sosfs": b"beside"})
    drive = mounter()
    root = drive.mount.path
    assert names(root) == ["%~=.sosfs", "%~f.sosfs"]
    assert (root / "%~=.sosfs/a").read_bytes() == b"a" and (root / "%~=.sosfs/d/b").read_bytes() == b"b"
    assert (root / "%~f.sosfs").read_bytes() == b"beside"
    assert (root / ".sosfs/status").exists()
    for command in ("warm", "drop"):
        assert run_sosfs([command, root / "%~=.sosfs"], drive.mount.environment).returncode == 0
    (root / "%~=.sosfs/a").write_bytes(b"new")
    (root / "%~=.sosfs").rename(root / "moved")
    (root / "%~=.sosfs").rename(root / "moved/beside")  # which has that name from now on
    (root / "moved/d").rename(root / "%~=.sosfs")
    assert foreign.get("moved/a") == b"new" and foreign.get(".sosfs/b") == b"b"
    assert foreign.get("moved/beside") == b"beside" and not foreign.exists(".sosfs")


LATIN = [
    b"caf\xe9",
    b"\xff\xfe",
    b"na\xefve \xe2\x80.txt",
    "x\u201bE9".encode(),
    "\u201b\u201b".encode(),
    b"\xe9\xc3\xa9",
]


@pytest.mark.promise(9)
def test_names_that_are_no_utf8_are_kept(drive: Drive, tmp_path: Path) -> None:
    """An old Latin-1 tree can be copied there and back."""
    tree = os.fsencode(tmp_path / "tree")
    os.mkdir(tree)
    for name in LATIN:
        os.mkdir(os.path.join(tree, name))
        Path(os.fsdecode(os.path.join(tree, name, name))).write_bytes(name)
    drive.run("cp", "-r", os.fsdecode(tree), drive.here / "copy")
    drive.mount.remount()
    assert sorted(os.listdir(os.fsencode(drive.here / "copy"))) == sorted(LATIN)
    drive.run("cp", "-r", drive.here / "copy", tmp_path / "back")
    subprocess.run(["diff", "-r", tree, os.fsencode(tmp_path / "back")], check=True)
    under = drive.key(drive.here / "copy")
    assert f"{under}/caf\u201bE9/caf\u201bE9" in drive.foreign.keys(under), "as rclone writes it"
    path = os.fsencode(drive.here / "copy") + b"/caf\xe9"
    os.rename(path, path + b"\xe8")
    assert os.listdir(path + b"\xe8") == [b"caf\xe9"]
    drive.run("rm", "-r", drive.here / "copy")
    eventually(lambda: drive.foreign.keys(under) == [])


def test_keys_with_such_quotes_that_no_name_would_give_are_reached(mounter: Mounter, foreign: Foreign) -> None:
    """Whatever wrote them: `C3 A9` is a letter, and two quotes are one only where one would be read otherwise."""
    segments = ["x\u201bC3\u201bA9", "a\u201b\u201bb", "plain\u201bs", "q\u201bFF", "q\u201b\u201bFF"]
    for segment in segments:
        foreign.put(segment, segment.encode())
    drive = mounter()
    found = {(drive.here / name).read_bytes() for name in names(drive.here)}
    assert found == {segment.encode() for segment in segments}
    for segment in segments:
        assert parse(name_of(segment)).segment == segment
    assert name_of("x\u201bC3\u201bA9", Form.BESIDE) == "%~f%~=x\u201bC3\u201bA9".encode()


# Truncation beside a commit


PART = 4096


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("left", [20 * PART - 1, 11 * PART, 10 * PART + 1, 2 * PART, 1, 0])
def test_a_file_that_is_cut_while_it_is_sent_is_what_was_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: int, again: bool
) -> None:
    """Another process truncates it, and may let it grow again, while the close of the first waits for its parts."""
    monkeypatch.setattr(tests.support.fake_store, "PART_MIN", 1)
    store, body = Held(), os.urandom(20 * PART)
    wanted = body[:left] + bytes(len(body) - left) * again

    async def main(mount: Composed) -> None:
        await mount.write("file", b"before", flags=os.O_CREAT)
        handle = await opened(mount, os.O_RDWR | os.O_TRUNC)
        await mount.parts.file_io.write(handle, 0, body)
        store.before["upload_part"] = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(closed, mount, handle)
            await trio.testing.wait_all_tasks_blocked()
            assert store.reached
            nursery.start_soon(mount.truncate, "file", left)
            await trio.testing.wait_all_tasks_blocked()
            if again:
                nursery.start_soon(mount.truncate, "file", len(body))
                await trio.testing.wait_all_tasks_blocked()
            store.before.pop("upload_part").set()
        assert stored(store) == wanted
        assert await store.list_uploads("") == []

    with composed(store, tmp_path, part_size=PART) as mount:
        mount.loop.run(partial(main, mount))


def test_a_refusal_of_the_store_at_close_is_in_the_log(mounter: Mounter, proxy: Proxy) -> None:
    """EINVAL from close(2) says nothing to anybody."""
    drive = mounter(proxy.endpoint)
    drive.mount.allow_log("ERROR.*the store refuses|WARNING.*not in the bucket yet")
    with proxy.broken(Answer(400, "InvalidRequest"), on("PUT")), fails(errno.EINVAL):
        (drive.here / "file").write_bytes(b"x")
    assert "the store refuses file: " in drive.mount.log and "InvalidRequest" in drive.mount.log


# What costs no request, and what leaves nothing


def test_without_trust_in_time_reading_an_open_file_asks_for_nothing(
    mounter: Mounter, foreign: Foreign, proxy: Proxy
) -> None:
    foreign.put("file", b"x" * (1 << 20))
    drive = mounter(proxy.endpoint, "--ttl", "0")
    with (drive.here / "file").open("rb", buffering=0) as file, proxy.recording() as traffic:
        for _ in range(64):
            assert len(file.read(4096)) == 4096
    assert traffic.count("HEAD", "LIST") <= 1
    foreign.put("file", b"another")
    assert (drive.here / "file").stat().st_size == 7
    assert (drive.here / "file").read_bytes() == b"another"


def test_a_mistyped_bucket_leaves_nothing_that_forbids_the_right_one(
    mounter: Mounter, foreign: Foreign, tmp_path: Path
) -> None:
    cache = ("--cache-dir", str(tmp_path / "cache"))
    with pytest.raises(AssertionError, match="no such bucket"):
        mounter("", *cache, source=f"{foreign.bucket}-mistyped")
    drive = mounter("", *cache)
    (drive.here / "file").write_bytes(b"x")
    assert foreign.get("file") == b"x"


def test_a_time_out_of_no_seconds_is_wrong_usage(mounter: Mounter, tmp_path: Path) -> None:
    drive = mounter()
    for value in ("0", "0.0", "-1", "nan"):
        done = run_sosfs(["mount", "bucket", tmp_path, "--timeout", value], drive.mount.environment)
        assert done.returncode == 2 and "--timeout" in done.stderr
