"""Inodes and directories: what a mount knows of its files.

An inode knows its parent and its segment of the key, never a path: a renamed directory changes one
pointer. The two halves above, names (`namespace`) and bytes (`files`), share nothing but the inode.
Who holds an inode alive: the kernel's lookups, open handles, and work not yet in the bucket (`pins`). Where there is no
room for all that the kernel has, a file is forgotten but for its number and name (`lent_numbers`): whatever the kernel
asks of the number, it is back, as one of which nothing has been read yet.

A `Pass` is one walk through a directory's keys, page by page; readers of a directory share the newest pass and
remember only an index into its names, which are appended to and never moved: what comes and goes meanwhile makes no
reader skip or repeat a name. How pages come into a directory is in `listing_merge`.

Concurrency: trio thread only; changes happen between awaits.
"""

from __future__ import annotations

import errno
import itertools
import math
import os
import stat
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Protocol
from weakref import WeakValueDictionary

import trio

from sosfs.cache.blocks import Source
from sosfs.concurrency.locks import FairLock
from sosfs.metadata import user_metadata
from sosfs.metadata.edits import NO_EDITS
from sosfs.s3.protocol import Properties, Version
from sosfs.s3.recognition import InFlight
from sosfs.s3.scratch_key import is_of_zeros
from sosfs.tree.keys import HIDDEN, Form, is_folded, name_of, parse, shown_in_root
from sosfs.tree.lent_numbers import Lent, LentNumbers
from sosfs.tree.shown_names import ShownNames

ROOT = 1
PENDING = math.inf
NO_VERSION = "-"  # no ETag: what the kernel has of a file's pages is of no version that is in the bucket
SYMLINK_MAX = 4096  # bytes; PATH_MAX, so a longer object is no symbolic link


class Known(IntEnum):
    """How much of an object is known; it only grows until a listing shows another version."""

    NAME = 0  # listed, and small enough to be a symbolic link or a device: even its type is a guess
    SIZE = 1  # listed: a regular file of this size and time, whose metadata nobody has read
    ALL = 2  # its metadata was read, or we wrote it


@dataclass(frozen=True, slots=True)
class Defaults:
    """What files without metadata show."""

    uid: int
    gid: int
    umask: int
    time_ns: int  # for directories that have no marker: when the mount began

    @property
    def file_mode(self) -> int:
        """st_mode of a regular file."""
        return stat.S_IFREG | (0o666 & ~self.umask)

    @property
    def directory_mode(self) -> int:
        """st_mode of a directory."""
        return stat.S_IFDIR | (0o777 & ~self.umask)


class ChangedBytes(Protocol):
    """What attributes have to know of a file's changed bytes."""

    @property
    def base(self) -> Source | None:
        """The version that was changed; None for a new file."""

    @property
    def is_dirty(self) -> bool:
        """Whether the bucket lacks bytes."""

    @property
    def is_committing(self) -> bool:
        """Whether they are on their way."""


class FileState(Protocol):
    """What the rest of the program may know of a file that is open or not stored yet; `files.open_file` has it."""

    @property
    def draft(self) -> ChangedBytes | None:
        """Its changed bytes."""

    @property
    def row(self) -> int:
        """Of the draft in the journal; 0 for none."""

    @property
    def in_flight(self) -> InFlight:
        """The requests that may store it yet."""

    def rebase(self, source: Source, version: Version) -> None:
        """The object became another version with the same bytes, or under another key, by our own doing."""


class Inode:
    """One file, directory, link or special file. Plain state: whoever owns a part of it is named there."""

    __slots__ = (
        "__weakref__",
        "acl_private_until",
        "atime_ns",
        "attributes_dirty",
        "checked",
        "ctime_ns",
        "directory",
        "edits",
        "form",
        "gid",
        "known",
        "lookups",
        "mode",
        "mtime_ns",
        "number",
        "open_file",
        "opens",
        "pages",
        "parent",
        "pins",
        "properties",
        "rdev",
        "segment",
        "size",
        "uid",
        "used",
        "version",
        "whole",
    )

    def __init__(self, number: int, parent: Inode | None, segment: str, form: Form, defaults: Defaults) -> None:
        self.number = number
        self.parent = parent  # None: the root, or no longer in the tree
        self.segment = segment
        self.form = form
        self.mode = defaults.file_mode
        self.uid = defaults.uid
        self.gid = defaults.gid
        self.rdev = 0
        self.size = 0
        self.mtime_ns = self.ctime_ns = self.atime_ns = defaults.time_ns
        self.known = Known.ALL
        self.version: Version | None = None  # in the bucket; None: not there (yet), or a directory without marker
        self.properties = Properties()  # as last read or written
        self.edits = NO_EDITS  # by the user, not in the bucket yet; owned by `attributes`
        self.whole = True  # whether `properties` is complete (the fast HEAD cannot see `expires`)
        self.acl_private_until = 0.0  # trio time until which our own write is trusted to have its default ACL
        self.checked = 0.0  # trio time at which the bucket last said so
        self.used = -math.inf  # trio time at which the kernel last asked for it by its number
        self.lookups = 0
        self.opens = 0
        self.pins = 0  # reasons to stay that are not yet in the bucket
        self.pages = ""  # ETag of the version that the kernel's pages hold; owned by `files.file_io`
        self.attributes_dirty = False  # owned by `attributes`
        self.directory: Directory | None = None  # owned by `namespace`
        self.open_file: FileState | None = None  # owned by `files`

    @property
    def name(self) -> bytes:
        """Its name in its directory."""
        return name_of(self.segment, self.form)

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_regular(self) -> bool:
        """Whether it is a regular file."""
        return stat.S_ISREG(self.mode)

    @property
    def posix(self) -> user_metadata.Posix:
        """Its attributes as they go into the object's metadata."""
        return user_metadata.Posix(self.mode, self.uid, self.gid, self.mtime_ns, self.rdev or None)

    @property
    def is_left_behind(self) -> bool:
        """Whether its name leads elsewhere since another client replaced or removed it; who has it open keeps it."""
        return self.parent is None and self.known is Known.NAME

    @property
    def is_unread(self) -> bool:
        """Whether the bucket has not been asked for it since it was forgotten: no more of it is known than its name."""
        return self.version is None and self.known is Known.NAME and not self.pins

    def learn(self, properties: Properties, *, whole: bool) -> None:
        """Takes over what an object's metadata says, and defaults for what it does not say."""
        said = user_metadata.read(properties.metadata, kind=stat.S_IFMT(self.mode))
        if said.mode is not None:
            kind = stat.S_IFMT(said.mode) or stat.S_IFMT(self.mode)
            # An object that calls itself a directory (`dir`, `dir_$folder$`) is bytes under that name:
            # as a directory its data would be out of reach.
            if stat.S_ISDIR(kind) != self.is_directory:
                kind = stat.S_IFMT(self.mode)
            self.mode = kind | stat.S_IMODE(said.mode)
        self.uid = self.uid if said.uid is None else said.uid
        self.gid = self.gid if said.gid is None else said.gid
        self.rdev = said.rdev or 0
        if said.mtime_ns is not None:
            self.mtime_ns = self.ctime_ns = said.mtime_ns
        if properties.storage_class is None:  # its listing told it
            properties = replace(properties, storage_class=self.properties.storage_class)
        self.properties, self.whole, self.known = properties, whole, Known.ALL
        self.edits = NO_EDITS  # whoever has some is pinned and learns nothing

    def follow(self, properties: Properties) -> None:
        """Another client has changed the metadata of the same bytes: takes over all but what the user has set here.

        Nor the time where other bytes are on their way: it is that of those.
        """
        found = user_metadata.read(properties.metadata, kind=stat.S_IFMT(self.mode))
        draft = self.open_file.draft if self.open_file is not None else None
        is_written = draft is not None and draft.is_dirty
        now = (self.edits.with_posix({"mtime_ns"}) if is_written else self.edits).merged(self.posix, found)
        self.mode, self.uid, self.gid = now.mode or self.mode, now.uid or 0, now.gid or 0
        self.mtime_ns = self.mtime_ns if now.mtime_ns is None else now.mtime_ns
        self.properties, self.whole, self.known = properties, True, Known.ALL

    def touch(self) -> None:
        """Its bytes or entries changed now."""
        self.mtime_ns = self.ctime_ns = time.time_ns()


class Pass:
    """One walk through a directory's keys."""

    __slots__ = (
        *("after", "begin", "done", "edge", "is_marked", "names", "prefix", "reach", "sent", "started", "token"),
        "tokens",
    )

    def __init__(self, prefix: str, *, started: float | None = None) -> None:
        self.prefix = prefix  # the directory's key
        self.names = ShownNames()
        self.token = ""  # that the next page begins with, or, after a rename, the key
        self.tokens: set[str] = set()  # all that pages had: none comes twice
        self.after = ""
        self.begin = ""  # every key after this one
        self.reach = ""  # and up to this one has been shown
        self.edge = math.inf  # index in the newest page from which on a reader will want the next one; of `listing`
        self.done = False
        self.is_marked = False  # whether the directory's own marker was shown
        self.started = trio.current_time() if started is None else started
        self.sent = self.started  # when its newest page was asked for

    def follow(self, prefix: str) -> None:
        """The directory has this key now: the pass goes on where it is, for tokens of another prefix mean nothing.

        Where the server has no order that is at the beginning: it may get those again that it had before.
        """
        if prefix != self.prefix:
            self.reach = prefix + self.reach[len(self.prefix) :] if self.reach else ""
            self.begin = prefix + self.begin[len(self.prefix) :] if self.begin else ""
            self.prefix, self.token, self.after = prefix, "", self.reach
            self.tokens.clear()

    def covers(self, segment: str) -> bool:
        """Whether it would have shown what has this segment, had the bucket had it: as an object and as a prefix."""
        key = self.prefix + segment
        return self.begin < key and (self.done or self.reach > key + "0")  # "0" follows "/"

    def show(self, name: bytes) -> None:
        """Makes a name visible to the readers of this pass."""
        self.names.show(name)


def ended() -> Pass:
    """A pass of a directory that has been removed: there is nothing in it."""
    walk = Pass("")
    walk.done = True
    return walk


class Directory:
    """What is known of a directory's entries."""

    __slots__ = (
        *("asked_for", "asked_on", "asking", "doubted", "entries", "forgotten", "inode", "is_unmarked", "lock"),
        *("marker", "now", "readers", "touched", "unnoted", "window"),
    )

    def __init__(self, inode: Inode) -> None:
        self.inode = inode
        self.entries: dict[bytes, Inode] = {}
        self.now: Pass | None = None
        self.marker: Version | None = None
        self.is_unmarked = False  # a listing has shown that there is none, also where there was one before
        self.readers: set[Reading] = set()
        self.doubted = -1.0  # trio time: what was asked for by then may not show all that there is
        self.forgotten = -1.0  # trio time: what was known by then is trusted no more
        self.touched: dict[bytes, float] = {}  # name -> trio time of our last change, PENDING while under way
        self.unnoted = -1.0  # trio time of the last of our changes that is not noted there any more
        self.lock = FairLock()
        self.window: Pass | None = None  # a page of keys somewhere in the middle, as it was listed last
        self.asking = 0  # so many ask for one of its names
        self.asked_for = ""  # the segment that was asked for by itself last
        self.asked_on = 0  # so many before it in a row, each after the one before it in the order of the keys

    def asks(self, segment: str) -> int:
        """A name is about to be asked for by itself; how many were in a row, each after the one before it."""
        self.asked_on = self.asked_on + 1 if segment > self.asked_for else 0
        self.asked_for = segment
        return self.asked_on

    def last_before(self, segment: str) -> str:
        """The segment nearest before this one that was asked for last, or shown by the window last."""
        shown = self.window.reach[len(self.window.prefix) :] if self.window is not None else ""
        return max(self.asked_for, shown) if shown < segment else self.asked_for

    def is_known(self, ttl: float) -> bool:
        """Whether every name is known, and recently."""
        return self.now is not None and self.now.done and self.is_young(ttl)

    def is_young(self, ttl: float) -> bool:
        """Whether the newest pass began recently, done or not."""
        return self.now is not None and self.forgotten < self.now.started > trio.current_time() - ttl

    def has_window(self, segment: str, ttl: float) -> bool:
        """Whether its window has passed the place of this segment, and recently."""
        window = self.window
        if window is None or not window.covers(segment):
            return False
        return self.forgotten < window.started > trio.current_time() - ttl

    def begin(self, prefix: str, *, started: float | None = None) -> Pass:
        """Starts a new pass, now or with a request that was sent at `started`."""
        self.now, self.window = Pass(prefix, started=started), None
        noted, self.touched = self.touched, {name: at for name, at in self.touched.items() if at >= self.now.started}
        if len(noted) > len(self.touched):  # of what we did before nothing is noted any more
            self.unnoted = max(self.unnoted, *(at for at in noted.values() if at < self.now.started))
        for name, inode in self.entries.items():
            if inode.pins:  # it may not be in the bucket yet: no page will show it
                self.now.show(name)
        return self.now

    def doubt(self) -> None:
        """There may be other names than are known: whoever wants one asks the bucket."""
        self.now = self.window = None
        self.doubted = trio.current_time()

    def created_here(self, prefix: str) -> None:
        """The directory was made by this mount a moment ago: it is empty, and that is known."""
        self.begin(prefix).done = True

    def put(self, inode: Inode, *, when: float | None = None) -> None:
        """Adds or replaces an entry by our own doing."""
        name = inode.name
        self.entries[name] = inode
        self.touched[name] = trio.current_time() if when is None else when
        if self.now is not None:
            self.now.show(name)

    def take(self, name: bytes, *, when: float | None = None) -> None:
        """Removes an entry by our own doing."""
        self.entries.pop(name, None)
        self.touched[name] = trio.current_time() if when is None else when

    def reached_bucket(self, name: bytes) -> None:
        """What was pending for this name has reached the bucket."""
        self.touched[name] = trio.current_time()

    def untouched(self, name: bytes, walk: Pass) -> bool:
        """Whether a page of `walk` knows better than we do about this name."""
        return self.touched.get(name, -1.0) < walk.started

    def may_have(self, inode: Inode) -> bool:
        """Whether a file of this name can be there, which is not among the entries."""
        if inode.name in self.entries or self.touched.get(inode.name) == PENDING:
            return False
        return self.now is None or not self.now.covers(inode.segment)

    def live(self) -> Iterator[Inode]:
        """The entries that somebody holds."""
        return (inode for inode in self.entries.values() if inode.lookups or inode.opens or inode.pins)


def is_hidden(inode: Inode) -> bool:
    """Whether no listing shows it: the directory of the shared attributes, in the root."""
    at = inode.parent
    return at is not None and at.parent is None and inode.segment == HIDDEN and inode.is_directory


def require_free(parent: Inode, segment: str) -> None:
    """Before something is made in a directory. Raises EINVAL where no listing would show it."""
    at: Inode | None = parent
    while at is not None and not is_hidden(at):
        at = at.parent
    if at is not None or (parent.parent is None and segment == HIDDEN) or is_of_zeros(segment):
        raise OSError(errno.EINVAL, "sosfs keeps this name to itself")


def stored(inode: Inode) -> None:
    """An object was stored here, and with it the prefixes that it is in: listings on their way know nothing of it."""
    while inode.parent is not None and inode.parent.directory is not None:
        inode.parent.directory.reached_bucket(inode.name)
        inode = inode.parent


def is_unsent(inode: Inode) -> bool:
    """Whether an inode, or what is known below it, is not in the bucket yet: no listing has to show it."""
    below = inode.directory
    return bool(inode.pins) or (below is not None and any(map(is_unsent, below.entries.values())))


class Reading:
    """A directory that somebody reads, and the pass whose names are told. None goes before it was told.

    `task` is the thread that has opened it, 0 where nobody knows.
    """

    __slots__ = ("directory", "furthest", "task", "told", "walk")

    def __init__(self, directory: Directory, walk: Pass, task: int = 0) -> None:
        self.directory = directory
        self.walk = walk
        self.task = task
        self.told = 0  # the index up to which its reader has had the names
        self.furthest = 0  # and has had them before it went back
        directory.readers.add(self)

    def comes_to(self, at: int) -> None:
        """Its reader asks for the names from this index on."""
        self.told, self.furthest = at, max(at, self.furthest)

    def has_told(self, name: bytes) -> bool:
        """Whether its reader can do without the entry of this name, unless it seeks back."""
        place = self.walk.names.place(name)
        return place is None or place < self.told

    def close(self) -> None:
        """Nobody reads on."""
        self.directory.readers.discard(self)


class Inodes:
    """All inodes by number, and the key of each. The root's number is `first`, and no other is lower."""

    def __init__(self, prefix: str, defaults: Defaults, *, first: int = ROOT) -> None:
        self.prefix = prefix  # of the mount: "" or ending in "/"
        self.defaults = defaults
        self._numbers = itertools.count(first)
        self.highest = first  # of the numbers that were given
        self._table: dict[int, Inode] = {}
        self._lent = LentNumbers[Inode]()  # by directory
        self._in_use = WeakValueDictionary[int, Inode]()  # of those, what somebody still works with
        self.root = self.make(None, "", Form.PLAIN, mode=defaults.directory_mode)
        self.root.lookups = 1
        if prefix:
            self.root.known, self.root.whole = Known.SIZE, False  # its marker may tell more

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, number: int) -> Inode:
        """The inode of a number the kernel knows. Raises OSError ESTALE."""
        inode = self._table.get(number) or self._back(number)
        if inode is None:
            raise OSError(errno.ESTALE, f"no inode {number}")
        inode.used = trio.current_time()
        return inode

    def _back(self, number: int) -> Inode | None:
        """What was forgotten, and the kernel still has; None where its name leads to another file or to none."""
        found = self._lent.take(number)
        if found is None:
            return None
        parent, lent = found
        inode = self._unread(parent, lent)
        directory = parent.directory
        if directory is None or not self.is_under(parent, self.root) or not directory.may_have(inode):
            inode.parent = None  # ESTALE for whoever has it
        else:
            directory.entries[lent.name] = inode
        return inode

    def _unread(self, parent: Inode, lent: Lent) -> Inode:
        """A file that was forgotten, with its number; the same inode as before, should somebody have it in use."""
        inode = self._in_use.pop(lent.number, None)
        if inode is None:
            parsed = parse(lent.name)
            inode = Inode(lent.number, parent, parsed.segment, parsed.form, self.defaults)
            inode.known, inode.whole, inode.pages = Known.NAME, False, NO_VERSION
        inode.lookups = lent.lookups
        self._table[lent.number] = inode
        return inode

    def listed(self, parent: Inode, segment: str, form: Form) -> Inode:
        """An inode for a file that a listing shows: the one that the kernel has of it, else a new one."""
        lent = self._lent.take_named(parent, name_of(segment, form)) if self._lent.has(parent) else None
        if lent is not None:
            return self._unread(parent, lent)
        return self.make(parent, segment, form, mode=self.defaults.file_mode)

    def may_lend(self, inode: Inode) -> bool:
        """Whether a file can be forgotten that the kernel has: its name has to tell all that the kernel was told."""
        return inode.is_regular and inode.parent is not None and not is_folded(inode.name)

    def lend(self, parent: Inode, gone: Iterable[Inode]) -> None:
        """Forgets files of a directory, but for the numbers that the kernel has."""
        lent = []
        for inode in gone:
            self.drop(inode)
            if inode.lookups:
                lent.append(Lent(inode.name, inode.number, inode.lookups))
                self._in_use[inode.number] = inode
        self._lent.lend(parent, lent)

    def has_lent(self, parent: Inode) -> bool:
        """Whether the kernel has files of a directory that are forgotten here."""
        return self._lent.has(parent)

    def lent(self, parent: Inode) -> list[int]:
        """Their numbers."""
        return self._lent.of(parent)

    @property
    def lent_size(self) -> int:
        """Bytes that the numbers and names of forgotten files take."""
        return self._lent.size

    def give_back(self, number: int, lookups: int) -> None:
        """The kernel has so many lookups less of a file that is forgotten."""
        self._lent.give_back(number, lookups)

    def numbers(self) -> list[int]:
        """All numbers, as of now."""
        return list(self._table)

    def directories(self) -> Iterator[Directory]:
        """The directories of which entries may be known, of all inodes as of now."""
        for inode in list(self._table.values()):
            if inode.directory is not None:
                yield inode.directory

    def find(self, number: int) -> Inode | None:
        """The inode of a number that may be gone."""
        return self._table.get(number)

    def make(self, parent: Inode | None, segment: str, form: Form, *, mode: int) -> Inode:
        """A new inode; its numbers are never used again."""
        self.highest = next(self._numbers)
        inode = Inode(self.highest, parent, segment, form, self.defaults)
        inode.mode = mode
        self._table[inode.number] = inode
        return inode

    def require(self, inode: Inode) -> None:
        """Before an inode is changed that was waited for. Raises ESTALE should it have been forgotten for good."""
        if inode.number not in self._table and self._back(inode.number) is not inode:
            raise OSError(errno.ESTALE, f"no inode {inode.number}")  # the kernel looks its name up again

    def keep(self, inode: Inode) -> None:
        """Before the kernel is told of an inode, or has it open or moved: should it have been forgotten, it is back."""
        if inode.number in self._table:
            return
        found = self._lent.take(inode.number)
        inode.lookups = 0 if found is None else found[1].lookups
        self._table[inode.number] = inode
        parent = inode.parent
        if parent is not None:
            parent.directory = parent.directory or Directory(parent)
            parent.directory.entries.setdefault(inode.name, inode)

    def drop(self, inode: Inode) -> None:
        """Forgets an inode that nobody holds any more."""
        if inode is not self.root:
            self._table.pop(inode.number, None)

    def below(self, top: Inode) -> dict[str, Inode]:
        """The inodes at and below `top`, by key."""
        found = {self.key(top): top}
        todo = [top]
        while todo:
            directory = todo.pop().directory
            for child in directory.entries.values() if directory is not None else ():
                found[self.key(child)] = child
                if child.is_directory:
                    todo.append(child)
        return found

    def names(self, inode: Inode) -> tuple[bytes, ...]:
        """The names that lead a user from the root of the mount to an inode."""
        names: list[bytes] = []
        while inode.parent is not None:
            names.append(inode.name)
            inode = inode.parent
        if names:
            names[-1] = shown_in_root(names[-1])
        return tuple(reversed(names))

    def path(self, inode: Inode, mountpoint: str) -> str:
        """Where a user finds an inode."""
        return os.path.join(mountpoint, *map(os.fsdecode, self.names(inode)))  # noqa: PTH118 - a hot path

    def key(self, inode: Inode) -> str:
        """The object's key now; a directory's ends in `/`. Raises OSError ESTALE for what no name leads to any more."""
        segments = []
        at = inode
        while at.parent is not None:
            segments.append(at.segment)
            at = at.parent
        if at is not self.root:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))  # else it would be the key of a file of the root
        key = self.prefix + "/".join(reversed(segments))
        if inode.is_directory and inode is not self.root:
            key += "/"
        return key

    def has_name(self, inode: Inode) -> bool:
        """Whether an inode is in the tree: the root, or below a directory."""
        return inode.parent is not None or inode is self.root

    def has_object(self, inode: Inode) -> bool:
        """Whether the bucket can have an object of an inode in the tree: not of its own root."""
        return inode.parent is not None or (inode is self.root and self.prefix != "")

    def has_key(self, inode: Inode, key: str) -> bool:
        """Whether this is the inode's key now; never for one that no name leads to any more."""
        try:
            return self.key(inode) == key
        except OSError:
            return False

    def child_key(self, parent: Inode, segment: str) -> str:
        """The key of the object `segment` in a directory."""
        return self.key(parent) + segment

    def is_under(self, inode: Inode, ancestor: Inode) -> bool:
        """Whether `inode` is `ancestor` or below it."""
        at: Inode | None = inode
        while at is not None:
            if at is ancestor:
                return True
            at = at.parent
        return False


def held(inode: Inode) -> bool:
    """Whether somebody still needs this inode."""
    return bool(inode.lookups or inode.opens or inode.pins)
