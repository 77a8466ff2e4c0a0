"""Count and name the drafts that the bucket lacks.

Concurrency: trio thread only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from sosfs.files.draft import Draft
from sosfs.files.open_file import OpenFile, opened
from sosfs.tree.inodes import Inode


def pending(inodes: Iterable[Inode]) -> tuple[int, int]:
    """Files and bytes that the bucket lacks."""
    drafts = [draft for _, _, draft in _unsent(inodes)]
    return len(drafts), sum(stop - start for draft in drafts for start, stop in draft.unsent)


def waiting(inodes: Iterable[Inode]) -> list[str]:
    """What the last try to send did not bring into the bucket, and why."""
    failed = [(inode, open_file.failed) for inode, open_file, _ in _unsent(inodes) if open_file.failed is not None]
    return [f"bytes of {inode.name.decode(errors='replace')}: {error.strerror or error}" for inode, error in failed]


def _unsent(inodes: Iterable[Inode]) -> Iterator[tuple[Inode, OpenFile, Draft]]:
    for inode in inodes:
        open_file = opened(inode)
        if inode.parent is None or open_file is None or open_file.draft is None or not open_file.draft.is_dirty:
            continue
        yield inode, open_file, open_file.draft
