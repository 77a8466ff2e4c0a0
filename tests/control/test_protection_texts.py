"""Object Lock, lifecycle, ownership, encryption and replication as text: what is taken, and how a bad text is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from botocore.utils import parse_to_aware_datetime
from hypothesis import given
from hypothesis import strategies as some

from sosfs.control import encryption_text, lifecycle_text, object_lock_text, ownership_text, replication_text
from sosfs.control.rejected_texts import BadText
from sosfs.s3.protection_settings import Term
from sosfs.s3.protocol import LOCK_MODES, UNLOCKED, Lock

NOW = datetime(2026, 11, 29, 12, tzinfo=UTC).timestamp()
NEW_YEAR = int(datetime(2027, 1, 1, tzinfo=UTC).timestamp())


def refused(parse: Callable[[str], object], text: str) -> BadText:
    with pytest.raises(BadText) as caught:
        parse(text)
    assert "\n" not in caught.value.reason
    return caught.value


# Object Lock


@given(
    term=some.one_of(
        some.builds(Term, some.sampled_from(LOCK_MODES), some.integers(1, 36_500), some.just("days")),
        some.builds(Term, some.sampled_from(LOCK_MODES), some.integers(1, 100), some.just("years")),
    )
)
def test_a_default_retention_that_is_shown_is_read_back(term: Term) -> None:
    assert object_lock_text.parse(object_lock_text.HELP + object_lock_text.shown(term)) == term


@pytest.mark.parametrize("text", ["", "\n", "# nothing\n", object_lock_text.HELP, object_lock_text.ABSENT])
def test_no_line_is_no_default_retention(text: str) -> None:
    assert object_lock_text.parse(text) is None
    assert object_lock_text.shown(None) == ""


def test_a_default_retention_in_other_words() -> None:
    assert object_lock_text.parse("compliance 1 year # long\n") == Term("COMPLIANCE", 1, "years")
    assert object_lock_text.parse("  Governance\t30d") == Term("GOVERNANCE", 30, "days")


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("GOVERNANCE 30 days\nGOVERNANCE 31 days\n", 2, "one line only"),
        ("# x\nGOVERNANCE\n", 2, "'' is no time"),
        ("GOVERNENCE 30 days", 1, "did you mean GOVERNANCE?"),
        ("30 days", 1, "'30' is none of GOVERNANCE, COMPLIANCE"),
        ("COMPLIANCE 0 days", 1, "it is 1 to 36500"),
        ("COMPLIANCE 101 years", 1, "it is 1 to 100"),
        ("COMPLIANCE 3 weeks", 1, "'3 weeks' is no time"),
        ("COMPLIANCE -1 days", 1, "'-1 days' is no time"),
    ],
)
def test_a_bad_default_retention_is_told_with_its_line(text: str, line: int, reason: str) -> None:
    error = refused(object_lock_text.parse, text)
    assert reason in error.reason
    assert error.line == line


@pytest.mark.parametrize(
    ("text", "lock"),
    [
        ("GOVERNANCE 2027-01-01T00:00:00Z", Lock("GOVERNANCE", NEW_YEAR)),
        (" compliance   20270101T0100+0100 \n", Lock("COMPLIANCE", NEW_YEAR)),
        ("COMPLIANCE 2 days", Lock("COMPLIANCE", int(NOW) + 2 * 86_400)),
        ("COMPLIANCE 12h", Lock("COMPLIANCE", int(NOW) + 12 * 3600)),
        ("GOVERNANCE\t2027-01-01T00:00Z\n\0", Lock("GOVERNANCE", NEW_YEAR)),
        ("GOVERNANCE 2026-12-31T23:59:59.5Z", Lock("GOVERNANCE", NEW_YEAR)),
    ],
)
def test_a_retention_in_words(text: str, lock: Lock) -> None:
    assert object_lock_text.retention(text, now=NOW) == lock
    assert object_lock_text.retention(object_lock_text.retention_shown(lock), now=NOW) == lock


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "write: MODE TIME"),
        ("GOVERNANCE", "until when?"),
        ("2027-01-01", "'2027-01-01' is none of"),
        ("COMPLIENCE 2027-01-01", "did you mean COMPLIANCE?"),
        ("GOVERNANCE 2020-01-01", "is in the past"),
        ("GOVERNANCE 2026-11-29T12:00:00Z", "is in the past"),
        ("GOVERNANCE yesterday", "is in the past"),
        ("GOVERNANCE 2 days ago", "is in the past"),
        ("GOVERNANCE 0 days", "is in the past"),
        ("GOVERNANCE soon", "'soon' is no time"),
        ("GOVERNANCE 2027-13-01", "'2027-13-01' is no time"),
        ("GOVERNANCE 999999999 years", "is after the year 9999"),
    ],
)
def test_a_bad_retention_is_told(text: str, reason: str) -> None:
    assert reason in refused(lambda said: object_lock_text.retention(said, now=NOW), text).reason


def test_a_legal_hold_is_on_or_off() -> None:
    assert object_lock_text.legal_hold("on\n")
    assert not object_lock_text.legal_hold("OFF\0")
    assert refused(object_lock_text.legal_hold, "yes").reason == "'yes' is neither ON nor OFF"


def test_what_a_lock_covers() -> None:
    short, long = Lock("GOVERNANCE", 10), Lock("GOVERNANCE", 20)
    assert long.covers(short)
    assert not short.covers(long)
    assert Lock("COMPLIANCE", 20).covers(long)
    assert not Lock("GOVERNANCE", 30).covers(Lock("COMPLIANCE", 20))
    assert long.covers(UNLOCKED)
    assert not long.covers(Lock(is_held=True))
    assert long.holds(19)
    assert not long.holds(20)
    assert Lock(is_held=True).holds(10**12)
    assert Lock("COMPLIANCE", 20, is_held=True).rest(30) == Lock(is_held=True)


# Ownership and encryption


@pytest.mark.parametrize("word", ["", *ownership_text.WORDS])
def test_an_ownership_that_is_shown_is_read_back(word: str) -> None:
    assert ownership_text.parse(ownership_text.HELP + ownership_text.shown(word)) == word
    assert ownership_text.parse(word.upper()) == word


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("ObjectWriter\n\nObjectWriter", 3, "one word only"),
        ("# x\nObjectWritter", 2, "did you mean ObjectWriter?"),
        ("mine", 1, "'mine' is none of"),
    ],
)
def test_a_bad_ownership_is_told_with_its_line(text: str, line: int, reason: str) -> None:
    error = refused(ownership_text.parse, text)
    assert reason in error.reason
    assert error.line == line


def encrypted(algorithm: str, key: str = "", *, bucket_key: bool = False) -> dict[str, Any]:
    default = {"SSEAlgorithm": algorithm} | ({"KMSMasterKeyID": key} if key else {})
    return {"ApplyServerSideEncryptionByDefault": default} | ({"BucketKeyEnabled": True} if bucket_key else {})


@pytest.mark.parametrize(
    ("text", "rules"),
    [
        ("", []),
        ("# x\n", []),
        ("aes256", [encrypted("AES256")]),
        ("aws:kms", [encrypted("aws:kms")]),
        ("aws:kms bucket-key", [encrypted("aws:kms", bucket_key=True)]),
        ("aws:kms:dsse arn:aws:kms:x:1:key/abc # mine", [encrypted("aws:kms:dsse", "arn:aws:kms:x:1:key/abc")]),
        ("aws:kms abc bucket-key", [encrypted("aws:kms", "abc", bucket_key=True)]),
    ],
)
def test_an_encryption_in_words(text: str, rules: list[dict[str, Any]]) -> None:
    assert encryption_text.parse(text) == rules
    assert encryption_text.parse(encryption_text.HELP + encryption_text.shown(rules)) == rules


def test_what_says_the_same_of_encryption() -> None:
    spelt_out = {**encrypted("AES256"), "BucketKeyEnabled": False}  # as servers tell it
    assert encryption_text.same([encrypted("AES256")], [spelt_out])
    assert not encryption_text.same([encrypted("AES256")], [])


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("AES265", 1, "did you mean AES256?"),
        ("AES256\naws:kms", 2, "one line only"),
        ("AES256 key", 1, "AES256 stands alone"),
        ("aws:kms a b", 1, "write: aws:kms [KEY] [bucket-key]"),
        ('aws:kms "x"', 1, "write: aws:kms [KEY] [bucket-key]"),
    ],
)
def test_a_bad_encryption_is_told_with_its_line(text: str, line: int, reason: str) -> None:
    error = refused(encryption_text.parse, text)
    assert reason in error.reason
    assert error.line == line


# Lifecycle

RULE: dict[str, Any] = {"ID": "r", "Status": "Enabled", "Filter": {"Prefix": "logs/"}, "Expiration": {"Days": 90}}
FULL: dict[str, Any] = {
    "ID": "all of it",
    "Status": "Disabled",
    "Filter": {"And": {"Prefix": "a/", "Tags": [{"Key": "k", "Value": "v"}], "ObjectSizeGreaterThan": 5}},
    "Expiration": {"Date": "2027-01-01T00:00:00Z"},
    "NoncurrentVersionExpiration": {"NoncurrentDays": 30, "NewerNoncurrentVersions": 3},
    "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 7},
    "Transitions": [{"Days": 0, "StorageClass": "GLACIER"}],
    "NoncurrentVersionTransitions": [{"NoncurrentDays": 3, "StorageClass": "GLACIER"}],
}


def document(*rules: object) -> str:
    return json.dumps({"Rules": list(rules)}, indent=1)


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in RULE.items() if key != name}


@pytest.mark.parametrize("text", ["", " \n", "# nothing\n", lifecycle_text.HELP, document()])
def test_nothing_is_no_rules(text: str) -> None:
    assert lifecycle_text.parse(text) == []
    assert lifecycle_text.shown([]) == ""


def test_rules_that_are_shown_can_be_written_back() -> None:
    assert lifecycle_text.parse("# mine\n" + lifecycle_text.shown([RULE, FULL])) == [RULE, FULL]
    told = {**FULL, "Expiration": {"Date": datetime(2027, 1, 1, tzinfo=UTC)}}  # as boto3 has it
    assert lifecycle_text.parse(lifecycle_text.shown([told])) == [FULL]


@pytest.mark.parametrize(
    "said", ["2027-01-01", "20270101", "2026-W53-5", "20270101T00Z", "2027-01-01T01:00+01:00", "2027-01-01T00:00:00,0"]
)
def test_a_date_is_sent_as_it_is_meant(said: str) -> None:
    """botocore takes eight digits for seconds since 1970."""
    rules = lifecycle_text.parse(
        document({**RULE, "Expiration": {"Date": said}, "Transitions": [{"Date": said, "StorageClass": "GLACIER"}]})
    )
    sent = [rules[0]["Expiration"]["Date"], rules[0]["Transitions"][0]["Date"]]
    assert [parse_to_aware_datetime(date).timestamp() for date in sent] == [NEW_YEAR, NEW_YEAR]


def test_what_is_noncurrent_can_be_moved_at_once() -> None:
    rule = {**RULE, "NoncurrentVersionTransitions": [{"NoncurrentDays": 0, "StorageClass": "GLACIER"}]}
    assert lifecycle_text.parse(lifecycle_text.shown([rule])) == [rule]


def test_the_example_is_a_rule() -> None:
    example = "\n".join(line[2:] for line in lifecycle_text.HELP.splitlines()[2:])
    assert [rule["ID"] for rule in lifecycle_text.parse(example)] == ["uploads"]


def test_what_says_the_same_of_lifecycle() -> None:
    named_by_the_server = [{**FULL, "ID": "z"}, RULE]
    assert lifecycle_text.same([RULE, {**FULL, "ID": "z"}], named_by_the_server)
    assert lifecycle_text.same([without("ID")], [RULE])
    assert not lifecycle_text.same([RULE], [without("ID")])
    assert lifecycle_text.same([{**without("Filter"), "Prefix": "logs/"}], [RULE])
    assert lifecycle_text.same([without("Filter")], [{**RULE, "Filter": {"Prefix": ""}}])
    assert not lifecycle_text.same([RULE, RULE], [RULE])
    assert not lifecycle_text.same([RULE], [RULE, FULL])
    assert not lifecycle_text.same([{**RULE, "Expiration": {"Days": 91}}], [RULE])
    dated = {**RULE, "Expiration": {"Date": "2027-01-01"}}
    assert lifecycle_text.same([dated], [{**RULE, "Expiration": {"Date": datetime(2027, 1, 1, tzinfo=UTC)}}])


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ('# one\n{"Rules":\n [}', 3, "no JSON"),
        ("[" * 100_000, 0, "no JSON"),
        (document(RULE).replace("90", "9" * 5000), 0, "no JSON that can be read"),
        ('{"Rules": [],\n "Rules": []}', 1, "'Rules' stands twice"),
        (document(RULE).replace('"Days": 90', '"Days": 90, "Days": 1'), 10, "'Days' stands twice"),
        ("[]", 0, 'write {"Rules": [...]}'),
        ('{"CORSRules": []}', 0, 'write {"Rules": [...]}'),
        (document("x"), 3, "rule 1 is no object"),
        (document(RULE, without("Status")), 0, "rule 2 has no Status"),
        (document(without("Expiration")), 0, "rule 1 does nothing"),
        (document({**RULE, "Expire": {"Days": 1}}), 12, "'Expire' is unknown; did you mean 'Expiration'?"),
        (document({**RULE, "Status": "On"}), 5, "'On' is neither"),
        (document({**RULE, "Prefix": ""}), 7, "the Prefix stands in the Filter"),
        (document({**RULE, "Expiration": {"Days": 0}}), 10, "0 is no number from 1 on"),
        (document({**RULE, "Expiration": {"Days": "90"}}), 10, "'90' is no number"),
        (document({**RULE, "Expiration": {"Days": True}}), 10, "True is no number"),
        (document({**RULE, "Expiration": {"Days": 1, "Date": "2027-01-01"}}), 0, "one of Days, Date"),
        (document({**RULE, "Expiration": {}}), 9, "one of Days, Date"),
        (document({**RULE, "Expiration": {"Date": "2027-01-01T12:00:00Z"}}), 10, "is no midnight"),
        (document({**RULE, "Expiration": {"Date": "soon"}}), 10, "is no midnight"),
        (document({**RULE, "Expiration": {"ExpiredObjectDeleteMarker": "x"}}), 10, "is neither true nor false"),
        (document({**RULE, "Expiration": 90}), 9, "is no object"),
        (
            document({**RULE, "NoncurrentVersionExpiration": {"NewerNoncurrentVersions": 2}}),
            12,
            "has no NoncurrentDays",
        ),
        (document({**RULE, "AbortIncompleteMultipartUpload": {"Days": 2}}), 0, "'Days' is unknown"),
        (document({**RULE, "Filter": {"Prefix": "a", "ObjectSizeLessThan": 3}}), 6, "they stand together in And"),
        (document({**RULE, "Filter": {"Tag": {"Key": "a"}}}), 0, "has no Value"),
        (document({**RULE, "Filter": {"And": {"Tags": []}}}), 0, "is no list with something in it"),
        (document({**RULE, "Transitions": [{"Days": 1}]}), 0, "has no StorageClass"),
        (document({**RULE, "ID": "x" * 256}), 4, "at most 255 characters"),
        (document({**RULE, "ID": "\ud800"}), 0, "at most 255 characters"),
        (document(RULE, RULE), 4, "two rules have the ID 'r'"),
        (document(*[without("ID")] * 1001), 0, "1001 rules, at most 1000"),
    ],
)
def test_a_bad_rule_is_told_with_its_line(text: str, line: int, reason: str) -> None:
    error = refused(lifecycle_text.parse, text)
    assert reason in error.reason
    if line:
        assert error.line == line, error


def test_a_text_that_comes_in_pieces_is_refused_when_it_is_wrong() -> None:
    whole = document(RULE)
    for cut in range(1, len(whole) + 1):
        lifecycle_text.check(whole[:cut])
    assert "'Expire' is unknown" in refused(lifecycle_text.check, document({**RULE, "Expire": {}})).reason


# Replication


def test_replication_is_shown_as_it_is() -> None:
    assert replication_text.shown({}) == replication_text.NONE
    comment, _, body = replication_text.shown({"Role": "r", "Rules": []}).partition("\n")
    assert comment.startswith("#")
    assert json.loads(body) == {"Role": "r", "Rules": []}
