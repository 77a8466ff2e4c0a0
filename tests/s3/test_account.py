"""The buckets of an account: what of an answer that was lost, misplaced or led in a circle is made. By a script."""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import trio

from sosfs.config.zones import Place
from sosfs.errors import StoreError
from sosfs.s3.account import Account, is_name
from sosfs.s3.endpoint import S3Target
from sosfs.s3.limits import Limits
from tests.s3.test_transport import KEY
from tests.support.scripted import Scripted, Seen, answer
from tests.support.subjects import Fixed

ID = "x-amz-request-id: 7"
MADE, GONE = answer(200, b"", ID), answer(204, b"", ID, length=-1)
Told = bytes | None


def error(status: int, code: str) -> bytes:
    return answer(status, f"<Error><Code>{code}</Code></Error>".encode())


OURS, MISPLACED = error(409, "BucketAlreadyOwnedByYou"), error(400, "IllegalLocationConstraintException")
MISSING = error(404, "NoSuchBucket")


def listed(*names: str, token: str = "") -> bytes:
    buckets = "".join(f"<Bucket><Name>{name}</Name></Bucket>" for name in names)
    more = f"<ContinuationToken>{token}</ContinuationToken>" if token else ""
    owner = "<Owner><ID>me</ID></Owner>"
    return answer(
        200, f"<ListAllMyBucketsResult>{owner}<Buckets>{buckets}</Buckets>{more}</ListAllMyBucketsResult>".encode()
    )


def asked(work: Callable[[Account], Awaitable[Any]], *told: Told, patience: float = 5.0) -> tuple[Any, Sequence[Seen]]:
    """What work on an account ends with, or its errno, where the server answers in turn; and what it was asked."""
    answers = list(told)

    async def main(account: Account) -> Any:
        try:
            return await work(account)
        except StoreError as refusal:
            return refusal.errno

    with Scripted(lambda _: answers.pop(0) if answers else None) as server:
        target = S3Target("", server.endpoint, "zone", Fixed(KEY), patience=patience, read_timeout=5.0)
        limits = Limits()
        account = Account(target, lambda _: None, limits)
        try:
            end = trio.run(main, account)
        finally:
            account.close()
            limits.close()
    assert not answers, "it asked for less"
    return end, server.seen


@pytest.mark.parametrize(
    ("told", "end"),
    [
        ((MADE,), None),
        ((OURS,), errno.EEXIST),  # it was there before
        ((None, OURS), None),  # the answer was lost
        ((MISPLACED, MADE), None),
        ((MISPLACED, OURS), errno.EEXIST),
        ((MISPLACED, None, OURS), None),
        ((None, error(409, "BucketAlreadyExists")), errno.EEXIST),  # another's
        ((error(403, "AccessDenied"),), errno.EACCES),
        ((answer(200, b"<html>welcome</html>"),), errno.EIO),
    ],
)
def test_a_bucket_is_made_once_and_an_answer_that_was_lost_is_no_other_bucket(told: Sequence[Told], end: Any) -> None:
    ended, seen = asked(partial(Account.create, name="bucket"), *told)
    assert ended == end
    assert {(one.method, one.target) for one in seen} == {("PUT", "/bucket")}
    is_placed = [b"<LocationConstraint>zone</LocationConstraint>" in one.body for one in seen]
    assert is_placed == [MISPLACED in told[:at] for at in range(len(told))]


@pytest.mark.parametrize(
    ("told", "end"),
    [
        ((GONE,), None),
        ((MISSING,), errno.ENXIO),
        ((None, MISSING), None),
        ((error(409, "BucketNotEmpty"),), errno.ENOTEMPTY),
        ((answer(200, b"<html>welcome</html>"),), errno.EIO),
    ],
)
def test_a_bucket_is_removed_where_it_is(told: Sequence[Told], end: Any) -> None:
    answers = list(told)
    with Scripted(lambda _: answers.pop(0)) as there:
        place = Place(there.endpoint, "other")
        ended, seen = asked(partial(Account.remove, name="bucket", place=place))
    assert (ended, seen, answers) == (end, [], [])
    assert {(one.method, one.target) for one in there.seen} == {("DELETE", "/bucket")}
    assert all("/other/s3/" in one.headers["authorization"] for one in there.seen)


def test_all_pages_of_buckets_are_read_and_a_circle_is_an_error() -> None:
    owned, seen = asked(Account.owned, listed("a", "b", token="1"), listed("c"))
    assert (owned.owner, list(owned.buckets)) == ("me", ["a", "b", "c"])
    assert [parse_qs(urlsplit(one.target).query).get("continuation-token") for one in seen] == [None, ["1"]]
    circle = listed("a", token="1"), listed("b", token="2"), listed("c", token="1")
    assert asked(Account.owned, *circle)[0] == errno.EIO
    assert asked(Account.owned, answer(200, b"<html>welcome</html>"))[0] == errno.EIO
    assert asked(Account.owned, error(403, "AccessDenied"))[0] == errno.EACCES


def test_which_names_a_bucket_may_have() -> None:
    assert all(is_name(name) for name in ("abc", "a.b-c", "0" * 64))
    assert not any(is_name(name) for name in ("ab", "a..b", "-ab", "ab-", "aBc", "a_c", "0" * 65, "a/b", ""))
