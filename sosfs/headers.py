"""The six system headers of an object: what a new file gets. Decided here and only here. Pure functions."""

from __future__ import annotations

import mimetypes

from .store import Headers

# SOS stores `application/binary` for a PUT without a type; the IANA name says the same to every client.
UNKNOWN = "application/octet-stream"
DIRECTORY = "application/x-directory"  # as s3fs marks its directories
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


def for_directory() -> Headers:
    """The headers of a directory's marker."""
    return Headers(content_type=DIRECTORY)
