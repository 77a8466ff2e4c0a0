"""A key, and the protocol of what gives the store its key.

Values are immutable and safe from any thread. None of them shows a secret in its repr.
"""

from __future__ import annotations

import errno
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from sosfs.config.zones import NOWHERE, Place

ENDING = 60.0  # seconds before its end from which on a key is read again


@dataclass(frozen=True, slots=True)
class Credentials:
    """An access key with its secret, and a session token ("" for none).

    `expires` is when it ends, in seconds since the epoch; infinite where nobody has said that it does.
    """

    access_key: str
    secret_key: str = field(repr=False)
    token: str = field(default="", repr=False)
    expires: float = math.inf

    @property
    def is_nobody(self) -> bool:
        """Whether this is no key: requests go unsigned."""
        return not self.access_key

    @property
    def is_ending(self) -> bool:
        """Whether it is time for another one."""
        return time.time() > self.expires - ENDING


NOBODY = Credentials("", "")  # with which nothing is signed


class Anonymous:
    """The `CredentialSource` of who uses no key: none is looked for, and none is found in its place."""

    def current(self) -> Credentials:
        """Nobody's."""
        return NOBODY

    def refresh(self) -> Credentials:
        """Nobody's, still."""
        return NOBODY


class CredentialSource(Protocol):
    """What gives the store its key. May be called from any thread."""

    def current(self) -> Credentials:
        """The key as last read, without blocking."""

    def refresh(self) -> Credentials:
        """The key as it is now, read again. Blocks on files and a command of the user's. Raises `CredentialError`."""


class CredentialError(OSError):
    """No usable key, in words for the user. EACCES: that is what a file system can say of it."""

    def __init__(self, message: str) -> None:
        super().__init__(errno.EACCES, message)

    def __str__(self) -> str:
        return str(self.strerror)


@dataclass(frozen=True, slots=True)
class Found:
    """A key, where it was found, and the place that the same source names."""

    credentials: Credentials
    where: str
    place: Place = NOWHERE


@dataclass(frozen=True, slots=True)
class Absent:
    """Where a key was looked for and why there was none; `why` never holds a value.

    `is_near`: there is half of one, or one that cannot be used, so its user takes it for a key.
    """

    where: str
    why: str
    is_near: bool = False


@dataclass(frozen=True)
class Surroundings:
    """What the search may look at: the environment, the home directory, and the profile the user named."""

    environ: Mapping[str, str]
    home: Path
    profile: str = ""

    @classmethod
    def of_process(cls, profile: str = "") -> Surroundings:
        """Those of this process, as they are now."""
        return cls(dict(os.environ), Path.home(), profile)

    def first(self, names: Sequence[str]) -> str:
        """The value of the first of these variables that is not empty, else ""."""
        return next((self.environ[name] for name in names if self.environ.get(name)), "")

    def path(self, variable: str, default: str) -> Path:
        """The file that a variable names, else the one at `default` in the home directory."""
        named = self.environ.get(variable, "")
        return Path(named).expanduser() if named else self.home / default

    def shown(self, path: Path) -> str:
        """The path as a user would write it."""
        return f"~/{path.relative_to(self.home)}" if path.is_relative_to(self.home) else str(path)
