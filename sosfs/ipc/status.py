"""The status document of a mount: fields, where it is, how it is fetched.

A daemon listens on a unix socket in its user's runtime directory, named by a hash of the mount point, and
answers each connection with one JSON document. At its end it leaves its last `Status` in a file beside it,
which is how `sosfs umount` knows what a daemon that is gone has left over.

The socket itself is `sockets`'s. What is here blocks (shortly, with a time-out) and belongs to other processes: to
commands that answer at once, hence nothing here imports trio.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import socket
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

ANSWER_SECONDS = 5.0
SILENCE_SECONDS = 15.0  # without a word, after which who waits for a daemon takes it for hung
NO_ANSWER = "the daemon of this mount does not answer"
WAITING = 10  # lines that tell what waits, and why
_NAME_BYTES = 12  # of the hash: short enough for the 107 bytes of a socket's path


class MountPhase(Enum):
    """The life of a mount.

    MOUNTING -> MOUNTED -> DRAINING (unmounted, changes still going to the bucket) -> STOPPED
    """

    MOUNTING = "mounting"
    MOUNTED = "mounted"
    DRAINING = "draining"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Status:
    """One moment of a mount. Sizes are bytes; `pending` is what is not in the bucket yet, `damaged` what never will be.

    Where all buckets of an account are mounted, `bucket` is "" and `buckets` are those in use, with their changes.
    """

    pid: int
    bucket: str
    prefix: str
    mountpoint: str
    endpoint: str
    state: MountPhase
    pending_files: int = 0
    pending_bytes: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
    waiting: tuple[str, ...] = ()  # of what is pending, what the last try did not store, and why; the first few
    damaged: tuple[str, ...] = ()  # a line each, with where it is set aside; stays until that is removed
    errors: tuple[str, ...] = ()
    conditions: str = "unknown"
    keeps_versions: bool = False  # as far as it has been seen
    locks_objects: bool = False  # whether the bucket has Object Lock, or may have it
    requests: Mapping[str, int] = field(default_factory=dict)
    memory_bytes: int = 0
    memory_limit: int = 0
    memory: Mapping[str, int] = field(default_factory=dict)  # by kind (`memory_report`), what is resident
    resident_bytes: int = 0  # of the process
    buckets: Mapping[str, int] = field(default_factory=dict)
    waiting_writers: int = 0  # for room in the directory, of which so much is free
    state_dir: str = ""
    free_bytes: int = 0
    upload_rate: int = 0  # bytes a second at most, 0 for no limit
    download_rate: int = 0
    transfers: int = 0  # requests side by side at most
    allowed: int = 0  # of these, as many as the server bears now
    under_way: int = 0  # requests
    queued: int = 0  # requests that wait for their turn
    refusals: int = 0  # answers by which the server asked for fewer requests
    durability: str = ""  # what close and fsync wait for: "bucket", "journal" or "writeback"
    unsynced_changes: int = 0  # with "writeback": acknowledged, and not on this machine's disk yet
    unsynced_bytes: int = 0  # of the files among them
    unsynced_since: float = 0.0  # the oldest of them, in seconds since the epoch; 0.0 for none
    uploaded_bytes: int = 0  # of those pending, what the server has in parts of uploads, or is just getting
    moving_bytes: int = 0  # of bodies under way, what the connections have taken so far
    waiting_since: float = 0.0  # the oldest pending change, in seconds since the epoch; 0.0 for none
    silent_since: float = 0.0  # the server has not answered since, in seconds since the epoch; 0.0: it answers
    silence: str = ""  # what the newest try met then, in words
    retries: int = 0  # tries beyond the first
    failures: int = 0  # requests that were given up after such tries
    caches: Mapping[str, Sequence[int]] = field(default_factory=dict)  # by name: questions that it answered, and all
    shared_attributes: str = ""  # how sharing them with other machines goes, in words; "" where that is not asked for

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps({**dataclasses.asdict(self), "state": self.state.value})

    def without_names(self) -> Status:
        """What any user may know: no lines that name files, and no buckets. A gateway's page may name files, too."""
        return dataclasses.replace(self, errors=(), waiting=(), damaged=(), buckets={}, silence="")

    @classmethod
    def from_json(cls, text: str) -> Status:
        """The status again; names that a newer daemon shows and this program does not know are left out.

        Raises ValueError for anything else.
        """
        document = json.loads(text)
        known = {item.name for item in dataclasses.fields(cls)}
        if not isinstance(document, dict):
            raise ValueError("no status")
        values = {name: value for name, value in document.items() if name in known}
        values["state"] = MountPhase(values.get("state"))
        values |= {name: tuple(values.get(name, ())) for name in ("errors", "waiting", "damaged")}
        values["caches"] = {name: tuple(counts) for name, counts in values.get("caches", {}).items()}
        try:
            return cls(**values)
        except TypeError as error:
            raise ValueError("no status") from error


def failure(why: str) -> str:
    """What a daemon answers that cannot tell its status, as one line of JSON."""
    return json.dumps({"failure": why})


def few(waiting: Sequence[str]) -> tuple[str, ...]:
    """The first of what waits, and how many more there are."""
    more = len(waiting) - WAITING
    return (*waiting[:WAITING], f"and {more} more") if more > 0 else tuple(waiting)


def runtime_dir() -> Path:
    """The directory of this user's sockets, made if need be. Raises PermissionError when others may write to it."""
    directory = next(_runtime_dirs(os.geteuid()))
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if _is_foreign(directory, os.geteuid()):
        raise PermissionError(errno.EACCES, "not a directory of yours alone", str(directory))
    if stat.S_IMODE(directory.stat().st_mode) != stat.S_IRWXU:  # an umask or somebody's mkdir: logs tell names
        directory.chmod(stat.S_IRWXU)
    return directory


def _runtime_dirs(uid: int) -> Iterator[Path]:
    """Where sockets of this user may be, the place for new ones first.

    The environment of a login and that of a cron job differ, so a reader has to look at them all.
    """
    if uid == 0:
        yield Path("/run/sosfs")
        return
    own = os.environ.get("XDG_RUNTIME_DIR", "") if uid == os.geteuid() else ""
    for base in dict.fromkeys((own, f"/run/user/{uid}")):
        if Path(base).is_absolute() and Path(base).is_dir():
            yield Path(base) / "sosfs"
    yield Path(f"/tmp/sosfs-{uid}")


def _name(mountpoint: Path) -> str:
    return hashlib.sha256(os.fsencode(mountpoint)).hexdigest()[: 2 * _NAME_BYTES]


def socket_path(mountpoint: Path, *, suffix: str = ".sock") -> Path:
    """Where the daemon of this mount point (absolute, links resolved) listens."""
    return runtime_dir() / f"{_name(mountpoint)}{suffix}"


def log_path(mountpoint: Path) -> Path:
    """Where a daemon logs when nobody named a file and there is no system log."""
    return runtime_dir() / f"{_name(mountpoint)}.log"


def candidates(mountpoint: Path, owner: int, suffix: str) -> Iterator[Path]:
    """Where the file or socket of a daemon may be, which `owner` (a uid) or this user has started.

    Directories that somebody else has made in that user's name are passed over: what is in them would answer for him.
    """
    for uid in dict.fromkeys((owner, os.geteuid())):
        for directory in _runtime_dirs(uid):
            if not _is_foreign(directory, uid):
                yield directory / f"{_name(mountpoint)}{suffix}"


def _is_foreign(directory: Path, uid: int) -> bool:
    """Whether others than `uid` decide what is in a directory. In /tmp anyone could have made it first."""
    try:
        found = directory.lstat()
    except OSError:  # not there, or not to be reached: opening what is in it says so
        return False
    return not stat.S_ISDIR(found.st_mode) or found.st_uid != uid or bool(found.st_mode & 0o022)


def fetch(mountpoint: Path, *, owner: int | None = None) -> Status | None:
    """What the daemon of this mount point says now; None where none listens. `owner` is the uid that mounted.

    Raises OSError when one is there and does not answer.
    """
    for path in candidates(mountpoint, os.geteuid() if owner is None else owner, ".sock"):
        try:
            return _ask(path)
        except (FileNotFoundError, ConnectionRefusedError, ConnectionResetError):
            continue
        except (TimeoutError, BlockingIOError) as error:  # or so many ask already that no more may wait
            raise OSError(errno.ETIMEDOUT, NO_ANSWER, str(mountpoint)) from error
    return None


def unmounted(mountpoints: Iterable[Path], owners: Iterable[int]) -> Iterator[Status]:
    """What daemons of these users say that serve none of these mount points: those that drain.

    One that does not answer is passed over: nobody can tell what it was for.
    """
    known = {f"{_name(mountpoint)}.sock" for mountpoint in mountpoints}
    places = ((uid, directory) for uid in dict.fromkeys(owners) for directory in _runtime_dirs(uid))
    own = (directory for uid, directory in places if not _is_foreign(directory, uid))
    for path in (path for directory in own for path in sorted(directory.glob("*.sock")) if path.name not in known):
        with contextlib.suppress(OSError):
            yield _ask(path)


def _ask(path: Path) -> Status:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(ANSWER_SECONDS)
        client.connect(str(path))
        with client.makefile("rb") as answer:
            text = answer.read().decode()
    if not text:
        raise ConnectionRefusedError(errno.ECONNREFUSED, "the daemon is just ending", str(path))
    try:
        return Status.from_json(text)
    except ValueError as error:
        if why := _failure(text):
            raise OSError(errno.EIO, f"the mount cannot tell its status: {why}") from error
        raise OSError(errno.EPROTO, "the daemon's answer is not understood", str(path)) from error


def _failure(text: str) -> str:
    """Why a daemon has told no status; "" where it does not say so."""
    with contextlib.suppress(ValueError):
        document = json.loads(text)
        if isinstance(document, dict):
            return str(document.get("failure", ""))
    return ""


def write_last(status: Status) -> None:
    """Leaves the status of a daemon that is about to end. Replaces that of an earlier one, whole or not at all."""
    path = socket_path(Path(status.mountpoint)).with_suffix(".last")
    new = path.with_suffix(".last.new")
    new.write_text(status.to_json(), encoding="utf-8")
    new.replace(path)


def forget_last(mountpoint: Path, *, owner: int | None = None) -> None:
    """Removes what `read_last` gave, once it has been told and nothing was left."""
    for path in candidates(mountpoint, os.geteuid() if owner is None else owner, ".last"):
        path.unlink(missing_ok=True)


def forget_namesake(mountpoint: Path) -> None:
    """Removes what an earlier daemon of this process's pid has left, as in a container: it would pass for its own."""
    with contextlib.suppress(OSError):  # then there is nothing that could
        last = read_last(mountpoint)
        if last is not None and last.pid == os.getpid():
            forget_last(mountpoint)


def read_last(mountpoint: Path, *, owner: int | None = None) -> Status | None:
    """What the last daemon of this mount point left, None where there is nothing. See its `pid` for whose it is."""
    for path in candidates(mountpoint, os.geteuid() if owner is None else owner, ".last"):
        try:
            return Status.from_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except ValueError as error:
            raise OSError(errno.EPROTO, "the last status is not understood", str(path)) from error
    return None
