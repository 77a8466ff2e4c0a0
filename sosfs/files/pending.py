"""Count and name the drafts that the bucket lacks, one by one and in words.

Concurrency: trio thread only.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping

from sosfs.errors import reason
from sosfs.files.draft import Draft
from sosfs.files.open_file import OpenFile, opened
from sosfs.ipc.pending import Kind, Pending
from sosfs.tree.inodes import Inode, Inodes


def pending(inodes: Iterable[Inode]) -> tuple[int, int]:
    """Files and bytes that the bucket lacks."""
    drafts = [draft for _, _, draft in _unsent(inodes)]
    return len(drafts), sum(stop - start for draft in drafts for start, stop in draft.unsent)


def waiting(inodes: Iterable[Inode]) -> list[str]:
    """What the last try to send did not bring into the bucket, and why."""
    failed = [(inode, open_file.failed) for inode, open_file, _ in _unsent(inodes) if open_file.failed is not None]
    return [f"bytes of {inode.name.decode(errors='replace')}: {error.strerror or error}" for inode, error in failed]


def oldest(inodes: Iterable[Inode]) -> float:
    """Since when the first of these files waits, in seconds since the epoch; 0.0 where none does."""
    return min((draft.since for _, _, draft in _unsent(inodes)), default=0.0)


def uploaded(inodes: Inodes, drafts: Iterable[Inode], moved: Mapping[str, int]) -> int:
    """Bytes of those that `pending` counts which the server has in parts, or is just getting: `moved`, by keys."""
    return sum(_uploaded(inodes, inode, open_file, draft, moved) for inode, open_file, draft in _unsent(drafts))


def described(
    inodes: Inodes, drafts: Iterable[Inode], ends: Mapping[Hashable, float], moved: Mapping[str, int]
) -> Iterator[tuple[Inode, Pending]]:
    """Each file of which the bucket lacks bytes. `ends` tells when its sending task tries again."""
    for inode, open_file, draft in _unsent(drafts):
        yield (
            inode,
            Pending(
                inodes.names(inode),
                Kind.CONTENT,
                draft.since,
                size=sum(stop - start for start, stop in draft.unsent),
                uploaded=_uploaded(inodes, inode, open_file, draft, moved),
                error=_error(open_file),
                retry_at=ends.get(open_file, 0.0),
            ),
        )


def _uploaded(inodes: Inodes, inode: Inode, open_file: OpenFile, draft: Draft, moved: Mapping[str, int]) -> int:
    if open_file.upload is None and not draft.is_committing:
        return 0  # as most of a long queue: nothing of it is on its way
    unsent = draft.unsent
    parts = open_file.upload.confirmed(unsent) if open_file.upload is not None else 0
    flying = next((size for key, size in moved.items() if inodes.has_key(inode, key)), 0)
    return min(parts + flying, sum(stop - start for start, stop in unsent))


def _error(open_file: OpenFile) -> str:
    try:
        open_file.require_whole()
    except OSError as error:
        return reason(error)
    return reason(open_file.failed) if open_file.failed is not None else ""


def _unsent(inodes: Iterable[Inode]) -> Iterator[tuple[Inode, OpenFile, Draft]]:
    for inode in inodes:
        open_file = opened(inode)
        if inode.parent is None or open_file is None or open_file.draft is None or not open_file.draft.is_dirty:
            continue
        yield inode, open_file, open_file.draft
