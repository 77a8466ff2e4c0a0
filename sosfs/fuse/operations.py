"""Answer the kernel's requests for files: numbers to inodes, answers to attributes.

A handler answers or raises `FUSEError`; whatever else comes out of the halves below is turned into one by
`error_replies`: an OSError into its errno, a bug into EIO and a traceback in the log, so that a bug never ends the
mount.

How long the kernel may keep what it is told: a name until its listing is out of date; attributes as long,
but not at all while only the listing's guess is known, so that `stat` asks and `ls` does not
(`provisional_attributes`).

Concurrency: handlers are trio tasks, many at once.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import time
from collections.abc import Sequence

import pyfuse3
import trio

from sosfs.attributes.protection import Act
from sosfs.attributes.writeback import AttributeWriteback
from sosfs.files.commits import Commits
from sosfs.files.file_io import FileIO
from sosfs.files.open_file import Handle
from sosfs.files.page_cache import PageCache
from sosfs.fuse.entries import absent_from, entry_of, room, set_by
from sosfs.fuse.error_replies import answered, answered_at_once, listing
from sosfs.fuse.negative_entries import NegativeEntries
from sosfs.fuse.provisional_attributes import ProvisionalAttributes
from sosfs.fuse.requests import CALLERS, NOTHING, Opened, Places
from sosfs.metadata.user_metadata import storable
from sosfs.namespace.creation import Creations
from sosfs.namespace.deletions import Deletions
from sosfs.namespace.namespace import Namespace, refuse
from sosfs.namespace.rename import Renames
from sosfs.tree import keys
from sosfs.tree.inodes import (
    Directory,
    Inode,
    Inodes,
    Known,
    Reading,
    ended,
    is_hidden,
)

log = logging.getLogger(__name__)

DOTS = (b".", b"..")  # at offsets 0 and 1 of every directory; its names follow


class Operations(pyfuse3.Operations):
    """What the kernel asks of a mount."""

    supports_dot_lookup = False
    enable_writeback_cache = False

    def __init__(
        self,
        inodes: Inodes,
        namespace: Namespace,
        creations: Creations,
        renames: Renames,
        file_io: FileIO,
        commits: Commits,
        attributes: AttributeWriteback,
        deletions: Deletions,
        pages: PageCache,
        provisional: ProvisionalAttributes,
        *,
        ttl: float,
    ) -> None:
        super().__init__()
        self._inodes = inodes
        self._namespace = namespace
        self._listings = namespace.listings
        self._creations = creations
        self._renames = renames
        self._file_io = file_io
        self._commits = commits
        self._attributes = attributes
        self._deletions = deletions
        self._pages = pages
        self._provisional = provisional
        self._ttl = ttl
        self._files: dict[int, Handle] = {}
        self._readings: dict[int, Reading] = {}
        self._next_handle = inodes.root.number  # in the range of the inodes' numbers
        self.negative_entries = NegativeEntries(ttl)

    def opened(self, handle: int) -> Opened:
        """What a handle has open."""
        if found := self._files.get(handle):
            return Opened(self._file_io.path(found.inode), found.task)
        reading = self._readings.get(handle)
        return Opened(self._file_io.path(reading.directory.inode), reading.task) if reading else NOTHING

    def path(self, number: int) -> str:
        """Where a user finds an inode; "" for one that is forgotten."""
        inode = self._inodes.find(number)
        return self._file_io.path(inode) if inode is not None else ""

    @property
    def packed_names(self) -> int:
        """Bytes of the names that readers of directories have gone past, and whose inodes are forgotten."""
        walks = {id(reading.walk): reading.walk for reading in self._readings.values()}
        return sum(walk.names.packed_bytes for walk in walks.values())

    # Attributes

    def _entry(self, inode: Inode) -> pyfuse3.EntryAttributes:
        entry = entry_of(inode, ttl=self._ttl, guess=self._provisional.hold)
        if inode.is_regular:
            entry.st_blocks = -(-self._file_io.allocated(inode) // 512)
        if inode is self._inodes.root and self._inodes.has_object(inode) and os.geteuid():
            # Who is not root could not give it back to himself, and would be locked out of his own mount.
            entry.st_uid = self._inodes.defaults.uid
        if not self._inodes.has_name(inode):
            entry.st_nlink = 0  # removed, here or by another client; whoever has it open keeps it
        return entry

    def _looked_up(self, inode: Inode) -> pyfuse3.EntryAttributes:
        self._inodes.keep(inode)
        inode.lookups += 1
        inode.used = trio.current_time()  # it is asked for by its number next
        return self._entry(inode)

    @answered
    async def lookup(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        parent = self._inodes[parent_inode]
        if name in (b".", b".."):
            return self._looked_up(parent if name == b"." or parent.parent is None else parent.parent)
        going = self._namespace.listed(parent, name)
        if going is not None and self._provisional.is_going(ctx.pid, parent.number, name):
            return self._looked_up(self._provisional.shown_unasked(going))
        try:
            inode = await self._namespace.lookup(parent, name)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
            return absent_from(self._namespace.directory(parent), name, self.negative_entries, ttl=self._ttl)
        return self._looked_up(await self._provisional.looked_up(inode, ctx.pid, parent.number, name))

    @answered
    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for number, count in inode_list:
            inode = self._inodes.find(number)
            if inode is not None:
                self._namespace.forget(inode, count)
            else:
                self._inodes.give_back(number, count)

    @answered
    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        found = self._inodes[inode]
        # The kernel asks before each read(2) where attributes are not trusted for any time. What is open shows one
        # version; whether its name leads to another by now is asked by the lookup of whoever opens or stats that.
        if not found.opens or found.known is not Known.ALL:
            await self._provisional.asked(found)
        return self._entry(found)

    @answered
    async def setattr(
        self,
        inode: int,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        found = self._inodes[inode]
        if fields.update_size and fh is None:  # as `open`
            await self._staying(found)
        learned = await self._attributes.revalidate(found)
        if learned is not found:
            raise refuse(errno.ESTALE)
        self._file_io.require_name(found)
        await self._attributes.permissions.require_write(found)
        if fields.update_size and fh is None:  # else it was asked when that was opened
            await self._attributes.protection.require(found, Act.WRITE)
        self._inodes.require(found)
        given = storable(attr.st_mtime_ns) if fields.update_mtime else None
        if fields.update_size:
            await self._file_io.truncate(found, attr.st_size)
        before = found.mode, found.uid, found.gid, found.mtime_ns
        if fields.update_mode:
            found.mode = stat.S_IFMT(found.mode) | stat.S_IMODE(attr.st_mode)
        found.uid = attr.st_uid if fields.update_uid else found.uid
        found.gid = attr.st_gid if fields.update_gid else found.gid
        found.mtime_ns = found.mtime_ns if given is None else given
        if (found.mode, found.uid, found.gid, found.mtime_ns) != before:
            try:
                self._attributes.changed(found, posix=set_by(fields))
            except OSError:
                found.mode, found.uid, found.gid, found.mtime_ns = before
                raise
            found.ctime_ns = time.time_ns()
        if fields.update_atime:
            found.atime_ns = attr.st_atime_ns
        if given is not None:
            self._file_io.time_given(found)
        return self._entry(found)

    @answered
    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        found = self._inodes[inode]
        await self._provisional.confirmed(found)
        return await self._file_io.target(found)

    @answered
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        return room()

    # Names

    @answered
    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        if not stat.S_IFMT(mode):
            mode |= stat.S_IFREG
        inode = await self._creations.make_object(
            self._inodes[parent_inode], name, mode & ~ctx.umask, ctx.uid, ctx.gid, rdev=rdev
        )
        return self._looked_up(inode)

    @answered
    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        inode = await self._creations.make_directory(
            self._inodes[parent_inode], name, mode & ~ctx.umask, ctx.uid, ctx.gid
        )
        return self._looked_up(inode)

    @answered
    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        inode = await self._creations.make_object(
            self._inodes[parent_inode], name, stat.S_IFLNK | 0o777, ctx.uid, ctx.gid, body=target
        )
        return self._looked_up(inode)

    @answered
    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        raise refuse(errno.EPERM)  # what link(2) says of a filesystem without hard links; tools then copy

    def _unlinked(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bool:
        """Removes one of many names that a task removes, if nothing has to be waited for."""
        parent = self._inodes[parent_inode]
        if not self._provisional.is_going(ctx.pid, parent.number, name):
            return False
        inode = self._namespace.listed(parent, name)
        if inode is None or not self._namespace.unlink_at_once(parent, inode):
            return False
        self._provisional.removed(ctx.pid, parent.number, name)
        return True

    @answered_at_once(_unlinked)
    async def unlink(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        parent = self._inodes[parent_inode]
        is_going = self._provisional.is_going(ctx.pid, parent.number, name)
        await self._namespace.unlink(parent, name, self._namespace.listed(parent, name) if is_going else None)
        self._provisional.removed(ctx.pid, parent.number, name)

    @answered
    async def rmdir(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        parent = self._inodes[parent_inode]
        if found := self._namespace.directory(parent).entries.get(name):
            await CALLERS.freed(Places((found.number,)))  # the kernel has the lock on this one, too
        await self._namespace.rmdir(parent, name)

    @answered
    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: pyfuse3.RequestContext,
    ) -> None:
        if flags & ~pyfuse3.RENAME_NOREPLACE:
            raise refuse(errno.EINVAL)  # two names cannot be exchanged in an object store
        old_parent, parent = self._inodes[parent_inode_old], self._inodes[parent_inode_new]
        target = self._namespace.directory(parent).entries.get(name_new)
        if target is not None and target.is_directory:
            CALLERS.also_in(target.number)  # what is made in it would be lost with it
        await self._renames.rename(old_parent, name_old, parent, name_new, replace=not flags)

    # Directories

    @property
    def highest(self) -> int:
        """The highest number that an inode or a handle was given."""
        return max(self._inodes.highest, self._next_handle)

    def _handle(self) -> int:
        self._next_handle += 1
        return self._next_handle

    @listing
    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        here = self._inodes[inode]
        if not self._inodes.has_name(here) and not here.is_left_behind:
            return self._reading(
                Reading(here.directory or Directory(here), ended(), ctx.pid)
            )  # removed here: it is empty
        self._attributes.attribute_prefetch.entered(self._listings.directory(here))
        await self._listings.scanned(here)
        return self._reading(Reading(*self._listings.walk(here), ctx.pid))

    def _reading(self, reading: Reading) -> int:
        handle = self._handle()
        self._readings[handle] = reading
        return handle

    @listing
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        reading = self._readings[fh]
        here = reading.directory.inode
        is_newest = reading.walk is reading.directory.now and reading.directory.is_young(self._ttl)
        if start_id == 0 and not is_newest and self._inodes.has_name(here):
            newest = self._listings.walk(reading.directory.inode)  # rewinddir
            reading.close()
            reading = self._readings[fh] = Reading(*newest, reading.task)
        for at in range(start_id, len(DOTS)):
            dot = here if at == 0 or here.parent is None else here.parent
            if not pyfuse3.readdir_reply(token, DOTS[at], self._entry(dot), at + 1):
                return
        walk, at = reading.walk, max(0, start_id - len(DOTS))
        reading.comes_to(at)
        self._listings.reached(reading.directory, walk, at)
        while True:
            while at >= len(walk.names):
                if walk.done:
                    return
                await self._listings.advance(reading.directory, walk, have=len(walk.names))
            name = walk.names[at]
            at += 1
            inode = reading.directory.entries.get(name)
            if inode.is_unread if inode is not None else at <= reading.furthest:
                inode = await self._told_before(here, name)
            if inode is None or is_hidden(inode):
                continue  # it went meanwhile
            shown = keys.shown_in_root(name) if here is self._inodes.root else name
            if not pyfuse3.readdir_reply(token, shown, self._entry(inode), at + len(DOTS)):
                return
            self._inodes.keep(inode)
            inode.lookups += 1
            self._provisional.listed(inode)

    async def _told_before(self, parent: Inode, name: bytes) -> Inode | None:
        """What a name leads to that a reader has gone back to, and that may have been forgotten; None if it is gone."""
        if not self._inodes.has_name(parent):
            return None
        try:
            return await self._namespace.lookup(parent, name)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
            return None

    @answered
    async def releasedir(self, fh: int) -> None:
        self._readings.pop(fh).close()

    @answered
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        """Everything below is in the bucket afterwards."""
        top = self._readings[fh].directory.inode
        await self._commits.commit_under(top)
        if self._inodes.has_name(top):  # else nothing is below it
            await self._deletions.wait_under(self._inodes.key(top))
        await self._commits.done_for_good()

    # Files

    @answered
    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        found = self._inodes[inode]
        if _writes(flags):
            await self._staying(found)
        return await self._open_existing(found, flags, ctx)

    async def _staying(self, inode: Inode) -> None:
        """Nobody removes or replaces a file for a caller that is gone: it would go with what is written now."""
        if inode.parent is not None:
            await CALLERS.freed(Places((inode.parent.number,)))
            if inode.parent is None:
                raise refuse(errno.ESTALE)  # the kernel looks its name up again

    async def _open_existing(self, inode: Inode, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        if _writes(flags):
            await self._attributes.protection.require(inode, Act.WRITE)
        return await self._open(inode, flags, ctx)

    async def _open(self, inode: Inode, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        if _writes(flags):
            await self._attributes.permissions.require_write(inode)
        await self._provisional.opened(inode)
        self._inodes.require(inode)
        handle = await self._file_io.open(inode, flags, ctx.pid)
        self._inodes.keep(inode)
        return self._file_info(handle, keep=self._pages.hold(inode))

    def _file_info(self, handle: Handle, *, keep: bool) -> pyfuse3.FileInfo:
        number = self._handle()
        self._files[number] = handle
        return pyfuse3.FileInfo(fh=number, keep_cache=keep)

    @answered
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: pyfuse3.RequestContext
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        parent = self._inodes[parent_inode]
        mode = stat.S_IFREG | stat.S_IMODE(mode) & ~ctx.umask
        try:
            if self._creations.claims.at_open(name, flags):
                inode = await self._creations.make_object(parent, name, mode, ctx.uid, ctx.gid)
                return await self._open(inode, flags & ~os.O_TRUNC, ctx), self._looked_up(inode)
            directory, parsed = await self._creations.vacant(parent, name)
        except OSError as error:
            if error.errno != errno.EEXIST or flags & os.O_EXCL:
                raise
            inode = await self._attributes.revalidate(await self._namespace.lookup(parent, name))
            return await self._open_existing(inode, flags, ctx), self._looked_up(inode)
        inode = self._creations.new_file(directory, parsed, mode, ctx.uid, ctx.gid)
        handle = await self._file_io.create(inode, flags, ctx.pid)
        return self._file_info(handle, keep=True), self._looked_up(inode)

    @answered
    async def read(self, fh: int, off: int, size: int) -> bytes | memoryview:  # type: ignore[override]  # any buffer
        return await self._file_io.read(self._files[fh], off, size)

    @answered
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        return await self._file_io.write(self._files[fh], off, buf)

    @answered
    async def flush(self, fh: int) -> None:
        await self._file_io.flush(self._files[fh])

    @answered
    async def fsync(self, fh: int, datasync: bool) -> None:
        await self._file_io.fsync(self._files[fh].inode)

    @answered
    async def release(self, fh: int) -> None:
        handle = self._files.pop(fh)
        await self._file_io.release(handle)
        self._namespace.forget(handle.inode, 0)


def _writes(flags: int) -> bool:
    """Whether what is opened so may be changed."""
    return flags & os.O_ACCMODE != os.O_RDONLY or bool(flags & os.O_TRUNC)
