"""Room that is always short: parts are freed as they are sent, and any order of reads, writes, cuts and names holds."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from sosfs.concurrency.interrupt import CURRENT, Interrupt
from sosfs.concurrency.threads import Threads
from sosfs.config.parameters import Durability
from sosfs.errors import StoreError
from sosfs.files import part_ranges
from sosfs.files.draft import Draft, DraftState
from sosfs.files.open_file import Handle
from sosfs.files.spool import Spool, SpoolArea
from sosfs.s3.protocol import Properties
from tests.support.composed import Composed, Plan, What, composed
from tests.support.drive import fails
from tests.support.fake_store import FakeStore
from tests.support.held import Held, begun, bodies, closed, opened, settled, silence, stored, told
from tests.support.power import Machine

PART = 4096
SIZE = 10 * PART


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of some thousand bytes go the ways of large ones, on a disk that is short and never tight."""
    monkeypatch.setattr("sosfs.files.spool.SPILL", 1000)
    monkeypatch.setattr("sosfs.files.spool.INLINE", 500)
    monkeypatch.setattr("sosfs.files.write_behind.SPILL", 1000)
    monkeypatch.setattr("tests.support.fake_store.PART_MIN", 1)
    monkeypatch.setattr(SpoolArea, "is_short", property(lambda self: True))
    monkeypatch.setattr(SpoolArea, "is_tight", lambda self, more, alone=False: False)


@pytest.fixture
def store() -> FakeStore:
    """The bucket."""
    return FakeStore()


def mounted(store: FakeStore, base: Path, durability: Durability = Durability.BUCKET) -> Any:
    return composed(store, base, durability=durability, part_size=PART)


def run(mount: Composed, work: Callable[[Composed], Awaitable[None]]) -> None:
    mount.loop.run(partial(work, mount))


async def new(mount: Composed, path: str = "file") -> Handle:
    parent, name = await mount._parent(path)
    return await mount._opened(parent, name, os.O_CREAT | os.O_RDWR)


async def streamed(mount: Composed, handle: Handle, body: bytes, *, at: int = 0) -> None:
    """Writes from front to back, and lets the parts go up."""
    for start in range(0, len(body), PART // 2):
        await mount.parts.file_io.write(handle, at + start, body[start : start + PART // 2])
        await trio.testing.wait_all_tasks_blocked()


def held_here(handle: Handle) -> int:
    draft = handle.open_file.draft
    assert draft is not None
    return draft.local.total


BODY = random.Random(1).randbytes(SIZE)


def test_little_stays_here_of_a_file_that_is_written(store: FakeStore, tmp_path: Path) -> None:
    async def main(mount: Composed) -> None:
        handle = await new(mount)
        await streamed(mount, handle, BODY)
        assert held_here(handle) <= 3 * PART
        assert bodies(store) == {}
        await closed(mount, handle)
        assert stored(store) == BODY

    with mounted(store, tmp_path) as mount:
        run(mount, main)


def test_who_writes_a_new_file_waits_for_no_disk_before_it_is_closed(
    store: FakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main(mount: Composed) -> None:
        await streamed(mount, await new(mount), BODY)

    with mounted(store, tmp_path, Durability.JOURNAL) as mount:
        machine = Machine(mount, monkeypatch, 1)
        run(mount, main)
        assert machine.syncs == 0


def test_a_small_file_of_which_a_part_is_up_is_completed_of_parts(store: FakeStore, tmp_path: Path) -> None:
    """Though it would go up whole with one request, if all of it were here."""

    async def main(mount: Composed) -> None:
        handle = await new(mount)
        await streamed(mount, handle, BODY[: PART + 100])
        upload = handle.open_file.upload
        assert upload is not None
        assert upload.free(first=True)
        await closed(mount, handle)
        assert stored(store) == BODY[: PART + 100]

    with mounted(store, tmp_path) as mount:
        run(mount, main)


def test_an_existing_file_is_as_it_was_until_it_is_closed(store: FakeStore, tmp_path: Path) -> None:
    async def main(mount: Composed) -> None:
        await store.put("file", b"o" * SIZE, Properties())
        handle = await opened(mount)
        await streamed(mount, handle, BODY)
        assert held_here(handle) <= 3 * PART
        assert stored(store) == b"o" * SIZE
        await closed(mount, handle)
        assert stored(store) == BODY

    with mounted(store, tmp_path) as mount:
        run(mount, main)


@pytest.mark.parametrize("is_new", [True, False])
def test_a_crash_after_a_close_that_failed_loses_nothing(store: FakeStore, tmp_path: Path, is_new: bool) -> None:
    async def main(mount: Composed) -> None:
        if not is_new:
            await store.put("file", b"old", Properties())
        handle = await new(mount)
        await streamed(mount, handle, BODY)
        mount.trouble.plan = Plan(What.FAILS, 0, after=False, times=100)
        with fails(errno.EIO):
            await mount.parts.file_io.flush(handle)

    with mounted(store, tmp_path) as mount:
        run(mount, main)
        mount.crash()
        mount.start()
        mount.loop.passes(10)
        assert stored(store) == BODY


@pytest.mark.parametrize("part_size", [PART // 2, 2 * PART, 3 * PART])
def test_a_crash_loses_nothing_when_the_next_mount_has_parts_of_another_size(
    store: FakeStore, tmp_path: Path, part_size: int
) -> None:
    """Bytes that are only in parts of the upload bind it to the sizes that it began with."""

    async def main(mount: Composed) -> None:
        handle = await new(mount)
        await streamed(mount, handle, BODY)
        mount.trouble.plan = Plan(What.FAILS, 0, after=False, times=100)
        with fails(errno.EIO):
            await mount.parts.file_io.flush(handle)

    with mounted(store, tmp_path) as mount:
        run(mount, main)
        mount.crash()
        mount._settings = replace(mount._settings, part_size=part_size)
        mount.start()
        mount.loop.passes(10)
        assert stored(store) == BODY


def test_a_crash_loses_nothing_of_an_upload_whose_parts_grew_as_they_once_did(
    store: FakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until parts doubled by thousands, 1,000 were as large as the first, 1,000 four times, and the rest 65 times."""

    async def main(mount: Composed) -> None:
        handle = await new(mount)
        await streamed(mount, handle, BODY)
        mount.trouble.plan = Plan(What.FAILS, 0, after=False, times=100)
        with fails(errno.EIO):
            await mount.parts.file_io.flush(handle)

    with mounted(store, tmp_path) as mount:
        monkeypatch.setattr(part_ranges, "DOUBLING", ((2, 1), (2, 4), (9, 65)))
        mount.crash()
        mount.start()
        run(mount, main)
        mount.crash()
        monkeypatch.setattr(part_ranges, "DOUBLING", ((2, 1), (2, 2), (9, 4)))
        monkeypatch.setattr(part_ranges, "EARLIER", ((2, 1), (2, 4), (9, 65)))
        mount.start()
        mount.loop.passes(10)
        assert stored(store) == BODY


def test_what_was_only_in_an_upload_that_is_gone_is_not_listed(
    store: FakeStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main(mount: Composed) -> None:
        await store.put("other", b"old", Properties())
        for path in ("file", "other"):
            handle = await new(mount, path)
            await streamed(mount, handle, BODY)
            mount.trouble.plan = Plan(What.FAILS, 0, after=False, times=100)
            with fails(errno.EIO):
                await mount.parts.file_io.flush(handle)
            mount.trouble.plan = None
        store._uploads.clear()

    async def look(mount: Composed) -> None:
        assert await mount.tree() == {"other": (b"old", 0o644)}

    with mounted(store, tmp_path) as mount:
        run(mount, main)
        mount.crash()
        mount.start()
        mount.loop.passes(10)
        run(mount, look)
        assert bodies(store) == {"other": b"old"}
        assert [record.levelname for record in caplog.records].count("ERROR") == 2


def test_an_upload_that_the_server_forgot_is_told_by_close(store: FakeStore, tmp_path: Path) -> None:
    async def main(mount: Composed) -> None:
        await store.put("other", b"old", Properties())
        for path in ("file", "other"):
            handle = await new(mount, path)
            await streamed(mount, handle, BODY)
            store._uploads.clear()
            with fails(errno.ENXIO, errno.EIO):
                await mount.parts.file_io.flush(handle)
            with fails(errno.ENOSPC):
                await mount.parts.file_io.fsync(handle.inode)
            await mount.parts.file_io.release(handle)
        assert await mount.tree() == {"other": (b"old", 0o644)}
        assert bodies(store) == {"other": b"old"}

    with mounted(store, tmp_path) as mount:
        run(mount, main)


def test_who_loses_to_another_client_is_told_and_the_winner_stays(
    store: FakeStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main(mount: Composed) -> None:
        handle = await new(mount)
        await streamed(mount, handle, BODY)
        await store.put("file", b"theirs", Properties())
        with fails(errno.ESTALE):
            await mount.parts.file_io.flush(handle)
        await mount.parts.file_io.release(handle)
        assert bodies(store) == {"file": b"theirs"}
        assert "no room to keep ours" in caplog.text

    with mounted(store, tmp_path) as mount:
        run(mount, main)


def test_a_file_that_is_removed_while_it_is_written_is_gone(store: FakeStore, tmp_path: Path) -> None:
    async def main(mount: Composed) -> None:
        handle = await new(mount)
        await streamed(mount, handle, BODY)
        await mount.unlink("file")
        with fails(errno.ESTALE):
            await mount.parts.file_io.read(handle, PART, PART)
        await streamed(mount, handle, BODY[:PART], at=PART)
        assert bytes(await mount.parts.file_io.read(handle, PART, PART)) == BODY[:PART]
        await closed(mount, handle)
        assert (bodies(store), store._uploads) == ({}, {})

    with mounted(store, tmp_path) as mount:
        run(mount, main)


@pytest.mark.parametrize("does", ["read", "write"])
def test_who_needs_bytes_of_a_file_whose_removal_fails_has_them(tmp_path: Path, does: str) -> None:
    """It is completed for that once it is certain that it stays."""
    store, ends = Held(), dict[str, Any]()

    async def main(mount: Composed) -> None:
        await store.put("file", b"old", Properties())
        handle, io = await opened(mount), mount.parts.file_io
        await streamed(mount, handle, BODY)
        held = store.before["upload_part"] = trio.Event()
        needs = partial(io.read, handle, PART, 9) if does == "read" else partial(io.write, handle, PART, b"!")
        await begun(mount, partial(told, ends, "needs", needs))
        store.errors["delete", "file"] = [StoreError(errno.EACCES, "delete", code="AccessDenied", status=403)]
        await begun(mount, partial(told, ends, "unlink", partial(mount.unlink, "file")))
        store.before.clear()
        await settled(held)
        assert "AccessDenied" in ends["unlink"]
        assert ends["needs"] == (BODY[PART : PART + 9] if does == "read" else 1)
        await closed(mount, handle)
        assert stored(store) == (BODY if does == "read" else BODY[:PART] + b"!" + BODY[PART + 1 :])

    with mounted(store, tmp_path) as mount:
        run(mount, main)


def test_an_answer_that_was_lost_is_recognised(store: FakeStore, tmp_path: Path) -> None:
    async def main(mount: Composed) -> None:
        handle = await new(mount)
        await streamed(mount, handle, BODY)

        async def lost(*arguments: Any, **options: Any) -> Any:
            await FakeStore.complete_multipart(store, *arguments, **options)
            raise StoreError(errno.EIO, "complete", detail="no answer")

        store.complete_multipart = lost  # type: ignore[method-assign]
        with fails(errno.EIO):
            await mount.parts.file_io.flush(handle)
        del store.complete_multipart
        await streamed(mount, handle, b"more" * PART, at=SIZE)
        assert bytes(await mount.parts.file_io.read(handle, 0, SIZE)) == BODY
        await closed(mount, handle)
        assert stored(store) == BODY + b"more" * PART

    with mounted(store, tmp_path) as mount:
        run(mount, main)


async def unheard(mount: Composed, store: Held, handle: Handle) -> Callable[[], Awaitable[None]]:
    """A close whose upload is to be completed, without an answer; what is returned lets that happen."""
    asked: list[Any] = []

    async def silent(key: str, upload_id: str, parts: Any, **_: Any) -> Any:
        asked.extend((key, upload_id, parts))
        raise silence("complete_multipart")

    with pytest.MonkeyPatch.context() as patch, fails(errno.EIO):
        patch.setattr(store, "complete_multipart", silent)
        await mount.parts.file_io.flush(handle)

    async def happens() -> None:
        key, upload_id, parts = asked
        upload, named = store._uploads[upload_id], {part.number for part in parts}
        upload.parts = {number: one for number, one in upload.parts.items() if number in named}
        await FakeStore.complete_multipart(store, key, upload_id, parts)

    return happens


@pytest.mark.parametrize("hole", [0, 3 * PART], ids=["without holes", "with a hole"])
@pytest.mark.parametrize("moment", ["upload_part", "complete_multipart"])
def test_an_upload_that_is_completed_late_takes_no_bytes_along(tmp_path: Path, moment: str, hole: int) -> None:
    """More has been written meanwhile: what has to go into that upload finds it gone, with what was in it alone.

    What nobody has written before that, is as in what was completed.
    """
    store, body = Held(), BODY[:PART] + bytes(hole) + BODY[PART:]

    async def main(mount: Composed) -> None:
        handle, ends = await new(mount), dict[str, Any]()
        await streamed(mount, handle, BODY[:PART])
        await streamed(mount, handle, BODY[PART:], at=PART + hole)
        completes_late = await unheard(mount, store, handle)
        await streamed(mount, handle, b"more" * PART, at=len(body))
        assert handle.open_file.draft is not None and handle.open_file.draft.away
        store.before[moment] = trio.Event()
        await begun(mount, partial(told, ends, "fsync", partial(mount.parts.file_io.fsync, handle.inode)))
        await completes_late()
        await settled(store.before.pop(moment))
        assert ends == {"fsync": None}
        assert (stored(store), store._uploads) == (body + b"more" * PART, {})
        await mount.parts.file_io.write(handle, 0, b"BODY")
        await closed(mount, handle)
        assert stored(store) == b"BODY" + body[4:] + b"more" * PART

    with mounted(store, tmp_path) as mount:
        run(mount, main)


@pytest.mark.parametrize("is_gone", [True, False], ids=["the upload is found gone", "it is not found gone yet"])
def test_a_write_that_failed_is_missing_whatever_becomes_of_its_upload(tmp_path: Path, is_gone: bool) -> None:
    """It was to replace bytes that a part alone has, and that upload is completed late."""
    store, interrupt = Held(), Interrupt()

    async def write(mount: Composed, handle: Handle, at: int) -> None:
        CURRENT.set(interrupt)
        await mount.parts.file_io.write(handle, at, b"lost")

    async def main(mount: Composed) -> None:
        handle, ends = await new(mount), dict[str, Any]()
        await streamed(mount, handle, BODY)
        completes_late = await unheard(mount, store, handle)
        await streamed(mount, handle, b"more" * PART, at=SIZE)
        assert handle.open_file.draft is not None
        away = next(iter(handle.open_file.draft.away))[0]
        store.before["complete_multipart"] = trio.Event()
        await begun(mount, partial(told, ends, "fsync", partial(mount.parts.file_io.fsync, handle.inode)))
        await begun(mount, partial(told, ends, "write", partial(write, mount, handle, away)))
        store.before["head"] = trio.Event()
        await completes_late()
        if is_gone:
            await settled(store.before.pop("complete_multipart"))
        interrupt.set()
        await trio.testing.wait_all_tasks_blocked()
        assert f"({errno.EINTR}" in ends["write"]
        await store.release()
        await trio.testing.wait_all_tasks_blocked()
        assert ends["fsync"] is None
        await mount.parts.file_io.write(handle, SIZE, b"MORE")
        with fails(errno.ENOSPC):
            await mount.parts.file_io.flush(handle)
        await mount.parts.file_io.release(handle)
        assert stored(store) == BODY + b"more" * PART

    with mounted(store, tmp_path) as mount:
        run(mount, main)


@pytest.mark.parametrize("is_made", [True, False], ids=["it was completed", "it was aborted"])
@pytest.mark.parametrize("is_closed", [True, False], ids=["closed before", "closed with that"])
def test_what_was_in_an_upload_that_is_gone_is_looked_for_until_somebody_can_tell(
    tmp_path: Path, is_closed: bool, is_made: bool
) -> None:
    """Its object may be the file: it is neither given up nor left waiting until the unmount."""
    store = Held()

    async def main(mount: Composed) -> None:
        await store.put("file", b"old", Properties())
        handle = await opened(mount)
        await streamed(mount, handle, BODY)
        completes_late = await unheard(mount, store, handle)
        if is_closed:
            await mount.parts.file_io.release(handle)
        store.before["complete_multipart"] = trio.Event()
        ends: dict[str, Any] = {}
        if is_closed:
            await trio.testing.wait_all_tasks_blocked()
        else:
            await begun(mount, partial(told, ends, "close", partial(closed, mount, handle)))
        assert store.reached == {("complete_multipart", "file")}
        if is_made:
            await completes_late()
        store._uploads.clear()
        store.errors["head", "file"] = [silence("head")] * 3
        await settled(store.before.pop("complete_multipart"))
        assert "no answer" in ends.get("close", "no answer")
        inode = await mount._walk("file")
        assert inode.size == SIZE
        assert mount.parts.pending == 1

    async def then(mount: Composed) -> None:
        assert mount.parts.pending == 0
        assert await mount.tree() == {"file": (BODY if is_made else b"old", 0o644)}

    with mounted(store, tmp_path) as mount:
        run(mount, main)
        mount.loop.passes(200)
        run(mount, then)
        assert store._uploads == {}


async def in_doubt(mount: Composed, store: Held, handle: Handle) -> None:
    """Its upload is found gone with its close, and nobody can tell of its object."""
    await streamed(mount, handle, BODY)
    await unheard(mount, store, handle)
    store.before["complete_multipart"] = trio.Event()
    ends: dict[str, Any] = {}
    await begun(mount, partial(told, ends, "close", partial(closed, mount, handle)))
    store._uploads.clear()
    store.errors["head", "file"] = [silence("head")] * 100
    await settled(store.before.pop("complete_multipart"))
    assert "no answer" in ends["close"]


@pytest.mark.parametrize("is_new", [True, False])
def test_what_may_be_in_the_bucket_is_not_given_up_before_somebody_can_tell(tmp_path: Path, is_new: bool) -> None:
    """Neither with an fsync nor at the unmount, which gives up what it finds lost."""
    store = Held()

    async def main(mount: Composed) -> None:
        await store.put("other" if is_new else "file", b"old", Properties())
        handle = await new(mount) if is_new else await opened(mount)
        await in_doubt(mount, store, handle)
        with fails(errno.EIO):
            await mount.parts.file_io.fsync(handle.inode)
        await mount.parts.drain()
        assert mount.parts.pending == 1
        assert (await mount._walk("file")).size == SIZE
        (change,) = mount.parts.commits.changes({})
        assert "no answer" in change.pending.error, "no write to it failed"
        store.errors.clear()
        await mount.parts.drain()
        assert mount.parts.pending == 0

    with mounted(store, tmp_path) as mount:
        run(mount, main)
        assert bodies(store) == {"other" if is_new else "file": b"old"}


def test_what_a_dead_process_could_not_tell_of_is_given_up_by_the_next_mount(tmp_path: Path) -> None:
    """The bucket has no such object, and the upload is gone."""
    store = Held()

    async def main(mount: Composed) -> None:
        await store.put("file", b"old", Properties())
        handle = await opened(mount)
        await streamed(mount, handle, BODY)
        await unheard(mount, store, handle)
        store._uploads.clear()

    async def then(mount: Composed) -> None:
        assert mount.parts.pending == 0
        assert await mount.tree() == {"file": (b"old", 0o644)}

    with mounted(store, tmp_path) as mount:
        run(mount, main)
        mount.crash()
        mount.start()
        run(mount, then)


class Program:
    """A program that works at random on files of which it knows what they must hold."""

    def __init__(self, mount: Composed, seed: int) -> None:
        self.mount = mount
        self.draw = random.Random(seed)
        self.files: dict[str, bytearray] = {}
        self.handles: dict[str, Handle] = {}

    async def step(self) -> None:
        """One thing, whatever the dice say."""
        path = self.draw.choice("abc")
        if path not in self.handles:
            self.handles[path] = await new(self.mount, path)
            self.files.setdefault(path, bytearray())
        kinds = (self.append,) * 8 + (self.overwrite,) * 2 + (self.read,) * 2 + (self.truncate, self.sync, self.close)
        await self.draw.choice((*kinds, self.rename))(path)
        if self.draw.random() < 0.7:
            await trio.testing.wait_all_tasks_blocked()

    async def _write(self, path: str, at: int, data: bytes) -> None:
        await self.mount.parts.file_io.write(self.handles[path], at, data)
        body = self.files[path]
        body.extend(bytes(max(0, at - len(body))))
        body[at : at + len(data)] = data

    async def append(self, path: str) -> None:
        await self._write(path, len(self.files[path]), self.draw.randbytes(self.draw.randrange(1, PART)))

    async def overwrite(self, path: str) -> None:
        at = self.draw.randrange(len(self.files[path]) + PART)
        await self._write(path, at, self.draw.randbytes(self.draw.randrange(1, 2 * PART)))

    async def read(self, path: str) -> None:
        at, size = self.draw.randrange(len(self.files[path]) + 1), self.draw.randrange(1, 4 * PART)
        found = bytes(await self.mount.parts.file_io.read(self.handles[path], at, size))
        assert found == self.files[path][at : at + size]

    async def truncate(self, path: str) -> None:
        size = self.draw.choice((0, self.draw.randrange(len(self.files[path]) + 2 * PART)))
        await self.mount.truncate(path, size)
        body = self.files[path]
        del body[size:]
        body.extend(bytes(size - len(body)))

    async def sync(self, path: str) -> None:
        await self.mount.parts.file_io.fsync(self.handles[path].inode)

    async def close(self, path: str) -> None:
        handle = self.handles.pop(path)
        await closed(self.mount, handle)
        assert handle.inode.size == len(self.files[path])

    async def rename(self, path: str) -> None:
        new_path = self.draw.choice("abc")
        if new_path != path and new_path not in self.handles:
            await self.mount.rename(path, new_path)
            self.handles[new_path], self.files[new_path] = self.handles.pop(path), self.files.pop(path)

    async def end(self) -> None:
        """All is closed, and in the bucket."""
        for path in list(self.handles):
            await self.close(path)
        await self.mount.settle()


@pytest.mark.parametrize("durability", list(Durability))
@pytest.mark.parametrize("seed", range(20))
def test_any_order_of_steps(store: FakeStore, tmp_path: Path, seed: int, durability: Durability) -> None:
    async def main(mount: Composed) -> None:
        program = Program(mount, seed)
        for _ in range(120):
            await program.step()
        await program.end()
        assert bodies(store) == program.files
        assert store._uploads == {}

    with mounted(store, tmp_path, durability) as mount:
        run(mount, main)


def test_bytes_that_another_has_replaced_in_the_upload_are_lost_and_no_others_take_their_place(
    store: FakeStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What is freed here is only in the upload: a part that is not as it was there is no part of the file."""

    async def main(mount: Composed) -> None:
        await store.put("file", b"old", Properties())
        handle = await opened(mount)
        await streamed(mount, handle, BODY)
        mount.trouble.plan = Plan(What.FAILS, 0, after=False, times=100)
        with fails(errno.EIO):
            await mount.parts.file_io.flush(handle)
        mount.trouble.plan = None
        ((upload_id, upload),) = store._uploads.items()
        await store.upload_part("file", upload_id, 3, bytes(len(upload.parts[3][1])))

    with mounted(store, tmp_path) as mount:
        run(mount, main)
        mount.crash()
        mount.start()
        mount.loop.passes(10)
        assert bodies(store) == {"file": b"old"}
        assert "is lost" in caplog.text
        assert mount.parts.pending == 0


def test_a_file_that_has_lost_bytes_to_a_part_that_came_late_is_given_up(store: FakeStore, tmp_path: Path) -> None:
    """One that was given up takes the place of what is nowhere else. It was completed in vain, for ever."""

    async def main(mount: Composed) -> None:
        await store.put("other", b"old", Properties())
        for path in ("file", "other"):
            handle = await new(mount, path)
            await streamed(mount, handle, BODY)
            (upload_id,) = store._uploads
            await store.upload_part(path, upload_id, 3, bytes(PART))
            with fails(errno.EINVAL):
                await mount.parts.file_io.flush(handle)
            with fails(errno.ENOSPC):
                await mount.parts.file_io.fsync(handle.inode)
            await mount.parts.file_io.release(handle)
        assert await mount.tree() == {"other": (b"old", 0o644)}
        assert (bodies(store), store._uploads, mount.parts.pending) == ({"other": b"old"}, {}, 0)

    with mounted(store, tmp_path) as mount:
        run(mount, main)


@pytest.mark.parametrize("is_listed", [True, False], ids=["listed", "not listed"])
def test_a_part_that_came_late_takes_nothing_from_a_file_that_has_its_bytes_here(
    tmp_path: Path, is_listed: bool
) -> None:
    """What was freed is as it was in the upload, or nobody can tell at the moment."""
    store = Held()

    async def main(mount: Composed) -> None:
        handle = await new(mount)
        await streamed(mount, handle, BODY)
        (upload_id,) = store._uploads
        await store.upload_part("file", upload_id, 1, bytes(PART))
        if not is_listed:
            store.errors["list_parts", "file"] = [silence("list_parts")]
        with fails(errno.EINVAL):
            await mount.parts.file_io.flush(handle)
        assert handle.open_file.draft is not None and handle.open_file.draft.away
        await closed(mount, handle)
        assert stored(store) == BODY

    with mounted(store, tmp_path) as mount:
        run(mount, main)


def test_a_part_whose_bytes_are_here_is_sent_again_where_another_has_replaced_it(
    store: FakeStore, tmp_path: Path
) -> None:
    """The first one is freed last."""

    async def main(mount: Composed) -> None:
        handle = await new(mount)
        await streamed(mount, handle, BODY)
        mount.trouble.plan = Plan(What.FAILS, 0, after=False, times=100)
        with fails(errno.EIO):
            await mount.parts.file_io.flush(handle)
        ((upload_id, _),) = store._uploads.items()
        await store.upload_part("file", upload_id, 1, bytes(PART))

    with mounted(store, tmp_path) as mount:
        run(mount, main)
        mount.crash()
        mount.start()
        mount.loop.passes(10)
        assert bodies(store) == {"file": BODY}


@pytest.mark.parametrize("meanwhile", ["a rename", "a commit", "nothing"])
def test_what_a_rename_or_a_commit_needs_is_not_freed(store: FakeStore, tmp_path: Path, meanwhile: str) -> None:
    """Bytes in a part alone are bound to its key, and can be sent by nobody again."""

    async def main(mount: Composed) -> None:
        handle = await new(mount)
        await streamed(mount, handle, BODY)
        open_file = handle.open_file
        draft, upload = open_file.draft, open_file.upload
        assert draft is not None and upload is not None
        here = draft.local.total
        if meanwhile == "a rename":
            mount.parts.uploader.keeping += 1
        elif meanwhile == "a commit":
            draft.commit_begins()
        is_free = meanwhile == "nothing"
        assert upload.free(first=True) == is_free
        assert (draft.local.total < here) == is_free
        assert upload.free(first=True) is False, "once"
        if meanwhile == "a rename":
            mount.parts.uploader.keeping -= 1
        elif meanwhile == "a commit":
            draft.commit_failed()
        await closed(mount, handle)
        assert stored(store) == BODY

    with mounted(store, tmp_path) as mount:
        run(mount, main)


@pytest.mark.parametrize("length", [0, 2 * PART + 100])
def test_nothing_is_freed_of_a_file_that_was_cut_below_parts_that_went_up(
    store: FakeStore, tmp_path: Path, length: int
) -> None:
    """Ceph 16 completes an upload with all its parts or not at all: one with bytes in parts alone never would."""

    async def main(mount: Composed) -> None:
        handle = await new(mount)
        mount.parts.uploader.keeping += 1  # as long as there is room
        await streamed(mount, handle, BODY)
        mount.parts.uploader.keeping -= 1
        await mount.parts.file_io.truncate(handle.inode, length)
        await streamed(mount, handle, BODY[length : 6 * PART], at=length)
        await closed(mount, handle)
        assert bodies(store) == {"file": BODY[: 6 * PART]}
        assert store._uploads == {}

    with mounted(store, tmp_path) as mount:
        run(mount, main)


def test_what_was_only_in_an_upload_that_was_begun_anew_and_is_gone_is_told(tmp_path: Path) -> None:
    """The one before had parts of what was cut off."""
    store = Held()

    async def main(mount: Composed) -> None:
        handle, io = await new(mount), mount.parts.file_io
        mount.parts.uploader.keeping += 1
        await streamed(mount, handle, BODY)
        mount.parts.uploader.keeping -= 1
        await io.truncate(handle.inode, 3 * PART)
        store.errors["upload_part", "file"] = [StoreError(errno.EIO, "upload_part", status=500)]
        with fails(errno.EIO):
            await mount.parts.commits.commit(handle.inode)
        await streamed(mount, handle, BODY, at=3 * PART)
        assert held_here(handle) < SIZE // 2
        store._uploads.clear()
        with fails(errno.ENXIO, errno.EIO):
            await io.flush(handle)
        with fails(errno.ENOSPC):
            await io.fsync(handle.inode)
        await io.release(handle)
        assert await mount.tree() == {}

    with mounted(store, tmp_path) as mount:
        run(mount, main)


@pytest.mark.parametrize("crashes", [False, True])
def test_an_unmount_that_cannot_send_leaves_the_upload_that_has_what_was_freed(
    store: FakeStore, tmp_path: Path, crashes: bool
) -> None:
    """Also where that goes on with one of an earlier mount."""

    def down(operation: str, key: str) -> None:
        if operation == "complete_multipart":
            raise StoreError(errno.EIO, operation, status=500)

    async def main(mount: Composed) -> None:
        handle = await new(mount)
        await streamed(mount, handle, BODY)
        with fails(errno.EIO):
            await closed(mount, handle)

    store.fault = down
    with mounted(store, tmp_path) as mount:
        run(mount, main)
        if crashes:
            mount.crash()
            mount.start()
        mount.loop.run(mount.parts.drain)
        mount.crash()
        store.fault = None
        mount.start()
        mount.loop.passes(10)
        assert bodies(store) == {"file": BODY}


def test_a_mount_that_cannot_ask_for_parts_gives_up_nothing(store: FakeStore, tmp_path: Path) -> None:
    async def main(mount: Composed) -> None:
        handle = await new(mount)
        await streamed(mount, handle, BODY)
        mount.trouble.plan = Plan(What.FAILS, 0, after=False, times=100)
        with fails(errno.EIO):
            await mount.parts.file_io.flush(handle)

    def down(operation: str, key: str) -> None:
        if operation == "list_parts":
            raise StoreError(errno.EIO, operation, status=500)

    with mounted(store, tmp_path) as mount:
        run(mount, main)
        mount.crash()
        store.fault = down
        with fails(errno.EIO):
            mount.start()
        mount.crash()
        store.fault = None
        mount.start()
        mount.loop.passes(10)
        assert bodies(store) == {"file": BODY}


@pytest.mark.parametrize("issued", [0, 8], ids=["the old one first", "the new one first"])
def test_a_crash_loses_nothing_where_the_upload_of_a_removed_file_could_not_be_aborted(
    store: FakeStore, tmp_path: Path, issued: int
) -> None:
    """The journal has it beside that of the new file of this name, by their ids."""
    store._issued = issued

    def no_abort(operation: str, key: str) -> None:
        if operation == "abort_multipart":
            raise StoreError(errno.EIO, operation, status=500)

    async def main(mount: Composed) -> None:
        store.fault = no_abort
        handle = await new(mount)
        await streamed(mount, handle, BODY)
        await mount.unlink("file")
        await closed(mount, handle)
        handle = await new(mount)
        await streamed(mount, handle, BODY[::-1])
        mount.trouble.plan = Plan(What.FAILS, 0, after=False, times=100)
        with fails(errno.EIO):
            await mount.parts.file_io.flush(handle)
        assert len(store._uploads) == 2

    with mounted(store, tmp_path) as mount:
        run(mount, main)
        mount.crash()
        store.fault = None
        mount.start()
        mount.loop.passes(10)
        assert bodies(store) == {"file": BODY[::-1]}
        assert store._uploads == {}


@pytest.mark.parametrize("what", ["file", "directory"])
def test_a_file_is_completed_before_its_key_changes_and_no_other_is(tmp_path: Path, what: str) -> None:
    """Of itself or of a directory above: what is in a part alone cannot be sent to another key."""
    store = FakeStore()

    async def main(mount: Composed) -> None:
        await store.put("d/there", b"there", Properties())
        handle, other = await new(mount, "d/file"), await new(mount, "other")
        for one in (handle, other):
            await streamed(mount, one, BODY)
        old, moved = ("d/file", "d/moved") if what == "file" else ("d", "moved")
        await mount.rename(old, moved)
        assert "other" not in bodies(store), "nobody asked for that"
        await streamed(mount, handle, BODY, at=SIZE)
        assert held_here(handle) <= 3 * PART, "what follows is freed again"
        for one in (handle, other):
            await closed(mount, one)
        key = "d/moved" if what == "file" else "moved/file"
        assert stored(store, key) == BODY + BODY
        assert stored(store, "other") == BODY

    with mounted(store, tmp_path) as mount:
        run(mount, main)


def test_what_is_written_while_a_file_is_renamed_is_not_freed(tmp_path: Path) -> None:
    """It goes up under the new name, and until then there is none."""
    store = Held()

    async def main(mount: Composed) -> None:
        handle = await new(mount)
        await streamed(mount, handle, BODY)
        store.before["copy"] = trio.Event()
        await begun(mount, partial(mount.rename, "file", "moved"))
        assert ("copy", "file") in store.reached
        await streamed(mount, handle, BODY, at=SIZE)
        await settled(store.before.pop("copy"))
        await streamed(mount, handle, BODY[:PART], at=2 * SIZE)
        await closed(mount, handle)
        assert bodies(store) == {"moved": BODY + BODY + BODY[:PART]}

    with mounted(store, tmp_path) as mount:
        run(mount, main)


@pytest.mark.parametrize("size", [PART // 2, PART + PART // 2], ids=["less than a part", "more than a part"])
def test_what_was_synced_stays_here_though_room_is_short(
    store: FakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """A record tells of it, and nobody could read it from an upload after a crash."""

    async def main(mount: Composed) -> None:
        handle = await new(mount)
        mount.parts.uploader.keeping += 1
        await mount.parts.file_io.write(handle, 0, BODY[:size])
        await mount.parts.file_io.fsync(handle.inode)
        mount.parts.uploader.keeping -= 1
        before = machine.syncs
        await streamed(mount, handle, BODY[size:], at=size)
        assert machine.syncs <= before + 1, "no write waits for the disk where nothing can be freed by that"
        assert bodies(store) == {}

    with mounted(store, tmp_path, Durability.JOURNAL) as mount:
        machine = Machine(mount, monkeypatch, 1)
        run(mount, main)
        mount.crash()
        mount.start()
        mount.loop.passes(5)
        assert mount._journal.damage.lines == ()
        assert stored(store)[:size] == BODY[:size]


def test_parts_of_what_was_recorded_and_stored_are_freed_once_no_power_loss_brings_its_record_back(
    store: FakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the bytes that are freed would pass for damaged then."""

    async def main(mount: Composed) -> None:
        handle = await new(mount)
        mount.parts.uploader.keeping += 1
        await mount.parts.file_io.write(handle, 0, BODY[: 2 * PART])
        await mount.parts.file_io.fsync(handle.inode)
        mount.parts.uploader.keeping -= 1
        await mount.parts.commits.commit(handle.inode)
        assert held_here(handle) == 2 * PART
        await streamed(mount, handle, BODY[PART:], at=PART)
        assert held_here(handle) <= 4 * PART

    with mounted(store, tmp_path, Durability.JOURNAL) as mount:
        machine = Machine(mount, monkeypatch, 1)
        run(mount, main)
        machine.loses_power(newest_log=False, spools="written")
        mount.take_up()
        assert mount._journal.damage.lines == ()
        assert stored(store) == BODY[: 2 * PART]


def test_a_part_that_is_being_written_to_is_not_freed(store: FakeStore, tmp_path: Path) -> None:
    """It was sent before, as it is no more: the rest of it would be nowhere."""
    done = trio.Event()
    begun: list[bool] = []

    async def main(mount: Composed) -> None:
        handle = await new(mount)
        mount.parts.uploader.keeping += 1
        await streamed(mount, handle, BODY)
        upload = handle.open_file.upload
        assert upload is not None
        run = Threads.run

        async def slowly(threads: Threads, work: Any, *arguments: Any) -> Any:
            if work.__name__ == "_write_all":
                begun.append(True)
                await done.wait()
            return await run(threads, work, *arguments)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Threads, "run", slowly)
            mount.nursery.start_soon(mount.parts.file_io.write, handle, 2 * PART, b"!" * 1000)
            await trio.testing.wait_all_tasks_blocked()
            assert begun
            mount.parts.uploader.keeping -= 1
            assert upload.free()
            done.set()
            await trio.testing.wait_all_tasks_blocked()
        await closed(mount, handle)
        assert stored(store) == BODY[: 2 * PART] + b"!" * 1000 + BODY[2 * PART + 1000 :]

    with mounted(store, tmp_path) as mount:
        run(mount, main)


def test_what_is_being_synced_is_not_freed(tmp_path: Path, store: FakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """By another writer that finds no room: the checksums would be of what is not here any more."""
    sums = Spool.sums

    async def main(mount: Composed) -> None:
        handle = await new(mount)
        mount.parts.uploader.keeping += 1
        await streamed(mount, handle, BODY)
        mount.parts.uploader.keeping -= 1
        upload = handle.open_file.upload
        assert upload is not None

        async def slowly(spool: Spool, size: int) -> tuple[int, ...]:
            found = await sums(spool, size)
            upload.free()
            return found

        with monkeypatch.context() as patch:
            patch.setattr(Spool, "sums", slowly)
            await mount.parts.file_io.fsync(handle.inode)
        assert bodies(store) == {}

    with mounted(store, tmp_path, Durability.JOURNAL) as mount:
        run(mount, main)
        mount.crash()
        mount.start()
        mount.loop.passes(5)
        damage = mount._journal.damage.lines
    assert (damage, bodies(store)) == ((), {"file": BODY})


def test_of_a_file_that_is_being_removed_nothing_is_freed(tmp_path: Path) -> None:
    """Who has it open keeps its bytes, and its upload is dropped."""
    store = Held()

    async def main(mount: Composed) -> None:
        await store.put("file", b"o" * SIZE, Properties())
        handle = await opened(mount)
        mount.parts.uploader.keeping += 1
        await streamed(mount, handle, BODY)
        mount.parts.uploader.keeping -= 1
        store.before["delete"] = trio.Event()
        await begun(mount, partial(mount.unlink, "file"))
        assert ("delete", "file") in store.reached
        await mount.parts.file_io.write(handle, SIZE, b"more")
        await settled(store.before.pop("delete"))
        outcomes: dict[str, Any] = {}
        await told(outcomes, "read", partial(mount.parts.file_io.read, handle, 0, SIZE + 4))
        await closed(mount, handle)
        assert outcomes == {"read": BODY + b"more"}
        assert bodies(store) == {}

    with mounted(store, tmp_path) as mount:
        run(mount, main)


def test_nothing_goes_up_of_what_is_written_after_a_removal_has_begun(tmp_path: Path) -> None:
    """Its base comes for who has it open, and that one writes on meanwhile: what was freed then was nowhere."""
    store = Held()

    async def main(mount: Composed) -> None:
        await store.put("file", b"o" * SIZE, Properties())
        handle = await opened(mount)
        mount.parts.blocks.forget(lambda key: True)
        held = store.before["get"] = trio.Event()
        await begun(mount, partial(mount.unlink, "file"))
        assert ("get", "file") in store.reached
        await streamed(mount, handle, BODY)
        assert store.calls["create_multipart"] == 0
        del store.before["get"]
        await settled(held)
        assert bytes(await mount.parts.file_io.read(handle, 0, SIZE)) == BODY
        await closed(mount, handle)
        assert bodies(store) == {}

    with mounted(store, tmp_path) as mount:
        run(mount, main)


def test_a_part_that_is_answered_after_its_upload_was_found_gone_is_sent_again(tmp_path: Path) -> None:
    """Another client has aborted it: what only that upload had is nowhere."""
    store = Held()

    async def main(mount: Composed) -> None:
        handle = await new(mount)
        await streamed(mount, handle, BODY[: 2 * PART])
        store.after["upload_part"] = answered = trio.Event()
        await streamed(mount, handle, BODY[2 * PART : 3 * PART], at=2 * PART)
        assert len(store._uploads) == 1
        del store.after["upload_part"]
        for upload_id in list(store._uploads):
            await store.abort_multipart("file", upload_id)
        await streamed(mount, handle, BODY[3 * PART : 4 * PART], at=3 * PART)
        await settled(answered)
        await streamed(mount, handle, BODY[4 * PART :], at=4 * PART)
        await closed(mount, handle)
        assert bodies(store) == {"file": BODY}

    with mounted(store, tmp_path) as mount:
        run(mount, main)


def test_an_upload_under_an_old_name_that_is_gone_takes_nothing_along(tmp_path: Path) -> None:
    """Of the one under the new name, in which alone bytes of the file are: they passed for lost."""
    store = Held()

    async def main(mount: Composed) -> None:
        handle = await new(mount)
        held = store.before["upload_part", "file"] = trio.Event()
        await streamed(mount, handle, BODY[: 2 * PART])
        await mount.rename("file", "moved")
        store._uploads.clear()
        await streamed(mount, handle, BODY[2 * PART :], at=2 * PART)
        assert held_here(handle) <= 3 * PART
        await settled(held)
        await closed(mount, handle)
        assert bodies(store) == {"moved": BODY}

    with mounted(store, tmp_path) as mount:
        run(mount, main)


def test_nothing_is_freed_of_a_file_that_is_being_kept_beside_another_clients(tmp_path: Path) -> None:
    """By another writer that finds no room, while what was written goes up under the name that it gets."""
    store = Held()
    outcomes: dict[str, Any] = {}

    async def main(mount: Composed) -> None:
        await store.put("file", b"o" * SIZE, Properties())
        handle = await opened(mount)
        mount.parts.uploader.keeping += 1
        await streamed(mount, handle, BODY)
        mount.parts.uploader.keeping -= 1
        await store.put("file", b"theirs", Properties())
        upload = handle.open_file.upload
        assert upload is not None
        read = Draft.read

        async def slowly(draft: Draft, start: int, stop: int) -> bytes | memoryview:
            if draft.state is DraftState.CONFLICT:
                upload.free()
            return await read(draft, start, stop)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Draft, "read", slowly)
            await told(outcomes, "close", partial(closed, mount, handle))

    with mounted(store, tmp_path) as mount:
        run(mount, main)
        mount.loop.passes(30)
    assert outcomes["close"].startswith("OSError(116, "), outcomes
    assert set(bodies(store).values()) == {b"theirs", BODY}


def test_nor_before_it_is_known_whose_version_is_there(tmp_path: Path) -> None:
    """It may be ours, of a request that got no answer: that is looked for first."""
    store = Held()
    outcomes: dict[str, Any] = {}

    async def main(mount: Composed) -> None:
        handle = await new(mount)
        mount.parts.uploader.keeping += 1
        await streamed(mount, handle, BODY)
        mount.parts.uploader.keeping -= 1
        store.errors["complete_multipart", "file"] = [silence("complete_multipart")]
        with fails(errno.EIO):
            await mount.parts.commits.commit(handle.inode)
        await store.put("file", b"theirs", Properties())
        upload = handle.open_file.upload
        assert upload is not None
        store.before["complete_multipart"] = trio.Event()
        await begun(mount, partial(told, outcomes, "close", partial(closed, mount, handle)))
        store.before["head"], store.reached = trio.Event(), set()
        await settled(store.before.pop("complete_multipart"))
        assert store.reached == {("head", "file")}
        upload.free()
        await settled(store.before.pop("head"))

    with mounted(store, tmp_path) as mount:
        run(mount, main)
    assert outcomes["close"].startswith("OSError(116, "), outcomes
    assert set(bodies(store).values()) == {b"theirs", BODY}


def test_what_is_just_being_read_is_not_freed(
    store: FakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its reader got zeros."""
    outcomes: dict[str, Any] = {}

    async def main(mount: Composed) -> None:
        handle = await new(mount)
        mount.parts.uploader.keeping += 1
        await streamed(mount, handle, BODY)
        mount.parts.uploader.keeping -= 1
        upload, reached, go_on = handle.open_file.upload, trio.Event(), trio.Event()
        run_in_thread = Threads.run
        assert upload is not None

        async def slowly(threads: Threads, work: Any, *arguments: Any) -> Any:
            if work.__name__ == "_read_all":
                reached.set()
                await go_on.wait()
            return await run_in_thread(threads, work, *arguments)

        with monkeypatch.context() as patch:
            patch.setattr(Threads, "run", slowly)
            reading = partial(mount.parts.file_io.read, handle, PART, 2 * PART)
            await begun(mount, partial(told, outcomes, "read", reading))
            assert reached.is_set()
            assert upload.free(), "what else there is"
            assert upload.free(first=True), "what lies before it"
            await settled(go_on)
        await closed(mount, handle)
        assert outcomes == {"read": BODY[PART : 3 * PART]}
        assert bodies(store) == {"file": BODY}

    with mounted(store, tmp_path) as mount:
        run(mount, main)
