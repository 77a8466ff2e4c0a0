"""The bucket as it was at some moments, each a filesystem of its own over the versions that the server keeps.

What shows the bucket of now shows that of then (names, attributes, bytes, read-ahead, caches), over a store that
answers with what was there (`past_store`) and under requests of which those that would change something are EROFS.
Its state is in a directory that goes with it; its blocks share the bucket's disk cache, where what has not changed
since is there already.

    made by the first look -> in use -> pushed out by a later one, where there are `MOST`

The kernel may hold numbers of one that was pushed out, of inodes and of open files: they are given to none later.

A time such as `2 hours ago` means one moment as long as somebody looks: after `REST` seconds without a request it is
reckoned anew. Concurrency: trio thread only.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import trio

from sosfs.cache.blocks import Spawn, memory_of
from sosfs.config import moments
from sosfs.config.parameters import Durability, Settings
from sosfs.control import nodes
from sosfs.filesystem.composition import Filesystem, assemble
from sosfs.filesystem.memory_limits import Quota
from sosfs.fuse.operations import Operations
from sosfs.fuse.past_operations import ReadOnlyOperations
from sosfs.journal.journal import Journal
from sosfs.s3.bucket import S3Store
from sosfs.s3.past_store import PastStore
from sosfs.tree.inodes import ROOT

log = logging.getLogger(__name__)

MOST = 16  # moments in use at once
SHIFT = 30  # bits of a number below the slot of its moment
SLOTS = 1 << 10  # that the numbers of one control tree have room for; the first is its own
REST = 60.0  # seconds
MEMORY = 32 << 20  # bytes for blocks of one moment, of which large files' read-ahead lives
NAMES = 20_000  # inodes of one moment, beyond which those that nobody holds go
TTL = 86_400.0  # seconds for which the kernel may keep what cannot change

Operate = Callable[[PastStore, Settings, Filesystem], tuple[Operations, ReadOnlyOperations]]


@dataclass(slots=True, eq=False)
class _Shown:
    """The bucket at one moment."""

    moment: float
    root: int
    directory: Path
    journal: Journal
    parts: Filesystem
    files: Operations
    operations: ReadOnlyOperations
    used: float = 0.0  # trio time of the last request


class Past:
    """The moments of one bucket that somebody looks at. `operate` makes operations of a filesystem."""

    def __init__(
        self, settings: Settings, store: S3Store, spawn: Spawn, share: Quota, operate: Operate, *, first: int
    ) -> None:
        self._settings = settings
        self._store = store
        self._spawn = spawn
        self._share = share
        self._operate = operate
        self._base = nodes.FIRST + first - ROOT
        self._slot = 0
        self._given: dict[int, int] = {}  # by slot, how many of its numbers were given by moments that had it before
        self._shown: dict[int, _Shown] = {}  # by slot
        self._named: dict[str, _Shown] = {}
        self._directory = settings.state_dir / "at"
        if self._directory.exists():  # of a mount that was killed; there is nothing in it but caches
            shutil.rmtree(self._directory)

    # Names

    @property
    def names(self) -> list[str]:
        """The times in use, as they were written."""
        return list(self._named)

    def known(self, name: str) -> tuple[int, float] | None:
        """The number of the root and the moment that a time in use stands for."""
        shown = self._named.get(name)
        if shown is None:
            return None
        if moments.is_relative(name) and shown.used < trio.current_time() - REST:
            del self._named[name]
            return None
        shown.used = trio.current_time()
        return shown.root, shown.moment

    def number_at(self, name: str, moment: float) -> int:
        """The number of the bucket's root as it was then; `name` stands for it from now on."""
        shown = next((one for one in self._shown.values() if one.moment == moment), None) or self._open(moment)
        shown.used = trio.current_time()
        self._named[name] = shown
        return shown.root

    # Trees

    def at(self, number: int) -> ReadOnlyOperations | None:
        """The tree that a number belongs to; None for any other. ESTALE where it was pushed out."""
        slot = (number - self._base) >> SHIFT
        if slot <= 0:
            return None
        shown = self._shown.get(slot)
        if shown is None or number < shown.root:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        shown.used = trio.current_time()
        return shown.operations

    def _open(self, moment: float) -> _Shown:
        while len(self._shown) >= MOST:
            self._close(min(self._shown, key=lambda slot: self._shown[slot].used))
        self._slot = next(
            slot for at in range(SLOTS) if (slot := (self._slot + at) % (SLOTS - 1) + 1) not in self._shown
        )
        given = self._given.get(self._slot, 0)
        root = self._base + (self._slot << SHIFT) + ROOT + (given if given < 1 << (SHIFT - 1) else 0)
        directory = self._directory / str(self._slot)
        settings = replace(
            self._settings,
            cache_dir=directory,
            memory=MEMORY,
            ttl=TTL,
            durability=Durability.BUCKET,
            read_only=True,
            shared_attributes=False,
        )
        store = PastStore(self._store, self._store.dispatcher, moment)
        share = replace(self._share, cached=memory_of(MEMORY), names=NAMES)
        with contextlib.ExitStack() as undo:  # on a full disk
            undo.callback(shutil.rmtree, directory, ignore_errors=True)
            journal = Journal(directory, f"the bucket at {moment}")
            undo.callback(journal.close)
            parts = assemble(settings, store, journal, self._spawn, first=root, share=share)
            undo.pop_all()
        parts.inodes.root.mtime_ns = parts.inodes.root.ctime_ns = int(moment * 1e9)
        shown = _Shown(moment, root, directory, journal, parts, *self._operate(store, settings, parts))
        self._shown[self._slot] = shown
        return shown

    def _close(self, slot: int) -> None:
        shown = self._shown.pop(slot)
        self._given[slot] = shown.files.highest - self._base - (slot << SHIFT)
        self._named = {name: one for name, one in self._named.items() if one is not shown}
        shown.parts.cache.close()
        shown.journal.close()
        try:
            shutil.rmtree(shown.directory)
        except OSError as error:
            log.warning("%s is left behind: %s", shown.directory, error)

    def sweep(self) -> None:
        """Frees what nobody needs any more."""
        for shown in self._shown.values():
            shown.parts.namespace.sweep()
            shown.parts.eviction.look()
            shown.parts.cache.flush()

    @property
    def held(self) -> int:
        """Bytes of blocks in memory."""
        return sum(shown.parts.blocks.held for shown in self._shown.values())

    @property
    def inodes(self) -> int:
        """Names in memory."""
        return sum(len(shown.parts.inodes) for shown in self._shown.values())

    def close(self) -> None:
        """Ends all; no request may be under way or follow."""
        for slot in list(self._shown):
            self._close(slot)
