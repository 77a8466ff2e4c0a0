"""Bytes a second and requests at once: over a clock that the test moves, and on the wire of a real server."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from functools import partial

import pytest
import trio
import trio.testing

from sosfs.concurrency.interrupt import Interrupt
from sosfs.s3.calls import SignedCalls
from sosfs.s3.limits import Limits
from sosfs.s3.protocol import Properties
from sosfs.s3.retries import Clock
from sosfs.s3.throttle import PIECE_MAX, PIECE_MIN, Congestion, Rate, Throttle, asks_for_fewer
from tests.support.faults import Answer
from tests.support.mounting import run_sosfs
from tests.support.proxy import Proxy
from tests.support.servers import Bucket, Server
from tests.support.subjects import target_of
from tests.support.traffic import Op, on

MIB = 1 << 20


class Hands:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.time = 1000.0
        self.on_sleep: Callable[[], None] = lambda: None

    def sleep(self, seconds: float) -> None:
        self.time += seconds
        self.on_sleep()

    @property
    def clock(self) -> Clock:
        return Clock(lambda: self.time, self.sleep)


# --- bytes a second


@pytest.mark.parametrize("sizes", [[100] * 10_000, [500_000, 500_000], [1, 999_999]])
def test_bytes_take_their_time_however_they_come(sizes: list[int]) -> None:
    hands = Hands()
    rate = Rate(100_000, hands.clock)
    for size in sizes:
        rate.take(size)
    assert hands.time == pytest.approx(1000.0 + sum(sizes) / 100_000, rel=1e-6)


class Meeting:
    """A clock of which the first look takes until a second thread looks as well, or cannot because of a lock."""

    def __init__(self) -> None:
        self.slept: list[float] = []
        self._first = threading.Lock()
        self._second = threading.Event()
        self.is_held = threading.Event()  # somebody looks
        self.is_open = False

    def now(self) -> float:
        if self.is_open:
            if self._first.acquire(blocking=False):
                self.is_held.set()
                self._second.wait(0.3)
            else:
                self._second.set()
        return 1001.0 if self.is_open else 1000.0

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        raise InterruptedError

    @property
    def clock(self) -> Clock:
        return Clock(self.now, self.sleep)


def together(*works: Callable[[], object]) -> None:
    """Each in a thread of its own."""

    def run(work: Callable[[], object]) -> None:
        with contextlib.suppress(InterruptedError):
            work()

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_bytes_of_two_threads_at_once_are_counted_both() -> None:
    meeting = Meeting()
    rate = Rate(1000, meeting.clock)
    meeting.is_open = True
    together(partial(rate.take, 100), partial(rate.take, 100))
    assert sorted(meeting.slept) == pytest.approx([0.1, 0.2])


def test_who_comes_while_the_limit_is_lifted_goes_on() -> None:
    meeting = Meeting()
    rate = Rate(1000, meeting.clock)
    meeting.is_open = True
    went_on: list[int] = []

    def lift() -> None:
        rate.limit = 0

    def take() -> None:
        meeting.is_held.wait()
        rate.take(100)
        went_on.append(rate.limit)

    together(lift, take)
    assert (went_on, meeting.slept) == ([0], [])


def test_two_threads_that_are_refused_at_once_halve_once() -> None:
    meeting = Meeting()
    congestion = Congestion(16, meeting.clock)
    meeting.is_open = True
    together(partial(congestion.refused, 1000.0), partial(congestion.refused, 1000.0))
    assert (congestion.allowed, congestion.refusals) == (8, 2)


def test_who_is_still_there_waits_all_the_time_and_who_is_not_does_not() -> None:
    hands, interrupt = Hands(), Interrupt()
    rate = Rate(1000, hands.clock)
    assert rate.limit == 1000
    rate.take(3000, interrupt)
    assert hands.time == pytest.approx(1003.0)
    interrupt.set()
    rate.take(3000, interrupt)
    assert hands.time == pytest.approx(1003.0)


def test_only_a_full_round_of_good_answers_in_a_row_allows_one_more() -> None:
    hands = Hands()
    congestion = Congestion(8, hands.clock)
    assert (congestion.most, congestion.now()) == (8, 1000.0)
    congestion.refused(1000.0)
    allowed = []
    for _ in range(4 + 5):
        congestion.answered()
        allowed.append(congestion.allowed)
    assert allowed == [4, 4, 4, 5, 5, 5, 5, 5, 6]
    for _ in range(5):
        congestion.answered()
    congestion.refused(999.0)  # of what was sent before: it is no new cut, and the round begins again
    for _ in range(5):
        congestion.answered()
    assert congestion.allowed == 6
    congestion.answered()
    assert congestion.allowed == 7
    for _ in range(30):
        congestion.answered()
    assert congestion.allowed == 8


@pytest.mark.parametrize(
    ("status", "code", "due"),
    [(503, "", True), (429, "", True), (400, "SlowDown", True), (200, "SlowDown", True), (500, "InternalError", False)],
)
def test_which_answers_ask_for_fewer_requests(status: int, code: str, due: bool) -> None:
    assert asks_for_fewer(status, code) == due


def test_no_limit_costs_no_time() -> None:
    hands = Hands()
    rate = Rate(0, hands.clock)
    rate.take(1 << 40)
    assert hands.time == 1000.0 and rate.piece == PIECE_MAX


def test_what_was_not_used_is_no_credit() -> None:
    hands = Hands()
    rate = Rate(1000, hands.clock)
    hands.time += 3600
    before = hands.time
    rate.take(5000)
    assert hands.time == pytest.approx(before + 5)


def test_a_new_rate_holds_for_who_waits_already() -> None:
    hands = Hands()
    rate = Rate(1, hands.clock)
    hands.on_sleep = lambda: setattr(rate, "limit", 1000)
    rate.take(1_000_000)  # 12 days
    assert hands.time < 1001


def test_who_is_interrupted_waits_no_longer() -> None:
    hands, interrupt = Hands(), Interrupt()
    rate = Rate(1, hands.clock)
    hands.on_sleep = interrupt.set
    rate.take(1_000_000, interrupt)
    assert hands.time < 1001


def test_pieces_are_small_where_the_rate_is_low() -> None:
    assert [Rate(limit).piece for limit in (1000, 320 << 10, 1 << 30)] == [PIECE_MIN, 10 << 10, PIECE_MAX]


def test_connections_share_one_rate(bucket: Bucket) -> None:
    """Four at a time, large and small, up and down: no more bytes went in any while than the rate gives."""
    limit, began = 2 * MIB, time.monotonic()
    throttle = Throttle(upload=limit, download=limit, transfers=8)
    key = target_of(bucket).credentials.current()
    calls = SignedCalls(target_of(bucket), key, throttle=throttle)
    calls.put("large", bytes(MIB), Properties(), None)
    errors: list[Exception] = []

    def one(number: int) -> None:
        try:
            calls.put(f"large{number}", bytes(MIB), Properties(), None)
            for each in range(16):
                calls.put(f"small{number}-{each}", bytes(16 << 10), Properties(), None)
            assert len(calls.get("large", 0, MIB, "").body) == MIB
        except Exception as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    calls.close()
    assert not errors
    up, down = MIB + 4 * (MIB + 16 * (16 << 10)), 4 * MIB
    assert time.monotonic() - began >= max(up, down) / limit  # 3 s; without the limit it takes a tenth


# --- requests at once


def test_a_refusal_halves_and_a_round_of_answers_gives_one_back() -> None:
    hands = Hands()
    congestion = Congestion(48, hands.clock)
    sent = hands.time
    hands.time += 1
    for _ in range(48):  # all that were under way
        congestion.refused(sent)
    assert (congestion.allowed, congestion.refusals) == (24, 48)
    congestion.refused(hands.time)  # sent after that, and refused again
    assert congestion.allowed == 12
    for _ in range(11):
        congestion.answered()
    assert congestion.allowed == 12
    congestion.answered()
    assert congestion.allowed == 13
    for _ in range(2000):
        congestion.answered()
    assert congestion.allowed == 48
    for _ in range(20):
        hands.time += 1
        congestion.refused(hands.time)
    assert congestion.allowed == 2


@pytest.mark.parametrize(("transfers", "small", "bulk"), [(48, 32, 16), (4, 3, 3), (2, 1, 1), (96, 64, 32)])
def test_neither_small_nor_bulk_requests_ever_have_it_all(transfers: int, small: int, bulk: int) -> None:
    limits, gate, running = Limits(transfers=transfers), threading.Event(), {"small": 0, "bulk": 0}

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for pool in (limits.small, limits.bulk):
                for _ in range(transfers + 1):
                    nursery.start_soon(pool.run, gate.wait, 20)
                await trio.testing.wait_all_tasks_blocked()
                running["small" if pool is limits.small else "bulk"] = pool.under_way
            assert limits.now.under_way <= transfers
            gate.set()

    trio.run(main)
    limits.close()
    assert running["small"] == small
    assert 1 <= running["bulk"] <= bulk


def test_the_server_is_asked_less_while_it_says_so_and_more_again(server: Server, bucket: Bucket) -> None:
    """503 SlowDown to all that are under way: fewer at once from then on, and all of them again after good answers."""
    with Proxy(server.endpoint, latency=0.02) as proxy:
        limits = Limits(transfers=16)
        target = target_of(bucket, endpoint=proxy.endpoint)
        calls = SignedCalls(target, target.credentials.current(), throttle=limits.throttle)

        under_way, peaks, lock = [0], [0], threading.Lock()

        def ask() -> None:
            with lock:
                under_way[0] += 1
                peaks[-1] = max(peaks[-1], under_way[0])
            try:
                calls.list("", delimiter="", after="", token="", limit=1)
            finally:
                with lock:
                    under_way[0] -= 1

        async def burst(count: int) -> None:
            peaks.append(0)
            async with trio.open_nursery() as nursery:
                for _ in range(count):
                    nursery.start_soon(limits.small.run, ask)

        async def main() -> tuple[int, int, int]:
            await burst(20)
            with proxy.broken(Answer(503, "SlowDown"), on(Op.LIST), times=6):
                await burst(6)
            halved = limits.now.allowed
            await burst(4)
            slow = peaks[-1]
            while limits.now.allowed < 16:
                await burst(16)
            await burst(60)
            return halved, slow, peaks[-1]

        halved, slow, fast = trio.run(main)
        calls.close()
        limits.close()
    assert halved <= 8 and slow <= halved < fast == 11  # of 16 that may be small ones
    assert limits.now.refusals == 6


def test_asks_for_nothing_that_is_no_limit() -> None:
    done = run_sosfs(["mount", "b", "/mnt", "--transfers", "1"], {"PATH": "/usr/bin"})
    assert done.returncode == 2 and "no number from 2 to 512" in done.stderr


def test_each_limit_is_changed_by_itself() -> None:
    limits = Limits(transfers=16, upload_rate=1, download_rate=2)
    now = limits.now
    assert (now.transfers, now.upload_rate, now.download_rate) == (16, 1, 2)
    for change, due in (
        ({"upload_rate": 10}, (16, 10, 2)), ({"download_rate": 20}, (16, 10, 20)), ({"transfers": 1}, (2, 10, 20)),
        ({"upload_rate": 0, "download_rate": 0}, (2, 0, 0)), ({}, (2, 0, 0)),
    ):  # fmt: skip
        limits.change(**change)
        now = limits.now
        assert (now.transfers, now.upload_rate, now.download_rate) == due
    limits.close()
