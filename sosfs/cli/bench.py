"""`sosfs bench`: measure a directory and remove every trace.

What is measured is in `workloads`. It works in a scratch directory, which is removed whatever happens. Before a
cold read a mount of ours forgets what it has (as `sosfs drop`); elsewhere only the kernel's pages can be dropped,
and that is said.

Blocking, one call a process; takes over SIGTERM and SIGHUP, which end it as Ctrl-C does.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box, console, filesize, table

from sosfs.cli import location
from sosfs.cli.location import Location
from sosfs.cli.workloads import CHUNK, Bench, Extent, Measured
from sosfs.daemon import mountpoint
from sosfs.daemon.launch import Exit, one_line
from sosfs.ipc import commands
from sosfs.log.escaping import printable

PREFIX = ".sosfs-bench-"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Cold:
    """How reads are made cold, and what the user has to know of it ("" for nothing)."""

    forget: Callable[[], None]
    note: str


def run(directory: Path, extent: Extent, *, as_json: bool) -> int:
    """Measures in a directory and prints the results. Raises OSError where it cannot, before it begins or meanwhile."""
    _check(directory, extent)
    mounts = mountpoint.table()
    inner = [mount for mount in mounts if directory.is_relative_to(mount.mountpoint)]
    filesystem = max(reversed(inner), key=lambda mount: len(mount.mountpoint.parts)) if inner else None
    kind = f"{filesystem.type} {filesystem.source}" if filesystem else "unknown"
    with _scratch(directory) as scratch:
        cold = _cold(scratch)
        if not as_json:
            print(f"{printable(f'{directory}: {kind}')}\n{_described(extent)}")
        results = _measured(Bench(scratch, extent, cold.forget))
    if as_json:
        print(_json(directory, kind, extent, cold, results))
    else:
        console.Console().print(_table(results))
        if cold.note:
            print(cold.note)
    return Exit.OK


def _check(directory: Path, extent: Extent) -> None:
    state = os.statvfs(directory)
    if state.f_flag & os.ST_RDONLY:
        raise OSError(errno.EROFS, "mounted read-only, nothing can be written there", str(directory))
    free = state.f_bavail * state.f_frsize
    if free < extent.room:
        text = f"{filesize.decimal(free)} are free, {filesize.decimal(extent.room)} are needed"
        raise OSError(errno.ENOSPC, f"not enough room: {text} (--size, --files)", str(directory))


@contextlib.contextmanager
def _scratch(directory: Path) -> Iterator[Path]:
    """A new directory that is gone afterwards, in the bucket too."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        signal.signal(number, _interrupt)
    try:
        scratch = Path(tempfile.mkdtemp(prefix=PREFIX, dir=directory))
        try:
            yield scratch
        finally:
            for number in SIGNALS:
                signal.signal(number, signal.SIG_IGN)
            _remove(scratch)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _remove(scratch: Path) -> None:
    if sys.exc_info()[0] is not None:
        print(f"sosfs: removing {printable(str(scratch))}", file=sys.stderr)
    shutil.rmtree(scratch)
    handle = os.open(scratch.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# Cold reads


def _cold(scratch: Path) -> Cold:
    """By the mount itself where it is one of ours and listens to us, else by the kernel."""
    try:
        place = location.of(scratch, str(scratch), mountpoint.table())
        _drop(place)
    except OSError as error:
        why = "this is no mount of sosfs" if error.errno == errno.EINVAL else one_line(error)
        note = f"Cold reads: only the kernel's pages were dropped, for {why}.\n"
        note += "What the file system caches by itself stayed."
        return Cold(lambda: _drop_pages(scratch), note)
    return Cold(lambda: _drop(place), "")


def _drop(place: Location) -> None:
    commands.ask(place.mount.mountpoint, "drop", [place.names], owner=place.mount.owner, news=lambda _: None)


def _drop_pages(scratch: Path) -> None:
    for folder, _, names in os.walk(scratch):
        for name in names:
            file = os.open(Path(folder, name), os.O_RDONLY)
            try:
                os.fsync(file)  # dirty pages cannot be dropped
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(file)


# Measuring and showing


def _measured(bench: Bench) -> list[Measured]:
    terminal = console.Console(stderr=True)
    results = []
    for name, measure in bench.measurements():
        with terminal.status(f"measuring: {name}") if terminal.is_terminal else contextlib.nullcontext():
            results.append(measure())
    return results


def _described(extent: Extent) -> str:
    threads = "1 thread" if extent.threads == 1 else f"1 and {extent.threads} threads"
    return f"large file: {filesize.decimal(extent.size)}; small files: {extent.files} of 4 KiB, with {threads}"


def _table(results: Sequence[Measured]) -> table.Table:
    shown = table.Table(box=box.SIMPLE)
    for heading in ("", "speed", "median", "99th percentile"):
        shown.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    section = ""
    for one in results:
        threads = "1 thread" if one.threads == 1 else f"{one.threads} threads"
        if section != (section := f"{one.group.value}, {threads}"):
            shown.add_section()
            shown.add_row(f"[bold]{section}")
        shown.add_row(f"  {one.name}", _speed(one), _ms(one.within(0.5)), _ms(one.within(0.99)))
    return shown


def _speed(one: Measured) -> str:
    if one.bytes >= one.operations * CHUNK // 2:
        return f"{filesize.decimal(int(one.bytes / one.seconds))}/s"
    return f"{one.rate:,.0f}/s"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:,.3f} ms" if seconds < 0.001 else f"{seconds * 1000:,.1f} ms"


def _json(directory: Path, kind: str, extent: Extent, cold: Cold, results: Sequence[Measured]) -> str:
    document = {
        "directory": str(directory),
        "filesystem": kind,
        "size": extent.size,
        "files": extent.files,
        "threads": extent.threads,
        "note": cold.note,
        "results": [_row(one) for one in results],
    }
    return json.dumps(document, indent=2)


def _row(one: Measured) -> dict[str, object]:
    moved = {"bytes": one.bytes, "bytes_per_second": one.bytes / one.seconds} if one.bytes else {}
    return {
        "group": one.group.value,
        "name": one.name,
        "threads": one.threads,
        "operations": one.operations,
        "seconds": one.seconds,
        "per_second": one.rate,
        "median_ms": one.within(0.5) * 1000,
        "p99_ms": one.within(0.99) * 1000,
        **moved,
    }
