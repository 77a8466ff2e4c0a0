"""When a draft goes into the bucket, and what a close waits for: decided here and only here.

`--durability bucket`: close and fsync return when the object is in the bucket, or with the error that
kept it out; the bytes then stay here, and every later close, fsync and the sending task try again.
`--durability journal`: they return when the bytes and the record of the draft are on this machine's disk;
the sending task brings them into the bucket a moment later, so that what is renamed, rewritten or
removed at once goes up once or never. In both, fsync of a directory and the drain wait for the bucket.

Concurrency: trio thread only; one commit at a time for an inode (`Content.lock`), `SENDERS` in the background.
"""

from __future__ import annotations

import errno
import logging
from functools import partial
from typing import Protocol

import trio

from sosfs.attributes.writeback import Attributes
from sosfs.cache.blocks import Source, Spawn
from sosfs.concurrency.backoff import Retries
from sosfs.concurrency.budgets import Backlog
from sosfs.concurrency.tasks import each
from sosfs.concurrency.threads import LOCAL
from sosfs.config.parameters import Durability
from sosfs.errors import Cause, StoreError
from sosfs.files import pending
from sosfs.files.conflict import Conflicts
from sosfs.files.debounce import Resting
from sosfs.files.draft import Draft, State
from sosfs.files.draft_records import Records
from sosfs.files.open_file import Content, opened
from sosfs.files.spool import INLINE, DamagedSpool
from sosfs.files.upload import Announce, Truncated, Upload, Uploader, etag_of
from sosfs.journal.journal import Journal
from sosfs.s3 import recognition
from sosfs.s3.preconditions import look
from sosfs.s3.protocol import Acl, Detail, Guard, Object, Properties, Right, Version
from sosfs.tree.inodes import Inode, Inodes, Known, stored
from sosfs.tree.subtree_lock import Gate

log = logging.getLogger(__name__)

SENDERS = 16  # drafts going up in the background
RETRY_FIRST, RETRY_MAX = 5.0, 300.0  # seconds between tries


class PendingDeletes(Protocol):
    """The deletes of keys that were asked for and may not have been answered."""

    async def settle(self, key: str) -> None:
        """Returns once no delete of `key` is under way; raises OSError where one cannot be done."""


class Commits:
    """Brings drafts into the bucket."""

    def __init__(
        self,
        inodes: Inodes,
        uploader: Uploader,
        attributes: Attributes,
        deletions: PendingDeletes,
        gate: Gate,
        conflicts: Conflicts,
        journal: Journal,
        spawn: Spawn,
        backlog: Backlog,
        retries: Retries,
        *,
        durability: Durability,
    ) -> None:
        self.durability = durability
        self.drafts: set[Inode] = set()  # inodes that have one
        self._backlog = backlog  # of the drafts that tasks are sending
        self.records = Records(inodes, attributes, journal)
        self._inodes = inodes
        self._uploader = uploader
        self._attributes = attributes
        self._deletions = deletions
        self._gate = gate
        self._conflicts = conflicts
        self._journal = journal
        self._spawn = spawn
        self._retries = retries
        self._senders = trio.CapacityLimiter(SENDERS)
        self._resting = Resting(spawn)
        self._hurry = False  # the drain has begun: nothing waits for company any more

    # What close and fsync do

    async def save(self, inode: Inode) -> None:
        """Keeps the promise of close and fsync for a changed file. Raises what prevents it."""
        content = opened(inode)
        if content is None or content.draft is None or not content.draft.is_dirty or inode.parent is None:
            return
        content.draft.require_whole()
        if self.durability is Durability.JOURNAL and await self.records.saved(inode, content, content.draft):
            self.send_later(inode)
            return
        try:
            await self.commit(inode)
        except OSError as error:
            if isinstance(error, StoreError) and error.errno == errno.EINVAL:
                log.error("the store refuses %s: %s", inode.name.decode(errors="replace"), error)  # a fault of ours
            await self._keep(inode)
            raise

    async def _keep(self, inode: Inode) -> None:
        """Records a draft that could not be sent, so that it survives this process."""
        content = opened(inode)
        if content is None or content.draft is None or not content.draft.is_sendable or inode.parent is None:
            return
        try:
            await self.records.save(inode, content, content.draft)
        except OSError as error:
            log.error("%s is neither in the bucket nor in the journal: %s", inode.name.decode(errors="replace"), error)

    async def record_all(self) -> None:
        """Records every draft that the bucket lacks."""
        for inode in list(self.drafts):
            await self._keep(inode)

    # Into the bucket

    async def commit(self, inode: Inode) -> None:
        """Brings a changed file into the bucket. Raises what kept it out; the bytes stay here then."""
        if (content := opened(inode)) is None:
            return
        async with content.lock:
            draft = content.draft
            if draft is None or not draft.is_dirty or inode.parent is None:
                return
            draft.require_whole()
            async with self._gate.passing(inode):
                if inode.parent is None:
                    return
                with content.committing():
                    await self._commit(inode, content, draft)

    async def _commit(self, inode: Inode, content: Content, draft: Draft) -> None:
        key = self._inodes.key(inode)
        await self._deletions.settle(key)
        await self._attributes.rewritten(inode)  # a copy under way would make another version, or undo this one
        await self._attributes.ascertain(inode)
        if content.going is not None and await self.recognise(inode, draft, content.going[0], *content.late):
            self.records.moved(inode)
            await self.drop_upload(content)  # the object may be made of it: it is no more then
        posix, serial = inode.posix, draft.commit_begins()
        announce = partial(self.records.goes, inode, content, serial)
        try:
            properties, acl = await self.carry(inode)
            version = await self._send(content, draft, key, properties, acl, announce)
        except Truncated:
            draft.commit_failed()
            await self._commit(inode, content, draft)  # as it is now
            return
        except StoreError as error:
            draft.commit_failed()
            if error.cause is Cause.DENIED:
                self._attributes.refusals.add([Right.WRITE])
            if error.cause is Cause.CONFLICT or (error.cause is Cause.ABSENT and draft.expected is not Guard.ABSENT):
                if content.late and await self.recognise(inode, draft, *content.late):
                    content.going, content.late = None, ()
                    self.records.moved(inode)
                    await self._commit(inode, content, draft)
                    return
                await self._lost(inode, content, draft, error)
                raise OSError(errno.ESTALE, error.strerror) from error
            raise
        except BaseException:
            draft.commit_failed()
            raise
        before = inode.version.etag if inode.version is not None else ""
        inode.pages = version.etag if inode.pages in ("", before) else inode.pages
        draft.commit_landed(Source(key, version.etag, version.size), version, serial)
        used = content.upload.properties if content.upload is not None else properties
        content.upload, content.going, content.late = None, None, ()
        with self._journal.together():
            self._landed(inode, content, draft, version)
            self._attributes.wrote(inode, used, posix, adopt_time=not content.times_given)
        inode.acl_private_until = inode.checked + self._attributes.ttl if acl is None else 0.0

    async def recognise(self, inode: Inode, draft: Draft, *tokens: str) -> Object | None:
        """The object that a request of ours made whose answer was lost, if it is there; the draft stands on it."""
        key = self._inodes.key(inode)
        try:
            found = await look(self._uploader.store, key, detail=Detail.WHOLE)
        except StoreError as error:
            if error.cause is not Cause.ABSENT:
                raise
            return None
        if not any(recognition.is_ours(token, found, instead_of=draft.expected) for token in tokens):
            return None
        inode.version, inode.properties, inode.checked = found.version, found.properties, trio.current_time()
        draft.stand_on(Source(key, found.version.etag, found.version.size), found.version)
        return found

    async def ascertain(self, inode: Inode) -> None:
        """Which version the bucket has of a file is known afterwards, though the answer to our request was lost."""
        if (content := opened(inode)) and content.draft and content.going:
            await self.recognise(inode, content.draft, content.going[0], *content.late)

    def _landed(self, inode: Inode, content: Content, draft: Draft, version: Version) -> None:
        inode.version, inode.known, inode.whole = version, Known.ALL, True
        inode.checked = trio.current_time()
        stored(inode)
        content.source = draft.base
        self.records.landed(inode, content, draft)

    async def _send(
        self, content: Content, draft: Draft, key: str, properties: Properties, acl: Acl | None, announce: Announce
    ) -> Version:
        size, plan = draft.size, self._uploader.plan
        is_small = size <= plan.single and not draft.away
        if content.upload is not None and (content.upload.key != key or is_small):
            await self.drop_upload(content)
        if is_small:
            async with self._uploader.budget.holding(size):
                body = await draft.read(0, size)
                if draft.size < size:
                    raise Truncated(key)
                store, hashed = self._uploader.store, ""
                if store.hashes:
                    hashed = etag_of(body) if size <= INLINE else await LOCAL.run(etag_of, body)
                announce(recognition.token(hashed, size, properties, hashes=store.hashes))
                async with draft.outliving(body):
                    version = await store.put(key, body, properties, condition=draft.expected, acl=acl, digest=hashed)
                self._uploader.sent_bytes += len(body)
            self._uploader.blocks.offer(Source(key, version.etag, len(body)), memoryview(body))
            return version
        if content.upload is None:
            content.upload = Upload(self._uploader, draft, key, properties, acl)
        return await content.upload.finish(size, draft.expected, announce)

    async def carry(self, inode: Inode) -> tuple[Properties, Acl | None]:
        """What the object must have beside its bytes: what it had, with the attributes of now."""
        acl = None
        if inode.version is not None:
            await self._attributes.learn_whole(inode)
            acl = await self._attributes.acl(inode)
        return self._attributes.renewed(inode), acl

    async def drop_upload(self, content: Content) -> None:
        """Gives up the multipart upload of a draft, if it has one."""
        if content.upload is not None:
            upload, content.upload = content.upload, None
            await upload.abort()

    async def _lost(self, inode: Inode, content: Content, draft: Draft, error: StoreError) -> None:
        """Another client's version won: ours is kept beside it, and the inode shows theirs."""
        draft.state = State.CONFLICT  # takes no more: what came now would be nowhere
        try:
            await draft.spool.rest()  # what is being written will be acknowledged, so it is kept too
            if draft.away:
                log.error("%s: another client's version won, and this disk had no room to keep ours", error.request)
            else:
                await self._conflicts.keep(inode, draft, error)
        except BaseException:
            draft.commit_failed()
            raise
        draft.saved = draft.serial
        await self.let_go(inode, content)
        await self._attributes.refresh(inode)

    # Drafts come and go

    def began(self, inode: Inode) -> None:
        """An inode has a draft now."""
        inode.pins += 1
        self.drafts.add(inode)

    async def let_go(self, inode: Inode, content: Content) -> None:
        """Frees a draft that the bucket has, or that nobody can reach any more."""
        draft = content.draft
        if draft is None or draft.is_dirty or (draft.state is State.ORPHAN and inode.opens):
            return
        self.records.forget(content)
        content.draft, content.upload, upload = None, None, content.upload
        inode.pins -= 1
        self.drafts.discard(inode)
        await self.records.free(draft)
        if upload is not None:
            await upload.abort()

    def send_later(self, inode: Inode) -> None:
        """Lets a task bring the draft into the bucket, as often as it takes."""
        content = opened(inode)
        if content is not None and not content.sending:
            content.sending = True
            size = content.draft.local.total if content.draft is not None else 0
            self._backlog.waiting += size
            sending = partial(self._sending, inode, content, size)
            if self.durability is Durability.BUCKET:
                self._spawn(sending)
                return
            self._resting.add(sending)

    async def _sending(self, inode: Inode, content: Content, size: int) -> None:
        pause = 0.0
        try:
            while content.draft is not None and content.draft.is_sendable and inode.parent is not None:
                if pause:
                    await self._retries.pause(0 if self._hurry else pause)
                pause = min(max(2 * pause, RETRY_FIRST), RETRY_MAX)
                try:
                    async with self._senders:
                        await self.commit(inode)
                except OSError as error:
                    if content.draft is not None:
                        log.warning("%s is not in the bucket yet: %s", inode.name.decode(errors="replace"), error)
                    if isinstance(error, DamagedSpool):
                        self._journal.damage.note(f"{self._inodes.key(inode)}: {error.strerror}")
        finally:
            content.sending = False
            self._backlog.fell(size)
        if content.writers == 0:
            await self.let_go(inode, content)
        if inode.opens == 0 and content.draft is None and opened(inode) is content:  # not one begun while this rested
            inode.content = None

    async def wait_for_room(self, limit: int) -> None:
        """Slows a writer while drafts that are on their way up hold more than `limit` bytes."""
        await self._backlog.is_under(limit)

    async def settle_under(self, top: Inode) -> None:
        """Everything at and below a directory is in the bucket afterwards. Raises what is not."""
        changed = {inode for inode in (*self.drafts, *self._attributes.dirty) if self._inodes.is_under(inode, top)}

        async def settle(inode: Inode) -> None:
            await self.commit(inode)
            await self._attributes.settle(inode)

        await each(settle, changed, at_once=SENDERS)

    async def drain(self) -> int:
        """Sends every draft once more, side by side; returns how many did not get through."""
        self._hurry = True

        async def send(inode: Inode) -> None:
            content = opened(inode)
            try:
                await self.commit(inode)
            except OSError as error:
                if content is not None and content.draft is not None:  # else it lost, and is kept beside the winner
                    log.error("%s could not be sent: %s", inode.name.decode(errors="replace"), error)
            if content is not None:
                await self.let_go(inode, content)

        await each(send, list(self.drafts), at_once=SENDERS)
        return self.pending[0]

    @property
    def pending(self) -> tuple[int, int]:
        """Files and bytes that the bucket lacks."""
        return pending.pending(self.drafts)
