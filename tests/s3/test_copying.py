"""Copies that no CopyObject makes: by parts what is large, anew what is empty, with all that belongs to the object."""

from __future__ import annotations

import errno
import random
from collections.abc import Sequence
from typing import Any

import pytest
import trio
import trio.testing

from sosfs.errors import StoreError, from_s3
from sosfs.s3 import copying
from sosfs.s3.copying import copy_object
from sosfs.s3.protocol import Acl, Detail, Grant, Headers, Object, Part, Properties, Version
from tests.support.drive import fails
from tests.support.fake_store import FakeStore
from tests.support.held import Held, bodies

MIB = 1 << 20
BODY = random.Random(31).randbytes(14 * MIB + 5)
SMALL = b"small"
FRIEND = Acl("owner", (Grant("owner", "FULL_CONTROL"), Grant("friend", "READ")))
OURS = Properties(Headers("text/html"), {"mode": "33152"}, "COLD")
CARRIED = Properties(
    Headers("text/plain", cache_control="no-store", expires="Thu, 01 Jan 2032 00:00:00 GMT"),
    {"mode": "33188", "colour": "blue"},
    "COLD",
)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is large here: 8 MiB stand for 5 GiB, and parts of 6 MiB for those of 512."""
    monkeypatch.setattr(copying, "PUT_MAX", 8 * MIB)
    monkeypatch.setattr(copying, "PART", 6 * MIB)


def test_a_large_object_is_copied_by_parts_with_its_properties_and_acl() -> None:
    async def scene() -> None:
        store = FakeStore("bucket")
        version = await store.put("old", BODY, CARRIED)
        copied = await copy_object(store, "old", "new", version, acl=FRIEND)
        found = await store.get("new", 0, len(BODY))
        assert bytes(found.body) == BODY
        assert found.object.properties == CARRIED
        assert (await store.list("new")).objects[0].storage_class == "COLD"
        assert copied.size == len(BODY)
        assert Grant("friend", "READ") in (await store.get_acl("new")).grants
        assert await store.list_uploads("") == []

    trio.run(scene)


def test_a_source_that_changed_is_not_copied_and_leaves_no_upload() -> None:
    async def scene() -> None:
        store = FakeStore("bucket")
        version = await store.put("old", BODY, CARRIED)
        await store.put("old", BODY[::-1], CARRIED)
        with pytest.raises(StoreError):
            await copy_object(store, "old", "new", version, properties=CARRIED)
        assert (await store.list("", delimiter="")).objects[0].key == "old"
        assert len((await store.list("", delimiter="")).objects) == 1
        assert await store.list_uploads("") == []

    trio.run(scene)


class Begun:
    """Who sees to it that uploads end, and notes how."""

    def __init__(self, store: FakeStore) -> None:
        self._store = store
        self.aborted: list[tuple[str, str]] = []
        self.completed: list[str] = []

    async def begin(self, key: str, properties: Properties, *, acl: Acl | None = None) -> str:
        """As `UploadsBegun.begin`."""
        return "known here as " + await self._store.create_multipart(key, properties, acl=acl)

    async def abort(self, key: str, upload_id: str) -> None:
        """As `UploadsBegun.abort`."""
        self.aborted.append((key, upload_id))

    def ended(self, upload_id: str) -> None:
        """As `UploadsBegun.ended`."""
        self.completed.append(upload_id)


class Renaming(FakeStore):
    """Knows its uploads under the ids that `Begun` tells."""

    async def create_multipart(self, key: str, properties: Properties, **options: Any) -> str:
        """As `ObjectStore.create_multipart`."""
        upload_id = await super().create_multipart(key, properties, **options)
        self._uploads["known here as " + upload_id] = self._uploads.pop(upload_id)
        return upload_id


@pytest.mark.parametrize("is_changed", [False, True])
def test_who_sees_to_uploads_is_told_how_each_ends(is_changed: bool) -> None:
    async def scene() -> None:
        store = Renaming()
        begun = Begun(store)
        version = await store.put("old", BODY, CARRIED)
        if is_changed:
            await store.put("old", BODY[::-1], CARRIED)
            with fails(errno.ESTALE):
                await copy_object(store, "old", "new", version, properties=CARRIED, multiparts=begun)
            assert (begun.aborted, begun.completed) == ([("new", "known here as upload-1")], [])
        else:
            await copy_object(store, "old", "new", version, properties=CARRIED, multiparts=begun)
            assert (begun.aborted, begun.completed) == ([], ["known here as upload-1"])
            assert bodies(store)["new"] == BODY

    trio.run(scene)


def test_one_request_copies_as_much_as_it_may() -> None:
    async def scene() -> None:
        store = FakeStore()
        await copied(store, BODY[: 8 * MIB])
        assert (store.calls["copy"], store.calls["copy_part"]) == (1, 0)
        await copied(store, BODY[: 12 * MIB])
        assert (store.calls["copy"], store.calls["copy_part"]) == (1, 2), "none of them is empty"
        assert bodies(store)["new"] == BODY[: 12 * MIB]

    trio.run(scene)


def test_few_parts_are_copied_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Held()
    store.before["copy_part"] = trio.Event()
    monkeypatch.setattr(copying, "PART", MIB)
    monkeypatch.setattr("tests.support.fake_store.PART_MIN", MIB)

    async def scene() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(copied, store, BODY)
            await trio.testing.wait_all_tasks_blocked()
            waiting = store.before["copy_part"].statistics().tasks_waiting
            store.before["copy_part"].set()
        assert (waiting, store.calls["copy_part"]) == (copying.PARTS_AT_ONCE, 15)
        assert bodies(store)["new"] == BODY

    trio.run(scene)


class Changing(FakeStore):
    """Copies no object where it is told so, and another client stores `other` when the source was seen."""

    def __init__(self, code: str = "", *, other: bytes | None = None, after: str = "") -> None:
        super().__init__()
        self._code = code
        self._other = other
        self._after = after
        self.begun_with: Properties | None = None

    async def copy(self, source: str, target: str, **options: Any) -> Version:
        """As `ObjectStore.copy`."""
        if self._code:
            raise from_s3(f"copy {source!r}", code=self._code, status=400)
        return await super().copy(source, target, **options)

    async def head(self, key: str, *, detail: Detail = Detail.USUAL) -> Object:
        """As `ObjectStore.head`."""
        found = await super().head(key, detail=detail)
        await self._change("head", key)
        return found

    async def copy_part(self, key: str, upload_id: str, number: int, *arguments: Any, **options: Any) -> Part:
        """As `ObjectStore.copy_part`; the first one takes longest."""
        if number == 1:
            await trio.testing.wait_all_tasks_blocked()
        part = await super().copy_part(key, upload_id, number, *arguments, **options)
        if number == 1:
            await self._change("copy_part", key)
        return part

    async def complete_multipart(self, key: str, upload_id: str, parts: Sequence[Part], **options: Any) -> Version:
        """As `ObjectStore.complete_multipart`."""
        self.begun_with = options.get("begun_with")
        return await super().complete_multipart(key, upload_id, parts, **options)

    async def _change(self, seen: str, key: str) -> None:
        if seen == self._after and self._other is not None:
            await self.put(key, self._other, Properties())


async def copied(store: FakeStore, body: bytes, target: str = "new", **options: Any) -> Version:
    """What comes of a copy of an object with `body` and `CARRIED`."""
    return await copy_object(store, "old", target, await store.put("old", body, CARRIED), **options)


def of(store: FakeStore, key: str = "new") -> tuple[bytes, Properties, Acl]:
    """All of an object."""
    found = store._stored[key]
    return bytes(found.body), found.object.properties, found.acl


@pytest.mark.parametrize(
    ("code", "body"),
    [("NotImplemented", SMALL), ("NotImplemented", b""), ("NoSuchKey", b""), ("", BODY)],
    ids=["by a part", "anew", "anew as on SeaweedFS", "by parts"],
)
@pytest.mark.parametrize("is_given", [True, False])
def test_what_no_copy_is_made_of_has_all_that_a_copy_has(code: str, body: bytes, is_given: bool) -> None:
    async def scene() -> None:
        store = Changing(code)
        made = await copied(store, body, properties=OURS if is_given else None, acl=FRIEND)
        assert of(store) == (body, OURS if is_given else CARRIED, FRIEND)
        assert made == Version(store._stored["new"].object.version.etag, len(body))
        assert await store.list_uploads("") == []
        if body:
            assert store.begun_with == (OURS if is_given else CARRIED), "by that it is known after a lost answer"

    trio.run(scene)


@pytest.mark.parametrize(
    ("body", "code", "number"),
    [(SMALL, "AccessDenied", errno.EACCES), (b"", "AccessDenied", errno.EACCES), (SMALL, "NoSuchKey", errno.ENOENT)],
)
def test_a_refusal_of_another_kind_is_told_and_nothing_tried(body: bytes, code: str, number: int) -> None:
    async def scene() -> None:
        store = Changing(code)
        with fails(number):
            await copied(store, body)
        assert bodies(store) == {"old": body}
        assert not store.calls.keys() & {"head", "create_multipart"}

    trio.run(scene)


def test_a_small_source_that_changed_is_not_copied() -> None:
    async def scene() -> None:
        store = FakeStore()
        version = await store.put("old", SMALL, CARRIED)
        await store.put("old", b"later", CARRIED)
        with fails(errno.ESTALE):
            await copy_object(store, "old", "new", version)
        assert bodies(store) == {"old": b"later"}

    trio.run(scene)


def test_an_empty_source_that_changed_is_not_stored_anew() -> None:
    async def scene() -> None:
        store = Changing("NoSuchKey")
        version = await store.put("old", b"", CARRIED)
        await store.put("old", b"later", CARRIED)
        with fails(errno.ESTALE):
            await copy_object(store, "old", "new", version)
        assert bodies(store) == {"old": b"later"}

    trio.run(scene)


@pytest.mark.parametrize(("body", "after"), [(b"", "head"), (BODY, "copy_part")], ids=["anew", "by parts"])
def test_a_copy_onto_itself_undoes_nothing_that_came_meanwhile(body: bytes, after: str) -> None:
    async def scene() -> None:
        store = Changing("NoSuchKey", other=b"theirs", after=after)
        with fails(errno.ESTALE):
            await copied(store, body, "old", properties=OURS)
        assert of(store, "old")[:2] == (b"theirs", Properties(Headers("binary/octet-stream"), {}, ""))
        assert await store.list_uploads("") == []

    trio.run(scene)
