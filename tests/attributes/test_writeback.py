"""Changed attributes on their way into the bucket: sent once, again after a refusal, and not lost in a crash."""

from __future__ import annotations

import errno
import gc
import itertools
import os
import stat
import weakref
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyfuse3
import pytest
import trio
import trio.testing

from sosfs.attributes.unanswered_copies import LATE
from sosfs.attributes.writeback import SETTLERS
from sosfs.config.choices import Canned
from sosfs.config.parameters import TTL, Durability
from sosfs.errors import StoreError, from_s3, unanswered
from sosfs.files.open_file import Handle
from sosfs.filesystem.bucket import _operations
from sosfs.journal.journal import Journal
from sosfs.metadata.edits import NO_EDITS
from sosfs.metadata.user_metadata import Posix
from sosfs.s3.protocol import Acl, Grant, Headers, Properties, Version
from sosfs.tree.inodes import Inode
from tests.support.composed import LONG, Composed, composed
from tests.support.drive import fails
from tests.support.fake_store import ANYONE, OWNER, PRIVATE, FakeStore
from tests.support.held import (
    Held,
    begun,
    bodies,
    chmod,
    closed,
    denied,
    forget,
    opened,
    put_all,
    settled,
    silence,
    stored,
)

MIB = 1 << 20
PUBLIC = Acl(OWNER, (*PRIVATE.grants, Grant(ANYONE, "READ")))
pytestmark = pytest.mark.usefixtures("without_bugs")

NO_ANSWER = unanswered("copy", "no answer")
REFUSED = from_s3("copy", code="AccessDenied", status=403)
REPEATED = from_s3("copy", code="AccessDenied", status=403)
REPEATED.repeated = True  # the first try may have been carried out
NEW = Posix(stat.S_IFREG | 0o600, 1000, 33, 1_000_000_000_000_000_001, None)


def test_two_who_settle_one_file_send_one_request(tmp_path: Path) -> None:
    store = FakeStore(hashes=False)
    with composed(store, tmp_path) as mount:

        async def settle_twice() -> None:
            await store.put("file", b"body", Properties())
            inode = await mount._walk("file")
            inode.mode = 0o100600
            mount.parts.attributes.changed(inode)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(mount.parts.attributes.write_now, inode)
                nursery.start_soon(mount.parts.attributes.write_now, inode)

        mount.loop.run(settle_twice)
        assert store.calls["copy"] == 1


@pytest.mark.parametrize("code", ["ExpiredToken", "RequestTimeTooSkewed"])
def test_a_chmod_waits_until_the_key_is_valid_again(tmp_path: Path, code: str) -> None:
    store, refused = FakeStore(), list[str]()

    def refuse_twice(operation: str, key: str) -> None:
        if operation == "copy" and len(refused) < 2:
            refused.append(key)
            raise from_s3(f"{operation} {key!r}", code=code, status=403)

    with composed(store, tmp_path) as mount:

        async def chmod() -> None:
            await store.put("file", b"body", Properties())
            inode = await mount._walk("file")
            inode.mode = 0o100600
            mount.parts.attributes.changed(inode)

        store.fault = refuse_twice
        mount.loop.run(chmod)
        mount.loop.passes(LONG)
        assert refused == ["file"] * 2
        assert mount.loop.run(lambda: store.head("file")).properties.metadata["mode"] == str(0o100600)


@pytest.mark.parametrize(
    ("error", "is_lost"),
    [(REFUSED, False), (NO_ANSWER, True), (REPEATED, True), (from_s3("copy", code="InternalError", status=500), True)],
    ids=["refused", "no answer", "refused at a second try", "a server error"],
)
def test_only_what_got_no_answer_is_waited_for(tmp_path: Path, error: StoreError, is_lost: bool) -> None:
    """A copy that was refused is not made later. One without an answer may be: its file stays pending for that long."""
    store = Held()
    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(store.put, "file", b"bytes", Properties()))
        store.errors["copy", "file"] = [error]
        mount.loop.run(partial(chmod, mount))
        mount.loop.passes(5)
        assert store._stored["file"].object.properties.metadata["mode"] == str(0o100600)
        assert (mount.parts.pending, mount.parts.waiting) == (is_lost, []), "nothing has failed at the last try"
        mount.loop.passes(LATE / 2)
        assert mount.parts.pending == is_lost
        mount.loop.passes(2 * LATE)
        assert (mount.parts.pending, store.calls["copy"]) == (0, 1)
        assert not mount.parts.attributes.in_doubt(mount.loop.run(partial(mount._walk, "file")))


class Published(Held):
    """What is stored without an ACL can be read by everybody, as `--acl public-read` makes it."""

    def _store(self, key: str, body: bytes, etag: str, properties: Properties, acl: Acl | None) -> Version:
        return super()._store(key, body, etag, properties, acl or PUBLIC)


@pytest.mark.promise(7)
def test_what_is_private_stays_so_in_a_mount_that_publishes_what_is_new(tmp_path: Path) -> None:
    store = Published()

    async def begin(mount: Composed) -> None:
        for key, body in {"changed": b"bytes", "written": b"bytes", "old": b"bytes", "d/": b""}.items():
            await store.put(key, body, Properties(), acl=PRIVATE)
        await chmod(mount, "changed")
        await chmod(mount, "d", 0o700)
        await mount.write("written", b"B")
        await mount.rename("old", "moved")
        await mount.write("new", b"new", flags=os.O_CREAT)

    with composed(store, tmp_path, acl=Canned.PUBLIC_READ) as mount:
        mount.loop.run(partial(begin, mount))
        mount.loop.passes(10)
        assert mount.parts.pending == 0
        public = {key for key, found in store._stored.items() if found.acl == PUBLIC}
        assert (public, set(store._stored)) == ({"new"}, {"changed", "written", "moved", "d/", "new"})


def test_what_was_just_stored_is_not_asked_for(tmp_path: Path) -> None:
    """Its attributes are ours, however long the copy took."""
    store, held = Held(), trio.Event()

    async def look(mount: Composed) -> int:
        return (await mount.parts.attributes.revalidate(inode)).mode

    async def begin(mount: Composed) -> Inode:
        await store.put("file", b"bytes", Properties())
        store.before["copy"] = held
        await chmod(mount)
        return await mount._walk("file")

    with composed(store, tmp_path) as mount:
        inode = mount.loop.run(partial(begin, mount))
        mount.loop.passes(TTL - 1)
        mount.loop.run(partial(settled, held))
        mount.loop.passes(TTL / 2)
        asked = store.calls["head"]
        assert mount.loop.run(partial(look, mount)) == stat.S_IFREG | 0o600
        assert store.calls["head"] == asked


@pytest.mark.parametrize("is_made", [False, True])
def test_what_is_refused_of_a_directory_is_told_as_what_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, is_made: bool
) -> None:
    store = Held()

    async def begin(mount: Composed) -> None:
        if is_made:
            await mount.mkdir("d")
        else:
            await put_all(store, {"d/": b""})
        store.errors["put", "d/"] = [REFUSED]
        await chmod(mount, "d")

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(begin, mount))
        mount.loop.passes(1.5)
        assert not store.errors["put", "d/"]
        said = "the directory d is not in the bucket" if is_made else "attributes of d are not in the bucket"
        assert said in caplog.text


@pytest.mark.promise(4)
def test_what_is_of_another_size_was_made_by_no_copy_of_ours(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Though another client has stored it with the metadata that ours was to have."""
    store = Held()

    async def begin(mount: Composed) -> None:
        await store.put("file", b"bytes", Properties())
        store.errors["copy", "file"] = [NO_ANSWER]
        await chmod(mount)

    async def come(mount: Composed) -> None:
        (sent,) = mount.parts.attributes._unanswered_copies.sent(await mount._walk("file"))
        await store.put("file", b"their bytes", sent)

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(begin, mount))
        mount.loop.passes(1.5)
        mount.loop.run(partial(come, mount))
        mount.loop.passes(LONG)
        assert mount.loop.run(mount.tree) == {"file": (b"their bytes", 0o600)}
        assert "another client has replaced it" in caplog.text


@pytest.mark.parametrize("how", ["is refused", "is open for long"])
def test_what_another_client_sets_of_the_same_bytes_stays_beside_what_is_set_here_later(
    tmp_path: Path, how: str
) -> None:
    store = Held()

    async def begin(mount: Composed) -> None:
        await store.put("file", b"bytes", Properties())
        if how == "is refused":
            store.errors["copy", "file"] = [REFUSED]
            await chmod(mount)
        else:
            handle = await opened(mount)
            await mount.parts.file_io.write(handle, 0, b"B")
            await mount.parts.file_io.flush(handle)

    async def go_on(mount: Composed) -> None:
        await store.put("file", stored(store), Properties(metadata={"theirs": "yes"}))
        if how != "is refused":
            await chmod(mount)

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(begin, mount))
        mount.loop.passes(1.5 if how == "is refused" else 2 * TTL)
        mount.loop.run(partial(go_on, mount))
        mount.loop.passes(10)
        found = store._stored["file"].object.properties.metadata
        assert (found["mode"], found.get("theirs"), mount.parts.pending) == (str(0o100600), "yes", 0)


def test_a_file_that_is_looked_for_in_vain_keeps_its_change(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Not all of it is known, so that it is asked for before the copy, and there is no answer."""
    store = Held()

    async def begin(mount: Composed) -> None:
        await store.put("file", b"bytes", Properties())
        inode = await mount.parts.namespace.lookup(mount.parts.inodes.root, b"file")
        await mount.parts.attributes.ask_files([inode])  # as `ls -l`: HEAD, which does not tell everything
        await chmod(mount)
        store.errors["head", "file"] = [unanswered("head", "no answer")]

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(begin, mount))
        mount.loop.passes(1.5)
        assert (store.errors["head", "file"], mount.parts.pending) == ([], 1)
        mount.loop.passes(10)
        assert (mount.parts.pending, store._stored["file"].object.properties.metadata["mode"]) == (0, str(0o100600))
        assert "is lost" not in caplog.text


def test_a_file_that_another_client_has_just_removed_keeps_no_unmount_waiting(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Held()

    async def main(mount: Composed) -> None:
        await store.put("file", b"bytes", Properties())
        await chmod(mount)
        await store.delete("file")
        await mount.parts.drain()
        assert (mount.parts.pending, bodies(store)) == (0, {})

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))
    assert caplog.text.count("of the attributes of file is lost") == 1


def test_so_many_are_written_side_by_side_and_no_more(tmp_path: Path) -> None:
    store, held = Held(), trio.Event()

    async def begin(mount: Composed) -> None:
        names = [str(number) for number in range(2 * SETTLERS)]
        await put_all(store, dict.fromkeys(names, b"bytes"))
        for name in names:
            await chmod(mount, name)
        store.before["copy"] = held

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(begin, mount))
        mount.loop.passes(3)
        assert len(store.reached) == SETTLERS
        mount.loop.run(partial(settled, held))
        assert mount.parts.pending == 0


def test_what_a_disk_kept_from_being_sent_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the copy has another ETag the journal is synced before."""
    store, sync = Held(hashes=False), Journal.sync

    async def fails_once(journal: Journal) -> None:
        monkeypatch.setattr(Journal, "sync", sync)
        raise OSError(errno.EIO, "the disk")

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(store.put, "file", b"bytes", Properties()))
        mount.loop.run(partial(chmod, mount))
        monkeypatch.setattr(Journal, "sync", fails_once)
        mount.loop.passes(1.5)
        assert (Journal.sync, mount.parts.pending) == (sync, 1)
        mount.loop.passes(10)
        assert (mount.parts.pending, store._stored["file"].object.properties.metadata["mode"]) == (0, str(0o100600))


def test_what_is_set_of_a_file_while_its_old_name_goes_is_written_under_its_new_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store, removed = Held(), trio.Event()

    async def begin(mount: Composed) -> None:
        await store.put("file", b"bytes", Properties())
        inode = await mount._walk("file")
        store.after["delete"] = removed
        await begun(mount, partial(mount.rename, "file", "moved"))
        assert list(bodies(store)) == ["moved"]
        change(mount, inode)

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(begin, mount))
        mount.loop.passes(3)
        mount.loop.run(partial(settled, removed))
        mount.loop.passes(3)
        assert store._stored["moved"].object.properties.metadata["mode"] == str(NEW.mode)
        assert (mount.parts.pending, "is lost" in caplog.text) == (0, False)


@pytest.mark.parametrize("is_told", [True, False], ids=["", "no answer"])
def test_what_is_known_to_be_zeros_is_so_when_a_copy_has_another_etag(tmp_path: Path, is_told: bool) -> None:
    store = Held(hashes=False)

    async def main(mount: Composed) -> None:
        await store.put("file", bytes(5000), Properties())
        inode = await mount._walk("file")
        assert inode.version is not None
        mount.parts.blocks.zeros.note(inode.version.etag, 5000, [(0, 5000)])
        await chmod(mount)
        if not is_told:
            store.unanswered["copy", "file"] = [silence("copy")]
            with fails(errno.EIO):
                await mount.parts.attributes.write_now(inode)
        await mount.parts.attributes.write_now(inode)
        assert mount.parts.file_io.allocated(inode) == 0

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))


def test_a_copy_that_turns_out_to_be_made_is_not_waited_for(tmp_path: Path) -> None:
    store = Held(clock=partial(next, itertools.count(1_700_000_000)))

    async def lost(events: object, what: tuple[str, str]) -> None:
        if events is store.after and what == ("copy", "file"):
            store._passing = before  # type: ignore[method-assign]
            raise NO_ANSWER

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(store.put, "file", b"bytes", Properties()))
        mount.loop.run(partial(chmod, mount))
        before, store._passing = store._passing, lost  # type: ignore[method-assign]
        mount.loop.passes(8)
        assert (store.calls["copy"], mount.parts.pending) == (1, 0)


@pytest.mark.parametrize("is_lost", [False, True], ids=["refused", "no answer"])
@pytest.mark.parametrize("theirs", [b"BYTES", b"other bytes"], ids=["of the same size", "of another"])
def test_what_another_client_stored_after_a_copy_of_ours_failed_is_theirs(
    tmp_path: Path, is_lost: bool, theirs: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    store = Held(clock=partial(next, itertools.count(1_700_000_000)))
    kept = Properties(Headers("image/png"), {"theirs": "yes", "mtime": "7.000000000"})
    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(store.put, "file", b"bytes", Properties(metadata={"mtime": "5.000000000"})))
        store.errors["copy", "file"] = [NO_ANSWER if is_lost else REFUSED]
        mount.loop.run(partial(chmod, mount))
        mount.loop.passes(1.5)
        assert not store.errors["copy", "file"]
        mount.loop.run(partial(store.put, "file", theirs, kept))
        mount.loop.passes(LONG)
        assert (bodies(store), mount.parts.pending) == ({"file": theirs}, 0)
        assert store._stored["file"].object.properties == kept
        assert caplog.text.count("of the attributes of file is lost") == 1
        assert mount.parts.waiting == []
        assert mount.loop.run(mount.tree) == {"file": (theirs, 0o644)}


def _copied_unanswered(mount: Composed, store: Held, properties: Properties) -> None:
    """A chmod of `file` was carried out, and nobody was told."""
    mount.loop.run(partial(store.put, "file", b"bytes", properties))
    mount.loop.run(partial(chmod, mount))
    store.unanswered["copy", "file"] = [NO_ANSWER]
    mount.loop.passes(1.5)
    assert (store.unanswered["copy", "file"], mount.parts.pending) == ([], 1)


# What the HEAD of a `stat` does not tell: Expires and the storage class.
HAD = Properties(Headers("x/y", expires="Thu, 01 Dec 2044 16:00:00 GMT"), {"theirs": "yes"}, "COLD")


def require_had(store: Held, key: str) -> None:
    """The object has all that it had, and the mode that `chmod` gives."""
    found = store._stored[key].object.properties
    assert (found.headers, found.storage_class, found.metadata["theirs"]) == (HAD.headers, "COLD", "yes")
    assert found.metadata["mode"] == str(0o100600)


@pytest.mark.promise(7)
def test_a_rename_after_a_copy_without_an_answer_resets_nothing(tmp_path: Path) -> None:
    store = Held()
    with composed(store, tmp_path) as mount:
        _copied_unanswered(mount, store, HAD)
        mount.loop.run(partial(mount.rename, "file", "moved"))
        require_had(store, "moved")


@pytest.mark.promise(7)
def test_a_chmod_that_an_earlier_mount_could_not_send_resets_nothing(tmp_path: Path) -> None:
    """What that one knew of the file was not all of it: it is empty, so that a HEAD has told that."""
    store = Held()
    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(store.put, "file", b"", HAD))
        mount.loop.run(partial(chmod, mount))
        mount.crash()
        store.errors["head", "file"] = [denied()]
        mount.start()
        assert (store.errors["head", "file"], store.calls["copy"]) == ([], 0)
        mount.loop.passes(3)
        require_had(store, "file")


@pytest.mark.promise(7)
def test_a_chmod_of_what_was_remembered_over_a_rename_resets_nothing(tmp_path: Path) -> None:
    store = Held()
    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(store.put, "d/file", b"", HAD))
        mount.loop.run(partial(mount._walk, "d/file"))
        mount.loop.run(partial(mount.rename, "d", "e"))
        mount.stop()
        mount.start()
        mount.loop.run(mount.tree)
        mount.loop.run(partial(chmod, mount, "e/file"))
        mount.loop.passes(3)
        require_had(store, "e/file")


@pytest.mark.promise(4)
def test_who_may_not_look_what_a_copy_without_an_answer_has_made_gets_an_error_and_no_conflict(tmp_path: Path) -> None:
    store = Held(hashes=False)
    with composed(store, tmp_path) as mount:
        _copied_unanswered(mount, store, Properties())
        store.errors["head", "file"] = [denied()]
        with fails(errno.EACCES):
            mount.loop.run(partial(mount.write, "file", b"BYTES"))
        assert store.errors["head", "file"] == []
        mount.loop.passes(LONG)
        assert bodies(store) == {"file": b"BYTES"}
        assert store._stored["file"].object.properties.metadata["mode"] == str(0o100600)


def test_what_this_mount_has_just_stored_it_knows(tmp_path: Path) -> None:
    """Its ACL is not asked for as long as that is so, and the next mount asks for no attributes."""
    store = Held()
    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(mount.write, "file", b"bytes", flags=os.O_CREAT))
        mount.loop.run(partial(mount.write, "plain", b"bytes", flags=os.O_CREAT))
        for path in ("d", "e"):
            mount.loop.run(partial(mount.mkdir, path))
        mount.loop.passes(3)
        for path in ("file", "d"):
            mount.loop.run(partial(chmod, mount, path))
        mount.loop.passes(3)
        assert store.calls["get_acl"] == 0
        mount.stop()
        asked = store.calls["head"], store.calls["get"]
        mount.start()
        for path, mode in (("file", 0o600), ("plain", 0o644), ("d", 0o600), ("e", 0o755)):
            assert stat.S_IMODE(mount.loop.run(partial(mount._walk, path)).mode) == mode
        assert (store.calls["head"], store.calls["get"]) == asked
        mount.loop.run(partial(chmod, mount, mode=0o640))
        mount.loop.passes(3)
        assert store.calls["get_acl"] == 1, "of what another mount may have changed it is"


def test_an_acl_that_another_client_sets_later_is_kept(tmp_path: Path) -> None:
    store = Held()
    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(mount.write, "file", b"bytes", flags=os.O_CREAT))
        mount.loop.run(partial(store.put_acl, "file", Canned.PUBLIC_READ))
        before = store._stored["file"].acl
        mount.loop.passes(2 * TTL)
        mount.loop.run(partial(chmod, mount))
        mount.loop.passes(3)
        assert store._stored["file"].acl == before
        assert before != PRIVATE


def test_what_waits_is_told_by_its_name_whatever_bytes_that_has(tmp_path: Path) -> None:
    store, name = Held(), b"na\xefve"

    async def main(mount: Composed) -> None:
        creations = mount.parts.creations
        directory, parsed = await creations.vacant(mount.parts.inodes.root, name)
        await closed(
            mount,
            await mount.parts.file_io.create(
                creations.new_file(directory, parsed, stat.S_IFREG | 0o644, 0, 0), os.O_WRONLY, 1
            ),
        )
        (key,) = store._stored
        store.errors["copy", key] = [REFUSED]
        inode = await mount.parts.namespace.lookup(mount.parts.inodes.root, name)
        inode.mode = stat.S_IFREG | 0o600
        mount.parts.attributes.changed(inode)

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))
        mount.loop.passes(1.5)
        assert mount.parts.waiting == ["attributes of na\ufffdve: copy: AccessDenied"]
        mount.loop.passes(LONG)
        assert mount.parts.waiting == []


def test_a_chmod_of_a_file_whose_name_is_gone_is_nobodys(tmp_path: Path) -> None:
    """Who has it open may change it still; what another client has there by now is another file."""
    store = Held()

    async def main(mount: Composed) -> None:
        await store.put("file", b"bytes", Properties())
        handle = await opened(mount, os.O_RDONLY)
        await mount.unlink("file")
        await mount.parts.deletions.drain()
        await store.put("file", b"theirs", Properties())
        handle.inode.mode = stat.S_IFREG | 0o600
        mount.parts.attributes.changed(handle.inode)
        await mount.parts.file_io.fsync(handle.inode)
        assert mount.parts.pending == 0
        await closed(mount, handle)

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))
        mount.crash()
        mount.start()
        mount.loop.passes(LONG)
        assert (bodies(store), store._stored["file"].object.properties.metadata) == ({"file": b"theirs"}, {})


async def set_xattr(mount: Composed, inode: Inode, value: str) -> None:
    """setxattr."""
    await mount.parts.attributes.fetch_whole(inode)
    inode.edits = inode.edits.with_metadata("color", value)
    mount.parts.attributes.changed(inode, posix=())


def test_a_file_that_is_not_sent_yet_takes_nothing_from_the_one_that_it_is_to_replace(tmp_path: Path) -> None:
    """However long that takes."""
    store = Held()

    async def begin(mount: Composed) -> Handle:
        await store.put("file", b"bytes", Properties(metadata={"theirs": "yes"}))
        handle = await mount._opened(mount.parts.inodes.root, b"new", os.O_CREAT | os.O_RDWR)
        await mount.parts.file_io.write(handle, 0, b"new")
        await mount.rename("new", "file")
        return handle

    async def go_on(mount: Composed, handle: Handle) -> None:
        await set_xattr(mount, handle.inode, "red")
        await closed(mount, handle)

    with composed(store, tmp_path) as mount:
        handle = mount.loop.run(partial(begin, mount))
        mount.loop.passes(2 * TTL)
        mount.loop.run(partial(go_on, mount, handle))
        mount.loop.passes(3)
        found = store._stored["file"].object.properties.metadata
        assert (stored(store), found["color"], "theirs" in found) == (b"new", "red", False)


def test_what_is_known_as_a_whole_is_not_asked_for_again_at_once(tmp_path: Path) -> None:
    store = Held()

    async def main(mount: Composed) -> None:
        await store.put("file", b"bytes", Properties())
        inode = await mount._walk("file")
        await set_xattr(mount, inode, "red")
        asked = store.calls["head"]
        await set_xattr(mount, inode, "blue")
        assert store.calls["head"] == asked

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))


def test_what_another_client_sets_of_a_file_while_ours_is_refused_goes_along_when_it_is_renamed(tmp_path: Path) -> None:
    store = Held()
    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(store.put, "file", b"bytes", Properties()))
        store.errors["copy", "file"] = [REFUSED] * 100
        mount.loop.run(partial(chmod, mount))
        mount.loop.passes(3 * TTL)
        mount.loop.run(partial(store.put, "file", b"bytes", Properties(metadata={"theirs": "yes"})))
        assert store.errors.pop(("copy", "file"))
        mount.loop.run(partial(mount.rename, "file", "moved"))
        mount.loop.passes(LONG)
        found = store._stored["moved"].object.properties.metadata
        assert (found["mode"], found["theirs"]) == (str(0o100600), "yes")


def test_what_does_not_fit_into_metadata_is_refused_and_nothing_of_it_waits(tmp_path: Path) -> None:
    store = Held()

    async def main(mount: Composed) -> None:
        await store.put("file", b"bytes", Properties())
        inode = await mount._walk("file")
        inode.edits = inode.edits.with_metadata("large", "x" * 5000)
        with fails(errno.ENOSPC):
            mount.parts.attributes.changed(inode, posix=())
        inode.edits = NO_EDITS
        assert mount.parts.pending == 0

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))


@contextmanager
def full_disk() -> Iterator[None]:
    """Within, no change of attributes finds room in the journal."""

    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "save_attributes", refuse)
        yield


async def recorded(mount: Composed) -> list[str]:
    """The keys of which the journal has changed attributes."""
    return [saved.key for _, saved in mount._journal.attributes()]


async def set_by_kernel(mount: Composed, inode: Inode, **values: int) -> None:
    """setattr, as the kernel asks for it."""
    entry = pyfuse3.EntryAttributes()
    for name, value in values.items():
        setattr(entry, f"st_{name}", value)
    names = ("size", "mode", "uid", "gid", "atime", "mtime")
    fields: Any = SimpleNamespace(**{f"update_{name}": f"{name}_ns" in values or name in values for name in names})
    caller: Any = SimpleNamespace(pid=1, uid=0, gid=0, umask=0o022)
    await _operations(mount._settings, mount.parts).setattr(inode.number, entry, fields, None, caller)


@pytest.mark.promise(3)
@pytest.mark.parametrize(("number", "puts"), [(errno.ENOSPC, 1), (errno.EIO, 0)])
def test_an_upload_that_cannot_be_recorded_beside_a_change_waits_but_for_a_full_disk(
    tmp_path: Path, number: int, puts: int
) -> None:
    """After a kill nothing would tell it from another client's, and the change would pass for lost."""
    store = Held()

    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    async def main(mount: Composed) -> None:
        await store.put("file", b"bytes", Properties())
        await chmod(mount)
        handle = await opened(mount)
        await mount.parts.file_io.write(handle, 0, b"B")
        before = store.calls["put"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Journal, "save_attributes", refuse)
            with nullcontext() if puts else fails(number):
                await mount.parts.file_io.flush(handle)
        assert store.calls["put"] - before == puts
        await closed(mount, handle)

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))
        mount.loop.passes(LONG)
        assert (stored(store), mount.parts.pending) == (b"Bytes", 0)
        assert store._stored["file"].object.properties.metadata["mode"] == str(0o100600)


def test_a_mode_that_the_journal_had_no_room_for_does_not_undo_the_one_of_another_client(tmp_path: Path) -> None:
    store = Held(clock=partial(next, itertools.count(1_700_000_000)))

    async def main(mount: Composed) -> None:
        await store.put("file", b"bytes", Properties())
        inode = await mount._walk("file")
        with full_disk(), pytest.raises(pyfuse3.FUSEError):
            await set_by_kernel(mount, inode, mode=0o100600, atime_ns=5)
        assert (inode.mode, inode.atime_ns == 5) == (0o100644, False)
        await store.put("file", b"bytes", Properties(metadata={"mode": str(0o100640)}))
        await set_by_kernel(mount, inode, uid=1000)

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))
        mount.loop.passes(10)
        found = store._stored["file"].object.properties.metadata
        assert (found["mode"], found["uid"], mount.parts.pending) == (str(0o100640), "1000", 0)


@pytest.mark.parametrize("before", [None, 1_000_000_007], ids=["", "after another one"])
def test_a_time_that_the_journal_had_no_room_for_is_not_that_of_the_file_after_a_crash(
    tmp_path: Path, before: int | None
) -> None:
    """Bytes that nobody has closed go with the process, and the file has the time that it had before them."""
    store = Held()

    async def main(mount: Composed) -> None:
        await store.put("file", b"bytes", Properties(metadata={"mtime": "900000000.000000000"}))
        handle = await opened(mount)
        if before is not None:
            await set_by_kernel(mount, handle.inode, mtime_ns=before * 10**9)
        with full_disk(), pytest.raises(pyfuse3.FUSEError):
            await set_by_kernel(mount, handle.inode, mtime_ns=10**18)
        await mount.parts.file_io.write(handle, 0, b"B")
        await set_by_kernel(mount, handle.inode, mode=0o100600)

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))
        mount.crash()
        mount.start()
        mount.loop.passes(LONG)
        found = store._stored["file"].object.properties.metadata
        assert (stored(store), found["mode"]) == (b"bytes", str(0o100600))
        assert int(found["mtime"].partition(".")[0]) == (900_000_000 if before is None else before)


def test_a_time_that_was_refused_leaves_the_file_that_of_its_bytes(tmp_path: Path) -> None:
    """Of bytes that go up while they are written: what nobody has set is what the object says."""
    store = Held()

    async def main(mount: Composed) -> None:
        handle = await mount._opened(mount.parts.inodes.root, b"file", os.O_CREAT | os.O_RDWR)
        with pytest.raises(pyfuse3.FUSEError) as refused:
            await set_by_kernel(mount, handle.inode, mode=0o100600, mtime_ns=2 * 10**27)
        assert (refused.value.errno, handle.inode.mode) == (errno.EOVERFLOW, 0o100644)
        await closed(mount, handle)

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))
        assert store._stored["file"].object.properties.metadata["mode"] == str(0o100644)


def test_what_waits_for_room_in_the_journal_is_told_with_the_reason_and_written_once_there_is(
    tmp_path: Path,
) -> None:
    store = Held()
    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(store.put, "file", b"bytes", Properties()))
        mount.loop.run(partial(chmod, mount))
        with full_disk():
            mount.loop.passes(1.5)
            (waiting,) = mount.parts.attributes.waiting
            assert os.strerror(errno.ENOSPC) in waiting
            assert store.calls["copy"] == 0
            assert not mount.parts.attributes.in_doubt(mount.loop.run(partial(mount._walk, "file")))
        mount.loop.passes(LONG)
        assert store._stored["file"].object.properties.metadata["mode"] == str(0o100600)
        assert (mount.parts.pending, mount.parts.attributes.waiting) == (0, [])


def test_a_record_that_could_not_be_dropped_is_so_at_the_next_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, drop = Held(), Journal.drop_attributes

    def fails_once(journal: Journal, row: int) -> None:
        monkeypatch.setattr(Journal, "drop_attributes", drop)
        raise OSError(errno.EIO, "the disk")

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(store.put, "file", b"bytes", Properties()))
        mount.loop.run(partial(chmod, mount))
        monkeypatch.setattr(Journal, "drop_attributes", fails_once)
        mount.loop.passes(1.5)
        assert (Journal.drop_attributes, mount.parts.pending) == (drop, 1)
        mount.loop.passes(LONG)
        assert (mount.parts.pending, mount.loop.run(partial(recorded, mount))) == (0, [])


def test_an_upload_that_makes_room_goes_on_where_its_attributes_find_none(tmp_path: Path) -> None:
    """The row of what was set before the disk was full cannot be written again."""
    store = Held()

    async def main(mount: Composed) -> None:
        await store.put("file", b"as it was", Properties())
        handle = await opened(mount)
        await mount.parts.file_io.write(handle, 0, b"new")
        await chmod(mount)
        with full_disk():
            await closed(mount, handle)

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))
        assert stored(store) == b"newit was"
        assert store._stored["file"].object.properties.metadata["mode"] == str(0o100600)
        assert mount.parts.pending == 0


def test_what_is_new_has_the_type_of_its_name_and_the_class_of_the_mount_and_the_rest_its_own(tmp_path: Path) -> None:
    store, had = Held(), Properties(Headers("x/y"), {"md5chksum": "of the bytes before", "theirs": "yes"}, "WARM")

    async def main(mount: Composed) -> None:
        await store.put("old.txt", b"bytes", had)
        await store.put("standard.txt", b"bytes", Properties())
        for name in ("new.txt", "old.txt", "standard.txt"):
            await mount.write(name, b"other bytes", flags=os.O_CREAT)
        await mount.mkdir("d")
        await mount.settle()
        handle = await mount._opened(mount.parts.inodes.root, b"given.txt", os.O_CREAT | os.O_RDWR)
        handle.inode.edits = handle.inode.edits.with_header("content_type", "x/given")
        mount.parts.attributes.changed(handle.inode, posix=())
        await closed(mount, handle)

    with composed(store, tmp_path, storage_class="COLD") as mount:
        mount.loop.run(partial(main, mount))
        new, old = (store._stored[name].object.properties for name in ("new.txt", "old.txt"))
        assert (new.headers.content_type, new.storage_class) == ("text/plain", "COLD")
        assert store._stored["given.txt"].object.properties.headers.content_type == "x/given"
        assert (old.headers.content_type, old.storage_class) == ("x/y", "WARM")
        assert store._stored["standard.txt"].object.properties.storage_class == ""
        assert store._stored["d/"].object.properties.storage_class == "COLD"
        assert ("md5chksum" in old.metadata, old.metadata["theirs"]) == (False, "yes")


@pytest.mark.promise(7)
@pytest.mark.parametrize("key", ["file", "d/"])
def test_what_is_private_stays_so_when_the_next_mount_changes_its_mode_though_what_is_new_is_public(
    tmp_path: Path, key: str
) -> None:
    store = Published()

    async def main(mount: Composed) -> None:
        await store.put(key, b"" if key == "d/" else b"bytes", Properties(), acl=PRIVATE)
        await store.put("public", b"bytes", Properties(), acl=PUBLIC)
        for name in (key, "public"):
            await chmod(mount, name.rstrip("/"))

    with composed(store, tmp_path, acl=Canned.PUBLIC_READ) as mount:
        mount.loop.run(partial(main, mount))
        mount.crash()
        mount.start()
        mount.loop.passes(LONG)
        for name, acl in ((key, PRIVATE), ("public", PUBLIC)):
            assert int(store._stored[name].object.properties.metadata["mode"]) & 0o7777 == 0o600
            assert store._stored[name].acl == acl


# While bytes are on their way


def _mtime(store: FakeStore) -> int:
    seconds, rest = store._stored["file"].object.properties.metadata["mtime"].split(".")
    return int(seconds + rest)


async def _written_meanwhile(mount: Composed, store: Held, *, is_set: bool) -> int:
    """Bytes are written, and perhaps a time and a mode set, while those before go up; when that was."""
    handle = await opened(mount)
    await mount.parts.file_io.write(handle, 0, b"first")
    store.after["put"] = held = trio.Event()
    await begun(mount, partial(mount.parts.commits.commit, handle.inode))
    assert ("put", "file") in store.reached
    await mount.parts.file_io.write(handle, 0, b"then")
    if is_set:
        handle.inode.mtime_ns = NEW.mtime_ns or 0
        mount.parts.attributes.changed(handle.inode, posix={"mtime_ns"})
    await chmod(mount)
    held.set()
    await trio.testing.wait_all_tasks_blocked()
    del store.after["put"]
    return handle.inode.mtime_ns


@pytest.mark.promise(3)
@pytest.mark.parametrize("is_set", [False, True], ids=["by the write", "by its user"])
@pytest.mark.parametrize("crashes", [False, True], ids=["alive", "and a crash"])
def test_bytes_have_the_time_of_their_write_and_a_time_that_was_set_is_kept(
    tmp_path: Path, is_set: bool, crashes: bool
) -> None:
    store = Held()
    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(store.put, "file", b"as it was", Properties()))
        later = mount.loop.run(partial(_written_meanwhile, mount, store, is_set=is_set))
        first = _mtime(store)
        assert later != first
        if crashes:
            mount.crash()
            mount.start()
        else:
            mount.loop.run(mount.settle)
        mount.loop.passes(LONG)
        assert bodies(store) == {"file": b"first was" if crashes else b"thent was"}
        assert store._stored["file"].object.properties.metadata["mode"] == str(0o100600)
        assert _mtime(store) == (later if is_set or not crashes else first)
        assert mount.parts.pending == 0


async def _untold(mount: Composed, store: Held) -> None:
    """Another tool has stored it, and no time with it: it has that of then."""


async def _landed(mount: Composed, store: Held) -> None:
    """A time is set and bytes are written, and while those go up a mode is set."""
    handle = await opened(mount)
    await set_by_kernel(mount, handle.inode, mtime_ns=10**18)
    await mount.parts.file_io.write(handle, 0, b"first")
    store.before["put"] = held = trio.Event()
    await begun(mount, partial(mount.parts.commits.commit, handle.inode))
    await chmod(mount)
    await settled(held)
    assert (stored(store), store.calls["copy"]) == (b"first was", 0)


async def _refused(mount: Composed, store: Held) -> None:
    """A time is set by a mount that dies, and refused to the next one."""
    await set_by_kernel(mount, await mount._walk("file"), mtime_ns=10**18)
    store.errors["copy", "file"] = [denied()]


async def _kept(mount: Composed, store: Held) -> None:
    """A time is set, and the removal of the file refused."""
    await set_by_kernel(mount, await mount._walk("file"), mtime_ns=10**18)
    store.errors["delete", "file"] = [denied()]
    with fails(errno.EACCES):
        await mount.unlink("file")


async def _renamed(mount: Composed, store: Held) -> None:
    """A time is set, and a mode while the file is renamed."""
    await store.delete("file")
    await store.put("old", b"as it was", Properties())
    await set_by_kernel(mount, await mount._walk("old"), mtime_ns=10**18)
    store.before["copy"] = held = trio.Event()
    await begun(mount, partial(mount.rename, "old", "file"))
    await chmod(mount, "old")
    await settled(held)
    assert bodies(store) == {"file": b"as it was"}


async def _renamed_while_it_is_written(mount: Composed, store: Held) -> None:
    """As above, and bytes are written meanwhile that nobody closes."""
    await store.delete("file")
    await store.put("old", b"as it was", Properties())
    handle = await opened(mount, path="old")
    await set_by_kernel(mount, handle.inode, mtime_ns=10**18)
    store.before["copy"] = held = trio.Event()
    await begun(mount, partial(mount.rename, "old", "file"))
    await mount.parts.file_io.write(handle, 0, b"never closed")
    await chmod(mount, "old")
    await settled(held)
    assert bodies(store) == {"file": b"as it was"}


@pytest.mark.promise(3)
@pytest.mark.parametrize(
    ("before", "then"),
    [
        *itertools.product([_landed, _refused, _kept, _renamed], ["nothing", "closed", "written to"]),
        (_renamed_while_it_is_written, "nothing"),
        *itertools.product([_untold], ["nothing", "written to"]),
    ],
)
def test_a_crash_leaves_a_file_the_time_of_the_bytes_that_the_bucket_has(
    tmp_path: Path, before: Callable[[Composed, Held], Awaitable[None]], then: str
) -> None:
    """One that was set before they were written is over, and the one of bytes that nobody has closed goes with them."""
    store = Held(clock=partial(next, itertools.count(1_700_000_000)))
    given = 1_700_000_000 * 10**9 if before is _untold else 10**18

    async def go_on(mount: Composed) -> None:
        handle = await opened(mount)
        if then == "written to":
            time = handle.inode.mtime_ns
            await mount.parts.file_io.write(handle, 0, b"never closed")
            assert handle.inode.mtime_ns > time
        await chmod(mount, mode=0o640)
        if then == "closed":
            await closed(mount, handle)

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(store.put, "file", b"as it was", Properties()))
        mount.loop.run(partial(before, mount, store))
        if before is _refused:
            mount.crash()
            mount.start()
            assert store.errors["copy", "file"] == []
        body, time = stored(store), _mtime(store) if before is _landed else given
        mount.loop.run(partial(go_on, mount))
        mount.crash()
        mount.start()
        mount.loop.passes(LONG)
        assert (bodies(store), _mtime(store)) == ({"file": body}, time)
        assert store._stored["file"].object.properties.metadata["mode"] == str(0o100640)
        assert mount.parts.pending == 0


@pytest.mark.promise(3)
def test_a_directory_that_got_entries_after_its_time_was_set_has_that_of_those_after_a_crash(tmp_path: Path) -> None:
    store = Held()

    async def main(mount: Composed) -> int:
        await store.put("d/", b"", Properties())
        inode = await mount._walk("d")
        await set_by_kernel(mount, inode, mtime_ns=10**18)
        await mount.write("d/file", b"bytes", flags=os.O_CREAT)
        await chmod(mount, "d")
        return inode.mtime_ns

    with composed(store, tmp_path) as mount:
        time = mount.loop.run(partial(main, mount))
        mount.crash()
        mount.start()
        assert time > 10**18
        assert mount.loop.run(partial(mount._walk, "d")).mtime_ns == time


async def forgotten(mount: Composed) -> None:
    """The kernel has forgotten all that it may."""
    forget(mount)


@pytest.mark.promise(11)
def test_nothing_is_left_of_a_file_whose_attributes_are_written(tmp_path: Path) -> None:
    """However many have been changed; the kernel has forgotten it."""
    store = Held()

    async def main(mount: Composed) -> weakref.ref[Inode]:
        await store.put("d/file", b"bytes", Properties())
        handle = await opened(mount, path="d/file")
        await set_by_kernel(mount, handle.inode, mtime_ns=10**18, mode=0o100600)
        await closed(mount, handle)
        await mount.parts.attributes.write_now(handle.inode)
        return weakref.ref(handle.inode)

    with composed(store, tmp_path) as mount:
        found = mount.loop.run(partial(main, mount))
        mount.loop.passes(LONG)
        mount.loop.run(partial(forgotten, mount))
        gc.collect()
        assert found() is None


class Refuses(Held):
    """Refuses copies as long as it is told to; the first refusal is told to a rival, who then stores its own."""

    refuses = True
    rival: bytes | None = None

    async def copy(self, source: str, target: str, **options: Any) -> Any:
        if self.rival is not None:
            await FakeStore.put(self, source, self.rival, Properties(metadata={"theirs": "yes"}))
            self.rival = None
            raise REFUSED
        if self.refuses:
            raise REFUSED
        return await super().copy(source, target, **options)


@pytest.mark.promise(3)
def test_what_was_refused_to_the_mount_before_is_written_once_and_then_forgotten(tmp_path: Path) -> None:
    store = Refuses()
    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(store.put, "file", b"bytes", Properties()))
        mount.loop.run(partial(chmod, mount))
        mount.crash()
        mount.start()
        assert mount.parts.pending == 1
        store.refuses = False
        mount.loop.passes(3 * LATE)
        assert (mount.parts.pending, store._stored["file"].object.properties.metadata["mode"]) == (0, str(0o100600))
        mount.loop.run(partial(chmod, mount, mode=0o640))
        mount.loop.passes(3)
        mount.crash()
        mount.start()
        mount.loop.passes(LONG)
        assert store._stored["file"].object.properties.metadata["mode"] == str(0o100640)


def test_what_another_client_stores_while_the_next_mount_is_refused_is_theirs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Refuses()
    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(store.put, "file", b"bytes", Properties()))
        mount.loop.run(partial(chmod, mount))
        mount.crash()
        store.rival = b"theirs"
        mount.start()
        assert store.rival is None
        store.refuses = False
        mount.loop.passes(LONG)
        assert bodies(store) == {"file": b"theirs"}
        assert store._stored["file"].object.properties.metadata == {"theirs": "yes"}
        assert caplog.text.count("of the attributes of file is lost") == 1
        assert mount.parts.pending == 0


def change(mount: Composed, inode: Inode) -> None:
    """chmod, chown, utimensat and setxattr."""
    inode.mode, inode.uid, inode.gid, inode.mtime_ns = NEW.mode or 0, NEW.uid or 0, NEW.gid or 0, NEW.mtime_ns or 0
    inode.edits = inode.edits.with_metadata("color", "red").with_header("cache_control", "no-cache")
    mount.parts.attributes.changed(inode)


async def require_changed(mount: Composed) -> None:
    """What `change` did is there."""
    inode = await mount._walk("file")
    known = mount.parts.attributes.known(inode)
    assert inode.posix == NEW
    assert (known.metadata.get("color"), known.headers.cache_control) == ("red", "no-cache")


@pytest.mark.promise(3)
@pytest.mark.parametrize("before", [{}, {"file": b"as it was"}], ids=["new", "rewritten"])
@pytest.mark.parametrize("size", [100, MIB], ids=["in the row", "in a spool"])
def test_attributes_of_what_waits_for_its_upload_outlive_a_crash(
    tmp_path: Path, size: int, before: dict[str, bytes]
) -> None:
    store = FakeStore()

    async def main(mount: Composed) -> None:
        for key, body in before.items():
            await store.put(key, body, Properties())
        await mount.write("file", b"n" * size, flags=os.O_CREAT)
        change(mount, await mount._walk("file"))

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(main, mount))
        assert bodies(store) == before
        mount.crash()
        mount.start()
        mount.loop.run(partial(require_changed, mount))
        mount.loop.passes(LONG)
        assert bodies(store) == {"file": b"n" * size}
        mount.loop.run(partial(require_changed, mount))
        assert store._stored["file"].object.properties.metadata["color"] == "red"


@pytest.mark.promise(3)
def test_attributes_changed_while_the_upload_is_under_way_outlive_a_crash(tmp_path: Path) -> None:
    """The object is there, with the attributes of when the upload began, and nobody was told."""
    store = Held()

    async def main(mount: Composed) -> None:
        await store.put("file", b"as it was", Properties())
        await mount.write("file", b"new")
        store.after["put"] = trio.Event()

    async def later(mount: Composed) -> None:
        change(mount, await mount._walk("file"))

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(main, mount))
        mount.loop.passes(LONG)
        assert bodies(store) == {"file": b"newit was"}
        mount.loop.run(partial(later, mount))
        mount.crash()
        store.after.clear()
        mount.start()
        mount.loop.run(partial(require_changed, mount))
        mount.loop.passes(LONG)
        assert bodies(store) == {"file": b"newit was"}, "and no copy of a loser"
        assert store._stored["file"].object.properties.metadata["color"] == "red"


@pytest.mark.promise(3)
@pytest.mark.parametrize("before", [{}, {"file": b"as it was"}], ids=["new", "rewritten"])
@pytest.mark.parametrize("is_under_way", [True, False], ids=["under way", "not sent"])
@pytest.mark.parametrize("seconds", [0, 3], ids=["at once", "a while later"])
def test_what_the_bucket_may_have_of_an_open_file_keeps_the_attributes_that_were_set_meanwhile(
    tmp_path: Path, before: dict[str, bytes], is_under_way: bool, seconds: int
) -> None:
    """Of bytes that nobody has synced nothing was promised; of a file that is there, or on its way, it was."""
    store = Held()

    async def main(mount: Composed) -> None:
        for key, body in before.items():
            await store.put(key, body, Properties())
        handle = await mount._opened(mount.parts.inodes.root, b"file", os.O_CREAT | os.O_RDWR)
        await mount.parts.file_io.write(handle, 0, b"new")
        if is_under_way:
            store.after["put"] = trio.Event()
            await begun(mount, partial(mount.parts.file_io.fsync, handle.inode))
            assert ("put", "file") in store.reached
        await chmod(mount)

    with composed(store, tmp_path, durability=Durability.BUCKET) as mount:
        mount.loop.run(partial(main, mount))
        mount.loop.passes(seconds)
        mount.crash()
        store.after.clear()
        mount.start()
        mount.loop.passes(LONG)
        left = {"file": b"newit was" if before else b"new"} if is_under_way else before
        assert bodies(store) == left
        for key in left:
            assert store._stored[key].object.properties.metadata["mode"] == str(0o100600)


def test_attributes_of_a_new_file_that_nobody_has_closed_are_not_those_of_the_one_that_it_is_to_replace(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Held()

    async def main(mount: Composed) -> None:
        await store.put("file", b"bytes", Properties())
        handle = await mount._opened(mount.parts.inodes.root, b"new", os.O_CREAT | os.O_RDWR)
        await mount.parts.file_io.write(handle, 0, b"new")
        await mount.rename("new", "file")
        await chmod(mount)

    with composed(store, tmp_path, durability=Durability.BUCKET) as mount:
        mount.loop.run(partial(main, mount))
        mount.crash()
        mount.start()
        mount.loop.passes(LONG)
        assert mount.loop.run(mount.tree) == {"file": (b"bytes", 0o644)}
        assert "is lost" not in caplog.text, "nothing was promised"


@pytest.mark.promise(3)
def test_attributes_of_what_was_found_stored_outlive_the_next_crash_too(tmp_path: Path) -> None:
    """The first recovery finds the bytes in the bucket, and has the attributes that came after them yet to write."""
    store = Held()

    async def main(mount: Composed) -> None:
        await mount.write("file", b"new", flags=os.O_CREAT)
        store.after["put"] = trio.Event()

    async def later(mount: Composed) -> None:
        change(mount, await mount._walk("file"))

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(main, mount))
        mount.loop.passes(3)
        assert bodies(store) == {"file": b"new"}
        mount.loop.run(partial(later, mount))
        for _ in range(2):
            mount.crash()
            store.after.clear()
            mount.start()
            mount.loop.run(partial(require_changed, mount))
        mount.loop.passes(LONG)
        mount.loop.run(partial(require_changed, mount))
        found = store._stored["file"].object.properties.metadata
        assert (found["color"], found["mtime"]) == ("red", "1000000000.000000001")


@pytest.mark.parametrize("size", [100, MIB], ids=["in the row", "in a spool"])
def test_a_record_of_attributes_vouches_for_no_bytes_that_came_since(tmp_path: Path, size: int) -> None:
    store = FakeStore()

    async def main(mount: Composed) -> None:
        await mount.write("file", bytes(size), flags=os.O_CREAT)
        ((_, before),) = mount._journal.drafts()
        handle = await opened(mount)
        await mount.parts.file_io.write(handle, size, b"not recorded")
        change(mount, handle.inode)
        ((_, after),) = mount._journal.drafts()
        assert after == replace(before, posix=NEW, properties=after.properties, edits=handle.inode.edits, sums=())
        await closed(mount, handle)

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(main, mount))
        mount.loop.passes(LONG)
