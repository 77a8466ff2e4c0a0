"""Where a bucket's server is: zone, endpoint, and which holds of several. Decided here and only here.

An Exoscale zone (`ch-dk-2`) names its endpoint (`https://sos-ch-dk-2.exo.io`) and is the region that requests
are signed for. Pure functions, safe from any thread.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

DEFAULT_ZONE = "ch-dk-2"  # of the Exoscale CLI
TEMPLATE = "https://sos-{zone}.exo.io"
OTHER_REGION = "us-east-1"  # what servers that know no regions sign for
_PATTERN = re.compile(r"[a-z]{2}-[a-z]{2,3}-\d+")
_ENDPOINT = re.compile(r"https?://sos-(?P<zone>[^./]+)\.exo\.io/?")


@dataclass(frozen=True, slots=True)
class Place:
    """An endpoint URL, which may hold `{zone}`, and a zone; "" is not named."""

    endpoint: str = ""
    zone: str = ""

    @property
    def region(self) -> str:
        """The region that requests are signed for."""
        return self.zone or OTHER_REGION


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
        if "{zone}" in hint.endpoint:
            return _filled(hint.endpoint, zone)
        if hint.endpoint and not named:
            return Place(hint.endpoint.rstrip("/"), hint.zone or of_endpoint(hint.endpoint) or zone)
        named = named or bool(hint.zone)
    return _filled(TEMPLATE, zone)


def _filled(template: str, zone: str) -> Place:
    zone = zone or DEFAULT_ZONE
    return Place(template.replace("{zone}", zone).rstrip("/"), zone)
