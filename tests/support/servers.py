"""The S3 servers of the tests, as fixtures: moto (opaque keys, any secret), Ceph (everything enforced) and SeaweedFS.

Each is started once a test run, by the first test that asks for it, on a free port with its state in a
temporary directory. One that can't be started fails the tests; none is ever skipped.
"""

from __future__ import annotations

import sys
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
import pytest
from botocore.config import Config

from tests.support.ceph import USERS, Ceph
from tests.support.processes import Process, free_port, listening
from tests.support.seaweed import Weed

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

ROOT = Path(__file__).resolve().parents[2]
MOTO_START = 30.0  # seconds


@dataclass(frozen=True)
class Server:
    """A server and the keys of two of its users."""

    name: str
    endpoint: str
    key: str = USERS["alice"][0]
    secret: str = field(default=USERS["alice"][1], repr=False)
    key2: str = USERS["bob"][0]
    secret2: str = field(default=USERS["bob"][1], repr=False)
    user2: str = "bob"  # as an ACL names the second user


def client_of(server: Server, *, key: str = "", secret: str = "") -> S3Client:
    """A plain boto3 client of the first user, or of the key given: it shares no line with sosfs."""
    config = Config(
        signature_version="s3v4",
        s3={"addressing_style": "path"},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    return boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        aws_access_key_id=key or server.key,
        aws_secret_access_key=secret or server.secret,
        region_name="us-east-1",
        config=config,
    )


@dataclass(frozen=True)
class Bucket:
    """An empty bucket, and a client to look into it from outside."""

    server: Server
    name: str
    client: S3Client


@pytest.fixture(scope="session")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """moto's server, with conditions that hold."""
    port = free_port()
    command = [sys.executable, "-m", "tests.support.atomic_moto", "-H", "127.0.0.1", "-p", str(port)]
    process = Process(command, tmp_path_factory.mktemp("moto") / "log", cwd=ROOT)
    try:
        process.until(lambda: listening(port), MOTO_START)
        yield Server("moto", f"http://127.0.0.1:{port}")
    finally:
        process.end()


@pytest.fixture(scope="session")
def ceph() -> Iterator[Server]:
    """Ceph's gateway."""
    with tempfile.TemporaryDirectory(prefix="sosfs-ceph-", ignore_cleanup_errors=True) as base:
        running = Ceph(Path(base))
        try:
            yield Server("ceph", f"http://127.0.0.1:{running.port}")
        finally:
            running.stop()


@pytest.fixture(scope="session")
def weed() -> Iterator[Server]:
    """SeaweedFS, for what it does otherwise."""
    with tempfile.TemporaryDirectory(prefix="sosfs-weed-", ignore_cleanup_errors=True) as base:
        running = Weed(Path(base))
        try:
            yield Server("weed", f"http://127.0.0.1:{running.port}")
        finally:
            running.stop()


@pytest.fixture(scope="session", params=["moto", "ceph"])
def server(request: pytest.FixtureRequest) -> Server:
    """Each of the servers in turn."""
    found: Server = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def bucket(server: Server) -> Bucket:
    """A new bucket of the first user."""
    client = client_of(server)
    name = f"sosfs-test-{uuid.uuid4().hex[:12]}"
    client.create_bucket(Bucket=name)
    return Bucket(server, name, client)
