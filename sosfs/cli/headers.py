"""`sosfs headers` and `sosfs metadata`: show, set and remove headers and metadata of files and trees.

It works through the extended attributes of the mounted files, so that it needs no key, and that what waits to go into
the bucket, permissions and ACLs are kept as by any other change of attributes. Only regular files have them here: what
else a tree holds is passed over. A file that has the value already is not written. Blocking; threads of its own for
the requests.
"""

from __future__ import annotations

import difflib
import errno
import os
import re
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from sosfs.cli import file_trees, location
from sosfs.cli.file_trees import Outcome
from sosfs.config.parameters import SettingError
from sosfs.daemon import mountpoint
from sosfs.errors import StoreError, reason
from sosfs.log.escaping import printable
from sosfs.log.wording import counted
from sosfs.metadata import system_headers, user_metadata, xattr_encoding
from sosfs.s3.http_headers import SYSTEM, check_properties
from sosfs.s3.protocol import Headers, Properties

USER = "user."
MIME_TYPE = USER + xattr_encoding.MIME_TYPE.decode()
_FIELDS = {name: field for field, name in SYSTEM.items()}
_NAME = re.compile(r"[a-z0-9.-]+")


class Kind(Enum):
    """Of which a command speaks."""

    HEADERS = "headers"
    METADATA = "metadata"


class Done(Enum):
    """What was done to one file."""

    CHANGED = "changed"
    SAME = "same"
    PASSED_OVER = "passed over"  # no regular file


@dataclass(frozen=True, slots=True)
class Entry:
    """A header or an entry of metadata, and the extended attribute that stands for it."""

    name: str
    attribute: str


HEADERS = tuple(
    Entry(name, MIME_TYPE if field == "content_type" else f"{USER}sos.{name.lower()}") for field, name in SYSTEM.items()
)


def entry(kind: Kind, name: str) -> Entry:
    """What a user means by a name, in whichever case. Raises `SettingError` for what is none."""
    if kind is Kind.HEADERS:
        return _header(name)
    lower = name.lower()
    if lower in user_metadata.POSIX_NAMES:
        raise SettingError(f"{name} is an attribute of the file: chmod, chown and touch change it")
    if not _NAME.fullmatch(lower) or xattr_encoding.shown(lower) != lower.encode():
        raise SettingError(f"{name!r} is no name of metadata: letters, digits, '.' and '-' are good, not 'sos.' first")
    return Entry(lower, USER + lower)


def _header(name: str) -> Entry:
    names = {each.name.lower(): each for each in HEADERS}
    if name.lower() in names:
        return names[name.lower()]
    near = difflib.get_close_matches(name.lower(), names, 1)
    hint = f"did you mean {names[near[0]].name}?" if near else f"there are {', '.join(_FIELDS)}"
    raise SettingError(f"no header that a file can have: {name}; {hint}")


def check(kind: Kind, wanted: Entry, value: str) -> None:
    """Raises `SettingError` for a value that the header or metadata cannot have."""
    try:
        if not value:
            raise OSError(errno.EINVAL, f"it is empty; 'sosfs {kind.value} unset' removes it")
        if kind is Kind.HEADERS:
            field = _FIELDS[wanted.name]
            text = system_headers.checked(field, os.fsencode(value))
            check_properties(Properties(Headers(**{field: text})))
        else:
            text = xattr_encoding.to_text(os.fsencode(value))
            check_properties(Properties(metadata={wanted.name: text}))
    except OSError as error:
        why = reason(error) if isinstance(error, StoreError) else error.strerror
        raise SettingError(f"{wanted.name}: {why}") from error


def get(kind: Kind, wanted: Entry | None, paths: Sequence[str], *, recursive: bool) -> int:
    """Prints one entry of files, or all (None); 1 where one could not be read or a file that is named lacks it."""
    targets = _targets(paths, recursive=recursive)
    is_headed = recursive or len(targets) > 1

    def read(path: Path) -> str:
        if _is_passed_over(path, recursive=recursive):
            return ""
        if wanted is None:
            found = [(each.name, _value(path, each)) for each in _all(kind, path)]
            return "\n".join(f"{name}: {_text(value)}" for name, value in found if value is not None)
        value = _value(path, wanted)
        if value is None and not recursive:
            raise OSError(errno.ENODATA, f"it has no {wanted.name}")
        return "" if value is None else f"{wanted.name}: {_text(value)}" if is_headed else _text(value)

    failed: list[Outcome[Path]] = []
    for outcome in file_trees.each(read, targets, f"reading {kind.value}"):
        if outcome.error is not None:
            failed.append(outcome)
        elif outcome.text:
            print(f"# file: {printable(str(outcome.target))}\n{outcome.text}\n" if is_headed else outcome.text)
    return file_trees.told(_named(failed), len(targets), "read")


def put(kind: Kind, wanted: Entry, value: str, paths: Sequence[str], *, recursive: bool) -> int:
    """Gives all files the entry; 1 where one did not get it. Raises `SettingError` before anything is sent."""
    check(kind, wanted, value)
    raw = os.fsencode(value)

    def work(path: Path) -> Done:
        if _value(path, wanted) == raw:
            return Done.SAME
        os.setxattr(path, wanted.attribute, raw)
        return Done.CHANGED

    return _change(work, paths, f"setting {kind.value}", recursive=recursive)


def guess(paths: Sequence[str], *, recursive: bool) -> int:
    """Gives all files the Content-Type that their names tell, where they tell one."""
    kind_of = HEADERS[0]

    def work(path: Path) -> Done:
        told = system_headers.for_name(path.name).content_type
        if told == system_headers.UNKNOWN or _value(path, kind_of) == told.encode():
            return Done.SAME
        os.setxattr(path, kind_of.attribute, told.encode())
        return Done.CHANGED

    return _change(work, paths, "guessing Content-Type", recursive=recursive)


def unset(kind: Kind, wanted: Entry, paths: Sequence[str], *, recursive: bool) -> int:
    """Removes the entry from all files; 1 where one still has it. Content-Type becomes what the name tells."""

    def work(path: Path) -> Done:
        left = system_headers.for_name(path.name).content_type.encode() if wanted.attribute == MIME_TYPE else None
        if _value(path, wanted) in (None, left):
            return Done.SAME
        os.removexattr(path, wanted.attribute)
        return Done.CHANGED

    return _change(work, paths, f"removing {kind.value}", recursive=recursive)


def _change(work: Callable[[Path], Done], paths: Sequence[str], doing: str, *, recursive: bool) -> int:
    targets = _targets(paths, recursive=recursive)

    def change(path: Path) -> str:
        if _is_passed_over(path, recursive=recursive):
            return Done.PASSED_OVER.value
        done = work(path)
        if done is Done.CHANGED:
            _sync(path)
        return done.value

    counts = dict.fromkeys((done.value for done in Done), 0)
    failed: list[Outcome[Path]] = []
    for outcome in file_trees.each(change, targets, doing):
        if outcome.error is not None:
            failed.append(outcome)
        else:
            counts[outcome.text] += 1
    if recursive:
        print(f"{counted(counts[Done.CHANGED.value], 'file')} changed, {counts[Done.SAME.value]:,} as before")
    return file_trees.told(_named(failed), len(targets), "changed")


def _sync(path: Path) -> None:
    """What was set is as safe as the mount's durability has it; else a failure would be told to nobody."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _targets(paths: Sequence[str], *, recursive: bool) -> list[Path]:
    """The files, links to them resolved. Raises OSError for one that is in no mount, or a directory without -r."""
    places = location.looked_up(paths, mountpoint.table(), location.followed)
    return list(dict.fromkeys(file for _, file in file_trees.files(places, recursive=recursive)))


def _is_passed_over(path: Path, *, recursive: bool) -> bool:
    """Whether a file of a tree has no headers. Raises OSError EINVAL for one that is named."""
    if stat.S_ISREG(path.lstat().st_mode):
        return False
    if not recursive:
        raise OSError(errno.EINVAL, "no regular file")
    return True


def _value(path: Path, wanted: Entry) -> bytes | None:
    try:
        return os.getxattr(path, wanted.attribute)
    except OSError as error:
        if error.errno != errno.ENODATA:
            raise
        return None


def _all(kind: Kind, path: Path) -> Sequence[Entry]:
    if kind is Kind.HEADERS:
        return HEADERS
    names = [name.removeprefix(USER) for name in os.listxattr(path) if name.startswith(USER) and name != MIME_TYPE]
    return [Entry(name, USER + name) for name in sorted(names) if not name.startswith("sos.")]


def _text(value: bytes) -> str:
    return printable(os.fsdecode(value))


def _named(failed: Sequence[Outcome[Path]]) -> list[tuple[Path, OSError | None]]:
    return [(outcome.target, outcome.error) for outcome in failed]
