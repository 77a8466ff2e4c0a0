"""Settings that are written as JSON: parsed, with the line where something is wrong. Pure functions."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable

from sosfs.control.rejected_texts import BadText


def parsed(text: str) -> object:
    """The document of a text that is not empty. Raises `BadText`."""

    def members(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) < len(pairs):  # all but one would be lost without a word
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise BadText(f"{twice!r} stands twice in one object", line=line_of(text, twice))
        return found

    try:
        return json.loads(text, object_pairs_hook=members)
    except json.JSONDecodeError as error:
        raise BadText(f"no JSON: {error.msg} in column {error.colno}", line=error.lineno) from error
    except RecursionError as error:
        raise BadText("no JSON that can be read: it is nested too deeply") from error
    except ValueError as error:
        raise BadText("no JSON that can be read: it has a number with thousands of digits") from error


def check_begun(parse: Callable[[str], object], text: str) -> None:
    """Raises the `BadText` of `parse` for what is wrong already, though more may follow."""
    try:
        parse(text)
    except BadText as error:
        flaw = error.__cause__
        if isinstance(flaw, json.JSONDecodeError):
            ends_too_soon = flaw.pos >= len(flaw.doc.rstrip()) or flaw.msg.startswith("Unterminated")
            if ends_too_soon:
                return
        raise


def line_of(text: str, value: object) -> int:
    """The line where a value first stands; 0 where it is written otherwise."""
    at = text.find(json.dumps(value, ensure_ascii=False))
    return text.count("\n", 0, at) + 1 if at >= 0 else 0


def unknown(what: str, name: object, known: Iterable[str], text: str) -> BadText:
    """That a name says nothing, and which one may be meant."""
    near = difflib.get_close_matches(str(name), known, n=1)
    return BadText(
        f"{what}: {name!r} is unknown" + (f"; did you mean {near[0]!r}?" if near else ""), line=line_of(text, name)
    )
