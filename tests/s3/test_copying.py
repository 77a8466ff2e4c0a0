"""Copies beyond what one CopyObject may carry: by parts, with all that belongs to the object."""

from __future__ import annotations

import random

import pytest
import trio

from sosfs.errors import StoreError
from sosfs.s3 import copying
from sosfs.s3.copying import copy_object
from sosfs.s3.protocol import Acl, Grant, Headers, Properties
from tests.support.fake_store import FakeStore

MIB = 1 << 20
BODY = random.Random(31).randbytes(14 * MIB + 5)
CARRIED = Properties(Headers("text/plain", cache_control="no-store"), {"mode": "33188", "colour": "blue"}, "COLD")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is large here: 8 MiB stand for 5 GiB, and parts of 6 MiB for those of 512."""
    monkeypatch.setattr(copying, "PUT_MAX", 8 * MIB)
    monkeypatch.setattr(copying, "PART", 6 * MIB)


def test_a_large_object_is_copied_by_parts_with_its_properties_and_acl() -> None:
    async def scene() -> None:
        store = FakeStore("bucket")
        version = await store.put("old", BODY, CARRIED)
        acl = Acl("owner", (Grant("owner", "FULL_CONTROL"), Grant("friend", "READ")))
        copied = await copy_object(store, "old", "new", version, acl=acl)
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
