"""What a workload gets to work with: its directory, its data, and the clock.

A workload is a function that makes ready, works inside `with stage.clock():`, and tells `stage.expect` what must
then be in the bucket. The clock stops when the writes are in the bucket; the moment before, when the last call
returned, is kept too.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.bare import Bare
from tests.bench.client import Client
from tests.bench.dataset import Dataset
from tests.bench.drive import Drive, drop_page_cache
from tests.bench.material import Material
from tests.bench.process_tree import Usage
from tests.bench.scale import Scale
from tests.bench.through_mount import sizes
from tests.support.proxy import Proxy

MOUNTLESS = Usage(0.0, 0)


class Incomplete(OSError):
    """The system said that all was done, and the bucket says otherwise."""


@dataclass(frozen=True)
class Counted:
    """What passed the proxy: requests by operation, bytes of bodies up and down."""

    requests: dict[str, int]
    sent: int
    received: int


@dataclass(frozen=True)
class Measure:
    """Of one run: seconds until the last call returned, and until the bytes were in the bucket."""

    returned: float
    seconds: float
    usage: Usage
    counted: Counted | None = None
    calls: dict[str, list[float]] = field(default_factory=dict)  # seconds of single calls by kind, where they tell


class Stage:
    """One workload on one system, once. Without a drive it is the bare client's turn.

    The system is mounted when first asked for: data that is made before is there before the mount.
    """

    def __init__(
        self, name: str, bare: Bare, dataset: Dataset, material: Material, drive: Drive | None, proxy: Proxy | None
    ) -> None:
        self.prefix = name  # all that is written lies below it
        self.bare, self.dataset, self.material = bare, dataset, material
        self.scale: Scale = dataset.scale
        self.calls: dict[str, list[float]] = {}  # a workload's own, if it times calls one by one
        self._drive, self._proxy = drive, proxy
        self.measure: Measure | None = None

    @property
    def client(self) -> Client:
        """What puts data there before the mount."""
        return self.dataset.client

    @property
    def drive(self) -> Drive:
        if self._drive is None:
            raise ValueError("the bare client has no mount")
        return self._drive

    @property
    def top(self) -> Path:
        """The mount point, mounted."""
        if not self.drive.started:
            self.client.rest()
            self.drive.start()
        return self.drive.place.mountpoint

    @property
    def home(self) -> Path:
        """An existing directory of this run's own in the mount."""
        path = self.top / self.prefix
        path.mkdir(exist_ok=True)
        return path

    def tops(self, count: int) -> list[Path]:
        """The mount points of so many mounts of the same bucket, this one's first."""
        return [self.top, *(self.drive.twin().place.mountpoint for _ in range(count - 1))]

    def remount(self) -> None:
        """A new mount with the cache directory of the old one."""
        self.drive.remount()

    @contextmanager
    def clock(self) -> Iterator[None]:
        """Measures the block and what it takes for its writes to be in the bucket."""
        if self._drive:
            _ = self.top
            self._drive.reset_peak()
        drop_page_cache()
        if self._proxy:
            self._proxy.settle()
            self._proxy.reset()
        before, start = self._usage(), time.perf_counter()
        yield
        returned = time.perf_counter() - start
        sure = self._drive.settle() if self._drive else 0.0
        seconds = time.perf_counter() - start - sure
        after = self._usage()
        used = Usage(after.cpu - before.cpu, after.peak)
        self.measure = Measure(returned, seconds, used, self._counted(), self.calls)

    def expect(self, files: int, size: int, *, below: str = "") -> None:
        """Raises `Incomplete` unless the bucket holds this many files and bytes below the run's directory."""
        found = self._sizes(f"{self.prefix}/{below}")
        if (len(found), sum(found.values())) != (files, size):
            raise Incomplete(f"in the bucket: {len(found)} files of {files}, {sum(found.values())} bytes of {size}")

    def expect_what_is_seen(self, below: str) -> None:
        """Raises `Incomplete` unless the bucket holds just the files that the mount shows in a directory."""
        prefix = f"{self.prefix}/{below}/"
        shown, found = sizes(self.top, prefix), self._sizes(prefix)
        if len(shown) != len(found) or sum(shown.values()) != sum(found.values()):
            raise Incomplete(f"in the bucket: {len(found)} files of the {len(shown)} in the mount, or of other sizes")

    def _sizes(self, prefix: str) -> dict[str, int]:
        """As another client lists the bucket; where only the system itself can read it, as its mount does."""
        if self._drive and self._drive.system.prepared_by:
            return sizes(self.top, prefix)
        return self.bare.sizes(prefix)

    def expect_bytes(self, name: str, data: bytes, *, at: int) -> None:
        """Raises `Incomplete` unless the bucket's file has these bytes there: of a change inside, no size tells."""
        if not self._holds(f"{self.prefix}/{name}", data, at):
            raise Incomplete(f"in the bucket: {name} without what was written at {at}")

    def _holds(self, key: str, data: bytes, at: int) -> bool:
        if not (self._drive and self._drive.system.prepared_by):
            return self.bare.holds(key, data, at=at)
        with (self.top / key).open("rb") as file:
            file.seek(at)
            return file.read(len(data)) == data

    def _counted(self) -> Counted | None:
        if self._proxy is None:
            return None
        self._proxy.settle()
        traffic = self._proxy.traffic
        return Counted(traffic.tally(), traffic.sent(), traffic.received())

    def _usage(self) -> Usage:
        return self._drive.usage() if self._drive else MOUNTLESS
