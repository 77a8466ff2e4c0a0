"""The lane for every key and every call on objects: signed HTTP, our own headers, the answers' XML.

What S3 operation a call becomes is decided here and only here: a method and a sub-resource each. It serves
what the obstore lane can't (odd keys, grants, `expires`, large bodies, pages of listings) and what a boto3
client does slowly (2 ms of CPU a small request, 57 ms a page of a listing).

Safe from any thread; each call blocks its thread. Nothing is checked here that the facade has checked.
"""

from __future__ import annotations

import builtins
import errno
import re
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from hashlib import md5
from typing import TypeVar

from sosfs import answers
from sosfs.credentials import Credentials
from sosfs.customer_key import ALGORITHM, require_encrypted
from sosfs.errors import Cause, StoreError, unanswered
from sosfs.signed_http import Answer, Pace, SignedHttp
from sosfs.store import (
    Acl,
    Body,
    Canned,
    Detail,
    Failure,
    Object,
    OnRepeat,
    Page,
    Part,
    Properties,
    Slice,
    Upload,
    Version,
)
from sosfs.target import S3Target
from sosfs.wire import bare_etag, class_header, grant_headers, object_of, path_of, property_headers

T = TypeVar("T")

_TOTAL = re.compile(r"bytes \d+-\d+/(\d+)")
_UNSAYABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")  # in XML 1.0, so not in a DeleteObjects


class SignedLane:
    """The calls on one bucket, by one key."""

    def __init__(self, target: S3Target, credentials: Credentials) -> None:
        self._bucket = target.bucket
        self._http = SignedHttp(target, credentials)
        key = target.customer_key
        self._encrypted = key.headers if key else {}
        self._source_encrypted = key.source_headers if key else {}

    def close(self) -> None:
        """Closes the idle connections."""
        self._http.close()

    def head(self, key: str, detail: Detail = Detail.WHOLE) -> Object:
        mode = {"x-amz-checksum-mode": "ENABLED"} if detail is Detail.CHECKSUM else {}
        return object_of(key, self._http.send("HeadObject", "HEAD", key, headers=mode | self._encrypted).headers)

    def get(self, key: str, start: int, stop: int, if_match: str, *, version_id: str = "") -> Slice:
        """The bytes of the range; `if_match` is an If-Match header's value, "" for none, `version_id` likewise."""
        headers = {"Range": f"bytes={start}-{stop - 1}"} | self._encrypted
        if if_match:
            headers["If-Match"] = if_match
        query = {"versionId": version_id} if version_id else {}
        answer = self._http.send("GetObject", "GET", key, query=query, headers=headers)
        total = _TOTAL.fullmatch(answer.headers.get("Content-Range", ""))
        if total:
            return Slice(object_of(key, answer.headers, size=int(total[1])), memoryview(answer.body))
        found = object_of(key, answer.headers)  # a 200: the server knows no ranges and sent all
        return Slice(found, memoryview(answer.body)[start:stop])

    def list(self, prefix: str, *, delimiter: str, after: str, token: str, limit: int) -> Page:
        query = {"list-type": "2", "encoding-type": "url", "prefix": prefix, "max-keys": str(limit)}
        if delimiter:
            query["delimiter"] = delimiter
        if token:
            query["continuation-token"] = token
        elif after:
            query["start-after"] = after
        return _read(f"ListObjectsV2 {prefix!r}", answers.page_of, self._http.send("ListObjectsV2", "GET", query=query))

    def put(
        self, key: str, body: Body, properties: Properties, acl: Acl | Canned | None, condition: Mapping[str, str]
    ) -> Version:
        """Stores the object, under the header `condition`."""
        headers = property_headers(properties) | grant_headers(acl) | dict(condition) | self._encrypted
        answer = self._http.send("PutObject", "PUT", key, headers=headers, body=body)
        if self._encrypted and body:  # SeaweedFS has nothing to encrypt in an empty one
            require_encrypted(f"PutObject {key!r}", answer.headers.get(ALGORITHM, ""))
        return Version(bare_etag(answer.headers["ETag"]), len(body))

    def copy(
        self,
        source: str,
        target: str,
        *,
        pin: str,
        properties: Properties | None,
        acl: Acl | Canned | None,
        storage_class: str | None = None,
    ) -> str:
        """Copies whole and returns the copy's ETag; `pin` is the source's ETag as the server wants it, or ""."""
        headers = self._source(source, pin) | grant_headers(acl)
        if properties is None:
            headers |= {"x-amz-metadata-directive": "COPY"} | class_header(storage_class)
        else:
            headers |= {"x-amz-metadata-directive": "REPLACE"} | property_headers(properties)
        answer = self._http.send("CopyObject", "PUT", target, headers=headers, pace=Pace.SLOW)
        return _read(f"CopyObject {target!r}", lambda body: answers.copied_etag(body, "CopyObjectResult"), answer)

    def _source(self, key: str, pin: str) -> dict[str, str]:
        """What a copy says of its source, and of the key for its target."""
        headers = {"x-amz-copy-source": f"/{self._bucket}/{path_of(key)}"} | self._source_encrypted | self._encrypted
        if pin:
            headers["x-amz-copy-source-if-match"] = pin
        return headers

    def delete(self, key: str) -> None:
        self._http.send("DeleteObject", "DELETE", key)

    def purge(self, key: str) -> None:
        """Deletes the key with its versions, where the bucket keeps them and our key may remove them."""
        answer = self._http.send("DeleteObject", "DELETE", key)
        if "x-amz-delete-marker" not in answer.headers:
            return
        try:
            listed = self._http.send("ListObjectVersions", "GET", query={"versions": "", "prefix": key})
            for version_id in _read("ListObjectVersions", partial(answers.version_ids, key=key), listed):
                self._http.send("DeleteObject", "DELETE", key, query={"versionId": version_id})
        except StoreError as error:
            if error.cause not in (Cause.DENIED, Cause.UNSUPPORTED):
                raise

    def delete_many(self, keys: Sequence[str]) -> builtins.list[Failure]:
        """Up to 1,000 keys in one request, but for those that XML cannot say: one each."""
        said = [key for key in keys if not _UNSAYABLE.search(key)]
        failures: builtins.list[Failure] = []
        for key in set(keys).difference(said):
            try:
                self.delete(key)
            except StoreError as error:
                failures.append(Failure(key, error))
        if said:
            body = answers.delete_body(said)
            answer = self._http.send("DeleteObjects", "POST", query={"delete": ""}, headers=_digest(body), body=body)
            failures += _read("DeleteObjects", answers.failures_of, answer)
        return failures

    def create_multipart(
        self, key: str, properties: Properties, acl: Acl | Canned | None, on_repeat: OnRepeat | None = None
    ) -> str:
        """Begins an upload; where an earlier try may have begun another one, `on_repeat` is told the id of this one."""
        headers = property_headers(properties) | grant_headers(acl) | self._encrypted
        answer = self._http.send("CreateMultipartUpload", "POST", key, query={"uploads": ""}, headers=headers)
        upload_id = _read(f"CreateMultipartUpload {key!r}", answers.upload_id, answer)
        if answer.repeated and on_repeat is not None:
            on_repeat(upload_id)
        return upload_id

    def upload_part(self, key: str, upload_id: str, number: int, body: Body) -> Part:
        query = {"partNumber": str(number), "uploadId": upload_id}
        with _upload_known():
            answer = self._http.send("UploadPart", "PUT", key, query=query, headers=self._encrypted, body=body)
        return Part(number, bare_etag(answer.headers["ETag"]), len(body))

    def copy_part(self, key: str, upload_id: str, number: int, source: str, *, pin: str, start: int, stop: int) -> Part:
        query = {"partNumber": str(number), "uploadId": upload_id}
        headers = self._source(source, pin) | {"x-amz-copy-source-range": f"bytes={start}-{stop - 1}"}
        answer = self._http.send("UploadPartCopy", "PUT", key, query=query, headers=headers, pace=Pace.SLOW)
        etag = _read(f"UploadPartCopy {key!r}", lambda body: answers.copied_etag(body, "CopyPartResult"), answer)
        return Part(number, etag, stop - start)

    def complete_multipart(self, key: str, upload_id: str, parts: Sequence[Part], condition: Mapping[str, str]) -> str:
        """Joins the parts and returns the ETag, "" from a server that does not tell it (Ceph 16)."""
        with _upload_known():
            answer = self._http.send(
                "CompleteMultipartUpload",
                "POST",
                key,
                query={"uploadId": upload_id},
                headers=condition,
                body=answers.complete_body(parts),
                pace=Pace.SLOW,
            )
        return _read(
            f"CompleteMultipartUpload {key!r}",
            lambda body: answers.copied_etag(body, "CompleteMultipartUploadResult"),
            answer,
        )

    def abort_multipart(self, key: str, upload_id: str) -> None:
        with _upload_known():
            self._http.send("AbortMultipartUpload", "DELETE", key, query={"uploadId": upload_id})

    def list_parts(self, key: str, upload_id: str, after: str) -> tuple[builtins.list[Part], str]:
        """A page of parts after the marker `after` ("" at first), and the next page's marker."""
        query = {"uploadId": upload_id} | ({"part-number-marker": after} if after else {})
        with _upload_known():
            answer = self._http.send("ListParts", "GET", key, query=query)
        return _read(f"ListParts {key!r}", answers.parts_of, answer)

    def list_uploads(
        self, prefix: str, after: tuple[str, str] | None
    ) -> tuple[builtins.list[Upload], tuple[str, str] | None]:
        """A page of uploads after the (key, id) `after`, and after what the next page begins."""
        query = {"uploads": "", "prefix": prefix}
        if after:
            query |= {"key-marker": after[0], "upload-id-marker": after[1]}
        answer = self._http.send("ListMultipartUploads", "GET", query=query)
        try:
            return answers.uploads_of(answer.body)
        except answers.ParseError:
            answer = self._http.send("ListMultipartUploads", "GET", query=query | {"encoding-type": "url"})
            return _read("ListMultipartUploads", partial(answers.uploads_of, encoded=True), answer)

    def get_acl(self, key: str) -> Acl:
        answer = self._http.send("GetObjectAcl", "GET", key, query={"acl": ""})
        return _read(f"GetObjectAcl {key!r}", answers.acl_of, answer)

    def put_acl(self, key: str, acl: Acl | Canned) -> None:
        if isinstance(acl, Canned):
            self._http.send("PutObjectAcl", "PUT", key, query={"acl": ""}, headers=grant_headers(acl))
            return
        body = answers.acl_body(acl)
        self._http.send("PutObjectAcl", "PUT", key, query={"acl": ""}, headers=_digest(body), body=body)


@contextmanager
def _upload_known() -> Iterator[None]:
    """Makes an unknown upload ENXIO; Ceph 16 calls it an unknown key, which would read as an absent file."""
    try:
        yield
    except StoreError as error:
        if error.cause is Cause.ABSENT:
            error.errno = errno.ENXIO
        raise


def _digest(body: bytes) -> dict[str, str]:
    """The Content-MD5 that S3 demands with the documents of a few calls; also where nothing else is signed."""
    return {"Content-MD5": b64encode(md5(body, usedforsecurity=False).digest()).decode()}


def _read(request: str, parse: Callable[[bytes], T], answer: Answer) -> T:
    """What the answer says; one that is not what the operation answers is an EIO, never taken for empty."""
    try:
        return parse(answer.body)
    except (answers.ParseError, LookupError, ValueError, StopIteration) as error:
        raise unanswered(request, f"answer not understood: {error!r}") from error
