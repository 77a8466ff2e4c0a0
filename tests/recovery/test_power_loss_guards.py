"""What close and fsync have promised is on the disk when they return: each guard by itself, when the power goes."""

from __future__ import annotations

import os
import stat
from functools import partial
from pathlib import Path

import pytest
import trio

from sosfs.config.parameters import Durability
from sosfs.s3.protocol import Properties
from tests.recovery.test_power_loss import Disk, Log
from tests.support.composed import Composed, composed
from tests.support.held import Held, bodies, closed, opened, stored

JOURNAL = Durability.JOURNAL
sizes = pytest.mark.parametrize("size", [100, 300_000], ids=["in its row", "in the spool"])


@sizes
@pytest.mark.parametrize("how", ["close", "fsync", "truncate"])
def test_the_record_is_on_the_disk_when_the_call_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, how: str
) -> None:
    store = Held()
    body = b"n" * size

    async def main(mount: Composed) -> None:
        await store.put("file", b"o" * (size + 1 if how == "truncate" else 10), Properties())
        if how == "truncate":
            return await mount.truncate("file", size)
        handle = await opened(mount)
        await mount.parts.file_io.write(handle, 0, body)
        if how == "close":
            return await closed(mount, handle)
        return await mount.parts.file_io.fsync(handle.inode)

    with composed(store, tmp_path, durability=JOURNAL) as mount:
        log = Log(mount, tmp_path / "disk", monkeypatch)
        log.written_out()
        mount.loop.run(partial(main, mount))
        log.loses_power()
        mount.start()
        mount.loop.passes(5)
        mount.loop.run(mount.settle)
        assert bodies(store) == {"file": b"o" * size if how == "truncate" else body}


@sizes
def test_the_bytes_are_on_the_disk_before_the_record_tells_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    store, disk = Held(), Disk(monkeypatch)

    async def main(mount: Composed) -> None:
        await mount.write("file", b"n" * size, flags=os.O_CREAT)

    with composed(store, tmp_path, durability=JOURNAL) as mount:
        mount.loop.run(partial(main, mount))
        disk.loses_power(mount)
        mount.start()
        mount.loop.passes(5)
        mount.loop.run(mount.settle)
        assert bodies(store) == {"file": b"n" * size}


def test_attributes_are_on_the_disk_when_fsync_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Held()

    async def main(mount: Composed) -> None:
        await store.put("file", b"bytes", Properties())
        inode = await mount._walk("file")
        inode.mode = stat.S_IFREG | 0o600
        mount.parts.attributes.changed(inode)
        await mount.parts.file_io.fsync(inode)
        assert store.calls["copy"] == 0

    with composed(store, tmp_path, durability=JOURNAL) as mount:
        log = Log(mount, tmp_path / "disk", monkeypatch)
        log.written_out()
        mount.loop.run(partial(main, mount))
        log.loses_power()
        mount.start()
        assert stored(store) == b"bytes"
        assert store._stored["file"].object.properties.metadata["mode"] == str(0o100600)


def test_a_queued_removal_that_was_done_is_not_done_again_when_the_power_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel wrote the journal out while the delete was on its way; what is made after it has the same ETag."""
    store, held = Held(clock=lambda: 7.0), trio.Event()

    async def main(mount: Composed) -> None:
        for name in ("proof", "file"):
            await store.put(name, b"bytes", Properties())
        await mount.unlink("proof")
        store.before["delete", "file"] = held
        await mount.unlink("file")

    async def go_on(log: Log) -> None:
        assert store.reached
        log.written_out()
        held.set()

    with composed(store, tmp_path) as mount:
        log = Log(mount, tmp_path / "disk", monkeypatch)
        mount.loop.run(partial(main, mount))
        mount.loop.passes(1)
        mount.loop.run(partial(go_on, log))
        mount.loop.passes(1)
        assert not bodies(store)
        mount.loop.run(partial(store.put, "file", b"bytes", Properties()))
        log.loses_power()
        mount.start()
        assert bodies(store) == {"file": b"bytes"}
