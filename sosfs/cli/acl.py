"""`sosfs acl`: show and replace the ACLs of files and trees.

It works through the control tree of the mount, so it needs no key, sees what the mount sees, and reaches
symbolic links too. A directory stands for the files below it, with -r; what cannot be done for one file is
told at the end and does not keep the others from being done. Blocking; threads of its own for the requests.
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

from sosfs.cli import location
from sosfs.control import acl_text, nodes
from sosfs.daemon import mountpoint
from sosfs.daemon.launch import Exit
from sosfs.log.escaping import printable
from sosfs.log.wording import counted

REQUESTS_AT_ONCE = 32  # as many small requests as the mount sends side by side
TOLD = 20  # failures that are named one by one


@dataclass(frozen=True, slots=True)
class Target:
    """A file, and where its ACL is."""

    path: Path
    setting: Path


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one target: its text, or why not."""

    target: Target
    text: str = ""
    error: OSError | None = None


def get(paths: Sequence[str], *, recursive: bool) -> int:
    """Prints the ACLs; 1 when one could not be read."""
    targets = _targets(paths, recursive=recursive)
    headed = recursive or len(targets) > 1
    failed: list[Outcome] = []

    def read(target: Target) -> str:
        return target.setting.read_text(encoding="utf-8")

    for outcome in _each(read, targets, "reading"):
        if outcome.error is not None:
            failed.append(outcome)
            continue
        lines = [line for line in outcome.text.splitlines() if not line.startswith("#")]
        head = [f"# file: {printable(str(outcome.target.path))}"] if headed else []
        print("\n".join([*head, *lines, *([""] if headed else [])]))
    return _told(failed, len(targets), "read")


def put(text: str, paths: Sequence[str], *, recursive: bool) -> int:
    """Gives all files the ACL of `text` (`-`: standard input; commas end lines); 1 when one did not get it.

    Raises `rejected_texts.BadText` before anything is changed.
    """
    said = sys.stdin.read() if text == "-" else text.replace(",", "\n")
    acl_text.parse(said, owner="")
    targets = _targets(paths, recursive=recursive)

    def write(target: Target) -> str:
        with target.setting.open("w", encoding="utf-8") as file:
            file.write(said)
        return ""

    failed = [outcome for outcome in _each(write, targets, "setting") if outcome.error is not None]
    if recursive:
        print(f"{counted(len(targets) - len(failed), 'file')} changed")
    return _told(failed, len(targets), "changed")


def _targets(paths: Sequence[str], *, recursive: bool) -> list[Target]:
    """What the paths stand for. Raises OSError for one that is in no mount of ours, or a directory without -r."""
    mounts = mountpoint.table()
    found: dict[Path, Target] = {}
    for given in paths:
        path = location.unfollowed(given)
        root = location.of(path, given, mounts).mount.mountpoint
        for file in _files(path, given, recursive=recursive):
            found[file] = _target(file, root)
    return list(found.values())


def _target(file: Path, root: Path) -> Target:
    """The control tree that has the file's ACL: the mount's, or that of its bucket where all buckets are mounted."""
    inside = file.relative_to(root)
    if not _acls(root).is_dir() and len(inside.parts) > 1:
        root, inside = root / inside.parts[0], Path(*inside.parts[1:])
    return Target(file, _acls(root) / inside)


def _acls(top: Path) -> Path:
    return top / nodes.NAME.decode() / "acl"


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


def _each(work: Callable[[Target], str], targets: Sequence[Target], doing: str) -> Iterator[Outcome]:
    """Does `work` for all, side by side; outcomes in order, as they come."""
    from sosfs.cli import progress  # noqa: PLC0415 - only where there is something to show

    def attempt(target: Target) -> Outcome:
        try:
            return Outcome(target, work(target))
        except OSError as error:
            return Outcome(target, error=error)

    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool, progress.of_items() as shown:
        for done, outcome in enumerate(pool.map(attempt, targets), start=1):
            if len(targets) >= REQUESTS_AT_ONCE:
                shown.tell(progress.Step(f"{doing} ACLs", done, len(targets)))
            yield outcome


def _told(failed: Sequence[Outcome], total: int, done: str) -> int:
    """Tells what failed, and returns the exit code."""
    for outcome in failed[:TOLD]:
        reason = outcome.error.strerror if outcome.error else ""
        print(f"sosfs: {printable(str(outcome.target.path))}: {reason}", file=sys.stderr)
    if len(failed) > TOLD:
        print(f"sosfs: and {len(failed) - TOLD} more", file=sys.stderr)
    if failed:
        why = "; .sosfs/errors in the mount says why" if done == "changed" else ""
        print(f"sosfs: {len(failed):,} of {counted(total, 'file')} not {done}{why}", file=sys.stderr)
    return Exit.FAILED if failed else Exit.OK
