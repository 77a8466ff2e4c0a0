"""One HTTP exchange over libcurl: 0.08 ms of CPU a small one, 0.4 s a GiB.

Nothing here knows S3, but that libcurl itself can sign for it (`Signing`). What holds for every request:

- No redirect is followed, which libcurl would do only if it were told: who answers 3xx names no host that gets
  key, token or body.
- An answer has room for so many bytes as the request says, by status and headers, before the first byte of its
  body is read; one more ends the transfer. So no server decides how much memory it takes.
- The proxy is what `proxies` says, the trusted certificates are `certificate_authorities`'s, names and
  passwords come from no file.
- A request that moves no byte for `silence` seconds, or takes an hour, is given up; so is one whose `Interrupt`
  is set. libcurl asks about both once a second while nothing moves.

libcurl by itself sends a request again where a kept connection turns out to be dead: `sends` counts it.

Safe from any thread; each call blocks its thread and releases the GIL while it waits or moves bytes. A handle with
its connection serves one request at a time, the one used last first, and is told of the next only what is other than
with the last: to tell all again took a tenth of the CPU of a HEAD. Not to be imported before the daemon has forked.
"""

from __future__ import annotations

import contextlib
import io
import os
import time
from collections import deque
from typing import NamedTuple
from urllib.parse import urlsplit

import pycurl

from sosfs import __version__
from sosfs.concurrency.interrupt import Interrupt
from sosfs.errors import StoreError
from sosfs.s3.file_body import FileBody
from sosfs.s3.http_messages import Fault, Fields, Reply, Request, Room, Signing, TransferError
from sosfs.s3.proxies import proxy_for
from sosfs.s3.throttle import Throttle
from sosfs.tracing.meters import METERS

IDLE = 30.0  # seconds after which a connection that nobody uses is closed: busy moments leave dozens
IN_FLIGHT = 1 << 30  # bytes: more than are ever under way together, for how long a request may take at a low rate
SLOWNESS_MAX = 7 * 86_400  # seconds
CHUNK = 512 << 10  # bytes that libcurl reads or sends at once; 64 KiB cost a third more CPU
REQUEST_SECONDS = 3600  # of a whole request: for what trickles
PROXY_FAILED = 97  # CURLE_PROXY, for which pycurl has no name
PROXY_LOGIN = "it asks for a name and a password (407)"
VERSION: tuple[int, ...] = tuple(int(part) for part in pycurl.version_info()[1].split("-")[0].split("."))

UNBOUND = Throttle(transfers=1)  # whose rates hold nothing up
NO_REQUEST, NO_ROOM, NO_BODY = Request("GET", "/"), Room(0, 0), memoryview(b"")

_FAULTS = {
    pycurl.E_COULDNT_RESOLVE_PROXY: Fault.UNREACHED,
    pycurl.E_COULDNT_RESOLVE_HOST: Fault.UNREACHED,
    pycurl.E_COULDNT_CONNECT: Fault.UNREACHED,
    pycurl.E_SSL_CONNECT_ERROR: Fault.UNREACHED,
    PROXY_FAILED: Fault.UNREACHED,
    pycurl.E_OPERATION_TIMEDOUT: Fault.SILENT,
    pycurl.E_SSL_CACERT: Fault.UNTRUSTED,
    pycurl.E_SSL_CACERT_BADFILE: Fault.UNTRUSTED,
    pycurl.E_URL_MALFORMAT: Fault.IMPOSSIBLE,
    pycurl.E_BAD_FUNCTION_ARGUMENT: Fault.IMPOSSIBLE,
}


class Transport:
    """Connections to one server, `origin`, and how it is reached.

    `ca_bundle` is a file of certificates that are trusted in place of libcurl's own, `connect_timeout` seconds
    for name, TCP, TLS and the proxy's tunnel together.
    """

    def __init__(
        self, origin: str, *, ca_bundle: str, connect_timeout: float, throttle: Throttle | None = None
    ) -> None:
        self._origin = origin
        self._proxy = proxy_for(origin)
        self._host = urlsplit(origin).netloc
        self._ca_bundle = ca_bundle
        self._connect_timeout = connect_timeout
        self._throttle = throttle or UNBOUND
        # Those used last at the end, each with the time; its appends and pops are atomic.
        self._idle: deque[tuple[float, _Connection]] = deque()

    @property
    def proxy(self) -> str:
        """The proxy that requests go through, for the user to see; "" for none."""
        return self._proxy.shown if self._proxy else ""

    def close(self) -> None:
        """Closes the idle connections."""
        while self._idle:
            self._idle.pop()[1].handle.close()

    def sweep(self) -> None:
        """Closes the connections that were not used for a while, and with each its buffers of 1 MiB."""
        until = time.monotonic() - IDLE
        with contextlib.suppress(IndexError):  # a request has taken the last one meanwhile
            while self._idle and self._idle[0][0] < until:
                since, connection = self._idle.popleft()
                if since >= until:  # it has another one's place
                    self._idle.append((since, connection))
                    return
                connection.handle.close()

    def exchange(self, request: Request, interrupt: Interrupt | None = None) -> Reply:
        """Sends `request` once. Raises `TransferError`, and what `request.room` raises."""
        try:
            _, connection = self._idle.pop()
        except IndexError:
            connection = _Connection(self._throttle)
        try:
            return self._perform(connection, request, interrupt)
        finally:
            connection.transfer.clear()  # none of the bodies is kept
            METERS.arrives(0)
            self._idle.append((time.monotonic(), connection))

    def _perform(self, connection: _Connection, request: Request, interrupt: Interrupt | None) -> Reply:
        handle, transfer = connection.handle, connection.transfer
        kind = _Kind(request.method, request.signing, self._throttle.upload.limit, self._throttle.download.limit)
        if connection.kind != kind:
            connection.kind = None
            handle.reset()  # keeps the connection
            self._set_route(handle)
            _set_kind(handle, kind)
            transfer.attach(handle, kind.sends_body)
            connection.kind = kind
        handle.setopt(pycurl.URL, self._origin + request.path)
        handle.setopt(pycurl.HTTPHEADER, [*request.headers, b"Expect:"])
        if kind.sends_body:
            handle.setopt(pycurl.INFILESIZE_LARGE, len(request.body))
        transfer.begin(request, interrupt)
        try:
            handle.perform()
        except pycurl.error as error:
            if transfer.raised:
                raise transfer.raised from None
            fault, words = transfer.fault or self._fault(handle, error, transfer.sends)
            raise TransferError(fault, words, transfer.sends, transfer.status) from error
        return transfer.reply()

    def _set_route(self, handle: pycurl.Curl) -> None:
        handle.setopt(pycurl.NOSIGNAL, 1)
        handle.setopt(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1)
        handle.setopt(pycurl.HTTP_CONTENT_DECODING, 0)  # an object with Content-Encoding is its encoded bytes
        handle.setopt(pycurl.TCP_KEEPALIVE, 1)
        handle.setopt(pycurl.BUFFERSIZE, min(CHUNK, self._throttle.download.piece))
        handle.setopt(pycurl.CONNECTTIMEOUT_MS, max(1, int(self._connect_timeout * 1000)))
        handle.setopt(pycurl.TIMEOUT, REQUEST_SECONDS + self._slowness())
        handle.setopt(pycurl.USERAGENT, f"sosfs/{__version__}")
        handle.setopt(pycurl.PROXY, self._proxy.url if self._proxy else "")  # "": the environment does not count
        handle.setopt(pycurl.NOPROXY, "")
        if self._ca_bundle:
            handle.setopt(pycurl.CAINFO, self._ca_bundle)
            handle.setopt(pycurl.PROXY_CAINFO, self._ca_bundle)

    def _slowness(self) -> int:
        """Seconds that a request may take longer because of the mount's own limits."""
        limits = [rate.limit for rate in (self._throttle.upload, self._throttle.download) if rate.limit]
        return min(IN_FLIGHT // min(limits), SLOWNESS_MAX) if limits else 0

    def _fault(self, handle: pycurl.Curl, error: pycurl.error, sends: int) -> tuple[Fault, str]:
        """What libcurl's error is, in words."""
        number, told = int(error.args[0]), handle.errstr()
        fault = _FAULTS.get(number, Fault.LOST)
        if number == pycurl.E_SSL_CACERT_BADFILE:
            return fault, f"CA bundle {self._ca_bundle} cannot be read, or holds no certificate"
        if fault is Fault.UNTRUSTED:
            why = told.removeprefix("SSL certificate problem: ")
            return fault, f"certificate not trusted ({why}): see 'sosfs help certificates'"
        if number == pycurl.E_COULDNT_RESOLVE_HOST:
            told = "name not found"
        if number == pycurl.E_COULDNT_CONNECT and (system := handle.getinfo(pycurl.OS_ERRNO)):
            told = os.strerror(system).lower()
        if sends or self._proxy is None:
            return fault, told
        refused = handle.getinfo(pycurl.HTTP_CONNECTCODE)
        if refused // 100 in (4, 5):
            fault, told = (
                Fault.UNREACHED,
                PROXY_LOGIN if refused == 407 else f"it answers {refused} and opens no tunnel",
            )
        return fault, f"proxy {self._proxy.shown}: {told}"


class _Kind(NamedTuple):
    """What all requests of a kind have in common, so that a handle which has sent one need not be told again."""

    method: str
    signing: Signing | None
    upload_limit: int
    download_limit: int

    @property
    def sends_body(self) -> bool:
        """Whether there is a body, even if it is an empty one."""
        return self.method in ("PUT", "POST")


class _Connection:
    """A handle with its connection, the transfer that it tells of what it does, and the kind that it is set to."""

    __slots__ = ("handle", "kind", "transfer")

    def __init__(self, throttle: Throttle) -> None:
        self.handle = pycurl.Curl()
        self.kind: _Kind | None = None
        self.transfer = _Transfer(throttle)


def _set_kind(handle: pycurl.Curl, kind: _Kind) -> None:
    signing = kind.signing
    # libcurl refuses to sign what it must not normalise; whoever asks for its signature has a path that stays as it is.
    handle.setopt(pycurl.PATH_AS_IS, 0 if signing else 1)
    if signing:
        handle.setopt(pycurl.AWS_SIGV4, f"aws:amz:{signing.region}:s3")
        handle.setopt(pycurl.USERNAME, signing.access_key)
        handle.setopt(pycurl.PASSWORD, signing.secret_key)
    if kind.method == "HEAD":
        handle.setopt(pycurl.NOBODY, 1)
    elif kind.sends_body:
        handle.setopt(pycurl.UPLOAD, 1)
        handle.setopt(pycurl.UPLOAD_BUFFERSIZE, CHUNK)
    if kind.method not in ("HEAD", "GET", "PUT"):
        handle.setopt(pycurl.CUSTOMREQUEST, kind.method)


class _Transfer:
    """The transfer under way as libcurl's callbacks see it. What one finds wrong is kept for after the transfer.

    All run in the thread that performs. Their exceptions would end on stderr: none may leave them.
    """

    def __init__(self, throttle: Throttle) -> None:
        self._throttle = throttle
        self._lines: list[bytes] = []
        self.clear()

    def clear(self) -> None:
        """Keeps nothing of the transfer before."""
        self._request = NO_REQUEST
        self._interrupt: Interrupt | None = None
        self._upload: FileBody | memoryview = NO_BODY
        self._uploaded = 0
        self._lines.clear()
        self._status = 0  # once the headers are whole
        self._headers: Fields | None = None
        self._room = NO_ROOM
        self._body = bytearray()
        self._window: memoryview | None = None  # of a body whose length is known
        self._filled = 0
        self._moved, self._moved_at = -1, 0.0
        self.sends = 0
        self.fault: tuple[Fault, str] | None = None
        self.raised: StoreError | None = None

    def begin(self, request: Request, interrupt: Interrupt | None) -> None:
        """A transfer is about to begin; `clear` was called since the last one."""
        self._request = request
        self._interrupt = interrupt
        self._upload = request.body if isinstance(request.body, FileBody) else memoryview(request.body)
        self._moved_at = time.monotonic()

    def attach(self, handle: pycurl.Curl, sends_body: bool) -> None:
        """Has the handle tell this object of its transfers."""
        handle.setopt(pycurl.HEADERFUNCTION, self._lines.append)
        handle.setopt(pycurl.WRITEFUNCTION, self._write)
        handle.setopt(pycurl.PREREQFUNCTION, self._about_to_send)
        handle.setopt(pycurl.XFERINFOFUNCTION, self._progress)
        handle.setopt(pycurl.NOPROGRESS, 0)
        if sends_body:
            handle.setopt(pycurl.READFUNCTION, self._read)
            handle.setopt(pycurl.SEEKFUNCTION, self._seek)

    def reply(self) -> Reply:
        """The answer, after a transfer that libcurl found whole. Raises as `exchange` does."""
        if self._headers is None and not self._begin():
            raise self.raised or TransferError(*(self.fault or (Fault.LOST, "no answer")), self.sends)
        assert self._headers is not None
        if self._filled < self._room.least:
            words = f"{self._filled} bytes where {self._room.least} were due"
            raise TransferError(Fault.LOST, words, self.sends)
        body = memoryview(self._body)[: self._filled].toreadonly()
        return Reply(self._status, self._headers, body, self.sends)

    @property
    def status(self) -> int:
        """The status that was told last; 0 for none."""
        return int(self._lines[self._last].split()[1]) if self._lines else 0

    @property
    def _last(self) -> int:
        """Where the last head begins; before it are those of interim answers and of a proxy's tunnel."""
        if self._lines[-1:] == [b"\r\n"] and self._lines.count(b"\r\n") == 1:  # as nearly always
            return 0
        return max((at for at, line in enumerate(self._lines) if line.startswith(b"HTTP/")), default=0)

    def _about_to_send(self, *_: object) -> int:
        self.sends += 1
        self._moved_at = time.monotonic()
        return int(pycurl.PREREQFUNC_OK)

    def _read(self, size: int) -> bytes | int:
        rate, at = self._throttle.upload, self._uploaded
        size = min(size, rate.piece)
        if isinstance(self._upload, FileBody):
            chunk = self._read_file(self._upload, at, size)
            if not chunk and at < len(self._upload):
                return int(pycurl.READFUNC_ABORT)
        else:
            chunk = bytes(self._upload[at : at + size])
        rate.take(len(chunk), self._interrupt)
        self._uploaded += len(chunk)
        self._tell_moved()
        return chunk

    def _read_file(self, body: FileBody, at: int, size: int) -> bytes:
        """b"" where it has fewer bytes than it should, which is a fault: libcurl would wait for the rest."""
        try:
            chunk = body.read(at, size)
        except OSError as error:
            self.fault = (Fault.IMPOSSIBLE, f"what is to be sent cannot be read: {error}")
            return b""
        if not chunk and at < len(body):
            self.fault = (Fault.IMPOSSIBLE, "what is to be sent was cut off")
        return chunk

    def _tell_moved(self) -> None:
        if self._request.moved is not None:
            self._request.moved(self._uploaded)

    def _seek(self, offset: int, origin: int) -> int:
        if origin != io.SEEK_SET:
            return int(pycurl.SEEKFUNC_FAIL)
        self._uploaded = offset
        self._tell_moved()
        return int(pycurl.SEEKFUNC_OK)

    def _write(self, chunk: bytes) -> int:
        if self._headers is None and not self._begin():
            return -1
        end, most = self._filled + len(chunk), self._room.most if self._window is None else len(self._window)
        if end > most:  # also where libcurl does not take for a length what tells one
            self.fault = (Fault.OVERLONG, f"more than the {most} bytes that were due")
            return -1
        if self._window is None:
            self._body += chunk
            METERS.arrives(end)
        else:
            self._window[self._filled : end] = chunk
        self._filled = end
        self._throttle.download.take(len(chunk), self._interrupt)
        return len(chunk)

    def _begin(self) -> bool:
        """Reads the headers and makes the room that they allow; False for an answer that is not taken."""
        try:
            last = self._last
            headers, self._status = Fields(self._lines[last + 1 :]), int(self._lines[last].split()[1])
            if self._status < 200:  # 101, after which no more HTTP comes
                raise ValueError(self._status)
            self._room = room = self._request.room(self._status, headers)
        except StoreError as error:
            self.raised = error
            return False
        except (ValueError, IndexError):
            self.fault = (Fault.LOST, "no HTTP answer")
            return False
        length = _length(headers) if self._request.method != "HEAD" else 0
        if length is not None and self._request.method != "HEAD":
            if length > room.most:
                self.fault = (Fault.OVERLONG, f"{length} bytes where {room.most} at most were due")
                return False
            if length < room.least:
                self.fault = (Fault.LOST, f"{length} bytes where {room.least} were due")
                return False
            METERS.arrives(length)
            self._body = bytearray(length)
            self._window = memoryview(self._body)
        self._headers = headers
        return True

    def _progress(self, *counts: int) -> int:
        """Called as bytes move, and once a second while none does."""
        if self._interrupt and self._interrupt.is_set:
            self.fault = (Fault.INTERRUPTED, "given up")
            return 1
        moved, now = counts[1] + counts[3], time.monotonic()
        if moved != self._moved or not self.sends:
            self._moved, self._moved_at = moved, now
        elif now - self._moved_at > self._request.silence:
            self.fault = (Fault.SILENT, f"nothing moved for {self._request.silence:g} s")
            return 1
        return 0


def _length(headers: Fields) -> int | None:
    """Content-Length; None where it is not told, or where an encoding makes it none."""
    told = headers.get("Content-Length", "")
    if "Transfer-Encoding" in headers or not (told.isascii() and told.isdigit()):
        return None
    return int(told)
