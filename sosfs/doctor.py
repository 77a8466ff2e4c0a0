"""`sosfs doctor`: which checks are made, in which order, and which need the ones before. Decided here and only here.

    machine -> settings -> key -> endpoint, clock, zone -> rights -> server -> settings of the bucket -> mounts

What is asked of the bucket needs a bucket, an endpoint that answers and a key that it takes; where one is
missing its own line says so and the rest is left out. Blocking, no state. No secret is shown, and nothing is
written but scratch keys, which are removed again.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sosfs import account_checks, bucket_checks, machine_checks, rights, server_checks
from sosfs.config import Settings
from sosfs.customer_key import CustomerKeyError
from sosfs.daemon import Exit
from sosfs.findings import Finding, Form, Verdict, display


def run(settings: Settings, mountpoint: Path | None, form: Form) -> int:
    """Shows the outcome of all checks; 1 when one says that a mount cannot work."""
    code = Exit.OK
    with display(form) as tell:
        for finding in examine(settings, mountpoint):
            tell(finding)
            if finding.verdict is Verdict.FAIL:
                code = Exit.FAILED
    return code


def examine(settings: Settings, mountpoint: Path | None = None) -> Iterator[Finding]:
    """The findings, each as it is made. `settings` are as the user gave them, not placed yet."""
    yield from machine_checks.program()
    yield from machine_checks.fuse(settings)
    if mountpoint is not None:
        yield machine_checks.directory(mountpoint)
    yield machine_checks.read_ahead()
    yield from account_checks.files()
    key = yield from account_checks.key(settings)
    if key is not None:
        settings, answers = yield from server_checks.reached(account_checks.placed(settings, key))
        if answers:
            yield from _bucket(settings, key)
    yield from machine_checks.state(settings)
    yield from machine_checks.mounts()


def _bucket(settings: Settings, key: account_checks.Key) -> Iterator[Finding]:
    if not settings.bucket:
        yield Finding(
            "bucket", Verdict.UNKNOWN, "none was named", "'sosfs doctor BUCKET' looks at the key's rights in it"
        )
        return
    try:
        opened = server_checks.opened(settings, key)
    except CustomerKeyError as error:
        yield Finding("encryption key", Verdict.FAIL, str(error), "a mount needs what --sse-c-key names")
        return
    with opened as lane:
        listing = server_checks.listed(lane, settings)
        yield listing.finding
        if listing.refused:
            return
        may_write = yield from rights.tried(lane, settings, listing.sample, may_list=listing.allowed)
        if may_write:
            yield from server_checks.abilities(lane, settings)
    yield from bucket_checks.settings_of(server_checks.target(settings, key), settings.prefix)
