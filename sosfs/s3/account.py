"""List, create and remove the buckets of an account.

A bucket is created in the zone of the server that is asked, and only that zone's server removes it.

Concurrency: calls are made from the trio thread and run in threads of a `Dispatcher`, which renews the key.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from sosfs.config.credentials import Credentials
from sosfs.config.zones import Place
from sosfs.errors import StoreError, unanswered
from sosfs.s3 import listing_answers, xml
from sosfs.s3.dispatch import Dispatcher
from sosfs.s3.endpoint import S3Target
from sosfs.s3.limits import Limits
from sosfs.s3.paging import check_progress
from sosfs.s3.protocol import Bucket
from sosfs.s3.signed_request import Answer, SignedHttp
from sosfs.s3.traffic import Traffic

if TYPE_CHECKING:
    from sosfs.s3.calls import SignedCalls

NAME = re.compile(r"[a-z0-9](?:[a-z0-9.-]{1,62})[a-z0-9]")  # SOS: 64 characters, "DNS compatible"
MISPLACED = frozenset({"IllegalLocationConstraintException", "InvalidLocationConstraint"})


def is_name(name: str) -> bool:
    """Whether a new bucket may have this name."""
    return NAME.fullmatch(name) is not None and ".." not in name


@dataclass(frozen=True, slots=True)
class Owned:
    """All buckets of an account by name; `owner` is the account's id, "" where the server does not name it."""

    owner: str
    buckets: Mapping[str, Bucket]


class Account:
    """The buckets of whoever has the key. `target` is a server, without a bucket."""

    def __init__(self, target: S3Target, on_request: Callable[[str], None], limits: Limits) -> None:
        self._target = target
        self._dispatcher = Dispatcher(target, on_request, limits)
        self._throttle = limits.throttle
        self._lock = threading.Lock()
        self._opened: dict[tuple[S3Target, Credentials], SignedHttp] = {}

    @property
    def traffic(self) -> Traffic:
        """What goes over the wire of these calls."""
        return self._target.traffic

    def close(self) -> None:
        """Closes idle connections; no call may be under way or follow."""
        for http in self._opened.values():
            http.close()
        self._dispatcher.close()

    def sweep(self) -> None:
        """Closes connections that nobody has used for a while."""
        with self._lock:
            for http in self._opened.values():
                http.sweep()

    async def owned(self, *, patience: float = math.inf) -> Owned:
        """All buckets that the server lists. EACCES for a key that may not list them."""
        at = replace(self._target, patience=min(patience, self._target.patience))
        owner, found, token = "", list[Bucket](), ""
        seen = {token}
        while True:
            query = {"continuation-token": token} if token else {}
            answer = await self._send("ListBuckets", "GET", "", query=query, at=at)
            try:
                owner, page, token = listing_answers.buckets_of(answer.document)
            except (xml.ParseError, LookupError, ValueError) as error:
                raise unanswered("ListBuckets", f"answer not understood: {error!r}") from error
            found += page
            if not token:
                return Owned(owner, {bucket.name: bucket for bucket in found})
            check_progress("ListBuckets", token, seen)

    async def create(self, name: str) -> None:
        """Makes a bucket. EEXIST for a name that is taken, EINVAL for one that cannot be, EDQUOT for one too many."""
        try:
            await self._make(name)
        except StoreError as error:
            # A server of several regions wants to be told even that it shall be its own one.
            if error.code not in MISPLACED:
                raise
            await self._make(name, xml.location_body(self._target.region))

    async def _make(self, name: str, body: bytes = b"") -> None:
        try:
            await self._send("CreateBucket", "PUT", name, body=body)
        except StoreError as error:
            if not (error.repeated and error.code == "BucketAlreadyOwnedByYou"):
                raise

    async def remove(self, name: str, place: Place) -> None:
        """Removes an empty bucket at its own server. ENOTEMPTY where something is in it, if only an old version."""
        there = replace(self._target, endpoint=place.url, region=place.region)
        try:
            await self._send("DeleteBucket", "DELETE", name, at=there)
        except StoreError as error:
            if not (error.repeated and error.code == "NoSuchBucket"):
                raise

    async def _send(
        self,
        operation: str,
        method: str,
        name: str,
        *,
        query: Mapping[str, str] | None = None,
        body: bytes = b"",
        at: S3Target | None = None,
    ) -> Answer:
        work = partial(self._ask, at or self._target, operation, method, name, query or {}, body)
        return await self._dispatcher.send(operation, work)

    def _ask(
        self,
        target: S3Target,
        operation: str,
        method: str,
        name: str,
        query: Mapping[str, str],
        body: bytes,
        calls: SignedCalls,
    ) -> Answer:
        with self._lock:
            if (target, calls.key) not in self._opened:
                self._opened[target, calls.key] = SignedHttp(target, calls.key, throttle=self._throttle)
            http = self._opened[target, calls.key]
        return http.send(operation, method, name, query=query, body=body)
