"""The indexes of attributes that mounts share in a bucket: found and removed (`sosfs clean --shared-attributes`).

Blocking. Not to be imported before it is needed: it loads libcurl.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from sosfs.errors import Cause, StoreError
from sosfs.s3.calls import SignedCalls
from sosfs.s3.paging import check_progress
from sosfs.s3.protocol import DELETE_MAX, Failure
from sosfs.tree.keys import HIDDEN

_PART = re.compile(rf"(?:.*/)?{re.escape(HIDDEN)}/v[0-9]+(?:-[0-9a-f]{{32}})?", re.DOTALL)


def is_part(key: str) -> bool:
    """Whether a key is one of an index, that of the bucket or of a mount of one of its prefixes.

    What else somebody keeps in a directory of that name is no part of it.
    """
    return _PART.fullmatch(key) is not None


def keys(calls: SignedCalls, prefix: str) -> list[str]:
    """The keys of all indexes below a prefix. Raises StoreError."""
    found: list[str] = []
    token, tokens = "", set[str]()
    while True:
        page = calls.list(prefix, delimiter="", after="", token=token, limit=1000)
        found += [listed.key for listed in page.objects if is_part(listed.key)]
        token = page.token
        if not token:
            return found
        check_progress(f"ListObjectsV2 {prefix!r}", token, tokens)


def remove(calls: SignedCalls, prefix: str, found: list[str]) -> list[Failure]:
    """Removes keys, and the old versions of their indexes where the bucket keeps any; returns which keys stay.

    Raises StoreError.
    """
    stay: dict[str, Failure] = {}
    for at in range(0, len(found), DELETE_MAX):
        stay |= {failure.key: failure for failure in calls.delete_many(found[at : at + DELETE_MAX])}
    for top in sorted({f"{prefix}{HIDDEN}/", *map(_top, found)}):
        try:
            old = list(_versions(calls, top))
        except StoreError as error:
            if error.cause not in (Cause.DENIED, Cause.UNSUPPORTED):
                raise
            old = []
        for key, version_id in old:
            try:
                calls.delete(key, version_id=version_id)
            except StoreError as error:  # it may be locked, and others are not
                if error.cause is not Cause.DENIED:
                    raise
                stay[key] = Failure(key, error)
    return list(stay.values())


def _top(key: str) -> str:
    """The prefix of the index that a key is part of."""
    return key[: key.rindex("/") + 1]


def _versions(calls: SignedCalls, top: str) -> Iterator[tuple[str, str]]:
    after = None
    while True:
        page = calls.list_versions(top, delimiter="", after=after, limit=1000)
        yield from ((entry.key, entry.version_id) for entry in page.entries if is_part(entry.key))
        if page.following is None or page.following == after:
            return
        after = page.following
