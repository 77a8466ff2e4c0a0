"""The cache directories that mounts have left: which of them nobody needs, and why the others stay.

A directory that a mount has now is left alone: its lock says so. One goes only if all in it is known, and nothing of
that is owed to the bucket or damaged. Blocking; nothing is changed here but by `remove`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sosfs.disk.damage import entries
from sosfs.disk.lock import locked
from sosfs.journal.journal import DAMAGED, FILE, LeftOver, left_over

OF_BUCKET = re.compile(r"(?P<bucket>.+)-[0-9a-f]{12}")
OF_ACCOUNT = re.compile(r"[0-9a-f]{12}")
SPOOL, BLOCKS = "spool", "blocks"
KNOWN = re.compile(r"journal\.(sqlite|mark)(-wal|-shm|\.new.*)?|attributes\.sqlite(-wal|-shm)?|lock|reserve")
FOLDERS = {SPOOL, BLOCKS, DAMAGED}
IN_USE = "a mount has it"


@dataclass(frozen=True, slots=True)
class StateDirectory:
    """What one mount has left. `inner` are those of its buckets where it was a mount of all of an account."""

    path: Path
    inner: Sequence[Path] = ()

    @property
    def buckets(self) -> Sequence[Path]:
        """The directories that each have a journal."""
        return self.inner or (self.path,)

    def is_of(self, bucket: str) -> bool:
        """Whether it is one bucket's, of this name: as its journal says, or where there is none as it is called."""
        if self.inner:
            return False
        with contextlib.suppress(OSError):  # nothing says so
            if left := left_over(self.path):
                return _bucket(left) == bucket
        match = OF_BUCKET.fullmatch(self.path.name)
        return match is not None and match["bucket"] == bucket


def found(root: Path) -> list[StateDirectory]:
    """The cache directory that `root` is, or all that are in it, by name."""
    if _is_one(root):
        return [StateDirectory(root)]
    directories = []
    for path in _folders(root):
        if not OF_BUCKET.fullmatch(path.name) and not _is_one(path):
            continue
        accounts = [each for each in _folders(path) if OF_ACCOUNT.fullmatch(each.name)]
        directories += [StateDirectory(each, [*_folders_of_buckets(each)]) for each in accounts]
        if not accounts:
            directories.append(StateDirectory(path))
    return directories


def _is_one(path: Path) -> bool:
    return (path / FILE).exists() and (path / "lock").exists()


def _folders(path: Path) -> list[Path]:
    if not path.is_dir():
        return []
    return sorted(each for each in path.iterdir() if each.is_dir() and not each.is_symlink())


def _folders_of_buckets(account: Path) -> Iterator[Path]:
    return (path for path in _folders(account) if OF_BUCKET.fullmatch(path.name))


@contextlib.contextmanager
def held(directory: StateDirectory) -> Iterator[bool]:
    """Whether it is ours for the length of the block: no mount has it, and none can have it."""
    try:
        lock = locked(directory.path)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        yield False
        return
    try:
        yield True
    finally:
        os.close(lock)


def reasons(directory: StateDirectory) -> list[str]:
    """Why it must stay, one line each; to be asked while it is held."""
    lines = [line for path in {directory.path, *directory.buckets} for line in _damage(path)]
    for path in directory.buckets:
        lines += _owed(path)
    if directory.inner:
        lines += _foreign(directory.path, {path.name for path in directory.inner})
    return lines


def _damage(path: Path) -> list[str]:
    return [f"damaged: {line}" for line in entries(path / DAMAGED)]


def _owed(path: Path) -> list[str]:
    lines = _foreign(path, set())
    try:
        left = left_over(path)
    except OSError as error:
        return [*lines, f"its journal cannot be read: {error.strerror or error}"]
    if left is not None and left.changes:
        count = "1 change is" if left.changes == 1 else f"{left.changes} changes are"
        lines.append(f"{count} not in the bucket: mount {_named(left)} and unmount it")
    if left is not None and not left.is_whole:
        lines.append(f"its journal is damaged: mount {_named(left)}, which tells what is left")
    if left is not None and left.uploads and not left.changes:
        count = "1 upload" if left.uploads == 1 else f"{left.uploads} uploads"
        lines.append(f"{count} of it are unfinished in the bucket: 'sosfs clean {_bucket(left)}' ends them")
    if left is not None and left.scratch and not left.changes:
        lines.append(f"scratch objects of it are in the bucket: 'sosfs clean {_bucket(left)}' removes them")
    spools = list((path / SPOOL).glob("*")) if (path / SPOOL).is_dir() else []
    if spools and not (left and left.changes):
        lines.append(f"bytes that were written lie in {path / SPOOL}, and no journal says of what file")
    return lines


def _bucket(left: LeftOver) -> str:
    return left.owner.split(" ", 2)[1]


def _named(left: LeftOver) -> str:
    endpoint, bucket, prefix = left.owner.split(" ", 2)
    return f"{bucket}/{prefix} of {endpoint}" if prefix else f"{bucket} of {endpoint}"


def _foreign(path: Path, others: set[str]) -> list[str]:
    strange = sorted(
        each.name
        for each in path.iterdir()
        if each.name not in others and not (each.name in FOLDERS if each.is_dir() else KNOWN.fullmatch(each.name))
    )
    return [f"it holds what is not of sosfs: {', '.join(strange[:3])}"] if strange else []


def size(directory: StateDirectory) -> int:
    """Bytes that it takes on the disk."""
    total = 0
    for folder, _, names in os.walk(directory.path):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += (Path(folder) / name).lstat().st_blocks * 512
    return total


def remove(directory: StateDirectory) -> None:
    """Removes it, and the account's above it when that was the last in it. Raises OSError."""
    shutil.rmtree(directory.path)
    if directory.inner:
        with contextlib.suppress(OSError):  # another account's is there
            directory.path.parent.rmdir()
