"""Self-copies whose outcome is unknown: a request that stores attributes and got no answer.

A request that got no answer may have been carried out, or may be later: a large copy goes on for seconds after its
client has died. Such a copy makes a new Last-Modified, and of an object that was stored in parts another ETag, so that
it looks like another client's version; by the properties that were sent with it, it is known as ours. One that
comes late undoes what was written since: for `LATE` seconds the object is looked at again.

Concurrency: trio thread only.
"""

from __future__ import annotations

import trio

from sosfs.errors import StoreError
from sosfs.s3.protocol import Object, Properties
from sosfs.tree.inodes import Inode

LATE = 60.0  # seconds after which a server is taken to have given up a request
KEPT = 8  # requests of one inode that are remembered


class UnansweredCopies:
    """What was sent for each inode, and is not known to be done or refused."""

    def __init__(self) -> None:
        self._sent: dict[Inode, tuple[Properties, ...]] = {}
        self._until: dict[Inode, float] = {}

    def sent(self, inode: Inode) -> tuple[Properties, ...]:
        """With which properties copies may have been made."""
        return self._sent.get(inode, ())

    def begin(self, inode: Inode, used: Properties) -> None:
        """A copy is about to be sent."""
        self._sent[inode] = (*self.sent(inode), used)[-KEPT:]

    def end(self, inode: Inode, used: Properties) -> None:
        """It is made, or it never will be."""
        left = tuple(one for one in self.sent(inode) if one is not used)
        if left:
            self._sent[inode] = left
        else:
            self.forget(inode)

    def failed(self, inode: Inode, used: Properties, error: StoreError) -> None:
        """It ended with an error, which may be an answer or not."""
        if 400 <= error.status < 500 and not error.repeated:
            self.end(inode, used)
        else:
            self._until[inode] = trio.current_time() + LATE

    def take_up(self, inode: Inode, sent: tuple[Properties, ...]) -> None:
        """A process that has died sent these."""
        if sent:
            self._sent[inode], self._until[inode] = sent, trio.current_time() + LATE

    def seen(self, inode: Inode, found: Object) -> bool:
        """Whether one of them made `found`, which then is no longer in doubt."""
        for one in self.sent(inode):
            if is_made_by(one, found):
                self.end(inode, one)
                return True
        return False

    def is_over(self, inode: Inode) -> bool:
        """Whether none of them can come any more."""
        return trio.current_time() >= self._until.get(inode, 0.0)

    def forget(self, inode: Inode) -> None:
        """The object is gone, or another one."""
        self._sent.pop(inode, None)
        self._until.pop(inode, None)


def is_made_by(sent: Properties, found: Object) -> bool:
    """Whether a copy with these properties has made an object: all metadata have the file's time to the nanosecond."""
    return sent.metadata == found.properties.metadata
