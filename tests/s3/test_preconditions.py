"""Conditions of writes and pins of reads: which header is sent, what is compared instead, and what a refusal means."""

from __future__ import annotations

import errno
from collections.abc import Mapping

import pytest
import trio

from sosfs.errors import StoreError
from sosfs.s3.capabilities import Quoting
from sosfs.s3.preconditions import check_etag, check_still, checked, find, header_for, keeping, landed, look, stale
from sosfs.s3.protocol import Condition, Detail, Guard, Listed, Object, Page, Properties, Slice, Version
from sosfs.s3.recognition import token
from tests.support.drive import fails
from tests.support.fake_store import FakeStore

BEFORE = Version("etag", 5, 100)
OTHER = Version("other", 5, 200)
OURS = Version("ours", 7)
REFUSED = {412: "PreconditionFailed", 409: "ConditionalRequestConflict"}
GONE = StoreError(errno.ENOENT, "PutObject 'key'", code="NoSuchKey", status=404)


def object_of(version: Version) -> Object:
    return Object("key", version, Properties())


def refusal(status: int) -> StoreError:
    return StoreError(errno.ESTALE, "PutObject 'key'", code=REFUSED[status], status=status)


class Sent:
    """A write that ends as planned, of a key under which something is."""

    def __init__(self, *ends: StoreError | None, there: Version | None = None, ours: Version | None = None) -> None:
        self.ends = list(ends)
        self.there = there
        self.ours = ours
        self.headers: list[Mapping[str, str]] = []
        self.heads = 0

    async def head(self, key: str) -> Object:
        assert key == "key"
        self.heads += 1
        if self.there is None:
            raise StoreError(errno.ENOENT, "HeadObject 'key'", status=404)
        return object_of(self.there)

    async def send(self, headers: Mapping[str, str]) -> Version:
        self.headers.append(headers)
        end = self.ends.pop(0)
        if end is not None:
            raise end
        return OURS

    async def recognised(self, _: StoreError) -> Version | None:
        return self.ours

    def kept(
        self,
        condition: Condition,
        *,
        absent: bool = True,
        match: Quoting | None = Quoting.QUOTED,
        markers: bool = False,
    ) -> Version:
        """What the write made under this condition."""

        async def main() -> Version:
            return await keeping(
                self.head, "PutObject 'key'", "key", condition, self.send, self.recognised,
                absent=absent, match=match, markers=markers,
            )  # fmt: skip

        return trio.run(main)


# Which header


@pytest.mark.parametrize(
    ("condition", "match", "due"),
    [
        (BEFORE, Quoting.QUOTED, {"If-Match": '"etag"'}),
        (BEFORE, Quoting.BARE, {"If-Match": "etag"}),
        (Guard.ABSENT, None, {"If-None-Match": "*"}),
        (Guard.NONE, Quoting.QUOTED, {}),
    ],
)
def test_what_the_server_honours_it_is_told_and_not_asked(
    condition: Condition, match: Quoting | None, due: Mapping[str, str]
) -> None:
    sent = Sent(None)
    assert sent.kept(condition, match=match) == OURS
    assert sent.headers == [due]
    assert sent.heads == 0


@pytest.mark.parametrize(
    ("condition", "there", "holds"),
    [
        (BEFORE, BEFORE, True),
        (BEFORE, Version("etag", 5), True),  # its time is not known
        (BEFORE, Version("etag", 5, 101), False),  # its metadata are others
        (BEFORE, OTHER, False),
        (BEFORE, None, False),
        (Guard.ABSENT, None, True),
        (Guard.ABSENT, BEFORE, False),
    ],
)
def test_what_it_does_not_honour_is_compared_before(condition: Condition, there: Version | None, holds: bool) -> None:
    sent = Sent(None, there=there)
    if holds:
        assert sent.kept(condition, absent=False, match=None) == OURS
        assert sent.headers == [{}]
    else:
        with fails(errno.ESTALE):
            sent.kept(condition, absent=False, match=None)
        assert sent.headers == [], "nothing is sent"
    assert sent.heads == 1


def test_one_condition_is_not_taken_for_the_other() -> None:
    """That the server honours If-Match does not say that it honours If-None-Match, nor the reverse."""

    async def main() -> None:
        sent = Sent()
        for condition, absent, match, heads in (
            (Guard.ABSENT, False, Quoting.QUOTED, 1),
            (Guard.ABSENT, True, None, 1),
        ):
            found = await header_for(sent.head, "r", "key", condition, absent=absent, match=match)
            assert (bool(found), sent.heads) == (absent, heads)
        sent.there = BEFORE
        assert await header_for(sent.head, "r", "key", BEFORE, absent=True, match=None) == {}
        assert sent.heads == 2

    trio.run(main)


# What a refusal means


@pytest.mark.parametrize("there", [OTHER, None])
def test_a_refusal_where_another_version_is_there_is_a_lost_race(there: Version | None) -> None:
    sent = Sent(refusal(412), there=there)
    with fails(errno.ESTALE):
        sent.kept(BEFORE)
    assert len(sent.headers) == 1


def test_so_is_one_that_says_that_nothing_is_there_any_more() -> None:
    """As AWS answers to If-Match."""
    with fails(errno.ESTALE):
        Sent(GONE, there=None).kept(BEFORE)


def test_a_refusal_where_something_is_there_is_one_without_a_question() -> None:
    sent = Sent(refusal(412), there=None)
    with fails(errno.ESTALE):
        sent.kept(Guard.ABSENT)
    assert (sent.heads, len(sent.headers)) == (0, 1)


@pytest.mark.parametrize("condition", [BEFORE, Guard.ABSENT])
def test_a_refusal_of_what_holds_is_tried_once_without_the_header(condition: Condition) -> None:
    """Where versions are kept Ceph 16 takes a marker of deletion for an object."""
    there = BEFORE if condition is BEFORE else None
    sent = Sent(refusal(412), None, there=there)
    assert sent.kept(condition, markers=True) == OURS
    assert [bool(headers) for headers in sent.headers] == [True, False]
    assert sent.heads == 1
    with fails(errno.EIO):
        Sent(refusal(412), refusal(412), there=there).kept(condition, markers=True)


def test_what_fails_without_the_header_is_told_as_it_is() -> None:
    failure = StoreError(errno.ETIMEDOUT, "PutObject 'key'")
    with pytest.raises(StoreError) as caught:
        Sent(refusal(412), failure, there=BEFORE).kept(BEFORE)
    assert caught.value is failure


def test_a_conflict_that_is_no_failed_condition_is_not_tried_without_the_header() -> None:
    """409: another write is under way at the same time; without the header it would be written over."""
    sent = Sent(refusal(409), None, there=BEFORE)
    with fails(errno.EIO):
        sent.kept(BEFORE)
    assert len(sent.headers) == 1


def test_a_conflict_where_nothing_may_be_is_looked_at() -> None:
    """409 does not say that something is there."""
    sent = Sent(refusal(409), there=None)
    with fails(errno.EIO):
        sent.kept(Guard.ABSENT)
    assert (sent.heads, len(sent.headers)) == (1, 1)
    with fails(errno.ESTALE):
        Sent(refusal(409), there=OTHER).kept(Guard.ABSENT)


@pytest.mark.parametrize(("there", "number"), [(OTHER, errno.ESTALE), (BEFORE, errno.EIO)])
def test_what_the_server_said_is_told_whatever_it_is_taken_for(there: Version, number: int) -> None:
    """What is tried again, and what is left to a later mount, depends on its status."""
    with pytest.raises(StoreError) as caught:
        Sent(refusal(412), refusal(412), there=there).kept(BEFORE)
    assert (caught.value.errno, caught.value.code, caught.value.status) == (number, "PreconditionFailed", 412)
    assert caught.value.detail
    assert stale("r", "why").detail == "why"


def test_a_refusal_of_what_had_no_header_is_no_lost_race() -> None:
    sent = Sent(refusal(412), None, there=BEFORE)
    with fails(errno.EIO):
        sent.kept(BEFORE, match=None)
    assert len(sent.headers) == 1


def test_a_refusal_of_what_has_no_condition_is_told_as_it_is() -> None:
    sent = Sent(refusal(412), None, there=BEFORE)
    with pytest.raises(StoreError) as caught:
        sent.kept(Guard.NONE)
    assert (caught.value.code, sent.heads, len(sent.headers)) == ("PreconditionFailed", 0, 1)


@pytest.mark.parametrize("condition", [BEFORE, Guard.ABSENT, Guard.NONE])
def test_what_our_own_write_has_made_is_no_conflict(condition: Condition) -> None:
    sent = Sent(refusal(412), there=OURS, ours=OURS)
    assert sent.kept(condition) is OURS
    assert len(sent.headers) == 1


def test_a_failure_says_nothing_of_the_condition() -> None:
    failure = StoreError(errno.EIO, "PutObject 'key'", status=500)
    sent = Sent(failure, there=BEFORE)
    with pytest.raises(StoreError) as caught:
        sent.kept(BEFORE)
    assert caught.value is failure
    assert (sent.heads, len(sent.headers)) == (0, 1)


# Pins of reads


@pytest.mark.parametrize(
    ("here", "number"),
    [
        (BEFORE, 0),
        (OTHER, errno.ESTALE),
        (Version("etag", 5, 101), errno.ESTALE),
        (Version("etag", 6, 100), errno.EIO),  # two sizes of the same bytes: a damaged answer
        (Version("etag", 6, 99), errno.EIO),
        (Version("etag", 6), errno.EIO),
        (Version("etag", 6, 101), errno.ESTALE),  # where an ETag is no hash
        (Version("other", 6, 99), errno.ESTALE),
        (Version("other", 6), errno.ESTALE),
    ],
)
def test_a_version_that_is_there_still(here: Version, number: int) -> None:
    async def main() -> None:
        await check_still(Sent(there=here).head, "CopyObject", "key", BEFORE)

    if not number:
        trio.run(main)
        return
    with fails(number):
        trio.run(main)


def test_two_sizes_of_the_same_bytes_are_no_other_version_where_a_time_is_not_known() -> None:
    async def main() -> None:
        await check_still(Sent(there=Version("etag", 6, 100)).head, "CopyObject", "key", Version("etag", 5))

    with fails(errno.EIO):
        trio.run(main)


@pytest.mark.parametrize(
    ("start", "stop", "size", "body", "etag", "number"),
    [
        (0, 5, 5, b"abcde", "etag", 0),
        (0, 5, 5, b"abcde", "", 0),
        (1, 3, 5, b"bc", "etag", 0),
        (3, 9, 5, b"de", "etag", 0),  # cut at the end
        (5, 9, 5, b"", "etag", 0),
        (7, 9, 5, b"", "etag", 0),
        (0, 5, 5, b"abcde", "other", errno.ESTALE),
        (0, 5, 5, b"abcd", "etag", errno.EIO),
        (0, 5, 5, b"", "etag", errno.EIO),
        (0, 3, 5, b"abcd", "etag", errno.EIO),
        (5, 9, 5, b"x", "etag", errno.EIO),
    ],
)
def test_bytes_are_handed_out_whole_and_of_the_version_that_was_asked_for(
    start: int, stop: int, size: int, body: bytes, etag: str, number: int
) -> None:
    found = Slice(object_of(Version("etag", size)), memoryview(body))
    if not number:
        assert checked("GetObject", found, start, stop, etag) is found
        return
    with fails(number):
        checked("GetObject", found, start, stop, etag)


def test_an_etag_is_compared_where_it_is_given() -> None:
    check_etag("GetObject", BEFORE, "")
    check_etag("GetObject", BEFORE, "etag")
    with fails(errno.ESTALE):
        check_etag("GetObject", BEFORE, "other")


# What is there


def test_all_of_an_object_is_found_and_only_a_404_is_none() -> None:
    kept = Properties(metadata={"a": "b"}, storage_class="COLD")

    async def main() -> None:
        store = FakeStore()
        await store.put("key", b"bytes", kept)
        found = await find(store, "key")
        assert found is not None
        told = found.properties.metadata, found.properties.storage_class, found.detail
        assert told == (kept.metadata, "COLD", Detail.WHOLE)
        assert await find(store, "absent") is None

        def down(operation: str, key: str) -> None:
            raise StoreError(errno.EIO, operation, status=503)

        store.fault = down
        with fails(errno.EIO):
            await find(store, "absent")

    trio.run(main)


# An absence told from a refusal


class Shown(FakeStore):
    """Answers the question for `key` as planned, and lists what is planned."""

    def __init__(self, head: StoreError, page: Page | StoreError) -> None:
        super().__init__()
        self._head = head
        self._shown = page

    async def head(self, key: str, *, detail: Detail = Detail.USUAL) -> Object:
        raise self._head

    async def list(self, prefix: str, *, delimiter: str = "/", limit: int = 1000, **_: str) -> Page:
        assert delimiter == "", "what is folded shows no keys"
        if isinstance(self._shown, StoreError):
            raise self._shown
        return self._shown

    def told(self) -> StoreError:
        """What `look` ends with."""
        with pytest.raises(StoreError) as caught:
            trio.run(look, self, "key")
        return caught.value


def listed(*keys: str, token: str = "") -> Page:
    return Page(tuple(Listed(key, BEFORE) for key in keys), (), token)


REFUSAL = StoreError(errno.EACCES, "HeadObject 'key'", code="AccessDenied", status=403)
FAILURE = StoreError(errno.EIO, "HeadObject 'key'", status=503)


@pytest.mark.parametrize(
    ("page", "number"),
    [
        (listed(), errno.ENOENT),
        (listed("key/below"), errno.ENOENT),
        (listed("key2", token="more"), errno.ENOENT),  # it would have come first
        (listed("key"), errno.EACCES),
        (listed("key", token="more"), errno.EACCES),
        (listed(token="more"), errno.EACCES),  # nothing is shown yet
        (StoreError(errno.EACCES, "ListObjectsV2", code="AccessDenied", status=403), errno.EACCES),
        (StoreError(errno.EIO, "ListObjectsV2", status=503), errno.EIO),
    ],
)
def test_a_refusal_is_an_absence_only_where_a_listing_shows_that(page: Page | StoreError, number: int) -> None:
    told = Shown(REFUSAL, page).told()
    assert told.errno == number
    assert (told is REFUSAL) == (number == errno.EACCES), "the listing was ours to ask, and is not what was refused"


def test_a_failure_is_none_whatever_a_listing_shows() -> None:
    assert Shown(FAILURE, listed()).told() is FAILURE


@pytest.mark.parametrize("properties", [None, Properties(metadata={"mtime": "7.000000001"})])
def test_a_copy_that_keeps_what_its_source_has_is_known_by_its_token_alone(properties: Properties | None) -> None:
    async def main() -> None:
        store = FakeStore()
        made = await store.put("key", b"bytes", Properties(metadata={"mtime": "7.000000001"}))
        name = token(made.etag, 5, Properties(), hashes=True)
        found = await landed(store.head, "key", name, properties, instead_of=Guard.ABSENT)
        assert found is not None
        assert found.etag == made.etag
        assert await landed(store.head, "absent", name, properties, instead_of=Guard.ABSENT) is None

    trio.run(main)
