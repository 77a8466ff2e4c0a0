"""Bringing changed attributes into the bucket. What attributes are is in `learning`.

chmod, chown and utimens change the object by a copy onto itself. They wait a moment for
company, so that three calls cost one request, and ride along with a commit or rename that comes first.
Everything else an object has goes with them: headers, metadata, ACL.

Concurrency: trio thread only; one question for an inode at a time, others wait for its answer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import trio

from . import headers, metadata
from .attribute_cache import AttributeCache
from .blocks import Blocks, Source, Spawn
from .config import Durability
from .copying import copy_object
from .directory import Merger, stored
from .edits import NO_EDITS
from .errors import Cause, StoreError
from .gate import Gate
from .inodes import Inode, Inodes, Known
from .journal import Journal
from .learning import Learning, is_new
from .listing import Listings
from .multiparts import Multiparts
from .refusals import Refusals
from .saved import SavedAttributes
from .store import Canned, Guard, ObjectStore, Properties, Right, Version
from .tasks import each
from .wire import check_properties

log = logging.getLogger(__name__)

DELAY = 1.0  # seconds that an attribute change waits for others
RETRY_MAX = 120.0  # seconds between tries to write what could not be written
SETTLERS = 16  # changes that are written side by side


class Attributes(Learning):
    """The attributes of all inodes of a mount, and their way into the bucket."""

    def __init__(
        self,
        inodes: Inodes,
        store: ObjectStore,
        blocks: Blocks,
        merger: Merger,
        listings: Listings,
        cache: AttributeCache,
        gate: Gate,
        journal: Journal,
        spawn: Spawn,
        multiparts: Multiparts,
        refusals: Refusals,
        *,
        ttl: float,
        new_acl: Canned = Canned.PRIVATE,
        new_class: str = "",
    ) -> None:
        super().__init__(inodes, store, blocks, merger, listings, cache, gate, spawn, ttl=ttl, new_acl=new_acl)
        self.refusals = refusals
        self._copy = partial(copy_object, store, multiparts=multiparts)
        self._new_class = new_class
        self._journal = journal
        self._rows: dict[Inode, int] = {}
        self._rewriting: dict[Inode, trio.Event] = {}
        self._made: set[Inode] = set()  # directories of which the bucket knows nothing yet
        self._settlers = trio.CapacityLimiter(SETTLERS)
        self.dirty: set[Inode] = set()
        self.carried_later: Callable[[Inode], None] = lambda inode: None  # is told what a commit has to carry

    def known(self, inode: Inode) -> Properties:
        """What is known of the object's headers and metadata, with the user's edits."""
        return inode.edits.applied(inode.properties)

    def properties(self, inode: Inode) -> Properties:
        """What the object has to carry now: its headers and metadata with the attributes put in."""
        return self._stored(inode, self.known(inode))

    def renewed(self, inode: Inode) -> Properties:
        """As `properties`, for an object that gets other bytes."""
        had = inode.properties
        return self._stored(inode, inode.edits.applied(Properties(had.headers, metadata.without_hashes(had.metadata))))

    def _stored(self, inode: Inode, known: Properties) -> Properties:
        kept = known.headers
        if not kept.content_type and is_new(inode):
            kept = replace(kept, content_type=headers.for_name(inode.segment).content_type)
        return Properties(kept, metadata.write(known.metadata, inode.posix), self._class_of(inode))

    def _class_of(self, inode: Inode) -> str | None:
        """The storage class: what is in the bucket keeps its own, which S3 resets with each write and copy."""
        return self._new_class if is_new(inode) else inode.properties.storage_class

    def changed(self, inode: Inode) -> None:
        """The user changed attributes. Raises ENOSPC when they would not fit into 2 kB of metadata."""
        check_properties(self.properties(inode))
        draft = inode.content.draft if inode.content is not None else None
        if inode.parent is None:
            return
        if draft is not None and draft.is_dirty:
            self.carried_later(inode)
            return
        self._mark(inode)

    def _mark(self, inode: Inode) -> None:
        version = None if inode.is_directory else inode.version
        saved = SavedAttributes(self._inodes.key(inode), version, inode.posix, self.known(inode))
        self._rows[inode] = self._journal.save_attributes(self._rows.get(inode, 0), saved)
        if not inode.attributes_dirty:
            inode.attributes_dirty = True
            inode.pins += 1
            self.dirty.add(inode)
            self._spawn(lambda: self._settle_later(inode))

    def keep(self, inode: Inode) -> None:
        """What an inode has goes up soon, unless it is removed before: a marker where the last entry goes."""
        self._mark(inode)

    def made(self, inode: Inode) -> None:
        """A new directory gets its marker soon, unless it is removed before. Raises OSError of the journal."""
        self._mark(inode)
        self._made.add(inode)

    def _clear(self, inode: Inode) -> None:
        self._made.discard(inode)
        if inode.attributes_dirty:
            inode.attributes_dirty = False
            self._journal.drop_attributes(self._rows.pop(inode))
            inode.pins -= 1
            self.dirty.discard(inode)

    def wrote(self, inode: Inode, used: Properties, posix: metadata.Posix, *, adopt_time: bool) -> None:
        """A commit stored `used` for an inode whose attributes were `posix` when it began.

        A multipart upload fixes its metadata at its beginning. When only the time differs, and nobody set it, the
        file takes the stored one; whatever else differs is written afterwards.
        """
        inode.properties = used
        self._remember(inode)
        stored = metadata.read(used.metadata)
        if adopt_time and inode.posix == posix and stored.mtime_ns is not None:
            inode.mtime_ns = stored.mtime_ns
        if stored == inode.posix and self._holds_edits(inode, used):
            self._clear(inode)
        else:
            self._mark(inode)

    def _holds_edits(self, inode: Inode, used: Properties) -> bool:
        """Whether `used`, just stored, has all that the user changed of headers and metadata; it is done then."""
        if inode.edits.applied(used) != used:
            return False
        inode.edits = NO_EDITS
        return True

    def _remember(self, inode: Inode) -> None:
        if inode.version is not None and inode.parent is not None and inode.known is Known.ALL:
            self._cache.put(self._inodes.key(inode), inode.version, inode.properties, whole=inode.whole)

    def forget(self, key: str) -> None:
        """The object's metadata are about to be rewritten: what was remembered of it is void."""
        self._cache.drop(key)

    def created(self, inode: Inode, used: Properties) -> None:
        """A new object was stored with these properties."""
        inode.properties, inode.checked = used, trio.current_time()
        inode.acl_private_until = inode.checked + self.ttl
        self._remember(inode)

    async def _settle_later(self, inode: Inode) -> None:
        pause = DELAY
        while inode.attributes_dirty:
            await trio.sleep(pause)
            pause = min(2 * pause + 4, RETRY_MAX)
            async with self._settlers:
                await self._tried(inode)

    async def _tried(self, inode: Inode) -> None:
        name = inode.name.decode(errors="replace")
        what = f"the directory {name} is" if inode in self._made else f"attributes of {name} are"
        try:
            await self.settle(inode)
        except OSError as error:
            log.error("%s not in the bucket: %s", what, error)

    async def fsync(self, inode: Inode, *, durability: Durability) -> None:
        """Changed attributes are as safe afterwards as `durability` wants it. Raises what prevents it."""
        if durability is Durability.BUCKET:
            await self.settle(inode)
        elif inode.attributes_dirty:
            await self._journal.sync()

    async def settle(self, inode: Inode) -> None:
        """Changed attributes are in the bucket afterwards. Raises what kept them out."""
        if not inode.attributes_dirty or _has_commit(inode):
            return  # the commit carries them
        async with self._gate.passing(inode):
            await self.rewritten(inode)  # a second rewrite beside it would find another version than it knows
            if _has_commit(inode):
                return  # one that came while this waited
            if inode.attributes_dirty and self._inodes.has_name(inode):
                done = self._rewriting[inode] = trio.Event()
                try:
                    await self._rewrite(inode)
                finally:
                    del self._rewriting[inode]
                    done.set()
            else:
                self._clear(inode)

    async def rewritten(self, inode: Inode) -> None:
        """No request that stores the inode's attributes is under way afterwards."""
        while inode in self._rewriting:
            await self._rewriting[inode].wait()

    async def settle_directories(self, top: Inode) -> None:
        """As `settle`, for the directories at and below `top`: those without marker are in the bucket then."""
        below = [one for one in self.dirty if one.is_directory and self._inodes.is_under(one, top)]
        await each(self.settle, below, at_once=SETTLERS)

    async def _rewrite(self, inode: Inode) -> None:
        key, is_new = self._inodes.key(inode), inode in self._made
        try:
            if inode.is_directory and key and (inode.version is None or inode.version.size == 0):
                await self._rewrite_marker(inode, key)
            elif inode.version is not None:
                await self._rewrite_object(inode, key, inode.version)
            else:
                self._clear(inode)  # a file not in the bucket yet: its commit carries them; or a bucket's root
        except StoreError as error:
            if error.cause is Cause.DENIED:
                self.refusals.add([Right.WRITE])
            if error.cause in (Cause.CONFLICT, Cause.ABSENT, Cause.DENIED):
                self._clear(inode)  # no later try can succeed
                inode.edits = NO_EDITS
                inode.checked = 0.0
                inode.known = min(inode.known, Known.SIZE)
            if not is_new or error.cause is not Cause.CONFLICT:
                raise
            if inode.directory is not None:
                inode.directory.now = None  # another host made it meanwhile: theirs stays, and what is in it

    async def _rewrite_object(self, inode: Inode, key: str, version: Version) -> None:
        await self.learn_whole(inode)
        acl = await self.acl(inode)
        posix, used = inode.posix, self.properties(inode)
        self.forget(key)
        inode.version = await self._copy(key, key, inode.version or version, properties=used, acl=acl)
        if inode.content is not None:
            inode.content.rebase(Source(key, inode.version.etag, inode.version.size), inode.version)
        inode.whole = True
        self._written(inode, used, posix)

    async def _rewrite_marker(self, inode: Inode, key: str) -> None:
        acl = await self.acl(inode) if inode.version is not None else None
        posix, used = inode.posix, self.marker_properties(inode)
        self.forget(key)
        condition = Guard.ABSENT if inode in self._made else Guard.NONE
        inode.version = await self._store.put(key, b"", used, condition=condition, acl=acl)
        if inode.directory is not None:
            inode.directory.marker = inode.version
        self._written(inode, used, posix)

    def _written(self, inode: Inode, used: Properties, posix: metadata.Posix) -> None:
        inode.checked = trio.current_time()
        inode.properties = used
        stored(inode)
        self._remember(inode)
        if inode.posix == posix and self._holds_edits(inode, used):
            self._clear(inode)

    def marker_properties(self, inode: Inode) -> Properties:
        """What a directory's marker carries."""
        known = self.known(inode)
        kept = known.headers if known.headers.content_type else headers.for_directory()
        return Properties(kept, metadata.write(known.metadata, inode.posix), self._class_of(inode))

    def carried(self, inode: Inode, used: Properties, *, whole: bool) -> None:
        """A rename stored `used` with the object; what was changed meanwhile is written afterwards."""
        was_dirty = inode.attributes_dirty
        inode.properties, inode.whole = used, whole
        self._remember(inode)
        self._clear(inode)
        if was_dirty and not (metadata.read(used.metadata) == inode.posix and self._holds_edits(inode, used)):
            self._mark(inode)

    def moved(self, inode: Inode) -> None:
        """A rename gave the inode another key, and the bucket has nothing of it: its record follows."""
        if inode.attributes_dirty:
            self._mark(inode)

    def discard(self, inode: Inode) -> None:
        """The object is gone, and with it what was to be written."""
        self._clear(inode)

    async def drain(self) -> None:
        """Writes all changed attributes; what could not be written is logged, and stays `dirty`."""
        await each(self._tried, list(self.dirty), at_once=SETTLERS)


def _has_commit(inode: Inode) -> bool:
    """Whether a commit is under way or will follow, which stores the attributes with the bytes."""
    draft = inode.content.draft if inode.content is not None else None
    return draft is not None and draft.is_dirty and inode.parent is not None
