"""Compare the ETag of a PUT or a part with the MD5 of what was sent.

A part's bytes are compared by a server that honours their signed SHA-256 (`capabilities`): that is half the CPU where
the processor has instructions for it, and nothing more in the clear, where it is signed anyway.
What arrived otherwise, or was refused for that, is sent once more, then it is EIO. A damaged object has replaced what
was there before: the second try is on condition that it still stands there, and so must be every later one.

No state; the hashing is done in the thread that sent.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from hashlib import md5
from typing import TYPE_CHECKING, TypeVar

from sosfs.errors import Cause, StoreError
from sosfs.s3.checksums import in_etag
from sosfs.s3.file_body import FileBody, hashed
from sosfs.s3.protocol import Condition, Guard, Object, Part, PartBody, Version

if TYPE_CHECKING:
    from sosfs.s3.calls import SignedCalls

T = TypeVar("T", Version, Part)

log = logging.getLogger(__name__)

DAMAGED = frozenset({"BadDigest", "XAmzContentSHA256Mismatch"})  # the server found out by itself, and stored nothing


class DamagedWrite(StoreError):
    """EIO: the server took over other bytes than were sent. `left` is the version that stands there now, if any."""

    def __init__(self, request: str, left: Version | None = None) -> None:
        detail = "the server's hash of what it took over is not that of what was sent (--verify none does not compare)"
        super().__init__(errno.EIO, request, detail=detail)
        self.left = left


def compared(
    wanted: bool, call: Callable[[SignedCalls], T], body: PartBody, digest: str = ""
) -> Callable[[SignedCalls], tuple[T, bool]]:
    """Makes a call that sends `body` tell, too, whether its ETag is the MD5 of other bytes, if that is `wanted`.

    `digest` is the body's MD5 in hex where it is known.
    """

    def sent(calls: SignedCalls) -> tuple[T, bool]:
        if wanted and isinstance(body, FileBody):
            body.sum()
        made = call(calls)
        if not wanted or in_etag(made.etag) is None:
            return made, False
        known = digest or (body.sent_md5 if isinstance(body, FileBody) else "")
        return made, made.etag.lower() != (known or hashed(partial(md5, usedforsecurity=False), body).hexdigest())

    return sent


async def object_arrived(
    request: str,
    put: Callable[[Condition], Awaitable[tuple[Version, bool]]],
    condition: Condition,
    head: Callable[[], Awaitable[Object]],
) -> Version:
    """The object that `put` made under a condition, or the next time. Raises what it raises, and `DamagedWrite`."""
    made: Version | None = None
    try:
        made, is_damaged = await put(condition)
    except StoreError as error:
        if error.code not in DAMAGED:
            raise
    else:
        if not is_damaged:
            return made
    log.info("%s: other bytes arrived than were sent; they are sent again", request)
    try:
        again, is_damaged = await put(made if made is not None and condition is not Guard.NONE else condition)
    except StoreError as error:
        if made is None or error.cause in (Cause.CONFLICT, Cause.ABSENT):
            raise  # nothing was stored, or another client has replaced or removed it
        raise DamagedWrite(request, made) from error
    if is_damaged and not await _is_opaque(head):  # encrypted under KMS since the probe: the ETag is no hash
        raise DamagedWrite(request, again)
    return again


async def _is_opaque(head: Callable[[], Awaitable[Object]]) -> bool:
    try:
        return (await head()).is_opaque
    except StoreError as error:
        log.debug("nothing is known of its encryption: %s", error)
        return False


async def part_arrived(request: str, send: Callable[[], Awaitable[tuple[Part, bool]]]) -> Part:
    """The part that `send` made, or the next time, which replaces it. Raises what it raises, and `DamagedWrite`."""
    try:
        made, is_damaged = await send()
    except StoreError as error:
        if error.code not in DAMAGED:
            raise
    else:
        if not is_damaged:
            return made
    log.info("%s: other bytes arrived than were sent; they are sent again", request)
    made, is_damaged = await send()
    if is_damaged:
        raise DamagedWrite(request)
    return made
