"""Share memory and disk among buckets, blocks, names and drafts.

A mount of one bucket has the `whole`. Where all buckets of an account are mounted they have it together, so that
the limits a user sets are those of the mount however many buckets are in use: the blocks of all are in one memory
and one directory, under names that hold the bucket's, and whichever was not used for longest goes first.

| who holds bytes in memory | at most | counted by |
|---|---|---|
| blocks that were read | `--memory` | `cache.blocks`, the longest unused goes |
| names: inodes, their attributes | `NAMES` times that | `namespace.eviction` |
| small drafts | `DRAFTS` together | `Allowance`; what gets none goes to disk (`files.spool`) |
| bodies on their way up | `UPLOADS` together | `Budget`; a large part is sent from its file (`s3.file_body`) |
| answers on their way down | what was asked for; a document 64 MiB | `s3.http_messages.Room` |
| blocks of old versions | 32 MiB, while they are read | `control.versions` |
| S3 requests side by side | `--transfers` | `s3.limits` |

Concurrency: trio thread only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sosfs.cache import block_fetch
from sosfs.cache.blocks import BLOCK, Cached, Run, Source, memory_of
from sosfs.cache.disk_blocks import DiskCache
from sosfs.concurrency.budgets import Allowance, Backlog, Budget
from sosfs.config.parameters import Durability, Settings
from sosfs.disk.free_space import Disk
from sosfs.files import spool

NAME = 1 << 10  # bytes that a listed name takes; measured 940 in a directory of 100,000
NAMES = 2  # times the memory for blocks: how much names may take, in each bucket
ROWS_SHARE = 8  # of a small disk, the part that small drafts in the journal may take
UPLOADS = 64 << 20  # bytes of bodies on their way up
DRAFTS = 32 << 20  # bytes of small drafts


@dataclass(frozen=True, slots=True)
class Quota:
    """What one bucket has of its mount's memory and disk."""

    cached: Cached
    disk: block_fetch.Disk | None
    uploads: Budget
    drafts: Allowance  # for small ones kept in memory
    backlog: Backlog
    names: int  # inodes

    @property
    def changes(self) -> int:
        """Bytes of small drafts in memory and of bodies on their way up."""
        return self.drafts.used + self.uploads.used


def names_of(settings: Settings) -> int:
    """How many names one bucket may keep."""
    return NAMES * settings.memory // NAME


def whole(settings: Settings) -> Quota:
    """All of it, for the one bucket of a mount."""
    disk = _disk(settings, settings.state_dir)
    return Quota(
        memory_of(settings.memory),
        disk,
        Budget(UPLOADS),
        _drafts(settings, settings.state_dir),
        Backlog(),
        names_of(settings),
    )


def _disk(settings: Settings, directory: Path) -> DiskCache | None:
    if not settings.cache_size:
        return None
    kept = settings.cache_free
    # Writers find room short above what is kept: blocks keep out of that too, and so give way before them.
    floor = (lambda size: kept.of(size) + spool.floor(size)) if kept else None
    return DiskCache(directory / "blocks", capacity=settings.cache_size, block=BLOCK, floor=floor)


def _drafts(settings: Settings, directory: Path) -> Allowance:
    """Of small drafts in memory. With the journal they go into its rows, and a database never shrinks."""
    if settings.durability is Durability.BUCKET:
        return Allowance(DRAFTS)
    return Allowance(min(DRAFTS, Disk(directory).room().size // ROWS_SHARE))


class Quotas:
    """What the buckets of one mount have together."""

    def __init__(self, settings: Settings, directory: Path) -> None:
        self.uploads = Budget(UPLOADS)
        self._blocks = memory_of(settings.memory)
        self._disk = _disk(settings, directory)
        self._drafts = _drafts(settings, directory)
        self._backlog = Backlog()
        self._names = names_of(settings)

    @property
    def changes(self) -> int:
        """As `Quota.changes`."""
        return self._drafts.used + self.uploads.used

    def of(self, bucket: str) -> Quota:
        """The share of one bucket."""
        disk = _Shelf(self._disk, bucket) if self._disk is not None else None
        return Quota(_Part(self._blocks, bucket), disk, self.uploads, self._drafts, self._backlog, self._names)


class _Part(MutableMapping[tuple[Source, int], Run]):
    """One bucket's blocks among those of all."""

    def __init__(self, whole: MutableMapping[Any, Run], bucket: str) -> None:
        self._whole = whole
        self._bucket = bucket

    def __getitem__(self, block: tuple[Source, int]) -> Run:
        return self._whole[self._bucket, *block]

    def __setitem__(self, block: tuple[Source, int], run: Run) -> None:
        self._whole[self._bucket, *block] = run

    def __delitem__(self, block: tuple[Source, int]) -> None:
        del self._whole[self._bucket, *block]

    def __iter__(self) -> Iterator[tuple[Source, int]]:
        return ((source, at) for bucket, source, at in list(self._whole) if bucket == self._bucket)

    def __len__(self) -> int:
        return sum(1 for _ in self)


class _Shelf:
    """One bucket's blocks in the directory of all."""

    def __init__(self, whole: DiskCache, bucket: str) -> None:
        self._whole = whole
        self._bucket = bucket

    async def read(self, key: str, etag: str, size: int, first: int, last: int) -> memoryview | None:
        """As `DiskCache.read`."""
        return await self._whole.read(f"{self._bucket}/{key}", etag, size, first, last)

    async def keep(self, key: str, etag: str, size: int, first: int, body: memoryview) -> None:
        """As `DiskCache.keep`."""
        await self._whole.keep(f"{self._bucket}/{key}", etag, size, first, body)

    @property
    def capacity(self) -> int:
        """As `DiskCache.capacity`: of all buckets together."""
        return self._whole.capacity

    def give_way(self, size: int) -> int:
        """As `DiskCache.give_way`: of all buckets."""
        return self._whole.give_way(size)

    async def store(self, key: str, etag: str, size: int, first: int, body: memoryview) -> bool:
        """As `DiskCache.store`."""
        return await self._whole.store(f"{self._bucket}/{key}", etag, size, first, body)

    async def missing(self, key: str, etag: str, size: int) -> list[tuple[int, int]]:
        """As `DiskCache.missing`."""
        return await self._whole.missing(f"{self._bucket}/{key}", etag, size)

    async def forget(self, versions: Iterable[tuple[str, str, int]]) -> int:
        """As `DiskCache.forget`."""
        return await self._whole.forget((f"{self._bucket}/{key}", etag, size) for key, etag, size in versions)

    async def forget_all(self, *, but: Iterable[tuple[str, str, int]]) -> int:
        """As `DiskCache.forget_all`, of all buckets: the names on the disk do not tell whose they are."""
        return await self._whole.forget_all(but=((f"{self._bucket}/{key}", etag, size) for key, etag, size in but))
