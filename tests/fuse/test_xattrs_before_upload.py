"""Extended attributes of files that the bucket has not seen: they are there at once, and go up with the bytes."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import Mounter
from tests.support.drive import Drive, eventually, fails, names, sync
from tests.support.faults import Answer, Hang
from tests.support.foreign import Foreign
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.traffic import Request

JOURNAL = ("--durability", "journal")
DATE = "Thu, 01 Dec 2044 16:00:00 GMT"
HEADERS = {
    "user.mime_type": ("ContentType", "text/x-mine"),
    "user.sos.cache-control": ("CacheControl", "max-age=7"),
    "user.sos.content-disposition": ("ContentDisposition", "attachment"),
    "user.sos.content-encoding": ("ContentEncoding", "gzip"),
    "user.sos.content-language": ("ContentLanguage", "de"),
    "user.sos.expires": ("ExpiresString", DATE),
}
OWN = {"user.colour": b"blue", "user.Author_1": b"me"}
ALL = {name: value.encode() for name, (_, value) in HEADERS.items()} | OWN
LARGE = bytes(20 << 20)


@pytest.fixture
def server(moto: Server) -> Server:
    """One is enough: what is tested happens before it."""
    return moto


@contextmanager
def created(path: Path) -> Iterator[int]:
    """A file that is open for writing, and not closed yet."""
    file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    try:
        yield file
    finally:
        os.close(file)


def xattrs(path: Path | int) -> dict[str, bytes]:
    """All that are listed, with their values."""
    return {name: os.getxattr(path, name) for name in os.listxattr(path)}


def set_all(path: Path | int) -> None:
    for name, value in ALL.items():
        os.setxattr(path, name, value)


def check_stored(foreign: Foreign, key: str) -> None:
    """The object has them all."""
    found = foreign.head(key)
    told = {name: found.get(field, "") for name, (field, _) in HEADERS.items()}
    assert told == {name: value for name, (_, value) in HEADERS.items()}
    assert found["Metadata"]["colour"] == "blue"
    assert found["Metadata"]["xattr--41uthor-5f1"] == "me"


def use(path: Path | int, *, kind: bytes) -> None:
    """What setfattr and getfattr do to a file of this type by its name, with each answer; leaves `ALL`."""
    assert xattrs(path) == {}
    assert os.getxattr(path, "user.mime_type") == kind, "what its name tells"
    for name in ALL.keys() - {"user.mime_type"}:
        with fails(errno.ENODATA):
            os.getxattr(path, name)
        with fails(errno.ENODATA):
            os.setxattr(path, name, ALL[name], os.XATTR_REPLACE)
        with fails(errno.ENODATA):
            os.removexattr(path, name)
        os.setxattr(path, name, ALL[name], os.XATTR_CREATE)
        assert os.getxattr(path, name) == ALL[name]
        assert name in os.listxattr(path)
        with fails(errno.EEXIST):
            os.setxattr(path, name, ALL[name], os.XATTR_CREATE)
        os.removexattr(path, name)
        with fails(errno.ENODATA):
            os.getxattr(path, name)
        assert os.listxattr(path) == []
    with fails(errno.EEXIST):
        os.setxattr(path, "user.mime_type", b"a/b", os.XATTR_CREATE)
    os.setxattr(path, "user.mime_type", b"a/b", os.XATTR_REPLACE)
    assert xattrs(path) == {"user.mime_type": b"a/b"}
    os.removexattr(path, "user.mime_type")
    assert os.getxattr(path, "user.mime_type") == kind
    assert os.listxattr(path) == []
    with fails(errno.EINVAL):
        os.setxattr(path, "user.sos.expires", b"tomorrow")
    set_all(path)
    assert xattrs(path) == ALL


@pytest.mark.parametrize("options", [(), JOURNAL], ids=["bucket", "journal"])
def test_before_the_close(mounter: Mounter, foreign: Foreign, options: tuple[str, ...]) -> None:
    drive = mounter("", *options)
    for name, body in (("small.html", b"body"), ("empty.html", b""), ("large.html", LARGE)):
        path = drive.here / name
        with created(path) as file:
            os.write(file, body)
            use(path, kind=b"text/html")
        assert xattrs(path) == ALL
    (drive.here / "plain.html").write_bytes(b"")
    with created(drive.here / "header.html") as file:
        os.setxattr(file, "user.sos.cache-control", b"no-store")
    sync(drive.here)
    for name in ("small.html", "empty.html", "large.html"):
        check_stored(foreign, name)
    assert foreign.head("plain.html")["ContentType"] == "text/html"
    found = foreign.head("header.html")
    assert (found["ContentType"], found["CacheControl"]) == ("text/html", "no-store"), "a header alone keeps the type"


def is_upload(request: Request) -> bool:
    """Whether a request stores a file of ours; a mount does not begin without its scratch key, and its directories."""
    return request.op in ("PUT", "CREATE_MULTIPART") and request.key.endswith(("html", "txt", "tmp"))


def journaled(mounter: Mounter, proxy: Proxy) -> Drive:
    """A mount whose uploads do not end."""
    drive = mounter(proxy.endpoint, *JOURNAL)
    proxy.inject(Hang(), is_upload)
    return drive


@pytest.mark.promise(3)
def test_between_close_and_upload_and_over_a_crash(mounter: Mounter, foreign: Foreign, proxy: Proxy) -> None:
    drive = journaled(mounter, proxy)
    sizes = {"small.html": b"body", "empty.html": b"", "large.html": LARGE}
    for name, body in sizes.items():
        (drive.here / name).write_bytes(body)
        use(drive.here / name, kind=b"text/html")
    (drive.here / "d").mkdir()
    assert os.getxattr(drive.here / "d", "user.mime_type") == b"application/x-directory"
    os.setxattr(drive.here / "d", "user.colour", b"blue")
    (drive.here / "removed.txt").write_bytes(b"body")
    os.setxattr(drive.here / "removed.txt", "user.sos.cache-control", b"no-store")
    os.removexattr(drive.here / "removed.txt", "user.sos.cache-control")
    drive.mount.kill()
    proxy.drop_connections()
    drive.mount.start()
    for name in sizes:
        assert xattrs(drive.here / name) == ALL, name
    assert xattrs(drive.here / "removed.txt") == {}
    assert os.getxattr(drive.here / "removed.txt", "user.mime_type") == b"text/plain"
    os.setxattr(drive.here / "removed.txt", "user.size", b"small")
    assert foreign.keys() == ["d/"]
    proxy.heal()
    proxy.drop_connections()
    drive.mount.allow_log("not in the bucket")
    drive.mount.stop()
    for name, body in sizes.items():
        check_stored(foreign, name)
        assert foreign.get(name) == body
    assert foreign.head("removed.txt")["ContentType"] == "text/plain"
    assert "CacheControl" not in foreign.head("removed.txt")
    assert foreign.metadata("removed.txt")["size"] == "small"
    assert foreign.metadata("d/")["colour"] == "blue"


def test_a_rename_before_the_upload_keeps_them(mounter: Mounter, foreign: Foreign, proxy: Proxy) -> None:
    """As a program does that writes a new file, and puts it in the place of the old one."""
    foreign.client.put_object(
        Bucket=foreign.bucket, Key="over.html", Body=b"old", CacheControl="no-store", Metadata={"colour": "red"}
    )
    drive = mounter(proxy.endpoint, *JOURNAL, "--ttl", "1")
    drive.mount.allow_log("not in the bucket")
    assert os.getxattr(drive.here / "over.html", "user.colour") == b"red"
    proxy.inject(Answer(503, "SlowDown"), is_upload)
    for name in ("moved.tmp", "over.tmp", "bare.tmp"):
        (drive.here / name).write_bytes(b"body")
    set_all(drive.here / "moved.tmp")
    (drive.here / "moved.tmp").rename(drive.here / "moved.html")
    assert xattrs(drive.here / "moved.html") == ALL
    os.setxattr(drive.here / "over.tmp", "user.sos.content-language", b"de")
    (drive.here / "over.tmp").rename(drive.here / "over.html")
    (drive.here / "bare.tmp").rename(drive.here / "bare.html")
    names(drive.here)
    for _ in range(2):
        assert xattrs(drive.here / "over.html") == {"user.sos.content-language": b"de"}, "nothing of the old one"
        assert os.getxattr(drive.here / "over.html", "user.mime_type") == b"text/html"
        eventually(lambda: proxy.count("PUT") > 5)
        drive.mount.kill()
        drive.mount.start()
    proxy.heal()
    drive.mount.stop()
    check_stored(foreign, "moved.html")
    found = foreign.head("over.html")
    assert (found["ContentType"], found["ContentLanguage"]) == ("text/html", "de")
    assert "CacheControl" not in found
    assert "colour" not in found["Metadata"]
    assert foreign.get("over.html") == b"body"
    assert foreign.head("bare.html")["ContentType"] == "text/html"
