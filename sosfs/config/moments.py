"""How a moment is written, mostly one in the past, and how long something takes.

    2026-11-01   2026-11-01T12:30Z   2026-11-01 12:30   20261101T1230+0100     ISO 8601
    now   today   yesterday   monday   90 seconds ago   2 hours ago   3 days   2w

A date alone is the beginning of that day; without a zone a time is local. `yesterday` and `2 days ago` are whole days
before now, months 30 days and years 365; `today` and the days of the week are midnight, of the last one that has been.
Pure but for the local time zone.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta

_UNITS = {"second": 1, "sec": 1, "s": 1, "minute": 60, "min": 60, "m": 60, "hour": 3600, "h": 3600}
_UNITS |= {"day": 86_400, "d": 86_400, "week": 7 * 86_400, "w": 7 * 86_400, "month": 30 * 86_400, "year": 365 * 86_400}
_AGO = re.compile(r"(an?|\d{1,9})\s*([a-z]+?)s?(?:\s+ago)?", re.IGNORECASE)
_SPAN = re.compile(r"(\d{1,9})\s*([a-z]+?)s?", re.IGNORECASE)
ROUNDING = 1e-3  # seconds by which a datetime may be off
_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")


class FutureError(ValueError):
    """A moment that has not been yet."""


def moment(text: str, *, now: float) -> float:
    """The moment, in seconds since the epoch.

    Raises ValueError with a sentence for what is none, `FutureError` for one that has not been yet.
    """
    found = _parsed(text.strip().replace("_", " "), datetime.fromtimestamp(now).astimezone())
    if found is None:
        raise ValueError(f"{text!r} is no time; write it as 2026-11-01, 2026-11-01T12:30Z, yesterday or '2 hours ago'")
    seconds = _seconds(found, text)
    if seconds > now + ROUNDING:
        raise FutureError(f"{text!r} is in the future")
    return max(seconds, 0.0)


def to_come(text: str, *, now: float) -> float:
    """The moment, in seconds since the epoch, for what ends then: also an age, `30 days`, which is counted from now.

    Raises ValueError with a sentence for what is none, and for one that is over.
    """
    if (age := _SPAN.fullmatch(text.strip())) and age[2].lower() in _UNITS:
        return _ahead(now + span(text), text, now)
    found = _parsed(text.strip().replace("_", " "), datetime.fromtimestamp(now).astimezone())
    if found is None:
        raise ValueError(f"{text!r} is no time; write it as 2027-01-01, 2027-01-01T12:30Z or 30 days")
    return _ahead(_seconds(found, text), text, now)


def _ahead(seconds: float, text: str, now: float) -> float:
    if seconds <= now:
        raise ValueError(f"{text!r} is in the past")
    return seconds


def _seconds(found: datetime, text: str) -> float:
    try:
        return found.timestamp()
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{text!r} is no time that a computer knows") from error


def is_relative(text: str) -> bool:
    """Whether it depends on now which moment a text means."""
    return not text.strip()[:4].isdecimal() or _AGO.fullmatch(text.strip().replace("_", " ")) is not None


def span(text: str) -> float:
    """How many seconds an age is: `30d`, `2 hours`. ValueError with a sentence for what is none."""
    found = _SPAN.fullmatch(text.strip())
    if found is None or found[2].lower() not in _UNITS:
        raise ValueError(f"{text!r} is no age; write it as 30d, 12h or '2 weeks'")
    return float(int(found[1]) * _UNITS[found[2].lower()])


def _parsed(text: str, now: datetime) -> datetime | None:
    word = text.lower()
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    if word in ("now", "today", "yesterday"):
        return {"now": now, "today": midnight, "yesterday": now - timedelta(days=1)}[word]
    if word in _DAYS:
        back = (now.weekday() - _DAYS.index(word)) % 7
        return (midnight - timedelta(days=back)).replace(tzinfo=None)  # of that day's own zone
    if (found := _AGO.fullmatch(word)) and found[2] in _UNITS:
        count = int(found[1]) if found[1].isdecimal() else 1
        try:
            return now - timedelta(seconds=count * _UNITS[found[2]])
        except OverflowError:
            return None
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None
