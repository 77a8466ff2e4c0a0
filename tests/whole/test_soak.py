"""A short soak: programs go round over a bad server, and what they have written is right. `make soak` is the long one.

`SOSFS_SOAK_MINUTES` sets how long. What grows shows only after minutes, so shorter runs look at the programs alone.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.whole.soak import GROWTH, PROGRAMS, Outcome, Sample, soak

MINUTES = float(os.environ.get("SOSFS_SOAK_MINUTES", "0.3"))
TELLING = 5.0  # minutes from which on a growth is one


@pytest.mark.timeout(int(60 * MINUTES) + 700)
def test_programs_go_round_and_nothing_grows(tmp_path: Path) -> None:
    out = soak(MINUTES, tmp_path, rest=15.0)
    print(out.table())
    assert out.failures == []
    assert {program.__name__ for program in PROGRAMS} == set(out.rounds), out.rounds
    assert out.faults > 0
    assert out.rest is not None and out.rest.threads <= max(sample.threads for sample in out.samples)
    if MINUTES >= TELLING:
        assert out.grown == []


def outcome(rise: float) -> Outcome:
    """An hour in which the memory rises by so much of it, after a warm-up that took more."""
    samples = [
        Sample(60.0 * at, int((200 << 20) * (1 + rise * at / 60)) - (at < 10) * (90 << 20), 30, 40, 50 << 20, 0)
        for at in range(60)
    ]
    return Outcome(60.0, samples)


@pytest.mark.parametrize(("rise", "grown"), [(0.0, 0), (0.05, 0), (0.4, 1)])
def test_a_slow_growth_is_seen_and_a_warm_up_is_none(rise: float, grown: int) -> None:
    """139 to 173 MiB in 16 minutes was one."""
    assert len(outcome(rise).grown) == grown
    assert outcome(rise).growth("threads") == pytest.approx(0)
    assert len(outcome(rise).table().splitlines()) == 4 + len(GROWTH)
