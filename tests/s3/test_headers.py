"""Keys, properties, versions and locks as headers: what is sent, what is read, and what none can be."""

from __future__ import annotations

import errno
import time
from base64 import b64encode
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

import pytest

from sosfs.s3 import checksums
from sosfs.s3.checksums import Checksum
from sosfs.s3.http_headers import (
    META,
    bare_etag,
    check_key,
    grant_headers,
    joined_etag,
    lock_of,
    modified,
    object_of,
    property_headers,
)
from sosfs.s3.http_messages import Fields
from sosfs.s3.protocol import (
    KEY_MAX,
    METADATA_MAX,
    NO_GRANTS,
    UNLOCKED,
    Acl,
    Grant,
    Headers,
    Lock,
    Part,
    Properties,
)
from tests.support.drive import fails

ETAG = "0123456789abcdef" * 2

LOCK = {"mode": "x-amz-object-lock-mode", "until": "x-amz-object-lock-retain-until-date"}
HOLD = "x-amz-object-lock-legal-hold"


def told(**fields: str) -> Fields:
    """The headers of an answer."""
    return Fields([f"{name.replace('_', '-')}: {value}\n".encode("latin-1") for name, value in fields.items()])


@pytest.fixture
def in_tokyo(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Where the local time is not UTC."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        yield
    time.tzset()


# Keys and ETags


@pytest.mark.parametrize(
    ("key", "number"),
    [
        ("", errno.EINVAL),
        ("\udcff", errno.EINVAL),
        ("a" * (KEY_MAX + 1), errno.ENAMETOOLONG),
        ("\u00e9" * KEY_MAX, errno.ENAMETOOLONG),
    ],
)
def test_what_is_no_key(key: str, number: int) -> None:
    with fails(number):
        check_key(key)
    check_key("a" * KEY_MAX)


def test_an_etag_is_the_same_however_it_is_written() -> None:
    assert {bare_etag(text) for text in ('"abc"', "abc", 'W/"abc"')} == {"abc"}


def test_the_etag_of_joined_parts_is_that_of_their_order() -> None:
    parts = [Part(2, "b" * 32, 1), Part(1, "a" * 32, 1)]
    assert joined_etag(parts) == joined_etag(parts[::-1])
    assert joined_etag(parts).endswith("-2")
    assert joined_etag([Part(1, "no hash", 1)]) == ""


def test_a_header_that_came_twice_is_one_list() -> None:
    assert Fields([b"A: 1\r\n", b"a: 2\r\n"])["A"] == "1, 2"


# Metadata


@pytest.mark.parametrize("value", ["=?UTF-8?B?w6k=?=", "a  b", " a", "a ", "a\tb", "\u00e9", "line\nline", "", "a b"])
def test_a_value_comes_back_as_it_was_and_no_header_is_folded(value: str) -> None:
    """What looks like an encoded word, or would be folded on its way, goes as an encoded word."""
    sent = property_headers(Properties(metadata={"name": value}))[META + "name"]
    assert sent.isascii() and "  " not in sent and sent == sent.strip() and sent.isprintable()
    assert object_of("k", told(x_amz_meta_name=sent)).properties.metadata == {"name": value}


def test_a_value_with_an_encoded_word_in_it_is_text() -> None:
    value = "see =?UTF-8?B?w6k=?="
    assert object_of("k", told(x_amz_meta_a=value)).properties.metadata == {"a": value}


@pytest.mark.parametrize("name", ["", "A", "a b", "a:b", "a\n", "\u00e9"])
def test_what_is_no_name_of_a_header_is_refused(name: str) -> None:
    with fails(errno.EINVAL):
        property_headers(Properties(metadata={name: "value"}))


@pytest.mark.parametrize("value", ["a\nb", "a\rb", "\0", "\x7f"])
def test_no_header_may_have_a_control_character(value: str) -> None:
    with fails(errno.EINVAL):
        property_headers(Properties(Headers(cache_control=value)))


def test_names_and_values_count_as_they_are_sent() -> None:
    property_headers(Properties(metadata={"name": "x" * (METADATA_MAX - 4)}))
    for metadata in ({"name": "x" * (METADATA_MAX - 3)}, {"name": "\u00e9" * (METADATA_MAX // 2)}):
        with fails(errno.ENOSPC):
            property_headers(Properties(metadata=metadata))


# ACLs


def test_who_is_granted_what() -> None:
    acl = Acl("me", (Grant("me", "FULL_CONTROL"), Grant("http://all", "READ"), Grant("you", "READ")))
    assert grant_headers(acl) == {
        "x-amz-grant-full-control": 'id="me"', "x-amz-grant-read": 'uri="http://all", id="you"'
    }  # fmt: skip
    assert grant_headers(Acl("me", (Grant("me", "FULL_CONTROL"),))) == grant_headers(NO_GRANTS) == {}
    with fails(errno.EINVAL):
        grant_headers(Acl("me", (Grant("you", "EVERYTHING"),)))


# Locks


@pytest.mark.parametrize(
    ("headers", "lock"),
    [
        ({}, UNLOCKED),
        ({HOLD: "on"}, Lock(is_held=True)),
        ({HOLD: "OFF"}, UNLOCKED),
        ({LOCK["mode"]: "governance", LOCK["until"]: "2026-11-28T10:00:00Z"}, Lock("GOVERNANCE", 1795860000)),
        ({LOCK["mode"]: "COMPLIANCE", LOCK["until"]: "2026-11-28T10:00:00"}, Lock("COMPLIANCE", 1795860000)),
        ({LOCK["mode"]: "COMPLIANCE", LOCK["until"]: "2026-11-28T09:59:59.001Z"}, Lock("COMPLIANCE", 1795860000)),
        (
            {LOCK["mode"]: "COMPLIANCE", LOCK["until"]: "2026-11-28T10:00:00Z", HOLD: "ON"},
            Lock("COMPLIANCE", 1795860000, is_held=True),
        ),
    ],
)
@pytest.mark.usefixtures("in_tokyo")
def test_what_protects_an_object(headers: Mapping[str, str], lock: Lock) -> None:
    """A time without a zone is UTC, and one with fractions ends after them."""
    assert lock_of("k", headers) == object_of("k", told(**headers)).lock == lock


def test_a_lock_whose_end_is_no_time_is_not_none() -> None:
    for until in ("", "soon"):
        with fails(errno.EIO):
            lock_of("k", {LOCK["mode"]: "COMPLIANCE", LOCK["until"]: until})


def test_what_is_stored_is_locked_and_held_as_it_is_to_be() -> None:
    def sent(lock: Lock) -> dict[str, str]:
        return property_headers(Properties(lock=lock))

    until = {LOCK["mode"]: "COMPLIANCE", LOCK["until"]: "2026-11-28T10:00:00Z"}
    assert sent(UNLOCKED) == {}
    assert sent(Lock("COMPLIANCE", 1795860000)) == until
    assert sent(Lock("COMPLIANCE", 1795860000, is_held=True)) == until | {HOLD: "ON"}
    assert sent(Lock(is_held=True)) == {HOLD: "ON"}


# What an answer tells


def test_only_a_hash_of_all_bytes_is_the_objects_sha256() -> None:
    def found(value: bytes, etag: str) -> str:
        return object_of("k", told(ETag=etag, x_amz_checksum_sha256=b64encode(value).decode())).sha256

    assert found(bytes(32), "a" * 32) == bytes(32).hex()
    assert found(bytes(32), f"{'a' * 32}-2") == "", "it is of the hashes of parts"
    assert found(bytes(31), "a" * 32) == ""
    assert object_of("k", told(x_amz_checksum_sha256="none")).sha256 == ""


@pytest.mark.parametrize("told_", ["aws:kms", "aws:kms:dsse"])
def test_what_is_encrypted_by_kms_has_no_hash_for_an_etag(told_: str) -> None:
    assert object_of("k", told(x_amz_server_side_encryption=told_)).is_opaque
    assert not object_of("k", told(x_amz_server_side_encryption="AES256")).is_opaque


@pytest.mark.usefixtures("in_tokyo")
def test_a_time_without_a_zone_is_utc() -> None:
    assert modified(datetime.fromisoformat("2026-11-28T10:00:00")) == 1795860000


def test_a_leap_second_is_one_that_there_is() -> None:
    fields: dict[str, Any] = {"Last_Modified": "Sat, 31 Dec 2016 23:59:60 GMT"}
    assert object_of("k", told(**fields)).version.modified == 1483228799


def test_which_checksum_of_an_object_counts() -> None:
    """The cheapest that is one; nonsense and what is made of parts' checksums are none."""
    crc, sha = b64encode(b"1234").decode(), b64encode(bytes(32)).decode()

    def found(etag: str = ETAG, **told: str) -> Checksum | None:
        return checksums.in_headers({f"x-amz-checksum-{name}": value for name, value in told.items()}, etag)

    assert found(crc32=crc, sha256=sha) == Checksum("crc32", b"1234")
    assert found(crc32="nonsense!", sha256=sha) == Checksum("sha256", bytes(32))
    assert found(crc32=sha, sha256=f"{sha}-2") is None
    assert found(f"{ETAG}-2", crc32=crc) is None
    assert found(f"{ETAG}-2", crc32=crc, type="FULL_OBJECT") == Checksum("crc32", b"1234")
    assert found(crc32=crc, type="COMPOSITE") is None
    assert found() is None


def test_only_an_etag_of_this_form_is_a_hash() -> None:
    """Else what is read would be compared with what is none, and nobody could read it."""
    assert checksums.in_etag(ETAG) == Checksum("md5", bytes.fromhex(ETAG))
    for etag in (ETAG[:-2], f"{ETAG}00", f"{ETAG}-1", "x" * 32, ""):
        assert checksums.in_etag(etag) is None


def test_a_server_that_names_the_usual_class_says_no_more_than_one_that_does_not() -> None:
    for told_class, due in (("STANDARD", ""), ("", ""), ("COLD", "COLD")):
        assert object_of("k", told(x_amz_storage_class=told_class)).properties.storage_class == due
