"""The nodes of the tree `.sosfs/` and what is where in it.

    .sosfs/acl/PATH                                the ACL of an object         (settings_files)
    .sosfs/bucket/{acl,cors,versioning,policy}     settings of the bucket       (settings_files)
    .sosfs/bucket/{object-lock,lifecycle,...}      what stays and how           (protection_files)
    .sosfs/versions/PATH/                          old versions of an object     (versions)
    .sosfs/at/TIME/                                the bucket as it was         (past)
    .sosfs/status, metrics, errors                 what it says of itself       (settings_files)

Its root is found by its name and never listed, so that `rsync` and `cp -r` do not meet it. The nodes have numbers
of their own, from `FIRST` on, and nothing in common with the inodes of real files.

    made by its folder -> known to the kernel (`lookups`) -> forgotten

Concurrency: trio thread only.
"""

from __future__ import annotations

import abc
import errno
import itertools
import os
import time
from collections.abc import Hashable, Mapping
from enum import Enum

from sosfs.tree import keys

NAME = keys.CONTROL.encode()
FIRST = 1 << 62  # numbers of real inodes count from 1 and never get here


class Node:
    """A file or directory of the tree. `identity` is the same for two nodes that stand for the same thing.

    `permissions` let in nobody but the owner of the mount: other users must not read in old versions or ACLs
    what the files' own modes keep from them.
    """

    permissions = 0o400
    is_lasting = False  # whether its name leads to it as long as the mount is there

    def __init__(self, identity: Hashable) -> None:
        self.identity = identity
        self.number = 0  # given by `Tree`
        self.lookups = 0
        self.time_ns = time.time_ns()

    def taken(self) -> None:
        """The tree begins to hold this node."""

    def dropped(self) -> None:
        """The tree holds this node no more."""


class Folder(Node, abc.ABC):
    """A directory."""

    permissions = 0o700

    @abc.abstractmethod
    async def children(self) -> Mapping[bytes, Node]:
        """All that is in it."""

    async def child(self, name: bytes) -> Node:
        """What has this name. Raises ENOENT."""
        found = (await self.children()).get(name)
        if found is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        return found


class Fixed(Folder):
    """A directory whose entries never change."""

    is_lasting = True

    def __init__(self, identity: Hashable, entries: Mapping[bytes, Node], *, permissions: int = 0o700) -> None:
        super().__init__(identity)
        self.permissions = permissions
        self._entries = entries

    async def children(self) -> Mapping[bytes, Node]:
        """All that is in it."""
        return self._entries


class Audience(Enum):
    """Who reads a text."""

    OWNER = "owner"  # whoever mounted, or root
    OTHERS = "others"  # let in by `--allow-other`


class TextFile(Node, abc.ABC):
    """A text that is read whole when it is opened and applied whole when it is closed."""

    def __init__(self, identity: Hashable) -> None:
        super().__init__(identity)
        self.size = 0  # bytes, as last read or written

    @abc.abstractmethod
    async def read(self) -> str:
        """The text as it is now. Raises OSError."""

    async def shown_to(self, audience: Audience) -> str:
        """What `read` gives, less what is not for this audience. Raises OSError."""
        return await self.read()

    async def write(self, text: bytes) -> None:
        """Applies a text. Raises `rejected_texts.BadText` before anything is sent, and what the server answers."""
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    def check(self, text: bytes) -> None:
        """Raises `rejected_texts.BadText` for whole lines that nothing which may follow can put right."""


class BytesFile(Node, abc.ABC):
    """Bytes that never change."""

    size: int

    @abc.abstractmethod
    async def read(self, start: int, stop: int) -> bytes | memoryview:
        """The bytes `[start, stop)`, cut at the end."""


class Tree:
    """The nodes that the kernel knows, by number."""

    def __init__(self, root: Folder, *, first: int = FIRST) -> None:
        self._numbers = itertools.count(first)
        self._nodes: dict[int, Node] = {}
        self._known: dict[Hashable, Node] = {}
        self.root = root
        self.take(root)  # held for ever

    def __getitem__(self, number: int) -> Node:
        """The node of a number the kernel knows. Raises ESTALE."""
        try:
            return self._nodes[number]
        except KeyError:
            raise OSError(errno.ESTALE, f"no node {number}") from None

    def take(self, node: Node) -> Node:
        """The node that stands for the same as this one, held once more."""
        held = self._known.get(node.identity)
        if held is None:
            held = self._known[node.identity] = node
            node.number = next(self._numbers)
            self._nodes[node.number] = node
            node.taken()
        held.lookups += 1
        return held

    def forget(self, number: int, count: int) -> None:
        """Holds a node `count` times less."""
        node = self._nodes.get(number)
        if node is None:
            return
        node.lookups -= count
        if node.lookups <= 0:
            del self._nodes[number]
            del self._known[node.identity]
            node.dropped()
