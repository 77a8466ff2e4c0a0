"""Read a paged listing to its end, and see to it that it has one.

A server or a gateway that answers each page with the same one, or with pages that lead back to an earlier one, would
keep who lists for ever. So no token may come twice.

Concurrency: pages are asked for one after the other, by the task that calls.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Hashable
from functools import partial
from operator import le
from typing import TYPE_CHECKING, TypeVar

from sosfs.errors import StoreError
from sosfs.s3.dispatch import Dispatcher
from sosfs.s3.protocol import Page

if TYPE_CHECKING:
    from sosfs.s3.calls import SignedCalls

T = TypeVar("T")
M = TypeVar("M", bound=Hashable)


def is_ordered(page: Page) -> bool:
    """Whether the keys of a page are in order; some servers know none."""
    keys = [listed.key for listed in page.objects]
    return all(map(le, keys, keys[1:])) and all(map(le, page.prefixes, page.prefixes[1:]))


def check_progress(request: str, token: M, seen: set[M]) -> None:
    """EIO where the next page would be asked for as an earlier one was; `seen` is given all tokens of one listing."""
    if token in seen:
        raise StoreError(errno.EIO, request, detail="the listing goes round in a circle")
    seen.add(token)


async def all_pages(
    dispatcher: Dispatcher, operation: str, ask: Callable[[SignedCalls, M | None], tuple[list[T], M | None]]
) -> list[T]:
    """All that a listing has; each page shows after what the next one begins."""

    def page_after(marker: M | None, calls: SignedCalls) -> tuple[list[T], M | None]:
        return ask(calls, marker)

    found: list[T] = []
    seen: set[M] = set()
    marker: M | None = None
    while True:
        page, marker = await dispatcher.send(operation, partial(page_after, marker))
        found += page
        if not marker:
            return found
        check_progress(operation, marker, seen)
