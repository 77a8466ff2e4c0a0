"""Bring changed attributes into the bucket.

chmod, chown and utimens change the object by a copy onto itself. They wait a moment for
company, so that three calls cost one request, and ride along with a commit or rename that comes first.
Everything else an object has goes with them: headers, metadata, ACL, and its lock (`protection`).

What the server refuses, does not answer or has no room for is tried again for ever, with growing pauses. A change is
given up only where another client's bytes, or none, are found in the place of those it was made to.

Concurrency: trio thread only; one copy of an inode at a time.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

import trio

from sosfs.attributes.changes import Changes, is_being_written, shown_name
from sosfs.attributes.permissions import KeyPermissions
from sosfs.attributes.shared.index import SharedAttributes
from sosfs.cache.attributes import AttributeCache
from sosfs.cache.blocks import Blocks, Source, Spawn
from sosfs.concurrency.backoff import Backoff, Doubling
from sosfs.concurrency.interrupt import waited
from sosfs.concurrency.tasks import each
from sosfs.config.choices import Acls, Canned
from sosfs.config.parameters import Durability
from sosfs.errors import Cause, StoreError, reason
from sosfs.ipc.pending import Change, Kind, Pending
from sosfs.journal.journal import Journal
from sosfs.journal.multipart_uploads import MultipartUploads
from sosfs.metadata import user_metadata
from sosfs.metadata.edits import NO_EDITS
from sosfs.s3.copying import copy_object
from sosfs.s3.preconditions import look, stale
from sosfs.s3.protocol import (
    UNLOCKED,
    Acl,
    Condition,
    Detail,
    Guard,
    ObjectStore,
    Properties,
    Right,
    Version,
)
from sosfs.tree.inodes import Inode, Inodes, stored
from sosfs.tree.listing import Listings
from sosfs.tree.listing_merge import Merger
from sosfs.tree.subtree_lock import SubtreeLock

log = logging.getLogger(__name__)

DELAY = 1.0  # seconds that an attribute change waits for others
RETRY_MAX = 120.0  # seconds between tries to write what could not be written
SETTLERS = 16  # changes that are written side by side


class AttributeWriteback(Changes):
    """The attributes of all inodes of a mount, and their way into the bucket."""

    def __init__(
        self,
        inodes: Inodes,
        store: ObjectStore,
        blocks: Blocks,
        merger: Merger,
        listings: Listings,
        cache: AttributeCache,
        subtree_lock: SubtreeLock,
        journal: Journal,
        spawn: Spawn,
        multiparts: MultipartUploads,
        permissions: KeyPermissions,
        retries: Backoff,
        vacated: Callable[[str], Awaitable[None]],
        *,
        ttl: float,
        shared: SharedAttributes | None = None,
        acls: Acls = Acls.KEEP,
        new_acl: Canned = Canned.PRIVATE,
        new_class: str = "",
    ) -> None:
        super().__init__(
            inodes, store, blocks, merger, listings, cache, subtree_lock, journal, spawn, permissions,
            ttl=ttl, shared=shared, acls=acls, new_acl=new_acl, new_class=new_class
        )  # fmt: skip
        self._copy_object = partial(copy_object, store, multiparts=multiparts)
        self._retries = retries
        self._vacated = vacated  # as of `Commits`
        self._rewriting: dict[Inode, trio.Event] = {}
        self._settlers = trio.CapacityLimiter(SETTLERS)
        self._draining = False
        self.marked = lambda inode: spawn(lambda: self._settle_later(inode))

    async def _settle_later(self, inode: Inode) -> None:
        pauses = Doubling(DELAY, RETRY_MAX)
        while inode.attributes_dirty:
            await self._retries.wait(pauses, inode)
            async with self._settlers:
                await self._tried(inode)

    async def _tried(self, inode: Inode) -> None:
        name = shown_name(inode)
        is_made = inode.is_directory and inode.version is None
        what = f"the directory {name} is" if is_made else f"attributes of {name} are"
        try:
            await self.write_now(inode)
        except OSError as error:
            log.error("%s not in the bucket: %s", what, error)

    @property
    def oldest(self) -> float:
        """Since when the first change waits, in seconds since the epoch; 0.0 where none does."""
        return next(iter(self.since.values()), 0.0)

    def changes(self) -> Iterator[Change]:
        """What is not written yet and does not go up with a file's bytes."""
        ends = self._retries.ends
        for inode in list(self.dirty):
            if _has_commit(inode) or not self._inodes.has_name(inode):
                continue
            error = self.failed.get(inode)
            yield Change(
                Pending(
                    self._inodes.names(inode),
                    Kind.ATTRIBUTES,
                    self.since[inode],
                    error=reason(error) if error else "",
                    retry_at=ends.get(inode, 0.0),
                ),
                partial(self.write_now, inode),
            )

    async def fsync(self, inode: Inode, *, durability: Durability) -> None:
        """Changed attributes are as safe afterwards as `durability` wants it. Raises what prevents it."""
        if durability is Durability.BUCKET:
            await self.write_now(inode)
        elif inode.attributes_dirty:
            await self._journal.sync()

    async def write_now(self, inode: Inode) -> None:
        """Changed attributes are in the bucket afterwards. Raises what kept them out."""
        if not inode.attributes_dirty:
            return
        async with self._subtree_lock.shared(inode), self.resting(inode):
            if _has_commit(inode):
                return  # it carries them
            if inode.attributes_dirty and self._inodes.has_name(inode):
                await self._rewrite(inode)
            else:
                self._clear(inode)

    @asynccontextmanager
    async def resting(self, inode: Inode) -> AsyncIterator[None]:
        """Within, no request that stores the inode's attributes is under way, and no other one begins."""
        await self.rewritten(inode)
        done = self._rewriting[inode] = trio.Event()
        try:
            yield
        finally:
            del self._rewriting[inode]
            done.set()

    async def rewritten(self, inode: Inode) -> None:
        """No request that stores the inode's attributes is under way afterwards."""
        while inode in self._rewriting:
            await waited(self._rewriting[inode].wait)

    async def write_directories(self, top: Inode) -> None:
        """As `write_now`, for the directories at and below `top`: those without marker are in the bucket then."""
        below = [one for one in self.dirty if one.is_directory and self._inodes.is_under(one, top)]
        await each(self.write_now, below, at_once=SETTLERS)

    async def ascertain(self, inode: Inode) -> None:
        """Which version the bucket has of a file is known afterwards, though a copy of ours got no answer.

        Raises what prevents it. Another client's version is left to the condition of the next write.
        """
        if not self.in_doubt(inode):
            return
        try:
            found = await look(self._store, self._inodes.key(inode), detail=Detail.WHOLE)
        except StoreError as error:
            if error.cause is not Cause.ABSENT:
                raise
        else:
            self._stands_on(inode, found)

    async def _rewrite(self, inode: Inode) -> None:
        key = self._inodes.key(inode)
        try:
            if inode.is_directory and key and (inode.version is None or inode.version.size == 0):
                await self._rewrite_marker(inode, key)
            elif inode.version is not None:
                await self._rewrite_object(inode, key)
            else:
                self._clear(inode)  # a file not in the bucket yet: its commit carries them; or a bucket's root
        except OSError as error:
            if isinstance(error, StoreError) and error.cause is Cause.DENIED:
                self.permissions.add([Right.WRITE])
            if inode.attributes_dirty:
                self.failed[inode] = error
            raise

    async def _rewrite_object(self, inode: Inode, key: str) -> None:
        for again in (False, True):
            looked = await self._look(inode, key, again=again)
            acl = await self.acls.of(inode)
            posix, used = inode.posix, self.properties(inode)
            if not looked or used != inode.properties:
                try:
                    await self._copy(inode, key, used, acl)
                except StoreError as error:
                    if looked or error.cause not in (Cause.CONFLICT, Cause.ABSENT):
                        raise
                    continue  # another version than was known: it tells whose
            await self.protection.settle(key)
            self._written(inode, used, posix)
            return

    async def _look(self, inode: Inode, key: str, *, again: bool) -> bool:
        """Makes sure that all of the object is known, `again` whatever is; whether the bucket was asked.

        Raises ESTALE or ENOENT, and gives the change up, where its bytes are no longer there.
        """
        is_recent = inode.whole and trio.current_time() < inode.checked + self.ttl
        if is_recent and not again and not self.in_doubt(inode) and inode not in self.failed:
            return False
        try:
            found = await look(self._store, key, detail=Detail.WHOLE)
        except StoreError as error:
            if error.cause is Cause.ABSENT:
                self._give_up(inode, "has removed")
            raise
        if not self._stands_on(inode, found):
            self._give_up(inode, "has replaced")
            raise stale(f"HeadObject {key!r}", "another client has replaced it")
        return True

    async def _copy(self, inode: Inode, key: str, used: Properties, acl: Acl | None) -> None:
        """Copies the object onto itself. The journal knows of it before, for it makes another version."""
        locked, before = replace(used, lock=await self.protection.carried(key)), inode.version
        assert before is not None
        self.forget(key)
        self._unanswered_copies.begin(inode, locked)
        try:
            self._mark(inode)
            if "-" in before.etag or not self._store.hashes:
                await self._journal.sync()  # the copy may have another ETag: then nothing else tells that it is ours
        except OSError:
            self._unanswered_copies.end(inode, locked)
            raise
        try:
            made = await self._copy_object(key, key, before, properties=locked, acl=acl)
        except StoreError as error:
            self._unanswered_copies.failed(inode, locked, error)
            raise
        self._unanswered_copies.end(inode, locked)
        inode.version = made
        self._blocks.zeros.copied(before.etag, made.etag, made.size)
        if inode.open_file is not None:
            inode.open_file.rebase(Source(key, made.etag, made.size), made)

    async def _rewrite_marker(self, inode: Inode, key: str) -> None:
        """Stores a directory's marker, new or over the one that is known: what another client made meanwhile stays."""
        condition = await self._marker_condition(inode)
        for again in (False, True):
            if inode.version is not None and inode.version.size:  # another client has stored something in it
                await self._rewrite_object(inode, key)
                return
            try:
                await self._put_marker(inode, key, condition)
            except StoreError as error:
                if again or condition is Guard.NONE or error.cause is not Cause.CONFLICT:
                    raise
            else:
                return
            condition = await self._found_other(inode, key)
            if inode.edits == NO_EDITS and condition is not Guard.ABSENT:
                self._let_go(inode)
                return

    async def _marker_condition(self, inode: Inode) -> Condition:
        """What has to be so when a marker is written. One that may not be read is written with what is known of it."""
        try:
            await self.fetch_whole(inode)
        except StoreError as error:
            if error.cause is Cause.DENIED:
                return Guard.NONE
            if error.cause is not Cause.ABSENT:
                raise
            self._marker_is(inode, None)
        return inode.version or Guard.ABSENT

    async def _put_marker(self, inode: Inode, key: str, condition: Condition) -> None:
        if condition is Guard.ABSENT:
            await self._vacated(key)  # what a rename has copied there would pass for a marker of another client
        acl = await self.acls.of(inode) if condition is not Guard.ABSENT else None
        posix, used = inode.posix, self.properties(inode)
        self.forget(key)
        locked = replace(used, lock=UNLOCKED if condition is Guard.ABSENT else await self.protection.carried(key))
        version = await self._store.put(key, b"", locked, condition=condition, acl=acl)
        self._marker_is(inode, version)
        await self.protection.settle(key)
        self._written(inode, used, posix)

    async def _found_other(self, inode: Inode, key: str) -> Condition:
        """Not the marker that is known is there: another client's, ours without an answer, or none.

        All of it stays but for what was changed here since. Returns what has to be so when that is written.
        """
        if inode.directory is not None:
            inode.directory.doubt()
        try:
            found = await look(self._store, key, detail=Detail.WHOLE)
        except StoreError as error:
            if error.cause is Cause.DENIED:  # as of one that was known, and may not be read
                return Guard.NONE
            if error.cause is not Cause.ABSENT:
                raise
            self._marker_is(inode, None)
            return Guard.ABSENT
        self._marker_is(inode, found.version)
        inode.acl_private_until = 0.0
        inode.follow(found.properties)
        return found.version

    def _marker_is(self, inode: Inode, version: Version | None) -> None:
        inode.version = version
        if inode.directory is not None:
            inode.directory.marker = version

    def _written(self, inode: Inode, used: Properties, posix: user_metadata.Posix) -> None:
        inode.checked = trio.current_time()
        inode.properties = used
        self.failed.pop(inode, None)
        stored(inode)
        self._remember(inode)
        is_last = self._draining or self._unanswered_copies.is_over(inode)
        if inode.posix == posix and is_last and self._holds_edits(inode, used):
            self._clear(inode)
        else:
            self._mark(inode)

    async def drain(self) -> None:
        """Writes all changed attributes; what could not be written is logged, and stays `dirty`."""
        self._draining = True
        await each(self._tried, list(self.dirty), at_once=SETTLERS)


def _has_commit(inode: Inode) -> bool:
    """Whether a commit is under way or will follow, which stores the attributes with the bytes."""
    return is_being_written(inode) and inode.parent is not None
