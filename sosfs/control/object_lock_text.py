"""Object Lock as text: the default retention of a bucket, the retention and the legal hold of an object.

    GOVERNANCE 30 days                    of `.sosfs/bucket/object-lock`; COMPLIANCE, years
    GOVERNANCE 2027-01-01T00:00:00Z       of `user.sos.retention`
    ON                                    of `user.sos.legal-hold`; OFF

The end of a retention may be written as any time (`moments`), or as an age from now. In the bucket's text a # begins a
comment, and nothing else in it means no default. Pure functions, safe from any thread.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator

from sosfs.config import moments
from sosfs.control.rejected_texts import BadText
from sosfs.s3.http_headers import iso_time
from sosfs.s3.protection_settings import Term
from sosfs.s3.protocol import LOCK_MODES, Lock

MOST = {"days": 36_500, "years": 100}  # S3, DefaultRetention
END = 253_402_300_799  # seconds: the end of the year 9999
HELP = """\
# Default retention: what is stored from now on is locked for so long. One line: MODE NUMBER days, or MODE NUMBER years.
# MODE: GOVERNANCE, which some keys may end, or COMPLIANCE, which nobody can. No line: no default.
"""
ABSENT = """\
# This bucket has no Object Lock. Most servers take it only for a bucket that is made with it.
"""
_COMMENT = re.compile(r"(?:^|\s)#.*")
_TERM = re.compile(r"(\d{1,9})\s*(day|year|d|y)s?", re.IGNORECASE)


def shown(default: Term | None) -> str:
    """The text of a bucket's default retention, without comments; "" for none."""
    return f"{said(default)}\n" if default else ""


def said(default: Term) -> str:
    """A default retention in words."""
    unit = default.unit if default.count != 1 else default.unit.removesuffix("s")
    return f"{default.mode} {default.count} {unit}"


def parse(text: str) -> Term | None:
    """The default retention of a text; None for none. Raises `BadText`."""
    found: Term | None = None
    for number, line in _lines(text):
        if found is not None:
            raise BadText("one line only: a bucket has one default retention", line=number)
        mode, _, term = line.partition(" ")
        try:
            found = _default(mode, term.strip())
        except ValueError as error:
            raise BadText(str(error), line=number) from error
    return found


def _lines(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.splitlines(), 1):
        if words := _COMMENT.sub("", line).split():
            yield number, " ".join(words)


def _default(mode: str, term: str) -> Term:
    mode = _mode(mode, "write: MODE NUMBER days, such as GOVERNANCE 30 days")
    told = _TERM.fullmatch(term)
    if told is None:
        raise ValueError(f"{term!r} is no time; write: {mode} 30 days, or {mode} 1 year")
    unit = "days" if told[2].lower().startswith("d") else "years"
    if not 1 <= int(told[1]) <= MOST[unit]:
        raise ValueError(f"{told[1]} {unit}: it is 1 to {MOST[unit]}")
    return Term(mode, int(told[1]), unit)


def _mode(word: str, advice: str) -> str:
    if word.upper() in LOCK_MODES:
        return word.upper()
    near = difflib.get_close_matches(word.upper(), LOCK_MODES, n=1)
    why = f"{word!r} is none of {', '.join(LOCK_MODES)}" if word else advice
    raise ValueError(why + (f"; did you mean {near[0]}?" if near else ""))


def retention_shown(lock: Lock) -> str:
    """The text of an object's retention; "" for none."""
    return f"{lock.mode} {iso_time(lock.until)}" if lock.mode else ""


def retention(text: str, *, now: float) -> Lock:
    """The retention that a text says. Raises `BadText` for what is none, and for one that would be over at `now`."""
    mode, _, end = " ".join(text.strip("\0 \t\r\n").split()).partition(" ")
    try:
        mode = _mode(mode, "write: MODE TIME, such as GOVERNANCE 2027-01-01T00:00:00Z")
        if not end:
            raise ValueError(f"until when? Write: {mode} 2027-01-01T00:00:00Z, or {mode} 30 days")
        until = math.ceil(moments.to_come(end, now=now))  # of a fraction of a second nothing is to be unprotected
        if until > END:
            raise ValueError(f"{end!r} is after the year 9999")
    except ValueError as error:
        raise BadText(str(error)) from error
    return Lock(mode, until)


def legal_hold(text: str) -> bool:
    """Whether a text says that there is a legal hold. Raises `BadText`."""
    word = text.strip().strip("\0").upper()
    if word not in ("ON", "OFF"):
        raise BadText(f"{text.strip()!r} is neither ON nor OFF")
    return word == "ON"
