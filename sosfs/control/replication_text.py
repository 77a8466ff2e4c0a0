"""Where a bucket is copied to by the server, as text that is only read: S3's JSON, after a line that says so.

How it is set up is each provider's own (roles, versioning on both sides). Pure functions, safe from any thread.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

NONE = "# This bucket is replicated nowhere.\n"
HELP = "# Where the server copies what is stored here. To be read; it is set with the provider's own tools.\n"


def shown(found: Mapping[str, Any]) -> str:
    """The text of a replication; of none a comment that says so."""
    return HELP + json.dumps(found, indent=2, ensure_ascii=False) + "\n" if found else NONE
