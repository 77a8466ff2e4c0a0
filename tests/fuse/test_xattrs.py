"""Extended attributes on a real kernel mount: what is behind them in the bucket, and what usual tools make of them."""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from sosfs.metadata import xattr_encoding
from tests.conftest import Mounter
from tests.support.drive import Drive, eventually, fails, names
from tests.support.faults import Delay
from tests.support.foreign import Foreign
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.traffic import on

DATE = "Thu, 01 Dec 2044 16:00:00 GMT"
HEADERS = {
    "user.mime_type": ("ContentType", "text/x-mine"),
    "user.sos.cache-control": ("CacheControl", "max-age=7, private"),
    "user.sos.content-disposition": ("ContentDisposition", 'attachment; filename="a b.txt"'),
    "user.sos.content-encoding": ("ContentEncoding", "gzip"),
    "user.sos.content-language": ("ContentLanguage", "de, en"),
}


def new(drive: Drive, name: str = "file.txt", body: bytes = b"body") -> Path:
    path = drive.here / name
    path.write_bytes(body)
    return path


def settled(drive: Drive, path: Path) -> None:
    """Waits until all that was changed of a file is in the bucket."""
    eventually(lambda: os.getxattr(path, "user.sos.state") == b"clean")


# Names and values


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("plain", "plain"),
        ("a.b-c.1", "a.b-c.1"),
        ("Author_1", "xattr--41uthor-5f1"),
        ("mode", "xattr-mode"),
        ("mtime", "xattr-mtime"),
        ("rsync.%stat", "xattr-rsync.-25stat"),
        ("a b", "xattr-a-20b"),
        ("größe", "xattr-gr-c3-b6-c3-9fe"),
        ("xattr-a-20b", "xattr-xattr-2da-2d20b"),
    ],
)
def test_a_name_round_trips(drive: Drive, name: str, stored: str) -> None:
    path = new(drive)
    os.setxattr(path, f"user.{name}", b"value")
    assert os.listxattr(path) == [f"user.{name}"]
    settled(drive, path)
    assert drive.foreign.metadata(drive.key(path))[stored] == "value"
    drive.mount.remount()
    assert os.listxattr(path) == [f"user.{name}"]
    assert os.getxattr(path, f"user.{name}") == b"value"
    os.removexattr(path, f"user.{name}")
    settled(drive, path)
    assert stored not in drive.foreign.metadata(drive.key(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


@pytest.mark.parametrize("name", ["", "xattr-", "xattr-zz", "xattr-41", "xattr--61b", "xattr--4", "a--b", "-", "."])
def test_a_foreign_name_keeps_its_form(name: str) -> None:
    shown = xattr_encoding.shown(name)
    if name:
        assert shown is not None
        assert xattr_encoding.stored(shown, {name: "x"}) == name


@pytest.mark.parametrize("name", ["mode", "uid", "gid", "mtime", "rdev", "mime_type", "sos.etag", "sos."])
def test_names_with_another_meaning_are_not_shown(name: str) -> None:
    assert xattr_encoding.shown(name) is None


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"text",
        b" blanks  around ",
        b"two\nlines\n",
        "ümläut 日本".encode(),
        bytes(range(256)),
        b"data:;base64,AAAA",
        b"data:;base64,no base64",
        b"=?UTF-8?B?w7w=?=",
        b"\0",
    ],
    ids=ascii,
)
def test_a_value_round_trips(drive: Drive, value: bytes) -> None:
    path = new(drive)
    os.setxattr(path, "user.v", value)
    assert os.getxattr(path, "user.v") == value
    drive.mount.remount()
    assert os.getxattr(path, "user.v") == value


def test_foreign_metadata_are_attributes(drive: Drive) -> None:
    path = drive.here / "file"
    drive.foreign.put(drive.key(path), b"body", {"color": "blue", "s3cmd-attrs": "uid:0/gid:0", "mode": "33152"})
    drive.mount.remount()
    assert set(os.listxattr(path)) == {"user.color", "user.s3cmd-attrs"}
    assert os.getxattr(path, "user.color") == b"blue"
    os.setxattr(path, "user.color", b"red")
    settled(drive, path)
    found = drive.foreign.metadata(drive.key(path))
    assert (found["color"], found["s3cmd-attrs"]) == ("red", "uid:0/gid:0")
    assert stat.S_IMODE(int(found["mode"])) == 0o600
    assert drive.stored(path) == b"body"


def test_create_and_replace(drive: Drive) -> None:
    path = new(drive)
    with fails(errno.ENODATA):
        os.setxattr(path, "user.a", b"1", os.XATTR_REPLACE)
    os.setxattr(path, "user.a", b"1", os.XATTR_CREATE)
    with fails(errno.EEXIST):
        os.setxattr(path, "user.a", b"2", os.XATTR_CREATE)
    os.setxattr(path, "user.a", b"3", os.XATTR_REPLACE)
    assert os.getxattr(path, "user.a") == b"3"
    os.removexattr(path, "user.a")
    with fails(errno.ENODATA):
        os.getxattr(path, "user.a")
    with fails(errno.ENODATA):
        os.removexattr(path, "user.a")


# Headers


def test_headers_are_attributes_both_ways(drive: Drive) -> None:
    path = new(drive)
    for name, (_, value) in HEADERS.items():
        os.setxattr(path, name, value.encode())
    os.setxattr(path, "user.sos.expires", DATE.encode())
    settled(drive, path)
    found = drive.foreign.head(drive.key(path))
    assert {field: found[field] for field, _ in HEADERS.values()} == dict(HEADERS.values())
    assert found["ExpiresString"] == DATE
    drive.mount.remount()
    assert set(os.listxattr(path)) == {*HEADERS, "user.sos.expires"}
    assert {name: os.getxattr(path, name).decode() for name in HEADERS} == {k: v for k, (_, v) in HEADERS.items()}
    assert os.getxattr(path, "user.sos.expires") == DATE.encode()
    for name in (*HEADERS, "user.sos.expires"):
        os.removexattr(path, name)
    assert os.listxattr(path) == []
    settled(drive, path)
    found = drive.foreign.head(drive.key(path))
    assert found["ContentType"] == "text/plain"  # as the name tells: an object cannot be without
    assert not {"CacheControl", "ContentDisposition", "ContentLanguage", "Expires"} & found.keys()
    assert drive.stored(path) == b"body"


def test_the_type_that_the_name_tells_is_not_listed(drive: Drive) -> None:
    path = new(drive, "page.html")
    assert os.getxattr(path, "user.mime_type") == b"text/html"
    assert os.listxattr(path) == []
    (drive.here / "d").mkdir()
    assert os.listxattr(drive.here / "d") == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("user.sos.cache-control", b"a\nb"),
        ("user.sos.cache-control", b""),
        ("user.sos.content-language", b"\xff\xfe"),
        ("user.mime_type", b"text/plain\r\nx-amz-acl: public-read"),
        ("user.sos.expires", b"tomorrow"),
    ],
)
def test_what_no_header_can_be_is_refused(drive: Drive, name: str, value: bytes) -> None:
    path = new(drive)
    with fails(errno.EINVAL):
        os.setxattr(path, name, value)
    assert os.listxattr(path) == []
    path.chmod(0o600)
    settled(drive, path)
    assert drive.foreign.metadata(drive.key(path))["mode"] == str(stat.S_IFREG | 0o600)


def test_two_kilobytes_at_most(drive: Drive) -> None:
    path = new(drive)
    os.setxattr(path, "user.first", b"x" * 1000)
    with fails(errno.ENOSPC):
        os.setxattr(path, "user.second", b"y" * 1000)
    with fails(errno.ENOSPC):
        os.setxattr(path, "user.binary", b"\xff" * 800)  # 1,068 bytes as base64
    assert os.listxattr(path) == ["user.first"]
    settled(drive, path)
    assert drive.foreign.metadata(drive.key(path))["first"] == "x" * 1000


# What cannot be set


def test_read_only_and_foreign_namespaces(drive: Drive) -> None:
    path = new(drive)
    for name in ("etag", "version-id", "storage-class", "url", "presigned-url", "state"):
        with fails(errno.EPERM):
            os.setxattr(path, f"user.sos.{name}", b"x")
        with fails(errno.EPERM):
            os.removexattr(path, f"user.sos.{name}")
    with fails(errno.EOPNOTSUPP):
        os.setxattr(path, "user.sos.unknown", b"x")
    with fails(errno.ENODATA):
        os.getxattr(path, "user.sos.unknown")
    logged = drive.mount.log
    for name in ("trusted.x", "security.x"):  # `cp -a` tries that with each file
        with fails(errno.EOPNOTSUPP):
            os.setxattr(path, name, b"x")
    assert drive.mount.log == logged
    with fails(errno.EOPNOTSUPP):
        os.getxattr(path, "security.capability")
    with fails(errno.EOPNOTSUPP):
        os.setxattr(drive.mount.path, "user.x", b"x")


def test_directories_have_attributes(drive: Drive) -> None:
    path = drive.here / "d"
    path.mkdir(mode=0o750)
    os.setxattr(path, "user.color", b"blue")
    settled(drive, path)
    assert drive.foreign.metadata(drive.key(path) + "/")["color"] == "blue"
    drive.mount.remount()
    assert os.getxattr(path, "user.color") == b"blue"
    assert stat.S_IMODE(path.stat().st_mode) == 0o750


# What is read-only


def test_etag_url_and_storage_class(drive: Drive, server: Server) -> None:
    path = new(drive, "a b#c.txt")
    assert os.getxattr(path, "user.sos.etag").decode() == drive.foreign.head(drive.key(path))["ETag"].strip('"')
    assert os.getxattr(path, "user.sos.storage-class") == b"STANDARD"
    url = os.getxattr(path, "user.sos.url").decode()
    assert url.startswith(f"{server.endpoint}/{drive.foreign.bucket}/")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(url, timeout=20)
    assert refused.value.code == 403


def test_a_presigned_url_lets_anybody_read(drive: Drive) -> None:
    for name in ("plain", "a b#c%2F.txt", "ümläut", "+&=?"):
        path = new(drive, name, name.encode())
        url = os.getxattr(path, "user.sos.presigned-url").decode()
        assert "X-Amz-Expires=3600" in url
        with urllib.request.urlopen(url, timeout=20) as answer:
            assert answer.read() == name.encode()


def test_version_id_where_versions_are_kept(foreign: Foreign, mounter: Mounter) -> None:
    foreign.keep_versions()
    drive = mounter()
    path = new(drive)
    assert os.getxattr(path, "user.sos.version-id").decode() == foreign.head(drive.key(path))["VersionId"]


def test_state_tells_where_the_bytes_are(mounter: Mounter, proxy: Proxy) -> None:
    drive = mounter(proxy.endpoint)
    path = drive.here / "file"
    with path.open("wb") as file:
        file.write(b"bytes")
        file.flush()
        assert os.getxattr(path, "user.sos.state") == b"dirty"
        with proxy.broken(Delay(2.0), on("PUT")):
            closing = threading.Thread(target=lambda: os.fsync(file.fileno()))
            closing.start()
            eventually(lambda: os.getxattr(path, "user.sos.state") == b"uploading")
            closing.join()
    assert os.getxattr(path, "user.sos.state") == b"clean"


def test_state_tells_of_a_conflict(drive: Drive) -> None:
    path = new(drive)
    drive.mount.allow_log("was changed by another client")
    with path.open("r+b") as file:
        file.write(b"ours")
        file.flush()
        drive.foreign.put(drive.key(path), b"theirs")
        with fails(errno.ESTALE):
            os.fsync(file.fileno())
    eventually(lambda: os.getxattr(path, "user.sos.state") == b"conflict")


# What it costs


@pytest.fixture
def known(mounter: Mounter, proxy: Proxy) -> Drive:
    """A mount through the proxy with a file that is known already."""
    drive = mounter(proxy.endpoint)
    new(drive)
    proxy.settle()
    return drive


def test_many_changes_are_one_request(known: Drive, proxy: Proxy) -> None:
    path = known.here / "file.txt"
    with proxy.recording() as traffic:
        path.chmod(0o600)
        os.setxattr(path, "user.a", b"1")
        os.setxattr(path, "user.b", b"2")
        os.setxattr(path, "user.sos.cache-control", b"no-store")
        os.utime(path, ns=(1, 1))
        settled(known, path)
    assert traffic.tally() == {"COPY": 1}, str(traffic)
    found = known.foreign.head(known.key(path))
    assert (found["Metadata"]["a"], found["Metadata"]["b"], found["CacheControl"]) == ("1", "2", "no-store")


def test_attributes_of_a_new_file_go_with_its_bytes(known: Drive, proxy: Proxy) -> None:
    path = known.here / "new"
    with proxy.recording() as traffic:
        with path.open("wb") as file:
            file.write(b"bytes")
            os.setxattr(file.fileno(), "user.a", b"1")
            os.setxattr(file.fileno(), "user.mime_type", b"text/x-new")
        time.sleep(2)
    assert traffic.tally() == {"PUT": 1}, str(traffic)
    found = known.foreign.head(known.key(path))
    assert (found["Metadata"]["a"], found["ContentType"]) == ("1", "text/x-new")


def test_writing_asks_the_bucket_for_no_attribute(known: Drive, proxy: Proxy) -> None:
    path = known.here / "file.txt"
    with proxy.recording() as traffic, path.open("r+b", buffering=0) as file:
        for _ in range(50):
            file.write(b"x" * 4096)
    assert traffic.count("HEAD", "GET") == 0, str(traffic)


def test_nothing_is_asked_for_what_is_known(known: Drive, proxy: Proxy) -> None:
    path = known.here / "file.txt"
    os.setxattr(path, "user.a", b"1")
    settled(known, path)
    with proxy.recording() as traffic:
        assert os.listxattr(path) == ["user.a"]
        assert os.getxattr(path, "user.a") == b"1"
        os.getxattr(path, "user.sos.url")
        os.getxattr(path, "user.sos.presigned-url")
        os.getxattr(path, "user.sos.etag")
    assert traffic.tally() == {}, str(traffic)


# What other changes must not take away


def test_attributes_outlive_rewriting_and_renaming(drive: Drive) -> None:
    path, renamed = new(drive), drive.here / "renamed"
    os.setxattr(path, "user.a", b"1")
    os.setxattr(path, "user.sos.expires", DATE.encode())
    path.rename(renamed)
    renamed.write_bytes(b"another body")
    os.setxattr(renamed, "user.b", b"2")
    renamed.rename(path)  # with a change that is not in the bucket yet
    drive.mount.remount()
    assert {name: os.getxattr(path, name) for name in os.listxattr(path)} == {
        "user.a": b"1",
        "user.b": b"2",
        "user.sos.expires": DATE.encode(),
    }
    assert path.read_bytes() == b"another body"


def test_a_change_during_a_slow_upload_is_not_lost(mounter: Mounter, proxy: Proxy) -> None:
    drive = mounter(proxy.endpoint)
    path = drive.here / "file"
    with path.open("wb") as file:
        file.write(b"bytes")
        file.flush()
        with proxy.broken(Delay(1.5), on("PUT")):
            closing = threading.Thread(target=lambda: os.fsync(file.fileno()))
            closing.start()
            eventually(lambda: os.getxattr(path, "user.sos.state") == b"uploading")
            os.setxattr(path, "user.late", b"1")
            closing.join()
    settled(drive, path)
    assert drive.foreign.metadata(drive.key(path))["late"] == "1"


def test_a_change_outlives_a_crash(mounter: Mounter) -> None:
    drive = mounter()
    path, directory = new(drive), drive.here / "d"
    directory.mkdir()
    os.setxattr(path, "user.gone", b"1")
    os.setxattr(path, "user.sos.expires", DATE.encode())
    settled(drive, path)
    os.setxattr(path, "user.a", b"1")
    os.setxattr(path, "user.mime_type", b"text/x-a")
    os.removexattr(path, "user.gone")
    os.setxattr(directory, "user.d", b"1")
    drive.mount.kill()
    drive.mount.start()
    assert set(os.listxattr(path)) == {"user.a", "user.mime_type", "user.sos.expires"}
    assert os.getxattr(directory, "user.d") == b"1"
    eventually(lambda: drive.foreign.metadata(drive.key(path)).get("a") == "1")
    assert drive.foreign.head(drive.key(path))["ContentType"] == "text/x-a"


# Tools


def test_getfattr_and_setfattr(drive: Drive) -> None:
    new(drive, "f")
    drive.run("setfattr", "-n", "user.Comment", "-v", "a comment", "f")
    drive.run("setfattr", "-n", "user.mime_type", "-v", "text/x-f", "f")
    shown = drive.run("getfattr", "-d", "f").splitlines()
    assert sorted(shown[1:3]) == ['user.Comment="a comment"', 'user.mime_type="text/x-f"']
    dump = drive.run("getfattr", "-d", "-e", "hex", "f")
    new(drive, "g")
    (drive.mount.base / "dump").write_text(dump.replace("# file: f", "# file: g"))
    drive.run("setfattr", f"--restore={drive.mount.base / 'dump'}")
    assert os.getxattr(drive.here / "g", "user.Comment") == b"a comment"
    drive.run("setfattr", "-x", "user.Comment", "f")
    assert os.listxattr(drive.here / "f") == ["user.mime_type"]


def test_cp_preserves_attributes(drive: Drive, tmp_path: Path) -> None:
    path = new(drive, "f")
    os.setxattr(path, "user.Comment", b"\x00\xff")
    os.setxattr(path, "user.sos.cache-control", b"no-store")
    drive.run("cp", "--preserve=xattr", "f", "g")
    drive.run("cp", "-a", "f", tmp_path / "out")
    drive.run("cp", "-a", tmp_path / "out", "back")
    for copy in ("g", "back"):
        assert os.getxattr(drive.here / copy, "user.Comment") == b"\x00\xff"
        assert os.getxattr(drive.here / copy, "user.sos.cache-control") == b"no-store"


def test_rsync_keeps_attributes_and_comes_to_rest(drive: Drive, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "d").mkdir(parents=True)
    for name in ("f.txt", "d/page.html", "d/raw"):
        (source / name).write_bytes(name.encode())
    os.setxattr(source / "f.txt", "user.Key_1", b"value")
    os.setxattr(source / "d", "user.dir", b"yes")
    os.setxattr(source / "d/raw", "user.mime_type", b"image/x-raw")
    drive.run("rsync", "-rptX", f"{source}/", ".")
    assert os.getxattr(drive.here / "f.txt", "user.Key_1") == b"value"
    assert os.getxattr(drive.here / "d", "user.dir") == b"yes"
    assert os.getxattr(drive.here / "d/raw", "user.mime_type") == b"image/x-raw"
    assert drive.run("rsync", "-rptXi", f"{source}/", ".") == ""
    drive.mount.remount()
    assert drive.run("rsync", "-rptXi", f"{source}/", ".") == ""
    os.removexattr(source / "f.txt", "user.Key_1")
    assert drive.run("rsync", "-rptXi", f"{source}/", ".") != ""
    assert os.listxattr(drive.here / "f.txt") == []
    drive.run("rsync", "-rptX", "./", f"{tmp_path / 'out'}/")
    assert os.getxattr(tmp_path / "out/d/raw", "user.mime_type") == b"image/x-raw"
    assert names(tmp_path / "out") == ["d", "f.txt"]
