"""Answers as bytes: what they say, which of them are none, and the bodies that are sent. Without a server."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Mapping
from typing import Any, cast

import pytest
import trio

from sosfs.errors import Cause, StoreError, from_elsewhere, from_s3, reason, unanswered
from sosfs.s3 import xml
from sosfs.s3.dispatch import Dispatcher
from sosfs.s3.http_messages import DOCUMENT_MAX, REFUSAL_MAX, Fields, Room
from sosfs.s3.listing_answers import page_of, parts_of, unquoted, uploads_of, version_ids
from sosfs.s3.object_answers import SIZE_MAX, WHOLE_MAX, RangeAnswer, described
from sosfs.s3.paging import all_pages, check_progress, is_ordered
from sosfs.s3.protocol import (
    UNKNOWN,
    Acl,
    Grant,
    Listed,
    Lock,
    Page,
    Part,
    Upload,
    Version,
)
from sosfs.s3.version_answers import VersionMarker, of_token, to_token, version_page
from sosfs.s3.xml import ParseError, refusal_of
from tests.support.drive import fails

ETAG = "c4ca4238a0b923820dcc509a6f75849b"
TIME = "2026-11-28T10:00:00.000Z"
ID = {"x-amz-request-id": "7"}
ERROR = b"<Error><Code>InternalError</Code><Message>try again</Message></Error>"


# What is an error


@pytest.mark.parametrize(
    ("request_", "method", "status", "headers", "body", "is_good"),
    [
        ("GetObject 'k'", "GET", 200, {}, b"", True),
        ("GetObject 'k'", "GET", 206, {}, ERROR, True),  # the user's bytes
        ("HeadObject 'k'", "HEAD", 200, {}, b"", True),
        ("HeadObject 'k'", "HEAD", 203, {}, b"", False),  # of a proxy that changes what it passes on
        ("HeadObject 'k'", "HEAD", 206, {}, b"", False),
        ("PutObject 'k'", "PUT", 200, {}, b"", True),  # its ETag shows whose it is
        ("PutObject 'k'", "PUT", 201, {}, b"", False),
        ("PutObject 'k'", "PUT", 204, {}, b"", False),
        ("CopyObject 'k'", "PUT", 200, {}, b"<CopyObjectResult/>", True),
        ("DeleteObject 'k'", "DELETE", 204, {}, b"", True),
        ("DeleteObject 'k'", "DELETE", 200, {}, b"", False),  # a page
        ("DeleteObject 'k'", "DELETE", 200, ID, b"", True),
        ("DeleteObject 'k'", "DELETE", 202, ID, b"", False),
        ("DeleteObject 'k'", "DELETE", 207, ID, b"", False),
        ("PutObjectAcl 'k'", "PUT", 204, {}, b"", False),
        ("PutObjectAcl 'k'", "PUT", 200, {}, b"", False),
        ("PutObjectAcl 'k'", "PUT", 200, ID, b"", True),
        ("AbortMultipartUpload 'k'", "DELETE", 204, {}, b"", True),
        ("DeleteObjects", "POST", 200, {}, b"<DeleteResult/>", True),
        ("DeleteObjects", "POST", 204, {}, b"", False),
    ],
)
def test_which_answers_say_that_it_is_done(
    request_: str, method: str, status: int, headers: Mapping[str, str], body: bytes, is_good: bool
) -> None:
    error = refusal_of(request_, method, status, headers, body, came=lambda: "a page")
    if is_good:
        assert error is None
        return
    assert error is not None
    assert (error.errno, error.status, error.cause) == (errno.EIO, status, Cause.FAILED)
    assert "a page" in str(error)


@pytest.mark.parametrize(
    ("request_", "method", "status", "body", "is_proven"),
    [
        ("HeadObject 'k'", "HEAD", 200, b"", False),
        ("GetObject 'k'", "GET", 206, b"", False),
        ("DeleteObject 'k'", "DELETE", 204, b"", False),
        ("AbortMultipartUpload 'k'", "DELETE", 204, b"", False),
        ("GetObjectAcl 'k'", "GET", 200, b"", True),  # its XML proves it
        ("ListObjectsV2 'k'", "GET", 200, b"", True),
        ("PutObject 'k'", "PUT", 200, b"", True),  # its ETag is compared with what was sent
        ("DeleteObjects", "POST", 200, b"<DeleteResult/>", True),
    ],
)
def test_a_server_that_names_its_answers_names_each(
    request_: str, method: str, status: int, body: bytes, is_proven: bool
) -> None:
    """A web server answers with ETag, length and time, too: that of a page."""
    error = refusal_of(request_, method, status, {}, body, has_ids=True)
    assert (error is None) is is_proven
    assert error is None or (error.errno, error.cause, error.elsewhere) == (errno.EIO, Cause.FAILED, True)
    assert refusal_of(request_, method, status, ID, body, has_ids=True) is None
    assert refusal_of(request_, method, status, {}, body) is None


@pytest.mark.parametrize("method", ["PUT", "POST"])
def test_an_error_in_a_good_answer_is_one(method: str) -> None:
    error = refusal_of("CopyObject 'k'", method, 200, ID, b"  \n" + ERROR)
    assert error is not None
    assert (error.code, error.status, error.errno, error.detail) == ("InternalError", 200, errno.EIO, "try again")
    assert refusal_of("GetObject 'k'", "GET", 200, ID, ERROR) is None, "the user's bytes"
    assert xml.late_error("HEAD", 200, ERROR) == xml.late_error("PUT", 201, ERROR) == ("", "")
    assert xml.late_error("PUT", 200, b"<CopyObjectResult>" + b"x" * xml.LATE_MAX + b"<Error") == ("", "")


def test_a_refusal_tells_all_that_the_server_said() -> None:
    body = b"<Error><Code> AccessDenied </Code><Message>not yours</Message></Error>"
    error = refusal_of("GetObject 'k'", "GET", 403, {}, body)
    assert error is not None
    assert (error.code, error.status, error.detail, error.elsewhere) == ("AccessDenied", 403, "not yours", False)
    for said in (b"<Error/>", b"<html/>", b"no xml", b"<Other><Code>NoSuchKey</Code></Other>"):
        other = refusal_of("GetObject 'k'", "GET", 404, ID, said)
        assert other is not None
        assert (other.cause, other.status, other.elsewhere) == (Cause.FAILED, 404, True), "a body that says nothing"


@pytest.mark.parametrize("encoding", ["GBK", "Shift_JIS", "no-such-encoding"])
@pytest.mark.parametrize("status", [302, 404, 503])
def test_a_page_in_an_encoding_that_is_not_understood_is_a_failure_as_any_other(status: int, encoding: str) -> None:
    page = f'<?xml version="1.0" encoding="{encoding}"?><html/>'.encode()
    error = refusal_of("GetObject 'k'", "GET", status, ID, page)
    assert error is not None
    assert (error.errno, error.cause, error.status) == (errno.EIO, Cause.FAILED, status)
    assert xml.endpoint_of(page) == ""
    for encoded in (True, False):
        with pytest.raises(ParseError):
            uploads_of(page, encoded=encoded)


@pytest.mark.parametrize(
    ("status", "headers", "cause"),
    [
        (404, ID, Cause.ABSENT),
        (404, {}, Cause.FAILED),
        (404, {"Content-Type": "application/xml"}, Cause.FAILED),  # a gateway may say so
        (403, {"Content-Type": "application/xml"}, Cause.DENIED),
        (403, {"Content-Type": "text/html"}, Cause.FAILED),
        (403, {}, Cause.FAILED),
        (501, {"Content-Type": "application/xml"}, Cause.UNSUPPORTED),
    ],
)
def test_whose_an_answer_without_a_body_is(status: int, headers: Mapping[str, str], cause: Cause) -> None:
    error = refusal_of("HeadObject 'k'", "HEAD", status, headers, b"")
    assert error is not None
    assert error.cause is cause


def test_why_is_told_without_what_was_asked() -> None:
    assert reason(OSError(errno.ENOSPC, "no room")) == "no room"
    assert reason(OSError("plain")) == "plain"
    assert reason(from_s3("PutObject 'k'", code="SlowDown", status=503)) == "SlowDown"
    assert reason(from_s3("PutObject 'k'", code="SlowDown", status=503, detail="later")) == "SlowDown (later)"
    assert reason(unanswered("PutObject 'k'", "reset")) == "reset"
    assert reason(StoreError(errno.ETIMEDOUT, "PutObject 'k'")) == "Connection timed out"
    assert "PutObject 'k'" in str(StoreError(errno.ETIMEDOUT, "PutObject 'k'"))
    assert "Connection timed out" in str(StoreError(errno.ETIMEDOUT, "PutObject 'k'"))
    assert from_elsewhere("r", status=502, detail="").status == 502
    assert StoreError(errno.EIO, "GetObject 'k'").request == "GetObject 'k'"


def test_nothing_but_an_object_is_absent() -> None:
    assert from_s3("ListObjectsV2 'd/'", code="NoSuchKey", status=404).errno == errno.EIO
    assert from_s3("ListObjectsV2 'd/'", code="AccessDenied", status=403).errno == errno.EACCES
    assert from_s3("GetBucketCors", code="NoSuchCORSConfiguration", status=404).errno == errno.ENODATA


# Bodies that are read


def test_a_document_of_another_name_is_none() -> None:
    calls: list[Callable[[bytes], Any]] = [
        xml.acl_of,
        lambda body: xml.failures_of(body, []),
        xml.keeps_versions,
        xml.upload_id,
        xml.has_acls,
        xml.locks_objects,
        xml.retention_of,
        parts_of,
        uploads_of,
        lambda body: uploads_of(body, encoded=True),
        lambda body: version_page(body, "", ""),
        lambda body: version_ids(body, key="k"),
        lambda body: xml.copied_etag(body, "CopyObjectResult"),
    ]
    for call in calls:
        with pytest.raises(ParseError):
            call(b"<Page><IsTruncated>false</IsTruncated><ETag>x</ETag><UploadId>u</UploadId></Page>")


def test_an_etag_may_be_missing_only_where_the_object_is_looked_at_anyway() -> None:
    assert xml.copied_etag(b'<CopyObjectResult><ETag>"e"</ETag></CopyObjectResult>', "CopyObjectResult") == "e"
    waiting = b" \n" * 9 + b'<?xml version="1.0"?><CopyObjectResult><ETag>"e"</ETag></CopyObjectResult>'
    assert xml.copied_etag(waiting, "CopyObjectResult") == "e", "blanks keep the connection while it is copied"
    assert xml.copied_etag(f"<{xml.JOINED}><ETag/></{xml.JOINED}>".encode(), xml.JOINED) == ""
    assert xml.copied_etag(f'<{xml.JOINED}><ETag>"e-2"</ETag></{xml.JOINED}>'.encode(), xml.JOINED) == "e-2"
    with pytest.raises(ParseError):
        xml.copied_etag(b"<CopyPartResult><ETag/></CopyPartResult>", "CopyPartResult")
    with pytest.raises(ParseError):
        xml.upload_id(b"<InitiateMultipartUploadResult><UploadId></UploadId></InitiateMultipartUploadResult>")
    begun = b"<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>"
    assert xml.upload_id(begun) == "u"


def test_what_a_bucket_is_set_to() -> None:
    def versioning(status: str) -> bool:
        return xml.keeps_versions(f"<VersioningConfiguration>{status}</VersioningConfiguration>".encode())

    assert versioning("<Status>Enabled</Status>")
    assert not versioning("<Status>Suspended</Status>")
    assert not versioning("")

    def locks(body: str) -> tuple[bool, bool]:
        whole = f"<ObjectLockConfiguration>{body}</ObjectLockConfiguration>".encode()
        return xml.locks_objects(whole), xml.retention_of(whole)

    assert locks("") == (False, False)
    assert locks("<ObjectLockEnabled>Enabled</ObjectLockEnabled>") == (True, False)
    assert locks("<Rule><DefaultRetention/></Rule>") == (False, True)
    rule = "<Rule><DefaultRetention><Mode>GOVERNANCE</Mode></DefaultRetention></Rule>"
    assert locks(f"<ObjectLockEnabled>Enabled</ObjectLockEnabled>{rule}") == (True, True)

    def owned(*rules: str) -> bool:
        told = "".join(f"<Rule><ObjectOwnership>{rule}</ObjectOwnership></Rule>" for rule in rules)
        return xml.has_acls(f"<OwnershipControls>{told}</OwnershipControls>".encode())

    assert owned("ObjectWriter")
    assert owned("BucketOwnerPreferred")
    assert not owned("BucketOwnerEnforced")
    with pytest.raises(ParseError):
        owned()
    assert xml.endpoint_of(b"<Error><Endpoint>host</Endpoint></Error>") == "host"
    assert xml.endpoint_of(b"<html>") == xml.endpoint_of(b"<Error/>") == ""


def test_what_could_not_be_removed_is_told_but_for_what_was_not_there() -> None:
    def error(key: str, code: str) -> str:
        return f"<Error><Key>{key}</Key><Code>{code}</Code><Message>why</Message></Error>"

    body = error("a", "AccessDenied") + error("b", "NoSuchKey") + error("c", "NoSuchVersion") + error("d", "Strange")
    answer = f"<DeleteResult><Deleted><Key>x</Key></Deleted>{body}</DeleteResult>".encode()
    found = xml.failures_of(answer, ["x", "a", "b", "c", "d"])
    assert [(one.key, one.error.errno) for one in found] == [("a", errno.EACCES), ("d", errno.EIO)]
    first = found[0].error
    assert isinstance(first, StoreError)
    assert (first.code, first.detail, first.status) == ("AccessDenied", "why", 0)
    for asked in (["x"], ["a", "b", "c", "d"], ["x", "a", "b", "c", "d", "e"]):
        with pytest.raises(xml.UnclearBatch, match="what became of which key") as caught:
            xml.failures_of(answer, asked)
        assert caught.value.errno == errno.EIO
    assert xml.failures_of(b"<DeleteResult/>", ["a"]) == [], "it was told to be quiet"


def test_parts_and_uploads_are_read_page_by_page() -> None:
    part = f'<Part><PartNumber>2</PartNumber><ETag>"{ETAG}"</ETag><Size>5</Size></Part>'
    last = f"<ListPartsResult><IsTruncated>false</IsTruncated>{part}</ListPartsResult>".encode()
    assert parts_of(last) == ([Part(2, ETAG, 5)], "")
    more = "<IsTruncated>true</IsTruncated><NextPartNumberMarker>2</NextPartNumberMarker>"
    assert parts_of(f"<ListPartsResult>{more}{part}</ListPartsResult>".encode()) == ([Part(2, ETAG, 5)], "2")
    with pytest.raises(ParseError):
        parts_of(f"<ListPartsResult>{more.replace('>2<', '><')}{part}</ListPartsResult>".encode())
    echoed = last.replace(b"<IsT", b"<UploadId>u</UploadId><IsT")
    assert parts_of(echoed, "u") == parts_of(last, "u") == ([Part(2, ETAG, 5)], "")
    with pytest.raises(ParseError):
        parts_of(echoed, "v")

    def uploads(head: str, key: str, *, encoded: bool) -> tuple[list[Upload], tuple[str, str] | None]:
        one = f"<Upload><Key>{key}</Key><UploadId>u</UploadId><Initiated>{TIME}</Initiated></Upload>"
        body = f"<ListMultipartUploadsResult>{head}{one}</ListMultipartUploadsResult>".encode()
        return uploads_of(body, encoded=encoded)

    is_last = "<IsTruncated>false</IsTruncated>"
    assert uploads(is_last, "a%20b", encoded=True) == ([Upload("a b", "u", 1795860000)], None)
    assert uploads(is_last, "a%20b", encoded=False) == ([Upload("a%20b", "u", 1795860000)], None)
    follows = "<IsTruncated>true</IsTruncated><NextKeyMarker>a%20b</NextKeyMarker>"
    follows += "<NextUploadIdMarker>u%20</NextUploadIdMarker>"
    assert uploads(follows, "k", encoded=True)[1] == ("a b", "u%20")
    with pytest.raises(ParseError):
        uploads(follows.replace(">a%20b<", "><"), "k", encoded=True)
    with pytest.raises(ParseError):
        uploads(is_last, "a\x01b", encoded=False)
    one = "<Upload><Key>d/a</Key><UploadId>u</UploadId></Upload>"
    below = f"<ListMultipartUploadsResult>{is_last}{one}</ListMultipartUploadsResult>".encode()
    assert [found.key for found in uploads_of(below, "d/")[0]] == ["d/a"]
    for encoded in (True, False):
        with pytest.raises(ParseError):
            uploads_of(below, "e/", encoded=encoded)


def test_the_ids_of_one_key_are_not_those_of_its_neighbours() -> None:
    told = "".join(
        f"<{kind}><Key>{key}</Key><VersionId>{made}</VersionId></{kind}>"
        for kind, key, made in (("Version", "k", "1"), ("DeleteMarker", "k", "2"), ("Version", "k2", "3"))
    )
    assert version_ids(f"<ListVersionsResult>{told}</ListVersionsResult>".encode(), key="k") == ["1", "2"]


# Pages of keys


def listed(*keys: str, head: str = "<IsTruncated>false</IsTruncated>") -> bytes:
    shown = "".join(
        f'<Contents><Key>{key}</Key><LastModified>{TIME}</LastModified><ETag>"{ETAG}"</ETag><Size>1</Size></Contents>'
        for key in keys
    )
    return f"<ListBucketResult>{head}{shown}</ListBucketResult>".encode()


MORE = "<IsTruncated>true</IsTruncated>"


def test_after_which_key_the_next_page_begins() -> None:
    both = f"{MORE}<NextContinuationToken>t</NextContinuationToken><Marker/><NextMarker>m</NextMarker>"
    assert page_of(listed("d/a", head=both), "d/", "/").token == "t"
    with pytest.raises(ParseError):
        page_of(listed("d/a", head=f"{MORE}<KeyCount>1</KeyCount><Marker/>"), "d/", "/")
    with pytest.raises(ParseError):
        page_of(listed("d/a", head=MORE), "d/", "/")
    told = page_of(listed("d/a", "d/b", head=f"{MORE}<Marker/><NextMarker>d/c</NextMarker>"), "d/", "/")
    assert told.token.endswith("d/c"), "and not after the last that is shown"


def test_a_key_is_what_it_was_before_it_was_encoded() -> None:
    assert [unquoted(text) for text in ("a%2Fb", "a+b", "a%20b", "a%2Bb", "plain", "%41%2F+")] == [
        "a/b", "a b", "a b", "a+b", "plain", "A/ "
    ]  # fmt: skip
    head = "<EncodingType>url</EncodingType><IsTruncated>false</IsTruncated>"
    assert [one.key for one in page_of(listed("a+b%2Bc", head=head), "", "/").objects] == ["a b+c"]
    assert [one.key for one in page_of(listed("a+b%2Bc"), "", "/").objects] == ["a+b%2Bc"]


@pytest.mark.parametrize(
    ("echo", "prefix", "key", "is_good"),
    [
        ("d/", "d/", "d/a", True),
        ("d?e/", "d\x01e/", "d\x01e/a", True),  # what XML cannot say comes back as something else
        ("d?e/", "dxe/", "dxe/a", False),
        ("dxe/", "d?e/", "d?e/a", False),
    ],
)
def test_an_echo_may_differ_in_what_xml_cannot_say_alone(echo: str, prefix: str, key: str, is_good: bool) -> None:
    head = f"<EncodingType>url</EncodingType><IsTruncated>false</IsTruncated><Prefix>{echo}</Prefix>"
    body = listed(key.replace("\x01", "%01").replace("?", "%3F"), head=head)
    if is_good:
        assert [one.key for one in page_of(body, prefix, "/").objects] == [key]
        return
    with pytest.raises(ParseError):
        page_of(body, prefix, "/")


def test_which_pages_are_in_order() -> None:
    def page(*keys: str, prefixes: tuple[str, ...] = ()) -> Page:
        return Page(tuple(Listed(key, UNKNOWN) for key in keys), prefixes)

    assert is_ordered(page())
    assert is_ordered(page("a", "a", "b", prefixes=("c/", "d/")))
    assert not is_ordered(page("b", "a"))
    assert not is_ordered(page("a", prefixes=("d/", "c/")))
    assert not is_ordered(page("b", "a", prefixes=("c/", "d/")))


class Pages:
    """A dispatcher over pages: what each marker is answered with."""

    def __init__(self, pages: Mapping[str | None, tuple[list[str], str]]) -> None:
        self.pages = pages
        self.asked: list[str | None] = []

    async def send(self, _: str, work: Callable[[Any], Any]) -> Any:
        await trio.lowlevel.checkpoint()
        return work(self)

    def read(self) -> list[str]:
        """All that they have."""

        def ask(_: Any, marker: str | None) -> tuple[list[str], str]:
            self.asked.append(marker)
            return self.pages[marker]

        async def main() -> list[str]:
            return await all_pages(cast(Dispatcher, self), "ListParts", ask)

        return trio.run(main)


def test_all_pages_are_read_and_each_once() -> None:
    pages = Pages({None: (["a"], "1"), "1": ([], "2"), "2": (["b", "c"], "")})
    assert pages.read() == ["a", "b", "c"]
    assert pages.asked == [None, "1", "2"]
    assert Pages({None: ([], "")}).read() == []
    circle = Pages({None: (["a"], "1"), "1": (["b"], "2"), "2": (["c"], "1")})
    with fails(errno.EIO):
        circle.read()
    assert circle.asked == [None, "1", "2"]


def test_no_token_comes_twice() -> None:
    seen: set[str] = set()
    for token in ("a", "b", "c"):
        check_progress("List", token, seen)
    with fails(errno.EIO):
        check_progress("List", "b", seen)


# Pages of versions


def entry(kind: str, key: str, made: str, *, time: str = TIME, latest: str = "false", more: str = "") -> str:
    told = f"<Key>{key}</Key><VersionId>{made}</VersionId><LastModified>{time}</LastModified>"
    return f"<{kind}>{told}<IsLatest>{latest}</IsLatest>{more}</{kind}>"


def stored(etag: str = ETAG, size: str = "5", more: str = "") -> str:
    return f'<ETag>"{etag}"</ETag><Size>{size}</Size>{more}'


def versions(*entries: str, head: str = "<IsTruncated>false</IsTruncated>") -> bytes:
    return f"<ListVersionsResult>{head}{''.join(entries)}</ListVersionsResult>".encode()


def test_versions_and_markers_come_in_the_order_of_keys_the_newest_first() -> None:
    """Some servers list markers apart; of one moment what is current is the newest."""
    early, late = "2026-11-28T09:00:00.000Z", "2026-11-28T11:00:00.250Z"
    page = version_page(
        versions(
            entry("Version", "d/b", "3", time=early, more=stored()),
            entry("Version", "d/a", "1", time=early, more=stored(more="<StorageClass>COLD</StorageClass>")),
            entry("Version", "d/a", "2", time=late, more=stored()),
            entry("DeleteMarker", "d/a", "4", time=early, latest=" True "),
            entry("DeleteMarker", "d/b", "", time=late),
        ),
        "d/",
        "",
    )
    told = [(one.key, one.version_id, one.is_marker, one.is_latest) for one in page.entries]
    assert told == [
        ("d/a", "4", True, True),
        ("d/a", "2", False, False),
        ("d/a", "1", False, False),
        ("d/b", "null", True, False),
        ("d/b", "3", False, False),
    ]
    assert page.entries[1].modified == 1795863600.25
    assert [one.storage_class for one in page.entries] == [None, "", "COLD", None, ""]
    assert page.entries[2].version == Version(ETAG, 5, 1795856400)
    assert page.entries[0].version == UNKNOWN
    assert (page.prefixes, page.following) == ((), None)


@pytest.mark.parametrize(
    "more",
    [
        stored(etag=""),
        stored(size="-1"),
        stored(size=str(1 << 60)),
        stored(size="much"),
        stored().partition("<Size")[0],
    ],
)
def test_a_version_of_which_nonsense_is_told_is_there_all_the_same(more: str) -> None:
    (one,) = version_page(versions(entry("Version", "a", "1", more=more)), "", "").entries
    assert (one.version_id, one.version) == ("1", UNKNOWN)


@pytest.mark.parametrize("time", ["", "yesterday", "1960-01-01T00:00:00Z", "9999-12-31T23:59:59Z"])
def test_a_version_without_a_time_cannot_be_placed(time: str) -> None:
    with pytest.raises(ValueError):
        version_page(versions(entry("Version", "a", "1", time=time, more=stored())), "", "")


def test_a_time_without_a_zone_is_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    (one,) = version_page(
        versions(entry("Version", "a", "1", time="2026-11-28T10:00:00", more=stored())), "", ""
    ).entries
    monkeypatch.undo()
    time.tzset()
    assert one.modified == 1795860000


def test_a_page_of_versions_for_something_else_is_none() -> None:
    folded = "<CommonPrefixes><Prefix>d/e/</Prefix></CommonPrefixes>"
    assert version_page(versions(folded), "d/", "/").prefixes == ("d/e/",)
    assert version_page(versions(), "d/", "/").prefixes == ()
    for body, prefix, delimiter in (
        (versions(folded), "d/", ""),
        (versions(folded), "e/", "/"),
        (versions(entry("Version", "a", "1", more=stored())), "d/", ""),
        (versions(entry("Version", "", "1", more=stored())), "", ""),
        (versions(entry("Version", "d/e/f", "1", more=stored())), "d/", "/"),
        (versions(entry("DeleteMarker", "d/e/f", "1")), "d/", "/"),
        (versions(folded.replace("d/e/", "d/e")), "d/", "/"),
        (versions(folded.replace("d/e/", "d/")), "d/", "/"),
        (versions(head=""), "", ""),
        (versions(head=f"{MORE}<NextVersionIdMarker>1</NextVersionIdMarker>"), "", ""),
    ):
        with pytest.raises((ParseError, LookupError)):
            version_page(body, prefix, delimiter)


def test_a_later_page_of_versions_is_no_first_one() -> None:
    later = versions(
        entry("Version", "b", "1", more=stored()), head="<IsTruncated>false</IsTruncated><KeyMarker>a</KeyMarker>"
    )
    assert len(version_page(later, "", "", VersionMarker("a")).entries) == 1
    assert version_page(versions(head="<IsTruncated>false</IsTruncated><KeyMarker/>"), "", "").entries == ()
    with pytest.raises(ParseError):
        version_page(later, "", "")


def test_where_the_next_page_of_versions_begins() -> None:
    def following(said: str, *keys: str, folded: str = "") -> VersionMarker | None:
        head = f"<EncodingType>url</EncodingType>{MORE}<NextKeyMarker>{said}</NextKeyMarker>"
        head += "<NextVersionIdMarker>7</NextVersionIdMarker>"
        shown = [entry("Version", key, "1", more=stored()) for key in keys]
        if folded:
            shown.append(f"<CommonPrefixes><Prefix>{folded}</Prefix></CommonPrefixes>")
        return version_page(versions(*shown, head=head), "", "/").following

    assert following("a%20b", "a%20b") == VersionMarker("a b", "7")
    assert following("a%2520b", "a%2520b") == VersionMarker("a%20b", "7")
    assert following("a%20b", "a%2520b") == VersionMarker("a%20b", "7"), "not all encode this one"
    assert following("a%20b/", folded="a%2520b/") == VersionMarker("a%20b/", "7")


def test_a_marker_survives_as_a_token() -> None:
    assert of_token("") == (None, "")
    assert of_token(to_token(VersionMarker("k", "7"), "decided")) == (VersionMarker("k", "7"), "decided")


# Bodies that are sent


def test_what_is_sent_says_what_is_meant() -> None:
    acl = Acl("me", (Grant("me", "FULL_CONTROL"), Grant("http://all", "READ")))
    assert xml.acl_of(xml.acl_body(acl)) == acl
    mail = b"<Grantee><EmailAddress>a@b</EmailAddress></Grantee><Permission>READ</Permission>"
    told = b"<AccessControlPolicy><Owner><ID>me</ID></Owner><Grant>" + mail + b"</Grant></AccessControlPolicy>"
    assert xml.acl_of(told) == Acl("me", (Grant("a@b", "READ"),))
    lock = Lock("GOVERNANCE", 1795860000, is_held=True)
    assert xml.fields(xml.tree(xml.retention_body(lock))) == {
        "Mode": "GOVERNANCE", "RetainUntilDate": "2026-11-28T10:00:00Z"
    }  # fmt: skip
    assert xml.fields(xml.tree(xml.legal_hold_body(lock))) == {"Status": "ON"}
    assert xml.fields(xml.tree(xml.legal_hold_body(Lock()))) == {"Status": "OFF"}
    assert xml.fields(xml.tree(xml.location_body("zone"))) == {"LocationConstraint": "zone"}
    removed = xml.tree(xml.delete_body(["a", "b\r\n", "ä&<"], {"a": "0123"}))
    named = [xml.fields(one) for one in xml.each(removed, "Object")]
    assert named == [{"Key": "a", "ETag": '"0123"'}, {"Key": "b\r\n"}, {"Key": "ä&<"}]
    assert xml.fields(removed)["Quiet"] == "true"


def test_parts_are_joined_in_the_order_of_their_numbers_and_none_is_nothing() -> None:
    joined = xml.tree(xml.complete_body([Part(10, "j", 1), Part(2, "b", 1), Part(1, "a", 1)]))
    told = [tuple(xml.fields(one).values()) for one in xml.each(joined, "Part")]
    assert told == [("1", '"a"'), ("2", '"b"'), ("10", '"j"')]
    with fails(errno.EINVAL):
        xml.complete_body([])


# Whether it is an object


def answer(**fields: str) -> Fields:
    usual = {"ETag": f'"{ETAG}"', "Content-Length": "5", "Last-Modified": "Sat, 28 Nov 2026 10:00:00 GMT"}
    told = usual | {name.replace("_", "-"): value for name, value in fields.items()}
    return Fields([f"{name}: {value}\n".encode("latin-1") for name, value in told.items() if value != "none"])


def test_an_object_has_an_etag_a_length_and_a_time() -> None:
    assert described("HeadObject", "k", answer()).version == Version(ETAG, 5, 1795860000)
    assert described("HeadObject", "k", answer(), size=70).version.size == 70
    assert described("HeadObject", "k", answer(Content_Length=str(SIZE_MAX))).version.size == SIZE_MAX


@pytest.mark.parametrize(
    "fields",
    [
        {"ETag": "none"},
        {"ETag": '""'},
        {"ETag": f'"{ETAG}", "{ETAG}"'},  # came twice
        {"ETag": f"{ETAG}, {ETAG}"},
        {"Content_Length": "none"},
        {"Content_Length": ""},
        {"Content_Length": "-5"},
        {"Content_Length": "five"},
        {"Content_Length": "\xb2"},  # a digit, and no number
        {"Content_Length": str(SIZE_MAX + 1)},
        {"Content_Length": "9" * 40},
        {"Last_Modified": "none"},
        {"Last_Modified": "yesterday"},
        {"Last_Modified": "Sun, 28 Nov 1926 10:00:00 GMT"},
        {"Last_Modified": "Fri, 31 Dec 9999 23:59:59 GMT"},
    ],
)
def test_what_lacks_one_of_them_is_none(fields: Mapping[str, str]) -> None:
    with pytest.raises(StoreError) as caught:
        described("HeadObject 'k'", "k", answer(**fields, Content_Type="text/html"))
    assert (caught.value.errno, caught.value.cause) == (errno.EIO, Cause.FAILED)
    assert "text/html" in caught.value.detail


@pytest.mark.parametrize(
    "value",
    [
        "=?\xe9?B?YQ==?=",  # a charset that none can be
        "=?nobody-knows?B?YQ==?=",
        "=?undefined?B?YQ==?=",
        "=?UTF-8?B?//8=?=",
        "=?UTF-8?B?Y?=",
        "=?UTF-7?Q?+2AA-?=",  # half of a pair, which could not be sent again
    ],
)
def test_what_only_looks_encoded_is_metadata_as_it_is(value: str) -> None:
    """Another client may have stored anything, and the file must be there all the same."""
    assert described("HeadObject", "k", answer(x_amz_meta_a=value)).properties.metadata == {"a": value}
    assert described("HeadObject", "k", answer(x_amz_meta_a="=?UTF-8?B?w6k=?=")).properties.metadata == {"a": "\xe9"}


def of_range(start: int, stop: int) -> RangeAnswer:
    return RangeAnswer("GetObject 'k'", "k", start, stop)


@pytest.mark.parametrize(
    ("start", "stop", "told", "due"),
    [(0, 5, "bytes 0-4/9", 5), (3, 5, "bytes 3-4/9", 2), (3, 99, "bytes 3-8/9", 6), (8, 9, "bytes 8-8/9", 1)],
)
def test_a_range_is_the_one_that_was_asked_for(start: int, stop: int, told: str, due: int) -> None:
    asked = of_range(start, stop)
    assert asked.room(206, answer(Content_Range=told, Content_Length=str(due))) == Room(due, due)
    found = asked.slice(memoryview(b"x" * due))
    assert (found.object.key, found.object.version) == ("k", Version(ETAG, 9, 1795860000))
    assert bytes(found.body) == b"x" * due


@pytest.mark.parametrize(
    "told",
    [
        "none",
        "bytes */9",
        "bytes 0-4/*",
        "bytes=0-4/9",
        "bytes 1-4/9",  # begins elsewhere
        "bytes 0-5/9",  # longer
        "bytes 0-9/9",  # beyond its end
        "bytes 0-4/4",
        "bytes 4-3/9",
    ],
)
def test_any_other_range_is_none(told: str) -> None:
    with fails(errno.EIO):
        of_range(0, 5).room(206, answer(Content_Range=told))


def test_a_range_that_came_cut_short_is_not_whole() -> None:
    """The headers count fewer bytes than are due: the room is for all that are."""
    assert of_range(0, 5).room(206, answer(Content_Range="bytes 0-3/9", Content_Length="4")) == Room(5, 5)


def test_a_server_that_knows_no_ranges_sends_small_objects_whole() -> None:
    asked = of_range(1, 3)
    assert asked.room(200, answer()) == Room(5, 5)
    assert bytes(asked.slice(memoryview(b"abcde")).body) == b"bc"
    with fails(errno.EIO):
        of_range(1, 3).room(200, answer(Content_Length=str(WHOLE_MAX + 1)))
    assert of_range(1, 3).room(200, answer(Content_Length=str(WHOLE_MAX))) == Room(WHOLE_MAX, WHOLE_MAX)
    for status, fields in ((203, {}), (200, {"Transfer_Encoding": "chunked"}), (200, {"ETag": "none"})):
        with fails(errno.EIO):
            of_range(1, 3).room(status, answer(**fields))


@pytest.mark.parametrize("status", [301, 404, 412, 503])
def test_a_refusal_is_read_as_text(status: int) -> None:
    assert of_range(0, 5).room(status, answer(ETag="none")) == Room(0, REFUSAL_MAX)
    assert REFUSAL_MAX < DOCUMENT_MAX
