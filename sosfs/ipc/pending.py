"""What a mount tells of each change that the bucket lacks, and how one is tried at once."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any


class Kind(Enum):
    """What of a file the bucket lacks."""

    CONTENT = "content"
    ATTRIBUTES = "attributes"  # mode, owner, times, headers; of a directory also that it is there
    REMOVAL = "removal"
    RENAME = "rename"  # that is under way, or has failed or was cut short: copies may be left
    EARLIER = "earlier changes"  # of a mount before this one, to a bucket that nobody has entered since


@dataclass(frozen=True, slots=True)
class Pending:
    """One change that waits. Times are seconds since the epoch, 0.0 for none; sizes are bytes.

    `names` lead from the root of the mount to the file. Of `size` bytes that go up the server has, or is just getting,
    `uploaded`. `retry_at` is when it is tried again; 0.0 also while it is tried, and where nothing is tried by itself.
    """

    names: tuple[bytes, ...]
    kind: Kind
    since: float
    size: int = 0
    uploaded: int = 0
    error: str = ""
    retry_at: float = 0.0

    def is_under(self, names: tuple[bytes, ...]) -> bool:
        """Whether it is at this path, or below it."""
        return self.names[: len(names)] == names

    def told(self) -> dict[str, Any]:
        """As it goes over the socket."""
        return {
            "path": os.fsdecode(b"/".join(self.names)),
            "kind": self.kind.value,
            "since": self.since,
            "size": self.size,
            "uploaded": self.uploaded,
            "error": self.error,
            "retry_at": self.retry_at,
        }


@dataclass(frozen=True, slots=True)
class Change:
    """A change that waits, and how it is tried at once. `attempt` raises OSError for what keeps it waiting.

    `key` is what a removal is of.
    """

    pending: Pending
    attempt: Callable[[], Awaitable[object]]
    key: str = ""
