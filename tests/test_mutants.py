"""The table of `make mutants` names what is there: a module that has moved would be mutated no more."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
CODE = HERE.parent / "sosfs"
TABLE: dict[str, Any] = tomllib.loads((HERE / "mutants.toml").read_text(encoding="utf-8"))
# In these every module keeps a promise.
WHOLE_WINGS = ("recovery", "namespace", "files", "attributes", "journal", "tree", "cache", "metadata", "disk")


def source_of(module: str) -> Path:
    return CODE / f"{module.replace('.', '/')}.py"


@pytest.mark.parametrize("name", TABLE["parts"])
def test_modules_and_tests_of_a_part_are_there(name: str) -> None:
    part = TABLE["parts"][name]
    assert [module for module in part["modules"] if not source_of(module).is_file()] == []
    assert [file for file in part["tests"] if not (HERE / file).is_file()] == []


def test_no_module_that_keeps_promises_is_left_out() -> None:
    mutated = [module for part in TABLE["parts"].values() for module in part["modules"]]
    assert len(mutated) == len(set(mutated)), "a module is in two parts"
    due = {f"{wing}.{path.stem}" for wing in WHOLE_WINGS for path in (CODE / wing).glob("*.py")}
    assert {module for module in due if not module.endswith(".__init__")} <= set(mutated)


def test_accepted_survivors_are_of_lines_that_are_there() -> None:
    """One whose line has changed is judged anew."""
    for slip in TABLE["accepted"]:
        source = source_of(slip["module"]).read_text(encoding="utf-8")
        assert re.search(rf"def {slip['function']}\b", source), slip
        plain = " ".join(line.strip() for line in source.splitlines())
        assert slip["was"] in plain, slip
        assert slip["reason"], slip
