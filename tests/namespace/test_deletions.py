"""Deletes that travel in batches: what the tree shows while some are answered and others are not."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest
import trio

from sosfs.config.parameters import TTL, Durability
from sosfs.namespace.deletions import CROWD
from sosfs.s3.protocol import Failure, Properties
from tests.support.composed import LONG, Composed, composed
from tests.support.fake_store import FakeStore
from tests.support.held import begun

FILES = 2 * CROWD + CROWD // 2


class SlowFirst(FakeStore):
    """Its first batch of deletes is answered when `go` is set, all others at once."""

    def __init__(self) -> None:
        super().__init__()
        self.go: trio.Event | None = None
        self.held: list[str] = []

    async def let_go(self) -> None:
        """Answers the first batch too."""
        if self.go is not None:
            self.go.set()

    async def delete_many(self, keys: Sequence[str]) -> list[Failure]:
        if self.go is not None and not self.held:
            self.held.extend(keys)
            await self.go.wait()
        return await super().delete_many(keys)


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
