"""A text that is open: what is taken of what is written to it, when it is applied, and who sees what.

In one process, over a setting in memory.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pyfuse3
import pytest
import trio
import trio.testing

from sosfs.control.nodes import Audience, BytesFile, Fixed, TextFile, Tree
from sosfs.fuse.control_tree import TEXT_MAX, ControlOperations
from tests.support.drive import fails

OWNER: Any = SimpleNamespace(uid=0, gid=0, pid=1)
OTHER: Any = SimpleNamespace(uid=4321, gid=0, pid=1)


class Setting(TextFile):
    """A text that may be written, and says no to lines that begin with "bad"."""

    permissions = 0o600

    def __init__(self) -> None:
        super().__init__("setting")
        self.text, self.applied = b"old\n", list[bytes]()
        self.refuses: OSError | None = None
        self.may: trio.Event | None = None

    async def read(self) -> str:
        """As `TextFile.read`."""
        return self.text.decode()

    async def shown_to(self, audience: Audience) -> str:
        """As `TextFile.shown_to`."""
        return self.text.decode() if audience is Audience.OWNER else "hidden\n"

    async def write(self, text: bytes) -> None:
        """As `TextFile.write`."""
        if self.may is not None:
            await self.may.wait()
        if self.refuses is not None:
            raise self.refuses
        self.applied.append(text)
        self.text = text

    def check(self, text: bytes) -> None:
        """As `TextFile.check`."""
        if b"bad" in text:
            raise OSError(errno.EINVAL, "a bad line")


class Report(TextFile):
    """A text that nobody writes."""

    async def read(self) -> str:
        """As `TextFile.read`."""
        return "report\n"


class Old(BytesFile):
    """Bytes of an old version."""

    size = 3

    async def read(self, start: int, stop: int) -> bytes:
        """As `BytesFile.read`."""
        return b"old"[start:stop]


class Control:
    """The tree, as the kernel has it."""

    def __init__(self) -> None:
        self.setting = Setting()
        top = Fixed("top", {b"setting": self.setting, b"report": Report("report"), b"old": Old("bytes")})
        self.operations = ControlOperations(Tree(top))
        self.operations._uid = 1000

    async def number(self, name: bytes = b"setting") -> int:
        """The number that a name leads to."""
        found = await self.operations.lookup(self.operations.tree.root.number, name, OWNER)
        return int(found.st_ino)

    async def opened(self, flags: int, name: bytes = b"setting", ctx: Any = OWNER) -> int:
        """A handle."""
        return int((await self.operations.open(await self.number(name), flags, ctx)).fh)

    async def closed(self, handle: int) -> None:
        """As by close(2), where the error of a release goes nowhere."""
        try:
            await self.operations.flush(handle)
        finally:
            await self.operations.release(handle)


def run(work: Callable[[Control], Awaitable[None]]) -> Setting:
    """The setting after `work`."""
    control = Control()
    trio.run(work, control)
    return control.setting


def size(length: int) -> tuple[Any, Any]:
    """What truncate tells."""
    entry = pyfuse3.EntryAttributes()
    entry.st_size = length
    return entry, SimpleNamespace(update_size=True, update_mode=False, update_uid=False, update_gid=False)


def test_what_is_written_is_applied_once_each_time_that_it_is_closed() -> None:
    async def work(control: Control) -> None:
        handle = await control.opened(os.O_WRONLY | os.O_TRUNC)
        await control.operations.flush(handle)  # as a shell does before it writes anything
        assert await control.operations.write(handle, 0, b"new ") == 4
        await control.operations.write(handle, 4, b"text\n")
        assert control.setting.applied == []
        await control.operations.flush(handle)
        assert control.setting.applied == [b"new text\n"]
        await control.operations.flush(handle)
        assert control.setting.applied == [b"new text\n"]
        await control.operations.setattr(await control.number(), *size(0), handle, OWNER)
        await control.operations.write(handle, 0, b"old\n")
        await control.closed(handle)

    assert run(work).applied == [b"new text\n", b"old\n"]


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_WRONLY | os.O_TRUNC])
def test_what_is_so_already_is_not_applied(flags: int) -> None:
    async def work(control: Control) -> None:
        handle = await control.opened(flags)
        await control.operations.write(handle, 0, b"old\n")
        await control.closed(handle)

    setting = run(work)
    assert (setting.applied, setting.text) == ([], b"old\n")


def test_what_was_only_emptied_is_applied_when_it_is_released_and_what_was_only_opened_is_not() -> None:
    async def work(control: Control) -> None:
        for flags in (os.O_RDONLY, os.O_RDONLY | os.O_TRUNC, os.O_WRONLY, os.O_RDWR):
            await control.closed(await control.opened(flags))
        assert control.setting.applied == []
        handle = await control.opened(os.O_WRONLY | os.O_TRUNC)
        await control.operations.flush(handle)
        assert control.setting.applied == []
        await control.operations.release(handle)

    assert run(work).applied == [b""]


def test_what_is_appended_comes_behind_what_is_there() -> None:
    async def work(control: Control) -> None:
        handle = await control.opened(os.O_WRONLY | os.O_APPEND)
        await control.operations.write(handle, 0, b"new\n")
        await control.closed(handle)

    assert run(work).applied == [b"old\nnew\n"]


def test_a_text_has_no_holes_and_an_end() -> None:
    async def work(control: Control) -> None:
        handle = await control.opened(os.O_RDWR)
        with fails(errno.EINVAL):
            await control.operations.write(handle, 5, b"x")
        with fails(errno.EFBIG):
            await control.operations.write(handle, 4, bytes(TEXT_MAX - 3))
        assert await control.operations.read(handle, 0, 100) == b"old\n"
        await control.operations.write(handle, 4, b"x" * (TEXT_MAX - 4))
        assert await control.operations.read(handle, TEXT_MAX - 1, 100) == b"x"
        with fails(errno.EFBIG):
            await control.operations.write(handle, TEXT_MAX, b"x")

    run(work)


def test_a_bad_line_is_refused_as_it_is_written_and_nothing_is_applied_of_what_follows() -> None:
    async def work(control: Control) -> None:
        handle = await control.opened(os.O_WRONLY | os.O_TRUNC)
        with fails(errno.EINVAL):
            await control.operations.write(handle, 0, b"bad\n")
        await control.operations.write(handle, 4, b"more")
        with fails(errno.EINVAL):
            await control.closed(handle)
        assert control.setting.applied == []
        handle = await control.opened(os.O_WRONLY)
        with fails(errno.EINVAL):
            await control.operations.write(handle, 0, b"bad\n")
        await control.operations.setattr(await control.number(), *size(0), handle, OWNER)
        await control.operations.write(handle, 0, b"good")
        await control.closed(handle)

    assert run(work).applied == [b"good"]


def test_what_the_server_refuses_is_told_and_tried_again_when_more_is_written() -> None:
    async def work(control: Control) -> None:
        control.setting.refuses = OSError(errno.EACCES, "no")
        handle = await control.opened(os.O_WRONLY | os.O_TRUNC)
        await control.operations.write(handle, 0, b"new\n")
        with fails(errno.EACCES):
            await control.operations.flush(handle)
        control.setting.refuses = None
        await control.operations.flush(handle)
        assert control.setting.applied == [], "nothing was written since"
        await control.operations.write(handle, 0, b"new\n")
        await control.closed(handle)

    assert run(work).applied == [b"new\n"]


def test_who_cuts_a_text_by_its_name_waits_for_who_is_applying_one() -> None:
    """He would apply what is left of the text before, and undo the other's."""

    async def work(control: Control) -> None:
        may = control.setting.may = trio.Event()
        handle = await control.opened(os.O_WRONLY)
        await control.operations.write(handle, 0, b"new, and longer\n")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(control.operations.flush, handle)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(control.operations.setattr, await control.number(), *size(3), None, OWNER)
            await trio.testing.wait_all_tasks_blocked()
            may.set()
        await control.operations.release(handle)

    assert run(work).applied == [b"new, and longer\n", b"new"]


def test_who_opens_a_text_while_one_is_applied_is_shown_that_one() -> None:
    async def work(control: Control) -> None:
        may = control.setting.may = trio.Event()
        handle, shown = await control.opened(os.O_WRONLY | os.O_TRUNC), list[bytes | memoryview]()
        await control.operations.write(handle, 0, b"new\n")

        async def look() -> None:
            reader = await control.opened(os.O_RDONLY)
            shown.append(await control.operations.read(reader, 0, 100))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(control.operations.flush, handle)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(look)
            await trio.testing.wait_all_tasks_blocked()
            assert shown == []
            may.set()
        assert shown == [b"new\n"]

    run(work)


@pytest.mark.promise(13)
def test_only_root_and_who_mounted_see_all_of_a_text() -> None:
    async def work(control: Control) -> None:
        for uid, text in ((0, b"old\n"), (1000, b"old\n"), (4321, b"hidden\n")):
            handle = await control.opened(os.O_RDONLY, ctx=SimpleNamespace(uid=uid))
            assert await control.operations.read(handle, 0, 100) == text

    run(work)


def test_what_nobody_may_change_is_neither_opened_for_writing_nor_cut() -> None:
    async def work(control: Control) -> None:
        for name in (b"report", b"old"):
            for flags in (os.O_WRONLY, os.O_RDWR):
                with fails(errno.EACCES):
                    await control.opened(flags, name)
            with fails(errno.EACCES):
                await control.operations.setattr(await control.number(name), *size(0), None, OWNER)
        entry, fields = size(0)
        for what in ("mode", "uid", "gid"):
            one: Any = SimpleNamespace(**vars(fields) | {"update_size": False, f"update_{what}": True})
            with fails(errno.EPERM):
                await control.operations.setattr(await control.number(), entry, one, None, OWNER)

    run(work)


def test_a_name_that_may_lead_elsewhere_is_looked_up_each_time() -> None:
    async def work(control: Control) -> None:
        found = await control.operations.lookup(control.operations.tree.root.number, b"setting", OWNER)
        assert (found.entry_timeout, found.attr_timeout) == (0, 0)
        assert control.operations.root().entry_timeout > 0

    run(work)


def test_what_the_kernel_was_told_of_and_forgets_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what a listing had no room for, which it was not told of."""

    async def work(control: Control) -> None:
        shown: list[tuple[bytes, int]] = []

        def reply(_: Any, name: bytes, entry: Any, after: int) -> bool:
            if len(shown) == 2:
                return False
            shown.append((name, entry.st_ino))
            return True

        monkeypatch.setattr(pyfuse3, "readdir_reply", reply)
        tree = control.operations.tree
        handle = await control.operations.opendir(tree.root.number, OWNER)
        await control.operations.readdir(handle, 0, None)  # type: ignore[arg-type]
        assert [name for name, _ in shown] == [b"old", b"report"]
        await control.operations.forget([(number, 1) for _, number in shown])
        await control.operations.releasedir(handle)
        assert set(tree._nodes) == {tree.root.number}

    run(work)
