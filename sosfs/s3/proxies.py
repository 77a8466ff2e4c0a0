"""Which proxy a request goes through, by the usual variables.

    http_proxy, HTTP_PROXY       for http:// endpoints
    https_proxy, HTTPS_PROXY     for https:// endpoints, through a tunnel (CONNECT)
    all_proxy, ALL_PROXY         for both, where there is none of the above
    no_proxy, NO_PROXY           hosts that are reached directly

The lower-case name comes first, and set to nothing it hides the upper-case one. A CGI program's HTTP_PROXY is what
a client sent in a `Proxy` header (CVE-2016-5385) and does not count. All HTTP here asks this module, because the
libraries differ: libcurl passes over HTTP_PROXY, botocore over ALL_PROXY, and no two read NO_PROXY alike.

Pure functions of the environment, safe from any thread.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy's URL, and the variable that names it."""

    url: str = field(repr=False)  # may hold a password
    variable: str

    @property
    def shown(self) -> str:
        """The URL without its password."""
        return re.sub(r"^((?:[^/]*//)?[^:@/]*):[^@/]*@", r"\1:***@", self.url)


def proxy_for(url: str, environ: Mapping[str, str] = os.environ) -> Proxy | None:
    """The proxy for requests to `url`, None where they go straight to the server."""
    parts = urlsplit(url)
    found = _named(f"{parts.scheme}_proxy", environ) or _named("all_proxy", environ)
    if found is None or is_direct(parts.hostname or "", parts.port or PORTS.get(parts.scheme, 0), environ):
        return None
    return found


def _named(name: str, environ: Mapping[str, str]) -> Proxy | None:
    for variable in (name, name.upper()):
        if variable == "HTTP_PROXY" and "REQUEST_METHOD" in environ:
            continue
        if variable in environ:
            value = environ[variable].strip()
            return Proxy(value, variable) if value else None
    return None


def is_direct(host: str, port: int, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether NO_PROXY names this server.

    Its entries are divided by commas or blanks: `*` for all hosts, a host or a domain, which stand for what is
    below them as well, with or without a dot before them, an address or a network (`10.0.0.0/8`), each perhaps
    with a port.
    """
    entries = re.split(r"[\s,]+", environ.get("no_proxy", environ.get("NO_PROXY", "")).lower())
    host = host.lower().rstrip(".")
    return any(_covers(entry, host, port) for entry in entries if entry)


def _covers(entry: str, host: str, port: int) -> bool:
    if entry == "*":
        return True
    named, only = _split_port(entry)
    if only is not None and only != port:
        return False
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(named, strict=False)
    except ValueError:
        domain = named.removeprefix("*").strip(".")
        return bool(domain) and (host == domain or host.endswith(f".{domain}"))


def _split_port(entry: str) -> tuple[str, int | None]:
    """The entry without its port. An IPv6 address has a port only where it stands in brackets."""
    match = re.fullmatch(r"\[([^\]]*)\](?::(\d+))?", entry) or re.fullmatch(r"([^:]*):(\d+)", entry)
    if not match:
        return entry, None
    return match[1], int(match[2]) if match[2] else None
