"""Find the inodes of the journal's keys in a tree that nobody has listed yet.

Concurrency: trio thread only; runs before the kernel's first request.
"""

from __future__ import annotations

from sosfs.namespace.namespace import Namespace
from sosfs.tree.inodes import Inode
from sosfs.tree.keys import Form, name_of
from sosfs.tree.listing_merge import Merger


class KeyDirectories:
    """Finds what is there, and makes the directories that the bucket does not have."""

    def __init__(self, namespace: Namespace, merger: Merger) -> None:
        self._namespace = namespace
        self._merger = merger

    async def parent_of(self, key: str) -> tuple[Inode, str]:
        """The directory that a key is in, and its last segment; of a directory's key as well. Raises as `lookup`."""
        *folders, segment = key.removesuffix("/")[len(self._namespace.inodes.prefix) :].split("/")
        parent = self._namespace.inodes.root
        for folder in folders:
            parent = await self.folder(parent, folder)
        return parent, segment

    async def directory(self, key: str) -> Inode:
        """The directory of that key, which may be the root."""
        if key == self._namespace.inodes.prefix:
            return self._namespace.inodes.root
        return await self.folder(*await self.parent_of(key))

    async def folder(self, parent: Inode, segment: str) -> Inode:
        """The directory of that segment."""
        found = await self.find(parent, segment)
        if found is None or not found.is_directory:
            directory = self._namespace.directory(parent)
            if found is not None:
                found.form = Form.BESIDE
                directory.put(found)
            found = self._merger.new_directory(parent, segment)
            directory.put(found)
        return found

    async def find(self, parent: Inode, segment: str, form: Form = Form.PLAIN) -> Inode | None:
        """What has the name of that segment, None where nothing has."""
        try:
            return await self._namespace.lookup(parent, name_of(segment, form))
        except FileNotFoundError:
            return None

    async def file(self, parent: Inode, segment: str) -> Inode | None:
        """The file of that segment, also beside a directory of the same name."""
        found = await self.find(parent, segment)
        if found is not None and found.is_directory:
            found = await self.find(parent, segment, Form.BESIDE)
        return found
