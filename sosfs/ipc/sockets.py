"""Sockets on which a mount answers.

Nothing that goes wrong with one answer reaches another, or the mount: it is logged, and the one who asked is told.

All of it runs in the trio thread.
"""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import trio

from sosfs.ipc.status import ANSWER_SECONDS, Status, failure

log = logging.getLogger(__name__)

LISTEN_QUEUE = 128  # who finds it full takes the daemon for hung
FAULT = "a fault of the mount; its log shows which"

Answer = Callable[[trio.SocketStream], Awaitable[None]]


async def tell(
    path: Path,
    provider: Callable[[], Status],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Tells whoever connects what `provider` says, until cancelled; started once it listens."""

    async def answer(stream: trio.SocketStream) -> None:
        with trio.move_on_after(ANSWER_SECONDS):
            await stream.send_all(_document(provider).encode() + b"\n")

    await listen(path, answer, task_status=task_status)


def _document(provider: Callable[[], Status]) -> str:
    """The status as JSON, or why there is none."""
    try:
        return provider().to_json()
    except OSError as error:
        log.warning("no status: %s", error)
        return failure(error.strerror or str(error))
    except Exception:
        log.exception("no status")
        return failure(FAULT)


def harmless(answer: Answer) -> Answer:
    """An answer that raises nothing: a bug in it is logged. Its connection is closed then, as after any."""

    async def answered(stream: trio.SocketStream) -> None:
        try:
            await answer(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError, ConnectionError):
            return  # who asked went away
        except Exception:
            log.exception("an answer failed")

    return answered


async def listen(
    path: Path,
    answer: Answer,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Has each connection to a new unix socket answered until cancelled; started once it listens."""
    listener, inode = _listen(path)
    try:
        listeners = [trio.SocketListener(trio.socket.from_stdlib_socket(listener))]
        await trio.serve_listeners(harmless(answer), listeners, task_status=started(task_status))
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
