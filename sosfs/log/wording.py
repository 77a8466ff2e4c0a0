"""Numbers, sizes, times and ages as they are told to a person. Pure, but for the local time zone."""

from __future__ import annotations

import time


def counted(number: int, what: str, many: str = "") -> str:
    """`1 file`, `2 files`; `many` is the plural where that is not made with an s."""
    return f"{number:,} {what if number == 1 else many or f'{what}s'}"


def lasting(seconds: float) -> str:
    """A length of time, rounded: `8 s`, `3 min`, `2 h 5 min`, `4 days`."""
    whole = max(0, round(seconds))
    if whole < 100:
        return f"{whole} s"
    minutes = whole // 60
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return counted(hours // 24, "day")


def clock(moment: float, *, now: float) -> str:
    """A moment in local time (seconds since the epoch); with its day where that is not the day of `now`."""
    there = time.localtime(moment)
    is_today = there[:3] == time.localtime(now)[:3]
    return time.strftime("%H:%M:%S" if is_today else "%Y-%m-%d %H:%M:%S", there)
