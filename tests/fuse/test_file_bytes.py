"""A file's bytes on a real kernel mount: what any program may do to them, and what is then in the bucket."""

from __future__ import annotations

import errno
import os
import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.drive import Drive, digest, eventually, fails

KIB, MIB = 1 << 10, 1 << 20
PART = 8 * MIB  # the default part size, where a single PUT becomes a multipart upload


def test_written_bytes_are_the_objects_bytes(drive: Drive) -> None:
    path = drive.here / "file"
    path.write_bytes(b"hello\n")
    assert path.read_bytes() == b"hello\n"
    assert path.stat().st_size == 6
    assert drive.stored(path) == b"hello\n"


def test_empty_file(drive: Drive) -> None:
    path = drive.here / "empty"
    drive.shell(": > empty")
    assert path.read_bytes() == b""
    assert drive.stored(path) == b""
    assert path.stat().st_blocks == 0


def test_touch_makes_an_empty_file_and_keeps_a_full_one(drive: Drive) -> None:
    drive.shell("touch new; echo content > old; touch old")
    assert drive.stored(drive.here / "new") == b""
    assert drive.stored(drive.here / "old") == b"content\n"


@pytest.mark.parametrize("size", [1, 4095, 4096, 131_073, 5 * MIB - 1, 5 * MIB + 1])
def test_sizes_around_the_limits_of_pages_and_requests(drive: Drive, size: int) -> None:
    path, body = drive.here / "file", random.Random(size).randbytes(size)
    path.write_bytes(body)
    assert digest(path) == digest(body)
    assert digest(drive.stored(path)) == digest(body)


@pytest.mark.parametrize("size", [PART - 1, PART, PART + 1, 2 * PART, 2 * PART + 1, 40 * MIB + 7])
def test_sizes_around_the_limits_of_parts(drive: Drive, size: int) -> None:
    path, body = drive.here / "file", random.Random(size).randbytes(size)
    path.write_bytes(body)
    assert path.stat().st_size == size
    assert digest(drive.stored(path)) == digest(body)
    drive.mount.remount()  # nothing is in memory now
    assert path.stat().st_size == size
    assert digest(path) == digest(body)
    assert drive.foreign.uploads() == []


def test_append(drive: Drive) -> None:
    drive.shell("echo one > log; echo two >> log; echo three >> log")
    assert drive.stored(drive.here / "log") == b"one\ntwo\nthree\n"


def test_append_to_a_large_file(drive: Drive) -> None:
    path, body = drive.here / "large", random.Random(1).randbytes(2 * PART + 100)
    path.write_bytes(body)
    with path.open("ab") as file:
        file.write(b"tail")
    assert digest(drive.stored(path)) == digest(body + b"tail")


def test_truncate_down_and_up_reads_zeros(drive: Drive) -> None:
    path = drive.here / "file"
    path.write_bytes(b"x" * 10_000)
    os.truncate(path, 100)
    assert path.read_bytes() == b"x" * 100
    os.truncate(path, 5000)
    expected = b"x" * 100 + bytes(4900)
    assert path.read_bytes() == expected
    eventually(lambda: drive.stored(path) == expected)


def test_truncate_of_a_large_file_across_parts(drive: Drive) -> None:
    path, body = drive.here / "large", random.Random(2).randbytes(3 * PART)
    path.write_bytes(body)
    os.truncate(path, PART + 5)
    os.truncate(path, 2 * PART)
    expected = body[: PART + 5] + bytes(PART - 5)
    assert digest(path) == digest(expected)
    eventually(lambda: digest(drive.stored(path)) == digest(expected))


def test_truncate_by_an_open_handle(drive: Drive) -> None:
    path = drive.here / "file"
    with path.open("w+b", buffering=0) as file:
        file.write(b"0123456789")
        file.truncate(4)
        assert os.fstat(file.fileno()).st_size == 4
        file.write(b"X")  # at offset 10: a hole before it
        file.seek(0)
        assert file.read() == b"0123" + bytes(6) + b"X"
    assert drive.stored(path) == b"0123" + bytes(6) + b"X"


def test_truncate_at_open(drive: Drive) -> None:
    path = drive.here / "file"
    path.write_bytes(b"long content")
    path.write_bytes(b"short")
    assert path.read_bytes() == b"short"
    assert drive.stored(path) == b"short"


def test_truncate_to_nothing_at_open_and_close(drive: Drive) -> None:
    path = drive.here / "file"
    path.write_bytes(b"long content")
    path.open("wb").close()
    assert path.stat().st_size == 0
    assert drive.stored(path) == b""


def test_seek_past_the_end_leaves_a_hole_of_zeros(drive: Drive) -> None:
    path = drive.here / "sparse"
    with path.open("wb") as file:
        file.seek(3 * MIB)
        file.write(b"end")
    assert path.stat().st_size == 3 * MIB + 3
    assert drive.stored(path) == bytes(3 * MIB) + b"end"


def test_dd_at_random_offsets_without_truncating(drive: Drive) -> None:
    path, body = drive.here / "disk", bytearray(random.Random(3).randbytes(3 * MIB))
    path.write_bytes(body)
    dice = random.Random(4)
    for number in range(12):
        block, count = dice.randrange(0, 700), dice.randrange(1, 30)
        patch = dice.randbytes(count * 4096)
        outside = drive.mount.base / "patch"
        outside.write_bytes(patch)
        sync = ",fsync" * (number % 2)
        drive.shell(f"dd if={outside} of=disk bs=4k seek={block} conv=notrunc{sync} status=none")
        body[block * 4096 : block * 4096 + len(patch)] = patch
        assert digest(path) == digest(bytes(body))
    assert digest(drive.stored(path)) == digest(bytes(body))


@pytest.mark.parametrize("seed", range(4))
def test_random_reads_writes_and_truncates_agree_with_a_model(drive: Drive, seed: int) -> None:
    dice, model, path = random.Random(seed), bytearray(), drive.here / "file"
    limit = (200 * KIB, 20 * MIB)[seed % 2]
    file = path.open("w+b", buffering=0)
    for _ in range(150):
        at, length = dice.randrange(limit), dice.randrange(1, limit // 8)
        match dice.choices(["write", "read", "truncate", "fsync", "reopen"], [8, 8, 1, 1, 1])[0]:
            case "write":
                patch = dice.randbytes(length)
                os.pwrite(file.fileno(), patch, at)
                model.extend(bytes(max(0, at + length - len(model))))
                model[at : at + length] = patch
            case "read":
                assert os.pread(file.fileno(), length, at) == model[at : at + length]
            case "truncate":
                file.truncate(at)
                model = model[:at] + bytes(max(0, at - len(model)))
            case "fsync":
                os.fsync(file.fileno())
                assert digest(drive.stored(path)) == digest(bytes(model))
            case "reopen":
                file.close()
                file = path.open("r+b", buffering=0)
        assert os.fstat(file.fileno()).st_size == len(model)
    file.close()
    assert digest(path) == digest(bytes(model))
    assert digest(drive.stored(path)) == digest(bytes(model))


def test_change_in_the_middle_of_a_large_stored_file(drive: Drive) -> None:
    path, body = drive.here / "large", random.Random(5).randbytes(3 * PART + 11)
    drive.foreign.put(drive.key(path), body)
    drive.mount.remount()
    with path.open("r+b") as file:
        file.seek(PART + 1000)
        file.write(b"changed")
        file.seek(2 * PART - 10)
        assert file.read(20) == body[2 * PART - 10 : 2 * PART + 10]
    assert digest(drive.stored(path)) == digest(body[: PART + 1000] + b"changed" + body[PART + 1007 :])


def test_fsync_puts_the_bytes_in_the_bucket_before_close(drive: Drive) -> None:
    path = drive.here / "file"
    with path.open("wb", buffering=0) as file:
        file.write(b"one")
        os.fsync(file.fileno())
        assert drive.stored(path) == b"one"
        file.write(b"two")
        os.fdatasync(file.fileno())
        assert drive.stored(path) == b"onetwo"
        file.write(b"three")
    assert drive.stored(path) == b"onetwothree"


def test_parallel_writers_of_many_files(drive: Drive) -> None:
    bodies = {f"f{number}": random.Random(number).randbytes(1000 * number + 1) for number in range(64)}

    def write(name: str) -> None:
        (drive.here / name).write_bytes(bodies[name])

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(write, bodies))
    assert {path.name: path.read_bytes() for path in drive.here.iterdir()} == bodies
    assert {name: drive.stored(drive.here / name) for name in bodies} == bodies


def test_filesystem_figures(drive: Drive) -> None:
    figures = os.statvfs(drive.here)
    assert figures.f_namemax == 255
    assert figures.f_bavail * figures.f_frsize > 1 << 40  # no program shall believe it is full
    drive.run("df", ".")


def test_what_is_not_supported_says_so(drive: Drive) -> None:
    with fails(errno.EOPNOTSUPP):
        os.open(drive.here, os.O_TMPFILE | os.O_RDWR)
    drive.shell("! fallocate --length 1M file 2> told; grep -q 'not supported' told")


def test_a_removed_directory_that_is_open_is_empty(drive: Drive) -> None:
    for name in ("gone", "old", "new"):
        (drive.here / name).mkdir()
    gone, old = (os.open(drive.here / name, os.O_RDONLY | os.O_DIRECTORY) for name in ("gone", "old"))
    (drive.here / "gone").rmdir()
    (drive.here / "new").rename(drive.here / "old")  # over the one that is open
    for directory in (gone, old):
        os.fsync(directory)
        assert os.listdir(directory) == []
        os.close(os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=directory))
        os.close(directory)
