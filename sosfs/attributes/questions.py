"""The files whose attributes are asked for before somebody wants them, in the order of a walk through a tree.

Of a directory only its place in the line is kept, not its names: what was learned or forgotten meanwhile is passed
over when its turn comes, and a tree of any size takes no room. Each page of a listing comes into the line once.
One call goes `STEPS` places at most: of a million names all may be known, and others want the thread.

Concurrency: trio thread only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from sosfs.tree.inodes import Directory, Inode, Known, Pass, is_hidden

SINGLE_MAX = 20_000  # files that are in the line by themselves
STEPS = 1000  # places in the line that one call passes: 1 ms


class Wanted(Enum):
    """What is asked for of a directory's entries."""

    ALL = "all"
    DIRECTORIES = "directories"  # by who walks through a tree for its names


@dataclass(slots=True)
class _Names:
    """The names `[at, stop)` of a pass through a directory."""

    directory: Directory
    names: Sequence[bytes]
    at: int
    stop: int
    wanted: Wanted | None  # of themselves
    below: Wanted | None = None  # of what is in the directories among them


class Questions:
    """A line of files."""

    def __init__(self) -> None:
        self._single: deque[Inode] = deque()
        self._listed: deque[_Names] = deque()
        self._below: deque[tuple[Inode, Wanted]] = deque()  # directories whose turn comes after all that is listed

    @property
    def waiting(self) -> int:
        """How many may be in the line, at least: what directories below have is not counted."""
        listed = self._listed[0].stop - self._listed[0].at + len(self._listed) - 1 if self._listed else 0
        return len(self._single) + listed + len(self._below)

    @property
    def has_listed(self) -> bool:
        """Whether anything is in the line since somebody walks."""
        return bool(self._listed or self._below)

    def add(self, inode: Inode) -> None:
        """Puts one file into the line, unless that is too long."""
        if len(self._single) < SINGLE_MAX:
            self._single.append(inode)

    def add_listed(self, directory: Directory, walk: Pass, first: int, wanted: Wanted) -> None:
        """Puts what was listed of a directory into the line, from an index of a pass on."""
        if first < len(walk.names) and not is_hidden(directory.inode):
            self._listed.append(_Names(directory, walk.names, first, len(walk.names), wanted))

    def add_below(self, top: Inode, wanted: Wanted) -> None:
        """Puts what is known below a directory into the line."""
        directory = top.directory
        if directory is None or is_hidden(top):
            return
        if directory.now is not None:
            names = directory.now.names
            self._listed.append(_Names(directory, names, 0, len(names), wanted, below=wanted))
        else:  # not all is known: of itself only what is listed anew
            known = list(directory.entries)
            self._listed.append(_Names(directory, known, 0, len(known), None, below=wanted))

    def end_walk(self) -> None:
        """Nobody walks on: what is in the line by itself stays."""
        self._listed.clear()
        self._below.clear()

    def clear(self) -> None:
        """Empties the line."""
        self._single.clear()
        self.end_walk()

    def take(self, most: int) -> list[Inode]:
        """Up to `most` of the next ones of which not all is known; there may be more while any are `waiting`."""
        some: list[Inode] = []
        for _ in range(STEPS):
            if len(some) == most or not (self._single or self._listed or self._below):
                break
            found = self._next()
            if found is not None and found.known is not Known.ALL and _is_there(found) and not is_hidden(found):
                some.append(found)
        return some

    def _next(self) -> Inode | None:
        """What has the next place; None where that is not asked for."""
        if self._single:
            return self._single.popleft()
        if not self._listed:
            self.add_below(*self._below.popleft())
            return None
        names = self._listed[0]
        if names.at == names.stop:
            self._listed.popleft()
            return None
        names.at += 1
        inode = names.directory.entries.get(names.names[names.at - 1])
        if inode is None:
            return None
        if inode.is_directory and names.below is not None and not is_hidden(inode):
            self._below.append((inode, names.below))
        is_wanted = names.wanted is Wanted.ALL or (names.wanted is Wanted.DIRECTORIES and inode.is_directory)
        return inode if is_wanted else None


def _is_there(inode: Inode) -> bool:
    """Whether its name leads to it: it may have been removed, or forgotten, while it was in the line."""
    directory = inode.parent.directory if inode.parent is not None else None
    return directory is not None and directory.entries.get(inode.name) is inode
