"""The bucket as it was, `.sosfs/at/TIME/`: which times there are, and what is refused.

Below a time are inodes of their own (`filesystem.past`); here is only the door. Listed are the times that are in use.
A time that is none, or lies in the future, and a bucket without versions are told in `.sosfs/errors`. Concurrency:
trio thread only.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Mapping
from typing import Protocol

from sosfs.config import moments
from sosfs.control.nodes import Folder, Node
from sosfs.control.rejected_texts import Rejections
from sosfs.errors import Cause, StoreError
from sosfs.log.escaping import printable
from sosfs.s3.bucket_settings import BucketSettings, Versioning


class Doorway(Folder):
    """A directory that is not in this tree: its number is that of the root of another one."""

    def __init__(self, number: int, moment: float) -> None:
        super().__init__(("door", number))
        self.number = number
        self.time_ns = int(moment * 1e9)

    async def children(self) -> Mapping[bytes, Node]:
        """Never asked here."""
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))


class Moments(Protocol):
    """The moments at which the bucket is shown: `filesystem.past.Past`."""

    def number_at(self, name: str, moment: float) -> int:
        """The number of the bucket's root as it was then. Raises EBUSY where too many moments are in use."""

    def known(self, name: str) -> tuple[int, float] | None:
        """The number and the moment that a name stands for, while it is in use."""

    @property
    def names(self) -> list[str]:
        """Those in use."""


class VersioningRequired:
    """Whether the bucket keeps versions; asked until it does."""

    def __init__(self, bucket: BucketSettings) -> None:
        self._bucket = bucket
        self._is_sure = False

    async def check(self) -> None:
        """Raises EOPNOTSUPP where no versions are kept, and what else the server answers."""
        if self._is_sure:
            return
        try:
            state = await self._bucket.versioning()
        except StoreError as error:
            if error.cause is Cause.UNSUPPORTED:
                raise OSError(errno.EOPNOTSUPP, "the server keeps no versions of objects") from error
            if error.cause is not Cause.DENIED:
                raise
            return  # the listing will tell
        if state is Versioning.OFF:
            why = "the bucket keeps no versions: 'echo enabled > .sosfs/bucket/versioning' has it keep those to come"
            raise OSError(errno.EOPNOTSUPP, why)
        self._is_sure = True


class PastFolder(Folder):
    """The directory of all moments."""

    is_lasting = True

    def __init__(self, past: Moments, required: VersioningRequired, rejections: Rejections) -> None:
        super().__init__("at")
        self._past = past
        self._required = required
        self._rejections = rejections

    async def children(self) -> Mapping[bytes, Node]:
        """The times that are in use."""
        found = {name: self._past.known(name) for name in self._past.names}
        return {os.fsencode(name): Doorway(*known) for name, known in found.items() if known}

    async def child(self, name: bytes) -> Node:
        """The bucket as it was at the time of that name.

        Raises ENOENT for what is no time, EINVAL for one in the future, EOPNOTSUPP where no versions are kept.
        """
        text = os.fsdecode(name)
        if known := self._past.known(text):
            return Doorway(*known)
        try:
            moment = moments.moment(text, now=time.time())
        except ValueError as error:
            number = errno.EINVAL if isinstance(error, moments.FutureError) else errno.ENOENT
            raise self._rejected(text, OSError(number, str(error))) from error
        try:
            await self._required.check()
            return Doorway(self._past.number_at(text, moment), moment)
        except OSError as error:
            raise self._rejected(text, error) from error

    def _rejected(self, text: str, error: OSError) -> OSError:
        self._rejections.add(f"at/{printable(text)}", error, outcome="is not shown")
        return error
