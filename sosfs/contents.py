"""Which bytes a file has: open files, reading, writing, truncating, and bringing drafts into the bucket.

An inode's `Content` counts its handles and holds its draft, if it is being changed; every handle of the
mount sees the draft at once. A handle that only reads stays with the version it was opened on.
`close` and `fsync` return when the object is in the bucket, or with the error that kept it out; the
bytes then stay in the draft, and every later close, fsync, the retry task and the drain try again.

Concurrency: trio thread only; one commit at a time for an inode (`Content.lock`).
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import time

import trio

from .attributes import Attributes
from .blocks import Blocks, Source
from .conflict import Conflicts
from .deletions import Deletions
from .draft import Draft, State, fresh
from .errors import Cause, StoreError
from .gate import Gate
from .inodes import Inode, Inodes, Known
from .reader import Stream
from .spool import SpoolArea
from .store import Acl, Guard, Properties, Version
from .tasks import each
from .upload import Upload, Uploader

log = logging.getLogger(__name__)

DETACH_MAX = 256 << 20  # bytes; a larger file that is unlinked while open is ESTALE to its readers
STREAM_MIN = 64 << 20  # bytes; a smaller file's parts all go up at close, with its final attributes
RETRY_FIRST, RETRY_MAX = 5.0, 300.0  # seconds between tries to send what a failed close left


class Content:
    """What is open and what has changed of one file."""

    __slots__ = ("draft", "lock", "retrying", "source", "times_given", "upload", "writers")

    def __init__(self) -> None:
        self.draft: Draft | None = None
        self.upload: Upload | None = None
        self.source: Source | None = None  # our own newest version, which every handle goes on with
        self.lock = trio.Lock()
        self.writers = 0
        self.times_given = False  # mtime was set by the user after the last write
        self.retrying = False


class Handle:
    """One open file: its inode, its version, how it is being read."""

    __slots__ = ("content", "inode", "reads", "source", "stream", "writes")

    def __init__(self, inode: Inode, content: Content, flags: int) -> None:
        self.inode = inode
        self.content = content
        self.writes = flags & os.O_ACCMODE != os.O_RDONLY
        self.source: Source | None = None
        self.stream = Stream()
        self.reads = 0


class Contents:
    """The bytes half of the filesystem."""

    def __init__(
        self,
        inodes: Inodes,
        blocks: Blocks,
        spools: SpoolArea,
        uploader: Uploader,
        attributes: Attributes,
        deletions: Deletions,
        gate: Gate,
        conflicts: Conflicts,
    ) -> None:
        self._inodes = inodes
        self._blocks = blocks
        self._spools = spools
        self._uploader = uploader
        self._store = uploader.store
        self._attributes = attributes
        self._deletions = deletions
        self._gate = gate
        self._conflicts = conflicts
        self.dirty: set[Inode] = set()  # drafts that the bucket lacks

    # Opening and closing

    async def open(self, inode: Inode, flags: int) -> Handle:
        """Opens a file; O_TRUNC empties it. Raises OSError EISDIR, and what the bucket answers."""
        if inode.is_directory:
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        handle = Handle(inode, self._content(inode), flags)
        if flags & os.O_TRUNC and handle.writes:
            self._truncate(inode, 0)
        inode.opens += 1
        handle.content.writers += handle.writes
        return handle

    def create(self, inode: Inode, flags: int) -> Handle:
        """Opens a file that does not exist in the bucket yet; an empty draft waits for the first close."""
        content = self._content(inode)
        if content.draft is None:
            content.draft = fresh(self._spools.new(), self._blocks)
            self._pin(inode)
        handle = Handle(inode, content, flags)
        inode.opens += 1
        content.writers += handle.writes
        return handle

    async def release(self, handle: Handle) -> None:
        """The last close of a handle. Never raises: what could not be sent stays and is tried again."""
        inode, content = handle.inode, handle.content
        inode.opens -= 1
        content.writers -= handle.writes
        draft = content.draft
        if draft is not None and content.writers == 0:
            if draft.is_dirty and inode.parent is not None:
                self._retry_later(inode)
            else:
                await self._let_go(inode)
        if inode.opens == 0 and content.draft is None:
            inode.content = None

    async def _let_go(self, inode: Inode) -> None:
        """Frees a draft that the bucket has, or that nobody can reach any more."""
        content = inode.content
        if content is None or content.draft is None:
            return
        draft, upload = content.draft, content.upload
        if draft.is_dirty or (draft.state is State.ORPHAN and inode.opens):
            return
        content.draft = content.upload = None
        if upload is not None:
            await upload.abort()
        draft.close()
        self._unpin(inode)

    # Reading and writing

    async def read(self, handle: Handle, start: int, size: int) -> bytes | memoryview:
        """Up to `size` bytes at `start`. Raises OSError ESTALE when the handle's version is gone."""
        draft = handle.content.draft
        if draft is not None:
            return await draft.read(start, start + size)
        source = handle.source = handle.content.source or handle.source or self._source(handle.inode)
        try:
            body = await handle.stream.read(self._blocks, source, start, start + size)
        except StoreError as error:
            if error.cause not in (Cause.CONFLICT, Cause.ABSENT):
                raise
            if handle.reads or handle.inode.parent is None:
                raise OSError(errno.ESTALE, "the version that was opened is gone") from error
            # Nothing was handed out yet, so this handle may still begin with the new version.
            await self._attributes.refresh(handle.inode)
            handle.source = handle.content.source = None
            handle.source = self._source(handle.inode)
            body = await handle.stream.read(self._blocks, handle.source, start, start + size)
        handle.reads += 1
        return body

    async def write(self, handle: Handle, offset: int, data: bytes | memoryview) -> int:
        """Stores `data` at `offset` in the draft; full parts of large files go up behind the writer."""
        inode, content = handle.inode, handle.content
        draft = self._begin(inode)
        before = draft.size
        await draft.write(offset, data)
        if content.upload is not None:
            content.upload.written(min(before, offset), offset + len(data))
        inode.size = draft.size
        content.times_given = False
        inode.touch()
        if draft.size >= STREAM_MIN and draft.base_stop == 0 and inode.parent is not None:
            await self._follow(inode, content, draft, offset)
        return len(data)

    async def _follow(self, inode: Inode, content: Content, draft: Draft, offset: int) -> None:
        """Lets full parts go up behind the writer."""
        if draft.state is State.COMMITTING:
            return
        key = self._inodes.key(inode)
        if content.upload is None or content.upload.key != key:
            await self._drop_upload(content)
            properties, acl = await self._carry(inode)
            content.upload = content.upload or Upload(self._uploader, draft, key, properties, acl)
        content.upload.follow(offset)

    async def _drop_upload(self, content: Content) -> None:
        if content.upload is not None:
            upload, content.upload = content.upload, None
            await upload.abort()

    async def truncate(self, inode: Inode, size: int) -> None:
        """Sets a file's length; without an open writer it is committed at once."""
        self._content(inode)
        self._truncate(inode, size)
        assert inode.content is not None
        if inode.content.writers == 0:
            try:
                await self.commit(inode)
            finally:
                await self._let_go(inode)
                if inode.content is not None and inode.content.draft is not None:
                    self._retry_later(inode)

    def _truncate(self, inode: Inode, size: int) -> None:
        content = self._content(inode)
        draft = self._begin(inode)
        low, high = sorted((size, draft.size))
        draft.truncate(size)
        if content.upload is not None and low < high:
            content.upload.written(low, high)
        inode.size = size
        content.times_given = False
        inode.touch()

    def _content(self, inode: Inode) -> Content:
        if inode.content is None:
            inode.content = Content()
        return inode.content

    def _begin(self, inode: Inode) -> Draft:
        """The draft of a file, begun on the version that is known now."""
        content = self._content(inode)
        if content.draft is None:
            base = None
            expected: Version | Guard = Guard.ABSENT
            if inode.version is not None:
                expected = inode.version
                base = Source(self._inodes.key(inode), inode.version.etag, inode.version.size)
            content.draft = Draft(self._spools.new(), self._blocks, base, expected)
            self._pin(inode)
        return content.draft

    def _pin(self, inode: Inode) -> None:
        inode.pins += 1
        self.dirty.add(inode)

    def _unpin(self, inode: Inode) -> None:
        inode.pins -= 1
        self.dirty.discard(inode)

    async def target(self, inode: Inode) -> bytes:
        """Where a symbolic link points to. Raises OSError EINVAL for anything else."""
        if not stat.S_ISLNK(inode.mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        source = self._source(inode)
        return bytes(await self._blocks.read(source, 0, source.size))

    def kernel_pages_hold(self, inode: Inode) -> bool:
        """Whether the kernel's cached pages of a file are of the version an open gets; from now on they are."""
        version = inode.version.etag if inode.version is not None else ""
        before, inode.pages = inode.pages, version
        return before in ("", version)

    def time_given(self, inode: Inode) -> None:
        """The user set the modification time: the next commit stores exactly that."""
        if inode.content is not None:
            inode.content.times_given = True

    def now_ns(self) -> int:
        """The time of day."""
        return time.time_ns()

    def _source(self, inode: Inode) -> Source:
        if inode.version is None:
            raise OSError(errno.ESTALE, "the file is gone from the bucket")
        return Source(self._inodes.key(inode), inode.version.etag, inode.version.size)

    # Committing

    async def flush(self, handle: Handle) -> None:
        """What every close of a descriptor does: a changed file is in the bucket afterwards."""
        if handle.content.draft is not None and handle.writes:
            await self.commit(handle.inode)

    async def fsync(self, inode: Inode) -> None:
        """The file's bytes and attributes are in the bucket afterwards."""
        await self.commit(inode)
        await self._attributes.settle(inode)

    async def settle_under(self, top: Inode) -> None:
        """As `fsync`, for everything at and below a directory, side by side."""
        changed = {inode for inode in (*self.dirty, *self._attributes.dirty) if self._inodes.is_under(inode, top)}
        await each(self.fsync, changed, at_once=16)

    async def commit(self, inode: Inode) -> None:
        """Brings a changed file into the bucket. Raises what kept it out; the bytes stay here then."""
        content = inode.content
        if content is None:
            return
        async with content.lock:
            draft = content.draft
            if draft is None or not draft.is_dirty or inode.parent is None:
                return
            async with self._gate.passing(inode):
                if inode.parent is not None:
                    await self._commit(inode, content, draft)

    async def _commit(self, inode: Inode, content: Content, draft: Draft) -> None:
        key = self._inodes.key(inode)
        await self._deletions.settle(key)
        properties, acl = await self._carry(inode)
        posix, serial = inode.posix, draft.commit_begins()
        try:
            version = await self._send(content, draft, key, properties, acl)
        except StoreError as error:
            draft.commit_failed()
            lost = error.cause is Cause.CONFLICT or (error.cause is Cause.ABSENT and draft.expected is not Guard.ABSENT)
            if lost:
                await self._lost(inode, draft, error)
            raise
        except BaseException:
            draft.commit_failed()
            raise
        before = inode.version.etag if inode.version is not None else ""
        inode.pages = version.etag if inode.pages in ("", before) else inode.pages
        draft.commit_landed(Source(key, version.etag, version.size), version, serial)
        inode.version, inode.known, inode.whole = version, Known.ALL, True
        inode.checked = trio.current_time()
        inode.acl_private_until = inode.checked + self._attributes.ttl if acl is None else 0.0
        content.source = draft.base
        used = content.upload.properties if content.upload is not None else properties
        content.upload = None
        self._attributes.wrote(inode, used, posix, adopt_time=not content.times_given)

    async def _send(
        self, content: Content, draft: Draft, key: str, properties: Properties, acl: Acl | None
    ) -> Version:
        size = draft.size
        if content.upload is not None and (content.upload.key != key or size <= self._uploader.plan.single):
            await self._drop_upload(content)
        if size <= self._uploader.plan.single:
            async with self._uploader.budget.holding(size):
                body = await draft.read(0, size)
                version = await self._store.put(key, body, properties, condition=draft.expected, acl=acl)
                self._uploader.sent_bytes += len(body)
            self._blocks.offer(Source(key, version.etag, len(body)), memoryview(body))
            return version
        if content.upload is None:
            content.upload = Upload(self._uploader, draft, key, properties, acl)
        parts = await content.upload.finish(size)
        try:
            return await content.upload.complete(parts, draft.expected)
        except StoreError as error:
            await content.upload.reconcile(error)
            raise

    async def _carry(self, inode: Inode) -> tuple[Properties, Acl | None]:
        """What the object must have beside its bytes: what it had, with the attributes of now."""
        if inode.version is not None:
            await self._attributes.learn_whole(inode)
            acl = await self._attributes.acl(inode)
        else:
            acl = None
        return self._attributes.properties(inode), acl

    async def _lost(self, inode: Inode, draft: Draft, error: StoreError) -> None:
        """Another client's version won: ours is kept beside it, and the inode shows theirs."""
        await self._conflicts.keep(inode, draft, error)
        draft.state, draft.saved = State.CONFLICT, draft.serial
        if inode.content is not None:
            await self._drop_upload(inode.content)
            inode.content.draft = None
        draft.close()
        self._unpin(inode)
        await self._attributes.refresh(inode)

    # Moving and leaving the tree

    def moved(self, inode: Inode) -> None:
        """A rename gave the inode another key, and its object there a new version with the same bytes."""
        content = inode.content
        if content is None:
            return
        if inode.version is not None:
            content.source = self._source(inode)
        draft = content.draft
        if draft is not None and inode.version is not None:
            draft.expected = inode.version
            draft.base = content.source if draft.base is not None else None

    async def detach(self, inode: Inode) -> None:
        """Makes an open file independent of its object, which is about to go. Raises what reading raises."""
        content = inode.content
        if content is None or (inode.opens == 0 and content.draft is None):
            return
        async with content.lock:
            await self._drop_upload(content)
            if inode.opens and inode.version is not None and inode.size <= DETACH_MAX:
                await self._begin(inode).pull()
            if content.draft is not None:
                content.draft.state = State.ORPHAN
                if inode.opens == 0:
                    await self._let_go(inode)

    # What could not be sent

    def _retry_later(self, inode: Inode) -> None:
        content = inode.content
        if content is not None and not content.retrying:
            content.retrying = True
            self._uploader.spawn(lambda: self._retry(inode, content))

    async def _retry(self, inode: Inode, content: Content) -> None:
        """Tries until the draft is in the bucket; a reader or writer that comes meanwhile sees its bytes."""
        pause = RETRY_FIRST
        try:
            while content.draft is not None and content.draft.is_dirty and inode.parent is not None:
                await trio.sleep(pause)
                pause = min(2 * pause, RETRY_MAX)
                try:
                    await self.commit(inode)
                except OSError as error:
                    log.warning("%s is not in the bucket yet: %s", inode.name.decode(errors="replace"), error)
        finally:
            content.retrying = False
        if content.writers == 0:
            await self._let_go(inode)
            if inode.opens == 0 and content.draft is None:
                inode.content = None

    async def drain(self) -> list[Inode]:
        """Sends every draft once more; returns those that did not get through."""
        left = []
        for inode in list(self.dirty):
            try:
                await self.commit(inode)
            except OSError as error:
                log.error("%s could not be sent: %s", inode.name.decode(errors="replace"), error)
            content = inode.content
            if content is not None and content.draft is not None and content.draft.is_dirty and inode.parent is not None:
                left.append(inode)
            else:
                await self._let_go(inode)
        return left

    @property
    def pending(self) -> tuple[int, int]:
        """Files and bytes that the bucket lacks."""
        drafts = [
            inode.content.draft
            for inode in self.dirty
            if inode.parent is not None and inode.content is not None and inode.content.draft is not None
        ]
        waiting = [draft for draft in drafts if draft.is_dirty]
        return len(waiting), sum(draft.dirty.total for draft in waiting)
