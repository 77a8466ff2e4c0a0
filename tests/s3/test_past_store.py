"""A bucket as it was: what its listings show whatever came later, and that all else is of the version of then.

Over the versions of a bucket in memory; `control/test_past.py` has real servers.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from sosfs.errors import StoreError, from_s3
from sosfs.s3.dispatch import Dispatcher
from sosfs.s3.past_store import PastStore
from sosfs.s3.protocol import UNKNOWN, Acl, Detail, Listed, Object, Page, Properties, Slice, Version
from sosfs.s3.version_answers import VersionEntry, VersionMarker, VersionPage
from tests.support.drive import fails

NOW: Any = SimpleNamespace(bucket="bucket", hashes=True)
Place = VersionEntry | str  # an entry, or a folded prefix


@dataclass
class History:
    """The versions of a bucket, newest first for each key, and what was asked for."""

    page: int = 1000
    entries: dict[str, list[VersionEntry]] = field(default_factory=dict)
    asked: list[tuple[Any, ...]] = field(default_factory=list)
    refuses: dict[str, StoreError] = field(default_factory=dict)  # by version ids

    def put(self, key: str, at: float, *, is_marker: bool = False) -> None:
        """A version, or a marker of deletion."""
        made = f"{key}@{at:g}"
        version = UNKNOWN if is_marker else Version(f"etag-of-{made}", 4, int(at))
        entry = VersionEntry(key, made, at, True, is_marker, version, "COLD")
        self.entries.setdefault(key, []).insert(0, entry)

    def at(self, moment: float, **options: Any) -> PastStore:
        """The bucket as it was."""
        return PastStore(options.get("now", NOW), cast(Dispatcher, self), moment)

    def objects_at(self, moment: float) -> dict[str, str]:
        """The keys that were there, with the ids of their versions."""
        newest = {key: next((one for one in of if one.modified <= moment), None) for key, of in self.entries.items()}
        return {key: one.version_id for key, one in newest.items() if one is not None and not one.is_marker}

    async def send(self, _: str, work: Callable[[Any], Any], *, size: int = 0) -> Any:
        await trio.lowlevel.checkpoint()
        self.asked.append(("size", size)) if size else None
        return work(self)

    async def send_each(self, _: str, work: Callable[[Any, str], Any], keys: Sequence[str]) -> Any:
        self.asked.append(("together", len(keys)))
        return [work(self, key) for key in keys]

    def list_versions(self, prefix: str, *, delimiter: str, after: VersionMarker | None, limit: int) -> VersionPage:
        self.asked.append(("list", prefix, limit))
        places: list[tuple[VersionMarker, Place]] = []
        for key in sorted(key for key in self.entries if key.startswith(prefix)):
            folded, found, _ = key[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
            if found:
                if (place := f"{prefix}{folded}/") not in [one for _, one in places]:
                    places.append((VersionMarker(place), place))
            else:
                places += [(VersionMarker(key, one.version_id), one) for one in self.entries[key]]
        markers = [marker for marker, _ in places]
        begin = 0
        if after is not None and after in markers:
            begin = markers.index(after) + 1
        elif after is not None:
            begin = next((at for at, marker in enumerate(markers) if marker.key > after.key), len(markers))
        stop = begin + min(limit, self.page)
        told = [place for _, place in places[begin:stop]]
        entries = tuple(one for one in told if isinstance(one, VersionEntry))
        prefixes = tuple(one for one in told if isinstance(one, str))
        return VersionPage(entries, prefixes, markers[stop - 1] if stop < len(places) else None)

    def _found(self, what: str, key: str, version_id: str) -> VersionEntry:
        self.asked.append((what, version_id))
        if version_id in self.refuses:
            raise self.refuses[version_id]
        return next(one for one in self.entries[key] if one.version_id == version_id)

    def head(self, key: str, detail: Detail, *, version_id: str) -> Object:
        return Object(key, self._found("head", key, version_id).version, Properties(), detail)

    def get(self, key: str, start: int, stop: int, pin: str, *, version_id: str) -> Slice:
        assert pin == ""
        found = self._found("get", key, version_id)
        if start >= found.version.size:
            raise from_s3("GetObject", code="InvalidRange", status=416)
        return Slice(Object(key, found.version, Properties()), memoryview(b"body"[start:stop]))

    def get_acl(self, key: str, *, version_id: str) -> Acl:
        return Acl(self._found("acl", key, version_id).version_id, ())


async def pages(store: PastStore, prefix: str, **options: Any) -> list[Page]:
    """All pages of a listing."""
    found = [await store.list(prefix, **options)]
    while found[-1].token:
        found.append(await store.list(prefix, **options | {"after": "", "token": found[-1].token}))
    return found


def histories() -> Iterator[History]:
    """Buckets in which files come and go, also whole directories, and come back."""
    for seed in range(12):
        dice, history = random.Random(seed), History()
        for at in range(1, 30):
            key = dice.choice(["a", "b", "d/a", "d/b", "d/e/f", "e/a", "e/b", "f/g/h", "z"])
            history.put(key, at + 0.5, is_marker=dice.random() < 0.5)
        yield history


@pytest.mark.parametrize("page", [1, 2, 3, 1000])
def test_what_was_there_is_listed_whatever_came_later(page: int) -> None:
    async def main(history: History, moment: float) -> None:
        then = history.objects_at(moment)
        for prefix in ("", "d/", "f/"):
            for delimiter in ("/", ""):
                found = await pages(history.at(moment), prefix, delimiter=delimiter)
                assert all(one.objects or one.prefixes for one in found[:-1]), "no page is empty but the last"
                below = [key for key in then if key.startswith(prefix)]
                flat = [key for key in below if not delimiter or "/" not in key[len(prefix) :]]
                assert [one.key for each in found for one in each.objects] == sorted(flat)
                folded = {f"{prefix}{key[len(prefix) :].partition('/')[0]}/" for key in set(below) - set(flat)}
                assert [one for each in found for one in each.prefixes] == sorted(folded)

    for history in histories():
        history.page = page
        for moment in (0.5, 7.5, 15.5, 22.0, 40.0):
            trio.run(main, history, moment)


def test_an_object_is_listed_as_it_was() -> None:
    history = History()
    history.put("a", 1.0)
    history.put("a", 2.0)

    async def main() -> None:
        (page,) = await pages(history.at(1.5), "")
        assert page.objects == (Listed("a", Version("etag-of-a@1", 4, 1), "COLD"),)

    trio.run(main)


def test_a_listing_begins_after_a_key() -> None:
    history = History(page=2)
    for key in "abcd":
        history.put(key, 1.0)

    async def main() -> None:
        for after, due in (("", "abcd"), ("b", "cd"), ("bb", "cd"), ("d", "")):
            found = await pages(history.at(2.0), "", after=after)
            assert "".join(one.key for each in found for one in each.objects) == due

    trio.run(main)


def test_of_a_prefix_few_entries_are_looked_at_first() -> None:
    history = History()
    history.put("d/a", 1.0)

    async def main() -> None:
        await pages(history.at(2.0), "", limit=1)
        await pages(history.at(2.0), "", limit=100)

    trio.run(main)
    assert [limit for _, prefix, limit in history.asked if prefix == ""] == [50, 100]
    assert {limit for _, prefix, limit in history.asked if prefix == "d/"} == {50}
    for at in range(100):
        history.put("d/a", 10.0 + at)
    history.page = 40
    history.asked.clear()
    trio.run(history.at(2.0)._has_any, "d/")
    assert [limit for _, _, limit in history.asked] == [50, 1000, 1000], "and then as many as a page has"


@pytest.fixture
def history() -> History:
    """A file with three versions and a marker; one that came later."""
    made = History()
    for at in (1.0, 2.0, 3.0):
        made.put("a", at)
    made.put("a", 4.0, is_marker=True)
    made.put("new", 3.0)
    return made


def test_all_that_is_told_of_an_object_is_of_its_version_of_then(history: History) -> None:
    async def main() -> None:
        for moment, version_id in ((1.9, "a@1"), (2.0, "a@2"), (3.5, "a@3")):
            store = history.at(moment)
            assert (await store.head("a")).version.etag == f"etag-of-{version_id}"
            assert (await store.head("a", detail=Detail.WHOLE)).detail is Detail.WHOLE
            assert bytes((await store.get("a", 1, 3)).body) == b"od"
            assert (await store.get_acl("a")).owner == version_id
            assert [one[1] for one in history.asked if one[0] in ("head", "get", "acl")] == [version_id] * 4
            assert [one for one in history.asked if one[0] == "list"] == [("list", "a", 100)], "it is known then"
            assert ("size", 2) in history.asked
            history.asked.clear()
        works: list[Callable[[], Awaitable[Any]]] = [
            partial(history.at(moment).head, key)
            for moment, key in ((0.5, "a"), (4.0, "a"), (2.9, "new"), (9.0, "none"))
        ]
        for work in works:
            with fails(errno.ENOENT):
                await work()

    trio.run(main)


def test_what_a_listing_has_shown_is_not_looked_for(history: History) -> None:
    async def main() -> None:
        store = history.at(3.5)
        await store.list("")
        history.asked.clear()
        found = await store.heads(["a", "new"])
        assert [cast(Object, one).version.etag for one in found] == ["etag-of-a@3", "etag-of-new@3"]
        assert history.asked == [("together", 2), ("head", "a@3"), ("head", "new@3")]
        ends = await store.heads(["a", "none", "new"])
        assert [isinstance(one, Object) for one in ends] == [True, False, True]
        assert cast(StoreError, ends[1]).errno == errno.ENOENT

    trio.run(main)


def test_a_listing_that_stands_still_has_an_end(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = history.entries["a"][-1], history.entries["new"][0]
    page = VersionPage(entries, (), VersionMarker("new", entries[1].version_id))
    monkeypatch.setattr(history, "list_versions", lambda *_, **__: page)

    async def main() -> None:
        store = history.at(3.5)
        first = await store.list("")
        with fails(errno.EIO):
            await store.list("", token=first.token)

    trio.run(main)


def test_bytes_are_of_the_version_that_was_asked_for(history: History) -> None:
    async def main() -> None:
        store = history.at(3.5)
        assert bytes((await store.get("a", 0, 9, etag="etag-of-a@3")).body) == b"body"
        for start, stop in ((2, 2), (4, 9), (7, 9)):
            assert bytes((await store.get("a", start, stop, etag="etag-of-a@3")).body) == b""
            with fails(errno.ESTALE):
                await store.get("a", start, stop, etag="etag-of-a@2")
        with fails(errno.ESTALE):
            await store.get("a", 0, 4, etag="etag-of-a@2")
        history.refuses["a@3"] = from_s3("GetObject", code="AccessDenied", status=403)
        with fails(errno.EACCES):
            await store.get("a", 0, 4)

    trio.run(main)


def test_nothing_changes_what_was(history: History) -> None:
    async def main() -> None:
        store = history.at(3.5)
        changes = (store.put, store.copy, store.delete, store.purge, store.delete_many, store.put_acl)
        uploads = (store.create_multipart, store.upload_part, store.copy_part, store.complete_multipart)
        for change in (*changes, *uploads, store.abort_multipart):
            with fails(errno.EROFS):
                await change("a")
        with fails(errno.ENXIO):
            await store.list_parts("a", "upload")
        assert await store.list_uploads("") == []
        assert not store.leaves_no_trace

    trio.run(main)
    assert history.asked == []


@pytest.mark.parametrize("is_so", [True, False])
def test_what_holds_of_the_bucket_is_that_of_now(history: History, is_so: bool) -> None:
    async def has_acls() -> bool:
        return is_so

    now = SimpleNamespace(bucket="bucket", hashes=is_so, has_acls=has_acls)
    store = history.at(3.5, now=now)
    assert (store.bucket, store.hashes, trio.run(store.has_acls)) == ("bucket", is_so, is_so)
