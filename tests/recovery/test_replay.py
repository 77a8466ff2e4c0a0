"""What the next mount does with what a crash left, and what it leaves alone: each guard by itself.

In one process: the mount dies at a request that is held back, others change the bucket, and the next one begins.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

import tests.support.fake_store
from sosfs.config.choices import Canned
from sosfs.config.parameters import Durability
from sosfs.errors import StoreError
from sosfs.files.spool import SpoolArea
from sosfs.s3.protocol import (
    NOTHING,
    Acl,
    Grant,
    Headers,
    Properties,
)
from sosfs.s3.upload_check import DamagedWrite
from tests.support.composed import LONG, Composed, composed
from tests.support.drive import fails
from tests.support.held import Held, begun, bodies, chmod, opened, put_all, readers, settled, silence, stored

JOURNAL = Durability.JOURNAL
PART = 4096
FRIEND = Acl("owner", (Grant("owner", "FULL_CONTROL"), Grant("friend", "READ")))
CARRIED = Properties(
    Headers("text/plain", cache_control="no-store", expires="Thu, 01 Dec 1994 16:00:00 GMT"), {"colour": "blue"}, "COLD"
)


def _object(store: Held, key: str = "file") -> Properties:
    return store._stored[key].object.properties


@contextmanager
def crashes(
    store: Held, base: Path, before: Callable[[Composed], Awaitable[None]], **options: Any
) -> Iterator[Composed]:
    """A mount that has done `before` and died; `start` it again after what others do."""
    with composed(store, base, **options) as mount:
        mount.loop.run(partial(before, mount))
        mount.crash()
        store.before.clear()
        store.after.clear()
        store.errors.clear()
        yield mount


# Attributes


@pytest.mark.parametrize("key", ["file", "d/"])
def test_attributes_of_before_a_crash_keep_the_acl_and_all_else(tmp_path: Path, key: str) -> None:
    store = Held()

    async def before(mount: Composed) -> None:
        await store.put(key, b"bytes" if key == "file" else b"", CARRIED, acl=FRIEND)
        await chmod(mount, key.rstrip("/"))

    with crashes(store, tmp_path, before) as mount:
        mount.start()
        found = _object(store, key)
        assert int(found.metadata["mode"]) & 0o7777 == 0o600
        assert found.metadata["colour"] == "blue"
        assert found.headers == CARRIED.headers
        assert found.storage_class == "COLD"
        assert "friend" in readers(store, key)


@pytest.mark.parametrize("theirs", [b"theirs, longer", b"BYTES"])
def test_attributes_of_before_a_crash_are_not_those_of_another_clients_version(tmp_path: Path, theirs: bytes) -> None:
    store = Held()

    async def before(mount: Composed) -> None:
        await put_all(store, {"file": b"bytes"})
        await chmod(mount, "file")

    with crashes(store, tmp_path, before) as mount:
        mount.loop.run(partial(store.put, "file", theirs, Properties(Headers("image/png"), {"theirs": "yes"})))
        mount.start()
        assert stored(store) == theirs
        assert dict(_object(store).metadata) == {"theirs": "yes"}
        assert mount.loop.run(mount.tree) == {"file": (theirs, 0o644)}


def test_attributes_of_what_another_client_removed_bring_nothing_back(tmp_path: Path) -> None:
    store = Held()

    async def before(mount: Composed) -> None:
        await put_all(store, {"file": b"bytes", "other": b"other"})
        await chmod(mount, "file")

    with crashes(store, tmp_path, before) as mount:
        mount.loop.run(partial(store.delete, "file"))
        mount.start()
        mount.loop.passes(5)
        assert bodies(store) == {"other": b"other"}


def test_a_directory_whose_name_holds_bytes_by_now_is_not_emptied(tmp_path: Path) -> None:
    """Another client stored an object with bytes under the key of a marker: attributes must not cost them."""
    store = Held()

    async def before(mount: Composed) -> None:
        await put_all(store, {"d/": b"", "d/x": b"x"})
        await chmod(mount, "d", 0o700)

    with crashes(store, tmp_path, before) as mount:
        mount.loop.run(partial(store.put, "d/", b"bytes of another client", Properties()))
        mount.start()
        assert stored(store, "d/") == b"bytes of another client"


def test_attributes_of_a_file_that_is_not_sent_yet_go_up_with_it(tmp_path: Path) -> None:
    """Not before: they would change the version that the bytes are to replace."""
    store = Held()

    async def before(mount: Composed) -> None:
        await store.put("file", b"bytes", CARRIED, acl=FRIEND)
        await chmod(mount, "file")
        await mount.write("file", b"B")

    with crashes(store, tmp_path, before, durability=JOURNAL) as mount:
        copies = store.calls["copy"]
        mount.start()
        assert store.calls["copy"] == copies
        mount.loop.passes(5)
        mount.loop.run(mount.settle)
        assert bodies(store) == {"file": b"Bytes"}
        assert int(_object(store).metadata["mode"]) & 0o7777 == 0o600
        assert _object(store).headers == CARRIED.headers
        assert "friend" in readers(store, "file")


# Renames


@pytest.mark.parametrize("at", ["of an older version", "after the copy", "after the copy, and changed since"])
@pytest.mark.parametrize("what", ["file", "directory"])
def test_a_rename_is_finished_with_all_that_the_objects_have(tmp_path: Path, what: str, at: str) -> None:
    """One that has no copy yet is so only where no journal says it: it would be taken back."""
    store, old, new = Held(), *(("file", "moved") if what == "file" else ("d/file", "e/file"))

    async def before(mount: Composed) -> None:
        if at == "of an older version":
            mount._journal.add_rename(old.replace("/file", "/"), new.replace("/file", "/"))
        else:
            await store.put(old, b"bytes", CARRIED, acl=FRIEND)
            store.before["delete" if what == "file" else "delete_many"] = trio.Event()
            await begun(mount, partial(mount.rename, old.split("/")[0], new.split("/")[0]))
            assert new in store._stored

    with crashes(store, tmp_path, before) as mount:
        if at != "after the copy":
            if new in store._stored:
                mount.loop.run(lambda: store.put(new, b"before it was changed", NOTHING))
            mount.loop.run(lambda: store.put(old, b"bytes", CARRIED, acl=FRIEND))
        mount.start()
        assert bodies(store) == {new: b"bytes"}
        assert _object(store, new).headers == CARRIED.headers
        assert _object(store, new).metadata["colour"] == "blue"
        assert _object(store, new).storage_class == "COLD"
        assert "friend" in readers(store, new)


def test_a_rename_is_finished_with_what_another_client_has_set_since_the_copy(tmp_path: Path) -> None:
    """Of the same bytes, so that only the time of the object tells."""
    store, before = Held(), {"mode": str(0o100644), "uid": "0", "gid": "0", "mtime": "1"}

    async def begin(mount: Composed) -> None:
        await store.put("d/file", b"bytes", Properties(metadata=before))
        inode = await mount._walk("d/file")
        inode.uid = 7
        mount.parts.attributes.changed(inode, posix=["uid"])
        store.before["delete_many"] = trio.Event()
        await begun(mount, partial(mount.rename, "d", "e"))
        assert "e/file" in store._stored

    with crashes(store, tmp_path, begin) as mount:
        theirs = Properties(metadata=before | {"mode": str(0o100600)})
        mount.loop.run(lambda: store.put("d/file", b"bytes", theirs))
        mount.start()
        mount.loop.passes(LONG)
        assert bodies(store) == {"e/file": b"bytes"}
        found = _object(store, "e/file").metadata
        assert (int(found["mode"]) & 0o7777, found["uid"]) == (0o600, "7")


def test_a_rename_that_was_done_but_for_its_record_is_not_done_backwards(tmp_path: Path) -> None:
    """The old key is gone and the new one is there: nothing is left to do, and nothing goes."""
    store = Held()

    async def before(mount: Composed) -> None:
        await put_all(store, {"file": b"bytes"})
        store.after["delete", "file"] = trio.Event()
        await begun(mount, partial(mount.rename, "file", "moved"))
        assert bodies(store) == {"moved": b"bytes"}

    with crashes(store, tmp_path, before) as mount:
        mount.start()
        assert bodies(store) == {"moved": b"bytes"}
        assert mount.loop.run(mount.tree) == {"moved": (b"bytes", 0o644)}


@pytest.mark.parametrize("operation", ["copy", "delete_many"])
def test_a_rename_that_cannot_be_finished_keeps_the_mount_from_beginning_and_is_finished_later(
    tmp_path: Path, operation: str
) -> None:
    store = Held()

    def down(called: str, key: str) -> None:
        if called == operation:
            raise StoreError(errno.EIO, operation, detail="no answer")

    async def before(mount: Composed) -> None:
        await put_all(store, {f"d/{number}": b"%d" % number for number in range(5)})
        store.before["delete_many"] = trio.Event()
        await begun(mount, partial(mount.rename, "d", "e"))
        assert store.reached

    with crashes(store, tmp_path, before) as mount:
        del store._stored["e/3"]  # so that there is something to copy, too
        store.fault = down
        with pytest.raises(OSError):
            mount.start()
        mount.crash()
        store.fault = None
        found = bodies(store)
        assert set(found.values()) == {b"%d" % number for number in range(5)}, "nothing is lost meanwhile"
        mount.start()
        assert bodies(store) == {f"e/{number}": b"%d" % number for number in range(5)}


@pytest.mark.parametrize(("at", "name"), [(("copy", "d/z"), "d"), ("delete_many", "e")], ids=["back", "finished"])
def test_what_was_changed_below_a_directory_that_was_being_renamed_follows_it(
    tmp_path: Path, at: str | tuple[str, str], name: str
) -> None:
    """Bytes and attributes that were not sent when a crash cut a rename short: they follow the file."""
    store = Held()

    async def before(mount: Composed) -> None:
        await put_all(store, {"d/changed": b"old bytes", "d/chmod": b"c", "d/z": b"z"})
        await mount.write("d/changed", b"new")
        await mount.write("d/new", b"not sent", flags=os.O_CREAT)
        await chmod(mount, "d/chmod")
        store.before[at] = trio.Event()
        await begun(mount, partial(mount.rename, "d", "e"))
        assert store.reached

    with crashes(store, tmp_path, before, durability=JOURNAL) as mount:
        mount.start()
        mount.loop.passes(5)
        mount.loop.run(mount.settle)
        expected = {"changed": b"new bytes", "new": b"not sent", "chmod": b"c", "z": b"z"}
        assert bodies(store) == {f"{name}/{file}": body for file, body in expected.items()}
        assert int(_object(store, f"{name}/chmod").metadata["mode"]) & 0o7777 == 0o600


@pytest.mark.parametrize(
    ("parts", "theirs"), [(False, b"THEIRBYTE"), (True, b"THEIRS"), (True, b"")], ids=["same size", "parts", "nothing"]
)
def test_what_was_changed_of_a_file_that_was_being_renamed_is_not_mixed_with_what_another_client_has_put_there(
    tmp_path: Path, *, parts: bool, theirs: bytes
) -> None:
    """While no mount was there. Ours is kept beside it, without what was only in the version before."""
    now = [1.0]
    store = Held(clock=lambda: now[0])

    async def before(mount: Composed) -> None:
        await put_all(store, {"d/": b"", "d/file": b"old bytes"})
        if parts:
            upload = await store.create_multipart("d/file", Properties())
            part = await store.upload_part("d/file", upload, 1, b"old bytes")
            await store.complete_multipart("d/file", upload, [part])
        await mount.write("d/file", b"new")
        now[0] += 1
        store.before["delete_many"] = trio.Event()
        await begun(mount, partial(mount.rename, "d", "e"))
        assert store.reached

    with crashes(store, tmp_path, before, durability=JOURNAL) as mount:
        now[0] += 1
        mount.loop.run(partial(put_all, store, {"e/file": theirs} if theirs else {}))
        mount.start()
        mount.loop.passes(5)
        mount.loop.run(mount.settle)
        expected = sorted([theirs, b"new" + bytes(6)]) if theirs else [b"new bytes"]
        assert sorted(body for key, body in bodies(store).items() if not key.endswith("/")) == expected
        assert stored(store, "e/file") == (theirs or b"new bytes")


@pytest.mark.parametrize("is_file", [True, False], ids=["file", "directory"])
@pytest.mark.parametrize(
    ("parts", "theirs"), [(False, b"THEIRBYTE"), (True, b"THEIRS"), (False, None), (True, None)], ids=str
)
def test_attributes_of_a_file_that_was_being_renamed_are_not_for_what_another_client_has_put_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, *, is_file: bool, parts: bool, theirs: bytes | None
) -> None:
    """While no mount was there; nor are its bytes replaced. What is still the copy gets them."""
    now = [1.0]
    store = Held(clock=lambda: now[0])
    old, new = ("a", "b") if is_file else ("d/file", "e/file")

    async def before(mount: Composed) -> None:
        if parts:
            upload = await store.create_multipart(old, Properties())
            part = await store.upload_part(old, upload, 1, b"old bytes")
            await store.complete_multipart(old, upload, [part])
        else:
            await put_all(store, {old: b"old bytes"})
        await chmod(mount, old)
        now[0] += 1
        store.before["delete" if is_file else "delete_many"] = trio.Event()
        await begun(mount, partial(mount.rename, old[0], new[0]))
        assert store.reached

    with crashes(store, tmp_path, before) as mount:
        now[0] += 1
        mount.loop.run(partial(put_all, store, {new: theirs} if theirs else {}))
        mount.start()
        mount.loop.passes(LONG)
        assert bodies(store) == {new: theirs or b"old bytes"}
        if theirs:
            assert dict(_object(store, new).metadata) == {}
        else:
            assert int(_object(store, new).metadata["mode"]) & 0o7777 == 0o600
        assert ("of the attributes of" in caplog.text) == bool(theirs)
        assert mount.parts.pending == 0


def test_a_rename_over_a_file_that_was_not_sent_displaces_what_was_written_to_that(tmp_path: Path) -> None:
    store = Held()

    async def before(mount: Composed) -> None:
        await put_all(store, {"a": b"from a", "b": b"old b"})
        await mount.write("b", b"new")
        store.after["copy"] = trio.Event()
        await begun(mount, partial(mount.rename, "a", "b"))
        assert store.reached

    with crashes(store, tmp_path, before, durability=JOURNAL) as mount:
        mount.start()
        mount.loop.passes(5)
        mount.loop.run(mount.settle)
        assert bodies(store) == {"b": b"from a"}


@pytest.mark.promise(3)
@pytest.mark.parametrize("changed", [("write",), ("chmod",), ("write", "chmod"), ("chmod", "write")], ids="+".join)
@pytest.mark.parametrize("over", ["stored", "written", "free"])
def test_a_rename_of_a_changed_file_over_another_is_done_or_not(
    tmp_path: Path, over: str, changed: tuple[str, ...]
) -> None:
    """The copy has attributes that the source's object has not yet, and is that of the rename all the same."""
    store = Held()

    async def before(mount: Composed) -> None:
        await put_all(store, {"a": b"from a"} | ({"b": b"old b"} if over != "free" else {}))
        if over == "written":
            await mount.truncate("b", 0)
        for change in changed:
            await (mount.write("a", b"FROM") if change == "write" else chmod(mount, "a"))
        store.after["copy"] = trio.Event()
        await begun(mount, partial(mount.rename, "a", "b"))
        assert store.reached

    with crashes(store, tmp_path, before, durability=JOURNAL) as mount:
        mount.start()
        mount.loop.passes(5)
        mount.loop.run(mount.settle)
        name = "b" if over != "free" else "a"
        assert bodies(store) == {name: b"FROM a" if "write" in changed else b"from a"}
        if "chmod" in changed:
            assert int(_object(store, name).metadata["mode"]) & 0o7777 == 0o600


# Drafts


@pytest.mark.parametrize(("path", "size"), [("d/file", 10), ("file", 300_000)])
def test_what_was_acknowledged_is_sent_by_the_next_mount_with_its_attributes(
    tmp_path: Path, path: str, size: int
) -> None:
    store = Held()

    async def before(mount: Composed) -> None:
        if "/" in path:
            await mount.mkdir("d")
        await mount.write(path, b"n" * size, flags=os.O_CREAT)
        await mount.chmod(path, 0o640)

    with crashes(store, tmp_path, before, durability=JOURNAL) as mount:
        mount.start()
        assert mount.loop.run(mount.tree)[path] == (b"n" * size, 0o640), "it is there at once"
        assert mount.parts.pending
        mount.loop.passes(5)
        mount.loop.run(mount.settle)
        assert stored(store, path) == b"n" * size
        assert int(_object(store, path).metadata["mode"]) == 0o100640
        assert mount.loop.run(partial(_rows, mount)) == 0
        assert not list((mount._settings.state_dir / "spool").glob("*.spool"))


async def _rows(mount: Composed) -> int:
    return mount._journal.rows


def test_what_another_client_stored_meanwhile_wins_and_ours_is_kept_beside(tmp_path: Path) -> None:
    store = Held()

    async def before(mount: Composed) -> None:
        await put_all(store, {"file": b"old"})
        await mount.write("file", b"our")

    with crashes(store, tmp_path, before, durability=JOURNAL) as mount:
        mount.loop.run(partial(store.put, "file", b"theirs", Properties()))
        mount.start()
        mount.loop.passes(5)
        found = bodies(store)
        assert found.pop("file") == b"theirs"
        assert list(found.values()) == [b"our"]


def test_bytes_that_are_damaged_do_not_replace_the_object(tmp_path: Path) -> None:
    store = Held()

    async def before(mount: Composed) -> None:
        await put_all(store, {"file": b"o" * 300_000})
        await mount.write("file", b"n" * 300_000)

    with crashes(store, tmp_path, before, durability=JOURNAL) as mount:
        (spool,) = (mount._settings.state_dir / "spool").glob("*.spool")
        with spool.open("r+b") as file:
            file.seek(150_000)
            file.write(b"?")
        mount.start()
        mount.loop.passes(LONG)
        assert stored(store) == b"o" * 300_000


def test_a_spool_that_was_being_written_to_is_not_damage(tmp_path: Path) -> None:
    """What was acknowledged is there, whatever of the later bytes is."""
    store = Held()

    async def before(mount: Composed) -> None:
        await mount.write("file", b"a" * 300_000, flags=os.O_CREAT)
        handle = await opened(mount, os.O_WRONLY)
        await mount.parts.file_io.write(handle, 100, b"b" * 200_000)

    with crashes(store, tmp_path, before, durability=JOURNAL) as mount:
        mount.start()
        mount.loop.passes(5)
        mount.loop.run(mount.settle)
        assert list(bodies(store)) == ["file"]
        assert stored(store) == b"a" * 100 + b"b" * 200_000 + b"a" * 99_900


def test_a_cut_that_was_not_acknowledged_leaves_a_true_record(tmp_path: Path) -> None:
    store = Held()

    async def before(mount: Composed) -> None:
        await mount.write("file", b"a" * 300_000, flags=os.O_CREAT)
        handle = await opened(mount, os.O_WRONLY)
        await mount.parts.file_io.truncate(handle.inode, 1000)

    with crashes(store, tmp_path, before, durability=JOURNAL) as mount:
        mount.start()
        mount.loop.passes(5)
        mount.loop.run(mount.settle)
        assert list(bodies(store)) == ["file"]
        assert stored(store) in (b"a" * 300_000, b"a" * 1000)


def test_only_spools_that_nobody_needs_are_removed(tmp_path: Path) -> None:
    store = Held()

    async def before(mount: Composed) -> None:
        await mount.write("file", b"a" * 300_000, flags=os.O_CREAT)

    with crashes(store, tmp_path, before, durability=JOURNAL) as mount:
        store.fault = _puts_fail
        mount.start()
        assert len(list((mount._settings.state_dir / "spool").glob("*.spool"))) == 1
        mount.crash()
        mount.start()
        store.fault = None
        mount.loop.passes(LONG)
        assert stored(store) == b"a" * 300_000


def _puts_fail(operation: str, key: str) -> None:
    if operation == "put":
        raise StoreError(errno.EIO, "put", detail="no answer")


def test_a_file_where_a_directory_was_made_meanwhile_is_beside_it(tmp_path: Path) -> None:
    store = Held()

    async def before(mount: Composed) -> None:
        await mount.write("name", b"of a file", flags=os.O_CREAT)

    with crashes(store, tmp_path, before, durability=JOURNAL) as mount:
        mount.loop.run(lambda: put_all(store, {"name/x": b"x"}))
        mount.start()
        mount.loop.passes(5)
        mount.loop.run(mount.settle)
        assert bodies(store) == {"name": b"of a file", "name/x": b"x"}
        assert mount.loop.run(mount.tree)["name/x"] == (b"x", 0o644)


def test_what_was_stored_just_before_the_crash_is_not_stored_again(tmp_path: Path) -> None:
    store = Held()

    async def before(mount: Composed) -> None:
        await mount.write("file", b"bytes", flags=os.O_CREAT)
        store.after["put"] = trio.Event()
        await begun(mount, partial(mount.parts.commits.commit, await mount._walk("file")))
        assert stored(store) == b"bytes"

    with crashes(store, tmp_path, before, durability=JOURNAL) as mount:
        puts = store.calls["put"]
        mount.start()
        assert mount.parts.pending == 0
        mount.loop.passes(5)
        assert store.calls["put"] == puts
        assert bodies(store) == {"file": b"bytes"}


@pytest.mark.promise(3)
@pytest.mark.parametrize("is_set", [False, True], ids=["by the write", "by a program meanwhile"])
def test_what_was_stored_with_more_than_was_recorded_has_its_own_time(tmp_path: Path, is_set: bool) -> None:
    """Not that of the bytes before, nor does another copy give it that; but one that was set since is promised."""
    store, times = Held(), {"closed": 1_000_000_001, "written": 2_000_000_002, "set": 3_000_000_003}

    async def before(mount: Composed) -> None:
        mount.parts.commits.debounce.delay = LONG
        handle = await mount._opened(mount.parts.inodes.root, b"file", os.O_CREAT | os.O_RDWR)
        await mount.parts.file_io.write(handle, 0, b"closed")
        handle.inode.mtime_ns = times["closed"]
        await mount.parts.file_io.flush(handle)
        await mount.parts.file_io.write(handle, 0, b"written")
        handle.inode.mtime_ns = times["written"]
        store.after["put"] = trio.Event()
        await begun(mount, partial(mount.parts.commits.commit, handle.inode))
        assert stored(store) == b"written"
        if is_set:
            handle.inode.mtime_ns = times["set"]
            mount.parts.file_io.time_given(handle.inode)
            mount.parts.attributes.changed(handle.inode, posix={"mtime_ns"})

    async def shown(mount: Composed) -> int:
        return (await mount._walk("file")).mtime_ns

    with crashes(store, tmp_path, before, durability=JOURNAL) as mount:
        mount.start()
        expected = times["set" if is_set else "written"]
        assert mount.loop.run(partial(shown, mount)) == expected
        mount.loop.passes(LONG)
        assert _object(store).metadata["mtime"].replace(".", "").lstrip("0") == str(expected)
        assert (store.calls["copy"], stored(store), mount.parts.pending) == (int(is_set), b"written", 0)


@pytest.mark.promise(3)
def test_a_file_of_the_size_and_time_of_the_one_before_it_is_not_taken_for_stored(tmp_path: Path) -> None:
    """Where ETags are no hashes these are all that tells, and the request that got no answer has had no effect."""
    store = Held(hashes=False)

    async def before(mount: Composed) -> None:
        await mount.write("file", b"old", flags=os.O_CREAT)
        inode = await mount._walk("file")
        await mount.parts.commits.commit(inode)
        handle, time = await opened(mount), inode.mtime_ns
        await mount.parts.file_io.write(handle, 0, b"new")
        inode.mtime_ns = time
        mount.parts.file_io.time_given(inode)
        mount.parts.attributes.changed(inode)
        await mount.parts.file_io.flush(handle)
        store.errors["put", "file"] = [silence("put")]
        with fails(errno.EIO):
            await mount.parts.commits.commit(inode)

    with crashes(store, tmp_path, before, durability=JOURNAL) as mount:
        mount.take_up()
        assert bodies(store) == {"file": b"new"}


# Multipart uploads that a crash interrupted


async def _interrupted(mount: Composed, store: Held, body: bytes) -> None:
    """A file in parts is up, but for the request that makes an object of them."""
    await mount.write("file", body, flags=os.O_CREAT)
    store.before["complete_multipart"] = trio.Event()
    await begun(mount, partial(mount.parts.commits.commit, await mount._walk("file")))
    assert store.reached
    assert len(store._uploads) == 1


def _body(parts: int, more: int = 0) -> bytes:
    return b"".join(bytes([65 + number]) * PART for number in range(parts)) + b"z" * more


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tests.support.fake_store, "PART_MIN", 1)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("count", [70])
def test_an_upload_goes_on_and_sends_no_part_again(tmp_path: Path, count: int) -> None:
    store, body = Held(), _body(count, 5)
    with crashes(
        store, tmp_path, partial(_interrupted, store=store, body=body), durability=JOURNAL, part_size=PART
    ) as mount:
        sent = store.calls["upload_part"]
        assert sent == count + 1
        mount.start()
        mount.loop.passes(5)
        mount.loop.run(mount.settle)
        assert stored(store) == body
        assert store.calls["upload_part"] == sent, "all parts were there"
        assert store.calls["create_multipart"] == 1
        assert not store._uploads


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("how", ["written over", "cut", "grown"])
def test_parts_that_were_sent_of_other_bytes_are_sent_again(tmp_path: Path, how: str) -> None:
    """The file was changed after its parts went up, was acknowledged, and the process died."""
    store, body = Held(), _body(70, 5)
    expected = {
        "written over": body[: 3 * PART] + b"!" + body[3 * PART + 1 :],
        "cut": body[: 66 * PART + 7],
        "grown": body + b"more" * 100,
    }[how]

    async def before(mount: Composed) -> None:
        await _interrupted(mount, store, body)
        handle = await opened(mount, os.O_WRONLY)
        if how == "cut":
            await mount.parts.file_io.truncate(handle.inode, len(expected))
        elif how == "grown":
            await mount.parts.file_io.write(handle, len(body), b"more" * 100)
        else:
            await mount.parts.file_io.write(handle, 3 * PART, b"!")
        await mount.parts.file_io.fsync(handle.inode)

    with crashes(store, tmp_path, before, durability=JOURNAL, part_size=PART) as mount:
        sent = store.calls["upload_part"]
        mount.start()
        mount.loop.passes(5)
        mount.loop.run(mount.settle)
        assert stored(store) == expected
        if how == "written over":
            assert store.calls["upload_part"] == sent + 1
        assert not store._uploads


@pytest.mark.usefixtures("small_parts")
def test_an_upload_that_the_server_forgot_is_begun_anew(tmp_path: Path) -> None:
    store, body = Held(), _body(70, 5)
    with crashes(
        store, tmp_path, partial(_interrupted, store=store, body=body), durability=JOURNAL, part_size=PART
    ) as mount:
        store._uploads.clear()
        mount.start()
        mount.loop.passes(5)
        mount.loop.run(mount.settle)
        assert stored(store) == body
        assert mount.loop.run(partial(_uploads, mount)) == []


@pytest.mark.promise(3)
@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("other", ["before", "before, with a part", "after", "after, and gone"])
def test_bytes_that_are_in_parts_alone_are_found_in_their_upload_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    """Of the same key there is one that could not be aborted yet."""
    store, body = Held(), _body(20)
    monkeypatch.setattr("sosfs.files.spool.SPILL", 1000)
    monkeypatch.setattr("sosfs.files.write_behind.SPILL", 1000)
    monkeypatch.setattr("sosfs.files.write_behind.RELIEF", PART)
    monkeypatch.setattr("sosfs.files.spool.INLINE", 500)
    monkeypatch.setattr(SpoolArea, "is_short", property(lambda self: False))

    async def before(mount: Composed) -> None:
        if other.startswith("before"):
            upload_id = await mount.parts.multiparts.begin("file", Properties())
            if other != "before":
                await store.upload_part("file", upload_id, 1, b"x" * PART)
        handle = await mount._opened(mount.parts.inodes.root, b"file", os.O_CREAT | os.O_WRONLY)
        for at in range(0, len(body), PART // 2):
            await mount.parts.file_io.write(handle, at, body[at : at + PART // 2])
            await trio.testing.wait_all_tasks_blocked()
        draft = handle.open_file.draft
        assert draft is not None and draft.away.total
        assert draft.size == len(body)
        if other.startswith("after"):
            upload_id = await mount.parts.multiparts.begin("file", Properties())
            if other != "after":
                del store._uploads[upload_id]
        await mount.parts.commits.record_all()

    with crashes(store, tmp_path, before, durability=JOURNAL, part_size=PART, dirty_limit=3 * PART) as mount:
        mount.start()
        mount.loop.passes(5)
        mount.loop.run(mount.settle)
        assert bodies(store) == {"file": body}
        assert not store._uploads


@pytest.mark.usefixtures("small_parts")
def test_an_upload_whose_file_became_small_or_was_removed_is_dropped(tmp_path: Path) -> None:
    store, body = Held(), _body(70, 5)

    async def before(mount: Composed) -> None:
        await _interrupted(mount, store, body)
        handle = await opened(mount, os.O_WRONLY)
        await mount.parts.file_io.truncate(handle.inode, 10)
        await mount.parts.file_io.fsync(handle.inode)

    with crashes(store, tmp_path, before, durability=JOURNAL, part_size=PART) as mount:
        mount.start()
        assert not store._uploads
        mount.loop.passes(5)
        mount.loop.run(mount.settle)
        assert stored(store) == body[:10]
        assert mount.loop.run(partial(_uploads, mount)) == []


async def _uploads(mount: Composed) -> list[str]:
    return [upload for upload, _, _ in mount._journal.uploads()]


@pytest.mark.usefixtures("small_parts")
def test_an_upload_that_goes_on_has_the_attributes_of_now(tmp_path: Path) -> None:
    """Those of a multipart upload are fixed at its beginning: what was changed since is written afterwards."""
    store, body = Held(), _body(70, 5)

    async def before(mount: Composed) -> None:
        await _interrupted(mount, store, body)
        await mount.chmod("file", 0o600)

    with crashes(store, tmp_path, before, durability=JOURNAL, part_size=PART) as mount:
        mount.start()
        mount.loop.passes(10)
        mount.loop.run(mount.settle)
        assert stored(store) == body
        assert int(_object(store).metadata["mode"]) == 0o100600


@pytest.mark.promise(7)
@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("how", ["forgotten", "cut"])
def test_an_upload_that_is_begun_anew_after_a_crash_has_the_acl_of_the_file(tmp_path: Path, how: str) -> None:
    """What the server has forgotten, or has too many parts of."""
    store, body = Held(), _body(70, 5)
    length = len(body) if how == "forgotten" else 40 * PART

    async def before(mount: Composed) -> None:
        await store.put("file", b"old", CARRIED, acl=FRIEND)
        await _interrupted(mount, store, body)
        if how == "cut":
            handle = await opened(mount, os.O_WRONLY)
            await mount.parts.file_io.truncate(handle.inode, length)
            await mount.parts.file_io.fsync(handle.inode)

    with crashes(store, tmp_path, before, durability=JOURNAL, part_size=PART) as mount:
        if how == "forgotten":
            store._uploads.clear()
        mount.start()
        mount.loop.passes(5)
        mount.loop.run(mount.settle)
        assert stored(store) == body[:length]
        assert "friend" in readers(store)
        assert _object(store).headers == CARRIED.headers


@pytest.mark.usefixtures("small_parts")
def test_an_upload_that_is_begun_anew_after_a_crash_is_known_without_an_answer(tmp_path: Path) -> None:
    """By the time of its file, where ETags are no hashes; the one before had another."""
    store, body = Held(hashes=False), _body(70, 5)

    async def before(mount: Composed) -> None:
        await _interrupted(mount, store, body)
        handle = await opened(mount, os.O_WRONLY)
        await mount.parts.file_io.truncate(handle.inode, 40 * PART)
        await mount.parts.file_io.fsync(handle.inode)

    with crashes(store, tmp_path, before, durability=JOURNAL, part_size=PART) as mount:
        store.lost.add("file")
        mount.start()
        mount.loop.passes(30)
        mount.loop.run(mount.settle)
        assert bodies(store) == {"file": body[: 40 * PART]}
        assert store.calls["complete_multipart"] > 0


@pytest.mark.promise(7)
@pytest.mark.usefixtures("small_parts")
def test_a_new_file_does_not_go_on_with_the_upload_of_one_that_was_removed(tmp_path: Path) -> None:
    """Which could not be aborted: whoever may read that one could read the new one, too."""
    store, body = Held(), _body(70, 5)

    async def before(mount: Composed) -> None:
        await store.put("file", b"old", CARRIED, acl=FRIEND)
        await mount.write("file", body)
        store.errors["complete_multipart", "file"] = [silence("complete")]
        with fails(errno.EIO):
            await mount.parts.commits.commit(await mount._walk("file"))
        store.errors["abort_multipart", "file"] = [silence("abort")]
        await mount.unlink("file")
        await mount.write("file", body, flags=os.O_CREAT)

    with crashes(store, tmp_path, before, durability=JOURNAL, part_size=PART) as mount:
        assert len(store._uploads) == 1
        mount.start()
        mount.loop.passes(5)
        mount.loop.run(mount.settle)
        assert stored(store) == body
        assert "friend" not in readers(store)
        assert store.calls["create_multipart"] == 2, "it could be read for a moment"
        assert not store._uploads


@pytest.mark.promise(7)
@pytest.mark.usefixtures("small_parts")
def test_nor_with_that_of_one_that_was_renamed_while_its_upload_was_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There was nothing to give up by then; what has come of it is given up when its parts have arrived."""
    store, body = Held(), _body(70, 5)

    async def before(mount: Composed) -> None:
        await store.put("file", b"old", CARRIED, acl=FRIEND)
        handle = await opened(mount, os.O_WRONLY | os.O_TRUNC)
        begin = store.after["create_multipart"] = trio.Event()
        store.before["upload_part"] = trio.Event()
        with monkeypatch.context() as patch:
            patch.setattr("sosfs.files.write_behind.STREAM_MIN", PART)
            for at in range(0, len(body), PART):
                await mount.parts.file_io.write(handle, at, body[at : at + PART])
            await trio.testing.wait_all_tasks_blocked()
        assert ("create_multipart", "file") in store.reached
        await mount.rename("file", "moved")
        await mount.write("file", body, flags=os.O_CREAT)
        await settled(begin)
        assert ("upload_part", "file") in store.reached

    with crashes(store, tmp_path, before, durability=JOURNAL, part_size=PART) as mount:
        assert len(store._uploads) == 1
        mount.start()
        mount.loop.passes(5)
        mount.loop.run(mount.settle)
        assert stored(store) == body
        assert "friend" not in readers(store)
        assert _object(store).headers != CARRIED.headers
        assert not store._uploads


@pytest.mark.promise(3)
@pytest.mark.parametrize("size", [100, 300_000], ids=["in its row", "in the spool"])
def test_what_arrived_damaged_in_place_of_its_base_outlives_a_crash(tmp_path: Path, size: int) -> None:
    """What was not changed of it is in no other place by then."""
    store = Held()

    async def before(mount: Composed) -> None:
        await put_all(store, {"file": b"o" * size})
        await mount.write("file", b"n", at=size - 1)
        put = store.put

        async def damaged(key: str, body: bytes, *arguments: Any, **options: Any) -> None:
            raise DamagedWrite("put", await put(key, b"?" * len(body), *arguments, **options))

        store.put = damaged  # type: ignore[method-assign, assignment]
        with fails(errno.EIO):
            await mount.parts.commits.commit(await mount._walk("file"))
        del store.put

    with crashes(store, tmp_path, before, durability=JOURNAL) as mount:
        mount.take_up()
        assert bodies(store) == {"file": b"o" * (size - 1) + b"n"}


def test_public_stays_public(tmp_path: Path) -> None:
    """A canned ACL, and a file whose bytes and attributes were both changed before the crash."""
    store = Held()

    async def before(mount: Composed) -> None:
        await store.put("file", b"bytes", replace(CARRIED, storage_class=""))
        await store.put_acl("file", Canned.PUBLIC_READ)
        await mount.write("file", b"B")
        await mount.chmod("file", 0o600)

    with crashes(store, tmp_path, before, durability=JOURNAL) as mount:
        acl = store._stored["file"].acl
        mount.start()
        mount.loop.passes(5)
        mount.loop.run(mount.settle)
        assert stored(store) == b"Bytes"
        assert store._stored["file"].acl == acl


# What the record of a draft says while it is changed


@pytest.mark.parametrize("size", [10, 300_000], ids=["in its row", "in the spool"])
@pytest.mark.parametrize("hashes", [True, False])
def test_a_recorded_file_that_is_renamed_while_it_is_written_is_under_its_new_name(
    tmp_path: Path, size: int, hashes: bool
) -> None:
    """Upon the version that the rename has made: it is no conflict, and what was not written is still read from it."""
    store = Held(hashes=hashes)

    async def before(mount: Composed) -> None:
        await put_all(store, {"file": b"o" * (size + 1000)})
        handle = await opened(mount)
        await mount.parts.file_io.write(handle, 0, b"n" * size)
        await mount.parts.file_io.fsync(handle.inode)
        await mount.parts.file_io.write(handle, 0, b"m")
        await mount.rename("file", "moved")

    with crashes(store, tmp_path, before, durability=JOURNAL) as mount:
        assert bodies(store).keys() == {"moved"}
        mount.start()
        mount.loop.passes(5)
        mount.loop.run(mount.settle)
        assert bodies(store).keys() == {"moved"}, "no conflict with itself"
        assert stored(store, "moved")[1:] == b"n" * (size - 1) + b"o" * 1000


@pytest.mark.parametrize("size", [10, 300_000], ids=["in its row", "in the spool"])
@pytest.mark.parametrize("is_new", [True, False])
@pytest.mark.parametrize("is_written_on", [True, False])
def test_attributes_that_are_set_after_the_record_are_in_it(
    tmp_path: Path, size: int, is_new: bool, is_written_on: bool
) -> None:
    store = Held()

    async def before(mount: Composed) -> None:
        if not is_new:
            await store.put("file", b"o" * size, CARRIED)
        handle = await mount._opened(mount.parts.inodes.root, b"file", os.O_CREAT | os.O_RDWR)
        await mount.parts.file_io.write(handle, 0, b"n" * size)
        await mount.parts.file_io.flush(handle)
        if is_written_on:
            await mount.parts.file_io.write(handle, 0, b"n")
        inode = handle.inode
        inode.edits = inode.edits.with_metadata("shape", "round").with_header("content_language", "de")
        mount.parts.attributes.changed(inode)
        await chmod(mount, "file")

    with crashes(store, tmp_path, before, durability=JOURNAL) as mount:
        mount.start()
        mount.loop.passes(5)
        mount.loop.run(mount.settle)
        mount.loop.passes(5)
        found = _object(store)
        assert stored(store) == b"n" * size
        assert (found.metadata["mode"], found.metadata["shape"]) == (str(0o100600), "round")
        assert found.headers.content_language == "de"
        assert is_new or (found.metadata["colour"], found.headers.cache_control) == ("blue", "no-store")


@pytest.mark.parametrize("length", [1000, 290_000, 400_000])
def test_what_was_cut_off_does_not_come_back(tmp_path: Path, length: int) -> None:
    """A process that dies right after the cut of a recorded file: neither its own bytes nor the old ones are there."""
    store = Held()
    whole = b"n" * 300_000 + b"o" * 300_000

    async def before(mount: Composed) -> None:
        await put_all(store, {"file": b"o" * 600_000})
        handle = await opened(mount)
        await mount.parts.file_io.write(handle, 0, b"n" * 300_000)
        await mount.parts.file_io.flush(handle)
        await mount.parts.file_io.truncate(handle.inode, length)

    with crashes(store, tmp_path, before, durability=JOURNAL) as mount:
        mount.start()
        assert mount.loop.run(mount.tree)["file"] == (whole[:length], 0o644)
        mount.loop.run(partial(mount.truncate, "file", 600_000))
        mount.loop.passes(5)
        mount.loop.run(mount.settle)
        assert stored(store) == whole[:length] + bytes(600_000 - length)


def test_a_file_that_grew_again_after_a_cut_has_zeros_there(tmp_path: Path) -> None:
    store = Held()

    async def before(mount: Composed) -> None:
        await mount.write("file", b"n" * 300_000, flags=os.O_CREAT)
        handle = await opened(mount)
        await mount.parts.file_io.truncate(handle.inode, 1000)
        await mount.parts.file_io.truncate(handle.inode, 300_000)
        await mount.parts.file_io.fsync(handle.inode)

    with crashes(store, tmp_path, before, durability=JOURNAL) as mount:
        mount.start()
        mount.loop.passes(5)
        mount.loop.run(mount.settle)
        assert stored(store) == b"n" * 1000 + bytes(299_000)


def test_a_file_that_was_emptied_before_a_crash_has_zeros_where_it_grows_after_it(tmp_path: Path) -> None:
    """And nothing of what the bucket still has of it."""
    store = Held()

    async def before(mount: Composed) -> None:
        await put_all(store, {"file": b"o" * 400_000})
        handle = await opened(mount)
        await mount.parts.file_io.write(handle, 0, b"n" * 300_000)
        await mount.parts.file_io.fsync(handle.inode)
        await mount.parts.file_io.truncate(handle.inode, 0)

    with crashes(store, tmp_path, before, durability=JOURNAL) as mount:
        mount.start()
        mount.loop.run(partial(mount.truncate, "file", 1000))
        mount.loop.passes(5)
        mount.loop.run(mount.settle)
        assert bodies(store) == {"file": bytes(1000)}


# What a step of the replay takes along, and what it leaves alone


def test_a_removal_takes_its_own_unsent_bytes_along_and_no_others(tmp_path: Path) -> None:
    store = Held()

    async def before(mount: Composed) -> None:
        await put_all(store, {"gone": b"old", "changed": b"old"})
        for path in ("gone", "changed", "new"):
            await mount.write(path, b"new", flags=os.O_CREAT)
        store.before["delete", "gone"] = trio.Event()
        await begun(mount, partial(mount.unlink, "gone"))
        assert ("delete", "gone") in store.reached

    with crashes(store, tmp_path, before, durability=JOURNAL) as mount:
        mount.start()
        mount.loop.passes(5)
        mount.loop.run(mount.settle)
        assert bodies(store) == {"changed": b"new", "new": b"new"}
        assert mount.loop.run(partial(_rows, mount)) == 0


@pytest.mark.parametrize("theirs", [None, b"old", b"theirs"])
def test_of_a_removal_it_is_said_only_where_another_clients_file_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, theirs: bytes | None
) -> None:
    """Equal bytes of the same second cannot be told from those that were removed."""
    store = Held(clock=lambda: 0.0)

    async def before(mount: Composed) -> None:
        await put_all(store, {"file": b"old"})
        store.before["delete", "file"] = trio.Event()
        await begun(mount, partial(mount.unlink, "file"))

    with crashes(store, tmp_path, before) as mount:
        if theirs is None:
            del store._stored["file"]
        else:
            mount.loop.run(partial(store.put, "file", theirs, Properties()))
        mount.start()
        assert bodies(store) == ({"file": b"theirs"} if theirs == b"theirs" else {})
        assert ("theirs stays" in caplog.text) == (theirs == b"theirs")


def test_a_removal_without_an_answer_keeps_the_mount_from_beginning_and_is_done_later(tmp_path: Path) -> None:
    """A refusal does not: that one is tried on while the mount goes on."""
    store = Held()

    async def before(mount: Composed) -> None:
        await put_all(store, {"file": b"old"})
        store.before["delete", "file"] = trio.Event()
        await begun(mount, partial(mount.unlink, "file"))

    with crashes(store, tmp_path, before) as mount:
        store.errors["delete", "file"] = [StoreError(errno.EIO, "delete", detail="no answer")]
        with pytest.raises(OSError, match="no answer"):
            mount.start()
        mount.crash()
        store.errors["delete", "file"] = [StoreError(errno.EACCES, "delete", code="AccessDenied", status=403)]
        mount.start()
        assert mount.loop.run(mount.tree) == {}, "its name is gone meanwhile"
        assert mount.parts.pending == 1
        mount.loop.passes(LONG)
        assert bodies(store) == {}


def test_a_rename_of_a_file_is_of_that_file_alone(tmp_path: Path) -> None:
    """Not of those whose keys begin with its own; and what stands under the new key is not taken for its copy."""
    store = Held()

    async def before(mount: Composed) -> None:
        await store.put("a", b"same", CARRIED)
        await put_all(store, {"ab": b"other", "a/b": b"below", "new": b"same"})
        mount._journal.add_rename("a", "new")

    with crashes(store, tmp_path, before) as mount:
        mount.start()
        assert bodies(store) == {"ab": b"other", "a/b": b"below", "new": b"same"}
        assert _object(store, "new").metadata["colour"] == "blue"
        assert mount.loop.run(partial(_rows, mount)) == 0, "it is not done again to what has the name then"


@pytest.mark.parametrize("hashes", [True, False])
def test_attributes_that_wait_follow_a_rename_and_those_of_what_it_replaced_do_not(
    tmp_path: Path, hashes: bool
) -> None:
    store = Held(hashes=hashes)

    async def before(mount: Composed) -> None:
        await put_all(store, {"d/a": b"same", "d/b": b"same", "e/a": b"same"})
        await chmod(mount, "d/a", 0o600)
        await chmod(mount, "d/b", 0o755)
        store.before["delete", "d/a"] = store.before["delete_many"] = trio.Event()
        await begun(mount, partial(mount.rename, "d/a", "d/b"))
        await chmod(mount, "e/a", 0o640)
        await begun(mount, partial(mount.rename, "e", "f"))
        assert {"d/b", "f/a"} <= store._stored.keys()

    with crashes(store, tmp_path, before) as mount:
        mount.start()
        mount.loop.passes(LONG)
        assert bodies(store) == {"d/b": b"same", "f/a": b"same"}
        modes = [int(_object(store, key).metadata["mode"]) & 0o7777 for key in ("d/b", "f/a")]
        assert modes == [0o600, 0o640]
        assert mount.loop.run(partial(_rows, mount)) == 0


@pytest.mark.usefixtures("small_parts")
def test_an_upload_that_cannot_be_asked_about_is_not_taken_for_a_forgotten_one(tmp_path: Path) -> None:
    store, body = Held(), _body(70, 5)
    with crashes(
        store, tmp_path, partial(_interrupted, store=store, body=body), durability=JOURNAL, part_size=PART
    ) as mount:

        def down(operation: str, key: str) -> None:
            if operation == "list_parts":
                raise StoreError(errno.EIO, operation, detail="no answer")

        store.fault, sent = down, store.calls["upload_part"]
        with pytest.raises(OSError, match="no answer"):
            mount.start()
        mount.crash()
        store.fault = None
        mount.start()
        mount.loop.passes(5)
        mount.loop.run(mount.settle)
        assert stored(store) == body
        assert store.calls["upload_part"] == sent, "no part is sent again"


@pytest.mark.usefixtures("small_parts")
def test_an_upload_that_goes_on_outlives_an_unmount_that_cannot_end_it(tmp_path: Path) -> None:
    store, body = Held(), _body(70, 5)
    with crashes(
        store, tmp_path, partial(_interrupted, store=store, body=body), durability=JOURNAL, part_size=PART
    ) as mount:

        def down(operation: str, key: str) -> None:
            if operation == "complete_multipart":
                raise StoreError(errno.EIO, operation, detail="no answer")

        store.fault, sent = down, store.calls["upload_part"]
        mount.start()
        mount.loop.passes(5)
        mount.loop.run(mount.parts.drain)
        assert len(store._uploads) == 1
        mount._end()
        store.fault = None
        mount.start()
        mount.loop.passes(5)
        mount.loop.run(mount.settle)
        assert stored(store) == body
        assert store.calls["upload_part"] == sent
