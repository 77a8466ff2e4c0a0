"""Files larger than this machine, against a server that keeps nothing: bytes, requests and memory stay bounded."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.drive import eventually
from tests.support.forgetful import Forgetful
from tests.support.mounting import Access, Mount
from tests.support.watchdog import Watchdog

MIB, GIB = 1 << 20, 1 << 30
MOVED = 20 * MIB
PIECE = random.Random(6).randbytes(MIB)


@pytest.fixture
def server() -> Iterator[Forgetful]:
    """It would have room for anything."""
    with Forgetful() as server:
        yield server


@pytest.fixture
def mount(server: Forgetful, tmp_path: Path, watchdog: Watchdog) -> Iterator[Mount]:
    """A mount with little memory."""
    options = ("--memory", "32M", "--dirty-limit", "64M")
    with Mount(Access(server.endpoint, "key", "secret"), "bucket", tmp_path / "mount", watchdog, options) as mount:
        yield mount


def peak_memory(mount: Mount) -> int:
    """The most memory that the daemon has had, in bytes."""
    return 1024 * int(Path(f"/proc/{mount.pid}/status").read_text().split("VmHWM:")[1].split()[0])


@pytest.mark.promise(11)
def test_a_hundred_gigabytes_that_nobody_wrote_move_no_bytes(mount: Mount, server: Forgetful) -> None:
    before, began = peak_memory(mount), time.monotonic()
    with (mount.path / "vast").open("wb") as file:
        file.truncate(100 * GIB)
    assert server.objects["vast"].size == 100 * GIB
    assert server.objects["vast"].is_zero
    assert server.sent < MOVED
    assert server.copies < 100 + 128 + 20
    with (mount.path / "vast").open("rb", buffering=0) as file:
        for at in (0, 50 * GIB + 5, 100 * GIB - 4 * MIB):
            assert os.pread(file.fileno(), 4 * MIB, at) == bytes(min(4 * MIB, 100 * GIB - at))
    assert (mount.path / "vast").stat().st_blocks == 0
    assert server.peak <= 16
    assert peak_memory(mount) < before + 64 * MIB
    assert time.monotonic() - began < 90, "not hours"


@pytest.mark.promise(11)
@pytest.mark.timeout(200)
def test_the_end_of_a_file_of_200_gigabytes_goes_through_little_memory(mount: Mount, server: Forgetful) -> None:
    """Its parts have 128 MiB there: each is sent from the disk, and leaves it while the next is written."""
    before = peak_memory(mount)
    spool = mount.cache / "spool"
    with (mount.path / "vast").open("wb", buffering=0) as file:
        file.truncate(190 * GIB)
        for number in range(420):
            os.pwrite(file.fileno(), PIECE, 190 * GIB + number * MIB)
            if number % 60 == 59:
                assert "vast" not in server.objects
                assert sum(one.stat().st_blocks * 512 for one in spool.iterdir()) < 6 * 128 * MIB
    assert server.objects["vast"].size == 190 * GIB + 420 * MIB
    assert server.sent < 420 * MIB + 2 * 128 * MIB + MOVED
    assert server.peak <= 16
    assert peak_memory(mount) < before + 128 * MIB
    eventually(lambda: not server.uploads)


@pytest.mark.promise(11)
@pytest.mark.timeout(200)
def test_the_largest_file_fits_into_its_parts(mount: Mount, server: Forgetful) -> None:
    """4 TiB in at most 10,000 parts; one byte more is EFBIG, and changes nothing."""
    before, size = peak_memory(mount), 4096 * GIB
    with (mount.path / "vast").open("wb", buffering=0) as file:
        file.truncate(size)
        for at in (0, 200 * GIB):
            assert os.pwrite(file.fileno(), PIECE, at) == MIB
        with pytest.raises(OSError, match="File too large"):
            os.pwrite(file.fileno(), b"x", size)
        with pytest.raises(OSError, match="File too large"):
            os.ftruncate(file.fileno(), size + 1)
    stored = server.objects["vast"]
    assert (stored.size, stored.is_zero) == (size, False)
    assert int(stored.etag.rpartition("-")[2]) <= 10_000
    assert server.sent < 2 * 128 * MIB + MOVED
    assert server.peak <= 16
    assert peak_memory(mount) < before + 128 * MIB
