"""What is counted: how much, and under how few names."""

from __future__ import annotations

import errno
import math

import pytest

from sosfs.tracing.exchange import Exchange
from sosfs.tracing.histogram import BOUNDS, Histogram
from sosfs.tracing.meters import METERS, Meters
from sosfs.tracing.requests import CURRENT, KernelRequest, S3Request


def ended(status: int, *, number: int = errno.EIO, tries: int = 1, cause: KernelRequest | None = None) -> S3Request:
    return S3Request("HeadObject", "key", 0.0, 0.25, tries, 5, 7, number, status, cause)


def test_a_histogram_counts_up_to_each_bound() -> None:
    histogram = Histogram()
    for seconds in (0.0, 0.0001, 0.00011, 0.3, 1000.0):
        histogram.add(seconds)
    found = dict(histogram.cumulative())
    assert (found[BOUNDS[0]], found[BOUNDS[1]], found[0.25], found[0.5], found[30.0]) == (2, 3, 3, 4, 4)
    assert found[math.inf] == histogram.count == 5
    assert histogram.seconds == pytest.approx(1000.30021)


def test_a_server_with_a_status_for_each_answer_makes_few_counters() -> None:
    meters = Meters()
    for status in range(1200):
        meters.exchanged(ended(status))
    assert sum(meters.s3_errors.values()) == 1200
    assert len(meters.s3_errors) < 30
    assert meters.s3_errors["HeadObject", "503"] == 1
    assert meters.s3_errors["HeadObject", "none"] == 1200 - 500


def test_an_errno_that_nobody_knows_is_another() -> None:
    meters = Meters()
    for number in (errno.EIO, 4711, 4712):
        request = KernelRequest("read")
        request.errno = number
        meters.answered(request, 0.1)
    assert meters.kernel_errors == {("read", "EIO"): 1, ("read", "other"): 2}


def test_s3_requests_count_for_their_cause_until_it_is_answered() -> None:
    meters, cause = Meters(), KernelRequest("read")
    meters.exchanged(ended(200, number=0, tries=3, cause=cause))
    meters.exchanged(ended(200, number=0, cause=cause))
    meters.answered(cause, 1.0)
    meters.exchanged(ended(200, number=0, cause=cause))
    assert cause.s3 == {"HeadObject": (2, 0.5)}
    assert (meters.s3["HeadObject"].count, meters.s3_retries["HeadObject"]) == (3, 2)
    assert meters.s3_bytes == {"sent": 15, "received": 21}
    assert not meters.s3_errors


def test_an_exchange_that_ends_with_a_bug_is_an_error_and_not_under_way() -> None:
    before = METERS.s3_errors["Probe", "none"]
    token = CURRENT.set(KernelRequest("read"))
    with pytest.raises(ZeroDivisionError), Exchange("Probe", "", sent=0):
        assert METERS.s3_under_way == 1
        _ = 1 // 0
    CURRENT.reset(token)
    assert METERS.s3_under_way == 0
    assert METERS.s3_errors["Probe", "none"] == before + 1
