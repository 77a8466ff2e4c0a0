"""S3's XML: bodies of requests and answers, and which answers are errors.

An answer is good only where it can be an S3 server's answer to what was asked (`refusal_of`): a 200 may carry an
error, and a gateway's page may come with any status. Namespaces are passed over, because servers disagree about them.
A body that is not the XML it should be raises `ParseError`, which `calls` makes an EIO. Pure functions, safe from
any thread.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from http import HTTPStatus
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, ParseError, SubElement

from sosfs.errors import StoreError, from_elsewhere, from_s3
from sosfs.s3.http_headers import bare_etag, iso_time
from sosfs.s3.protocol import Acl, Failure, Grant, Lock, Part

NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
JOINED = "CompleteMultipartUploadResult"
INSTANCE = "http://www.w3.org/2001/XMLSchema-instance"

REQUEST_IDS = ("x-amz-request-id", "x-amz-id-2", "x-amzn-requestid")  # the last is moto's, and of some services of AWS
NO_S3 = " that is no S3 server's"  # of an answer, after its status
LATE_MAX = 1 << 16  # bytes; a copy of 5 GiB takes minutes, with a blank every few seconds
_TOLD_BY_HEADERS = ("HeadObject", "GetObject ")
_DONE = frozenset({200, 201, 204})  # of the others 202 says that nothing is done yet
_OF_XML = frozenset({400, 403, 405, 501})  # what a HEAD is told by servers without ids, too
_TOLD_BY_STATUS = (
    *("DeleteObject ", "AbortMultipartUpload", "PutObjectAcl", "PutObjectRetention", "PutObjectLegalHold"),
    *("PutObjectLockConfiguration", "PutBucket", "DeleteBucket", "CreateBucket"),
)
_NO_XML = re.compile(
    rb"[\x00-\x08\x0b\x0c\x0e-\x1f]|\xef\xbf[\xbe\xbf]|&#(?:x0*(?:1?[0-9a-f]|fff[ef])|0*(?:[12]?\d|3[01]|6553[45]));",
    re.IGNORECASE,
)

__all__ = ["ParseError"]


class UnclearBatch(StoreError):
    """EIO: the answer to a DeleteObjects leaves open which of the keys are removed."""

    def __init__(self) -> None:
        super().__init__(errno.EIO, "DeleteObjects", detail="the answer does not tell what became of which key")


@lru_cache(1024)
def _bare(tag: str) -> str:
    return tag.rpartition("}")[2]


def name_of(element: Element) -> str:
    return _bare(element.tag)


def fields(element: Element) -> dict[str, str]:
    """The texts of an element's children by their names, the last of each name."""
    return {_bare(child.tag): child.text or "" for child in element}


def each(root: Element, *names: str) -> Iterator[Element]:
    return (element for element in root.iter() if name_of(element) in names)


def tree(body: bytes) -> Element:
    """The document; servers echo the key, and one with characters that XML cannot say makes it none unless they go."""
    body = body.lstrip()  # what a server sends to keep the connection while it copies
    try:
        return tree_as_it_is(body)
    except ParseError:
        return tree_as_it_is(_NO_XML.sub(b"?", body))


def tree_as_it_is(body: bytes) -> Element:
    """The document, also a gateway's: one in an encoding that expat does not know (GBK, Shift_JIS) is a ParseError."""
    try:
        return ElementTree.fromstring(body)
    except (LookupError, ValueError) as error:
        raise ParseError(str(error)) from error


def root_of(body: bytes, *names: str) -> Element:
    root = tree(body)
    if name_of(root) not in names:
        raise ParseError(f"{name_of(root)} where {names[0]} was due")
    return root


def _said(root: Element) -> bytes:
    return bytes(ElementTree.tostring(root, encoding="utf-8"))


def error_of(body: bytes) -> tuple[str, str]:
    """Code and message of an error answer; ("", "") for a body that is none, such as a proxy's page."""
    try:
        root = tree(body)
    except ParseError:
        return "", ""
    found = fields(root) if name_of(root) == "Error" else {}
    return found.get("Code", "").strip(), found.get("Message", "")


def endpoint_of(body: bytes) -> str:
    """The host that the error answer of a redirect names (PermanentRedirect, TemporaryRedirect); "" for none."""
    try:
        return fields(tree(body)).get("Endpoint", "")
    except ParseError:
        return ""


def late_error(method: str, status: int, body: bytes) -> tuple[str, str]:
    """Code and message of the error in a 200: CopyObject and CompleteMultipartUpload answer before they are done.

    Never looked for in the answer to a GET, whose body may be the user's.
    """
    if status != HTTPStatus.OK or method in ("GET", "HEAD") or b"<Error" not in body[:LATE_MAX]:
        return "", ""
    return error_of(body)


def refusal_of(
    request: str,
    method: str,
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    *,
    came: Callable[[], str] = lambda: "",
    has_ids: bool = False,
) -> StoreError | None:
    """The error that an answer is; None for a good one, whose body is still to be read as what was asked for.

    `request` begins with the name of the operation, names in `headers` are of any case, and `body` may be left out
    (b"") for a good answer to a GET. `came` is asked, where it was a gateway's, what that sent, in words. `has_ids`:
    the server puts its request id into such answers, as one before has shown.
    """
    if status < HTTPStatus.MULTIPLE_CHOICES:
        code, message = late_error(method, status, body)
        if code:
            return from_s3(request, code=code, status=status, detail=message)
        if _is_success(request, method, status, headers, has_ids=has_ids):
            return None
        return _of_gateway(request, status, came())
    code, message = error_of(body)
    if code:
        return from_s3(request, code=code, status=status, detail=message)
    if not body and _is_of_s3(status, headers):  # that to a HEAD has none; nor has moto's of a copy of nothing
        return from_s3(request, code="", status=status)
    return _of_gateway(request, status, came())


def _of_gateway(request: str, status: int, came: str) -> StoreError:
    words = f"HTTP {status}{NO_S3}" + (f": {came}" if came else "")
    return from_elsewhere(request, status=status, detail=words)


def _is_success(request: str, method: str, status: int, headers: Mapping[str, str], *, has_ids: bool) -> bool:
    """Whether a 2xx may say that it is done, and not come from a gateway that has done nothing.

    An answer whose body is read as XML, or with an ETag, shows by that who gave it. Of the others that of an S3 server
    has its request id, or is the 204 of a removal. Web servers give ETags to their pages, too: where the server puts
    ids into such answers, an object has one, and a removal. Elsewhere it need not: those of older SeaweedFS come from
    behind its gateway, which names only what it says itself.
    """
    if has_ids and not has_id(headers) and request.startswith((*_TOLD_BY_HEADERS, *_TOLD_BY_STATUS)):
        return False
    if method == "GET":
        return True
    if request.startswith(_TOLD_BY_STATUS):
        is_removal = method == "DELETE" and status == HTTPStatus.NO_CONTENT
        return is_removal or (has_id(headers) and status in _DONE)
    return status == HTTPStatus.OK


def _is_of_s3(status: int, headers: Mapping[str, str]) -> bool:
    """Whether an answer without a body is an S3 server's."""
    return has_id(headers) or (status in _OF_XML and "xml" in headers.get("Content-Type", ""))


def has_id(headers: Mapping[str, str]) -> bool:
    """Whether an answer has a request id of an S3 server."""
    return any(name in headers for name in REQUEST_IDS)


def location_body(region: str) -> bytes:
    """The CreateBucketConfiguration that asks for a region."""
    root = Element("CreateBucketConfiguration", {"xmlns": NAMESPACE})
    SubElement(root, "LocationConstraint").text = region
    return _said(root)


def copied_etag(body: bytes, name: str) -> str:
    """The ETag in a CopyObjectResult, CopyPartResult or CompleteMultipartUploadResult; only the last may be empty."""
    etag = bare_etag(fields(root_of(body, name))["ETag"])
    if not etag and name != JOINED:
        raise ParseError(f"no ETag in a {name}")
    return etag


def upload_id(body: bytes) -> str:
    """The id in an InitiateMultipartUploadResult."""
    found = fields(root_of(body, "InitiateMultipartUploadResult"))["UploadId"]
    if not found:
        raise ParseError("no UploadId")
    return found


def keeps_versions(body: bytes) -> bool:
    """Whether versioning is enabled; a bucket on which it never was has no Status."""
    root = root_of(body, "VersioningConfiguration", "GetBucketVersioningResponse")  # the second is moto's
    return fields(root).get("Status", "").strip().lower() == "enabled"


def retention_of(body: bytes) -> bool:
    """Whether an ObjectLockConfiguration locks each new object."""
    found = each(root_of(body, "ObjectLockConfiguration"), "DefaultRetention")
    return next(iter(found), None) is not None  # an element without children is false


def has_acls(body: bytes) -> bool:
    """Whether OwnershipControls leave ACLs an effect."""
    rules = [fields(rule)["ObjectOwnership"].strip() for rule in each(root_of(body, "OwnershipControls"), "Rule")]
    if not rules:
        raise ParseError("no rule")
    return "BucketOwnerEnforced" not in rules


def locks_objects(body: bytes) -> bool:
    """Whether an ObjectLockConfiguration says that objects of the bucket can be locked."""
    return fields(root_of(body, "ObjectLockConfiguration")).get("ObjectLockEnabled", "").strip() == "Enabled"


def retention_body(lock: Lock) -> bytes:
    """The Retention that says until when, and how firmly."""
    root = Element("Retention", {"xmlns": NAMESPACE})
    SubElement(root, "Mode").text = lock.mode
    SubElement(root, "RetainUntilDate").text = iso_time(lock.until)
    return _said(root)


def legal_hold_body(lock: Lock) -> bytes:
    """The LegalHold that says whether there is one."""
    root = Element("LegalHold", {"xmlns": NAMESPACE})
    SubElement(root, "Status").text = "ON" if lock.is_held else "OFF"
    return _said(root)


def acl_of(body: bytes) -> Acl:
    """The AccessControlPolicy of an object or a bucket."""
    root = root_of(body, "AccessControlPolicy")
    grants = []
    for element in each(root, "Grant"):
        grantee = next(each(element, "Grantee"))
        who = fields(grantee)
        grants.append(Grant(who.get("URI") or who.get("ID") or who["EmailAddress"], fields(element)["Permission"]))
    return Acl(fields(next(each(root, "Owner")))["ID"], tuple(grants))


def acl_body(acl: Acl) -> bytes:
    """The AccessControlPolicy that says `acl`."""
    root = Element("AccessControlPolicy", {"xmlns": NAMESPACE})
    SubElement(SubElement(root, "Owner"), "ID").text = acl.owner
    listed = SubElement(root, "AccessControlList")
    for grant in acl.grants:
        group = grant.grantee.startswith("http")
        kind = {"xmlns:xsi": INSTANCE, "xsi:type": "Group" if group else "CanonicalUser"}
        element = SubElement(listed, "Grant")
        SubElement(SubElement(element, "Grantee", kind), "URI" if group else "ID").text = grant.grantee
        SubElement(element, "Permission").text = grant.permission
    return _said(root)


def delete_body(keys: Iterable[str], etags: Mapping[str, str]) -> bytes:
    """The Delete document: quiet, so that only failures are told; a key with an ETag goes only if it has that.

    Keys with what XML 1.0 cannot say (control characters but tab, newline and return) must not come here.
    """
    root = Element("Delete", {"xmlns": NAMESPACE})
    for key in keys:
        named = SubElement(root, "Object")
        SubElement(named, "Key").text = key
        if key in etags:
            SubElement(named, "ETag").text = f'"{etags[key]}"'
    SubElement(root, "Quiet").text = "true"
    return _said(root).replace(b"\r", b"&#13;")


def failures_of(body: bytes, asked: Sequence[str]) -> list[Failure]:
    """The keys that a DeleteObjects of those `asked` for could not delete.

    `UnclearBatch` where its answer names others, or those it has removed, as not every server does that was told to be
    quiet, and then not all.
    """
    failures, removed, kept = list[Failure](), set[str](), set[str]()
    for element in each(root_of(body, "DeleteResult"), "Deleted", "Error"):
        found = fields(element)
        key, code = found.get("Key", ""), found.get("Code", "")
        if name_of(element) == "Deleted":
            removed.add(key)
            continue
        kept.add(key)
        if code not in ("NoSuchKey", "NoSuchVersion"):
            error = from_s3(f"DeleteObjects {key!r}", code=code, status=0, detail=found.get("Message", ""))
            failures.append(Failure(key, error))
    named = removed | kept
    if not named.issubset(asked) or (removed and not named.issuperset(asked)):
        raise UnclearBatch
    return failures


def complete_body(parts: Sequence[Part]) -> bytes:
    """The CompleteMultipartUpload document; parts in order of their numbers."""
    if not parts:
        raise StoreError(errno.EINVAL, "CompleteMultipartUpload", detail="no parts")
    root = Element("CompleteMultipartUpload", {"xmlns": NAMESPACE})
    for part in sorted(parts, key=lambda part: part.number):
        element = SubElement(root, "Part")
        SubElement(element, "PartNumber").text = str(part.number)
        SubElement(element, "ETag").text = f'"{part.etag}"'
    return _said(root)
