"""Which certificate authorities are trusted.

    --ca-bundle, AWS_CA_BUNDLE, `ca_bundle` of the AWS profile, SSL_CERT_FILE, REQUESTS_CA_BUNDLE, CURL_CA_BUNDLE,
    else those of the system, else those that the certifi package brings

The first that is named holds, as for the AWS tools; a bundle stands in place of the system's, not beside it. All
HTTP here asks this module. Blocks on small files; no state, safe from any thread.
"""

from __future__ import annotations

import configparser
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from sosfs.config.credentials import Surroundings
from sosfs.config.parameters import Settings

VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
# Debian and Alpine, Fedora, openSUSE.
SYSTEM = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)


@dataclass(frozen=True, slots=True)
class Bundle:
    """A file of certificates in PEM, and who names it."""

    path: str
    where: str


def bundle(named: Path | None, around: Surroundings) -> Bundle:
    """The bundle that holds; `named` is the user's option. Whether it can be used shows when it is."""
    if named is not None:
        return Bundle(str(named), "--ca-bundle")
    if found := around.environ.get("AWS_CA_BUNDLE"):
        return Bundle(found, "AWS_CA_BUNDLE")
    if found := _of_profile(around):
        return Bundle(str(Path(found).expanduser()), "the AWS profile")
    for variable in VARIABLES:
        if found := around.environ.get(variable):
            return Bundle(found, variable)
    return of_system()


def bundle_of(settings: Settings) -> Bundle:
    """The bundle that holds for a mount with these settings."""
    return bundle(settings.ca_bundle, Surroundings.of_process(settings.profile))


def of_system() -> Bundle:
    """The certificates that every program on this machine trusts."""
    for path in SYSTEM:
        if Path(path).exists():
            return Bundle(path, "the system")
    certifi = importlib.util.find_spec("certifi")
    if certifi and certifi.origin:
        return Bundle(str(Path(certifi.origin).with_name("cacert.pem")), "certifi")
    return Bundle(SYSTEM[0], "the system")  # which has none: it is told when a certificate is to be checked


def _of_profile(around: Surroundings) -> str:
    """`ca_bundle` of the profile in the AWS settings file; what is wrong with the file shows where keys are sought."""
    name = around.profile or around.environ.get("AWS_PROFILE", "") or "default"
    parser = configparser.ConfigParser(interpolation=None, default_section="", strict=False)
    try:
        parser.read(around.path("AWS_CONFIG_FILE", ".aws/config"), encoding="utf-8")
    except (OSError, UnicodeDecodeError, configparser.Error):
        return ""
    return parser.get(name if name == "default" else f"profile {name}", "ca_bundle", fallback="")
