"""Object Lock, lifecycle, ownership, encryption and replication of a bucket, over botocore.

As in `bucket_settings`, what is not set is "" or nothing, never an error. Each must have been read before it is
written: a server that does not know a setting takes the PUT for one that makes the bucket, and the DELETE for one that
removes it; reading says EOPNOTSUPP there. Concurrency: as `BucketSettings`.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sosfs.errors import SERVER_FAILED, StoreError
from sosfs.s3.bucket_settings import BucketSettings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

# A bucket that was made without Object Lock takes none on most servers, by these codes.
LOCKLESS = frozenset({"InvalidBucketState", "InvalidBucket"})


@dataclass(frozen=True, slots=True)
class Term:
    """For how long a new object is locked by itself, and how firmly."""

    mode: str  # one of `protocol.LOCK_MODES`
    count: int
    unit: str  # days or years


@dataclass(frozen=True, slots=True)
class BucketLock:
    """Whether objects of a bucket can be locked, and for how long new ones are by themselves."""

    is_enabled: bool
    default: Term | None = None


class ProtectionSettings:
    """The settings of one bucket that say what stays, who owns it and who can read it at rest.

    `on_lock` is told that objects may be locked from now on, `on_ownership` that somebody else may own what is stored.
    """

    def __init__(
        self,
        bucket: BucketSettings,
        *,
        on_lock: Callable[[], None] = lambda: None,
        on_ownership: Callable[[], None] = lambda: None,
    ) -> None:
        self._call = bucket.call
        self._on_lock = on_lock
        self._on_ownership = on_ownership

    async def object_lock(self) -> BucketLock:
        """Whether the bucket has Object Lock, and its default retention."""
        answer = await self._call(
            "GetObjectLockConfiguration", lambda client, name: client.get_object_lock_configuration(Bucket=name)
        )
        said = answer["ObjectLockConfiguration"] if answer else {}
        default: Any = said.get("Rule", {}).get("DefaultRetention", {})
        # moto tells of both units, one of them 0.
        unit = next((unit for unit in ("Days", "Years") if default.get(unit)), "")
        term = Term(str(default.get("Mode", "")), int(default.get(unit, 0)), unit.lower()) if unit else None
        return BucketLock(said.get("ObjectLockEnabled") == "Enabled", term)

    async def put_object_lock(self, term: Term | None) -> None:
        """Replaces the default retention; None removes it. EOPNOTSUPP where the bucket takes no Object Lock."""
        document: Any = {"ObjectLockEnabled": "Enabled"}
        if term is not None:
            document["Rule"] = {"DefaultRetention": {"Mode": term.mode, term.unit.capitalize(): term.count}}
        try:
            await self._change(
                "PutObjectLockConfiguration",
                lambda client, name: client.put_object_lock_configuration(
                    Bucket=name, ObjectLockConfiguration=document
                ),
                self._on_lock,
            )
        except StoreError as error:
            if error.code in LOCKLESS:
                error.errno = errno.EOPNOTSUPP
            raise

    async def lifecycle(self) -> list[dict[str, Any]]:
        """The rules by which the server itself removes files, none where there are none."""
        answer = await self._call(
            "GetBucketLifecycleConfiguration",
            lambda client, name: client.get_bucket_lifecycle_configuration(Bucket=name),
        )
        return [dict(rule) for rule in answer.get("Rules", ())] if answer else []

    async def put_lifecycle(self, rules: Sequence[Mapping[str, Any]]) -> None:
        """Replaces the lifecycle rules; none removes them."""
        if not rules:
            await self._call("DeleteBucketLifecycle", lambda client, name: client.delete_bucket_lifecycle(Bucket=name))
            return
        document: Any = {"Rules": [{"Prefix": ""} | dict(rule) if "Filter" not in rule else rule for rule in rules]}
        await self._call(
            "PutBucketLifecycleConfiguration",
            lambda client, name: client.put_bucket_lifecycle_configuration(
                Bucket=name, LifecycleConfiguration=document
            ),
        )

    async def ownership(self) -> str:
        """Who owns what is stored, in S3's word; "" where nothing is set."""
        answer = await self._call(
            "GetBucketOwnershipControls", lambda client, name: client.get_bucket_ownership_controls(Bucket=name)
        )
        rules = answer["OwnershipControls"].get("Rules", ()) if answer else ()
        return next((str(rule["ObjectOwnership"]) for rule in rules), "")

    async def put_ownership(self, word: str) -> None:
        """Replaces who owns what is stored; "" removes it."""
        document: Any = {"Rules": [{"ObjectOwnership": word}]}
        if word:
            await self._change(
                "PutBucketOwnershipControls",
                lambda client, name: client.put_bucket_ownership_controls(Bucket=name, OwnershipControls=document),
                self._on_ownership,
            )
        else:
            await self._change(
                "DeleteBucketOwnershipControls",
                lambda client, name: client.delete_bucket_ownership_controls(Bucket=name),
                self._on_ownership,
            )

    async def encryption(self) -> list[dict[str, Any]]:
        """How what is stored is encrypted, none where nothing is set."""
        answer = await self._call("GetBucketEncryption", lambda client, name: client.get_bucket_encryption(Bucket=name))
        rules = answer["ServerSideEncryptionConfiguration"].get("Rules", ()) if answer else ()
        return [dict(rule) for rule in rules]

    async def put_encryption(self, rules: Sequence[Mapping[str, Any]]) -> None:
        """Replaces how what is stored is encrypted; none removes it."""
        if not rules:
            await self._call(
                "DeleteBucketEncryption", lambda client, name: client.delete_bucket_encryption(Bucket=name)
            )
            return
        document: Any = {"Rules": list(rules)}
        await self._call(
            "PutBucketEncryption",
            lambda client, name: client.put_bucket_encryption(Bucket=name, ServerSideEncryptionConfiguration=document),
        )

    async def replication(self) -> dict[str, Any]:
        """Where the bucket is replicated to, by S3's own names; empty for nowhere."""
        answer = await self._call(
            "GetBucketReplication", lambda client, name: client.get_bucket_replication(Bucket=name)
        )
        found: Any = answer["ReplicationConfiguration"] if answer else {}
        return dict(found) if found.get("Rules") else {}  # Ceph tells of one without a rule where there is none

    async def _change(self, request: str, work: Callable[[S3Client, str], object], told: Callable[[], None]) -> None:
        """Makes a change, of which somebody is told unless it was refused: it may have been made without an answer.

        Nobody would hear of it later: what the server has already is not sent again.
        """
        try:
            await self._call(request, work)
        except StoreError as error:
            if not 0 < error.status < SERVER_FAILED:
                told()
            raise
        told()
