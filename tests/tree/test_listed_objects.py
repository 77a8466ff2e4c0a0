"""What a listing tells of objects that were known before: what stays, and what is to be asked for again.

In one process and without a kernel, for only so can each order be had.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sosfs.config.parameters import TTL
from sosfs.s3.protocol import NOTHING, UNKNOWN, Page, Properties
from sosfs.s3.scratch_key import of_zeros
from sosfs.tree.inodes import SYMLINK_MAX, Inode, Known
from tests.support.composed import LONG, Composed, composed
from tests.support.drive import fails
from tests.support.held import Held, bodies, closed, forget, opened, put_all

BIG = bytes(SYMLINK_MAX + 1)
LINK = stat.S_IFLNK | 0o777


@pytest.fixture
def store() -> Held:
    """A store whose objects are each a second younger than the one before."""
    seconds = itertools.count(1_000_000_000)
    return Held(clock=lambda: next(seconds))


def of_mode(mode: int, **more: str) -> Properties:
    return Properties(metadata={"mode": str(mode), **more})


async def listed(mount: Composed, path: str = "d") -> Inode:
    """A directory, after all that was known of it is out of date and it was listed again."""
    mount.loop._clock.jump(2 * TTL)
    top = await mount._walk(path)
    await mount.parts.listings.complete(top)
    return top


async def entry(mount: Composed, name: str) -> Inode:
    """What `d` is known to have of this name."""
    top = await mount._walk("d")
    return mount.parts.listings.directory(top).entries[name.encode()]


@pytest.mark.parametrize("body", [b"small", BIG], ids=["small", "big"])
def test_what_is_listed_as_it_was_is_not_asked_for_again(mount: Composed, store: Held, body: bytes) -> None:
    async def look() -> None:
        await store.put("d/", b"", of_mode(stat.S_IFDIR | 0o750))
        await store.put("d/a", body, of_mode(stat.S_IFREG | 0o604))
        await listed(mount)
        before = await mount._walk("d/a")
        await listed(mount)
        store.calls.clear()
        assert await mount._walk("d/a") is before
        assert stat.S_IMODE((await mount._walk("d")).mode) == 0o750
        if body is not BIG:
            await mount.chmod("d/a", 0o600)  # it was read with its bytes, so that all is known that is to stay
        assert (store.calls["head"], store.calls["get"]) == (0, 0)

    mount.loop.run(look)


@pytest.mark.parametrize("body", [b"small", BIG], ids=["small", "big"])
def test_attributes_that_another_client_has_changed_are_asked_for_again(
    mount: Composed, store: Held, body: bytes
) -> None:
    async def look() -> None:
        await store.put("d/", b"", of_mode(stat.S_IFDIR | 0o750))
        await store.put("d/a", body, of_mode(stat.S_IFREG | 0o604, colour="red"))
        await listed(mount)
        before = await mount._walk("d/a")
        before.lookups += 1
        await store.put("d/", b"", of_mode(stat.S_IFDIR | 0o700))
        await store.put("d/a", body, of_mode(stat.S_IFREG | 0o600, colour="blue"))
        top = await listed(mount)
        assert top.known is Known.SIZE
        assert (await entry(mount, "a")).known is (Known.SIZE if body is BIG else Known.NAME), "it may be a link by now"
        inode = await mount._walk("d/a")
        assert inode is before, "the kernel has it by its number"
        assert (stat.S_IMODE(inode.mode), inode.properties.metadata["colour"]) == (0o600, "blue")
        assert stat.S_IMODE((await mount._walk("d")).mode) == 0o700

    mount.loop.run(look)


@pytest.mark.parametrize("body", [b"small", BIG], ids=["small", "big"])
@pytest.mark.parametrize("theirs", [False, True], ids=["ours", "rewritten by another client"])
def test_what_was_written_here_is_known_until_another_client_rewrites_it(
    mount: Composed, store: Held, theirs: bool, body: bytes
) -> None:
    """The answer to a write does not tell the time that the listing has of it."""

    async def look() -> None:
        store._clock = time.time
        await put_all(store, {"d/": b""})
        await mount.write("d/a", body, flags=os.O_CREAT)
        await mount.chmod("d/a", 0o604)
        if theirs:
            store._clock = lambda: time.time() + LONG
            await store.put("d/a", body, of_mode(stat.S_IFREG | 0o600))
        await listed(mount)
        if theirs:
            assert (await entry(mount, "a")).known is (Known.SIZE if body is BIG else Known.NAME), "it may be a link"
        store.calls.clear()
        assert stat.S_IMODE((await mount._walk("d/a")).mode) == (0o600 if theirs else 0o604)
        assert store.calls["head"] + store.calls["get"] == theirs

    mount.loop.run(look)


@pytest.mark.parametrize("is_told", [False, True], ids=["at once", "after one more listing"])
def test_what_was_written_here_and_listed_has_what_another_client_makes_of_it_a_moment_later(
    mount: Composed, store: Held, is_told: bool
) -> None:
    """Two times that are so near each other may be those of one version, but two that were listed are not."""

    async def look() -> None:
        store._clock = time.time
        await mount.mkdir("d")
        await mount.settle()
        await mount.write("d/a", BIG, flags=os.O_CREAT)
        await listed(mount)
        store._clock = lambda: time.time() + 1
        await store.put("d/", b"", of_mode(stat.S_IFDIR | 0o700))
        await store.put("d/a", BIG, of_mode(stat.S_IFREG | 0o600))
        for _ in range(1 + is_told):
            await listed(mount)
        assert stat.S_IMODE((await mount._walk("d")).mode) == 0o700
        assert stat.S_IMODE((await mount._walk("d/a")).mode) == 0o600

    mount.loop.run(look)


@pytest.mark.parametrize("is_read", [False, True], ids=["listed before", "read before"])
def test_the_storage_class_is_the_one_that_is_listed(mount: Composed, store: Held, is_read: bool) -> None:
    async def look() -> None:
        for name in "ab":
            await store.put(f"d/{name}", BIG, Properties(metadata={"colour": "red"}, storage_class="STANDARD_IA"))
        await listed(mount)
        if is_read:
            await mount._walk("d/a")
        assert (await entry(mount, "a")).properties.storage_class == "STANDARD_IA"
        kept = store._stored["d/a"]  # a rule of the bucket changes the class alone
        kept.object = replace(kept.object, properties=replace(kept.object.properties, storage_class="GLACIER"))
        await listed(mount)
        found = await entry(mount, "a")
        assert found.properties.storage_class == "GLACIER"
        assert found.properties.metadata.get("colour") == ("red" if is_read else None)
        assert (await entry(mount, "b")).properties.storage_class == "STANDARD_IA"

    mount.loop.run(look)


def test_what_another_client_has_replaced_is_shown_as_it_is_listed(mount: Composed, store: Held) -> None:
    """Until it is read: the defaults, and the time at which it was stored."""

    async def look() -> None:
        made = of_mode(stat.S_IFREG | 0o604, uid="4321", gid="4321", colour="red")
        await store.put("d/a", BIG, made)
        await listed(mount)
        before = await mount._walk("d/a")
        before.lookups += 1  # the kernel has it by its number
        assert (before.uid, before.gid) == (4321, 4321)
        await store.put("d/a", BIG + b"!", NOTHING)
        await listed(mount)
        found = await entry(mount, "a")
        defaults, version = mount.parts.inodes.defaults, store._stored["d/a"].object.version
        assert found is before
        assert (found.size, found.mode) == (len(BIG) + 1, defaults.file_mode)
        assert (found.uid, found.gid) == (defaults.uid, defaults.gid)
        assert found.mtime_ns == found.ctime_ns == found.atime_ns == (version.modified or 0) * 1_000_000_000
        assert "colour" not in found.properties.metadata
        assert (await mount._walk("d/a")).size == len(BIG) + 1

    mount.loop.run(look)


def test_who_has_it_open_reads_on_and_the_name_leads_to_what_replaced_it(mount: Composed, store: Held) -> None:
    async def look() -> None:
        await put_all(store, {"d/a": BIG, "d/b": BIG})
        await listed(mount)
        handles = [await opened(mount, os.O_RDONLY, f"d/{name}") for name in "ab"]
        await put_all(store, {"d/a": b"theirs", "d/b": BIG})  # the one is another, the other the same again
        await listed(mount)
        assert [handle.inode.size for handle in handles] == [len(BIG)] * 2
        assert (await mount._walk("d/a")).size == len(b"theirs")
        assert await mount._walk("d/a") is not handles[0].inode
        assert await mount._walk("d/b") is handles[1].inode
        for handle in handles:
            await closed(mount, handle)

    mount.loop.run(look)


@pytest.mark.parametrize("is_alone", [True, False], ids=["alone", "beside another"])
def test_who_has_opened_what_was_replaced_before_a_byte_was_read_has_what_replaced_it(
    mount: Composed, store: Held, is_alone: bool
) -> None:
    """But for who shares it with another one, that may have read some."""

    async def look() -> None:
        await put_all(store, {"d/a": BIG})
        await listed(mount)
        handle = await opened(mount, os.O_RDONLY, "d/a")
        other = None if is_alone else await opened(mount, os.O_RDONLY, "d/a")
        await put_all(store, {"d/a": b"theirs" * 1000})
        if is_alone:
            assert bytes(await mount.parts.file_io.read(handle, 0, 6)) == b"theirs"
        else:
            with fails(errno.ESTALE):
                await mount.parts.file_io.read(handle, 0, 6)
        assert (await mount._walk("d/a") is handle.inode) is is_alone
        for one in (handle, other):
            if one is not None:
                await closed(mount, one)

    mount.loop.run(look)


def test_what_turns_out_to_be_a_link_has_another_number_and_is_not_asked_for_twice(
    mount: Composed, store: Held
) -> None:
    async def look() -> None:
        await store.put("d/a", b"elsewhere", of_mode(LINK))
        top = await listed(mount)
        guess = await mount.parts.namespace.lookup(top, b"a")
        guess.lookups += 1
        assert guess.is_regular
        found = await mount._walk("d/a")
        assert (stat.S_ISLNK(found.mode), found.size) == (True, len(b"elsewhere"))
        assert found.number != guess.number
        assert found.mtime_ns == (store._stored["d/a"].object.version.modified or 0) * 1_000_000_000
        with fails(errno.ESTALE):
            await mount.parts.attributes.revalidate(guess)
        store.calls.clear()
        assert await mount._walk("d/a") is found
        assert store.calls == {}

    mount.loop.run(look)


@pytest.mark.parametrize(
    ("kind", "then"), [(LINK, b"other"), (stat.S_IFREG | 0o644, BIG)], ids=["a link", "a small file that has grown"]
)
def test_what_may_be_of_another_type_by_now_has_another_number(
    mount: Composed, store: Held, kind: int, then: bytes
) -> None:
    """A small one may be a link, a large one never is."""

    async def look() -> None:
        await store.put("d/a", b"elsewhere", of_mode(kind))
        await listed(mount)
        before = await mount._walk("d/a")
        before.lookups += 1
        await put_all(store, {"d/a": then})
        await listed(mount)
        found = await entry(mount, "a")
        assert (found.is_regular, found.size) == (True, len(then))
        assert found.number != before.number
        assert not mount.parts.inodes.has_name(before)
        with fails(errno.ESTALE):
            await mount.parts.attributes.revalidate(before)

    mount.loop.run(look)


def test_what_nobody_has_takes_no_more_room_when_it_is_of_another_type(mount: Composed, store: Held) -> None:
    async def look() -> None:
        await store.put("d/a", b"elsewhere", of_mode(LINK))
        await listed(mount)
        await mount._walk("d/a")
        before = len(mount.parts.inodes)
        await put_all(store, {"d/a": BIG})
        await listed(mount)
        assert (await mount._walk("d/a")).is_regular
        assert len(mount.parts.inodes) == before

    mount.loop.run(look)


def test_what_is_remembered_of_files_that_were_forgotten_is_known_when_they_are_listed(
    mount: Composed, store: Held
) -> None:
    """And told on, to who publishes it for other machines."""
    agreed: set[str] = set()

    async def look() -> None:
        store._clock = time.time
        await store.put("d/a", b"elsewhere", of_mode(LINK))
        await store.put("d/b", b"b", of_mode(stat.S_IFREG | 0o604))
        await put_all(store, {"d/x": b"x"})
        await listed(mount)
        for name in "abx":
            await mount._walk(f"d/{name}")
        await mount.write("d/c", BIG, flags=os.O_CREAT)
        await mount.chmod("d/c", 0o640)
        mount.loop._clock.jump(2 * TTL)
        forget(mount)
        top = await mount._walk("d")
        assert top.directory is None or not top.directory.entries
        mount.parts.listings._merger.agrees = lambda key, known: agreed.add(key)
        await put_all(store, {"d/x": b"theirs"})
        await listed(mount)
        assert agreed == {"d/a", "d/b", "d/c"}, "x is another one by now"
        store.calls.clear()
        assert stat.S_ISLNK((await entry(mount, "a")).mode)
        assert stat.S_IMODE((await entry(mount, "b")).mode) == 0o604
        assert stat.S_IMODE((await entry(mount, "c")).mode) == 0o640, "it was written here"
        assert store.calls == {}

    mount.loop.run(look)


def test_what_holes_are_copied_from_is_not_shown(mount: Composed, store: Held) -> None:
    async def look() -> None:
        await put_all(store, {of_zeros("d/"): b"\0", "d/": b"", "d/a": b"a", "d/b": b"b"})
        top = await listed(mount)
        assert sorted(mount.parts.listings.directory(top).entries) == [b"a", b"b"]

    mount.loop.run(look)


def test_what_is_empty_is_shown_but_for_a_marker(mount: Composed, store: Held) -> None:
    async def look() -> None:
        await put_all(store, {"d/": b"", "d/empty": b"", "e/": b"bytes", "e/a": b"a"})
        await listed(mount)
        assert sorted(await mount.tree()) == ["d", "d/empty", "e", "e/%~-", "e/a"]
        assert (await mount.tree())["e/%~-"] == (b"bytes", 0o644)

    mount.loop.run(look)


class Garbled(Held):
    """Tells nothing sensible of the objects that it lists."""

    async def list(self, prefix: str, **options: Any) -> Page:
        page = await super().list(prefix, **options)
        return replace(page, objects=tuple(replace(one, version=UNKNOWN) for one in page.objects))


def test_what_a_listing_has_nonsense_of_is_asked_for_by_itself(tmp_path: Path) -> None:
    store = Garbled()

    async def look(mount: Composed) -> None:
        await put_all(store, {"d/a": BIG, "d/b": b"b"})
        for _ in range(2):
            await listed(mount)
            store.calls.clear()
            assert (await mount._walk("d/a")).size == len(BIG)
            assert store.calls["head"] + store.calls["get"] == 1
        await listed(mount)
        assert (await entry(mount, "a")).size == len(BIG), "as it was known last"

    with composed(store, tmp_path) as mount:
        mount.loop.run(lambda: look(mount))


def test_a_directory_that_is_gone_takes_all_below_it_along(mount: Composed, store: Held) -> None:
    async def look() -> None:
        await put_all(store, {"d/e/f/a": BIG, "d/b": b"b"})
        await listed(mount)
        held = await mount._walk("d/e/f/a")
        held.lookups += 1
        await mount.parts.listings.complete(await mount._walk("d/e"))
        before = len(mount.parts.inodes)
        await store.delete("d/e/f/a")
        await listed(mount)
        assert sorted(await mount.tree()) == ["d", "d/b"]
        assert not mount.parts.inodes.has_name(held)
        with fails(errno.ESTALE):
            await mount.parts.attributes.revalidate(held)
        assert len(mount.parts.inodes) == before - 2, "but for what somebody holds"
        assert mount.parts.inodes[held.number] is held

    mount.loop.run(look)


def test_an_object_that_goes_with_the_directory_beside_it_is_gone(mount: Composed, store: Held) -> None:
    async def main() -> None:
        await put_all(store, {"a": b"beside", "a/x": b"x", "b": b"b"})
        assert set(await mount.tree()) == {"a", "a/x", "%~fa", "b"}
        for key in ("a", "a/x"):
            await type(store).delete(store, key)
        mount.loop._clock.jump(2 * TTL)
        assert set(await mount.tree()) == {"b"}

    mount.loop.run(main)


def test_an_object_beside_a_directory_has_its_own_name_when_that_is_gone(mount: Composed, store: Held) -> None:
    async def look() -> None:
        await put_all(store, {"d/a": b"beside", "d/a/x": b"x", "d/b": b"b"})
        await listed(mount)
        beside = await entry(mount, "%~fa")
        assert (await entry(mount, "a")).is_directory and beside.size == len(b"beside")
        await store.delete("d/a/x")
        await listed(mount)
        assert sorted(await mount.tree()) == ["d", "d/a", "d/b"]
        assert await entry(mount, "a") is beside

    mount.loop.run(look)


@pytest.mark.parametrize("page", [1000, 1])
@pytest.mark.parametrize("is_beside", [False, True], ids=["replaced", "beside"])
def test_an_object_is_shown_beside_a_directory_only_where_it_is_still_there(
    tmp_path: Path, is_beside: bool, page: int
) -> None:
    """Another client has made a directory where a file was, and has removed that before or not."""
    store = Held(page=page)

    async def look(mount: Composed) -> None:
        await put_all(store, {"d/a": b"a", "d/b": b"b"})
        assert set(await mount.tree()) == {"d", "d/a", "d/b"}
        if not is_beside:
            await store.delete("d/a")
        await put_all(store, {"d/a/x": b"x"})
        mount.loop._clock.jump(2 * TTL)
        assert set(await mount.tree()) == {"d", "d/a", "d/a/x", "d/b"} | ({"d/%~fa"} if is_beside else set())

    with composed(store, tmp_path) as mount:
        mount.loop.run(lambda: look(mount))


@pytest.mark.promise(3)
@pytest.mark.parametrize("what", ["rename", "rmdir"])
def test_so_it_has_at_once_where_that_is_renamed_or_removed_here(mount: Composed, store: Held, what: str) -> None:
    """Else the name seemed free, and what was renamed to it took the object's place."""

    async def main() -> None:
        await put_all(store, {"d": b"beside", "d/": b"", "other": b"other"})
        assert set(await mount.tree()) == {"d", "%~fd", "other"}
        beside = await mount._walk("%~fd")
        await (mount.rename("d", "e") if what == "rename" else mount.rmdir("d"))
        with fails(errno.EEXIST):
            await mount.parts.renames.rename(*await mount._parent("other"), *await mount._parent("d"), replace=False)
        assert await mount._walk("d") is beside
        assert set(await mount.tree()) == {"d", "other"} | ({"e"} if what == "rename" else set())

    mount.loop.run(main)
    mount.loop.passes(2 * TTL)
    assert bodies(store) == {"d": b"beside", "other": b"other"} | ({"e/": b""} if what == "rename" else {})
    assert set(mount.loop.run(mount.tree)) == {"d", "other"} | ({"e"} if what == "rename" else set())


def test_who_has_read_both_names_finds_it_by_the_other_one_until_then(mount: Composed, store: Held) -> None:
    """As `rm -r`, which reads a directory once: else it would leave what it has never heard of."""

    async def main() -> None:
        await put_all(store, {"top/": b"", "top/d": b"beside", "top/d/": b""})
        assert set(await mount.tree()) == {"top", "top/d", "top/%~fd"}
        await mount.rmdir("top/d")
        await mount.unlink("top/%~fd")
        with fails(errno.ENOENT):
            await mount._walk("top/d")
        await mount.rmdir("top")

    mount.loop.run(main)
    mount.loop.passes(2 * TTL)
    assert bodies(store) == {}
