"""A mount in turmoil: dice choose what programs do while requests are held back, fail, or lose their answer.

Each run has a seed, which decides all that happens, also in which order trio's tasks take their turns. It goes on
a mount without a kernel (`composed`) over a store that holds calls back (`held`). A model knows what must hold:

- A read answers what was written last, by whatever handle and under whatever name, also of a file without a name.
- A step may fail with EIO where a fault that was made reached it, and then has changed nothing; but a truncate, a
  chmod and a close are done then, and nothing more is acknowledged. What a rename has copied over another file stays
  there, also where it fails after that. write(2) never fails: what it brings lies here.
- Acknowledged is what was there when an fsync, a writer's close, or a truncate without writers succeeded.
- After a crash there are exactly the files that there were, those excepted of which nothing was acknowledged. What was
  not changed since it was acknowledged is the same. Elsewhere each byte is one that it was since then, and so are the
  length and the mode. Where a file of which nothing was acknowledged has replaced another, that one may be there.
- After an unmount, and when all has settled, the bucket holds exactly the files, and nothing is left here for it.
- There is never a conflict: nobody else writes.
"""

from __future__ import annotations

import errno
import os
import random
import stat
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import outcome
import pytest
import trio
import trio.testing

from sosfs.config.parameters import Durability, Settings
from sosfs.errors import StoreError
from sosfs.files.open_file import Handle
from sosfs.tree.inodes import Inode
from tests.support.composed import LONG, Composed, Loop, inline_threads, state_in
from tests.support.held import HELD, Held, begun, bodies, closed, opened, settled

T = TypeVar("T")

STEPS = 50  # of a run
NAMES = ("a", "d/b", "d/c")
BEFORE = ("a", "d/b")  # files that are there when it begins
OPENED_MAX = 4  # handles at once
FLAGS = (os.O_RDWR, os.O_RDWR, os.O_RDONLY, os.O_WRONLY | os.O_TRUNC)
MODES = (0o600, 0o640, 0o755, 0o444)
LENGTHS = (10, 900, 3000, 9000, 20_000)  # of a write: within and beyond each threshold
FAR = 30_000  # bytes
FAILING = tuple(sorted(HELD - {"list"}))  # by key
PAUSES = (0.1, 0.6, 1.5, 7.0, 200.0)  # seconds: before and after what is done soon, later, and tried again
TRIES = 200  # of letting the time go by, until an operation counts as hanging
MADE = "made by the test"
EXCUSES = (MADE, "no answer")  # of an EIO


class Wrong(Exception):
    """What is there is not what must be."""


class Excused(Exception):
    """An operation failed because of a fault that was made."""


class File:
    """What must be in a file: the newest of `bodies`, and after a crash something of all of them."""

    def __init__(self, body: bytes = b"", mode: int = 0o644, *, is_kept: bool = False) -> None:
        self.bodies = [body]  # the one that was acknowledged, and all since then
        self.modes = [mode]
        self.is_kept = is_kept  # it was acknowledged: a crash leaves it there
        self.replaced: File | None = None  # what it was renamed over before that

    @property
    def body(self) -> bytes:
        """What a read answers."""
        return self.bodies[-1]

    @property
    def mode(self) -> int:
        """What stat answers."""
        return self.modes[-1]

    def write(self, offset: int, data: bytes) -> None:
        """Puts data there, and zeros before it where there was nothing."""
        before = self.body.ljust(offset, b"\0")
        self.bodies.append(before[:offset] + data + before[offset + len(data) :])

    def truncate(self, size: int) -> None:
        """Sets the length."""
        self.bodies.append(self.body[:size].ljust(size, b"\0"))

    def chmod(self, mode: int) -> None:
        """Sets the mode; it is safe at once where the bytes are."""
        self.modes.append(mode)
        if self.is_kept and len(self.bodies) == 1:
            del self.modes[:-1]

    def acknowledged(self) -> None:
        """All that there is outlives a crash from now on."""
        del self.bodies[:-1], self.modes[:-1]
        self.is_kept, self.replaced = True, None

    def may_be(self, found: tuple[bytes, int] | None) -> bool:
        """Whether a crash may have left that."""
        if self.replaced is not None and self.replaced.may_be(found):
            return True
        if found is None:
            return not self.is_kept and self.replaced is None
        body, mode = found
        size, sizes = len(body), [len(one) for one in self.bodies]
        if mode not in self.modes or not min(sizes) <= size <= max(sizes):
            return False
        were = zip(*(one[:size].ljust(size, b"\0") for one in self.bodies), strict=True)
        return all(byte in before for byte, before in zip(body, were, strict=True))


@dataclass(frozen=True, slots=True)
class Opened:
    """A handle, and what it is of."""

    handle: Handle
    file: File
    name: str  # that it was opened by

    @property
    def writes(self) -> bool:
        """Whether it was opened for writing."""
        return self.handle.writes


class Turmoil:
    """One run."""

    def __init__(self, seed: int, durability: Durability, base: Path) -> None:
        self.log: list[str] = []
        self._dice = random.Random(seed)
        self._store = Held()
        self._loop = Loop()
        settings = Settings("bucket", "", Path("/"), cache_dir=state_in(base), durability=durability, part_size=8192)
        self._mount = Composed(self._loop, self._store, settings)
        self._mount.start()
        self._files: dict[str, File] = {}
        self._opened: list[Opened] = []

    def run(self) -> None:
        """All steps, with a look at everything in the end."""
        self._begin()
        for step in self._dice.choices(list(WEIGHTS), list(WEIGHTS.values()), k=STEPS):
            with suppress(Excused):
                step(self)
            if strange := [key for key in self._store._stored if "conflict" in key]:
                raise Wrong(f"there are {strange}")
        self._end()

    def close(self) -> None:
        """Drops everything."""
        with suppress(trio.RunFinishedError):  # an error has ended it
            self.release()
            self._mount._end()
            self._loop.close()

    # Doing it

    def _done(self, what: str, work: Callable[[], Awaitable[T]], *, may_fail: bool = True) -> T:
        """Does an operation; what is held back goes on when it waits for that. Raises Excused."""
        answers: list[outcome.Outcome[T]] = []

        async def operation() -> None:
            try:
                answers.append(outcome.Value(await work()))
            except Exception as error:  # noqa: BLE001
                answers.append(outcome.Error(error))

        self.log.append(what)
        self._loop.run(partial(begun, self._mount, operation))
        for _ in range(TRIES):
            if answers:
                break
            if not self._release_one():
                self._loop.passes(1)
        else:
            raise Wrong("it hangs")
        answer = answers[0]
        if may_fail and isinstance(answer, outcome.Error) and is_excused(answer.error):
            self.log.append("  EIO")
            raise Excused
        return answer.unwrap()

    def release(self) -> None:
        """What is held back goes on."""

        async def go() -> None:
            for events in (self._store.before, self._store.after):
                for event in events.values():
                    event.set()
                events.clear()
            await trio.testing.wait_all_tasks_blocked()

        self._loop.run(go)

    def _release_one(self) -> bool:
        return release_one(self._store, self._loop, self._dice, self.log)

    def _heal(self) -> None:
        """No request is held back or fails from now on."""
        self._store.before.clear()
        self._store.after.clear()
        self._store.errors.clear()
        self._store.lost.clear()

    def _name(self) -> str:
        return self._dice.choice(NAMES)

    def _existing(self) -> tuple[str, File] | None:
        name = self._name()
        return (name, self._files[name]) if name in self._files else None

    def _any_opened(self, *, writes: bool = False) -> Opened | None:
        choice = [one for one in self._opened if one.writes or not writes]
        return self._dice.choice(choice) if choice else None

    # What programs do

    def create(self) -> None:
        name = self._name()
        if name in self._files:
            return

        async def go() -> Handle:
            return await self._mount._opened(*await self._mount._parent(name), os.O_CREAT | os.O_RDWR)

        handle = self._done(f"create {name}", go)
        self._files[name] = File()
        self._opened.append(Opened(handle, self._files[name], name))

    def open(self) -> None:
        found, flags = self._existing(), self._dice.choice(FLAGS)
        if found is None or len(self._opened) == OPENED_MAX:
            return
        name, file = found
        handle = self._done(f"open {name} with {flags:#o}", partial(opened, self._mount, flags, name))
        if flags & os.O_TRUNC:
            file.truncate(0)
        self._opened.append(Opened(handle, file, name))

    def write(self) -> None:
        if one := self._any_opened(writes=True):
            self._write(one, self._dice.choice((0, len(one.file.body) // 2, self._dice.randrange(FAR))))

    def append(self) -> None:
        if one := self._any_opened(writes=True):
            self._write(one, len(one.file.body))

    def _write(self, one: Opened, offset: int) -> None:
        data = bytes([self._dice.randrange(1, 256)]) * self._dice.choice(LENGTHS)
        work = partial(self._mount.parts.file_io.write, one.handle, offset, data)
        self._done(f"write {one.name} at {offset}: {len(data)} times {data[:1]!r}", work, may_fail=False)
        one.file.write(offset, data)

    def ftruncate(self) -> None:
        if one := self._any_opened(writes=True):
            size = self._size(one.file)
            work = partial(self._mount.parts.file_io.truncate, one.handle.inode, size)
            self._done(f"ftruncate {one.name} to {size}", work, may_fail=False)
            one.file.truncate(size)

    def truncate(self) -> None:
        if found := self._existing():
            name, file = found
            size = self._size(file)
            inode = self._done(f"stat {name}", partial(self._mount._walk, name))
            try:
                self._done(f"truncate {name} to {size}", partial(self._mount.parts.file_io.truncate, inode, size))
            finally:
                file.truncate(size)
            if not any(one.writes for one in self._opened if one.file is file):
                file.acknowledged()

    def _size(self, file: File) -> int:
        return self._dice.choice((0, len(file.body) // 2, len(file.body) + 5000))

    def chmod(self) -> None:
        if found := self._existing():
            name, file = found
            inode = self._done(f"stat {name}", partial(self._mount._walk, name))
            self._chmod(name, file, inode)

    def fchmod(self) -> None:
        if one := self._any_opened():
            self._chmod(one.name, one.file, one.handle.inode)

    def _chmod(self, name: str, file: File, inode: Inode) -> None:
        mode = self._dice.choice(MODES)

        async def go() -> None:
            inode.mode = stat.S_IFMT(inode.mode) | mode
            self._mount.parts.attributes.changed(inode)

        self._done(f"chmod {name} to {mode:#o}", go, may_fail=False)
        file.chmod(mode)

    def rename(self) -> None:
        found, new = self._existing(), self._name()
        if found is not None and found[0] != new:
            file = self._files[found[0]]
            try:
                self._done(f"rename {found[0]} to {new}", partial(self._mount.rename, found[0], new))
            except Excused:
                if new in self._files and bodies(self._store).get(new) == file.body != self._files[new].body:
                    self._files[new] = File(file.body, file.mode, is_kept=True)
                raise
            del self._files[found[0]]
            file.replaced = None if file.is_kept else self._files.get(new)
            self._files[new] = file

    def unlink(self) -> None:
        if found := self._existing():
            self._done(f"unlink {found[0]}", partial(self._mount.unlink, found[0]))
            del self._files[found[0]]

    def fsync(self) -> None:
        if one := self._any_opened():
            self._done(f"fsync {one.name}", partial(self._mount.parts.file_io.fsync, one.handle.inode))
            one.file.acknowledged()

    def close_one(self) -> None:
        if self._opened:
            one = self._opened.pop(self._dice.randrange(len(self._opened)))

            async def go() -> None:
                try:
                    await closed(self._mount, one.handle)
                finally:
                    self._mount.parts.namespace.forget(one.handle.inode, 0)

            self._done(f"close {one.name}", go)
            if one.writes:
                one.file.acknowledged()

    def read(self) -> None:
        one = self._any_opened()
        if one is None:
            return
        offset, size = self._dice.choice((0, len(one.file.body) // 2)), self._dice.choice((100, 50_000))
        work = partial(self._mount.parts.file_io.read, one.handle, offset, size)
        body = self._done(f"read {one.name} at {offset}: {size} bytes", work)
        expected = one.file.body[offset : offset + size]
        if bytes(body) != expected or one.handle.inode.size != len(one.file.body):
            raise Wrong(f"{len(body)} bytes of {one.handle.inode.size} instead of {len(expected)}, or other ones")

    def cat(self) -> None:
        if found := self._existing():
            name, file = found

            async def go() -> tuple[bytes, int]:
                return await self._mount._bytes(await self._mount._walk(name))

            require(name, file, self._done(f"cat {name}", go))

    def settle(self) -> None:
        self._done("settle", self._mount.settle)

    # What befalls it

    def pause(self) -> None:
        seconds = self._dice.choice(PAUSES)
        self.log.append(f"{seconds} s go by")
        self._loop.passes(seconds)

    def hold(self) -> None:
        what, when = self._dice.choice(sorted(HELD)), self._dice.choice(("before", "after"))
        self.log.append(f"hold each {what} {when} it takes effect")
        {"before": self._store.before, "after": self._store.after}[when].setdefault(what, trio.Event())

    def let_go(self) -> None:
        self._release_one()

    def lose(self) -> None:
        if found := self._existing():
            self.log.append(f"the next put of {found[0]} gets no answer")
            self._store.lost.add(found[0])

    def fail(self) -> None:
        what, name = self._dice.choice(FAILING), self._name()
        self.log.append(f"the next {what} of {name} fails")
        error = StoreError(errno.EIO, f"{what} {name!r}", detail=MADE)
        self._store.errors.setdefault((what, name), []).append(error)

    def crash(self) -> None:
        self.log.append(f"crash; the bucket has {sorted(bodies(self._store))}")
        self._mount.crash()
        self._opened.clear()
        self._heal()
        self._mount.start()
        tree = self._tree()
        for name, file in list(self._files.items()):
            found = tree.get(name)
            if not file.may_be(found):
                was = short((file.body, file.mode))
                raise Wrong(f"{name} is after the crash {short(found)}, and was {was}, or has other bytes")
            if found is None:
                del self._files[name]
            else:
                self._files[name] = File(*found, is_kept=True)
        self._require_all(tree)

    def remount(self) -> None:
        self._close_all()
        self._done("unmount", self._mount.parts.drain)
        self._mount.stop()
        self._require_bucket()
        self._mount.start()
        self._require_all(self._tree())

    # Its beginning and its end

    def _begin(self) -> None:
        async def go() -> None:
            await self._mount.mkdir("d")
            for name in BEFORE:
                await self._mount.write(name, name.encode() * 9000, flags=os.O_CREAT)

        self._loop.run(go)
        self._files = {name: File(name.encode() * 9000, is_kept=True) for name in BEFORE}

    def _close_all(self) -> None:
        self.release()
        self._heal()
        while self._opened:
            with suppress(Excused):
                self.close_one()

    def _end(self) -> None:
        self._close_all()
        self._loop.passes(LONG)
        self.settle()
        self._require_all(self._tree())
        self._require_bucket()
        self._require_rest()

    def _tree(self) -> dict[str, tuple[bytes, int]]:
        found = self._done("look", self._mount.tree, may_fail=False)
        return {path: file for path, file in found.items() if file is not None}

    def _require_all(self, tree: dict[str, tuple[bytes, int]]) -> None:
        if set(tree) != set(self._files):
            raise Wrong(f"there are {sorted(tree)} instead of {sorted(self._files)}")
        for name, file in self._files.items():
            require(name, file, tree[name])

    def _require_bucket(self) -> None:
        objects = {key: body for key, body in bodies(self._store).items() if not key.endswith("/")}
        if set(objects) != set(self._files):
            raise Wrong(f"the bucket has {sorted(objects)} instead of {sorted(self._files)}")
        for key, body in objects.items():
            require(f"the object {key}", self._files[key], (body, self._files[key].mode))

    def _require_rest(self) -> None:
        """Nothing is left of what was under way."""
        parts = self._mount.parts

        async def left() -> list[object]:
            spools = list((self._mount._settings.state_dir / "spool").glob("*.spool"))
            subtree_lock = [parts.subtree_lock._shared, parts.subtree_lock._exclusive]
            journal = self._mount._journal
            return [parts.pending, *subtree_lock, parts.commits.drafts, journal.rows, spools, journal.damage.lines]

        if any(rest := self._loop.run(left)):
            raise Wrong(f"there is left {rest}")


WEIGHTS: dict[Callable[[Turmoil], None], int] = {
    Turmoil.create: 3,
    Turmoil.open: 3,
    Turmoil.write: 9,
    Turmoil.append: 3,
    Turmoil.ftruncate: 3,
    Turmoil.truncate: 3,
    Turmoil.chmod: 3,
    Turmoil.fchmod: 3,
    Turmoil.rename: 3,
    Turmoil.unlink: 3,
    Turmoil.fsync: 3,
    Turmoil.close_one: 6,
    Turmoil.read: 3,
    Turmoil.cat: 3,
    Turmoil.settle: 3,
    Turmoil.pause: 9,
    Turmoil.hold: 9,
    Turmoil.let_go: 3,
    Turmoil.lose: 6,
    Turmoil.fail: 6,
    Turmoil.crash: 3,
    Turmoil.remount: 2,
}


def release_one(store: Held, loop: Loop, dice: random.Random, log: list[str]) -> bool:
    """Some calls that are held back go on, if any are."""
    held = [(events, what) for events in (store.before, store.after) for what in events]
    if not held:
        return False
    events, what = dice.choice(held)
    log.append(f"  release {what}")
    loop.run(partial(settled, events.pop(what)))
    return True


def require(what: str, file: File, found: tuple[bytes, int]) -> None:
    """Raises Wrong unless a file is found as it must be."""
    if found != (file.body, file.mode):
        raise Wrong(f"{what} is {short(found)} instead of {short((file.body, file.mode))}, or has other bytes")


def short(file: tuple[bytes, int] | None) -> str:
    """A file in a few words."""
    return "missing" if file is None else f"{len(file[0])} bytes of mode {file[1]:#o}"


def is_excused(error: BaseException) -> bool:
    """Whether it is the answer to a fault that was made."""
    return isinstance(error, OSError) and error.errno == errno.EIO and any(one in str(error) for one in EXCUSES)


@contextmanager
def decided_by(seed: int) -> Iterator[pytest.MonkeyPatch]:
    """Within, tasks that could run at the same time take turns as these dice say, and a part may be of any size."""
    with pytest.MonkeyPatch.context() as patch, inline_threads():
        patch.setattr("tests.support.fake_store.PART_MIN", 1)
        patch.setattr("trio._core._run._ALLOW_DETERMINISTIC_SCHEDULING", True)
        patch.setattr("trio._core._run._r", random.Random(seed))
        yield patch


def lower_thresholds(patch: pytest.MonkeyPatch) -> None:
    """Files of some thousand bytes then lie on the disk, go up in parts, behind the writer, and come in windows."""
    patch.setattr("sosfs.files.spool.SPILL", 2000)
    patch.setattr("sosfs.files.spool.INLINE", 1000)
    patch.setattr("sosfs.files.draft.INLINE", 1000)
    patch.setattr("sosfs.files.spool.FLOOR", 0)  # how full this machine's disk is decides nothing
    patch.setattr("sosfs.files.write_behind.STREAM_MIN", 20_000)
    patch.setattr("sosfs.files.base_fetch.WINDOW", 8192)


@contextmanager
def turmoil(seed: int, durability: Durability, base: Path) -> Iterator[Turmoil]:
    """A run that the seed alone decides, in which small files take the ways of large ones."""
    with decided_by(seed) as patch:
        lower_thresholds(patch)
        with closing(Turmoil(seed, durability, base)) as run:
            yield run
