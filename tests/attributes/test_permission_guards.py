"""What the key may not do: when it is asked, where, and what an answer is taken for."""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial

import pytest

from sosfs.attributes.permissions import PROVED, KeyPermissions
from sosfs.errors import StoreError
from sosfs.s3.protocol import Right
from tests.support.composed import Composed
from tests.support.drive import fails
from tests.support.held import Held, bodies, denied, put_all

Fault = Callable[[str, str], None]


@pytest.fixture
def permissions(mount: Composed, store: Held) -> KeyPermissions:
    """Those of a key of which nothing is known."""
    return KeyPermissions(mount.parts.inodes, store)


def answering(error: StoreError) -> Fault:
    def fault(operation: str, key: str) -> None:
        raise error

    return fault


def asked(store: Held) -> int:
    return store.calls["upload_part"] + store.calls["delete"]


def test_nothing_is_asked_before_something_was_refused(
    mount: Composed, store: Held, permissions: KeyPermissions
) -> None:
    store.fault = answering(denied())
    mount.loop.run(lambda: permissions.require_store("file"))
    mount.loop.run(lambda: permissions.require_remove("file"))
    assert asked(store) == 0
    permissions.add([Right.WRITE])
    mount.loop.run(lambda: permissions.require_remove("file"))
    assert asked(store) == 0, "one right is not the other"
    with fails(errno.EACCES):
        mount.loop.run(lambda: permissions.require_store("file"))


@pytest.mark.parametrize("right", [Right.WRITE, Right.DELETE])
def test_what_is_asked_changes_nothing(mount: Composed, store: Held, permissions: KeyPermissions, right: Right) -> None:
    async def main() -> None:
        await put_all(store, {"d/file": b"bytes"})
        permissions.add([right])
        await (permissions.require_store if right is Right.WRITE else permissions.require_remove)("d/file")

    mount.loop.run(main)
    assert asked(store) == 1
    assert bodies(store) == {"d/file": b"bytes"}
    assert not store._uploads


def test_a_removal_is_tried_in_the_directory_that_it_is_for(
    mount: Composed, store: Held, permissions: KeyPermissions
) -> None:
    seen: list[str] = []
    store.fault = lambda operation, key: seen.append(key)
    permissions.add([Right.DELETE])
    for key in ("a/b/file", "a/b/folder/", "file", "folder/"):
        mount.loop.run(partial(permissions.require_remove, key))
    assert [".sosfs-probe-" in key for key in seen] == [True, True]
    assert [key[: key.rfind("/") + 1] for key in seen] == ["a/b/", ""], "and what was allowed there is not asked again"


def test_what_was_allowed_holds_for_a_while_in_its_directory(
    mount: Composed, store: Held, permissions: KeyPermissions
) -> None:
    permissions.add([Right.WRITE])
    for key, due in (("a/one", 1), ("a/two", 1), ("b/one", 2), ("one", 3)):
        mount.loop.run(partial(permissions.require_store, key))
        assert asked(store) == due
    mount.loop.passes(PROVED + 1)
    mount.loop.run(lambda: permissions.require_store("a/one"))
    assert asked(store) == 4


def test_a_refusal_ends_what_was_allowed_and_is_asked_again_each_time(
    mount: Composed, store: Held, permissions: KeyPermissions
) -> None:
    permissions.add([Right.WRITE, Right.DELETE])
    mount.loop.run(lambda: permissions.require_store("a/one"))
    mount.loop.run(lambda: permissions.require_remove("a/one"))
    store.fault = answering(denied())
    mount.loop.run(lambda: permissions.require_store("a/one"))
    permissions.add([Right.WRITE])
    for due in (3, 4):
        with fails(errno.EACCES):
            mount.loop.run(lambda: permissions.require_store("a/one"))
        assert asked(store) == due
    store.fault = None
    mount.loop.run(lambda: permissions.require_store("a/one"))
    assert asked(store) == 5


@pytest.mark.parametrize("error", [StoreError(errno.EIO, "", status=503), StoreError(errno.ETIMEDOUT, "")])
def test_what_cannot_be_told_refuses_nothing_and_proves_nothing(
    mount: Composed, store: Held, permissions: KeyPermissions, error: StoreError
) -> None:
    permissions.add([Right.WRITE])
    store.fault = answering(error)
    for due in (1, 2):
        mount.loop.run(lambda: permissions.require_store("file"))
        assert asked(store) == due


def test_a_file_whose_name_is_gone_is_not_asked_for(mount: Composed, store: Held, permissions: KeyPermissions) -> None:
    async def main() -> None:
        await put_all(store, {"file": b"bytes"})
        inode = await mount._walk("file")
        store.fault = answering(denied())
        await permissions.require_write(inode)
        permissions.add([Right.DELETE])
        await permissions.require_write(inode)
        permissions.add([Right.WRITE])
        with fails(errno.EACCES):
            await permissions.require_write(inode)
        inode.parent, parent = None, inode.parent
        await permissions.require_write(inode)
        inode.parent = parent

    mount.loop.run(main)


def test_a_write_that_is_refused_has_the_next_open_ask(mount: Composed, store: Held) -> None:
    def refusing(operation: str, key: str) -> None:
        if operation in ("put", "upload_part"):
            raise denied(operation)

    async def main() -> None:
        await put_all(store, {"file": b"bytes"})
        store.fault = refusing
        with fails(errno.EACCES):
            await mount.write("file", b"new")
        with fails(errno.EACCES):
            await mount.parts.attributes.permissions.require_store("other")
        store.fault = None

    mount.loop.run(main)
    mount.loop.passes(1000)
