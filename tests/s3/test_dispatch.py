"""Whose key a request is signed with: when it is read again, how often, and who goes on with it.

Over a server that answers by a script, and takes one key.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import pytest
import trio
from trio.testing import MockClock

from sosfs.concurrency.interrupt import CURRENT, Interrupt
from sosfs.config.credentials import NOBODY, Credentials
from sosfs.errors import StoreError
from sosfs.s3.calls import SignedCalls
from sosfs.s3.content_md5 import ContentMd5
from sosfs.s3.dispatch import ENDING_PAUSE, MUTE_REFUSAL, Dispatcher
from sosfs.s3.endpoint import S3Target
from sosfs.s3.protocol import Object
from tests.s3.test_transport import OBJECT
from tests.support.drive import fails
from tests.support.scripted import Scripted, Seen, answer

OLD, GOOD, BAD = Credentials("OLD", "s"), Credentials("GOOD", "s"), Credentials("BAD", "s")
ENDING = Credentials("ENDING", "s", expires=1.0)
THERE = answer(200, b"", *OBJECT)


def refusal(code: str, status: int = 403) -> bytes:
    return answer(status, f"<Error><Code>{code}</Code></Error>".encode())


@dataclass
class Source:
    """Has one key after the other, the next one each time that it is read again, and the last for good."""

    keys: list[Credentials]
    reads: int = 0
    fails: OSError | None = None
    on_read: Callable[[], None] = lambda: None

    def current(self) -> Credentials:
        return self.keys[0]

    def refresh(self) -> Credentials:
        self.reads += 1
        self.on_read()
        if self.fails is not None:
            raise self.fails
        if len(self.keys) > 1:
            self.keys.pop(0)
        return self.keys[0]


@dataclass
class Desk:
    """A dispatcher to a server that refuses all keys but GOOD, in some way."""

    source: Source
    told: bytes
    server: Scripted = field(init=False)
    news: int = 0

    def __post_init__(self) -> None:
        self.server = Scripted(self._answer)
        target = S3Target("bucket", self.server.endpoint, "us-east-1", self.source, patience=0.0)
        self.dispatcher = Dispatcher(target, lambda _: None)
        self.dispatcher.on_new_key = self._tell

    def _tell(self) -> None:
        self.news += 1

    def _answer(self, seen: Seen) -> bytes:
        return THERE if key_of(seen) in ("GOOD", "ENDING", "") else self.told

    @property
    def keys(self) -> list[str]:
        """Whose requests came."""
        return [key_of(seen) for seen in self.server.seen]

    async def get(self, operation: str = "GetObjectAcl", *, interrupt: Interrupt | None = None) -> None:
        def ask(calls: SignedCalls) -> None:
            calls._send(operation, "GET", "key")

        await self.dispatcher.send(operation, ask, interrupt=interrupt)


def key_of(seen: Seen) -> str:
    return seen.headers.get("authorization", "").partition("Credential=")[2].partition("/")[0]


Opened = Callable[..., Desk]


@pytest.fixture
def opened() -> Iterator[Opened]:
    desks: list[Desk] = []

    def open_(*keys: Credentials, told: bytes = refusal("InvalidAccessKeyId")) -> Desk:
        desks.append(Desk(Source(list(keys)), told))
        return desks[-1]

    yield open_
    for desk in desks:
        desk.dispatcher.close()
        desk.server.__exit__()


def run(work: Callable[[], Awaitable[None]]) -> None:
    trio.run(work, clock=MockClock())


@pytest.mark.parametrize("code", ["InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"])
def test_a_key_that_is_refused_is_read_again_once_for_all_who_wait(opened: Opened, code: str) -> None:
    desk = opened(OLD, GOOD, told=refusal(code))

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(desk.get)
        await desk.get()

    run(main)
    assert (desk.source.reads, desk.news) == (1, 1)
    assert sorted(desk.keys) == ["GOOD"] * 5 + ["OLD"] * 4
    assert desk.keys[-1] == "GOOD", "who comes later begins with it"


@pytest.mark.parametrize("told", [refusal("AccessDenied"), refusal("RequestTimeTooSkewed"), answer(500)])
def test_what_has_nothing_to_do_with_the_key_has_none_read(opened: Opened, told: bytes) -> None:
    desk = opened(OLD, GOOD, told=told)

    async def main() -> None:
        with fails(errno.EACCES, errno.EIO):
            await desk.get()

    run(main)
    assert (desk.source.reads, desk.keys) == (0, ["OLD"])


def test_who_uses_no_key_has_none_read(opened: Opened) -> None:
    desk = opened(NOBODY, GOOD)
    desk.server.script = lambda _: refusal("InvalidAccessKeyId")

    async def main() -> None:
        with fails(errno.EACCES):
            await desk.get()

    run(main)
    assert (desk.source.reads, desk.keys) == (0, [""])


def test_a_key_that_stays_the_same_is_tried_no_more(opened: Opened) -> None:
    desk = opened(OLD)

    async def main() -> None:
        with fails(errno.EACCES):
            await desk.get()
        desk.source.fails = OSError(errno.ENOENT, "no such file")
        with pytest.raises(StoreError, match="no such file") as caught:
            await desk.get()
        assert (caught.value.errno, caught.value.code) == (errno.EACCES, "InvalidAccessKeyId")

    run(main)
    assert (desk.source.reads, desk.keys, desk.news) == (2, ["OLD", "OLD"], 0)


def test_a_refusal_without_a_word_has_the_key_read_now_and_then(opened: Opened) -> None:
    """It may mean anything, and comes with each file that may not be seen."""
    desk = opened(OLD, told=answer(403, b"", "x-amz-request-id: 7"))
    clock = MockClock()

    async def main() -> None:
        for reads, later in ((1, 0.0), (1, MUTE_REFUSAL - 1), (2, 1.0)):
            clock.jump(later)
            with fails(errno.EACCES):
                await desk.get()
            assert desk.source.reads == reads

    trio.run(main, clock=clock)


def test_a_key_that_another_part_has_read_again_is_used_at_once(opened: Opened) -> None:
    desk = opened(OLD, GOOD)

    async def main() -> None:
        with fails(errno.EACCES):
            desk.source.keys.insert(0, OLD)
            await desk.get()
        desk.source.keys[:] = [GOOD]
        await desk.get()

    run(main)
    assert desk.keys == ["OLD", "GOOD"]


def test_a_key_that_is_about_to_end_is_followed_by_the_next(opened: Opened) -> None:
    desk = opened(ENDING, ENDING, GOOD)
    clock = MockClock()

    async def main() -> None:
        await desk.get()
        await desk.get()
        assert (desk.source.reads, desk.keys) == (1, ["ENDING"] * 2), "there is none yet, which is asked now and then"
        clock.jump(ENDING_PAUSE)
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(desk.get)
        desk.source.keys.insert(0, ENDING)
        desk.source.fails = OSError(errno.EIO, "no answer")
        clock.jump(ENDING_PAUSE)
        await desk.get()

    trio.run(main, clock=clock)
    assert (desk.source.reads, desk.keys) == (3, ["ENDING"] * 2 + ["GOOD"] * 3 + ["ENDING"])


@pytest.mark.parametrize("key", [GOOD, OLD], ids=["at once", "after the key was read again"])
def test_nobody_waits_for_what_was_given_up(opened: Opened, key: Credentials) -> None:
    desk, given_up = opened(key, GOOD), Interrupt()
    desk.source.on_read = given_up.set

    async def main() -> None:
        if key is GOOD:
            given_up.set()
        with fails(errno.EINTR):
            await desk.get(interrupt=given_up)

    run(main)
    assert "GOOD" not in desk.keys


def _head(calls: SignedCalls, key: str) -> Object:
    return calls.head(key)


def test_at_the_end_of_a_mount_what_is_only_read_is_given_up(opened: Opened) -> None:
    """Whatever changes something is done, and so is what a program waits for."""
    desk = opened(GOOD)

    async def main() -> None:
        desk.dispatcher.abandon_reads()
        for operation in ("GetObject", "HeadObject", "ListObjectsV2"):
            with fails(errno.EINTR):
                await desk.get(operation)
        (end,) = await desk.dispatcher.send_each("HeadObject", _head, ["key"])
        assert isinstance(end, StoreError)
        assert end.errno == errno.EINTR
        await desk.get("PutObject")
        CURRENT.set(Interrupt())
        await desk.get("GetObject")

    run(main)
    assert len(desk.keys) == 2


def test_after_one_without_an_answer_no_other_of_a_batch_is_asked(opened: Opened) -> None:
    desk = opened(GOOD)
    desk.server.script = lambda seen: None if seen.target.endswith("silent") else refusal("NoSuchKey", 404)

    async def main() -> None:
        def ask(calls: SignedCalls, key: str) -> None:
            calls._send("GetObject", "GET", key)

        ends = await desk.dispatcher.send_each("GetObject", ask, ["absent", "silent", "a", "b"])
        assert [end.errno for end in ends if isinstance(end, StoreError)] == [errno.ENOENT] + [errno.EIO] * 3

    run(main)
    assert len({seen.target for seen in desk.server.seen}) == 2


def test_a_hash_is_sent_from_the_first_time_on_that_the_server_wants_one() -> None:
    digests, sent = ContentMd5(), list[dict[str, str]]()
    wanted = StoreError(errno.EINVAL, "PutObject", code="InvalidRequest", status=400, detail="Content-MD5 is required")

    async def send(ends: list[StoreError | None], headers: Mapping[str, str]) -> int:
        await trio.lowlevel.checkpoint()
        sent.append(dict(headers))
        if (end := ends.pop(0)) is not None:
            raise end
        return 1

    async def main() -> None:
        for end in (StoreError(errno.EIO, "PutObject", detail="content-md5"), StoreError(errno.EINVAL, "PutObject")):
            with pytest.raises(StoreError) as caught:
                await digests.stored(b"body", partial(send, [end]), {})
            assert caught.value is end
        several: list[list[StoreError | None]] = [[wanted, None], [None]]
        for ends in several:
            assert await digests.stored(b"body", partial(send, ends), {"a": "b"}) == 1

    run(main)
    md5 = {"Content-MD5": "hBotaJrYa9FhFEdFPCLG/A=="}
    assert sent == [{}, {}, {"a": "b"}, {"a": "b"} | md5, {"a": "b"} | md5]
