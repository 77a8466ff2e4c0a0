"""An open file and a version that another client stored meanwhile: what each handle reads then."""

from __future__ import annotations

import errno
import io
import os
import time

import pytest

from tests.conftest import Mounter
from tests.support.drive import eventually
from tests.support.foreign import Foreign

MOTO = pytest.mark.parametrize("server", ["moto"], indirect=True)
KIB, MIB = 1 << 10, 1 << 20
TTL = 1  # seconds


def rest_of(file: io.FileIO, piece: int = MIB) -> tuple[bytes, int]:
    """What a handle reads to its end, and the errno that ended it (0: the end of the file)."""
    seen = b""
    try:
        while data := file.read(piece):
            seen += data
    except OSError as error:
        return seen, error.errno or 0
    return seen, 0


@MOTO
@pytest.mark.parametrize("size", [3, 24])
def test_a_reader_is_not_cut_off_by_a_shorter_version(mounter: Mounter, foreign: Foreign, size: int) -> None:
    foreign.put("file", b"A" * size * MIB)
    drive = mounter("", "--ttl", str(TTL))
    path = drive.here / "file"
    assert len(path.read_bytes()) == size * MIB  # its blocks are in memory
    with path.open("rb", buffering=0) as file:
        seen = file.read(64 * KIB)
        foreign.put("file", b"B" * 2 * MIB)
        eventually(lambda: path.stat().st_size == 2 * MIB)
        more, ended = rest_of(file)
    seen += more
    assert set(seen) == set(b"A"), "mixed"
    assert ended == errno.ESTALE or len(seen) == size * MIB, f"cut off at {len(seen)}"


@MOTO
def test_who_opens_the_new_version_is_not_given_pages_of_the_old(mounter: Mounter, foreign: Foreign) -> None:
    size = MIB
    foreign.put("file", b"A" * size)
    drive = mounter("", "--ttl", str(TTL))
    path = drive.here / "file"
    with path.open("rb", buffering=0) as old:
        assert set(old.read(4 * KIB)) == set(b"A")
        foreign.put("file", b"B" * size)
        time.sleep(2 * TTL)
        with path.open("rb", buffering=0) as new:
            first, ended = rest_of(old)
            assert set(first) <= set(b"A"), f"the old handle is mixed, {ended}"
            second, ended = rest_of(new)
            assert ended == 0
            assert set(second) == set(b"B"), f"{second.count(b'A')} old bytes"


@MOTO
def test_what_was_written_here_is_not_shown_for_what_came_after(mounter: Mounter, foreign: Foreign) -> None:
    drive = mounter("", "--ttl", str(TTL))
    path = drive.here / "file"
    path.write_bytes(b"old old old")
    with path.open("rb") as reader:
        path.write_bytes(b"ours")
        assert path.read_bytes() == b"ours"
        foreign.put("file", b"theirs")
        time.sleep(2 * TTL)
        assert path.stat().st_size == 6
        assert path.read_bytes() == b"theirs"
        assert reader.read() != b"theirs"


@pytest.mark.parametrize("server", ["ceph"], indirect=True)
def test_a_chmod_does_not_lead_a_reader_into_another_version(mounter: Mounter, foreign: Foreign) -> None:
    size = 24 * MIB
    foreign.put("file", b"A" * size)
    drive = mounter("", "--ttl", str(TTL))
    path = drive.here / "file"
    with path.open("rb", buffering=0) as file:
        seen = file.read(64 * KIB)
        foreign.put("file", b"B" * size)
        time.sleep(2 * TTL)
        path.chmod(0o600)
        eventually(lambda: foreign.metadata("file").get("mode") == str(0o100600))
        more, ended = rest_of(file)
    assert len(set(seen + more)) == 1, f"mixed: {seen.count(b'A') + more.count(b'A')} + {more.count(b'B')}, {ended}"


@MOTO
def test_what_is_written_into_a_file_that_another_client_removed_is_not_lost_without_a_word(
    mounter: Mounter, foreign: Foreign
) -> None:
    foreign.put("file", b"before")
    drive = mounter("", "--ttl", str(TTL))
    drive.mount.allow_log("(?i)conflict|changed")
    path = drive.here / "file"
    outcome = 0
    file = os.open(path, os.O_RDWR)
    try:
        foreign.delete("file")
        time.sleep(2 * TTL)
        assert not path.exists()
        os.write(file, b"precious")
        os.fsync(file)
    except OSError as error:
        outcome = error.errno or 0
    try:
        os.close(file)
    except OSError as error:
        outcome = error.errno or 0
    kept = [foreign.get(key) for key in foreign.files()]
    assert outcome == errno.ESTALE or b"precious" in b"".join(kept), f"{outcome}: {kept}"
