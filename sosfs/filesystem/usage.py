"""`sosfs du`: how much files and trees take in the bucket, summed from listings alone.

A bucket that has kept versions is listed with them, any other without: 1,000 entries a request either way, and no
object is asked for by itself. What a key may not list is not known, and is told as that; only the listing of what is
there must succeed. Concurrency: trio thread only; called off by cancelling it.
"""

from __future__ import annotations

import dataclasses
import errno
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from sosfs.concurrency.tasks import each
from sosfs.errors import Cause, StoreError
from sosfs.filesystem.version_paths import VersionPaths
from sosfs.ipc.commands import Names, Options, Tell, Told
from sosfs.ipc.pending import Change
from sosfs.s3.bucket_settings import Versioning
from sosfs.s3.paging import check_progress
from sosfs.s3.protocol import ObjectStore, Upload
from sosfs.s3.version_history import VersionHistory
from sosfs.tree import keys

BILLED_MIN = 128_000  # bytes that SOS bills of a smaller object
AT_ONCE = 16  # uploads of which the parts are listed side by side
_UNLISTED = frozenset({Cause.DENIED, Cause.UNSUPPORTED})


@dataclass(slots=True)
class Sum:
    """So many of a kind, their bytes, and for how many bytes they are billed."""

    count: int = 0
    size: int = 0
    billed: int = 0

    def add(self, size: int) -> None:
        """One more."""
        self.count += 1
        self.size += size
        self.billed += max(size, BILLED_MIN)

    def add_all(self, others: Sum) -> None:
        """Those of another sum."""
        self.count += others.count
        self.size += others.size
        self.billed += others.billed


@dataclass(slots=True)
class Usage:
    """What a path takes; None where the key may not list it. `delete_markers` have no bytes."""

    objects: Sum = field(default_factory=Sum)
    old_versions: Sum | None = field(default_factory=Sum)
    delete_markers: int | None = 0
    unfinished_uploads: Sum | None = field(default_factory=Sum)
    unsent_changes: int = 0  # of this mount, at the path or below it: not in the sums

    @property
    def is_nothing(self) -> bool:
        """Whether there is nothing of that path."""
        others = self.old_versions, self.unfinished_uploads
        counts = [self.objects.count, self.delete_markers, self.unsent_changes, *(one.count for one in others if one)]
        return not any(counts)


class Versioned(Protocol):
    """`BucketSettings`, as far as it is needed here."""

    async def versioning(self) -> Versioning:
        """Whether old versions are kept."""


class UsageCommand:
    """Sums up what is in a bucket. `changes` are those of the mount that wait at some paths."""

    def __init__(
        self,
        store: ObjectStore,
        history: VersionHistory,
        paths: VersionPaths,
        settings: Versioned,
        changes: Callable[[Sequence[Names]], Sequence[Change]],
    ) -> None:
        self._store = store
        self._history = history
        self._paths = paths
        self._settings = settings
        self._changes = changes

    async def run(self, paths: Sequence[Names], tell: Tell, options: Options) -> Told:
        """Path by path what `Usage` says. Raises OSError ENOENT for one of which there is nothing."""
        usages: list[tuple[str, Told]] = []
        seen = 0

        def listed(count: int) -> None:
            nonlocal seen
            seen += count
            tell({"listed": seen})

        for path in paths:
            shown = os.fsdecode(b"/".join(path))
            usage = await self._usage(self._ranges(path), listed)
            usage.unsent_changes = len(self._changes([path]))
            if path and usage.is_nothing:
                raise OSError(errno.ENOENT, "nothing of it is in the bucket", shown)
            usages.append((shown, dataclasses.asdict(usage)))
        return {"usages": usages}

    def _ranges(self, path: Names) -> list[_Range]:
        """The keys of a path: what lies at its key, and all below that; only the former for an object beside them."""
        key = self._paths.key_of(path)
        if not path:
            return [_Range(key)]
        only = _Range(key, is_whole=True)
        is_beside = keys.parse(path[-1]).form is keys.Form.BESIDE
        return [only] if is_beside else [only, _Range(f"{key}/")]

    async def _usage(self, ranges: Sequence[_Range], listed: Callable[[int], None]) -> Usage:
        usage = Usage()
        keeps_versions = await self._keeps_versions()
        for each_range in ranges:
            if keeps_versions and await _allowed(partial(self._add_versions, usage, each_range, listed)):
                continue
            if keeps_versions:
                keeps_versions, usage.old_versions, usage.delete_markers = False, None, None
            async for size in self._sizes(each_range, listed):
                usage.objects.add(size)
        if not await _allowed(partial(self._add_uploads, usage, ranges)):
            usage.unfinished_uploads = None
        return usage

    async def _keeps_versions(self) -> bool:
        """Whether the bucket may hold versions: a key that may not ask finds out by listing them."""
        try:
            return await self._settings.versioning() is not Versioning.OFF
        except StoreError as error:
            if error.cause not in _UNLISTED:
                raise
            return error.cause is Cause.DENIED

    async def _sizes(self, within: _Range, listed: Callable[[int], None]) -> AsyncIterator[int]:
        token, tokens = "", set[str]()
        while True:
            page = await self._store.list(within.prefix, delimiter="", token=token, limit=within.limit)
            listed(len(page.objects))
            for entry in page.objects:
                if within.has(entry.key):
                    yield entry.version.size
            token = page.token
            if not token or within.ends_before(page.objects[-1].key if page.objects else ""):
                return
            check_progress(f"ListObjectsV2 {within.prefix!r}", token, tokens)

    async def _add_versions(self, usage: Usage, within: _Range, listed: Callable[[int], None]) -> None:
        """Raises StoreError before anything is added where versions may not be listed."""
        assert usage.old_versions is not None
        assert usage.delete_markers is not None
        objects, old_versions, delete_markers = Sum(), Sum(), 0
        async for page in self._history.pages(within.prefix, limit=within.limit):
            listed(len(page.entries))
            for entry in page.entries:
                if not within.has(entry.key):
                    continue
                if entry.is_marker:
                    delete_markers += 1
                else:
                    (objects if entry.is_latest else old_versions).add(entry.version.size)
            if within.ends_before(page.entries[-1].key if page.entries else ""):
                break
        usage.objects.add_all(objects)
        usage.old_versions.add_all(old_versions)
        usage.delete_markers += delete_markers

    async def _add_uploads(self, usage: Usage, ranges: Sequence[_Range]) -> None:
        uploads = await self._store.list_uploads(ranges[0].prefix)
        found = Sum()

        async def measure(upload: Upload) -> None:
            try:
                parts = await self._store.list_parts(upload.key, upload.upload_id)
            except StoreError as error:
                if error.errno == errno.ENXIO:
                    return  # it has ended meanwhile
                raise
            found.count += 1
            found.size += sum(part.size for part in parts)
            found.billed += sum(part.size for part in parts)

        await each(measure, [one for one in uploads if any(part.has(one.key) for part in ranges)], at_once=AT_ONCE)
        usage.unfinished_uploads = found


@dataclass(frozen=True, slots=True)
class _Range:
    """All keys that begin with a prefix, or with `is_whole` the one that is it."""

    prefix: str
    is_whole: bool = False

    @property
    def limit(self) -> int:
        """Entries to ask for at once: what is the prefix itself comes first, with its versions."""
        return 100 if self.is_whole else 1000

    def has(self, key: str) -> bool:
        """Whether a key is in it."""
        return key == self.prefix if self.is_whole else key.startswith(self.prefix)

    def ends_before(self, last: str) -> bool:
        """Whether nothing of it follows after the key `last` of a page."""
        return self.is_whole and last != self.prefix


async def _allowed(listing: Callable[[], Awaitable[None]]) -> bool:
    """Whether the key may list that, and the server can; other failures are raised."""
    try:
        await listing()
    except StoreError as error:
        if error.cause not in _UNLISTED:
            raise
        return False
    return True
