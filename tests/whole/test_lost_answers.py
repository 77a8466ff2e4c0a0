"""Answers that are lost: what the server did and the client was not told must become neither a loss nor a conflict."""

from __future__ import annotations

import contextlib
import errno
import os
import random
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from sosfs.config.parameters import Durability
from sosfs.errors import StoreError
from sosfs.s3.protocol import Properties
from tests.conftest import LARGE
from tests.support.composed import Composed, composed
from tests.support.drive import Drive, attempt, digest, eventually, fails, names, sync
from tests.support.fake_store import FakeStore
from tests.support.faults import FAILED, LOST, PASSING, Action, Hang, Moment
from tests.support.foreign import Foreign
from tests.support.held import begun, bodies, closed, stored
from tests.support.proxy import Proxy
from tests.support.traffic import on

MIB = 1 << 20
LOOKS = ("HEAD", "LIST")
UPLOADS = ("PUT", "CREATE_MULTIPART", "UPLOAD_PART", "COMPLETE")


@pytest.mark.parametrize("fault", LOST)
def test_a_lost_answer_to_a_write_is_neither_a_failure_nor_a_conflict(
    frail: Drive, foreign: Foreign, proxy: Proxy, fault: str
) -> None:
    names(frail.here / "d")
    rule = proxy.inject(LOST[fault], on("PUT"), times=1)
    (frail.here / "d" / "new").write_bytes(b"new")
    assert rule.hits == 1
    rule = proxy.inject(LOST[fault], on("PUT"), times=1)
    (frail.here / "d" / "other").write_bytes(b"other, rewritten")
    assert rule.hits == 1
    rule = proxy.inject(LOST[fault], on("COMPLETE"), times=1)
    (frail.here / "d" / "large").write_bytes(LARGE[::-1])
    assert rule.hits == 1
    assert foreign.files() == ["d/large", "d/new", "d/other", "d/small"]
    assert foreign.get("d/new") == b"new"
    assert foreign.get("d/other") == b"other, rewritten"
    assert digest(foreign.get("d/large")) == digest(LARGE[::-1])


@pytest.mark.parametrize("fault", LOST)
def test_a_lost_answer_to_a_rename_or_removal(frail: Drive, foreign: Foreign, proxy: Proxy, fault: str) -> None:
    for operation in ("COPY", "DELETE", "DELETE_MANY"):
        proxy.inject(LOST[fault], on(operation), times=1)
    (frail.here / "d" / "small").rename(frail.here / "d" / "moved")
    (frail.here / "d" / "other").unlink()
    assert names(frail.here / "d") == ["large", "moved"]
    eventually(lambda: foreign.files() == ["d/large", "d/moved"])
    assert foreign.get("d/moved") == b"small" * 1000


def test_a_write_that_took_place_in_spite_of_its_failure_is_no_conflict(
    frail: Drive, foreign: Foreign, proxy: Proxy
) -> None:
    names(frail.here / "d")
    for name in ("new", "other"):  # one is made, one rewritten
        path = frail.here / "d" / name
        with proxy.broken(LOST["500"], on("PUT")):
            file = path.open("wb", buffering=0)
            file.write(b"stored, but not known to be")
            with fails(*FAILED):
                file.close()
        assert foreign.get(f"d/{name}") == b"stored, but not known to be"
        path.write_bytes(b"written over that")
        assert foreign.get(f"d/{name}") == b"written over that"
    assert foreign.files() == ["d/large", "d/new", "d/other", "d/small"]


def test_a_large_write_that_took_place_in_spite_of_its_failure_is_no_conflict(
    frail: Drive, foreign: Foreign, proxy: Proxy
) -> None:
    names(frail.here / "d")
    path = frail.here / "d" / "large"
    with proxy.broken(LOST["500"], on("COMPLETE")):
        attempt(lambda: path.write_bytes(LARGE[::-1]))  # what is not told may be found out
    sync(path)
    assert digest(foreign.get("d/large")) == digest(LARGE[::-1])
    with path.open("ab") as appended:
        appended.write(b"tail")
    assert digest(foreign.get("d/large")) == digest(LARGE[::-1] + b"tail")
    assert foreign.files() == ["d/large", "d/other", "d/small"]


def test_no_answer_at_all_to_a_write(frail: Drive, foreign: Foreign, proxy: Proxy) -> None:
    path = frail.here / "d" / "other"
    names(frail.here / "d")
    proxy.inject(Hang(Moment.AFTER), on("PUT"), times=1)
    attempt(lambda: path.write_bytes(b"other, rewritten"))
    sync(path)
    assert foreign.get("d/other") == b"other, rewritten"
    with path.open("ab") as file:
        file.write(b" again")
    assert foreign.get("d/other") == b"other, rewritten again"
    assert foreign.files() == ["d/large", "d/other", "d/small"]


def test_no_answer_at_all_to_a_rename(frail: Drive, foreign: Foreign, proxy: Proxy) -> None:
    source, target = frail.here / "d" / "small", frail.here / "d" / "moved"
    names(frail.here / "d")
    proxy.inject(Hang(Moment.AFTER), on("COPY"), times=1)
    if not attempt(lambda: source.rename(target)):
        assert source.read_bytes() == b"small" * 1000
        source.rename(target)
    assert target.read_bytes() == b"small" * 1000
    assert names(frail.here / "d") == ["large", "moved", "other"]
    eventually(lambda: foreign.files() == ["d/large", "d/moved", "d/other"])
    assert foreign.get("d/moved") == b"small" * 1000


class Late(FakeStore):
    """As many writes as `silent` says get no answer; they take effect just before the next that gets one."""

    def __init__(self, *, hashes: bool) -> None:
        super().__init__(hashes=hashes)
        self.silent = 0
        self._late: list[tuple[Any, Any]] = []

    async def put(self, *arguments: Any, **options: Any) -> Any:
        if self.silent:
            self.silent -= 1
            self._late.append((arguments, options))
            raise StoreError(errno.ETIMEDOUT, "put", detail="made by the test")
        while self._late:
            before, its_options = self._late.pop(0)
            with contextlib.suppress(StoreError):
                await super().put(*before, **its_options)
        return await super().put(*arguments, **options)


@pytest.mark.parametrize("texts", [(b"one", b"one"), (b"one", b"two"), (b"one", b"two", b"three")])
@pytest.mark.parametrize("before", [{}, {"file": b"old"}], ids=["new", "rewritten"])
@pytest.mark.parametrize("hashes", [True, False])
def test_a_write_that_takes_effect_late_is_no_conflict(
    tmp_path: Path, texts: tuple[bytes, ...], before: dict[str, bytes], hashes: bool
) -> None:
    """The server stood still: what it was asked meanwhile is done when it goes on, after the retry has looked."""
    store = Late(hashes=hashes)

    async def main(mount: Composed) -> None:
        for key, body in before.items():
            await store.put(key, body, Properties())
        handle = await mount._opened(mount.parts.inodes.root, b"file", os.O_CREAT | os.O_RDWR)
        store.silent = len(texts) - 1
        for text in texts[:-1]:
            await mount.parts.file_io.write(handle, 0, text)
            with fails(errno.ETIMEDOUT):
                await mount.parts.file_io.flush(handle)
        if texts[-1] != texts[-2]:
            await mount.parts.file_io.write(handle, 0, texts[-1])
        await closed(mount, handle)

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))
        assert bodies(store) == {"file": texts[-1]}


@pytest.mark.parametrize("hashes", [True, False])
def test_a_write_that_took_effect_late_is_no_conflict_for_the_next_mount(tmp_path: Path, hashes: bool) -> None:
    """The process ends while what was written since is on its way, to be put in the place of that."""

    class Hanging(Late):
        puts = -1

        async def put(self, *arguments: Any, **options: Any) -> Any:
            self.puts += self.puts >= 0
            if self.puts == 3:
                await trio.sleep_forever()
            return await super().put(*arguments, **options)

    store = Hanging(hashes=hashes)

    async def main(mount: Composed) -> None:
        await store.put("file", b"old", Properties())
        store.puts, store.silent = 0, 1
        await mount.write("file", b"one")
        inode = await mount._walk("file")
        with fails(errno.ETIMEDOUT):
            await mount.parts.commits.commit(inode)
        await mount.write("file", b"two")
        await begun(mount, partial(mount.parts.commits.commit, inode))
        assert (store.puts, stored(store)) == (3, b"one")

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(main, mount))
        mount.crash()
        store.puts = -1
        mount.take_up()
        assert bodies(store) == {"file": b"two"}


@pytest.mark.parametrize("hashes", [True, False])
def test_a_conflict_after_a_write_without_an_answer_is_one(tmp_path: Path, hashes: bool) -> None:
    store = Late(hashes=hashes)

    async def main(mount: Composed) -> None:
        await store.put("file", b"old", Properties())
        store.silent = 1
        with fails(errno.ETIMEDOUT):
            await mount.write("file", b"our")
        await FakeStore.put(store, "file", b"foreign", Properties())
        with fails(errno.ESTALE):
            await mount.parts.commits.commit(await mount._walk("file"))

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))
        found = bodies(store)
        assert found.pop("file") == b"foreign"
        assert list(found.values()) == [b"our"]


@pytest.mark.parametrize("seed", range(2))
def test_in_a_storm_what_was_acknowledged_is_true(frail: Drive, foreign: Foreign, proxy: Proxy, seed: int) -> None:
    dice = random.Random(seed)
    names(frail.here / "d")
    storm: list[Action] = [*LOST.values(), *PASSING.values()]
    for number, action in enumerate(storm):
        proxy.inject(action, chance=0.05, seed=seed * 100 + number)
    possible: dict[str, set[bytes]] = {}
    for number in range(50):
        name = f"f{dice.randrange(12)}"
        path, body = frail.here / "d" / name, b"%d " % number * dice.randrange(1, 20_000)
        before = possible.get(name, set())
        if attempt(lambda path=path, body=body: path.write_bytes(body)):  # type: ignore[misc]
            possible[name] = {body}
        else:  # the old bytes, the new ones, or none where the file was only just truncated
            possible[name] = before | {body, b""}
        seen: list[bytes] = []
        attempt(lambda path=path, seen=seen: seen.append(path.read_bytes()))  # type: ignore[misc]
        assert possible[name].issuperset(seen)
    proxy.heal()
    for name, texts in possible.items():
        if (frail.here / "d" / name).exists():
            assert (frail.here / "d" / name).read_bytes() in texts
    frail.mount.stop()
    for name, texts in possible.items():
        if len(texts) == 1:
            assert foreign.get(f"d/{name}") in texts, name
    assert [key for key in foreign.files() if "conflict" in key] == []
