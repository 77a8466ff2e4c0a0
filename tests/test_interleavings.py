"""What several do to one file at once, each step held back until another's has fallen between.

In one process and without a kernel, for only so can each order be had.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

import sosfs.spool
import sosfs.threads
from sosfs.fake import FakeStore
from sosfs.store import Properties
from tests.composed import Composed, composed
from tests.held import Held, closed, opened, stored

MIB = 1 << 20


def test_a_reader_under_way_when_the_writer_closes_gets_no_zeros(tmp_path: Path) -> None:
    store = Held()

    async def main(mount: Composed) -> None:
        await store.put("file", b"o" * 100_000, Properties())
        handle, reader = await opened(mount), await opened(mount, os.O_RDONLY)
        await mount.parts.contents.write(handle, 0, b"n" * 50_000)
        mount.parts.blocks.forget(lambda key: True)
        store.after["get"] = trio.Event()
        found: list[bytes] = []

        async def read() -> None:
            found.append(bytes(await mount.parts.contents.read(reader, 0, 100_000)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            await mount.parts.contents.write(handle, 50_000, b"n" * 50_000)
            await closed(mount, handle)
            assert stored(store) == b"n" * 100_000
            store.after.pop("get").set()
        assert found[0][:50_000].count(0) == 0, "zeros were never in this file"

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))


def test_a_read_that_waits_for_a_thread_does_not_read_another_file(tmp_path: Path) -> None:
    """All threads wait for the disk; meanwhile the writer closes, and another file's spool gets the number."""
    store, held = FakeStore(), trio.Event()

    async def main(mount: Composed) -> None:
        inline = sosfs.threads.Threads.run

        async def run(threads: Any, work: Callable[..., Any], *arguments: Any) -> Any:
            if work is sosfs.spool._read_all and held.statistics().tasks_waiting == 0 and not held.is_set():
                await held.wait()
            return await inline(threads, work, *arguments)

        await mount.write("file", b"a" * MIB, flags=os.O_CREAT)
        handle, reader = await opened(mount), await opened(mount, os.O_RDONLY)
        await mount.parts.contents.write(handle, 0, b"b" * MIB)
        await mount.parts.contents.flush(handle)
        found: list[bytes] = []

        async def read() -> None:
            found.append(bytes(await mount.parts.contents.read(reader, 0, MIB // 2)))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sosfs.threads.Threads, "run", run)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                await trio.testing.wait_all_tasks_blocked()
                await closed(mount, handle)
                await mount.write("secret", b"s" * MIB, flags=os.O_CREAT)
                parent, name = await mount._parent("other")
                other = await mount._opened(parent, name, os.O_CREAT | os.O_WRONLY)
                await mount.parts.contents.write(other, 0, b"s" * MIB)
                held.set()
            await closed(mount, other)
        assert found == [b"b" * (MIB // 2)]

    with composed(store, tmp_path) as mount:
        mount.loop.run(partial(main, mount))
