"""Pass each kernel request on to the bucket that its inode number names.

The number of the inode or handle says it (`member.index_of`). A request for something in a bucket that nobody
has entered yet enters it first; a look at a bucket from outside (`ls -l` in the root) does not. Index 0 is the root
and the control tree of the mount. Each bucket has a control tree of its own in its top directory.

Concurrency: as `operations`.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Sequence
from typing import Any

import pyfuse3

from sosfs.buckets.member import Member, index_of
from sosfs.buckets.registry import BucketRegistry
from sosfs.buckets.root_directory import RootOperations
from sosfs.control import nodes
from sosfs.fuse.control_tree import ControlOperations
from sosfs.fuse.entries import room
from sosfs.fuse.error_replies import answered, guard_of
from sosfs.fuse.operations import Operations
from sosfs.fuse.requests import Opened
from sosfs.fuse.routing import BY_NUMBER, in_tree
from sosfs.fuse.xattrs import USER
from sosfs.tree.inodes import ROOT

HANDLERS = (*(name for name in BY_NUMBER if name != "getattr"), "setxattr", "removexattr")


class BucketRouting(pyfuse3.Operations):
    """All requests of a mount of all buckets."""

    supports_dot_lookup = Operations.supports_dot_lookup
    enable_writeback_cache = Operations.enable_writeback_cache

    def __init__(self, buckets: BucketRegistry, top: RootOperations, tree: ControlOperations) -> None:
        super().__init__()
        self._buckets = buckets
        self._top = top
        self._tree = tree
        for name in HANDLERS:
            setattr(self, name, self._routed(name))

    def _routed(self, name: str) -> Any:
        top, tree = getattr(self._top, name), getattr(self._tree, name)

        async def handler(number: int, *rest: Any) -> Any:
            if index_of(number):
                return await self._pass(name, number, *rest)
            return await (tree if in_tree(number, rest, ROOT) else top)(number, *rest)

        return guard_of(name)(handler)

    async def _pass(self, name: str, number: int, *rest: Any) -> Any:
        """Lets the bucket that a number belongs to answer, entering it first if need be."""
        member = self._buckets.at(number)
        served = member.served or await self._buckets.entered(member)
        with member.answering():
            return await getattr(served.operations, name)(number, *rest)

    def path(self, number: int) -> str:
        """Where a user finds an inode; "" for one whose bucket nobody has entered."""
        if not index_of(number):
            root = os.fspath(self._buckets.settings.mountpoint)
            return f"{root}/{nodes.NAME.decode()}" if number >= nodes.FIRST else root
        member = self._member(number)
        return member.served.operations.path(number) if member is not None and member.served is not None else ""

    def opened(self, handle: int) -> Opened:
        """What a handle has open."""
        member = self._member(handle) if index_of(handle) else None
        if member is not None and member.served is not None:
            return member.served.operations.opened(handle)
        return Opened(self.path(handle), 0)

    @answered
    async def lookup(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        if index_of(parent_inode):
            return await self._pass("lookup", parent_inode, name, ctx)  # type: ignore[no-any-return]
        if parent_inode >= nodes.FIRST:
            return await self._tree.lookup(parent_inode, name, ctx)
        if name == nodes.NAME:
            return self._tree.root()
        return await self._top.lookup(parent_inode, name, ctx)

    @answered
    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        if index_of(inode):
            member = self._buckets.at(inode)
            if inode == member.root and member.served is None:
                return self._top.entry_of(member)
            return await self._pass("getattr", inode, ctx)  # type: ignore[no-any-return]
        return await (self._tree if inode >= nodes.FIRST else self._top).getattr(inode, ctx)

    @answered
    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        if not name.startswith(USER):
            raise pyfuse3.FUSEError(errno.EOPNOTSUPP)
        if index_of(inode):
            return await self._pass("getxattr", inode, name, ctx)  # type: ignore[no-any-return]
        return await (self._tree if inode >= nodes.FIRST else self._top).getxattr(inode, name, ctx)

    @answered
    async def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> Sequence[bytes]:
        return await self._pass("listxattr", inode, ctx) if index_of(inode) else ()

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
        old, new = index_of(parent_inode_old), index_of(parent_inode_new)
        if old != new:
            raise OSError(errno.EXDEV, "from one bucket to another: mv then copies")
        if not old:
            await self._top.refused()
        await self._pass("rename", parent_inode_old, name_old, parent_inode_new, name_new, flags, ctx)

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        with contextlib.suppress(pyfuse3.FUSEError):  # logged already; the one request whose error would end the mount
            await self._forget(inode_list)

    @answered
    async def _forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        parted: dict[int, list[tuple[int, int]]] = {}
        for number, count in inode_list:
            parted.setdefault(index_of(number), []).append((number, count))
        await self._tree.forget([item for item in parted.pop(0, []) if item[0] >= nodes.FIRST])
        for items in parted.values():
            member = self._member(items[0][0])
            if member is not None and member.served is not None:
                # A bucket's top stays as long as the bucket, and is not counted.
                await member.served.operations.forget([item for item in items if item[0] != member.root])

    def _member(self, number: int) -> Member | None:
        with contextlib.suppress(OSError):  # it was removed, and its inodes with it
            return self._buckets.at(number)
        return None

    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        return room()
