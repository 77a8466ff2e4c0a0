"""What the manual promises is tested, the tests say which promise they are about, the README has a line for each."""

from __future__ import annotations

import re
from pathlib import Path

from sosfs.cli import manual

ROOT = Path(__file__).resolve().parent.parent


def promised() -> dict[int, str]:
    """The promises in the manual: their numbers and titles."""
    return {
        int(number): title for number, title in re.findall(r"^(\d+)\. \*\*(.*?)\*\*", manual.page("promises"), re.M)
    }


def in_readme() -> list[int]:
    """The numbers in the README's list, of those that are whole on one line."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.split("## What it promises", 1)[1].split("\n## ", 1)[0]
    return [int(number) for number in re.findall(r"^(\d+)\. \*\*.*\.$", section, re.MULTILINE)]


def kept() -> set[int]:
    """The numbers that tests are marked with."""
    marks = re.compile(r"^ *@pytest\.mark\.promise\((\d+)\)$", re.MULTILINE)
    tests = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")]
    return {int(number) for text in tests for number in marks.findall(text)}


def test_every_promise_is_tested_and_every_mark_is_a_promise() -> None:
    assert list(promised()) == list(range(1, max(promised()) + 1))
    assert kept() == set(promised())


def test_the_readme_has_a_line_for_each_promise() -> None:
    assert in_readme() == list(promised())


def test_the_readme_calls_them_as_the_manual_does() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [title for title in promised().values() if f"**{title}**" not in text] == []
