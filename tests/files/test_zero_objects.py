"""Holes are copied of an object of zeros, step by step: what if it is not there, not right, or the process dies."""

from __future__ import annotations

import errno
import os
import random
import uuid
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from hashlib import md5
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from sosfs.config.parameters import Durability
from sosfs.errors import StoreError
from sosfs.files.open_file import Handle
from sosfs.files.zero_objects import KEPT, ZeroHashes
from sosfs.s3.protocol import Part
from sosfs.s3.scratch_key import is_of_zeros, is_proven, of_zeros
from tests.support.composed import Composed, Plan, What, composed
from tests.support.drive import fails
from tests.support.held import Held, begun, bodies, closed, opened, put_all, stored

PART = 4096
SIZE = 40 * PART + 100
DATA = random.Random(9).randbytes(2 * PART)


class Counting(Held):
    """Notes how many bytes were sent, and gives copies another hash than they have."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = 0
        self.lies = False
        self.names = False

    async def put(self, key: str, body: Any, *arguments: Any, **options: Any) -> Any:
        self.sent += len(body)
        return await super().put(key, body, *arguments, **options)

    async def upload_part(self, key: str, upload_id: str, number: int, body: Any) -> Part:
        self.sent += len(body)
        return await super().upload_part(key, upload_id, number, body)

    async def copy_part(self, *arguments: Any, **options: Any) -> Part:
        part = await super().copy_part(*arguments, **options)
        if self.names:
            parts = self._uploads[arguments[1]].parts
            part = Part(part.number, f"{self._issued:032x}", part.size)
            parts[part.number] = part, parts[part.number][1]
        return Part(part.number, "0" * 32, part.size) if self.lies else part


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Holes of some thousand bytes are large."""
    monkeypatch.setattr("sosfs.files.zero_objects.SEED", PART)
    monkeypatch.setattr("sosfs.files.upload.HOLES_MIN", 2 * PART)
    monkeypatch.setattr("sosfs.files.spool.SPILL", 1000)
    monkeypatch.setattr("tests.support.fake_store.PART_MIN", 1)


@pytest.fixture
def store() -> Counting:
    """The bucket."""
    return Counting()


@pytest.fixture
def mount(store: Counting, tmp_path: Path) -> Iterator[Composed]:
    """A mount with small parts."""
    with composed(store, tmp_path, part_size=PART) as mount:
        yield mount
        mount.loop.run(store.release)


def run(mount: Composed, work: Callable[[], Awaitable[None]]) -> None:
    mount.loop.run(work)


async def sparse(mount: Composed, *, at: int = 10 * PART + 5, size: int = SIZE, path: str = "file") -> Handle:
    """A file of `size` bytes with `DATA` in the middle, open."""
    parent, name = await mount._parent(path)
    handle = await mount._opened(parent, name, os.O_CREAT | os.O_RDWR)
    await mount.parts.file_io.write(handle, at, DATA)
    await mount.parts.file_io.truncate(handle.inode, size)
    return handle


def expected(at: int = 10 * PART + 5, size: int = SIZE) -> bytes:
    return (bytes(at) + DATA).ljust(size, b"\0")


def zeros(store: Held) -> list[str]:
    return [key for key in store._stored if is_of_zeros(key)]


def scratch(mount: Composed) -> list[str]:
    async def rows() -> list[str]:
        return mount._journal.scratch()

    return mount.loop.run(rows)


def test_only_what_was_written_is_sent(mount: Composed, store: Counting) -> None:
    async def main() -> None:
        await closed(mount, await sparse(mount))

    run(mount, main)
    assert stored(store) == expected()
    assert store.sent == PART + 3 * PART, "one part of zeros, and the three that have data"
    assert len(zeros(store)) == 2, "one that was sent, and one that was joined of it"
    assert all(is_proven(store._stored[key].object.properties) for key in zeros(store))
    assert sorted(scratch(mount)) == sorted(zeros(store))
    mount.loop.passes(15)  # so that the directory is listed again
    assert len(zeros(store)) == 2
    assert mount.loop.run(mount.tree) == {"file": (expected(), 0o644)}, "no listing shows them"
    mount.loop.passes(3 * KEPT)
    assert zeros(store) == [] and scratch(mount) == []


def test_reading_holes_back_asks_for_nothing(mount: Composed, store: Counting) -> None:
    size = 4 << 20  # of several blocks

    async def main() -> None:
        await closed(mount, await sparse(mount, size=size))
        store.calls.clear()
        handle = await opened(mount, os.O_RDONLY)
        for start in (1 << 20, 2 << 20, size - 100_000):
            body = await mount.parts.file_io.read(handle, start, 100_000)
            assert bytes(body) == bytes(100_000)
        assert store.calls["get"] == 0
        version = handle.inode.version
        await mount.parts.file_io.release(handle)
        assert version is not None
        assert mount.parts.blocks.zeros.total(version.etag, size) == size - len(DATA)

    run(mount, main)


def test_what_was_written_into_a_hole_that_is_stored_is_not_known_to_be_zeros(mount: Composed, store: Counting) -> None:
    """What is, is read as zeros without a request; the rest of the part that it is in still is."""
    at = 30 * PART + 7

    async def main() -> None:
        await closed(mount, await sparse(mount))
        handle = await opened(mount)
        await mount.parts.file_io.write(handle, at, DATA)
        await closed(mount, handle)
        version = handle.inode.version
        assert version is not None
        assert mount.parts.blocks.zeros.total(version.etag, version.size) == SIZE - 2 * len(DATA)

    run(mount, main)
    body = expected()
    assert stored(store) == body[:at] + DATA + body[at + len(DATA) :]


def test_they_are_used_by_the_next_file_and_removed_at_the_end(store: Counting, tmp_path: Path) -> None:
    async def main(mount: Composed) -> None:
        await closed(mount, await sparse(mount))
        before = store.sent
        await closed(mount, await sparse(mount, path="other"))
        assert store.sent == before + 3 * PART

    with composed(store, tmp_path, part_size=PART) as mount:
        mount.loop.run(partial(main, mount))
    assert sorted(bodies(store)) == ["file", "other"]
    assert store._uploads == {}


@pytest.mark.parametrize("durability", list(Durability))
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("calls", range(0, 30, 3))
def test_a_crash_leaves_nothing_and_loses_nothing(
    store: Counting, tmp_path: Path, durability: Durability, after: bool, calls: int
) -> None:
    """At any of the requests that store the file: what was there before is there, or all of the new."""

    async def main(mount: Composed) -> None:
        await store.put("file", b"old", mount.parts.inodes.root.properties)
        handle = await opened(mount)
        mount.trouble.plan = Plan(What.STALLS, calls, after)
        await mount.parts.file_io.write(handle, 10 * PART + 5, DATA)
        await mount.parts.file_io.truncate(handle.inode, SIZE)
        await begun(mount, partial(mount.parts.file_io.flush, handle))

    whole = (b"old" + expected()[3:],)
    with composed(store, tmp_path, part_size=PART, durability=durability) as mount:
        mount.loop.run(partial(main, mount))
        mount.loop.passes(2)
        mount.crash()
        mount.start()
        mount.loop.passes(3)
        assert stored(store) in ((b"old", *whole) if durability is Durability.BUCKET else whole)
        assert mount._journal.damage.lines == ()
    assert sorted(bodies(store)) == ["file"]
    assert store._uploads == {}


def test_a_copy_with_another_hash_is_not_used(mount: Composed, store: Counting) -> None:
    store.lies = True

    async def main() -> None:
        await closed(mount, await sparse(mount))

    run(mount, main)
    assert stored(store) == expected()
    assert store.sent >= SIZE


def test_a_copy_with_another_hash_than_those_before_is_not_used(mount: Composed, store: Counting) -> None:
    async def main() -> None:
        await closed(mount, await sparse(mount))
        store.names = True
        before = store.sent
        await closed(mount, await sparse(mount, path="other"))
        assert store.sent >= before + SIZE

    run(mount, main)
    assert stored(store) == stored(store, "other") == expected()


def test_a_server_whose_copies_have_other_names_is_pinned(mount: Composed, store: Counting) -> None:
    store.names = True

    async def main() -> None:
        await closed(mount, await sparse(mount))

    run(mount, main)
    assert stored(store) == expected()
    assert store.sent == 4 * PART


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EACCES, errno.EINVAL])
def test_a_server_that_copies_no_parts_is_sent_the_zeros(mount: Composed, store: Counting, number: int) -> None:
    def fault(operation: str, key: str) -> None:
        if operation == "copy_part":
            raise StoreError(number, f"{operation} {key!r}", status=400)

    store.fault = fault

    async def main() -> None:
        await closed(mount, await sparse(mount))
        await closed(mount, await sparse(mount, path="other"))

    run(mount, main)
    assert stored(store) == stored(store, "other") == expected()
    assert store.calls["copy_part"] <= 20, "it is not asked again for the second"


def test_nothing_is_stored_where_it_could_not_be_removed(mount: Composed, store: Counting) -> None:
    store.leaves_no_trace = False

    async def main() -> None:
        await closed(mount, await sparse(mount))

    run(mount, main)
    assert sorted(bodies(store)) == ["file"]
    assert stored(store) == expected()


def test_zeros_that_somebody_has_removed_are_made_anew(mount: Composed, store: Counting) -> None:
    async def main() -> None:
        await closed(mount, await sparse(mount))
        for key in zeros(store):
            await store.delete(key)
        before = store.sent
        await closed(mount, await sparse(mount, path="other"))
        assert store.sent == before + 4 * PART

    run(mount, main)
    assert stored(store, "other") == expected()


def test_other_bytes_in_their_place_are_never_a_files(mount: Composed, store: Counting) -> None:
    """Another client has the same key by all bad luck: the pin of the copy, or the hash, tells."""

    async def main() -> None:
        await closed(mount, await sparse(mount))
        for key in zeros(store):
            await store.put(key, b"x" * len(stored(store, key)), mount.parts.inodes.root.properties)
        await closed(mount, await sparse(mount, path="other"))

    run(mount, main)
    assert stored(store, "other") == expected()


def test_what_is_written_while_its_hole_is_copied_is_stored(mount: Composed, store: Counting) -> None:
    wanted = bytearray(expected())
    wanted[30 * PART : 30 * PART + 4] = b"late"

    async def main() -> None:
        handle = await sparse(mount)
        store.before["copy_part", "file"] = trio.Event()
        await begun(mount, partial(mount.parts.file_io.flush, handle))
        await mount.parts.file_io.write(handle, 30 * PART, b"late")
        await store.release()
        await trio.testing.wait_all_tasks_blocked()
        await closed(mount, handle)
        version = handle.inode.version
        assert version is not None
        known = mount.parts.blocks.zeros.within(version.etag, SIZE, 0, SIZE)
        assert all(not any(wanted[start:stop]) for start, stop in known)

    run(mount, main)
    assert stored(store) == bytes(wanted)


def test_what_is_cut_and_grows_again_while_it_is_stored_is_zeros(mount: Composed, store: Counting) -> None:
    async def main() -> None:
        handle = await sparse(mount)
        store.before["upload_part", "file"] = trio.Event()
        await begun(mount, partial(mount.parts.file_io.flush, handle))
        await mount.parts.file_io.truncate(handle.inode, 5 * PART)
        await mount.parts.file_io.truncate(handle.inode, SIZE)
        await store.release()
        await trio.testing.wait_all_tasks_blocked()
        await closed(mount, handle)

    run(mount, main)
    assert stored(store) == bytes(SIZE)


def test_what_is_cut_again_and_again_while_it_is_stored_is_tried_in_one_frame(mount: Composed, store: Counting) -> None:
    """Not one within the other: Python's stack would end, and with it the mount."""
    store.leaves_no_trace = False
    commits, depths = mount.parts.commits, [0]
    inner = commits._commit

    async def counted(*arguments: Any) -> None:
        depths.append(depths[0] + 1)
        depths[0] += 1
        try:
            await inner(*arguments)
        finally:
            depths[0] -= 1

    async def main() -> None:
        handle = await sparse(mount)
        held = store.before["upload_part", "file"] = trio.Event()
        await begun(mount, partial(mount.parts.file_io.flush, handle))
        for _ in range(5):
            await mount.parts.file_io.truncate(handle.inode, 11 * PART)
            await mount.parts.file_io.truncate(handle.inode, SIZE)
            store.before["upload_part", "file"] = later = trio.Event()
            held.set()
            await trio.testing.wait_all_tasks_blocked()
            held = later
        await store.release()
        await trio.testing.wait_all_tasks_blocked()
        await closed(mount, handle)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commits, "_commit", counted)
        run(mount, main)
    assert len(depths) > 5 and max(depths) == 1
    assert stored(store) == expected()[: 11 * PART].ljust(SIZE, b"\0")


def test_what_is_written_into_a_hole_that_was_copied_is_not_freed_as_if_it_were_sent(
    mount: Composed, store: Counting
) -> None:
    """The first part of that hole had been sent and cut before: of its number there was a part that is here."""

    async def main() -> None:
        handle, io = await sparse(mount, at=0, size=2 * PART), mount.parts.file_io
        draft = handle.open_file.draft
        assert draft is not None
        await io.writeback._follow(handle.inode, handle.open_file, draft, 2 * PART)
        await trio.testing.wait_all_tasks_blocked()
        await io.truncate(handle.inode, PART)
        await io.truncate(handle.inode, SIZE)
        store.errors["complete_multipart", "file"] = [StoreError(errno.EIO, "complete", status=500)]
        with fails(errno.EIO):
            await mount.parts.commits.commit(handle.inode)
        assert store.calls["copy_part"] > 0
        await io.write(handle, 2 * PART, b"late")
        assert handle.open_file.upload is not None
        handle.open_file.upload.free()  # as where room is short
        assert bytes(await io.read(handle, 2 * PART, 4)) == b"late"
        await closed(mount, handle)

    run(mount, main)
    assert stored(store) == (DATA[:PART] + bytes(PART) + b"late").ljust(SIZE, b"\0")


def test_holes_whose_zeros_are_gone_at_each_try_are_sent_in_parts(mount: Composed, store: Counting) -> None:
    sizes: list[int] = []
    upload_part = store.upload_part

    async def noted(key: str, upload_id: str, number: int, body: Any) -> Part:
        sizes.append(len(body))
        return await upload_part(key, upload_id, number, body)

    def fault(operation: str, key: str) -> None:
        if (operation, key) == ("copy_part", "file"):
            raise StoreError(errno.ENOENT, f"{operation} {key!r}", code="NoSuchKey", status=404)

    store.fault = fault

    async def main() -> None:
        await closed(mount, await sparse(mount))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "upload_part", noted)
        run(mount, main)
    assert stored(store) == expected()
    assert max(sizes) == PART


def test_what_is_being_made_is_not_cleared_away(mount: Composed, store: Counting) -> None:
    async def main() -> None:
        handle = await sparse(mount)
        store.after["put"] = trio.Event()
        await begun(mount, partial(mount.parts.file_io.flush, handle))
        await begun(mount, mount.parts.zeros.clear)
        await store.release()
        await trio.testing.wait_all_tasks_blocked()
        await closed(mount, handle)

    run(mount, main)
    assert store.sent == 4 * PART, "the zeros once"
    assert sorted(scratch(mount)) == sorted(zeros(store))


@pytest.mark.parametrize("copies", [True, False])
def test_removing_the_file_ends_its_upload(mount: Composed, store: Counting, copies: bool) -> None:
    store.leaves_no_trace = copies

    async def main() -> None:
        handle = await sparse(mount, size=1000 * PART)
        store.before["copy_part" if copies else "upload_part", "file"] = trio.Event()
        await begun(mount, partial(mount.parts.file_io.flush, handle))
        before = store.sent
        await begun(mount, partial(mount.unlink, "file"))
        await store.release()
        await trio.testing.wait_all_tasks_blocked()
        assert store.sent - before < 40 * PART
        await mount.parts.file_io.release(handle)

    run(mount, main)
    assert "file" not in bodies(store)
    assert store._uploads == {}


def test_a_removal_that_fails_lets_the_upload_go_on(mount: Composed, store: Counting) -> None:
    outcomes: list[int] = []

    async def main() -> None:
        await store.put("file", b"old", mount.parts.inodes.root.properties)
        handle = await opened(mount)
        await mount.parts.file_io.write(handle, 10 * PART + 5, DATA)
        await mount.parts.file_io.truncate(handle.inode, SIZE)
        store.before["copy_part", "file"] = trio.Event()
        await begun(mount, partial(mount.parts.file_io.flush, handle))
        store.errors["delete", "file"] = [StoreError(errno.EACCES, "delete", status=403)]

        async def remove() -> None:
            with fails(errno.EACCES):
                await mount.unlink("file")
            outcomes.append(1)

        await begun(mount, remove)
        store.before.pop(("copy_part", "file")).set()
        await trio.testing.wait_all_tasks_blocked()
        await mount.parts.file_io.release(handle)

    run(mount, main)
    mount.loop.passes(100)
    assert outcomes == [1]
    assert stored(store) == b"old" + expected()[3:]


def test_a_row_of_an_earlier_mount_is_cleared_away(store: Counting, tmp_path: Path) -> None:
    key = of_zeros("")
    with composed(store, tmp_path, part_size=PART) as mount:

        async def leave() -> None:
            mount._journal.add_scratch(key)
            await store.put(key, b"\0", mount.parts.inodes.root.properties)

        mount.loop.run(leave)
        mount.crash()
        mount.start()
        assert zeros(store) == [] and scratch(mount) == []


def test_zeros_that_could_not_be_joined_are_removed_at_the_end(mount: Composed, store: Counting) -> None:
    """The upload of the larger ones was not begun."""

    def fault(operation: str, key: str) -> None:
        if operation == "create_multipart" and is_of_zeros(key):
            raise StoreError(errno.EIO, operation, status=500)

    async def main() -> None:
        handle = await sparse(mount)
        store.fault = fault
        with fails(errno.EIO):
            await mount.parts.file_io.flush(handle)
        store.fault = None
        await closed(mount, handle)
        await mount.parts.drain()

    run(mount, main)
    assert bodies(store) == {"file": expected()}


def test_hashes_of_zeros() -> None:
    async def main() -> None:
        hashes = ZeroHashes()
        for size in (5 << 20, 3, 8 << 20, (5 << 20) + 1, 0, 3):
            assert await hashes.of(size) == md5(bytes(size)).hexdigest()

    trio.run(main)


def test_keys_of_zeros_are_told_from_names_of_files() -> None:
    assert is_of_zeros(of_zeros(""))
    one = of_zeros("")
    almost = one[:-1] + ("1" if one.endswith("0") else "0")
    chosen = (f".sosfs-zeros-{uuid.uuid4()}", f".sosfs-zeros-{'0' * 32}-{'0' * 16}", almost)
    for name in (".sosfs-zeros-", ".sosfs-zeros-mine", "a", of_zeros("") + "x", "x" + of_zeros(""), *chosen):
        assert not is_of_zeros(name)


def test_a_file_of_such_a_name_is_a_file(mount: Composed, store: Counting) -> None:
    name = f".sosfs-zeros-{uuid.uuid4()}"

    async def main() -> None:
        await mount.write(name, b"mine", flags=os.O_CREAT)
        await put_all(store, {f"d/{name}": b"theirs"})

    run(mount, main)
    mount.loop.passes(15)  # so that the directory is listed again
    assert mount.loop.run(mount.tree) == {name: (b"mine", 0o644), "d": None, f"d/{name}": (b"theirs", 0o644)}


@pytest.mark.parametrize(
    "name",
    [of_zeros(""), of_zeros("d/"), ".sosfs-attributes", ".sosfs-attributes/x"],
    ids=["zeros", "zeros below", "index", "in an index"],
)
def test_what_no_listing_would_show_cannot_be_made(mount: Composed, store: Counting, name: str) -> None:
    async def main() -> None:
        await put_all(store, {"d/file": b"x"} | ({".sosfs-attributes/v1": b"x"} if name.endswith("/x") else {}))
        for work in (partial(mount.write, flags=os.O_CREAT, data=b"x"), mount.mkdir, partial(mount.rename, "d/file")):
            with fails(errno.EINVAL):
                await work(name)

    run(mount, main)
    assert name not in bodies(store) and bodies(store)["d/file"] == b"x"
