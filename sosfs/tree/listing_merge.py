"""Merge the pages of a listing into a directory.

What this mount did after a pass began is newer than what its pages say, so `touched` names are left as they are;
entries that a finished pass did not show are gone.

Concurrency: trio thread only, without an await.
"""

from __future__ import annotations

import stat
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

from sosfs.cache.attributes import AttributeCache, Remembered
from sosfs.metadata.user_metadata import NS, read
from sosfs.s3.paging import is_ordered
from sosfs.s3.protocol import NOTHING, UNKNOWN, Page, Properties, Version
from sosfs.s3.scratch_key import is_of_zeros
from sosfs.tree.inodes import SYMLINK_MAX, Directory, Inode, Inodes, Known, Pass, is_unsent
from sosfs.tree.keys import Form, name_of


@lru_cache(64)
def _of_class(storage_class: str | None) -> Properties:
    return replace(NOTHING, storage_class=storage_class)


def _classed(properties: Properties, storage_class: str | None) -> Properties:
    """The same with another storage class; all of which no more is known share one object."""
    return _of_class(storage_class) if properties is NOTHING else replace(properties, storage_class=storage_class)


def _doubt(inode: Inode, listed: Version, known: Remembered | None) -> None:
    """Another client rewrote the metadata alone: they are read again. A file's other bytes are `Merger.seen`'s matter.

    After our own write any time would do (`Version.same_as`), so that what was noted with it has to tell. A directory
    that had no marker has one now.
    """
    version = inode.version
    noted = known if version is not None and version.modified is None else None
    is_same = noted.holds_for(listed) if noted is not None else version is not None and listed.same_as(version)
    if inode.known is not Known.ALL or (version is None and (inode.pins or not inode.is_directory)):
        return
    if not is_same:
        inode.whole, inode.acl_private_until = False, 0.0  # what waits here is stored with what was set there
    if inode.pins:
        return
    if is_same:
        inode.version = listed
    else:
        inode.known = Known.NAME if listed.size <= SYMLINK_MAX and not inode.is_directory else Known.SIZE


def _is_another(directory: Directory, segment: str, listed: Version) -> bool:
    """Whether the same bytes were listed with another time before."""
    here = directory.entries.get(name_of(segment)) if segment else directory.inode
    before = here.version if here is not None else None
    return before is not None and listed.same_bytes(before) and not listed.same_as(before)


class Merger:
    """Brings listing pages into directories."""

    def __init__(self, inodes: Inodes, cache: AttributeCache) -> None:
        self._inodes = inodes
        self._cache = cache
        self.agrees: Callable[[str, Remembered], None] | None = None  # is told what is remembered and listed

    def page(self, directory: Directory, walk: Pass, page: Page) -> None:
        """Merges one page; after the last one, drops what the pass did not show."""
        self.window(directory, walk, page)
        if walk.done:
            self._sweep(directory, walk)

    def window(self, directory: Directory, walk: Pass, page: Page) -> None:
        """Merges one page of a pass that need not have begun at the directory's first key."""
        prefix = self._inodes.key(directory.inode)
        for folder in page.prefixes:
            here = self.folder(directory, folder[len(prefix) : -1], walk)
            if here is not None:
                walk.show(here.name)
        self._objects(directory, walk, prefix, page)
        if is_ordered(page):
            walk.reach = max([walk.reach, *(o.key for o in page.objects[-1:]), *page.prefixes[-1:]])
        walk.token, walk.after = page.token, ""
        walk.done = not page.token

    def _objects(self, directory: Directory, walk: Pass, prefix: str, page: Page) -> None:
        if not page.objects:
            return
        first, last = page.objects[0].key[len(prefix) :], page.objects[-1].key[len(prefix) :]
        remembered = self._cache.page(prefix, first, last)
        for listed in page.objects:
            segment = listed.key[len(prefix) :]
            known = remembered.get(segment)
            if known is not None and known.version.modified is None and _is_another(directory, segment, listed.version):
                self._cache.drop(listed.key)  # the time of a write of ours is not known so well that it would tell
                known = None
            if self.agrees is not None and known is not None and known.holds_for(listed.version):
                self.agrees(listed.key, known)
            if segment == "":
                directory.marker, walk.is_marked = listed.version, True
                _doubt(directory.inode, listed.version, known)
            if is_of_zeros(segment):
                continue  # a mount has it there while it stores files with holes
            if segment or listed.version.size:
                inode = self.object(directory, walk, segment, listed.version, known)
                if inode is not None and inode.known is not Known.ALL and known and known.holds_for(listed.version):
                    inode = self.learned(inode, known.properties, whole=known.whole)
                if inode is not None and not inode.pins and inode.properties.storage_class != listed.storage_class:
                    inode.properties = _classed(inode.properties, listed.storage_class)

    def learned(self, inode: Inode, properties: Properties, *, whole: bool) -> Inode:
        """An object's metadata is known: another type than the kernel was told makes another inode."""
        said = read(properties.metadata).mode
        if said and stat.S_IFMT(said) not in (0, stat.S_IFMT(inode.mode), stat.S_IFDIR):
            checked = inode.checked
            inode = self.supersede(inode)
            inode.checked = checked
        inode.learn(properties, whole=whole)
        return inode

    def folder(self, directory: Directory, segment: str, walk: Pass) -> Inode | None:
        """Merges a prefix that a page of a pass showed; None where our own doing is newer."""
        name = name_of(segment)
        here = directory.entries.get(name)
        if (here is None or not here.is_directory) and not directory.untouched(name, walk):
            return None
        if here is not None and not here.is_directory:
            # The object came first: it makes room, and is shown under its escaped name unless this pass finds it gone.
            here.form = Form.BESIDE
            directory.entries[here.name] = here
            for one in {walk, directory.now or walk}:
                if name in one.names:
                    one.show(here.name)
            here = None
        if here is None:
            here = self.new_directory(directory.inode, segment)
            directory.entries[name] = here
        here.checked = walk.sent
        return here

    def new_directory(self, parent: Inode, segment: str) -> Inode:
        """A directory found in the bucket, whose marker nobody has read."""
        inode = self._inodes.make(parent, segment, Form.PLAIN, mode=self._inodes.defaults.directory_mode)
        inode.known = Known.SIZE
        inode.whole = False
        return inode

    def object(
        self, directory: Directory, walk: Pass, segment: str, version: Version, known: Remembered | None
    ) -> Inode | None:
        """Merges one listed object; None where our own doing is newer."""
        name = name_of(segment)
        here = directory.entries.get(name)
        if here is not None and here.is_directory and directory.untouched(name, walk):
            name = name_of(segment, Form.BESIDE)
            here = directory.entries.get(name)
        if not directory.untouched(name, walk):
            return None
        if here is None:
            here = self._new_file(directory, segment, name)
        if version != UNKNOWN or here.version is None:
            _doubt(here, version, known)
            self.seen(here, version, walk.sent)
        here = directory.entries[name]
        here.checked = 0.0 if version == UNKNOWN else here.checked  # it is asked for alone
        walk.show(name)
        return here

    def _new_file(self, directory: Directory, segment: str, name: bytes) -> Inode:
        form = Form.PLAIN if name == name_of(segment) else Form.BESIDE
        inode = self._inodes.listed(directory.inode, segment, form)
        directory.entries[name] = inode
        return inode

    def seen(self, inode: Inode, version: Version, when: float, *, in_place: bool = False) -> None:
        """The bucket shows this version of a file; another one than before makes what was known of it void.

        Who has the file open goes on with the size, the bytes and the kernel's pages of what was opened, but for
        `in_place`: the other version then gets an inode of its own.
        """
        inode.checked = when
        if inode.pins:
            return
        if inode.version is not None and version.same_as(inode.version):
            inode.version = version
            return
        grew = inode.version is not None and inode.version.size <= SYMLINK_MAX < version.size
        is_other = inode.version is None or not version.same_bytes(inode.version)
        if (inode.opens and is_other and not in_place) or not inode.is_regular or grew:
            inode = self.supersede(inode)
            inode.checked = when
        inode.version, inode.size = version, version.size
        inode.known = Known.NAME if version.size <= SYMLINK_MAX else Known.SIZE
        inode.mode = self._inodes.defaults.file_mode
        inode.uid, inode.gid = self._inodes.defaults.uid, self._inodes.defaults.gid
        inode.properties, inode.whole, inode.acl_private_until = NOTHING, False, 0.0
        if version.modified is not None:
            inode.mtime_ns = inode.ctime_ns = inode.atime_ns = version.modified * NS

    def supersede(self, inode: Inode) -> Inode:
        """A new inode in the place of one that the kernel may know by another type: numbers keep theirs."""
        parent = inode.parent
        if not (inode.lookups or inode.opens) or parent is None or parent.directory is None:
            return inode
        fresh = self._inodes.make(parent, inode.segment, inode.form, mode=self._inodes.defaults.file_mode)
        fresh.version, fresh.size = inode.version, inode.size
        fresh.mtime_ns, fresh.ctime_ns, fresh.atime_ns = inode.mtime_ns, inode.ctime_ns, inode.atime_ns
        parent.directory.entries[fresh.name] = fresh
        inode.parent, inode.known, inode.checked = None, Known.NAME, 0.0
        return fresh

    def _sweep(self, directory: Directory, walk: Pass) -> None:
        """What the pass did not show is gone, but for what is not in the bucket yet: that is shown."""
        if not walk.is_marked and directory.now is walk and directory.inode.checked < walk.started:
            directory.marker, directory.is_unmarked = None, True
        missing = [(name, inode) for name, inode in directory.entries.items() if name not in walk.names]
        missing.sort(key=lambda entry: entry[1].is_directory)  # what is beside one goes before it
        for name, inode in missing:
            if is_unsent(inode) or not directory.untouched(name, walk):
                walk.show(name)
            elif directory.now is walk:  # names made since a newer pass began are known to that one alone
                self.remove(directory, name)

    def stands_alone(self, directory: Directory, segment: str) -> None:
        """A directory is gone: an object beside it has its own name again."""
        here = directory.entries.pop(name_of(segment, Form.BESIDE), None)
        if here is not None:
            here.form = Form.PLAIN
            directory.entries[here.name] = here
            if directory.now is not None:
                directory.now.show(here.name)

    def remove(self, directory: Directory, name: bytes) -> None:
        """The bucket no longer has this entry."""
        inode = directory.entries.pop(name, None)
        if inode is not None:
            self._detach(inode)
            if inode.is_directory:
                self.stands_alone(directory, inode.segment)

    def _detach(self, inode: Inode) -> None:
        """Takes an inode out of the tree, and all below it: their keys would else be those of the root's files."""
        inode.parent, inode.known, inode.checked = None, Known.NAME, 0.0
        if inode.directory is not None:
            below = tuple(inode.directory.entries.values())
            inode.directory.entries.clear()
            for child in below:
                self._detach(child)
        if not inode.lookups and not inode.opens:
            self._inodes.drop(inode)
