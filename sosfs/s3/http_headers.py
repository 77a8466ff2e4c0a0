"""Keys, properties and versions as HTTP headers.

User metadata is text for us and ASCII on the wire: a value that HTTP would not carry as it is becomes an
RFC 2047 encoded word (which is what S3 itself answers for such values), and raw UTF-8 written by other
tools is understood. Pure functions, safe from any thread.
"""

from __future__ import annotations

import binascii
import contextlib
import errno
import math
import re
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from email.errors import MessageError
from email.header import decode_header, make_header
from email.utils import parsedate_to_datetime
from functools import lru_cache, partial
from hashlib import md5
from urllib.parse import quote

from sosfs.config.choices import Canned
from sosfs.errors import StoreError
from sosfs.s3 import checksums
from sosfs.s3.file_body import hashed
from sosfs.s3.protocol import (
    KEY_MAX,
    METADATA_MAX,
    UNLOCKED,
    Acl,
    Headers,
    Lock,
    Object,
    Part,
    PartBody,
    Properties,
    Version,
)

META = "x-amz-meta-"
STORAGE_CLASS = "x-amz-storage-class"
LOCK_MODE = "x-amz-object-lock-mode"
LOCK_UNTIL = "x-amz-object-lock-retain-until-date"
LOCK_HOLD = "x-amz-object-lock-legal-hold"
TIME_END = 1 << 33  # seconds: the year 2242
STANDARD = "STANDARD"  # the class of what is stored without naming one
SYSTEM = {
    "content_type": "Content-Type",
    "cache_control": "Cache-Control",
    "content_disposition": "Content-Disposition",
    "content_encoding": "Content-Encoding",
    "content_language": "Content-Language",
    "expires": "Expires",
}
_SYSTEM_FIELD = {name.lower(): field for field, name in SYSTEM.items()}
GRANT = {
    "READ": "x-amz-grant-read",
    "WRITE": "x-amz-grant-write",
    "READ_ACP": "x-amz-grant-read-acp",
    "WRITE_ACP": "x-amz-grant-write-acp",
    "FULL_CONTROL": "x-amz-grant-full-control",
}
_TOKEN = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]+")  # RFC 9110 "token", lower-case: the name of a header field
_PLAIN = re.compile(r"(?:[!-~]+(?: [!-~]+)*)?")  # printable ASCII with single blanks inside: HTTP may fold others
_ENCODED = re.compile(r"=\?[^?\s]+\?[bBqQ]\?[^?\s]*\?=(?:\s+=\?[^?\s]+\?[bBqQ]\?[^?\s]*\?=)*")
_DATE = re.compile(r"[A-Z][a-z]{2}, (\d\d) ([A-Z][a-z]{2}) (\d{4}) (\d\d):(\d\d):(\d\d) GMT", re.ASCII)
_MONTHS = "JanFebMarAprMayJunJulAugSepOctNovDec"
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_ETAG = re.compile(r'[^\x00-\x20"\x7f]+')  # RFC 9110, 8.8.3


def check_key(key: str) -> None:
    """Raises EINVAL or ENAMETOOLONG for what no S3 server takes as a key, before anything is sent."""
    try:
        size = len(key.encode())
    except UnicodeEncodeError as error:
        raise StoreError(errno.EINVAL, f"key {key!r}", detail="not UTF-8") from error
    if size == 0:
        raise StoreError(errno.EINVAL, "key ''", detail="empty key")
    if size > KEY_MAX:
        raise StoreError(errno.ENAMETOOLONG, f"key {key!r}", detail=f"{size} bytes, at most {KEY_MAX}")


def path_of(key: str) -> str:
    """The key as S3 signs and sends it in a URL: all but the unreserved characters and `/` in percent form."""
    return quote(key, safe="/~")


def bare_etag(text: str) -> str:
    """An ETag without its quotes and without the mark of a weak one."""
    return text.removeprefix("W/").strip('"')


def is_etag(bare: str) -> bool:
    """Whether it may be an object's: a header that came twice makes none, nor does an empty one."""
    return _ETAG.fullmatch(bare) is not None


def content_md5(body: PartBody) -> dict[str, str]:
    """The Content-MD5 that S3 demands with the documents of a few calls, and with what it is to lock."""
    return {"Content-MD5": b64encode(hashed(partial(md5, usedforsecurity=False), body).digest()).decode()}


def joined_etag(parts: Sequence[Part]) -> str:
    """What S3 makes the ETag of joined parts: the hash of their hashes, and how many they are.

    "" where a part's ETag is no hash (a server that encrypts), which no object has.
    """
    try:
        digests = b"".join(bytes.fromhex(part.etag) for part in sorted(parts, key=lambda part: part.number))
    except ValueError:
        return ""
    return f"{md5(digests, usedforsecurity=False).hexdigest()}-{len(parts)}"


def property_headers(properties: Properties) -> dict[str, str]:
    """The request headers that carry `properties`.

    EINVAL for a name or value that no header can carry, ENOSPC above the 2 kB of SOS ("Limits and quotas").
    """
    found: dict[str, str] = {}
    for field, name in SYSTEM.items():
        value: str = getattr(properties.headers, field)
        if _CONTROL.search(value):
            raise StoreError(errno.EINVAL, f"header {name}", detail="control character")
        if value:
            found[name] = value
    size = 0
    for name, value in properties.metadata.items():
        if not _TOKEN.fullmatch(name):
            raise StoreError(errno.EINVAL, f"metadata {name!r}", detail="not a lower-case header name")
        sent = _encoded(name, value)
        size += len(name) + len(sent)
        found[META + name] = sent
    found |= class_header(properties.storage_class) | lock_headers(properties.lock)
    if size > METADATA_MAX:
        raise StoreError(errno.ENOSPC, "metadata", detail=f"{size} bytes, at most {METADATA_MAX}")
    return found


def lock_headers(lock: Lock) -> dict[str, str]:
    """The request headers that lock what is stored; none for what is not to be locked."""
    told = {LOCK_MODE: lock.mode, LOCK_UNTIL: iso_time(lock.until)} if lock.mode else {}
    return told | ({LOCK_HOLD: "ON"} if lock.is_held else {})


def iso_time(seconds: float) -> str:
    """A moment as S3 writes it in documents: UTC, whole seconds."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def lock_of(key: str, headers: Mapping[str, str]) -> Lock:
    """The lock that an answer's headers tell of. EIO where its end is no time: nobody may take that for unlocked."""
    mode, until = headers.get(LOCK_MODE, ""), headers.get(LOCK_UNTIL, "")
    is_held = headers.get(LOCK_HOLD, "").upper() == "ON"
    if not mode:
        return Lock(is_held=True) if is_held else UNLOCKED
    try:
        ends = datetime.fromisoformat(until)
        return Lock(mode.upper(), math.ceil((ends if ends.tzinfo else ends.replace(tzinfo=UTC)).timestamp()), is_held)
    except (ValueError, OverflowError) as error:
        why = f"it is locked until {until!r}, which is no time"
        raise StoreError(errno.EIO, f"HeadObject {key!r}", detail=why) from error


def class_header(storage_class: str | None) -> dict[str, str]:
    """The request header that stores an object in a class; none for STANDARD, which is what S3 makes of that."""
    return {STORAGE_CLASS: storage_class} if storage_class else {}


def class_of(told: str) -> str:
    """The storage class that an answer names, "" for STANDARD: some servers name it, others do not."""
    return "" if told == STANDARD else told


def check_properties(properties: Properties | None) -> None:
    """Raises what `property_headers` would, before anything is sent."""
    if properties:
        property_headers(properties)


def _encoded(name: str, value: str) -> str:
    """The value as header text; what reads back as something else in plain form becomes an encoded word."""
    if _PLAIN.fullmatch(value) and "=?" not in value:
        return value
    try:
        return f"=?UTF-8?B?{b64encode(value.encode()).decode()}?="
    except UnicodeEncodeError as error:
        raise StoreError(errno.EINVAL, f"metadata {name!r}", detail="value is not UTF-8") from error


def decoded(value: str) -> str:
    """The text of a metadata value: encoded words resolved, raw UTF-8 understood, all else as it came."""
    if _ENCODED.fullmatch(value):
        with contextlib.suppress(MessageError, LookupError, ValueError):
            text = str(make_header(decode_header(value)))
            text.encode()  # half a surrogate pair could be sent by nobody
            return text
    return _utf8(value)


def _utf8(value: str) -> str:
    """HTTP libraries read header bytes as Latin-1; other tools write UTF-8 into them."""
    if value.isascii():
        return value
    try:
        return value.encode("latin-1").decode()
    except UnicodeError:
        return value


def grant_headers(acl: Acl | Canned | None) -> dict[str, str]:
    """The `x-amz-grant-*` or `x-amz-acl` headers for a new object; none for the default, which is private."""
    if isinstance(acl, Canned):
        return {"x-amz-acl": acl.value}
    if acl is None or acl.is_private:
        return {}
    grantees: dict[str, list[str]] = {}
    for grant in acl.grants:
        if grant.permission not in GRANT:
            raise StoreError(errno.EINVAL, "grant", detail=f"no such permission: {grant.permission}")
        kind = "uri" if grant.grantee.startswith("http") else "id"
        grantees.setdefault(GRANT[grant.permission], []).append(f'{kind}="{grant.grantee}"')
    return {name: ", ".join(who) for name, who in grantees.items()}


def object_of(key: str, headers: Mapping[str, str], *, size: int | None = None) -> Object:
    """The object that the answer's headers describe; `size` where Content-Length counts a range only."""
    system, metadata = {}, {}
    for told, value in headers.items():
        name = told.lower()
        if name.startswith(META):
            metadata[name[len(META) :]] = decoded(value)
        elif name in _SYSTEM_FIELD:
            system[_SYSTEM_FIELD[name]] = _utf8(value)
    version = Version(
        etag=bare_etag(headers.get("ETag", "")),
        size=int(headers.get("Content-Length", "0")) if size is None else size,
        modified=_http_date(headers["Last-Modified"]) if "Last-Modified" in headers else None,
    )
    return Object(
        key,
        version,
        Properties(_shared_headers(*system.items()), metadata, class_of(headers.get(STORAGE_CLASS, ""))),
        version_id=headers.get("x-amz-version-id", ""),
        sha256="" if "-" in version.etag else _sha256(headers.get("x-amz-checksum-sha256", "")),
        checksum=checksums.in_headers(headers, version.etag),
        answered=_clock(headers.get("Date", "")),
        is_opaque=headers.get("x-amz-server-side-encryption", "").startswith("aws:kms"),
        lock=lock_of(key, headers),
    )


@lru_cache(256)
def _shared_headers(*fields: tuple[str, str]) -> Headers:
    """Most objects of a bucket have the same ones."""
    return Headers(**dict(fields))


def _sha256(told: str) -> str:
    """The hash in hex; "" for none. One of a multipart upload (`BASE64-N`) is of its parts' hashes, so it is none."""
    if not told:
        return ""
    try:
        digest = b64decode(told, validate=True)
    except (binascii.Error, ValueError):
        return ""
    return digest.hex() if len(digest) == 32 else ""


def _clock(told: str) -> int:
    """The time in a Date header, 0 for none or nonsense: no object depends on it."""
    try:
        return _http_date(told) if told else 0
    except (ValueError, TypeError, OverflowError):
        return 0


@lru_cache(256)  # of many objects that are asked for together most were changed, and all answered, in few seconds
def _http_date(text: str) -> int:
    """Seconds since the epoch of an HTTP date. Raises ValueError, or OverflowError, for what is none.

    All servers write the one form that RFC 9110 (5.6.7) prefers, which is read in 3 us instead of 15.
    """
    found = _DATE.fullmatch(text)
    if found and (month := _MONTHS.find(found[2])) % 3 == 0:
        day, year, hour, minute, second = (int(found[group]) for group in (1, 3, 4, 5, 6))
        return modified(datetime(year, month // 3 + 1, day, hour, minute, min(second, 59), tzinfo=UTC))
    return modified(parsedate_to_datetime(text))


def modified(moment: datetime) -> int:
    """Last-Modified as a `Version` carries it: a listing's fractions are dropped, since HEAD has none.

    ValueError for a time that no object has, and that would not fit into 64 bits of nanoseconds.
    """
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    seconds = int(moment.timestamp())
    if not 0 <= seconds < TIME_END:
        raise ValueError(f"changed at {moment}")
    return seconds
