"""The XML of S3: what bodies of requests and answers look like, decided here and only here.

Read with the C parser of the standard library: 5 ms of CPU for a page of 1,000 keys, where boto3 takes 57.
Namespaces are passed over, because servers disagree about them. An answer that is not the XML it should be
raises `ParseError`, which the lane makes an EIO. Pure functions, safe from any thread.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from functools import lru_cache
from urllib.parse import unquote_plus
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, ParseError, SubElement

from sosfs.errors import StoreError, from_s3
from sosfs.store import Acl, Bucket, Failure, Grant, Listed, Page, Part, Upload, Version
from sosfs.wire import bare_etag, class_of, modified

NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
INSTANCE = "http://www.w3.org/2001/XMLSchema-instance"

_CONTROLS = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f]|&#(?:x0*1?[0-9a-f]|0*[12]?\d|0*3[01]);", re.IGNORECASE)

__all__ = ["ParseError"]


@lru_cache(1024)
def _bare(tag: str) -> str:
    return tag.rpartition("}")[2]


def _name(element: Element) -> str:
    return _bare(element.tag)


def _fields(element: Element) -> dict[str, str]:
    """The texts of an element's children by their names, the last of each name."""
    return {_bare(child.tag): child.text or "" for child in element}


def _each(root: Element, *names: str) -> Iterator[Element]:
    return (element for element in root.iter() if _name(element) in names)


def _tree(body: bytes) -> Element:
    """The document; servers echo the key, and one with control characters makes it no XML unless they go."""
    try:
        return ElementTree.fromstring(body)
    except ParseError:
        return ElementTree.fromstring(_CONTROLS.sub(b"?", body))


def _root(body: bytes, *names: str) -> Element:
    root = _tree(body)
    if _name(root) not in names:
        raise ParseError(f"{_name(root)} where {names[0]} was due")
    return root


def _said(root: Element) -> bytes:
    return bytes(ElementTree.tostring(root, encoding="utf-8"))


def error_of(body: bytes) -> tuple[str, str]:
    """Code and message of an error answer; ("", "") for a body that is none, such as a proxy's page."""
    try:
        root = _tree(body)
    except ParseError:
        return "", ""
    found = _fields(root) if _name(root) == "Error" else {}
    return found.get("Code", ""), found.get("Message", "")


def endpoint_of(body: bytes) -> str:
    """The host that the error answer of a redirect names (PermanentRedirect, TemporaryRedirect); "" for none."""
    try:
        return _fields(_tree(body)).get("Endpoint", "")
    except ParseError:
        return ""


def page_of(body: bytes) -> Page:
    """One page of ListObjectsV2, asked with `encoding-type=url`."""
    root = _root(body, "ListBucketResult")
    told = _fields(root)
    plain = _unquoted if told.get("EncodingType") == "url" else str
    objects: list[Listed] = []
    prefixes: list[str] = []
    for element in root:
        if (name := _name(element)) == "Contents":
            found = _fields(element)
            when = modified(datetime.fromisoformat(found["LastModified"]))
            version = Version(bare_etag(found["ETag"]), int(found["Size"]), when)
            objects.append(Listed(plain(found["Key"]), version, class_of(found.get("StorageClass", ""))))
        elif name == "CommonPrefixes":
            prefixes.append(plain(_fields(element)["Prefix"]))
    more = told.get("IsTruncated") == "true"
    return Page(tuple(objects), tuple(prefixes), told["NextContinuationToken"] if more else "")


def _unquoted(text: str) -> str:
    text = text.replace("%2F", "/")  # in all keys but those at the top, most have nothing else: 1 us instead of 9
    return unquote_plus(text) if "%" in text or "+" in text else text


def buckets_of(body: bytes) -> tuple[str, list[Bucket], str]:
    """One page of ListBuckets: the owner's id, the buckets, and the token of the next page ("" after the last)."""
    root = _root(body, "ListAllMyBucketsResult")
    owner = next((_fields(element).get("ID", "") for element in _each(root, "Owner")), "")
    buckets = []
    for element in _each(root, "Bucket"):
        found = _fields(element)
        created = datetime.fromisoformat(found["CreationDate"]).timestamp()
        buckets.append(Bucket(found["Name"], created, found.get("BucketRegion", "")))
    return owner, buckets, _fields(root).get("ContinuationToken", "")


def location_body(region: str) -> bytes:
    """The CreateBucketConfiguration that asks for a region."""
    root = Element("CreateBucketConfiguration", {"xmlns": NAMESPACE})
    SubElement(root, "LocationConstraint").text = region
    return _said(root)


def copied_etag(body: bytes, name: str) -> str:
    """The ETag in a CopyObjectResult, CopyPartResult or CompleteMultipartUploadResult."""
    return bare_etag(_fields(_root(body, name))["ETag"])


def upload_id(body: bytes) -> str:
    """The id in an InitiateMultipartUploadResult."""
    return _fields(_root(body, "InitiateMultipartUploadResult"))["UploadId"]


def parts_of(body: bytes) -> tuple[list[Part], str]:
    """One page of ListParts, and the marker of the next ("" after the last)."""
    root = _root(body, "ListPartsResult", "ListPartsResponse")  # the second is moto's
    told = _fields(root)
    parts = []
    for element in _each(root, "Part"):
        found = _fields(element)
        parts.append(Part(int(found["PartNumber"]), bare_etag(found["ETag"]), int(found["Size"])))
    return parts, told["NextPartNumberMarker"] if told.get("IsTruncated") == "true" else ""


def uploads_of(body: bytes, *, encoded: bool = False) -> tuple[list[Upload], tuple[str, str] | None]:
    """One page of ListMultipartUploads, and key and id after which the next begins (None after the last).

    `encoded`: asked with `encoding-type=url`, which Ceph 16 obeys without saying so. Else ParseError where a
    key has what XML cannot say.
    """
    root = _tree(body) if encoded else ElementTree.fromstring(body)
    if _name(root) != "ListMultipartUploadsResult":
        raise ParseError(_name(root))
    told = _fields(root)
    plain = _unquoted if encoded else str
    uploads = []
    for element in _each(root, "Upload"):
        found = _fields(element)
        started = modified(datetime.fromisoformat(found["Initiated"]))
        uploads.append(Upload(plain(found["Key"]), found["UploadId"], started))
    if told.get("IsTruncated") != "true":
        return uploads, None
    return uploads, (plain(told["NextKeyMarker"]), told["NextUploadIdMarker"])


def version_ids(body: bytes, *, key: str) -> list[str]:
    """The ids of all versions and delete markers of one key in a page of ListObjectVersions."""
    told = [_fields(element) for element in _each(_root(body, "ListVersionsResult"), "Version", "DeleteMarker")]
    return [found["VersionId"] for found in told if found["Key"] == key]


def acl_of(body: bytes) -> Acl:
    """The AccessControlPolicy of an object or a bucket."""
    root = _root(body, "AccessControlPolicy")
    grants = []
    for element in _each(root, "Grant"):
        grantee = next(_each(element, "Grantee"))
        who = _fields(grantee)
        grants.append(Grant(who.get("URI") or who.get("ID") or who["EmailAddress"], _fields(element)["Permission"]))
    return Acl(_fields(next(_each(root, "Owner")))["ID"], tuple(grants))


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


def delete_body(keys: Iterable[str]) -> bytes:
    """The Delete document: quiet, so that only failures are told.

    Keys with what XML 1.0 cannot say (control characters but tab, newline and return) must not come here.
    """
    root = Element("Delete", {"xmlns": NAMESPACE})
    for key in keys:
        SubElement(SubElement(root, "Object"), "Key").text = key
    SubElement(root, "Quiet").text = "true"
    return _said(root).replace(b"\r", b"&#13;")


def failures_of(body: bytes) -> list[Failure]:
    """The keys that a DeleteObjects could not delete."""
    failures = []
    for element in _each(_root(body, "DeleteResult"), "Error"):
        found = _fields(element)
        code = found.get("Code", "")
        if code in ("NoSuchKey", "NoSuchVersion"):
            continue
        key = found["Key"]
        error = from_s3(f"DeleteObjects {key!r}", code=code, status=0, detail=found.get("Message", ""))
        failures.append(Failure(key, error))
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
