"""The switch of `remount,ro` by itself: what it refuses, what it lets through, and what keeps it from being thrown."""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, cast

import pyfuse3
import pytest
import trio
import trio.testing

from sosfs.fuse.read_only import CHANGING, HANDLERS, OPENING, Switch

CONTEXT = SimpleNamespace()


class Files(pyfuse3.Operations):
    """Answers each request by noting its name; opens hand out the handles 1, 2, 3..."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.fails: OSError | None = None
        self.held: trio.Event | None = None
        for name in HANDLERS:
            setattr(self, name, self._noting(name))

    def _noting(self, name: str) -> Callable[..., Awaitable[Any]]:
        async def handler(*_: Any) -> Any:
            if self.held is not None:
                await self.held.wait()
            if self.fails is not None:
                raise self.fails
            self.asked.append(name)
            opened = SimpleNamespace(fh=len(self.asked))
            return (opened, SimpleNamespace()) if name == "create" else opened

        return handler


@pytest.fixture
def files() -> Files:
    """What is behind the switch."""
    return Files()


def call(switch: Switch, name: str, *arguments: Any) -> Any:
    async def main() -> Any:
        return await getattr(switch, name)(*arguments)

    return trio.run(main)


def is_refused(switch: Switch, name: str, *arguments: Any) -> bool:
    try:
        call(switch, name, *arguments)
    except pyfuse3.FUSEError as error:
        assert error.errno == errno.EROFS
        return True
    return False


def opening(flags: int) -> tuple[Any, ...]:
    return (2, flags, CONTEXT)


def creating(flags: int) -> tuple[Any, ...]:
    return (1, b"name", 0o644, flags, CONTEXT)


@pytest.mark.parametrize("name", sorted(CHANGING))
def test_whatever_changes_something_is_refused_while_it_is_on(files: Files, name: str) -> None:
    switch = Switch(files, is_read_only=True)
    assert is_refused(switch, name, 1, b"a", CONTEXT)
    assert files.asked == []
    switch.read_write()
    assert not is_refused(switch, name, 1, b"a", CONTEXT)
    switch.read_only()
    assert is_refused(switch, name, 1, b"a", CONTEXT)
    assert files.asked == [name]


def test_every_request_that_changes_something_is_named() -> None:
    """The others change nothing, or belong to a handle that is not opened while it is on."""
    harmless = {
        *("access", "flush", "forget", "fsync", "fsyncdir", "getattr", "getxattr", "init", "listxattr", "lookup"),
        *("opendir", "poll", "read", "readdir", "readlink", "release", "releasedir", "stacktrace", "statfs", "write"),
    }
    requests = {name for name in HANDLERS if callable(getattr(pyfuse3.Operations, name))}
    assert requests == CHANGING | OPENING | harmless


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC, os.O_WRONLY | os.O_APPEND])
def test_an_open_that_may_change_the_file_is_refused(files: Files, flags: int) -> None:
    switch = Switch(files, is_read_only=True)
    assert is_refused(switch, "open", *opening(flags))
    assert files.asked == []


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY])
def test_a_file_is_not_made_even_to_be_read(files: Files, flags: int) -> None:
    assert is_refused(Switch(files, is_read_only=True), "create", *creating(flags | os.O_CREAT))
    assert files.asked == []


def test_what_only_reads_goes_on(files: Files) -> None:
    switch = Switch(files, is_read_only=True)
    for name, arguments in (("open", opening(os.O_RDONLY)), ("read", (1, 0, 10)), ("lookup", (1, b"a", CONTEXT))):
        assert not is_refused(switch, name, *arguments)
    assert files.asked == ["open", "read", "lookup"]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("open", opening(os.O_WRONLY)), ("open", opening(os.O_RDONLY | os.O_TRUNC)), ("create", creating(os.O_RDONLY))],
)
def test_it_is_not_thrown_while_a_file_is_open_for_writing(files: Files, name: str, arguments: tuple[Any, ...]) -> None:
    switch = Switch(files, is_read_only=False)
    opened = call(switch, name, *arguments)
    with pytest.raises(OSError, match="1 file is open for writing") as caught:
        switch.read_only()
    assert caught.value.errno == errno.EBUSY
    assert not is_refused(switch, "write", 1, 0, b"x")
    assert not is_refused(switch, "mkdir", 1, b"a", 0o755, CONTEXT), "it is as it was"
    call(switch, name, *arguments)
    with pytest.raises(OSError, match="2 files are open for writing"):
        switch.read_only()
    for handle in ((opened[0] if name == "create" else opened).fh, len(files.asked)):
        call(switch, "release", handle)
    switch.read_only()
    assert is_refused(switch, "mkdir", 1, b"a", 0o755, CONTEXT)


def test_nor_while_one_is_about_to_be(files: Files) -> None:
    """Its server may take long to answer, and afterwards it would be written to."""
    switch = Switch(files, is_read_only=False)

    async def main() -> None:
        files.held = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(switch.open, *opening(os.O_WRONLY))
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(OSError, match="1 file is open for writing"):
                switch.read_only()
            files.held.set()
        with pytest.raises(OSError, match="1 file is open for writing"):
            switch.read_only()
        await switch.release(1)
        switch.read_only()

    trio.run(main)


def test_nor_while_something_else_is_being_changed(files: Files) -> None:
    """As a directory that is being renamed: it would go on changing the bucket."""
    switch, renaming = Switch(files, is_read_only=False), (1, b"a", 1, b"b", 0, cast(Any, CONTEXT))

    async def main() -> None:
        files.held = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(switch.rename, *renaming)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(OSError, match="something is being changed") as caught:
                switch.read_only()
            assert caught.value.errno == errno.EBUSY
            files.held.set()
        switch.read_only()

    trio.run(main)


def test_who_only_reads_and_who_failed_to_open_does_not_keep_it(files: Files) -> None:
    switch = Switch(files, is_read_only=False)
    call(switch, "open", *opening(os.O_RDONLY))
    files.fails = OSError(errno.ENOENT, "gone")
    with pytest.raises(OSError, match="gone"):
        call(switch, "open", *opening(os.O_WRONLY))
    switch.read_only()


def test_a_release_frees_the_file_though_its_handler_fails(files: Files) -> None:
    switch = Switch(files, is_read_only=False)
    opened = call(switch, "open", *opening(os.O_WRONLY))
    files.fails = OSError(errno.EIO, "the store")
    with pytest.raises(OSError, match="the store"):
        call(switch, "release", opened.fh)
    switch.read_only()
