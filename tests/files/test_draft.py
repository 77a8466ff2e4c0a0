"""A draft by itself: what changes while bytes of its base are on their way stays changed."""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

import sosfs.concurrency.threads
import sosfs.files.spool
from sosfs.cache.blocks import Blocks, Source
from sosfs.concurrency.budgets import Allowance
from sosfs.files.draft import BETWEEN, Draft, DraftState, fresh
from sosfs.files.spool import SPILL, SpoolArea
from sosfs.s3.protocol import OBJECT_MAX, Guard, Version
from tests.support.drive import fails

SIZE = 1 << 20
BASE = Source("file", "etag", SIZE)


def filled(tmp_path: Path, meanwhile: Callable[[Draft], Awaitable[None]]) -> bytes:
    """What the draft holds when all of its base, of `b`s, was fetched, `meanwhile` having happened before that came."""

    async def main() -> bytes:
        spool = SpoolArea(tmp_path, Allowance(0)).new()
        blocks = SimpleNamespace(verifier=SimpleNamespace(of=lambda source: None))
        draft = Draft(spool, cast(Blocks, blocks), BASE, Version(BASE.etag, SIZE))
        gap = draft.lacks(0, SIZE)
        assert gap == (0, SIZE)
        await meanwhile(draft)
        await draft.absorb(0, b"b" * SIZE)
        assert draft.lacks(0, SIZE) is None
        draft.base = None
        body = bytes(await draft.read(0, draft.size))
        draft.close()
        return body

    return trio.run(main)


def test_what_is_written_while_the_base_comes_stays(tmp_path: Path) -> None:
    async def write(draft: Draft) -> None:
        await draft.write(300_000, b"new" * 100_000)

    assert filled(tmp_path, write) == b"b" * 300_000 + b"new" * 100_000 + b"b" * (SIZE - 600_000)


@pytest.mark.parametrize("is_done", [False, True], ids=["its thread has not begun", "its thread is done"])
def test_what_is_being_written_when_the_base_comes_stays(tmp_path: Path, is_done: bool) -> None:
    """A thread writes larger pieces: it has begun, or is done, and the draft is not told yet."""
    inline, new = sosfs.concurrency.threads.Threads.run, b"new" * 100_000

    async def main() -> bytes:
        reached, go_on = trio.Event(), trio.Event()

        async def run(threads: Any, work: Callable[..., Any], *arguments: Any) -> Any:
            if work is not sosfs.files.spool._write_all or len(arguments[2]) != len(new):
                return await inline(threads, work, *arguments)
            answer = await inline(threads, work, *arguments) if is_done else None
            reached.set()
            await go_on.wait()
            return answer if is_done else await inline(threads, work, *arguments)

        spool = SpoolArea(tmp_path, Allowance(0)).new()
        blocks = SimpleNamespace(verifier=SimpleNamespace(of=lambda source: None))
        draft = Draft(spool, cast(Blocks, blocks), BASE, Version(BASE.etag, SIZE))
        await draft.write(0, b"b")  # the spool is on disk from now on
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sosfs.concurrency.threads.Threads, "run", run)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(draft.write, 300_000, new)
                await reached.wait()
                await draft.absorb(0, b"b" * SIZE)
                go_on.set()
        assert draft.lacks(0, SIZE) is None
        draft.base = None
        body = bytes(await draft.read(0, draft.size))
        draft.close()
        return body

    assert trio.run(main) == b"b" * 300_000 + new + b"b" * (SIZE - 600_000)


def test_what_is_cut_while_the_base_comes_does_not_come_back(tmp_path: Path) -> None:
    async def cut(draft: Draft) -> None:
        draft.truncate(1000)
        draft.truncate(SIZE)

    assert filled(tmp_path, cut) == b"b" * 1000 + bytes(SIZE - 1000)


@pytest.mark.parametrize(("apart", "ours", "requests"), [(8 << 10, 3000, 1), (2 * BETWEEN, BETWEEN + 1, 5)])
def test_what_lies_between_writes_comes_with_few_requests(tmp_path: Path, apart: int, ours: int, requests: int) -> None:
    asked: list[tuple[int, int]] = []
    size = 5 * apart

    class Counted:
        async def read(self, source: Source, start: int, stop: int) -> bytes:
            asked.append((start, stop))
            await trio.lowlevel.checkpoint()
            return b"b" * (stop - start)

    async def main() -> bytes:
        spool = SpoolArea(tmp_path, Allowance(0)).new()
        draft = Draft(spool, cast(Blocks, Counted()), Source("file", "etag", size), Version("etag", size))
        for at in range(0, size, apart):
            await draft.write(at, b"n" * ours)
        await draft.write(size, b"more")
        draft.truncate(size + 100)
        body = bytes(await draft.read(0, size + 100))
        draft.close()
        return body

    assert trio.run(main) == (b"n" * ours + b"b" * (apart - ours)) * 5 + b"more" + bytes(96)
    assert len(asked) == requests


def test_a_disk_that_was_full_takes_the_bytes_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int, offset: int, data: bytes | memoryview) -> None:
        raise OSError(errno.ENOSPC, "full")

    async def main() -> bytes:
        spool = SpoolArea(tmp_path, Allowance(SPILL)).new()
        await spool.write(0, b"first")
        with monkeypatch.context() as patch:
            patch.setattr(sosfs.files.spool, "_write_all", full)
            with pytest.raises(OSError, match="full"):
                await spool.write(5, b"n" * SPILL)
        await spool.write(5, b"n" * SPILL)
        body = await spool.read(0, 5 + SPILL)
        spool.close()
        return body

    assert trio.run(main) == b"first" + b"n" * SPILL
    assert not list(tmp_path.glob("*.spool"))


def test_on_a_full_disk_a_draft_stays_in_memory_while_there_is_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[int] = []

    def full(file: int, offset: int, data: bytes | memoryview) -> None:
        tries.append(len(data))
        view = memoryview(data)
        raise OSError(errno.ENOSPC, "full", str(len(view)))

    async def main() -> None:
        memory = Allowance(8 * SPILL)
        spool = SpoolArea(tmp_path, memory).new()
        with monkeypatch.context() as patch:
            patch.setattr(sosfs.files.spool, "_write_all", full)
            for at in range(0, 8 * SPILL, SPILL // 4):
                await spool.write(at, bytes([at // SPILL]) * (SPILL // 4))
            with pytest.raises(OSError, match="full"):
                await spool.write(8 * SPILL, b"n")
        assert len(tries) <= 6, "not with every write"
        assert not spool.on_disk
        # What was sent is freed from below, what is written there again comes back, and it moves once there is room.
        assert spool.free(0, 2 * SPILL)
        assert not spool.free(4 * SPILL, 5 * SPILL)
        assert memory.used == 6 * SPILL
        assert await spool.read(SPILL, 3 * SPILL) == bytes(SPILL) + b"\2" * SPILL
        with pytest.raises(OSError, match="no room"):
            _ = spool.body
        await spool.write(2 * SPILL - 2, b"ab")
        assert await spool.read(2 * SPILL - 3, 2 * SPILL + 1) == b"\0ab\2"
        await spool.write(8 * SPILL, b"n" * 2 * SPILL)
        assert spool.on_disk
        assert memory.used == 0
        assert await spool.read(2 * SPILL - 3, 2 * SPILL + 1) == b"\0ab\2"
        assert await spool.read(7 * SPILL, 8 * SPILL + 1) == b"\7" * SPILL + b"n"
        assert spool.free(2 * SPILL, 8 * SPILL)
        assert spool.path.stat().st_blocks * 512 < 3 * SPILL
        spool.truncate(0)
        spool.close()

    trio.run(main)


def test_a_spool_that_could_not_move_to_the_disk_can_still_be_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its error is at hand meanwhile, as it is where the writer is about to be answered."""

    def full(file: int, data: object, offset: int) -> int:
        del data  # the real one holds none either
        raise OSError(errno.ENOSPC, "full")

    async def main() -> None:
        spool = SpoolArea(tmp_path, Allowance(SPILL)).new()
        await spool.write(0, b"first")
        monkeypatch.setattr(os, "pwrite", full)
        try:
            await spool.write(5, b"n" * SPILL)
        except OSError:
            spool.truncate(0)
            await spool.write(0, b"second")
        assert spool.body == b"second"
        spool.close()

    trio.run(main)


def test_an_object_has_at_most_four_tib(tmp_path: Path) -> None:
    async def main() -> None:
        draft = fresh(SpoolArea(tmp_path, Allowance(0)).new(), cast(Blocks, None))
        draft.truncate(OBJECT_MAX)
        await draft.write(OBJECT_MAX - 1, b"\0")
        for beyond in (partial(draft.write, OBJECT_MAX, b"\0"), partial(draft.write, OBJECT_MAX - 1, b"no")):
            with fails(errno.EFBIG):
                await beyond()
        with fails(errno.EFBIG):
            draft.truncate(OBJECT_MAX + 1)
        assert draft.size == OBJECT_MAX
        assert bytes(await draft.read(OBJECT_MAX - 1, OBJECT_MAX + 5)) == b"\0"
        draft.close()

    trio.run(main)


def test_what_is_preallocated_takes_no_room_and_a_zero_over_bytes_is_one(tmp_path: Path) -> None:
    """posix_fallocate(3) writes a zero into each block."""

    async def main() -> None:
        draft = fresh(SpoolArea(tmp_path, Allowance(0)).new(), cast(Blocks, None))
        for at in range(4095, 40960, 4096):
            await draft.write(at, b"\0")
        assert (draft.size, draft.allocated(0), draft.is_dirty) == (40960, 0, True)
        assert not draft.spool.on_disk
        await draft.write(0, b"12345")
        await draft.write(1, b"\0")
        draft.refused.add(5000, 5200)
        await draft.write(5000, bytes(100))
        assert list(draft.refused) == [(5100, 5200)], "it was missing, and is there now"
        assert bytes(await draft.read(0, 6)) == b"1\x00345\0"
        draft.close()

    trio.run(main)


class Versions:
    """What `Blocks` has of one version, and who is to be told where that turns out wrong."""

    def __init__(self, right: bytes) -> None:
        self._right = right
        self.on_wrong: dict[object, Callable[[], None]] = {}
        self.verifier = SimpleNamespace(of=lambda source: SimpleNamespace(on_wrong=self.on_wrong))
        self.is_gone = False

    async def read(self, source: Source, start: int, stop: int) -> bytes:
        """As `Blocks.read`."""
        await trio.lowlevel.checkpoint()
        assert not self.is_gone
        return self._right[start:stop]


def test_what_came_of_a_version_and_turns_out_wrong_is_asked_for_again(tmp_path: Path) -> None:
    """What was written here is none of it, whether it is on its way already or not."""

    async def main() -> None:
        blocks = Versions(b"r" * 100)
        draft = Draft(
            SpoolArea(tmp_path, Allowance(0)).new(), cast(Blocks, blocks), Source("file", "etag", 100), Guard.NONE
        )
        await draft.write(10, b"1" * 10)
        draft.commit_begins()
        await draft.write(30, b"2" * 10)
        draft.brought.add(0)
        await draft.absorb(0, b"w" * 100)
        assert draft.lacks(0, 100) is None
        for tell in blocks.on_wrong.values():
            tell()
        assert draft.brought == set()
        expected = b"r" * 10 + b"1" * 10 + b"r" * 10 + b"2" * 10 + b"r" * 60
        assert bytes(await draft.read(0, 100)) == expected
        draft.close()

    trio.run(main)


def test_a_draft_whose_damaged_object_has_replaced_its_base_has_all_bytes(tmp_path: Path) -> None:
    async def main() -> None:
        left = Version("damaged", 100)
        blocks = Versions(b"r" * 100)
        base, before = Source("file", "etag", 100), Version("etag", 100)
        draft = Draft(SpoolArea(tmp_path, Allowance(0)).new(), cast(Blocks, blocks), base, before)
        await draft.write(10, b"1" * 10)
        body = bytes(await draft.read(0, 100))
        draft.commit_begins()
        await draft.outlive(body, left)
        draft.commit_failed()
        blocks.is_gone = True
        assert draft.expected == left
        assert draft.base == Source("file", "damaged", 100), "it is the same file: its ACL and class stay"
        assert draft.unsent == ((0, 100),)
        assert not draft.is_untouched(50, 60)
        assert bytes(await draft.read(0, 100)) == body
        draft.close()

    trio.run(main)


@pytest.mark.parametrize("moment", ["before", "landed", "failed"])
def test_what_has_lost_its_name_is_not_to_be_sent_however_its_commit_ends(tmp_path: Path, moment: str) -> None:
    async def main() -> None:
        draft = fresh(SpoolArea(tmp_path, Allowance(0)).new(), cast(Blocks, None))
        await draft.write(0, b"bytes")
        serial = draft.commit_begins() if moment != "before" else 0
        draft.state = DraftState.ORPHAN
        if moment == "landed":
            draft.commit_landed(Source("file", "etag", 5), Version("etag", 5), serial)
        elif moment == "failed":
            draft.commit_failed()
        await draft.write(5, b"more")
        assert not draft.is_dirty
        assert not draft.is_sendable
        assert draft.state is DraftState.ORPHAN
        draft.close()

    trio.run(main)


def test_of_a_version_that_is_gone_zeros_are_left(tmp_path: Path) -> None:
    """They are told of by their number, and sent."""

    async def main() -> None:
        blocks = Versions(b"r" * 100)
        base = Source("file", "etag", 100)
        draft = Draft(SpoolArea(tmp_path, Allowance(0)).new(), cast(Blocks, blocks), base, Guard.NONE)
        await draft.write(10, b"1" * 10)
        assert draft.is_untouched(50, 60)
        blocks.is_gone = True
        with draft.without_base() as gone:
            assert gone == 90
            assert bytes(await draft.read(0, 100)) == bytes(10) + b"1" * 10 + bytes(80)
            assert not draft.is_untouched(50, 60)
            assert draft.base is None
            assert draft.allocated(0) == 10
        draft.close()

    trio.run(main)


@pytest.mark.parametrize(("size", "left"), [(99, []), (100, []), (150, [(100, 150)]), (300, [(100, 200)])])
def test_of_an_append_that_failed_is_missing_what_the_length_takes_in(
    tmp_path: Path, size: int, left: list[tuple[int, int]]
) -> None:
    async def main() -> None:
        draft = fresh(SpoolArea(tmp_path, Allowance(0)).new(), cast(Blocks, None))
        await draft.write(0, b"1" * 100)
        draft.refused.add(100, 200)
        assert not draft.is_sendable
        draft.truncate(size)
        assert list(draft.refused) == left
        assert draft.is_sendable is not bool(left)
        draft.close()

    trio.run(main)


def test_it_lacks_something_since_the_first_change_that_is_not_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written while a commit was under way waits since that began, at most."""
    clock = iter(range(1, 100))
    monkeypatch.setattr("sosfs.files.draft.time", SimpleNamespace(time=lambda: float(next(clock))))

    async def main() -> None:
        base = Source("file", "etag", 100)
        draft = Draft(SpoolArea(tmp_path, Allowance(0)).new(), cast(Blocks, None), base, Guard.NONE)
        assert draft.since == 1
        await draft.write(0, b"1" * 100)
        await draft.write(0, b"2" * 100)
        assert draft.since == 2, "not since it was opened, nor since the last"
        serial = draft.commit_begins()  # 3
        await draft.write(0, b"3" * 100)
        assert draft.since == 2
        draft.commit_landed(base, Version("etag", 100), serial)
        assert draft.since == 3
        draft.commit_landed(base, Version("etag", 100), draft.commit_begins())  # 4
        draft.truncate(7)
        assert draft.since == 5
        draft.close()

    trio.run(main)
