"""The guide shows each module with its first line: `python -m tests.test_guide` writes them anew."""

from __future__ import annotations

import ast
from itertools import groupby
from pathlib import Path

from tests.test_wings import WINGS

PACKAGE = Path(__file__).resolve().parent.parent / "sosfs"
GUIDE = PACKAGE / "README.md"
BEGIN, END = "<!-- modules -->\n", "<!-- end of modules -->"


def modules() -> str:
    """The modules of each wing, from the top, each with the first line of its docstring."""
    found = [path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"]
    wings = sorted(found, key=lambda path: (WINGS.index(path.with_suffix("").parts[0]), path.parent, path.name))
    lines = ["```"]
    for folder, paths in groupby(wings, key=lambda path: path.parent):
        lines += [f"{folder}/"] if folder.name else []
        for path in paths:
            docstring = ast.get_docstring(ast.parse((PACKAGE / path).read_text(encoding="utf-8"))) or ""
            first = docstring.partition("\n")[0]
            lines.append(f"  {path.stem:<23} {first}" if folder.name else f"{path.name:<25} {first}")
    return "\n".join((*lines, "```", ""))


def test_the_guide_shows_every_module() -> None:
    assert GUIDE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0] == modules()


def test_every_name_in_the_guide_is_there() -> None:
    names = (word for word in GUIDE.read_text(encoding="utf-8").split("`") if word.endswith(".py") and "/" in word)
    missing = {name for name in names if not any((root / name).exists() for root in (PACKAGE, PACKAGE.parent))}
    assert not missing


if __name__ == "__main__":
    before, _, rest = GUIDE.read_text(encoding="utf-8").partition(BEGIN)
    GUIDE.write_text(before + BEGIN + modules() + END + rest.partition(END)[2], encoding="utf-8")
