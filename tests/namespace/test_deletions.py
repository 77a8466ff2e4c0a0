"""Deletes that travel in batches: what the tree shows while some are answered and others are not."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from sosfs.config.parameters import TTL, Durability
from sosfs.errors import StoreError
from sosfs.namespace.deletions import CROWD
from sosfs.s3.protocol import NO_VERSIONS, Failure, Properties, Version
from tests.support.composed import LONG, Composed, composed
from tests.support.fake_store import FakeStore
from tests.support.held import begun

FILES = 2 * CROWD + CROWD // 2


class SlowFirst(FakeStore):
    """Its first batch of deletes, `but` for one with that key, is answered when `go` is set, all others at once."""

    def __init__(self, *, but: str = "") -> None:
        super().__init__()
        self.but = but
        self.go: trio.Event | None = None
        self.held: list[str] = []
        self.failing: trio.Event | None = None  # all batches wait for it, and fail then

    async def let_go(self) -> None:
        """Answers the first batch too."""
        if self.go is not None:
            self.go.set()

    async def delete_many(self, keys: Sequence[str], *, versions: Mapping[str, Version] = NO_VERSIONS) -> list[Failure]:
        if self.failing is not None:
            await self.failing.wait()
            return [Failure(key, StoreError(errno.EIO, "delete_many", detail="no answer")) for key in keys]
        if self.go is not None and not self.held and self.but not in keys:
            self.held.extend(keys)
            await self.go.wait()
        return await super().delete_many(keys, versions=versions)


@pytest.fixture
def store() -> SlowFirst:
    return SlowFirst()


@pytest.fixture
def mount(tmp_path: Path, store: SlowFirst) -> Iterator[Composed]:
    with composed(store, tmp_path) as mount:
        yield mount
        mount.loop.run(store.let_go)


async def _fill(store: SlowFirst) -> None:
    for number in range(FILES):
        await store.put(f"top/sub/{number:04}", b"body", Properties())


async def _empty(mount: Composed, store: SlowFirst) -> None:
    await mount.unlink("top/sub/0000")  # asked for by itself: it proves that the key may delete
    store.go = trio.Event()
    for number in range(1, FILES):
        await mount.unlink(f"top/sub/{number:04}")
    await mount.rmdir("top/sub")


def test_a_directory_does_not_come_back_while_a_file_of_it_is_still_going(mount: Composed, store: SlowFirst) -> None:
    mount.loop.run(lambda: _fill(store))
    mount.loop.run(lambda: _empty(mount, store))
    mount.loop.passes(2 * TTL)  # its listing is asked for anew, and shows what is still going
    assert len(store.held) == CROWD

    async def go_on() -> None:
        assert [path for path in await mount.tree() if path != "top"] == []
        await mount.rmdir("top")
        await store.let_go()
        await mount.settle()
        assert await mount.tree() == {}

    mount.loop.run(go_on)
    assert store.calls["delete_many"] <= FILES // CROWD + 2


@pytest.mark.promise(3)
@pytest.mark.parametrize("first", [True, False], ids=["asked for", "in a batch"])
def test_a_removed_file_with_unsent_bytes_does_not_come_back(tmp_path: Path, first: bool) -> None:
    """A kill after the bucket has let it go: the record of its bytes alone would be a name without an object."""
    store = FakeStore()

    async def settled_never() -> None:
        await trio.sleep_forever()

    async def begin() -> None:
        await store.put("other", b"other", Properties())
        await store.put("file", b"body", Properties())
        await here.write("file", b"more", flags=os.O_APPEND)
        if not first:
            await here.unlink("other")
        here._journal.flushed = settled_never  # type: ignore[method-assign]
        await begun(here, partial(here.unlink, "file"))

    async def require_gone() -> None:
        assert await here.tree() == ({"other": (b"other", 0o644)} if first else {})
        assert sorted(store._stored) == (["other"] if first else [])

    with composed(store, tmp_path, durability=Durability.JOURNAL) as here:
        here.loop.run(begin)
        here.loop.passes(0.3)
        assert "file" not in store._stored
        here.crash()
        here.start()
        here.loop.run(require_gone)
        here.loop.passes(LONG)
        here.loop.run(require_gone)


def test_a_directory_stays_away_while_a_file_that_was_removed_from_it_is_refused(tmp_path: Path) -> None:
    """The file was removed before, and the server says no to it alone; then the directory is removed."""
    store = FakeStore()

    def refuse(operation: str, key: str) -> None:
        if operation in ("delete", "delete_many") and key == "d/x":
            raise StoreError(errno.EACCES, f"{operation} {key!r}", code="AccessDenied", status=403)

    async def begin(mount: Composed) -> None:
        for key in ("other", "d/", "d/x"):
            await store.put(key, b"", Properties())
        await mount.unlink("other")
        store.fault = refuse
        await mount.unlink("d/x")

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(begin, mount))
        mount.loop.passes(10)
        assert "d/x" in store._stored
        mount.loop.run(partial(mount.rmdir, "d"))
        for _ in range(2):
            mount.loop.passes(2 * TTL)
            assert mount.loop.run(mount.tree) == {}
            mount.crash()
            mount.start()
        store.fault = None
        mount.loop.passes(LONG)
        assert store._stored == {}
        assert mount.parts.pending == 0


def test_a_directory_waits_for_files_that_got_no_answer_and_are_more_than_one_batch(tmp_path: Path) -> None:
    """They were on their way when it was removed, and are tried again before it: one batch has no answer yet."""
    store = SlowFirst(but="top/sub/")

    async def begin(mount: Composed) -> None:
        await _fill(store)
        await mount.unlink("top/sub/0000")
        store.failing = trio.Event()
        for number in range(1, FILES):
            await mount.unlink(f"top/sub/{number:04}")

    async def fail(mount: Composed) -> None:
        await mount.rmdir("top/sub")
        assert store.failing is not None
        store.failing.set()
        await trio.testing.wait_all_tasks_blocked()
        store.failing, store.go = None, trio.Event()

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(begin, mount))
        mount.loop.passes(1)
        mount.loop.run(partial(fail, mount))
        mount.loop.passes(60)
        assert store.held
        assert [path for path in mount.loop.run(mount.tree) if path != "top"] == []
        mount.loop.run(store.let_go)
        mount.loop.passes(60)
        assert mount.parts.pending == 0
        assert not any(key.startswith("top/sub") for key in store._stored)
