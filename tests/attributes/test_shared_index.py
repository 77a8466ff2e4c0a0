"""The index of shared attributes without a mount: its form, how it splits, who wins, and what is not told yet."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Awaitable, Callable
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import pytest
import trio

from sosfs.attributes.shared import merging, table
from sosfs.attributes.shared.lookup import Lookup
from sosfs.attributes.shared.merging import Merging
from sosfs.attributes.shared.objects import IndexObjects
from sosfs.attributes.shared.publication import Publication
from sosfs.attributes.shared.table import MAGIC, Entry, Leaf, Place, Table, decoded, encoded, pieces
from sosfs.cache.attributes import AttributeCache, place_of
from sosfs.errors import StoreError
from sosfs.s3.protocol import Headers, Object, Properties, Version
from tests.support.fake_store import FakeStore

T = TypeVar("T")


def entry(number: int, *, modified: int = 1000, mode: str = "33188") -> Entry:
    metadata = {"mode": mode, "mtime": f"{number}.5"}
    return Entry(Version(f"{number:032x}", number, modified), Properties(Headers("text/plain"), metadata, ""))


def entries(*folders: str, each: int = 10) -> dict[Place, Entry]:
    return {(folder, f"f{number:03}"): entry(number) for folder in folders for number in range(each)}


def run(work: Callable[[], Awaitable[T]]) -> T:
    return trio.run(work)


def stays(place: Place) -> bool:
    return False


# The form


def test_what_is_packed_is_unpacked() -> None:
    odd = {
        ("", ""): Entry(Version("e", 0, 0), Properties()),
        ("a/", ""): Entry(
            Version("e-2", 1 << 40, 7), Properties(Headers(expires="x"), {"k": "ä\n\u2028\\ud8"}, "COLD")
        ),
        ("a//b/", 'n"a\\m\ne'): entry(1),
        ("", "ü" * 500): entry(2),
    }
    assert decoded(encoded(Table(odd))) == Table(odd, [])
    leaves = [Leaf(("", "a"), "0" * 32, 5), Leaf(("b/", ""), "f" * 32, 20_000)]
    assert decoded(encoded(Table({}, leaves))) == Table({}, leaves)


GOOD: tuple[object, ...] = ("a/", "n", "e", 1, 2, [], {}, None)


def packed(text: bytes) -> bytes:
    body = zlib.compress(text)
    return MAGIC + sha256(body).digest() + body


def cut_off() -> bytes:
    """All entries, without the end of what packed them."""
    body = zlib.compress(json.dumps(GOOD).encode())[:-4]
    return MAGIC + sha256(body).digest() + body


def line(*said: object) -> bytes:
    return packed(json.dumps(said).encode())


def other_said(at: int, value: object) -> tuple[object, ...]:
    return (*GOOD[:at], value, *GOOD[at + 1 :])


def other(at: int, value: object) -> bytes:
    return line(*other_said(at, value))


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{}", MAGIC, MAGIC + bytes(32), MAGIC + bytes(100), encoded(Table(entries("a/")))[:-1],
        encoded(Table(entries("a/"))) + b"x", MAGIC.replace(b"1", b"2") + encoded(Table())[len(MAGIC) :],
        packed(b"\n" * 100), packed(b"null"), packed(b"[]"), packed(b"[" * 10_000), packed(b"[" * 20_000),
        packed(b"\xff"), packed(bytes(table.TEXT_MAX + 1)), packed(bytes(table.LINE_MAX + 1)), line(1, 2, 3, 4),
        line("a", "n", "0" * 32, 1), line("a/", "n", "../x", 1), line("a/", "n", "0" * 32, -1),
        other(0, "a"), other(0, None), other(1, "n/m"), other(1, 1), other(1, "n" * 1024), other(1, "\ud800"),
        other(2, ""), other(2, 5), other(2, "\ud800"), other(6, {"k": "\udc80"}),
        other(3, -1), other(3, True), other(3, 1.5), other(3, 1 << 60), other(4, None),
        other(4, 1 << 40), other(5, ["x"]), other(5, [1] * 6), other(5, {}), other(6, []), other(6, {"k": 1}),
        other(6, {"k": "v" * 3000}), other(7, 1), cut_off(),
        other(5, ["a\nb", *[""] * 5]), other(6, {"a b": "c"}), other(6, {"": "c"}), other(6, {"A": "c"}),
        packed(json.dumps(other_said(2, "X")).encode().replace(b"X", b"\xed\xa0\x80")),
        packed(b"\n".join(json.dumps(["a/", f"n{n}", *GOOD[2:]]).encode() for n in range(table.ENTRIES_MAX + 1))),
        packed(json.dumps(["b/", "", "0" * 32, 1]).encode() + b"\n" + json.dumps(["a/", "", "1" * 32, 1]).encode()),
        packed(json.dumps(["b/", "", "0" * 32, 1]).encode() + b"\n" + json.dumps(GOOD).encode()),
    ],
)  # fmt: skip
def test_what_is_no_table_is_refused_in_words(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"^(it|its|Expecting|'utf-8'|Extra) ?.+"):
        decoded(data)


def test_random_damage_is_never_taken_for_a_table() -> None:
    good = encoded(Table(entries("a/", "b/")))
    for at in range(0, len(good), 7):
        with pytest.raises(ValueError, match="it"):
            decoded(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])


def test_many_entries_are_split_at_directories_into_tables_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "ENTRIES_MAX", 100)
    every = entries(*(f"d{number:02}/" for number in range(30)))
    parts = pieces(every)
    assert {place: one for part in parts for place, one in part.items()} == every
    assert all(30 <= len(part) <= 76 for part in parts[:-1])
    assert all(min(part)[1] == "f000" for part in parts), "a directory of ten is not cut"
    assert [max(one) < min(next_) for one, next_ in pairwise(parts)] == [True] * (len(parts) - 1)
    assert pieces(entries("d/", each=100)) == [entries("d/", each=100)]
    assert len(pieces(entries("d/", each=101))) == 2, "one directory alone is cut as well"


def test_long_entries_are_split_by_their_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "TEXT_MAX", 20_000)
    long = Properties(Headers(), {"k": os.urandom(700).hex()}, None)
    every = {("d/", f"f{number:03}"): Entry(Version("e", 1, 1), long) for number in range(40)} | entries("a/")
    parts = pieces(every)
    assert {place: one for part in parts for place, one in part.items()} == every
    for part in parts:
        assert decoded(encoded(Table(part))).entries == part


# Who writes what


def test_of_two_who_write_at_once_the_slower_merges_with_the_faster() -> None:
    store = FakeStore()
    one, two = (Merging(IndexObjects(store, ""), store) for _ in range(2))

    async def both() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.merge, entries("a/"), stays)
            nursery.start_soon(two.merge, entries("b/"), stays)

    run(both)
    assert dict(root_of(store).entries) == entries("a/", "b/")


def root_of(store: FakeStore, prefix: str = "") -> Table:
    return run(lambda: IndexObjects(store, prefix).read(f"{prefix}.sosfs-attributes/v1")).table


def test_the_newer_entry_stays_and_what_is_gone_goes() -> None:
    store = FakeStore()
    index = Merging(IndexObjects(store, ""), store)
    new, old = entry(1, modified=2000, mode="33279"), entry(1, modified=500)
    run(lambda: index.merge(entries("a/"), stays))
    run(lambda: index.merge({("a/", "f001"): new, ("a/", "f002"): old}, lambda place: place == ("a/", "f003")))
    found = root_of(store).entries
    assert found["a/", "f001"] == new and found["a/", "f002"] == entry(2)
    assert ("a/", "f003") not in found and len(found) == 9
    puts = store.calls["put"]
    assert run(lambda: index.merge(entries("a/", each=1), stays)).entries == 0
    assert store.calls["put"] == puts, "what is known there is not written again"


def test_a_large_index_has_leaves_and_only_those_concerned_are_written_and_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(table, "ENTRIES_MAX", 100)
    store = FakeStore()
    objects = IndexObjects(store, "p/")
    every = entries(*(f"d{number:02}/" for number in range(40)))
    run(lambda: Merging(objects, store).merge(every, stays))
    leaves = root_of(store, "p/").leaves
    assert len(leaves) >= 5 and not root_of(store, "p/").entries
    assert sum(leaf.entries for leaf in leaves) == len(every)

    store.calls.clear()
    run(lambda: Merging(objects, store).merge({("d07/", "new"): entry(7)}, stays))
    assert (store.calls["get"], store.calls["put"]) == (2, 2), "root and one leaf"
    keys = run(lambda: store.list("", delimiter=""))
    assert len(keys.objects) == 1 + len(root_of(store, "p/").leaves), "the leaf that was replaced is gone"

    cache = AttributeCache(tmp_path / "attributes.sqlite")
    lookup = Lookup(objects, cache)
    store.calls.clear()
    run(lambda: lookup.bring(["p/d07/new", "p/d07/f001"]))
    assert store.calls["get"] == 2
    found = cache.find(*place_of("p/d07/new"))
    assert found is not None and found.version == entry(7).version and found.shared
    run(lambda: lookup.bring(["p/d07/f009"]))
    assert store.calls["get"] == 2
    run(lambda: lookup.bring(["p/d30/f009", "p/.sosfs-attributes/v1", "elsewhere"]))
    assert store.calls["get"] == 3
    cache.close()


def test_changes_to_many_leaves_are_written_in_several_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "ENTRIES_MAX", 20)
    monkeypatch.setattr(merging, "TABLES", 2)
    store = FakeStore()
    index = Merging(IndexObjects(store, ""), store)
    run(lambda: index.merge(entries(*(f"d{number:02}/" for number in range(20))), stays))
    changes = {(f"d{number:02}/", "new"): entry(number) for number in range(20)}
    left, rounds = changes, 0
    while left:
        merged = run(lambda left=left: index.merge(left, stays))  # type: ignore[misc]
        assert len(merged.left) < len(left)
        left, rounds = merged.left, rounds + 1
    assert rounds > 2
    leaves = root_of(store).leaves
    objects = IndexObjects(store, "")
    found = [run(lambda leaf=leaf: objects.read(objects.leaf(leaf.name))).table for leaf in leaves]  # type: ignore[misc]
    assert sum(place in one.entries for one in found for place in changes) == len(changes)


# What is told when


def seen(key: str, *, modified: int, answered: int, mode: str = "33188") -> Object:
    return Object(key, Version("e", 1, modified), Properties(Headers(), {"mode": mode}, ""), answered=answered)


class Telling:
    """A publication over a store in memory whose objects are settled or not, as the test says."""

    def __init__(self, tmp_path: Path) -> None:
        self.store = FakeStore()
        self.objects = IndexObjects(self.store, "")
        self.cache = AttributeCache(tmp_path / "attributes.sqlite")
        lookup = Lookup(self.objects, self.cache)
        self.telling = Publication(self.objects, self.store, self.cache, lookup, stays)

    def told(self) -> set[str]:
        return {folder + name for folder, name in root_of(self.store).entries}


def test_what_was_young_when_it_was_seen_is_not_told_as_it_was_seen(tmp_path: Path) -> None:
    """Another change within the same second would have the same time, and would not be seen."""
    here = Telling(tmp_path)

    async def see() -> None:
        here.telling.saw(seen("old", modified=1000, answered=1002))
        here.telling.saw(seen("young", modified=1000, answered=1001))
        here.telling.saw(seen("timeless", modified=1000, answered=0))
        here.telling.saw(seen(".sosfs-attributes/v1", modified=1000, answered=2000))
        await here.telling.tell(askers=1)

    run(see)
    assert here.told() == {"old"}


@pytest.mark.parametrize(
    "properties",
    [
        Properties(Headers(), {"a": "x" * 3000}, ""),  # Ceph takes it
        Properties(Headers(content_disposition='"' * 9000), {}, ""),
        Properties(Headers(), {"a": "\ud800"}, ""),  # as of an encoded word in UTF-7
        Properties(Headers(content_language="a\tb"), {}, ""),
    ],
)
def test_what_others_would_refuse_is_not_told_and_all_else_is(tmp_path: Path, properties: Properties) -> None:
    here = Telling(tmp_path)

    async def see() -> None:
        here.telling.saw(Object("odd", Version("e", 1, 1000), properties, answered=2000))
        here.telling.saw(seen("plain", modified=1000, answered=2000))
        await here.telling.tell(askers=1)

    run(see)
    assert here.told() == {"plain"}


def test_what_could_not_be_told_waits_and_what_is_refused_does_not(tmp_path: Path) -> None:
    here = Telling(tmp_path)

    def refuse(code: str, status: int) -> Callable[[str, str], None]:
        def fault(operation: str, key: str) -> None:
            if operation == "put":
                raise StoreError(5 if status == 500 else 13, "put", code=code, status=status)

        return fault

    async def fail_then_tell() -> None:
        here.telling.saw(seen("a", modified=1000, answered=2000))
        here.store.fault = refuse("InternalError", 500)
        await here.telling.tell(askers=1)
        assert here.telling.denied == ""
        here.store.fault = None
        await here.telling.tell(askers=1)
        here.store.fault = refuse("AccessDenied", 403)
        here.telling.saw(seen("b", modified=1000, answered=2000))
        await here.telling.tell(askers=1)
        assert here.telling.denied
        here.store.fault = None
        here.telling.saw(seen("c", modified=1000, answered=2000))
        await here.telling.tell(askers=1)

    run(fail_then_tell)
    assert here.told() == {"a"}


def test_who_may_not_remove_leaves_does_not_make_ever_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "ENTRIES_MAX", 20)
    here = Telling(tmp_path)

    def refuse(operation: str, key: str) -> None:
        if operation == "delete":
            raise StoreError(13, "delete", code="AccessDenied", status=403)

    async def tell_again_and_again() -> None:
        here.store.fault = refuse
        for number in range(40):
            here.telling.saw(seen(f"f{number:02}", modified=1000, answered=2000))
        await here.telling.tell(askers=1)
        assert here.telling.denied == ""
        for turn in range(5):
            here.telling.saw(seen("f07", modified=2000 + turn, answered=3000))
            await here.telling.tell(askers=1)

    run(tell_again_and_again)
    leaves = root_of(here.store).leaves
    assert here.telling.denied
    assert len(run(lambda: here.store.list("", delimiter="")).objects) == 1 + len(leaves) + 1
