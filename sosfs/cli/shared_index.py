"""The indexes of attributes that mounts share in a bucket: found and removed (`sosfs clean --shared-attributes`).

A key alone is no proof: what is removed also begins as an index does.

Blocking. Not to be imported before it is needed: it loads libcurl.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from sosfs.attributes.shared.table import MAGIC
from sosfs.errors import Cause, StoreError
from sosfs.s3.batch_delete import goes_alone
from sosfs.s3.calls import SignedCalls
from sosfs.s3.paging import check_progress
from sosfs.s3.protocol import DELETE_MAX, Failure
from sosfs.s3.version_answers import VersionEntry, VersionMarker
from sosfs.tree.keys import HIDDEN

_PART = re.compile(rf"(?:.*/)?{re.escape(HIDDEN)}/v[0-9]+(?:-[0-9a-f]{{32}})?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Found:
    """What has the key of a part of an index: what is one (`ours`), and what somebody else has stored there."""

    ours: list[str]
    others: list[str]


def is_part(key: str) -> bool:
    """Whether a key is one of an index, that of the bucket or of a mount of one of its prefixes.

    What else somebody keeps in a directory of that name is no part of it.
    """
    return _PART.fullmatch(key) is not None


def look(calls: SignedCalls, prefix: str) -> Found:
    """All that has a key of an index below a prefix. Raises StoreError."""
    found = Found([], [])
    token, tokens = "", set[str]()
    while True:
        page = calls.list(prefix, delimiter="", after="", token=token, limit=1000)
        for listed in page.objects:
            if is_part(listed.key):
                side = found.ours if _is_ours(calls, listed.key, listed.version.size) else found.others
                side.append(listed.key)
        token = page.token
        if not token:
            return found
        check_progress(f"ListObjectsV2 {prefix!r}", token, tokens)


def _is_ours(calls: SignedCalls, key: str, size: int, version_id: str = "") -> bool:
    """Whether an object begins as a part of an index does, whole or damaged; not where it is gone by now."""
    if size < len(MAGIC):
        return False
    try:
        return calls.get(key, 0, len(MAGIC), "", version_id=version_id).body == MAGIC
    except StoreError as error:
        if error.cause is not Cause.ABSENT:
            raise
        return False


def remove(calls: SignedCalls, prefix: str, found: Found) -> list[Failure]:
    """Removes what is ours, and the old versions of their indexes where the bucket keeps any; returns which keys stay.

    Raises StoreError.
    """
    stay: dict[str, Failure] = {}
    for at in range(0, len(found.ours), DELETE_MAX):
        stay |= {failure.key: failure for failure in _remove_batch(calls, found.ours[at : at + DELETE_MAX])}
    for top in sorted({f"{prefix}{HIDDEN}/", *map(_top, found.ours)}):
        for key, version_id in _old_versions(calls, top):
            try:
                calls.delete(key, version_id=version_id)
            except StoreError as error:  # it may be locked, and others are not
                if error.cause is not Cause.DENIED:
                    raise
                stay[key] = Failure(key, error)
    return list(stay.values())


def _remove_batch(calls: SignedCalls, keys: list[str]) -> list[Failure]:
    """The keys of a batch that stay."""
    try:
        return calls.delete_many(keys)
    except StoreError as error:
        if not goes_alone(error):
            raise
    failures: list[Failure] = []
    for key in keys:
        try:
            calls.delete(key)
        except StoreError as error:
            failures.append(Failure(key, error))
    return failures


def _top(key: str) -> str:
    """The prefix of the index that a key is part of."""
    return key[: key.rindex("/") + 1]


def _old_versions(calls: SignedCalls, top: str) -> list[tuple[str, str]]:
    """Keys and versions below a prefix that are ours, with the delete markers of keys under which nothing else is."""
    try:
        entries = list(_versions(calls, top))
    except StoreError as error:
        if error.cause not in (Cause.DENIED, Cause.UNSUPPORTED):
            raise
        return []
    others = {
        (one.key, one.version_id)
        for one in entries
        if not one.is_marker and not _is_ours(calls, one.key, one.version.size, one.version_id)
    }
    keys = {key for key, _ in others}
    found = ((one.key, one.version_id, one.is_marker) for one in entries)
    return [(key, of) for key, of, is_marker in found if (key, of) not in others and not (is_marker and key in keys)]


def _versions(calls: SignedCalls, top: str) -> Iterator[VersionEntry]:
    after: VersionMarker | None = None
    seen = set[VersionMarker]()
    while True:
        page = calls.list_versions(top, delimiter="", after=after, limit=1000)
        yield from (entry for entry in page.entries if is_part(entry.key))
        after = page.following
        if after is None:
            return
        check_progress(f"ListObjectVersions {top!r}", after, seen)
