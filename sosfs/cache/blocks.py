"""Immutable blocks of objects in memory, each fetched once for all its readers.

A block is 128 KiB of one version of one object, named (key, ETag, size, index). Neighbouring blocks that
are missing are fetched as one range; a block keeps the buffer of its whole fetch, and a read within one
fetch hands out a slice of it: no byte is copied on the way to the kernel. So the blocks of one fetch go
together once half of them were driven out, and the buffers are at most twice as large as the blocks.

    ABSENT --want/read--> FETCHING --ok--> CACHED --evicted, or found wrong--> ABSENT
                              `----error--> ABSENT (the readers waiting get the error)

What is known to be zeros (`known_zeros`) is never fetched, and takes no memory.

What comes is verified as far as it can be before it is handed out or kept; how far that is, `verification` says.

Concurrency: trio thread only. A fetch is a task of its own, so a reader that gives up harms no other.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Coroutine, MutableMapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import trio
from cachetools import LRUCache

from sosfs.cache.block_fetch import BlockFetch, Disk, wrong
from sosfs.cache.known_zeros import KnownZeros
from sosfs.cache.verification import Fetched, Verdict, Verification, Verifier
from sosfs.concurrency.interrupt import waited
from sosfs.config.choices import Verify
from sosfs.s3.protocol import ObjectStore, Slice
from sosfs.tracing.meters import METERS, Hit

BLOCK = 128 << 10  # bytes: what a random 4 KiB read fetches; at 1 GB/s it costs 0.1 ms
REQUEST = 8 << 20  # bytes of one GET: beyond it a range gains nothing (measured 1.0-1.1 GB/s from 8 MiB)
LAG = 4  # the part of the memory for blocks by which whoever reads in order may be ahead of the hash
ACTIVE = 1.0  # seconds after which who has not read on is not counted among those who read ahead

ZEROS = memoryview(bytes(REQUEST))  # of all runs of zeros

Spawn = Callable[[Callable[[], Coroutine[Any, Any, None]]], None]


@dataclass(frozen=True, slots=True)
class Source:
    """One version of one object."""

    key: str
    etag: str
    size: int


class Run:
    """The blocks `[first, last)` that one request fetches; `body` once they are here."""

    __slots__ = ("body", "done", "error", "evicted", "first", "is_forgotten", "last")

    def __init__(self, first: int, last: int) -> None:
        self.first = first
        self.last = last
        self.body = memoryview(b"")
        self.error: OSError | None = None
        self.evicted = 0  # of its blocks, one by one
        self.is_forgotten = False  # while it was fetched: for those who wait for it, and for nobody after them
        self.done = trio.Event()

    def slice(self, start: int, stop: int) -> memoryview:
        """The object's bytes `[start, stop)`, which must lie in this run."""
        base = self.first * BLOCK
        return self.body[start - base : stop - base]


Cached = MutableMapping[tuple[Source, int], Run]


class _Memory(LRUCache[Any, Run]):
    """Blocks by their places, which end in the index of the block."""

    def popitem(self) -> tuple[Any, Run]:
        """Drives out the least recently used block, and when its fetch has lost more than half, all of that.

        Whoever wants one of them again fetches it by itself, so it then keeps no other's bytes.
        """
        place, run = super().popitem()
        run.evicted += 1
        if run.done.is_set() and 2 * run.evicted > run.last - run.first:
            for other in [(*place[:-1], at) for at in range(run.first, run.last)]:
                if self.get(other) is run:
                    del self[other]
        return place, run


def memory_of(capacity: int) -> LRUCache[Any, Run]:
    """Room for blocks of `capacity` bytes together; the least recently used goes first."""
    return _Memory(max(1, capacity // BLOCK))


class Blocks:
    """The blocks of one bucket. `cached` is where they are kept, `capacity` how many bytes of them fit there."""

    def __init__(
        self,
        store: ObjectStore,
        spawn: Spawn,
        cached: Cached,
        *,
        capacity: int,
        disk: Disk | None = None,
        verify: Verify = Verify.NONE,
    ) -> None:
        self.verifier = Verifier(store, verify, block=BLOCK, request=REQUEST)
        self.disk = disk
        self.fetching = BlockFetch(store, disk, self.verifier, self._forget_version, block=BLOCK, request=REQUEST)
        self._spawn = spawn
        self.capacity = capacity
        self.zeros = KnownZeros()
        self._cached = cached
        self._fetching: dict[tuple[Source, int], Run] = {}
        self.hits, self.asked = 0, 0  # reads that found all in memory, and all reads
        self._streams: dict[object, float] = {}  # when each of those who read ahead last did

    @property
    def received_bytes(self) -> int:
        """Bytes that came from the store."""
        return self.fetching.received_bytes

    @property
    def used(self) -> int:
        """Bytes of the blocks that are in memory or on their way there."""
        return (len(self._cached) + len(self._fetching)) * BLOCK

    @property
    def held(self) -> int:
        """Bytes of the buffers in memory that hold blocks: those of small files are shorter than a block."""
        return sum({id(run): len(run.body) for run in self._cached.values()}.values())

    @property
    def is_busy(self) -> bool:
        """Whether so much is being fetched that what nobody asked for should not be."""
        return len(self._fetching) * BLOCK > self.capacity // 2

    def room_ahead(self, stream: object) -> int:
        """How many bytes a stream may have fetched that were not read yet.

        Several share a third of the memory. While one reads what it has fetched, each of them uses as much again,
        and as long as all that fits, nothing that was fetched is driven out before it is read.
        """
        now = trio.current_time()
        self._streams[stream] = now
        if len(self._streams) > 1:
            self._streams = {one: last for one, last in self._streams.items() if last > now - ACTIVE}
        return self.capacity // (3 * len(self._streams)) if len(self._streams) > 1 else self.capacity // 2

    def want(self, source: Source, start: int, stop: int) -> list[Run]:
        """Begins to fetch what is missing of `[start, stop)`, does not wait, and returns what it began."""
        begun: list[Run] = []
        self._runs(source, start, stop, begun)
        return begun

    def want_whole(self, source: Source, start: int) -> None:
        """Begins to fetch a version in one request, if its byte `start` is not here and it can be verified."""
        first = (source, start // BLOCK)
        if first not in self._cached and first not in self._fetching and self.verifier.has_means(source):
            self._begin(source, 0, -(-source.size // BLOCK))

    async def offer_answer(self, source: Source, answer: Slice) -> None:
        """Keeps the first block of an object that an answer brought along; a wrong one is asked for again."""
        self.fetching.received_bytes += len(answer.body)
        if self.verifier.comes_whole(source) and len(answer.body) < source.size:
            return
        if await self.verifier.accepts(source, 0, answer.body, answer.object):
            self.offer(source, answer.body)

    def offer(self, source: Source, body: memoryview) -> None:
        """Keeps the first block of an object that is known to be right."""
        if 0 < len(body) == min(source.size, BLOCK):
            run = Run(0, 1)
            run.body = body
            run.done.set()
            self._cached[source, 0] = run
            if self.disk is not None:
                self._spawn(partial(self._to_disk, self.disk, source, run))

    def offer_end(self, source: Source, start: int, body: memoryview) -> None:
        """Keeps in memory the blocks from the byte `start` to the object's end, which came as a by-product."""
        if start % BLOCK == 0 and 0 < len(body) == source.size - start:
            run = Run(start // BLOCK, -(-source.size // BLOCK))
            run.body = body
            run.done.set()
            for at in range(run.first, run.last):
                self._cached[source, at] = run

    def forget(self, applies: Callable[[str], bool]) -> int:
        """Forgets what is in memory of the keys to which this applies; returns how many bytes that were."""
        going = self._forget(lambda source: applies(source.key))
        return sum(min(source.size - at * BLOCK, BLOCK) for source, at in going)

    def _forget_version(self, version: Fetched) -> None:
        self._forget(lambda source: source == version)

    def _forget(self, applies: Callable[[Source], bool]) -> list[tuple[Source, int]]:
        for (source, _), run in self._fetching.items():
            run.is_forgotten |= applies(source)
        going = [(source, at) for source, at in self._cached if applies(source)]
        for place in going:
            self._cached[place].is_forgotten = True  # nor is it written to the disk any more
            del self._cached[place]
        return going

    async def read(self, source: Source, start: int, stop: int) -> memoryview | bytes:
        """The bytes `[start, stop)`, cut at the object's end. Raises what the fetch raised; EIO for wrong ones."""
        stop = min(stop, source.size)
        if start >= stop:
            return b""
        pieces: list[memoryview] = []
        begun: list[Run] = []
        runs = self._runs(source, start, stop, begun)
        METERS.reads[_hit(runs, begun)] += 1
        self.asked += 1
        self.hits += all(run.done.is_set() for run, _ in runs)
        running = self.verifier.of(source)
        for run, until in runs:
            if not run.done.is_set():
                await waited(run.done.wait)
            if run.error is not None:
                raise run.error
            end = min(stop, until * BLOCK)
            pieces.append(run.slice(start, end))
            start = end
        if running is not None:
            while stop == source.size and running.is_busy and stop - running.hashed <= self.capacity // 2:
                await waited(running.step.wait)
            if running.verdict is Verdict.WRONG:
                raise wrong(source)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def keep_pace(self, running: Verification, stop: int) -> None:
        """Lets one who reads in order, now at `stop`, wait until the hash is not so far behind that blocks may be gone.

        Where it is behind by more than the memory holds, it does not run over what this one reads.
        """
        lag = self.capacity // (LAG * max(1, len(self._streams)))
        while running.is_busy and lag < stop - running.hashed <= self.capacity:
            await waited(running.step.wait)

    def _runs(self, source: Source, start: int, stop: int, begun: list[Run]) -> list[tuple[Run, int]]:
        """The runs that hold `[start, stop)`, each with the index where the next begins; missing ones are `begun`."""
        runs: list[tuple[Run, int]] = []
        index, last = start // BLOCK, -(-min(stop, source.size) // BLOCK)
        is_whole = self.verifier.comes_whole(source)
        while index < last:
            run = self._at(source, index)
            if run is None:
                run = self._begin(source, 0, -(-source.size // BLOCK)) if is_whole else self._some(source, index, last)
                begun.append(run)
            index += 1
            # Each block is touched on the way, for the order of eviction.
            while index < min(run.last, last) and self._cached.get((source, index), run) is run:
                index += 1
            runs.append((run, index))
        return runs

    def _at(self, source: Source, index: int) -> Run | None:
        """The run that has this block, or is to have it."""
        place = source, index
        return self._cached.get(place) or self._fetching.get(place) or self._zeros_from(source, index)

    def _zeros_from(self, source: Source, index: int) -> Run | None:
        """A run of zeros that begins with this block, if all of the block is known to be zeros."""
        start = index * BLOCK
        end = self.zeros.end(source.etag, source.size, start)
        blocks = (end if end < source.size else end + BLOCK - 1) // BLOCK - index
        if blocks <= 0:
            return None
        run = Run(index, index + min(blocks, REQUEST // BLOCK))
        run.body = ZEROS
        run.done.set()
        return run

    def _some(self, source: Source, index: int, last: int) -> Run:
        """Begins to fetch what is missing from `index` on, up to `last`, in one request."""
        stop = index + 1
        while stop < min(last, index + REQUEST // BLOCK):
            if self._at(source, stop) is not None:
                break
            stop += 1
        return self._begin(source, index, stop)

    def _begin(self, source: Source, first: int, last: int) -> Run:
        run = Run(first, last)
        for at in range(first, last):
            self._fetching[source, at] = run
        if (last - first) * BLOCK < source.size:
            self.verifier.watch(source)
        self._spawn(partial(self._fetch, source, run))
        return run

    async def _fetch(self, source: Source, run: Run) -> None:
        fetched = False
        try:
            run.body, is_new = await self.fetching.bring(source, run.first, run.last)
            fetched = True
            if is_new and self.disk is not None:
                self._spawn(partial(self._to_disk, self.disk, source, run))
        except OSError as error:
            run.error = error
        finally:
            if not fetched and run.error is None:
                run.error = OSError(errno.EIO, "the fetch was cancelled")
            for at in range(run.first, run.last):
                if self._fetching.get((source, at)) is run:
                    del self._fetching[source, at]
                if fetched and not run.is_forgotten:
                    self._cached[source, at] = run
            if fetched:
                self._hash_on(source)
            run.done.set()

    async def _to_disk(self, disk: Disk, source: Source, run: Run) -> None:
        if not run.is_forgotten:
            await disk.keep(source.key, source.etag, source.size, run.first, run.body)

    # Verification of what came in pieces

    def _hash_on(self, source: Source) -> None:
        """Lets the hash of a version run on, if the next block that it needs is here."""
        running = self.verifier.of(source)
        if running is None or running.is_busy or running.verdict is not Verdict.OPEN:
            return
        if (source, running.hashed // BLOCK) in self._cached:
            running.is_busy = True
            self._spawn(partial(self._hash, source, running))

    async def _hash(self, source: Source, running: Verification) -> None:
        try:
            if not await self.verifier.begin(source, running):
                return
            while run := self._cached.get((source, running.hashed // BLOCK)):
                await running.add(run.slice(running.hashed, min(run.last * BLOCK, source.size)))
                if running.hashed == source.size:
                    await self.verifier.judge(source, running)
                    break
            if running.verdict is Verdict.WRONG:
                await self.fetching.drop(source)
                running.fail()  # also where the verifier has forgotten it since
        finally:
            running.is_busy = False
            running.moved()


def _hit(runs: Sequence[tuple[Run, int]], begun: Sequence[Run]) -> Hit:
    if begun:
        return Hit.MISS
    return Hit.MEMORY if all(run.done.is_set() for run, _ in runs) else Hit.AWAITED
