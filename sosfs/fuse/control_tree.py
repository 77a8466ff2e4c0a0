"""Answer the kernel's requests for `.sosfs`.

An open text is read whole, changed in memory and applied as a whole when it is closed. A flush applies what
was written since the last one, and has the error. A shell flushes what it has opened before it writes anything, so
a text that was only emptied (`: > cors`) is applied when the file is released, and its error is only in
`.sosfs/errors`. Texts are read past the kernel's cache (`direct_io`): their size is known only when they are read.

Concurrency: handlers are trio tasks; one at a time works on a text (a lock for each).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from typing import NoReturn
from weakref import WeakKeyDictionary

import pyfuse3

from sosfs.concurrency.locks import FairLock
from sosfs.control.nodes import Audience, BytesFile, Folder, Node, TextFile, Tree
from sosfs.control.past import Doorway

LASTING = 1e6  # seconds for which the kernel may keep a name that never goes
TEXT_MAX = 1 << 20  # bytes; a bucket policy has at most 20 kB


class Text:
    """One open text."""

    def __init__(self, file: TextFile, loaded: bytes, flags: int) -> None:
        self.file = file
        self.applied = loaded
        self.buffer = bytearray(b"" if flags & os.O_TRUNC else loaded)
        self.appends = bool(flags & os.O_APPEND)
        self.is_written = False  # since the last flush
        self.is_emptied = bool(flags & os.O_TRUNC)
        self.is_spoilt = False  # part of it was refused: the rest must not be taken for the whole

    def write(self, offset: int, data: bytes) -> None:
        """Puts `data` at `offset`. Raises EFBIG; EINVAL for a hole, and for lines that are wrong already."""
        at = len(self.buffer) if self.appends else offset
        if at + len(data) > TEXT_MAX:
            raise OSError(errno.EFBIG, "a settings text has at most 1 MiB")
        if at > len(self.buffer):
            raise OSError(errno.EINVAL, "a text has no holes")
        self.buffer[at : at + len(data)] = data
        self.is_written, self.is_emptied = True, False
        if self.buffer.endswith(b"\n"):
            self.is_spoilt = True
            self.file.check(bytes(self.buffer))
            self.is_spoilt = False

    def truncate(self, size: int) -> None:
        """Cuts it to `size` bytes."""
        del self.buffer[size:]
        self.is_written, self.is_spoilt = True, False

    async def apply(self) -> None:
        """Applies the text if it is another one. Raises what refuses it."""
        self.is_written = self.is_emptied = False
        if self.is_spoilt:
            raise OSError(errno.EINVAL, "part of the text was refused")
        if bytes(self.buffer) == self.applied:
            return
        text = bytes(self.buffer)
        await self.file.write(text)
        self.applied = text
        self.file.size = len(self.applied)


class ControlOperations:
    """What the kernel asks of the control tree. Raises OSError; `routing` makes errnos of it."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self._uid, self._gid = os.geteuid(), os.getegid()  # whoever mounted, whose key it works with: never `--uid`
        self._opened: dict[int, Text | BytesFile | list[tuple[bytes, Node]]] = {}
        self._locks: WeakKeyDictionary[Node, FairLock] = WeakKeyDictionary()
        self._next = tree.root.number  # of handles: in the range of the nodes' numbers, for the same reason

    # Attributes and names

    def _entry(self, node: Node) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = node.number
        entry.st_mode = node.permissions | (stat.S_IFDIR if isinstance(node, Folder) else stat.S_IFREG)
        entry.st_size = node.size if isinstance(node, TextFile | BytesFile) else 0
        entry.st_nlink = 1
        entry.st_uid, entry.st_gid = self._uid, self._gid
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = node.time_ns
        entry.st_blksize, entry.st_blocks = 4096, -(-entry.st_size // 512)
        entry.attr_timeout = 0
        # What is always there needs no lookup, which would wait while another one in the mount's root hangs.
        entry.entry_timeout = LASTING if node.is_lasting else 0
        return entry

    def root(self) -> pyfuse3.EntryAttributes:
        """The tree's root, looked up."""
        return self._entry(self.tree.take(self.tree.root))

    async def lookup(self, parent: int, name: bytes, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return self._entry(self._held(await self._folder(parent).child(name)))

    def _held(self, found: Node) -> Node:
        """The node that the kernel is told of; what lies behind a door counts its own lookups."""
        return found if isinstance(found, Doorway) else self.tree.take(found)

    def _folder(self, number: int) -> Folder:
        node = self.tree[number]
        if not isinstance(node, Folder):
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return node

    async def getattr(self, number: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return self._entry(self.tree[number])

    async def setattr(
        self,
        number: int,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        """Sets the size alone; times may be given and are not kept; owner and mode are fixed."""
        node = self.tree[number]
        if fields.update_mode or fields.update_uid or fields.update_gid:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        if fields.update_size:
            if not isinstance(node, TextFile) or not _is_writable(node):
                raise OSError(errno.EACCES, os.strerror(errno.EACCES))
            opened = self._opened.get(fh) if fh is not None else None
            if isinstance(opened, Text):
                opened.truncate(attr.st_size)
            else:
                async with self._lock(node):
                    text = Text(node, (await node.read()).encode(), 0)
                    text.truncate(attr.st_size)
                    await text.apply()
        return self._entry(node)

    async def refused(self, *_: object) -> NoReturn:
        """What would make, remove or rename something here."""
        raise OSError(errno.EPERM, "the control tree is as it is")

    mknod = mkdir = symlink = link = unlink = rmdir = rename = create = readlink = refused

    async def unsupported(self, *_: object) -> NoReturn:
        """Extended attributes, which nothing here has."""
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    getxattr = setxattr = listxattr = removexattr = unsupported

    # Directories

    def _handle(self, opened: Text | BytesFile | list[tuple[bytes, Node]]) -> int:
        self._next += 1
        self._opened[self._next] = opened
        return self._next

    async def opendir(self, number: int, ctx: pyfuse3.RequestContext) -> int:
        return self._handle(sorted((await self._folder(number).children()).items()))

    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        listed = self._opened[fh]
        assert isinstance(listed, list)
        for at in range(start_id, len(listed)):
            name, found = listed[at]
            node = self._held(found)
            if not pyfuse3.readdir_reply(token, name, self._entry(node), at + 1):
                self.tree.forget(node.number, 1)
                return

    async def releasedir(self, fh: int) -> None:
        del self._opened[fh]

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        return

    # Files

    async def open(self, number: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        node = self.tree[number]
        writes = flags & os.O_ACCMODE != os.O_RDONLY
        if isinstance(node, BytesFile) and not writes:
            return pyfuse3.FileInfo(fh=self._handle(node), keep_cache=True)
        if not isinstance(node, TextFile) or (writes and not _is_writable(node)):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        async with self._lock(node):
            loaded = (await node.shown_to(self._audience(ctx))).encode()
        node.size = len(loaded)
        return pyfuse3.FileInfo(fh=self._handle(Text(node, loaded, flags if writes else 0)), direct_io=True)

    def _audience(self, ctx: pyfuse3.RequestContext) -> Audience:
        return Audience.OWNER if ctx.uid in (0, self._uid) else Audience.OTHERS

    def _lock(self, node: Node) -> FairLock:
        return self._locks.setdefault(node, FairLock())

    def _text(self, fh: int) -> Text:
        opened = self._opened[fh]
        if not isinstance(opened, Text):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return opened

    async def read(self, fh: int, off: int, size: int) -> bytes | memoryview:
        opened = self._opened[fh]
        if isinstance(opened, BytesFile):
            return await opened.read(off, off + size)
        return bytes(self._text(fh).buffer[off : off + size])

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        self._text(fh).write(off, buf)
        return len(buf)

    async def flush(self, fh: int) -> None:
        opened = self._opened[fh]
        if isinstance(opened, Text) and opened.is_written:
            async with self._lock(opened.file):
                await opened.apply()

    async def fsync(self, fh: int, datasync: bool) -> None:
        await self.flush(fh)

    async def release(self, fh: int) -> None:
        opened = self._opened.pop(fh)
        if not isinstance(opened, Text):
            return
        async with self._lock(opened.file):
            if opened.is_emptied:
                await opened.apply()

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for number, count in inode_list:
            self.tree.forget(number, count)


def _is_writable(node: Node) -> bool:
    return bool(node.permissions & stat.S_IWUSR)
