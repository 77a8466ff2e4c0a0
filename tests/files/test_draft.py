"""A draft by itself: what changes while bytes of its base are on their way stays changed."""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

import sosfs.concurrency.threads
import sosfs.files.spool
from sosfs.cache.blocks import Blocks, Source
from sosfs.concurrency.budgets import Allowance
from sosfs.files.draft import BETWEEN, Draft
from sosfs.files.spool import SPILL, SpoolArea
from sosfs.s3.protocol import Version

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
