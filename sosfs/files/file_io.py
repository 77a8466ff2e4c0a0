"""Open, read, write, truncate and close files.

An inode's `Content` counts its handles and holds its draft, if it is being changed; every handle of the
mount sees the draft at once. A handle that only reads stays with the version it was opened on, and goes
on only with what this mount itself wrote.

Concurrency: trio thread only; the kernel serialises the writes of one inode.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from sosfs.attributes.writeback import AttributeWriteback
from sosfs.cache.blocks import Blocks, Source, Spawn
from sosfs.errors import Cause, StoreError
from sosfs.files import duplicate_descriptors
from sosfs.files.base_fetch import BaseFetch
from sosfs.files.commits import Commits
from sosfs.files.draft import Draft, DraftState, fresh
from sosfs.files.failed_writes import FailedWrites
from sosfs.files.open_file import Handle, OpenFile, content_of, draft_of, may_be_cut, opened
from sosfs.files.page_cache import PageCache
from sosfs.files.prefetch import FilePrefetch
from sosfs.files.spool import SpoolArea
from sosfs.files.upload import Uploader
from sosfs.files.write_behind import WriteBehind
from sosfs.s3.protocol import Version
from sosfs.tree.inodes import Inode, Inodes
from sosfs.tree.listing import Listings

DETACH_MAX = 256 << 20  # bytes; a larger file that is unlinked while open is ESTALE to its readers


class FileIO:
    """The bytes half of the filesystem."""

    def __init__(
        self,
        inodes: Inodes,
        blocks: Blocks,
        spools: SpoolArea,
        uploader: Uploader,
        listings: Listings,
        attributes: AttributeWriteback,
        commits: Commits,
        pages: PageCache,
        spawn: Spawn,
        failed_writes: FailedWrites,
        *,
        mountpoint: Path,
        dirty_limit: int,
        patience: float,
    ) -> None:
        self._inodes = inodes
        self._blocks = blocks
        self._spools = spools
        self._uploader = uploader
        self._attributes = attributes
        self._commits = commits
        self.records = commits.records
        self._pages = pages
        self._spawn = spawn
        self._mountpoint = os.fspath(mountpoint)
        self._dirty_limit = dirty_limit
        self._base_fetch = BaseFetch(blocks, spools, self.records, spawn, room=dirty_limit // 2)
        self.failed_writes = failed_writes
        self.writeback = WriteBehind(
            inodes, spools, uploader, commits, self._begin, dirty_limit=dirty_limit, patience=patience
        )
        self._file_prefetch = FilePrefetch(inodes, listings, attributes, blocks, spawn)

    # Opening and closing

    async def open(self, inode: Inode, flags: int, task: int) -> Handle:
        """Opens a file; O_TRUNC empties it, for a reader too: at once, since no close of a writer follows (open(2)).

        Raises OSError EISDIR, and for a reader what truncating raises.
        """
        if inode.is_directory:
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        if flags & os.O_TRUNC:
            await may_be_cut(inode)
        await self._pages.wait_for(inode)  # the last: until it is open for writing none may be given any more
        self.require_name(inode)  # the kernel looks the name up again
        handle = Handle(inode, content_of(inode), flags, task)
        if flags & os.O_TRUNC and handle.writes:
            self._truncate(inode, 0)
        elif flags & os.O_TRUNC:
            await self.truncate(inode, 0)
            handle = Handle(inode, content_of(inode), flags, task)
        if handle.open_file.draft is None and inode.version is not None:
            handle.source = handle.open_file.source or self._source(inode)
            handle.is_unread = inode.pages != inode.version.etag  # else the kernel may have handed out pages of it
        inode.opens += 1
        handle.open_file.writers += handle.writes
        return handle

    async def create(self, inode: Inode, flags: int, task: int) -> Handle:
        """Opens a file that does not exist in the bucket yet; an empty draft waits for the first close."""
        open_file = content_of(inode)
        if open_file.draft is None:
            open_file.draft = fresh(self._spools.new(), self._blocks)
            self._commits.began(inode)
            if inode.parent is not None:
                inode.parent.touch()
        return await self.open(inode, flags & ~os.O_TRUNC, task)

    async def release(self, handle: Handle) -> None:
        """The last close of a handle. Never raises: what could not be sent stays and is tried again."""
        inode, open_file = handle.inode, handle.open_file
        inode.opens -= 1
        open_file.writers -= handle.writes
        draft = open_file.draft
        if draft is not None and open_file.writers == 0:
            if not open_file.is_to_be_sent and draft.refused:
                await self.failed_writes.discard(inode)
            elif draft.is_dirty and inode.parent is not None:
                self._commits.send_later(inode)  # pages of a mapping may come after the last close
            else:
                await self._commits.let_go(inode, open_file)
        if inode.opens == 0 and open_file.draft is None and opened(inode) is open_file:
            inode.open_file = None

    async def flush(self, handle: Handle) -> None:
        """What every close of a descriptor does: a changed file is safe afterwards, as `--durability` says."""
        draft = handle.open_file.draft
        if draft is None or not handle.writes:
            return
        if draft.is_blank and duplicate_descriptors.holds(handle.task, self.path(handle.inode)):
            return  # a duplicate was closed before anything was written
        try:
            await self._save(handle.inode)
        except OSError:
            await self.failed_writes.hide(handle.inode)
            raise

    async def _save(self, inode: Inode, *, durably: bool = False) -> None:
        """As `Commits.save`; where another version won, the name leads there before this program is told."""
        parent, name = inode.parent, inode.name
        try:
            await self._commits.save(inode, durably=durably)
        except OSError as error:
            if error.errno == errno.ESTALE and parent is not None:
                await self._pages.forget_name(parent, name)
            raise

    async def fsync(self, inode: Inode) -> None:
        """The file's bytes and attributes are safe afterwards."""
        try:
            await self._save(inode, durably=True)
        finally:
            await self.failed_writes.discard(inode)  # what its last writer has left to this one meanwhile
        await self._attributes.fsync(inode, durability=self._commits.durability)

    def allocated(self, inode: Inode) -> int:
        """How many of its bytes are no holes, as far as that is known: of a file being changed it may be fewer."""
        draft, version = draft_of(inode), inode.version
        if draft is not None and draft.state is not DraftState.CLEAN:
            zeros = self._blocks.zeros.total(draft.base.etag, draft.base_stop) if draft.base is not None else 0
            return draft.allocated(zeros)
        return inode.size - (self._blocks.zeros.total(version.etag, inode.size) if version is not None else 0)

    def path(self, inode: Inode) -> str:
        """Where a user finds a file."""
        return self._inodes.path(inode, self._mountpoint)

    # Reading

    async def read(self, handle: Handle, start: int, size: int) -> bytes | memoryview:
        """Up to `size` bytes at `start`. Raises OSError ESTALE when the handle's version is gone."""
        draft = handle.open_file.draft
        if draft is not None:
            return await self._read_changed(handle, draft, start, start + size)
        source = handle.source = handle.open_file.source or handle.source or self._source(handle.inode)
        if not start and not handle.reads:
            self._file_prefetch.read(handle.inode, handle.task)
        try:
            body = await handle.stream.read(self._blocks, source, start, start + size)
        except StoreError as error:
            if error.cause not in (Cause.CONFLICT, Cause.ABSENT):
                raise
            await self._follow(handle.inode, source)
            if handle.open_file.source not in (None, source):
                return await self.read(handle, start, size)  # a rename or a rewrite goes on with the same bytes
            if handle.inode.parent is not None:
                await self._refresh(handle)
            if not handle.is_unread or handle.inode.parent is None:
                raise OSError(errno.ESTALE, "the version that was opened is gone") from error
            # Nothing was handed out yet, so this handle may still begin with the new version.
            handle.open_file.source = None
            handle.source = self._source(handle.inode)
            body = await handle.stream.read(self._blocks, handle.source, start, start + size)
        handle.reads, handle.is_unread = handle.reads + 1, False
        self._pages.watch(handle.inode, handle.stream.running)
        if handle.stream.begun:
            self._pages.bring(handle.inode, handle.source, handle.stream.begun)
            handle.stream.begun.clear()
        return body

    async def _follow(self, inode: Inode, source: Source) -> None:
        """Whether a rename or a copy of ours has put the same bytes elsewhere is known afterwards."""
        await self._attributes.has_moved(inode, source.key)
        await self._attributes.rewritten(inode)
        await self._attributes.ascertain(inode)

    async def _refresh(self, handle: Handle) -> None:
        """Who opens the file from now on gets what the bucket has, and so does an only handle that is yet unread."""
        inode = handle.inode
        await self._attributes.refresh(inode, in_place=handle.is_unread and inode.opens == 1)
        await self._pages.doubt(inode)

    def require_name(self, inode: Inode) -> None:
        """Raises ESTALE for a file that another client replaced or removed since its name was looked up.

        And for one that was forgotten while it was waited for: its name leads to another inode.
        """
        if draft_of(inode) is not None:
            return
        if inode.is_left_behind:
            raise OSError(errno.ESTALE, "another client replaced or removed it")
        self._inodes.require(inode)

    async def _read_changed(self, handle: Handle, draft: Draft, start: int, stop: int) -> bytes | memoryview:
        """As `read`: what the draft has not is read as of a file that nobody changes, ahead and around."""
        await self.writeback.gather(handle.inode, start, stop)
        draft.require_had(start, stop)
        base, edge = draft.base, min(stop, draft.base_stop)
        reading = draft.read(start, stop)
        if base is None or draft.local.covers(start, edge):
            return await reading
        if handle.writes:
            self._base_fetch.around(start, handle.inode, handle.open_file, draft)
        try:
            body = await handle.stream.read_ahead(self._blocks, base, start, edge, reading, room=self._blocks.capacity)
        except StoreError as error:
            if error.cause not in (Cause.CONFLICT, Cause.ABSENT):
                raise
            await self._follow(handle.inode, base)
            if handle.open_file.draft is not None and handle.open_file.draft.base == base:
                raise OSError(errno.ESTALE, "the version that was opened is gone") from error
            return await self.read(handle, start, stop - start)  # a rename or a rewrite goes on with the same bytes
        draft.require_had(start, stop)  # what was found lost while the spool was read
        handle.stream.begun.clear()  # the kernel is given nothing of a file that changes
        return body

    async def target(self, inode: Inode) -> bytes:
        """Where a symbolic link points to. Raises OSError EINVAL for anything else."""
        if not stat.S_ISLNK(inode.mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        source = self._source(inode)
        return bytes(await self._blocks.read(source, 0, source.size))

    def _source(self, inode: Inode) -> Source:
        if inode.version is None or inode.is_left_behind:
            raise OSError(errno.ESTALE, "the file is gone from the bucket")
        return Source(self._inodes.key(inode), inode.version.etag, inode.version.size)

    # Writing

    async def write(self, handle: Handle, offset: int, data: bytes | memoryview) -> int:
        """Stores `data` at `offset` in the draft, once there is room for it. Raises what `WriteBehind.write` does."""
        inode, open_file = handle.inode, handle.open_file
        await self._commits.wait_for_room(self._dirty_limit)
        draft = await self.writeback.write(inode, offset, data)
        inode.size = draft.size
        open_file.times_given = False
        inode.touch()
        await self.writeback.follow(inode, open_file, draft, offset)
        return len(data)

    async def truncate(self, inode: Inode, size: int) -> None:
        """Sets a file's length; without an open writer it is safe at once, as after a close."""
        if size < inode.size:
            await may_be_cut(inode)
        if 0 < size < inode.size:
            await self.writeback.gather(inode, 0, inode.size)  # a part that is cut is sent again
        await self._pages.wait_for(inode)
        open_file = content_of(inode)
        self._truncate(inode, size)
        if open_file.writers:
            return
        try:
            await self._commits.save(inode)
        finally:
            if open_file.is_to_be_sent:
                self._commits.send_later(inode)
            else:
                await self.failed_writes.discard(inode)
                await self._commits.let_go(inode, open_file)

    def _truncate(self, inode: Inode, size: int) -> None:
        open_file = content_of(inode)
        draft = self._begin(inode)
        low, high = sorted((size, draft.size))
        self.records.touched(inode)
        draft.truncate(size)
        inode.size = size  # as the draft has, whatever the journal says
        if open_file.upload is not None and low < high:
            open_file.upload.written(low, high)
            if size == low:
                open_file.upload.cut()
        self.records.cut(inode)
        draft.trim()
        open_file.times_given = False
        inode.touch()

    def _begin(self, inode: Inode) -> Draft:
        """The draft of a file, begun on the version that is known now. Raises ESTALE while it loses to another.

        And for one that has neither a name nor bytes any more.
        """
        open_file = content_of(inode)
        if open_file.draft is not None and open_file.draft.state is DraftState.CONFLICT:
            raise OSError(errno.ESTALE, "another client's version won")
        if open_file.draft is None:
            self.require_name(inode)  # it would be written to nowhere
            if inode.version is None:
                raise OSError(errno.ESTALE, "it was given up, or removed")
            open_file.draft = Draft(self._spools.new(), self._blocks, self._source(inode), inode.version)
            self._commits.began(inode)
        return open_file.draft

    def time_given(self, inode: Inode) -> None:
        """The user set the modification time: the next commit stores exactly that."""
        open_file = opened(inode)
        if open_file is not None:
            open_file.times_given = True

    # Moving and leaving the tree

    async def ascertain(self, inode: Inode) -> None:
        """Whether the bucket has a file is known afterwards. Raises what prevents it."""
        await self._commits.ascertain(inode)

    async def doubt(self, inode: Inode) -> None:
        """Another version may have a file's name by now: the kernel asks again, for its attributes and for the name."""
        await self._pages.doubt(inode)
        if inode.parent is not None:  # not waited for: who calls may hold the directory's lock
            self._spawn(partial(self._pages.forget_name, inode.parent, inode.name))

    def copied(self, before: Version | None, after: Version) -> None:
        """The server has copied a version: what is known of its bytes holds for the copy."""
        if before is not None and before.size == after.size:
            self._blocks.zeros.copied(before.etag, after.etag, after.size)

    def moved(self, inode: Inode) -> None:
        """A rename gave the inode another key, and its object there a new version with the same bytes."""
        open_file = opened(inode)
        if open_file is None:
            return
        self._commits.leave_upload(inode)
        if inode.version is not None:
            open_file.rebase(self._source(inode), inode.version)
        self.records.moved(inode)

    def replaces(self, inode: Inode, version: Version) -> None:
        """A rename put a file that is not in the bucket yet over one that is."""
        inode.version = version
        draft = draft_of(inode)
        if draft is not None:
            draft.expected = version
        self._commits.leave_upload(inode)
        self.records.moved(inode)

    @asynccontextmanager
    async def leaving(self, inode: Inode) -> AsyncIterator[None]:
        """Within, an inode's object and name go; who has it open keeps its bytes. Raises what reading raises.

        Its draft is kept, and nobody sends it, until that is done: what fails or is cut short loses nothing.
        """
        open_file = opened(inode)
        if open_file is None or (inode.opens == 0 and open_file.draft is None):
            yield
            return
        async with self._removing(open_file), open_file.lock:
            await self._commits.ascertain(inode)  # what is there goes too, or would come back
            if inode.opens and inode.version is not None and self._spools.disk.room().free > inode.size <= DETACH_MAX:
                await self._base_fetch.whole(inode, open_file, self._begin(inode))
            try:
                yield
            except StoreError as error:
                open_file.in_flight.removal |= error.cause is Cause.FAILED
                raise
            self.left(inode)
            await self._commits.drop_upload(open_file)
            await self._commits.let_go(inode, open_file)

    @asynccontextmanager
    async def _removing(self, open_file: OpenFile) -> AsyncIterator[None]:
        """Within, nothing is sent of a large file: what is on its way ends, and goes on only if the file stays."""
        self._is_leaving(open_file, True)
        try:
            yield
        finally:
            self._is_leaving(open_file, False)

    @staticmethod
    def _is_leaving(open_file: OpenFile, is_it: bool) -> None:
        open_file.is_leaving = is_it
        if open_file.upload is not None:
            open_file.upload.is_being_removed(is_it)

    def left(self, inode: Inode) -> None:
        """An inode has lost its name: its draft is sent no more, and forgotten by the journal."""
        open_file = opened(inode)
        if open_file is not None and open_file.draft is not None:
            open_file.draft.state = DraftState.ORPHAN
            self.records.forget(open_file)
