"""Waiting for what comes about by itself, and whether a process is still there."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

SECONDS = 30.0  # for what takes one second on an idle machine


def until(true: Callable[[], object], what: str) -> None:
    """Waits until `true` says so; fails with `what` when that takes too long."""
    deadline = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < deadline, f"not within {SECONDS:.0f} s: {what}"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether a process is there, and is no corpse that waits to be collected."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False
