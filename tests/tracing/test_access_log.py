"""The access log as a user switches it on and off, and what it does when its disk does not keep up."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Event

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sosfs.log.escaping import UNSAFE, quoted
from sosfs.tracing import access_log
from sosfs.tracing.access_log import AccessLog
from sosfs.tracing.requests import KernelRequest
from tests.conftest import Mounter, access_to
from tests.support.disks import small_disk
from tests.support.drive import Drive
from tests.support.foreign import Foreign
from tests.support.mounting import Mount, run_sosfs
from tests.support.servers import Server
from tests.support.waiting import until
from tests.support.watchdog import Watchdog

Done = subprocess.CompletedProcess[str]
LINE = re.compile(r'(?P<time>\S+Z) (?P<number>\d+|-) (?P<operation>\S+)(?P<rest>( \w+=("([^"\\]|\\.)*"|\S*))*)')
FIELD = re.compile(r'(\w+)=("(?:[^"\\]|\\.)*"|\S*)')
Fields = dict[str, str]


def parsed(text: str) -> list[Fields]:
    """The lines of an access log; each must be one."""
    found = []
    for line in text.splitlines():
        match = LINE.fullmatch(line)
        assert match, line
        fields = dict(FIELD.findall(match["rest"]))
        plain = {name: json.loads(value) if value[:1] == '"' else value for name, value in fields.items()}
        found.append({"number": match["number"], "operation": match["operation"], **plain})
    return found


def log(mount: Mount, *options: str | Path) -> Done:
    return run_sosfs(["log", mount.path, *options], mount.environment)


@contextlib.contextmanager
def logged(mount: Mount, file: Path) -> Iterator[list[Fields]]:
    """What was asked within, once that is over."""
    lines: list[Fields] = []
    assert log(mount, "--access", file).returncode == 0
    yield lines
    assert log(mount, "--access", "off").returncode == 0
    lines += parsed(file.read_text())


def of(lines: Sequence[Fields], operation: str, path: Path) -> list[Fields]:
    return [line for line in lines if line["operation"] == operation and line.get("path") == str(path)]


def test_each_request_has_a_line_with_its_process_its_bytes_and_its_s3_requests(drive: Drive, tmp_path: Path) -> None:
    path = drive.here / "file"
    with logged(drive.mount, tmp_path / "access") as lines:
        drive.shell("exec dd if=/dev/zero of=file bs=1000 count=3")
    writes = of(lines, "write", path)
    assert sum(int(line["bytes"]) for line in writes) == 3000
    (flush,) = [line for line in of(lines, "flush", path) if line["s3"] != "0"]
    assert (flush["name"], flush["s3_kinds"], flush["errno"]) == ("dd", "PutObject:1", "0")
    assert {line["pid"] for line in writes} == {flush["pid"]}
    (put,) = [line for line in lines if line["operation"] == "s3.PutObject"]
    assert (put["number"], put["key"], put["sent"]) == (flush["number"], drive.key(path), "3000")
    assert (put["status"], put["tries"], put["errno"]) == ("200", "1", "0")


def test_a_failed_request_says_why(drive: Drive, tmp_path: Path) -> None:
    with logged(drive.mount, tmp_path / "access") as lines:
        assert not (drive.here / "absent").exists()
        with pytest.raises(OSError):
            os.rename(drive.here, drive.mount.path / ".sosfs/other")
    assert {line["errno"] for line in of(lines, "lookup", drive.here / "absent")} == {"ENOENT"}
    (rename,) = of(lines, "rename", drive.here)
    assert (rename["errno"], rename["to"]) == ("EPERM", f"{drive.mount.path}/.sosfs/other")


@pytest.mark.parametrize("name", ['a b"\\', "line\nend", "\x1b[2J", "\u202egnp", "grün", os.fsdecode(b"\xff")])
def test_a_name_makes_no_second_line_and_comes_back(drive: Drive, tmp_path: Path, name: str) -> None:
    path = drive.here / name
    with logged(drive.mount, tmp_path / "access") as lines, contextlib.suppress(FileNotFoundError):
        os.lstat(path)
    assert of(lines, "lookup", path)
    assert (tmp_path / "access").read_text().replace("\n", "").isprintable()


@given(st.text())
def test_what_is_quoted_is_printable_json(text: str) -> None:
    assert not {unicodedata.category(one) for one in quoted(text)} & UNSAFE
    assert json.loads(quoted(text)) == text


def test_off_is_off_and_on_again_goes_on_at_the_end(drive: Drive, tmp_path: Path) -> None:
    file = tmp_path / "access"
    with logged(drive.mount, file):
        (drive.here / "one").write_bytes(b"1")
    before = file.read_text()
    (drive.here / "two").write_bytes(b"2")
    assert file.read_text() == before
    with logged(drive.mount, file):
        (drive.here / "three").write_bytes(b"3")
    assert file.read_text().startswith(before)
    written = {line["path"] for line in parsed(file.read_text()) if line["operation"] == "write"}
    assert written == {str(drive.here / "one"), str(drive.here / "three")}


def test_a_directory_that_is_read_has_a_caller(drive: Drive, tmp_path: Path) -> None:
    with logged(drive.mount, tmp_path / "access") as lines:
        drive.run("ls", drive.here)
    assert {line["name"] for line in of(lines, "readdir", drive.here)} == {"ls"}


def test_it_goes_on_in_a_new_file_where_it_was_moved_away(drive: Drive, tmp_path: Path) -> None:
    file, moved = tmp_path / "access", tmp_path / "access.1"
    assert log(drive.mount, "--access", file).returncode == 0
    (drive.here / "one").write_bytes(b"1")
    until(lambda: "/one" in file.read_text(), "lines before the move")
    file.rename(moved)
    (drive.here / "two").write_bytes(b"2")
    until(lambda: file.exists() and "/two" in file.read_text(), "lines after the move")
    assert log(drive.mount, "--access", "off").returncode == 0
    assert "/two" not in moved.read_text()
    assert {line["number"] for line in parsed(file.read_text())}.isdisjoint(
        line["number"] for line in parsed(moved.read_text()) if line["operation"] == "write"
    )


def test_it_is_for_its_owner_alone(drive: Drive, tmp_path: Path) -> None:
    with logged(drive.mount, tmp_path / "access"):
        pass
    assert (tmp_path / "access").stat().st_mode & 0o777 == 0o600


def test_what_cannot_be_an_access_log_is_refused_in_one_line(drive: Drive, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to(drive.here / "file")
    for file in (drive.here / "file", tmp_path / "link", tmp_path / "fifo", tmp_path / "none/file", tmp_path):
        done = log(drive.mount, "--access", file)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1), file
    assert log(drive.mount).stdout.splitlines() == ["level   info", "access  off"]
    done = run_sosfs(["log", tmp_path], drive.mount.environment)
    assert (done.returncode, done.stderr) == (1, f"sosfs: {tmp_path}: nothing of sosfs is mounted there\n")
    assert log(drive.mount, "--level", "loud").returncode == 2


def test_what_is_uploaded_after_the_close_is_charged_to_who_closed(mounter: Mounter, tmp_path: Path) -> None:
    drive, file = mounter("", "--durability", "journal"), tmp_path / "access"
    assert log(drive.mount, "--access", file).returncode == 0
    drive.shell("for n in 1 2 3; do echo $n > file$n; done")
    until(lambda: file.read_text().count("s3.PutObject") == 3, "three uploads")
    assert log(drive.mount, "--access", "off").returncode == 0
    lines = parsed(file.read_text())
    causes = {line["number"]: line["path"] for line in lines if "path" in line}
    puts = {causes[line["number"]]: line["key"] for line in lines if line["operation"] == "s3.PutObject"}
    assert puts == {str(drive.here / key): key for key in ("file1", "file2", "file3")}


def test_paths_are_whole_where_all_buckets_are_mounted(
    server: Server, foreign: Foreign, watchdog: Watchdog, tmp_path: Path
) -> None:
    with Mount(access_to(server), "", tmp_path / "all", watchdog) as mount:
        file = mount.path / foreign.bucket / "file"
        with logged(mount, tmp_path / "access") as lines:
            file.write_bytes(b"x")
            os.listdir(mount.path)
            (mount.path / ".sosfs/status").read_bytes()
    assert of(lines, "write", file)
    assert of(lines, "opendir", mount.path)
    assert of(lines, "read", mount.path / ".sosfs")
    (put,) = [line for line in lines if line["operation"] == "s3.PutObject" and line["key"] == "file"]
    (flush,) = [line for line in of(lines, "flush", file) if line["s3"] != "0"]
    assert put["number"] == flush["number"]


def test_the_level_is_changed_while_mounted_and_lines_carry_the_number(mounter: Mounter, tmp_path: Path) -> None:
    drive = mounter()
    file = drive.here / "file"
    file.write_bytes(b"x")
    assert log(drive.mount, "--level", "debug").stdout.splitlines() == ["level   debug", "access  off"]
    with logged(drive.mount, tmp_path / "access") as lines, pytest.raises(OSError):
        os.getxattr(file, "user.none")
    (failed,) = of(lines, "getxattr", file)
    assert failed["errno"] == "ENODATA"
    assert re.search(rf"DEBUG \[{failed['number']}\] .*getxattr: ", drive.mount.log)
    assert log(drive.mount, "--level", "warning").returncode == 0
    seen = len(drive.mount.log)
    with pytest.raises(OSError):
        os.getxattr(file, "user.none")
    assert drive.mount.log[seen:] == ""


def test_no_log_holds_a_secret(mounter: Mounter, tmp_path: Path) -> None:
    drive, file = mounter(), tmp_path / "access"
    assert log(drive.mount, "--level", "debug").returncode == 0
    with logged(drive.mount, file):
        (drive.here / "file").write_bytes(b"the bytes of the file")
        (drive.here / "file").rename(drive.here / "other")
        os.getxattr(drive.here / "other", "user.sos.presigned-url")
        drive.run("cat", ".sosfs/acl/other", ".sosfs/bucket/acl")
    told = file.read_text() + drive.mount.log
    secrets = (drive.mount.access.secret, drive.mount.access.key, "ignature", "the bytes of the file")
    assert [secret for secret in secrets if secret in told] == []


# What its disk does


def lines_of(count: int) -> list[KernelRequest]:
    return [KernelRequest("read") for _ in range(count)]


def test_lines_that_the_disk_has_no_room_for_are_counted(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1 << 20):
        filler = tmp_path / "disk/filler"
        written = AccessLog(tmp_path / "disk/access")
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(b"x" * 4096):
                pass
        for request in lines_of(1000):
            written.kernel_request(request)
        until(lambda: written.lost, "lines that are lost")
        until(lambda: written.waits == 0, "all lines were tried")
        filler.unlink()
        written.kernel_request(KernelRequest("write"))
        written.close()
        text = (tmp_path / "disk/access").read_text()
    lost = sum(int(number) for number in re.findall(r" - lost lines=(\d+)$", text, re.MULTILINE))
    whole = [line for line in text.splitlines() if line.endswith("s3_kinds=-")]
    assert lost
    assert lost + len(whole) >= 1001 > len(whole)
    assert whole[-1].split()[2] == "write"


def test_a_disk_that_hangs_holds_up_nobody_and_takes_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    goes_on = Event()
    monkeypatch.setattr(access_log, "WAITING", 100)
    monkeypatch.setattr(access_log, "TOGETHER", 10)
    written = AccessLog(tmp_path / "access")
    append = written._file.append
    monkeypatch.setattr(written._file, "append", lambda lines: goes_on.wait() and append(lines))
    for request in lines_of(1000):
        written.kernel_request(request)
    assert written.waits <= 100
    lost = written.lost
    assert lost >= 1000 - 100 - 10
    goes_on.set()
    written.close()
    text = (tmp_path / "access").read_text()
    assert text.count(" read ") == 1000 - lost
    assert sum(int(lines) for lines in re.findall(r" - lost lines=(\d+)\n", text)) == lost  # in one gap or in several


# What it costs while it is off


def test_nobody_is_looked_up_while_nobody_watches(drive: Drive, tmp_path: Path) -> None:
    """System calls of the daemon on /proc, counted by strace where it is allowed to."""
    (drive.here / "file").write_bytes(b"x" * 100_000)
    assert asked_of_proc(drive, tmp_path / "off") == 0
    with logged(drive.mount, tmp_path / "access"):
        assert asked_of_proc(drive, tmp_path / "on") > 0


def asked_of_proc(drive: Drive, trace: Path) -> int:
    """How often the daemon opens files in /proc while somebody reads."""
    strace = subprocess.Popen(
        ["strace", "-f", "-e", "trace=openat", "-o", trace, "-p", str(drive.mount.pid)], stderr=subprocess.PIPE
    )
    assert strace.stderr is not None
    assert b"attached" in strace.stderr.readline()
    drive.run(sys.executable, "-c", "for _ in range(20): open('file', 'rb').read()")
    strace.terminate()
    strace.communicate()
    return trace.read_text().count('"/proc/')
