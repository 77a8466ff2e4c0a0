"""A bucket as it was at a moment: an `ObjectStore` over the versions that the server keeps, which nothing changes.

An object was there at a moment if the newest of its entries that is not younger than the moment is a version; its
bytes, metadata, headers and ACL are that version's. A prefix was there if an object below it was, which one request
tells of each where its keys are old: a listing shows no directory that has nothing in it but what came later, and
none of which all was removed by then.

The ids of versions that listings have shown are kept for the requests that follow, `KNOWN` of them; without one the
versions of that key are listed. Concurrency: trio thread only.
"""

from __future__ import annotations

import builtins
import errno
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NoReturn

from cachetools import LRUCache

from sosfs.concurrency.tasks import each
from sosfs.errors import StoreError
from sosfs.s3.dispatch import Dispatcher
from sosfs.s3.preconditions import checked
from sosfs.s3.protocol import Acl, Detail, Listed, Object, ObjectStore, Page, Slice, Upload
from sosfs.s3.version_answers import VersionEntry, VersionMarker, VersionPage, of_token, to_token
from sosfs.s3.version_history import VersionHistory

if TYPE_CHECKING:
    from sosfs.s3.calls import SignedCalls

KNOWN = 20_000  # ids: what a listing is ahead of who asks for attributes, and about 10 MB
PROBES = 16  # prefixes that are looked into at once
PROBE = 50  # entries of a prefix that are looked at first


class PastStore:
    """The store `now` as it was at `moment`, in seconds since the epoch."""

    def __init__(self, now: ObjectStore, dispatcher: Dispatcher, moment: float) -> None:
        self._now = now
        self._dispatcher = dispatcher
        self._history = VersionHistory(dispatcher)
        self._moment = moment
        self._ids: LRUCache[str, str] = LRUCache(KNOWN)

    @property
    def bucket(self) -> str:
        """The bucket's name."""
        return self._now.bucket

    @property
    def hashes(self) -> bool:
        """Whether the ETag that one PUT makes is the MD5 of its bytes."""
        return self._now.hashes

    @property
    def leaves_no_trace(self) -> bool:
        """Nothing can be stored there."""
        return False

    # What was there

    def _was_there(self, entries: Sequence[VersionEntry], decided: str) -> Iterator[VersionEntry]:
        """The entries that were current at the moment, markers among them, but for those of the key `decided`."""
        for entry in entries:
            if entry.key != decided and entry.modified <= self._moment:
                decided = entry.key
                yield entry

    async def _id(self, key: str) -> str:
        """The id of the version that was current. Raises ENOENT where none was."""
        known = self._ids.get(key)
        if known is not None:
            return known
        for entry in self._was_there(await self._history.of_key(key), ""):
            if not entry.is_marker:
                self._ids[key] = entry.version_id
                return entry.version_id
        raise StoreError(errno.ENOENT, f"HeadObject {key!r}", code="NoSuchKey", detail="it was not there then")

    async def list(
        self, prefix: str, *, delimiter: str = "/", after: str = "", token: str = "", limit: int = 1000
    ) -> Page:
        """One page of the keys that were there; never an empty one that is not the last."""
        marker, decided = of_token(token)
        if marker is None and after:
            marker = VersionMarker(after)
        limit = max(limit, PROBE)  # most entries may be younger
        pages = self._history.pages(prefix, delimiter=delimiter, after=marker, limit=limit)
        while True:
            page = await anext(pages)
            current = list(self._was_there(page.entries, decided))
            objects = tuple(self._listed(entry) for entry in current if not entry.is_marker)
            prefixes = await self._living(page)
            decided = current[-1].key if current else decided
            marker = page.following
            if marker is None:
                return Page(objects, prefixes)
            if objects or prefixes:
                return Page(objects, prefixes, to_token(marker, decided))

    def _listed(self, entry: VersionEntry) -> Listed:
        self._ids[entry.key] = entry.version_id
        return Listed(entry.key, entry.version, entry.storage_class)

    async def _living(self, page: VersionPage) -> tuple[str, ...]:
        """The prefixes of a page below which anything was."""
        living: set[str] = set()

        async def look(prefix: str) -> None:
            if await self._has_any(prefix):
                living.add(prefix)

        await each(look, page.prefixes, at_once=PROBES)
        return tuple(prefix for prefix in page.prefixes if prefix in living)

    async def _has_any(self, prefix: str) -> bool:
        decided = ""
        async for page in self._history.pages(prefix, limit=PROBE, more=1000):
            for entry in self._was_there(page.entries, decided):
                if not entry.is_marker:
                    return True
                decided = entry.key
        return False

    # What it was

    async def head(self, key: str, *, detail: Detail = Detail.USUAL) -> Object:
        """The version and properties that the object had. ENOENT where it was not there."""
        version_id = await self._id(key)
        return await self._dispatcher.send("HeadObject", lambda calls: calls.head(key, detail, version_id=version_id))

    async def heads(self, keys: Sequence[str]) -> builtins.list[Object | StoreError]:
        """What `head` tells of each key, or its error."""
        for key in keys:
            if key not in self._ids:
                return [await self._head_or_error(each_key) for each_key in keys]
        ids = {key: self._ids[key] for key in keys}

        def ask(calls: SignedCalls, key: str) -> Object:
            return calls.head(key, Detail.USUAL, version_id=ids[key])

        return await self._dispatcher.send_each("HeadObject", ask, keys)

    async def _head_or_error(self, key: str) -> Object | StoreError:
        try:
            return await self.head(key)
        except StoreError as error:
            return error

    async def get(self, key: str, start: int, stop: int, *, etag: str = "") -> Slice:
        """The bytes `[start, stop)` that the object had. ESTALE where they are not of `etag`."""
        request, version_id = f"GetObject {key!r}", await self._id(key)
        if start < stop:
            try:
                found = await self._dispatcher.send(
                    "GetObject",
                    lambda calls: calls.get(key, start, stop, "", version_id=version_id),
                    size=stop - start,
                )
            except StoreError as error:
                if error.code != "InvalidRange":
                    raise
            else:
                return checked(request, found, start, stop, etag)
        here = await self.head(key)  # the range is empty, or begins past the object's end
        return checked(request, Slice(here, memoryview(b"")), start, stop, etag)

    async def has_acls(self) -> bool:
        """As the bucket of now."""
        return await self._now.has_acls()

    async def get_acl(self, key: str) -> Acl:
        """The ACL that the version has."""
        version_id = await self._id(key)
        return await self._dispatcher.send("GetObjectAcl", lambda calls: calls.get_acl(key, version_id=version_id))

    # What would change it

    async def refused(self, *_: object, **__: object) -> NoReturn:
        """EROFS: what was cannot be changed."""
        raise StoreError(errno.EROFS, "the bucket as it was")

    put = copy = delete = purge = delete_many = put_acl = refused
    create_multipart = upload_part = copy_part = complete_multipart = abort_multipart = refused

    async def list_parts(self, key: str, upload_id: str) -> NoReturn:
        """No upload was begun."""
        raise StoreError(errno.ENXIO, "the bucket as it was")

    async def list_uploads(self, prefix: str) -> builtins.list[Upload]:
        """No upload was begun."""
        return []
