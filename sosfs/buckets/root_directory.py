"""The root of a mount of all buckets: list, make and remove buckets as directories.

Its entries are the buckets: mkdir makes one and rmdir removes an empty one. Nothing else can be in it, so whatever
would make a file there or rename a bucket, which S3 cannot, is EPERM.

Concurrency: handlers are trio tasks.
"""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Sequence
from typing import NoReturn

import pyfuse3

from sosfs.buckets.member import Member
from sosfs.buckets.registry import BucketRegistry
from sosfs.control.rejected_texts import Rejections
from sosfs.errors import StoreError
from sosfs.fuse.entries import BLOCK_SIZE
from sosfs.metadata.user_metadata import NS
from sosfs.s3 import account
from sosfs.tree.inodes import ROOT, Defaults

TAKEN = "the name is taken; bucket names are unique across all accounts"
REASONS = {
    "BucketAlreadyExists": TAKEN,
    "BucketAlreadyOwnedByYou": "this account has it already",
    "BucketNotEmpty": "it is not empty (old versions and unfinished uploads count as well)",
}


class RootOperations:
    """What the kernel asks of the root. Raises OSError; `routing` makes errnos of it."""

    def __init__(self, buckets: BucketRegistry, defaults: Defaults, rejections: Rejections, *, ttl: float) -> None:
        self._buckets = buckets
        self._defaults = defaults
        self._rejections = rejections
        self._ttl = ttl
        self._handles = itertools.count(1)
        self._listings: dict[int, list[Member]] = {}

    # Attributes

    def _entry(self, number: int, time_ns: int, *, seconds: float) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = number
        entry.st_mode = self._defaults.directory_mode
        entry.st_nlink = 1
        entry.st_uid, entry.st_gid = self._defaults.uid, self._defaults.gid
        entry.st_size = entry.st_blocks = 0
        entry.st_blksize = BLOCK_SIZE
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = time_ns
        entry.entry_timeout = entry.attr_timeout = seconds
        return entry

    def entry_of(self, member: Member) -> pyfuse3.EntryAttributes:
        """The attributes of a bucket's top directory, as the listing of the buckets tells them."""
        created = int(member.bucket.created * NS) or self._defaults.time_ns
        entry = self._entry(member.root, created, seconds=self._buckets.bucket_list.fresh_for)
        if member.served is not None:
            top = member.served.parts.inodes.root
            entry.st_mode, entry.st_uid, entry.st_gid = top.mode, top.uid, top.gid
            entry.st_mtime_ns, entry.st_ctime_ns, entry.st_atime_ns = top.mtime_ns, top.ctime_ns, top.atime_ns
        return entry

    async def getattr(self, number: int, ctx: pyfuse3.RequestContext | None = None) -> pyfuse3.EntryAttributes:
        return self._entry(ROOT, self._defaults.time_ns, seconds=self._ttl)

    # Names

    async def lookup(self, parent: int, name: bytes, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        if name in (b".", b".."):
            return await self.getattr(ROOT)
        try:
            return self.entry_of(await self._buckets.find(_text(name)))
        except FileNotFoundError:
            return self._entry(0, 0, seconds=self._buckets.bucket_list.fresh_for)  # an absence that the kernel may keep

    async def mkdir(self, parent: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        """Makes a bucket. The reason why not is in the log and in `.sosfs/errors`."""
        try:
            text = _text(name)
            if not account.is_name(text):
                raise OSError(errno.EINVAL, "a bucket's name has 3 to 64 of a-z, 0-9, - and ., and no - or . at an end")
            return self.entry_of(await self._buckets.make(text))
        except OSError as error:
            self._refused(name, error, "was not made")
            raise

    async def rmdir(self, parent: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        try:
            await self._buckets.remove(await self._buckets.find(_text(name)))
        except OSError as error:
            self._refused(name, error, "was not removed")
            raise

    def _refused(self, name: bytes, error: OSError, outcome: str) -> None:
        code = error.code if isinstance(error, StoreError) else ""
        told = OSError(error.errno, REASONS.get(code) or error.strerror)
        self._rejections.add(f"bucket {name.decode(errors='replace')}", told, outcome=outcome)

    async def refused(self, *_: object) -> NoReturn:
        """What would make a file here, or rename a bucket."""
        raise OSError(errno.EPERM, "only buckets can be here: mkdir makes one, rmdir removes an empty one")

    setattr = readlink = mknod = symlink = link = unlink = create = open = refused
    read = write = flush = fsync = release = refused

    # The directory

    async def opendir(self, number: int, ctx: pyfuse3.RequestContext) -> int:
        listed = await self._buckets.bucket_list.look()
        handle = next(self._handles)
        self._listings[handle] = [self._buckets.known(bucket) for _, bucket in sorted(listed.items())]
        return handle

    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        rows: list[tuple[bytes, Member | None]] = [(b".", None), (b"..", None)]
        rows += [(member.name.encode(), member) for member in self._listings[fh]]
        for at, (name, member) in enumerate(rows[start_id:], start_id + 1):
            if member is not None and member.is_gone:
                continue
            entry = await self.getattr(ROOT) if member is None else self.entry_of(member)
            if not pyfuse3.readdir_reply(token, name, entry, at):
                return

    async def releasedir(self, fh: int) -> None:
        del self._listings[fh]

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        """Everything in all buckets is stored afterwards."""
        await self._buckets.store_all()

    # Extended attributes: it has none

    async def getxattr(self, number: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))

    async def listxattr(self, number: int, ctx: pyfuse3.RequestContext) -> Sequence[bytes]:
        return ()

    async def setxattr(self, *_: object) -> NoReturn:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    removexattr = setxattr


def _text(name: bytes) -> str:
    return name.decode(errors="replace")
