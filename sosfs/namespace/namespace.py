"""Look up and remove names.

A directory that was listed lately answers every lookup, the absent ones too; so does one that this mount
made. Otherwise one page of a LIST is asked for, which serves the lookups that follow; only in directories
that do not fit a page is a single name asked for by itself, as an object and as a prefix side by side.
Only a 404 or a listing that passed the name's place makes a name absent.

Concurrency: trio thread only. The kernel serialises changes within one directory; lookups come at any time.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import trio

from sosfs.attributes.protection import Act
from sosfs.attributes.writeback import AttributeWriteback
from sosfs.concurrency.tasks import each
from sosfs.errors import Cause, StoreError
from sosfs.files.file_io import FileIO
from sosfs.namespace.deletions import Deletions
from sosfs.s3.preconditions import look
from sosfs.s3.protocol import DELETE_MAX, KEY_MAX, Listed, Object, ObjectStore, Version
from sosfs.tree import keys
from sosfs.tree.inodes import (
    PENDING,
    Directory,
    Inode,
    Inodes,
    Pass,
    held,
    is_unsent,
)
from sosfs.tree.keys import Form
from sosfs.tree.listing import Listings
from sosfs.tree.listing_merge import Merger
from sosfs.tree.subtree_lock import SubtreeLock

RELIST_MAX = 200  # entries; a larger directory is not listed again to check one name
WALK = 3  # names asked for in a row, each after the one before: a page of a listing then serves those that follow


def refuse(number: int, detail: str = "") -> OSError:
    """An OSError of this number."""
    return OSError(number, detail or os.strerror(number))


class Namespace:
    """The names half of the filesystem."""

    def __init__(
        self,
        inodes: Inodes,
        store: ObjectStore,
        merger: Merger,
        listings: Listings,
        attributes: AttributeWriteback,
        file_io: FileIO,
        deletions: Deletions,
        subtree_lock: SubtreeLock,
        *,
        ttl: float,
    ) -> None:
        self.inodes = inodes
        self.ttl = ttl
        self._store = store
        self._merger = merger
        self.listings = listings
        self.directory = listings.directory
        self._attributes = attributes
        self._file_io = file_io
        self._deletions = deletions
        self._subtree_lock = subtree_lock
        self._alone: set[Inode] = set()  # objects whose directory was renamed or removed, and whose name is free

    # Looking up

    def listed(self, parent: Inode, name: bytes) -> Inode | None:
        """What was known of a file's name last, however long ago; None where nothing was, and for a directory."""
        inode = self.directory(parent).entries.get(name)
        return None if inode is None or inode.is_directory or inode.is_unread else inode

    async def lookup(self, parent: Inode, name: bytes) -> Inode:
        """The inode of a name. Raises OSError ENOENT, ENOTDIR, ENAMETOOLONG, and what the bucket answers."""
        directory = self.directory(parent)
        parsed = keys.parse(name)
        inode = directory.entries.get(name) or self._left_beside(directory, name, parsed)
        if inode is not None and (inode.pins or self._is_recent(inode, directory)):
            return inode
        if inode is None and (name in directory.touched and directory.touched[name] == PENDING):
            raise refuse(errno.ENOENT)
        if directory.is_known(self.ttl):
            if inode is None:
                raise refuse(errno.ENOENT)
            if not inode.is_unread:
                return inode
        directory.asking += 1
        try:
            return await self._ask(directory, name, parsed, inode)
        finally:
            directory.asking -= 1

    def _is_recent(self, inode: Inode, directory: Directory) -> bool:
        checked = max(inode.checked, directory.touched.get(inode.name, 0.0))
        return not inode.is_unread and directory.forgotten < checked > trio.current_time() - self.ttl

    async def _ask(self, directory: Directory, name: bytes, parsed: keys.Parsed, inode: Inode | None) -> Inode:
        if len(directory.entries) <= RELIST_MAX or directory.now is None:
            walk = await self.listings.first_page(directory)
        else:
            walk = directory.now
        if parsed.form is keys.Form.FOLDED:
            await self.listings.complete(directory.inode)  # however long it took: nothing else unfolds a name
            return self._now(directory, name)
        found = directory.entries.get(name)
        if found is not None and (self._is_recent(found, directory) or is_unsent(found)):
            return found
        is_newest = walk is directory.now and directory.is_young(self.ttl)  # neither, if it took long to come
        if is_newest and (walk.done or (walk.covers(parsed.segment) and not _is_shown(walk, parsed))):
            raise refuse(errno.ENOENT)
        if (around := await self._asked_around(directory, name, parsed)) is not None:
            return around
        return await self._ask_by_name(directory, name, parsed)

    async def _asked_around(self, directory: Directory, name: bytes, parsed: keys.Parsed) -> Inode | None:
        """What a page that has passed the name's place shows of it, asked for where one name after the other is wanted.

        None where there is no such page, or it does not tell enough. Raises ENOENT where it does not show the name.
        """

        def is_needed() -> bool:
            here = directory.entries.get(name)
            return here is None or not (here.pins or self._is_recent(here, directory))

        before, is_walk = directory.last_before(parsed.segment), directory.asks(parsed.segment) >= WALK
        if not directory.has_window(parsed.segment, self.ttl) and is_walk:
            await self.listings.look_around(directory, before, is_needed=is_needed)
            if not directory.has_window(parsed.segment, self.ttl):
                directory.asked_on = 0  # the names are too far from each other for a page to serve several
        found = directory.entries.get(name)
        if found is not None and not is_needed():
            return found
        window = directory.window
        if window is None or not directory.has_window(parsed.segment, self.ttl) or _is_shown(window, parsed):
            return None
        if found is not None and directory.untouched(name, window) and not is_unsent(found):
            self._merger.remove(directory, name)
            found = None
        if found is None:
            raise refuse(errno.ENOENT)
        return found

    async def _ask_by_name(self, directory: Directory, name: bytes, parsed: keys.Parsed) -> Inode:
        """Asks for one name as an object and as a prefix; the prefix wins, as in a listing.

        While the directory is renamed it would be found under neither key.
        """
        await self._subtree_lock.released(directory.inode)
        key = self.inodes.child_key(directory.inode, parsed.segment)
        if len(key.encode()) > KEY_MAX:
            raise refuse(errno.ENAMETOOLONG)
        found: list[Object] = []
        below: list[Listed] = []

        async def ask(what: str) -> None:
            if what == "prefix":
                below.extend((await self._store.list(key + "/", delimiter="", limit=1)).objects)
                return
            try:
                found.append(await look(self._store, key))
            except StoreError as error:
                if error.cause is not Cause.ABSENT:
                    raise

        when = trio.current_time()
        alone = parsed.form is Form.BESIDE or len(key.encode()) == KEY_MAX
        kinds = ["object"] if alone else ["object", "prefix"]
        if not key:
            kinds.remove("object")  # none has an empty key
        with self._subtree_lock.watched(directory.inode) as watch:
            await each(ask, kinds, at_once=2)
        if watch.was_renamed:
            return await self._ask_by_name(directory, name, parsed)
        if not parsed.segment:
            found = [one for one in found if one.version.size]  # else it is the directory's own marker
        if name in directory.touched and directory.touched[name] >= when:
            return self._now(directory, name)
        if directory.unnoted >= when:  # it may have been this name
            return await self._ask_by_name(directory, name, parsed)
        return self._take_named(directory, name, found, is_prefix=bool(below), when=when)

    def _take_named(
        self, directory: Directory, name: bytes, found: list[Object], *, is_prefix: bool, when: float
    ) -> Inode:
        here, parsed = directory.entries.get(name), keys.parse(name)
        if is_prefix:
            self._merger.folder(directory, parsed.segment, Pass("", started=when))
            return self._now(directory, name)
        if here is not None and here.is_directory and not is_unsent(here):
            self._merger.remove(directory, name)
            here = directory.entries.get(name)  # what stood beside it
        if here is not None and is_unsent(here):
            return here  # something was made in it meanwhile
        if not found:
            self._merger.remove(directory, name)
            raise refuse(errno.ENOENT)
        if here is None:
            here = self.inodes.listed(directory.inode, parsed.segment, parsed.form)
            directory.entries[name] = here
        return self._attributes.take(here, found[0])

    def _now(self, directory: Directory, name: bytes) -> Inode:
        inode = directory.entries.get(name)
        if inode is None:
            raise refuse(errno.ENOENT)
        return inode

    def replaced(self, inode: Inode, version: Version) -> None:
        """A file's name leads to another client's version: nothing that was known of it holds."""
        inode.version = None
        self._merger.seen(inode, version, trio.current_time())

    @contextmanager
    def moving(
        self, inode: Inode, target: Inode | None, parent: Inode, segment: str, form: keys.Form
    ) -> Iterator[None]:
        """Within, no listing and no answer about one name says what the old and the new name lead to."""
        assert inode.parent is not None
        name = target.name if target is not None else keys.name_of(segment, form)
        places = (self.directory(inode.parent), inode.name), (self.directory(parent), name)
        for directory, one in places:
            directory.touched[one] = PENDING
        try:
            yield
        except BaseException:
            for directory, one in places:
                directory.reached_bucket(one)
            raise

    # Removing

    async def unlink(self, parent: Inode, name: bytes, known: Inode | None = None) -> None:
        """Removes a file's name, which leads to `known` if that is given; who has it open keeps its bytes.

        Raises ENOENT, EISDIR; EPERM for what is locked.
        """
        inode = known or await self.lookup(parent, name)
        if inode.is_directory:
            raise refuse(errno.EISDIR)
        await self._attributes.protection.require(inode, Act.REMOVE)
        await self.keep_parent(parent)
        async with (
            self._file_io.leaving(inode),
            self._subtree_lock.shared(parent),
            self._attributes.resting(inode),  # a copy of it would come after it has gone
        ):
            await self._attributes.ascertain(inode)  # what one has made would pass for another client's, and stay
            await self.remove(inode)

    def unlink_at_once(self, parent: Inode, inode: Inode) -> bool:
        """Removes a file's name without waiting for anything; False, with nothing done, where `unlink` would wait."""
        directory, version = self.directory(parent), inode.version
        if inode.open_file is not None or inode.pins or version is None or self._attributes.protection.is_on:
            return False  # pinned is also what has attributes on their way
        if not (self._keeps(parent, directory) or len(directory.entries) > 1) or self._subtree_lock.is_exclusive(
            parent
        ):
            return False
        settled = partial(directory.reached_bucket, inode.name)
        if not self._deletions.delete_at_once(self.inodes.key(inode), version, settled):
            return False
        self._attributes.discard(inode)
        self._leave(directory, inode, PENDING)
        parent.touch()
        return True

    async def remove(self, inode: Inode) -> None:
        """Takes an inode out of the tree and its object out of the bucket. Raises what refuses it."""
        parent = inode.parent
        if parent is None:
            raise refuse(errno.ESTALE)  # a listing has shown it meanwhile: the kernel looks the name up again
        directory, name, key = self.directory(parent), inode.name, self.inodes.key(inode)
        version, was_changed = inode.version, inode.attributes_dirty
        if version is not None and self._attributes.in_doubt(inode):
            version = replace(version, modified=None)  # a copy of ours may make it anew
        discarded = self._attributes.discard(inode)
        self._leave(directory, inode, None if version is None else PENDING)

        if version is not None:
            settled, forget = partial(directory.reached_bucket, name), partial(self._file_io.left, inode)
            try:
                await self._deletions.delete(key, version, settled, forget=forget)
            except OSError:
                directory.put(inode)
                inode.parent = parent
                self.inodes.keep(inode)
                if was_changed:
                    self._attributes.keep(inode, discarded)
                raise
        self.left(directory, inode)
        parent.touch()

    def _leave(self, directory: Directory, inode: Inode, when: float | None) -> None:
        directory.take(inode.name, when=when)
        inode.parent = None
        if not held(inode):
            self.inodes.drop(inode)

    def left(self, directory: Directory, inode: Inode) -> None:
        """A name was left for good: whoever asks for it finds what stood beside that directory.

        Who has read both names, as `rm -r` has, finds it by its other one until then.
        """
        self._alone = {one for one in self._alone if one.parent is not None}
        beside = directory.entries.get(keys.name_of(inode.segment, Form.BESIDE))
        if beside is not None:
            self._alone.add(beside)

    def _left_beside(self, directory: Directory, name: bytes, parsed: keys.Parsed) -> Inode | None:
        beside = directory.entries.get(keys.name_of(parsed.segment, Form.BESIDE)) if self._alone else None
        if beside not in self._alone or parsed.form is not Form.PLAIN:
            return None
        self._alone.discard(beside)
        self._merger.stands_alone(directory, parsed.segment)
        return directory.entries.get(name)

    async def keep_parent(self, parent: Inode) -> None:
        """A directory that exists only by its entries gets a marker when the last one goes."""
        directory = self.directory(parent)
        if self._keeps(parent, directory):
            return
        if len(directory.entries) > 1:
            return
        walk = await self.listings.complete(parent)
        assert walk.done
        if directory.marker is None and len(directory.entries) <= 1:
            self._attributes.keep(parent)

    def _keeps(self, parent: Inode, directory: Directory) -> bool:
        """Whether a directory is there without entries, too: it has a marker, or one is on its way."""
        is_marked = directory.marker is not None or (parent.version is not None and not directory.is_unmarked)
        return parent is self.inodes.root or is_marked or parent.attributes_dirty

    async def rmdir(self, parent: Inode, name: bytes) -> None:
        """Removes an empty directory. Raises ENOENT, ENOTDIR, ENOTEMPTY; EPERM where its marker is locked."""
        inode = await self.lookup(parent, name)
        directory = self.directory(inode)
        is_stored_in = inode.version is not None and inode.version.size > 0  # its marker, since it was listed
        if directory.entries or is_stored_in or not directory.is_known(self.ttl):
            await self.require_empty(inode)
        await self._attributes.protection.require(inode, Act.REMOVE)
        await self.keep_parent(parent)
        # Its marker would come after it has gone.
        async with self._subtree_lock.shared(parent), self._attributes.resting(inode):
            if inode in self._attributes.failed or inode.directory is not directory:
                await self.require_empty(inode)  # a marker that was sent without an answer may be there
                directory = self.directory(inode)  # another one where it was forgotten, for this has waited so long
            inode.version = inode.version or directory.marker
            if inode.version is None and self._deletions.under(self.inodes.key(inode)):
                inode.version = Version("", 0)  # its name is pending until a delete sent after those below is answered
            if directory.entries:
                raise refuse(errno.ENOTEMPTY)  # made since: the kernel's lock on it goes with a caller
            await self.remove(inode)

    async def require_empty(self, inode: Inode) -> None:
        """Raises ENOTEMPTY unless a directory has no entries, those of other clients included."""
        directory, prefix = self.directory(inode), self.inodes.key(inode)
        await self.listings.complete(inode)
        if directory.entries:
            raise refuse(errno.ENOTEMPTY)
        going = self._deletions.under(prefix)  # before the listing, which may still show them
        page = await self._store.list(prefix, delimiter="", limit=min(DELETE_MAX, 2 + len(going)))
        for listed in page.objects:
            if listed.key in going:
                continue
            if listed.key != prefix or listed.version.size:
                directory.doubt()
                raise refuse(errno.ENOTEMPTY)
            directory.marker = listed.version

    # Forgetting

    def forget(self, inode: Inode, count: int) -> None:
        """The kernel dropped `count` lookups. An entry of a listing stays until the listing goes."""
        inode.lookups = max(0, inode.lookups - count)
        if held(inode):
            return
        if inode.parent is None:
            self.inodes.drop(inode)
        elif inode.directory is not None and not any(True for _ in inode.directory.live()):
            self._forget_entries(inode)

    def sweep(self) -> None:
        """Frees listings that are out of date and whose entries nobody holds."""
        for directory in self.inodes.directories():
            if not directory.is_young(self.ttl) and not any(True for _ in directory.live()):
                self._forget_entries(directory.inode)

    def _forget_entries(self, inode: Inode) -> None:
        directory = inode.directory
        assert directory is not None
        if (
            directory.readers
            or directory.asking
            or self.listings.is_under_way(directory)
            or self.inodes.has_lent(inode)
            or any(child.directory is not None for child in directory.entries.values())
        ):
            return
        if PENDING in directory.touched.values():
            return  # what was removed here would be listed again until the bucket has let it go
        for child in directory.entries.values():
            self.inodes.drop(child)
        inode.directory = None


def _is_shown(walk: Pass, parsed: keys.Parsed) -> bool:
    """Whether a pass has shown what a name stands for; perhaps as an object beside a directory that is gone by now."""
    return any(keys.name_of(parsed.segment, form) in walk.names for form in (Form.PLAIN, Form.BESIDE))
