"""The access log: a line for each kernel request and each S3 request, into a file, while a mount runs.

    2026-11-29T01:44:25.123456Z 42 read path="/mnt/a b" pid=812 name="cat" bytes=131072 ms=12.410 errno=0 \
s3=1 s3_ms=11.902 s3_kinds=GetObject:1
    2026-11-29T01:44:25.122871Z 42 s3.GetObject key="a b" sent=0 received=131072 tries=1 status=200 ms=11.902 errno=0

The second word is the number of the kernel request, the same in the lines of its S3 requests and in the mount's log;
`-` is for what the mount does by itself. There are names of files in it, so it is made for its owner's eyes; keys,
signatures, headers and bytes of files never are.

The lines are written in a thread of their own: a disk that hangs holds up no request. What it cannot keep up with is
counted and said in a line of its own (`lost`). The file may be moved away meanwhile (logrotate).
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import queue
import stat
import threading
from datetime import UTC, datetime
from io import TextIOWrapper
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import IO, cast

from sosfs.log.escaping import quoted
from sosfs.tracing.requests import KernelRequest, S3Request

WAITING = 20_000  # lines that may wait for the disk: some 10 MB
TOGETHER = 500  # lines that are written at once
CLOSE_SECONDS = 2.0  # for which the end of it waits for the disk


class AccessLog:
    """An access log that is being written."""

    def __init__(self, path: Path) -> None:
        """Opens it, to go on at its end. Raises OSError, EINVAL for what is no plain file."""
        self.path = path
        self._file = _File(path)
        self._waiting: queue.Queue[KernelRequest | S3Request | None] = queue.Queue(WAITING)
        self.lost = 0  # lines, since that was last said
        self._thread = threading.Thread(target=self._write, name="access log", daemon=True)
        self._thread.start()

    @property
    def waits(self) -> int:
        """How many lines wait for the disk."""
        return self._waiting.qsize()

    def kernel_request(self, request: KernelRequest) -> None:
        """Has a line written for it."""
        self._put(request)

    def s3_request(self, request: S3Request) -> None:
        """Has a line written for it."""
        self._put(request)

    def close(self) -> None:
        """Writes what waits, for so long as `CLOSE_SECONDS`. Blocking."""
        try:
            self._waiting.put(None, timeout=CLOSE_SECONDS)
        except queue.Full:
            return  # the disk hangs, and with it a thread that ends with the process
        self._thread.join(CLOSE_SECONDS)

    def _put(self, request: KernelRequest | S3Request) -> None:
        try:
            self._waiting.put_nowait(request)
        except queue.Full:
            self.lost += 1

    def _write(self) -> None:
        while (first := self._waiting.get()) is not None:
            lines = [line_of(first)]
            while len(lines) < TOGETHER and not self._waiting.empty():
                following = self._waiting.get()
                if following is None:
                    self._append(lines)
                    self._file.close()
                    return
                lines.append(line_of(following))
            self._append(lines)
        self._file.close()

    def _append(self, lines: list[str]) -> None:
        lost = self.lost
        if lost:
            lines = [f"{_time(datetime.now(UTC).timestamp())} - lost lines={lost}", *lines]
        if self._file.append(lines):
            self.lost -= lost
        else:
            self.lost += len(lines) - bool(lost)


class _File(WatchedFileHandler):
    """The file, opened anew where it was moved away, and after an error."""

    terminator = ""

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8", errors="backslashreplace")
        self._has_failed = False

    def _open(self) -> TextIOWrapper:
        opened: IO[str] = open(self.baseFilename, self.mode, encoding=self.encoding, errors=self.errors, opener=_opened)  # noqa: SIM115
        return cast(TextIOWrapper, opened)

    def append(self, lines: list[str]) -> bool:
        """Whether they were written."""
        start = "\n" if self._has_failed else ""  # part of a line may be there
        self._has_failed = False
        text = start + "".join(f"{line}\n" for line in lines)
        try:
            self.emit(logging.LogRecord("", logging.INFO, "", 0, text, None, None))
        except OSError:  # its directory is gone, or it is no plain file any more
            self._has_failed = True
        if self._has_failed and self.stream is not None:
            stream, self.stream = self.stream, cast(TextIOWrapper, None)
            with contextlib.suppress(OSError):
                stream.close()  # with what it holds, which would be written twice
        return not self._has_failed

    def handleError(self, record: logging.LogRecord) -> None:
        self._has_failed = True


def _opened(path: str, flags: int) -> int:
    # A FIFO that nobody reads would hold up the thread for ever.
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "an access log has to be a plain file", path)
    return descriptor


def line_of(request: KernelRequest | S3Request) -> str:
    """Its line, without the end."""
    return _kernel_line(request) if isinstance(request, KernelRequest) else _s3_line(request)


def _kernel_line(request: KernelRequest) -> str:
    target = f" to={quoted(request.target)}" if request.target else ""
    kinds = ",".join(f"{operation}:{one.requests}" for operation, one in sorted(request.s3.items())) or "-"
    count = sum(one.requests for one in request.s3.values())
    seconds = sum(one.seconds for one in request.s3.values())
    return (
        f"{_time(request.ended)} {request.number} {request.operation} path={quoted(request.path)}{target}"
        f" pid={request.caller.pid or '-'} name={quoted(request.caller.name)} bytes={request.bytes}"
        f" ms={_ms(request.seconds)} errno={_errno(request.errno)} s3={count} s3_ms={_ms(seconds)} s3_kinds={kinds}"
    )


def _s3_line(request: S3Request) -> str:
    return (
        f"{_time(request.ended)} {request.cause.number if request.cause else '-'} s3.{request.operation}"
        f" key={quoted(request.key)} sent={request.sent} received={request.received} tries={request.tries}"
        f" status={request.status or '-'} ms={_ms(request.seconds)} errno={_errno(request.errno)}"
    )


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.3f}"


def _errno(number: int) -> str:
    return errno.errorcode.get(number, str(number)) if number else "0"
