"""Changed attributes on their way into the bucket: sent once, by whoever waits for them, and again after a refusal."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from sosfs.errors import from_s3
from sosfs.fake import FakeStore
from sosfs.store import Properties
from tests.composed import LONG, composed


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


@pytest.mark.parametrize("code", ["ExpiredToken", "RequestTimeTooSkewed"])
def test_a_chmod_waits_until_the_key_is_valid_again(tmp_path: Path, code: str) -> None:
    store, refused = FakeStore(), list[str]()

    def refuse_twice(operation: str, key: str) -> None:
        if operation == "copy" and len(refused) < 2:
            refused.append(key)
            raise from_s3(f"{operation} {key!r}", code=code, status=403)

    with composed(store, tmp_path) as mount:

        async def chmod() -> None:
            await store.put("file", b"body", Properties())
            inode = await mount._walk("file")
            inode.mode = 0o100600
            mount.parts.attributes.changed(inode)

        store.fault = refuse_twice
        mount.loop.run(chmod)
        mount.loop.passes(LONG)
        assert refused == ["file"] * 2
        assert mount.loop.run(lambda: store.head("file")).properties.metadata["mode"] == str(0o100600)
