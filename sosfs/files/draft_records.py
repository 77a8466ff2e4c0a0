"""Keep the drafts' rows in the journal true.

    no row --save, note--> as of `Draft.recorded` --touched--> open (its spool is being written) --save, note--> ...
                              `--landed, unlinked: forgotten

`save` syncs, `note` does not: a row that was noted vouches for its spool as long as the machine runs, and has beside
that what was saved before, to which a power loss goes back (`SavedDraft.boot`). `DelayedSync` saves it a moment later.

A small draft's bytes are in its row and change with it alone. A large one's are in the spool, which is written
in place: its row says so before the first byte changes, tells of no bytes that were not synced (a power loss would
leave zeros for them), and forgets those that are cut before they go. The disk may have a cut or a removal long before
it has the log: so a spool that a row has named loses nothing until the row's change is synced. On a full disk, where
that is owed, it is written at once with the room that the spool leaves. A file that is emptied goes on in another
spool: in the old one what comes now would be mixed with what was.

Concurrency: trio thread only.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from sosfs.attributes.writeback import AttributeWriteback
from sosfs.cache.extents import Extents
from sosfs.disk import watermark
from sosfs.errors import FULL
from sosfs.files.draft import Draft
from sosfs.files.open_file import OpenFile, draft_of, opened
from sosfs.files.spool import Spool, SpoolArea
from sosfs.journal.journal import Journal
from sosfs.journal.rows import Ranges, SavedDraft
from sosfs.tree.inodes import Inode, Inodes

log = logging.getLogger(__name__)


class Later(Protocol):
    """Who syncs what nobody waits for (`delayed_sync`)."""

    def noted(self, inode: Inode, size: int) -> None:
        """So many bytes of a file were noted."""

    def takes(self, spools: Sequence[Spool]) -> None:
        """Closes spools as soon as no row names them on the disk."""

    def frees(self, spools: Sequence[Spool]) -> bool:
        """As `takes`, if room is not short: then it is False, and nothing is done."""

    def hurried(self) -> bool:
        """Whether it has spools to close, which it does now."""


@dataclass(frozen=True, slots=True)
class _Moment:
    """A draft when its bytes are about to be synced."""

    serial: int
    safe: int  # the serial of what its row says
    size: int
    local: Ranges
    absorbed: int
    spools: tuple[Spool, ...]  # the last one has its bytes

    @classmethod
    def of(cls, draft: Draft) -> _Moment:
        """Now."""
        return cls(draft.serial, draft.safe, draft.size, tuple(draft.local), draft.absorbed, draft.spools)


class DraftRecords:
    """The rows of the drafts of a mount."""

    def __init__(self, inodes: Inodes, attributes: AttributeWriteback, journal: Journal) -> None:
        self._inodes = inodes
        self._attributes = attributes
        self._journal = journal
        self.later: Later | None = None  # none: nothing is noted, and whoever frees a spool waits for the disk
        attributes.carried_later = self.changed

    @property
    def may_note(self) -> bool:
        """Whether anybody sees to what is noted, and could tell after a crash whether the power was lost."""
        return self.later is not None and bool(watermark.boot())

    # Rows are written

    async def save(self, inode: Inode, open_file: OpenFile, draft: Draft) -> None:
        """The draft survives the loss of this machine's power afterwards. Raises OSError of the disk."""
        failure, draft.unsyncable = draft.unsyncable, None
        if failure is not None:
            raise failure  # once: the kernel has given up the bytes, and finds nothing wrong the next time
        if draft.recorded != draft.serial or not draft.is_synced or not open_file.row:
            open_file.writers += 1  # keeps a commit that lands meanwhile from freeing the spool
            try:
                moment, spool = _Moment.of(draft), draft.spool
                with spool.held(), draft.uncut() as left:
                    await spool.sync()
                    sums = await spool.sums(draft.size)
            finally:
                open_file.writers -= 1
            if draft.spool is not spool:
                await self.save(inode, open_file, draft)  # it was emptied meanwhile, and began anew
                return
            self._vouch(inode, open_file, draft, replace(moment, local=tuple(left)), sums)
        elif draft.is_dirty and inode.parent is not None:
            self._write(inode, open_file, draft, size=draft.size, synced=tuple(draft.local))
            draft.safe = draft.recorded
        outdated, told = list(draft.outdated), self._told_of(open_file, draft.spool)
        await self._journal.sync()
        draft.outdated = [spool for spool in draft.outdated if spool not in outdated]
        for spool in outdated:
            spool.close()
        if open_file.draft is draft and not draft.spool.is_busy:  # what is being written lies above the length
            draft.spool.truncate(max(draft.size, told, self._told_of(open_file, draft.spool)))
        self._journal.catch_up()

    def _told_of(self, open_file: OpenFile, spool: Spool) -> int:
        """How many bytes of a spool the row tells of: more than the file has by now, where it was cut meanwhile."""
        return self._journal.draft(open_file.row).told_of(spool.path.name) if open_file.row and spool.on_disk else 0

    def _vouch(self, inode: Inode, open_file: OpenFile, draft: Draft, moment: _Moment, sums: tuple[int, ...]) -> None:
        """All bytes as of a moment are on the disk: the row says so. What was noted since stays before that."""
        if draft.saved >= moment.serial or inode.parent is None or open_file.draft is not draft:
            return  # the bucket has these bytes or newer ones, of which the row would take some back
        size = min(moment.size, draft.size)
        if draft.safe > moment.serial:
            if not draft.is_synced:
                known = self._record(inode, open_file, draft, size=size, synced=moment.local, serial=moment.serial)
                self._goes_back(inode, open_file, draft, replace(known, serial=moment.serial))
            return
        is_still = draft.absorbed == moment.absorbed and not draft.is_being_written
        draft.sums = sums if is_still else ()  # else of the spool as it was before, or after, or between
        before, draft.recorded = draft.recorded, moment.serial
        try:
            self._write(inode, open_file, draft, size=size, synced=moment.local)
        except OSError:
            draft.recorded = before  # else it would pass for written down, and for synced
            raise
        draft.is_synced, draft.safe = True, draft.recorded
        if draft.absorbed != moment.absorbed:
            self.touched(inode)  # what came of the base meanwhile is on no disk, though no byte has changed

    async def save_all(self, inodes: Iterable[Inode], spools: SpoolArea) -> list[tuple[Inode, OSError]]:
        """As `save`, of what was noted and no more, but for the sync of the journal; what of it failed."""
        noted = [
            (inode, open_file, draft, _Moment.of(draft), self._known(open_file.row, draft))
            for inode in inodes
            if (open_file := opened(inode)) is not None
            and (draft := open_file.draft) is not None
            and open_file.row
            and not draft.is_synced
        ]
        failed: list[tuple[Inode, OSError]] = []
        every = [spool for _, _, _, moment, _ in noted for spool in moment.spools]
        with ExitStack() as held:
            for spool in every:
                held.enter_context(spool.held())
            told = dict(zip(every, await spools.sync(every), strict=True))
            for inode, open_file, draft, moment, known in noted:
                if open_file.draft is not draft or not open_file.row:
                    continue  # it is in the bucket: what is wrong with its spool is nobody's
                error = next((told[spool] for spool in moment.spools if told[spool] and spool in draft.spools), None)
                try:
                    if error is not None:
                        draft.unsyncable = error
                        self._free_outdated(open_file, draft)
                        raise error
                    await self._vouch_noted(inode, open_file, draft, moment, known)
                except OSError as failure:
                    failed.append((inode, failure))
        return failed

    async def _vouch_noted(
        self, inode: Inode, open_file: OpenFile, draft: Draft, moment: _Moment, known: SavedDraft
    ) -> None:
        """What the row said at a moment is on the disk: it says so, whatever a program has written since."""
        spool = moment.spools[-1]
        sums = await spool.sums(moment.size) if draft.recorded == moment.serial else ()
        if open_file.draft is not draft or not open_file.row:
            return
        names = {spool.path.name for spool in moment.spools if spool in draft.spools}
        if draft.recorded == draft.serial == moment.serial:  # so it was not emptied
            self._vouch(inode, open_file, draft, moment, sums)
            self._free_outdated(open_file, draft)
        elif draft.safe == moment.safe:
            going = _going(open_file, draft)
            change = self._beside(inode, open_file, draft, lambda saved: replace(saved.synced(names), going=going))
            self._journal.alter_draft(open_file.row, change)
            draft.is_synced = True
        elif not draft.is_synced:  # it was noted again: what it was before is safe by now
            was = known.before if known.boot and not known.spool else known
            if was is not None and draft.absorbed != moment.absorbed:
                was = _written(was)  # the base's may have turned out wrong: they are fetched again
            if was is not None and (safe := was.synced(names).safe) is not None:
                self._goes_back(inode, open_file, draft, safe)
                self._free_outdated(open_file, draft)

    def _goes_back(self, inode: Inode, open_file: OpenFile, draft: Draft, safe: SavedDraft) -> None:
        """A row that was noted since: a power loss goes back to what is safe by now, or to what is newer than that."""
        change = partial(_backed, safe, _going(open_file, draft))
        self._journal.alter_draft(open_file.row, self._beside(inode, open_file, draft, change))

    async def saved(self, inode: Inode, open_file: OpenFile, draft: Draft) -> bool:
        """As `save`; False where this disk has no room for all of it, so that only the bucket can keep it."""
        if draft.away:
            return False
        try:
            await self.save(inode, open_file, draft)
        except OSError as error:
            return self._has_no_room(inode, error)
        return True

    def noted(self, inode: Inode, open_file: OpenFile, draft: Draft) -> bool:
        """As `saved`, but that only the death of this process is survived at once: a power loss may take it."""
        if draft.away:
            return False
        try:
            self._note(inode, open_file, draft)
        except OSError as error:
            return self._has_no_room(inode, error)
        return True

    @staticmethod
    def _has_no_room(inode: Inode, error: OSError) -> bool:
        """False, for a full disk. Raises any other error."""
        if error.errno not in FULL:
            raise error
        log.info("%s goes into the bucket at once: %s", inode.name.decode(errors="replace"), error)
        return False

    def _note(self, inode: Inode, open_file: OpenFile, draft: Draft) -> None:
        if open_file.row and draft.recorded == draft.serial:
            return
        on_disk = draft.spool.on_disk
        before = self._before(inode, open_file, draft) if on_disk else None
        draft.sums = ()
        boot = watermark.boot() if on_disk else ""
        self._write(inode, open_file, draft, size=draft.size, synced=tuple(draft.local), boot=boot, before=before)
        draft.recorded = draft.safe = draft.serial
        draft.is_synced = not on_disk
        if self.later is not None:
            self.later.noted(inode, draft.local.total)
        if not on_disk:
            self._free_outdated(open_file, draft)

    def _free_outdated(self, open_file: OpenFile, draft: Draft) -> None:
        """Of the old spools go those that the row names no more; on the disk it may, for a moment."""
        named = self._journal.draft(open_file.row).spools if draft.outdated else frozenset()
        freed = [spool for spool in draft.outdated if spool.path.name not in named]
        if freed and self.later is not None:
            self.later.takes(freed)
            draft.outdated = [spool for spool in draft.outdated if spool not in freed]

    def _before(self, inode: Inode, open_file: OpenFile, draft: Draft) -> SavedDraft | None:
        """What the row has that is safe from a power loss, when it is about to get what is not."""
        if not open_file.row:
            return None
        return self._kept(inode, open_file, draft, self._known(open_file.row, draft).safe)

    def _known(self, row: int, draft: Draft) -> SavedDraft:
        """What the row says."""
        known = self._journal.draft(row)
        return known if known.boot else replace(known, serial=draft.safe)

    def _kept(self, inode: Inode, open_file: OpenFile, draft: Draft, before: SavedDraft | None) -> SavedDraft | None:
        """What a power loss goes back to, as far as it is known by now; None where the bucket has that or newer."""
        if before is None or draft.saved >= before.serial:
            return None
        base, flight = draft.base, open_file.in_flight
        return replace(
            before,
            key=self._inodes.key(inode),
            base=(base.key, base.etag, base.size) if base is not None else before.base,
            expected=draft.expected,
            version=inode.version,
            going=(flight.newest, flight.serial >= before.serial) if flight.newest is not None else None,
            before=self._kept(inode, open_file, draft, before.before),
        )

    async def displaces(self, inode: Inode, target: Inode) -> None:
        """Before a file takes another's name, and that one's record goes: one of both survives. Raises OSError.

        So of a file whose bytes are in a spool, and no disk has them yet, they are waited for. The other's record may
        be of its attributes alone: a crash would bring it back without them.
        """
        open_file, over = opened(inode), opened(target)
        draft = draft_of(inode)
        is_recorded = (over is not None and over.row) or target.attributes_dirty
        if open_file is None or draft is None or not is_recorded:
            return
        if not self.may_note:
            await self.save(inode, open_file, draft)
            return
        self._note(inode, open_file, draft)
        if not draft.is_synced:
            await self.save(inode, open_file, draft)

    def _write(
        self,
        inode: Inode,
        open_file: OpenFile,
        draft: Draft,
        *,
        size: int,
        synced: Ranges,
        boot: str = "",
        before: SavedDraft | None = None,
    ) -> None:
        """Records what was in the spool when it was synced, and still is: a power loss may leave no more of it."""
        saved = self._record(inode, open_file, draft, size=size, synced=synced, serial=draft.recorded)
        draft.spool.label(saved.key)
        draft.summed = max(draft.summed, saved.size if saved.sums else 0)
        serial = draft.serial if boot else 0
        open_file.row = self._journal.save_draft(open_file.row, replace(saved, boot=boot, before=before, serial=serial))

    def _record(
        self, inode: Inode, open_file: OpenFile, draft: Draft, *, size: int, synced: Ranges, serial: int
    ) -> SavedDraft:
        base, base_stop = draft.below
        return SavedDraft(
            key=self._inodes.key(inode),
            size=size,
            base=(base.key, base.etag, base.size) if base is not None else None,
            base_stop=base_stop,
            expected=draft.expected,
            version=inode.version,
            local=draft.local.common(synced),
            dirty=Extents(draft.unsent).common(synced),
            posix=inode.posix,
            properties=self._attributes.known(inode),
            spool=draft.spool.path.name if draft.spool.on_disk else "",
            sums=draft.sums if serial == draft.serial and not draft.is_rewritten else (),
            going=_in_flight(open_file, draft),
            body=draft.spool.body,
            edits=inode.edits,
            parts=open_file.upload.freed if open_file.upload is not None else (),
        )

    # Rows follow

    def moved(self, inode: Inode) -> None:
        """A rename changed the key, or what the bucket must hold: the record follows, and says no more of the bytes.

        On a full disk that is owed, for the file is about to be sent, or is in the bucket already.
        """
        open_file, draft = opened(inode), draft_of(inode)
        if open_file is None or draft is None or not open_file.row:
            return
        is_in_memory = not draft.spool.on_disk and not draft.outdated
        with self._journal.together():
            if (draft.recorded == draft.serial and draft.is_synced) or is_in_memory:
                self._write(inode, open_file, draft, size=draft.size, synced=tuple(draft.local))
            else:
                self._journal.alter_draft(open_file.row, partial(self._followed, inode, open_file, draft))

    def _followed(self, inode: Inode, open_file: OpenFile, draft: Draft, saved: SavedDraft) -> SavedDraft:
        base = draft.base
        return replace(
            saved,
            key=self._inodes.key(inode),
            base=(base.key, base.etag, base.size) if base is not None else saved.base,
            expected=draft.expected,
            version=inode.version,
            going=_going(open_file, draft),
            before=self._kept(inode, open_file, draft, saved.before),
        )

    def landed(self, inode: Inode, open_file: OpenFile, draft: Draft) -> None:
        """The bucket has the draft as it was when the commit began: what the record has more than that stays there."""
        if draft.safe > draft.saved:
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
        self._journal.alter_draft(open_file.row, self._beside(inode, open_file, open_file.draft, change))

    def _beside(
        self, inode: Inode, open_file: OpenFile, draft: Draft, change: Callable[[SavedDraft], SavedDraft]
    ) -> Callable[[SavedDraft], SavedDraft]:
        """A change of a row, with which what was before follows as well."""

        def altered(saved: SavedDraft) -> SavedDraft:
            changed = change(saved)
            return replace(changed, before=self._kept(inode, open_file, draft, changed.before))

        return altered

    def disowned(self, inode: Inode, draft: Draft) -> None:
        """What came into the spool of the base was wrong: the record tells of none of it any more. Never raises."""
        open_file = opened(inode)
        if open_file is None or open_file.draft is not draft or not open_file.row:
            return
        going = _going(open_file, draft)
        change = self._beside(inode, open_file, draft, lambda saved: replace(_written(saved), going=going))
        try:
            with self._journal.together():
                self._journal.alter_draft(open_file.row, change)
        except OSError as error:
            log.error("the journal cannot be written: %s", error)

    async def sent(self, inode: Inode, open_file: OpenFile, serial: int, token: str, *, is_hash: bool = False) -> None:
        """A request is about to make the object with this token, of the draft as of `serial`.

        Should its answer get lost, the record speaks of it; should the power be lost as well, only where nothing else
        tells the object from another client's. Where the token `is_hash`, the bytes tell if the record has them all.
        """
        open_file.in_flight.sent(token, serial)
        if not open_file.row:
            self._attributes.sent(inode)
            return
        try:
            self._note_sent(inode, open_file, serial, token)
        except OSError as error:
            if error.errno not in FULL:
                raise
            log.info("the upload of a recorded file is not recorded: %s", error)  # it makes room, so it goes on
        if not (is_hash and self._has_all(open_file, serial)):
            await self._journal.flushed_now()

    def _has_all(self, open_file: OpenFile, serial: int) -> bool:
        """Whether a power loss leaves all bytes of the draft as of `serial`, or nothing of it."""
        draft = open_file.draft
        if draft is None or draft.safe != serial or not draft.local.covers(0, draft.size):
            return False
        return draft.is_synced or self._journal.draft(open_file.row).before is None

    def _note_sent(self, inode: Inode, open_file: OpenFile, serial: int, token: str) -> None:
        draft = open_file.draft
        if draft is not None and draft.safe > serial:  # recorded since the commit began
            change = partial(replace, going=(token, False))
            self._journal.alter_draft(open_file.row, self._beside(inode, open_file, draft, change))
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

    async def opens(self, inode: Inode, offset: int) -> bool:
        """Before bytes at `offset` are overwritten, no row on the disk has their checksum. Whether that took a wait.

        Else those of a file that was synced would pass for damaged when the power goes, also where they are stored by
        now and a power loss brings the row back. Once for a draft: databases change their files over and over.
        """
        draft = draft_of(inode)
        if draft is None or offset >= draft.summed:
            return False
        self.touched(inode)
        draft.is_rewritten = True
        await self._journal.sync()
        draft.summed = 0  # not before: who tries again after an error has to wait as well
        return True

    def cut(self, inode: Inode) -> None:
        """A recorded draft was truncated: bytes of the record are about to go, and it must not tell of them.

        On a full disk that is owed: the spool loses nothing before, and a close then waits for the bucket.
        """
        open_file, draft = opened(inode), draft_of(inode)
        if open_file is None or draft is None or not open_file.row or not draft.spool.on_disk:
            return
        with self._journal.together():
            self._cut(inode, open_file, draft)

    def _cut(self, inode: Inode, open_file: OpenFile, draft: Draft) -> None:
        if draft.size:
            change = partial(_cut, draft.size, _in_flight(open_file, draft))
            self._journal.alter_draft(open_file.row, self._beside(inode, open_file, draft, change))
            return
        known = self._known(open_file.row, draft)
        # Of one that was emptied before and not closed since, what it had before that is what counts.
        before = self._kept(inode, open_file, draft, known if known.spool or not known.boot else known.before)
        change = partial(_emptied, watermark.boot(), _in_flight(open_file, draft), before)
        self._journal.alter_draft(open_file.row, change)
        if draft.spool.is_named or draft.spool.is_busy:
            draft.empty()  # else no row has ever told of it, and it is emptied itself

    async def unname(self, open_file: OpenFile, draft: Draft) -> None:
        """Where no row names a spool any more none does after a power loss, if the disk takes that. Never raises."""
        try:
            await self._unname(open_file, draft)
        except OSError as error:
            log.info("no spool is freed while the journal cannot be written: %s", error)

    async def _unname(self, open_file: OpenFile, draft: Draft) -> None:
        spool = draft.spool
        if not spool.is_named or open_file.row:
            return
        await self._journal.sync()
        if not open_file.row:
            spool.is_named = False

    async def rest(self, open_file: OpenFile, draft: Draft) -> None:
        """As `unname`, and nobody holds the spool. Raises OSError of the disk."""
        await self._unname(open_file, draft)
        await draft.spool.rest()

    async def free(self, draft: Draft) -> None:
        """Frees a draft that no row speaks of. A spool that a row on the disk may name is left to the next mount."""
        spools = [spool for spool in draft.spools if spool.is_named]
        if spools and (self.later is None or not self.later.frees(spools)):
            try:
                await self._journal.sync()
                spools = []
            except OSError as error:
                log.info("a spool stays while the journal cannot be written: %s", error)
                for spool in spools:
                    spool.release()
        draft.close(but=spools)
        self._journal.catch_up()

    def has_room(self) -> None:
        """Something of a spool was freed: what is owed of its row is written. Never raises."""
        self._journal.catch_up()

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


def _written(saved: SavedDraft) -> SavedDraft:
    """A record of what was written alone, without bytes of the base."""
    before = _written(saved.before) if saved.before is not None else None
    return replace(saved, local=Extents(saved.local).common(saved.dirty), before=before)


def _backed(safe: SavedDraft, going: tuple[str, bool] | None, saved: SavedDraft) -> SavedDraft:
    """A record of what was not synced, with what a power loss goes back to where that is newer than what it has."""
    known = saved.before
    if known is not None and known.boot:
        known = _backed(safe, going, known)
    elif known is None or known.serial < safe.serial:
        known = safe
    return replace(saved, before=known, going=going)


def _emptied(boot: str, going: tuple[str, bool] | None, before: SavedDraft | None, saved: SavedDraft) -> SavedDraft:
    """A record of a file without bytes; a power loss goes back to what it had."""
    empty = replace(saved, size=0, base_stop=0, local=(), dirty=(), spool="", sums=(), body=b"", parts=(), going=going)
    return replace(empty, boot=boot, before=before) if boot else replace(empty, before=None)


def _going(open_file: OpenFile, draft: Draft) -> tuple[str, bool] | None:
    """The request under way, and whether it has all that the row says."""
    flight = open_file.in_flight
    return (flight.newest, flight.serial >= draft.safe) if flight.newest is not None else None


def _in_flight(open_file: OpenFile, draft: Draft) -> tuple[str, bool] | None:
    flight = open_file.in_flight
    return (flight.newest, flight.serial == draft.serial) if flight.newest is not None else None
