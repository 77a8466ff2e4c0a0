"""Multipart uploads that were begun and never ended, and scratch objects: no files, and they cost money all the same.

Blocking. Not to be imported before it is needed: it loads libcurl.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Set
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from sosfs.errors import Cause, StoreError
from sosfs.journal.journal import Journal, left_over, upload_ids
from sosfs.s3 import scratch_key
from sosfs.s3.calls import SignedCalls
from sosfs.s3.paging import check_progress
from sosfs.s3.protocol import Upload


@dataclass(frozen=True, slots=True)
class Unfinished:
    """One upload with what has arrived of it."""

    upload: Upload
    parts: int
    size: int  # bytes


def listed(calls: SignedCalls, prefix: str, *, used: Set[str]) -> Iterator[Unfinished]:
    """All uploads below a prefix but for those that mounts of this machine go on with (`used`), by key.

    Raises StoreError.
    """
    after: tuple[str, str] | None = None
    seen = set[tuple[str, str]]()
    while True:
        uploads, after = calls.list_uploads(prefix, after)
        for upload in uploads:
            if upload.upload_id not in used and (found := _measured(calls, upload)):
                yield found
        if after is None:
            return
        check_progress("ListMultipartUploads", after, seen)


def _measured(calls: SignedCalls, upload: Upload) -> Unfinished | None:
    """The upload with its parts; None where it has ended meanwhile."""
    count = total = 0
    after, seen = "", set[str]()
    while True:
        try:
            parts, after = calls.list_parts(upload.key, upload.upload_id, after)
        except StoreError as error:
            if error.errno == errno.ENXIO:
                return None
            raise
        count, total = count + len(parts), total + sum(part.size for part in parts)
        if not after:
            return Unfinished(upload, count, total)
        check_progress(f"ListParts {upload.key!r}", after, seen)


def abort(calls: SignedCalls, key: str, upload_id: str) -> None:
    """Ends an upload; that it has ended already is as good. Raises StoreError."""
    try:
        calls.abort_multipart(key, upload_id)
    except StoreError as error:
        if error.errno != errno.ENXIO:
            raise


def end_of_journal(calls: SignedCalls, directory: Path, endpoint: str, bucket: str) -> tuple[int, int]:
    """Ends the uploads and removes the scratch objects that the journal of a directory knows, if it is this bucket's.

    Returns how many. Only where the journal is whole and holds no change, which would go on with its upload; and where
    no mount has it. Raises OSError.
    """
    left = left_over(directory)
    if left is None or not left.is_whole or left.changes or not (left.uploads or left.scratch):
        return 0, 0
    if left.owner.split(" ", 2)[:2] != [endpoint, bucket]:
        return 0, 0
    try:
        journal = Journal(directory, left.owner)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return 0, 0
    with closing(journal):
        if journal.rows:
            return 0, 0  # of a mount that has ended since
        uploads, scratch = journal.uploads(), journal.scratch()
        for upload_id, key, _ in uploads:
            abort(calls, key, upload_id)
            journal.drop_upload(upload_id)
        for key in scratch:
            calls.purge(key)
            journal.drop_scratch(key)
    return len(uploads), len(scratch)


def remove_forgotten(calls: SignedCalls, prefix: str, *, before: float) -> int:
    """Removes objects of zeros below a prefix that were stored `before` (epoch) and that no mount can need; how many.

    A mount that uses one has made it lately. What lacks the proof that a mount has stored it stays. Raises OSError.
    """
    page = calls.list(prefix + scratch_key.ZEROS, delimiter="/", after="", token="", limit=1000)
    forgotten = [
        one.key
        for one in page.objects
        if scratch_key.is_of_zeros(one.key.removeprefix(prefix))
        and (one.version.modified or before) < before
        and _is_proven(calls, one.key)
    ]
    for key in forgotten:
        calls.purge(key)
    return len(forgotten)


def _is_proven(calls: SignedCalls, key: str) -> bool:
    """Whether a mount has stored what is there now; not where nothing is there any more."""
    try:
        return scratch_key.is_proven(calls.head(key).properties)
    except StoreError as error:
        if error.cause is not Cause.ABSENT:
            raise
        return False


def in_use(directories: Iterator[Path]) -> set[str]:
    """The ids of the uploads that journals know, also of mounts that go on."""
    return {upload_id for directory in directories for upload_id in upload_ids(directory)}
