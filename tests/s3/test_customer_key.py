"""SSE-C: what a mount with a key stores can be read with that key alone, and the key is nowhere else.

On Ceph, which encrypts and refuses; what the requests carry is read from the wire.
"""

from __future__ import annotations

import errno
import os
import random
import stat
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from sosfs.s3.customer_key import CustomerKey, CustomerKeyError
from tests.conftest import Mounter, access_to, new_bucket
from tests.support.drive import Drive, digest, fails, names
from tests.support.foreign import Foreign
from tests.support.mounting import Mount, MountFailed, run_sosfs
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.traffic import Op
from tests.support.watchdog import Watchdog

SECRET = bytes(range(7, 39))
OTHER = b"o" * 32
LARGE = random.Random(5).randbytes(18 << 20)
NEEDY = {Op.GET, Op.HEAD, Op.PUT, Op.COPY, Op.CREATE_MULTIPART, Op.UPLOAD_PART, Op.COPY_PART}
CUSTOMER = "x-amz-server-side-encryption-customer"
OF_SOURCE = "x-amz-copy-source-server-side-encryption-customer"


@pytest.fixture(scope="module")
def server(ceph: Server) -> Server:
    """The one that encrypts."""
    return ceph


def key_file(path: Path, content: bytes = SECRET, mode: int = 0o600) -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """The file with the mount's key."""
    return key_file(tmp_path / "key")


@pytest.fixture
def sealed(mounter: Mounter, proxy: Proxy, key: Path) -> Drive:
    """A mount with the key, through the proxy."""
    return mounter(proxy.endpoint, "--sse-c-key", str(key), "--part-size", "5M")


def with_key(foreign: Foreign, name: str) -> dict[str, Any]:
    """What a plain client with the key is answered."""
    answer = foreign.client.get_object(
        Bucket=foreign.bucket, Key=name, SSECustomerAlgorithm="AES256", SSECustomerKey=SECRET
    )
    assert answer["SSECustomerAlgorithm"] == "AES256"
    return {**answer, "Body": answer["Body"].read()}


def refused(foreign: Foreign, name: str, **key: Any) -> bool:
    """Whether a plain client is refused the object."""
    with pytest.raises(ClientError) as error:
        foreign.client.get_object(Bucket=foreign.bucket, Key=name, **key)
    return int(error.value.response["ResponseMetadata"]["HTTPStatusCode"]) in (400, 403)


# What is stored


def test_what_is_written_is_encrypted_and_read_back(sealed: Drive, foreign: Foreign) -> None:
    here = sealed.here
    (here / "small").write_bytes(b"small")
    (here / "empty").touch()
    (here / "large").write_bytes(LARGE)
    (here / "odd\x01name").write_bytes(b"odd")
    os.symlink("small", here / "link")
    (here / "folder").mkdir()
    bodies = {"small": b"small", "empty": b"", "odd\x01name": b"odd", "link": b"small", "folder/": b""}
    for name, body in bodies.items():
        found = with_key(foreign, name)
        assert found["Body"] == body
        assert refused(foreign, name)
        assert refused(foreign, name, SSECustomerAlgorithm="AES256", SSECustomerKey=OTHER)
    assert digest(with_key(foreign, "large")["Body"]) == digest(LARGE)
    sealed.mount.remount()
    assert names(here) == ["empty", "folder", "large", "link", "odd\x01name", "small"]
    assert (here / "link").read_bytes() == b"small"
    assert (here / "odd\x01name").read_bytes() == b"odd"
    assert digest(here / "large") == digest(LARGE)


def test_changes_keep_the_encryption(sealed: Drive, foreign: Foreign, proxy: Proxy) -> None:
    here = sealed.here
    (here / "folder").mkdir()
    for name, body in {"file": b"first", "empty": b"", "large": LARGE, "folder/in": b"in"}.items():
        (here / name).write_bytes(body)
    with (here / "file").open("ab") as file:
        file.write(b" and more")
    with proxy.recording() as seen, (here / "large").open("r+b") as file:
        file.seek(6 << 20)
        file.write(b"changed")
    assert seen.count(Op.COPY_PART) >= 1  # what was not touched stays on the server
    for name in ("file", "empty", "large"):
        (here / name).chmod(0o640)
        with (here / name).open("rb") as file:
            os.fsync(file.fileno())
        (here / name).rename(here / f"{name}.new")
    (here / "folder").rename(here / "moved")
    wanted = bytearray(LARGE)
    wanted[6 << 20 : (6 << 20) + 7] = b"changed"
    bodies = {"file.new": b"first and more", "empty.new": b"", "large.new": bytes(wanted), "moved/in": b"in"}
    assert foreign.files() == sorted(bodies)
    for name, body in bodies.items():
        found = with_key(foreign, name)
        assert digest(found["Body"]) == digest(body)
        assert refused(foreign, name)
        assert name == "moved/in" or found["Metadata"]["mode"] == str(stat.S_IFREG | 0o640)
    sealed.mount.remount()
    assert (here / "file.new").read_bytes() == b"first and more"
    assert digest(here / "large.new") == digest(bytes(wanted))


def test_each_request_that_needs_the_key_has_it(sealed: Drive, proxy: Proxy) -> None:
    here = sealed.here
    proxy.reset()
    (here / "file").write_bytes(b"x")
    (here / "odd\x01").write_bytes(b"x")
    (here / "large").write_bytes(LARGE)
    sealed.mount.remount()
    assert (here / "file").read_bytes() == (here / "odd\x01").read_bytes() == b"x"
    with (here / "large").open("r+b") as file:
        file.write(b"y")
    (here / "file").rename(here / "renamed")
    os.getxattr(here / "renamed", "user.sos.acl")
    proxy.settle()
    seen = {request.op for request in proxy.requests}
    assert seen >= NEEDY
    for request in proxy.requests:
        sent = {name for name in request.headers if "customer" in name}
        copies = request.op in (Op.COPY, Op.COPY_PART)
        due = [CUSTOMER] * (request.op in NEEDY) + [OF_SOURCE] * copies
        assert sent == {f"{prefix}-{part}" for prefix in due for part in ("algorithm", "key", "key-md5")}, request
        assert not due or request.headers[f"{CUSTOMER}-key"] == b64encode(SECRET).decode()


def test_an_old_version_is_read_with_the_key(mounter: Mounter, foreign: Foreign, key: Path) -> None:
    foreign.keep_versions()
    drive = mounter("", "--sse-c-key", str(key))  # only now: Ceph 16 honours other conditions where it keeps versions
    (drive.here / "file").write_bytes(b"old")
    (drive.here / "file").write_bytes(b"newer")
    kept = sorted((drive.mount.path / ".sosfs/versions/file").iterdir())
    assert [path.read_bytes() for path in kept] == [b"old", b"newer"]


# Without the key, or with another one


@pytest.mark.parametrize("wrong", ["none", "other"])
def test_without_the_key_it_is_permission_denied_and_nothing_is_lost(
    mounter: Mounter, foreign: Foreign, tmp_path: Path, wrong: str
) -> None:
    foreign.client.put_object(
        Bucket=foreign.bucket, Key="d/sealed", Body=b"sealed", SSECustomerAlgorithm="AES256", SSECustomerKey=SECRET
    )
    options = () if wrong == "none" else ("--sse-c-key", str(key_file(tmp_path / "other", OTHER)))
    drive = mounter("", *options)
    sealed = drive.here / "d" / "sealed"
    assert names(drive.here / "d") == ["sealed"]
    with fails(errno.EACCES):
        sealed.read_bytes()
    with fails(errno.EACCES):
        sealed.write_bytes(b"over it")
    with fails(errno.EACCES), sealed.open("ab") as file:
        file.write(b"and more")
    with fails(errno.EACCES):
        sealed.rename(drive.here / "d" / "moved")
    assert foreign.keys() == ["d/sealed"]
    assert with_key(foreign, "d/sealed")["Body"] == b"sealed"
    (drive.here / "d" / "other").write_bytes(b"beside it")
    assert "another encryption key (SSE-C)" in drive.mount.log


def test_what_is_not_encrypted_stays_readable_or_is_refused(sealed: Drive, foreign: Foreign) -> None:
    """Ceph lets a request with a key read what has none, AWS refuses it; neither may change a byte unasked."""
    foreign.put_all({"d/plain": b"plain", "d/large": LARGE})
    here = sealed.here / "d"
    assert names(here) == ["large", "plain"]
    assert (here / "plain").read_bytes() == b"plain"
    (here / "plain").chmod(0o600)
    (here / "plain").rename(here / "moved")
    assert (here / "moved").read_bytes() == b"plain"
    with (here / "large").open("r+b") as file:
        file.write(b"changed")
    assert digest(here / "large") == digest(b"changed" + LARGE[7:])
    assert digest(with_key(foreign, "d/large")["Body"]) == digest(b"changed" + LARGE[7:])


def test_no_link_is_given_that_could_not_be_followed(sealed: Drive) -> None:
    (sealed.here / "file").touch()
    with fails(errno.EOPNOTSUPP):
        os.getxattr(sealed.here / "file", "user.sos.presigned-url")
    assert os.getxattr(sealed.here / "file", "user.sos.url")


# The key itself


def test_the_key_is_told_to_nobody(mounter: Mounter, key: Path) -> None:
    drive = mounter("", "--sse-c-key", str(key), "--log-level", "debug", "--durability", "journal")
    (drive.here / "file").write_bytes(b"x" * 100)
    (drive.here / "large").write_bytes(LARGE[: 17 << 20])
    shown = run_sosfs(["status", "--json", drive.mount.path], drive.mount.environment).stdout
    told = shown.encode() + drive.mount.log.encode() + (drive.mount.path / ".sosfs/status").read_bytes()
    drive.mount.stop()
    told += drive.mount.log.encode()
    told += b"".join(path.read_bytes() for path in drive.mount.cache.rglob("*") if path.is_file())
    for form in (SECRET, b64encode(SECRET), SECRET.hex().encode(), repr(SECRET).encode()[2:-1]):
        assert form not in told


def test_the_plain_connection_is_told_of(mounter: Mounter, key: Path) -> None:
    drive = mounter("", "--sse-c-key", str(key))
    assert "sosfs: over http everybody on the way sees the encryption key; most servers refuse it\n" in drive.mount.log


@pytest.mark.parametrize(
    "content",
    [SECRET, SECRET + b"\n", b64encode(SECRET), b64encode(SECRET) + b"\n", b" " + b64encode(SECRET) + b"\r\n"],
)
def test_a_key_is_bytes_or_base64(tmp_path: Path, content: bytes) -> None:
    found = CustomerKey.read(key_file(tmp_path / "key", content))
    assert found.secret == SECRET
    assert repr(SECRET)[2:-1] not in repr(found)


@pytest.mark.parametrize(
    ("content", "mode", "why"),
    [
        (b"", 0o600, "neither 32 bytes nor the base64"),
        (SECRET[:-1], 0o600, "neither 32 bytes nor the base64"),
        (SECRET + b"xx", 0o600, "neither 32 bytes nor the base64"),
        (SECRET.hex().encode(), 0o600, "neither 32 bytes nor the base64"),
        (b"!" + b64encode(SECRET), 0o600, "neither 32 bytes nor the base64"),
        (SECRET, 0o644, r"every user may read it \(mode 0644\); use 'chmod 600'"),
    ],
)
def test_what_is_no_key_is_refused_in_words(tmp_path: Path, content: bytes, mode: int, why: str) -> None:
    with pytest.raises(CustomerKeyError, match=why) as refused:
        CustomerKey.read(key_file(tmp_path / "key", content, mode))
    assert not content or repr(content)[2:-1] not in str(refused.value)


def test_a_group_may_read_the_key(tmp_path: Path) -> None:
    assert CustomerKey.read(key_file(tmp_path / "key", mode=0o640)).secret == SECRET


@pytest.mark.parametrize("mode", [0o604, None])
def test_a_mount_without_a_usable_key_does_not_begin(mounter: Mounter, tmp_path: Path, mode: int | None) -> None:
    path = tmp_path / "key"
    why = "No such file or directory"
    if mode is not None:
        key_file(path, mode=mode)
        why = r"every user may read it \(mode 0604\); use 'chmod 600'"
    with pytest.raises(MountFailed, match=rf"exit code 1\n(.*\n)?sosfs: encryption key {path}: {why}\n"):
        mounter("", "--sse-c-key", str(path))


# Servers that cannot


def test_a_server_that_would_store_it_in_the_clear_is_not_mounted(
    moto: Server, watchdog: Watchdog, tmp_path: Path, key: Path
) -> None:
    bucket = new_bucket(moto)
    mount = Mount(access_to(moto), bucket.bucket, tmp_path / "mount", watchdog, ("--sse-c-key", str(key)))
    with pytest.raises(
        MountFailed, match=r"exit code 1\n(.*\n)?sosfs: the server refuses --sse-c-key: it knows no SSE-C"
    ):
        mount.start()
    assert bucket.keys() == []
    told = run_sosfs(["doctor", bucket.bucket, "--endpoint", moto.endpoint, "--sse-c-key", key], mount.environment)
    assert told.returncode == 1
    assert "FAIL" in told.stdout and "it knows no SSE-C, and would store everything unencrypted" in told.stdout
    key.chmod(0o644)
    told = run_sosfs(["doctor", bucket.bucket, "--endpoint", moto.endpoint, "--sse-c-key", key], mount.environment)
    assert told.returncode == 1
    assert f"encryption key {key}: every user may read it (mode 0644)" in " ".join(told.stdout.split())
    assert bucket.keys() == []
