"""Public buckets without a key: on Ceph, which enforces who may do what."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import access_to, new_bucket
from tests.support.drive import Drive, fails
from tests.support.foreign import Foreign
from tests.support.mounting import Access, Mount, MountFailed, run_sosfs
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.watchdog import Watchdog


@pytest.fixture
def public(ceph: Server) -> Foreign:
    """A bucket that anybody may list, with a file that anybody may read and one that nobody may."""
    bucket = new_bucket(ceph)
    bucket.client.put_bucket_acl(Bucket=bucket.bucket, ACL="public-read")
    bucket.client.put_object(Bucket=bucket.bucket, Key="open", Body=b"for all", ACL="public-read")
    bucket.client.put_object(Bucket=bucket.bucket, Key="dir/a b", Body=b"spaced", ACL="public-read")
    bucket.client.put_object(Bucket=bucket.bucket, Key="closed", Body=b"for nobody")
    return bucket


@pytest.fixture
def seen(ceph: Server) -> Iterator[Proxy]:
    with Proxy(ceph.endpoint) as proxy:
        yield proxy


def mounted(access: Access, bucket: Foreign, base: Path, watchdog: Watchdog, *options: str) -> Mount:
    return Mount(access, bucket.bucket, base, watchdog, ("--anonymous", *options))


def test_a_public_bucket_is_read_without_a_key_and_read_only(
    ceph: Server, seen: Proxy, public: Foreign, watchdog: Watchdog, tmp_path: Path
) -> None:
    """The environment has a good key all the same: it is not used."""
    with mounted(access_to(ceph, seen.endpoint), public, tmp_path, watchdog) as mount:
        here = mount.path
        assert sorted(path.name for path in here.iterdir()) == ["closed", "dir", "open"]
        assert (here / "open").read_bytes() == b"for all"
        assert (here / "dir/a b").read_bytes() == b"spaced"
        with fails(errno.EACCES):
            (here / "closed").read_bytes()
        with fails(errno.EROFS):
            (here / "new").write_bytes(b"x")
        with fails(errno.EOPNOTSUPP):
            os.getxattr(here / "open", "user.sos.presigned-url")
        with fails(errno.EACCES):
            (here / ".sosfs/bucket/versioning").read_text()
    assert seen.requests and not [str(each) for each in seen.requests if "authorization" in each.headers]
    assert "x-amz-date" not in {name for each in seen.requests for name in each.headers}


def test_where_anybody_may_write_so_does_the_mount(
    ceph: Server, public: Foreign, watchdog: Watchdog, tmp_path: Path
) -> None:
    public.client.put_bucket_acl(Bucket=public.bucket, ACL="public-read-write")
    with mounted(access_to(ceph), public, tmp_path, watchdog) as mount:
        drive = Drive(mount, public, mount.path)
        (mount.path / "new").write_bytes(b"from nobody")
        assert (mount.path / "new").read_bytes() == b"from nobody"
        assert "from nobody" in drive.run("cat", "new")
    assert "new" in [each["Key"] for each in public.client.list_objects_v2(Bucket=public.bucket)["Contents"]]


def test_a_private_bucket_is_refused_in_one_line_and_no_key_is_tried(
    ceph: Server, seen: Proxy, watchdog: Watchdog, tmp_path: Path
) -> None:
    bucket = new_bucket(ceph)
    with pytest.raises(MountFailed) as caught:
        mounted(access_to(ceph, seen.endpoint), bucket, tmp_path, watchdog).start()
    assert "it is not public: without a key nobody may list it" in str(caught.value)
    assert not [str(each) for each in seen.requests if "authorization" in each.headers]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["mount", "{m}", "--anonymous"], "needs a bucket"),
        (["mount", "b", "{m}", "--anonymous", "--profile", "work"], "leave one of them out"),
    ],
)
def test_what_makes_no_sense_is_wrong_usage(ceph: Server, tmp_path: Path, arguments: list[str], said: str) -> None:
    (tmp_path / "m").mkdir()
    words = [word.format(m=tmp_path / "m") for word in arguments]
    done = run_sosfs([*words, "--endpoint", ceph.endpoint], access_to(ceph).environment(tmp_path))
    assert done.returncode == 2 and said in done.stderr and len(done.stderr.splitlines()) == 1


def test_the_doctor_asks_as_nobody_too(ceph: Server, public: Foreign, tmp_path: Path) -> None:
    def found(bucket: Foreign) -> dict[str, tuple[str, str]]:
        done = run_sosfs(
            ["doctor", bucket.bucket, "--anonymous", "--json", "--endpoint", ceph.endpoint],
            access_to(ceph).environment(tmp_path),
        )
        assert done.stdout, done.stderr
        return {row["what"]: (row["verdict"], row["detail"]) for row in json.loads(done.stdout)["findings"]}

    rows = found(public)
    assert rows["key"] == ("note", "none is looked for: --anonymous")
    assert rows["right: list"][0] == "ok"
    assert found(new_bucket(ceph))["right: list"] == (
        "fail",
        "not allowed: it is not public: without a key nobody may list it",
    )


def test_moto_is_read_without_a_key_too(moto: Server, watchdog: Watchdog, tmp_path: Path) -> None:
    bucket = new_bucket(moto)
    bucket.client.put_object(Bucket=bucket.bucket, Key="file", Body=b"bytes", ACL="public-read")
    bucket.client.put_bucket_acl(Bucket=bucket.bucket, ACL="public-read")
    with mounted(access_to(moto), bucket, tmp_path, watchdog, "--read-only") as mount:
        assert (mount.path / "file").read_bytes() == b"bytes"
