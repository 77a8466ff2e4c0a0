"""`sosfs warm` and `sosfs drop`: fetch files ahead, forget what is cached of them.

The mount does the work (`warm`, `drop`); here is asked for it, mount by mount. Blocking, one call a process.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from functools import partial

from rich import filesize

from sosfs.cli import location, progress
from sosfs.cli.progress import Progress, Step
from sosfs.daemon import mountpoint
from sosfs.daemon.launch import Exit
from sosfs.daemon.mountpoint import Mount
from sosfs.ipc import commands
from sosfs.ipc.commands import Told
from sosfs.log.escaping import printable
from sosfs.log.wording import counted

TOLD = 20  # files that are named one by one


def warm(paths: Sequence[str]) -> int:
    """Brings files near and tells what came; 1 when not all of it is near now. Raises OSError."""
    mounts = mountpoint.table()
    places = location.looked_up(paths, mounts, location.followed)
    code = Exit.OK
    for mount, names in location.by_mount(places):
        with progress.of_bytes("looking") as shown:
            news = partial(_tell_news, shown)
            outcome = commands.ask(mount.mountpoint, "warm", names, owner=mount.owner, news=news)
        _tell_warmed(outcome, mount)
        if outcome["failed_files"] or outcome["unfit_files"]:
            code = Exit.FAILED
    return code


def drop(paths: Sequence[str]) -> int:
    """Has mounts forget what they know of files, and tells how much that was. Raises OSError."""
    mounts = mountpoint.table()
    places = location.looked_up(paths, mounts)
    for place in list(places):
        with contextlib.suppress(OSError):  # a link that leads out of our mounts
            places += location.looked_up([place.given], mounts, location.followed)
    for mount, names in location.by_mount(places):
        with progress.waiting("forgetting what is cached"):
            outcome = commands.ask(mount.mountpoint, "drop", names, owner=mount.owner, news=lambda _: None)
        _tell_dropped(outcome)
    return Exit.OK


def _tell_news(shown: Progress, news: Told) -> None:
    if not news:
        return  # it has not found anything yet
    more = " so far" if news["listing"] else ""
    text = f"warming, {news['files']:,} of {_files(news['total_files'])}{more}"
    shown.tell(Step(text, news["bytes"], news["total_bytes"] or None))


def _tell_warmed(outcome: Told, mount: Mount) -> None:
    files = _files(outcome["files"])
    if not outcome["cache_bytes"]:
        where = printable(str(mount.mountpoint))
        print(f"{files}: attributes only, for {where} has no disk cache (sosfs mount --cache-size)")
    else:
        fetched, here = filesize.decimal(outcome["fetched_bytes"]), filesize.decimal(outcome["here_bytes"])
        print(f"{files}: {fetched} fetched, {here} were here already")
    if outcome["unfit_files"]:
        lacking = f"{_files(outcome['unfit_files'])} ({filesize.decimal(outcome['unfit_bytes'])})"
        holds = filesize.decimal(outcome["cache_bytes"])
        _say(f"no room for {lacking}: the disk cache is of {holds}, and some of the disk is left free")
        _name(outcome["unfit"], outcome["unfit_files"], mount)
    if outcome["failed_files"]:
        _say(f"{_files(outcome['failed_files'])} failed")
        _name([f"{path}: {why}" for path, why in outcome["failed"]], outcome["failed_files"], mount)


def _tell_dropped(outcome: Told) -> None:
    disk, memory = filesize.decimal(outcome["disk_bytes"]), filesize.decimal(outcome["memory_bytes"])
    print(f"{_files(outcome['files'])} forgotten: {memory} in memory, {disk} on disk")
    if outcome["kept_files"]:
        print(f"{_files(outcome['kept_files'])} kept: open for writing, or not in the bucket yet")


def _name(lines: Sequence[str], total: int, mount: Mount) -> None:
    for line in lines[:TOLD]:
        print(f"  {printable(f'{mount.mountpoint}/{line}')}", file=sys.stderr)
    if total > len(lines[:TOLD]):
        print(f"  and {total - len(lines[:TOLD])} more", file=sys.stderr)


def _files(count: int) -> str:
    return counted(count, "file")


def _say(text: str) -> None:
    print(f"sosfs: {printable(text)}", file=sys.stderr)
