"""Keys of objects that are no files: on which a server and a key's rights are tried, and of which holes are copied.

Pure.
"""

from __future__ import annotations

import re
import uuid

ZEROS = ".sosfs-zeros-"
_OF_ZEROS = re.compile(re.escape(ZEROS) + "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def key(prefix: str) -> str:
    """A key under the prefix that nobody has."""
    return f"{prefix}.sosfs-probe-{uuid.uuid4()}"


def of_zeros(prefix: str) -> str:
    """A key under the prefix for an object of zeros (`files.zero_objects`), which no listing shows."""
    return f"{prefix}{ZEROS}{uuid.uuid4()}"


def is_of_zeros(segment: str) -> bool:
    """Whether the last part of a key is that of an object of zeros."""
    return segment.startswith(ZEROS) and _OF_ZEROS.fullmatch(segment) is not None
