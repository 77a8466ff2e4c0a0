"""`sosfs link`: links that others can follow, made without a request, and for nobody but who mounted and root."""

from __future__ import annotations

import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from sosfs.config.credentials import Credentials
from sosfs.s3.endpoint import S3Target
from sosfs.s3.object_urls import Addressing, Links
from tests.cli.test_du import refused
from tests.conftest import HURRY, Mounter, access_to
from tests.support.drive import Drive, eventually, sync
from tests.support.faults import Answer
from tests.support.foreign import Foreign
from tests.support.mounting import Mount, run_sosfs
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.traffic import Op, on
from tests.support.watchdog import Watchdog

WEEK = 7 * 86_400


def link(drive: Drive, *arguments: str | Path) -> str:
    done = run_sosfs(["link", *arguments], drive.mount.environment)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1, "nothing but the link, for scripts"
    return done.stdout.strip()


def expires(url: str) -> int:
    return int(parse_qs(urlsplit(url).query)["X-Amz-Expires"][0])


def fetched(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=20) as answer:
        found: bytes = answer.read()
    return found


def test_a_link_downloads(drive: Drive) -> None:
    for name in ("plain", "a b#c%2F.txt", "ümläut", "+&=?"):
        (drive.here / name).write_bytes(name.encode())
        sync(drive.here / name)
        url = link(drive, "--expires", "15m", drive.here / name)
        assert expires(url) == 900
        assert fetched(url) == name.encode()
    assert expires(link(drive, drive.here / "plain")) == 3600, "--link-lifetime"
    assert expires(link(drive, "--expires", "7d", drive.here / "plain")) == WEEK
    assert expires(link(drive, "--expires", "60", drive.here / "plain")) == 60


@pytest.mark.parametrize("server", ["ceph"], indirect=True)  # it checks signatures
def test_a_link_uploads_to_a_name_that_is_not_there(drive: Drive) -> None:
    path = drive.here / "inbox/a b.txt"
    url = link(drive, "--put", "--expires", "2h", path)
    source = drive.mount.home / "upload"
    source.write_bytes(b"from outside")
    subprocess.run(["curl", "-sf", "-T", source, url], check=True, timeout=30)
    assert drive.stored(path) == b"from outside"
    with pytest.raises(urllib.error.HTTPError) as denied:
        fetched(url)
    assert denied.value.code == 403, "it is good for an upload alone"


def test_making_one_sends_nothing(foreign: Foreign, mounter: Mounter, proxy: Proxy) -> None:
    foreign.put("d/file", b"file")
    drive = mounter(proxy.endpoint)
    with proxy.recording() as traffic:
        url = link(drive, drive.here / "d/file")
        link(drive, "--put", drive.here / "new/file")
    assert not traffic.requests, str(traffic)
    assert fetched(url) == b"file"


def test_who_has_seen_the_directory_hears_of_a_name_that_is_not_there(mounter: Mounter, foreign: Foreign) -> None:
    foreign.put("d/file", b"file")
    drive = mounter("", "--ttl", "600")
    assert [path.name for path in drive.here.joinpath("d").iterdir()] == ["file"]
    assert "No such file" in refused(drive, "link", drive.here / "d/fiel")
    assert "a directory" in refused(drive, "link", drive.here / "d")
    assert link(drive, "--put", drive.here / "d/fiel")


def test_what_is_not_sent_yet_is_told(foreign: Foreign, mounter: Mounter, proxy: Proxy) -> None:
    foreign.put("file", b"before")
    drive = mounter(proxy.endpoint, *HURRY, "--durability", "journal")
    drive.mount.allow_log(r"WARNING|ERROR")
    proxy.inject(Answer(403, "AccessDenied"), on(Op.PUT))
    (drive.here / "file").write_bytes(b"after")

    def is_told() -> bool:
        return "not in the bucket yet" in run_sosfs(["link", drive.here / "file"], drive.mount.environment).stderr

    eventually(is_told)
    proxy.heal()
    run_sosfs(["retry", drive.here], drive.mount.environment)
    eventually(lambda: not is_told())


@pytest.mark.parametrize("server", ["ceph"], indirect=True)  # it enforces ACLs
def test_public_says_whether_anybody_may_read(foreign: Foreign, mounter: Mounter, proxy: Proxy) -> None:
    foreign.put("secret", b"secret")
    foreign.put("open", b"open")
    foreign.client.put_object_acl(Bucket=foreign.bucket, Key="open", ACL="public-read")
    drive = mounter(proxy.endpoint)
    with proxy.recording() as traffic:
        closed = run_sosfs(["link", "--public", drive.here / "secret"], drive.mount.environment)
    assert [request.op for request in traffic.requests] == [Op.GET_ACL]
    assert "lets nobody read it" in closed.stderr
    with pytest.raises(urllib.error.HTTPError):
        fetched(closed.stdout.strip())
    opened = run_sosfs(["link", "--public", drive.here / "open"], drive.mount.environment)
    assert opened.stderr == "sosfs: anybody may read it, by its ACL\n"
    assert fetched(opened.stdout.strip()) == b"open"
    assert refused(drive, "link", "--public", drive.here / "nothing")


@pytest.mark.parametrize("server", ["ceph"], indirect=True)
def test_without_a_key_there_is_a_plain_link_only(
    server: Server, foreign: Foreign, watchdog: Watchdog, tmp_path: Path
) -> None:
    foreign.client.put_bucket_acl(Bucket=foreign.bucket, ACL="public-read")
    foreign.client.put_object(Bucket=foreign.bucket, Key="open", Body=b"open", ACL="public-read")
    with Mount(access_to(server), foreign.bucket, tmp_path, watchdog, ("--anonymous",)) as mount:
        drive = Drive(mount, foreign, mount.path)
        assert "without a key nothing can be signed" in refused(drive, "link", mount.path / "open")
        done = run_sosfs(["link", "--public", mount.path / "open"], mount.environment)
        assert fetched(done.stdout.strip()) == b"open"
        assert "not known" in done.stderr


def test_bad_input_is_one_line_and_sends_nothing(mounter: Mounter, foreign: Foreign, proxy: Proxy) -> None:
    foreign.put("file", b"file")
    drive = mounter(proxy.endpoint)
    path = drive.here / "file"
    with proxy.recording() as traffic:
        for time in ("0", "0s", "8d", "-5", "soon", "", "99999999999d"):
            assert "--expires" in refused(drive, "link", f"--expires={time}", path, code=2)
        assert "never expires" in refused(drive, "link", "--public", "--expires", "1h", path, code=2)
        assert "not in a mount" in refused(drive, "link", drive.mount.home / "file")
        assert "a directory" in refused(drive, "link", drive.here)
        assert "control file" in refused(drive, "link", drive.here / ".sosfs/status")
    assert not traffic.requests, str(traffic)


def test_all_buckets_and_a_prefix(
    server: Server, foreign: Foreign, mounter: Mounter, watchdog: Watchdog, tmp_path: Path
) -> None:
    foreign.put("p/file", b"file")
    below = mounter("", source=f"{foreign.bucket}/p")
    assert fetched(link(below, below.here / "file")) == b"file"
    with Mount(access_to(server), "", tmp_path / "all", watchdog) as mount:
        drive = Drive(mount, foreign, mount.path)
        assert fetched(link(drive, mount.path / foreign.bucket / "p/file")) == b"file"
        assert "directory" in refused(drive, "link", mount.path / foreign.bucket)


def links(endpoint: str, bucket: str) -> Links:
    class Keys:
        def current(self) -> Credentials:
            return Credentials("key", "secret")

        def refresh(self) -> Credentials:
            return self.current()

    return Links(S3Target(bucket, endpoint, "ch-gva-2", Keys()), 60)


def test_the_bucket_in_the_name_of_the_host() -> None:
    made = links("https://sos-ch-gva-2.exo.io", "mine").presigned("a b/c", addressing=Addressing.VIRTUAL_HOST)
    assert made.startswith("https://mine.sos-ch-gva-2.exo.io/a%20b/c?")
    assert "X-Amz-SignedHeaders=host&" in made
    for endpoint, bucket in (("https://sos-ch-gva-2.exo.io", "my.bucket"), ("http://127.0.0.1:80", "mine")):
        with pytest.raises(OSError, match=r"endpoint is an address|no certificate"):
            links(endpoint, bucket).url("a", Addressing.VIRTUAL_HOST)
