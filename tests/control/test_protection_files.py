"""Object Lock, lifecycle, ownership, encryption and replication of a bucket as files: what a server gets of them."""

from __future__ import annotations

import errno
import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from sosfs.control import lifecycle_text, object_lock_text, replication_text
from tests.conftest import Mounter, access_to
from tests.support.drive import Drive, fails
from tests.support.foreign import Foreign
from tests.support.mounting import Mount
from tests.support.proxy import Proxy
from tests.support.servers import Server, client_of
from tests.support.traffic import Traffic
from tests.support.watchdog import Watchdog

CEPH = pytest.mark.parametrize("server", ["ceph"], indirect=True)
MOTO = pytest.mark.parametrize("server", ["moto"], indirect=True)
RULE: dict[str, Any] = {
    "ID": "logs",
    "Status": "Enabled",
    "Filter": {"Prefix": "logs/"},
    "Expiration": {"Days": 90},
    "NoncurrentVersionExpiration": {"NoncurrentDays": 30},
    "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 7},
}


def lockable(server: Server) -> Foreign:
    """A bucket whose objects can be locked."""
    client, name = client_of(server), f"lock-{uuid.uuid4().hex[:16]}"
    client.create_bucket(Bucket=name, ObjectLockEnabledForBucket=True)
    return Foreign(client, name)


def setting(drive: Drive, name: str) -> Path:
    return drive.mount.path / ".sosfs/bucket" / name


def errors(drive: Drive) -> list[str]:
    return (drive.mount.path / ".sosfs/errors").read_text().splitlines()


def distinct(lines: list[str]) -> list[str]:
    """Without what came twice: Python writes a text once more when its file goes."""
    return list({line.partition(" ")[2]: line for line in lines}.values())


def changing(traffic: Traffic) -> list[str]:
    """What was sent that could change anything."""
    return [
        f"{request.method} {request.query}" for request in traffic.requests if request.method not in ("GET", "HEAD")
    ]


def document(*rules: object) -> str:
    return json.dumps({"Rules": list(rules)}, indent=1)


# Lifecycle: both servers have it


def rules_of(drive: Drive) -> list[dict[str, Any]]:
    try:
        answer = drive.foreign.client.get_bucket_lifecycle_configuration(Bucket=drive.foreign.bucket)
    except ClientError as error:
        assert error.response["Error"]["Code"] == "NoSuchLifecycleConfiguration"
        return []
    return [dict(rule) for rule in answer["Rules"]]


def test_lifecycle_is_read_edited_written_and_emptied(mounter: Mounter, tmp_path: Path) -> None:
    drive = mounter()
    lifecycle = setting(drive, "lifecycle")
    assert lifecycle.read_text() == lifecycle_text.HELP
    lifecycle.write_text(document(RULE))
    assert lifecycle_text.same([RULE], rules_of(drive))
    assert lifecycle_text.same(lifecycle_text.parse(lifecycle.read_text()), [RULE])
    drive.shell(f"sed s/90/60/ {lifecycle} > {tmp_path}/new && cat {tmp_path}/new > {lifecycle}")
    assert rules_of(drive)[0]["Expiration"] == {"Days": 60}
    drive.shell(f": > {lifecycle}")  # applied when the file is released, which `read_text` waits for
    assert lifecycle.read_text() == lifecycle_text.HELP
    assert rules_of(drive) == []
    lifecycle.write_text(lifecycle_text.HELP + document({**RULE, "Expiration": {"Date": "2030-01-01"}}))
    assert lifecycle_text.same(lifecycle_text.parse(lifecycle.read_text()), rules_of(drive))
    drive.run("truncate", "-s", "0", lifecycle)
    assert rules_of(drive) == []


def test_a_bad_rule_is_one_line_and_sends_nothing(mounter: Mounter, proxy: Proxy) -> None:
    drive = mounter(proxy.endpoint)
    lifecycle = setting(drive, "lifecycle")
    lifecycle.write_text(document(RULE))
    with proxy.recording() as traffic:
        with fails(errno.EINVAL):
            lifecycle.write_text(document({**RULE, "Expiration": {"Days": 0}}))
        with fails(errno.EINVAL):
            lifecycle.write_text(document({**RULE, "Expire": {"Days": 3}}))
        lifecycle.write_text(lifecycle.read_text())
        lifecycle.write_text("# the same again\n" + document({name: RULE[name] for name in reversed(RULE)}))
    assert changing(traffic) == []
    assert lifecycle_text.same([RULE], rules_of(drive))
    first, second = distinct(errors(drive))
    assert "bucket/lifecycle: line 10: rule 1, Expiration, Days: 0 is no number from 1 on" in first
    assert "'Expire' is unknown; did you mean 'Expiration'?" in second


# Object Lock: both servers have it


def default_of(foreign: Foreign) -> object:
    answer = foreign.client.get_object_lock_configuration(Bucket=foreign.bucket)
    rule = answer["ObjectLockConfiguration"].get("Rule", {}).get("DefaultRetention", {})
    return {name: value for name, value in rule.items() if value}


def test_a_default_retention_is_read_edited_written_and_emptied(
    server: Server, proxy: Proxy, watchdog: Watchdog, tmp_path: Path
) -> None:
    foreign = lockable(server)
    with Mount(access_to(server, proxy.endpoint), foreign.bucket, tmp_path, watchdog) as mount:
        drive = Drive(mount, foreign, mount.path)
        lock = setting(drive, "object-lock")
        assert lock.read_text() == object_lock_text.HELP
        lock.write_text("governance 30 days\n")
        assert default_of(foreign) == {"Mode": "GOVERNANCE", "Days": 30}
        assert lock.read_text() == object_lock_text.HELP + "GOVERNANCE 30 days\n"
        lock.write_text(lock.read_text().replace("30 days", "1 year"))
        assert default_of(foreign) == {"Mode": "GOVERNANCE", "Years": 1}
        with proxy.recording() as traffic:
            lock.write_text(lock.read_text())
            for text in ("GOVERNANCE 0 days\n", "GOVERNMENT 3 days\n", "GOVERNANCE 1 day\nGOVERNANCE 2 days\n"):
                with fails(errno.EINVAL):
                    lock.write_text(text)
        assert changing(traffic) == []
        assert len(distinct(errors(drive))) == 3
        assert "bucket/object-lock: line 1: 0 days: it is 1 to 36500" in errors(drive)[0]
        drive.shell(f": > {lock}")
        assert lock.read_text() == object_lock_text.HELP
        assert default_of(foreign) == {}


@CEPH
def test_a_bucket_made_without_object_lock_takes_none(mounter: Mounter) -> None:
    drive = mounter()
    lock = setting(drive, "object-lock")
    assert lock.read_text() == object_lock_text.ABSENT + object_lock_text.HELP
    with fails(errno.EOPNOTSUPP):
        lock.write_text("GOVERNANCE 30 days\n")
    assert "bucket/object-lock" in errors(drive)[-1]


@MOTO
def test_a_server_that_locks_later_makes_the_mount_heed_it(foreign: Foreign, mounter: Mounter) -> None:
    foreign.keep_versions()
    drive = mounter()
    setting(drive, "object-lock").write_text("COMPLIANCE 1 day\n")
    (drive.here / "f").write_bytes(b"once")
    with fails(errno.EPERM):
        (drive.here / "f").write_bytes(b"twice")


# Ownership, encryption and replication: moto has them, Ceph 16 does not


@MOTO
def test_ownership_is_read_edited_written_and_emptied(mounter: Mounter, proxy: Proxy) -> None:
    drive = mounter(proxy.endpoint)
    ownership, client, bucket = setting(drive, "ownership"), drive.foreign.client, drive.foreign.bucket

    def held() -> str:
        return client.get_bucket_ownership_controls(Bucket=bucket)["OwnershipControls"]["Rules"][0]["ObjectOwnership"]

    ownership.write_text("objectwriter\n")
    assert held() == "ObjectWriter"
    assert ownership.read_text().endswith("\nObjectWriter\n")
    with proxy.recording() as traffic:
        ownership.write_text(ownership.read_text())
        with fails(errno.EINVAL):
            ownership.write_text("nobody\n")
    assert changing(traffic) == []
    assert "bucket/ownership: line 1: 'nobody' is none of" in errors(drive)[-1]
    drive.shell(f": > {ownership}")
    assert all(line.startswith("#") for line in ownership.read_text().splitlines())
    with pytest.raises(ClientError, match="OwnershipControlsNotFound"):
        held()


@MOTO
def test_encryption_is_read_edited_written_and_emptied(mounter: Mounter, proxy: Proxy) -> None:
    drive = mounter(proxy.endpoint)
    encryption, client, bucket = setting(drive, "encryption"), drive.foreign.client, drive.foreign.bucket

    def held() -> Any:
        answer = client.get_bucket_encryption(Bucket=bucket)["ServerSideEncryptionConfiguration"]
        return answer["Rules"][0]["ApplyServerSideEncryptionByDefault"]

    encryption.write_text("AES256\n")
    assert held() == {"SSEAlgorithm": "AES256"}
    encryption.write_text(encryption.read_text().replace("AES256\n", "aws:kms my-key\n"))
    assert held() == {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": "my-key"}
    with proxy.recording() as traffic:
        encryption.write_text(encryption.read_text())
        with fails(errno.EINVAL):
            encryption.write_text("AES265\n")
    assert changing(traffic) == []
    drive.shell(f": > {encryption}")
    assert all(line.startswith("#") for line in encryption.read_text().splitlines())
    with pytest.raises(ClientError, match="ServerSideEncryptionConfigurationNotFound"):
        held()


@MOTO
def test_replication_is_read_only(mounter: Mounter, foreign: Foreign) -> None:
    drive = mounter()
    replication = setting(drive, "replication")
    assert replication.read_text() == replication_text.NONE
    client = foreign.client
    for bucket in (foreign.bucket, other := f"other-{uuid.uuid4().hex[:12]}"):
        if bucket == other:
            client.create_bucket(Bucket=other)
        client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    rule: Any = {
        "ID": "copy",
        "Priority": 1,
        "Status": "Enabled",
        "Filter": {"Prefix": ""},
        "DeleteMarkerReplication": {"Status": "Disabled"},
        "Destination": {"Bucket": f"arn:aws:s3:::{other}"},
    }
    client.put_bucket_replication(
        Bucket=foreign.bucket, ReplicationConfiguration={"Role": "arn:aws:iam::1:role/r", "Rules": [rule]}
    )
    text = replication.read_text()
    assert f"arn:aws:s3:::{other}" in text
    with fails(errno.EACCES, errno.EPERM):
        replication.write_text(text)


@CEPH
def test_what_the_server_does_not_have_is_not_supported_and_nothing_is_sent(mounter: Mounter, proxy: Proxy) -> None:
    """Ceph 16 takes a PUT of one for CreateBucket and a DELETE for DeleteBucket, which succeeds on an empty bucket."""
    drive = mounter(proxy.endpoint)
    with proxy.recording() as traffic:
        for name, text in (("ownership", "ObjectWriter\n"), ("encryption", "AES256\n")):
            with fails(errno.EOPNOTSUPP):
                setting(drive, name).read_text()
            for written in (text, ""):
                with fails(errno.EOPNOTSUPP):
                    setting(drive, name).write_text(written)
        assert setting(drive, "replication").read_text() == replication_text.NONE
    assert changing(traffic) == []
    drive.foreign.client.head_bucket(Bucket=drive.foreign.bucket)
