"""What a handler's error becomes: an OSError its errno, a bug EIO and a traceback in the log.

pyfuse3 ends the mount for whatever a handler raises but FUSEError; here is where that cannot happen.
"""

from __future__ import annotations

import errno
import functools
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pyfuse3

log = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Awaitable[Any]])

# What programs run into all the time and are told by the errno alone.
QUIET = frozenset(
    getattr(errno, name)
    for name in (
        *("ENOENT", "EEXIST", "ENOTEMPTY", "ENOTDIR", "EISDIR"),
        *("ENAMETOOLONG", "EILSEQ", "EINVAL", "EPERM", "ENODATA", "EXDEV"),
    )
)


def answered(handler: F) -> F:
    """Makes a handler raise nothing but FUSEError."""

    @functools.wraps(handler)
    async def guarded(*args: Any) -> Any:
        try:
            return await handler(*args)
        except pyfuse3.FUSEError:
            raise
        except OSError as error:
            level = logging.DEBUG if error.errno in QUIET else logging.INFO
            log.log(level, "%s: %s", handler.__name__, error)
            raise pyfuse3.FUSEError(error.errno or errno.EIO) from error
        except Exception as error:
            log.exception("%s failed: this is a bug in sosfs", handler.__name__)
            raise pyfuse3.FUSEError(errno.EIO) from error

    return guarded  # type: ignore[return-value]


def listing(handler: F) -> F:
    """As `answered`, for what reads a directory: ENOENT there is taken for its end (getdents(2)), so it is EIO.

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
