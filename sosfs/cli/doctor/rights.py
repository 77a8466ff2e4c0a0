"""Try each right of a key under a prefix, and tell how grave its lack is.

No real key is written to. Reading is tried on a key that nobody has: a 404 is the answer of a server that lets
it, a 403 of one that does not. Everything that writes is tried on that same key, which is removed afterwards;
where the key may not delete, nothing is written, since it would stay. Blocking, no state.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass

from sosfs.cli.doctor.findings import Finding, Verdict
from sosfs.config.choices import Canned
from sosfs.config.parameters import Settings
from sosfs.control.acl_text import AUTHENTICATED_USERS, same
from sosfs.errors import Cause, StoreError
from sosfs.s3 import capabilities, scratch_key
from sosfs.s3.calls import SignedCalls
from sosfs.s3.protocol import (
    Headers,
    Listed,
    Properties,
)

BODY = b"sosfs"
STORED = Properties(Headers(cache_control="no-store"), {"probe": "stored"})
REPLACED = Properties(Headers(cache_control="no-cache", content_language="en"), {"probe": "replaced"})


@dataclass(frozen=True, slots=True)
class TriedRight:
    """A right, and what it means not to have it."""

    name: str
    lack: Verdict
    advice: str


GET = TriedRight("get", Verdict.FAIL, "no file can be read: allow get-object")
DELETE = TriedRight(
    "delete", Verdict.WARNING, "nothing can be removed or renamed: allow delete-object, or use --read-only"
)
PUT = TriedRight("put", Verdict.WARNING, "no file can be written: allow put-object, or use --read-only")
COPY = TriedRight("copy", Verdict.WARNING, "no rename, chmod or change of metadata: allow get-object and put-object")
MULTIPART = TriedRight("multipart", Verdict.WARNING, "no file larger than twice --part-size: allow it as put-object")
READ_ACL = TriedRight("read ACL", Verdict.WARNING, "a file loses its ACL when it is rewritten: allow get-object-acl")
WRITE_ACL = TriedRight("write ACL", Verdict.NOTE, "ACLs cannot be changed: allow put-object-acl")


def tried(
    calls: SignedCalls, settings: Settings, sample: Listed | None, *, may_list: bool
) -> Generator[Finding, None, bool]:
    """Each right but that to list; `sample` is any object there, which is looked at. Returns if it may write."""
    key = scratch_key.key(settings.prefix)
    reading = _reading(calls, key, may_list=may_list)
    if reading.verdict is Verdict.OK and sample is not None:
        reading = _sampled(calls, sample)
    if settings.read_only:
        yield reading
        yield Finding("right: put", Verdict.NOTE, "not tried: you asked for --read-only")
        return False
    deleting = _asked(DELETE, lambda: calls.purge(key))
    if deleting.verdict is not Verdict.OK or _stays(calls, key):
        yield from (reading, deleting)
        yield Finding("right: put", Verdict.UNKNOWN, "not tried: what was written could not be removed again")
        return False
    findings = _written(calls, key, reading)
    yield from findings
    return any(each.what == "right: put" and each.verdict is Verdict.OK for each in findings)


def _stays(calls: SignedCalls, key: str) -> bool:
    """Whether what is stored may stay for good: only where versions are kept can it be locked."""
    try:
        return calls.purge(key) and capabilities.locks(calls)
    except StoreError:
        return True  # nobody can tell


def _reading(calls: SignedCalls, key: str, *, may_list: bool) -> Finding:
    """Whether the key may read, by a key that is not there."""
    try:
        calls.get(key, 0, 1, "")
    except StoreError as error:
        if error.cause is Cause.ABSENT:
            return _allowed(GET)
        if error.cause is Cause.DENIED and not may_list:  # S3 then hides what is absent
            return Finding("right: get", Verdict.UNKNOWN, "cannot be told of a key that may not list")
        return _lacking(GET, error)
    return _allowed(GET)


def _sampled(calls: SignedCalls, sample: Listed) -> Finding:
    """Whether the key may read what is there: an object's own ACL has a say, too."""
    try:
        calls.head(sample.key)
    except StoreError as error:
        if error.cause is Cause.DENIED:
            detail = f"allowed, but {sample.key!r} is refused: each object's own ACL decides"
            return Finding("right: get", Verdict.WARNING, detail, "let its owner grant READ, or use that key")
    return _allowed(GET)


def _written(calls: SignedCalls, key: str, reading: Finding) -> list[Finding]:
    """What is tried on the scratch key, which is gone in the end."""
    findings: list[Finding] = []
    try:
        putting = _asked(PUT, lambda: calls.put(key, BODY, STORED, None, {}))
        if putting.verdict is Verdict.OK:
            if reading.verdict is Verdict.UNKNOWN:
                reading = _asked(GET, lambda: calls.get(key, 0, len(BODY), ""))
            findings += (reading, _allowed(DELETE), putting)
            findings += (*_copies(calls, key), *_acls(calls, key), *_multipart(calls, key))
        else:
            findings += (reading, _allowed(DELETE), putting)
    finally:
        for error in capabilities.clear(calls, key):
            detail = f"something of the scratch key {key!r} may be left: {error.strerror}"
            findings.append(Finding("scratch key", Verdict.WARNING, detail, "remove it"))
    return findings


def _copies(calls: SignedCalls, key: str) -> Iterator[Finding]:
    what = "server: copies"
    copying = _asked(COPY, lambda: calls.copy(key, key, pin="", properties=REPLACED, acl=None))
    yield copying
    if copying.verdict is not Verdict.OK:
        return
    try:
        found = calls.head(key).properties
    except StoreError as error:
        yield Finding(what, Verdict.UNKNOWN, _said(error))
        return
    kept = found.metadata == REPLACED.metadata and found.headers.content_language == REPLACED.headers.content_language
    if kept:
        yield Finding(what, Verdict.OK, "take new metadata and headers")
    else:
        yield Finding(what, Verdict.WARNING, "lose metadata or headers", "chmod, touch and setfattr may not last")


def _acls(calls: SignedCalls, key: str) -> Iterator[Finding]:
    reading = _asked(READ_ACL, lambda: calls.get_acl(key))
    writing = _asked(WRITE_ACL, lambda: calls.put_acl(key, Canned.AUTHENTICATED_READ))
    yield reading
    yield writing
    if not reading.verdict is writing.verdict is Verdict.OK:
        return
    what, forgotten = "server: ACLs", "ACLs cannot be used on this server"
    try:
        held = calls.get_acl(key)
        if not any(grant.grantee == AUTHENTICATED_USERS for grant in held.grants):
            yield Finding(what, Verdict.WARNING, "taken, and forgotten at once", forgotten)
            return
        calls.copy(key, key, pin="", properties=STORED, acl=held)
        copied = same(calls.get_acl(key), held)
    except StoreError as error:
        yield Finding(what, Verdict.UNKNOWN, _said(error))
        return
    if copied:
        yield Finding(what, Verdict.OK, "kept, also by copies that name them")
    else:
        yield Finding(what, Verdict.WARNING, "lost by a copy", "a rename or chmod resets the ACL on this server")


def _multipart(calls: SignedCalls, key: str) -> Iterator[Finding]:
    try:
        upload = calls.create_multipart(key, STORED, None)
    except StoreError as error:
        yield _lacking(MULTIPART, error)
        return

    def join() -> None:
        calls.complete_multipart(key, upload, [calls.upload_part(key, upload, 1, BODY)], {})

    try:
        try:
            calls.copy_part(key, upload, 1, key, pin="", start=0, stop=len(BODY))
        except StoreError as error:
            yield Finding(
                "server: UploadPartCopy",
                Verdict.WARNING,
                f"does not work: {_said(error)}",
                "a change in a large file fails where parts of it have to be copied",
            )
        else:
            yield Finding("server: UploadPartCopy", Verdict.OK, "works")
        yield _asked(MULTIPART, join)
    finally:
        with suppress(StoreError):  # it is joined, or the key may not: then the next mount tries
            calls.abort_multipart(key, upload)


def _asked(right: TriedRight, call: Callable[[], object]) -> Finding:
    try:
        call()
    except StoreError as error:
        return _lacking(right, error)
    return _allowed(right)


def _allowed(right: TriedRight) -> Finding:
    return Finding(f"right: {right.name}", Verdict.OK, "allowed")


def _lacking(right: TriedRight, error: StoreError) -> Finding:
    what = f"right: {right.name}"
    if error.cause is Cause.DENIED:
        return Finding(what, right.lack, "not allowed", right.advice)
    if error.cause is Cause.UNSUPPORTED:
        return Finding(what, right.lack, f"the server does not have it ({error.code or error.status})")
    if error.errno == errno.EPROTO:
        return Finding("server: encryption", Verdict.FAIL, error.detail, "leave out --sse-c-key, or use another server")
    return Finding(what, Verdict.UNKNOWN, _said(error), "try again")


def _said(error: StoreError) -> str:
    return error.strerror or error.code
