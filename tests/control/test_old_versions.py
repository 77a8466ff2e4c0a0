"""`.sosfs/versions`: what is where in it, and that what is read is the version that its name says.

Over the versions of a bucket in memory; `test_versions` has real servers.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, cast

import pytest
import trio

from sosfs.concurrency.tasks import Background
from sosfs.control.nodes import BytesFile, Folder
from sosfs.control.versions import Shelf
from sosfs.s3.bucket_settings import BucketSettings
from sosfs.s3.dispatch import Dispatcher
from sosfs.s3.protocol import UNKNOWN, Slice, Version
from sosfs.s3.version_answers import VersionEntry
from tests.s3.test_past_store import History
from tests.support.drive import fails


def history(page: int = 1000) -> History:
    """Files beside directories of their names, of which some are gone."""
    made = History(page=page)
    for key, at in (("a", 1.0), ("a", 2.5), ("d/e/f", 1.0), ("d/x", 1.0), ("d", 3.0), ("gone", 1.0)):
        made.put(key, at)
    made.put("gone", 2.0, is_marker=True)
    made.put("marker only", 2.0, is_marker=True)
    made.put("d/", 1.0)
    made.entries["d/"] = [replace(one, version=Version("etag", 0, 1)) for one in made.entries["d/"]]
    made.entries["a"].append(VersionEntry("a", "nonsense", 0.5, False, version=UNKNOWN))
    return made


def run(of: History, work: Callable[[Folder], Awaitable[None]], prefix: str = "") -> None:
    """Work in the tree."""

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            bucket = BucketSettings(cast(Any, None), cast(Dispatcher, of))
            await work(Shelf(bucket, Background(nursery).spawn).folder(prefix))
            nursery.cancel_scope.cancel()

    trio.run(main)


async def names(folder: Any) -> list[str]:
    assert isinstance(folder, Folder)
    return sorted(name.decode() for name in await folder.children())


async def walked(folder: Folder, path: str) -> Any:
    """What a path leads to."""
    found: Any = folder
    for name in path.split("/"):
        assert isinstance(found, Folder)
        found = await found.child(name.encode())
    return found


@pytest.mark.parametrize("page", [1, 2, 1000])
def test_each_file_that_was_ever_there_has_its_versions(page: int) -> None:
    async def work(top: Folder) -> None:
        assert await names(top) == ["%~fd", "a", "d", "gone"]
        assert await names(await top.child(b"d")) == ["e", "x"]
        assert await names(await walked(top, "d/e/f")) == ["1970-01-01T00:00:01.000Z_d%2Fe%2Ff%401"]
        assert await names(await top.child(b"a")) == [
            "1970-01-01T00:00:01.000Z_a%401",
            "1970-01-01T00:00:02.500Z_a%402.5",
        ]
        assert await names(await top.child(b"gone")) == ["1970-01-01T00:00:01.000Z_gone%401"]
        assert await names(await top.child(b"%~fd")) == ["1970-01-01T00:00:03.000Z_d%403"]
        assert await names((await top.children())[b"%~fd"]) == ["1970-01-01T00:00:03.000Z_d%403"]
        for name in (b"marker only", b"none", b"%~fnone"):
            with fails(errno.ENOENT):
                await top.child(name)

    run(history(page), work)


def test_a_mount_of_a_prefix_shows_what_is_below_it() -> None:
    async def work(top: Folder) -> None:
        assert await names(top) == ["e", "x"]
        assert isinstance(await walked(top, "e/f"), Folder)

    run(history(), work, "d/")


def test_two_names_of_one_version_are_one_node_and_others_are_not() -> None:
    of = history()
    of.entries["a"] = [replace(one, version=replace(one.version, etag="same")) for one in of.entries["a"][:2]]

    async def work(top: Folder) -> None:
        one, other = [list((await (await top.child(b"a")).children()).values()) for _ in range(2)]  # type: ignore[attr-defined]
        assert [node.identity for node in one] == [node.identity for node in other]
        kinds = [node.identity for node in (await top.children()).values()]
        assert len({*kinds, *(node.identity for node in one)}) == len(kinds) + 2

    run(of, work)


def test_a_directory_that_has_bytes_of_its_own_has_versions_too() -> None:
    """Of an object whose key ends in a slash; they are no second way into the directory."""
    of = History()
    of.put("d/", 1.0)
    of.put("d/x", 1.0)

    async def work(top: Folder) -> None:
        folder = await top.child(b"d")
        found = await cast(Folder, folder).children()
        assert len(found) == 2
        assert folder.identity not in [node.identity for node in found.values()]
        for name, node in found.items():
            assert (await cast(Folder, folder).child(name)).identity == node.identity

    run(of, work)


def test_a_version_is_read_as_it_was_stored() -> None:
    of = history()

    async def work(top: Folder) -> None:
        file = await walked(top, "a/1970-01-01T00:00:02.500Z_a%402.5")
        assert isinstance(file, BytesFile)
        assert (file.size, file.time_ns) == (4, 2_500_000_000)
        assert bytes(await file.read(0, 100)) == b"body"
        assert bytes(await file.read(1, 3)) == b"od"
        assert [one for one in of.asked if one[0] == "get"] == [("get", "a@2.5")]
        assert of.asked.count(("size", 4)) == 1

    run(of, work)


def test_another_version_of_the_same_id_is_not_read_as_this_one() -> None:
    """Where none are kept, whatever is there has the id `null`."""
    of = history()

    async def work(top: Folder) -> None:
        file = await walked(top, "a/1970-01-01T00:00:01.000Z_a%401")
        of.entries["a"] = [replace(one, version=Version("another", 4, 1)) for one in of.entries["a"]]
        with fails(errno.ESTALE):
            await file.read(0, 4)

    run(of, work)


def test_a_version_that_comes_short_is_an_error() -> None:
    class Short(History):
        def get(self, key: str, start: int, stop: int, pin: str, *, version_id: str) -> Slice:
            found = super().get(key, start, stop, pin, version_id=version_id)
            return replace(found, body=found.body[:-1])

    of = Short(entries=history().entries)

    async def work(top: Folder) -> None:
        file = await walked(top, "a/1970-01-01T00:00:01.000Z_a%401")
        with fails(errno.EIO):
            await file.read(0, 4)

    run(of, work)
