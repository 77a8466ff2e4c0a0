"""Keys of objects that are no files: on which a server and a key's rights are tried, and of which holes are copied.

An object of zeros is told from a user's file by its name, since a listing shows no more: the name ends in a check of
itself, so that none has it by chance. Before one is removed that no journal knows, it must carry `PROOF` as well, which
who stores something else under its key does not send along.

Pure.
"""

from __future__ import annotations

import re
import uuid
from hashlib import sha256

from sosfs.s3.protocol import Properties

PROBE = ".sosfs-probe-"
ZEROS = ".sosfs-zeros-"
PROOF = Properties(metadata={"sosfs-zeros": "1"})  # what objects of zeros are stored with
_OF_ZEROS = re.compile(re.escape(ZEROS) + "([0-9a-f]{32})-([0-9a-f]{16})")


def key(prefix: str) -> str:
    """A key under the prefix that nobody has."""
    return f"{prefix}{PROBE}{uuid.uuid4()}"


def beginning(key: str) -> str:
    """What all such keys below the same prefix begin with; the key itself for another one."""
    before, found, _ = key.rpartition(PROBE)
    return before + found if found else key


def of_zeros(prefix: str) -> str:
    """A key under the prefix for an object of zeros (`files.zero_objects`), which no listing shows."""
    number = uuid.uuid4().hex
    return f"{prefix}{ZEROS}{number}-{_check(number)}"


def is_of_zeros(segment: str) -> bool:
    """Whether the last part of a key is that of an object of zeros."""
    found = _OF_ZEROS.fullmatch(segment) if segment.startswith(ZEROS) else None
    return found is not None and found[2] == _check(found[1])


def is_proven(properties: Properties) -> bool:
    """Whether a mount has stored an object of these properties as one of zeros."""
    return PROOF.metadata.items() <= properties.metadata.items()


def _check(number: str) -> str:
    """64 bits: no name that somebody chooses has them by chance."""
    return sha256(f"sosfs zeros {number}".encode()).hexdigest()[:16]
