"""A disk that takes its time: what has happened to a file by the time that its bytes are told to be there."""

from __future__ import annotations

import errno
import os
from functools import partial
from pathlib import Path

import pytest

from sosfs.config.parameters import Durability
from sosfs.files.spool import Spool
from tests.recovery.test_power_loss_guards import ends_late
from tests.support.composed import Composed, composed
from tests.support.held import Held, begun, bodies, closed, opened, put_all, settled

JOURNAL, WRITEBACK = Durability.JOURNAL, Durability.WRITEBACK
LARGE = 300_000  # bytes: in a spool
pytestmark = pytest.mark.promise(3)


def next_mount(mount: Composed) -> None:
    """The process dies, and another takes up what it has left."""
    mount.crash()
    mount.start()
    assert mount._journal.damage.lines == ()
    mount.loop.passes(5)
    mount.loop.run(mount.settle)


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_a_sync_that_ends_after_the_file_has_lost_its_name_brings_nothing_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    store = Held()

    async def main(mount: Composed) -> None:
        handle = await mount._opened(mount.parts.inodes.root, b"file", os.O_CREAT | os.O_RDWR)
        await mount.parts.file_io.write(handle, 0, b"1" * LARGE)
        late = ends_late(monkeypatch)
        await begun(mount, partial(mount.parts.file_io.fsync, handle.inode))
        if how == "removed":
            await mount.unlink("file")
        else:
            await mount.write("other", b"other", flags=os.O_CREAT)
            await mount.rename("other", "file")
        await settled(late)

    with composed(store, tmp_path, durability=JOURNAL) as mount:
        mount.loop.run(partial(main, mount))
        next_mount(mount)
        assert bodies(store) == ({} if how == "removed" else {"file": b"other"})


def test_a_sync_that_ends_after_a_failed_write_was_given_up_does_not_record_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the file nobody may have a part of what its program has written."""
    store = Held()

    async def failing(*_: object) -> None:
        raise OSError(errno.EIO, "the disk")

    async def main(mount: Composed) -> None:
        await put_all(store, {"file": b"old"})
        handle = await opened(mount)
        await mount.parts.file_io.write(handle, 0, b"1" * LARGE)
        late = ends_late(monkeypatch)
        await begun(mount, partial(mount.parts.file_io.fsync, handle.inode))
        with monkeypatch.context() as patch, pytest.raises(OSError, match="the disk"):
            patch.setattr(Spool, "write", failing)
            await mount.parts.file_io.write(handle, LARGE, b"2" * 100)
        await mount.parts.file_io.failed_writes.discard_all()
        await settled(late)
        await closed(mount, handle)

    with composed(store, tmp_path, durability=JOURNAL) as mount:
        mount.loop.run(partial(main, mount))
        next_mount(mount)
        assert bodies(store) == {"file": b"old"}
