"""What makes a bucket ready for a system and looks at it afterwards, whoever does it.

An S3 client does for systems whose files are objects; for one with a format of its own `through_mount.Files` does, as
nobody else can write what it reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

THREADS = 16
Item = TypeVar("Item")


class Client(Protocol):
    """Paths are keys, relative to the bucket's top. Thread-safe."""

    def put(self, key: str, data: bytes) -> None:
        """Puts a small file, whose directory is there."""

    def put_directory(self, key: str) -> None:
        """Puts a directory."""

    def put_whole(self, key: str, pieces: Iterable[memoryview | bytes]) -> None:
        """Puts a big file in one request where there are requests."""

    def put_parts(self, key: str, pieces: Iterable[memoryview | bytes]) -> None:
        """Puts a big file."""

    def delete(self, prefix: str) -> None:
        """Deletes everything below."""

    def rest(self) -> None:
        """Holds nothing that another mount could mind; called before the system is mounted."""


def each(do: Callable[[Item], object], items: Iterable[Item], *, threads: int = THREADS) -> None:
    """Does it to each item in threads; the first failure is raised."""
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(do, items):
            pass
