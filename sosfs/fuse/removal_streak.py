"""Tell `rm -r` from other walks, to spare it a request for each file.

Before it removes a name, the kernel looks it up. A listed object small enough to be a symbolic link has
to be asked for its type then, or a link would be followed as a file; and of a listing that is out of date each name
has to be asked for again. A task that has removed several names of a directory in a row, each right after looking it
up, will remove the next one too, whatever it is by now: it gets what the listing told, however old that is. The first
name it looks up and does not remove ends the streak.

Concurrency: trio thread only.
"""

from __future__ import annotations

LONG = 3  # removals in a row


class RemovalStreak:
    """The removals of one task."""

    __slots__ = ("_count", "_guessed", "_task")

    def __init__(self) -> None:
        self._task = 0
        self._count = 0
        self._guessed: tuple[int, bytes] | None = None  # directory and name

    def may_guess(self, task: int, parent: int, name: bytes) -> bool:
        """Whether `task`, which looks `name` up, is about to remove it."""
        if task != self._task or self._count < LONG:
            return False
        if self._guessed not in (None, (parent, name)):
            self._count, self._guessed = 0, None
            return False
        self._guessed = parent, name
        return True

    def removed(self, task: int, parent: int, name: bytes) -> None:
        """`task` has removed `name`."""
        self._count = self._count + 1 if task == self._task else 1
        self._task = task
        if self._guessed == (parent, name):
            self._guessed = None
