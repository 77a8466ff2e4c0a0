"""The kernel's requests for a tree that nothing changes: those that would are EROFS, the others go to `Operations`.

Concurrency: as `operations`.
"""

from __future__ import annotations

import errno
import os
from typing import Any, NoReturn, Protocol

import pyfuse3

from sosfs.fuse.operations import Operations
from sosfs.fuse.xattrs import LINK, SOS, Xattrs
from sosfs.tree.inodes import Inodes

OF_NOW = frozenset({LINK, SOS + b"url"})  # attributes that would lead to what is there now


class ReadOnlyOperations:
    """What the kernel asks of such a tree."""

    def __init__(self, files: Operations, inodes: Inodes, xattrs: Xattrs) -> None:
        self._files = files
        self._inodes = inodes
        self._xattrs = xattrs
        self.lookup, self.getattr, self.forget = files.lookup, files.getattr, files.forget
        self.readlink, self.opendir, self.readdir = files.readlink, files.opendir, files.readdir
        self.releasedir, self.read, self.flush, self.release = files.releasedir, files.read, files.flush, files.release

    async def open(self, number: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
            await self.refused()
        return await self._files.open(number, flags, ctx)

    async def fsync(self, fh: int, datasync: bool) -> None:
        return

    fsyncdir = fsync

    async def refused(self, *_: Any) -> NoReturn:
        """What would change it."""
        raise pyfuse3.FUSEError(errno.EROFS)

    mknod = mkdir = symlink = link = unlink = rmdir = rename = create = setattr = write = refused

    async def getxattr(self, number: int, name: bytes, uid: int) -> bytes:
        if name in OF_NOW:
            raise OSError(errno.ENODATA, "there is no link to what was")
        return await self._xattrs.get(self._inodes[number], name, uid=uid)

    async def listxattr(self, number: int) -> list[bytes]:
        return await self._xattrs.names(self._inodes[number])


class ReadOnlyTrees(Protocol):
    """Trees of which each has numbers of its own: `filesystem.past.Past`."""

    def at(self, number: int) -> ReadOnlyOperations | None:
        """The tree that a number of an inode or handle belongs to; None for one of none. ESTALE where it is gone."""
