"""The caches on disk, blocks and attributes: what a second mount reads without asking, and what it never hands out."""

from __future__ import annotations

import errno
import os
import random
import sqlite3
import stat
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio

from sosfs.cache.disk_blocks import DiskCache
from tests.conftest import Mounter
from tests.support.composed import composed
from tests.support.fake_store import FakeStore
from tests.support.foreign import Foreign
from tests.support.proxy import Proxy

BLOCK = 1 << 10
BODY = random.Random(3).randbytes(10 * BLOCK + 100)


def cache(path: Path, *, capacity: int = 1 << 20) -> DiskCache:
    return DiskCache(path, capacity=capacity, block=BLOCK)


def read(disk: DiskCache, first: int, last: int, *, etag: str = "e", key: str = "k") -> bytes | None:
    found = trio.run(disk.read, key, etag, len(BODY), first, last)
    return None if found is None else bytes(found)


def keep(disk: DiskCache, first: int, last: int, *, key: str = "k") -> None:
    trio.run(disk.keep, key, "e", len(BODY), first, memoryview(BODY)[first * BLOCK : last * BLOCK])


def test_blocks_survive_a_restart_and_belong_to_one_version(tmp_path: Path) -> None:
    keep(cache(tmp_path), 2, 11)
    again = cache(tmp_path)
    assert read(again, 2, 11) == BODY[2 * BLOCK :]
    assert read(again, 4, 5) == BODY[4 * BLOCK : 5 * BLOCK]
    assert read(again, 1, 3) is None, "a block that was never kept"
    assert read(again, 2, 3, etag="other") is None
    assert read(again, 2, 3, key="other") is None


@pytest.mark.parametrize("kind", ["data", "sums"])
def test_a_damaged_block_was_never_there(tmp_path: Path, kind: str) -> None:
    keep(cache(tmp_path), 0, 4)
    (path,) = tmp_path.glob(f"*.{kind}")
    damaged = bytearray(path.read_bytes())
    damaged[9] ^= 1
    path.write_bytes(damaged)
    disk = cache(tmp_path)
    hurt = 0 if kind == "data" else 1
    assert read(disk, hurt, hurt + 1) is None
    assert read(disk, 2, 4) == BODY[2 * BLOCK : 4 * BLOCK]


def test_a_write_that_a_crash_cut_short_was_never_there(tmp_path: Path) -> None:
    keep(cache(tmp_path), 0, 4)
    (path,) = tmp_path.glob("*.data")
    os.truncate(path, 3 * BLOCK + 7)
    assert read(cache(tmp_path), 3, 4) is None
    assert read(cache(tmp_path), 0, 3) == BODY[: 3 * BLOCK]


def test_blocks_that_are_here_already_are_counted_once(tmp_path: Path) -> None:
    """Else what is kept again and again would push out all others, and at last itself."""
    disk = cache(tmp_path, capacity=24 * BLOCK)
    keep(disk, 0, 4, key="other")
    for first, last, blocks in ((0, 4, 4), (0, 4, 4), (2, 6, 6), (5, 8, 8), (0, 8, 8)):
        keep(disk, first, last)
        assert disk.used == (4 + blocks) * BLOCK
    assert read(disk, 0, 4, key="other") == BODY[: 4 * BLOCK]
    assert read(disk, 0, 8) == BODY[: 8 * BLOCK]


def test_a_damaged_table_makes_no_room_that_is_not_there(tmp_path: Path) -> None:
    disk = cache(tmp_path)
    keep(disk, 0, 4)
    (path,) = tmp_path.glob("*.sums")
    path.write_bytes(b"\xff" * 35)
    keep(disk, 0, 4)
    assert disk.used == 4 * BLOCK
    assert read(disk, 0, 4) == BODY[: 4 * BLOCK]


@pytest.mark.promise(11)
def test_the_limit_holds_and_the_least_recently_used_goes(tmp_path: Path) -> None:
    disk = cache(tmp_path, capacity=10 * BLOCK)
    keep(disk, 0, 4, key="a")
    keep(disk, 0, 4, key="b")
    assert read(disk, 0, 1, key="a") is not None
    keep(disk, 0, 4, key="c")
    assert disk.used <= 10 * BLOCK
    assert read(disk, 0, 1, key="b") is None
    assert read(disk, 0, 1, key="a") is not None
    assert sum(path.stat().st_size for path in tmp_path.glob("*.data")) <= 10 * BLOCK
    keep(disk, 0, 11, key="larger than the limit")
    assert disk.used <= 10 * BLOCK


def test_what_does_not_fit_drives_nothing_out(tmp_path: Path) -> None:
    disk = cache(tmp_path, capacity=8 * BLOCK)
    for key in ("old", "new"):
        keep(disk, 0, 3, key=key)
    keep(disk, 0, 9, key="large")
    keep(disk, 3, 9, key="new")  # with the three that are here nine
    assert read(disk, 0, 9, key="large") is None
    assert read(disk, 0, 3, key="old") == read(disk, 0, 3, key="new") == BODY[: 3 * BLOCK]


@pytest.mark.parametrize("is_known", [False, True], ids=["of another version", "of a version that is here"])
def test_what_the_disk_refuses_drives_nothing_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_known: bool
) -> None:
    """As where a quota is used up: what is here already is all that there will be."""
    disk = cache(tmp_path, capacity=10 * BLOCK)
    keep(disk, 0, 4, key="a")
    keep(disk, 0, 2, key="b")
    used = disk.used

    def refused(*_: object) -> int:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    with monkeypatch.context() as patch:
        patch.setattr("sosfs.cache.disk_blocks.os.pwrite", refused)
        for number in range(20):
            keep(disk, 2, 4, key="b" if is_known else f"c{number}")
    assert disk.used == used
    assert (read(disk, 0, 4, key="a"), read(disk, 0, 2, key="b")) == (BODY[: 4 * BLOCK], BODY[: 2 * BLOCK])
    assert len(list(tmp_path.glob("*.data"))) == 2


def test_the_version_that_was_not_used_for_longest_grows_for_others(tmp_path: Path) -> None:
    disk = cache(tmp_path, capacity=8 * BLOCK)
    for key in ("old", "new"):
        keep(disk, 0, 3, key=key)
    keep(disk, 3, 8, key="old")
    assert read(disk, 0, 8, key="old") == BODY[: 8 * BLOCK]
    assert read(disk, 0, 3, key="new") is None


def test_a_directory_that_is_gone_keeps_nothing_and_fails_nobody(tmp_path: Path) -> None:
    disk = cache(tmp_path / "blocks")
    (tmp_path / "blocks").rmdir()
    keep(disk, 0, 4)
    assert read(disk, 0, 4) is None


def test_who_asks_what_is_missing_uses_it(tmp_path: Path) -> None:
    disk = cache(tmp_path, capacity=8 * BLOCK)
    keep(disk, 0, 4, key="a")
    keep(disk, 0, 4, key="b")
    assert trio.run(disk.missing, "a", "e", len(BODY)) == [(4, 11)]
    keep(disk, 0, 4, key="c")
    assert read(disk, 0, 4, key="a") == BODY[: 4 * BLOCK]
    assert read(disk, 0, 4, key="b") is None


def test_as_much_gives_way_as_is_wanted_the_oldest_first(tmp_path: Path) -> None:
    disk = cache(tmp_path)
    for key in "abcd":
        keep(disk, 0, 4, key=key)
    assert disk.give_way(4 * BLOCK + 1) == 8 * BLOCK
    assert [read(disk, 0, 4, key=key) is not None for key in "abcd"] == [False, False, True, True]
    assert disk.used == 8 * BLOCK
    assert len(list(tmp_path.iterdir())) == 4
    assert disk.give_way(100 * BLOCK) == 8 * BLOCK
    assert list(tmp_path.iterdir()) == []


def test_a_version_gives_no_way_to_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a disk whose floor is reached another one goes, or nothing more is kept."""
    free = [1 << 30]
    disk = DiskCache(tmp_path, capacity=1 << 20, block=BLOCK, floor=lambda size: 1 << 20)
    state = SimpleNamespace(f_frsize=1, f_blocks=1 << 30)
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(**vars(state), f_bavail=free[0]))
    keep(disk, 0, 4, key="a")
    free[0] = 1 << 20
    keep(disk, 4, 6, key="a")
    assert read(disk, 0, 4, key="a") == BODY[: 4 * BLOCK]
    assert read(disk, 4, 6, key="a") is None


def test_a_disk_that_refuses_is_told_of_once_each_time_that_it_begins_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    disk = cache(tmp_path)

    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for round_ in (1, 2):
        with monkeypatch.context() as full:
            full.setattr(os, "pwrite", refuse)
            for at in range(3):
                keep(disk, at, at + 1, key=f"refused{round_}")
            assert sum("cannot be written" in one.getMessage() for one in caplog.records) == round_
        assert read(disk, 0, 1, key=f"refused{round_}") is None
        keep(disk, 0, 1, key="kept")
        assert read(disk, 0, 1, key="kept") == BODY[:BLOCK]
        too_large = memoryview(bytes(2 << 20))
        assert not trio.run(disk.store, "key", "e", len(too_large), 0, too_large), "which is no refusal of the disk"


def test_a_disk_that_cannot_be_read_costs_a_request_and_no_file_descriptor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = cache(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    for at in range(5):
        keep(disk, at, at + 1)
        assert read(disk, at, at + 1) == BODY[at * BLOCK : (at + 1) * BLOCK]
    assert len(os.listdir("/proc/self/fd")) == before

    def refuse(*_: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pread", refuse)
    assert read(disk, 0, 1) is None


def test_any_key_has_its_blocks_and_nobody_else_may_read_them(tmp_path: Path) -> None:
    disk = cache(tmp_path / "deeper" / "blocks")
    for key in ("k\udcff", "k\udcfe", "\ud800"):
        keep(disk, 0, 1, key=key)
        assert read(disk, 0, 1, key=key) == BODY[:BLOCK]
    assert disk.used == 3 * BLOCK
    assert stat.S_IMODE((tmp_path / "deeper" / "blocks").stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "deeper" / "blocks").iterdir()} == {0o600}


def test_what_is_missing_is_told_block_by_block_and_what_is_forgotten_is_gone(tmp_path: Path) -> None:
    keep(cache(tmp_path), 2, 4)
    keep(cache(tmp_path), 7, 8)
    keep(cache(tmp_path), 0, 11, key="other")
    disk = cache(tmp_path)
    assert trio.run(disk.missing, "k", "e", len(BODY)) == [(0, 2), (4, 7), (8, 11)]
    assert trio.run(disk.missing, "k", "another version", len(BODY)) == [(0, 11)]
    assert trio.run(disk.missing, "other", "e", len(BODY)) == []
    before = disk.used
    freed = trio.run(disk.forget, [("k", "e", len(BODY)), ("k", "never kept", 5)])
    assert 0 < freed == before - disk.used
    assert read(disk, 2, 4) is None
    assert read(disk, 0, 11, key="other") == BODY
    assert len(list(tmp_path.iterdir())) == 2, "of the other"


def test_a_second_mount_reads_from_the_disk(foreign: Foreign, mounter: Mounter, proxy: Proxy) -> None:
    body = random.Random(4).randbytes(3 << 20)
    foreign.put("file", body)
    drive = mounter(proxy.endpoint, "--cache-size", "64M")
    assert (drive.here / "file").read_bytes() == body
    drive.mount.remount()
    with proxy.recording() as traffic:
        assert (drive.here / "file").read_bytes() == body
    assert traffic.received("GET") == 0, traffic
    changed = random.Random(5).randbytes(3 << 20)
    foreign.put("file", changed)
    drive.mount.remount()
    assert (drive.here / "file").read_bytes() == changed


def test_a_damaged_row_of_attributes_costs_a_question_and_nothing_else(tmp_path: Path) -> None:
    store = FakeStore()
    with composed(store, tmp_path) as mount:
        mount.loop.run(lambda: mount.write("file", b"bytes", flags=os.O_CREAT))
        mount.stop()
        with closing(sqlite3.connect(tmp_path / "state0/attributes.sqlite")) as database, database:
            damaged = database.execute("update attributes set properties = substr(properties, 2)").rowcount
        assert damaged == 1
        mount.start()
        assert mount.loop.run(mount.tree) == {"file": (b"bytes", 0o644)}
