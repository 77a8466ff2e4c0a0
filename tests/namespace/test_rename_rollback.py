"""A rename that does not get through leaves the tree as it was: no copy stays, whatever became of the requests."""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from sosfs.config.parameters import TTL, Durability
from sosfs.errors import StoreError, from_s3
from sosfs.ipc.pending import Pending
from sosfs.s3.protocol import NOTHING, Headers, Properties, Version
from tests.conftest import HURRY, Mounter
from tests.support.composed import LONG, Composed, composed
from tests.support.drive import Drive, eventually, fails, names, status, tree
from tests.support.fake_store import FakeStore
from tests.support.faults import FAILED, LOST, Answer, Hang, Moment
from tests.support.foreign import Foreign, numbered
from tests.support.held import Held, begun, bodies, denied, put_all
from tests.support.held import told as told_of
from tests.support.mounting import run_sosfs
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.traffic import Request, on

BEFORE = {"a/": b"", "a/x": b"x", "a/y": b"yy", "a/sub/z": b"zzz"}
AFTER = {key.replace("a/", "b/", 1): body for key, body in BEFORE.items()}
MTIME = Properties(Headers("text/plain"), {"mtime": "1700000000.123456789"})


@pytest.fixture
def server(moto: Server) -> Server:
    """One is enough: the proxy makes the trouble."""
    return moto


class Flaky(Held):
    """Copies that take effect and get no answer, or take effect when the test says so."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.silent: set[str] = set()  # sources whose copy is made without an answer
        self.late: dict[str, list[Callable[[], Any]]] = {}  # sources whose copy gets no answer, and is made later
        self.is_away = False
        self.last = ""  # the source whose copy is made before the store is away
        self.fault = self._refuse

    def _refuse(self, operation: str, key: str) -> None:
        if self.is_away:
            raise StoreError(errno.EIO, f"{operation} {key!r}", detail="no connection")

    async def copy(self, source: str, target: str, **options: Any) -> Version:
        if source in self.late:
            self.late[source].append(partial(FakeStore.copy, self, source, target, **options))
            raise StoreError(errno.ETIMEDOUT, f"copy {source!r}")
        made = await super().copy(source, target, **options)
        self.is_away = self.is_away or source == self.last
        if source in self.silent or self.is_away:
            raise StoreError(errno.ETIMEDOUT, f"copy {source!r}")
        return made


@pytest.fixture
def store() -> Flaky:
    """The store of `mount`."""
    return Flaky()


async def fails_to_rename(mount: Composed, *numbers: int) -> None:
    with fails(*numbers):
        await mount.rename("a", "b")


def rows(mount: Composed) -> int:
    """What is in the journal."""

    async def count() -> int:
        return mount._journal.rows

    return mount.loop.run(count)


def told_of_rename(mount: Composed) -> Pending:
    """What `sosfs pending` tells of the one of `a` that is not at its end."""

    async def told() -> Pending:
        (change,) = mount.parts.rollback.changes("")
        return change.pending

    one = mount.loop.run(told)
    assert (one.names, one.since) == ((b"a",), mount.parts.rollback.oldest)
    return one


def keys_of(store: FakeStore) -> list[str]:
    return sorted(store._stored)


@pytest.mark.parametrize("source", ["a/", "a/x", "a/sub/z"])
@pytest.mark.parametrize("how", ["refused", "failed", "failed and made", "silent"])
def test_no_copy_stays_of_a_rename_that_failed(mount: Composed, store: Flaky, source: str, how: str) -> None:
    mount.loop.run(lambda: put_all(store, BEFORE))
    if how == "silent":
        store.silent.add(source)
    else:
        refusal = from_s3("copy", code="AccessDenied", status=403)
        failures = store.unanswered if how == "failed and made" else store.errors
        failures["copy", source] = [refusal if how == "refused" else StoreError(errno.EIO, "copy", status=500)]
    mount.loop.run(lambda: fails_to_rename(mount, errno.EACCES if how == "refused" else errno.EIO, errno.ETIMEDOUT))
    assert bodies(store) == BEFORE
    assert set(mount.loop.run(mount.tree)) == {"a", "a/x", "a/y", "a/sub", "a/sub/z"}
    assert how != "refused" or rows(mount) == 0, "what the server has refused does not come late"
    mount.loop.passes(100)
    assert mount.parts.pending == 0
    assert rows(mount) == 0
    store.silent.clear()
    mount.loop.run(lambda: mount.rename("a", "b"))
    assert bodies(store) == AFTER


@pytest.mark.parametrize("seconds", [0.5, 5, 40])
def test_a_copy_that_takes_effect_late_goes_too(mount: Composed, store: Flaky, seconds: float) -> None:
    mount.loop.run(lambda: put_all(store, BEFORE))
    store.late["a/y"] = []
    mount.loop.run(lambda: fails_to_rename(mount, errno.ETIMEDOUT))
    mount.loop.passes(seconds)
    assert (mount.parts.pending, mount.parts.oldest) == (0, 0.0), "what may come is not there"
    mount.loop.run(store.late.pop("a/y")[0])
    assert keys_of(store) == [*sorted(BEFORE), "b/y"]
    assert set(mount.loop.run(mount.tree)) == {"a", "a/x", "a/y", "a/sub", "a/sub/z"}, "it is not shown meanwhile"
    mount.loop.passes(120)
    assert bodies(store) == BEFORE
    assert rows(mount) == 0


@pytest.mark.parametrize("hashes", [True, False])
@pytest.mark.parametrize("late", ["a/y", "a/"])
def test_a_late_copy_is_found_by_the_next_mount(tmp_path: Path, late: str, hashes: bool) -> None:
    store = Flaky(hashes=hashes)
    with composed(store, tmp_path) as mount:
        mount.loop.run(lambda: put_all(store, BEFORE))
        mount.loop.run(lambda: store.put(late, BEFORE[late], MTIME))
        store.late[late] = []
        mount.loop.run(lambda: fails_to_rename(mount, errno.ETIMEDOUT))
        mount.stop()
        mount.loop.run(store.late.pop(late)[0])
        mount.start()
        assert bodies(store) == BEFORE
        mount.loop.passes(120)
        assert rows(mount) == 0


def test_what_was_made_by_others_under_the_new_name_stays(mount: Composed, store: Flaky) -> None:
    """Another client takes the name while the rename fails, and replaces a copy."""
    mount.loop.run(lambda: put_all(store, BEFORE))
    store.before["copy", "a/y"] = trio.Event()
    store.errors["copy", "a/y"] = [StoreError(errno.EIO, "copy", status=500)]

    async def go() -> None:
        await begun(mount, lambda: fails_to_rename(mount, errno.EIO))
        assert "b/x" in store._stored
        await put_all(store, {"b/x": b"theirs", "b/theirs": b"too"})
        store.before["copy", "a/y"].set()
        await trio.testing.wait_all_tasks_blocked()

    mount.loop.run(go)
    mount.loop.passes(120)
    assert bodies(store) == BEFORE | {"b/x": b"theirs", "b/theirs": b"too"}


def test_what_is_made_here_under_the_new_name_after_the_failure_stays(mount: Composed, store: Flaky) -> None:
    """`mv a b` failed, so the user takes `cp -r`: the same bytes under the same names, which are no copies of ours."""
    mount.loop.run(lambda: put_all(store, BEFORE))
    store.silent.add("a/x")

    async def go() -> None:
        await fails_to_rename(mount, errno.ETIMEDOUT)
        store.silent.clear()
        await mount.mkdir("b")
        for key, body in BEFORE.items():
            if body and key.count("/") == 1:
                await mount.write(key.replace("a/", "b/"), body, flags=os.O_CREAT)

    mount.loop.run(go)
    mount.loop.passes(120)
    assert bodies(store) == BEFORE | {"b/": b"", "b/x": b"x", "b/y": b"yy"}


@pytest.mark.promise(3)
@pytest.mark.parametrize("below", ["", "/x"], ids=["file", "directory"])
def test_what_is_renamed_to_the_new_name_after_the_failure_stays(mount: Composed, store: Flaky, below: str) -> None:
    """It has the bytes of what was to come there, and is no copy of that but the only one of its own."""
    mount.loop.run(lambda: put_all(store, {f"a{below}": b"file", f"c{below}": b"file"}))
    store.silent.add(f"a{below}")

    async def go() -> None:
        await fails_to_rename(mount, errno.ETIMEDOUT)
        store.silent.clear()
        await mount.rename("c", "b")

    mount.loop.run(go)
    mount.loop.passes(120)
    assert bodies(store) == {f"a{below}": b"file", f"b{below}": b"file"}
    assert rows(mount) == 0


def test_what_is_made_in_the_directory_that_was_to_be_replaced_stays(mount: Composed, store: Flaky) -> None:
    """That one is there as before: `cp a/x b/` after `mv -T a b` has failed."""
    mount.loop.run(lambda: put_all(store, BEFORE | {"b/": b""}))
    store.silent.add("a/x")

    async def go() -> None:
        await fails_to_rename(mount, errno.ETIMEDOUT)
        store.silent.clear()
        await mount.write("b/x", b"x", flags=os.O_CREAT)

    mount.loop.run(go)
    mount.loop.passes(120)
    assert bodies(store) == BEFORE | {"b/": b"", "b/x": b"x"}


def test_what_another_client_stores_where_a_copy_may_come_stays(mount: Composed, store: Flaky) -> None:
    mount.loop.run(lambda: put_all(store, BEFORE))
    store.late["a/y"] = []
    mount.loop.run(lambda: fails_to_rename(mount, errno.ETIMEDOUT))
    mount.loop.run(lambda: put_all(store, {"b/y": b"theirs"}))
    mount.loop.passes(120)
    assert bodies(store) == BEFORE | {"b/y": b"theirs"}
    assert rows(mount) == 0


def test_it_is_there_as_soon_as_no_copy_may_come_any_more(mount: Composed, store: Flaky) -> None:
    """However lately the directory above was listed."""
    mount.loop.run(lambda: put_all(store, BEFORE))
    store.late["a/y"] = []
    mount.loop.run(lambda: fails_to_rename(mount, errno.ETIMEDOUT))
    mount.loop.run(lambda: put_all(store, {"b/y": b"theirs"}))
    while mount.parts.rollback._back:
        assert "b" not in mount.loop.run(mount.tree)
        mount.loop.passes(1)
    mount.loop.passes(0.1)
    assert "b/y" in mount.loop.run(mount.tree)


@pytest.mark.parametrize("is_late", [True, False])
def test_the_new_name_is_hidden_until_nothing_may_come_there(mount: Composed, store: Flaky, is_late: bool) -> None:
    """Copies are removed late, another is made late; and then another client takes the name."""
    mount.loop.run(lambda: put_all(store, BEFORE))
    store.late["a/y"] = []
    store.fault = deletes_fail
    mount.loop.run(lambda: fails_to_rename(mount, errno.ETIMEDOUT, errno.EIO))
    mount.loop.passes(20)
    assert "b/x" in store._stored
    assert "b" not in mount.loop.run(mount.tree)
    store.fault = None
    mount.loop.passes(31)
    assert bodies(store) == BEFORE
    late = store.late.pop("a/y")[0]
    if is_late:
        mount.loop.run(late)
    mount.loop.passes(1)
    assert "b" not in mount.loop.run(mount.tree)
    require_name_is_free(mount, store)


def test_the_new_name_is_hidden_while_a_copy_cannot_be_removed(mount: Composed, store: Flaky) -> None:
    """However long that takes, and however often it was looked for."""
    mount.loop.run(lambda: put_all(store, BEFORE))
    store.silent.add("a/y")
    store.fault = deletes_fail
    mount.loop.run(lambda: fails_to_rename(mount, errno.ETIMEDOUT, errno.EIO))
    mount.loop.passes(200)
    assert "b/x" in store._stored
    assert "b" not in mount.loop.run(mount.tree)
    store.fault = None
    require_name_is_free(mount, store)


@pytest.mark.parametrize(("number", "is_told"), [(errno.EIO, True), (errno.EINTR, False)])
def test_a_look_that_ends_with_the_mount_is_no_trouble(
    mount: Composed, store: Flaky, caplog: pytest.LogCaptureFixture, number: int, is_told: bool
) -> None:
    """The end of the mount interrupts what is read in the background, and looks once more itself."""
    mount.loop.run(lambda: put_all(store, BEFORE))
    store.silent.add("a/x")
    mount.loop.run(lambda: fails_to_rename(mount, errno.EIO, errno.ETIMEDOUT))
    store.errors["list", "b/"] = [StoreError(number, "list")]
    mount.loop.passes(100)
    assert not store.errors["list", "b/"]
    assert ("copies of a/ may be left at b/" in caplog.text) == is_told
    assert mount.parts.pending == 0


def test_the_new_name_is_free_again_when_a_copy_without_an_answer_was_removed(mount: Composed, store: Flaky) -> None:
    mount.loop.run(lambda: put_all(store, BEFORE))
    store.silent.add("a/y")
    mount.loop.run(lambda: fails_to_rename(mount, errno.ETIMEDOUT))
    require_name_is_free(mount, store)


def deletes_fail(operation: str, key: str) -> None:
    if operation in ("delete", "delete_many"):
        raise StoreError(errno.EIO, f"{operation} {key!r}", detail="no answer")


def require_name_is_free(mount: Composed, store: Flaky) -> None:
    """In a while nothing is left of the rename, and what another client makes there is shown."""
    mount.loop.passes(120)
    assert bodies(store) == BEFORE
    assert rows(mount) == 0
    mount.loop.run(lambda: put_all(store, {"b/theirs": b"theirs"}))
    mount.loop.passes(2 * TTL)
    assert "b/theirs" in mount.loop.run(mount.tree)


def test_who_waits_for_a_copy_to_go_until_no_more_may_come_gets_the_name(mount: Composed, store: Flaky) -> None:
    mount.loop.run(lambda: put_all(store, BEFORE))
    store.silent.add("a/y")
    told: dict[str, Any] = {}
    store.before["delete"] = store.before["delete_many"] = held = trio.Event()

    async def go() -> None:
        await begun(mount, lambda: told_of(told, "rename", lambda: mount.rename("a", "b")))
        await begun(mount, lambda: told_of(told, "mkdir", lambda: mount.mkdir("b")))

    mount.loop.run(go)
    mount.loop.passes(120)
    assert "mkdir" not in told

    async def release() -> None:
        held.set()

    mount.loop.run(release)
    mount.loop.passes(5)
    assert told["mkdir"] is None
    assert bodies(store) == BEFORE | {"b/": b""}


def test_a_copy_that_is_on_its_way_out_is_not_renamed(mount: Composed, store: Flaky) -> None:
    """It is in the directory that was to be replaced, which is shown as it is."""
    mount.loop.run(lambda: put_all(store, BEFORE | {"b/": b""}))
    store.errors["copy", "a/y"] = [StoreError(errno.EIO, "copy", status=500)]
    store.fault = deletes_fail

    async def go() -> None:
        assert (await mount.tree())["b/x"] == (b"x", 0o644)
        store.fault = None
        with fails(errno.ENOENT):
            await mount.rename("b/x", "c")

    mount.loop.run(lambda: fails_to_rename(mount, errno.EIO))
    mount.loop.passes(2 * TTL)
    mount.loop.run(go)
    mount.loop.passes(120)
    assert bodies(store) == BEFORE | {"b/": b""}


def test_what_is_moved_here_above_the_new_name_after_the_failure_stays(mount: Composed, store: Flaky) -> None:
    """The same as a directory that is renamed to where the new name was to be."""
    mount.loop.run(lambda: put_all(store, {"d/a": b"file", "e/a": b"file", "e/b": b"file"}))
    store.silent.add("d/a")

    async def go() -> None:
        with fails(errno.ETIMEDOUT):
            await mount.rename("d/a", "d/b")
        store.silent.clear()
        await mount.rename("d", "was")
        await mount.rename("e", "d")

    mount.loop.run(go)
    mount.loop.passes(120)
    assert bodies(store) == {"was/": b"", "was/a": b"file", "d/a": b"file", "d/b": b"file"}


def test_a_copy_that_a_user_may_not_remove_either_goes_when_the_next_mount_may(mount: Composed, store: Flaky) -> None:
    """In an empty directory that was to be replaced, and is shown."""

    def refuse(operation: str, key: str) -> None:
        if (operation, key) in (("copy", "a/y"), ("delete", "b/x")):
            raise denied(key)

    mount.loop.run(lambda: put_all(store, BEFORE | {"b/": b""}))
    store.fault = refuse
    mount.loop.run(lambda: fails_to_rename(mount, errno.EACCES))
    mount.loop.passes(2 * TTL)

    async def remove() -> None:
        with fails(errno.EACCES):
            await mount.unlink("b/x")

    mount.loop.run(remove)
    mount.crash()
    store.fault = None
    mount.start()
    mount.loop.passes(200)
    assert bodies(store) == BEFORE | {"b/": b""}


def test_an_empty_directory_that_was_to_be_replaced_stays(mount: Composed, store: Flaky) -> None:
    mount.loop.run(lambda: put_all(store, BEFORE | {"b/": b""}))
    store.silent.add("a/x")
    mount.loop.run(lambda: fails_to_rename(mount, errno.ETIMEDOUT))
    mount.loop.passes(120)
    assert bodies(store) == BEFORE | {"b/": b""}
    assert "b" in mount.loop.run(mount.tree)


def test_so_does_all_that_was_set_of_it(mount: Composed, store: Flaky) -> None:
    """The marker of the one that was to be renamed would take its place, which may let everybody in."""
    marker = Properties(metadata={"mode": str(stat.S_IFDIR | 0o700), "colour": "blue"})
    mount.loop.run(lambda: put_all(store, BEFORE))
    mount.loop.run(lambda: store.put("b/", b"", marker))
    store.errors["copy", "a/sub/z"] = [denied()]
    mount.loop.run(lambda: fails_to_rename(mount, errno.EACCES))
    mount.loop.passes(120)
    assert bodies(store) == BEFORE | {"b/": b""}
    assert store._stored["b/"].object.properties.metadata == marker.metadata
    mount.loop.run(lambda: mount.rename("a", "b"))
    assert "colour" not in store._stored["b/"].object.properties.metadata, "it is the other one's then"


@pytest.mark.parametrize("then", ["crash", "unmount"])
def test_so_it_does_where_the_next_mount_looks_for_copies(mount: Composed, store: Flaky, then: str) -> None:
    """Its marker is like that of the other one."""
    mount.loop.run(lambda: put_all(store, BEFORE | {"b/": b""}))
    store.late["a/y"] = []
    mount.loop.run(lambda: fails_to_rename(mount, errno.ETIMEDOUT))
    if then == "crash":
        mount.crash()
    else:
        mount.stop()
    mount.loop.run(store.late.pop("a/y")[0])
    mount.start()
    mount.loop.passes(120)
    assert bodies(store) == BEFORE | {"b/": b""}
    assert "b" in mount.loop.run(mount.tree)


def test_the_new_name_is_hidden_while_copies_of_a_refused_rename_cannot_be_removed(
    mount: Composed, store: Flaky
) -> None:
    """None of them is in doubt."""
    mount.loop.run(lambda: put_all(store, BEFORE))
    store.errors["copy", "a/y"] = [from_s3("copy", code="AccessDenied", status=403)]
    store.fault = deletes_fail
    mount.loop.run(lambda: fails_to_rename(mount, errno.EACCES))
    mount.loop.passes(20)
    assert "b/x" in store._stored
    assert "b" not in mount.loop.run(mount.tree)
    store.fault = None
    require_name_is_free(mount, store)


@pytest.mark.parametrize("what", ["file", "directory"])
def test_nothing_is_made_there_while_copies_of_a_directory_without_marker_go(
    mount: Composed, store: Flaky, what: str
) -> None:
    """They would be shown in the directory, or the file beside one of its name."""
    outcomes: dict[str, Any] = {}
    make = {"file": partial(mount.write, "b", b"new", flags=os.O_CREAT), "directory": partial(mount.mkdir, "b")}[what]

    async def go() -> None:
        await put_all(store, {"a/x": b"x", "a/y": b"y"})
        store.errors["copy", "a/y"] = [denied("copy")]
        going = store.before["delete", "b/x"] = trio.Event()
        await begun(mount, lambda: told_of(outcomes, "rename", lambda: mount.rename("a", "b")))
        await begun(mount, lambda: told_of(outcomes, "make", make))
        assert outcomes == {}
        going.set()

    mount.loop.run(go)
    mount.loop.passes(5)
    assert outcomes == {"rename": repr(denied("copy")), "make": None}
    assert bodies(store) == {"a/x": b"x", "a/y": b"y"} | ({"b": b"new"} if what == "file" else {"b/": b""})


@pytest.mark.promise(3)
@pytest.mark.parametrize("how", ["its source is renamed", "the directory that it is in is renamed"])
@pytest.mark.parametrize("below", ["", "/x"], ids=["file", "directory"])
def test_a_copy_that_was_not_found_yet_goes_though_then(mount: Composed, store: Flaky, how: str, below: str) -> None:
    """The store was away when it was looked for, and is back when the user takes another name."""
    into = "c" if how == "its source is renamed" else "d/a"
    store.errors["list", f"{into}/"] = store.errors["head", into] = [StoreError(errno.EIO, "no connection")]
    store.silent.add(f"a{below}")

    async def go() -> None:
        await put_all(store, {f"a{below}": b"file", "d/": b"", "d/other": b"other"})
        with fails(errno.ETIMEDOUT):
            await mount.rename("a", into)
        store.silent.clear()
        await mount.rename(*(("a", "b") if into == "c" else ("d", "e")))

    mount.loop.run(go)
    mount.loop.passes(120)
    name, folder = ("b", "d") if into == "c" else ("a", "e")
    assert bodies(store) == {f"{name}{below}": b"file", f"{folder}/": b"", f"{folder}/other": b"other"}
    assert rows(mount) == 0


@pytest.mark.promise(3)
def test_a_copy_that_another_client_makes_of_a_file_whose_own_was_refused_stays(mount: Composed, store: Flaky) -> None:
    """Beside one that got no answer, and is looked for."""
    store.late["a/x"] = []
    store.errors["copy", "a/y"] = [denied("copy")]

    async def go() -> None:
        await put_all(store, BEFORE)
        await fails_to_rename(mount, errno.ETIMEDOUT, errno.EACCES)
        await store.late.pop("a/x")[0]()
        await put_all(store, {"b/y": BEFORE["a/y"]})

    mount.loop.run(go)
    mount.loop.passes(120)
    assert bodies(store) == BEFORE | {"b/y": BEFORE["a/y"]}


def test_who_takes_the_name_is_told_of_no_refusal_of_a_name_that_begins_alike(mount: Composed, store: Flaky) -> None:
    def refuse(operation: str, key: str) -> None:
        if (operation, key) == ("delete", "bc"):
            raise denied(key)

    async def go() -> None:
        await put_all(store, dict.fromkeys(("a", "bc", "other"), b""))
        await mount.unlink("other")
        await mount.unlink("bc")
        store.late["a"] = []
        await fails_to_rename(mount, errno.ETIMEDOUT)
        await mount.mkdir("b")

    store.fault = refuse
    mount.loop.run(go)
    store.fault = None
    mount.loop.passes(LONG)
    assert bodies(store) == {"a": b"", "b/": b""}


def test_where_nobody_answers_about_a_copy_its_source_stays_and_all_else_is_renamed(
    mount: Composed, store: Flaky
) -> None:
    store.errors["head", "c"] = [StoreError(errno.EIO, "no connection")] * 2
    store.silent.add("a")

    async def go() -> None:
        await put_all(store, {"a": b"file", "other": b"other"})
        with fails(errno.ETIMEDOUT):
            await mount.rename("a", "c")
        await mount.rename("other", "moved")
        with fails(errno.EIO):
            await mount.rename("a", "b")

    mount.loop.run(go)
    mount.loop.passes(120)
    assert bodies(store) == {"a": b"file", "moved": b"other"}
    assert rows(mount) == 0


def test_where_nobody_may_look_for_a_copy_its_source_is_renamed_all_the_same(mount: Composed, store: Flaky) -> None:
    def refuse(operation: str, key: str) -> None:
        if (operation, key) == ("head", "c"):
            raise denied(key)

    async def go() -> None:
        await put_all(store, {"a": b"file"})
        store.silent.add("a")
        with fails(errno.ETIMEDOUT):
            await mount.rename("a", "c")
        store.silent.clear()
        await mount.rename("a", "b")

    store.fault = refuse
    mount.loop.run(go)
    assert bodies(store) == {"b": b"file", "c": b"file"}
    store.fault = None


@pytest.mark.parametrize("then", ["comes back", "unmount", "crash"])
def test_while_the_store_is_away_it_is_pending(mount: Composed, store: Flaky, then: str) -> None:
    """Neither the copies that are known nor those that are not can be removed: that is counted, and recorded."""
    mount.loop.run(lambda: put_all(store, BEFORE))
    store.last = "a/y"
    store.before["copy", "a/y"] = trio.Event()

    async def go() -> None:
        await begun(mount, lambda: fails_to_rename(mount, errno.EIO, errno.ETIMEDOUT))
        store.before.pop(("copy", "a/y")).set()
        await trio.testing.wait_all_tasks_blocked()

    mount.loop.run(go)
    assert mount.parts.pending >= 4
    mount.loop.passes(100)
    assert mount.parts.pending >= 4, "a minute is not enough"
    assert "copies of a/ at b/: list 'b/': Input/output error (no connection)" in mount.parts.waiting
    one = told_of_rename(mount)
    assert "at b/: no connection" in one.error
    assert one.retry_at > time.time()
    if then == "crash":
        mount.crash()
    elif then == "unmount":
        mount.loop.run(mount.parts.drain)
        assert mount.parts.pending >= 4
        mount._end()
    store.is_away, store.last = False, ""
    if then == "comes back":
        mount.loop.passes(100)
    else:
        mount.start()
    assert bodies(store) == BEFORE
    assert mount.parts.pending == 0
    mount.loop.run(lambda: mount.rename("a", "b"))
    assert bodies(store) == AFTER


def test_a_crash_before_all_copies_are_there_is_taken_back(mount: Composed, store: Flaky) -> None:
    mount.loop.run(lambda: put_all(store, BEFORE))
    mount.loop.run(lambda: mount.chmod("a/x", 0o600))
    store.before["copy", "a/y"] = trio.Event()
    mount.loop.run(lambda: begun(mount, lambda: mount.rename("a", "b")))
    assert "b/x" in store._stored
    mount.crash()
    store.before.clear()
    mount.start()
    assert bodies(store) == BEFORE
    assert mount.loop.run(mount.tree)["a/x"] == (b"x", 0o600)


@pytest.mark.parametrize("hashes", [True, False])
def test_a_copy_with_attributes_that_its_source_lacks_goes_after_a_crash(tmp_path: Path, hashes: bool) -> None:
    """They were acknowledged, and the file was written to since: the copy has a time that is in no record of them."""
    store = Flaky(hashes=hashes)
    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(lambda: put_all(store, {"a": b"file"}))

        async def go() -> None:
            await mount.chmod("a", 0o600)
            await mount.write("a", b"more", at=4)
            store.after["copy", "a"] = trio.Event()
            await begun(mount, lambda: mount.rename("a", "b"))

        mount.loop.run(go)
        assert bodies(store) == {"a": b"file", "b": b"file"}
        assert "mode" in store._stored["b"].object.properties.metadata
        mount.crash()
        store.after.clear()
        mount.start()
        assert keys_of(store) == ["a"]
        mount.loop.passes(5)
        mount.loop.run(mount.settle)
        assert mount.loop.run(mount.tree) == {"a": (b"filemore", 0o600)}


def test_a_refusal_on_the_way_back_does_not_keep_it_from_mounting(mount: Composed, store: Flaky) -> None:
    mount.loop.run(lambda: put_all(store, BEFORE))
    store.before["copy", "a/y"] = trio.Event()
    mount.loop.run(lambda: begun(mount, lambda: mount.rename("a", "b")))
    mount.crash()
    store.before.clear()

    def refuse(operation: str, key: str) -> None:
        if operation == "head" and key.startswith("b/"):
            raise from_s3(f"head {key!r}", code="AccessDenied", status=403)

    store.fault = refuse
    mount.start()
    assert mount.parts.pending == 1
    store.fault = None
    mount.loop.passes(100)
    assert bodies(store) == BEFORE
    assert mount.parts.pending == 0


def test_a_crash_while_the_old_keys_go_is_finished(mount: Composed, store: Flaky) -> None:
    store._clock = lambda: 1_000_000_000
    mount.loop.run(lambda: put_all(store, BEFORE))
    store._clock = time.time  # of what is as old as its copy nobody knows whether that has all of it
    store.before["delete_many", "a/sub/z"] = trio.Event()
    mount.loop.run(lambda: begun(mount, lambda: mount.rename("a", "b")))
    mount.crash()
    store.before.clear()
    del store._stored["a/x"]  # one was removed before the crash
    mount.loop.run(lambda: store.put("a/sub/new", b"theirs", NOTHING))
    copies = store.calls["copy"]
    mount.start()
    assert bodies(store) == AFTER | {"b/sub/new": b"theirs"}
    assert store.calls["copy"] == copies + 1, "what was copied is not copied again"


@pytest.mark.parametrize("kept", ["a/sub/z", "a"])
def test_an_old_key_that_the_next_mount_may_not_remove_stays_pending(mount: Composed, store: Flaky, kept: str) -> None:
    """The rename is finished, for all copies are there; its old name is not shown again meanwhile."""
    before = BEFORE if "/" in kept else {"a": b"file"}
    after = AFTER if "/" in kept else {"b": b"file"}
    mount.loop.run(lambda: put_all(store, before))
    store.before["delete_many" if "/" in kept else "delete", kept] = trio.Event()
    mount.loop.run(lambda: begun(mount, lambda: mount.rename("a", "b")))
    mount.crash()
    store.before.clear()

    def refuse(operation: str, key: str) -> None:
        if (operation, key) == ("delete", kept):
            raise from_s3(f"delete {key!r}", code="AccessDenied", status=403)

    store.fault = refuse
    mount.start()
    assert bodies(store) == after | {kept: before[kept]}
    assert {path.partition("/")[0] for path in mount.loop.run(mount.tree)} == {"b"}
    assert mount.parts.pending == (2 if "/" in kept else 1), "and a directory's marker goes last"
    assert any(kept in line for line in mount.parts.waiting)
    store.fault = None
    mount.loop.passes(100)
    assert bodies(store) == after
    assert mount.parts.pending == 0


def test_an_unmount_in_the_midst_takes_it_back(mount: Composed, store: Flaky) -> None:
    mount.loop.run(lambda: put_all(store, BEFORE))
    store.before["copy", "a/y"] = trio.Event()
    scope = trio.CancelScope()

    async def go() -> None:
        async def rename() -> None:
            with scope:
                await mount.rename("a", "b")

        await begun(mount, rename)
        assert "b/x" in store._stored
        scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        store.before.clear()

    mount.loop.run(go)
    mount.stop()
    assert bodies(store) == BEFORE
    mount.start()


@pytest.mark.promise(3)
def test_an_unmount_while_the_old_keys_go_loses_nothing(mount: Composed, store: Flaky) -> None:
    """They are gone, and the rename is cut short before it is told so."""
    mount.loop.run(lambda: put_all(store, BEFORE))
    store.after["delete_many", "a/sub/z"] = trio.Event()
    scope = trio.CancelScope()

    async def go() -> None:
        async def rename() -> None:
            with scope:
                await mount.rename("a", "b")

        await begun(mount, rename)
        scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        store.after.clear()
        await mount.parts.drain()

    mount.loop.run(go)
    assert bodies(store) == AFTER
    assert mount.parts.pending == 1
    assert mount.parts.waiting == ["rename of a/ to b/: the next mount finishes it"]
    assert told_of_rename(mount).error == "rename to b/: the next mount finishes it"
    mount._end()
    mount.start()
    assert bodies(store) == AFTER
    assert set(mount.loop.run(mount.tree)) == {"b", "b/x", "b/y", "b/sub", "b/sub/z"}


@pytest.mark.parametrize("how", ["silent", "late"])
def test_no_copy_of_a_file_stays(mount: Composed, store: Flaky, how: str) -> None:
    mount.loop.run(lambda: put_all(store, {"a": b"file"}))
    if how == "silent":
        store.silent.add("a")
    else:
        store.late["a"] = []
    mount.loop.run(lambda: fails_to_rename(mount, errno.ETIMEDOUT))
    if how == "late":
        mount.loop.passes(3)
        mount.loop.run(store.late.pop("a")[0])
    mount.loop.passes(120)
    assert bodies(store) == {"a": b"file"}
    store.silent.clear()
    mount.loop.run(lambda: mount.rename("a", "b"))
    assert bodies(store) == {"b": b"file"}


@pytest.mark.parametrize("over", [False, True])
def test_a_crash_in_the_rename_of_a_file_leaves_one_name(mount: Composed, store: Flaky, over: bool) -> None:
    """A copy that stands over another file cannot be taken back."""
    mount.loop.run(lambda: put_all(store, {"a": b"file"} | ({"b": b"other"} if over else {})))
    store.after["copy", "a"] = trio.Event()
    mount.loop.run(lambda: begun(mount, lambda: mount.rename("a", "b")))
    assert bodies(store) == {"a": b"file", "b": b"file"}
    mount.crash()
    store.after.clear()
    mount.start()
    assert bodies(store) == ({"b": b"file"} if over else {"a": b"file"})


@pytest.mark.parametrize("theirs", ["it is gone", "its attributes are others"])
def test_so_it_is_where_another_client_has_changed_what_was_replaced(
    mount: Composed, store: Flaky, theirs: str
) -> None:
    """Without it there is nothing to finish; with other attributes it has the bytes of the copy all the same."""
    mount.loop.run(lambda: put_all(store, {"a": b"file", "b": b"other"}))
    where = store.before if theirs == "it is gone" else store.after
    where["copy", "a"] = trio.Event()
    mount.loop.run(lambda: begun(mount, lambda: mount.rename("a", "b")))
    mount.crash()
    where.clear()
    if theirs == "it is gone":
        mount.loop.run(lambda: store.delete("b"))
    else:
        mount.loop.run(lambda: store.put("b", b"file", MTIME))
    mount.start()
    assert bodies(store) == {"a" if theirs == "it is gone" else "b": b"file"}


@pytest.mark.promise(3)
@pytest.mark.parametrize("crashes", [False, True])
def test_a_copy_that_another_client_makes_after_a_rename_was_refused_stays(
    mount: Composed, store: Flaky, crashes: bool
) -> None:
    """What was refused does not come late, so that nothing is looked for."""
    mount.loop.run(lambda: put_all(store, {"a": b"file"}))
    store.errors["copy", "a"] = [from_s3("copy", code="AccessDenied", status=403)]
    mount.loop.run(lambda: fails_to_rename(mount, errno.EACCES))
    mount.loop.run(lambda: put_all(store, {"b": b"file"}))
    if crashes:
        mount.crash()
        mount.start()
    mount.loop.passes(100)
    assert bodies(store) == {"a": b"file", "b": b"file"}


def cut_before_its_copy(mount: Composed, store: Flaky) -> None:
    """A crash in the rename of a file, before its copy was made, and the next mount, that takes it back."""
    store.before["copy", "a"] = trio.Event()
    mount.loop.run(lambda: begun(mount, lambda: mount.rename("a", "b")))
    mount.crash()
    store.before.clear()
    mount.start()


@pytest.mark.promise(3)
@pytest.mark.parametrize("then", ["rename", "unlink"])
def test_what_is_set_after_a_rename_was_taken_back_survives_another_crash(
    mount: Composed, store: Flaky, then: str
) -> None:
    """That the old name is gone by then is the user's doing, and says nothing of the rename."""
    mount.loop.run(lambda: put_all(store, {"a": b"file", "b": b"other"}))
    cut_before_its_copy(mount, store)

    async def go() -> None:
        inode = await mount._walk("b")
        inode.mode = 0o100600
        mount.parts.attributes.changed(inode)
        if then == "rename":
            await mount.rename("a", "c")
        else:
            await mount.unlink("a")

    mount.loop.run(go)
    mount.crash()
    mount.start()
    left = {"c": (b"file", 0o644)} if then == "rename" else {}
    assert mount.loop.run(mount.tree) == {"b": (b"other", 0o600)} | left


@pytest.mark.promise(3)
def test_a_copy_that_the_user_makes_after_a_rename_was_taken_back_costs_no_original(
    mount: Composed, store: Flaky
) -> None:
    mount.loop.run(lambda: put_all(store, {"a": b"file", "b": b"old!"}))
    cut_before_its_copy(mount, store)
    mount.loop.run(lambda: mount.write("b", b"file"))
    mount.crash()
    mount.start()
    assert bodies(store) == {"a": b"file", "b": b"file"}


@pytest.mark.promise(3)
def test_so_does_one_that_another_client_makes_where_a_file_was_to_be_replaced(mount: Composed, store: Flaky) -> None:
    mount.loop.run(lambda: put_all(store, {"a": b"file", "b": b"old!"}))
    cut_before_its_copy(mount, store)
    mount.loop.run(lambda: put_all(store, {"b": b"file"}))
    mount.crash()
    mount.start()
    mount.loop.passes(120)
    assert bodies(store) == {"a": b"file", "b": b"file"}


@pytest.mark.parametrize(("new", "made"), [("b", "bc"), ("bc", "b")])
@pytest.mark.parametrize("below", ["", "/x"], ids=["file", "directory"])
def test_what_is_made_under_a_name_that_begins_alike_lets_no_late_copy_stay(
    mount: Composed, store: Flaky, below: str, new: str, made: str
) -> None:
    store.late[f"a{below}"] = []

    async def go() -> None:
        await put_all(store, {f"a{below}": b"file"})
        with fails(errno.ETIMEDOUT):
            await mount.rename("a", new)
        await mount.write(made, b"made", flags=os.O_CREAT)
        await store.late.pop(f"a{below}")[0]()

    mount.loop.run(go)
    mount.loop.passes(120)
    assert bodies(store) == {f"a{below}": b"file", made: b"made"}
    assert rows(mount) == 0


@pytest.mark.parametrize("seconds", [0, 40])
def test_a_copy_that_comes_long_after_the_next_mount_has_begun_goes_too(
    mount: Composed, store: Flaky, seconds: int
) -> None:
    mount.loop.run(lambda: put_all(store, {"a": b"file"}))
    cut_before_its_copy(mount, store)
    mount.loop.passes(seconds)
    mount.loop.run(lambda: put_all(store, {"b": b"file"}))
    mount.loop.passes(120)
    assert bodies(store) == {"a": b"file"}
    assert rows(mount) == 0


def test_a_mount_does_not_begin_where_nobody_can_tell_which_copies_there_are(mount: Composed, store: Flaky) -> None:
    mount.loop.run(lambda: put_all(store, BEFORE))
    store.before["copy", "a/y"] = trio.Event()
    mount.loop.run(lambda: begun(mount, lambda: mount.rename("a", "b")))
    mount.crash()
    store.before.clear()
    store.errors["list", "b/"] = [StoreError(errno.EIO, "list", detail="no answer")]
    with pytest.raises(OSError, match="cannot be finished"):
        mount.start()
    mount.crash()
    mount.start()
    assert bodies(store) == BEFORE


@pytest.mark.promise(3)
@pytest.mark.parametrize("cut", ["by a crash", "by an error"])
def test_a_new_file_under_the_old_name_stays_there_though_the_copy_came_late(
    tmp_path: Path, store: Flaky, cut: str
) -> None:
    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(lambda: put_all(store, {"a": b"file"}))
        if cut == "by a crash":
            cut_before_its_copy(mount, store)
        else:
            store.late["a"] = []
            mount.loop.run(lambda: fails_to_rename(mount, errno.ETIMEDOUT))

        async def go() -> None:
            await mount.unlink("a")
            await mount.parts.deletions.wait_for("a")
            await mount.write("a", b"new", flags=os.O_CREAT)
            await store.put("b", b"file", NOTHING)

        mount.loop.run(go)
        mount.crash()
        mount.start()
        mount.loop.run(mount.settle)
        assert bodies(store) == {"a": b"new", "b": b"file"}


# On a mount

STUCK = "new/f0007"
FAULTS = {
    "403": (Answer(403, "AccessDenied"), (errno.EACCES,)),
    "lost": (LOST["500"], FAILED),
    "hang": (Hang(Moment.AFTER), FAILED),
}


def in_old(request: Request) -> bool:
    """Whether a request is about what is to be renamed, or was."""
    return request.op in ("DELETE", "DELETE_MANY") or (request.op == "LIST" and request.query.get("prefix") == "new/")


def test_a_directory_rename_that_fails_leaves_no_half_copy(frail: Drive, foreign: Foreign, proxy: Proxy) -> None:
    files = numbered("old/f", 20)
    foreign.put_all(files | {"old/": b""})
    for action, numbers in FAULTS.values():
        with proxy.broken(action, on("COPY", key=STUCK)), fails(*numbers):
            (frail.here / "old").rename(frail.here / "new")
        assert names(frail.here) == ["d", "old"], action
        eventually(lambda: foreign.keys("new") == [])
        assert foreign.files("old/") == sorted(files), action
    (frail.here / "old").rename(frail.here / "new")
    assert foreign.keys("old") == []
    assert len(tree(frail.here / "new")) == 20


def test_what_cannot_be_taken_back_is_told_and_done_by_the_next_mount(
    frail: Drive, foreign: Foreign, proxy: Proxy
) -> None:
    files = numbered("old/f", 20)
    foreign.put_all(files)
    proxy.inject(LOST["500"], on("COPY", key=STUCK))
    proxy.inject(Answer(503, "SlowDown"), in_old)
    with fails(*FAILED):
        (frail.here / "old").rename(frail.here / "new")
    assert len(foreign.files("new/")) == 20
    assert status(frail).pending_files >= 20
    done = run_sosfs(["umount", frail.mount.path], frail.mount.environment)
    assert done.returncode == 3, done.stderr
    proxy.heal()
    frail.mount.clear()
    frail.mount.start()
    assert foreign.keys("new") == []
    assert foreign.files("old/") == sorted(files)
    assert names(frail.here) == ["d", "old"]
    assert status(frail).pending_files == 0
    frail.mount.stop()


@pytest.mark.promise(3)
@pytest.mark.parametrize("end", ["kill", "terminate"])
def test_a_daemon_that_ends_in_the_midst(mounter: Mounter, foreign: Foreign, proxy: Proxy, end: str) -> None:
    files = numbered("old/f", 20)
    foreign.put_all(files)
    drive = mounter(proxy.endpoint, *HURRY)
    drive.mount.allow_log("WARNING|ERROR")
    names(drive.here)
    proxy.inject(Hang(Moment.AFTER), on("COPY", key=STUCK))
    failed: list[int | None] = []

    def rename() -> None:
        try:
            (drive.here / "old").rename(drive.here / "new")
        except OSError as error:
            failed.append(error.errno)

    renaming = threading.Thread(target=rename)
    renaming.start()
    eventually(lambda: len(foreign.files("new/")) == 20)
    if end == "kill":
        drive.mount.kill()
    else:
        drive.mount.terminate()
    renaming.join()
    assert failed
    proxy.heal()
    proxy.drop_connections()
    if end == "terminate":
        assert foreign.keys("new") == []
    drive.mount.start()
    assert foreign.keys("new") == []
    assert names(drive.here) == ["old"]
    assert sorted(tree(drive.here / "old").values()) == sorted(files.values())
