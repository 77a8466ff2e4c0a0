"""Create files, directories, links and special files.

A file begins here and goes into the bucket with its bytes (`commits`). All else is an object of its own that is there
when the call returns, under the condition that its name is absent. In journal mode a directory is only recorded
(`Changes.made`) and its marker follows, as a file does; what a local disk promises of mkdir is no more: it outlives
a crash of the machine with the next fsync, and one of sosfs at once.

Concurrency: trio thread only. The kernel serialises changes within one directory; lookups come at any time.
"""

from __future__ import annotations

import errno
import stat
import time

from sosfs.attributes.writeback import AttributeWriteback
from sosfs.errors import Cause, StoreError
from sosfs.namespace.exclusive_create import ExclusiveCreate
from sosfs.namespace.namespace import Namespace, refuse
from sosfs.namespace.rename_rollback import RenameRollback
from sosfs.s3.protocol import KEY_MAX, Guard, ObjectStore
from sosfs.tree import keys
from sosfs.tree.inodes import SYMLINK_MAX, Directory, Inode, require_free
from sosfs.tree.subtree_lock import SubtreeLock


class Creations:
    """Makes names."""

    def __init__(
        self,
        namespace: Namespace,
        store: ObjectStore,
        attributes: AttributeWriteback,
        rollback: RenameRollback,
        subtree_lock: SubtreeLock,
        claims: ExclusiveCreate,
    ) -> None:
        self._namespace = namespace
        self._inodes = namespace.inodes
        self._store = store
        self._attributes = attributes
        self._rollback = rollback
        self._subtree_lock = subtree_lock
        self.claims = claims

    async def vacant(self, parent: Inode, name: bytes, *, after: str = "") -> tuple[Directory, keys.Parsed]:
        """Makes sure that a name can be created, of a key that ends in `after`.

        Raises EEXIST, EINVAL, ENAMETOOLONG.
        """
        parsed = keys.parse(name)
        if parsed.form is keys.Form.FOLDED:
            raise refuse(errno.EINVAL, "a folded name stands for a key that exists")
        key = self._inodes.child_key(parent, parsed.segment)
        if len((key + after).encode()) > KEY_MAX:
            raise refuse(errno.ENAMETOOLONG, "a key has at most 1024 bytes")
        try:
            await self._namespace.lookup(parent, name)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
        else:
            raise refuse(errno.EEXIST)
        require_free(parent, parsed.segment)
        await self._attributes.permissions.require_store(key)
        await self._rollback.vacate(key)
        return self._namespace.directory(parent), parsed

    def new_file(self, directory: Directory, parsed: keys.Parsed, mode: int, uid: int, gid: int) -> Inode:
        """An inode for what is not in the bucket yet; its group is that of a set-group-ID directory (inode(7))."""
        if directory.inode.mode & stat.S_ISGID:
            gid = directory.inode.gid
            mode |= stat.S_ISGID if stat.S_ISDIR(mode) else 0
        inode = self._inodes.make(directory.inode, parsed.segment, parsed.form, mode=mode)
        inode.uid, inode.gid = uid, gid
        inode.mtime_ns = inode.ctime_ns = inode.atime_ns = time.time_ns()
        directory.put(inode)
        return inode

    async def make_object(
        self, parent: Inode, name: bytes, mode: int, uid: int, gid: int, *, body: bytes = b"", rdev: int = 0
    ) -> Inode:
        """A symbolic link, device, fifo, socket or empty file, at once in the bucket. Raises EEXIST."""
        if len(body) > SYMLINK_MAX:
            raise refuse(errno.ENAMETOOLONG)
        directory, parsed = await self.vacant(parent, name)
        inode = self.new_file(directory, parsed, mode, uid, gid)
        inode.rdev, inode.size = rdev, len(body)
        await self._store_new(directory, inode, body)
        return inode

    async def make_directory(self, parent: Inode, name: bytes, mode: int, uid: int, gid: int) -> Inode:
        """A directory, its marker in the bucket or soon there. Raises EEXIST, OSError of the journal."""
        directory, parsed = await self.vacant(parent, name, after="/")
        inode = self.new_file(directory, parsed, stat.S_IFDIR | stat.S_IMODE(mode), uid, gid)
        self._namespace.directory(inode).created_here(self._inodes.key(inode))  # now: somebody may find it, and fill it
        if self.claims.at_mkdir(name):
            await self._store_new(directory, inode, b"")
        else:
            await self._record_new(directory, inode)
        return inode

    async def _store_new(self, directory: Directory, inode: Inode, body: bytes) -> None:
        of = self._attributes
        inode.pins += 1
        try:
            async with self._subtree_lock.shared(inode), of.resting(inode):  # who finds it may change it
                used = of.properties(inode)
                inode.version = await self._store.put(self._inodes.key(inode), body, used, condition=Guard.ABSENT)
                of.created(inode, used)
        except OSError as error:
            self._unmake(directory, inode)
            if isinstance(error, StoreError) and error.cause is Cause.CONFLICT:
                raise refuse(errno.EEXIST) from error
            raise
        finally:
            inode.pins -= 1
        directory.reached_bucket(inode.name)
        directory.inode.touch()

    async def _record_new(self, directory: Directory, inode: Inode) -> None:
        try:
            async with self._subtree_lock.shared(inode):
                self._attributes.made(inode)
        except OSError:
            self._unmake(directory, inode)
            raise
        directory.inode.touch()

    def _unmake(self, directory: Directory, inode: Inode) -> None:
        directory.doubt()
        if inode.directory is not None and inode.directory.entries:
            inode.directory.doubt()
            return  # who has found it has made something in it: by that it is there
        directory.take(inode.name, when=0.0)
        inode.parent = None
        self._inodes.drop(inode)
