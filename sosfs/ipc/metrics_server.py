"""Metrics over HTTP, for Prometheus: on a loopback port or a unix socket.

`GET /metrics`, and nothing else; one request a connection. What a client may take is bounded: `REQUEST_MAX` bytes of
request, `CLIENT_SECONDS` from the first byte to the last, `CLIENTS` at once. Whoever asks by a name that is not this
machine's (a web page that had its own name resolved to the loopback) gets nothing.

Runs in the trio thread; the text is made in another one.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import os
import socket
import stat
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from pathlib import Path

import trio

from sosfs.concurrency.threads import LOCAL
from sosfs.config.values import Loopback
from sosfs.ipc import metrics, sockets
from sosfs.ipc.status import Status

log = logging.getLogger(__name__)

REQUEST_MAX = 16 << 10  # bytes; Prometheus sends some 400
CLIENT_SECONDS = 10.0
CLIENTS = 8
PATH = "/metrics"


async def serve(
    address: Loopback | Path,
    provider: Callable[[], Status],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answers until cancelled; started once it listens. Raises OSError where it cannot."""
    clients = trio.CapacityLimiter(CLIENTS)
    answer = partial(_answer, provider, clients)
    if isinstance(address, Path):
        await LOCAL.run(_require_free, address)
        await sockets.listen(address, answer, task_status=task_status)
        return
    try:
        listeners = await trio.open_tcp_listeners(address.port, host=address.host)
    except OSError as error:
        raise OSError(error.errno, f"no metrics on {address}: {os.strerror(error.errno or errno.EIO)}") from error
    await trio.serve_listeners(sockets.harmless(answer), listeners, task_status=sockets.started(task_status))


def _require_free(path: Path) -> None:
    """Raises EADDRINUSE where somebody listens already, EEXIST for what is no socket. Blocking."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise OSError(errno.EEXIST, "no metrics there: something else than a socket is there", str(path))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.settimeout(CLIENT_SECONDS)
        try:
            other.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return  # of a daemon that has died
    raise OSError(errno.EADDRINUSE, "no metrics there: somebody else listens", str(path))


async def _answer(provider: Callable[[], Status], clients: trio.CapacityLimiter, stream: trio.SocketStream) -> None:
    try:
        clients.acquire_nowait()
    except trio.WouldBlock:
        return
    try:
        with trio.move_on_after(CLIENT_SECONDS):
            await stream.send_all(await _response(provider, await _head(stream)))
            await _until_closed(stream)
    finally:
        clients.release()


async def _head(stream: trio.SocketStream) -> bytes:
    """The request's lines; "" for one that is cut short or too long."""
    head = bytearray()
    while b"\r\n\r\n" not in head:
        more = await stream.receive_some(REQUEST_MAX)
        head += more
        if not more or len(head) > REQUEST_MAX:
            return b""
    return bytes(head)


async def _until_closed(stream: trio.SocketStream) -> None:
    """Waits for the client to close: a connection that is closed over unread bytes takes the answer with it."""
    await stream.send_eof()
    left = REQUEST_MAX
    while left > 0 and (more := await stream.receive_some(REQUEST_MAX)):
        left -= len(more)


async def _response(provider: Callable[[], Status], head: bytes) -> bytes:
    lines = head.decode("latin-1").split("\r\n")
    method, _, rest = lines[0].partition(" ")
    fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    if not rest.partition(" ")[2].startswith("HTTP/1."):
        return _message(HTTPStatus.BAD_REQUEST)
    if not _is_here(fields.get("host", "")):
        return _message(HTTPStatus.FORBIDDEN)
    if rest.partition(" ")[0].partition("?")[0] != PATH:
        return _message(HTTPStatus.NOT_FOUND)
    if method not in ("GET", "HEAD"):
        return _message(HTTPStatus.METHOD_NOT_ALLOWED)
    try:
        body, form = await LOCAL.run(metrics.exposed, provider(), fields.get("accept", ""))
    except Exception:
        log.exception("there are no metrics")  # and no reason for the mount to end
        return _message(HTTPStatus.INTERNAL_SERVER_ERROR)
    return _message(HTTPStatus.OK, body, form, has_body=method == "GET")


def _message(status: HTTPStatus, body: bytes = b"", form: str = "text/plain", *, has_body: bool = True) -> bytes:
    if status is not HTTPStatus.OK:
        body = f"{status.phrase}: GET {PATH}\n".encode()
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {form}\r\nContent-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + (body if has_body else b"")


def _is_here(host: str) -> bool:
    """Whether a Host header names this machine's loopback; "" is a client without one, and so no browser."""
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    if name in ("", "localhost"):
        return True
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False
