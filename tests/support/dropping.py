"""`sosfs drop` on a mount in one process, and what it tells the kernel."""

from __future__ import annotations

from typing import Any, cast

from sosfs.files.page_cache import PageNotifier
from sosfs.filesystem.drop import DropCommand
from sosfs.fuse.negative_entries import NegativeEntries
from tests.support.composed import Composed


class Kernel:
    """Notes what it is told to forget."""

    def __init__(self) -> None:
        self.inodes: list[int] = []
        self.names: list[tuple[int, bytes]] = []

    async def forget(self, inodes: Any, names: Any) -> None:
        """As `PageNotifier.forget`."""
        self.inodes += inodes
        self.names += names


async def dropped(
    mount: Composed, *paths: str, kernel: Kernel | None = None, absent: NegativeEntries | None = None
) -> dict[str, Any]:
    """What `sosfs drop` tells of these paths, "" for all."""
    parts = mount.parts
    dropping = DropCommand(
        parts.inodes,
        parts.cache,
        parts.blocks,
        parts.commits,
        parts.pages,
        absent or NegativeEntries(ttl=0.0),
        cast(PageNotifier, kernel or Kernel()),
    )
    return dict(
        await dropping.run([tuple(path.encode().split(b"/")) if path else () for path in paths], lambda _: None)
    )
