"""What stands beside the journal on this machine's disk: each guard by itself, without a mount."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sosfs.config.choices import Share
from sosfs.disk import free_space, reserve, watermark
from sosfs.disk.damage import Damage, entries
from sosfs.disk.free_space import Disk
from sosfs.disk.lock import locked
from sosfs.disk.reserve import LOG_MAX, LOG_MIN, Reserve, is_damage, log_size, os_error
from sosfs.disk.watermark import Mark, Watermark
from tests.support.drive import fails

MIB = 1 << 20


def state(*, size: int = 1 << 40, free: int = 1 << 40, inodes: int = 10, left: int = 10) -> os.statvfs_result:
    """What statvfs says of a disk of `size` MiB blocks."""
    return os.statvfs_result((MIB, MIB, size // MIB, free // MIB + 9, free // MIB, inodes, left + 1, left, 0, 255))


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets what statvfs says."""

    def say(**what: int) -> None:
        monkeypatch.setattr(os, "statvfs", lambda _: state(**what))

    return say


# Room


def test_room_is_what_this_user_may_take_but_for_what_is_kept(tmp_path: Path, says: Callable[..., None]) -> None:
    says(size=100 * MIB, free=30 * MIB)
    assert Disk(tmp_path).room() == (100 * MIB, 30 * MIB)
    assert Disk(tmp_path, Share(percent=10)).room() == (100 * MIB, 20 * MIB)
    assert Disk(tmp_path, Share(size=50 * MIB)).room() == (100 * MIB, 0)
    says(size=100 * MIB, free=30 * MIB, left=0)
    assert Disk(tmp_path).room() == (100 * MIB, 0), "a file needs an inode"
    says(size=100 * MIB, free=30 * MIB, inodes=0, left=0)
    assert Disk(tmp_path).room() == (100 * MIB, 30 * MIB), "which this file system does not count"


def test_room_of_a_directory_that_was_removed_is_that_of_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Disk(tmp_path / "removed" / "too").room().size == Disk(tmp_path).room().size

    def gone(path: Path) -> os.statvfs_result:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))

    monkeypatch.setattr(os, "statvfs", gone)
    with fails(errno.ENOENT):
        Disk(tmp_path).room()


@pytest.mark.parametrize(("number", "calls"), [(errno.EOPNOTSUPP, 1), (errno.ENOSYS, 1), (errno.EINTR, 2)])
def test_a_file_system_that_cannot_free_a_range_is_asked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, calls: int
) -> None:
    asked = list[tuple[int, ...]]()

    def fallocate(*arguments: int) -> int:
        asked.append(arguments)
        ctypes.set_errno(number)
        return -1

    monkeypatch.setattr(free_space, "_fallocate", lambda: fallocate)
    disk = Disk(tmp_path)
    assert [disk.punch(7, 10, 30) for _ in range(2)] == [False, False]
    assert asked == [(7, 0x03, 10, 20)] * calls


def test_a_freed_range_reads_as_zeros_and_the_file_keeps_its_length(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 3 * 4096)
    with (tmp_path / "file").open("r+b") as file:
        freed = Disk(tmp_path).punch(file.fileno(), 4096, 2 * 4096)
    expected = (b"x" * 4096).ljust(2 * 4096, b"\0" if freed else b"x") + b"x" * 4096
    assert (tmp_path / "file").read_bytes() == expected


def test_without_a_c_library_nothing_is_freed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(free_space, "_fallocate", lambda: None)
    assert not Disk(tmp_path).punch(7, 0, 1)


# The reserve


def test_a_reserve_is_held_where_there_is_far_more_and_given_up_once(tmp_path: Path, says: Callable[..., None]) -> None:
    path = tmp_path / "reserve"
    says(size=64 * MIB, free=3 * MIB)
    kept = Reserve(tmp_path)
    kept.hold()
    assert not path.exists() and not kept.give_up(), "too little room"
    says(size=64 * MIB, free=4 * MIB)
    kept.hold()
    assert path.stat().st_size == MIB
    assert path.stat().st_blocks * 512 >= MIB
    path.write_bytes(b"as it is")
    kept.hold()
    assert path.read_bytes() == b"as it is", "it is held already"
    assert [kept.give_up(), kept.give_up()] == [True, False]
    assert not path.exists()
    says(size=MIB, free=MIB)
    small = Reserve(tmp_path)
    small.hold()
    assert path.stat().st_size == MIB // 64
    assert Reserve(tmp_path).give_up(), "one that a crash has left counts"
    assert not path.exists()


def test_a_reserve_that_finds_no_room_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = len(os.listdir("/proc/self/fd"))

    def full(file: int, *_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    kept = Reserve(tmp_path)
    kept.hold()
    assert not (tmp_path / "reserve").exists()
    assert not kept.give_up()
    assert len(os.listdir("/proc/self/fd")) == opened


def error_of(code: int | None) -> sqlite3.Error:
    """As SQLite raises it, the code with more above its last byte."""
    error = sqlite3.OperationalError("told by SQLite")
    if code is not None:
        error.sqlite_errorcode = code | 0x300
    return error


@pytest.mark.parametrize(
    ("code", "free", "number"),
    [
        (sqlite3.SQLITE_FULL, MIB, errno.ENOSPC),
        (sqlite3.SQLITE_READONLY, 0, errno.EROFS),
        (sqlite3.SQLITE_IOERR, 0, errno.ENOSPC),
        (sqlite3.SQLITE_CANTOPEN, 0, errno.ENOSPC),
        (sqlite3.SQLITE_IOERR, MIB, errno.EIO),
        (sqlite3.SQLITE_CORRUPT, 0, errno.EIO),
        (None, 0, errno.EIO),
    ],
)
def test_what_sqlite_says_as_an_errno(
    tmp_path: Path, says: Callable[..., None], code: int | None, free: int, number: int
) -> None:
    says(free=free)
    error = os_error(error_of(code), tmp_path / "database")
    assert error.errno == number
    assert "told by SQLite" in str(error)


def test_what_sqlite_says_is_told_where_the_disk_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Path) -> os.statvfs_result:
        raise OSError(errno.EIO, "the disk")

    monkeypatch.setattr(os, "statvfs", fail)
    assert "told by SQLite" in str(os_error(error_of(sqlite3.SQLITE_IOERR), tmp_path / "database"))


def test_only_some_of_it_is_damage() -> None:
    damaged = [sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, None]
    assert all(is_damage(error_of(code)) for code in damaged)
    assert not any(is_damage(error_of(code)) for code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR))


def test_the_log_has_a_share_of_a_small_disk(tmp_path: Path, says: Callable[..., None]) -> None:
    path = tmp_path / "database"
    found = []
    for size in (MIB, 64 * MIB, 1 << 40):
        says(size=size)
        found.append(log_size(path))
    assert found == [LOG_MIN, MIB, LOG_MAX]
    assert reserve.LOG_SHARE == 64


# The lock


def test_a_directory_that_is_in_use_is_refused_and_nothing_stays_open(tmp_path: Path) -> None:
    first = locked(tmp_path)
    opened = len(os.listdir("/proc/self/fd"))
    with fails(errno.EBUSY):
        locked(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == opened
    os.close(first)
    os.close(locked(tmp_path))


def test_a_lock_that_was_removed_when_it_is_had_is_nobodys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The directory has just been cleaned up: what is made there now by another mount has a lock of its own."""
    flock, opened = fcntl.flock, len(os.listdir("/proc/self/fd"))

    def late(file: int, how: int) -> None:
        (tmp_path / "lock").unlink()
        flock(file, how)

    with monkeypatch.context() as patch, fails(errno.EBUSY):
        patch.setattr(fcntl, "flock", late)
        locked(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == opened
    os.close(locked(tmp_path))


# The watermark


def marked(path: Path, *, number: int = 7, synced: int = 5) -> None:
    """A watermark that a process has left."""
    mark = Watermark(path)
    mark.begin("owner", 0)
    mark.wrote(number)
    mark.synced(synced)
    mark.close()


def test_a_watermark_tells_what_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mark"
    assert watermark.read(path) is None
    marked(path)
    found = watermark.read(path)
    assert found is not None
    assert (found.owner, found.written, found.synced) == ("owner", 7, 5)
    assert (found.is_of_other_boot, found.least) == (False, 7)
    other = tmp_path / "boot"
    other.write_text("another boot")
    monkeypatch.setattr(watermark, "BOOT_ID", other)
    assert (found.is_of_other_boot, found.least) == (True, 5)
    assert watermark.boot() == "another boot"
    monkeypatch.setattr(watermark, "BOOT_ID", tmp_path / "absent")
    assert watermark.boot() == ""
    nowhere = Mark("owner", bytes(36), 7, 5)
    assert (nowhere.is_of_other_boot, nowhere.least) == (True, 5), "nobody can tell"


def test_who_goes_on_from_less_than_was_synced_vouches_for_no_more(tmp_path: Path) -> None:
    path = tmp_path / "mark"
    marked(path)
    for number, expected in ((9, 5), (3, 3)):
        mark = Watermark(path)
        assert mark.least == (7 if number == 9 else 9)
        mark.begin("next", number)
        mark.close()
        found = watermark.read(path)
        assert found is not None
        assert (found.owner, found.written, found.synced) == ("next", number, expected)
    mark = Watermark(path)
    mark.reset()
    mark.close()
    found = watermark.read(path)
    assert found is not None
    assert (found.written, found.synced) == (0, 0)
    mark = Watermark(tmp_path / "new")
    assert mark.least == 0
    mark.close()


@pytest.mark.parametrize("at", [0, 20, 45, 60, 512, 514, 519, -1], ids=str)
def test_a_watermark_of_which_a_byte_has_changed_says_nothing(tmp_path: Path, at: int) -> None:
    path = tmp_path / "mark"
    marked(path)
    body = bytearray(path.read_bytes())
    body[at] ^= 1
    path.write_bytes(body)
    assert watermark.read(path) is None


@pytest.mark.parametrize("length", [0, 30, 62, 512, 515])
def test_a_watermark_that_is_cut_short_says_nothing(tmp_path: Path, length: int) -> None:
    path = tmp_path / "mark"
    marked(path)
    path.write_bytes(path.read_bytes()[:length])
    assert watermark.read(path) is None


def test_a_watermark_that_cannot_be_written_fails_nobody_and_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    mark = Watermark(tmp_path / "mark")
    monkeypatch.setattr(os, "pwrite", fail)
    mark.wrote(1)
    mark.wrote(2)
    mark.close()
    assert len([one for one in caplog.records if "watermark" in one.getMessage()]) == 1


# What is damaged


@pytest.fixture
def damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Damage:
    """All that is set aside is so in the same second."""
    monkeypatch.setattr(time, "gmtime", lambda: time.struct_time((2025, 11, 28, 20, 45, 1, 0, 0, 0)))
    return Damage(tmp_path / "damaged")


def test_what_is_set_aside_is_on_the_disk_with_all_that_is_left_of_it(
    tmp_path: Path, damage: Damage, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, fsync = list[str](), os.fsync

    def watched(file: int) -> None:
        synced.append(os.path.relpath(os.readlink(f"/proc/self/fd/{file}"), tmp_path))
        fsync(file)

    monkeypatch.setattr(os, "fsync", watched)
    (tmp_path / "spool").write_bytes(b"spool")
    opened = len(os.listdir("/proc/self/fd"))
    entry = tmp_path / "damaged" / "20251128T204501Z-1"
    files = [tmp_path / "spool", tmp_path / "absent"]
    assert damage.set_aside("key\n: gone", {"key": "a\tb", "size": 5}, files=files, bodies={"bytes": b"body"})
    assert {path.name: path.read_bytes() for path in entry.iterdir()} == {
        "what": b"key\\n: gone\nkey: a\\tb\nsize: 5\n",
        "bytes": b"body",
        "spool": b"spool",
    }
    assert not (tmp_path / "spool").exists()
    assert synced == [
        f"damaged/{entry.name}/what",
        f"damaged/{entry.name}/bytes",
        f"damaged/{entry.name}",
        "damaged",
        ".",
    ]
    assert len(os.listdir("/proc/self/fd")) == opened
    assert entry.stat().st_mode & 0o777 == 0o700
    for _ in range(10):
        assert damage.set_aside("another")
    damage.note("noted")
    damage.note("noted")
    assert damage.lines == (
        "noted",
        f"key\\n: gone: {entry}",
        *(f"another: {tmp_path}/damaged/20251128T204501Z-{number}" for number in range(2, 12)),
    )


def test_an_entry_that_says_nothing_is_told_all_the_same(tmp_path: Path) -> None:
    assert entries(tmp_path / "absent") == []
    for number, body in ((1, b""), (2, None), (10, b"third\nmore")):
        (tmp_path / f"20251128T204501Z-{number}").mkdir()
        if body is not None:
            (tmp_path / f"20251128T204501Z-{number}" / "what").write_bytes(body)
    (tmp_path / "file").write_bytes(b"no entry")
    (tmp_path / "directory").mkdir()
    lines = [line.partition(": ")[0] for line in entries(tmp_path)]
    assert lines == ["unknown", "unknown", "unknown", "third"], "the oldest first, and ten after two"


@pytest.mark.parametrize("moved", [False, True])
def test_what_cannot_be_set_aside_stays_where_it_is_or_in_its_entry(
    tmp_path: Path, damage: Damage, monkeypatch: pytest.MonkeyPatch, *, moved: bool
) -> None:
    """In one place, and never in none."""
    rename = Path.rename

    def fail(path: Path, target: Path) -> Path:
        if path.name == "second":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    files = [tmp_path / name for name in (("first", "second") if moved else ("second",))]
    for file in files:
        file.write_bytes(file.name.encode())
    with fails(errno.EIO):
        damage.must_set_aside("key", {}, files=files, bodies={"bytes": b"body"})
    assert (tmp_path / "second").read_bytes() == b"second"
    entry = tmp_path / "damaged" / "20251128T204501Z-1"
    assert entry.exists() == moved
    if moved:
        assert (entry / "first").read_bytes() == b"first"
    assert damage.lines[0].startswith("key (it could not be set aside: ")
    damage.must_set_aside("other", {})
