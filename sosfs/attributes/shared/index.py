"""The index of one mount: what is read of it, and what is put into it.

Concurrency: trio thread only.
"""

from __future__ import annotations

from sosfs.attributes.shared.lookup import Lookup
from sosfs.attributes.shared.objects import IndexObjects
from sosfs.attributes.shared.publication import Publication
from sosfs.attributes.shared.table import Place
from sosfs.cache.attributes import AttributeCache, Remembered, place_of
from sosfs.cache.blocks import Spawn
from sosfs.log.wording import counted
from sosfs.s3.protocol import Object, ObjectStore
from sosfs.tree.inodes import Directory, Inodes
from sosfs.tree.keys import Form, name_of
from sosfs.tree.listing import Listings


class SharedAttributes:
    """The attributes that a mount shares with others. `writes`: whether it tells them what it has learned."""

    def __init__(
        self,
        inodes: Inodes,
        listings: Listings,
        store: ObjectStore,
        cache: AttributeCache,
        spawn: Spawn,
        *,
        writes: bool,
    ) -> None:
        objects = IndexObjects(store, inodes.prefix)
        self._inodes = inodes
        self._listings = listings
        self._cache = cache
        self._lookup = Lookup(objects, cache)
        self.publication = Publication(objects, store, cache, self._lookup, self._is_gone)
        self.bring = self._lookup.bring
        self.missed = self._lookup.missed
        self.writes = writes
        spawn(self.publication.run)

    def used(self) -> None:
        """An entry has answered a question."""
        self._lookup.used += 1

    def has(self, found: Object) -> bool:
        """Whether the index has just that: nothing is to be noted of it."""
        known = self._cache.find(*place_of(found.key))
        if known is None or not known.shared:
            return False
        return known.version == found.version and known.properties == found.properties

    def saw(self, found: Object) -> None:
        """The server has told all of an object."""
        if self.writes:
            self.publication.saw(found)

    def wrote(self, key: str) -> None:
        """The mount has stored an object."""
        if self.writes:
            self.publication.wrote(key)

    def remembered(self, key: str, known: Remembered) -> None:
        """A listing agrees with what this machine has learned some time before."""
        if self.writes:
            self.publication.remembered(key, known)

    async def end(self) -> None:
        """Tells the others what they do not know yet, as far as a short time allows."""
        if self.writes:
            await self.publication.end()

    @property
    def words(self) -> str:
        """How it goes, for a person."""
        used = f"{counted(self._lookup.used, 'file')} known from others"
        if self.writes and not self.publication.denied:
            return f"{used}, {self.publication.published:,} told to others"
        return f"{used}; only read, as {self.publication.denied or 'the mount is read-only'}"

    def _is_gone(self, place: Place) -> bool:
        """Whether a recent listing shows that nothing is there."""
        folder, name = place
        directory = self._inodes.root.directory
        for segment in folder.split("/")[:-1]:
            child = directory.entries.get(name_of(segment)) if directory is not None else None
            if child is None or not child.is_directory:
                return self._is_known(directory)
            directory = child.directory
        if directory is None or not self._is_known(directory):
            return False
        if not name:
            return directory.marker is None and directory.inode.version is None
        return name_of(name) not in directory.entries and name_of(name, Form.BESIDE) not in directory.entries

    def _is_known(self, directory: Directory | None) -> bool:
        return directory is not None and self._listings.is_known(directory)
