"""Write the attribute changes that an earlier mount left in its journal.

A change holds for the bytes whose attributes were changed, whatever was done to their metadata since: each copy of ours
makes another version, and which of them a dead process has made is not known. It is of single fields, so that what
another client has set beside them stays. Only other bytes, or none, end it, and that is said.

Concurrency: trio thread only.
"""

from __future__ import annotations

import logging
import stat
from dataclasses import replace
from functools import partial

from sosfs.attributes.unanswered_copies import is_made_by
from sosfs.attributes.writeback import AttributeWriteback
from sosfs.errors import Cause, StoreError
from sosfs.journal.journal import Journal
from sosfs.journal.multipart_uploads import MultipartUploads
from sosfs.journal.rows import SavedAttributes
from sosfs.metadata import system_headers, user_metadata
from sosfs.s3 import recognition
from sosfs.s3.copying import copy_object
from sosfs.s3.preconditions import find
from sosfs.s3.protocol import Guard, Object, ObjectStore, Properties

log = logging.getLogger(__name__)


class AttributeReplay:
    """Writes what was changed."""

    def __init__(
        self, journal: Journal, store: ObjectStore, multiparts: MultipartUploads, attributes: AttributeWriteback
    ) -> None:
        self._journal = journal
        self._store = store
        self._attributes = attributes
        self._copy_object = partial(copy_object, store, multiparts=multiparts)

    async def write(self, item: tuple[int, SavedAttributes]) -> None:
        """One row; what the server refuses stays in the journal, as what this disk does not let be written there.

        Raises StoreError where the server cannot be asked.
        """
        row, saved = item
        self._attributes.forget(saved.key)
        try:
            is_done = await self._written(row, saved)
        except OSError as error:
            may_wait = not isinstance(error, StoreError) or is_refused(error) or error.cause is Cause.CONFLICT
            if not may_wait:
                raise
            log.warning("attributes of %s are not in the bucket yet: %s", saved.key, error)
            return
        if is_done:
            self._journal.drop_attributes(row)

    async def _written(self, row: int, saved: SavedAttributes) -> bool:
        """Whether the change is in the bucket, or given up; else it is left for the tree.

        That is so as well where a copy that the dead process has asked for may come yet, and undo this one.
        """
        found = await find(self._store, saved.key)
        if found is not None and _is_uploaded(saved, found):
            saved = _uploaded(saved, found)
            self._note(row, saved)  # the tree knows by the version what is refused
        if found is None and saved.key.endswith("/"):
            headers = system_headers.for_directory(saved.properties.headers)
            used = Properties(headers, user_metadata.write(saved.properties.metadata, saved.posix))
            return await self._is_made(saved.key, used)
        if found is None or not _stands_on(saved, found):
            self._say_lost(saved, found)
        elif late := tuple(one for one in saved.sent if not is_made_by(one, found)):
            self._note(row, replace(saved, version=found.version, sent=late, tokens=()))
            return False
        else:
            await self._copy(row, saved, found)
        return True

    def _note(self, row: int, saved: SavedAttributes) -> None:
        """Changes the row; on a full disk that is owed."""
        with self._journal.together():
            self._journal.save_attributes(row, saved)

    async def _is_made(self, key: str, used: Properties) -> bool:
        """Stores the marker of a directory that has none, unless another client was faster."""
        try:
            await self._store.put(key, b"", used, condition=Guard.ABSENT)
        except StoreError as error:
            if error.cause is not Cause.CONFLICT:
                raise
            return False
        return True

    async def _copy(self, row: int, saved: SavedAttributes, found: Object) -> None:
        used = _merged(saved, found.properties)
        self._attributes.protection.owe(saved.key, saved.sent)
        if used == found.properties:
            await self._attributes.protection.settle(saved.key)
            return
        acl = await self._attributes.acls.of_key(saved.key)
        locked = replace(used, lock=await self._attributes.protection.carried(saved.key))
        if saved.key.endswith("/") and not found.version.size:
            # Not every server copies a marker.
            await self._store.put(saved.key, b"", locked, condition=found.version, acl=acl)
        else:
            self._note(row, replace(saved, sent=(*saved.sent, locked)))
            if "-" in found.version.etag or not self._store.hashes:
                await self._journal.sync()  # else nothing tells after a power cut that the copy is ours
            await self._copy_object(saved.key, saved.key, found.version, properties=locked, acl=acl)
        await self._attributes.protection.settle(saved.key)

    def _say_lost(self, saved: SavedAttributes, found: Object | None) -> None:
        if saved.version is None and found is None:
            return  # of a file that was being stored for the first time: that was not acknowledged
        why = "has removed" if found is None else "has replaced"
        log.error("what was changed of the attributes of %s is lost: another client %s it", saved.key, why)


def _is_uploaded(saved: SavedAttributes, found: Object) -> bool:
    """Whether an upload of the dead process has made an object, after the change was recorded or before."""
    instead_of = saved.version or Guard.ABSENT
    return any(recognition.is_ours(token, found, instead_of=instead_of) for token in saved.tokens)


def _uploaded(saved: SavedAttributes, found: Object) -> SavedAttributes:
    """The change of what an upload has made, whose bytes have their own time unless another was set of them."""
    uploaded = replace(saved.uploaded(), version=found.version)
    time = user_metadata.read(found.properties.metadata).mtime_ns
    if time is None or "mtime_ns" in uploaded.edits.posix:
        return uploaded
    return replace(uploaded, posix=replace(uploaded.posix, mtime_ns=time))


def _stands_on(saved: SavedAttributes, found: Object) -> bool:
    """Whether an object has the bytes of which the attributes were changed, whoever has copied it."""
    if saved.version is None:
        return saved.key.endswith("/")
    if found.version.size != saved.version.size:
        return False
    return found.version.same_bytes(saved.version) or any(is_made_by(one, found) for one in saved.sent)


def _merged(saved: SavedAttributes, found: Properties) -> Properties:
    """What an object is to have: what was changed here, and else what it has."""
    kind = stat.S_IFMT(saved.posix.mode or 0)
    posix = saved.edits.merged(saved.posix, user_metadata.read(found.metadata, kind=kind))
    known, name = saved.edits.applied(found), saved.key.rpartition("/")[2]
    headers = known.headers
    if "content_type" in saved.edits.headers:  # it may have been taken away
        headers = system_headers.for_file(headers, name) if name else system_headers.for_directory(headers)
    return Properties(headers, user_metadata.write(known.metadata, posix), found.storage_class)


def is_refused(error: StoreError) -> bool:
    """Whether the server has answered and will not do it now: with another key, or later, it may."""
    return 400 <= error.status < 500 or error.cause is Cause.UNSUPPORTED
