"""`sosfs versions`: what is kept of files, and which old versions go.

Never what is current: neither the version that is there, nor the delete marker by which a file is gone. The age of an
old version counts from when it was replaced or deleted: a file of last year that was overwritten by mistake a minute
ago is a minute old. Concurrency: trio thread only; called off by cancelling it.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise

from sosfs.concurrency.tasks import each
from sosfs.control.past import VersioningRequired
from sosfs.control.rejected_texts import Rejections
from sosfs.filesystem.restore import AT_ONCE, NAMED, Run
from sosfs.filesystem.version_paths import VersionPaths
from sosfs.ipc.commands import Names, Options, Tell, Told
from sosfs.s3.version_answers import VersionEntry
from sosfs.s3.version_changes import VersionChanges
from sosfs.s3.version_history import Entries

LISTED = 100_000  # entries of one call


def surplus(entries: Entries, *, keep: int | None, before: float | None) -> Iterator[VersionEntry]:
    """What goes of one key's entries: beyond the newest `keep` versions, or no more current since before a moment."""
    kept = 0 if entries[0].is_marker else 1
    for newer, entry in pairwise(entries):
        kept += not entry.is_marker
        if (keep is not None and kept > keep) or (before is not None and newer.modified < before):
            yield entry


class VersionsCommand:
    """Lists and removes old versions."""

    def __init__(
        self, paths: VersionPaths, changes: VersionChanges, required: VersioningRequired, rejections: Rejections
    ) -> None:
        self._paths = paths
        self._changes = changes
        self._required = required
        self._rejections = rejections

    async def list(self, paths: Sequence[Names], tell: Tell, options: Options) -> Told:
        """All versions and delete markers of files and trees: path, time, size, id, whether current, whether deleted.

        Raises EOPNOTSUPP where no versions are kept, ENOENT where a path has none, EFBIG where there are too many.
        """
        await self._required.check()
        found: list[tuple[str, float, int, str, bool, bool]] = []
        for path in paths:
            seen = len(found)
            async for groups in self._paths.groups(self._paths.key_of(path)):
                for entries in groups:
                    shown = self._paths.shown(entries[0].key)
                    found += [
                        (shown, entry.modified, entry.version.size, entry.version_id, not at, entry.is_marker)
                        for at, entry in enumerate(entries)
                    ]
                if len(found) > LISTED:
                    raise OSError(errno.EFBIG, f"more than {LISTED} versions: name a part of the tree")
                tell({"entries": len(found)})
            _require_any(len(found) > seen, path)
        return {"entries": found}

    async def prune(self, paths: Sequence[Names], tell: Tell, options: Options) -> Told:
        """Removes old versions, or with `run` `dry` only counts them. Raises as `list`."""
        keep = int(options["keep"]) if "keep" in options else None
        before = time.time() - float(options["older"]) if "older" in options else None
        run = Run(options["run"])
        await self._required.check()
        outcome: Told = {"versions": 0, "bytes": 0, "failed_files": 0, "failed": []}

        async def remove(entry: VersionEntry) -> None:
            try:
                if run is Run.REAL:
                    await self._changes.remove(entry)
            except OSError as error:
                outcome["failed_files"] += 1
                if error.errno == errno.EPERM:
                    what = f"{self._paths.shown(entry.key)}, version {entry.version_id}"
                    self._rejections.add(what, error, outcome="was not removed")
                if len(outcome["failed"]) < NAMED:
                    outcome["failed"].append((self._paths.shown(entry.key), error.strerror or str(error)))
                return
            outcome["versions"] += 1
            outcome["bytes"] += entry.version.size
            tell({"versions": outcome["versions"]})

        for path in paths:
            is_any = False
            async for groups in self._paths.groups(self._paths.key_of(path)):
                is_any = is_any or bool(groups)
                going = [entry for entries in groups for entry in surplus(entries, keep=keep, before=before)]
                await each(remove, going, at_once=AT_ONCE)
            _require_any(is_any, path)
        return outcome


def _require_any(is_any: bool, path: Names) -> None:
    if not is_any:
        raise OSError(errno.ENOENT, "no version of it is kept", os.fsdecode(b"/".join(path)))
