"""Pages of listings: they end, they answer what was asked, and one entry that makes no sense spoils itself alone."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from urllib.parse import quote
from xml.sax.saxutils import escape

import pytest
import trio

from sosfs.errors import StoreError
from sosfs.s3.bucket import S3Store
from sosfs.s3.bucket_settings import BucketSettings
from sosfs.s3.listing_answers import MARKER, SIZE_MAX, buckets_of, page_of, parts_of, uploads_of
from sosfs.s3.protocol import UNKNOWN, Version
from sosfs.s3.xml import ParseError
from tests.conftest import HURRY, Mounter
from tests.support.drive import fails, names, tree
from tests.support.faults import Page
from tests.support.foreign import Foreign
from tests.support.proxy import Proxy
from tests.support.servers import Bucket, Server
from tests.support.subjects import target_of
from tests.support.traffic import Op, Request, on

XML = "application/xml"
MOTO = pytest.mark.parametrize("server", ["moto"], indirect=True)
ETAG = "c4ca4238a0b923820dcc509a6f75849b"


def entry(key: str, *, size: str = "1", time: str = "2026-11-28T10:00:00.000Z", etag: str = f'"{ETAG}"') -> str:
    fields = {"Key": key, "LastModified": time, "ETag": etag, "Size": size}
    return "<Contents>" + "".join(f"<{name}>{escape(text)}</{name}>" for name, text in fields.items()) + "</Contents>"


def page(*parts: str, truncated: str = "false") -> bytes:
    end = f"<IsTruncated>{truncated}</IsTruncated>" if truncated else ""
    return f"<ListBucketResult>{end}{''.join(parts)}</ListBucketResult>".encode()


def folded(prefix: str) -> str:
    return f"<CommonPrefixes><Prefix>{prefix}</Prefix></CommonPrefixes>"


GOOD: Mapping[str, tuple[bytes, str, str]] = {
    "nothing": (page(), "d/", "/"),
    "an echo": (page("<Prefix>d/</Prefix>", entry("d/a")), "d/", "/"),
    "an echo in percent form": (page("<Prefix>d%20e/</Prefix>"), "d e/", "/"),
    "an echo that is not encoded": (page("<EncodingType>url</EncodingType><Prefix>a+b %2F/</Prefix>"), "a+b %2F/", "/"),
    "an echo of a control character": (page("<Prefix>a?b/</Prefix>"), "a\x01b/", "/"),
    "an echo of a character that is none in XML": (page("<Prefix>a\ufffeb/</Prefix>"), "a\ufffeb/", "/"),
    "one by its number": (page("<Prefix>a&#xFFFF;b&#65534;/</Prefix>"), "a\uffffb\ufffe/", "/"),
    "an echo with a return": (page("<Prefix>a\nb/</Prefix>"), "a\rb/", "/"),
    "a count of keys alone": (page("<KeyCount>1</KeyCount>", entry("d/a"), folded("d/b/")), "d/", "/"),
    "a count of both": (page("<KeyCount>2</KeyCount>", entry("d/a"), folded("d/b/")), "d/", "/"),
    "no order": (page(entry("d/b"), entry("d/a")), "d/", "/"),
    "the marker": (page(entry("d/")), "d/", "/"),
    "all below": (page(entry("d/e/f")), "d/", ""),
    "upper case": (page(truncated="False"), "", "/"),
}
BAD: Mapping[str, tuple[bytes, str, str]] = {
    "no word of more": (page(truncated=""), "d/", "/"),
    "a strange word of more": (page(truncated="perhaps"), "d/", "/"),
    "no token": (page("<KeyCount>1</KeyCount>", entry("d/a"), truncated="true"), "d/", "/"),
    "an empty token": (page("<NextContinuationToken/>", entry("d/a"), truncated="true"), "d/", "/"),
    "another prefix": (page("<Prefix>e/</Prefix>"), "d/", "/"),
    "no prefix": (page("<Prefix/>"), "d/", "/"),
    "a key elsewhere": (page(entry("d/a"), entry("e/a")), "d/", "/"),
    "a folder elsewhere": (page(folded("e/a/")), "d/", "/"),
    "a folder of itself": (page(folded("d/")), "d/", "/"),
    "a folder without its end": (page(folded("d/a")), "d/", "/"),
    "nothing folded": (page(entry("d/a/b")), "d/", "/"),
    "a marker not folded": (page(entry("d/a/")), "d/", "/"),
    "something folded": (page(folded("d/a/")), "d/", ""),
    "fewer than counted": (page("<KeyCount>3</KeyCount>", entry("d/a")), "d/", "/"),
    "another document": (b"<ListVersionsResult/>", "d/", "/"),
    "a later page": (page("<ContinuationToken>t</ContinuationToken>", entry("d/b")), "d/", "/"),
    "what follows a key": (page("<StartAfter>d/a</StartAfter>", entry("d/b")), "d/", "/"),
    "a later page of the first form": (page("<Marker>d/a</Marker>", entry("d/b")), "d/", "/"),
    "an empty key": (page(entry("")), "", "/"),
    "an entry without a key": (page("<Contents><Size>1</Size></Contents>"), "d/", "/"),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_page_for_what_was_asked(name: str) -> None:
    page_of(*GOOD[name])


@pytest.mark.parametrize("name", BAD)
def test_a_page_for_something_else(name: str) -> None:
    with pytest.raises((ParseError, LookupError, ValueError)):
        page_of(*BAD[name])


NONSENSE = {
    "negative": entry("d/b", size="-1"),
    "no number": entry("d/b", size="much"),
    "empty": entry("d/b", size=""),
    "a fraction": entry("d/b", size="1.5"),
    "beyond 64 bits": entry("d/b", size=str(1 << 64)),
    "beyond any server": entry("d/b", size=str(SIZE_MAX + 1)),
    "no time": entry("d/b", time="yesterday"),
    "an empty time": entry("d/b", time=""),
    "before time": entry("d/b", time="0001-01-01T00:00:00Z"),
    "after time": entry("d/b", time="9999-12-31T23:59:59Z"),
    "no ETag": entry("d/b", etag=""),
    "two ETags": entry("d/b", etag='"a", "b"'),
    "nothing": "<Contents><Key>d/b</Key></Contents>",
}


@pytest.mark.parametrize("name", NONSENSE)
def test_an_entry_that_makes_no_sense_leaves_the_others(name: str) -> None:
    found = page_of(page(entry("d/a"), NONSENSE[name], entry("d/c")), "d/", "/")
    assert [listed.key for listed in found.objects] == ["d/a", "d/b", "d/c"]
    assert [listed.version == UNKNOWN for listed in found.objects] == [False, True, False]
    assert found.objects[0].version == Version(ETAG, 1, 1795860000)


def test_a_later_page_echoes_after_what_it_begins() -> None:
    for echo in ("<ContinuationToken>t</ContinuationToken>", "<StartAfter>d/a</StartAfter>", "<Marker>d/a</Marker>"):
        assert len(page_of(page(echo, entry("d/b")), "d/", "/", after="t").objects) == 1
    empty = page("<ContinuationToken/><StartAfter/><Marker/>", entry("d/b"))
    assert len(page_of(empty, "d/", "/").objects) == 1


def test_the_page_of_a_server_that_knows_the_first_form_only() -> None:
    last = page_of(page("<Marker/>", entry("d/a"), entry("d/b"), truncated="true"), "d/", "")
    assert last.token == MARKER + "d/b"
    told = page_of(
        page("<Marker/><NextMarker>d/b/</NextMarker>", entry("d/a"), folded("d/b/"), truncated="true"), "d/", "/"
    )
    assert told.token == MARKER + "d/b/"
    for parts, after in (((entry("d/a"), folded("d/b/")), "d/b/"), ((entry("d/z"), folded("d/b/")), "d/z")):
        assert page_of(page("<Marker/>", *parts, truncated="true"), "d/", "/").token == MARKER + after
    with pytest.raises(ParseError):
        page_of(page("<Marker/>", truncated="true"), "d/", "/")


def test_other_listings_are_as_strict() -> None:
    with pytest.raises(ParseError):
        buckets_of(b"<ListAllMyBucketsResult><Owner><ID>me</ID></Owner></ListAllMyBucketsResult>")
    _, buckets, _ = buckets_of(
        b"<ListAllMyBucketsResult><Buckets><Bucket><Name>one</Name><CreationDate>never</CreationDate></Bucket>"
        b"<Bucket><Name>two</Name></Bucket></Buckets></ListAllMyBucketsResult>"
    )
    assert [(bucket.name, bucket.created) for bucket in buckets] == [("one", 0.0), ("two", 0.0)]
    for body in (b"<ListPartsResult/>", b"<ListPartsResult><IsTruncated>true</IsTruncated></ListPartsResult>"):
        with pytest.raises((ParseError, LookupError)):
            parts_of(body)
    with pytest.raises((ParseError, LookupError)):
        uploads_of(b"<ListMultipartUploadsResult/>")
    uploads, _ = uploads_of(
        b"<ListMultipartUploadsResult><IsTruncated>false</IsTruncated><Upload><Key>k</Key><UploadId>u</UploadId>"
        b"<Initiated>soon</Initiated></Upload></ListMultipartUploadsResult>"
    )
    assert [upload.started for upload in uploads] == [0]


@pytest.fixture
def store(server: Server, foreign: Foreign, proxy: Proxy) -> S3Store:
    bucket = Bucket(server, foreign.bucket, foreign.client)
    return S3Store(replace(target_of(bucket, endpoint=proxy.endpoint), patience=0.0))


@dataclass
class Listing:
    """A listing that the proxy gives, page by page: by the token that is asked with, its body."""

    pages: Mapping[str, bytes]

    def rule(self, proxy: Proxy, op: Op, parameter: str) -> None:
        def asked(token: str) -> Callable[[Request], bool]:
            return lambda request: request.op is op and request.query.get(parameter, "") == token

        for token, body in self.pages.items():
            proxy.inject(Page(200, body=body, media=XML), asked(token))


def more(token: str, *parts: str) -> bytes:
    return page(f"<NextContinuationToken>{token}</NextContinuationToken>", *parts, truncated="true")


CIRCLES: Mapping[str, Mapping[str, bytes]] = {
    "the same page": {"": more("t", entry("a")), "t": more("t", entry("a"))},
    "the first page": {"": more("t", entry("a")), "t": more("u", entry("b")), "u": more("t", entry("a"))},
    "empty pages": {"": more("t"), "t": more("u"), "u": more("v"), "v": more("u")},
}


@MOTO
@pytest.mark.parametrize("name", CIRCLES)
def test_a_listing_that_goes_round_ends(mounter: Mounter, foreign: Foreign, proxy: Proxy, name: str) -> None:
    """Read, looked into, renamed, removed or walked through: it is an error, and soon."""
    foreign.put_all({"d/a": b"1", "d/b": b"1", "e/a": b"1"})
    drive = mounter(proxy.endpoint, *HURRY, "--ttl", "0.1")
    drive.mount.allow_log(r"WARNING|ERROR")
    for prefix in ("", "d/", "e/"):
        pages = {token: body.replace(b"<Key>", b"<Key>" + prefix.encode()) for token, body in CIRCLES[name].items()}
        for token, body in pages.items():
            proxy.inject(Page(200, body=body, media=XML), _asked(prefix, token))
    proxy.reset()
    with fails(errno.EIO):
        os.listdir(drive.here)
    with fails(errno.EIO):
        os.listdir(drive.here / "d")
    with fails(errno.EIO):
        (drive.here / "d").rename(drive.here / "f")
    with fails(errno.EIO, errno.ENOTEMPTY):
        (drive.here / "e").rmdir()
    assert proxy.count() < 60
    proxy.heal()
    time.sleep(0.3)  # then no listing goes on with a token of these
    assert tree(drive.here) == {"d/a": b"1", "d/b": b"1", "e/a": b"1"}


def _asked(prefix: str, token: str) -> Callable[[Request], bool]:
    def matches(request: Request) -> bool:
        query = request.query
        asked = query.get("prefix", ""), query.get("continuation-token", "")
        return request.op is Op.LIST and asked == (prefix, token) and query.get("max-keys") == "1000"

    return matches


@MOTO
def test_uploads_and_parts_that_go_round_end(store: S3Store, proxy: Proxy) -> None:
    uploads = (
        "<IsTruncated>true</IsTruncated><NextKeyMarker>k</NextKeyMarker><NextUploadIdMarker>u</NextUploadIdMarker>"
    )
    parts = "<IsTruncated>true</IsTruncated><NextPartNumberMarker>7</NextPartNumberMarker>"
    for op, root, body in (
        (Op.LIST_UPLOADS, "ListMultipartUploadsResult", uploads),
        (Op.LIST_PARTS, "ListPartsResult", parts),
    ):
        proxy.inject(Page(200, body=f"<{root}>{body}</{root}>".encode(), media=XML), on(op))

    async def run() -> None:
        for call in (store.list_uploads(""), store.list_parts("key", "id")):
            with pytest.raises(StoreError) as caught:
                await call
            assert caught.value.errno == errno.EIO

    trio.run(run)
    assert proxy.count() == 4


def _after(marker: str) -> Callable[[Request], bool]:
    return lambda request: request.op is Op.LIST_VERSIONS and request.query.get("key-marker", "") == marker


@MOTO
def test_old_versions_that_go_round_end(store: S3Store, foreign: Foreign, server: Server, proxy: Proxy) -> None:
    """Each page but the first leads back to the one before."""
    for here, there in (("", "a"), ("a", "b"), ("b", "a")):
        body = f"<IsTruncated>true</IsTruncated><NextKeyMarker>d/{there}</NextKeyMarker>"
        told = Page(200, body=f"<ListVersionsResult>{body}</ListVersionsResult>".encode(), media=XML)
        proxy.inject(told, _after(f"d/{here}" if here else ""))
    settings = BucketSettings(target_of(Bucket(server, foreign.bucket, foreign.client)), store.dispatcher)

    async def run() -> None:
        for call in (settings.versions_under("d/"), settings.versions_of("d/")):
            with pytest.raises(StoreError) as caught:
                await call
            assert caught.value.errno == errno.EIO

    trio.run(run)
    assert proxy.count() == 6


@MOTO
def test_one_absurd_size_spoils_one_name(mounter: Mounter, foreign: Foreign, proxy: Proxy) -> None:
    """The name is there, and what it leads to is asked for by itself; so it is right in the end."""
    files = {f"d/{name}": name.encode() * 50 for name in ("a", "b", "c")}
    foreign.put_all(files)
    for nonsense in ("-5", str(1 << 63), "lots"):
        drive = mounter(proxy.endpoint, *HURRY, "--ttl", "0.1")
        with proxy.broken(
            Page(
                200, body=page(entry("d/a", size="50"), entry("d/b", size=nonsense), entry("d/c", size="50")), media=XML
            ),
            lambda request: request.op is Op.LIST and request.query.get("prefix") == "d/",
        ):
            for _ in range(2):
                assert names(drive.here / "d") == ["a", "b", "c"]
                assert (drive.here / "d" / "b").stat().st_size == 50
                assert (drive.here / "d" / "b").read_bytes() == files["d/b"]
                lines = drive.run("ls", "-l", "d").splitlines()
                assert [line.split()[4] for line in lines[1:]] == ["50", "50", "50"]
        assert {key: (drive.here / key).read_bytes() for key in files} == files
        drive.mount.stop()


def first_form(bodies: Sequence[str], prefix: str, delimiter: str, marker: str, limit: int) -> bytes:
    """What a server that knows ListObjects alone answers, with two names a page."""
    shown: dict[str, str] = {}
    for key in sorted(bodies):
        if key.startswith(prefix):
            at = key.find(delimiter, len(prefix)) if delimiter else -1
            name = key if at < 0 else key[: at + 1]
            shown.setdefault(name, entry(quote(key)) if at < 0 else folded(quote(name)))
    names_ = [name for name in shown if name > marker]
    parts = [shown[name] for name in names_[: min(2, limit)]]
    is_cut = len(names_) > len(parts)
    following = f"<NextMarker>{quote(names_[len(parts) - 1])}</NextMarker>" if is_cut and delimiter else ""
    head = (
        f"<EncodingType>url</EncodingType><Prefix>{quote(prefix)}</Prefix><Marker>{quote(marker)}</Marker>{following}"
    )
    return page(head, *parts, truncated="true" if is_cut else "false")


@MOTO
def test_a_server_that_knows_the_first_form_only_is_listed_whole(store: S3Store, proxy: Proxy) -> None:
    keys = ["a", "b c/1", "b c/2", "d/e/1", "d/e/2", "d/f", "g", "h+i", "j"]
    seen: list[str] = []

    @dataclass(frozen=True, slots=True)
    class FirstForm(Page):
        def encode(self, request: Request) -> bytes:
            query = request.query
            seen.append(query.get("marker", ""))
            asked = query.get("prefix", ""), query.get("delimiter", ""), query.get("marker", ""), int(query["max-keys"])
            return Page(200, body=first_form(keys, *asked), media=XML).encode(request)

    proxy.inject(FirstForm(200), on(Op.LIST))

    async def everything(delimiter: str) -> list[str]:
        found: list[str] = []
        token = ""
        while True:
            one = await store.list("", delimiter=delimiter, token=token)
            found += [*(listed.key for listed in one.objects), *one.prefixes]
            token = one.token
            if not token:
                return found

    async def run() -> None:
        assert await everything("") == keys
        assert sorted(await everything("/")) == ["a", "b c/", "d/", "g", "h+i", "j"]

    trio.run(run)
    assert len(seen) == 8
