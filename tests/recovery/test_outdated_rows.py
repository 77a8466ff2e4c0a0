"""What a row on the disk tells of a name is not taken for what the name has got since: not by a mount of another boot.

Where nobody waits for the disk, rows that are gone may come back with a power loss. So before the bucket gets something
new under a name, the disk knows that they are gone.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from sosfs.concurrency.threads import Threads
from sosfs.config.parameters import Durability
from sosfs.files.open_file import Handle
from tests.support.composed import LONG, Composed, composed
from tests.support.drive import fails
from tests.support.held import Held, begun, bodies, put_all, settled, silence
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


@sizes
@pytest.mark.parametrize("written_on", [False, True])
@pytest.mark.parametrize("then", ["it is sent", "it is sent and written anew"])
def test_a_file_that_was_renamed_before_it_was_sent_is_there_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, written_on: bool, then: str
) -> None:
    store = Held()

    async def rename(mount: Composed) -> Handle:
        handle = await mount._opened(mount.parts.inodes.root, b"log", os.O_WRONLY)
        if written_on:
            await mount.parts.file_io.write(handle, 0, b"more")
        await mount.rename("log", "log.1")
        return handle

    async def send(mount: Composed, handle: Handle) -> None:
        await mount.parts.commits.commit(handle.inode)
        await mount.parts.file_io.release(handle)
        if then != "it is sent":
            await write(mount, "log.1", b"anew", stored=True)

    with composed(store, tmp_path, durability=WRITEBACK) as mount:
        machine = Machine(mount, monkeypatch, 1)
        mount.parts.commits.debounce.delay = LONG
        mount.loop.run(partial(write, mount, "log", b"o" * size))
        mount.loop.passes(3)
        handle = mount.loop.run(partial(rename, mount))
        if then != "it is sent":
            mount.loop.passes(3)
        mount.loop.run(partial(send, mount, handle))
        expected = bodies(store)
        assert set(expected) == {"log.1"}
        loses_power(mount, machine)
        assert bodies(store) == expected


@pytest.mark.parametrize("cut", ["by a crash", "by an error"])
@pytest.mark.parametrize("below", ["", "/x"], ids=["file", "directory"])
def test_what_is_renamed_to_where_another_rename_had_failed_to_go_is_not_taken_for_its_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: str, cut: str
) -> None:
    """It has the same bytes, and is the only one of its own."""
    store = Held()

    async def rename(mount: Composed) -> None:
        await put_all(store, {f"a{below}": b"same", f"c{below}": b"same"})
        if cut == "by an error":
            store.errors["copy", f"a{below}"] = [silence("copy")]
            with fails(errno.EIO):
                await mount.rename("a", "b")
        else:
            store.before["copy", f"a{below}"] = trio.Event()
            await begun(mount, partial(mount.rename, "a", "b"))

    with composed(store, tmp_path, durability=WRITEBACK) as mount:
        machine = Machine(mount, monkeypatch, 1)
        mount.loop.run(partial(rename, mount))
        if cut == "by a crash":
            mount.crash()
            store.before.clear()
            mount.start()
        mount.loop.passes(2)
        mount.loop.run(partial(mount.rename, "c", "b"))
        expected = {f"a{below}": b"same", f"b{below}": b"same"}
        assert bodies(store) == expected
        loses_power(mount, machine)
        assert bodies(store) == expected


def test_what_is_renamed_into_the_directory_that_could_not_be_replaced_is_no_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Held()

    async def rename(mount: Composed) -> None:
        await put_all(store, {"a/x": b"same", "b/": b"", "c": b"same"})
        store.errors["copy", "a/x"] = [silence("copy")]
        with fails(errno.EIO):
            await mount.rename("a", "b")

    with composed(store, tmp_path, durability=WRITEBACK) as mount:
        machine = Machine(mount, monkeypatch, 1)
        mount.loop.run(partial(rename, mount))
        mount.loop.passes(2)
        mount.loop.run(partial(mount.rename, "c", "b/x"))
        loses_power(mount, machine)
        assert bodies(store) == {"a/x": b"same", "b/": b"", "b/x": b"same"}


@pytest.mark.parametrize("over", [False, True])
def test_what_has_the_old_name_of_a_file_is_not_renamed_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, over: bool
) -> None:
    """The disk knows that the rename had begun, and not that it is done."""
    store, held = Held(), trio.Event()

    async def rename(mount: Composed) -> None:
        await put_all(store, {"a": b"same", "c": b"same"} | ({"b": b"other"} if over else {}))
        store.before["copy", "a"] = held
        await begun(mount, partial(mount.rename, "a", "b"))

    async def go_on(mount: Composed) -> None:
        await settled(held)
        assert "a" not in bodies(store)
        await mount.rename("c", "a")

    with composed(store, tmp_path, durability=WRITEBACK) as mount:
        machine = Machine(mount, monkeypatch, 1)
        mount.loop.run(partial(rename, mount))
        mount.loop.passes(2)
        mount.loop.run(partial(go_on, mount))
        mount.loop.passes(0.7)  # what was renamed last is gone from its old name, and nothing is synced
        assert bodies(store) == {"a": b"same", "b": b"same"}
        loses_power(mount, machine)
        assert bodies(store) == {"a": b"same", "b": b"same"}


def test_what_is_stored_below_the_old_name_of_a_directory_is_not_renamed_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That all copies are there is on the disk, and not that the old keys are gone."""
    store = Held()

    async def main(mount: Composed) -> None:
        await put_all(store, {"a/x": b"old", "keep": b""})
        await mount.rename("a", "b")
        await mount.mkdir("a")
        assert "a/" not in bodies(store)
        await write(mount, "a/x", b"new", stored=True)

    with composed(store, tmp_path, durability=WRITEBACK) as mount:
        machine = Machine(mount, monkeypatch, 1)
        mount.loop.run(partial(main, mount))
        loses_power(mount, machine)
        assert bodies(store) == {"a/x": b"new", "b/x": b"old", "keep": b""}


def is_removed(mount: Composed, store: Held) -> trio.Event:
    """A file is removed, and the disk knows of that; it is gone when the event is set."""
    held = trio.Event()

    async def main() -> None:
        await put_all(store, {"file": b"same", "other": b""})
        mount.parts.commits.debounce.delay = LONG
        store.before["delete", "file"] = held
        await begun(mount, partial(mount.unlink, "file"))

    mount.loop.run(main)
    mount.loop.passes(2)
    return held


def test_what_has_the_name_of_a_removed_file_is_not_removed_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing tells it from that one."""
    store = Held(clock=lambda: 7.0)

    async def go_on(mount: Composed) -> None:
        await settled(held)
        assert "file" not in bodies(store)
        await write(mount, "file", b"same", stored=True)

    with composed(store, tmp_path, durability=WRITEBACK) as mount:
        machine = Machine(mount, monkeypatch, 1)
        held = is_removed(mount, store)
        mount.loop.run(partial(go_on, mount))
        loses_power(mount, machine)
        assert bodies(store) == {"file": b"same", "other": b""}


def test_nor_is_a_directory_that_is_claimed_in_the_bucket_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the lock that it is by its name."""
    store, held = Held(clock=lambda: 7.0), trio.Event()

    async def remove(mount: Composed) -> None:
        await put_all(store, {"lock/": b"", "other": b""})
        store.before["delete", "lock/"] = held
        await begun(mount, partial(mount.rmdir, "lock"))

    async def go_on(mount: Composed) -> None:
        await settled(held)
        assert "lock/" not in bodies(store)
        await mount.mkdir("lock")
        assert "lock/" in bodies(store)

    with composed(store, tmp_path, durability=WRITEBACK) as mount:
        machine = Machine(mount, monkeypatch, 1)
        mount.loop.run(partial(remove, mount))
        mount.loop.passes(2)
        mount.loop.run(partial(go_on, mount))
        loses_power(mount, machine)
        assert bodies(store) == {"lock/": b"", "other": b""}


def test_nor_where_the_disk_was_being_written_when_it_was_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes from the journal while it is being synced is not synced by that."""
    store, is_written = Held(clock=lambda: 7.0), trio.Event()

    async def go_on(mount: Composed, machine: Machine) -> None:
        await write(mount, "new", b"new")
        with monkeypatch.context() as patch:

            async def slowly(threads: Threads, function: Callable[..., Any], *arguments: Any) -> Any:
                found = function(*arguments)
                if function == mount._journal._db._sync:
                    await is_written.wait()
                return found

            patch.setattr(Threads, "run", slowly)
            await begun(mount, mount._journal.sync)
            on_disk = machine._log()
            await settled(held)
            assert "file" not in bodies(store)
            await settled(is_written)
            machine._logs = [on_disk]
        await write(mount, "file", b"same", stored=True)

    with composed(store, tmp_path, durability=WRITEBACK) as mount:
        machine = Machine(mount, monkeypatch, 1)
        held = is_removed(mount, store)
        mount.loop.run(partial(go_on, mount, machine))
        loses_power(mount, machine)
        assert bodies(store) == {"file": b"same", "other": b"", "new": b"new"}
