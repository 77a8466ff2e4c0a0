"""Commands whose output nobody reads any more, as with `| head`, end without a word."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.support.drive import Drive
from tests.support.mounting import ROOT, SOSFS

UNREAD = 128 + signal.SIGPIPE


def unread(arguments: Sequence[object], environment: Mapping[str, str] | None = None) -> tuple[int, bytes]:
    """The exit code of a command whose standard output has no reader, and what it says."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        command = [*SOSFS, *map(str, arguments)]
        done = subprocess.run(
            command, stdout=writer, stderr=subprocess.PIPE, env=environment, cwd=ROOT, timeout=60, check=False
        )
    finally:
        os.close(writer)
    return done.returncode, done.stderr


def full(arguments: Sequence[object], environment: Mapping[str, str]) -> tuple[int, bytes]:
    """As `unread`, where the disk is full that standard output is on."""
    command = [*SOSFS, *map(str, arguments)]
    with open("/dev/full", "wb") as disk:
        done = subprocess.run(
            command, stdout=disk, stderr=subprocess.PIPE, env=environment, cwd=ROOT, timeout=60, check=False
        )
    return done.returncode, done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["help", "options"], ["status"], ["mount", "--help"]])
def test_nothing_is_said_where_nobody_reads(arguments: Sequence[str], tmp_path: Path) -> None:
    home = {**os.environ, "HOME": str(tmp_path)}
    home.pop("PYTHONUNBUFFERED", None)  # with it argparse drops the error, and ends with 0
    assert unread(arguments, home) == (UNREAD, b"")


def test_so_it_is_where_a_command_looks_into_a_mount(drive: Drive) -> None:
    environment = drive.mount.environment
    (drive.here / "file").write_bytes(b"bytes")
    for command, path in (("status", drive.mount.path), ("du", drive.here), ("pending", drive.mount.path)):
        assert unread([command, path], environment) == (UNREAD, b""), command


@pytest.mark.parametrize("arguments", [["--version"], ["help", "options"], ["status"], ["mount", "--help"]])
def test_a_full_disk_is_told_in_one_line(arguments: Sequence[str], tmp_path: Path) -> None:
    home = {**os.environ, "HOME": str(tmp_path)}
    home.pop("PYTHONUNBUFFERED", None)
    assert full(arguments, home) == (1, b"sosfs: No space left on device\n")


def test_so_is_one_where_a_command_looks_into_a_mount(drive: Drive) -> None:
    assert full(["du", drive.here], drive.mount.environment) == (1, b"sosfs: No space left on device\n")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "<&- >&-"])
@pytest.mark.parametrize("arguments", [["--version"], ["help", "options"], ["mount", "--help"]])
def test_standard_streams_that_are_closed_break_nothing(arguments: Sequence[str], closed: str, tmp_path: Path) -> None:
    done = closing(closed, arguments, tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(("arguments", "code"), [(["du", "/nowhere"], 1), (["mount"], 2), ([], 2)])
def test_an_error_that_nobody_is_to_see_is_not_taken_for_an_answer(
    arguments: Sequence[str], code: int, tmp_path: Path
) -> None:
    done = closing("2>&-", arguments, tmp_path)
    assert (done.returncode, done.stdout) == (code, b"")


def closing(closed: str, arguments: Sequence[str], home: Path) -> subprocess.CompletedProcess[bytes]:
    """A command that is started with some of its standard streams closed, as the shell says it."""
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", *SOSFS, *arguments],
        capture_output=True,
        env={**os.environ, "HOME": str(home)},
        cwd=ROOT,
        timeout=60,
        check=False,
    )


def test_a_connection_that_has_the_number_of_what_is_closed_is_not_taken_for_it() -> None:
    program = """
import socket
from sosfs.cli.standard_output import until_unread
daemon, other = socket.socketpair()
assert daemon.fileno() == 1
other.close()
until_unread(lambda: daemon.send(b"question"))
"""
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-c", program],
        capture_output=True,
        cwd=ROOT,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, b"BrokenPipeError: [Errno 32] Broken pipe")
