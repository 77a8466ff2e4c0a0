"""One signed HTTP request to S3 and its whole answer: how it is sent and when it is tried again, decided here only.

botocore's signer signs (60 µs) and urllib3 sends, pools and retries; a small request costs 0.6 ms of CPU here
where a boto3 client takes 1.6. A try that failed on the way or with 429 or 5xx is made again, backing off, until
`S3Target.patience` is over: each request S3 knows may be sent twice. Only of a conditional one the second
answer may speak of the first, and so an error tells that it was `repeated`.

Safe from any thread; blocks its thread, releases the GIL while it waits.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlencode, urlsplit

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials as SigningKey
from urllib3 import BaseHTTPResponse, Retry, Timeout, connection_from_url
from urllib3.connectionpool import ConnectionPool
from urllib3.exceptions import ConnectTimeoutError, HTTPError, MaxRetryError, NewConnectionError, TimeoutError

from sosfs.answers import error_of
from sosfs.credentials import Credentials
from sosfs.errors import from_s3, unanswered
from sosfs.store import Body
from sosfs.target import S3Target
from sosfs.wire import path_of

log = logging.getLogger(__name__)
logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # it warns of each try, without saying of what

CONNECTIONS = 64  # kept open; more than both limiters of the facade let run at once
CHUNK = 1 << 18  # bytes a send; the socket's time-out counts for each, so that a slow line may take its time
TRIES = 8
PASSING = frozenset({429, 500, 502, 503, 504})
PASSING_CODES = frozenset({"InternalError", "SlowDown", "ServiceUnavailable", "RequestTimeout"})


class Pace(Enum):
    """How long the server may work before the first byte of its answer, as a multiple of the read time-out."""

    USUAL = 1
    SLOW = 5  # it copies or joins gigabytes first


@dataclass(frozen=True, slots=True)
class Answer:
    """A 2xx answer, read wholly."""

    headers: Mapping[str, str]
    body: bytes
    repeated: bool = False  # an earlier try may have taken effect


class _Patience(Retry):
    """urllib3's Retry, that begins no further try after `deadline` (on the monotonic clock)."""

    deadline = float("inf")

    def new(self, **kw: Any) -> Self:
        fresh = super().new(**kw)
        fresh.deadline = self.deadline
        return fresh

    def increment(
        self,
        method: str | None = None,
        url: str | None = None,
        response: BaseHTTPResponse | None = None,
        error: Exception | None = None,
        _pool: ConnectionPool | None = None,
        _stacktrace: TracebackType | None = None,
    ) -> Self:
        if time.monotonic() > self.deadline:
            self.total = 0
        return super().increment(method, url, response, error, _pool, _stacktrace)


class SignedHttp:
    """A pool of connections to one endpoint, and one key that signs.

    For a target without a bucket the keys are the names of buckets, and "" is the account.
    """

    def __init__(self, target: S3Target, credentials: Credentials) -> None:
        url = urlsplit(target.endpoint)
        self._target = target
        self._origin = f"{url.scheme}://{url.netloc}"
        self._standing = target.payer.headers
        self._base = f"{url.path.rstrip('/')}/{target.bucket}".rstrip("/")
        self._pool = connection_from_url(self._origin, maxsize=CONNECTIONS)
        key = SigningKey(credentials.access_key, credentials.secret_key, credentials.token or None)
        self._signer = S3SigV4Auth(key, "s3", target.region)
        # TLS keeps the body whole already; in the clear its hash is signed (0.6 s of CPU a GB).
        self._signing = Config(s3={"payload_signing_enabled": url.scheme != "https"})

    def send(
        self,
        operation: str,
        method: str,
        key: str = "",
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: Body = b"",
        pace: Pace = Pace.USUAL,
    ) -> Answer:
        """The 2xx answer to one request on `key`, or on the bucket where it is ""; all else is a StoreError."""
        path = f"{self._base}/{path_of(key)}" if key else self._base or "/"
        if query:
            path = f"{path}?{urlencode(query, quote_via=quote, safe='~')}"
        signed = self._sign(method, path, {**self._standing, **(headers or {})}, body)
        request = f"{operation} {key!r}" if key else operation
        try:
            answer = self._exchange(method, path, signed, body, pace)
        except HTTPError as error:
            reason = (error.reason if isinstance(error, MaxRetryError) else None) or error
            silent = isinstance(reason, TimeoutError) and not isinstance(reason, NewConnectionError)
            raise unanswered(request, str(reason), timed_out=silent) from error
        if answer.retries and answer.retries.history:
            log.info("%s was tried %d times", request, len(answer.retries.history) + 1)
        code, message = _late_error(method, answer) if answer.status < 300 else error_of(answer.data)
        if code or answer.status >= 300:
            refusal = from_s3(request, code=code, status=answer.status, detail=message)
            refusal.repeated = _repeated(answer)
            raise refusal
        return Answer(answer.headers, answer.data, _repeated(answer))

    def _sign(self, method: str, path: str, headers: Mapping[str, str], body: Body) -> dict[str, bytes]:
        """The headers with the signature. As bytes: what is not ASCII is signed and sent as UTF-8."""
        request = AWSRequest(method=method, url=self._origin + path, headers=dict(headers), data=body)
        request.context["client_config"] = self._signing
        self._signer.add_auth(request)
        signed = {name: value.encode() for name, value in request.headers.items()}
        if body or method in ("PUT", "POST"):
            signed["Content-Length"] = str(len(body)).encode()
        return signed

    def _exchange(self, method: str, path: str, headers: dict[str, bytes], body: Body, pace: Pace) -> BaseHTTPResponse:
        retries: Retry = self._retries()
        while True:
            answer = self._pool.urlopen(  # not PoolManager: it would resolve the `..` of a key
                method,
                path,
                body=_chunks(body) if body else None,  # type: ignore[arg-type]  # of buffers: http.client takes them
                headers=headers,  # type: ignore[arg-type]  # urllib3 passes bytes on to http.client, which takes them
                retries=retries,
                redirect=False,
                decode_content=False,  # an object with Content-Encoding is its encoded bytes
                timeout=Timeout(connect=self._target.connect_timeout, read=self._target.read_timeout * pace.value),
            )
            if _late_error(method, answer)[0] not in PASSING_CODES:
                return answer
            retries = (answer.retries or retries).increment(method, path, response=answer)
            retries.sleep(answer)

    def _retries(self) -> Retry:
        retries = _Patience(
            total=TRIES,
            allowed_methods=None,
            status_forcelist=PASSING,
            backoff_factor=0.1,
            backoff_max=5.0,
            backoff_jitter=0.2,
            raise_on_status=False,
            retry_after_max=5,
        )
        retries.deadline = time.monotonic() + self._target.patience
        return retries

    def close(self) -> None:
        """Closes the idle connections."""
        self._pool.close()


def _chunks(body: Body) -> Sequence[memoryview]:
    view = memoryview(body)
    return [view[at : at + CHUNK] for at in range(0, len(view), CHUNK)]


def _late_error(method: str, answer: BaseHTTPResponse) -> tuple[str, str]:
    """Code and message of the error in a 200: CopyObject and CompleteMultipartUpload answer before they are done.

    Never looked for in the answer to a GET, whose body may be the user's.
    """
    if answer.status != 200 or method not in ("PUT", "POST") or b"<Error" not in answer.data[:512]:
        return "", ""
    return error_of(answer.data)


def _repeated(answer: BaseHTTPResponse) -> bool:
    """Whether a try before this answer may have reached the server: any but those that found no connection."""
    history = answer.retries.history if answer.retries else ()
    return any(not isinstance(past.error, NewConnectionError | ConnectTimeoutError) for past in history)
