"""ACL, CORS, versioning, policy and old versions of a bucket; `protection_settings` has the others.

What is not set at the server is "" or an empty list here, never an error; everything that is refused is a
`StoreError`. CORS, versioning and policy are written, signed and read by botocore. It takes an answer that it does not
know for one in which nothing is set, and follows a server to another: so each answer is looked at before it parses it.
It is imported with the first call, not before the daemon has forked.

Concurrency: calls are made from the trio thread and run in threads of the `Dispatcher`, which renews the key.
"""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast
from urllib.parse import urlsplit

from sosfs.concurrency.interrupt import Interrupt
from sosfs.config.choices import Canned
from sosfs.config.credentials import Credentials
from sosfs.errors import SERVER_FAILED, StoreError, from_s3, unanswered
from sosfs.s3 import certificate_authorities, retries
from sosfs.s3.dispatch import Dispatcher
from sosfs.s3.endpoint import S3Target
from sosfs.s3.http_headers import content_md5
from sosfs.s3.http_messages import Request, TransferError
from sosfs.s3.protocol import UNKNOWN, Acl, Slice
from sosfs.s3.retries import Patience
from sosfs.s3.version_answers import VersionEntry
from sosfs.s3.version_history import VersionHistory
from sosfs.s3.xml import ParseError, name_of, refusal_of, root_of, tree

if TYPE_CHECKING:
    from botocore.awsrequest import AWSPreparedRequest, AWSResponse
    from mypy_boto3_s3 import S3Client

    from sosfs.s3.calls import SignedCalls
    from sosfs.s3.transport import Transport

T = TypeVar("T")

PASSING = 429  # and all from 500 on: what botocore tries again
# What answers a question: the root of the XML.
ROOTS = {
    "GetBucketCors": ("CORSConfiguration",),
    "GetBucketVersioning": ("VersioningConfiguration", "GetBucketVersioningResponse"),  # the second is moto's
    "GetBucketLifecycleConfiguration": ("LifecycleConfiguration",),
    "GetObjectLockConfiguration": ("ObjectLockConfiguration",),
    "GetBucketOwnershipControls": ("OwnershipControls",),
    "GetBucketEncryption": ("ServerSideEncryptionConfiguration",),
    "GetBucketReplication": ("ReplicationConfiguration",),
}
OF_LIBCURL = frozenset({"content-length", "user-agent", "expect"})  # headers that it sets by itself
LISTED = "ListBucketResult"  # what a server that does not know one of these (Ceph 16) answers to its GET
PROTECTION = frozenset(
    {
        *("GetBucketLifecycleConfiguration", "GetObjectLockConfiguration", "GetBucketOwnershipControls"),
        *("GetBucketEncryption", "GetBucketReplication"),
    }
)
NOT_SET = frozenset(
    {
        *("NoSuchCORSConfiguration", "NoSuchBucketPolicy", "NoSuchLifecycleConfiguration"),
        *("ObjectLockConfigurationNotFoundError", "OwnershipControlsNotFoundError"),
        *("ServerSideEncryptionConfigurationNotFoundError", "ReplicationConfigurationNotFoundError"),
    }
)


class Versioning(Enum):
    """Whether a bucket keeps what is overwritten or deleted. Once enabled it can only be suspended."""

    OFF = "off"
    ENABLED = "enabled"
    SUSPENDED = "suspended"


@dataclass(frozen=True, slots=True)
class Kept:
    """One version of an object as a listing of versions shows it. `modified` is seconds since the epoch."""

    key: str
    version_id: str
    etag: str
    size: int
    modified: float


class _Turn(threading.local):
    """What botocore does not pass on of a thread's call: what ends it, whether to try again, how long to wait."""

    interrupt: Interrupt | None = None
    may_pass = False
    pause = 0.0


class BucketSettings:
    """The settings of one bucket."""

    def __init__(self, target: S3Target, dispatcher: Dispatcher) -> None:
        self._target = target
        self._dispatcher = dispatcher
        self._history = VersionHistory(dispatcher)
        self._lock = threading.Lock()  # botocore makes clients safely in one thread only
        self._clients: dict[Credentials, S3Client] = {}
        self._turn = _Turn()
        self._transport: Transport | None = None

    def close(self) -> None:
        """Closes idle connections; no request may be under way or follow."""
        if self._transport is not None:
            self._transport.close()

    def sweep(self) -> None:
        """Closes connections that nobody has used for a while."""
        if self._transport is not None:
            self._transport.sweep()

    async def acl(self) -> Acl:
        """The bucket's ACL."""
        return await self._dispatcher.send("GetBucketAcl", lambda calls: calls.get_acl(""))

    async def put_acl(self, acl: Acl | Canned) -> None:
        """Replaces the bucket's ACL."""
        await self._dispatcher.send("PutBucketAcl", lambda calls: calls.put_acl("", acl))

    async def cors(self) -> list[dict[str, Any]]:
        """The CORS rules, none where there are none."""
        answer = await self.call("GetBucketCors", lambda client, name: client.get_bucket_cors(Bucket=name))
        return [dict(rule) for rule in answer.get("CORSRules", ())] if answer else []

    async def put_cors(self, rules: Sequence[Any]) -> None:
        """Replaces the CORS rules; none removes them."""
        if not rules:
            await self.call("DeleteBucketCors", lambda client, name: client.delete_bucket_cors(Bucket=name))
            return
        document: Any = {"CORSRules": list(rules)}
        await self.call(
            "PutBucketCors", lambda client, name: client.put_bucket_cors(Bucket=name, CORSConfiguration=document)
        )

    async def versioning(self) -> Versioning:
        """Whether old versions are kept."""
        answer = await self.call("GetBucketVersioning", lambda client, name: client.get_bucket_versioning(Bucket=name))
        state = answer.get("Status", "") if answer else ""
        return Versioning(state.lower() or "off")

    async def put_versioning(self, state: Versioning) -> None:
        """Enables or suspends versioning."""
        wanted: Any = {"Status": state.value.capitalize()}
        await self.call(
            "PutBucketVersioning",
            lambda client, name: client.put_bucket_versioning(Bucket=name, VersioningConfiguration=wanted),
        )

    async def policy(self) -> str:
        """The bucket policy as the server keeps it, "" where there is none."""
        answer = await self.call("GetBucketPolicy", lambda client, name: client.get_bucket_policy(Bucket=name))
        return str(answer["Policy"]) if answer else ""

    async def put_policy(self, text: str) -> None:
        """Replaces the bucket policy; "" removes it."""
        if not text:
            await self.call("DeleteBucketPolicy", lambda client, name: client.delete_bucket_policy(Bucket=name))
            return
        await self.call("PutBucketPolicy", lambda client, name: client.put_bucket_policy(Bucket=name, Policy=text))

    async def versions_under(self, prefix: str) -> tuple[list[Kept], list[str]]:
        """The versions of the keys that begin with `prefix`, newest first for each, and the prefixes folded at `/`."""
        kept: list[Kept] = []
        folded: dict[str, None] = {}
        async for page in self._history.pages(prefix, delimiter="/"):
            kept += _kept(page.entries)
            folded |= dict.fromkeys(page.prefixes)
        return kept, list(folded)

    async def versions_of(self, key: str) -> list[Kept]:
        """The versions of one key, newest first."""
        return _kept(await self._history.of_key(key))

    async def has_versions_under(self, prefix: str) -> bool:
        """Whether a key that begins with `prefix` has versions."""
        async for page in self._history.pages(prefix, limit=1):
            if page.entries:
                return True
        return False

    async def read(self, key: str, version_id: str, start: int, stop: int) -> Slice:
        """The bytes `[start, stop)` of the version that has this id now. ENOENT where none has it."""
        return await self._dispatcher.send(
            "GetObject",
            lambda calls: calls.get(key, start, stop, "", version_id=version_id),
            size=stop - start,
        )

    async def call(self, request: str, work: Callable[[S3Client, str], T], *, size: int = 0) -> T | None:
        """Does `work` in a thread; None where the server says that nothing is set. `request` names the operation."""

        def call(calls: SignedCalls) -> T | None:
            patience, turn = Patience(self._target.patience), self._turn
            turn.interrupt = calls.interrupt
            while True:
                if turn.interrupt:
                    turn.interrupt.check(request)
                turn.pause, turn.may_pass = 0.0, False
                try:
                    return self._once(request, work, self._client(request, calls.key))
                except StoreError as error:
                    passes = retries.passes(error.status, error.code) or turn.may_pass
                    if not passes or not patience.wait(turn.pause, turn.interrupt):
                        raise

        return await self._dispatcher.send(request.partition(" ")[0], call, size=size)

    def _once(self, request: str, work: Callable[[S3Client, str], T], client: S3Client) -> T | None:
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415 - not before the fork

        try:
            return work(client, self._target.bucket)
        except StoreError as error:
            if error.code in NOT_SET:
                return None
            raise
        except ClientError as error:
            said = error.response.get("Error", {})
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            detail = said.get("Message", "")
            raise from_s3(request, code=said.get("Code", ""), status=status, detail=detail) from error
        except (BotoCoreError, LookupError, ValueError, TypeError, OverflowError) as error:
            raise unanswered(request, f"answer not understood: {error!r}") from error

    def _client(self, request: str, key: Credentials) -> S3Client:
        with self._lock:
            if key not in self._clients:
                try:
                    self._clients = {key: self._opened(key)}
                except ValueError as error:  # of the zone's name, or the endpoint: trying again is in vain
                    raise StoreError(
                        errno.EINVAL, request, code="InvalidArgument", status=400, detail=str(error)
                    ) from error
            return self._clients[key]

    def _opened(self, key: Credentials) -> S3Client:
        from botocore import UNSIGNED  # noqa: PLC0415 - not before the daemon has forked
        from botocore.config import Config  # noqa: PLC0415
        from botocore.session import Session  # noqa: PLC0415

        config = Config(
            signature_version=UNSIGNED if key.is_nobody else "s3v4",
            s3={"addressing_style": "path"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            retries={"total_max_attempts": 1},  # `call` tries again
        )
        # The user's AWS files must not have a say: their settings are for other endpoints.
        nothing: Any = {"profile": (None, [], None, None), "config_file": (None, [], os.devnull, None)}
        client: S3Client = Session(nothing).create_client(  # type: ignore[assignment]
            "s3",
            endpoint_url=self._target.endpoint,
            region_name=self._target.region,
            aws_access_key_id=key.access_key,
            aws_secret_access_key=key.secret_key,
            aws_session_token=key.token or None,
            config=config,
        )
        client.meta.events.register("before-call.s3", self._prepare)
        client.meta.events.register("before-send.s3", self._sender())
        client.meta.events.register("before-parse.s3", _check)
        return client

    def _sender(self) -> Any:
        """Sends what botocore has signed as all else is sent: its own HTTP reads answers of any length."""
        from botocore.awsrequest import AWSResponse  # noqa: PLC0415 - not before the daemon has forked

        from sosfs.s3.signed_request import failure, may_pass  # noqa: PLC0415
        from sosfs.s3.transport import Transport  # noqa: PLC0415

        target, at = self._target, urlsplit(self._target.endpoint)
        bundle = target.ca_bundle or certificate_authorities.of_system().path
        origin = f"{at.scheme}://{at.netloc}"
        transport = self._transport or Transport(origin, ca_bundle=bundle, connect_timeout=target.connect_timeout)
        self._transport = transport  # of all keys

        def send(request: AWSPreparedRequest, event_name: str, **_: object) -> AWSResponse:
            lines = [_line(name, value) for name, value in request.headers.items() if name.lower() not in OF_LIBCURL]
            url, body = urlsplit(request.url), cast(bytes, request.body or b"")
            path = f"{url.path}?{url.query}" if url.query else url.path
            asked = Request(request.method, path, lines, body, target.read_timeout)
            try:
                reply = transport.exchange(asked, self._turn.interrupt)
            except TransferError as fault:
                self._turn.may_pass = may_pass(fault)
                raise failure(event_name.rpartition(".")[2], fault) from fault
            self._turn.pause = retries.retry_after(reply.headers)
            return AWSResponse(request.url, reply.status, cast(Any, reply.headers), _Answer(reply.body))

        return send

    def _prepare(self, params: dict[str, Any], **_: object) -> None:
        """Says who pays, what the body's hash is, and that the request was redirected already.

        Ceph takes no lifecycle without the hash. botocore would ask for the bucket's region after a redirect, by a
        request that a server which redirects all answers alike: it then recurses until Python ends it.
        """
        params["headers"].update(self._target.payer.headers)
        body = params["body"]
        if isinstance(body, bytes) and body:
            params["headers"].update(content_md5(body))
        params["context"].setdefault("s3_redirect", {})["redirected"] = True


class _Answer(NamedTuple):
    """A body as botocore wants one."""

    body: memoryview

    def stream(self, **_: object) -> list[bytes]:
        return [self.body.tobytes()]


def _line(name: str, value: str | bytes) -> bytes:
    return f"{name}: ".encode() + (value.encode() if isinstance(value, str) else value)


def _check(operation_model: Any, response_dict: dict[str, Any], **_: object) -> None:
    """Raises the StoreError that an answer is, also one that botocore would take for a good one."""
    request, method = operation_model.name, operation_model.http["method"]
    status, body = response_dict["status_code"], response_dict["body"]
    if status == PASSING or status >= SERVER_FAILED:
        return
    refusal = refusal_of(request, method, status, response_dict["headers"], body)
    if refusal is not None:
        raise refusal
    try:
        if request in ROOTS:
            if request in PROTECTION and name_of(tree(body)) == LISTED:
                raise StoreError(errno.EOPNOTSUPP, request, status=status, detail="the server does not know it")
            root_of(body, *ROOTS[request])
        elif request == "GetBucketPolicy" and not isinstance(json.loads(body), dict):
            raise ParseError("no policy")
    except (ParseError, ValueError) as error:
        raise unanswered(request, f"answer not understood: {error!r}") from error


def _kept(entries: Sequence[VersionEntry]) -> list[Kept]:
    """The versions among them, without those of which nonsense is told."""
    return [
        Kept(one.key, one.version_id, one.version.etag, one.version.size, one.modified)
        for one in entries
        if not one.is_marker and one.version != UNKNOWN
    ]
