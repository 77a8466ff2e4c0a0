"""The filesystem's halves against a dictionary: whatever is done, fails, crashes or is done by others.

Hypothesis chooses what happens and shrinks what goes wrong to a few steps. Each step is done on both sides, then all
that is visible is compared. A step that fails or is cut short by a crash at one of its requests may have been
done or not, and nothing else; a step that returned is done for good. `SOSFS_MODEL_EXAMPLES` sets how many runs.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Set
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
import trio.testing
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import tests.support.fake_store
from sosfs.config.parameters import Durability, Settings
from sosfs.s3.protocol import Properties
from tests.support.composed import LONG, Composed, Loop, Plan, What, inline_threads, state_in
from tests.support.fake_store import FakeStore

EXAMPLES = int(os.environ.get("SOSFS_MODEL_EXAMPLES", "60"))
PART = 4096  # bytes: so that small files have parts too
MODE = 0o644
NOTHING = (b"", 0)
NAMES = ("a", "b", "c")
PATHS = [*NAMES, *(f"{one}/{two}" for one in NAMES for two in NAMES)]

Tree = dict[str, tuple[bytes, int] | None]

bodies = st.tuples(
    st.binary(min_size=1, max_size=3), st.sampled_from((0, 1, 500, PART, 2 * PART, 5 * PART + 7, 70_000))
).map(lambda drawn: (drawn[0] * drawn[1])[: drawn[1]])
offsets = st.sampled_from((0, 1, PART - 1, PART, 3 * PART, 20_000))
lengths = offsets | st.sampled_from((12 * PART, 40 * PART + 5))  # whose holes are copied of zeros
troubles = st.none() | st.builds(
    Plan, st.sampled_from(What), st.sampled_from((0, 0, 0, 1, 1, 2, 3, 5)), st.booleans(), st.integers(1, 3)
)


def is_in(path: str, directory: str) -> bool:
    return path == directory or path.startswith(f"{directory}/")


class Model(RuleBasedStateMachine):
    """One bucket, one mount after the other."""

    durability = Durability.BUCKET

    def __init__(self) -> None:
        super().__init__()
        self._ending = ExitStack()
        self._ending.enter_context(inline_threads())
        self._base = Path(tempfile.mkdtemp(prefix="sosfs-model-"))
        self._ending.callback(shutil.rmtree, self._base, ignore_errors=True)
        self.loop = Loop()
        self._ending.callback(self.loop.close)
        self.store = FakeStore(page=5)
        self._foreign = 0
        self.tree: Tree = {"a": (b"a" * 10, MODE), "b": None, "b/c": (b"bc" * PART * 2, MODE)}

    @initialize(hashes=st.booleans())
    def begin(self, hashes: bool) -> None:
        """Mounts a bucket with a few objects, on a server whose ETags are hashes or, as with encryption, are not."""
        self.store.hashes = hashes
        for path, file in self.tree.items():
            kept = Properties(metadata={"mode": str(0o040755 if file is None else 0o100000 | MODE)})
            key, body = (path, file[0]) if file is not None else (f"{path}/", b"")
            self.loop.run(partial(self.store.put, key, body, kept))
        chosen = Settings(
            "bucket",
            "",
            Path("/"),
            cache_dir=state_in(self._base),
            durability=self.durability,
            part_size=PART,
            ttl=5.0,
            uid=0,
            gid=0,
        )
        self.mount = Composed(self.loop, self.store, chosen)
        self.mount.start()

    def teardown(self) -> None:
        """Every run ends with a clean unmount."""
        with self._ending:
            if hasattr(self, "mount"):
                self.remount()

    # What is done, and what comes of it

    def does(
        self, work: Callable[[], Awaitable[None]], after: Tree, trouble: Plan | None, *, cut: tuple[Tree, ...] = ()
    ) -> None:
        """Does `work`, perhaps with trouble; afterwards there is `after`, or after trouble the tree before it."""
        self.mount.trouble.plan = trouble
        stored = {kept.body for kept in self.store._stored.values()}
        done: list[bool] = []

        async def attempt() -> None:
            try:
                await work()
            except OSError:
                assert trouble is not None, "nothing was wrong"
                done.append(False)
            else:
                done.append(True)

        async def begin() -> None:
            self.mount.nursery.start_soon(attempt)
            await trio.testing.wait_all_tasks_blocked()

        self.loop.run(begin)
        if not done:
            assert self.mount.trouble.stalled, "it waits for nothing"
            self.restart()
            self.adopt([after, self.tree, *cut])
        elif done[0]:
            self.tree = after
        else:
            self.mount.trouble.plan = None
            self.loop.passes(LONG)
            self.loop.run(self.mount.settle)
            self.loop.passes(LONG)
            self.adopt([after, self.tree, *cut], twins=stored)

    def adopt(self, trees: list[Tree], *, twins: Set[bytes] | None = None) -> None:
        """Goes on with the tree that is found, which must be one of these.

        With `twins`, the bodies that were stored: or all of them at once, since what was copied on the server and
        is not known to have been may stay; that is then as it was in the bucket. And what was removed though nobody
        knows may be kept as a conflict, with what was not sent of it.
        """
        found = self.loop.run(self.mount.tree)
        if found not in trees and twins is not None:
            both = {path for tree in trees[:2] for path in tree}
            for path, file in found.items():
                is_expected = any(path in tree and tree[path] == file for tree in trees)
                is_kept = ".conflict-" in path and file in self.tree.values()
                assert is_expected or is_kept or (file is not None and file[0] in twins), path
            kept = [file for file in found.values() if file is not None]
            wanted = [file for path, file in trees[0].items() if file is not None]
            assert all(file in kept for file in wanted), "something is lost"
            assert {path for path in found if ".conflict-" not in path} <= both
        elif found not in trees:
            raise AssertionError(f"{shown(found)} is none of\n" + "\n".join(map(shown, trees)))
        self.tree = found

    def restart(self) -> None:
        """The process dies and the next one takes over."""
        self.mount.crash()
        self.mount.start()
        assert self.mount._journal.damage.lines == ()

    def files(self) -> list[str]:
        return sorted(path for path, file in self.tree.items() if file is not None)

    def file(self, path: str) -> tuple[bytes, int]:
        file = self.tree[path]
        assert file is not None
        return file

    def has_home(self, path: str) -> bool:
        """Whether the directory of a path is there."""
        folder = path.rpartition("/")[0]
        return not folder or (folder in self.tree and self.tree[folder] is None)

    def writable(self) -> list[str]:
        """Paths where a file is or may be."""
        return [path for path in PATHS if self.has_home(path) and self.tree.get(path, NOTHING) is not None]

    def empties(self) -> list[str]:
        """Directories that may go."""
        return [path for path, file in self.tree.items() if file is None and self.is_empty(path)]

    def is_empty(self, directory: str) -> bool:
        return not any(path.startswith(f"{directory}/") for path in self.tree)

    def renames(self) -> list[tuple[str, str]]:
        """What may be renamed to what."""
        return [(old, new) for old in sorted(self.tree) for new in PATHS if self.may_be(old, new)]

    def may_be(self, old: str, new: str) -> bool:
        is_directory = self.tree[old] is None
        if is_in(new, old) or not self.has_home(new) or (is_directory and "/" in new):
            return False
        return new not in self.tree or ((self.tree[new] is None) == is_directory and self.is_empty(new))

    # Rules

    @rule(data=st.data(), body=bodies, trouble=troubles)
    def write(self, data: st.DataObject, body: bytes, trouble: Plan | None) -> None:
        """A file is made, or written anew."""
        path = data.draw(st.sampled_from(self.writable()))
        before = self.tree.get(path)
        after = {**self.tree, path: (body, before[1] if before else MODE)}
        emptied = ({**self.tree, path: (b"", before[1])},) if before else ()
        flags = os.O_CREAT | os.O_TRUNC
        self.does(lambda: self.mount.write(path, body, flags=flags), after, trouble, cut=emptied)

    @precondition(lambda self: self.files())
    @rule(data=st.data(), body=bodies, offset=offsets, trouble=troubles)
    def overwrite(self, data: st.DataObject, body: bytes, offset: int, trouble: Plan | None) -> None:
        """A piece of a file is written over, or behind its end."""
        path = data.draw(st.sampled_from(self.files()))
        old, mode = self.file(path)
        new = old.ljust(offset, b"\0")[:offset] + body + old[offset + len(body) :] if body else old
        self.does(lambda: self.mount.write(path, body, at=offset), {**self.tree, path: (new, mode)}, trouble)

    @precondition(lambda self: self.files())
    @rule(data=st.data(), body=bodies, trouble=troubles)
    def append(self, data: st.DataObject, body: bytes, trouble: Plan | None) -> None:
        """A file grows."""
        path = data.draw(st.sampled_from(self.files()))
        old, mode = self.file(path)
        after = {**self.tree, path: (old + body, mode)}
        self.does(lambda: self.mount.write(path, body, flags=os.O_APPEND), after, trouble)

    @precondition(lambda self: self.files())
    @rule(data=st.data(), size=lengths, trouble=troubles)
    def truncate(self, data: st.DataObject, size: int, trouble: Plan | None) -> None:
        """A file is cut, or made longer."""
        path = data.draw(st.sampled_from(self.files()))
        old, mode = self.file(path)
        after = {**self.tree, path: (old[:size].ljust(size, b"\0"), mode)}
        self.does(lambda: self.mount.truncate(path, size), after, trouble)

    @precondition(lambda self: self.files())
    @rule(data=st.data(), mode=st.sampled_from((0o600, 0o755)), trouble=troubles)
    def chmod(self, data: st.DataObject, mode: int, trouble: Plan | None) -> None:
        """chmod and fsync."""
        path = data.draw(st.sampled_from(self.files()))
        after = {**self.tree, path: (self.file(path)[0], mode)}
        self.does(lambda: self.mount.chmod(path, mode), after, trouble)

    @precondition(lambda self: self.files())
    @rule(data=st.data(), trouble=troubles)
    def unlink(self, data: st.DataObject, trouble: Plan | None) -> None:
        """A file goes."""
        path = data.draw(st.sampled_from(self.files()))
        after = {other: file for other, file in self.tree.items() if other != path}
        self.does(lambda: self.mount.unlink(path), after, trouble)

    @precondition(lambda self: not set(NAMES) <= set(self.tree))
    @rule(data=st.data(), trouble=troubles)
    def mkdir(self, data: st.DataObject, trouble: Plan | None) -> None:
        """A directory is made."""
        path = data.draw(st.sampled_from(sorted(set(NAMES) - set(self.tree))))
        self.does(lambda: self.mount.mkdir(path), {**self.tree, path: None}, trouble)

    @precondition(lambda self: self.empties())
    @rule(data=st.data(), trouble=troubles)
    def rmdir(self, data: st.DataObject, trouble: Plan | None) -> None:
        """An empty directory goes."""
        path = data.draw(st.sampled_from(self.empties()))
        after = {other: file for other, file in self.tree.items() if other != path}
        self.does(lambda: self.mount.rmdir(path), after, trouble)

    @precondition(lambda self: self.renames())
    @rule(data=st.data(), trouble=troubles)
    def rename(self, data: st.DataObject, trouble: Plan | None) -> None:
        """A file or directory gets another name, perhaps one that was taken."""
        old, new = data.draw(st.sampled_from(self.renames()))
        after = {path: file for path, file in self.tree.items() if path != new}
        after = {(new + path[len(old) :] if is_in(path, old) else path): file for path, file in after.items()}
        self.does(lambda: self.mount.rename(old, new), after, trouble)

    @rule(seconds=st.sampled_from((0.3, 1.0, 3.0, 10.0, LONG)))
    def time_passes(self, seconds: float) -> None:
        """What waited for its moment is done."""
        self.mount.trouble.plan = None
        self.loop.passes(seconds)

    @rule(calls=st.integers(0, 8), after=st.booleans())
    def crash_in_the_background(self, calls: int, after: bool) -> None:
        """The process dies within something that went on by itself."""
        self.mount.trouble.plan = Plan(What.STALLS, calls, after)
        self.loop.passes(2.0)
        self.restart()

    @rule()
    def crash(self) -> None:
        """The process dies between two steps."""
        self.restart()

    @rule()
    def remount(self) -> None:
        """The bucket has exactly what the mount showed, and the next mount shows what the bucket has."""
        self.mount.trouble.plan = None
        self.mount.stop()
        stored: Tree = {}
        for key, kept in self.store._stored.items():
            is_marker = key.endswith("/")
            mode = int(kept.object.properties.metadata["mode"]) & 0o7777
            stored[key.rstrip("/")] = None if is_marker else (kept.body, mode)
        assert stored == self.tree, f"{shown(stored)} is in the bucket, not\n{shown(self.tree)}"
        assert not self.store._uploads, "an upload is left"
        self.mount.start()

    @rule(data=st.data(), body=bodies)
    def another_client_writes(self, data: st.DataObject, body: bytes) -> None:
        """Over what is in the bucket; it shows when the listing is out of date."""
        path = data.draw(st.sampled_from(self.writable()))
        self._foreign += 1
        body = b"%d" % self._foreign + body  # the same bytes again, within the second, would look like no change
        self.mount.trouble.plan = None
        self.loop.run(self.mount.settle)
        metadata = {"mode": str(0o100000 | MODE)}
        self.loop.run(lambda: self.store.put(path, body, Properties(metadata=metadata)))
        self.loop.passes(LONG)
        self.tree[path] = (body, MODE)

    @precondition(lambda self: self.files())
    @rule(data=st.data())
    def another_client_removes(self, data: st.DataObject) -> None:
        """A file goes by another's hand."""
        path = data.draw(st.sampled_from(self.files()))
        if "/" in path and f"{path.split('/')[0]}/" not in self.store._stored:
            return  # the directory would go with its last file
        self.mount.trouble.plan = None
        self.loop.run(self.mount.settle)
        self.loop.run(lambda: self.store.delete(path))
        self.loop.passes(LONG)
        del self.tree[path]

    @invariant()
    def shows_what_it_must(self) -> None:
        """All that is visible is what was done."""
        if not hasattr(self, "mount"):
            return
        self.mount.trouble.plan = None
        found = self.loop.run(self.mount.tree)
        assert found == self.tree, f"{shown(found)}, not\n{shown(self.tree)}"


def shown(tree: Tree) -> str:
    """A tree, short enough to be read."""
    return str({path: file and (len(file[0]), hash(file[0]) % 1000, f"{file[1]:o}") for path, file in tree.items()})


class JournalModel(Model):
    """The same, with uploads that follow later."""

    durability = Durability.JOURNAL


@pytest.mark.parametrize("model", [Model, JournalModel])
@pytest.mark.timeout(120 + EXAMPLES)
def test_the_filesystem_is_a_dictionary(model: type[Model], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tests.support.fake_store, "PART_MIN", 1)
    monkeypatch.setattr("sosfs.files.upload.HOLES_MIN", PART)
    monkeypatch.setattr("sosfs.files.zero_objects.SEED", PART)
    chosen = settings(
        max_examples=EXAMPLES,
        stateful_step_count=25,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
        # The same runs each time, so that a change is judged by itself; `make fuzz` throws other dice.
        derandomize="SOSFS_MODEL_EXAMPLES" not in os.environ,
        database=None,
    )
    run_state_machine_as_test(model, settings=chosen)
