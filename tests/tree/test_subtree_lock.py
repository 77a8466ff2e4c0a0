"""Who may be under way while a subtree is renamed, and who waits for whom."""

from __future__ import annotations

import stat
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from sosfs.concurrency.interrupt import CURRENT, Interrupt
from sosfs.concurrency.locks import Scope
from sosfs.tree.inodes import Defaults, Inode, Inodes
from sosfs.tree.keys import Form
from sosfs.tree.subtree_lock import SubtreeLock

Block = AbstractAsyncContextManager[None] | Scope


class Scene:
    """top/sub/file and other, and tasks that hold something until they are told to end."""

    def __init__(self, nursery: trio.Nursery) -> None:
        inodes = Inodes("", Defaults(0, 0, 0o022, 0))
        self.lock = SubtreeLock(inodes)
        self.inside: set[str] = set()
        self._nursery = nursery
        self._ends: dict[str, trio.Event] = {}

        def make(parent: Inode, name: str) -> Inode:
            return inodes.make(parent, name, Form.PLAIN, mode=stat.S_IFDIR)

        self.top, self.other = make(inodes.root, "top"), make(inodes.root, "other")
        self.sub = make(self.top, "sub")
        self.file = make(self.sub, "file")

    async def begin(self, name: str, block: Block) -> bool:
        """Whether it is inside at once; else it waits."""
        self._ends[name] = trio.Event()
        self._nursery.start_soon(self._hold, name, block)
        await wait_all_tasks_blocked()
        return name in self.inside

    async def _hold(self, name: str, block: Block) -> None:
        async with block:
            self.inside.add(name)
            await self._ends[name].wait()
        self.inside.remove(name)

    async def end(self, *names: str) -> None:
        """They leave."""
        for name in names:
            self._ends[name].set()
        await wait_all_tasks_blocked()


def played(play: Callable[[Scene], Awaitable[None]]) -> None:
    """Plays a scene."""

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await play(Scene(nursery))

    trio.run(main)


def test_a_rename_waits_for_all_that_is_under_way_below_it_and_for_nothing_else() -> None:
    async def play(scene: Scene) -> None:
        lock = scene.lock
        for name in ("one", "two"):
            assert await scene.begin(name, lock.shared(scene.file)), "commits pass together"
        assert await scene.begin("beside", lock.shared(scene.other))
        assert not await scene.begin("rename", lock.exclusive(scene.other, scene.top))
        await scene.end("one", "beside")
        assert "rename" not in scene.inside
        await scene.end("two")
        assert scene.inside == {"rename"}
        await scene.end("rename")

    played(play)


def test_what_comes_below_a_rename_waits_until_it_is_done_or_has_failed() -> None:
    async def play(scene: Scene) -> None:
        lock = scene.lock
        with pytest.raises(OSError, match="refused"):
            async with lock.exclusive(scene.top):
                raise OSError("refused")
        assert not lock.is_exclusive(scene.file)
        assert await scene.begin("rename", lock.exclusive(scene.top))
        assert await scene.begin("again", lock.exclusive(scene.other)), "of another subtree"
        assert lock.is_exclusive(scene.top) and lock.is_exclusive(scene.file)
        assert not await scene.begin("commit", lock.shared(scene.file))
        await scene.end("again")
        assert await scene.begin("beside", lock.shared(scene.other))
        assert "commit" not in scene.inside
        await scene.end("rename")
        assert scene.inside == {"commit", "beside"}
        await scene.end("commit", "beside")

    played(play)


def test_renames_within_each_other_come_one_after_the_other() -> None:
    async def play(scene: Scene) -> None:
        lock = scene.lock
        for first, second in ((scene.top, scene.file), (scene.file, scene.top), (scene.sub, scene.sub)):
            assert await scene.begin("first", lock.exclusive(first))
            assert not await scene.begin("second", lock.exclusive(scene.other, second))
            assert not lock.is_exclusive(scene.other), "who waits holds nobody up"
            await scene.end("first")
            assert scene.inside == {"second"}
            await scene.end("second")

    played(play)


def test_who_waits_for_a_rename_alone_keeps_none_from_beginning() -> None:
    async def play(scene: Scene) -> None:
        lock, order = scene.lock, list[str]()

        async def wait() -> None:
            await lock.released(scene.file)
            order.append("released")

        assert await scene.begin("rename", lock.exclusive(scene.top))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await wait_all_tasks_blocked()
            assert not order
            await scene.end("rename")
        assert order
        assert await scene.begin("next", lock.exclusive(scene.top))
        await scene.end("next")

    played(play)


def test_who_looks_is_told_whether_a_rename_was_under_way_meanwhile() -> None:
    async def play(scene: Scene) -> None:
        lock, told = scene.lock, list[bool]()

        async def renamed(name: str, top: Inode) -> None:
            assert await scene.begin(name, lock.exclusive(top))
            await scene.end(name)

        for top in (scene.top, scene.file, scene.other):
            with lock.watched(scene.sub) as watch:
                await renamed("rename", top)
            told.append(watch.was_renamed)
        assert await scene.begin("before", lock.exclusive(scene.top))
        with lock.watched(scene.sub) as watch:
            await scene.end("before")
        told.append(watch.was_renamed)
        with lock.watched(scene.sub) as watch:
            pass
        await renamed("afterwards", scene.top)
        assert [*told, watch.was_renamed] == [True, False, False, True, False]

    played(play)


@pytest.mark.parametrize("rename", [True, False])
def test_a_request_that_nobody_waits_for_any_more_does_not_begin(*, rename: bool) -> None:
    async def play(scene: Scene) -> None:
        lock, interrupt = scene.lock, Interrupt()

        async def wait() -> None:
            CURRENT.set(interrupt)
            with pytest.raises(InterruptedError):
                async with lock.exclusive(scene.file) if rename else lock.shared(scene.file):
                    raise AssertionError("it was called off")

        assert await scene.begin("rename", lock.exclusive(scene.top))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await wait_all_tasks_blocked()
            interrupt.set()
        await scene.end("rename")
        assert await scene.begin("next", lock.exclusive(scene.top))
        await scene.end("next")

    played(play)
