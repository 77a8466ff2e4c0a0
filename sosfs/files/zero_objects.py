"""Objects of zeros in the bucket, of which the server copies the holes of files.

    nothing --a large hole is to be stored--> made --unused for a while, the drain, or the next mount--> removed

Of the first one 8 MiB are sent; larger ones are joined of copies of it, so that a file of any size costs no more bytes
than that. Each has a key of its own that no other mount knows, in the journal before anything is stored there; no
listing shows it (`tree.listing_merge`), and `sosfs clean` finds it should the journal be lost. Where nothing could be
removed again, where the server cannot copy a part or where a copy turns out to have another hash than those before,
there are none, and zeros are sent.

Concurrency: trio thread only; one is made at a time.
"""

from __future__ import annotations

import errno
import logging
import math
from bisect import bisect_right
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import md5
from typing import TYPE_CHECKING

import trio

from sosfs.cache.blocks import Source, Spawn
from sosfs.concurrency.locks import FairLock
from sosfs.concurrency.tasks import each
from sosfs.concurrency.threads import LOCAL
from sosfs.errors import SERVER_FAILED, Cause, StoreError
from sosfs.journal.journal import Journal
from sosfs.journal.multipart_uploads import MultipartUploads
from sosfs.s3 import scratch_key
from sosfs.s3.file_body import PIECE
from sosfs.s3.protocol import Check, ObjectStore, Part, Version

if TYPE_CHECKING:
    from hashlib import _Hash as Md5  # as typeshed calls it

log = logging.getLogger(__name__)

SEED = 8 << 20  # bytes that are sent
COPIES_AT_ONCE = 16
KEPT = 60.0  # seconds after the last use for which one stays for the next file
REFUSED = 600.0  # seconds for which zeros are sent after the server has refused to copy them


@dataclass(eq=False, slots=True)
class _Lent:
    """One object, and how many use it."""

    source: Source
    users: int = 0
    rested: float = 0.0  # trio time since when nobody uses it


class ZeroHashes:
    """The MD5 of so many zeros, each computed on from the next shorter one."""

    def __init__(self) -> None:
        self._turn = FairLock()  # of sixteen copies of one size only the first has it computed
        self._sizes = [0]
        self._states = [md5(usedforsecurity=False)]

    async def of(self, size: int) -> str:
        """In hex."""
        async with self._turn:
            at = bisect_right(self._sizes, size) - 1
            if self._sizes[at] != size:
                state = await LOCAL.run(_and_zeros, self._states[at], size - self._sizes[at])
                at += 1
                self._sizes.insert(at, size)
                self._states.insert(at, state)
            return self._states[at].hexdigest()


class ZeroObjects:
    """The objects of zeros of one mount, under `prefix`."""

    def __init__(
        self, store: ObjectStore, journal: Journal, multiparts: MultipartUploads, spawn: Spawn, prefix: str
    ) -> None:
        self._store = store
        self._journal = journal
        self._multiparts = multiparts
        self._spawn = spawn
        self._prefix = prefix
        self._here: list[_Lent] = []
        self._making = FairLock()
        self._hashes = ZeroHashes()
        self._compares: bool | None = None  # whether copies have the MD5 of their bytes; None until one is made
        self._refused_until = -math.inf
        self._sweeps = False

    @asynccontextmanager
    async def lent(self, size: int) -> AsyncIterator[Source | None]:
        """An object of at least `size` zeros for the length of the block; None where zeros have to be sent.

        Raises what keeps the server from answering.
        """
        one = await self._of(size) if size else None
        if one is None:
            yield None
            return
        one.users += 1
        try:
            yield one.source
        finally:
            one.users -= 1
            one.rested = trio.current_time()
            self._sweep_later()

    async def _of(self, size: int) -> _Lent | None:
        if not self._store.leaves_no_trace or trio.current_time() < self._refused_until:
            return None
        async with self._making:
            fitting = [one for one in self._here if one.source.size >= size]
            if fitting:
                return min(fitting, key=lambda one: one.source.size)
            try:
                return await self._made_anew(size)
            except StoreError as error:
                if not is_gone(error) and not is_refusal(error):
                    raise
                self.refused(error)
                return None

    async def _made_anew(self, size: int) -> _Lent:
        try:
            return await self._made(size)
        except StoreError as error:
            if not is_gone(error):
                raise
            return await self._made(size)  # somebody had removed the smaller one

    async def _made(self, size: int) -> _Lent:
        key = scratch_key.of_zeros(self._prefix)
        self._journal.add_scratch(key)
        # Where this fails, the row stays until the drain: what got no answer may be stored later.
        source = await (self._sent(key, size) if size <= SEED else self._joined(key, size))
        one = _Lent(source, rested=trio.current_time())
        self._here.append(one)
        self._sweep_later()
        return one

    async def _sent(self, key: str, size: int) -> Source:
        version = await self._store.put(key, bytes(size), scratch_key.PROOF)
        return Source(key, version.etag, size)

    async def _joined(self, key: str, size: int) -> Source:
        """Made of copies of a smaller one."""
        seed = max((one for one in self._here), key=lambda one: one.source.size, default=None)
        seed = seed or await self._made(SEED)
        upload_id = await self._multiparts.begin(key, scratch_key.PROOF)
        seed.users += 1
        parts: list[Part] = []
        step = seed.source.size

        async def copy(number: int) -> None:
            length = min(step, size - (number - 1) * step)
            parts.append(await self.copied(key, upload_id, number, seed.source, length))

        try:
            await each(copy, range(1, -(-size // step) + 1), at_once=COPIES_AT_ONCE)
            version = await self._store.complete_multipart(key, upload_id, parts)
        except BaseException:
            with trio.CancelScope(shield=True):
                await self._multiparts.abort(key, upload_id)
            raise
        finally:
            seed.users -= 1
            seed.rested = trio.current_time()
        self._multiparts.ended(upload_id)
        return Source(key, version.etag, size)

    async def copied(self, key: str, upload_id: str, number: int, source: Source, size: int) -> Part:
        """Part `number` of an upload, made of `size` zeros by the server.

        Raises StoreError: EOPNOTSUPP where it has another hash, and what the server says to it.
        """
        if self._store.hashes and self._compares is not False:
            part = await self._copy(key, upload_id, number, source, size, Check.BY_HASH)
            if part.etag == await self._hashes.of(size):
                self._compares = True
                return part
            if self._compares:
                wrong = f"the copy of {size} zeros has the ETag {part.etag}"
                raise StoreError(errno.EOPNOTSUPP, f"UploadPartCopy {source.key!r} to {key!r}", detail=wrong)
            self._compares = False
        return await self._copy(key, upload_id, number, source, size, Check.AT_ONCE)

    async def _copy(self, key: str, upload_id: str, number: int, source: Source, size: int, check: Check) -> Part:
        version = Version(source.etag, source.size)
        try:
            return await self._store.copy_part(key, upload_id, number, source.key, version, 0, size, check=check)
        except StoreError as error:
            if is_gone(error):
                self._lost(source)
            raise

    def refused(self, error: StoreError) -> None:
        """The server does not copy zeros: for a while they are sent."""
        if trio.current_time() >= self._refused_until:
            log.info("holes of files are sent as zeros for now: %s", error)
        self._refused_until = trio.current_time() + REFUSED

    def _lost(self, source: Source) -> None:
        """An object is not there any more, or not as it was made; what stands there is removed."""
        for one in [one for one in self._here if one.source == source]:
            self._here.remove(one)
            self._spawn(lambda: self._remove(source.key))

    # Their end

    def _sweep_later(self) -> None:
        if not self._sweeps:
            self._sweeps = True
            self._spawn(self._sweep)

    async def _sweep(self) -> None:
        try:
            while self._here:
                await trio.sleep(KEPT)
                await self._remove_unused(trio.current_time() - KEPT)
        finally:
            self._sweeps = False

    async def _remove_unused(self, since: float) -> None:
        async with self._making:
            gone = [one for one in self._here if not one.users and one.rested <= since]
            self._here = [one for one in self._here if one not in gone]
        for one in gone:
            await self._remove(one.source.key)

    async def _remove(self, key: str) -> None:
        """Removes an object; what fails is done by the drain, or the next mount. Never raises OSError."""
        try:
            await self._store.purge(key)
        except OSError as error:
            log.info("an object of zeros stays for now: %s", error)
            return
        self._journal.drop_scratch(key)

    async def drain(self) -> None:
        """Removes all that nobody uses; what fails stays in the journal."""
        await self._remove_unused(trio.current_time())
        await self.clear()

    async def clear(self) -> None:
        """Removes what an earlier mount has left, or a try that failed."""
        async with self._making:  # what is being made is in the journal before it is among these
            used = {one.source.key for one in self._here}
            unused = [key for key in self._journal.scratch() if key not in used]
        for key in unused:
            await self._remove(key)


def is_refusal(error: StoreError) -> bool:
    """Whether the server says that it does not do this, and would say so again."""
    if error.elsewhere:
        return error.status < SERVER_FAILED  # an answer that makes no sense, as of one that knows no copies of parts
    return error.cause in (Cause.DENIED, Cause.UNSUPPORTED) or error.errno == errno.EINVAL


def is_gone(error: StoreError) -> bool:
    """Whether the object that was to be copied is not what it was."""
    return error.cause in (Cause.ABSENT, Cause.CONFLICT)


def _and_zeros(shorter: Md5, size: int) -> Md5:
    state, zeros = shorter.copy(), bytes(PIECE)
    for at in range(0, size, PIECE):
        state.update(zeros if size - at >= PIECE else zeros[: size - at])
    return state
