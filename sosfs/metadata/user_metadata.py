"""POSIX attributes in user metadata, as s3fs, rclone and s3cmd write them.

Written the way s3fs writes them, the form most tools read: `mode` the decimal st_mode with its type
bits, `uid`, `gid` decimal, `mtime` as `seconds.nanoseconds`, and `rdev` for devices (as GeeseFS). Read
too: rclone's float `mtime` and octal `mode`; and, for what none of these says, the record that s3cmd puts into
the one entry `s3cmd-attrs` (`mode:33188/mtime:1700000000/uid:0/...`, whole seconds, `mode` decimal).
What cannot be understood counts as not there: a foreign tool's metadata must never make a file unreadable.

What other tools noted must not lie after a change made here. s3cmd's record follows; s3fs' `ctime` goes, and
with new bytes so do the hashes: rclone takes a file whose `md5chksum` differs for damaged, and s3cmd one whose
noted md5 is the same for unchanged. Pure functions, safe from any thread.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

NS = 1_000_000_000
POSIX_NAMES = frozenset({"mode", "uid", "gid", "mtime", "rdev", "ctime"})
_S3CMD = "s3cmd-attrs"
_HASHES = frozenset({"md5chksum"})
_KINDS = frozenset({stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK})
_NUMBER = re.compile(r"\d{1,10}")
_MODE = re.compile(r"[0-9]{1,7}")
_MTIME = re.compile(r"(-?\d{1,18})(?:\.(\d+))?")  # seconds that a time_t holds
_TIME_MAX = 10**18 * NS
_NOTHING_NOTED: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class Posix:
    """What an object's metadata says; None where it says nothing. `mode` has type bits or 0 for none."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    mtime_ns: int | None = None
    rdev: int | None = None


def read(metadata: Mapping[str, str], *, kind: int = stat.S_IFREG) -> Posix:
    """The attributes in an object's user metadata; `kind` is the st_mode type that its key shows."""
    noted = _noted(metadata[_S3CMD]) if _S3CMD in metadata else _NOTHING_NOTED
    mode, uid, gid, mtime = (metadata.get(name) or noted.get(name, "") for name in ("mode", "uid", "gid", "mtime"))
    return _understood(mode, uid, gid, mtime, metadata.get("rdev", ""), kind)


@lru_cache(64)  # what is new to an inode is read twice: is it of another type, and what are its attributes
def _understood(mode: str, uid: str, gid: str, mtime: str, rdev: str, kind: int) -> Posix:
    return Posix(_mode(mode, kind), _number(uid), _number(gid), _time(mtime), _number(rdev))


def write(metadata: Mapping[str, str], posix: Posix) -> dict[str, str]:
    """`user_metadata` with the attributes put in their place; the other entries stay as they are."""
    out = {name: value for name, value in metadata.items() if name not in POSIX_NAMES}
    for name in ("mode", "uid", "gid"):
        if (value := getattr(posix, name)) is not None:
            out[name] = str(value)
    if posix.mtime_ns is not None:
        seconds, rest = divmod(abs(posix.mtime_ns), NS)  # the decimal number, as it is read back, also before 1970
        out["mtime"] = f"{'-' if posix.mtime_ns < 0 else ''}{seconds}.{rest:09d}"
    if posix.rdev:
        out["rdev"] = str(posix.rdev)
    if _S3CMD in out:
        out[_S3CMD] = _followed(out[_S3CMD], out)
    return out


def without_time(metadata: Mapping[str, str]) -> dict[str, str]:
    """`user_metadata` without what says when the bytes were written."""
    return {name: value for name, value in metadata.items() if name not in ("mtime", _S3CMD)}


def storable(mtime_ns: int) -> int:
    """The time, if metadata can say it. Raises OSError EOVERFLOW beyond what `read` understands, 31 billion years."""
    if abs(mtime_ns) >= _TIME_MAX:
        raise OSError(errno.EOVERFLOW, os.strerror(errno.EOVERFLOW))
    return mtime_ns


def without_hashes(metadata: Mapping[str, str]) -> dict[str, str]:
    """`user_metadata` without what other tools noted of the bytes, which are about to be others."""
    out = {name: value for name, value in metadata.items() if name not in _HASHES}
    if _S3CMD in out:
        out[_S3CMD] = _joined({name: value for name, value in _noted(out[_S3CMD]).items() if name != "md5"})
    return out


def _noted(record: str) -> dict[str, str]:
    """s3cmd's record by name; it escapes what it separates with."""
    return {name: value for name, _, value in (entry.partition(":") for entry in record.split("/")) if name}


def _joined(noted: Mapping[str, str]) -> str:
    return "/".join(f"{name}:{value}" for name, value in noted.items())


def _followed(record: str, own: Mapping[str, str]) -> str:
    """s3cmd's record with its entries as ours are now."""
    before = _noted(record)
    now = before | {name: own[name].partition(".")[0] for name in before if name in ("mode", "uid", "gid", "mtime")}
    if now == before:
        return record
    # A user's name beside another number, and a time of change before the change.
    names = {"uid": "uname", "gid": "gname"}
    wrong = {"ctime"} | {name for number, name in names.items() if now.get(number) != before.get(number)}
    return _joined({name: value for name, value in now.items() if name not in wrong})


def _number(text: str) -> int | None:
    return int(text) if _NUMBER.fullmatch(text) and int(text) < 1 << 32 else None


def _mode(text: str, kind: int) -> int | None:
    """s3fs writes 33188, rclone 100644: read as decimal only what then has a file type that exists.

    Without type bits it is octal, but a directory's decimal: there s3fs leaves them out (511 is drwxrwxrwx).
    """
    if not _MODE.fullmatch(text):
        return None
    decimal = int(text)
    if not text.startswith("0") and decimal < 1 << 16 and stat.S_IFMT(decimal) in _KINDS:
        return decimal
    if not text.startswith("0") and kind == stat.S_IFDIR and decimal <= 0o7777:
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
    return seconds * NS + (-rest if text.startswith("-") else rest)
