"""What finds out what a server honours never leaves anything, whatever answer is lost, and stores nothing for good."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from sosfs.errors import StoreError
from sosfs.s3.bucket import S3Store
from sosfs.s3.protocol import Conditions, Guard, Properties, Right
from tests.conftest import Mounter
from tests.support.drive import fails
from tests.support.faults import INGRESS, Action, Answer, Hang, Moment, Page, Reset
from tests.support.foreign import Foreign
from tests.support.mounting import run_sosfs
from tests.support.proxy import Proxy
from tests.support.servers import Bucket, Server, client_of
from tests.support.subjects import target_of
from tests.support.traffic import Op, Request, on

MOTO = pytest.mark.parametrize("server", ["moto"], indirect=True)
CEPH = pytest.mark.parametrize("server", ["ceph"], indirect=True)
KEY = ".sosfs-probe-0"
OF_OTHERS = b"<DeleteResult><Error><Key>other</Key><Code>AccessDenied</Code></Error></DeleteResult>"
Opener = Callable[[float], S3Store]

FAULTS: Mapping[str, Action] = {
    "reset after": Reset(Moment.AFTER),
    "500 after": Answer(500, "InternalError", Moment.AFTER),
    "page after": Page(404, moment=Moment.AFTER, body=INGRESS),
    "login after": Page(200, moment=Moment.AFTER, body=INGRESS),
    "held after": Hang(Moment.AFTER),
}


@pytest.fixture
def opened(server: Server, foreign: Foreign, proxy: Proxy) -> Opener:
    def open_(patience: float) -> S3Store:
        bucket = Bucket(server, foreign.bucket, foreign.client)
        target = target_of(bucket, endpoint=proxy.endpoint)
        read_timeout = 0.5 if server.name == "moto" else 10.0
        return S3Store(replace(target, patience=patience, read_timeout=read_timeout, connect_timeout=1.0))

    return open_


def left(foreign: Foreign) -> list[Any]:
    """Whatever is in the bucket."""
    versions = foreign.client.list_object_versions(Bucket=foreign.bucket)
    uploads = foreign.client.list_multipart_uploads(Bucket=foreign.bucket)
    return [*versions.get("Versions", ()), *versions.get("DeleteMarkers", ()), *uploads.get("Uploads", ())]


def probed(store: S3Store, key: str = KEY) -> Conditions | StoreError:
    async def run() -> Conditions | StoreError:
        try:
            return await store.probe_conditions(key)
        except StoreError as error:
            return error

    try:
        return trio.run(run)
    finally:
        store.close()


def nth(number: int) -> Callable[[Request], bool]:
    """The request with this number, of those for the scratch key."""
    seen = 0

    def matches(request: Request) -> bool:
        nonlocal seen
        seen += 1
        return seen == number

    return matches


@MOTO
@pytest.mark.parametrize(
    ("fault", "versions"),
    [*((fault, "no versions") for fault in FAULTS), ("reset after", "versions"), ("page after", "versions")],
)
def test_nothing_is_left_whichever_answer_is_lost(
    opened: Opener, foreign: Foreign, proxy: Proxy, fault: str, versions: str
) -> None:
    """Each request of the probe in turn loses its answer, and is tried again where that is worth a try."""
    if versions == "versions":
        enabled = {"Status": "Enabled"}
        foreign.client.put_bucket_versioning(Bucket=foreign.bucket, VersioningConfiguration=enabled)  # type: ignore[arg-type]
    proxy.reset()
    assert probed(opened(5.0)) is Conditions.HONOURED
    assert left(foreign) == []
    for number in range(1, proxy.traffic.count() + 1):
        with proxy.broken(FAULTS[fault], nth(number), times=1):
            found = probed(opened(5.0))
        assert left(foreign) == [], number
        if fault in ("reset after", "500 after"):
            assert found is Conditions.HONOURED, (number, found)


@pytest.mark.parametrize(("server", "compares"), [("moto", False), ("ceph", True)], indirect=["server"])
def test_whether_the_server_compares_what_it_gets_is_found_out(opened: Opener, compares: bool) -> None:
    store = opened(5.0)
    assert probed(store) is Conditions.HONOURED
    assert store.capabilities.compares is compares


@pytest.mark.parametrize(("server", "heeds"), [("moto", True), ("ceph", False)], indirect=["server"])
def test_whether_a_version_alone_can_be_removed_is_found_out(opened: Opener, foreign: Foreign, heeds: bool) -> None:
    store = opened(5.0)
    assert probed(store) is Conditions.HONOURED
    assert (store.capabilities.delete_pin, store.capabilities.batch_pin) == (heeds, False)
    assert left(foreign) == []


@MOTO
@pytest.mark.parametrize(
    ("op", "action"),
    [
        (Op.DELETE, Answer(400, "InvalidArgument")),
        (Op.DELETE, Answer(501, "NotImplemented")),
        (Op.DELETE, Answer(404, "NoSuchKey")),
        (Op.DELETE_MANY, Answer(400, "MalformedXML")),
        (Op.DELETE_MANY, Answer(403, "AccessDenied")),
        (Op.DELETE_MANY, Answer(501, "NotImplemented")),
        (Op.DELETE_MANY, Page(200, body=OF_OTHERS, media="application/xml")),
    ],
    ids=str,
)
def test_a_server_that_knows_no_such_condition_is_mounted_all_the_same(
    opened: Opener, foreign: Foreign, proxy: Proxy, op: Op, action: Action
) -> None:
    with proxy.broken(
        action, lambda request: request.op is op and (op is Op.DELETE_MANY or "if-match" in request.headers)
    ):
        store = opened(5.0)
        assert probed(store) is Conditions.HONOURED
    assert (store.capabilities.delete_pin, store.capabilities.batch_pin) == (op is Op.DELETE_MANY, False)
    assert left(foreign) == []


@MOTO
@pytest.mark.parametrize("status", [400, 403, 404, 412])
def test_a_page_does_not_tell_what_a_server_knows(opened: Opener, foreign: Foreign, proxy: Proxy, status: int) -> None:
    """Else other versions than the one that is meant would be removed as long as this mount lasts."""
    page = Page(status, body=INGRESS)
    with proxy.broken(page, lambda request: request.op is Op.DELETE and "if-match" in request.headers, times=1):
        assert isinstance(probed(opened(0.3)), StoreError)
    assert left(foreign) == []


@MOTO
@pytest.mark.parametrize("op", [Op.PUT, Op.COPY, Op.CREATE_MULTIPART, Op.UPLOAD_PART, Op.COPY_PART, Op.COMPLETE])
def test_nothing_is_left_where_one_step_never_works(opened: Opener, foreign: Foreign, proxy: Proxy, op: Op) -> None:
    for action in (Answer(500, "InternalError", Moment.AFTER), Answer(400, "Confused"), Reset(Moment.AFTER)):
        with proxy.broken(action, on(op)):
            assert isinstance(probed(opened(0.3)), StoreError)
        assert left(foreign) == [], action


@CEPH
@pytest.mark.parametrize("state", ["off", "enabled", "suspended"])
def test_nothing_is_left_where_deleting_leaves_a_marker(opened: Opener, foreign: Foreign, state: str) -> None:
    for setting in {"off": (), "enabled": ("Enabled",), "suspended": ("Enabled", "Suspended")}[state]:
        foreign.client.put_bucket_versioning(
            Bucket=foreign.bucket,
            VersioningConfiguration={"Status": setting},  # type: ignore[typeddict-item]
        )
    store = opened(5.0)
    found = probed(store)
    assert left(foreign) == []
    assert found is (Conditions.IGNORED if state == "enabled" else Conditions.HONOURED)
    assert store.capabilities.markers == (state != "off")


@CEPH
def test_one_marker_is_left_for_good_where_versions_may_not_be_removed_however_often_it_is_mounted(
    opened: Opener, foreign: Foreign, proxy: Proxy
) -> None:
    """A delete alone tells whether the key may delete; but the first has told it."""
    foreign.keep_versions()

    def of_version(request: Request) -> bool:
        return request.method == "DELETE" and "versionId" in request.query

    with proxy.broken(Answer(403, "AccessDenied"), of_version):
        for number in range(3):
            store = opened(5.0)
            assert probed(store, f"{KEY}{number}") is Conditions.UNKNOWN
            assert store.capabilities.markers and not store.capabilities.denied
    assert [marker["Key"] for marker in left(foreign)] == [f"{KEY}0"]


@CEPH
def test_what_a_key_may_not_do_shows_beside_the_marker_that_another_key_has_left(
    opened: Opener, foreign: Foreign, proxy: Proxy
) -> None:
    """Else a key that may only read would be promised that what it writes is stored."""
    foreign.keep_versions()
    foreign.client.delete_object(Bucket=foreign.bucket, Key=f"{KEY}0")

    def is_change(request: Request) -> bool:
        return request.method in ("DELETE", "PUT", "POST")

    with proxy.broken(Answer(403, "AccessDenied"), is_change):
        store = opened(5.0)
        assert probed(store) is Conditions.UNKNOWN
    assert store.capabilities.denied == {Right.DELETE, Right.WRITE}
    assert [marker["Key"] for marker in left(foreign)] == [f"{KEY}0"]


@CEPH
@pytest.mark.parametrize("fault", ["reset after", "page after"])
def test_no_marker_is_left_whichever_answer_is_lost(opened: Opener, foreign: Foreign, proxy: Proxy, fault: str) -> None:
    """Ceph makes a marker with each delete, also of what was never there."""
    for setting in ("Enabled", "Suspended"):
        versioning = {"Status": setting}
        foreign.client.put_bucket_versioning(Bucket=foreign.bucket, VersioningConfiguration=versioning)  # type: ignore[arg-type]
    foreign.begin_and_abort("warm")
    proxy.reset()
    assert probed(opened(5.0)) is Conditions.HONOURED
    for number in range(1, proxy.traffic.count() + 1):
        with proxy.broken(FAULTS[fault], nth(number), times=1):
            found = probed(opened(5.0))
        assert left(foreign) == [], number
        assert fault == "page after" or found is Conditions.HONOURED, (number, found)


@CEPH
def test_nothing_is_stored_where_all_that_is_stored_is_locked(
    mounter: Mounter, server: Server, proxy: Proxy, foreign: Foreign
) -> None:
    """Nothing could be removed for a day; what the mount stores itself is locked, as the bucket's owner wishes."""
    locked = Foreign(client_of(server), f"{foreign.bucket}-locked")
    locked.client.create_bucket(Bucket=locked.bucket, ObjectLockEnabledForBucket=True)
    retention = {"DefaultRetention": {"Mode": "GOVERNANCE", "Days": 1}}
    locked.client.put_object_lock_configuration(
        Bucket=locked.bucket,
        ObjectLockConfiguration={"ObjectLockEnabled": "Enabled", "Rule": retention},  # type: ignore[typeddict-item]
    )
    drive = mounter(proxy.endpoint, source=locked.bucket)
    assert left(locked) == []
    told = run_sosfs(["doctor", locked.bucket, "--endpoint", proxy.endpoint], drive.mount.environment).stdout
    assert "not tried: what was written could not be removed again" in told
    assert left(locked) == []
    (drive.here / "file").write_bytes(b"kept")
    for change in (lambda file: file.write_bytes(b"changed"), Path.unlink):
        with fails(errno.EPERM):
            change(drive.here / "file")
    assert locked.get("file") == b"kept"
    with pytest.raises(FileExistsError), (drive.here / "file").open("xb"):
        pass
    assert {one["Key"] for one in left(locked)} == {"file"}


@MOTO
@pytest.mark.parametrize("size", [10, 3 << 20])
def test_a_hash_is_sent_where_the_server_wants_one(opened: Opener, foreign: Foreign, proxy: Proxy, size: int) -> None:
    """As AWS wants it in a bucket that locks what is stored; it is told once."""
    said = (
        b"<Error><Code>InvalidRequest</Code><Message>Content-MD5 OR x-amz-checksum- HTTP header is required for Put "
        b"Object requests with Object Lock parameters</Message></Error>"
    )
    refusal = Page(400, body=said, media="application/xml")
    rule = proxy.inject(
        refusal, lambda request: request.op in (Op.PUT, Op.UPLOAD_PART) and "content-md5" not in request.headers
    )
    store = opened(5.0)

    async def run() -> None:
        for name in ("one", "two"):
            await store.put(name, bytes(size), Properties(), condition=Guard.ABSENT)
        upload = await store.create_multipart("joined", Properties())
        part = await store.upload_part("joined", upload, 1, bytes(size))
        await store.complete_multipart("joined", upload, [part])

    trio.run(run)
    store.close()
    assert rule.hits == 1
    assert {key: len(foreign.get(key)) for key in foreign.keys("")} == dict.fromkeys(("joined", "one", "two"), size)
