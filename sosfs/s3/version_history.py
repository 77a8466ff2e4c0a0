"""The versions of a bucket's keys: listed page by page, and told of one key or key by key.

Concurrency: trio thread only; pages are asked for one after the other, by the task that calls.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING

from sosfs.s3.dispatch import Dispatcher
from sosfs.s3.paging import check_progress
from sosfs.s3.version_answers import VersionEntry, VersionMarker, VersionPage

if TYPE_CHECKING:
    from sosfs.s3.calls import SignedCalls

FEW = 100  # entries asked for where those of one key are wanted

Entries = list[VersionEntry]  # of one key, the newest first


class VersionHistory:
    """What the server keeps of keys that were overwritten or deleted, and what is there now."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher

    async def of_key(self, key: str) -> Entries:
        """All entries of one key, none where it never was. Raises StoreError."""
        found: Entries = []
        async for page in self.pages(key, limit=FEW):
            found += [entry for entry in page.entries if entry.key == key]
            if any(entry.key != key for entry in page.entries):
                break  # in the order of keys it is the first that begins with itself
        return found

    def pages(
        self,
        prefix: str,
        *,
        delimiter: str = "",
        after: VersionMarker | None = None,
        limit: int = 1000,
        more: int = 0,
    ) -> AsyncIterator[VersionPage]:
        """The pages from a marker on, each asked for when its turn comes; `more` is the limit after the first one.

        Raises StoreError, also where a page would end where an earlier one did.
        """
        return _Pages(self._dispatcher, prefix, delimiter, after, limit, more or limit)


class _Pages(AsyncIterator[VersionPage]):
    """As `VersionHistory.pages`. No generator, which whoever leaves a loop would have to close."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        prefix: str,
        delimiter: str,
        after: VersionMarker | None,
        limit: int,
        more: int,
    ) -> None:
        self._dispatcher = dispatcher
        self._prefix = prefix
        self._delimiter = delimiter
        self._after = after
        self._limit = limit
        self._more = more
        self._seen = {after}
        self._is_done = False

    async def __anext__(self) -> VersionPage:
        if self._is_done:
            raise StopAsyncIteration
        page = await self._dispatcher.send("ListObjectVersions", self._ask)
        if page.following:
            check_progress(f"ListObjectVersions {self._prefix!r}", page.following, self._seen)
        self._after, self._limit, self._is_done = page.following, self._more, page.following is None
        return page

    def _ask(self, calls: SignedCalls) -> VersionPage:
        return calls.list_versions(self._prefix, delimiter=self._delimiter, after=self._after, limit=self._limit)


class KeyByKey:
    """All keys below a prefix with their entries: `following` gives those that another page completes."""

    def __init__(self, history: VersionHistory, prefix: str) -> None:
        self._pages = history.pages(prefix)
        self._begun: Entries = []  # of the last key of the last page, which may go on
        self.is_done = False

    async def following(self) -> list[Entries]:
        """The entries of some more keys; may be none before `is_done`. Raises StoreError."""
        page = await anext(self._pages)
        groups = [list(group) for _, group in groupby([*self._begun, *page.entries], attrgetter("key"))]
        self.is_done = page.following is None
        self._begun = [] if self.is_done or not groups else groups.pop()
        return groups
