"""A file is on its way up, its record changes meanwhile, and nobody hears the answer: its object is known as ours."""

from __future__ import annotations

import os
import stat
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from sosfs.concurrency.threads import Threads
from sosfs.config.parameters import Durability
from sosfs.files.open_file import Handle
from sosfs.files.spool import Spool
from sosfs.files.upload import etag_of
from sosfs.metadata import user_metadata
from sosfs.s3.protocol import Acl, Grant, Properties
from tests.support.composed import LONG, Composed, composed
from tests.support.held import Held, begun, bodies, settled, stored
from tests.support.power import Machine, syncs_late

WRITEBACK = Durability.WRITEBACK
LARGE = 300_000  # bytes: in a spool
FIRST, MORE = b"1" * LARGE, b"2" * 1000
pytestmark = pytest.mark.promise(3)
Step = Callable[[], Awaitable[None]]
hashed = pytest.mark.parametrize("hashes", [True, False], ids=["hashes", "no hashes"])
ends = pytest.mark.parametrize("is_power", [False, True], ids=["process dies", "power goes"])


class Upload:
    """A new file of a mount whose objects are made, and nobody is told."""

    def __init__(self, mount: Composed, store: Held) -> None:
        self._mount, self._store = mount, store
        mount.parts.commits.debounce.delay = LONG
        mount.loop.run(self._open)

    async def _open(self) -> None:
        self.handle: Handle = await self._mount._opened(self._mount.parts.inodes.root, b"file", os.O_CREAT | os.O_RDWR)

    async def write(self, at: int, data: bytes, *, close: bool = True) -> None:
        """write, and close."""
        await self._mount.parts.file_io.write(self.handle, at, data)
        if close:
            await self._mount.parts.file_io.flush(self.handle)

    async def goes(self) -> None:
        """All that is there is on its way, and arrives."""
        self._store.after["put"] = trio.Event()
        await begun(self._mount, partial(self._mount.parts.commits.commit, self.handle.inode))
        assert stored(self._store)

    async def fsync(self) -> None:
        await self._mount.parts.file_io.fsync(self.handle.inode)

    async def chmod(self) -> None:
        self.handle.inode.mode = stat.S_IFREG | 0o600
        self._mount.parts.attributes.changed(self.handle.inode)

    async def touch(self, mtime_ns: int) -> None:
        self.handle.inode.mtime_ns = mtime_ns
        self._mount.parts.file_io.time_given(self.handle.inode)
        self._mount.parts.attributes.changed(self.handle.inode, posix=["mtime_ns"])

    async def cut(self, size: int) -> None:
        await self._mount.parts.file_io.truncate(self.handle.inode, size)


def ended(mount: Composed, store: Held, machine: Machine, *, is_power: bool) -> dict[str, bytes]:
    """What is in the bucket once the next mount has sent all."""
    if is_power:
        machine.loses_power(newest_log=True, spools="synced")
    else:
        mount.crash()
    mount.loop.run(store.release)
    mount.take_up(seconds=20)
    return bodies(store)


@ends
@pytest.mark.parametrize("more", ["nothing", "open", "closed"])
def test_a_second_passes_and_all_is_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_power: bool, more: str
) -> None:
    store = Held()
    with composed(store, tmp_path, durability=WRITEBACK) as mount:
        machine, upload = Machine(mount, monkeypatch, 1), Upload(mount, store)
        mount.loop.run(partial(upload.write, 0, FIRST))
        mount.loop.run(upload.goes)
        if more != "nothing":
            mount.loop.run(partial(upload.write, LARGE, MORE, close=more == "closed"))
        mount.loop.passes(3)
        assert mount.parts.unsynced.changes == 0
        found = ended(mount, store, machine, is_power=is_power)
        assert found == {"file": FIRST + MORE if more == "closed" else FIRST}


def test_an_earlier_fsync_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Held()
    with composed(store, tmp_path, durability=WRITEBACK) as mount:
        machine, upload = Machine(mount, monkeypatch, 1), Upload(mount, store)
        mount.loop.run(partial(upload.write, 0, FIRST, close=False))
        late = syncs_late(monkeypatch, Spool)
        mount.loop.run(partial(begun, mount, upload.fsync))
        mount.loop.run(partial(upload.write, LARGE, MORE))
        mount.loop.run(upload.goes)
        mount.loop.run(partial(settled, late))
        assert ended(mount, store, machine, is_power=False) == {"file": FIRST + MORE}


@ends
@pytest.mark.parametrize("size", [LARGE, 100])
def test_attributes_are_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_power: bool, size: int) -> None:
    store = Held()
    with composed(store, tmp_path, durability=WRITEBACK) as mount:
        machine, upload = Machine(mount, monkeypatch, 1), Upload(mount, store)
        mount.loop.run(partial(upload.write, 0, FIRST[:size]))
        mount.loop.passes(3)
        mount.loop.run(upload.goes)
        mount.loop.run(upload.chmod)
        assert ended(mount, store, machine, is_power=is_power) == {"file": FIRST[:size]}
        assert store._stored["file"].object.properties.metadata["mode"] == str(0o100600)


def test_its_time_is_set(tmp_path: Path) -> None:
    store = Held()
    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        upload = Upload(mount, store)
        mount.loop.run(partial(upload.write, 0, MORE))
        mount.loop.run(upload.goes)
        mount.loop.run(partial(upload.touch, 10**18))
        mount.crash()
        mount.loop.run(store.release)
        mount.take_up()
        assert mount.loop.run(partial(mount._walk, "file")).mtime_ns == 10**18
        mount.loop.passes(LONG)
        assert user_metadata.read(store._stored["file"].object.properties.metadata).mtime_ns == 10**18


@pytest.mark.parametrize("size", [LARGE - 100, LARGE + 100])
def test_its_length_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    store = Held()
    with composed(store, tmp_path, durability=WRITEBACK) as mount:
        machine, upload = Machine(mount, monkeypatch, 1), Upload(mount, store)
        mount.loop.run(partial(upload.write, 0, FIRST))
        mount.loop.run(upload.goes)
        mount.loop.run(partial(upload.cut, size))
        mount.loop.run(upload.fsync)
        assert ended(mount, store, machine, is_power=True) == {"file": FIRST[:size].ljust(size, b"\0")}


@ends
@hashed
@pytest.mark.parametrize("when", ["before", "after"])
def test_more_is_closed_than_was_synced_when_it_went(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_power: bool, when: str, hashes: bool
) -> None:
    """A power loss goes back to what was synced, of which the bucket has more by then; or less."""
    store = Held(hashes=hashes)
    with composed(store, tmp_path, durability=WRITEBACK) as mount:
        machine, upload = Machine(mount, monkeypatch, 1), Upload(mount, store)
        mount.loop.run(partial(upload.write, 0, FIRST))
        mount.loop.run(upload.fsync)
        if when == "before":
            mount.loop.run(partial(upload.write, LARGE, MORE))
        mount.loop.run(upload.goes)
        if when == "after":
            mount.loop.run(partial(upload.write, LARGE, MORE))
        found = ended(mount, store, machine, is_power=is_power)
        assert found == {"file": FIRST if is_power and when == "after" else FIRST + MORE}


@ends
def test_what_was_synced_while_another_went_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_power: bool) -> None:
    """The commit has landed, and what it made is what both the record and what was synced before it stand on."""
    store = Held()
    friend = Acl("owner", (Grant("owner", "FULL_CONTROL"), Grant("friend", "READ")))
    with composed(store, tmp_path, durability=WRITEBACK) as mount:
        machine, upload = Machine(mount, monkeypatch, 1), Upload(mount, store)
        mount.loop.run(partial(upload.write, 0, FIRST))
        mount.loop.run(upload.goes)
        mount.loop.run(partial(upload.write, 0, MORE))
        mount.loop.run(upload.fsync)
        mount.loop.run(partial(upload.write, LARGE, MORE))
        mount.loop.run(store.release)
        mount.loop.passes(0.1)
        mount.loop.run(partial(store.put_acl, "file", friend))
        found = ended(mount, store, machine, is_power=is_power)
        expected = MORE + FIRST[len(MORE) :]
        assert found == {"file": expected if is_power else expected + MORE}
        assert store._stored["file"].acl == friend


@ends
def test_more_is_synced_while_its_parts_go_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_power: bool) -> None:
    """What is on its way is not in the bucket yet: the next mount must not have it copied of the old version."""
    store, part = Held(), 100_000
    monkeypatch.setattr("tests.support.fake_store.PART_MIN", 1)
    old = os.urandom(5 * part)

    async def main(mount: Composed, handle: Handle) -> None:
        await mount.parts.file_io.write(handle, part, b"1" * part)
        store.before["upload_part"] = trio.Event()
        await begun(mount, partial(mount.parts.commits.commit, handle.inode))
        assert store.reached
        await mount.parts.file_io.write(handle, 3 * part, b"2" * part)
        await mount.parts.file_io.fsync(handle.inode)

    with composed(store, tmp_path, durability=WRITEBACK, part_size=part) as mount:
        mount.loop.run(partial(store.put, "file", old, Properties()))
        machine, upload = Machine(mount, monkeypatch, 1), Upload(mount, store)
        mount.loop.run(partial(main, mount, upload.handle))
        found = ended(mount, store, machine, is_power=is_power)
        assert found == {"file": old[:part] + b"1" * part + old[2 * part : 3 * part] + b"2" * part + old[4 * part :]}


@ends
@hashed
def test_more_was_synced_after_it_went_and_more_was_closed_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_power: bool, hashes: bool
) -> None:
    """The object has less than what a power loss goes back to."""
    store = Held(hashes=hashes)
    with composed(store, tmp_path, durability=WRITEBACK) as mount:
        machine, upload = Machine(mount, monkeypatch, 1), Upload(mount, store)
        mount.loop.run(partial(upload.write, 0, FIRST))
        mount.loop.run(upload.goes)
        mount.loop.run(partial(upload.write, 0, MORE))
        mount.loop.run(upload.fsync)
        mount.loop.run(partial(upload.write, LARGE, MORE))
        expected = MORE + FIRST[len(MORE) :]
        assert ended(mount, store, machine, is_power=is_power) == {"file": expected if is_power else expected + MORE}


@ends
def test_more_is_closed_while_what_goes_is_hashed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_power: bool
) -> None:
    """The object has less than the record, which was made before the request went."""
    store, hashed = Held(), trio.Event()

    async def main(mount: Composed, upload: Upload) -> None:
        await upload.write(0, FIRST)
        run = Threads.run

        async def slowly(threads: Threads, work: Any, *arguments: Any) -> Any:
            answer = await run(threads, work, *arguments)
            if work is etag_of:
                await hashed.wait()
            return answer

        with monkeypatch.context() as patch:
            patch.setattr(Threads, "run", slowly)
            store.after["put"] = trio.Event()
            await begun(mount, partial(mount.parts.commits.commit, upload.handle.inode))
        await upload.write(0, MORE)
        assert not store.reached
        await settled(hashed)
        assert stored(store) == FIRST

    with composed(store, tmp_path, durability=WRITEBACK) as mount:
        machine, upload = Machine(mount, monkeypatch, 1), Upload(mount, store)
        mount.loop.run(partial(main, mount, upload))
        found = ended(mount, store, machine, is_power=is_power)
        assert found == {"file": FIRST if is_power else MORE + FIRST[len(MORE) :]}


@hashed
@pytest.mark.parametrize("closed", [b"", b"less"])
def test_more_was_written_than_closed_when_it_went_and_is_seen_after_a_crash(
    tmp_path: Path, *, hashes: bool, closed: bytes
) -> None:
    """What the object has is shown, and not what was recorded of it: neither its size nor its time."""
    store = Held(hashes=hashes)
    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        upload = Upload(mount, store)
        mount.loop.run(partial(upload.write, 0, closed))
        mount.loop.run(partial(upload.write, 0, MORE, close=False))
        mount.loop.run(upload.goes)
        mtime = upload.handle.inode.mtime_ns
        mount.crash()
        mount.loop.run(store.release)
        mount.take_up()
        inode = mount.loop.run(partial(mount._walk, "file"))
        assert (inode.size, inode.mtime_ns) == (len(MORE), mtime)
        assert mount.loop.run(mount.tree) == {"file": (MORE, 0o644)}
        assert bodies(store) == {"file": MORE}
