"""JuiceFS as a reference: its blocks go into the bucket, its names and attributes into SQLite on this machine.

No other S3 tool reads what it stores and no other machine has its metadata, hence no ratio is made with it but the one
that says whether it is ahead. Its volume lies beside the other systems' data in the same bucket.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests.bench.systems.system import Closed, Place, Role, System, program, until_idle

FORMAT = 60.0  # seconds
VOLUME = "juicefs"  # as the system that prepares it is called
STAGED = re.compile(r"^juicefs_staging_blocks (\S+)$", re.MULTILINE)


def _database(place: Place) -> Path:
    return place.shared / "juicefs.db"


def _storage(endpoint: str, place: Place) -> str:
    return f"{endpoint}/{place.bucket}"


def _format(place: Place) -> None:
    """Makes the volume, once a bucket."""
    if _database(place).exists():
        return
    storage = ["--storage", "s3", "--bucket", _storage(place.direct.endpoint, place)]
    keys = ["--access-key", place.server.key, "--secret-key", place.server.secret]
    command = [
        program("juicefs"),
        "format",
        *storage,
        *keys,
        "--trash-days",
        "0",
        f"sqlite3://{_database(place)}",
        VOLUME,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=FORMAT, check=False)
    if done.returncode:
        _database(place).unlink(missing_ok=True)
        raise OSError(f"juicefs format gave {done.returncode}: {done.stderr.strip()[-300:]}")


def _settle(place: Place) -> float:
    """Waits until none of its blocks is staged on the disk any more."""

    def busy() -> bool:
        found = STAGED.search((place.mountpoint / ".stats").read_text())
        return found is None or bool(float(found[1]))

    return until_idle(busy, "juicefs")


def _system(name: str, closed: Closed, *options: str) -> System:
    def command(place: Place) -> list[str]:
        where = [f"sqlite3://{_database(place)}", str(place.mountpoint), "--cache-dir", str(place.cache)]
        storage = ["--bucket", _storage(place.server.endpoint, place)]
        quiet = ["--no-usage-report", "--backup-meta", "0", "--metrics", f"127.0.0.1:{place.control}"]
        return [program("juicefs"), "mount", *where, *storage, *quiet, *options]

    told = " ".join(("metadata in SQLite", *options))
    return System(name, Role.REFERENCE, closed, told, command, prepare=_format, settle=_settle, prepared_by=VOLUME)


JUICEFS = [_system("juicefs", Closed.BUCKET), _system("juicefs-writeback", Closed.MACHINE, "--writeback")]
