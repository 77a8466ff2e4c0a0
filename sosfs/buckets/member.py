"""One bucket of a mount of all, and the range of inode numbers that is its own.

Bucket `index` has the numbers `index << SHIFT` and up, those of its control tree as far above `nodes.FIRST`: each
number of an inode or handle says whose it is, and nothing has to be looked up. An index is never used again.

Concurrency: trio thread only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import trio

from sosfs.concurrency.locks import FairLock
from sosfs.concurrency.tasks import Background
from sosfs.config.zones import Place
from sosfs.filesystem.bucket import BucketMount
from sosfs.s3.protocol import Bucket
from sosfs.tree.inodes import ROOT

SHIFT = 40  # bits of a number below the index: 10,000 new inodes a second for three years
MOST = 1 << 21  # indices; `nodes.FIRST` is the bit above


def index_of(number: int) -> int:
    """Whose a number of an inode or handle is; 0 is the directory of the buckets."""
    return number >> SHIFT & (MOST - 1)


@dataclass(eq=False)
class Member:
    """One bucket of the account."""

    index: int
    bucket: Bucket
    place: Place | None = None  # None: not asked yet
    served: BucketMount | None = None
    background: Background | None = None
    is_gone: bool = False
    lock: FairLock = field(default_factory=FairLock)  # entering and removing

    _busy: int = 0  # requests under way
    _was_busy: trio.Event | None = None

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """A request is under way."""
        self._busy += 1
        try:
            yield
        finally:
            self._busy -= 1
            if self._was_busy is not None and not self._busy:
                self._was_busy.set()

    async def idle(self) -> None:
        """Returns when no request is under way. None must begin any more."""
        if self._busy:
            self._was_busy = trio.Event()
            await self._was_busy.wait()

    @property
    def name(self) -> str:
        """The bucket's name."""
        return self.bucket.name

    @property
    def root(self) -> int:
        """The number of its top directory."""
        return self.index << SHIFT | ROOT
