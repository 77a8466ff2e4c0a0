"""Sign and send one S3 request, and judge its answer.

libcurl signs (`transport`), 0.08 ms of CPU a small request; botocore's signer what libcurl cannot: a path with `.`
or `..` in it, and all where libcurl is older than the one that was seen to sign every key, query and header right.
A try that failed on the way, or that the server did not want now, is made again as `retries` says: each request S3
knows may be sent twice. Only of a conditional one the second answer may speak of the first, and so an error tells
that it was `repeated`.

Safe from any thread; blocks its thread, releases the GIL while it waits.
"""

from __future__ import annotations

import errno
import logging
import math
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from enum import Enum
from hashlib import sha256
from typing import cast
from urllib.parse import quote, urlencode, urlsplit

from sosfs.concurrency.interrupt import Interrupt
from sosfs.config.credentials import Credentials
from sosfs.errors import StoreError, from_elsewhere, unanswered
from sosfs.s3 import certificate_authorities, retries, transport, xml
from sosfs.s3.body_hash import BodyHash
from sosfs.s3.endpoint import S3Target
from sosfs.s3.file_body import hashed
from sosfs.s3.http_headers import path_of
from sosfs.s3.http_messages import Fault, Fields, Reply, Request, Room, Signing, TransferError, document_room
from sosfs.s3.protocol import PartBody
from sosfs.s3.retries import CLOCK, Clock, Patience
from sosfs.s3.throttle import Throttle, asks_for_fewer
from sosfs.s3.traffic import Sending
from sosfs.s3.transport import PROXY_LOGIN, Transport
from sosfs.tracing.exchange import Exchange

log = logging.getLogger(__name__)

SIGNS_RIGHT = (8, 23, 0)  # libcurl; older ones sort queries, encode paths or fold blanks in their own ways
SHOWN = 60  # characters of what came in place of an answer
HASH_OF_NOTHING = {"x-amz-content-sha256": sha256(b"").hexdigest()}
UNSEEN = cast("AbstractContextManager[Sending | None]", nullcontext())  # of a request without a body
_DOTS = re.compile(r"(?:^|/)\.{1,2}(?:[/?]|$)")
_LINE_END = re.compile(rb"[\r\n\0]")
_TAGS = re.compile(r"<(script|style)\b.*?</\1\s*>|<[^>]*>|\s+", re.DOTALL | re.IGNORECASE)


class Pace(Enum):
    """How long the server may work before the first byte of its answer, as a multiple of the read time-out."""

    USUAL = 1
    SLOW = 5  # it copies or joins gigabytes first


@dataclass(frozen=True, slots=True)
class Answer:
    """A 2xx answer, whole. `repeated`: the request went out more than once, and an earlier one may have done it."""

    headers: Fields
    body: memoryview
    status: int = 200
    repeated: bool = False

    @property
    def document(self) -> bytes:
        """The body, where it is one to be read."""
        return self.body.tobytes()


class SignedHttp:
    """Requests to one endpoint, signed with one key; unsigned for nobody's.

    For a target without a bucket the keys are the names of buckets, and "" is the account.
    """

    def __init__(
        self, target: S3Target, credentials: Credentials, clock: Clock = CLOCK, *, throttle: Throttle | None = None
    ) -> None:
        url = urlsplit(target.endpoint)
        self._target = target
        self._key = credentials
        self._clock = clock
        self._origin = f"{url.scheme}://{url.netloc}"
        self._standing = target.payer.headers
        if credentials.token:
            self._standing["x-amz-security-token"] = credentials.token
        self._base = f"{url.path.rstrip('/')}/{target.bucket}".rstrip("/")
        self._signing = Signing(target.region, credentials.access_key, credentials.secret_key)
        self._congestion = throttle.congestion if throttle else None
        self._is_clear = target.is_clear
        bundle = target.ca_bundle or certificate_authorities.of_system().path
        self._transport = Transport(
            self._origin, ca_bundle=bundle, connect_timeout=target.connect_timeout, throttle=throttle
        )

    def close(self) -> None:
        """Closes the idle connections."""
        self._transport.close()

    def sweep(self) -> None:
        """Closes connections that nobody has used for a while."""
        self._transport.sweep()

    def send(
        self,
        operation: str,
        method: str,
        key: str = "",
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: PartBody = b"",
        body_hash: BodyHash = BodyHash.IN_CLEAR,
        pace: Pace = Pace.USUAL,
        room: Callable[[int, Fields], Room] = document_room,
        patience: float = math.inf,
        interrupt: Interrupt | None = None,
    ) -> Answer:
        """The 2xx answer to one request on `key`, or on the bucket where it is ""; all else is a StoreError.

        `room` tells how long the answer may be, or raises for one that is not taken (`http_messages.Request`). A
        `patience` below the target's own holds instead. EINTR once `interrupt` is set.
        """
        path = self._path(key, query)
        request = f"{operation} {key!r}" if key else operation
        told = {**self._digest(body, body_hash), **self._standing, **(headers or {})}

        def attempt() -> Reply:
            signed = self._signed(request, method, path, told, body, pace, room)
            try:
                return self._transport.exchange(replace(signed, moved=moved) if moved else signed, interrupt)
            except TransferError:
                if moved is not None:
                    moved(0)  # what had gone out is nowhere
                raise

        tried = Patience(min(patience, self._target.patience), self._clock)
        seen = self._target.traffic.sending(key) if method == "PUT" and body else UNSEEN
        with Exchange(operation, key, sent=len(body)) as exchange, seen as sending:
            moved = sending.at if sending is not None else None
            try:
                answer = self._persist(request, method, attempt, tried, interrupt)
            finally:
                exchange.tries = tried.tries
            exchange.received, exchange.status = len(answer.body), answer.status
        return answer

    def _path(self, key: str, query: Mapping[str, str] | None) -> str:
        path = f"{self._base}/{path_of(key)}" if key else self._base or "/"
        return f"{path}?{urlencode(query, quote_via=quote, safe='~')}" if query else path

    def _digest(self, body: PartBody, body_hash: BodyHash) -> dict[str, str]:
        """What is signed of a body; nothing is where nobody signs. A hash takes 0.5 s of CPU a GiB."""
        if self._key.is_nobody:
            return {}
        is_hashed = self._is_clear or body_hash is BodyHash.ALWAYS
        if is_hashed and not body:
            return HASH_OF_NOTHING
        return {"x-amz-content-sha256": hashed(sha256, body).hexdigest() if is_hashed else "UNSIGNED-PAYLOAD"}

    def _persist(
        self, request: str, method: str, attempt: Callable[[], Reply], patience: Patience, interrupt: Interrupt | None
    ) -> Answer:
        """Tries until there is an answer that stands, or the patience is over."""
        traffic, operation = self._target.traffic, request.partition(" ")[0]
        repeated = False
        while True:
            if interrupt:
                interrupt.check(request)
            pause, began = 0.0, self._clock.now()
            try:
                reply = attempt()
            except TransferError as fault:
                refusal, sends = failure(request, fault), fault.sends
                if fault.fault.is_of_server:
                    traffic.unanswered(str(fault))
                passes = may_pass(fault)
            else:
                repeated, sends = repeated or reply.sends > 1, reply.sends
                answer = refusal_of(
                    request, method, reply, proxy=self._transport.proxy, has_ids=operation in traffic.named
                )
                self._note(answer, began)
                if answer is not None and answer.elsewhere:
                    traffic.unanswered(answer.detail)
                else:
                    traffic.answered()
                if answer is None:
                    if xml.has_id(reply.headers):
                        traffic.named.add(operation)
                    if patience.tries > 1:
                        log.info("%s was tried %d times", request, patience.tries)
                    return Answer(reply.headers, reply.body, reply.status, repeated)
                refusal, passes = answer, retries.passes(answer.status, answer.code)
                pause = retries.retry_after(reply.headers)
            refusal.repeated = repeated
            if not passes or not patience.wait(pause, interrupt):
                if passes:
                    traffic.failed()
                raise refusal
            traffic.tried_again()
            repeated = repeated or sends > 0

    def _note(self, refusal: StoreError | None, began: float) -> None:
        """Lets an answer count for how many requests there may be at once."""
        if self._congestion is None:
            return
        if refusal is None:
            self._congestion.answered()
        elif asks_for_fewer(refusal.status, refusal.code):
            self._congestion.refused(began)

    def _signed(
        self,
        request: str,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: PartBody,
        pace: Pace,
        room: Callable[[int, Fields], Room],
    ) -> Request:
        ours = transport.VERSION < SIGNS_RIGHT or _DOTS.search(path) is not None
        if ours and not self._key.is_nobody:
            headers = self._signed_by_botocore(method, path, headers, body)
        lines = [f"{name}: {value}".encode() if value else f"{name};".encode() for name, value in headers.items()]
        if _LINE_END.search(b"".join(lines)):
            raise StoreError(errno.EINVAL, request, detail="a line end in a header")
        silence = self._target.read_timeout * pace.value
        signing = None if ours or self._key.is_nobody else self._signing
        return Request(method, path, lines, body, silence, signing, room)

    def _signed_by_botocore(self, method: str, path: str, headers: Mapping[str, str], body: PartBody) -> dict[str, str]:
        from botocore.auth import S3SigV4Auth  # noqa: PLC0415 - 0.2 s, for keys that few people have
        from botocore.awsrequest import AWSRequest  # noqa: PLC0415
        from botocore.config import Config  # noqa: PLC0415
        from botocore.credentials import Credentials as SigningKey  # noqa: PLC0415

        # It sets the token itself, from the key.
        given = {name: value for name, value in headers.items() if name != "x-amz-security-token"}
        request = AWSRequest(method=method, url=self._origin + path, headers=given, data=bytes(body))
        request.context["client_config"] = Config(s3={"payload_signing_enabled": self._is_clear})
        key = SigningKey(self._key.access_key, self._key.secret_key, self._key.token or None)
        S3SigV4Auth(key, "s3", self._target.region).add_auth(request)
        return dict(request.headers.items())


def failure(request: str, fault: TransferError) -> StoreError:
    """The error that it is when there is no whole answer."""
    if fault.fault is Fault.INTERRUPTED:
        return StoreError(errno.EINTR, request)
    return unanswered(request, str(fault), timed_out=fault.fault is Fault.SILENT)


def may_pass(fault: TransferError) -> bool:
    """Whether another try may fare better; a page that is too long may say "not now" as well."""
    return fault.fault.passes or (fault.fault is Fault.OVERLONG and retries.passes(fault.status, ""))


def refusal_of(request: str, method: str, reply: Reply, *, proxy: str = "", has_ids: bool = False) -> StoreError | None:
    """The error that an answer is, which came through `proxy`; None for a good one. `has_ids` as in `xml`."""
    status = reply.status
    body = b"" if status < 300 and method in ("GET", "HEAD") else bytes(reply.body)
    if 300 <= status < 400:
        code, _ = xml.error_of(body)
        return StoreError(errno.EIO, request, code=code, status=status, detail=_elsewhere(reply, body))
    if status == 407:
        return from_elsewhere(request, status=status, detail=f"proxy {proxy}: {PROXY_LOGIN}")

    def came() -> str:
        through = f" through proxy {proxy}" if proxy else ""
        return f"{shown(reply.headers, body)}{through}".strip()

    return xml.refusal_of(request, method, status, reply.headers, body, came=came, has_ids=has_ids)


def _elsewhere(reply: Reply, body: bytes) -> str:
    """Where a redirect would lead: the host of its Location, or the endpoint in the answer's XML."""
    host = _host(reply.headers.get("Location", "")) or xml.endpoint_of(body)
    place = f" to {host!r}" if host else ""
    return f"the server sends elsewhere{place}, where sosfs does not follow (HTTP {reply.status})"


def _host(location: str) -> str:
    """The host of a Location; "" for what is none."""
    try:
        return urlsplit(location).netloc
    except ValueError:
        return ""


def shown(headers: Fields, body: bytes = b"") -> str:
    """What came in place of what was asked for: its type and first words; "" for nothing."""
    text = _TAGS.sub(" ", body[:4096].decode(errors="replace"))
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    kind = headers.get("Content-Type", "").partition(";")[0].strip()
    words = f"{text[:SHOWN]!r}" if text else ""
    return " ".join(filter(None, (kind, words)))
