"""`sosfs restore`: which version each file of a tree is to have again, and what is left as it is.

At a moment: the version that was current then. Without one: of what is deleted the last version, and of a file that
is named itself and is there the version before. What is so already is left, so that a call that was stopped goes on
where it stopped; a file that has come since then is left and counted, never removed; a file with changes that the
bucket lacks is left and told.

Done on the server: a delete marker that hides the version goes, or the version is copied over what is there. Deletes
of this mount that are still to be sent go first, and afterwards the mount forgets what it knew of the paths.
Concurrency: trio thread only; called off by cancelling it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

import trio

from sosfs.attributes.protection import Act
from sosfs.concurrency.tasks import each
from sosfs.control.past import VersioningRequired
from sosfs.files.open_file import opened
from sosfs.filesystem.composition import Filesystem
from sosfs.filesystem.drop import DropCommand
from sosfs.filesystem.version_paths import VersionPaths
from sosfs.ipc.commands import Names, Options, Tell, Told
from sosfs.s3.version_answers import VersionEntry
from sosfs.s3.version_changes import VersionChanges
from sosfs.s3.version_history import Entries
from sosfs.tree.inodes import Inode
from sosfs.tree.keys import Form, name_of

AT_ONCE = 32  # files side by side: what it takes is the round trips
NAMED = 20  # files that are named one by one
CHANGES = 100_000  # lines of a dry run


class Run(Enum):
    """Whether anything is done."""

    DRY = "dry"
    REAL = "real"


@dataclass(slots=True)
class _Tally:
    files: int = 0  # looked at
    restored: int = 0
    same: int = 0
    later: int = 0  # that came after the moment, and stay
    unsent_files: int = 0
    unsent: list[str] = field(default_factory=list)
    failed_files: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    changes: list[tuple[str, float, int]] = field(default_factory=list)  # path, time and size of the version

    def outcome(self) -> Told:
        return {name: getattr(self, name) for name in self.__slots__}


def wanted(entries: Entries, moment: float | None, *, is_named: bool) -> VersionEntry | None:
    """The version that a key is to have; None for none."""
    if moment is not None:
        found = next((entry for entry in entries if entry.modified <= moment), None)
        return None if found is None or found.is_marker else found
    older = entries[1:] if is_named else entries
    return next((entry for entry in older if not entry.is_marker), None)


class RestoreCommand:
    """Brings files of a mount back to what they were."""

    def __init__(
        self,
        parts: Filesystem,
        paths: VersionPaths,
        changes: VersionChanges,
        required: VersioningRequired,
        dropping: DropCommand,
    ) -> None:
        self._parts = parts
        self._paths = paths
        self._changes = changes
        self._required = required
        self._dropping = dropping

    async def run(self, paths: Sequence[Names], tell: Tell, options: Options) -> Told:
        """Restores files and trees. Raises EOPNOTSUPP where no versions are kept, ENOENT where a path has none."""
        moment = float(options["at"]) if "at" in options else None
        run, tally = Run(options.get("run", Run.REAL.value)), _Tally()
        await self._required.check()
        places = [self._paths.key_of(path) for path in paths]
        for place in places:
            await self._parts.deletions.wait_under(place)
        try:
            for path, place in zip(paths, places, strict=True):
                seen = tally.files
                async for groups in self._paths.groups(place):
                    await self._group(groups, place, moment, run, tally, tell)
                if tally.files == seen:
                    shown = os.fsdecode(b"/".join(path))
                    raise OSError(errno.ENOENT, "no version of it is kept", shown)
        finally:
            if tally.restored and run is Run.REAL:
                with trio.CancelScope(shield=True):  # what was done until it was called off is to be seen, too
                    await self._dropping.run(paths, tell)
        return tally.outcome()

    async def _group(
        self, groups: list[Entries], place: str, moment: float | None, run: Run, tally: _Tally, tell: Tell
    ) -> None:
        async def restore(entries: Entries) -> None:
            tally.files += 1
            path = self._paths.shown(entries[0].key)
            try:
                await self._one(entries, path, wanted(entries, moment, is_named=entries[0].key == place), run, tally)
            except OSError as error:
                tally.failed_files += 1
                if len(tally.failed) < NAMED:
                    tally.failed.append((path, error.strerror or str(error)))
            tell({"files": tally.files, "restored": tally.restored})

        await each(restore, groups, at_once=AT_ONCE)

    async def _one(self, entries: Entries, path: str, wish: VersionEntry | None, run: Run, tally: _Tally) -> None:
        current = entries[0]
        if wish is None:
            tally.later += not current.is_marker
            return
        if not current.is_marker and await self._changes.is_same(wish, current):
            tally.same += 1
            return
        if self._is_unsent(current.key):
            tally.unsent_files += 1
            if len(tally.unsent) < NAMED:
                tally.unsent.append(path)
            return
        if not current.is_marker:
            await self._parts.attributes.protection.require_key(current.key, Act.WRITE)
        if len(tally.changes) < CHANGES and run is Run.DRY:
            tally.changes.append((path, wish.modified, wish.version.size))
        if run is Run.REAL:
            newer = entries[: entries.index(wish)]
            if all(entry.is_marker for entry in newer):
                await self._changes.undelete(wish, newer)
            else:
                await self._changes.bring_back(wish)
        tally.restored += 1

    def _is_unsent(self, key: str) -> bool:
        """Whether the mount has changes of this file that the bucket lacks, or may get some from who has it open."""
        inode = self._inode(key)
        if inode is None:
            return False
        open_file = opened(inode)
        return bool(inode.pins) or (open_file is not None and bool(open_file.writers))  # a draft is a pin

    def _inode(self, key: str) -> Inode | None:
        at: Inode | None = self._parts.inodes.root
        *folders, last = key.removeprefix(self._parts.inodes.prefix).removesuffix("/").split("/")
        for segment in folders:
            at = _entry(at, name_of(segment))
        beside = _entry(at, name_of(last, Form.BESIDE))
        return beside or _entry(at, name_of(last))


def _entry(at: Inode | None, name: bytes) -> Inode | None:
    return at.directory.entries.get(name) if at is not None and at.directory is not None else None
