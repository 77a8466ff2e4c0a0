"""What `stat` shows of an object whose metadata nobody has read yet.

A listing shows size and time; mode, owner, true time and even the type are in the metadata, for which each object
has to be asked. By default whoever asks waits for that, since a backup that saw other times would copy everything
anew. With `--attributes listed` the listing's guess is shown at once and the truth is asked for behind it. Opening a
file always waits: its type must not be a guess, nor may the kernel have let somebody in by one.

`rm -r` is spared the question in any case (`removal_streak`).

Concurrency: trio thread only.
"""

from __future__ import annotations

import errno

from sosfs.attributes.writeback import AttributeWriteback
from sosfs.config.parameters import Shown
from sosfs.fuse.removal_streak import RemovalStreak
from sosfs.namespace.namespace import refuse
from sosfs.tree.inodes import Inode, Known

HOLDS = 1.0  # seconds for which the kernel may keep a guess: `ls -l` then asks nothing after it has listed


class ProvisionalAttributes:
    """The choice of a mount (`--attributes`), and who removes without looking."""

    def __init__(self, attributes: AttributeWriteback, shown: Shown, *, ttl: float) -> None:
        self._attributes = attributes
        self._streak = RemovalStreak()
        self._unasked: Inode | None = None
        self.hold = min(HOLDS, ttl) if shown is Shown.LISTED else 0.0

    def is_going(self, task: int, parent: int, name: bytes) -> bool:
        """Whether `task` looks a name up to remove it, or removes it, as it has done with those before."""
        return self._streak.may_guess(task, parent, name)

    def shown_unasked(self, inode: Inode) -> Inode:
        """An inode is shown as it was known last, since its name is about to go. Returns it."""
        self._unasked = inode
        return inode

    async def confirmed(self, inode: Inode) -> None:
        """Before an inode is used that was shown unasked: its name does not go after all. Raises ESTALE as `asked`."""
        if inode is self._unasked:
            self._unasked = None
            if await self._attributes.revalidate(inode) is not inode:
                raise refuse(errno.ESTALE)

    async def looked_up(self, inode: Inode, task: int, parent: int, name: bytes) -> Inode:
        """The inode to show for a name that was looked up; another one where the truth is another type."""
        if inode.known is not Known.NAME or self.hold or self._streak.may_guess(task, parent, name):
            return inode
        return await self._attributes.revalidate(inode)

    async def asked(self, inode: Inode) -> None:
        """Before `stat` is answered. Raises ESTALE where the inode is of another type: its name is looked up again."""
        if self.hold and inode.known is not Known.ALL and inode.checked:  # 0: not even the listing's guess holds
            self.listed(inode)
        elif self._attributes.is_root(inode):
            await self._attributes.glance_at_root()
        elif await self._attributes.revalidate(inode) is not inode:
            raise refuse(errno.ESTALE)

    def listed(self, inode: Inode) -> None:
        """An entry was shown in a listing of its directory."""
        if self.hold and inode.known is not Known.ALL:
            self._attributes.attribute_prefetch.behind(inode)

    async def opened(self, inode: Inode) -> None:
        """Before a file is opened. Raises ESTALE where the kernel was told other things than are true."""
        self._attributes.attribute_prefetch.opened()
        await self.confirmed(inode)
        if inode.known is Known.ALL or not (self.hold or inode.known is Known.NAME):
            return
        told = inode.mode, inode.uid, inode.gid
        was_forgotten = inode.is_unread  # what the kernel was told was true then, as what it has cached
        if await self._attributes.revalidate(inode) is not inode:
            raise refuse(errno.ESTALE)
        if not was_forgotten and (inode.mode, inode.uid, inode.gid) != told:
            raise refuse(errno.ESTALE)

    def removed(self, task: int, parent: int, name: bytes) -> None:
        """`task` has removed a name."""
        self._streak.removed(task, parent, name)
        if self._unasked is not None and self._unasked.parent is None:
            self._unasked = None
        self._attributes.attribute_prefetch.removed()
