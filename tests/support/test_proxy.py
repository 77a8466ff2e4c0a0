"""The proxy that other tests lean on: what passes is unchanged, what it counts is right, what it breaks is broken."""

from __future__ import annotations

import contextlib
import http.client
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectionClosedError, HTTPClientError, ReadTimeoutError

from tests.support.faults import Action, Answer, CutRequest, CutResponse, Delay, Hang, Moment, Reset, Throttle
from tests.support.foreign import Foreign
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.traffic import on

MIB = 1 << 20


@pytest.fixture
def through(server: Server, proxy: Proxy, foreign: Foreign) -> Foreign:
    """A client of the test's bucket that speaks to the proxy and never tries again."""
    client = boto3.client(
        "s3",
        endpoint_url=proxy.endpoint,
        aws_access_key_id=server.key,
        aws_secret_access_key=server.secret,
        region_name="us-east-1",
        config=Config(
            s3={"addressing_style": "path"},
            retries={"total_max_attempts": 1},
            read_timeout=5,  # for 96 MiB on a busy machine
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )
    return Foreign(client, foreign.bucket)


def multipart(client: Foreign, key: str) -> None:
    """A multipart upload of two parts, the second copied from `big`, with one more that is given up."""
    s3, bucket = client.client, client.bucket
    upload = s3.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
    s3.upload_part(Bucket=bucket, Key=key, UploadId=upload, PartNumber=1, Body=bytes(5 * MIB))
    s3.upload_part_copy(
        Bucket=bucket,
        Key=key,
        UploadId=upload,
        PartNumber=2,
        CopySource=f"{bucket}/big",
        CopySourceRange="bytes=0-99",
    )
    s3.list_multipart_uploads(Bucket=bucket)
    found = s3.list_parts(Bucket=bucket, Key=key, UploadId=upload)["Parts"]
    s3.complete_multipart_upload(
        Bucket=bucket,
        Key=key,
        UploadId=upload,
        MultipartUpload={"Parts": [{"PartNumber": part["PartNumber"], "ETag": part["ETag"]} for part in found]},
    )
    given_up = s3.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
    s3.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=given_up)


def test_every_operation_passes_and_has_its_name(through: Foreign, foreign: Foreign, proxy: Proxy) -> None:
    s3, bucket = through.client, through.bucket
    body = os.urandom(20 * MIB)
    through.put("big", body)
    assert foreign.get("big") == body
    assert through.get("big") == body
    part = s3.get_object(Bucket=bucket, Key="big", Range="bytes=5-1000000")["Body"].read()
    assert part == body[5:1000001]
    through.head("big")
    multipart(through, "of parts")
    assert foreign.get("of parts") == bytes(5 * MIB) + body[:100]
    s3.copy_object(Bucket=bucket, Key="copy", CopySource={"Bucket": bucket, "Key": "of parts"})
    s3.get_object_acl(Bucket=bucket, Key="copy")
    s3.put_object_acl(Bucket=bucket, Key="copy", ACL="private")
    s3.get_bucket_location(Bucket=bucket)
    through.keys()
    s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "copy"}, {"Key": "none"}]})
    through.delete("big")
    assert proxy.traffic.tally() == {
        "PUT": 1,
        "GET": 2,
        "HEAD": 1,
        "CREATE_MULTIPART": 2,
        "UPLOAD_PART": 1,
        "COPY_PART": 1,
        "LIST_UPLOADS": 1,
        "LIST_PARTS": 1,
        "COMPLETE": 1,
        "ABORT": 1,
        "COPY": 1,
        "GET_ACL": 1,
        "PUT_ACL": 1,
        "SETTING": 1,
        "LIST": 1,
        "DELETE_MANY": 1,
        "DELETE": 1,
    }
    assert proxy.traffic.sent("PUT") == 20 * MIB
    assert proxy.traffic.received("GET") == 20 * MIB + 999996
    assert [r.range for r in proxy.traffic.of("GET")] == ["", "bytes=5-1000000"]
    assert b"<Key>none</Key>" in proxy.traffic.of("DELETE_MANY")[0].document
    assert {r.status for r in proxy.requests} <= {200, 204, 206}


@pytest.mark.parametrize("key", ["a b/ü+%?#&=.txt", "a//b", "/lead", "../x", "./x", "trail/", "%2F%25", "~!*'()"])
def test_odd_keys_stay_signed_and_are_recorded_decoded(
    through: Foreign, foreign: Foreign, proxy: Proxy, key: str
) -> None:
    through.put(key, b"odd")
    assert foreign.get(key) == b"odd"
    assert through.get(key) == b"odd"
    assert {r.key for r in proxy.requests} == {key}


def test_keep_alive_uses_one_connection_and_a_restart_is_survived(through: Foreign, proxy: Proxy) -> None:
    through.put("a", b"1")
    proxy.drop_connections()
    through.put("a", b"2")
    assert through.get("a") == b"2"


def test_chunked_upload_passes(proxy: Proxy, through: Foreign, foreign: Foreign) -> None:
    url = through.client.generate_presigned_url("put_object", Params={"Bucket": through.bucket, "Key": "c"})
    path = url.removeprefix(proxy.endpoint)
    connection = http.client.HTTPConnection(urlsplit(proxy.endpoint).netloc, timeout=10)
    connection.request("PUT", path, body=iter([b"one", b"two" * 50000]), encode_chunked=True)
    status = connection.getresponse().status
    connection.close()
    assert proxy.traffic.sent("PUT") == 3 + 150000
    if status == 200:  # Ceph wants a length (411), moto takes it
        assert foreign.get("c") == b"one" + b"two" * 50000
    else:
        assert status == 411


def test_recording_holds_what_happened_within(through: Foreign, proxy: Proxy) -> None:
    through.put("a", b"1")
    with proxy.recording() as traffic:
        through.get("a")
        through.head("a")
    through.get("a")
    assert traffic.tally() == {"GET": 1, "HEAD": 1}
    assert proxy.count() == 4
    assert proxy.count("GET") == 2
    proxy.reset()
    assert proxy.requests == []


def test_peak_tells_how_many_ran_at_once(through: Foreign, proxy: Proxy) -> None:
    through.put("a", b"1")
    proxy.latency = 0.2
    threads = [threading.Thread(target=through.get, args=("a",)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    through.get("a")
    assert proxy.traffic.peak("GET") == 5
    assert proxy.traffic.peak("PUT") == 1


@pytest.mark.parametrize("moment", Moment)
@pytest.mark.parametrize(
    ("status", "code"), [(500, "InternalError"), (503, "SlowDown"), (429, "TooManyRequests"), (403, "AccessDenied")]
)
def test_answer_instead(
    through: Foreign, foreign: Foreign, proxy: Proxy, status: int, code: str, moment: Moment
) -> None:
    rule = proxy.inject(Answer(status, code, moment), on("PUT", key="a"), times=1)
    with pytest.raises(ClientError) as caught:
        through.put("a", b"1" * 100_000)
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == status
    assert caught.value.response["Error"]["Code"] == code
    assert foreign.exists("a") == (moment is Moment.AFTER)
    through.put("b", b"1")
    through.put("a", b"2")
    assert rule.hits == 1
    assert foreign.get("a") == b"2"


def test_head_without_a_body(through: Foreign, proxy: Proxy) -> None:
    through.put("a")
    with proxy.broken(Answer(404), on("HEAD")), pytest.raises(ClientError, match="404"):
        through.head("a")
    through.head("a")


def test_good_answer_with_an_error_inside(through: Foreign, foreign: Foreign, proxy: Proxy) -> None:
    through.put("a", b"1")
    proxy.inject(Answer(200, "InternalError"), on("COPY"))
    with pytest.raises(ClientError, match="InternalError"):
        through.client.copy_object(Bucket=through.bucket, Key="b", CopySource={"Bucket": through.bucket, "Key": "a"})
    assert proxy.requests[-1].status == 200
    assert not foreign.exists("b")


@pytest.mark.parametrize("moment", Moment)
def test_reset(through: Foreign, foreign: Foreign, proxy: Proxy, moment: Moment) -> None:
    proxy.inject(Reset(moment), on("PUT"), times=1)
    with pytest.raises((ConnectionClosedError, HTTPClientError)):
        through.put("a", b"1" * MIB)
    assert foreign.exists("a") == (moment is Moment.AFTER)
    assert proxy.requests[-1].status == 0
    through.put("a", b"2")


@pytest.mark.parametrize("moment", Moment)
def test_hang_until_the_client_gives_up(through: Foreign, foreign: Foreign, proxy: Proxy, moment: Moment) -> None:
    proxy.inject(Hang(moment), on("PUT"), times=1)
    with pytest.raises(ReadTimeoutError):
        through.put("a", b"1")
    assert foreign.exists("a") == (moment is Moment.AFTER)


def test_body_cut_short_keeps_its_length_header(through: Foreign, proxy: Proxy) -> None:
    through.put("a", b"1" * 100_000)
    proxy.inject(CutResponse(1000), on("GET"), times=1)
    answer = through.client.get_object(Bucket=through.bucket, Key="a")
    assert answer["ContentLength"] == 100_000
    with pytest.raises(HTTPClientError):
        answer["Body"].read()
    assert proxy.traffic.received("GET") == 1000
    assert through.get("a") == b"1" * 100_000


@pytest.mark.parametrize("cut", [CutResponse(1000), CutRequest(1000)])
def test_cutting_where_there_is_no_body_does_not_hang(through: Foreign, proxy: Proxy, cut: Action) -> None:
    through.put("a", b"1" * 10)
    with proxy.broken(cut, on("HEAD")), contextlib.suppress(HTTPClientError):
        through.head("a")
    with contextlib.suppress(HTTPClientError):
        through.get("a")  # it may go with the connection that has just ended
    assert through.get("a") == b"1" * 10


def test_upload_cut_short_leaves_nothing(through: Foreign, foreign: Foreign, proxy: Proxy) -> None:
    proxy.inject(CutRequest(1000), on("PUT"), times=1)
    with pytest.raises(HTTPClientError):
        through.put("a", b"1" * 10_000_000)
    assert not foreign.exists("a")
    through.put("a", b"1")


@pytest.mark.parametrize(
    "slow", [lambda proxy: proxy.inject(Delay(0.5)), lambda proxy: proxy.inject(Throttle(200_000))]
)
def test_delay_and_throttle_lose_nothing(
    through: Foreign, foreign: Foreign, proxy: Proxy, slow: Callable[[Proxy], object]
) -> None:
    body = os.urandom(100_000)
    slow(proxy)
    through.put("a", body)
    assert foreign.get("a") == body
    assert through.get("a") == body
    proxy.settle(0)
    assert all(r.ended and r.ended - r.started > 0.3 for r in proxy.requests)


def test_chance_repeats_with_its_seed(through: Foreign, proxy: Proxy) -> None:
    through.put("a")

    def outcome(seed: int) -> list[int]:
        proxy.heal()
        proxy.reset()
        proxy.inject(Answer(404), on("HEAD"), chance=0.5, seed=seed)
        for _ in range(20):
            through.exists("a")
        return [r.status for r in proxy.requests]

    first = outcome(7)
    assert set(first) == {200, 404}
    assert outcome(7) == first
    assert outcome(8) != first


def test_close_ends_hanging_requests(server: Server, foreign: Foreign) -> None:
    proxy = Proxy(server.endpoint)
    proxy.inject(Hang())
    connection = http.client.HTTPConnection(urlsplit(proxy.endpoint).netloc, timeout=10)
    connection.request("GET", "/bucket/key")
    while not proxy.requests:
        time.sleep(0.01)
    proxy.close()
    with pytest.raises((http.client.HTTPException, OSError)):
        connection.getresponse()


def test_bodies_do_not_gather_in_memory(through: Foreign, foreign: Foreign, tmp_path: Path) -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    size = 96 * MIB
    source = tmp_path / "sparse"
    with source.open("wb") as file:
        file.truncate(size)
    before = resident()
    with source.open("rb") as body:
        through.client.put_object(Bucket=through.bucket, Key="large", Body=body)
    stream = through.client.get_object(Bucket=through.bucket, Key="large")["Body"]
    assert sum(map(len, stream.iter_chunks(MIB))) == size
    assert resident() - before < 48 * MIB
