"""What a user sees while something takes long: a bar on a terminal, else a line now and then, on standard error.

What is quick is silent. What takes long speaks also while nothing comes about: the newest step is told again then.

A thread of its own tells what is due; it shares the newest step with the caller's, under a lock.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import monotonic

from rich import console, filesize, progress
from rich.progress import ProgressColumn

from sosfs.log.escaping import printable

BAR_SECONDS = 0.5  # before a bar is shown
LINE_SECONDS = 10.0  # between two lines where there is no terminal, and before the first
LOOK_SECONDS = 0.25  # between two looks for what is due


@dataclass(frozen=True, slots=True)
class Step:
    """How far it is. `text` is in words, `total` None where it is not known; both in bytes, or in what is counted."""

    text: str
    done: int
    total: int | None


class Progress:
    """Shows the newest step when that is due: after `wait` seconds, and then every `pause`. `was_shown`: any was."""

    def __init__(self, show: Callable[[Step], None], first: Step | None, *, wait: float, pause: float) -> None:
        self._show = show
        self._newest = first
        self._due = monotonic() + wait
        self._pause = pause
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self.was_shown = False

    def tell(self, step: Step) -> None:
        """Things have got this far."""
        with self._lock:
            self._newest = step
        self._look()

    def _look(self) -> None:
        with self._lock:
            if self._newest is None or monotonic() < self._due:
                return
            self._due = monotonic() + self._pause
            self._show(self._newest)
            self.was_shown = True

    def _run(self) -> None:
        while not self._ended.wait(LOOK_SECONDS):
            self._look()

    @contextlib.contextmanager
    def looking(self) -> Iterator[Progress]:
        """Looks for what is due, for the length of the block."""
        thread = threading.Thread(target=self._run, name="progress", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._ended.set()
            thread.join()


def of_bytes(first: str = "") -> contextlib.AbstractContextManager[Progress]:
    """Progress in bytes; `first` is what is done until there is a step, "" for nothing worth telling."""
    columns = (
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
    )
    return _shown(first, columns, filesize.decimal)


def of_items(first: str = "") -> contextlib.AbstractContextManager[Progress]:
    """Progress in things that are counted."""
    columns = (progress.BarColumn(), progress.MofNCompleteColumn(), progress.TimeRemainingColumn())
    return _shown(first, columns, "{:,}".format)


def waiting(what: str) -> contextlib.AbstractContextManager[Progress]:
    """For what has no steps that could be counted."""
    return _shown(what, (progress.TimeElapsedColumn(),), str)


@contextlib.contextmanager
def _shown(first: str, columns: Sequence[ProgressColumn], amount: Callable[[int], str]) -> Iterator[Progress]:
    terminal = console.Console(stderr=True)
    step = Step(first, 0, None) if first else None
    if not terminal.is_terminal:
        with Progress(_line(amount), step, wait=LINE_SECONDS, pause=LINE_SECONDS).looking() as shown:
            yield shown
        return
    text = progress.TextColumn("{task.description}", markup=False)
    with progress.Progress(text, *columns, console=terminal, transient=True) as bar:
        task = bar.add_task("", total=None, visible=False)

        def show(step: Step) -> None:
            bar.update(task, description=printable(step.text), completed=step.done, total=step.total, visible=True)

        with Progress(show, step, wait=BAR_SECONDS, pause=0.0).looking() as shown:
            yield shown


def _line(amount: Callable[[int], str]) -> Callable[[Step], None]:
    def show(step: Step) -> None:
        far = f": {amount(step.done)} of {amount(step.total)}" if step.total else ""
        print(f"sosfs: {printable(step.text)}{far}", file=sys.stderr, flush=True)

    return show
