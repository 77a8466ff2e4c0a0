"""Send full parts behind a writer, and free their bytes where room is short.

    roomy --short--> parts go up at once, and what was sent is freed --tight--> one writer goes on, others wait
                                                                          `-- nothing comes: ENOSPC

Room is short when the disk has less than is left to others (`SpoolArea`), or the draft holds nearly as much as it may:
`--dirty-limit`, or some parts where those are larger. Full parts go first; where none is full, as of a file with holes,
those go that are begun.
It is tight with less than one part left: then all writers could hold a begun part that none can end. So one at a time
goes on with what is left, and whoever it is, its part gets full, goes up and is freed.

What a part alone has can't be read or sent again, so the file is completed first where that is needed, with what has
been written by then: who rewinds within a file larger than the disk has it in the bucket before it is closed.

A write that finds no room waits as long as something is on its way that may free some: a part, a commit, another
writer. What frees nothing for `patience` seconds frees nothing at all.

Concurrency: trio thread only; the kernel serialises the writes of one inode.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import trio

from sosfs.concurrency.interrupt import waited
from sosfs.errors import FULL
from sosfs.files.commits import Commits
from sosfs.files.draft import Draft, DraftState
from sosfs.files.open_file import OpenFile, content_of, draft_of, opened
from sosfs.files.spool import SPILL, SpoolArea
from sosfs.files.upload import Upload, Uploader
from sosfs.tree.inodes import Inode, Inodes

log = logging.getLogger(__name__)

STREAM_MIN = 64 << 20  # bytes; a smaller file's parts all go up at close, with its final attributes
PARTS_MIN = 3  # of one draft that the limit leaves room for, however low it is: with less nothing could go up
RELIEF = 1 << 20  # bytes of changes here and there that are worth a commit
POLL = 0.05  # seconds between looks for room, which other programs may free as well
IDLE = 5.0  # seconds after which who has not written on is not waited for


class _Waiting:
    """One write that waits for room."""

    def __init__(self, failures: int) -> None:
        self.failures = failures  # of parts, when it began
        self.hope = trio.current_time()  # when something was last on its way


class WriteBehind:
    """Brings what is written off this machine while it is written."""

    def __init__(
        self,
        inodes: Inodes,
        spools: SpoolArea,
        uploader: Uploader,
        commits: Commits,
        begin: Callable[[Inode], Draft],
        *,
        dirty_limit: int,
        patience: float,
    ) -> None:
        self.waiting = 0  # writes that wait for room
        self._inodes = inodes
        self._spools = spools
        self._uploader = uploader
        self._commits = commits
        self._begin = begin
        self._dirty_limit = dirty_limit
        self._patience = patience
        self._last: Inode | None = None  # who goes on where it is tight
        self._began, self._went_on = 0.0, 0.0  # trio times: when it became that one, and stored something

    # Writing

    async def write(self, inode: Inode, offset: int, data: bytes | memoryview) -> Draft:
        """Stores `data` in the file's draft, which is returned. Raises OSError ENOSPC where no room comes.

        What was not stored is missing in the file from then on: see `Draft.refused`.
        """
        try:
            return await self._write(inode, offset, data)
        except OSError as error:
            draft = draft_of(inode)
            if draft is not None and error.errno not in (errno.EFBIG, errno.ESTALE):
                draft.refuse(offset, offset + len(data))
            raise

    async def _write(self, inode: Inode, offset: int, data: bytes | memoryview) -> Draft:
        stop, waiting = offset + len(data), None
        try:
            while True:
                draft = self._begin(inode)
                if await self._gathers(inode, draft, offset, stop) or await self._commits.records.opens(inode, offset):
                    continue
                refusal = self._refusal(inode, draft, offset, stop)
                if refusal is None:
                    refusal = await self._stored(inode, draft, offset, data)
                if refusal is None:
                    return draft
                if waiting is None:
                    waiting = _Waiting(self._uploader.failures)
                    self.waiting += 1
                await self._wait(inode, draft, offset, waiting, refusal)
        finally:
            self.waiting -= waiting is not None

    async def _stored(self, inode: Inode, draft: Draft, offset: int, data: bytes | memoryview) -> OSError | None:
        """None once it is in the draft, or what the disk says that has no room. Raises what else it says."""
        try:
            self._commits.records.touched(inode)
            await draft.write(offset, data)
        except OSError as error:
            if error.errno not in FULL:
                raise
            return error
        if inode is self._last:
            self._went_on = trio.current_time()
        upload = _upload_of(inode)
        if upload is not None:  # also one that was begun meanwhile: it may have sent what was there before
            upload.written(offset, offset + len(data))
        return None

    def _refusal(self, inode: Inode, draft: Draft, offset: int, stop: int) -> OSError | None:
        """Why a write has to wait, None where it need not."""
        if draft.local.covers(offset, stop) or not draft.spool.on_disk:
            return None
        if draft.local.total + stop - offset > self._limit(offset):
            return OSError(errno.ENOSPC, "the file may not hold more here")
        if not self._spools.is_tight(stop - offset):
            return None
        if self._spools.is_tight(stop - offset, alone=True):
            return OSError(errno.ENOSPC, "the disk is full")
        if not self._goes_on(inode, trio.current_time()):
            return OSError(errno.ENOSPC, "another writer has the room that is left")
        return None

    def _goes_on(self, inode: Inode, now: float) -> bool:
        """Whether an inode is the one whose writer goes on where room is tight; it is from now on if none other is."""
        last = self._last
        if last is not inode:
            open_file = opened(last) if last is not None and last in self._commits.drafts else None
            is_writing = open_file is not None and open_file.writers
            if is_writing and max(self._began, self._went_on) > now - IDLE:
                return False
            self._last, self._began = inode, now
        return True

    # Making room

    def _limit(self, offset: int) -> int:
        """How many bytes a draft may hold whose writer is at `offset`: parts grow with it."""
        part = self._uploader.plan.at(offset)
        return max(self._dirty_limit, PARTS_MIN * (part.stop - part.start))

    def _is_short(self, draft: Draft, offset: int) -> bool:
        return draft.local.total > self._limit(offset) // 2 or (draft.local.total > SPILL and self._spools.is_short)

    async def _wait(self, inode: Inode, draft: Draft, offset: int, waiting: _Waiting, refusal: OSError) -> None:
        """Makes room, or lets a moment pass in which some may come. Raises the refusal where none can."""
        if await self._frees():
            waiting.hope = trio.current_time()
            return
        has_failed = self._uploader.failures > waiting.failures
        # Looked at before others are asked to send: while that takes they may go, and leave their room.
        is_hopeless = trio.current_time() > waiting.hope + self._patience or not self._has_company(inode)
        if not has_failed:
            await self._sends()
            self._send_begun(inode, draft, offset)
        if self._is_under_way(inode):
            waiting.hope = trio.current_time()
        elif await self._frees(first=True):
            return
        elif has_failed:
            raise refusal
        elif inode.parent is not None and draft.local.total >= self._relief(draft):
            await self._relieve(inode, draft, refusal)
            return
        elif is_hopeless:
            raise refusal
        await waited(partial(trio.sleep, POLL))

    async def _frees(self, *, first: bool = False) -> bool:
        """Frees what is here and in the bucket too, or the `first` parts of files. Whether there was any."""
        freed = False
        for inode in list(self._commits.drafts):
            open_file = opened(inode)
            if open_file is None or (draft := open_file.draft) is None:
                continue
            await self._commits.records.unname(open_file, draft)
            if open_file.draft is not draft:
                freed = True  # it was let go meanwhile
                continue
            if self._gives_back(open_file, draft, first=first):
                freed = True
                self._commits.records.has_room()  # before the disk is waited for again
        return freed

    @staticmethod
    def _gives_back(open_file: OpenFile, draft: Draft, *, first: bool) -> bool:
        """As `_frees`, of one file."""
        if draft.state is not DraftState.CLEAN:
            return open_file.upload is not None and open_file.upload.free(first=first)
        if not draft.local or draft.spool.is_named or draft.spool.is_busy or open_file.lock.taken:
            return False
        draft.shed()
        return True

    async def _sends(self) -> None:
        """Lets full parts of all that is being written go up."""
        for inode in list(self._commits.drafts):
            open_file = opened(inode)
            if open_file is not None and open_file.draft is not None and open_file.writers:
                await self._follow(inode, open_file, open_file.draft, open_file.draft.size)

    def _send_begun(self, inode: Inode, draft: Draft, offset: int) -> None:
        """Lets parts with holes go up where nothing else is on its way, but for the one that is being written."""
        open_file = opened(inode)
        if open_file is None or open_file.upload is None or self._is_under_way(inode):
            return
        if _may_send(inode, open_file, draft):
            open_file.upload.send_begun(offset)

    def _is_under_way(self, inode: Inode) -> bool:
        """Whether parts, whole files or the bytes of another writer that goes on are on their way off this disk."""
        for other in self._commits.drafts:
            open_file = opened(other)
            if open_file is not None and open_file.draft is not None:
                is_behind = open_file.upload is not None and open_file.upload.is_behind
                if is_behind or open_file.draft.is_committing:
                    return True
        if self._commits.makes_room():
            return True
        is_another = self._last is not inode and self._last in self._commits.drafts
        return is_another and self._went_on > trio.current_time() - IDLE

    def _has_company(self, inode: Inode) -> bool:
        """Whether other drafts hold room that may come free."""
        others = (draft_of(other) for other in self._commits.drafts if other is not inode)
        return any(draft is not None and draft.local for draft in others)

    def _relief(self, draft: Draft) -> int:
        """How many bytes here are worth a commit while their writer waits; of a new file a part."""
        return RELIEF if draft.base or draft.safe > draft.saved else self._uploader.plan.first

    async def _relieve(self, inode: Inode, draft: Draft, refusal: OSError) -> None:
        """The file as it is goes into the bucket, and the next look frees what it has here; what was recorded, too.

        The writer waits that long. What does not get through stays here, and the disk's error is the writer's.
        """
        try:
            await self._commits.commit(inode)
            await self._commits.records.rest(content_of(inode), draft)  # mappings are written, and others read, beside
        except OSError as error:
            log.info("no room is made by sending %s: %s", inode.name.decode(errors="replace"), error)
            raise refusal from error

    # Parts behind the writer

    async def follow(self, inode: Inode, open_file: OpenFile, draft: Draft, offset: int) -> None:
        """A file was written to at `offset`: lets full parts before that go up, and frees them where room is short."""
        is_short = self._is_short(draft, offset)
        if is_short or (draft.size >= STREAM_MIN and draft.base_stop == 0):
            await self._follow(inode, open_file, draft, offset)
        if is_short and open_file.upload is not None:
            await self._commits.records.unname(open_file, draft)
            if open_file.upload is not None and open_file.upload.free():
                self._commits.records.has_room()

    async def _follow(self, inode: Inode, open_file: OpenFile, draft: Draft, offset: int) -> None:
        if draft.size < self._uploader.plan.first or not _may_send(inode, open_file, draft):
            return
        if open_file.upload is None:
            key = self._inodes.key(inode)
            try:
                properties, acl = await self._commits.carry(inode)
            except OSError:
                return  # what the writer wrote is here; the commit asks again, and says what is wrong
            if not _may_send(inode, open_file, draft) or self._inodes.key(inode) != key:
                return  # meanwhile a commit has begun, which takes care of all, or the file has lost this name
            open_file.upload = open_file.upload or Upload(self._uploader, draft, key, properties, acl)
        open_file.upload.follow(offset)

    # What is in parts alone

    async def gather(self, inode: Inode, start: int, stop: int) -> None:
        """The bytes `[start, stop)` of a file can be read, and cut, afterwards. Raises what keeps the whole back."""
        while (draft := draft_of(inode)) is not None:
            if not await self._gathers(inode, draft, start, stop):
                return

    async def _gathers(self, inode: Inode, draft: Draft, start: int, stop: int) -> bool:
        """Completes the file where a part alone has some of these bytes. Whether it did."""
        if inode.parent is None or not draft.away.common(((start, stop),)):
            return False
        log.info("%s is stored before it is closed: bytes of it are needed", inode.name.decode(errors="replace"))
        await self._commits.commit(inode)
        return True

    @asynccontextmanager
    async def gathered(self, top: Inode) -> AsyncIterator[None]:
        """Within, no bytes of a file at or below `top` are in a part alone, so that its key may change."""
        self._uploader.keeping += 1
        try:
            for inode in list(self._commits.drafts):
                if self._inodes.is_under(inode, top):
                    await self.gather(inode, 0, inode.size)
            yield
        finally:
            self._uploader.keeping -= 1


def _may_send(inode: Inode, open_file: OpenFile, draft: Draft) -> bool:
    """Whether parts of a draft may go up beside its writer.

    Not while a commit or a removal is under way, nor after a request without an answer: it may have completed the
    upload, which the next commit finds out.
    """
    is_free = not draft.is_committing and not open_file.is_leaving and not open_file.in_flight.tokens
    return is_free and open_file.draft is draft and inode.parent is not None


def _upload_of(inode: Inode) -> Upload | None:
    open_file = opened(inode)
    return None if open_file is None else open_file.upload
