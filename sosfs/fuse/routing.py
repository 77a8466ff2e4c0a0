"""Pass each kernel request on to the files or to `.sosfs`.

Numbers of nodes and of open handles say it: the control tree's begin at `nodes.FIRST`. Its root is the name `.sosfs`
in the root of the mount, which no listing shows; what the bucket has there of that name is shown under another one
(`keys.meant_in_root`). Extended attributes of real files come in here too, so that the one that the kernel asks for
with each write (`security.capability`) is answered at once.

Concurrency: as `operations`.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Sequence
from typing import Any

import pyfuse3

from sosfs.control import nodes
from sosfs.fuse.control_tree import ControlOperations
from sosfs.fuse.error_replies import answered, guard_of
from sosfs.fuse.operations import Operations
from sosfs.fuse.past_operations import ReadOnlyTrees
from sosfs.fuse.requests import Opened
from sosfs.fuse.xattrs import USER, Xattrs
from sosfs.tree import keys
from sosfs.tree.inodes import Inodes

# Handlers whose first argument is a number that says whose the request is.
BY_NUMBER = (
    *("getattr", "setattr", "readlink", "mknod", "mkdir", "symlink", "link", "unlink", "rmdir"),
    *("opendir", "readdir", "releasedir", "fsyncdir"),
    *("open", "create", "read", "write", "flush", "fsync", "release"),
)


class Routing(pyfuse3.Operations):
    """All requests of a mount."""

    supports_dot_lookup = Operations.supports_dot_lookup
    enable_writeback_cache = Operations.enable_writeback_cache

    def __init__(
        self, files: Operations, tree: ControlOperations, inodes: Inodes, xattrs: Xattrs, past: ReadOnlyTrees
    ) -> None:
        super().__init__()
        self._files = files
        self._tree = tree
        self._inodes = inodes
        self._root = inodes.root.number
        self._xattrs = xattrs
        self._past = past
        for name in BY_NUMBER:
            inner = guard_of(name)(_by_number(past, name, getattr(tree, name)))
            setattr(self, name, _routed(getattr(files, name), inner, self._root))

    def path(self, number: int) -> str:
        """Where a user finds an inode; all that is below `.sosfs` is there."""
        return f"{self._files.path(self._root)}/{keys.CONTROL}" if number >= nodes.FIRST else self._files.path(number)

    def opened(self, handle: int) -> Opened:
        """What a handle has open."""
        return Opened(self.path(handle), 0) if handle >= nodes.FIRST else self._files.opened(handle)

    @property
    def packed_names(self) -> int:
        """As `Operations.packed_names`."""
        return self._files.packed_names

    @answered
    async def lookup(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        if parent_inode == self._root and name == nodes.NAME:
            return self._tree.root()
        if parent_inode >= nodes.FIRST:
            return await (self._past.at(parent_inode) or self._tree).lookup(parent_inode, name, ctx)
        return await self._files.lookup(parent_inode, self._meant(parent_inode, name), ctx)

    def _meant(self, parent: int, name: bytes) -> bytes:
        return keys.meant_in_root(name) if parent == self._root else name

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
        for number in (parent_inode_old, parent_inode_new):
            if number >= nodes.FIRST:
                await (self._past.at(number) or self._tree).refused()
        if nodes.NAME in self._in_root((parent_inode_old, name_old), (parent_inode_new, name_new)):
            await self._tree.refused()
        name_old, name_new = self._meant(parent_inode_old, name_old), self._meant(parent_inode_new, name_new)
        await self._files.rename(parent_inode_old, name_old, parent_inode_new, name_new, flags, ctx)

    def _in_root(self, *places: tuple[int, bytes]) -> list[bytes]:
        return [name for parent, name in places if parent == self._root]

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        with contextlib.suppress(pyfuse3.FUSEError):  # logged already; the one request whose error would end the mount
            await self._files.forget([item for item in inode_list if item[0] < nodes.FIRST])
            await self._forget([item for item in inode_list if item[0] >= nodes.FIRST])

    @answered
    async def _forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for number, count in inode_list:
            with contextlib.suppress(OSError):  # its moment was pushed out, and its inodes with it
                await (self._past.at(number) or self._tree).forget([(number, count)])

    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        return await self._files.statfs(ctx)

    # Extended attributes

    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        if not name.startswith(USER):
            # Asked before each write, for the capabilities that writing takes away, and by `ls -l` for each file,
            # until it is told that there are none of the kind.
            raise pyfuse3.FUSEError(errno.EOPNOTSUPP)
        return await self._getxattr(inode, name, ctx.uid)

    @answered
    async def _getxattr(self, inode: int, name: bytes, uid: int) -> bytes:
        if inode >= nodes.FIRST:
            if past := self._past.at(inode):
                return await past.getxattr(inode, name, uid)
            raise OSError(errno.EOPNOTSUPP, "the control tree has no attributes")
        return await self._xattrs.get(self._inodes[inode], name, uid=uid)

    @answered
    async def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> Sequence[bytes]:
        if inode >= nodes.FIRST:
            past = self._past.at(inode)
            return await past.listxattr(inode) if past else []
        return await self._xattrs.names(self._inodes[inode])

    @answered
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: pyfuse3.RequestContext) -> None:
        await self._xattrs.set(self._inodes[_settable(inode, name)], name, value, uid=ctx.uid)

    @answered
    async def removexattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        await self._xattrs.remove(self._inodes[_settable(inode, name)], name, uid=ctx.uid)


def _settable(inode: int, name: bytes) -> int:
    if inode >= nodes.FIRST or not name.startswith(USER):
        raise pyfuse3.FUSEError(errno.EOPNOTSUPP)  # no line in the log: `cp -a` tries it with each file
    return inode


def in_tree(number: int, rest: tuple[Any, ...], root: int) -> bool:
    """Whether a request for an inode or handle, with these arguments, is for the control tree below `root`."""
    return number >= nodes.FIRST or (number == root and rest[:1] == (nodes.NAME,))


def _by_number(past: ReadOnlyTrees, name: str, tree: Any) -> Any:
    """The handler of this name of the tree as it was that a number belongs to, else the control tree's."""

    async def handler(number: int, *rest: Any) -> Any:
        shown = past.at(number)
        return await (getattr(shown, name) if shown else tree)(number, *rest)

    handler.__name__ = name
    return handler


def _routed(files: Any, tree: Any, root: int) -> Any:
    async def handler(number: int, *rest: Any) -> Any:
        if in_tree(number, rest, root):
            return await tree(number, *rest)
        if number == root and rest and isinstance(rest[0], bytes):
            rest = (keys.meant_in_root(rest[0]), *rest[1:])
        return await files(number, *rest)

    return handler
