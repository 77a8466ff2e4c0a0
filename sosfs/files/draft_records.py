"""Keep the drafts' rows in the journal true.

    no row --save--> as of `Draft.recorded` --touched--> open (its spool is being written) --save--> ...
                              `--landed, unlinked: forgotten

A small draft's bytes are in its row and change with it alone. A large one's are in the spool, which is written
in place: its row says so before the first byte changes, tells of no bytes that were not synced (a power loss would
leave zeros for them), and forgets those that are cut before they go. The disk may have a cut or a removal long before
it has the log: so a spool that a row has named loses nothing until the row's change is synced.

Concurrency: trio thread only.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial

from sosfs.attributes.writeback import AttributeWriteback
from sosfs.errors import FULL
from sosfs.files.draft import Draft
from sosfs.files.extents import Extents
from sosfs.files.open_file import OpenFile, draft_of, opened
from sosfs.journal.journal import Journal
from sosfs.journal.rows import Ranges, SavedDraft
from sosfs.tree.inodes import Inode, Inodes

log = logging.getLogger(__name__)


class DraftRecords:
    """The rows of the drafts of a mount."""

    def __init__(self, inodes: Inodes, attributes: AttributeWriteback, journal: Journal) -> None:
        self._inodes = inodes
        self._attributes = attributes
        self._journal = journal
        attributes.carried_later = self.changed

    async def save(self, inode: Inode, open_file: OpenFile, draft: Draft) -> None:
        """The draft survives the loss of this machine's power afterwards. Raises OSError of the disk."""
        size, synced = draft.size, tuple(draft.local)
        if draft.recorded != draft.serial or not open_file.row:
            open_file.writers += 1  # keeps a commit that lands meanwhile from freeing the spool
            try:
                serial, absorbed = draft.serial, draft.absorbed
                with draft.spool.held():
                    await draft.spool.sync()
                    draft.sums = await draft.spool.sums(draft.size)
                if draft.absorbed != absorbed:
                    draft.sums = ()  # they may be of the spool as it was before, or after
            finally:
                open_file.writers -= 1
            draft.recorded = serial
        if draft.is_dirty and inode.parent is not None:
            self._write(inode, open_file, draft, size=min(size, draft.size), synced=synced)
            draft.safe = draft.recorded
        await self._journal.sync()
        if open_file.draft is draft and not draft.spool.is_busy:  # what is being written lies above the length
            draft.spool.truncate(draft.size)

    async def saved(self, inode: Inode, open_file: OpenFile, draft: Draft) -> bool:
        """As `save`; False where this disk has no room for all of it, so that only the bucket can keep it."""
        if draft.away:
            return False
        try:
            await self.save(inode, open_file, draft)
        except OSError as error:
            if error.errno not in FULL:
                raise
            log.info("%s goes into the bucket at once: %s", inode.name.decode(errors="replace"), error)
            return False
        return True

    async def displaces(self, inode: Inode, target: Inode) -> None:
        """Before a file takes another's name, and that one's record goes: one of both survives. Raises OSError."""
        open_file, over = opened(inode), opened(target)
        if open_file is not None and open_file.draft is not None and over is not None and over.row:
            await self.save(inode, open_file, open_file.draft)

    def _write(self, inode: Inode, open_file: OpenFile, draft: Draft, *, size: int, synced: Ranges) -> None:
        """Records what was in the spool when it was synced, and still is: a power loss may leave no more of it."""
        base = draft.base
        saved = SavedDraft(
            key=self._inodes.key(inode),
            size=size,
            base=(base.key, base.etag, base.size) if base is not None else None,
            base_stop=draft.base_stop,
            expected=draft.expected,
            version=inode.version,
            local=draft.local.common(synced),
            dirty=Extents(draft.unsent).common(synced),
            posix=inode.posix,
            properties=self._attributes.known(inode),
            spool=draft.spool.path.name if draft.spool.on_disk else "",
            sums=draft.sums if draft.recorded == draft.serial else (),
            going=_in_flight(open_file, draft),
            body=draft.spool.body,
            edits=inode.edits,
            parts=open_file.upload.freed if open_file.upload is not None else (),
        )
        draft.spool.label(saved.key)
        open_file.row = self._journal.save_draft(open_file.row, saved)

    def moved(self, inode: Inode) -> None:
        """A rename changed the key, or what the bucket must hold: the record follows, and says no more of the bytes."""
        open_file, draft = opened(inode), draft_of(inode)
        if open_file is None or draft is None or not open_file.row:
            return
        if draft.recorded == draft.serial or not draft.spool.on_disk:
            self._write(inode, open_file, draft, size=draft.size, synced=tuple(draft.local))
        else:
            self._journal.alter_draft(open_file.row, partial(self._followed, inode, open_file, draft))

    def _followed(self, inode: Inode, open_file: OpenFile, draft: Draft, saved: SavedDraft) -> SavedDraft:
        base, flight = draft.base, open_file.in_flight
        return replace(
            saved,
            key=self._inodes.key(inode),
            base=(base.key, base.etag, base.size) if base is not None else None,
            expected=draft.expected,
            version=inode.version,
            going=(flight.newest, flight.serial >= draft.safe) if flight.newest is not None else None,
        )

    def landed(self, inode: Inode, open_file: OpenFile, draft: Draft) -> None:
        """The bucket has the draft as it was when the commit began: what the record has more than that stays there."""
        if draft.is_dirty and (draft.safe > draft.saved or not draft.spool.on_disk):
            self.moved(inode)
        else:
            self.forget(open_file)

    def changed(self, inode: Inode) -> None:
        """The user changed attributes: the record has them from now on, and says nothing new of the bytes."""
        open_file = opened(inode)
        if open_file is None or open_file.draft is None or not open_file.row:
            return  # not recorded yet, as where they are set before the close (cp -p)
        change = partial(
            replace,
            posix=inode.posix,
            properties=self._attributes.known(inode),
            edits=inode.edits,
            going=_in_flight(open_file, open_file.draft),
        )
        self._journal.alter_draft(open_file.row, change)

    def sent(self, inode: Inode, open_file: OpenFile, serial: int, token: str) -> None:
        """A request is about to make the object with this token, of the draft as of `serial`.

        Should its answer get lost, the record speaks of it.
        """
        open_file.in_flight.sent(token, serial)
        if not open_file.row:
            self._attributes.sent(inode)
            return
        try:
            self._note_sent(open_file, serial, token)
        except OSError as error:
            if error.errno not in FULL:
                raise
            log.info("the upload of a recorded file is not recorded: %s", error)  # it makes room, so it goes on

    def _note_sent(self, open_file: OpenFile, serial: int, token: str) -> None:
        if open_file.draft is not None and open_file.draft.safe > serial:  # recorded since the commit began
            self._journal.alter_draft(open_file.row, partial(replace, going=(token, False)))
        else:
            self._journal.draft_goes(open_file.row, token)

    def touched(self, inode: Inode) -> None:
        """A recorded draft is about to be written to."""
        open_file = opened(inode)
        draft = open_file.draft if open_file is not None else None
        if open_file is None or draft is None or not open_file.row:
            return
        if draft.recorded == draft.serial:
            if draft.spool.on_disk:
                self._journal.reopen_draft(open_file.row)
            draft.recorded = -1

    def cut(self, inode: Inode) -> None:
        """A recorded draft was truncated: bytes of the record are about to go, and it must not tell of them."""
        open_file = opened(inode)
        if open_file is not None and open_file.row and open_file.draft is not None and open_file.draft.spool.on_disk:
            change = partial(_cut, open_file.draft.size, _in_flight(open_file, open_file.draft))
            self._journal.alter_draft(open_file.row, change)

    async def rest(self, draft: Draft) -> None:
        """What rows no longer say of a spool, they do not say after a power loss either; and nobody holds it."""
        if draft.spool.is_named:
            await self._journal.flushed()
        await draft.spool.rest()

    async def free(self, draft: Draft) -> None:
        """Frees a draft that no row speaks of."""
        if draft.spool.is_named:
            await self._journal.flushed()
        draft.close()

    def forget(self, open_file: OpenFile) -> None:
        """The draft is in the bucket, or nobody wants it."""
        if open_file.row:
            self._journal.drop_draft(open_file.row)
            open_file.row = 0


def _cut(size: int, going: tuple[str, bool] | None, saved: SavedDraft) -> SavedDraft:
    """A record without what lies above `size`; one that holds the bytes itself needs no spool for them."""
    saved = replace(saved, going=going)
    if not saved.spool or saved.size <= size:
        return saved
    below = ((0, size),)
    local, dirty = Extents(saved.local).common(below), Extents(saved.dirty).common(below)
    return replace(saved, size=size, base_stop=min(saved.base_stop, size), local=local, dirty=dirty)


def _in_flight(open_file: OpenFile, draft: Draft) -> tuple[str, bool] | None:
    flight = open_file.in_flight
    return (flight.newest, flight.serial == draft.serial) if flight.newest is not None else None
