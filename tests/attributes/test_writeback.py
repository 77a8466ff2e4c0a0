"""Changed attributes on their way into the bucket: sent once, again after a refusal, and not lost in a crash."""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio

from sosfs.config.parameters import Durability
from sosfs.errors import from_s3
from sosfs.metadata.user_metadata import Posix
from sosfs.s3.protocol import Properties
from sosfs.tree.inodes import Inode
from tests.support.composed import LONG, Composed, composed
from tests.support.fake_store import FakeStore
from tests.support.held import Held, bodies, closed, opened

MIB = 1 << 20
NEW = Posix(stat.S_IFREG | 0o600, 1000, 33, 1_000_000_000_000_000_001, None)


def test_two_who_settle_one_file_send_one_request(tmp_path: Path) -> None:
    store = FakeStore(hashes=False)
    with composed(store, tmp_path) as mount:

        async def settle_twice() -> None:
            await store.put("file", b"body", Properties())
            inode = await mount._walk("file")
            inode.mode = 0o100600
            mount.parts.attributes.changed(inode)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(mount.parts.attributes.write_now, inode)
                nursery.start_soon(mount.parts.attributes.write_now, inode)

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


def change(mount: Composed, inode: Inode) -> None:
    """chmod, chown, utimensat and setxattr."""
    inode.mode, inode.uid, inode.gid, inode.mtime_ns = NEW.mode or 0, NEW.uid or 0, NEW.gid or 0, NEW.mtime_ns or 0
    inode.edits = inode.edits.with_metadata("color", "red").with_header("cache_control", "no-cache")
    mount.parts.attributes.changed(inode)


async def require_changed(mount: Composed) -> None:
    """What `change` did is there."""
    inode = await mount._walk("file")
    known = mount.parts.attributes.known(inode)
    assert inode.posix == NEW
    assert (known.metadata.get("color"), known.headers.cache_control) == ("red", "no-cache")


@pytest.mark.promise(3)
@pytest.mark.parametrize("before", [{}, {"file": b"as it was"}], ids=["new", "rewritten"])
@pytest.mark.parametrize("size", [100, MIB], ids=["in the row", "in a spool"])
def test_attributes_of_what_waits_for_its_upload_outlive_a_crash(
    tmp_path: Path, size: int, before: dict[str, bytes]
) -> None:
    store = FakeStore()

    async def main(mount: Composed) -> None:
        for key, body in before.items():
            await store.put(key, body, Properties())
        await mount.write("file", b"n" * size, flags=os.O_CREAT)
        change(mount, await mount._walk("file"))

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(main, mount))
        assert bodies(store) == before
        mount.crash()
        mount.start()
        mount.loop.run(partial(require_changed, mount))
        mount.loop.passes(LONG)
        assert bodies(store) == {"file": b"n" * size}
        mount.loop.run(partial(require_changed, mount))
        assert store._stored["file"].object.properties.metadata["color"] == "red"


@pytest.mark.promise(3)
def test_attributes_changed_while_the_upload_is_under_way_outlive_a_crash(tmp_path: Path) -> None:
    """The object is there, with the attributes of when the upload began, and nobody was told."""
    store = Held()

    async def main(mount: Composed) -> None:
        await store.put("file", b"as it was", Properties())
        await mount.write("file", b"new")
        store.after["put"] = trio.Event()

    async def later(mount: Composed) -> None:
        change(mount, await mount._walk("file"))

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(main, mount))
        mount.loop.passes(LONG)
        assert bodies(store) == {"file": b"newit was"}
        mount.loop.run(partial(later, mount))
        mount.crash()
        store.after.clear()
        mount.start()
        mount.loop.run(partial(require_changed, mount))
        mount.loop.passes(LONG)
        assert bodies(store) == {"file": b"newit was"}, "and no copy of a loser"
        assert store._stored["file"].object.properties.metadata["color"] == "red"


@pytest.mark.promise(3)
def test_attributes_of_what_was_found_stored_outlive_the_next_crash_too(tmp_path: Path) -> None:
    """The first recovery finds the bytes in the bucket, and has the attributes that came after them yet to write."""
    store = Held()

    async def main(mount: Composed) -> None:
        await mount.write("file", b"new", flags=os.O_CREAT)
        store.after["put"] = trio.Event()

    async def later(mount: Composed) -> None:
        change(mount, await mount._walk("file"))

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(main, mount))
        mount.loop.passes(3)
        assert bodies(store) == {"file": b"new"}
        mount.loop.run(partial(later, mount))
        for _ in range(2):
            mount.crash()
            store.after.clear()
            mount.start()
            mount.loop.run(partial(require_changed, mount))
        mount.loop.passes(LONG)
        mount.loop.run(partial(require_changed, mount))
        found = store._stored["file"].object.properties.metadata
        assert (found["color"], found["mtime"]) == ("red", "1000000000.000000001")


@pytest.mark.parametrize("size", [100, MIB], ids=["in the row", "in a spool"])
def test_a_record_of_attributes_vouches_for_no_bytes_that_came_since(tmp_path: Path, size: int) -> None:
    store = FakeStore()

    async def main(mount: Composed) -> None:
        await mount.write("file", bytes(size), flags=os.O_CREAT)
        ((_, before),) = mount._journal.drafts()
        handle = await opened(mount)
        await mount.parts.file_io.write(handle, size, b"not recorded")
        change(mount, handle.inode)
        ((_, after),) = mount._journal.drafts()
        assert after == replace(before, posix=NEW, properties=after.properties, edits=handle.inode.edits, sums=())
        await closed(mount, handle)

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(main, mount))
        mount.loop.passes(LONG)
