"""Find out which preconditions a server honours, on a scratch key.

Servers that ignore a condition answer 200, so the only way to know is a condition that does not hold. Ceph 16
takes the ETag of If-Match on PUT without its quotes only, and ignores conditions on CompleteMultipartUpload
and the pins of copies. It compares a body with the SHA-256 that was signed, which others (moto) do not. From when on
a bucket keeps versions it refuses If-Match on PUT whatever is there: `S3Store` sees that, and counts it as not
honoured. Until the probe has run nothing counts as honoured. What a limited key may not do is found out before
anything is stored, so that nothing stays behind; what the server would not take from this mount at all, its encryption
or its storage class, shows here too. Nothing is stored where it could not be removed: where versions are kept that
this key may not remove, and where the bucket locks what is stored (Object Lock). In the first case the first delete, by
which alone it shows whether the key may delete, leaves a marker for good; where an earlier one has, there is no other.
Blocks; runs in a thread.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from hashlib import md5, sha256
from typing import TYPE_CHECKING

from sosfs.errors import Cause, StoreError
from sosfs.s3 import scratch_key
from sosfs.s3.content_md5 import asks_for_md5
from sosfs.s3.protocol import NO_UPLOAD, Conditions, Part, Properties, Right
from sosfs.s3.upload_check import DAMAGED
from sosfs.s3.xml import UnclearBatch

if TYPE_CHECKING:
    from sosfs.s3.calls import SignedCalls

log = logging.getLogger(__name__)

CLEARING = 3.0  # seconds for which what fails is tried again: the user waits for the mount
PAUSE = 0.1
_BODY = b"sosfs"
_OTHER = "0" * 32  # the ETag of nothing that anybody has stored
_ABSENT = {"If-None-Match": "*"}
_NULL = "null"  # the id of a version that any bucket may have


class Quoting(Enum):
    """How an ETag is written in If-Match."""

    QUOTED = '"{}"'  # RFC 9110
    BARE = "{}"  # Ceph 16, on PUT

    def of(self, etag: str) -> str:
        return self.value.format(etag)


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What the server honours; whatever it doesn't is checked with a HEAD instead."""

    known: bool = False
    absent: bool = False  # If-None-Match: * on PUT
    match: Quoting | None = None  # If-Match on PUT
    complete: bool = False  # both on CompleteMultipartUpload
    copy_pin: bool = False  # x-amz-copy-source-if-match on CopyObject
    part_pin: bool = False  # the same on UploadPartCopy
    delete_pin: bool = False  # If-Match on DeleteObject, tried where no versions are kept
    batch_pin: bool = False  # the ETag of a key in DeleteObjects
    compares: bool = False  # a body that has not the signed SHA-256 is refused
    hashes: bool = True  # the ETag of a PUT is the MD5 of its bytes; AWS makes others where it encrypts
    denied: frozenset[Right] = frozenset()  # what this key may not do
    markers: bool = False  # the bucket keeps markers of what was deleted, which some conditions take for an object

    @property
    def conditions(self) -> Conditions:
        """HONOURED only where both conditions of PUT are."""
        if not self.known:
            return Conditions.UNKNOWN
        return Conditions.HONOURED if self.absent and self.match else Conditions.IGNORED


def probe(calls: SignedCalls, key: str, *, storage_class: str = "") -> Capabilities:
    """What the server honours, tried on `key`, which must be nobody's and is removed again.

    A key that may not write or remove there learns nothing (UNKNOWN), nor does anybody where what is stored may stay
    for good. Any other failure is raised: so is EPROTO of a server that does not encrypt with the mount's key, and its
    refusal of the storage class.
    """
    try:
        found = _find_out(calls, key, storage_class)
    except StoreError:
        _clear(calls, key)
        raise
    return found


def _find_out(calls: SignedCalls, key: str, storage_class: str) -> Capabilities:
    if _has_left_a_marker(calls, key):
        return Capabilities(markers=True)
    try:
        marker = calls.delete(key)
    except StoreError as error:
        if error.cause is not Cause.DENIED:
            raise
        writes = Right.WRITE if _may_not_store(calls, key) else Right.DELETE
        return Capabilities(denied=frozenset({Right.DELETE, writes}))
    if marker and not _is_removable(calls, key, marker):
        return Capabilities(markers=True)
    found = _probe(calls, key, storage_class)
    if found.known and not marker:  # else what is removed can be brought back, and a removal that is tried leaves more
        found = _with_pinned_removals(calls, key, found)
    _clear(calls, key)
    return replace(found, markers=bool(marker))


def _has_left_a_marker(calls: SignedCalls, key: str) -> bool:
    """Whether versions are kept that this key may not remove, by what an earlier probe has left.

    That may have been another key's: of one that may not store there nothing is known by it.
    """
    try:
        calls.delete(key, version_id=_NULL)
    except StoreError as error:
        if error.cause is not Cause.DENIED:
            return False
    else:
        return False
    try:
        found = calls.list_versions(scratch_key.beginning(key), delimiter="", after=None, limit=1)
    except StoreError as error:
        if error.cause not in (Cause.DENIED, Cause.UNSUPPORTED):
            raise
        return False
    return any(entry.is_marker for entry in found.entries) and not _may_not_store(calls, key)


def _may_not_store(calls: SignedCalls, key: str) -> bool:
    """Whether the key may store nothing, tried with a part of an upload that nobody has begun."""
    return _denied(lambda: calls.upload_part(key, NO_UPLOAD, 1, _BODY))


def _is_removable(calls: SignedCalls, key: str, marker: str) -> bool:
    """Whether a version of a key can be removed: the marker is now; and what is stored, unless the bucket locks it."""
    if _denied(lambda: calls.delete(key, version_id=marker)):
        log.info("a marker of the deletion of %s stays: this key may not remove versions", key)
        return False
    if not locks(calls):
        return True
    for version_id in calls.version_ids(key):  # of a delete whose answer was lost
        calls.delete(key, version_id=version_id)
    return False


def locks(calls: SignedCalls) -> bool:
    """Whether the bucket locks what is stored (Object Lock), or may do so: not every key is told."""
    try:
        return calls.retention()
    except StoreError as error:
        if error.cause is not Cause.DENIED:
            raise
        log.info("this key may not know whether the bucket locks what is stored: what the server honours is not tried")
        return True


def _probe(calls: SignedCalls, key: str, storage_class: str) -> Capabilities:
    try:
        stored = calls.put(key, _BODY, Properties(), None, {})
    except StoreError as error:
        if asks_for_md5(error):  # which is for what is to be locked: nothing has been stored
            return Capabilities(markers=True)
        if error.cause is not Cause.DENIED:
            raise
        return Capabilities(denied=frozenset({Right.WRITE}))
    absent = _refused(lambda: calls.put(key, _BODY, Properties(), None, _ABSENT))
    match = next((style for style in Quoting if _told_apart(calls, key, stored.etag, style)), None)
    pin = Quoting.QUOTED.of(_OTHER)
    copy_pin = _refused(lambda: calls.copy(key, key, pin=pin, properties=Properties(), acl=None))
    part_pin, complete = _probe_multipart(calls, key)
    if storage_class:
        calls.put(key, _BODY, Properties(storage_class=storage_class), None, {})
    hashes = stored.etag == md5(_BODY, usedforsecurity=False).hexdigest()
    compares = _is_refused_as_damaged(calls, key)
    return Capabilities(True, absent, match, complete, copy_pin, part_pin, compares=compares, hashes=hashes)


def _with_pinned_removals(calls: SignedCalls, key: str, found: Capabilities) -> Capabilities:
    """Whether only the version that is meant is removed; else nothing is there afterwards."""
    try:
        calls.delete(key, if_match=Quoting.QUOTED.of(_OTHER))
    except StoreError as error:
        if error.elsewhere or not _is_of_request(error):
            raise
        delete_pin = error.cause is Cause.CONFLICT  # any other refusal is of the header, which is not used then
    else:
        delete_pin = False
    return replace(found, delete_pin=delete_pin, batch_pin=delete_pin and _is_kept_by_batch(calls, key))


def _is_kept_by_batch(calls: SignedCalls, key: str) -> bool:
    """Whether DeleteObjects leaves what has another ETag than the one that is named with its key."""
    try:
        failures = calls.delete_many([key], {key: _OTHER})
    except StoreError as error:
        if not _is_of_request(error) and not isinstance(error, UnclearBatch):
            raise
        return False  # it takes no ETags there, or no batches
    return any(failure.error.errno == errno.ESTALE for failure in failures)


def _is_of_request(error: StoreError) -> bool:
    """Whether the server has answered, and does not do what it was asked for."""
    return error.status // 100 == 4 or error.cause is Cause.UNSUPPORTED


def _is_refused_as_damaged(calls: SignedCalls, key: str) -> bool:
    """Whether a body is refused that has not the hash that was signed."""
    if calls.key.is_nobody:
        return False
    signed = {"x-amz-content-sha256": sha256(b"another body").hexdigest()}
    try:
        calls.put(key, _BODY, Properties(), None, signed)
    except StoreError as error:
        if error.code in DAMAGED:
            return True
        if error.status // 100 != 4:
            raise
    return False


def clear(calls: SignedCalls, key: str) -> list[StoreError]:
    """Removes all that is under the scratch key, also what a request made whose answer was lost.

    What fails is tried again for a moment, and does not keep the rest from being tried. Returns what failed for good.
    """
    until = time.monotonic() + CLEARING
    failed: list[StoreError] = []
    for step in (_abort_all, _purge):
        while True:
            try:
                step(calls, key)
            except StoreError as error:
                if time.monotonic() < until:
                    time.sleep(PAUSE)
                    continue
                failed.append(error)
            break
    return failed


def _clear(calls: SignedCalls, key: str) -> None:
    """As `clear`; what failed is told in the log, for it is not what the mount is about."""
    for error in clear(calls, key):
        log.warning("something may be left of the scratch key %s: %s", key, error)


def _abort_all(calls: SignedCalls, key: str) -> None:
    """Aborts all uploads of the key: one whose beginning had no answer was begun again, and nobody knows its id."""
    try:
        uploads, _ = calls.list_uploads(key, None)
    except StoreError as error:
        if error.cause not in (Cause.DENIED, Cause.UNSUPPORTED):
            raise
        return
    for upload in uploads:
        if upload.key == key:
            _abort(calls, key, upload.upload_id)


def _abort(calls: SignedCalls, key: str, upload_id: str) -> None:
    """Ends an upload; where that is not allowed it becomes an object, which can be removed."""
    if not _denied(lambda: calls.abort_multipart(key, upload_id)):
        return
    try:
        calls.complete_multipart(key, upload_id, [calls.upload_part(key, upload_id, 1, _BODY)], {})
    except StoreError as error:
        if error.errno != errno.ENXIO:
            raise  # that it has ended already is told only to who may


def _purge(calls: SignedCalls, key: str) -> None:
    calls.purge(key)


def _told_apart(calls: SignedCalls, key: str, etag: str, style: Quoting) -> bool:
    """Whether If-Match in this style lets the right ETag pass and refuses a wrong one."""

    def put(tag: str) -> object:
        return calls.put(key, _BODY, Properties(), None, {"If-Match": style.of(tag)})

    return not _refused(lambda: put(etag)) and _refused(lambda: put(_OTHER))


def _probe_multipart(calls: SignedCalls, key: str) -> tuple[bool, bool]:
    """Whether UploadPartCopy honours its pin, and CompleteMultipartUpload If-None-Match and If-Match."""
    upload = calls.create_multipart(key, Properties(), None)
    try:
        parts = [calls.upload_part(key, upload, 1, _BODY)]
        pin = Quoting.QUOTED.of(_OTHER)
        part_pin = _refused(lambda: calls.copy_part(key, upload, 1, key, pin=pin, start=0, stop=len(_BODY)))
        parts = [calls.upload_part(key, upload, 1, _BODY)]
        complete = _is_kept_open(calls, key, upload, parts, _ABSENT)
        complete = complete and _is_kept_open(calls, key, upload, parts, {"If-Match": pin})
    finally:
        _abort(calls, key, upload)
    return part_pin, complete


def _is_kept_open(calls: SignedCalls, key: str, upload: str, parts: list[Part], condition: Mapping[str, str]) -> bool:
    """Whether an upload is not completed under a condition that does not hold."""
    try:
        return _refused(lambda: calls.complete_multipart(key, upload, parts, condition))
    except StoreError as error:
        if error.errno != errno.ENXIO:
            raise
        return False  # it was, and the answer lost


def _refused(call: Callable[[], object]) -> bool:
    """Whether the server refused for the condition's sake; one that knows no such condition has not."""
    try:
        call()
    except StoreError as error:
        if error.cause is Cause.CONFLICT:
            return True
        if error.cause not in (Cause.UNSUPPORTED, Cause.DENIED):
            raise
    return False


def _denied(call: Callable[[], object]) -> bool:
    """Whether the key may not do that; that there is nothing to do it to is no refusal."""
    try:
        call()
    except StoreError as error:
        if error.cause is Cause.DENIED:
            return True
        if error.cause not in (Cause.ABSENT, Cause.UNSUPPORTED) and error.errno != errno.ENXIO:
            raise
    return False
