"""Directories whose markers follow later: in journal mode new ones, in both modes those that lost all they had."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
import trio.testing

from sosfs.config.parameters import Durability
from sosfs.errors import from_s3
from sosfs.s3.protocol import Acl, Body, Condition, Guard, Properties, Version
from tests.conftest import Mounter
from tests.support.composed import LONG, composed
from tests.support.drive import names, sync
from tests.support.fake_store import FakeStore
from tests.support.faults import Hang
from tests.support.foreign import Foreign
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.traffic import on

JOURNAL = ("--durability", "journal")


@pytest.fixture
def server(moto: Server) -> Server:
    """One server is enough: what is tested here happens before it."""
    return moto


class Slow(FakeStore):
    """Stores a marker only when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = trio.Event()
        self.may = trio.Event()

    async def put(
        self,
        key: str,
        body: Body,
        properties: Properties,
        *,
        condition: Condition = Guard.NONE,
        acl: Acl | None = None,
        digest: str = "",
    ) -> Version:
        if key.endswith("/"):
            self.asked.set()
            await self.may.wait()
        return await super().put(key, body, properties, condition=condition, acl=acl, digest=digest)


def test_a_directory_that_is_removed_while_its_marker_is_on_its_way_stays_away(tmp_path: Path) -> None:
    store = Slow()
    with composed(store, tmp_path) as mount:

        async def race() -> None:
            await store.put("docs/last", b"x", Properties())
            await mount.unlink("docs/last")  # from here on only a marker can say that there is a directory
            top, docs = mount.parts.inodes.root, await mount.parts.namespace.lookup(mount.parts.inodes.root, b"docs")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(mount.parts.attributes.write_now, docs)
                await store.asked.wait()
                nursery.start_soon(mount.parts.namespace.rmdir, top, b"docs")
                await trio.testing.wait_all_tasks_blocked()
                store.may.set()

        mount.loop.run(race)
        assert mount.loop.run(mount.tree) == {}
    assert not store._stored


def test_a_new_directory_takes_no_request_until_it_has_rested(tmp_path: Path) -> None:
    store = FakeStore()
    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(lambda: mount.mkdir("one"))
        mount.loop.run(lambda: mount.mkdir("one/two"))
        mount.loop.run(lambda: mount.chmod("one/two", 0o700))
        assert store.calls["put"] == 0
        assert mount.loop.run(mount.tree) == {"one": None, "one/two": None}
        mount.loop.passes(5)
        assert sorted(store._stored) == ["one/", "one/two/"]
        assert store._stored["one/two/"].object.properties.metadata["mode"] == str(0o040700)
        assert store.calls["put"] == 2, "the chmod went along"


def test_what_is_made_and_removed_at_once_never_travels(tmp_path: Path) -> None:
    store = FakeStore()
    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(lambda: mount.mkdir("build"))
        mount.loop.run(lambda: mount.rmdir("build"))
        mount.loop.passes(5)
        assert not store.calls["put"] + store.calls["delete"] + store.calls["delete_many"]
        assert mount.loop.run(mount.tree) == {}


def test_a_crash_before_the_marker_was_sent_loses_no_directory(tmp_path: Path) -> None:
    store = FakeStore()
    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(lambda: mount.mkdir("kept"))
        mount.loop.run(lambda: mount.mkdir("removed"))
        mount.loop.run(lambda: mount.rmdir("removed"))
        mount.crash()
        assert not store._stored
        mount.start()
        assert mount.loop.run(mount.tree) == {"kept": None}
        assert sorted(store._stored) == ["kept/"]


def test_a_directory_that_another_host_made_first_stays_theirs(tmp_path: Path) -> None:
    store = FakeStore()
    theirs = Properties(metadata={"mode": str(0o040750), "uid": "7"})
    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(lambda: mount.mkdir("both"))
        mount.loop.run(lambda: store.put("both/", b"", theirs))
        mount.loop.run(lambda: store.put("both/file", b"x", Properties()))
        mount.loop.passes(5)
        assert store._stored["both/"].object.properties.metadata["uid"] == "7"
        shown = mount.loop.run(lambda: mount._walk("both"))
        assert (shown.mode, shown.uid) == (0o040750, 7)
        assert set(mount.loop.run(mount.tree)) == {"both", "both/file"}


def test_a_new_directory_moves_with_all_below(tmp_path: Path) -> None:
    store = FakeStore()
    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(lambda: mount.mkdir("old"))
        mount.loop.run(lambda: mount.mkdir("old/empty"))
        mount.loop.run(lambda: mount.rename("old", "new"))
        mount.crash()
        mount.start()
        assert mount.loop.run(mount.tree) == {"new": None, "new/empty": None}
        mount.loop.passes(5)
        assert sorted(store._stored) == ["new/", "new/empty/"]


@pytest.mark.parametrize(("name", "options"), [("lock", ()), ("any", ("--exclusive", "always"))])
def test_mkdir_for_a_lock_has_one_winner(
    mounter: Mounter, foreign: Foreign, proxy: Proxy, name: str, options: tuple[str, ...]
) -> None:
    first, second = (mounter(proxy.endpoint, *JOURNAL, "--ttl", "0", *options) for _ in range(2))
    (first.here / name).mkdir()
    with pytest.raises(FileExistsError):
        (second.here / name).mkdir()
    assert foreign.keys() == [f"{name}/"]


@pytest.mark.promise(2)
def test_mkdir_returns_while_the_server_hangs_and_survives_kill(
    mounter: Mounter, proxy: Proxy, foreign: Foreign
) -> None:
    drive = mounter(proxy.endpoint, *JOURNAL)
    proxy.inject(Hang(), on("PUT"))
    (drive.here / "a" / "b").mkdir(parents=True)
    (drive.here / "a" / "file").write_bytes(b"content")
    assert names(drive.here / "a") == ["b", "file"]
    drive.mount.kill()
    proxy.heal()
    proxy.drop_connections()
    drive.mount.start()
    sync(drive.here)
    assert foreign.keys() == ["a/", "a/b/", "a/file"]


@pytest.mark.promise(2)
def test_fsync_of_the_parent_waits_for_the_markers(mounter: Mounter, foreign: Foreign) -> None:
    drive = mounter("", *JOURNAL)
    for at in range(40):
        (drive.here / f"d{at}").mkdir()
    sync(drive.here)
    assert len(foreign.keys()) == 40


@pytest.mark.promise(3)
def test_a_directory_in_the_journal_waits_until_the_key_is_valid_again(tmp_path: Path) -> None:
    store, refused = FakeStore(), list[str]()

    def refuse_twice(operation: str, key: str) -> None:
        if operation == "put" and len(refused) < 2:
            refused.append(key)
            raise from_s3(f"{operation} {key!r}", code="ExpiredToken", status=403)

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        store.fault = refuse_twice
        mount.loop.run(lambda: mount.mkdir("d"))
        mount.loop.passes(LONG)
        assert refused == ["d/"] * 2
        assert mount.loop.run(lambda: store.head("d/")).version.size == 0
