"""Which conditions a server honours: found out once on a scratch key, decided here and only here.

Servers that ignore a condition answer 200, so the only way to know is a condition that does not hold. Ceph 16
takes the ETag of If-Match on PUT without its quotes only, and ignores conditions on CompleteMultipartUpload
and the pins of copies. From when on a bucket keeps versions it refuses If-Match on PUT whatever is there: `S3Store`
sees that, and counts it as not honoured. Until the probe has run nothing counts as honoured. What a limited key may
not do is found out before anything is stored, so that nothing stays behind; what the server would not take from this
mount at all, its encryption or its storage class, shows here too. Blocks; runs in a thread.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from hashlib import md5
from typing import TYPE_CHECKING

from sosfs.errors import Cause, StoreError
from sosfs.store import NO_UPLOAD, Conditions, Part, Properties, Right

if TYPE_CHECKING:
    from sosfs.lane_signed import SignedLane

_BODY = b"sosfs"
_OTHER = "0" * 32  # the ETag of nothing that anybody has stored
_ABSENT = {"If-None-Match": "*"}


class Quoting(Enum):
    """How an ETag is written in If-Match."""

    QUOTED = '"{}"'  # RFC 9110
    BARE = "{}"  # Ceph 16, on PUT

    def of(self, etag: str) -> str:
        return self.value.format(etag)


@dataclass(frozen=True, slots=True)
class Abilities:
    """What the server honours; whatever it doesn't is checked with a HEAD instead."""

    known: bool = False
    absent: bool = False  # If-None-Match: * on PUT
    match: Quoting | None = None  # If-Match on PUT
    complete: bool = False  # both on CompleteMultipartUpload
    copy_pin: bool = False  # x-amz-copy-source-if-match on CopyObject
    part_pin: bool = False  # the same on UploadPartCopy
    hashes: bool = True  # the ETag of a PUT is the MD5 of its bytes; AWS makes others where it encrypts
    denied: frozenset[Right] = frozenset()  # what this key may not do

    @property
    def conditions(self) -> Conditions:
        """HONOURED only where both conditions of PUT are."""
        if not self.known:
            return Conditions.UNKNOWN
        return Conditions.HONOURED if self.absent and self.match else Conditions.IGNORED


def probe(lane: SignedLane, key: str, *, storage_class: str = "") -> Abilities:
    """What the server honours, tried on `key`, which must be nobody's and is removed again.

    A key that may not write or remove there learns nothing (UNKNOWN). Any other failure is raised: so is EPROTO of
    a server that does not encrypt with the mount's key, and its refusal of the storage class.
    """
    if _denied(lambda: lane.delete(key)):
        writes = Right.WRITE if _denied(lambda: lane.upload_part(key, NO_UPLOAD, 1, _BODY)) else Right.DELETE
        return Abilities(denied=frozenset({Right.DELETE, writes}))
    try:
        stored = lane.put(key, _BODY, Properties(), None, _ABSENT)
    except StoreError as error:
        if error.cause is Cause.DENIED:
            return Abilities(denied=frozenset({Right.WRITE}))
        if error.cause is Cause.UNSUPPORTED:
            return Abilities(known=True, hashes=False)  # nobody looked
        if error.errno == errno.EPROTO:
            lane.purge(key)
        raise
    try:
        absent = _refused(lambda: lane.put(key, _BODY, Properties(), None, _ABSENT))
        match = next((style for style in Quoting if _told_apart(lane, key, stored.etag, style)), None)
        pin = Quoting.QUOTED.of(_OTHER)
        copy_pin = _refused(lambda: lane.copy(key, key, pin=pin, properties=Properties(), acl=None))
        part_pin, complete = _probe_multipart(lane, key)
        if storage_class:
            lane.put(key, _BODY, Properties(storage_class=storage_class), None, {})
    finally:
        lane.purge(key)
    hashes = stored.etag == md5(_BODY, usedforsecurity=False).hexdigest()
    return Abilities(True, absent, match, complete, copy_pin, part_pin, hashes)


def _told_apart(lane: SignedLane, key: str, etag: str, style: Quoting) -> bool:
    """Whether If-Match in this style lets the right ETag pass and refuses a wrong one."""

    def put(tag: str) -> object:
        return lane.put(key, _BODY, Properties(), None, {"If-Match": style.of(tag)})

    return not _refused(lambda: put(etag)) and _refused(lambda: put(_OTHER))


def _probe_multipart(lane: SignedLane, key: str) -> tuple[bool, bool]:
    """Whether UploadPartCopy honours its pin, and CompleteMultipartUpload If-None-Match and If-Match."""
    repeated: list[str] = []
    try:
        upload = lane.create_multipart(key, Properties(), None, repeated.append)
    except StoreError as error:
        if error.repeated or not 400 <= error.status < 500:
            with suppress(StoreError):
                _abort_all(lane, key)
        raise
    parts: list[Part] = []
    try:
        parts = [lane.upload_part(key, upload, 1, _BODY)]
        pin = Quoting.QUOTED.of(_OTHER)
        part_pin = _refused(lambda: lane.copy_part(key, upload, 1, key, pin=pin, start=0, stop=len(_BODY)))
        parts = [lane.upload_part(key, upload, 1, _BODY)]
        complete = _refused(lambda: lane.complete_multipart(key, upload, parts, _ABSENT))
        complete = complete and _refused(lambda: lane.complete_multipart(key, upload, parts, {"If-Match": pin}))
    finally:
        try:
            if _denied(lambda: lane.abort_multipart(key, upload)):
                lane.complete_multipart(key, upload, parts, {})  # the scratch key goes, an upload would stay
        except StoreError as error:
            if error.errno != errno.ENXIO:
                raise
        if repeated:
            _abort_all(lane, key)
    return part_pin, complete


def _abort_all(lane: SignedLane, key: str) -> None:
    """Aborts what a try without an answer has begun too: nobody else has uploads of this key."""
    try:
        found, _ = lane.list_uploads(key, None)
        for upload in found:
            if upload.key == key:
                lane.abort_multipart(key, upload.upload_id)
    except StoreError as error:
        if error.cause not in (Cause.DENIED, Cause.UNSUPPORTED) and error.errno != errno.ENXIO:
            raise


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
