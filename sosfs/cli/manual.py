"""`sosfs help`: the pages of the manual, on a terminal with a pager, else as the Markdown that they are.

The pages are the files `docs/*.md` of the package; `index` is the list of them.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from sosfs.daemon.launch import Exit
from sosfs.log.escaping import printable

PAGES = Path(__file__).resolve().parents[1] / "docs"
INDEX = "index"
WIDTH = 100  # columns: longer lines are hard to read


def topics() -> list[str]:
    """The names of all pages but the list of them."""
    return sorted(path.stem for path in PAGES.glob("*.md") if path.stem != INDEX)


def page(topic: str) -> str:
    """The Markdown of a page, without the comments that say where a table stands."""
    text = (PAGES / f"{topic}.md").read_text(encoding="utf-8")
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"<!-- [^\n]* -->\n", "", text))


def show(topic: str | None, commands: Mapping[str, argparse.ArgumentParser]) -> int:
    """Shows a page, the help of a command, or without a topic the list of pages; 2 where there is none such."""
    name = (topic or INDEX).lower()
    if name == INDEX or name in topics():
        _display(page(name))
        return Exit.OK
    if name in commands:
        commands[name].print_help()
        return Exit.OK
    near = difflib.get_close_matches(name, [*topics(), *commands], n=3, cutoff=0.5)
    meant = f"did you mean {' or '.join(near)}? " if near else ""
    print(f"sosfs: no such topic: {printable(str(topic))}; {meant}'sosfs help' lists them", file=sys.stderr)
    return Exit.USAGE


def _display(text: str) -> None:
    if not sys.stdout.isatty():
        print(text, end="")
        return
    from rich import console, markdown  # noqa: PLC0415 - only on a terminal

    os.environ.setdefault("LESS", "FRX")  # as git does: colours, and no pager for what fits the screen
    terminal = console.Console()
    with terminal.pager(styles=True):
        terminal.print(markdown.Markdown(text), width=min(terminal.width, WIDTH))
