"""What is done for the upload of a key whose beginning got no answer: when it is looked for, aborted, and forgotten."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from sosfs.errors import Cause, StoreError, from_s3, unanswered
from sosfs.journal import multipart_uploads
from sosfs.journal.journal import Journal
from sosfs.journal.multipart_uploads import LATE, MultipartUploads
from sosfs.s3.protocol import Properties
from tests.support.drive import fails
from tests.support.fake_store import FakeStore
from tests.support.held import Held

NONE = Properties()
FAILED = from_s3("list", code="InternalError", status=500)
DENIED = from_s3("list", code="AccessDenied", status=403)
UNKNOWN_CALL = from_s3("list", code="NotImplemented", status=501)


class Losing(Held):
    """Begins uploads, and loses the answer while `loses`; says that it was asked again while `repeats`."""

    def __init__(self) -> None:
        super().__init__()
        self.loses = self.repeats = False

    async def create_multipart(self, key: str, properties: Properties, **options: Any) -> str:
        """As `ObjectStore.create_multipart`."""
        upload_id = await super().create_multipart(key, properties, **options)
        if self.loses:
            raise unanswered("create_multipart", "nothing came")
        if self.repeats:
            options["on_repeat"](upload_id)
        return upload_id


class Bench:
    """The uploads of one mount whose background does what it is to when the test says; the time stands still."""

    def __init__(self, base: Path) -> None:
        self.store = Losing()
        self.journal = Journal(base, "the test")
        self.later: list[Callable[[], Awaitable[None]]] = []
        self.uploads = MultipartUploads(self.store, self.journal, self.later.append)

    async def lose(self) -> None:
        """Begins an upload of "file" without an answer."""
        self.store.loses = True
        with fails(errno.EIO):
            await self.uploads.begin("file", NONE)
        self.store.loses = False
        assert (self.begun, self.doubts) == (["file"], ["file"])

    def fail(self, operation: str, error: OSError | None) -> None:
        """Has calls of one kind fail from now on."""

        def fault(what: str, _: str) -> None:
            if what == operation and error is not None:
                raise error

        self.store.fault = fault

    @property
    def begun(self) -> list[str]:
        """The keys of the uploads that the server has."""
        return sorted(upload.key for upload in self.store._uploads.values())

    @property
    def doubts(self) -> list[str]:
        """The keys of which uploads are to be looked for."""
        return [key for key, _ in self.journal.intents()]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.journal.close()


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Lets so much time go by that no answer comes any more."""

    class Later:
        @staticmethod
        def time() -> float:
            return time.time() + LATE + 1

    return lambda: monkeypatch.setattr(multipart_uploads, "time", Later)


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Callable[[], int]:
    """How many warnings were logged."""
    return lambda: sum(one.levelno >= logging.WARNING for one in caplog.records)


def test_who_may_not_list_looks_no_more(bench: Bench, warnings: Callable[[], int]) -> None:
    async def main() -> None:
        for error in (DENIED, UNKNOWN_CALL):
            assert error.cause in (Cause.DENIED, Cause.UNSUPPORTED)
            bench.store._uploads.clear()
            await bench.lose()
            bench.fail("list_uploads", error)
            await bench.uploads.abort_unused()
            assert bench.doubts == []
            bench.fail("list_uploads", None)

    trio.run(main)
    assert warnings() == 0


def test_what_could_not_be_looked_for_is_looked_for_again(bench: Bench, warnings: Callable[[], int]) -> None:
    async def main() -> None:
        await bench.lose()
        for number, operation in enumerate(("list_uploads", "list_parts", "abort_multipart"), 1):
            bench.fail(operation, FAILED)
            await bench.uploads.abort_unused()
            assert (bench.begun, bench.doubts) == (["file"], ["file"])
            assert warnings() == number
        bench.fail("list_uploads", None)
        await bench.uploads.abort_unused()
        assert (bench.begun, bench.doubts) == ([], [])

    trio.run(main)


def test_what_cannot_be_looked_up_is_no_proof_however_late_it_is(bench: Bench, late: Callable[[], None]) -> None:
    async def main() -> None:
        await bench.lose()
        late()
        bench.fail("list_parts", FAILED)
        await bench.uploads.abort_unused()
        assert bench.doubts == ["file"]

    trio.run(main)


def test_a_broken_journal_ends_nothing(
    bench: Bench, warnings: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> list[tuple[str, str, str]]:
        raise OSError(errno.EIO, "disk I/O error")

    async def main() -> None:
        await bench.lose()
        bench.store.repeats = True
        await bench.uploads.begin("file", NONE)
        with monkeypatch.context() as patch:
            patch.setattr(bench.journal, "uploads", broken)
            for work in bench.later:
                await work()
        assert bench.doubts == ["file"]

    trio.run(main)
    assert warnings() == 1


def test_a_look_that_nobody_waits_for_is_no_failure(bench: Bench, warnings: Callable[[], int]) -> None:
    async def main() -> None:
        await bench.lose()
        bench.fail("list_uploads", StoreError(errno.EINTR, "list_uploads"))
        await bench.uploads.begin("file", NONE)
        assert (bench.begun, bench.doubts) == (["file", "file"], ["file"])

    trio.run(main)
    assert warnings() == 0


def test_what_may_still_come_is_looked_for_as_long_as_it_may(bench: Bench, late: Callable[[], None]) -> None:
    async def main() -> None:
        await bench.lose()
        bench.store._uploads.clear()
        await bench.uploads.abort_unused()
        assert bench.doubts == ["file"]
        late()
        await bench.uploads.abort_unused()
        assert bench.doubts == []

    trio.run(main)


def test_one_that_ends_while_it_is_looked_for_is_none(bench: Bench, late: Callable[[], None]) -> None:
    async def main() -> None:
        await bench.lose()
        late()
        bench.fail("list_parts", from_s3("list_parts", code="NoSuchUpload", status=404))
        await bench.uploads.abort_unused()
        assert (bench.doubts, bench.store.calls["abort_multipart"]) == ([], 0)

    trio.run(main)


def test_of_uploads_of_other_keys_nothing_is_asked(bench: Bench) -> None:
    async def main() -> None:
        await bench.lose()
        await FakeStore.create_multipart(bench.store, "file2", NONE)
        await bench.uploads.abort_unused()
        assert (bench.begun, bench.doubts, bench.store.calls["list_parts"]) == (["file2"], [], 1)

    trio.run(main)


def test_each_second_try_is_looked_for_though_another_look_has_found_it(
    bench: Bench, warnings: Callable[[], int]
) -> None:
    async def main() -> None:
        bench.store.repeats = True
        for _ in range(2):
            await bench.uploads.begin("file", NONE)
        await FakeStore.create_multipart(bench.store, "file", NONE)  # what one of the first tries has begun
        assert len(bench.later) == 2
        for work in bench.later:
            await work()
        assert (bench.begun, bench.doubts) == (["file", "file"], [])

    trio.run(main)
    assert warnings() == 0


def test_one_that_is_being_begun_is_not_taken_for_a_lost_one(bench: Bench) -> None:
    """It is at the server, and its answer is on the way."""

    async def main() -> None:
        await bench.lose()
        bench.store._uploads.clear()
        held = bench.store.after["create_multipart"] = trio.Event()
        found: list[str] = []

        async def begin() -> None:
            found.append(await bench.uploads.begin("file", NONE))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(begin)
            await trio.testing.wait_all_tasks_blocked()
            await bench.uploads.abort_unused()
            assert (bench.begun, bench.doubts) == (["file"], ["file"])
            held.set()
        assert found == list(bench.store._uploads)

    trio.run(main)


@pytest.mark.parametrize("is_refused", [False, True])
def test_an_answer_to_one_says_nothing_of_another_that_is_being_begun(bench: Bench, is_refused: bool) -> None:
    """The process may end now: then only the journal knows that there may be one."""

    async def first() -> None:
        with fails(errno.EACCES) if is_refused else nullcontext():
            await bench.uploads.begin("file", NONE)

    async def main() -> None:
        held = bench.store.before["create_multipart"] = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first)
            await trio.testing.wait_all_tasks_blocked()
            second = bench.store.before["create_multipart"] = trio.Event()
            nursery.start_soon(bench.uploads.begin, "file", NONE)
            await trio.testing.wait_all_tasks_blocked()
            bench.store.errors["create_multipart", "file"] = [DENIED] if is_refused else []
            held.set()
            await trio.testing.wait_all_tasks_blocked()
            assert bench.doubts == ["file"]
            second.set()
        await bench.later.pop()()
        assert len(bench.begun) == 2 - is_refused

    trio.run(main)


@pytest.mark.parametrize("operation", ["list_uploads", "list_parts", "abort_multipart"])
@pytest.mark.parametrize("is_late", [False, True])
def test_a_look_says_nothing_of_one_that_is_asked_for_meanwhile(
    bench: Bench, late: Callable[[], None], operation: str, is_late: bool
) -> None:
    """Nor of one that has got no answer before the look is over."""

    async def main() -> None:
        await bench.lose()
        held = bench.store.after[operation] = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.uploads.abort_unused)
            await trio.testing.wait_all_tasks_blocked()
            bench.store.after.clear()
            await bench.lose()
            if is_late:
                late()
            held.set()
        assert bench.doubts == ["file"]
        await bench.uploads.abort_unused()
        assert (bench.begun, bench.doubts) == ([], [])

    trio.run(main)


def test_looks_for_other_keys_go_on(bench: Bench) -> None:
    async def main() -> None:
        await bench.lose()
        held = bench.store.after["list_uploads", "file"] = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.uploads.abort_unused)
            await trio.testing.wait_all_tasks_blocked()
            await bench.uploads.begin("other", NONE)
            held.set()
        assert (bench.begun, bench.doubts) == (["other"], [])

    trio.run(main)
