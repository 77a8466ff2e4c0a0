"""The result of a check, and how results are shown.

A table on a terminal, one line each in a pipe, one JSON document where that is asked for. No state but what
`display` keeps of one run.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sosfs.log.escaping import printable
from sosfs.log.wording import counted


class Verdict(Enum):
    """What a check says of a mount."""

    OK = "ok"
    NOTE = "note"  # good to know, and neither good nor bad
    UNKNOWN = "unknown"
    WARNING = "warning"  # a mount works, with less than it might
    FAIL = "fail"  # a mount cannot work


_COLOURS = {
    Verdict.OK: "green",
    Verdict.NOTE: "",
    Verdict.UNKNOWN: "cyan",
    Verdict.WARNING: "yellow",
    Verdict.FAIL: "bold red",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one check; `advice` is what the user may do, "" for nothing."""

    what: str
    verdict: Verdict
    detail: str
    advice: str = ""

    def __str__(self) -> str:
        advice = f" -> {self.advice}" if self.advice else ""
        return f"{_word(self.verdict):<7} {self.what:<22} {self.detail}{advice}"


class Output(Enum):
    """How findings are shown."""

    TEXT = "text"  # a table on a terminal, else lines
    JSON = "json"


Tell = Callable[[Finding], None]


def summary(findings: Sequence[Finding]) -> str:
    """The whole in one line: what keeps a mount from working, else what it works without."""
    problems = [each for each in findings if each.verdict is Verdict.FAIL]
    if problems:
        first = problems[0]
        return f"{counted(len(problems), 'problem')}, first: {first.what}: {first.detail}"
    warnings = [each for each in findings if each.verdict is Verdict.WARNING]
    told = "everything a mount needs is there"
    if any(each.what == "bucket" and each.verdict is Verdict.UNKNOWN for each in findings):
        told += ", as far as can be told without a bucket"
    if warnings:
        told += f"; {counted(len(warnings), 'warning')}, first: {warnings[0].what}: {warnings[0].detail}"
    return told


@contextlib.contextmanager
def display(form: Output) -> Iterator[Tell]:
    """Shows on standard output what it is told: lines at once, a table or a document at the end of the block."""
    console, told = Console(), list[Finding]()
    if form is Output.JSON:
        yield told.append
        print(document(told))
    elif console.is_terminal:
        with console.status("looking ...") as status:

            def tell(finding: Finding) -> None:
                told.append(finding)
                status.update(f"{finding.what} ...")

            yield tell
        console.print(table(told))
        console.print(Text(printable(summary(told)), style="bold"))
    else:

        def tell_line(finding: Finding) -> None:
            told.append(finding)
            print(printable(str(finding)), flush=True)

        yield tell_line
        print(printable(summary(told)))


def document(findings: Sequence[Finding]) -> str:
    """The findings as JSON."""
    rows = [
        {"what": each.what, "verdict": each.verdict.value, "detail": each.detail, "advice": each.advice}
        for each in findings
    ]
    return json.dumps({"ok": not failed(findings), "summary": summary(findings), "findings": rows}, indent=2)


def table(findings: Sequence[Finding]) -> Table:
    """The findings for a terminal."""
    shown = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    shown.add_column(no_wrap=True)
    shown.add_column(no_wrap=True)
    shown.add_column(overflow="fold")
    for each in findings:
        said = Text(printable(each.detail))
        if each.advice:
            said.append(f"\n-> {printable(each.advice)}", style="italic")
        shown.add_row(Text(_word(each.verdict), style=_COLOURS[each.verdict]), Text(each.what), said)
    return shown


def failed(findings: Sequence[Finding]) -> bool:
    """Whether one of them says that a mount cannot work."""
    return any(each.verdict is Verdict.FAIL for each in findings)


def _word(verdict: Verdict) -> str:
    word: str = verdict.value
    return word.upper() if verdict is Verdict.FAIL else word
