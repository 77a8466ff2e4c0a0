"""What waits, tried at once, without a kernel: the clock stands still, so nothing is tried by itself."""

from __future__ import annotations

import errno
import os
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
import trio.testing

import tests.support.fake_store
from sosfs.config.parameters import Durability
from sosfs.errors import StoreError
from sosfs.files.open_file import content_of
from sosfs.filesystem.bucket import BucketMount
from sosfs.filesystem.pending_changes import PendingChanges
from sosfs.s3.protocol import Properties
from sosfs.s3.traffic import Traffic
from tests.support.composed import LONG, Composed, composed
from tests.support.drive import fails
from tests.support.fake_store import FakeStore
from tests.support.held import Held, begun, bodies, chmod, closed, opened, put_all, settled, silence, stored
from tests.support.held import told as noted


class Refusing(FakeStore):
    """Refuses to store under the keys in `refused`, and counts who tried."""

    def __init__(self) -> None:
        super().__init__()
        self.refused: set[str] = set()
        self.tried: list[str] = []
        self.fault = self._refuse

    def _refuse(self, operation: str, key: str) -> None:
        if operation in {"put", "copy", "delete", "delete_many"}:
            self.tried.append(key)
            if key in self.refused:
                raise StoreError(errno.EACCES, f"{operation} {key!r}", code="AccessDenied", status=403)


def ask(mount: Composed, errand: str, *path: bytes, moved: dict[str, int] | None = None) -> dict[str, Any]:
    changes = PendingChanges(mount.parts, "", lambda: moved or {})
    work = {"pending": changes.tell, "retry": changes.retry}[errand]
    return mount.loop.run(lambda: work([path], lambda _: None))


def paths(told: dict[str, Any]) -> list[str]:
    return [one["path"] for one in told["changes"]]


def refuse(mount: Composed, store: Refusing, *keys: str) -> None:
    """Writes files that the store does not take."""
    store.refused = set(keys)
    for key in keys:
        with pytest.raises(StoreError):
            mount.loop.run(partial(mount.write, key, b"12345", flags=os.O_CREAT))
    mount.loop.passes(3)  # the task that sends them has tried, and waits


@pytest.fixture
def store() -> Refusing:
    return Refusing()


def test_a_new_directory_keeps_its_bucket_until_it_is_there(tmp_path: Path, store: Refusing) -> None:
    """As a file does, which nobody has to wait for either."""
    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        removed = partial(BucketMount.store_deletes, cast(BucketMount, SimpleNamespace(parts=mount.parts)))
        store.refused = {"d/"}
        mount.loop.run(partial(mount.mkdir, "d"))
        with fails(errno.ENOTEMPTY):
            mount.loop.run(removed)
        store.refused = set()
        assert ask(mount, "retry")["total"] == 0
        mount.loop.run(removed)


def test_only_what_is_meant_is_tried(tmp_path: Path, store: Refusing, monkeypatch: pytest.MonkeyPatch) -> None:
    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(mount.mkdir, "d"))
        refuse(mount, store, "a", "d/b")
        told = ask(mount, "pending")
        assert {"a", "d/b"} <= set(paths(told))
        with monkeypatch.context() as patch:
            patch.setattr("sosfs.filesystem.pending_changes.TOLD", 1)
            less = ask(mount, "pending")
        assert (paths(less), less["total"]) == (paths(told)[:1], told["total"])
        store.tried.clear()
        store.refused.clear()
        assert ask(mount, "retry", b"d", b"b") == {"tried": 1, "changes": [], "total": 0}
        assert store.tried == ["d/b"]
        assert ask(mount, "retry", b"d", b"b")["tried"] == 0
        assert "a" in paths(ask(mount, "pending"))
        assert ask(mount, "retry")["total"] == 0
        assert ask(mount, "pending")["total"] == 0


def test_a_retry_leaves_nobody_waiting(tmp_path: Path, store: Refusing) -> None:
    """A task that waits to send a file ends once that is stored by another way: it holds memory and a writer's room."""
    with composed(store, tmp_path) as mount:
        refuse(mount, store, "a")
        (waits,) = ask(mount, "pending")["changes"]
        assert (waits["error"], waits["size"]) == ("AccessDenied", 5)
        assert mount.parts.waiting == ["bytes of a: put 'a': AccessDenied"]
        assert 0 < waits["retry_at"] - time.time() <= 300
        assert ask(mount, "retry")["total"] == 1, "still refused"
        store.refused.clear()
        assert ask(mount, "retry")["total"] == 0
        mount.loop.passes(0.1)
        assert not mount.parts.commits.drafts


def test_removals_are_told_and_tried_with_all_else(tmp_path: Path, store: Refusing) -> None:
    async def remove(mount: Composed) -> None:
        await put_all(store, {"proof": b"", "d/gone": b"1", "other": b"2"})
        await mount.unlink("proof")
        store.refused = {"d/gone", "other"}
        await mount.unlink("d/gone")
        await mount.unlink("other")

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(remove, mount))
        mount.loop.passes(3)
        waiting = ask(mount, "pending")["changes"]
        assert {(one["path"], one["kind"]) for one in waiting} == {("d/gone", "removal"), ("other", "removal")}
        told = ask(mount, "retry", b"d")
        assert (told["tried"], paths(told)) == (1, ["d/gone"]), "still refused"
        store.refused = {"other"}
        assert ask(mount, "retry", b"d") == {"tried": 1, "changes": [], "total": 0}
        assert set(bodies(store)) == {"d/", "other"}
        store.refused.clear()
        assert ask(mount, "retry")["total"] == 0
        assert set(bodies(store)) == {"d/"}


def test_a_rename_that_got_no_answer_is_told_until_it_is_taken_back(tmp_path: Path) -> None:
    store, held = Held(), trio.Event()

    async def rename(mount: Composed) -> None:
        await put_all(store, {"a": b"bytes"})
        store.before["copy", "a"] = held
        await begun(mount, partial(noted, {}, "rename", partial(mount.rename, "a", "b")))
        store.errors["copy", "a"] = [silence("copy")]
        store.errors["head", "b"] = [silence("head") for _ in range(9)]
        await settled(held)

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(rename, mount))
        assert [one["kind"] for one in ask(mount, "pending")["changes"]] == ["rename"]
        assert ask(mount, "retry")["total"] == 1
        store.errors.clear()
        assert ask(mount, "retry")["tried"] == 1
        mount.loop.passes(LONG)
        assert ask(mount, "pending")["total"] == 0
        assert bodies(store) == {"a": b"bytes"}


def test_attributes_that_wait_are_told_with_the_reason_and_those_of_unsent_bytes_with_these(
    tmp_path: Path, store: Refusing
) -> None:
    begun = time.time()
    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        for key in ("file", "written", "well"):
            mount.loop.run(partial(store.put, key, b"bytes", Properties()))
        for key in ("file", "written", "well"):
            mount.loop.run(partial(chmod, mount, key))
            assert paths(ask(mount, "pending"))[-1] == key
        store.refused = {"file", "written"}
        mount.loop.run(partial(mount.write, "written", b"12345"))
        mount.loop.passes(3)
        waiting = ask(mount, "pending")["changes"]
        other = next(one for one in waiting if one["path"] == "file")
        assert {one["path"]: one["kind"] for one in waiting} == {"written": "content", "file": "attributes"}
        assert len(waiting) == 2
        assert "AccessDenied" in other["error"]
        assert 0 < other["retry_at"] - time.time() <= 300
        assert begun <= other["since"] == mount.parts.attributes.oldest <= time.time()
        assert begun <= mount.parts.oldest <= other["since"]
        store.refused.clear()
        assert ask(mount, "retry")["total"] == 0
        assert (mount.parts.attributes.oldest, mount.parts.oldest) == (0.0, 0.0)
        mount.loop.run(partial(chmod, mount, "well"))
        (new,) = ask(mount, "pending")["changes"]
        assert (new["path"], new["error"]) == ("well", ""), "what has not failed yet has no reason"


def test_bytes_on_the_wire_count_for_their_file_and_never_beyond_its_size(tmp_path: Path) -> None:
    store = Held()
    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        store.before["put"] = trio.Event()
        for key in ("a", "b"):
            mount.loop.run(partial(mount.write, key, b"12345", flags=os.O_CREAT))
        assert {one["uploaded"] for one in ask(mount, "pending", moved={"a": 3})["changes"]} == {0}, "none is sent yet"
        mount.loop.passes(3)
        assert store.reached == {("put", "a"), ("put", "b")}
        told = ask(mount, "pending", moved={"a": 3, "b": 99, "c": 5})
        assert {one["path"]: one["uploaded"] for one in told["changes"]} == {"a": 3, "b": 5}
        mount.loop.run(store.release)


def test_parts_that_the_server_has_count_for_their_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while nothing of it is on its way."""
    store, held = Held(), trio.Event()
    monkeypatch.setattr(tests.support.fake_store, "PART_MIN", 1)

    with composed(store, tmp_path, durability=Durability.JOURNAL, part_size=4096) as mount:
        store.before["complete_multipart"] = held
        size = mount.parts.file_io.writeback._uploader.plan.single + 4096
        mount.loop.run(partial(mount.write, "file", b"n" * size, flags=os.O_CREAT))
        (told,) = ask(mount, "pending")["changes"]
        assert (told["size"], told["uploaded"]) == (size, 0)
        mount.loop.passes(3)
        assert store.reached == {("complete_multipart", "file")}
        (told,) = ask(mount, "pending")["changes"]
        assert (told["size"], told["uploaded"]) == (size, size)
        mount.loop.run(store.release)
        mount.loop.passes(3)
        assert stored(store) == b"n" * size


@pytest.mark.parametrize("is_sent", [False, True], ids=["while they wait", "while they are sent"])
def test_bytes_that_are_cut_off_are_not_told_any_more(tmp_path: Path, is_sent: bool) -> None:
    """Nor are those that a file is made longer by."""
    store, held = Held(), trio.Event()

    async def main(mount: Composed) -> None:
        await mount.write("file", b"n" * 8000, flags=os.O_CREAT)
        if is_sent:
            store.before["put"], store.errors["put", "file"] = held, [silence("put")]
            await begun(mount, lambda: noted({}, "sent", mount.settle))
        await mount.truncate("file", 10)
        await mount.truncate("file", 8000)
        assert mount.parts.commits.pending == (1, 10)
        await settled(held)
        assert mount.parts.commits.pending == (1, 10)

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(main, mount))
        mount.loop.run(store.release)


def test_bytes_of_a_file_that_is_removed_are_not_told_any_more(tmp_path: Path) -> None:
    store = Held()

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(store.put, "file", b"bytes", Properties()))
        mount.loop.run(partial(mount.write, "file", b"12345"))
        store.before["delete"] = trio.Event()
        mount.loop.run(lambda: begun(mount, partial(mount.unlink, "file")))
        assert store.reached == {("delete", "file")}
        assert ask(mount, "pending")["changes"] == []
        assert (mount.parts.commits.pending, mount.parts.commits.oldest) == ((0, 0), 0.0)
        mount.loop.run(store.release)
        mount.loop.passes(3)
        assert bodies(store) == {}


def test_a_write_that_failed_is_the_reason_why_a_file_is_not_stored(tmp_path: Path) -> None:
    async def fail(mount: Composed) -> None:
        inode = await mount._walk("file")
        draft = content_of(inode).draft
        assert draft is not None
        draft.refused.add(0, 5)

    async def mend(mount: Composed) -> None:
        handle = await opened(mount)
        await mount.parts.file_io.write(handle, 0, b"54321")
        await closed(mount, handle)

    store = Held()
    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(mount.write, "file", b"12345", flags=os.O_CREAT))
        mount.loop.run(partial(fail, mount))
        (told,) = ask(mount, "pending")["changes"]
        assert "want of room" in told["error"]
        mount.loop.run(partial(mend, mount))
        (told,) = ask(mount, "pending")["changes"]
        assert told["error"] == ""
        mount.loop.passes(3)
        assert bodies(store) == {"file": b"54321"}


def test_what_waits_is_counted_until_it_is_stored_and_since_it_was_written(tmp_path: Path) -> None:
    store = Held()

    async def write_on(mount: Composed) -> None:
        handle = await opened(mount)
        await mount.parts.file_io.write(handle, 0, b"123")
        await mount.parts.file_io.release(handle)

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        commits = mount.parts.commits
        assert (commits.pending, commits.oldest, commits.uploaded({"file": 3})) == ((0, 0), 0.0, 0)
        store.before["put"] = trio.Event()
        before = time.time()
        mount.loop.run(partial(mount.write, "file", b"12345", flags=os.O_CREAT))
        assert before <= commits.oldest <= time.time()
        assert (commits.pending, commits.uploaded({"file": 3})) == ((1, 5), 0)
        mount.loop.passes(3)
        began = time.time()
        mount.loop.run(partial(write_on, mount))
        assert commits.oldest <= began
        assert (commits.pending, commits.uploaded({"file": 3, "x": 9})) == ((1, 5), 3)
        mount.loop.run(store.release)
        mount.loop.passes(0.1)
        assert bodies(store) == {"file": b"12345"}
        assert commits.pending == (1, 3)
        assert commits.oldest > before, "what came while it was sent waits since then"
        mount.loop.passes(8)
        assert (commits.pending, commits.oldest) == ((0, 0), 0.0)


def test_traffic_knows_what_is_under_way_and_whether_the_server_answers() -> None:
    traffic = Traffic(now=lambda: 7.0)
    with traffic.sending("k") as one, traffic.sending("k") as other:
        one.at(10)
        other.at(5)
        one.at(2)  # sent again from there
        assert traffic.moved() == {"k": 7}
    assert traffic.moved() == {}
    traffic.unanswered("reset")
    traffic.unanswered("refused")
    assert traffic.silence is not None
    assert (traffic.silence.since, traffic.silence.why) == (7.0, "refused")
    traffic.answered()
    assert traffic.silence is None
