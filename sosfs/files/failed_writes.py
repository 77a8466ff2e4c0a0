"""Give up a file of which a write has failed: the bucket keeps what it had.

A program that is told ENOSPC knows that its file is not whole, and nobody else does: a half file in the bucket would
be taken for the file by every other program and host. So once the last writer has closed it, the draft is gone: a new
file was never there, and an existing one is what it was. Whoever writes again what was refused, or cuts it off, as
databases do, has a whole file again before that.

Concurrency: trio thread only.
"""

from __future__ import annotations

import logging

from sosfs.attributes.writeback import AttributeWriteback
from sosfs.files.commits import Commits
from sosfs.files.draft import Draft, DraftState
from sosfs.files.open_file import OpenFile, draft_of, opened
from sosfs.files.page_cache import PageCache
from sosfs.metadata.edits import NO_EDITS
from sosfs.tree.inodes import NO_VERSION, Inode, Inodes, held

log = logging.getLogger(__name__)


class FailedWrites:
    """Gives up drafts of which bytes are missing."""

    def __init__(self, inodes: Inodes, attributes: AttributeWriteback, commits: Commits, pages: PageCache) -> None:
        self._inodes = inodes
        self._attributes = attributes
        self._commits = commits
        self._pages = pages
        commits.given_up = self.discard

    async def discard(self, inode: Inode, *, at_end: bool = False) -> None:
        """Gives up what a file has that the bucket lacks, if bytes of it are missing.

        Unless somebody has it open to write, also since this began to wait, and may write them again; `at_end` nobody
        can.
        """
        open_file = opened(inode)
        if open_file is None or _given_up(open_file, at_end=at_end) is None:
            return
        async with open_file.lock:
            draft = _given_up(open_file, at_end=at_end)
            if draft is None:
                return
            log.info("%s is as it was before: a write to it failed", inode.name.decode(errors="replace"))
            self._commits.records.forget(open_file)
            parent = inode.parent
            if inode.parent is not None and draft.base is None:
                self._leave(inode, draft)
            elif inode.parent is not None and inode.version is not None:
                self._revert(inode, open_file)
            await self._commits.drop_upload(open_file)
            if open_file.draft is draft:
                await self._commits.let_go(inode, open_file)
            else:
                await self._commits.records.free(draft)
        if inode.parent is None and not held(inode):
            self._inodes.drop(inode)
        await self._pages.forget(inode)
        if parent is not None and inode.parent is None:
            await self._pages.forget_name(parent, inode.name)  # somebody may have looked it up since `hide`

    async def discard_all(self) -> None:
        """As `discard`, of all files: nobody can write to them any more."""
        for inode in list(self._commits.drafts):
            await self.discard(inode, at_end=True)

    async def hide(self, inode: Inode) -> None:
        """A file that is about to be given up is looked up anew by whoever wants it."""
        draft = draft_of(inode)
        if draft is not None and draft.refused and inode.parent is not None and draft.base is None:
            await self._pages.forget_name(inode.parent, inode.name)

    def _leave(self, inode: Inode, draft: Draft) -> None:
        """A file that the bucket has never had loses its name; who has it open to read keeps what is here.

        Over whose file it was renamed, gets the name back: the bucket has that one, with attributes of its own.
        """
        assert inode.parent is not None
        directory = inode.parent.directory
        if directory is not None:
            directory.take(inode.name, when=0.0)
            if inode.version is not None:
                directory.doubt()
        inode.parent.touch()
        self._attributes.discard(inode)
        inode.parent = None
        draft.state = DraftState.ORPHAN

    def _revert(self, inode: Inode, open_file: OpenFile) -> None:
        """A file that the bucket has is that again, but for attributes that the user has set."""
        assert inode.version is not None
        open_file.draft = None
        inode.pins -= 1
        self._commits.drafts.discard(inode)
        inode.size, inode.pages = inode.version.size, NO_VERSION
        if not open_file.times_given:
            inode.mtime_ns = inode.ctime_ns = self._attributes.time_of_stored(inode)
        if inode.edits != NO_EDITS:
            self._attributes.keep(inode)


def _given_up(open_file: OpenFile, *, at_end: bool) -> Draft | None:
    """The draft, if it is to be given up."""
    draft = open_file.draft
    if draft is None or not draft.refused or open_file.is_in_doubt:
        return None
    return draft if at_end or not open_file.writers else None
