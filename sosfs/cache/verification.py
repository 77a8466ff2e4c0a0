"""Compare bytes that came with the checksums of what was stored.

The means, of all bytes of one version: an ETag that is their MD5 (that of a single PUT on a server whose ETags are
hashes, not encrypted with KMS), else a checksum of the full object that the server has recorded (CRC-32, CRC-32C,
CRC-64/NVME, SHA-1, SHA-256; a HEAD asks for it where the answer to a GET did not bring it). What holds then:

- A version of up to `WHOLE` bytes always comes in one request and is hashed before any byte of it is handed out or
  kept, and so does one of up to `blocks.REQUEST` that is read in large pieces (`readahead`). Wrong bytes are asked for
  once more; wrong again is EIO.
- A larger one is hashed while its blocks come, in order, as far as they are here from the first one on; a reader is
  never far ahead of the hash, and waits for its verdict at the end of the file. Bytes that turn out wrong were handed
  out by then and cannot be called back: the read of the end fails with EIO, as does from then on every read of those
  open files that had some of it, and the version is forgotten in memory, on disk and by the kernel. The next open asks
  anew.
- Of a block that went into the hash its CRC-32 is known. When it is fetched again it must be the same.

What cannot be told: bytes of a version that is read in part (a hash is of all), or at random places and never all of
it while it is in memory; of a multipart upload without such a checksum (its ETag is a hash of hashes of parts whose
sizes nobody knows); of objects under KMS or an SSE-C key without one. Their blocks are handed out and kept as they
come. In the disk cache each block has a CRC-32 of its own, against what the disk does to it; that is no proof against
the object's checksum, so a version from the disk is hashed like one from the server each time it is read whole.

Concurrency: trio thread only, but for the hashing, which is done in threads from `INLINE` bytes on.
"""

from __future__ import annotations

import logging
import zlib
from array import array
from collections.abc import Callable
from enum import Enum
from typing import Protocol, TypeVar

import trio
from cachetools import LRUCache

from sosfs.concurrency.threads import LOCAL
from sosfs.config.choices import Verify
from sosfs.errors import StoreError
from sosfs.s3 import checksums
from sosfs.s3.checksums import (
    Checksum,
    Digest,
)
from sosfs.s3.protocol import Detail, Object

T = TypeVar("T")

log = logging.getLogger(__name__)

WHOLE = 1 << 20  # bytes; a version up to this size is never handed out in part before all of it was hashed
INLINE = 32 << 10  # bytes; up to here MD5 (0.6 GB/s) costs no more than the hop to a thread
MOST = 64  # versions whose hash is remembered
SUMS_MAX = 1 << 17  # blocks of one version whose CRC-32 is remembered: 512 KiB of memory
MISSES, REST = 3, 60.0  # after so many objects in a row without a checksum none is asked for it for so many seconds


class Verdict(Enum):
    """What is known of the bytes of a version."""

    OPEN = "open"
    RIGHT = "right"
    WRONG = "wrong"
    UNKNOWABLE = "unknowable"  # the server gave no means


class Fetched(Protocol):
    """What is read: `blocks.Source`."""

    @property
    def key(self) -> str: ...
    @property
    def etag(self) -> str: ...
    @property
    def size(self) -> int: ...


class Store(Protocol):
    """What of an `ObjectStore` tells the means."""

    @property
    def hashes(self) -> bool: ...
    async def head(self, key: str, *, detail: Detail = Detail.USUAL) -> Object: ...


class Verification:
    """The hash of one version, over its blocks in order.

    OPEN --no means--> UNKNOWABLE
      `---all hashed---> RIGHT | WRONG
    """

    __slots__ = ("_block", "_digest", "_expected", "_sums", "hashed", "is_busy", "on_wrong", "size", "step", "verdict")

    def __init__(self, size: int, block: int) -> None:
        self.size = size
        self.hashed = 0  # bytes, from the first on
        self.verdict = Verdict.OPEN
        self.is_busy = False  # a task is hashing
        self.step = trio.Event()  # the next time that one has got on
        self.on_wrong: dict[object, Callable[[], None]] = {}  # what follows where it is wrong, by who asked for that
        self._block = block
        self._expected: Checksum | None = None
        self._digest: Digest | None = None
        self._sums = array("I")

    def begin(self, expected: Checksum | None) -> None:
        """The server's checksum is known, or known not to be had."""
        if expected is None:
            self.verdict = Verdict.UNKNOWABLE
        else:
            self._expected, self._digest = expected, checksums.begun(expected.algorithm)

    @property
    def has_begun(self) -> bool:
        """Whether the checksum is known."""
        return self._digest is not None

    async def add(self, body: memoryview) -> None:
        """Hashes the next whole blocks."""
        await _somewhere(self._add, body, size=len(body))
        self.hashed += len(body)
        self.moved()

    @property
    def is_right(self) -> bool:
        """Whether the hash is what it has to be; for one that is through."""
        assert self.hashed == self.size and self._digest is not None and self._expected is not None
        return self._digest.digest() == self._expected.value

    def _add(self, body: memoryview) -> None:
        assert self._digest is not None
        self._digest.update(body)
        if len(self._sums) < SUMS_MAX:
            self._sums.extend(self._crcs(body))

    def _crcs(self, body: memoryview) -> list[int]:
        return [zlib.crc32(body[at : at + self._block]) for at in range(0, len(body), self._block)]

    async def fits(self, first: int, body: memoryview) -> bool:
        """Whether the blocks from `first` on are those that were hashed, as far as they were."""
        known = self._sums[first : first + -(-len(body) // self._block)].tolist()
        if not known:
            return True
        part = body[: len(known) * self._block]
        return await _somewhere(self._crcs, part, size=len(part)) == known

    def fail(self) -> None:
        """The bytes are wrong: tells whoever asked to be told. Who waits is woken at the end of the hashing."""
        self.verdict = Verdict.WRONG
        while self.on_wrong:
            self.on_wrong.popitem()[1]()

    def moved(self) -> None:
        """Wakes whoever waits for it to get on."""
        self.step.set()
        self.step = trio.Event()


class Verifier:
    """The verification of what is read of one bucket, in blocks of `block` bytes, up to `request` bytes at once."""

    def __init__(self, store: Store, verify: Verify, *, block: int, request: int) -> None:
        self._store = store
        self._verify = verify
        self._block = block
        self._request = request
        self._known: LRUCache[Fetched, Verification] = LRUCache(MOST)
        self._opaque: LRUCache[Fetched, bool] = LRUCache(16 * MOST)  # those whose ETag is no hash
        self._suspect: LRUCache[Fetched, bool] = LRUCache(16 * MOST)  # those that came wrong and can come whole
        self._misses = 0  # objects in a row that no checksum is recorded of
        self._rests_until = 0.0  # nobody is asked for one

    def has_means(self, source: Fetched) -> bool:
        """Whether there may be a checksum to verify this version by."""
        if self._verify is Verify.NONE or not source.size:
            return False
        return self._md5(source) is not None or trio.current_time() >= self._rests_until

    def comes_whole(self, source: Fetched) -> bool:
        """Whether no part of a version is handed out before all of it was hashed: it is small, or came wrong before."""
        return (source.size <= WHOLE or source in self._suspect) and self.has_means(source)

    def of(self, source: Fetched) -> Verification | None:
        """The hash that runs over the blocks of a version, or ran."""
        return self._known.get(source)

    def watch(self, source: Fetched) -> None:
        """Blocks of a version are about to come: from now on it has a hash, where there are means."""
        if source not in self._known and self.has_means(source):
            self._known[source] = Verification(source.size, self._block)

    def condemn(self, source: Fetched) -> None:
        """Bytes of a version came wrong, or differently twice: who has some is told, and the hash begins anew."""
        if source.size <= self._request:
            self._suspect[source] = True
        running = self._known.get(source)
        if running is not None and running.verdict is not Verdict.RIGHT:  # else what came later was wrong
            del self._known[source]
            running.fail()

    async def accepts(self, source: Fetched, first: int, body: memoryview, told: Object | None = None) -> bool:
        """Whether these blocks may be handed out: a whole version is hashed, of others what is known is compared.

        `told` is what the answer says of the object, None for blocks from the disk.
        """
        if told is not None and told.is_opaque:
            self._opaque[source] = True
        if first == 0 and len(body) == source.size:
            return await self._is_right(source, body, told)
        running = self._known.get(source)
        return running is None or await running.fits(first, body)

    async def _is_right(self, source: Fetched, body: memoryview, told: Object | None) -> bool:
        if not self.has_means(source):
            return True
        expected = await self._expected(source, told)
        if expected is None:
            return True
        return await _somewhere(checksums.of, expected.algorithm, body, size=len(body)) == expected.value

    async def begin(self, source: Fetched, running: Verification) -> bool:
        """Finds out what the hash of a version has to be, where that is not known; whether it is now."""
        if not running.has_begun and running.verdict is Verdict.OPEN:
            running.begin(await self._expected(source, None))
        return running.has_begun

    async def judge(self, source: Fetched, running: Verification) -> None:
        """The verdict on a version whose hash is through."""
        if running.is_right:
            running.verdict = Verdict.RIGHT
        else:
            running.verdict = Verdict.UNKNOWABLE if await self.is_opaque(source) else Verdict.WRONG

    async def is_opaque(self, source: Fetched) -> bool:
        """Whether the ETag of a version is no hash, though it looks like one, and nobody knew; now that is known.

        Only asked before it is called wrong: an answer to a GET tells it as well, but not each came by this way.
        """
        if source in self._opaque or self._md5(source) is None:
            return False
        try:
            found = await self._store.head(source.key, detail=Detail.WHOLE)
        except StoreError as error:
            log.debug("nothing is known of the encryption of %s: %s", source.key, error)
            return False
        if found.is_opaque:
            self._opaque[source] = True
        return found.is_opaque

    def _md5(self, source: Fetched) -> Checksum | None:
        return checksums.in_etag(source.etag) if self._store.hashes else None

    async def _expected(self, source: Fetched, told: Object | None) -> Checksum | None:
        if source not in self._opaque and (md5 := self._md5(source)):
            return md5
        if told is not None and told.checksum is not None:
            return told.checksum
        return await self._recorded(source)

    async def _recorded(self, source: Fetched) -> Checksum | None:
        """The checksum that the server has recorded; a failure to ask leaves the version as it would be without."""
        if trio.current_time() < self._rests_until:
            return None
        try:
            found = await self._store.head(source.key, detail=Detail.CHECKSUM)
        except StoreError as error:
            log.debug("no checksum of %s: %s", source.key, error)
            return None
        if found.version.etag != source.etag or found.checksum is None:
            self._misses += 1
            if self._misses >= MISSES:
                self._rests_until = trio.current_time() + REST
            return None
        self._misses = 0
        return found.checksum


async def _somewhere(work: Callable[..., T], *arguments: object, size: int) -> T:
    """Does `work` on `size` bytes here, or in a thread."""
    return work(*arguments) if size <= INLINE else await LOCAL.run(work, *arguments)
