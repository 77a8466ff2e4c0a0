"""A file longer than `--dirty-limit`: nobody sees half of it, little stays here, a crash keeps what was promised."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import trio.testing

from sosfs.files import part_ranges
from sosfs.files.spool import SpoolArea
from tests.conftest import Mounter
from tests.support.composed import Composed, composed
from tests.support.drive import Drive, digest, eventually, names
from tests.support.fake_store import FakeStore
from tests.support.foreign import Foreign
from tests.support.held import bodies, closed, stored

MIB = 1 << 20
LIMIT = 24 * MIB
SIZE = 100 * MIB
OPTIONS = ("--dirty-limit", "24M", "--part-size", "5M")
PIECE = random.Random(41).randbytes(MIB)
OLD = b"old" * 1000

on_moto = pytest.mark.parametrize("server", ["moto"], indirect=True)
in_both = pytest.mark.parametrize("durability", ["bucket", "journal"])


def pieces(size: int, seed: int = 0) -> Iterator[bytes]:
    for number in range(size // MIB):
        yield (seed * 1000 + number).to_bytes(8, "big") + PIECE[8:]


def body(size: int, seed: int = 0) -> bytes:
    return b"".join(pieces(size, seed))


def spooled(drive: Drive) -> int:
    """Bytes that the spool takes on the disk."""
    found = 0
    for path in (drive.mount.cache / "spool").iterdir():
        with suppress(FileNotFoundError):
            found += path.stat().st_blocks * 512
    return found


def write(drive: Drive, file: int, check: Callable[[], None], *, begin: int = 0, size: int = SIZE) -> None:
    """Writes `size` bytes in one go, and looks now and then."""
    for number, piece in enumerate(pieces(size)):
        if number * MIB >= begin:
            assert os.pwrite(file, piece, number * MIB) == MIB
        if number % 8 == 7:
            check()
            assert spooled(drive) <= LIMIT + 2 * MIB


@on_moto
@in_both
@pytest.mark.promise(11)
@pytest.mark.parametrize("is_new", [True, False])
def test_it_appears_whole_at_close(mounter: Mounter, foreign: Foreign, durability: str, is_new: bool) -> None:
    if not is_new:
        foreign.put("file", OLD)
    drive = mounter("", *OPTIONS, "--durability", durability)

    def check() -> None:
        assert not foreign.exists("file") if is_new else foreign.get("file") == OLD

    with (drive.here / "file").open("wb", buffering=0) as file:
        write(drive, file.fileno(), check)
        check()
    eventually(lambda: foreign.exists("file") and foreign.head("file")["ContentLength"] == SIZE)
    assert digest(foreign.get("file")) == digest(body(SIZE))
    assert digest(drive.here / "file") == digest(body(SIZE))


@on_moto
def test_tools_show_no_half_of_it(mounter: Mounter, foreign: Foreign, tmp_path: Path) -> None:
    """In place, with holes, preallocated, in small odd pieces: what is seen in the bucket is old or new."""
    source = tmp_path / "source"
    with source.open("wb") as file:
        for number, piece in enumerate(pieces(30 * MIB)):
            file.seek(2 * number * MIB)
            file.write(piece)
    wanted = digest(source)
    foreign.put("inplace", bytes(60 * MIB))
    drive = mounter("", "--dirty-limit", "10M", "--part-size", "5M")
    seen: set[int] = set()
    commands = {
        "sparse": f"cp --sparse=always {source} sparse",
        "dumped": f"dd if={source} of=dumped bs=99991 status=none",
        "inplace": f"dd if={source} of=inplace bs=1M conv=notrunc status=none",
        "allocated": f"truncate -s 70M allocated && dd if={source} of=allocated bs=1M conv=notrunc status=none",
        "synced": f"rsync --inplace --whole-file {source} synced",
    }
    for name, command in commands.items():
        seen.clear()
        watched = _Watch(foreign, name, seen)
        with watched:
            drive.shell(command)
        stored = foreign.get(name)
        assert digest(stored[: 59 * MIB]) == wanted, name
        assert seen <= {-1, len(stored), 70 * MIB}, (name, seen)


class _Watch:
    """Looks all the time how long an object is; -1 for none."""

    def __init__(self, foreign: Foreign, key: str, seen: set[int]) -> None:
        self._end = threading.Event()
        self._foreign, self._key, self._seen = foreign, key, seen
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._end.wait(0.02):
            there = self._foreign.exists(self._key)
            self._seen.add(self._foreign.head(self._key)["ContentLength"] if there else -1)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()


@on_moto
@in_both
@pytest.mark.promise(3)
@pytest.mark.parametrize("is_new", [True, False])
def test_a_crash_in_the_middle_leaves_what_was_there(
    mounter: Mounter, foreign: Foreign, durability: str, is_new: bool
) -> None:
    if not is_new:
        foreign.put("file", OLD)
    drive = mounter("", *OPTIONS, "--durability", durability)
    descriptor = os.open(drive.here / "file", os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    try:
        write(drive, descriptor, lambda: None, size=40 * MIB)
        drive.mount.kill()
    finally:
        with suppress(OSError):
            os.close(descriptor)
    drive.mount.start()
    assert names(drive.here) == ([] if is_new else ["file"])
    drive.mount.stop()
    assert foreign.keys() == ([] if is_new else ["file"])
    assert is_new or foreign.get("file") == OLD
    assert foreign.uploads() == []


@on_moto
@in_both
@pytest.mark.promise(3)
def test_what_was_synced_survives_a_crash(mounter: Mounter, foreign: Foreign, durability: str) -> None:
    """Also where parts of it have left this disk by then; what comes after the fsync may be there or not."""
    drive = mounter("", *OPTIONS, "--durability", durability)
    descriptor = os.open(drive.here / "file", os.O_CREAT | os.O_WRONLY)
    try:
        write(drive, descriptor, lambda: None, size=40 * MIB)
        os.fsync(descriptor)
        write(drive, descriptor, lambda: None, begin=40 * MIB, size=60 * MIB)
        if durability == "bucket":
            eventually(lambda: foreign.parts("file") != [])  # moto's uploads began in 2010: unknown, they are nobody's
        drive.mount.kill()
    finally:
        with suppress(OSError):
            os.close(descriptor)
    drive.mount.start()
    found = (drive.here / "file").read_bytes()
    assert len(found) >= 40 * MIB
    assert found == body(SIZE)[: len(found)]
    drive.mount.stop()
    assert foreign.get("file") == found
    assert foreign.uploads() == []


# Without a kernel

PART = 4096


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Composed]:
    """A mount that keeps three small parts of a file, on a disk with room; parts double after each four."""
    monkeypatch.setattr("sosfs.files.spool.SPILL", 1000)
    monkeypatch.setattr("sosfs.files.spool.INLINE", 500)
    monkeypatch.setattr("sosfs.files.write_behind.SPILL", 1000)
    monkeypatch.setattr("sosfs.files.write_behind.RELIEF", PART)
    monkeypatch.setattr("tests.support.fake_store.PART_MIN", 1)
    monkeypatch.setattr(part_ranges, "DOUBLING", tuple((4, 1 << step) for step in range(8)))
    monkeypatch.setattr(SpoolArea, "is_short", property(lambda self: False))
    with composed(FakeStore(), tmp_path, part_size=PART, dirty_limit=3 * PART) as mount:
        yield mount


def test_parts_that_have_grown_past_the_limit_fit(narrow: Composed) -> None:
    """However low the limit is: parts of a long file are larger than those at its beginning."""
    written = random.Random(3).randbytes(150 * PART)
    store = narrow.store

    async def main() -> None:
        parent, name = await narrow._parent("file")
        handle = await narrow._opened(parent, name, os.O_CREAT | os.O_RDWR)
        for start in range(0, len(written), PART // 2):
            await narrow.parts.file_io.write(handle, start, written[start : start + PART // 2])
            await trio.testing.wait_all_tasks_blocked()
            assert bodies(store) == {}, start
        await closed(narrow, handle)

    narrow.loop.run(main)
    assert stored(store) == written


def test_parts_with_holes_go_up_too(narrow: Composed) -> None:
    store = narrow.store
    wanted = bytearray(60 * PART)

    async def main() -> None:
        parent, name = await narrow._parent("file")
        handle = await narrow._opened(parent, name, os.O_CREAT | os.O_RDWR)
        narrow.nursery.start_soon(partial(_sparse, narrow, handle, wanted))
        for _ in range(200):
            narrow.loop._clock.jump(0.1)
            await trio.testing.wait_all_tasks_blocked()
            assert bodies(store) == {}
            draft = handle.open_file.draft
            assert draft is not None and draft.local.total <= 3 * 8 * PART
        assert wanted[-PART:-4] == b"end!" * (PART // 4 - 1)
        await closed(narrow, handle)

    narrow.loop.run(main)
    assert stored(store) == bytes(wanted)


async def _sparse(mount: Composed, handle: object, wanted: bytearray) -> None:
    """Writes three quarters of each 1,000 bytes; `wanted` is what the file is then."""
    dice = random.Random(4)
    for at in range(0, len(wanted) - PART, 1000):
        data = dice.randbytes(750)
        await mount.parts.file_io.write(handle, at, data)  # type: ignore[arg-type]
        wanted[at : at + 750] = data
    wanted[-PART:] = b"end!" * (PART // 4)
    await mount.parts.file_io.write(handle, len(wanted) - PART, bytes(wanted[-PART:]))  # type: ignore[arg-type]
