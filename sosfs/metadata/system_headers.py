"""The six system headers of an object, and what a new file gets.

Pure functions.
"""

from __future__ import annotations

import errno
import mimetypes
from dataclasses import replace
from email.utils import parsedate_to_datetime

from sosfs.s3.protocol import Headers

# SOS stores `application/binary` for a PUT without a type; the IANA name says the same to every client.
UNKNOWN = "application/octet-stream"
DIRECTORY = "application/x-directory"  # as s3fs marks its directories
# What servers say of an object that was stored without a type.
UNTYPED = frozenset({"", "binary/octet-stream", "application/binary", UNKNOWN})
_ENCODINGS = {"gzip": "application/gzip", "bzip2": "application/x-bzip2", "xz": "application/x-xz"}
_types = mimetypes.MimeTypes()  # the built-in table alone: the same answer on every machine


def for_name(name: str) -> Headers:
    """The headers of a new file of this name: its Content-Type, guessed from the suffix.

    A compressed file is given the type of its compression: `Content-Encoding` would make clients
    unpack it on the way.
    """
    kind, encoding = _types.guess_type(name, strict=False)
    if encoding:
        kind = _ENCODINGS.get(encoding, UNKNOWN)
    return Headers(content_type=kind or UNKNOWN)


def renamed(kind: str, old: str, new: str) -> str:
    """The Content-Type under the name `new`: what only the name `old` told becomes what the new one tells.

    Programs write under a temporary name first: rsync `.page.html.Xa3b`, browsers `page.html.part`. A type that
    `old` did not tell was given by somebody and stays, and so does any where the new name shows none.
    """
    told, before = for_name(new).content_type, for_name(old).content_type
    is_of_name = kind == before or (before == UNKNOWN and kind in UNTYPED)
    return told if is_of_name and told != UNKNOWN else kind


def for_file(known: Headers, name: str) -> Headers:
    """The headers of a file of this name of which these are known, or were set: S3 has no object without a type."""
    return known if known.content_type else replace(known, content_type=for_name(name).content_type)


def for_directory(known: Headers) -> Headers:
    """The headers of a directory's marker of which these are known, or were set."""
    return known if known.content_type else replace(known, content_type=DIRECTORY)


def checked(field: str, value: bytes) -> str:
    """The text of a header (a field of `Headers`) as a user gives it. Raises OSError EINVAL for what it cannot be."""
    try:
        text = value.decode()
    except UnicodeDecodeError as error:
        raise OSError(errno.EINVAL, "a header is text") from error
    if not text or text != text.strip():
        raise OSError(errno.EINVAL, "a header is not empty and has no blanks around it")
    if field == "expires":
        try:
            parsedate_to_datetime(text)
        except ValueError as error:
            raise OSError(errno.EINVAL, "write an HTTP date: Thu, 01 Dec 2044 16:00:00 GMT") from error
    return text
