"""Tell the kernel's caches unasked: pages to keep, attributes, pages and names to forget.

Concurrency: a call may wait for a page that the mount itself has still to deliver, so they are made in a thread and
the trio thread goes on serving.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pyfuse3
import trio


class KernelNotifier:
    """What the kernel has cached of a mount."""

    def __init__(self) -> None:
        self._is_gone = False

    def close(self) -> None:
        """The mount is about to go: nothing is asked of the kernel any more."""
        self._is_gone = True

    def give(self, number: int, offset: int, body: Any) -> None:
        """Puts a buffer of bytes into the pages of an inode. Blocks; raises what the kernel refuses."""
        pyfuse3.notify_store(number, offset, body)

    async def forget_attributes(self, number: int) -> None:
        """Forgets the attributes of an inode, the size among them. Raises what the kernel refuses."""
        await trio.to_thread.run_sync(self._call, partial(pyfuse3.invalidate_inode, number, attr_only=True))

    async def forget(self, numbers: Sequence[int], names: Sequence[tuple[int, bytes]]) -> None:
        """Forgets attributes and pages of inodes, and what it knows of names in directories, absent ones too.

        Raises what the kernel refuses.
        """
        await trio.to_thread.run_sync(self._forget, numbers, names)

    def _forget(self, numbers: Sequence[int], names: Sequence[tuple[int, bytes]]) -> None:
        calls = [partial(pyfuse3.invalidate_inode, number) for number in numbers]
        calls += [partial(pyfuse3.invalidate_entry, directory, name) for directory, name in names]
        for call in calls:
            self._call(call)

    def _call(self, call: Callable[[], None]) -> None:
        if self._is_gone:
            return
        try:
            call()
        except OSError as error:
            if error.errno != errno.ENOENT:  # the kernel has forgotten it by itself
                raise
