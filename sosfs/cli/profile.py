"""`sosfs profile`: who asks what of a mount, and what it costs. Blocking, one call a process."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich import box, console, filesize, live, table

from sosfs.cli.location import mount_at
from sosfs.daemon.launch import Exit
from sosfs.ipc import commands
from sosfs.ipc.commands import Names, Tell, Told
from sosfs.log.escaping import printable

SHOWN = 15  # rows of a table; JSON has them all


def run(path: Path, *, seconds: float | None, as_json: bool) -> int:
    """Shows it live on a terminal, else at the end, which a Ctrl-C is too. Raises OSError."""
    mount = mount_at(path)
    words: list[Names] = [(b"seconds", str(seconds).encode())] if seconds is not None else []
    newest: Told = {"seconds": 0.0, "operations": [], "processes": []}
    with _live(as_json) as show, contextlib.suppress(KeyboardInterrupt):

        def news(told: Told) -> None:
            if told:  # else it has not begun
                newest.update(told)
                show(newest)

        newest.update(commands.ask(mount.mountpoint, "profile", words, owner=mount.owner, news=news))
    if as_json:
        print(json.dumps(newest))
    else:
        # Off a terminal a table is as wide as it has to be: who reads it there is a program, or a log.
        width = None if sys.stdout.isatty() else 120
        console.Console(width=width, highlight=False, markup=False, soft_wrap=True).print(_shown(newest))
    return Exit.OK


@contextlib.contextmanager
def _live(as_json: bool) -> Iterator[Tell]:
    """Shows the sums of the moment where there is a terminal; else says when it begins, on standard error."""
    terminal = console.Console(highlight=False, markup=False)
    if as_json or not terminal.is_terminal:
        said: list[None] = []

        def say(_: Told) -> None:
            if not said:
                print("sosfs: profiling; Ctrl-C ends it", file=sys.stderr, flush=True)
                said.append(None)

        yield say
        return
    with live.Live(console=terminal, auto_refresh=False, transient=True) as view:
        yield lambda told: view.update(_shown(told), refresh=True)


def _shown(told: Told) -> console.Group:
    processes = [{**row, "who": _who(row)} for row in told["processes"]]
    return console.Group(
        f"{told['seconds']:.1f} s",
        _table("process", "who", processes),
        _table("operation", "operation", told["operations"]),
    )


def _who(row: Told) -> str:
    name = row["name"] or "unknown"
    return printable(f"{name} ({row['pid']})" if row["pid"] else name)


def _table(title: str, key: str, rows: Sequence[Told]) -> table.Table:
    shown = table.Table(box=box.SIMPLE, pad_edge=False)
    shown.add_column(title, no_wrap=True)
    for name in ("calls", "errors", "time", "data", "S3 requests", "S3 time", "S3 data"):
        shown.add_column(name, justify="right", no_wrap=True)
    ordered = sorted(rows, key=lambda row: (row["seconds"] + row["s3_seconds"], row["calls"]), reverse=True)
    for row in ordered[:SHOWN]:
        shown.add_row(*_cells(key, row))
    if len(ordered) > SHOWN:
        shown.add_row(f"and {len(ordered) - SHOWN} more")
    return shown


def _cells(key: str, row: dict[str, Any]) -> list[str]:
    return [
        row[key],
        str(row["calls"]),
        str(row["errors"]),
        f"{row['seconds']:.3f} s",
        filesize.decimal(row["bytes"]),
        str(row["s3_requests"]),
        f"{row['s3_seconds']:.3f} s",
        filesize.decimal(row["s3_bytes"]),
    ]
