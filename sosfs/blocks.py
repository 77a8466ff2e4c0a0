"""Immutable blocks of objects, fetched once for many readers and kept in bounded memory.

A block is 128 KiB of one version of one object, named (key, ETag, size, index). Neighbouring blocks that
are missing are fetched as one range; a block keeps the buffer of its whole fetch, and a read within one
fetch hands out a slice of it: no byte is copied on the way to the kernel. So the blocks of one fetch go
together once half of them were driven out, and the buffers are at most twice as large as the blocks.

    ABSENT --want/read--> FETCHING --ok--> CACHED --evicted--> ABSENT
                              `----error--> ABSENT (the readers waiting get the error)

Concurrency: trio thread only. A fetch is a task of its own, so a reader that gives up harms no other.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Coroutine, Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any, Protocol

import trio
from cachetools import LRUCache

from .interrupt import waited
from .store import Object, ObjectStore

BLOCK = 128 << 10  # bytes: what a random 4 KiB read fetches; at 1 GB/s it costs 0.1 ms
REQUEST = 8 << 20  # bytes of one GET: beyond it a range gains nothing (measured 1.0-1.1 GB/s from 8 MiB)
ACTIVE = 1.0  # seconds after which who has not read on is not counted among those who read ahead

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


class Disk(Protocol):
    """Where blocks are kept over restarts: a `DiskCache`, or one bucket's share of it."""

    @property
    def capacity(self) -> int:
        """How many bytes fit there."""

    async def read(self, key: str, etag: str, size: int, first: int, last: int) -> memoryview | None:
        """The blocks `[first, last)` of a version, or None."""

    async def keep(self, key: str, etag: str, size: int, first: int, body: memoryview) -> None:
        """Stores a fetch that begins with block `first`."""

    async def store(self, key: str, etag: str, size: int, first: int, body: memoryview) -> bool:
        """As `keep`; whether it is here now."""

    async def missing(self, key: str, etag: str, size: int) -> list[tuple[int, int]]:
        """The runs of blocks of a version that are not here."""

    async def forget(self, versions: Iterable[tuple[str, str, int]]) -> int:
        """Forgets versions; how many bytes of them were here."""

    async def forget_all(self, *, but: Iterable[tuple[str, str, int]]) -> int:
        """Forgets all but these versions; how many bytes were here."""


class _Memory(LRUCache[Any, Run]):
    """Blocks by their places, which end in the index of the block."""

    def popitem(self) -> tuple[Any, Run]:
        """Drives out the least recently used block, and when its fetch has lost more than half, all of that.

        Who wants one of them again fetches it by itself, so it then keeps no other's bytes.
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
        self, store: ObjectStore, spawn: Spawn, cached: Cached, *, capacity: int, disk: Disk | None = None
    ) -> None:
        self._store = store
        self.disk = disk
        self._spawn = spawn
        self.capacity = capacity
        self.received_bytes = 0
        self._cached = cached
        self._fetching: dict[tuple[Source, int], Run] = {}
        self._streams: dict[object, float] = {}  # when each of those who read ahead last did

    @property
    def used(self) -> int:
        """Bytes of the blocks that are in memory or on their way there."""
        return (len(self._cached) + len(self._fetching)) * BLOCK

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

    def offer(self, source: Source, body: memoryview) -> None:
        """Keeps the first block of an object that came as a by-product."""
        if 0 < len(body) == min(source.size, BLOCK):
            run = Run(0, 1)
            run.body = body
            run.done.set()
            self._cached[source, 0] = run
            self._to_disk(source, run)

    def offer_end(self, source: Source, start: int, body: memoryview) -> None:
        """Keeps in memory the blocks from the byte `start` to the object's end, which came as a by-product."""
        if start % BLOCK == 0 and 0 < len(body) == source.size - start:
            run = Run(start // BLOCK, -(-source.size // BLOCK))
            run.body = body
            run.done.set()
            for at in range(run.first, run.last):
                self._cached[source, at] = run

    async def lay_up(self, source: Source, first: int, last: int) -> Object:
        """Fetches the blocks `[first, last)` onto the disk, past the memory; what the answer tells of the object.

        Raises ENOSPC where the disk cache has no room for them, and what the fetch raises.
        """
        if self.disk is None:
            raise OSError(errno.ENOSPC, "there is no disk cache")
        answer = await self._store.get(source.key, first * BLOCK, min(last * BLOCK, source.size), etag=source.etag)
        self.received_bytes += len(answer.body)
        if not await self.disk.store(source.key, source.etag, source.size, first, answer.body):
            raise OSError(errno.ENOSPC, "the disk cache has no room")
        return answer.object

    def forget(self, applies: Callable[[str], bool]) -> int:
        """Forgets what is in memory of the keys to which this applies; returns how many bytes that were."""
        for (source, _), run in self._fetching.items():
            run.is_forgotten |= applies(source.key)
        going = [(source, at) for source, at in self._cached if applies(source.key)]
        for place in going:
            del self._cached[place]
        return sum(min(source.size - at * BLOCK, BLOCK) for source, at in going)

    async def read(self, source: Source, start: int, stop: int) -> memoryview | bytes:
        """The bytes `[start, stop)`, cut at the object's end. Raises what the fetch raised."""
        stop = min(stop, source.size)
        if start >= stop:
            return b""
        pieces: list[memoryview] = []
        for run, until in self._runs(source, start, stop, []):
            if not run.done.is_set():
                await waited(run.done.wait)
            if run.error is not None:
                raise run.error
            end = min(stop, until * BLOCK)
            pieces.append(run.slice(start, end))
            start = end
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _runs(self, source: Source, start: int, stop: int, begun: list[Run]) -> list[tuple[Run, int]]:
        """The runs that hold `[start, stop)`, each with the index where the next begins; missing ones are `begun`."""
        runs: list[tuple[Run, int]] = []
        index, last = start // BLOCK, -(-min(stop, source.size) // BLOCK)
        while index < last:
            run = self._cached.get((source, index)) or self._fetching.get((source, index))
            if run is None:
                run = self._begin(source, index, last)
                begun.append(run)
            index += 1
            # Each block is touched on the way, for the order of eviction.
            while index < min(run.last, last) and self._cached.get((source, index), run) is run:
                index += 1
            runs.append((run, index))
        return runs

    def _begin(self, source: Source, index: int, last: int) -> Run:
        stop = index + 1
        while stop < min(last, index + REQUEST // BLOCK):
            if (source, stop) in self._cached or (source, stop) in self._fetching:
                break
            stop += 1
        run = Run(index, stop)
        for at in range(index, stop):
            self._fetching[source, at] = run

        async def fetch() -> None:
            await self._fetch(source, run)

        self._spawn(fetch)
        return run

    async def _fetch(self, source: Source, run: Run) -> None:
        start, stop = run.first * BLOCK, min(run.last * BLOCK, source.size)
        fetched = False
        try:
            run.body = await self._from_disk(source, run) or await self._from_store(source, run, start, stop)
            fetched = True
        except OSError as error:
            run.error = error
        finally:
            if not fetched and run.error is None:
                run.error = OSError(5, "the fetch was cancelled")
            for at in range(run.first, run.last):
                self._fetching.pop((source, at), None)
                if fetched and not run.is_forgotten:
                    self._cached[source, at] = run
            run.done.set()

    async def _from_disk(self, source: Source, run: Run) -> memoryview | None:
        if self.disk is None:
            return None
        return await self.disk.read(source.key, source.etag, source.size, run.first, run.last)

    async def _from_store(self, source: Source, run: Run, start: int, stop: int) -> memoryview:
        answer = await self._store.get(source.key, start, stop, etag=source.etag)
        run.body = answer.body
        self.received_bytes += len(run.body)
        self._to_disk(source, run)
        return run.body

    def _to_disk(self, source: Source, run: Run) -> None:
        if self.disk is not None and not run.is_forgotten:
            disk = self.disk
            self._spawn(lambda: disk.keep(source.key, source.etag, source.size, run.first, run.body))
