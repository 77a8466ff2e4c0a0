"""`sosfs headers` and `sosfs metadata`: of files and trees, and that all else of an object stays."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.cli.test_du import refused
from tests.conftest import Mounter, access_to
from tests.support.drive import Drive, eventually, sync
from tests.support.foreign import Foreign, numbered
from tests.support.mounting import Mount, run_sosfs
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.traffic import Op
from tests.support.watchdog import Watchdog


def said(drive: Drive, *arguments: str | Path, code: int = 0) -> str:
    done = run_sosfs(arguments, drive.mount.environment)
    assert done.returncode == code, f"{done.stdout}{done.stderr}"
    return done.stdout


def test_a_header_of_a_tree(foreign: Foreign, mounter: Mounter, proxy: Proxy) -> None:
    foreign.put_all(numbered("site/sub/f", 80) | {"site/page.html": b"<html>", "other": b"other"})
    drive = mounter(proxy.endpoint)
    site = drive.here / "site"
    (site / "link").symlink_to("page.html")
    (site / "page.html").chmod(0o640)
    assert said(drive, "headers", "set", "-r", "Cache-Control=max-age=60", site) == "81 files changed, 0 as before\n"
    eventually(lambda: all(foreign.head(key).get("CacheControl") == "max-age=60" for key in foreign.keys("site/sub/")))
    eventually(lambda: foreign.head("site/page.html").get("CacheControl") == "max-age=60")
    assert "CacheControl" not in foreign.head("other")
    assert (site / "page.html").stat().st_mode & 0o777 == 0o640
    assert foreign.get("site/page.html") == b"<html>"
    with proxy.recording() as traffic:
        again = said(drive, "headers", "set", "-r", "cache-control=max-age=60", site)
    assert again == "0 files changed, 81 as before\n"
    assert not traffic.of(Op.COPY, Op.PUT), str(traffic)
    assert said(drive, "headers", "unset", "-r", "Cache-Control", site / "sub") == "80 files changed, 0 as before\n"
    found = said(drive, "headers", "get", "-r", "Cache-Control", drive.here)
    assert found == f"# file: {site}/page.html\nCache-Control: max-age=60\n\n", "only what has it is found"
    eventually(lambda: "CacheControl" not in foreign.head("site/sub/f0007"))


def test_one_file(drive: Drive) -> None:
    path = drive.here / "page.html"
    path.write_bytes(b"<html>")
    said(drive, "headers", "set", "Content-Language=de", path)
    said(drive, "headers", "set", "expires=Thu, 01 Dec 2044 16:00:00 GMT", path)
    said(drive, "metadata", "set", "Author=Ä. Writer", path)
    assert said(drive, "headers", "get", "content-language", path) == "de\n"
    assert said(drive, "headers", "get", "--all", path).splitlines() == [
        "Content-Type: text/html",
        "Content-Language: de",
        "Expires: Thu, 01 Dec 2044 16:00:00 GMT",
    ]
    assert said(drive, "metadata", "get", "--all", path) == "author: Ä. Writer\n"
    sync(path)
    eventually(lambda: foreign_language(drive, path) == "de")
    assert "author" in drive.foreign.metadata(drive.key(path))
    said(drive, "metadata", "unset", "author", path)
    said(drive, "headers", "unset", "Content-Language", path)
    eventually(lambda: foreign_language(drive, path) == "" and "author" not in drive.foreign.metadata(drive.key(path)))
    assert "it has no author" in run_sosfs(["metadata", "get", "author", path], drive.mount.environment).stderr


def foreign_language(drive: Drive, path: Path) -> str:
    return str(drive.foreign.head(drive.key(path)).get("ContentLanguage", ""))


def test_types_are_guessed_anew(foreign: Foreign, mounter: Mounter, proxy: Proxy) -> None:
    def put(key: str, kind: str) -> None:
        foreign.client.put_object(Bucket=foreign.bucket, Key=key, Body=b"x", ContentType=kind, Metadata={"a": "b"})

    put("t/page.html", "application/octet-stream")
    put("t/right.css", "text/css")
    put("t/nameless", "application/x-own")
    drive = mounter(proxy.endpoint)
    with proxy.recording() as traffic:
        assert said(drive, "headers", "set", "-r", "--guess", drive.here / "t") == "1 file changed, 2 as before\n"
    assert len(traffic.of(Op.COPY)) <= 1, str(traffic)
    eventually(lambda: foreign.head("t/page.html")["ContentType"] == "text/html")
    assert foreign.head("t/nameless")["ContentType"] == "application/x-own", "its name tells none"
    assert foreign.metadata("t/page.html")["a"] == "b"
    said(drive, "headers", "set", "Content-Type=text/plain", drive.here / "t/page.html")
    said(drive, "headers", "unset", "Content-Type", drive.here / "t/page.html")
    assert said(drive, "headers", "get", "Content-Type", drive.here / "t/page.html") == "text/html\n"


@pytest.mark.parametrize("server", ["ceph"], indirect=True)  # it enforces ACLs
def test_changes_on_their_way_and_the_acl_are_kept(foreign: Foreign, mounter: Mounter) -> None:
    foreign.put("file", b"before")
    foreign.client.put_object_acl(Bucket=foreign.bucket, Key="file", ACL="public-read")
    drive = mounter()
    path = drive.here / "file"
    with path.open("r+b") as file:
        file.write(b"after!")
        said(drive, "metadata", "set", "project=apollo", path)
        file.write(b" and more")
    sync(path)
    eventually(lambda: foreign.get("file") == b"after! and more")
    assert foreign.metadata("file")["project"] == "apollo"
    grants = foreign.client.get_object_acl(Bucket=foreign.bucket, Key="file")["Grants"]
    assert any(grant["Grantee"].get("URI", "").endswith("AllUsers") for grant in grants)


def test_a_word_may_stand_behind_the_option(drive: Drive) -> None:
    (drive.here / "f").touch()
    assert said(drive, "metadata", "set", "a=b", "-r", drive.here) == "1 file changed, 0 as before\n"
    assert os.getxattr(drive.here / "f", "user.a") == b"b"


@pytest.mark.parametrize("server", ["moto"], indirect=True)
def test_on_a_mount_of_all_buckets(server: Server, foreign: Foreign, watchdog: Watchdog, tmp_path: Path) -> None:
    foreign.put("d/file", b"file")
    with Mount(access_to(server), "", tmp_path, watchdog) as mount:
        drive = Drive(mount, foreign, mount.path)
        told = said(drive, "metadata", "set", "-r", "a=b", mount.path / foreign.bucket)
        assert told == "1 file changed, 0 as before\n"
    assert foreign.metadata("d/file")["a"] == "b"


def test_bad_input_is_one_line_and_sends_nothing(foreign: Foreign, mounter: Mounter, proxy: Proxy) -> None:
    foreign.put("file", b"file")
    drive = mounter(proxy.endpoint)
    path = drive.here / "file"
    with proxy.recording() as traffic:
        assert "did you mean Content-Type?" in refused(drive, "headers", "set", "Contet-Type=a/b", path, code=2)
        assert "there are Content-Type, " in refused(drive, "headers", "get", "X-Mine", path, code=2)
        assert "is not NAME=VALUE" in refused(drive, "headers", "set", "Content-Type", path, code=2)
        assert "HTTP date" in refused(drive, "headers", "set", "Expires=soon", path, code=2)
        assert "control character" in refused(drive, "headers", "set", "Cache-Control=a\nb", path, code=2)
        assert "unset' removes it" in refused(drive, "metadata", "set", "a=", path, code=2)
        assert "no name of metadata" in refused(drive, "metadata", "set", "a b=c", path, code=2)
        assert "no name of metadata" in refused(drive, "metadata", "set", "sos.acl=private", path, code=2)
        assert "chmod" in refused(drive, "metadata", "unset", "mode", path, code=2)
        assert "at most 2048" in refused(drive, "metadata", "set", f"a={'x' * 3000}", path, code=2)
        assert "of which file?" in refused(drive, "headers", "unset", "Expires", code=2)
        assert "not in a mount" in refused(drive, "headers", "set", "Content-Language=de", "/etc/passwd")
    assert not traffic.requests, str(traffic)
    (drive.here / "d").mkdir()
    assert "-r does it" in refused(drive, "metadata", "set", "a=b", drive.here / "d")
    os.mkfifo(drive.here / "fifo")
    done = run_sosfs(["metadata", "set", "a=b", drive.here / "fifo"], drive.mount.environment)
    assert (done.returncode, "no regular file" in done.stderr) == (1, True), done.stderr
