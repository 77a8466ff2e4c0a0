"""How our own write is known after a lost answer, also where ETags are no hashes; never is another taken for it."""

from __future__ import annotations

from dataclasses import replace

from sosfs.s3 import recognition
from sosfs.s3.protocol import Guard, Object, Properties, Version
from sosfs.s3.recognition import EARLIER_MAX, InFlight

OURS = Properties(metadata={"mtime": "1700000000.123456789", "mode": "33188"})
FOUND = Object("key", Version("e2", 5, 1), OURS)
BEFORE = Version("e1", 5, 1)


def test_where_etags_are_hashes_they_alone_tell() -> None:
    assert recognition.token("e2", 5, OURS, hashes=True) == "e2"
    assert recognition.is_ours("e2", FOUND, instead_of=BEFORE)
    assert not recognition.is_ours("e3", FOUND, instead_of=BEFORE)


def test_where_they_are_not_size_and_time_do() -> None:
    token = recognition.token("md5", 5, OURS, hashes=False)
    assert recognition.is_ours(token, FOUND, instead_of=BEFORE)
    assert recognition.is_ours(token, FOUND, instead_of=Guard.ABSENT)
    assert not recognition.is_ours(token, replace(FOUND, version=Version("e2", 6, 1)), instead_of=BEFORE)
    assert not recognition.is_ours(token, replace(FOUND, properties=Properties()), instead_of=BEFORE)


def test_what_was_there_before_is_not_ours_whatever_its_time() -> None:
    """A write that did not take place, of a file whose size and time are as they were, must be made again."""
    token = recognition.token("md5", 5, OURS, hashes=False)
    assert not recognition.is_ours(token, FOUND, instead_of=FOUND.version)


def test_without_a_time_nothing_tells() -> None:
    token = recognition.token("md5", 5, Properties(), hashes=False)
    assert not recognition.is_ours(token, replace(FOUND, properties=Properties()), instead_of=Guard.ABSENT)


def test_requests_without_an_answer_are_known_until_one_is_answered() -> None:
    flight = InFlight()
    assert list(flight.tokens) == []
    flight.sent("a", 3)
    assert (list(flight.tokens), flight.serial) == (["a"], 3)
    for token in ("b", "a", "b", "c"):
        flight.sent(token, 4)
    assert (list(flight.tokens), flight.serial) == (["c", "a", "b"], 4)
    flight.answered()
    assert (list(flight.tokens), flight.serial) == ([], 0)
    flight.sent("d", 5)
    assert list(flight.tokens) == ["d"]


def test_of_many_requests_without_an_answer_the_newest_are_known() -> None:
    flight = InFlight()
    for number in range(2 * EARLIER_MAX):
        flight.sent(f"{number}", number)
    assert set(flight.tokens) == {f"{number}" for number in range(EARLIER_MAX - 1, 2 * EARLIER_MAX)}
