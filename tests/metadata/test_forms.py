"""Attributes in metadata: what s3fs, rclone and s3cmd wrote is read, ours is as s3fs', and nothing lies after it."""

from __future__ import annotations

import errno
import stat
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sosfs.metadata import system_headers, user_metadata
from sosfs.metadata.edits import NO_EDITS, Edits
from sosfs.metadata.user_metadata import NS, Posix, read, without_hashes, without_time, write
from sosfs.metadata.xattr_encoding import from_text, shown, stored, to_text
from sosfs.s3.protocol import Headers, Properties
from tests.support.drive import fails

FILE, DIRECTORY = stat.S_IFREG, stat.S_IFDIR
S3CMD = "atime:1/ctime:5/gid:7/gname:staff/md5:abc/mode:33188/mtime:1700000000/uid:6/uname:me"


@pytest.fixture(autouse=True)
def nothing_remembered() -> None:
    """What was understood for another test is no answer here."""
    user_metadata._understood.cache_clear()


whole = st.builds(
    Posix,
    mode=st.none() | st.integers(0, 0o7777).map(lambda mode: FILE | mode),
    uid=st.none() | st.integers(0, 2**32 - 1),
    gid=st.none() | st.integers(0, 2**32 - 1),
    mtime_ns=st.none() | st.integers(-(10**18) * NS + 1, 10**18 * NS - 1),
    rdev=st.none() | st.integers(1, 2**32 - 1),
)


@settings(deadline=None)
@given(whole)
def test_what_is_written_is_read_back(posix: Posix) -> None:
    assert read(write({}, posix)) == posix
    assert read(write({"mode": "1", "mtime": "2", "uid": "3", "gid": "4", "rdev": "5"}, posix)) == posix


def test_it_is_written_as_s3fs_does() -> None:
    posix = Posix(FILE | 0o644, 6, 7, 1_700_000_000_000_000_012, 0)
    due = {"a": "b", "mode": "33188", "uid": "6", "gid": "7", "mtime": "1700000000.000000012"}
    assert write({"a": "b", "ctime": "5", "rdev": "9"}, posix) == due
    assert write({}, Posix(mtime_ns=-1)) == {"mtime": "-0.000000001"}
    assert write({}, Posix()) == {}


@pytest.mark.parametrize(
    ("text", "kind", "due"),
    [
        ("33188", FILE, FILE | 0o644),  # s3fs
        ("16877", FILE, DIRECTORY | 0o755),
        ("100644", FILE, FILE | 0o644),  # rclone: octal with the type
        ("0100644", FILE, FILE | 0o644),
        ("644", FILE, 0o644),
        ("0644", FILE, 0o644),
        ("033188", FILE, None),  # octal, with an 8
        ("511", DIRECTORY, 0o777),  # s3fs' directory: decimal without the type
        ("511", FILE, 0o511),
        ("0755", DIRECTORY, 0o755),
        ("4095", DIRECTORY, 0o7777),
        ("12288", DIRECTORY, None),
        ("8", FILE, None),
        ("9", DIRECTORY, 0o11),
        ("69999", FILE, None),
        ("177777", FILE, None),
        ("200000", FILE, None),
        ("12345678", FILE, None),
        ("-1", FILE, None),
        ("", FILE, None),
        ("rw-r--r--", FILE, None),
        ("\u0663\u0663", FILE, None),
    ],
)
def test_modes_of_all_tools_are_told_apart(text: str, kind: int, due: int | None) -> None:
    assert read({"mode": text}, kind=kind).mode == due


@pytest.mark.parametrize(
    ("text", "due"),
    [
        ("1700000000", 1_700_000_000 * NS),
        ("1700000000.5", 1_700_000_000 * NS + NS // 2),
        ("1700000000.123456789", 1_700_000_000 * NS + 123_456_789),
        ("1700000000.1234567899", 1_700_000_000 * NS + 123_456_789),
        ("-1.5", -1_500_000_000),
        ("-0.000000001", -1),
        ("0", 0),
        ("1.", None),
        ("1e9", None),
        ("1234567890123456789", None),
        ("yesterday", None),
    ],
)
def test_times_are_exact_or_none(text: str, due: int | None) -> None:
    assert read({"mtime": text}).mtime_ns == due


@pytest.mark.parametrize(
    ("text", "due"), [("0", 0), ("4294967295", 2**32 - 1), ("4294967296", None), ("12345678901", None), ("x", None)]
)
def test_numbers_fit_or_are_none(text: str, due: int | None) -> None:
    for name in ("uid", "gid", "rdev"):
        assert getattr(read({name: text}), name) == due


def test_a_time_that_metadata_cannot_say_is_refused() -> None:
    assert user_metadata.storable(10**27 - 1) == 10**27 - 1
    for wanted in (10**27, -(10**27)):
        with fails(errno.EOVERFLOW):
            user_metadata.storable(wanted)


# What other tools noted


def test_s3cmds_record_is_read_where_nothing_else_says_it() -> None:
    assert read({"s3cmd-attrs": S3CMD}) == Posix(FILE | 0o644, 6, 7, 1_700_000_000 * NS)
    assert read({"s3cmd-attrs": S3CMD, "mode": "33261", "mtime": "5"}) == Posix(FILE | 0o755, 6, 7, 5 * NS)
    assert read({"s3cmd-attrs": ":1/mode"}) == Posix()


def noted(metadata: Mapping[str, str]) -> dict[str, str]:
    return dict(entry.split(":") for entry in metadata["s3cmd-attrs"].split("/"))


def test_s3cmds_record_follows_what_is_changed_here() -> None:
    same = Posix(FILE | 0o644, 6, 7, 1_700_000_000 * NS)
    assert write({"s3cmd-attrs": S3CMD}, same)["s3cmd-attrs"] == S3CMD
    now = noted(write({"s3cmd-attrs": S3CMD}, Posix(FILE | 0o600, 8, 7, 1_800_000_000 * NS + 5)))
    assert now == {
        "atime": "1", "gid": "7", "gname": "staff", "md5": "abc", "mode": "33152", "mtime": "1800000000", "uid": "8"
    }, "no name beside another number, no time of change before the change"  # fmt: skip
    assert "gname" not in noted(write({"s3cmd-attrs": S3CMD}, Posix(FILE | 0o644, 6, 9, 1_700_000_000 * NS)))
    assert noted(write({"s3cmd-attrs": "atime:1"}, same)) == {"atime": "1"}, "nothing is put in"


def test_hashes_go_with_the_bytes() -> None:
    metadata = {"md5chksum": "x", "s3cmd-attrs": S3CMD, "a": "b", "mtime": "5"}
    left = without_hashes(metadata)
    assert left.keys() == {"s3cmd-attrs", "a", "mtime"}
    assert "md5" not in noted(left)
    assert noted(left)["uname"] == "me"
    assert without_time(metadata) == {"md5chksum": "x", "a": "b"}
    assert without_hashes({"md5chksum": "x", "a": "b"}) == {"a": "b"}


# Changes over what an object has


def test_changes_are_of_single_fields() -> None:
    had = Properties(Headers("text/plain", cache_control="no-store"), {"a": "1", "b": "2"}, "COLD")
    assert NO_EDITS.applied(had) is had
    edits = NO_EDITS.with_header("content_type", "image/png").with_header("cache_control", "")
    edits = edits.with_metadata("a", None).with_metadata("c", "3")
    due = Properties(Headers("image/png"), {"b": "2", "c": "3"}, "COLD")
    assert edits.applied(had) == due
    assert edits.applied(had).storage_class == "COLD"
    assert edits.applied(due) == due, "twice changes nothing more"
    assert NO_EDITS.with_metadata("a", "9").applied(had) == Properties(had.headers, {"a": "9", "b": "2"})
    assert NO_EDITS.with_header("content_type", "x/y").applied(had).headers == Headers("x/y", cache_control="no-store")
    assert edits.with_metadata("a", "9").applied(had).metadata == {"a": "9", "b": "2", "c": "3"}


def test_of_attributes_only_what_was_set_here_stands_over_what_is_found() -> None:
    ours, found = Posix(FILE | 0o600, 1, 2, 3), Posix(0o644, 4, None, 6, 7)
    edits = NO_EDITS.with_posix(["mode"])
    assert edits.merged(ours, found) == Posix(FILE | 0o600, 4, 2, 6)
    assert NO_EDITS.merged(ours, found) == Posix(FILE | 0o644, 4, 2, 6), "the type stays ours"
    assert edits.with_posix(["mode"]) is edits
    assert edits.with_posix(["uid", "mtime_ns"]).merged(ours, found) == Posix(FILE | 0o600, 1, 2, 3)
    assert NO_EDITS.merged(Posix(FILE, None), Posix(0o644, 5)) == Posix(FILE | 0o644, None)


# Headers


@pytest.mark.parametrize(
    ("name", "due"),
    [
        ("a.html", "text/html"),
        ("a.tar.gz", "application/gzip"),
        ("a.bz2", "application/x-bzip2"),
        ("a.xz", "application/x-xz"),
        ("a.Z", system_headers.UNKNOWN),
        ("a.pict", "image/pict"),  # in use, and not registered
        ("a", system_headers.UNKNOWN),
        ("", system_headers.UNKNOWN),
    ],
)
def test_the_type_that_a_name_tells(name: str, due: str) -> None:
    assert system_headers.for_name(name) == Headers(due)


@pytest.mark.parametrize(
    ("kind", "old", "new", "due"),
    [
        ("text/html", "a.html", "a.png", "image/png"),
        ("text/html", "a.html", "a", "text/html"),
        ("x/mine", "a.html", "a.png", "x/mine"),
        ("x/mine", "a.part", "a.png", "x/mine"),
        (system_headers.UNKNOWN, "a.part", "a.png", "image/png"),
        ("", "a.part", "a.png", "image/png"),
        ("binary/octet-stream", "a.part", "a.png", "image/png"),
        ("", "a.html", "a.png", ""),
    ],
)
def test_the_type_after_a_rename(kind: str, old: str, new: str, due: str) -> None:
    assert system_headers.renamed(kind, old, new) == due


def test_a_directory_is_marked_as_one() -> None:
    assert system_headers.for_directory(Headers()) == Headers(content_type="application/x-directory")


@pytest.mark.parametrize("value", [b"", b" x", b"x ", b"\xff"])
def test_what_no_header_can_be_is_refused(value: bytes) -> None:
    with fails(errno.EINVAL):
        system_headers.checked("content_type", value)


def test_a_date_is_one() -> None:
    date = b"Thu, 01 Dec 2044 16:00:00 GMT"
    assert system_headers.checked("expires", date) == date.decode()
    assert system_headers.checked("cache_control", b"tomorrow") == "tomorrow"
    with fails(errno.EINVAL):
        system_headers.checked("expires", b"tomorrow")


# Extended attributes


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=60))
def test_a_name_leads_back_to_itself(name: bytes) -> None:
    metadata_name = stored(name, {})
    assert metadata_name == metadata_name.lower()
    assert "_" not in metadata_name
    if b"\0" not in name and name != b"mime_type" and not name.startswith(b"sos."):
        assert shown(metadata_name) == name
        assert stored(name, {metadata_name: ""}) == metadata_name


def test_a_name_that_http_carries_is_itself_whatever_else_is_there() -> None:
    assert stored(b"a.b-1", {}) == "a.b-1"
    assert stored(b"a.b-1", {"other": "x", "xattr--41": "y"}) == "a.b-1"


def test_what_no_xattr_could_have_been_escaped_to_is_shown_as_it_is() -> None:
    assert shown("xattr-") == b"xattr-"
    assert shown("xattr--00") == b"xattr--00"
    assert shown("xattr--41") == b"A"
    assert shown("plain--41") == b"plain--41"


def test_a_foreign_name_keeps_its_form() -> None:
    assert stored(b"a_b", {"a_b": "x"}) == "a_b"
    assert stored(b"zz", {"xattr-zz": "x"}) == "xattr-zz"
    assert shown("xattr-zZ") == b"xattr-zZ"
    assert stored(b"Author_1", {}) == "xattr--41uthor-5f1"
    assert stored(b"mode", {}) == "xattr-mode"
    assert shown("xattr-mode") == b"mode"
    assert [shown(name) for name in ("mode", "ctime", "sos.etag", "xattr-mime-5ftype", "xattr-" + "-41" * 251)] == [
        None
    ] * 5


@settings(deadline=None)
@given(st.binary(max_size=60) | st.text(max_size=20).map(str.encode) | st.just(b"data:;base64,AAAA"))
def test_a_value_leads_back_to_itself(value: bytes) -> None:
    text = to_text(value)
    assert from_text(text) == value
    text.encode()


def test_a_value_that_is_text_is_that_text() -> None:
    assert to_text("Grüße".encode()) == "Grüße"
    assert to_text(b"\xff") == "data:;base64,/w=="
    assert from_text("Gr\udcfc\udcdfe") == "Grüße".encode("latin-1"), "which is no UTF-8"
    assert from_text("data:;base64,no base64") == b"data:;base64,no base64"
    assert Edits() == NO_EDITS
