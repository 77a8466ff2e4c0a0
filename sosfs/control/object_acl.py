"""Read and replace the ACL of an object.

The object must be in the bucket, so a changed file is committed first; no commit, attribute write or rename of
it runs meanwhile, since each of them carries the ACL it has read before. An ACL is read before one is sent:
a server that knows no ACLs would take the request for a PUT of the object, and it would be lost.

Concurrency: trio thread only.
"""

from __future__ import annotations

import errno
from dataclasses import replace

from sosfs.attributes.writeback import AttributeWriteback
from sosfs.control import acl_text
from sosfs.files.commits import Commits
from sosfs.s3.protocol import Acl, ObjectStore
from sosfs.tree.inodes import Inode, Inodes
from sosfs.tree.subtree_lock import SubtreeLock


class ObjectAcls:
    """The ACLs of the objects of a mount."""

    def __init__(
        self,
        inodes: Inodes,
        store: ObjectStore,
        attributes: AttributeWriteback,
        commits: Commits,
        subtree_lock: SubtreeLock,
    ) -> None:
        self._inodes = inodes
        self._store = store
        self._attributes = attributes
        self._commits = commits
        self._subtree_lock = subtree_lock

    async def read(self, inode: Inode) -> Acl:
        """The object's ACL. Raises ENODATA where there is no object: a directory without marker, a bucket's root."""
        await self._bring(inode)
        async with self._subtree_lock.shared(inode):
            return await self._store.get_acl(self._inodes.key(inode))

    async def write(self, inode: Inode, text: str) -> None:
        """Makes the ACL what `text` says; nothing is sent where it is that already.

        Raises `acl_text.BadText`, before anything is sent; ENODATA as `read`; what the server answers.
        """
        await self._bring(inode)
        async with self._subtree_lock.exclusive(inode):
            key = self._inodes.key(inode)
            now = await self._store.get_acl(key)
            wanted = acl_text.parse(text, owner=now.owner)
            if isinstance(wanted, Acl) and acl_text.same(wanted, now):
                return
            if inode.version is not None:  # Ceph's Last-Modified is that of the ACL, and no answer shows it
                inode.version = replace(inode.version, modified=None)
            inode.acl_private_until = 0.0  # also where no answer tells whether it was set
            await self._store.put_acl(key, wanted)
            self._attributes.acls.was_set()

    async def _bring(self, inode: Inode) -> None:
        await self._commits.bring(inode)
        if inode.version is None or inode.parent is None:
            raise OSError(errno.ENODATA, "there is no object that could have an ACL")
