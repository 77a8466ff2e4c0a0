"""What a mount asks for with each request or object: who pays, and in which storage class things are kept."""

from __future__ import annotations

import errno
import os
import random
import stat
import urllib.request
from hashlib import sha256
from pathlib import Path

import pytest

from tests.conftest import Mounter
from tests.support.drive import digest, fails, names
from tests.support.foreign import Foreign
from tests.support.mounting import MountFailed
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.traffic import Op

LARGE = random.Random(9).randbytes(11 << 20)
RARE, COLD = "STANDARD_IA", "ONEZONE_IA"


@pytest.fixture(scope="module")
def server(moto: Server) -> Server:
    """It takes all storage classes and records checksums."""
    return moto


def class_of(foreign: Foreign, key: str) -> str:
    """The storage class that a plain client is told."""
    return str(foreign.head(key).get("StorageClass", "STANDARD"))


def put(foreign: Foreign, key: str, body: bytes, storage_class: str) -> None:
    """Stores an object in a class as another tool does."""
    foreign.client.put_object(Bucket=foreign.bucket, Key=key, Body=body, StorageClass=storage_class)  # type: ignore[arg-type]


# Storage class


def test_new_objects_get_the_class(mounter: Mounter, foreign: Foreign) -> None:
    drive = mounter("", "--storage-class", RARE, "--part-size", "5M")
    (drive.here / "small").write_bytes(b"small")
    (drive.here / "large").write_bytes(LARGE)
    (drive.here / "odd\x01").write_bytes(b"odd")
    (drive.here / "folder").mkdir()
    os.symlink("small", drive.here / "link")
    for key in ("small", "large", "odd\x01", "folder/", "link"):
        assert class_of(foreign, key) == RARE
    for name in ("small", "large"):
        (drive.here / name).chmod(0o600)
        assert os.getxattr(drive.here / name, "user.sos.storage-class").decode() == RARE
    drive.mount.stop()
    assert {class_of(foreign, key) for key in ("small", "large", "odd\x01", "folder/", "link")} == {RARE}
    assert foreign.metadata("large")["mode"] == str(stat.S_IFREG | 0o600)


@pytest.mark.promise(7)
@pytest.mark.parametrize("option", [(), ("--storage-class", RARE)])
def test_what_exists_keeps_its_class(mounter: Mounter, foreign: Foreign, option: tuple[str, ...]) -> None:
    kept = {"STANDARD": "standard", COLD: "cold"}
    for storage_class, name in kept.items():
        for key in (f"{name}/chmod", f"{name}/over", f"{name}/rename", f"{name}/grow"):
            put(foreign, key, b"before", storage_class)
        put(foreign, f"{name}/large", LARGE, storage_class)
    drive = mounter("", *option, "--part-size", "5M")
    for storage_class, name in kept.items():
        here = drive.here / name
        (here / "rename").rename(here / "renamed")  # first: nothing but the listing has been read by now
        (here / "chmod").chmod(0o600)
        (here / "over").write_bytes(b"after")
        with (here / "grow").open("ab") as grown:
            grown.write(b"more")
        with (here / "large").open("r+b") as file:
            file.write(b"changed")
        here.rename(drive.here / f"{name}.moved")
        for path in (drive.here / f"{name}.moved").iterdir():
            assert (path.name, os.getxattr(path, "user.sos.storage-class").decode()) == (path.name, storage_class)
    drive.mount.remount()  # what is known is now read from the cache of attributes
    for name in kept.values():
        (drive.here / f"{name}.moved" / "over").write_bytes(b"at last")
        (drive.here / f"{name}.moved" / "chmod").rename(drive.here / f"{name}.moved" / "chmod.new")
    drive.mount.stop()
    for storage_class, name in kept.items():
        found = {key: class_of(foreign, key) for key in foreign.files(f"{name}.moved/")}
        assert found == {
            f"{name}.moved/{file}": storage_class for file in ("chmod.new", "grow", "large", "over", "renamed")
        }
        assert foreign.get(f"{name}.moved/over") == b"at last"
        assert digest(foreign.get(f"{name}.moved/large")) == digest(b"changed" + LARGE[7:])


def test_a_class_that_the_server_does_not_have_is_told_at_once(mounter: Mounter, foreign: Foreign) -> None:
    with pytest.raises(MountFailed, match=r"exit code 1\nsosfs: the server refuses --storage-class NO_SUCH_CLASS: "):
        mounter("", "--storage-class", "NO_SUCH_CLASS")
    assert foreign.keys() == []


# Who pays


@pytest.mark.parametrize("option", [(), ("--requester-pays",)])
def test_the_requester_pays_for_every_request(
    mounter: Mounter, foreign: Foreign, proxy: Proxy, option: tuple[str, ...]
) -> None:
    foreign.keep_versions()
    foreign.put_all({"d/file": b"file", "d/odd\x01": b"odd", "d/gone": b"gone"})
    drive = mounter(proxy.endpoint, *option, "--part-size", "5M")
    here = drive.here / "d"
    assert names(here) == ["file", "gone", "odd\x01"]
    assert (here / "file").read_bytes() + (here / "odd\x01").read_bytes() == b"fileodd"
    (here / "new").write_bytes(b"new")
    (here / "large").write_bytes(LARGE)
    with (here / "large").open("r+b") as file:
        file.write(b"changed")
    (here / "new").rename(here / "renamed")
    (here / "gone").unlink()
    os.getxattr(here / "file", "user.sos.version-id")
    assert [path.read_bytes() for path in (drive.here / ".sosfs/versions/d/file").iterdir()] == [b"file"]
    link = os.getxattr(here / "file", "user.sos.presigned-url").decode()
    drive.mount.stop()
    ops = {request.op for request in proxy.requests}
    assert ops >= {Op.GET, Op.HEAD, Op.PUT, Op.LIST, Op.COPY, Op.CREATE_MULTIPART, Op.UPLOAD_PART, Op.COPY_PART}
    assert ops >= {Op.COMPLETE, Op.LIST_VERSIONS} and ops & {Op.DELETE, Op.DELETE_MANY}
    told = {request.headers.get("x-amz-request-payer", "") for request in proxy.requests}
    assert told == ({"requester"} if option else {""})
    assert ("x-amz-request-payer=requester" in link) == bool(option)
    with urllib.request.urlopen(link, timeout=20) as answer:
        assert answer.read() == b"file"


# The recorded checksum


def test_the_recorded_sha256_is_shown(mounter: Mounter, foreign: Foreign) -> None:
    client, bucket = foreign.client, foreign.bucket
    client.put_object(Bucket=bucket, Key="with", Body=b"bytes", ChecksumAlgorithm="SHA256")
    client.put_object(Bucket=bucket, Key="without", Body=b"bytes", Metadata={"sha256": "0" * 64})
    upload = client.create_multipart_upload(Bucket=bucket, Key="parts", ChecksumAlgorithm="SHA256")["UploadId"]
    part = client.upload_part(
        Bucket=bucket, Key="parts", UploadId=upload, PartNumber=1, Body=b"part", ChecksumAlgorithm="SHA256"
    )
    client.complete_multipart_upload(
        Bucket=bucket,
        Key="parts",
        UploadId=upload,
        MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": part["ETag"], "ChecksumSHA256": part["ChecksumSHA256"]}]},
    )
    drive = mounter()
    assert os.getxattr(drive.here / "with", "user.sos.sha256").decode() == sha256(b"bytes").hexdigest()
    for name in ("without", "parts"):
        absent(drive.here / name)
    assert os.getxattr(drive.here / "without", "user.sha256") == b"0" * 64  # metadata, for what that may be worth
    with fails(errno.EPERM):
        os.setxattr(drive.here / "with", "user.sos.sha256", b"0" * 64)
    with (drive.here / "with").open("ab") as file:
        file.write(b" and more")
        file.flush()
        absent(drive.here / "with")  # it is the hash of what the bucket still has
    absent(drive.here / "with")
    assert "user.sos.sha256" not in os.listxattr(drive.here / "with")


def absent(path: Path) -> None:
    """There is no hash."""
    with fails(errno.ENODATA):
        os.getxattr(path, "user.sos.sha256")
