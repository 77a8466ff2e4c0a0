"""Removals that a crash has cut short: all of them are done by the next mount, in order, and nothing else goes.

In one process; what the server refuses then stays away all the same, and is tried on.
"""

from __future__ import annotations

import errno
import os
from functools import partial
from pathlib import Path

import pytest
import trio

from sosfs.config.parameters import Durability
from sosfs.errors import StoreError
from sosfs.s3.protocol import Properties
from sosfs.tree.keys import Form, name_of
from tests.support.composed import LONG, Composed, composed
from tests.support.drive import fails
from tests.support.held import Held, begun, bodies, crashes_while_old_keys_go, put_all

DELETES = ("delete", "delete_many")
TREE = {"d/": b"", "d/e/": b"", "d/e/x": b"x", "d/y": b"y", "f/": b"", "a": b"a", "ab": b"ab"}


class Noting(Held):
    """Keeps the order in which keys go, and refuses to let some go, which another client may remove at that moment."""

    def __init__(self) -> None:
        super().__init__()
        self.gone: list[str] = []
        self.kept: set[str] = set()
        self.vanishing: set[str] = set()
        self.fault = self._note

    def _note(self, operation: str, key: str) -> None:
        if operation in DELETES and key in self.kept:
            if key in self.vanishing:
                del self._stored[key]
            raise StoreError(errno.EACCES, f"{operation} {key!r}", code="AccessDenied", status=403)
        if operation == "delete":
            self.gone.append(key)


async def removed(mount: Composed, store: Held, *paths: str) -> None:
    """They are removed, directories ending in a slash, and not one request has got through."""
    await put_all(store, {"proof/file": b""})
    await mount.unlink("proof/file")
    await mount.rmdir("proof")
    store.before["delete"] = store.before["delete_many"] = trio.Event()
    for path in paths:
        await (mount.rmdir(path[:-1]) if path.endswith("/") else mount.unlink(path))


def dies(mount: Composed, store: Noting) -> None:
    """A crash; the store answers the next mount."""
    mount.crash()
    store.before.clear()
    store.gone.clear()


def test_a_tree_that_was_being_removed_goes_from_below(tmp_path: Path) -> None:
    """A marker after all that is below it: SeaweedFS keeps a directory that has something in it."""
    store = Noting()

    async def main(mount: Composed) -> None:
        await put_all(store, TREE | {"kept": b"kept"})
        await removed(mount, store, "d/e/x", "d/e/", "d/y", "d/", "f/", "ab", "a")

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))
        dies(mount, store)
        mount.start()
        assert bodies(store) == {"kept": b"kept"}
        assert sorted(store.gone) == sorted(TREE)
        for at, key in enumerate(store.gone):
            assert not any(later.startswith(key) for later in store.gone[at + 1 :] if key.endswith("/"))
        assert mount.parts.pending == 0


def test_what_was_renamed_goes_from_below_too(tmp_path: Path) -> None:
    store = Noting()
    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(put_all, store, {"d/": b"", "d/e/": b"", "d/e/x": b"x"}))
        crashes_while_old_keys_go(mount, store, "d", "n")
        mount.start()
        assert store.gone == ["d/e/x", "d/e/", "d/"]


def test_what_may_not_be_removed_keeps_only_the_directories_that_it_is_in(tmp_path: Path) -> None:
    store = Noting()

    async def main(mount: Composed) -> None:
        await put_all(store, TREE)
        await removed(mount, store, "d/e/x", "d/e/", "d/y", "d/", "f/", "ab", "a")

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))
        dies(mount, store)
        store.kept = {"d/e/x"}
        mount.start()
        assert sorted(bodies(store)) == ["d/", "d/e/", "d/e/x"]
        assert mount.loop.run(mount.tree) == {}
        assert mount.parts.pending == 3
        store.kept.clear()
        mount.loop.passes(LONG)
        assert bodies(store) == {}
        assert mount.parts.pending == 0


def test_what_another_client_stores_while_a_removal_is_refused_stays(tmp_path: Path) -> None:
    store = Noting()

    async def main(mount: Composed) -> None:
        await put_all(store, {"file": b"bytes"})
        await removed(mount, store, "file")

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))
        dies(mount, store)
        store.kept = {"file"}
        mount.start()
        mount.loop.run(lambda: put_all(store, {"file": b"theirs"}))
        store.kept = set()
        mount.loop.passes(LONG)
        assert mount.loop.run(mount.tree) == {"file": (b"theirs", 0o644)}
        assert mount.parts.pending == 0


def test_a_file_beside_a_directory_of_its_name_stays_away_alone(tmp_path: Path) -> None:
    store = Noting()
    beside = name_of("n", Form.BESIDE).decode()

    async def main(mount: Composed) -> None:
        await put_all(store, {"n": b"file", "n/x": b"x"})
        await removed(mount, store, beside)

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))
        dies(mount, store)
        store.kept = {"n"}
        mount.start()
        assert set(mount.loop.run(mount.tree)) == {"n", "n/x"}
        store.kept.clear()
        mount.loop.passes(LONG)
        assert bodies(store) == {"n/x": b"x"}
        assert set(mount.loop.run(mount.tree)) == {"n", "n/x"}


@pytest.mark.parametrize("name", ["file", "d/"])
def test_what_another_client_removes_when_we_may_not_does_not_keep_it_from_mounting(tmp_path: Path, name: str) -> None:
    store = Noting()

    async def main(mount: Composed) -> None:
        await put_all(store, {name: b"", "other": b"other"})
        await removed(mount, store, name)

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))
        dies(mount, store)
        store.kept = store.vanishing = {name}
        mount.start()
        assert mount.parts.pending == 1
        assert set(mount.loop.run(mount.tree)) == {"other"}
        store.kept = set()
        mount.loop.passes(LONG)
        assert mount.parts.pending == 0
        assert bodies(store) == {"other": b"other"}


def test_a_removal_that_nobody_was_told_of_and_is_refused_leaves_the_file_with_its_unsent_bytes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As unlink(2) would have failed: the bytes go up under their name, and are no conflict with anybody."""
    store = Noting()

    async def main(mount: Composed) -> None:
        await put_all(store, {"file": b"old"})
        await mount.write("file", b"newer")
        store.before["delete", "file"] = trio.Event()
        await begun(mount, partial(mount.unlink, "file"))
        assert store.reached

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(main, mount))
        dies(mount, store)
        store.kept = {"file"}
        mount.start()
        assert mount.loop.run(mount.tree) == {"file": (b"newer", 0o644)}
        mount.loop.passes(LONG)
        assert bodies(store) == {"file": b"newer"}
        assert mount.parts.pending == 0
        store.kept.clear()
        mount.loop.passes(LONG)
        assert bodies(store) == {"file": b"newer"}
    assert "another client" not in caplog.text


def test_unsent_bytes_go_into_the_directory_that_is_there(tmp_path: Path) -> None:
    """It is found, and not made anew beside itself."""
    store = Noting()

    async def main(mount: Composed) -> None:
        await store.put("d/", b"", Properties(metadata={"mode": str(0o40700)}))
        await put_all(store, {"d/e/x": b"x"})
        for path in ("d/new", "d/e/new", "f"):
            await mount.write(path, b"new", flags=os.O_CREAT)

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(main, mount))
        mount.crash()
        mount.start()
        assert set(mount.loop.run(mount.tree)) == {"d", "d/new", "d/e", "d/e/x", "d/e/new", "f"}
        assert mount.loop.run(partial(mount._walk, "d")).mode == 0o40700
        mount.loop.passes(5)
        mount.loop.run(mount.settle)
        assert set(bodies(store)) == {"d/", "d/new", "d/e/x", "d/e/new", "f"}


def test_a_file_where_unsent_bytes_need_a_directory_is_beside_it(tmp_path: Path) -> None:
    """Another client has removed the directory, and stored a file under its name."""
    store = Noting()
    beside = name_of("d", Form.BESIDE).decode()

    async def main(mount: Composed) -> None:
        await put_all(store, {"d/x": b"x"})
        await mount.write("d/new", b"new", flags=os.O_CREAT)

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(main, mount))
        mount.crash()
        del store._stored["d/x"]
        mount.loop.run(lambda: put_all(store, {"d": b"theirs"}))
        mount.start()
        shown = {beside: (b"theirs", 0o644), "d": None, "d/new": (b"new", 0o644)}
        assert mount.loop.run(mount.tree) == shown
        mount.loop.passes(100)
        assert mount.loop.run(mount.tree) == shown
        assert bodies(store) == {"d": b"theirs", "d/new": b"new"}


def test_a_removal_that_its_program_has_given_up_is_not_done_by_the_next_mount(tmp_path: Path) -> None:
    """It was told that the removal was interrupted."""
    store = Noting()

    async def main(mount: Composed) -> None:
        await put_all(store, {"file": b"bytes"})
        store.errors["delete", "file"] = [OSError(errno.EINTR, os.strerror(errno.EINTR))]
        with fails(errno.EINTR):
            await mount.unlink("file")

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))
        dies(mount, store)
        mount.start()
        assert bodies(store) == {"file": b"bytes"}
        assert set(mount.loop.run(mount.tree)) == {"file"}
