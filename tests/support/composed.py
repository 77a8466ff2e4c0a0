"""A mount without a kernel: the filesystem's halves over a store in memory, with troubles and crashes to order.

`Loop` runs them in a trio thread of its own whose clock stands still: what waits for a moment waits until `passes`
lets the time go by, so each background task runs when the test says. `Troubled` stands before the store and makes
one call fail, lose its answer, or never end. A crash is a copy of the state directory as it is at that moment,
and new objects on it; the old ones are dropped with the tasks that stood still in them.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar, cast

import pytest
import trio
import trio.testing

from sosfs.concurrency.tasks import Background
from sosfs.concurrency.threads import Threads
from sosfs.config.parameters import Settings
from sosfs.errors import StoreError
from sosfs.files.open_file import Handle
from sosfs.filesystem.composition import Filesystem, assemble
from sosfs.journal.journal import Journal
from sosfs.s3.protocol import Failure, ObjectStore
from sosfs.tree.inodes import Inode
from tests.support.fake_store import FakeStore

T = TypeVar("T")

LONG = 1000.0  # seconds: past every pause between tries
TASK = 1  # the process that does everything


class Loop:
    """A trio thread whose clock stands still."""

    def __init__(self) -> None:
        self._clock = trio.testing.MockClock()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: trio.run(self._main, clock=self._clock), daemon=True)
        self._thread.start()
        self._ready.wait()

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._end = trio.Event()
        async with trio.open_nursery() as self.nursery:
            self._ready.set()
            await self._end.wait()
            self.nursery.cancel_scope.cancel()

    def run(self, work: Callable[[], Awaitable[T]]) -> T:
        """Does `work` in the thread and returns what it returns."""
        return trio.from_thread.run(work, trio_token=self._token)

    def passes(self, seconds: float) -> None:
        """Lets time go by, second by second, and all tasks do what they do then."""

        async def jump() -> None:
            left = seconds
            while left > 0:
                self._clock.jump(min(left, 1.0 if left < 20 else left / 20))
                left -= min(left, 1.0 if left < 20 else left / 20)
                await trio.testing.wait_all_tasks_blocked()

        self.run(jump)

    def close(self) -> None:
        """Ends the thread with every task in it."""

        async def end() -> None:
            self._end.set()

        self.run(end)
        self._thread.join()


@contextmanager
def inline_threads() -> Iterator[None]:
    """What is done in threads is done at once, so that a still clock means that nothing goes on."""

    async def run_sync(function: Callable[..., T], *arguments: Any, **_: Any) -> T:
        await trio.lowlevel.checkpoint()
        return function(*arguments)

    async def run(_: Threads, function: Callable[..., T], *arguments: Any) -> T:
        return await run_sync(function, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trio.to_thread, "run_sync", run_sync)
        patch.setattr(Threads, "run", run)
        yield


class What(Enum):
    """What befalls a call."""

    FAILS = "fails"
    STALLS = "stalls"


@dataclass(frozen=True, slots=True)
class Plan:
    """What befalls the call that comes after `calls` others, and the `times - 1` after it."""

    what: What
    calls: int
    after: bool  # the store has done it by then
    times: int = 1


class Troubled:
    """An `ObjectStore` before another, that makes trouble as planned."""

    def __init__(self, inner: FakeStore) -> None:
        self.inner = inner
        self.plan: Plan | None = None
        self.stalled = False

    @property
    def bucket(self) -> str:
        return self.inner.bucket

    @property
    def hashes(self) -> bool:
        return self.inner.hashes

    @property
    def leaves_no_trace(self) -> bool:
        return self.inner.leaves_no_trace

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        method = getattr(self.inner, name)

        async def call(*arguments: Any, **options: Any) -> Any:
            plan = self._next()
            if plan is not None and not plan.after:
                return await self._befall(plan, name, arguments)
            answer = await method(*arguments, **options)
            return answer if plan is None else await self._befall(plan, name, arguments)

        return call

    def _next(self) -> Plan | None:
        plan = self.plan
        if plan is None:
            return None
        if plan.calls > 0:
            self.plan = replace(plan, calls=plan.calls - 1)
            return None
        self.plan = replace(plan, times=plan.times - 1) if plan.times > 1 else None
        return plan

    async def _befall(self, plan: Plan, name: str, arguments: tuple[Any, ...]) -> Any:
        if plan.what is What.STALLS:
            self.stalled = True
            await trio.sleep_forever()
        error = StoreError(errno.EIO, f"{name} {arguments[:1]}", detail="made by the test")
        if name == "delete_many":
            return [Failure(key, error) for key in arguments[0]]
        raise error


class Composed:
    """One mount at a time over one store, with its state directory."""

    def __init__(
        self,
        loop: Loop,
        store: FakeStore,
        settings: Settings,
        assembled: Callable[[Filesystem], None] = lambda parts: None,
    ) -> None:
        self.store = store
        self.loop = loop
        self._settings = settings
        self._assembled = assembled
        self._generation = 0

    def start(self) -> None:
        """Mounts: takes up what is in the state directory."""
        self.trouble = Troubled(self.store)
        self.scope = trio.CancelScope()

        async def live() -> None:
            with self.scope:
                async with trio.open_nursery() as self.nursery:
                    self.spawn = Background(self.nursery).spawn
                    store = cast(ObjectStore, self.trouble)
                    self.parts: Filesystem = assemble(self._settings, store, self._journal, self.spawn)
                    await trio.sleep_forever()

        async def begin() -> None:
            self._journal = Journal(self._settings.state_dir, "the test")
            self.loop.nursery.start_soon(live)
            await trio.testing.wait_all_tasks_blocked()
            self._assembled(self.parts)
            await self.parts.recover()

        self.loop.run(begin)

    def stop(self) -> None:
        """Unmounts: drains, and ends all tasks."""
        self.loop.run(self.parts.drain)
        assert self.parts.pending == 0
        self._end()

    def take_up(self, *, seconds: int = 5) -> None:
        """A mount begins on what is left, finds no damage, and sends all that it has after so many seconds."""
        self.start()
        assert self._journal.damage.lines == ()
        self.loop.passes(seconds)
        self.loop.run(self.settle)

    def crash(self) -> None:
        """The process dies at this instant; what its tasks do when they are ended does not count."""
        now, self._generation = self._settings.state_dir, self._generation + 1
        then = now.parent / f"state{self._generation}"
        self.keep_state(then)
        self._end()
        shutil.rmtree(now)
        self._settings = replace(self._settings, cache_dir=then)

    def keep_state(self, directory: Path) -> None:
        """A copy of what the process would leave if it died at this instant."""
        shutil.copytree(self._settings.state_dir, directory, ignore=shutil.ignore_patterns("*-shm", "lock"))

    def crash_before(self, state: Path) -> None:
        """As `crash`, but it died when this state was kept."""
        self.crash()
        self._settings = replace(self._settings, cache_dir=state)

    def _end(self) -> None:
        async def end() -> None:
            self.scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
            self.parts.cache.close()
            self._journal.close()

        self.loop.run(end)

    # What programs do, as the kernel puts it

    async def _walk(self, path: str) -> Inode:
        """The inode of a path; "" is the root."""
        inode = self.parts.inodes.root
        for name in filter(None, path.split("/")):
            inode = await self.parts.attributes.revalidate(await self.parts.namespace.lookup(inode, name.encode()))
        return inode

    async def _parent(self, path: str) -> tuple[Inode, bytes]:
        folder, _, name = path.rpartition("/")
        return await self._walk(folder), name.encode()

    async def write(self, path: str, data: bytes, *, at: int = 0, flags: int = 0) -> None:
        """open, write, close; creates with O_CREAT."""
        parent, name = await self._parent(path)
        flags |= os.O_WRONLY
        handle = await self._opened(parent, name, flags)
        try:
            offset = handle.inode.size if flags & os.O_APPEND else at
            if data:
                await self.parts.file_io.write(handle, offset, data)
            await self.parts.file_io.flush(handle)
        finally:
            await self.parts.file_io.release(handle)
            self.parts.namespace.forget(handle.inode, 0)

    async def _opened(self, parent: Inode, name: bytes, flags: int) -> Handle:
        namespace, creations, file_io = self.parts.namespace, self.parts.creations, self.parts.file_io
        try:
            inode = await self.parts.attributes.revalidate(await namespace.lookup(parent, name))
        except FileNotFoundError:
            if not flags & os.O_CREAT:
                raise
            directory, parsed = await creations.vacant(parent, name)
            return await file_io.create(creations.new_file(directory, parsed, stat.S_IFREG | 0o644, 0, 0), flags, TASK)
        return await file_io.open(inode, flags, TASK)

    async def truncate(self, path: str, size: int) -> None:
        await self.parts.file_io.truncate(await self._walk(path), size)

    async def chmod(self, path: str, mode: int) -> None:
        """chmod and fsync."""
        inode = await self._walk(path)
        inode.mode = stat.S_IFMT(inode.mode) | mode
        self.parts.attributes.changed(inode)
        await self.parts.file_io.fsync(inode)

    async def unlink(self, path: str) -> None:
        await self.parts.namespace.unlink(*await self._parent(path))

    async def mkdir(self, path: str) -> None:
        await self.parts.creations.make_directory(*await self._parent(path), 0o755, 0, 0)

    async def rmdir(self, path: str) -> None:
        await self.parts.namespace.rmdir(*await self._parent(path))

    async def rename(self, old: str, new: str) -> None:
        await self.parts.renames.rename(*await self._parent(old), *await self._parent(new), replace=True)

    async def settle(self) -> None:
        """fsync of the root."""
        await self.parts.commits.commit_under(self.parts.inodes.root)
        await self.parts.deletions.wait_under("")

    async def tree(self) -> dict[str, tuple[bytes, int] | None]:
        """Everything there is: bytes and mode of files, None for directories."""
        found: dict[str, tuple[bytes, int] | None] = {}
        todo = [("", self.parts.inodes.root)]
        while todo:
            path, inode = todo.pop()
            walk = await self.parts.listings.complete(inode)
            entries = self.parts.listings.directory(inode).entries
            assert set(entries) <= set(walk.names), "it can be opened and is not listed"
            for name, child in [(name, entries[name]) for name in walk.names if name in entries]:
                child_path = f"{path}/{name.decode()}".lstrip("/")
                if child.is_directory:
                    found[child_path] = None
                    todo.append((child_path, child))
                else:
                    found[child_path] = await self._bytes(child)
        return found

    async def _bytes(self, inode: Inode) -> tuple[bytes, int]:
        inode = await self.parts.attributes.revalidate(inode)
        handle = await self.parts.file_io.open(inode, os.O_RDONLY, TASK)
        try:
            body = bytes(await self.parts.file_io.read(handle, 0, inode.size))
        finally:
            await self.parts.file_io.release(handle)
        return body, stat.S_IMODE(inode.mode)


@contextmanager
def composed(
    store: FakeStore, base: Path, *, assembled: Callable[[Filesystem], None] = lambda parts: None, **options: Any
) -> Iterator[Composed]:
    """A mount of `protocol` with the default settings but for these, its state below `base`.

    `assembled` is called with the parts of each mount before it takes up what the one before has left.
    """
    loop = Loop()
    with inline_threads():
        settings = Settings("bucket", "", Path("/"), cache_dir=state_in(base), **options)
        mount = Composed(loop, store, settings, assembled)
        mount.start()
        yield mount
        mount.stop()
        loop.close()


def state_in(directory: Path) -> Path:
    """A state directory that a crash can copy to its side."""
    state = directory / "state0"
    state.mkdir()
    return state
