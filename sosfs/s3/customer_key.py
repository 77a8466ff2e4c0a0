"""The key of SSE-C, with which the server encrypts and which it does not keep.

It is read from a file once, at the start, and goes nowhere but into the headers of requests: no repr, log, status
or journal has it. A server needs it with each request that reads or writes an object's bytes or asks about it, a
copy needs it for the source as well (S3 API, "Using SSE-C"). Immutable; safe from any thread.
"""

from __future__ import annotations

import binascii
import errno
import os
import stat
from base64 import b64decode, b64encode
from dataclasses import dataclass, field
from hashlib import md5
from pathlib import Path

from sosfs.errors import StoreError

SIZE = 32  # bytes: S3 knows no other algorithm than AES256
FILE_MAX = 1024  # bytes; a larger file is no key
ALGORITHM = "x-amz-server-side-encryption-customer-algorithm"
_PREFIX = "x-amz-"
_SOURCE_PREFIX = "x-amz-copy-source-"
# Operations that need an object's bytes or metadata, and so its key.
READING = frozenset({"HeadObject", "GetObject", "CopyObject", "UploadPartCopy"})
# What servers call a missing or wrong key: AWS InvalidRequest, Ceph InvalidArgument, a HEAD nothing. A wrong
# one is AccessDenied at AWS.
_CODES = frozenset({"InvalidRequest", "InvalidArgument", ""})


class CustomerKeyError(OSError):
    """No usable key, in words for the user that tell nothing of it."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(errno.EACCES, f"encryption key {path}: {why}")

    def __str__(self) -> str:
        return str(self.strerror)


@dataclass(frozen=True, slots=True)
class CustomerKey:
    """A key of 32 bytes."""

    secret: bytes = field(repr=False)

    @classmethod
    def read(cls, path: Path) -> CustomerKey:
        """The key in a file: 32 bytes or their base64, perhaps with a line end.

        Raises `CustomerKeyError` for a file that is none, and for one that others than its owner and group may read.
        """
        try:
            with path.open("rb") as file:
                mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
                text = file.read(FILE_MAX)
        except OSError as error:
            raise CustomerKeyError(path, error.strerror or str(error)) from error
        if mode & stat.S_IROTH:
            raise CustomerKeyError(path, f"every user may read it (mode {mode:04o}); use 'chmod 600'")
        secret = _decoded(text)
        if secret is None:
            raise CustomerKeyError(path, f"neither {SIZE} bytes nor the base64 of {SIZE} bytes")
        return cls(secret)

    @property
    def base64(self) -> str:
        """The key as headers carry it."""
        return b64encode(self.secret).decode()

    @property
    def headers(self) -> dict[str, str]:
        """What a request says whose object is, or is to be, encrypted with this key."""
        return self._headers(_PREFIX)

    @property
    def source_headers(self) -> dict[str, str]:
        """What a copy says of its source."""
        return self._headers(_SOURCE_PREFIX)

    def _headers(self, prefix: str) -> dict[str, str]:
        name = f"{prefix}server-side-encryption-customer"
        digest = md5(self.secret, usedforsecurity=False).digest()
        return {
            f"{name}-algorithm": "AES256",
            f"{name}-key": self.base64,
            f"{name}-key-MD5": b64encode(digest).decode(),
        }


def _decoded(text: bytes) -> bytes | None:
    raw = text.removesuffix(b"\n") if len(text) == SIZE + 1 else text
    if len(raw) == SIZE:
        return raw
    try:
        secret = b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError):
        return None
    return secret if len(secret) == SIZE else None


def explain(operation: str, error: StoreError) -> None:
    """Makes a refusal EACCES that an object's key explains, with or without a key of our own.

    A read has nothing else in it that a server could call invalid. A gateway's page speaks of no key.
    """
    if operation in READING and error.status == 400 and error.code in _CODES and not error.elsewhere:
        error.errno = errno.EACCES
        error.strerror = f"{error.request}: the object has another encryption key (SSE-C) than this mount, or none"


def require_encrypted(request: str, told: str) -> None:
    """EPROTO unless the server's answer to a write, `told` in its header, says that it encrypted with our key.

    A server that knows no SSE-C takes the headers for nothing and stores the bytes as they are.
    """
    if told != "AES256":
        raise StoreError(errno.EPROTO, request, detail="it knows no SSE-C, and would store everything unencrypted")
