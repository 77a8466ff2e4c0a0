"""Gather what a mount has learned, and put it into the index when nobody waits.

    learned: settled ----------------------------------> gathered -> in the index
       `---- too young, or written here --asked again--'

Every `PERIOD` seconds, earlier when much has come, and at the end of the mount for `LAST` seconds at most. A key that
may not write and remove there is left to reading; any other failure leaves what was gathered for the next time.

Concurrency: trio thread only.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import trio

from sosfs.attributes.shared.lookup import Lookup
from sosfs.attributes.shared.merging import IsGone, Merging
from sosfs.attributes.shared.objects import IndexObjects
from sosfs.attributes.shared.table import Entry, Place, is_fit
from sosfs.cache.attributes import AttributeCache, Remembered
from sosfs.concurrency.locks import FairLock
from sosfs.concurrency.tasks import each
from sosfs.errors import Cause, StoreError
from sosfs.s3.protocol import Detail, Object, ObjectStore

log = logging.getLogger(__name__)

PERIOD = 300.0  # seconds
PERIOD_OF_VERSIONS = 6 * 3600.0  # where each root that was replaced stays as a version: SOS keeps 1,000 of a key
LAST = 10.0  # seconds of an unmount, half of them for questions
REST = 20.0  # seconds after each turn
SETTLED = 2  # seconds between an object's time and the server's clock, from which on its time is its own
SKEW = 3600  # seconds that this machine's clock may be wrong
MUCH = 10_000  # entries with which one does not wait for the period
MOST = 50_000  # entries, and as many keys to ask for: about 50 MB; what is beyond is learned by another walk
TOGETHER = 8  # keys that one thread asks for, one after the other
ASKERS, ASKERS_AT_END = 2, 24


class Publication:
    """What one mount has to tell the others. `denied` is why it tells nothing, "" where it does."""

    def __init__(
        self, objects: IndexObjects, store: ObjectStore, cache: AttributeCache, lookup: Lookup, is_gone: IsGone
    ) -> None:
        self._objects = objects
        self._store = store
        self._cache = cache
        self._lookup = lookup
        self._merging = Merging(objects, store)
        self._is_gone = is_gone
        self._lock = FairLock()
        self._gathered: dict[Place, Entry] = {}
        self._unsettled: dict[str, float] = {}  # keys, and the trio time from which on they are worth a question
        self._much = trio.Event()
        self.period = PERIOD
        self.denied = ""
        self.published = 0

    # What is learned

    def saw(self, found: Object) -> None:
        """The server has told all of an object."""
        version, place = found.version, self._objects.place_of(found.key)
        if place is None or found.detail is not Detail.WHOLE or version.modified is None or not found.answered:
            return
        if found.answered < version.modified + SETTLED:
            self._ask_later(found.key)
        else:
            self._gather(place, Entry(version, found.properties))

    def wrote(self, key: str) -> None:
        """The mount has stored an object: its time is not known yet."""
        self._ask_later(key)

    def remembered(self, key: str, known: Remembered) -> None:
        """A listing agrees with what this machine has learned some time before."""
        if known.shared or not known.whole or key in self._unsettled:
            return
        place, modified = self._objects.place_of(key), known.version.modified
        if place is None:
            return
        if place in self._gathered and self._gathered[place].version == known.version:
            return
        if modified is None or known.written <= modified + SKEW:
            self._ask_later(key)
        else:
            self._gather(place, Entry(known.version, known.properties))

    def _gather(self, place: Place, entry: Entry) -> None:
        if not is_fit(place, entry):
            self._unsettled.pop(self._objects.key_of(place), None)
        elif not self.denied and (len(self._gathered) < MOST or place in self._gathered):
            self._unsettled.pop(self._objects.key_of(place), None)
            self._gathered[place] = entry
            if len(self._gathered) >= MUCH:
                self._much.set()

    def _ask_later(self, key: str) -> None:
        place = self._objects.place_of(key)
        if place is not None and not self.denied and len(self._unsettled) < MOST:
            self._gathered.pop(place, None)
            self._unsettled[key] = trio.current_time() + SETTLED + 0.1

    # What is told

    async def run(self) -> None:
        """Tells now and then, until cancelled."""
        while True:
            with trio.move_on_after(self.period):
                await self._much.wait()
            self._much = trio.Event()
            await self.tell(askers=ASKERS)
            await trio.sleep(REST)  # also where much waits, for it may be that the server does not take it

    async def end(self) -> None:
        """Tells all that can be told in a short time."""
        with trio.move_on_after(LAST):
            waits = max(self._unsettled.values(), default=-math.inf) - trio.current_time()
            if waits > 0:
                await trio.sleep(waits)
            more = len(self._gathered) + len(self._unsettled)
            while more:
                before = more
                await self.tell(askers=ASKERS_AT_END)
                more = len(self._gathered) + len(self._unsettled)
                if more >= before:
                    break

    async def tell(self, *, askers: int) -> None:
        """Brings what was gathered into the index; what does not get there waits, or is not told at all."""
        async with self._lock:
            changes: dict[Place, Entry] = {}
            try:
                with trio.move_on_after(LAST / 2 if askers == ASKERS_AT_END else math.inf):
                    await self._settle(askers)
                changes, self._gathered = self._gathered, {}
                if not changes:
                    return
                merged = await self._merging.merge(changes, self._is_gone)
            except StoreError as error:
                self._failed(error, changes)
                return
            self._lookup.know(merged.root)
            self._gathered = merged.left | self._gathered
            self.published += merged.entries
            self._cache.mark_shared(
                (self._objects.key_of(place), entry.version)
                for place, entry in changes.items()
                if place not in merged.left
            )

    def _failed(self, error: StoreError, changes: dict[Place, Entry]) -> None:
        if error.cause is Cause.DENIED:
            self.denied = f"this key may not write and remove {self._objects.top}"
            self._gathered, self._unsettled = {}, {}
            log.info("shared attributes are only read: %s", error)
            return
        self._gathered = changes | self._gathered
        log.info("shared attributes wait for the next time: %s", error)

    async def _settle(self, askers: int) -> None:
        """Asks for what was too young, or written here."""
        now = trio.current_time()
        keys = [key for key, since in list(self._unsettled.items()) if since <= now and not self._forgot(key)]
        batches = [keys[at : at + TOGETHER] for at in range(0, len(keys), TOGETHER)]
        await each(self._ask, batches, at_once=askers)

    def _forgot(self, key: str) -> bool:
        """Lets go of what has been removed or renamed since."""
        place = self._objects.place_of(key)
        if place is not None and not self._is_gone(place):
            return False
        del self._unsettled[key]
        return True

    async def _ask(self, keys: Sequence[str]) -> None:
        asked = {key: self._unsettled.pop(key) for key in keys if key in self._unsettled}
        for key, found in zip(asked, await self._store.heads(list(asked)), strict=True):
            if not isinstance(found, Object) or key in self._unsettled:
                continue  # gone, or written again meanwhile
            self.saw(found)
            if self._objects.place_of(key) in self._gathered:
                self._cache.put(key, found.version, found.properties, whole=True)
