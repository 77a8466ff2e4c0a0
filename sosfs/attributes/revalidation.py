"""Ask for an object's attributes when what is known of them is out of date.

A listing shows size and time; mode, owner and true time are in the object's metadata, which a HEAD reads. A walk that
asks for file after file is answered ahead (`prefetch`).

Concurrency: trio thread only; one question for an inode at a time, others wait for its answer.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import trio

from sosfs.attributes.carried_acl import CarriedAcls
from sosfs.attributes.prefetch import AttributePrefetch
from sosfs.attributes.shared.index import SharedAttributes
from sosfs.cache.attributes import AttributeCache, Remembered, place_of
from sosfs.cache.blocks import BLOCK, REQUEST, Blocks, Source, Spawn
from sosfs.concurrency.interrupt import waited
from sosfs.config.choices import Acls, Canned
from sosfs.errors import Cause, StoreError
from sosfs.metadata import user_metadata
from sosfs.s3.protocol import (
    Detail,
    Object,
    ObjectStore,
    Properties,
    Version,
)
from sosfs.tree.inodes import Inode, Inodes, Known
from sosfs.tree.listing import Listings
from sosfs.tree.listing_merge import Merger
from sosfs.tree.subtree_lock import SubtreeLock

log = logging.getLogger(__name__)

GLANCE = 1.0  # seconds that who looks at the root of a mount waits for the bucket


class _Question:
    """What one task asks of an inode, and others wait for; no `answer` where it failed."""

    __slots__ = ("answer", "done")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.answer: Inode | None = None


class Revalidation:
    """What is known of the inodes of a mount; `Changes` adds how it is changed."""

    def __init__(
        self,
        inodes: Inodes,
        store: ObjectStore,
        blocks: Blocks,
        merger: Merger,
        listings: Listings,
        cache: AttributeCache,
        subtree_lock: SubtreeLock,
        spawn: Spawn,
        *,
        ttl: float,
        shared: SharedAttributes | None = None,
        acls: Acls = Acls.KEEP,
        new_acl: Canned = Canned.PRIVATE,
    ) -> None:
        self.ttl = ttl
        self._shared = shared
        self.acls = CarriedAcls(inodes, store, acls, new_acl=new_acl)
        self._inodes = inodes
        self._store = store
        self._blocks = blocks
        self._merger = merger
        self._listings = listings
        self._cache = cache
        self._subtree_lock = subtree_lock
        self._spawn = spawn
        self.attribute_prefetch = AttributePrefetch(listings, self.ask_ahead, self.ask_files, spawn)
        listings.watchers.append(self.attribute_prefetch.listed)
        self._asking: dict[Inode, _Question] = {}
        self._kept: set[Inode] = set()  # of which no answer is taken
        self._glance: tuple[trio.Event, float] | None = None  # the root is being asked for; nobody waits longer
        self.hits, self.asked = 0, 0  # questions for attributes that were answered without the bucket, and all

    async def revalidate(self, inode: Inode) -> Inode:
        """Makes sure all attributes are known, and recent. Raises ENOENT when the object is gone, ESTALE for an inode
        that no name leads to since a listing or an answer has shown that.

        Returns the inode that has the name now: another one when the object turns out to be of another type
        than the kernel was told.
        """
        if inode.parent is None and inode.known is Known.NAME and not (inode.opens or inode.pins):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))  # the kernel looks the name up again
        self.asked += 1
        if self._is_fresh(inode):
            self.hits += 1
            self.attribute_prefetch.answered(inode)
            return inode
        if inode in self._asking:
            question = self._asking[inode]
            await waited(question.done.wait)
            if question.answer is None and not self._inodes.has_name(inode):
                raise OSError(errno.ENOENT, "it is gone from the bucket")
            return question.answer or await self.revalidate(inode)
        alone = self.attribute_prefetch.asked(inode)
        return await self._ask(inode, with_bytes=alone or inode.known is Known.NAME)

    def is_root(self, inode: Inode) -> bool:
        """Whether it is the root of the mount."""
        return inode is self._inodes.root

    async def glance_at_root(self) -> None:
        """As `revalidate` for the root, which is shown as it is known where the bucket does not answer soon.

        umount(8), df(1) and every shell look at it, and none of them wants its marker.
        """
        root = self._inodes.root
        if self._is_fresh(root):
            await self.revalidate(root)
            return
        if self._glance is None:
            self._glance = trio.Event(), trio.current_time() + GLANCE
            self._spawn(partial(self._ask_for_root, self._glance[0]))
        answered, until = self._glance
        with trio.move_on_at(until):
            await waited(answered.wait)

    async def _ask_for_root(self, answered: trio.Event) -> None:
        try:
            await self.revalidate(self._inodes.root)
        except OSError as error:
            log.info("the root of the mount is shown as it is known: %s", error)
        finally:
            self._glance = None
            answered.set()

    def _is_fresh(self, inode: Inode) -> bool:
        """Whether the bucket need not be asked: what is known is ours, recent, or watched over by a listing."""
        if inode.pins or not self._inodes.has_object(inode):
            return True
        if inode.known is Known.ALL and trio.current_time() < inode.checked + self.ttl:
            return True
        if inode.known is Known.ALL and inode.is_directory:
            return True  # the listing of its parent keeps watch over it, that of a mount's root its own
        return inode.is_directory and self._has_no_marker(inode)

    def is_asked(self, inode: Inode) -> bool:
        """Whether somebody waits for the attributes of an inode."""
        return inode in self._asking

    async def ask_ahead(self, inode: Inode, *, with_bytes: bool = False) -> None:
        """Asks for the attributes of an inode before somebody wants them, unless they are being asked for."""
        if not inode.pins and inode not in self._asking:
            await self._ask(inode, with_bytes=with_bytes)

    async def ask_files(self, inodes: Sequence[Inode]) -> None:
        """As `ask_ahead` for several files in one go; what one of them is refused is left to who really asks."""
        questions = {
            inode: _Question()
            for inode in inodes
            if not inode.pins and inode.parent is not None and inode not in self._asking
        }
        if not questions:
            return
        self._asking |= questions
        try:
            left = await self._answered_by_others(questions)
            before = [(self._inodes.key(inode), inode.version) for inode in left]
            answers = await self._store.heads([key for key, _ in before]) if before else []
            for (inode, question), (key, version), found in zip(left.items(), before, answers, strict=True):
                if inode.version is not version or not self._inodes.has_key(inode, key) or inode in self._kept:
                    continue  # written or renamed here while the others were asked
                if isinstance(found, Object):  # an absence is left to them as well: it may be a rename under way
                    question.answer = self.take(inode, found)
        finally:
            for inode, question in questions.items():
                del self._asking[inode]
                question.done.set()

    async def _ask(self, inode: Inode, *, with_bytes: bool) -> Inode:
        question = self._asking[inode] = _Question()
        try:
            if inode.is_directory:
                question.answer = await self._ask_directory(inode)
            else:
                told = await self._told_by_others(inode)
                question.answer = told or await self._ask_file(inode, with_bytes=with_bytes)
            return question.answer
        finally:
            del self._asking[inode]
            question.done.set()

    async def _answered_by_others(self, questions: Mapping[Inode, _Question]) -> dict[Inode, _Question]:
        """Answers what other mounts have told; returns the rest, but for what is no longer in the tree."""
        if self._shared is not None:
            await self._shared.bring([self._inodes.key(inode) for inode in questions if self._is_listed(inode)])
        left = {}
        for inode, question in questions.items():
            question.answer = self._from_others(inode) if self._shared is not None else None
            if question.answer is None and inode.parent is not None and not inode.pins:
                left[inode] = question
        return left

    async def _told_by_others(self, inode: Inode) -> Inode | None:
        """The inode with what another mount has told of the version that its listing shows; None where it has not."""
        if self._shared is None or not self._is_listed(inode):
            return None
        await self._shared.bring([self._inodes.key(inode)])
        return self._from_others(inode)

    def _from_others(self, inode: Inode) -> Inode | None:
        """As `_told_by_others`, of what was brought, or was learned meanwhile."""
        version = inode.version
        if inode.known is Known.ALL and self._is_fresh(inode):
            return inode
        if self._shared is None or version is None or not self._is_listed(inode):
            return None
        found = self._cache.find(*place_of(self._inodes.key(inode)))
        if found is None or found.version.modified is None or not found.holds_for(version):
            self._shared.missed()
            return None
        self._shared.used()
        return self._merger.learned(inode, found.properties, whole=found.whole)

    def _is_listed(self, inode: Inode) -> bool:
        """Whether a recent listing shows the version of a file, and no more is known of it."""
        if inode.known is Known.ALL or inode.pins or not self._inodes.has_name(inode):
            return False
        is_recent = trio.current_time() < inode.checked + self.ttl
        return is_recent and inode.version is not None and inode.version.modified is not None

    async def _ask_file(self, inode: Inode, *, with_bytes: bool) -> Inode:
        key, before = self._inodes.key(inode), inode.version
        size = before.size if before is not None else 0
        try:
            source = Source(key, before.etag if before is not None else "", size)
            comes_along = size <= BLOCK or size > REQUEST or not self._blocks.verifier.has_means(source)
            if size and with_bytes and comes_along and inode.known is not Known.ALL:
                found = await self._began(key, min(size, BLOCK))
            else:
                found = await self._store.head(key)
        except StoreError as error:
            if error.cause is Cause.ABSENT and await self.has_moved(inode, key):
                return await self._ask_file(inode, with_bytes=with_bytes)
            if error.cause is not Cause.ABSENT:
                raise
            if inode.version is before and not inode.pins:
                self._gone(inode)
                raise
            return await self._again(inode, with_bytes=with_bytes)
        if inode in self._kept:
            await self._subtree_lock.released(inode)
            # Not `revalidate`: that waits for the answer to this very question.
            return inode if inode.parent is None else await self._again(inode, with_bytes=with_bytes)
        if self._inodes.has_key(inode, key) and (inode.version is before or _is_just(inode.version, found.version)):
            return self.take(inode, found)
        return await self._again(inode, with_bytes=with_bytes)

    async def _again(self, inode: Inode, *, with_bytes: bool) -> Inode:
        """The inode, which was written or renamed here since it was asked for: that is newer than the answer."""
        if inode.pins or inode.known is Known.ALL:
            return inode
        return await self._ask_file(inode, with_bytes=with_bytes)

    async def _began(self, key: str, size: int) -> Object:
        """What HEAD would tell, and the first bytes for the cache.

        The kernel asks before it opens a file, and after it finds a link: the bytes are asked for next. Of an archived
        object there are none to be had, and all else is.
        """
        try:
            answer = await self._store.get(key, 0, size)
        except StoreError as error:
            if error.errno != errno.EREMOTEIO:
                raise
            return await self._store.head(key)
        found = answer.object
        await self._blocks.offer_answer(Source(key, found.version.etag, found.version.size), answer)
        return found

    async def has_moved(self, inode: Inode, key: str) -> bool:
        """Whether an inode has another key by now. While it is renamed its old one goes before the tree says so."""
        async with self._subtree_lock.shared(inode):
            return inode.parent is not None and not self._inodes.has_key(inode, key)

    async def _ask_directory(self, inode: Inode) -> Inode:
        """A directory's attributes are its marker's; one without marker has the defaults."""
        if self._has_no_marker(inode):
            return inode
        remembered = await self._remembered_marker(inode)
        if remembered is not None or (self._shared is not None and self._cache.has_under(self._inodes.key(inode))):
            # Its listing shows whether the marker is still that one, and will be asked for next.
            directory = self._listings.directory(inode)
            self.attribute_prefetch.listing(directory)
            walk = await self._listings.first_page(directory)
            if directory.marker is not None and remembered is not None and remembered.holds_for(directory.marker):
                self._take_marker(inode, directory.marker, remembered.properties, whole=remembered.whole)
                return inode
            if directory.marker is None and walk.reach and self._inodes.has_key(inode, walk.prefix):
                return self._without_marker(inode)
        return await self._ask_marker(inode)

    async def _ask_marker(self, inode: Inode) -> Inode:
        key, before = self._inodes.key(inode), inode.version
        found: Object | None = None
        try:
            found = await self._store.head(key)
        except StoreError as error:
            # Without the right to read the marker, its entries can still be listed: 403 is "unknown".
            if error.cause not in (Cause.ABSENT, Cause.DENIED):
                raise
            await self._subtree_lock.released(inode)  # of what is renamed the old marker goes before the tree says so
        if inode.pins:
            return inode
        if inode.version is not before or not self._inodes.has_key(inode, key):
            return await self._ask_directory(inode)  # written or renamed here meanwhile
        if found is None:
            return self._without_marker(inode)
        whole = found.detail is Detail.WHOLE
        self._learned(found, whole=whole)
        self._take_marker(inode, found.version, found.properties, whole=whole)
        return inode

    def _has_no_marker(self, inode: Inode) -> bool:
        """Whether a recent listing of a directory shows no marker: then its attributes are the defaults, unasked."""
        here = inode.directory
        if here is None or here.marker is not None or not self._listings.is_known(here):
            return False
        self._without_marker(inode)
        return True

    def _without_marker(self, inode: Inode) -> Inode:
        inode.known, inode.version, inode.whole = Known.ALL, None, True
        inode.checked = trio.current_time()
        return inode

    async def _remembered_marker(self, inode: Inode) -> Remembered | None:
        key = self._inodes.key(inode)
        found = self._cache.find(key, "")
        if found is None and self._shared is not None:
            await self._shared.bring([key])
            found = self._cache.find(key, "")
        return found

    def _learned(self, found: Object, *, whole: bool) -> None:
        if self._shared is not None:
            if self._shared.has(found):
                return
            self._shared.saw(found)
        self._cache.put(found.key, found.version, found.properties, whole=whole)

    def _take_marker(self, inode: Inode, version: Version, properties: Properties, *, whole: bool) -> None:
        inode.version = version
        if version.modified is not None:
            inode.mtime_ns = inode.ctime_ns = inode.atime_ns = version.modified * user_metadata.NS
        inode.learn(properties, whole=whole)
        inode.checked = trio.current_time()

    @contextmanager
    def keeping(self, inode: Inode) -> Iterator[None]:
        """Within, a file that is renamed stays what is copied of it, whatever others are answered.

        For what goes under the old name is what is known: if that were another client's by then, theirs would go.
        """
        self._kept.add(inode)
        try:
            yield
        finally:
            self._kept.discard(inode)

    def take(self, inode: Inode, found: Object, *, in_place: bool = False) -> Inode:
        """Takes over what HEAD or GET told of a file."""
        if inode.pins or inode.parent is None or inode in self._kept:
            return inode
        parent = inode.parent
        self._merger.seen(inode, found.version, trio.current_time(), in_place=in_place)
        if parent.directory is not None:
            inode = parent.directory.entries.get(inode.name, inode)  # another one where that may be of another type
        whole = found.detail is Detail.WHOLE
        self._learned(found, whole=whole)
        inode = self._merger.learned(inode, found.properties, whole=whole)
        inode.checked = trio.current_time()
        return inode

    async def refresh(self, inode: Inode, *, in_place: bool = False) -> None:
        """Asks the bucket again, whatever is known; a missing object leaves the inode without a version.

        `in_place` as for `Merger.seen`. A rename waits meanwhile: while its old key goes, it would pass for gone.
        """
        async with self._subtree_lock.shared(inode):
            await self.refresh_within(inode, in_place=in_place)

    async def refresh_within(self, inode: Inode, *, in_place: bool = False) -> None:
        """As `refresh`, for the rename itself."""
        key, before = self._inodes.key(inode), inode.version
        found: Object | None = None
        try:
            found = await self._store.head(key)
        except StoreError as error:
            if error.cause is not Cause.ABSENT:
                raise
        if inode.version is not before or not self._inodes.has_key(inode, key):
            return  # written or renamed here meanwhile, which is newer
        if found is not None:
            self.take(inode, found, in_place=in_place)
            return
        self._gone(inode)
        inode.version = None

    def _gone(self, inode: Inode) -> None:
        parent = inode.parent
        if parent is None or parent.directory is None or inode.pins:
            return
        if parent.directory.entries.get(inode.name) is inode:  # else it says nothing of who has its name by now
            self._merger.remove(parent.directory, inode.name)


def _is_just(now: Version | None, found: Version) -> bool:
    """Whether a version that is known by now is just the one that was found; of our own writes nobody knows that."""
    return now is not None and now.modified is not None and now.same_as(found)


def is_new(inode: Inode) -> bool:
    """Whether the bucket has nothing of an inode: at most another file under its name, which it will replace."""
    draft = inode.open_file.draft if inode.open_file is not None else None
    return inode.version is None or (draft is not None and draft.base is None)
