"""What of a mount waits to go into the bucket, told one by one and tried at once: `sosfs pending`, `sosfs retry`.

Neither asks the bucket which files there are: what waits is known here, and told while the server is away.

Concurrency: trio thread only; a retry is called off by cancelling it, and what it has not reached waits on.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from sosfs.concurrency.tasks import each
from sosfs.filesystem.composition import Filesystem
from sosfs.ipc.commands import NO_OPTIONS, Names, Options, Tell, Told
from sosfs.ipc.pending import Change, Kind

log = logging.getLogger(__name__)

TOLD = 10_000  # changes that are told one by one
TRIED_AT_ONCE = 16


class PendingChanges:
    """The changes of one bucket that wait. `moved` says how many bytes of bodies under way are off, by keys."""

    def __init__(self, parts: Filesystem, prefix: str, moved: Callable[[], Mapping[str, int]]) -> None:
        self._parts = parts
        self._prefix = prefix
        self._moved = moved

    def changes(self, paths: Sequence[Names]) -> list[Change]:
        """All that waits at these paths and below them, the oldest first."""
        found = (one for one in self._all() if any(one.pending.is_under(path) for path in paths))
        return sorted(found, key=lambda one: one.pending.since)

    def _all(self) -> Iterator[Change]:
        parts = self._parts
        yield from parts.commits.changes(self._moved())
        yield from parts.attributes.changes()
        yield from parts.deletions.changes(self._prefix)
        yield from parts.rollback.changes(self._prefix)

    async def tell(self, paths: Sequence[Names], tell: Tell, options: Options = NO_OPTIONS) -> Told:
        """For `sosfs pending`: up to `TOLD` changes and how many there are."""
        return told(self.changes(paths))

    async def retry(self, paths: Sequence[Names], tell: Tell, options: Options = NO_OPTIONS) -> Told:
        """For `sosfs retry`: tries what waits; how many that was, and what is left of it as `tell` has it."""
        before = self.changes(paths)
        done = 0

        async def attempt(change: Change) -> None:
            nonlocal done
            await tried(change)
            done += 1
            tell({"tried": done, "total": len(before)})

        await each(attempt, [one for one in before if one.pending.kind is not Kind.REMOVAL], at_once=TRIED_AT_ONCE)
        await self._remove([one.key for one in before if one.pending.kind is Kind.REMOVAL])
        return {"tried": len(before), **told(self.changes(paths))}

    async def _remove(self, keys: Sequence[str]) -> None:
        """Sends removals in batches, with those beside them; what is left after a failure the queue goes on with."""
        if keys:
            try:
                prefix = os.path.commonprefix(keys)  # noqa: RUF071 - of keys, which need not end at a slash
                await self._parts.deletions.wait_under(prefix)
            except OSError as error:
                log.info("removals still wait: %s", error)


async def tried(change: Change) -> None:
    """Tries a change once. What keeps it waiting it tells by itself; here it is logged."""
    try:
        await change.attempt()
    except OSError as error:
        path = b"/".join(change.pending.names).decode(errors="replace")
        log.info("%s of %s still waits: %s", change.pending.kind.value, path, error)


def told(changes: Iterable[Change]) -> Told:
    """Changes as they go over the socket."""
    listed = [change.pending for change in changes]
    return {"changes": [one.told() for one in listed[:TOLD]], "total": len(listed)}
