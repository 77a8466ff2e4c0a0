"""Changed attributes on their way into the bucket: who waits for them must not send them beside the one who does."""

from __future__ import annotations

from pathlib import Path

import trio

from sosfs.config import Settings
from sosfs.fake import FakeStore
from sosfs.store import Properties
from tests.composed import Composed, Loop, inline_threads, state_in


def test_two_who_settle_one_file_send_one_request(tmp_path: Path) -> None:
    loop, store = Loop(), FakeStore(hashes=False)
    with inline_threads():
        loop.run(lambda: store.put("file", b"body", Properties()))
        mount = Composed(loop, store, Settings("bucket", "", Path("/"), cache_dir=state_in(tmp_path)))
        mount.start()

        async def settle_twice() -> None:
            inode = await mount._walk("file")
            inode.mode = 0o100600
            mount.parts.attributes.changed(inode)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(mount.parts.attributes.settle, inode)
                nursery.start_soon(mount.parts.attributes.settle, inode)

        loop.run(settle_twice)
        assert store.calls["copy"] == 1
        mount.stop()
        loop.close()
