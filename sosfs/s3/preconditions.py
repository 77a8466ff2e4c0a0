"""Keep a condition on a write: by the server where it honours it, else by a HEAD compare.

A HEAD compare narrows the race and cannot close it. Also here: how a lost answer is told from a lost race, and
an absence from a refusal. Each function asks through the `head` it is given and keeps no state; trio thread.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from http import HTTPStatus
from typing import Protocol, TypeVar

from sosfs.errors import Cause, StoreError, unanswered
from sosfs.s3 import recognition
from sosfs.s3.capabilities import Quoting
from sosfs.s3.protocol import Condition, Detail, Guard, Object, Page, Properties, Slice, Version

T = TypeVar("T")
Head = Callable[[str], Awaitable[Object]]


class Store(Protocol):
    """What of an `ObjectStore` tells whether an object is there."""

    async def head(self, key: str, *, detail: Detail = Detail.USUAL) -> Object: ...
    async def list(self, prefix: str, *, delimiter: str = "/", limit: int = 1000) -> Page: ...


def stale(request: str, detail: str, error: StoreError | None = None) -> StoreError:
    """ESTALE for `request`, keeping what the server's own `error` said."""
    code, status = (error.code, error.status) if error else ("", 0)
    return StoreError(errno.ESTALE, request, code=code, status=status, detail=detail)


def check_etag(request: str, found: Version, etag: str) -> None:
    """ESTALE where `etag` is given and `found` has another."""
    if etag and found.etag != etag:
        raise stale(request, f"{found.etag} is there, not {etag}")


def checked(request: str, found: Slice, start: int, stop: int, etag: str) -> Slice:
    """The bytes `[start, stop)`, if they are all there are, else EIO. ESTALE where they are not of `etag`, if given."""
    check_etag(request, found.object.version, etag)
    due = max(0, min(stop, found.object.version.size) - start)
    if len(found.body) != due:
        raise unanswered(request, f"{len(found.body)} bytes where {due} were due")
    return found


async def check_still(head: Head, request: str, key: str, version: Version) -> None:
    """ESTALE where `key` is not at `version` any more."""
    here = (await head(key)).version
    if not _is(here, version, request):
        raise stale(request, f"{here} is there, not {version}")


def _is(here: Version, version: Version, request: str) -> bool:
    """Whether this version is there. EIO where two sizes are told of the same bytes, which nobody can have changed."""
    if here.etag == version.etag and here.size != version.size and not _is_later(here, version):
        raise StoreError(errno.EIO, request, detail=f"{here} is there, which cannot be if {version} was")
    return here.same_as(version)


def _is_later(here: Version, version: Version) -> bool:
    return here.modified is not None and version.modified is not None and here.modified > version.modified


async def header_for(
    head: Head, request: str, key: str, condition: Condition, *, absent: bool, match: Quoting | None
) -> dict[str, str]:
    """The header that carries `condition`, if the server honours it: `absent` If-None-Match, `match` If-Match.

    Else no header, after a HEAD that shows the condition holds; ESTALE if it doesn't.
    """
    if isinstance(condition, Version):
        if match:
            return {"If-Match": match.of(condition.etag)}
    elif condition is Guard.NONE:
        return {}
    elif absent:
        return {"If-None-Match": "*"}
    if await holds(head, key, condition):
        return {}
    raise stale(request, "the condition does not hold")


async def holds(head: Head, key: str, condition: Condition) -> bool:
    """Whether `condition` holds at this moment."""
    found = await _present(head, key)
    if isinstance(condition, Version):
        return found is not None and _is(found.version, condition, f"HeadObject {key!r}")
    return condition is Guard.NONE or found is None


async def keeping(
    head: Head,
    request: str,
    key: str,
    condition: Condition,
    send: Callable[[Mapping[str, str]], Awaitable[T]],
    ours: Callable[[StoreError], Awaitable[T | None]],
    *,
    absent: bool,
    match: Quoting | None,
    markers: bool,
) -> T:
    """What `send` returns, called with the header for `condition` (`header_for`), or what `ours` finds after an error.

    It is called again, without the header, where the server refused what holds all the same: Ceph 16 refuses
    If-Match where versions are kept, and If-None-Match where a marker of deletion stands (`markers`: there may be
    one). ESTALE where another version is there, or none; EIO where nobody but the server knows why it refused.
    """
    sent = await header_for(head, request, key, condition, absent=absent, match=match)
    try:
        return await send(sent)
    except StoreError as error:
        there = await ours(error)
        if there is not None:
            return there
        if condition is Guard.NONE or error.cause not in (Cause.CONFLICT, Cause.ABSENT):
            raise
        is_sure = "If-None-Match" in sent and error.status == HTTPStatus.PRECONDITION_FAILED and not markers
        if is_sure or not await holds(head, key, condition):
            raise stale(request, "the condition does not hold", error) from error
        if not sent or error.status != HTTPStatus.PRECONDITION_FAILED:
            raise refused_for_nothing(request, error) from error
    try:
        return await send({})
    except StoreError as error:
        if error.cause in (Cause.CONFLICT, Cause.ABSENT):
            raise refused_for_nothing(request, error) from error
        raise


def refused_for_nothing(request: str, error: StoreError) -> StoreError:
    """EIO for what was refused although its condition holds, or it has none."""
    detail = "refused, although nobody has changed it"
    return StoreError(errno.EIO, request, code=error.code, status=error.status, detail=detail)


async def landed(
    head: Head, key: str, token: str, properties: Properties | None, *, instead_of: Condition
) -> Version | None:
    """What our own write made, after an answer that can't tell: it was lost, and the second try refused.

    The `token` must be the object's (`recognition`), and the metadata hold our mtime to the nanosecond: who wrote the
    very same at the same time lost nothing. None where it is not there.
    """
    found = await _present(head, key)
    if found is None or not recognition.is_ours(token, found, instead_of=instead_of):
        return None
    if properties is not None and found.properties.metadata != properties.metadata:
        return None
    return replace(found.version, modified=None)


async def look(store: Store, key: str, *, detail: Detail = Detail.USUAL) -> Object:
    """As `ObjectStore.head`; ENOENT also after a refusal, where a listing shows that the key is not there.

    Who may not list the whole bucket is told 403 of what is not there (S3 API, HeadObject).
    """
    try:
        return await store.head(key, detail=detail)
    except StoreError as error:
        if error.cause is Cause.DENIED and await _is_unlisted(store, key):
            raise StoreError(errno.ENOENT, error.request, status=error.status, detail="it is not listed") from error
        raise


async def find(store: Store, key: str) -> Object | None:
    """All of an object, None where there is none; a refusal as in `look`."""
    try:
        return await look(store, key, detail=Detail.WHOLE)
    except StoreError as error:
        if error.cause is not Cause.ABSENT:
            raise
        return None


async def _is_unlisted(store: Store, key: str) -> bool:
    try:
        page = await store.list(key, delimiter="", limit=1)
    except StoreError as error:
        if error.cause is not Cause.DENIED:
            raise
        return False
    first = page.objects[0].key if page.objects else ""
    return first != key and (bool(first) or not page.token)


async def _present(head: Head, key: str) -> Object | None:
    try:
        return await head(key)
    except StoreError as error:
        if error.cause is not Cause.ABSENT:
            raise
        return None
