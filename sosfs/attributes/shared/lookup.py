"""Fetch what others have learned before a file is asked for.

    root not looked at -> root known (all entries, or which leaf has which) -> leaves known, one by one

Entries go into the attribute cache, where those of this machine are: what is used of either is what the listing of now
agrees with, and over a restart both stay. The root is looked at with the first question for attributes; again when
many questions had no answer since, and `AGAIN` seconds have passed.

What fails costs the HEADs that it should have saved, and nothing else.

Concurrency: trio thread only; one request at a time, others wait for its answer.
"""

from __future__ import annotations

import errno
import logging
import math
from bisect import bisect_right
from collections.abc import Sequence

import trio

from sosfs.attributes.shared.objects import IndexObjects
from sosfs.attributes.shared.table import Leaf, Place, Table
from sosfs.cache.attributes import AttributeCache
from sosfs.concurrency.locks import FairLock
from sosfs.errors import Cause, StoreError

log = logging.getLogger(__name__)

AGAIN = 300.0  # seconds
MISSES = 50  # questions that had no answer, after which it may have one by now
PAUSE, DENIED = 60.0, 3600.0  # seconds for which nothing is fetched after a failure, after a refusal


class Lookup:
    """The index as one mount reads it."""

    def __init__(self, objects: IndexObjects, cache: AttributeCache) -> None:
        self._objects = objects
        self._cache = cache
        self._lock = FairLock()
        self._leaves: Sequence[Leaf] = ()
        self._firsts: list[Place] = []
        self._fetched: set[str] = set()  # names of leaves
        self._next = self._rest_until = -math.inf  # trio times: of the next look at the root, and of any request
        self._misses = MISSES
        self.used = 0  # entries that answered a question

    def missed(self) -> None:
        """A question had no answer here."""
        self._misses += 1

    async def bring(self, keys: Sequence[str]) -> None:
        """What the index has of these objects is in the attribute cache afterwards, if it can be had."""
        places = list(filter(None, map(self._objects.place_of, keys)))
        if not places or not self._lacks(places):
            return
        async with self._lock:
            if not self._lacks(places):
                return
            try:
                if self._is_due():
                    await self._look()
                for name in self._wanted(places):
                    await self._fetch(name)
            except StoreError as error:
                if error.errno != errno.EINTR:  # else the next one asks
                    self._rest_until = trio.current_time() + (DENIED if error.cause is Cause.DENIED else PAUSE)
                log.debug("the shared attributes cannot be read: %s", error)

    def _lacks(self, places: Sequence[Place]) -> bool:
        return trio.current_time() >= self._rest_until and (self._is_due() or bool(self._wanted(places)))

    def _is_due(self) -> bool:
        return self._misses >= MISSES and trio.current_time() >= self._next

    def _wanted(self, places: Sequence[Place]) -> list[str]:
        """The leaves that were not fetched yet."""
        if not self._leaves:
            return []
        numbers = {max(0, bisect_right(self._firsts, place) - 1) for place in places}
        return [name for number in sorted(numbers) if (name := self._leaves[number].name) not in self._fetched]

    async def _look(self) -> None:
        read = await self._objects.read(self._objects.root)
        self._next, self._misses = trio.current_time() + AGAIN, 0
        self.know(read.table)
        await self._take(read.table)

    def know(self, root: Table) -> None:
        """The root is this one now."""
        self._leaves = root.leaves
        self._firsts = [leaf.first for leaf in self._leaves]
        self._fetched.intersection_update(leaf.name for leaf in self._leaves)

    async def _fetch(self, name: str) -> None:
        self._fetched.add(name)
        try:
            read = await self._objects.read(self._objects.leaf(name))
        except StoreError:
            self._fetched.discard(name)
            raise
        await self._take(read.table)

    async def _take(self, table: Table) -> None:
        """Brings entries into the cache, some at a time: others have a turn between."""
        entries = list(table.entries.items())
        for at in range(0, len(entries), 1000):
            self._cache.adopt(
                (self._objects.key_of(place), entry.version, entry.properties)
                for place, entry in entries[at : at + 1000]
            )
            await trio.lowlevel.checkpoint()
