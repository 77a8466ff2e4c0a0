"""What a row on the disk tells of a name is not taken for what the name has got since: not by a mount of another boot.

Where nobody waits for the disk, rows that are gone may come back with a power loss. So before the bucket gets something
new under a name, the disk knows that they are gone.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest
import trio

from sosfs.config.parameters import Durability
from tests.support.composed import LONG, Composed, composed
from tests.support.held import Held, begun, bodies, put_all
from tests.support.power import Machine

WRITEBACK = Durability.WRITEBACK
pytestmark = pytest.mark.promise(3)
sizes = pytest.mark.parametrize("size", [100, 300_000], ids=["in its row", "in the spool"])


async def write(mount: Composed, name: str, body: bytes, *, stored: bool = False) -> None:
    """A file is written anew, and is in the bucket if that is wanted."""
    await mount.write(name, body, flags=os.O_CREAT | os.O_TRUNC)
    if stored:
        await mount.parts.commits.commit(await mount._walk(name))


def loses_power(mount: Composed, machine: Machine) -> None:
    """The log ends where it was synced last; the next mount sends all that it finds."""
    machine.loses_power(newest_log=False, spools="written")
    mount.take_up(seconds=20)


@sizes
def test_bytes_of_an_earlier_mount_are_no_conflict_with_those_that_came_after_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    store = Held()

    async def again(mount: Composed) -> None:
        mount.parts.commits.debounce.delay = LONG
        await mount.parts.commits.commit(await mount._walk("file"))
        await write(mount, "file", b"2" * size, stored=True)

    with composed(store, tmp_path, durability=WRITEBACK) as mount:
        machine = Machine(mount, monkeypatch, 1)
        mount.parts.commits.debounce.delay = LONG
        mount.loop.run(partial(write, mount, "file", b"1" * size))
        mount.crash()
        mount.start()
        mount.loop.run(partial(again, mount))
        assert bodies(store) == {"file": b"2" * size}
        loses_power(mount, machine)
        assert bodies(store) == {"file": b"2" * size}


@sizes
@pytest.mark.parametrize("written_on", [False, True])
def test_a_file_that_was_renamed_before_it_was_sent_is_not_taken_for_the_one_that_has_its_name_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, written_on: bool
) -> None:
    """As of a log that is rotated: the next one goes up, and the one before it waits."""
    store = Held()

    async def rotate(mount: Composed) -> None:
        handle = await mount._opened(mount.parts.inodes.root, b"log", os.O_WRONLY) if written_on else None
        if handle is not None:
            await mount.parts.file_io.write(handle, size, b"more")
        await mount.rename("log", "log.1")
        if handle is not None:
            await mount.parts.file_io.release(handle)
        await write(mount, "log", b"new", stored=True)

    with composed(store, tmp_path, durability=WRITEBACK) as mount:
        machine = Machine(mount, monkeypatch, 1)
        mount.parts.commits.debounce.delay = LONG
        mount.loop.run(partial(write, mount, "log", b"o" * size))
        mount.loop.passes(3)
        assert mount.parts.unsynced.changes == 0
        mount.loop.run(partial(rotate, mount))
        assert bodies(store) == {"log": b"new"}
        loses_power(mount, machine)
        found = bodies(store)
        assert set(found) == {"log", "log.1"}
        assert (found["log"], found["log.1"][:size]) == (b"new", b"o" * size)


@pytest.mark.parametrize("below", ["", "/x"], ids=["file", "directory"])
def test_what_is_renamed_to_where_an_earlier_mount_had_failed_to_is_not_taken_for_its_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: str
) -> None:
    """It has the same bytes, and is the only one of its own."""
    store = Held()

    async def rename(mount: Composed) -> None:
        await put_all(store, {f"a{below}": b"same", f"c{below}": b"same"})
        store.before["copy", f"a{below}"] = trio.Event()
        await begun(mount, partial(mount.rename, "a", "b"))

    with composed(store, tmp_path, durability=WRITEBACK) as mount:
        machine = Machine(mount, monkeypatch, 1)
        mount.loop.run(partial(rename, mount))
        mount.crash()
        store.before.clear()
        mount.start()
        mount.loop.run(partial(mount.rename, "c", "b"))
        expected = {f"a{below}": b"same", f"b{below}": b"same"}
        assert bodies(store) == expected
        loses_power(mount, machine)
        assert bodies(store) == expected
