"""The S3 calls on one bucket: a method, a sub-resource and an answer each.

A boto3 client would take 2 ms of CPU a small request and 57 ms a page of a listing; this takes 0.1 and 5.

Imports libcurl and so must not be imported before the daemon has forked. Safe from any thread; each call blocks
its thread. Nothing is checked here that `bucket` has checked.
"""

from __future__ import annotations

import builtins
import errno
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from types import MappingProxyType
from typing import Any, Self, TypeVar

from sosfs.concurrency.interrupt import Interrupt
from sosfs.config.choices import Canned
from sosfs.config.credentials import Credentials
from sosfs.errors import Cause, StoreError, unanswered
from sosfs.s3 import listing_answers, version_answers, xml
from sosfs.s3.body_hash import BodyHash
from sosfs.s3.customer_key import ALGORITHM, require_encrypted
from sosfs.s3.endpoint import S3Target
from sosfs.s3.http_headers import (
    bare_etag,
    class_header,
    content_md5,
    grant_headers,
    is_etag,
    path_of,
    property_headers,
)
from sosfs.s3.listing_answers import MARKER
from sosfs.s3.object_answers import RangeAnswer, described
from sosfs.s3.protocol import (
    Acl,
    Body,
    Detail,
    Failure,
    Lock,
    Object,
    OnRepeat,
    Page,
    Part,
    PartBody,
    Properties,
    Slice,
    Upload,
    Version,
)
from sosfs.s3.retries import CLOCK, Clock
from sosfs.s3.signed_request import Answer, Pace, SignedHttp, shown
from sosfs.s3.throttle import Throttle
from sosfs.s3.version_answers import VersionMarker, VersionPage

T = TypeVar("T")

NO_LOCK = "ObjectLockConfigurationNotFoundError"
NO_RULES = "OwnershipControlsNotFoundError"
NO_HEADERS: Mapping[str, str] = MappingProxyType({})
_UNSAYABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")  # in XML 1.0, so not in a DeleteObjects


class SignedCalls:
    """The calls on one bucket, signed with `key`."""

    def __init__(
        self, target: S3Target, key: Credentials, clock: Clock = CLOCK, *, throttle: Throttle | None = None
    ) -> None:
        """`throttle` is the mount's, None for requests that keep to nothing."""
        self.key = key
        self._bucket = target.bucket
        self._http = SignedHttp(target, key, clock, throttle=throttle)
        self._send: Callable[..., Answer] = self._http.send
        self.interrupt: Interrupt | None = None  # what ends its requests
        secret = target.customer_key
        self._encrypted = secret.headers if secret else {}
        self._source_encrypted = secret.source_headers if secret else {}

    def close(self) -> None:
        """Closes the idle connections."""
        self._http.close()

    def sweep(self) -> None:
        """Closes connections that nobody has used for a while."""
        self._http.sweep()

    def under(self, interrupt: Interrupt) -> Self:
        """The same calls for somebody who may lose interest: its calls end with EINTR once `interrupt` is set."""
        calls = self._with(interrupt=interrupt)
        calls.interrupt = interrupt
        return calls

    def within(self, seconds: float) -> Self:
        """The same calls for somebody in a hurry: a failing call of it is tried again for so long at most."""
        return self._with(patience=seconds)

    def _with(self, **options: Any) -> Self:
        calls = object.__new__(type(self))  # a third of what `copy.copy` costs, once a request
        calls.__dict__.update(self.__dict__)
        calls._send = partial(self._send, **options)
        return calls

    def head(self, key: str, detail: Detail = Detail.WHOLE, *, version_id: str = "") -> Object:
        """What is known of the object; its recorded checksum only where that is asked for."""
        mode = {"x-amz-checksum-mode": "ENABLED"} if detail is Detail.CHECKSUM else {}
        answer = self._send("HeadObject", "HEAD", key, query=_of_version(version_id), headers=mode | self._encrypted)
        return described(f"HeadObject {key!r}", key, answer.headers)

    def get(self, key: str, start: int, stop: int, if_match: str, *, version_id: str = "") -> Slice:
        """The bytes of the range; `if_match` is an If-Match header's value, "" for none, `version_id` likewise."""
        headers = {"Range": f"bytes={start}-{stop - 1}", "x-amz-checksum-mode": "ENABLED"} | self._encrypted
        if if_match:
            headers["If-Match"] = if_match
        query = _of_version(version_id)
        due = RangeAnswer(f"GetObject {key!r}", key, start, stop)
        return due.slice(self._send("GetObject", "GET", key, query=query, headers=headers, room=due.room).body)

    def list(self, prefix: str, *, delimiter: str, after: str, token: str, limit: int) -> Page:
        query = {"list-type": "2", "encoding-type": "url", "prefix": prefix, "max-keys": str(limit)}
        if delimiter:
            query["delimiter"] = delimiter
        if token.startswith(MARKER):
            query["marker"] = token.removeprefix(MARKER)
        elif token:
            query["continuation-token"] = token
        elif after:
            query["start-after"] = after
        parse = partial(listing_answers.page_of, prefix=prefix, delimiter=delimiter, after=token or after)
        return _read(f"ListObjectsV2 {prefix!r}", parse, self._send("ListObjectsV2", "GET", query=query))

    def list_versions(self, prefix: str, *, delimiter: str, after: VersionMarker | None, limit: int) -> VersionPage:
        """A page of the versions and delete markers of the keys that begin with `prefix`."""
        query = {"versions": "", "encoding-type": "url", "prefix": prefix, "max-keys": str(limit)}
        if delimiter:
            query["delimiter"] = delimiter
        if after:
            query["key-marker"] = after.key
        if after and after.version_id:
            query["version-id-marker"] = after.version_id
        parse = partial(version_answers.version_page, prefix=prefix, delimiter=delimiter, after=after)
        return _read(f"ListObjectVersions {prefix!r}", parse, self._send("ListObjectVersions", "GET", query=query))

    def put(
        self,
        key: str,
        body: Body,
        properties: Properties,
        acl: Acl | Canned | None,
        condition: Mapping[str, str] = NO_HEADERS,
    ) -> Version:
        """Stores the object, under the header `condition`."""
        headers = property_headers(properties) | grant_headers(acl) | dict(condition) | self._encrypted
        answer = self._send("PutObject", "PUT", key, headers=headers, body=body)
        etag = _etag(f"PutObject {key!r}", answer)
        if self._encrypted and body:  # SeaweedFS has nothing to encrypt in an empty one
            require_encrypted(f"PutObject {key!r}", answer.headers.get(ALGORITHM, ""))
        return Version(etag, len(body))

    def copy(
        self,
        source: str,
        target: str,
        *,
        pin: str,
        properties: Properties | None,
        acl: Acl | Canned | None,
        storage_class: str | None = None,
        version_id: str = "",
        digest: Mapping[str, str] = NO_HEADERS,
    ) -> str:
        """Copies whole and returns the copy's ETag; `pin` is the source's ETag as the server wants it, or ""."""
        headers = self._source(source, pin, version_id) | grant_headers(acl) | dict(digest)
        if properties is None:
            headers |= {"x-amz-metadata-directive": "COPY"} | class_header(storage_class)
        else:
            headers |= {"x-amz-metadata-directive": "REPLACE"} | property_headers(properties)
        answer = self._send("CopyObject", "PUT", target, headers=headers, pace=Pace.SLOW)
        return _read(f"CopyObject {target!r}", lambda body: xml.copied_etag(body, "CopyObjectResult"), answer)

    def _source(self, key: str, pin: str, version_id: str = "") -> dict[str, str]:
        """What a copy says of its source, and of the key for its target."""
        source = f"/{self._bucket}/{path_of(key)}" + (f"?versionId={path_of(version_id)}" if version_id else "")
        headers = {"x-amz-copy-source": source} | self._source_encrypted | self._encrypted
        if pin:
            headers["x-amz-copy-source-if-match"] = pin
        return headers

    def delete(self, key: str, *, version_id: str = "", if_match: str = "") -> str:
        """Deletes a key, or one version of it; the id of the marker that this leaves, "" where it leaves none.

        `if_match` is an If-Match header's value, "" for none.
        """
        headers = {"If-Match": if_match} if if_match else {}
        told = self._send("DeleteObject", "DELETE", key, query=_of_version(version_id), headers=headers).headers
        left = told.get("x-amz-delete-marker", "").lower() == "true" and not version_id
        return told.get("x-amz-version-id", "null") if left else ""

    def version_ids(self, key: str) -> builtins.list[str]:
        """The ids of all versions and markers of a key, up to a thousand."""
        listed = self._send("ListObjectVersions", "GET", query={"versions": "", "prefix": key})
        return _read("ListObjectVersions", partial(listing_answers.version_ids, key=key), listed)

    def purge(self, key: str) -> bool:
        """Deletes the key with its versions, where the bucket keeps them (True) and our key may remove them."""
        if not self.delete(key):
            return False
        try:
            for version_id in self.version_ids(key):
                self.delete(key, version_id=version_id)
        except StoreError as error:
            if error.cause not in (Cause.DENIED, Cause.UNSUPPORTED):
                raise
        return True

    def retention(self) -> bool:
        """Whether what is stored in the bucket is locked for a time by itself (Object Lock)."""
        return self._of_lock(xml.retention_of)

    def locks_objects(self) -> bool:
        """Whether objects of the bucket can be locked (Object Lock)."""
        return self._of_lock(xml.locks_objects)

    def _of_lock(self, parse: Callable[[bytes], bool]) -> bool:
        request = "GetObjectLockConfiguration"
        try:
            answer = self._send(request, "GET", query={"object-lock": ""})
        except StoreError as error:
            if error.code == NO_LOCK or error.cause is Cause.UNSUPPORTED:
                return False
            raise
        return _read(request, parse, answer)

    def put_retention(self, key: str, version_id: str, lock: Lock) -> None:
        """Protects a version until a time."""
        body = xml.retention_body(lock)
        query = {"retention": ""} | _of_version(version_id)
        self._send("PutObjectRetention", "PUT", key, query=query, headers=content_md5(body), body=body)

    def put_legal_hold(self, key: str, version_id: str, lock: Lock) -> None:
        """Puts a version under legal hold, or ends that."""
        body = xml.legal_hold_body(lock)
        query = {"legal-hold": ""} | _of_version(version_id)
        self._send("PutObjectLegalHold", "PUT", key, query=query, headers=content_md5(body), body=body)

    def keeps_versions(self) -> bool:
        """Whether the bucket keeps what is overwritten or deleted."""
        answer = self._send("GetBucketVersioning", "GET", query={"versioning": ""})
        return _read("GetBucketVersioning", xml.keeps_versions, answer)

    def has_acls(self) -> bool:
        """Whether ACLs have an effect in the bucket, by its ownership rules; they have where it has no rules."""
        request = "GetBucketOwnershipControls"
        try:
            answer = self._send(request, "GET", query={"ownershipControls": ""})
        except StoreError as error:
            if error.code == NO_RULES or error.cause is Cause.UNSUPPORTED:
                return True
            raise
        return _read(request, xml.has_acls, answer)

    def delete_many(self, keys: Sequence[str], etags: Mapping[str, str] = NO_HEADERS) -> builtins.list[Failure]:
        """Up to 1,000 keys in one request, but for those that XML cannot say: one each.

        Those with an ETag only where they have it. Raises what the request does, and `UnclearBatch`.
        """
        said = [key for key in keys if not _UNSAYABLE.search(key)]
        failures: builtins.list[Failure] = []
        for key in set(keys).difference(said):
            try:
                self.delete(key, if_match=f'"{etags[key]}"' if key in etags else "")
            except StoreError as error:
                failures.append(Failure(key, error))
        if said:
            body = xml.delete_body(said, etags)
            answer = self._send("DeleteObjects", "POST", query={"delete": ""}, headers=content_md5(body), body=body)
            failures += _read("DeleteObjects", partial(xml.failures_of, asked=said), answer)
        return failures

    def create_multipart(
        self, key: str, properties: Properties, acl: Acl | Canned | None, on_repeat: OnRepeat | None = None
    ) -> str:
        """Begins an upload; where an earlier try may have begun another one, `on_repeat` is told the id of this one."""
        headers = property_headers(properties) | grant_headers(acl) | self._encrypted
        answer = self._send("CreateMultipartUpload", "POST", key, query={"uploads": ""}, headers=headers)
        upload_id = _read(f"CreateMultipartUpload {key!r}", xml.upload_id, answer)
        if answer.repeated and on_repeat is not None:
            on_repeat(upload_id)
        return upload_id

    def upload_part(
        self,
        key: str,
        upload_id: str,
        number: int,
        body: PartBody,
        digest: Mapping[str, str] = NO_HEADERS,
        *,
        body_hash: BodyHash = BodyHash.IN_CLEAR,
    ) -> Part:
        query = {"partNumber": str(number), "uploadId": upload_id}
        with _upload_known():
            answer = self._send(
                "UploadPart",
                "PUT",
                key,
                query=query,
                headers=dict(digest) | self._encrypted,
                body=body,
                body_hash=body_hash,
            )
        return Part(number, _etag(f"UploadPart {key!r}", answer), len(body))

    def copy_part(
        self,
        key: str,
        upload_id: str,
        number: int,
        source: str,
        *,
        pin: str,
        start: int,
        stop: int,
        version_id: str = "",
    ) -> Part:
        query = {"partNumber": str(number), "uploadId": upload_id}
        headers = self._source(source, pin, version_id) | {"x-amz-copy-source-range": f"bytes={start}-{stop - 1}"}
        answer = self._send("UploadPartCopy", "PUT", key, query=query, headers=headers, pace=Pace.SLOW)
        etag = _read(f"UploadPartCopy {key!r}", lambda body: xml.copied_etag(body, "CopyPartResult"), answer)
        return Part(number, etag, stop - start)

    def complete_multipart(self, key: str, upload_id: str, parts: Sequence[Part], condition: Mapping[str, str]) -> str:
        """Joins the parts and returns the ETag, "" from a server that does not name it (Ceph 16)."""
        with _upload_known():
            answer = self._send(
                "CompleteMultipartUpload",
                "POST",
                key,
                query={"uploadId": upload_id},
                headers=condition,
                body=xml.complete_body(parts),
                pace=Pace.SLOW,
            )
        return _read(
            f"CompleteMultipartUpload {key!r}",
            lambda body: xml.copied_etag(body, xml.JOINED),
            answer,
        )

    def abort_multipart(self, key: str, upload_id: str) -> None:
        with _upload_known():
            self._send("AbortMultipartUpload", "DELETE", key, query={"uploadId": upload_id})

    def list_parts(self, key: str, upload_id: str, after: str) -> tuple[builtins.list[Part], str]:
        """A page of parts after the marker `after` ("" at first), and the next page's marker."""
        query = {"uploadId": upload_id} | ({"part-number-marker": after} if after else {})
        with _upload_known():
            answer = self._send("ListParts", "GET", key, query=query)
        return _read(f"ListParts {key!r}", partial(listing_answers.parts_of, upload_id=upload_id), answer)

    def list_uploads(
        self, prefix: str, after: tuple[str, str] | None
    ) -> tuple[builtins.list[Upload], tuple[str, str] | None]:
        """A page of uploads after the (key, id) `after`, and after what the next page begins."""
        query = {"uploads": "", "prefix": prefix}
        if after:
            query |= {"key-marker": after[0], "upload-id-marker": after[1]}
        answer = self._send("ListMultipartUploads", "GET", query=query)
        parse = partial(listing_answers.uploads_of, prefix=prefix)
        try:
            return _read("ListMultipartUploads", parse, answer)
        except StoreError:
            answer = self._send("ListMultipartUploads", "GET", query=query | {"encoding-type": "url"})
            return _read("ListMultipartUploads", partial(parse, encoded=True), answer)

    def get_acl(self, key: str, *, version_id: str = "") -> Acl:
        operation = "GetObjectAcl" if key else "GetBucketAcl"
        answer = self._send(operation, "GET", key, query={"acl": ""} | _of_version(version_id))
        return _read(f"{operation} {key!r}" if key else operation, xml.acl_of, answer)

    def put_acl(self, key: str, acl: Acl | Canned) -> None:
        operation = "PutObjectAcl" if key else "PutBucketAcl"
        if isinstance(acl, Canned):
            self._send(operation, "PUT", key, query={"acl": ""}, headers=grant_headers(acl))
            return
        body = xml.acl_body(acl)
        self._send(operation, "PUT", key, query={"acl": ""}, headers=content_md5(body), body=body)


def _of_version(version_id: str) -> dict[str, str]:
    return {"versionId": version_id} if version_id else {}


@contextmanager
def _upload_known() -> Iterator[None]:
    """Makes an unknown upload ENXIO; Ceph 16 calls it an unknown key, which would read as an absent file.

    Nothing else is ENXIO: where there is no bucket, nobody says that the upload has ended, and its parts are kept.
    """
    try:
        yield
    except StoreError as error:
        if error.cause is Cause.ABSENT:
            error.errno = errno.ENXIO
        elif error.code == "NoSuchBucket":
            error.errno = errno.EIO
        raise


def _etag(request: str, answer: Answer) -> str:
    """The ETag of what was stored; EIO for an answer without one, or with a page, which no S3 server gives.

    Programs that make pages have weak ETags, if any, also of what they answer to a PUT.
    """
    told = answer.headers.get("ETag", "")
    etag, page = bare_etag(told), answer.document.strip()
    if not is_etag(etag) or told.startswith("W/") or page:
        why = "the answer is a page" if page else f"the answer has {f'the ETag {told!r}' if told else 'no ETag'}"
        came = shown(answer.headers, page)
        raise unanswered(request, f"{why}: it is not an S3 server's" + (f", it is {came}" if came else ""))
    return etag


def _read(request: str, parse: Callable[[bytes], T], answer: Answer) -> T:
    """What the answer says; one that is not what the operation answers is an EIO, never taken for empty."""
    try:
        return parse(answer.document)
    except (xml.ParseError, LookupError, ValueError, StopIteration) as error:
        told = unanswered(request, f"answer not understood: {shown(answer.headers, answer.document) or repr(error)}")
        told.elsewhere = True
        raise told from error
