"""A file larger than the room for it: the writer is slowed, the bucket gets it, and the disk stays free."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.conftest import Mounter
from tests.support.drive import digest

MIB = 1 << 20
SIZE = 120 * MIB
LIMIT = 32 * MIB


def spooled(base: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in base.rglob("*.spool"))


@pytest.mark.promise(11)
@pytest.mark.parametrize("durability", ["bucket", "journal"])
def test_a_large_file_passes_through_little_room(mounter: Mounter, durability: str) -> None:
    drive = mounter("", "--dirty-limit", "32M", "--durability", durability)
    body = random.Random(21).randbytes(SIZE)
    most = 0
    with (drive.here / "large").open("wb", buffering=0) as file:
        for at in range(0, SIZE, MIB):
            file.write(body[at : at + MIB])
            most = max(most, spooled(drive.mount.base))
        file.seek(5 * MIB)
        file.write(b"changed")
    expected = body[: 5 * MIB] + b"changed" + body[5 * MIB + 7 :]
    assert most <= LIMIT + 2 * MIB
    assert digest((drive.here / "large").read_bytes()) == digest(expected)
    drive.mount.remount()
    assert digest(drive.foreign.get("large")) == digest(expected)
