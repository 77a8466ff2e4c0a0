"""A draft by itself: what changes while bytes of its base are on their way stays changed."""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import cast

import pytest
import trio

import sosfs.spool
from sosfs.blocks import Blocks, Source
from sosfs.budget import Allowance
from sosfs.draft import BETWEEN, Draft
from sosfs.spool import SPILL, SpoolArea
from sosfs.store import Version

SIZE = 1 << 20
BASE = Source("file", "etag", SIZE)


def filled(tmp_path: Path, meanwhile: Callable[[Draft], Awaitable[None]]) -> bytes:
    """What the draft holds when all of its base, of `b`s, was fetched, `meanwhile` having happened before that came."""

    async def main() -> bytes:
        spool = SpoolArea(tmp_path, Allowance(0)).new()
        draft = Draft(spool, cast(Blocks, None), BASE, Version(BASE.etag, SIZE))
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
        spool = SpoolArea(tmp_path, Allowance(1 << 30)).new()
        await spool.write(0, b"first")
        with monkeypatch.context() as patch:
            patch.setattr(sosfs.spool, "_write_all", full)
            with pytest.raises(OSError, match="full"):
                await spool.write(5, b"n" * SPILL)
        await spool.write(5, b"n" * SPILL)
        body = await spool.read(0, 5 + SPILL)
        spool.close()
        return body

    assert trio.run(main) == b"first" + b"n" * SPILL
    assert not list(tmp_path.glob("*.spool"))
