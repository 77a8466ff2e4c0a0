"""The objects of the index: their keys, and how one is read.

Concurrency: trio thread only; tables are packed and unpacked in threads.
"""

from __future__ import annotations

import logging
import uuid
from dataclasses import dataclass

from sosfs.attributes.shared.table import DATA_MAX, Entry, Place, Table, decoded, encoded
from sosfs.concurrency.threads import LOCAL
from sosfs.errors import Cause, StoreError
from sosfs.s3.protocol import NO_GRANTS, Condition, Guard, Headers, ObjectStore, Properties, Version
from sosfs.tree.keys import HIDDEN

log = logging.getLogger(__name__)

EMPTY = Table()
PROPERTIES = Properties(Headers(content_type="application/octet-stream"))
ROOT = "v1"  # a later form gets another name, so that neither takes the other for damaged


@dataclass(frozen=True, slots=True)
class Read:
    """What is in an object of the index; no `version` where there is none, and nothing in one that is damaged."""

    version: Version | None
    table: Table


class IndexObjects:
    """The index of one mount's prefix ("" or ending in "/")."""

    def __init__(self, store: ObjectStore, prefix: str) -> None:
        self._store = store
        self.prefix = prefix
        self.top = f"{prefix}{HIDDEN}/"
        self.root = self.top + ROOT
        self._told: set[tuple[str, str]] = set()  # key and ETag of what is damaged

    def leaf(self, name: str) -> str:
        """The key of a leaf."""
        return f"{self.root}-{name}"

    def place_of(self, key: str) -> Place | None:
        """Where an object stands in the index; None for one of the index itself, and of another prefix."""
        if not key.startswith(self.prefix) or key.startswith(self.top):
            return None
        folder, slash, name = key[len(self.prefix) :].rpartition("/")
        return folder + slash, name

    def key_of(self, place: Place) -> str:
        """The reverse of `place_of`."""
        return self.prefix + place[0] + place[1]

    async def read(self, key: str) -> Read:
        """The table of an object; one line in the log says of each that is damaged. Raises StoreError."""
        try:
            answer = await self._store.get(key, 0, DATA_MAX)
        except StoreError as error:
            if error.cause is not Cause.ABSENT:
                raise
            return Read(None, EMPTY)
        version = answer.object.version
        try:
            if version.size > DATA_MAX:
                raise ValueError(f"it has {version.size} bytes")
            return Read(version, await LOCAL.run(decoded, answer.body))
        except ValueError as error:
            if (key, version.etag) not in self._told:
                self._told = {*list(self._told)[:100], (key, version.etag)}
                log.info("%s is no index of attributes, and not used: %s", key, error)
            return Read(version, EMPTY)

    async def write_root(self, table: Table, instead_of: Version | None) -> None:
        """Stores the root, in place of the version that was read. Raises StoreError; ESTALE where it is another."""
        await self._write(self.root, table, instead_of or Guard.ABSENT)

    async def write_leaf(self, entries: dict[Place, Entry]) -> str:
        """Stores a new leaf and returns its name. Raises StoreError."""
        name = uuid.uuid4().hex
        await self._write(self.leaf(name), Table(entries), Guard.NONE)
        return name

    async def _write(self, key: str, table: Table, condition: Condition) -> None:
        body = await LOCAL.run(encoded, table)
        await self._store.put(key, body, PROPERTIES, condition=condition, acl=NO_GRANTS)

    async def remove(self, names: list[str]) -> None:
        """Removes leaves; what stays is removed by a later mount, or with the whole index.

        Raises StoreError where the key may not remove any: who goes on would leave more of them with each turn.
        """
        for failure in await self._store.delete_many([self.leaf(name) for name in names]):
            log.debug("a leaf of the index stays: %s", failure.error)
            if isinstance(failure.error, StoreError) and failure.error.cause is Cause.DENIED:
                raise failure.error
