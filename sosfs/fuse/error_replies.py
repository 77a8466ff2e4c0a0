"""Turn what a handler raises into an errno: an OSError into its own, a bug into EIO.

pyfuse3 ends the mount for whatever a handler raises but FUSEError; here is where that cannot happen.
"""

from __future__ import annotations

import errno
import functools
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import pyfuse3

from sosfs.concurrency.interrupt import CURRENT
from sosfs.fuse.requests import CALLERS, NOTHING, NOWHERE, Opened, Places

log = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Awaitable[Any]])

# What programs run into all the time and are told by the errno alone.
QUIET = frozenset(
    getattr(errno, name)
    for name in (
        *("ENOENT", "EEXIST", "ENOTEMPTY", "ENOTDIR", "EISDIR"),
        *("ENAMETOOLONG", "EINVAL", "EPERM", "ENODATA", "EXDEV", "EINTR"),
    )
)


# What is done to its end whoever waits, and what is answered at once or has nobody to be told.
APART = frozenset({"rename", "unlink", "rmdir", "mkdir", "mknod", "symlink"})
CHANGES_NAMES = APART | {"create"}
UNWATCHED = frozenset({"forget", "release", "releasedir", "statfs"})


def answered(handler: F) -> F:
    """Makes a handler raise nothing but FUSEError, EINTR among them where its caller is gone (`requests`)."""
    name = handler.__name__

    @functools.wraps(handler)
    async def guarded(*args: Any) -> Any:
        try:
            if CURRENT.get() is not None or name in UNWATCHED:
                return await handler(*args)
            caller, places = _caller(args), _places(name, args)
            if name in APART:
                return await CALLERS.apart(name, caller, lambda: handler(*args), partial(_unmade, args[0]), places)
            return await CALLERS.serve(name, caller, partial(_opened, *args[:2]), lambda: handler(*args), places)
        except pyfuse3.FUSEError:
            raise
        except OSError as error:
            level = logging.DEBUG if error.errno in QUIET else logging.INFO
            log.log(level, "%s: %s", name, error)
            raise pyfuse3.FUSEError(error.errno or errno.EIO) from error
        except Exception as error:
            log.exception("%s failed: this is a bug in sosfs", name)
            raise pyfuse3.FUSEError(errno.EIO) from error

    return guarded  # type: ignore[return-value]


def answered_at_once(attempt: Callable[..., bool]) -> Callable[[F], F]:
    """As `answered`, for what can mostly be done without waiting for anything: `attempt` does it then, and tells so.

    It takes what the handler takes, and has changed nothing where it says no or raises OSError. A task of its own,
    which work that may outlive its caller needs, costs as much as all the rest of an unlink.
    """

    def wrap(handler: F) -> F:
        inner = answered(handler)

        @functools.wraps(handler)
        async def guarded(*args: Any) -> Any:
            try:
                with CALLERS.at_once(_caller(args)):
                    if CALLERS.is_free(_places(handler.__name__, args)) and attempt(*args):
                        return None
            except OSError as error:
                log.debug("%s, not at once: %s", handler.__name__, error)  # the handler says it to the caller
            except Exception as error:
                log.exception("%s failed: this is a bug in sosfs", handler.__name__)
                raise pyfuse3.FUSEError(errno.EIO) from error
            return await inner(*args)

        return guarded  # type: ignore[return-value]

    return wrap


def _caller(args: Sequence[Any]) -> int:
    """The thread that a request comes from; 0 where the kernel does not say."""
    return next((each.pid for each in args[-1:] if isinstance(each, pyfuse3.RequestContext)), 0)


def _places(name: str, args: Sequence[Any]) -> Places:
    """The directories whose lock the kernel has for a request."""
    if name not in CHANGES_NAMES:
        return NOWHERE
    parents = args[1:4:2] if name == "rename" else args[1:2]
    return Places(number for number in parents if isinstance(number, int))


async def _unmade(operations: Any, entry: Any) -> None:
    """The kernel was not told of the inode that was made for it."""
    if isinstance(entry, pyfuse3.EntryAttributes):
        await operations.forget([(entry.st_ino, 1)])


def _opened(operations: Any, handle: int = 0) -> Opened:
    """What the request on a handle is about, where these operations know."""
    opened = getattr(operations, "opened", None)
    return opened(handle) if opened else NOTHING


def listing(handler: F) -> F:
    """As `error_replies`, for what reads a directory: ENOENT there is taken for its end (getdents(2)), so it is EIO.

    A directory that was removed here while it is read is empty, which is an answer and no error.
    """
    inner = answered(handler)

    @functools.wraps(handler)
    async def guarded(*args: Any) -> Any:
        try:
            return await inner(*args)
        except pyfuse3.FUSEError as error:
            if error.errno != errno.ENOENT:
                raise
            log.info("%s: an absence is no end of a directory", handler.__name__)
            raise pyfuse3.FUSEError(errno.EIO) from error

    return guarded  # type: ignore[return-value]


LISTING = frozenset({"opendir", "readdir"})


def guard_of(name: str) -> Callable[[F], F]:
    """What makes a handler of this name raise only what the kernel may be told."""
    return listing if name in LISTING else answered
