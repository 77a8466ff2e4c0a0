"""How POSIX attributes stand in user metadata: decided here and only here.

Written the way s3fs writes them, the form most tools read: `mode` the decimal st_mode with its type
bits, `uid`, `gid` decimal, `mtime` as `seconds.nanoseconds`, and `rdev` for devices (as GeeseFS). Read
too: rclone's float `mtime` and octal `mode`. What cannot be understood counts as not there: a foreign
tool's metadata must never make a file unreadable. Pure functions, safe from any thread.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass

NS = 1_000_000_000
POSIX_NAMES = frozenset({"mode", "uid", "gid", "mtime", "rdev"})
_KINDS = frozenset({stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK})
_MTIME = re.compile(r"(-?\d+)(?:\.(\d+))?")


@dataclass(frozen=True, slots=True)
class Posix:
    """What an object's metadata says; None where it says nothing. `mode` has type bits or 0 for none."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    mtime_ns: int | None = None
    rdev: int | None = None


def read(metadata: Mapping[str, str]) -> Posix:
    """The attributes in an object's user metadata."""
    return Posix(
        mode=_mode(metadata.get("mode", "")),
        uid=_number(metadata.get("uid", "")),
        gid=_number(metadata.get("gid", "")),
        mtime_ns=_time(metadata.get("mtime", "")),
        rdev=_number(metadata.get("rdev", "")),
    )


def write(metadata: Mapping[str, str], posix: Posix) -> dict[str, str]:
    """`metadata` with the attributes put in their place; the other entries stay as they are."""
    out = {name: value for name, value in metadata.items() if name not in POSIX_NAMES}
    for name in ("mode", "uid", "gid"):
        if (value := getattr(posix, name)) is not None:
            out[name] = str(value)
    if posix.mtime_ns is not None:
        seconds, rest = divmod(posix.mtime_ns, NS)
        out["mtime"] = f"{seconds}.{rest:09d}"
    if posix.rdev:
        out["rdev"] = str(posix.rdev)
    return out


def _number(text: str) -> int | None:
    return int(text) if re.fullmatch(r"\d{1,10}", text) and int(text) < 1 << 32 else None


def _mode(text: str) -> int | None:
    """s3fs writes 33188, rclone 100644: read as decimal only what then has a file type that exists."""
    if not re.fullmatch(r"[0-9]{1,7}", text):
        return None
    decimal = int(text)
    if not text.startswith("0") and decimal < 1 << 16 and stat.S_IFMT(decimal) in _KINDS:
        return decimal
    if not set(text) <= set("01234567"):
        return None
    octal = int(text, 8)
    return octal if octal < 1 << 16 and (stat.S_IFMT(octal) in _KINDS or stat.S_IFMT(octal) == 0) else None


def _time(text: str) -> int | None:
    """Exact to the nanosecond: a float would lose the last digits of today's times."""
    if not (found := _MTIME.fullmatch(text)):
        return None
    seconds, fraction = int(found[1]), (found[2] or "")
    rest = int(fraction[:9].ljust(9, "0")) if fraction else 0
    value = seconds * NS + (-rest if text.startswith("-") else rest)
    return value if abs(value) < 1 << 63 else None
