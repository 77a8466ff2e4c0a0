"""Ask ahead for the attributes of the files that a walk through a tree comes to next.

`ls -lR`, find, rsync and tar ask one thing after the other and wait for each answer; at 20 ms a round trip
that is 50 questions a second. After a few questions in a row, with no file opened between them, the
attributes of the other entries are asked for as well, of directories alone while none was asked for but theirs; and
when a second directory of a tree is entered, all that lies below the first is listed at once (`subtree_listing`), so
that the walk meets answers.

A guess costs requests: after `REST` seconds without a step a walk is over, and one tree is scanned once in a walk.

Concurrency: trio thread only.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence

import trio

from sosfs.attributes.questions import Questions, Wanted
from sosfs.cache.blocks import Spawn
from sosfs.tree.inodes import Directory, Inode, Pass
from sosfs.tree.listing import Listings

log = logging.getLogger(__name__)

WALK = 4  # questions in a row that make a walk
REST = 2.0  # seconds
ABANDONED = 10.0  # seconds without a sign of who walks after which nothing is asked ahead any more
ASKERS = 24
TOGETHER = 8  # questions of one asker at a time: one thread asks them one after the other, without the loop between
ASKERS_BEHIND = 4  # while who walks does not wait for the answers, but for the processor that they need


class AttributePrefetch:
    """Follows the walks through a mount."""

    def __init__(
        self,
        listings: Listings,
        ask: Callable[[Inode], Awaitable[None]],
        ask_files: Callable[[Sequence[Inode]], Awaitable[None]],
        spawn: Spawn,
    ) -> None:
        self._listings = listings
        self._ask = ask
        self._ask_files = ask_files
        self._spawn = spawn
        self._questions = 0
        self._of_files = 0  # of them
        self._files_until = 0.0  # who walks on before this wants files, too
        self._last = 0.0
        self._top: Inode | None = None  # the directory that the walk began with
        self._scanned: set[Inode] = set()  # in this walk
        self._line = Questions()
        self._seen = 0.0  # when somebody asked last for attributes, known ones too
        self._asking = 0

    # What is seen of a walk

    def asked(self, inode: Inode) -> bool:
        """Attributes of one inode are asked for; whether the question stands alone."""
        self._step()
        self._questions += 1
        self._of_files += not inode.is_directory
        self._saw(inode)
        directory = inode.parent.directory if inode.parent is not None else None
        is_new = self._of_files == WALK if not inode.is_directory else self._questions == WALK
        if is_new and directory is not None:
            is_below = self._top is not None and _is_below(inode, self._top)
            self._line.add_below(self._top if self._top is not None and is_below else directory.inode, self._wanted)
            self._begin(ASKERS)
        return self._questions == 1

    @property
    def _wanted(self) -> Wanted:
        is_of_files = self._of_files >= WALK or trio.current_time() < self._files_until
        return Wanted.ALL if is_of_files else Wanted.DIRECTORIES

    def answered(self, inode: Inode) -> None:
        """Attributes were asked for and known."""
        self._seen = trio.current_time()
        self._saw(inode)

    def _saw(self, inode: Inode) -> None:
        """A walk that has asked for files goes on with them: those that were answered ahead count, too."""
        if not inode.is_directory and self._wanted is Wanted.ALL:
            self._files_until = trio.current_time() + REST

    def opened(self) -> None:
        """A file was opened: who does that asks for few attributes."""
        self._questions = self._of_files = 0
        self._files_until = 0.0

    def removed(self) -> None:
        """A file was removed: of those that are likely to follow it nothing needs to be known."""
        self._questions = self._of_files = 0
        self._files_until = 0.0
        self._line.clear()

    def entered(self, directory: Directory) -> None:
        """A directory is read from its beginning."""
        self._step()
        inode = directory.inode
        if self._top is None or not _is_below(inode, self._top):
            self._top = inode
        elif not self._listings.is_known(directory):
            top = inode if self._top in self._scanned else self._top
            scan = self._listings.begin_scan(top) if top not in self._scanned else None
            if scan is not None:
                self._scanned.add(top)
                self._spawn(lambda: self._quietly(scan(), top))

    def listing(self, directory: Directory) -> None:
        """A directory is about to be listed for its own attributes: a second one in a row is a walk as well."""
        if self._questions > 1:
            self.entered(directory)

    def listed(self, directory: Directory, walk: Pass, first: int) -> None:
        """A page of a directory has come, whose names are those from the index `first` of a pass on."""
        if self._questions >= WALK and trio.current_time() < self._last + REST:
            self._line.add_listed(directory, walk, first, self._wanted)
            self._begin(ASKERS)

    def _step(self) -> None:
        now = trio.current_time()
        if now > self._last + REST:
            self._questions = self._of_files = 0
            self._top = None
            self._scanned.clear()
        self._last = self._seen = now

    def behind(self, inode: Inode) -> None:
        """A guess was shown for an inode: the truth is asked for when nobody waits for it."""
        self._line.add(inode)
        self._begin(ASKERS_BEHIND)

    # What is asked ahead

    def _begin(self, askers: int) -> None:
        for _ in range(min(askers, self._line.waiting) - self._asking):
            self._asking += 1
            self._spawn(self._asker)

    async def _asker(self) -> None:
        try:
            while (some := self._next()) or self._line.waiting:
                self._begin(ASKERS if self._line.has_listed else ASKERS_BEHIND)  # what was passed may have brought more
                if not some:
                    await trio.lowlevel.checkpoint()  # there is a long way to the next one
                    continue
                await self._quietly(self._ask_files([one for one in some if not one.is_directory]), some[0])
                for directory in (one for one in some if one.is_directory):
                    await self._quietly(self._ask(directory), directory)
        finally:
            self._asking -= 1

    def _next(self) -> list[Inode]:
        """What one asker asks for in one go: few while few are left, so that all askers have a share."""
        if trio.current_time() > self._seen + ABANDONED:
            self._line.end_walk()
        return self._line.take(min(TOGETHER, 1 + self._line.waiting // ASKERS))

    async def _quietly(self, asking: Awaitable[object], inode: Inode) -> None:
        """A guess that fails harms nobody: who really asks gets the error."""
        try:
            await asking
        except OSError as error:
            log.debug("asked ahead for %s: %s", inode.name.decode(errors="replace"), error)


def _is_below(inode: Inode, top: Inode) -> bool:
    at = inode.parent
    while at is not None and at is not top:
        at = at.parent
    return at is not None
