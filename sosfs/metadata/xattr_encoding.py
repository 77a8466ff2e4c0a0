"""Names and values of `user.` xattrs in user metadata.

A name made of `a-z`, digits, `.` and `-` is the metadata's name. HTTP carries no other name safely: it knows
no upper case, and servers and proxies take `_` for `-`. Such a name becomes `xattr-` and the name with every
byte but `a-z`, digits and `.` as `-xx`: `Author_1` is `xattr--41uthor-5f1`. Names that other tools gave are
shown as they are, as long as they are no such escape, and keep their form when they are set again.

A value that is text is that text; any other one is a data URI, `data:;base64,...`. Pure functions.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping

from sosfs.metadata.user_metadata import POSIX_NAMES

ESCAPE = "xattr-"
DATA = "data:;base64,"
RESERVED = b"sos."  # names that stand for something else than metadata
MIME_TYPE = b"mime_type"
NAME_MAX = 255 - len("user.")  # bytes, Linux
_PLAIN = re.compile(r"[a-z0-9.-]+")
_KEPT = b"abcdefghijklmnopqrstuvwxyz0123456789."
_HEX = re.compile(rb"-([0-9a-f]{2})")


def shown(name: str) -> bytes | None:
    """The xattr (without `user.`) of a metadata name; None for one that is not shown as an xattr."""
    if name in POSIX_NAMES:
        return None
    plain = name.encode()
    if name.startswith(ESCAPE):
        meant = _HEX.sub(lambda found: bytes.fromhex(found[1].decode()), name[len(ESCAPE) :].encode())
        plain = meant if meant and b"\0" not in meant and _escaped(meant) == name else plain
    if plain == MIME_TYPE or plain.startswith(RESERVED) or not 0 < len(plain) <= NAME_MAX:
        return None
    return plain


def stored(xattr: bytes, metadata: Mapping[str, str]) -> str:
    """The metadata name of an xattr: the one that shows as it in `user_metadata`, else the one for a new entry."""
    for name in metadata:
        if shown(name) == xattr:
            return name
    text = xattr.decode("latin-1")
    if _PLAIN.fullmatch(text) and shown(text) == xattr:
        return text
    return _escaped(xattr)


def _escaped(xattr: bytes) -> str:
    return ESCAPE + "".join(chr(byte) if byte in _KEPT else f"-{byte:02x}" for byte in xattr)


def to_text(value: bytes) -> str:
    """The metadata value of an xattr's value."""
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return _data(value)
    return _data(value) if from_text(text) != value else text


def _data(value: bytes) -> str:
    return DATA + base64.b64encode(value).decode()


def from_text(text: str) -> bytes:
    """The xattr's value of a metadata value."""
    if text.startswith(DATA):
        try:
            return base64.b64decode(text[len(DATA) :], validate=True)
        except (binascii.Error, ValueError):
            pass
    return text.encode(errors="surrogateescape")
