"""Make text from outside safe for a terminal and a log.

An S3 key may hold any character: an escape sequence that repaints the terminal, a line end that forges a line of the
log, a mark that turns the direction of writing. They are shown as Python writes them in a string (`\x1b`, `\n`,
`\u202e`); all else, spaces and letters of any script, stays. What is for programs (JSON, `-0`) needs none of it.

Pure, safe from any thread.
"""

from __future__ import annotations

import json
import unicodedata

# Control, format (directions, zero width), lone surrogates (bytes that are no UTF-8), line and paragraph separators.
UNSAFE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def printable(text: str) -> str:
    """`text` with all that a terminal would act upon escaped, line ends too. A backslash stays as it is."""
    if text.isprintable():
        return text
    return "".join(_shown(character) for character in text)


def printable_lines(text: str) -> str:
    """As `printable`, for text of our own that has several lines."""
    return "\n".join(printable(line) for line in text.split("\n"))


def _shown(character: str) -> str:
    if unicodedata.category(character) not in UNSAFE:
        return character
    return character.encode("unicode_escape").decode("ascii")


def quoted(text: str) -> str:
    """`text` as a JSON string that is printable and keeps letters of any script: for logs that programs read too."""
    if text.isprintable() and '"' not in text and "\\" not in text:
        return f'"{text}"'
    return f'"{"".join(json.dumps(one)[1:-1] if _is_special(one) else one for one in text)}"'


def _is_special(character: str) -> bool:
    return character in '"\\' or unicodedata.category(character) in UNSAFE
