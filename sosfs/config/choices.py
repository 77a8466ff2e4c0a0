"""Words and bounds that options share with the store.

Immutable values.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

PART_MIN = 5 << 20  # bytes; every part but the last (S3 and SOS limits)
PART_MAX = 5 << 30


class Canned(Enum):
    """The ACLs that have a name (SOS "ACL"; the last two for objects only). The server makes grants of them."""

    PRIVATE = "private"
    PUBLIC_READ = "public-read"
    PUBLIC_READ_WRITE = "public-read-write"
    AUTHENTICATED_READ = "authenticated-read"
    BUCKET_OWNER_READ = "bucket-owner-read"
    BUCKET_OWNER_FULL_CONTROL = "bucket-owner-full-control"


class Acls(Enum):
    """Whether what is renamed, rewritten or given other attributes keeps the ACL that it had."""

    AUTO = "auto"  # as KEEP, unless the bucket's ownership rules say that there are none
    KEEP = "keep"
    IGNORE = "ignore"


@dataclass(frozen=True, slots=True)
class Share:
    """So much of a disk: bytes, or per cent of it."""

    size: int = 0
    percent: float = 0.0

    def of(self, disk: int) -> int:
        """Bytes of a disk of `disk` bytes."""
        return int(disk * self.percent / 100) if self.percent else self.size


class Verify(Enum):
    """Which bytes are compared with the checksums that the server gives."""

    ALL = "all"  # what is read and what is written
    NONE = "none"
