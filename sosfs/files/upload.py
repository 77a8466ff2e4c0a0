"""Turn a draft into an object: one PUT, or a multipart upload that runs while it is written.

Holes are never sent where there are many of them: the server copies them of an object of zeros (`zero_objects`).
A part that was written over is sent again. Where room is short the bytes of a part that was sent are freed; they are
in no other place then, until the whole is completed. Ranges that are still as in the old version are copied on the
server: neighbours in one request, up to a sixteenth of the file. The condition on the whole then tells that they were
of this version, and the end of a file that grew stays at hand, since what is appended next is sent with it.
Part numbers may have gaps (S3 API, UploadPart), so a merged copy takes the number of its first part and the numbers of
the others stay unused. An upload that fails keeps what it has sent for the next try. One that nobody wants any more,
since its file is being removed or was cut, ends in the middle of what it sends.

Concurrency: trio thread only, one `finish` at a time for a draft; parts are sent side by side within a
budget of bytes.
"""

from __future__ import annotations

import contextlib
import errno
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from enum import Enum
from hashlib import md5
from itertools import groupby

import trio

from sosfs.cache.blocks import Blocks, Source, Spawn
from sosfs.cache.extents import Extents
from sosfs.concurrency.budgets import Budget
from sosfs.concurrency.interrupt import Interrupt, stoppable, waited
from sosfs.concurrency.locks import FairLock
from sosfs.concurrency.tasks import each
from sosfs.errors import StoreError
from sosfs.files.draft import Draft, DraftState
from sosfs.files.part_ranges import PartPlan, Range, plan_of
from sosfs.files.zero_objects import ZeroObjects, is_gone, is_refusal
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
HOLES_MIN = 16 << 20  # bytes of holes of a file from which on they are copied, of an object of zeros half as large


Announce = Callable[[str], Awaitable[None]]  # is told the token of the object to be (`recognition`)


def etag_of(body: bytes | memoryview) -> str:
    """The ETag of an object that one PUT makes: a content hash (SOS, as S3 without KMS)."""
    return md5(body, usedforsecurity=False).hexdigest()


class Unwanted(OSError):
    """The file is being removed: nothing more is sent of it."""

    def __init__(self, key: str) -> None:
        super().__init__(errno.EINTR, f"{key} was being removed while it was sent")


class Truncated(OSError):
    """The file was cut, by another process, below what was being sent: what was begun must not be finished."""

    def __init__(self, key: str) -> None:
        super().__init__(errno.EAGAIN, f"{key} was truncated while it was sent")


class _Way(Enum):
    """How a part comes to be."""

    SENT = "sent"
    COPIED = "copied"  # of the version that the draft stands on
    FILLED = "filled"  # with zeros that are copied


@dataclass(frozen=True, slots=True)
class _Sent:
    part: Part
    range: Range
    serial: int  # of the draft, when its bytes were read
    zeros: tuple[tuple[int, int], ...] = ()  # of the file, of which it is known
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
        zeros: ZeroObjects,
    ) -> None:
        self.store = store
        self.blocks = blocks
        self.spawn = spawn
        self.budget = budget
        self.plan = plan
        self.multiparts = multiparts
        self.zeros = zeros
        self.sent_bytes = 0
        self.failures = 0  # of parts behind a writer
        self.keeping = 0  # renames under way: what is freed is bound to the key


class Upload:
    """The multipart upload of one draft to one key."""

    def __init__(self, uploader: Uploader, draft: Draft, key: str, properties: Properties, acl: Acl | None) -> None:
        self.key = key
        self.properties = properties  # of the one that was begun
        self._next = properties, acl  # of one that is begun from now on
        self._shared = uploader
        self._plan = uploader.plan
        self._draft = draft
        self._id = ""
        self._begin = FairLock()
        self._condition: Condition = Guard.NONE  # under which the object will be made
        self._sent: dict[int, _Sent] = {}
        self._made: set[int] = set()  # parts that the server has, up to date or not
        self._changed: dict[int, int] = {}  # part number -> serial of the last write into it
        self._behind: set[int] = set()
        self._here: set[int] = set()  # of those that were sent behind the writer, whose bytes are here too
        self._zeros: Source | None = None  # of which holes are copied now
        self._fills = True  # unless holes have been sent, and cannot be left out
        self._hole_piece = 0  # bytes of holes that one copy makes; 0 until the first is needed
        self._stop: Interrupt | None = None  # of the `finish` under way
        self._is_unwanted = self._was_cut = self._is_left = False
        self._frontier = 0  # below it every full part is sent or on its way
        self._writer = 0  # offset behind which full parts may go up; 0 while `finish` sends them itself
        self._idle = trio.Event()
        self._idle.set()

    def renews(self, properties: Properties, acl: Acl | None) -> None:
        """Where it has to be begun anew it is begun with these."""
        self._next = properties, acl

    def written(self, start: int, stop: int) -> None:
        """The draft changed in `[start, stop)`: parts sent of it are out of date."""
        plan, serial = self._plan, self._draft.serial
        for number in range(plan.at(start).number, plan.at(max(start, stop - 1)).number + 1):
            self._changed[number] = serial
            self._sent.pop(number, None)
            self._here.discard(number)  # its number may be that of a longer part next time
        self._frontier = min(self._frontier, plan.at(start).start)

    def follow(self, offset: int) -> None:
        """Sends full parts that the writer, now at `offset`, has left behind, and goes on while it rests."""
        self._writer = offset
        here = self._plan.at(offset)
        for part in self._plan.ranges(here.start, begin=self._frontier):
            if len(self._behind) >= BEHIND:
                return
            is_known = part.number in self._sent or part.number in self._behind
            if not is_known and self._draft.dirty.covers(part.start, part.stop):
                self._send_later(part)
            self._frontier = part.stop  # what is not full before it is written yet, which tells of it

    def send_begun(self, offset: int) -> None:
        """Sends parts that have holes as well, but for the one at `offset`, which is being written."""
        here = self._plan.at(offset)
        for part in self._plan.ranges(self._plan.at(self._draft.size).start):
            if len(self._behind) >= BEHIND:
                return
            is_known = part.number in self._sent or part.number in self._behind or part == here
            if is_known or not self._draft.dirty.touches(part.start, part.stop):
                continue
            if self._is_here(part, self._draft.holes(part.start, part.stop)):
                self._send_later(part)

    def _send_later(self, part: Range) -> None:
        self._behind.add(part.number)
        self._idle = trio.Event()  # nobody waits for one of before: who waits has seen to it that nothing more begins
        self._shared.spawn(lambda: self._send_behind(part))

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
        is_needed = self._draft.state in (DraftState.COMMITTING, DraftState.CONFLICT)  # all of it is being stored
        if self._shared.keeping or is_needed or self._has_left_over or self._is_unwanted:
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
            if self._has(part):
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

    async def finish(self, size: int, condition: Condition, announce: Announce | None = None) -> Version:
        """Sends what is missing of the first `size` bytes and makes the object; `announce` is told its token before.

        Raises StoreError; what was sent stays for the next try. ESTALE when another version won. `Truncated` where
        there are no `size` bytes any more, `Unwanted` where the file is being removed.
        """
        self._writer, self._condition = 0, condition
        await waited(self._idle.wait)
        parts = await self._all_parts(size)
        if self._draft.size < size:
            raise Truncated(self.key)
        shared = self._shared
        made = [sent.part for sent in parts]
        if announce is not None:
            await announce(recognition.token(joined_etag(made), size, self.properties, hashes=shared.store.hashes))
        try:
            version = await shared.store.complete_multipart(
                self.key, self._id, made, condition=condition, begun_with=self.properties
            )
        except StoreError as error:
            if error.errno == errno.ENXIO:
                self._vanished()
            elif error.code == "InvalidPart":
                await self._doubt()
            raise
        shared.blocks.zeros.note(version.etag, size, (hole for sent in parts for hole in sent.zeros))
        if parts and self._draft.base is not None:
            end = parts[-1]
            shared.blocks.offer_end(Source(self.key, version.etag, size), end.range.start, memoryview(end.body))
        self._ended()
        return version

    async def _all_parts(self, size: int) -> list[_Sent]:
        """The parts of the first `size` bytes, once the server has them. Raises as `finish`."""
        with stoppable() as stop:
            self._stop = stop
            try:
                if self._is_unwanted:
                    raise Unwanted(self.key)
                return await self._made_parts(size)
            except OSError as error:
                if error.errno != errno.EINTR or not stop.is_set:
                    raise
                if self._is_unwanted:
                    raise Unwanted(self.key) from error
                if self._was_cut:
                    raise Truncated(self.key) from error
                raise
            finally:
                self._stop, self._was_cut = None, False

    async def _made_parts(self, size: int) -> list[_Sent]:
        self._sent = {number: sent for number, sent in self._sent.items() if sent.check is not Check.AT_COMPLETION}
        for again in (False, True, True):
            async with self._copying_holes(size):
                if not again and self._made - {job.number for job in self._jobs(size)}:
                    await self._without_left_over_parts()
                jobs = [job for job in self._jobs(size) if not self._has(job)]
                if not jobs:
                    break
                await each(self._make, jobs, at_once=PARTS_AT_ONCE)
        async with self._copying_holes(size):
            # A writer that never rests must not keep fsync from returning: what came later is dirty again.
            parts: list[_Sent] = []
            for job in self._jobs(size):
                parts += [self._sent[job.number]] if self._has(job) else await self._made_anyhow(job)
            return parts

    async def _made_anyhow(self, job: Range) -> list[_Sent]:
        """A part, or the parts of a run that is not to be made in one piece any more."""
        made = await self._make(job)
        if made is not None:
            return [made]
        parts = self._plan.ranges(job.stop, begin=job.start)
        return [self._kept(await self._send(part, self._draft.serial)) for part in parts]

    @property
    def _has_left_over(self) -> bool:
        """Whether the file has been cut below parts that the server has: with these the whole may not be completed."""
        last = self._plan.at(max(0, self._draft.size - 1)).number
        return any(number > last for number in self._made)

    async def _without_left_over_parts(self) -> None:
        """Ceph 16 completes an upload with all its parts or not at all: where some are of no use it begins anew.

        Unless bytes are in its parts alone: then none are merged, so that all may be of use.
        """
        if not self._draft.away:
            await self._drop()
        else:
            self._fills = False

    def cut(self) -> None:
        """The file was cut: nobody wants what is sent now."""
        if self._stop is not None:
            self._was_cut = True
            self._stop.set()

    def is_being_removed(self, is_it: bool) -> None:
        """The file is being removed, or is not any more: meanwhile nothing is sent, nor freed for who has it open."""
        self._is_unwanted = is_it
        if is_it:
            self._writer = 0
            if self._stop is not None:
                self._stop.set()

    @asynccontextmanager
    async def _copying_holes(self, size: int) -> AsyncIterator[None]:
        """Within, holes are copied on the server if there are many. Raises what keeps it from answering."""
        holes = [part for part in self._plan.ranges(size) if self._draft.is_hole(part.start, part.stop)]
        if not self._fills or _sum((part.start, part.stop) for part in holes) <= HOLES_MIN:
            yield
            return
        self._hole_piece = self._hole_piece or max(self._plan.first, min(COPY_MAX, size // PARTS_AT_ONCE))
        longest = max(run.stop - run.start for run in _merged(holes, self._hole_piece))
        async with self._shared.zeros.lent(longest) as zeros:
            self._zeros = zeros
            try:
                yield
            finally:
                self._zeros = None

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
        """Drops the upload; what cannot be aborted now is aborted later (`multipart_uploads`).

        Parts on their way behind the writer are waited for: whoever is interrupted leaves that to a task.
        """
        self._writer, self._is_left = 0, True
        if self._id:
            self._shared.multiparts.left(self.key, self._id)
        try:
            await waited(self._idle.wait)
        except OSError:
            self._shared.spawn(self.abort)
        else:
            await self._drop()

    async def _drop(self) -> None:
        if self._id:
            await self._shared.multiparts.abort(self.key, self._id)
            self._forget()

    def _vanished(self) -> None:
        """The server knows the upload no more: the next try begins anew, but for bytes that were only there."""
        self._ended()
        if not self._is_left:  # else what its draft has freed is in another upload, if in any
            self._draft.strand()

    async def _doubt(self) -> None:
        """The server has other parts than were sent last: one that was given up came late. All are sent again.

        Not those whose bytes are there alone: where one of these is another now, they are lost.
        """
        away = self._draft.away
        self._sent = {n: sent for n, sent in self._sent.items() if away.covers(sent.range.start, sent.range.stop)}
        if not self._sent:
            return
        with contextlib.suppress(StoreError):  # the next try gets here again
            there = {part.number: part.etag for part in await self._shared.store.list_parts(self.key, self._id)}
            if any(there.get(number) != sent.part.etag for number, sent in self._sent.items()):
                self._draft.strand()

    def _ended(self) -> None:
        self._shared.multiparts.ended(self._id)
        self._forget()

    def _forget(self) -> None:
        self._id = ""
        for known in (self._sent, self._made, self._here):
            known.clear()

    @property
    def _copy_piece(self) -> int:
        """How much of the base one copy makes. A file gets one, or another, where its object turns out to be ours."""
        return min(COPY_MAX, self._draft.base.size // PARTS_AT_ONCE) if self._draft.base is not None else 0

    def _has(self, job: Range) -> bool:
        sent = self._sent.get(job.number)
        return sent is not None and sent.range == job

    def _jobs(self, size: int) -> Iterator[Range]:
        """The parts to make: grid parts to send, and runs of untouched ones, or of holes, merged into one copy.

        Runs end at fixed places, so that what is written meanwhile adds jobs and leaves out no part that was made.
        """
        for way, parts in groupby(self._plan.ranges(size), self._way):
            if way is _Way.SENT:
                yield from parts
            else:
                yield from _merged(parts, self._copy_piece if way is _Way.COPIED else self._hole_piece)

    def _way(self, part: Range) -> _Way:
        if self._draft.is_untouched(part.start, part.stop):
            return _Way.COPIED
        if self._zeros is not None and self._draft.is_hole(part.start, part.stop):
            return _Way.FILLED
        return _Way.SENT

    async def _make(self, job: Range) -> _Sent | None:
        """A part, now at the server; None where it is not to be made like that any more."""
        if self._stop is not None:
            self._stop.check(f"UploadPart {self.key!r}")
        way, serial = self._way(job), self._draft.serial
        if way is _Way.SENT and job.stop > self._plan.at(job.start).stop:
            return None  # of a run that was written to meanwhile
        make = {_Way.SENT: self._send, _Way.COPIED: self._copy, _Way.FILLED: self._fill}[way]
        sent = await make(job, serial)
        if sent is not None:
            sent = self._kept(sent)
        return sent

    def _kept(self, sent: _Sent) -> _Sent:
        """What is known of a part, if it is still up to date; else it may have bytes that came later."""
        number = sent.range.number
        if self._changed.get(number, -1) <= sent.serial:
            self._sent[number] = sent
            return sent
        return sent if sent.check is Check.BY_HASH else replace(sent, zeros=())

    async def _send(self, job: Range, serial: int) -> _Sent:
        size = job.stop - job.start
        holes, zeros = tuple(self._draft.holes(job.start, job.stop)), self._zeros_of_base(job)
        if size > END_MAX and self._is_here(job, holes):
            sent = await self._send_from_file(job, serial, holes)
            if sent is not None:
                return replace(sent, zeros=zeros + holes)
        async with self._shared.budget.holding(size):
            body = await self._draft.read(job.start, job.stop)
            if len(body) < size:
                raise Truncated(self.key)  # else an empty part, or a short one in the middle: EINVAL of the store
            async with self._begun_for(job) as upload_id:
                part = await self._shared.store.upload_part(self.key, upload_id, job.number, body)
            self._shared.sent_bytes += len(body)
        return _Sent(part, job, serial, zeros + holes, body=body if len(body) <= END_MAX else b"")

    def _is_here(self, job: Range, holes: Sequence[tuple[int, int]]) -> bool:
        """Whether the spool and these holes have all of a part."""
        return self._draft.local.total_within(job.start, job.stop) + _sum(holes) == job.stop - job.start

    async def _send_from_file(self, job: Range, serial: int, holes: tuple[tuple[int, int], ...]) -> _Sent | None:
        """Sends a part from its file; None where it is not on disk, or changed while it was sent."""
        with self._draft.spool.part(job.start, job.stop, holes) as body:
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

    async def _fill(self, job: Range, serial: int) -> _Sent | None:
        """Has the server copy zeros; None where it does not, or they are gone."""
        zeros, objects = self._zeros, self._shared.zeros
        assert zeros is not None
        if self._draft.size < job.stop:
            raise Truncated(self.key)
        if job.stop - job.start > zeros.size:
            return None  # it was cut and grew meanwhile
        try:
            async with self._begun_for(job) as upload_id:
                part = await objects.copied(self.key, upload_id, job.number, zeros, job.stop - job.start)
        except StoreError as error:
            if error.errno == errno.ENXIO or not (is_gone(error) or is_refusal(error)):
                raise
            if is_refusal(error):
                objects.refused(error)
            return None
        return _Sent(part, job, serial, ((job.start, job.stop),), Check.BY_HASH)

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
        return _Sent(part, job, serial, self._zeros_of_base(job), check)

    def _zeros_of_base(self, job: Range) -> tuple[tuple[int, int], ...]:
        """What of a part is as in the version below, where that is known to be zeros."""
        base, stop = self._draft.base, min(job.stop, self._draft.base_stop)
        if base is None:
            return ()
        zeros = self._shared.blocks.zeros.within(base.etag, base.size, job.start, stop)
        return tuple(gap for zero in zeros for gap in self._draft.unwritten(*zero))

    @asynccontextmanager
    async def _begun_for(self, job: Range) -> AsyncIterator[str]:
        """The id of the upload to make this part in; if the server knows it no more, the next try begins anew."""
        upload_id = await self._ensure()
        self._made.add(job.number)
        try:
            yield upload_id
            if self._id != upload_id:  # found gone by another part meanwhile: what this one has would be nowhere
                raise StoreError(errno.ENXIO, f"UploadPart {self.key!r}", detail="its upload is gone")
        except StoreError as error:
            if error.errno == errno.ENXIO and self._id == upload_id:
                self._vanished()
            raise

    async def _ensure(self) -> str:
        async with self._begin:
            if not self._id:
                properties, acl = self._next
                self._id = await self._shared.multiparts.begin(self.key, properties, acl=acl)
                self.properties = properties
                if self._is_left:  # while it was begun
                    self._shared.multiparts.left(self.key, self._id)
        return self._id


def _merged(parts: Iterable[Range], piece: int) -> Iterator[Range]:
    """Neighbours as one, each of which ends where a multiple of `piece` bytes comes first."""
    run: Range | None = None
    for part in parts:
        if run is not None and run.stop == part.start and part.start // piece == run.start // piece:
            run = Range(run.number, run.start, part.stop)
            continue
        if run is not None:
            yield run
        run = part
    if run is not None:
        yield run


def _sum(ranges: Iterable[tuple[int, int]]) -> int:
    return sum(stop - start for start, stop in ranges)
