"""Directories of many thousand files: each is listed once, walked in bounded memory, and removed in batches.

The server works its listings out, so that the daemon's work is all there is. What is counted are requests and what is
held; that no work grows with the square of a directory, by the calls that Python makes for n and for 2n files.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sosfs.filesystem.memory_limits import NAME, NAMES
from sosfs.ipc.status import Status
from sosfs.s3.protocol import Properties
from tests.support.composed import Composed, composed
from tests.support.fake_store import FakeStore
from tests.support.generated import BUCKET, SIZE, Files, Generated
from tests.support.mounting import Mount, run_sosfs
from tests.support.watchdog import Watchdog

MIB = 1 << 20
Mounted = tuple[Generated, Mount]
Make = Callable[..., Mounted]


@pytest.fixture
def make(request: pytest.FixtureRequest, watchdog: Watchdog, tmp_path: Path) -> Iterator[Make]:
    """Mounts a bucket of generated files: `make(Files(...), *options)`."""
    made: list[Mounted] = []

    def mount(files: Files, *options: str) -> Mounted:
        server = Generated(files)
        mounted = Mount(server.access, BUCKET, tmp_path / "mount", watchdog, options)
        made.append((server, mounted))
        mounted.start()
        server.counts.clear()
        return server, mounted

    yield mount
    for server, mounted in made:
        try:
            if mounted.running:
                mounted.stop()
        finally:
            mounted.clear()
            server.__exit__()


def told(mount: Mount) -> Status:
    done = run_sosfs(["status", mount.path, "--json"], mount.environment)
    assert done.returncode == 0, done.stderr
    return Status.from_json(done.stdout)


def remove(top: Path, *, pause: Callable[[int], None] = lambda _: None) -> None:
    """What `rm -rf` does, by one task: lists, removes name by name, removes the directory."""
    names = os.listdir(top)
    for number, name in enumerate(names):
        pause(number)
        os.unlink(top / name)
    top.rmdir()


def outlast(ttl: float) -> None:
    """Longer than what was listed is trusted."""
    time.sleep(1.5 * ttl)


def test_rm_of_3000_files_is_one_listing_and_a_few_batches(make: Make) -> None:
    server, mount = make(Files(3000))
    remove(mount.path / "t")
    assert os.listdir(mount.path) == []
    mount.stop()
    assert server.left == 0
    assert server.counts["HEAD"] <= 2, server.counts  # of the directory, which has no marker
    assert server.counts["GET"] == 0, server.counts
    assert server.counts["LIST"] <= 8, server.counts  # the root, 3 pages, and that it is empty at the end
    assert server.counts["DELETE"] <= 8, server.counts  # the first of a burst
    assert sum(server.batches) >= 2990
    assert len(server.batches) <= 40, server.batches


def test_a_listing_that_grows_old_is_not_asked_again_name_by_name_while_all_is_removed(make: Make) -> None:
    server, mount = make(Files(1500), "--ttl", "0.2")

    def pause(number: int) -> None:
        if number in (300, 600, 900):
            outlast(0.2)

    remove(mount.path / "t", pause=pause)
    mount.stop()
    assert server.left == 0
    assert server.counts["LIST after a key"] == 0, "who removes them all needs to know nothing of them any more"
    asked = server.counts["HEAD"] + server.counts["LIST"]
    assert asked <= 100, server.counts  # of the directory alone, again and again; not of 1,200 names


def test_who_asks_for_one_old_name_after_the_other_is_answered_by_pages(make: Make) -> None:
    server, mount = make(Files(2500), "--ttl", "1", "--attributes", "listed")
    names = os.listdir(mount.path / "t")
    server.counts.clear()
    outlast(1)
    for name in names:
        assert os.stat(mount.path / "t" / name).st_size == SIZE
    assert server.counts["LIST"] <= 40, server.counts  # 3 pages, on a slow machine more often


def test_an_old_name_that_another_client_removed_is_found_out_by_the_page(make: Make) -> None:
    server, mount = make(Files(1200), "--ttl", "1", "--attributes", "listed")
    names = sorted(os.listdir(mount.path / "t"))
    gone = names[50::100]
    server.removed |= {f"t/{name}" for name in gone}
    outlast(1)
    missing = []
    for name in names:
        try:
            os.stat(mount.path / "t" / name)
        except FileNotFoundError:
            missing.append(name)
    assert missing == gone


@pytest.mark.promise(11)
@pytest.mark.parametrize("each", [0, 1000], ids=["one directory", "directories"])
def test_a_walk_takes_no_more_memory_than_it_may(make: Make, each: int) -> None:
    count, memory = 60_000, 4 * MIB
    server, mount = make(Files(count, each), "--memory", str(memory), "--ttl", "600")
    os.listdir(mount.path)
    before = mount.peak_memory()
    found = sum(len(names) for _, _, names in os.walk(mount.path / "t"))
    assert found == count
    now = told(mount)
    most = NAMES * memory + 2000 * NAME  # and the pages that were just listed
    assert now.memory["names"] <= most, now.memory
    assert mount.peak_memory() - before < most + 18 * MIB, (before, mount.peak_memory(), now.memory)  # of 60
    assert server.counts["HEAD"] <= 100, server.counts  # of directories, which have no markers; of no file


@pytest.mark.promise(11)
def test_the_kinds_of_memory_are_all_of_it(make: Make) -> None:
    _, mount = make(Files(5000), "--ttl", "600")
    empty = told(mount)
    assert len(os.listdir(mount.path / "t")) == 5000
    now = told(mount)
    assert now.resident_bytes == pytest.approx(resident(mount.pid), rel=0.1)
    assert sum(now.memory.values()) == now.resident_bytes
    counted = now.memory["names"] - empty.memory["names"]
    assert counted >= 5000 * NAME
    grown = now.resident_bytes - empty.resident_bytes
    assert counted // 2 < grown < 2 * counted + 8 * MIB, "a name takes what is counted for it"
    said = run_sosfs(["status", mount.path], mount.environment).stdout
    assert "of names and attributes" in next(line for line in said.splitlines() if line.startswith("resident"))


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Entry(ctypes.Structure):
    """struct dirent of glibc."""

    _fields_ = (
        ("ino", ctypes.c_uint64),
        ("offset", ctypes.c_int64),
        ("length", ctypes.c_ushort),
        ("type", ctypes.c_ubyte),
        ("name", ctypes.c_char * 256),
    )


def test_a_reader_that_goes_back_finds_the_names_that_were_forgotten(make: Make) -> None:
    count, back = 20_000, 5000
    _, mount = make(Files(count), "--memory", str(MIB), "--ttl", "600")
    libc = ctypes.CDLL(None)
    libc.opendir.restype, libc.opendir.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
    libc.readdir.restype, libc.readdir.argtypes = ctypes.POINTER(Entry), [ctypes.c_void_p]
    libc.telldir.restype, libc.telldir.argtypes = ctypes.c_long, [ctypes.c_void_p]
    libc.seekdir.restype, libc.seekdir.argtypes = None, [ctypes.c_void_p, ctypes.c_long]
    libc.closedir.argtypes = [ctypes.c_void_p]
    directory = libc.opendir(os.fsencode(mount.path / "t"))
    assert directory
    try:
        seen: list[bytes] = []
        places: list[int] = []
        while entry := libc.readdir(directory):
            seen.append(entry.contents.name)
            places.append(libc.telldir(directory))
        assert len(set(seen)) == len(seen) == count + 2
        assert told(mount).memory["names"] < count * NAME // 2
        libc.seekdir(directory, places[back])
        again = [libc.readdir(directory).contents.name for _ in range(50)]
        assert again == seen[back + 1 : back + 51]
    finally:
        libc.closedir(directory)


# That no work grows with the square


def calls_of(mount: Composed, work: Callable[[], Any]) -> int:
    """How many functions the program calls, of its own and of Python, while it does `work`."""
    calls = 0

    def count(frame: Any, event: str, _: Any) -> None:
        nonlocal calls
        if event in ("call", "c_call") and "/sosfs/" in frame.f_code.co_filename:
            calls += 1

    async def counted() -> None:
        sys.setprofile(count)
        try:
            await work()
        finally:
            sys.setprofile(None)

    mount.loop.run(counted)
    return calls


async def _removes(mount: Composed, count: int) -> None:
    namespace, root = mount.parts.namespace, mount.parts.inodes.root
    top = await namespace.lookup(root, b"d")
    walk = await mount.parts.listings.complete(top)
    assert len(walk.names) == count
    for name in walk.names:
        await namespace.unlink(top, name)
    await mount.parts.deletions.wait_under("")


async def _looks(mount: Composed, count: int) -> None:
    namespace, root = mount.parts.namespace, mount.parts.inodes.root
    top = await namespace.lookup(root, b"d")
    walk = await mount.parts.listings.complete(top)
    for name in walk.names:
        inode = await namespace.lookup(top, name)
        await mount.parts.attributes.revalidate(inode)
    assert len(walk.names) == count


@pytest.mark.parametrize("work", [_removes, _looks])
def test_twice_as_many_files_are_twice_the_work(tmp_path: Path, work: Callable[[Composed, int], Any]) -> None:
    calls = {}
    for count in (1000, 2000):
        store, base = FakeStore(), tmp_path / str(count)
        base.mkdir()
        with composed(store, base) as mount:

            async def fill(store: FakeStore = store, count: int = count) -> None:
                for number in range(count):
                    await store.put(f"d/{number:05d}", bytes(5000), Properties())

            mount.loop.run(fill)
            calls[count] = calls_of(mount, partial(work, mount, count))
    assert calls[2000] < 2.2 * calls[1000], calls
