"""The fast lane: GET, HEAD and small PUT of ordinary keys through obstore (Rust), 0.35 ms of CPU a request.

Which requests it can carry is decided here and only here (`ordinary`, `can_put`); all others take the signed
lane, and so does an object whose headers obstore can't read, which raises `Unfit`. obstore tries again by
itself what fails on the way, a body cut short included, for as long as `S3Target.patience`.

Safe from any thread; each call blocks its thread and releases the GIL.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from sosfs.answers import refusal_of
from sosfs.credentials import Credentials
from sosfs.errors import StoreError, unanswered
from sosfs.store import Body, Detail, Headers, Object, Properties, Slice, Version
from sosfs.target import Payer, S3Target
from sosfs.wire import META, STORAGE_CLASS, bare_etag, decoded, modified, property_headers

if TYPE_CHECKING:
    from obstore import Attributes, GetOptions, GetResult, PutMode
    from obstore.store import ClientConfig, RetryConfig, S3Config

SMALL = 1 << 20  # bytes; reqwest's read time-out counts while it sends, so that a large body on a slow line fails
CONNECTIONS = "64"
TRIES = 8
_ODD = re.compile(r"(?:^|/)\.{0,2}(?:/|$)|[\x00-\x1f\x7f]")  # what obstore's Path refuses, or strips off
_STATUS = re.compile(r"non-2xx status code: (\d{3})[^:]*: ?(.*?)\n\nDebug source:", re.DOTALL)
_RESERVED = frozenset(
    ("content-type", "cache-control", "content-disposition", "content-encoding", "content-language", "storage-class")
)


class Unfit(Exception):
    """obstore can't say what the server told; ask through the signed lane."""


def ordinary(key: str) -> bool:
    """Whether obstore sends this key as it is: no empty, `.` or `..` segment and no control character."""
    return not _ODD.search(key)


def can_put(key: str, body: Body, properties: Properties) -> bool:
    """Whether obstore can store this as it is: it has no `Expires`, and one name space for headers and metadata."""
    headers = properties.headers
    return (
        len(body) <= SMALL
        and ordinary(key)
        and not headers.expires
        and all(value.isascii() for value in (headers.content_type, headers.content_disposition))
        and _RESERVED.isdisjoint(properties.metadata)
    )


class ObstoreLane:
    """The calls on one bucket, by one key."""

    def __init__(self, target: S3Target, credentials: Credentials) -> None:
        config: S3Config = {
            "endpoint": target.endpoint.rstrip("/"),
            "region": target.region,
            "access_key_id": credentials.access_key,
            "secret_access_key": credentials.secret_key,
            "virtual_hosted_style_request": False,
            "unsigned_payload": target.endpoint.startswith("https:"),  # TLS keeps the body whole already
        }
        if credentials.token:
            config["session_token"] = credentials.token
        if target.customer_key:
            config["server_side_encryption"] = "sse-c"
            config["sse_customer_key_base64"] = target.customer_key.base64
        if target.payer is Payer.REQUESTER:
            config["request_payer"] = True
        options: ClientConfig = {
            "allow_http": True,
            "connect_timeout": timedelta(seconds=target.connect_timeout),
            "read_timeout": timedelta(seconds=target.read_timeout),
            "timeout": timedelta(hours=1),  # of a whole request; the others say when nothing moves
            "pool_max_idle_per_host": CONNECTIONS,
        }
        patience = timedelta(seconds=target.patience)

        def store(tries: int) -> S3Store:
            retries: RetryConfig = {"max_retries": tries, "retry_timeout": patience}
            return S3Store(target.bucket, config=config, client_options=options, retry_config=retries)

        self._store = store(TRIES)
        self._once = store(0)

    def head(self, key: str) -> Object:
        """As HEAD tells it, but for `expires`, the storage class and the version id."""
        return _object(key, self._ask("HeadObject", key, {"head": True}))

    def get(self, key: str, start: int, stop: int, if_match: str) -> Slice:
        """The bytes of the range; `if_match` is an If-Match header's value, "" for none."""
        options: GetOptions = {"range": (start, stop)}
        if if_match:
            options["if_match"] = if_match
        answer = self._ask("GetObject", key, options)
        try:
            body = memoryview(answer.bytes())
        except (BaseError, OSError, ValueError) as error:
            raise _refusal("GetObject", key, error) from error
        return Slice(_object(key, answer), body)

    def _ask(self, operation: str, key: str, options: GetOptions) -> GetResult:
        try:
            return obstore.get(self._store, key, options=options)
        except (BaseError, OSError, ValueError) as error:
            raise _refusal(operation, key, error) from error

    def put(self, key: str, body: Body, properties: Properties, condition: Mapping[str, str]) -> Version:
        """Stores the object; under a `condition` (its header) with one try only.

        obstore does not tell its tries, so that the refusal of a second one would look like a lost race.
        """
        store, mode = (self._once, _mode(condition)) if condition else (self._store, "overwrite")
        attributes: Attributes = {_name(header): value for header, value in property_headers(properties).items()}
        try:
            answer = obstore.put(store, key, body, attributes=attributes, mode=mode, use_multipart=False)
        except (BaseError, OSError, ValueError) as error:
            raise _refusal("PutObject", key, error) from error
        return Version(bare_etag(answer["e_tag"] or ""), len(body))


def _name(header: str) -> str:
    """What obstore calls a header; user metadata has its plain name."""
    return "Storage-Class" if header == STORAGE_CLASS else header.removeprefix(META)


def _mode(condition: Mapping[str, str]) -> PutMode:
    return {"e_tag": condition["If-Match"]} if "If-Match" in condition else "create"


def _object(key: str, answer: GetResult) -> Object:
    meta, told = answer.meta, dict(answer.attributes)
    headers = Headers(
        content_type=told.pop("Content-Type", ""),
        cache_control=told.pop("Cache-Control", ""),
        content_disposition=told.pop("Content-Disposition", ""),
        content_encoding=told.pop("Content-Encoding", ""),
        content_language=told.pop("Content-Language", ""),
    )
    version = Version(bare_etag(meta["e_tag"] or ""), meta["size"], modified(meta["last_modified"]))
    metadata = {name: decoded(value) for name, value in told.items()}
    return Object(
        key,
        version,
        Properties(headers, metadata),
        detail=Detail.USUAL,
        version_id=meta["version"] or "",
    )


def _refusal(operation: str, key: str, error: Exception) -> StoreError | Unfit:
    """obstore tells status and body of a refusal only inside its message, and so they are read from there."""
    text, request = str(error), f"{operation} {key!r}"
    if found := _STATUS.search(text):
        return refusal_of(request, "GET", int(found[1]), {}, found[2].encode()) or Unfit(text)
    if "Error performing" not in text and "error decoding response body" not in text:
        return Unfit(text)
    detail = text.partition("\n\nDebug source:")[0]
    return unanswered(request, detail, timed_out="timed out" in text or "TimedOut" in text)
