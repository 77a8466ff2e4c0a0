"""Markers that are sent in the background: what becomes of them when the directory goes, moves or is made by others."""

from __future__ import annotations

from pathlib import Path

import trio
import trio.testing

from sosfs.fake import FakeStore
from sosfs.store import Acl, Body, Condition, Guard, Properties, Version
from tests.composed import composed


class Slow(FakeStore):
    """Stores a marker only when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = trio.Event()
        self.may = trio.Event()

    async def put(
        self,
        key: str,
        body: Body,
        properties: Properties,
        *,
        condition: Condition = Guard.NONE,
        acl: Acl | None = None,
    ) -> Version:
        if key.endswith("/"):
            self.asked.set()
            await self.may.wait()
        return await super().put(key, body, properties, condition=condition, acl=acl)


def test_a_directory_that_is_removed_while_its_marker_is_on_its_way_stays_away(tmp_path: Path) -> None:
    store = Slow()
    with composed(store, tmp_path) as mount:

        async def race() -> None:
            await store.put("docs/last", b"x", Properties())
            await mount.unlink("docs/last")  # from here on only a marker can say that there is a directory
            top, docs = mount.parts.inodes.root, await mount.parts.namespace.lookup(mount.parts.inodes.root, b"docs")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(mount.parts.attributes.settle, docs)
                await store.asked.wait()
                nursery.start_soon(mount.parts.namespace.rmdir, top, b"docs")
                await trio.testing.wait_all_tasks_blocked()
                store.may.set()

        mount.loop.run(race)
        assert mount.loop.run(mount.tree) == {}
    assert not store._stored
