"""Each step that touches the disk finds it full once: the error is ENOSPC, the bucket has old or new bytes, whole."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sosfs.config.parameters import Durability
from sosfs.disk.reserve import Reserve
from tests.support.composed import Composed, composed
from tests.support.fake_store import FakeStore
from tests.support.held import bodies, put_all

LARGE = bytes(range(256)) * 8192  # more than a part, and than what stays in memory
OLD = {"file": b"old bytes", "d/other": b"other", "empty/": b""}
Action = Callable[[Composed], Awaitable[None]]


class Full:
    """A disk that is full at one step, or at none, and counts them."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.steps = 0
        self.at = -1
        for name in ("pwrite", "fsync", "fdatasync"):
            patch.setattr(os, name, partial(self._through, getattr(os, name)))
        really_open = os.open

        def opens(path: Any, flags: int, *arguments: Any) -> int:
            if flags & os.O_CREAT and os.fspath(path).endswith(".spool"):
                self.step()
            return really_open(path, flags, *arguments)

        patch.setattr(os, "open", opens)

    def _through(self, call: Callable[..., Any], *arguments: Any) -> Any:
        self.step()
        return call(*arguments)

    def step(self) -> None:
        """One step. Raises ENOSPC where it is that one."""
        self.steps += 1
        if self.steps - 1 == self.at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Database:
    """A connection to a database on that disk."""

    def __init__(self, db: sqlite3.Connection, disk: Full) -> None:
        self._db = db
        self._disk = disk

    def __getattr__(self, name: str) -> Any:
        return getattr(self._db, name)

    def execute(self, statement: str, values: Sequence[object] = ()) -> Any:
        """As of the connection."""
        # Within a transaction all is in memory, up to the commit.
        if statement == "commit" or not (statement.startswith(("select", "begin")) or self._db.in_transaction):
            try:
                self._disk.step()
            except OSError as error:
                refused = sqlite3.OperationalError("database or disk is full")
                refused.sqlite_errorcode = sqlite3.SQLITE_FULL
                raise refused from error
        return self._db.execute(statement, values)


async def chmod(mount: Composed, path: str) -> None:
    """As the kernel's request: what is refused is taken back."""
    inode = await mount._walk(path)
    before, inode.mode = inode.mode, inode.mode ^ 0o007
    try:
        mount.parts.attributes.changed(inode)
    except OSError:
        inode.mode = before
        raise


# What is done, and what the bucket has afterwards.
ACTIONS: dict[str, tuple[Action, dict[str, bytes | None]]] = {
    "create": (lambda mount: mount.write("new", b"new", flags=os.O_CREAT), {"new": b"new"}),
    "create a large one": (lambda mount: mount.write("new", LARGE, flags=os.O_CREAT), {"new": LARGE}),
    "rewrite": (lambda mount: mount.write("file", LARGE, flags=os.O_TRUNC), {"file": LARGE}),
    "append": (lambda mount: mount.write("file", b"!", flags=os.O_APPEND), {"file": b"old bytes!"}),
    "truncate": (lambda mount: mount.truncate("file", 3), {"file": b"old"}),
    "chmod": (lambda mount: chmod(mount, "file"), {}),
    "mkdir": (lambda mount: mount.mkdir("made"), {"made/": b""}),
    "unlink": (lambda mount: mount.unlink("file"), {"file": None}),
    "unlink the last one": (lambda mount: mount.unlink("d/other"), {"d/other": None, "d/": b""}),
    "rmdir": (lambda mount: mount.rmdir("empty"), {"empty/": None}),
    "rename": (lambda mount: mount.rename("file", "moved"), {"file": None, "moved": b"old bytes"}),
    "rename over": (lambda mount: mount.rename("file", "d/other"), {"file": None, "d/other": b"old bytes"}),
    "rename a directory": (lambda mount: mount.rename("d", "e"), {"d/other": None, "e/other": b"other"}),
}


@contextmanager
def mounted(tmp_path: Path, durability: Durability, *, reserve: bool) -> Iterator[tuple[Composed, Full]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sosfs.files.spool.SPILL", 1000)
        patch.setattr("tests.support.fake_store.PART_MIN", 1)
        if not reserve:
            patch.setattr(Reserve, "give_up", lambda self: False)
        store = FakeStore()
        with composed(store, tmp_path, durability=durability, part_size=1 << 20, patience=1.0) as mount:
            mount.loop.run(partial(put_all, store, OLD))
            full = Full(patch)
            rows = mount._journal._db
            rows._db = Database(rows._db, full)  # type: ignore[assignment]
            yield mount, full


def told(mount: Composed, action: Action) -> int:
    """The errno of what an action raises, 0 for nothing."""
    try:
        mount.loop.run(partial(action, mount))
    except OSError as error:
        return error.errno or -1
    return 0


def names(mount: Composed) -> set[str]:
    return set(mount.loop.run(mount.tree))


async def rows(mount: Composed) -> int:
    """How much the journal has, once it had room for something."""
    mount._journal.add_intent("key", 0)
    mount._journal.drop_intent("key")
    return mount._journal.rows


def after(changes: dict[str, bytes | None]) -> dict[str, bytes]:
    return {key: body for key, body in {**OLD, **changes}.items() if body is not None}


@pytest.mark.parametrize("reserve", [True, False])
@pytest.mark.parametrize("durability", list(Durability))
@pytest.mark.parametrize("name", list(ACTIONS))
def test_any_step_may_find_the_disk_full(tmp_path: Path, name: str, durability: Durability, reserve: bool) -> None:
    action, changes = ACTIONS[name]
    at, steps = 0, 1
    while at < steps:
        base = tmp_path / str(at)
        base.mkdir()
        with mounted(base, durability, reserve=reserve) as (mount, full):
            store = mount.store
            before = names(mount)
            full.at, full.steps = at, 0
            error = told(mount, action)
            assert error in (0, errno.ENOSPC), (at, os.strerror(error))
            listed = names(mount)
            mount.loop.passes(10)
            steps, full.at = max(steps, full.steps), -1
            wanted = after(changes)
            assert names(mount) == listed, at
            if error:
                assert bodies(store) in (OLD, wanted), at
                if bodies(store) == OLD:
                    assert listed == before, (at, "what failed is not there")
                    assert told(mount, action) == 0
            mount.loop.run(mount.settle)
            assert bodies(store) == wanted, at
            assert store._uploads == {}
            assert mount.loop.run(partial(rows, mount)) == 0, "nothing is left to be done"
        at += 1


@pytest.mark.parametrize("durability", [Durability.BUCKET, Durability.JOURNAL])
def test_a_directory_is_renamed_as_a_whole_or_not_at_all_with_what_the_bucket_lacks_of_it(
    tmp_path: Path, durability: Durability
) -> None:
    """One that was made in it a moment ago has a record, which follows."""
    old = {**OLD, "d/new/": b""}
    new = {"file": OLD["file"], "empty/": b"", "e/other": b"other", "e/new/": b""}
    at, steps = 0, 1
    while at < steps:
        base = tmp_path / str(at)
        base.mkdir()
        with mounted(base, durability, reserve=False) as (mount, full):
            mount.loop.run(partial(mount.mkdir, "d/new"))
            full.at, full.steps = at, 0
            error = told(mount, lambda mount: mount.rename("d", "e"))
            steps, full.at = max(steps, full.steps), -1
            assert error in (0, errno.ENOSPC), (at, os.strerror(error))
            listed = names(mount)
            assert listed == (
                {"file", "empty", "d", "d/other", "d/new"} if error else {"file", "empty", "e", "e/other", "e/new"}
            ), at
            mount.loop.passes(10)
            mount.loop.run(mount.settle)
            assert bodies(mount.store) == (old if error else new), at
            assert mount.loop.run(partial(rows, mount)) == 0, "nothing is left to be done"
        at += 1
