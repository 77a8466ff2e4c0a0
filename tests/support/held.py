"""A store whose calls a test holds back, and the steps of an open file: for what falls between the steps of several."""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from sosfs.config.parameters import TTL
from sosfs.errors import StoreError
from sosfs.files.open_file import Handle
from sosfs.namespace.eviction import Eviction
from sosfs.s3.protocol import Failure, Properties
from tests.support.composed import TASK, Composed, composed
from tests.support.fake_store import FakeStore

PARTS = frozenset({"create_multipart", "upload_part", "copy_part", "complete_multipart"})
LOOKS = frozenset({"list_uploads", "list_parts", "abort_multipart"})
HELD = frozenset({"head", "get", "list", "put", "copy", "delete", "delete_many"}) | PARTS | LOOKS
ACLS = frozenset({"get_acl", "put_acl"})


class Held(FakeStore):
    """A store that holds calls back, by operation or by (operation, key), and fails some of them, done or not.

    `before` they take effect, or `after`, until their event is set; `reached` tells which have come there.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.before: dict[str | tuple[str, str], trio.Event] = {}
        self.after: dict[str | tuple[str, str], trio.Event] = {}
        self.errors: dict[tuple[str, str], list[OSError]] = {}
        self.unanswered: dict[tuple[str, str], list[OSError]] = {}  # what takes effect, and fails all the same
        self.lost: set[str] = set()  # keys whose next object is made without an answer
        self.reached: set[tuple[str, str]] = set()

    def __getattribute__(self, name: str) -> Any:
        method = super().__getattribute__(name)
        if name not in HELD and name not in ACLS:
            return method

        async def call(key: Any, *arguments: Any, **options: Any) -> Any:
            what = name, key if isinstance(key, str) else next(iter(key), "")
            await self._passing(self.before, what)
            if self.errors.get(what):
                return self._failed(name, key, self.errors[what].pop(0))
            answer = await method(key, *arguments, **options)
            if self.unanswered.get(what):
                return self._failed(name, key, self.unanswered[what].pop(0))
            if name in {"put", "complete_multipart"} and key in self.lost:
                self.lost.remove(key)
                raise StoreError(errno.EIO, f"{name} {key!r}", detail="no answer")
            await self._passing(self.after, what)
            return answer

        return call

    @staticmethod
    def _failed(name: str, key: Any, error: OSError) -> list[Failure]:
        if name == "delete_many":
            return [Failure(one, error) for one in key]
        raise error

    async def release(self) -> None:
        """Lets everything go on, and nothing fail: a test that has failed must not keep its mount from ending."""
        for event in (*self.before.values(), *self.after.values()):
            event.set()
        self.before, self.after, self.errors, self.unanswered, self.fault = {}, {}, {}, {}, None

    async def _passing(self, events: Mapping[str | tuple[str, str], trio.Event], what: tuple[str, str]) -> None:
        event = events.get(what, events.get(what[0]))
        if event is not None:
            self.reached.add(what)
            await event.wait()


@pytest.fixture
def without_bugs(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """What a task in the background raises is logged and ends nothing: with this it fails the test."""
    yield
    told = caplog.get_records("call")
    assert [one.getMessage() for one in told if one.levelno >= logging.ERROR and one.exc_info] == []


@pytest.fixture
def store() -> Held:
    """The store of `mount`."""
    return Held()


@pytest.fixture
def mount(tmp_path: Path, store: Held) -> Iterator[Composed]:
    """A mount without a kernel whose requests can be held back."""
    with composed(store, tmp_path) as mount:
        yield mount
        mount.loop.run(store.release)


def stored(store: FakeStore, key: str = "file") -> bytes:
    """The bytes of an object."""
    return bytes(store._stored[key].body)


def bodies(store: FakeStore) -> dict[str, bytes]:
    """The bytes of all objects."""
    return {key: stored(store, key) for key in store._stored}


async def opened(mount: Composed, flags: int = os.O_RDWR, path: str = "file") -> Handle:
    """A handle of a file that exists."""
    return await mount.parts.file_io.open(await mount._walk(path), flags, TASK)


async def closed(mount: Composed, handle: Handle) -> None:
    """What close(2) does. Raises what it does."""
    try:
        await mount.parts.file_io.flush(handle)
    finally:
        await mount.parts.file_io.release(handle)


async def chmod(mount: Composed, path: str = "file", mode: int = 0o600) -> None:
    """What chmod(2) does where nobody waits for the bucket: it goes up a second later."""
    inode = await mount._walk(path)
    inode.mode = stat.S_IFMT(inode.mode) | mode
    mount.parts.attributes.changed(inode, posix={"mode"})


async def put_all(store: FakeStore, objects: Mapping[str, bytes]) -> None:
    """What another client has stored."""
    for key, body in objects.items():
        await store.put(key, body, Properties())


async def begun(mount: Composed, work: Callable[[], Awaitable[Any]]) -> None:
    """Starts work, and returns when it waits for something."""
    mount.nursery.start_soon(work)
    await trio.testing.wait_all_tasks_blocked()


async def told(outcomes: dict[str, Any], what: str, work: Callable[[], Awaitable[Any]]) -> None:
    """Notes under `what` what work returns, or its error."""
    try:
        outcomes[what] = await work()
    except Exception as error:  # noqa: BLE001
        outcomes[what] = repr(error)


async def settled(event: trio.Event) -> None:
    """Sets an event, and returns when all that waited for it waits for something else."""
    event.set()
    await trio.testing.wait_all_tasks_blocked()


def silence(request: str) -> StoreError:
    """No answer."""
    return StoreError(errno.EIO, request, detail="no answer")


def denied(request: str = "") -> StoreError:
    """A refusal."""
    return StoreError(errno.EACCES, request, code="AccessDenied", status=403)


def readers(store: FakeStore, key: str = "file") -> set[str]:
    """Whom an object's ACL lets read it."""
    return {grant.grantee for grant in store._stored[key].acl.grants}


def forget(mount: Composed) -> None:
    """Forgets all inodes that may be forgotten."""
    Eviction(mount.parts.inodes, mount.parts.attributes, mount.parts.listings, mount.spawn, None, most=1).look()
    mount.parts.listings.watchers.pop()  # this once


def crashes_while_old_keys_go(mount: Composed, store: FakeStore, old: str, new: str) -> None:
    """A directory is renamed, and the mount ends when all of it is copied and nothing is removed yet."""

    async def hangs(*_: Any, **__: Any) -> Any:
        await trio.sleep_forever()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "delete_many", hangs)
        mount.loop.run(lambda: begun(mount, lambda: mount.rename(old, new)))
        mount.crash()


@contextmanager
def listed_long_ago(store: Held, base: Path, *, files: int) -> Iterator[Composed]:
    """A mount that has listed `d`, which has a file for every other number, so long ago that each name is asked for."""
    with composed(store, base) as mount:

        async def begin() -> None:
            await put_all(store, {f"d/{number:04d}": bytes(5000) for number in range(0, 2 * files, 2)})
            await put_all(store, {"d/sub/x": b"x"})
            await mount.parts.listings.complete(await mount._walk("d"))

        mount.loop.run(begin)
        mount.loop.passes(2 * TTL)
        yield mount
        mount.loop.run(store.release)
