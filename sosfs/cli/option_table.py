"""Write the table of all options into the documentation.

Pure functions, safe from any thread.
"""

from __future__ import annotations

from sosfs.config import parameters, values
from sosfs.config.parameters import SettingError


def in_readme(text: str) -> str:
    """The README with its option table made anew, between its two markers."""
    before, begin, rest = text.partition("<!-- options -->\n")
    _, end, after = rest.partition("<!-- end of options -->\n")
    if not (begin and end):
        raise SettingError("the README has no markers for its option table")
    return f"{before}{begin}{markdown()}{end}{after}"


def markdown() -> str:
    """The README's table of all parameters."""
    rows = ["| option | default | what it does |", "|---|---|---|"]
    for name, parameter in parameters.TABLE.items():
        flag = f"--{name.replace('_', '-')}"
        if parameter.kind is not values.FLAG:
            flag = f"{flag} {parameter.kind.metavar}"
        if parameter.short:
            flag = f"{parameter.short}, {flag}"
        rows.append(f"| `{flag}` | {parameters.default_of(name)} | {parameter.help} |")
    return "\n".join(rows) + "\n"
