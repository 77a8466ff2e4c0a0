"""Zones and endpoints, and which of several given ones holds.

An Exoscale zone (`ch-dk-2`) names its endpoint (`https://sos-ch-dk-2.exo.io`) and is the region that requests
are signed for. What a zone may look like is checked here, because a server may name one: it fills one label of
a host name that the user or we wrote, so that no answer leads to another provider. Pure functions, safe from
any thread.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum

DEFAULT_ZONE = "ch-dk-2"  # of the Exoscale CLI
TEMPLATE = "https://sos-{zone}.exo.io"
OTHER_REGION = "us-east-1"  # what servers that know no regions sign for
_PATTERN = re.compile(r"[a-z]{2}-[a-z]{2,3}-\d+")
_ENDPOINT = re.compile(r"(?P<scheme>https?)://sos-(?P<zone>[^./]+)\.exo\.io/?")
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")  # of a host name, RFC 1123


class Naming(Enum):
    """Who says in which zone the bucket is."""

    STATED = "stated"  # the user, of this bucket: nothing else is tried
    ASSUMED = "assumed"  # the account's settings, or nobody: the bucket has the last word


@dataclass(frozen=True, slots=True)
class Place:
    """An endpoint URL, which may hold `{zone}`, and a zone; "" is not named."""

    endpoint: str = ""
    zone: str = ""

    @property
    def url(self) -> str:
        """The endpoint of the zone."""
        return self.endpoint.replace("{zone}", self.zone).rstrip("/")

    @property
    def region(self) -> str:
        """The region that requests are signed for."""
        return self.zone or OTHER_REGION

    @property
    def has_zones(self) -> bool:
        """Whether another zone would have another endpoint."""
        return "{zone}" in self.endpoint

    @property
    def is_fixed(self) -> bool:
        """Whether this alone says which server it is."""
        return bool(self.zone or (self.endpoint and not self.has_zones))

    def moved(self, zone: str) -> Place:
        """The same provider's place in another zone. Raises ValueError for what cannot be part of a host name."""
        if not _LABEL.fullmatch(zone):
            raise ValueError(f"{zone!r} is no name of a zone")
        return replace(self, zone=zone)


NOWHERE = Place()


def is_usual(zone: str) -> bool:
    """Whether the name looks like a zone of Exoscale's. New zones appear, so this is for a warning only."""
    return _PATTERN.fullmatch(zone) is not None


def of_endpoint(endpoint: str) -> str:
    """The zone an Exoscale endpoint names, "" for any other endpoint."""
    match = _ENDPOINT.fullmatch(endpoint)
    return match["zone"] if match else ""


def choose(hints: Iterable[Place]) -> Place:
    """The place that holds, of the hints in order, the strongest first; always with an endpoint.

    An endpoint beats any weaker hint, but a zone beats a weaker endpoint that cannot hold it: `--zone`
    must not be lost to an `endpoint_url` in a file, while a weaker `https://store-{zone}.example` serves it.
    Nothing named at all is the default zone of the Exoscale CLI.
    """
    ordered = tuple(hints)
    zone = next((hint.zone for hint in ordered if hint.zone), "")
    named = False
    for hint in ordered:
        if hint.has_zones:
            return Place(hint.endpoint, zone or DEFAULT_ZONE)
        if hint.endpoint and not named:
            return _of(hint.endpoint, hint.zone or of_endpoint(hint.endpoint) or zone)
        named = named or bool(hint.zone)
    return Place(TEMPLATE, zone or DEFAULT_ZONE)


def _of(endpoint: str, zone: str) -> Place:
    """The place of an endpoint, with `{zone}` where it is Exoscale's of that zone."""
    match = _ENDPOINT.fullmatch(endpoint)
    if match and zone in {"", match["zone"]}:
        return Place(f"{match['scheme']}://sos-{{zone}}.exo.io", match["zone"])
    return Place(endpoint, zone)
