"""The moments at which a bucket is shown: which tree a time and a number stand for, how long, and what is left of it.

Without a mount; `control/test_past.py` has real ones.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from sosfs.control import nodes
from sosfs.control.past import Doorway, PastFolder, VersioningRequired
from sosfs.control.rejected_texts import Rejections
from sosfs.errors import StoreError
from sosfs.filesystem import composition, past
from sosfs.filesystem.memory_limits import whole
from sosfs.filesystem.past import REST, Past
from sosfs.s3.bucket import S3Store
from sosfs.s3.bucket_settings import BucketSettings, Versioning
from sosfs.tree.inodes import ROOT
from tests.support.composed import Composed, composed
from tests.support.drive import fails
from tests.support.fake_store import FakeStore

GIVEN = 100  # numbers of each moment


@contextmanager
def looking(tmp_path: Path, **options: Any) -> Iterator[tuple[Composed, Past]]:
    """Nothing is asked of the store: of trees that nobody walks through only the roots are wanted."""
    store = FakeStore()
    with composed(store, tmp_path, **options) as mount:

        async def begin() -> Past:
            share = whole(mount._settings)
            shown = cast(S3Store, SimpleNamespace(dispatcher=None, bucket="bucket", hashes=True))

            def operate(store: Any, settings: Any, parts: Any) -> Any:
                return SimpleNamespace(highest=parts.inodes.root.number + GIVEN), SimpleNamespace(
                    parts=parts, settings=settings
                )

            return Past(mount._settings, shown, mount.spawn, share, operate, first=ROOT)

        looked = mount.loop.run(begin)
        yield mount, looked

        async def end() -> None:
            looked.close()

        mount.loop.run(end)


def number_of(mount: Composed, looked: Past, name: str, moment: float) -> int:
    async def look() -> int:
        return looked.number_at(name, moment)

    return mount.loop.run(look)


def known(mount: Composed, looked: Past, name: str) -> tuple[int, float] | None:
    async def look() -> tuple[int, float] | None:
        return looked.known(name)

    return mount.loop.run(look)


def tree_at(mount: Composed, looked: Past, number: int) -> Any:
    async def look() -> Any:
        return looked.at(number)

    return mount.loop.run(look)


def directories(mount: Composed) -> list[str]:
    at = mount._settings.state_dir / "at"
    return sorted(os.listdir(at)) if at.exists() else []


def test_each_moment_has_a_tree_whose_numbers_are_its_own(tmp_path: Path) -> None:
    with looking(tmp_path, shared_attributes=True) as (mount, looked):
        one, two = number_of(mount, looked, "yesterday", 100.5), number_of(mount, looked, "monday", 200.0)
        assert number_of(mount, looked, "1970-01-01T00:01:40.5Z", 100.5) == one, "the same by another name"
        for number, moment in ((one, 100.5), (two, 200.0)):
            for within in (number, number + 12_345, number + (1 << 29)):
                shown = tree_at(mount, looked, within)
                assert shown.parts.inodes.root.number == number
            assert shown.parts.inodes.root.mtime_ns == int(moment * 1e9)
            assert (shown.settings.read_only, shown.settings.shared_attributes) == (True, False)
        assert tree_at(mount, looked, ROOT) is None
        assert tree_at(mount, looked, nodes.FIRST) is None
        assert tree_at(mount, looked, nodes.FIRST + 1000) is None
        assert (looked.names, looked.inodes) == (["yesterday", "monday", "1970-01-01T00:01:40.5Z"], 2)


@pytest.mark.parametrize("name", ["yesterday", "2 hours ago", "1970-01-01"])
def test_a_time_that_depends_on_now_is_one_moment_as_long_as_somebody_looks(tmp_path: Path, name: str) -> None:
    with looking(tmp_path) as (mount, looked):
        mount.loop.passes(2 * REST)
        number = number_of(mount, looked, name, 100.0)
        for _ in range(3):
            mount.loop.passes(REST * 0.9)
            assert known(mount, looked, name) == (number, 100.0)
        mount.loop.passes(REST * 0.9)
        tree_at(mount, looked, number + 7)  # somebody works in it
        mount.loop.passes(REST * 0.9)
        assert known(mount, looked, name) == (number, 100.0)
        mount.loop.passes(REST * 1.1)
        assert known(mount, looked, name) == ((number, 100.0) if name == "1970-01-01" else None)
        assert known(mount, looked, "never") is None
        assert tree_at(mount, looked, number) is not None, "who has it open stays in it"


def test_the_moment_that_nobody_has_looked_at_for_longest_makes_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(past, "MOST", 2)
    with looking(tmp_path) as (mount, looked):
        numbers = []
        for at, name in enumerate(("1970-01-01", "1970-01-02")):
            numbers.append(number_of(mount, looked, name, float(at)))
            mount.loop.passes(1)
        assert known(mount, looked, "1970-01-01") is not None
        mount.loop.passes(1)
        third = number_of(mount, looked, "1970-01-03", 3.0)
        assert sorted(looked.names) == ["1970-01-01", "1970-01-03"]
        assert len(directories(mount)) == 2
        assert tree_at(mount, looked, numbers[0]) is not None
        assert tree_at(mount, looked, third) is not None
        with fails(errno.ESTALE):
            tree_at(mount, looked, numbers[1])
        assert number_of(mount, looked, "1970-01-02", 1.0) not in (*numbers, third), "no number has two meanings"


def test_numbers_that_are_used_again_are_of_no_moment_that_is_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(past, "MOST", 2)
    monkeypatch.setattr(past, "SLOTS", 4)
    with looking(tmp_path) as (mount, looked):
        first = number_of(mount, looked, "1970-01-01", 0.0)
        tree = tree_at(mount, looked, first)
        for at in range(1, 9):
            mount.loop.passes(1)
            assert known(mount, looked, "1970-01-01") == (first, 0.0)
            other = number_of(mount, looked, f"1970-02-0{at}", float(at))
            assert other != first
            assert tree_at(mount, looked, other) is not tree_at(mount, looked, first) is tree


def test_no_number_of_a_moment_that_was_pushed_out_is_another_moments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many there were since: the kernel may hold it yet, of a directory or of an open file."""
    monkeypatch.setattr(past, "MOST", 2)
    monkeypatch.setattr(past, "SLOTS", 4)
    with looking(tmp_path) as (mount, looked):
        before: list[int] = []
        for at in range(20):
            mount.loop.passes(1)
            root = number_of(mount, looked, f"1970-01-01T00:00:{at:02d}Z", float(at))
            assert tree_at(mount, looked, root + GIVEN).parts.inodes.root.number == root
            for number in before[:-1]:
                with fails(errno.ESTALE):
                    tree_at(mount, looked, number)
                with fails(errno.ESTALE):
                    tree_at(mount, looked, number + GIVEN)
            before.append(root)


def test_where_the_disk_has_no_room_nothing_is_left_behind_and_the_next_look_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = composition.assemble

    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with looking(tmp_path) as (mount, looked):
        monkeypatch.setattr(past, "assemble", refuse)
        monkeypatch.setattr(past, "SLOTS", 3)
        open_files = len(os.listdir("/proc/self/fd"))
        for _ in range(4):  # more often than there are slots
            with fails(errno.ENOSPC):
                number_of(mount, looked, "1970-01-01", 1.0)
            assert (directories(mount), looked.names) == ([], [])
        assert len(os.listdir("/proc/self/fd")) == open_files
        monkeypatch.setattr(past, "assemble", really)
        assert tree_at(mount, looked, number_of(mount, looked, "1970-01-01", 1.0)) is not None


def test_what_a_mount_that_was_killed_has_left_of_them_goes_with_the_next(tmp_path: Path) -> None:
    with looking(tmp_path) as (mount, looked):
        number_of(mount, looked, "1970-01-01", 1.0)
        (mount._settings.state_dir / "at" / "7").mkdir()

        async def begin_again() -> None:
            looked.close()
            assert directories(mount) == ["7"]
            Past(mount._settings, cast(S3Store, None), mount.spawn, whole(mount._settings), cast(Any, None), first=ROOT)

        mount.loop.run(begin_again)
        assert directories(mount) == []


# The door


class Moments:
    """As `Past`, with a tree for each time."""

    def __init__(self) -> None:
        self.moments: dict[str, float] = {}
        self.refuses: OSError | None = None

    def number_at(self, name: str, moment: float) -> int:
        if self.refuses is not None:
            raise self.refuses
        self.moments[name] = moment
        return 1000 + len(self.moments)

    def known(self, name: str) -> tuple[int, float] | None:
        return (1000, self.moments[name]) if name in self.moments else None

    @property
    def names(self) -> list[str]:
        return [*self.moments, "just over"]


class Versioned:
    """A bucket, and how often it was asked whether it keeps versions."""

    def __init__(self, answer: Versioning | StoreError) -> None:
        self.answer = answer
        self.asked = 0

    async def versioning(self) -> Versioning:
        self.asked += 1
        if isinstance(self.answer, StoreError):
            raise self.answer
        return self.answer


def door(moments: Moments, bucket: Versioned, rejections: Rejections) -> PastFolder:
    return PastFolder(moments, VersioningRequired(cast(BucketSettings, bucket)), rejections)


def looked_up(mount: Composed, folder: PastFolder, name: bytes) -> Doorway:
    async def look() -> Any:
        return await folder.child(name)

    return cast(Doorway, mount.loop.run(look))


@pytest.mark.parametrize(
    ("name", "number", "words"),
    [(b"nonsense", errno.ENOENT, "is no time"), (b"9999-01-01", errno.EINVAL, "is in the future")],
)
def test_a_time_that_is_none_is_refused_without_a_question(
    mount: Composed, name: bytes, number: int, words: str
) -> None:
    moments, bucket, rejections = Moments(), Versioned(Versioning.ENABLED), Rejections()
    with fails(number):
        looked_up(mount, door(moments, bucket, rejections), name)
    assert (bucket.asked, moments.moments) == (0, {})
    assert f"at/{name.decode()}" in rejections.text()
    assert words in rejections.text()


@pytest.mark.parametrize("state", [Versioning.ENABLED, Versioning.SUSPENDED])
def test_a_bucket_that_keeps_versions_is_asked_once(mount: Composed, state: Versioning) -> None:
    """What was kept before it was suspended is still there."""
    moments, bucket, rejections = Moments(), Versioned(state), Rejections()
    folder = door(moments, bucket, rejections)
    before = time.time()
    for name in (b"now", b"1970-01-02T00:00Z", b"now"):
        found = looked_up(mount, folder, name)
        assert found.time_ns == int(moments.moments[name.decode()] * 1e9)
    assert (bucket.asked, found.number) == (1, 1000)
    assert before - 1 <= moments.moments["now"] <= time.time()
    assert moments.moments["1970-01-02T00:00Z"] == 86_400.0

    async def children() -> Any:
        return await folder.children()

    assert set(mount.loop.run(children)) == {b"now", b"1970-01-02T00:00Z"}


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        (Versioning.OFF, errno.EOPNOTSUPP),
        (StoreError(errno.EOPNOTSUPP, "GetBucketVersioning", status=501), errno.EOPNOTSUPP),
        (StoreError(errno.EIO, "GetBucketVersioning"), errno.EIO),
    ],
    ids=["off", "unknown to the server", "no answer"],
)
def test_where_no_versions_are_kept_no_moment_is_shown_and_the_next_look_asks_again(
    mount: Composed, answer: Versioning | StoreError, number: int
) -> None:
    moments, bucket, rejections = Moments(), Versioned(answer), Rejections()
    folder = door(moments, bucket, rejections)
    with fails(number):
        looked_up(mount, folder, b"yesterday")
    assert (moments.moments, "at/yesterday" in rejections.text()) == ({}, True)
    bucket.answer = Versioning.ENABLED
    assert looked_up(mount, folder, b"yesterday").number == 1001
    assert bucket.asked == 2


def test_a_key_that_may_not_ask_about_versions_finds_out_by_listing_them(mount: Composed) -> None:
    denied = StoreError(errno.EACCES, "GetBucketVersioning", code="AccessDenied", status=403)
    moments, bucket = Moments(), Versioned(denied)
    folder = door(moments, bucket, Rejections())
    for name in (b"yesterday", b"monday"):
        assert looked_up(mount, folder, name).number > 1000
    assert bucket.asked == 2


def test_a_tree_that_finds_no_room_is_told(mount: Composed) -> None:
    moments, rejections = Moments(), Rejections()
    moments.refuses = OSError(errno.ENOSPC, "no room")
    with fails(errno.ENOSPC):
        looked_up(mount, door(moments, Versioned(Versioning.ENABLED), rejections), b"yesterday")
    assert "no room" in rejections.text()
