"""What close and fsync have promised is on the disk when they return: each guard by itself, when the power goes."""

from __future__ import annotations

import errno
import os
import stat
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from sosfs.config.parameters import Durability
from sosfs.disk import watermark
from sosfs.files.open_file import Handle
from sosfs.files.spool import Spool
from sosfs.journal.journal import Journal
from sosfs.recovery.attributes import AttributeReplay
from sosfs.s3.protocol import Acl, Grant, Properties
from tests.recovery.test_power_loss import Disk, Log
from tests.support.composed import LONG, Composed, composed
from tests.support.held import Held, begun, bodies, closed, opened, put_all, settled, silence, stored
from tests.support.power import Machine, syncs_late

JOURNAL, WRITEBACK = Durability.JOURNAL, Durability.WRITEBACK
LARGE = 300_000  # bytes: in a spool
sizes = pytest.mark.parametrize("size", [100, 300_000], ids=["in its row", "in the spool"])


@sizes
@pytest.mark.parametrize("how", ["close", "fsync", "truncate"])
def test_the_record_is_on_the_disk_when_the_call_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, how: str
) -> None:
    store = Held()
    body = b"n" * size

    async def main(mount: Composed) -> None:
        await store.put("file", b"o" * (size + 1 if how == "truncate" else 10), Properties())
        if how == "truncate":
            return await mount.truncate("file", size)
        handle = await opened(mount)
        await mount.parts.file_io.write(handle, 0, body)
        if how == "close":
            return await closed(mount, handle)
        return await mount.parts.file_io.fsync(handle.inode)

    with composed(store, tmp_path, durability=JOURNAL) as mount:
        log = Log(mount, tmp_path / "disk", monkeypatch)
        log.written_out()
        mount.loop.run(partial(main, mount))
        log.loses_power()
        mount.start()
        mount.loop.passes(5)
        mount.loop.run(mount.settle)
        assert bodies(store) == {"file": b"o" * size if how == "truncate" else body}


@sizes
def test_the_bytes_are_on_the_disk_before_the_record_tells_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    store, disk = Held(), Disk(monkeypatch)

    async def main(mount: Composed) -> None:
        await mount.write("file", b"n" * size, flags=os.O_CREAT)

    with composed(store, tmp_path, durability=JOURNAL) as mount:
        mount.loop.run(partial(main, mount))
        disk.loses_power(mount)
        mount.start()
        mount.loop.passes(5)
        mount.loop.run(mount.settle)
        assert bodies(store) == {"file": b"n" * size}


def test_an_fsync_brings_the_spool_to_the_disk_and_then_the_log_of_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []

    def watch(name: str) -> None:
        real = getattr(os, name)

        def call(file: int) -> None:
            synced.append(Path(f"/proc/self/fd/{file}").readlink().suffix)
            real(file)

        monkeypatch.setattr(os, name, call)

    with composed(Held(), tmp_path, durability=JOURNAL) as mount:
        handle = mount.loop.run(partial(written, mount, b"1" * LARGE))
        watch("fsync")
        watch("fdatasync")
        mount.loop.run(partial(mount.parts.file_io.fsync, handle.inode))
        assert [one for one in synced if one == ".spool"] == [".spool"]
        assert synced.index(".spool") < len(synced) - 1 and "wal" in synced[-1]


def test_what_is_written_over_what_was_recorded_and_stored_makes_no_damage_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk may have the record yet, with the checksums of what was there."""
    store = Held()

    async def main(mount: Composed) -> None:
        await mount.parts.file_io.write(handle, 0, b"2" * LARGE)

    with composed(store, tmp_path, durability=JOURNAL) as mount:
        machine = Machine(mount, monkeypatch, 1)
        handle = mount.loop.run(partial(written, mount, b"1" * LARGE))
        mount.loop.run(partial(mount.parts.file_io.fsync, handle.inode))
        mount.loop.passes(2)
        assert bodies(store) == {"file": b"1" * LARGE}
        mount.loop.run(partial(main, mount))
        machine.loses_power(newest_log=False, spools="written")
        mount.take_up()
        assert mount._journal.damage.lines == ()
        assert bodies(store) == {"file": b"1" * LARGE}


async def written(mount: Composed, body: bytes) -> Handle:
    """A new file that stays open."""
    handle = await mount._opened(mount.parts.inodes.root, b"file", os.O_CREAT | os.O_RDWR)
    await mount.parts.file_io.write(handle, 0, body)
    return handle


def test_attributes_are_on_the_disk_when_fsync_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Held()

    async def main(mount: Composed) -> None:
        await store.put("file", b"bytes", Properties())
        inode = await mount._walk("file")
        inode.mode = stat.S_IFREG | 0o600
        mount.parts.attributes.changed(inode)
        await mount.parts.file_io.fsync(inode)
        assert store.calls["copy"] == 0

    with composed(store, tmp_path, durability=JOURNAL) as mount:
        log = Log(mount, tmp_path / "disk", monkeypatch)
        log.written_out()
        mount.loop.run(partial(main, mount))
        log.loses_power()
        mount.start()
        assert stored(store) == b"bytes"
        assert store._stored["file"].object.properties.metadata["mode"] == str(0o100600)


@pytest.mark.promise(3)
def test_attributes_that_were_set_during_a_commit_are_in_its_record_or_have_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the log ends right before the last change."""
    store = Held()

    async def main(mount: Composed) -> None:
        await mount.write("file", b"bytes", flags=os.O_CREAT)
        inode, held = await mount._walk("file"), trio.Event()
        store.before["put"] = held
        await begun(mount, partial(mount.parts.commits.commit, inode))
        inode.mode = stat.S_IFREG | 0o600
        mount.parts.attributes.changed(inode)
        del store.before["put"]
        await settled(held)
        assert bodies(store) == {"file": b"bytes"}

    with composed(store, tmp_path, durability=JOURNAL) as mount:
        machine = Machine(mount, monkeypatch, 1)
        mount.loop.run(partial(main, mount))
        machine._logs.pop()
        machine.loses_power(newest_log=True)
        mount.take_up()
        assert int(store._stored["file"].object.properties.metadata["mode"]) == stat.S_IFREG | 0o600


@pytest.mark.parametrize("kind", ["in parts", "no hashes"])
@pytest.mark.parametrize("is_replayed", [False, True], ids=["", "by the next mount"])
def test_the_disk_knows_of_a_copy_before_it_is_made_where_its_etag_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kind: str, is_replayed: bool
) -> None:
    """Else the next mount takes its own copy for another client's file, and what was changed for lost."""
    store, held = Held(hashes=kind == "in parts"), trio.Event()

    async def begin(mount: Composed) -> None:
        upload = await store.create_multipart("file", Properties())
        await store.complete_multipart("file", upload, [await store.upload_part("file", upload, 1, b"bytes")])
        inode = await mount._walk("file")
        inode.mode = stat.S_IFREG | 0o600
        mount.parts.attributes.changed(inode)
        await mount._journal.sync()

    async def begin_again(mount: Composed) -> None:
        replay = AttributeReplay(mount._journal, store, mount.parts.multiparts, mount.parts.attributes)
        (item,) = mount._journal.attributes()
        await begun(mount, partial(replay.write, item))

    with composed(store, tmp_path, durability=JOURNAL) as mount:
        machine = Machine(mount, monkeypatch, 1)
        mount.loop.run(partial(begin, mount))
        store.after["copy"] = held
        if is_replayed:
            mount.loop.run(partial(begin_again, mount))
        else:
            mount.loop.passes(3)
        assert ("copy", "file") in store.reached
        machine.loses_power(newest_log=False)
        mount.loop.run(store.release)
        mount.start()
        mount.loop.passes(LONG)
        assert "is lost" not in caplog.text
        assert store._stored["file"].object.properties.metadata["mode"] == str(0o100600)


def test_a_queued_removal_that_was_done_is_not_done_again_when_the_power_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel wrote the journal out while the delete was on its way; what is made after it has the same ETag."""
    store, held = Held(clock=lambda: 7.0), trio.Event()

    async def main(mount: Composed) -> None:
        for name in ("proof", "file"):
            await store.put(name, b"bytes", Properties())
        await mount.unlink("proof")
        store.before["delete", "file"] = held
        await mount.unlink("file")

    async def go_on(log: Log) -> None:
        assert store.reached
        log.written_out()
        held.set()

    with composed(store, tmp_path) as mount:
        log = Log(mount, tmp_path / "disk", monkeypatch)
        mount.loop.run(partial(main, mount))
        mount.loop.passes(1)
        mount.loop.run(partial(go_on, log))
        mount.loop.passes(1)
        assert not bodies(store)
        mount.loop.run(partial(store.put, "file", b"bytes", Properties()))
        log.loses_power()
        mount.start()
        assert bodies(store) == {"file": b"bytes"}


@pytest.mark.parametrize("durability", list(Durability))
def test_a_directory_of_which_half_is_copied_when_the_power_goes_leaves_no_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durability: Durability
) -> None:
    store, before = Held(), {"d/a": b"bytes", "d/z": b"z"}

    async def rename() -> None:
        await put_all(store, before)
        store.before["copy", "d/z"] = trio.Event()
        await begun(mount, partial(mount.rename, "d", "e"))
        assert bodies(store) == before | {"e/a": b"bytes"}

    with composed(store, tmp_path, durability=durability) as mount:
        machine = Machine(mount, monkeypatch, 0)
        mount.loop.run(rename)
        machine.loses_power(newest_log=False)
        store.before.clear()
        mount.start()
        mount.loop.passes(LONG)
        assert bodies(store) == before


@sizes
@pytest.mark.parametrize("how", ["close", "fsync"])
def test_where_close_waits_for_no_disk_fsync_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, how: str
) -> None:
    store = Held()

    async def main(mount: Composed) -> None:
        handle = await mount._opened(mount.parts.inodes.root, b"file", os.O_CREAT | os.O_RDWR)
        await mount.parts.file_io.write(handle, 0, b"n" * size)
        await (mount.parts.file_io.flush(handle) if how == "close" else mount.parts.file_io.fsync(handle.inode))
        assert bodies(store) == {}

    with composed(store, tmp_path, durability=WRITEBACK) as mount:
        machine = Machine(mount, monkeypatch, 1)
        mount.loop.run(partial(main, mount))
        assert (machine.syncs > 0) == (how == "fsync")
        machine.loses_power(newest_log=False, spools="synced")
        mount.start()
        mount.loop.passes(5)
        assert bodies(store) == ({"file": b"n" * size} if how == "fsync" else {})


@sizes
def test_close_waits_for_the_disk_where_nobody_could_tell_that_the_power_went(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """A kernel without a boot id, as in some containers."""
    store = Held()
    monkeypatch.setattr(watermark, "BOOT_ID", tmp_path / "absent")
    with composed(store, tmp_path, durability=WRITEBACK) as mount:
        machine = Machine(mount, monkeypatch, 1)
        mount.loop.run(partial(mount.write, "file", b"n" * size, flags=os.O_CREAT))
        assert machine.syncs > 0
        machine.loses_power(newest_log=False, spools="synced")
        mount.start()
        assert mount._journal.damage.lines == ()
        mount.loop.passes(5)
        assert bodies(store) == {"file": b"n" * size}


def test_what_was_done_for_good_is_there_when_the_power_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As fsync of a directory has it, where close waits for no disk."""
    store = Held()

    async def main(mount: Composed) -> None:
        store.before["put"] = trio.Event()
        await mount.write("file", b"n" * 100, flags=os.O_CREAT)
        await mount.parts.commits.done_for_good()

    with composed(store, tmp_path, durability=WRITEBACK) as mount:
        machine = Machine(mount, monkeypatch, 1)
        mount.loop.run(partial(main, mount))
        machine.loses_power(newest_log=False)
        mount.loop.run(store.release)
        mount.start()
        mount.loop.passes(5)
        assert bodies(store) == {"file": b"n" * 100}


@pytest.mark.parametrize("offset", [0, LARGE - 50], ids=["within", "over the end"])
def test_what_is_written_over_synced_bytes_is_no_damage_when_the_power_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offset: int
) -> None:
    """The kernel writes the spool out whenever it likes, and the record on the disk is that of the fsync."""
    store = Held()

    async def main(mount: Composed) -> None:
        store.before["put"] = trio.Event()
        handle = await mount._opened(mount.parts.inodes.root, b"file", os.O_CREAT | os.O_RDWR)
        await mount.parts.file_io.write(handle, 0, b"o" * LARGE)
        await mount.parts.file_io.fsync(handle.inode)
        await mount.parts.file_io.write(handle, offset, b"n" * 100)

    with composed(store, tmp_path, durability=JOURNAL) as mount:
        machine = Machine(mount, monkeypatch, 1)
        mount.loop.run(partial(main, mount))
        machine.loses_power(newest_log=False, spools="written")
        mount.loop.run(store.release)
        mount.start()
        assert mount._journal.damage.lines == ()
        mount.loop.passes(5)
        found = stored(store)
        assert len(found) == LARGE
        assert found[:offset] + found[offset + 100 :] == b"o" * (LARGE - len(found[offset : offset + 100]))


# What a record says of the bucket


@pytest.mark.parametrize("durability", [JOURNAL, WRITEBACK])
@pytest.mark.parametrize("what", ["more was written", "the rest is in the bucket", "less was synced"])
def test_the_disk_knows_of_an_upload_before_it_is_made_where_the_bytes_do_not_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, durability: Durability
) -> None:
    """Else the next mount takes its own object for another client's."""
    store = Held()

    async def write(mount: Composed, size: int) -> None:
        handle = await opened(mount)
        await mount.parts.file_io.write(handle, 0, b"n" * size)
        await mount.parts.file_io.flush(handle)

    async def write_more(mount: Composed) -> None:
        handle = await opened(mount)
        await mount.parts.file_io.write(handle, 1, b"m" * 100)
        if what == "less was synced":
            await mount.parts.file_io.flush(handle)

    async def send(mount: Composed) -> None:
        await mount.parts.commits.commit(await mount._walk("file"))

    with composed(store, tmp_path, durability=durability) as mount:
        machine = Machine(mount, monkeypatch, 1)
        mount.loop.run(partial(store.put, "file", b"o" * LARGE, Properties()))
        mount.parts.commits.debounce.delay = LONG
        mount.loop.run(partial(write, mount, 100 if what == "the rest is in the bucket" else LARGE))
        mount.loop.passes(3)  # all is on the disk by now
        assert mount.parts.unsynced.changes == 0
        if what != "the rest is in the bucket":
            mount.loop.run(partial(write_more, mount))
        mount.loop.run(partial(send, mount))
        sent = stored(store)
        machine.loses_power(newest_log=False, spools="synced")
        mount.start()
        mount.loop.passes(20)
        mount.loop.run(mount.settle)
        assert mount._journal.damage.lines == ()
        assert list(bodies(store)) == ["file"], "its own object passes for another's"
        assert stored(store)[:1] + stored(store)[101:] == sent[:1] + sent[101:]


@pytest.mark.parametrize(("hashes", "part_size"), [(True, 4096), (False, LARGE)], ids=["parts", "no hashes"])
def test_the_disk_knows_of_an_object_before_it_is_made_whose_etag_is_no_hash_of_its_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hashes: bool, part_size: int
) -> None:
    """Though the record has them all."""
    store = Held(hashes=hashes)
    monkeypatch.setattr("tests.support.fake_store.PART_MIN", 1)

    async def main(mount: Composed) -> None:
        await mount.write("file", b"n" * LARGE, flags=os.O_CREAT)
        await mount.parts.commits.commit(await mount._walk("file"))
        assert stored(store) == b"n" * LARGE

    with composed(store, tmp_path, durability=JOURNAL, part_size=part_size) as mount:
        machine = Machine(mount, monkeypatch, 1)
        mount.loop.run(partial(main, mount))
        machine.loses_power(newest_log=False, spools="synced")
        mount.take_up(seconds=20)
        assert bodies(store) == {"file": b"n" * LARGE}


def test_what_was_stored_and_then_replaced_is_not_kept_beside_when_the_power_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was synced is in the bucket; what came after it was not synced, and another client has come since."""
    store, held = Held(), trio.Event()

    async def main(mount: Composed) -> None:
        handle = await mount._opened(mount.parts.inodes.root, b"file", os.O_CREAT | os.O_RDWR)
        await mount.parts.file_io.write(handle, 0, b"s" * LARGE)
        await mount.parts.file_io.fsync(handle.inode)
        store.before["put"] = held
        await begun(mount, partial(mount.parts.commits.commit, handle.inode))
        await mount.parts.file_io.write(handle, 0, b"noted")
        await mount.parts.file_io.flush(handle)
        await mount.parts.file_io.write(handle, 0, b"open")
        del store.before["put"]
        held.set()
        await trio.testing.wait_all_tasks_blocked()
        assert stored(store) == b"s" * LARGE
        await store.put("file", b"theirs", Properties())

    with composed(store, tmp_path, durability=WRITEBACK) as mount:
        machine = Machine(mount, monkeypatch, 1)
        mount.loop.run(partial(main, mount))
        machine.loses_power(newest_log=True, spools="synced")
        mount.start()
        mount.loop.passes(20)
        mount.loop.run(mount.settle)
        assert bodies(store) == {"file": b"theirs"}


def test_a_record_that_outlives_a_commit_tells_of_the_object_that_was_made(tmp_path: Path) -> None:
    """What the next mount stores has what that object was given since."""
    store, held = Held(), trio.Event()
    friend = Acl("owner", (Grant("owner", "FULL_CONTROL"), Grant("friend", "READ")))

    async def main(mount: Composed) -> None:
        handle = await mount._opened(mount.parts.inodes.root, b"file", os.O_CREAT | os.O_RDWR)
        await mount.parts.file_io.write(handle, 0, b"1" * LARGE)
        await mount.parts.file_io.flush(handle)
        store.before["put"] = held
        await begun(mount, partial(mount.parts.commits.commit, handle.inode))
        await mount.parts.file_io.write(handle, 0, b"2")
        await mount.parts.file_io.fsync(handle.inode)
        await mount.parts.file_io.write(handle, 1, b"3")
        del store.before["put"]
        held.set()
        await trio.testing.wait_all_tasks_blocked()
        assert stored(store) == b"1" * LARGE
        await store.put_acl("file", friend)

    with composed(store, tmp_path, durability=JOURNAL) as mount:
        mount.loop.run(partial(main, mount))
        mount.crash()
        mount.start()
        mount.loop.passes(5)
        mount.loop.run(mount.settle)
        assert list(bodies(store)) == ["file"]
        assert stored(store)[:1] == b"2"
        assert stored(store)[2:] == b"1" * (LARGE - 2)
        assert store._stored["file"].acl == friend


def test_a_spool_is_not_emptied_before_its_row_is_gone_where_room_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer that finds no room has its file stored and freed while it waits."""
    store = Held()

    async def main(mount: Composed) -> None:
        handle = await mount._opened(mount.parts.inodes.root, b"file", os.O_CREAT | os.O_RDWR)
        await mount.parts.file_io.write(handle, 0, b"n" * LARGE)
        await mount.parts.file_io.flush(handle)
        draft = handle.open_file.draft
        assert draft is not None
        await mount.parts.file_io.writeback._relieve(handle.inode, draft, OSError())
        assert await mount.parts.file_io.writeback._frees()
        assert draft.local.total == 0

    with composed(store, tmp_path, durability=JOURNAL) as mount:
        log = Log(mount, tmp_path / "disk", monkeypatch)
        mount.loop.run(partial(main, mount))
        log.loses_power(keep=("journal.mark", "spool"))
        mount.start()
        assert mount._journal.damage.lines == ()
        mount.loop.passes(5)
        assert bodies(store) == {"file": b"n" * LARGE}


@pytest.mark.promise(3)
@pytest.mark.parametrize("is_synced_between", [False, True])
def test_a_sync_that_ends_after_a_commit_of_newer_bytes_takes_nothing_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_synced_between: bool
) -> None:
    """What it would record is older than what the bucket has; the next mount would cut the file to that."""
    store = Held()

    async def main(mount: Composed) -> None:
        handle = await mount._opened(mount.parts.inodes.root, b"file", os.O_CREAT | os.O_RDWR)
        await mount.parts.file_io.write(handle, 0, b"1" * LARGE)
        late = syncs_late(monkeypatch, Spool)
        await begun(mount, partial(mount.parts.file_io.fsync, handle.inode))
        await mount.parts.file_io.write(handle, LARGE, b"2" * 1000)
        if is_synced_between:
            await mount.parts.file_io.fsync(handle.inode)
        await mount.parts.commits.commit(handle.inode)
        assert stored(store) == b"1" * LARGE + b"2" * 1000
        await mount.parts.file_io.write(handle, LARGE + 1000, b"3")
        await settled(late)

    with composed(store, tmp_path, durability=JOURNAL) as mount:
        mount.loop.run(partial(main, mount))
        mount.crash()
        mount.start()
        mount.loop.passes(5)
        mount.loop.run(mount.settle)
        assert stored(store)[: LARGE + 1000] == b"1" * LARGE + b"2" * 1000


@pytest.mark.promise(3)
def test_a_sync_that_ends_after_a_later_one_takes_nothing_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Held()

    async def main(mount: Composed) -> None:
        handle = await mount._opened(mount.parts.inodes.root, b"file", os.O_CREAT | os.O_RDWR)
        await mount.parts.file_io.write(handle, 0, b"1" * LARGE)
        late = syncs_late(monkeypatch, Spool)
        await begun(mount, partial(mount.parts.file_io.fsync, handle.inode))
        await mount.parts.file_io.write(handle, LARGE, b"2" * 1000)
        await mount.parts.file_io.fsync(handle.inode)
        await settled(late)

    with composed(store, tmp_path, durability=JOURNAL) as mount:
        mount.loop.run(partial(main, mount))
        mount.crash()
        mount.start()
        mount.loop.passes(5)
        mount.loop.run(mount.settle)
        assert bodies(store) == {"file": b"1" * LARGE + b"2" * 1000}


@pytest.mark.promise(3)
@pytest.mark.parametrize("is_known", [False, True], ids=["new", "in the bucket"])
def test_what_fsync_waited_for_is_there_though_more_was_closed_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_known: bool
) -> None:
    """No disk has what came later, and the record tells of it by then."""
    store = Held()

    async def main(mount: Composed) -> None:
        if is_known:
            await store.put("file", b"o" * 10, Properties())
        handle = await mount._opened(mount.parts.inodes.root, b"file", os.O_CREAT | os.O_RDWR)
        await mount.parts.file_io.write(handle, 0, b"1" * LARGE)
        late = syncs_late(monkeypatch, Spool)
        await begun(mount, partial(mount.parts.file_io.fsync, handle.inode))
        await mount.parts.file_io.write(handle, LARGE, b"2" * 1000)
        await mount.parts.file_io.flush(handle)
        await settled(late)

    with composed(store, tmp_path, durability=WRITEBACK) as mount:
        machine = Machine(mount, monkeypatch, 1)
        mount.loop.run(partial(main, mount))
        machine.loses_power(newest_log=True, spools="synced")
        mount.start()
        mount.loop.passes(5)
        mount.loop.run(mount.settle)
        assert bodies(store) == {"file": b"1" * LARGE}


def test_who_tries_again_to_write_over_synced_bytes_waits_for_the_disk_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record on the disk still has the checksums of what was synced."""
    store = Held()

    async def refused(_: Journal) -> None:
        raise OSError(errno.EIO, "the disk")

    async def main(mount: Composed) -> None:
        handle = await mount._opened(mount.parts.inodes.root, b"file", os.O_CREAT | os.O_RDWR)
        await mount.parts.file_io.write(handle, 0, b"o" * LARGE)
        await mount.parts.file_io.fsync(handle.inode)
        with monkeypatch.context() as patch, pytest.raises(OSError, match="the disk"):
            patch.setattr(Journal, "sync", refused)
            await mount.parts.file_io.write(handle, 0, b"n" * 100)
        await mount.parts.file_io.write(handle, 0, b"n" * 100)

    with composed(store, tmp_path, durability=JOURNAL) as mount:
        mount.parts.commits.debounce.delay = LONG
        machine = Machine(mount, monkeypatch, 1)
        mount.loop.run(partial(main, mount))
        machine.loses_power(newest_log=False, spools="written")
        mount.take_up()
        assert stored(store)[100:] == b"o" * (LARGE - 100)


def test_what_a_full_disk_had_no_room_to_record_is_recorded_by_the_next_fsync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its bytes were on the disk by then, and the server is away."""
    store = Held()

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "full")

    async def main(mount: Composed) -> None:
        handle = await mount._opened(mount.parts.inodes.root, b"file", os.O_CREAT | os.O_RDWR)
        await mount.parts.file_io.write(handle, 0, b"1" * LARGE)
        await mount.parts.file_io.fsync(handle.inode)
        await mount.parts.file_io.write(handle, LARGE, b"2" * 100)
        store.errors["put", "file"] = [silence("put")]
        with monkeypatch.context() as patch, pytest.raises(OSError, match="no answer"):
            patch.setattr(Journal, "save_draft", full)
            await mount.parts.file_io.fsync(handle.inode)
        await mount.parts.file_io.fsync(handle.inode)

    with composed(store, tmp_path, durability=JOURNAL) as mount:
        mount.parts.commits.debounce.delay = LONG
        machine = Machine(mount, monkeypatch, 1)
        mount.loop.run(partial(main, mount))
        machine.loses_power(newest_log=False, spools="synced")
        mount.take_up()
        assert bodies(store) == {"file": b"1" * LARGE + b"2" * 100}
