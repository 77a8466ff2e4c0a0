"""What reaches a server and what is taken from it, whatever it answers: redirects, bounds, patience, proxies, trust.

Mostly against a server that answers by a script; that real servers understand all of it, other files show.
"""

from __future__ import annotations

import errno
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock
from urllib.parse import urlsplit

import pytest
from trio.testing import trio_test

from sosfs.concurrency.interrupt import Interrupt
from sosfs.config.choices import Verify
from sosfs.config.credentials import Credentials, Surroundings
from sosfs.errors import StoreError
from sosfs.s3 import certificate_authorities, retries, transport, unsigned_request
from sosfs.s3.bucket import S3Store
from sosfs.s3.bucket_settings import BucketSettings
from sosfs.s3.calls import SignedCalls
from sosfs.s3.capabilities import Capabilities
from sosfs.s3.customer_key import CustomerKey
from sosfs.s3.endpoint import S3Target
from sosfs.s3.file_body import FileBody, hashed
from sosfs.s3.http_messages import Fault, TransferError
from sosfs.s3.protocol import Detail, Part, Properties, Version
from sosfs.s3.proxies import proxy_for
from sosfs.s3.retries import Clock
from sosfs.s3.signed_request import SignedHttp
from sosfs.s3.throttle import Throttle
from tests.conftest import access_to
from tests.support.foreign import Foreign
from tests.support.mounting import Access, Mount, run_sosfs
from tests.support.scripted import Script, Scripted, Seen, answer, authority, relay
from tests.support.servers import Bucket, Server
from tests.support.subjects import Fixed, target_of
from tests.support.watchdog import Watchdog

TOKEN = "session-token-of-the-test"
KEY = Credentials("AKTEST", "secret/of+the=test", TOKEN)
BODY = b"0123456789"
OBJECT = ('ETag: "abc"', "Last-Modified: Wed, 21 Oct 2015 07:28:00 GMT")
MEBIBYTE = 1 << 20
HUGE = 1 << 30
PROXY_VARIABLES = [name for scheme in ("http", "https", "all", "no") for name in (f"{scheme}_proxy",)]
Call = Callable[[SignedCalls], object]

CALLS: dict[str, Call] = {
    "get": lambda calls: calls.get("key", 0, 10, ""),
    "head": lambda calls: calls.head("key"),
    "put": lambda calls: calls.put("key", BODY, Properties(), None),
    "list": lambda calls: calls.list("", delimiter="/", after="", token="", limit=1000),
    "copy": lambda calls: calls.copy("key", "other", pin="", properties=None, acl=None),
    "delete": lambda calls: calls.delete("key"),
    "delete many": lambda calls: calls.delete_many(["a", "b"]),
    "create": lambda calls: calls.create_multipart("key", Properties(), None),
    "part": lambda calls: calls.upload_part("key", "id", 1, BODY),
    "complete": lambda calls: calls.complete_multipart("key", "id", [Part(1, "0" * 32, 10)], {}),
    "get acl": lambda calls: calls.get_acl("key"),
    "odd key": lambda calls: calls.head("a/../b"),
}


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@dataclass
class Stopped:
    """A clock that stands still but for what is slept, and dice that fall high."""

    time: float = 1000.0
    slept: list[float] = field(default_factory=list)
    throw: float = 1.0

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.time += seconds

    @property
    def clock(self) -> Clock:
        return Clock(lambda: self.time, self.sleep, lambda: self.throw)


def target_at(endpoint: str, **options: Any) -> S3Target:
    settings: dict[str, Any] = {"patience": 0.0, "read_timeout": 20.0, "connect_timeout": 5.0} | options
    return S3Target("bucket", endpoint, "us-east-1", Fixed(KEY), **settings)


def lane_at(endpoint: str, clock: Clock = retries.CLOCK, **options: Any) -> SignedCalls:
    return SignedCalls(target_at(endpoint, **options), KEY, clock)


def refusal(call: Call, calls: SignedCalls) -> StoreError:
    with pytest.raises(StoreError) as caught:
        call(calls)
    calls.close()
    return caught.value


# --- redirects


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed(status: int, call: str) -> None:
    """Neither the object's key, the token nor the body leaves for the host that a server names."""
    secret = CustomerKey(bytes(range(32)))
    with Scripted(lambda _: answer(200, BODY, *OBJECT)) as thief:
        place = f"Location: {thief.endpoint}/bucket/key"
        with Scripted(lambda seen: answer(status, b"", place)) as server:
            error = refusal(CALLS[call], lane_at(server.endpoint, customer_key=secret, patience=5.0))
            assert [seen.target for seen in thief.seen] == []
            assert len(server.seen) == 1
            assert server.seen[0].headers["x-amz-security-token"] == TOKEN
        assert error.errno == errno.EIO
        assert error.status == status
        assert thief.host in str(error)


def test_a_redirect_names_the_endpoint_that_its_xml_tells() -> None:
    document = b"<Error><Code>PermanentRedirect</Code><Endpoint>b.s3.elsewhere.example</Endpoint></Error>"
    with Scripted(lambda seen: answer(301, b"" if seen.method == "HEAD" else document)) as server:
        error = refusal(CALLS["list"], lane_at(server.endpoint))
        assert (error.code, error.status, error.errno) == ("PermanentRedirect", 301, errno.EIO)
        assert "b.s3.elsewhere.example" in str(error)


def test_a_redirect_to_no_place_is_an_error_as_any_other() -> None:
    with Scripted(lambda _: answer(302, b"", "Location: http://[gateway/login")) as server:
        error = refusal(CALLS["get"], lane_at(server.endpoint))
        assert (error.status, error.errno) == (302, errno.EIO)


def test_who_asks_without_a_signature_follows_no_redirect_either() -> None:
    with (
        Scripted(lambda _: answer()) as other,
        Scripted(lambda _: answer(301, b"", f"Location: {other.endpoint}/")) as s,
    ):
        told = unsigned_request.head(f"{s.endpoint}/bucket", certificate_authorities.of_system())
        assert told.status == 301
        assert told.headers["LOCATION"].startswith(other.endpoint)
        assert other.seen == []
        assert "authorization" not in s.seen[0].headers


# --- bounds


def flood(head: bytes, *, chunked: bool = False) -> Script:
    """A gibibyte after `head`, which stops where nobody takes it any more."""

    def parts() -> Iterator[bytes]:
        yield head
        piece = b"x" * MEBIBYTE
        for _ in range(HUGE // MEBIBYTE):
            yield b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece

    return lambda _: parts()


RANGE = "Content-Range: bytes 0-9/1000000"
FLOODS: dict[str, tuple[Script, str, int]] = {
    "range, length told": (flood(answer(206, b"", *OBJECT, RANGE, length=HUGE)), "get", 16),
    "range, no length": (flood(answer(206, b"", *OBJECT, RANGE, length=-1)), "get", 16),
    "range, chunked": (
        flood(answer(206, b"", *OBJECT, RANGE, "Transfer-Encoding: chunked", length=-1), chunked=True),
        "get",
        16,
    ),
    "no range": (flood(answer(200, b"", *OBJECT, length=HUGE)), "get", 16),
    "no range, no length": (flood(answer(200, b"", *OBJECT, length=-1)), "get", 16),
    "listing": (flood(answer(200, b"", length=-1)), "list", 128),
    "listing, length told": (flood(answer(200, b"", length=HUGE)), "list", 16),
    "refusal": (flood(answer(403, b"", length=-1)), "get", 16),
    "refusal, length told": (flood(answer(403, b"", length=HUGE)), "list", 16),
    "refusal of a write": (flood(answer(500, b"", length=-1)), "put", 16),
    "answer to a write": (flood(answer(200, b"", 'ETag: "abc"', length=-1)), "put", 128),
    "answer to a delete": (flood(answer(204, b"", length=-1)), "delete", 16),
}


@pytest.mark.parametrize("case", FLOODS)
def test_what_is_longer_than_due_is_not_read(case: str) -> None:
    script, call, mebibytes = FLOODS[case]
    with Scripted(script) as server:
        calls = lane_at(server.endpoint)
        if case != "answer to a delete":  # a 204 has no body, so that nothing is read of one
            assert refusal(CALLS[call], calls).errno == errno.EIO
        else:
            CALLS[call](calls)
            calls.close()
        assert len(server.seen) == 1
    assert server.sent <= mebibytes * MEBIBYTE  # with what the sockets' buffers hold


@pytest.mark.parametrize(
    ("status", "length", "mebibytes"), [(200, -1, 128), (200, HUGE, 16), (404, -1, 16), (503, HUGE, 16)]
)
@trio_test
async def test_nor_is_it_of_the_settings_of_a_bucket(status: int, length: int, mebibytes: int) -> None:
    with Scripted(flood(answer(status, b"", length=length))) as server:
        target = target_at(server.endpoint)
        store = S3Store(target)
        with pytest.raises(StoreError) as caught:
            await BucketSettings(target, store.dispatcher).policy()
        store.close()
        assert caught.value.errno == errno.EIO
        assert "due" in str(caught.value)
    assert server.sent <= mebibytes * MEBIBYTE  # as above


def test_a_long_page_that_says_not_now_is_asked_again() -> None:
    page = answer(503, b"x" * (200 << 10), "Retry-After: 1")
    told = iter([page, page, answer(206, BODY, *OBJECT, "Content-Range: bytes 0-9/10")])
    with Scripted(lambda _: next(told)) as server:
        calls = lane_at(server.endpoint, Stopped().clock, patience=20.0)
        assert calls.get("key", 0, 10, "").body.tobytes() == BODY
        assert len(server.seen) == 3
        calls.close()


@trio_test
async def test_so_is_one_that_says_it_of_a_setting_of_the_bucket() -> None:
    told = iter([answer(503, b"x" * (200 << 10)), answer(404, b"<Error><Code>NoSuchCORSConfiguration</Code></Error>")])
    with Scripted(lambda _: next(told)) as server:
        target = target_at(server.endpoint, patience=20.0)
        store = S3Store(target)
        assert await BucketSettings(target, store.dispatcher).cors() == []
        assert len(server.seen) == 2
        store.close()


def test_headers_have_a_bound_too() -> None:
    def endless(_: Seen) -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\n"
        line = f"x-amz-meta-a: {'x' * 1000}\r\n".encode()
        for _number in range(HUGE // MEBIBYTE):
            yield line * 1024

    with Scripted(endless) as server:
        assert refusal(CALLS["head"], lane_at(server.endpoint)).errno == errno.EIO
    assert server.sent <= 16 * MEBIBYTE  # as above


# --- what is an object


NO_OBJECTS: dict[str, tuple[bytes, str]] = {
    "login page": (answer(200, b"<html>Please log in</html>", "Content-Type: text/html"), "text/html"),
    "nothing": (answer(200), "ETag"),
    "error": (answer(200, b"<Error><Code>AccessDenied</Code></Error>", "Content-Type: application/xml"), "ETag"),
    "no ETag": (answer(206, BODY, OBJECT[1], "Content-Range: bytes 0-9/10"), "ETag"),
    "empty ETag": (answer(206, BODY, 'ETag: ""', "Content-Range: bytes 0-9/10"), "ETag"),
    "page of a program": (
        answer(200, b"<html>Please log in</html>", 'ETag: W/"1a-Tg"', "Content-Type: text/html"),
        "text/html",
    ),
    "two ETags": (answer(206, BODY, *OBJECT, 'ETag: "def"', "Content-Range: bytes 0-9/10"), "ETag"),
    "no range told": (answer(206, BODY, *OBJECT), "Content-Range"),
    "another range": (answer(206, BODY, *OBJECT, "Content-Range: bytes 5-14/100"), "5"),
    "longer range": (answer(206, BODY * 2, *OBJECT, "Content-Range: bytes 0-19/100"), "20"),
    "range past the end": (answer(206, BODY, *OBJECT, "Content-Range: bytes 0-9/5"), "5"),
    "backward range": (answer(206, BODY, *OBJECT, "Content-Range: bytes 9-0/100"), "9"),
    "unknown total": (answer(206, BODY, *OBJECT, "Content-Range: bytes 0-9/*"), "Content-Range"),
    "negative range": (answer(206, BODY, *OBJECT, "Content-Range: bytes -5-9/10"), "Content-Range"),
    "absurd total": (answer(206, BODY, *OBJECT, f"Content-Range: bytes 0-9/{10**18}"), "length"),
    "more absurd total": (answer(206, BODY, *OBJECT, f"Content-Range: bytes 0-9/{10**30}"), "Content-Range"),
    "no time": (answer(206, BODY, OBJECT[0], "Last-Modified: yesterday", "Content-Range: bytes 0-9/10"), "yesterday"),
    "204": (answer(204, b"", *OBJECT, length=-1), "Content-Length"),
    "whole, no length": (b"HTTP/1.1 200 OK\r\n" + "\r\n".join(OBJECT).encode() + b"\r\n\r\n" + BODY, "Content-Length"),
    "whole, too large": (answer(200, BODY, *OBJECT, length=65 * MEBIBYTE), "ranges"),
}


@pytest.mark.parametrize("case", NO_OBJECTS)
def test_what_is_no_object_is_not_read_as_one(case: str) -> None:
    told, word = NO_OBJECTS[case]
    with Scripted(lambda _: told) as server:
        error = refusal(CALLS["get"], lane_at(server.endpoint, patience=5.0))
        assert error.errno == errno.EIO
        assert word in str(error)
        assert len(server.seen) == 1


@pytest.mark.parametrize(("fields", "length", "word"), [
    (("Content-Type: text/html",), 512, "text/html"),
    (('ETag: ""',), 10, "ETag"),
    (('ETag: W/"1a-Tg"', "Content-Type: text/html"), 26, "text/html"),
    (OBJECT, -1, "Content-Length"),
    ((*OBJECT, f"Content-Length: {10**30}"), -1, "length"),
    ((*OBJECT, f"Content-Length: {1 << 62}"), -1, "length"),
    ((OBJECT[0], "Last-Modified: 0"), 10, "Last-Modified"),
    ((OBJECT[0], "Last-Modified: Wed, 99 Oct 2015 07:28:00 GMT"), 10, "Last-Modified"),
])  # fmt: skip
def test_a_head_that_tells_of_no_object_is_an_error(fields: tuple[str, ...], length: int, word: str) -> None:
    with Scripted(lambda _: answer(200, b"", *fields, length=length)) as server:
        error = refusal(CALLS["head"], lane_at(server.endpoint))
        assert error.errno == errno.EIO
        assert word in str(error)


@pytest.mark.parametrize("length", ["-5", "ten", "+10", "0x10", "1 0", "", "٣"])
@pytest.mark.parametrize("call", ["get", "head", "list"])
def test_a_length_that_is_none_is_an_error(call: str, length: str) -> None:
    head = f"HTTP/1.1 200 OK\r\n{OBJECT[0]}\r\nContent-Length: {length}\r\n\r\n".encode()
    with Scripted(lambda _: iter([head])) as server:
        assert refusal(CALLS[call], lane_at(server.endpoint)).errno == errno.EIO


ODD_HEADS = {
    "another protocol": "HTTP/1.1 101 Switching Protocols\r\nContent-Length: 10",
    "a length that is none to libcurl": "HTTP/1.1 206 OK\r\nContent-Length : 5",
    "two lengths": "HTTP/1.1 206 OK\r\nContent-Length: 5, 5",
    "no status": "HTTP/1.1 ",
    "a status of two digits": "HTTP/1.1 20",
    "a status below all": "HTTP/1.1 099",
    "no more than a beginning": "HTTP/1.1 100 Continue",
}


@pytest.mark.parametrize("head", ODD_HEADS)
@pytest.mark.parametrize("call", CALLS)
def test_what_is_no_answer_of_http_is_an_error_and_no_more(call: str, head: str, capfd: Any) -> None:
    fields = "\r\n".join((*OBJECT, RANGE, "", ""))
    with Scripted(lambda _: iter([f"{ODD_HEADS[head]}\r\n{fields}".encode() + BODY])) as server:
        assert refusal(CALLS[call], lane_at(server.endpoint)).errno == errno.EIO
    assert capfd.readouterr().err == "", "what a callback of libcurl raises ends there"


def test_a_server_without_ranges_is_cut_to_size() -> None:
    with Scripted(lambda _: answer(200, bytes(range(100)), *OBJECT)) as server:
        calls = lane_at(server.endpoint)
        found = calls.get("key", 20, 30, "")
        assert found.body.tobytes() == bytes(range(20, 30))
        assert found.object.version == Version("abc", 100, found.object.version.modified)
        calls.close()


def test_a_short_range_is_asked_for_again() -> None:
    short = answer(206, BODY[:4], *OBJECT, "Content-Range: bytes 0-9/10")
    unframed = answer(206, BODY[:4], *OBJECT, "Content-Range: bytes 0-9/10", length=-1)
    whole = answer(206, BODY, *OBJECT, "Content-Range: bytes 0-9/10")
    told: Iterator[Any] = iter([short, iter([unframed]), whole])
    with Scripted(lambda _: next(told)) as server:
        calls = lane_at(server.endpoint, Stopped().clock, patience=5.0)
        assert calls.get("key", 0, 10, "").body.tobytes() == BODY
        assert len(server.seen) == 3
        calls.close()


@pytest.mark.parametrize(
    "lacking",
    [
        b"<ListMultipartUploadsResult/>",
        b"<ListMultipartUploadsResult><IsTruncated>true</IsTruncated></ListMultipartUploadsResult>",
        b"<ListMultipartUploadsResult><IsTruncated>false</IsTruncated><Upload/></ListMultipartUploadsResult>",
    ],
)
def test_a_listing_of_uploads_that_lacks_something_is_an_error(lacking: bytes) -> None:
    with Scripted(lambda _: answer(200, lacking)) as server:
        assert refusal(lambda calls: calls.list_uploads("", None), lane_at(server.endpoint)).errno == errno.EIO


@pytest.mark.parametrize("call", ["put", "part"])
def test_what_is_stored_without_an_etag_is_not_known_to_be_stored(call: str) -> None:
    with Scripted(lambda _: answer(200, b"")) as server:
        error = refusal(CALLS[call], lane_at(server.endpoint))
        assert error.errno == errno.EIO
        assert "ETag" in str(error)


@pytest.mark.parametrize("call", ["put", "part"])
@pytest.mark.parametrize(
    ("page", "etag"),
    [
        (b"<html>welcome</html>", ""),
        (b"<html>welcome</html>", 'W/"14-abc"'),
        (b"<html>welcome</html>", '"0123456789abcdef0123456789abcdef"'),
        (b"", 'W/"0-abc"'),
        (b"", '"a", "b"'),
        (b"", '""'),
    ],
)
def test_a_page_in_answer_to_what_is_sent_stores_nothing(call: str, page: bytes, etag: str) -> None:
    """Programs that make pages give them ETags of their own, whatever they were asked."""
    told = answer(200, page, "Content-Type: text/html", *([f"ETag: {etag}"] if etag else []))
    secret = CustomerKey(bytes(range(32)))
    with Scripted(lambda _: told) as server:
        for key in (None, secret):
            error = refusal(CALLS[call], lane_at(server.endpoint, customer_key=key))
            assert error.errno == errno.EIO
            assert "text/html" in str(error)


# --- patience


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("fault", ["503", "522", "late error", "reset", "nothing", "rubbish"])
def test_patience_is_kept_by_every_call(call: str, fault: str) -> None:
    """It is tried all the time that the user gave, and no longer."""
    scripts: dict[str, Script] = {
        "503": lambda _: answer(503, b""),
        "522": lambda _: answer(522, b"<html>Connection timed out</html>"),  # of Cloudflare
        "late error": lambda _: answer(200, b"<Error><Code>InternalError</Code></Error>"),
        "reset": lambda _: None,
        "nothing": lambda _: iter([b""]),
        "rubbish": lambda _: iter([b"no HTTP at all\r\n\r\n"]),
    }
    if fault == "late error" and call in ("get", "head", "odd key", "list", "get acl", "delete"):
        return  # there it is an answer that cannot be understood
    with Scripted(scripts[fault]) as server:
        stopped = Stopped()
        error = refusal(CALLS[call], lane_at(server.endpoint, stopped.clock, patience=60.0))
        assert error.errno == errno.EIO
        assert len(server.seen) >= len(stopped.slept) + 1 > 12
        assert sum(stopped.slept) == pytest.approx(60.0)
        assert max(stopped.slept) <= retries.PAUSE_MAX


def test_patience_holds_where_nobody_listens() -> None:
    with Scripted(lambda _: None) as server:
        endpoint = server.endpoint
    stopped = Stopped()
    error = refusal(CALLS["head"], lane_at(endpoint, stopped.clock, patience=30.0))
    assert error.errno == errno.EIO
    assert "refused" in str(error)
    assert sum(stopped.slept) == pytest.approx(30.0)
    assert not error.repeated


def test_no_patience_is_one_try() -> None:
    with Scripted(lambda _: answer(503)) as server:
        refusal(CALLS["head"], lane_at(server.endpoint, patience=0.0))
        assert len(server.seen) == 1


@trio_test
async def test_settings_of_a_bucket_keep_it_too_and_follow_nobody() -> None:
    """These few calls go through botocore, by the same rules."""
    told = iter([answer(503), None, answer(500), answer(404, b"<Error><Code>NoSuchCORSConfiguration</Code></Error>")])
    with Scripted(lambda _: next(told)) as server:
        store = S3Store(target_at(server.endpoint, patience=20.0))
        assert await BucketSettings(target_at(server.endpoint, patience=20.0), store.dispatcher).cors() == []
        assert len(server.seen) == 4
    with (
        Scripted(lambda _: answer()) as thief,
        Scripted(lambda _: answer(307, b"", f"Location: {thief.endpoint}/")) as s,
    ):
        with pytest.raises(StoreError):
            await BucketSettings(target_at(s.endpoint), store.dispatcher).policy()
        assert thief.seen == []
    with Scripted(lambda _: answer(503)) as server:
        with pytest.raises(StoreError):
            await BucketSettings(target_at(server.endpoint, patience=0.0), store.dispatcher).policy()
        assert len(server.seen) == 1
    store.close()


def test_who_is_in_a_hurry_is_told_sooner() -> None:
    with Scripted(lambda _: answer(503)) as server:
        stopped = Stopped()
        calls = lane_at(server.endpoint, stopped.clock, patience=60.0)
        refusal(CALLS["list"], calls.within(3.0))
        assert sum(stopped.slept) == pytest.approx(3.0)


def test_pauses_grow_and_are_thrown() -> None:
    with Scripted(lambda _: answer(503)) as server:
        high, low = Stopped(throw=1.0), Stopped(throw=0.5)
        for stopped in (high, low):
            refusal(CALLS["head"], lane_at(server.endpoint, stopped.clock, patience=9.0))
        assert high.slept[:6] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2])
        assert low.slept[:6] == pytest.approx([pause / 2 for pause in high.slept[:6]])


@pytest.mark.parametrize("status", [429, 503])
def test_the_server_is_left_alone_for_as_long_as_it_asks(status: int) -> None:
    told = iter([answer(status, b"", "Retry-After: 7"), answer(200, b"", *OBJECT, length=10)])
    with Scripted(lambda _: next(told)) as server:
        stopped = Stopped()
        calls = lane_at(server.endpoint, stopped.clock, patience=60.0)
        assert calls.head("key").version.size == 10
        assert stopped.slept == [7.0]
        calls.close()


def test_a_date_to_come_back_at_is_understood() -> None:
    now = 1_700_000_000.0
    for text, seconds in (
        (formatdate(now + 90, usegmt=True), 90.0),
        (formatdate(now - 90, usegmt=True), 0.0),
        ("120", 120.0),
        ("soon", 0.0),
        ("-5", 0.0),
        ("²", 0.0),
        ("", 0.0),
        ("9" * 400, 999_999_999.0),
    ):
        assert retries.retry_after({"Retry-After": text}, now=lambda: now) == seconds, text


def test_each_try_counts() -> None:
    patience = retries.Patience(1.0, Stopped().clock)
    while patience.wait(0.4):
        pass
    assert patience.tries == 4


def test_nobody_signs_nothing() -> None:
    with Scripted(lambda _: answer(200, b"", *OBJECT)) as server:
        calls = SignedCalls(target_at(server.endpoint), Credentials("", ""))
        calls.head("key")
        calls.put("a/../b", b"", Properties(), None)
        calls.close()
    for seen in server.seen:
        assert {"authorization", "x-amz-content-sha256", "x-amz-security-token"}.isdisjoint(seen.headers)


def test_what_is_known_of_whether_the_server_answers() -> None:
    """For `sosfs status`; an answer of any S3 server ends it, a gateway's does not."""
    page = answer(503, b"<html/>")
    refused = answer(403, b"<Error><Code>AccessDenied</Code></Error>")
    acl = b"<AccessControlPolicy><Owner><ID>me</ID></Owner></AccessControlPolicy>"
    told = iter([None, refused, page, answer(200, acl), page])
    with Scripted(lambda _: next(told)) as server:
        calls = lane_at(server.endpoint)
        traffic, silent = calls._http._target.traffic, []
        for _ in range(5):
            with suppress(StoreError):
                calls.get_acl("key")
            silent.append(traffic.silence is not None)
        calls.close()
    assert silent == [True, False, True, False, True]
    assert traffic.failures == 3


@pytest.mark.parametrize(
    "told", [answer(503, b"<Error><Code>SlowDown</Code></Error>"), answer(429, b"<html/>")], ids=["server", "gateway"]
)
def test_a_server_that_asks_for_fewer_requests_gets_fewer(told: bytes) -> None:
    throttle = Throttle(transfers=16)
    answers = iter([told, answer(500), answer(200, b"", *OBJECT)])
    with Scripted(lambda _: next(answers)) as server:
        calls = SignedCalls(target_at(server.endpoint, patience=20.0), KEY, throttle=throttle)
        calls.head("key")
        calls.close()
    assert (throttle.congestion.refusals, throttle.congestion.allowed) == (1, 8)


def test_who_asks_without_a_signature_asks_twice_and_not_for_long() -> None:
    released = threading.Event()

    def script(seen: Seen) -> bytes | None:
        if seen.target == "/silent":
            released.wait(20)
        return next(told) if seen.target == "/" else answer(200)

    bundle = certificate_authorities.Bundle("", "")
    told = iter([None, answer(404)])
    with Scripted(script) as server:
        assert unsigned_request.head(server.endpoint, bundle).status == 404
        assert len(server.seen) == 2
        told = iter([None, None])
        with pytest.raises(StoreError) as lost:
            unsigned_request.head(server.endpoint, bundle)
        with pytest.raises(StoreError) as silent:
            unsigned_request.head(f"{server.endpoint}/silent", bundle, seconds=1.0)
        released.set()
        assert (lost.value.errno, silent.value.errno) == (errno.EIO, errno.ETIMEDOUT)
        assert len(server.seen) == 5


def test_a_server_that_wants_to_be_left_alone_for_long_does_not_outlast_patience() -> None:
    with Scripted(lambda _: answer(503, b"", "Retry-After: 86400")) as server:
        stopped = Stopped()
        refusal(CALLS["put"], lane_at(server.endpoint, stopped.clock, patience=25.0))
        assert stopped.slept == [25.0]
        assert len(server.seen) == 2


@pytest.mark.parametrize("call", ["get", "list", "put"])
def test_silence_is_a_time_out(call: str) -> None:
    released = threading.Event()

    def hang(_: Seen) -> None:
        released.wait(30)

    with Scripted(hang) as server:
        began = time.monotonic()
        error = refusal(CALLS[call], lane_at(server.endpoint, read_timeout=0.5, patience=0.1))
        assert error.errno == errno.ETIMEDOUT
        assert time.monotonic() - began < 10
        released.set()


def test_what_moves_slowly_is_waited_for() -> None:
    def slow(_: Seen) -> Iterator[bytes]:
        yield answer(206, b"", *OBJECT, "Content-Range: bytes 0-9/10", length=10)
        for byte in BODY[:5]:
            time.sleep(0.5)
            yield bytes([byte])
        yield BODY[5:]

    with Scripted(slow) as server:
        calls = lane_at(server.endpoint, read_timeout=1.5)
        assert calls.get("key", 0, 10, "").body.tobytes() == BODY
        calls.close()


@pytest.mark.parametrize(("upload", "download"), [(0, 0), (100, 0), (0, 100), (100, 1 << 40)])
def test_a_request_may_take_the_longer_the_lower_a_rate_is(
    monkeypatch: pytest.MonkeyPatch, upload: int, download: int
) -> None:
    """What trickles has an end; what the mount itself holds back has time for all that may be under way with it."""
    monkeypatch.setattr(transport, "REQUEST_SECONDS", 1)
    monkeypatch.setattr(transport, "IN_FLIGHT", 3000)

    def slow(_: Seen) -> Iterator[bytes]:
        yield answer(206, b"", *OBJECT, "Content-Range: bytes 0-9/10", length=10)
        time.sleep(1.5)
        yield BODY

    throttle = Throttle(upload=upload, download=download, transfers=2)
    with Scripted(slow) as server:
        calls = SignedCalls(target_at(server.endpoint), KEY, throttle=throttle)
        if upload or download:
            assert calls.get("key", 0, 10, "").body.tobytes() == BODY
            calls.close()
        else:
            assert refusal(CALLS["get"], calls).errno == errno.ETIMEDOUT


# --- what may have been done twice


def flaky(*told: bytes | None) -> Script:
    """Answers in turn; None ends the connection without one."""
    turn = iter(told)
    return lambda _: next(turn)


PUT = answer(200, b"", 'ETag: "abc"')
CREATED = answer(
    200, b"<InitiateMultipartUploadResult><UploadId>one</UploadId></InitiateMultipartUploadResult>", *OBJECT
)
LOST_RACE = answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")


@pytest.mark.parametrize(("told", "repeated"), [
    ((PUT, LOST_RACE), False),
    ((PUT, None, LOST_RACE), True),  # the kept connection was dead: libcurl itself sends again
    ((None, LOST_RACE), True),
    ((answer(500), LOST_RACE), True),
])  # fmt: skip
def test_a_refusal_tells_whether_an_earlier_try_may_be_meant(told: tuple[bytes | None, ...], repeated: bool) -> None:
    with Scripted(flaky(*told)) as server:
        calls = lane_at(server.endpoint, Stopped().clock, patience=5.0)
        if told[0] is PUT:
            calls.put("first", BODY, Properties(), None)
        error = refusal(lambda calls: calls.put("key", BODY, Properties(), None, {"If-None-Match": "*"}), calls)
        assert error.errno == errno.ESTALE
        assert error.repeated is repeated
        assert len(server.seen) == len(told)
        assert [seen.body for seen in server.seen] == [BODY] * len(told)


@pytest.mark.parametrize(("told", "repeated"), [((PUT, CREATED), False), ((PUT, None, CREATED), True)])
def test_a_good_answer_tells_it_too(told: tuple[bytes | None, ...], repeated: bool) -> None:
    with Scripted(flaky(*told)) as server:
        http = SignedHttp(target_at(server.endpoint), KEY)
        http.send("PutObject", "PUT", "key", body=BODY)
        assert http.send("CreateMultipartUpload", "POST", "key", query={"uploads": ""}).repeated is repeated
        http.close()


@pytest.mark.parametrize("sends", [0, 1])
def test_what_never_went_out_has_done_nothing(sends: int) -> None:
    """Else what another client has stored would pass for our own."""
    with Scripted(lambda _: answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")) as server:
        calls = lane_at(server.endpoint, Stopped().clock, patience=20.0)
        lost, wire = [TransferError(Fault.UNREACHED, "", sends)], calls._http._transport

        def exchange(*arguments: Any) -> Any:
            if lost:
                raise lost.pop()
            return type(wire).exchange(wire, *arguments)

        wire.exchange = exchange  # type: ignore[assignment,method-assign]
        error = refusal(lambda calls: calls.put("key", BODY, Properties(), None, {"If-None-Match": "*"}), calls)
        assert (error.errno, error.repeated) == (errno.ESTALE, sends > 0)


def test_of_one_answer_nothing_is_left_in_the_next_on_its_connection() -> None:
    page = b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"
    chunked = answer(200, b"%x\r\n%b\r\n0\r\n\r\n" % (len(page), page), "Transfer-Encoding: chunked", length=-1)
    twice = chunked.replace(b"\r\n", b"\r\nContent-Length: 7\r\n", 1)  # which does not count then
    whole = answer(206, BODY, *OBJECT, "Content-Range: bytes 0-9/10")
    missing = answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
    steps: list[tuple[bytes, str, int]] = [
        (whole, "get", 0), (chunked, "list", 0), (missing, "get", errno.ENOENT), (twice, "list", 0),
        (answer(206, BODY, *OBJECT), "get", errno.EIO), (whole, "get", 0), (PUT, "put", 0),
        (missing, "put", errno.ENOENT), (PUT, "part", 0), (answer(200, b"", *OBJECT, length=7), "head", 0),
        (chunked, "list", 0),
    ]  # fmt: skip
    told = iter([one for one, _, _ in steps])
    with Scripted(lambda _: next(told)) as server:
        calls = lane_at(server.endpoint)
        for at, (_, call, number) in enumerate(steps):
            try:
                made: Any = CALLS[call](calls)
            except StoreError as error:
                assert error.errno == number, at
                continue
            assert number == 0, at
            assert not hasattr(made, "body") or made.body.tobytes() == BODY, at
            assert not hasattr(made, "version") or made.version.size == 7, at
        assert [seen.body for seen in server.seen if seen.method == "PUT"] == [BODY] * 3
        assert server.connections <= 2, "one ended with an answer that was not read"
        calls.close()


@pytest.mark.parametrize("early", [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nETag: x\r\n\r\n"])
def test_what_comes_before_the_answer_is_none(early: bytes) -> None:
    told = iter([answer(206, BODY, *OBJECT, "Content-Range: bytes 0-9/10"), PUT])
    with Scripted(lambda _: early * 2 + next(told)) as server:
        calls = lane_at(server.endpoint)
        assert calls.get("key", 0, 10, "").object.version.etag == "abc"
        assert calls.put("key", BODY, Properties(), None).etag == "abc"
        calls.close()


def test_a_file_that_is_shorter_than_what_is_to_be_sent_of_it_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * MEBIBYTE)
    with Scripted(lambda _: PUT) as server, path.open("rb") as file:
        body = FileBody(file.fileno(), 0, 2 * MEBIBYTE)
        error = refusal(lambda calls: calls.upload_part("key", "id", 1, body), lane_at(server.endpoint, patience=60.0))
        assert error.errno == errno.EIO
        assert "cut off" in str(error)
        assert server.connections <= 1, "another try would fare no better"  # it may not have looked yet


@pytest.mark.parametrize(("call", "upload", "download"), [("part", 1, 0), ("get", 0, 1)])
def test_who_waits_may_give_up_what_a_rate_holds_back(call: str, upload: int, download: int) -> None:
    told = {"part": PUT, "get": answer(206, BODY, *OBJECT, "Content-Range: bytes 0-9/10")}[call]
    with Scripted(lambda _: told) as server:
        interrupt = Interrupt()
        threading.Timer(0.3, interrupt.set).start()
        began = time.monotonic()
        calls = SignedCalls(
            target_at(server.endpoint), KEY, throttle=Throttle(upload=upload, download=download, transfers=2)
        )
        with suppress(StoreError):  # its last byte may be through
            CALLS[call](calls.under(interrupt))
        calls.close()
        assert time.monotonic() - began < 5.0


@pytest.mark.parametrize(
    "refused",
    [answer(206, BODY, *OBJECT), answer(206, BODY * 2, *OBJECT, "Content-Range: bytes 0-9/10")],
    ids=["no range", "too much"],
)
def test_why_one_request_failed_is_not_why_the_next_does(refused: bytes) -> None:
    """What is lost is asked for again, whatever came before by the same connection."""
    told = iter([refused, None, answer(206, BODY, *OBJECT, "Content-Range: bytes 0-9/10")])
    with Scripted(lambda _: next(told)) as server:
        calls = lane_at(server.endpoint, Stopped().clock, patience=5.0)
        with pytest.raises(StoreError):
            CALLS["get"](calls)
        assert calls.get("key", 0, 10, "").body.tobytes() == BODY
        assert len(server.seen) == 3
        calls.close()


def test_nobody_is_asked_whether_a_body_may_come() -> None:
    """Servers that do not answer that cost a second for each."""
    with Scripted(lambda _: PUT) as server:
        calls = lane_at(server.endpoint)
        calls.put("key", b"x" * 2 * MEBIBYTE, Properties(), None)
        assert "expect" not in server.seen[0].headers
        calls.close()


def test_a_connection_is_kept() -> None:
    with Scripted(lambda _: answer(200, b"", *OBJECT, length=10)) as server:
        calls = lane_at(server.endpoint)
        for _ in range(5):
            calls.head("key")
        assert (len(server.seen), server.connections) == (5, 1)
        calls.close()


@trio_test
async def test_who_is_done_keeps_no_connection() -> None:
    with Scripted(lambda _: answer(200, b"", *OBJECT)) as server:
        store = S3Store(target_at(server.endpoint))
        await store.head("key")
        calls = store.dispatcher._calls
        assert calls is not None
        assert len(calls._http._transport._idle) == 1
        store.close()
        assert len(calls._http._transport._idle) == 0


def test_connections_that_nobody_uses_are_closed_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now, both = [0.0], threading.Barrier(2)

    def script(_: Seen) -> bytes:
        both.wait(20)
        return answer(200, b"", *OBJECT, length=10)

    def ask_both() -> None:
        both.reset()
        threads = [threading.Thread(target=calls.head, args=("key",)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)

    monkeypatch.setattr(transport, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with Scripted(script) as server:
        calls = lane_at(server.endpoint)
        for moment, connections in ((0.0, 2), (transport.IDLE, 2), (2 * transport.IDLE + 1, 4)):
            now[0] = moment
            calls.sweep()
            ask_both()
            assert server.connections == connections, moment
        calls.close()


@trio_test
async def test_so_are_those_that_the_settings_of_a_bucket_were_asked_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new key goes over the same ones."""
    now, keys = [0.0], [KEY]
    nothing = answer(404, b"<Error><Code>NoSuchCORSConfiguration</Code></Error>")
    monkeypatch.setattr(transport, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(Fixed, "current", lambda _: keys[0])
    with Scripted(lambda _: nothing) as server:
        target = target_at(server.endpoint)
        store = S3Store(target)
        settings = BucketSettings(target, store.dispatcher)
        settings.sweep()
        for moment, connections in ((0.0, 1), (transport.IDLE, 1), (2 * transport.IDLE + 1, 2)):
            now[0], keys[0] = moment, replace(KEY, access_key=f"key{moment:.0f}")
            settings.sweep()
            assert await settings.cors() == []
            assert server.connections == connections, moment
        settings.close()
        assert await settings.cors() == []
        assert server.connections == 3, "it was closed"
        settings.close()
        store.close()


# --- interrupts


def test_who_waits_may_give_up_a_request_under_way() -> None:
    released = threading.Event()

    def hang(_: Seen) -> None:
        released.wait(30)

    with Scripted(hang) as server:
        interrupt = Interrupt()
        threading.Timer(0.3, interrupt.set).start()
        began = time.monotonic()
        error = refusal(CALLS["get"], lane_at(server.endpoint, patience=20.0).under(interrupt))
        assert error.errno == errno.EINTR
        assert time.monotonic() - began < 2.0
        assert len(server.seen) == 1
        released.set()


def test_who_waits_may_give_up_between_two_tries() -> None:
    with Scripted(lambda _: answer(503, b"", "Retry-After: 60")) as server:
        interrupt = Interrupt()
        threading.Timer(0.3, interrupt.set).start()
        began = time.monotonic()
        error = refusal(CALLS["list"], lane_at(server.endpoint, patience=60.0).under(interrupt))
        assert error.errno == errno.EINTR
        assert time.monotonic() - began < 2.0
        assert len(server.seen) == 1


def test_what_was_given_up_is_not_begun() -> None:
    with Scripted(lambda _: answer(200, b"", *OBJECT)) as server:
        interrupt = Interrupt()
        interrupt.set()
        calls = lane_at(server.endpoint)
        assert refusal(CALLS["put"], calls.under(interrupt)).errno == errno.EINTR
        assert server.seen == []
        calls.head("key")  # without it all goes on
        calls.close()


# --- proxies


@pytest.mark.parametrize(("environ", "url", "variable"), [
    ({}, "http://s3.example", ""),
    ({"http_proxy": "http://p:1"}, "http://s3.example", "http_proxy"),
    ({"http_proxy": "http://p:1"}, "https://s3.example", ""),
    ({"HTTPS_PROXY": "http://p:1"}, "https://s3.example", "HTTPS_PROXY"),
    ({"https_proxy": "http://p:1", "HTTPS_PROXY": "http://q:1"}, "https://s3.example", "https_proxy"),
    ({"https_proxy": "", "HTTPS_PROXY": "http://q:1"}, "https://s3.example", ""),
    ({"HTTP_PROXY": "http://p:1"}, "http://s3.example", "HTTP_PROXY"),
    ({"HTTP_PROXY": "http://p:1", "REQUEST_METHOD": "GET"}, "http://s3.example", ""),
    ({"ALL_PROXY": "socks5://p:1"}, "https://s3.example", "ALL_PROXY"),
    ({"all_proxy": "http://p:1", "http_proxy": "http://q:1"}, "http://s3.example", "http_proxy"),
    ({"http_proxy": "http://p:1", "NO_PROXY": "s3.example"}, "http://s3.example", ""),
    ({"http_proxy": "http://p:1", "no_proxy": "example"}, "http://s3.example", ""),
    ({"http_proxy": "http://p:1", "no_proxy": ".example"}, "http://s3.example", ""),
    ({"http_proxy": "http://p:1", "no_proxy": "*.example"}, "http://s3.example", ""),
    ({"http_proxy": "http://p:1", "no_proxy": "xample"}, "http://s3.example", "http_proxy"),
    ({"http_proxy": "http://p:1", "no_proxy": "ns3.example"}, "http://s3.example", "http_proxy"),
    ({"http_proxy": "http://p:1", "no_proxy": "a, b ,S3.EXAMPLE"}, "http://s3.example", ""),
    ({"http_proxy": "http://p:1", "no_proxy": "*"}, "http://s3.example", ""),
    ({"http_proxy": "http://p:1", "no_proxy": "s3.example:9000"}, "http://s3.example:9000", ""),
    ({"http_proxy": "http://p:1", "no_proxy": "s3.example:9001"}, "http://s3.example:9000", "http_proxy"),
    ({"https_proxy": "http://p:1", "no_proxy": "s3.example:443"}, "https://s3.example", ""),
    ({"http_proxy": "http://p:1", "no_proxy": "10.0.0.0/8"}, "http://10.1.2.3:9000", ""),
    ({"http_proxy": "http://p:1", "no_proxy": "10.0.0.0/8"}, "http://11.1.2.3:9000", "http_proxy"),
    ({"http_proxy": "http://p:1", "no_proxy": "127.0.0.1"}, "http://127.0.0.1:9000", ""),
    ({"http_proxy": "http://p:1", "no_proxy": "[::1]"}, "http://[::1]:9000", ""),
    ({"http_proxy": "http://p:1", "no_proxy": "[::1]:80"}, "http://[::1]:9000", "http_proxy"),
    ({"http_proxy": "http://p:1", "no_proxy": "fd00::/8"}, "http://[fd00::1]:9000", ""),
    ({"http_proxy": "http://p:1", "no_proxy": ""}, "http://s3.example", "http_proxy"),
])  # fmt: skip
def test_which_proxy_holds(environ: Mapping[str, str], url: str, variable: str) -> None:
    found = proxy_for(url, environ)
    assert (found.variable if found else "") == variable


def test_a_proxy_is_shown_without_its_password() -> None:
    for url in ("http://user:pass-word@proxy:3128", "user:pass-word@proxy:3128", "http://:pass-word@proxy:3128/"):
        found = proxy_for("http://s3.example", {"http_proxy": url})
        assert found is not None
        assert "pass-word" not in f"{found.shown} {found!r}"
        assert "proxy:3128" in found.shown


NOWHERE = "http://s3.test.invalid"  # resolves for nobody: only a proxy gets there
ON_MOTO = pytest.mark.parametrize("server", ["moto"], indirect=True)


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "ALL_PROXY"])
@ON_MOTO
@trio_test
async def test_all_that_is_sent_goes_through_the_proxy(
    variable: str, bucket: Bucket, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Signed requests, unsigned ones, and those of botocore."""
    with Scripted(relay(server.endpoint)) as proxy:
        monkeypatch.setenv(variable, proxy.endpoint.replace("://", "://user:word@"))
        store = S3Store(target_of(bucket, endpoint=NOWHERE))
        await store.put("a key", BODY, Properties())
        assert (await store.get("a key", 2, 5)).body.tobytes() == b"234"
        assert (await store.head("a key", detail=Detail.WHOLE)).version.size == 10
        assert await BucketSettings(target_of(bucket, endpoint=NOWHERE), store.dispatcher).cors() == []
        assert unsigned_request.head(f"{NOWHERE}/{bucket.name}", certificate_authorities.of_system()).status < 500
        store.close()
        assert {urlsplit(seen.target).netloc for seen in proxy.seen} == {urlsplit(NOWHERE).netloc}
        assert {seen.headers["proxy-authorization"][:6] for seen in proxy.seen} == {"Basic "}
        assert len(proxy.seen) == 5


@ON_MOTO
@trio_test
async def test_no_proxy_is_used_where_it_is_forbidden(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    with Scripted(lambda _: answer(502, b"not for me")) as proxy:
        monkeypatch.setenv("http_proxy", proxy.endpoint)
        monkeypatch.setenv("NO_PROXY", "localhost,127.0.0.0/8")
        store = S3Store(target_of(bucket))
        await store.put("key", BODY, Properties())
        assert await BucketSettings(target_of(bucket), store.dispatcher).cors() == []
        assert (
            unsigned_request.head(f"{bucket.server.endpoint}/{bucket.name}", certificate_authorities.of_system()).status
            < 500
        )
        store.close()
        assert proxy.seen == []


@pytest.mark.parametrize(("scheme", "told", "words"), [
    ("http", answer(407, b"", 'Proxy-Authenticate: Basic realm="x"'), "407"),
    ("https", answer(407, b"", 'Proxy-Authenticate: Basic realm="x"'), "407"),
    ("https", answer(403, b"no"), "403"),
    ("https", answer(503, b"no"), "it answers 503 and opens no tunnel"),
    ("http", answer(502, b"<html>no such host</html>", "Content-Type: text/html"), "no such host"),
    ("https", None, ""),
])  # fmt: skip
def test_a_proxy_that_refuses_is_named(
    scheme: str, told: bytes | None, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Scripted(lambda _: told) as proxy:
        monkeypatch.setenv("all_proxy", proxy.endpoint.replace("://", "://user:pass-word@"))
        error = refusal(CALLS["get"], lane_at(f"{scheme}://s3.test.invalid"))
        assert error.errno == errno.EIO
        assert f"proxy http://user:***@{proxy.host}" in str(error)
        assert words in str(error)
        assert "pass-word" not in str(error)


def test_a_proxy_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with Scripted(lambda _: None) as proxy:
        endpoint = proxy.endpoint
    for url, words in ((endpoint, "refused"), ("http://proxy.invalid:3128", "resolve")):
        monkeypatch.setenv("http_proxy", url)
        error = refusal(CALLS["head"], lane_at(NOWHERE))
        assert f"proxy {url}" in str(error)
        assert words in str(error)


# --- certificates


@pytest.fixture(scope="module")
def own_authority(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return authority(tmp_path_factory.mktemp("authority"))


@ON_MOTO
@trio_test
async def test_certificates_of_an_own_authority(
    bucket: Bucket, server: Server, own_authority: Any, tmp_path: Path
) -> None:
    bundle, tls = own_authority
    with Scripted(relay(server.endpoint), tls) as front:
        store = S3Store(target_of(bucket, endpoint=front.endpoint))
        with pytest.raises(StoreError, match=r"certificate not trusted \(.+\): see 'sosfs help") as caught:
            await store.head("key")
        assert caught.value.errno == errno.EIO
        with pytest.raises(StoreError, match="not trusted"):
            unsigned_request.head(front.endpoint, certificate_authorities.of_system())
        with pytest.raises(StoreError):
            await BucketSettings(target_of(bucket, endpoint=front.endpoint), store.dispatcher).cors()
        store.close()
        assert front.seen == []

        target = replace(target_of(bucket, endpoint=front.endpoint), ca_bundle=str(bundle))
        store = S3Store(target)
        await store.put("key", BODY, Properties())
        assert (await store.get("key", 0, 10)).body.tobytes() == BODY
        assert await BucketSettings(target, store.dispatcher).cors() == []
        assert (
            unsigned_request.head(f"{front.endpoint}/x", certificate_authorities.Bundle(str(bundle), "")).status < 500
        )
        store.close()
        assert front.seen[0].headers["x-amz-content-sha256"] == "UNSIGNED-PAYLOAD"

        empty = tmp_path / "empty.pem"
        empty.write_text("")
        store = S3Store(replace(target, ca_bundle=str(empty)))
        with pytest.raises(StoreError, match=r"CA bundle .*empty\.pem"):
            await store.head("key")
        store.close()


@ON_MOTO
@trio_test
async def test_a_part_is_compared_by_the_server_where_it_can(
    bucket: Bucket, server: Server, own_authority: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then its hash is signed over TLS too, and no MD5 is made; else the ETag is compared."""
    bundle, tls = own_authority
    monkeypatch.setattr("sosfs.s3.bucket.has_sha_instructions", lambda: True)
    with Scripted(relay(server.endpoint), tls) as front:
        target = replace(target_of(bucket, endpoint=front.endpoint), ca_bundle=str(bundle))
        for compares, verify, signed in (
            (True, Verify.ALL, sha256(BODY).hexdigest()),
            (False, Verify.ALL, "UNSIGNED-PAYLOAD"),
            (True, Verify.NONE, "UNSIGNED-PAYLOAD"),
        ):
            store = S3Store(target, verify=verify)
            store.capabilities = Capabilities(known=True, compares=compares)
            upload = await store.create_multipart("key", Properties())
            made = Mock(side_effect=hashed)
            with monkeypatch.context() as patch:
                patch.setattr("sosfs.s3.upload_check.hashed", made)
                await store.upload_part("key", upload, 1, BODY)
            assert front.seen[-1].headers["x-amz-content-sha256"] == signed
            assert made.called is (verify is Verify.ALL and not compares)
            await store.abort_multipart("key", upload)
            store.close()


def test_the_bundle_holds_for_a_proxy_that_speaks_tls(own_authority: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, tls = own_authority
    with Scripted(lambda _: answer(200, b"", *OBJECT, length=10), tls) as proxy:
        monkeypatch.setenv("http_proxy", proxy.endpoint)
        calls = lane_at(NOWHERE, ca_bundle=str(bundle))
        assert calls.head("key").version.size == 10
        calls.close()
        assert "not trusted" in str(refusal(CALLS["head"], lane_at(NOWHERE)))


def test_which_bundle_holds(tmp_path: Path) -> None:
    config = tmp_path / ".aws/config"
    config.parent.mkdir()
    config.write_text("[default]\nca_bundle = /default.pem\n[profile work]\nca_bundle = /work.pem\n[profile none]\n")
    given = Path("/given.pem")
    aws = {"AWS_CA_BUNDLE": "/aws.pem"}
    for option, environ, profile, path in (
        (given, aws, "work", "/given.pem"),
        (None, aws, "work", "/aws.pem"),
        (None, {}, "work", "/work.pem"),
        (None, {"AWS_PROFILE": "work"}, "", "/work.pem"),
        (None, {}, "", "/default.pem"),
        (None, {"SSL_CERT_FILE": "/ssl.pem"}, "none", "/ssl.pem"),
        (None, {"SSL_CERT_FILE": "/ssl.pem"}, "", "/default.pem"),
        (None, {"REQUESTS_CA_BUNDLE": "/requests.pem"}, "none", "/requests.pem"),
        (None, {}, "none", certificate_authorities.of_system().path),
    ):
        assert certificate_authorities.bundle(option, Surroundings(environ, tmp_path, profile)).path == path


@ON_MOTO
def test_what_a_user_sees_of_it(foreign: Foreign, server: Server, own_authority: Any, tmp_path: Path) -> None:
    """`sosfs doctor` behind a proxy, at a server whose certificate the system does not trust."""
    bundle, tls = own_authority
    with Scripted(relay(server.endpoint), tls) as front:
        access = Access(front.endpoint, server.key, server.secret)
        asked = ["doctor", foreign.bucket, "--endpoint", front.endpoint]
        environment = access.environment(tmp_path)
        refused = run_sosfs(asked, environment)
        assert refused.returncode == 1
        assert "not trusted" in refused.stdout
        found = run_sosfs([*asked, "--ca-bundle", str(bundle)], environment)
        assert found.returncode == 0
        assert f"{bundle} (--ca-bundle)" in " ".join(found.stdout.split())
        wrong = run_sosfs([*asked, "--ca-bundle", "/etc/hostname"], environment)
        assert wrong.returncode == 2
        assert "/etc/hostname holds no certificate" in wrong.stderr
    access = access_to(server)
    with Scripted(relay(server.endpoint)) as proxy:
        environment = access.environment(tmp_path) | {"HTTP_PROXY": proxy.endpoint.replace("://", "://me:secret@")}
        found = run_sosfs(["doctor", foreign.bucket, "--endpoint", NOWHERE], environment)
        assert found.returncode == 0, found.stdout
        assert f"http://me:***@{proxy.host} (HTTP_PROXY)" in found.stdout
        assert "me:secret" not in found.stdout


# --- signatures


ODD_KEYS = (
    *("plain", "a b", "a+b", "a%b", "a%20b", "a=b&c", "ü", "日本", "a\nb", "a\x01b", "\x7f", "a//b", "/a", "a/", "//"),
    *(
        "a/../b",
        "..",
        "./a",
        "a/.",
        ".hidden",
        "a..b",
        "a~b",
        "a*b",
        "a'b",
        "(a)!",
        "a;b:c@d,e$f",
        "a?b#c",
        "[a]{b}|\\^`",
    ),
    *('"a"<b>', "x" * 1000, "%2e%2e/a", "-_.~"),
)
QUERIES: tuple[Mapping[str, str], ...] = (
    {"acl": ""},
    {"uploads": ""},
    {"versions": "", "prefix": "../a b"},
    {"list-type": "2", "encoding-type": "url", "prefix": "", "delimiter": "/", "max-keys": "1000"},
    {"partNumber": "1", "uploadId": "a~b.c-_=+/"},
    {"prefix": "a&b=c%20+d", "start-after": "ü\n\x01;:@"},
    {"key-marker": "a", "key": "b", "key_": "x", "Key": "1", "key-": ""},
    {"continuation-token": "1/a+b==", "prefix": "~*'()!"},
)
HEADERS: tuple[Mapping[str, str], ...] = (
    {"x-amz-meta-a": "b  c   d"},
    {"x-amz-meta-a": " around "},
    {"x-amz-meta-a": "tab\tand: colon; semicolon"},
    {"x-amz-meta-a": "naïve 日本"},
    {"x-amz-meta-a": ""},
    {"x-amz-meta-b": "1", "x-amz-meta-a": "2", "x-amz-meta-a-b": "3", "x-amz-meta-a.b": "4", "x-amz-meta-a_b": "5"},
    {"Content-Type": "text/plain; charset=utf-8", "Content-Disposition": 'attachment; filename="a  b"'},
    {"Range": "bytes=0-10", "If-Match": '"abc"', "Content-MD5": "abc=="},
    {f"x-amz-meta-{number}": "v" for number in range(60)},
)


def test_everything_is_signed_as_botocore_signs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """libcurl's signature is that of the AWS tools, and the path goes out as it was signed."""
    from botocore.auth import S3SigV4Auth  # noqa: PLC0415
    from botocore.awsrequest import AWSRequest  # noqa: PLC0415
    from botocore.credentials import Credentials as SigningKey  # noqa: PLC0415

    def due(seen: Seen, scheme: str = "http") -> str:
        """The signature that the request must have, by the time it tells."""
        credential, signed, _ = seen.headers["authorization"].split(", ")
        del credential
        names = signed.removeprefix("SignedHeaders=").split(";")
        given = dict(line.split(":", 1) for line in seen.text.decode().split("\r\n")[1:] if ":" in line)
        lower = {name.lower(): value.strip() for name, value in given.items()}
        missing = {n for n in lower if n.startswith("x-amz-") or n == "host"} - set(names)
        assert not missing
        request = AWSRequest(
            seen.method, f"{scheme}://{lower['host']}{seen.target}", {n: lower.get(n, "") for n in names}, seen.body
        )
        request.context["timestamp"] = lower["x-amz-date"]
        signer = S3SigV4Auth(SigningKey(KEY.access_key, KEY.secret_key, KEY.token), "s3", "us-east-1")
        signer.payload = lambda _: lower["x-amz-content-sha256"]  # type: ignore[method-assign, assignment]
        return signer.signature(signer.string_to_sign(request, signer.canonical_request(request)), request)

    cases = [
        *((method, key, {}, {}) for key in ODD_KEYS for method in ("GET", "HEAD", "PUT", "POST", "DELETE")),
        *((method, key, query, {}) for query in QUERIES for method, key in (("GET", ""), ("POST", "a/../b"))),
        *((method, "key", {}, headers) for headers in HEADERS for method in ("GET", "PUT")),
    ]
    with Scripted(lambda _: answer()) as server:
        http = SignedHttp(target_at(server.endpoint), KEY)
        for method, key, query, headers in cases:
            body = BODY if method in ("PUT", "POST") else b""
            http.send("Test", method, key, query=query, headers=headers, body=body)
            seen = server.seen[-1]
            assert seen.headers["authorization"].rpartition("Signature=")[2] == due(seen), (method, key, query, headers)
            assert seen.body == body
        paths = {seen.target.partition("?")[0] for seen in server.seen}
        assert {"/bucket/a/../b", "/bucket/a//b", "/bucket/..", "/bucket///"} <= paths
        http.close()


def test_no_header_can_begin_another_line() -> None:
    with Scripted(lambda _: answer()) as server:
        http = SignedHttp(target_at(server.endpoint), KEY)
        for value in ("a\r\nx-evil: 1", "a\nb", "a\0b"):
            with pytest.raises(StoreError) as caught:
                http.send("Test", "PUT", "key", headers={"x-amz-meta-a": value})
            assert caught.value.errno == errno.EINVAL
        assert server.seen == []
        http.close()


def test_many_at_once_have_a_connection_each() -> None:
    subtree_lock = threading.Barrier(8)

    def script(_: Seen) -> bytes:
        subtree_lock.wait(20)
        return answer(200, b"", *OBJECT, length=10)

    with Scripted(script) as server:
        calls = lane_at(server.endpoint)
        for _ in itertools.repeat(None, 2):
            threads = [threading.Thread(target=calls.head, args=("key",)) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(20)
        assert (len(server.seen), server.connections) == (16, 8)
        calls.close()


# --- a mount


@ON_MOTO
def test_a_mount_behind_a_proxy_is_led_nowhere_and_fed_no_more_than_it_asks_for(
    foreign: Foreign, server: Server, watchdog: Watchdog, tmp_path: Path
) -> None:
    """All goes through the proxy; then what answers there redirects, floods, or shows a page in place of files."""
    through = relay(server.endpoint)
    bend: list[Script] = []
    foreign.put_all({"d/file": b"theirs", "d/large": b"x" * (3 * MEBIBYTE)})

    def script(seen: Seen) -> Any:
        told = bend[0](seen) if bend and seen.method == "GET" and "/d/" in seen.target else None
        return through(seen) if told is None else told

    with Scripted(lambda _: answer(200, b"stolen", *OBJECT)) as thief, Scripted(script) as proxy:
        options = ("--patience", "1", "--ttl", "0")
        mount = Mount(access_to(server, NOWHERE), foreign.bucket, tmp_path / "m", watchdog, options)
        mount.environment |= {"HTTP_PROXY": proxy.endpoint, "NO_PROXY": "169.254.0.0/16"}
        with mount:
            mount.allow_log("WARNING")
            assert (mount.path / "d/file").read_bytes() == b"theirs"
            (mount.path / "ours").write_bytes(b"ours")
            assert foreign.get("ours") == b"ours"
            before = mount.peak_memory()
            for fault in (
                lambda _: answer(307, b"", f"Location: {thief.endpoint}/bucket/d/large"),
                flood(answer(206, b"", *OBJECT, "Content-Range: bytes 0-1048575/3145728", length=-1)),
                flood(answer(200, b"", *OBJECT, length=HUGE)),
                lambda _: answer(200, b"<html>Please log in</html>", "Content-Type: text/html"),
            ):
                bend[:] = [fault]
                with pytest.raises(OSError) as caught:
                    (mount.path / "d/large").read_bytes()
                assert caught.value.errno == errno.EIO
            bend.clear()
            assert mount.peak_memory() < before + 64 * MEBIBYTE
            assert (mount.path / "d/large").read_bytes() == b"x" * (3 * MEBIBYTE)
            assert thief.host in mount.log
            assert "text/html" in mount.log
        assert thief.seen == []
        assert {urlsplit(seen.target).netloc for seen in proxy.seen} == {urlsplit(NOWHERE).netloc}
