"""Ask the server in which zone a bucket is.

A bucket's name is unique over all zones of Exoscale, and a HEAD of it at any zone's endpoint is answered with
`x-amz-bucket-region`, whatever the status. That is asked without a signature: no right is needed, and a key is
sent to the right zone only. What the answer names fills the user's or our own endpoint (`zones.Place.moved`).

    named by                                       a bucket in another zone
    --zone, --endpoint, -o or sosfs.toml           is an error that names its zone: what a user states holds
    the account (EXOSCALE_ZONE, exoscale.toml,     is mounted there
    .s3cfg, an AWS profile) or nobody

Safe from any thread; blocks its thread for seconds. Not to be imported before the daemon has forked.
"""

from __future__ import annotations

import logging
from urllib.parse import quote

from sosfs.config.parameters import Settings
from sosfs.config.zones import Naming, Place
from sosfs.errors import StoreError
from sosfs.s3 import certificate_authorities, unsigned_request
from sosfs.s3.certificate_authorities import Bundle
from sosfs.s3.unsigned_request import Told

log = logging.getLogger(__name__)

HEADER = "x-amz-bucket-region"
SERVER_FAILED = 500  # an HTTP status from which on an answer says nothing of the bucket
MISPLACED = frozenset({301, 307, 400})  # what S3 answers in the wrong region, or for a signature for another one


def ask(place: Place, bucket: str, bundle: Bundle) -> Place | None:
    """The place where the server at `place` says the bucket is; None where it does not say, or nonsense.

    Raises `StoreError` where no answer came.
    """
    return named_in(unsigned_request.head(f"{place.url}/{quote(bucket)}", bundle), place)


def named_in(answer: Told, place: Place) -> Place | None:
    """The place of a bucket that an answer to its HEAD names, None for one that names none, or nonsense."""
    try:
        return place.moved(answer.headers.get(HEADER, ""))
    except ValueError:
        return None


def located(settings: Settings) -> Settings:
    """The settings in the bucket's zone, where the user did not state one. What cannot be found out stays as it is."""
    place = settings.place
    if settings.naming is Naming.STATED or not place.has_zones:
        return settings
    try:
        found = ask(place, settings.bucket, certificate_authorities.bundle_of(settings))
    except StoreError as error:
        log.info("zone %s is assumed: %s", place.zone, error.strerror)
        return settings
    if found is None:
        log.info("zone %s is assumed: %s does not say where the bucket is", place.zone, place.url)
        return settings
    log.info("the bucket is in zone %s, as %s answered to a HEAD of it", found.zone, place.url)
    return settings.placed(found, settings.naming)


def elsewhere(settings: Settings, error: StoreError) -> str:
    """One line for the user where a bucket that answered with `error` is in another zone than was asked; else ""."""
    place, status = settings.place, error.status
    misled = 0 < status < SERVER_FAILED if place.has_zones else status in MISPLACED
    if not misled:
        return ""
    try:
        found = ask(place, settings.bucket, certificate_authorities.bundle_of(settings))
    except StoreError:
        return ""
    if found is None or found.region == settings.region:
        return ""
    if not place.has_zones:
        return f"the bucket {settings.bucket!r} is in region {found.zone}, not in {settings.region}: give it as --zone"
    return (
        f"the bucket {settings.bucket!r} is in zone {found.zone}, not in {settings.zone}: "
        "correct --zone or --endpoint, or leave them out"
    )
