"""What the README promises is tested, and the tests say which promise they are about."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def promised() -> set[int]:
    """The numbers in the README's list of promises."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.split("## What it promises", 1)[1].split("\n## ", 1)[0]
    return {int(number) for number in re.findall(r"^(\d+)\. \*\*", section, re.MULTILINE)}


def kept() -> set[int]:
    """The numbers that tests are marked with."""
    marks = re.compile(r"^ *@pytest\.mark\.promise\((\d+)\)$", re.MULTILINE)
    tests = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")]
    return {int(number) for text in tests for number in marks.findall(text)}


def test_every_promise_is_tested_and_every_mark_is_a_promise() -> None:
    assert promised() == set(range(1, max(promised()) + 1))
    assert kept() == promised()
