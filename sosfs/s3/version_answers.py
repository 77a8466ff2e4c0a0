"""What the answers to ListObjectVersions say: versions and delete markers of keys, page by page.

The rules are those of `listing_answers`: a page must be one for what was asked, or it is a `ParseError`. The entries
of a page come in the order of keys, the newest of each key first; servers that list delete markers apart are sorted.
Pure functions, safe from any thread.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from sosfs.s3.http_headers import TIME_END, bare_etag, class_of, is_etag
from sosfs.s3.listing_answers import SIZE_MAX, is_truncated, require_page, unquoted
from sosfs.s3.protocol import UNKNOWN, Version
from sosfs.s3.xml import ParseError, fields, name_of, root_of

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class VersionEntry:
    """A version of an object, or a delete marker, as a listing shows it.

    `modified` is in seconds since the epoch, with the fractions that the server tells. `version` is `UNKNOWN` for a
    marker, and for a version of which the listing tells nonsense.
    """

    key: str
    version_id: str
    modified: float
    is_latest: bool
    is_marker: bool = False
    version: Version = UNKNOWN
    storage_class: str | None = None


@dataclass(frozen=True, slots=True)
class VersionMarker:
    """After which entry a page begins; with an empty `version_id` after all of that key, or of that folded prefix."""

    key: str
    version_id: str = ""


@dataclass(frozen=True, slots=True)
class VersionPage:
    """One page: entries, prefixes folded at the delimiter, and where the next page begins (None after the last)."""

    entries: tuple[VersionEntry, ...]
    prefixes: tuple[str, ...]
    following: VersionMarker | None


def version_page(body: bytes, prefix: str, delimiter: str, after: VersionMarker | None = None) -> VersionPage:
    """One page of ListObjectVersions for a prefix, asked with `encoding-type=url`; the first one without `after`."""
    root = root_of(body, "ListVersionsResult")
    told = fields(root)
    plain = unquoted if told.get("EncodingType") == "url" else str
    entries: list[VersionEntry] = []
    prefixes: list[str] = []
    for element in root:
        if (name := name_of(element)) in ("Version", "DeleteMarker"):
            found = fields(element)
            entries.append(_entry(plain(found["Key"]), found, is_marker=name == "DeleteMarker"))
        elif name == "CommonPrefixes":
            prefixes.append(plain(fields(element)["Prefix"]))
    if after is None and told.get("KeyMarker"):
        raise ParseError(f"a later page of a listing of {prefix!r} where the first was due")
    require_page(told, [entry.key for entry in entries], prefixes, prefix, delimiter)
    entries.sort(key=lambda entry: (entry.key.encode(), not entry.is_latest, -entry.modified))
    following = _following(told, entries, prefixes, plain) if is_truncated(told) else None
    return VersionPage(tuple(entries), tuple(prefixes), following)


def _entry(key: str, found: Mapping[str, str], *, is_marker: bool) -> VersionEntry:
    """Raises LookupError or ValueError without an id or a time: it cannot be told when it was there."""
    moment = datetime.fromisoformat(found["LastModified"])
    modified = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    if not 0 <= modified < TIME_END:
        raise ValueError(f"changed at {moment}")
    is_latest = found.get("IsLatest", "").strip().lower() == "true"
    version_id = found["VersionId"] or "null"
    if is_marker:
        return VersionEntry(key, version_id, modified, is_latest, is_marker=True)
    version = _version(key, found, int(modified))
    storage_class = class_of(found.get("StorageClass", ""))
    return VersionEntry(key, version_id, modified, is_latest, version=version, storage_class=storage_class)


def _version(key: str, found: Mapping[str, str], modified: int) -> Version:
    try:
        etag, size = bare_etag(found["ETag"]), int(found["Size"])
        if is_etag(etag) and 0 <= size <= SIZE_MAX:
            return Version(etag, size, modified)
    except (LookupError, ValueError) as error:
        log.info("a listing tells nonsense of a version of %r: %r", key, error)
    return UNKNOWN


def _following(
    told: Mapping[str, str], entries: list[VersionEntry], prefixes: list[str], plain: Callable[[str], str]
) -> VersionMarker:
    said = told.get("NextKeyMarker", "")
    if not said:
        raise ParseError("more versions follow, but nothing tells after which")
    # Not all servers that encode keys encode this one.
    shown = {entry.key for entry in entries[-1:]} | set(prefixes[-1:])
    return VersionMarker(said if said in shown else plain(said), told.get("NextVersionIdMarker", ""))


def to_token(marker: VersionMarker, decided: str) -> str:
    """A marker as the token of a `Page`, with the last key of which it is known what it was."""
    return json.dumps([marker.key, marker.version_id, decided])


def of_token(token: str) -> tuple[VersionMarker | None, str]:
    """What `to_token` was given; (None, "") for the token of a first page."""
    if not token:
        return None, ""
    key, version_id, decided = json.loads(token)
    return VersionMarker(key, version_id), decided
