"""Names of a directory that is too large to be listed again for one of them: what each is asked for, and told.

In one process and without a kernel, for only so can each order be had.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from sosfs.config.parameters import TTL
from sosfs.files.open_file import Handle
from sosfs.namespace.namespace import WALK, refuse
from sosfs.s3.protocol import KEY_MAX, Page
from sosfs.tree.inodes import Inode
from tests.support.composed import TASK, Composed
from tests.support.drive import fails
from tests.support.held import Held, begun, bodies, closed, denied, listed_long_ago, put_all, settled, told

FILES, PAGE = 400, 50  # more than are listed again to check one name


class Noted(Held):
    """Notes what is asked for of `d`, a listing with the number of keys that it is to show."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.asked: list[str | tuple[str, int]] = []
        self.fault = self._note

    def _note(self, operation: str, key: str) -> None:
        if key.startswith("d/") and operation != "list":
            self.asked.append(operation)

    async def list(self, prefix: str, *, limit: int = 1000, **options: Any) -> Page:
        if prefix.startswith("d/"):
            self.asked.append(("list", limit))
        return await super().list(prefix, limit=limit, **options)


@pytest.fixture
def store() -> Noted:
    return Noted(page=PAGE)


@pytest.fixture
def mount(tmp_path: Path, store: Noted) -> Iterator[Composed]:
    """A mount that has listed `d` long ago."""
    with listed_long_ago(store, tmp_path, files=FILES) as mount:
        yield mount


async def found(mount: Composed, name: str) -> Inode:
    return await mount.parts.namespace.lookup(await mount._walk("d"), name.encode())


async def absent(mount: Composed, name: str) -> None:
    with fails(errno.ENOENT):
        await found(mount, name)


def asked(store: Noted) -> Counter[str | tuple[str, int]]:
    """The requests since this was asked last."""
    calls = Counter(store.asked)
    store.asked.clear()
    return calls


ONE, PAGES = ("list", 1), ("list", 1000)
ALONE = {"head": 1, ONE: 1}  # as an object and as a prefix


# Answers about one name


@pytest.mark.parametrize("name", ["0000", "sub"])
def test_what_is_there_yet_is_the_same_as_before(mount: Composed, store: Noted, name: str) -> None:
    async def look() -> None:
        before = mount.parts.listings.directory(await mount._walk("d")).entries[name.encode()]
        asked(store)
        assert await found(mount, name) is before
        assert asked(store) == ALONE
        assert await found(mount, name) is before
        assert asked(store) == {}, "it was asked for a moment ago"

    mount.loop.run(look)


def test_a_directory_in_the_place_of_a_file_is_found(mount: Composed, store: Noted) -> None:
    async def look() -> None:
        await store.delete("d/0000")
        await put_all(store, {"d/0000/deep/x": b"x"})
        inode = await found(mount, "0000")
        assert inode.is_directory
        assert await found(mount, "0000") is inode
        assert (await mount._walk("d/0000/deep/x")).size == 1

    mount.loop.run(look)


def test_a_file_in_the_place_of_a_directory_is_found(mount: Composed, store: Noted) -> None:
    async def look() -> None:
        await store.delete("d/sub/x")
        await put_all(store, {"d/sub": b"a file now"})
        inode = await found(mount, "sub")
        assert (inode.is_directory, inode.size) == (False, len(b"a file now"))

    mount.loop.run(look)


def test_a_file_beside_a_directory_of_its_name_is_found(mount: Composed, store: Noted) -> None:
    async def look() -> None:
        await put_all(store, {"d/sub": b"beside"})
        inode = await found(mount, "%~fsub")
        assert (inode.is_directory, inode.size) == (False, len(b"beside"))
        assert (await found(mount, "sub")).is_directory

    mount.loop.run(look)


def test_a_file_that_is_open_stays_itself_where_another_client_makes_a_directory_of_its_name(
    mount: Composed, store: Noted
) -> None:
    async def look() -> None:
        handle = await mount.parts.file_io.open(await found(mount, "0000"), 0, TASK)
        mount.loop._clock.jump(2 * TTL)
        await put_all(store, {"d/0000/x": b"x"})
        reader = mount.parts.listings.directory(await mount._walk("d")).now
        top = await found(mount, "0000")
        assert reader is not None and b"%~f0000" in reader.names, "who still reads on is told of it"
        mount.loop._clock.jump(2 * TTL)
        assert await mount.parts.attributes.revalidate(handle.inode) is handle.inode
        assert handle.inode.is_regular and top.is_directory and top is await found(mount, "0000")
        assert await found(mount, "%~f0000") is handle.inode
        await closed(mount, handle)

    mount.loop.run(look)


def test_a_file_beside_a_directory_that_is_gone_has_its_own_name_alone(mount: Composed, store: Noted) -> None:
    async def look() -> None:
        await put_all(store, {"d/sub": b"beside"})
        inode, top = await found(mount, "%~fsub"), await found(mount, "sub")
        top.lookups = 1
        await mount.parts.listings.complete(top)
        mount.loop._clock.jump(2 * TTL)
        await store.delete("d/sub/x")
        assert await found(mount, "sub") is inode
        assert b"%~fsub" not in mount.parts.listings.directory(await mount._walk("d")).entries
        assert not mount.parts.inodes.has_name(top)

    mount.loop.run(look)


def test_an_open_file_that_another_client_has_removed_has_no_name(mount: Composed, store: Noted) -> None:
    async def look() -> None:
        handle = await mount.parts.file_io.open(await found(mount, "0000"), 0, TASK)
        mount.loop._clock.jump(2 * TTL)
        await store.delete("d/0000")
        await absent(mount, "0000")
        assert not mount.parts.inodes.has_name(handle.inode)
        await closed(mount, handle)

    mount.loop.run(look)


def test_a_refusal_makes_no_name_absent(mount: Composed, store: Noted) -> None:
    async def look() -> None:
        store.errors["head", "d/0000"] = [denied()]
        with fails(errno.EACCES):
            await found(mount, "0000")
        assert (await found(mount, "0000")).size == 5000

    mount.loop.run(look)


def test_what_was_made_here_long_ago_is_what_the_bucket_has(mount: Composed, store: Noted) -> None:
    async def make() -> None:
        for name in ("0001", "0003"):
            await mount.parts.creations.make_object(await mount._walk("d"), name.encode(), 0o100644, 0, 0)

    async def look() -> None:
        await store.delete("d/0001")
        await put_all(store, {"d/0003": b"theirs"})
        await absent(mount, "0001")
        assert (await found(mount, "0003")).size == len(b"theirs")

    mount.loop.run(make)
    mount.loop.passes(2 * TTL)
    mount.loop.run(look)


async def _makes(mount: Composed) -> None:
    await mount.parts.creations.make_object(await mount._walk("d"), b"0001", 0o100644, 0, 0)


async def _removes(mount: Composed) -> None:
    await mount.unlink("d/0000")


@pytest.mark.parametrize(("work", "name"), [(_makes, "0001"), (_removes, "0000")])
def test_what_is_done_here_while_the_bucket_is_asked_is_newer_than_its_answer(
    mount: Composed, store: Noted, work: Callable[[Composed], Awaitable[None]], name: str
) -> None:
    outcomes: dict[str, Any] = {}

    async def look() -> None:
        held = store.after["list", f"d/{name}/"] = trio.Event()
        await begun(mount, lambda: told(outcomes, "lookup", lambda: found(mount, name)))
        assert ("list", f"d/{name}/") in store.reached and store.asked[-2:] == ["head", ONE]
        del store.after["list", f"d/{name}/"]
        await work(mount)
        await settled(held)
        if work is _makes:
            assert outcomes["lookup"] is await found(mount, name)
        else:
            assert "FileNotFoundError" in outcomes["lookup"]
            await absent(mount, name)

    mount.loop.run(look)


@pytest.mark.parametrize("in_a_row", [False, True], ids=["by itself", "by a page"])
def test_what_is_made_in_a_directory_while_its_absence_is_told_keeps_its_place(
    mount: Composed, store: Noted, in_a_row: bool
) -> None:
    """Another client has removed all of `d/sub`, in which somebody of ours works."""
    outcomes: dict[str, Any] = {}
    handles: list[Handle] = []
    what = ("list", "d/") if in_a_row else ("list", "d/sub/")

    async def look() -> None:
        top = await found(mount, "sub")
        await mount.parts.listings.complete(top)
        mount.loop._clock.jump(2 * TTL)
        await store.delete("d/sub/x")
        if in_a_row:
            for number in range(2 * (FILES - WALK), 2 * FILES, 2):
                await found(mount, f"{number:04d}")
        held = store.after[what] = trio.Event()
        await begun(mount, lambda: told(outcomes, "lookup", lambda: found(mount, "sub")))
        assert what in store.reached
        del store.after[what]
        handles.append(await mount._opened(top, b"new", os.O_CREAT | os.O_WRONLY))
        await mount.parts.file_io.write(handles[0], 0, b"ours")
        asked(store)
        await settled(held)
        assert outcomes["lookup"] is top
        assert asked(store) == {}
        await closed(mount, handles[0])

    mount.loop.run(look)
    assert bodies(store)["d/sub/new"] == b"ours"


def test_a_directory_of_which_the_bucket_has_nothing_yet_is_there(mount: Composed, store: Noted) -> None:
    async def look() -> None:
        top = await found(mount, "sub")
        handle = await mount._opened(top, b"new", os.O_CREAT | os.O_WRONLY)
        await mount.parts.file_io.write(handle, 0, b"ours")
        await store.delete("d/sub/x")  # another client
        mount.loop._clock.jump(2 * TTL)
        asked(store)
        assert await found(mount, "sub") is top
        assert asked(store) == {}
        await closed(mount, handle)

    mount.loop.run(look)
    assert bodies(store)["d/sub/new"] == b"ours"


@pytest.mark.parametrize("ways", [("d", "e"), ("d", "e", "d")], ids=["once", "and back"])
@pytest.mark.parametrize("name", ["0000", "sub"])
def test_a_name_that_is_asked_for_while_its_directory_is_renamed_is_there(
    mount: Composed, store: Noted, name: str, ways: tuple[str, ...]
) -> None:
    """The bucket is asked for its old key, which is gone when it answers."""
    outcomes: dict[str, Any] = {}
    question = ("head", "d/0000") if name == "0000" else ("list", "d/sub/")

    async def look() -> None:
        before = mount.parts.listings.directory(await mount._walk("d")).entries[name.encode()]
        asking, answer, gone = trio.Event(), trio.Event(), trio.Event()
        store.before[question], store.after[question] = asking, answer
        await begun(mount, lambda: told(outcomes, "lookup", lambda: found(mount, name)))
        assert question in store.reached
        del store.before[question]
        store.after["delete_many"] = gone
        await begun(mount, lambda: mount.rename(*ways[:2]))
        await settled(asking)
        store.after.clear()
        await settled(gone)
        if len(ways) > 2:
            await mount.rename(*ways[1:])
        await settled(answer)
        assert outcomes["lookup"] is before
        assert mount.parts.inodes.key(before).startswith(f"{ways[-1]}/{name}")

    mount.loop.run(look)


@pytest.mark.parametrize("left", [0, 1], ids=["a key of the full length", "a longer one"])
def test_nothing_is_asked_for_with_a_key_that_is_too_long(mount: Composed, store: Noted, left: int) -> None:
    """A directory's key ends in a slash."""
    folder = "/".join(["d", "a" * 255, "b" * 255, "c" * 255])
    name = "n" * (KEY_MAX - len(folder) - 1 + left)

    async def fill() -> None:
        await put_all(store, {f"{folder}/{number:04d}": b"x" for number in range(FILES)})
        await mount.parts.listings.complete(await mount._walk(folder))

    async def look() -> None:
        top = await mount._walk(folder)
        asked(store)
        with fails(errno.ENAMETOOLONG if left else errno.ENOENT):
            await mount.parts.namespace.lookup(top, name.encode())
        assert asked(store) == ({} if left else {"head": 1})

    mount.loop.run(fill)
    mount.loop.passes(2 * TTL)
    mount.loop.run(look)


# Names in a row


async def looked_up(mount: Composed, numbers: range) -> None:
    top = await mount._walk("d")
    for number in numbers:
        assert (await mount.parts.namespace.lookup(top, b"%04d" % number)).size == 5000


def test_names_in_a_row_are_told_by_pages(mount: Composed, store: Noted) -> None:
    async def look() -> None:
        asked(store)
        await looked_up(mount, range(0, 2 * FILES, 2))
        alone = WALK - 1
        assert asked(store) == {"head": alone, ONE: alone, PAGES: -(-(FILES - alone) // PAGE)}

    mount.loop.run(look)


def test_what_a_page_does_not_show_is_absent_and_asked_for_no_more(mount: Composed, store: Noted) -> None:
    async def look() -> None:
        handle = await mount.parts.file_io.open(await found(mount, "0410"), 0, TASK)
        mount.loop._clock.jump(2 * TTL)
        await store.delete("d/0410")
        await looked_up(mount, range(398, 400 + 2 * WALK, 2))
        asked(store)
        for name in ("0407", "0409", "0410", "0411", "0413"):
            await absent(mount, name)
        assert asked(store) == {}
        assert not mount.parts.inodes.has_name(handle.inode)
        await closed(mount, handle)

    mount.loop.run(look)


def test_what_was_passed_by_who_reads_the_directory_is_asked_for_no_more(mount: Composed, store: Noted) -> None:
    async def look() -> None:
        directory, walk = mount.parts.listings.walk(await mount._walk("d"))
        await mount.parts.listings.advance(directory, walk, have=0)
        asked(store)
        for name in ("0001", "0003"):
            await absent(mount, name)
        assert asked(store) == {}
        await absent(mount, "0401")
        assert asked(store) == ALONE, "to there nobody has read"

    mount.loop.run(look)


def test_names_in_a_row_of_which_none_is_there_are_told_by_a_page(mount: Composed, store: Noted) -> None:
    async def look() -> None:
        asked(store)
        for number in range(401, 431, 2):
            await absent(mount, f"{number:04d}")
        alone = WALK - 1
        assert asked(store) == {"head": alone, ONE: alone, PAGES: 1}

    mount.loop.run(look)


def test_who_waits_for_a_page_that_shows_his_name_does_not_ask_for_another(mount: Composed, store: Noted) -> None:
    outcomes: dict[str, Any] = {}

    async def look() -> None:
        await looked_up(mount, range(400, 400 + 2 * (WALK - 1), 2))
        asked(store)
        held = store.before["list", "d/"] = trio.Event()
        for name in ("0404", "0406", "0408"):
            await begun(mount, lambda name=name: told(outcomes, name, lambda: found(mount, name)))  # type: ignore[misc]
        assert ("list", "d/") in store.reached
        await settled(held)
        assert asked(store) == {PAGES: 1}
        assert [outcomes[name].name for name in ("0404", "0406", "0408")] == [b"0404", b"0406", b"0408"]

    mount.loop.run(look)


def test_a_refusal_says_why() -> None:
    assert str(refuse(errno.ENOENT)) == "[Errno 2] No such file or directory"
    assert str(refuse(errno.EINVAL, "it is a guess")) == "[Errno 22] it is a guess"
