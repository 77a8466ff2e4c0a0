"""Check the server: whether it answers, its clock, the bucket's zone, what it honours.

Blocking, no state.
"""

from __future__ import annotations

import errno
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from urllib.parse import quote

from sosfs.cli.doctor.findings import Finding, Verdict
from sosfs.config.credentials import CredentialSource
from sosfs.config.parameters import Settings
from sosfs.config.zones import Naming
from sosfs.errors import KEY_REFUSED, StoreError
from sosfs.s3 import bucket_zone, certificate_authorities, proxies, reachability, scratch_key, unsigned_request
from sosfs.s3.calls import SignedCalls
from sosfs.s3.capabilities import Quoting, probe
from sosfs.s3.certificate_authorities import Bundle
from sosfs.s3.endpoint import S3Target
from sosfs.s3.protocol import Listed
from sosfs.s3.unsigned_request import Told

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 15.0
PATIENCE = 3.0  # seconds for which a failing request is tried again: the user sits at a terminal

SKEW_REFUSED = 900.0  # seconds; S3 refuses a signature that is further off (RequestTimeTooSkewed)
SKEW_NOTED = 5.0  # from here on `make` and `rsync -u` see times of files that contradict each other

RACE = "a HEAD before the write narrows the race between two hosts that write one file, and cannot close it"
APART = "let no two hosts write the same file at the same time"


def target(settings: Settings, source: CredentialSource) -> S3Target:
    """The bucket, asked by somebody who waits. Raises `CustomerKeyError`."""
    return replace(
        S3Target.of(settings, source),
        connect_timeout=CONNECT_SECONDS,
        read_timeout=min(settings.timeout, ANSWER_SECONDS),
        patience=PATIENCE,
    )


def opened(settings: Settings, source: CredentialSource) -> closing[SignedCalls]:
    """Calls on the bucket, for a `with`. Raises `CustomerKeyError`."""
    return closing(SignedCalls(target(settings, source), source.current()))


def reached(settings: Settings) -> Generator[Finding, None, tuple[Settings, bool]]:
    """Whether the endpoint answers, and by which clock. Returns the settings in the bucket's zone, and if to go on."""
    url = f"{settings.endpoint}/{quote(settings.bucket)}"
    bundle = certificate_authorities.bundle_of(settings)
    yield from _route(settings.endpoint, bundle)
    try:
        told = unsigned_request.head(url, bundle)
    except StoreError as error:
        advice = "check the network, --endpoint and --zone"
        yield Finding("endpoint", Verdict.FAIL, f"{settings.endpoint} does not answer: {error.detail}", advice)
        return settings, False
    yield Finding("endpoint", Verdict.OK, f"{settings.endpoint} answers in {told.seconds * 1000:.0f} ms")
    clock = _clock(told)
    yield clock
    if settings.bucket:
        settings, zone = _zone(settings, told)
        yield zone
    return settings, clock.verdict is not Verdict.FAIL


def _route(endpoint: str, bundle: Bundle) -> Iterator[Finding]:
    """What lies on the way to the server, and who says so."""
    proxy = proxies.proxy_for(endpoint)
    yield Finding("proxy", Verdict.NOTE, f"{proxy.shown} ({proxy.variable})" if proxy else "none")
    if endpoint.startswith("https:"):
        yield Finding("certificates", Verdict.NOTE, f"{bundle.path} ({bundle.where})")


def _clock(told: Told) -> Finding:
    skew, advice = told.skew, "set the clock: 'timedatectl set-ntp true'"
    if skew is None:
        return Finding("clock", Verdict.UNKNOWN, "the server gives no time")
    off = f"{abs(skew):.0f} s {'behind' if skew > 0 else 'ahead of'} the server's"
    if abs(skew) > SKEW_REFUSED:
        return Finding("clock", Verdict.FAIL, f"{off}: it refuses every request beyond {SKEW_REFUSED:.0f} s", advice)
    if abs(skew) > SKEW_NOTED:
        return Finding("clock", Verdict.WARNING, f"{off}: the times of files are off as much", advice)
    return Finding("clock", Verdict.OK, "as the server's")


def _zone(settings: Settings, told: Told) -> tuple[Settings, Finding]:
    place = settings.place
    if not place.has_zones:
        return settings, Finding("zone", Verdict.NOTE, f"one endpoint for all; signing for {place.region}")
    if settings.naming is Naming.STATED:
        return settings, Finding("zone", Verdict.NOTE, f"{place.zone}, as you state")
    found = bucket_zone.named_in(told, place)
    if found is None:
        detail = f"{place.zone} is assumed: the server does not say where the bucket is"
        return settings, Finding("zone", Verdict.UNKNOWN, detail, "if it is another one, name it with --zone")
    detail = f"{found.zone}: {place.url} says that the bucket is there"
    return settings.placed(found, settings.naming), Finding("zone", Verdict.OK, detail)


@dataclass(frozen=True, slots=True)
class Listing:
    """What came of the one request that every mount makes first."""

    finding: Finding
    allowed: bool = False
    sample: Listed | None = None  # any object there
    refused: bool = False  # the bucket or the key as a whole: nothing else is worth asking


def listed(calls: SignedCalls, settings: Settings) -> Listing:
    """Whether the bucket is there, the key is good, and may list under the prefix."""
    what = "right: list"
    try:
        page = calls.list(settings.prefix, delimiter="", after="", token="", limit=1)
    except StoreError as error:
        if elsewhere := bucket_zone.elsewhere(settings, error):
            return Listing(Finding("zone", Verdict.FAIL, elsewhere), refused=True)
        why = reachability.WORDS.get(error.code) or error.detail or error.strerror
        if error.code in KEY_REFUSED:
            advice = "create a new key, or correct the one shown above where it was found"
            return Listing(Finding("key", Verdict.FAIL, f"refused: {why}", advice), refused=True)
        if error.errno == errno.EACCES and settings.anonymous:
            return Listing(
                Finding(what, Verdict.FAIL, f"not allowed: {reachability.NOT_PUBLIC}", "leave out --anonymous")
            )
        if error.errno == errno.EACCES:
            advice = "a mount needs it: allow list-objects, or name the prefix that the key is for (BUCKET/PREFIX)"
            return Listing(Finding(what, Verdict.FAIL, "not allowed", advice))
        advice = "check its name" if error.code == "NoSuchBucket" else "try again"
        return Listing(Finding("bucket", Verdict.FAIL, f"{settings.bucket!r}: {why}", advice), refused=True)
    return Listing(Finding(what, Verdict.OK, "allowed"), allowed=True, sample=next(iter(page.objects), None))


def capabilities(calls: SignedCalls, settings: Settings) -> Iterator[Finding]:
    """Which conditions the server honours, tried on a scratch key."""
    try:
        found = probe(calls, scratch_key.key(settings.prefix))
    except StoreError as error:
        yield Finding("server: conditions", Verdict.UNKNOWN, error.strerror or str(error), "try again")
        return
    if not found.known:
        yield Finding("server: conditions", Verdict.UNKNOWN, "this key may not try them")
        return
    quoting = "" if found.match is Quoting.QUOTED else ", with an ETag that has no quotes"
    for what, honoured, more in (
        ("server: If-None-Match", found.absent, ""),
        ("server: If-Match", found.match is not None, quoting),
        ("server: joined uploads", found.complete, ", If-Match and If-None-Match"),
    ):
        if honoured:
            yield Finding(what, Verdict.OK, f"honoured{more}")
        else:
            yield Finding(what, Verdict.WARNING, f"not honoured: {RACE}", APART)
    for what, honoured, instead in (
        ("server: pinned copies", found.copy_pin, "a HEAD makes up for it"),
        ("server: pinned parts", found.part_pin, "a HEAD makes up for it"),
        ("server: pinned removals", found.delete_pin, "what another client stores just when a file is renamed may go"),
    ):
        detail = "honoured" if honoured else f"not honoured: {instead}"
        yield Finding(what, Verdict.OK if honoured else Verdict.NOTE, detail)
