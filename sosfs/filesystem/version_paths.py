"""Which keys a path of a mount stands for among all that have versions, and the other way round.

A path need not be there any more, so no listing is asked: names say what they are, but for those that stand for a
segment longer than a name can be. Concurrency: trio thread only.
"""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator

from sosfs.ipc.commands import Names
from sosfs.s3.version_history import Entries, KeyByKey, VersionHistory
from sosfs.tree import keys


class VersionPaths:
    """The keys with versions of a mount of `prefix`."""

    def __init__(self, history: VersionHistory, prefix: str) -> None:
        self._history = history
        self._prefix = prefix

    def key_of(self, path: Names) -> str:
        """The key of a file, without a slash at its end; that of the root is the prefix.

        Raises OSError: ENAMETOOLONG for a name that only a listing can unfold, EINVAL for a control file.
        """
        if path and path[0] == keys.CONTROL.encode():
            raise OSError(errno.EINVAL, "a control file, which is not in the bucket", os.fsdecode(b"/".join(path)))
        segments = []
        for name in keys.meant_path(path):
            parsed = keys.parse(name)
            if parsed.form is keys.Form.FOLDED:
                raise OSError(errno.ENAMETOOLONG, "its key is longer than a name can be", os.fsdecode(name))
            segments.append(parsed.segment)
        return self._prefix + "/".join(segments)

    def shown(self, key: str) -> str:
        """The path of a key, for the user; a directory's ends with a slash."""
        below = key.removeprefix(self._prefix)
        names = [os.fsdecode(keys.name_of(segment)) for segment in below.removesuffix("/").split("/")]
        return "/".join(names) + ("/" if below.endswith("/") else "")

    async def groups(self, place: str) -> AsyncIterator[list[Entries]]:
        """The entries of what is at `place` and below it, key by key, some keys at a time. Raises StoreError."""
        if place != self._prefix and (entries := await self._history.of_key(place)):
            yield [entries]
        below = KeyByKey(self._history, place if place == self._prefix else f"{place}/")
        while not below.is_done:
            yield await below.following()
