"""What will be asked next, when somebody walks through a tree: asked ahead, side by side.

`ls -lR`, find, rsync and tar ask one thing after the other and wait for each answer; at 20 ms a round trip
that is 50 questions a second. After a few questions in a row, with no file opened between them, the
attributes of the other entries are asked for as well, and while directories are entered one after the other, those
beside and below are listed ahead, so that the walk meets answers.

A guess costs requests, so it stays close: `WINDOW` directories ahead of the walk, and after `REST`
seconds without a step the walk is over.

Concurrency: trio thread only.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable

import trio

from .blocks import Spawn
from .directory import Directory
from .inodes import Inode, Known
from .listing import Listings

log = logging.getLogger(__name__)

WALK = 4  # questions in a row that make a walk
ENTERED = 3  # directories entered in a row that make one
REST = 2.0  # seconds
WINDOW = 32  # directories listed ahead of the walk
STEP = 4  # listed more with each one entered
ASKERS, LISTERS = 24, 8


class Foresight:
    """Follows the walks through a mount."""

    def __init__(self, listings: Listings, ask: Callable[[Inode], Awaitable[object]], spawn: Spawn) -> None:
        self._listings = listings
        self._ask = ask
        self._spawn = spawn
        self._questions = self._entries = 0
        self._last = 0.0
        self._attributes: deque[Inode] = deque()
        self._folders: deque[Inode] = deque()
        self._beside: dict[Inode, deque[Inode]] = {}  # directories not yet listed, by parent
        self._asking = self._listing = 0

    # What is seen of a walk

    def asked(self, inode: Inode) -> bool:
        """Attributes of one inode are asked for; whether the question stands alone."""
        self._step()
        self._questions += 1
        directory = inode.parent.directory if inode.parent is not None else None
        if self._questions == WALK and directory is not None:
            self._ask_ahead(directory)
        return self._questions == 1

    def opened(self) -> None:
        """A file was opened or removed: who does that asks for few attributes."""
        self._questions = 0

    def entered(self, directory: Directory) -> None:
        """A directory is read from its beginning."""
        self._step()
        self._entries += 1
        if self._entries < ENTERED:
            return
        if directory.now is not None and directory.now.done:
            self._list_below(directory)
        parent = directory.inode.parent
        self._list_next(self._beside.get(parent) if parent is not None else None, STEP)

    def listed(self, directory: Directory) -> None:
        """A page of a directory has come."""
        if trio.current_time() > self._last + REST:
            return
        if self._questions >= WALK:
            self._ask_ahead(directory)
        if self._entries >= ENTERED:
            self._list_below(directory)

    def _step(self) -> None:
        now = trio.current_time()
        if now > self._last + REST:
            self._questions = self._entries = 0
            self._beside.clear()
        self._last = now

    # What is asked ahead

    def _ask_ahead(self, directory: Directory) -> None:
        self._attributes.extend(one for one in directory.entries.values() if one.known is not Known.ALL)
        while self._asking < min(ASKERS, len(self._attributes)):
            self._asking += 1
            self._spawn(self._asker)

    async def _asker(self) -> None:
        try:
            while self._attributes:
                inode = self._attributes.popleft()
                if inode.known is not Known.ALL and inode.parent is not None:
                    await self._quietly(self._ask(inode), inode)
        finally:
            self._asking -= 1

    def _list_below(self, directory: Directory) -> None:
        folders = deque(one for one in directory.entries.values() if one.is_directory)
        if folders and directory.inode not in self._beside:
            self._beside[directory.inode] = folders
            self._list_next(folders, WINDOW)

    def _list_next(self, folders: deque[Inode] | None, count: int) -> None:
        while folders and count and len(self._folders) < 2 * WINDOW:
            self._folders.append(folders.popleft())
            count -= 1
        while self._listing < min(LISTERS, len(self._folders)):
            self._listing += 1
            self._spawn(self._lister)

    async def _lister(self) -> None:
        try:
            while self._folders:
                inode = self._folders.popleft()
                if inode.parent is not None:
                    await self._quietly(self._listings.first_page(self._listings.directory(inode)), inode)
        finally:
            self._listing -= 1

    async def _quietly(self, asking: Awaitable[object], inode: Inode) -> None:
        """A guess that fails harms nobody: who really asks gets the error."""
        try:
            await asking
        except OSError as error:
            log.debug("asked ahead for %s: %s", inode.name.decode(errors="replace"), error)
