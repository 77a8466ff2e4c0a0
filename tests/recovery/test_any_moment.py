"""A process that dies at any moment of a rename or a removal, or of what the next mount makes of those.

Each transaction of the journal may be its last, and each request: whatever the moment, there is the tree of before or
the one of afterwards, with all that was acknowledged, and nothing is left to do.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from sosfs.config.parameters import Durability
from sosfs.files.spool import Spool
from tests.support.composed import Composed, composed
from tests.support.held import Held, begun, bodies, chmod, opened, put_all, settled
from tests.support.moments import Moments

pytestmark = pytest.mark.promise(3)
hashed = pytest.mark.parametrize("hashes", [True, False], ids=["hashes", "no hashes"])


def _settled(mount: Composed) -> dict[str, bytes]:
    """What is in the bucket once all is there, which the mount shows as well."""
    mount.loop.passes(5)
    mount.loop.run(mount.settle)
    found = bodies(mount.store)
    shown = {path: kept[0] for path, kept in mount.loop.run(mount.tree).items() if kept is not None}
    assert shown == {key: body for key, body in found.items() if not key.endswith("/")}
    mount.loop.passes(100)  # a rename that was taken back looks for late copies
    assert mount.parts.pending == 0
    assert bodies(mount.store) == found
    return found


def _mode(store: Held, key: str) -> int:
    return int(store._stored[key].object.properties.metadata["mode"]) & 0o7777


async def _changed_file(mount: Composed, store: Held, over: str) -> None:
    """`a` has bytes and attributes that are not sent, and so may have `b`, which it is to replace."""
    await put_all(store, {"a": b"from a"} | ({"b": b"old b!!"} if over != "free" else {}))
    if over == "written":
        await mount.write("b", b"NEW")
        await chmod(mount, "b")
    await mount.write("a", b"FROM")
    await chmod(mount, "a")


def _require_one_file(store: Held, found: dict[str, bytes], over: str) -> None:
    before = {"a": b"FROM a"} | {"free": {}, "stored": {"b": b"old b!!"}, "written": {"b": b"NEW b!!"}}[over]
    assert found in (before, {"b": b"FROM a"})
    assert _mode(store, "a" if "a" in found else "b") == 0o600


@hashed
@pytest.mark.parametrize("over", ["free", "stored", "written"])
def test_a_rename_of_a_changed_file(tmp_path: Path, over: str, hashes: bool) -> None:
    store = Held(hashes=hashes)
    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(_changed_file, mount, store, over))
        moments = Moments(mount, store, tmp_path)
        with moments.noted():
            mount.loop.run(partial(mount.rename, "a", "b"))
        for _ in moments.each():
            _require_one_file(store, _settled(mount), over)


@hashed
@pytest.mark.parametrize("at", ["copy", "delete"])
@pytest.mark.parametrize("over", ["free", "stored", "written"])
def test_what_is_made_of_a_rename_of_a_file_that_was_cut_short(
    tmp_path: Path, over: str, at: str, hashes: bool
) -> None:
    store = Held(hashes=hashes)
    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(_changed_file, mount, store, over))
        store.after["copy"] = store.before["delete"] = trio.Event()
        if at == "delete":
            del store.after["copy"]
        mount.loop.run(lambda: begun(mount, partial(mount.rename, "a", "b")))
        assert store.reached
        mount.crash()
        store.before.clear()
        store.after.clear()
        moments = Moments(mount, store, tmp_path)
        with moments.noted():
            mount.start()
        for _ in moments.each():
            _require_one_file(store, _settled(mount), over)


@pytest.mark.parametrize("over", ["free", "stored", "written"])
def test_a_rename_of_a_file_that_is_not_sent(tmp_path: Path, over: str) -> None:
    """As editors save: the new bytes are under the old name, or the old ones are as they were."""
    store = Held()

    async def before(mount: Composed) -> None:
        await put_all(store, {"b": b"old b!!"} if over != "free" else {})
        if over == "written":
            await mount.write("b", b"NEW")
        await mount.write("a", b"unsent", flags=os.O_CREAT)

    old = {"free": {}, "stored": {"b": b"old b!!"}, "written": {"b": b"NEW b!!"}}[over]
    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(before, mount))
        moments = Moments(mount, store, tmp_path)
        with moments.noted():
            mount.loop.run(partial(mount.rename, "a", "b"))
        for _ in moments.each():
            assert _settled(mount) in ({"a": b"unsent"} | old, {"b": b"unsent"})


TREE = {"changed": b"new a", "chmod": b"b", "new": b"unsent", "sub/x": b"x"}


async def _changed_tree(mount: Composed, store: Held) -> None:
    await put_all(store, {"d/changed": b"old a", "d/chmod": b"b", "d/sub/x": b"x", "e/": b"", "f": b"f"})
    await mount.write("d/changed", b"new")
    await mount.write("d/new", b"unsent", flags=os.O_CREAT)
    await chmod(mount, "d/chmod")


def _require_one_tree(store: Held, found: dict[str, bytes]) -> None:
    assert found.pop("f") == b"f"
    found.pop("e/", None)
    top = "d" if "d/chmod" in found else "e"
    assert found == {f"{top}/{name}": body for name, body in TREE.items()}
    assert _mode(store, f"{top}/chmod") == 0o600


@hashed
def test_a_rename_of_a_changed_directory(tmp_path: Path, hashes: bool) -> None:
    store = Held(hashes=hashes)
    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(_changed_tree, mount, store))
        moments = Moments(mount, store, tmp_path)
        with moments.noted():
            mount.loop.run(partial(mount.rename, "d", "e"))
        for _ in moments.each():
            _require_one_tree(store, _settled(mount))


@pytest.mark.parametrize("at", [("copy", "d/sub/x"), "delete_many"], ids=["copying", "copied"])
def test_what_is_made_of_a_rename_of_a_directory_that_was_cut_short(tmp_path: Path, at: str | tuple[str, str]) -> None:
    store = Held()
    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(_changed_tree, mount, store))
        store.before[at] = trio.Event()
        mount.loop.run(lambda: begun(mount, partial(mount.rename, "d", "e")))
        assert store.reached
        mount.crash()
        store.before.clear()
        moments = Moments(mount, store, tmp_path)
        with moments.noted():
            mount.start()
        for _ in moments.each():
            _require_one_tree(store, _settled(mount))


@pytest.mark.parametrize("is_first", [True, False], ids=["awaited", "queued"])
def test_a_removal_of_a_changed_file(tmp_path: Path, is_first: bool) -> None:
    """It comes back whole, or not at all."""
    store = Held()

    async def before(mount: Composed) -> None:
        await put_all(store, {"file": b"old bytes", "proof": b"", "other": b"other"})
        await mount.write("file", b"new")
        await chmod(mount, "file")
        if not is_first:
            await mount.unlink("proof")

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(before, mount))
        moments = Moments(mount, store, tmp_path)
        with moments.noted():
            mount.loop.run(partial(mount.unlink, "file"))
            mount.loop.passes(1)
        for _ in moments.each():
            found = _settled(mount)
            assert found.pop("other") == b"other"
            found.pop("proof", None)
            assert found in ({"file": b"new bytes"}, {})
            assert not found or _mode(store, "file") == 0o600


def test_what_is_made_of_a_removal_that_was_cut_short(tmp_path: Path) -> None:
    store = Held()

    async def before(mount: Composed) -> None:
        await put_all(store, {"file": b"old bytes", "other": b"other"})
        await mount.write("file", b"new")
        store.before["delete", "file"] = trio.Event()
        await begun(mount, partial(mount.unlink, "file"))
        assert store.reached

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(before, mount))
        mount.crash()
        store.before.clear()
        moments = Moments(mount, store, tmp_path)
        with moments.noted():
            mount.start()
        for _ in moments.each():
            assert _settled(mount) in ({"other": b"other"}, {"file": b"new bytes", "other": b"other"})


def test_an_fsync_while_bytes_of_the_stored_version_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its checksums are of before they came, or after, and there is no moment at which they pass for damage."""
    store, new, size = Held(), b"n" * 4096, 1 << 20
    old = os.urandom(size)

    async def main(mount: Composed, moments: Moments) -> None:
        handle = await opened(mount)
        await mount.parts.file_io.write(handle, size // 2, new)
        summed, late = Spool.sums, trio.Event()

        async def ends_late(spool: Spool, size: int) -> tuple[int, ...]:
            sums = await summed(spool, size)
            await late.wait()
            return sums

        with monkeypatch.context() as patch:
            patch.setattr(Spool, "sums", ends_late)
            await begun(mount, partial(mount.parts.file_io.fsync, handle.inode))
        await mount.parts.file_io.read(handle, 0, 4096)
        await trio.testing.wait_all_tasks_blocked()
        assert handle.open_file.draft is not None
        assert handle.open_file.draft.local.covers(0, size)
        with moments.noted():
            await settled(late)

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(put_all, store, {"file": old}))
        moments = Moments(mount, store, tmp_path)
        mount.loop.run(partial(main, mount, moments))
        for _ in moments.each():
            assert mount._journal.damage.lines == ()
            mount.loop.passes(5)
            mount.loop.run(mount.settle)
            assert bodies(store) in ({"file": old}, {"file": old[: size // 2] + new + old[size // 2 + 4096 :]})
