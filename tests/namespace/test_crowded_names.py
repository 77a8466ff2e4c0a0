"""With more names than there is memory for: whose go, when, and whose stay.

In one process and without a kernel, for only so can each order be had.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from contextlib import closing
from functools import partial
from typing import Any, cast

import pytest
import trio
import trio.testing

from sosfs.namespace.eviction import ANSWER, PAUSE_FIRST, REST, USED, Eviction
from sosfs.s3.protocol import Properties
from sosfs.tree.inodes import Inode, Reading
from sosfs.tree.shown_names import PACK
from tests.support.composed import Composed
from tests.support.held import Held, begun, closed, forget, opened, put_all, settled

pytestmark = pytest.mark.usefixtures("without_bugs")

BIG = bytes(5000)  # of no symbolic link


class Kernel:
    """Forgets at most `at_once` of the names that it is asked to, a moment later."""

    def __init__(self, mount: Composed, at_once: int = 1000) -> None:
        self._mount = mount
        self._at_once = at_once
        self.asked: list[list[bytes]] = []

    async def forget(self, numbers: Sequence[int], names: Sequence[tuple[int, bytes]]) -> None:
        del numbers
        self.asked.append([name for _, name in names])

        async def later() -> None:
            await trio.sleep(0.01)
            for parent, name in names[: self._at_once]:
                directory = self._mount.parts.inodes[parent].directory
                if directory is not None and (inode := directory.entries.get(name)):
                    self._mount.parts.namespace.forget(inode, inode.lookups)

        self._mount.spawn(later)


def nowhere(task: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Begins nothing in the background."""


def look(mount: Composed, kernel: Kernel | None, most: int, *, background: bool = True) -> Eviction:
    """Looks whether there are too many names, this once."""
    parts, spawn = mount.parts, mount.spawn if background else nowhere
    eviction = Eviction(parts.inodes, parts.attributes, parts.listings, spawn, cast(Any, kernel), most=most)
    parts.listings.watchers.pop()
    eviction.look()
    return eviction


async def known(mount: Composed, path: str, names: Sequence[str], *, lookups: int = 1) -> Inode:
    """A directory with these names, which the kernel has looked up."""
    await put_all(mount.store, {f"{path}/{name}": BIG for name in names})
    top = await mount._walk(path)
    for name in names:
        (await mount._walk(f"{path}/{name}")).lookups += lookups
    return top


def names(top: Inode) -> list[bytes]:
    return [] if top.directory is None else sorted(top.directory.entries)


async def looked(mount: Composed, kernel: Kernel | None, most: int) -> None:
    look(mount, kernel, most)


def test_what_the_kernel_has_forgotten_goes_at_once_and_no_more_than_need_be(mount: Composed, store: Held) -> None:
    """Of three directories those that were listed first."""
    tops: list[Inode] = []
    kernel = Kernel(mount)

    async def begin() -> None:
        await put_all(store, {f"{path}/{path}{number}": BIG for path in "abc" for number in range(3)})
        for path in "abc":
            tops.append(await known(mount, path, [f"{path}{number}" for number in range(3)]))
            mount.loop._clock.jump(0.1)

    mount.loop.run(begin)
    mount.loop.passes(USED + 1)
    mount.loop.run(lambda: looked(mount, kernel, 15))  # of 13, which are more than 12
    for _ in range(12):  # each is asked for when the one before has gone
        mount.loop.passes(0.01)
    assert [len(names(top)) for top in tops] == [0, 0, 3]
    assert kernel.asked == [[b"a0", b"a1", b"a2"], [b"b0", b"b1", b"b2"]]


def test_nor_does_more_go_where_there_are_more_than_there_may_be(mount: Composed, store: Held) -> None:
    tops: list[Inode] = []

    async def begin() -> None:
        await put_all(store, {f"{path}/{path}0": BIG for path in "abc"})
        for path in "abc":
            tops.append(await known(mount, path, [f"{path}{number}" for number in range(3)]))
            mount.loop._clock.jump(0.1)

    mount.loop.run(begin)
    mount.loop.passes(USED + 1)
    mount.loop.run(lambda: looked(mount, None, 12))  # of 13
    assert [len(names(top)) for top in tops] == [0, 0, 3]


def test_what_comes_when_enough_were_forgotten_is_forgotten_in_its_turn(mount: Composed, store: Held) -> None:
    kernel, made = Kernel(mount), list[Eviction]()

    async def look_first() -> None:
        made.append(look(mount, kernel, 12))

    async def look_again() -> None:
        made[0].look()

    mount.loop.run(lambda: put_all(store, {"a/0": BIG, "b/0": BIG}))
    for path, again in (("a", look_first), ("b", look_again)):
        top = mount.loop.run(partial(known, mount, path, list(map(str, range(9)))))
        mount.loop.passes(USED + 1)
        mount.loop.run(again)
        mount.loop.passes(2 * PAUSE_FIRST)
        assert names(top) == []


def test_the_kernel_is_asked_for_nothing_that_is_in_use_or_that_it_does_not_know(mount: Composed, store: Held) -> None:
    kernel = Kernel(mount)

    async def begin() -> Inode:
        top = await known(mount, "d", ["changed", "idle", "open", "used"])
        await put_all(store, {"d/unknown": BIG})
        mount.parts.listings.directory(top).doubt()
        await mount.parts.listings.complete(top)
        return top

    async def crowd(top: Inode) -> None:
        handle = await opened(mount, os.O_RDONLY, "d/open")
        changed = await mount._walk("d/changed")
        changed.mode = stat.S_IFREG | 0o604
        store.before["copy", "d/changed"] = trio.Event()
        mount.parts.attributes.changed(changed)
        mount.loop._clock.jump(USED + 1)
        assert mount.parts.inodes[(await mount._walk("d/used")).number].name == b"used"
        look(mount, kernel, 8)
        for seconds in (0.0, 0.01, ANSWER):
            mount.loop._clock.jump(seconds)
            await trio.testing.wait_all_tasks_blocked()
        assert kernel.asked == [[b"idle"]]
        assert names(top) == [b"changed", b"open", b"used"]
        await closed(mount, handle)

    top = mount.loop.run(begin)
    mount.loop.passes(USED + 1)
    mount.loop.run(lambda: crowd(top))


def test_where_there_is_no_kernel_nobody_is_asked(mount: Composed) -> None:
    top = mount.loop.run(lambda: known(mount, "d", list(map(str, range(9)))))
    mount.loop.passes(USED + 1)
    mount.loop.run(lambda: looked(mount, None, 12))
    mount.loop.passes(PAUSE_FIRST / 2)
    assert len(names(top)) == 9


def test_of_a_directory_that_is_being_read_goes_what_its_reader_was_told(mount: Composed) -> None:
    """The kernel is not asked for it: it forgets none of its names meanwhile."""
    kernel = Kernel(mount)

    async def begin() -> Inode:
        top = await known(mount, "d", list(map(str, range(9))), lookups=0)
        (await mount._walk("d/0")).lookups += 1
        return top

    async def read(top: Inode) -> None:
        with closing(Reading(*mount.parts.listings.walk(top))) as reading:
            reading.comes_to(4)
            look(mount, kernel, 12)
            await trio.testing.wait_all_tasks_blocked()
            assert names(top) == [b"%d" % number for number in (0, 4, 5, 6, 7, 8)]
            assert kernel.asked == []

    top = mount.loop.run(begin)
    mount.loop.passes(USED + 1)
    mount.loop.run(lambda: read(top))


@pytest.mark.parametrize(("at_once", "times"), [(0, (4, 6)), (1, (8, 12))], ids=["forgets none", "forgets one"])
def test_the_kernel_is_asked_again_soon_only_where_that_is_of_use(
    mount: Composed, at_once: int, times: tuple[int, int]
) -> None:
    kernel = Kernel(mount, at_once)

    mount.loop.run(lambda: known(mount, "d", [f"{number:02d}" for number in range(99)]))
    mount.loop.passes(USED + 1)
    mount.loop.run(lambda: looked(mount, kernel, 101))
    for _ in range(30):
        mount.loop.passes(1)
    assert times[0] <= len(kernel.asked) <= times[1]


def test_while_all_is_in_use_the_names_are_not_gone_through_for_each_page(
    mount: Composed, monkeypatch: pytest.MonkeyPatch
) -> None:
    times: Counter[str] = Counter()

    async def crowd() -> None:
        await known(mount, "d", list(map(str, range(20))), lookups=0)  # a moment ago
        walked = mount.parts.inodes.directories

        def counted() -> Any:
            times["all"] += 1
            return walked()

        monkeypatch.setattr(mount.parts.inodes, "directories", counted)
        eviction = look(mount, None, 10, background=False)
        for _ in range(5):
            eviction.look()
        assert times["all"] == 1

    mount.loop.run(crowd)


def test_what_was_listed_a_moment_ago_is_not_to_be_listed_again(mount: Composed, store: Held) -> None:
    async def begin() -> None:
        await put_all(store, {f"d/{number}": BIG for number in range(9)})
        top = await mount._walk("d")
        await mount.parts.listings.complete(top)
        store.calls.clear()
        forget(mount)
        for number in range(9):
            await mount.parts.namespace.lookup(top, b"%d" % number)
        assert store.calls["list"] == 0
        mount.loop._clock.jump(2 * REST)
        forget(mount)
        assert names(top) == []

    mount.loop.run(begin)


def test_what_is_asked_for_or_was_a_moment_ago_is_not_to_be_asked_for_again(mount: Composed, store: Held) -> None:
    async def begin() -> None:
        top = await known(mount, "d", ["idle", "slow", "used"])
        store.before["head", "d/slow"] = trio.Event()
        slow = await mount.parts.namespace.lookup(top, b"slow")
        slow.known, slow.whole, slow.checked = slow.known.SIZE, False, 0.0  # as after a listing
        await begun(mount, lambda: mount.parts.attributes.revalidate(slow))
        assert ("head", "d/slow") in store.reached
        mount.loop._clock.jump(USED + 1)
        assert mount.parts.inodes[(await mount._walk("d/used")).number].name == b"used"
        store.calls.clear()
        forget(mount)
        assert names(top) == [b"slow", b"used"]
        await settled(store.before["head", "d/slow"])
        assert (await mount._walk("d/slow")) is slow

    mount.loop.run(begin)


def test_a_link_that_the_kernel_does_not_know_goes_as_all_else(mount: Composed, store: Held) -> None:
    link = Properties(metadata={"mode": str(stat.S_IFLNK | 0o777)})

    async def begin() -> Inode:
        for number in range(9):
            await store.put(f"d/{number}", b"there", link)
        for number in range(9):
            await mount._walk(f"d/{number}")
        return await mount._walk("d")

    async def crowd(top: Inode) -> None:
        assert len(names(top)) == 9
        look(mount, None, 5, background=False)
        assert names(top) == []

    top = mount.loop.run(begin)
    mount.loop.passes(USED + 1)
    mount.loop.run(lambda: crowd(top))


def test_of_names_that_were_told_and_are_gone_less_is_kept(mount: Composed, store: Held) -> None:
    async def begin() -> None:
        await put_all(store, {f"d/{number:05d}": BIG for number in range(PACK + 10)})
        top = await mount._walk("d")
        await mount.parts.listings.complete(top)
        mount.loop._clock.jump(USED + 1)
        with closing(Reading(*mount.parts.listings.walk(top))) as reading:
            reading.comes_to(PACK + 5)
            forget(mount)
            assert len(names(top)) == 5
            assert reading.walk.names.packed_bytes > 0
            assert reading.walk.names[:2] == [b"00000", b"00001"]

    mount.loop.run(begin)
