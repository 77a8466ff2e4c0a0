"""Turn a draft into an object: one PUT, or a multipart upload that runs while it is written.

A part that was written over is sent again. Where room is short the bytes of a part that was sent are freed; they are
in no other place then, until the whole is completed. Ranges that are still as in the old version are copied on the
server: neighbours in one request, up to a sixteenth of the file. The condition on the whole then tells that they were
of this version, and the end of a file that grew stays at hand, since what is appended next is sent with it.
Part numbers may have gaps (S3 API, UploadPart), so a merged copy takes the number of its first part and the numbers of
the others stay unused. An upload that fails keeps what it has sent for the next try.

Concurrency: trio thread only, one `finish` at a time for a draft; parts are sent side by side within a
budget of bytes.
"""

from __future__ import annotations

import contextlib
import errno
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import md5

import trio

from sosfs.cache.blocks import Blocks, Source, Spawn
from sosfs.concurrency.budgets import Budget
from sosfs.concurrency.interrupt import waited
from sosfs.concurrency.locks import FairLock
from sosfs.concurrency.tasks import each
from sosfs.errors import StoreError
from sosfs.files.draft import Draft
from sosfs.files.extents import Extents
from sosfs.files.part_ranges import PartPlan, Range, plan_of
from sosfs.journal.multipart_uploads import MultipartUploads
from sosfs.journal.rows import SavedPart
from sosfs.s3 import recognition
from sosfs.s3.http_headers import joined_etag
from sosfs.s3.protocol import Acl, Check, Condition, Guard, ObjectStore, Part, Properties, Version

log = logging.getLogger(__name__)

PARTS_AT_ONCE = 16  # parts of one upload; a copy of the whole is shared among as many, 1.3x as fast at 32 MiB on Ceph
COPY_MAX = 1 << 30  # bytes of one UploadPartCopy; up to 5 GiB is legal
END_MAX = 1 << 20  # bytes that stay at hand of the last part; more of it is fetched while the rest is copied
CHUNK = 1 << 20  # bytes in memory of a part that is sent from its file: a third less CPU than with all of it there
BEHIND = 4  # parts of one file under way behind its writer


Announce = Callable[[str], None]  # is told the token of the object to be (`recognition`)


def etag_of(body: bytes | memoryview) -> str:
    """The ETag of an object that one PUT makes: a content hash (SOS, as S3 without KMS)."""
    return md5(body, usedforsecurity=False).hexdigest()


class Truncated(OSError):
    """The file was cut, by another process, below what was being sent: what was begun must not be finished."""

    def __init__(self, key: str) -> None:
        super().__init__(errno.EAGAIN, f"{key} was truncated while it was sent")


@dataclass(frozen=True, slots=True)
class _Sent:
    part: Part
    range: Range
    serial: int  # of the draft, when its bytes were read
    check: Check = Check.AT_ONCE  # whether it may be used by another `finish` than the one that made it
    body: bytes | memoryview = b""  # of a short part, which can only be the last one


class Uploader:
    """What all uploads of a mount share."""

    def __init__(
        self,
        store: ObjectStore,
        blocks: Blocks,
        spawn: Spawn,
        budget: Budget,
        plan: PartPlan,
        multiparts: MultipartUploads,
    ) -> None:
        self.store = store
        self.blocks = blocks
        self.spawn = spawn
        self.budget = budget
        self.plan = plan
        self.multiparts = multiparts
        self.sent_bytes = 0
        self.failures = 0  # of parts behind a writer
        self.keeping = 0  # renames under way: what is freed is bound to the key


class Upload:
    """The multipart upload of one draft to one key."""

    def __init__(self, uploader: Uploader, draft: Draft, key: str, properties: Properties, acl: Acl | None) -> None:
        self.key = key
        self.properties = properties
        self.acl = acl
        self._shared = uploader
        self._plan = uploader.plan
        self._draft = draft
        self._piece = max(1, min(COPY_MAX, draft.base.size // PARTS_AT_ONCE if draft.base else 0))
        self._id = ""
        self._begin = FairLock()
        self._condition: Condition = Guard.NONE  # under which the object will be made
        self._sent: dict[int, _Sent] = {}
        self._made: set[int] = set()  # parts that the server has, up to date or not
        self._changed: dict[int, int] = {}  # part number -> serial of the last write into it
        self._behind: set[int] = set()
        self._here: set[int] = set()  # of those that were sent behind the writer, whose bytes are here too
        self._frontier = 0  # below it every full part is sent or on its way
        self._writer = 0  # offset behind which full parts may go up; 0 while `finish` sends them itself
        self._idle = trio.Event()
        self._idle.set()

    def written(self, start: int, stop: int) -> None:
        """The draft changed in `[start, stop)`: parts sent of it are out of date."""
        plan, serial = self._plan, self._draft.serial
        for number in range(plan.at(start).number, plan.at(max(start, stop - 1)).number + 1):
            self._changed[number] = serial
            self._sent.pop(number, None)
        self._frontier = min(self._frontier, plan.at(start).start)

    def follow(self, offset: int) -> None:
        """Sends full parts that the writer, now at `offset`, has left behind, and goes on while it rests."""
        self._writer = offset
        if len(self._behind) >= BEHIND:
            return
        here = self._plan.at(offset)
        for part in self._plan.ranges(here.start, begin=self._frontier):
            if part.number in self._sent or part.number in self._behind:
                self._frontier = part.stop if part.start == self._frontier else self._frontier
                continue
            if not self._draft.dirty.covers(part.start, part.stop):
                continue
            self._behind.add(part.number)
            self._idle = trio.Event() if self._idle.is_set() else self._idle
            self._shared.spawn(lambda part=part: self._send_behind(part))  # type: ignore[misc]
            if len(self._behind) >= BEHIND:
                return

    @property
    def is_behind(self) -> bool:
        """Whether parts are on their way behind the writer."""
        return bool(self._behind)

    @property
    def freed(self) -> tuple[SavedPart, ...]:
        """The parts whose bytes are nowhere else."""
        sent = ((one.part.etag, one.range) for one in self._sent.values() if self._draft.away)
        return tuple((r.number, e, r.start, r.stop) for e, r in sent if self._draft.away.covers(r.start, r.stop))

    def free(self, *, first: bool = False) -> bool:
        """Frees the bytes of parts sent behind the writer; whether any. The `first` one's apart: headers come last."""
        if self._shared.keeping or self._draft.is_committing:
            return False
        here = sorted(self._here & self._sent.keys())  # memory is freed from below
        ranges = [self._sent[number].range for number in here if (number != 1) != first]
        gone = [part.number for part in ranges if self._draft.part_with(part.start, part.stop)]
        self._here.difference_update(gone)
        return bool(gone)

    def confirmed(self, ranges: Iterable[tuple[int, int]]) -> int:
        """How many bytes of these ranges the server has in parts that are up to date."""
        sent = Extents((one.range.start, one.range.stop) for one in self._sent.values())
        return sum(stop - start for start, stop in sent.common(ranges))

    async def _send_behind(self, part: Range) -> None:
        try:
            await self._make(part)
            self._here.add(part.number)
        except OSError as error:
            self._writer, self._frontier = 0, 0
            self._shared.failures += 1
            log.info("part %d of %s will be sent again at close: %s", part.number, self.key, error)
        except trio.Cancelled:
            self._writer = 0  # the mount ends: nothing follows
            raise
        finally:
            self._behind.discard(part.number)
            if self._writer:
                self.follow(self._writer)
            if not self._behind:
                self._idle.set()

    async def finish(self, size: int, condition: Condition, announce: Announce = lambda token: None) -> Version:
        """Sends what is missing of the first `size` bytes and makes the object; `announce` is told its token before.

        Raises StoreError; what was sent stays for the next try. ESTALE when another version won. `Truncated` where
        there are no `size` bytes any more.
        """
        self._writer, self._condition = 0, condition
        await waited(self._idle.wait)
        self._sent = {number: sent for number, sent in self._sent.items() if sent.check is Check.AT_ONCE}
        if self._made - {job.number for job in self._jobs(size)} and not self._draft.away:
            await self.abort()  # Ceph 16 completes an upload with all its parts or not at all
        for _ in range(3):
            jobs = [job for job in self._jobs(size) if not self._has(job)]
            if not jobs:
                break
            await each(self._make, jobs, at_once=PARTS_AT_ONCE)
        # A writer that never rests must not keep fsync from returning: what came later is dirty again.
        parts = [self._sent[job.number] if self._has(job) else await self._make(job) for job in self._jobs(size)]
        await self._ensure()
        if self._draft.size < size:
            raise Truncated(self.key)
        shared = self._shared
        made = [sent.part for sent in parts]
        announce(recognition.token(joined_etag(made), size, self.properties, hashes=shared.store.hashes))
        try:
            version = await shared.store.complete_multipart(
                self.key, self._id, made, condition=condition, begun_with=self.properties
            )
        except StoreError as error:
            if error.code == "NoSuchUpload" or error.errno == errno.ENXIO:
                self._vanished()
            raise
        if parts and self._draft.base is not None:
            end = parts[-1]
            shared.blocks.offer_end(Source(self.key, version.etag, size), end.range.start, memoryview(end.body))
        self._forget()
        return version

    async def resume(self, upload_id: str, freed: Sequence[SavedPart] = ()) -> None:
        """Goes on with an upload of before a crash: the parts whose hash is that of our bytes need not be sent again.

        Those that were `freed` must be there as they were, else their bytes are lost (`Draft.strand`).
        Raises StoreError; one that the server no longer knows is begun anew.
        """
        shared, known = self._shared, {part[0]: part for part in freed}
        try:
            parts = await shared.store.list_parts(self.key, upload_id)
        except StoreError as error:
            if error.errno != errno.ENXIO:
                raise
            shared.multiparts.ended(upload_id)
            self._draft.strand()
            return
        shared.multiparts.resumed(upload_id)
        self._id = upload_id
        with contextlib.suppress(ValueError):  # then they are not there as they were
            self._plan = plan_of([Range(number, start, stop) for number, _, start, stop in freed], shared.plan)
        ranges = {part.number: part for part in self._plan.ranges(self._draft.size)}
        for part in parts:
            self._made.add(part.number)
            at = ranges.get(part.number)
            if at is not None and known.get(part.number) == (part.number, part.etag, at.start, at.stop):
                self._sent[part.number] = _Sent(part, at, self._draft.serial)
                del known[part.number]
                continue
            if at is None or at.stop - at.start != part.size or not self._draft.local.covers(at.start, at.stop):
                continue
            body = await self._draft.read(at.start, at.stop)
            if etag_of(body) == part.etag:
                self._sent[part.number] = _Sent(part, at, self._draft.serial)
        if known:
            self._draft.strand()

    async def abort(self) -> None:
        """Drops the upload; what cannot be aborted now is aborted later (`multipart_uploads`)."""
        self._writer = 0
        await self._idle.wait()
        if self._id and await self._shared.multiparts.abort(self.key, self._id):
            self._forget()

    def _vanished(self) -> None:
        """The server knows the upload no more: the next try begins anew, but for bytes that were only there."""
        self._forget()
        self._draft.strand()

    def _forget(self) -> None:
        self._shared.multiparts.ended(self._id)
        self._id = ""
        for known in (self._sent, self._made, self._here):
            known.clear()

    def _has(self, job: Range) -> bool:
        sent = self._sent.get(job.number)
        return sent is not None and sent.range == job

    def _jobs(self, size: int) -> Iterator[Range]:
        """The parts to make: grid parts to send, and runs of untouched ones merged into one copy.

        Runs end at fixed places, so that what is written meanwhile adds jobs and leaves out no part that was made.
        """
        run: Range | None = None
        for part in self._plan.ranges(size):
            if not self._draft.is_untouched(part.start, part.stop):
                if run is not None:
                    yield run
                    run = None
                yield part
            elif run is not None and part.start // self._piece == run.start // self._piece:
                run = Range(run.number, run.start, part.stop)
            else:
                if run is not None:
                    yield run
                run = part
        if run is not None:
            yield run

    async def _make(self, job: Range) -> _Sent:
        make = self._copy if self._draft.is_untouched(job.start, job.stop) else self._send
        sent = await make(job, self._draft.serial)
        if self._changed.get(job.number, -1) <= sent.serial:
            self._sent[job.number] = sent
        return sent

    async def _send(self, job: Range, serial: int) -> _Sent:
        size = job.stop - job.start
        if size > END_MAX and self._draft.local.covers(job.start, job.stop):
            sent = await self._send_from_file(job, serial)
            if sent is not None:
                return sent
        async with self._shared.budget.holding(size):
            body = await self._draft.read(job.start, job.stop)
            if len(body) < size:
                raise Truncated(self.key)  # else an empty part, or a short one in the middle: EINVAL of the store
            async with self._begun_for(job) as upload_id:
                part = await self._shared.store.upload_part(self.key, upload_id, job.number, body)
            self._shared.sent_bytes += len(body)
        return _Sent(part, job, serial, body=body if len(body) <= END_MAX else b"")

    async def _send_from_file(self, job: Range, serial: int) -> _Sent | None:
        """Sends a part from its file; None where it is not on disk, or changed while it was sent."""
        spool = self._draft.spool
        with spool.held():
            body = spool.part(job.start, job.stop)
            if body is None:
                return None
            async with self._shared.budget.holding(CHUNK), self._begun_for(job) as upload_id:
                try:
                    part = await self._shared.store.upload_part(self.key, upload_id, job.number, body)
                except StoreError:
                    if self._draft.size < job.stop:
                        raise Truncated(self.key) from None
                    if self._changed.get(job.number, -1) > serial:
                        return None  # a hash of it was not that of what was sent
                    raise
        self._shared.sent_bytes += len(body)
        return _Sent(part, job, serial)

    def _check(self) -> Check:
        """Whether the condition on the whole tells of what is copied, so that no request needs to."""
        base, condition = self._draft.base, self._condition
        assert base is not None
        is_tied = isinstance(condition, Version) and (base.key, base.etag) == (self.key, condition.etag)
        return Check.AT_COMPLETION if is_tied else Check.AT_ONCE

    async def _copy(self, job: Range, serial: int) -> _Sent:
        base, check = self._draft.base, self._check()
        assert base is not None
        version = Version(base.etag, base.size)
        async with self._begun_for(job) as upload_id:
            part = await self._shared.store.copy_part(
                self.key, upload_id, job.number, base.key, version, job.start, job.stop, check=check
            )
        return _Sent(part, job, serial, check)

    @asynccontextmanager
    async def _begun_for(self, job: Range) -> AsyncIterator[str]:
        """The id of the upload to make this part in; if the server knows it no more, the next try begins anew."""
        upload_id = await self._ensure()
        self._made.add(job.number)
        try:
            yield upload_id
        except StoreError as error:
            if error.errno == errno.ENXIO and self._id == upload_id:
                self._vanished()
            raise

    async def _ensure(self) -> str:
        async with self._begin:
            if not self._id:
                self._id = await self._shared.multiparts.begin(self.key, self.properties, acl=self.acl)
        return self._id
