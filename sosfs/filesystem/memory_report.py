"""What a mount has in memory, by kind.

What is bounded is counted where it is held; `program` is what the process has resident beside that: the interpreter,
its modules, threads, connections, and heaps that were larger once. So the kinds add up to what the system shows.

| kind | what |
|---|---|
| `blocks` | data of files that was read, and what `sosfs warm` has in flight |
| `names` | inodes, their names and attributes; of forgotten files what a reader or the kernel may come back to |
| `changes` | small drafts, and bodies on their way up |
| `answers` | bodies on their way down: listings, and data before it becomes blocks |
| `program` | the rest |
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sosfs.tracing.meters import METERS

PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Held:
    """Bytes that are counted where they are held."""

    blocks: int = 0
    names: int = 0
    changes: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.blocks + self.names + self.changes


def together(parts: Iterable[Held]) -> Held:
    """The sum of what several buckets hold."""
    all_of = list(parts)
    return Held(*(sum(getattr(part, kind) for part in all_of) for kind in Held.__slots__))


def resident() -> int:
    """Bytes of this process that are in memory, those of shared libraries too; 0 where /proc does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE
    except (OSError, ValueError, IndexError):
        return 0


def by_kind(held: Held, total: int) -> Mapping[str, int]:
    """Bytes of each kind, of `total` that are resident."""
    kinds = {kind: getattr(held, kind) for kind in Held.__slots__} | {"answers": METERS.arriving}
    return kinds | {"program": max(0, total - sum(kinds.values()))}
