"""Check this machine: FUSE, the mount point, the state directory, other mounts.

Nothing is changed. Blocking, no state.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from rich import filesize

import sosfs
from sosfs.cli.doctor.findings import Finding, Verdict
from sosfs.config.parameters import READ_AHEAD, Durability, Settings
from sosfs.daemon import mountpoint
from sosfs.daemon.launch import one_line
from sosfs.daemon.mountpoint import Mount, MountState, StartError
from sosfs.ipc import status

READ_AHEADS = Path("/sys/class/bdi")
UPDATEDB = Path("/etc/updatedb.conf")
ROOM = 1 << 30  # bytes; what is being written lies there until it is in the bucket
VOLATILE = frozenset({"tmpfs", "ramfs"})


def program() -> Iterator[Finding]:
    """What runs on what."""
    detail = f"sosfs {sosfs.__version__}, Python {platform.python_version()}, Linux {platform.release()}"
    yield Finding("program", Verdict.NOTE, detail)


def fuse(settings: Settings) -> Iterator[Finding]:
    """Whether FUSE lets this user mount, and for others."""
    yield _device()
    helper = shutil.which("fusermount3")
    if helper:
        yield Finding("FUSE helper", Verdict.OK, helper)
    else:
        yield Finding("FUSE helper", Verdict.FAIL, "fusermount3 is missing", "install the package fuse3")
    if os.geteuid() == 0 or mountpoint.others_allowed():
        yield Finding("allow other", Verdict.OK, "--allow-other may be used")
        return
    verdict = Verdict.FAIL if settings.allow_other else Verdict.NOTE
    advice = f"write the line 'user_allow_other' into {mountpoint.FUSE_SETTINGS}"
    yield Finding("allow other", verdict, "--allow-other may not be used", advice)


def _device() -> Finding:
    device = mountpoint.FUSE_DEVICE
    try:
        os.close(os.open(device, os.O_RDWR))
    except FileNotFoundError:
        advice = f"'modprobe fuse'; in a container '--device {device} --cap-add SYS_ADMIN'"
        return Finding("FUSE device", Verdict.FAIL, f"{device} is missing", advice)
    except PermissionError as error:
        advice = "give it mode 666; in a container it has to be allowed with --device"
        return Finding("FUSE device", Verdict.FAIL, one_line(error), advice)
    except OSError as error:
        return Finding("FUSE device", Verdict.FAIL, one_line(error), "'modprobe fuse'")
    return Finding("FUSE device", Verdict.OK, f"{device} can be opened")


def directory(path: Path) -> Finding:
    """Whether a bucket can be mounted there."""
    what, state = "mount point", mountpoint.state(path)
    if state is MountState.DEAD:
        return Finding(what, Verdict.NOTE, f"{path}: a dead mount", "the next mount clears it, or 'sosfs umount'")
    if state is MountState.LIVE:
        return Finding(what, Verdict.NOTE, f"{path}: has a mount already", "'sosfs status' shows it")
    try:
        mountpoint.check_directory(path)
    except StartError as error:
        return Finding(what, Verdict.FAIL, str(error), "name an empty directory of yours")
    return Finding(what, Verdict.OK, f"{path} can be used")


def read_ahead() -> Finding:
    """Whether a mount may widen the kernel's read-ahead."""
    what = "read-ahead"
    if os.geteuid() == 0 and any(os.access(each / "read_ahead_kb", os.W_OK) for each in READ_AHEADS.glob("*")):
        return Finding(what, Verdict.OK, f"a mount can raise it to {READ_AHEAD} KiB")
    advice = f"as root: echo {READ_AHEAD} > {READ_AHEADS}/$(findmnt -rno MAJ:MIN MOUNTPOINT)/read_ahead_kb"
    return Finding(what, Verdict.NOTE, "stays at the kernel's 128 KiB, so a large file is read slower", advice)


def search_index() -> Iterator[Finding]:
    """Whether updatedb(8), where it is installed, would read whole buckets for `locate`."""
    try:
        text = UPDATEDB.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return
    pruned = re.search(r"""^\s*PRUNEFS\s*=\s*["']?([^"'\n]*)""", text, re.MULTILINE)
    if pruned and mountpoint.TYPE in pruned[1].split():
        yield Finding("updatedb", Verdict.OK, f"{UPDATEDB} leaves mounts out")
        return
    advice = f"add {mountpoint.TYPE} to PRUNEFS in {UPDATEDB}"
    yield Finding("updatedb", Verdict.WARNING, "lists every mounted bucket each day, for 'locate'", advice)


def state(settings: Settings) -> Iterator[Finding]:
    """Whether the state directory can be written, has room and outlives a restart."""
    what = "state directory"
    path = settings.state_dir if settings.bucket or settings.cache_dir else settings.state_dir.parent
    nearest = next(directory for directory in (path, *path.parents) if directory.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        yield Finding(what, Verdict.FAIL, f"{path}: may not be written", "name another one with --cache-dir")
        return
    free = shutil.disk_usage(nearest).free
    if free < ROOM:
        advice = "files that are written lie there until they are in the bucket: free some, or use --cache-dir"
        yield Finding(what, Verdict.WARNING, f"{path}: only {filesize.decimal(free)} free", advice)
    else:
        yield Finding(what, Verdict.OK, f"{path}: {filesize.decimal(free)} free")
    kind = next(mount.type for mount in reversed(mountpoint.table()) if nearest.is_relative_to(mount.mountpoint))
    if kind in VOLATILE:
        verdict = Verdict.NOTE if settings.durability is Durability.BUCKET else Verdict.WARNING
        detail = f"{path} is in memory: what is not yet in the bucket is lost at a restart"
        yield Finding(what, verdict, detail, "name one on a disk with --cache-dir")


def mounts(only: Path | None = None) -> Iterator[Finding]:
    """What is mounted already, as far as this user may ask; where one is named, on that mount point."""
    for mount in mountpoint.table():
        if mount.type != mountpoint.TYPE or os.geteuid() not in {0, mount.owner}:
            continue
        if only is not None and mount.mountpoint != only:
            continue
        try:
            now = status.fetch(mount.mountpoint, owner=mount.owner)
        except OSError as error:
            yield Finding("mount", Verdict.WARNING, f"{mount.mountpoint}: {one_line(error)}")
            continue
        if now is None:
            yield Finding(
                "mount", Verdict.WARNING, f"{mount.mountpoint}: no daemon answers", "'sosfs umount' clears it"
            )
            continue
        detail = f"{mount.mountpoint}: {now.bucket or 'all buckets'}, {now.state.value}, {_read_ahead_of(mount)}"
        yield Finding("mount", Verdict.OK, detail)


def _read_ahead_of(mount: Mount) -> str:
    try:
        return f"read-ahead {(READ_AHEADS / mount.device / 'read_ahead_kb').read_text().strip()} KiB"
    except OSError as error:
        return f"read-ahead unknown ({error.strerror})"
