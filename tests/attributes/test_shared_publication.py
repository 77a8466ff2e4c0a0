"""What a mount tells others of what it has learned and when: only what no later change can have the same time as.

Without a mount, on a clock that stands still until a test lets it go on; the index is read as another machine does.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing

from sosfs.attributes.shared import merging, table
from sosfs.attributes.shared.lookup import Lookup
from sosfs.attributes.shared.merging import ORPHAN, Merging
from sosfs.attributes.shared.objects import IndexObjects
from sosfs.attributes.shared.publication import SETTLED, SKEW, Publication
from sosfs.attributes.shared.table import Entry, Place
from sosfs.cache.attributes import AttributeCache, Remembered, place_of
from sosfs.errors import from_s3, unanswered
from sosfs.s3.protocol import Detail, Headers, Object, Properties, Version
from tests.support.held import Held

NOW = 1_800_000_000
OLD = NOW - 100_000
ROOT = ".sosfs-attributes/v1"


class Dated(Held):
    """Its answers tell what its own clock says; `moment` is what the next object has for its time."""

    def __init__(self) -> None:
        self.moment = OLD
        self.now = NOW
        super().__init__(clock=lambda: self.moment)

    async def head(self, key: str, *, detail: Detail = Detail.USUAL) -> Object:
        return replace(await super().head(key, detail=Detail.WHOLE), answered=self.now)


class Here:
    """One machine's end of the index, and what it knows to be gone."""

    def __init__(self, store: Dated, base: Path) -> None:
        base.mkdir(exist_ok=True)
        self.store = store
        self.objects = IndexObjects(store, "")
        self.cache = AttributeCache(base / "attributes.sqlite")
        self.lookup = Lookup(self.objects, self.cache)
        self.gone: set[Place] = set()
        self.telling = Publication(self.objects, store, self.cache, self.lookup, self.gone.__contains__)

    async def told(self) -> dict[str, str]:
        """What others read there: the mode of each key."""
        read = (await IndexObjects(self.store, "").read(ROOT)).table
        return {folder + name: entry.properties.metadata["mode"] for (folder, name), entry in read.entries.items()}


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Here]:
    """A machine that begins."""
    here = Here(Dated(), tmp_path)
    with closing(here.cache):
        yield here


def run(work: Callable[[], Awaitable[None]]) -> None:
    """On a clock that goes on where all wait."""
    trio.run(work, clock=trio.testing.MockClock(autojump_threshold=0))


def of_mode(mode: str) -> Properties:
    return Properties(Headers("text/plain"), {"mode": mode}, "")


def seen(key: str, mode: str = "1", *, modified: int = OLD, answered: int = NOW) -> Object:
    return Object(key, Version("e", 1, modified), of_mode(mode), answered=answered)


# What may be told


def test_what_is_not_known_as_a_whole_or_not_dated_is_not_told(here: Here) -> None:
    async def main() -> None:
        here.telling.saw(replace(seen("part"), detail=Detail.USUAL))
        here.telling.saw(replace(seen("undated"), version=Version("e", 1, None)))
        here.telling.saw(seen("settled", modified=NOW - SETTLED))
        here.telling.saw(seen("young", modified=NOW - SETTLED + 1))
        await here.telling.tell(askers=1)
        assert set(await here.told()) == {"settled"}

    run(main)


def test_what_was_stored_here_is_told_as_the_server_has_it_once_its_time_is_past(here: Here) -> None:
    async def main() -> None:
        await here.store.put("file", b"bytes", of_mode("1"))
        here.telling.saw(seen("file", "0"))
        here.telling.wrote("file")
        await here.telling.tell(askers=1)
        assert (await here.told(), here.store.calls["head"]) == ({}, 0), "neither as it was, nor asked for at once"
        await trio.sleep(SETTLED + 1)
        await here.telling.tell(askers=1)
        assert (await here.told(), here.store.calls["head"]) == ({"file": "1"}, 1)
        known = here.cache.find("", "file")
        assert known is not None
        assert (known.shared, known.version.modified) == (True, OLD)
        await trio.sleep(SETTLED + 1)
        await here.telling.tell(askers=1)
        assert here.store.calls["head"] == 1, "it is not asked for again"

    run(main)


def test_what_is_still_too_young_when_it_is_asked_for_is_asked_for_once_more(here: Here) -> None:
    async def main() -> None:
        here.store.moment = NOW
        await here.store.put("file", b"bytes", of_mode("1"))
        here.telling.wrote("file")
        await trio.sleep(SETTLED + 1)
        await here.telling.tell(askers=1)
        assert await here.told() == {}
        assert here.cache.find("", "file") is None
        here.store.now = NOW + SETTLED
        await trio.sleep(SETTLED + 1)
        await here.telling.tell(askers=1)
        assert await here.told() == {"file": "1"}

    run(main)


def test_what_is_stored_again_while_it_is_asked_for_is_not_told_as_it_was(here: Here) -> None:
    async def main() -> None:
        await here.store.put("file", b"bytes", of_mode("1"))
        here.telling.wrote("file")
        await trio.sleep(SETTLED + 1)
        here.store.after["head"] = answered = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: here.telling.tell(askers=1))
            await trio.testing.wait_all_tasks_blocked()
            await here.store.put("file", b"bytes", of_mode("2"))
            here.telling.wrote("file")
            answered.set()
        assert await here.told() == {}
        assert here.cache.find("", "file") is None
        await trio.sleep(SETTLED + 1)
        await here.telling.tell(askers=1)
        assert await here.told() == {"file": "2"}

    run(main)


def test_what_is_gone_or_refused_is_not_asked_for_again_and_not_told(here: Here) -> None:
    async def main() -> None:
        await here.store.put("file", b"bytes", of_mode("1"))
        for key in ("removed", "absent", "refused", "file"):
            here.telling.wrote(key)
        here.gone.add(("", "removed"))
        here.store.errors["head", "refused"] = [from_s3("HeadObject", code="", status=403)]
        for _ in range(2):
            await trio.sleep(SETTLED + 1)
            await here.telling.tell(askers=1)
        assert await here.told() == {"file": "1"}
        asked = here.store.calls["head"] + (not here.store.errors["head", "refused"])
        assert asked == 3

    run(main)


@pytest.mark.parametrize(
    ("known", "is_told", "is_asked"),
    [
        (Remembered(Version("e", 5, OLD), OLD + SKEW + 1, of_mode("1"), whole=True), True, False),
        (Remembered(Version("e", 5, OLD), OLD + SKEW, of_mode("1"), whole=True), True, True),
        (Remembered(Version("e", 5, None), NOW, of_mode("1"), whole=True), True, True),
        (Remembered(Version("e", 5, OLD), NOW, of_mode("1"), whole=False), False, False),
        (Remembered(Version("e", 5, OLD), NOW, of_mode("1"), whole=True, shared=True), False, False),
    ],
    ids=["long known", "known since it was young", "of our own", "known in part", "told before"],
)
def test_of_what_was_known_before_that_is_told_which_is_certain(
    here: Here, known: Remembered, is_told: bool, is_asked: bool
) -> None:
    async def main() -> None:
        await here.store.put("file", b"bytes", of_mode("1"))
        here.telling.remembered("file", known)
        await trio.sleep(SETTLED + 1)
        await here.telling.tell(askers=1)
        assert (bool(await here.told()), here.store.calls["head"] == 1) == (is_told, is_asked)

    run(main)


def test_what_was_known_before_is_no_answer_about_what_was_stored_since(here: Here) -> None:
    async def main() -> None:
        await here.store.put("file", b"bytes", of_mode("2"))
        here.telling.wrote("file")
        here.telling.remembered("file", Remembered(Version("e", 5, OLD), NOW, of_mode("1"), whole=True))
        here.telling.remembered(ROOT, Remembered(Version("e", 5, OLD), NOW, of_mode("1"), whole=True))
        await here.telling.tell(askers=1)
        assert await here.told() == {}
        await trio.sleep(SETTLED + 1)
        await here.telling.tell(askers=1)
        assert await here.told() == {"file": "2"}

    run(main)


# What comes of it


def test_what_could_not_be_told_waits_and_what_was_learned_since_is_newer(here: Here) -> None:
    async def main() -> None:
        here.telling.saw(seen("file", "1"))
        here.telling.saw(seen("other", "1"))
        here.store.before["put", ROOT] = refused = trio.Event()
        here.store.errors["put", ROOT] = [unanswered("PutObject", "no answer")]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: here.telling.tell(askers=1))
            await trio.testing.wait_all_tasks_blocked()
            here.telling.saw(seen("file", "2", modified=OLD + 10))
            refused.set()
        assert (await here.told(), here.telling.denied, here.telling.published) == ({}, "", 0)
        await here.telling.tell(askers=1)
        assert await here.told() == {"file": "2", "other": "1"}
        assert here.telling.published == 2

    run(main)


def test_only_what_was_told_counts_as_told(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a large index some tables are written at a time; the others wait, and what is learned since is newer."""
    monkeypatch.setattr(table, "ENTRIES_MAX", 4)
    monkeypatch.setattr(merging, "TABLES", 1)
    keys = [f"d{number}/f{name}" for number in range(6) for name in range(2)]

    async def main() -> None:
        for key in keys:
            here.telling.saw(seen(key))
        await here.telling.tell(askers=1)
        for key in keys:
            here.cache.put(key, Version("e", 1, OLD + 1), of_mode("2"), whole=True)
            here.telling.saw(seen(key, "2", modified=OLD + 1))
        await here.telling.tell(askers=1)
        shared = [key for key in keys if (known := here.cache.find(*place_of(key))) is not None and known.shared]
        assert 0 < len(shared) < len(keys)
        for _ in range(len(keys)):
            await here.telling.tell(askers=1)
        assert all(here.cache.find(*place_of(key)).shared for key in keys)  # type: ignore[union-attr]

    run(main)


def test_leaves_that_somebody_has_left_behind_go_after_a_day_and_those_in_use_never_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A young one may be of a mount that is about to write its root; the listing of them has several pages."""
    monkeypatch.setattr(table, "ENTRIES_MAX", 4)
    now, moment = time.time(), [time.time() - ORPHAN - 60]
    store = Held(clock=lambda: moment[0], page=2)
    objects = IndexObjects(store, "")
    index = Merging(objects, store)
    entries = {(f"d{number}/", "f"): Entry(Version("e", 1, OLD), of_mode("1")) for number in range(12)}

    async def main() -> None:
        await index.merge(entries, lambda place: False)
        left = [await objects.write_leaf({("x/", str(number)): entries["d0/", "f"]}) for number in range(3)]
        moment[0] = now
        young = await objects.write_leaf({("x/", "y"): entries["d0/", "f"]})
        await index.merge({("d0/", "g"): entries["d0/", "f"]}, lambda place: False)
        root = (await objects.read(ROOT)).table
        named = {objects.leaf(leaf.name) for leaf in root.leaves}
        assert set(store._stored) == {ROOT, objects.leaf(young), *named}
        assert not {objects.leaf(name) for name in left} & named
        found = [(await objects.read(key)).table.entries for key in named]
        assert {place for one in found for place in one} == {*entries, ("d0/", "g")}

    trio.run(main)


def test_of_two_entries_the_one_with_the_newer_time_stays_whoever_writes_later(here: Here) -> None:
    async def main() -> None:
        for mode, modified, is_taken in (
            ("1", OLD, True),
            ("2", OLD - 1, False),
            ("3", OLD, True),
            ("4", OLD + 1, True),
        ):
            before = await here.told()
            here.telling.saw(seen("file", mode, modified=modified))
            await here.telling.tell(askers=1)
            assert await here.told() == ({"file": mode} if is_taken else before)

    run(main)


def test_who_is_refused_tells_nothing_and_asks_nothing_any_more(here: Here) -> None:
    async def main() -> None:
        await here.store.put("other", b"bytes", of_mode("1"))
        here.telling.wrote("other")
        here.telling.saw(seen("file"))
        here.store.errors["put", ROOT] = [from_s3("PutObject", code="AccessDenied", status=403)]
        await here.telling.tell(askers=1)
        assert here.telling.denied
        here.telling.wrote("other")
        here.telling.saw(seen("file"))
        await trio.sleep(SETTLED + 1)
        await here.telling.tell(askers=1)
        assert (await here.told(), here.store.calls["head"]) == ({}, 0)

    run(main)


def test_who_loses_to_a_faster_one_leaves_no_leaf_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "ENTRIES_MAX", 4)
    store = Held()
    objects = IndexObjects(store, "")
    of = {
        name: {(f"{name}{number}/", "f"): Entry(Version("e", 1, OLD), of_mode("1")) for number in range(8)}
        for name in "ab"
    }

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for changes in of.values():
                nursery.start_soon(Merging(objects, store).merge, changes, lambda place: False)
        leaves = (await objects.read(ROOT)).table.leaves
        assert set(store._stored) == {ROOT, *(objects.leaf(leaf.name) for leaf in leaves)}
        assert sum(leaf.entries for leaf in leaves) == 16

    trio.run(main)
