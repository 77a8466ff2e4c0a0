"""A draft reads as a file would, whatever is written, cut, fetched, sent and freed in whatever order."""

from __future__ import annotations

import errno
import random
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import trio

from sosfs.cache.blocks import Blocks, Source
from sosfs.concurrency.budgets import Allowance
from sosfs.files.draft import Draft, DraftState
from sosfs.files.spool import SpoolArea
from sosfs.s3.protocol import Guard, Version
from tests.support.composed import inline_threads
from tests.support.drive import fails

END = 120  # bytes, about as many as a file gets


class Bucket:
    """The versions of one object, read as `Blocks` reads them."""

    def __init__(self) -> None:
        self.bodies: dict[str, bytes] = {}
        self.verifier = SimpleNamespace(of=lambda source: None)

    def stores(self, body: bytes) -> Source:
        """A new version."""
        etag = f"etag {len(self.bodies)}"
        self.bodies[etag] = body
        return Source("file", etag, len(body))

    async def read(self, source: Source, start: int, stop: int) -> bytes:
        """As `Blocks.read`."""
        await trio.lowlevel.checkpoint()
        assert 0 <= start < stop <= source.size
        return self.bodies[source.etag][start:stop]


class Story:
    """A draft, what it must read as, and what befalls it."""

    def __init__(self, area: SpoolArea, seed: int) -> None:
        self._dice = random.Random(seed)
        self._bucket = Bucket()
        base = self._bucket.stores(self._dice.randbytes(END)) if seed % 2 else None
        expected = Version(base.etag, base.size) if base is not None else Guard.ABSENT
        self.draft = Draft(area.new(), cast(Blocks, self._bucket), base, expected)
        self.now = bytearray(self._bucket.bodies[base.etag] if base is not None else b"")
        self._is_stored = base is not None
        self._flight: tuple[int, bytes] | None = None  # of the commit under way: the serial, and what it sends
        self._lost: bytes | None = None  # what it has made, though nobody was told
        self._coming: tuple[Source, int, bytes] | None = None  # of the base, on its way
        self.trail: list[str] = []

    async def run(self, steps: int) -> None:
        """Some steps, and a look after each."""
        for _ in range(steps):
            kinds = (
                self._write,
                self._write,
                self._zeros,
                self._cut,
                self._asks,
                self._comes,
                self._commit,
                self._part,
            )
            step = self._dice.choice((*kinds, self._ends, self._ends, self._shed, self._recognised))
            self.trail.append(step.__name__)
            await step()
            await self._look()

    def _range(self, most: int = END) -> tuple[int, int]:
        start = self._dice.randrange(most)
        return start, start + self._dice.randrange(1, 30)

    async def _stores(self, start: int, body: bytes) -> None:
        await self.draft.write(start, body)
        self.now.extend(bytes(max(0, start + len(body) - len(self.now))))
        self.now[start : start + len(body)] = body
        self._is_stored = False

    async def _write(self) -> None:
        start, stop = self._range()
        await self._stores(start, self._dice.randbytes(stop - start))

    async def _zeros(self) -> None:
        start = self._range()[0]
        body = bytes(self._dice.choice((1, 4, 20)))
        await self._stores(start, self._dice.choice((body, body + b"\1")))

    async def _cut(self) -> None:
        size = self._dice.randrange(END)
        self.draft.truncate(size)
        self.draft.trim()
        self.now[size:] = bytes(max(0, size - len(self.now)))
        self._is_stored = False

    async def _asks(self) -> None:
        gap, base = self.draft.lacks(*self._range()), self.draft.base
        if gap is not None and base is not None:
            self._coming = base, gap[0], await self._bucket.read(base, *gap)

    async def _comes(self) -> None:
        if self._coming is not None and self._coming[0] == self.draft.base:
            await self.draft.absorb(*self._coming[1:])
        self._coming = None

    async def _commit(self) -> None:
        if self._flight is None and self._lost is None and self.draft.is_dirty:
            self._flight = self.draft.commit_begins(), bytes(self.now)
            assert self.draft.is_committing
            self._is_stored = True

    async def _ends(self) -> None:
        if self._flight is None:
            return
        (serial, body), self._flight = self._flight, None
        how = self._dice.choice(("landed", "landed", "failed", "lost"))
        self.trail.append(how)
        if how == "landed":
            base = self._bucket.stores(body)
            self.draft.commit_landed(base, Version(base.etag, base.size), serial)
            assert self.draft.expected == Version(base.etag, base.size)
            assert not self.draft.away
        else:
            self.draft.commit_failed()
            self._is_stored = False
            self._lost = body if how == "lost" else None

    async def _recognised(self) -> None:
        if self._lost is not None and self._flight is None:
            base, self._lost = self._bucket.stores(self._lost), None
            self.draft.stand_on(base, Version(base.etag, base.size))
            assert self.draft.expected == Version(base.etag, base.size)
            assert not self.draft.away

    async def _shed(self) -> None:
        if self.draft.state is DraftState.CLEAN:
            self.draft.shed()
            assert not self.draft.local
            assert self.draft.spool.length == 0, "its room"

    async def _part(self) -> None:
        """A part of the upload has been sent, and is freed here."""
        if self._flight is None and self._lost is None and self.now:
            start = self._dice.randrange(len(self.now))
            self.draft.part_with(start, min(len(self.now), start + 20))

    async def _look(self) -> None:
        draft, now = self.draft, bytes(self.now)
        assert draft.size == len(now)
        assert self._flight is not None or draft.is_dirty is not self._is_stored
        start, stop = self._range()
        if draft.away.touches(start, stop):
            with fails(errno.ESTALE):
                await draft.read(start, stop)
        else:
            assert bytes(await draft.read(start, stop)) == now[start:stop]
        if not draft.away:
            assert bytes(await draft.read(0, END * 2)) == now
        below = self._bucket.bodies[draft.base.etag] if draft.base is not None else b""
        if draft.is_untouched(start, stop):
            assert now[start:stop] == below[start:stop], "it would be copied of the version below"
        holes = [(start, stop)] if draft.is_hole(start, stop) else []
        for begin, end in (*holes, *draft.holes(start, stop)):
            assert not any(now[begin:end]), "zeros would be sent"
        unsent = {at for begin, end in draft.unsent for at in range(begin, end)}
        below = below.ljust(len(now), b"\0")
        lacking = [at for at in range(len(now)) if now[at] != below[at] and (now[at] or at < draft.base_stop)]
        assert unsent >= set(lacking)
        assert not unsent or draft.is_dirty, "it would be sent again"
        assert draft.allocated(0) >= sum(map(bool, now)) - draft.base_stop * (draft.base is None)

    async def ends(self) -> None:
        """All of the base comes, but for what is in parts alone, and it is gone then."""
        draft, base = self.draft, self.draft.base
        if base is not None and (gap := draft.lacks(0, 2 * END)) is not None:
            await draft.absorb(gap[0], await self._bucket.read(base, *gap))
        assert draft.lacks(0, 2 * END) is None
        if not draft.away:
            with draft.without_base() as gone:
                assert gone == 0
                assert bytes(await draft.read(0, END * 2)) == self.now
        draft.close()


@pytest.mark.parametrize("memory", [0, 1 << 20], ids=["on disk", "in memory at first"])
def test_a_draft_reads_as_a_file_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: int) -> None:
    for name, value in {
        "draft.FEW": 8,
        "draft.BETWEEN": 4,
        "draft.INLINE": 16,
        "spool.INLINE": 16,
        "spool.SPILL": 60,
    }.items():
        monkeypatch.setattr(f"sosfs.files.{name}", value)
    area = SpoolArea(tmp_path, Allowance(memory))
    with inline_threads():
        for seed in range(120):
            story = Story(area, seed)
            try:
                trio.run(story.run, 40)
                trio.run(story.ends)
            except AssertionError as error:
                raise AssertionError(f"seed {seed}: {' '.join(story.trail)}: {error}") from error
    assert area.memory.used == 0
    assert list(tmp_path.iterdir()) == []
