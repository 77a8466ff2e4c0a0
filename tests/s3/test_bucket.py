"""The real store when things go wrong between it and the server, and what it asks of the server."""

from __future__ import annotations

import errno
import gzip
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from hashlib import md5

import pytest
import trio
from trio.testing import trio_test

from sosfs.config.choices import PART_MIN
from sosfs.config.credentials import Credentials
from sosfs.errors import Cause, StoreError
from sosfs.s3.bucket import S3Store
from sosfs.s3.endpoint import S3Target
from sosfs.s3.protocol import (
    Conditions,
    Detail,
    Guard,
    Headers,
    Properties,
    Version,
)
from sosfs.s3.signed_request import SignedHttp
from tests.support.faults import Action, Answer, CutRequest, CutResponse, Hang, Moment, Reset, Throttle
from tests.support.processes import free_port
from tests.support.proxy import Proxy
from tests.support.servers import Bucket, Server, client_of
from tests.support.subjects import DEFECTS, target_of
from tests.support.traffic import Op, on

BODY = b"0123456789" * 1000
VERSION = Version(md5(BODY).hexdigest(), len(BODY))
NONE = Properties()
Call = Callable[[S3Store], Awaitable[object]]


@dataclass
class Broken:
    """A store behind the proxy, which can break what passes."""

    store: S3Store
    proxy: Proxy
    bucket: Bucket
    requests: Counter[str] = field(default_factory=Counter)

    def body(self, key: str) -> bytes:
        """An object's bytes, past the proxy."""
        return self.bucket.client.get_object(Bucket=self.bucket.name, Key=key)["Body"].read()


def behind(proxy: Proxy, bucket: Bucket, *, patience: float = 8.0, read_timeout: float = 60.0) -> Broken:
    counted: Counter[str] = Counter()
    target = replace(
        target_of(bucket, endpoint=proxy.endpoint), patience=patience, read_timeout=read_timeout, connect_timeout=1.0
    )
    return Broken(S3Store(target, on_request=lambda operation: counted.update([operation])), proxy, bucket, counted)


@pytest.fixture
def broken(proxy: Proxy, bucket: Bucket) -> Iterator[Broken]:
    found = behind(proxy, bucket)
    yield found
    found.store.close()


async def prepared(broken: Broken) -> None:
    """Stores what the calls below work on."""
    for key in ("key", "o//dd"):
        await broken.store.put(key, BODY, Properties(Headers(), {"mode": "1"}))
    broken.proxy.reset()


async def get(store: S3Store, key: str) -> None:
    assert (await store.get(key, 10, 9000)).body.tobytes() == BODY[10:9000]


async def list_all(store: S3Store) -> None:
    assert [listed.key for listed in (await store.list("", delimiter="")).objects] == ["key", "o//dd"]


# What the proxy does is the same whatever server is behind it: for the large matrices the quick one is enough.
ON_MOTO = pytest.mark.parametrize("server", ["moto"], indirect=True)
CALLS: dict[str, tuple[Op, Call]] = {
    "get": (Op.GET, lambda store: get(store, "key")),
    "get odd": (Op.GET, lambda store: get(store, "o//dd")),
    "head": (Op.HEAD, lambda store: store.head("key")),
    "head odd": (Op.HEAD, lambda store: store.head("o//dd")),
    "head whole": (Op.HEAD, lambda store: store.head("key", detail=Detail.WHOLE)),
    "put": (Op.PUT, lambda store: store.put("new", BODY, NONE)),
    "put odd": (Op.PUT, lambda store: store.put("ne//w", BODY, NONE)),
    "list": (Op.LIST, list_all),
    "copy": (Op.COPY, lambda store: store.copy("key", "copy", version=VERSION)),
    "delete": (Op.DELETE, lambda store: store.delete("never")),
    "delete many": (Op.DELETE_MANY, lambda store: store.delete_many(["never", "ever"])),
    "acl": (Op.GET_ACL, lambda store: store.get_acl("key")),
}
PASSING: dict[str, Action] = {
    "500": Answer(500, "InternalError"),
    "500 after": Answer(500, "InternalError", Moment.AFTER),
    "503": Answer(503, "SlowDown"),
    "429": Answer(429, "TooManyRequests"),
    "502 of a proxy": Answer(502),
    "reset": Reset(),
    "reset after": Reset(Moment.AFTER),
    "cut": CutResponse(20),
}
NO_BODY = {Op.HEAD, Op.PUT, Op.DELETE}  # answers that can't be cut short


@ON_MOTO
@trio_test
async def test_of_many_keys_none_is_asked_after_one_without_answer(proxy: Proxy, bucket: Bucket) -> None:
    broken = behind(proxy, bucket, patience=0.5, read_timeout=0.5)
    await prepared(broken)
    broken.requests.clear()
    proxy.inject(Hang(), lambda request: request.op is Op.HEAD and request.key == "key")
    told = await broken.store.heads(["o//dd", "key", "o//dd", "o//dd"])
    assert [isinstance(found, StoreError) for found in told] == [False, True, True, True]
    assert told[1] is told[2] is told[3]
    assert [request.key for request in proxy.requests if request.key != "key"] == ["o//dd"]
    assert broken.requests["HeadObject"] == 2
    broken.store.close()


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("fault", PASSING)
@ON_MOTO
@trio_test
async def test_what_passes_is_tried_again(broken: Broken, call: str, fault: str) -> None:
    await prepared(broken)
    operation, ask = CALLS[call]
    if fault == "cut" and operation in NO_BODY:
        return
    rule = broken.proxy.inject(PASSING[fault], on(operation), times=2)
    await ask(broken.store)
    assert rule.hits == 2
    if operation in (Op.PUT, Op.COPY):
        assert broken.body({"put": "new", "put odd": "ne//w", "copy": "copy"}[call]) == BODY


@pytest.mark.parametrize("call", ["get", "get odd", "head", "head odd", "put", "put odd", "list", "copy", "delete"])
@pytest.mark.parametrize("fault", ["500", "reset", "cut"])
@ON_MOTO
@trio_test
async def test_what_stays_broken_is_an_error_in_time(proxy: Proxy, bucket: Bucket, call: str, fault: str) -> None:
    broken = behind(proxy, bucket)
    await prepared(broken)
    operation, ask = CALLS[call]
    if fault == "cut" and operation in NO_BODY:
        return
    proxy.inject(PASSING[fault], on(operation))
    with trio.fail_after(20), pytest.raises(StoreError) as caught:
        await ask(behind(proxy, bucket, patience=1.0).store)
    assert caught.value.errno == errno.EIO
    assert proxy.traffic.count(operation) > 1


@pytest.mark.parametrize("call", ["get", "get odd", "head", "put", "list"])
@ON_MOTO
@trio_test
async def test_silence_is_a_time_out(proxy: Proxy, bucket: Bucket, call: str) -> None:
    broken = behind(proxy, bucket)
    await prepared(broken)
    operation, ask = CALLS[call]
    proxy.inject(Hang(), on(operation))
    with trio.fail_after(20), pytest.raises(StoreError) as caught:
        await ask(behind(proxy, bucket, patience=1.0, read_timeout=0.7).store)
    assert caught.value.errno == errno.ETIMEDOUT


@pytest.mark.parametrize(("status", "code", "number"), [
    (403, "AccessDenied", errno.EACCES),
    (404, "NoSuchBucket", errno.ENXIO),
    (405, "MethodNotAllowed", errno.EOPNOTSUPP),
    (400, "NeverHeardOf", errno.EINVAL),
    (418, "", errno.EIO),
])  # fmt: skip
@pytest.mark.parametrize("call", ["get", "get odd", "put", "put odd", "list", "copy", "acl"])
@ON_MOTO
@trio_test
async def test_a_refusal_is_told_at_once(broken: Broken, call: str, status: int, code: str, number: int) -> None:
    await prepared(broken)
    operation, ask = CALLS[call]
    rule = broken.proxy.inject(Answer(status, code), on(operation))
    with pytest.raises(StoreError) as caught:
        await ask(broken.store)
    assert (caught.value.errno, caught.value.code, caught.value.status) == (number, code, status)
    assert rule.hits == 1


@pytest.mark.parametrize("status", [403, 500])
@pytest.mark.parametrize("key", ["key", "o//dd"])
@trio_test
async def test_only_a_404_is_absence(proxy: Proxy, bucket: Bucket, key: str, status: int) -> None:
    store = behind(proxy, bucket, patience=0.5).store
    proxy.inject(Answer(status), on(Op.HEAD, Op.GET))
    for call in (store.head(key), store.get(key, 0, 1)):
        with pytest.raises(StoreError) as caught:
            await call
        assert caught.value.cause is not Cause.ABSENT


@pytest.mark.parametrize("code", ["InternalError", "SlowDown"])
@trio_test
async def test_an_error_in_a_good_answer_is_tried_again(broken: Broken, code: str) -> None:
    await prepared(broken)
    for operation in (Op.COPY, Op.COPY_PART, Op.COMPLETE):
        broken.proxy.inject(Answer(200, code), on(operation), times=2)
    version = (await broken.store.head("key")).version
    assert await broken.store.copy("key", "copy", version=version) == Version(version.etag, version.size)
    upload = await broken.store.create_multipart("joined", NONE)
    part = await broken.store.copy_part("joined", upload, 1, "key", version, 0, version.size)
    done = await broken.store.complete_multipart("joined", upload, [part])
    assert (await broken.store.head("joined")).version.same_as(done)
    assert broken.body("joined") == broken.body("copy") == BODY
    assert broken.proxy.traffic.count(Op.COPY, Op.COPY_PART, Op.COMPLETE) == 9


@trio_test
async def test_an_error_in_a_good_answer_is_an_error(broken: Broken) -> None:
    await prepared(broken)
    broken.proxy.inject(Answer(200, "AccessDenied"), on(Op.COPY))
    with pytest.raises(StoreError) as caught:
        await broken.store.copy("key", "copy")
    assert caught.value.errno == errno.EACCES


@pytest.mark.parametrize("key", ["key", "o//dd"])
@trio_test
async def test_bytes_that_look_like_an_error_are_bytes(broken: Broken, key: str) -> None:
    body = b"<Error><Code>InternalError</Code></Error>"
    await broken.store.put(key, body, NONE)
    assert (await broken.store.get(key, 0, 99)).body.tobytes() == body


@pytest.mark.parametrize("key", ["key", "o//dd"])
@trio_test
async def test_encoded_bytes_stay_encoded(broken: Broken, key: str) -> None:
    body = gzip.compress(os.urandom(1000))
    await broken.store.put(key, body, Properties(Headers(content_encoding="gzip")))
    assert (await broken.store.get(key, 0, len(body))).body.tobytes() == body
    assert (await broken.store.get(key, 5, 50)).body.tobytes() == body[5:50]


@pytest.mark.parametrize("size", [10_000, 3 << 20])
@pytest.mark.parametrize("key", ["key", "o//dd"])
@trio_test
async def test_a_cut_upload_is_sent_again_whole(broken: Broken, key: str, size: int) -> None:
    body = os.urandom(size)
    rule = broken.proxy.inject(CutRequest(5000), on(Op.PUT), times=2)
    await broken.store.put(key, body, NONE)
    assert rule.hits == 2
    assert broken.body(key) == body


@pytest.mark.parametrize(
    "fault",
    [Reset(Moment.AFTER), Answer(500, "InternalError", Moment.AFTER), Reset(), Answer(503, "SlowDown")],
    ids=["reset after", "500 after", "reset", "503"],
)
@pytest.mark.parametrize("condition", ["absent", "this version"])
@pytest.mark.parametrize("key", ["key", "o//dd"])
@trio_test
async def test_a_lost_answer_to_a_conditional_put_is_no_conflict(
    broken: Broken, key: str, condition: str, fault: Action
) -> None:
    await broken.store.probe_conditions(".probe")
    expected = await broken.store.put(key, b"old", NONE) if condition == "this version" else Guard.ABSENT
    rule = broken.proxy.inject(fault, on(Op.PUT), times=1)
    stored = await broken.store.put(key, b"new", Properties(metadata={"mtime": "1.5"}), condition=expected)
    assert rule.hits == 1
    assert (await broken.store.head(key)).version.same_as(stored)
    assert broken.body(key) == b"new"


@pytest.mark.parametrize("key", ["key", "o//dd"])
@trio_test
async def test_the_same_bytes_of_somebody_else_are_a_conflict(broken: Broken, key: str) -> None:
    await broken.store.probe_conditions(".probe")
    await broken.store.put(key, b"new", Properties(metadata={"mtime": "2.5"}))
    broken.proxy.inject(Reset(Moment.AFTER), on(Op.PUT), times=1)
    with pytest.raises(StoreError) as caught:
        await broken.store.put(key, b"new", Properties(metadata={"mtime": "1.5"}), condition=Guard.ABSENT)
    assert caught.value.errno == errno.ESTALE


@trio_test
async def test_a_conflict_without_a_lost_answer_costs_no_head(broken: Broken) -> None:
    await broken.store.probe_conditions(".probe")
    await broken.store.put("key", b"same", NONE)
    with broken.proxy.recording() as traffic, pytest.raises(StoreError):
        await broken.store.put("key", b"same", NONE, condition=Guard.ABSENT)
    assert traffic.tally() == {"PUT": 1}


@trio_test
async def test_a_version_is_replaced_also_where_the_server_refuses_the_right_condition(broken: Broken) -> None:
    """So does Ceph 16 from the moment on at which a bucket keeps versions; until then it honours the condition."""
    await broken.store.probe_conditions(".probe")
    first = newest = await broken.store.put("key", b"1", NONE)
    broken.bucket.client.put_bucket_versioning(Bucket=broken.bucket.name, VersioningConfiguration={"Status": "Enabled"})
    for text in (b"2", b"3"):
        newest = await broken.store.put("key", text, NONE, condition=newest)
        assert broken.body("key") == text
    with pytest.raises(StoreError) as caught:
        await broken.store.put("key", b"4", NONE, condition=first)
    assert caught.value.errno == errno.ESTALE
    assert broken.body("key") == b"3"


@trio_test
async def test_a_conflict_does_not_put_the_condition_in_doubt(broken: Broken) -> None:
    before = await broken.store.probe_conditions(".probe")
    first = await broken.store.put("key", b"1", NONE)
    await broken.store.put("key", b"2", NONE)
    with pytest.raises(StoreError) as caught:
        await broken.store.put("key", b"3", NONE, condition=first)
    assert caught.value.errno == errno.ESTALE
    assert broken.store.conditions is before is Conditions.HONOURED


@trio_test
async def test_a_lost_answer_to_a_complete_is_no_failure(broken: Broken) -> None:
    upload = await broken.store.create_multipart("key", NONE)
    parts = [
        await broken.store.upload_part("key", upload, 1, bytes(PART_MIN)),
        await broken.store.upload_part("key", upload, 2, b"tail"),
    ]
    broken.proxy.inject(Reset(Moment.AFTER), on(Op.COMPLETE), times=1)
    done = await broken.store.complete_multipart("key", upload, parts)
    assert (await broken.store.head("key")).version.same_as(done)


@trio_test
async def test_each_call_is_one_request(broken: Broken) -> None:
    store = broken.store
    await store.probe_conditions(".probe")
    broken.requests.clear()
    with broken.proxy.recording() as traffic:
        first = await store.put("key", b"1", NONE, condition=Guard.ABSENT)
        second = await store.put("key", b"2", NONE, condition=first)
        await store.put("plain", b"2", NONE)
        await store.head("key")
        await store.get("key", 0, 1, etag=second.etag)
        await store.copy("key", "other", version=second)
        await store.delete("key")
        await store.delete_many(["other", "plain"])
        await store.list("")
    assert traffic.tally() == {"PUT": 3, "HEAD": 1, "GET": 1, "COPY": 1, "DELETE": 1, "DELETE_MANY": 1, "LIST": 1}
    assert sum(broken.requests.values()) == traffic.count()


@trio_test
async def test_bulk_leaves_room_for_small_requests(broken: Broken) -> None:
    await broken.store.put("large", bytes(1 << 20), NONE)
    broken.proxy.inject(Hang(), on(Op.GET))
    async with trio.open_nursery() as nursery:
        for _ in range(40):
            nursery.start_soon(broken.store.get, "large", 0, 1 << 20)
        with trio.fail_after(10):
            while broken.proxy.traffic.count(Op.GET) < 16:
                await trio.sleep(0.01)
            assert (await broken.store.head("large")).version.size == 1 << 20
        assert broken.proxy.traffic.count(Op.GET) == 16
        broken.proxy.heal()
        broken.proxy.drop_connections()


@trio_test
async def test_probe_with_a_key_that_may_not_write(broken: Broken) -> None:
    broken.proxy.inject(Answer(403, "AccessDenied"), on(Op.PUT, Op.CREATE_MULTIPART))
    assert await broken.store.probe_conditions(".probe") is Conditions.UNKNOWN
    broken.proxy.heal()
    await broken.store.put("key", b"1", NONE)
    with pytest.raises(StoreError) as caught:
        await broken.store.put("key", b"2", NONE, condition=Guard.ABSENT)
    assert caught.value.errno == errno.ESTALE


@trio_test
async def test_probe_that_fails_leaves_nothing(broken: Broken) -> None:
    broken.proxy.inject(Answer(400, "Confused"), on(Op.COPY))
    with pytest.raises(StoreError):
        await broken.store.probe_conditions(".probe")
    assert broken.bucket.client.list_objects_v2(Bucket=broken.bucket.name)["KeyCount"] == 0
    assert broken.store.conditions is Conditions.UNKNOWN


@trio_test
async def test_raw_utf8_of_other_tools_is_read(bucket: Bucket) -> None:
    target = target_of(bucket)
    http = SignedHttp(target, target.credentials.current())
    raw = {"x-amz-meta-name": "naïve 日本", "Content-Disposition": 'inline; filename="é"'}
    http.send("PutObject", "PUT", "key", headers=raw, body=b"x")
    store = S3Store(target)
    for found in (await store.head("key"), (await store.get("key", 0, 1)).object):
        assert found.properties.metadata == {"name": "naïve 日本"}
        assert found.properties.headers.content_disposition == 'inline; filename="é"'


@dataclass
class Changing:
    """A source whose key changes when it is read again."""

    keys: list[Credentials]
    reads: int = 0

    def current(self) -> Credentials:
        return self.keys[0]

    def refresh(self) -> Credentials:
        self.reads += 1
        if len(self.keys) > 1:
            self.keys.pop(0)
        return self.keys[0]


def with_source(bucket: Bucket, endpoint: str, *keys: Credentials) -> tuple[S3Store, Changing]:
    source = Changing(list(keys))
    return S3Store(S3Target(bucket.name, endpoint, "us-east-1", source, patience=3.0)), source


CEPH_CALLS = ["get", "get odd", "head", "put", "put odd", "list", "copy"]


@pytest.fixture
def kept(ceph: Server) -> Iterator[Broken]:
    """A store behind a proxy, on the server that checks signatures."""
    client = client_of(ceph)
    bucket = Bucket(ceph, f"sosfs-test-{os.urandom(6).hex()}", client)
    client.create_bucket(Bucket=bucket.name)
    with Proxy(ceph.endpoint) as proxy:
        yield behind(proxy, bucket)


@pytest.mark.parametrize("call", CEPH_CALLS)
@pytest.mark.parametrize("old", ["wrong secret", "unknown key"])
@trio_test
async def test_a_key_that_changed_is_read_again_once(kept: Broken, call: str, old: str) -> None:
    await prepared(kept)
    server = kept.bucket.server
    good = Credentials(server.key, server.secret)
    bad = Credentials(server.key, "wrong") if old == "wrong secret" else Credentials("NOBODY", "wrong")
    store, source = with_source(kept.bucket, kept.proxy.endpoint, bad, good)
    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(CALLS[call][1], store)
    assert source.reads == 1
    with kept.proxy.recording() as traffic:
        await CALLS[call][1](store)
    assert traffic.count() == 1


@pytest.mark.parametrize("call", CEPH_CALLS)
@trio_test
async def test_a_key_that_stays_wrong_is_eacces(kept: Broken, call: str) -> None:
    await prepared(kept)
    store, source = with_source(kept.bucket, kept.proxy.endpoint, Credentials(kept.bucket.server.key, "wrong"))
    with kept.proxy.recording() as traffic, pytest.raises(StoreError) as caught:
        await CALLS[call][1](store)
    assert caught.value.errno == errno.EACCES
    assert (source.reads, traffic.count()) == (1, 1)


@trio_test
async def test_another_users_key_is_refused_key_by_key(kept: Broken) -> None:
    await prepared(kept)
    server = kept.bucket.server
    store, source = with_source(kept.bucket, kept.proxy.endpoint, Credentials(server.key2, server.secret2))
    for call in (store.head("key"), store.get("key", 0, 1), store.get("o//dd", 0, 1), store.put("k", b"", NONE)):
        with pytest.raises(StoreError) as caught:
            await call
        assert caught.value.errno == errno.EACCES
    failures = await store.delete_many(["key", "o//dd"])
    assert {(failure.key, failure.error.errno) for failure in failures} == {
        ("key", errno.EACCES),
        ("o//dd", errno.EACCES),
    }
    assert source.reads <= 1  # for the HEAD, which tells no reason
    with pytest.raises(StoreError, match="may not list"):
        await store.reach()
    assert kept.body("key") == BODY


@trio_test
async def test_reach(bucket: Bucket) -> None:
    await S3Store(target_of(bucket)).reach()
    await S3Store(target_of(bucket)).reach("some/prefix/")
    with pytest.raises(StoreError, match=r"'no-such-bucket' at http.*: .*there is no such bucket") as caught:
        await S3Store(target_of(bucket, name="no-such-bucket")).reach()
    assert caught.value.errno == errno.ENXIO
    if (bucket.server.name, "signature") not in DEFECTS:
        with pytest.raises(StoreError, match="the secret key is wrong"):
            await S3Store(target_of(bucket, secret="wrong")).reach()
        with pytest.raises(StoreError, match="does not know this access key"):
            await S3Store(target_of(bucket, key="NOBODY")).reach()


@pytest.mark.parametrize("endpoint", ["refused", "http://no-such-host.invalid:9000"])
@trio_test
async def test_an_endpoint_that_is_not_there_is_told_soon(bucket: Bucket, endpoint: str) -> None:
    where = f"http://127.0.0.1:{free_port()}" if endpoint == "refused" else endpoint
    with trio.fail_after(15), pytest.raises(StoreError) as caught:
        await S3Store(replace(target_of(bucket, endpoint=where), patience=25.0)).reach()
    assert caught.value.errno == errno.EIO
    assert where in str(caught.value)


@trio_test
async def test_a_missing_bucket_is_no_missing_file(bucket: Bucket) -> None:
    store = S3Store(target_of(bucket, name=f"{bucket.name}-gone"))
    for call in (
        store.list(""),
        store.get("key", 0, 1),
        store.get("o//dd", 0, 1),
        store.put("key", b"", NONE),
        store.put("o//dd", b"", NONE),
        store.delete("key"),
        store.create_multipart("key", NONE),
    ):
        with pytest.raises(StoreError) as caught:
            await call
        assert caught.value.errno == errno.ENXIO, caught.value


@ON_MOTO
@trio_test
async def test_a_slow_line_is_no_silence(proxy: Proxy, bucket: Bucket) -> None:
    """Each request takes longer than the time-outs; what the sockets' buffers hold (10 MiB) takes less."""
    store = behind(proxy, bucket, read_timeout=2.5).store
    body = os.urandom(24 << 20)
    proxy.inject(Throttle(6_000_000))
    await store.put("key", body, NONE)
    await store.copy("key", "o//dd")
    for key in ("key", "o//dd"):
        assert (await store.get(key, 0, len(body))).body.tobytes() == body
    upload = await store.create_multipart("key", NONE)
    part = await store.upload_part("key", upload, 1, body)
    assert (await store.complete_multipart("key", upload, [part])).size == len(body)
    assert proxy.traffic.count(Op.PUT, Op.GET, Op.UPLOAD_PART) == 4
