"""A bare S3 client: what prepares and checks the bucket, and the floor that each file system is measured against.

It shares no line with sosfs. obstore carries bytes and listings, boto3 copies and deletes. Paths are keys; nothing
here knows of directories but the markers it is told to put.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import boto3
import obstore
from botocore.config import Config
from obstore.store import S3Store

from tests.bench.client import THREADS, each
from tests.bench.material import MTIME

PART = 8 << 20
REGION = "us-east-1"
# As s3fs and sosfs write it; rclone reads this mtime too.
FILE_METADATA = {"mtime": f"{MTIME}.000000000", "mode": str(0o100644), "uid": "0", "gid": "0"}
DIRECTORY_METADATA = {**FILE_METADATA, "mode": str(0o040755)}


class Bare:
    """A client of one bucket. Thread-safe."""

    def __init__(self, endpoint: str, bucket: str, key: str, secret: str) -> None:
        self.bucket = bucket
        self._store = S3Store(
            bucket,
            endpoint=endpoint,
            access_key_id=key,
            secret_access_key=secret,
            region=REGION,
            virtual_hosted_style_request=False,
            client_options={"allow_http": True},
        )
        self._client: Any = boto3.client(
            "s3",
            endpoint_url=endpoint,
            aws_access_key_id=key,
            aws_secret_access_key=secret,
            region_name=REGION,
            config=Config(
                s3={"addressing_style": "path"},
                max_pool_connections=THREADS * 2,
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )

    def create(self) -> None:
        self._client.create_bucket(Bucket=self.bucket)

    def put(self, key: str, data: bytes, metadata: dict[str, str] | None = None) -> None:
        obstore.put(self._store, key, data, attributes=metadata or FILE_METADATA, use_multipart=False)

    def put_directory(self, key: str) -> None:
        """Puts a marker, so that systems that know directories only by them see it."""
        self._client.put_object(Bucket=self.bucket, Key=f"{key.rstrip('/')}/", Metadata=DIRECTORY_METADATA)

    def put_whole(self, key: str, pieces: Iterable[memoryview | bytes]) -> None:
        """Uploads in one request however large it is: the ETag is the MD5 of all, on most servers."""
        self.put(key, b"".join(pieces))

    def put_parts(self, key: str, pieces: Iterable[memoryview | bytes], metadata: dict[str, str] | None = None) -> None:
        """Uploads in parallel parts."""
        parts = (b"".join(group) for group in batched_bytes(pieces, PART))
        attributes = metadata or FILE_METADATA
        obstore.put(self._store, key, parts, attributes=attributes, use_multipart=True, chunk_size=PART)

    def get(self, key: str, start: int, length: int) -> int:
        """Reads a range and gives its length."""
        return len(obstore.get_range(self._store, key, start=start, length=length))

    def holds(self, key: str, data: bytes, *, at: int) -> bool:
        """Whether these bytes stand in the object at this offset."""
        return bytes(obstore.get_range(self._store, key, start=at, length=len(data))) == data

    def head(self, key: str) -> None:
        obstore.head(self._store, key)

    def sizes(self, prefix: str) -> dict[str, int]:
        """Key to size of all objects under a prefix, markers left out."""
        pages = obstore.list(self._store, prefix=prefix, chunk_size=1000)
        return {item["path"]: item["size"] for page in pages for item in page if not self._is_marker(item)}

    def copy(self, source: str, target: str) -> None:
        origin = {"Bucket": self.bucket, "Key": source}
        self._client.copy_object(Bucket=self.bucket, Key=target, CopySource=origin)

    def append(self, key: str, size: int, tail: bytes) -> None:
        """Adds a tail to an object of `size` bytes: the old ones are copied by the server."""
        place = {"Bucket": self.bucket, "Key": key}
        upload = self._client.create_multipart_upload(**place, Metadata=FILE_METADATA)["UploadId"]
        source, numbers = {**place}, f"bytes=0-{size - 1}"
        copied = self._client.upload_part_copy(
            **place, UploadId=upload, PartNumber=1, CopySource=source, CopySourceRange=numbers
        )
        put = self._client.upload_part(**place, UploadId=upload, PartNumber=2, Body=tail)
        parts = [
            {"PartNumber": 1, "ETag": copied["CopyPartResult"]["ETag"]},
            {"PartNumber": 2, "ETag": put["ETag"]},
        ]
        self._client.complete_multipart_upload(**place, UploadId=upload, MultipartUpload={"Parts": parts})

    def delete(self, prefix: str) -> None:
        """Deletes everything under a prefix, markers included."""
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        keys = [{"Key": item["Key"]} for page in pages for item in page.get("Contents", [])]
        groups = [keys[i : i + 1000] for i in range(0, len(keys), 1000)]
        each(self._delete_keys, groups, threads=4)

    def rest(self) -> None:
        """Nothing of it is mounted."""

    def first_page(self, prefix: str) -> int:
        """How many keys the first page of a listing has."""
        return len(next(iter(obstore.list(self._store, prefix=prefix, chunk_size=1000))))

    def _delete_keys(self, keys: list[dict[str, str]]) -> None:
        failed = self._client.delete_objects(Bucket=self.bucket, Delete={"Objects": keys, "Quiet": True}).get("Errors")
        if failed:
            raise OSError(f"not deleted: {failed[:3]}")

    @staticmethod
    def _is_marker(item: Any) -> bool:
        return bool(item["size"] == 0)


def batched_bytes(pieces: Iterable[memoryview | bytes], size: int) -> Iterator[list[memoryview | bytes]]:
    """Groups of pieces that together have `size` bytes or more; the last may have less."""
    group: list[memoryview | bytes] = []
    held = 0
    for piece in pieces:
        group.append(piece)
        held += len(piece)
        if held >= size:
            yield group
            group, held = [], 0
    if group:
        yield group
