"""`sosfs acl`: show and replace the ACLs of files and trees.

It works through the control tree of the mount, so it needs no key, sees what the mount sees, and reaches
symbolic links too. A directory stands for the files below it, with -r; what cannot be done for one file is
told at the end and does not keep the others from being done. Blocking; threads of its own for the requests.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sosfs.cli import file_trees, location
from sosfs.cli.file_trees import Outcome
from sosfs.control import acl_text, nodes
from sosfs.daemon import mountpoint
from sosfs.log.escaping import printable
from sosfs.log.wording import counted


@dataclass(frozen=True, slots=True)
class Target:
    """A file, and where its ACL is."""

    path: Path
    setting: Path


def get(paths: Sequence[str], *, recursive: bool) -> int:
    """Prints the ACLs; 1 when one could not be read."""
    targets = _targets(paths, recursive=recursive)
    headed = recursive or len(targets) > 1
    failed: list[Outcome[Target]] = []

    def read(target: Target) -> str:
        return target.setting.read_text(encoding="utf-8")

    for outcome in file_trees.each(read, targets, "reading ACLs"):
        if outcome.error is not None:
            failed.append(outcome)
            continue
        lines = [line for line in outcome.text.splitlines() if not line.startswith("#")]
        head = [f"# file: {printable(str(outcome.target.path))}"] if headed else []
        print("\n".join([*head, *map(printable, lines), *([""] if headed else [])]))
    return file_trees.told(_named(failed), len(targets), "read")


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

    failed = [outcome for outcome in file_trees.each(write, targets, "setting ACLs") if outcome.error is not None]
    if recursive:
        print(f"{counted(len(targets) - len(failed), 'file')} changed")
    return file_trees.told(_named(failed), len(targets), "changed")


def _targets(paths: Sequence[str], *, recursive: bool) -> list[Target]:
    """What the paths stand for. Raises OSError for one that is in no mount of ours, or a directory without -r."""
    places = location.looked_up(paths, mountpoint.table())
    found = {file: _target(file, at.mount.mountpoint) for at, file in file_trees.files(places, recursive=recursive)}
    return list(found.values())


def _target(file: Path, root: Path) -> Target:
    """The control tree that has the file's ACL: the mount's, or that of its bucket where all buckets are mounted."""
    inside = file.relative_to(root)
    if not _acls(root).is_dir() and len(inside.parts) > 1:
        root, inside = root / inside.parts[0], Path(*inside.parts[1:])
    return Target(file, _acls(root) / inside)


def _acls(top: Path) -> Path:
    return top / nodes.NAME.decode() / "acl"


def _named(failed: Sequence[Outcome[Target]]) -> list[tuple[Path, OSError | None]]:
    return [(outcome.target.path, outcome.error) for outcome in failed]
