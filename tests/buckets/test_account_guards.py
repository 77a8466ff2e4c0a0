"""Which buckets an account has as far as a mount knows, and what commands do in all of them: without any mount."""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial, partialmethod
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock, trio_test, wait_all_tasks_blocked

from sosfs.buckets.bucket_list import SETTLED, BucketList
from sosfs.buckets.commands import works
from sosfs.buckets.member import Member
from sosfs.buckets.registry import BucketRegistry
from sosfs.daemon.mount import _Mount
from sosfs.errors import StoreError
from sosfs.ipc import status
from sosfs.ipc.commands import NO_OPTIONS, Names, Told, Work
from sosfs.ipc.pending import Change, Kind, Pending
from sosfs.ipc.status import MountPhase, Status
from sosfs.s3.account import Account, Owned
from sosfs.s3.protocol import Bucket
from tests.support.drive import fails

TTL = 10.0


class Server:
    """Lists the buckets that it has when it is asked, once it is let; or fails."""

    def __init__(self, *names: str) -> None:
        self.names = list(names)
        self.asked = 0
        self.held: trio.Event | None = None
        self.error: OSError | None = None

    async def owned(self, *, patience: float = 0.0) -> Owned:
        """As of `Account`."""
        self.asked += 1
        names = list(self.names)
        await trio.lowlevel.checkpoint()
        if self.held is not None:
            await self.held.wait()
        if self.error is not None:
            raise self.error
        return Owned("me", {name: Bucket(name, 1.0, "") for name in names})


@pytest.fixture
def mock_clock() -> MockClock:
    """It stands still."""
    return MockClock()


def listing(server: Server) -> BucketList:
    return BucketList(cast(Account, server), ttl=TTL)


async def names(buckets: BucketList) -> list[str]:
    return sorted(await buckets.look())


# The end of a mount


class Failing:
    """A bucket in which all fails, or nothing does."""

    def __init__(self, name: str, *, fails: bool) -> None:
        self.settings = SimpleNamespace(bucket=name)
        self.done: list[str] = []
        self._fails = fails

    async def _do(self, what: str) -> None:
        await trio.lowlevel.checkpoint()
        if self._fails:
            raise OSError(errno.EIO, "the journal was removed")
        self.done.append(what)

    drain = partialmethod(_do, "drained")
    keep = partialmethod(_do, "kept")


class Registry(BucketRegistry):
    """Of these buckets, without an account."""

    def __init__(self, *served: Failing) -> None:
        self._served = served

    @property
    def served(self) -> Any:
        """All."""
        return self._served

    async def _try_waiting(self) -> None:
        """Nothing waits."""


@trio_test
@pytest.mark.parametrize("what", ["drain", "keep"])
async def test_at_the_end_what_fails_in_some_buckets_keeps_nothing_from_the_others(
    what: str, caplog: pytest.LogCaptureFixture
) -> None:
    """And it is told of each."""
    bad, good = ([Failing(f"bucket{at}", fails=is_bad) for at in range(10)] for is_bad in (True, False))
    registry = Registry(*bad, *good)
    with fails(errno.EIO):
        await getattr(registry, what)()
    assert [one.done for one in good] == [["drained" if what == "drain" else "kept"]] * 10
    assert sorted(caplog.messages) == [f"bucket bucket{at}: [Errno 5] the journal was removed" for at in range(10)]


@trio_test
@pytest.mark.promise(3)
@pytest.mark.parametrize("failing", ["", "drain", "keep", "drain and keep"])
async def test_what_fails_at_the_end_keeps_nothing_from_what_comes_after(
    monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """The last word is left, and the exit code tells that something is wrong."""
    done, left = list[str](), list[Status]()

    async def do(what: str) -> None:
        await trio.lowlevel.checkpoint()
        done.append(what)
        if what in failing:
            raise OSError(errno.EIO, "the journal cannot be read")

    last = Status(7, "", "", "/mnt", "http://localhost", MountPhase.STOPPED)
    mount: Any = object.__new__(_Mount)
    mount._draining = trio.CancelScope()
    mount._service = SimpleNamespace(
        drain=partial(do, "drain"), keep=partial(do, "keep"), status=lambda: last, pending=0, state_dir="/state"
    )
    monkeypatch.setattr(status, "write_last", left.append)
    assert await mount._drain() is bool(failing)
    assert (done, left) == (["drain", "keep"], [last])


# Which buckets there are


@trio_test
async def test_a_listing_holds_for_its_time_and_no_longer(mock_clock: MockClock) -> None:
    server = Server("one")
    buckets = listing(server)
    assert await names(buckets) == ["one"]
    server.names.append("two")
    mock_clock.jump(TTL / 2)
    assert (await names(buckets), server.asked, buckets.fresh_for) == (["one"], 1, TTL / 2)
    mock_clock.jump(TTL / 2)
    assert buckets.fresh_for == 0.0
    assert (await names(buckets), server.asked) == (["one", "two"], 2)


@trio_test
async def test_it_is_as_old_as_its_question(mock_clock: MockClock) -> None:
    server = Server("one")
    server.held = trio.Event()
    buckets = listing(server)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(buckets.look)
        nursery.start_soon(buckets.look)
        await wait_all_tasks_blocked()
        mock_clock.jump(TTL / 4)
        server.held.set()
    assert (server.asked, buckets.fresh_for) == (1, TTL * 3 / 4), "who comes meanwhile waits for the answer"


@trio_test
async def test_what_this_mount_has_made_and_removed_is_so_whatever_a_server_lists_for_a_while(
    mock_clock: MockClock,
) -> None:
    """Some list a bucket only a moment after it was made, and one that is gone."""
    server = Server("old", "other")
    buckets = listing(server)
    await buckets.look()
    buckets.made(Bucket("new", 5.0, ""))
    buckets.removed("old")
    assert sorted(buckets.listed) == ["new", "other"]
    mock_clock.jump(SETTLED - 1)
    assert await names(buckets) == ["new", "other"]
    assert (await buckets.find("new")).created == 5.0
    with fails(errno.ENOENT):
        await buckets.find("old")
    mock_clock.jump(SETTLED)
    assert await names(buckets) == ["old", "other"], "then the server is right"


@trio_test
async def test_what_is_made_and_removed_while_a_listing_is_on_its_way_is_so_in_it(mock_clock: MockClock) -> None:
    server = Server("old")
    buckets = listing(server)
    server.held = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(buckets.look)
        await wait_all_tasks_blocked()
        mock_clock.jump(1.0)
        buckets.made(Bucket("new", 5.0, ""))
        buckets.removed("old")
        server.held.set()
    assert await names(buckets) == ["new"]


@pytest.mark.promise(1)
@trio_test
async def test_a_listing_that_fails_makes_no_bucket_absent(mock_clock: MockClock) -> None:
    server = Server("one")
    buckets = listing(server)
    await buckets.look()
    mock_clock.jump(TTL)
    server.error = StoreError(errno.EIO, "ListBuckets", detail="no answer")
    assert (await buckets.find("one")).name == "one", "its own server may answer"
    with fails(errno.EIO):
        await buckets.find("two")
    with fails(errno.EIO):
        await buckets.look()


@trio_test
async def test_a_bucket_whose_name_cannot_be_a_directory_is_not_shown(mock_clock: MockClock) -> None:
    assert await names(listing(Server("..", ".", ".sosfs", "a/b", "good"))) == ["good"]


# Commands


@dataclass
class Served:
    """A bucket that was entered, whose errands note what they are asked."""

    name: str
    outcomes: Mapping[str, Told]
    asked: list[tuple[str, list[Names]]] = field(default_factory=list)

    @property
    def settings(self) -> Any:
        """That name its bucket."""
        return Named(self.name)

    @property
    def errands(self) -> Mapping[str, Work]:
        """All that there are."""

        def work(errand: str) -> Work:
            async def run(paths: Sequence[Names], tell: Any, options: Any = NO_OPTIONS) -> Told:
                self.asked.append((errand, list(paths)))
                return dict(self.outcomes[errand])

            return run

        return {errand: work(errand) for errand in self.outcomes}


@dataclass
class Named:
    """Settings, as far as commands look at them."""

    bucket: str


class Buckets:
    """As `registry.BucketRegistry`: all of these, of which some were entered."""

    def __init__(self, *all_of: Served, entered: Sequence[str] = (), earlier: Sequence[Change] = ()) -> None:
        self.bucket_list = listing(Server(*(one.name for one in all_of)))
        self._by_name = {one.name: one for one in all_of}
        self._members = {one.name: Member(at, Bucket(one.name)) for at, one in enumerate(all_of, 1)}
        self._earlier = list(earlier)
        for name in entered:
            self._members[name].served = cast(Any, self._by_name[name])

    @property
    def served(self) -> Any:
        """What was entered."""
        return [one.served for one in self._members.values() if one.served is not None]

    def earlier(self) -> Sequence[Change]:
        """What waits for buckets that were not."""
        return self._earlier

    def known(self, bucket: Bucket) -> Member:
        """By its name."""
        return self._members[bucket.name]

    async def find(self, name: str) -> Member:
        """By its name."""
        return self.known(await self.bucket_list.find(name))

    async def entered(self, member: Member) -> Any:
        """It is from now on."""
        member.served = cast(Any, self._by_name[member.name])
        return member.served


async def run(buckets: Buckets, errand: str, *paths: str) -> Told:
    split = [tuple(filter(None, path.encode().split(b"/"))) for path in paths]
    return await works(cast(Any, buckets))[errand](split, lambda news: None, NO_OPTIONS)


@pytest.mark.parametrize(
    ("errand", "told"),
    [
        ("versions", {"entries": []}),
        ("usage", {"usages": []}),
        ("drop", {"files": 0, "memory_bytes": 0, "disk_bytes": 0, "kept_files": 0, "kept": []}),
    ],
)
@trio_test
async def test_of_an_account_without_buckets_nothing_is_told(errand: str, told: Told) -> None:
    assert await run(Buckets(), errand, "") == told


@pytest.mark.parametrize("errand", ["warm", "restore", "prune", "link"])
@trio_test
async def test_what_can_be_done_in_no_bucket_is_an_error_in_words(errand: str) -> None:
    with pytest.raises(OSError, match="there is no bucket") as error:
        await run(Buckets(), errand, "")
    assert error.value.errno == errno.ENOENT


@trio_test
async def test_each_bucket_is_asked_for_its_own_paths_and_what_it_tells_is_added_up() -> None:
    one = Served("one", {"warm": {"files": 2, "cache_bytes": 70, "failed": ["d/x"]}})
    two = Served("two", {"warm": {"files": 3, "cache_bytes": 70, "failed": [["e/y", "why"]]}})
    never = Served("never", {"warm": {}})
    told = await run(Buckets(one, two, never), "warm", "one/d", "two", "one/c")
    assert told == {"files": 5, "cache_bytes": 70, "failed": ["one/d/x", ["two/e/y", "why"]]}
    assert one.asked == [("warm", [(b"d",), (b"c",)])]
    assert (two.asked, never.asked) == ([("warm", [()])], [])


@trio_test
async def test_the_root_stands_for_all_and_what_nobody_has_entered_has_nothing_to_drop() -> None:
    one, two = Served("one", {"drop": {"files": 2}}), Served("two", {"drop": {"files": 3}})
    assert await run(Buckets(one, two, entered=["two"]), "drop", "") == {"files": 3}
    assert (one.asked, two.asked) == ([], [("drop", [()])])


@pytest.mark.parametrize(("errand", "lists"), [("usage", "usages"), ("warm", "failed")])
@trio_test
async def test_lists_are_whole_where_all_of_them_is_asked_for(errand: str, lists: str) -> None:
    many = [[f"f{number}", 1] for number in range(15)]
    found = await run(Buckets(*(Served(name, {errand: {lists: many}}) for name in ("a", "b"))), errand, "")
    assert len(found[lists]) == (30 if errand == "usage" else 20)
    assert found[lists][15] == ["b/f0", 1]


def waiting(bucket: str, since: float, tries: list[str]) -> Change:
    async def attempt() -> None:
        tries.append(bucket)

    return Change(Pending((bucket.encode(),), Kind.EARLIER, since), attempt)


@pytest.mark.parametrize(
    ("path", "due"),
    [
        ("", [("gone", 1.0), ("one/a", 2.0), ("two/b", 3.0)]),
        ("one", [("one/a", 2.0)]),
        ("one/a", [("one/a", 2.0)]),
        ("gone/x", [("gone", 1.0)]),
    ],
)
@pytest.mark.parametrize("errand", ["pending", "retry"])
@trio_test
async def test_what_waits_is_told_of_all_buckets_the_oldest_first_and_none_is_entered(
    errand: str, path: str, due: list[tuple[str, float]]
) -> None:
    def outcome(name: str, since: float) -> Told:
        more = {"tried": 1} if errand == "retry" else {}
        return {"changes": [{"path": name, "since": since}], "total": 1, **more}

    tries: list[str] = []
    one, two = Served("one", {errand: outcome("a", 2.0)}), Served("two", {errand: outcome("b", 3.0)})
    buckets = Buckets(one, two, Served("gone", {}), entered=["two", "one"], earlier=[waiting("gone", 1.0, tries)])
    told = await run(buckets, errand, path)
    assert [(change["path"], change["since"]) for change in told["changes"]] == due
    assert told["total"] == len(due)
    if errand == "retry":
        assert told["tried"] == len(due)
        assert tries == (["gone"] if due[0][0] == "gone" else [])
    assert len(buckets.served) == 2
    below = tuple(path.encode().split(b"/")[1:])
    assert one.asked == ([(errand, [below])] if ("one/a", 2.0) in due else [])
