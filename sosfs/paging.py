"""All that a listing has, whose answers tell after what the next one begins."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from sosfs.sender import Sender

if TYPE_CHECKING:
    from sosfs.lanes import Lanes

T = TypeVar("T")
M = TypeVar("M")


async def every_page(
    sender: Sender, operation: str, ask: Callable[[Lanes, M | None], tuple[builtins.list[T], M | None]]
) -> builtins.list[T]:
    """Asks page by page, with the marker that each tells for the next; None for the first."""

    def page_after(marker: M | None, lanes: Lanes) -> tuple[builtins.list[T], M | None]:
        return ask(lanes, marker)

    found: builtins.list[T] = []
    marker: M | None = None
    while True:
        page, marker = await sender.send(operation, partial(page_after, marker))
        found += page
        if not marker:
            return found
