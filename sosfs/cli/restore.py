"""`sosfs restore`: what a user asks to have back, and what is told of it.

The mount does the work (`filesystem.restore`), mount by mount. Blocking, one call a process.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from enum import Enum
from functools import partial
from pathlib import Path

from rich import filesize

from sosfs.cli import location, progress
from sosfs.cli.progress import Progress, Step
from sosfs.daemon import mountpoint
from sosfs.daemon.launch import Exit
from sosfs.ipc import commands
from sosfs.ipc.commands import Told
from sosfs.log.escaping import printable
from sosfs.log.wording import counted


class Run(Enum):
    """Whether anything is done."""

    DRY = "dry"
    REAL = "real"


def run(paths: Sequence[str], moment: float | None, mode: Run) -> int:
    """Brings files back, or lists which ones would be; 1 where not all could be. Raises OSError."""
    mounts, code = mountpoint.table(), Exit.OK
    places = location.looked_up(paths, mounts)
    options = {"run": mode.value} | ({"at": repr(moment)} if moment is not None else {})
    for mount, names in location.by_mount(places):
        with progress.of_items("looking") as shown:
            news = partial(_tell_news, shown)
            told = commands.ask(mount.mountpoint, "restore", names, owner=mount.owner, news=news, options=options)
        for path, modified, size in told["changes"]:
            print(f"{printable(f'{mount.mountpoint}/{path}')}: {shown_time(modified)}, {filesize.decimal(size)}")
        _summary(told, mode, mount.mountpoint)
        if told["failed_files"] or told["unsent_files"]:
            code = Exit.FAILED
    return code


def shown_time(seconds: float) -> str:
    """A time for the user, in his zone."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _tell_news(shown: Progress, news: Told) -> None:
    """What was done so far. How many files there will be, no listing tells before."""
    if news:
        text = f"{news['restored']:,} restored of {_files(news['files'])} so far"
        shown.tell(Step(text, news["restored"], None))


def _summary(told: Told, mode: Run, mount: Path) -> None:
    words = "would be restored" if mode is Run.DRY else "restored"
    line = f"{_files(told['restored'])} {words}, {told['same']} as before"
    print(line + (f", {told['later']} came later and stay" if told["later"] else ""))
    if told["unsent_files"]:
        _say(f"{_files(told['unsent_files'])} left: open for writing, or changed and not in the bucket yet")
        _name(told["unsent"], told["unsent_files"], mount)
    if told["failed_files"]:
        _say(f"{_files(told['failed_files'])} failed")
        _name([f"{path}: {why}" for path, why in told["failed"]], told["failed_files"], mount)


def _name(lines: Sequence[str], total: int, mount: Path) -> None:
    for line in lines:
        print(f"  {printable(f'{mount}/{line}')}", file=sys.stderr)
    if total > len(lines):
        print(f"  and {total - len(lines)} more", file=sys.stderr)


def _say(text: str) -> None:
    print(f"sosfs: {text}", file=sys.stderr)


def _files(count: int) -> str:
    return counted(count, "file")
