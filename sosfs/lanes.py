"""Which lane carries a GET, a HEAD or a PUT: decided here and only here. All other calls are the signed lane's.

Small requests take the lane that is cheap a request, large ranges the one that is cheap a byte.

Imports both lanes' libraries and so must not be imported before the daemon has forked. Immutable; safe from
any thread; each call blocks its thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from sosfs import lane_obstore
from sosfs.credentials import Credentials
from sosfs.errors import Cause, StoreError
from sosfs.lane_obstore import ObstoreLane, Unfit
from sosfs.lane_signed import SignedLane
from sosfs.store import Acl, Body, Canned, Detail, Object, Properties, Slice, Version
from sosfs.target import S3Target
from sosfs.wire import grant_headers

# From here on obstore's copy of a body costs more than signing in Python: 0.75 against 0.47 s of CPU a GB at 8 MiB.
LARGE = 2 << 20  # bytes of a range
NO_CONDITION: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Lanes:
    """Both lanes to one bucket, signing with one key."""

    key: Credentials
    fast: ObstoreLane
    signed: SignedLane

    @classmethod
    def opened(cls, target: S3Target, key: Credentials) -> Lanes:
        """Lanes to `target`; nothing is sent yet."""
        return cls(key, ObstoreLane(target, key), SignedLane(target, key))

    def head(self, key: str, detail: Detail) -> Object:
        return self.signed.head(key, detail)  # obstore tells no headers of a 404, and so not who gave it

    def get(self, key: str, start: int, stop: int, if_match: str) -> Slice:
        if stop - start < LARGE and lane_obstore.ordinary(key):
            try:
                return self.fast.get(key, start, stop, if_match)
            except Unfit:
                pass
        return self.signed.get(key, start, stop, if_match)

    def put(
        self,
        key: str,
        body: Body,
        properties: Properties,
        acl: Acl | Canned | None,
        condition: Mapping[str, str] = NO_CONDITION,
    ) -> Version:
        """Stores an object, under the header `condition`; an error tells whether it may have taken effect."""
        tried = False
        if "Content-MD5" not in condition and not grant_headers(acl) and lane_obstore.can_put(key, body, properties):
            try:
                return self.fast.put(key, body, properties, condition)
            except Unfit:
                tried = True
            except StoreError as error:
                if not condition or error.cause is not Cause.FAILED:
                    raise
                tried = True  # once, and not told how it ended: the signed lane tries on
        try:
            return self.signed.put(key, body, properties, acl, condition)
        except StoreError as error:
            error.repeated = error.repeated or tried
            raise
