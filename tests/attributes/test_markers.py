"""The markers of directories: what they keep when attributes are written, whoever wrote them before, and when.

In one process, with requests held back or refused; another client's eyes are the store itself.
"""

from __future__ import annotations

import errno
import itertools
import stat
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from sosfs.config.parameters import TTL, Durability, Exclusive
from sosfs.errors import StoreError, from_s3, unanswered
from sosfs.s3.preconditions import holds, stale
from sosfs.s3.protocol import Acl, Body, Grant, Headers, Page, Properties, Version
from tests.support.composed import LONG, Composed, composed
from tests.support.drive import fails
from tests.support.fake_store import ANYONE, OWNER
from tests.support.held import Held, begun, bodies, put_all, settled

pytestmark = pytest.mark.usefixtures("without_bugs")

PUBLIC = Acl(OWNER, (Grant(OWNER, "FULL_CONTROL"), Grant(ANYONE, "READ")))
THEIRS = Properties(
    Headers("application/x-directory", cache_control="no-store", expires="Thu, 01 Dec 1994 16:00:00 GMT"),
    {"mode": str(stat.S_IFDIR | 0o700), "uid": "9", "theirs": "yes"},
    "COLD",
)
REFUSED = from_s3("put", code="AccessDenied", status=403)
NO_ANSWER = unanswered("put", "no answer")
CONFLICT = from_s3("put", code="ConditionalRequestConflict", status=409)


async def chmod(mount: Composed, path: str = "d", mode: int = 0o750) -> None:
    """chmod, which goes up a second later."""
    inode = await mount._walk(path)
    inode.mode = stat.S_IFDIR | mode
    mount.parts.attributes.changed(inode, posix={"mode"})


async def set_xattr(mount: Composed, path: str = "d") -> None:
    """setxattr."""
    inode = await mount._walk(path)
    inode.edits = inode.edits.with_metadata("colour", "red")
    mount.parts.attributes.changed(inode, posix=())


def shown(mount: Composed, path: str = "d") -> tuple[int, int, str | None]:
    """Mode, owner and an entry of metadata in the mount."""

    async def ask() -> tuple[int, int, str | None]:
        inode = await mount._walk(path)
        metadata = mount.parts.attributes.known(inode).metadata
        return stat.S_IMODE(inode.mode), inode.uid, metadata.get("colour")

    return mount.loop.run(ask)


def require_theirs(store: Held, mode: int, colour: str | None = None, key: str = "d/") -> None:
    """The marker has what `THEIRS` has and the ACL that it had, but for this."""
    found = store._stored[key]
    metadata = found.object.properties.metadata
    assert (int(metadata["mode"]), metadata["uid"]) == (stat.S_IFDIR | mode, "9")
    assert (metadata["theirs"], metadata.get("colour")) == ("yes", colour)
    assert (found.object.properties.headers, found.object.properties.storage_class) == (THEIRS.headers, "COLD")
    assert found.acl == PUBLIC


@pytest.fixture
def store() -> Held:
    """Each write has a time of its own."""
    return Held(clock=partial(next, itertools.count(1_700_000_000)))


class Unconditional(Held):
    """A server that knows no If-Match, so that what is there is looked at before it is replaced."""

    async def put(self, key: str, body: Body, properties: Properties, **options: Any) -> Version:
        """As `ObjectStore.put`."""
        if isinstance(options.get("condition"), Version) and not await holds(self.head, key, options["condition"]):
            raise stale("put", "another one is there")
        return await super().put(key, body, properties, **options)


# A directory that another client makes first


@pytest.mark.promise(1)
def test_a_marker_that_cannot_be_looked_at_is_not_taken_for_absent(tmp_path: Path, store: Held) -> None:
    """Another client has made it meanwhile, and what it has is not told: nothing is stored before it is."""

    async def begin(mount: Composed) -> None:
        await mount.mkdir("d")
        await chmod(mount)
        await store.put("d/", b"", THEIRS, acl=PUBLIC)
        store.errors["head", "d/"] = [NO_ANSWER]

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(begin, mount))
        before = store.calls["put"]
        mount.loop.passes(1.5)
        assert not store.errors["head", "d/"]
        assert (store.calls["put"] - before, mount.parts.pending) == (1, 1)
        mount.loop.passes(10)
        require_theirs(store, 0o750)
        assert mount.parts.pending == 0


@pytest.mark.parametrize("what", ["chmod", "setxattr", "nothing"])
def test_what_another_client_gave_a_directory_stays_beside_what_is_changed_here(
    tmp_path: Path, store: Held, what: str
) -> None:
    async def begin(mount: Composed) -> None:
        await mount.mkdir("d")
        if what == "chmod":
            await chmod(mount)
        elif what == "setxattr":
            await set_xattr(mount)
        await store.put("d/", b"", THEIRS, acl=PUBLIC)

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(begin, mount))
        mount.loop.passes(10)
        mode, colour = 0o750 if what == "chmod" else 0o700, "red" if what == "setxattr" else None
        require_theirs(store, mode, colour)
        assert mount.parts.pending == 0
        # Of theirs, ours that was refused, and ours upon theirs.
        assert store.calls["put"] == (2 if what == "nothing" else 3)
        mount.loop.passes(2 * TTL)
        assert shown(mount) == (mode, 9, colour)
        mount.loop.run(partial(chmod, mount, mode=0o711))
        mount.loop.passes(3)
        require_theirs(store, 0o711, colour)


def test_a_directory_that_was_made_and_changed_again_is_no_rival_of_itself(tmp_path: Path, store: Held) -> None:
    """Its second marker is written over the first, whose answer told which it is."""

    async def begin(mount: Composed) -> None:
        await mount.mkdir("d")
        assert await mount.tree() == {"d": None}

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(begin, mount))
        mount.loop.passes(3)
        assert (store.calls["put"], store.calls["get_acl"]) == (1, 0)
        assert mount.loop.run(mount.tree) == {"d": None}
        mount.loop.run(partial(store.put_acl, "d/", PUBLIC))
        mount.loop.passes(2 * TTL)
        for mode in (0o700, 0o750):
            mount.loop.run(partial(chmod, mount, mode=mode))
            mount.loop.passes(3)
        assert store.calls["put"] == 3
        assert store._stored["d/"].acl == PUBLIC
        assert int(store._stored["d/"].object.properties.metadata["mode"]) == stat.S_IFDIR | 0o750


@pytest.mark.promise(3)
@pytest.mark.parametrize("is_made", [True, False], ids=["made", "changed"])
def test_the_next_mount_writes_what_was_set_upon_whichever_marker_is_there(
    tmp_path: Path, store: Held, is_made: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Where ETags are no hashes another client's has another one, and is of the same directory all the same."""
    store.hashes = False

    async def begin(mount: Composed) -> None:
        await (mount.mkdir("d") if is_made else put_all(store, {"d/": b""}))
        await set_xattr(mount)

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(begin, mount))
        mount.crash()
        if not is_made:
            mount.loop.run(partial(store.put, "d/", b"", THEIRS, acl=PUBLIC))
        mount.start()
        if is_made:
            assert store._stored["d/"].object.properties.metadata["colour"] == "red"
        else:
            require_theirs(store, 0o700, "red")
        assert (mount.parts.pending, "is lost" in caplog.text) == (0, False)


# A marker that cannot be read, or is not there


def _unreadable(error: StoreError, store: Held) -> None:
    """The next time that somebody asks for the marker this is the answer."""
    store.errors["head", "d/"] = [error]


@pytest.mark.promise(7)
def test_a_marker_of_which_not_all_is_known_is_not_written_before_it_is(tmp_path: Path, store: Held) -> None:
    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(store.put, "d/", b"", THEIRS, acl=PUBLIC))
        mount.loop.run(partial(chmod, mount))
        _unreadable(NO_ANSWER, store)
        mount.loop.passes(1.5)
        assert not store.errors["head", "d/"]
        assert (store.calls["put"], mount.parts.pending) == (1, 1)
        mount.loop.passes(LONG)
        require_theirs(store, 0o750)
        assert mount.parts.pending == 0


@pytest.mark.promise(7)
@pytest.mark.parametrize("hashes", [True, False], ids=["", "no hashes"])
def test_what_another_client_changes_of_a_marker_meanwhile_stays_beside_ours(
    tmp_path: Path, store: Held, hashes: bool
) -> None:
    store.hashes = hashes
    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(put_all, store, {"d/": b""}))
        mount.loop.run(partial(chmod, mount))
        mount.loop.run(partial(store.put, "d/", b"", THEIRS, acl=PUBLIC))
        mount.loop.passes(3)
        require_theirs(store, 0o750)
        assert mount.parts.pending == 0


@pytest.mark.promise(7)
@pytest.mark.parametrize("change", ["chmod", "its last entry goes"])
def test_a_marker_that_another_client_makes_stays_where_none_was_known(
    tmp_path: Path, store: Held, change: str
) -> None:
    """Before ours is sent: what that one set of it is not known here."""

    async def begin(mount: Composed) -> None:
        await put_all(store, {"d/x": b"x"})
        await (chmod(mount) if change == "chmod" else mount.unlink("d/x"))
        await store.put("d/", b"", THEIRS, acl=PUBLIC)

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(begin, mount))
        mount.loop.passes(10)
        require_theirs(store, 0o750 if change == "chmod" else 0o700)
        assert mount.parts.pending == 0
        mount.loop.passes(2 * TTL)
        assert shown(mount)[:2] == (0o750 if change == "chmod" else 0o700, 9)


@pytest.mark.promise(7)
@pytest.mark.parametrize("known", [b"", bytes(5), None], ids=["nothing in it", "zeros", "no marker"])
def test_what_another_client_stores_in_a_marker_stays_when_its_directory_is_changed(
    tmp_path: Path, store: Held, known: bytes | None
) -> None:
    async def begin(mount: Composed) -> None:
        await put_all(store, {"d/x": b"x"} if known is None else {"d/": known, "d/x": b"x"})
        await chmod(mount)
        if known:
            mount.parts.blocks.zeros.note(store._stored["d/"].object.version.etag, 5, [(0, 5)])
        await store.put("d/", b"bytes", THEIRS, acl=PUBLIC)

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(begin, mount))
        mount.loop.passes(10)
        assert bodies(store)["d/"] == b"bytes"
        require_theirs(store, 0o750)
        assert mount.parts.pending == 0
        etag = store._stored["d/"].object.version.etag
        assert mount.parts.blocks.zeros.end(etag, 5, 0) == 0, "none of them is known to be a zero"


@pytest.mark.promise(4)
@pytest.mark.parametrize("theirs", [b"bytes", b"", None], ids=["bytes", "metadata", "its removal"])
def test_what_another_client_does_to_a_marker_while_its_directory_is_changed_stays(
    tmp_path: Path, store: Held, theirs: bytes | None
) -> None:
    """What is known of it is a moment old, so that nobody asks again; the server compares it with what is there."""
    store.hashes = theirs != b""  # else both have the same ETag
    held = trio.Event()

    async def begin(mount: Composed) -> None:
        await put_all(store, {"d/": b"", "d/x": b"x"})
        await chmod(mount, mode=0o700)
        await mount.settle()
        await chmod(mount)
        store.before["put", "d/"] = held
        await begun(mount, mount.settle)
        assert ("put", "d/") in store.reached

    async def comes() -> None:
        del store.before["put", "d/"]
        if theirs is None:
            await store.delete("d/")
        else:
            await store.put("d/", theirs, THEIRS, acl=PUBLIC)
        await settled(held)

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(begin, mount))
        mount.loop.run(comes)
        assert mount.parts.pending == 0
        assert bodies(store)["d/"] == (theirs or b"")
        if theirs is not None:
            require_theirs(store, 0o750)
        assert int(store._stored["d/"].object.properties.metadata["mode"]) == stat.S_IFDIR | 0o750


@pytest.mark.promise(7)
def test_a_directory_that_another_client_has_made_public_stays_so_though_this_mount_has_just_made_it(
    tmp_path: Path, store: Held
) -> None:
    """What this mount has made a moment ago has the ACL that it gave, until another one is there."""
    store.hashes = False

    async def main(mount: Composed) -> None:
        await mount.mkdir("d")
        await store.put("d/", b"", THEIRS, acl=PUBLIC)
        await chmod(mount)
        await mount.settle()

    with composed(store, tmp_path, exclusive=Exclusive.ALWAYS) as mount:
        mount.loop.run(partial(main, mount))
        require_theirs(store, 0o750)


def test_who_changes_a_directory_while_another_client_does_so_again_and_again_is_told(
    tmp_path: Path, store: Held
) -> None:
    store.hashes = False

    async def main(mount: Composed) -> None:
        await put_all(store, {"d/": b"", "d/x": b"x"})
        await chmod(mount)
        store.errors["put", "d/"] = [CONFLICT, CONFLICT]
        with fails(errno.ESTALE):
            await mount.settle()
        assert mount.parts.pending == 1

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))
        mount.loop.passes(LONG)
        assert int(store._stored["d/"].object.properties.metadata["mode"]) == stat.S_IFDIR | 0o750
        assert mount.parts.pending == 0


def test_a_marker_that_is_not_ours_and_cannot_be_looked_at_is_not_taken_for_none(tmp_path: Path, store: Held) -> None:
    """What waits is told with what kept it, and nothing is sent until the server answers."""

    async def begin(mount: Composed) -> None:
        await put_all(store, {"d/": b""})
        await chmod(mount)
        await mount.parts.attributes.fetch_whole(await mount._walk("d"))
        store.calls.clear()
        store.errors["put", "d/"] = [CONFLICT]
        store.errors["head", "d/"] = [unanswered("head", "no answer at all")]

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(begin, mount))
        mount.loop.passes(1.5)
        assert store.errors == {("put", "d/"): [], ("head", "d/"): []}
        (waiting,) = mount.parts.waiting
        assert ("no answer at all" in waiting, store.calls["put"]) == (True, 0)
        mount.loop.passes(LONG)
        assert int(store._stored["d/"].object.properties.metadata["mode"]) & 0o7777 == 0o750
        assert (mount.parts.pending, mount.parts.waiting) == (0, [])


@pytest.mark.promise(4)
@pytest.mark.parametrize("kind", [Held, Unconditional], ids=["", "without If-Match"])
def test_the_next_mount_writes_nothing_over_what_another_client_stores_in_a_marker_meanwhile(
    tmp_path: Path, kind: type[Held]
) -> None:
    store = kind(clock=partial(next, itertools.count(1_700_000_000)))

    async def begin(mount: Composed) -> None:
        await put_all(store, {"d/": b"", "d/x": b"x"})
        await chmod(mount)

    def late(operation: str, key: str) -> None:
        if (operation, key) == ("get_acl", "d/"):  # it was looked at before
            store.fault = None
            store._store("d/", b"bytes", "theirs", THEIRS, PUBLIC)

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(begin, mount))
        mount.crash()
        store.fault = late
        mount.start()
        assert store.fault is None
        mount.loop.passes(LONG)
        assert bodies(store)["d/"] == b"bytes"
        require_theirs(store, 0o750)
        assert mount.parts.pending == 0


def test_nor_does_it_go_with_a_directory_that_was_listed_before(tmp_path: Path, store: Held) -> None:
    async def begin(mount: Composed) -> None:
        await put_all(store, {"d/": b""})
        assert await mount.tree() == {"d": None}
        await chmod(mount)
        await store.put("d/", b"bytes", THEIRS, acl=PUBLIC)

    async def remove(mount: Composed) -> None:
        with fails(errno.ENOTEMPTY):
            await mount.rmdir("d")

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(begin, mount))
        mount.loop.passes(3)
        mount.loop.run(partial(remove, mount))
        mount.loop.passes(3)
        assert bodies(store) == {"d/": b"bytes"}


def test_a_marker_that_nobody_may_read_and_only_a_listing_shows_is_written_all_the_same(
    tmp_path: Path, store: Held
) -> None:
    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(put_all, store, {"d/": b"", "d/x": b"x"}))
        mount.loop.run(partial(store.put_acl, "d/", PUBLIC))
        store.fault = lambda operation, key: _refuse() if (operation, key) == ("head", "d/") else None
        mount.loop.run(partial(chmod, mount))
        mount.loop.passes(3)
        assert int(store._stored["d/"].object.properties.metadata["mode"]) == stat.S_IFDIR | 0o750
        assert (mount.parts.pending, store._stored["d/"].acl) == (0, PUBLIC)
        store.fault = None


@pytest.mark.promise(3)
@pytest.mark.parametrize("is_made", [True, False], ids=["made", "changed"])
def test_a_directory_that_was_refused_to_the_mount_before_is_a_rival_of_none_that_came_since(
    tmp_path: Path, store: Held, is_made: bool
) -> None:
    refused = list[str]()

    def refuse(operation: str, key: str) -> None:
        if operation == "put":
            refused.append(key)
            raise REFUSED

    async def begin(mount: Composed) -> None:
        if is_made:
            await mount.mkdir("d")
        else:
            await put_all(store, {"d/": b""})
            await chmod(mount)
        store.fault = refuse

    async def come() -> None:
        store.fault = None
        await store.put("d/", b"", THEIRS, acl=PUBLIC)
        store.calls.clear()

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(begin, mount))
        mount.loop.passes(5)
        assert refused
        mount.crash()
        mount.start()
        assert shown(mount)[0] == (0o755 if is_made else 0o750)
        mount.loop.run(come)
        mount.loop.passes(LONG)
        require_theirs(store, 0o700 if is_made else 0o750)
        assert mount.parts.pending == 0
        puts = store.calls["put"]
        mount.crash()
        mount.start()
        assert store.calls["put"] == puts, "its record is gone"


def test_what_is_taken_at_last_waits_for_no_answer(tmp_path: Path, store: Held) -> None:
    """A marker that was refused to the mount before and to this one is not in doubt once it is there."""

    async def begin(mount: Composed) -> None:
        await put_all(store, {"d/": b""})
        await chmod(mount)
        store.fault = lambda operation, key: _refuse() if operation == "put" else None

    async def take(mount: Composed) -> None:
        store.fault = None
        mount.parts.retries.hurry()

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(begin, mount))
        mount.crash()
        mount.start()
        assert mount.parts.pending == 1
        mount.loop.run(partial(take, mount))
        mount.loop.passes(3)
        assert mount.parts.pending == 0


@pytest.mark.parametrize("is_gone", [True, False], ids=["gone", "refused"])
@pytest.mark.parametrize("kind", [Held, Unconditional], ids=["", "without If-Match"])
def test_a_directory_whose_marker_is_gone_or_unreadable_gets_its_attributes(
    tmp_path: Path, kind: type[Held], is_gone: bool
) -> None:
    store = kind()
    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(put_all, store, {"d/": b"", "d/x": b"x"}))
        mount.loop.run(partial(chmod, mount))
        if is_gone:
            mount.loop.run(partial(store.delete, "d/"))
        else:
            store.fault = lambda operation, key: _refuse() if operation == "head" else None
        mount.loop.passes(3)
        assert int(store._stored["d/"].object.properties.metadata["mode"]) == stat.S_IFDIR | 0o750
        assert (sorted(bodies(store)), mount.parts.pending) == (["d/", "d/x"], 0)
        assert store.calls["put"] == 3, "of both, and of what was set"


@pytest.mark.parametrize("error", [REFUSED, NO_ANSWER, CONFLICT])
@pytest.mark.parametrize("is_new", [True, False], ids=["new", "lost its last entry"])
def test_a_directory_without_marker_stays_whatever_the_server_says_first(
    tmp_path: Path, store: Held, error: StoreError, is_new: bool
) -> None:
    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        if not is_new:
            mount.loop.run(partial(put_all, store, {"d/x": b"x"}))
        store.errors["put", "d/"] = [error]
        mount.loop.run(partial(mount.mkdir, "d") if is_new else partial(mount.unlink, "d/x"))
        mount.loop.passes(LONG)
        assert not store.errors["put", "d/"]
        assert (bodies(store), mount.parts.pending) == ({"d/": b""}, 0)
        assert mount.loop.run(mount.tree) == {"d": None}


def test_a_marker_that_is_sent_again_while_its_directory_is_removed_does_not_bring_it_back(
    tmp_path: Path, store: Held
) -> None:
    """It got no answer at first, so that it is looked for: the pause before the next try ends meanwhile."""
    listed, sent = trio.Event(), trio.Event()

    async def remove(mount: Composed) -> None:
        store.before["list"] = listed
        await begun(mount, partial(mount.rmdir, "d"))
        assert store.reached == {("list", "d/")}
        store.before = {"put": sent}

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        store.errors["put", "d/"] = [NO_ANSWER]
        mount.loop.run(partial(mount.mkdir, "d"))
        mount.loop.passes(1.5)
        assert not store.errors["put", "d/"]
        mount.loop.run(partial(remove, mount))
        mount.loop.passes(5)
        mount.loop.run(partial(settled, listed))
        mount.loop.run(partial(settled, sent))
        mount.loop.passes(5)
        assert bodies(store) == {}
        assert mount.loop.run(mount.tree) == {}
        mount.loop.run(store.release)


# Its record, when its name changes


def test_a_rename_writes_what_is_below_it_and_nothing_else(tmp_path: Path, store: Held) -> None:
    async def begin(mount: Composed) -> None:
        for path in ("top", "top/d", "other"):
            await mount.mkdir(path)
        await mount.rename("top", "moved")

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(begin, mount))
        assert sorted(bodies(store)) == ["moved/", "moved/d/"]
        mount.loop.passes(3)
        assert sorted(bodies(store)) == ["moved/", "moved/d/", "other/"]


@pytest.mark.promise(3)
@pytest.mark.parametrize("below", ["", "d"], ids=["itself", "below what is renamed"])
def test_attributes_that_the_server_does_not_take_go_with_their_directory(
    tmp_path: Path, store: Held, below: str
) -> None:
    async def begin(mount: Composed) -> None:
        await mount.mkdir("top")
        await mount.mkdir("top/d")
        await chmod(mount, "top" if not below else "top/d")
        await mount.rename("top", "moved")

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(begin, mount))
        mount.crash()
        mount.start()
        mount.loop.passes(LONG)
        key, other = ("moved/d/", "moved/") if below else ("moved/", "moved/d/")
        assert sorted(bodies(store)) == ["moved/", "moved/d/"]
        assert int(store._stored[key].object.properties.metadata["mode"]) == stat.S_IFDIR | 0o750
        assert int(store._stored[other].object.properties.metadata["mode"]) == stat.S_IFDIR | 0o755


def test_what_a_rename_has_carried_is_written_no_second_time(tmp_path: Path) -> None:
    """Nor is what nobody changed; and the next mount need not ask for it."""
    store = Held()

    async def begin(mount: Composed) -> None:
        await put_all(store, {"d/": b"", "d/x": b"x", "file": b"bytes", "other": b"other"})
        await mount.tree()
        for path in ("d/x", "file"):
            inode = await mount._walk(path)
            inode.mode = stat.S_IFREG | 0o600
            mount.parts.attributes.changed(inode, posix={"mode"})
        await mount.rename("file", "moved")
        await mount.rename("other", "another")
        await mount.rename("d", "e")

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(begin, mount))
        copies = store.calls["copy"]
        assert copies == 4, "two files, a marker and what is below it"
        assert mount.parts.attributes.dirty == set()
        mount.loop.passes(10)
        assert (store.calls["copy"], mount.parts.pending) == (copies, 0)
        mount.stop()
        asked = store.calls["head"] + store.calls["get"]
        mount.start()
        for path, mode in (("e/x", 0o600), ("moved", 0o600), ("another", 0o644)):
            assert shown(mount, path)[0] == mode
        assert store.calls["head"] + store.calls["get"] == asked


def test_what_is_changed_while_a_rename_copies_is_written_after_it(tmp_path: Path, store: Held) -> None:
    async def begin(mount: Composed) -> None:
        await put_all(store, {"file": b"bytes"})
        inode = await mount._walk("file")
        inode.mode = stat.S_IFREG | 0o600
        mount.parts.attributes.changed(inode, posix={"mode"})

        def late(operation: str, key: str) -> None:
            if (operation, key) == ("copy", "file"):
                store.fault = None
                inode.mode = stat.S_IFREG | 0o640
                mount.parts.attributes.changed(inode, posix={"mode"})

        store.fault = late
        await mount.rename("file", "moved")
        assert mount.parts.pending >= 1

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(begin, mount))
        mount.crash()
        mount.start()
        mount.loop.passes(LONG)
        assert list(bodies(store)) == ["moved"]
        assert int(store._stored["moved"].object.properties.metadata["mode"]) == stat.S_IFREG | 0o640
        assert mount.parts.pending == 0


def test_what_was_set_on_a_file_that_is_another_clients_by_now_is_not_shown_on_theirs(
    tmp_path: Path, store: Held
) -> None:
    async def begin(mount: Composed) -> None:
        await put_all(store, {"file": b"bytes"})
        await set_xattr(mount, "file")
        await store.put("file", b"theirs", Properties(metadata={"uid": "9", "mode": str(stat.S_IFREG | 0o600)}))

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(begin, mount))
        mount.loop.passes(1.5)
        assert shown(mount, "file") == (0o600, 9, None)
        assert mount.parts.pending == 0


def test_who_got_no_answer_does_not_make_the_next_one_ask(tmp_path: Path, store: Held) -> None:
    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(put_all, store, {"d/": b""}))
        mount.loop.run(partial(chmod, mount))
        store.errors["put", "d/"] = [NO_ANSWER]
        mount.loop.passes(1.5)
        assert not store.errors["put", "d/"]
        mount.loop.run(partial(mount.parts.attributes.permissions.require_store, "d/x"))
        assert store.calls["upload_part"] == 0


def test_who_may_not_write_is_told_by_the_next_who_asks(
    tmp_path: Path, store: Held, caplog: pytest.LogCaptureFixture
) -> None:
    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(put_all, store, {"d/": b""}))
        mount.loop.run(partial(chmod, mount))
        store.errors["put", "d/"] = [REFUSED]
        mount.loop.passes(1.5)
        assert "attributes of d are not in the bucket: " in caplog.text
        store.fault = lambda operation, key: _refuse() if operation == "upload_part" else None
        with pytest.raises(PermissionError):
            mount.loop.run(partial(mount.parts.attributes.permissions.require_store, "d/x"))
        store.fault = None


def _refuse() -> None:
    raise StoreError(errno.EACCES, "UploadPart", code="AccessDenied", status=403)


def test_a_marker_that_another_client_makes_later_is_seen_and_kept(tmp_path: Path, store: Held) -> None:
    """Of a directory that was asked for when it had none: what that has given it is shown, and stays."""

    async def begin(mount: Composed) -> None:
        mount.loop._clock.jump(1)  # time 0 is "never" to a directory
        await put_all(store, {"d/x": b"x"})
        assert stat.S_IMODE((await mount._walk("d")).mode) == 0o755
        await store.put("d/", b"", THEIRS, acl=PUBLIC)

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(begin, mount))
        mount.loop.passes(2 * TTL)
        mount.loop.run(mount.tree)
        assert shown(mount) == (0o700, 9, None)
        mount.loop.run(partial(set_xattr, mount))
        mount.loop.passes(3)
        require_theirs(store, 0o700, "red")


@pytest.mark.parametrize("change", ["nothing", "metadata", "removed", "renamed away"])
def test_what_the_mount_before_knew_of_a_marker_holds_for_that_one_alone(
    tmp_path: Path, store: Held, change: str
) -> None:
    """All markers have the same bytes: the listing of the directory shows by its time whether it is still that one."""

    async def begin() -> None:
        for key in ("d/", "e/"):
            await store.put(key, b"", THEIRS)
            await store.put(f"{key}x", b"x", Properties())

    async def happen() -> None:
        if change == "metadata":
            await store.put("d/", b"", replace(THEIRS, metadata={"mode": str(stat.S_IFDIR | 0o711), "uid": "5"}))
        elif change == "removed":
            await store.delete("d/")
        store.calls.clear()

    with composed(store, tmp_path) as mount:
        mount.loop.run(begin)
        assert shown(mount) == (0o700, 9, None)
        mount.stop()
        mount.loop.run(happen)
        mount.start()
        path = "d"
        if change == "renamed away":
            mount.loop.run(partial(mount.rename, "d", "f"))
            path = "f"
            store.calls.clear()
        due = {"metadata": (0o711, 5, None), "removed": (0o755, 0, None)}
        assert shown(mount, path) == due.get(change, (0o700, 9, None))
        if change == "nothing":
            assert store.calls["head"] == 0
        mount.loop.passes(2 * TTL)
        mount.loop.run(mount.tree)
        assert shown(mount, path) == due.get(change, (0o700, 9, None))
        mount.loop.run(partial(mount.unlink, f"{path}/x"))
        mount.loop.passes(3)
        assert f"{path}/" in bodies(store), "it stays without its last entry"


def test_a_first_page_in_no_order_does_not_tell_that_there_is_no_marker(
    tmp_path: Path, store: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some servers list as they like: it may come with a later page."""
    listing = store.list

    async def disordered(prefix: str, *, token: str = "", **options: Any) -> Page:
        page = await listing(prefix, **options)
        if prefix != "d/" or not page.objects or page.objects[0].key != "d/":
            return page
        marker, *rest = page.objects
        return Page((marker,), ()) if token else Page(tuple(reversed(rest)), (), "more")

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(put_all, store, {"d/x": b"x", "d/y": b"y"}))
        mount.loop.run(partial(store.put, "d/", b"", THEIRS))
        assert shown(mount) == (0o700, 9, None)
        mount.stop()
        monkeypatch.setattr(store, "list", disordered)
        mount.start()
        assert shown(mount) == (0o700, 9, None)


def test_a_question_without_an_answer_tells_nothing_of_a_directory(tmp_path: Path, store: Held) -> None:
    """Nor is it taken for one without a marker."""
    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(store.put, "d/", b"", THEIRS))
        _unreadable(NO_ANSWER, store)
        with fails(errno.EIO):
            shown(mount)
        assert shown(mount) == (0o700, 9, None)
