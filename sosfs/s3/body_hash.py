"""When the SHA-256 of a request's body is signed, so that the server can tell whether it got that body.

Values, safe from any thread.
"""

from __future__ import annotations

from enum import Enum
from functools import cache
from pathlib import Path


class BodyHash(Enum):
    """Whose bodies are hashed."""

    IN_CLEAR = "those that go in the clear"  # TLS keeps a body whole already
    ALWAYS = "all"


@cache
def has_sha_instructions() -> bool:
    """Whether this processor hashes by instructions of its own: then SHA-256 takes half as long as MD5, else twice."""
    try:
        told = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    lines = (line.partition(":") for line in told.splitlines())
    flags = {flag for name, _, value in lines if name.strip() in ("flags", "Features") for flag in value.split()}
    return not flags.isdisjoint(("sha_ni", "sha2"))  # x86, ARM
