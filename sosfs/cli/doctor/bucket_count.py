"""Check how many buckets the account has, of those that it may have; read only.

Exoscale gives an organisation 20, and more when asked ("Limits and quotas"). A key for one bucket may not list them,
and needs not. Blocking, no state.
"""

from __future__ import annotations

from dataclasses import replace

import trio

from sosfs.cli.doctor.findings import Finding, Verdict
from sosfs.config.zones import of_endpoint
from sosfs.errors import Cause, StoreError
from sosfs.log.wording import counted
from sosfs.s3.account import Account
from sosfs.s3.endpoint import S3Target
from sosfs.s3.limits import Limits

QUOTA = 20
NEAR = 18  # from so many on it is worth a word


def owned(target: S3Target) -> Finding:
    """How many buckets the key's account has at a server, whatever bucket `target` names."""
    what = "buckets"
    try:
        count = trio.run(_count, replace(target, bucket=""))
    except StoreError as error:
        if error.cause is Cause.DENIED:
            return Finding(what, Verdict.NOTE, "not allowed to this key; a mount of one bucket does without")
        return Finding(what, Verdict.UNKNOWN, error.strerror or error.code)
    return judged(count, is_exoscale=bool(of_endpoint(target.endpoint)))


def judged(count: int, *, is_exoscale: bool) -> Finding:
    """What so many buckets mean."""
    if not is_exoscale:
        return Finding("buckets", Verdict.NOTE, counted(count, "bucket"))
    detail = f"{count} of the {QUOTA} that an organisation has at first"
    if count < NEAR:
        return Finding("buckets", Verdict.NOTE, detail)
    return Finding("buckets", Verdict.WARNING, detail, "remove one, or ask Exoscale's support for more")


async def _count(target: S3Target) -> int:
    limits = Limits()
    account = Account(target, lambda operation: None, limits)
    try:
        return len((await account.owned()).buckets)
    finally:
        account.close()
        limits.close()
