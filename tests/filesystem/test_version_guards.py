"""What `sosfs restore` and `sosfs versions` may do, and to which versions: each guard by itself.

In one process: over versions in memory, beside a mount without a kernel that has changes of its own.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import trio

from sosfs.config.parameters import Durability
from sosfs.control.past import VersioningRequired
from sosfs.control.rejected_texts import Rejections
from sosfs.errors import StoreError
from sosfs.filesystem import restore, versions
from sosfs.filesystem.drop import DropCommand
from sosfs.filesystem.restore import RestoreCommand, wanted
from sosfs.filesystem.usage import UsageCommand
from sosfs.filesystem.version_paths import VersionPaths
from sosfs.filesystem.versions import VersionsCommand, surplus
from sosfs.s3 import version_changes
from sosfs.s3.bucket import S3Store
from sosfs.s3.bucket_settings import BucketSettings, Versioning
from sosfs.s3.content_md5 import ContentMd5
from sosfs.s3.dispatch import Dispatcher
from sosfs.s3.past_store import PastStore
from sosfs.s3.protocol import (
    UNKNOWN,
    UNLOCKED,
    Acl,
    Detail,
    Grant,
    Listed,
    Lock,
    Object,
    ObjectStore,
    Page,
    Part,
    Properties,
    Upload,
    Version,
)
from sosfs.s3.version_answers import VersionEntry, VersionMarker, VersionPage
from sosfs.s3.version_changes import VersionChanges
from sosfs.s3.version_history import FEW, Entries, KeyByKey, VersionHistory
from sosfs.tree.keys import Form, name_of
from tests.support.composed import Composed, composed
from tests.support.drive import fails
from tests.support.fake_store import PRIVATE
from tests.support.held import Held, closed, opened, put_all

PUBLIC = Acl("owner", (*PRIVATE.grants, Grant("everybody", "READ")))


@dataclass
class Kept:
    """A bucket that keeps versions: the calls on it, and what was asked for."""

    page: int = 1000
    entries: dict[str, Entries] = field(default_factory=dict)
    properties: dict[str, Properties] = field(default_factory=dict)  # by version ids, as the next
    acls: dict[str, Acl] = field(default_factory=dict)
    done: list[tuple[Any, ...]] = field(default_factory=list)
    fails: dict[tuple[str, str], StoreError] = field(default_factory=dict)  # by request and version id
    digests: ContentMd5 = field(default_factory=ContentMd5)
    locks: bool = False
    held: dict[str, Lock] = field(default_factory=dict)  # by version ids
    sizes: list[int] = field(default_factory=list)  # of what was sent
    goes_round: int = 0  # after so many entries

    def put(self, key: str, etag: str, at: float, *, size: int = 3, metadata: str = "", acl: Acl = PRIVATE) -> str:
        """A version; "" as its ETag makes a delete marker. Returns its id."""
        made = f"{key}@{at}"
        version = Version(etag, size, int(at)) if etag else UNKNOWN
        self.entries.setdefault(key, []).insert(0, VersionEntry(key, made, at, True, not etag, version, "COLD"))
        self.properties[made], self.acls[made] = Properties(metadata={"a": metadata}), acl
        return made

    # As a dispatcher, and as the calls that it gives to what is sent

    @property
    def dispatcher(self) -> Dispatcher:
        return cast(Dispatcher, self)

    async def send(self, _: str, work: Callable[[Any], Any], *, size: int = 0) -> Any:
        await trio.lowlevel.checkpoint()
        self.sizes.append(size)
        return work(self)

    def _begin(self, request: str, version_id: str) -> None:
        if (error := self.fails.get((request, version_id))) is not None:
            raise error

    def list_versions(self, prefix: str, *, delimiter: str, after: VersionMarker | None, limit: int) -> VersionPage:
        self.sizes.pop()
        keys = sorted(key for key in self.entries if key.startswith(prefix))
        every = [entry for key in keys for entry in self.entries[key]]
        ids = [VersionMarker(entry.key, entry.version_id) for entry in every]
        begin = ids.index(after) + 1 if after is not None else 0
        begin = begin % self.goes_round if self.goes_round else begin
        stop = begin + min(limit, self.page)
        return VersionPage(tuple(every[begin:stop]), (), ids[stop - 1] if stop < len(every) else None)

    def head(self, key: str, detail: Detail, *, version_id: str) -> Object:
        self._begin("head", version_id)
        found = next(entry for entry in self.entries[key] if entry.version_id == version_id)
        lock = self.held.get(version_id, UNLOCKED)
        return Object(key, found.version, self.properties[version_id], answered=1000, lock=lock)

    def get_acl(self, key: str, *, version_id: str) -> Acl:
        self._begin("get_acl", version_id)
        return self.acls[version_id]

    def delete(self, key: str, *, version_id: str) -> None:
        self._begin("delete", version_id)
        self.done.append(("delete", version_id))
        self.entries[key] = [entry for entry in self.entries[key] if entry.version_id != version_id]

    def copy(self, source: str, target: str, *, version_id: str, digest: Mapping[str, str], **options: Any) -> None:
        assert source == target and not digest
        self._begin("copy", version_id)
        self.done.append(("copy", version_id, options))

    def copy_part(
        self, key: str, upload_id: str, number: int, source: str, *, pin: str, start: int, stop: int, version_id: str
    ) -> Part:
        self._begin("copy_part", version_id)
        self.done.append(("copy_part", version_id, number, start, stop))
        return Part(number, "etag", stop - start)

    # As a store

    async def create_multipart(self, key: str, properties: Properties, *, acl: Acl | None) -> str:
        self.done.append(("create", properties, acl))
        return "upload"

    async def complete_multipart(self, key: str, upload_id: str, parts: Sequence[Part], *, begun_with: Any) -> None:
        self.done.append(("complete", [part.number for part in parts]))

    async def abort_multipart(self, key: str, upload_id: str) -> None:
        self.done.append(("abort",))


class NotedDrop:
    """Notes which paths are forgotten."""

    def __init__(self) -> None:
        self.paths: list[Any] = []

    async def run(self, paths: Any, tell: Any) -> None:
        await trio.lowlevel.checkpoint()
        self.paths += paths


class Required:
    """Versions are kept, unless it `fails`."""

    fails: OSError | None = None

    async def check(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.fails is not None:
            raise self.fails


async def keeps_acls() -> bool:
    return True


def changes_of(kept: Kept) -> VersionChanges:
    return VersionChanges(cast(S3Store, kept), keeps_acls)


def command(mount: Composed, kept: Kept, dropping: NotedDrop) -> RestoreCommand:
    paths = VersionPaths(VersionHistory(kept.dispatcher), "")
    changes = changes_of(kept)
    return RestoreCommand(
        mount.parts, paths, changes, cast(VersioningRequired, Required()), cast(DropCommand, dropping)
    )


async def restored(mount: Composed, kept: Kept, *paths: str, **options: str) -> dict[str, Any]:
    told = await command(mount, kept, NotedDrop()).run(
        [tuple(path.encode().split(b"/")) for path in paths], lambda _: None, options
    )
    return dict(told)


def pruning(kept: Kept, rejections: Rejections | None = None) -> VersionsCommand:
    paths = VersionPaths(VersionHistory(kept.dispatcher), "")
    required = cast(VersioningRequired, Required())
    return VersionsCommand(paths, changes_of(kept), required, rejections or Rejections())


def refused(number: int = errno.EACCES) -> StoreError:
    return StoreError(number, "request", code="AccessDenied", status=403)


def entries(*ages: str) -> Entries:
    """The newest first, at 100, 99, 98...: `v` a version, `d` a delete marker."""
    return [
        VersionEntry("key", str(100 - at), 100.0 - at, not at, kind == "d", Version(kind, 1))
        for at, kind in enumerate(ages)
    ]


# Which version


@pytest.mark.parametrize(
    ("kinds", "moment", "is_named", "due"),
    [
        ("vvv", 100.0, False, "100"),  # what was current at that very moment
        ("vvv", 99.5, False, "99"),
        ("vvv", 98.0, False, "98"),
        ("vvv", 97.9, False, None),  # it came later
        ("vdv", 99.5, False, None),  # it was deleted then
        ("vdv", 98.5, True, "98"),
        ("dvv", None, False, "99"),
        ("ddv", None, False, "98"),
        ("d", None, True, None),
        ("vvv", None, True, "99"),  # named, and there: the one before
        ("vdv", None, True, "98"),
        ("v", None, True, None),
        ("vvv", None, False, "100"),  # of a tree only what is deleted
        ("dvv", None, True, "99"),
    ],
)
def test_which_version_a_file_is_to_have(kinds: str, moment: float | None, is_named: bool, due: str | None) -> None:
    found = wanted(entries(*kinds), moment, is_named=is_named)
    assert (found and found.version_id) == due


@pytest.mark.parametrize(
    ("kinds", "keep", "before", "gone"),
    [
        ("vvv", 1, None, ["99", "98"]),
        ("vvv", 2, None, ["98"]),
        ("vvv", 3, None, []),
        ("v", 0, None, []),  # never what is current
        ("dvv", 0, None, ["99", "98"]),  # nor the marker by which it is gone
        ("dvv", 1, None, ["98"]),
        ("vdvv", 2, None, ["97"]),  # a marker is no version
        ("vvv", None, 99.5, ["98"]),  # not current since 99: the one at 99 was replaced at 100
        ("vvv", None, 100.5, ["99", "98"]),
        ("vvv", None, 99.0, []),
        ("vvvv", 3, 99.5, ["98", "97"]),
    ],
)
def test_which_old_versions_go(kinds: str, keep: int | None, before: float | None, gone: list[str]) -> None:
    assert [entry.version_id for entry in surplus(entries(*kinds), keep=keep, before=before)] == gone


# Restore


@pytest.fixture
def kept() -> Kept:
    """The versions."""
    return Kept()


def test_what_only_a_marker_hides_comes_back_without_it_and_nothing_is_copied(mount: Composed, kept: Kept) -> None:
    kept.put("d/file", "old", 1)
    markers = [kept.put("d/file", "", 2), kept.put("d/file", "", 3)]
    told = mount.loop.run(partial(restored, mount, kept, "d"))
    assert (told["files"], told["restored"]) == (1, 1)
    assert sorted(kept.done) == [("delete", marker) for marker in markers]


def test_what_another_version_hides_is_copied_over_it_with_all_that_it_has(mount: Composed, kept: Kept) -> None:
    old = kept.put("d/file", "old", 1, acl=PUBLIC)
    kept.put("d/file", "", 2)
    kept.put("d/file", "new", 3)
    told = mount.loop.run(partial(restored, mount, kept, "d", at="1.5"))
    assert told["restored"] == 1
    assert kept.done == [
        ("copy", old, {"pin": "", "properties": None, "acl": PUBLIC, "storage_class": "COLD"}),
    ], "no marker goes, and the version keeps its ACL and class"


def test_a_marker_that_may_not_go_is_copied_over(mount: Composed, kept: Kept) -> None:
    old = kept.put("d/file", "old", 1)
    kept.fails["delete", kept.put("d/file", "", 2)] = refused()
    assert mount.loop.run(partial(restored, mount, kept, "d"))["restored"] == 1
    assert [done[:2] for done in kept.done] == [("copy", old)]
    assert kept.done[0][2]["acl"] is None, "a private one is what any new object gets"


def test_an_error_is_told_and_keeps_no_other_file(mount: Composed, kept: Kept) -> None:
    for name in ("a", "b", "c"):
        kept.put(f"d/{name}", "old", 1)
    kept.fails["delete", kept.put("d/b", "", 2)] = StoreError(errno.EIO, "delete", detail="no answer")
    markers = [kept.put(f"d/{name}", "", 2) for name in ("a", "c")]
    told = mount.loop.run(partial(restored, mount, kept, "d"))
    assert (told["files"], told["restored"], told["failed_files"]) == (3, 2, 1)
    assert [path for path, _ in told["failed"]] == ["d/b"]
    assert sorted(kept.done) == [("delete", marker) for marker in markers]


@pytest.mark.parametrize(("metadata", "is_left"), [("same", True), ("other", False)])
def test_what_is_so_already_is_left(mount: Composed, kept: Kept, metadata: str, is_left: bool) -> None:
    kept.put("d/file", "bytes", 1, metadata="same")
    kept.put("d/file", "other", 2)
    kept.put("d/file", "bytes", 3, metadata=metadata)
    told = mount.loop.run(partial(restored, mount, kept, "d", at="1.5"))
    assert (told["same"], told["restored"]) == ((1, 0) if is_left else (0, 1))
    assert bool(kept.done) == (not is_left)


def test_of_what_nothing_is_known_is_never_taken_for_the_same(mount: Composed, kept: Kept) -> None:
    """A listing that tells nonsense of two versions tells the same nonsense."""
    for at in (1.0, 2.0):
        made = kept.put("d/file", "etag", at)
        (entry, *older) = kept.entries["d/file"]
        kept.entries["d/file"] = [VersionEntry(entry.key, made, at, True, False, UNKNOWN, "COLD"), *older]
    told = mount.loop.run(partial(restored, mount, kept, "d", at="1.5"))
    assert (told["same"], told["restored"]) == (0, 1)


def test_what_came_later_stays_and_is_counted(mount: Composed, kept: Kept) -> None:
    kept.put("d/file", "new", 3)
    kept.put("d/gone", "new", 3)
    kept.put("d/gone", "", 4)
    told = mount.loop.run(partial(restored, mount, kept, "d", at="2"))
    assert (told["later"], told["restored"], kept.done) == (1, 0, [])


def test_a_dry_run_tells_and_does_nothing(mount: Composed, kept: Kept) -> None:
    kept.put("d/file", "old", 1, size=7)
    kept.put("d/file", "", 2)
    told = mount.loop.run(partial(restored, mount, kept, "d", run="dry"))
    assert told["changes"] == [("d/file", 1, 7)]
    assert (told["restored"], kept.done) == (1, [])
    assert mount.loop.run(partial(restored, mount, kept, "d"))["changes"] == []


@pytest.mark.parametrize("what", ["not sent", "open for writing", "attributes", "clean", "not open"])
def test_a_file_with_changes_of_this_mount_is_left_and_told(tmp_path: Path, what: str) -> None:
    store, kept = Held(), Kept()
    old = kept.put("d/file", "old", 1)
    kept.put("d/file", "new", 2)

    async def main(mount: Composed) -> None:
        await put_all(store, {"d/file": b"bytes"})
        writes = what in ("not sent", "open for writing")
        handle = await opened(mount, os.O_RDWR if writes else os.O_RDONLY, "d/file")
        if what == "not sent":
            await mount.parts.file_io.write(handle, 0, b"mine")
            await closed(mount, handle)
        elif what == "not open":
            await mount.parts.file_io.release(handle)
        elif what == "attributes":
            handle.inode.mode = 0o100600
            mount.parts.attributes.changed(handle.inode)
        told = await restored(mount, kept, "d", at="1.5")
        is_clean = what in ("clean", "not open")
        assert (told["restored"], told["unsent_files"]) == ((1, 0) if is_clean else (0, 1))
        assert told["unsent"] == ([] if is_clean else ["d/file"])
        assert [done[:2] for done in kept.done] == ([("copy", old)] if is_clean else [])
        if what not in ("not sent", "not open"):
            await mount.parts.file_io.release(handle)

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(main, mount))


@pytest.mark.parametrize("folder", ["d", ""])
def test_a_file_beside_a_directory_of_its_name_is_looked_for_under_its_own(tmp_path: Path, folder: str) -> None:
    store, kept = Held(), Kept()
    key = f"{folder}/file".lstrip("/")
    kept.put(key, "old", 1)
    kept.put(key, "new", 2)

    async def main(mount: Composed) -> None:
        await put_all(store, {key: b"file", f"{key}/below": b"below"})
        parent = await mount._walk(folder)
        beside = await mount.parts.namespace.lookup(parent, name_of("file", Form.BESIDE))
        handle = await mount.parts.file_io.open(await mount.parts.attributes.revalidate(beside), os.O_RDWR, 1)
        await mount.parts.file_io.write(handle, 0, b"mine")
        told = await restored(mount, kept, key, at="1.5")
        assert (told["restored"], told["unsent_files"], kept.done) == (0, 1, [])
        await closed(mount, handle)

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))


def test_deletes_of_this_mount_go_first(mount: Composed, store: Held, kept: Kept) -> None:
    """Else one would come after the file is back."""
    kept.put("d/file", "old", 1)
    kept.put("d/file", "", 2)

    async def main() -> None:
        await put_all(store, {"d/first": b"1", "d/file": b"2"})
        await mount.unlink("d/first")
        store.before["delete"] = store.before["delete_many"] = trio.Event()
        await mount.unlink("d/file")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(restored, mount, kept, "d"))
            await trio.testing.wait_all_tasks_blocked()
            assert kept.done == [], "it did not wait"
            await store.release()
        assert len(kept.done) == 1

    mount.loop.run(main)


@pytest.mark.parametrize("run", ["real", "dry"])
def test_afterwards_what_was_known_of_the_paths_is_forgotten(mount: Composed, kept: Kept, run: str) -> None:
    kept.put("d/file", "old", 1)
    kept.put("d/file", "", 2)
    dropping = NotedDrop()
    mount.loop.run(partial(command(mount, kept, dropping).run, [(b"d",)], lambda _: None, {"run": run}))
    assert dropping.paths == ([(b"d",)] if run == "real" else [])


def test_also_where_it_was_called_off(mount: Composed, kept: Kept) -> None:
    for at in range(3):
        kept.put(f"d/{at}", "old", 1)
        kept.put(f"d/{at}", "", 2)
    kept.page = 2
    dropping = NotedDrop()

    async def main() -> None:
        with trio.CancelScope() as scope:
            await command(mount, kept, dropping).run([(b"d",)], lambda _: scope.cancel(), {})

    mount.loop.run(main)
    assert dropping.paths == [(b"d",)]


def test_the_entries_of_a_key_stay_together_over_pages(mount: Composed, kept: Kept) -> None:
    """Else an old version would be taken for the current one of a file."""
    kept.page = 2
    for key in ("d/a", "d/b", "d/c"):
        for at in range(1, 6):
            kept.put(key, f"{at}", at)
    told = mount.loop.run(partial(restored, mount, kept, "d", at="4.5"))
    assert (told["files"], told["restored"]) == (3, 3)
    assert [done[1] for done in kept.done] == [f"{key}@4" for key in ("d/a", "d/b", "d/c")]


def test_where_no_version_is_kept_it_is_said(mount: Composed, kept: Kept) -> None:
    kept.put("d/file", "old", 1)
    with pytest.raises(FileNotFoundError, match="no version of it is kept"):
        mount.loop.run(partial(restored, mount, kept, "d/never"))


# By a copy


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is larger than 10 bytes is copied in parts of 4."""
    monkeypatch.setattr(version_changes, "PUT_MAX", 10)
    monkeypatch.setattr(version_changes, "PART", 4)
    return iter(())


def bring_back(kept: Kept, key: str) -> None:
    trio.run(changes_of(kept).bring_back, kept.entries[key][-1])


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("size", [10, 11])
def test_a_large_version_is_copied_by_parts_with_all_that_it_has(kept: Kept, size: int) -> None:
    old = kept.put("file", "old", 1, size=size, metadata="its own", acl=PUBLIC)
    bring_back(kept, "file")
    if size == 10:
        assert [done[0] for done in kept.done] == ["copy"]
        return
    first, *parts, last = kept.done
    assert first == ("create", kept.properties[old], PUBLIC)
    assert sorted(parts) == [("copy_part", old, 1, 0, 4), ("copy_part", old, 2, 4, 8), ("copy_part", old, 3, 8, 11)]
    assert (last[0], sorted(last[1])) == ("complete", [1, 2, 3])


@pytest.mark.usefixtures("small_parts")
def test_a_copy_by_parts_that_fails_leaves_no_upload(kept: Kept) -> None:
    kept.fails["copy_part", kept.put("file", "old", 1, size=11)] = refused(errno.EIO)
    with pytest.raises(StoreError):
        bring_back(kept, "file")
    assert kept.done[-1] == ("abort",)


@pytest.mark.parametrize(("number", "is_copied"), [(errno.EACCES, True), (errno.EIO, False)])
def test_an_acl_that_may_not_be_read_is_left_and_one_that_is_not_told_is_an_error(
    kept: Kept, number: int, is_copied: bool
) -> None:
    old = kept.put("file", "old", 1, acl=PUBLIC)
    kept.fails["get_acl", old] = refused() if is_copied else StoreError(errno.EIO, "get_acl", detail="no answer")
    if not is_copied:
        with pytest.raises(StoreError):
            bring_back(kept, "file")
        assert kept.done == []
        return
    bring_back(kept, "file")
    assert kept.done[0][2]["acl"] is None


# Old versions


def pruned(kept: Kept, **options: str) -> dict[str, Any]:
    return dict(trio.run(pruning(kept).prune, [(b"d",)], lambda _: None, {"run": "real", **options}))


def history(kept: Kept) -> list[str]:
    for at in (1.0, 2.0, 3.0):
        kept.put("d/file", f"{at}", at, size=int(at))
    kept.put("d/gone", "old", 1, size=5)
    return [kept.put("d/gone", "", 2)]


def test_what_is_current_stays_whatever_is_asked_for(kept: Kept) -> None:
    history(kept)
    told = pruned(kept, keep="0", older="0")
    assert (told["versions"], told["bytes"]) == (3, 1 + 2 + 5)
    left = [[entry.version_id for entry in kept.entries[key]] for key in ("d/file", "d/gone")]
    assert left == [["d/file@3.0"], ["d/gone@2"]]


def test_a_dry_run_counts_and_removes_nothing(kept: Kept) -> None:
    history(kept)
    assert (pruned(kept, keep="1", run="dry")["versions"], kept.done) == (2, [])


def test_an_old_version_that_may_not_go_is_told_and_the_others_go(kept: Kept) -> None:
    history(kept)
    kept.fails["delete", "d/file@1.0"] = refused()
    told = pruned(kept, keep="0")
    assert (told["versions"], told["bytes"], told["failed_files"]) == (2, 2 + 5, 1)
    assert [path for path, _ in told["failed"]] == ["d/file"]


def test_age_counts_from_when_it_was_replaced(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    history(kept)
    monkeypatch.setattr(time, "time", lambda: 100.0)
    assert pruned(kept, older="97.5")["versions"] == 2  # replaced or deleted at 2; the one at 2 was replaced at 3
    assert sorted(kept.done) == [("delete", "d/file@1.0"), ("delete", "d/gone@1")]


def test_nothing_to_prune_where_nothing_is_kept(kept: Kept) -> None:
    with pytest.raises(FileNotFoundError):
        pruned(kept, keep="1")


def test_a_listing_of_too_many_is_none(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    history(kept)
    found = trio.run(pruning(kept).list, [(b"d",)], lambda _: None, {})["entries"]
    assert [(entry[0], entry[4], entry[5]) for entry in found] == [
        ("d/file", True, False), ("d/file", False, False), ("d/file", False, False),
        ("d/gone", True, True), ("d/gone", False, False),
    ]  # fmt: skip
    monkeypatch.setattr(versions, "LISTED", 4)
    with pytest.raises(OSError, match="more than 4 versions"):
        trio.run(pruning(kept).list, [(b"d",)], lambda _: None, {})


def test_one_file_has_its_old_versions_removed_as_well(kept: Kept) -> None:
    history(kept)
    told: list[Any] = []
    outcome = trio.run(pruning(kept).prune, [(b"d", b"file")], told.append, {"run": "real", "keep": "1"})
    assert outcome["versions"] == 2
    assert told == [{"versions": 1}, {"versions": 2}]
    trio.run(pruning(kept).list, [(b"d", b"file")], told.append, {})
    assert told[-1] == {"entries": 1}
    with pytest.raises(FileNotFoundError, match="no version of it is kept"):
        trio.run(pruning(kept).list, [(b"d", b"file"), (b"never",)], told.append, {})


@pytest.mark.parametrize("what", ["list", "prune", "restore"])
def test_where_the_bucket_keeps_no_versions_nothing_is_asked(
    mount: Composed, kept: Kept, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    history(kept)
    monkeypatch.setattr(Required, "fails", OSError(errno.EOPNOTSUPP, "no versions are kept"))
    dropping = NotedDrop()
    work = command(mount, kept, dropping).run if what == "restore" else getattr(pruning(kept), what)
    with pytest.raises(OSError, match="no versions are kept"):
        mount.loop.run(partial(work, [(b"d",)], lambda _: None, {"run": "real", "keep": "0"}))
    assert (kept.done, kept.sizes, dropping.paths) == ([], [], [])


@pytest.mark.parametrize("server_says", [errno.EACCES, errno.EIO])
@pytest.mark.parametrize("lock", [Lock("GOVERNANCE", 2000), Lock("GOVERNANCE", 1000), Lock(is_held=True), UNLOCKED])
@pytest.mark.parametrize("locks", [True, False], ids=["with Object Lock", "without"])
def test_a_version_that_a_lock_keeps_is_told_with_the_lock(
    kept: Kept, server_says: int, lock: Lock, locks: bool
) -> None:
    kept.locks = locks
    old = kept.put("d/file", "old", 1)
    kept.put("d/file", "new", 2)
    kept.held[old] = lock
    kept.fails["delete", old] = refused(server_says)
    rejections = Rejections()
    told = trio.run(pruning(kept, rejections).prune, [(b"d",)], lambda _: None, {"run": "real", "keep": "1"})
    is_explained = locks and server_says == errno.EACCES
    is_locked = is_explained and lock.holds(1000)
    assert (told["versions"], told["failed_files"]) == (0, 1)
    ((path, why),) = told["failed"]
    assert path == "d/file"
    assert ("lock" in why or "legal hold" in why) == is_locked
    assert (f"d/file, version {old}" in rejections.text()) == is_locked
    assert len(kept.sizes) == (2 if is_explained else 1), "nothing more is asked"


@pytest.mark.parametrize("is_marker", [True, False])
def test_a_refusal_that_cannot_be_explained_is_told_as_it_is(kept: Kept, is_marker: bool) -> None:
    """A marker has no lock, and who may not look is not told more."""
    kept.locks = True
    made = kept.put("d/file", "" if is_marker else "old", 1)
    kept.put("d/file", "new", 2)
    kept.fails["delete", made] = error = refused()
    kept.fails["head", made] = StoreError(errno.EIO, "head", detail="no answer")
    with pytest.raises(StoreError) as caught:
        trio.run(changes_of(kept).remove, kept.entries["d/file"][-1])
    assert caught.value is error
    assert len(kept.sizes) == (1 if is_marker else 2)


@pytest.mark.parametrize("after", [2, 4], ids=["a page", "two pages"])
def test_a_listing_of_versions_that_goes_round_ends(kept: Kept, after: int) -> None:
    history(kept)
    for at in range(5):
        kept.put("key", f"{at}", at)
    kept.page, kept.goes_round = 2, after
    past = PastStore(cast(ObjectStore, None), kept.dispatcher, -1.0)  # when nothing was there
    listings: list[Callable[[], Awaitable[Any]]] = [
        partial(pruning(kept).list, [(b"d",)], lambda _: None, {}),
        partial(VersionHistory(kept.dispatcher).of_key, "key"),
        partial(past.list, "d/"),
        partial(past._has_any, "d/"),
        partial(_usage(kept, Versioning.ENABLED).run, [(b"d",)], lambda _: None, {}),
        partial(_usage(kept, Versioning.OFF).run, [(b"d",)], lambda _: None, {}),
    ]
    for listing in listings:
        with fails(errno.EIO):
            trio.run(listing)


def _usage(kept: Kept, versioning: Versioning) -> UsageCommand:
    """Of a bucket with these versions, where the listing of what is there goes round as well."""

    class Round:
        async def versioning(self) -> Versioning:
            return versioning

        async def list(self, prefix: str, *, token: str, **_: Any) -> Page:
            await trio.lowlevel.checkpoint()
            return Page((), (), "b" if token == "a" else "a")

    history = VersionHistory(kept.dispatcher)
    return UsageCommand(cast(ObjectStore, Round()), history, VersionPaths(history, ""), Round(), lambda _: [])


@pytest.mark.parametrize("denied_after", [0, 1, 2], ids=["at once", "after a page", "after two"])
def test_what_is_not_listed_with_its_versions_to_the_end_is_counted_once(
    kept: Kept, monkeypatch: pytest.MonkeyPatch, denied_after: int
) -> None:
    """A key that may not list them any more finds that out in the middle."""
    for key in ("d", "d/a", "d/b", "d/c", "d/d", "d/e"):
        kept.put(key, "new", 2, size=7)
    kept.page = 3
    pages, ask = [0], kept.list_versions

    def denied(prefix: str, **options: Any) -> VersionPage:
        pages[0] += 1
        if pages[0] > denied_after:
            raise refused()
        return ask(prefix, **options)

    class Current:
        async def list(self, prefix: str, **_: Any) -> Page:
            await trio.lowlevel.checkpoint()
            return Page(
                tuple(Listed(key, Version("new", 7)) for key in sorted(kept.entries) if key.startswith(prefix)), ()
            )

        async def list_uploads(self, prefix: str) -> Sequence[Upload]:
            await trio.lowlevel.checkpoint()
            return []

        async def versioning(self) -> Versioning:
            await trio.lowlevel.checkpoint()
            return Versioning.ENABLED

    monkeypatch.setattr(kept, "list_versions", denied)
    history, current = VersionHistory(kept.dispatcher), Current()
    usage = UsageCommand(cast(ObjectStore, current), history, VersionPaths(history, ""), current, lambda _: [])
    told = trio.run(partial(usage.run, [(b"d",)], lambda _: None, {}))
    ((_, found),) = told["usages"]
    assert (found["objects"]["count"], found["objects"]["size"]) == (6, 6 * 7)
    assert (found["old_versions"], found["delete_markers"]) == (None, None)


def test_all_entries_of_one_key_are_found_and_no_page_is_asked_for_beyond_them(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept.page = 2
    for at in range(1, 6):
        kept.put("k", f"{at}", at)
    for at in range(10):
        kept.put(f"k/{at}", "x", 1)
    pages: list[int] = []
    ask = kept.list_versions

    def noted(prefix: str, *, delimiter: str, after: VersionMarker | None, limit: int) -> VersionPage:
        pages.append(limit)
        return ask(prefix, delimiter=delimiter, after=after, limit=limit)

    monkeypatch.setattr(kept, "list_versions", noted)
    found = trio.run(VersionHistory(kept.dispatcher).of_key, "k")
    assert [entry.version_id for entry in found] == [f"k@{at}" for at in (5, 4, 3, 2, 1)]
    assert pages == [FEW] * 3
    assert trio.run(VersionHistory(kept.dispatcher).of_key, "kk") == []


def test_a_page_without_entries_is_not_the_end(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    first = VersionEntry("k/", "1", 1.0, is_latest=True)
    pages = [VersionPage((), (), VersionMarker("j")), VersionPage((first,), (), None)] * 2
    monkeypatch.setattr(kept, "list_versions", lambda *_, **__: pages.pop(0))

    async def main() -> list[Entries]:
        below = KeyByKey(VersionHistory(kept.dispatcher), "")
        found: list[Entries] = []
        while not below.is_done:
            found += await below.following()
        return found

    assert trio.run(main) == [[first]]
    assert trio.run(BucketSettings(cast(Any, None), kept.dispatcher).has_versions_under, "k/")
    assert pages == []


# Paths


def test_the_root_of_a_mount_of_a_prefix_is_looked_at_once(kept: Kept) -> None:
    for key in ("p/", "p/a", "p2/b", "q"):
        kept.put(key, "old", 1)
    paths = VersionPaths(VersionHistory(kept.dispatcher), "p/")

    async def all_of() -> list[str]:
        return [entries[0].key async for groups in paths.groups(paths.key_of(())) for entries in groups]

    assert trio.run(all_of) == ["p/", "p/a"]
    assert [paths.shown(key) for key in ("p/a", "p/d/")] == ["a", "d/"]


def test_some_names_are_of_no_key() -> None:
    paths = VersionPaths(VersionHistory(Kept().dispatcher), "p/")
    assert [paths.key_of(path) for path in ((), (b"a",), (b"a", b"b"))] == ["p/", "p/a", "p/a/b"]
    with fails(errno.EINVAL):
        paths.key_of((b".sosfs", b"errors"))
    with fails(errno.ENAMETOOLONG):
        paths.key_of((name_of("x" * 300),))


# Of restore, once more


def test_what_is_locked_is_not_restored_and_what_is_gone_is_not_asked_for(tmp_path: Path, kept: Kept) -> None:
    class Locks:
        are_possible = True

        def __init__(self) -> None:
            self.asked: list[str] = []

        async def of(self, key: str) -> Object:
            self.asked.append(key)
            return Object(key, Version("new", 3), Properties(), lock=Lock(is_held=True))

    locks = Locks()
    kept.put("d/file", "old", 1)
    kept.put("d/file", "new", 2)
    gone = kept.put("d/gone", "old", 1)
    marker = kept.put("d/gone", "", 2)

    def assembled(parts: Any) -> None:
        parts.attributes.protection.begin(locks, lambda path, error, act: None)

    with composed(Held(), tmp_path, assembled=assembled) as mount:
        told = mount.loop.run(partial(restored, mount, kept, "d", at="1.5"))
    assert (told["restored"], told["failed_files"]) == (1, 1)
    assert [path for path, _ in told["failed"]] == ["d/file"]
    assert (kept.done, locks.asked) == ([("delete", marker)], ["d/file"]), gone


def test_how_far_it_is_is_told_and_lists_are_bounded(
    mount: Composed, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restore, "CHANGES", 1)
    told: list[dict[str, Any]] = []
    for at in range(3):
        kept.put(f"d/{at}", "old", 1)
        kept.put(f"d/{at}", "", 2)
    outcome = mount.loop.run(partial(command(mount, kept, NotedDrop()).run, [(b"d",)], told.append, {"run": "dry"}))
    assert (len(told), told[-1]) == (3, {"files": 3, "restored": 3})
    assert (len(outcome["changes"]), outcome["restored"]) == (1, 3)


def test_where_nothing_was_restored_nothing_is_forgotten(mount: Composed, kept: Kept) -> None:
    kept.put("d/file", "old", 1)
    dropping = NotedDrop()
    mount.loop.run(partial(command(mount, kept, dropping).run, [(b"d",)], lambda _: None, {}))
    assert dropping.paths == []


def test_the_very_version_that_is_there_is_not_copied_onto_itself(mount: Composed, kept: Kept) -> None:
    made = kept.put("d/file", "etag", 1)
    (entry,) = kept.entries["d/file"]
    kept.entries["d/file"] = [VersionEntry(entry.key, made, 1, True, False, UNKNOWN, "COLD")]
    told = mount.loop.run(partial(restored, mount, kept, "d", at="1.5"))
    assert (told["same"], told["restored"], kept.done) == (1, 0, [])


def test_where_acls_are_not_kept_none_is_asked_for(kept: Kept) -> None:
    old = kept.put("file", "old", 1, size=7, acl=PUBLIC)
    kept.fails["get_acl", old] = StoreError(errno.EIO, "get_acl", detail="no answer")

    async def keeps_none() -> bool:
        return False

    trio.run(VersionChanges(cast(S3Store, kept), keeps_none).bring_back, kept.entries["file"][0])
    assert kept.done[0][2]["acl"] is None
    assert kept.sizes == [7], "a copy may take as long as its bytes do"


@pytest.mark.usefixtures("small_parts")
def test_each_part_may_take_as_long_as_its_bytes_do(kept: Kept) -> None:
    kept.put("file", "old", 1, size=11)
    bring_back(kept, "file")
    assert sorted(kept.sizes)[-3:] == [3, 4, 4]


def test_no_more_than_a_few_unsent_files_are_named(
    tmp_path: Path, store: Held, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restore, "NAMED", 1)

    async def main(mount: Composed) -> None:
        for at in range(3):
            kept.put(f"d/{at}", "old", 1)
            kept.put(f"d/{at}", "new", 2)
            await put_all(store, {f"d/{at}": b"bytes"})
        for at in range(3):
            await mount.write(f"d/{at}", b"mine")
        told = await restored(mount, kept, "d", at="1.5")
        assert (told["unsent_files"], len(told["unsent"]), told["restored"]) == (3, 1, 0)

    with composed(store, tmp_path, durability=Durability.JOURNAL) as mount:
        mount.loop.run(partial(main, mount))


def test_no_more_than_a_few_files_are_named(mount: Composed, kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "NAMED", 1)
    history(kept)
    for made in ("d/file@1.0", "d/file@2.0", "d/gone@1"):
        kept.fails["delete", made] = refused(errno.EIO)
    outcome = pruned(kept, keep="0")
    assert (outcome["failed_files"], len(outcome["failed"])) == (3, 1)
    assert "AccessDenied" in outcome["failed"][0][1]
    kept.entries.clear()
    monkeypatch.setattr(restore, "NAMED", 2)
    for at in range(4):
        kept.put(f"d/{at}", "old", 1)
        kept.fails["delete", kept.put(f"d/{at}", "", 2)] = StoreError(errno.EIO, "delete", detail="no answer")
    told = mount.loop.run(partial(restored, mount, kept, "d"))
    assert (told["failed_files"], len(told["failed"])) == (4, 2)
