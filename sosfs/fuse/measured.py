"""Every request of the kernel, counted and timed; whose it is and for which path only while somebody watches.

Around all handlers of a mount, whatever serves them: two microseconds a request, of some 140.

Concurrency: trio thread only.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from typing import Any, Protocol

import pyfuse3

from sosfs.fuse.requests import Opened
from sosfs.tracing.callers import caller_of, opener_of
from sosfs.tracing.meters import METERS
from sosfs.tracing.requests import CURRENT, KernelRequest

# What the first argument of a handler is.
BY_HANDLE = frozenset({"readdir", "releasedir", "fsyncdir", "read", "write", "flush", "fsync", "release"})
BY_NAME = frozenset({"lookup", "mknod", "mkdir", "symlink", "unlink", "rmdir", "create", "rename"})
BY_INODE = frozenset(
    {"getattr", "setattr", "readlink", "open", "opendir", "getxattr", "setxattr", "listxattr", "removexattr", "link"}
)
ABOUT_NOTHING = frozenset({"statfs", "forget"})

Handler = Callable[..., Any]


class Subjects(Protocol):
    """What numbers stand for, as a user finds it; "" for what is not known any more."""

    def path(self, number: int) -> str:
        """Of an inode."""

    def opened(self, handle: int) -> Opened:
        """Of an open file or directory."""


def measure(operations: pyfuse3.Operations) -> None:
    """From now on each request to these operations, which are `Subjects` as well, is counted."""
    for name in BY_HANDLE | BY_NAME | BY_INODE | ABOUT_NOTHING:
        setattr(operations, name, _measured(name, getattr(operations, name), operations))


def _measured(name: str, handler: Handler, subjects: Any) -> Handler:
    seen = _SEEN.get(name)

    async def measured(*args: Any) -> Any:
        request = KernelRequest(name)
        if METERS.watchers:
            _describe(request, subjects, args)
        token = CURRENT.set(request)
        METERS.kernel_under_way += 1
        began = time.perf_counter()
        try:
            result = await handler(*args)
            if seen is not None:
                seen(request, result)
            return result
        except pyfuse3.FUSEError as error:
            request.errno = error.errno
            raise
        finally:
            seconds = time.perf_counter() - began
            METERS.kernel_under_way -= 1
            CURRENT.reset(token)
            METERS.answered(request, seconds)

    return measured


def _read(request: KernelRequest, result: Any) -> None:
    request.bytes = len(result)


def _written(request: KernelRequest, result: Any) -> None:
    request.bytes = result


def _looked_up(request: KernelRequest, result: Any) -> None:
    if not result.st_ino:  # an absence that the kernel may remember is no error for pyfuse3
        request.errno = errno.ENOENT


_SEEN: dict[str, Callable[[KernelRequest, Any], None]] = {"read": _read, "write": _written, "lookup": _looked_up}


def _describe(request: KernelRequest, subjects: Subjects, args: tuple[Any, ...]) -> None:
    """Notes path and caller."""
    name = request.operation
    if name in BY_HANDLE:
        opened = subjects.opened(args[0])
        request.path, request.caller = opened.path, opener_of(opened.opener)
        return
    if name in BY_NAME:
        request.path = _below(subjects, args[0], args[1])
        if name == "rename":
            request.target = _below(subjects, args[2], args[3])
    elif name in BY_INODE:
        request.path = subjects.path(args[0])
    if args and isinstance(args[-1], pyfuse3.RequestContext):
        request.caller = caller_of(args[-1].pid)


def _below(subjects: Subjects, directory: int, name: bytes) -> str:
    return os.path.join(subjects.path(directory), os.fsdecode(name))  # noqa: PTH118 - no path to be made of
