"""What the fake has beyond the contract: faults, counts, small pages, a clock; and that each call lets others run."""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import trio_test

from sosfs.errors import StoreError
from sosfs.s3.protocol import Acl, Page, Part, Properties, Version
from tests.support.fake_store import FakeStore

NONE = Properties()


class Fault:
    """Fails one operation on one key."""

    def __init__(self, operation: str, key: str) -> None:
        self._hit = (operation, key)

    def __call__(self, operation: str, key: str) -> None:
        if (operation, key) == self._hit:
            raise StoreError(errno.EIO, f"{operation} {key}")


@trio_test
async def test_a_fault_strikes_before_anything_happens() -> None:
    store = FakeStore(fault=Fault("put", "bad"))
    await store.put("good", b"1", NONE)
    with pytest.raises(StoreError):
        await store.put("bad", b"1", NONE)
    assert [listed.key for listed in (await store.list("")).objects] == ["good"]
    store.fault = None
    await store.put("bad", b"1", NONE)


@trio_test
async def test_a_fault_fails_one_key_of_a_batch() -> None:
    store = FakeStore(fault=Fault("delete", "b"))
    for key in "abc":
        await store.put(key, b"", NONE)
    failures = await store.delete_many(["a", "b", "c"])
    assert [(failure.key, failure.error.errno) for failure in failures] == [("b", errno.EIO)]
    assert [listed.key for listed in (await store.list("")).objects] == ["b"]


@trio_test
async def test_calls_are_counted_also_the_failing_ones() -> None:
    store = FakeStore()
    await store.put("a", b"", NONE)
    await store.head("a")
    with pytest.raises(StoreError):
        await store.head("b")
    assert store.calls == {"put": 1, "head": 2}


@trio_test
async def test_small_pages_repeat_folded_prefixes() -> None:
    store = FakeStore(page=2)
    for key in ("a/1", "a/2", "b", "c/1", "c/2", "d"):
        await store.put(key, b"", NONE)
    seen: list[Page] = [await store.list("")]
    while seen[-1].token:
        seen.append(await store.list("", token=seen[-1].token))
    assert [[listed.key for listed in page.objects] for page in seen] == [["b"], ["d"]]
    assert [page.prefixes for page in seen] == [("a/",), ("c/",)]


@trio_test
async def test_time_is_the_clocks() -> None:
    now = 1000.7
    store = FakeStore(clock=lambda: now)
    await store.put("a", b"", NONE)
    assert (await store.head("a")).version.modified == 1000
    now = 2000.0
    await store.copy("a", "a")
    assert (await store.head("a")).version.modified == 2000


CALLS: dict[str, Callable[[FakeStore], Awaitable[object]]] = {
    "head": lambda store: store.head("a"),
    "get": lambda store: store.get("a", 0, 1),
    "list": lambda store: store.list(""),
    "put": lambda store: store.put("b", b"", NONE),
    "copy": lambda store: store.copy("a", "b"),
    "delete": lambda store: store.delete("a"),
    "delete_many": lambda store: store.delete_many(["a"]),
    "create_multipart": lambda store: store.create_multipart("a", NONE),
    "upload_part": lambda store: store.upload_part("a", "upload-1", 1, b""),
    "copy_part": lambda store: store.copy_part("a", "upload-1", 1, "a", Version("", 0), 0, 1),
    "complete_multipart": lambda store: store.complete_multipart("a", "upload-1", [Part(1, "", 0)]),
    "abort_multipart": lambda store: store.abort_multipart("a", "upload-1"),
    "list_parts": lambda store: store.list_parts("a", "upload-1"),
    "list_uploads": lambda store: store.list_uploads(""),
    "get_acl": lambda store: store.get_acl("a"),
    "put_acl": lambda store: store.put_acl("a", Acl("owner", ())),
}


@pytest.mark.parametrize("operation", CALLS)
@trio_test
async def test_every_call_is_a_checkpoint_and_counted(operation: str) -> None:
    store = FakeStore()
    await store.put("a", b"1", NONE)
    store.calls.clear()
    with trio.move_on_after(0) as scope:
        await CALLS[operation](store)
    assert scope.cancelled_caught
    assert store.calls[operation] == 1
    assert [listed.key for listed in (await store.list("")).objects] == ["a"]


@trio_test
async def test_what_was_handed_in_may_change_afterwards() -> None:
    store = FakeStore()
    body, metadata = bytearray(b"abc"), {"a": "1"}
    await store.put("a", body, Properties(metadata=metadata))
    body[0], metadata["a"] = 0, "2"
    found = await store.get("a", 0, 3)
    assert bytes(found.body) == b"abc"
    assert found.object.properties.metadata == {"a": "1"}
