"""Which cores serve and which work: the S3 server and its relay on one half, mounts and programs on the other.

Else, on a machine with few cores, most rows would measure how the two take time from each other. Affinity is of a
thread and what it starts inherits it, so a server is started within `serving()`, from the thread that called `pin()`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Cores:
    """The cores of both sides; the same ones where there are not two."""

    server: frozenset[int]
    client: frozenset[int]

    @classmethod
    def halves(cls, available: set[int]) -> Cores:
        """Splits what there is: the lower half serves, what is over works."""
        cores = sorted(available)
        half = len(cores) // 2
        if not half:
            return cls(frozenset(cores), frozenset(cores))
        return cls(frozenset(cores[:half]), frozenset(cores[half:]))

    @classmethod
    def of_machine(cls) -> Cores:
        """Splits the cores that this process may use."""
        return cls.halves(os.sched_getaffinity(0))

    @property
    def apart(self) -> bool:
        """Whether the sides have cores of their own."""
        return not self.server & self.client

    def pin(self) -> None:
        """Leaves the calling thread, and what it starts from now on, the cores of the working side."""
        os.sched_setaffinity(0, self.client)

    @contextmanager
    def serving(self) -> Iterator[None]:
        """What is started in here gets the server's cores."""
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, self.server)
        try:
            yield
        finally:
            os.sched_setaffinity(0, before)

    def __str__(self) -> str:
        if not self.apart:
            return "one core for all, nothing is pinned"
        return f"server on core {_list(self.server)}, mounts and programs on core {_list(self.client)}"


def _list(cores: frozenset[int]) -> str:
    return ",".join(map(str, sorted(cores)))
