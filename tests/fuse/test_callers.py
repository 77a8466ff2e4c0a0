"""For which process it counts what the kernel asks."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pyfuse3
import pytest

from sosfs.concurrency.fairness import current
from sosfs.filesystem.bucket import _operations
from sosfs.fuse.removal_streak import LONG
from sosfs.s3.protocol import Failure
from tests.support.composed import Composed
from tests.support.held import Held, put_all


def test_what_is_removed_at_once_counts_for_who_removes_it(
    mount: Composed, store: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else `rm -r` would have a turn of its own and one of those that nobody has asked for."""
    monkeypatch.setattr(pyfuse3, "RequestContext", SimpleNamespace)  # it cannot be made here
    context: Any = SimpleNamespace(pid=os.getpid(), uid=0, gid=0, umask=0)
    kernel = _operations(mount._settings, mount.parts)
    delete, delete_many = store.delete, store.delete_many
    told: list[int] = []

    async def noted(key: str, **options: Any) -> None:
        told.append(current().process)
        await delete(key, **options)

    async def all_noted(keys: list[str], **options: Any) -> list[Failure]:
        told.append(current().process)
        return await delete_many(keys, **options)

    async def remove(parent: int, numbers: range) -> None:
        for number in numbers:
            await kernel.lookup(parent, b"%d" % number, context)
            await kernel.unlink(parent, b"%d" % number, context)

    async def begin() -> int:
        await put_all(store, {f"d/{number}": bytes(5000) for number in range(LONG + 6)})
        parent = (await mount._walk("d")).number
        await remove(parent, range(LONG))
        return parent

    parent = mount.loop.run(begin)
    mount.loop.passes(1)
    monkeypatch.setattr(store, "delete", noted)
    monkeypatch.setattr(store, "delete_many", all_noted)
    mount.loop.run(lambda: remove(parent, range(LONG, LONG + 5)))
    mount.loop.passes(1)
    assert told and set(told) == {os.getpid()}
