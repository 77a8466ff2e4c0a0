"""Tell whether a close is the last one of a process.

A shell opens `> file`, duplicates the descriptor and closes the first, all before a byte is written; FUSE
tells every one of these closes alike. Sending the empty file each time would double the requests and show other
clients a file that never was. /proc tells whether the process that opened the file has it open still;
where it may not be read, or names another mount namespace's paths, the answer is no, and the file is sent.
"""

from __future__ import annotations

import os
from pathlib import Path


def holds(task: int, path: str) -> bool:
    """Whether a task has a descriptor of the file at this path."""
    folder = Path(f"/proc/{task}/fd")
    try:
        return any(_target(entry) == path for entry in os.scandir(folder))
    except OSError:
        return False


def _target(entry: os.DirEntry[str]) -> str:
    try:
        return os.readlink(entry.path)  # noqa: PTH115 - a string is compared
    except OSError:
        return ""  # closed meanwhile
