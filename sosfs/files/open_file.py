"""The state of a file that is open or not stored yet: draft, upload, handles.

Plain values. Concurrency: trio thread only.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import trio

from sosfs.cache.blocks import Source
from sosfs.cache.readahead import Stream
from sosfs.concurrency.interrupt import waited
from sosfs.concurrency.locks import FairLock
from sosfs.files.draft import Draft
from sosfs.files.upload import Upload
from sosfs.s3.protocol import Version
from sosfs.s3.recognition import InFlight
from sosfs.tree.inodes import Inode


class OpenFile:
    """The bytes side of an inode that is open or not yet in the bucket."""

    __slots__ = (
        *("draft", "failed", "in_flight", "lock", "row"),
        *("is_leaving", "sending", "source", "times_given", "uncut", "upload", "writers"),
    )

    def __init__(self) -> None:
        self.draft: Draft | None = None
        self.upload: Upload | None = None
        self.source: Source | None = None  # our own newest version, which every handle goes on with
        self.lock = FairLock()  # one commit or record at a time
        self.writers = 0
        self.times_given = False  # mtime was set by the user after the last write
        self.sending = False  # a task is bringing it into the bucket
        self.is_leaving = False  # the file is being removed
        self.row = 0  # of the draft in the journal; 0: none
        self.in_flight = InFlight()
        self.failed: OSError | None = None  # what the last commit ended with
        self.uncut: trio.Event | None = None  # whoever would cut the file waits for it

    @contextmanager
    def committing(self) -> Iterator[None]:
        """For one commit: how it ends is remembered."""
        try:
            yield
        except OSError as error:
            self.failed = error
            raise
        self.failed = None

    @contextmanager
    def keeping_length(self) -> Iterator[None]:
        """Within, nobody cuts the file."""
        ended = self.uncut = trio.Event()
        try:
            yield
        finally:
            self.uncut = None
            ended.set()

    @property
    def is_in_doubt(self) -> bool:
        """Whether bytes of it are in the object or lost: its upload is gone, and nobody could tell yet what became."""
        return self.draft is not None and self.draft.may_come_back and bool(self.in_flight.tokens)

    @property
    def is_to_be_sent(self) -> bool:
        """Whether a further try may bring it into the bucket, or find it there."""
        return self.draft is not None and self.draft.is_dirty and (not self.draft.refused or self.is_in_doubt)

    def require_whole(self) -> None:
        """As `Draft.require_whole`, unless a look at the bucket has to decide that."""
        if self.draft is not None and not self.is_in_doubt:
            self.draft.require_whole()

    def rebase(self, source: Source, version: Version) -> None:
        """The object became another version with the same bytes, or under another key, by our own doing."""
        self.source = source
        if self.draft is not None:
            self.draft.expected = version
            self.draft.base = source if self.draft.base is not None else None


class Handle:
    """One open file: its inode, its version, how it is being read."""

    __slots__ = ("inode", "is_unread", "open_file", "reads", "source", "stream", "task", "writes")

    def __init__(self, inode: Inode, open_file: OpenFile, flags: int, task: int) -> None:
        self.inode = inode
        self.open_file = open_file
        self.writes = flags & os.O_ACCMODE != os.O_RDONLY
        self.source: Source | None = None
        self.stream = Stream()
        self.reads = 0
        self.is_unread = False  # nobody has any of its bytes: it may yet begin with another version
        self.task = task  # the process that opened it


def opened(inode: Inode) -> OpenFile | None:
    """The inode's content; None where it is neither open nor waiting to be stored."""
    return cast("OpenFile | None", inode.open_file)


async def may_be_cut(inode: Inode) -> None:
    """Waits for a commit of the file that was begun in vain too often (`OpenFile.keeping_length`)."""
    while (open_file := opened(inode)) is not None and open_file.uncut is not None:
        await waited(open_file.uncut.wait)


def draft_of(inode: Inode) -> Draft | None:
    """The inode's draft; None where nothing of it has been changed here."""
    open_file = opened(inode)
    return None if open_file is None else open_file.draft


def content_of(inode: Inode) -> OpenFile:
    """The inode's content, made if need be."""
    open_file = opened(inode)
    if open_file is None:
        open_file = inode.open_file = OpenFile()
    return open_file
