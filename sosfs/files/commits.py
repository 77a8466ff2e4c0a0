"""Commit drafts to the bucket, and decide what a close waits for.

`--durability bucket`: close and fsync return when the object is in the bucket, or with the error that
kept it out; the bytes then stay here, and every later close, fsync and the sending task try again.
`--durability journal`: they return when the bytes and the record of the draft are on this machine's disk;
the sending task brings them into the bucket a moment later, so that what is renamed, rewritten or
removed at once goes up once or never.
`--durability writeback`: as the journal, but only fsync waits for the disk: close returns when bytes and record are
written, and `delayed_sync` brings them to the disk within a second.
In all, fsync of a directory and the drain wait for the bucket.

Concurrency: trio thread only; one commit at a time for an inode (`Content.lock`), `SENDERS` in the background.
"""

from __future__ import annotations

import errno
import itertools
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import nullcontext, suppress
from functools import partial

import trio

from sosfs.attributes.revalidation import is_new
from sosfs.attributes.writeback import AttributeWriteback
from sosfs.cache.blocks import Source, Spawn
from sosfs.concurrency.backoff import Backoff, Doubling
from sosfs.concurrency.budgets import Backlog
from sosfs.concurrency.tasks import each
from sosfs.concurrency.threads import LOCAL
from sosfs.config.parameters import Durability
from sosfs.errors import Cause, StoreError
from sosfs.files import pending
from sosfs.files.conflict import Conflicts
from sosfs.files.debounce import Debounce, Rest
from sosfs.files.draft import Draft, DraftState
from sosfs.files.draft_records import DraftRecords
from sosfs.files.open_file import OpenFile, draft_of, opened
from sosfs.files.page_cache import PageCache
from sosfs.files.spool import INLINE, DamagedSpool
from sosfs.files.upload import Truncated, Unwanted, Upload, Uploader, etag_of
from sosfs.ipc.pending import Change
from sosfs.journal.journal import Journal
from sosfs.s3 import recognition
from sosfs.s3.preconditions import find, look
from sosfs.s3.protocol import Acl, Detail, Guard, Object, Properties, Right, Version
from sosfs.s3.upload_check import DamagedWrite
from sosfs.tree.inodes import Inode, Inodes, Known, stored
from sosfs.tree.subtree_lock import SubtreeLock

log = logging.getLogger(__name__)

SENDERS = 16  # drafts going up in the background
CUTS_MAX = 8  # times that a commit is begun anew because the file is cut
RETRY_FIRST, RETRY_MAX = 5.0, 300.0  # seconds between tries


class Commits:
    """Brings drafts into the bucket."""

    def __init__(
        self,
        inodes: Inodes,
        uploader: Uploader,
        attributes: AttributeWriteback,
        vacated: Callable[[str], Awaitable[None]],
        subtree_lock: SubtreeLock,
        conflicts: Conflicts,
        pages: PageCache,
        journal: Journal,
        spawn: Spawn,
        backlog: Backlog,
        retries: Backoff,
        *,
        durability: Durability,
    ) -> None:
        self.durability = durability
        self.drafts: set[Inode] = set()  # inodes that have one
        self._backlog = backlog  # of the drafts that tasks are sending
        self.records = DraftRecords(inodes, attributes, journal)
        self._inodes = inodes
        self._uploader = uploader
        self._attributes = attributes
        self._vacated = vacated  # returns once nothing that is to go is under a key; raises what keeps it
        self._subtree_lock = subtree_lock
        self._conflicts = conflicts
        self._pages = pages
        self._journal = journal
        self._spawn = spawn
        self._retries = retries
        self._senders = trio.CapacityLimiter(SENDERS)
        self.debounce = Debounce(spawn)
        self.given_up: Callable[[Inode], Awaitable[None]]  # gives up what has lost bytes (`failed_writes`)

    # What close and fsync do

    async def save(self, inode: Inode, *, durably: bool = False) -> None:
        """Keeps the promise of close for a changed file, or `durably` that of fsync. Raises what prevents it."""
        open_file = opened(inode)
        if open_file is None or open_file.draft is None or not open_file.draft.is_dirty or inode.parent is None:
            return
        open_file.require_whole()
        if self.durability is not Durability.BUCKET and await self._recorded(inode, open_file, durably=durably):
            self.send_later(inode, Rest.WHOLE if durably or inode.version is not None else Rest.SHORT)
            return
        try:
            await self.commit(inode)
        except OSError as error:
            if isinstance(error, StoreError) and error.errno == errno.EINVAL:
                log.error("the store refuses %s: %s", inode.name.decode(errors="replace"), error)  # a fault of ours
            await self._keep(inode)
            raise

    async def _recorded(self, inode: Inode, open_file: OpenFile, *, durably: bool) -> bool:
        """Whether the draft is in the journal, as safe as the mode wants it: else this disk has no room for it."""
        assert open_file.draft is not None
        if self.durability is Durability.WRITEBACK and not durably and self.records.may_note:
            return self.records.noted(inode, open_file, open_file.draft)
        return await self.records.saved(inode, open_file, open_file.draft)

    def makes_room(self) -> bool:
        """Whether spools that were freed are on their way off this disk, where room is wanted now."""
        return self.records.later is not None and self.records.later.hurried()

    async def done_for_good(self) -> None:
        """What is done in the bucket is not done again after a power loss. Raises OSError of the disk."""
        if self.durability is Durability.WRITEBACK:
            await self._journal.sync()

    async def _keep(self, inode: Inode) -> None:
        """Records a draft that could not be sent, so that it survives this process."""
        open_file = opened(inode)
        if open_file is None or open_file.draft is None or not open_file.draft.is_sendable or inode.parent is None:
            return
        try:
            await self.records.save(inode, open_file, open_file.draft)
        except OSError as error:
            log.error("%s is neither in the bucket nor in the journal: %s", inode.name.decode(errors="replace"), error)

    async def record_all(self) -> None:
        """Records every draft that the bucket lacks."""
        for inode in list(self.drafts):
            await self._keep(inode)

    # Into the bucket

    async def commit(self, inode: Inode) -> None:
        """Brings a changed file into the bucket. Raises what kept it out; the bytes stay here then.

        One that is cut while it is sent begins anew, but not for ever: who would cut it once more waits.
        """
        for turn in itertools.count():
            if (open_file := opened(inode)) is None:
                return
            async with open_file.lock:
                draft = open_file.draft
                if draft is None or not draft.is_dirty or inode.parent is None:
                    return
                open_file.require_whole()
                async with self._subtree_lock.shared(inode):
                    if inode.parent is None:
                        return
                    with suppress(Unwanted, Truncated):  # who removes it has the lock next; else it is cut
                        kept = open_file.keeping_length() if turn >= CUTS_MAX else nullcontext()
                        with kept, open_file.committing():
                            if open_file.is_in_doubt:
                                await self.recognise(inode, draft, *open_file.in_flight.tokens)
                                draft.require_whole()
                            await self._commit(inode, open_file, draft)
                        return

    async def bring(self, inode: Inode) -> None:
        """The object has all that was changed of it here, and what is known of it is recent. Raises what is amiss."""
        await self._attributes.revalidate(inode)
        await self._stored(inode)

    async def _stored(self, inode: Inode) -> None:
        await self.commit(inode)
        await self._attributes.write_now(inode)

    async def _commit(self, inode: Inode, open_file: OpenFile, draft: Draft) -> None:
        key = self._inodes.key(inode)
        await self._vacated(key)
        await self._attributes.rewritten(inode)  # a copy under way would make another version, or undo this one
        await self._attributes.ascertain(inode)
        if await self.recognise(inode, draft, *open_file.in_flight.tokens):
            self.records.moved(inode)
            await self.drop_upload(open_file)  # the object may be made of it: it is no more then
        posix, serial = inode.posix, draft.commit_begins()
        announce = partial(self.records.sent, inode, open_file, serial, is_hash=self._uploader.store.hashes)
        try:
            properties, acl = await self.carry(inode)
            version = await self._send(inode, open_file, draft, properties, acl, announce)
        except StoreError as error:
            if error.cause is Cause.DENIED:
                self._attributes.permissions.add([Right.WRITE])
            try:
                is_ours = await self._is_ours(inode, open_file, draft, error)
            finally:
                draft.commit_failed()  # not before: nothing of what may have lost is to be freed
            if is_ours:
                await self._commit(inode, open_file, draft)
                return
            if _is_conflict(error, draft):
                await self._lost(inode, open_file, draft, error)
                raise OSError(errno.ESTALE, error.strerror) from error
            raise
        except BaseException:
            draft.commit_failed()
            raise
        before = inode.version.etag if inode.version is not None else ""
        inode.pages = version.etag if inode.pages in ("", before) else inode.pages
        draft.commit_landed(Source(key, version.etag, version.size), version, serial)
        used = open_file.upload.properties if open_file.upload is not None else properties
        open_file.upload = None
        open_file.in_flight.answered()
        with self._journal.together():
            self._landed(inode, open_file, draft, version)
            self._attributes.wrote(inode, used, posix, adopt_time=not open_file.times_given)
        inode.acl_private_until = inode.checked + self._attributes.ttl if acl is None else 0.0
        self._retries.hurry_one(open_file)  # a task that waits to send it has nothing to wait for

    async def _is_ours(self, inode: Inode, open_file: OpenFile, draft: Draft, error: StoreError) -> bool:
        """Whether a conflict is with what was asked for here without an answer; the draft then expects what is so.

        Or an upload is gone for that it was completed.
        """
        flight = open_file.in_flight
        if _is_conflict(error, draft):
            found = await self.recognise(inode, draft, *flight.earlier)
            is_ours = found is not None or (flight.removal and await self._is_gone(inode, draft))
        elif error.errno == errno.ENXIO:
            is_ours = await self.recognise(inode, draft, *flight.tokens) is not None
        else:
            is_ours = False
        if not is_ours:
            return False
        flight.answered()
        self.records.moved(inode)
        return True

    async def _is_gone(self, inode: Inode, draft: Draft) -> bool:
        """Whether the bucket has the file no more, and all of it is here; the draft then is one of a new file."""
        if await find(self._uploader.store, self._inodes.key(inode)) is not None or draft.lacks(0, draft.size):
            return False
        self.records.touched(inode)  # its row may tell of less than all of it
        draft.stand_alone(Guard.ABSENT)
        inode.version = None  # and no ACL of it is to be asked for
        await self._keep(inode)
        return True

    async def recognise(self, inode: Inode, draft: Draft, *tokens: str) -> Object | None:
        """The object that a request with one of these tokens made, if it is there; the draft then stands on it."""
        if not tokens:
            return None
        key = self._inodes.key(inode)
        try:
            found = await look(self._uploader.store, key, detail=Detail.WHOLE)
        except StoreError as error:
            if error.cause is not Cause.ABSENT:
                raise
            draft.lose()
            return None
        if not any(recognition.is_ours(token, found, instead_of=draft.expected) for token in tokens):
            draft.lose()
            return None
        inode.version, inode.properties, inode.checked = found.version, found.properties, trio.current_time()
        draft.stand_on(Source(key, found.version.etag, found.version.size), found.version)
        return found

    async def ascertain(self, inode: Inode) -> None:
        """Which version the bucket has of a file is known afterwards, though the answer to our request was lost."""
        if (open_file := opened(inode)) and open_file.draft:
            await self.recognise(inode, open_file.draft, *open_file.in_flight.tokens)

    def _landed(self, inode: Inode, open_file: OpenFile, draft: Draft, version: Version) -> None:
        inode.version, inode.known, inode.whole = version, Known.ALL, True
        inode.checked = trio.current_time()
        stored(inode)
        open_file.source = draft.base
        self.records.landed(inode, open_file, draft)

    async def _send(
        self,
        inode: Inode,
        open_file: OpenFile,
        draft: Draft,
        properties: Properties,
        acl: Acl | None,
        announce: Callable[..., Awaitable[None]],
    ) -> Version:
        key, size, plan = self._inodes.key(inode), draft.size, self._uploader.plan
        is_small = size <= plan.single and not draft.away
        if is_small:
            await self.drop_upload(open_file)
            async with self._uploader.budget.holding(size):
                body = await draft.read(0, size)
                if draft.size < size:
                    raise Truncated(key)
                store, hashed = self._uploader.store, ""
                if store.hashes:
                    hashed = etag_of(body) if size <= INLINE else await LOCAL.run(etag_of, body)
                await announce(recognition.token(hashed, size, properties, hashes=store.hashes))
                put = partial(store.put, key, body, properties, condition=draft.expected, acl=acl, digest=hashed)
                version = await self._arrived(inode, draft, body, put)
                self._uploader.sent_bytes += len(body)
            self._uploader.blocks.offer(Source(key, version.etag, len(body)), memoryview(body))
            return version
        upload = open_file.upload = open_file.upload or Upload(self._uploader, draft, key, properties, acl)
        upload.is_being_removed(open_file.is_leaving)
        upload.renews(properties, acl)
        return await upload.finish(size, draft.expected, partial(announce, is_hash=False))

    async def _arrived(
        self, inode: Inode, draft: Draft, body: bytes | memoryview, put: Callable[[], Awaitable[Version]]
    ) -> Version:
        """What `put` has made of `body`, all of a draft. If it has damaged the base, the record has it all."""
        try:
            return await put()
        except DamagedWrite as error:
            if error.left is not None:
                self.records.touched(inode)  # else it has checksums of what was not here yet
                await draft.outlive(body, error.left)
                await self._keep(inode)
            raise

    async def carry(self, inode: Inode) -> tuple[Properties, Acl | None]:
        """What the object must have beside its bytes: what it had, with the attributes of now.

        What it is to replace is another one, whose ACL is not its own.
        """
        acl = None
        if not is_new(inode):
            await self._attributes.fetch_whole(inode)
            acl = await self._attributes.acls.of(inode)
        return self._attributes.renewed(inode), acl

    async def drop_upload(self, open_file: OpenFile) -> None:
        """Gives up the multipart upload of a draft, if it has one."""
        if open_file.upload is not None:
            upload, open_file.upload = open_file.upload, None
            await upload.abort()

    def leave_upload(self, inode: Inode) -> None:
        """As `drop_upload`, in the background, of a file that has another key now: nothing of it is freed any more."""
        open_file = opened(inode)
        if open_file is not None and open_file.upload is not None:
            upload, open_file.upload = open_file.upload, None
            self._spawn(upload.abort)

    async def _lost(self, inode: Inode, open_file: OpenFile, draft: Draft, error: StoreError) -> None:
        """Another client's version won: ours is kept beside it, and the inode shows theirs."""
        draft.state = DraftState.CONFLICT  # takes no more: what came now would be nowhere
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
        parent, name = inode.parent, inode.name
        if inode.version is not None:
            inode.size = inode.version.size  # who has it open goes on with the version that was opened
        upload, open_file.upload = open_file.upload, None
        try:
            await self.let_go(inode, open_file)  # from now on another draft may come
            await self._attributes.refresh(inode)
        finally:
            await self._pages.doubt(inode)
            if parent is not None:  # not waited for: who waits for this commit may hold the directory's lock
                self._spawn(partial(self._pages.forget_name, parent, name))
            if upload is not None:
                await upload.abort()  # last: meanwhile the file would be taken for what it was before

    # Drafts come and go

    def began(self, inode: Inode) -> None:
        """An inode has a draft now."""
        if (draft := draft_of(inode)) is not None:
            draft.disowned = partial(self.records.disowned, inode, draft)
        inode.pins += 1
        self.drafts.add(inode)

    async def let_go(self, inode: Inode, open_file: OpenFile) -> None:
        """Frees a draft that the bucket has, or that nobody can reach any more."""
        draft = open_file.draft
        if draft is None or draft.is_dirty or (draft.state is DraftState.ORPHAN and inode.opens):
            return
        self.records.forget(open_file)
        open_file.draft, open_file.upload, upload = None, None, open_file.upload
        inode.pins -= 1
        self.drafts.discard(inode)
        await self.records.free(draft)
        if upload is not None:
            await upload.abort()

    def send_later(self, inode: Inode, rest: Rest = Rest.WHOLE) -> None:
        """Lets a task bring the draft into the bucket after a rest, as often as it takes."""
        open_file = opened(inode)
        if open_file is not None and not open_file.sending:
            open_file.sending = True
            size = open_file.draft.local.total if open_file.draft is not None else 0
            self._backlog.waiting += size
            sending = partial(self._sending, inode, open_file, size)
            if self.durability is Durability.BUCKET:
                self._spawn(sending)
                return
            self.debounce.add(sending, rest)

    async def _sending(self, inode: Inode, open_file: OpenFile, size: int) -> None:
        pauses, is_first = Doubling(RETRY_FIRST, RETRY_MAX), True
        try:
            while open_file.is_to_be_sent and inode.parent is not None:
                if not is_first:
                    await self._retries.wait(pauses, open_file)
                is_first = False
                try:
                    async with self._senders:
                        await self.commit(inode)
                except OSError as error:
                    if open_file.draft is not None:
                        log.warning("%s is not in the bucket yet: %s", inode.name.decode(errors="replace"), error)
                    if isinstance(error, DamagedSpool):
                        self._journal.damage.note(f"{self._inodes.key(inode)}: {error.strerror}")
        finally:
            open_file.sending = False
            self._backlog.fell(size)
        if open_file.writers == 0:
            await self.given_up(inode)  # what has turned out to be lost
            await self.let_go(inode, open_file)
        is_last = opened(inode) is open_file  # not one begun while this rested
        if is_last and inode.opens == 0 and open_file.draft is None:
            inode.open_file = None

    async def wait_for_room(self, limit: int) -> None:
        """Slows a writer while drafts that are on their way up hold more than `limit` bytes."""
        await self._backlog.is_under(limit)

    async def commit_under(self, top: Inode) -> None:
        """Everything at and below a directory is in the bucket afterwards. Raises what is not."""
        changed = {inode for inode in (*self.drafts, *self._attributes.dirty) if self._inodes.is_under(inode, top)}
        await each(self._stored, changed, at_once=SENDERS)

    async def drain(self) -> int:
        """Sends every draft once more, side by side; returns how many did not get through."""

        async def send(inode: Inode) -> None:
            open_file = opened(inode)
            try:
                await self.commit(inode)
            except OSError as error:
                if open_file is not None and open_file.draft is not None:  # else it lost, and is kept beside the winner
                    log.error("%s could not be sent: %s", inode.name.decode(errors="replace"), error)
            if open_file is not None:
                await self.let_go(inode, open_file)

        await each(send, list(self.drafts), at_once=SENDERS)
        return self.pending[0]

    def changes(self, moved: Mapping[str, int]) -> Iterator[Change]:
        """The files of which the bucket lacks bytes; `moved` are those on their way, by keys."""
        for inode, told in pending.described(self._inodes, list(self.drafts), self._retries.ends, moved):
            yield Change(told, partial(self.commit, inode))

    @property
    def oldest(self) -> float:
        """Since when the first of these files waits, in seconds since the epoch; 0.0 where none does."""
        return pending.oldest(self.drafts)

    def uploaded(self, moved: Mapping[str, int]) -> int:
        """How many of the bytes that the bucket lacks the server has in parts, or is just getting."""
        return pending.uploaded(self._inodes, self.drafts, moved)

    @property
    def pending(self) -> tuple[int, int]:
        """Files and bytes that the bucket lacks."""
        return pending.pending(self.drafts)


def _is_conflict(error: StoreError, draft: Draft) -> bool:
    """Whether another version is there than the draft expects, or none."""
    return error.cause is Cause.CONFLICT or (error.cause is Cause.ABSENT and draft.expected is not Guard.ABSENT)
