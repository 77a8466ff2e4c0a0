"""What of a mount's drafts the bucket lacks, counted and in words. Concurrency: trio thread only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from sosfs.files.draft import Draft
from sosfs.files.open_file import Content, opened
from sosfs.tree.inodes import Inode


def pending(inodes: Iterable[Inode]) -> tuple[int, int]:
    """Files and bytes that the bucket lacks."""
    drafts = [draft for _, _, draft in _unsent(inodes)]
    return len(drafts), sum(stop - start for draft in drafts for start, stop in draft.unsent)


def waiting(inodes: Iterable[Inode]) -> list[str]:
    """What the last try to send did not bring into the bucket, and why."""
    failed = [(inode, content.failed) for inode, content, _ in _unsent(inodes) if content.failed is not None]
    return [f"bytes of {inode.name.decode(errors='replace')}: {error.strerror or error}" for inode, error in failed]


def _unsent(inodes: Iterable[Inode]) -> Iterator[tuple[Inode, Content, Draft]]:
    for inode in inodes:
        content = opened(inode)
        if inode.parent is None or content is None or content.draft is None or not content.draft.is_dirty:
            continue
        yield inode, content, content.draft
