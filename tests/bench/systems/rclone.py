"""rclone mount with its VFS cache: without its delay before an upload and tuned, and with its defaults.

Its close returns when the bytes are in its cache on the disk; without the delay it uploads in the release that the
kernel sends after the close, where nobody waits for it either. When a file is renamed at that moment, as git does, it
is never uploaded (rclone 1.75: `item close failed`, and then only its cache has it). There the shortest delay that is
safe from it is a peer too.
"""

from __future__ import annotations

import errno
import json
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.bench.bare import REGION
from tests.bench.systems.system import Closed, Place, Role, System, program, until_idle

STUCK = 45.0  # seconds that one file may take to be uploaded before it is taken for lost
AT_ONCE, DELAYED = "--vfs-write-back=0", "--vfs-write-back=100ms"
BEST = (
    "--vfs-read-chunk-streams=8",
    "--vfs-read-chunk-size=8M",
    "--vfs-read-ahead=64M",
    "--vfs-fast-fingerprint",
    "--transfers=16",
    "--s3-upload-concurrency=8",
    "--s3-chunk-size=16M",
    "--attr-timeout=10s",
)


def _system(name: str, role: Role, *options: str, for_renames: bool = False) -> System:
    given = ("--vfs-cache-mode=full", *options)
    told = " ".join(given)

    def command(place: Place) -> list[str]:
        control = ["--rc", "--rc-no-auth", "--rc-addr", f"127.0.0.1:{place.control}", "--config", "/dev/null"]
        where = [f"bench:{place.bucket}", str(place.mountpoint), "--cache-dir", str(place.cache)]
        return [program("rclone"), "mount", *where, *control, *given]

    return System(name, role, Closed.MACHINE, told, command, _environment, settle=_settle, for_renames=for_renames)


def _environment(place: Place) -> Mapping[str, str]:
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


def _settle(place: Place) -> float:
    """Waits until it uploads nothing and no file of its cache is changed.

    A file enters its queue a moment after the close, and much later where it is first fetched to the end; without the
    delay it enters none. Of its cache's files one that is changed is asked for until it is not: to look at all of them
    each time would take the time of the core that it runs on too.
    """
    changed, since = None, time.monotonic()

    def busy() -> bool:
        nonlocal changed, since
        if _uploads(place):  # which fails where it has died
            return True
        if changed is None or not _says_dirty(changed):
            changed, since = next(filter(_says_dirty, _cached(place)), None), time.monotonic()
        if changed is not None and time.monotonic() > since + STUCK:
            raise OSError(errno.EIO, f"rclone does not upload {changed.name}")
        return changed is not None

    return until_idle(busy, "rclone")


def _uploads(place: Place) -> bool:
    cache = _call(place, "vfs/stats").get("diskCache", {})
    return bool(cache.get("uploadsInProgress", 0) + cache.get("uploadsQueued", 0))


def _cached(place: Place) -> Iterator[Path]:
    return (path for path in (place.cache / "vfsMeta").rglob("*") if path.is_file())


def _says_dirty(path: Path) -> bool:
    try:
        return bool(json.loads(path.read_bytes())["Dirty"])
    except FileNotFoundError:
        return False  # left its cache
    except ValueError:
        return True  # is being written


def _call(place: Place, name: str) -> dict[str, dict[str, int]]:
    request = urllib.request.Request(f"http://127.0.0.1:{place.control}/{name}", data=b"", method="POST")
    with urllib.request.urlopen(request, timeout=30) as answer:
        found: dict[str, dict[str, int]] = json.load(answer)
        return found


RCLONE = [
    _system("rclone", Role.PEER, AT_ONCE, *BEST),
    _system("rclone-delayed", Role.PEER, DELAYED, *BEST, for_renames=True),
    _system("rclone-default", Role.REFERENCE),
]
