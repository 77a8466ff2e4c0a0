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


def files(path: Path, given: str, *, recursive: bool) -> Iterator[Path]:
    """What a path stands for: itself, or with `recursive` all below it that is no directory.

    Raises OSError EISDIR for a directory otherwise; `given` is how the user wrote it.
    """
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
    from sosfs.cli import progress  # noqa: PLC0415 - only where there is something to show

    def attempt(target: T) -> Outcome[T]:
        try:
            return Outcome(target, work(target))
        except OSError as error:
            return Outcome(target, error=error)

    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool, progress.of_items() as shown:
        for done, outcome in enumerate(pool.map(attempt, targets), start=1):
            if len(targets) >= REQUESTS_AT_ONCE:
                shown.tell(progress.Step(doing, done, len(targets)))
            yield outcome


def told(failed: Sequence[tuple[Path, OSError | None]], total: int, done: str) -> int:
    """Tells what failed, and returns the exit code."""
    for path, error in failed[:TOLD]:
        reason = error.strerror if error else ""
        print(f"sosfs: {printable(str(path))}: {reason}", file=sys.stderr)
    if len(failed) > TOLD:
        print(f"sosfs: and {len(failed) - TOLD} more", file=sys.stderr)
    if failed:
        why = "; .sosfs/errors in the mount says why" if done == "changed" else ""
        print(f"sosfs: {len(failed):,} of {counted(total, 'file')} not {done}{why}", file=sys.stderr)
    return Exit.FAILED if failed else Exit.OK
