"""What each call sends: method, sub-resource and headers; and what becomes of its answer. Over a scripted server."""

from __future__ import annotations

import errno
import time
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import md5, sha256
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from sosfs.config.choices import Canned
from sosfs.errors import StoreError
from sosfs.s3.body_hash import BodyHash
from sosfs.s3.calls import SignedCalls
from sosfs.s3.customer_key import CustomerKey
from sosfs.s3.listing_answers import MARKER
from sosfs.s3.protocol import Acl, Detail, Grant, Lock, Part, Properties
from sosfs.s3.version_answers import VersionMarker
from tests.s3.test_transport import BODY, OBJECT, lane_at
from tests.support.drive import fails
from tests.support.scripted import Script, Scripted, Seen, answer

ID = "x-amz-request-id: 7"
SECRET = CustomerKey(bytes(range(32)))
OURS, SOURCE = {name.lower() for name in SECRET.headers}, {name.lower() for name in SECRET.source_headers}
COLD = Properties(storage_class="COLD")
HEAD = answer(200, b"", *OBJECT, length=10)
GET = answer(206, BODY, *OBJECT, "Content-Range: bytes 5-14/20")
PUT = answer(200, b"", 'ETag: "abc"', "x-amz-server-side-encryption-customer-algorithm: AES256")
GONE = answer(204, b"", ID, length=-1)


def xml(name: str, *parts: str) -> bytes:
    return answer(200, f"<{name}>{''.join(parts)}</{name}>".encode(), ID)


LAST = "<IsTruncated>false</IsTruncated>"
COPIED, PART_COPIED = xml("CopyObjectResult", "<ETag>e</ETag>"), xml("CopyPartResult", "<ETag>e</ETag>")
BEGUN = xml("InitiateMultipartUploadResult", "<UploadId>u</UploadId>")
JOINED = xml("CompleteMultipartUploadResult", "<ETag>e-1</ETag>")
LISTED, KEPT = xml("ListBucketResult", LAST), xml("ListVersionsResult", LAST)
ACL = xml("AccessControlPolicy", "<Owner><ID>me</ID></Owner>")
LISTING = {"list-type": "2", "encoding-type": "url", "prefix": "d/", "max-keys": "7"}
VERSIONS = {"versions": "", "encoding-type": "url", "prefix": "d/", "max-keys": "7"}
OWNED = xml("OwnershipControls", "<Rule><ObjectOwnership>BucketOwnerEnforced</ObjectOwnership></Rule>")
LOCK = Lock("GOVERNANCE", 1795860000, is_held=True)


@dataclass(frozen=True, slots=True)
class Said:
    """What a request said. Of headers those that are named; `keys` are those of an encryption key."""

    call: Callable[[SignedCalls], object]
    told: bytes
    method: str
    query: Mapping[str, str] | None = None
    headers: Mapping[str, str] | None = None
    keys: frozenset[str] | set[str] = frozenset()
    key: str = "/key"
    text: str = ""  # in a document that is sent, which has its hash with it


def _list(**options: Any) -> Callable[[SignedCalls], object]:
    asked: dict[str, Any] = {"delimiter": "", "after": "", "token": "", "limit": 7} | options
    return lambda calls: calls.list("d/", **asked)


def _versions(after: VersionMarker | None, delimiter: str = "") -> Callable[[SignedCalls], object]:
    return lambda calls: calls.list_versions("d/", delimiter=delimiter, after=after, limit=7)


CALLS: Mapping[str, Said] = {
    "head": Said(lambda calls: calls.head("key"), HEAD, "HEAD", {}, {"x-amz-checksum-mode": ""}, OURS),
    "head, checksum": Said(
        lambda calls: calls.head("key", Detail.CHECKSUM, version_id="v/1"), HEAD, "HEAD", {"versionId": "v/1"},
        {"x-amz-checksum-mode": "ENABLED"}, OURS,
    ),
    "get": Said(
        lambda calls: calls.get("key", 5, 15, "", version_id="v"), GET, "GET", {"versionId": "v"},
        {"range": "bytes=5-14", "x-amz-checksum-mode": "ENABLED", "if-match": ""}, OURS,
    ),
    "get, pinned": Said(lambda calls: calls.get("key", 5, 15, '"e"'), GET, "GET", {}, {"if-match": '"e"'}, OURS),
    "list": Said(_list(), LISTED, "GET", LISTING, key=""),
    "list, folded after": Said(
        _list(after="d/a", delimiter="/"), LISTED, "GET", LISTING | {"start-after": "d/a", "delimiter": "/"}, key=""
    ),
    "list, next": Said(
        _list(after="d/a", token="t"), xml("ListBucketResult", LAST, "<ContinuationToken>t</ContinuationToken>"), "GET",
        LISTING | {"continuation-token": "t"}, key="",
    ),
    "list, next of the first form": Said(
        _list(token=f"{MARKER}d/b"), xml("ListBucketResult", LAST, "<Marker>d/b</Marker>"), "GET",
        LISTING | {"marker": "d/b"}, key="",
    ),
    "versions": Said(_versions(None), KEPT, "GET", VERSIONS, key=""),
    "versions after a key": Said(
        _versions(VersionMarker("d/a"), "/"), xml("ListVersionsResult", LAST, "<KeyMarker>d/a</KeyMarker>"), "GET",
        VERSIONS | {"delimiter": "/", "key-marker": "d/a"}, key="",
    ),
    "versions after one": Said(
        _versions(VersionMarker("d/a", "v")), KEPT, "GET",
        VERSIONS | {"key-marker": "d/a", "version-id-marker": "v"}, key="",
    ),
    "put": Said(
        lambda calls: calls.put("key", BODY, COLD, Canned.PUBLIC_READ, {"If-None-Match": "*"}), PUT, "PUT", {},
        {"x-amz-storage-class": "COLD", "x-amz-acl": "public-read", "if-none-match": "*"}, OURS,
    ),
    "copy": Said(
        lambda calls: calls.copy(
            "a b", "key", pin='"e"', properties=None, acl=Canned.PUBLIC_READ, storage_class="COLD", version_id="v/1",
            digest={"Content-MD5": "d"},
        ),
        COPIED, "PUT", {},
        {
            "x-amz-copy-source": "/bucket/a%20b?versionId=v/1", "x-amz-copy-source-if-match": '"e"',
            "x-amz-metadata-directive": "COPY", "x-amz-storage-class": "COLD", "x-amz-acl": "public-read",
            "content-md5": "d",
        },
        OURS | SOURCE,
    ),
    "copy, other properties": Said(
        lambda calls: calls.copy("s", "key", pin="", properties=COLD, acl=None), COPIED, "PUT", {},
        {
            "x-amz-copy-source": "/bucket/s", "x-amz-copy-source-if-match": "", "x-amz-metadata-directive": "REPLACE",
            "x-amz-storage-class": "COLD", "x-amz-acl": "",
        },
        OURS | SOURCE,
    ),
    "delete": Said(
        lambda calls: calls.delete("key", version_id="v", if_match='"e"'), GONE, "DELETE", {"versionId": "v"},
        {"if-match": '"e"'},
    ),
    "retention": Said(lambda calls: calls.put_retention("key", "v", LOCK), answer(200, b"", ID), "PUT",
        {"retention": "", "versionId": "v"}, text="<Mode>GOVERNANCE</Mode>"),
    "legal hold": Said(lambda calls: calls.put_legal_hold("key", "v", LOCK), answer(200, b"", ID), "PUT",
        {"legal-hold": "", "versionId": "v"}, text="<Status>ON</Status>"),
    "create": Said(lambda calls: calls.create_multipart("key", COLD, Canned.PUBLIC_READ), BEGUN, "POST",
        {"uploads": ""}, {"x-amz-storage-class": "COLD", "x-amz-acl": "public-read"}, OURS),
    "part": Said(lambda calls: calls.upload_part("key", "u", 3, BODY, {"Content-MD5": "d"}), PUT, "PUT",
        {"partNumber": "3", "uploadId": "u"}, {"content-md5": "d"}, OURS),
    "copy of a part": Said(
        lambda calls: calls.copy_part("key", "u", 3, "s", pin='"e"', start=5, stop=15, version_id="v"), PART_COPIED,
        "PUT", {"partNumber": "3", "uploadId": "u"},
        {"x-amz-copy-source": "/bucket/s?versionId=v", "x-amz-copy-source-if-match": '"e"',
         "x-amz-copy-source-range": "bytes=5-14"},
        OURS | SOURCE,
    ),
    "complete": Said(lambda calls: calls.complete_multipart("key", "u", [Part(1, "e", 5)], {"If-Match": '"e"'}), JOINED,
        "POST", {"uploadId": "u"}, {"if-match": '"e"'}),
    "abort": Said(lambda calls: calls.abort_multipart("key", "u"), GONE, "DELETE", {"uploadId": "u"}),
    "parts": Said(lambda calls: calls.list_parts("key", "u", ""), xml("ListPartsResult", LAST), "GET",
        {"uploadId": "u"}),
    "parts, next": Said(lambda calls: calls.list_parts("key", "u", "7"), xml("ListPartsResult", LAST), "GET",
        {"uploadId": "u", "part-number-marker": "7"}),
    "uploads": Said(lambda calls: calls.list_uploads("d/", None), xml("ListMultipartUploadsResult", LAST), "GET",
        {"uploads": "", "prefix": "d/"}, key=""),
    "uploads, next": Said(lambda calls: calls.list_uploads("d/", ("k", "u")), xml("ListMultipartUploadsResult", LAST),
        "GET", {"uploads": "", "prefix": "d/", "key-marker": "k", "upload-id-marker": "u"}, key=""),
    "acl": Said(lambda calls: calls.get_acl("key", version_id="v"), ACL, "GET", {"acl": "", "versionId": "v"}),
    "acl of the bucket": Said(lambda calls: calls.get_acl(""), ACL, "GET", {"acl": ""}, key=""),
    "put acl": Said(lambda calls: calls.put_acl("key", Canned.PUBLIC_READ), answer(200, b"", ID), "PUT", {"acl": ""},
        {"x-amz-acl": "public-read"}),
    "put acl, line by line": Said(
        lambda calls: calls.put_acl("key", Acl("me", (Grant("me", "READ"),))), answer(200, b"", ID), "PUT", {"acl": ""},
        {"x-amz-acl": ""}, text="<Permission>READ</Permission>",
    ),
    "delete many": Said(
        lambda calls: calls.delete_many(["a"]), xml("DeleteResult"), "POST", {"delete": ""}, key="", text="<Key>a</Key>"
    ),
    "lock": Said(SignedCalls.retention, xml("ObjectLockConfiguration"), "GET", {"object-lock": ""}, key=""),
    "ownership": Said(SignedCalls.has_acls, OWNED, "GET", {"ownershipControls": ""}, key=""),
    "versioning": Said(SignedCalls.keeps_versions, xml("VersioningConfiguration"), "GET", {"versioning": ""}, key=""),
    "ids": Said(lambda calls: calls.version_ids("key"), KEPT, "GET", {"versions": "", "prefix": "key"}, key=""),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_what_a_call_says(name: str) -> None:
    due = CALLS[name]
    with Scripted(lambda _: due.told) as server:
        calls = lane_at(server.endpoint, customer_key=SECRET)
        due.call(calls)
        calls.close()
        (seen,) = server.seen
    url = urlsplit(seen.target)
    assert (seen.method, url.path) == (due.method, f"/bucket{due.key}")
    assert dict(parse_qsl(url.query, keep_blank_values=True)) == (due.query or {})
    assert {name: seen.headers.get(name, "") for name in due.headers or {}} == (due.headers or {})
    assert {name for name in seen.headers if "server-side-encryption" in name} == due.keys
    assert "" not in seen.headers.values(), "a condition without a value is another one"
    assert due.text in seen.body.decode()
    hashed = b64encode(md5(seen.body).digest()).decode() if due.text else (due.headers or {}).get("content-md5")
    assert seen.headers.get("content-md5") == hashed


def error(status: int, code: str) -> bytes:
    return answer(status, f"<Error><Code>{code}</Code></Error>".encode())


def ended(
    call: Callable[[SignedCalls], object], *told: bytes, script: Script | None = None, **options: Any
) -> tuple[Any, list[str]]:
    """What a call ends with, or its errno, where the server answers in turn; and the targets that it was asked for."""
    answers = list(told)
    with Scripted(script or (lambda _: answers.pop(0))) as server:
        calls = lane_at(server.endpoint, **options)
        try:
            end: Any = call(calls)
        except StoreError as refusal:
            end = refusal.errno
        calls.close()
        assert answers == []
        return end, [f"{seen.method} {seen.target}" for seen in server.seen]


def test_what_is_stored_without_the_key_that_it_was_sent_with_is_an_error() -> None:
    """Of an empty object there is nothing to encrypt, which not every server says."""
    plain = answer(200, b"", 'ETag: "abc"')
    assert ended(lambda calls: calls.put("key", BODY, Properties(), None), plain)[0].etag == "abc"
    with Scripted(lambda _: plain) as server:
        calls = lane_at(server.endpoint, customer_key=SECRET)
        with fails(errno.EPROTO):
            calls.put("key", BODY, Properties(), None)
        assert calls.put("key", b"", Properties(), None).etag == "abc"
        calls.close()


@pytest.mark.parametrize(
    ("name", "is_patient"), [("copy", True), ("copy of a part", True), ("complete", True), ("put", False)]
)
def test_a_server_that_copies_or_joins_first_has_more_time(name: str, is_patient: bool) -> None:
    """Gigabytes take minutes, without a byte of an answer; libcurl looks once a second."""

    def late(_: Seen) -> bytes:
        time.sleep(2.6)
        return CALLS[name].told

    end, _ = ended(CALLS[name].call, script=late, read_timeout=0.8)
    assert (end == errno.ETIMEDOUT) is not is_patient


def test_a_setting_that_a_server_does_not_know_is_not_set() -> None:
    for code, number in (("NotImplemented", None), ("MethodNotAllowed", None), ("AccessDenied", errno.EACCES)):
        for call, unset in (
            (SignedCalls.retention, False), (SignedCalls.locks_objects, False), (SignedCalls.has_acls, True)
        ):  # fmt: skip
            assert ended(call, error(501, code))[0] == (number or unset)
    assert ended(SignedCalls.retention, error(404, "ObjectLockConfigurationNotFoundError"))[0] is False
    assert ended(SignedCalls.has_acls, error(404, "OwnershipControlsNotFoundError"))[0] is True
    assert ended(SignedCalls.has_acls, error(404, "ObjectLockConfigurationNotFoundError"))[0] == errno.EIO


def test_what_xml_cannot_say_is_removed_by_itself() -> None:
    odd, plain = "a\x01b", "plain"
    done = xml("DeleteResult")
    end, seen = ended(lambda calls: calls.delete_many([plain, odd]), GONE, done)
    assert (end, seen) == ([], ["DELETE /bucket/a%01b", "POST /bucket?delete="])
    end, _ = ended(lambda calls: calls.delete_many([odd]), error(403, "AccessDenied"))
    assert [(one.key, one.error.errno) for one in end] == [(odd, errno.EACCES)]
    one = xml("DeleteResult", f"<Deleted><Key>{plain}</Key></Deleted>")
    assert ended(lambda calls: calls.delete_many([plain, odd]), GONE, one)[0] == [], "it speaks of those in the batch"
    with Scripted(lambda _: GONE) as server:
        calls = lane_at(server.endpoint)
        calls.delete_many([odd], {odd: "e"})
        calls.close()
        assert [seen.headers["if-match"] for seen in server.seen] == ['"e"']


def test_all_versions_of_a_key_go_where_there_are_any() -> None:
    marked = answer(204, b"", ID, "x-amz-delete-marker: true", "x-amz-version-id: m", length=-1)
    kept = xml("ListVersionsResult", "<Version><Key>key</Key><VersionId>v</VersionId></Version>")
    assert ended(lambda calls: calls.purge("key"), GONE) == (False, ["DELETE /bucket/key"])
    end, seen = ended(lambda calls: calls.purge("key"), marked, kept, marked)
    assert (end, seen[2:]) == (True, ["DELETE /bucket/key?versionId=v"])
    for code, number in (("AccessDenied", True), ("NotImplemented", True), ("InternalError", errno.EIO)):
        assert ended(lambda calls: calls.purge("key"), marked, error(400, code))[0] == number
    assert ended(lambda calls: calls.delete("key", version_id="v"), marked)[0] == "", "no marker is left"
    assert ended(lambda calls: calls.delete("key"), marked)[0] == "m"


def test_an_upload_that_may_have_been_begun_twice_is_told_of() -> None:
    begun: list[str] = []

    def create(calls: SignedCalls) -> str:
        return calls.create_multipart("key", Properties(), None, begun.append)

    assert (ended(create, BEGUN)[0], begun) == ("u", [])
    assert (ended(create, error(500, "InternalError"), BEGUN, patience=5.0)[0], begun) == ("u", ["u"])


def test_uploads_with_what_xml_cannot_say_are_listed_encoded() -> None:
    one = "<Upload><Key>d/{}</Key><UploadId>u</UploadId></Upload>"
    odd = xml("ListMultipartUploadsResult", LAST, one.format("a\x01b"))
    encoded = xml("ListMultipartUploadsResult", LAST, one.format("a%01b"))
    (uploads, after), seen = ended(lambda calls: calls.list_uploads("d/", None), odd, encoded)
    assert ([upload.key for upload in uploads], after) == (["d/a\x01b"], None)
    assert seen[1].endswith("encoding-type=url")
    assert ended(lambda calls: calls.list_uploads("e/", None), encoded, encoded)[0] == errno.EIO, "others'"


def test_parts_are_of_the_upload_that_was_asked_for() -> None:
    told = "<UploadId>{}</UploadId><Part><PartNumber>2</PartNumber><ETag>e</ETag><Size>5</Size></Part>"
    ours, others = (xml("ListPartsResult", LAST, told.format(upload)) for upload in ("u", "v"))
    assert ended(lambda calls: calls.list_parts("key", "u", ""), ours)[0] == ([Part(2, "e", 5)], "")
    assert ended(lambda calls: calls.list_parts("key", "u", ""), others)[0] == errno.EIO


def test_all_parts_are_named_where_they_are_joined() -> None:
    with Scripted(lambda _: JOINED) as server:
        calls = lane_at(server.endpoint)
        calls.complete_multipart("key", "u", [Part(2, "f", 5), Part(1, "e", 5)], {})
        calls.close()
    body = server.seen[0].body.decode()
    assert body.index("<PartNumber>1</PartNumber>") < body.index("<PartNumber>2</PartNumber>")


def test_whether_acls_have_an_effect_is_what_the_rules_say() -> None:
    assert ended(SignedCalls.has_acls, OWNED)[0] is False
    free = xml("OwnershipControls", "<Rule><ObjectOwnership>ObjectWriter</ObjectOwnership></Rule>")
    assert ended(SignedCalls.has_acls, free)[0] is True


def test_an_upload_is_begun_twice_also_for_who_does_not_want_to_know() -> None:
    failed = error(500, "InternalError")
    assert ended(lambda calls: calls.create_multipart("key", Properties(), None), failed, BEGUN, patience=5.0)[0] == "u"


def test_what_came_instead_of_an_answer_is_told() -> None:
    with Scripted(lambda _: answer(200, b"<html>Please log in</html>", "Content-Type: text/html")) as server:
        calls = lane_at(server.endpoint)
        with pytest.raises(StoreError, match="text/html 'Please log in'") as caught:
            calls.get_acl("key")
        calls.close()
    assert caught.value.elsewhere, "it is no S3 server's"


@pytest.mark.parametrize("is_clear", [False, True])
@pytest.mark.parametrize("body_hash", BodyHash)
def test_a_part_is_hashed_where_nothing_else_keeps_it_whole(is_clear: bool, body_hash: BodyHash) -> None:
    with Scripted(lambda _: PUT) as server:
        calls = lane_at(server.endpoint)
        calls._http._is_clear = is_clear
        calls.upload_part("key", "u", 1, BODY, body_hash=body_hash)
        calls.close()
    is_hashed = is_clear or body_hash is BodyHash.ALWAYS
    due = sha256(BODY).hexdigest() if is_hashed else "UNSIGNED-PAYLOAD"
    assert server.seen[0].headers["x-amz-content-sha256"] == due
