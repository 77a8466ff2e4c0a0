"""Servers that do not copy what has no bytes: a rename loses neither directories nor empty files there.

SeaweedFS answers NoSuchKey where a directory's marker is to be copied. Others may refuse, or say that they did it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sosfs.errors import from_s3
from sosfs.s3.protocol import Acl, Grant, Headers, Properties, Version
from tests.conftest import HURRY, Mounter
from tests.support.composed import Composed, composed
from tests.support.drive import eventually, fails, names, tree
from tests.support.fake_store import FakeStore
from tests.support.faults import Answer
from tests.support.foreign import Foreign
from tests.support.held import bodies, chmod, crashes_while_old_keys_go, put_all
from tests.support.proxy import Proxy
from tests.support.traffic import Request

MARKED = Properties(Headers("application/x-directory"), {"mode": str(0o040750), "uid": "7", "mtime": "1700000000.5"})
SHARED = Acl("owner", (Grant("owner", "FULL_CONTROL"), Grant("friend", "READ")))
TREE = {"a/": b"", "a/empty": b"", "a/file": b"x", "a/sub/": b"", "a/sub/deep/": b""}


def moved(keys: dict[str, bytes]) -> dict[str, bytes]:
    return {key.replace("a/", "b/", 1): body for key, body in keys.items()}


def no_such_key(key: str) -> None:
    raise from_s3(f"copy {key!r}", code="NoSuchKey", status=404)


def not_implemented(key: str) -> None:
    raise from_s3(f"copy {key!r}", code="NotImplemented", status=501)


def silently(key: str) -> None:
    """It says that it did it."""


class Uncopying(FakeStore):
    """Copies nothing that has no bytes, or no markers, and answers as `how` does."""

    def __init__(self, how: Callable[[str], None], *, markers_only: bool = False) -> None:
        super().__init__()
        self._how = how
        self._markers_only = markers_only

    async def copy(self, source: str, target: str, **options: Any) -> Version:
        found = self._stored.get(source)
        if found is None or found.body or (self._markers_only and not source.endswith("/")):
            return await super().copy(source, target, **options)
        await self._begin("copy", source)
        self._how(source)
        return Version(found.object.version.etag, 0)


@pytest.mark.parametrize("how", [no_such_key, not_implemented, silently])
def test_a_tree_is_renamed_where_nothing_empty_is_copied(tmp_path: Path, how: Callable[[str], None]) -> None:
    store = Uncopying(how)

    async def main(mount: Composed) -> None:
        await put_all(store, TREE)
        await store.put("a/sub/", b"", MARKED, acl=SHARED)
        await mount.rename("a", "b")

    with composed(store, tmp_path) as mount:
        mount.loop.run(lambda: main(mount))
        assert bodies(store) == moved(TREE)
        assert store._stored["b/sub/"].object.properties == MARKED
        assert store._stored["b/sub/"].acl == SHARED
        assert set(mount.loop.run(mount.tree)) == {"b", "b/empty", "b/file", "b/sub", "b/sub/deep"}


@pytest.mark.parametrize("how", [no_such_key, not_implemented, silently])
def test_an_empty_file_is_renamed_too(tmp_path: Path, how: Callable[[str], None]) -> None:
    store = Uncopying(how)
    with composed(store, tmp_path) as mount:
        mount.loop.run(lambda: mount.write("a", b"", flags=os.O_CREAT))
        mount.loop.run(lambda: mount.rename("a", "b"))
        assert bodies(store) == {"b": b""}
        mount.loop.run(lambda: mount.chmod("b", 0o600))
        assert mount.loop.run(mount.tree) == {"b": (b"", 0o600)}


@pytest.mark.promise(3)
@pytest.mark.parametrize("old", ["empty", "d/empty"], ids=["file", "directory"])
def test_what_was_changed_of_it_a_moment_ago_goes_along(tmp_path: Path, old: str) -> None:
    store, new = Uncopying(silently), old.replace("empty", "new") if old == "empty" else "e/empty"

    async def main(mount: Composed) -> None:
        await put_all(store, {old: b""})
        await chmod(mount, old)
        await mount.rename(old.split("/", maxsplit=1)[0], new.split("/")[0])

    with composed(store, tmp_path) as mount:
        mount.loop.run(lambda: main(mount))
        mount.loop.passes(5)
        assert set(bodies(store)) == {new}
        assert store._stored[new].object.properties.metadata["mode"] == str(0o100600)
        assert mount.parts.pending == 0


def test_a_copy_that_is_confirmed_and_not_there_fails_the_rename(tmp_path: Path) -> None:
    class Lying(FakeStore):
        async def copy(self, source: str, target: str, **options: Any) -> Version:
            made = await super().copy(source, target, **options)
            if source == "a/file":
                del self._stored[target]
            return made

    store = Lying()

    async def main(mount: Composed) -> None:
        await put_all(store, TREE)
        with fails(errno.EIO):
            await mount.rename("a", "b")

    with composed(store, tmp_path) as mount:
        mount.loop.run(lambda: main(mount))
        mount.loop.passes(100)
        assert bodies(store) == TREE


def test_what_the_server_does_not_find_and_shows_is_not_removed(tmp_path: Path) -> None:
    """An answer to a copy that speaks of another key, or of another moment, says nothing of the source."""

    class Blind(FakeStore):
        async def copy(self, source: str, target: str, **options: Any) -> Version:
            if source == "a/file":
                no_such_key(source)
            return await super().copy(source, target, **options)

    store = Blind()

    async def main(mount: Composed) -> None:
        await put_all(store, TREE)
        with fails(errno.EIO):
            await mount.rename("a", "b")
        with fails(errno.EIO):
            await mount.rename("a/file", "c")

    with composed(store, tmp_path) as mount:
        mount.loop.run(lambda: main(mount))
        assert bodies(store) == TREE


def test_a_crash_between_does_not_lose_it_either(tmp_path: Path) -> None:
    store = Uncopying(silently)
    with composed(store, tmp_path) as mount:
        mount.loop.run(lambda: put_all(store, TREE))
        crashes_while_old_keys_go(mount, store, "a", "b")
        mount.start()
        assert bodies(store) == moved(TREE)


# On a mount


def is_marker_copy(request: Request) -> bool:
    """Whether a request copies a directory's marker."""
    return request.op == "COPY" and request.key.endswith("/")


@pytest.mark.parametrize("server", ["weed"], indirect=True)
def test_directories_are_renamed_on_seaweedfs(mounter: Mounter, foreign: Foreign) -> None:
    drive = mounter()
    here = drive.here
    (here / "a").mkdir()
    (here / "a").rename(here / "b")
    assert names(here) == ["b"]
    assert foreign.keys() == ["b/"]
    (here / "b" / "empty" / "deep").mkdir(parents=True)
    (here / "b" / "file").write_bytes(b"bytes")
    (here / "b" / "nothing").touch()
    os.chmod(here / "b", 0o750)
    (here / "b").rename(here / "c")
    assert tree(here) == {"c/file": b"bytes", "c/nothing": b""}
    (here / "c" / "empty" / "deep").rename(here / "deep")
    (here / "c" / "empty").rename(here / "deep" / "was empty")
    (here / "target").mkdir()
    (here / "c").rename(here / "target")
    drive.mount.remount()
    assert names(here) == ["deep", "target"]
    assert names(here / "deep") == ["was empty"]
    assert tree(here) == {"target/file": b"bytes", "target/nothing": b""}
    drive.run("rm", "-r", "deep", "target")
    assert names(here) == []


@pytest.mark.parametrize("server", ["moto"], indirect=True)
def test_directories_are_renamed_where_the_copy_of_a_marker_fails(
    mounter: Mounter, foreign: Foreign, proxy: Proxy
) -> None:
    drive = mounter(proxy.endpoint, *HURRY)
    drive.mount.allow_log("WARNING|ERROR")
    at = drive.here / "a"
    (at / "sub").mkdir(parents=True)
    os.chmod(at, 0o750)
    for number, action in enumerate(
        (
            Answer(404, "NoSuchKey"),
            Answer(501, "NotImplemented"),
            Answer(405, "MethodNotAllowed"),
            *map(Answer, (405, 200)),
        )
    ):
        new = drive.here / f"b{number}"
        with proxy.broken(action, is_marker_copy):
            try:
                at.rename(new)
            except OSError as error:
                assert not action.code, error  # what is no answer of S3 is an error, and nothing is lost
                new = at
        assert names(new) == ["sub"], action
        assert new.stat().st_mode & 0o777 == 0o750
        at = new
    eventually(lambda: foreign.keys() == [f"{at.name}/", f"{at.name}/sub/"])
    assert int(foreign.metadata(f"{at.name}/")["mode"]) & 0o777 == 0o750
