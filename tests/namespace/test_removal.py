"""What keeps a removal from taking more than was removed, and from being forgotten: each guard by itself.

In one process, with requests held back; another client's eyes are the store itself.
"""

from __future__ import annotations

import errno
import os
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from sosfs.config.parameters import TTL, Durability
from sosfs.errors import StoreError
from sosfs.journal.journal import Journal
from sosfs.s3.protocol import Properties, Version
from tests.support.composed import Composed, composed
from tests.support.drive import fails
from tests.support.held import Held, begun, bodies, closed, opened, put_all, settled, stored

SILENCE = StoreError(errno.EIO, "delete", detail="no answer")
DENIED = StoreError(errno.EACCES, "delete", code="AccessDenied", status=403)


def _down(operation: str, key: str) -> None:
    """No delete gets an answer."""
    if operation in ("delete", "delete_many"):
        raise StoreError(errno.EIO, "delete", detail="no answer")


async def _proved(mount: Composed, store: Held) -> None:
    """A delete that was answered: those that follow are queued."""
    await store.put("proof", b"", Properties())
    await mount.unlink("proof")


async def _deletes(mount: Composed) -> list[str]:
    """What the next mount would remove."""
    return [key for key, _ in mount._journal.deletes()]


def _waiting(mount: Composed) -> list[str]:
    """The same, for who is in another thread."""
    return mount.loop.run(partial(_deletes, mount))


# A name is used again only after the delete of its key was answered


def test_a_commit_waits_for_the_delete_of_its_key(mount: Composed, store: Held) -> None:
    """A delete of the key is on its way, and takes effect late: what is stored after it stays."""
    held = trio.Event()

    async def begin() -> None:
        handle = await mount._opened(mount.parts.inodes.root, b"file", os.O_CREAT | os.O_RDWR)
        await mount.parts.file_io.write(handle, 0, b"new")
        version = await store.put("file", b"old", Properties())
        store.before["delete", "file"] = held
        mount.parts.deletions.later("file", version, lambda: None)
        mount.nursery.start_soon(closed, mount, handle)

    mount.loop.run(begin)
    mount.loop.passes(2)
    assert ("delete", "file") in store.reached
    assert stored(store) == b"old", "it did not wait"
    mount.loop.run(partial(settled, held))
    mount.loop.passes(2)
    assert bodies(store) == {"file": b"new"}


@pytest.mark.parametrize("again", ["write", "mkdir", "mkdir again", "rename", "rename directory"])
def test_a_name_that_is_used_again_waits_for_its_delete(mount: Composed, store: Held, again: str) -> None:
    held = trio.Event()
    mount.loop.run(
        lambda: put_all(store, {"name": b"old", "other": b"moved", "d/x": b"in d", "e/x": b"in e", "e/": b""})
    )

    async def remove() -> None:
        await _proved(mount, store)
        if again in ("rename directory", "mkdir again"):
            await mount.unlink("e/x")
            await mount.rmdir("e")
        else:
            await mount.unlink("name")

    async def use() -> None:
        if again == "write":
            await mount.write("name", b"new", flags=os.O_CREAT)
        elif again == "mkdir":
            await mount.mkdir("name")
        elif again == "mkdir again":
            await mount.mkdir("e")
        elif again == "rename":
            await mount.rename("other", "name")
        else:
            await mount.rename("d", "e")

    for operation in ("delete", "delete_many"):
        store.before[operation, "name"] = store.before[operation, "e/x"] = store.before[operation, "e/"] = held
    mount.loop.run(remove)
    mount.loop.passes(2)
    mount.loop.run(lambda: begun(mount, use))
    writes = [name for name in ("put", "copy") if store.calls[name] > {"put": 6, "copy": 0}[name]]
    assert not writes, "it did not wait"
    mount.loop.run(partial(settled, held))
    mount.loop.passes(5)
    expected = {
        "write": {"name": b"new", "other": b"moved"},
        "mkdir": {"name/": b"", "other": b"moved"},
        "rename": {"name": b"moved"},
        "mkdir again": {"name": b"old", "other": b"moved", "d/x": b"in d", "e/": b""},
        "rename directory": {"name": b"old", "other": b"moved", "e/x": b"in d"},
    }[again]
    if "e/x" not in expected and again != "mkdir again":
        expected |= {"d/x": b"in d", "e/x": b"in e", "e/": b""}
    assert bodies(store) == expected


# What is promised outlives the process, and what is done is not done again


@pytest.mark.parametrize("is_first", [True, False], ids=["awaited", "queued"])
def test_a_removal_is_done_by_the_next_mount(tmp_path: Path, is_first: bool) -> None:
    store = Held()
    store.before["delete", "file"] = trio.Event()

    async def main(mount: Composed) -> None:
        await put_all(store, {"file": b"bytes", "other": b"other"})
        if not is_first:
            await _proved(mount, store)
        await begun(mount, partial(mount.unlink, "file"))

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))
        mount.loop.passes(1)
        mount.crash()
        del store.before["delete", "file"]
        assert "file" in store._stored
        mount.start()
        assert bodies(store) == {"other": b"other"}
        assert _waiting(mount) == []


@pytest.mark.parametrize("theirs", [b"bytes of another length", b"BYTES"])
def test_the_next_mount_does_not_remove_what_another_client_stored_since(tmp_path: Path, theirs: bytes) -> None:
    store = Held()
    store.before["delete", "file"] = trio.Event()

    async def main(mount: Composed) -> None:
        await put_all(store, {"file": b"bytes"})
        await _proved(mount, store)
        await mount.unlink("file")

    async def meanwhile() -> None:
        await store.put("file", theirs, Properties())

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))
        mount.loop.passes(1)
        mount.crash()
        mount.loop.run(meanwhile)
        del store.before["delete", "file"]
        mount.start()
        assert bodies(store) == {"file": theirs}
        assert _waiting(mount) == [], "it is done with"
        assert mount.loop.run(mount.tree)["file"] == (theirs, 0o644)


@pytest.mark.parametrize("is_first", [True, False], ids=["awaited", "queued"])
def test_what_was_removed_is_not_removed_again_by_the_next_mount(tmp_path: Path, is_first: bool) -> None:
    """The same bytes under the same name, made within the same second, are the same version for all that is known."""
    store = Held(clock=lambda: 7.0)

    async def main(mount: Composed) -> None:
        await put_all(store, {"file": b"bytes"})
        if not is_first:
            await _proved(mount, store)
        await mount.unlink("file")
        await mount.parts.deletions.drain()
        assert not bodies(store)
        assert await _deletes(mount) == []
        await put_all(store, {"file": b"bytes"})

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))
        mount.crash()
        mount.start()
        assert bodies(store) == {"file": b"bytes"}


@pytest.mark.parametrize("is_first", [True, False], ids=["awaited", "queued"])
def test_a_removal_that_is_refused_is_given_up_only_where_its_program_is_told(tmp_path: Path, is_first: bool) -> None:
    """What was answered from the queue stays removed, and is tried on."""
    store = Held()
    kept = {"file": (b"bytes", 0o644)} if is_first else {}

    async def main(mount: Composed) -> None:
        await put_all(store, {"file": b"bytes"})
        if not is_first:
            await _proved(mount, store)
        store.errors["delete", "file"] = [DENIED]
        if is_first:
            with fails(errno.EACCES):
                await mount.unlink("file")
        else:
            await mount.unlink("file")

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))
        mount.loop.passes(2)
        assert _waiting(mount) == ([] if is_first else ["file"])
        assert mount.parts.deletions.pending == len(_waiting(mount))
        assert mount.loop.run(mount.tree) == kept
        mount.crash()
        mount.start()
        assert mount.loop.run(mount.tree) == kept
        assert bodies(store) == ({"file": b"bytes"} if is_first else {})


def test_after_a_refusal_the_next_removal_is_awaited_again(mount: Composed, store: Held) -> None:
    async def main() -> None:
        await put_all(store, {"file": b"bytes", "next": b"bytes"})
        await _proved(mount, store)
        store.errors["delete", "file"] = [DENIED]
        await mount.unlink("file")

    async def again() -> None:
        store.errors["delete", "next"] = [DENIED]
        with fails(errno.EACCES):
            await mount.unlink("next")

    mount.loop.passes(100)
    mount.loop.run(main)
    mount.loop.passes(2)
    mount.loop.run(again)


def test_one_key_that_is_refused_keeps_no_other_back(mount: Composed, store: Held) -> None:
    def fault(operation: str, key: str) -> None:
        if (operation, key) == ("delete", "b"):
            raise DENIED

    async def main() -> None:
        await put_all(store, dict.fromkeys("abc", b"x"))
        await _proved(mount, store)
        store.fault = fault
        for name in "abc":
            await mount.unlink(name)

    mount.loop.run(main)
    mount.loop.passes(3)
    assert bodies(store) == {"b": b"x"}
    assert list(mount.loop.run(mount.tree)) == []
    assert _waiting(mount) == ["b"]
    store.fault = None
    mount.loop.passes(60)
    assert bodies(store) == {}


def test_each_refusal_is_tried_again_also_one_that_comes_after_another_was_done_with(
    mount: Composed, store: Held
) -> None:
    async def refused(name: str) -> None:
        await put_all(store, {name: b"x"})
        await _proved(mount, store)
        store.errors["delete", name] = [DENIED]
        await mount.unlink(name)

    for name in "ab":
        mount.loop.run(partial(refused, name))
        mount.loop.passes(2)
        assert set(bodies(store)) == {name}
        mount.loop.passes(100)
        assert bodies(store) == {}
        assert mount.parts.pending == 0


def test_what_somebody_waits_for_in_vain_is_tried_on(mount: Composed, store: Held) -> None:
    """The queue was empty meanwhile, and nobody at work on it."""

    async def wait() -> None:
        with fails(errno.EIO):
            await mount.parts.deletions.wait_for("file")

    async def main() -> None:
        await put_all(store, {"file": b"bytes"})
        store.before["delete", "file"] = trio.Event()
        store.errors["delete", "file"] = [StoreError(errno.EIO, "delete", detail="no answer")]
        mount.parts.deletions.later("file", store._stored["file"].object.version, lambda: None)
        await begun(mount, wait)

    async def answer() -> None:
        store.before.pop(("delete", "file")).set()
        await trio.testing.wait_all_tasks_blocked()

    mount.loop.run(main)
    mount.loop.passes(2)
    mount.loop.run(answer)
    mount.loop.passes(60)
    assert bodies(store) == {}
    assert mount.parts.deletions.pending == 0


# A delete without an answer


@pytest.mark.parametrize("count", [1, 3])
def test_a_removal_without_an_answer_is_tried_until_it_has_one(mount: Composed, store: Held, count: int) -> None:
    names = [f"f{number}" for number in range(count)]

    async def main() -> None:
        await put_all(store, dict.fromkeys(names, b"x"))
        await _proved(mount, store)
        store.fault = _down
        for name in names:
            await mount.unlink(name)

    mount.loop.run(main)
    mount.loop.passes(200)
    assert mount.parts.deletions.pending == count
    assert sorted(_waiting(mount)) == names, "a crash now would forget it"
    assert mount.loop.run(mount.tree) == {}, "who removed it does not see it again"
    tried = store.calls["delete"] + store.calls["delete_many"]
    assert 5 <= tried <= 25, "after longer and longer pauses"
    store.fault = None
    mount.loop.passes(40)
    assert bodies(store) == {}
    assert mount.parts.deletions.pending == 0
    assert _waiting(mount) == []


def test_a_removal_that_is_tried_again_spares_what_another_client_stored_meanwhile(
    mount: Composed, store: Held, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        await put_all(store, {"file": b"old", "gone": b"old", "still": b"old"})
        await _proved(mount, store)
        store.fault = _down
        for name in ("file", "gone", "still"):
            await mount.unlink(name)

    async def meanwhile() -> None:
        store.fault = None
        await store.put("file", b"theirs", Properties())
        await store.delete("gone")

    mount.loop.run(main)
    mount.loop.passes(2)
    assert set(bodies(store)) == {"file", "gone", "still"}
    mount.loop.run(meanwhile)
    mount.loop.passes(60)
    assert bodies(store) == {"file": b"theirs"}
    assert mount.parts.deletions.pending == 0
    assert "file was removed here, and another client has replaced it since" in caplog.text


def test_it_is_not_tried_before_it_is_known_what_is_there(mount: Composed, store: Held) -> None:
    """Where a server removes whatever it has under a key."""
    store.pins_deletes = False

    async def main() -> None:
        await put_all(store, {"file": b"old"})
        await _proved(mount, store)
        store.errors["delete", "file"] = [SILENCE]
        await mount.unlink("file")

    async def meanwhile() -> None:
        await store.put("file", b"theirs", Properties())
        store.errors["head", "file"] = [SILENCE, SILENCE]

    mount.loop.run(main)
    mount.loop.passes(0.2)
    mount.loop.run(meanwhile)
    mount.loop.passes(60)
    assert not store.errors["head", "file"]
    assert (bodies(store), mount.parts.deletions.pending) == ({"file": b"theirs"}, 0)


def test_after_an_outage_the_next_removal_that_fails_is_tried_again_soon(mount: Composed, store: Held) -> None:
    async def removed(name: str, fails: int) -> None:
        await put_all(store, {name: b"x"})
        await _proved(mount, store)
        store.errors["delete", name] = [SILENCE] * fails
        await mount.unlink(name)

    mount.loop.run(partial(removed, "a", 8))
    mount.loop.passes(300)
    assert bodies(store) == {}
    mount.loop.run(partial(removed, "b", 1))
    mount.loop.passes(3)
    assert bodies(store) == {}


def test_the_first_removal_of_a_burst_tells_that_it_got_no_answer(tmp_path: Path) -> None:
    store = Held()

    async def main(mount: Composed) -> None:
        await put_all(store, {"file": b"bytes"})
        store.errors["delete", "file"] = [SILENCE]
        with fails(errno.EIO):
            await mount.unlink("file")
        assert await mount.tree() == {"file": (b"bytes", 0o644)}
        assert await _deletes(mount) == [], "who was told that it failed does not lose it later"

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))
        mount.crash()
        mount.start()
        assert bodies(store) == {"file": b"bytes"}


def test_what_waits_is_told_and_unmounting_sends_it(
    mount: Composed, store: Held, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        await put_all(store, {"a": b"x", "b": b"x"})
        await _proved(mount, store)
        await mount.unlink("a")
        await mount.unlink("b")
        assert mount.parts.deletions.pending == 2
        assert mount.parts.pending == 2
        assert await mount.parts.deletions.drain() == 0
        assert bodies(store) == {}

    mount.loop.run(main)
    assert store.calls["delete_many"] == 1, "in one batch"
    assert not caplog.records, "nothing was wrong"


def test_an_unmount_that_gets_no_answer_tells_how_many_are_left(mount: Composed, store: Held) -> None:
    async def main() -> None:
        await put_all(store, {"a": b"x", "b": b"x"})
        await _proved(mount, store)
        store.fault = _down
        await mount.unlink("a")
        await mount.unlink("b")
        assert await mount.parts.deletions.drain() == 2
        store.fault = None

    mount.loop.run(main)


def test_deletes_on_their_way_are_counted(mount: Composed, store: Held) -> None:
    held = trio.Event()

    async def main() -> None:
        await put_all(store, dict.fromkeys("abc", b"x"))
        await _proved(mount, store)
        store.before["delete"] = held
        await mount.unlink("a")

    mount.loop.run(main)
    mount.loop.passes(2)
    assert store.reached == {("delete", "a")}
    assert mount.parts.deletions.pending == 1
    assert mount.parts.deletions.is_pending("a")
    assert mount.parts.deletions.under("") == {"a"}
    for name in "bc":
        mount.loop.run(partial(mount.unlink, name))
        mount.loop.passes(1)
    assert store.reached == {("delete", "a")}, "the others are to go together"
    mount.loop.run(partial(settled, held))
    mount.loop.passes(1)
    assert mount.parts.deletions.pending == 0
    assert (store.calls["delete"], store.calls["delete_many"]) == (2, 1), "that of the first, a, and the others"


# What a removal takes along


def test_what_is_open_is_read_on_after_its_removal_and_not_sent(tmp_path: Path) -> None:
    store = Held()

    async def main(mount: Composed) -> None:
        await mount.write("file", b"a" * 5000, flags=os.O_CREAT)
        await mount.settle()
        handle = await opened(mount)
        await mount.parts.file_io.write(handle, 0, b"b")
        await mount.unlink("file")
        assert bytes(await mount.parts.file_io.read(handle, 0, 5000)) == b"b" + b"a" * 4999
        await mount.parts.file_io.write(handle, 1, b"b")
        assert bytes(await mount.parts.file_io.read(handle, 0, 3)) == b"bba"
        await closed(mount, handle)

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(main, mount))
        mount.loop.passes(5)
        assert bodies(store) == {}
        mount.crash()
        mount.start()
        mount.loop.passes(5)
        assert bodies(store) == {}


@pytest.mark.parametrize("how", ["unlinked", "replaced"])
def test_what_nobody_has_read_yet_is_read_by_who_has_it_open_after_its_removal(
    mount: Composed, store: Held, how: str
) -> None:
    async def main() -> None:
        await put_all(store, {"file": b"A" * 300_000, "other": b"o"})
        handle = await opened(mount, os.O_RDONLY)
        if how == "unlinked":
            await mount.unlink("file")
        else:
            await mount.rename("other", "file")
        mount.parts.blocks.forget(lambda key: True)
        assert bytes(await mount.parts.file_io.read(handle, 100_000, 200_000)) == b"A" * 200_000
        await closed(mount, handle)

    mount.loop.run(main)
    assert bodies(store) == ({} if how == "replaced" else {"other": b"o"}) | (
        {"file": b"o"} if how == "replaced" else {}
    )


def test_what_was_removed_while_it_is_open_does_not_come_back_after_a_crash(tmp_path: Path) -> None:
    store = Held()

    async def main(mount: Composed) -> None:
        await mount.write("file", b"not sent", flags=os.O_CREAT)
        await opened(mount)
        await mount.unlink("file")

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(main, mount))
        mount.crash()
        mount.start()
        mount.loop.passes(5)
        assert bodies(store) == {}
        assert mount.loop.run(mount.tree) == {}


def test_a_name_that_was_removed_before_it_was_stored_is_another_clients_then(mount: Composed, store: Held) -> None:
    async def main() -> None:
        handle = await mount._opened(mount.parts.inodes.root, b"file", os.O_CREAT | os.O_RDWR)
        await mount.unlink("file")
        await closed(mount, handle)
        await put_all(store, {"file": b"theirs"})

    mount.loop.run(main)
    mount.loop.passes(2 * TTL)
    assert mount.loop.run(mount.tree) == {"file": (b"theirs", 0o644)}


def test_a_removal_that_fails_leaves_what_was_written_and_not_sent(tmp_path: Path) -> None:
    store = Held()

    async def main(mount: Composed) -> None:
        await put_all(store, {"file": b"old"})
        await mount.write("file", b"new")
        store.errors["delete", "file"] = [DENIED]
        with fails(errno.EACCES):
            await mount.unlink("file")

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(main, mount))
        mount.crash()
        mount.start()
        mount.loop.passes(5)
        mount.loop.run(mount.settle)
        assert stored(store) == b"new"


def test_a_directory_is_not_removed_while_another_client_has_something_in_it(mount: Composed, store: Held) -> None:
    async def main() -> None:
        await put_all(store, {"d/": b"", "d/x": b"x"})
        await mount.unlink("d/x")
        await store.put("d/theirs", b"theirs", Properties())
        mount.loop._clock.jump(2 * TTL)
        with fails(errno.ENOTEMPTY):
            await mount.rmdir("d")
        assert bodies(store) == {"d/": b"", "d/theirs": b"theirs"}

    mount.loop.run(main)


def test_a_directory_without_marker_stays_when_its_last_file_goes(mount: Composed, store: Held) -> None:
    async def main() -> None:
        await put_all(store, {"d/x": b"x", "e/x": b"x", "e/y": b"y"})
        await mount.unlink("d/x")
        await mount.unlink("e/x")

    mount.loop.run(main)
    mount.loop.passes(2 * TTL)
    assert set(bodies(store)) == {"d/", "e/y"}
    assert set(mount.loop.run(mount.tree)) == {"d", "e", "e/y"}


def test_the_version_that_is_removed_is_the_one_that_was_seen(tmp_path: Path) -> None:
    """The journal names it, so that the next mount can tell."""
    store = Held()

    async def main(mount: Composed) -> None:
        await put_all(store, {"file": b"bytes"})
        await _proved(mount, store)
        store.before["delete", "file"] = trio.Event()
        await mount.unlink("file")
        ((key, version),) = mount._journal.deletes()
        assert key == "file"
        assert version.same_as(store._stored["file"].object.version)
        assert not version.same_as(Version("other", 5))

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))
        mount.crash()
        del store.before["delete", "file"]
        mount.start()


def test_a_removal_without_the_journal_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that refuses the record refuses the removal: a crash must not bring back what was said to be gone."""
    store = Held()

    def full(journal: Journal, key: str, version: Version) -> None:
        raise OSError(errno.EIO, "the journal: disk is full")

    async def main(mount: Composed) -> None:
        await put_all(store, {"file": b"bytes"})
        with monkeypatch.context() as patch:
            patch.setattr(Journal, "add_delete", full)
            with fails(errno.EIO):
                await mount.unlink("file")
        assert bodies(store) == {"file": b"bytes"}
        assert await mount.tree() == {"file": (b"bytes", 0o644)}

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))


@pytest.mark.parametrize("is_first", [True, False], ids=["awaited", "queued"])
def test_a_removal_of_which_a_full_disk_keeps_no_record_is_awaited(
    mount: Composed, store: Held, monkeypatch: pytest.MonkeyPatch, is_first: bool
) -> None:
    """Removing is how people make room."""

    def full(journal: Journal, key: str, version: Version) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def main() -> None:
        await put_all(store, {"file": b"bytes"})
        if not is_first:
            await _proved(mount, store)
        with monkeypatch.context() as patch:
            patch.setattr(Journal, "add_delete", full)
            await mount.unlink("file")
        assert bodies(store) == {}

    mount.loop.run(main)
