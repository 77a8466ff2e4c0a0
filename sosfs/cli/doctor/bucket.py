"""Check what is set for the whole bucket; read only.

A key for files alone may read none of it: that is "not allowed", and a mount works. Blocking, no state.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any

import trio

from sosfs.cli.doctor.findings import Finding, Verdict
from sosfs.control import acl_text, object_lock_text
from sosfs.errors import Cause, StoreError
from sosfs.log.wording import counted
from sosfs.s3.bucket_settings import BucketSettings, Versioning
from sosfs.s3.dispatch import Dispatcher
from sosfs.s3.endpoint import S3Target
from sosfs.s3.protection_settings import BucketLock, ProtectionSettings
from sosfs.s3.protocol import Acl

Judge = Callable[[Any], Finding]


def settings_of(target: S3Target, prefix: str) -> Sequence[Finding]:
    """What is set for the bucket, as far as it matters to files under `prefix`."""
    return trio.run(_asked, target, prefix)


async def _asked(target: S3Target, prefix: str) -> list[Finding]:
    dispatcher = Dispatcher(target, lambda operation: None)
    bucket = BucketSettings(target, dispatcher)
    protection = ProtectionSettings(bucket)
    questions: tuple[tuple[str, Callable[[], Awaitable[Any]], Judge], ...] = (
        ("bucket: ACL", bucket.acl, _of_acl),
        ("bucket: versioning", bucket.versioning, _of_versioning),
        ("bucket: Object Lock", protection.object_lock, _of_object_lock),
        ("bucket: lifecycle", protection.lifecycle, lambda rules: _of_lifecycle(rules, prefix)),
        ("bucket: CORS", bucket.cors, lambda rules: _set("bucket: CORS", len(rules), "rule")),
        ("bucket: policy", bucket.policy, lambda text: _set("bucket: policy", len(text), "byte")),
    )
    try:
        return [await _one(*question) for question in questions]
    finally:
        bucket.close()
        dispatcher.close()


async def _one(what: str, ask: Callable[[], Awaitable[Any]], judge: Judge) -> Finding:
    try:
        return judge(await ask())
    except StoreError as error:
        if error.cause is Cause.DENIED:
            return Finding(what, Verdict.NOTE, "not allowed to this key; a mount does without")
        if error.cause is Cause.UNSUPPORTED:
            return Finding(what, Verdict.NOTE, "the server does not have it")
        return Finding(what, Verdict.UNKNOWN, error.strerror or error.code)


def _set(what: str, count: int, unit: str) -> Finding:
    return Finding(what, Verdict.NOTE, counted(count, unit) if count else "none")


def _of_acl(held: Acl) -> Finding:
    what = "bucket: ACL"
    if held.is_private:
        return Finding(what, Verdict.NOTE, "private")
    _, *grants = acl_text.shown(held).splitlines()
    if any(
        grant.grantee == acl_text.ALL_USERS and grant.permission in ("WRITE", "FULL_CONTROL") for grant in held.grants
    ):
        advice = "echo private > MOUNTPOINT/.sosfs/bucket/acl"
        return Finding(what, Verdict.WARNING, "anybody may write into it and delete from it", advice)
    return Finding(what, Verdict.NOTE, ", ".join(grants))


def _of_versioning(state: Versioning) -> Finding:
    what = "bucket: versioning"
    if state is not Versioning.ENABLED:
        return Finding(what, Verdict.NOTE, state.value)
    detail = "enabled: what is overwritten or removed is kept and paid for, on SOS 1,000 versions a file"
    advice = "'sosfs versions --prune 10 PATH' removes old ones; with --durability journal rewrites make fewer"
    return Finding(what, Verdict.WARNING, detail, advice)


def _of_object_lock(held: BucketLock) -> Finding:
    what = "bucket: Object Lock"
    if not held.is_enabled:
        return Finding(what, Verdict.NOTE, "none")
    if held.default is None:
        return Finding(what, Verdict.NOTE, "enabled: what is locked can be neither changed nor removed")
    detail = f"new files are locked by themselves: {object_lock_text.said(held.default)}"
    advice = "each is written once, and not renamed or removed before; --durability journal gives five seconds for that"
    return Finding(what, Verdict.WARNING, detail, advice)


def _of_lifecycle(rules: Sequence[Mapping[str, Any]], prefix: str) -> Finding:
    what, removing = "bucket: lifecycle", list(_removing(rules, prefix))
    if removing:
        advice = "files there go away by themselves: change the rule, or mount another prefix"
        return Finding(what, Verdict.WARNING, "; ".join(removing), advice)
    return Finding(what, Verdict.NOTE, f"{counted(len(rules), 'rule')}, none removes files" if rules else "none")


def _removing(rules: Sequence[Mapping[str, Any]], prefix: str) -> Iterator[str]:
    """Each rule in force that removes what a mount of `prefix` shows, in words."""
    for rule in rules:
        expiry = rule.get("Expiration", {})
        when = counted(int(expiry["Days"]), "day") if "Days" in expiry else expiry.get("Date")
        under = _prefix_of(rule)
        if when and rule.get("Status") == "Enabled" and (under.startswith(prefix) or prefix.startswith(under)):
            yield f"removes files{f' under {under!r}' if under else ''} {'after' if 'Days' in expiry else 'on'} {when}"


def _prefix_of(rule: Mapping[str, Any]) -> str:
    """The prefix a rule is for; it may stand in three places."""
    chosen = rule.get("Filter", {})
    return str(chosen.get("Prefix") or chosen.get("And", {}).get("Prefix") or rule.get("Prefix") or "")
