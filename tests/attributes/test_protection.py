"""What of a mount is locked (Object Lock): what is refused for it, and that what is copied has the same lock again.

In one process, over a store whose versions have locks; `control/test_object_lock.py` has real servers.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyfuse3
import pytest
import trio

from sosfs.attributes.protection import Act
from sosfs.config.parameters import Durability
from sosfs.control.object_retention import ObjectRetentions, SettableLocks
from sosfs.errors import StoreError
from sosfs.filesystem.bucket import _operations
from sosfs.filesystem.composition import Filesystem
from sosfs.s3.protocol import UNLOCKED, Acl, Detail, Lock, Object, Properties, Version
from tests.support.composed import LONG, TASK, Composed, composed
from tests.support.drive import fails
from tests.support.held import Held, begun, bodies, chmod, closed, denied, opened, put_all, settled, silence, told

pytestmark = pytest.mark.usefixtures("without_bugs")
both_modes = pytest.mark.parametrize("durability", Durability)

FAR = 4_000_000_000
KEPT = Lock("GOVERNANCE", FAR)
HELD = Lock(is_held=True)
BOTH = Lock("COMPLIANCE", FAR, is_held=True)
OVER = Lock("COMPLIANCE", 1_000_000_000)
LOCKS = {"retention": KEPT, "hold": HELD, "both": BOTH}
every_lock = pytest.mark.parametrize("lock", LOCKS.values(), ids=LOCKS)


class Locking(Held):
    """Each version has a lock: the one that was sent with it where the server `heeds` that, else the `default` one.

    `refused` is what the mount was told not to have done.
    """

    def __init__(self) -> None:
        super().__init__()
        self.are_possible = True
        self.is_new = False  # whether the bucket has got Object Lock since the mount began
        self.is_silent = False
        self.looks = 0
        self.heeds = True
        self.default = UNLOCKED
        self.locks: dict[str, Lock] = {}
        self.asked: list[str] = []
        self.set: list[str] = []
        self.refused: list[tuple[str, int | None, Act]] = []

    def _store(self, key: str, body: bytes, etag: str, properties: Properties, acl: Acl | None) -> Version:
        self.locks[key] = properties.lock if self.heeds and properties.lock != UNLOCKED else self.default
        return super()._store(key, body, etag, properties, acl)

    async def head(self, key: str, *, detail: Detail = Detail.USUAL) -> Object:
        """As `ObjectStore.head`."""
        found = await super().head(key, detail=detail)
        return replace(found, lock=self.locks[key], version_id="current")

    async def of(self, key: str) -> Object | None:
        """As `Locks.of`."""
        await trio.lowlevel.checkpoint()
        self.asked.append(key)
        found = self._stored.get(key)
        return None if found is None else replace(found.object, lock=self.locks[key], version_id="current")

    async def look(self) -> bool:
        """As `SettableLocks.look`."""
        self.looks += 1
        return self.is_new

    async def set_retention(self, key: str, version_id: str, lock: Lock) -> None:
        """As `Locks.set_retention`."""
        assert version_id == "current"
        self.set.append("retention")
        self.locks[key] = replace(lock, is_held=self.locks[key].is_held)
        self._touched(key)

    async def set_legal_hold(self, key: str, version_id: str, lock: Lock) -> None:
        """As `Locks.set_legal_hold`."""
        assert version_id == "current"
        self.set.append("hold")
        self.locks[key] = replace(self.locks[key], is_held=lock.is_held)
        self._touched(key)

    def _touched(self, key: str) -> None:
        """Tells another time of the object from now on, as Ceph does; and perhaps nobody."""
        stored = self._stored[key]
        now = replace(stored.object.version, modified=(stored.object.version.modified or 0) + 100)
        stored.object = replace(stored.object, version=now)
        if self.is_silent:
            raise silence("lock")

    def was_refused(self, path: str, error: OSError, act: Act) -> None:
        """Goes into `.sosfs/errors`."""
        self.refused.append((path, error.errno, act))


@contextmanager
def locking(base: Path, **options: Any) -> Iterator[tuple[Composed, Locking]]:
    """A mount of a bucket with Object Lock."""
    store = Locking()

    def assembled(parts: Filesystem) -> None:
        parts.attributes.protection.begin(store, store.was_refused)

    with composed(store, base, assembled=assembled, **options) as mount:
        yield mount, store
        mount.loop.run(store.release)


def mode_of(store: Locking, key: str = "file") -> int:
    return int(store._stored[key].object.properties.metadata["mode"]) & 0o7777


# What is refused


Deed = Callable[[Composed], Any]
DEEDS: dict[str, tuple[Deed, str, Act]] = {
    "unlink": (lambda mount: mount.unlink("d/file"), "d/file", Act.REMOVE),
    "rename": (lambda mount: mount.rename("d/file", "moved"), "d/file", Act.RENAME),
    "rename over it": (lambda mount: mount.rename("other", "d/file"), "d/file", Act.WRITE),
    "rename of its directory": (lambda mount: mount.rename("d", "e"), "d/file", Act.RENAME),
    "rmdir": (lambda mount: mount.rmdir("empty"), "empty/", Act.REMOVE),
}
every_deed = pytest.mark.parametrize("deed", DEEDS)


async def _begin(store: Locking, lock: Lock) -> None:
    await put_all(store, {"d/file": b"bytes", "other": b"other", "empty/": b""})
    store.locks["d/file"] = store.locks["empty/"] = lock


@every_deed
@every_lock
def test_what_is_locked_is_neither_removed_nor_renamed_and_it_is_told(tmp_path: Path, deed: str, lock: Lock) -> None:
    do, path, act = DEEDS[deed]
    with locking(tmp_path) as (mount, store):
        mount.loop.run(partial(_begin, store, lock))
        with fails(errno.EPERM):
            mount.loop.run(lambda: do(mount))
        mount.loop.passes(LONG)
        assert bodies(store) == {"d/file": b"bytes", "other": b"other", "empty/": b""}
        assert store.refused == [(path, errno.EPERM, act)]


@every_lock
def test_what_is_locked_is_neither_opened_for_writing_nor_cut(tmp_path: Path, lock: Lock) -> None:
    """Else who writes would be told when he closes it, and his bytes had nowhere to go."""
    caller: Any = SimpleNamespace(pid=TASK, uid=0, gid=0, umask=0)

    async def main(mount: Composed, store: Locking) -> None:
        await _begin(store, lock)
        kernel, number = _operations(mount._settings, mount.parts), (await mount._walk("d/file")).number
        for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC):
            with pytest.raises(pyfuse3.FUSEError) as caught:
                await kernel.open(number, flags, caller)
            assert caught.value.errno == errno.EPERM
        entry, fields = pyfuse3.EntryAttributes(), dict.fromkeys(("mode", "uid", "gid", "atime", "mtime"), False)
        cut: Any = SimpleNamespace(**{f"update_{name}": is_set for name, is_set in fields.items()}, update_size=True)
        with pytest.raises(pyfuse3.FUSEError) as caught:
            await kernel.setattr(number, entry, cut, None, caller)
        assert caught.value.errno == errno.EPERM
        opened = await kernel.open(number, os.O_RDONLY, caller)
        assert bytes(await kernel.read(opened.fh, 0, 9)) == b"bytes"
        await kernel.release(opened.fh)

    with locking(tmp_path) as (mount, store):
        mount.loop.run(partial(main, mount, store))
        assert mount.parts.pending == 0


def test_a_lock_that_was_made_longer_since_is_not_made_shorter(tmp_path: Path) -> None:
    """Another client has done that while a copy with the one before it had no answer."""
    longer = replace(KEPT, until=FAR + 1)

    async def main(mount: Composed, store: Locking) -> None:
        await put_all(store, {"file": b"bytes"})
        store.locks["file"] = KEPT
        store.errors["copy", "file"] = [StoreError(errno.EIO, "copy", detail="no answer")]
        await chmod(mount)

    with locking(tmp_path) as (mount, store):
        mount.loop.run(partial(main, mount, store))
        mount.loop.passes(1.5)
        assert not store.errors["copy", "file"]
        store.locks["file"] = longer
        mount.loop.passes(LONG)
        assert (mode_of(store), store.locks["file"], mount.parts.pending) == (0o600, longer, 0)


def test_of_what_is_not_in_the_bucket_yet_no_lock_is_asked_for(tmp_path: Path) -> None:
    """What another client has locked under its name meanwhile is another file, beside which it will be kept."""
    caller: Any = SimpleNamespace(pid=TASK, uid=0, gid=0, umask=0)

    async def main(mount: Composed, store: Locking) -> None:
        mount.parts.commits.debounce.delay = LONG
        await mount.write("file", b"ours", flags=os.O_CREAT)
        await put_all(store, {"file": b"theirs"})
        store.locks["file"] = KEPT
        store.asked.clear()
        kernel = _operations(mount._settings, mount.parts)
        opened = await kernel.open((await mount._walk("file")).number, os.O_WRONLY, caller)
        await kernel.release(opened.fh)
        assert store.asked == []

    with locking(tmp_path, durability=Durability.JOURNAL) as (mount, store):
        mount.loop.run(partial(main, mount, store))
        with fails(errno.ESTALE):
            mount.loop.run(mount.settle)
        assert sorted(bodies(store).values()) == [b"ours", b"theirs"]
        assert bodies(store)["file"] == b"theirs"


def test_one_of_many_that_are_removed_is_asked_for_too(tmp_path: Path) -> None:
    """As `rm -r` removes them: what waits for nothing else waits for that."""

    async def main(mount: Composed, store: Locking) -> None:
        await put_all(store, {"proof": b"", "file": b"bytes", "other": b"other"})
        await mount.tree()
        await mount.unlink("proof")
        root = mount.parts.inodes.root
        other = mount.parts.namespace.listed(root, b"other")
        assert other is not None
        assert not mount.parts.namespace.unlink_at_once(root, other)
        store.are_possible = False
        assert mount.parts.namespace.unlink_at_once(root, other)

    with locking(tmp_path) as (mount, store):
        mount.loop.run(partial(main, mount, store))
        mount.loop.passes(3)
        assert bodies(store) == {"file": b"bytes"}


@every_deed
@pytest.mark.parametrize("lock", [UNLOCKED, OVER], ids=["none", "over"])
def test_what_is_not_locked_any_more_is_left_to_its_user(tmp_path: Path, deed: str, lock: Lock) -> None:
    with locking(tmp_path) as (mount, store):
        mount.loop.run(partial(_begin, store, lock))
        mount.loop.run(lambda: DEEDS[deed][0](mount))
        assert store.refused == []
        assert store.asked


@every_deed
def test_where_nothing_can_be_locked_nothing_is_asked(tmp_path: Path, deed: str) -> None:
    with locking(tmp_path) as (mount, store):
        store.are_possible = False
        mount.loop.run(partial(_begin, store, BOTH))
        mount.loop.run(lambda: DEEDS[deed][0](mount))
        mount.loop.run(partial(mount.parts.attributes.protection.require_key, "d/file", Act.WRITE))
        mount.loop.run(partial(chmod, mount, "other" if deed != "rename over it" else "d/file"))
        mount.loop.passes(3)
        assert (store.refused, store.asked) == ([], [])


def test_of_what_the_bucket_lacks_nothing_is_asked(tmp_path: Path) -> None:
    """A new file that waits for its upload, and one that was removed while it is open."""

    async def main(mount: Composed, store: Locking) -> None:
        await put_all(store, {"file": b"bytes"})
        handle = await opened(mount, os.O_RDONLY)
        await mount.unlink("file")
        await mount.parts.deletions.drain()
        await mount.write("new", b"new", flags=os.O_CREAT)
        await mount.rename("new", "other")
        store.asked.clear()
        await mount.unlink("other")
        await put_all(store, {"file": b"another's"})
        store.locks["file"] = KEPT
        await mount.parts.attributes.protection.require(handle.inode, Act.WRITE)
        assert store.asked == []
        await mount.parts.file_io.release(handle)

    with locking(tmp_path, durability=Durability.JOURNAL) as (mount, store):
        mount.loop.run(partial(main, mount, store))
        assert store.refused == []


# A version with the same bytes


@pytest.mark.promise(7)
@both_modes
@every_lock
@pytest.mark.parametrize("heeds", [True, False], ids=["a server that heeds", "one that does not"])
@pytest.mark.parametrize("key", ["file", "d/"])
def test_a_chmod_leaves_the_lock_as_it_was(
    tmp_path: Path, durability: Durability, lock: Lock, heeds: bool, key: str
) -> None:
    with locking(tmp_path, durability=durability) as (mount, store):
        store.heeds = heeds
        mount.loop.run(partial(put_all, store, {key: b"" if key.endswith("/") else b"bytes"}))
        store.locks[key] = lock
        mount.loop.run(partial(chmod, mount, key.rstrip("/")))
        mount.loop.passes(3)
        assert (mode_of(store, key), store.locks[key]) == (0o600, lock)
        due = ["retention"] * bool(lock.mode) + ["hold"] * lock.is_held
        assert store.set == ([] if heeds else due), "nothing is set that is so already"


@pytest.mark.promise(7)
@every_lock
@pytest.mark.parametrize("heeds", [True, False], ids=["a server that heeds", "one that does not"])
@pytest.mark.parametrize("key", ["file", "d/"])
def test_so_does_the_next_mount_with_what_the_last_one_could_not_write(
    tmp_path: Path, lock: Lock, heeds: bool, key: str
) -> None:
    with locking(tmp_path) as (mount, store):
        store.heeds = heeds
        mount.loop.run(partial(put_all, store, {key: b"" if key.endswith("/") else b"bytes"}))
        store.locks[key] = lock
        mount.loop.run(partial(chmod, mount, key.rstrip("/")))
        mount.crash()
        mount.start()
        assert (mode_of(store, key), store.locks[key]) == (0o600, lock)
        due = ["retention"] * bool(lock.mode) + ["hold"] * lock.is_held
        assert store.set == ([] if heeds else due), "else it was locked from its first moment on"


@pytest.mark.parametrize("lock", [UNLOCKED, OVER], ids=["none", "over"])
def test_what_is_not_locked_is_locked_by_no_chmod(tmp_path: Path, lock: Lock) -> None:
    with locking(tmp_path) as (mount, store):
        mount.loop.run(partial(put_all, store, {"file": b"bytes"}))
        store.locks["file"] = lock
        mount.loop.run(partial(chmod, mount))
        mount.loop.passes(3)
        assert (mode_of(store), store.locks["file"], store.set) == (0o600, UNLOCKED, [])


def test_a_new_directory_has_no_lock_to_be_asked_for(tmp_path: Path) -> None:
    with locking(tmp_path, durability=Durability.JOURNAL) as (mount, store):
        mount.loop.run(partial(mount.mkdir, "d"))
        mount.loop.passes(3)
        assert (list(bodies(store)), store.asked) == (["d/"], [])


@pytest.mark.parametrize("lock", [KEPT, BOTH])
def test_a_firmer_lock_that_the_bucket_gives_by_itself_stays(tmp_path: Path, lock: Lock) -> None:
    with locking(tmp_path) as (mount, store):
        mount.loop.run(partial(put_all, store, {"file": b"bytes"}))
        store.locks["file"], store.heeds, store.default = lock, False, Lock("COMPLIANCE", FAR + 9)
        mount.loop.run(partial(chmod, mount))
        mount.loop.passes(3)
        assert store.locks["file"] == replace(store.default, is_held=lock.is_held)
        assert store.set == ["hold"] * lock.is_held


def _lost(store: Locking) -> list[str]:
    """From now on the copy that is made next gets no answer."""
    lost: list[str] = []

    async def passing(events: object, what: tuple[str, str]) -> None:
        if events is store.after and what == ("copy", "file") and not lost:
            lost.append("copy")
            raise StoreError(errno.EIO, "copy 'file'", detail="no answer")
        await before(events, what)  # type: ignore[arg-type]

    before = store._passing
    store._passing = passing  # type: ignore[method-assign]
    return lost


def _copied_without_an_answer(mount: Composed, store: Locking) -> None:
    """A locked file has got a new mode, by a copy that nobody was told of and that is not locked."""
    mount.loop.run(partial(put_all, store, {"file": b"bytes"}))
    store.locks["file"], store.heeds = BOTH, False
    lost = _lost(store)
    mount.loop.run(partial(chmod, mount))
    mount.loop.passes(1.5)
    assert lost


@pytest.mark.promise(7)
@pytest.mark.parametrize(
    ("since", "due"),
    [
        (UNLOCKED, BOTH),  # by the copy, whose answer was lost
        (Lock("GOVERNANCE", FAR), BOTH),
        (Lock("COMPLIANCE", FAR - 9, is_held=True), BOTH),
        (Lock("COMPLIANCE", FAR), BOTH),
        (Lock("COMPLIANCE", FAR + 9, is_held=True), Lock("COMPLIANCE", FAR + 9, is_held=True)),
    ],
)
@pytest.mark.parametrize("heeds", [True, False], ids=["heeded", "not heeded"])
@pytest.mark.parametrize("crashes", [True, False], ids=["and a crash", "alive"])
def test_a_copy_without_an_answer_is_locked_as_what_it_replaced(
    tmp_path: Path, since: Lock, due: Lock, heeds: bool, crashes: bool
) -> None:
    """Nobody but us knows that it was: the version that the bucket has now is the copy."""
    with locking(tmp_path) as (mount, store):
        _copied_without_an_answer(mount, store)
        store.locks["file"], store.heeds = since, heeds
        if crashes:
            mount.crash()
            mount.start()
        mount.loop.passes(LONG)
        assert (mode_of(store), store.locks["file"], mount.parts.pending) == (0o600, due, 0)


def test_a_copy_of_a_dead_process_that_comes_late_is_locked_as_well(tmp_path: Path) -> None:
    with locking(tmp_path) as (mount, store):
        mount.loop.run(partial(put_all, store, {"file": b"bytes"}))
        store.locks["file"], store.heeds = BOTH, False
        store.errors["copy", "file"] = [StoreError(errno.EIO, "copy 'file'", detail="no answer")]
        mount.loop.run(partial(chmod, mount))
        mount.loop.passes(1.5)
        (inode,) = mount.parts.attributes.dirty
        (late,) = mount.parts.attributes._unanswered_copies.sent(inode)
        mount.crash()
        mount.start()
        mount.loop.run(lambda: store.copy("file", "file", properties=late))
        assert store.locks["file"] == UNLOCKED
        mount.loop.passes(LONG)
        assert (mode_of(store), store.locks["file"], mount.parts.pending) == (0o600, BOTH, 0)


def test_a_lock_that_is_over_when_the_copy_is_made_again_is_not_owed(tmp_path: Path) -> None:
    with locking(tmp_path) as (mount, store):
        mount.loop.run(partial(put_all, store, {"file": b"bytes"}))
        mount.parts.attributes.protection.owe("file", [Properties(lock=OVER)])
        mount.loop.run(partial(chmod, mount))
        mount.loop.passes(3)
        assert (mode_of(store), store.locks["file"], store.set) == (0o600, UNLOCKED, [])


def test_who_decides_anew_about_a_lock_is_not_overruled_by_what_was_owed(tmp_path: Path) -> None:
    with locking(tmp_path) as (mount, store):
        _copied_without_an_answer(mount, store)
        store.locks["file"] = UNLOCKED
        mount.parts.attributes.protection.changed("file")
        mount.loop.passes(LONG)
        assert (mode_of(store), store.locks["file"], store.set) == (0o600, UNLOCKED, [])


@pytest.mark.parametrize("theirs", [None, b"another's"], ids=["removed", "replaced"])
def test_a_file_is_not_locked_for_the_one_that_had_its_name_before(tmp_path: Path, theirs: bytes | None) -> None:
    """That one was to be locked again when another client took it away."""
    with locking(tmp_path) as (mount, store):
        _copied_without_an_answer(mount, store)
        if theirs is None:
            mount.loop.run(partial(store.delete, "file"))
        else:
            mount.loop.run(partial(put_all, store, {"file": theirs}))
        mount.loop.passes(LONG)
        assert mount.parts.pending == 0
        mount.loop.run(partial(mount.write, "file", b"new", flags=os.O_CREAT | os.O_TRUNC))
        mount.loop.run(partial(chmod, mount, mode=0o640))
        mount.loop.passes(LONG)
        assert (mode_of(store), store.locks["file"], store.set) == (0o640, UNLOCKED, [])


def test_nor_is_the_one_that_was_renamed_over_it(tmp_path: Path) -> None:
    held = trio.Event()

    async def main(mount: Composed, store: Locking) -> None:
        handle = await mount._opened(mount.parts.inodes.root, b"new", os.O_CREAT | os.O_RDWR)
        await mount.parts.file_io.write(handle, 0, b"new")
        await mount.rename("new", "file")
        store.before["put", "file"] = held
        await begun(mount, partial(closed, mount, handle))
        assert ("put", "file") in store.reached
        await chmod(mount, mode=0o640)
        await settled(held)

    with locking(tmp_path) as (mount, store):
        _copied_without_an_answer(mount, store)
        store.locks["file"] = UNLOCKED
        mount.loop.run(partial(main, mount, store))
        mount.loop.passes(LONG)
        assert bodies(store) == {"file": b"new"}
        assert (mode_of(store), store.locks["file"], store.set) == (0o640, UNLOCKED, [])


@pytest.mark.parametrize("what", ["file", "directory"])
def test_a_copy_that_is_yet_to_be_locked_keeps_its_name(tmp_path: Path, what: str) -> None:
    """Under another nobody would lock it, and the next file of this name would be in its place."""
    with locking(tmp_path) as (mount, store):
        path = "file" if what == "file" else "d/file"
        mount.loop.run(partial(put_all, store, {path: b"bytes"}))
        store.locks[path], store.heeds = BOTH, False
        store.unanswered["copy", path] = [StoreError(errno.EIO, "copy", detail="no answer")]
        mount.loop.run(partial(chmod, mount, path))
        mount.loop.passes(1.5)
        assert store.locks[path] == UNLOCKED
        with fails(errno.EPERM):
            mount.loop.run(partial(mount.rename, path.partition("/")[0], "moved"))
        mount.loop.passes(LONG)
        assert (bodies(store), store.locks) == ({path: b"bytes"}, {path: BOTH})
        assert (mode_of(store, path), mount.parts.pending) == (0o600, 0)


def test_a_copy_is_still_to_be_locked_where_its_removal_was_refused(tmp_path: Path) -> None:
    """The bucket had it unlocked, and was asked to remove it."""
    with locking(tmp_path) as (mount, store):
        _copied_without_an_answer(mount, store)
        store.locks["file"] = UNLOCKED
        store.errors["delete_many", "file"] = store.errors["delete", "file"] = [denied("delete 'file'")]
        with fails(errno.EACCES):
            mount.loop.run(partial(mount.unlink, "file"))
        store.errors.clear()
        mount.loop.passes(LONG)
        assert (mode_of(store), store.locks["file"], mount.parts.pending) == (0o600, BOTH, 0)


def test_what_was_locked_once_is_not_locked_by_the_next_chmod(tmp_path: Path) -> None:
    """Its owner, or time, has let it go since."""
    with locking(tmp_path) as (mount, store):
        mount.loop.run(partial(put_all, store, {"file": b"bytes"}))
        store.locks["file"], store.heeds = BOTH, False
        mount.loop.run(partial(chmod, mount))
        mount.loop.passes(3)
        store.locks["file"] = UNLOCKED
        store.set.clear()
        mount.loop.run(partial(chmod, mount, mode=0o640))
        mount.loop.passes(3)
        assert (mode_of(store), store.locks["file"], store.set) == (0o640, UNLOCKED, [])


def test_a_copy_that_another_client_removes_before_it_is_locked_is_no_error(tmp_path: Path) -> None:
    held = trio.Event()

    async def main(mount: Composed, store: Locking) -> None:
        await put_all(store, {"file": b"bytes"})
        store.locks["file"], store.heeds = KEPT, False
        await chmod(mount)
        store.after["copy"] = held
        await begun(mount, partial(mount.parts.attributes.write_now, await mount._walk("file")))
        assert ("copy", "file") in store.reached
        await store.delete("file")
        held.set()

    with locking(tmp_path) as (mount, store):
        mount.loop.run(partial(main, mount, store))
        mount.loop.passes(3)
        assert (store.set, bodies(store), mount.parts.pending) == ([], {}, 0)


# Locks that are set through the mount


def setting(mount: Composed, store: Locking) -> ObjectRetentions:
    """`user.sos.retention` and `user.sos.legal-hold`."""
    parts, locks = mount.parts, cast(SettableLocks, store)
    return ObjectRetentions(parts.inodes, store, locks, parts.attributes, parts.commits, parts.subtree_lock)


TEXT = "GOVERNANCE 2096-10-02T07:06:40Z"


@pytest.mark.parametrize(
    ("lock", "retention", "hold"),
    [(UNLOCKED, "", "OFF"), (KEPT, TEXT, "OFF"), (HELD, "", "ON"), (BOTH, TEXT.replace("GOVERN", "COMPLI"), "ON")],
)
def test_a_lock_is_told_as_the_bucket_has_it(tmp_path: Path, lock: Lock, retention: str, hold: str) -> None:
    async def main(mount: Composed, store: Locking) -> None:
        await put_all(store, {"file": b"bytes", "d/file": b""})
        store.locks["file"] = lock
        shown, file, folder = setting(mount, store), await mount._walk("file"), await mount._walk("d")
        for possible in (True, False):
            store.are_possible = possible
            if retention:
                assert await shown.retention(file) == retention
            else:
                with fails(errno.ENODATA):
                    await shown.retention(file)
            if possible or lock.is_held:
                assert await shown.legal_hold(file) == hold
            else:
                with fails(errno.ENODATA):
                    await shown.legal_hold(file)
        store.are_possible = True
        works: list[Callable[[], Any]] = [
            partial(shown.retention, folder), partial(shown.legal_hold, folder), partial(shown.release, folder),
            partial(shown.retain, folder, TEXT), partial(shown.hold, folder, "ON"),
        ]  # fmt: skip
        for work in works:
            with fails(errno.ENODATA):
                await work()
        assert store.set == []

    with locking(tmp_path) as (mount, store):
        mount.loop.run(partial(main, mount, store))


@pytest.mark.parametrize(
    ("before", "text", "due"),
    [
        (UNLOCKED, TEXT, KEPT),
        (HELD, TEXT, replace(KEPT, is_held=True)),
        (KEPT, TEXT, None),
        (replace(KEPT, is_held=True), TEXT, None),
        (KEPT, TEXT.replace("07:06:40", "07:06:41"), Lock("GOVERNANCE", FAR + 1)),
        (KEPT, TEXT.replace("GOVERN", "COMPLI"), Lock("COMPLIANCE", FAR)),
        (OVER, "GOVERNANCE 2090-01-01T00:00:00Z", Lock("GOVERNANCE", 3_786_912_000)),
    ],
)
def test_an_object_is_locked_longer_or_more_firmly(tmp_path: Path, before: Lock, text: str, due: Lock | None) -> None:
    """And its legal hold is another matter."""

    async def main(mount: Composed, store: Locking) -> None:
        await put_all(store, {"file": b"bytes"})
        store.locks["file"] = before
        await setting(mount, store).retain(await mount._walk("file"), text)
        assert store.locks["file"] == (due or before)
        assert store.set == ([] if due is None else ["retention"]), "nothing is sent that is so already"

    with locking(tmp_path) as (mount, store):
        mount.loop.run(partial(main, mount, store))
        assert store.looks == 0


@pytest.mark.parametrize(
    ("before", "text", "number"),
    [
        (KEPT, TEXT.replace("07:06:40", "07:06:39"), errno.EPERM),
        (Lock("COMPLIANCE", FAR), TEXT, errno.EPERM),
        (Lock("COMPLIANCE", FAR), TEXT.replace("2096", "2098"), errno.EPERM),
        (UNLOCKED, "GOVERNANCE 2001-01-01", errno.EINVAL),
        (UNLOCKED, "GOVERNMENT 30 days", errno.EINVAL),
        (UNLOCKED, "GOVERNANCE", errno.EINVAL),
    ],
)
def test_what_the_server_would_refuse_is_not_sent(tmp_path: Path, before: Lock, text: str, number: int) -> None:
    async def main(mount: Composed, store: Locking) -> None:
        await put_all(store, {"file": b"bytes"})
        store.locks["file"] = before
        with fails(number):
            await setting(mount, store).retain(await mount._walk("file"), text)
        assert (store.set, store.locks["file"]) == ([], before)

    with locking(tmp_path) as (mount, store):
        mount.loop.run(partial(main, mount, store))


def test_what_is_no_lock_stores_nothing(tmp_path: Path) -> None:
    """Bytes that wait for their upload go on waiting."""

    async def main(mount: Composed, store: Locking) -> None:
        await mount.write("file", b"bytes", flags=os.O_CREAT)
        file = await mount._walk("file")
        shown = setting(mount, store)
        for work in (partial(shown.retain, file, "GOVERNMENT"), partial(shown.hold, file, "?")):
            with fails(errno.EINVAL):
                await work()
        assert bodies(store) == {}

    with locking(tmp_path, durability=Durability.JOURNAL) as (mount, store):
        mount.loop.run(partial(main, mount, store))


@pytest.mark.parametrize("is_new", [False, True])
def test_a_bucket_without_object_lock_is_asked_once_more_before_a_lock_is_refused(tmp_path: Path, is_new: bool) -> None:
    async def main(mount: Composed, store: Locking) -> None:
        await put_all(store, {"file": b"bytes"})
        store.are_possible, store.is_new = False, is_new
        shown, file = setting(mount, store), await mount._walk("file")
        await shown.hold(file, "OFF")
        assert store.looks == 0, "it is so already"
        for work in (partial(shown.retain, file, TEXT), partial(shown.hold, file, "ON")):
            if is_new:
                await work()
            else:
                with fails(errno.EOPNOTSUPP):
                    await work()
        assert (store.set, store.looks) == (["retention", "hold"] if is_new else [], 2)

    with locking(tmp_path) as (mount, store):
        mount.loop.run(partial(main, mount, store))


def test_a_legal_hold_comes_and_goes_and_leaves_the_retention(tmp_path: Path) -> None:
    async def main(mount: Composed, store: Locking) -> None:
        await put_all(store, {"file": b"bytes"})
        store.locks["file"] = KEPT
        shown, file = setting(mount, store), await mount._walk("file")
        for text, due in (("ON", replace(KEPT, is_held=True)), ("on", replace(KEPT, is_held=True)), ("OFF", KEPT)):
            await shown.hold(file, text)
            assert store.locks["file"] == due
        assert store.set == ["hold"] * 2

    with locking(tmp_path) as (mount, store):
        mount.loop.run(partial(main, mount, store))


@pytest.mark.parametrize(
    ("lock", "number", "why"),
    [
        (KEPT, errno.EPERM, "locked until 2096-10-02T07:06:40Z (GOVERNANCE): sosfs takes none off"),
        (BOTH, errno.EPERM, "locked until 2096-10-02T07:06:40Z (COMPLIANCE): sosfs takes none off"),
        (OVER, errno.EPERM, "the retention is over: sosfs takes none off"),
        (HELD, errno.ENODATA, "it has no retention"),
        (UNLOCKED, errno.ENODATA, "it has no retention"),
    ],
)
def test_why_a_retention_stays_is_told(tmp_path: Path, lock: Lock, number: int, why: str) -> None:
    async def main(mount: Composed, store: Locking) -> None:
        await put_all(store, {"file": b"bytes"})
        store.locks["file"] = lock
        with pytest.raises(OSError, match=re.escape(why)) as caught:
            await setting(mount, store).release(await mount._walk("file"))
        assert caught.value.errno == number

    with locking(tmp_path) as (mount, store):
        mount.loop.run(partial(main, mount, store))
        assert store.set == []


@pytest.mark.parametrize("is_silent", [False, True], ids=["answered", "unanswered"])
@pytest.mark.parametrize("what", ["retention", "hold"])
def test_a_file_that_is_locked_here_is_no_other_clients(tmp_path: Path, what: str, is_silent: bool) -> None:
    """Though it has another time from then on, which nobody is told; whoever has it open reads on."""

    async def main(mount: Composed, store: Locking) -> None:
        await put_all(store, {"file": b"bytes"})
        shown, handle = setting(mount, store), await opened(mount, os.O_RDONLY)
        store.is_silent = is_silent
        locked, text = (shown.retain, TEXT) if what == "retention" else (shown.hold, "ON")
        work = partial(locked, handle.inode, text)
        if is_silent:
            with fails(errno.EIO):
                await work()
        else:
            await work()
        store.is_silent = False
        version = handle.inode.version
        assert version is not None
        assert version.same_as((await store.head("file")).version)

    with locking(tmp_path) as (mount, store):
        mount.loop.run(partial(main, mount, store))


async def _lock_waits(mount: Composed, store: Locking, what: str, outcomes: dict[str, Any]) -> trio.Event:
    """Somebody wants a file locked, and waits for a question until this is set."""
    parts, held, retentions = mount.parts, trio.Event(), setting(mount, store)
    await put_all(store, {"file": b"bytes"})
    inode = await mount._walk("file")
    store.before["head", "file"] = held
    await begun(mount, partial(parts.attributes.look, inode, Detail.WHOLE))
    assert ("head", "file") in store.reached
    work = (
        partial(retentions.retain, inode, "GOVERNANCE 30 days")
        if what == "retention"
        else partial(retentions.hold, inode, "ON")
    )
    await begun(mount, partial(told, outcomes, what, work))
    return held


@pytest.mark.parametrize("what", ["retention", "hold"])
def test_what_is_opened_for_writing_while_its_lock_waits_is_not_locked(tmp_path: Path, what: str) -> None:
    """What comes at its close would be a version without the lock."""
    outcomes: dict[str, Any] = {}

    async def main(mount: Composed, store: Locking) -> None:
        held = await _lock_waits(mount, store, what, outcomes)
        handle = await opened(mount)
        await settled(held)
        assert (f"({errno.EBUSY}," in outcomes[what], store.set) == (True, [])
        await closed(mount, handle)

    with locking(tmp_path) as (mount, store):
        mount.loop.run(partial(main, mount, store))


@pytest.mark.parametrize("what", ["retention", "hold"])
def test_what_is_written_and_closed_while_its_lock_waits_is_stored_before_it_is_locked(
    tmp_path: Path, what: str
) -> None:
    """Else the version that is locked is the one before, and the one that people see is not."""
    outcomes: dict[str, Any] = {}

    async def main(mount: Composed, store: Locking) -> None:
        held = await _lock_waits(mount, store, what, outcomes)
        await mount.write("file", b"BYTES")
        assert outcomes == {}
        await settled(held)

    with locking(tmp_path, durability=Durability.JOURNAL) as (mount, store):
        mount.loop.run(partial(main, mount, store))
        mount.loop.passes(LONG)
        assert (outcomes, bodies(store), store.set) == ({what: None}, {"file": b"BYTES"}, [what])
        assert store.locks["file"] != UNLOCKED
        assert mount.parts.pending == 0
