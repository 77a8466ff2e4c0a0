"""What a store asks for and what it makes of each answer, call by call: each guard by itself.

Over a server that answers by a script, so that what no real one does can be shown too.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from hashlib import md5, sha256
from typing import Any

import pytest
import trio

from sosfs.config.choices import Canned, Verify
from sosfs.errors import StoreError
from sosfs.s3.bucket import S3Store
from sosfs.s3.capabilities import Capabilities, Quoting
from sosfs.s3.customer_key import CustomerKey
from sosfs.s3.endpoint import S3Target
from sosfs.s3.protocol import UNKNOWN, Acl, Check, Grant, Guard, Part, Properties, Right, Version
from tests.s3.test_transport import BODY, OBJECT, target_at
from tests.support.drive import fails
from tests.support.scripted import Scripted, Seen, answer

ETAG, OTHER = md5(BODY).hexdigest(), md5(b"other").hexdigest()
VERSION = Version(ETAG, len(BODY))
ID = "x-amz-request-id: 7"
ABLE = Capabilities(
    True, absent=True, match=Quoting.QUOTED, complete=True, copy_pin=True, part_pin=True, delete_pin=True
)
UNABLE = Capabilities(True)
Told = bytes | None
Work = Callable[[S3Store], Awaitable[Any]]


def error(status: int, code: str) -> bytes:
    return answer(status, f"<Error><Code>{code}</Code></Error>".encode())


def head(etag: str = ETAG, *, size: int = len(BODY), time: str = OBJECT[1]) -> bytes:
    return answer(200, b"", f'ETag: "{etag}"', time, length=size)


def part_of(etag: str = ETAG, *, stop: int = len(BODY), size: int = len(BODY)) -> bytes:
    told = f'ETag: "{etag}"', OBJECT[1], f"Content-Range: bytes 0-{stop - 1}/{size}"
    return answer(206, BODY[:stop], *told)


def stored(etag: str = ETAG) -> bytes:
    return answer(200, b"", f'ETag: "{etag}"')


def made(name: str, etag: str = ETAG) -> bytes:
    return answer(200, f'<{name}><ETag>"{etag}"</ETag></{name}>'.encode())


def listed(*keys: str, token: str = "") -> bytes:
    entries = "".join(f"<Contents><Key>{key}</Key></Contents>" for key in keys)
    more = f"<IsTruncated>true</IsTruncated><NextContinuationToken>{token}</NextContinuationToken>"
    end = more if token else "<IsTruncated>false</IsTruncated>"
    return answer(200, f"<ListBucketResult>{end}{entries}</ListBucketResult>".encode())


GONE, REFUSED, LOST_RACE = error(404, "NoSuchKey"), error(403, "AccessDenied"), error(412, "PreconditionFailed")
REMOVED = answer(204, b"", ID, length=-1)


class Asked:
    """What work on a store ends with, where the server answers in turn, and what it was asked."""

    def __init__(self, work: Work, *told: Told, able: Capabilities = ABLE, options: Any = None, **target: Any) -> None:
        answers = list(told)
        with Scripted(lambda _: answers.pop(0) if answers else None) as server:
            self.store = S3Store(target_at(server.endpoint, **target), **(options or {}))
            self.store.capabilities = able
            self.end: Any = None
            try:
                self.end = trio.run(partial(work, self.store))
            except StoreError as refusal:
                self.end = refusal
            finally:
                self.store.close()
        self.seen: Sequence[Seen] = server.seen
        assert not answers, "it asked for less"

    @property
    def number(self) -> int | None:
        """The errno of an error."""
        return self.end.errno if isinstance(self.end, StoreError) else None

    def told(self, name: str) -> list[str]:
        """What each request said in a header."""
        return [seen.headers.get(name, "") for seen in self.seen]

    @property
    def methods(self) -> list[str]:
        """Of the requests."""
        return [seen.method for seen in self.seen]


# Reading


def test_bytes_are_of_the_version_that_was_asked_for() -> None:
    get = partial(S3Store.get, key="key", start=0, stop=10, etag=ETAG)
    asked = Asked(get, part_of())
    assert (bytes(asked.end.body), asked.told("if-match"), asked.told("range")) == (BODY, [f'"{ETAG}"'], ["bytes=0-9"])
    assert Asked(get, part_of(OTHER)).number == errno.ESTALE, "the server heeds no condition"
    assert Asked(get, error(405, "MethodNotAllowed")).number == errno.EOPNOTSUPP
    assert Asked(get, error(400, "InvalidRequest")).number == errno.EACCES, "it is encrypted with another key"
    assert Asked(get, error(400, "MalformedXML")).number == errno.EINVAL
    assert Asked(get, answer(400, b"<html>Bad Request</html>")).number == errno.EIO, "a gateway knows of no key"


def test_behind_the_end_of_an_object_is_nothing_and_before_it_is_something() -> None:
    get = partial(S3Store.get, key="key", start=10, stop=20)
    assert len(Asked(get, error(416, "InvalidRange"), head()).end.body) == 0
    assert Asked(get, error(416, "InvalidRange"), head(size=15)).number == errno.EIO, "bytes are due"
    assert Asked(get, error(416, "InvalidRange"), answer(404, b"", ID)).number == errno.ENOENT


def test_only_a_404_that_is_no_servers_is_confirmed() -> None:
    look = partial(S3Store.head, key="key")
    assert Asked(look, answer(404), GONE).number == errno.ENOENT
    assert Asked(look, answer(404), part_of(stop=1)).number == errno.EIO
    assert Asked(look, answer(404), error(416, "InvalidRange")).number == errno.EIO, "it is there, and empty"
    assert Asked(look, answer(404, b"", ID)).number == errno.ENOENT
    assert Asked(look, answer(403)).number == errno.EACCES


def named(told: bytes) -> bytes:
    """An answer with a request id."""
    return told.replace(b"\r\n", f"\r\n{ID}\r\n".encode(), 1)


def test_where_a_server_names_its_answers_a_page_of_a_web_server_is_no_object() -> None:
    """It has an ETag, a time and a length, and even ranges."""

    async def look(store: S3Store) -> list[int | None]:
        ends: list[int | None] = []
        get = partial(store.get, start=0, stop=10)
        for call in (store.head, store.head, get, get):
            try:
                await call("key")
            except StoreError as error:
                ends.append(error.errno)
            else:
                ends.append(None)
        return ends

    pages = head(OTHER), part_of(OTHER)
    assert Asked(look, named(head()), pages[0], named(part_of()), pages[1]).end == [None, errno.EIO, None, errno.EIO]
    assert Asked(look, head(), pages[0], part_of(), pages[1]).end == [None] * 4


def test_a_server_may_name_its_listings_and_not_its_objects() -> None:
    """The gateway of older SeaweedFS hands on what its filer says of an object, and that names nothing."""

    async def work(store: S3Store) -> bytes:
        await store.list("")
        await store.put("key", BODY, Properties())
        await store.head("key")
        read = await store.get("key", 0, len(BODY))
        await store.delete("key")
        return bytes(read.body)

    unnamed = head(), part_of(), answer(204, b"", length=-1)
    assert Asked(work, named(listed("key")), named(stored()), *unnamed).end == BODY


def test_a_page_that_asks_for_itself_again_is_an_error() -> None:
    def page(store: S3Store) -> Awaitable[Any]:
        return store.list("", token="t")

    assert Asked(page, listed("a", token="t")).number == errno.EIO
    assert Asked(page, listed("a", token="u")).end.token == "u"


# Storing


def test_what_is_stored_without_an_acl_gets_that_of_the_mount() -> None:
    public = {"new_acl": Canned.PUBLIC_READ}
    calls: list[tuple[Work, bytes]] = [
        (lambda store: store.put("key", BODY, Properties()), stored()),
        (lambda store: store.copy("key", "other", version=VERSION), made("CopyObjectResult")),
        (
            lambda store: store.create_multipart("key", Properties()),
            answer(200, b"<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>"),
        ),
    ]
    for work, told in calls:
        assert Asked(work, told, options=public).told("x-amz-acl") == ["public-read"]
        assert Asked(work, told).told("x-amz-acl") == [""]


def _put(condition: Any, key: str = "key") -> Work:
    return lambda store: store.put(key, BODY, Properties(metadata={"mtime": "1.5"}), condition=condition)


OURS = answer(200, b"", f'ETag: "{ETAG}"', OBJECT[1], "x-amz-meta-mtime: 1.5", length=len(BODY))


@pytest.mark.parametrize("refusal", [LOST_RACE, GONE], ids=["refused", "gone"])
def test_only_a_try_after_a_lost_answer_may_have_been_refused_for_our_own(refusal: bytes) -> None:
    before = Version(OTHER, 5)
    asked = Asked(_put(before), None, refusal, OURS, patience=5.0)
    assert (asked.end, asked.methods) == (VERSION, ["PUT", "PUT", "HEAD"])
    assert Asked(_put(before), refusal, OURS).number == errno.ESTALE


def test_a_condition_that_is_refused_though_it_holds_is_not_used_again() -> None:
    before = Version(OTHER, 5)
    asked = Asked(_put(before), LOST_RACE, head(OTHER, size=5), stored())
    assert (asked.end, asked.told("if-match")) == (VERSION, [f'"{OTHER}"', "", ""])
    assert asked.store.capabilities.match is None
    for condition in (Guard.NONE, VERSION):
        assert Asked(_put(condition), stored()).store.capabilities.match is Quoting.QUOTED


def test_a_refusal_of_another_kind_is_told_whatever_an_earlier_try_has_done() -> None:
    asked = Asked(_put(Guard.ABSENT), None, REFUSED, patience=5.0)
    assert (asked.number, asked.methods) == (errno.EACCES, ["PUT", "PUT"])


def test_our_own_write_is_known_by_the_hash_that_is_known() -> None:
    put = partial(S3Store.put, key="key", body=BODY, properties=Properties(), condition=Guard.ABSENT, digest=OTHER)
    assert Asked(put, None, LOST_RACE, head(OTHER), patience=5.0).end.same_bytes(Version(OTHER, 10))


def test_that_of_a_marker_is_for_files_all_the_same() -> None:
    """A server whose keys are a tree may know no version of a directory."""
    before = Version(OTHER, 5)
    asked = Asked(_put(before, "key/"), LOST_RACE, head(OTHER, size=5), stored())
    assert (asked.end, asked.told("if-match")) == (VERSION, [f'"{OTHER}"', "", ""])
    assert asked.store.capabilities.match is Quoting.QUOTED


def test_what_nobody_knows_the_version_of_is_not_copied() -> None:
    copy = partial(S3Store.copy, source="key", target="other", version=UNKNOWN)
    asked = Asked(copy)
    assert (asked.number, asked.seen) == (errno.EIO, [])


def test_a_copy_is_of_the_version_that_is_meant() -> None:
    """By the server, else by the hash of the copy, else by a look before."""
    copy = partial(S3Store.copy, source="key", target="other", version=VERSION)
    pinned = Asked(copy, made("CopyObjectResult", OTHER))
    assert (pinned.end, pinned.told("x-amz-copy-source-if-match")) == (Version(OTHER, 10), [f'"{ETAG}"'])
    assert Asked(copy, made("CopyObjectResult"), able=UNABLE).end == VERSION
    assert Asked(copy, made("CopyObjectResult", OTHER), able=UNABLE).number == errno.ESTALE
    joined = partial(S3Store.copy, source="key", target="other", version=Version(f"{ETAG}-2", 10))
    assert Asked(joined, head(f"{ETAG}-2"), made("CopyObjectResult", OTHER), able=UNABLE).end == Version(OTHER, 10)
    assert Asked(joined, head(OTHER), able=UNABLE).number == errno.ESTALE
    unhashed = Capabilities(True, hashes=False)
    assert Asked(copy, head(), made("CopyObjectResult", OTHER), able=unhashed).end == Version(OTHER, 10)
    assert Asked(joined, made("CopyObjectResult", OTHER)).end == Version(OTHER, 10), "the server looks"


def test_a_copy_of_whatever_is_there_is_looked_at() -> None:
    asked = Asked(
        partial(S3Store.copy, source="key", target="other", storage_class="COLD"), made("CopyObjectResult"), head()
    )
    assert (asked.end.etag, asked.methods) == (ETAG, ["PUT", "HEAD"])
    assert (asked.told("x-amz-storage-class")[0], asked.seen[1].target) == ("COLD", "/bucket/other")


def test_a_copy_has_the_hash_that_a_server_wants() -> None:
    wants = answer(400, b"<Error><Code>InvalidRequest</Code><Message>Content-MD5 is required</Message></Error>")
    asked = Asked(partial(S3Store.copy, source="key", target="other", version=VERSION), wants, made("CopyObjectResult"))
    assert asked.told("content-md5") == ["", "1B2M2Y8AsgTpgAmY7PhCfg=="]


def test_a_server_that_cannot_copy_what_is_encrypted_is_asked_once() -> None:
    async def twice(store: S3Store) -> None:
        for _ in range(2):
            with fails(errno.EOPNOTSUPP):
                await store.copy("key", "other", version=VERSION)

    told = error(501, "NotImplemented")
    assert len(Asked(twice, told, customer_key=CustomerKey(bytes(32))).seen) == 1
    unsupported = error(405, "MethodNotAllowed")
    assert len(Asked(twice, unsupported, unsupported, customer_key=CustomerKey(bytes(32))).seen) == 2
    assert len(Asked(twice, told, told).seen) == 2


def test_a_part_is_of_the_version_that_is_meant() -> None:
    def copied(store: S3Store, *, check: Check = Check.AT_ONCE) -> Awaitable[Any]:
        return store.copy_part("other", "u", 1, "key", VERSION, 0, 10, check=check)

    told, no_range = made("CopyPartResult", OTHER), error(416, "InvalidRange")
    asked = Asked(copied, told)
    assert (asked.end, asked.told("x-amz-copy-source-range")) == (Part(1, OTHER, 10), ["bytes=0-9"])
    assert asked.told("x-amz-copy-source-if-match") == [f'"{ETAG}"']
    assert Asked(copied, told, head(), able=UNABLE).end == Part(1, OTHER, 10)
    assert Asked(copied, told, head(OTHER), able=UNABLE).number == errno.ESTALE
    assert Asked(partial(copied, check=Check.BY_HASH), told, able=UNABLE).end == Part(1, OTHER, 10)
    assert Asked(copied, no_range, head(OTHER)).number == errno.ESTALE, "it was cut off"
    assert Asked(copied, no_range, head()).number == errno.EIO, "nobody has cut it off"


@pytest.mark.parametrize(
    ("able", "verify", "tries", "arrives"),
    [
        (UNABLE, Verify.ALL, 2, False),
        (UNABLE, Verify.NONE, 1, True),
        (replace(UNABLE, compares=True), Verify.ALL, 1, True),  # the server has compared them
        (replace(UNABLE, hashes=False), Verify.ALL, 1, True),
    ],
)
def test_a_part_is_compared_with_what_was_sent(able: Capabilities, verify: Verify, tries: int, arrives: bool) -> None:
    def send(store: S3Store) -> Awaitable[Any]:
        return store.upload_part("key", "u", 1, BODY)

    asked = Asked(send, *[stored(OTHER)] * tries, able=able, options={"verify": verify})
    assert asked.end == Part(1, OTHER, 10) if arrives else asked.number == errno.EIO


def test_what_may_be_a_marker_of_deletion_is_looked_at() -> None:
    async def put(store: S3Store, markers: bool | None, *, after_batch: bool = False) -> Version:
        store._markers = markers
        if after_batch:
            await store.delete_many(["a"])  # versions may be kept by now
        return await store.put("key", BODY, Properties(), condition=Guard.ABSENT)

    absent = answer(404, b"", ID)
    sure = Asked(partial(put, markers=False), LOST_RACE)
    assert (sure.number, sure.methods) == (errno.ESTALE, ["PUT"])
    for markers in (None, True):
        assert Asked(partial(put, markers=markers), LOST_RACE, absent, stored()).end == VERSION
    batch = Asked(partial(put, markers=False, after_batch=True), outcome(), LOST_RACE, absent, stored())
    assert batch.end == VERSION


def test_what_is_known_of_a_server_without_asking_it() -> None:
    def store(endpoint: str = "http://127.0.0.1:1", able: Capabilities = UNABLE, **target: Any) -> S3Store:
        made = S3Store(target_at(endpoint, **target))
        made.capabilities = able
        return made

    key = CustomerKey(bytes(32))
    assert store(able=Capabilities()).hashes
    assert not store(able=Capabilities(), customer_key=key).hashes, "it may make others where it encrypts"
    assert store(customer_key=key).hashes
    assert store().leaves_no_trace
    assert not store(able=Capabilities()).leaves_no_trace
    assert not store(able=Capabilities(True, denied=frozenset({Right.DELETE}))).leaves_no_trace
    assert trio.run(store("https://sos-ch-gva-2.exo.io").has_acls), "which says of fresh buckets that they have none"


@pytest.mark.parametrize(
    ("compares", "verify", "is_quick", "is_clear", "is_hashed", "is_compared"),
    [
        (True, Verify.ALL, True, False, True, False),
        (True, Verify.ALL, False, False, False, True),  # half as quick as MD5
        (True, Verify.ALL, False, True, True, False),  # it is hashed anyway
        (True, Verify.NONE, True, False, False, False),
        (False, Verify.ALL, True, False, False, True),
    ],
)
def test_who_compares_a_part_with_what_was_sent(
    compares: bool, verify: Verify, is_quick: bool, is_clear: bool, is_hashed: bool, is_compared: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The server by the hash that is signed, or we by the ETag: one of them, and the one that costs less."""
    monkeypatch.setattr("sosfs.s3.bucket.has_sha_instructions", lambda: is_quick)
    monkeypatch.setattr(S3Target, "is_clear", property(lambda _: is_clear))
    able = Capabilities(True, compares=compares)
    tries = [stored(OTHER)] * (2 if is_compared else 1)
    send = partial(S3Store.upload_part, key="key", upload_id="u", number=1, body=BODY)
    asked = Asked(send, *tries, able=able, options={"verify": verify})
    assert (asked.number == errno.EIO) is is_compared
    assert asked.told("x-amz-content-sha256")[0] == (sha256(BODY).hexdigest() if is_hashed else "UNSIGNED-PAYLOAD")


# What is checked before anything is sent, and who sends it


KEYED: dict[str, Callable[[S3Store, str], Awaitable[Any]]] = {
    "head": lambda store, key: store.head(key),
    "get": lambda store, key: store.get(key, 0, 1),
    "put": lambda store, key: store.put(key, b"", Properties()),
    "copy from": lambda store, key: store.copy(key, "other", version=VERSION),
    "copy to": lambda store, key: store.copy("other", key, version=VERSION),
    "delete": lambda store, key: store.delete(key),
    "purge": lambda store, key: store.purge(key),
    "delete many": lambda store, key: store.delete_many(["other", key]),
    "create": lambda store, key: store.create_multipart(key, Properties()),
    "get acl": lambda store, key: store.get_acl(key),
    "put acl": lambda store, key: store.put_acl(key, Canned.PRIVATE),
}


@pytest.mark.parametrize("call", KEYED)
def test_what_no_server_takes_as_a_key_is_not_sent(call: str) -> None:
    """An empty one would be the bucket: its ACL, its removal."""
    for key, number in (("", errno.EINVAL), ("x" * 1025, errno.ENAMETOOLONG), ("\udc80", errno.EINVAL)):
        asked = Asked(partial(lambda store, key: KEYED[call](store, key), key=key))
        assert (asked.number, asked.seen) == (number, [])


def test_properties_that_no_header_carries_are_not_sent_nor_is_anything_asked_for_them() -> None:
    bad, joined = Properties(metadata={"Upper": ""}), Version(f"{ETAG}-2", 10)
    put = Asked(lambda store: store.put("key", BODY, bad, condition=VERSION), able=UNABLE)
    copy = Asked(lambda store: store.copy("key", "other", version=joined, properties=bad), able=UNABLE)
    create = Asked(lambda store: store.create_multipart("key", bad))
    for asked in (put, copy, create):
        assert (asked.number, asked.seen) == (errno.EINVAL, [])


def test_an_acl_that_is_given_is_that_of_what_is_stored() -> None:
    acl, public = Acl("me", (Grant("friend", "READ"),)), {"new_acl": Canned.PUBLIC_READ}
    begun = answer(200, b"<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>")
    calls: list[tuple[Work, bytes]] = [
        (lambda store: store.put("key", BODY, Properties(), acl=acl), stored()),
        (lambda store: store.copy("key", "other", version=VERSION, acl=acl), made("CopyObjectResult")),
        (lambda store: store.create_multipart("key", Properties(), acl=acl), begun),
    ]
    for work, told in calls:
        asked = Asked(work, told, options=public)
        assert (asked.told("x-amz-acl"), asked.told("x-amz-grant-read")) == ([""], ['id="friend"'])


def test_an_acl_is_read_and_replaced() -> None:
    told = answer(200, b"<AccessControlPolicy><Owner><ID>me</ID></Owner></AccessControlPolicy>")
    assert Asked(lambda store: store.get_acl("key"), told).end == Acl("me", ())
    put = Asked(lambda store: store.put_acl("key", Acl("me", (Grant("friend", "READ"),))), answer(200, b"", ID))
    assert (put.methods, b"<ID>friend</ID>" in put.seen[0].body) == (["PUT"], True)
    assert put.seen[0].target == "/bucket/key?acl="


def test_each_request_is_told_by_its_name_and_large_ones_keep_no_small_one_waiting() -> None:
    names, sizes = list[str](), list[int]()

    async def work(store: S3Store) -> None:
        send = store._send

        async def noted(operation: str, work: Any, *, size: int = 0, **options: Any) -> Any:
            sizes.append(size)
            return await send(operation, work, size=size, **options)

        store._send = noted
        await store.get("key", 0, 10)
        await store.put("key", BODY, Properties())
        await store.copy("key", "other", version=VERSION)
        await store.copy_part("other", "u", 1, "key", VERSION, 2, 9)
        await store.upload_part("key", "u", 1, BODY)

    told = [part_of(), stored(), made("CopyObjectResult"), made("CopyPartResult"), stored()]
    Asked(work, *told, options={"on_request": names.append})
    assert names == ["GetObject", "PutObject", "CopyObject", "UploadPartCopy", "UploadPart"]
    assert sizes == [10, 10, 10, 7, 10]


def test_nothing_is_read_of_an_empty_range() -> None:
    asked = Asked(partial(S3Store.get, key="key", start=3, stop=3), head())
    assert (len(asked.end.body), asked.methods) == (0, ["HEAD"])


def test_what_may_be_listed_can_be_reached() -> None:
    asked = Asked(partial(S3Store.reach, prefix="d/"), listed())
    assert (asked.end, asked.methods, "prefix=d%2F" in asked.seen[0].target) == (None, ["GET"], True)
    assert Asked(partial(S3Store.reach, prefix="d/"), REFUSED).number == errno.EACCES


@pytest.mark.parametrize(("rule", "has_acls"), [("BucketOwnerEnforced", False), ("ObjectWriter", True)])
def test_the_rules_of_a_bucket_say_whether_it_has_acls(rule: str, has_acls: bool) -> None:
    rules = f"<OwnershipControls><Rule><ObjectOwnership>{rule}</ObjectOwnership></Rule></OwnershipControls>"
    assert Asked(S3Store.has_acls, answer(200, rules.encode())).end is has_acls


def test_lists_of_parts_and_of_uploads_go_on_until_their_end() -> None:
    part = "<Part><PartNumber>{}</PartNumber><ETag>e</ETag><Size>5</Size></Part>"
    head = "<ListPartsResult><UploadId>u</UploadId>"
    first = f"{head}<IsTruncated>true</IsTruncated><NextPartNumberMarker>1</NextPartNumberMarker>{part.format(1)}"
    last = f"{head}<IsTruncated>false</IsTruncated>{part.format(2)}"
    pages = [answer(200, f"{page}</ListPartsResult>".encode()) for page in (first, last)]
    parts = Asked(lambda store: store.list_parts("key", "u"), *pages)
    assert parts.end == [Part(1, "e", 5), Part(2, "e", 5)]
    assert ["part-number-marker=1" in seen.target for seen in parts.seen] == [False, True]
    assert "part-number-marker" not in parts.seen[0].target

    one = "<Upload><Key>d/{0}</Key><UploadId>{0}</UploadId><Initiated>2020-01-01T00:00:00Z</Initiated></Upload>"
    more = "<NextKeyMarker>d/a</NextKeyMarker><NextUploadIdMarker>a</NextUploadIdMarker>"
    first = f"<ListMultipartUploadsResult><IsTruncated>true</IsTruncated>{more}{one.format('a')}"
    last = f"<ListMultipartUploadsResult><IsTruncated>false</IsTruncated>{one.format('b')}"
    pages = [answer(200, f"{page}</ListMultipartUploadsResult>".encode()) for page in (first, last)]
    uploads = Asked(lambda store: store.list_uploads("d/"), *pages)
    assert [upload.upload_id for upload in uploads.end] == ["a", "b"]
    assert "key-marker=d%2Fa" in uploads.seen[1].target


def test_all_that_a_key_leaves_is_removed() -> None:
    purge = partial(S3Store.purge, key="key")
    for told, number in ((REMOVED, None), (GONE, None), (REFUSED, errno.EACCES), (answer(404), errno.EIO)):
        asked = Asked(purge, told)
        assert (asked.number, asked.methods) == (number, ["DELETE"])


# Joining


PARTS = [Part(1, md5(BODY).hexdigest(), 10)]
JOINED = f"{md5(bytes.fromhex(PARTS[0].etag)).hexdigest()}-1"
DONE = made("CompleteMultipartUploadResult", JOINED)


def _join(condition: Any = Guard.NONE) -> Work:
    return lambda store: store.complete_multipart("key", "u", PARTS, condition=condition)


@pytest.mark.parametrize(
    "unclear",
    [error(404, "NoSuchUpload"), error(404, "NoSuchKey"), error(500, "InternalError"), answer(200, b"<html/>")],
    ids=["no upload", "no key", "failed", "a page"],
)
def test_an_upload_that_was_joined_before_is_the_object(unclear: bytes) -> None:
    assert Asked(_join(), unclear, head(JOINED)).end == Version(JOINED, 10)
    assert Asked(_join(), unclear, head(OTHER)).number in (errno.EIO, errno.ENXIO)
    refused = Asked(_join(), REFUSED)
    assert (refused.number, len(refused.seen)) == (errno.EACCES, 1)


def test_a_condition_holds_for_what_is_joined() -> None:
    asked = Asked(_join(Guard.ABSENT), DONE)
    assert (asked.end, asked.told("if-none-match")) == (Version(JOINED, 10), ["*"])
    assert Asked(_join(Version(OTHER, 5)), DONE).told("if-match") == [f'"{OTHER}"']
    looked = Asked(_join(Version(OTHER, 5)), head(OTHER, size=5), DONE, able=UNABLE)
    assert (looked.methods, looked.told("if-match")) == (["HEAD", "POST"], ["", ""])
    assert Asked(_join(Version(OTHER, 5)), head(), able=UNABLE).number == errno.ESTALE
    new = Asked(_join(Guard.ABSENT), answer(404, b"", ID), DONE, able=UNABLE)
    assert (new.methods, new.told("if-none-match")) == (["HEAD", "POST"], ["", ""])
    assert Asked(_join(Guard.ABSENT), None, LOST_RACE, head(JOINED), patience=5.0).end == Version(JOINED, 10)
    assert Asked(_join(Version(OTHER, 5)), LOST_RACE, head(JOINED)).number == errno.ESTALE


def test_an_etag_that_is_not_told_is_made_or_looked_at() -> None:
    told = made("CompleteMultipartUploadResult", "")
    assert Asked(_join(), told).end == Version(JOINED, 10)
    assert Asked(_join(), made("CompleteMultipartUploadResult", OTHER)).end == Version(OTHER, 10)
    assert Asked(_join(), told, head(OTHER), able=Capabilities(True, hashes=False)).end == Version(OTHER, 10)


def test_only_an_upload_that_is_gone_needs_no_end() -> None:
    def abort(store: S3Store) -> Awaitable[Any]:
        return store.abort_multipart("key", "u")

    for told in (REMOVED, error(404, "NoSuchUpload"), GONE):
        assert Asked(abort, told).end is None
    assert Asked(abort, error(404, "NoSuchBucket")).number == errno.EIO
    assert Asked(abort, REFUSED).number == errno.EACCES


@pytest.mark.parametrize(
    "call",
    [
        lambda store: store.list_parts("key", "u"),
        lambda store: store.upload_part("key", "u", 1, BODY),
        lambda store: store.abort_multipart("key", "u"),
    ],
    ids=["list", "send", "end"],
)
def test_a_missing_bucket_says_nothing_of_an_upload(call: Work) -> None:
    """Its parts may be all that there is of a file, and count as lost once the upload is known to have ended."""
    assert Asked(call, error(404, "NoSuchBucket")).number == errno.EIO
    assert Asked(call, error(404, "NoSuchUpload")).number in (errno.ENXIO, None)


# Removing


def test_only_a_marker_of_deletion_shows_that_versions_are_kept() -> None:
    def left(told: str) -> bytes:
        return answer(204, b"", ID, f"x-amz-delete-marker: {told}", "x-amz-version-id: 7", length=-1)

    delete = partial(S3Store.delete, key="key")
    for told, keeps in (("true", True), ("True", True), ("false", False)):
        assert Asked(delete, left(told)).store.keeps_versions is keeps


def test_only_the_version_that_is_meant_is_removed() -> None:
    delete = partial(S3Store.delete, key="key", version=VERSION)
    pinned = Asked(delete, REMOVED)
    assert (pinned.end, pinned.told("if-match")) == (None, [f'"{ETAG}"'])
    assert Asked(delete, REMOVED, able=UNABLE).told("if-match") == [""]
    assert Asked(partial(S3Store.delete, key="key", version=UNKNOWN), REMOVED).told("if-match") == [""]
    assert Asked(delete, LOST_RACE, head(OTHER)).number == errno.ESTALE
    assert Asked(delete, LOST_RACE, answer(404, b"", ID)).end is None, "it is gone"
    same = Asked(delete, LOST_RACE, head(), REMOVED)
    assert (same.end, same.told("if-match")) == (None, [f'"{ETAG}"', "", ""]), "the server compares another ETag"
    refused = Asked(delete, REFUSED)
    assert (refused.number, refused.methods) == (errno.EACCES, ["DELETE"])
    unpinned = Asked(delete, LOST_RACE, able=UNABLE)
    assert (unpinned.number, unpinned.methods) == (errno.ESTALE, ["DELETE"])
    busy = Asked(delete, error(409, "ConditionalRequestConflict"), head())
    assert (busy.number, busy.methods) == (errno.EIO, ["DELETE", "HEAD"]), "another writes it now"


def test_what_is_not_there_is_removed_and_no_other_error_is() -> None:
    delete = partial(S3Store.delete, key="key")
    assert Asked(delete, GONE).end is None
    for told, number in ((REFUSED, errno.EACCES), (error(500, "InternalError"), errno.EIO), (answer(404), errno.EIO)):
        assert Asked(delete, told).number == number


def test_who_may_not_see_which_version_is_there_does_not_remove_it() -> None:
    delete = partial(S3Store.delete, key="key", version=VERSION)
    asked = Asked(delete, LOST_RACE, answer(403, b"", ID), listed("key"))
    assert (asked.number, asked.methods) == (errno.ESTALE, ["DELETE", "HEAD", "GET"])


def _removed(*keys: str, versions: Any = None) -> Work:
    return lambda store: store.delete_many(keys, versions=versions or {})


def outcome(**told: str) -> bytes:
    kept = "".join(f"<Error><Key>{key}</Key><Code>{code}</Code></Error>" for key, code in told.items())
    return answer(200, f"<DeleteResult>{kept}</DeleteResult>".encode())


def test_a_batch_that_is_refused_is_removed_one_by_one_and_one_that_failed_is_told_of_each() -> None:
    one_by_one = Asked(_removed("a", "b"), REFUSED, REMOVED, REFUSED)
    assert [failure.error.errno for failure in one_by_one.end] == [errno.EACCES]
    unclear = Asked(_removed("a", "b"), outcome(x="AccessDenied"), REMOVED, REMOVED)
    assert (unclear.end, unclear.methods) == ([], ["POST", "DELETE", "DELETE"])
    failed = Asked(_removed("a", "b"), error(500, "InternalError"))
    assert [(failure.key, failure.error.errno) for failure in failed.end] == [("a", errno.EIO), ("b", errno.EIO)]
    some = Asked(_removed("a", "b"), outcome(b="InternalError"))
    assert [(failure.key, failure.error.errno) for failure in some.end] == [("b", errno.EIO)]
    unpinned = Asked(_removed("a"), outcome(a="PreconditionFailed"))
    assert ([failure.error.errno for failure in unpinned.end], unpinned.methods) == ([errno.ESTALE], ["POST"])
    odd = Asked(_removed("a\x01"), REFUSED)
    assert ([failure.key for failure in odd.end], odd.methods) == (["a\x01"], ["DELETE"]), "XML cannot say it"


def test_in_a_batch_only_the_version_that_is_meant_is_removed() -> None:
    able = Capabilities(True, delete_pin=True, batch_pin=True)
    versions = {"b": VERSION, "c": UNKNOWN}
    batch = Asked(_removed("a", "b", "c", versions=versions), outcome(), able=able)
    assert batch.seen[0].body.count(b"<ETag>") == 1
    assert f'"{ETAG}"'.encode() in batch.seen[0].body
    kept = Asked(
        _removed("a", "b", versions=versions), outcome(b="PreconditionFailed"), LOST_RACE, head(OTHER), able=able
    )
    assert [(failure.key, failure.error.errno) for failure in kept.end] == [("b", errno.ESTALE)]
    assert kept.told("if-match") == ["", f'"{ETAG}"', ""]
    failed = Asked(_removed("b", versions=versions), outcome(b="AccessDenied"), able=able)
    assert ([failure.error.errno for failure in failed.end], len(failed.seen)) == ([errno.EACCES], 1)
    apart = Asked(_removed("a", "b", versions=versions), outcome(), REMOVED)
    assert (apart.methods, apart.told("if-match")) == (["POST", "DELETE"], ["", f'"{ETAG}"'])
    assert b"<Key>b</Key>" not in apart.seen[0].body
    whole = Asked(_removed("a", "b", versions=versions), outcome(), able=UNABLE)
    assert (whole.methods, b"<ETag>" in whole.seen[0].body) == (["POST"], False)


# Versions and locks


ENABLED = answer(200, b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>")
LOCKS = answer(
    200, b"<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled></ObjectLockConfiguration>"
)
NO_LOCKS = error(404, "ObjectLockConfigurationNotFoundError")


@pytest.mark.parametrize(
    ("told", "keeps", "locks"),
    [
        ((ENABLED, LOCKS), True, True),
        ((ENABLED, NO_LOCKS), True, False),
        ((ENABLED, error(501, "NotImplemented")), True, False),
        ((ENABLED, REFUSED), True, True),  # then each object is asked
        ((ENABLED, error(500, "InternalError")), True, True),
        ((REFUSED, LOCKS), False, True),
        ((REFUSED, REFUSED), False, False),
        ((answer(200, b"<VersioningConfiguration/>"),), False, False),  # nothing more is asked
        ((error(500, "InternalError"),), False, False),
    ],
)
def test_whether_objects_are_locked_is_asked_where_they_can_be(told: Sequence[bytes], keeps: bool, locks: bool) -> None:
    async def look(store: S3Store) -> None:
        await store.look_for_versions()
        await store.look_for_locks()

    asked = Asked(look, *told)
    assert (asked.store.keeps_versions, asked.store.locks, len(asked.seen)) == (keeps, locks, len(told))


def test_an_object_that_is_locked_tells_that_objects_can_be() -> None:
    held = answer(200, b"", *OBJECT, "x-amz-object-lock-legal-hold: ON", length=10)
    calls: list[Work] = [lambda store: store.head("key"), lambda store: store.heads(["key"])]
    for work in calls:
        assert Asked(work, held).store.locks
        assert not Asked(work, head()).store.locks

    async def later(store: S3Store) -> None:
        for _ in range(2):
            await store.head("key")
        await store.look_for_versions()
        await store.look_for_locks()

    assert Asked(later, held, head(), REFUSED, error(500, "InternalError")).store.locks, "it stays known"
