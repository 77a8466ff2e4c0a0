"""What every object store promises (`sosfs.s3.protocol`), on the fake, on moto and on Ceph: one suite, one wording.

The same bodies run over ordinary keys and over those that need care on the way.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from hashlib import md5
from pathlib import Path

import pytest
import trio
from trio.testing import trio_test

from sosfs.config.choices import (
    PART_MIN,
    Canned,
)
from sosfs.errors import StoreError, from_s3
from sosfs.s3.bucket import S3Store
from sosfs.s3.calls import SignedCalls
from sosfs.s3.capabilities import Capabilities
from sosfs.s3.file_body import FileBody
from sosfs.s3.protocol import (
    KEY_MAX,
    METADATA_MAX,
    Acl,
    Check,
    Conditions,
    Detail,
    Failure,
    Grant,
    Guard,
    Headers,
    ObjectStore,
    Page,
    Properties,
    Version,
)
from tests.support.subjects import Subject, store, subject

__all__ = ["store", "subject"]  # fixtures

EVERYONE = "http://acs.amazonaws.com/groups/global/AllUsers"
ORDINARY = (
    "plain",
    "dir/sub/file.txt",
    "with blank",
    " ",
    "é NFC",
    "e\u0301 NFD",
    "日本/\U0001f600",
    "%41%2F",
    "a+b",
    "a?b=c&d",
    "a#b;c",
    "~!*'()$,@:=",
    '<"[]{}|\\^`>',
    "...",
    "x" * KEY_MAX,
    "é" * (KEY_MAX // 2),
    "\u0085\u2028\ufeff",
)
ODD = (
    "a//b",
    "//",
    "/lead",
    "trail/",
    "/",
    ".",
    "..",
    "./x",
    "a/./b",
    "../../x",
    "a/..",
    "tab\tkey",
    "new\nline",
    "re\rturn",
    "\x01 \x1f\x7f",
)
ALL_HEADERS = Headers(
    content_type="text/plain; charset=utf-8",
    cache_control="max-age=60, private",
    content_disposition='attachment; filename="a b.txt"',
    content_encoding="gzip",
    content_language="de, en",
    expires="Thu, 01 Dec 2044 16:00:00 GMT",
)


@contextmanager
def refused(number: int) -> Iterator[None]:
    """The block must raise a StoreError with this errno."""
    with pytest.raises(StoreError) as caught:
        yield
    assert caught.value.errno == number, f"{errno.errorcode.get(caught.value.errno or 0)}: {caught.value}"


def etag_of(body: bytes) -> str:
    return md5(body).hexdigest()


async def pages(
    store: ObjectStore, prefix: str = "", *, delimiter: str = "", after: str = "", limit: int = 1000
) -> list[Page]:
    """All pages of a listing, by their tokens."""
    found = [await store.list(prefix, delimiter=delimiter, after=after, limit=limit)]
    while found[-1].token:
        found.append(await store.list(prefix, delimiter=delimiter, token=found[-1].token, limit=limit))
    return found


async def keys(store: ObjectStore, prefix: str = "") -> list[str]:
    """All keys under a prefix."""
    return [listed.key for page in await pages(store, prefix) for listed in page.objects]


def odd_key(request: pytest.FixtureRequest, subject: Subject, key: str) -> None:
    if "\n" in key:
        subject.defect(request, "newline in a key")


@pytest.mark.parametrize("key", ORDINARY + ODD, ids=ascii)
@trio_test
async def test_a_key_lives(request: pytest.FixtureRequest, subject: Subject, store: ObjectStore, key: str) -> None:
    odd_key(request, subject, key)
    body, properties = b"0123456789", Properties(Headers(content_type="text/x-odd"), {"mode": "33188"})
    version = await store.put(key, body, properties)
    assert version.etag == etag_of(body)
    assert version.size == len(body)
    head = await store.head(key)
    assert head.key == key
    assert head.version.same_as(version)
    assert head.version.modified is not None
    assert abs(head.version.modified - time.time()) < 60
    assert head.properties == properties
    part = await store.get(key, 2, 5, etag=version.etag)
    assert (part.body.tobytes(), part.object.version) == (b"234", head.version)
    listed = [listed for page in await pages(store) for listed in page.objects]
    assert [(each.key, each.version) for each in listed] == [(key, head.version)]
    assert [each.key for each in (await store.list(key, delimiter="")).objects] == [key]
    with refused(errno.ESTALE):
        await store.put(key, b"", properties, condition=Guard.ABSENT)
    assert (await store.get_acl(key)).is_private
    other = "copied"
    assert await store.copy(key, other, version=head.version) == version
    assert await store.delete_many([key]) == []
    with refused(errno.ENOENT):
        await store.head(key)
    assert (await store.copy(other, key)).etag == version.etag
    assert (await store.get(key, 0, 99)).body.tobytes() == body
    await store.delete(key)
    assert await keys(store) == [other]


@pytest.mark.parametrize("key", ["plain", "a//b", "../x", "trail/", "tab\t"], ids=ascii)
@trio_test
async def test_ranges(store: ObjectStore, key: str) -> None:
    body = bytes(range(256)) * 4
    version = await store.put(key, body, Properties())
    for start, stop in [
        (0, 1),
        (0, 1024),
        (1, 1023),
        (1023, 1024),
        (1000, 5000),
        (0, 1 << 40),
        (1024, 1025),
        (9999, 10000),
        (5, 5),
    ]:
        for etag in ("", version.etag):
            part = await store.get(key, start, stop, etag=etag)
            assert part.body.tobytes() == body[start:stop], (start, stop)
            assert part.body.readonly
            assert part.object.version.same_as(version)
    empty = await store.put(key, b"", Properties())
    for etag in ("", empty.etag):
        assert (await store.get(key, 0, 10, etag=etag)).body.tobytes() == b""
    with refused(errno.ESTALE):
        await store.get(key, 0, 1, etag=version.etag)
    with refused(errno.ESTALE):
        await store.get(key, 4000, 4001, etag=version.etag)
    with refused(errno.ESTALE):
        await store.get(key, 5, 5, etag=version.etag)


@pytest.mark.parametrize("key", ["absent", "ab//sent", "absent/"], ids=ascii)
@trio_test
async def test_absent_is_enoent(store: ObjectStore, key: str) -> None:
    await store.put("there", b"12345", Properties())
    version = (await store.head("there")).version
    upload = await store.create_multipart("there", Properties())
    calls: list[Awaitable[object]] = [
        store.head(key),
        store.head(key, detail=Detail.WHOLE),
        store.get(key, 0, 1),
        store.get(key, 7, 7),
        store.get(key, 0, 1, etag="0" * 32),
        store.copy(key, "there"),
        store.copy(key, "there", version=version),
        store.copy_part("there", upload, 1, key, version, 0, 5),
        store.get_acl(key),
        store.put_acl(key, Acl("x", ())),
    ]
    for number, call in enumerate(calls):
        with pytest.raises(StoreError) as caught:
            await call
        assert caught.value.errno == errno.ENOENT, (number, caught.value)
    await store.delete(key)
    assert await store.delete_many([key, "there"]) == []
    assert await keys(store) == []


@trio_test
async def test_many_keys_are_told_each_as_alone(store: ObjectStore) -> None:
    asked = ["plain", "absent", "o//dd", "trail/", "ab//sent", "plain"]
    for key in ("plain", "o//dd", "trail/"):
        await store.put(key, key.encode(), Properties(Headers(), {"mode": "33188"}))
    told = await store.heads(asked)
    assert [found.errno for found in told if isinstance(found, StoreError)] == [errno.ENOENT] * 2
    assert [told[at] for at in (0, 2, 3, 5)] == [await store.head(asked[at]) for at in (0, 2, 3, 5)]
    assert [type(told[at]) for at in (1, 4)] == [StoreError] * 2
    assert await store.heads([]) == []


@pytest.mark.parametrize("storage_class", ["", "STANDARD_IA"])
@pytest.mark.parametrize("key", ["plain", "a//b"])
@trio_test
async def test_the_storage_class_is_told_and_carried(
    subject: Subject, request: pytest.FixtureRequest, key: str, storage_class: str
) -> None:
    if storage_class:
        subject.defect(request, "a storage class")
    store, kept = subject.store, Properties(storage_class=storage_class)
    stored = await store.put(key, b"x", kept)
    await store.copy(key, "copy", version=stored, storage_class=storage_class)
    await store.copy(key, "rewritten", version=stored, properties=replace(kept, metadata={"a": "b"}))
    upload = await store.create_multipart("joined", kept)
    await store.complete_multipart("joined", upload, [await store.upload_part("joined", upload, 1, b"x")])
    for name in (key, "copy", "rewritten", "joined"):
        assert (await store.head(name, detail=Detail.WHOLE)).properties.storage_class == storage_class
        assert (await store.list(name, delimiter="")).objects[0].storage_class == storage_class


@pytest.mark.parametrize("key", ["plain", "a//b"])
@trio_test
async def test_properties_round_trip(store: ObjectStore, key: str) -> None:
    properties = Properties(
        ALL_HEADERS, {"mode": "33188", "mtime": "1700000000.123456789", "empty": "", "a.b-c": "d=e"}
    )
    await store.put(key, b"plain bytes, whatever Content-Encoding says", properties)
    assert (await store.head(key, detail=Detail.WHOLE)).properties == properties
    usual = await store.head(key)
    if usual.detail is Detail.USUAL and not usual.properties.headers.expires:
        usual = replace(usual, properties=replace(usual.properties, headers=ALL_HEADERS))
    assert usual.properties == properties
    assert (await store.get(key, 0, 5)).body.tobytes() == b"plain"
    assert (await store.get(key, 0, 5)).object.properties.metadata == properties.metadata
    await store.put(key, b"", Properties())
    bare = (await store.head(key, detail=Detail.WHOLE)).properties
    assert bare.metadata == {}
    assert replace(bare.headers, content_type="") == Headers()


@pytest.mark.parametrize("key", ["plain", "a//b"])
@pytest.mark.parametrize(
    "value",
    [
        "é",
        "日本語 " * 40,
        " ends blank ",
        "two  blanks",
        "tab\there",
        "\x00\x01\x7f",
        "=?UTF-8?B?w6k=?=",
        "a\nb\r\n",
        '"quoted\\"',
        "é=?",
    ],
    ids=ascii,
)
@trio_test
async def test_metadata_is_any_text(store: ObjectStore, key: str, value: str) -> None:
    properties = Properties(Headers(content_type="a/b"), {"name": value, "mode": "1"})
    await store.put(key, b"x", properties)
    assert (await store.head(key)).properties == properties
    assert (await store.get(key, 0, 1)).object.properties == properties
    await store.copy(key, "copy")
    assert (await store.head("copy")).properties == properties
    await store.copy(key, key, properties=Properties(Headers(content_type="c/d"), {"name": value}))
    assert (await store.head(key)).properties.metadata == {"name": value}


@pytest.mark.parametrize("disposition", ['inline; filename="naïve é.txt"', "日本"])
@trio_test
async def test_headers_are_any_line(store: ObjectStore, disposition: str) -> None:
    properties = Properties(Headers(content_type="a/b", content_disposition=disposition))
    await store.put("key", b"x", properties)
    assert (await store.head("key")).properties == properties
    assert (await store.get("key", 0, 1)).object.properties == properties


def limits() -> dict[str, tuple[int, str, Properties]]:
    return {
        "metadata over 2 kB": (errno.ENOSPC, "key", Properties(metadata={"abcd": "x" * (METADATA_MAX - 3)})),
        "metadata of many names": (
            errno.ENOSPC,
            "key",
            Properties(metadata={f"n{i:03}": "x" * 16 for i in range(110)}),
        ),
        "metadata over 2 kB as sent": (errno.ENOSPC, "key", Properties(metadata={"n": "é" * 1000})),
        "upper case name": (errno.EINVAL, "key", Properties(metadata={"Name": "x"})),
        "name that is no token": (errno.EINVAL, "key", Properties(metadata={"na me": "x"})),
        "empty name": (errno.EINVAL, "key", Properties(metadata={"": "x"})),
        "value that is not UTF-8": (errno.EINVAL, "key", Properties(metadata={"n": "\udcff"})),
        "newline in a header": (errno.EINVAL, "key", Properties(Headers(content_type="a/b\r\nx-amz-acl: public-read"))),
        "key over 1,024 bytes": (errno.ENAMETOOLONG, "é" * (KEY_MAX // 2) + "x", Properties()),
        "empty key": (errno.EINVAL, "", Properties()),
        "key that is not UTF-8": (errno.EINVAL, "a\udcff", Properties()),
    }


@pytest.mark.parametrize("case", limits())
@trio_test
async def test_what_cannot_be_stored_is_refused_before_it_is_sent(
    subject: Subject, store: ObjectStore, case: str
) -> None:
    number, key, properties = limits()[case]
    with refused(number):
        await store.put(key, b"", properties)
    with refused(number):
        await store.create_multipart(key, properties)
    assert not subject.requests
    assert await keys(store) == []
    assert await store.list_uploads("") == []


@trio_test
async def test_two_kilobytes_of_metadata_are_stored(store: ObjectStore) -> None:
    metadata = {"abcd": "x" * 1000, "efgh": "y" * (METADATA_MAX - 1008)}
    await store.put("key", b"", Properties(metadata=metadata))
    assert (await store.head("key")).properties.metadata == metadata


async def fill(store: ObjectStore, names: list[str]) -> None:
    """Stores empty objects, many at once."""
    async with trio.open_nursery() as nursery:
        for name in names:
            nursery.start_soon(store.put, name, b"", Properties())


@trio_test
async def test_listing_in_pages(store: ObjectStore) -> None:
    names = [f"d{i % 5}/f{i:02}" for i in range(25)] + ["a", "d1", "d9", "z//z", "z/", "é"]
    await fill(store, names)
    ordered = sorted(names, key=str.encode)
    for limit in (1, 3, 7, 1000):
        found = await pages(store, limit=limit)
        assert [listed.key for page in found for listed in page.objects] == ordered
        assert all(len(page.objects) + len(page.prefixes) <= limit for page in found)
    for limit in (1, 2, 1000):
        found = await pages(store, delimiter="/", limit=limit)
        assert [listed.key for page in found for listed in page.objects] == ["a", "d1", "d9", "é"]
        prefixes = [prefix for page in found for prefix in page.prefixes]  # may come twice
        assert list(dict.fromkeys(prefixes)) == [f"d{i}/" for i in range(5)] + ["z/"]
        assert all(len(page.objects) + len(page.prefixes) <= limit for page in found)
    assert [prefix for page in await pages(store, "z/", delimiter="/") for prefix in page.prefixes] == ["z//"]
    assert [listed.key for page in await pages(store, "z/", delimiter="/") for listed in page.objects] == ["z/"]
    assert [prefix for page in await pages(store, delimiter="f") for prefix in page.prefixes] == [
        f"d{i}/f" for i in range(5)
    ]
    assert await pages(store, "nothing") == [Page((), ())]


@trio_test
async def test_listing_starts_after_a_key(store: ObjectStore) -> None:
    await fill(store, ["a", "b/1", "b/2", "c", "d"])
    for after, expected in [("a", ["b/1", "b/2", "c", "d"]), ("b/1", ["b/2", "c", "d"]), ("b0", ["c", "d"]), ("z", [])]:
        found = await pages(store, after=after, limit=2)
        assert [listed.key for page in found for listed in page.objects] == expected
    found = await pages(store, "b/", delimiter="/", after="b/1")
    assert [listed.key for page in found for listed in page.objects] == ["b/2"]


@trio_test
async def test_listing_with_every_odd_key_is_whole(subject: Subject, store: ObjectStore) -> None:
    names = [key for key in ORDINARY + ODD if not (subject.name == "moto" and "\n" in key)]
    await fill(store, names)
    assert await keys(store) == sorted(names, key=str.encode)
    top = await pages(store, delimiter="/", limit=5)
    expected = {key.split("/")[0] + "/" for key in names if "/" in key}
    assert {prefix for page in top for prefix in page.prefixes} == expected
    assert {listed.key for page in top for listed in page.objects} == {key for key in names if "/" not in key}
    for listed in (listed for page in top for listed in page.objects):
        assert (await store.head(listed.key)).version == listed.version


@trio_test
async def test_thousands_are_listed_and_removed(subject: Subject, store: ObjectStore) -> None:
    names = [f"many/{i:04}" for i in range(2490)] + [f"many/odd//{i}\x01\t" for i in range(10)]
    await fill(store, names)
    found = await pages(store, "many/")
    assert len(found) >= 3
    assert [listed.key for page in found for listed in page.objects] == sorted(names)
    assert await store.delete_many([*names, "many/never"]) == []
    if subject.bucket:
        assert subject.requests["DeleteObjects"] == 3
    assert await keys(store) == []
    assert await store.delete_many([]) == []


@pytest.fixture(params=["probed", "not probed"])
def probed(request: pytest.FixtureRequest, subject: Subject) -> Callable[[], Awaitable[None]]:
    """Conditions are kept whether the server's way is known or not."""

    async def find_out() -> None:
        if request.param == "probed" and isinstance(subject.store, S3Store):
            assert await subject.store.probe_conditions(".probe") is Conditions.HONOURED
            assert await keys(subject.store) == []
            assert await subject.store.list_uploads("") == []

    return find_out


@trio_test
async def test_only_the_version_that_is_meant_is_removed(
    subject: Subject, store: ObjectStore, probed: Callable[[], Awaitable[None]]
) -> None:
    """Where the server heeds the condition and that is known; else whatever is there."""
    await probed()
    heeds = subject.name == "fake" or (isinstance(store, S3Store) and store.capabilities.delete_pin)
    names = ["a", "b", "c\x01"]
    old = {name: await store.put(name, b"one", Properties()) for name in names}
    new = {name: await store.put(name, b"two", Properties()) for name in names}
    if heeds:
        with refused(errno.ESTALE):
            await store.delete("a", version=old["a"])
        failures = await store.delete_many(["other", *names], versions=old)
        assert sorted((one.key, one.error.errno) for one in failures) == [(name, errno.ESTALE) for name in names]
        assert await keys(store) == names
    await store.delete("a", version=new["a"] if heeds else old["a"])
    await store.delete("a", version=new["a"])
    assert await store.delete_many(names, versions=new if heeds else old) == []
    assert await keys(store) == []


@pytest.mark.parametrize("subject", ["moto", "ceph"], indirect=True)
@trio_test
async def test_a_server_that_compares_another_etag_removes_what_is_there_all_the_same(
    subject: Subject, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(store, S3Store)
    store.capabilities = Capabilities(known=True, delete_pin=True, batch_pin=True)
    delete, delete_many = SignedCalls.delete, SignedCalls.delete_many

    def refusing(calls: SignedCalls, key: str, *, version_id: str = "", if_match: str = "") -> str:
        if if_match:
            raise from_s3(f"DeleteObject {key!r}", code="PreconditionFailed", status=412)
        return delete(calls, key, version_id=version_id)

    def refusing_all(calls: SignedCalls, names: Sequence[str], etags: Mapping[str, str]) -> list[Failure]:
        error = from_s3("DeleteObjects", code="PreconditionFailed", status=412)
        return [Failure(name, error) for name in etags] + delete_many(calls, [n for n in names if n not in etags])

    monkeypatch.setattr(SignedCalls, "delete", refusing)
    monkeypatch.setattr(SignedCalls, "delete_many", refusing_all)
    versions = {name: await store.put(name, b"one", Properties()) for name in ("a", "b", "c", "d")}
    await store.delete("a", version=versions["a"])
    assert await store.delete_many(["b", "c", "d"], versions={name: versions[name] for name in ("b", "c")}) == []
    assert await keys(store) == []
    await store.delete("a", version=versions["a"])
    other = await store.put("a", b"two", Properties())
    with refused(errno.ESTALE):
        await store.delete("a", version=versions["a"])
    assert (await store.head("a")).version.same_as(other)


@pytest.mark.parametrize("subject", ["moto"], indirect=True)
@pytest.mark.parametrize("is_there", [False, True], ids=["gone", "there"])
@trio_test
async def test_a_refused_condition_is_no_refusal_to_remove_where_what_is_there_may_not_be_seen(
    subject: Subject, store: ObjectStore, monkeypatch: pytest.MonkeyPatch, is_there: bool
) -> None:
    """As of what an earlier try has removed, to who is told 403 of what is not there: whoever takes that for one would
    think that it is there still."""
    assert isinstance(store, S3Store)
    store.capabilities = Capabilities(known=True, delete_pin=True)
    version = await store.put("a", b"one", Properties())
    if not is_there:
        await store.delete("a")

    def refusing(calls: SignedCalls, key: str, **_: object) -> str:
        raise from_s3(f"DeleteObject {key!r}", code="PreconditionFailed", status=412)

    def hidden(calls: SignedCalls, key: str, detail: object) -> None:
        raise from_s3(f"HeadObject {key!r}", code="", status=403)

    monkeypatch.setattr(SignedCalls, "delete", refusing)
    monkeypatch.setattr(SignedCalls, "head", hidden)
    if is_there:
        with refused(errno.ESTALE):
            await store.delete("a", version=version)
    else:
        await store.delete("a", version=version)


@pytest.mark.parametrize("subject", ["moto"], indirect=True)
@trio_test
async def test_what_is_refused_since_another_client_writes_just_then_is_not_removed_without_the_condition(
    subject: Subject, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(store, S3Store)
    store.capabilities = Capabilities(known=True, delete_pin=True)
    version = await store.put("a", b"one", Properties())
    delete = SignedCalls.delete

    def refusing(calls: SignedCalls, key: str, *, version_id: str = "", if_match: str = "") -> str:
        if if_match:
            raise from_s3(f"DeleteObject {key!r}", code="ConditionalRequestConflict", status=409)
        return delete(calls, key, version_id=version_id)

    monkeypatch.setattr(SignedCalls, "delete", refusing)
    with refused(errno.EIO):
        await store.delete("a", version=version)
    assert await keys(store) == ["a"]


@pytest.mark.parametrize("subject", ["moto", "ceph"], indirect=True)
@trio_test
async def test_versions_go_one_by_one_where_batches_do_not_heed_them(subject: Subject, store: ObjectStore) -> None:
    assert isinstance(store, S3Store)
    store.capabilities = Capabilities(known=True, delete_pin=True)
    versions = {name: await store.put(name, b"one", Properties()) for name in ("a", "b")}
    await store.put("c", b"", Properties())
    before = subject.requests.copy()
    assert await store.delete_many(["a", "b", "c"], versions=versions) == []
    assert subject.requests - before == {"DeleteObject": 2, "DeleteObjects": 1}
    store.capabilities = Capabilities(known=True, delete_pin=True, batch_pin=True)
    before = subject.requests.copy()
    assert await store.delete_many(["a", "b", "c"], versions=versions) == []
    assert subject.requests - before == {"DeleteObjects": 1}


@pytest.mark.parametrize("key", ["plain", "a//b"])
@trio_test
async def test_conditional_put(store: ObjectStore, probed: Callable[[], Awaitable[None]], key: str) -> None:
    await probed()
    first = await store.put(key, b"one", Properties(), condition=Guard.ABSENT)
    with refused(errno.ESTALE):
        await store.put(key, b"two", Properties(), condition=Guard.ABSENT)
    second = await store.put(key, b"two", Properties(metadata={"a": "b"}), condition=first)
    with refused(errno.ESTALE):
        await store.put(key, b"three", Properties(), condition=first)
    found = await store.get(key, 0, 9)
    assert (found.body.tobytes(), found.object.properties.metadata) == (b"two", {"a": "b"})
    await store.put(key, b"three", Properties(), condition=(await store.head(key)).version)
    await store.delete(key)
    with refused(errno.ESTALE):
        await store.put(key, b"four", Properties(), condition=second)
    assert await keys(store) == []


@trio_test
async def test_one_of_eight_creates_wins(subject: Subject, store: ObjectStore) -> None:
    if isinstance(store, S3Store):
        await store.probe_conditions(".probe")
    for round_ in range(5):
        won: list[int] = []

        async def create(number: int, key: str, won: list[int]) -> None:
            try:
                await store.put(key, b"%d" % number, Properties(), condition=Guard.ABSENT)
            except StoreError as error:
                assert error.errno == errno.ESTALE
            else:
                won.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(create, number, f"race{round_}", won)
        assert len(won) == 1
        assert (await store.get(f"race{round_}", 0, 9)).body.tobytes() == b"%d" % won[0]


def shared_acl(owner: str) -> Acl:
    """The owner and everybody."""
    return Acl(owner, (Grant(owner, "FULL_CONTROL"), Grant(EVERYONE, "READ")))


def same_acl(one: Acl, other: Acl) -> bool:
    return one.owner == other.owner and set(one.grants) == set(other.grants)


@pytest.mark.parametrize(("source", "target"), [("a", "b"), ("a//1", "b"), ("a", "/b/"), ("%2F+ é?", "é#+%20")])
@trio_test
async def test_copy_keeps_what_it_must(store: ObjectStore, source: str, target: str) -> None:
    properties = Properties(ALL_HEADERS, {"mode": "33188", "name": "é"})
    stored = await store.put(source, b"body", properties)
    acl = shared_acl((await store.get_acl(source)).owner)
    copied = await store.copy(source, target, version=stored, acl=acl)
    assert copied == stored
    there = await store.head(target, detail=Detail.WHOLE)
    assert there.properties == properties
    assert same_acl(await store.get_acl(target), acl)
    await store.copy(source, target)
    assert (await store.get_acl(target)).is_private
    other = Properties(Headers(content_type="x/y", expires=ALL_HEADERS.expires), {"only": "this"})
    await store.copy(source, target, version=stored, properties=other)
    assert (await store.head(target, detail=Detail.WHOLE)).properties == other
    assert (await store.head(source, detail=Detail.WHOLE)).properties == properties
    assert (await store.get(target, 0, 9)).body.tobytes() == b"body"
    assert same_acl(await store.get_acl(source), await store.get_acl(target))


@trio_test
async def test_copy_onto_itself_changes_properties_only(store: ObjectStore) -> None:
    stored = await store.put("key", b"body", Properties(ALL_HEADERS, {"a": "1"}))
    acl = shared_acl((await store.get_acl("key")).owner)
    changed = Properties(ALL_HEADERS, {"a": "2"})
    assert await store.copy("key", "key", version=stored, properties=changed, acl=acl) == stored
    assert (await store.head("key", detail=Detail.WHOLE)).properties == changed
    assert same_acl(await store.get_acl("key"), acl)


@trio_test
async def test_copy_of_another_version_is_refused(store: ObjectStore, probed: Callable[[], Awaitable[None]]) -> None:
    await probed()
    first = await store.put("source", b"one", Properties())
    await store.put("source", b"two", Properties())
    with refused(errno.ESTALE):
        await store.copy("source", "target", version=first)
    upload = await store.create_multipart("target", Properties())
    with refused(errno.ESTALE):
        await store.copy_part("target", upload, 1, "source", first, 0, 3)


@trio_test
async def test_part_of_another_version_never_becomes_an_object(
    store: ObjectStore, probed: Callable[[], Awaitable[None]]
) -> None:
    await probed()
    first = await store.put("key", b"one", Properties())
    upload = await store.create_multipart("key", Properties())
    await store.put("key", b"two", Properties())
    with refused(errno.ESTALE):
        part = await store.copy_part("key", upload, 1, "key", first, 0, 3, check=Check.AT_COMPLETION)
        await store.complete_multipart("key", upload, [part], condition=first)
    assert (await store.get("key", 0, 99)).body.tobytes() == b"two"


@trio_test
async def test_acl_of_a_new_object(store: ObjectStore) -> None:
    await store.put("key", b"1", Properties())
    private = await store.get_acl("key")
    assert private.is_private
    assert private.grants
    acl = shared_acl(private.owner)
    await store.put("key", b"3", Properties(), acl=acl)
    assert same_acl(await store.get_acl("key"), acl)
    await store.put("key", b"2", Properties())
    assert (await store.get_acl("key")).is_private


@trio_test
async def test_acl_replaced(request: pytest.FixtureRequest, subject: Subject, store: ObjectStore) -> None:
    subject.defect(request, "PutObjectAcl")
    await store.put("key", b"1", Properties())
    private = await store.get_acl("key")
    acl = shared_acl(private.owner)
    await store.put_acl("key", acl)
    assert same_acl(await store.get_acl("key"), acl)
    await store.put_acl("key", private)
    assert same_acl(await store.get_acl("key"), private)


@pytest.mark.parametrize("key", ["plain", "a//b"])
@trio_test
async def test_acl_by_name(store: ObjectStore, key: str) -> None:
    await store.put(key, b"1", Properties())
    private = await store.get_acl(key)
    await store.put_acl(key, Canned.PUBLIC_READ)
    assert set((await store.get_acl(key)).grants) - set(private.grants) == {Grant(EVERYONE, "READ")}
    await store.put_acl(key, Canned.PRIVATE)
    assert same_acl(await store.get_acl(key), private)


@pytest.mark.parametrize("key", ["large", "a//b", "trail/", "\x01"], ids=ascii)
@trio_test
async def test_multipart(request: pytest.FixtureRequest, subject: Subject, store: ObjectStore, key: str) -> None:
    if "\x01" in key:
        subject.defect(request, "control character in an upload's key")
    properties = Properties(ALL_HEADERS, {"mode": "33188", "name": "é"})
    source = await store.put("so//urce", bytes(range(256)) * 64, Properties())
    upload = await store.create_multipart(key, properties)
    assert [(u.key, u.upload_id) for u in await store.list_uploads("")] == [(key, upload)]
    assert [u.upload_id for u in await store.list_uploads(key)] == [upload]
    assert await store.list_uploads("other") == []
    assert await store.list_parts(key, upload) == []
    await store.upload_part(key, upload, 2, b"replaced")
    second = await store.copy_part(key, upload, 2, "so//urce", source, 100, 356)
    first = await store.upload_part(key, upload, 1, bytearray(b"x" * PART_MIN))
    assert (second.number, second.size, second.etag) == (2, 256, etag_of((bytes(range(256)) * 2)[100:356]))
    assert await store.list_parts(key, upload) == [first, second]
    with refused(errno.ENOENT):
        await store.head(key)
    done = await store.complete_multipart(key, upload, [second, first])
    hashes = bytes.fromhex(first.etag) + bytes.fromhex(second.etag)
    assert done.etag == f"{etag_of(hashes)}-2"
    assert done.size == PART_MIN + 256
    found = await store.head(key, detail=Detail.WHOLE)
    assert found.version.same_as(done)
    assert found.properties == properties
    assert (await store.get(key, PART_MIN - 1, PART_MIN + 3, etag=done.etag)).body.tobytes() == b"xdef"
    assert await store.list_uploads("") == []
    copied = await store.copy(key, "copy of it", version=found.version)
    assert (await store.head("copy of it")).version.same_as(copied)


@trio_test
async def test_an_upload_that_is_not_there(store: ObjectStore) -> None:
    await store.put("source", b"12345", Properties())
    upload = await store.create_multipart("key", Properties())
    part = await store.upload_part("key", upload, 1, b"1")
    await store.abort_multipart("key", upload)
    await store.abort_multipart("key", upload)
    with refused(errno.ENXIO):
        await store.list_parts("key", upload)
    assert await store.list_uploads("") == []
    with pytest.raises(StoreError) as caught:
        await store.complete_multipart("key", upload, [part])
    assert caught.value.errno in (errno.ENXIO, errno.EIO)  # EIO: Ceph and moto answer 500
    assert await keys(store) == ["source"]


@trio_test
async def test_parts_that_do_not_make_an_object(store: ObjectStore) -> None:
    upload = await store.create_multipart("key", Properties())
    small = await store.upload_part("key", upload, 1, b"too small")
    last = await store.upload_part("key", upload, 2, b"last")
    with refused(errno.EINVAL):
        await store.complete_multipart("key", upload, [small, last])
    with refused(errno.EINVAL):
        await store.complete_multipart("key", upload, [])
    with refused(errno.EINVAL):
        await store.complete_multipart("key", upload, [replace(small, etag="0" * 32)])
    assert await store.list_parts("key", upload) == [small, last]
    assert await keys(store) == []


@trio_test
async def test_a_part_may_be_left_out(request: pytest.FixtureRequest, subject: Subject, store: ObjectStore) -> None:
    subject.defect(request, "a part left out")
    upload = await store.create_multipart("key", Properties())
    await store.upload_part("key", upload, 1, b"not wanted")
    wanted = await store.upload_part("key", upload, 5, b"wanted")
    assert (await store.complete_multipart("key", upload, [wanted])).size == 6
    assert (await store.get("key", 0, 99)).body.tobytes() == b"wanted"


@trio_test
async def test_an_upload_tells_when_it_began(
    request: pytest.FixtureRequest, subject: Subject, store: ObjectStore
) -> None:
    subject.defect(request, "time of an upload")
    await store.create_multipart("key", Properties())
    assert abs((await store.list_uploads("key"))[0].started - time.time()) < 60


@trio_test
async def test_conditional_complete(store: ObjectStore, probed: Callable[[], Awaitable[None]]) -> None:
    await probed()
    first = await store.put("key", b"one", Properties())
    upload = await store.create_multipart("key", Properties())
    part = await store.upload_part("key", upload, 1, b"two")
    with refused(errno.ESTALE):
        await store.complete_multipart("key", upload, [part], condition=Guard.ABSENT)
    with refused(errno.ESTALE):
        await store.complete_multipart("key", upload, [part], condition=Version("0" * 32, 3))
    assert await store.list_parts("key", upload) == [part]
    assert (await store.get("key", 0, 9)).body.tobytes() == b"one"
    done = await store.complete_multipart("key", upload, [part], condition=first)
    assert (await store.get("key", 0, 9, etag=done.etag)).body.tobytes() == b"two"


@trio_test
async def test_acl_of_a_multipart_object(request: pytest.FixtureRequest, subject: Subject, store: ObjectStore) -> None:
    subject.defect(request, "ACL of a multipart object")
    await store.put("other", b"", Properties())
    acl = shared_acl((await store.get_acl("other")).owner)
    for given in (None, acl):
        upload = await store.create_multipart("key", Properties(), acl=given)
        part = await store.upload_part("key", upload, 1, b"1")
        await store.complete_multipart("key", upload, [part])
        found = await store.get_acl("key")
        assert same_acl(found, given) if given else found.is_private


@pytest.mark.parametrize("wrap", [bytes, bytearray, lambda body: memoryview(b"?" + body)[1:]])
@pytest.mark.parametrize("size", [0, 1, 300_000, 3 << 20])
@trio_test
async def test_bodies_of_any_kind_and_size(store: ObjectStore, wrap: Callable[[bytes], bytes], size: int) -> None:
    body = (b"\x00\xff<Error>" * (size // 9 + 1))[:size]
    for key in ("plain", "a//b"):
        version = await store.put(key, wrap(body), Properties())
        assert version == Version(etag_of(body), size)
        assert (await store.get(key, 0, size + 1, etag=version.etag)).body.tobytes() == body


@trio_test
async def test_a_part_from_a_file(subject: Subject, store: ObjectStore, tmp_path: Path) -> None:
    body = bytes(range(256)) * 4096 * 6
    path = tmp_path / "file"
    path.write_bytes(b"before" + body)
    upload = await store.create_multipart("large", Properties())
    with path.open("rb") as file:
        first = await store.upload_part("large", upload, 1, FileBody(file.fileno(), 6, 6 + len(body)))
        assert (first.size, first.etag) == (len(body), etag_of(body))
        cut = FileBody(file.fileno(), 6, 7 + len(body))
        if subject.name != "fake":
            with refused(errno.EIO):
                await store.upload_part("large", upload, 2, cut)
    done = await store.complete_multipart("large", upload, [first])
    assert (await store.get("large", 0, len(body), etag=done.etag)).body.tobytes() == body
