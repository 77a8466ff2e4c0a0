"""The addresses of objects, plain and signed: which there are, whom they let in, and for how long."""

from __future__ import annotations

import errno
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from sosfs.config.credentials import Credentials
from sosfs.s3.customer_key import CustomerKey
from sosfs.s3.endpoint import Payer, S3Target
from sosfs.s3.object_urls import Addressing, Links, Method
from tests.s3.test_transport import KEY, TOKEN
from tests.support.drive import fails
from tests.support.subjects import Fixed


def links(endpoint: str = "https://s3.example", *, bucket: str = "bucket", key: Credentials = KEY, **of: Any) -> Links:
    return Links(S3Target(bucket, endpoint, "ch-gva-2", Fixed(key), **of), 600)


@pytest.mark.parametrize(
    ("endpoint", "bucket", "path", "host"),
    [
        ("https://s3.example", "bucket", "https://s3.example/bucket/a%20b/%C3%BC", "https://bucket.s3.example/a%20b/%C3%BC"),
        ("https://s3.example:1/", "bucket", "https://s3.example:1/bucket/a%20b/%C3%BC", "https://bucket.s3.example:1/a%20b/%C3%BC"),
        ("https://s3.example", "a.b", "https://s3.example/a.b/a%20b/%C3%BC", ""),
        ("http://s3.example", "a.b", "http://s3.example/a.b/a%20b/%C3%BC", "http://a.b.s3.example/a%20b/%C3%BC"),
        ("http://127.0.0.1:1", "bucket", "http://127.0.0.1:1/bucket/a%20b/%C3%BC", ""),
        ("http://[::1]:1", "bucket", "http://[::1]:1/bucket/a%20b/%C3%BC", ""),
    ],
)  # fmt: skip
def test_where_an_object_is(endpoint: str, bucket: str, path: str, host: str) -> None:
    """No name stands before an address, and no certificate is good for a bucket's dots."""
    found = links(endpoint, bucket=bucket)
    assert found.url("a b/ü") == path
    if host:
        assert found.url("a b/ü", Addressing.VIRTUAL_HOST) == host
        return
    for ask in (found.url, found.presigned):
        with fails(errno.EOPNOTSUPP):
            ask("a b/ü", addressing=Addressing.VIRTUAL_HOST)


def asked(url: str) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}


def test_a_signed_address_lets_in_for_as_long_as_it_says() -> None:
    url = links().presigned("key")
    told = asked(url)
    assert url.startswith("https://s3.example/bucket/key?")
    assert told["X-Amz-Expires"] == "600"
    assert told["X-Amz-Credential"].startswith("AKTEST/")
    assert told["X-Amz-Credential"].endswith("/ch-gva-2/s3/aws4_request")
    assert told["X-Amz-Security-Token"] == TOKEN
    assert len(told["X-Amz-Signature"]) == 64
    assert KEY.secret_key not in url
    assert asked(links().presigned("key", lifetime=5))["X-Amz-Expires"] == "5"
    host = links().presigned("key", addressing=Addressing.VIRTUAL_HOST)
    assert urlsplit(host).netloc == "bucket.s3.example"
    assert "X-Amz-Security-Token" not in asked(links(key=Credentials("A", "secret")).presigned("key"))


def test_an_address_to_read_from_is_none_to_write_to() -> None:
    signed = {asked(links().presigned("key", method=method))["X-Amz-Signature"] for method in Method}
    assert len(signed) == 2


def test_who_pays_stands_in_the_address() -> None:
    assert asked(links(payer=Payer.REQUESTER).presigned("key"))["x-amz-request-payer"] == "requester"
    assert "x-amz-request-payer" not in asked(links().presigned("key"))


def test_what_cannot_be_signed_has_no_such_address() -> None:
    for found in (links(key=Credentials("", "")), links(customer_key=CustomerKey(bytes(32)))):
        with fails(errno.EOPNOTSUPP):
            found.presigned("key")
        assert found.url("key") == "https://s3.example/bucket/key"
    links().require_open()
