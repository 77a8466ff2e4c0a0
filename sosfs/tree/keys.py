"""Keys to file names and back.

A key is cut at every `/`; a segment is shown as it is, unless Linux or the tree cannot carry it. Then its
name begins with `%~`, and the escape round-trips:

| the segment                                      | its name                          |
|--------------------------------------------------|-----------------------------------|
| empty (`a//b`, a leading `/`, an object `a/`)    | `%~-`                             |
| `.` and `..`                                     | `%~.` and `%~..`                  |
| begins with `%~`                                 | `%~=` and the segment             |
| an object `a` beside keys `a/...`                | `%~f` and the name; `a` is the directory |
| over 255 bytes                                   | `%~#`, 16 hex digits, `~`, its head |

Control characters need no escape: Linux carries every byte but `/` and NUL, and no XML listing can name
a key with NUL.

A key is UTF-8, a file name is any bytes. A byte that is no UTF-8 stands in the key as rclone writes it: U+201B and
two hex digits, so that the Latin-1 name `caf\xe9` is the segment `caf‛E9`. A name that has such a text itself
gets the `‛` doubled; a segment that no name would give (`‛C3‛A9` is `é`) is shown as `%~=` and the segment.

Pure functions, safe from any thread.
"""

from __future__ import annotations

import errno
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

NAME_MAX = 255  # bytes, Linux
ESCAPE = "%~"
_ESCAPE = ESCAPE.encode()
CONTROL = ".sosfs"  # in the root of a mount, the control tree
BEHIND_CONTROL = f"{ESCAPE}={CONTROL}"  # in the root of a mount, what the bucket has of that name
HIDDEN = ".sosfs-attributes"  # in the root of a mount, a directory that no listing shows (`attributes.shared`)
_DIGITS = 16  # of SHA-256: 64 bits, so that siblings with one head stay apart
QUOTE = "‛"
_AMBIGUOUS = re.compile(f"{QUOTE}(?=[{QUOTE}\udc80-\udcff]|[89A-F][0-9A-F])")  # read back as something else
_QUOTED = re.compile(f"{QUOTE}(?:{QUOTE}|([89A-F][0-9A-F]))")
_NO_UTF8 = re.compile("[\udc80-\udcff]")  # bytes as `surrogateescape` decodes them


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
    name = _escaped(segment)
    if form is Form.BESIDE:
        name = b"%sf%s" % (_ESCAPE, name)
    return name if len(name) <= NAME_MAX else _folded(segment, form)


def _escaped(segment: str) -> bytes:
    if segment == "":
        return b"%s-" % _ESCAPE
    if segment in (".", ".."):
        return _ESCAPE + segment.encode()
    if segment.startswith(ESCAPE):
        return b"%s=%s" % (_ESCAPE, segment.encode())
    if QUOTE not in segment:
        return segment.encode()
    name = _unquoted(segment)  # what a quote stands for is no ASCII: this is no escape, nor one of the names above
    return name if _quoted(name) == segment else b"%s=%s" % (_ESCAPE, segment.encode())


def _quoted(name: bytes) -> str:
    """The segment of a name without escape: what is no UTF-8 quoted."""
    text = name.decode("utf-8", "surrogateescape")
    if text.isascii():
        return text
    text = _AMBIGUOUS.sub(QUOTE * 2, text)
    return _NO_UTF8.sub(lambda found: f"{QUOTE}{ord(found[0]) - 0xDC00:02X}", text)


def _unquoted(segment: str) -> bytes:
    def meant(found: re.Match[str]) -> str:
        return chr(0xDC00 + int(found[1], 16)) if found[1] else QUOTE

    return _QUOTED.sub(meant, segment).encode("utf-8", "surrogateescape")


def digest_of(segment: str) -> str:
    """The hex digits that stand for a segment too long for a name."""
    return hashlib.sha256(segment.encode()).hexdigest()[:_DIGITS]


def _folded(segment: str, form: Form) -> bytes:
    lead = f"{ESCAPE}f" if form is Form.BESIDE else ""
    lead += f"{ESCAPE}#{digest_of(segment)}~"
    room = NAME_MAX - len(lead)
    head = segment.encode()[:room].decode(errors="ignore")
    return (lead + head).encode()


def is_folded(name: bytes) -> bool:
    """Whether a name that `name_of` gives does not tell the segment."""
    return name.startswith((b"%s#" % _ESCAPE, b"%sf%s#" % (_ESCAPE, _ESCAPE)))


def parse(name: bytes) -> Parsed:
    """The segment a name stands for.

    Raises OSError: ENAMETOOLONG over 255 bytes, EINVAL for an escape that `name_of` never makes, so that no object
    has two names.
    """
    if len(name) > NAME_MAX:
        raise OSError(errno.ENAMETOOLONG, "a name has at most 255 bytes")
    parsed = _unescaped(name)
    if parsed.form is not Form.FOLDED and name_of(parsed.segment, parsed.form) != name:
        raise OSError(errno.EINVAL, f"not a name sosfs gives: {name!r}")
    return parsed


def _unescaped(name: bytes) -> Parsed:
    if not name.startswith(_ESCAPE):
        return Parsed(_quoted(name), Form.PLAIN)
    tag, rest = name[2:3], name[3:]
    if tag == b"f":
        inner = _unescaped(rest)
        return Parsed(inner.segment, Form.BESIDE) if inner.form is Form.PLAIN else inner
    text = rest.decode(errors="replace")  # an escape is UTF-8 all through; what is not is no name sosfs gives
    if tag == b"#":
        return Parsed(text[_DIGITS + 1 :], Form.FOLDED, text[:_DIGITS])
    literal = {b"-": "", b"=": text}
    return Parsed(literal.get(tag, name[2:].decode(errors="replace")), Form.PLAIN)


def meant_in_root(name: bytes) -> bytes:
    """The name among the real files of a mount's root of what is shown there as `name`."""
    return CONTROL.encode() if name == BEHIND_CONTROL.encode() else name


def meant_path(names: Sequence[bytes]) -> Sequence[bytes]:
    """As `meant_in_root`, for a path below the root of a mount, name by name."""
    return [meant_in_root(names[0]), *names[1:]] if names else names


def shown_in_root(name: bytes) -> bytes:
    """The reverse of `meant_in_root`."""
    return BEHIND_CONTROL.encode() if name == CONTROL.encode() else name


def names_of(path: str) -> tuple[bytes, ...]:
    """The names that lead from the root of a mount to what has this key, without the mount's prefix.

    An object beside a directory of its name is taken for that one.
    """
    first, *rest = (name_of(segment) for segment in path.removesuffix("/").split("/"))
    return shown_in_root(first), *rest


def matches(parsed: Parsed, segment: str) -> bool:
    """Whether `segment` is the one that a parsed name stands for."""
    if parsed.form is Form.FOLDED:
        return segment.startswith(parsed.segment) and digest_of(segment) == parsed.digest
    return segment == parsed.segment
