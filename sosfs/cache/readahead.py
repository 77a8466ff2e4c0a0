"""Read ahead within a file: one `Stream` for each open file.

Reading from the beginning, or half a MiB on without a jump, is sequential: the window is then as wide as
what was read in one go, up to 32 MiB or what there is room for, and is kept fetched ahead in requests of 8 MiB
side by side; once a read had to wait long for it, four times as wide, so that a distant server is asked for all
that the line carries after a few waits. A jump closes it. The kernel cuts a large read into several requests and
sends them a little out of order, so neither is a short run sequential nor a small step a jump.

Reading at random places costs a round trip a place. The first few jumps fetch only what is asked; then each
also fetches, behind it, the region it fell into, which doubles every few jumps, and quadruples with each long wait.
So the bytes that nobody may want never take much longer than the waiting that they may save, and whoever reads
densely soon has the file at hand: once an eighth of its regions are, the others are fetched side by side, as many at
a time as the server needs to be busy.

Concurrency: trio thread only.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable

import trio

from sosfs.cache.block_fetch import wrong
from sosfs.cache.blocks import BLOCK, REQUEST, Blocks, Run, Source
from sosfs.cache.verification import Verdict, Verification
from sosfs.config.parameters import READ_AHEAD

WINDOW_FIRST = 512 << 10
WINDOW_MAX = 32 << 20
RUN = 512 << 10  # bytes read without a jump that make a run elsewhere than at the beginning
SLACK = 2 << 20  # bytes out of order that are still one stream
# Requests of the kernel's read-ahead: it has up to twice `READ_AHEAD` in flight, in pieces of 1 MiB, and trio
# runs tasks that became ready together in any order.
AHEAD, SLACK_AHEAD = 512 << 10, 2 * READ_AHEAD << 10
SMALL = 1 << 20  # a file up to this size is fetched whole by its first read
BULK = BLOCK  # bytes of a read that will likely be followed by all others: cp and cat, but not `file`
PATIENCE = 2  # jumps before a region is doubled
LATE = 0.01  # seconds; a longer wait is one for a distant server
STEEP = 2  # doublings that a long wait is worth
REGION_MAX = 8 << 20  # bytes around a jump
REGION_SPARSE = 1 << 20  # the same in a file of which random reads will never touch most regions
DENSE_MAX = 4 << 30  # bytes of a file from which reads at random are sparse
DENSE = 8  # of so many regions one was wanted: then all are
FILLING = 4  # regions nobody asked for, under way at once


class Stream:
    """The reading position and window of one handle."""

    __slots__ = ("_ahead", "_begin", "_expected", "_filling", "_is_distant", "_jumps", "_regions", "_waited", "_window",
                 "begun", "running")  # fmt: skip

    def __init__(self) -> None:
        self._begin = 0  # of the run that is being read
        self._expected = 0
        self._window = 0
        self._ahead = 0
        self._jumps = 0
        self._waited = 0.0  # seconds, by the last read
        self._is_distant = False  # whether any read had to wait long
        self._regions: set[int] = set()  # those of `REGION_MAX` that were fetched
        self._filling: list[Run] = []
        self.running: Verification | None = None  # over what was handed out last
        self.begun: list[Run] = []  # fetches of regions, for the kernel's page cache; whoever takes them empties it

    async def read(self, blocks: Blocks, source: Source, start: int, stop: int) -> memoryview | bytes:
        """The bytes `[start, stop)` of `source`; sets off what will likely be asked next."""
        stop = min(stop, source.size)
        if start >= stop:
            return b""
        self._require_right(source)
        return await self.read_ahead(blocks, source, start, stop, blocks.read(source, start, stop))

    async def read_ahead(
        self,
        blocks: Blocks,
        source: Source,
        start: int,
        stop: int,
        reading: Awaitable[memoryview | bytes],
        *,
        room: float = math.inf,
    ) -> memoryview | bytes:
        """What `reading` gives, which needs `[start, stop)` of `source`; sets off what will likely be asked next.

        Raises EIO from when on bytes that were handed out before have turned out wrong: not once, since the kernel
        swallows what befalls its own read-ahead.
        `room` is how many bytes stay here once they were fetched: of a larger file no regions are.
        """
        if start == 0 and source.size <= SMALL:
            blocks.want(source, 0, source.size)
        elif stop - start >= BULK and source.size <= min(REQUEST, blocks.capacity // 4):
            blocks.want_whole(source, start)
        self._place(start, stop)
        if self._window:
            self._fetch_ahead(blocks, source, start, stop)
        elif self._jumps >= PATIENCE and source.size <= room:
            self._fetch_around(blocks, source, start, stop)
        began = trio.current_time()
        body = await reading
        self._waited = trio.current_time() - began
        self._is_distant |= self._waited > LATE
        self._require_right(source)
        self.running = blocks.verifier.of(source)
        if self.running is not None and self._begin == 0:
            await blocks.keep_pace(self.running, stop)
        return body

    def _require_right(self, source: Source) -> None:
        if self.running is not None and self.running.verdict is Verdict.WRONG:
            raise wrong(source)

    def _place(self, start: int, stop: int) -> None:
        slack = 0 if not self._window else SLACK_AHEAD if stop - start >= AHEAD else SLACK
        if not -slack <= start - self._expected <= slack:
            self._begin, self._window, self._ahead = start, 0, 0
            self._jumps += STEEP * PATIENCE if self._waited > LATE else 1
            self._expected = stop
        self._expected = max(self._expected, stop)
        run = self._expected - self._begin
        if run >= RUN or self._begin == 0:
            self._window = min(WINDOW_MAX, max(WINDOW_FIRST, run << STEEP if self._is_distant else run))

    def _fetch_ahead(self, blocks: Blocks, source: Source, start: int, stop: int) -> None:
        self._ahead = self._ahead or start // BLOCK * BLOCK  # what was passed over will be asked for, too
        window = min(self._window, blocks.room_ahead(self))
        if self._ahead - stop > window // 2:
            return
        goal = min(source.size, stop + window)
        while self._ahead < goal:
            # Ends on multiples of 8 MiB, so that the next window begins with a full request.
            end = min(goal, (self._ahead // REQUEST + 1) * REQUEST) if window > REQUEST else goal
            blocks.want(source, self._ahead, end)
            self._ahead = end

    def _fetch_around(self, blocks: Blocks, source: Source, start: int, stop: int) -> None:
        if blocks.is_busy:
            return
        most = REGION_MAX if source.size <= DENSE_MAX else REGION_SPARSE
        region = min(most, BLOCK << min(self._jumps // PATIENCE, 10))
        self.begun += blocks.want(source, start, stop)  # by itself: the reader waits for no more than that
        self.begun += blocks.want(source, start // region * region, min(source.size, -(-stop // region) * region))
        if region == REGION_MAX:
            self._regions.update(range(start // region, -(-stop // region)))
            self._fill(blocks, source, -(-source.size // region))

    def _fill(self, blocks: Blocks, source: Source, regions: int) -> None:
        """Fetches regions that no read has touched, once enough were: the first of them are as good as any."""
        self._filling = [run for run in self._filling if not run.done.is_set()]
        if len(self._regions) * DENSE < regions:
            return
        for region in (number for number in range(regions) if number not in self._regions):
            if len(self._filling) >= FILLING:
                return
            self._regions.add(region)
            start = region * REGION_MAX
            begun = blocks.want(source, start, min(source.size, start + REGION_MAX))
            self._filling += begun
            self.begun += begun
