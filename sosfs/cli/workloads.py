"""What `sosfs bench` does to a directory, and how it is timed.

One large file is written, and counts as written when the directory is synced too, for that is when a mount has it in
the bucket; then read cold, again, and at random places. After that small files, with one thread and with many, each
thread in a directory of its own: created, listed, asked for their attributes, read cold and again, removed.

Plain system calls, so any directory can be measured. `forget` is what makes a read cold. Blocking; `Bench.stop` may be
set from anywhere, and ends a measurement soon.
"""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import partial
from pathlib import Path
from threading import Event
from typing import ParamSpec

CHUNK = 1 << 20  # bytes of one read or write of the large file
SMALL = 4096  # bytes of a small file, and of a read at a random place
PLACES = 64  # reads at random places

P = ParamSpec("P")


class Group(Enum):
    """What is measured."""

    LARGE = "large file"
    SMALL = "small files"


@dataclass(frozen=True, slots=True)
class Measured:
    """One line of the result. `seconds` is for all `operations`, `latencies` are of single calls, in seconds."""

    name: str
    group: Group
    threads: int
    operations: int
    bytes: int  # 0 where none are moved
    seconds: float
    latencies: tuple[float, ...]

    @property
    def rate(self) -> float:
        """Operations in a second."""
        return self.operations / self.seconds

    def within(self, share: float) -> float:
        """Seconds that this share of the calls took at most."""
        return sorted(self.latencies)[max(0, math.ceil(share * len(self.latencies)) - 1)]


@dataclass(frozen=True, slots=True)
class Extent:
    """How much is measured: bytes of the large file, number of small files, threads."""

    size: int
    files: int
    threads: int

    @property
    def room(self) -> int:
        """Bytes that it needs at one time."""
        return self.size + self.files * SMALL


class StoppedError(Exception):
    """The measurement was called off."""


Work = Callable[[str], Measured]


@dataclass(slots=True)
class Bench:
    """The measurements in a directory that is empty and stays so but for what they are about."""

    directory: Path
    extent: Extent
    forget: Callable[[], None]
    stop: Event = field(default_factory=Event)

    def measurements(self) -> Iterator[tuple[str, Callable[[], Measured]]]:
        """What is to be measured, in this order, each with a name for whoever waits for it."""
        for name, work in self._large():
            yield f"{Group.LARGE.value}: {name}", partial(work, name)
        for threads in sorted({1, self.extent.threads}):
            for name, small in self._small(threads):
                yield f"{Group.SMALL.value}, {threads} at a time: {name}", partial(small, name)

    # One large file

    def _large(self) -> Iterator[tuple[str, Work]]:
        yield "write until stored", self._write
        yield "read, cold", self._read_cold
        yield "read again", self._read
        yield "read 4 KiB anywhere, cold", self._read_places

    @property
    def _path(self) -> Path:
        return self.directory / "large"

    def _chunks(self) -> Iterator[tuple[int, int]]:
        for start in range(0, self.extent.size, CHUNK):
            yield start, min(CHUNK, self.extent.size - start)

    def _write(self, name: str) -> Measured:
        block = bytearray(random.Random(0).randbytes(CHUNK))
        begun = time.perf_counter()
        latencies = []
        with self._path.open("xb", buffering=0) as file:
            for start, size in self._chunks():
                block[:8] = start.to_bytes(8, "big")  # no two chunks are alike
                latencies.append(self._timed(_write_all, file.fileno(), memoryview(block)[:size]))
            os.fsync(file.fileno())
        _sync(self.directory)
        return Measured(name, Group.LARGE, 1, len(latencies), self.extent.size, _since(begun), tuple(latencies))

    def _read_cold(self, name: str) -> Measured:
        self.forget()
        return self._read(name)

    def _read(self, name: str) -> Measured:
        begun = time.perf_counter()
        with self._path.open("rb", buffering=0) as file:
            latencies = [self._timed(_read_all, file.fileno(), start, size) for start, size in self._chunks()]
        return Measured(name, Group.LARGE, 1, len(latencies), self.extent.size, _since(begun), tuple(latencies))

    def _read_places(self, name: str) -> Measured:
        self.forget()
        dice, size = random.Random(1), min(SMALL, self.extent.size)
        places = [dice.randrange(self.extent.size - size + 1) for _ in range(PLACES)]
        begun = time.perf_counter()
        with self._path.open("rb", buffering=0) as file:
            latencies = [self._timed(_read_all, file.fileno(), place, size) for place in places]
        seconds = _since(begun)
        self._path.unlink()
        return Measured(name, Group.LARGE, 1, PLACES, PLACES * size, seconds, tuple(latencies))

    # Small files

    def _small(self, threads: int) -> Iterator[tuple[str, Work]]:
        body = random.Random(2).randbytes(SMALL)
        quotas = [range(at, self.extent.files, threads) for at in range(min(threads, self.extent.files))]
        tops = [self.directory / f"{threads}-{at}" for at in range(len(quotas))]
        paths = [[top / f"{number:06d}" for number in share] for top, share in zip(tops, quotas, strict=True)]

        def each(call: Callable[[Path], object], size: int = 0) -> Work:
            return lambda name: self._side_by_side(name, call, paths, size=size)

        def cold(work: Work) -> Work:
            def run(name: str) -> Measured:
                self.forget()
                return work(name)

            return run

        def make(name: str) -> Measured:
            for top in tops:
                top.mkdir()
            return each(lambda path: path.write_bytes(body), SMALL)(name)

        def show(name: str) -> Measured:
            listed = self._side_by_side(name, lambda top: list(os.scandir(top)), [[top] for top in tops])
            return replace(listed, operations=self.extent.files)

        yield "create until stored", make
        yield "list, cold", cold(show)
        yield "stat, listed", each(lambda path: path.stat())
        yield "read, cold", cold(each(lambda path: path.read_bytes(), SMALL))
        yield "read again", each(lambda path: path.read_bytes(), SMALL)
        yield "remove", each(lambda path: path.unlink())

    def _side_by_side(
        self, name: str, call: Callable[[Path], object], paths: Sequence[Sequence[Path]], *, size: int = 0
    ) -> Measured:
        """Makes the call for all paths, each list of them in a thread of its own; done when it is synced."""

        def run(share: Sequence[Path]) -> list[float]:
            return [self._timed(call, path) for path in share]

        begun = time.perf_counter()
        with ThreadPoolExecutor(len(paths)) as pool:
            try:
                latencies = [each for share in pool.map(run, paths) for each in share]
            except BaseException:
                self.stop.set()
                raise
        _sync(self.directory)
        return Measured(
            name, Group.SMALL, len(paths), len(latencies), len(latencies) * size, _since(begun), tuple(latencies)
        )

    def _timed(self, call: Callable[P, object], *arguments: P.args, **named: P.kwargs) -> float:
        if self.stop.is_set():
            raise StoppedError
        begun = time.perf_counter()
        call(*arguments, **named)
        return _since(begun)


def _since(begun: float) -> float:
    return max(time.perf_counter() - begun, 1e-9)


def _write_all(file: int, body: memoryview) -> None:
    while body:
        body = body[os.write(file, body) :]


def _read_all(file: int, start: int, size: int) -> None:
    while size:
        body = os.pread(file, size, start)
        if not body:
            raise OSError(5, "the file is shorter than it was written")
        start, size = start + len(body), size - len(body)


def _sync(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
