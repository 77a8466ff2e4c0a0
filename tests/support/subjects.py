"""The stores under test: the fake, and the real one on each server, with a view of the bucket from outside."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from sosfs.config.credentials import Credentials
from sosfs.s3.bucket import S3Store, S3Target
from sosfs.s3.protocol import ObjectStore
from tests.support.fake_store import FakeStore
from tests.support.servers import Bucket, Server, client_of

PATIENCE = 4.0  # seconds; a server that fails in a test fails for good

# What a server does wrong, by server and subject: tests of it must fail there.
DEFECTS = {
    ("moto", "newline in a key"): "404 for a key with a newline",
    ("moto", "ACL of a multipart object"): "500 for GetObjectAcl",
    ("moto", "PutObjectAcl"): "keeps only the owner of a list of several",
    ("moto", "time of an upload"): "always 2010",
    ("moto", "control character in an upload's key"): "echoes it raw, which is no XML",
    ("ceph", "a storage class"): "has none but STANDARD unless its administrator makes others",
    ("ceph", "a part left out"): "InvalidPart unless all parts are named",
    ("fake", "a part left out"): "as Ceph: what holds there holds everywhere",
    ("moto", "signature"): "takes any key and secret",
    ("moto", "second user"): "all keys are one account",
}


@dataclass(frozen=True)
class Fixed:
    """A credential source that has one key."""

    key: Credentials

    def current(self) -> Credentials:
        return self.key

    def refresh(self) -> Credentials:
        return self.key


def target_of(bucket: Bucket, *, endpoint: str = "", key: str = "", secret: str = "", name: str = "") -> S3Target:
    """How sosfs reaches a bucket, as the first user or with the key given."""
    server = bucket.server
    source = Fixed(Credentials(key or server.key, secret or server.secret))
    return S3Target(name or bucket.name, endpoint or server.endpoint, "us-east-1", source, patience=PATIENCE)


@dataclass
class Subject:
    """A store, and how to look behind it."""

    name: str
    store: ObjectStore
    bucket: Bucket | None = None  # None: the fake
    requests: Counter[str] = field(default_factory=Counter)

    def defect(self, request: pytest.FixtureRequest, what: str) -> None:
        """Expects the test to fail where the server is known to get `what` wrong."""
        if reason := DEFECTS.get((self.name, what)):
            request.applymarker(pytest.mark.xfail(strict=True, reason=f"{self.name}: {reason}"))


def subject_on(bucket: Bucket, **other: str) -> Subject:
    """The real store on a bucket; `other` as for `target_of`."""
    counted: Counter[str] = Counter()
    store = S3Store(target_of(bucket, **other), on_request=lambda operation: counted.update([operation]))
    return Subject(bucket.server.name, store, bucket, counted)


@pytest.fixture(params=["fake", "moto", "ceph"])
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    """Each store in turn, on an empty bucket."""
    if request.param == "fake":
        yield Subject("fake", FakeStore())
        return
    server: Server = request.getfixturevalue(request.param)
    bucket = Bucket(server, f"sosfs-test-{uuid.uuid4().hex[:12]}", client_of(server))
    bucket.client.create_bucket(Bucket=bucket.name)
    found = subject_on(bucket)
    yield found
    assert isinstance(found.store, S3Store)
    found.store.close()


@pytest.fixture
def store(subject: Subject) -> ObjectStore:
    """The subject's store."""
    return subject.store
