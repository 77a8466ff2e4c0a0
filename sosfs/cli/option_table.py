"""The tables of the pages that are made from code: all parameters of a mount, all commands with their exit codes.

A page has a table between two comments; `in_page` writes it anew. Pure functions, safe from any thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from sosfs.cli import usage
from sosfs.config import parameters, values
from sosfs.config.parameters import Group, SettingError


def in_page(text: str) -> str:
    """The page with its tables made anew, each between its two comments. Raises `SettingError` where it has none."""
    found = False
    for name, made in TABLES.items():
        before, begin, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition(f"<!-- end of {name} -->\n")
        if begin and end:
            found = True
            text = f"{before}{begin}{made()}{end}{after}"
    if not found:
        raise SettingError("the page has no comments that say where its table stands")
    return text


def options() -> str:
    """A heading and a table for each group of parameters."""
    parts = []
    for group in Group:
        rows = [f"## {group.value.capitalize()}", "", "| option | default | what it does |", "|---|---|---|"]
        for name, parameter in parameters.TABLE.items():
            if parameter.group is group:
                rows.append(f"| `{written(name)}` | {parameters.default_of(name)} | {parameter.help} |")
        parts.append("\n".join(rows) + "\n")
    return "\n" + "\n".join(parts) + "\n"


def written(name: str) -> str:
    """How a parameter is given on the command line, with its value."""
    parameter = parameters.TABLE[name]
    text = ", ".join(parameters.flags(name))
    return text if parameter.kind is values.FLAG else f"{text} {parameter.kind.metavar}"


TABLES: Mapping[str, Callable[[], str]] = {"options": options, "commands": usage.commands_table}
