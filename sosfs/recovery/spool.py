"""Check the bytes that an earlier mount left, and set aside what is damaged or unknown.

    a draft of the journal  -> its spool, if that has the length and the checksums of the row; else an entry of `damage`
    one that was not synced -> the same in the boot that wrote it; after a power loss it is as it was synced before,
                               or as the bucket has it, and that is told (`SavedDraft.boot`)
    a file without a row    -> removed, if the journal is sound and the last mount made it: its draft was in the
                               bucket already, or nobody had closed or synced it; else an entry of `damage`

What a power loss has taken that nobody had synced is no damage: whoever cares calls fsync.
Nothing is sent of what is damaged, and no name is made for it: what the bucket has of a file is what is shown.

Concurrency: trio thread only; runs before the kernel's first request.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from sosfs.disk import watermark
from sosfs.disk.damage import Damage, sync_directory
from sosfs.files.spool import SUMMED, Spool, SpoolArea, label
from sosfs.journal.journal import Journal
from sosfs.journal.rows import SavedAttributes, SavedDraft
from sosfs.journal.salvage import SPOOL, Finding
from sosfs.metadata import user_metadata
from sosfs.metadata.edits import NO_EDITS

log = logging.getLogger(__name__)

TRANSIENT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR})  # they say nothing of the file


class SpoolReplay:
    """Takes back the spools of one journal."""

    def __init__(self, journal: Journal, spools: SpoolArea) -> None:
        self._journal = journal
        self._damage: Damage = journal.damage
        self._spools = spools

    def drafts(self) -> list[tuple[int, SavedDraft]]:
        """The drafts of the journal, one for each key and for each spool: of several only the newest can be right."""
        drafts = list(self._journal.drafts())
        self._named = frozenset(_beginning(saved.spool) for _, saved in drafts if saved.spool)
        known = self._journal.spool_names
        if known is None:  # an older version wrote the journal, and removed what no row names
            known = frozenset(_beginning(path.name) for path in self._spools.others(frozenset()))
        self._known = known
        self._journal.note_spools(known | {self._spools.beginning})  # a crash may leave files of either
        newest = {saved.key: row for row, saved in drafts}
        owners = {saved.spool: row for row, saved in drafts if saved.spool}
        right = []
        for row, saved in drafts:
            if newest[saved.key] == row and owners.get(saved.spool, row) == row:
                right.append((row, saved))
            else:
                files = [path for path in self._files(saved) if owners.get(path.name, row) == row]
                self._give_up(row, saved, "the journal has a later row for it", files)
        return right

    def go_back(self) -> None:
        """Of what was not synced when the power went, what was synced before it holds, or else nothing.

        Comes before all that is made of the journal's rows.
        """
        for row, saved in list(self._journal.drafts()):
            if not saved.boot or saved.boot == watermark.boot():
                continue
            if saved.safe is None:
                left = "it is as the bucket has it" if saved.version is not None else "it had not been stored before"
                self._journal.drop_draft(row)
            else:
                left = "it is as it was synced before"
                self._write(row, replace(saved.safe, serial=0))
            log.error("%s: what was written just before this machine went down is lost; %s", saved.key, left)

    def _files(self, saved: SavedDraft) -> list[Path]:
        """The spool files that it names, those of what it was before among them."""
        return [self._spools.directory / name for name in sorted(saved.spools) if SPOOL.fullmatch(name)]

    async def spool(self, row: int, saved: SavedDraft) -> Spool | None:
        """The draft's bytes; None where they are not those that were recorded, and were set aside with the row.

        Raises OSError where that cannot be told now.
        """
        if not saved.spool:
            spool = self._spools.new()
            await spool.write(0, saved.body)
            self._vouch(row, saved)
            return spool
        if not SPOOL.fullmatch(saved.spool):
            self._damaged(row, saved, "the journal names no spool file")
            return None
        try:
            spool = self._spools.reopen(saved.spool)
        except OSError as error:
            if error.errno in TRANSIENT:
                raise
            gone = isinstance(error, FileNotFoundError)
            why = "its spool file is gone" if gone else f"its spool file: {error.strerror}"
            self._damaged(row, saved, why)
            return None
        try:
            wrong = await _wrong(spool, saved)
        except OSError as error:
            wrong = f"its spool file: {error.strerror}"
        if wrong:
            spool.release()
            self._damaged(row, saved, wrong)
            return None
        if saved.boot:
            await spool.sync()
        self._vouch(row, saved)
        return spool

    def _vouch(self, row: int, saved: SavedDraft) -> None:
        """What was not synced when the process died is by now."""
        if saved.boot:
            self._write(row, replace(saved, boot="", before=None, serial=0))

    def _write(self, row: int, saved: SavedDraft) -> None:
        """Changes a row; on a full disk that is owed, for to send the draft makes room."""
        with self._journal.together():
            self._journal.save_draft(row, saved)

    def _damaged(self, row: int, saved: SavedDraft, why: str) -> None:
        """Sets a draft aside; what was changed of the attributes of the file that the bucket has is kept."""
        self._give_up(row, saved, why, self._files(saved), kept=_attributes(saved))

    def _give_up(
        self, row: int, saved: SavedDraft, why: str, files: Iterable[Path], *, kept: SavedAttributes | None = None
    ) -> None:
        """Sets a draft aside, but for what is `kept`. Where that fails, all stays as it is, for the next mount."""
        details = {
            "key": saved.key,
            "size": saved.size,
            "written ranges": saved.local,
            "not in the bucket": saved.dirty,
            "made from version": saved.base,
        }
        bodies: Mapping[str, bytes] = {"bytes": saved.blob} if saved.blob else {}
        files = [path for path in files if os.path.lexists(path)]
        if saved.spool and saved.spool not in {path.name for path in files}:
            self._journal.doubt(Finding.ROWS)  # the bytes may be in a file that no row names
        if self._damage.set_aside(f"{saved.key}: {why}", details, files=files, bodies=bodies):
            with self._journal.together():
                self._journal.drop_draft(row)
                if kept is not None:
                    self._journal.save_attributes(0, kept)

    async def rest(self) -> None:
        """Deals with all files that no row names: none is removed that could be somebody's.

        Nor one that a row on the disk may still name; and what this mount makes is known there from now on.
        """
        try:
            await self._journal.sync()
        except OSError as error:
            log.error("no file is removed, for the journal cannot be written: %s", error)
            return
        named = {name for _, saved in self._journal.drafts() for name in saved.spools}
        removable = self._known if self._journal.finding is Finding.SOUND else frozenset()
        is_done = True
        for path in self._spools.others(named):
            beginning = _beginning(path.name) if SPOOL.fullmatch(path.name) else ""
            if beginning in removable:
                path.unlink(missing_ok=True)
            elif beginning != self._spools.beginning:
                key = label(path)
                what = f"{key}: its row in the journal is lost" if key else f"{path.name}: a spool file nobody knows"
                is_done &= self._damage.set_aside(what, {"size": path.lstat().st_size}, files=[path])
        if is_done:
            with contextlib.suppress(OSError):  # not every disk can
                # One that was removed, by this mount or the last, and that a power loss brought back would be nobody's.
                sync_directory(self._spools.directory)
            self._journal.note_spools(self._named | {self._spools.beginning})
            self._journal.recovered()


def _beginning(name: str) -> str:
    return name.partition("-")[0] + "-"


def _attributes(saved: SavedDraft) -> SavedAttributes | None:
    """What was changed of the attributes of the file below a draft, but for the time, which is that of the bytes."""
    edits = replace(saved.edits, posix=saved.edits.posix - {"mtime_ns"})
    if saved.base is None or edits == NO_EDITS:
        return None
    posix = replace(saved.posix, mtime_ns=user_metadata.read(saved.properties.metadata).mtime_ns)
    tokens = (saved.going[0],) if saved.going is not None else ()
    return SavedAttributes(saved.key, saved.version, posix, saved.properties, edits, tokens=tokens)


async def _wrong(spool: Spool, saved: SavedDraft) -> str:
    """What a spool lacks of what was recorded, "" for nothing. Raises OSError."""
    needed = max((stop for _, stop in saved.local), default=0)
    if spool.length < needed:
        return f"its spool file has {spool.length} of {needed} bytes"
    if not saved.sums:
        return ""  # it was being written to
    sums = await spool.sums(saved.size)
    bad = [number for number, (was, now) in enumerate(zip(saved.sums, sums, strict=False)) if was != now]
    if len(sums) != len(saved.sums):
        return "its spool file has another size than was recorded"
    if not bad:
        return ""
    return f"its spool file was changed: {len(bad)} of {len(sums)} MiB, first at {bad[0] * SUMMED}"
