"""Attributes that were changed here and are not in the bucket yet.

A change is in the journal before the call that made it returns, in both modes of durability, and stays there until
the bucket has it or another client's version is found in its place, which is then said. With a file that is being
written the record of its bytes has its attributes too; before there is one, they get a row of their own, unless the
file is new and nobody has closed it: then nothing of it was promised.

Concurrency: trio thread only.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import NamedTuple

import trio

from sosfs.attributes.permissions import KeyPermissions
from sosfs.attributes.protection import Protection
from sosfs.attributes.revalidation import Revalidation, is_new
from sosfs.attributes.shared.index import SharedAttributes
from sosfs.attributes.unanswered_copies import UnansweredCopies
from sosfs.cache.attributes import AttributeCache
from sosfs.cache.blocks import Blocks, Source, Spawn
from sosfs.config.choices import Acls, Canned
from sosfs.disk.reserve import Need
from sosfs.errors import FULL
from sosfs.journal.journal import Journal
from sosfs.journal.rows import SavedAttributes
from sosfs.metadata import system_headers, user_metadata
from sosfs.metadata.edits import NO_EDITS, POSIX
from sosfs.s3.http_headers import check_properties
from sosfs.s3.protocol import (
    Detail,
    Headers,
    Object,
    ObjectStore,
    Properties,
)
from sosfs.tree.inodes import ChangedBytes, Inode, Inodes, Known
from sosfs.tree.listing import Listings
from sosfs.tree.listing_merge import Merger
from sosfs.tree.subtree_lock import SubtreeLock

log = logging.getLogger(__name__)


class Discarded(NamedTuple):
    """What goes with changes that are not to be written any more, and is so again of a file that stays after all."""

    sent: tuple[Properties, ...] = ()  # with which copies may have been made: these are not another client's
    time: int | None = None  # that was to be written


_NOTHING = Discarded()


class Changes(Revalidation):
    """What is to be written of all inodes of a mount; `AttributeWriteback` writes it."""

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
        permissions: KeyPermissions,
        *,
        ttl: float,
        shared: SharedAttributes | None = None,
        acls: Acls = Acls.KEEP,
        new_acl: Canned = Canned.PRIVATE,
        new_class: str = "",
    ) -> None:
        super().__init__(
            inodes, store, blocks, merger, listings, cache, subtree_lock, spawn,
            ttl=ttl, shared=shared, acls=acls, new_acl=new_acl
        )  # fmt: skip
        self.permissions = permissions
        self.protection = Protection(inodes)
        self._new_class = new_class
        self._journal = journal
        self._rows: dict[Inode, int] = {}
        self._unanswered_copies = UnansweredCopies()
        self._times: dict[Inode, int] = {}  # the mtime that is to be written, of those whose edits have one
        self.dirty: set[Inode] = set()
        self.since: dict[Inode, float] = {}  # when each became dirty, in seconds since the epoch
        self.failed: dict[Inode, OSError] = {}  # what the last try to write it ended with
        self.marked: Callable[[Inode], None] = lambda inode: None  # is told of each that becomes dirty
        self.carried_later: Callable[[Inode], None] = lambda inode: None  # is told what a commit has to carry

    def known(self, inode: Inode) -> Properties:
        """What is known of the object's headers and metadata, with the user's edits."""
        return inode.edits.applied(inode.properties)

    def properties(self, inode: Inode) -> Properties:
        """What the object has to carry now: its headers and metadata with the attributes put in."""
        return self._stored(inode, self.known(inode))

    def of_stored(self, inode: Inode) -> Properties:
        """As `properties`, for a copy of what the bucket has: its time is not that of bytes which are yet to come."""
        known = self.properties(inode)
        if is_new(inode) or not is_being_written(inode):
            return known
        posix = replace(inode.posix, mtime_ns=self.time_of_stored(inode))
        return replace(known, metadata=user_metadata.write(known.metadata, posix))

    def time_of_stored(self, inode: Inode) -> int:
        """The time of the bytes that the bucket has, whatever was written since: set, said by metadata, or listed."""
        said = user_metadata.read(inode.properties.metadata).mtime_ns
        listed = inode.version.modified if inode.version is not None else None
        before = said if said is not None or listed is None else listed * user_metadata.NS
        return self._times.get(inode, inode.mtime_ns if before is None else before)

    def renewed(self, inode: Inode) -> Properties:
        """As `properties`, for an object that gets other bytes."""
        had = inode.properties
        return self._stored(
            inode, inode.edits.applied(Properties(had.headers, user_metadata.without_hashes(had.metadata)))
        )

    def _stored(self, inode: Inode, known: Properties) -> Properties:
        kept = self._typed(inode, known.headers)
        return Properties(kept, user_metadata.write(known.metadata, inode.posix), self._class_of(inode))

    def _typed(self, inode: Inode, headers: Headers) -> Headers:
        """A new object gets the type of its name, as does one whose type was taken away."""
        if inode.is_directory:
            return system_headers.for_directory(headers)
        if is_new(inode) or "content_type" in inode.edits.headers:
            return system_headers.for_file(headers, inode.segment)
        return headers

    def _class_of(self, inode: Inode) -> str | None:
        """The storage class: what is in the bucket keeps its own, which S3 resets with each write and copy."""
        return self._new_class if is_new(inode) else inode.properties.storage_class

    def changed(self, inode: Inode, *, posix: Iterable[str] = POSIX) -> None:
        """The user changed attributes: `inode.edits`, and of `inode.posix` these fields.

        Raises ENOSPC when they would not fit into 2 kB of metadata, OSError of the journal.
        """
        check_properties(self.properties(inode))
        if not self._inodes.has_object(inode):
            return  # what has no name any more, or the bucket's root, of which a mount knows as long as it lasts
        before = inode.edits, self._times.get(inode)
        inode.edits = inode.edits.with_posix(posix)
        if "mtime_ns" in inode.edits.posix.intersection(posix):
            self._times[inode] = inode.mtime_ns
        try:
            self._record(inode)
        except OSError:
            inode.edits, time_before = before
            self._times.pop(inode, None)
            if time_before is not None:
                self._times[inode] = time_before
            raise

    def _record(self, inode: Inode) -> None:
        open_file = inode.open_file
        if open_file is not None and open_file.draft is not None and open_file.draft.is_dirty:
            self.carried_later(inode)
            if open_file.row or not _outlives(open_file.draft):
                return
        self._mark(inode, Need.PROMISE)

    def _mark(self, inode: Inode, need: Need = Need.RELIEF) -> None:
        """Writes down what the bucket lacks of an inode. Raises OSError of the journal.

        Only what a user is about to be promised may be refused on a full disk: all else is on its way into the bucket,
        which makes room.
        """
        open_file = inode.open_file
        is_first = open_file is not None and open_file.draft is not None and open_file.draft.base is None
        version = None if inode.is_directory or is_first else inode.version
        tokens = open_file.in_flight.tokens if open_file is not None else ()
        posix, is_written = inode.posix, self._is_written(inode)
        if is_written or is_being_written(inode):  # a kill may leave it without those bytes
            posix = replace(posix, mtime_ns=self.time_of_stored(inode))
        key, known, sent = self._inodes.key(inode), self.known(inode), self._unanswered_copies.sent(inode)
        saved = SavedAttributes(key, version, posix, known, inode.edits, sent, tokens, is_written)
        self._rows[inode] = self._journal.save_attributes(self._rows.get(inode, 0), saved, need)
        self._is_dirty(inode)

    def _is_written(self, inode: Inode) -> bool:
        """Whether bytes that the bucket lacks have given an inode another time than the one that was set."""
        draft = inode.open_file.draft if inode.open_file is not None else None
        return draft is not None and self._times.get(inode, inode.mtime_ns) != inode.mtime_ns

    def _is_dirty(self, inode: Inode) -> None:
        if not inode.attributes_dirty:
            inode.attributes_dirty = True
            inode.pins += 1
            self.dirty.add(inode)
            self.since[inode] = time.time()
            self.marked(inode)

    def sent(self, inode: Inode) -> None:
        """An upload is about to make the object, with the attributes of now: the record knows it by its token."""
        if not inode.attributes_dirty:
            return
        try:
            self._mark(inode)
        except OSError as error:
            if error.errno not in FULL:
                raise
            log.info("an upload is not recorded with the attributes that it carries: %s", error)  # it makes room

    def take_up(self, inode: Inode, row: int, saved: SavedAttributes) -> None:
        """What an earlier mount could not write, of the file or directory that has the name now."""
        posix = saved.posix
        inode.mode, inode.uid, inode.gid = posix.mode or inode.mode, posix.uid or 0, posix.gid or 0
        inode.rdev = posix.rdev or 0
        inode.mtime_ns = inode.mtime_ns if posix.mtime_ns is None else posix.mtime_ns
        inode.properties, inode.edits = saved.properties, saved.edits
        inode.known, inode.whole = Known.ALL, False
        if not inode.is_directory:
            inode.version = saved.version
        self._unanswered_copies.take_up(inode, saved.sent)
        self.protection.owe(saved.key, saved.sent)
        if "mtime_ns" in inode.edits.posix:
            self._times[inode] = inode.mtime_ns
        self._rows[inode] = row
        self._is_dirty(inode)

    def keep(self, inode: Inode, discarded: Discarded = _NOTHING) -> None:
        """What an inode has goes up soon, unless it is removed before: a marker where the last entry goes.

        `discarded` is what `discard` has returned, of one that stays after all. On a full disk its row is owed: whoever
        calls has done something else.
        """
        self._unanswered_copies.take_up(inode, discarded.sent)
        self.protection.owe(self._inodes.key(inode), discarded.sent)
        if discarded.time is not None:
            self._times[inode] = discarded.time
        with self._journal.together():
            self._mark(inode)

    def made(self, inode: Inode) -> None:
        """A new directory gets its marker soon, unless it is removed before. Raises OSError of the journal."""
        self._mark(inode, Need.PROMISE)

    def _clear(self, inode: Inode) -> None:
        if inode.attributes_dirty:
            self._journal.drop_attributes(self._rows[inode])  # where that fails it is tried again
            del self._rows[inode], self.since[inode]
            inode.attributes_dirty = False
            inode.pins -= 1
            self.dirty.discard(inode)
        self._unanswered_copies.forget(inode)
        self.protection.given_up(inode)
        self._times.pop(inode, None)
        self.failed.pop(inode, None)

    def wrote(self, inode: Inode, used: Properties, posix: user_metadata.Posix, *, adopt_time: bool) -> None:
        """A commit stored `used` for an inode whose attributes were `posix` when it began.

        A multipart upload fixes its metadata at its beginning. When only the time differs, and nobody set it, the
        file takes the stored one; whatever else differs is written afterwards.
        """
        inode.properties = used
        self._remember(inode)
        stored = user_metadata.read(used.metadata)
        if adopt_time and inode.posix == posix and stored.mtime_ns is not None:
            inode.mtime_ns = stored.mtime_ns
        self._stored_all_or_mark(inode, used)

    def _stored_all_or_mark(self, inode: Inode, used: Properties) -> None:
        """`used` is in the bucket: what the inode has beyond that is yet to be written."""
        stored, now = user_metadata.read(used.metadata), inode.posix
        differing = {name for name in POSIX if getattr(stored, name) != getattr(now, name)}
        is_set = "mtime_ns" in inode.edits.posix and self._times.get(inode, now.mtime_ns) == now.mtime_ns
        is_written = is_being_written(inode) and not is_set
        if is_written:
            differing.discard("mtime_ns")  # it is that of bytes which are yet to be stored
        if not differing and self._holds_edits(inode, used):
            self._clear(inode)
            return
        inode.edits = inode.edits.with_posix(differing)
        if "mtime_ns" in inode.edits.posix:  # that of the bytes which are stored: who writes from now on makes another
            self._times[inode] = (stored.mtime_ns if is_written else None) or inode.mtime_ns
        self._mark(inode)

    def _holds_edits(self, inode: Inode, used: Properties) -> bool:
        """Whether `used`, just stored, has all that the user changed of headers and metadata; it is done then."""
        wanted = inode.edits.applied(used)
        if used not in (wanted, replace(wanted, headers=self._typed(inode, wanted.headers))):
            return False
        inode.edits = NO_EDITS
        return True

    def _remember(self, inode: Inode) -> None:
        if inode.version is not None and self._inodes.has_object(inode) and inode.known is Known.ALL:
            self._cache.put(self._inodes.key(inode), inode.version, inode.properties, whole=inode.whole)
            if self._shared is not None:
                self._shared.wrote(self._inodes.key(inode))

    def forget(self, key: str) -> None:
        """The object's metadata are about to be rewritten: what was remembered of it is void."""
        self._cache.drop(key)

    def created(self, inode: Inode, used: Properties) -> None:
        """A new object was stored with these properties."""
        inode.properties, inode.checked = used, trio.current_time()
        inode.acl_private_until = inode.checked + self.ttl
        self._remember(inode)

    def carried(self, inode: Inode, used: Properties, *, whole: bool) -> None:
        """A rename stored `used` with the object; what was changed meanwhile is written afterwards."""
        was_dirty, time_set = inode.attributes_dirty, self._times.get(inode)
        inode.properties, inode.whole = used, whole
        self._remember(inode)
        self._clear(inode)
        if time_set is not None:  # bytes that were written since may be yet to come
            self._times[inode] = time_set
        if was_dirty:
            self._stored_all_or_mark(inode, used)

    def moved(self, inode: Inode) -> None:
        """A rename gave the inode another key, and the bucket has nothing of it: its record follows."""
        if inode.attributes_dirty:
            self._mark(inode)

    def discard(self, inode: Inode) -> Discarded:
        """The object is gone by our own doing, and with it what was to be written; should it stay, see `keep`."""
        discarded = Discarded(self._unanswered_copies.sent(inode), self._times.get(inode))
        self._clear(inode)
        return discarded

    def replaced(self, inode: Inode) -> None:
        """Another client has replaced the object: what was to be written was of the one before."""
        self._give_up(inode, "has replaced")

    def _give_up(self, inode: Inode, why: str) -> None:
        """Another client's file is there, or none: what was changed was of the one before. Says that it is lost."""
        if inode.attributes_dirty:
            log.error("what was changed of the attributes of %s is lost: another client %s it", shown_name(inode), why)
        self._let_go(inode)

    def _let_go(self, inode: Inode) -> None:
        """Nothing of an inode is to be written, and what was known of it is asked for again."""
        self._clear(inode)
        inode.edits = NO_EDITS
        inode.checked = 0.0
        inode.known = min(inode.known, Known.SIZE)

    async def fetch_whole(self, inode: Inode) -> None:
        """Makes sure the properties are complete and recent, for rewriting them.

        What another client has set of the same bytes stays. Of other bytes nothing is taken: the condition on the write
        will tell. Nor of an answer that what was stored here meanwhile has overtaken: it is asked for again.
        """
        while self._is_to_be_asked(inode):
            before = inode.version
            found = await self._store.head(self._inodes.key(inode), detail=Detail.WHOLE)
            if inode.version is before:
                self._stands_on(inode, found)
                return

    def _is_to_be_asked(self, inode: Inode) -> bool:
        """Whether the bucket has an object of which not all is known, or not recently."""
        return not is_new(inode) and not (inode.whole and trio.current_time() < inode.checked + self.ttl)

    async def learn_whole(self, inode: Inode) -> None:
        """As `fetch_whole`, for who keeps no rename out: that waits for the answer, or this for it."""
        if self._is_to_be_asked(inode):
            async with self._subtree_lock.shared(inode):
                await self.fetch_whole(inode)

    async def look(self, inode: Inode, detail: Detail) -> Object:
        """What the bucket tells of a file, under the name that it has then. Raises what it answers."""
        async with self._subtree_lock.shared(inode):
            return await self._store.head(self._inodes.key(inode), detail=detail)

    def in_doubt(self, inode: Inode) -> bool:
        """Whether a copy of ours may have made the object anew without our being told."""
        return bool(self._unanswered_copies.sent(inode))

    def _stands_on(self, inode: Inode, found: Object) -> bool:
        """Takes over what the bucket has under the inode's key, if the bytes are those that the inode has."""
        before = inode.version
        if before is None:
            return False
        # What may be the version that is known was perhaps made by a copy that was answered and is like one that was
        # not: that one may come yet, and undo what is set meanwhile.
        is_known = found.version.same_as(before)
        is_ours = not is_known and self._unanswered_copies.seen(inode, found)
        is_same = found.version.same_bytes(before) or (is_ours and found.version.size == before.size)
        if not is_same and not inode.is_directory:  # that stays the same one whatever is stored in its marker
            return False
        if found.version.same_as(before) and inode.whole and found.properties == inode.properties:
            return True
        if not is_ours:
            inode.acl_private_until = 0.0  # whoever has changed the rest may have given it another one
        inode.version = found.version
        if is_same:
            self._blocks.zeros.copied(before.etag, found.version.etag, before.size)
        inode.follow(found.properties)
        if inode.open_file is not None:
            key = self._inodes.key(inode)
            inode.open_file.rebase(Source(key, found.version.etag, found.version.size), found.version)
        return True

    @property
    def waiting(self) -> list[str]:
        """What could not be written at the last try, and why."""
        return [f"attributes of {shown_name(inode)}: {error.strerror or error}" for inode, error in self.failed.items()]


def is_being_written(inode: Inode) -> bool:
    """Whether bytes of a file are here that the bucket lacks."""
    draft = inode.open_file.draft if inode.open_file is not None else None
    return draft is not None and draft.is_dirty


def _outlives(draft: ChangedBytes) -> bool:
    """Whether a change of a file that is being written holds without its bytes: the bucket has the file, or will.

    What a new file was renamed over is in the bucket under its name, and another one.
    """
    return draft.base is not None or draft.is_committing


def shown_name(inode: Inode) -> str:
    """As a user is told of it."""
    is_root = inode.parent is None and not inode.segment
    return "the root of the mount" if is_root else inode.name.decode(errors="replace")
