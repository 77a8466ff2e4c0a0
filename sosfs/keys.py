"""How a key's segments become file names and back: decided here and only here.

A key is cut at every `/`; a segment is shown as it is, unless Linux or the tree cannot carry it. Then its
name begins with `%~`, and the escape round-trips:

| the segment                                      | its name                          |
|--------------------------------------------------|-----------------------------------|
| empty (`a//b`, a leading `/`, an object `a/`)    | `%~-`                             |
| `.` and `..`                                     | `%~.` and `%~..`                  |
| begins with `%~`, or is `.sosfs`                 | `%~=` and the segment             |
| an object `a` beside keys `a/...`                | `%~f` and the name; `a` is the directory |
| over 255 bytes                                   | `%~#`, 16 hex digits, `~`, its head |

Control characters need no escape: Linux carries every byte but `/` and NUL, and no XML listing can name
a key with NUL. Pure functions, safe from any thread.
"""

from __future__ import annotations

import errno
import hashlib
from dataclasses import dataclass
from enum import Enum

NAME_MAX = 255  # bytes, Linux
ESCAPE = "%~"
CONTROL = ".sosfs"
_DIGITS = 16  # of SHA-256: 64 bits, so that siblings with one head stay apart


class Form(Enum):
    """What a name stands for."""

    PLAIN = "plain"
    BESIDE = "beside"  # the object `a` where keys `a/...` exist
    FOLDED = "folded"  # a segment too long for a name: only a listing can unfold it


@dataclass(frozen=True, slots=True)
class Parsed:
    """A name taken apart. FOLDED has the segment's head in `segment` and its digest; others have ""."""

    segment: str
    form: Form
    digest: str = ""


def name_of(segment: str, form: Form = Form.PLAIN) -> bytes:
    """The file name of a key's segment."""
    shown = _escaped(segment)
    if form is Form.BESIDE:
        shown = f"{ESCAPE}f{shown}"
    name = shown.encode()
    return name if len(name) <= NAME_MAX else _folded(segment, form)


def _escaped(segment: str) -> str:
    if segment == "":
        return f"{ESCAPE}-"
    if segment in (".", ".."):
        return ESCAPE + segment
    if segment.startswith(ESCAPE) or segment == CONTROL:
        return f"{ESCAPE}={segment}"
    return segment


def digest_of(segment: str) -> str:
    """The hex digits that stand for a segment too long for a name."""
    return hashlib.sha256(segment.encode()).hexdigest()[:_DIGITS]


def _folded(segment: str, form: Form) -> bytes:
    lead = f"{ESCAPE}f" if form is Form.BESIDE else ""
    lead += f"{ESCAPE}#{digest_of(segment)}~"
    room = NAME_MAX - len(lead)
    head = segment.encode()[:room].decode(errors="ignore")
    return (lead + head).encode()


def parse(name: bytes) -> Parsed:
    """The segment a name stands for.

    Raises OSError: ENAMETOOLONG over 255 bytes, EILSEQ for what is not UTF-8 (no S3 key can hold it),
    EINVAL for an escape that `name_of` never makes, so that no object has two names.
    """
    if len(name) > NAME_MAX:
        raise OSError(errno.ENAMETOOLONG, "a name has at most 255 bytes")
    try:
        text = name.decode()
    except UnicodeDecodeError:
        raise OSError(errno.EILSEQ, "a key is UTF-8, this name is not") from None
    parsed = _unescaped(text)
    if parsed.form is not Form.FOLDED and name_of(parsed.segment, parsed.form) != name:
        raise OSError(errno.EINVAL, f"not a name sosfs gives: {text!r}")
    return parsed


def _unescaped(text: str) -> Parsed:
    if not text.startswith(ESCAPE):
        return Parsed(text, Form.PLAIN)
    tag, rest = text[2:3], text[3:]
    if tag == "#":
        return Parsed(rest[_DIGITS + 1 :], Form.FOLDED, rest[:_DIGITS])
    if tag == "f":
        inner = _unescaped(rest)
        if inner.form is Form.PLAIN:
            return Parsed(inner.segment, Form.BESIDE)
        return inner
    literal = {"-": "", "=": rest}
    return Parsed(literal.get(tag, text[2:]), Form.PLAIN)


def matches(parsed: Parsed, segment: str) -> bool:
    """Whether `segment` is the one that a parsed name stands for."""
    if parsed.form is Form.FOLDED:
        return segment.startswith(parsed.segment) and digest_of(segment) == parsed.digest
    return segment == parsed.segment
