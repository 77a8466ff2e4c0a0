"""Fetch blocks of one version from disk or store, and once more where they are damaged.

Of several blocks of a larger version one answer alone cannot tell that they are wrong, but for what was hashed before
(`verification`); `Blocks` lets the hash run over them once they are here.

Concurrency: trio thread only.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterable
from typing import Protocol

from sosfs.cache.verification import Fetched, Verdict, Verification, Verifier
from sosfs.errors import StoreError, unanswered
from sosfs.s3.protocol import Object, ObjectStore, Slice
from sosfs.tracing.meters import METERS

log = logging.getLogger(__name__)


class Disk(Protocol):
    """Where blocks are kept over restarts: a `DiskCache`, or one bucket's share of it."""

    @property
    def capacity(self) -> int:
        """How many bytes fit there."""

    def give_way(self, size: int) -> int:
        """Forgets so many bytes; how many that were."""

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


class BlockFetch:
    """Brings blocks of `block` bytes, up to `request` bytes at once. `forget` is told what was found wrong."""

    def __init__(
        self,
        store: ObjectStore,
        disk: Disk | None,
        verifier: Verifier,
        forget: Callable[[Fetched], None],
        *,
        block: int,
        request: int,
    ) -> None:
        self.received_bytes = 0
        self.disk_hits, self.disk_asked = 0, 0  # fetches that the disk cache answered, and those it was asked for
        self._store = store
        self._disk = disk
        self._verifier = verifier
        self._forget = forget
        self._block = block
        self._request = request

    async def bring(self, source: Fetched, first: int, last: int) -> tuple[memoryview, bool]:
        """The blocks `[first, last)`, and whether they are not on the disk yet. Raises EIO for wrong ones."""
        if self._disk is not None:
            self.disk_asked += 1
            body = await self._disk.read(source.key, source.etag, source.size, first, last)
            is_good = body is not None and await self._verifier.accepts(source, first, body)
            METERS.disk_reads[is_good] += 1
            if body is not None and is_good:
                self.disk_hits += 1
                return body, False
            if body is not None:
                log.info("%s is wrong in the disk cache, and fetched again", source.key)
                await self._forget_on_disk(source)
        return (await self._get(source, first, last)).body, True

    async def _get(self, source: Fetched, first: int, last: int) -> Slice:
        """The blocks `[first, last)` from the store, twice where they are wrong. Raises EIO where they stay so."""
        start, stop = first * self._block, min(last * self._block, source.size)
        answer = await self._ask(source, start, stop)
        if await self._verifier.accepts(source, first, answer.body, answer.object):
            return answer
        log.info("%s: bytes %d to %d came wrong, and are fetched again", source.key, start, stop)
        answer = await self._ask(source, start, stop)
        if await self._verifier.accepts(source, first, answer.body, answer.object):
            return answer
        if await self._verifier.is_opaque(source) and await self._verifier.accepts(source, first, answer.body):
            return answer
        await self.drop(source)
        raise wrong(source)

    async def _ask(self, source: Fetched, start: int, stop: int) -> Slice:
        answer = await self._store.get(source.key, start, stop, etag=source.etag)
        self.received_bytes += len(answer.body)
        if len(answer.body) != stop - start:  # of the same bytes another size is told: the file was cut off
            raise unanswered(f"GetObject {source.key!r}", f"{len(answer.body)} bytes where {stop - start} were due")
        return answer

    async def lay_up(self, source: Fetched, first: int, last: int) -> Object:
        """Fetches the blocks `[first, last)` onto the disk, past the memory; what the answer says of the object.

        Raises ENOSPC where the disk cache has no room for them, and what the fetch raises.
        """
        if self._disk is None:
            raise OSError(errno.ENOSPC, "there is no disk cache")
        answer = await self._get(source, first, last)
        if not await self._disk.store(source.key, source.etag, source.size, first, answer.body):
            raise OSError(errno.ENOSPC, "the disk cache has no room")
        return answer.object

    async def verify_on_disk(self, source: Fetched) -> bool:
        """Whether nothing speaks against a version that was laid up in several pieces; a wrong one is not kept."""
        running = Verification(source.size, self._block)
        if (
            self._disk is None
            or not self._verifier.has_means(source)
            or not await self._verifier.begin(source, running)
        ):
            return True
        while running.hashed < source.size:
            stop = min(running.hashed + self._request, source.size)
            first, last = running.hashed // self._block, -(-stop // self._block)
            body = await self._disk.read(source.key, source.etag, source.size, first, last)
            if body is None:
                return True  # evicted since, or damaged on the disk: it is fetched when it is read
            await running.add(body)
        await self._verifier.judge(source, running)
        if running.verdict is Verdict.WRONG:
            await self.drop(source)
        return running.verdict is not Verdict.WRONG

    async def drop(self, source: Fetched) -> None:
        """Keeps nothing of a version that was found wrong."""
        log.error("%s: its bytes came without the checksum that the server gives for ETag %s", source.key, source.etag)
        self._verifier.condemn(source)
        self._forget(source)
        await self._forget_on_disk(source)

    async def _forget_on_disk(self, source: Fetched) -> None:
        if self._disk is not None:
            await self._disk.forget([(source.key, source.etag, source.size)])


def wrong(source: Fetched) -> StoreError:
    """EIO for a version whose bytes are not those that were stored."""
    detail = "the bytes do not have the checksum that the server gives (--verify none reads them anyway)"
    return StoreError(errno.EIO, f"GetObject {source.key!r}", detail=detail)
