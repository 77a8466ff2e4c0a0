"""A cache directory on a disk smaller than what passes through it: files of any size arrive, and it never wedges."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import Cramped
from tests.support.disks import DISK, free
from tests.support.drive import digest, names, sync
from tests.support.foreign import Foreign

MIB = 1 << 20
SIZE = 150 * MIB
SMALL = 24 * MIB  # of another disk, where parts have 5 MiB
PIECE = random.Random(48).randbytes(MIB)

pytestmark = pytest.mark.parametrize("server", ["moto"], indirect=True)


def body_of(size: int, seed: int = 0) -> Iterator[bytes]:
    """Bytes of a file in pieces, none like another."""
    for number in range(size // MIB):
        yield (seed * 1000 + number).to_bytes(8, "big") + PIECE[8:]


def stream(path: Path, size: int, seed: int = 0) -> None:
    """Writes a file of `size` bytes from front to back."""
    with path.open("wb", buffering=0) as file:
        for piece in body_of(size, seed):
            file.write(piece)


def wanted(size: int, seed: int = 0) -> str:
    return digest(b"".join(body_of(size, seed)))


def side_by_side(*jobs: Callable[[], None]) -> None:
    """Runs jobs in threads; an error of one is raised."""
    errors: list[BaseException] = []

    def run(job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=run, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@pytest.mark.promise(11)
@pytest.mark.parametrize("durability", ["bucket", "journal"])
def test_files_larger_than_the_disk_arrive(cramped: Cramped, foreign: Foreign, durability: str) -> None:
    drive = cramped(DISK, "--durability", durability)
    top = drive.here
    stream(top / "large", SIZE)
    if durability == "bucket":
        assert digest(foreign.get("large")) == wanted(SIZE)
    assert digest(top / "large") == wanted(SIZE)
    side_by_side(*(lambda n=n: stream(top / f"one of {n}", 60 * MIB, n) for n in range(4)))
    sync(top)
    for number in range(4):
        assert digest(foreign.get(f"one of {number}")) == wanted(60 * MIB, number)
    for number in range(300):
        (top / f"small {number}").write_bytes(PIECE[: 200 << 10])
    drive.mount.stop()
    assert free(drive.mount.cache) > DISK - 16 * MIB
    assert sorted(foreign.keys("small")) == sorted(f"small {number}" for number in range(300))
    assert foreign.uploads() == []


def test_a_large_object_is_changed_on_a_small_disk(cramped: Cramped, foreign: Foreign) -> None:
    before = b"".join(body_of(60 * MIB))
    foreign.put("object", before)
    drive = cramped(SMALL)
    expected = bytearray(before)
    with (drive.here / "object").open("r+b", buffering=0) as file:
        for at in (30 * MIB + 5, 3, 59 * MIB):
            file.seek(at)
            file.write(PIECE)
            expected[at : at + MIB] = PIECE
        os.fsync(file.fileno())
        assert digest(foreign.get("object")) == digest(bytes(expected))
        for at in range(0, 60 * MIB, MIB):  # all of it, in place
            file.seek(at)
            file.write(PIECE[::-1])
    assert digest(foreign.get("object")) == digest(PIECE[::-1] * 60)
    draw = random.Random(3)
    expected = bytearray(PIECE[::-1] * 60)
    with (drive.here / "object").open("r+b", buffering=0) as file:
        for _ in range(80):  # here and there, in sum more than the disk holds
            at = draw.randrange(59 * MIB)
            piece = draw.randbytes(400 << 10)
            file.seek(at)
            file.write(piece)
            expected[at : at + len(piece)] = piece
    assert digest(foreign.get("object")) == digest(bytes(expected))
    drive.mount.stop()
    assert foreign.uploads() == []


def test_what_was_freed_can_be_read_written_cut_and_renamed(cramped: Cramped, foreign: Foreign) -> None:
    drive = cramped(SMALL)
    top = drive.here
    expected = bytearray(b"".join(body_of(40 * MIB)))
    with (top / "file").open("w+b", buffering=0) as file:
        for piece in body_of(40 * MIB):
            file.write(piece)
        assert not foreign.exists("file"), "not before it has to be"
        file.seek(10 * MIB - 3)
        assert file.read(MIB) == expected[10 * MIB - 3 : 11 * MIB - 3]
        file.seek(20 * MIB + 7)
        file.write(b"changed")
        expected[20 * MIB + 7 : 20 * MIB + 14] = b"changed"
        file.seek(0, os.SEEK_END)
        for piece in body_of(30 * MIB, 1):
            file.write(piece)
            expected += piece
        (top / "file").rename(top / "renamed")
        file.truncate(50 * MIB + 5)
        del expected[50 * MIB + 5 :]
        file.seek(30 * MIB)
        file.write(b"again")
        expected[30 * MIB : 30 * MIB + 5] = b"again"
    assert names(top) == ["renamed"]
    assert digest(top / "renamed") == digest(bytes(expected))
    assert digest(foreign.get("renamed")) == digest(bytes(expected))
    drive.mount.stop()
    assert foreign.uploads() == []


def test_tools_on_a_small_disk(cramped: Cramped, foreign: Foreign, tmp_path: Path) -> None:
    """cp, dd with fsync, tar, and a header that is written at the end."""
    drive = cramped(SMALL)
    source = tmp_path / "source"
    stream(source, 40 * MIB, 7)
    drive.run("cp", source, "copied")
    drive.run("dd", f"if={source}", "of=dumped", "bs=256k", "conv=fsync", "status=none")
    drive.run("tar", "-cf", "packed.tar", "-C", tmp_path, "source")
    with (drive.here / "headed").open("wb", buffering=0) as file:
        file.write(bytes(4096))
        for piece in body_of(40 * MIB, 2):
            file.write(piece)
        file.seek(0)
        file.write(b"h" * 4096)
        assert not foreign.exists("headed"), "the first part is kept for that"
    for name in ("copied", "dumped"):
        assert digest(foreign.get(name)) == digest(source)
    assert digest(foreign.get("headed")) == digest(b"h" * 4096 + b"".join(body_of(40 * MIB, 2)))
    assert drive.run("tar", "-df", "packed.tar", "-C", tmp_path) == ""
    drive.mount.stop()


def test_more_writers_than_parts_have_room(cramped: Cramped, foreign: Foreign) -> None:
    drive = cramped(16 * MIB)
    side_by_side(*(lambda n=n: stream(drive.here / f"{n}", 10 * MIB, n) for n in range(8)))
    for number in range(8):
        assert digest(foreign.get(f"{number}")) == wanted(10 * MIB, number)
    drive.mount.stop()
