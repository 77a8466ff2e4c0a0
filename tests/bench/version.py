"""Which version of the code is measured: results of another are not gone on with."""

from __future__ import annotations

import hashlib
import subprocess

from tests.bench.systems.system import ROOT

# What a measurement depends on; pages and published results change without changing it.
CODE = ("sosfs", "tests/bench", "tests/support", ":(exclude)sosfs/docs", ":(exclude)tests/bench/measured")


def version() -> str:
    """The commit that last changed the code; with `+` and a digest where there are changes beside it."""
    commit = _git("log", "-1", "--format=%h", "--", *CODE).decode().strip()
    if not commit:
        return "unknown"
    changes = _git("diff", "HEAD", "--", *CODE) + _git("ls-files", "--others", "--exclude-standard", "--", *CODE)
    return f"{commit}+{hashlib.sha256(changes).hexdigest()[:6]}" if changes else commit


def _git(*command: str) -> bytes:
    """What git says; nothing where there is no git or no repository."""
    try:
        return subprocess.run(["git", *command], cwd=ROOT, capture_output=True, timeout=30, check=True).stdout
    except (FileNotFoundError, subprocess.CalledProcessError):
        return b""
