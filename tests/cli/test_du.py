"""`sosfs du`: what is summed up, from how few requests, and what is said where a key may not list."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from sosfs.filesystem.usage import BILLED_MIN
from tests.conftest import HURRY, Mounter, access_to
from tests.support.drive import Drive, eventually
from tests.support.faults import Answer
from tests.support.foreign import Foreign, numbered
from tests.support.mounting import Mount, run_sosfs
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.traffic import Op, on
from tests.support.watchdog import Watchdog

MIB = 1 << 20
NOTHING = {"count": 0, "size": 0, "billed": 0}


def du(drive: Drive, *paths: str | Path) -> list[dict[str, Any]]:
    done = run_sosfs(["du", "--json", *paths], drive.mount.environment)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def refused(drive: Drive, *arguments: str | Path, code: int = 1) -> str:
    """The one line that a command says which does nothing."""
    done = run_sosfs(arguments, drive.mount.environment)
    assert (done.returncode, done.stdout) == (code, ""), done
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


def summed(count: int, size: int, billed: int) -> dict[str, int]:
    return {"count": count, "size": size, "billed": billed}


def test_a_tree_is_summed_from_its_listing_alone(foreign: Foreign, mounter: Mounter, proxy: Proxy) -> None:
    bodies = numbered("d/sub/f", 2500)
    foreign.put_all(bodies | {"d/large": bytes(MIB), "d-beside": b"not below d", "other": b"x"})
    drive = mounter(proxy.endpoint)
    with proxy.recording() as traffic:
        [usage] = du(drive, drive.here / "d")
    size = sum(map(len, bodies.values()))
    assert usage["path"] == str(drive.here / "d")
    assert usage["objects"] == summed(2501, size + MIB, 2500 * BILLED_MIN + MIB)
    assert usage["old_versions"] == usage["unfinished_uploads"] == NOTHING
    assert (usage["delete_markers"], usage["unsent_changes"]) == (0, 0)
    listings = [request for request in traffic.of(Op.LIST) if request.key == ""]
    assert len(listings) <= 1 + 3 + 2, str(traffic)  # d itself, 2,501 below it; the kernel looks for the name
    assert not traffic.of(Op.HEAD, Op.GET), str(traffic)
    with proxy.recording() as traffic:
        [whole] = du(drive, drive.here)
    assert whole["objects"]["count"] == 2503
    assert len(traffic.of(Op.LIST)) == 3, str(traffic)
    assert not traffic.of(Op.HEAD, Op.GET), str(traffic)


def test_a_file_is_only_itself(foreign: Foreign, mounter: Mounter) -> None:
    foreign.put_all({"f": bytes(300_000), "f.txt": b"x", "f-1": b"x"})
    drive = mounter()
    [usage] = du(drive, drive.here / "f")
    assert usage["objects"] == summed(1, 300_000, 300_000)


def test_an_object_beside_a_directory_is_counted_by_its_own_name(foreign: Foreign, mounter: Mounter) -> None:
    foreign.put_all({"a": b"12", "a/b": b"345"})
    drive = mounter()
    [beside] = du(drive, drive.here / "%~fa")
    assert beside["objects"] == summed(1, 2, BILLED_MIN)


def test_versions_markers_and_uploads_have_lines_of_their_own(foreign: Foreign, mounter: Mounter, proxy: Proxy) -> None:
    foreign.keep_versions()
    for body in (bytes(10), bytes(200_000), bytes(30)):
        foreign.put("d/file", body)
    foreign.put("d/gone", b"gone")
    foreign.delete("d/gone")
    foreign.put("elsewhere", b"x")
    upload = foreign.client.create_multipart_upload(Bucket=foreign.bucket, Key="d/begun")["UploadId"]
    foreign.client.upload_part(Bucket=foreign.bucket, Key="d/begun", UploadId=upload, PartNumber=1, Body=bytes(5 * MIB))
    drive = mounter(proxy.endpoint)
    with proxy.recording() as traffic:
        [usage] = du(drive, drive.here / "d")
    assert usage["objects"] == summed(1, 30, BILLED_MIN)
    assert usage["old_versions"] == summed(3, 200_014, 200_000 + 2 * BILLED_MIN)
    assert usage["delete_markers"] == 1
    assert usage["unfinished_uploads"] == summed(1, 5 * MIB, 5 * MIB)
    assert len(traffic.of(Op.LIST_VERSIONS)) == 2, str(traffic)
    assert not traffic.of(Op.HEAD, Op.GET), str(traffic)
    table = run_sosfs(["du", drive.here / "d"], drive.mount.environment).stdout.splitlines()
    assert table[0] == str(drive.here / "d")
    lines = {line[:21].strip(): line[21:].split() for line in table[2:]}
    assert lines["objects"] == ["1", "30", "bytes", "128.0", "kB"]
    assert lines["old versions"] == ["3", "200.0", "kB", "456.0", "kB"]
    assert lines["unfinished uploads"] == ["1", "5.2", "MB", "5.2", "MB"]
    assert lines["delete markers"] == ["1"]
    assert lines["together"] == ["5.4", "MB", "5.8", "MB"]


def test_what_was_deleted_may_still_take_room(foreign: Foreign, mounter: Mounter) -> None:
    foreign.keep_versions()
    foreign.put("d/gone", b"gone")
    foreign.delete("d/gone")
    drive = mounter()
    [usage] = du(drive, drive.here / "d")
    assert usage["objects"] == NOTHING
    assert usage["old_versions"] == summed(1, 4, BILLED_MIN)


def test_what_is_not_sent_yet_is_told(foreign: Foreign, mounter: Mounter, proxy: Proxy) -> None:
    foreign.put("d/there", b"there")
    drive = mounter(proxy.endpoint, *HURRY, "--durability", "journal")
    drive.mount.allow_log(r"WARNING|ERROR")
    proxy.inject(Answer(403, "AccessDenied"), on(Op.PUT))
    (drive.here / "d/there").write_bytes(b"not yet")
    eventually(lambda: du(drive, drive.here / "d")[0]["unsent_changes"] == 1)
    [usage] = du(drive, drive.here / "d")
    assert usage["objects"] == summed(1, 5, BILLED_MIN)
    assert "1 change not in the bucket yet" in run_sosfs(["du", drive.here / "d"], drive.mount.environment).stdout
    proxy.heal()
    run_sosfs(["retry", drive.here], drive.mount.environment)
    eventually(lambda: du(drive, drive.here / "d")[0]["unsent_changes"] == 0)


@pytest.mark.parametrize("server", ["ceph"], indirect=True)  # it enforces policies
def test_what_a_key_may_not_list_is_not_known(
    server: Server, foreign: Foreign, watchdog: Watchdog, tmp_path: Path
) -> None:
    foreign.keep_versions()
    foreign.put("file", b"one")
    foreign.put("file", b"three")
    foreign.client.put_bucket_acl(Bucket=foreign.bucket, ACL="public-read")
    actions = ["s3:ListBucketVersions", "s3:ListBucketMultipartUploads", "s3:GetBucketVersioning"]
    arns = [f"arn:aws:s3:::{foreign.bucket}"]
    denial = {"Effect": "Deny", "Principal": "*", "Action": actions, "Resource": arns}
    foreign.client.put_bucket_policy(
        Bucket=foreign.bucket, Policy=json.dumps({"Version": "2012-10-17", "Statement": [denial]})
    )
    with Mount(access_to(server), foreign.bucket, tmp_path, watchdog, ("--anonymous",)) as mount:
        drive = Drive(mount, foreign, mount.path)
        [usage] = du(drive, drive.here)
        assert usage["objects"] == summed(1, 5, BILLED_MIN)
        assert usage["old_versions"] is usage["delete_markers"] is usage["unfinished_uploads"] is None
        shown = run_sosfs(["du", drive.here], mount.environment).stdout
        assert shown.count("not known") == 4, shown


@pytest.mark.parametrize("server", ["moto"], indirect=True)
def test_all_buckets_have_a_part_each(server: Server, foreign: Foreign, watchdog: Watchdog, tmp_path: Path) -> None:
    foreign.put_all({"a": b"12", "d/b": b"345"})
    with Mount(access_to(server), "", tmp_path, watchdog) as mount:
        drive = Drive(mount, foreign, mount.path)
        [usage] = du(drive, mount.path / foreign.bucket / "d")
        assert (usage["path"], usage["objects"]["size"]) == (f"{mount.path}/{foreign.bucket}/d", 3)
        found = {usage["path"]: usage["objects"] for usage in du(drive, mount.path)}
        assert found[f"{mount.path}/{foreign.bucket}"] == summed(2, 5, 2 * BILLED_MIN)


def test_bad_paths_are_one_line(drive: Drive, tmp_path: Path) -> None:
    assert "not in a mount of sosfs" in refused(drive, "du", tmp_path)
    assert "nothing of it is in the bucket" in refused(drive, "du", drive.here / "nothing")
    assert "control file" in refused(drive, "du", drive.mount.path / ".sosfs/status")
    assert os.listdir(drive.here) == []
