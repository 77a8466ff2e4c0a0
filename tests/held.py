"""A store whose calls a test holds back, and the steps of an open file: for what falls between the steps of several."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from sosfs.content import Handle
from sosfs.fake import FakeStore
from tests.composed import TASK, Composed


class Held(FakeStore):
    """A store that holds calls back: `before` they take effect, or `after`, until their event is set."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.before: dict[str, trio.Event] = {}
        self.after: dict[str, trio.Event] = {}

    async def get(self, *arguments: Any, **options: Any) -> Any:
        return await self._held("get", super().get, arguments, options)

    async def put(self, *arguments: Any, **options: Any) -> Any:
        return await self._held("put", super().put, arguments, options)

    async def copy(self, *arguments: Any, **options: Any) -> Any:
        return await self._held("copy", super().copy, arguments, options)

    async def delete(self, *arguments: Any, **options: Any) -> Any:
        return await self._held("delete", super().delete, arguments, options)

    async def _held(self, name: str, call: Callable[..., Awaitable[Any]], arguments: Any, options: Any) -> Any:
        if (event := self.before.get(name)) is not None:
            await event.wait()
        answer = await call(*arguments, **options)
        if (event := self.after.get(name)) is not None:
            await event.wait()
        return answer


def stored(store: FakeStore, key: str = "file") -> bytes:
    """The bytes of an object."""
    return bytes(store._stored[key].body)


def bodies(store: FakeStore) -> dict[str, bytes]:
    """The bytes of all objects."""
    return {key: stored(store, key) for key in store._stored}


async def opened(mount: Composed, flags: int = os.O_RDWR, path: str = "file") -> Handle:
    """A handle of a file that exists."""
    return await mount.parts.contents.open(await mount._walk(path), flags, TASK)


async def closed(mount: Composed, handle: Handle) -> None:
    """What close(2) does. Raises what it does."""
    try:
        await mount.parts.contents.flush(handle)
    finally:
        await mount.parts.contents.release(handle)
