"""What a rename leaves behind goes as the version that was copied: what another client stores meanwhile stays."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from sosfs.config.parameters import TTL
from sosfs.errors import StoreError
from sosfs.s3.protocol import Failure, Properties
from tests.support.composed import LONG, Composed, composed
from tests.support.drive import fails
from tests.support.fake_store import FakeStore
from tests.support.held import (
    Held,
    begun,
    bodies,
    closed,
    crashes_while_old_keys_go,
    opened,
    put_all,
    settled,
    silence,
    told,
)

pytestmark = pytest.mark.usefixtures("without_bugs")
REFUSED = StoreError(errno.EACCES, "delete", code="AccessDenied", status=403)


async def replace(store: FakeStore, key: str) -> None:
    """Another client stores something else there."""
    await type(store).put(store, key, b"theirs", Properties())


@pytest.mark.parametrize("proven", [False, True], ids=["awaited", "queued"])
def test_a_file_that_is_replaced_when_its_old_name_goes_stays(
    mount: Composed, store: Held, caplog: pytest.LogCaptureFixture, proven: bool
) -> None:
    held = trio.Event()

    async def main() -> None:
        await put_all(store, {"file": b"bytes", "other": b"x"})
        if proven:
            await mount.unlink("other")
        await mount._walk("file")
        store.before["delete", "file"] = held
        await begun(mount, partial(mount.rename, "file", "moved"))
        await replace(store, "file")
        await settled(held)

    mount.loop.run(main)
    mount.loop.passes(2 * TTL)
    assert bodies(store) | {"other": b"x"} == {"file": b"theirs", "moved": b"bytes", "other": b"x"}
    shown = mount.loop.run(mount.tree)
    assert (shown["file"], shown["moved"]) == ((b"theirs", 0o644), (b"bytes", 0o644))
    assert mount.parts.pending == 0
    assert "another client has replaced it since" in caplog.text


def test_so_does_one_of_many_that_are_renamed_one_after_the_other(
    mount: Composed, store: Held, caplog: pytest.LogCaptureFixture
) -> None:
    held, names = trio.Event(), [f"f{number}" for number in range(5)]

    async def main() -> None:
        await put_all(store, dict.fromkeys((*names, "first"), b"bytes"))
        await mount.unlink("first")
        store.before["delete_many"] = held
        for name in names:
            await mount.rename(name, f"{name}-moved")
        await replace(store, "f3")
        await settled(held)

    mount.loop.run(main)
    mount.loop.passes(2 * TTL)
    assert bodies(store) == {"f3": b"theirs"} | {f"{name}-moved": b"bytes" for name in names}
    assert mount.loop.run(mount.tree)["f3"] == (b"theirs", 0o644)
    assert mount.parts.pending == 0
    assert "f3 was removed here, and another client has replaced it since" in caplog.text


def test_so_does_one_in_a_directory_that_is_renamed(mount: Composed, store: Held) -> None:
    held = trio.Event()

    async def main() -> None:
        await put_all(store, {"d/a": b"bytes", "d/z": b"z"})
        store.before["delete_many"] = held
        await begun(mount, partial(mount.rename, "d", "e"))
        await replace(store, "d/a")
        await settled(held)

    mount.loop.run(main)
    mount.loop.passes(2 * TTL)
    assert bodies(store) == {"d/a": b"theirs", "e/a": b"bytes", "e/z": b"z"}
    assert set(mount.loop.run(mount.tree)) == {"d", "d/a", "e", "e/a", "e/z"}
    assert mount.parts.pending == 0


def test_who_finishes_a_cut_rename_takes_along_what_is_stored_just_then(tmp_path: Path) -> None:
    store = FakeStore()
    with composed(store, tmp_path) as mount:
        mount.loop.run(lambda: put_all(store, {"d/a": b"bytes", "d/z": b"z"}))
        crashes_while_old_keys_go(mount, store, "d", "e")
        delete_many = store.delete_many

        async def overtaken(keys: Sequence[str], **options: Any) -> list[Failure]:
            store.delete_many = delete_many  # type: ignore[method-assign]
            await replace(store, "d/a")
            return await delete_many(keys, **options)

        store.delete_many = overtaken  # type: ignore[method-assign]
        mount.start()
        assert bodies(store) == {"e/a": b"theirs", "e/z": b"z"}


def _removed_and_refused(mount: Composed, store: Held) -> None:
    """A file that the program was told is removed, and whose removal is tried again."""

    async def main() -> None:
        await put_all(store, {"first": b"1", "file": b"bytes"})
        await mount.unlink("first")  # so that the next one is queued
        store.errors["delete", "file"] = [REFUSED]
        await mount.unlink("file")

    mount.loop.run(main)
    mount.loop.passes(3)


def test_a_removal_that_is_tried_again_spares_what_is_stored_after_it_looked(mount: Composed, store: Held) -> None:
    held = trio.Event()

    _removed_and_refused(mount, store)
    assert bodies(store) == {"file": b"bytes"} and mount.parts.pending == 1

    store.before["delete", "file"] = held
    mount.loop.passes(LONG)
    assert ("delete", "file") in store.reached, "it has been looked at"

    async def again() -> None:
        await replace(store, "file")
        await settled(held)

    mount.loop.run(again)
    mount.loop.passes(LONG)
    assert bodies(store) == {"file": b"theirs"} and mount.parts.pending == 0


def test_a_removal_that_is_tried_again_spares_what_another_client_has_set_of_the_same_bytes(
    mount: Composed, store: Held
) -> None:
    _removed_and_refused(mount, store)
    store._clock = lambda: time.time() + LONG
    mount.loop.run(lambda: put_all(store, {"file": b"bytes"}))
    mount.loop.passes(LONG)
    assert (bodies(store), mount.parts.pending) == ({"file": b"bytes"}, 0)


def test_a_removal_of_an_earlier_mount_spares_what_is_stored_after_it_looked(tmp_path: Path) -> None:
    store = Held()
    with composed(store, tmp_path) as mount:
        mount.loop.run(lambda: put_all(store, {"first": b"1", "file": b"bytes"}))
        mount.loop.run(lambda: mount.unlink("first"))
        store.before["delete", "file"] = trio.Event()
        mount.loop.run(lambda: mount.unlink("file"))
        mount.loop.passes(1)
        mount.crash()
        store.before.clear()
        delete = FakeStore.delete

        async def overtaken(*arguments: Any, **options: Any) -> None:
            await replace(store, "file")
            await delete(store, *arguments, **options)

        store.delete = overtaken  # type: ignore[method-assign]
        mount.start()
        assert bodies(store) == {"file": b"theirs"}
        assert mount.parts.pending == 0


def test_what_a_user_removes_goes_whoever_stored_it(mount: Composed, store: Held) -> None:
    """As unlink(2) does: of a file that somebody else has just put there."""

    async def main() -> None:
        await put_all(store, {"file": b"bytes"})
        await mount._walk("file")
        await replace(store, "file")
        await mount.unlink("file")

    mount.loop.run(main)
    assert bodies(store) == {}


@pytest.mark.parametrize("pins", [True, False], ids=["heeded", "not heeded"])
def test_a_removal_that_got_no_answer_spares_what_is_stored_before_it_is_tried_again(
    mount: Composed, store: Held, pins: bool
) -> None:
    store.pins_deletes = pins

    async def unanswered(keys: Sequence[str], **options: Any) -> list[Failure]:
        del store.delete_many
        failures = await FakeStore.delete_many(store, [key for key in keys if key != "d/a"], **options)
        await replace(store, "d/a")
        return [*failures, Failure("d/a", silence("delete"))]

    async def alone(key: str, **_: Any) -> None:
        del store.delete
        await replace(store, key)
        raise silence("delete")

    async def main() -> None:
        await put_all(store, {"d/a": b"bytes", "d/z": b"z", "file": b"bytes"})
        store.delete_many = unanswered  # type: ignore[method-assign]
        await mount.rename("d", "e")
        store.delete = alone  # type: ignore[method-assign]
        await mount.rename("file", "moved")

    mount.loop.run(main)
    mount.loop.passes(LONG)
    assert bodies(store) == {"d/a": b"theirs", "e/a": b"bytes", "e/z": b"z", "file": b"theirs", "moved": b"bytes"}
    assert mount.parts.pending == 0
    assert mount.loop.run(mount.tree).keys() == {"d", "e", *bodies(store)}


@pytest.mark.parametrize("is_open", [False, True], ids=["closed", "open"])
def test_what_a_stat_sees_of_a_file_between_its_copy_and_its_removal_is_not_removed(
    mount: Composed, store: Held, is_open: bool
) -> None:
    held = trio.Event()
    seen: dict[str, Any] = {}

    async def main() -> None:
        await put_all(store, {"file": b""})
        inode = await mount._walk("file")
        handle = await opened(mount, os.O_RDONLY) if is_open else None
        store.before["head", "moved"] = held
        await begun(mount, partial(mount.rename, "file", "moved"))
        assert ("head", "moved") in store.reached, "whether the copy of what has no bytes is there"
        await replace(store, "file")
        inode.checked -= 2 * TTL
        await begun(mount, partial(told, seen, "stat", partial(mount.parts.attributes.revalidate, inode)))
        await settled(held)
        assert seen["stat"] is inode
        if handle is not None:
            await closed(mount, handle)

    mount.loop.run(main)
    mount.loop.passes(2 * TTL)
    assert bodies(store) == {"file": b"theirs", "moved": b""}
    assert {name: shown and shown[0] for name, shown in mount.loop.run(mount.tree).items()} == bodies(store)


def test_what_is_replaced_again_and_again_keeps_no_mount_from_beginning(tmp_path: Path) -> None:
    store = FakeStore()
    with composed(store, tmp_path) as mount:
        mount.loop.run(lambda: put_all(store, {"d/a": b"bytes", "d/z": b"z"}))
        crashes_while_old_keys_go(mount, store, "d", "e")
        delete_many, written = store.delete_many, 0

        async def overtaken(keys: Sequence[str], **options: Any) -> list[Failure]:
            nonlocal written
            written += 1
            await type(store).put(store, "d/a", f"theirs {written}".encode(), Properties())
            return await delete_many(keys, **options)

        store.delete_many = overtaken  # type: ignore[method-assign]
        mount.start()
        store.delete_many = delete_many  # type: ignore[method-assign]
        last = f"theirs {written}".encode()
        assert bodies(store) == {"d/a": last, "e/a": f"theirs {written - 1}".encode(), "e/z": b"z"}
        assert mount.loop.run(mount.tree)["d/a"] == (last, 0o644)
        assert mount.parts.pending == 0


def test_a_rename_that_a_disk_fault_ends_leaves_no_condition_for_what_a_user_removes(
    mount: Composed, store: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        await put_all(store, {"file": b"bytes", "keep": b""})
        with monkeypatch.context() as patch:

            def broken(*_: Any) -> None:
                raise OSError(errno.EIO, "the disk")

            patch.setattr(mount.parts.deletions._journal, "add_delete", broken)
            with fails(errno.EIO):
                await mount.rename("file", "moved")
        inode = await mount._walk("file")
        await replace(store, "file")
        await mount.parts.namespace.unlink(mount.parts.inodes.root, b"file", inode)

    mount.loop.run(main)
    assert bodies(store) == {"keep": b"", "moved": b"bytes"}
    mount.crash()
    mount.start()
    assert bodies(store) == {"keep": b"", "moved": b"bytes"}
