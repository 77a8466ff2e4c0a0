"""Read the files in which users already have a key.

`exoscale.toml` of the Exoscale CLI, `.s3cfg` of s3cmd, and the shared files of the AWS tools. A file that is
not there or holds no key is `Absent`; one that cannot be read or understood raises `CredentialError`.

Blocking; no state, safe from any thread.
"""

from __future__ import annotations

import configparser
import re
import string
import subprocess
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sosfs.config import aws_profiles, zones
from sosfs.config.credentials import Absent, CredentialError, Credentials, Found, Surroundings
from sosfs.config.zones import NOWHERE, Place

UNUSABLE = ("login_session", "credential_source", "source_profile")  # of a profile without a role or a pair
COMMAND_SECONDS = 60.0  # a password store may ask for a passphrase

# ./exoscale.toml, which the CLI reads too, is left out: a `secretCommand` in whatever directory one happens
# to stand in would run as the user.
_EXOSCALE_FILES = (".exoscale/exoscale.toml", "exoscale.toml")


Sections = Mapping[str, Mapping[str, str]]


def from_exoscale_file(around: Surroundings) -> Found | Absent:
    """The account `EXOSCALE_ACCOUNT`, else the default, else the only one, of the first `exoscale.toml` there is."""
    candidates = _exoscale_candidates(around)
    path = next((path for path in candidates if path.exists()), None)
    if path is None:
        return Absent(around.shown(candidates[0]), "no such file")
    where = around.shown(path)
    document = _toml(path, where)
    listed = document.get("accounts", [])
    if not isinstance(listed, list):
        raise CredentialError(f"{where}: write each account under [[accounts]]")
    accounts = [account for account in listed if isinstance(account, dict)]
    name = around.environ.get("EXOSCALE_ACCOUNT", "") or str(document.get("defaultaccount", ""))
    if not name and len(accounts) == 1:
        name = str(accounts[0].get("name", ""))
    account = next((account for account in accounts if account.get("name") == name), None)
    if account is None:
        named = ", ".join(sorted(str(account.get("name", "")) for account in accounts))
        there = f" (it has {named})" if named else ""
        why = f"no account {name!r}{there}" if name else f"no account is the default one{there}: set EXOSCALE_ACCOUNT"
        return Absent(where, why, is_near=bool(named))
    return _exoscale_account(account, f"{where}, account {name}")


def _exoscale_candidates(around: Surroundings) -> Sequence[Path]:
    if around.environ.get("EXOSCALE_CONFIG"):
        return (around.path("EXOSCALE_CONFIG", ""),)
    settings = around.path("XDG_CONFIG_HOME", ".config")
    return (settings / "exoscale/exoscale.toml", *(around.home / name for name in _EXOSCALE_FILES))


def _exoscale_account(account: Mapping[str, Any], where: str) -> Found | Absent:
    key, secret = str(account.get("key", "")), str(account.get("secret", ""))
    if not key:
        return Absent(where, "no key")
    command = account.get("secretcommand")
    if not secret and command:
        secret = _output_of(command, where)
    if not secret:
        return Absent(where, "no secret and no secretCommand beside the key", is_near=True)
    place = Place(str(account.get("sosendpoint", "")), str(account.get("defaultzone", "")))
    return Found(Credentials(key, secret), where, place)


def _output_of(command: object, where: str) -> str:
    """What a `secretCommand` prints, without its trailing line ends. No shell: it is a list of arguments."""
    if not isinstance(command, list) or not all(isinstance(word, str) for word in command):
        raise CredentialError(f"{where}: secretCommand must be a list of strings")
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, timeout=COMMAND_SECONDS, check=True, text=True)
    except subprocess.CalledProcessError as error:
        raise CredentialError(f"{where}: secretCommand failed with exit code {error.returncode}") from error
    except subprocess.TimeoutExpired as error:
        raise CredentialError(f"{where}: secretCommand did not answer within {COMMAND_SECONDS:.0f} s") from error
    except (OSError, UnicodeDecodeError) as error:
        raise CredentialError(f"{where}: secretCommand: {error}") from error
    return done.stdout.rstrip("\r\n")


def _toml(path: Path, where: str) -> Mapping[str, Any]:
    try:
        document = tomllib.loads(_text(path, where))
    except tomllib.TOMLDecodeError as error:
        raise CredentialError(f"{where}: {error}") from error
    return {name: _lowered(value) for name, value in _lowered(document).items()}


def _lowered(value: Any) -> Any:
    """The value with the names of all its tables in lower case, which is how the CLI compares them."""
    if isinstance(value, dict):
        return {name.lower(): _lowered(inner) for name, inner in value.items()}
    return [_lowered(inner) for inner in value] if isinstance(value, list) else value


def from_s3cfg(around: Surroundings) -> Found | Absent:
    """The key and host of `.s3cfg` (or `S3CMD_CONFIG`), `$NAME` and `${NAME}` taken from the environment."""
    path = around.path("S3CMD_CONFIG", ".s3cfg")
    where = around.shown(path)
    if not path.exists():
        return Absent(where, "no such file")
    section = _sections(path, where).get("default", {})
    values = {name: string.Template(value).safe_substitute(around.environ) for name, value in section.items()}
    key, secret = values.get("access_key", ""), values.get("secret_key", "")
    if not (key and secret):
        lacking = [name for name in ("access_key", "secret_key") if not values.get(name)]
        return Absent(where, f"no {' and no '.join(lacking)}", is_near=len(lacking) == 1)
    unset = [f"${name}" for value in (key, secret) for name in re.findall(r"\$\{?(\w+)\}?", value)]
    if unset:
        return Absent(where, f"{' and '.join(unset)} not set in the environment", is_near=True)
    scheme = "http" if values.get("use_https", "").lower() in {"false", "no", "off", "0"} else "https"
    host = values.get("host_base", "")
    return Found(Credentials(key, secret, values.get("access_token", "")), where, _place_of_host(scheme, host))


def _place_of_host(scheme: str, host: str) -> Place:
    if not host or host == "s3.amazonaws.com":  # what s3cmd --configure writes when it was not told
        return NOWHERE
    endpoint = f"{scheme}://{host}"
    return Place(endpoint, zones.of_endpoint(endpoint))


def from_profile(around: Surroundings) -> Found | Absent:
    """The key and endpoint of the named AWS profile, else of `AWS_PROFILE`, else of `default`."""
    name = around.profile or around.environ.get("AWS_PROFILE", "") or "default"
    paths = (
        around.path("AWS_SHARED_CREDENTIALS_FILE", ".aws/credentials"),
        around.path("AWS_CONFIG_FILE", ".aws/config"),
    )
    shown = [around.shown(path) for path in paths]
    secrets, settings = (
        _sections(path, where) if path.exists() else {} for path, where in zip(paths, shown, strict=True)
    )
    title = name if name == "default" else f"profile {name}"
    values = {**settings.get(title, {}), **secrets.get(name, {})}
    where = f"{shown[0] if name in secrets else shown[1]}, profile {name}"
    if not values:
        return Absent(f"{shown[0]}, profile {name}", f"no such profile there or in {shown[1]}")
    credentials = _of_values(around, values, name, where)
    if credentials is None:
        return _keyless(values, where, is_named=name != "default")
    region = around.first(("AWS_REGION", "AWS_DEFAULT_REGION")) or values.get("region", "")
    return Found(credentials, where, aws_place(_aws_endpoint(around, values, settings), region))


def _keyless(values: Mapping[str, str], where: str, *, is_named: bool) -> Absent:
    """Why there is no key in a profile. The default one often holds a region alone, and is no near miss then."""
    unusable = [name for name in UNUSABLE if values.get(name)]
    if unusable:
        return Absent(where, f"sosfs cannot use a profile with {' and '.join(unusable)}", is_near=True)
    lacking = [name for name in ("aws_access_key_id", "aws_secret_access_key") if not values.get(name)]
    return Absent(where, f"no {' and no '.join(lacking)}", is_near=is_named or len(lacking) == 1)


def _of_values(around: Surroundings, values: Mapping[str, str], profile: str, where: str) -> Credentials | None:
    """The key that the lines of a profile are or name."""
    if aws_profiles.is_for(values):
        return aws_profiles.resolve(around, profile, where)
    key, secret = values.get("aws_access_key_id", ""), values.get("aws_secret_access_key", "")
    return Credentials(key, secret, values.get("aws_session_token", "")) if key and secret else None


def aws_place(endpoint: str, region: str) -> Place:
    """The place that AWS settings name. A region of AWS's own without an endpoint says nothing about a zone."""
    return Place(endpoint, region if endpoint or zones.is_usual(region) else "")


def _aws_endpoint(around: Surroundings, profile: Mapping[str, str], settings: Sections) -> str:
    """The endpoint for S3 by the AWS tools' own order: for the service before for all, variable before file."""
    service = settings.get(f"services {profile.get('services', '')}", {}).get("s3", "")
    lines = dict(re.findall(r"^\s*(\w+)\s*=\s*(\S+)", service, re.MULTILINE))
    candidates = (
        around.environ.get("AWS_ENDPOINT_URL_S3"),
        lines.get("endpoint_url"),
        around.environ.get("AWS_ENDPOINT_URL"),
        profile.get("endpoint_url"),
    )
    return next((endpoint for endpoint in candidates if endpoint), "")


def _sections(path: Path, where: str) -> Sections:
    """The sections of an INI file. Values stand as written: a `%` in a secret or in host_bucket means itself."""
    # No real section is called "": `[default]` is an ordinary one in all of these files.
    parser = configparser.ConfigParser(interpolation=None, default_section="", strict=False)
    try:
        parser.read_string(_text(path, where))
    except configparser.Error as error:
        raise CredentialError(f"{where}: {str(error).splitlines()[0]}") from error
    return {name: dict(parser[name]) for name in parser.sections()}


def _text(path: Path, where: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise CredentialError(f"{where}: {reason}") from error
