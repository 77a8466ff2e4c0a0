"""Go on with changes that the server has refused to an earlier mount.

`replay.Replay` writes what it can before the mount begins, and leaves in the journal what was refused, and what a
request of the dead process may undo yet. It is back in the tree then, as it was in the earlier mount: attributes as
they were set, names removed, all of it pending and tried again.

Concurrency: trio thread only; runs before the kernel's first request.
"""

from __future__ import annotations

import errno
import logging
from dataclasses import replace

from sosfs.attributes.writeback import AttributeWriteback
from sosfs.journal.journal import Journal
from sosfs.journal.rows import SavedAttributes
from sosfs.namespace.deletions import Deletions, Outcome
from sosfs.namespace.namespace import Namespace
from sosfs.recovery.directories import KeyDirectories
from sosfs.tree.inodes import PENDING, Inode
from sosfs.tree.keys import Form, name_of

log = logging.getLogger(__name__)


class RefusedChanges:
    """Takes up deletes and attribute changes that are left in the journal."""

    def __init__(
        self,
        journal: Journal,
        namespace: Namespace,
        places: KeyDirectories,
        attributes: AttributeWriteback,
        deletions: Deletions,
    ) -> None:
        self._journal = journal
        self._namespace = namespace
        self._places = places
        self._attributes = attributes
        self._deletions = deletions

    async def run(self) -> None:
        """Takes up all there is. Raises what a listing answers; the journal keeps the rest then."""
        for row, saved in self._journal.attributes():
            await self._take_up(row, saved)
        gone = self._journal.deletes()
        keys = {key for key, _ in gone}
        refused = OSError(errno.EACCES, "refused when the mount began")
        for key, version in gone:
            outcome = await self._hide(key, keys)
            if outcome is None:
                self._journal.drop_delete(key)
            else:
                self._deletions.take_up(key, version, outcome, refused)

    async def _take_up(self, row: int, saved: SavedAttributes) -> None:
        inode: Inode | None
        if saved.key.endswith("/"):
            inode = await self._places.directory(saved.key)
        else:
            inode = await self._places.file(*await self._places.parent_of(saved.key))
        if inode is None:
            log.error("what was changed of the attributes of %s is lost: another client has removed it", saved.key)
            self._journal.drop_attributes(row)
            return
        listed = inode.version
        if listed is not None and (saved.version is None or listed.etag in saved.tokens):
            saved = replace(saved.uploaded(), version=listed)
        self._attributes.take_up(inode, row, saved)

    async def _hide(self, key: str, keys: set[str]) -> Outcome | None:
        """Takes the name out of the tree; returns what lets a listing show it again.

        None for a file that has unsent bytes: had its program been told that it is gone, they would be so too.
        """
        above = key.removesuffix("/")
        while "/" in above:
            above = above.rpartition("/")[0]
            if f"{above}/" in keys:
                return lambda: None  # a directory that it is in is hidden
        parent, segment = await self._places.parent_of(key)
        found = await self._places.find(parent, segment)
        form = Form.PLAIN
        if not key.endswith("/") and found is not None and found.is_directory:
            form = Form.BESIDE
            found = await self._places.find(parent, segment, form)
        if found is not None and found.pins:
            return None
        directory, name = self._namespace.directory(parent), name_of(segment, form)
        directory.take(name, when=PENDING)
        if found is not None:
            found.parent = None
            self._namespace.inodes.drop(found)
        return lambda: directory.reached_bucket(name)
