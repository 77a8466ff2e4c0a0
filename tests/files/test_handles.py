"""What a handle goes on with when its file is replaced, renamed or removed, and what is fetched and left for that."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from sosfs.cache.blocks import BLOCK, Run
from sosfs.config.parameters import Durability
from sosfs.files.open_file import Handle
from tests.support.composed import LONG, TASK, Composed, composed
from tests.support.drive import fails
from tests.support.held import Held, begun, bodies, closed, forget, opened, put_all, settled, silence, stored, told
from tests.support.kernel import Kernel

KIB = 1 << 10
OLD, THEIRS = b"o" * 300 * KIB, b"t" * 200 * KIB


@pytest.fixture(params=[Durability.BUCKET])
def mount(request: pytest.FixtureRequest, tmp_path: Path, store: Held) -> Iterator[Composed]:
    """A mount without a kernel."""
    with composed(store, tmp_path, durability=request.param) as mount:
        yield mount
        mount.loop.run(store.release)


@pytest.fixture
def in_parts(tmp_path: Path, store: Held, monkeypatch: pytest.MonkeyPatch) -> Iterator[Composed]:
    """One whose files go up in small parts while they are written."""
    monkeypatch.setattr("tests.support.fake_store.PART_MIN", 1)
    monkeypatch.setattr("sosfs.files.write_behind.STREAM_MIN", KIB)
    with composed(store, tmp_path, part_size=64 * KIB) as mount:
        yield mount
        mount.loop.run(store.release)


journal = pytest.mark.parametrize("mount", [Durability.JOURNAL], indirect=True)


def run(mount: Composed, work: Callable[[Composed], Awaitable[None]]) -> None:
    mount.loop.run(partial(work, mount))


async def read(mount: Composed, handle: Handle, size: int = 1000 * KIB) -> bytes:
    mount.parts.blocks.forget(lambda key: True)
    return bytes(await mount.parts.file_io.read(handle, 0, size))


async def new(mount: Composed, path: str = "file", body: bytes = OLD) -> Handle:
    parent, name = await mount._parent(path)
    handle = await mount._opened(parent, name, os.O_CREAT | os.O_RDWR)
    await mount.parts.file_io.write(handle, 0, body)
    return handle


# Another client replaces it


def test_who_has_read_nothing_yet_begins_with_the_new_version(mount: Composed, store: Held) -> None:
    kernel = mount.parts.pages._kernel = Kernel()

    async def main(mount: Composed) -> None:
        await put_all(store, {"file": OLD})
        handle = await opened(mount, os.O_RDONLY)
        await put_all(store, {"file": THEIRS})
        assert await read(mount, handle) == THEIRS
        assert handle.inode.size == len(THEIRS)
        assert kernel.attributes == [handle.inode.number], "it knows another size"
        assert await mount._walk("file") is handle.inode
        await closed(mount, handle)

    run(mount, main)


@pytest.mark.parametrize("is_alone", [True, False])
def test_who_has_read_of_the_old_version_keeps_its_size(mount: Composed, store: Held, is_alone: bool) -> None:
    """It is told that the rest is gone, and so is another handle of the same inode. The name leads to the new one."""

    async def main(mount: Composed) -> None:
        await put_all(store, {"file": OLD})
        handle = await opened(mount, os.O_RDONLY)
        assert await read(mount, handle, 10) == OLD[:10]
        late = handle if is_alone else await opened(mount, os.O_RDONLY)
        late.is_unread = not is_alone
        await put_all(store, {"file": THEIRS})
        with fails(errno.ESTALE):
            await read(mount, late)
        assert handle.inode.size == len(OLD)
        found = await mount._walk("file")
        assert (found is handle.inode, found.size) == (False, len(THEIRS))
        for one in {handle, late}:
            await closed(mount, one)

    run(mount, main)


def test_who_has_read_what_this_mount_has_stored_is_told_that_it_is_gone(mount: Composed, store: Held) -> None:
    async def main(mount: Composed) -> None:
        await put_all(store, {"file": OLD})
        reader, writer = await opened(mount, os.O_RDONLY), await opened(mount)
        await mount.parts.file_io.write(writer, 0, b"new")
        await closed(mount, writer)
        assert await read(mount, reader, 10) == b"new" + OLD[3:10]
        await put_all(store, {"file": THEIRS})
        with fails(errno.ESTALE):
            await read(mount, reader)
        await closed(mount, reader)

    run(mount, main)


def test_who_reads_a_changed_file_while_it_is_renamed_reads_on(mount: Composed, store: Held) -> None:
    """What is asked for under the old name is not there any more when the answer comes."""

    async def main(mount: Composed) -> None:
        await put_all(store, {"file": OLD})
        handle = await opened(mount)
        await mount.parts.file_io.write(handle, 0, b"new")
        mount.parts.blocks.forget(lambda key: True)
        store.before["get"] = trio.Event()
        outcomes: dict[str, Any] = {}
        await begun(mount, partial(told, outcomes, "read", partial(read, mount, handle)))
        assert ("get", "file") in store.reached
        await mount.rename("file", "moved")
        assert (list(bodies(store)), outcomes) == (["moved"], {})
        await settled(store.before.pop("get"))
        assert outcomes == {"read": b"new" + OLD[3:]}
        await closed(mount, handle)

    run(mount, main)


def test_a_file_that_was_forgotten_is_looked_up_again_by_who_opens_it(mount: Composed, store: Held) -> None:
    """As by the kernel on ESTALE: its name leads to another inode, which has what is written from now on."""

    async def main(mount: Composed) -> None:
        await put_all(store, {"file": OLD, "other": OLD})
        inode, _ = await mount._walk("file"), await mount._walk("other")
        mount.loop._clock.jump(LONG)
        forget(mount)
        assert await mount._walk("file") is not inode
        for flags in (os.O_RDONLY, os.O_RDWR, os.O_RDWR | os.O_TRUNC):
            with fails(errno.ESTALE):
                await mount.parts.file_io.open(inode, flags, TASK)
        assert stored(store) == OLD

    run(mount, main)


# What the kernel is being given of it


@pytest.mark.parametrize("cut", ["truncate", "open"])
def test_who_cuts_a_file_waits_for_what_the_kernel_was_given_while_he_waited_for_a_commit(
    mount: Composed, store: Held, monkeypatch: pytest.MonkeyPatch, cut: str
) -> None:
    """Else the kernel would have bytes that are cut off, and count them as the file's."""
    kernel, may = Kernel(), trio.Event()
    mount.parts.pages._kernel = kernel

    async def slow(work: Callable[..., Any], *arguments: Any, **_: Any) -> Any:
        await may.wait()
        return work(*arguments)

    async def main(mount: Composed) -> None:
        await put_all(store, {"file": OLD})
        reader, found = await opened(mount, os.O_RDONLY), Run(0, 1)
        inode, open_file = reader.inode, reader.open_file
        assert reader.source is not None
        assert mount.parts.pages.hold(inode)
        monkeypatch.setattr(trio.to_thread, "run_sync", slow)
        found.body = memoryview(OLD[:BLOCK])
        found.done.set()
        file_io = mount.parts.file_io
        with open_file.keeping_length():
            cutting: Callable[[], Awaitable[Any]] = partial(file_io.truncate, inode, 0)
            if cut == "open":
                cutting = partial(file_io.open, inode, os.O_WRONLY | os.O_TRUNC, 1)
            await begun(mount, cutting)
            mount.parts.pages.bring(inode, reader.source, [found])
            await trio.testing.wait_all_tasks_blocked()
        await trio.testing.wait_all_tasks_blocked()
        assert (inode.size, kernel.given) == (len(OLD), [])
        await settled(may)
        assert (inode.size, len(kernel.given)) == (0, 1)
        open_file.writers = 0  # whoever has opened it closes it
        await mount.settle()
        await closed(mount, reader)

    run(mount, main)


def test_pages_that_were_wrong_are_not_those_of_what_is_stored_next(mount: Composed, store: Held) -> None:
    async def main(mount: Composed) -> None:
        await put_all(store, {"file": OLD})
        handle = await opened(mount)
        mount.parts.pages.hold(handle.inode)
        mount.parts.pages._distrust(handle.inode)
        await mount.parts.file_io.write(handle, 0, b"new")
        await closed(mount, handle)
        assert not mount.parts.pages.hold(handle.inode)

    run(mount, main)


# It is removed


@pytest.mark.parametrize("is_large", [True, False])
def test_what_is_too_large_to_be_kept_is_not_fetched_when_it_is_removed(
    mount: Composed, store: Held, monkeypatch: pytest.MonkeyPatch, is_large: bool
) -> None:
    """Or what the disk has no room for. Its readers are told; nothing of it is fetched in vain."""

    async def main(mount: Composed) -> None:
        await put_all(store, {"file": OLD})
        handle = await opened(mount, os.O_RDONLY)
        if is_large:
            monkeypatch.setattr("sosfs.files.file_io.DETACH_MAX", len(OLD) - 1)
        else:
            disk = mount.parts.file_io._spools.disk
            room = disk.room()
            monkeypatch.setattr(type(disk), "room", lambda _: room._replace(free=len(OLD)))
        await mount.unlink("file")
        assert store.calls["get"] == 0
        with fails(errno.ESTALE):
            await read(mount, handle)
        await closed(mount, handle)

    run(mount, main)
    assert bodies(store) == {}


@journal
def test_nothing_is_fetched_or_kept_for_nobody_when_it_is_removed(mount: Composed, store: Held) -> None:
    """It was changed, and is not sent yet."""

    async def main(mount: Composed) -> None:
        await put_all(store, {"file": OLD})
        await mount.write("file", b"n" * 100)
        inode = await mount._walk("file")
        assert mount.parts.commits.drafts == {inode}
        await mount.unlink("file")
        assert store.calls["get"] == 0
        assert mount.parts.commits.drafts == set()
        assert inode.pins == 0

    run(mount, main)
    mount.loop.passes(5)
    assert bodies(store) == {}


def test_the_upload_of_a_removed_file_goes_at_once_though_it_is_open(in_parts: Composed, store: Held) -> None:
    async def main(mount: Composed) -> None:
        handle = await new(mount)
        await mount.parts.file_io.write(handle, len(OLD), OLD)
        await trio.testing.wait_all_tasks_blocked()
        assert len(store._uploads) == 1
        await mount.unlink("file")
        assert store._uploads == {}
        assert await read(mount, handle) == OLD + OLD
        await closed(mount, handle)

    run(in_parts, main)


def test_a_removal_stops_what_is_being_sent(in_parts: Composed, store: Held) -> None:
    """It is not waited for, and nothing of it is ever shown."""

    async def main(mount: Composed) -> None:
        handle = await new(mount, body=OLD * 5)
        store.before["upload_part"] = trio.Event()
        ends: dict[str, Any] = {}
        await begun(mount, partial(told, ends, "flush", partial(mount.parts.file_io.flush, handle)))
        await begun(mount, partial(told, ends, "unlink", partial(mount.unlink, "file")))
        await settled(store.before.pop("upload_part"))
        assert ends == {"flush": None, "unlink": None}
        assert store.calls["complete_multipart"] == 0
        assert store._uploads == {}
        await mount.parts.file_io.release(handle)

    run(in_parts, main)
    assert bodies(store) == {}


def test_after_a_removal_that_fails_the_file_is_sent(in_parts: Composed, store: Held) -> None:
    """Its old bytes, which a reader may need, could not be had."""

    async def main(mount: Composed) -> None:
        await put_all(store, {"file": OLD * 5})
        handle = await opened(mount)
        await mount.parts.file_io.write(handle, 0, THEIRS * 6)
        mount.parts.blocks.forget(lambda key: True)
        store.before["upload_part"] = trio.Event()
        ends: dict[str, Any] = {}
        await begun(mount, partial(told, ends, "flush", partial(mount.parts.file_io.flush, handle)))
        store.errors["get", "file"] = [silence("get")] * 20
        await begun(mount, partial(told, ends, "unlink", partial(mount.unlink, "file")))
        await settled(store.before.pop("upload_part"))
        assert "no answer" in ends["unlink"]
        store.errors.clear()
        await closed(mount, handle)

    run(in_parts, main)
    assert bodies(store) == {"file": THEIRS * 6 + (OLD * 5)[6 * len(THEIRS) :]}


def test_what_was_stored_without_an_answer_goes_with_its_name(mount: Composed, store: Held) -> None:
    async def main(mount: Composed) -> None:
        await _without_answer(mount, store)
        await mount.unlink("file")

    run(mount, main)
    mount.loop.passes(5)
    assert bodies(store) == {}


# It is renamed


def test_what_was_stored_without_an_answer_moves_with_its_name(mount: Composed, store: Held) -> None:
    async def main(mount: Composed) -> None:
        await _without_answer(mount, store)
        await mount.rename("file", "moved")

    run(mount, main)
    mount.loop.passes(60)
    assert bodies(store) == {"moved": b"new"}
    assert set(mount.loop.run(mount.tree)) == {"moved"}


async def _without_answer(mount: Composed, store: Held) -> None:
    """The bucket has a new file, and this mount does not know it."""
    store.lost.add("file")
    with fails(errno.EIO):
        await mount.write("file", b"new", flags=os.O_CREAT)
    assert stored(store) == b"new"


@journal
@pytest.mark.parametrize("crashes", [True, False])
def test_a_new_file_replaces_the_one_whose_name_it_took(mount: Composed, store: Held, crashes: bool) -> None:
    """Also after a crash, when the next mount sends it: to the name that it has by now."""

    async def main(mount: Composed) -> None:
        await put_all(store, {"file": OLD})
        await mount.write("new", b"new", flags=os.O_CREAT)
        await mount.rename("new", "file")
        assert (await mount._walk("file")).version is not None
        assert bodies(store) == {"file": OLD}

    run(mount, main)
    if crashes:
        mount.crash()
        mount.start()
    mount.loop.passes(5)
    assert bodies(store) == {"file": b"new"}


# What else a file shows


def test_a_symbolic_link_tells_where_it_leads_and_nothing_else_does(mount: Composed, store: Held) -> None:
    async def main(mount: Composed) -> None:
        await put_all(store, {"file": b"bytes"})
        root = mount.parts.inodes.root
        link = await mount.parts.creations.make_object(root, b"link", stat.S_IFLNK | 0o777, 0, 0, body=b"a/target")
        assert await mount.parts.file_io.target(link) == b"a/target"
        with fails(errno.EINVAL):
            await mount.parts.file_io.target(await mount._walk("file"))

    run(mount, main)


def test_holes_take_no_blocks_while_they_are_written_and_after_a_rename(in_parts: Composed, store: Held) -> None:
    async def allocated(path: str) -> int:
        """In parts of 64 KiB."""
        return in_parts.parts.file_io.allocated(await in_parts._walk(path)) // (64 * KIB)

    async def main(mount: Composed) -> None:
        await put_all(store, {"other": bytes(640 * KIB)})
        handle = await new(mount, body=b"n" * 64 * KIB)
        assert await allocated("file") == 1
        await mount.parts.file_io.truncate(handle.inode, 6400 * KIB)
        assert await allocated("file") == 1
        await mount.parts.file_io.flush(handle)
        assert await allocated("file") == 1, "now it is the bucket's"
        await mount.parts.file_io.write(handle, 640 * KIB, b"n" * 64 * KIB)
        assert 2 <= await allocated("file") <= 3
        await closed(mount, handle)
        assert await allocated("file") == 2
        await mount.rename("file", "moved")
        assert await allocated("moved") == 2
        assert await allocated("other") == 10, "nothing is known of it"

    run(in_parts, main)


def test_a_time_that_is_set_on_a_closed_file_disturbs_nobody(mount: Composed, store: Held) -> None:
    async def main(mount: Composed) -> None:
        await put_all(store, {"file": OLD})
        mount.parts.file_io.time_given(await mount._walk("file"))

    run(mount, main)
