"""Deletes that travel in batches: what the tree shows while some are answered and others are not."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from sosfs.config.parameters import TTL, Durability
from sosfs.errors import StoreError
from sosfs.filesystem.pending_changes import PendingChanges
from sosfs.namespace.deletions import CROWD, HELD_FIRST, HELD_MAX, PAUSE_MAX
from sosfs.s3.protocol import NO_VERSIONS, Failure, Properties, Version
from tests.support.composed import LONG, Composed, composed
from tests.support.drive import fails
from tests.support.fake_store import FakeStore
from tests.support.held import Held, begun, bodies, denied, put_all, settled, silence

FILES = 2 * CROWD + CROWD // 2


class SlowFirst(FakeStore):
    """Its first batch of deletes, `but` for one with that key, is answered when `go` is set, all others at once."""

    def __init__(self, *, but: str = "") -> None:
        super().__init__()
        self.but = but
        self.go: trio.Event | None = None
        self.held: list[str] = []
        self.failing: trio.Event | None = None  # all batches wait for it, and fail then

    async def let_go(self) -> None:
        """Answers the first batch too."""
        if self.go is not None:
            self.go.set()

    async def delete_many(self, keys: Sequence[str], *, versions: Mapping[str, Version] = NO_VERSIONS) -> list[Failure]:
        if self.failing is not None:
            await self.failing.wait()
            return [Failure(key, StoreError(errno.EIO, "delete_many", detail="no answer")) for key in keys]
        if self.go is not None and not self.held and self.but not in keys:
            self.held.extend(keys)
            await self.go.wait()
        return await super().delete_many(keys, versions=versions)


@pytest.fixture
def store() -> SlowFirst:
    return SlowFirst()


@pytest.fixture
def mount(tmp_path: Path, store: SlowFirst) -> Iterator[Composed]:
    with composed(store, tmp_path) as mount:
        yield mount
        mount.loop.run(store.let_go)


async def _fill(store: SlowFirst) -> None:
    for number in range(FILES):
        await store.put(f"top/sub/{number:04}", b"body", Properties())


async def _empty(mount: Composed, store: SlowFirst) -> None:
    await mount.unlink("top/sub/0000")  # asked for by itself: it proves that the key may delete
    store.go = trio.Event()
    for number in range(1, FILES):
        await mount.unlink(f"top/sub/{number:04}")
    await mount.rmdir("top/sub")


def test_a_directory_is_removed_while_the_last_of_its_files_is_still_going(tmp_path: Path) -> None:
    """The one before is gone already. Nothing is kept of what has been removed."""
    store, held = Held(), trio.Event()

    async def begin() -> None:
        await put_all(store, dict.fromkeys(("other", "d/", "d/x", "d/y"), b""))
        await _remove(here, "other")
        store.before["delete", "d/x"], store.before["delete", "d/y"] = trio.Event(), held
        await _remove(here, "d/x")

    async def end() -> None:
        await _remove(here, "d/y")
        await settled(store.before.pop(("delete", "d/x")))

    with composed(store, tmp_path) as here:
        here.loop.run(begin)
        here.loop.passes(1)
        here.loop.run(end)
        here.loop.passes(2 * TTL)  # what is in it is asked for anew, and shows what is still going
        assert set(store._stored) == {"d/", "d/y"}
        here.loop.run(partial(here.rmdir, "d"))
        here.loop.run(partial(settled, held))
        here.loop.passes(1)
        assert (bodies(store), here.loop.run(here.tree), here.parts.pending) == ({}, {}, 0)
        assert not here.parts.deletions._prefixes


def test_a_directory_does_not_come_back_while_a_file_of_it_is_still_going(mount: Composed, store: SlowFirst) -> None:
    mount.loop.run(lambda: _fill(store))
    mount.loop.run(lambda: _empty(mount, store))
    mount.loop.passes(2 * TTL)  # its listing is asked for anew, and shows what is still going
    assert len(store.held) == CROWD

    async def go_on() -> None:
        assert [path for path in await mount.tree() if path != "top"] == []
        await mount.rmdir("top")
        await store.let_go()
        await mount.settle()
        assert await mount.tree() == {}

    mount.loop.run(go_on)
    assert store.calls["delete_many"] <= FILES // CROWD + 2


@pytest.mark.promise(3)
@pytest.mark.parametrize("first", [True, False], ids=["asked for", "in a batch"])
def test_a_removed_file_with_unsent_bytes_does_not_come_back(tmp_path: Path, first: bool) -> None:
    """A kill after the bucket has let it go: the record of its bytes alone would be a name without an object."""
    store = FakeStore()

    async def settled_never() -> None:
        await trio.sleep_forever()

    async def begin() -> None:
        await store.put("other", b"other", Properties())
        await store.put("file", b"body", Properties())
        await here.write("file", b"more", flags=os.O_APPEND)
        if not first:
            await here.unlink("other")
        here._journal.flushed = settled_never  # type: ignore[method-assign]
        await begun(here, partial(here.unlink, "file"))

    async def require_gone() -> None:
        assert await here.tree() == ({"other": (b"other", 0o644)} if first else {})
        assert sorted(store._stored) == (["other"] if first else [])

    with composed(store, tmp_path, durability=Durability.JOURNAL) as here:
        here.loop.run(begin)
        here.loop.passes(0.3)
        assert "file" not in store._stored
        here.crash()
        here.start()
        here.loop.run(require_gone)
        here.loop.passes(LONG)
        here.loop.run(require_gone)


@pytest.mark.promise(3)
def test_nor_does_it_after_a_kill_while_its_records_go(tmp_path: Path) -> None:
    """That of its removal and that of its bytes go at once."""
    store, killed = FakeStore(), tmp_path / "killed"

    async def begin() -> None:
        await put_all(store, {"file": b"body"})
        await here.write("file", b"more", flags=os.O_APPEND)
        drop = here._journal.drop_delete

        def drop_and_keep(key: str) -> None:
            drop(key)
            here.keep_state(killed)

        here._journal.drop_delete = drop_and_keep  # type: ignore[method-assign]
        await begun(here, partial(here.unlink, "file"))

    with composed(store, tmp_path, durability=Durability.JOURNAL) as here:
        here.loop.run(begin)
        assert store._stored == {}
        here.crash_before(killed)
        here.start()
        here.loop.passes(LONG)
        assert here.loop.run(here.tree) == {}
        assert store._stored == {}


@pytest.mark.usefixtures("without_bugs")
def test_a_directory_stays_away_while_a_file_that_was_removed_from_it_is_refused(tmp_path: Path) -> None:
    """The file was removed before, and the server says no to it alone; then the directory is removed."""
    store = FakeStore()

    def refuse(operation: str, key: str) -> None:
        if operation in ("delete", "delete_many") and key == "d/x":
            raise StoreError(errno.EACCES, f"{operation} {key!r}", code="AccessDenied", status=403)

    async def begin(mount: Composed) -> None:
        for key in ("other", "d/", "d/x"):
            await store.put(key, b"", Properties())
        await mount.unlink("other")
        store.fault = refuse
        await mount.unlink("d/x")

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(begin, mount))
        mount.loop.passes(10)
        assert "d/x" in store._stored
        mount.loop.run(partial(mount.rmdir, "d"))
        for _ in range(2):
            mount.loop.passes(2 * TTL)
            assert mount.loop.run(mount.tree) == {}
            assert len(mount.parts.waiting) == 2, "the directory waits for the same reason"
            mount.crash()
            mount.start()
        store.fault = None
        mount.loop.passes(LONG)
        assert store._stored == {}
        assert mount.parts.pending == 0


def test_a_directory_waits_for_files_that_got_no_answer_and_are_more_than_one_batch(tmp_path: Path) -> None:
    """They were on their way when it was removed, and are tried again before it: one batch has no answer yet."""
    store = SlowFirst(but="top/sub/")

    async def begin(mount: Composed) -> None:
        await _fill(store)
        await mount.unlink("top/sub/0000")
        store.failing = trio.Event()
        for number in range(1, FILES):
            await mount.unlink(f"top/sub/{number:04}")

    async def fail(mount: Composed) -> None:
        await mount.rmdir("top/sub")
        assert store.failing is not None
        store.failing.set()
        await trio.testing.wait_all_tasks_blocked()
        store.failing, store.go = None, trio.Event()

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(begin, mount))
        mount.loop.passes(1)
        mount.loop.run(partial(fail, mount))
        mount.loop.passes(60)
        assert store.held
        assert [path for path in mount.loop.run(mount.tree) if path != "top"] == []
        mount.loop.run(store.let_go)
        mount.loop.passes(60)
        assert mount.parts.pending == 0
        assert not any(key.startswith("top/sub") for key in store._stored)


# What is told of those that wait


def _pending(mount: Composed) -> dict[str, dict[str, Any]]:
    """What `sosfs pending` tells, by path."""
    told = mount.loop.run(lambda: PendingChanges(mount.parts, "", dict).tell([()], lambda _: None))
    return {one["path"]: one for one in told["changes"]}


async def _remove(mount: Composed, *paths: str) -> None:
    for path in paths:
        await mount.unlink(path)


@pytest.mark.usefixtures("without_bugs")
def test_what_is_refused_is_tried_again_with_growing_pauses_and_told_with_the_reason(tmp_path: Path) -> None:
    """A file whose name begins alike is none of it."""
    store, tried = FakeStore(), list[str]()

    def refuse(operation: str, key: str) -> None:
        if operation == "delete" and key in ("files", "fi"):
            tried.extend([key] * (key == "files"))
            raise denied(f"{operation} {key!r}")

    async def require_told(path: str) -> None:
        with fails(errno.EACCES):
            await here.unlink(path)

    with composed(store, tmp_path) as here:
        here.loop.run(lambda: put_all(store, dict.fromkeys(("other", "fi", "file", "files", "more"), b"")))
        assert here.parts.oldest == 0.0
        store.fault, before = refuse, time.time()
        here.loop.run(partial(_remove, here, "other", "file", "files"))
        assert {path: (one["error"], one["retry_at"]) for path, one in _pending(here).items()} == {
            "file": ("", 0.0),
            "files": ("", 0.0),
        }
        here.loop.passes(1)
        (told,) = _pending(here).values()
        assert (told["path"], told["kind"], told["error"]) == ("files", "removal", "AccessDenied")
        assert 0 < told["retry_at"] - time.time() <= HELD_FIRST
        assert before <= told["since"] == here.parts.oldest <= time.time()
        assert here.parts.waiting == ["removal of files: delete 'files': AccessDenied"]
        here.loop.passes(LONG)
        assert 8 <= len(tried) <= 16
        here.loop.run(partial(require_told, "fi"))
        here.loop.run(partial(_remove, here, "more"))
        store.fault = None
        here.loop.passes(2 * HELD_MAX)
        here.loop.run(partial(_remove, here, "fi"))
        assert (store._stored, _pending(here), here.parts.oldest) == ({}, {}, 0.0)


@pytest.mark.usefixtures("without_bugs")
def test_who_waits_for_a_name_or_a_directory_is_told_of_no_other_that_is_refused(tmp_path: Path) -> None:
    store = FakeStore()

    def refuse(operation: str, key: str) -> None:
        if operation == "delete" and key in ("files", "e/x"):
            raise denied(key)

    async def main() -> None:
        await put_all(store, dict.fromkeys(("other", "file", "files", "d/", "d/x", "e/", "e/x"), b""))
        await _remove(here, "other")
        store.fault = refuse
        await _remove(here, "file", "files")
        await here.write("file", b"new", flags=os.O_CREAT)
        await _remove(here, "d/x", "e/x")
        await here.parts.deletions.wait_under("d/")
        assert bodies(store) == {"file": b"new", "files": b"", "d/": b"", "e/": b"", "e/x": b""}
        store.fault = None

    with composed(store, tmp_path) as here:
        here.loop.run(main)
        here.loop.passes(LONG)
        assert set(store._stored) == {"file", "d/", "e/"}


@pytest.mark.usefixtures("without_bugs")
def test_what_was_refused_is_tried_on_though_the_store_is_away_when_it_is_tried_again(tmp_path: Path) -> None:
    store = Held()
    with composed(store, tmp_path) as mount:
        mount.loop.run(lambda: put_all(store, dict.fromkeys(("other", "file"), b"")))
        store.errors["delete", "file"] = [denied(), *[silence("delete")] * 3]
        mount.loop.run(partial(_remove, mount, "other", "file"))
        mount.loop.passes(LONG)
        assert (store._stored, mount.parts.pending) == ({}, 0)


def test_what_waits_for_the_store_is_not_told_to_be_tried_later_while_it_is_tried(tmp_path: Path) -> None:
    store = Held()

    async def retry(mount: Composed) -> None:
        store.before["delete"] = trio.Event()
        await begun(mount, partial(mount.parts.deletions.wait_for, "a"))

    with composed(store, tmp_path) as mount:
        mount.loop.run(lambda: put_all(store, dict.fromkeys("oab", b"")))
        mount.loop.run(partial(_remove, mount, "o", "a"))
        store.errors["delete", "a"] = [silence("delete")] * 3
        mount.loop.passes(1.2)  # the second try has failed, and the next one comes a second later
        mount.loop.run(partial(_remove, mount, "b"))
        told = _pending(mount)
        assert (told["b"]["error"], told["b"]["retry_at"]) == ("", 0.0), "it has not failed"
        assert told["a"]["error"] == "no answer"
        assert 0 < told["a"]["retry_at"] - time.time() <= PAUSE_MAX
        mount.loop.run(partial(retry, mount))
        assert store.reached == {("delete", "a")}
        assert _pending(mount)["a"]["retry_at"] == 0.0
        mount.loop.run(store.release)
        mount.loop.passes(10)
        assert (bodies(store), _pending(mount)) == ({}, {})


def test_a_directory_that_waits_for_what_is_refused_keeps_nobody_from_removing_others(tmp_path: Path) -> None:
    """Nothing is on its way whose answer the queue could wait for."""
    store = FakeStore()

    def refuse(operation: str, key: str) -> None:
        if operation == "delete" and key == "d/x":
            raise StoreError(errno.EACCES, f"{operation} {key!r}", code="AccessDenied", status=403)

    with composed(store, tmp_path) as mount:
        mount.loop.run(lambda: put_all(store, dict.fromkeys(("other", "d/", "d/x", "a", "b"), b"")))
        store.fault = refuse
        mount.loop.run(partial(_remove, mount, "other", "d/x"))
        mount.loop.passes(HELD_FIRST + 1)  # the next try comes after twice as long
        mount.loop.run(partial(mount.rmdir, "d"))
        mount.loop.passes(1)
        told = _pending(mount)["d"]
        assert told["error"] == "AccessDenied" and told["retry_at"] > 0, "it waits with the file, and for as long"
        mount.loop.run(partial(_remove, mount, "a", "b"))
        mount.loop.passes(1)
        assert sorted(store._stored) == ["d/", "d/x"]
        store.fault = None


@pytest.mark.parametrize("keys", [("a",), ("a", "b")], ids=["one", "several"])
@pytest.mark.parametrize("when", ["before", "after", "as it is answered"])
@pytest.mark.parametrize("durability", [Durability.BUCKET, Durability.WRITEBACK])
def test_a_retry_that_is_called_off_leaves_removals_to_be_tried_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durability: Durability, when: str, keys: Sequence[str]
) -> None:
    """Ctrl-C of `sosfs retry`, while its request waits for a turn or its answer comes: they hung, and so did umount."""
    store, held, scope = Held(), trio.Event(), trio.CancelScope()
    what = "delete" if len(keys) == 1 else "delete_many"
    delete = getattr(store, what)

    async def in_a_thread(*arguments: Any, **options: Any) -> Any:
        with trio.CancelScope(shield=True):
            await held.wait()
            return await delete(*arguments, **options)

    async def retry(mount: Composed) -> None:
        if when == "as it is answered":
            monkeypatch.setattr(store, what, in_a_thread)
        else:
            getattr(store, when)[what] = held
        with scope:
            await PendingChanges(mount.parts, "", dict).retry([()], lambda _: None)

    async def called_off() -> None:
        scope.cancel()
        await settled(held)
        monkeypatch.undo()
        await store.release()

    with composed(store, tmp_path, durability=durability) as mount:
        mount.loop.run(lambda: put_all(store, dict.fromkeys(("other", *keys), b"")))
        store.errors[what, "a"] = [silence(what)]
        mount.loop.run(partial(_remove, mount, "other", *keys))
        mount.loop.passes(0.2)  # it has failed, and is tried again after a pause
        mount.loop.run(lambda: begun(mount, partial(retry, mount)))
        mount.loop.passes(PAUSE_MAX)
        mount.loop.run(called_off)
        mount.loop.passes(LONG)
        assert (bodies(store), _pending(mount)) == ({}, {})
