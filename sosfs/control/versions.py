"""Old versions of objects as read-only files, `.sosfs/versions/PATH/TIME_ID`.

A directory of the mount is a directory here, and so is each of its files, deleted ones included; it holds one file for
each version, named by the time it was written (UTC) and its id, so that names sort by age. Delete markers have
no bytes and are not shown. `cp` of a version over the file restores it.

Every look is a LIST of versions: whoever looks here wants to know what is there now. Concurrency: trio thread only.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Mapping
from urllib.parse import quote

from sosfs.cache.blocks import Blocks, Source, Spawn, memory_of
from sosfs.cache.readahead import Stream
from sosfs.control.nodes import BytesFile, Folder, Node
from sosfs.metadata.user_metadata import NS
from sosfs.s3.bucket_settings import BucketSettings, Kept
from sosfs.s3.preconditions import check_etag
from sosfs.s3.protocol import Object, Properties, Slice, Version
from sosfs.tree import keys

CACHE = 32 << 20  # bytes; for reading ahead in large versions


class _Readings:
    """What the block cache reads versions through: an object whose ETag is the version's `_pin`."""

    def __init__(self, bucket: BucketSettings) -> None:
        self._bucket = bucket

    async def get(self, key: str, start: int, stop: int, *, etag: str = "") -> Slice:
        """The bytes `[start, stop)` of this version; ESTALE where its id is another's now, EIO where fewer come."""
        version_id, _, wanted = etag.rpartition(" ")
        found = await self._bucket.read(key, version_id, start, stop)
        check_etag(f"GetObject {key!r}", found.object.version, wanted)
        if len(found.body) != stop - start:
            raise OSError(errno.EIO, f"{len(found.body)} bytes where {stop - start} were due")
        return Slice(Object(key, Version(etag, len(found.body)), Properties()), found.body)


class VersionFile(BytesFile):
    """One version of an object."""

    def __init__(self, kept: Kept, blocks: Blocks) -> None:
        super().__init__(("version", kept.key, kept.version_id, kept.etag))
        self.size = kept.size
        self.time_ns = int(kept.modified * NS)
        self._source = Source(kept.key, _pin(kept), kept.size)
        self._blocks = blocks
        self._stream = Stream()

    async def read(self, start: int, stop: int) -> bytes | memoryview:
        """The bytes `[start, stop)`."""
        return await self._stream.read(self._blocks, self._source, start, stop)


class _Versions(Folder):
    """The versions of one object."""

    def __init__(self, key: str, shelf: Shelf) -> None:
        super().__init__(("versions of", key))
        self._key = key
        self._shelf = shelf

    async def children(self) -> Mapping[bytes, Node]:
        """A file for each version."""
        kept = await self._shelf.bucket.versions_of(self._key)
        return {_name(one): VersionFile(one, self._shelf.blocks) for one in kept}


class VersionFolder(Folder):
    """A prefix of keys: a directory for each one below it, and for each object that has or had this prefix."""

    def __init__(self, prefix: str, shelf: Shelf) -> None:
        super().__init__(("versions under", prefix))
        self._prefix = prefix
        self._shelf = shelf

    async def children(self) -> Mapping[bytes, Node]:
        """Directories alone: of prefixes, and of objects with their versions."""
        kept, folded = await self._shelf.bucket.versions_under(self._prefix)
        segments = {prefix[len(self._prefix) : -1]: prefix for prefix in folded}
        found: dict[bytes, Node] = {
            keys.name_of(segment): VersionFolder(prefix, self._shelf) for segment, prefix in segments.items()
        }
        for key in dict.fromkeys(one.key for one in kept if one.size or one.key != self._prefix):  # no bare markers
            segment = key[len(self._prefix) :]
            form = keys.Form.BESIDE if segment in segments else keys.Form.PLAIN
            found[keys.name_of(segment, form)] = _Versions(key, self._shelf)
        return found

    async def child(self, name: bytes) -> Node:
        """As `children`, but asks only for what can have this name."""
        parsed = keys.parse(name)
        if parsed.form is keys.Form.FOLDED:
            return await super().child(name)
        key, bucket = self._prefix + parsed.segment, self._shelf.bucket
        if parsed.form is keys.Form.PLAIN and await bucket.has_versions_under(f"{key}/"):
            return VersionFolder(f"{key}/", self._shelf)
        if await bucket.versions_of(key):
            return _Versions(key, self._shelf)
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))


class Shelf:
    """The old versions of a bucket."""

    def __init__(self, bucket: BucketSettings, spawn: Spawn) -> None:
        self.bucket = bucket
        self.blocks = Blocks(_Readings(bucket), spawn, memory_of(CACHE), capacity=CACHE)  # type: ignore[arg-type]  # it only gets

    def folder(self, prefix: str) -> Folder:
        """The tree of all keys that begin with `prefix`."""
        return VersionFolder(prefix, self)


def _name(kept: Kept) -> bytes:
    seconds, rest = divmod(int(kept.modified * 1000), 1000)
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{moment}.{rest:03d}Z_{quote(kept.version_id, safe='')}".encode()


def _pin(kept: Kept) -> str:
    """The id and the ETag: where no versions are kept, the id of whatever is there is `null`."""
    return f"{kept.version_id} {kept.etag}"
