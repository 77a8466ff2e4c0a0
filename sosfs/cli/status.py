"""`sosfs status`: which mounts are meant, and how what they say is shown to a person.

Blocking, no state.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from rich import filesize

from sosfs.cli import location
from sosfs.config.parameters import Durability
from sosfs.config.values import shown_size
from sosfs.daemon import mountpoint
from sosfs.daemon.launch import Exit, one_line
from sosfs.daemon.mountpoint import Mount, MountState
from sosfs.ipc import status
from sosfs.ipc.status import MountPhase, Status
from sosfs.log.escaping import printable
from sosfs.log.wording import clock, counted, lasting

ASKED_AT_ONCE = 16  # mounts that are asked side by side: one that hangs keeps the others no longer than itself

STATES = {
    MountPhase.MOUNTING: "mounting",
    MountPhase.MOUNTED: "mounted",
    MountPhase.DRAINING: "unmounted, sending what waits",
    MountPhase.STOPPED: "ended",
}
CONDITIONS = {
    "honoured": "honoured: the server refuses to overwrite what another host has written meanwhile",
    "ignored": "ignored: sosfs looks before it writes, which two hosts that write one file at once may slip through",
    "unknown": "unknown: whether the server refuses to overwrite what another host has written was not tried",
}
KINDS = {
    "blocks": "of data that was read",
    "names": "of names and attributes",
    "changes": "of changes",
    "answers": "on its way down",
    "program": "of the program and all else",
}
CACHES = {"attributes": "attributes", "memory": "data in memory", "disk": "data on disk"}


class Output(Enum):
    """How it is shown."""

    TEXT = "text"
    JSON = "json"


@dataclass(frozen=True, slots=True)
class Seen:
    """A mount that was asked; where `now` is None, `why` tells what keeps it from answering."""

    mountpoint: str
    now: Status | None
    why: str = ""

    @property
    def document(self) -> dict[str, Any]:
        """As JSON has it."""
        return json.loads(self.now.to_json()) if self.now else {"mountpoint": self.mountpoint, "error": self.why}


def run(given: str | None, output: Output) -> int:
    """Prints what the mount says that a path is in, or a line for each mount; 1 where one does not answer.

    Raises OSError for a path where nothing of sosfs is mounted, or whose mount does not answer.
    """
    if given is not None:
        now = of_path(given)
        print(now.to_json() if output is Output.JSON else "\n".join(text(now)))
        return Exit.OK
    seen = everywhere()
    if output is Output.JSON:
        print(json.dumps([one.document for one in seen]))
    else:
        print("\n".join(overview(seen)))
    return Exit.OK if all(one.now for one in seen) else Exit.FAILED


def of_path(given: str) -> Status:
    """What the daemon of the mount says that a path is in, or of one that was mounted there and drains.

    Raises OSError where there is none, or it does not answer.
    """
    place = location.holding(given, mountpoint.table())
    path = place.mount.mountpoint if place else mountpoint.canonical(given)
    now = status.fetch(path, owner=place.mount.owner if place else None)
    if now is None:
        raise _unanswered(path, place.mount if place else None)
    return now


def _unanswered(path: Path, mount: Mount | None) -> OSError:
    if mount is None:
        return OSError(errno.EINVAL, "nothing of sosfs is mounted there", str(path))
    if mountpoint.state(path) is MountState.DEAD:
        return OSError(errno.ENOTCONN, "its daemon is gone; 'sosfs umount' clears it", str(path))
    return OSError(errno.ENOTCONN, f"its daemon is not found; ask as who mounted it, user {mount.owner}", str(path))


def everywhere() -> list[Seen]:
    """All mounts of this machine that this user may ask, and those that were unmounted and still send."""
    own = askable(mountpoint.table())
    with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
        seen = list(pool.map(_asked, own))
    owners = {os.geteuid(), *(mount.owner for mount in own)}
    draining = status.unmounted([mount.mountpoint for mount in own], sorted(owners))
    return [*seen, *(Seen(now.mountpoint, now) for now in draining)]


def askable(mounts: Sequence[Mount]) -> list[Mount]:
    """Those of ours that answer this user, each once: a bind mount shows the same one again."""
    found = {mount.device: mount for mount in reversed(mounts) if mount.type == mountpoint.TYPE}
    return [mount for mount in reversed(found.values()) if os.geteuid() in (0, mount.owner)]


def _asked(mount: Mount) -> Seen:
    path = str(mount.mountpoint)
    try:
        now = status.fetch(mount.mountpoint, owner=mount.owner)
    except OSError as error:
        return Seen(path, None, error.strerror or one_line(error))
    return Seen(path, now, "" if now else "no daemon answers: 'sosfs umount' clears it, if it is gone")


def overview(seen: Sequence[Seen]) -> list[str]:
    """A line for each mount."""
    if not seen:
        return ["nothing of sosfs is mounted"]
    where = max(len(printable(one.mountpoint)) for one in seen)
    what = max(len(printable(source(one.now))) if one.now else 0 for one in seen)
    return [
        f"{printable(one.mountpoint):<{where}}  {printable(source(one.now)):<{what}}  {printable(brief(one.now))}"
        if one.now
        else f"{printable(one.mountpoint):<{where}}  {printable(one.why)}"
        for one in seen
    ]


def source(now: Status) -> str:
    """What is mounted."""
    return f"{now.bucket}/{now.prefix}".rstrip("/") if now.bucket else "all buckets"


def brief(now: Status) -> str:
    """What matters most, in a line."""
    told = f"{STATES[now.state]}, {f'the server {server(now)}' if now.silent_since else pending(now)}"
    if now.damaged:
        told += f", {counted(len(now.damaged), 'damaged file or change', 'damaged files and changes')}"
    return told


def pending(now: Status) -> str:
    """What is not in the bucket yet, how far that is, and since when."""
    if not now.pending_files:
        return "all is in the bucket"
    told = f"{counted(now.pending_files, 'change')} not in the bucket yet"
    if now.pending_bytes:
        up = f", {filesize.decimal(now.uploaded_bytes)} of them are up" if now.uploaded_bytes else ""
        told += f" ({filesize.decimal(now.pending_bytes)}{up})"
    return f"{told}, the oldest for {lasting(time.time() - now.waiting_since)}" if now.waiting_since else told


DURABILITIES = {
    Durability.BUCKET.value: "bucket: close and fsync wait for the bucket",
    Durability.JOURNAL.value: "journal: close and fsync wait for this machine's disk",
    Durability.WRITEBACK.value: "writeback: fsync waits for this machine's disk",
}


def durability(now: Status) -> str:
    """What close and fsync wait for, and what a power cut would take."""
    told = DURABILITIES.get(now.durability, now.durability)
    if now.durability != Durability.WRITEBACK.value:
        return told
    if not now.unsynced_changes:
        return f"{told}; all is there"
    told += f"; {counted(now.unsynced_changes, 'change')} not there yet"
    told += f" ({filesize.decimal(now.unsynced_bytes)})" if now.unsynced_bytes else ""
    return f"{told}, the oldest for {lasting(time.time() - now.unsynced_since)}"


def server(now: Status) -> str:
    """Whether the server answers, and what waits for it."""
    if not now.silent_since:
        return "answers"
    told = f"does not answer since {clock(now.silent_since, now=time.time())} ({now.silence})"
    if not now.pending_files:
        return told
    has_journal = now.durability in (Durability.JOURNAL.value, Durability.WRITEBACK.value)
    where = "in the journal" if has_journal else "on this machine"
    verb = "waits" if now.pending_files == 1 else "wait"
    return f"{told}; {counted(now.pending_files, 'change')} {verb} {where}"


def text(now: Status) -> list[str]:
    """The status, a line a fact."""
    return [f"{name:<10} {printable(value)}" for name, value in lines(now)]


def lines(now: Status) -> Iterator[tuple[str, str]]:
    """The status, a name and a text at a time."""
    yield "bucket", f"{now.bucket}/{now.prefix}" if now.bucket else "all of the account"
    yield "endpoint", now.endpoint
    yield "mounted", now.mountpoint
    yield "state", f"{STATES[now.state]}, pid {now.pid}"
    yield "server", server(now)
    yield "pending", pending(now)
    if now.durability:
        yield "durability", durability(now)
    if now.waiting_writers:
        who = "1 writer waits" if now.waiting_writers == 1 else f"{now.waiting_writers} writers wait"
        yield "room", f"{who} for room in {now.state_dir}, {filesize.decimal(now.free_bytes)} free"
    yield "moved", f"{filesize.decimal(now.sent_bytes)} sent, {filesize.decimal(now.received_bytes)} received"
    yield "memory", f"{filesize.decimal(now.memory_bytes)} in use for data and names, of {_limit(now)} at most"
    if now.resident_bytes:
        yield "resident", resident(now)
    for name, (hits, asked) in now.caches.items():
        yield "cache", f"{CACHES.get(name, name)}: {share(hits, asked)}"
    if now.shared_attributes:
        yield "shared", f"attributes: {now.shared_attributes}"
    for name, waiting in sorted(now.buckets.items()):
        yield "in use", f"{name}, {waiting} pending"
    yield "conditions", CONDITIONS.get(now.conditions, now.conditions)
    if now.keeps_versions:
        yield "versions", "kept of all that is overwritten or removed, on SOS 1,000 a file: see 'sosfs versions'"
    if now.locks_objects:
        yield "locks", "what is locked can be neither changed nor removed: see 'sosfs help locks-and-lifecycle'"
    yield "limits", limits(now)
    yield "requests", requests(now)
    for what in now.waiting:
        yield "waiting", what
    for one in now.damaged:
        yield "damaged", one
    for error in now.errors:
        yield "error", error


def limits(now: Status) -> str:
    """How many requests there may be, and how fast their bytes may move."""
    many = f"{now.transfers} requests at once"
    if now.allowed < now.transfers:
        many += f", {now.allowed} for now, as the server has asked for fewer {now.refusals} times"
    up, down = _rate(now.upload_rate), _rate(now.download_rate)
    return f"{many}; {up} up, {down} down"


def _rate(rate: int) -> str:
    return f"{shown_size(rate)}/s" if rate else "no limit"


def resident(now: Status) -> str:
    """The memory of the process, by what it is for."""
    kinds = ", ".join(f"{filesize.decimal(size)} {KINDS.get(kind, kind)}" for kind, size in now.memory.items())
    return f"{filesize.decimal(now.resident_bytes)}: {kinds}"


def _limit(now: Status) -> str:
    return filesize.decimal(now.memory_limit)


def share(hits: int, asked: int) -> str:
    """How much a cache has answered."""
    return f"{100 * hits // asked} % of {counted(asked, 'question')} answered from here" if asked else "not asked yet"


def requests(now: Status) -> str:
    """How many requests of which kind were sent, and how they fared."""
    told = ", ".join(f"{count:,} {name}" for name, count in sorted(now.requests.items())) or "none"
    told += f"; {counted(now.retries, 'try', 'tries')} made again" if now.retries else ""
    return f"{told}; {now.failures:,} given up" if now.failures else told
