"""A file being changed: its bytes, and whether the bucket has them.

    NEW ----write----> DIRTY --commit--> COMMITTING --ok--> CLEAN --write--> DIRTY
     `---commit (empty file)--^             |  |
                          DIRTY <--error----'  `--another version won--> CONFLICT
    any state --unlinked or replaced while open--> ORPHAN (never sent)

A draft's bytes are, in this order: the ranges written here (`local`, in the spool), the base version's
bytes below `base_stop`, zeros. Nothing of the base is read before it is needed. Where room is short, some are `away`:
in parts of an upload that is not completed, where nobody can read them. A write that failed leaves its range
`refused`, and until that is written or cut the draft does not go into the bucket.

Concurrency: trio thread only; each change of bytes raises `serial`, which is how a commit finds out
what came after it.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from enum import Enum

from sosfs.cache.blocks import Blocks, Source
from sosfs.cache.extents import Extents
from sosfs.concurrency.tasks import each
from sosfs.files.spool import INLINE, DamagedSpool, Spool
from sosfs.s3.protocol import OBJECT_MAX, Condition, Guard, Version

BETWEEN = 1 << 20  # bytes of ours that are fetched along, which costs less than a request more
FETCHES = 8  # requests side by side
FEW = 512  # bytes


class DraftState(Enum):
    """Where a draft is in its life."""

    NEW = "new"
    DIRTY = "dirty"
    COMMITTING = "committing"
    CLEAN = "clean"
    CONFLICT = "conflict"
    ORPHAN = "orphan"


class Draft:
    """The changed bytes of one file."""

    def __init__(self, spool: Spool, blocks: Blocks, base: Source | None, expected: Condition) -> None:
        self.state = DraftState.NEW if base is None else DraftState.CLEAN
        self.expected = expected  # what the bucket must hold for the commit to take place
        self.base = base
        self.base_stop = base.size if base else 0
        self.size = self.base_stop
        self.local = Extents()  # in the spool, and valid
        self.dirty = Extents()  # of those, what the base does not have
        self.away = Extents()  # in parts of the upload under way and nowhere else
        self.refused = Extents()  # a write failed there, or the bytes that were there are lost
        self._given_up = Extents()  # zeros in the place of what the base had, which is gone
        self._aside: tuple[Source | None, int] | None = None  # the base, and `base_stop`, while it is taken for gone
        self._stranded = Extents()  # of those what is there again if the upload that had it turns out to be the object
        self._arriving: list[tuple[int, int]] = []  # being written
        self._coming: list[Extents] = []  # of each of these writes what has not been cut since it began
        self._reading: list[tuple[int, int]] = []  # being read
        self.since = time.time()  # when the bucket began to lack something of it, in seconds since the epoch
        self._begun = self.since  # when the last commit began
        self.serial = 0
        self.saved = -1 if base is None else 0  # the serial that is in the bucket
        self.recorded = -1  # the serial that is in the journal
        self.safe = -1  # the newest serial that was; its bytes, or newer ones in their place, are still there
        self.sums: tuple[int, ...] = ()  # of the spool as of that serial
        self.is_synced = True  # what the journal has of it is of bytes that were synced
        self.outdated: list[Spool] = []  # spools of before it was emptied; to be freed once no row may name them
        self.unsyncable: OSError | None = None  # what the disk said to the bytes, and no program has been told
        self.summed = 0  # bytes under such sums in a row that may be on the disk
        self.is_rewritten = False  # bytes under them were changed, and will be again: no row has any from now on
        self.absorbed = 0  # how often bytes of the base came into the spool, or turned out to be wrong there
        self.brought: set[int] = set()  # where bytes of the base were asked for, to come into the spool (`base_fetch`)
        self.spool = spool
        self._blocks = blocks
        self._flying = Extents()  # dirty when the commit under way began
        self._uncut: list[Extents] = []  # what somebody has asked to be told of
        self.disowned: Callable[[], None] = lambda: None  # is told when the spool has nothing of the base any more
        self._lowest = self.size  # the smallest size since then: above it the new base says nothing

    @property
    def spools(self) -> tuple[Spool, ...]:
        """All that a row may name; the last one has its bytes."""
        return (*self.outdated, self.spool)

    @property
    def unsent(self) -> tuple[tuple[int, int], ...]:
        """The ranges that the base does not have."""
        return tuple(Extents((*self.dirty, *self._flying)))

    @property
    def below(self) -> tuple[Source | None, int]:
        """The base, and how much of it counts, though it may just be taken for gone."""
        return self._aside or (self.base, self.base_stop)

    @property
    def is_blank(self) -> bool:
        """Whether it is empty, and nothing was written since it began."""
        return self.size == 0 and not self.local

    @property
    def is_dirty(self) -> bool:
        """Whether the bucket lacks something of it."""
        return self.saved != self.serial and self.state is not DraftState.ORPHAN

    @property
    def is_sendable(self) -> bool:
        """Whether the bucket lacks something of it, and may have it: all of that is here, or in an upload."""
        return self.is_dirty and not self.refused

    @property
    def is_committing(self) -> bool:
        """Whether a commit is under way."""
        return self.state is DraftState.COMMITTING

    @property
    def is_being_written(self) -> bool:
        """Whether a thread is changing bytes of it, of which `serial` does not tell yet."""
        return bool(self._arriving)

    async def write(self, offset: int, data: bytes | memoryview) -> None:
        """Puts `data` at `offset`. Raises OSError EFBIG past 4 TiB, ENOSPC when the spool's disk is full.

        A few zeros in a hole leave it one: so does posix_fallocate(3), which writes a zero into each block.
        """
        stop = offset + len(data)
        if stop > OBJECT_MAX:
            raise OSError(errno.EFBIG, "an object has at most 4 TiB")
        if 0 < len(data) <= FEW and not data[0] and self.is_hole(offset, stop) and not any(data):
            self.size = max(self.size, stop)
            self._changed()
            return
        coming = Extents([(offset, stop)])
        self._arriving.append((offset, stop))
        self._coming.append(coming)
        try:
            await self.spool.write(offset, data)
        finally:
            self._arriving.remove((offset, stop))
            self._coming.remove(coming)
        for start, end in coming:  # all of it, unless another process has opened the file with O_TRUNC meanwhile
            for extents in (self.away, self.refused):
                extents.remove(start, end)
            self.local.add(start, end)
            self.dirty.add(start, end)
            self.size = max(self.size, end)
        self._changed()

    def truncate(self, size: int) -> None:
        """Sets the length; new bytes are zeros. Raises OSError EFBIG past 4 TiB.

        The spool keeps what lies above until `trim`, so that a record of the draft is true before and after.
        """
        if size > OBJECT_MAX:
            raise OSError(errno.EFBIG, "an object has at most 4 TiB")
        if size < self.size:
            for extents in (self.local, self.dirty, self._flying, self.away, *self._uncut):
                extents.remove(size, self.size)
            self.base_stop = min(self.base_stop, size)
            self._lowest = min(self._lowest, size)
        for extents in (self.refused, *self._coming):
            extents.remove(size, OBJECT_MAX)
        self.size = size
        self._changed()

    @contextmanager
    def uncut(self) -> Iterator[Extents]:
        """What is in the spool now and, within, has not been cut since: what is written there anew is another's."""
        left = Extents(self.local)
        self._uncut.append(left)
        try:
            yield left
        finally:
            self._uncut.remove(left)

    def trim(self) -> None:
        """Frees what the spool holds above the length; where a row may tell of it, that is for `DraftRecords.save`."""
        if not self.spool.is_named:
            self.spool.truncate(self.size)

    def shed(self) -> None:
        """Frees the spool of a draft that is in the bucket: its bytes are the base's."""
        assert self.state is DraftState.CLEAN
        self.local, self.dirty = Extents(), Extents()
        self.brought.clear()
        self.spool.truncate(0)

    def part_with(self, start: int, stop: int) -> bool:
        """Frees the spool of bytes that a part of the upload has. False where they are just read, written or recorded.

        Nor where a record tells of them, or is being made (`uncut`): its checksums would be of what is gone. A row on
        the disk may name the spool after the record has gone (`DraftRecords.unname`).
        """
        is_in_use = any(begin < stop and start < end for begin, end in (*self._arriving, *self._reading))
        is_recorded = self._uncut or self.safe > self.saved or self.spool.is_named
        if is_in_use or is_recorded or not self.local.common(((start, stop),)):
            return False
        if not self.spool.free(start, stop):
            return False
        self.local.remove(start, stop)
        self.away.add(start, stop)
        return True

    def refuse(self, start: int, stop: int) -> None:
        """A write failed there."""
        self.refused.add(start, stop)
        self._stranded.remove(start, stop)

    def strand(self) -> None:
        """The upload is gone: what was only there is lost, as if its write had failed. It is no zeros, though."""
        for start, stop in self.away:
            for gap in [(a, b) for a, b, is_refused in self.refused.within(start, stop) if not is_refused]:
                self._stranded.add(*gap)
            self.refused.add(start, stop)

    @property
    def may_come_back(self) -> bool:
        """Whether all that is missing was in an upload that is gone, and may be in the object that it was to make."""
        return bool(self.refused) and all(self._stranded.covers(start, stop) for start, stop in self.refused)

    def lose(self) -> None:
        """The object was looked for, and is not there: what was only in the upload does not come back."""
        self._stranded = Extents()

    def require_whole(self) -> None:
        """Raises OSError ENOSPC while bytes are missing that a program has tried to write."""
        if self.refused:
            raise OSError(errno.ENOSPC, "a write to it failed for want of room, and it is not stored without that")

    def _changed(self) -> None:
        if self.saved == self.serial:
            self.since = time.time()
        self.serial += 1
        if self.state in (DraftState.NEW, DraftState.CLEAN):
            self.state = DraftState.DIRTY

    async def read(self, start: int, stop: int) -> bytes | memoryview:
        """The bytes `[start, stop)`, cut at the end. Raises what fetching the base raises, ESTALE if they are away."""
        if self.away.common(((start, stop),)):
            raise OSError(errno.ESTALE, "these bytes are in an upload that is not completed")
        ranges = list(self.local.within(start, min(stop, self.size)))
        # The spool first: while the bucket is waited for, a commit may end and what is here be freed.
        self._reading.append((start, stop))
        try:
            with self.spool.held():
                found: dict[int, bytes | memoryview] = {
                    begin: await self._spooled(begin, end) for begin, end, ours in ranges if ours
                }
        finally:
            self._reading.remove((start, stop))
        found |= await self._fetched([(begin, end) for begin, end, ours in ranges if not ours])
        pieces: list[bytes | memoryview] = []
        for begin, end, _ in ranges:
            body = found.get(begin, b"")
            pieces.append(body)
            if len(body) < end - begin:
                pieces.append(bytes(end - begin - len(body)))
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def _spooled(self, start: int, stop: int) -> bytes:
        """Bytes of ours. Raises `DamagedSpool` where the file has fewer, unless they were cut off meanwhile."""
        while True:
            body = await self.spool.read(start, stop)
            if len(body) == stop - start or not self.local.covers(start, stop):
                return body
            if self.spool.length < stop:
                raise DamagedSpool(f"its spool ends at {self.spool.length}, before what was written")

    async def _fetched(self, gaps: list[tuple[int, int]]) -> dict[int, bytes | memoryview]:
        """What the base has of each gap, by its beginning."""
        base, found = self.base, dict[int, bytes | memoryview]()
        gaps = [(start, min(stop, self.base_stop)) for start, stop in gaps if start < self.base_stop]
        if base is None or not gaps:
            return found

        async def fetch(run: list[tuple[int, int]]) -> None:
            first = run[0][0]
            body = memoryview(await self._blocks.read(base, first, run[-1][1]))
            for start, stop in run:
                found[start] = body[start - first : stop - first]

        runs = [[gaps[0]]]
        for gap in gaps[1:]:
            if gap[0] - runs[-1][-1][1] <= BETWEEN:
                runs[-1].append(gap)
            else:
                runs.append([gap])
        await each(fetch, runs, at_once=min(FETCHES, len(runs)))
        return found

    def is_untouched(self, start: int, stop: int) -> bool:
        """Whether all of `[start, stop)` is still as in the base version."""
        if self.base is None or stop > self.base_stop:
            return False
        return not any(ours for extents in (self.dirty, self._flying) for _, _, ours in extents.within(start, stop))

    def is_hole(self, start: int, stop: int) -> bool:
        """Whether nobody has written anything of `[start, stop)`, so that it is zeros and nothing else has it."""
        written = (self.local, self.away, self.refused, Extents(self._arriving))
        return start >= self.base_stop and not any(extents.touches(start, stop) for extents in written)

    def holes(self, start: int, stop: int) -> list[tuple[int, int]]:
        """What of `[start, stop)` is zeros that nobody has written."""
        return self.unwritten(max(start, self.base_stop), stop)

    def unwritten(self, start: int, stop: int) -> list[tuple[int, int]]:
        """What of `[start, stop)` is the base's, or zeros behind that."""
        found = [(begin, end) for begin, end, ours in self.local.within(start, stop) if not ours]
        for extents in (self.away, self.refused, Extents(self._arriving)):
            if extents.touches(start, stop):
                found = [(a, b) for gap in found for a, b, is_in in extents.within(*gap) if not is_in]
        return found

    def allocated(self, zeros: int) -> int:
        """How many bytes of it are more than holes, at most; `zeros` are those of the base."""
        return min(self.size, self.base_stop - zeros + self.local.total + self.away.total)

    def lacks(self, start: int, stop: int) -> tuple[int, int] | None:
        """From the first to the last byte that the base has of `[start, stop)` and the spool has not."""
        gaps = self._missing(start, min(stop, self.base_stop))
        return (gaps[0][0], gaps[-1][1]) if gaps else None

    async def absorb(self, at: int, body: bytes | memoryview) -> None:
        """Takes over bytes of the base where there are no newer ones, and no cut, since they were asked for.

        What a thread is just writing is newer, and counts as ours once it is told.
        """
        view = memoryview(body)
        self.absorbed += 1
        running = self._blocks.verifier.of(self.base) if self.base is not None else None
        if running is not None:
            running.on_wrong[self] = self._disown
        arriving = Extents(self._arriving)
        missing = self._missing(at, min(at + len(view), self.base_stop))
        for begin, end in [(a, b) for gap in missing for a, b, is_new in arriving.within(*gap) if not is_new]:
            # In pieces that are written without a pause, in which a writer could come between.
            for start in range(begin, end, INLINE):
                stop = min(end, start + INLINE)
                await self.spool.write(start, view[start - at : stop - at])
                self.local.add(start, stop)

    def _missing(self, start: int, stop: int) -> list[tuple[int, int]]:
        """What is the base's of `[start, stop)`."""
        lacking = [(begin, end) for begin, end, ours in self.local.within(start, stop) if not ours]
        if not self.away:
            return lacking
        return [(a, b) for begin, end in lacking for a, b, is_away in self.away.within(begin, end) if not is_away]

    def stand_on(self, base: Source, expected: Version) -> None:
        """The bucket has an earlier state of this draft, stored by us: that is what it changes from now on."""
        self.base, self.expected = base, expected
        self.base_stop = min(max(self.base_stop, *(stop for _, stop in self.away), 0), base.size)
        for start, stop in self._stranded:
            self.refused.remove(start, stop)
        self.away = Extents()

    @contextmanager
    def without_base(self) -> Iterator[int]:
        """The base version is gone from the bucket: within, what is not in the spool are zeros. Yields how many bytes.

        They are for what is kept beside: no program is shown them (`require_had`), and the file itself never gets
        them, should another client put the version back before that is done.
        """
        gone = [(start, stop) for start, stop, ours in self.local.within(0, self.base_stop) if not ours]
        self._given_up, self._aside = Extents(gone), (self.base, self.base_stop)
        self.base, self.base_stop = None, 0
        try:
            yield sum(stop - start for start, stop in gone)
        finally:
            self._given_up = Extents()
            (self.base, self.base_stop), self._aside = self.below, None

    def require_had(self, start: int, stop: int) -> None:
        """Raises OSError ESTALE where bytes of `[start, stop)` were given up."""
        if self._given_up.common(((start, stop),)):
            raise OSError(errno.ESTALE, "the version that was opened is gone")

    def commit_begins(self) -> int:
        """Marks what is dirty now as under way; returns the serial that the commit will carry."""
        self.state = DraftState.COMMITTING
        self._flying, self.dirty = self.dirty, Extents()
        self._lowest = self.size
        self._begun = time.time()
        return self.serial

    def commit_failed(self, state: DraftState = DraftState.DIRTY) -> None:
        """What was under way is dirty again."""
        for start, stop in self._flying:
            self.dirty.add(start, stop)
        self._flying = Extents()
        self.state = state if self.state is not DraftState.ORPHAN else DraftState.ORPHAN

    def commit_landed(self, base: Source, expected: Condition, serial: int) -> None:
        """The bytes as of `serial` are in the bucket as `base`."""
        self._flying, self.away = Extents(), Extents()
        self.saved, self.since = serial, self._begun
        self.expected = expected
        self.base = base
        # What was cut off since the commit began must not come back from the new base.
        self.base_stop = min(base.size, self._lowest)
        if self.state is not DraftState.ORPHAN:
            self.state = DraftState.CLEAN if serial == self.serial else DraftState.DIRTY

    def _disown(self) -> None:
        """What came into the spool of the base has turned out wrong, and is not here any more."""
        self.absorbed += 1
        self.local = Extents(self.local.common(self.unsent))  # of which some may be away
        self.brought.clear()
        self.disowned()

    async def outlive(self, body: bytes | memoryview, left: Version) -> None:
        """All of it was sent as `body`, and has arrived damaged as `left` in place of the base: the draft has it all.

        The next commit then replaces the damaged object, and needs no byte of the base.
        """
        await self.absorb(0, body)
        base = self.base
        self.stand_alone(left)
        if base is not None:
            self.base = Source(base.key, left.etag, left.size)  # it still is that file, with its ACL and class

    def stand_alone(self, expected: Condition) -> None:
        """All that the base has of it is here: it needs nothing of that any more."""
        self.expected, self.base, self.base_stop = expected, None, 0
        for start, stop in self.local:
            self.dirty.add(start, stop)

    def empty(self) -> None:
        """Goes on in another spool: a row names this one, and until another is on the disk it has what was before."""
        self.outdated.append(self.spool)
        self.spool = self.spool.another()

    def close(self, *, but: Collection[Spool] = ()) -> None:
        """Frees its spools; those in `but` somebody else frees."""
        for spool in self.spools:
            if spool not in but:
                spool.close()
        self.outdated = []


def fresh(spool: Spool, blocks: Blocks) -> Draft:
    """The draft of a file that is not in the bucket."""
    return Draft(spool, blocks, None, Guard.ABSENT)
