"""Bounded memory: a file far larger than every cache passes through the daemon in both directions."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest

from tests.conftest import Mounter
from tests.foreign import Foreign

MIB = 1 << 20
SIZE = 1024 * MIB
LIMIT = 300 * MIB


def block(number: int) -> bytes:
    """The file's MiB of this number; each differs."""
    return PATTERN[number % 251 :] + PATTERN[: number % 251] + number.to_bytes(8, "big")


PATTERN = random.Random(15).randbytes(MIB - 8)


def write(path: Path) -> str:
    """Writes the whole file in order and returns its digest."""
    digest = hashlib.md5()
    with path.open("wb", buffering=0) as file:
        for number in range(SIZE // MIB):
            data = block(number)
            assert file.write(data) == MIB
            digest.update(data)
    return digest.hexdigest()


def read(path: Path) -> str:
    """Reads the whole file in order and returns its digest."""
    with path.open("rb", buffering=0) as file:
        return hashlib.file_digest(file, "md5").hexdigest()


@pytest.mark.promise(11)
@pytest.mark.timeout(200)
@pytest.mark.parametrize("server", ["ceph"], indirect=True)
def test_a_gibibyte_written_and_read_back_stays_under_300_mib(foreign: Foreign, mounter: Mounter) -> None:
    drive = mounter()
    written = write(drive.here / "large")
    assert drive.mount.peak_memory() < LIMIT
    assert foreign.head("large")["ContentLength"] == SIZE
    assert read(drive.here / "large") == written
    assert drive.mount.peak_memory() < LIMIT
    drive.mount.remount()
    assert read(drive.here / "large") == written
    assert drive.mount.peak_memory() < LIMIT
    (drive.here / "large").unlink()
