"""The line of files whose attributes are asked for ahead: how much of it one call passes, and that nothing is left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import trio
import trio.testing

from sosfs.attributes.prefetch import ASKERS, WALK, AttributePrefetch
from sosfs.attributes.questions import STEPS, Questions, Wanted
from sosfs.tree.inodes import Directory, Inode, Inodes, Known, Pass
from sosfs.tree.keys import Form
from tests.support.composed import Composed
from tests.support.held import Held, put_all

MANY = 20 * STEPS


def known(inodes: Inodes, parent: Inode, *, files: int) -> Directory:
    """A directory of so many files that are all known, and of a last one that is not."""
    directory = parent.directory = Directory(parent)
    directory.now = Pass(inodes.key(parent), started=0.0)
    for number in range(files + 1):
        inode = inodes.make(parent, f"{number:09d}", Form.PLAIN, mode=inodes.defaults.file_mode)
        inode.known = Known.ALL if number < files else Known.SIZE
        directory.entries[inode.name] = inode
        directory.now.show(inode.name)
    return directory


def test_one_call_passes_a_bounded_number_of_names(mount: Composed) -> None:
    inodes, line = mount.parts.inodes, Questions()
    directory = known(inodes, inodes.root, files=MANY)
    assert directory.now is not None
    line.add_listed(directory, directory.now, 0, Wanted.ALL)
    before = line.waiting
    assert line.take(8) == []
    assert before - line.waiting == STEPS, "others have a turn"
    found: list[Inode] = []
    while line.waiting:
        found += line.take(8)
    assert found == [directory.entries[b"%09d" % MANY]]


def test_directories_below_one_that_is_not_known_as_a_whole_are_in_the_line(mount: Composed) -> None:
    inodes, line = mount.parts.inodes, Questions()
    top = inodes.make(inodes.root, "top", Form.PLAIN, mode=inodes.defaults.directory_mode)
    below = inodes.make(top, "below", Form.PLAIN, mode=inodes.defaults.directory_mode)
    top.directory = Directory(top)
    top.directory.entries[below.name] = below
    inodes.root.directory = known(inodes, inodes.root, files=1)
    inodes.root.directory.entries[top.name] = top
    last = known(inodes, below, files=3).entries[b"%09d" % 3]
    line.add_below(top, Wanted.ALL)
    found: list[Inode] = []
    while line.waiting:
        found += line.take(8)
    assert found == [last]


def test_what_comes_after_many_that_are_known_is_asked_for(mount: Composed, store: Held) -> None:
    """Who walks asks for some files; behind them are many that are known, and then one that is not."""
    paths = [f"d/{number:09d}" for number in range(3 * STEPS)]

    async def walk() -> None:
        await put_all(store, dict.fromkeys(paths, b"x"))
        directory = await mount._walk("d")
        await mount.parts.listings.complete(directory)
        assert directory.directory is not None
        entries = list(directory.directory.entries.values())
        for inode in entries[WALK:-1]:
            inode.known = Known.ALL
        for inode in entries[:WALK]:
            await mount.parts.attributes.revalidate(inode)
        await trio.testing.wait_all_tasks_blocked()
        assert entries[-1].known is Known.ALL

    mount.loop.run(walk)


def test_all_askers_have_a_share_of_what_lies_below(mount: Composed) -> None:
    """One directory with few entries is known when the walk begins; what is below those is found on the way."""
    inodes, asking = mount.parts.inodes, Counter[Inode]()
    top = known(inodes, inodes.root, files=WALK + 1)
    for number in range(2):
        below = inodes.make(inodes.root, f"d{number}", Form.PLAIN, mode=inodes.defaults.directory_mode)
        top.entries[below.name] = below
        assert top.now is not None
        top.now.show(below.name)
        for inode in list(known(inodes, below, files=100).entries.values()):
            inode.known = Known.SIZE

    async def ask(inodes: Sequence[Inode]) -> None:
        asking[inodes[0]] += 1
        await trio.sleep_forever()

    async def walk() -> None:
        async with trio.open_nursery() as nursery:
            prefetch = AttributePrefetch(mount.parts.listings, lambda one: ask([one]), ask, nursery.start_soon)
            for inode in list(top.entries.values())[:WALK]:
                prefetch.asked(inode)
            await trio.testing.wait_all_tasks_blocked()
            assert len(asking) == ASKERS
            nursery.cancel_scope.cancel()

    trio.run(walk)
