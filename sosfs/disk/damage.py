"""Set damaged state aside, and count it until its user has removed it.

    STATE/damaged/20251128T204501Z-1/what    text; its first line is what `sosfs status` says
                                    /...     the bytes that are left: a spool file, a row's body, a database

A mount goes on without what is damaged, but does not get over it: an entry stays over remounts, and as long as
there is one an unmount ends with code 3. To remove the directory is to have dealt with it.

Where nothing can be set aside, for instance on a full disk, it is told until this process ends, and whoever asked for
it has to leave the damaged thing where it is, for the next mount to find again.

Concurrency: trio thread only; blocks for an fsync, which nothing but damage ever costs.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import shutil
import time
from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from types import MappingProxyType

log = logging.getLogger(__name__)

NOTHING: Mapping[str, bytes] = MappingProxyType({})
WHAT = "what"


class Damage:
    """What is damaged in one state directory."""

    def __init__(self, directory: Path) -> None:
        """`directory` is made when something is found."""
        self._directory = directory
        self._noted: dict[str, None] = {}  # what has no entry, in order

    def set_aside(
        self,
        what: str,
        details: Mapping[str, object] = MappingProxyType({}),
        *,
        files: Iterable[Path] = (),
        bodies: Mapping[str, bytes] = NOTHING,
    ) -> bool:
        """Makes an entry that holds `bodies`, by name, and `files`, which are moved there as far as they exist.

        Returns whether it is on the disk; if not, what could not be moved is where it was.
        """
        line = printable(what)
        entry = None
        try:
            entry = self._entry()
            for name, body in {WHAT: _text(line, details), **bodies}.items():
                _write(entry / name, body)
            for file in filter(os.path.lexists, files):
                file.rename(entry / file.name)
            for directory in (entry, self._directory, self._directory.parent):
                sync_directory(directory)
        except OSError as error:
            if entry is not None:
                _discard(entry, {WHAT, *bodies})
            self.note(f"{line} (it could not be set aside: {error})")
            return False
        log.error("damaged: %s; what is left of it is in %s", line, entry)
        return True

    def must_set_aside(
        self,
        what: str,
        details: Mapping[str, object],
        *,
        files: Iterable[Path] = (),
        bodies: Mapping[str, bytes] = NOTHING,
    ) -> None:
        """As `set_aside`, for what a mount cannot begin without. Raises OSError."""
        if not self.set_aside(what, details, files=files, bodies=bodies):
            raise OSError(errno.EIO, f"the journal is damaged: {next(reversed(self._noted))}")

    def _entry(self) -> Path:
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        for number in itertools.count(1):
            entry = self._directory / f"{stamp}-{number}"
            if not entry.exists():
                break
        entry.mkdir(mode=0o700, parents=True)
        return entry

    def note(self, what: str) -> None:
        """Tells of what there is nothing to set aside of, until the process ends."""
        line = printable(what)
        if line not in self._noted:
            self._noted[line] = None
            log.error("damaged: %s", line)

    @property
    def lines(self) -> tuple[str, ...]:
        """Everything that nobody has dealt with yet, one line each."""
        return (*self._noted, *entries(self._directory))


def entries(directory: Path) -> list[str]:
    """What is set aside in a directory, oldest first, one line each with where it is."""
    try:
        found = sorted((path for path in directory.iterdir() if path.is_dir()), key=_age)
    except FileNotFoundError:
        return []
    return [f"{_first_line(entry / WHAT)}: {entry}" for entry in found]


def _age(entry: Path) -> tuple[str, int]:
    stamp, _, number = entry.name.rpartition("-")
    return stamp, int(number) if number.isdecimal() else 0


def _first_line(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").partition("\n")[0] or "unknown"
    except OSError:
        return "unknown"  # a crash came while it was made


def printable(text: str) -> str:
    """A text as one line: a key may hold any character."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def _text(line: str, details: Mapping[str, object]) -> bytes:
    rest = "".join(f"{name}: {printable(str(value))}\n" for name, value in details.items())
    return f"{line}\n{rest}".encode("utf-8", "backslashreplace")


def _discard(entry: Path, written: Set[str]) -> None:
    """Removes an entry that could not be finished, unless something was moved there already."""
    with contextlib.suppress(OSError):
        if {path.name for path in entry.iterdir()} <= written:
            shutil.rmtree(entry)


def _write(path: Path, body: bytes) -> None:
    with path.open("wb") as file:
        file.write(body)
        file.flush()
        os.fsync(file.fileno())


def sync_directory(directory: Path) -> None:
    """The names in a directory survive a power loss afterwards. Raises OSError."""
    file = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)
