"""Open handles on a real kernel mount: several on one file, mappings, locks, files whose name goes away under them."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.conftest import Mounter
from tests.support.drive import Drive, digest, eventually, fails, names

KIB, MIB = 1 << 10, 1 << 20
PART = 8 * MIB  # the default part size, where a single PUT becomes a multipart upload


def test_two_handles_append_to_one_file(drive: Drive) -> None:
    path = drive.here / "log"
    with path.open("ab", buffering=0) as first, path.open("ab", buffering=0) as second:
        for number in range(20):
            (first, second)[number % 2].write(b"%02d " % number)
    assert path.read_bytes() == b"".join(b"%02d " % number for number in range(20))
    assert drive.stored(path) == path.read_bytes()


def test_shell_redirections_share_one_offset(drive: Drive) -> None:
    drive.shell("( echo a; echo b; ( echo c ) ) > out; { echo d; echo e; } >> out; exec 5>>out; echo f >&5; echo g >&5")
    assert drive.stored(drive.here / "out") == b"a\nb\nc\nd\ne\nf\ng\n"


def test_duplicated_descriptor_closed_first_loses_nothing(drive: Drive) -> None:
    path = drive.here / "file"
    first = os.open(path, os.O_CREAT | os.O_WRONLY)
    second = os.dup(first)
    os.write(first, b"one")
    os.close(first)
    os.write(second, b"two")
    os.close(second)
    assert drive.stored(path) == b"onetwo"


def test_a_reader_sees_what_a_writer_has_not_closed(drive: Drive) -> None:
    path = drive.here / "file"
    with path.open("wb", buffering=0) as writer:
        writer.write(b"unsent")
        assert path.read_bytes() == b"unsent"
        assert path.stat().st_size == 6
        with path.open("rb", buffering=0) as reader:
            writer.write(b" more")
            assert reader.read() == b"unsent more"


def test_a_file_opened_after_a_close_has_the_new_bytes(drive: Drive) -> None:
    path = drive.here / "file"
    with path.open("wb") as file:
        file.write(b"old old old")
    with path.open("rb") as reader:
        assert reader.read() == b"old old old"
        path.write_bytes(b"new")
        assert path.read_bytes() == b"new"
        assert path.stat().st_size == 3


def test_read_only_and_write_only_handles(drive: Drive) -> None:
    path = drive.here / "file"
    path.write_bytes(b"content")
    with path.open("rb") as reader, fails(errno.EBADF):
        os.write(reader.fileno(), b"x")
    with path.open("r+b", buffering=0) as writer:
        only = os.open(path, os.O_WRONLY)
        with fails(errno.EBADF):
            os.read(only, 1)
        os.close(only)
        writer.write(b"C")
    assert drive.stored(path) == b"Content"


def test_mmap_reads_and_writes(drive: Drive) -> None:
    path, body = drive.here / "mapped", bytearray(random.Random(6).randbytes(MIB))
    path.write_bytes(body)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        assert memory[:] == body
        for at in (0, 4095, 500_000, MIB - 5):
            memory[at : at + 5] = b"MAPPD"
            body[at : at + 5] = b"MAPPD"
        memory.flush()
    assert digest(path) == digest(bytes(body))
    assert digest(drive.stored(path)) == digest(bytes(body))


def test_mmap_written_after_close_of_its_descriptor(drive: Drive) -> None:
    path = drive.here / "mapped"
    path.write_bytes(bytes(8192))
    with path.open("r+b") as file:
        memory = mmap.mmap(file.fileno(), 0)
    memory[5000:5004] = b"late"
    memory.flush()
    memory.close()
    assert path.read_bytes()[5000:5004] == b"late"
    eventually(lambda: drive.stored(path)[5000:5004] == b"late")


def test_private_mapping_runs_a_program(drive: Drive) -> None:
    program = drive.here / "true"
    program.write_bytes(Path("/bin/true").read_bytes())
    program.chmod(0o755)
    subprocess.run([program], check=True)


def test_exclusive_create(drive: Drive) -> None:
    path = drive.here / "lock"
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    with fails(errno.EEXIST):
        os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    path.unlink()
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))


def test_exclusive_create_has_one_winner(drive: Drive) -> None:
    def attempt(_: int) -> bool:
        try:
            os.close(os.open(drive.here / "lock", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, range(8))) == 1


def test_exclusive_create_of_what_another_client_made(drive: Drive) -> None:
    path = drive.here / "theirs.lock"
    drive.foreign.put(drive.key(path), b"theirs")
    with fails(errno.EEXIST, errno.ESTALE):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    assert drive.stored(path) == b"theirs"


def test_unlink_while_open(drive: Drive) -> None:
    path = drive.here / "file"
    path.write_bytes(b"still here")
    with path.open("r+b", buffering=0) as file:
        path.unlink()
        assert not path.exists()
        assert list(drive.here.iterdir()) == []
        assert file.read() == b"still here"
        file.write(b", and more")
        file.seek(0)
        assert file.read() == b"still here, and more"
        assert os.fstat(file.fileno()).st_size == 20
    assert not path.exists()
    eventually(lambda: not drive.foreign.exists(drive.key(path)))


def test_unlink_of_a_large_unread_file_while_open(drive: Drive) -> None:
    path, body = drive.here / "large", random.Random(7).randbytes(2 * PART)
    path.write_bytes(body)
    drive.mount.remount()
    with path.open("rb") as file:
        path.unlink()
        assert digest(file.read()) == digest(body)


def test_written_after_unlink_does_not_come_back(drive: Drive) -> None:
    path = drive.here / "temporary"
    with path.open("w+b") as file:
        path.unlink()
        file.write(b"scratch")
        file.flush()
        os.fsync(file.fileno())
        file.seek(0)
        assert file.read() == b"scratch"
    assert drive.foreign.files(drive.key(drive.here) + "/") == []


def test_name_made_anew_while_the_old_file_is_open(drive: Drive) -> None:
    path = drive.here / "file"
    path.write_bytes(b"old")
    with path.open("r+b", buffering=0) as old:
        path.unlink()
        path.write_bytes(b"new")
        old.write(b"OLD, longer")
        old.seek(0)
        assert old.read() == b"OLD, longer"
    assert path.read_bytes() == b"new"
    assert drive.stored(path) == b"new"


def test_rename_over_an_open_file_leaves_its_reader_the_old_bytes(drive: Drive) -> None:
    path, fresh = drive.here / "file", drive.here / "fresh"
    body = random.Random(8).randbytes(3 * MIB)
    path.write_bytes(body)
    with path.open("rb") as reader:
        assert reader.read(10) == body[:10]
        fresh.write_bytes(b"fresh")
        fresh.rename(path)
        assert path.read_bytes() == b"fresh"
        assert digest(body[:10] + reader.read()) == digest(body)
    assert drive.stored(path) == b"fresh"


def test_rename_of_an_open_file_takes_its_writer_along(drive: Drive) -> None:
    path, moved = drive.here / "file", drive.here / "moved"
    with path.open("wb", buffering=0) as file:
        file.write(b"one")
        path.rename(moved)
        file.write(b"two")
    assert moved.read_bytes() == b"onetwo"
    assert not path.exists()
    assert drive.stored(moved) == b"onetwo"
    eventually(lambda: not drive.foreign.exists(drive.key(path)))


def test_locks_hold_between_processes(drive: Drive) -> None:
    path = drive.here / "lock"
    code = "import fcntl, sys; fcntl.{0}(open(sys.argv[1], 'r+b'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    with path.open("w+b") as file:
        for call in ("flock", "lockf"):
            getattr(fcntl, call)(file, fcntl.LOCK_EX)
            other = subprocess.run([sys.executable, "-c", code.format(call), path], capture_output=True, check=False)
            assert b"BlockingIOError" in other.stderr
            getattr(fcntl, call)(file, fcntl.LOCK_UN)
            subprocess.run([sys.executable, "-c", code.format(call), path], check=True)


def test_a_file_that_is_not_stored_yet_stays_listed(mounter: Mounter) -> None:
    drive = mounter("", "--ttl", "0.1")
    (drive.here / "d").mkdir()
    with (drive.here / "d" / "new").open("wb", buffering=0) as file:
        file.write(b"bytes")
        time.sleep(0.3)
        assert names(drive.here / "d") == ["new"]
        assert drive.run("find", ".", "-type", "f").strip() == "./d/new"
    time.sleep(0.3)
    assert names(drive.here / "d") == ["new"]
