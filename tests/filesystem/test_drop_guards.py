"""What `sosfs drop` forgets and what it leaves, place by place: each guard by itself.

In one process; what was forgotten is told by the requests that it costs to know it again.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from sosfs.config.parameters import Durability
from sosfs.errors import StoreError
from sosfs.fuse.negative_entries import NegativeEntries
from sosfs.s3.protocol import Acl, Grant, Properties
from tests.support.composed import Composed, composed
from tests.support.drive import fails
from tests.support.dropping import Kernel, dropped
from tests.support.fake_store import ANYONE, OWNER
from tests.support.held import Held, begun, bodies, closed, opened, put_all, settled

MIB = 1 << 20
PUBLIC = Acl(OWNER, (Grant(OWNER, "FULL_CONTROL"), Grant(ANYONE, "READ")))


async def cost(mount: Composed, store: Held, *paths: str) -> list[int]:
    """How many GETs it costs to read each file."""
    counts = []
    for path in paths:
        reader = await opened(mount, os.O_RDONLY, path)
        before = store.calls["get"]
        await mount.parts.file_io.read(reader, 0, reader.inode.size)
        counts.append(store.calls["get"] - before)
        await mount.parts.file_io.release(reader)
        await trio.testing.wait_all_tasks_blocked()
    return counts


async def asked(mount: Composed, store: Held, path: str) -> int:
    """How many requests it costs to look at a file."""
    before = store.calls["head"] + store.calls["get"]
    await mount._walk(path)
    return store.calls["head"] + store.calls["get"] - before


def on_disk(mount: Composed) -> int:
    """How many versions the disk cache holds."""
    return len(list((mount._settings.state_dir / "blocks").glob("*.data")))


@pytest.fixture
def cached(tmp_path: Path, store: Held) -> Iterator[Composed]:
    """A mount with a disk cache."""
    with composed(store, tmp_path, cache_size=64 * MIB) as mount:
        yield mount
        mount.loop.run(store.release)


FILES = {"d/file": b"A" * MIB, "d/file2": b"B" * MIB, "d/file/below": b"C" * MIB, "other": b"D" * MIB}


async def _put_all(store: Held) -> None:
    await put_all(store, {key: body for key, body in FILES.items() if key != "d/file/below"})


async def _read_all(mount: Composed, store: Held) -> None:
    await mount.tree()
    await cost(mount, store, "d/file", "d/file2", "other")


# A file, a tree, all


def test_a_file_is_dropped_and_none_whose_name_begins_alike(cached: Composed, store: Held) -> None:
    async def main() -> None:
        await _put_all(store)
        await _read_all(cached, store)
        told = await dropped(cached, "d/file")
        assert (told["files"], told["memory_bytes"], told["kept_files"]) == (1, MIB, 0)
        assert told["disk_bytes"] >= MIB
        assert on_disk(cached) == 2
        assert await asked(cached, store, "d/file") > 0
        assert await cost(cached, store, "d/file2", "other") == [0, 0]
        assert await asked(cached, store, "other") == 0
        cached.parts.blocks.forget(lambda key: True)
        assert await cost(cached, store, "d/file2", "other") == [0, 0], "nor on the disk"

    cached.loop.run(main)


@pytest.mark.parametrize("path", ["", "d"])
def test_of_all_nothing_stays_on_the_disk_of_a_tree_what_is_no_more_does(
    cached: Composed, store: Held, path: str
) -> None:
    """The names on the disk do not tell whose they are: an old version of a file is known to nobody."""

    async def main() -> None:
        await _put_all(store)
        await _read_all(cached, store)
        await store.put("d/file", b"newer" * 1000, Properties())
        cached.loop._clock.jump(1000)
        await cached.tree()
        await cost(cached, store, "d/file")
        assert on_disk(cached) == 4
        told = await dropped(cached, path)
        assert told["files"] == (3 if not path else 2)
        assert on_disk(cached) == (0 if not path else 2)

    cached.loop.run(main)


def test_what_this_mount_has_not_looked_at_is_dropped_as_far_as_it_is_remembered(cached: Composed, store: Held) -> None:
    """The mount before has: its attributes and blocks are on the disk. A file of which nothing is known may be new."""

    async def look(*paths: str) -> list[int]:
        return [await asked(cached, store, path) for path in paths]

    async def one() -> None:
        told = await dropped(cached, "d/file")
        assert (told["files"], told["kept_files"]) == (1, 0)
        assert told["disk_bytes"] >= MIB
        assert on_disk(cached) == 2
        assert (await dropped(cached, "d/absent"))["files"] == 0
        assert (await look("d/file"))[0] > 0
        assert await look("d/file2", "other") == [0, 0]

    async def tree() -> None:
        told = await dropped(cached, "d")
        assert told["files"] == 2, "and its marker is none"
        assert on_disk(cached) == 1
        one, two, other = await look("d/file", "d/file2", "other")
        assert one and two
        assert other == 0

    async def everything() -> None:
        told = await dropped(cached, "")
        assert told["files"] == 3
        assert on_disk(cached) == 0
        assert all(await look("d/file", "other"))

    cached.loop.run(partial(_put_all, store))  # once: stored a second later again they would be other versions
    cached.loop.run(partial(put_all, store, {"d/": b""}))
    for check in (one, tree, everything):
        cached.loop.run(partial(_read_all, cached, store))
        cached.loop.run(partial(cached._walk, "d"))
        cached.stop()
        cached.start()
        cached.loop.run(check)


def test_a_file_that_is_new_in_the_bucket_is_found_after_its_name_was_dropped(mount: Composed, store: Held) -> None:
    kernel = Kernel()

    async def main() -> None:
        absent = NegativeEntries(ttl=100.0)
        await put_all(store, {"d/old": b"old", "e/old": b"old"})
        await mount.tree()
        for path in ("d", "e"):
            absent.add((await mount._walk(path)).number, b"new")
        await put_all(store, {"d/new": b"new", "e/new": b"new", "d/new folder/file": b"new"})
        for path in ("d/new", "e/new", "d/new folder/file"):
            with pytest.raises(FileNotFoundError):
                await mount._walk(path)
        await dropped(mount, "d/new", kernel=kernel, absent=absent)
        assert kernel.names == [((await mount._walk("d")).number, b"new")]
        for path in ("d/new", "d/new folder/file"):
            assert (await mount._walk(path)).size == 3
        with pytest.raises(FileNotFoundError):
            await mount._walk("e/new")

    mount.loop.run(main)


def test_so_is_one_in_a_directory_that_is_new(mount: Composed, store: Held) -> None:
    async def main() -> None:
        await put_all(store, {"d/old": b"old"})
        await mount.tree()
        await put_all(store, {"d/new folder/file": b"new"})
        with pytest.raises(FileNotFoundError):
            await mount._walk("d/new folder/file")
        await dropped(mount, "d/new folder/file")
        assert (await mount._walk("d/new folder/file")).size == 3

    mount.loop.run(main)


def test_what_is_in_memory_of_files_that_are_no_more_is_dropped_with_their_tree(mount: Composed, store: Held) -> None:
    async def main() -> None:
        await put_all(store, {"d/file": b"A" * MIB, "d/other": b"B" * MIB, "e/file": b"C" * MIB})
        await cost(mount, store, "d/file", "d/other", "e/file")
        await store.delete("d/file")
        mount.loop._clock.jump(1000)
        assert "d/file" not in await mount.tree()
        assert mount.parts.blocks.used == 3 * MIB
        assert (await dropped(mount, "d"))["memory_bytes"] == 2 * MIB
        assert mount.parts.blocks.used == MIB

    mount.loop.run(main)


def test_the_directory_above_is_listed_again_and_no_other(mount: Composed, store: Held) -> None:
    async def main() -> None:
        await put_all(store, {"d/e/file": b"bytes", "d/f/file": b"bytes"})
        await mount.tree()
        await dropped(mount, "d/e/file")
        before = store.calls["list"]
        for path in ("", "d", "d/f"):
            assert mount.parts.listings.is_known(mount.parts.listings.directory(await mount._walk(path)))
        assert store.calls["list"] == before
        assert not mount.parts.listings.is_known(mount.parts.listings.directory(await mount._walk("d/e")))

    mount.loop.run(main)


# What is known of one


def test_attributes_and_acl_are_asked_for_again(mount: Composed, store: Held) -> None:
    async def change(mode: int) -> None:
        inode = await mount._walk("file")
        inode.mode = stat.S_IFREG | mode
        mount.parts.attributes.changed(inode, posix={"mode"})
        await mount.parts.attributes.write_now(inode)

    async def main() -> None:
        await mount.write("file", b"bytes", flags=os.O_CREAT)
        assert await asked(mount, store, "file") == 0
        await store.put_acl("file", PUBLIC)
        assert (await dropped(mount, "file"))["files"] == 1
        assert await asked(mount, store, "file") > 0
        await change(0o600)
        assert store._stored["file"].acl == PUBLIC, "that of its first moment is not trusted any more"

    mount.loop.run(main)


def test_what_is_remembered_of_a_dropped_file_is_forgotten_for_the_next_mount(mount: Composed, store: Held) -> None:
    async def main() -> None:
        for path in ("file", "other"):
            await mount.write(path, b"bytes", flags=os.O_CREAT)
        await dropped(mount, "file")

    mount.loop.run(main)
    mount.stop()
    mount.start()
    assert mount.loop.run(partial(asked, mount, store, "other")) == 0
    assert mount.loop.run(partial(asked, mount, store, "file")) == 1


def test_who_opens_a_dropped_file_finds_no_old_pages(mount: Composed, store: Held) -> None:
    async def main() -> None:
        await put_all(store, {"file": b"bytes", "other": b"other"})
        inodes = [await mount._walk(path) for path in ("file", "other")]
        for inode in inodes:
            mount.parts.pages.hold(inode)
        await dropped(mount, "file")
        assert [mount.parts.pages.hold(inode) for inode in inodes] == [False, True]

    mount.loop.run(main)


@pytest.mark.parametrize("is_stored_meanwhile", [False, True])
def test_an_open_file_goes_on_with_its_version_and_the_next_open_asks(
    mount: Composed, store: Held, is_stored_meanwhile: bool
) -> None:
    """Also where this mount has stored that itself, before or after it was opened."""

    async def main() -> None:
        await mount.write("file", b"before" * 1000 if is_stored_meanwhile else b"ours" * 1000, flags=os.O_CREAT)
        reader = await opened(mount, os.O_RDONLY)
        if is_stored_meanwhile:
            await mount.write("file", b"ours" * 1000, flags=os.O_TRUNC)
        assert bytes(await mount.parts.file_io.read(reader, 0, 4)) == b"ours"
        await store.put("file", b"their" * 1000, Properties())
        await dropped(mount, "file")
        other = await opened(mount, os.O_RDONLY)
        assert bytes(await mount.parts.file_io.read(other, 0, 5)) == b"their"
        for handle in (reader, other):
            await mount.parts.file_io.release(handle)

    mount.loop.run(main)


# What stays


def test_what_waits_to_be_sent_is_kept_and_told(tmp_path: Path, store: Held) -> None:
    """Bytes, attributes of a file, and of a directory; on the disk and in memory too."""

    async def main(mount: Composed) -> None:
        await put_all(store, {"mode": b"A" * MIB, "clean": b"B" * MIB, "d/": b"", "d/x": b"x"})
        await cost(mount, store, "mode", "clean")
        for path in ("mode", "d"):
            inode = await mount._walk(path)
            inode.mode = stat.S_IFMT(inode.mode) | 0o700
            mount.parts.attributes.changed(inode, posix={"mode"})
        await mount.write("new", b"new", flags=os.O_CREAT)
        told = await dropped(mount, "")
        assert told["kept"] == ["mode", "new"]
        assert (told["files"], told["kept_files"]) == (1, 2)
        assert on_disk(mount) == 1
        assert await cost(mount, store, "mode") == [0]
        mount.parts.blocks.forget(lambda key: True)
        assert await cost(mount, store, "mode") == [0]
        before = store.calls.copy()
        await mount.parts.attributes.revalidate(inode)
        assert store.calls == before, "it is as it was set, whatever the bucket has"
        for path in ("mode", "d"):
            assert stat.S_IMODE((await mount._walk(path)).mode) == 0o700

    with composed(store, tmp_path, cache_size=64 * MIB, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(main, mount))
        mount.loop.passes(5)
        assert int(store._stored["d/"].object.properties.metadata["mode"]) & 0o7777 == 0o700
        assert bodies(store)["new"] == b"new"


def test_what_the_bucket_has_by_now_waits_for_nothing(mount: Composed, store: Held) -> None:
    """The task that sends a file has a moment to go; nobody writes."""

    async def main() -> None:
        await mount.write("file", b"bytes" * 1000, flags=os.O_CREAT)
        told = await dropped(mount, "")
        assert (told["kept"], told["files"]) == ([], 1)
        assert await asked(mount, store, "file") > 0

    mount.loop.run(main)


def test_what_went_up_while_its_task_waits_to_try_again_waits_for_nothing(mount: Composed, store: Held) -> None:
    async def main() -> None:
        store.errors["put", "file"] = [StoreError(errno.EIO, "put", detail="no answer")]
        with fails(errno.EIO):
            await mount.write("file", b"bytes" * 1000, flags=os.O_CREAT)
        handle = await opened(mount, os.O_RDONLY)
        await mount.parts.commits.commit(handle.inode)
        await mount.parts.file_io.release(handle)
        assert (await dropped(mount, ""))["kept"] == []
        assert bodies(store) == {"file": b"bytes" * 1000}

    mount.loop.run(main)
    mount.loop.passes(1000)
    assert store.calls["put"] == 1


def test_so_does_what_somebody_has_sent_before_its_task_began(tmp_path: Path, store: Held) -> None:
    """As `sync` does; the task that would have sent it comes a moment later, and finds nothing to do."""

    async def main(mount: Composed) -> None:
        await mount.write("file", b"bytes" * 1000, flags=os.O_CREAT)
        await mount.settle()
        assert bodies(store) == {"file": b"bytes" * 1000}
        told = await dropped(mount, "")
        assert (told["kept"], told["files"]) == ([], 1)

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(main, mount))
        mount.loop.passes(10)
        assert store.calls["put"] == 1


def test_what_is_in_memory_of_a_file_that_is_open_for_writing_stays(mount: Composed, store: Held) -> None:
    async def main() -> None:
        await put_all(store, {"d/file": b"A" * MIB, "d/other": b"B" * MIB})
        writer = await opened(mount, path="d/file")
        await mount.parts.file_io.read(writer, 0, MIB)
        await cost(mount, store, "d/other")
        kernel = Kernel()
        writer.inode.lookups += 1
        for path in ("d", "d/file", ""):
            assert (await dropped(mount, path, kernel=kernel))["kept"] == ["d/file"]
        assert writer.inode.number not in kernel.inodes
        before = store.calls.copy()
        await mount.parts.attributes.revalidate(writer.inode)
        assert bytes(await mount.parts.file_io.read(writer, 0, MIB)) == b"A" * MIB
        assert store.calls == before
        await mount.parts.file_io.release(writer)

    mount.loop.run(main)


def test_what_was_written_is_here_for_who_writes_on_though_the_bucket_has_it(mount: Composed, store: Held) -> None:
    async def main() -> None:
        await put_all(store, {"file": b"old"})
        writer = await opened(mount)
        await mount.parts.file_io.write(writer, 0, b"A" * MIB)
        await mount.parts.file_io.fsync(writer.inode)
        assert (await dropped(mount, ""))["kept"] == ["file"]
        before = store.calls.copy()
        assert bytes(await mount.parts.file_io.read(writer, 0, MIB)) == b"A" * MIB
        assert store.calls == before
        await closed(mount, writer)

    mount.loop.run(main)


def test_what_somebody_has_open_is_kept_for_him_while_its_name_goes(mount: Composed, store: Held) -> None:
    async def main() -> None:
        await put_all(store, {"file": b"A" * MIB})
        reader = await opened(mount, os.O_RDONLY)
        going = store.before["delete", "file"] = trio.Event()
        await begun(mount, partial(mount.unlink, "file"))
        assert ("delete", "file") in store.reached
        await dropped(mount, "")
        await settled(going)
        assert bytes(await mount.parts.file_io.read(reader, 0, MIB)) == b"A" * MIB
        await mount.parts.file_io.release(reader)

    mount.loop.run(main)
    assert bodies(store) == {}


@pytest.mark.parametrize("is_sending", [True, False], ids=["being sent", "open"])
def test_what_is_being_written_or_sent_is_kept(mount: Composed, store: Held, is_sending: bool) -> None:
    async def main() -> None:
        await put_all(store, {"file": b"bytes"})
        handle = await opened(mount)
        await mount.parts.file_io.write(handle, 0, b"B")
        store.before["put"] = held = trio.Event()
        if is_sending:
            await begun(mount, partial(mount.parts.file_io.flush, handle))
            assert store.reached
        assert (await dropped(mount, ""))["kept"] == ["file"]
        assert bytes(await mount.parts.file_io.read(handle, 0, 5)) == b"Bytes"
        held.set()
        await trio.testing.wait_all_tasks_blocked()
        await closed(mount, handle)
        assert bodies(store) == {"file": b"Bytes"}

    mount.loop.run(main)


@pytest.mark.parametrize("path", ["", "d", "d/file"])
def test_the_kernel_forgets_what_it_alone_still_knows(mount: Composed, store: Held, path: str) -> None:
    """Of too many files those are forgotten here that it has not given back."""

    async def main() -> None:
        await put_all(store, {"d/file": b"bytes"})
        directory, inode, kernel = await mount._walk("d"), await mount._walk("d/file"), Kernel()
        inode.lookups += 1
        assert directory.directory is not None
        del directory.directory.entries[b"file"]
        mount.parts.inodes.lend(directory, [inode])
        await dropped(mount, path, kernel=kernel)
        assert inode.number in kernel.inodes
        mount.parts.inodes.give_back(inode.number, 1)

    mount.loop.run(main)


def test_the_kernel_is_told_only_when_nobody_gives_it_pages_any_more(
    mount: Composed, store: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    class Telling(Kernel):
        async def forget(self, inodes: Any, names: Any) -> None:
            order.append("forget")

    async def wait_for(inode: Any) -> None:
        order.append("waited")

    async def main() -> None:
        await put_all(store, {"file": b"bytes"})
        inode = await mount._walk("file")
        inode.lookups += 1
        monkeypatch.setattr(mount.parts.pages, "wait_for", wait_for)
        await dropped(mount, "file", kernel=Telling())
        inode.lookups -= 1
        assert order == ["waited", "forget"]

    mount.loop.run(main)
