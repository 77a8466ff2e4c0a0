"""Whether other bytes arrived than were sent: what is compared with the ETag of an answer, and what is sent again."""

from __future__ import annotations

import errno
from collections.abc import Callable
from hashlib import md5
from pathlib import Path
from typing import Any, cast

import pytest
import trio

from sosfs.errors import StoreError
from sosfs.s3.calls import SignedCalls
from sosfs.s3.file_body import FileBody
from sosfs.s3.protocol import Guard, Object, Part, Properties, Version
from sosfs.s3.upload_check import DamagedWrite, compared, object_arrived, part_arrived

BODY = b"what is sent"
ETAG = md5(BODY).hexdigest()
OTHER = md5(b"what arrived").hexdigest()
CALLS = cast(SignedCalls, None)  # of which these tests make none
BAD_DIGEST = StoreError(errno.EIO, "PUT", code="BadDigest", status=400)
NO_ANSWER = StoreError(errno.ETIMEDOUT, "PUT")
REPLACED = StoreError(errno.ESTALE, "PUT", code="PreconditionFailed", status=412)
REMOVED = StoreError(errno.ENOENT, "PUT", code="NoSuchKey", status=404)


def answered(etag: str, body: FileBody | None = None) -> Callable[[SignedCalls], Part]:
    """A call that reads all of a body of a file, and is answered with an ETag."""

    def call(_: SignedCalls) -> Part:
        if body is not None:
            body.read(0, len(body))
        return Part(1, etag, len(BODY))

    return call


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file with `BODY`."""
    path = tmp_path / "file"
    path.write_bytes(BODY)
    return path


@pytest.mark.parametrize(
    ("wanted", "etag", "is_damaged"),
    [
        *((True, ETAG, False), (True, ETAG.upper(), False), (True, OTHER, True)),
        *((True, f"{OTHER}-2", False), (True, "x" * 32, False)),  # no hashes
        *((False, ETAG, False), (False, OTHER, False)),
    ],
)
def test_an_etag_that_is_a_hash_tells_of_other_bytes(wanted: bool, etag: str, is_damaged: bool) -> None:
    assert compared(wanted, answered(etag), BODY)(CALLS) == (Part(1, etag, len(BODY)), is_damaged)


def test_a_hash_that_is_known_is_not_made_again() -> None:
    assert compared(True, answered(OTHER), BODY, OTHER)(CALLS)[1] is False
    assert compared(True, answered(ETAG), BODY, OTHER)(CALLS)[1] is True


def test_of_a_file_that_is_which_was_sent_counts_whatever_it_has_now(file: Path) -> None:
    with file.open("rb") as opened:
        body = FileBody(opened.fileno(), 0, len(BODY))

        def call(calls: SignedCalls) -> Part:
            made = answered(ETAG, body)(calls)
            file.write_bytes(b"changed !!!!")
            return made

        assert compared(True, call, body)(CALLS)[1] is False
        file.write_bytes(BODY)
        assert compared(True, answered(OTHER, body), body)(CALLS)[1] is True


def test_a_file_that_was_sent_another_way_is_hashed_as_it_is(file: Path) -> None:
    with file.open("rb") as opened:
        body = FileBody(opened.fileno(), 0, len(BODY))
        assert compared(True, answered(ETAG), body)(CALLS)[1] is False
        assert compared(True, answered(OTHER), body)(CALLS)[1] is True


def test_nothing_is_hashed_for_who_does_not_want_to_compare(file: Path) -> None:
    with file.open("rb") as opened:
        body = FileBody(opened.fileno(), 0, len(BODY))
        assert compared(False, answered(OTHER, body), body)(CALLS)[1] is False
        assert body.sent_md5 == ""


class Sending:
    """A request that ends as planned: whether other bytes arrived, or an error."""

    def __init__(self, *ends: bool | StoreError) -> None:
        self._ends = ends
        self.sent = 0
        self.unknown: StoreError | None = None  # the answer to a HEAD

    def _end(self) -> bool:
        self.sent += 1
        end = self._ends[self.sent - 1]
        if isinstance(end, StoreError):
            raise end
        return end

    async def _part(self) -> tuple[Part, bool]:
        is_damaged = self._end()
        return Part(self.sent, "etag", 5), is_damaged

    async def _object(self, _: Any) -> tuple[Version, bool]:
        is_damaged = self._end()
        return Version(f"{self.sent}", 5), is_damaged

    async def _head(self) -> Object:
        if self.unknown is not None:
            raise self.unknown
        return Object("key", Version("2", 5), Properties())

    def part(self) -> int:
        """Which try the part is of that arrived."""
        return trio.run(part_arrived, "UploadPart", self._part).number

    def object(self) -> int:
        """Which try the object is of that arrived."""
        return int(trio.run(object_arrived, "PutObject", self._object, Guard.NONE, self._head).etag)


BOTH = pytest.mark.parametrize("arrived", [Sending.part, Sending.object])


@BOTH
@pytest.mark.parametrize(("ends", "tries"), [((False,), 1), ((True, False), 2), ((BAD_DIGEST, False), 2)])
def test_what_is_damaged_is_sent_once_more(
    arrived: Callable[[Sending], int], ends: tuple[bool | StoreError, ...], tries: int
) -> None:
    sending = Sending(*ends)
    assert arrived(sending) == tries
    assert sending.sent == tries


@BOTH
@pytest.mark.parametrize(("ends", "tries"), [((NO_ANSWER,), 1), ((BAD_DIGEST, NO_ANSWER), 2)])
def test_what_is_no_damage_is_raised_as_it_is(
    arrived: Callable[[Sending], int], ends: tuple[bool | StoreError, ...], tries: int
) -> None:
    sending = Sending(*ends)
    with pytest.raises(StoreError) as caught:
        arrived(sending)
    assert caught.value is NO_ANSWER
    assert sending.sent == tries


@BOTH
@pytest.mark.parametrize("first", [True, BAD_DIGEST])
def test_what_stays_damaged_is_an_error_that_tells_what_to_do(
    arrived: Callable[[Sending], int], first: bool | StoreError
) -> None:
    with pytest.raises(DamagedWrite, match="--verify none") as caught:
        arrived(Sending(first, True))
    assert caught.value.errno == errno.EIO


@pytest.mark.parametrize("what", [REPLACED, REMOVED], ids=["replaced", "removed"])
def test_what_another_client_did_to_a_damaged_object_is_told_as_that(what: StoreError) -> None:
    with pytest.raises(StoreError) as caught:
        Sending(True, what).object()
    assert caught.value is what


def test_a_damaged_object_that_may_stand_there_is_known() -> None:
    """Its second try got no answer."""
    with pytest.raises(DamagedWrite) as caught:
        Sending(True, NO_ANSWER).object()
    assert caught.value.left == Version("1", 5)


def test_what_stays_damaged_is_an_error_also_where_its_encryption_is_not_known() -> None:
    sending = Sending(True, True)
    sending.unknown = NO_ANSWER
    with pytest.raises(DamagedWrite) as caught:
        sending.object()
    assert caught.value.left == Version("2", 5)
