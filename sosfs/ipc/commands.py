"""Have a running mount carry out a command, and follow its progress.

Beside the socket of `status` a daemon listens on one for errands. The command sends one line of JSON, which
errand and for which paths, and gets lines of JSON back: news while it is under way, at the end the outcome or the
error. Who hangs up calls it off, and so does Ctrl-C. Only who mounted and root are heard, whoever reaches the socket.

`serve` runs in the trio thread; `ask` blocks and belongs to other processes.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import trio

from sosfs.concurrency.tasks import first
from sosfs.ipc import sockets, status
from sosfs.ipc.status import SILENCE_SECONDS

log = logging.getLogger(__name__)

SUFFIX = ".do"
NEWS_SECONDS = 0.25  # between two lines of news
REQUEST_SECONDS = 5.0
REQUEST_MAX = 16 << 20  # bytes; a command line has 2 MiB at most
_PEER = struct.Struct("3i")  # pid, uid, gid of SO_PEERCRED, unix(7)


Told = dict[str, Any]  # what can be written as JSON
_FAULT: Told = {"error": [errno.EIO, sockets.FAULT, None]}


class _HungUpError(Exception):
    """The command has closed its end."""


Names = tuple[bytes, ...]  # a path below the root of the mount, name by name
Tell = Callable[[Told], None]  # the newest news; what nobody has read yet is replaced
Options = Mapping[str, str]  # of an errand, by name
Work = Callable[[Sequence[Names], Tell, Options], Awaitable[Told]]
NO_OPTIONS: Options = MappingProxyType({})


def socket_path(mountpoint: Path) -> Path:
    """Where the daemon of this mount point (absolute, links resolved) listens for errands."""
    return status.socket_path(mountpoint, suffix=SUFFIX)


async def serve(
    path: Path, works: Mapping[str, Work], *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Does errands until cancelled; started once it listens. `works` are called in the trio thread."""
    await sockets.listen(path, partial(_answer, works), task_status=task_status)


async def _answer(works: Mapping[str, Work], stream: trio.SocketStream) -> None:
    try:
        told = _encoded(await _line(works, stream))
    except _HungUpError:
        return  # the command went away
    await stream.send_all(told)


async def _line(works: Mapping[str, Work], stream: trio.SocketStream) -> Told:
    """Does what the command asks for and returns the last line for it."""
    try:
        text = await _request(stream)  # first: a command that is cut short in the middle of it would not hear why
        _require_owner(stream)
        name, paths, options = _parsed(text)
        if name not in works:
            raise OSError(errno.EOPNOTSUPP, f"this mount knows no {name!r}")
        return {"outcome": await _with_news(stream, partial(works[name], paths), options)}
    except OSError as error:
        path = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename
        return {"error": [error.errno or errno.EIO, error.strerror or str(error), path]}
    except (trio.BrokenResourceError, _HungUpError):
        raise
    except Exception:
        log.exception("an errand failed")
        return _FAULT


def _require_owner(stream: trio.SocketStream) -> None:
    credentials = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    _, uid, _ = _PEER.unpack(credentials)
    if uid not in (0, os.geteuid()):
        raise OSError(errno.EPERM, "only who mounted it, or root, may do that")


async def _request(stream: trio.SocketStream) -> bytes:
    text = bytearray()
    with trio.move_on_after(REQUEST_SECONDS):
        while not text.endswith(b"\n") and len(text) < REQUEST_MAX:
            more = await stream.receive_some()
            if not more:
                break
            text += more
    return bytes(text)


def _parsed(text: bytes) -> tuple[str, list[Names], Options]:
    try:
        request = json.loads(text)
        paths = [tuple(os.fsencode(name) for name in path) for path in request["paths"]]
        options = {str(name): str(value) for name, value in request.get("options", {}).items()}
        return str(request["do"]), paths, options
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise OSError(errno.EPROTO, "the request is not understood") from error


async def _with_news(
    stream: trio.SocketStream, work: Callable[[Tell, Options], Awaitable[Told]], options: Options
) -> Told:
    newest: Told = {}

    def tell(news: Told) -> None:
        newest.update(news)

    async def report() -> Told:
        while True:
            await trio.sleep(NEWS_SECONDS)
            await _send(stream, {"news": newest})

    async def hung_up() -> Told:
        while await stream.receive_some():
            pass  # nothing is asked after the request
        raise _HungUpError

    return await first(partial(work, tell, options), report, hung_up)


async def _send(stream: trio.SocketStream, line: Told) -> None:
    await stream.send_all(_encoded(line))


def _encoded(line: Told) -> bytes:
    """A line for the command; what cannot be told as JSON is a bug, of which the command hears as well."""
    try:
        return json.dumps(line).encode() + b"\n"
    except (TypeError, ValueError):
        log.exception("an errand failed")
        return json.dumps(_FAULT).encode() + b"\n"


def ask(
    mountpoint: Path,
    errand: str,
    paths: Sequence[Names],
    *,
    owner: int,
    news: Tell,
    silence: float = SILENCE_SECONDS,
    options: Options = NO_OPTIONS,
) -> Told:
    """Has the daemon of this mount point (mounted by the uid `owner`) do an errand; returns its outcome.

    `news` is called while it goes on; after `silence` seconds without a line the daemon is taken for hung. Raises
    OSError: what the daemon refused, EPERM for whom it does not serve, ENOTCONN where none listens, ETIMEDOUT when it
    falls silent.
    """
    with _connected(mountpoint, owner, silence) as client:
        named = [[os.fsdecode(name) for name in path] for path in paths]
        request = {"do": errand, "paths": named, "options": dict(options)}
        _send_request(client, json.dumps(request).encode() + b"\n", mountpoint)
        for line in _lines(client, mountpoint):
            if "news" in line:
                news(line["news"])
            elif "outcome" in line:
                outcome: Told = line["outcome"]
                return outcome
            else:
                number, text, path = line["error"]
                raise OSError(number, text, path)
    raise OSError(errno.ENOTCONN, "the daemon ended meanwhile", str(mountpoint))


def _connected(mountpoint: Path, owner: int, silence: float) -> socket.socket:
    for path in status.candidates(mountpoint, owner, SUFFIX):
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.settimeout(silence)
        try:
            client.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            client.close()
            continue
        except PermissionError as error:
            client.close()
            raise OSError(errno.EPERM, "only who mounted it, or root, may do that", str(mountpoint)) from error
        except (TimeoutError, BlockingIOError) as error:
            client.close()
            raise OSError(errno.ETIMEDOUT, status.NO_ANSWER, str(mountpoint)) from error
        return client
    raise OSError(errno.ENOTCONN, "the daemon of this mount does not listen", str(mountpoint))


def _send_request(client: socket.socket, line: bytes, mountpoint: Path) -> None:
    try:
        client.sendall(line)
    except TimeoutError as error:
        raise OSError(errno.ETIMEDOUT, status.NO_ANSWER, str(mountpoint)) from error
    except (BrokenPipeError, ConnectionResetError):
        pass  # it has ended, or says why it reads no more


def _lines(client: socket.socket, mountpoint: Path) -> Iterator[Told]:
    try:
        with client.makefile("rb") as answer:
            for line in answer:
                if line.endswith(b"\n"):  # else the daemon ended meanwhile
                    yield json.loads(line)
    except ConnectionResetError:
        return  # so it did
    except TimeoutError as error:
        raise OSError(errno.ETIMEDOUT, status.NO_ANSWER, str(mountpoint)) from error
    except ValueError as error:
        raise OSError(errno.EPROTO, "the daemon's answer is not understood") from error
