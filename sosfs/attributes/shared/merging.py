"""Merge what a mount has learned into the index.

    root read -> the tables that are concerned read, merged, written as new leaves -> root written on condition
        ^------- the condition does not hold: another mount was faster, the new leaves go -------'

Of an object the entry with the newer time stays. What a mount knows to be gone (`is_gone`) goes from the tables that
it writes anyway, so that a tree whose files come and go does not grow an index without end.

Concurrency: trio thread only; one merge of a mount at a time.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from sosfs.attributes.shared.objects import EMPTY, IndexObjects
from sosfs.attributes.shared.table import Entry, Leaf, Place, Table, pieces
from sosfs.concurrency.threads import LOCAL
from sosfs.errors import Cause, StoreError
from sosfs.s3.paging import check_progress
from sosfs.s3.protocol import ObjectStore

TRIES = 4  # against other mounts that write at the same time
TABLES = 8  # that are written anew in one go; what else has changed waits for the next
ORPHAN = 86_400.0  # seconds after which a leaf that no root names is one that somebody has left behind

IsGone = Callable[[Place], bool]


@dataclass(slots=True)
class Merged:
    """What came of it: how many entries are new in the index, its root now, and which changes wait."""

    entries: int
    root: Table
    left: dict[Place, Entry] = field(default_factory=dict)


@dataclass(slots=True)
class _Plan:
    """A new root, with what is written and what is removed for it."""

    root: Table
    entries: int
    left: dict[Place, Entry]
    made: list[str] = field(default_factory=list)  # names of leaves
    replaced: list[str] = field(default_factory=list)


class Merging:
    """Writes into one index."""

    def __init__(self, objects: IndexObjects, store: ObjectStore) -> None:
        self._objects = objects
        self._store = store

    async def merge(self, changes: Mapping[Place, Entry], is_gone: IsGone) -> Merged:
        """Brings changes into the index. Raises StoreError; ESTALE where others were always faster."""
        for again in range(TRIES):
            read = await self._objects.read(self._objects.root)
            plan = await self._planned(read.table, changes, is_gone)
            if not plan.entries:
                return Merged(0, read.table, plan.left)
            try:
                await self._objects.write_root(plan.root, read.version)
            except StoreError as error:
                await self._objects.remove(plan.made)
                if error.cause is not Cause.CONFLICT or again == TRIES - 1:
                    raise
                continue
            await self._objects.remove(plan.replaced)
            if plan.replaced:
                await self._remove_orphans(plan.root)
            return Merged(plan.entries, plan.root, plan.left)
        raise AssertionError("the last try has raised")

    async def _planned(self, root: Table, changes: Mapping[Place, Entry], is_gone: IsGone) -> _Plan:
        """What is to be written; leaves are already."""
        if not root.leaves:
            merged, news = _merged(root.entries, changes, is_gone)
            parts = await LOCAL.run(pieces, merged) if news else []
            plan = _Plan(Table(parts[0] if parts else {}), news, {})
            if len(parts) > 1:
                plan.root = Table({}, await self._written(plan, parts))
            return plan
        concerned = _by_leaf(root.leaves, changes)
        chosen = sorted(concerned, key=lambda number: -len(concerned[number]))[:TABLES]
        plan = _Plan(root, 0, {})
        for number, some in concerned.items():
            if number not in chosen:
                plan.left |= some
        leaves: list[Leaf] = []
        for number, leaf in enumerate(root.leaves):
            leaves += await self._renewed(plan, leaf, concerned[number], is_gone) if number in chosen else [leaf]
        plan.root = Table({}, leaves) if leaves else EMPTY
        return plan

    async def _renewed(self, plan: _Plan, leaf: Leaf, changes: Mapping[Place, Entry], is_gone: IsGone) -> list[Leaf]:
        """The leaves that take the place of one."""
        read = await self._objects.read(self._objects.leaf(leaf.name))
        merged, news = _merged(read.table.entries, changes, is_gone)
        if not news:
            return [leaf]
        plan.entries += news
        plan.replaced.append(leaf.name)
        return await self._written(plan, await LOCAL.run(pieces, merged))

    async def _written(self, plan: _Plan, parts: list[dict[Place, Entry]]) -> list[Leaf]:
        leaves = []
        for part in parts:
            name = await self._objects.write_leaf(part)
            plan.made.append(name)
            leaves.append(Leaf(min(part), name, len(part)))
        return leaves

    async def _remove_orphans(self, root: Table) -> None:
        """Removes the leaves that a mount has left behind which was killed between them and its root."""
        named = {self._objects.leaf(leaf.name) for leaf in root.leaves}
        orphans: list[str] = []
        start, token, tokens = self._objects.leaf(""), "", set[str]()
        while True:
            page = await self._store.list(start, delimiter="", token=token)
            orphans += [
                listed.key.removeprefix(start)
                for listed in page.objects
                if listed.key not in named and (listed.version.modified or time.time()) < time.time() - ORPHAN
            ]
            token = page.token
            if not token:
                break
            check_progress(f"ListObjectsV2 {start!r}", token, tokens)
        if orphans:
            await self._objects.remove(orphans)


def _by_leaf(leaves: Sequence[Leaf], changes: Mapping[Place, Entry]) -> dict[int, dict[Place, Entry]]:
    """The changes by the number of the leaf that has their places."""
    firsts = [leaf.first for leaf in leaves]
    found: dict[int, dict[Place, Entry]] = defaultdict(dict)
    for place, entry in changes.items():
        found[max(0, bisect_right(firsts, place) - 1)][place] = entry
    return found


def _merged(
    entries: Mapping[Place, Entry], changes: Mapping[Place, Entry], is_gone: IsGone
) -> tuple[dict[Place, Entry], int]:
    """The entries with the changes, and how many of these are news."""
    merged, news = dict(entries), 0
    for place, entry in changes.items():
        old = merged.get(place)
        if old is None or (old != entry and (old.version.modified or 0) <= (entry.version.modified or 0)):
            merged[place], news = entry, news + 1
    if news:
        merged = {place: entry for place, entry in merged.items() if place in changes or not is_gone(place)}
    return merged, news
