"""Unix sockets on which a mount answers.

All of it runs in the trio thread.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import trio

from sosfs.ipc.status import ANSWER_SECONDS, Status

LISTEN_QUEUE = 16


async def tell(
    path: Path,
    provider: Callable[[], Status],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Tells whoever connects what `provider` says, until cancelled; started once it listens."""

    async def answer(stream: trio.SocketStream) -> None:
        with trio.move_on_after(ANSWER_SECONDS):
            try:
                await stream.send_all(provider().to_json().encode() + b"\n")
            except trio.BrokenResourceError:
                return  # the reader went away
        await trio.aclose_forcefully(stream)

    await listen(path, answer, task_status=task_status)


async def listen(
    path: Path,
    answer: Callable[[trio.SocketStream], Awaitable[None]],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Calls `answer` for each connection to a new unix socket until cancelled; started once it listens."""
    listener, inode = _listen(path)
    try:
        listeners = [trio.SocketListener(trio.socket.from_stdlib_socket(listener))]
        await trio.serve_listeners(answer, listeners, task_status=started(task_status))
    finally:
        _forget(path, inode)


def _listen(path: Path) -> tuple[socket.socket, int]:
    new = path.with_suffix(f"{path.suffix}.new")
    new.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(new))
    listener.listen(LISTEN_QUEUE)
    new.replace(path)  # over that of a daemon that died: a reader sees the old one refuse or the new one answer
    return listener, path.stat().st_ino


def _forget(path: Path, inode: int) -> None:
    """Removes the socket, unless a later mount of the same place has put its own there while this one drained."""
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_ino == inode:
            path.unlink()


def started(task_status: trio.TaskStatus[None]) -> Any:
    """What `serve_listeners` is to start, where a task is to be started with nothing."""

    class Adapter:
        """`serve_listeners` starts with its listeners, `serve` with nothing."""

        def started(self, _: object) -> None:
            task_status.started()

    return Adapter()
