"""Which lane carries a GET, a HEAD or a PUT: decided here and only here. All other calls are the signed lane's.

Imports both lanes' libraries and so must not be imported before the daemon has forked. Immutable; safe from
any thread; each call blocks its thread.
"""

from __future__ import annotations

from dataclasses import dataclass

from sosfs import lane_obstore
from sosfs.credentials import Credentials
from sosfs.lane_obstore import ObstoreLane, Unfit
from sosfs.lane_signed import SignedLane
from sosfs.store import Acl, Body, Canned, Detail, Object, Properties, Slice, Version
from sosfs.target import S3Target
from sosfs.wire import grant_headers


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
        if detail is Detail.USUAL and lane_obstore.ordinary(key):
            try:
                return self.fast.head(key)
            except Unfit:
                pass
        return self.signed.head(key)

    def get(self, key: str, start: int, stop: int, if_match: str) -> Slice:
        if lane_obstore.ordinary(key):
            try:
                return self.fast.get(key, start, stop, if_match)
            except Unfit:
                pass
        return self.signed.get(key, start, stop, if_match)

    def put(self, key: str, body: Body, properties: Properties, acl: Acl | Canned | None) -> Version:
        if not grant_headers(acl) and lane_obstore.can_put(key, body, properties):
            return self.fast.put(key, body, properties)
        return self.signed.put(key, body, properties, acl, {})[0]
