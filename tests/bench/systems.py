"""The systems side by side: how each is mounted, by default and tuned, and when its writes are in the bucket.

A tuned variant gets what its documentation recommends for speed without loosening what it promises; what it
then promises stands in its durability point; `sosfs-listed` shows the listing's times at first, and
`sosfs-unverified` compares nothing with the server's checksums. To add a system is to add a `System` to `SYSTEMS`.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.bare import REGION
from tests.bench.servers import Server
from tests.support.processes import free_port

ROOT = Path(__file__).resolve().parents[2]
POLL = 0.02  # seconds
DEADLINE = 600.0  # seconds for uploads that go on in the background
# What a file system that has no fsync for directories answers.
NO_FSYNC = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EBADF}


@dataclass(frozen=True)
class Place:
    """What a system is told to mount, where, and what it may use: all paths are its own."""

    server: Server  # its endpoint may be that of a proxy
    bucket: str
    mountpoint: Path
    cache: Path
    control: int = field(default_factory=free_port)  # a port for its remote control


@dataclass(frozen=True)
class System:
    """A mountable system: `command` stays in the foreground, `settle` waits until all writes are in the bucket."""

    name: str
    command: Callable[[Place], list[str]]
    environment: Callable[[Place], Mapping[str, str]]
    settle: Callable[[Place], None]
    durability: str
    unmount: tuple[str, ...] = ("fusermount3", "-u")


def sync_directory(path: Path) -> None:
    """fsync of a directory, where the system has it."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in NO_FSYNC:
            raise
    finally:
        os.close(handle)


def _plain(_: Place) -> dict[str, str]:
    return {}


def _settled(_: Place) -> None:
    """Close waited already."""


def _sosfs(*options: str, name: str, durability: str, settle: Callable[[Place], None]) -> System:
    def command(place: Place) -> list[str]:
        where = ["--endpoint", place.server.endpoint, "--cache-dir", str(place.cache)]
        program = [sys.executable, "-m", "sosfs", "mount", "-f"]
        return [*program, place.bucket, str(place.mountpoint), *where, *options]

    def environment(place: Place) -> dict[str, str]:
        keys = {"EXOSCALE_API_KEY": place.server.key, "EXOSCALE_API_SECRET": place.server.secret}
        return {**keys, "PYTHONPATH": str(ROOT)}

    return System(name, command, environment, settle, durability, (sys.executable, "-m", "sosfs", "umount"))


def _sync_all(place: Place) -> None:
    sync_directory(place.mountpoint)


def _s3fs(*options: str, name: str) -> System:
    def command(place: Place) -> list[str]:
        secret = place.cache / "passwd"
        secret.touch(mode=0o600)
        secret.write_text(f"{place.server.key}:{place.server.secret}\n")
        fixed = f"url={place.server.endpoint},use_path_request_style,endpoint={REGION},passwd_file={secret}"
        given = [option.format(cache=place.cache) for option in options]
        return ["s3fs", place.bucket, str(place.mountpoint), "-f", "-o", ",".join([fixed, *given])]

    return System(name, command, _plain, _settled, "close: in bucket")


def _rclone(*options: str, name: str, durability: str) -> System:
    def command(place: Place) -> list[str]:
        program = str(Path(sys.executable).with_name("rclone"))
        control = ["--rc", "--rc-no-auth", "--rc-addr", f"127.0.0.1:{place.control}", "--config", "/dev/null"]
        where = [f"bench:{place.bucket}", str(place.mountpoint), "--cache-dir", str(place.cache)]
        return [program, "mount", *where, *control, *options]

    def environment(place: Place) -> dict[str, str]:
        remote = {
            "TYPE": "s3",
            "PROVIDER": place.server.provider,
            "ENDPOINT": place.server.endpoint,
            "ACCESS_KEY_ID": place.server.key,
            "SECRET_ACCESS_KEY": place.server.secret,
            "REGION": REGION,
            "FORCE_PATH_STYLE": "true",
        }
        return {f"RCLONE_CONFIG_BENCH_{name}": value for name, value in remote.items()}

    return System(name, command, environment, _rclone_settle, durability)


def _rclone_settle(place: Place) -> None:
    """Waits until it uploads nothing and no file of its cache is changed, twice in a row.

    A file enters its queue a moment after the close, and much later where it is first fetched to the end.
    """
    deadline, idle = time.monotonic() + DEADLINE, 0
    while idle < 2:
        if time.monotonic() > deadline:
            raise TimeoutError(errno.ETIMEDOUT, "rclone still uploads")
        time.sleep(POLL)
        cache = _rclone_call(place, "vfs/stats").get("diskCache", {})
        waiting = cache.get("uploadsInProgress", 0) + cache.get("uploadsQueued", 0)
        idle = 0 if waiting or _rclone_changed(place) else idle + 1


def _rclone_changed(place: Place) -> bool:
    """Whether its cache has a file that is not in the bucket as it is here; asked only once its queue is empty."""
    return any(_rclone_says_dirty(path) for path in (place.cache / "vfsMeta").rglob("*") if path.is_file())


def _rclone_says_dirty(path: Path) -> bool:
    try:
        return bool(json.loads(path.read_bytes())["Dirty"])
    except FileNotFoundError:
        return False  # left its cache
    except ValueError:
        return True  # is being written


def _rclone_call(place: Place, name: str) -> dict[str, dict[str, int]]:
    request = urllib.request.Request(f"http://127.0.0.1:{place.control}/{name}", data=b"", method="POST")
    with urllib.request.urlopen(request, timeout=30) as answer:
        found: dict[str, dict[str, int]] = json.load(answer)
        return found


S3FS_TUNED = (
    "use_cache={cache}",
    "parallel_count=16",
    "multipart_size=16",
    "multireq_max=64",
    "enable_noobj_cache",
    "kernel_cache",
    "big_writes",
    "max_readahead=1048576",
)
RCLONE_TUNED = (
    "--vfs-read-chunk-streams=8",
    "--vfs-read-chunk-size=8M",
    "--vfs-read-ahead=64M",
    "--vfs-fast-fingerprint",
    "--vfs-write-back=100ms",
    "--transfers=16",
    "--s3-upload-concurrency=8",
    "--s3-chunk-size=16M",
    "--attr-timeout=10s",
)
WAITED = "none: close returns at once, waited for by vfs/stats (write-back {})"


def _has_journal() -> bool:
    command = [sys.executable, "-m", "sosfs", "mount", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True, cwd=ROOT)
    return "--durability" in done.stdout


def _systems() -> dict[str, System]:
    bucket, journal = "close: in bucket", "close: in local journal, waited for by fsync of the mount's top"
    found = [
        _sosfs(name="sosfs", durability=bucket, settle=_settled),
        _sosfs("--memory", "1G", "--ttl", "60", name="sosfs-tuned", durability=bucket, settle=_settled),
        _sosfs("--attributes", "listed", name="sosfs-listed", durability=bucket, settle=_settled),
        _sosfs("--verify", "none", name="sosfs-unverified", durability=bucket, settle=_settled),
        _s3fs(name="s3fs"),
        _s3fs(*S3FS_TUNED, name="s3fs-tuned"),
    ]
    for mode in ("full", "writes"):
        cached = f"--vfs-cache-mode={mode}"
        found.append(_rclone(cached, name=f"rclone-{mode}", durability=WAITED.format("5 s")))
        found.append(_rclone(cached, *RCLONE_TUNED, name=f"rclone-{mode}-tuned", durability=WAITED.format("0.1 s")))
    if _has_journal():
        found.insert(1, _sosfs("--durability", "journal", name="sosfs-journal", durability=journal, settle=_sync_all))
    return {system.name: system for system in found}


SYSTEMS = _systems()
FLOOR = "floor"
