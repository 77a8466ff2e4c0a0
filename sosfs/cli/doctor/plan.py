"""`sosfs doctor`: which checks are made, in which order.

    machine -> settings -> key -> endpoint, clock, zone -> rights -> server
        -> settings of the bucket -> mounts

What is asked of the bucket needs a bucket, an endpoint that answers and a key that it takes; where one is
missing its own line says so and the rest is left out. Blocking, no state. No secret is shown, and nothing is
written but scratch keys, which are removed again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from enum import Enum
from pathlib import Path

from sosfs.cli.doctor import account, bucket, bucket_count, machine, rights, server
from sosfs.cli.doctor.findings import Finding, Output, Verdict, display
from sosfs.config.parameters import Settings
from sosfs.daemon.launch import Exit
from sosfs.s3.customer_key import CustomerKeyError


class Mounts(Enum):
    """Which mounts are looked at."""

    NAMED = "named"  # the one on the mount point that the user named
    ALL = "all"


def run(settings: Settings, mountpoint: Path | None, form: Output, mounts: Mounts = Mounts.NAMED) -> int:
    """Shows the outcome of all checks; 1 when one says that a mount cannot work."""
    code = Exit.OK
    with display(form) as tell:
        for finding in examine(settings, mountpoint, mounts):
            tell(finding)
            if finding.verdict is Verdict.FAIL:
                code = Exit.FAILED
    return code


def examine(settings: Settings, mountpoint: Path | None = None, mounts: Mounts = Mounts.NAMED) -> Iterator[Finding]:
    """The findings, each as it is made. `settings` are as the user gave them, not placed yet."""
    yield from machine.program()
    yield from machine.fuse(settings)
    if mountpoint is not None:
        yield machine.directory(mountpoint)
    yield machine.read_ahead()
    yield from machine.search_index()
    yield from account.files()
    key = yield from account.key(settings)
    if key is not None:
        settings, answers = yield from server.reached(account.placed(settings, key))
        if answers:
            yield from _buckets(settings, key)
            yield from _bucket(settings, key)
    yield from machine.state(settings)
    if mounts is Mounts.ALL:
        yield from machine.mounts()
    elif mountpoint is not None:
        yield from machine.mounts(mountpoint)


def _buckets(settings: Settings, key: account.Key) -> Iterator[Finding]:
    if settings.anonymous:
        return
    with contextlib.suppress(CustomerKeyError):  # which is told of the bucket
        yield bucket_count.owned(server.target(settings, key))


def _bucket(settings: Settings, key: account.Key) -> Iterator[Finding]:
    if not settings.bucket:
        yield Finding(
            "bucket", Verdict.UNKNOWN, "none was named", "'sosfs doctor BUCKET' looks at the key's rights in it"
        )
        return
    try:
        opened = server.opened(settings, key)
    except CustomerKeyError as error:
        yield Finding("encryption key", Verdict.FAIL, str(error), "a mount needs what --sse-c-key names")
        return
    with opened as calls:
        listing = server.listed(calls, settings)
        yield listing.finding
        if listing.refused:
            return
        may_write = yield from rights.tried(calls, settings, listing.sample, may_list=listing.allowed)
        if may_write:
            yield from server.capabilities(calls, settings)
    yield from bucket.settings_of(server.target(settings, key), settings.prefix)
