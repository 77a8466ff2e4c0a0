"""What a user sees while something takes long: a bar on a terminal, else a line now and then, on standard error.

Blocking; no threads of its own.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import monotonic

from rich import console, filesize, progress
from rich.progress import ProgressColumn

from sosfs.log.escaping import printable

LINE_SECONDS = 10.0  # between two lines where there is no terminal, and before the first


@dataclass(frozen=True, slots=True)
class Step:
    """How far it is. `text` is in words, `total` None where it is not known; both in bytes, or in what is counted."""

    text: str
    done: int
    total: int | None


class Progress:
    """Shows steps. `was_shown`: whether the user has seen anything."""

    def __init__(self, show: Callable[[Step], bool]) -> None:
        self._show = show
        self.was_shown = False

    def tell(self, step: Step) -> None:
        """Things have got this far."""
        self.was_shown |= self._show(step)


@contextlib.contextmanager
def of_bytes(first: str = "") -> Iterator[Progress]:
    """Progress in bytes; `first` stands on a terminal until there is a step."""
    columns = (
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
    )
    with _shown(first, columns, filesize.decimal) as shown:
        yield shown


@contextlib.contextmanager
def of_items(first: str = "") -> Iterator[Progress]:
    """Progress in things that are counted."""
    columns = (progress.BarColumn(), progress.MofNCompleteColumn(), progress.TimeRemainingColumn())
    with _shown(first, columns, "{:,}".format) as shown:
        yield shown


@contextlib.contextmanager
def _shown(first: str, columns: Sequence[ProgressColumn], amount: Callable[[int], str]) -> Iterator[Progress]:
    terminal = console.Console(stderr=True)
    if not terminal.is_terminal:
        yield Progress(_lines(amount))
        return
    text = progress.TextColumn("{task.description}")
    with progress.Progress(text, *columns, console=terminal, transient=True) as bar:
        task = bar.add_task(first, total=None, visible=bool(first))

        def show(step: Step) -> bool:
            bar.update(task, description=step.text, completed=step.done, total=step.total, visible=True)
            return True

        yield Progress(show)


def _lines(amount: Callable[[int], str]) -> Callable[[Step], bool]:
    due = monotonic() + LINE_SECONDS

    def show(step: Step) -> bool:
        nonlocal due
        if monotonic() < due:
            return False
        due = monotonic() + LINE_SECONDS
        far = f": {amount(step.done)} of {amount(step.total)}" if step.total else ""
        print(f"sosfs: {printable(step.text)}{far}", file=sys.stderr, flush=True)
        return True

    return show
