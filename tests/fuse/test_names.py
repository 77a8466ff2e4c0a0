"""Names and directories on a real kernel mount: what can be made, listed, moved, removed, and which keys that gives."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
from pathlib import Path

import pytest

from tests.support.drive import Drive, eventually, fails, names

LIBC = ctypes.CDLL(None, use_errno=True)

NAMES = [
    "plain",
    "with space",
    " lead and trail ",
    "tab\there",
    "percent%20%2F%%",
    "plus+plus",
    "what?",
    "hash#tag",
    "amp&and=equals;semi",
    "quote\"and'tick`",
    "back\\slash",
    "<xml>&amp;]]>",
    "ümläut",
    "cafe\u0301",  # decomposed: not to be normalised
    "日本語",
    "emoji 🎉",
    "star*[x]{y}",
    "-dash",
    "~tilde",
    "dot.",
    "...",
    ".hidden",
    "\x7f",
    "a:b|c",
]
NEWLINE = "new\nline"  # moto answers 404 to a key with one
XML_REFUSES = "bell\x07"  # a control character that no XML 1.0 listing can carry as it is


@pytest.mark.parametrize("name", NAMES)
def test_any_name_makes_a_file_and_a_directory(drive: Drive, name: str) -> None:
    (drive.here / name).write_bytes(name.encode())
    (drive.here / "d").mkdir()
    (drive.here / "d" / name).mkdir()
    (drive.here / "d" / name / name).write_bytes(b"inner")
    assert names(drive.here) == sorted(["d", name])
    assert names(drive.here / "d" / name) == [name]
    assert drive.stored(drive.here / name) == name.encode()
    assert drive.stored(drive.here / "d" / name / name) == b"inner"
    (drive.here / name).rename(drive.here / "moved")
    (drive.here / "moved").rename(drive.here / name)
    assert (drive.here / name).read_bytes() == name.encode()
    (drive.here / name).unlink()
    shutil.rmtree(drive.here / "d")
    assert names(drive.here) == []


@pytest.mark.parametrize("server", ["ceph"], indirect=True)
def test_a_newline_in_a_name(drive: Drive) -> None:
    test_any_name_makes_a_file_and_a_directory(drive, NEWLINE)
    (drive.here / NEWLINE).write_bytes(b"line")
    drive.mount.remount()
    assert names(drive.here) == [NEWLINE]


def test_all_those_names_are_listed_after_a_remount(drive: Drive) -> None:
    for name in NAMES:
        (drive.here / name).write_bytes(name.encode())
    drive.mount.remount()
    assert names(drive.here) == sorted(NAMES)
    assert {name: (drive.here / name).read_bytes() for name in NAMES} == {name: name.encode() for name in NAMES}


@pytest.mark.parametrize("name", ["%~", "%~x", "%~looks like an escape", "%~=plain"])
def test_names_that_only_look_escaped_are_refused(drive: Drive, name: str) -> None:
    with fails(errno.EINVAL):
        (drive.here / name).touch()
    with fails(errno.EINVAL):
        (drive.here / name).mkdir()
    assert names(drive.here) == []


def test_a_control_character_is_refused_or_works_whole(drive: Drive) -> None:
    path = drive.here / XML_REFUSES
    (drive.here / "neighbour").write_bytes(b"n")
    try:
        path.write_bytes(b"bell")
    except OSError as error:
        assert error.errno in (errno.EINVAL, errno.EILSEQ)
        expected = ["neighbour"]
    else:
        expected = [XML_REFUSES, "neighbour"]
        assert path.read_bytes() == b"bell"
    drive.mount.remount()
    assert names(drive.here) == expected


def test_longest_name_and_one_longer(drive: Drive) -> None:
    for longest in ("n" * 255, "ü" * 127 + "n"):
        (drive.here / longest).write_bytes(b"long")
        assert longest in names(drive.here)
        assert drive.stored(drive.here / longest) == b"long"
        for call in (Path.touch, Path.mkdir, Path.stat):
            with fails(errno.ENAMETOOLONG):
                call(drive.here / (longest + "n"))
        with fails(errno.ENAMETOOLONG):
            (drive.here / longest).rename(drive.here / (longest + "n"))


def test_a_key_over_1024_bytes_is_refused_when_it_is_made(drive: Drive) -> None:
    directory = drive.here
    for _ in range(4):
        directory /= "d" * 240
        directory.mkdir()
    room = 1023 - len(drive.key(directory) + "/")  # one is left for the slash of a directory of that name
    (directory / ("f" * room)).write_bytes(b"fits")
    assert drive.stored(directory / ("f" * room)) == b"fits"
    with fails(errno.ENAMETOOLONG):
        (directory / ("g" * (room + 2))).touch()
    with fails(errno.ENAMETOOLONG):
        (directory / ("g" * (room + 1))).mkdir()
    assert names(directory) == ["f" * room]


def test_deep_directories(drive: Drive) -> None:
    deep = drive.here.joinpath(*[f"level{number}" for number in range(40)])
    deep.mkdir(parents=True)
    (deep / "file").write_bytes(b"deep")
    drive.mount.remount()
    assert drive.run("find", ".", "-type", "f").strip() == f"./{(deep / 'file').relative_to(drive.here)}"
    assert (deep / "file").read_bytes() == b"deep"
    shutil.rmtree(drive.here / "level0")
    assert names(drive.here) == []
    eventually(lambda: drive.foreign.keys(drive.key(drive.here) + "/level") == [])


def test_mkdir_and_rmdir(drive: Drive) -> None:
    directory = drive.here / "d"
    directory.mkdir()
    with fails(errno.EEXIST):
        directory.mkdir()
    (directory / "f").touch()
    with fails(errno.EEXIST):
        (directory / "f").mkdir()
    with fails(errno.ENOTEMPTY):
        directory.rmdir()
    with fails(errno.ENOTDIR):
        (directory / "f").rmdir()
    with fails(errno.EISDIR, errno.EPERM):
        directory.unlink()
    (directory / "f").unlink()
    directory.rmdir()
    with fails(errno.ENOENT):
        directory.rmdir()
    assert names(drive.here) == []


def test_rmdir_of_a_directory_that_another_client_filled(drive: Drive) -> None:
    directory = drive.here / "d"
    directory.mkdir()
    assert names(directory) == []
    drive.foreign.put(drive.key(directory) + "/theirs", b"theirs")
    with contextlib.suppress(OSError):  # what was listed a moment ago may still be trusted
        directory.rmdir()
    assert drive.foreign.get(drive.key(directory) + "/theirs") == b"theirs"
    drive.mount.remount()
    assert names(directory) == ["theirs"]
    with fails(errno.ENOTEMPTY):
        directory.rmdir()


@pytest.mark.promise(10)
def test_empty_directories_stay_over_a_remount(drive: Drive) -> None:
    (drive.here / "empty").mkdir()
    (drive.here / "once full").mkdir()
    (drive.here / "once full" / "f").touch()
    (drive.here / "once full" / "f").unlink()
    (drive.here / "a" / "b" / "c").mkdir(parents=True)
    drive.mount.remount()
    assert names(drive.here) == ["a", "empty", "once full"]
    assert (drive.here / "a" / "b" / "c").is_dir()
    assert names(drive.here / "empty") == []


@pytest.mark.promise(10)
def test_a_foreign_directory_without_a_marker_survives_its_last_file(drive: Drive) -> None:
    directory = drive.here / "foreign"
    drive.foreign.put(drive.key(directory) + "/only", b"1")
    drive.mount.remount()
    (directory / "only").unlink()
    assert directory.is_dir()
    assert names(directory) == []
    directory.rmdir()
    assert names(drive.here) == []


def test_lookup_of_what_is_not_there(drive: Drive) -> None:
    (drive.here / "f").touch()
    for path in ("none", "none/deeper"):
        with fails(errno.ENOENT):
            (drive.here / path).stat()
    with fails(errno.ENOTDIR):
        (drive.here / "f" / "deeper").stat()
    with fails(errno.ENOENT):
        (drive.here / "none").open("rb")
    with fails(errno.ENOENT):
        (drive.here / "none").unlink()
    with fails(errno.EISDIR):
        drive.here.open("r+b")


def test_removing_while_listing_skips_nothing(drive: Drive) -> None:
    expected = {f"f{number:03d}" for number in range(500)}
    directory = drive.here / "many"
    directory.mkdir()
    drive.foreign.put_all({f"{drive.key(directory)}/{name}": b"" for name in expected})
    drive.mount.remount()
    seen = set()
    with os.scandir(directory) as entries:
        for entry in entries:
            seen.add(entry.name)
            Path(entry.path).unlink()
    assert seen == expected
    assert names(directory) == []
    directory.rmdir()


def test_making_while_listing_shows_each_old_name_once(drive: Drive) -> None:
    for number in range(300):
        (drive.here / f"f{number:03d}").touch()
    seen = []
    with os.scandir(drive.here) as entries:
        for number, entry in enumerate(entries):
            seen.append(entry.name)
            if number < 50:
                (drive.here / f"a{number}").touch()
    old = [name for name in seen if name.startswith("f")]
    assert sorted(old) == [f"f{number:03d}" for number in range(300)]
    assert len(seen) == len(set(seen))


def test_seekdir_returns_to_where_telldir_was(drive: Drive) -> None:
    for number in range(300):
        (drive.here / f"f{number:03d}").touch()
    LIBC.opendir.restype = LIBC.readdir.restype = ctypes.c_void_p
    LIBC.telldir.restype = ctypes.c_long
    stream = ctypes.c_void_p(LIBC.opendir(os.fsencode(drive.here)))

    def read() -> str:
        entry = LIBC.readdir(stream)
        return ctypes.string_at(entry + 19).decode() if entry else ""  # d_name follows 19 bytes of struct dirent64

    try:
        seen: list[tuple[int, str]] = []
        while True:
            at = LIBC.telldir(stream)
            if not (name := read()):
                break
            seen.append((at, name))
        assert sorted(name for _, name in seen) == sorted([".", "..", *names(drive.here)])
        for index in (150, 10, 280):
            LIBC.seekdir(stream, ctypes.c_long(seen[index][0]))
            assert [read() for _ in range(5)] == [name for _, name in seen[index : index + 5]]
    finally:
        LIBC.closedir(stream)


def test_listing_tells_types(drive: Drive) -> None:
    (drive.here / "d").mkdir()
    (drive.here / "f").touch()
    (drive.here / "l").symlink_to("f")
    with os.scandir(drive.here) as entries:
        kinds = {
            e.name: (e.is_dir(follow_symlinks=False), e.is_file(follow_symlinks=False), e.is_symlink()) for e in entries
        }
    assert kinds == {"d": (True, False, False), "f": (False, True, False), "l": (False, False, True)}


def test_hard_links_are_refused(drive: Drive) -> None:
    (drive.here / "f").write_bytes(b"f")
    with fails(errno.EPERM, errno.EOPNOTSUPP):
        os.link(drive.here / "f", drive.here / "g")
    assert names(drive.here) == ["f"]
