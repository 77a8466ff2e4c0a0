"""How a moment in the past and an age are written."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from sosfs.config import moments

NOW = datetime(2026, 11, 29, 12, 0, tzinfo=UTC).timestamp()  # a Sunday
HOUR, DAY = 3600.0, 86_400.0


@pytest.fixture(autouse=True)
def _in_zurich() -> Iterator[None]:
    """An hour ahead of UTC at that time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "CET-1")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.parametrize(
    ("text", "before"),
    [
        ("now", 0.0),
        ("yesterday", DAY),
        ("today", 13 * HOUR),
        ("sunday", 13 * HOUR),
        ("Monday", 13 * HOUR + 6 * DAY),
        ("2 hours ago", 2 * HOUR),
        ("2_hours_ago", 2 * HOUR),
        ("an hour ago", HOUR),
        ("90s", 90.0),
        ("1w", 7 * DAY),
        ("2 months ago", 60 * DAY),
        ("2026-11-29", 13 * HOUR),
        ("2026-11-29 11:30", 1.5 * HOUR),
        ("2026-11-29T11:30Z", 0.5 * HOUR),
        ("20261129T1130+0200", 2.5 * HOUR),
    ],
)
def test_a_moment(text: str, before: float) -> None:
    assert NOW - moments.moment(text, now=NOW) == pytest.approx(before, abs=1e-3)


@pytest.mark.parametrize(
    "text", ["", "soon", "2026", "2026-13-01", "2 fortnights ago", "9999999999 days ago", "-1 day"]
)
def test_what_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="is no time"):
        moments.moment(text, now=NOW)


@pytest.mark.parametrize("text", ["2026-11-30", "2026-11-29T12:00:01Z", "9999-01-01"])
def test_the_future(text: str) -> None:
    with pytest.raises(moments.FutureError):
        moments.moment(text, now=NOW)


def test_what_depends_on_now() -> None:
    assert all(map(moments.is_relative, ("yesterday", "2 hours ago", "monday", "9000 s ago", "now")))
    assert not any(map(moments.is_relative, ("2026-11-01", "2026-11-01T12:30Z", "20261101T1230Z")))


def test_ages() -> None:
    assert [moments.span(text) for text in ("30d", "12 hours", "1 week")] == [30 * DAY, 12 * HOUR, 7 * DAY]
    for text in ("", "long", "30", "d", "-1d"):
        with pytest.raises(ValueError, match="is no age"):
            moments.span(text)


def test_a_day_begins_in_the_zone_that_it_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clocks were put back an hour between that Saturday and now."""
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()  # the fixture puts it back
    now = datetime(2026, 10, 28, 12, tzinfo=UTC).timestamp()
    assert moments.moment("saturday", now=now) == datetime(2026, 10, 23, 22, tzinfo=UTC).timestamp()
    assert moments.moment("monday", now=now) == datetime(2026, 10, 25, 23, tzinfo=UTC).timestamp()


@pytest.mark.parametrize("text", ["2026-10-28T11:59:50Z", "2026-10-28T12:00Z", "now", "0 days"])
def test_what_is_to_come_is_not_over(text: str) -> None:
    now = datetime(2026, 10, 28, 12, tzinfo=UTC).timestamp()
    with pytest.raises(ValueError, match="is in the past"):
        moments.to_come(text, now=now)
    assert moments.to_come("2026-10-28T12:00:01Z", now=now) == now + 1
