"""A spool by itself: what a full disk, a removed file and several holders make of it, and what is told of its bytes."""

from __future__ import annotations

import errno
import os
import random
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

import sosfs.files.spool
from sosfs.concurrency.budgets import Allowance
from sosfs.concurrency.threads import Threads
from sosfs.files.spool import FLOOR, INLINE, JOURNAL, MANY, SPILL, SUMMED, TIGHT, DamagedSpool, Spool, SpoolArea, label
from tests.support.disks import having
from tests.support.drive import fails

PAGE = 4096
GIB = 1 << 30


@pytest.fixture
def area(tmp_path: Path) -> SpoolArea:
    """One whose spools are all on disk."""
    return SpoolArea(tmp_path / "spool", Allowance(0))


async def made(area: SpoolArea, body: bytes = b"bytes") -> Spool:
    spool = area.new()
    await spool.write(0, body)
    return spool


# Room


@pytest.mark.parametrize(
    ("size", "free", "is_short"),
    [(100 * GIB, FLOOR, False), (100 * GIB, FLOOR - 1, True), (GIB, GIB // 4, False), (GIB, GIB // 4 - 1, True)],
)
def test_room_is_short_with_less_than_is_left_to_others(
    area: SpoolArea, monkeypatch: pytest.MonkeyPatch, size: int, free: int, is_short: bool
) -> None:
    monkeypatch.setattr(os, "statvfs", having(free, size))
    assert area.is_short is is_short


@pytest.mark.parametrize(("size", "journal", "part"), [(100 * GIB, JOURNAL, TIGHT), (8 << 20, 1 << 19, 4 << 20)])
def test_room_is_tight_with_less_than_the_journal_and_a_part_need(
    area: SpoolArea, monkeypatch: pytest.MonkeyPatch, size: int, journal: int, part: int
) -> None:
    for free, alone, is_tight in (
        (100 + journal + part, False, False),
        (99 + journal + part, False, True),
        (100 + journal, True, False),
        (99 + journal, True, True),
    ):
        monkeypatch.setattr(os, "statvfs", having(free, size))
        assert area.is_tight(100, alone=alone) is is_tight


@pytest.mark.parametrize("gives", [True, False])
def test_what_need_not_be_on_the_disk_gives_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gives: bool) -> None:
    wanted: list[int] = []

    def give_way(size: int) -> int:
        wanted.append(size)
        monkeypatch.setattr(os, "statvfs", having(FLOOR, 100 * GIB))
        return size if gives else 0

    area = SpoolArea(tmp_path, Allowance(0), give_way=give_way)
    monkeypatch.setattr(os, "statvfs", having(FLOOR, 100 * GIB))
    assert not area.is_short
    assert not area.is_tight(100)
    assert wanted == []
    monkeypatch.setattr(os, "statvfs", having(FLOOR - 10, 100 * GIB))
    assert area.is_short is not gives
    monkeypatch.setattr(os, "statvfs", having(10, 100 * GIB))
    assert area.is_tight(100) is not gives
    assert wanted == [10, 90 + JOURNAL + TIGHT]


def test_on_a_tight_disk_no_file_is_begun_and_memory_takes_what_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = Allowance(2 * SPILL)
    area = SpoolArea(tmp_path, memory)
    monkeypatch.setattr(os, "statvfs", having(JOURNAL, 100 * GIB))

    async def main() -> None:
        spool = await made(area, b"1" * SPILL)
        await spool.write(SPILL, b"2" * SPILL)
        with fails(errno.ENOSPC):
            await spool.write(2 * SPILL, b"3")
        assert list(tmp_path.iterdir()) == []
        assert await spool.read(0, 3 * SPILL) == b"1" * SPILL + b"2" * SPILL + bytes(SPILL)
        spool.truncate(SPILL + 10)
        assert memory.used == SPILL + 10
        spool.close()
        assert memory.used == 0

    trio.run(main)


@pytest.mark.parametrize("lacking", [0, 1])
def test_a_file_is_begun_where_there_is_room_for_all_that_is_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacking: int
) -> None:
    async def main() -> None:
        spool = await made(SpoolArea(tmp_path, Allowance(2 * SPILL)), b"1" * SPILL)
        monkeypatch.setattr(os, "statvfs", having(JOURNAL + TIGHT + SPILL + 1 - lacking, 100 * GIB))
        await spool.write(SPILL, b"2")
        assert spool.on_disk is not bool(lacking)
        spool.close()

    trio.run(main)


def test_an_error_that_is_no_lack_of_room_is_told_though_there_is_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(file: int, offset: int, data: bytes | memoryview) -> None:
        raise OSError(errno.EIO, "broken")

    async def main() -> None:
        spool = await made(SpoolArea(tmp_path, Allowance(8 * SPILL)))
        before = len(os.listdir("/proc/self/fd"))
        with monkeypatch.context() as patch, fails(errno.EIO):
            patch.setattr(sosfs.files.spool, "_write_all", broken)
            await spool.write(5, b"n" * SPILL)
        assert list(tmp_path.iterdir()) == []
        assert len(os.listdir("/proc/self/fd")) == before
        assert spool.body == b"bytes"
        spool.close()

    trio.run(main)


def test_a_directory_that_was_removed_is_made_again(area: SpoolArea) -> None:
    area.directory.rmdir()

    async def main() -> None:
        spool = await made(area)
        assert spool.path.read_bytes() == b"bytes"
        assert (spool.path.stat().st_mode & 0o777, area.directory.stat().st_mode & 0o777) == (0o600, 0o700)
        spool.close()

    trio.run(main)


def test_a_disk_that_takes_less_than_it_is_given_is_given_the_rest(
    area: SpoolArea, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, read = os.pwrite, os.pread
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: write(file, data[:700], at))
    monkeypatch.setattr(os, "pread", lambda file, size, at: read(file, min(size, 300), at))
    body = os.urandom(100_000)

    async def main() -> None:
        spool = await made(area, body)
        assert await spool.read(10, 99_000) == body[10:99_000]
        assert await spool.read(10, 200_000) == body[10:]
        monkeypatch.setattr(os, "pwrite", lambda file, data, at: 0)
        with fails(errno.ENOSPC):
            await spool.write(0, b"more")
        spool.close()

    trio.run(main)


def test_what_is_freed_in_memory_from_below_reads_as_zeros_wherever_the_rest_goes(tmp_path: Path) -> None:
    """Whatever is written, cut and freed then, and where the bytes go to the disk in the end."""
    dice, memory = random.Random(1), Allowance(4 * SPILL)
    area = SpoolArea(tmp_path, memory)

    async def main() -> None:
        for _ in range(40):
            spool, model = area.new(), bytearray()
            for _ in range(30):
                start, size = dice.randrange(3000), dice.randrange(1, 2000)
                what = dice.choice(("write", "write", "free", "free", "truncate"))
                if what == "write":
                    model.extend(bytes(max(0, start - len(model))))
                    model[start : start + size] = body = dice.randbytes(size)
                    await spool.write(start, body)
                elif what == "truncate":
                    spool.truncate(start)
                    del model[start:]
                elif spool.free(start := dice.choice((0, start)), start + size):
                    model[start : start + size] = bytes(min(start + size, len(model)) - start)
                assert await spool.read(0, 6000) == bytes(model).ljust(6000, b"\0"), what
                assert await spool.read(start, start + size) == bytes(model[start : start + size]).ljust(size, b"\0")
                assert memory.used <= len(model)
            assert not spool.on_disk
            if spool._origin:
                with fails(errno.ENOSPC):
                    assert spool.body, "a record of it would be of other bytes"
            else:
                assert spool.body == bytes(model)
            if spool.length:
                with spool.part(0, 6000, ((len(model), 6000),)) as part:
                    assert bytes(part or b"") == bytes(model).ljust(6000, b"\0")
            await spool.write(len(model), bytes(SPILL + 1))
            assert spool.on_disk
            assert memory.used == 0
            assert spool.path.read_bytes() == bytes(model) + bytes(SPILL + 1)
            spool.close()

    trio.run(main)


# Who holds it


def test_a_file_is_open_as_long_as_somebody_holds_it(area: SpoolArea) -> None:
    async def main() -> None:
        spool = await made(area)
        number = spool._file
        with spool.held():
            with spool.held():
                spool.close()
            assert not spool.path.exists()
            assert os.pread(number, 5, 0) == b"bytes"
        with fails(errno.EBADF):
            os.fstat(number)

    trio.run(main)


def test_who_wants_a_spool_at_rest_waits_for_all_that_hold_it(area: SpoolArea) -> None:
    async def main() -> None:
        spool, rested = await made(area), trio.Event()

        async def rest() -> None:
            await spool.rest()
            assert not spool.is_busy
            rested.set()

        async with trio.open_nursery() as nursery:
            with spool.held():
                with spool.held():
                    nursery.start_soon(rest)
                    await trio.testing.wait_all_tasks_blocked()
                await trio.testing.wait_all_tasks_blocked()
                assert not rested.is_set()
        assert rested.is_set()
        await spool.rest()
        spool.close()

    trio.run(main)


def test_who_comes_when_the_last_one_goes_is_waited_for_too(area: SpoolArea) -> None:
    async def main() -> None:
        spool, rested = await made(area), trio.Event()

        async def rest() -> None:
            await spool.rest()
            rested.set()

        async with trio.open_nursery() as nursery:
            with spool.held():
                nursery.start_soon(rest)
                await trio.testing.wait_all_tasks_blocked()
            with spool.held():
                await trio.testing.wait_all_tasks_blocked()
                assert not rested.is_set()
        spool.close()

    trio.run(main)


def test_a_thread_has_the_file_to_its_end(area: SpoolArea, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the spool is closed meanwhile: the number would be another file's."""
    run, may_go = Threads.run, trio.Event()
    body = os.urandom(2 * INLINE)

    async def late(threads: Threads, work: Callable[..., Any], *arguments: Any) -> Any:
        await may_go.wait()
        return await run(threads, work, *arguments)

    async def main() -> None:
        found: list[bytes] = []
        spool = await made(area)
        await spool.write(0, body)

        async def read() -> None:
            found.append(await spool.read(0, len(body)))

        monkeypatch.setattr(Threads, "run", late)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            spool.close()
            may_go.set()
        assert found == [body]

    trio.run(main)


def test_a_spool_that_is_released_stays_where_it_is(area: SpoolArea) -> None:
    async def main() -> None:
        spool = await made(area)
        number = spool._file
        spool.release()
        with fails(errno.EBADF):
            os.fstat(number)
        assert spool.path.read_bytes() == b"bytes"

    trio.run(main)


# What is told of its bytes


def test_each_mib_has_a_checksum_whatever_the_file_has_there(area: SpoolArea) -> None:
    """Holes are not read: their checksum is known."""

    async def main() -> None:
        spool = await made(area, b"1" * 1000)
        await spool.write(3 * SUMMED + 7, b"2" * SUMMED)
        expected = (b"1" * 1000).ljust(3 * SUMMED + 7, b"\0") + b"2" * SUMMED
        size = len(expected) + SUMMED + 100  # beyond its end, too
        pieces = [expected.ljust(size, b"\0")[at : at + SUMMED] for at in range(0, size, SUMMED)]
        assert await spool.sums(size) == tuple(map(zlib.crc32, pieces))
        assert await spool.sums(1000) == (zlib.crc32(b"1" * 1000),)
        assert await spool.sums(0) == ()
        spool.close()

    trio.run(main)


def test_checksums_are_those_of_a_disk_that_tells_of_no_holes(area: SpoolArea, monkeypatch: pytest.MonkeyPatch) -> None:
    def untold(*_: object) -> int:
        raise OSError(errno.EINVAL, "no SEEK_DATA")

    async def main() -> None:
        spool = await made(area, b"1" * SUMMED)
        await spool.write(3 * SUMMED, b"2")
        told = await spool.sums(4 * SUMMED)
        monkeypatch.setattr(os, "lseek", untold)
        assert await spool.sums(4 * SUMMED) == told
        spool.close()

    trio.run(main)


def test_a_file_that_goes_while_it_is_synced_is_not_called_safe(
    area: SpoolArea, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        spool = await made(area)
        monkeypatch.setattr(os, "fsync", lambda file: spool.path.unlink())
        with pytest.raises(DamagedSpool) as caught:
            await spool.sync()
        assert caught.value.errno == errno.EIO, "the program is told"
        spool.close()

    trio.run(main)


def test_what_is_in_memory_or_on_a_disk_without_attributes_has_no_key_and_is_no_error(
    area: SpoolArea, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor has a row named a file of what is in memory: it goes without a wait for the disk."""

    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    async def main() -> None:
        in_memory, spool = area.new(), await made(area)
        in_memory.label("file")
        assert not in_memory.is_named
        monkeypatch.setattr(os, "setxattr", unsupported)
        spool.label("file")
        assert spool.is_named
        assert label(spool.path) == ""
        spool.close()

    trio.run(main)


def test_a_file_shows_the_key_that_it_is_of(area: SpoolArea) -> None:
    async def main() -> None:
        spool = await made(area)
        assert label(spool.path) == ""
        assert not spool.is_named
        for key in ("d/file", "d/moved"):
            spool.label(key)
            assert label(spool.path) == key
            assert spool.is_named
        spool.close()

    trio.run(main)


@pytest.mark.parametrize("count", [MANY, MANY + 1])
def test_of_several_that_are_synced_each_is_told_of_its_own(area: SpoolArea, count: int) -> None:
    async def main() -> None:
        spools = [await made(area) for _ in range(count)]
        spools[2].path.unlink()
        told = await area.sync([*spools, area.new()])
        assert told.pop() is None, "what is in memory has no file that could be gone"
        assert [type(one) for one in told] == [DamagedSpool if number == 2 else type(None) for number in range(count)]
        for spool in spools:
            spool.close()

    trio.run(main)


@pytest.mark.parametrize(("count", "calls"), [(MANY, MANY), (MANY + 1, 1)])
def test_many_are_synced_with_one_call(
    area: SpoolArea, monkeypatch: pytest.MonkeyPatch, count: int, calls: int
) -> None:
    """And what that is told of the file system is told of each."""
    made_calls: list[int] = []

    def refused(file: int) -> None:
        made_calls.append(file)
        raise OSError(errno.EIO, "the disk")

    monkeypatch.setattr(sosfs.files.spool, "_sync", refused)
    monkeypatch.setattr(sosfs.files.spool, "_sync_file_system", refused)

    async def main() -> None:
        spools = [await made(area) for _ in range(count)]
        told = await area.sync(spools)
        assert [one.errno for one in told if one is not None] == [errno.EIO] * count
        assert len(made_calls) == calls
        for spool in spools:
            spool.close()

    trio.run(main)


# What is sent from it


@pytest.mark.parametrize("memory", [0, 8 * SPILL], ids=["on disk", "in memory"])
def test_of_a_part_its_bytes_are_sent_and_zeros_for_its_holes(
    tmp_path: Path, memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    area = SpoolArea(tmp_path, Allowance(memory))

    async def main() -> None:
        spool = await made(area, b"1" * PAGE + b"x" * PAGE + b"2" * PAGE)
        with spool.part(0, 2 * PAGE) as body:
            assert (body is None) is bool(memory)
        with spool.part(10, 3 * PAGE, ((PAGE, 2 * PAGE),)) as body:
            assert body is not None
            assert bytes(body) == b"1" * (PAGE - 10) + bytes(PAGE) + b"2" * PAGE
            assert spool.is_busy
        assert not spool.is_busy
        spool.close()

    trio.run(main)
    assert list(tmp_path.iterdir()) == []
