"""What goes on though its caller is gone: who changes names beside it waits for its end, as for one that has stayed.

In one process and without a kernel, whose lock on the directory goes with the caller.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyfuse3
import pytest
import trio
import trio.testing

from sosfs.concurrency import fairness
from sosfs.concurrency.fairness import Caller
from sosfs.concurrency.tasks import Background
from sosfs.config.parameters import TTL
from sosfs.filesystem.bucket import _operations
from sosfs.filesystem.pending_changes import PendingChanges
from sosfs.fuse import requests
from sosfs.fuse.operations import Operations
from sosfs.fuse.read_only import Switch
from sosfs.fuse.removal_streak import LONG
from sosfs.fuse.requests import CALLERS, NOTHING, NOWHERE, Call, Opened
from sosfs.ipc.pending import Kind
from tests.support.composed import Composed
from tests.support.drive import fails
from tests.support.held import Held, begun, bodies, put_all, settled, told

pytestmark = pytest.mark.usefixtures("without_bugs")
CALLER: Any = SimpleNamespace(pid=os.getpid(), uid=0, gid=0, umask=0)
FIELDS = ("update_size", "update_mode", "update_uid", "update_gid", "update_atime", "update_mtime")
GONE, ABSENT, STALE = (repr(pyfuse3.FUSEError(number)) for number in (errno.EINTR, errno.ENOENT, errno.ESTALE))


@pytest.fixture
def kernel(mount: Composed, monkeypatch: pytest.MonkeyPatch) -> Operations:
    monkeypatch.setattr(pyfuse3, "RequestContext", SimpleNamespace)  # it cannot be made here
    monkeypatch.setattr(CALLERS, "_background", Background(mount.nursery))
    return _operations(mount._settings, mount.parts)


async def left(mount: Composed, request: Callable[[], Awaitable[Any]]) -> None:
    """A request whose caller goes while it waits."""
    outcomes: dict[str, Any] = {}
    await begun(mount, partial(told, outcomes, "left", request))
    for call in CALLERS:
        call.interrupt.set()
    await trio.testing.wait_all_tasks_blocked()
    assert outcomes == {"left": GONE}


async def create(kernel: Operations, parent: int, name: bytes) -> None:
    """A file of three bytes."""
    opened, _ = await kernel.create(parent, name, 0o644, os.O_WRONLY | os.O_CREAT, CALLER)
    await kernel.write(opened.fh, 0, b"new")
    await kernel.flush(opened.fh)
    await kernel.release(opened.fh)


async def symlink(kernel: Operations, parent: int, name: bytes) -> None:
    await kernel.symlink(parent, name, b"new", CALLER)


async def rename(kernel: Operations, parent: int, name: bytes) -> None:
    folder = await kernel.lookup(parent, b"d", CALLER)
    await kernel.rename(folder.st_ino, b"other", parent, name, 0, CALLER)


@pytest.mark.promise(3)
@pytest.mark.parametrize("make", [create, symlink, rename])
def test_what_takes_the_name_of_a_file_whose_removal_goes_on_stays(
    mount: Composed, store: Held, kernel: Operations, make: Callable[[Operations, int, bytes], Awaitable[None]]
) -> None:
    outcomes: dict[str, Any] = {}

    async def main() -> None:
        await put_all(store, {"file": b"old", "d/": b"", "d/other": b"new"})
        root = mount.parts.inodes.root.number
        removing = store.before["delete", "file"] = trio.Event()
        await left(mount, lambda: kernel.unlink(root, b"file", CALLER))
        await begun(mount, partial(told, outcomes, "make", partial(make, kernel, root, b"file")))
        await settled(removing)

    mount.loop.run(main)
    mount.loop.passes(2 * TTL)
    assert outcomes == {"make": None}
    assert bodies(store) == {"file": b"new", "d/": b""} | ({} if make is rename else {"d/other": b"new"})


def test_a_directory_that_is_removed_while_its_making_goes_on_does_not_come_back(
    mount: Composed, store: Held, kernel: Operations
) -> None:
    outcomes: dict[str, Any] = {}

    async def main() -> None:
        root = mount.parts.inodes.root.number
        making = store.before["put", "d/"] = trio.Event()
        await left(mount, lambda: kernel.mkdir(root, b"d", 0o755, CALLER))
        await begun(mount, partial(told, outcomes, "rmdir", partial(kernel.rmdir, root, b"d", CALLER)))
        await settled(making)

    mount.loop.run(main)
    mount.loop.passes(2 * TTL)
    assert outcomes == {"rmdir": None}
    assert bodies(store) == {}
    assert mount.loop.run(mount.tree) == {}
    assert len(mount.parts.inodes) == 1, "the kernel was told of none"


def test_a_mount_does_not_become_read_only_while_something_goes_on(
    mount: Composed, store: Held, kernel: Operations
) -> None:
    async def main() -> None:
        await put_all(store, {"file": b"bytes"})
        root, switch = mount.parts.inodes.root.number, Switch(kernel, is_read_only=False)
        copying = store.before["copy", "file"] = trio.Event()
        await left(mount, lambda: switch.rename(root, b"file", root, b"moved", 0, CALLER))
        with fails(errno.EBUSY):
            switch.read_only()
        await settled(copying)
        switch.read_only()

    mount.loop.run(main)


@pytest.mark.parametrize("what", ["file", "directory"])
def test_a_mount_ends_when_a_renaming_that_goes_on_has(
    mount: Composed, store: Held, kernel: Operations, what: str
) -> None:
    """It is told as pending until then: what is called off is left to the next mount."""
    outcomes: dict[str, Any] = {}

    async def main() -> None:
        await put_all(store, {"a": b"bytes"} if what == "file" else {"a/": b"", "a/file": b"bytes"})
        root = mount.parts.inodes.root.number
        copying = store.before["copy", "a" if what == "file" else "a/file"] = trio.Event()
        await left(mount, lambda: kernel.rename(root, b"a", root, b"b", 0, CALLER))
        await begun(mount, partial(told, outcomes, "drain", CALLERS.all_ended))
        assert mount.parts.pending == 1 and 0 < mount.parts.oldest <= time.time()
        (change,) = PendingChanges(mount.parts, "", dict).changes([()])
        assert (change.pending.names, change.pending.kind, change.pending.error) == ((b"a",), Kind.RENAME, "")
        await change.attempt()
        assert outcomes == {}
        await settled(copying)

    mount.loop.run(main)
    assert outcomes == {"drain": None}
    assert bodies(store) == ({"b": b"bytes"} if what == "file" else {"b/": b"", "b/file": b"bytes"})
    assert (mount.parts.pending, mount.parts.oldest) == (0, 0.0)


@pytest.mark.parametrize("is_one_of_many", [False, True])
def test_a_name_whose_renaming_goes_on_can_only_be_removed_before(
    mount: Composed, store: Held, kernel: Operations, is_one_of_many: bool
) -> None:
    """`rm -r` removes one of many names at once."""
    outcomes: dict[str, Any] = {}

    async def main() -> None:
        await put_all(store, {"file": b"bytes"} | {f"many-{at}": b"" for at in range(LONG)})
        root = mount.parts.inodes.root.number
        copying = store.before["copy", "file"] = trio.Event()
        await left(mount, lambda: kernel.rename(root, b"file", root, b"moved", 0, CALLER))
        if is_one_of_many:
            for at in range(LONG):
                mount.parts.deletions._proven_until = trio.current_time() + 1
                await kernel.lookup(root, b"many-%d" % at, CALLER)
                kernel._provisional.removed(CALLER.pid, root, b"many-%d" % at)
            await kernel.lookup(root, b"file", CALLER)
        await begun(mount, partial(told, outcomes, "rm", partial(kernel.unlink, root, b"file", CALLER)))
        await settled(copying)

    mount.loop.run(main)
    mount.loop.passes(2 * TTL)
    assert outcomes == {"rm": ABSENT}
    assert {key: body for key, body in bodies(store).items() if body} == {"moved": b"bytes"}
    assert mount.parts.pending == 0


@pytest.mark.parametrize("is_forgotten", [False, True], ids=["", "whose entries are forgotten meanwhile"])
def test_a_directory_whose_removal_goes_on_stays_where_something_is_made_in_it(
    mount: Composed, store: Held, kernel: Operations, monkeypatch: pytest.MonkeyPatch, is_forgotten: bool
) -> None:
    asking = trio.Event()

    async def slowly(*_: Any) -> None:
        await asking.wait()

    async def main() -> None:
        await put_all(store, {"d/": b""})
        root, directory = mount.parts.inodes.root.number, await mount._walk("d")
        with monkeypatch.context() as patch:
            patch.setattr(mount.parts.attributes.protection, "require", slowly)
            await left(mount, lambda: kernel.rmdir(root, b"d", CALLER))
        if is_forgotten:
            mount.loop._clock.jump(2 * TTL)
            mount.parts.namespace.sweep()
        await create(kernel, directory.number, b"file")
        await settled(asking)

    mount.loop.run(main)
    assert bodies(store) == {"d/": b"", "d/file": b"new"}
    assert set(mount.loop.run(mount.tree)) == {"d", "d/file"}


@pytest.mark.promise(3)
@pytest.mark.parametrize("make", [create, symlink])
@pytest.mark.parametrize("held", ["list", "copy"])
def test_nothing_is_made_in_a_directory_whose_replacement_goes_on(
    mount: Composed,
    store: Held,
    kernel: Operations,
    make: Callable[[Operations, int, bytes], Awaitable[None]],
    held: str,
) -> None:
    """The kernel looks its name up again, and makes it in the one that is there then."""
    outcomes: dict[str, Any] = {}

    async def main() -> None:
        await put_all(store, {"d/": b"", "d/other": b"other", "empty/": b""})
        root, directory = mount.parts.inodes.root.number, await mount._walk("empty")
        holding = store.before[held, "d/other" if held == "copy" else "d/"] = trio.Event()
        await left(mount, lambda: kernel.rename(root, b"d", root, b"empty", 0, CALLER))
        await begun(mount, partial(told, outcomes, "make", partial(make, kernel, directory.number, b"file")))
        await settled(holding)

    mount.loop.run(main)
    mount.loop.passes(2 * TTL)
    assert outcomes == {"make": STALE}
    assert bodies(store) == {"empty/": b"", "empty/other": b"other"}
    assert mount.parts.pending == 0


@pytest.mark.promise(3)
@pytest.mark.parametrize("what", ["rmdir", "rename"])
def test_a_directory_stays_into_which_a_renaming_goes_on(
    mount: Composed, store: Held, kernel: Operations, what: str
) -> None:
    outcomes: dict[str, Any] = {}

    async def main() -> None:
        await put_all(store, {"from/": b"", "from/file": b"bytes", "to/": b"", "other/": b""})
        root = mount.parts.inodes.root.number
        source, target = (await mount._walk("from")).number, (await mount._walk("to")).number
        of = {"rmdir": (root, b"to"), "rename": (root, b"other", root, b"to", 0)}
        copying = store.before["copy", "from/file"] = trio.Event()
        await left(mount, lambda: kernel.rename(source, b"file", target, b"file", 0, CALLER))
        await begun(mount, partial(told, outcomes, what, lambda: getattr(kernel, what)(*of[what], CALLER)))
        await settled(copying)

    mount.loop.run(main)
    assert outcomes == {what: repr(pyfuse3.FUSEError(errno.ENOTEMPTY))}
    assert bodies(store) == {"from/": b"", "to/": b"", "to/file": b"bytes", "other/": b""}
    assert set(mount.loop.run(mount.tree)) == {"from", "to", "to/file", "other"}


async def rewrite(kernel: Operations, number: int) -> None:
    """As by `echo new > file`, where the kernel knows the name."""
    opened = await kernel.open(number, os.O_WRONLY | os.O_TRUNC, CALLER)
    await kernel.write(opened.fh, 0, b"new")
    await kernel.flush(opened.fh)
    await kernel.release(opened.fh)


async def truncate(kernel: Operations, number: int) -> None:
    """As truncate(2) does by its path."""
    fields, wanted = SimpleNamespace(**dict.fromkeys(FIELDS, False) | {"update_size": True}), SimpleNamespace(st_size=1)
    await kernel.setattr(number, cast(Any, wanted), cast(Any, fields), None, CALLER)


@pytest.mark.promise(3)
@pytest.mark.parametrize("write", [rewrite, truncate])
@pytest.mark.parametrize("what", ["unlink", "rename"])
def test_a_file_whose_removal_or_replacement_goes_on_is_not_written_to(
    mount: Composed,
    store: Held,
    kernel: Operations,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
    write: Callable[[Operations, int], Awaitable[None]],
) -> None:
    """The kernel looks its name up again, and takes what it leads to then."""
    asking, outcomes = trio.Event(), dict[str, Any]()

    async def slowly(*_: Any) -> None:
        await asking.wait()

    async def main() -> None:
        await put_all(store, {"file": b"old", "other": b"other"})
        root = mount.parts.inodes.root.number
        number = (await kernel.lookup(root, b"file", CALLER)).st_ino
        of = {"unlink": (root, b"file"), "rename": (root, b"other", root, b"file", 0)}
        with monkeypatch.context() as patch:
            patch.setattr(mount.parts.attributes.protection, "require", slowly)
            await left(mount, lambda: getattr(kernel, what)(*of[what], CALLER))
        await begun(mount, partial(told, outcomes, "write", partial(write, kernel, number)))
        await settled(asking)

    mount.loop.run(main)
    assert outcomes == {"write": STALE}
    assert bodies(store) == ({"other": b"other"} if what == "unlink" else {"file": b"other"})


def test_who_waits_for_what_goes_on_can_be_stopped_and_has_begun_nothing(
    mount: Composed, store: Held, kernel: Operations
) -> None:
    async def main() -> None:
        await put_all(store, {"file": b"old", "d/other": b"other"})
        root, directory = mount.parts.inodes.root.number, await mount._walk("d")
        removing = store.before["delete", "file"] = trio.Event()
        await left(mount, lambda: kernel.unlink(root, b"file", CALLER))
        await left(mount, lambda: create(kernel, root, b"file"))
        await left(mount, lambda: kernel.mkdir(root, b"file", 0o755, CALLER))
        await kernel.unlink(directory.number, b"other", CALLER)  # elsewhere nobody waits
        await settled(removing)
        await kernel.mkdir(root, b"file", 0o755, CALLER)

    mount.loop.run(main)
    mount.loop.passes(TTL)
    assert bodies(store) == {"d/": b"", "file/": b""}


def test_who_changes_names_in_two_directories_waits_for_what_goes_on_in_both(
    mount: Composed, store: Held, kernel: Operations
) -> None:
    outcomes: dict[str, Any] = {}

    async def main() -> None:
        await put_all(store, {"d/file": b"bytes", "d/old": b"", "e/old": b"", "e/": b"", "d/": b""})
        one, other = (await mount._walk("d")).number, (await mount._walk("e")).number
        first, second = trio.Event(), trio.Event()
        store.before["delete", "d/old"], store.before["delete", "e/old"] = first, second
        await left(mount, lambda: kernel.unlink(one, b"old", CALLER))
        await left(mount, lambda: kernel.unlink(other, b"old", CALLER))
        moving = partial(kernel.rename, one, b"file", other, b"file", 0, CALLER)
        await begun(mount, partial(told, outcomes, "mv", moving))
        await settled(first)
        assert (outcomes, store.calls["copy"]) == ({}, 0)
        await settled(second)

    mount.loop.run(main)
    assert outcomes == {"mv": None}


def test_all_that_wait_for_what_goes_on_go_on_after_it(mount: Composed, store: Held, kernel: Operations) -> None:
    outcomes: dict[str, Any] = {}

    async def main() -> None:
        await put_all(store, {"file": b"old"})
        root = mount.parts.inodes.root.number
        removing = store.before["delete", "file"] = trio.Event()
        await left(mount, lambda: kernel.unlink(root, b"file", CALLER))
        for name in ("a", "b", "c"):
            await begun(mount, partial(told, outcomes, name, partial(create, kernel, root, name.encode())))
        assert outcomes == {}
        await settled(removing)

    mount.loop.run(main)
    assert outcomes == dict.fromkeys("abc")


def test_beside_a_directory_whose_replacement_goes_on_nothing_is_made_either(
    mount: Composed, store: Held, kernel: Operations
) -> None:
    outcomes: dict[str, Any] = {}

    async def main() -> None:
        await put_all(store, {"d/": b"", "d/other": b"other", "empty/": b""})
        root = mount.parts.inodes.root.number
        await mount._walk("empty")
        holding = store.before["copy", "d/other"] = trio.Event()
        await left(mount, lambda: kernel.rename(root, b"d", root, b"empty", 0, CALLER))
        await begun(mount, partial(told, outcomes, "make", partial(create, kernel, root, b"file")))
        assert outcomes == {}
        await settled(holding)

    mount.loop.run(main)
    assert outcomes == {"make": None}


def test_what_goes_on_by_itself_has_its_turn_as_that_of_the_process_that_asked_for_it(
    mount: Composed, kernel: Operations
) -> None:
    """A thread of it has, and does not wait behind what nobody waits for."""
    found: list[Caller] = []

    async def look() -> None:
        found.append(fairness.current())

    async def main() -> None:
        thread = threading.get_native_id()
        assert thread != os.getpid()
        await CALLERS.apart("mkdir", thread, look, _nothing, NOWHERE)
        await CALLERS.serve("read", 0, lambda: Opened("/file", thread), look)
        assert list(CALLERS) == [], "and is under way no more"

    mount.loop.run(main)
    assert found == [Caller(os.getpid(), waits=True)] * 2


async def _nothing(_: Any) -> None:
    """There is nothing to be undone."""


# Who is gone


class Processes:
    """A /proc with some threads: what is pending, blocked and ignored of signals, as masks, and what they do."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(
        self, number: int, *, pending: str = "SigPnd", of: int = signal.SIGINT, deaf: str = "", state: str = "D"
    ) -> None:
        """A process of one thread."""
        mask, task = 1 << (of - 1), self.path / str(number) / "task" / str(number)
        lines = [f"State:\t{state} (doing)", f"Tgid:\t{number}"]
        for name in ("SigPnd", "ShdPnd", "SigBlk", "SigIgn"):
            lines.append(f"{name}:\t{mask if name in (pending, deaf) else 0:016x}")
        task.mkdir(parents=True)
        for folder in (task, task.parent.parent):
            (folder / "status").write_text("\n".join(lines))
        (self.path / str(number) / "fd").mkdir()

    def opens(self, number: int, path: str) -> None:
        """It has a file open."""
        (self.path / str(number) / "fd" / "3").symlink_to(path)


@pytest.fixture
def processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Processes:
    """The processes of a machine on which nothing else runs."""
    (tmp_path / "proc").mkdir()
    monkeypatch.setattr(requests, "PROC", tmp_path / "proc")
    return Processes(tmp_path / "proc")


def _is_gone(pid: int, opened: Opened = NOTHING) -> bool:
    call = Call("read", pid, lambda: opened, 0.0)
    return requests._gone([(call, opened)]) == [call]


@pytest.mark.parametrize("pending", ["SigPnd", "ShdPnd"])
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGKILL, signal.SIGTERM])
def test_whom_somebody_wants_to_end_is_gone(processes: Processes, pending: str, number: int) -> None:
    processes.add(7, pending=pending, of=number, state="S")
    assert _is_gone(7)


@pytest.mark.parametrize(
    "of", [{"deaf": "SigBlk"}, {"deaf": "SigIgn"}, {"of": signal.SIGALRM}, {"of": signal.SIGCHLD}, {"pending": ""}]
)
def test_who_does_not_end_by_what_is_pending_is_there(processes: Processes, of: dict[str, Any]) -> None:
    processes.add(7, **of)
    processes.opens(7, "/mnt/file")
    assert not _is_gone(7)
    assert not _is_gone(8), "nor is one of whom nothing is known"
    assert not _is_gone(0, Opened("/mnt/file", 0))


def test_who_has_the_file_open_and_waits_for_the_kernel_is_who_asks(processes: Processes) -> None:
    processes.add(7)
    processes.opens(7, "/mnt/file")
    processes.add(8, state="S")
    processes.opens(8, "/mnt/other")
    processes.add(9)
    processes.opens(9, "/mnt/removed (deleted)")
    processes.add(10)
    for path, opener, is_gone in (
        ("/mnt/file", 0, True),
        ("/mnt/other", 0, False),
        ("/mnt/removed", 0, True),
        ("/mnt/closing", 10, True),
        ("/mnt/closing", 8, False),
        ("/mnt/closing", 0, False),
        ("", 0, False),
    ):
        assert _is_gone(0, Opened(path, opener)) == is_gone, (path, opener)
