"""Changed attributes on their way into the bucket: who waits for them must not send them beside the one who does."""

from __future__ import annotations

from pathlib import Path

import trio

from sosfs.fake import FakeStore
from sosfs.store import Properties
from tests.composed import composed


def test_two_who_settle_one_file_send_one_request(tmp_path: Path) -> None:
    store = FakeStore(hashes=False)
    with composed(store, tmp_path) as mount:

        async def settle_twice() -> None:
            await store.put("file", b"body", Properties())
            inode = await mount._walk("file")
            inode.mode = 0o100600
            mount.parts.attributes.changed(inode)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(mount.parts.attributes.settle, inode)
                nursery.start_soon(mount.parts.attributes.settle, inode)

        mount.loop.run(settle_twice)
        assert store.calls["copy"] == 1
