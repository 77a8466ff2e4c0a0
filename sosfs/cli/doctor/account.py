"""Check what the user has configured: settings files and the key.

Each place where a key was looked for is told, never a secret. Blocking, no state.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass

from sosfs.cli.doctor.findings import Finding, Verdict
from sosfs.config import key_search, parameters
from sosfs.config.credentials import NOBODY, CredentialError, Credentials, Found, Surroundings
from sosfs.config.parameters import Settings
from sosfs.config.zones import Naming, Place


@dataclass(frozen=True, slots=True)
class Key:
    """The key that was found, as a `CredentialSource` that never searches again: the user's command ran once."""

    found: Found

    def current(self) -> Credentials:
        return self.found.credentials

    def refresh(self) -> Credentials:
        return self.found.credentials


def files() -> Iterator[Finding]:
    """The settings files that are read."""
    for path in parameters.files():
        yield Finding("settings", Verdict.NOTE, f"{path}: {'read' if path.exists() else 'no such file'}")


def key(settings: Settings) -> Generator[Finding, None, Key | None]:
    """Each source in order, up to the one that is used, which is returned."""
    if settings.anonymous:
        yield Finding("key", Verdict.NOTE, "none is looked for: --anonymous")
        return Key(Found(NOBODY, "--anonymous"))
    around = Surroundings.of_process(settings.profile)
    try:
        for answer in key_search.look(around):
            if isinstance(answer, Found):
                yield Finding("key", Verdict.OK, f"{answer.where}: {answer.credentials.access_key}")
                return Key(answer)
            yield Finding("key", Verdict.NOTE, f"{answer.where}: {answer.why}")
    except CredentialError as error:
        yield Finding("key", Verdict.FAIL, str(error), "correct or remove that file")
        return None
    advice = "correct --profile" if settings.profile else "set EXOSCALE_API_KEY and EXOSCALE_API_SECRET"
    yield Finding("key", Verdict.FAIL, "none found", advice)
    return None


def placed(settings: Settings, key: Key) -> Settings:
    """The settings at the place that a mount with this key would begin with."""
    named = Place(settings.endpoint, settings.zone)
    place = key_search.place(named, key.found, Surroundings.of_process(settings.profile))
    return settings.placed(place, Naming.STATED if named.is_fixed else Naming.ASSUMED)
