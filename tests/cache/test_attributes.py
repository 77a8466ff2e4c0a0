"""The attribute cache by itself: what it keeps, for which version, over a restart, a crash and a disk that refuses."""

from __future__ import annotations

import errno
import logging
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from sosfs.cache import attributes
from sosfs.cache.attributes import GATHER, SLACK, AttributeCache, Remembered, place_of
from sosfs.s3.protocol import Headers, Properties, Version
from tests.support.drive import fails

NOW = 1_800_000_000
OLD = NOW - 1000
KNOWN = Properties(
    Headers("text/plain", cache_control="no-store", expires="never"), {"mode": "33188", "a": "b"}, "COLD"
)
PLAIN = Properties()


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is `NOW`."""
    monkeypatch.setattr("time.time", lambda: NOW + 0.5)


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[AttributeCache]:
    """An empty one."""
    with closing(AttributeCache(tmp_path / "state" / "attributes.sqlite")) as cache:
        yield cache


def again(cache: AttributeCache, tmp_path: Path) -> AttributeCache:
    """The next mount's, after this one was ended."""
    cache.close()
    return AttributeCache(tmp_path / "state" / "attributes.sqlite")


def after_crash(cache: AttributeCache, tmp_path: Path) -> AttributeCache:
    """The next mount's, after this one has died."""
    cache.flush()
    shutil.copytree(tmp_path / "state", tmp_path / "crashed")
    return AttributeCache(tmp_path / "crashed" / "attributes.sqlite")


def version(etag: str = "e", modified: int | None = OLD, size: int = 5) -> Version:
    return Version(etag, size, modified)


def names(cache: AttributeCache, folder: str = "d/") -> list[str]:
    return sorted(cache.page(folder, "", "\U0010ffff"))


# For which version


@pytest.mark.parametrize(
    ("kept", "written", "listed", "holds"),
    [
        (version(), 0, version(), True),
        (version(), 0, version("other"), False),
        (version(), 0, version(size=6), False),
        (version(), 0, version(modified=OLD + 1), False),  # its metadata were rewritten
        (version(), 0, version(modified=None), True),
        (version(modified=None), NOW, version(modified=NOW), True),  # our own write, whose time is not known yet
        (version(modified=None), NOW, version(modified=NOW + SLACK), True),
        (version(modified=None), NOW, version(modified=NOW - SLACK), True),
        (version(modified=None), NOW, version(modified=NOW + SLACK + 1), False),
        (version(modified=None), NOW, version(modified=NOW - SLACK - 1), False),
        (version(modified=None), 0, version(modified=None), True),
        (version("other", None), NOW, version(modified=NOW), False),
    ],
)
def test_for_which_version_it_holds(kept: Version, written: int, listed: Version, holds: bool) -> None:
    assert Remembered(kept, written, PLAIN, whole=True).holds_for(listed) == holds


# What is kept


@pytest.mark.parametrize("whole", [True, False])
def test_what_was_learned_is_there_for_this_mount_and_the_next(
    cache: AttributeCache, tmp_path: Path, whole: bool
) -> None:
    cache.put("d/file", version(), KNOWN, whole=whole)
    cache.put("file", version("top"), PLAIN, whole=True)
    for step in ("in memory", "on the disk", "in the next mount"):
        found = cache.find("d/", "file")
        assert found == Remembered(version(), NOW, KNOWN, whole), step
        assert found is not None
        assert found.properties.storage_class == "COLD"
        top = cache.find("", "file")
        assert top is not None
        assert top.version == version("top")
        assert cache.find("d/", "other") is None
        assert cache.find("", "d/file") is None
        cache.flush()
        if step == "on the disk":
            cache = again(cache, tmp_path)


def test_the_last_word_holds(cache: AttributeCache, tmp_path: Path) -> None:
    cache.put("d/file", version("first"), PLAIN, whole=True)
    cache.flush()
    cache.put("d/file", version("second"), PLAIN, whole=True)
    found = cache.find("d/", "file")
    assert found is not None
    assert found.version.etag == "second"
    cache.drop("d/file")
    assert cache.find("d/", "file") is None
    assert names(cache) == []
    cache.put("d/file", version("third"), PLAIN, whole=True)
    found = again(cache, tmp_path).find("d/", "file")
    assert found is not None
    assert found.version.etag == "third"


def test_what_is_dropped_is_so_for_the_next_mount(cache: AttributeCache, tmp_path: Path) -> None:
    for key in ("d/a", "d/b"):
        cache.put(key, version(), PLAIN, whole=True)
    cache.flush()
    cache.drop("d/a")
    assert names(again(cache, tmp_path)) == ["b"]


def test_a_page_is_of_one_folder_from_name_to_name(cache: AttributeCache) -> None:
    for key in ("d/", "d/a", "d/b", "d/c", "d/b/x", "e/b", "b"):
        cache.put(key, version(), PLAIN, whole=True)
    assert sorted(cache.page("d/", "a", "b")) == ["a", "b"]
    assert names(cache) == ["", "a", "b", "c"]
    assert names(cache, "") == ["b"]


def test_what_gathers_in_memory_is_bounded(cache: AttributeCache) -> None:
    for number in range(GATHER + 10):
        cache.put(f"d/{number}", version(), PLAIN, whole=True)
    assert len(cache._fresh) == 10
    assert len(names(cache)) == GATHER + 10


def test_a_crash_leaves_what_is_certain(cache: AttributeCache, tmp_path: Path) -> None:
    """What we wrote has no time yet; what was young may have been written again within its second, by us."""
    for name, modified in (("ours", None), ("young", NOW), ("slack", NOW - SLACK), ("old", NOW - SLACK - 1)):
        cache.put(f"d/{name}", version(modified=modified), PLAIN, whole=True)
    crashed = after_crash(cache, tmp_path)
    assert names(crashed) == ["old"]
    crashed.close()
    assert names(again(cache, tmp_path)) == ["old", "ours", "slack", "young"]
    third = AttributeCache(tmp_path / "crashed" / "attributes.sqlite")
    third.put("d/new", version(modified=None), PLAIN, whole=True)
    third.flush()
    shutil.copytree(tmp_path / "crashed", tmp_path / "again")
    third.close()
    assert names(AttributeCache(tmp_path / "again" / "attributes.sqlite")) == ["old"], "it is open again, and died"


def test_of_too_many_rows_the_older_half_goes(
    cache: AttributeCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(6):
        monkeypatch.setattr("time.time", lambda number=number: NOW + number)
        cache.put(f"d/{number}", version(), PLAIN, whole=True)
    monkeypatch.setattr(attributes, "ROWS_MAX", 6)
    kept = again(cache, tmp_path)
    assert len(names(kept)) == 6
    monkeypatch.setattr(attributes, "ROWS_MAX", 5)
    kept = again(kept, tmp_path)
    assert names(kept) == ["3", "4", "5"]
    kept.close()
    assert names(AttributeCache(tmp_path / "state" / "attributes.sqlite")) == ["3", "4", "5"]


# What is below a folder


def _filled(cache: AttributeCache) -> None:
    for key in ("d/", "d/a", "d/e/b", "d-/a", "d0/a", "d", "c/a"):
        cache.put(key, version(key), PLAIN, whole=True)


def test_what_is_below_a_folder_is_taken_and_nothing_beside_it(cache: AttributeCache, tmp_path: Path) -> None:
    _filled(cache)
    assert sorted(cache.take_under("d/", limit=100)) == [(key, version(key)) for key in ("d/", "d/a", "d/e/b")]
    assert cache.take_under("d/", limit=100) == []
    assert sorted(key for key, _ in again(cache, tmp_path).take_under("", limit=100)) == ["c/a", "d", "d-/a", "d0/a"]


def test_no_more_is_taken_than_is_wanted(cache: AttributeCache) -> None:
    _filled(cache)
    first = cache.take_under("d/", limit=2)
    assert len(first) == 2
    assert len(cache.take_under("d/", limit=2)) == 1


@pytest.mark.parametrize("is_flushed", [True, False])
def test_whether_something_is_below_a_folder(cache: AttributeCache, is_flushed: bool) -> None:
    _filled(cache)
    cache.drop("d0/a")
    if is_flushed:
        cache.flush()
    assert [cache.has_under(folder) for folder in ("d/", "d/e/", "d/a/", "d0/", "", "x/")] == [
        True, True, False, False, False, False
    ]  # fmt: skip


# What other machines know


def test_what_others_tell_is_taken_unless_something_newer_is_known(cache: AttributeCache, tmp_path: Path) -> None:
    cache.put("d/older", version("mine", OLD - 1), PLAIN, whole=True)
    cache.put("d/newer", version("mine", OLD + 1), PLAIN, whole=True)
    cache.put("d/same", version("mine", OLD), PLAIN, whole=True)
    cache.put("d/ours", version("mine", None), PLAIN, whole=True)
    told = ("d/older", "d/newer", "d/same", "d/ours", "d/unknown")
    cache.adopt((key, version("theirs", OLD), KNOWN) for key in told)
    for _ in range(2):
        page = cache.page("d/", "", "z")
        etags = {name: found.version.etag for name, found in page.items()}
        assert etags == {"older": "theirs", "newer": "mine", "same": "mine", "ours": "mine", "unknown": "theirs"}
        assert {name for name, found in page.items() if found.shared} == {"older", "unknown"}
        assert page["older"] == Remembered(version("theirs", OLD), NOW, KNOWN, whole=True, shared=True)
        cache = again(cache, tmp_path)


def test_what_was_shared_is_marked_of_that_version_alone(cache: AttributeCache) -> None:
    for name in ("a", "b", "c"):
        cache.put(f"d/{name}", version(), PLAIN, whole=False)
    cache.mark_shared([("d/a", version()), ("d/b", version("other")), ("d/c", version(modified=OLD + 1))])
    page = cache.page("d/", "", "z")
    assert [page[name].shared for name in "abc"] == [True, False, False]
    assert [page[name].whole for name in "abc"] == [True, False, False]


# A disk that refuses


class Refusing:
    """A database whose disk is full, or unreadable, from some moment on."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self.refuses = True
        self.tried = 0  # rows

    def executemany(self, statement: str, rows: list[Any]) -> Any:
        """As sqlite, which notices at the end that the disk is full."""
        self.tried += len(rows)
        if self.refuses:
            raise sqlite3.OperationalError("database or disk is full")
        return self._db.executemany(statement, rows)

    def __enter__(self) -> Any:
        return self._db.__enter__()

    def __exit__(self, *error: Any) -> Any:
        return self._db.__exit__(*error)

    def __getattr__(self, name: str) -> Any:
        if self.refuses and name == "execute":
            raise sqlite3.OperationalError("database or disk is full")
        return getattr(self._db, name)


def test_a_disk_that_refuses_from_the_beginning_fails_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = AttributeCache(tmp_path / "a" / "directory" / "to be made" / "attributes.sqlite")
    cache._db = Refusing(cache._db)  # type: ignore[assignment]
    cache.put("d/file", version(), PLAIN, whole=True)
    cache.flush()
    assert caplog.text.count("cannot be written") == 1
    cache.close()


def test_a_disk_that_refuses_fails_nobody_and_is_told_of_once(
    cache: AttributeCache, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    cache.put("d/kept", version(), PLAIN, whole=True)
    cache.flush()
    cache._db = disk = Refusing(cache._db)  # type: ignore[assignment]
    for number in range(3):
        cache.put(f"d/{number}", version(), PLAIN, whole=True)
        cache.flush()
    cache.adopt([("d/x", version(), PLAIN)])
    cache.mark_shared([("d/kept", version())])
    assert cache.take_under("d/", limit=10) == []
    assert sum("cannot be" in one.getMessage() for one in caplog.records) == 1
    assert cache.page("d/", "", "z") == {}
    assert cache.find("d/", "kept") is None
    assert not cache.has_under("d/")
    assert sum("cannot be read" in one.getMessage() for one in caplog.records) == 3
    disk.refuses = False
    caplog.clear()
    cache.put("d/well", version(), PLAIN, whole=True)
    assert names(cache) == ["kept", "well"]
    disk.refuses = True
    cache.put("d/again", version(), PLAIN, whole=True)
    cache.flush()
    assert sum("cannot be written" in one.getMessage() for one in caplog.records) == 1
    cache.close()


def test_what_could_not_be_forgotten_does_not_pass_for_what_was_written_since(
    cache: AttributeCache, tmp_path: Path
) -> None:
    """Of our own write no time is known, and a young one may have the time of the next."""
    for name, modified in (("ours", None), ("young", NOW), ("old", NOW - SLACK - 1)):
        cache.put(f"d/{name}", version(modified=modified), PLAIN, whole=True)
    cache.flush()
    cache._db = disk = Refusing(cache._db)  # type: ignore[assignment]
    for name in ("ours", "young", "old"):
        cache.drop(f"d/{name}")
    cache.flush()
    disk.refuses = False
    assert cache.find("d/", "ours") is None
    assert cache.find("d/", "young") is None
    assert cache.find("d/", "old") is not None, "the listing shows whether it is still that one"
    assert names(cache) == [], "by now they are forgotten"
    cache.put("d/new", version(modified=None), PLAIN, whole=True)
    assert names(cache) == ["new"], "of what is written from then on nothing is doubted"
    assert names(again(cache, tmp_path)) == ["new"]


def test_a_page_of_a_listing_does_not_try_all_anew_that_a_full_disk_has_refused(
    cache: AttributeCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bounded part of it, however much that is; all of it once there is room."""
    monkeypatch.setattr(attributes, "GATHER", 10)
    for number in range(100):
        cache.put(f"d/{number}", version(modified=None), PLAIN, whole=True)
    cache.flush()
    cache._db = disk = Refusing(cache._db)  # type: ignore[assignment]
    for number in range(90):
        cache.drop(f"d/{number}")
        cache.flush()
    disk.tried = 0
    assert names(cache) == []
    assert disk.tried <= 10
    disk.refuses = False
    assert names(cache) == [str(number) for number in range(90, 100)]
    assert names(again(cache, tmp_path)) == [str(number) for number in range(90, 100)]


def test_what_could_not_be_forgotten_is_when_the_mount_ends(cache: AttributeCache, tmp_path: Path) -> None:
    for name in ("gone", "kept"):
        cache.put(f"d/{name}", version(modified=None), PLAIN, whole=True)
    cache.flush()
    cache._db = disk = Refusing(cache._db)  # type: ignore[assignment]
    cache.drop("d/gone")
    cache.flush()
    disk.refuses = False
    assert names(again(cache, tmp_path)) == ["kept"]


def test_where_too_much_could_not_be_forgotten_what_may_look_like_it_is_doubted_to_the_end(
    cache: AttributeCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attributes, "UNWRITTEN_MAX", 2)
    for name, modified in (("a", None), ("b", None), ("c", None), ("ours", None), ("old", OLD)):
        cache.put(f"d/{name}", version(modified=modified), PLAIN, whole=True)
    cache.flush()
    cache._db = disk = Refusing(cache._db)  # type: ignore[assignment]
    for name in "abc":
        cache.drop(f"d/{name}")
        cache.flush()
    disk.refuses = False
    cache.put("d/later", version(), PLAIN, whole=True)
    assert names(cache) == ["later", "old"]
    assert names(again(cache, tmp_path)) == ["later", "old"]


def test_what_fails_in_the_middle_is_not_half_done(cache: AttributeCache) -> None:
    """A transaction: what was forgotten for what could not be written is there still."""
    cache.put("d/kept", version(), PLAIN, whole=True)
    cache.flush()
    db = cache._db

    class Half(Refusing):
        def __getattr__(self, name: str) -> Any:
            if name == "executemany":

                def write(statement: str, rows: Any) -> Any:
                    if statement.startswith("insert"):
                        raise sqlite3.OperationalError("disk I/O error")
                    return db.executemany(statement, rows)

                return write
            return getattr(db, name)

    cache._db = Half(db)  # type: ignore[assignment]
    cache.drop("d/kept")
    cache.put("d/new", version(), PLAIN, whole=True)
    cache.flush()
    cache._db = db
    assert cache.find("d/", "kept") is not None
    assert cache.find("d/", "new") is None


def test_a_damaged_database_is_begun_anew(
    cache: AttributeCache, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.put("d/file", version(), PLAIN, whole=True)
    cache.close()
    path = tmp_path / "state" / "attributes.sqlite"
    path.write_bytes(b"no database" * 1000)
    fresh = AttributeCache(path)
    assert names(fresh) == []
    assert "begun anew" in caplog.text
    fresh.put("d/file", version(), PLAIN, whole=True)
    assert names(again(fresh, tmp_path)) == ["file"]


def test_a_disk_without_room_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "attributes.sqlite"
    path.write_bytes(b"")

    def full(_: Path) -> sqlite3.Connection:
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error

    monkeypatch.setattr(attributes, "_prepared", full)
    with fails(errno.ENOSPC):
        AttributeCache(path)
    assert path.exists()


def test_a_key_is_a_folder_and_a_name() -> None:
    assert [place_of(key) for key in ("file", "d/file", "d/e/", "")] == [
        ("", "file"), ("d/", "file"), ("d/e/", ""), ("", "")
    ]  # fmt: skip
