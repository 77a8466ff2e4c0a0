"""The switch of a running mount between read-only and read-write (`mount -o remount,ro` and `remount,rw`).

The kernel has a flag of its own for that, which only root may change in a mount that is there; what the mount table
shows is that flag. This switch holds for everybody's mounts: with it on, whatever would change something is EROFS. What
was changed before goes on to the bucket.

Concurrency: trio thread only.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable
from typing import Any

import pyfuse3

from sosfs.fuse.requests import CALLERS

HANDLERS = tuple(name for name in vars(pyfuse3.Operations) if not name.startswith("_"))
CHANGING = frozenset(
    {"setattr", "mknod", "mkdir", "unlink", "rmdir", "symlink", "rename", "link", "setxattr", "removexattr"}
)
OPENING = frozenset({"open", "create"})


class Switch(pyfuse3.Operations):
    """The requests of a mount, passed on to what answers them unless they are refused."""

    def __init__(self, operations: pyfuse3.Operations, *, is_read_only: bool) -> None:
        super().__init__()
        self._is_read_only = is_read_only
        self._writers: set[int] = set()  # handles
        self._opening_now = 0  # files that are about to be open for writing
        self._changing_now = 0  # other requests under way that change something
        for name in HANDLERS:
            handler = getattr(operations, name)
            if name in CHANGING:
                handler = self._refusing(handler)
            elif name in OPENING:
                handler = self._opening(handler, is_creating=name == "create")
            elif name == "release":
                handler = self._releasing(handler)
            setattr(self, name, handler)

    def read_only(self) -> None:
        """From now on nothing is changed. Raises EBUSY, as the kernel does, where a file is open for writing.

        And where something is just being changed, be it for a caller that is gone.
        """
        if writers := len(self._writers) + self._opening_now:
            count = "1 file is" if writers == 1 else f"{writers} files are"
            raise OSError(errno.EBUSY, f"{count} open for writing")
        if self._changing_now or CALLERS.has_left:
            raise OSError(errno.EBUSY, "something is being changed")
        self._is_read_only = True

    def read_write(self) -> None:
        """From now on changes are taken again."""
        self._is_read_only = False

    def _refusing(self, handler: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def guarded(*args: Any) -> Any:
            self._require()
            self._changing_now += 1
            try:
                return await handler(*args)
            finally:
                self._changing_now -= 1

        return guarded

    def _opening(self, handler: Callable[..., Awaitable[Any]], *, is_creating: bool) -> Callable[..., Awaitable[Any]]:
        async def guarded(*args: Any) -> Any:
            *_, flags, _ctx = args
            if not is_creating and flags & os.O_ACCMODE == os.O_RDONLY and not flags & os.O_TRUNC:
                return await handler(*args)
            self._require()
            self._opening_now += 1
            try:
                opened = await handler(*args)
            finally:
                self._opening_now -= 1
            self._writers.add((opened[0] if is_creating else opened).fh)
            return opened

        return guarded

    def _releasing(self, handler: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
        async def guarded(handle: int) -> None:
            self._writers.discard(handle)
            await handler(handle)

        return guarded

    def _require(self) -> None:
        if self._is_read_only:
            raise pyfuse3.FUSEError(errno.EROFS)
