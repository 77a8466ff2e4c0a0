"""Another S3 tool on the same bucket: it reads what the mount stores, and what it stores must appear in the mount.

Plain boto3, straight to the server, sharing no line with sosfs: what both agree on is what is in the bucket.
Safe from any thread, as boto3 clients are.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import ObjectIdentifierTypeDef

MUCH = 4 << 20  # bytes


class Foreign:
    """One bucket."""

    def __init__(self, client: S3Client, bucket: str) -> None:
        self.client = client
        self.bucket = bucket

    def put(self, key: str, body: bytes = b"", metadata: Mapping[str, str] | None = None) -> None:
        """Stores an object."""
        self.client.put_object(Bucket=self.bucket, Key=key, Body=body, Metadata=dict(metadata or {}))

    def put_all(self, bodies: Mapping[str, bytes]) -> None:
        """Stores many objects, eight at a time."""
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(self.put, bodies.keys(), bodies.values()))

    def keep_versions(self) -> None:
        """From now on the bucket keeps what is overwritten or deleted."""
        self.client.put_bucket_versioning(Bucket=self.bucket, VersioningConfiguration={"Status": "Enabled"})

    def get(self, key: str) -> bytes:
        """An object's bytes."""
        return self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read()

    def head(self, key: str) -> dict[str, Any]:
        """What HEAD says of an object."""
        return dict(self.client.head_object(Bucket=self.bucket, Key=key))

    def metadata(self, key: str) -> dict[str, str]:
        """An object's user metadata."""
        return dict(self.head(key)["Metadata"])

    def exists(self, key: str) -> bool:
        """Whether the object is there."""
        try:
            self.head(key)
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
                raise
            return False
        return True

    def keys(self, prefix: str = "") -> list[str]:
        """All keys that begin with `prefix`, in order."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        return [found["Key"] for page in pages for found in page.get("Contents", ())]

    def files(self, prefix: str = "") -> list[str]:
        """The keys that are not directory markers."""
        return [key for key in self.keys(prefix) if not key.endswith("/")]

    def delete(self, *keys: str) -> None:
        """Removes objects."""
        for key in keys:
            self.client.delete_object(Bucket=self.bucket, Key=key)

    def let_go(self) -> None:
        """Removes what it has if that is much, as far as it may go.

        The servers have it in their memory until they end: those of four workers took more than a machine has.
        """
        with suppress(ClientError, BotoCoreError):
            page = self.client.list_objects_v2(Bucket=self.bucket)
            if sum(found["Size"] for found in page.get("Contents", ())) < MUCH:
                return
            for versions in self.client.get_paginator("list_object_versions").paginate(Bucket=self.bucket):
                found = [(each["Key"], each["VersionId"]) for each in versions.get("Versions", ())]
                objects: list[ObjectIdentifierTypeDef] = [{"Key": key, "VersionId": version} for key, version in found]
                self.client.delete_objects(Bucket=self.bucket, Delete={"Objects": objects, "Quiet": True})

    def begin_and_abort(self, key: str) -> None:
        """A multipart upload that comes to nothing."""
        begun = self.client.create_multipart_upload(Bucket=self.bucket, Key=key)
        self.client.abort_multipart_upload(Bucket=self.bucket, Key=key, UploadId=begun["UploadId"])

    def uploads(self) -> list[str]:
        """The keys of unfinished multipart uploads."""
        answer = self.client.list_multipart_uploads(Bucket=self.bucket)
        return [upload["Key"] for upload in answer.get("Uploads", ())]

    def parts(self, key: str) -> list[int]:
        """The numbers of the parts that the unfinished uploads of a key have."""
        answer = self.client.list_multipart_uploads(Bucket=self.bucket, Prefix=key)
        ids = [upload["UploadId"] for upload in answer.get("Uploads", ()) if upload["Key"] == key]
        told = [self.client.list_parts(Bucket=self.bucket, Key=key, UploadId=each) for each in ids]
        return [part["PartNumber"] for each in told for part in each.get("Parts", ())]


def numbered(prefix: str, count: int, body: bytes = b"x") -> dict[str, bytes]:
    """Bodies for `count` keys under a prefix, each different."""
    return {f"{prefix}{number:04d}": body + b"%d" % number for number in range(count)}
