"""`sosfs du`: show how much files and trees take in the bucket, and what is billed for them.

The mount sums it up (`filesystem.usage`). Blocking, one call a process.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial

from rich import filesize

from sosfs.cli import location, progress
from sosfs.cli.progress import Progress, Step
from sosfs.daemon import mountpoint
from sosfs.daemon.launch import Exit
from sosfs.ipc import commands
from sosfs.ipc.commands import Told
from sosfs.log.escaping import printable
from sosfs.log.wording import counted

_COLUMNS = "  {:<19} {:>12} {:>12} {:>12}".format


def run(paths: Sequence[str], *, as_json: bool) -> int:
    """Prints what each path takes (none: where the user is), as a table or a JSON document. Raises OSError."""
    mounts = mountpoint.table()
    places = location.looked_up(paths or (".",), mounts)
    found: list[tuple[str, Told]] = []
    for mount, names in location.by_mount(places):
        with progress.of_items("listing") as shown:
            told = commands.ask(mount.mountpoint, "usage", names, owner=mount.owner, news=partial(_tell_news, shown))
        found += [(f"{mount.mountpoint}/{path}".rstrip("/"), usage) for path, usage in told.get("usages", ())]
    if as_json:
        print(json.dumps([{"path": path, **usage} for path, usage in found], indent=1))
    else:
        print("\n".join("\n".join(_table(path, usage)) for path, usage in found))
    return Exit.OK


def _tell_news(shown: Progress, news: Told) -> None:
    if news:
        shown.tell(Step(f"listing, {counted(news['listed'], 'entry', 'entries')} so far", news["listed"], None))


def _table(path: str, usage: Told) -> list[str]:
    kinds = ("objects", "old versions", "unfinished uploads")
    sums = [usage[kind.replace(" ", "_")] for kind in kinds]
    lines = [printable(path), _COLUMNS("", "count", "size", "billed")]
    lines += [_line(kind, of_kind) for kind, of_kind in zip(kinds, sums, strict=True)]
    markers = usage["delete_markers"]
    lines.append(_COLUMNS("delete markers", "not known" if markers is None else f"{markers:,}", "", "").rstrip())
    known = [of_kind for of_kind in sums if of_kind is not None]
    size, billed = (sum(one[name] for one in known) for name in ("size", "billed"))
    lines.append(_COLUMNS("together", "", filesize.decimal(size), filesize.decimal(billed)))
    if usage["unsent_changes"]:
        lines.append(f"  {counted(usage['unsent_changes'], 'change')} not in the bucket yet, and not counted")
    if len(known) < len(sums):
        lines.append("  not known: this key may not list it, or the server cannot")
    return lines


def _line(kind: str, of_kind: Told | None) -> str:
    if of_kind is None:
        return _COLUMNS(kind, "not known", "", "").rstrip()
    size, billed = filesize.decimal(of_kind["size"]), filesize.decimal(of_kind["billed"])
    return _COLUMNS(kind, f"{of_kind['count']:,}", size, billed)
