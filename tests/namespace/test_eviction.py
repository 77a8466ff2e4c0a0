"""More names than the memory for them: the oldest go, and nobody who looks at files can tell."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Sequence
from contextlib import chdir, closing
from pathlib import Path
from typing import Any, cast

import pytest
import trio
import trio.testing

from sosfs.errors import StoreError
from sosfs.namespace.eviction import USED, Eviction
from sosfs.s3.protocol import Properties
from sosfs.tree.inodes import Inode, Reading
from tests.conftest import Mounter
from tests.support.composed import LONG, Composed, composed
from tests.support.drive import Drive, eventually, status
from tests.support.fake_store import FakeStore
from tests.support.foreign import Foreign
from tests.support.held import Held, begun, forget, put_all, told
from tests.support.servers import Server

DIRECTORIES, FILES = 12, 75
BLOCKS = 256 << 10  # bytes of memory for blocks, which gives names twice as much
SMALL = ("--memory", str(BLOCKS), "--ttl", "600")  # nothing goes because it is old

ON_MOTO = pytest.mark.parametrize("server", ["moto"], indirect=True)


@pytest.fixture
def bodies(foreign: Foreign) -> dict[str, bytes]:
    """900 files in the bucket."""
    paths = [f"d{top:02d}/f{number:03d}" for top in range(DIRECTORIES) for number in range(FILES)]
    found = {path: path.encode() for path in paths}
    foreign.put_all(found)
    return found


@pytest.fixture
def drive(mounter: Mounter, server: Server, bodies: dict[str, bytes]) -> Drive:
    """A mount for which they are too many."""
    return mounter(server.endpoint, *SMALL)


def all_of(top: Path) -> set[str]:
    """The files of a tree, listed and asked for one by one."""
    return {
        os.path.relpath(os.path.join(folder, name), top)
        for folder, _, files in os.walk(top)
        for name in files
        if os.lstat(os.path.join(folder, name)).st_size
    }


def shed(drive: Drive) -> None:
    """Looks at everything, and waits until names had to go."""
    assert len(all_of(drive.here)) > 2 * BLOCKS // 1024
    eventually(lambda: status(drive).memory_bytes <= 3 * BLOCKS, seconds=30)


@ON_MOTO
@pytest.mark.promise(11)
def test_a_walk_leaves_no_more_names_than_there_is_memory_for(drive: Drive, bodies: dict[str, bytes]) -> None:
    shed(drive)
    assert all_of(drive.here) == set(bodies), "who asks again is told all of it again"


@ON_MOTO
def test_what_is_in_use_stays_what_it_is(drive: Drive, foreign: Foreign, bodies: dict[str, bytes]) -> None:
    first = drive.here / "d00"
    with (
        (first / "f000").open("rb") as reader,
        (first / "f001").open("r+b") as writer,
        (first / "f002").open("rb") as gone,
        os.scandir(drive.here / "d01") as entries,
    ):
        writer.write(b"changed")
        (first / "f002").unlink()
        (first / "new").write_bytes(b"new")
        seen = [next(entries).name for _ in range(10)]
        before = [os.fstat(file.fileno()).st_ino for file in (reader, writer, gone)]
        with chdir(first):
            shed(drive)
            assert os.getcwd() == os.fspath(first)
            assert Path("f000").read_bytes() == b"d00/f000"
            assert Path("new").read_bytes() == b"new"
        assert reader.read() == b"d00/f000"
        assert gone.read() == b"d00/f002"
        assert [os.fstat(file.fileno()).st_ino for file in (reader, writer, gone)] == before
        assert sorted(seen + [entry.name for entry in entries]) == [f"f{number:03d}" for number in range(FILES)]
    assert foreign.get("d00/f001") == b"changed1"
    assert set(os.listdir(first)) == {f"f{n:03d}" for n in range(FILES) if n != 2} | {"new"}


@ON_MOTO
def test_what_is_held_by_its_path_alone_stays_what_it_is(drive: Drive) -> None:
    """O_PATH: nothing is open in the mount, which is not even told that somebody has it."""
    held = [os.open(drive.here / f"d{top:02d}" / "f000", os.O_PATH) for top in range(DIRECTORIES)]
    try:
        before = [os.fstat(one) for one in held]
        time.sleep(USED)  # what was asked for a moment ago stays anyway
        shed(drive)
        shed(drive)
        after = [os.fstat(one) for one in held]
        assert [(one.st_ino, one.st_size) for one in after] == [(one.st_ino, one.st_size) for one in before]
        assert [os.stat(drive.here / f"d{top:02d}" / "f000").st_ino for top in range(DIRECTORIES)] == [
            one.st_ino for one in before
        ]
        for top, one in enumerate(held):
            assert Path(f"/proc/self/fd/{one}").read_bytes() == f"d{top:02d}/f000".encode()
    finally:
        for one in held:
            os.close(one)


@ON_MOTO
def test_changes_go_on_while_names_go(drive: Drive, foreign: Foreign) -> None:
    for number in range(FILES):
        for top in range(DIRECTORIES):
            path = drive.here / f"d{top:02d}" / f"f{number:03d}"
            match number % 25:
                case 0:
                    path.write_bytes(b"again")
                case 1:
                    path.unlink()
                case 2:
                    path.rename(path.with_name(f"r{number:03d}"))
                case _:
                    assert path.stat().st_size == 8
        os.listdir(drive.here / f"d{number % DIRECTORIES:02d}")
    drive.mount.stop()
    expected = {}
    for number in range(FILES):
        for top in range(DIRECTORIES):
            key, kind = f"d{top:02d}/f{number:03d}", number % 25
            if kind != 1:
                expected[f"d{top:02d}/r{number:03d}" if kind == 2 else key] = b"again" if kind == 0 else key.encode()
    assert {key: foreign.get(key) for key in foreign.files()} == expected


def test_what_is_being_listed_stays_until_all_of_it_was(tmp_path: Path) -> None:
    store = FakeStore()
    with composed(store, tmp_path) as mount:
        parts = mount.parts

        async def begin() -> Reading:
            for number in range(30):
                await store.put(f"d/{number:02d}", bytes(5000), Properties())
            inode = await parts.namespace.lookup(parts.inodes.root, b"d")
            await parts.listings.complete(inode)
            reading = Reading(*parts.listings.walk(inode))
            Eviction(parts.inodes, parts.attributes, parts.listings, mount.spawn, None, most=10).look()
            return reading

        with closing(mount.loop.run(begin)) as reading:
            directory = reading.directory
            mount.loop.passes(LONG)
            assert len(directory.entries) == 30
        mount.loop.passes(LONG)
        assert directory.entries == {}
        assert directory.now is None, "whoever asks for one of them asks the bucket"


class Kernel:
    """Forgets what it is asked to, but for a link that somebody has as O_PATH."""

    def __init__(self, mount: Composed) -> None:
        self._mount = mount
        self.asked: set[bytes] = set()

    async def forget(self, numbers: Sequence[int], names: Sequence[tuple[int, bytes]]) -> None:
        del numbers
        for parent, name in names:
            self.asked.add(name)
            directory = self._mount.parts.inodes[parent].directory
            if name != b"held" and directory is not None and (inode := directory.entries.get(name)):
                self._mount.parts.namespace.forget(inode, inode.lookups)


def test_a_link_that_the_kernel_has_stays_until_it_has_given_it_back(mount: Composed, store: Held) -> None:
    """Its name does not tell that it is a link, as which the kernel knows its number."""
    parts, link = mount.parts, Properties(metadata={"mode": str(stat.S_IFLNK | 0o777)})
    names, kernel = ["held", *map(str, range(20))], Kernel(mount)

    async def begin() -> Inode:
        for name in names:
            await store.put(f"d/{name}", b"there", link)
        for name in names:
            (await mount._walk(f"d/{name}")).lookups += 1
        return await mount._walk("d/held")

    async def cut() -> None:
        eviction = Eviction(parts.inodes, parts.attributes, parts.listings, mount.spawn, cast(Any, kernel), most=4)
        eviction.look()
        assert held.parent is not None and held.parent.directory is not None
        assert len(held.parent.directory.entries) == len(names)

    held = mount.loop.run(begin)
    mount.loop.passes(USED + 1)
    mount.loop.run(cut)
    mount.loop.passes(100)
    assert kernel.asked == {name.encode() for name in names}
    assert held.parent is not None and held.parent.directory is not None
    assert list(held.parent.directory.entries.values()) == [held]


def test_a_file_that_was_forgotten_while_its_rename_failed_has_its_old_name(mount: Composed, store: Held) -> None:
    outcomes: dict[str, Any] = {}

    async def begin() -> None:
        await put_all(store, {"d/a": bytes(5000), "d/z": b"z"})
        await mount._walk("d/a")
        store.before["copy", "d/a"] = trio.Event()
        store.errors["copy", "d/a"] = [StoreError(errno.EIO, "copy 'd/a'", detail="500 of the server")]
        await begun(mount, lambda: told(outcomes, "rename", lambda: mount.rename("d/a", "d/b")))
        assert ("copy", "d/a") in store.reached

    async def look() -> None:
        forget(mount)
        await mount.parts.listings.complete(await mount._walk("d"))
        store.before["copy", "d/a"].set()
        await trio.testing.wait_all_tasks_blocked()
        assert "StoreError" in outcomes["rename"]
        assert (await mount._walk("d/a")).size == 5000

    mount.loop.run(begin)
    mount.loop.passes(USED + 1)
    mount.loop.run(look)


@pytest.mark.parametrize("key", ["", "d/"], ids=["of all", "of its directory"])
def test_a_file_that_was_made_and_forgotten_during_a_scan_is_there(mount: Composed, store: Held, key: str) -> None:
    outcomes: dict[str, Any] = {}

    async def begin() -> None:
        await put_all(store, {"d/x": bytes(5000)})
        await mount._walk("d/x")
        mount.loop._clock.jump(1)
        store.after["list", key] = trio.Event()
        scan = mount.parts.listings.begin_scan(await mount._walk(key))
        assert scan is not None
        await begun(mount, lambda: told(outcomes, "scan", scan))
        mount.loop._clock.jump(1)
        await mount.parts.creations.make_object(await mount._walk("d"), b"new", stat.S_IFREG | 0o644, 0, 0)

    async def look() -> None:
        forget(mount)
        store.after.pop(("list", key)).set()
        await trio.testing.wait_all_tasks_blocked()
        assert outcomes == {"scan": None}
        assert (await mount._walk("d/new")).size == 0

    mount.loop.run(begin)
    mount.loop.passes(USED + 1)
    mount.loop.run(look)
