"""One HTTP/1.1 connection as bytes: heads are read, bodies are moved from socket to socket without being read.

Bodies go through splice(2) and a pipe, so they never enter Python: 1 GB/s and more, and memory that does not
grow with them. A `Wire` belongs to one thread.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import struct
import time

HEAD_MAX = 256 << 10
PIPE_SIZE = 1 << 20  # the most an ordinary user may ask for
RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER with zero seconds: close() sends RST


class Gone(Exception):
    """The other side ended the connection where the protocol does not allow it."""


class Wire:
    """One TCP connection: heads are read through a buffer, bodies are spliced past it."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = bytearray()
        self._pipe: tuple[int, int] | None = None

    def _fill(self) -> bool:
        data = self.socket.recv(64 << 10)
        self._buffer += data
        return bool(data)

    def read_until(self, mark: bytes) -> bytes:
        """The bytes up to and including `mark`; b"" where the connection ended before the first."""
        searched = 0
        while (at := self._buffer.find(mark, searched)) < 0:
            searched = max(0, len(self._buffer) - len(mark))
            if not self._fill():
                if self._buffer:
                    raise Gone("in the middle of a head")
                return b""
            if len(self._buffer) > HEAD_MAX and self._buffer.find(mark, searched) < 0:
                raise Gone("head too long")
        return self._take(at + len(mark))

    def read_exactly(self, count: int) -> bytes:
        """`count` bytes; Gone where there are fewer."""
        while len(self._buffer) < count:
            if not self._fill():
                raise Gone(f"{count - len(self._buffer)} bytes early")
        return self._take(count)

    def _take(self, count: int) -> bytes:
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def relay(self, count: int, sink: Wire | None, *, rate: int = 0, flip: int | None = None) -> int:
        """Moves `count` bytes, or fewer where the connection ends earlier, to `sink` (None drops them).

        The lowest bit of the byte at `flip` changes on the way, of the last byte where there are fewer.
        """
        moved = 0
        if flip is not None and count:
            at = min(flip, count - 1)
            moved = self.relay(at, sink)
            if moved < at:
                return moved
            (byte,) = self.read_exactly(1)
            if sink:
                sink.send(bytes([byte ^ 1]))
            moved += 1
        while moved < count:
            step = min(count - moved, max(1, rate // 20)) if rate else count - moved
            done = self._relay_some(step, sink)
            if not done:
                break
            moved += done
            if rate:
                time.sleep(done / rate)
        return moved

    def _relay_some(self, count: int, sink: Wire | None) -> int:
        if self._buffer:
            data = self._take(min(count, len(self._buffer)))
            if sink:
                sink.send(data)
            return len(data)
        if sink is None:
            return len(self.socket.recv(min(count, PIPE_SIZE)))
        reading, writing = self._open_pipe()
        filled = os.splice(self.socket.fileno(), writing, min(count, PIPE_SIZE))
        left = filled
        while left:
            left -= os.splice(reading, sink.socket.fileno(), left)
        return filled

    def _open_pipe(self) -> tuple[int, int]:
        if self._pipe is None:
            self._pipe = os.pipe()
            fcntl.fcntl(self._pipe[1], fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        return self._pipe

    def relay_chunked(self, sink: Wire | None, *, rate: int = 0) -> int:
        """Moves a chunked body with its framing; returns the bytes of the chunks alone."""
        moved = 0
        while True:
            line = self.read_until(b"\r\n")
            size = int(line.split(b";")[0], 16) if line else 0
            if sink:
                sink.send(line)
            if not size:
                break
            moved += self.relay(size, sink, rate=rate)
            ending = self.read_exactly(2)
            if sink:
                sink.send(ending)
        while (line := self.read_until(b"\r\n")) not in (b"\r\n", b""):  # trailers
            if sink:
                sink.send(line)
        if sink:
            sink.send(line)
        return moved

    def ended(self) -> bool:
        """Whether the other side has closed this idle connection, or sent what nobody asked for."""
        looking = select.poll()  # select() knows no descriptor above 1,023, as a process of many tests has
        looking.register(self.socket, select.POLLIN)
        return bool(looking.poll(0))

    def close(self) -> None:
        self.socket.close()
        if self._pipe:
            os.close(self._pipe[0])
            os.close(self._pipe[1])
            self._pipe = None

    def reset(self) -> None:
        """Closes with RST."""
        with contextlib.suppress(OSError):
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        self.close()


def parse_head(head: bytes) -> tuple[str, dict[str, str]]:
    """The first line and the headers, names in lower case."""
    first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    pairs = (line.partition(":") for line in lines)
    return first, {name.strip().lower(): value.strip() for name, _, value in pairs}


def without_expect(head: bytes) -> bytes:
    lines = head.split(b"\r\n")
    return b"\r\n".join(line for line in lines if not line.lower().startswith(b"expect:"))
