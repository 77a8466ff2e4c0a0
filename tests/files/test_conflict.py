"""Two writers: who is second is told so, and nobody's bytes are gone."""

from __future__ import annotations

import errno
import os
import random
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import Mounter
from tests.support.drive import Drive, digest, fails, names
from tests.support.foreign import Foreign
from tests.support.waiting import until

MIB = 1 << 20
KEPT = re.compile(rf"file\.conflict-{re.escape(socket.gethostname())}-\d{{8}}T\d{{6}}Z-\d{{9}}")

# Waits for the moment, tries to create the file, writes its own name into it; prints who won and when it knew.
RACER = """
import os, sys, time
path, name, moment = sys.argv[1], sys.argv[2], float(sys.argv[3])
time.sleep(max(0, moment - time.time()))
try:
    file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
except OSError as error:
    sys.exit(print("open", error.errno))
try:
    os.write(file, name.encode())
    os.close(file)
except OSError as error:
    sys.exit(print("close", error.errno))
print("won")
"""


@pytest.fixture
def pair(mounter: Mounter) -> tuple[Drive, Drive]:
    """Two mounts of one bucket, that tell of conflicts in their logs."""
    first, second = mounter(), mounter()
    for drive in (first, second):
        drive.mount.allow_log("changed by another client|not in the bucket|are lost with")
    return first, second


def the_kept(foreign: Foreign) -> str:
    """The one key under which the loser's bytes are."""
    (kept,) = (key for key in foreign.files() if key != "file")
    assert KEPT.fullmatch(kept), kept
    return kept


def beaten(pair: tuple[Drive, Drive], foreign: Foreign, mode: str, body: bytes) -> None:
    """The first mount's open file, with `body` written, is closed after the second mount has stored its own."""
    first, second = pair
    file = (first.here / "file").open(mode, buffering=0)
    file.write(body)
    (second.here / "file").write_bytes(b"by second")
    with fails(errno.ESTALE):
        file.close()
    assert foreign.get("file") == b"by second"
    assert foreign.get(the_kept(foreign)) == body


@pytest.mark.promise(4)
def test_the_later_close_loses_and_its_bytes_are_kept(pair: tuple[Drive, Drive], foreign: Foreign) -> None:
    foreign.put("file", b"as it was")
    first, _ = pair
    beaten(pair, foreign, "r+b", b"by first!")
    assert (first.here / "file").read_bytes() == b"by second", "the loser sees the winner"
    assert names(first.here) == ["file", the_kept(foreign)]
    (first.here / "file").write_bytes(b"once more")  # and may write again, upon what it has seen
    assert foreign.get("file") == b"once more"


def test_of_two_who_create_the_later_close_loses(pair: tuple[Drive, Drive], foreign: Foreign) -> None:
    beaten(pair, foreign, "wb", b"by first")


def test_a_file_that_another_client_removed_is_kept(pair: tuple[Drive, Drive], foreign: Foreign) -> None:
    foreign.put("file", b"as it was")
    first, _ = pair
    file = (first.here / "file").open("r+b", buffering=0)
    file.write(b"by first!")
    foreign.delete("file")
    with fails(errno.ESTALE):
        file.close()
    assert not foreign.exists("file")
    assert foreign.get(the_kept(foreign)) == b"by first!"
    assert names(first.here) == [the_kept(foreign)]


def test_what_was_written_into_a_large_file_is_kept_when_its_base_is_gone(
    pair: tuple[Drive, Drive], foreign: Foreign
) -> None:
    """The bytes nobody wrote or read here went with the version that held them; what was written is not lost."""
    foreign.put("file", random.Random(1).randbytes(20 * MIB))
    winner = random.Random(2).randbytes(20 * MIB)
    first, _ = pair
    with (first.here / "file").open("r+b", buffering=0) as file:
        file.seek(5 * MIB)
        file.write(b"by first" * 1000)
        foreign.put("file", winner)
        with fails(errno.ESTALE):
            file.close()
    assert digest(foreign.get("file")) == digest(winner)
    kept = foreign.get(the_kept(foreign))
    assert len(kept) == 20 * MIB
    assert kept[5 * MIB : 5 * MIB + 8000] == b"by first" * 1000
    assert digest(first.here / "file") == digest(winner)


def race(pair: tuple[Drive, Drive], name: str) -> dict[str, str]:
    """Eight processes on two mounts create one name at one moment; what became of each."""
    moment = str(time.time() + 1.0)
    racers = {
        f"racer {number}": subprocess.Popen(
            [sys.executable, "-S", "-c", RACER, pair[number % 2].here / name, f"racer {number}", moment],
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(8)
    }
    return {racer: process.communicate(timeout=60)[0].strip() for racer, process in racers.items()}


@pytest.mark.promise(4)
@pytest.mark.parametrize("attempt", range(3))
def test_of_eight_who_take_a_lock_one_has_it(pair: tuple[Drive, Drive], foreign: Foreign, attempt: int) -> None:
    """A name that looks like a lock is decided when it is opened: all others know before they write."""
    name = f"index{attempt}.lock"
    results = race(pair, name)
    (winner,) = (racer for racer, result in results.items() if result == "won")
    assert set(results.values()) == {"won", f"open {errno.EEXIST}"}, results
    assert foreign.get(name) == winner.encode()
    assert foreign.files() == [name]


@pytest.mark.promise(4)
@pytest.mark.parametrize("attempt", range(3))
def test_of_eight_who_create_one_keeps_the_name(pair: tuple[Drive, Drive], foreign: Foreign, attempt: int) -> None:
    """Any other name is decided when it is closed; within a mount when it is opened."""
    name = f"file{attempt}"
    results = race(pair, name)
    (winner,) = (racer for racer, result in results.items() if result == "won")
    others = {result for result in results.values() if result != "won"}
    assert others <= {f"open {errno.EEXIST}", f"close {errno.ESTALE}"}, results
    assert foreign.get(name) == winner.encode()
    lost = [racer for racer, result in results.items() if result.startswith("close")]
    kept = [key for key in foreign.files() if key != name]
    assert sorted(foreign.get(key).decode() for key in kept) == sorted(lost)


def test_the_loser_in_journal_mode_finds_its_bytes_beside(mounter: Mounter, foreign: Foreign, tmp_path: Path) -> None:
    drive = mounter("", "--durability", "journal")
    drive.mount.allow_log("changed by another client|not in the bucket")
    foreign.put("file", b"as it was")
    (drive.here / "file").write_bytes(b"by the mount")
    foreign.put("file", b"by another")
    drive.mount.stop()
    assert foreign.get("file") == b"by another"
    assert foreign.get(the_kept(foreign)) == b"by the mount"


@pytest.mark.promise(4)
def test_who_has_read_a_file_does_not_write_over_what_came_since(mounter: Mounter, foreign: Foreign) -> None:
    """Also where a listing has shown the new version meanwhile, so that nothing of the old one is known any more."""
    drive = mounter("", "--ttl", "1")
    foreign.put("file", b"counter 1")
    with (drive.here / "file").open("r+b", buffering=0) as file:
        assert file.read() == b"counter 1"
        foreign.put("file", b"counter 2, of another host")
        until(lambda: (drive.here / "file").stat().st_size == 26, "the new size")
        with fails(errno.ESTALE):
            file.write(b"and more")
        with fails(errno.ESTALE):
            file.truncate(3)
        with fails(errno.ESTALE):
            os.setxattr(file.fileno(), "user.author", b"me")
    assert foreign.get("file") == b"counter 2, of another host"
    with (drive.here / "file").open("r+b", buffering=0) as file:
        assert file.read(9) == b"counter 2"
        file.write(b"!")
    assert foreign.get("file") == b"counter 2! of another host"
