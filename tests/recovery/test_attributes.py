"""kill -9 around the copy that stores attributes: which version the bucket has then nobody was told, and all are there.

The copy is held where it is to be, so that what happens meanwhile does so each time.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from sosfs.config.parameters import Durability
from sosfs.errors import StoreError, from_s3
from sosfs.files.open_file import Handle
from sosfs.journal.journal import Journal
from sosfs.s3.protocol import Acl, Grant, Headers, Properties, Version
from sosfs.tree.inodes import Inode
from tests.conftest import Mounter
from tests.support.composed import LONG, Composed, composed
from tests.support.drive import eventually
from tests.support.fake_store import ANYONE, OWNER, FakeStore
from tests.support.faults import Delay, Hang, Moment
from tests.support.held import Held, begun, closed, opened, settled, silence, stored
from tests.support.proxy import Proxy
from tests.support.traffic import on

pytestmark = pytest.mark.promise(3)
both_modes = pytest.mark.parametrize("durability", Durability)

PUBLIC = Acl(OWNER, (Grant(OWNER, "FULL_CONTROL"), Grant(ANYONE, "READ")))
BEFORE = Properties(Headers("text/x-test"), {"kept": "as it was", "mtime": "1.000000001", "uid": "9"})
MTIME = 123_456_789_000_000_001


class Timed(Held):
    """Each write has a Last-Modified of its own."""

    def __init__(self, **options: bool) -> None:
        super().__init__(clock=partial(next, itertools.count(1_700_000_000)), **options)


class Parted(Timed):
    """Its objects were stored in parts: a copy has another ETag."""

    async def begin(self, body: bytes, properties: Properties, acl: Acl) -> None:
        upload = await self.create_multipart("file", properties, acl=acl)
        part = await self.upload_part("file", upload, 1, body)
        await self.complete_multipart("file", upload, [part])


class Whole(Timed):
    """Its objects were stored by one PUT."""

    async def begin(self, body: bytes, properties: Properties, acl: Acl) -> None:
        await self.put("file", body, properties, acl=acl)


STORES: dict[str, Callable[[], Whole | Parted]] = {
    "one PUT": Whole,
    "in parts": Parted,
    "encrypted": lambda: Whole(hashes=False),
}
every_store = pytest.mark.parametrize("kind", STORES)


async def set_mode(mount: Composed, mode: int) -> None:
    """chmod, as the kernel asks for it."""
    inode = await mount._walk("file")
    inode.mode = stat.S_IFMT(inode.mode) | mode
    mount.parts.attributes.changed(inode, posix={"mode"})


async def set_rest(mount: Composed) -> None:
    """utimensat and setxattr."""
    inode = await mount._walk("file")
    inode.mtime_ns = MTIME
    mount.parts.attributes.changed(inode, posix={"mtime_ns"})
    await set_xattr(mount, "color", "red")


async def set_xattr(mount: Composed, name: str, value: str | None) -> None:
    """setxattr."""
    inode = await mount._walk("file")
    inode.edits = inode.edits.with_metadata(name, value)
    mount.parts.attributes.changed(inode, posix=())


def shown(mount: Composed) -> tuple[int, int, int, str | None]:
    """Mode, owner, time and one entry of metadata, as the mount shows them."""

    async def ask() -> Inode:
        return await mount._walk("file")

    inode = mount.loop.run(ask)
    return (
        stat.S_IMODE(inode.mode),
        inode.uid,
        inode.mtime_ns,
        mount.parts.attributes.known(inode).metadata.get("color"),
    )


def in_bucket(store: FakeStore) -> tuple[int, int, int, str | None]:
    """As `shown`, of the object."""
    found = store._stored["file"].object.properties.metadata
    seconds, rest = found["mtime"].split(".")
    return stat.S_IMODE(int(found["mode"])), int(found["uid"]), int(seconds + rest), found.get("color")


def require(mount: Composed, store: FakeStore, wanted: tuple[int, int, int, str | None]) -> None:
    """It is so at once, and in the bucket a while later, with all else that the object had."""
    assert shown(mount) == wanted
    mount.loop.passes(LONG)
    assert shown(mount) == wanted
    assert in_bucket(store) == wanted
    assert mount.parts.pending == 0
    assert store._stored["file"].acl == PUBLIC
    properties = store._stored["file"].object.properties
    assert (properties.headers.content_type, properties.metadata["kept"]) == ("text/x-test", "as it was")


async def until(mount: Composed, store: Held, where: str) -> None:
    """A first change has come as far as the copy, which is held."""
    await set_mode(mount, 0o600)
    getattr(store, where)["copy"] = trio.Event()


@every_store
@both_modes
@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("more", [True, False], ids=["and changed meanwhile", "alone"])
def test_a_kill_while_the_copy_is_under_way(
    tmp_path: Path, kind: str, durability: Durability, where: str, more: bool
) -> None:
    store = STORES[kind]()
    with composed(store, tmp_path, durability=durability) as mount:
        mount.loop.run(partial(store.begin, b"body", BEFORE, PUBLIC))
        mount.loop.run(partial(until, mount, store, where))
        mount.loop.passes(3)
        assert ("copy", "file") in store.reached
        if more:
            mount.loop.run(partial(set_rest, mount))
        mount.crash()
        getattr(store, where).clear()
        mount.start()
        require(mount, store, (0o600, 9, MTIME, "red") if more else (0o600, 9, 1_000_000_001, None))


@every_store
def test_what_was_set_while_a_copy_was_made_is_of_what_that_has_made(tmp_path: Path, kind: str) -> None:
    """The copy may have another ETag, and another client changes what it has before the next one is sent."""
    store, theirs = STORES[kind](), dict[str, str]()

    async def go_on() -> None:
        await set_rest(mount)
        await settled(store.before["copy"])

    async def come() -> None:
        store.hashes = True  # it keeps the ETag
        theirs.update(store._stored["file"].object.properties.metadata, their="own")
        found = store._stored["file"]
        store._store("file", found.body, found.object.version.etag, Properties(BEFORE.headers, theirs), PUBLIC)

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(store.begin, b"body", BEFORE, PUBLIC))
        mount.loop.run(partial(until, mount, store, "before"))
        mount.loop.passes(3)
        mount.loop.run(go_on)
        assert mount.parts.pending == 1
        mount.crash()
        store.before.clear()
        mount.loop.run(come)
        mount.start()
        require(mount, store, (0o600, 9, MTIME, "red"))
        assert store._stored["file"].object.properties.metadata["their"] == "own"


@every_store
def test_a_copy_that_comes_after_its_process_has_died(tmp_path: Path, kind: str) -> None:
    """The server goes on with a large copy for seconds: it is made when the next mount has written what came since."""
    store = STORES[kind]()
    used: list[Properties] = []
    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(store.begin, b"body", BEFORE, PUBLIC))
        mount.loop.run(partial(until, mount, store, "before"))
        mount.loop.passes(3)
        (inode,) = mount.parts.attributes.dirty
        used.extend(mount.parts.attributes._unanswered_copies.sent(inode))
        mount.loop.run(partial(set_rest, mount))
        mount.crash()
        store.before.clear()
        mount.start()
        mount.loop.passes(5)
        assert in_bucket(store) == (0o600, 9, MTIME, "red")
        (late,) = used

        async def come() -> None:
            await store.copy("file", "file", properties=late, acl=PUBLIC)

        mount.loop.run(come)
        assert in_bucket(store) == (0o600, 9, 1_000_000_001, None), "it has undone what came since"
        require(mount, store, (0o600, 9, MTIME, "red"))


@both_modes
def test_a_copy_without_an_answer_that_comes_after_the_next_one(tmp_path: Path, durability: Durability) -> None:
    """As above, while the mount lives."""
    store = Whole()
    lost: list[Properties] = []

    def lose(operation: str, key: str) -> None:
        if operation == "copy" and not lost:
            (inode,) = mount.parts.attributes.dirty
            lost.extend(mount.parts.attributes._unanswered_copies.sent(inode))
            raise StoreError(110, "copy 'file'", detail="no answer")

    with composed(store, tmp_path, durability=durability) as mount:
        mount.loop.run(partial(store.begin, b"body", BEFORE, PUBLIC))
        store.fault = lose
        mount.loop.run(partial(set_mode, mount, 0o600))
        mount.loop.passes(3)
        assert lost
        mount.loop.run(partial(set_rest, mount))
        mount.loop.passes(10)
        assert in_bucket(store) == (0o600, 9, MTIME, "red")

        async def come() -> None:
            await store.copy("file", "file", properties=lost[0], acl=PUBLIC)

        mount.loop.run(come)
        require(mount, store, (0o600, 9, MTIME, "red"))


@both_modes
@pytest.mark.parametrize("pause", [0.1, 3, 7, 20])
def test_a_late_copy_undoes_nothing_of_what_was_set_after_one_that_was_answered(
    tmp_path: Path, durability: Durability, pause: float
) -> None:
    """A first try got no answer, a second one did; more is set; then the first one comes."""
    store = Whole()
    lost: list[Properties] = []

    def lose(operation: str, key: str) -> None:
        if operation == "copy" and not lost:
            (inode,) = mount.parts.attributes.dirty
            lost.extend(mount.parts.attributes._unanswered_copies.sent(inode))
            raise StoreError(110, "copy 'file'", detail="no answer")

    with composed(store, tmp_path, durability=durability) as mount:
        mount.loop.run(partial(store.begin, b"body", BEFORE, PUBLIC))
        store.fault = lose
        mount.loop.run(partial(set_mode, mount, 0o600))
        mount.loop.passes(8)
        assert lost
        assert in_bucket(store) == (0o600, *in_bucket(store)[1:])
        mount.loop.run(partial(set_rest, mount))
        mount.loop.passes(pause)

        async def come() -> None:
            await store.copy("file", "file", properties=lost[0], acl=PUBLIC)

        mount.loop.run(come)
        require(mount, store, (0o600, 9, MTIME, "red"))


@both_modes
def test_what_another_client_changed_of_the_same_bytes_stays_beside_it(tmp_path: Path, durability: Durability) -> None:
    """Ours are changes of single fields: its owner and its entry stay, our mode and entry are set upon them."""
    store = Whole()

    async def theirs() -> None:
        found = dict(BEFORE.metadata) | {"uid": "77", "mtime": "5.000000000", "color": "blue", "their": "own"}
        await store.put("file", b"body", Properties(BEFORE.headers, found), acl=PUBLIC)

    with composed(store, tmp_path, durability=durability) as mount:
        mount.loop.run(partial(store.begin, b"body", BEFORE, PUBLIC))
        mount.loop.run(partial(until, mount, store, "before"))
        mount.loop.run(partial(set_xattr, mount, "color", "red"))
        mount.crash()
        store.before.clear()
        mount.loop.run(theirs)
        mount.start()
        require(mount, store, (0o600, 77, 5_000_000_000, "red"))
        assert store._stored["file"].object.properties.metadata["their"] == "own"


@both_modes
@pytest.mark.parametrize("alive", [True, False], ids=["alive", "after a crash"])
@pytest.mark.parametrize("theirs", [b"other bytes", None], ids=["replaced", "removed"])
def test_only_another_clients_bytes_end_a_change_and_it_is_said(
    tmp_path: Path, durability: Durability, alive: bool, theirs: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    store = Whole()

    async def come() -> None:
        if theirs is None:
            await FakeStore.delete(store, "file")
        else:
            await FakeStore.put(store, "file", theirs, Properties())

    with composed(store, tmp_path, durability=durability) as mount:
        mount.loop.run(partial(store.begin, b"body", BEFORE, PUBLIC))
        mount.loop.run(partial(set_mode, mount, 0o600))
        if not alive:
            mount.crash()
        mount.loop.run(come)
        if not alive:
            mount.start()
        mount.loop.passes(LONG)
        assert mount.parts.pending == 0
        assert mount.loop.run(mount.tree) == ({} if theirs is None else {"file": (theirs, 0o644)})
        said = [one.getMessage() for one in caplog.records if "of the attributes of file is lost" in one.getMessage()]
        assert len(said) == 1, "errors are in `sosfs status`"


# Of a file that is being stored

Steps = Callable[[Composed, Held, Handle], Awaitable[None]]


async def _while_it_is_sent(mount: Composed, store: Held, handle: Handle) -> None:
    store.after["put"] = trio.Event()
    await mount.parts.file_io.write(handle, 0, b"new")
    await begun(mount, partial(_flushed, mount, handle))
    assert ("put", "file") in store.reached
    await set_mode(mount, 0o600)
    await set_xattr(mount, "color", "red")


async def _before_it_is_sent(mount: Composed, store: Held, handle: Handle) -> None:
    store.after["put"] = trio.Event()
    await mount.parts.file_io.write(handle, 0, b"new")
    await set_mode(mount, 0o600)
    await set_xattr(mount, "color", "red")
    await begun(mount, partial(_flushed, mount, handle))
    assert ("put", "file") in store.reached


async def _flushed(mount: Composed, handle: Handle) -> None:
    await mount.parts.file_io.flush(handle)


@pytest.mark.parametrize("steps", [_while_it_is_sent, _before_it_is_sent])
@pytest.mark.parametrize("is_new", [True, False], ids=["new", "rewritten"])
def test_a_kill_when_the_file_was_stored_and_nobody_told(
    tmp_path: Path, steps: Steps, is_new: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """In bucket mode a file that is being closed has no record of its bytes, and the bucket has another ETag by now."""
    store = Whole()

    async def work() -> None:
        if is_new:
            await mount.write("file", b"", flags=os.O_CREAT)
        await steps(mount, store, await opened(mount))

    with composed(store, tmp_path) as mount:
        if not is_new:
            mount.loop.run(partial(store.begin, b"body", BEFORE, PUBLIC))
        mount.loop.run(work)
        mount.crash()
        store.after.clear()
        mount.start()
        mount.loop.passes(LONG)
        assert stored(store).startswith(b"new")
        assert (shown(mount)[0], shown(mount)[3]) == (0o600, "red")
        assert (in_bucket(store)[0], in_bucket(store)[3]) == (0o600, "red")
        assert mount.parts.pending == 0
        assert "is lost" not in caplog.text


@both_modes
def test_a_change_of_a_file_that_is_being_written_outlives_the_bytes(tmp_path: Path, durability: Durability) -> None:
    """The bytes were not closed and are lost; the chmod has returned, and is not. Nor has the file a new time."""
    store = Whole()

    async def work() -> None:
        handle = await opened(mount)
        await mount.parts.file_io.write(handle, 0, b"never closed")
        await set_mode(mount, 0o600)

    with composed(store, tmp_path, durability=durability) as mount:
        mount.loop.run(partial(store.begin, b"body", BEFORE, PUBLIC))
        mount.loop.run(work)
        mount.crash()
        mount.start()
        require(mount, store, (0o600, 9, 1_000_000_001, None))
        assert stored(store) == b"body"


@both_modes
@pytest.mark.parametrize("is_sent", [False, True], ids=["not sent", "under way"])
def test_a_change_of_a_new_file_is_not_made_to_the_one_it_replaced(
    tmp_path: Path, durability: Durability, is_sent: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """It was renamed over another before it was ever closed: a kill leaves the other, as that one was."""
    store = Whole()

    async def work() -> None:
        parent, name = await mount._parent("new")
        handle = await mount._opened(parent, name, os.O_CREAT | os.O_RDWR)
        await mount.parts.file_io.write(handle, 0, b"never closed")
        await mount.rename("new", "file")
        if is_sent:
            store.before["put"] = trio.Event()
            mount.nursery.start_soon(mount.parts.commits.commit, handle.inode)
            await trio.testing.wait_all_tasks_blocked()
            assert ("put", "file") in store.reached
        await set_mode(mount, 0o600)

    with composed(store, tmp_path, durability=durability) as mount:
        mount.loop.run(partial(store.begin, b"body", BEFORE, PUBLIC))
        mount.loop.run(work)
        mount.crash()
        store.before.clear()
        mount.start()
        mount.loop.passes(LONG)
        assert mount.loop.run(mount.tree) == {"file": (b"body", 0o644)}
        assert store._stored["file"].object.properties == BEFORE
        assert is_sent or "is lost" not in caplog.text, "it was not promised"


@both_modes
@pytest.mark.parametrize("where", ["not sent", "under way", "landed"])
def test_a_time_that_was_set_stays_with_its_bytes(tmp_path: Path, durability: Durability, where: str) -> None:
    """Who writes after it makes another time, which must not be left without those bytes."""
    store = Whole()

    async def work() -> None:
        await set_rest(mount)
        handle = await opened(mount)
        if where == "landed":
            store.after["put"] = trio.Event()
        else:
            store.before["put"] = trio.Event()
        await mount.parts.file_io.write(handle, 0, b"new")
        await set_mode(mount, 0o600)
        if where != "not sent":
            mount.nursery.start_soon(mount.parts.commits.commit, handle.inode)
            await trio.testing.wait_all_tasks_blocked()
            assert ("put", "file") in store.reached

    with composed(store, tmp_path, durability=durability) as mount:
        mount.loop.run(partial(store.begin, b"body", BEFORE, PUBLIC))
        mount.loop.run(work)
        mount.crash()
        store.before.clear()
        store.after.clear()
        mount.start()
        if where != "landed":
            require(mount, store, (0o600, 9, MTIME, "red"))
        else:
            mount.loop.passes(LONG)
            assert stored(store) == b"newy"
            assert shown(mount)[::3] == in_bucket(store)[::3] == (0o600, "red")
            assert in_bucket(store)[2] > MTIME, "the bytes that were written have the time of then"


@both_modes
@pytest.mark.parametrize("then", ["open", "closed", "written on"])
def test_bytes_that_were_stored_keep_their_time_though_another_was_set_before(
    tmp_path: Path, durability: Durability, then: str
) -> None:
    """The mode was set while they were sent, and a kill comes before that is stored."""
    store = Whole()

    async def work() -> Handle:
        await set_rest(mount)
        handle = await opened(mount)
        store.after["put"] = trio.Event()
        await mount.parts.file_io.write(handle, 0, b"new")
        await begun(mount, partial(mount.parts.commits.commit, handle.inode))
        assert ("put", "file") in store.reached
        await set_mode(mount, 0o600)
        if then == "closed":
            await begun(mount, partial(closed, mount, handle))
        elif then == "written on":
            await mount.parts.file_io.write(handle, 0, b"never closed")
        await settled(store.after.pop("put"))
        return handle

    with composed(store, tmp_path, durability=durability) as mount:
        mount.loop.run(partial(store.begin, b"body", BEFORE, PUBLIC))
        mount.loop.run(work)
        assert stored(store) == b"newy"
        stored_at = in_bucket(store)[2]
        assert in_bucket(store)[0] == 0o644
        mount.crash()
        mount.start()
        require(mount, store, (0o600, 9, stored_at, "red"))


@every_store
@pytest.mark.parametrize("then", ["a commit", "a rename"])
def test_what_follows_a_copy_without_an_answer_has_no_rival(tmp_path: Path, kind: str, then: str) -> None:
    """The copy has made another version of the same bytes, which must not pass for another client's."""
    store = STORES[kind]()
    lost: list[str] = []

    async def lose(*_: object) -> None:
        lost.append("copy")
        raise StoreError(110, "copy 'file'", detail="no answer")

    async def work() -> None:
        await set_mode(mount, 0o600)

    async def write() -> None:
        handle = await opened(mount)
        await mount.parts.file_io.write(handle, 0, b"new")
        await closed(mount, handle)

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(store.begin, b"body", BEFORE, PUBLIC))
        mount.loop.run(work)
        inner = store._passing

        async def passing(events: object, what: tuple[str, str]) -> None:
            if events is store.after and what[0] == "copy" and not lost:
                await lose()
            await inner(events, what)  # type: ignore[arg-type]

        store._passing = passing  # type: ignore[method-assign]
        mount.loop.passes(1.5)
        assert lost
        mount.loop.run(write if then == "a commit" else partial(mount.rename, "file", "moved"))
        mount.loop.passes(LONG)
        found = {"file": (b"newy", 0o600)} if then == "a commit" else {"moved": (b"body", 0o600)}
        assert mount.loop.run(mount.tree) == found
        assert mount.parts.conflicts.kept == []


# On a real mount


@both_modes
def test_kill_9_while_a_real_server_copies(mounter: Mounter, proxy: Proxy, durability: Durability) -> None:
    """One copy is made and its answer lost; the other is made seconds after its process has died."""
    drive = mounter(proxy.endpoint, "--durability", durability.value)
    paths = [drive.here / name for name in ("made", "late")]
    for path in paths:
        path.write_bytes(b"body")
        os.setxattr(path, "user.sos.acl", b"public-read")
    proxy.reset()
    proxy.inject(Hang(Moment.AFTER), on("COPY", key=drive.key(paths[0])), times=1)
    proxy.inject(Delay(4.0), on("COPY", key=drive.key(paths[1])), times=1)
    for path in paths:
        path.chmod(0o600)
    eventually(lambda: proxy.count("COPY") == 2)
    for path in paths:
        os.utime(path, ns=(MTIME, MTIME))
        os.setxattr(path, "user.color", b"red")
    time.sleep(0.5)  # the first is made, and would tell
    drive.mount.kill()
    drive.mount.start()

    def require_all() -> None:
        for path in paths:
            found = path.stat()
            assert (stat.S_IMODE(found.st_mode), found.st_mtime_ns) == (0o600, MTIME)
            assert os.getxattr(path, "user.color") == b"red"

    require_all()
    late = next(one for one in proxy.requests if one.op == "COPY" and one.key == drive.key(paths[1]))
    eventually(lambda: late.ended is not None)
    drive.mount.remount()
    require_all()
    for path in paths:
        assert drive.foreign.metadata(drive.key(path))["color"] == "red"
        assert "all-users READ" in os.getxattr(path, "user.sos.acl").decode()


# The replay itself


class LosesAnswers(Timed):
    """Copies take effect, and the answers to some are lost."""

    lost_copies = 0

    async def copy(self, source: str, target: str, **options: Any) -> Version:
        made = await super().copy(source, target, **options)
        if self.lost_copies:
            self.lost_copies -= 1
            raise StoreError(errno.EIO, f"copy {source!r}", detail="no answer")
        return made


async def _begin(store: FakeStore, key: str, body: bytes, metadata: Mapping[str, str]) -> None:
    await store.put(key, body, Properties(metadata=metadata))


async def _change(mount: Composed, path: str, posix: str = "mode") -> None:
    """chmod, or chown."""
    inode = await mount._walk(path)
    if posix == "mode":
        inode.mode = stat.S_IFMT(inode.mode) | 0o600
    else:
        inode.uid = 7
    mount.parts.attributes.changed(inode, posix={posix})


@pytest.mark.parametrize("hashes", [True, False])
def test_a_replay_without_an_answer_is_known_by_the_next_mount(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, hashes: bool
) -> None:
    """It keeps the mount from beginning; the copy that it made all the same is no other client's."""
    store = LosesAnswers(hashes=hashes)
    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(_begin, store, "file", b"bytes", {"mtime": "1.000000001", "colour": "blue"}))
        mount.loop.run(partial(_change, mount, "file"))
        mount.crash()
        store.lost_copies = 1
        with pytest.raises(OSError, match="no answer"):
            mount.start()
        mount.crash()
        mount.start()
        mount.loop.passes(LONG)
        assert "is lost" not in caplog.text
        assert mount.parts.pending == 0
        found = store._stored["file"].object.properties.metadata
        assert (found["mode"], found["colour"]) == (str(0o100600), "blue")


@pytest.mark.parametrize("made", [0, 1])
def test_of_two_copies_without_an_answer_either_may_have_made_what_the_next_mount_finds(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, made: int
) -> None:
    """And the other one may come yet, so that what was set last waits, of what is there."""
    store = Whole(hashes=False)
    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(store.begin, b"body", BEFORE, PUBLIC))
        for number, mode in enumerate((0o640, 0o600)):
            lost = store.unanswered if number == made else store.errors
            lost["copy", "file"] = [silence("copy")]
            mount.loop.run(partial(set_mode, mount, mode))
            while lost["copy", "file"]:
                mount.loop.passes(1)
        mount.loop.run(partial(set_xattr, mount, "color", "red"))
        assert in_bucket(store)[0] == (0o600 if made else 0o640)
        mount.crash()
        mount.start()
        require(mount, store, (0o600, 9, 1_000_000_001, "red"))
        assert "is lost" not in caplog.text


@pytest.mark.parametrize("refused", ["the row", "its sync"])
def test_a_journal_that_cannot_be_written_keeps_no_mount_from_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    """What was set is shown, and is stored once it can be."""
    store = Held(hashes=False)

    async def broken(_: Journal) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def unwritable(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(_begin, store, "file", b"bytes", {"colour": "blue"}))
        mount.loop.run(partial(_change, mount, "file"))
        mount.crash()
        with monkeypatch.context() as patch:
            if refused == "the row":
                patch.setattr(Journal, "save_attributes", unwritable)
            else:
                patch.setattr(Journal, "sync", broken)
            mount.start()
            assert mount.loop.run(mount.tree) == {"file": (b"bytes", 0o600)}
            assert store.calls["copy"] == 0
        mount.loop.passes(LONG)
        found = store._stored["file"].object.properties.metadata
        assert (found["mode"], found["colour"]) == (str(0o100600), "blue")
        assert mount.parts.pending == 0


@pytest.mark.parametrize(("key", "body"), [("file", b"bytes"), ("file", b""), ("d/", b"")])
def test_what_the_bucket_has_already_is_not_written_again(tmp_path: Path, key: str, body: bytes) -> None:
    store = Held()
    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(_begin, store, key, body, {}))
        mount.loop.run(partial(_change, mount, key.rstrip("/")))
        what = "put" if key.endswith("/") else "copy"
        store.after[what, key] = trio.Event()
        mount.loop.passes(3)
        assert (what, key) in store.reached
        mount.crash()
        store.after.clear()
        before = dict(store.calls)
        mount.start()
        mount.loop.passes(LONG)
        assert mount.parts.pending == 0
        assert [store.calls[name] - before.get(name, 0) for name in ("copy", "put")] == [0, 0]


@pytest.mark.parametrize(("key", "body", "how"), [("file", b"", "copy"), ("d/", b"", "put"), ("d/", b"x", "copy")])
def test_a_marker_is_put_and_a_file_is_copied(tmp_path: Path, key: str, body: bytes, how: str) -> None:
    """Not every server copies markers; and only a copy has the condition that it is the file that was changed."""
    store = Held()
    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(_begin, store, key, body, {"colour": "blue"}))
        mount.loop.run(partial(_change, mount, key.rstrip("/")))
        mount.crash()
        before = dict(store.calls)
        mount.start()
        counts = {name: store.calls[name] - before.get(name, 0) for name in ("copy", "put")}
        assert counts == {"copy": 0, "put": 0, how: 1}
        found = store._stored[key].object.properties.metadata
        assert (found["colour"], int(found["mode"]) & 0o7777) == ("blue", 0o600)


def test_what_was_remembered_of_a_file_is_void_once_the_next_mount_has_changed_it(tmp_path: Path) -> None:
    """The copy has the ETag of what it was made of and, in the same second, its time."""
    store = Held(clock=lambda: 0.0)
    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(_begin, store, "file", b"bytes", {"mode": str(0o100644)}))
        assert mount.loop.run(mount.tree) == {"file": (b"bytes", 0o644)}
        mount.stop()
        mount.start()
        mount.loop.run(partial(_change, mount, "file"))
        mount.crash()
        mount.start()
        assert int(store._stored["file"].object.properties.metadata["mode"]) & 0o7777 == 0o600
        assert mount.loop.run(mount.tree) == {"file": (b"bytes", 0o600)}


def test_a_new_directory_of_which_the_server_tells_nothing_keeps_a_mount_from_beginning(tmp_path: Path) -> None:
    """As all else that cannot be sent: only a refusal is left for later."""
    store = Held()
    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(mount.mkdir, "d"))
        mount.crash()
        store.errors["put", "d/"] = [silence("put")]
        with pytest.raises(OSError, match="no answer"):
            mount.start()
        mount.crash()
        mount.start()
        assert (list(store._stored), mount.parts.pending) == (["d/"], 0)


def test_headers_of_a_new_directory_outlive_a_crash(tmp_path: Path) -> None:
    store = Held()

    async def before(mount: Composed) -> None:
        await mount.mkdir("d")
        inode = await mount._walk("d")
        inode.edits = inode.edits.with_header("cache_control", "no-store")
        mount.parts.attributes.changed(inode, posix=())

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(before, mount))
        mount.crash()
        assert store._stored == {}
        mount.start()
        mount.loop.passes(LONG)
        headers = store._stored["d/"].object.properties.headers
        assert (headers.content_type, headers.cache_control) == ("application/x-directory", "no-store")


@pytest.mark.parametrize("hashes", [True, False])
@pytest.mark.parametrize("refused", ["copy", "get_acl"])
def test_a_change_of_what_was_stored_without_an_answer_waits_where_it_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, hashes: bool, refused: str
) -> None:
    store = Whole(hashes=hashes)
    told = [from_s3(refused, code="InvalidArgument", status=400)]

    def refuse(operation: str, key: str) -> None:
        if operation == refused and told:
            raise told.pop()

    async def work() -> None:
        await _while_it_is_sent(mount, store, await opened(mount))

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(store.begin, b"body", BEFORE, PUBLIC))
        mount.loop.run(work)
        mount.crash()
        store.after.clear()
        store.fault = refuse
        mount.start()
        assert not told
        assert (shown(mount)[0], shown(mount)[3]) == (0o600, "red")
        assert shown(mount)[2] == in_bucket(store)[2], "not that of the bytes before"
        mount.loop.passes(LONG)
        assert stored(store) == b"newy"
        assert (in_bucket(store)[0], in_bucket(store)[3]) == (0o600, "red")
        assert mount.parts.pending == 0
        assert "is lost" not in caplog.text


def test_what_is_of_another_size_was_made_by_no_copy_of_ours(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Though another client has stored it with the metadata that ours was to have."""
    store, sent = Whole(), list[Properties]()
    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(store.begin, b"body", BEFORE, PUBLIC))
        mount.loop.run(partial(until, mount, store, "before"))
        mount.loop.passes(3)
        (inode,) = mount.parts.attributes.dirty
        sent.extend(mount.parts.attributes._unanswered_copies.sent(inode))
        mount.loop.run(partial(set_xattr, mount, "color", "red"))
        mount.crash()
        store.before.clear()
        mount.loop.run(partial(FakeStore.put, store, "file", b"their bytes", sent[0]))
        mount.start()
        mount.loop.passes(LONG)
        assert (stored(store), in_bucket(store)[3]) == (b"their bytes", None)
        assert "another client has replaced it" in caplog.text


def test_a_directory_keeps_the_mode_that_s3fs_gave_it(tmp_path: Path) -> None:
    """Without its type bits that is decimal, for a directory alone: 511 is rwxrwxrwx."""
    store = Held()
    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(_begin, store, "d/", b"", {"mode": "511"}))
        mount.loop.run(partial(_change, mount, "d", "uid"))
        mount.crash()
        mount.start()
        found = store._stored["d/"].object.properties.metadata
        assert (found["uid"], int(found["mode"]) & 0o7777) == ("7", 0o777)


@pytest.mark.parametrize("theirs", [None, b"theirs"])
@pytest.mark.parametrize("is_new", [True, False])
def test_a_change_is_lost_only_where_it_was_made_to_something(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, theirs: bytes | None, is_new: bool
) -> None:
    """A new file that nobody has closed was never promised, and neither was its mode."""
    store = Held()

    async def new_file(mount: Composed) -> None:
        handle = await mount._opened(mount.parts.inodes.root, b"file", os.O_CREAT | os.O_RDWR)
        await mount.parts.file_io.write(handle, 0, b"bytes")
        store.before["put"] = trio.Event()
        await begun(mount, partial(mount.parts.file_io.flush, handle))
        await _change(mount, "file")

    with composed(store, tmp_path) as mount:
        if is_new:
            mount.loop.run(partial(new_file, mount))
        else:
            mount.loop.run(partial(_begin, store, "file", b"bytes", {}))
            mount.loop.run(partial(_change, mount, "file"))
        mount.crash()
        store.before.clear()
        store._stored.clear()
        if theirs is not None:
            mount.loop.run(partial(_begin, store, "file", theirs, {}))
        mount.start()
        said = "has replaced it" if theirs is not None else "" if is_new else "has removed it"
        assert ("is lost" in caplog.text) == bool(said)
        assert said in caplog.text


@pytest.mark.parametrize("is_changed", [False, True])
def test_a_marker_that_another_client_makes_while_the_next_mount_begins_is_theirs(
    tmp_path: Path, is_changed: bool
) -> None:
    """It was not there when it was looked for. What was changed of ours since it was made is changed of theirs."""
    store, theirs = Held(), {"mode": str(stat.S_IFDIR | 0o711), "uid": "9"}

    def is_faster(operation: str, key: str) -> None:
        if operation == "put" and key not in store._stored:
            store._store(key, b"", "an ETag", Properties(metadata=theirs), None)

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(mount.mkdir, "d"))
        if is_changed:
            mount.loop.run(partial(_change, mount, "d"))
        mount.crash()
        store.fault = is_faster
        mount.start()
        mount.loop.passes(LONG)
        found = store._stored["d/"].object.properties.metadata
        if is_changed:
            assert (int(found["mode"]) & 0o7777, found["uid"]) == (0o600, "9")
        else:
            assert found == theirs
        assert mount.parts.pending == 0


@both_modes
@pytest.mark.parametrize("is_told", ["set", "by metadata", "by a listing"])
@pytest.mark.parametrize(
    ("old", "new", "path"),
    [("d/a.html", "b.txt", "b.txt"), ("d/a.html", "b.html", "b.html"), ("d", "e", "e/a.html")],
    ids=["to another type", "", "with its directory"],
)
def test_bytes_that_a_crash_takes_leave_no_time_to_a_file_renamed_before(
    tmp_path: Path, durability: Durability, is_told: str, old: str, new: str, path: str
) -> None:
    """rsync would take the old bytes under that name for those that it has just begun to write."""
    store = Timed()
    due = {"set": MTIME, "by metadata": 1_000_000_001, "by a listing": 1_700_000_000 * 10**9}[is_told]

    async def begin(mount: Composed) -> None:
        said = {} if is_told == "by a listing" else {"mtime": "1.000000001"}
        await store.put("d/a.html", b"bytes", Properties(Headers("text/html"), said))
        handle = await opened(mount, path="d/a.html")
        if is_told == "set":
            handle.inode.mtime_ns = MTIME
            mount.parts.attributes.changed(handle.inode, posix={"mtime_ns"})
        await mount.parts.file_io.write(handle, 0, b"other bytes")
        await _change(mount, "d/a.html")
        await mount.rename(old, new)

    with composed(store, tmp_path, durability=durability) as mount:
        mount.loop.run(partial(begin, mount))
        mount.crash()
        mount.take_up()
        inode = mount.loop.run(partial(mount._walk, path))
        assert (stored(store, path), stat.S_IMODE(inode.mode)) == (b"bytes", 0o600)
        assert inode.mtime_ns == due
        seconds, rest = store._stored[path].object.properties.metadata["mtime"].split(".")
        assert int(seconds + rest) == inode.mtime_ns


@pytest.mark.parametrize("is_directory", [False, True])
def test_what_has_lost_its_type_before_a_crash_has_that_of_its_name(tmp_path: Path, is_directory: bool) -> None:
    """It was new, and was stored without an answer: that is no reason to store it again without any type."""
    store = Timed()

    async def begin(mount: Composed) -> None:
        store.after["put"] = trio.Event()
        if is_directory:
            await mount.mkdir("d")
            inode = await mount._walk("d")
        else:
            handle = await mount._opened(mount.parts.inodes.root, b"new.txt", os.O_CREAT | os.O_RDWR)
            await mount.parts.file_io.write(handle, 0, b"bytes")
            await begun(mount, partial(_flushed, mount, handle))
            inode = handle.inode
        inode.edits = inode.edits.with_header("content_type", "")
        mount.parts.attributes.changed(inode, posix=())
        if is_directory:
            await begun(mount, partial(mount.parts.attributes.write_now, inode))
        assert store.reached

    with composed(store, tmp_path, durability=Durability.JOURNAL if is_directory else Durability.BUCKET) as mount:
        mount.loop.run(partial(begin, mount))
        mount.crash()
        store.after.clear()
        mount.start()
        mount.loop.passes(LONG)
        ((_, found),) = store._stored.items()
        wanted = "application/x-directory" if is_directory else "text/plain"
        assert found.object.properties.headers.content_type == wanted
        assert (mount.parts.pending, store.calls["put"], store.calls["copy"]) == (0, 1, 0)
