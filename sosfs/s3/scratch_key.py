"""The key on which a server and a key's rights are tried."""

from __future__ import annotations

import uuid


def key(prefix: str) -> str:
    """A key under the prefix that nobody has."""
    return f"{prefix}.sosfs-probe-{uuid.uuid4()}"
