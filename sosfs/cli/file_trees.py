"""Do something to files and to all files of trees, side by side, with progress, and tell of which it failed.

What cannot be done for one file is told at the end and does not keep the others from being done. Blocking; threads of
its own for the requests.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from sosfs.cli import progress
from sosfs.cli.location import Location
from sosfs.daemon.launch import Exit
from sosfs.log.escaping import printable
from sosfs.log.wording import counted

REQUESTS_AT_ONCE = 32  # as many small requests as the mount sends side by side
TOLD = 20  # failures that are named one by one

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Outcome(Generic[T]):
    """What came of one target: its text, or why not."""

    target: T
    text: str = ""
    error: OSError | None = None


def files(places: Sequence[Location], *, recursive: bool) -> Iterator[tuple[Location, Path]]:
    """What each place stands for: itself, or with `recursive` all below it that is no directory.

    Raises OSError EISDIR for a directory otherwise.
    """
    with progress.of_items("listing") as shown:
        found = 0
        for place in places:
            for file in _files(place.path, place.given, recursive=recursive):
                found += 1
                shown.tell(progress.Step(f"listing, {counted(found, 'file')} so far", found, None))
                yield place, file


def _files(path: Path, given: str, *, recursive: bool) -> Iterator[Path]:
    if not stat.S_ISDIR(path.lstat().st_mode):
        yield path
    elif recursive:
        yield from _below(path)
    else:
        raise OSError(errno.EISDIR, "a directory; -r does it for all files below", given)


def _below(directory: Path) -> Iterator[Path]:
    with os.scandir(directory) as entries:
        for entry in sorted(entries, key=lambda each: each.name):
            if entry.is_dir(follow_symlinks=False):
                yield from _below(Path(entry.path))
            else:
                yield Path(entry.path)


def each(work: Callable[[T], str], targets: Sequence[T], doing: str) -> Iterator[Outcome[T]]:
    """Does `work` for all, side by side; outcomes in order, as they come. `doing` is shown: `reading ACLs`."""

    def attempt(target: T) -> Outcome[T]:
        try:
            return Outcome(target, work(target))
        except OSError as error:
            return Outcome(target, error=error)

    pool = ThreadPoolExecutor(REQUESTS_AT_ONCE)
    try:
        with progress.of_items(doing) as shown:
            for done, outcome in enumerate(pool.map(attempt, targets), start=1):
                shown.tell(progress.Step(doing, done, len(targets)))
                yield outcome
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # after a Ctrl-C nobody waits for what is under way


def told(failed: Sequence[tuple[Path, OSError | None]], total: int, done: str) -> int:
    """Tells what failed, and returns the exit code."""
    for path, error in failed[:TOLD]:
        reason = (error.strerror or str(error)) if error else ""
        print(f"sosfs: {printable(f'{path}: {reason}')}", file=sys.stderr)
    if len(failed) > TOLD:
        print(f"sosfs: and {len(failed) - TOLD} more", file=sys.stderr)
    if failed:
        why = "; .sosfs/errors in the mount says why" if done == "changed" else ""
        print(f"sosfs: {len(failed):,} of {counted(total, 'file')} not {done}{why}", file=sys.stderr)
    return Exit.FAILED if failed else Exit.OK
