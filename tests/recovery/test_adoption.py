"""Unsent bytes of an earlier mount are back with all that was known of them, and go up as they would have."""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path

import pytest

import tests.support.fake_store
from sosfs.config.parameters import Durability
from tests.support.composed import Composed, composed
from tests.support.held import Held, bodies, put_all, stored

JOURNAL = Durability.JOURNAL
PART = 4096
TIME = 123_456_789_000_000_001
sizes = pytest.mark.parametrize("size", [10, 300_000], ids=["in its row", "in the spool"])


@sizes
def test_owner_and_time_are_those_of_before_the_crash(tmp_path: Path, size: int) -> None:
    store = Held()

    async def before(mount: Composed) -> None:
        await mount.write("file", b"n" * size, flags=os.O_CREAT)
        inode = await mount._walk("file")
        inode.mode, inode.uid, inode.gid, inode.mtime_ns = 0o100604, 5, 7, TIME
        mount.parts.file_io.time_given(inode)
        mount.parts.attributes.changed(inode)

    async def require(mount: Composed) -> None:
        inode = await mount._walk("file")
        assert (inode.mode, inode.uid, inode.gid, inode.mtime_ns) == (0o100604, 5, 7, TIME)

    with composed(store, tmp_path, durability=JOURNAL) as mount:
        mount.loop.run(partial(before, mount))
        mount.crash()
        mount.start()
        mount.loop.run(partial(require, mount))
        mount.loop.passes(5)
        mount.loop.run(mount.settle)
        metadata = store._stored["file"].object.properties.metadata
        assert {name: metadata[name] for name in ("mode", "uid", "gid", "mtime")} == {
            "mode": str(0o100604), "uid": "5", "gid": "7", "mtime": "123456789.000000001",
        }  # fmt: skip


@sizes
def test_it_waits_since_it_was_written(tmp_path: Path, size: int) -> None:
    """`sosfs status` tells how old the oldest change is; what lies in its row has no time but that of the mount."""
    store, ago = Held(), 1000.0

    with composed(store, tmp_path, durability=JOURNAL) as mount:
        mount.loop.run(partial(mount.write, "file", b"n" * size, flags=os.O_CREAT))
        mount.crash()
        for spool in (mount._settings.state_dir / "spool").glob("*.spool"):
            os.utime(spool, (time.time() - ago, time.time() - ago))
        mount.start()
        age = time.time() - mount.parts.oldest
        assert ago <= age < 2 * ago if size > 10 else 0 <= age < ago


def test_of_a_large_file_what_was_changed_is_sent_and_the_rest_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tests.support.fake_store, "PART_MIN", 1)
    store, body = Held(), b"".join(bytes([65 + number]) * PART for number in range(70))
    changed = body[: 3 * PART] + b"!" * 100 + body[3 * PART + 100 :]

    async def before(mount: Composed) -> None:
        await put_all(store, {"file": body})
        await mount.write("file", b"!" * 100, at=3 * PART)

    with composed(store, tmp_path, durability=JOURNAL, part_size=PART) as mount:
        mount.loop.run(partial(before, mount))
        mount.crash()
        assert stored(store) == body
        mount.start()
        mount.loop.passes(5)
        mount.loop.run(mount.settle)
        assert stored(store) == changed
        assert store.calls["copy_part"] > 0


def test_a_cut_that_left_nothing_of_what_was_written_is_no_damage(tmp_path: Path) -> None:
    """Its spool has not one byte that counts."""
    store = Held()

    async def before(mount: Composed) -> None:
        await put_all(store, {"file": b"o" * 600_000})
        await mount.write("file", b"n" * 300_000, at=300_000)
        await mount.truncate("file", 1000)
        ((_, saved),) = mount._journal.drafts()
        assert saved.spool
        assert not saved.local

    with composed(store, tmp_path, durability=JOURNAL) as mount:
        mount.loop.run(partial(before, mount))
        mount.crash()
        mount.start()
        assert mount._journal.damage.lines == ()
        mount.loop.passes(5)
        mount.loop.run(mount.settle)
        assert bodies(store) == {"file": b"o" * 1000}
