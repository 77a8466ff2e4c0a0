"""A rename is finished by the next mount, and others have been at the new name: what was not sent follows, and harms
nothing of theirs.

The process dies when all copies are there and the old keys are about to go.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from sosfs.config.parameters import Durability
from sosfs.errors import StoreError
from sosfs.namespace.rename import COPIED_AGAIN_MAX
from sosfs.s3.protocol import UNKNOWN, Page, Properties
from tests.support.composed import LONG, Composed, composed
from tests.support.drive import fails
from tests.support.held import Held, begun, bodies, chmod, closed, opened, put_all, stored
from tests.support.power import Machine

JOURNAL = Durability.JOURNAL


@contextmanager
def cut_short(
    store: Held, base: Path, before: Callable[[Composed], Awaitable[None]], durability: Durability = JOURNAL
) -> Iterator[Composed]:
    """`before`, and then a rename of `d` to `e` whose process dies; to be started again."""

    async def main(mount: Composed) -> None:
        await before(mount)
        store.before["delete_many"] = trio.Event()
        await begun(mount, partial(mount.rename, "d", "e"))
        assert store.reached

    with composed(store, base, durability=durability) as mount:
        mount.loop.run(partial(main, mount))
        mount.crash()
        store.before.clear()
        yield mount


def gone(store: Held, *keys: str) -> None:
    """Another client removes them."""
    for key in keys:
        del store._stored[key]


def settled(mount: Composed) -> None:
    mount.loop.passes(5)
    mount.loop.run(mount.settle)
    mount.loop.passes(LONG)
    assert mount.parts.pending == 0


def test_what_was_written_to_a_file_that_another_client_has_removed_is_kept(tmp_path: Path) -> None:
    store = Held()

    async def before(mount: Composed) -> None:
        await put_all(store, {"d/file": b"old", "d/z": b"z"})
        await mount.write("d/file", b"new")

    with cut_short(store, tmp_path, before) as mount:
        gone(store, "d/file", "e/file")
        mount.start()
        settled(mount)
        found = bodies(store)
        assert found.pop("e/z") == b"z"
        assert list(found.values()) == [b"new"]


def test_what_another_client_stored_under_the_new_name_of_a_file_is_not_written_over(tmp_path: Path) -> None:
    """Neither as a whole nor in part."""
    store = Held()

    async def before(mount: Composed) -> None:
        await put_all(store, {"d/file": b"old", "d/z": b"z"})
        await mount.write("d/file", b"new")

    with cut_short(store, tmp_path, before) as mount:
        gone(store, "d/file")
        mount.loop.run(lambda: put_all(store, {"e/file": b"theirs, longer"}))
        mount.start()
        settled(mount)
        found = bodies(store)
        assert found.pop("e/file") == b"theirs, longer"
        assert found.pop("e/z") == b"z"
        assert list(found.values()) == [b"new"]


def test_a_new_file_does_not_go_over_what_another_client_stored_under_its_new_name(tmp_path: Path) -> None:
    store = Held()

    async def before(mount: Composed) -> None:
        await put_all(store, {"d/z": b"z"})
        await mount.write("d/new", b"ours", flags=os.O_CREAT)

    with cut_short(store, tmp_path, before) as mount:
        mount.loop.run(lambda: put_all(store, {"e/new": b"theirs"}))
        mount.start()
        settled(mount)
        found = bodies(store)
        assert found.pop("e/new") == b"theirs"
        assert found.pop("e/z") == b"z"
        assert list(found.values()) == [b"ours"]


@pytest.mark.parametrize("name", ["e/file", "e/moved"])
def test_a_file_whose_bytes_wait_is_stored_or_renamed_again_upon_its_copy(tmp_path: Path, name: str) -> None:
    """Where each copy has an ETag of its own, only that one can be written over or copied on."""
    store = Held(hashes=False)

    async def before(mount: Composed) -> None:
        await put_all(store, {"d/file": b"old bytes", "d/z": b"z"})
        await mount.write("d/file", b"new")

    def down(operation: str, key: str) -> None:
        if operation == "put":
            raise StoreError(errno.EIO, operation, detail="no answer")

    with cut_short(store, tmp_path, before) as mount:
        store.fault = down
        mount.start()
        if name == "e/file":
            handle = mount.loop.run(lambda: opened(mount, os.O_RDONLY, name))
            assert mount.loop.run(lambda: mount.parts.file_io.read(handle, 0, 99)) == b"new bytes"
            mount.loop.run(lambda: closed(mount, handle))
        else:
            mount.loop.run(partial(mount.rename, "e/file", name))
        store.fault = None
        settled(mount)
        assert bodies(store) == {name: b"new bytes", "e/z": b"z"}


def test_attributes_of_a_file_that_another_client_has_removed_are_given_up(tmp_path: Path) -> None:
    store = Held()

    async def before(mount: Composed) -> None:
        await put_all(store, {"d/file": b"bytes", "d/z": b"z"})
        await chmod(mount, "d/file")

    with cut_short(store, tmp_path, before) as mount:
        gone(store, "d/file", "e/file")
        mount.start()
        settled(mount)
        assert bodies(store) == {"e/z": b"z"}


def test_attributes_whose_copy_got_no_answer_wait_for_nothing_under_the_new_name(tmp_path: Path) -> None:
    """That copy may still be made, but of the old name, and undoes nothing here."""
    store = Held()

    async def before(mount: Composed) -> None:
        await put_all(store, {"d/file": b"bytes", "d/z": b"z"})
        store.errors["copy", "d/file"] = [StoreError(errno.EIO, "copy", detail="no answer")]
        await chmod(mount, "d/file", 0o640)
        await mount.parts.attributes.drain()
        assert any(saved.sent for _, saved in mount._journal.attributes())
        await chmod(mount, "d/file", 0o600)

    with cut_short(store, tmp_path, before) as mount:
        mount.start()
        assert store._stored["e/file"].object.properties.metadata["mode"] == str(0o100600)
        assert mount.parts.pending == 0


def test_attributes_of_a_new_file_whose_upload_got_no_answer_follow_it(tmp_path: Path) -> None:
    store = Held()

    async def before(mount: Composed) -> None:
        await put_all(store, {"d/z": b"z"})
        store.lost.add("d/new")
        with fails(errno.EIO):
            await mount.write("d/new", b"ours", flags=os.O_CREAT)
        await chmod(mount, "d/new")

    with cut_short(store, tmp_path, before, Durability.BUCKET) as mount:
        assert stored(store, "e/new") == b"ours"
        mount.start()
        settled(mount)
        assert store._stored["e/new"].object.properties.metadata["mode"] == str(0o100600)


class Garbled(Held):
    """A store whose listings have nonsense of their objects once it `is_garbled`."""

    is_garbled = False

    async def list(self, prefix: str, **options: Any) -> Page:
        page = await super().list(prefix, **options)
        unclear = tuple(replace(one, version=UNKNOWN) for one in page.objects)
        return replace(page, objects=unclear) if self.is_garbled else page


@pytest.mark.parametrize("garbled", [False, True], ids=["", "garbled"])
@pytest.mark.parametrize("where", ["d/file", "e/file"], ids=["old name", "new name"])
def test_what_another_client_has_stored_since_the_copy_is_kept(tmp_path: Path, where: str, *, garbled: bool) -> None:
    """Under the old name or over the copy, and a listing may not tell."""
    now = [1.0]
    store = Garbled(clock=lambda: now[0])

    async def before(mount: Composed) -> None:
        await put_all(store, {"d/file": b"bytes", "d/z": b"z"})
        now[0] += 1

    with cut_short(store, tmp_path, before) as mount:
        now[0] += 1
        mount.loop.run(lambda: put_all(store, {where: b"theirs"}))
        store.is_garbled = garbled
        mount.start()
        assert bodies(store) == {"e/file": b"theirs", "e/z": b"z"}


def test_a_file_that_replaces_one_with_the_same_bytes_replaces_its_attributes_too(tmp_path: Path) -> None:
    """The one that is to be replaced is the newer one, and no copy."""
    now = [1.0]
    store = Held(clock=lambda: now[0])

    async def main(mount: Composed) -> None:
        for key, mode in (("a", 0o100600), ("b", 0o100644)):
            await store.put(key, b"bytes", Properties(metadata={"mode": str(mode)}))
            now[0] += 1
        store.before["copy"] = trio.Event()
        await begun(mount, partial(mount.rename, "a", "b"))
        assert store.reached

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))
        mount.crash()
        store.before.clear()
        mount.start()
        assert bodies(store) == {"b": b"bytes"}
        assert store._stored["b"].object.properties.metadata["mode"] == str(0o100600)


@pytest.mark.promise(3)
@pytest.mark.parametrize("hashes", [True, False])
def test_what_was_not_sent_of_a_file_follows_it_though_the_disk_does_not_know_that_it_was_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hashes: bool
) -> None:
    """The power goes when the old name is gone: the new one alone is there."""
    store, held = Held(hashes=hashes), trio.Event()

    async def main(mount: Composed) -> None:
        mount.parts.commits.debounce.delay = LONG
        await put_all(store, {"a": b"old bytes"})
        await mount.write("a", b"new")
        store.before["copy"], store.after["delete"] = held, trio.Event()
        await begun(mount, partial(mount.rename, "a", "b"))
        await mount._journal.sync()  # somebody's fsync
        held.set()
        await trio.testing.wait_all_tasks_blocked()
        assert bodies(store) == {"b": b"old bytes"}

    with composed(store, tmp_path, durability=JOURNAL) as mount:
        machine = Machine(mount, monkeypatch, 1)
        mount.loop.run(partial(main, mount))
        machine.loses_power(newest_log=False)
        mount.loop.run(store.release)
        mount.take_up()
        assert bodies(store) == {"b": b"new bytes"}


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EACCES], ids=["replaced", "refused"])
def test_what_cannot_be_removed_of_the_old_name_keeps_no_mount_from_beginning(tmp_path: Path, number: int) -> None:
    """Another client replaces it again and again, or a policy holds it: it has been copied, and is hidden."""
    code, status = ("PreconditionFailed", 412) if number == errno.ESTALE else ("AccessDenied", 403)
    store = Held()

    async def before(mount: Composed) -> None:
        await put_all(store, {"d/file": b"bytes"})

    with cut_short(store, tmp_path, before) as mount:
        refused = StoreError(number, "delete 'd/file'", code=code, status=status)
        store.errors["delete_many", "d/file"] = [refused] * 100
        mount.start()
        left = 100 - len(store.errors["delete_many", "d/file"])
        assert left == (1 if number == errno.EACCES else 1 + COPIED_AGAIN_MAX)
        assert bodies(store)["e/file"] == b"bytes"
        store.errors.clear()
        mount.loop.passes(LONG)
        assert bodies(store) == {"e/file": b"bytes"}
