"""What the server refuses now and was acknowledged before: it stays pending, is shown, is tried again, and is done."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from hashlib import md5
from pathlib import Path
from typing import Any

import pytest
import trio

from sosfs.config.parameters import TTL, Durability
from sosfs.errors import from_s3
from sosfs.fuse.entries import entry_of
from sosfs.namespace.deletions import PROVEN
from sosfs.s3.protocol import Acl, Grant, Properties, Version
from sosfs.tree.inodes import Inode
from sosfs.tree.keys import Form, name_of
from tests.conftest import Mounter
from tests.support.composed import LONG, Composed, composed
from tests.support.drive import Drive, eventually, fails, names, status
from tests.support.fake_store import ANYONE, OWNER, FakeStore
from tests.support.faults import REFUSED, Answer
from tests.support.held import begun
from tests.support.mounting import run_sosfs
from tests.support.proxy import Proxy
from tests.support.traffic import on

WRITES = frozenset({"copy", "put", "create_multipart", "delete", "delete_many"})
ANSWERS = {
    "403": (403, "AccessDenied"),
    "403 without a code": (403, ""),
    "401": (401, ""),
    "expired key": (400, "ExpiredToken"),
    "bad token": (400, "InvalidToken"),
    "revoked key": (403, "InvalidAccessKeyId"),
    "wrong secret": (403, "SignatureDoesNotMatch"),
    "clock": (403, "RequestTimeTooSkewed"),
    "quota": (403, "QuotaExceeded"),
    "405": (405, "MethodNotAllowed"),
    "501": (501, "NotImplemented"),
    "never valid": (400, "InvalidArgument"),
    "no room": (400, "MetadataTooLarge"),
}
every_answer = pytest.mark.parametrize("answer", ANSWERS)
both_modes = pytest.mark.parametrize("durability", Durability)


class Refusing(FakeStore):
    """Refuses every change, as `answer` says; `only` those of some keys."""

    def __init__(self) -> None:
        super().__init__()
        self.answer: tuple[int, str] | None = None
        self.only: frozenset[str] = frozenset()
        self.refused = 0
        self.fault = self._refuse

    def _refuse(self, operation: str, key: str) -> None:
        if self.answer is not None and operation in WRITES and (not self.only or key in self.only):
            self.refused += 1
            raise from_s3(f"{operation} {key!r}", code=self.answer[1], status=self.answer[0])


@contextmanager
def refusing(base: Path, durability: Durability = Durability.BUCKET) -> Iterator[tuple[Composed, Refusing]]:
    """A mount whose store begins to refuse when told to."""
    store = Refusing()
    with composed(store, base, durability=durability) as mount:
        yield mount, store
        store.answer = None  # whatever fails: unmounting drains


def change(mount: Composed, inode: Inode) -> None:
    """chmod, chown, utimensat and setxattr of metadata and of a header."""
    inode.mode, inode.uid, inode.gid, inode.mtime_ns = stat.S_IFMT(inode.mode) | 0o640, 5, 7, 123_456_789_000_000_001
    inode.edits = inode.edits.with_metadata("color", "red").with_header("cache_control", "no-cache")
    mount.parts.attributes.changed(inode)


async def require_changed(mount: Composed, path: str = "file") -> None:
    """What `change` did is seen in the mount."""
    inode = await mount._walk(path)
    known, entry = mount.parts.attributes.known(inode), entry_of(inode, ttl=TTL)
    assert (entry.st_mode, entry.st_mtime_ns, entry.st_rdev) == (inode.mode, inode.mtime_ns, 0)
    assert (stat.S_IMODE(inode.mode), inode.uid, inode.gid, inode.mtime_ns) == (0o640, 5, 7, 123_456_789_000_000_001)
    assert (known.metadata.get("color"), known.headers.cache_control) == ("red", "no-cache")


def require_stored(store: FakeStore, key: str = "file") -> None:
    """What `change` did is in the bucket."""
    found = store._stored[key].object.properties
    assert found.metadata["mode"].endswith(str(0o100640 if not key.endswith("/") else 0o040640))
    assert (found.metadata["uid"], found.metadata["gid"], found.metadata["color"]) == ("5", "7", "red")
    assert found.metadata["mtime"] == "123456789.000000001"
    assert found.headers.cache_control == "no-cache"


@pytest.mark.promise(3)
@every_answer
@both_modes
def test_changed_attributes_wait_for_as_long_as_they_are_refused(
    tmp_path: Path, answer: str, durability: Durability
) -> None:
    async def begin(mount: Composed, store: FakeStore) -> None:
        await store.put("file", b"body", Properties())
        change(mount, await mount._walk("file"))

    with refusing(tmp_path, durability) as (mount, store):
        mount.loop.run(partial(begin, mount, store))
        store.answer = ANSWERS[answer]
        mount.loop.passes(LONG)
        assert 5 <= store.refused <= 40, "it is tried again, with growing pauses"
        mount.loop.run(partial(require_changed, mount))
        assert mount.parts.pending == 1
        (line,) = mount.parts.waiting
        assert "attributes of file" in line
        assert ANSWERS[answer][1] in line
        mount.crash()
        mount.start()
        mount.loop.passes(LONG)
        mount.loop.run(partial(require_changed, mount))
        assert mount.parts.pending == 1
        assert mount.parts.waiting
        store.answer = None
        mount.loop.passes(LONG)
        assert (mount.parts.pending, mount.parts.waiting) == (0, [])
        require_stored(store)


@pytest.mark.promise(3)
def test_a_device_whose_change_is_refused_keeps_its_number_over_a_crash(tmp_path: Path) -> None:
    null = os.makedev(1, 3)

    async def begin(mount: Composed, store: Refusing) -> None:
        await mount.parts.creations.make_object(mount.parts.inodes.root, b"null", stat.S_IFCHR | 0o666, 0, 0, rdev=null)
        store.answer = ANSWERS["403"]
        change(mount, await mount._walk("null"))

    async def require_device(mount: Composed) -> None:
        inode = await mount._walk("null")
        assert (inode.mode, inode.rdev) == (stat.S_IFCHR | 0o640, null)

    with refusing(tmp_path) as (mount, store):
        mount.loop.run(partial(begin, mount, store))
        mount.crash()
        mount.start()
        mount.loop.run(partial(require_device, mount))
        store.answer = None
        mount.loop.passes(LONG)
        assert mount.parts.pending == 0
        assert store._stored["null"].object.properties.metadata["rdev"] == str(null)


@pytest.mark.promise(3)
@both_modes
def test_what_is_taken_up_after_a_crash_can_be_shown(tmp_path: Path, durability: Durability) -> None:
    """As the kernel gets it: a file whose attributes were refused, and one whose bytes are not sent."""

    async def begin(mount: Composed, store: Refusing) -> None:
        await store.put("file", b"body", Properties())
        change(mount, await mount._walk("file"))
        if durability is not Durability.BUCKET:
            await mount.write("written", b"new", flags=os.O_CREAT)
        store.answer = ANSWERS["403"]

    async def shown(mount: Composed, path: str) -> tuple[int, int, int]:
        entry = entry_of(await mount._walk(path), ttl=TTL)
        return entry.st_size, entry.st_uid, entry.st_rdev

    with refusing(tmp_path, durability) as (mount, store):
        mount.loop.run(partial(begin, mount, store))
        mount.crash()
        mount.start()
        assert mount.loop.run(partial(shown, mount, "file")) == (4, 5, 0)
        if durability is not Durability.BUCKET:
            assert mount.loop.run(partial(shown, mount, "written")) == (3, 0, 0)


@pytest.mark.promise(3)
@every_answer
def test_removed_names_stay_removed_for_as_long_as_it_is_refused(tmp_path: Path, answer: str) -> None:
    """Also those in a directory that was removed with them, in one that nobody holds, and after a crash."""

    async def begin(mount: Composed, store: Refusing) -> None:
        for key in ("first", "a", "b", "d/", "d/x", "d/y", "e/x", "e/kept"):
            await store.put(key, b"" if key.endswith("/") else key.encode(), Properties())
        await mount.tree()
        await mount.unlink("first")  # proves that the key may remove
        store.answer = ANSWERS[answer]
        for path in ("a", "d/x", "d/y", "e/x"):
            await mount.unlink(path)
        await mount.rmdir("d")

    async def require_left(mount: Composed) -> None:
        for inode in [mount.parts.inodes.find(number) for number in mount.parts.inodes.numbers()]:
            if inode is not None:
                mount.parts.namespace.forget(inode, 1 << 30)  # as the kernel does when it is short of memory
        mount.parts.namespace.sweep()
        assert sorted(await mount.tree()) == ["b", "e", "e/kept"]
        for path in ("a", "d", "e/x"):
            with pytest.raises(FileNotFoundError):
                await mount._walk(path)

    with refusing(tmp_path) as (mount, store):
        mount.loop.run(partial(begin, mount, store))
        mount.loop.passes(LONG)
        mount.loop.run(partial(require_left, mount))
        assert mount.parts.pending == 5
        assert len(mount.parts.waiting) == 5
        assert all(ANSWERS[answer][1] in line for line in mount.parts.waiting)
        mount.crash()
        mount.start()
        mount.loop.passes(LONG)
        mount.loop.run(partial(require_left, mount))
        assert mount.parts.pending == 5
        store.answer = None
        mount.loop.passes(LONG)
        assert (mount.parts.pending, mount.parts.waiting) == (0, [])
        assert sorted(store._stored) == ["b", "e/kept"]
        mount.loop.run(partial(require_left, mount))


def test_one_refused_name_keeps_no_other_waiting(tmp_path: Path) -> None:
    async def remove(mount: Composed, paths: list[str]) -> None:
        for path in paths:
            await mount.unlink(path)

    async def begin(mount: Composed, store: Refusing) -> None:
        for number in range(30):
            await store.put(f"f{number:02}", b"x", Properties())
        await remove(mount, ["f00", "f01"])

    with refusing(tmp_path) as (mount, store):
        mount.loop.run(partial(begin, mount, store))
        store.answer, store.only = (403, "AccessDenied"), frozenset({"f01"})
        mount.loop.passes(2 * PROVEN)
        assert mount.parts.pending == 1
        mount.loop.run(partial(remove, mount, [f"f{number:02}" for number in range(2, 30)]))
        mount.loop.passes(3)
        assert sorted(store._stored) == ["f01"]
        assert mount.parts.pending == 1


def test_a_removal_that_waited_spares_what_another_client_stored_since(tmp_path: Path) -> None:
    async def begin(mount: Composed, store: Refusing) -> None:
        await store.put("first", b"x", Properties())
        await store.put("a", b"ours", Properties())
        await mount.unlink("first")
        store.answer = (403, "AccessDenied")
        await mount.unlink("a")

    async def theirs(store: Refusing) -> None:
        store.answer = None
        await store.put("a", b"theirs", Properties())

    with refusing(tmp_path) as (mount, store):
        mount.loop.run(partial(begin, mount, store))
        mount.loop.passes(LONG)
        mount.loop.run(partial(theirs, store))
        mount.loop.passes(LONG)
        assert mount.loop.run(mount.tree) == {"a": (b"theirs", 0o644)}


@every_answer
def test_a_new_directory_waits_for_its_marker(tmp_path: Path, answer: str) -> None:
    async def begin(mount: Composed) -> None:
        await mount.mkdir("d")
        change(mount, await mount._walk("d"))

    with refusing(tmp_path, Durability.JOURNAL) as (mount, store):
        mount.loop.run(partial(begin, mount))
        store.answer = ANSWERS[answer]
        for _ in range(2):
            mount.loop.passes(LONG)
            assert mount.loop.run(mount.tree) == {"d": None}
            mount.loop.run(partial(require_changed, mount, "d"))
            assert mount.parts.pending == 1
            assert ANSWERS[answer][1] in mount.parts.waiting[0]
            mount.crash()
            mount.start()
        store.answer = None
        mount.loop.passes(LONG)
        assert mount.parts.pending == 0
        require_stored(store, "d/")


def test_what_a_lost_answer_made_keeps_what_was_changed_since(tmp_path: Path) -> None:
    """The marker is there and nobody was told: the next try finds it, and it is no other host's."""

    async def begin(mount: Composed) -> None:
        await mount.mkdir("d")
        await mount.parts.store.put("d/", b"", mount.parts.attributes.properties(await mount._walk("d")))
        change(mount, await mount._walk("d"))

    with refusing(tmp_path, Durability.JOURNAL) as (mount, store):
        mount.loop.run(partial(begin, mount))
        mount.loop.passes(LONG)
        assert mount.parts.pending == 0
        mount.loop.run(partial(require_changed, mount, "d"))
        require_stored(store, "d/")


def test_the_old_name_of_a_directory_stays_away_while_a_part_of_it_is_refused(tmp_path: Path) -> None:
    async def begin(mount: Composed, store: Refusing) -> None:
        for key in ("old/", "old/a", "old/b"):
            await store.put(key, b"" if key.endswith("/") else key.encode(), Properties())
        await mount.tree()
        store.answer, store.only = (403, "AccessDenied"), frozenset({"old/b"})
        store.fault = lambda operation, key: store._refuse(operation, key) if operation != "copy" else None
        await mount.rename("old", "new")

    moved = {"new": None, "new/a": (b"old/a", 0o644), "new/b": (b"old/b", 0o644)}
    with refusing(tmp_path) as (mount, store):
        mount.loop.run(partial(begin, mount, store))
        for _ in range(2):
            mount.loop.passes(3 * TTL)
            assert mount.loop.run(mount.tree) == moved
            assert mount.parts.pending == 2, "the file, and its directory that stays hidden until it is gone"
            mount.crash()
            mount.start()
        store.answer = None
        mount.loop.passes(LONG)
        assert mount.loop.run(mount.tree) == moved
        assert sorted(store._stored) == ["new/", "new/a", "new/b"]


def test_with_a_new_key_all_that_waits_is_tried_at_once(tmp_path: Path) -> None:
    async def begin(mount: Composed, store: Refusing) -> None:
        for key in ("first", "gone", "file"):
            await store.put(key, b"body", Properties())
        await mount.unlink("first")
        store.answer = ANSWERS["expired key"]
        await mount.unlink("gone")
        change(mount, await mount._walk("file"))
        await mount.write("new", b"new", flags=os.O_CREAT)

    async def hurry(mount: Composed) -> None:
        mount.parts.retries.hurry()

    with refusing(tmp_path, Durability.JOURNAL) as (mount, store):
        mount.loop.run(partial(begin, mount, store))
        mount.loop.passes(LONG)
        assert mount.parts.pending == 3
        assert len(mount.parts.waiting) == 3
        store.answer = None
        mount.loop.run(partial(hurry, mount))
        mount.loop.passes(1)
        assert (mount.parts.pending, mount.parts.waiting) == (0, [])
        assert sorted(store._stored) == ["file", "new"]


def test_a_passing_refusal_to_read_an_acl_does_not_reset_it(tmp_path: Path) -> None:
    acl = Acl(OWNER, (Grant(OWNER, "FULL_CONTROL"), Grant(ANYONE, "READ")))
    left = [1]

    async def begin(mount: Composed, store: FakeStore) -> None:
        for key in ("file", "other"):
            await store.put(key, b"body", Properties(), acl=acl)
        change(mount, await mount._walk("other"))
        await mount.parts.attributes.drain()
        change(mount, await mount._walk("file"))

    def refuse_once(operation: str, key: str) -> None:
        if (operation, key) == ("get_acl", "file") and left:
            left.pop()
            raise from_s3(f"{operation} {key!r}", code="AccessDenied", status=403)

    with refusing(tmp_path) as (mount, store):
        store.fault = refuse_once
        mount.loop.run(partial(begin, mount, store))
        mount.loop.passes(LONG)
        assert left == []
        assert (mount.parts.pending, store._stored["file"].acl) == (0, acl)
        require_stored(store)


# Refused, and before that the process died in the midst of something


class Meddling(Refusing):
    """Never answers a PUT that it has done; and while a copy is refused another client may do something."""

    def __init__(self) -> None:
        super().__init__()
        self.is_lost = False
        self.meanwhile: Callable[[], object] = lambda: None

    def _refuse(self, operation: str, key: str) -> None:
        try:
            super()._refuse(operation, key)
        except OSError:
            self.meanwhile()
            raise

    async def put(self, key: str, *arguments: Any, **options: Any) -> Version:
        made = await super().put(key, *arguments, **options)
        if self.is_lost:
            await trio.sleep_forever()
        return made


@contextmanager
def meddling(
    base: Path, durability: Durability = Durability.BUCKET, *, hashes: bool = True
) -> Iterator[tuple[Composed, Meddling]]:
    """As `refusing`."""
    store = Meddling()
    store.hashes = hashes
    with composed(store, base, durability=durability) as mount:
        yield mount, store
        store.answer = None


@pytest.mark.promise(3)
@pytest.mark.parametrize("hashes", [True, False], ids=["", "no hashes"])
@pytest.mark.parametrize("is_new", [True, False])
@both_modes
def test_a_change_after_an_upload_without_an_answer_waits_as_well(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, durability: Durability, *, is_new: bool, hashes: bool
) -> None:
    """It is of the bytes that were uploaded, though nobody was told that they are there."""

    async def begin(mount: Composed, store: Meddling) -> None:
        if not is_new:
            await store.put("file", b"old", Properties())
        store.is_lost = True
        await begun(mount, partial(mount.write, "file", b"body", flags=os.O_CREAT))
        if durability is not Durability.BUCKET:
            await begun(mount, partial(mount.parts.commits.commit, await mount._walk("file")))
        store.is_lost, store.answer = False, (403, "AccessDenied")
        change(mount, await mount._walk("file"))

    with meddling(tmp_path, durability, hashes=hashes) as (mount, store):
        mount.loop.run(partial(begin, mount, store))
        assert store._stored["file"].body == b"body"
        for _ in range(2):
            mount.crash()
            mount.start()
            mount.loop.run(partial(require_changed, mount))
            mount.loop.passes(100)
            assert mount.parts.pending == 1
        store.answer = None
        mount.loop.passes(LONG)
        assert mount.parts.pending == 0
        assert store._stored["file"].body == b"body"
        require_stored(store)
        assert "is lost" not in caplog.text


@pytest.mark.promise(3)
@pytest.mark.parametrize(("is_new", "hashes"), [(True, True), (True, False), (False, True)])
def test_a_change_after_an_upload_without_an_answer_waits_where_nobody_may_look(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, *, is_new: bool, hashes: bool
) -> None:
    """The next mount has to take what a listing shows for what was uploaded."""

    async def begin(mount: Composed, store: Meddling) -> None:
        if not is_new:
            await store.put("file", b"old", Properties())
        store.is_lost = True
        await begun(mount, partial(mount.write, "file", b"body", flags=os.O_CREAT))
        store.is_lost = False
        change(mount, await mount._walk("file"))

    def refuse(operation: str, key: str) -> None:
        if operation == "head":
            raise from_s3(f"head {key!r}", code="AccessDenied", status=403)

    with meddling(tmp_path, hashes=hashes) as (mount, store):
        mount.loop.run(partial(begin, mount, store))
        mount.crash()
        store.fault = refuse
        mount.start()
        mount.loop.run(partial(require_changed, mount))
        assert mount.parts.pending == 1
        store.fault = None
        mount.loop.passes(LONG)
        assert mount.parts.pending == 0
        require_stored(store)
        assert "is lost" not in caplog.text


def test_what_another_client_sets_after_the_next_mount_was_refused_stays_beside_it(tmp_path: Path) -> None:
    async def begin(mount: Composed, store: Meddling) -> None:
        await store.put("file", b"body", Properties())
        change(mount, await mount._walk("file"))

    def refuse(operation: str, key: str) -> None:
        if operation == "head":
            raise from_s3(f"head {key!r}", code="AccessDenied", status=403)

    with meddling(tmp_path) as (mount, store):
        mount.loop.run(partial(begin, mount, store))
        mount.crash()
        store.fault = refuse
        mount.start()
        store.fault = None
        mount.loop.run(partial(store.put, "file", b"body", Properties(metadata={"their": "own"})))
        mount.loop.passes(3)
        assert mount.parts.pending == 0
        require_stored(store)
        assert store._stored["file"].object.properties.metadata["their"] == "own"


def test_a_file_beside_a_directory_of_its_name_is_what_a_refused_change_is_of(tmp_path: Path) -> None:
    beside = name_of("n", Form.BESIDE).decode()

    async def begin(mount: Composed, store: Meddling) -> None:
        for key in ("n", "n/x"):
            await store.put(key, b"body", Properties())
        store.answer = (403, "AccessDenied")
        change(mount, await mount._walk(beside))

    with meddling(tmp_path) as (mount, store):
        mount.loop.run(partial(begin, mount, store))
        mount.crash()
        mount.start()
        mount.loop.run(partial(require_changed, mount, beside))
        assert mount.parts.pending == 1
        store.answer = None
        mount.loop.passes(LONG)
        require_stored(store, "n")
        assert "n/" not in store._stored


@pytest.mark.parametrize("then", ["removes", "replaces"])
def test_a_refused_change_is_not_of_what_another_client_does_meanwhile(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, then: str
) -> None:
    async def begin(mount: Composed, store: Meddling) -> None:
        for key in ("file", "other"):
            await store.put(key, b"body", Properties())
        change(mount, await mount._walk("file"))

    with meddling(tmp_path) as (mount, store):
        mount.loop.run(partial(begin, mount, store))
        mount.crash()
        store.answer = (403, "AccessDenied")
        if then == "removes":
            store.meanwhile = lambda: store._stored.pop("file", None)
        else:
            store.meanwhile = lambda: store._store("file", b"theirs", md5(b"theirs").hexdigest(), Properties(), None)
        mount.start()
        store.answer = None
        mount.loop.passes(LONG)
        assert mount.parts.pending == 0
        theirs = {} if then == "removes" else {"file": (b"theirs", 0o644)}
        assert mount.loop.run(mount.tree) == {"other": (b"body", 0o644)} | theirs
        mount.crash()
        mount.start()
        assert caplog.text.count("file is lost: another client") == 1, "it is said once"


# On a real mount

CHANGES: dict[str, Callable[[Path], object]] = {
    "chmod": lambda top: (top / "chmod").chmod(0o600),
    "utimes": lambda top: os.utime(top / "utimes", ns=(5, 123_456_789_000_000_001)),
    "chown": lambda top: os.chown(top / "chown", 5, 7),
    "xattr": lambda top: os.setxattr(top / "xattr", "user.color", b"red"),
    "header": lambda top: os.setxattr(top / "header", "user.sos.cache-control", b"no-cache"),
}


def require_all(top: Path) -> None:
    """What `CHANGES` did, and two removals."""
    assert names(top) == sorted(CHANGES)
    assert stat.S_IMODE((top / "chmod").stat().st_mode) == 0o600
    assert (top / "utimes").stat().st_mtime_ns == 123_456_789_000_000_001
    assert ((top / "chown").stat().st_uid, (top / "chown").stat().st_gid) == (5, 7)
    assert os.getxattr(top / "xattr", "user.color") == b"red"
    assert os.getxattr(top / "header", "user.sos.cache-control") == b"no-cache"


def refuse_changes(proxy: Proxy, answer: Answer) -> None:
    """But for those of mounting, which asks with a scratch key what the server can do."""
    writes = on("COPY", "PUT", "CREATE_MULTIPART", "DELETE", "DELETE_MANY")
    proxy.inject(answer, lambda request: writes(request) and ".sosfs-probe-" not in request.key)


@pytest.mark.promise(3)
@pytest.mark.parametrize("answer", [Answer(403, "AccessDenied"), Answer(400, "ExpiredToken")], ids=["403", "400"])
def test_umount_and_status_tell_what_is_refused(mounter: Mounter, proxy: Proxy, answer: Answer) -> None:
    drive: Drive = mounter(proxy.endpoint, "--ttl", "1")
    drive.mount.allow_log(r"WARNING|ERROR")
    top = drive.here
    for name in (*CHANGES, "first", "second", "third"):
        (top / name).write_bytes(name.encode())
    for name in ("first", "second", "third"):
        (top / name).unlink()  # the first is asked for, the others follow
        if name == "first":
            refuse_changes(proxy, answer)
    for do in CHANGES.values():
        do(top)
    eventually(lambda: len(status(drive).waiting) == 7, seconds=30)
    require_all(top)
    now = status(drive)
    assert now.pending_files == 7
    assert all(answer.code in line for line in now.waiting)
    told = run_sosfs(["status", drive.mount.path], drive.mount.environment).stdout
    assert "attributes of chmod" in told
    done = run_sosfs(["umount", drive.mount.path], drive.mount.environment)
    assert done.returncode == 3, done.stderr
    assert done.stderr.startswith("sosfs: 7 ")
    assert "removal of second" in done.stderr
    assert answer.code in done.stderr
    drive.mount.clear()
    drive.mount.start()  # and the server still refuses
    require_all(top)
    assert status(drive).pending_files == 7
    proxy.heal()
    drive.mount.stop()  # exit code 0
    assert drive.foreign.keys() == sorted(CHANGES)
    drive.mount.start()
    require_all(top)


def test_what_the_key_is_known_not_to_do_is_refused_at_once(mounter: Mounter, proxy: Proxy) -> None:
    drive = mounter(proxy.endpoint)
    drive.mount.allow_log(r"WARNING|ERROR")
    (drive.here / "one").write_bytes(b"1")
    (drive.here / "two").write_bytes(b"2")
    proxy.inject(Answer(403, "AccessDenied"), on("COPY", "PUT", "UPLOAD_PART"))
    (drive.here / "one").chmod(0o600)
    eventually(lambda: bool(status(drive).waiting))
    with fails(*REFUSED):
        (drive.here / "two").chmod(0o600)
    assert stat.S_IMODE((drive.here / "two").stat().st_mode) == 0o644
    assert status(drive).pending_files == 1
    proxy.heal()
