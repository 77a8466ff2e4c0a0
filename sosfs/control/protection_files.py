"""The texts of `.sosfs/bucket` that say what stays and how: Object Lock, lifecycle, ownership, encryption, replication.

As all settings (`settings_files`): read, edited, written back, emptied. Each is read from the server before it is sent,
also because a server that does not know one would take the request for another (`s3.protection_settings`).
Concurrency: trio thread only.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping

from sosfs.control import encryption_text, lifecycle_text, object_lock_text, ownership_text, replication_text
from sosfs.control.nodes import Node
from sosfs.control.rejected_texts import Rejections
from sosfs.control.settings_files import Setting
from sosfs.s3.protection_settings import ProtectionSettings


class ObjectLock(Setting):
    """For how long new objects are locked by themselves; empty for not."""

    def __init__(self, bucket: ProtectionSettings, rejections: Rejections) -> None:
        super().__init__("bucket/object-lock", rejections)
        self._bucket = bucket

    async def read(self) -> str:
        """The default retention, with its grammar in comments."""
        found = await self._bucket.object_lock()
        absent = "" if found.is_enabled else object_lock_text.ABSENT
        return absent + object_lock_text.HELP + object_lock_text.shown(found.default)

    def _check(self, text: str) -> None:
        object_lock_text.parse(text)

    async def _apply(self, text: str) -> None:
        wanted = object_lock_text.parse(text)
        if wanted != (await self._bucket.object_lock()).default:
            await self._bucket.put_object_lock(wanted)


class Lifecycle(Setting):
    """The rules by which the server itself removes files, old versions and unfinished uploads; empty for none."""

    def __init__(self, bucket: ProtectionSettings, rejections: Rejections) -> None:
        super().__init__("bucket/lifecycle", rejections)
        self._bucket = bucket

    async def read(self) -> str:
        """The rules as JSON, or an example in comments."""
        return lifecycle_text.shown(await self._bucket.lifecycle()) or lifecycle_text.HELP

    def _check(self, text: str) -> None:
        lifecycle_text.check(text)

    async def _apply(self, text: str) -> None:
        wanted = lifecycle_text.parse(text)
        if not lifecycle_text.same(wanted, await self._bucket.lifecycle()):
            await self._bucket.put_lifecycle(wanted)


class Ownership(Setting):
    """Who owns what is stored; empty for the server's own rule."""

    def __init__(self, bucket: ProtectionSettings, rejections: Rejections) -> None:
        super().__init__("bucket/ownership", rejections)
        self._bucket = bucket

    async def read(self) -> str:
        """One word, with the choices in a comment."""
        return ownership_text.HELP + ownership_text.shown(await self._bucket.ownership())

    def _check(self, text: str) -> None:
        ownership_text.parse(text)

    async def _apply(self, text: str) -> None:
        wanted = ownership_text.parse(text)
        if wanted != await self._bucket.ownership():
            await self._bucket.put_ownership(wanted)


class Encryption(Setting):
    """How the server encrypts what is stored; empty for nothing set."""

    def __init__(self, bucket: ProtectionSettings, rejections: Rejections) -> None:
        super().__init__("bucket/encryption", rejections)
        self._bucket = bucket

    async def read(self) -> str:
        """One line, with its grammar in a comment."""
        return encryption_text.HELP + encryption_text.shown(await self._bucket.encryption())

    def _check(self, text: str) -> None:
        encryption_text.parse(text)

    async def _apply(self, text: str) -> None:
        wanted = encryption_text.parse(text)
        if not encryption_text.same(wanted, await self._bucket.encryption()):
            await self._bucket.put_encryption(wanted)


class Replication(Setting):
    """Where the server copies what is stored. Read only."""

    permissions = 0o400

    def __init__(self, bucket: ProtectionSettings, rejections: Rejections) -> None:
        super().__init__("bucket/replication", rejections)
        self._bucket = bucket

    async def read(self) -> str:
        """S3's JSON."""
        return replication_text.shown(await self._bucket.replication())

    async def _apply(self, text: str) -> None:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))


def files_of(bucket: ProtectionSettings, rejections: Rejections) -> Mapping[bytes, Node]:
    """All of them, by their names."""
    return {
        b"object-lock": ObjectLock(bucket, rejections),
        b"lifecycle": Lifecycle(bucket, rejections),
        b"ownership": Ownership(bucket, rejections),
        b"encryption": Encryption(bucket, rejections),
        b"replication": Replication(bucket, rejections),
    }
