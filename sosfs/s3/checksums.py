"""The checksums that S3 keeps of objects: read, compute, compare.

Values and pure functions, safe from any thread.
"""

from __future__ import annotations

import binascii
import hashlib
import zlib
from base64 import b64decode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

# Their names in headers and sizes in bytes (API reference, "Checksum"); the first that is told is the cheapest.
SIZES: Mapping[str, int] = MappingProxyType({"crc64nvme": 8, "crc32c": 4, "crc32": 4, "sha1": 20, "sha256": 32})
_FIELD = "x-amz-checksum-"


@dataclass(frozen=True, slots=True)
class Checksum:
    """What a hash of all bytes of an object gives; `algorithm` is "md5" or one of `SIZES`."""

    algorithm: str
    value: bytes


class Digest(Protocol):
    """A running hash, as hashlib has them."""

    def update(self, data: memoryview, /) -> None: ...
    def digest(self) -> bytes: ...


class _Crc:
    """A CRC as a running hash; its digest is big-endian, as S3 sends it."""

    def __init__(self, function: Callable[[memoryview, int], int], size: int) -> None:
        self._function, self._size, self._value = function, size, 0

    def update(self, data: memoryview, /) -> None:
        self._value = self._function(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(self._size, "big")


def begun(algorithm: str) -> Digest:
    """An empty hash."""
    if algorithm == "crc32":
        return _Crc(zlib.crc32, 4)
    if algorithm in ("crc32c", "crc64nvme"):
        from awscrt import checksums  # noqa: PLC0415  # 0.2 s, and few objects need it

        return _Crc(checksums.crc32c, 4) if algorithm == "crc32c" else _Crc(checksums.crc64nvme, 8)
    return hashlib.new(algorithm, usedforsecurity=False)


def of(algorithm: str, body: memoryview) -> bytes:
    """The hash of `body`."""
    digest = begun(algorithm)
    digest.update(body)
    return digest.digest()


def in_etag(etag: str) -> Checksum | None:
    """The MD5 that the ETag of a single PUT is on most servers; None for an ETag of another form."""
    if len(etag) != 32:
        return None
    try:
        return Checksum("md5", bytes.fromhex(etag))
    except ValueError:
        return None


def in_headers(headers: Mapping[str, str], etag: str) -> Checksum | None:
    """The checksum of the full object that an answer shows; one that is made of parts' checksums is none."""
    if _FIELD not in "\n".join(headers).lower():  # as in most answers
        return None
    kind = headers.get(f"{_FIELD}type", "" if "-" in etag else "FULL_OBJECT")
    if kind.upper() != "FULL_OBJECT":
        return None
    for algorithm, size in SIZES.items():
        try:
            value = b64decode(headers.get(_FIELD + algorithm, ""), validate=True)
        except (binascii.Error, ValueError):
            continue
        if len(value) == size:
            return Checksum(algorithm, value)
    return None
