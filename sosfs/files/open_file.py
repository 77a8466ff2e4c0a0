"""What is open and what has changed of one file: the state that `contents` and `commits` share. Plain values."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from sosfs.cache.blocks import Source
from sosfs.cache.readahead import Stream
from sosfs.concurrency.locks import Turns
from sosfs.files.draft import Draft
from sosfs.files.upload import Upload
from sosfs.s3.protocol import Version
from sosfs.tree.inodes import Inode

LATE_MAX = 64  # different ones that are remembered of the requests without an answer


class Content:
    """The bytes side of an inode that is open or not yet in the bucket."""

    __slots__ = (
        *("draft", "failed", "going", "late", "lock", "row"),
        *("sending", "source", "times_given", "upload", "writers"),
    )

    def __init__(self) -> None:
        self.draft: Draft | None = None
        self.upload: Upload | None = None
        self.source: Source | None = None  # our own newest version, which every handle goes on with
        self.lock = Turns()  # one commit or record at a time
        self.writers = 0
        self.times_given = False  # mtime was set by the user after the last write
        self.sending = False  # a task is bringing it into the bucket
        self.row = 0  # of the draft in the journal; 0: none
        self.going: tuple[str, int] | None = None  # ETag and serial of what a request under way stores
        self.late: tuple[str, ...] = ()  # ETags of what earlier ones may store yet: they got no answer
        self.failed: OSError | None = None  # what the last commit ended with

    @contextmanager
    def committing(self) -> Iterator[None]:
        """For one commit: how it ends is remembered."""
        try:
            yield
        except OSError as error:
            self.failed = error
            raise
        self.failed = None

    def goes(self, token: str, serial: int) -> None:
        """A request is about to be sent; those before it that got no answer may take effect yet."""
        if self.going is not None:
            self.late = tuple(dict.fromkeys((*self.late, self.going[0])))[-LATE_MAX:]
        self.going = (token, serial)

    def rebase(self, source: Source, version: Version) -> None:
        """The object became another version with the same bytes, or under another key, by our own doing."""
        self.source = source
        if self.draft is not None:
            self.draft.expected = version
            self.draft.base = source if self.draft.base is not None else None


class Handle:
    """One open file: its inode, its version, how it is being read."""

    __slots__ = ("content", "inode", "is_unread", "reads", "source", "stream", "task", "writes")

    def __init__(self, inode: Inode, content: Content, flags: int, task: int) -> None:
        self.inode = inode
        self.content = content
        self.writes = flags & os.O_ACCMODE != os.O_RDONLY
        self.source: Source | None = None
        self.stream = Stream()
        self.reads = 0
        self.is_unread = False  # nobody has any of its bytes: it may yet begin with another version
        self.task = task  # the process that opened it


def opened(inode: Inode) -> Content | None:
    """The inode's content; None where it is neither open nor waiting to be stored."""
    return cast("Content | None", inode.content)


def draft_of(inode: Inode) -> Draft | None:
    """The inode's draft; None where nothing of it has been changed here."""
    content = opened(inode)
    return None if content is None else content.draft


def content_of(inode: Inode) -> Content:
    """The inode's content, made if need be."""
    content = opened(inode)
    if content is None:
        content = inode.content = Content()
    return content
