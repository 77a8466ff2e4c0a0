"""How a draft stands in the journal, so that it outlives this process: decided here and only here.

    no row --save--> as of `Draft.recorded` --touched--> open (its spool is being written) --save--> ...
                              `--landed, unlinked: forgotten

A small draft's bytes are in its row and change with it alone. A large one's are in the spool, which is written
in place: its row says so before the first byte changes, and is made anew before the spool is cut.

Concurrency: trio thread only.
"""

from __future__ import annotations

from .attributes import Attributes
from .content import Content
from .draft import Draft
from .inodes import Inode, Inodes
from .journal import Journal
from .saved import SavedDraft


class Records:
    """The rows of the drafts of a mount."""

    def __init__(self, inodes: Inodes, attributes: Attributes, journal: Journal) -> None:
        self._inodes = inodes
        self._attributes = attributes
        self._journal = journal

    async def save(self, inode: Inode, content: Content, draft: Draft) -> None:
        """The draft survives the loss of this machine's power afterwards. Raises OSError of the disk."""
        if draft.recorded != draft.serial or not content.row:
            content.writers += 1  # keeps a commit that lands meanwhile from freeing the spool
            try:
                serial, absorbed = draft.serial, draft.absorbed
                await draft.spool.sync()
                draft.sums = await draft.spool.sums(draft.size)
                if draft.absorbed != absorbed:
                    draft.sums = ()  # they may be of the spool as it was before, or after
            finally:
                content.writers -= 1
            draft.recorded = serial
        if draft.is_dirty and inode.parent is not None:
            self._write(inode, content, draft)
        await self._journal.sync()

    def _write(self, inode: Inode, content: Content, draft: Draft) -> None:
        base = draft.base
        saved = SavedDraft(
            key=self._inodes.key(inode),
            size=draft.size,
            base=(base.key, base.etag, base.size) if base is not None else None,
            base_stop=draft.base_stop,
            expected=draft.expected,
            version=inode.version,
            local=tuple(draft.local),
            dirty=draft.unsent,
            posix=inode.posix,
            properties=self._attributes.known(inode),
            spool=draft.spool.path.name if draft.spool.on_disk else "",
            sums=draft.sums if draft.recorded == draft.serial else (),
            going=(content.going[0], content.going[1] == draft.serial) if content.going is not None else None,
            body=draft.spool.body,
        )
        content.row = self._journal.save_draft(content.row, saved)

    def moved(self, inode: Inode) -> None:
        """A rename changed the key, or what the bucket must hold: the record follows."""
        content = inode.content
        if content is not None and content.row and content.draft is not None:
            self._write(inode, content, content.draft)

    def goes(self, content: Content, token: str) -> None:
        """A request is about to make the object with this token: should its answer get lost, the record tells of it."""
        if content.row:
            self._journal.draft_goes(content.row, token)

    def touched(self, inode: Inode) -> None:
        """A recorded draft is about to be written to."""
        content = inode.content
        draft = content.draft if content is not None else None
        if content is None or draft is None or not content.row or not draft.spool.on_disk:
            return
        if draft.recorded == draft.serial:
            self._journal.reopen_draft(content.row)
            draft.recorded = -1

    def cut(self, inode: Inode) -> None:
        """A recorded draft was truncated: bytes of the record are about to go, so it is made anew."""
        content = inode.content
        if content is not None and content.row and content.draft is not None and content.draft.spool.on_disk:
            self._write(inode, content, content.draft)

    def forget(self, content: Content) -> None:
        """The draft is in the bucket, or nobody wants it."""
        if content.row:
            self._journal.drop_draft(content.row)
            content.row = 0
