"""All buckets of an account as directories of one mount: how they come and go, and that nothing of any is lost."""

from __future__ import annotations

import errno
import itertools
import json
import os
import random
import signal
import subprocess
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import cast
from unittest.mock import AsyncMock, Mock

import pytest
import trio

from sosfs.buckets.member import Member
from sosfs.buckets.registry import BucketRegistry
from sosfs.journal.journal import Journal
from sosfs.s3 import listing_answers
from sosfs.s3.protocol import Bucket
from tests.conftest import FAILED, access_to, new_bucket
from tests.journal.test_journal import SMALL
from tests.support.drive import eventually, fails, names, tree
from tests.support.faults import Answer, Hang
from tests.support.foreign import Foreign
from tests.support.mounting import Access, Mount, complaints, run_sosfs
from tests.support.proxy import Proxy
from tests.support.servers import Server, client_of
from tests.support.traffic import Op, Predicate, Request
from tests.support.waiting import until
from tests.support.watchdog import Watchdog

JOURNAL = ("--durability", "journal")
LATE = "not in the bucket|changes to bucket|wait for the store"
Account = Callable[..., Mount]
on_both = pytest.mark.parametrize("server", ["moto", "ceph"], indirect=True)


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest) -> Server:
    """One server is enough where a test does not say otherwise."""
    found: Server = request.getfixturevalue(getattr(request, "param", "moto"))
    return found


@pytest.fixture
def account(
    request: pytest.FixtureRequest, server: Server, proxy: Proxy, watchdog: Watchdog, tmp_path: Path
) -> Iterator[Account]:
    """Mounts all buckets, through the proxy: `account(*options)`."""
    numbers = itertools.count()
    mounts: list[Mount] = []

    def mount(*options: str, endpoint: str = "") -> Mount:
        base = tmp_path / f"account{next(numbers)}"
        mounted = Mount(access_to(server, endpoint or proxy.endpoint), "", base, watchdog, options)
        mounted.start()
        mounts.append(mounted)
        return mounted

    yield mount
    for mounted in mounts:
        if mounted.running and not request.node.stash.get(FAILED, True):
            mounted.stop()
        else:
            print(mounted.log[-8000:])
        mounted.clear()


@pytest.fixture(scope="module")
def common(server: Server, watchdog: Watchdog, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """One mount for the tests that break nothing. A new bucket is seen soon."""
    base = tmp_path_factory.mktemp("common")
    with Mount(access_to(server), "", base, watchdog, ("--ttl", "0.5")) as mount:
        yield mount


@pytest.fixture
def everything(common: Mount, foreign: Foreign, other: Foreign) -> Mount:
    """The common mount, in which the buckets of the test are seen by now."""
    until(lambda: {foreign.bucket, other.bucket} <= set(names(common.path)), "new buckets are listed")
    return common


@pytest.fixture
def other(server: Server) -> Foreign:
    """A second bucket."""
    return new_bucket(server)


def unused() -> str:
    """A name that no bucket has."""
    return f"made-{uuid.uuid4().hex[:16]}"


def told(mount: Mount, where: str = "") -> dict[str, object]:
    """The status that the mount, or a bucket of it, has in its control tree."""
    found: dict[str, object] = json.loads((mount.path / where / ".sosfs/status").read_text())
    return found


def at(bucket: str, *methods: str) -> Predicate:
    """The requests on a bucket, or only those of some methods."""

    def matches(request: Request) -> bool:
        return request.bucket == bucket and (not methods or request.method in methods)

    return matches


def test_every_bucket_is_a_directory(account: Account, foreign: Foreign, other: Foreign) -> None:
    foreign.put("d/file", b"one")
    other.put("file", b"two")
    mount = account()
    assert {foreign.bucket, other.bucket} <= set(names(mount.path))
    subprocess.run(["ls", "-la", "--color=always", mount.path], check=True, capture_output=True)
    assert told(mount)["buckets"] == {}, "looking at the buckets enters none"
    assert (mount.path / foreign.bucket / "d/file").read_bytes() == b"one"
    assert (mount.path / other.bucket / "file").read_bytes() == b"two"
    for bucket in (foreign, other):
        (mount.path / bucket.bucket / "new").write_bytes(bucket.bucket.encode())
        assert bucket.get("new") == bucket.bucket.encode()
    numbers = [path.stat().st_ino for path in (mount.path, *mount.path.iterdir(), *mount.path.glob("e2e-*/file"))]
    assert len(set(numbers)) == len(numbers)
    with fails(errno.ENOENT):
        (mount.path / "no-such-bucket").stat()


@on_both
def test_mkdir_makes_a_bucket_and_rmdir_removes_it(everything: Mount, server: Server) -> None:
    mount, name = everything, unused()
    here = mount.path / name
    client = client_of(server)
    for body in (b"first", b"second"):
        here.mkdir()
        assert name in {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
        assert name in names(mount.path)
        with fails(errno.EEXIST):
            here.mkdir()
        (here / "d").mkdir()
        (here / "d/file").write_bytes(body)
        assert client.get_object(Bucket=name, Key="d/file")["Body"].read() == body
        with fails(errno.ENOTEMPTY):
            here.rmdir()
        subprocess.run(["rm", "-r", here], check=True)
        assert name not in {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
        with fails(errno.ENOENT):
            here.stat()
        assert name not in names(mount.path)
    assert not list(mount.cache.glob(f"*/{name}*")), "nothing is kept of a bucket that is gone"


def test_what_is_not_stored_yet_keeps_a_bucket(account: Account, proxy: Proxy, foreign: Foreign) -> None:
    mount = account(*JOURNAL)
    mount.allow_log(LATE)
    here = mount.path / foreign.bucket
    names(here)
    proxy.inject(Hang(), at(foreign.bucket, "PUT"))
    (here / "file").write_bytes(b"precious")
    with fails(errno.ENOTEMPTY):
        here.rmdir()
    proxy.heal()
    proxy.drop_connections()
    eventually(lambda: foreign.exists("file"))
    foreign.delete("file")


def test_what_is_closed_in_a_bucket_while_the_server_removes_it_is_kept(
    account: Account, proxy: Proxy, foreign: Foreign
) -> None:
    """It is stored when a bucket of this name is there again, and until then `sosfs status` counts it."""
    foreign.put("d/old", b"old")
    mount = account(*JOURNAL, "--patience", "3")
    mount.allow_log(f"{LATE}|was removed meanwhile|changes to bucket")
    here, busy = mount.path / foreign.bucket, Answer(503, "SlowDown")
    assert names(here / "d") == ["old"]
    foreign.delete("d/old")  # the kernel knows the directory
    removal = threading.Thread(target=here.rmdir)
    with proxy.broken(busy, at(foreign.bucket, "PUT")):
        with proxy.broken(busy, at(foreign.bucket, "DELETE")) as removed:
            removal.start()
            until(lambda: removed.hits > 0, "the server is asked to remove the bucket")
            (here / "d" / "new").write_bytes(b"precious")
        removal.join()
    with fails(errno.ENOENT):
        here.stat()
    assert told(mount)["pending_files"] == 1
    here.mkdir()
    names(here)
    eventually(lambda: foreign.exists("d/new"))
    assert foreign.get("d/new") == b"precious"
    foreign.delete("d/new")


@pytest.mark.parametrize("is_closed", [True, False], ids=["closed", "open"])
def test_what_nobody_has_closed_when_the_server_removes_its_bucket_is_not_waited_for(
    tmp_path: Path, is_closed: bool
) -> None:
    """It was opened meanwhile, and nobody was told that it is safe."""
    state = tmp_path / "state"
    with closing(Journal(state, "http://server bucket ")) as journal:
        if is_closed:
            journal.save_draft(0, SMALL)
    registry = SimpleNamespace(
        _waiting={},
        _named={},
        _place=AsyncMock(),
        _settings_of=Mock(return_value=SimpleNamespace(state_dir=state)),
        _leave=AsyncMock(return_value=1),
        account=AsyncMock(),
        bucket_list=Mock(),
    )
    trio.run(BucketRegistry.remove, cast(BucketRegistry, registry), Member(0, Bucket("bucket")))
    assert (state.exists(), list(registry._waiting)) == (is_closed, ["state"] if is_closed else [])


def test_a_file_that_is_open_keeps_its_bucket(everything: Mount, foreign: Foreign) -> None:
    here = everything.path / foreign.bucket
    with (here / "file").open("w+b") as file:
        file.write(b"still needed")
        (here / "file").unlink()
        with fails(errno.EBUSY):
            here.rmdir()
        file.seek(0)
        assert file.read() == b"still needed"
    eventually(lambda: _gone(here))


def _gone(directory: Path) -> bool:
    try:
        directory.rmdir()
    except OSError as error:
        assert error.errno == errno.EBUSY, error  # closing is told a moment later
    return not directory.exists()


def test_a_new_bucket_is_in_the_zone_of_the_mount(account: Account, server: Server) -> None:
    mount, name = account("--zone", "ch-gva-2"), unused()
    (mount.path / name).mkdir()
    assert str(client_of(server).get_bucket_location(Bucket=name)["LocationConstraint"]) == "ch-gva-2"
    (mount.path / name / "file").write_bytes(b"content")
    assert (mount.path / name / "file").read_bytes() == b"content"


@pytest.mark.parametrize("name", ["Upper", "ab", "under_score", "a" * 65, "-dash", "dot.", "two..dots", "blank name"])
def test_a_name_that_no_bucket_can_have(everything: Mount, name: str) -> None:
    with fails(errno.EINVAL):
        (everything.path / name).mkdir()
    assert f"bucket {name} was not made: a bucket's name has" in everything.log
    assert name in (everything.path / ".sosfs/errors").read_text()


@pytest.mark.parametrize("server", ["ceph"], indirect=True)  # moto has one account for all keys
def test_a_name_that_another_account_has(everything: Mount, server: Server) -> None:
    taken = unused()
    client_of(server, key=server.key2, secret=server.secret2).create_bucket(Bucket=taken)
    assert taken not in names(everything.path)
    with fails(errno.EEXIST):
        (everything.path / taken).mkdir()
    assert f"bucket {taken} was not made: the name is taken" in everything.log
    assert f"bucket {taken}: the name is taken" in (everything.path / ".sosfs/errors").read_text()


def test_one_bucket_too_many(account: Account, proxy: Proxy) -> None:
    mount = account()
    name = unused()
    proxy.inject(Answer(400, "TooManyBuckets"), at(name, "PUT"))
    with fails(errno.EDQUOT):
        (mount.path / name).mkdir()


@pytest.mark.parametrize(
    "attempt",
    [
        lambda root, bucket: (root / "file").write_bytes(b"x"),
        lambda root, bucket: (root / "link").symlink_to(bucket),
        lambda root, bucket: (root / "link").hardlink_to(bucket / "file"),
        lambda root, bucket: os.mkfifo(root / "fifo"),
        lambda root, bucket: bucket.rename(root / "another-name"),
        lambda root, bucket: root.chmod(0o700),
        lambda root, bucket: (root / ".sosfs").rmdir(),
        lambda root, bucket: (root / ".sosfs").mkdir(),
    ],
)
def test_only_buckets_can_be_in_the_root(
    everything: Mount, foreign: Foreign, attempt: Callable[[Path, Path], object]
) -> None:
    foreign.put("file")
    before = names(everything.path)
    with fails(errno.EPERM, errno.EEXIST):
        attempt(everything.path, everything.path / foreign.bucket)
    assert (everything.path / foreign.bucket / "file").exists()
    assert names(everything.path) == before


@on_both
def test_tools_move_and_copy_from_bucket_to_bucket(everything: Mount, foreign: Foreign, other: Foreign) -> None:
    body = random.Random(5).randbytes(3 << 20)
    foreign.put("d/large", body)
    foreign.put("d/e/small", b"small")
    one, two = everything.path / foreign.bucket, everything.path / other.bucket
    with fails(errno.EXDEV):
        (one / "d/large").rename(two / "large")
    for command in (["cp", "-a", f"{one}/d", f"{two}/copied"], ["rsync", "-a", f"{one}/d/", f"{two}/synced"]):
        subprocess.run(command, check=True)
    subprocess.run(["mv", one / "d", two / "moved"], check=True)
    expected = {"large": body, "e/small": b"small"}
    assert [tree(two / name) for name in ("copied", "synced", "moved")] == [expected] * 3
    assert other.get("moved/large") == body
    eventually(lambda: not foreign.keys("d/"))
    (two / "moved/large").rename(two / "within")
    assert other.get("within") == body


def test_a_bucket_that_may_not_be_listed(account: Account, proxy: Proxy, foreign: Foreign, other: Foreign) -> None:
    other.put("file", b"content")
    proxy.inject(Answer(403, "AccessDenied"), at(foreign.bucket, "GET"))
    mount = account()
    assert foreign.bucket in names(mount.path)
    assert (mount.path / foreign.bucket).is_dir()
    for _ in range(2):
        with fails(errno.EACCES):
            names(mount.path / foreign.bucket)
    assert (mount.path / other.bucket / "file").read_bytes() == b"content"
    proxy.heal()
    assert names(mount.path / foreign.bucket) == [], "no remount is needed"


def test_a_key_that_may_not_list_the_buckets(server: Server, proxy: Proxy, tmp_path: Path) -> None:
    proxy.inject(Answer(403, "AccessDenied"), lambda request: not request.bucket)
    access = Access(proxy.endpoint, server.key, server.secret)
    done = run_sosfs(["mount", tmp_path, "--endpoint", proxy.endpoint], access.environment(tmp_path.parent))
    assert done.returncode == 1
    assert "this key may not list the buckets: name the one to mount" in done.stderr
    assert len(complaints(done.stderr)) == 1


def test_an_error_is_not_an_absence(account: Account, proxy: Proxy, foreign: Foreign, other: Foreign) -> None:
    mount = account("--ttl", "0.001", "--patience", "0.2")
    mount.allow_log("WARNING|ERROR")
    assert (mount.path / foreign.bucket).is_dir()
    with proxy.broken(Answer(500, "InternalError"), lambda request: not request.bucket):
        with fails(errno.EIO):
            names(mount.path)
        with fails(errno.EIO):
            (mount.path / "not-listed-before").stat()
        assert names(mount.path / foreign.bucket) == [], "its own server answers"


def test_each_bucket_has_its_own_control_tree(everything: Mount, foreign: Foreign, other: Foreign) -> None:
    foreign.put("d/file", b"content")
    mount = everything
    one, two = mount.path / foreign.bucket, mount.path / other.bucket
    assert names(mount.path / ".sosfs") == ["errors", "metrics", "status"]
    assert names(one / ".sosfs") == ["acl", "at", "bucket", "errors", "metrics", "status", "versions"]
    assert ".sosfs" not in names(mount.path) + names(one)
    (two / ".sosfs/bucket/versioning").write_text("enabled")
    assert other.client.get_bucket_versioning(Bucket=other.bucket)["Status"] == "Enabled"
    assert "Status" not in foreign.client.get_bucket_versioning(Bucket=foreign.bucket)
    assert "FULL_CONTROL" in (one / ".sosfs/acl/d/file").read_text()
    done = run_sosfs(["acl", "set", "public-read", one / "d/file"], mount.environment)
    assert done.returncode == 0, done.stderr
    done = run_sosfs(["acl", "get", "-r", one], mount.environment)
    assert "all-users READ" in done.stdout
    assert told(mount, foreign.bucket)["bucket"] == foreign.bucket
    assert told(mount)["bucket"] == ""
    assert "sosfs_pending_files 0" in (mount.path / ".sosfs/metrics").read_text()


def test_status_and_umount_count_all_buckets(account: Account, proxy: Proxy, foreign: Foreign, other: Foreign) -> None:
    mount = account(*JOURNAL, "--patience", "0.2", "--timeout", "1")
    mount.allow_log("WARNING|ERROR")
    for bucket, count in ((foreign, 1), (other, 2)):
        names(mount.path / bucket.bucket)
        proxy.inject(Answer(500, "InternalError"), at(bucket.bucket, "PUT"))
        for number in range(count):
            (mount.path / bucket.bucket / f"file{number}").write_bytes(b"four")
    now = told(mount)
    assert (now["pending_files"], now["pending_bytes"]) == (3, 12)
    assert now["buckets"] == {foreign.bucket: 1, other.bucket: 2}
    shown = run_sosfs(["status", mount.path], mount.environment).stdout
    assert f"{other.bucket}, 2 pending" in shown
    done = run_sosfs(["umount", mount.path], mount.environment)
    assert done.returncode == 3
    assert "3 files" in done.stderr
    mount.clear()
    proxy.heal()
    mount.start()
    eventually(lambda: foreign.exists("file0") and other.exists("file1"))
    eventually(lambda: told(mount)["pending_files"] == 0)


@pytest.mark.promise(2)
def test_fsync_of_the_root_waits_for_every_bucket(account: Account, foreign: Foreign, other: Foreign) -> None:
    mount = account(*JOURNAL)
    for bucket in (foreign, other):
        (mount.path / bucket.bucket / "file").write_bytes(b"content")
    root = os.open(mount.path, os.O_RDONLY)
    os.fsync(root)
    os.close(root)
    assert foreign.get("file") == other.get("file") == b"content"


@pytest.mark.promise(11)
def test_the_limits_are_those_of_the_mount(account: Account, proxy: Proxy, foreign: Foreign, other: Foreign) -> None:
    bodies = {bucket: random.Random(bucket.bucket).randbytes(6 << 20) for bucket in (foreign, other)}
    for bucket, body in bodies.items():
        bucket.put("file", body)
    mount = account("--memory", "8M", "--cache-size", "64M")
    for bucket, body in bodies.items():
        assert (mount.path / bucket.bucket / "file").read_bytes() == body
    blocks = (8 << 20) + (1 << 20)  # what is being fetched is counted as well, and so are a few names
    assert 6 << 20 <= int(str(told(mount)["memory_bytes"])) <= blocks
    mount.remount()
    proxy.reset()
    for bucket, body in bodies.items():
        assert (mount.path / bucket.bucket / "file").read_bytes() == body
    assert proxy.count("GET") == 0, "both are in the one cache on disk"


@pytest.mark.promise(3)
def test_work_left_by_a_crash_is_taken_up_though_nobody_enters(
    account: Account, proxy: Proxy, foreign: Foreign, other: Foreign
) -> None:
    foreign.put("old", b"old")
    mount = account(*JOURNAL)
    one, two = mount.path / foreign.bucket, mount.path / other.bucket
    names(one)
    names(two)
    proxy.inject(Hang(), lambda request: request.method in {"PUT", "DELETE", "POST"})
    large = random.Random(6).randbytes(1 << 20)
    (one / "small").write_bytes(b"small")
    (two / "large").write_bytes(large)
    os.kill(mount.pid, signal.SIGKILL)
    mount.clear()
    assert foreign.keys() == ["old"]
    proxy.heal()
    proxy.drop_connections()
    mount.start()
    eventually(lambda: foreign.keys() == ["old", "small"] and other.keys() == ["large"])
    assert (foreign.get("small"), other.get("large")) == (b"small", large)
    eventually(lambda: told(mount)["pending_files"] == 0)


def test_work_for_a_bucket_that_cannot_be_reached_is_kept_and_told(
    account: Account, proxy: Proxy, foreign: Foreign, other: Foreign
) -> None:
    mount = account(*JOURNAL)
    names(mount.path / foreign.bucket)
    proxy.inject(Hang(), at(foreign.bucket, "PUT"))
    (mount.path / foreign.bucket / "file").write_bytes(b"content")
    os.kill(mount.pid, signal.SIGKILL)
    mount.clear()
    proxy.heal()
    proxy.drop_connections()
    proxy.inject(Answer(403, "AccessDenied"), at(foreign.bucket))
    mount.allow_log(LATE)
    mount.start()
    assert names(mount.path / other.bucket) == []
    eventually(lambda: "changes to bucket" in mount.log)
    assert told(mount)["pending_files"] == 1
    done = run_sosfs(["umount", mount.path], mount.environment)
    assert done.returncode == 3
    mount.clear()
    proxy.heal()
    mount.start()
    mount.stop()
    assert foreign.get("file") == b"content", "the drain of an idle mount takes it up as well"


def test_a_bucket_in_another_zone_is_asked_there(
    server: Server, proxy: Proxy, foreign: Foreign, other: Foreign, watchdog: Watchdog, tmp_path: Path
) -> None:
    """Each zone is a port here; the first one answers for the other's bucket as SOS does, by naming its zone."""
    foreign.put("file", b"near")
    other.put("file", b"far")
    with Proxy(server.endpoint) as far:
        zones = [endpoint.rpartition(":")[2] for endpoint in (proxy.endpoint, far.endpoint)]
        near, other_zone = ((f"x-amz-bucket-region: {zone}",) for zone in zones)
        proxy.inject(
            Answer(200, headers=near), lambda request: at(foreign.bucket)(request) and request.op is Op.HEAD_BUCKET
        )
        proxy.inject(Answer(301, "PermanentRedirect", headers=other_zone), at(other.bucket))
        access = access_to(server, proxy.endpoint.rpartition(":")[0] + ":{zone}")
        with Mount(access, "", tmp_path / "zones", watchdog, ("--zone", zones[0])) as mount:
            assert (mount.path / foreign.bucket / "file").read_bytes() == b"near"
            assert (mount.path / other.bucket / "file").read_bytes() == b"far"
            (mount.path / other.bucket / "new").write_bytes(b"new")
            assert other.get("new") == b"new"
            link = os.getxattr(mount.path / other.bucket / "file", "user.sos.url").decode()
            assert link == f"{far.endpoint}/{other.bucket}/file"
            (mount.path / other.bucket / "file").unlink()
            (mount.path / other.bucket / "new").unlink()
            (mount.path / other.bucket).rmdir()
        assert [request.method for request in proxy.requests if request.bucket == other.bucket] == ["HEAD"]
        assert not [request for request in far.requests if request.bucket == foreign.bucket]


def test_a_listing_of_buckets_that_comes_in_pages() -> None:
    body = b"""<ListAllMyBucketsResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Owner><ID>me</ID></Owner>
    <Buckets><Bucket><Name>one</Name><CreationDate>2026-01-02T03:04:05.000Z</CreationDate>
    <BucketRegion>ch-gva-2</BucketRegion></Bucket></Buckets><ContinuationToken>t</ContinuationToken>
    </ListAllMyBucketsResult>"""
    assert listing_answers.buckets_of(body) == ("me", [Bucket("one", 1767323045.0, "ch-gva-2")], "t")


def test_warm_and_drop_reach_into_every_bucket(
    account: Account, proxy: Proxy, foreign: Foreign, other: Foreign
) -> None:
    foreign.put_all({f"d/f{number}": bytes([number]) * 5000 for number in range(8)})
    other.put_all({f"d/f{number}": bytes([number]) * 6000 for number in range(8)})
    mount = account("--ttl", "300", "--cache-size", "100M")
    both = [mount.path / one.bucket / "d" for one in (foreign, other)]
    done = run_sosfs(["warm", *both], mount.environment)
    assert (done.returncode, done.stdout.split(":")[0]) == (0, "16 files"), done
    proxy.settle()
    with proxy.recording() as traffic:
        for directory, size in zip(both, (5000, 6000), strict=True):
            assert {path.stat().st_size for path in directory.iterdir()} == {size}
            assert (directory / "f3").read_bytes() == b"\3" * size
    assert traffic.count("GET", "HEAD") == 0, str(traffic)
    other.put("d/f3", b"new")
    done = run_sosfs(["drop", mount.path], mount.environment)
    assert done.returncode == 0, done
    assert (both[1] / "f3").read_bytes() == b"new"
    assert (both[0] / "f3").read_bytes() == b"\3" * 5000
