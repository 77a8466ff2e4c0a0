"""A file of which a write has failed: once its writer has closed it, nobody finds half of it, here or in the bucket."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from sosfs.config.parameters import Durability
from sosfs.files.open_file import Handle, draft_of
from sosfs.files.spool import Spool, SpoolArea
from sosfs.metadata import user_metadata
from sosfs.metadata.user_metadata import Posix
from sosfs.s3.protocol import Properties
from sosfs.tree.inodes import Inode, held
from tests.support.composed import LONG, Composed, composed
from tests.support.drive import fails
from tests.support.held import Held, begun, bodies, closed, opened, put_all, settled, silence, stored, told
from tests.support.power import Machine, syncs_late

OLD = b"old bytes, as they were"
NEW = b"n" * 300  # more than stays in memory
TIME = 1_000_000_000 * user_metadata.NS


class Disk:
    """A disk that is full or not."""

    is_full = False


class Kernel:
    """Notes what it is told to forget."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.names: list[tuple[int, bytes]] = []

    def give(self, number: int, offset: int, body: Any) -> None:
        """It takes nothing."""

    async def forget(self, numbers: Sequence[int], names: Sequence[tuple[int, bytes]]) -> None:
        """Files, and what names lead to."""
        self.numbers.extend(numbers)
        self.names.extend(names)

    async def forget_attributes(self, number: int) -> None:
        """It has none."""


@pytest.fixture(autouse=True)
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    """The disk; files of some hundred bytes are on it."""
    found = Disk()
    monkeypatch.setattr("sosfs.files.spool.SPILL", 200)
    monkeypatch.setattr(SpoolArea, "is_tight", lambda self, more, alone=False: found.is_full)
    return found


@pytest.fixture(params=[Durability.BUCKET])
def mount(request: pytest.FixtureRequest, tmp_path: Path, store: Held) -> Iterator[Composed]:
    """A mount on that disk."""
    with composed(store, tmp_path, durability=request.param) as mount:
        yield mount
        mount.loop.run(store.release)


@pytest.fixture
def kernel(mount: Composed) -> Kernel:
    """What the mount tells the kernel."""
    found = mount.parts.pages._kernel = Kernel()
    return found


def run(mount: Composed, work: Callable[[Composed], Awaitable[None]]) -> None:
    mount.loop.run(partial(work, mount))


async def new(mount: Composed, path: str = "file") -> Handle:
    """A new file that has some bytes."""
    parent, name = await mount._parent(path)
    handle = await mount._opened(parent, name, os.O_CREAT | os.O_RDWR)
    await mount.parts.file_io.write(handle, 0, NEW)
    return handle


async def changed(mount: Composed) -> Handle:
    """A file of the bucket that has other bytes by now."""
    handle = await opened(mount)
    await mount.parts.file_io.write(handle, 0, NEW)
    return handle


async def fails_to_grow(mount: Composed, disk: Disk, handle: Handle) -> None:
    """A write finds the disk full. There is room again at once, which is too late."""
    disk.is_full = True
    with fails(errno.ENOSPC):
        await mount.parts.file_io.write(handle, len(NEW), NEW)
    disk.is_full = False


async def breaks_off(mount: Composed, handle: Handle, at: int = len(NEW)) -> None:
    """The disk fails a write at once, which waits for nothing that is under way."""

    async def broken(*_: object) -> None:
        raise OSError(errno.EIO, "broken")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Spool, "write", broken)
        with fails(errno.EIO):
            await mount.parts.file_io.write(handle, at, NEW)


async def closed_in_vain(mount: Composed, handle: Handle) -> None:
    with fails(errno.ENOSPC):
        await closed(mount, handle)
    mount.parts.namespace.forget(handle.inode, 0)


def leaves_nothing(mount: Composed, inode: Inode) -> None:
    """No room is taken, nothing waits, and the inode may be forgotten."""
    assert list(mount._settings.state_dir.rglob("*.spool")) == []
    assert mount.parts.pending == 0
    assert mount.parts.commits.drafts == set()
    assert not held(inode)
    assert inode.open_file is None
    assert mount._journal.rows == 0


# A new file


def test_a_new_file_was_never_there(mount: Composed, store: Held, disk: Disk, kernel: Kernel) -> None:
    async def main(mount: Composed) -> None:
        await mount.write("other", b"other", flags=os.O_CREAT)
        await mount.tree()
        root = mount.parts.inodes.root
        handle = await new(mount)
        before = root.mtime_ns
        await fails_to_grow(mount, disk, handle)
        with fails(errno.ENOSPC):
            await mount.parts.file_io.flush(handle)
        assert kernel.names == [(root.number, b"file")], "before the close is told"
        await mount.parts.file_io.release(handle)
        assert handle.inode.number in kernel.numbers
        assert root.mtime_ns > before
        assert mount.parts.inodes.find(handle.inode.number) is None
        assert set(await mount.tree()) == {"other"}
        with pytest.raises(FileNotFoundError):
            await mount._walk("file")
        leaves_nothing(mount, handle.inode)

    run(mount, main)
    assert bodies(store) == {"other": b"other"}
    mount.loop.run(partial(mount.write, "file", b"again", flags=os.O_CREAT))
    assert stored(store) == b"again"


def test_a_listing_under_way_shows_who_has_taken_its_name(mount: Composed, store: Held, disk: Disk) -> None:
    handle, found = mount.loop.run(partial(new, mount)), dict[str, Any]()
    mount.loop.passes(LONG)  # what was listed before is out of date
    store.before["list"] = trio.Event()
    mount.loop.run(partial(begun, mount, partial(told, found, "tree", mount.tree)))
    mount.loop.passes(1)

    async def main(mount: Composed) -> None:
        await fails_to_grow(mount, disk, handle)
        await closed_in_vain(mount, handle)
        await put_all(store, {"file": b"theirs"})
        await settled(store.before.pop("list"))

    run(mount, main)
    assert found == {"tree": {"file": (b"theirs", 0o644)}}


def test_attributes_that_were_set_go_with_it(mount: Composed, store: Held, disk: Disk) -> None:
    """While it was sent, which was in vain."""

    async def main(mount: Composed) -> None:
        handle, ends = await new(mount), dict[str, Any]()
        store.before["put"] = trio.Event()
        store.errors["put", "file"] = [silence("put")]
        await begun(mount, partial(told, ends, "flush", partial(mount.parts.file_io.flush, handle)))
        handle.inode.mode = 0o100600
        mount.parts.attributes.changed(handle.inode, posix={"mode"})
        await settled(store.before.pop("put"))
        assert "no answer" in ends["flush"]
        await fails_to_grow(mount, disk, handle)
        await closed_in_vain(mount, handle)
        leaves_nothing(mount, handle.inode)

    run(mount, main)


def test_who_has_it_open_reads_on_and_nobody_sends_it(mount: Composed, store: Held, disk: Disk) -> None:
    async def main(mount: Composed) -> None:
        handle = await new(mount)
        reader = await opened(mount, os.O_RDONLY)
        await fails_to_grow(mount, disk, handle)
        await closed_in_vain(mount, handle)
        inode = reader.inode
        assert mount.parts.inodes.find(inode.number) is inode
        assert not mount.parts.inodes.has_name(inode)
        assert bytes(await mount.parts.file_io.read(reader, 0, 1000)) == NEW
        assert mount.parts.pending == 0
        await mount.parts.file_io.release(reader)
        mount.parts.namespace.forget(inode, 0)
        assert mount.parts.inodes.find(inode.number) is None
        leaves_nothing(mount, inode)

    run(mount, main)
    mount.loop.passes(5)
    assert bodies(store) == {}


@pytest.mark.parametrize("is_new", [True, False])
def test_who_has_it_open_reads_on_after_its_removal(mount: Composed, store: Held, disk: Disk, is_new: bool) -> None:
    """A write that fails later, and the close of its writer, take nothing from a reader."""

    async def main(mount: Composed) -> None:
        if not is_new:
            await put_all(store, {"file": OLD})
        handle = await new(mount) if is_new else await changed(mount)
        reader = await opened(mount, os.O_RDONLY)
        await mount.unlink("file")
        await fails_to_grow(mount, disk, handle)
        await closed(mount, handle)
        mount.parts.namespace.forget(handle.inode, 0)
        assert bytes(await mount.parts.file_io.read(reader, 0, 1000)) == NEW
        assert mount.parts.inodes.find(reader.inode.number) is reader.inode
        await mount.parts.file_io.release(reader)
        mount.parts.namespace.forget(reader.inode, 0)
        leaves_nothing(mount, reader.inode)

    run(mount, main)
    mount.loop.passes(5)
    assert bodies(store) == {}


def test_what_could_not_be_sent_keeps_its_name(mount: Composed, store: Held, kernel: Kernel) -> None:
    """All of it is here: it goes up once the bucket takes it."""

    async def main(mount: Composed) -> None:
        handle = await new(mount)
        store.errors["put", "file"] = [silence("put")] * 3
        with fails(errno.EIO):
            await closed(mount, handle)
        assert (await mount.tree())["file"] == (NEW, 0o644)

    run(mount, main)
    mount.loop.passes(60)
    assert stored(store) == NEW
    assert kernel.names == []


# While it is sent


async def _being_sent(mount: Composed, store: Held) -> tuple[Handle, dict[str, Any]]:
    """A new file that is being synced when a write to it fails, and its writer closes it."""
    handle, ends = await new(mount), dict[str, Any]()
    store.before["put"] = trio.Event()
    await begun(mount, partial(told, ends, "fsync", partial(mount.parts.file_io.fsync, handle.inode)))
    await breaks_off(mount, handle)
    await begun(mount, partial(told, ends, "close", partial(closed, mount, handle)))
    assert ends == {}
    return handle, ends


def test_what_was_being_sent_is_the_file(mount: Composed, store: Held) -> None:
    """The bucket has it as it was synced, and so has this mount."""

    async def main(mount: Composed) -> None:
        handle, ends = await _being_sent(mount, store)
        await settled(store.before.pop("put"))
        assert ends["fsync"] is None
        assert f"OSError({errno.ENOSPC}" in ends["close"]
        mount.parts.namespace.forget(handle.inode, 0)
        leaves_nothing(mount, handle.inode)
        assert await mount.tree() == {"file": (NEW, 0o644)}

    run(mount, main)
    assert bodies(store) == {"file": NEW}


def test_who_makes_it_good_before_it_is_given_up_has_a_whole_file(mount: Composed, store: Held) -> None:
    async def main(mount: Composed) -> None:
        _, ends = await _being_sent(mount, store)
        other = await opened(mount)
        await mount.parts.file_io.write(other, len(NEW), NEW)
        await settled(store.before.pop("put"))
        assert len(ends) == 2
        await closed(mount, other)

    run(mount, main)
    assert bodies(store) == {"file": NEW + NEW}


def test_it_is_given_up_once_where_two_close_it(mount: Composed, store: Held) -> None:
    async def main(mount: Composed) -> None:
        handle, ends = await _being_sent(mount, store)
        other = await opened(mount)
        await begun(mount, partial(told, ends, "other", partial(closed, mount, other)))
        await settled(store.before.pop("put"))
        for one in ("close", "other"):
            assert f"OSError({errno.ENOSPC}" in ends[one]
        leaves_nothing(mount, handle.inode)

    run(mount, main)
    assert bodies(store) == {"file": NEW}


@pytest.mark.parametrize("is_new", [True, False])
def test_nothing_is_left_of_its_upload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_new: bool) -> None:
    """Though somebody reads on."""
    monkeypatch.setattr("tests.support.fake_store.PART_MIN", 1)
    monkeypatch.setattr("sosfs.files.write_behind.SPILL", 200)
    monkeypatch.setattr(SpoolArea, "is_short", property(lambda self: True))
    store = Held()

    async def main(mount: Composed) -> None:
        if not is_new:
            await put_all(store, {"file": OLD})
        handle = await new(mount) if is_new else await changed(mount)
        reader = await opened(mount, os.O_RDONLY)
        for number in range(1, 10):
            await mount.parts.file_io.write(handle, number * len(NEW), NEW)
            await trio.testing.wait_all_tasks_blocked()
        assert len(store._uploads) == 1
        await breaks_off(mount, handle, 10 * len(NEW))
        await closed_in_vain(mount, handle)
        assert store._uploads == {}
        await mount.parts.file_io.release(reader)

    with composed(store, tmp_path, part_size=500) as mount:
        run(mount, main)
        assert bodies(store) == ({} if is_new else {"file": OLD})


@pytest.mark.parametrize("is_new", [True, False])
def test_an_unmount_gives_it_up_though_it_is_open(mount: Composed, store: Held, disk: Disk, is_new: bool) -> None:
    async def main(mount: Composed) -> None:
        await put_all(store, {"other": b"other"} if is_new else {"file": OLD})
        handle = await new(mount) if is_new else await changed(mount)
        await fails_to_grow(mount, disk, handle)
        await mount.parts.drain()
        assert mount.parts.pending == 0

    run(mount, main)
    assert bodies(store) == ({"other": b"other"} if is_new else {"file": OLD})


# A file of the bucket


@pytest.mark.parametrize("whose", ["this mount's", "another mount's", "another tool's"])
def test_a_file_of_the_bucket_is_what_it_was(
    mount: Composed, store: Held, disk: Disk, kernel: Kernel, whose: str
) -> None:
    """Also to programs that look at it here. Its time is what its metadata says, else what a listing tells."""

    async def main(mount: Composed) -> None:
        if whose == "this mount's":
            await mount.write("file", OLD, flags=os.O_CREAT)
        elif whose == "another mount's":
            await store.put("file", OLD, Properties(metadata=user_metadata.write({}, Posix(mtime_ns=TIME))))
        else:
            await put_all(store, {"file": OLD})
        before = _shown(await mount._walk("file"))
        time.sleep(0.001)
        handle = await changed(mount)
        mount.parts.pages.hold(handle.inode)
        assert _shown(handle.inode) != before
        await fails_to_grow(mount, disk, handle)
        await closed_in_vain(mount, handle)
        assert kernel.numbers == [handle.inode.number], "its pages"
        assert kernel.names == []
        assert _shown(handle.inode) == before
        assert not mount.parts.pages.hold(handle.inode), "it may have kept some"
        leaves_nothing(mount, handle.inode)
        assert await mount.tree() == {"file": (OLD, 0o644)}

    run(mount, main)
    calls = store.calls["put"], store.calls["copy"]
    mount.loop.passes(5)
    assert (store.calls["put"], store.calls["copy"]) == calls, "nothing is to be brought there"
    assert bodies(store) == {"file": OLD}


def _shown(inode: Inode) -> tuple[int, int, int, int]:
    return inode.size, inode.mode, inode.mtime_ns, inode.ctime_ns


@pytest.mark.parametrize("is_synced", [True, False])
@pytest.mark.parametrize("mount", [Durability.JOURNAL, Durability.WRITEBACK], indirect=True)
@pytest.mark.parametrize("what", ["mode", "uid", "mtime_ns"])
def test_what_the_user_has_set_meanwhile_stays(
    mount: Composed, store: Held, disk: Disk, is_synced: bool, what: str
) -> None:
    value = {"mode": 0o100600, "uid": 7, "mtime_ns": TIME}[what]

    async def main(mount: Composed) -> None:
        await mount.write("file", OLD, flags=os.O_CREAT)
        await mount.settle()
        before = (await mount._walk("file")).mtime_ns
        handle = await changed(mount)
        if is_synced:
            await mount.parts.file_io.fsync(handle.inode)
        await fails_to_grow(mount, disk, handle)
        setattr(handle.inode, what, value)
        if what == "mtime_ns":
            mount.parts.file_io.time_given(handle.inode)
        mount.parts.attributes.changed(handle.inode, posix={what})
        await closed_in_vain(mount, handle)
        assert getattr(handle.inode, what) == value
        assert handle.inode.mtime_ns == (TIME if what == "mtime_ns" else before)

    run(mount, main)
    mount.loop.passes(5)
    assert bodies(store) == {"file": OLD}
    assert getattr(user_metadata.read(store._stored["file"].object.properties.metadata), what) == value


@pytest.mark.promise(3)
@pytest.mark.parametrize("mount", [Durability.BUCKET, Durability.JOURNAL], indirect=True)
@pytest.mark.parametrize("how", ["before", "between two writes", "and it was renamed"])
def test_a_time_that_was_set_before_stays(mount: Composed, store: Held, disk: Disk, how: str) -> None:
    async def main(mount: Composed) -> None:
        await put_all(store, {"old" if how == "and it was renamed" else "file": OLD})
        handle = await opened(mount, path="old" if how == "and it was renamed" else "file")
        inode = handle.inode
        if how != "before":
            await mount.parts.file_io.write(handle, 0, b"n")
            mount.parts.commits.debounce.delay = LONG
            if mount.parts.commits.durability is Durability.JOURNAL:
                await mount.parts.file_io.fsync(inode)
        inode.mtime_ns = TIME
        mount.parts.file_io.time_given(inode)
        mount.parts.attributes.changed(inode, posix={"mtime_ns"})
        await mount.parts.file_io.write(handle, 0, NEW)
        if how == "and it was renamed":
            await mount.rename("old", "file")
        await fails_to_grow(mount, disk, handle)
        await closed_in_vain(mount, handle)
        assert inode.mtime_ns == TIME

    run(mount, main)
    mount.loop.passes(5)
    assert bodies(store) == {"file": OLD}
    assert user_metadata.read(store._stored["file"].object.properties.metadata).mtime_ns == TIME


def test_a_new_file_that_took_the_name_of_another_gives_it_back(
    mount: Composed, store: Held, disk: Disk, kernel: Kernel
) -> None:
    """With all that the other had."""
    shown: list[tuple[int, ...]] = []

    async def main(mount: Composed) -> None:
        await mount.write("file", OLD, flags=os.O_CREAT)
        await mount.chmod("file", 0o600)
        shown.append(_shown(await mount._walk("file")))
        handle = await new(mount, "new")
        await mount.rename("new", "file")
        await fails_to_grow(mount, disk, handle)
        await closed_in_vain(mount, handle)
        assert set(kernel.names) == {(mount.parts.inodes.root.number, b"file")}
        leaves_nothing(mount, handle.inode)

    async def then(mount: Composed) -> None:
        assert _shown(await mount._walk("file")) == shown[0]
        assert await mount.tree() == {"file": (OLD, 0o600)}

    run(mount, main)
    mount.loop.passes(1)
    run(mount, then)
    assert bodies(store) == {"file": OLD}


@pytest.mark.promise(3)
@pytest.mark.parametrize("durability", [Durability.JOURNAL, Durability.WRITEBACK])
def test_a_power_loss_right_after_that_is_no_damage(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch, durability: Durability
) -> None:
    """What was synced before is in the bucket, or what was there: the disk may have the record of it yet."""
    store = Held()

    async def main(mount: Composed) -> None:
        await put_all(store, {"file": OLD})
        handle = await changed(mount)
        await mount.parts.file_io.fsync(handle.inode)
        await fails_to_grow(mount, disk, handle)
        await closed_in_vain(mount, handle)

    with composed(store, tmp_path, durability=durability) as mount:
        machine = Machine(mount, monkeypatch, 1)
        run(mount, main)
        machine.loses_power(newest_log=False, spools="written")
        mount.start()
        assert mount._journal.damage.lines == ()
        mount.loop.passes(5)
        assert bodies(store) in ({"file": OLD}, {"file": NEW})


def test_who_opens_it_to_write_while_it_waits_to_be_given_up_has_a_file_that_is_stored(
    mount: Composed, store: Held
) -> None:
    """A commit that began before the failure is under way, and fails."""

    async def main(mount: Composed) -> None:
        handle = await new(mount)
        put = store.before["put", "file"] = trio.Event()
        store.errors["put", "file"] = [silence("put")]
        outcomes: dict[str, Any] = {}
        await begun(mount, partial(told, outcomes, "commit", partial(mount.parts.commits.commit, handle.inode)))
        await breaks_off(mount, handle)
        await begun(mount, partial(told, outcomes, "close", partial(closed, mount, handle)))
        again = await opened(mount)
        await settled(put)
        await mount.parts.file_io.write(again, 0, NEW + NEW)
        await closed(mount, again)

    run(mount, main)
    mount.loop.passes(LONG)
    assert bodies(store) == {"file": NEW + NEW}


def test_who_has_looked_up_the_name_before_it_was_given_up_cannot_write_to_nowhere(
    mount: Composed, disk: Disk, kernel: Kernel
) -> None:
    """The kernel asks again what the name leads to; who was told before has no file to open."""

    async def main(mount: Composed) -> None:
        handle = await new(mount)
        await fails_to_grow(mount, disk, handle)
        with fails(errno.ENOSPC):
            await mount.parts.file_io.flush(handle)
        inode = await mount._walk("file")
        inode.lookups = 1
        kernel.names.clear()
        await mount.parts.file_io.release(handle)
        assert kernel.names == [(mount.parts.inodes.root.number, b"file")]
        with fails(errno.ESTALE):
            again = await mount.parts.file_io.open(inode, os.O_RDWR, 1)
            await mount.parts.file_io.write(again, 0, NEW)

    run(mount, main)


@pytest.mark.parametrize("mount", [Durability.JOURNAL], indirect=True)
@pytest.mark.parametrize("how", ["fsync", "truncate"])
def test_it_is_given_up_though_it_was_being_synced_for_another_when_its_writer_closed_it(
    mount: Composed, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    outcomes: dict[str, Any] = {}

    async def main(mount: Composed) -> None:
        file_io = mount.parts.file_io
        handle = await new(mount)
        if how == "truncate":
            await closed(mount, handle)
        late = syncs_late(monkeypatch, Spool)
        inode = handle.inode
        work = partial(file_io.fsync, inode) if how == "fsync" else partial(file_io.truncate, inode, len(NEW) + 1)
        await begun(mount, partial(told, outcomes, how, work))
        if how == "truncate":
            handle = await opened(mount)
        await breaks_off(mount, handle)
        await closed_in_vain(mount, handle)
        await settled(late)
        draft = draft_of(inode)
        assert draft is None or not draft.refused

    mount.parts.commits.debounce.delay = LONG
    run(mount, main)
