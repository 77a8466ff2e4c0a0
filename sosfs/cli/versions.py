"""`sosfs versions`: the history of files as a table, and the removal of old versions.

The mount asks the bucket (`filesystem.versions`). Blocking, one call a process.
"""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Mapping, Sequence
from functools import partial

from rich import filesize

from sosfs.cli import location, progress
from sosfs.cli.location import Location
from sosfs.cli.progress import Progress, Step
from sosfs.cli.restore import shown_time
from sosfs.daemon import mountpoint
from sosfs.daemon.launch import Exit
from sosfs.ipc import commands
from sosfs.ipc.commands import Told
from sosfs.log.escaping import printable
from sosfs.log.wording import counted


def show(paths: Sequence[str], *, as_json: bool) -> int:
    """Prints all versions of files and trees, the newest of each first. Raises OSError."""
    found = []
    for mount, names in location.by_mount(_places(paths)):
        with progress.of_items("listing") as shown:
            news = partial(_tell_news, shown, "listing, {} so far", "entries", ("version", "versions"))
            told = commands.ask(mount.mountpoint, "versions", names, owner=mount.owner, news=news)
        found += [(f"{mount.mountpoint}/{path}", *rest) for path, *rest in told["entries"]]
    if as_json:
        titles = ("path", "modified", "size", "id", "current", "deleted")
        print(json.dumps([dict(zip(titles, entry, strict=True)) for entry in found], indent=1))
        return Exit.OK
    last = ""
    for path, modified, size, version_id, is_current, is_deleted in found:
        if path != last:
            print(printable(path))
            last = path
        amount = "deleted" if is_deleted else filesize.decimal(size)
        print(f"  {shown_time(modified)}  {amount:>10}  {printable(version_id)}{'  current' if is_current else ''}")
    return Exit.OK


def prune(paths: Sequence[str], rule: Mapping[str, str], *, is_agreed: bool) -> int:
    """Removes old versions, once the user has agreed; 1 where he has not, or not all could go. Raises OSError."""
    places = _places(paths)
    if not is_agreed:
        if not sys.stdin.isatty():
            raise OSError(errno.EPERM, "nobody to ask: --yes removes them unasked")
        would = _each_mount(places, {**rule, "run": "dry"})
        if not would["versions"]:
            print("nothing to remove")
            return Exit.OK
        if input(f"remove {_amount(would)} for good? [y/N] ").strip().lower() not in ("y", "yes"):
            return Exit.FAILED
    done = _each_mount(places, {**rule, "run": "real"})
    print(f"{_amount(done)} removed")
    for path, why in done["failed"]:
        print(f"sosfs: {printable(path)}: {printable(why)}", file=sys.stderr)
    if done["failed_files"] > len(done["failed"]):
        print(f"sosfs: and {done['failed_files'] - len(done['failed'])} more failed", file=sys.stderr)
    return Exit.FAILED if done["failed_files"] else Exit.OK


def _each_mount(places: Sequence[Location], options: Mapping[str, str]) -> Told:
    total: Told = {"versions": 0, "bytes": 0, "failed_files": 0, "failed": []}
    for mount, names in location.by_mount(places):
        doing = "counting" if options["run"] == "dry" else "removing"
        with progress.of_items(doing) as shown:
            news = partial(_tell_news, shown, f"{doing}, {{}} so far", "versions", ("old version", "old versions"))
            told = commands.ask(mount.mountpoint, "prune", names, owner=mount.owner, news=news, options=options)
        total = {name: value + told[name] for name, value in total.items()}
    return total


def _tell_news(shown: Progress, text: str, name: str, what: tuple[str, str], news: Told) -> None:
    if news:
        shown.tell(Step(text.format(counted(news[name], *what)), news[name], None))


def _places(paths: Sequence[str]) -> list[Location]:
    return location.looked_up(paths, mountpoint.table())


def _amount(told: Told) -> str:
    return f"{counted(told['versions'], 'old version')} ({filesize.decimal(told['bytes'])})"
