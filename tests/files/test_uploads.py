"""What of an upload that was begun may become part of the object: each guard by itself.

In one process, with requests held back, over a server that checks no copied part where the client leaves that to the
condition on the whole.
"""

from __future__ import annotations

import errno
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

import sosfs.files.write_behind
import tests.support.fake_store
from sosfs.errors import StoreError
from sosfs.files.open_file import Handle
from sosfs.s3.protocol import Acl, Check, Grant, Part, Properties, Version
from tests.support.composed import Composed, composed
from tests.support.held import Held, bodies, closed, opened, put_all, stored

PART = 4096
COUNT = 70
OLD, THEIRS = b"o" * (COUNT * PART), b"X" * (COUNT * PART)


class Unchecked(Held):
    """Copies what is there where the condition on the whole is to tell (`Check.AT_COMPLETION`)."""

    async def copy_part(
        self, key: str, upload_id: str, number: int, source: str, version: Version, start: int, stop: int,
        *, check: Check = Check.AT_ONCE,
    ) -> Part:  # fmt: skip
        """As `ObjectStore.copy_part`."""
        if check is Check.AT_COMPLETION:
            version = self._stored[source].object.version
        return await super().copy_part(key, upload_id, number, source, version, start, stop)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tests.support.fake_store, "PART_MIN", 1)
    monkeypatch.setattr(sosfs.files.write_behind, "STREAM_MIN", 40 * PART)


async def _changed(mount: Composed) -> Handle:
    """A large file of which the first part was written anew."""
    await put_all(mount.store, {"file": OLD})
    handle = await opened(mount)
    await mount.parts.file_io.write(handle, 0, b"n" * PART)
    return handle


def test_parts_that_were_copied_unchecked_are_of_no_use_to_the_next_try(tmp_path: Path) -> None:
    """The version that they were copied of may have been another for a while."""
    store = Unchecked()

    async def main(mount: Composed) -> None:
        handle = await _changed(mount)
        await store.put("file", THEIRS, Properties())
        store.errors["complete_multipart", "file"] = [StoreError(errno.EIO, "complete", detail="no answer")]
        with pytest.raises(OSError, match="no answer"):
            await mount.parts.file_io.flush(handle)
        await store.put("file", OLD, Properties())
        await closed(mount, handle)
        assert bodies(store) == {"file": b"n" * PART + OLD[PART:]}

    with composed(store, tmp_path, part_size=PART) as mount:
        mount.loop.run(partial(main, mount))


def test_nothing_of_the_winner_is_mixed_into_what_is_kept_beside_it(tmp_path: Path) -> None:
    store = Unchecked()

    async def main(mount: Composed) -> None:
        handle = await _changed(mount)
        await store.put("file", THEIRS, Properties())
        with pytest.raises(OSError) as caught:
            await closed(mount, handle)
        assert caught.value.errno == errno.ESTALE
        found = bodies(store)
        assert found.pop("file") == THEIRS
        (kept,) = found.values()
        assert kept[:PART] == b"n" * PART
        assert b"X" not in kept

    with composed(store, tmp_path, part_size=PART) as mount:
        mount.loop.run(partial(main, mount))


async def _streamed(mount: Composed, store: Held, held: trio.Event) -> Handle:
    """A new file whose first parts are on their way behind its writer, the first of them held back."""
    handle = await mount._opened(mount.parts.inodes.root, b"file", os.O_CREAT | os.O_RDWR)
    upload_part = store.upload_part

    async def first_is_late(key: str, upload_id: str, number: int, body: Any) -> Part:
        if number == 1 and not held.is_set():
            await held.wait()
        return await upload_part(key, upload_id, number, body)

    store.upload_part = first_is_late  # type: ignore[method-assign]
    for number in range(45):
        await mount.parts.file_io.write(handle, number * PART, b"n" * PART)
        await trio.testing.wait_all_tasks_blocked()
    return handle


def test_a_part_that_finds_its_upload_gone_takes_no_newer_upload_along(tmp_path: Path) -> None:
    """Else nobody would know of that: it would stay in the bucket for ever, and be paid for."""
    store, held = Held(), trio.Event()

    async def main(mount: Composed) -> None:
        handle = await _streamed(mount, store, held)
        (first,) = store._uploads
        store._uploads.clear()
        for number in range(45, 55):  # finds it gone, and begins anew
            await mount.parts.file_io.write(handle, number * PART, b"n" * PART)
            await trio.testing.wait_all_tasks_blocked()
        (second,) = store._uploads
        assert second != first
        held.set()
        await trio.testing.wait_all_tasks_blocked()
        await closed(mount, handle)
        assert bodies(store) == {"file": b"n" * 55 * PART}
        assert store._uploads == {}

    with composed(store, tmp_path, part_size=PART) as mount:
        mount.loop.run(partial(main, mount))


def test_an_upload_is_given_up_only_when_its_parts_have_arrived(tmp_path: Path) -> None:
    """One that arrives after the end may stay at the server, where nobody sees it and it is paid for."""
    store, held = Held(), trio.Event()

    async def main(mount: Composed) -> None:
        handle = await _streamed(mount, store, held)
        mount.nursery.start_soon(mount.unlink, "file")
        await trio.testing.wait_all_tasks_blocked()
        assert store.calls["abort_multipart"] == 0
        held.set()
        await trio.testing.wait_all_tasks_blocked()
        assert store.calls["abort_multipart"] == 1
        await closed(mount, handle)
        assert (bodies(store), store._uploads) == ({}, {})

    with composed(store, tmp_path, part_size=PART) as mount:
        mount.loop.run(partial(main, mount))


def test_a_part_that_is_on_its_way_behind_the_writer_is_sent_again_where_it_was_written_to(tmp_path: Path) -> None:
    store, held = Held(), trio.Event()

    async def main(mount: Composed) -> None:
        handle = await _streamed(mount, store, held)
        await mount.parts.file_io.write(handle, 7, b"!")
        held.set()
        await trio.testing.wait_all_tasks_blocked()
        await closed(mount, handle)
        assert stored(store) == b"n" * 7 + b"!" + b"n" * (45 * PART - 8)
        assert store.calls["upload_part"] == 46

    with composed(store, tmp_path, part_size=PART) as mount:
        mount.loop.run(partial(main, mount))


def test_what_is_sent_of_a_file_has_its_acl(tmp_path: Path) -> None:
    """Of one whose parts go up behind its writer, too."""
    store = Held()
    friend = Acl("owner", (Grant("owner", "FULL_CONTROL"), Grant("friend", "READ")))

    async def main(mount: Composed) -> None:
        await put_all(store, {"file": b"o"})
        await store.put_acl("file", friend)
        handle = await opened(mount, os.O_RDWR | os.O_TRUNC)
        for number in range(60):
            await mount.parts.file_io.write(handle, number * PART, b"n" * PART)
            await trio.testing.wait_all_tasks_blocked()
        assert store.calls["upload_part"] > 4
        await closed(mount, handle)
        assert stored(store) == b"n" * 60 * PART
        assert store._stored["file"].acl == friend

    with composed(store, tmp_path, part_size=PART) as mount:
        mount.loop.run(partial(main, mount))
