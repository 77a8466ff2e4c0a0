"""Rename on a real kernel mount: files and directories, over others, with open handles, and what the keys are then."""

from __future__ import annotations

import ctypes
import errno
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Mounter
from tests.support.drive import Drive, eventually, fails, names, tree
from tests.support.faults import Delay
from tests.support.foreign import Foreign
from tests.support.proxy import Proxy
from tests.support.traffic import on
from tests.support.waiting import until

LIBC = ctypes.CDLL(None, use_errno=True)
AT_FDCWD = -100
RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2


def rename(source: Path, target: Path, flags: int) -> None:
    """renameat2(2)."""
    if LIBC.renameat2(AT_FDCWD, os.fsencode(source), AT_FDCWD, os.fsencode(target), flags):
        raise OSError(ctypes.get_errno(), "renameat2")


def test_rename_of_a_file(drive: Drive) -> None:
    (drive.here / "d").mkdir()
    a, b, c = drive.here / "a", drive.here / "b", drive.here / "d" / "c"
    a.write_bytes(b"body")
    a.rename(b)
    b.rename(c)
    assert c.read_bytes() == b"body"
    assert names(drive.here) == ["d"]
    assert drive.stored(c) == b"body"
    eventually(lambda: drive.foreign.files(drive.key(drive.here) + "/") == [drive.key(c)])


def test_rename_of_a_large_file(drive: Drive) -> None:
    path, body = drive.here / "large", random.Random(9).randbytes(20 << 20)
    path.write_bytes(body)
    path.rename(drive.here / "moved")
    assert (drive.here / "moved").read_bytes() == body
    assert drive.stored(drive.here / "moved") == body


def test_rename_replaces_a_file(drive: Drive) -> None:
    a, b = drive.here / "a", drive.here / "b"
    a.write_bytes(b"new")
    b.write_bytes(b"old and longer")
    a.rename(b)
    assert names(drive.here) == ["b"]
    assert b.read_bytes() == b"new"
    assert b.stat().st_size == 3
    assert drive.stored(b) == b"new"


def test_rename_onto_itself_changes_nothing(drive: Drive) -> None:
    path = drive.here / "a"
    path.write_bytes(b"same")
    path.rename(path)
    assert path.read_bytes() == b"same"
    assert drive.stored(path) == b"same"


def test_rename_between_files_and_directories(drive: Drive) -> None:
    file, directory = drive.here / "f", drive.here / "d"
    file.touch()
    directory.mkdir()
    with fails(errno.EISDIR):
        file.rename(directory)
    with fails(errno.ENOTDIR):
        directory.rename(file)
    with fails(errno.ENOENT):
        (drive.here / "none").rename(file)
    with fails(errno.ENOENT):
        file.rename(drive.here / "none" / "f")
    assert names(drive.here) == ["d", "f"]


def test_rename_of_a_directory_takes_all_along(drive: Drive) -> None:
    source, target = drive.here / "source", drive.here / "target"
    (source / "sub" / "empty").mkdir(parents=True)
    for name in ("a", "sub/b", "sub/c d%"):
        (source / name).write_bytes(name.encode())
    (source / "sub" / "link").symlink_to("b")
    before = tree(source)
    source.rename(target)
    assert tree(target) == before
    assert names(drive.here) == ["target"]
    drive.mount.remount()
    assert tree(target) == before
    assert names(drive.here) == ["target"]
    assert names(target / "sub") == ["b", "c d%", "empty", "link"]
    assert (target / "sub" / "link").readlink() == Path("b")
    assert drive.foreign.keys(drive.key(source)) == []
    assert drive.stored(target / "sub" / "c d%") == b"sub/c d%"


def test_rename_of_a_directory_with_an_open_file(drive: Drive) -> None:
    source, target = drive.here / "source", drive.here / "target"
    source.mkdir()
    (source / "read").write_bytes(b"read me")
    with (source / "new").open("wb", buffering=0) as writer, (source / "read").open("rb") as reader:
        writer.write(b"one")
        source.rename(target)
        assert reader.read() == b"read me"
        writer.write(b"two")
    assert tree(target) == {"read": b"read me", "new": b"onetwo"}
    assert drive.stored(target / "new") == b"onetwo"
    eventually(lambda: drive.foreign.keys(drive.key(source)) == [])


def test_rename_of_a_directory_into_another(drive: Drive) -> None:
    (drive.here / "a" / "b").mkdir(parents=True)
    (drive.here / "c").mkdir()
    (drive.here / "a" / "b" / "f").write_bytes(b"f")
    (drive.here / "a" / "b").rename(drive.here / "c" / "b")
    assert tree(drive.here) == {"c/b/f": b"f"}
    assert names(drive.here / "a") == []


def test_rename_of_a_directory_over_another(drive: Drive) -> None:
    source, empty, full = drive.here / "source", drive.here / "empty", drive.here / "full"
    for directory in (source, empty, full):
        directory.mkdir()
    (source / "f").write_bytes(b"f")
    (full / "g").write_bytes(b"g")
    with fails(errno.ENOTEMPTY, errno.EEXIST):
        source.rename(full)
    source.rename(empty)
    assert tree(drive.here) == {"empty/f": b"f", "full/g": b"g"}


def test_rename_of_a_directory_into_itself(drive: Drive) -> None:
    (drive.here / "d" / "sub").mkdir(parents=True)
    with fails(errno.EINVAL):
        (drive.here / "d").rename(drive.here / "d" / "sub" / "d")
    assert names(drive.here / "d") == ["sub"]


def test_rename_there_and_back_and_a_new_file_in_the_old_place(drive: Drive) -> None:
    a, b = drive.here / "a", drive.here / "b"
    a.write_bytes(b"first")
    a.rename(b)
    a.write_bytes(b"second")
    b.rename(drive.here / "c")
    a.rename(b)
    assert tree(drive.here) == {"b": b"second", "c": b"first"}
    assert drive.stored(b) == b"second"
    assert drive.stored(drive.here / "c") == b"first"
    drive.mount.remount()
    assert tree(drive.here) == {"b": b"second", "c": b"first"}


def test_rename_without_replacing(drive: Drive) -> None:
    a, b = drive.here / "a", drive.here / "b"
    a.write_bytes(b"a")
    b.write_bytes(b"b")
    with fails(errno.EEXIST):
        rename(a, b, RENAME_NOREPLACE)
    rename(a, drive.here / "c", RENAME_NOREPLACE)
    assert tree(drive.here) == {"b": b"b", "c": b"a"}


def test_rename_by_exchange_is_refused_or_exchanges(drive: Drive) -> None:
    a, b = drive.here / "a", drive.here / "b"
    a.write_bytes(b"a")
    b.write_bytes(b"b")
    try:
        rename(a, b, RENAME_EXCHANGE)
    except OSError as error:
        assert error.errno == errno.EINVAL
        assert tree(drive.here) == {"a": b"a", "b": b"b"}
    else:
        assert tree(drive.here) == {"a": b"b", "b": b"a"}


BEGUN: dict[str, tuple[str, Callable[[Path], object]]] = {
    "mkdir": ("PUT", lambda top: (top / "new").mkdir()),
    "symlink": ("PUT", lambda top: (top / "new").symlink_to("target")),
    "mkfifo": ("PUT", lambda top: os.mkfifo(top / "new")),
    "unlink": ("DELETE", lambda top: (top / "old").unlink()),
}


@pytest.mark.parametrize("what", BEGUN)
@pytest.mark.parametrize("server", ["moto"], indirect=True)  # what is tested happens before it
def test_what_has_begun_in_a_directory_ends_before_its_rename(
    mounter: Mounter, proxy: Proxy, foreign: Foreign, what: str
) -> None:
    foreign.put_all({"d/old": b"old", "d/other": b"other"})
    drive = mounter(proxy.endpoint)
    operation, change = BEGUN[what]
    assert names(drive.here / "d") == ["old", "other"]
    proxy.inject(Delay(1.0), on(operation), times=1)
    seen = proxy.count(operation)
    changing = threading.Thread(target=change, args=[drive.here / "d"])
    changing.start()
    until(lambda: proxy.count(operation) > seen, "the change is on its way")
    (drive.here / "d").rename(drive.here / "moved")
    changing.join()
    expected = ["other"] if what == "unlink" else ["new", "old", "other"]
    assert names(drive.here / "moved") == expected
    drive.mount.stop()
    assert [key.rstrip("/") for key in foreign.keys("") if key != "moved/"] == [f"moved/{name}" for name in expected]
