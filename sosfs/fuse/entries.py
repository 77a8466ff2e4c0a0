"""Attributes as the kernel gets them, and how long it may keep them.

A name may be kept until its listing is out of date; attributes as long, but not at all while only the
listing's guess is known, so that `stat` asks and `ls` does not.
"""

from __future__ import annotations

import errno

import pyfuse3
import trio

from sosfs.fuse.negative_entries import NegativeEntries
from sosfs.tree.inodes import Directory, Inode, Known

BLOCK_SIZE = 4096  # bytes
CAPACITY = 1 << 50  # bytes that statfs shows: a bucket has no size


def entry_of(inode: Inode, *, ttl: float, guess: float = 0.0) -> pyfuse3.EntryAttributes:
    """The attributes of an inode, with the seconds for which they hold; what is a guess holds for `guess` seconds."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = inode.number
    entry.generation = 0
    entry.st_mode = inode.mode
    entry.st_nlink = 1  # for a directory: "not counted", which keeps find(1) from guessing by it
    entry.st_uid, entry.st_gid, entry.st_rdev = inode.uid, inode.gid, inode.rdev
    entry.st_size = inode.size
    entry.st_blksize = BLOCK_SIZE
    entry.st_blocks = -(-inode.size // 512)
    entry.st_atime_ns, entry.st_mtime_ns, entry.st_ctime_ns = inode.atime_ns, inode.mtime_ns, inode.ctime_ns
    trusted = ttl if inode.pins or inode.is_directory else max(0.0, inode.checked + ttl - trio.current_time())
    entry.attr_timeout = trusted if inode.known is Known.ALL else guess
    # A name whose object may turn out to be a link must be looked up again by whoever wants to know.
    entry.entry_timeout = guess if inode.known is Known.NAME else trusted
    return entry


def absent_from(
    directory: Directory, name: bytes, negative_entries: NegativeEntries, *, ttl: float
) -> pyfuse3.EntryAttributes:
    """An answer that lets the kernel remember an absence as long as the listing that shows it is trusted.

    Raises FUSEError ENOENT, which the kernel does not remember, where no listing shows it.
    """
    if not directory.is_known(ttl) or directory.now is None or not negative_entries.add(directory.inode.number, name):
        raise pyfuse3.FUSEError(errno.ENOENT)
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = 0
    entry.entry_timeout = max(0.0, directory.now.started + ttl - trio.current_time())
    return entry


def room() -> pyfuse3.StatvfsData:
    """What statfs says of a mount."""
    data = pyfuse3.StatvfsData()
    data.f_bsize = data.f_frsize = BLOCK_SIZE
    data.f_blocks = data.f_bfree = data.f_bavail = CAPACITY // BLOCK_SIZE
    data.f_files = data.f_ffree = data.f_favail = 1 << 40
    data.f_namemax = 255
    return data


def set_by(fields: pyfuse3.SetattrFields) -> list[str]:
    """The fields of `user_metadata.Posix` that a request sets."""
    given = {
        "mode": fields.update_mode,
        "uid": fields.update_uid,
        "gid": fields.update_gid,
        "mtime_ns": fields.update_mtime,
    }
    return [name for name, is_given in given.items() if is_given]
